//! Panics inside a run are findings (D2), not noise: while a run is under way
//! on a thread its panics are not printed, only remembered with their place.

use std::cell::{Cell, RefCell};
use std::sync::Once;

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A run is under way on this thread until this goes.
pub(crate) struct Running;

impl Running {
    pub(crate) fn begin() -> Self {
        PLACE.with(|p| p.take());
        RUNNING.set(true);
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(false);
    }
}

/// Where the last panic of a run on this thread was, if [`keep_quiet`] was called.
pub(crate) fn place() -> Option<String> {
    PLACE.with(|p| p.take())
}

/// From now on panics inside runs are not printed. All others are, as before.
pub fn keep_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if RUNNING.get() {
                PLACE.with(|p| *p.borrow_mut() = info.location().map(ToString::to_string));
            } else {
                before(info);
            }
        }));
    });
}

//! The only place where the driver reads clocks. The core gets time as an
//! argument: monotonic for everything with a deadline (C1, O7), wall-clock for
//! the in-memory registry alone, which stands in for a server with a clock of
//! its own.
//!
//! Must not know: who asks.

use std::time::{Duration, Instant as StdInstant, SystemTime, UNIX_EPOCH};

use nowconnect_core::time::Instant;

/// Milliseconds since 1970 on the wall clock; 0 if it stands before that.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this module is where clocks are read")]
pub fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The monotonic clock of one process, counted from its construction.
#[derive(Clone, Copy, Debug)]
pub struct Monotonic {
    start: StdInstant,
}

impl Monotonic {
    /// A clock that stands at zero now.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this module is where clocks are read")]
    #[allow(clippy::new_without_default, reason = "a clock that starts by accident hides which one it is")]
    pub fn new() -> Self {
        Self { start: StdInstant::now() }
    }

    /// Time since construction, as the core counts it.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this module is where clocks are read")]
    pub fn now(&self) -> Instant {
        let elapsed = StdInstant::now().saturating_duration_since(self.start);
        Instant::from_nanos(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }
}

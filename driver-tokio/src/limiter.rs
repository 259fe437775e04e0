//! Rate limit of failure lines: at most ten a second per (event, subject), the
//! rest counted and told with the next line (semantics 10, B10). The number of
//! subjects remembered is bounded.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use nowconnect_core::time::Instant;

use crate::clock::Monotonic;

const LINES_PER_SECOND: u32 = 10;
const SUBJECTS_MAX: usize = 1024;

/// Clones share the counts.
#[derive(Clone, Debug)]
pub struct Limiter {
    clock: Monotonic,
    seen: Rc<RefCell<BTreeMap<(&'static str, String), Count>>>,
}

#[derive(Debug)]
struct Count {
    since: Instant,
    lines: u32,
    suppressed: u64,
}

impl Limiter {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(clock: Monotonic) -> Self {
        Self { clock, seen: Rc::default() }
    }

    /// `Some(number of lines suppressed since the last one)` when a line may be
    /// written now.
    #[must_use]
    pub fn allow(&self, event: &'static str, subject: &str) -> Option<u64> {
        self.allow_at(self.clock.now(), event, subject)
    }

    fn allow_at(&self, now: Instant, event: &'static str, subject: &str) -> Option<u64> {
        let mut seen = self.seen.borrow_mut();
        if seen.len() >= SUBJECTS_MAX {
            seen.retain(|_, c| now.since(c.since) < Duration::from_secs(1) || c.suppressed > 0);
            if seen.len() >= SUBJECTS_MAX {
                seen.pop_first();
            }
        }
        let count = seen.entry((event, subject.to_owned())).or_insert(Count { since: now, lines: 0, suppressed: 0 });
        if now.since(count.since) >= Duration::from_secs(1) {
            count.since = now;
            count.lines = 0;
        }
        if count.lines >= LINES_PER_SECOND {
            count.suppressed += 1;
            return None;
        }
        count.lines += 1;
        Some(std::mem::take(&mut count.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eleventh_line_of_a_second_is_counted_and_told_later() {
        let l = Limiter::new(Monotonic::new());
        let t = Instant::from_nanos(1);
        for _ in 0..10 {
            assert_eq!(l.allow_at(t, "e", "s"), Some(0));
        }
        assert_eq!(l.allow_at(t, "e", "s"), None);
        assert_eq!(l.allow_at(t, "e", "other"), Some(0));
        assert_eq!(l.allow_at(t.after(Duration::from_secs(1)), "e", "s"), Some(1));
    }

    #[test]
    fn subjects_are_bounded() {
        let l = Limiter::new(Monotonic::new());
        for i in 0..5000 {
            let _ = l.allow_at(Instant::from_nanos(1), "e", &i.to_string());
        }
        assert!(l.seen.borrow().len() <= SUBJECTS_MAX);
    }
}

//! How many connections a second a port takes (attack 3, semantics 8): a token
//! bucket on tokio's clock, as a schedule. Who comes too early is told when its
//! turn is; nobody is refused.
//!
//! Owns no connection and counts none; must not know who they are from.

use std::time::Duration;

use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// The bucket of one port. It holds as many as a second brings.
#[derive(Debug)]
pub(super) struct Rate {
    /// Between two connections, once the bucket is empty.
    every: Duration,
    /// When it is full again.
    full: Instant,
}

impl Rate {
    /// Full; `per_second` counts as 1 when it is 0.
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        Self { every: SECOND / per_second.max(1), full: now }
    }

    /// Takes one, from what is to come if there is none; how long it has to be
    /// waited for, if at all.
    pub(super) fn take(&mut self, now: Instant) -> Option<Duration> {
        let missing = self.full.saturating_duration_since(now) + self.every;
        self.full = now + missing;
        missing.checked_sub(SECOND).filter(|wait| !wait.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_seconds_worth_goes_at_once_and_what_follows_one_by_one() {
        let start = Instant::now();
        let mut rate = Rate::new(4, start);
        assert_eq!([(); 4].map(|()| rate.take(start)), [None; 4]);
        assert_eq!(rate.take(start), Some(250 * MS), "the fifth waits for its turn");
        assert_eq!(rate.take(start + 250 * MS), Some(250 * MS), "the next one starts from there");
        assert_eq!(rate.take(start + 750 * MS), None, "who comes in time does not wait");
        // A long silence saves up no more than a second's worth.
        let later = start + 3600 * SECOND;
        assert_eq!([(); 4].map(|()| rate.take(later)), [None; 4]);
        assert_eq!(rate.take(later), Some(250 * MS));
    }

    #[test]
    fn the_bounds_of_the_key_are_kept() {
        let start = Instant::now();
        let mut slow = Rate::new(1, start);
        assert_eq!((slow.take(start), slow.take(start)), (None, Some(SECOND)));
        let mut fast = Rate::new(1_000_000, start);
        assert!((0..1_000_000).all(|_| fast.take(start).is_none()));
        assert_eq!(fast.take(start), Some(MS / 1000));
        // One that does not divide a second is cut to whole nanoseconds, no more.
        let mut odd = Rate::new(3, start);
        let mut now = start;
        for _ in 0..303 {
            now += odd.take(now).unwrap_or_default();
        }
        assert_eq!(now - start, Duration::from_nanos(303 * 333_333_333) - SECOND);
    }
}

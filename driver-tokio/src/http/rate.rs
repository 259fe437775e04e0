//! How many connections a second a port takes, and of these how many from one
//! address (attack 3, semantics 8): token buckets on tokio's clock, as schedules.
//! Who comes too early is told when its turn is; nobody is refused.
//!
//! Owns no connection and counts none.

use std::collections::BTreeMap;
use std::net::IpAddr;
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

/// One bucket per address that came within a second, so that none of them can
/// use up the port's. As many as the port takes in about a second, at most twice.
#[derive(Debug)]
pub(super) struct Shares {
    per_second: u32,
    rates: BTreeMap<IpAddr, Rate>,
    /// Full buckets are forgotten when there are so many.
    sweep_at: usize,
}

impl Shares {
    /// `per_address` of `total` connections may be one address's: that part of
    /// `per_second` is its share, and at least 1. `None` if it may have all.
    pub(super) fn new(per_second: u32, per_address: usize, total: usize) -> Option<Self> {
        let part = u128::from(per_second) * per_address as u128;
        let share = u32::try_from(part.div_ceil(total.max(1) as u128)).unwrap_or(u32::MAX);
        (per_address < total).then(|| Self { per_second: share.max(1), rates: BTreeMap::new(), sweep_at: 64 })
    }

    /// As [`Rate::take`], from the share of `address`.
    pub(super) fn take(&mut self, address: IpAddr, now: Instant) -> Option<Duration> {
        if self.rates.len() >= self.sweep_at {
            self.rates.retain(|_, rate| rate.full > now);
            self.sweep_at = (self.rates.len() * 2).max(64);
        }
        self.rates.entry(address).or_insert_with(|| Rate::new(self.per_second, now)).take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_a_share_that_no_other_one_uses_up() {
        let start = Instant::now();
        let [a, b]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        assert!(Shares::new(8, 4, 4).is_none(), "one address may have all");
        let mut shares = Shares::new(8, 1, 4).unwrap();
        assert_eq!([(); 3].map(|()| shares.take(a, start)), [None, None, Some(500 * MS)]);
        assert_eq!([(); 3].map(|()| shares.take(b, start)), [None, None, Some(500 * MS)]);
        assert_eq!(shares.take(a, start + 2 * SECOND), None);
        let mut least = Shares::new(1, 1, 1000).unwrap();
        assert_eq!([(); 2].map(|()| least.take(a, start)), [None, Some(SECOND)], "one a second at least");
    }

    #[test]
    fn addresses_that_have_been_silent_for_a_second_are_forgotten() {
        let mut now = Instant::now();
        let mut shares = Shares::new(1000, 250, 1000).unwrap();
        for n in 0..10_000_u32 {
            now += MS;
            assert_eq!(shares.take(IpAddr::V4(n.into()), now), None);
            assert!(shares.rates.len() <= 64, "{}", shares.rates.len());
        }
    }

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

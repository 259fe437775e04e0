//! How far away a session's peer is, in few classes, so that a choice by
//! distance does not change with every sample (semantics 7). Knows samples
//! only: what a class is used for is for the shard to say.
//!
//! The least of the last samples counts: queues make a round trip longer and
//! nothing makes it shorter, so a peer counts as farther away only after all
//! of them say so, and as nearer after one. On top of that a bound must be
//! passed by a quarter.

use std::time::Duration;

/// Samples that are looked at.
const SAMPLES: usize = 8;
/// Samples until anything is said: a peer that is not measured counts as near.
const ENOUGH: u8 = 3;
/// Where the next class begins, in milliseconds.
const BOUNDS_MS: [u32; 4] = [10, 40, 160, 640];

#[derive(Debug, Default)]
pub(super) struct Distance {
    /// The latest samples in microseconds, in a ring.
    samples: [u32; SAMPLES],
    next: u8,
    seen: u8,
    class: u8,
    told: u8,
}

impl Distance {
    /// Takes a sample. True if the class is another one now.
    pub(super) fn measured(&mut self, rtt: Duration) -> bool {
        let ix = usize::from(self.next) % SAMPLES;
        if let Some(s) = self.samples.get_mut(ix) {
            *s = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
        }
        self.next = (self.next + 1) % SAMPLES as u8;
        self.seen = (self.seen + 1).min(SAMPLES as u8);
        if self.seen < ENOUGH {
            return false;
        }
        let least = self.samples.iter().take(usize::from(self.seen)).copied().min().unwrap_or(0);
        let before = self.class;
        // Bounds below the class must be undercut, those above exceeded.
        let passed = |ix: usize, ms: u32| {
            if ix < usize::from(before) { least >= ms * 750 } else { least > ms * 1250 }
        };
        self.class = BOUNDS_MS.into_iter().enumerate().take_while(|(ix, ms)| passed(*ix, *ms)).count() as u8;
        self.class != before
    }

    /// The class, if it changed since the last call.
    pub(super) fn untold(&mut self) -> Option<u8> {
        (std::mem::replace(&mut self.told, self.class) != self.class).then_some(self.class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(d: &mut Distance, ms: &[u64]) -> u8 {
        for ms in ms {
            d.measured(Duration::from_millis(*ms));
        }
        d.class
    }

    #[test]
    fn noise_changes_nothing() {
        let mut d = Distance::default();
        assert_eq!(after(&mut d, &[90, 1, 1]), 0, "the first may be anything");
        assert_eq!(after(&mut d, &[900; 7]), 0, "a queue is no distance");
        for _ in 0..100 {
            assert_eq!(after(&mut d, &[9, 12, 11, 8, 12]), 0, "around a bound");
        }
        assert_eq!(after(&mut d, &[12; 30]), 0, "not beyond it by a quarter");
    }

    #[test]
    fn a_peer_is_far_after_all_samples_and_near_after_one() {
        let mut d = Distance::default();
        assert_eq!(after(&mut d, &[50, 50]), 0);
        assert_eq!((after(&mut d, &[50]), d.untold(), d.untold()), (1, Some(1), None), "50 is within a quarter of 40");
        assert_eq!(after(&mut d, &[60; 7]), 1);
        assert_eq!(after(&mut d, &[60]), 2);
        assert_eq!(after(&mut d, &[35; 20]), 2, "not below 40 by a quarter");
        assert_eq!(after(&mut d, &[29]), 1);
        assert_eq!(after(&mut d, &[5]), 0, "over several classes at once");
        assert_eq!(after(&mut d, &[10_000; 8]), 4);
        assert_eq!(after(&mut d, &[u64::MAX / 2; 8]), 4);
    }
}

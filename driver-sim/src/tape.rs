//! The choice tape: every random choice of a run, split into lanes.
//!
//! A tape is a seed or a string of bytes that somebody else owns (a fuzzer).
//! Each part of the world draws from a lane of its own (workload, network,
//! faults, each node …), so one draw more in one place does not reshuffle all
//! the others (D1), and a plan that lost a client or a fault keeps the rest as
//! it was. Bytes are dealt to the lanes in turn; a lane that has read its own
//! goes on as that of a fixed seed, so whoever owns the bytes owns every choice,
//! and a change of one byte changes the choices of few lanes.
//! Must not know what is drawn.

use std::sync::Arc;

/// Where choices come from.
#[derive(Clone, Debug)]
pub struct Tape {
    root: u64,
    bytes: Option<Arc<[u8]>>,
}

/// How many hands bytes are dealt to. A lane reads one of them; the plan has one
/// of its own.
const HANDS: usize = 16;
/// The lane of the plan.
const PLAN: &str = "plan";

/// One independent sequence of choices.
#[derive(Clone, Debug)]
pub struct Lane {
    state: u64,
    bytes: Option<Arc<[u8]>>,
    at: usize,
}

/// One step of splitmix64: a permutation of 64 bits, good enough for choices.
#[must_use]
pub const fn mix(n: u64) -> u64 {
    let z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn mix_bytes(mut state: u64, bytes: &[u8]) -> u64 {
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = *from;
        }
        state = mix(state ^ u64::from_le_bytes(word));
    }
    state
}

impl Tape {
    /// All choices follow from a number.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self { root: mix(seed ^ 0x6e6f_7763_6f6e_6e65), bytes: None }
    }

    /// All choices follow from these bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self { bytes: Some(bytes.into()), ..Self::from_seed(0) }
    }

    /// The lane named `label`, number `n`.
    #[must_use]
    pub fn lane(&self, label: &str, n: u64) -> Lane {
        let state = mix(mix_bytes(self.root, label.as_bytes()) ^ n);
        let hand = if label == PLAN { 0 } else { 1 + (mix(state) % (HANDS as u64 - 1)) as usize };
        Lane { state, bytes: self.bytes.clone(), at: hand }
    }

    /// What a process finds as randomness when it starts: nobody's choice, so that
    /// no two of them ever find the same.
    #[must_use]
    pub fn entropy(&self, label: &str, n: u64) -> u64 {
        Lane { bytes: None, ..self.lane(label, n) }.next_u64()
    }
}

impl Lane {
    /// The next choice of the tape's owner: two bytes, enough for every range
    /// drawn here.
    fn dealt(&mut self) -> Option<u64> {
        let bytes = self.bytes.as_ref()?;
        let Some(low) = bytes.get(self.at) else {
            self.bytes = None;
            return None;
        };
        let high = bytes.get(self.at + HANDS).copied().unwrap_or(0);
        self.at += 2 * HANDS;
        Some(u64::from(*low) | u64::from(high) << 8)
    }

    /// 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        if let Some(n) = self.dealt() {
            return n;
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number in `0..bound`, 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound <= 1 {
            return 0;
        }
        if let Some(n) = self.dealt() {
            return n % bound;
        }
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// A number in `low..=high`, every order of magnitude (base 2) as likely.
    pub fn spread(&mut self, low: u64, high: u64) -> u64 {
        let (a, b) = (u64::from(low.max(1).ilog2()), u64::from(high.max(1).ilog2()));
        let top = 1_u64 << self.between(a, b);
        (top + self.below(top)).clamp(low, high)
    }

    /// True in `num` of `den` cases.
    pub fn chance(&mut self, num: u64, den: u64) -> bool {
        self.below(den) < num
    }

    /// One of several; `None` of none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(usize::try_from(self.below(of.len() as u64)).unwrap_or(0))
    }

    /// An index, each as likely as its weight says; 0 when all weights are 0.
    pub fn weighted(&mut self, weights: &[u32]) -> usize {
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let mut at = self.below(total);
        for (ix, w) in weights.iter().enumerate() {
            let w = u64::from(*w);
            if at < w {
                return ix;
            }
            at -= w;
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_independent_and_repeatable() {
        let t = Tape::from_seed(7);
        let all = |mut l: Lane| (0..4).map(|_| l.next_u64()).collect::<Vec<_>>();
        assert_eq!(all(t.lane("net", 1)), all(Tape::from_seed(7).lane("net", 1)));
        assert_ne!(all(t.lane("net", 1)), all(t.lane("net", 2)));
        assert_ne!(all(t.lane("net", 1)), all(t.lane("node", 1)));
        assert_ne!(all(t.lane("net", 1)), all(Tape::from_seed(8).lane("net", 1)));
    }

    /// A change of one byte is one of the choices of its own hand.
    #[test]
    fn whoever_owns_the_bytes_owns_every_choice() {
        let labels = [("plan", 0), ("timers", 0), ("hub", 0), ("hub", 1), ("vulnerable", 0), ("net", 7)];
        let draws = |bytes: &[u8], (label, n): (&str, u64)| {
            let mut l = Tape::from_bytes(bytes).lane(label, n);
            (0..40).map(|_| l.below(1 << 16)).collect::<Vec<_>>()
        };
        let bytes: Vec<u8> = (0..=255).collect();
        for lane in labels {
            let before = draws(&bytes, lane);
            let moved: Vec<usize> = (0..bytes.len())
                .filter(|at| {
                    let mut other = bytes.clone();
                    other[*at] ^= 1;
                    draws(&other, lane) != before
                })
                .collect();
            assert_eq!(moved.len(), bytes.len() / HANDS, "{lane:?} reads a hand of its own");
            assert!(moved.windows(2).all(|w| w[1] - w[0] == HANDS), "{lane:?}");
            // Beyond its bytes it goes on by itself, whatever they were.
            let mut longer = bytes.clone();
            longer.extend([0; 64]);
            assert_eq!(draws(&longer, lane)[..8], before[..8]);
            assert_eq!(draws(&[], lane)[..20], draws(&bytes, lane)[8..28], "{lane:?}");
        }
        let mut plan = Tape::from_bytes(&[5; 64]).lane("plan", 0);
        assert_eq!([plan.below(10), plan.below(1000)], [(5 + (5 << 8)) % 10, (5 + (5 << 8)) % 1000]);
    }

    #[test]
    fn ranges_hold() {
        let mut l = Tape::from_seed(1).lane("x", 0);
        for _ in 0..1000 {
            assert!((3..=9).contains(&l.between(3, 9)));
            assert!((10..=5000).contains(&l.spread(10, 5000)));
            assert_eq!(l.weighted(&[0, 4, 0]), 1);
        }
    }
}

//! The choice tape: every random choice of a run, split into lanes.
//!
//! A tape is a seed or a string of bytes that somebody else owns (a fuzzer).
//! Each part of the world draws from a lane of its own (workload, network,
//! faults, each node …), so one draw more in one place does not reshuffle all
//! the others (D1), and a plan that lost a client or a fault keeps the rest as
//! it was. Must not know what is drawn.

/// Where choices come from.
#[derive(Clone, Debug)]
pub struct Tape {
    root: u64,
    bytes: Vec<u8>,
}

/// One independent sequence of choices.
#[derive(Clone, Debug)]
pub struct Lane {
    state: u64,
    bytes: Vec<u8>,
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
        Self { root: mix(seed ^ 0x6e6f_7763_6f6e_6e65), bytes: Vec::new() }
    }

    /// The choices of [`Self::reading`] lanes are these bytes (zero choices
    /// after their end); all others follow from a hash of them.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self { root: mix_bytes(bytes.len() as u64, bytes), bytes: bytes.to_vec() }
    }

    /// The lane named `label`, number `n`.
    #[must_use]
    pub fn lane(&self, label: &str, n: u64) -> Lane {
        Lane { state: mix(mix_bytes(self.root, label.as_bytes()) ^ n), bytes: Vec::new(), at: 0 }
    }

    /// Like [`Self::lane`], but a tape made of bytes hands them out here, so
    /// that its owner decides these choices one by one.
    #[must_use]
    pub fn reading(&self, label: &str) -> Lane {
        Lane { bytes: self.bytes.clone(), ..self.lane(label, 0) }
    }
}

impl Lane {
    /// 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        if !self.bytes.is_empty() {
            let mut word = [0; 8];
            // Two bytes a choice: enough for every range drawn here.
            for to in word.iter_mut().take(2) {
                *to = self.bytes.get(self.at).copied().unwrap_or(0);
                self.at += 1;
            }
            return u64::from_le_bytes(word);
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number in `0..bound`, 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound <= 1 {
            return 0;
        }
        let n = self.next_u64();
        if self.bytes.is_empty() { ((u128::from(n) * u128::from(bound)) >> 64) as u64 } else { n % bound }
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

    #[test]
    fn bytes_are_choices_where_they_are_read_and_zero_after_their_end() {
        let mut l = Tape::from_bytes(&[5, 0, 3, 1]).reading("plan");
        assert_eq!([l.below(10), l.below(1000), l.below(10)], [5, 259, 0]);
        let mut a = Tape::from_bytes(&[1]).lane("net", 0);
        let mut b = Tape::from_bytes(&[2]).lane("net", 0);
        assert_ne!(a.next_u64(), b.next_u64());
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

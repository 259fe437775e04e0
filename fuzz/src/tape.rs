//! Choices read from the fuzzer's bytes. A tape that has ended says 0 for ever,
//! so every prefix of a tape is a tape, and cutting one shortens its run.

use std::time::Duration;

use arbitrary::Unstructured;
use nowconnect_core::wire::NUMBER_MAX;

/// A tape of choices.
pub(crate) struct Tape<'a>(Unstructured<'a>);

impl<'a> Tape<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { self.0.choose_index(bound).unwrap_or(0) }
    }

    /// True for one choice in `n`; false at the end of the tape.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1 && n > 1
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.below(from.len())).cloned()
    }

    /// A number as peers put it on the wire: small, near a power of two, or huge.
    pub(crate) fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => u64::from(self.byte()),
            1 => u64::from(self.byte()) << 8,
            2 => 1 << self.below(53),
            3 => (1 << self.below(53)) - 1,
            4 => NUMBER_MAX,
            _ => NUMBER_MAX - u64::from(self.byte()),
        }
    }

    /// A number of bytes up to one DATA frame.
    pub(crate) fn size(&mut self) -> usize {
        match self.below(4) {
            0 => 1,
            1 => 1 + usize::from(self.byte()),
            2 => (1 + usize::from(self.byte())) << 4,
            _ => (1 + usize::from(self.byte())) << 8,
        }
    }

    /// A time between two things that happen.
    pub(crate) fn pause(&mut self) -> Duration {
        match self.below(4) {
            0 => Duration::from_millis(u64::from(self.byte())),
            1 => Duration::from_millis(u64::from(self.byte()) * 10),
            2 => Duration::from_millis(u64::from(self.byte()) * 100),
            _ => Duration::from_nanos(u64::from(self.byte())),
        }
    }

    /// The next `len` bytes as they are, fewer at the end of the tape.
    pub(crate) fn raw(&mut self, len: usize) -> &'a [u8] {
        self.0.bytes(len.min(self.0.len())).unwrap_or(&[])
    }
}

/// Byte `off` of what `tag` says in the half of a stream: self-describing
/// payload, so that a gap, a repetition or a stranger's byte is seen at once.
pub(crate) fn pattern(tag: u128, off: u64) -> u8 {
    let tag = (tag >> 64) as u64 ^ (tag as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (off ^ tag).wrapping_mul(0xd6e8_feb8_6659_fd93);
    ((x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 56) as u8
}

/// `len` bytes of `tag`'s half from `off` on.
pub(crate) fn payload(tag: u128, off: u64, len: usize) -> bytes::Bytes {
    (off..).take(len).map(|at| pattern(tag, at)).collect::<Vec<u8>>().into()
}

/// Whether these are the bytes of `tag`'s half from `off` on.
pub(crate) fn says(tag: u128, off: u64, bytes: &[u8]) -> bool {
    bytes.iter().zip(off..).all(|(b, at)| *b == pattern(tag, at))
}

//! Self-describing payload: byte k of (seed, stream, direction) is a function
//! of those four, so either end can produce and check any part of a transfer
//! without a stored copy, and the first wrong byte shows a gap, a duplicate, a
//! swap or a leak from another stream.

/// Which way a byte travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the target.
    Up,
    /// From the target to the client.
    Down,
}

/// The bytes of one half.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    base: u64,
}

const fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Pattern {
    /// The half of `stream` in `direction` under `seed`.
    #[must_use]
    pub const fn new(seed: u64, stream: u64, direction: Direction) -> Self {
        let way = match direction {
            Direction::Up => 1,
            Direction::Down => 2,
        };
        Self { base: mix(mix(mix(seed) ^ stream) ^ way) }
    }

    /// Writes the bytes from `offset` on into `out`.
    pub fn fill(self, offset: u64, out: &mut [u8]) {
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let word = mix(self.base.wrapping_add(at / 8)).to_le_bytes();
            let from = (at % 8) as usize;
            let n = (8 - from).min(rest.len());
            let (now, later) = rest.split_at_mut(n);
            now.copy_from_slice(&word[from..from + n]);
            at += n as u64;
            rest = later;
        }
    }

    /// The bytes `offset..offset + n`.
    #[must_use]
    pub fn bytes(self, offset: u64, n: usize) -> Vec<u8> {
        let mut out = vec![0; n];
        self.fill(offset, &mut out);
        out
    }
}

/// Checks the bytes of one half as they arrive.
#[derive(Debug)]
pub struct Checker {
    pattern: Pattern,
    offset: u64,
    scratch: Vec<u8>,
}

impl Checker {
    /// Expects `pattern` from its first byte.
    #[must_use]
    pub const fn new(pattern: Pattern) -> Self {
        Self { pattern, offset: 0, scratch: Vec::new() }
    }

    /// Bytes checked so far.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// Names the offset of the first byte that differs.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.scratch.resize(bytes.len(), 0);
        self.pattern.fill(self.offset, &mut self.scratch);
        if self.scratch != bytes {
            let wrong = bytes.iter().zip(&self.scratch).take_while(|(got, want)| got == want).count();
            return Err(format!("wrong byte at offset {}", self.offset + wrong as u64));
        }
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_can_be_computed_alone() {
        let pattern = Pattern::new(7, 3, Direction::Up);
        let whole = pattern.bytes(0, 100);
        for from in 0..100 {
            assert_eq!(pattern.bytes(from as u64, 100 - from), whole[from..]);
        }
        assert_ne!(Pattern::new(7, 3, Direction::Down).bytes(0, 16), whole[..16]);
        assert_ne!(Pattern::new(7, 4, Direction::Up).bytes(0, 16), whole[..16]);
        assert_ne!(Pattern::new(8, 3, Direction::Up).bytes(0, 16), whole[..16]);
    }

    #[test]
    fn the_checker_names_the_first_wrong_byte() {
        let pattern = Pattern::new(1, 1, Direction::Down);
        let mut bytes = pattern.bytes(0, 50);
        bytes[33] ^= 1;
        let mut checker = Checker::new(pattern);
        checker.take(&bytes[..20]).unwrap();
        assert_eq!(checker.take(&bytes[20..]), Err("wrong byte at offset 33".to_owned()));
    }
}

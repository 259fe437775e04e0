//! A keyed hasher for cids. Peers choose cids, so the key is drawn from the
//! machine's seed; the order of such a map is never looked at (D1).

use std::hash::{BuildHasher, Hasher};

use crate::rng::Rng;

/// Builds hashers under one key.
#[derive(Clone, Debug)]
pub struct KeyedState {
    key: [u64; 2],
}

impl KeyedState {
    /// A key drawn from `rng`.
    pub fn new(rng: &mut Rng) -> Self {
        Self { key: [rng.next_u64() | 1, rng.next_u64()] }
    }
}

impl BuildHasher for KeyedState {
    type Hasher = Keyed;
    fn build_hasher(&self) -> Keyed {
        Keyed { key: self.key, state: self.key[1] }
    }
}

/// Folded multiplication over 64-bit words.
#[derive(Debug)]
pub struct Keyed {
    key: [u64; 2],
    state: u64,
}

impl Keyed {
    fn fold(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.key[0] ^ word.rotate_left(32) | 1);
        self.state = (product as u64) ^ ((product >> 64) as u64) ^ self.key[1];
    }
}

impl Hasher for Keyed {
    fn finish(&self) -> u64 {
        self.state
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.fold(u64::from_le_bytes(word));
        }
    }
    fn write_u64(&mut self, n: u64) {
        self.fold(n);
    }
    fn write_u128(&mut self, n: u128) {
        self.fold(n as u64);
        self.fold((n >> 64) as u64);
    }
}

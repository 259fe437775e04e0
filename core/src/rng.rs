//! Seedable randomness: every machine gets a `Seed` and forks it by label, so
//! that one new draw in one place does not reshuffle all others (D1).
//!
//! The generator is ChaCha12: in production the seed comes from the operating
//! system and session secrets and resume keys are drawn from it, so it has to
//! be a cryptographic one.

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

/// 256 bits from which a machine derives all its randomness.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub [u8; 32]);

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(..)")
    }
}

impl Seed {
    /// A seed from a number, for tests and simulations.
    #[must_use]
    pub fn from_u64(n: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        Self(bytes)
    }

    /// An independent seed for the part named `label`.
    #[must_use]
    pub fn fork(&self, label: &str) -> Self {
        let mut h = Sha256::new();
        h.update(self.0);
        h.update(label.as_bytes());
        Self(h.finalize().into())
    }

    /// A generator started from this seed.
    #[must_use]
    pub fn rng(&self) -> Rng {
        Rng(ChaCha12Rng::from_seed(self.0))
    }
}

/// A deterministic random generator.
#[derive(Clone)]
pub struct Rng(ChaCha12Rng);

impl std::fmt::Debug for Rng {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rng(..)")
    }
}

impl Rng {
    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number in `0..bound`; 0 when `bound` is 0. The bias is below 2^-32
    /// for the bounds used here (milliseconds, counts).
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }

    /// 128 random bits.
    pub fn next_u128(&mut self) -> u128 {
        (u128::from(self.next_u64()) << 64) | u128::from(self.next_u64())
    }

    /// Random bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.0.fill_bytes(&mut out);
        out
    }
}

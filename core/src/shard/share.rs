//! A shard as one of several: which lanes are its own, what the others carry,
//! and what control and sessions must agree with it about. Keeps the limits of
//! the process over all shards together (B3) and each lane in one shard (S6:
//! the dedup marks are per lane). A shard alone is told nothing and pays nothing.

use super::{Attach, Shard};
use crate::id::SessionKey;

/// What the other shards of a hub carry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// Live streams.
    pub streams: usize,
    /// Clients, by listener.
    pub clients: Vec<u32>,
}

/// Which of `shards` has the streams of a lane, whoever minted it.
#[must_use]
pub const fn shard_of_lane(lane: u8, shards: usize) -> usize {
    if shards <= 1 { 0 } else { lane as usize % shards }
}

impl Elsewhere {
    /// Counts what `shard` carries.
    pub fn add(&mut self, shard: &Shard) {
        self.streams += shard.streams.len();
        self.clients.resize(self.clients.len().max(shard.clients.len()), 0);
        for (sum, n) in self.clients.iter_mut().zip(&shard.clients) {
            *sum += n;
        }
    }
}

impl Shard {
    /// Tells what the others carry, before something that a limit may refuse.
    pub fn set_elsewhere(&mut self, elsewhere: Elsewhere) {
        self.elsewhere = elsewhere;
    }

    pub(super) const fn streams_everywhere(&self) -> usize {
        self.streams.len() + self.elsewhere.streams
    }

    pub(super) fn clients_everywhere(&self, listener: usize) -> u32 {
        let of = |v: &[u32]| v.get(listener).copied().unwrap_or(0);
        of(&self.clients) + of(&self.elsewhere.clients)
    }

    /// The sessions it may use, and whether they take new streams.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionKey, bool)> {
        self.sessions.iter().map(|(k, s)| (*k, s.usable))
    }

    /// Whether it takes no new streams.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.draining
    }

    /// Checks what must hold of shard `ix` of `shards`.
    ///
    /// # Panics
    /// When an invariant is broken.
    pub fn check_share(&self, ix: usize, shards: usize) {
        for (_, s) in self.streams.iter().filter(|(_, s)| s.cid.0 != 0) {
            assert_eq!(shard_of_lane(s.cid.lane(), shards), ix, "a lane never spreads over shards (S6)");
        }
    }

    /// Checks what must hold while no note is under way: `sessions` are those of
    /// the node, with whether they take new streams, `attachments` those of
    /// control, both in order.
    ///
    /// # Panics
    /// When an invariant is broken.
    pub fn check_agrees(
        &self,
        sessions: impl Iterator<Item = (SessionKey, bool)>,
        attachments: impl Iterator<Item = Attach>,
    ) {
        assert!(self.sessions().eq(sessions), "a shard knows the node's sessions and no others (B5)");
        let (mine, control): (Vec<&Attach>, Vec<Attach>) = (self.attachments().collect(), attachments.collect());
        assert!(mine.into_iter().eq(&control), "a shard fences with control's attachments (O4)");
    }
}

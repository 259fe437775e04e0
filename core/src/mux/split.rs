//! The sessions of a hub with several shards: one set of sessions and one
//! budget for all of them. Frames a shard sends reach their session at once, and
//! released payload reaches its shard at once; only notes wait (for the caller).

use super::{Mux, NodeOut};
use crate::id::{ConnKey, SessionKey};
use crate::session::{TxBatch, TxState};
use crate::shard::{Shard, ShardNote, shard_of_lane};
use crate::time::Instant;

impl Mux {
    /// Takes messages for a connection, as [`Self::poll_transmit`]. What the
    /// shards say to that is carried out; notes are appended with their sender.
    pub fn poll_transmit_split(
        &mut self,
        now: Instant,
        conn: ConnKey,
        budget_bytes: usize,
        batch: &mut TxBatch,
        shards: &mut [Shard],
        out: &mut NodeOut,
        notes: &mut Vec<(usize, ShardNote)>,
    ) -> TxState {
        let (state, session) = self.take_messages(now, conn, budget_bytes, batch);
        let Some(key) = session else { return state };
        let mut released = std::mem::take(&mut self.released);
        for r in released.drain(..) {
            let ix = shard_of_lane(r.cid.lane(), shards.len());
            if let Some(shard) = shards.get_mut(ix) {
                shard.on_released(now, r.cid, key, r.bytes, &mut self.shard_out);
                self.flush_one(now, ix, shard, out, notes);
            }
        }
        self.released = released;
        self.balance(now, shards);
        state
    }

    /// Carries out what one of several shards wants, right after it was called:
    /// the output is shared, so that it always is that shard's.
    pub fn flush_one(
        &mut self,
        now: Instant,
        ix: usize,
        shard: &mut Shard,
        out: &mut NodeOut,
        notes: &mut Vec<(usize, ShardNote)>,
    ) {
        self.carry_out(now, shard, out);
        notes.extend(self.shard_out.notes.drain(..).map(|note| (ix, note)));
    }

    /// Adds up what sessions and shards hold, and tells every shard the level.
    pub fn balance(&mut self, now: Instant, shards: &mut [Shard]) {
        self.budget.set_held(self.session_held + shards.iter().map(Shard::held_bytes).sum::<u64>());
        for shard in shards {
            shard.set_budget(now, &self.budget);
        }
    }

    /// Every session, with whether it takes new streams as shards were told.
    pub fn usable(&self) -> impl Iterator<Item = (SessionKey, bool)> {
        self.sessions.iter().map(|(k, e)| (k, e.usable))
    }
}

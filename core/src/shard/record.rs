//! What is told of a stream when it ends (semantics 10): by its origin who asked
//! for what, by whom it was carried and how it ended; by the agent what only it
//! knows. Told once per stream (S4, A1); changes nothing.

use super::{Shard, ShardOut};
use crate::id::{Cid, Epoch, SessionKey, StreamKey};
use crate::observed::{CarriedRecord, Cause, Observed, Side, StreamRecord};
use crate::stream::{End, Part, Stream};
use crate::time::Instant;
use std::collections::{BTreeMap, BTreeSet};

impl Shard {
    /// How often a session was interrupted until now, modulo 2^16; 0 once it is gone.
    pub(super) fn interruptions_of(&self, session: SessionKey) -> u16 {
        self.interruptions.get(&session).copied().unwrap_or(0)
    }

    /// Streams that wait for a session that is silent or has no connection.
    #[must_use]
    pub fn suspended(&self) -> usize {
        let waiting = self.sessions.values().filter(|s| !s.usable);
        waiting.flat_map(|s| &s.streams).collect::<BTreeSet<_>>().len()
    }

    /// The most streams of one session whose OPEN is not answered.
    #[must_use]
    pub fn pending_opens(&self) -> u32 {
        self.sessions.values().map(|s| s.pending_opens).max().unwrap_or(0)
    }

    /// Cids minted so far: one for each OPEN of this shard's own clients.
    #[must_use]
    pub const fn minted(&self) -> u64 {
        self.minted
    }

    /// A stream by its present wire name, for tests.
    #[must_use]
    pub fn find(&self, cid: Cid) -> Option<&Stream> {
        self.by_cid.get(&cid).and_then(|key| self.streams.get(*key))
    }

    /// Terminal causes that are remembered.
    #[must_use]
    pub fn tombstones(&self) -> usize {
        self.dedup.tombstones()
    }

    /// What is counted as streams come and go is what there is.
    ///
    /// # Panics
    /// When it is not.
    pub(super) fn check_counts(&self) {
        for info in self.sessions.values() {
            let waits = |key: &&StreamKey| self.streams.get(**key).is_some_and(|s| !s.open);
            let waiting = info.streams.iter().filter(waits).count();
            assert_eq!(info.pending_opens as usize, waiting, "OPENs without an answer add up (B7)");
        }
        let mut clients = vec![0; self.clients.len()];
        let mut load = BTreeMap::new();
        for (_, s) in self.streams.iter() {
            let Part::Origin(o) = &s.part else { continue };
            if let Some(n) = clients.get_mut(usize::from(o.listener.0)) {
                *n += 1;
            }
            if o.carrier.is_some() {
                *load.entry(s.fence).or_insert(0) += 1;
            }
        }
        assert_eq!(self.clients, clients, "clients of listeners add up (B5)");
        assert_eq!(self.load, load, "streams of candidates add up (B5)");
    }

    /// Tells of a stream that was taken out.
    pub(super) fn tell(
        &self,
        now: Instant,
        key: StreamKey,
        stream: &Stream,
        cause: Cause,
        by: Side,
        out: &mut ShardOut,
    ) {
        let session = |end: usize| if let End::Session(key) = stream.ends[end] { Some(key) } else { None };
        match &stream.part {
            Part::Origin(o) => {
                let since = |at: Option<Instant>| at.map(|t| t.since(o.times.accepted));
                let mut epochs: Box<[Epoch]> = o.tried.iter().map(|fence| fence.epoch).collect();
                if epochs.is_empty() && o.carrier.is_some() {
                    epochs = Box::new([stream.fence.epoch]);
                }
                let interruptions = session(1).and_then(|key| self.interruptions.get(&key));
                let suspensions = interruptions.map_or(0, |n| n.wrapping_sub(o.interruptions_before));
                out.observed.push(Observed::Stream(Box::new(StreamRecord {
                    cid: stream.cid,
                    sock: stream.socket().map(|(_, k)| k),
                    listener: o.listener,
                    agent_id: o.carrier.as_ref().map(|c| c.agent_id.clone()),
                    owner: o.carrier.as_ref().map(|c| c.owner.clone()),
                    local: o.carrier.as_ref().is_some_and(|c| c.local),
                    epoch: stream.fence.epoch,
                    epochs,
                    suspensions: u32::from(suspensions),
                    route: since(o.times.routed),
                    open: since(o.times.opened),
                    first_byte: since(o.times.first_byte),
                    total: now.since(o.times.accepted),
                    bytes_up: stream.halves[0].next,
                    bytes_down: stream.halves[1].consumed.min(stream.halves[1].next),
                    cause,
                    by,
                })));
            }
            Part::Agent => out.observed.push(Observed::Carried(Box::new(CarriedRecord {
                stream: key,
                cid: stream.cid,
                epoch: stream.fence.epoch,
                session: session(0),
                connected: stream.open,
                bytes_up: stream.halves[0].consumed.min(stream.halves[0].next),
                bytes_down: stream.halves[1].next,
                cause,
                by,
            }))),
            Part::Owner => {}
        }
    }
}

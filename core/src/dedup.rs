//! What a node remembers of streams that are over, and of counters opened.
//!
//! Two memories with different jobs. The *high-water mark* per (session, origin
//! incarnation, lane) decides whether an OPEN may be admitted: a counter at or
//! below it that is not live is closed for ever, so no eviction ever readmits a
//! replay (S6, S8, B6). An owner keeps one for what it passes on as well, per
//! tunnel: what its agent would not execute is not sent there. The *tombstones*, a bounded LRU of terminal causes, only
//! tell late frames of finished streams from frames of streams never heard of.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use lru::LruCache;

use crate::error::RstCode;
use crate::id::{Cid, Incarnation, SessionKey};
use crate::planted;

/// Lanes one session may name; an origin has one lane a shard and one
/// incarnation a run, so a session meets few.
pub const LANES_PER_SESSION_MAX: usize = 4096;

/// How a stream ended, as far as late frames are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// Both halves ended cleanly.
    Finished,
    /// It was reset or refused.
    Reset(RstCode),
}

/// Why an OPEN is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The counter is at or below the lane's high-water mark: a replay.
    Replay,
    /// The session names too many lanes.
    TooManyLanes,
}

/// The two memories of one shard.
#[derive(Debug)]
pub struct Dedup {
    high: BTreeMap<SessionKey, BTreeMap<(Incarnation, u8), u64>>,
    tombstones: LruCache<Cid, Terminal, rustc_hash::FxBuildHasher>,
}

impl Dedup {
    /// Remembers at most `tombstones` terminal causes (at least one).
    #[must_use]
    pub fn new(tombstones: u32) -> Self {
        let cap = NonZeroUsize::new(tombstones as usize).unwrap_or(NonZeroUsize::MIN);
        Self { high: BTreeMap::new(), tombstones: LruCache::with_hasher(cap, rustc_hash::FxBuildHasher) }
    }

    /// Admits an OPEN that arrived on `session`, or is to be passed on there,
    /// raising its lane's mark.
    ///
    /// # Errors
    /// When its counter was opened before, or the session names too many lanes.
    pub fn admit(&mut self, session: SessionKey, cid: Cid) -> Result<(), Refusal> {
        let lanes = self.high.entry(session).or_default();
        let lane = (cid.incarnation(), cid.lane());
        if let Some(mark) = lanes.get_mut(&lane) {
            if cid.counter() <= *mark {
                return Err(Refusal::Replay);
            }
            *mark = cid.counter();
            return Ok(());
        }
        if lanes.len() >= LANES_PER_SESSION_MAX {
            return Err(Refusal::TooManyLanes);
        }
        lanes.insert(lane, cid.counter());
        Ok(())
    }

    /// Whether `session` ever opened this counter or a higher one of its lane.
    #[must_use]
    pub fn was_opened(&self, session: SessionKey, cid: Cid) -> bool {
        self.high
            .get(&session)
            .and_then(|l| l.get(&(cid.incarnation(), cid.lane())))
            .is_some_and(|mark| cid.counter() <= *mark)
    }

    /// The session is gone for ever; its marks go with it.
    pub fn forget_session(&mut self, session: SessionKey) {
        self.high.remove(&session);
    }

    /// Remembers how a stream ended.
    pub fn bury(&mut self, cid: Cid, how: Terminal) {
        self.tombstones.put(cid, how);
    }

    /// How a stream ended, if it is still remembered.
    #[must_use]
    pub fn terminal(&self, cid: Cid) -> Option<Terminal> {
        self.tombstones.peek(&cid).copied().filter(|_| !planted::on(2038))
    }

    /// Remembers at most `tombstones` terminal causes from now on; beyond it
    /// the oldest are forgotten.
    pub fn resize(&mut self, tombstones: u32) {
        self.tombstones.resize(NonZeroUsize::new(tombstones as usize).unwrap_or(NonZeroUsize::MIN));
    }

    /// How many terminal causes are remembered.
    #[must_use]
    pub fn tombstones(&self) -> usize {
        self.tombstones.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn key(ix: u32) -> SessionKey {
        SessionKey { ix, generation: 0 }
    }

    #[test]
    fn evicting_a_tombstone_never_readmits_its_open() {
        let mut d = Dedup::new(2);
        for n in 1..=10 {
            let cid = Cid::new(Incarnation(7), 0, n);
            assert_eq!(d.admit(key(0), cid), Ok(()));
            d.bury(cid, Terminal::Finished);
        }
        assert_eq!(d.tombstones(), 2);
        for n in 1..=10 {
            assert_eq!(d.admit(key(0), Cid::new(Incarnation(7), 0, n)), Err(Refusal::Replay));
        }
    }

    #[test]
    fn lanes_per_session_are_bounded() {
        let mut d = Dedup::new(1);
        for i in 0..LANES_PER_SESSION_MAX as u64 {
            assert_eq!(d.admit(key(0), Cid::new(Incarnation(i), 0, 1)), Ok(()));
        }
        assert_eq!(d.admit(key(0), Cid::new(Incarnation(u64::MAX), 0, 1)), Err(Refusal::TooManyLanes));
        assert_eq!(d.admit(key(1), Cid::new(Incarnation(u64::MAX), 0, 1)), Ok(()));
    }

    proptest! {
        /// Against the naive model: the set of everything ever seen, per lane maximum.
        #[test]
        fn admits_exactly_rising_counters(ops in prop::collection::vec((0u32..2, 0u64..2, 0u8..2, 1u64..30), 1..200)) {
            let mut d = Dedup::new(4);
            let mut seen: BTreeSet<(u32, u64, u8, u64)> = BTreeSet::new();
            for (s, inc, lane, n) in ops {
                let higher = seen.range((s, inc, lane, n)..=(s, inc, lane, u64::MAX)).next().is_some();
                let got = d.admit(key(s), Cid::new(Incarnation(inc), lane, n));
                prop_assert_eq!(got.is_ok(), !higher);
                seen.insert((s, inc, lane, n));
                prop_assert!(d.was_opened(key(s), Cid::new(Incarnation(inc), lane, n)));
            }
        }
    }
}

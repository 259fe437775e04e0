//! Two live hubs with one replica id, as their peers see them: a run whose link
//! gave way to another run's does not push that one out again while it is
//! there. Without that the two would displace each other with every dial, and
//! each time every stream on the link would end.
//!
//! Keeps L4 (which run is linked does not change in turns) and L8. The run that
//! came later is taken for the newer one, as the registry takes it. Where that
//! is wrong (a run that slept while it was replaced, and woke) it hears so from
//! the registry, says it in STATUS, and gives way itself.
//!
//! Must not know: leases. Who may own, the registry decides.

use std::collections::{BTreeMap, VecDeque};

use super::control::Control;
use crate::id::{Incarnation, Name};
use crate::mux::{Mux, Peer};

/// Runs remembered of one replica.
const RUNS_MAX: usize = 4;

/// What is said to a run that gave way.
pub(super) const GAVE_WAY: &str = "another live process has this replica_id; its link stays";

/// Runs that gave way, by replica; only of replicas that are linked.
#[derive(Debug, Default)]
pub(super) struct GaveWay(BTreeMap<Name, VecDeque<Incarnation>>);

impl GaveWay {
    /// The link of `old` was ended for one of `new`.
    pub(super) fn to(&mut self, replica: &Name, old: Incarnation, new: Incarnation) {
        let runs = self.0.entry(replica.clone()).or_default();
        runs.retain(|run| *run != old && *run != new);
        if runs.len() == RUNS_MAX {
            runs.pop_front();
        }
        runs.push_back(old);
    }

    /// Nobody is linked under that name any more.
    pub(super) fn forget(&mut self, replica: &Name) {
        self.0.remove(replica);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Control {
    /// Whether this run gave way to another one, whose link has a connection,
    /// and who does not say that its registry is unwell: then it may not hold
    /// the lease.
    pub(super) fn gave_way(&self, replica: &Name, run: Incarnation, mux: &Mux) -> bool {
        let Some(key) = self.links.get(replica) else { return false };
        let other = |peer: &Peer| matches!(peer, Peer::Hub { incarnation, .. } if *incarnation != run);
        let there = mux.get(*key).is_some_and(|e| e.conn.is_some() && other(&e.peer));
        let well = self.statuses.get(key).is_none_or(|s| s.registry_healthy);
        there && well && self.gave_way.0.get(replica).is_some_and(|runs| runs.contains(&run))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_runs_that_gave_way_are_known_but_for_who_is_linked() {
        let replica = Name::new("hub-a").expect("a name");
        let mut g = GaveWay::default();
        for n in 1..=9 {
            g.to(&replica, Incarnation(n), Incarnation(n + 1));
        }
        let runs = |g: &GaveWay| g.0.get(&replica).map(|r| r.iter().map(|i| i.0).collect::<Vec<_>>());
        assert_eq!(runs(&g), Some(vec![6, 7, 8, 9]));
        g.to(&replica, Incarnation(10), Incarnation(8));
        assert_eq!(runs(&g), Some(vec![6, 7, 9, 10]));
        g.forget(&replica);
        assert_eq!(g.len(), 0);
    }
}

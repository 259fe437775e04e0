//! Which peers without a link hold a lease, asked of the registry: who left in
//! an orderly way, or is dead for longer than its lease, is missed by nobody
//! (semantics 10). For readiness only: nothing is opened or refused by it.
//!
//! Keeps L6: an answer counts for as long as the registry may be asked in vain
//! without being unhealthy; an older one never hides a link that is down.
//!
//! Must not know: what readiness makes of it.

use std::collections::BTreeSet;

use super::control::{Asked, Control};
use crate::id::{Name, SessionKey};
use crate::mux::{Mux, NodeOut};
use crate::planted;
use crate::registry::{RegistryOp, RegistryReply, RegistryResult};
use crate::time::Instant;

/// What the registry said of a peer's lease while there was no link to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PeerLease {
    /// Nothing that counts: the peer's replica id is not known, the registry was
    /// not asked yet, or it cannot be asked.
    #[default]
    Unknown,
    /// It holds none. Counts until then.
    Absent {
        /// When this is too old.
        until: Instant,
    },
    /// It holds one.
    Live {
        /// When it took it, as far as this hub noticed; `None`: before it was asked for.
        since: Option<Instant>,
    },
}

impl Control {
    /// Asks for the leases of configured peers that have no link, all at once;
    /// behind each renewal that the registry answered.
    pub(super) fn ask_leases(&mut self, now: Instant, mux: &Mux, out: &mut NodeOut) {
        if self.renew_at.is_none() {
            // It has left the registry meanwhile.
            return;
        }
        let mut replicas = BTreeSet::new();
        for p in self.peers.iter_mut().filter(|p| p.listed && !p.itself) {
            let Some(replica) = &p.replica else { continue };
            let is_up = |key: &SessionKey| mux.get(*key).is_some_and(|e| e.conn.is_some());
            if self.links.get(replica).is_some_and(is_up) {
                p.lease = PeerLease::Unknown;
            } else {
                replicas.insert(replica.clone());
            }
        }
        if !replicas.is_empty() {
            let asked = Asked::Leases { replicas: replicas.clone(), sent: now };
            // When too much is under way the last answer just runs out.
            self.ask(now, RegistryOp::Leases { replicas }, asked, out);
        }
    }

    /// The answer. Without one the last runs out by itself.
    pub(super) fn on_leases(&mut self, now: Instant, asked: &BTreeSet<Name>, sent: Instant, result: &RegistryResult) {
        let Ok(RegistryReply::Leases(held)) = result else { return };
        let r = &self.config.registry;
        // Two renewals that fail in a row make the registry unhealthy.
        let until = sent.after(r.renew_every * 2).after(r.op_timeout);
        for p in &mut self.peers {
            let Some(replica) = p.replica.as_ref().filter(|r| asked.contains(*r)) else { continue };
            let is_held = held.iter().any(|run| (run.replica_id == *replica) != planted::on(2033));
            p.lease = match p.lease {
                _ if !is_held => PeerLease::Absent { until },
                PeerLease::Absent { .. } => PeerLease::Live { since: Some(now) },
                PeerLease::Unknown => PeerLease::Live { since: None },
                live @ PeerLease::Live { .. } => live,
            };
        }
    }
}

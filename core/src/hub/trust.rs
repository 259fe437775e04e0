//! What the peers of the links proved themselves with, kept as long as a link
//! lives: when a CA leaves, the driver judges it again and names the links that
//! rest on nothing any more (semantics 8). Keeps I3 over the life of a session:
//! a secret counts only while what its holder was known by does. What a chain
//! reaches is the driver's to say. One chain a link is kept, of at most
//! [`CHAIN_MAX`](crate::wire::CHAIN_MAX) certificates that came in one message
//! before authentication. It must not know what a link carries.

use super::control::Control;
use crate::error::CloseCode;
use crate::id::{Name, SessionKey};
use crate::mux::{Mux, NodeOut};
use crate::planted;
use crate::principal::HubGrant;
use crate::shard::ControlNote;
use crate::time::Instant;
use crate::wire::Plane;

/// How the peer of a link proved itself.
#[derive(Debug)]
pub(super) struct Proven {
    /// Its certificates, leaf first, as they came.
    chain: Vec<String>,
    /// What it signed was bound to a TLS connection that ended at both hubs: so
    /// is every connection that resumes the session, and TLS asks again there.
    bound: bool,
    /// The chain does not reach the CAs any more.
    stale: bool,
}

impl Proven {
    pub(super) const fn new(chain: Vec<String>, bound: bool) -> Self {
        Self { chain, bound, stale: false }
    }
}

impl Control {
    /// What the peers of the links, live and suspended, proved themselves with,
    /// as far as it was not found wanting before: certificates leaf first, DER in
    /// base64. `None` for a link that was made while hubs did not sign here.
    pub fn proofs(&self) -> impl Iterator<Item = (SessionKey, Option<&[String]>)> {
        let counts = |key: &&SessionKey| self.proven.get(key).is_none_or(|p| !p.stale);
        let chain = |key| self.proven.get(key).map(|p| p.chain.as_slice());
        self.links.values().filter(counts).map(move |key| (*key, chain(key)))
    }

    /// What the peer of a link proved itself with counts no more. Where TLS ends
    /// before a hub, nothing but the secret would be asked of one who comes
    /// back: the session is over, definitely, and its peer proves itself anew.
    /// Where TLS ends at both, the session waits for a peer that TLS vouches for.
    pub(super) fn distrust(
        &mut self,
        now: Instant,
        key: SessionKey,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if mux.get(key).is_none_or(|e| e.plane != Plane::Mesh) {
            return;
        }
        if planted::on(2013) {
            return;
        }
        match self.proven.get_mut(&key) {
            Some(p) if p.bound => p.stale = true,
            Some(_) | None => self.lose(now, key, CloseCode::Auth, mux, notes, out),
        }
    }

    /// May this session go on over a connection of which TLS says so much?
    pub(super) fn may_go_on(&self, key: SessionKey, replica: &Name, tls: &HubGrant) -> bool {
        let stale = self.proven.get(&key).is_some_and(|p| p.stale);
        !stale || tls.dns_names.as_ref().is_some_and(|names| self.proves(names, replica))
    }

    pub(super) fn check_proofs(&self) {
        for key in self.proven.keys() {
            assert!(self.links.values().any(|k| k == key), "a proof is kept for a link that is over (B5)");
        }
    }
}

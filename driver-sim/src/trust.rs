//! CAs that leave a hub while links rest on them (X4): what the hub's driver
//! does then, and what must hold of its peers from that moment on.
//!
//! Keeps I3 over the life of a session: whoever proved itself by a CA that left
//! has no session and is listened to no more, until it shows a certificate of
//! one that is known. What a session rests on is remembered from what was shown
//! and signed, not asked of the hub. Must not know what a hub makes of it.

use std::collections::{BTreeMap, BTreeSet};

use nowconnect_core::error::CloseCode;
use nowconnect_core::id::{SessionId, SessionKey};
use nowconnect_core::mux::{Entry, Input};
use nowconnect_core::wire::Plane;

use crate::faults::At;
use crate::marks::Mark;
use crate::net::{key, place};
use crate::world::World;

/// What a session of a hub rests on.
#[derive(Clone, Copy, Debug)]
struct Rests {
    /// The CA its peer signed with.
    ca: u8,
    /// TLS ends at both hubs and asks at every connection.
    native: bool,
}

/// What is known of the proofs of peers.
#[derive(Debug, Default)]
pub(crate) struct Proofs {
    rests: BTreeMap<(u16, SessionId), Rests>,
    /// Peers of a hub that lost its trust and have not been let in since.
    away: BTreeSet<(u16, String)>,
}

impl World {
    fn knows(&self, ix: u16, ca: u8) -> bool {
        self.nodes[usize::from(ix)].keys.knows(ca)
    }

    /// TLS between two hubs, where it ends at both: each shows its certificate.
    /// False when one does not know the other's CA.
    pub(crate) fn meet(&mut self, conn: u32) -> bool {
        let c = &self.conns[conn as usize];
        let nodes = c.nodes;
        if c.dialect.plane != Plane::Mesh || !self.ends_tls(conn) {
            return true;
        }
        let shown = nodes.map(|n| self.nodes[usize::from(n)].keys.ca);
        self.conns[conn as usize].shown = shown.map(Some);
        let known = self.knows(nodes[1], shown[0]) && self.knows(nodes[0], shown[1]);
        if !known {
            self.marks.hit(Mark::UntrustedCa);
        }
        known
    }

    /// A hub accepts what the peer signed on a connection.
    pub(crate) fn note_signed(&mut self, conn: u32, end: usize, ca: u8) {
        self.conns[conn as usize].signed[1 - end] = Some(ca);
    }

    /// A handshake went on: the session it led to, if it did.
    pub(crate) fn note_proved(&mut self, ix: u16, conn: u32, end: usize) {
        let Some(ca) = self.conns[conn as usize].signed[1 - end] else { return };
        let Some(hub) = self.nodes[usize::from(ix)].hub() else { return };
        let Some(entry) = hub.mux().carried_by(key(conn, end)).and_then(|k| hub.mux().get(k)) else { return };
        let (id, peer) = (entry.session.id(), entry.peer.name().to_owned());
        let native = self.ends_tls(conn);
        self.check.proofs.rests.insert((ix, id), Rests { ca, native });
        if self.check.proofs.away.remove(&(ix, peer)) {
            self.marks.hit(Mark::TrustedAgain);
        }
    }

    /// Whether a hub has reason to keep a session with another hub.
    fn is_trusted(&self, ix: u16, entry: &Entry) -> bool {
        let Some(rests) = self.check.proofs.rests.get(&(ix, entry.session.id())) else { return true };
        if !rests.native {
            return self.knows(ix, rests.ca);
        }
        // Nobody comes back whom TLS does not vouch for.
        let Some((conn, end)) = entry.conn.map(place) else { return true };
        self.conns[conn as usize].shown[1 - end].is_none_or(|ca| self.knows(ix, ca))
    }

    /// A hub's CAs are others now, or may be: it judges who is there.
    pub(crate) fn judge_again(&mut self, ix: u16) {
        let node = &self.nodes[usize::from(ix)];
        if node.paused || node.hub().is_none() {
            return;
        }
        for conn in 0..self.conns.len() as u32 {
            for end in 0..2 {
                self.judge_tls(ix, conn, end);
            }
        }
        let Some(hub) = self.nodes[usize::from(ix)].hub() else { return };
        let fallen: Vec<(SessionKey, String)> = hub
            .control()
            .proofs()
            .filter(|(_, chain)| !chain.is_some_and(|c| self.stands(ix, c)))
            .filter_map(|(k, _)| Some((k, hub.mux().get(k)?.peer.name().to_owned())))
            .collect();
        for (session, peer) in fallen {
            self.input(ix, Input::Distrust { session });
            if self.nodes[usize::from(ix)].hub().is_some_and(|h| h.mux().get(session).is_none()) {
                self.marks.hit(Mark::TrustLost);
                self.check.proofs.away.insert((ix, peer));
            }
        }
        let Some(hub) = self.nodes[usize::from(ix)].hub() else { return };
        let left = hub.mux().iter().find(|(_, e)| e.plane == Plane::Mesh && !self.is_trusted(ix, e));
        if let Some((_, e)) = left {
            let text = format!("node {ix} keeps its session with {}, whose CA left", e.peer.name());
            self.fail("I3", text);
        }
    }

    /// A connection whose peer showed a certificate of a CA that left is ended.
    pub(crate) fn judge_tls(&mut self, ix: u16, conn: u32, end: usize) {
        let c = &self.conns[conn as usize];
        let own = c.nodes[end] == ix && c.up[end] && c.runs[end] == self.nodes[usize::from(ix)].run;
        if own && c.shown[1 - end].is_some_and(|ca| !self.knows(ix, ca)) {
            let k = key(conn, end);
            self.input(ix, Input::Disconnected { conn: k, cause: CloseCode::Auth });
            self.close(k, CloseCode::Auth);
            self.settle(ix);
        }
    }

    /// After a message: nobody is listened to who is not trusted.
    pub(crate) fn judge_speaker(&mut self, ix: u16, conn: u32, to: usize) {
        let Some(hub) = self.nodes[usize::from(ix)].hub() else { return };
        let entry = hub.mux().carried_by(key(conn, to)).and_then(|k| hub.mux().get(k));
        if let Some(e) = entry.filter(|e| e.plane == Plane::Mesh && !self.is_trusted(ix, e)) {
            let text = format!("node {ix} listens on conn {conn} to {}, whose CA left", e.peer.name());
            self.fail("I3", text);
        }
    }

    /// All hubs' CAs are others now.
    pub(crate) fn judge_everywhere(&mut self) {
        for ix in 0..self.nodes.len() as u16 {
            if matches!(self.nodes[usize::from(ix)].at, At::Hub(_)) {
                self.judge_again(ix);
            }
        }
    }
}

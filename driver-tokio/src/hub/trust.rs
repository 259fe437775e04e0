//! Links when a CA leaves: what their peers signed with is judged again by the
//! CAs in force, for live and suspended ones alike, and the core is told of each
//! that does not stand (semantics 8, I3). Connections are judged by their TLS in
//! `certs.rs`. Must not know what becomes of a link.

use nowconnect_core::hub::Hub;
use nowconnect_core::id::SessionKey;
use nowconnect_core::mux::Input;

use crate::certs::Certs;
use crate::clock::unix_millis;
use crate::identity::MeshIdentity;
use crate::node::Node;

/// Judges every link.
pub(super) fn judge_links(node: &Node<Hub>, certs: &Certs) {
    let Some(identity) = certs.identity() else { return };
    for (session, peer, why) in node.look(|hub| fallen(hub, &identity, unix_millis() / 1000)) {
        node.input(Input::Distrust { session });
        // One between two native ends waits for a peer whom TLS vouches for.
        if node.look(|hub| hub.mux().get(session).is_none()) {
            tracing::warn!(
                event = "peer_untrusted",
                peer,
                "a link is ended because what its peer proved itself with does not hold any more: {why}"
            );
        }
    }
}

/// The links that rest on nothing any more, to whom, and why.
fn fallen(hub: &Hub, identity: &MeshIdentity, now_unix: u64) -> Vec<(SessionKey, String, &'static str)> {
    let judge = |(session, chain): (SessionKey, Option<&[String]>)| {
        let verdict = match chain {
            Some(chain) => identity.stands(chain, now_unix),
            None => Err("it was made while this hub asked for no proof"),
        };
        let peer = hub.mux().get(session).map_or_else(String::new, |e| e.peer.name().to_owned());
        verdict.err().map(|why| (session, peer, why))
    };
    hub.control().proofs().filter_map(judge).collect()
}

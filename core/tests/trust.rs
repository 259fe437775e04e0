//! Links whose peer is trusted no more (semantics 8, I3): where TLS ends before
//! the hubs the session is over and its secret worthless; where it ends at both,
//! nobody comes back whom TLS does not vouch for.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod world;

use std::time::Duration;

use nowconnect_core::config::{HubConfig, Mode};
use nowconnect_core::error::{CloseCode, RstCode};
use nowconnect_core::id::{SessionKey, SockKey};
use nowconnect_core::mux::{Input, Peer};
use nowconnect_core::observed::Observed;
use nowconnect_core::wire::{Codec, Plane};
use world::{World, agent_config, hub_config};

/// Every hub of these tests, the first with the only agent.
const HUBS: [&str; 3] = ["hub-a", "hub-b", "hub-c"];

fn signing(replica: &str, peers: &[&str]) -> HubConfig {
    let mut config = hub_config(replica, Mode::Active, peers);
    config.insecure_mesh = false;
    config
}

/// Three hubs that sign; the first dials the others, or is dialled. A dialler
/// has TLS in any case: it ends at the acceptor or before it.
fn three(codec: Codec, dials: bool, native: bool) -> World {
    let mut w = World::new();
    w.codec = codec;
    w.exporters = [Some([1; 32]), native.then_some([1; 32])];
    let [a, b, c] = HUBS;
    let peers = if dials { [&[b, c] as &[&str], &[], &[]] } else { [&[] as &[&str], &[a], &[a]] };
    for ((hub, peers), seed) in HUBS.into_iter().zip(peers).zip(1..) {
        w.hub(signing(hub, peers), seed);
    }
    w.agent(agent_config("plant-7", &[a], 1), 4);
    w.run_for(Duration::from_secs(3));
    w
}

/// The session of `hub` to `peer`, and whether it has a connection.
fn link(w: &World, hub: usize, peer: usize) -> Option<(SessionKey, bool)> {
    let to = |p: &Peer| matches!(p, Peer::Hub { replica_id, .. } if replica_id.as_str() == HUBS[peer]);
    w.as_hub(hub).mux().iter().find(|(_, e)| to(&e.peer)).map(|(key, e)| (key, e.conn.is_some()))
}

fn is_up(w: &World, hub: usize, peer: usize) -> bool {
    link(w, hub, peer).is_some_and(|(_, up)| up)
}

/// A client of `hub` whose stream crosses the link to the first one.
fn client(w: &mut World, hub: usize) -> SockKey {
    let c = w.client(hub).unwrap();
    w.write(hub, c, vec![7; 1000]);
    w.run_for(Duration::from_secs(1));
    assert_eq!(w.sock(hub, c).received.len(), 1000, "it is carried");
    c
}

fn distrust(w: &mut World, hub: usize, peer: usize) {
    let (session, _) = link(w, hub, peer).unwrap();
    w.input(hub, Input::Distrust { session });
}

fn lost(w: &World, hub: usize) -> Vec<CloseCode> {
    let mesh = |r: &Observed| match r {
        Observed::SessionLost { plane: Plane::Mesh, cause, .. } => Some(*cause),
        _ => None,
    };
    w.nodes[hub].records.iter().filter_map(mesh).collect()
}

const DIRECTIONS: [(Codec, bool); 4] =
    [(Codec::JsonV1, true), (Codec::JsonV1, false), (Codec::BinaryV2, true), (Codec::BinaryV2, false)];

/// A dialler judges the acceptor as the acceptor judges the dialler: the link
/// ends at once, its streams as aborts, and stays away until its peer proves
/// itself with something else. Other links do not notice.
#[test]
fn a_link_behind_an_ingress_ends_with_the_trust_in_its_peer() {
    for (codec, dials) in DIRECTIONS {
        let mut w = three(codec, dials, false);
        let (near, far) = (client(&mut w, 2), client(&mut w, 1));
        let (neighbour, before) = (link(&w, 0, 2).unwrap(), link(&w, 1, 0).unwrap());
        // Nothing but the first hub's judgement of the second changes.
        w.certificates.insert(1, vec!["hub-b.left".to_owned()]);
        distrust(&mut w, 0, 1);
        assert_eq!(link(&w, 0, 1), None, "definitely, and at once");
        w.run_for(Duration::from_secs(10));
        assert_eq!(w.sock(1, far).aborted, Some(RstCode::Lost), "dials {dials}: an abort, never an end");
        assert_eq!(lost(&w, 0), [CloseCode::Auth]);
        // A dialler has a session as soon as it has said AUTH.
        assert!(lost(&w, 1).first() == Some(&CloseCode::Auth) && lost(&w, 1).iter().all(|c| *c == CloseCode::Auth));
        assert!(!is_up(&w, 0, 1) && !is_up(&w, 1, 0), "dials {dials}: nobody came back by the secret");
        assert_eq!(w.as_hub(0).mux().totals[1].resumed, 0);

        w.certificates.clear();
        assert!(w.run_until(Duration::from_secs(60), |w| is_up(w, 0, 1) && is_up(w, 1, 0)), "dials {dials}");
        assert_ne!(link(&w, 1, 0).unwrap(), before, "another session");
        client(&mut w, 1);
        assert_eq!(link(&w, 0, 2).unwrap(), neighbour);
        w.write(2, near, vec![7; 1000]);
        w.run_for(Duration::from_secs(1));
        assert_eq!(w.sock(2, near).received.len(), 2000);
    }
}

/// A suspended session is judged as well: it is gone when its peer comes back.
#[test]
fn a_suspended_session_is_not_resumed_by_whom_nobody_trusts() {
    for (codec, dials) in DIRECTIONS {
        let mut w = three(codec, dials, false);
        let far = client(&mut w, 1);
        w.unreachable.push(("hub-a".to_owned(), "hub-b".to_owned()));
        w.cut(0, 1);
        w.run_for(Duration::from_secs(1));
        assert!(link(&w, 0, 1).is_some_and(|(_, up)| !up), "suspended");
        w.certificates.insert(1, vec!["hub-b.left".to_owned()]);
        distrust(&mut w, 0, 1);
        assert_eq!(link(&w, 0, 1), None);
        w.unreachable.clear();
        assert!(w.run_until(Duration::from_secs(60), |w| w.sock(1, far).aborted.is_some()), "dials {dials}");
        assert_eq!(w.sock(1, far).aborted, Some(RstCode::Lost));
        w.certificates.clear();
        assert!(w.run_until(Duration::from_secs(90), |w| is_up(w, 0, 1) && is_up(w, 1, 0)), "dials {dials}");
        let resumed = |hub: usize| w.as_hub(hub).mux().totals[1].resumed;
        assert_eq!((resumed(0), resumed(1)), (0, 0));
        client(&mut w, 1);
    }
}

/// A resumption under way when its session ends finds none.
#[test]
fn a_resumption_under_way_finds_no_session() {
    for dials in [true, false] {
        let mut w = three(Codec::BinaryV2, dials, false);
        let far = client(&mut w, 1);
        w.deliver = false;
        w.cut(0, 1);
        // The dialler's HELLO is on its way, or the acceptor's WELCOME is.
        w.run_for(Duration::from_secs(2));
        distrust(&mut w, 0, 1);
        w.deliver = true;
        w.run_for(Duration::from_secs(10));
        assert_eq!(w.sock(1, far).aborted, Some(RstCode::Lost));
        assert_eq!(w.as_hub(0).mux().totals[1].resumed, 0);
        assert!(is_up(&w, 0, 1) && is_up(&w, 1, 0), "dials {dials}: proved anew, over a session of its own");
    }
}

/// Where TLS ends at both hubs the connection has a chain of its own, which the
/// driver judges; what was signed when the session began binds nobody who shows
/// a good one, and helps nobody who does not.
#[test]
fn a_link_between_native_ends_is_resumed_by_whom_tls_vouches_for_only() {
    for (codec, dials) in DIRECTIONS {
        let mut w = three(codec, dials, true);
        let far = client(&mut w, 1);
        let (session, _) = link(&w, 0, 1).unwrap();
        distrust(&mut w, 0, 1);
        w.cut(0, 1);
        assert!(w.run_until(Duration::from_secs(20), |w| is_up(w, 0, 1) && is_up(w, 1, 0)));
        assert_eq!(link(&w, 0, 1), Some((session, true)), "dials {dials}: the peer showed who it is");
        w.write(1, far, vec![7; 1000]);
        w.run_for(Duration::from_secs(1));
        assert_eq!(w.sock(1, far).received.len(), 2000);

        // With somebody else's certificate the secret opens nothing.
        w.certificates.insert(1, vec!["hub-x".to_owned()]);
        w.cut(0, 1);
        w.run_for(Duration::from_secs(120));
        assert!(!is_up(&w, 0, 1), "dials {dials}");
        assert_eq!(w.as_hub(0).mux().totals[1].resumed, 1);
        assert_eq!(w.sock(1, far).aborted, Some(RstCode::Lost));
    }
}

/// Without a judgement a dialler asks TLS for no name: the secret will do.
#[test]
fn before_a_judgement_the_secret_resumes() {
    let mut w = three(Codec::BinaryV2, true, true);
    client(&mut w, 1);
    let (session, _) = link(&w, 0, 1).unwrap();
    w.certificates.insert(1, vec!["b.example.com".to_owned()]);
    w.cut(0, 1);
    assert!(w.run_until(Duration::from_secs(20), |w| is_up(w, 0, 1)));
    assert_eq!(link(&w, 0, 1), Some((session, true)));
}

/// What is kept is what the peers showed, for as long as there is a link; other
/// sessions and stale keys are no business of a judgement (C5).
#[test]
fn proofs_are_kept_for_links_and_nothing_else_is_judged() {
    let mut w = three(Codec::BinaryV2, true, false);
    let hub = w.as_hub(0);
    let proofs: Vec<_> = hub.control().proofs().map(|(key, chain)| (key, chain.map(<[String]>::len))).collect();
    let links: Vec<_> = [1, 2].map(|peer| (link(&w, 0, peer).unwrap().0, Some(1))).to_vec();
    assert_eq!(proofs, links);
    let (tunnel, _) = hub.mux().iter().find(|(_, e)| e.plane == Plane::Tunnel).unwrap();
    w.input(0, Input::Distrust { session: tunnel });
    for _ in 0..2 {
        w.input(0, Input::Distrust { session: links[0].0 });
    }
    assert!(w.as_hub(0).mux().get(tunnel).is_some(), "a tunnel rests on a token");
    assert_eq!(w.as_hub(0).control().proofs().count(), 1);

    // Hubs that do not sign have nothing to show.
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
    w.hub(hub_config("hub-b", Mode::Active, &[]), 2);
    w.run_for(Duration::from_secs(3));
    assert_eq!(w.as_hub(a).control().proofs().map(|(_, chain)| chain.is_none()).collect::<Vec<_>>(), [true]);
}

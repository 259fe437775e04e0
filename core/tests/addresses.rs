//! Names that lead to another hub for a while (N11), where the configuration
//! does not say who is expected there.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod world;

use std::time::Duration;

use nowconnect_core::config::Mode;
use nowconnect_core::id::SessionKey;
use nowconnect_core::link::State;
use nowconnect_core::mux::Peer;
use world::{World, hub_config};

/// The peers whose links have a connection, with their sessions.
fn linked(w: &World, hub: usize) -> Vec<(String, SessionKey)> {
    let name = |p: &Peer| match p {
        Peer::Hub { replica_id, .. } => replica_id.to_string(),
        Peer::Agent { .. } => panic!("no agents here"),
    };
    let mux = w.as_hub(hub).mux();
    let mut all: Vec<_> = mux.iter().filter(|(_, e)| e.conn.is_some()).map(|(key, e)| (name(&e.peer), key)).collect();
    all.sort();
    all
}

/// What gauges and readiness show: each peer once.
fn shown(w: &World, hub: usize) -> Vec<(Option<String>, State)> {
    let hub = w.as_hub(hub);
    let mut all: Vec<_> =
        hub.control().links(hub.mux()).iter().map(|l| (l.replica.map(ToString::to_string), l.state)).collect();
    all.sort();
    all
}

fn alias(w: &mut World, from: &str, to: &str) {
    w.aliases.push((from.to_owned(), to.to_owned()));
}

#[test]
fn an_address_that_led_to_another_hub_is_dialled_again_and_that_hubs_session_lives() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b", "hub-c"]), 1);
    for (hub, seed) in [("hub-b", 2), ("hub-c", 3)] {
        w.hub(hub_config(hub, Mode::Active, &[]), seed);
    }
    alias(&mut w, "hub-b", "hub-c");
    alias(&mut w, "hub-c", "nowhere");
    w.run_for(Duration::from_secs(5));
    let [(c, session)] = &linked(&w, a)[..] else { panic!("{:?}", linked(&w, a)) };
    assert_eq!(c, "hub-c", "by the address of another");
    let session = *session;

    w.aliases.clear();
    w.run_for(Duration::from_secs(90));
    let links = linked(&w, a);
    assert_eq!(links.iter().map(|(peer, _)| peer.as_str()).collect::<Vec<_>>(), ["hub-b", "hub-c"]);
    assert_eq!(links[1].1, session, "the session that was there goes on");
    let up = |peer: &str| (Some(peer.to_owned()), State::Established);
    assert_eq!(shown(&w, a), [up("hub-b"), up("hub-c")]);

    // It comes back at the address that is its own now.
    w.cut(a, 2);
    w.run_for(Duration::from_secs(5));
    assert_eq!(linked(&w, a), links, "resumed");
}

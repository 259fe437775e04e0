//! Names that lead to another hub for a while (N11), where the configuration
//! does not say who is expected there.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod world;

use std::time::Duration;

use nowconnect_core::config::{Mode, PeerConfig};
use nowconnect_core::id::SessionKey;
use nowconnect_core::link::State;
use nowconnect_core::mux::Peer;
use nowconnect_core::observed::Observed;
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

/// Where a firewall lets only the peers' own dials through, and no `replica_id`
/// says whose addresses these are: peers that dialled stand for the addresses
/// that never answered, if there is one for each (seeds 120, 229 and 459).
#[test]
fn peers_that_dialled_stand_for_addresses_that_never_answered() {
    let secs = Duration::from_secs;
    let healthy = |w: &World, hub| w.as_hub(hub).mesh_healthy(w.now);
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &["gate-1", "gate-2"]), 1);
    w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
    w.run_for(secs(10));
    assert_eq!(linked(&w, a).len(), 1);
    assert!(!healthy(&w, a), "one peer for two addresses");
    let down = |w: &World| shown(w, a).iter().filter(|(_, state)| *state != State::Established).count();
    assert_eq!(down(&w), 2, "which of them it is, is not known");

    let c = w.hub(hub_config("hub-c", Mode::Active, &["hub-a"]), 3);
    w.run_for(secs(10));
    assert_eq!(linked(&w, a).len(), 2);
    assert!(healthy(&w, a));
    let up = |peer: &str| (Some(peer.to_owned()), State::Established);
    assert_eq!(shown(&w, a), [up("hub-b"), up("hub-c")]);
    assert!(w.as_hub(a).control().links(w.as_hub(a).mux()).iter().all(|l| l.configured));

    // One of them goes: missed, after the grace, and for good.
    w.crash(c);
    w.run_for(Duration::from_millis(2900));
    assert!(healthy(&w, a), "within the grace");
    w.run_for(Duration::from_millis(200));
    assert!(!healthy(&w, a));
    w.run_for(secs(60));
    assert!(!healthy(&w, a));
}

/// A hub that cannot reach itself is told by the file which address is its own.
#[test]
fn an_own_address_with_its_replica_id_is_no_peer() {
    let mut w = World::new();
    w.unreachable.push(("hub-a".to_owned(), "hub-a".to_owned()));
    let mut config = hub_config("hub-a", Mode::Active, &["hub-a"]);
    let nameless = w.hub(config.clone(), 1);
    w.run_for(Duration::from_secs(5));
    assert!(!w.as_hub(nameless).mesh_healthy(w.now), "it may be another hub's");
    w.crash(nameless);
    config.peers[0].replica_id = Some(config.replica_id.clone());
    let a = w.hub(config.clone(), 2);
    let dials = w.dials;
    w.run_for(Duration::from_secs(60));
    assert!(w.as_hub(a).mesh_healthy(w.now));
    assert_eq!(w.dials, dials, "and is not dialled");
    let told = |w: &World| w.nodes[a].records.iter().filter(|r| matches!(r, Observed::PeerIsSelf { .. })).count();
    assert_eq!(told(&w), 1);
    config.peers.push(PeerConfig { url: "alias".to_owned(), ..config.peers[0].clone() });
    w.reload_hub(a, &config).unwrap();
    w.run_for(Duration::from_secs(60));
    assert_eq!((w.dials, told(&w), w.as_hub(a).mesh_healthy(w.now)), (dials, 2, true));
}

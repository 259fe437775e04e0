//! Who holds an agent when the registry is unwell, when two processes share a
//! name, and when epochs fell (semantics 4 and 5; M4, O2, O7, L8).

#![allow(clippy::unwrap_used, reason = "a test stops where its preparation failed")]

use std::time::Duration;

use nowconnect_core::config::{HubConfig, Mode, OnOutage};
use nowconnect_core::error::{CloseCode, RstCode};
use nowconnect_core::id::Incarnation;
use nowconnect_core::mux::Peer;
use nowconnect_core::observed::Observed;
use nowconnect_core::registry::{MemoryRegistry, SEEN_AHEAD_MAX};
use nowconnect_core::wire::{Codec, Plane};

use crate::world::{World, agent_config, hub_config, name, two_hubs};
use crate::{count, echo, payload};

const SECOND: Duration = Duration::from_secs(1);

/// Two hubs of which the second has no tunnel, and this rule for outages.
fn pair(on_outage: OnOutage) -> (World, usize, usize) {
    let mut w = World::new();
    let hub = |id: &str, peer: &str| {
        let mut config = hub_config(id, Mode::Active, &[peer]);
        config.registry.on_outage = on_outage;
        config
    };
    let a = w.hub(hub("hub-a", "hub-b"), 1);
    let b = w.hub(hub("hub-b", "hub-a"), 2);
    w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(3 * SECOND);
    assert_eq!(echo(&mut w, b, 100), Ok(()));
    (w, a, b)
}

fn outage(w: &mut World, silent: bool, down: bool) {
    if silent {
        w.registry_down = down;
    } else {
        w.registry_fails_at_once = down;
    }
}

#[test]
fn an_outage_refuses_new_streams_to_other_hubs_at_once_and_nothing_else() {
    for silent in [true, false] {
        let (mut w, a, b) = pair(OnOutage::Refuse);
        let open = w.client(b).unwrap();
        w.write(b, open, payload(1000));
        w.run_for(SECOND / 10);
        outage(&mut w, silent, true);
        // Two renewals fail.
        w.run_for(3 * SECOND);
        for _ in 0..30 {
            let c = w.client(b).unwrap();
            w.run_for(SECOND / 10);
            assert_eq!(w.sock(b, c).aborted, Some(RstCode::RegistryDown), "known before, and refused at once");
            assert_eq!(echo(&mut w, a, 100), Ok(()), "local");
        }
        w.run_for(30 * SECOND);
        outage(&mut w, silent, false);
        w.run_for(2 * SECOND);
        assert_eq!(echo(&mut w, b, 100), Ok(()), "and again with the first renewal");
        w.write(b, open, payload(500));
        w.eof(b, open);
        w.run_for(SECOND);
        assert_eq!((w.sock(b, open).aborted, w.sock(b, open).received.len()), (None, 1500), "it lived on");
    }
}

#[test]
fn cached_goes_on_with_what_is_known_as_long_as_the_outage_lasts() {
    let (mut w, a, b) = pair(OnOutage::Cached);
    w.registry_down = true;
    for _ in 0..60 {
        w.run_for(SECOND);
        assert_eq!((echo(&mut w, a, 100), echo(&mut w, b, 100)), (Ok(()), Ok(())), "at {:?}", w.now);
    }
    // What is known is over: the owner says so, and nobody waits for the registry.
    w.crash(2);
    w.run_for(60 * SECOND);
    let c = w.client(b).unwrap();
    w.run_for(SECOND / 10);
    assert!(w.sock(b, c).aborted.is_some());
}

/// The hub is alone in not reaching the registry: its agent is found elsewhere.
#[test]
fn an_agent_whose_hubs_are_all_unwell_attaches_elsewhere_too() {
    for cut_off in [0, 1] {
        let (mut w, _, _, g) = (World::new(), 0, 0, 0);
        let hubs = [
            w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1),
            w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2),
        ];
        w.run_for(2 * SECOND);
        let names = if cut_off == 0 { ["hub-a", "hub-b"] } else { ["hub-b", "hub-a"] };
        let agent = w.agent(agent_config("plant-7", &names, 1), 3);
        assert_eq!(g, 0);
        w.run_for(2 * SECOND);
        let open = w.client(hubs[cut_off]).unwrap();
        w.write(hubs[cut_off], open, payload(100));
        assert_eq!(w.as_agent(agent).mux().len(), 1);
        w.registry_deaf.push(hubs[cut_off]);
        w.run_for(5 * SECOND);
        assert_eq!(w.as_agent(agent).mux().len(), 2, "one attachment more");
        for hub in hubs {
            assert_eq!(echo(&mut w, hub, 1000), Ok(()), "clients of hub {hub}");
        }
        w.run_for(60 * SECOND);
        assert_eq!(w.as_agent(agent).mux().len(), 2);
        w.registry_deaf.clear();
        w.run_for(15 * SECOND);
        assert_eq!(w.located("ldap"), 2, "both are listed");
        assert_eq!(w.sock(hubs[cut_off], open).aborted, None, "no stream noticed");
    }
}

#[test]
fn when_all_hubs_are_unwell_the_agent_is_at_each_once_and_dials_no_more() {
    let mut w = World::new();
    let ids = ["hub-a", "hub-b", "hub-c"];
    let hubs = ids.map(|id| {
        let seed = 1 + id.len() as u64 + u64::from(id.as_bytes()[4]);
        w.hub(hub_config(id, Mode::Active, &[]), seed)
    });
    let g = w.agent(agent_config("plant-7", &ids, 1), 9);
    w.run_for(3 * SECOND);
    w.registry_down = true;
    w.run_for(120 * SECOND);
    assert_eq!(w.as_agent(g).mux().len(), 3);
    let up = count(&w, g, |r| matches!(r, Observed::SessionUp { .. }));
    assert_eq!(up, 3, "no tunnel was made twice");
    for hub in hubs {
        assert_eq!(echo(&mut w, hub, 100), Ok(()), "its own clients");
    }
}

fn takeovers(w: &World, hubs: &[usize]) -> usize {
    hubs.iter().map(|h| count(w, *h, |r| matches!(r, Observed::Attached { takeover: true, .. }))).sum()
}

/// G1: two processes with one id, at two hubs.
#[test]
fn two_live_instances_of_one_agent_take_three_turns_a_minute_and_then_one_stays() {
    for peers in [[&["hub-b"][..], &["hub-a"]], [&[], &[]]] {
        let mut w = World::new();
        let meshed = !peers[0].is_empty();
        let a = w.hub(hub_config("hub-a", Mode::Active, peers[0]), 1);
        let b = w.hub(hub_config("hub-b", Mode::Active, peers[1]), 2);
        let g = w.agent(agent_config("plant-7", &["hub-a", "hub-b"], 1), 3);
        w.run_for(2 * SECOND);
        let h = w.agent(agent_config("plant-7", &["hub-b", "hub-a"], 1), 4);
        // Without a link each hub counts what it sees itself, at the pace of audits.
        w.run_for(if meshed { 50 } else { 300 } * SECOND);
        let told = |w: &World| {
            count(w, a, |r| matches!(r, Observed::DuplicateAgent { .. }))
                + count(w, b, |r| matches!(r, Observed::DuplicateAgent { .. }))
        };
        assert!(told(&w) >= 1, "meshed {meshed}: the operator is told");
        let before = takeovers(&w, &[a, b]);
        assert!((3..=if meshed { 8 } else { 60 }).contains(&before), "meshed {meshed}: {before}");
        let refused =
            |n| count(&w, n, |r| matches!(r, Observed::HandshakeFailed { cause: CloseCode::DuplicateId, .. }));
        if !meshed {
            continue;
        }
        assert!(refused(g) + refused(h) >= 1, "the other one is sent away");
        // At each of two hubs once in the time after which a peer counts as dead.
        assert!(refused(g) + refused(h) <= 2 * 5, "it waits as it was told");
        let held = [g, h].map(|n| w.as_agent(n).mux().len());
        assert_eq!(held[0] + held[1], 1, "one of the two is attached");
        let incumbent = if held[0] == 1 { g } else { h };
        let instance = w.as_agent(incumbent).tunnels().instance();
        w.run_for(10 * SECOND);
        assert_eq!(w.as_agent(incumbent).tunnels().instance(), instance);
        assert_eq!(w.as_agent(incumbent).mux().len(), 1, "and stays");
        // For ten minutes: bounded, whoever it is.
        w.run_for(600 * SECOND);
        let all = takeovers(&w, &[a, b]);
        assert!(all <= 8 * 11, "meshed {meshed}: {all} takeovers in eleven minutes");
        w.crash(incumbent);
        w.run_for(120 * SECOND);
        let other = if incumbent == g { h } else { g };
        assert_eq!(w.as_agent(other).mux().len(), 1, "the other one gets in at last");
    }
}

/// The guard is for two that live: with the incumbent gone, the one that was
/// sent away is let in as soon as that is known (seed 145 of `speed`).
#[test]
fn who_was_sent_away_is_let_in_when_the_incumbent_is_gone() {
    for mode in [Mode::Active, Mode::Off] {
        let mut w = World::new();
        let resume_window = Duration::from_secs(10);
        let a = w.hub(HubConfig { resume_window, ..hub_config("hub-a", mode, &["hub-b"]) }, 1);
        let b = w.hub(HubConfig { resume_window, ..hub_config("hub-b", mode, &["hub-a"]) }, 2);
        let hubs: &[&str] = if mode == Mode::Off { &["hub-a"] } else { &["hub-a", "hub-b"] };
        let agents = [w.agent(agent_config("plant-7", hubs, 1), 3), w.agent(agent_config("plant-7", hubs, 1), 4)];
        let refused = |w: &World| {
            let refusals = |n: &usize| count(w, *n, |r| matches!(r, Observed::DuplicateAgentRefused { .. }));
            [a, b].iter().map(refusals).sum::<usize>()
        };
        let mut waited = 0;
        while refused(&w) == 0 {
            w.run_for(SECOND);
            waited += 1;
            assert!(waited < 120, "{mode:?}: nobody is sent away");
        }
        let incumbent = agents.into_iter().find(|g| !w.as_agent(*g).mux().is_empty()).unwrap();
        let other = agents.into_iter().find(|g| *g != incumbent).unwrap();
        w.run_for(2 * SECOND);
        assert!(w.as_agent(other).mux().is_empty(), "{mode:?}: the incumbent stays");
        w.crash(incumbent);
        // A resumption is waited for: as long after the agent may have noticed.
        // The next dial has the registry asked, and the one after it gets in.
        w.run_for(43 * SECOND);
        assert_eq!(w.as_agent(other).mux().len(), 1, "{mode:?}: the other one is let in");
    }
}

/// The registry forgot everything, its clock fell by days, and the hub is
/// another run: nobody can grant more than the agent has seen.
#[test]
fn an_agent_nobody_grants_enough_starts_over() {
    let mut w = World::new();
    w.registry_ahead = 10 * 86_400_000;
    let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
    w.run_for(SECOND);
    let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(2 * SECOND);
    let (first, highest) = (w.as_agent(g).tunnels().instance(), w.as_agent(g).tunnels().highest_epoch());
    assert!(highest.0 > 0);
    w.registry = MemoryRegistry::default();
    w.registry_ahead = 0;
    w.crash(a);
    w.hub(hub_config("hub-a", Mode::Active, &[]), 7);
    w.run_for(90 * SECOND);
    let over = count(&w, g, |r| matches!(r, Observed::StartedOver { highest: h, .. } if *h == highest));
    assert_eq!(over, 1, "told once");
    assert!(w.as_agent(g).tunnels().highest_epoch().0 + SEEN_AHEAD_MAX < highest.0);
    assert_ne!(w.as_agent(g).tunnels().instance(), first);
    assert_eq!((w.as_agent(g).mux().len(), w.located("ldap")), (1, 1));
    let hub = w.nodes.len() - 1;
    assert_eq!(echo(&mut w, hub, 100), Ok(()));
}

/// The run of the peer that a hub is linked with.
fn linked(w: &World, hub: usize) -> Option<Incarnation> {
    let of = |p: &Peer| if let Peer::Hub { incarnation, .. } = p { Some(*incarnation) } else { None };
    w.as_hub(hub).mux().iter().filter(|(_, e)| e.conn.is_some()).find_map(|(_, e)| of(&e.peer))
}

fn told_twice(w: &World, hub: usize) -> usize {
    count(w, hub, |r| matches!(r, Observed::HandshakeFailed { cause: CloseCode::DuplicateId, .. }))
}

/// Which run is the newer one the registry knows, not who came later: a run
/// that is fenced says that its registry is unwell, and is no incumbent.
#[test]
fn a_run_without_its_lease_gives_way_to_the_one_that_holds_it() {
    let mut w = World::new();
    let fenced = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
    w.run_for(SECOND);
    let newer = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 2);
    let b = w.hub(hub_config("hub-b", Mode::Active, &[]), 3);
    w.run_for(3 * SECOND);
    let run = Some(w.as_hub(newer).run().incarnation);
    assert_eq!((linked(&w, b), w.as_hub(fenced).control().registry_healthy()), (run, false));
    w.reload_hub(fenced, &hub_config("hub-a", Mode::Active, &["hub-b"])).unwrap();
    w.run_for(60 * SECOND);
    assert_eq!((linked(&w, b), told_twice(&w, newer)), (run, 0));
    assert!((4..=7).contains(&told_twice(&w, fenced)), "{} in a minute", told_twice(&w, fenced));
    let ups = count(&w, b, |r| matches!(r, Observed::SessionUp { plane: Plane::Mesh, .. }));
    assert_eq!(ups, 3, "each once, and the newer one again");
}

/// The run that gave way does not push the newer one's link out again, and is
/// linked soon after that one is gone.
#[test]
fn of_two_hubs_with_one_replica_id_the_newer_is_linked_and_the_other_waits() {
    let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
    let ups = |w: &World| count(w, b, |r| matches!(r, Observed::SessionUp { plane: Plane::Mesh, .. }));
    let before = ups(&w);
    let twin = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 77);
    w.run_for(60 * SECOND);
    assert_eq!((ups(&w), linked(&w, b)), (before + 1, Some(w.as_hub(twin).run().incarnation)), "once");
    assert!((4..=7).contains(&told_twice(&w, a)), "{} in a minute", told_twice(&w, a));
    assert_eq!((told_twice(&w, a), told_twice(&w, twin)), (told_twice(&w, b), 0), "both sides say so");
    // With the one that is linked gone the other one is let in.
    w.crash(twin);
    let back = Some(w.as_hub(a).run().incarnation);
    assert!(w.run_until(15 * SECOND, |w| linked(w, b) == back), "it asks again by itself");

    // Nothing is left of the other's claim: it is as new as any.
    let third = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 78);
    w.run_for(SECOND);
    assert_eq!(linked(&w, b), Some(w.as_hub(third).run().incarnation));
}

/// The same where each of the two has an address of its own: the dial of the one
/// that gave way says nothing of where the other one's link leads, which is
/// resumed where it was dialled.
#[test]
fn the_dial_of_a_twin_does_not_take_the_address_of_the_link() {
    let mut w = World::new();
    let older = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
    w.nodes[older].name = "hub-a1".to_owned();
    // The address of the older one leads nowhere at first.
    let b = w.hub(hub_config("hub-b", Mode::Active, &["first", "second"]), 3);
    w.run_for(3 * SECOND);
    assert_eq!(linked(&w, b), Some(w.as_hub(older).run().incarnation), "it dialled");
    let newer = w.hub(hub_config("hub-a", Mode::Active, &[]), 2);
    w.nodes[newer].name = "hub-a2".to_owned();
    w.aliases.push(("second".to_owned(), "hub-a2".to_owned()));
    let run = Some(w.as_hub(newer).run().incarnation);
    assert!(w.run_until(60 * SECOND, |w| linked(w, b) == run));
    w.aliases.push(("first".to_owned(), "hub-a1".to_owned()));
    // Long enough for that address to be dialled some times, in vain.
    w.run_for(120 * SECOND);
    let ends = |w: &World| count(w, b, |r| matches!(r, Observed::SessionLost { plane: Plane::Mesh, .. }));
    let before = ends(&w);
    for _ in 0..3 {
        w.cut(b, newer);
        assert!(w.run_until(5 * SECOND, |w| linked(w, b) == run));
        w.run_for(40 * SECOND);
        assert_eq!((linked(&w, b), ends(&w)), (run, before), "it goes on over the same session");
    }
}

/// X5, attack 31: the newer run of a replica id takes the lease by
/// compare-and-set, the older one fences itself and says so.
#[test]
fn of_two_hubs_with_one_replica_id_the_newer_holds_the_lease() {
    let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
    let twin = w.hub(hub_config("hub-a", Mode::Active, &[]), 77);
    w.run_for(3 * SECOND);
    let run = w.as_hub(twin).run().incarnation;
    assert_eq!(w.registry.lease(&name("hub-a")).map(|(by, _)| by), Some(run));
    let told = |w: &World, n| count(w, n, |r| matches!(r, Observed::LeaseHeldByOther));
    assert!(told(&w, a) >= 1 && told(&w, twin) == 0);
    assert!(!w.as_hub(a).control().registry_healthy() && w.as_hub(twin).control().registry_healthy());
    assert_eq!(echo(&mut w, a, 100), Ok(()), "its own clients are served");
    w.run_for(30 * SECOND);
    assert_eq!(w.registry.lease(&name("hub-a")).map(|(by, _)| by), Some(run), "they do not take turns");
    let c = w.client(b).unwrap();
    w.run_for(SECOND);
    assert!(w.sock(b, c).aborted.is_some(), "the fenced run is no owner for others");
    w.crash(twin);
    w.run_for(15 * SECOND);
    assert!(w.as_hub(a).control().registry_healthy(), "the lease ended");
    w.run_for(5 * SECOND);
    assert_eq!(echo(&mut w, b, 100), Ok(()));
}

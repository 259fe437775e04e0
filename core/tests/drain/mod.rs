//! A node leaves: new clients find an open way all the time, agents are
//! attached elsewhere before their hub takes nothing new, and no stream is
//! reset before the deadline (L10).

#![allow(clippy::unwrap_used, reason = "a client of a test is accepted unless the test says otherwise")]

use std::collections::BTreeSet;
use std::time::Duration;

use nowconnect_core::config::{DrainTimes, Mode};
use nowconnect_core::error::RstCode;
use nowconnect_core::hub::DrainView;
use nowconnect_core::id::SockKey;
use nowconnect_core::mux::Input;
use nowconnect_core::observed::{DrainStep, Observed};

use crate::split::in_every_form;
use crate::world::{Target, World, agent_config, hub_config};
use crate::{count, echo};

const MS: Duration = Duration::from_millis(1);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Hubs a, b, c; `agents` that prefer hub a, with one tunnel each.
fn three_hubs(mode: Mode, agents: usize) -> (World, [usize; 3], Vec<usize>) {
    let mut w = World::new();
    let hubs = [("hub-a", 1), ("hub-b", 2), ("hub-c", 3)].map(|(me, seed)| {
        let peers: Vec<&str> = ["hub-a", "hub-b", "hub-c"].into_iter().filter(|p| *p != me).collect();
        w.hub(hub_config(me, mode, &peers), seed)
    });
    let agents = (0..agents)
        .map(|n| w.agent(agent_config(&format!("plant-{n}"), &["hub-a", "hub-b"], 1), 10 + n as u64))
        .collect();
    w.run_for(secs(3));
    (w, hubs, agents)
}

fn drain(w: &mut World, n: usize, lameduck: Duration, timeout: Duration) {
    w.input(n, Input::Drain(DrainTimes { lameduck, timeout }));
    w.settle();
}

fn view(w: &World, hub: usize) -> DrainView {
    w.as_hub(hub).control().drain_view().expect("it drains")
}

fn tunnels(w: &World, hub: usize) -> usize {
    w.as_hub(hub).control().tunnels().count()
}

/// A client of every hub each 100 ms, all of them served.
fn serve_for(w: &mut World, hubs: &[usize], d: Duration) {
    let end = w.now.after(d);
    while w.now < end {
        for hub in hubs {
            assert_eq!(echo(w, *hub, 100), Ok(()), "hub {hub} at {:?}", w.now);
        }
        w.run_for(100 * MS);
    }
}

#[test]
fn agents_are_led_elsewhere_one_after_the_other_and_no_client_waits_or_fails() {
    in_every_form(|| {
        let (mut w, [a, b, c], _) = three_hubs(Mode::Active, 10);
        assert_eq!((tunnels(&w, a), tunnels(&w, b)), (10, 0));
        drain(&mut w, a, secs(10), secs(60));
        // Told evenly over the first half of the lame duck, the first one at once.
        let mut told = Vec::new();
        for _ in 0..10 {
            told.push(view(&w, a).told);
            serve_for(&mut w, &[a, b, c], 500 * MS);
        }
        assert_eq!(told, (1..=10).collect::<Vec<_>>());
        serve_for(&mut w, &[a, b, c], 4500 * MS);
        assert_eq!(tunnels(&w, b), 10, "all are attached elsewhere");
        assert_eq!((tunnels(&w, a), view(&w, a).agents, view(&w, a).elsewhere), (10, 10, 10), "and here as well");
        assert!(!view(&w, a).closed && !w.as_hub(a).control().is_closed() && !w.closes_listeners(a));

        w.run_for(secs(1));
        assert!(view(&w, a).closed && w.closes_listeners(a), "the lame duck is over");
        assert_eq!(w.client(a).err(), Some(RstCode::Draining));
        assert!(w.drained(a), "no stream is left");
        serve_for(&mut w, &[b, c], secs(1));
        w.input(a, Input::Shutdown);
        serve_for(&mut w, &[b, c], secs(3));
        assert_eq!(w.located("ldap"), 10, "its own entries are gone from the registry");
    });
}

#[test]
fn who_is_elsewhere_is_found_behind_any_number_of_agents_that_are_not() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
    w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
    for n in 0..300 {
        w.agent(agent_config(&format!("plant-{n}"), &["hub-a"], 1), 10 + n);
    }
    w.agent(agent_config("z", &["hub-a", "hub-b"], 2), 9);
    w.run_for(secs(3));
    assert_eq!(tunnels(&w, a), 301);
    drain(&mut w, a, secs(10), secs(60));
    w.run_for(secs(9));
    assert_eq!((view(&w, a).told, view(&w, a).elsewhere), (301, 1));
}

#[test]
fn the_order_of_agents_is_drawn_from_the_seed() {
    let order = |seed: u64| {
        let mut w = World::new();
        let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), seed);
        let b = w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 99);
        for n in 0..8 {
            w.agent(agent_config(&format!("plant-{n}"), &["hub-a", "hub-b"], 1), 10 + n);
        }
        w.run_for(secs(3));
        drain(&mut w, a, secs(60), secs(60));
        let mut order = Vec::new();
        for _ in 0..8 {
            w.run_for(3500 * MS);
            let here: BTreeSet<String> = w.as_hub(b).control().tunnels().map(|t| t.agent_id.to_string()).collect();
            order.extend(here.into_iter().filter(|id| !order.contains(id)).collect::<Vec<_>>());
        }
        assert_eq!(order.len(), 8);
        order
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
}

#[test]
fn other_hubs_open_elsewhere_at_once_and_here_only_while_there_is_no_other() {
    let (mut w, [a, b, c], _) = three_hubs(Mode::Active, 1);
    let carried = |w: &World, hub: usize| w.as_hub(hub).counters().carried;
    w.unreachable.push(("plant-0".into(), "hub-b".into()));
    drain(&mut w, a, secs(10), secs(60));
    serve_for(&mut w, &[c], secs(2));
    let by_a = carried(&w, a);
    assert!(by_a >= 10, "the only one there is: {by_a}");
    w.unreachable.clear();
    w.run_for(secs(5));
    assert_eq!(tunnels(&w, b), 1);
    let by_a = carried(&w, a);
    serve_for(&mut w, &[c], secs(1));
    assert_eq!((carried(&w, a), carried(&w, b)), (by_a, 10), "the hub that stays");
    w.run_for(secs(5));
    assert!(view(&w, a).closed);
    serve_for(&mut w, &[b, c], secs(1));
    assert_eq!(carried(&w, a), by_a);
}

#[test]
fn a_hub_that_has_closed_is_no_way_for_others_and_they_say_so() {
    let (mut w, [a, b, c], _) = three_hubs(Mode::Active, 1);
    w.unreachable.push(("plant-0".into(), "hub-b".into()));
    drain(&mut w, a, secs(5), secs(60));
    w.run_for(secs(3));
    let l = nowconnect_core::id::ListenerIx(0);
    assert_eq!([b, c].map(|hub| w.as_hub(hub).unready(l)), [None, None]);
    w.run_for(secs(3));
    for hub in [b, c] {
        assert_eq!(w.as_hub(hub).unready(l), Some(nowconnect_core::hub::Unready::NoCandidate));
        assert_eq!(echo(&mut w, hub, 1), Err(Some(RstCode::NoRoute)));
    }
}

#[test]
fn without_a_mesh_the_hub_serves_its_own_clients_until_it_closes() {
    let (mut w, [a, b, _], _) = three_hubs(Mode::Off, 4);
    drain(&mut w, a, secs(10), secs(60));
    serve_for(&mut w, &[a], secs(6));
    assert_eq!((tunnels(&w, a), tunnels(&w, b), view(&w, a).told), (4, 4, 4));
    serve_for(&mut w, &[a, b], 3900 * MS);
    w.run_for(100 * MS);
    assert_eq!(w.client(a).err(), Some(RstCode::Draining));
    serve_for(&mut w, &[b], secs(1));
}

#[test]
fn an_agent_without_another_hub_stays_and_its_clients_are_served_to_the_last() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
    let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(secs(3));
    w.target = Target::Accept;
    let early = w.client(a).unwrap();
    w.target = Target::Echo;
    drain(&mut w, a, secs(4), secs(60));
    serve_for(&mut w, &[a], 3900 * MS);
    assert_eq!((view(&w, a).agents, view(&w, a).told, view(&w, a).elsewhere), (1, 1, 0));
    // Its connection breaks: who is here may come back, who is new may not.
    w.cut(a, g);
    w.run_for(secs(1));
    w.agent(agent_config("plant-8", &["hub-a"], 1), 4);
    w.run_for(secs(5));
    assert_eq!((tunnels(&w, a), w.sock(a, early).aborted, w.drained(a)), (1, None, false));
    let t = w.targets(g)[0];
    w.eof(a, early);
    w.eof(g, t);
    w.run_for(100 * MS);
    assert!(w.sock(a, early).closed && w.drained(a));
}

#[test]
fn a_drain_that_is_taken_back_leaves_nothing_behind() {
    in_every_form(|| {
        let (mut w, [a, b, c], agents) = three_hubs(Mode::Active, 4);
        drain(&mut w, a, secs(10), secs(60));
        serve_for(&mut w, &[a, b, c], secs(2));
        assert!(view(&w, a).told < 4, "some hear of neither");
        w.input(a, Input::Undrain);
        w.run_for(secs(1));
        assert!(!w.as_hub(a).control().is_draining() && w.as_hub(a).control().drain_view().is_none());
        assert_eq!(w.as_hub(a).unready(nowconnect_core::id::ListenerIx(0)), None);
        serve_for(&mut w, &[a, b, c], secs(12));
        assert!(!w.closes_listeners(a), "nothing of it comes later");
        w.agent(agent_config("plant-9", &["hub-a"], 1), 40);
        w.run_for(secs(2));
        assert_eq!(tunnels(&w, a), 5, "nobody left, and it takes new ones");
        for g in agents {
            assert!(w.as_agent(g).mux().iter().all(|(_, e)| e.conn.is_some()));
        }

        // Again, to the end; from its closing on it is too late.
        drain(&mut w, a, secs(1), secs(60));
        w.run_for(secs(2));
        w.input(a, Input::Undrain);
        w.run_for(secs(1));
        assert!(w.as_hub(a).control().is_closed() && w.drained(a));
        assert_eq!(w.client(a).err(), Some(RstCode::Draining));
        let steps = [DrainStep::Begun, DrainStep::Cancelled, DrainStep::Closed];
        let told = steps.map(|s| count(&w, a, |r| matches!(r, Observed::Drain(step) if *step == s)));
        assert_eq!(told, [2, 1, 1]);
    });
}

#[test]
fn a_second_drain_changes_nothing_and_an_end_at_once_ends_both() {
    let (mut w, [a, ..], _) = three_hubs(Mode::Active, 1);
    w.target = Target::Accept;
    let c = w.client(a).unwrap();
    drain(&mut w, a, secs(10), secs(60));
    let before = view(&w, a);
    w.run_for(secs(2));
    drain(&mut w, a, secs(100), secs(1));
    assert_eq!((view(&w, a).closes_at, view(&w, a).deadline), (before.closes_at, before.deadline));
    w.input(a, Input::Shutdown);
    w.run_for(secs(1));
    assert_eq!(w.sock(a, c).aborted, Some(RstCode::Shutdown));
    assert!(w.drained(a));
    w.run_for(secs(20));
    assert_eq!(count(&w, a, |r| matches!(r, Observed::Drain(DrainStep::Closed))), 0, "nothing of the drain is left");
}

#[test]
fn a_crash_in_the_middle_of_a_drain_costs_what_a_crash_costs() {
    let (mut w, [a, b, c], _) = three_hubs(Mode::Active, 4);
    drain(&mut w, a, secs(10), secs(60));
    serve_for(&mut w, &[a, b, c], secs(6));
    w.crash(a);
    serve_for(&mut w, &[b], secs(5));
    let again = w.hub(hub_config("hub-a", Mode::Active, &["hub-b", "hub-c"]), 77);
    w.run_for(secs(15));
    serve_for(&mut w, &[again, b, c], secs(2));
}

/// An agent whose claim is under way when the drain begins hears of it as soon
/// as it is attached.
#[test]
fn who_attaches_while_the_drain_begins_is_told_as_well() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
    let b = w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
    w.run_for(secs(2));
    w.registry_held = true;
    w.agent(agent_config("plant-7", &["hub-a", "hub-b"], 1), 3);
    w.run_for(10 * MS);
    drain(&mut w, a, secs(10), secs(60));
    w.registry_held = false;
    w.run_for(secs(3));
    assert_eq!((tunnels(&w, a), tunnels(&w, b)), (1, 1));
    assert_eq!((view(&w, a).told, view(&w, a).elsewhere), (1, 1));
}

fn open(w: &mut World, hub: usize, n: usize) -> Vec<SockKey> {
    let clients = (0..n).map(|_| w.client(hub).unwrap()).collect();
    w.run_for(10 * MS);
    clients
}

#[test]
fn nothing_is_reset_before_the_deadline_and_then_the_quiet_ones_first_and_spread() {
    let mut w = World::new();
    w.target = Target::Accept;
    let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
    w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(secs(3));
    // In turns, so that neither age nor place tells them apart.
    let (mut quiet, mut busy) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        quiet.extend(open(&mut w, a, 1));
        busy.extend(open(&mut w, a, 1));
    }
    drain(&mut w, a, secs(1), secs(40));
    for n in 0..41 {
        let all = quiet.iter().chain(&busy);
        assert!(all.clone().all(|c| w.nodes[a].socks[c].aborted.is_none()), "{n} s: not yet");
        for c in &busy {
            w.write(a, *c, vec![1; 10]);
        }
        w.run_for(secs(1) - if n == 40 { MS } else { Duration::ZERO });
    }
    let mut gone = Vec::new();
    for _ in 0..40 {
        w.run_for(50 * MS);
        let left = |all: &[SockKey]| all.iter().filter(|c| w.nodes[a].socks[c].aborted.is_none()).count();
        gone.push((10 - left(&quiet), 10 - left(&busy)));
    }
    assert!(gone.iter().all(|(q, b)| *q == 10 || *b == 0), "quiet ones first: {gone:?}");
    // 2 s, a twentieth of the timeout: one each 100 ms.
    let pace: Vec<usize> = gone.iter().map(|(q, b)| q + b).collect();
    let expected: Vec<usize> = (0..40).map(|n| 1 + n / 2).collect();
    assert_eq!(pace, expected);
    assert!(w.drained(a));
    let step = DrainStep::Deadline { quiet: 10, busy: 10 };
    assert_eq!(count(&w, a, |r| matches!(r, Observed::Drain(s) if *s == step)), 1);
    for c in quiet.iter().chain(&busy) {
        assert_eq!(w.sock(a, *c).aborted, Some(RstCode::Shutdown));
        assert!(!w.sock(a, *c).eof_received, "an abort, never an end (S2)");
    }
}

#[test]
fn streams_that_end_by_themselves_end_the_drain_before_its_deadline() {
    in_every_form(|| {
        let (mut w, [a, _, c], agents) = three_hubs(Mode::Active, 1);
        w.target = Target::Accept;
        // Its own client, and one of another hub that it carries as owner.
        let clients = [(a, open(&mut w, a, 1)[0]), (c, open(&mut w, c, 1)[0])];
        drain(&mut w, a, secs(2), secs(60));
        w.run_for(secs(20));
        assert_eq!(w.as_hub(a).streams(), 2);
        for (n, (hub, client)) in clients.into_iter().enumerate() {
            assert!(!w.drained(a), "{n}");
            let t = w.targets(agents[0])[n];
            w.write(hub, client, vec![7; 5000]);
            w.eof(hub, client);
            w.eof(agents[0], t);
            w.run_for(100 * MS);
            assert!(w.sock(hub, client).closed && w.sock(agents[0], t).received == vec![7; 5000]);
        }
        assert!(w.drained(a));
    });
}

#[test]
fn an_agent_that_leaves_costs_no_client_where_there_is_another_one() {
    let (mut w, hubs, agents) = three_hubs(Mode::Active, 2);
    w.target = Target::Accept;
    let early: Vec<SockKey> = open(&mut w, hubs[0], 4);
    w.target = Target::Echo;
    let leaves = agents[0];
    let carried = w.targets(leaves).len();
    assert!(carried > 0);
    w.input(leaves, Input::Drain(DrainTimes::at_once(secs(20))));
    serve_for(&mut w, &hubs, secs(19));
    assert_eq!(w.targets(leaves).len(), carried, "nothing new");
    assert!(early.iter().all(|c| w.nodes[hubs[0]].socks[c].aborted.is_none()));
    w.run_for(secs(2));
    let reset = early.iter().filter(|c| w.nodes[hubs[0]].socks[*c].aborted == Some(RstCode::Shutdown)).count();
    assert_eq!(reset, carried, "its deadline has passed");
    assert!(w.drained(leaves));
}

/// WELCOME was on its way when the agent was told to leave.
#[test]
fn an_agent_that_leaves_takes_no_new_tunnel() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
    w.run_for(secs(1));
    w.registry_held = true;
    let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(10 * MS);
    w.input(g, Input::Drain(DrainTimes::at_once(secs(20))));
    w.registry_held = false;
    w.run_for(secs(60));
    assert_eq!((tunnels(&w, a), w.as_agent(g).mux().len(), w.located("ldap")), (0, 0, 0));
}

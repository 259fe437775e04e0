//! Which hubs an agent's addresses lead to, and that it finds its way when
//! they lead elsewhere: a balancer, an address that moves (L2).

mod world;

use std::time::Duration;

use nowconnect_core::config::Mode;
use nowconnect_core::observed::Observed;
use world::{Target, World, agent_config, hub_config};

const S: fn(u64) -> Duration = Duration::from_secs;

fn alias(w: &mut World, from: &str, to: &str) {
    w.aliases.push((from.to_owned(), to.to_owned()));
}

fn connected(w: &World, g: usize) -> usize {
    w.as_agent(g).mux().iter().filter(|(_, e)| e.conn.is_some()).count()
}

fn count(w: &World, n: usize, of: impl Fn(&Observed) -> bool) -> usize {
    w.nodes[n].records.iter().filter(|r| of(r)).count()
}

/// An address that led to a hub we have is tried again, and being refused there
/// harms nothing: the tunnel stays, with its streams.
#[test]
fn an_address_that_leads_to_its_own_hub_again_is_found_and_no_stream_notices() {
    for order in [["hub-a", "hub-b"], ["hub-b", "hub-a"]] {
        let mut w = World::new();
        let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
        let b = w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
        alias(&mut w, "hub-b", "hub-a");
        let g = w.agent(agent_config("plant-7", &order, 2), 3);
        w.run_for(S(3));
        assert_eq!(connected(&w, g), 1);
        let c = w.client(a).unwrap();
        w.write(a, c, vec![1; 10]);
        w.run_for(S(90));
        assert_eq!(count(&w, g, |r| matches!(r, Observed::FewerHubs { .. })), 1);
        w.write(a, c, vec![2; 10]);
        w.run_for(S(1));
        assert_eq!(w.sock(a, c).received.len(), 20, "the dials in vain left the tunnel alone");
        w.aliases.clear();
        // The longest back-off and a dial.
        w.run_for(S(32));
        assert_eq!(connected(&w, g), 2, "{order:?}");
        for hub in [a, b] {
            assert_eq!(w.as_hub(hub).control().tunnels().count(), 1, "{order:?}");
        }
        w.write(a, c, vec![3; 10]);
        w.run_for(S(1));
        assert_eq!((w.sock(a, c).received.len(), w.sock(a, c).aborted), (30, None), "{order:?}");
    }
}

/// Dials in vain keep to the back-off (L8).
#[test]
fn an_address_that_always_leads_to_the_same_hub_is_dialled_at_the_slowest_pace() {
    let mut w = World::new();
    alias(&mut w, "alias", "hub-a");
    let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
    let g = w.agent(agent_config("plant-7", &["hub-a", "alias"], 2), 3);
    w.run_for(S(200));
    let refused = |w: &World| {
        count(
            w,
            a,
            |r| matches!(r, Observed::HandshakeFailed { cause, .. } if *cause == nowconnect_core::error::CloseCode::Duplicate),
        )
    };
    let before = refused(&w);
    assert!(before > 0);
    w.run_for(S(300));
    // One address in back-off (at least 21 s), and one asked at each refusal.
    let more = refused(&w) - before;
    assert!((2..=30).contains(&more), "{more} dials in 300 s");
    assert_eq!(connected(&w, g), 1);
}

/// Nor is the one with the tunnel dialled for each of the others (L8).
#[test]
fn of_many_addresses_of_one_hub_none_is_dialled_for_all_the_others() {
    let dials = |aliases: &[&str]| {
        let mut w = World::new();
        let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
        let addresses: Vec<&str> = aliases.iter().copied().chain(["hub-a"]).collect();
        let wanted = u16::try_from(addresses.len()).unwrap();
        // So that each has pauses of its own.
        let g = w.agent(agent_config("plant-7", &addresses, wanted), 3);
        w.run_for(S(5));
        aliases.iter().for_each(|from| alias(&mut w, from, "hub-a"));
        w.run_for(S(300));
        assert_eq!(connected(&w, g), 1);
        let duplicate = nowconnect_core::error::CloseCode::Duplicate;
        count(&w, a, |r| matches!(r, Observed::HandshakeFailed { cause, .. } if *cause == duplicate))
    };
    // Of two addresses each refusal of one is followed by a question to the
    // other; of six, five are refused, and one question is asked for one of them.
    let (two, six) = (dials(&["alias"]), dials(&["b", "c", "d", "e", "f"]));
    assert!(two > 0 && six <= 4 * two, "{two} dials in vain with two addresses, {six} with six");
}

/// Two addresses that led crosswise: the tunnel to hub-b hangs on the address
/// of hub-a, so only asking that one again finds hub-a.
#[test]
fn a_tunnel_is_handed_on_when_the_address_it_came_from_leads_elsewhere() {
    for first in ["hub-a", "hub-b"] {
        let mut w = World::new();
        let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
        let b = w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
        // Whatever is dialled leads to `first`, by both addresses in turn.
        let (other, hub) = if first == "hub-a" { ("hub-b", a) } else { ("hub-a", b) };
        alias(&mut w, other, first);
        w.unreachable.push(("plant-7".to_owned(), first.to_owned()));
        let g = w.agent(agent_config("plant-7", &["hub-a", "hub-b"], 2), 3);
        w.unreachable.clear();
        // The other's back-off ends first in one of the two.
        w.run_for(S(20));
        assert_eq!(connected(&w, g), 1, "{first}");
        let c = w.client(hub).unwrap();
        w.write(hub, c, vec![1; 10]);
        w.run_for(S(1));
        w.aliases.clear();
        w.run_for(S(65));
        assert_eq!(connected(&w, g), 2, "{first}");
        for hub in [a, b] {
            assert_eq!(w.as_hub(hub).control().tunnels().count(), 1, "{first}");
        }
        // A handed-on tunnel resumes over its new address.
        w.cut(g, a);
        w.cut(g, b);
        w.run_for(S(5));
        w.write(hub, c, vec![2; 10]);
        w.run_for(S(1));
        assert_eq!((w.sock(hub, c).received.len(), w.sock(hub, c).aborted), (20, None), "{first}");
        assert_eq!(connected(&w, g), 2, "{first}");
    }
}

/// The hubs die in turn, each soon after it is back: an agent that has lost its
/// only tunnel does not wait out the pauses that the other hub's absence made.
#[test]
fn an_agent_without_a_tunnel_is_not_kept_by_the_pauses_of_before() {
    for secs in [2, 4, 7, 11, 16, 23, 33] {
        let mut w = World::new();
        let hub = |w: &mut World, ix: usize, seed| {
            let (own, other) = [("hub-a", "hub-b"), ("hub-b", "hub-a")][ix];
            w.hub(hub_config(own, Mode::Active, &[other]), seed)
        };
        let mut hubs = [hub(&mut w, 0, 1), hub(&mut w, 1, 2)];
        w.agent(agent_config("plant-7", &["hub-a", "hub-b"], 1), 3);
        w.run_for(S(5));
        w.target = Target::Accept;
        let tunnels = |w: &World, n: usize| w.as_hub(n).control().tunnels().count();
        let mut holds = usize::from(tunnels(&w, hubs[0]) == 0);
        for round in 0..6 {
            // A stream stands, so that the session is dialled for as long as it lasts.
            w.client(hubs[holds]).unwrap();
            w.run_for(Duration::from_millis(20));
            w.crash(hubs[holds]);
            let survivor = hubs[1 - holds];
            let began = w.now;
            let attached = w.run_until(S(60), |w| w.as_hub(survivor).control().tunnels().count() == 1);
            let took = w.now.since(began);
            assert!(
                attached && took < Duration::from_millis(1300),
                "{secs} s apart, kill {round}: attached after {took:?}"
            );
            w.run_for(S(secs));
            hubs[holds] = hub(&mut w, holds, 100 + round);
            // Its hub has hardly come back when the other one goes.
            w.run_for(Duration::from_millis(50 * (round + 1)));
            holds = 1 - holds;
        }
    }
}

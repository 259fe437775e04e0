//! Whole nodes against each other: hubs, mesh, agent, registry.

mod drain;
mod endings;
mod ownership;
mod reclaim;
mod recovery;
mod split;
mod world;

use std::time::Duration;

use endings::{
    a_lost_session_aborts_and_never_shows_an_end, a_refused_target_resets_the_client,
    a_target_that_never_answers_is_given_up_in_time, an_abort_on_either_side_is_an_abort_on_the_other,
};
use nowconnect_core::config::{DrainTimes, Mode};
use nowconnect_core::error::{CloseCode, RstCode};
use nowconnect_core::id::Name;
use nowconnect_core::link::State;
use nowconnect_core::mux::Input;
use nowconnect_core::observed::Observed;
use nowconnect_core::wire::Codec;
use world::{Target, World, agent_config, hub_config, two_hubs};

const CODECS: [Codec; 2] = [Codec::BinaryV2, Codec::JsonV1];

fn payload(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[test]
fn an_echo_travels_locally_and_across_hubs_in_both_encodings() {
    for codec in CODECS {
        let (mut w, a, b, _) = two_hubs(codec);
        for hub in [a, b] {
            for len in [0usize, 1, 4095, 65_536, 65_537, 1 << 20] {
                let c = w.client(hub).unwrap();
                let data = payload(len);
                w.write(hub, c, data.clone());
                w.eof(hub, c);
                let done = w.run_until(Duration::from_secs(20), |w| w.sock(hub, c).closed);
                assert!(done, "{codec:?} hub {hub} len {len}: {:?}", w.sock(hub, c).aborted);
                assert_eq!(w.sock(hub, c).received, data, "{codec:?} {len}");
                assert!(w.sock(hub, c).eof_received);
            }
        }
        w.run_for(Duration::from_secs(1));
        for n in [a, b] {
            assert_eq!(w.as_hub(n).streams(), 0);
            assert_eq!(w.as_hub(n).mux().budget().held(), 0);
        }
    }
}

#[test]
fn a_cut_tunnel_or_link_loses_no_stream() {
    for codec in CODECS {
        let (mut w, a, b, g) = two_hubs(codec);
        let mut clients = Vec::new();
        for i in 0..16 {
            let hub = if i % 2 == 0 { a } else { b };
            let c = w.client(hub).unwrap();
            let data = payload(300_000 + i);
            w.write(hub, c, data.clone());
            w.eof(hub, c);
            clients.push((hub, c, data));
        }
        for round in 0..6 {
            // Messages are on the way when the connection dies.
            for _ in 0..20 {
                w.deliver = false;
                w.run_for(Duration::from_millis(1));
                w.deliver = true;
            }
            if round % 2 == 0 {
                w.cut(a, g)
            } else {
                w.cut(a, b)
            }
            w.run_for(Duration::from_millis(300));
        }
        for (hub, c, data) in clients {
            let done =
                w.run_until(Duration::from_secs(60), |w| w.sock(hub, c).closed || w.sock(hub, c).aborted.is_some());
            assert!(done);
            assert_eq!(w.sock(hub, c).aborted, None);
            assert!(w.sock(hub, c).received == data);
        }
    }
}

#[test]
fn a_peer_whose_message_is_still_arriving_is_not_given_up() {
    let suspended = |w: &World, n| w.as_hub(n).mux().totals.map(|t| t.suspended);
    for codec in CODECS {
        let (mut w, a, b, g) = two_hubs(codec);
        w.deliver = false;
        for _ in 0..40 {
            w.dribble();
            w.run_for(Duration::from_secs(1));
        }
        assert_eq!((suspended(&w, a), suspended(&w, b)), ([0, 0], [0, 0]), "{codec:?}");
        assert_eq!(w.as_agent(g).mux().totals[0].suspended, 0, "{codec:?}");
        // It stops in the middle.
        w.run_for(Duration::from_secs(11));
        assert_eq!((suspended(&w, a), suspended(&w, b)), ([1, 1], [0, 1]), "{codec:?}: tunnel, link");
        w.deliver = true;
        w.dribble();
        w.run_for(Duration::from_secs(20));
        assert_eq!(w.as_agent(g).mux().len(), 1, "{codec:?}: it is back");
    }
}

#[test]
fn a_reader_that_stalls_holds_one_window_and_is_served_later() {
    let (mut w, _, b, g) = two_hubs(Codec::BinaryV2);
    w.target = Target::Accept;
    let c = w.client(b).unwrap();
    w.sock(b, c).stalled = true;
    w.run_for(Duration::from_millis(10));
    let t = w.targets(g)[0];
    let data = payload(3 << 20);
    w.write(g, t, data.clone());
    w.eof(g, t);
    w.run_for(Duration::from_secs(5));
    let got = w.sock(b, c).received.len();
    assert!(got <= 65_536, "a window, not more: {got}");
    w.unstall(b, c);
    let done = w.run_until(Duration::from_secs(10), |w| w.sock(b, c).eof_received);
    assert!(done);
    assert!(w.sock(b, c).received == data);
}

#[test]
fn without_a_registry_clients_of_the_agents_own_hub_are_served() {
    let mut w = World::new();
    w.registry_down = true;
    let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
    let b = w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
    w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(Duration::from_secs(4));
    let c = w.client(a).unwrap();
    w.write(a, c, vec![1, 2, 3]);
    w.eof(a, c);
    w.run_for(Duration::from_millis(10));
    assert_eq!(w.sock(a, c).received, [1, 2, 3]);
    let c = w.client(b).unwrap();
    w.run_for(Duration::from_millis(1));
    assert_eq!(w.sock(b, c).aborted, Some(RstCode::RegistryDown));
}

#[test]
fn parallel_tunnels_go_to_distinct_hubs_and_both_serve() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
    let b = w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
    let g = w.agent(agent_config("plant-7", &["hub-a", "hub-b"], 2), 3);
    w.run_for(Duration::from_secs(4));
    assert_eq!(w.as_agent(g).mux().len(), 2);
    for hub in [a, b] {
        let c = w.client(hub).unwrap();
        w.write(hub, c, vec![9; 1000]);
        w.eof(hub, c);
        w.run_for(Duration::from_millis(10));
        assert_eq!(w.sock(hub, c).received, vec![9; 1000]);
        assert_eq!(w.as_hub(hub).counters().opened_local, [1], "over its own tunnel");
    }
}

#[test]
fn the_agent_moves_when_its_hub_dies_and_is_found_there() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
    let b = w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
    w.agent(agent_config("plant-7", &["hub-a", "hub-b"], 1), 3);
    w.run_for(Duration::from_secs(4));
    assert_eq!(w.as_hub(a).control().tunnels().count(), 1);
    w.crash(a);
    w.run_for(Duration::from_secs(2));
    let c = w.client(b).unwrap();
    w.write(b, c, vec![5; 10]);
    w.eof(b, c);
    w.run_for(Duration::from_millis(10));
    assert_eq!(w.sock(b, c).received, vec![5; 10]);
}

#[test]
fn shadow_and_off_serve_locally_and_send_nothing_across() {
    for mode in [Mode::Off, Mode::Shadow] {
        let mut w = World::new();
        let a = w.hub(hub_config("hub-a", mode, &["hub-b"]), 1);
        let b = w.hub(hub_config("hub-b", mode, &["hub-a"]), 2);
        w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
        w.run_for(Duration::from_secs(4));
        let c = w.client(a).unwrap();
        w.write(a, c, vec![5; 10]);
        w.eof(a, c);
        w.run_for(Duration::from_millis(10));
        assert_eq!(w.sock(a, c).received, vec![5; 10], "{mode:?}");
        let c = w.client(b).unwrap();
        w.run_for(Duration::from_millis(1));
        assert_eq!(w.sock(b, c).aborted, Some(RstCode::NoRoute), "{mode:?}");
    }
}

#[test]
fn the_same_seeds_make_the_same_world() {
    let run = || {
        let (mut w, _, b, _) = two_hubs(Codec::BinaryV2);
        for i in 0..5 {
            let c = w.client(b).unwrap();
            w.write(b, c, payload(10_000 * i));
            w.eof(b, c);
            w.run_for(Duration::from_millis(7));
        }
        w.run_for(Duration::from_secs(1));
        w.nodes.iter().map(|n| format!("{:?}", n.records)).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

/// One echo through a hub; what came back, or why not.
fn echo(w: &mut World, hub: usize, n: usize) -> Result<(), Option<RstCode>> {
    let c = w.client(hub).map_err(Some)?;
    let data = payload(n);
    w.write(hub, c, data.clone());
    w.eof(hub, c);
    w.run_until(Duration::from_secs(15), |w| w.sock(hub, c).closed || w.sock(hub, c).aborted.is_some());
    if w.sock(hub, c).aborted.is_some() || w.sock(hub, c).received != data {
        return Err(w.sock(hub, c).aborted);
    }
    Ok(())
}

fn count(w: &World, n: usize, of: impl Fn(&Observed) -> bool) -> usize {
    w.nodes[n].records.iter().filter(|r| of(r)).count()
}

#[test]
fn a_client_that_waits_for_a_lookup_is_opened_by_its_answer() {
    let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
    // Hub b learned nothing yet of an agent that attaches this very moment.
    w.cut(a, 2);
    w.crash(2);
    w.run_for(Duration::from_secs(45));
    assert_eq!(w.as_hub(a).control().tunnels().count(), 0);
    w.registry_held = true;
    let g = w.agent(agent_config("plant-8", &["hub-a"], 1), 9);
    w.run_for(Duration::from_millis(10));
    let c = w.client(b).unwrap();
    w.write(b, c, vec![3; 3]);
    w.eof(b, c);
    w.run_for(Duration::from_millis(50));
    assert!(w.sock(b, c).aborted.is_none() && w.sock(b, c).received.is_empty(), "it waits");
    w.registry_held = false;
    w.run_for(Duration::from_millis(50));
    assert_eq!(w.as_agent(g).mux().len(), 1);
    assert_eq!((w.sock(b, c).aborted, w.sock(b, c).received.clone()), (None, vec![3; 3]));
}

#[test]
fn a_client_that_waits_is_opened_when_the_agent_attaches_here() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
    w.run_for(Duration::from_secs(1));
    w.registry_held = true;
    let c = w.client(a).unwrap();
    w.write(a, c, vec![4; 4]);
    w.eof(a, c);
    // Its lookup is asked before the agent is claimed, however long notes take.
    w.run_for(Duration::from_millis(1));
    w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(Duration::from_millis(20));
    assert!(w.sock(a, c).aborted.is_none());
    w.release_registry_backwards();
    w.run_for(Duration::from_millis(20));
    assert_eq!((w.sock(a, c).aborted, w.sock(a, c).received.clone()), (None, vec![4; 4]));
}

#[test]
fn of_two_simultaneous_dials_one_session_is_left_whoever_is_lower_and_whatever_is_configured() {
    for (first, second) in [("hub-a", "hub-b"), ("hub-b", "hub-a")] {
        for configured in [false, true] {
            for delay in 0..6 {
                let mut w = World::new();
                let config = |me: &str, other: &str| {
                    let mut c = hub_config(me, Mode::Active, &[other]);
                    c.peers[0].replica_id = configured.then(|| world::name(other));
                    c
                };
                let x = w.hub(config(first, second), 1);
                for _ in 0..delay {
                    w.step();
                }
                let y = w.hub(config(second, first), 2);
                w.run_for(Duration::from_secs(5));
                for n in [x, y] {
                    assert_eq!(w.as_hub(n).mux().len(), 1, "{first} {configured} {delay}");
                    let views = w.as_hub(n).control().links(w.as_hub(n).mux());
                    assert_eq!(views.len(), 1, "{first} {configured} {delay}: {views:?}");
                }
                // The link rests: nobody dials, nothing is established again.
                let before = [x, y].map(|n| count(&w, n, |r| matches!(r, Observed::SessionUp { .. })));
                w.run_for(Duration::from_secs(60));
                let after = [x, y].map(|n| count(&w, n, |r| matches!(r, Observed::SessionUp { .. })));
                assert_eq!(before, after, "{first} {configured} {delay}");
            }
        }
    }
}

/// The refusal of the dial that is not needed may overtake the news of the one
/// that survives, so that its dialler goes on dialling for a while. A link that
/// breaks in that time is resumed all the same, and not replaced: its streams live.
#[test]
fn a_link_that_breaks_after_two_simultaneous_dials_is_resumed() {
    let held = |w: &World, n: usize| -> Vec<_> {
        w.as_hub(n).mux().iter().map(|(_, e)| (e.session.id(), e.conn.is_some())).collect()
    };
    for (first, second) in [("hub-a", "hub-b"), ("hub-b", "hub-a")] {
        for delay in 0..6 {
            for seed in 2..8 {
                let mut w = World::new();
                let x = w.hub(hub_config(first, Mode::Active, &[second]), 1);
                for _ in 0..delay {
                    w.step();
                }
                let y = w.hub(hub_config(second, Mode::Active, &[first]), seed);
                let at = format!("{first} {delay} {seed}");
                assert!(
                    w.run_until(Duration::from_secs(5), |w| {
                        let (x, y) = (held(w, x), held(w, y));
                        x == y && x.len() == 1 && x[0].1
                    }),
                    "{at}: linked"
                );
                let before = held(&w, x);
                w.cut(x, y);
                w.run_for(Duration::from_secs(5));
                assert_eq!([held(&w, x), held(&w, y)], [before.clone(), before], "{at}");
            }
        }
    }
}

#[test]
fn a_hub_among_its_own_peers_is_dropped_once() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-a", "hub-b"]), 1);
    let b = w.hub(hub_config("hub-b", Mode::Active, &["hub-b", "hub-a"]), 2);
    w.run_for(Duration::from_secs(60));
    for n in [a, b] {
        assert_eq!(count(&w, n, |r| matches!(r, Observed::PeerIsSelf { .. })), 1);
        assert_eq!(w.as_hub(n).mux().len(), 1);
    }
}

/// Both peers of a hub dialled it first, and their dials survive: it hears
/// DUPLICATE from both and cannot tell them apart. It is whole all the same, and
/// dials both again when one of the links is over (L4, L8).
#[test]
fn a_hub_dialled_by_two_peers_first_knows_both_as_linked_and_rests() {
    let mut w = World::new();
    let [a, b] = [("hub-a", 1), ("hub-b", 2)].map(|(h, seed)| w.hub(hub_config(h, Mode::Active, &["hub-c"]), seed));
    let c = w.hub(hub_config("hub-c", Mode::Active, &[]), 3);
    w.run_for(Duration::from_secs(5));
    w.reload_hub(c, &hub_config("hub-c", Mode::Active, &["hub-a", "hub-b"])).unwrap();
    w.run_for(Duration::from_secs(5));
    let shown = |w: &World| {
        let links = w.as_hub(c).control().links(w.as_hub(c).mux());
        links.iter().map(|l| (l.replica.unwrap().as_str().to_owned(), l.configured, l.state)).collect::<Vec<_>>()
    };
    let both = ["hub-a", "hub-b"].map(|h| (h.to_owned(), true, State::Established));
    assert_eq!(shown(&w), both);
    let dials = |w: &World| [a, b].map(|n| count(w, n, |r| matches!(r, Observed::HandshakeFailed { .. })));
    let before = dials(&w);
    w.run_for(Duration::from_secs(60));
    assert!(w.as_hub(c).mesh_healthy(w.now));
    assert_eq!(dials(&w), before, "nobody dials in vain");

    w.crash(a);
    w.run_for(Duration::from_secs(60));
    let view = w.as_hub(c).control().links(w.as_hub(c).mux());
    let replicas: Vec<_> = view.iter().map(|l| (l.replica.map(Name::as_str), l.state == State::Established)).collect();
    assert_eq!(replicas, [(None, false), (Some("hub-b"), true)], "who is left is known by its answer");
    assert!(!w.as_hub(c).mesh_healthy(w.now));
}

#[test]
fn one_replica_behind_two_addresses_gets_one_tunnel_and_no_flapping() {
    for order in [["hub-a", "alias"], ["alias", "hub-a"]] {
        let mut w = World::new();
        w.aliases.push(("alias".into(), "hub-a".into()));
        let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
        let g = w.agent(agent_config("plant-7", &order, 2), 3);
        w.run_for(Duration::from_secs(3));
        assert_eq!(count(&w, g, |r| matches!(r, Observed::FewerHubs { .. })), 1);
        let ups = count(&w, a, |r| matches!(r, Observed::Attached { .. }));
        w.run_for(Duration::from_secs(120));
        assert_eq!(count(&w, a, |r| matches!(r, Observed::Attached { .. })), ups, "no flapping");
        assert!(ups <= 3, "{ups}");
        assert_eq!((w.as_agent(g).mux().len(), w.as_hub(a).mux().len()), (1, 1));
        assert_eq!(echo(&mut w, a, 1000), Ok(()));
        // Its end lets both addresses be tried again.
        w.cut(a, g);
        w.run_for(Duration::from_secs(60));
        assert_eq!(echo(&mut w, a, 1000), Ok(()));
    }
}

#[test]
fn a_second_instance_supersedes_the_first_at_another_hub() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
    let b = w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
    w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(Duration::from_secs(3));
    w.unreachable.push(("plant-7".into(), "hub-a".into()));
    w.agent(agent_config("plant-7", &["hub-b"], 1), 4);
    w.run_for(Duration::from_millis(100));
    assert_eq!(w.as_hub(a).control().tunnels().count(), 0, "superseded");
    assert_eq!(count(&w, a, |r| matches!(r, Observed::SessionLost { cause: CloseCode::Superseded, .. })), 1);
    assert_eq!(w.as_hub(b).control().tunnels().count(), 1);
    for hub in [a, b] {
        assert_eq!(echo(&mut w, hub, 1000), Ok(()), "{hub}");
    }
}

#[test]
fn after_a_registry_outage_cross_hub_clients_are_served_again_and_nothing_spins() {
    let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
    w.registry_fails_at_once = true;
    let steps = w.timeouts;
    w.run_for(Duration::from_secs(30));
    assert!(w.timeouts - steps < 3_000, "no busy loop (B9): {}", w.timeouts - steps);
    assert_eq!(echo(&mut w, a, 1000), Ok(()), "local service goes on (M4)");
    w.registry_fails_at_once = false;
    w.run_for(Duration::from_secs(2));
    assert_eq!(echo(&mut w, b, 1000), Ok(()));
    w.registry_down = true;
    w.run_for(Duration::from_secs(3));
    w.registry_down = false;
    w.run_for(Duration::from_secs(3));
    for hub in [a, b] {
        assert_eq!(echo(&mut w, hub, 1000), Ok(()), "{hub}");
    }
}

#[test]
fn a_hub_whose_lease_is_over_carries_no_stream_of_another() {
    let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
    // Only hub a is cut off from the registry.
    w.registry_deaf.push(a);
    w.run_for(Duration::from_secs(11));
    assert_eq!(echo(&mut w, a, 10), Ok(()), "its own clients are served");
    let carried = w.as_hub(a).counters().carried;
    let _ = echo(&mut w, b, 10);
    assert_eq!(w.as_hub(a).counters().carried, carried, "O7");
    w.registry_deaf.clear();
    w.run_for(Duration::from_secs(3));
    assert_eq!(echo(&mut w, b, 10), Ok(()));
}

#[test]
fn a_newer_run_of_a_replica_takes_its_lease_once_and_the_older_fences_itself() {
    let mut w = World::new();
    let old = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
    w.run_for(Duration::from_secs(2));
    let new = w.hub(hub_config("hub-a", Mode::Active, &[]), 2);
    let steps = w.timeouts;
    w.run_for(Duration::from_secs(20));
    assert!(w.timeouts - steps < 2_000, "no busy loop: {}", w.timeouts - steps);
    assert!(count(&w, old, |r| matches!(r, Observed::LeaseHeldByOther)) > 0);
    assert_eq!(count(&w, new, |r| matches!(r, Observed::LeaseHeldByOther)), 0);
}

#[test]
fn a_hub_that_restarts_refuses_the_resumption_and_the_agent_starts_anew() {
    for codec in CODECS {
        let (mut w, a, b, g) = two_hubs(codec);
        w.target = Target::Accept;
        let c = w.client(b).unwrap();
        w.run_for(Duration::from_millis(10));
        let t = w.targets(g)[0];
        w.crash(a);
        let a2 = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 77);
        w.target = Target::Echo;
        w.run_for(Duration::from_secs(6));
        assert_eq!(w.sock(g, t).aborted, Some(RstCode::Lost), "the old session is lost definitely");
        assert_eq!(w.sock(b, c).aborted, Some(RstCode::Lost));
        for hub in [a2, b] {
            assert_eq!(echo(&mut w, hub, 5000), Ok(()), "{codec:?} {hub}");
        }
    }
}

#[test]
fn a_draining_hub_finishes_its_streams_and_says_when() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
    let b = w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
    let g = w.agent(agent_config("plant-7", &["hub-a", "hub-b"], 1), 3);
    w.run_for(Duration::from_secs(3));
    w.target = Target::Accept;
    let c = w.client(a).unwrap();
    w.run_for(Duration::from_millis(10));
    let t = w.targets(g)[0];
    w.input(a, Input::Drain(DrainTimes::at_once(Duration::from_secs(60))));
    w.run_for(Duration::from_secs(2));
    assert!(!w.drained(a));
    assert_eq!(w.client(a).err(), Some(RstCode::Draining));
    assert_eq!(w.as_hub(b).control().tunnels().count(), 1, "the agent moved");
    w.write(a, c, vec![1; 10]);
    w.eof(a, c);
    w.eof(g, t);
    w.run_for(Duration::from_millis(100));
    assert!(w.sock(a, c).closed);
    assert_eq!(w.sock(g, t).received, vec![1; 10]);
    assert!(w.drained(a));
    w.target = Target::Echo;
    assert_eq!(echo(&mut w, b, 100), Ok(()));
}

#[test]
fn a_draining_agent_withdraws_and_finishes() {
    let (mut w, a, b, g) = two_hubs(Codec::BinaryV2);
    w.target = Target::Accept;
    let c = w.client(b).unwrap();
    w.run_for(Duration::from_millis(10));
    let t = w.targets(g)[0];
    w.input(g, Input::Drain(DrainTimes::at_once(Duration::from_secs(60))));
    w.run_for(Duration::from_secs(3));
    for hub in [a, b] {
        assert_eq!(echo(&mut w, hub, 1), Err(Some(RstCode::NoRoute)), "hub {hub}");
    }
    assert!(!w.drained(g));
    w.eof(b, c);
    w.eof(g, t);
    w.run_for(Duration::from_millis(100));
    assert!(w.sock(b, c).closed && w.drained(g));
    // Leaving: a cut tunnel is not brought back.
    w.input(g, Input::Shutdown);
    w.run_for(Duration::from_secs(60));
    assert_eq!((w.as_agent(g).mux().len(), w.as_hub(a).control().tunnels().count()), (0, 0));
}

#[test]
fn a_full_hub_resumes_what_it_has_and_refuses_what_is_new() {
    let mut w = World::new();
    let mut config = hub_config("hub-a", Mode::Off, &[]);
    config.limits.max_sessions = 1;
    let a = w.hub(config, 1);
    let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(Duration::from_secs(2));
    w.agent(agent_config("plant-8", &["hub-a"], 1), 4);
    let c = w.client(a).unwrap();
    w.cut(a, g);
    w.run_for(Duration::from_secs(5));
    assert_eq!(w.as_hub(a).mux().len(), 1);
    assert_eq!(w.sock(a, c).aborted, None);
    assert_eq!(count(&w, a, |r| matches!(r, Observed::SessionResumed { .. })), 1);
}

#[test]
fn an_agent_that_leaves_while_it_is_claimed_leaves_nothing_in_the_registry() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
    w.run_for(Duration::from_secs(1));
    w.registry_held = true;
    let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(Duration::from_millis(10));
    w.crash(g);
    w.registry_held = false;
    w.run_for(Duration::from_millis(10));
    assert_eq!(w.as_hub(a).control().tunnels().count(), 0);
    assert_eq!(w.located("ldap"), 0);
}

#[test]
fn windows_of_hub_and_agent_may_differ_widely() {
    for (hub_window, agent_window) in [(2 << 10, 256 << 10), (256 << 10, 2 << 10)] {
        let mut w = World::new();
        let config = |me: &str, other: &str| {
            let mut c = hub_config(me, Mode::Active, &[other]);
            c.limits.stream_window_initial_bytes = hub_window;
            c
        };
        let a = w.hub(config("hub-a", "hub-b"), 1);
        let b = w.hub(config("hub-b", "hub-a"), 2);
        let mut agent = agent_config("plant-7", &["hub-a"], 1);
        agent.limits.stream_window_initial_bytes = agent_window;
        w.agent(agent, 3);
        w.run_for(Duration::from_secs(3));
        for hub in [a, b] {
            assert_eq!(echo(&mut w, hub, 600_000), Ok(()), "{hub_window} {agent_window} hub {hub}");
        }
    }
}

/// I4: an expired token ends what may be opened, not what is open; the next
/// token of the same session counts at once.
#[test]
fn an_expired_token_takes_no_new_streams_until_the_agent_brings_another() {
    let mut w = World::new();
    w.target = Target::Accept;
    let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
    let b = w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
    // Between two lookups of hub B.
    let expires = w.now.after(Duration::from_millis(10_300));
    w.token_expires = Some(expires);
    let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(Duration::from_secs(3));
    let open = [a, b].map(|hub| (hub, w.client(hub).unwrap()));
    w.run_for(Duration::from_millis(10));
    let targets = w.targets(g);
    assert_eq!(targets.len(), 2);

    w.run_for(expires.since(w.now));
    // Hub B does not know yet; the owner refuses.
    let c = w.client(b).unwrap();
    w.run_for(Duration::from_millis(1));
    assert_eq!(w.sock(b, c).aborted, Some(RstCode::Denied));
    w.run_for(Duration::from_secs(3));
    for hub in [a, b] {
        let c = w.client(hub).unwrap();
        w.run_for(Duration::from_millis(10));
        assert_eq!(w.sock(hub, c).aborted, Some(RstCode::NoRoute), "hub {hub}");
    }
    let told = |w: &World| w.nodes[a].records.iter().filter(|r| matches!(r, Observed::TokenExpired { .. })).count();
    assert_eq!(told(&w), 1);
    for (n, (hub, c)) in open.into_iter().enumerate() {
        w.write(hub, c, vec![5; 1000]);
        w.run_for(Duration::from_millis(10));
        assert_eq!(w.sock(hub, c).aborted, None);
        assert_eq!(w.sock(g, targets[n]).received, vec![5; 1000], "open streams go on");
    }

    // The connection breaks, the session is resumed with a fresh token.
    w.token_expires = Some(w.now.after(Duration::from_secs(3600)));
    w.cut(a, g);
    w.run_for(Duration::from_secs(4));
    for hub in [a, b] {
        let c = w.client(hub).unwrap();
        w.run_for(Duration::from_millis(10));
        assert_eq!(w.sock(hub, c).aborted, None, "hub {hub}");
    }
    assert_eq!(w.targets(g).len(), 4);
    assert_eq!(told(&w), 1);
    for (hub, c) in open {
        assert_eq!(w.sock(hub, c).aborted, None, "the session was resumed, not replaced");
    }
}

//! Another configuration at run time: modes, limits, listeners, peers,
//! connectors. What is open goes on as it was (M1, M3), what is new follows the
//! new configuration, and what is refused changes nothing (M7).

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests; everything unexpected is one case")]

mod world;

use std::time::Duration;

use nowconnect_core::config::{ConnectorConfig, DrainTimes, HubConfig, ListenerConfig, Mode, OpenRule, PeerConfig};
use nowconnect_core::error::RstCode;
use nowconnect_core::hub::ReloadError;
use nowconnect_core::id::{ListenerIx, SockKey};
use nowconnect_core::observed::Observed;
use nowconnect_core::wire::{Codec, FRAME_KINDS};
use world::notes::{Form, Pace, in_form};
use world::{World, agent_config, hub_config, name, two_hubs};

const S: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;

fn in_forms(scenario: fn()) {
    for form in [Form::Whole, Form::Split(1, Pace::AtOnce), Form::Split(2, Pace::Drawn(7)), Form::Split(4, Pace::Late)]
    {
        let run = std::panic::catch_unwind(|| in_form(form, scenario));
        run.unwrap_or_else(|_| panic!("{form:?}: the scenario fails as said above"));
    }
}

/// Ten more bytes go there and back.
fn echoes(w: &mut World, hub: usize, c: SockKey) {
    let before = w.sock(hub, c).received.len();
    w.write(hub, c, vec![before as u8; 10]);
    let done = w.run_until(S(5), |w| w.sock(hub, c).received.len() == before + 10);
    assert!(done, "aborted: {:?}", w.sock(hub, c).aborted);
}

fn refused(w: &mut World, hub: usize) -> RstCode {
    match w.client(hub) {
        Err(code) => code,
        Ok(c) => {
            assert!(w.run_until(S(15), |w| w.sock(hub, c).aborted.is_some()), "the client is refused");
            w.sock(hub, c).aborted.unwrap()
        }
    }
}

fn opens(w: &mut World, hub: usize) -> SockKey {
    let c = w.client(hub).expect("no limit refuses it");
    echoes(w, hub, c);
    c
}

fn config(w: &World, n: usize) -> HubConfig {
    w.as_hub(n).control().config().clone()
}

fn flip(w: &mut World, n: usize, mode: Mode) {
    let config = HubConfig { mode, ..config(w, n) };
    w.reload_hub(n, &config).unwrap();
    w.run_for(MS(1));
    assert_eq!(w.as_hub(n).mode(), mode);
}

fn path(w: &World, n: usize) -> Vec<(bool, RstCode)> {
    let ended = |r: &Observed| match r {
        Observed::Stream(s) => match s.cause {
            nowconnect_core::observed::Cause::Reset(code) => Some((s.local, code)),
            nowconnect_core::observed::Cause::Finished => None,
        },
        _ => None,
    };
    w.nodes[n].records.iter().filter_map(ended).collect()
}

/// Frames on links, sent and received.
fn mesh_frames(w: &World, n: usize) -> u64 {
    let mux = w.as_hub(n).mux();
    let retired: u64 = {
        let (i, o) = &mux.retired()[1];
        i.iter().chain(o).sum()
    };
    let live = mux.iter().filter(|(_, e)| e.plane == nowconnect_core::wire::Plane::Mesh);
    retired
        + live
            .map(|(_, e)| e.session.counters().frames_in.iter().chain(&e.session.counters().frames_out).sum::<u64>())
            .sum::<u64>()
}

#[test]
fn a_flip_leaves_open_streams_where_they_are_and_routes_new_ones_by_the_new_mode() {
    in_forms(|| {
        let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
        for flipped in [b, a] {
            for through in [Mode::Shadow, Mode::Off] {
                let (local, cross) = (opens(&mut w, a), opens(&mut w, b));
                flip(&mut w, flipped, through);
                echoes(&mut w, a, local);
                echoes(&mut w, b, cross);
                assert_eq!(refused(&mut w, b), RstCode::NoRoute, "{flipped} {through:?}");
                let again = opens(&mut w, a);
                // Longer than any lease, lookup or back-off.
                w.run_for(S(40));
                for (hub, c) in [(a, local), (b, cross), (a, again)] {
                    echoes(&mut w, hub, c);
                    w.eof(hub, c);
                }
                w.run_for(S(1));
                for (hub, c) in [(a, local), (b, cross), (a, again)] {
                    assert!(w.sock(hub, c).closed, "{:?}", w.sock(hub, c).aborted);
                }
                if through == Mode::Off {
                    let before = mesh_frames(&w, flipped);
                    w.run_for(S(40));
                    assert_eq!(mesh_frames(&w, flipped), before, "M1");
                    assert_eq!(
                        w.as_hub(flipped)
                            .control()
                            .links(w.as_hub(flipped).mux())
                            .iter()
                            .filter(|l| l.session.is_some())
                            .count(),
                        0
                    );
                }
                flip(&mut w, flipped, Mode::Active);
                w.run_for(S(35));
                let cross = opens(&mut w, b);
                w.eof(b, cross);
                w.run_for(S(1));
            }
        }
        for hub in [a, b] {
            assert_eq!(w.as_hub(hub).streams(), 0);
            assert!(path(&w, hub).iter().all(|(_, code)| *code == RstCode::NoRoute), "{:?}", path(&w, hub));
        }
    });
}

#[test]
fn a_link_that_is_kept_for_its_streams_survives_cuts_in_off() {
    in_forms(|| {
        let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
        for off in [a, b] {
            let cross = opens(&mut w, b);
            flip(&mut w, off, Mode::Off);
            for _ in 0..3 {
                w.cut(a, b);
                w.run_for(S(2));
                echoes(&mut w, b, cross);
            }
            w.eof(b, cross);
            w.run_for(S(2));
            assert!(w.sock(b, cross).closed);
            assert_eq!(
                w.as_hub(off).mux().iter().filter(|(_, e)| e.plane == nowconnect_core::wire::Plane::Mesh).count(),
                0
            );
            flip(&mut w, off, Mode::Active);
            w.run_for(S(35));
        }
    });
}

#[test]
fn going_active_claims_what_is_attached_with_the_epoch_it_has() {
    in_forms(|| {
        let mut w = World::new();
        let a = w.hub(hub_config("hub-a", Mode::Off, &["hub-b"]), 1);
        let b = w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
        let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
        w.run_for(S(3));
        assert_eq!(w.located("ldap"), 0);
        assert_eq!(w.as_hub(a).mux().iter().filter(|(_, e)| e.plane == nowconnect_core::wire::Plane::Mesh).count(), 0);
        let open = opens(&mut w, a);
        let local = w.as_agent(g).tunnels().highest_epoch();
        for mode in [Mode::Shadow, Mode::Active] {
            flip(&mut w, a, mode);
            w.run_for(S(35));
            assert_eq!(w.located("ldap"), 1);
            let claimed = w.as_hub(a).control().tunnels().next().unwrap();
            assert!(claimed.firm && claimed.fence.epoch > local);
            assert_eq!(w.as_agent(g).tunnels().highest_epoch(), claimed.fence.epoch, "the agent has heard");
            echoes(&mut w, a, open);
            if mode == Mode::Shadow {
                assert_eq!(refused(&mut w, b), RstCode::NoRoute, "a hub in shadow is no candidate");
            }
        }
        opens(&mut w, b);
        flip(&mut w, a, Mode::Off);
        w.run_for(MS(10));
        assert_eq!(w.located("ldap"), 0, "released");
        echoes(&mut w, a, open);
        assert_eq!(w.as_hub(a).mux().totals[0].lost, 0, "the tunnel lives through all of it");
    });
}

#[test]
fn in_off_the_registry_is_not_asked_whatever_was_under_way() {
    in_forms(|| {
        let (mut w, a, b, g) = two_hubs(Codec::BinaryV2);
        w.registry_held = true;
        let waits = w.client(b).unwrap();
        // A claim is under way as well.
        w.cut(a, g);
        w.crash(g);
        let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 9);
        w.run_for(MS(50));
        for hub in [a, b] {
            flip(&mut w, hub, Mode::Off);
        }
        w.release_registry_backwards();
        w.run_for(S(1));
        assert!(w.sock(b, waits).aborted.is_some());
        let asked = |w: &World| w.nodes.iter().map(|n| n.out.registry.len()).sum::<usize>();
        w.registry_held = true;
        w.run_for(S(60));
        assert_eq!((asked(&w), w.registry_waiting()), (0, 0), "M1");
        assert!(w.as_agent(g).mux().iter().any(|(_, e)| e.conn.is_some()));
        opens(&mut w, a);
    });
}

#[test]
fn twenty_flips_under_load_lose_nothing() {
    in_forms(|| {
        let (mut w, a, b, g) = two_hubs(Codec::BinaryV2);
        let open: Vec<(usize, SockKey)> = [a, b, a, b].into_iter().map(|hub| (hub, opens(&mut w, hub))).collect();
        for _ in 0..20 {
            for mode in [Mode::Off, Mode::Shadow, Mode::Active, Mode::Shadow] {
                for hub in [a, b] {
                    flip(&mut w, hub, mode);
                    for (hub, c) in &open {
                        w.write(*hub, *c, vec![1; 1000]);
                    }
                    w.run_for(MS(7));
                }
            }
        }
        for hub in [a, b] {
            flip(&mut w, hub, Mode::Active);
        }
        for (hub, c) in &open {
            let done = w.run_until(S(20), |w| w.sock(*hub, *c).received.len() == 10 + 20 * 8 * 1000);
            assert!(done, "{:?}", w.sock(*hub, *c).aborted);
        }
        w.run_for(S(35));
        opens(&mut w, b);
        assert_eq!(w.as_agent(g).mux().totals[0].lost, 0);
        assert_eq!(w.located("ldap"), 1);
    });
}

#[test]
fn a_limit_lowered_below_its_use_refuses_the_new_and_keeps_the_old() {
    in_forms(|| {
        let (mut w, a, _, _) = two_hubs(Codec::BinaryV2);
        let open: Vec<SockKey> = (0..6).map(|_| opens(&mut w, a)).collect();
        let mut lower = config(&w, a);
        lower.listeners[0].max_connections = 3;
        w.reload_hub(a, &lower).unwrap();
        w.run_for(MS(1));
        assert_eq!(w.client(a), Err(RstCode::Busy));
        for (left, c) in open.iter().enumerate() {
            echoes(&mut w, a, *c);
            if left < 4 {
                w.eof(a, *c);
                w.run_for(MS(100));
                assert_eq!(w.client(a).is_ok(), left == 3, "{left} have left");
            }
        }
        lower.listeners[0].max_connections = 10_000;
        lower.limits.max_streams = 2;
        lower.limits.max_sessions = 1;
        lower.limits.send_queue_depth = 16;
        lower.limits.inflight_bytes = 1 << 18;
        lower.limits.tombstones = 1;
        lower.limits.stream_window_max_bytes = 64 << 10;
        w.reload_hub(a, &lower).unwrap();
        w.run_for(MS(1));
        assert_eq!(w.client(a), Err(RstCode::Busy));
        let big = vec![7; 1 << 20];
        w.write(a, open[5], big.clone());
        let done = w.run_until(S(20), |w| w.sock(a, open[5]).received.len() >= big.len());
        assert!(done);
        lower.limits.max_streams = 100;
        w.reload_hub(a, &lower).unwrap();
        w.run_for(MS(1));
        opens(&mut w, a);
    });
}

#[test]
fn a_budget_lowered_below_what_is_held_resets_nobody() {
    in_forms(|| {
        let (mut w, a, _, _) = two_hubs(Codec::BinaryV2);
        let c = opens(&mut w, a);
        // The client does not read: the hub holds what the target echoes.
        w.sock(a, c).stalled = true;
        w.write(a, c, vec![3; 200_000]);
        w.run_for(S(1));
        let held = w.as_hub(a).mux().budget().held();
        assert!(held > 60_000, "{held}");
        let mut lower = config(&w, a);
        let before = lower.limits.memory_budget_bytes;
        lower.limits.memory_budget_bytes = held / 2;
        w.reload_hub(a, &lower).unwrap();
        w.run_for(S(5));
        assert_eq!(w.client(a), Err(RstCode::Budget));
        assert_eq!(w.as_hub(a).counters().budget_resets, 0);
        w.unstall(a, c);
        let done = w.run_until(S(10), |w| w.sock(a, c).received.len() == 200_010);
        assert!(done, "{:?}", w.sock(a, c).aborted);
        lower.limits.memory_budget_bytes = before;
        w.reload_hub(a, &lower).unwrap();
        w.run_for(MS(1));
        opens(&mut w, a);
    });
}

#[test]
fn listeners_come_go_and_change_while_their_streams_go_on() {
    in_forms(|| {
        let (mut w, a, b, g) = two_hubs(Codec::BinaryV2);
        let old = opens(&mut w, b);
        let mut agent = agent_config("plant-7", &["hub-a"], 1);
        agent.connectors.push(ConnectorConfig {
            name: name("ssh"),
            target: "s".into(),
            priority: 0,
            weight: 1,
            health: None,
        });
        w.reload_agent(g, &agent).unwrap();
        let listener = |l: &str, c: &str, max_connections| ListenerConfig {
            name: name(l),
            connector: name(c),
            open: OpenRule::Eager,
            max_connections,
        };
        let mut new =
            HubConfig { listeners: vec![listener("l1", "ssh", 2), listener("l2", "ldap", 5)], ..config(&w, b) };
        w.reload_hub(b, &new).unwrap();
        w.run_for(MS(1));
        assert_eq!(w.as_hub(b).listener(&listener("l1", "ldap", 1)), None, "its place takes nobody");
        assert_eq!(w.client(b), Err(RstCode::Busy));
        let place = |w: &World, l, c| w.as_hub(b).listener(&listener(l, c, 1)).unwrap();
        assert_eq!((place(&w, "l1", "ssh"), place(&w, "l2", "ldap")), (ListenerIx(1), ListenerIx(2)));
        let ssh = w.client_at(b, ListenerIx(1)).unwrap();
        echoes(&mut w, b, ssh);
        assert_eq!(w.client_at(b, ListenerIx(1)), Err(RstCode::Busy), "two clients of l1, whatever they want");
        let second = w.client_at(b, ListenerIx(2)).unwrap();
        echoes(&mut w, b, second);
        echoes(&mut w, b, old);
        // Back again: every listener where it was.
        new.listeners = vec![listener("l1", "ldap", 7)];
        w.reload_hub(b, &new).unwrap();
        w.run_for(MS(1));
        assert_eq!(place(&w, "l1", "ldap"), ListenerIx(0));
        let third = w.client(b).unwrap();
        for c in [old, ssh, second, third] {
            echoes(&mut w, b, c);
        }
        let _ = a;
    });
}

#[test]
fn a_removed_peer_is_used_up_and_an_added_one_is_dialled() {
    in_forms(|| {
        let mut w = World::new();
        let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
        let b = w.hub(hub_config("hub-b", Mode::Active, &[]), 2);
        w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
        w.run_for(S(3));
        assert_eq!(refused(&mut w, b), RstCode::NoRoute);
        let alone = config(&w, b);
        let peer = PeerConfig { url: "hub-a".into(), replica_id: None, host: None };
        let mut with_peer = alone.clone();
        with_peer.peers.push(peer);
        for _ in 0..3 {
            w.reload_hub(b, &with_peer).unwrap();
            w.run_for(S(3));
            let cross = opens(&mut w, b);
            w.reload_hub(b, &alone).unwrap();
            w.run_for(S(3));
            echoes(&mut w, b, cross);
            assert_eq!(refused(&mut w, b), RstCode::NoRoute, "no new stream over it");
            echoes(&mut w, b, cross);
            w.eof(b, cross);
            w.run_for(S(1));
            assert!(w.sock(b, cross).closed);
            assert_eq!((w.as_hub(a).mux().len(), w.as_hub(b).mux().len()), (1, 0), "the tunnel alone is left");
        }
        assert_eq!(config(&w, b).peers.len(), 1, "it keeps its place");
        // With a stream that does not end.
        w.reload_hub(b, &with_peer).unwrap();
        w.run_for(S(3));
        let cross = opens(&mut w, b);
        w.reload_hub(b, &alone).unwrap();
        w.run_for(S(59));
        echoes(&mut w, b, cross);
        w.run_for(S(2));
        assert_eq!(w.sock(b, cross).aborted, Some(RstCode::Lost));
        assert_eq!(w.as_hub(b).mux().len(), 0);
    });
}

#[test]
fn totals_of_links_outlive_their_peers() {
    in_forms(|| {
        let mut w = World::new();
        let a = w.hub(hub_config("hub-a", Mode::Active, &["nobody", "hub-b"]), 1);
        let b = w.hub(hub_config("hub-b", Mode::Active, &[]), 2);
        w.run_for(S(3));
        let urls = |w: &World| {
            let hub = w.as_hub(a);
            hub.control().links(hub.mux()).iter().map(|l| l.url.map(str::to_owned)).collect::<Vec<_>>()
        };
        assert_eq!(urls(&w), [Some("nobody".to_owned()), Some("hub-b".to_owned())], "shown before a name is known");
        let hub = w.as_hub(b);
        assert_eq!(hub.control().links(hub.mux())[0].url, None, "it was dialled");
        let before = w.as_hub(a).control().link_totals();
        assert!(before.errors > 0);
        let mut alone = config(&w, a);
        alone.peers.clear();
        w.reload_hub(a, &alone).unwrap();
        w.run_for(S(3));
        assert_eq!(urls(&w), []);
        assert!(w.as_hub(a).control().link_totals().errors >= before.errors);
    });
}

#[test]
fn a_handshake_that_fails_names_the_dial() {
    in_forms(|| {
        let mut w = World::new();
        let mut other = hub_config("hub-a", Mode::Active, &["nobody", "hub-b"]);
        other.namespace = name("another");
        let a = w.hub(other, 1);
        let b = w.hub(hub_config("hub-b", Mode::Active, &[]), 2);
        w.run_for(S(3));
        let at = |w: &World, hub: usize, dialled: Option<u16>| {
            let of = |r: &&Observed| matches!(r, Observed::HandshakeFailed { target, .. } if *target == dialled);
            w.nodes[hub].records.iter().filter(of).count()
        };
        assert!(at(&w, a, Some(1)) > 0 && at(&w, a, None) == 0);
        assert!(at(&w, b, None) > 0, "whom it did not dial, it cannot name");
    });
}

#[test]
fn an_agent_moves_to_other_hubs_and_its_streams_end_where_they_are() {
    in_forms(|| {
        let (mut w, a, b, g) = two_hubs(Codec::BinaryV2);
        let open = opens(&mut w, a);
        w.reload_agent(g, &agent_config("plant-7", &["hub-b"], 1)).unwrap();
        w.run_for(S(3));
        let at = |w: &World, hub: usize| w.as_hub(hub).control().tunnels().count();
        assert_eq!((at(&w, a), at(&w, b)), (1, 1), "the old tunnel carries what it carries");
        let crossing = opens(&mut w, a);
        let carried = w.as_hub(b).counters().carried;
        assert_eq!(carried, 1, "new streams go to the new hub");
        echoes(&mut w, a, open);
        w.eof(a, open);
        w.run_for(S(1));
        assert!(w.sock(a, open).closed);
        assert_eq!((at(&w, a), at(&w, b)), (0, 1));
        assert_eq!(w.located("ldap"), 1);
        echoes(&mut w, a, crossing);
        // A hub that cannot be reached: the old one serves on, until its time is over.
        w.reload_agent(g, &agent_config("plant-7", &["nowhere"], 1)).unwrap();
        w.run_for(S(30));
        opens(&mut w, a);
        w.reload_agent(g, &agent_config("plant-7", &["hub-b"], 1)).unwrap();
        w.run_for(S(60));
        assert_eq!((at(&w, a), at(&w, b)), (0, 1), "taken back in time");
        echoes(&mut w, a, crossing);
    });
}

#[test]
fn parallel_goes_up_and_down() {
    in_forms(|| {
        let (mut w, a, b, g) = two_hubs(Codec::BinaryV2);
        for parallel in [2, 1, 2, 1] {
            w.reload_agent(g, &agent_config("plant-7", &["hub-a", "hub-b"], parallel)).unwrap();
            w.run_for(S(5));
            let at = [a, b].map(|hub| w.as_hub(hub).control().tunnels().count());
            assert_eq!(at.iter().sum::<usize>(), usize::from(parallel));
            opens(&mut w, a);
        }
    });
}

#[test]
fn connectors_come_and_go_on_a_live_tunnel() {
    in_forms(|| {
        let (mut w, a, b, g) = two_hubs(Codec::BinaryV2);
        let open = [opens(&mut w, a), opens(&mut w, b)];
        let mut none = agent_config("plant-7", &["hub-a"], 1);
        let all = none.clone();
        none.connectors[0].name = name("other");
        for _ in 0..3 {
            w.reload_agent(g, &none).unwrap();
            // The other hub has what it looked up a moment ago: a definite no.
            let early = w.client(b).unwrap();
            w.run_for(S(3));
            assert!(
                matches!(w.sock(b, early).aborted, Some(RstCode::NoRoute | RstCode::Draining)),
                "{:?}",
                w.sock(b, early).aborted
            );
            for hub in [a, b] {
                assert_eq!(refused(&mut w, hub), RstCode::NoRoute);
            }
            w.reload_agent(g, &all).unwrap();
            w.run_for(S(3));
            for hub in [a, b] {
                opens(&mut w, hub);
            }
        }
        echoes(&mut w, a, open[0]);
        echoes(&mut w, b, open[1]);
        assert_eq!(w.as_agent(g).mux().totals[0].lost, 0);
        // While the tunnel is away, and while one is being made.
        w.unreachable.push(("plant-7".into(), "hub-a".into()));
        w.cut(a, g);
        w.run_for(S(2));
        w.reload_agent(g, &none).unwrap();
        w.unreachable.clear();
        w.run_for(S(5));
        assert_eq!(refused(&mut w, a), RstCode::NoRoute);
        echoes(&mut w, a, open[0]);
    });
}

#[test]
fn what_cannot_change_is_refused_and_nothing_else_is_taken() {
    let (mut w, a, _, g) = two_hubs(Codec::BinaryV2);
    let before = config(&w, a);
    let mut wrong = HubConfig { mode: Mode::Off, listeners: Vec::new(), ..before.clone() };
    for (expected, change) in [
        (ReloadError::ReplicaId, (|c: &mut HubConfig| c.replica_id = name("hub-x")) as fn(&mut HubConfig)),
        (ReloadError::Namespace, |c| c.namespace = name("other")),
        (ReloadError::InitialWindow, |c| c.limits.stream_window_initial_bytes += 1),
    ] {
        let mut config = wrong.clone();
        change(&mut config);
        assert_eq!(w.reload_hub(a, &config), Err(expected));
    }
    assert_eq!(config(&w, a), before);
    opens(&mut w, a);
    let mut agent = agent_config("plant-8", &["hub-b"], 1);
    assert!(w.reload_agent(g, &agent).is_err());
    agent.agent_id = w.as_agent(g).tunnels().config().agent_id.clone();
    agent.limits.stream_window_initial_bytes = 1;
    assert!(w.reload_agent(g, &agent).is_err());
    opens(&mut w, a);
    wrong.peers.clear();
    w.input(a, nowconnect_core::mux::Input::Drain(DrainTimes::at_once(Duration::from_secs(60))));
    assert_eq!(w.reload_hub(a, &wrong), Err(ReloadError::Leaving));
    assert!(FRAME_KINDS.len() > 1);
}

#[test]
fn a_token_without_scope_loses_what_it_exposes_when_the_key_that_allowed_it_goes() {
    in_forms(|| {
        let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
        let open = opens(&mut w, b);
        let strict = HubConfig { insecure_allow_unscoped: false, ..config(&w, a) };
        w.reload_hub(a, &strict).unwrap();
        w.run_for(S(3));
        for hub in [a, b] {
            assert!(matches!(refused(&mut w, hub), RstCode::NoRoute | RstCode::Denied));
        }
        echoes(&mut w, b, open);
    });
}

#[test]
fn a_shorter_lease_and_time_out_count_from_what_was_asked() {
    let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
    let mut other = config(&w, a);
    other.registry.lease = S(100);
    other.registry.op_timeout = MS(200);
    other.registry.renew_every = MS(500);
    w.registry_held = true;
    w.run_for(S(1));
    // A renewal for the lease before is under way.
    w.reload_hub(a, &other).unwrap();
    w.registry_held = false;
    w.run_for(MS(1));
    w.registry_deaf.push(a);
    w.run_for(S(12));
    let c = w.client(b).unwrap();
    w.run_for(S(1));
    assert!(w.sock(b, c).aborted.is_some(), "the lease that was granted is over (O7)");
}

//! Whole nodes against each other: hubs, mesh, agent, registry.

mod world;

use std::time::Duration;

use nowconnect_core::config::Mode;
use nowconnect_core::error::RstCode;
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
            assert_eq!(w.as_hub(n).shard().streams(), 0);
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
fn a_refused_target_resets_the_client() {
    let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
    w.target = Target::Refuse;
    for hub in [a, b] {
        let c = w.client(hub).unwrap();
        w.run_for(Duration::from_millis(1));
        assert_eq!(w.sock(hub, c).aborted, Some(RstCode::Refused), "hub {hub}");
    }
}

#[test]
fn a_target_that_never_answers_is_given_up_in_time() {
    let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
    w.target = Target::Hang;
    for hub in [a, b] {
        let c = w.client(hub).unwrap();
        w.run_for(Duration::from_secs(2));
        assert_eq!(w.sock(hub, c).aborted, Some(RstCode::TargetTimeout), "hub {hub}");
    }
}

#[test]
fn an_abort_on_either_side_is_an_abort_on_the_other() {
    let (mut w, _, b, g) = two_hubs(Codec::BinaryV2);
    w.target = Target::Accept;
    let c = w.client(b).unwrap();
    w.run_for(Duration::from_millis(10));
    let t = w.targets(g)[0];
    w.abort(b, c);
    w.run_for(Duration::from_millis(10));
    assert_eq!(w.sock(g, t).aborted, Some(RstCode::Abort));

    let c = w.client(b).unwrap();
    w.run_for(Duration::from_millis(10));
    let t = *w.targets(g).last().unwrap();
    w.abort(g, t);
    w.run_for(Duration::from_millis(10));
    assert_eq!(w.sock(b, c).aborted, Some(RstCode::Abort));
}

#[test]
fn a_lost_session_aborts_and_never_shows_an_end() {
    let (mut w, a, _, g) = two_hubs(Codec::BinaryV2);
    w.target = Target::Accept;
    let c = w.client(a).unwrap();
    w.run_for(Duration::from_millis(10));
    let t = w.targets(g)[0];
    w.write(a, c, vec![7; 10]);
    w.run_for(Duration::from_millis(10));
    w.crash(a);
    w.run_for(Duration::from_secs(31));
    assert_eq!(w.sock(g, t).aborted, Some(RstCode::Lost));
    assert!(!w.sock(g, t).eof_received);
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
        assert_eq!(w.as_hub(hub).shard().counters().opened_local, [1], "over its own tunnel");
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

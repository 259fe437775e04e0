//! How a stream ends that does not end by itself: refused, given up, aborted
//! (S5) or lost (S2); and that nothing of it stays behind (B5).

#![allow(clippy::unwrap_used, reason = "a client of a test is accepted unless the test says otherwise")]

use std::time::Duration;

use nowconnect_core::config::Mode;
use nowconnect_core::error::RstCode;
use nowconnect_core::id::SockKey;
use nowconnect_core::mux::Mux;
use nowconnect_core::wire::{Codec, FRAME_KINDS};

use crate::split::in_every_form;
use crate::world::{Target, World, agent_config, hub_config, two_hubs};

#[test]
pub(crate) fn a_refused_target_resets_the_client() {
    let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
    w.target = Target::Refuse;
    for hub in [a, b] {
        let c = w.client(hub).unwrap();
        w.run_for(Duration::from_millis(1));
        assert_eq!(w.sock(hub, c).aborted, Some(RstCode::Refused), "hub {hub}");
    }
}

#[test]
pub(crate) fn a_target_that_never_answers_is_given_up_in_time() {
    let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
    w.target = Target::Hang;
    for hub in [a, b] {
        let c = w.client(hub).unwrap();
        w.run_for(Duration::from_secs(2));
        assert_eq!(w.sock(hub, c).aborted, Some(RstCode::TargetTimeout), "hub {hub}");
    }
}

#[test]
pub(crate) fn an_abort_on_either_side_is_an_abort_on_the_other() {
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
pub(crate) fn a_lost_session_aborts_and_never_shows_an_end() {
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

/// DATA frames that went out on the sessions of a node.
fn data_sent(mux: &Mux) -> u64 {
    let kind = FRAME_KINDS.iter().position(|k| *k == "DATA").unwrap();
    mux.iter().map(|(_, e)| e.session.counters().frames_out[kind]).sum()
}

/// As [`two_hubs`]; of what `narrow` sends one frame at a time is in flight.
fn two_hubs_and(narrow: &str) -> (World, usize, usize, usize) {
    let mut w = World::new();
    w.target = Target::Accept;
    let inflight = |name: &str| if name == narrow { 1 } else { 8 << 20 };
    let hub = |me, peer| {
        let mut c = hub_config(me, Mode::Active, &[peer]);
        c.limits.inflight_bytes = inflight(me);
        c
    };
    let a = w.hub(hub("hub-a", "hub-b"), 1);
    let b = w.hub(hub("hub-b", "hub-a"), 2);
    let mut agent = agent_config("plant-7", &["hub-a"], 1);
    agent.limits.inflight_bytes = inflight("plant-7");
    let g = w.agent(agent, 3);
    w.run_for(Duration::from_secs(3));
    (w, a, b, g)
}

/// Eight clients of a hub whose targets have sent a window of data each, of
/// which next to nothing has left the agent.
fn downloading(w: &mut World, hub: usize, agent: usize) -> Vec<SockKey> {
    let clients: Vec<SockKey> = (0..8).map(|_| w.client(hub).unwrap()).collect();
    w.run_for(Duration::from_millis(50));
    w.deliver = false;
    for t in w.targets(agent) {
        w.write(agent, t, vec![7; 64 << 10]);
    }
    w.run_for(Duration::from_millis(50));
    clients
}

/// A client that gives its download up frees what waits for it at the agent:
/// the tunnel carries no window that nobody reads (B5; seed 1576 at L1, where
/// 51 MB of broken downloads held new clients up for ten minutes).
#[test]
fn what_waits_for_a_client_that_is_gone_is_not_sent() {
    in_every_form(|| {
        for across in [false, true] {
            let (mut w, a, b, g) = two_hubs_and("plant-7");
            let hub = if across { b } else { a };
            for client in downloading(&mut w, hub, g) {
                w.abort(hub, client);
            }
            w.deliver = true;
            w.run_for(Duration::from_secs(1));
            let mux = w.as_agent(g).mux();
            // Those that go while the RSTs are on their way.
            assert!(data_sent(mux) <= 8, "{} of 32 frames were sent to nobody", data_sent(mux));
            assert_eq!(mux.budget().held(), 0);
        }
    });
}

/// The same where a hub stands between: what waits there for the other hub.
#[test]
fn what_waits_at_a_hub_for_a_client_that_is_gone_is_not_sent() {
    in_every_form(|| {
        let (mut w, a, b, g) = two_hubs_and("hub-a");
        let clients: Vec<SockKey> = (0..8).map(|_| w.client(b).unwrap()).collect();
        w.run_for(Duration::from_millis(50));
        // An acknowledgement takes its time on the link; on the tunnel it does not.
        w.distances.push((["hub-a".to_owned(), "hub-b".to_owned()], Duration::from_millis(300)));
        for t in w.targets(g) {
            w.write(g, t, vec![7; 64 << 10]);
        }
        w.run_for(Duration::from_millis(100));
        let held = w.as_hub(a).mux().budget().held();
        assert!(held > 400_000, "only {held} bytes wait at hub a");
        let before = data_sent(w.as_hub(a).mux());
        for client in clients {
            w.abort(b, client);
        }
        w.run_for(Duration::from_secs(1));
        let mux = w.as_hub(a).mux();
        assert!(data_sent(mux) <= before + 1, "{} frames after {before} were sent to nobody", data_sent(mux));
        assert_eq!(mux.budget().held(), 0);
    });
}

/// What was sent ahead of an answer that was no: the rest of it stays here, for
/// the next candidate (semantics 3).
#[test]
fn what_waits_for_a_target_that_refuses_is_not_sent() {
    in_every_form(|| {
        for across in [false, true] {
            let (mut w, a, b, _) = two_hubs_and(if across { "hub-b" } else { "hub-a" });
            w.target = Target::Refuse;
            let hub = if across { b } else { a };
            for _ in 0..8 {
                let client = w.client(hub).unwrap();
                w.write(hub, client, vec![7; 64 << 10]);
            }
            w.run_for(Duration::from_secs(1));
            let mux = w.as_hub(hub).mux();
            assert!(data_sent(mux) <= 8, "{} of 32 frames were sent to nobody", data_sent(mux));
            assert_eq!(mux.budget().held(), 0);
        }
    });
}

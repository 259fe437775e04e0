//! Limits and times of the configuration that no other test needs: each with
//! two values, so that a value which is read and not applied fails here.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use nowconnect_core::config::{Mode, OpenRule, PeerConfig};
use nowconnect_core::error::{CloseCode, RstCode};
use nowconnect_core::hub::Hub;
use nowconnect_core::id::{ConnKey, ListenerIx};
use nowconnect_core::mux::{Input, NodeOut};
use nowconnect_core::principal::{AgentGrant, Principal};
use nowconnect_core::registry::{MemoryRegistry, RegistryOp};
use nowconnect_core::rng::Seed;
use nowconnect_core::session::TxBatch;
use nowconnect_core::time::Instant;
use nowconnect_core::wire::{Codec, Dialect, Frame, Plane, WireLimits, decode};
use world::{Target, World, agent_config, hub_config};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// `limits.max_handshakes`: the one beyond is told BUSY and closed.
#[test]
fn so_many_handshakes_at_once_and_no_more() {
    for most in [1, 3] {
        let mut config = hub_config("hub-a", Mode::Off, &[]);
        config.limits.max_handshakes = most;
        let (now, mut out) = (Instant::from_nanos(1), NodeOut::default());
        let mut hub = Hub::new(Arc::new(config), Seed::from_u64(1), now, &mut out);
        let dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Tunnel };
        for ix in 0..=most {
            assert!(out.close.is_empty(), "{ix} of {most}");
            let principal = Principal::Agent(AgentGrant { subject: "a".to_owned(), connectors: None, expires: None });
            let conn = ConnKey { ix, generation: 0 };
            hub.handle(now, Input::Accepted { conn, dialect, principal }, &mut out);
        }
        let closed: Vec<u32> = out.close.iter().map(|(conn, _)| conn.ix).collect();
        assert_eq!(closed, [most]);
        let mut batch = TxBatch::default();
        hub.poll_transmit(now, ConnKey { ix: most, generation: 0 }, usize::MAX, &mut batch, &mut out);
        let mut frames = Vec::new();
        for message in &batch.messages {
            decode(dialect, &message.to_bytes(), &WireLimits::ESTABLISHED, &mut frames).unwrap();
        }
        assert!(matches!(frames[..], [Frame::GoAway { code: CloseCode::Busy, .. }]), "{frames:?}");
    }
}

/// `handshake_timeout`: who says nothing is closed after it.
#[test]
fn a_handshake_may_take_so_long() {
    for most in [700, 9000] {
        let mut config = hub_config("hub-a", Mode::Off, &[]);
        config.handshake_timeout = ms(most);
        let (start, mut out) = (Instant::from_nanos(1), NodeOut::default());
        let mut hub = Hub::new(Arc::new(config), Seed::from_u64(1), start, &mut out);
        let dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Tunnel };
        let principal = Principal::Agent(AgentGrant { subject: "a".to_owned(), connectors: None, expires: None });
        let conn = ConnKey { ix: 1, generation: 0 };
        hub.handle(start, Input::Accepted { conn, dialect, principal }, &mut out);
        while out.close.is_empty() {
            let due = hub.poll_timeout().unwrap().at;
            hub.handle_timeout(due, &mut out);
            assert!(out.close.is_empty() || due.since(start) == ms(most), "closed after {:?}", due.since(start));
        }
    }
}

/// `open.attempt_timeout`: a candidate that says nothing for so long may have
/// connected its target, so the client is told and nobody else is asked (S6).
#[test]
fn a_candidate_has_so_long_to_answer() {
    for attempt in [400, 3000] {
        let mut w = World::new();
        w.target = Target::Hang;
        let mut config = hub_config("hub-a", Mode::Off, &[]);
        config.open.attempt_timeout = ms(attempt);
        let a = w.hub(config, 1);
        let mut config = agent_config("plant-7", &["hub-a"], 1);
        config.target_timeout = ms(60_000);
        w.agent(config, 2);
        w.run_for(ms(1000));
        let c = w.client(a).unwrap();
        w.run_for(ms(attempt - 1));
        assert_eq!(w.sock(a, c).aborted, None, "before {attempt} ms");
        w.run_for(ms(2));
        assert_eq!(w.sock(a, c).aborted, Some(RstCode::Timeout), "after {attempt} ms");
    }
}

/// `open.first_byte_wait`: a client that says nothing is opened after it.
#[test]
fn a_silent_client_is_opened_after_the_wait() {
    for wait in [200, 3000] {
        let mut w = World::new();
        w.target = Target::Accept;
        let mut config = hub_config("hub-a", Mode::Off, &[]);
        config.listeners[0].open = OpenRule::FirstByte;
        config.open.first_byte_wait = ms(wait);
        let a = w.hub(config, 1);
        let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 2);
        w.run_for(ms(1000));
        w.client(a).unwrap();
        w.run_for(ms(wait - 1));
        assert_eq!(w.targets(g), [], "before {wait} ms");
        w.run_for(ms(2));
        assert_eq!(w.targets(g).len(), 1, "after {wait} ms");
    }
}

/// `limits.max_pending_opens`: at an origin and at an owner (B7).
#[test]
fn so_many_opens_wait_for_an_answer_and_no_more() {
    for most in [2, 5] {
        for across in [false, true] {
            let mut w = World::new();
            w.target = Target::Hang;
            let mut a = hub_config("hub-a", Mode::Active, &[]);
            let mut b = hub_config("hub-b", Mode::Active, &["hub-a"]);
            // Of one hub it is the owner's that holds, of the other the origin's.
            a.limits.max_pending_opens = most;
            if !across {
                b.peers = Vec::<PeerConfig>::new();
            }
            let a = w.hub(a, 1);
            let b = w.hub(b, 2);
            w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
            w.run_for(ms(3000));
            let from = if across { b } else { a };
            let clients: Vec<_> = (0..most + 3).map(|_| w.client(from).unwrap()).collect();
            w.run_for(ms(100));
            let code = |w: &mut World, c| w.sock(from, c).aborted;
            let codes: Vec<Option<RstCode>> = clients.into_iter().map(|c| code(&mut w, c)).collect();
            let waiting = codes.iter().filter(|c| c.is_none()).count();
            assert_eq!(waiting, most as usize, "across hubs: {across}, {codes:?}");
        }
    }
}

/// `registry.lookup_fresh`: how often a listener's connector is looked up.
#[test]
fn a_connector_is_looked_up_as_often_as_it_grows_old() {
    let asked = |fresh| {
        let mut config = hub_config("hub-a", Mode::Active, &[]);
        config.registry.lookup_fresh = ms(fresh);
        let (start, mut out) = (Instant::from_nanos(1), NodeOut::default());
        let mut hub = Hub::new(Arc::new(config), Seed::from_u64(1), start, &mut out);
        let (mut now, mut lookups) = (start, 0);
        let mut registry = MemoryRegistry::default();
        loop {
            while let Some((token, op)) = out.registry.pop() {
                lookups += u32::from(matches!(op, RegistryOp::Lookup { .. }));
                let result = registry.execute(now.as_nanos() / 1_000_000 + 1, &op);
                hub.handle(now, Input::Registry { token, result }, &mut out);
            }
            let due = hub.poll_timeout().unwrap().at;
            if due.since(start) > ms(20_000) {
                return lookups;
            }
            now = now.max(due);
            hub.handle_timeout(now, &mut out);
        }
    };
    let (often, seldom) = (asked(500), asked(4000));
    assert!((35..=45).contains(&often), "{often} in 20 s, one each 500 ms");
    // With a renewal of the lease, from half that age on.
    assert!((5..=12).contains(&seldom), "{seldom} in 20 s, one each 2 to 4 s");
}

/// `backoff.max_while_streams_wait` of an agent: a stream that waits for its
/// tunnel makes the dials come sooner.
#[test]
fn an_agent_dials_sooner_while_streams_wait() {
    let dials = |most| {
        let mut w = World::new();
        w.target = Target::Accept;
        let a = w.hub(hub_config("hub-a", Mode::Off, &[]), 1);
        let mut config = agent_config("plant-7", &["hub-a"], 1);
        config.backoff.initial = ms(4000);
        config.backoff.max_while_streams_wait = ms(most);
        config.resume_window = Duration::from_secs(300);
        let g = w.agent(config, 2);
        w.run_for(ms(5000));
        w.client_at(a, ListenerIx(0)).unwrap();
        w.run_for(ms(10));
        assert_eq!(w.targets(g).len(), 1);
        w.unreachable.push(("plant-7".to_owned(), "hub-a".to_owned()));
        w.cut(a, g);
        let before = w.dials;
        w.run_for(Duration::from_secs(20));
        w.dials - before
    };
    let (eager, patient) = (dials(500), dials(4000));
    assert!(eager >= 38, "{eager} dials in 20 s, at most 500 ms apart");
    assert!(patient <= 8, "{patient} dials in 20 s, at least 2.8 s apart");
}

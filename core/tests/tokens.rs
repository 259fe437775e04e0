//! Tokens of live tunnels: fresh ones in band, and what their end does
//! (semantics 8, I4, attack 25).

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod world;

use std::time::Duration;

use nowconnect_core::config::{Mode, OnExpiry};
use nowconnect_core::error::RstCode;
use nowconnect_core::mux::Input;
use nowconnect_core::observed::Observed;
use nowconnect_core::principal::AgentGrant;
use nowconnect_core::time::Instant;
use nowconnect_core::wire::{Codec, SecretText};
use world::{Target, World, agent_config, hub_config, name};

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// One hub, one agent whose token ends ten seconds after its start.
fn one(on_expiry: OnExpiry, codec: Codec) -> (World, usize, usize) {
    let mut w = World::new();
    w.codec = codec;
    w.target = Target::Accept;
    let mut config = hub_config("hub-a", Mode::Off, &[]);
    config.on_expiry = on_expiry;
    config.insecure_allow_unscoped = false;
    let a = w.hub(config, 1);
    w.token_expires = Some(w.now.after(secs(10)));
    w.token_connectors = Some(vec![name("ldap")]);
    let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(secs(2));
    (w, a, g)
}

fn grant(w: &World, subject: &str, connectors: &[&str], lasts: u64) -> Option<AgentGrant> {
    let connectors = Some(connectors.iter().map(|c| name(c)).collect());
    Some(AgentGrant { subject: subject.to_owned(), connectors, expires: Some(w.now.after(secs(lasts))) })
}

fn renew(w: &mut World, g: usize, verdict: Option<AgentGrant>) {
    w.judged.push_back(verdict);
    w.input(g, Input::Token { token: SecretText("fresh".to_owned()) });
    w.run_for(Duration::from_millis(100));
}

fn opens(w: &mut World, hub: usize) -> Result<(), RstCode> {
    let c = w.client(hub)?;
    w.run_for(Duration::from_millis(10));
    w.sock(hub, c).aborted.map_or(Ok(()), Err)
}

fn count(w: &World, n: usize, what: impl Fn(&Observed) -> bool) -> usize {
    w.nodes[n].records.iter().filter(|r| what(r)).count()
}

fn answers(w: &World, g: usize) -> Vec<bool> {
    let answer = |r: &Observed| match r {
        Observed::TokenAnswered { accepted, .. } => Some(*accepted),
        _ => None,
    };
    w.nodes[g].records.iter().filter_map(answer).collect()
}

#[test]
fn a_fresh_token_in_band_is_noticed_by_no_stream() {
    for codec in [Codec::JsonV1, Codec::BinaryV2] {
        let (mut w, a, g) = one(OnExpiry::Cut, codec);
        let c = w.client(a).unwrap();
        w.run_for(secs(5));
        let fresh = grant(&w, "plant-7", &["ldap"], 60);
        renew(&mut w, g, fresh);
        assert_eq!(answers(&w, g), [true]);
        w.run_for(secs(20));
        assert_eq!(opens(&mut w, a), Ok(()), "past the end of the first token");
        assert_eq!(w.sock(a, c).aborted, None);
        assert_eq!(count(&w, a, |r| matches!(r, Observed::TokenRenewed { .. })), 1);
        assert_eq!(count(&w, a, |r| matches!(r, Observed::TokenExpired { .. } | Observed::SessionSuspended { .. })), 0);
        // The second one runs out as well; there is no way back.
        w.unreachable.push(("plant-7".to_owned(), "hub-a".to_owned()));
        w.run_for(secs(60));
        assert_eq!(count(&w, a, |r| matches!(r, Observed::TokenExpired { .. })), 1);
    }
}

#[test]
fn a_token_that_is_refused_or_anothers_leaves_the_one_before() {
    let (mut w, a, g) = one(OnExpiry::Keep, Codec::BinaryV2);
    // `plant` covers replicas of plant-7 only in the form plant-7/x; a token of
    // another subject is never this tunnel's.
    let others = [None, grant(&w, "plant-8", &["ldap"], 60), grant(&w, "plant-7", &["ldap"], 0)];
    for verdict in others {
        renew(&mut w, g, verdict);
    }
    assert_eq!(answers(&w, g), [false, false, false]);
    assert_eq!(opens(&mut w, a), Ok(()), "the first token still counts");
    w.run_for(secs(10));
    assert_eq!(opens(&mut w, a), Err(RstCode::NoRoute), "and ends when it ends (I4)");
    assert_eq!(count(&w, a, |r| matches!(r, Observed::TokenRefused { .. })), 3);
    // Later than its end a fresh one still helps.
    let fresh = grant(&w, "plant-7", &["ldap"], 60);
    renew(&mut w, g, fresh);
    assert_eq!(opens(&mut w, a), Ok(()));
}

#[test]
fn a_narrower_token_counts_from_the_next_open() {
    let (mut w, a, g) = one(OnExpiry::Keep, Codec::BinaryV2);
    let c = w.client(a).unwrap();
    w.run_for(Duration::from_millis(10));
    let narrow = grant(&w, "plant-7", &["other"], 60);
    renew(&mut w, g, narrow);
    assert_eq!(answers(&w, g), [true]);
    assert_eq!(opens(&mut w, a), Err(RstCode::NoRoute));
    assert_eq!(w.sock(a, c).aborted, None, "what is open goes on");
}

/// A check of a target turns over under a narrower token: the agent tells all
/// it has, and keeps its tunnel.
#[test]
fn what_an_earlier_token_allowed_is_left_out_and_comes_back() {
    let (mut w, a, g) = one(OnExpiry::Keep, Codec::BinaryV2);
    let c = w.client(a).unwrap();
    w.run_for(Duration::from_millis(10));
    let narrow = grant(&w, "plant-7", &["other"], 60);
    renew(&mut w, g, narrow);
    let mut all = agent_config("plant-7", &["hub-a"], 1);
    let ldap = all.connectors.clone();
    for connectors in [Vec::new(), ldap] {
        all.connectors = connectors;
        assert_eq!(w.reload_agent(g, &all), Ok(()));
        w.run_for(Duration::from_millis(100));
        assert_eq!(opens(&mut w, a), Err(RstCode::NoRoute), "not in the token in force");
        assert_eq!(w.sock(a, c).aborted, None, "the tunnel lives");
    }
    let wide = grant(&w, "plant-7", &["ldap"], 60);
    renew(&mut w, g, wide);
    assert_eq!(opens(&mut w, a), Ok(()), "allowed again, and still advertised");
    // What no token of the tunnel ever named ends it.
    all.connectors.push(nowconnect_core::config::ConnectorConfig { name: name("admin"), ..all.connectors[0].clone() });
    assert_eq!(w.reload_agent(g, &all), Ok(()));
    w.run_for(Duration::from_millis(100));
    assert_eq!(w.sock(a, c).aborted, Some(RstCode::Lost));
}

#[test]
fn one_token_is_judged_at_a_time() {
    let (mut w, a, g) = one(OnExpiry::Keep, Codec::BinaryV2);
    for _ in 0..3 {
        w.input(g, Input::Token { token: SecretText("fresh".to_owned()) });
        w.run_for(Duration::from_millis(100));
    }
    assert_eq!(w.tokens.len(), 1, "the others are refused unseen");
    assert_eq!(answers(&w, g), [false, false]);
    let (n, session, token) = w.tokens.remove(0);
    assert_eq!((n, token.as_str()), (a, "fresh"));
    let fresh = grant(&w, "plant-7", &["ldap"], 60);
    w.input(n, Input::Judged { session, grant: fresh.clone() });
    w.run_for(Duration::from_millis(100));
    assert_eq!(answers(&w, g), [false, false, true]);
    // A verdict that nobody waits for changes nothing (C5).
    w.input(n, Input::Judged { session, grant: grant(&w, "plant-7", &[], 60) });
    w.run_for(Duration::from_millis(100));
    assert_eq!(opens(&mut w, a), Ok(()));
}

/// `auth.on_expiry`: what the end of a token does to what is open.
#[test]
fn the_end_of_a_token_drains_cuts_or_keeps() {
    for (rule, after_end, after_drain) in [
        (OnExpiry::Keep, None, None),
        (OnExpiry::Drain(secs(5)), None, Some(RstCode::Lost)),
        (OnExpiry::Cut, Some(RstCode::Lost), Some(RstCode::Lost)),
    ] {
        let (mut w, a, g) = one(rule, Codec::BinaryV2);
        // No way back: the agent's next tokens are as old.
        w.unreachable.push(("plant-7".to_owned(), "hub-a".to_owned()));
        let c = w.client(a).unwrap();
        let ends = Instant::from_nanos(1).after(secs(10));
        w.run_for(ends.since(w.now) + Duration::from_millis(50));
        assert_eq!(w.sock(a, c).aborted, after_end, "{rule:?}");
        assert!(opens(&mut w, a).is_err(), "{rule:?}: nothing new (I4)");
        if after_end.is_none() {
            w.write(a, c, vec![1; 100]);
            w.run_for(secs(1));
            let target = w.targets(g)[0];
            assert_eq!(w.sock(g, target).received, vec![1; 100], "{rule:?}");
        }
        w.run_for(secs(6));
        assert_eq!(w.sock(a, c).aborted, after_drain, "{rule:?}");
        assert_eq!(w.as_hub(a).mux().is_empty(), rule != OnExpiry::Keep, "{rule:?}");
    }
}

#[test]
fn a_fresh_token_stops_the_drain() {
    let (mut w, a, g) = one(OnExpiry::Drain(secs(5)), Codec::BinaryV2);
    let c = w.client(a).unwrap();
    w.run_for(secs(10));
    assert_eq!(opens(&mut w, a), Err(RstCode::NoRoute));
    let fresh = grant(&w, "plant-7", &["ldap"], 60);
    renew(&mut w, g, fresh);
    w.run_for(secs(10));
    assert_eq!(w.sock(a, c).aborted, None);
    assert_eq!(opens(&mut w, a), Ok(()));
    assert_eq!(count(&w, g, |r| matches!(r, Observed::SessionLost { .. })), 0);
}

/// What only a hub says of itself ends the session of an agent that says it
/// (PROTOCOL 5, `UNEXPECTED`).
#[test]
fn a_status_from_an_agent_ends_its_tunnel() {
    use nowconnect_core::error::{CloseCode, ProtocolErrorKind};
    use nowconnect_core::wire::{Dialect, Frame, Plane, Status, encode_message};
    for codec in [Codec::BinaryV2, Codec::JsonV1] {
        let (mut w, a, _) = one(OnExpiry::Keep, codec);
        let conn = w.as_hub(a).mux().iter().find_map(|(_, e)| e.conn).unwrap();
        let status = Status { registry_healthy: true, draining: false, active: true, initial_window: 1 };
        let message = encode_message(Dialect { codec, plane: Plane::Tunnel }, 1, &[Frame::Status(status)]);
        w.input(a, Input::Message { conn, message });
        w.settle();
        let breach = |r: &Observed| {
            matches!(r, Observed::ProtocolViolation { plane: Plane::Tunnel, kind: ProtocolErrorKind::Unexpected, .. })
        };
        assert_eq!(count(&w, a, breach), 1);
        let lost = |r: &Observed| matches!(r, Observed::SessionLost { cause: CloseCode::Protocol, .. });
        assert_eq!(count(&w, a, lost), 1);
    }
}

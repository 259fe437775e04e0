//! An agent against hubs that do what no honest hub does (the fuzz target
//! `agent_machine` found these).

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::config::{Backoff, ConnectorConfig, Limits, Liveness};
use crate::error::CloseCode;
use crate::id::{AgentId, Epoch, Name, Nonce, Secret, SessionId, TargetIx};
use crate::principal::HubGrant;
use crate::wire::{Attachment, Codec, Dialect, EpochNotice, Plane, Welcome, encode_message};

const V2: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Tunnel };
const CONN: ConnKey = ConnKey { ix: 1, generation: 0 };
const NOW: Instant = Instant::from_nanos(1);

fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}

/// An agent attached under epoch 1.
fn attached() -> (Agent, NodeOut) {
    let config = AgentConfig {
        agent_id: AgentId::new("a").unwrap(),
        hubs: vec!["1".to_owned()],
        parallel: 1,
        connectors: vec![ConnectorConfig { name: name("ldap"), target: "t".to_owned(), priority: 0, weight: 1 }],
        limits: Limits::default(),
        liveness: Liveness::default(),
        resume_window: Duration::from_secs(30),
        backoff: Backoff::default(),
        target_timeout: Duration::from_secs(1),
        handshake_timeout: Duration::from_secs(5),
    };
    let mut out = NodeOut::default();
    let mut agent = Agent::new(Arc::new(config), Seed::from_u64(1), NOW, &mut out);
    let peer = HubGrant::default();
    agent.handle(NOW, Input::Connected { target: TargetIx(0), conn: CONN, dialect: V2, peer }, &mut out);
    let welcome = Welcome {
        replica_id: name("hub-a"),
        incarnation: Incarnation(1),
        namespace: name("default"),
        region: None,
        session: SessionId(1),
        secret: Some(Secret([1; 32])),
        resumed: None,
        attachment: Some(Attachment { epoch: Epoch(1), nonce: Nonce(1), firm: true }),
        resume_window_ms: 30_000,
        challenge: Secret([2; 16]),
        initial_window: 1000,
        capabilities: Vec::new(),
        signature: None,
    };
    let message = encode_message(V2, 0, &[Frame::Welcome(Box::new(welcome))]);
    agent.handle(NOW, Input::Message { conn: CONN, message }, &mut out);
    assert_eq!((agent.mux().len(), agent.shard().attachments().count()), (1, 1));
    (agent, out)
}

fn message(frames: &[Frame]) -> Bytes {
    encode_message(V2, 1, frames)
}

#[test]
fn an_epoch_behind_the_end_of_its_session_changes_nothing() {
    let (mut agent, mut out) = attached();
    let notice = EpochNotice {
        agent_id: AgentId::new("a").unwrap(),
        instance: agent.tunnels().instance(),
        replica_id: name("hub-a"),
        epoch: Epoch(9),
        nonce: Nonce(9),
        firm: true,
    };
    // A hub sends no CONNECTORS: that ends the session before EPOCH is read.
    let ends = Frame::Connectors { generation: 1, connectors: Vec::new() };
    let message = message(&[ends, Frame::Epoch(Box::new(notice))]);
    agent.handle(NOW, Input::Message { conn: CONN, message }, &mut out);
    assert_eq!(agent.mux().len(), 0);
    assert_eq!(agent.tunnels().highest_epoch(), Epoch(1), "nobody grants an epoch after its session (O2)");
    assert_eq!(agent.shard().attachments().count(), 0, "no attachment outlives its session (B5)");
}

#[test]
fn after_a_shutdown_the_shard_knows_no_session() {
    let (mut agent, mut out) = attached();
    agent.handle(NOW, Input::Shutdown, &mut out);
    assert_eq!((agent.mux().len(), agent.shard().attachments().count()), (0, 0));
    agent.check_invariants();
}

#[test]
fn a_handshake_that_was_given_up_ends_no_session_it_may_have_resumed() {
    for (code, sessions) in [(CloseCode::HandshakeTimeout, 1), (CloseCode::Dead, 1), (CloseCode::Protocol, 0)] {
        let (mut agent, mut out) = attached();
        let message = encode_message(V2, 0, &[Frame::GoAway { code, retry_after_ms: 0 }]);
        agent.handle(NOW, Input::Message { conn: CONN, message }, &mut out);
        agent.handle(NOW, Input::Disconnected { conn: CONN, cause: CloseCode::Transport }, &mut out);
        assert_eq!(agent.mux().len(), sessions, "{code}: the other side still has it, or gave it up (L1)");
    }
}

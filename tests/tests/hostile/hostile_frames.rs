//! After the upgrade: WebSocket messages and frames of the protocol.

use nowconnect_core::error::{CloseCode, RstCode};
use nowconnect_core::id::{AgentId, Cid, Epoch, Incarnation, Name, Nonce, Secret, SessionId};
use nowconnect_core::wire::{Body, ConnectorAd, Dialect, Frame, HelloRole, Open, ResumeRequest, Welcome};
use nowconnect_tests::cluster::AGENT;
use nowconnect_tests::hostile::{Peer, Reaction, agent_hello, hub_hello};

use super::{Attack, Case, INTRUDER, MESH, TUNNEL, TUNNEL_V1, Want};

fn case(name: &'static str, act: fn(&Attack) -> Reaction, want: Want) -> Case {
    Case { name, act, want }
}

/// What happens to a connection that was upgraded and then did `act`.
fn upgraded(attack: &Attack, dialect: Dialect, act: impl FnOnce(&mut Peer)) -> Reaction {
    let token = if dialect == MESH { String::new() } else { attack.token() };
    match Peer::upgrade(attack.hub, dialect, &token) {
        Ok(mut peer) => {
            act(&mut peer);
            peer.until_closed()
        }
        Err(reaction) => reaction,
    }
}

fn established(attack: &Attack, dialect: Dialect) -> Result<Peer, Reaction> {
    Peer::establish(attack.hub, dialect, &attack.token(), agent_hello(INTRUDER, &["theirs"]))
}

/// What happens to a session that did `act`.
fn in_session(attack: &Attack, dialect: Dialect, act: impl FnOnce(&mut Peer)) -> Reaction {
    match established(attack, dialect) {
        Ok(mut peer) => {
            act(&mut peer);
            peer.until_closed()
        }
        Err(reaction) => reaction,
    }
}

/// The same, expecting that the session is kept.
fn kept_session(attack: &Attack, dialect: Dialect, act: impl FnOnce(&mut Peer)) -> Reaction {
    match established(attack, dialect) {
        Ok(mut peer) => {
            act(&mut peer);
            peer.still_open()
        }
        Err(reaction) => reaction,
    }
}

/// The answer to a HELLO.
fn hello(attack: &Attack, dialect: Dialect, hello: nowconnect_core::wire::Hello) -> Reaction {
    upgraded(attack, dialect, |p| p.frame(0, Frame::Hello(Box::new(hello))))
}

fn cid() -> Cid {
    Cid::new(Incarnation(0xdead_beef), 0, 1)
}

fn stream(body: Body) -> Frame {
    Frame::stream(cid(), Epoch(1), body)
}

fn data(bytes: &'static [u8]) -> Frame {
    stream(Body::Data { off: 0, bytes: bytes::Bytes::from_static(bytes) })
}

pub(super) fn messages() -> Vec<Case> {
    vec![
        case("6 a reserved bit", |a| upgraded(a, TUNNEL, |p| p.ws(0xc2, b"x")), Want::Closed),
        case("7 an unmasked frame", |a| upgraded(a, TUNNEL, |p| p.raw(&[0x82, 1, b'x'])), Want::Closed),
        case(
            "8 a length of 2^63",
            |a| upgraded(a, TUNNEL, |p| p.raw(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4])),
            Want::Closed,
        ),
        case(
            "8 a length of 1 GiB",
            |a| upgraded(a, TUNNEL, |p| p.raw(&[0x82, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0, 1, 2, 3, 4])),
            Want::Closed,
        ),
        case("8 17 KiB before HELLO", |a| upgraded(a, TUNNEL, |p| p.message(&[0; 17 * 1024])), Want::Closed),
        case(
            "9 a message in 100,000 fragments",
            |a| {
                upgraded(a, TUNNEL, |p| {
                    p.ws(0x02, b"x");
                    for _ in 0..100_000 {
                        p.ws(0x00, b"x");
                    }
                })
            },
            Want::Closed,
        ),
        case(
            "10 a new message inside another",
            |a| {
                upgraded(a, TUNNEL, |p| {
                    p.ws(0x02, b"x");
                    p.ws(0x82, b"y");
                })
            },
            Want::Closed,
        ),
        case("10 a control frame of 126 bytes", |a| upgraded(a, TUNNEL, |p| p.ws(0x89, &[0; 126])), Want::Closed),
        case("10 an unknown opcode", |a| upgraded(a, TUNNEL, |p| p.ws(0x83, b"x")), Want::Closed),
        case("12 text where binary is due", |a| upgraded(a, TUNNEL, |p| p.ws(0x81, b"{}")), Want::Closed),
        case("12 text that is not UTF-8", |a| upgraded(a, TUNNEL_V1, |p| p.ws(0x81, &[0xff, 0xfe])), Want::Closed),
        case("12 binary where text is due", |a| upgraded(a, TUNNEL_V1, |p| p.ws(0x82, b"{}")), Want::Closed),
        case("a connection that says nothing", |a| upgraded(a, TUNNEL, |_| {}), Want::Closed),
        case("35 no message of the encoding", |a| upgraded(a, TUNNEL, |p| p.message(&[0xff; 100])), Want::Closed),
        case("35 an empty message", |a| upgraded(a, TUNNEL, |p| p.message(&[])), Want::Closed),
        case("35 depth 129", |a| upgraded(a, TUNNEL_V1, |p| p.message("[".repeat(129).as_bytes())), Want::Closed),
        case(
            "35 a key twice",
            |a| upgraded(a, TUNNEL_V1, |p| p.message(br#"{"type":"PING","token":1,"token":2}"#)),
            Want::Closed,
        ),
        case(
            "35 a key cut short",
            |a| upgraded(a, TUNNEL_V1, |p| p.message(br#"{"type":"HELLO","role":"agent","#)),
            Want::Closed,
        ),
        case("35 a lone surrogate", |a| upgraded(a, TUNNEL_V1, |p| p.message(br#"{"type":"\ud800"}"#)), Want::Closed),
        case("34 an unknown type", |a| upgraded(a, TUNNEL_V1, |p| p.message(br#"{"type":"WHAT"}"#)), Want::Closed),
    ]
}

pub(super) fn frames() -> Vec<Case> {
    let mut cases = handshakes();
    cases.extend(sessions());
    cases
}

fn handshakes() -> Vec<Case> {
    vec![
        case("an honest agent is kept", |a| kept_session(a, TUNNEL, |_| {}), Want::Kept),
        case("an honest v1 agent is kept", |a| kept_session(a, TUNNEL_V1, |_| {}), Want::Kept),
        case(
            "21 the token of another agent",
            |a| hello(a, TUNNEL, agent_hello(AGENT, &["theirs"])),
            Want::GoAway(CloseCode::Auth),
        ),
        case(
            "47 a connector outside the token",
            |a| hello(a, TUNNEL, agent_hello(INTRUDER, &["t"])),
            Want::GoAway(CloseCode::Auth),
        ),
        case("52 a stream frame before HELLO", |a| upgraded(a, TUNNEL, |p| p.frame(1, data(b"early"))), Want::Closed),
        case("52 PING before HELLO", |a| upgraded(a, TUNNEL, |p| p.frame(0, Frame::Ping { token: 1 })), Want::Closed),
        case("52 a hub's HELLO on /tunnel", |a| hello(a, TUNNEL, hub_hello("hub-z", "tests")), Want::Closed),
        case("52 an agent's HELLO on /mesh", |a| hello(a, MESH, agent_hello(INTRUDER, &["theirs"])), Want::Closed),
        case("53 257 connectors", many_connectors, Want::Closed),
        case("53 an agent id of control characters", bad_agent_id, Want::Closed),
        case(
            "27 a hub of another namespace",
            |a| hello(a, MESH, hub_hello("hub-z", "elsewhere")),
            Want::GoAway(CloseCode::Namespace),
        ),
        case("29 our own replica id", |a| hello(a, MESH, hub_hello("hub-a", "tests")), Want::Closed),
        case("51 a session that does not exist", resume_of_nothing, Want::GoAway(CloseCode::ResumeRefused)),
        case("49 a poisoned epoch", poisoned_epoch, Want::Kept),
    ]
}

fn sessions() -> Vec<Case> {
    vec![
        case(
            "52 a second HELLO",
            |a| in_session(a, TUNNEL, |p| p.frame(0, Frame::Hello(Box::new(agent_hello(INTRUDER, &["theirs"]))))),
            Want::GoAway(CloseCode::Protocol),
        ),
        case(
            "52 WELCOME to a hub",
            |a| in_session(a, TUNNEL, |p| p.frame(0, welcome())),
            Want::GoAway(CloseCode::Protocol),
        ),
        case(
            "an ACK of what was never sent",
            |a| in_session(a, TUNNEL, |p| p.frame(0, Frame::Ack { received: 1 << 40 })),
            Want::GoAway(CloseCode::Protocol),
        ),
        case(
            "a gap in the numbering",
            |a| in_session(a, TUNNEL, |p| p.frame(7, data(b"x"))),
            Want::GoAway(CloseCode::Protocol),
        ),
        case(
            "46 OPEN from an agent",
            |a| in_session(a, TUNNEL, |p| p.frame(1, open())),
            Want::GoAway(CloseCode::Protocol),
        ),
        case(
            "35 garbage in a session",
            |a| in_session(a, TUNNEL, |p| p.message(&[0xee; 64])),
            Want::GoAway(CloseCode::Protocol),
        ),
        case("37 a message of 300 KiB", |a| in_session(a, TUNNEL, |p| p.message(&[0; 300 * 1024])), Want::Closed),
        case(
            "36 base64 with whitespace",
            |a| in_session(a, TUNNEL_V1, |p| p.message(&v1_data("aGVs bG8="))),
            Want::GoAway(CloseCode::Protocol),
        ),
        case(
            "36 base64 with trailing bits",
            |a| in_session(a, TUNNEL_V1, |p| p.message(&v1_data("aGVsbG9="))),
            Want::GoAway(CloseCode::Protocol),
        ),
        case(
            "53 CONNECTORS outside the token",
            |a| {
                in_session(a, TUNNEL, |p| {
                    let ad = ConnectorAd { name: Name::new("t").unwrap(), priority: 0, weight: 1 };
                    p.frame(1, Frame::Connectors { generation: 1, connectors: vec![ad] });
                })
            },
            Want::GoAway(CloseCode::Auth),
        ),
        case("44 DATA for a stream nobody opened", |a| kept_session(a, TUNNEL, |p| p.frame(1, data(b"x"))), Want::Kept),
        case(
            "43 RST for a stream nobody opened",
            |a| kept_session(a, TUNNEL, |p| p.frame(1, stream(Body::Rst { code: RstCode::Abort, final_off: 0 }))),
            Want::Kept,
        ),
        case(
            "40 CREDIT for a stream nobody opened",
            |a| kept_session(a, TUNNEL, |p| p.frame(1, stream(Body::Credit { consumed: 0, limit: 1 << 52 }))),
            Want::Kept,
        ),
        case(
            "45 OPEN_ACK for a stream nobody opened",
            |a| kept_session(a, TUNNEL, |p| p.frame(1, stream(Body::OpenAck { result: Ok(()) }))),
            Want::Kept,
        ),
    ]
}

fn many_connectors(attack: &Attack) -> Reaction {
    let mut bad = agent_hello(INTRUDER, &["theirs"]);
    if let HelloRole::Agent(agent) = &mut bad.role {
        let ad = |n: usize| ConnectorAd { name: Name::new(&format!("c{n}")).unwrap(), priority: 0, weight: 1 };
        agent.connectors = (0..257).map(ad).collect();
    }
    hello(attack, TUNNEL, bad)
}

/// Written by hand: the product's own types cannot hold such a name.
fn bad_agent_id(attack: &Attack) -> Reaction {
    upgraded(attack, TUNNEL_V1, |p| {
        p.message(
            br#"{"type":"HELLO","role":"agent","agent_id":"in\r\nSET x 1\r\n*{}/..","instance":"0123456789abcdef",
            "connectors":[],"seen":"0","challenge":"07070707070707070707070707070707","initial_window":65536,"capabilities":[]}"#,
        );
    })
}

fn resume_of_nothing(attack: &Attack) -> Reaction {
    let mut bad = agent_hello(INTRUDER, &["theirs"]);
    bad.resume = Some(ResumeRequest { session: SessionId(42), attempt: 1, received: 0, proof: Secret([1; 32]) });
    hello(attack, TUNNEL, bad)
}

/// A huge `seen` is clamped, not believed and not refused (attack 49 as amended).
fn poisoned_epoch(attack: &Attack) -> Reaction {
    let mut bad = agent_hello(INTRUDER, &["theirs"]);
    if let HelloRole::Agent(agent) = &mut bad.role {
        agent.seen = Epoch(u64::MAX);
    }
    match Peer::establish(attack.hub, TUNNEL, &attack.token(), bad) {
        Ok(peer) => peer.still_open(),
        Err(reaction) => reaction,
    }
}

fn welcome() -> Frame {
    Frame::Welcome(Box::new(Welcome {
        replica_id: Name::new("hub-z").unwrap(),
        incarnation: Incarnation(1),
        namespace: Name::new("tests").unwrap(),
        region: None,
        session: SessionId(1),
        secret: Some(Secret([1; 32])),
        resumed: None,
        attachment: None,
        resume_window_ms: 30_000,
        challenge: Secret([1; 16]),
        initial_window: 65_536,
        capabilities: Vec::new(),
        signature: None,
    }))
}

fn open() -> Frame {
    stream(Body::Open(Box::new(Open {
        nonce: Nonce(1),
        connector: Name::new("t").unwrap(),
        agent_id: AgentId::new(AGENT).unwrap(),
        key: Secret([1; 16]),
        limit: 65_536,
    })))
}

/// A v1 DATA frame as the product writes it, its payload replaced.
fn v1_data(b64: &str) -> Vec<u8> {
    let good = nowconnect_core::wire::encode_message(TUNNEL_V1, 1, &[data(b"hello")]);
    let text = String::from_utf8(good.to_vec()).unwrap();
    assert!(text.contains("aGVsbG8="), "payload in base64: {text}");
    text.replace("aGVsbG8=", b64).into_bytes()
}

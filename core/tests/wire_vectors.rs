//! Golden vectors: bytes that another implementation can check itself against.
//! `vectors/frames.json` holds every frame type on every plane in both
//! encodings, `vectors/malformed.json` what must be refused and as what. The
//! values the vectors stand for are written out here, so a change of either
//! encoding shows as a difference and never passes silently.
//!
//! To write `frames.json` anew after a deliberate change of the wire:
//! `NC_WRITE_VECTORS=1 cargo test -p nowconnect-core --test wire_vectors -- --ignored`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;
use nowconnect_core::error::{CloseCode, Ends, ProtocolErrorKind, RstCode};
use nowconnect_core::id::{AgentId, Cid, Epoch, Incarnation, Instance, Name, Nonce, Secret, SessionId};
use nowconnect_core::wire::{
    Attachment, Auth, Body, CAPABILITIES_MAX, CHAIN_MAX, CONNECTORS_MAX, Codec, ConnectorAd, DATA_PAYLOAD_MAX_BYTES,
    Dialect, EpochNotice, FRAME_KINDS, Frame, Hello, HelloAgent, HelloHub, HelloRole, JSON_DEPTH_MAX,
    MESSAGE_BYTES_PER_FRAME, MESSAGE_MAX_BEFORE_AUTH_BYTES, MESSAGE_MAX_BYTES, NUMBER_MAX, Open, Plane, Resume,
    ResumeAccept, ResumeRequest, SESSIONS_MAX, SIGNATURE_TEXT_MAX_BYTES, SecretText, Signature, Status,
    TOKEN_MAX_BYTES, Welcome, WireLimits, decode, encode_message,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Vector {
    name: String,
    plane: String,
    number: u64,
    /// Absent for v2 messages of several frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    v1: Option<String>,
    v2: String,
}

#[derive(Deserialize)]
struct Malformed {
    name: String,
    #[serde(default)]
    plane: Option<String>,
    /// v1 text; its bytes in hexadecimal, or a v2 message, in `hex`.
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    hex: Option<String>,
    /// Put in place of the `@` in `text`, or appended to `hex`.
    #[serde(default)]
    repeat: Option<Repeat>,
    #[serde(default)]
    before_auth: bool,
    kind: String,
}

#[derive(Deserialize)]
struct Repeat {
    what: String,
    times: usize,
}

#[derive(Deserialize)]
struct MalformedTable {
    v1: Vec<Malformed>,
    v2: Vec<Malformed>,
}

fn vectors_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(vectors_dir().join(file)).expect("the vector file is there")
}

fn name(s: &str) -> Name {
    Name::new(s).expect("a name")
}

fn agent(s: &str) -> AgentId {
    AgentId::new(s).expect("an agent id")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(s: &str) -> Vec<u8> {
    let digits: Vec<u8> = s.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    assert!(digits.len().is_multiple_of(2), "whole bytes in {s}");
    let nibble = |b: u8| char::from(b).to_digit(16).expect("a hexadecimal digit");
    digits.chunks(2).map(|p| u8::try_from(nibble(p[0]) * 16 + nibble(p[1])).expect("a byte")).collect()
}

fn plane(s: &str) -> Plane {
    match s {
        "tunnel" => Plane::Tunnel,
        "mesh" => Plane::Mesh,
        other => panic!("plane {other}"),
    }
}

const CID: Cid = Cid(0x0011_2233_4455_6677_0200_0000_0000_0001);
const EPOCH: Epoch = Epoch(1_826_000_000_000_123);

fn signature() -> Signature {
    Signature {
        chain: vec!["MIIBAg==".to_owned(), "MIIDBA==".to_owned()],
        scheme: name("ecdsa_secp256r1_sha256"),
        signature: "MEUCIQ==".to_owned(),
    }
}

fn ads() -> Vec<ConnectorAd> {
    vec![
        ConnectorAd { name: name("ldap"), priority: 0, weight: 1 },
        ConnectorAd { name: name("ldap.backup-2"), priority: 65_535, weight: 300 },
    ]
}

const BOTH: &[&str] = &["tunnel", "mesh"];
const TUNNEL: &[&str] = &["tunnel"];
const MESH: &[&str] = &["mesh"];

type Meaning = (&'static str, &'static [&'static str], u64, Vec<Frame>);

fn handshakes() -> Vec<Meaning> {
    let hello_agent = |resume| {
        Frame::Hello(Box::new(Hello {
            role: HelloRole::Agent(HelloAgent {
                agent_id: agent("plant-7/a"),
                instance: Instance(0x0102_0304_0506_0708),
                connectors: ads(),
                seen: Epoch(u64::MAX),
                sessions: vec![],
            }),
            challenge: Secret([0x11; 16]),
            initial_window: 65_536,
            capabilities: vec![name("later.1")],
            resume,
        }))
    };
    let hello_hub = Frame::Hello(Box::new(Hello {
        role: HelloRole::Hub(HelloHub {
            replica_id: name("hub-b"),
            incarnation: Incarnation(0x8899_aabb_ccdd_eeff),
            namespace: name("default"),
            region: Some(name("eu1")),
            sessions: vec![SessionId(1), SessionId(u128::MAX)],
        }),
        challenge: Secret([0x22; 16]),
        initial_window: 16_384,
        capabilities: vec![],
        resume: None,
    }));
    let resume = ResumeRequest { session: SessionId(0xfeed), attempt: 2, received: 77, proof: Secret([0x33; 32]) };
    let welcome = Welcome {
        replica_id: name("hub-a"),
        incarnation: Incarnation(0x0011_2233_4455_6677),
        namespace: name("default"),
        region: None,
        session: SessionId(0xfeed),
        secret: Some(Secret([0x44; 32])),
        resumed: None,
        attachment: Some(Attachment { epoch: EPOCH, nonce: Nonce(0xabcd), firm: true }),
        resume_window_ms: 30_000,
        challenge: Secret([0x55; 16]),
        initial_window: 65_536,
        capabilities: vec![],
        signature: None,
    };
    let welcome_resumed = Welcome {
        secret: None,
        resumed: Some(ResumeAccept { received: 80, proof: Secret([0x66; 32]) }),
        attachment: Some(Attachment { epoch: EPOCH, nonce: Nonce(0xabcd), firm: false }),
        ..welcome.clone()
    };
    let welcome_mesh =
        Welcome { region: Some(name("eu1")), attachment: None, signature: Some(signature()), ..welcome.clone() };
    vec![
        ("HELLO of an agent", TUNNEL, 0, vec![hello_agent(None)]),
        ("HELLO of an agent that resumes", TUNNEL, 0, vec![hello_agent(Some(resume))]),
        ("HELLO of a hub", MESH, 0, vec![hello_hub]),
        ("WELCOME to an agent", TUNNEL, 0, vec![Frame::Welcome(Box::new(welcome))]),
        ("WELCOME to a resumed session", TUNNEL, 0, vec![Frame::Welcome(Box::new(welcome_resumed))]),
        ("WELCOME to a hub", MESH, 0, vec![Frame::Welcome(Box::new(welcome_mesh))]),
        ("AUTH without a signature", MESH, 0, vec![Frame::Auth(Box::default())]),
        ("AUTH", MESH, 0, vec![Frame::Auth(Box::new(Auth { signature: Some(signature()) }))]),
    ]
}

fn session_frames() -> Vec<Meaning> {
    let notice = EpochNotice {
        agent_id: agent("plant-7"),
        instance: Instance(9),
        replica_id: name("hub-b"),
        epoch: EPOCH,
        nonce: Nonce(0xabcd),
        firm: true,
    };
    let status = Status { registry_healthy: true, draining: true, active: false, initial_window: 65_536 };
    vec![
        ("ACK", BOTH, 0, vec![Frame::Ack { received: 300 }]),
        ("PING", BOTH, 0, vec![Frame::Ping { token: NUMBER_MAX }]),
        ("PONG", BOTH, 0, vec![Frame::Pong { token: 0 }]),
        ("GOAWAY", BOTH, 0, vec![Frame::GoAway { code: CloseCode::DuplicateId, retry_after_ms: 60_000 }]),
        ("EPOCH", BOTH, 1, vec![Frame::Epoch(Box::new(notice))]),
        ("STATUS", BOTH, 2, vec![Frame::Status(status)]),
        ("CONNECTORS", TUNNEL, 3, vec![Frame::Connectors { generation: 2, connectors: ads() }]),
        ("CONNECTORS, none left", TUNNEL, 4, vec![Frame::Connectors { generation: 3, connectors: vec![] }]),
        ("TOKEN", TUNNEL, 5, vec![Frame::Token { token: SecretText("eyJh.eyJz.c2ln".to_owned()) }]),
    ]
}

fn stream_frames() -> Vec<Meaning> {
    let stream = |body| Frame::stream(CID, EPOCH, body);
    let data = |off, bytes: &'static [u8]| stream(Body::Data { off, bytes: Bytes::from_static(bytes) });
    let key = Secret([0xa5; 16]);
    let open = Open { nonce: Nonce(0xabcd), connector: name("ldap"), agent_id: agent("plant-7"), key, limit: 65_536 };
    let resume = Resume { nonce: Nonce(0xabcd), agent_id: agent("plant-7"), key, next: 4096, limit: 69_632 };
    vec![
        ("OPEN", BOTH, 6, vec![stream(Body::Open(Box::new(open)))]),
        ("OPEN_ACK, open", BOTH, 7, vec![stream(Body::OpenAck { result: Ok(()) })]),
        ("OPEN_ACK, refused", BOTH, 8, vec![stream(Body::OpenAck { result: Err(RstCode::NotOwner) })]),
        ("DATA", BOTH, 9, vec![data(0, b"hello")]),
        ("DATA far into a half", BOTH, NUMBER_MAX, vec![data(1 << 40, &[0xff, 0xfe, 0x00])]),
        ("CREDIT", BOTH, 10, vec![stream(Body::Credit { consumed: 5, limit: 65_541 })]),
        ("FIN", BOTH, 11, vec![stream(Body::Fin { final_off: 5 })]),
        ("RST", BOTH, 12, vec![stream(Body::Rst { code: RstCode::Abort, final_off: 4096 })]),
        ("RESUME", BOTH, 13, vec![stream(Body::Resume(Box::new(resume)))]),
        (
            "several frames",
            MESH,
            14,
            vec![
                Frame::Ack { received: 128 },
                stream(Body::Credit { consumed: 0, limit: 65_536 }),
                data(0, b"a"),
                data(1, b"b"),
                stream(Body::Fin { final_off: 2 }),
            ],
        ),
    ]
}

/// What every vector stands for: name, planes, message number, frames.
fn meanings() -> Vec<Meaning> {
    [handshakes(), session_frames(), stream_frames()].into_iter().flatten().collect()
}

fn v1_of(plane: Plane) -> Dialect {
    Dialect { codec: Codec::JsonV1, plane }
}

fn v2_of(plane: Plane) -> Dialect {
    Dialect { codec: Codec::BinaryV2, plane }
}

fn encoded() -> Vec<Vector> {
    let mut all = Vec::new();
    for (name, planes, number, frames) in meanings() {
        for p in planes {
            let v1 = encode_message(v1_of(plane(p)), number, &frames);
            all.push(Vector {
                name: name.to_owned(),
                plane: (*p).to_owned(),
                number,
                v1: (frames.len() == 1).then(|| String::from_utf8(v1.to_vec()).expect("v1 is text")),
                v2: hex(&encode_message(v2_of(plane(p)), number, &frames)),
            });
        }
    }
    all
}

#[test]
fn vectors_mean_what_is_written_here() {
    let stored: Vec<Vector> = serde_json::from_str(&read("frames.json")).expect("frames.json");
    let mut stored = stored.into_iter();
    let mut seen = BTreeSet::new();
    for (name, planes, number, frames) in meanings() {
        for p in planes {
            let v = stored.next().unwrap_or_else(|| panic!("no vector for {name} on {p}"));
            assert_eq!((v.name.as_str(), v.plane.as_str(), v.number), (name, *p, number));
            let check = |dialect: Dialect, msg: Bytes| {
                let mut got = Vec::new();
                let n = decode(dialect, &msg, &WireLimits::ESTABLISHED, &mut got);
                assert_eq!(n, Ok(number), "{name}, {dialect:?}");
                assert_eq!(got, frames, "{name}, {dialect:?}");
                assert_eq!(encode_message(dialect, number, &frames), msg, "{name}, {dialect:?}");
            };
            check(v2_of(plane(p)), unhex(&v.v2).into());
            assert_eq!(v.v1.is_some(), frames.len() == 1, "{name}");
            if let Some(text) = v.v1 {
                check(v1_of(plane(p)), text.into());
            }
            seen.extend(frames.iter().map(Frame::kind));
        }
    }
    assert!(stored.next().is_none(), "a vector that means nothing here");
    assert_eq!(seen, FRAME_KINDS.into_iter().collect(), "every frame type has a vector");
}

#[test]
#[ignore = "writes frames.json; to be run by hand after a deliberate change of the wire"]
fn write_the_vectors_anew() {
    // `--include-ignored` must not turn every difference into the new truth.
    if std::env::var_os("NC_WRITE_VECTORS").is_none() {
        return;
    }
    let text = serde_json::to_string_pretty(&encoded()).expect("serializes");
    std::fs::write(vectors_dir().join("frames.json"), text + "\n").expect("writes");
}

fn refused(dialect: Dialect, msg: Vec<u8>, before_auth: bool) -> Result<u64, ProtocolErrorKind> {
    let limits = if before_auth { WireLimits::BEFORE_AUTH } else { WireLimits::ESTABLISHED };
    decode(dialect, &msg.into(), &limits, &mut Vec::new()).map_err(|e| e.kind)
}

#[test]
fn malformed_messages_are_refused_for_the_stated_reason() {
    let table: MalformedTable = serde_json::from_str(&read("malformed.json")).expect("malformed.json");
    assert!(table.v1.len() >= 30 && table.v2.len() >= 30, "{} and {}", table.v1.len(), table.v2.len());
    for (entries, of) in [(table.v1, v1_of as fn(Plane) -> Dialect), (table.v2, v2_of)] {
        let mut kinds = BTreeSet::new();
        for m in entries {
            let extra = m.repeat.map(|r| r.what.repeat(r.times)).unwrap_or_default();
            let bytes = match (&m.text, &m.hex) {
                (Some(text), None) => text.replacen('@', &extra, 1).into_bytes(),
                (None, Some(digits)) => unhex(&format!("{digits}{extra}")),
                _ => panic!("{}: text or hex", m.name),
            };
            let expected = ProtocolErrorKind::from_name(&m.kind).expect("a kind");
            kinds.insert(expected);
            let planes = m.plane.as_deref().map_or(vec![Plane::Tunnel, Plane::Mesh], |p| vec![plane(p)]);
            for p in planes {
                assert_eq!(refused(of(p), bytes.clone(), m.before_auth), Err(expected), "{} on {p:?}", m.name);
            }
        }
        for kind in ["TOO_LARGE", "MALFORMED", "UNKNOWN_TYPE", "UNEXPECTED", "BAD_NAME"] {
            assert!(kinds.iter().any(|k| k.name() == kind), "no message is refused as {kind}");
        }
    }
}

fn protocol_text() -> String {
    std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("PROTOCOL.md")).expect("PROTOCOL.md")
}

#[test]
fn the_document_names_every_frame_code_and_subprotocol() {
    let text = protocol_text();
    for (kind, number) in FRAME_KINDS.iter().zip(1..) {
        assert!(text.contains(&format!("\n#### {kind} ({number})\n")), "no section for {kind}");
    }
    let row = |prefix: String| text.lines().find(|l| l.starts_with(&prefix)).unwrap_or_else(|| panic!("no {prefix}"));
    for c in RstCode::ALL {
        let line = row(format!("| {} | `{}` | stream |", c.number(), c.name()));
        assert_eq!(line.ends_with("| next candidate |"), c.definite_no(), "who may retry after {c}");
    }
    for c in CloseCode::ALL {
        let ends = match c.ends() {
            Ends::Nothing => "nothing",
            Ends::Connection => "connection",
            Ends::Session => "session",
        };
        row(format!("| {} | `{}` | {ends} |", c.number(), c.name()));
    }
    for k in ProtocolErrorKind::ALL {
        row(format!("| `{}` |", k.name()));
    }
    for p in [Plane::Tunnel, Plane::Mesh] {
        for d in Dialect::of(p) {
            assert!(text.contains(d.subprotocol()), "{}", d.subprotocol());
        }
    }
}

#[test]
fn the_document_states_the_limits_in_force() {
    let text = protocol_text();
    let limits: [(&str, u64); 13] = [
        ("MESSAGE_MAX_BEFORE_AUTH_BYTES", MESSAGE_MAX_BEFORE_AUTH_BYTES as u64),
        ("MESSAGE_MAX_BYTES", MESSAGE_MAX_BYTES as u64),
        ("MESSAGE_BYTES_PER_FRAME", MESSAGE_BYTES_PER_FRAME as u64),
        ("DATA_PAYLOAD_MAX_BYTES", DATA_PAYLOAD_MAX_BYTES as u64),
        ("JSON_DEPTH_MAX", JSON_DEPTH_MAX as u64),
        ("CONNECTORS_MAX", CONNECTORS_MAX as u64),
        ("WEIGHT_MAX", u64::from(nowconnect_core::route::WEIGHT_MAX)),
        ("CAPABILITIES_MAX", CAPABILITIES_MAX as u64),
        ("SESSIONS_MAX", SESSIONS_MAX as u64),
        ("CHAIN_MAX", CHAIN_MAX as u64),
        ("SIGNATURE_TEXT_MAX_BYTES", SIGNATURE_TEXT_MAX_BYTES as u64),
        ("TOKEN_MAX_BYTES", TOKEN_MAX_BYTES as u64),
        ("NUMBER_MAX", NUMBER_MAX),
    ];
    for (limit, value) in limits {
        assert!(text.contains(&format!("\n| `{limit}` | {value} |")), "{limit} is {value}");
    }
}

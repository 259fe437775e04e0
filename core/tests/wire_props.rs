//! Properties of the codecs over arbitrary frames, arbitrary bytes and mutated
//! messages: decoding is total (D2), both encodings carry the same frames, and
//! what v2 accepts has one spelling.

use bytes::Bytes;
use nowconnect_core::error::{CloseCode, RstCode};
use nowconnect_core::id::{AgentId, Cid, Epoch, Incarnation, Instance, Name, Nonce, Secret, SessionId};
use nowconnect_core::wire::{
    Attachment, Auth, Body, Codec, ConnectorAd, Dialect, EpochNotice, Frame, Hello, HelloAgent, HelloHub, HelloRole,
    MESSAGE_BYTES_PER_FRAME, MESSAGE_MAX_BYTES, NUMBER_MAX, Open, Plane, Resume, ResumeAccept, ResumeRequest,
    SecretText, Signature, Status, Welcome, WireLimits, decode, encode_message,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..300_u64, 0..=NUMBER_MAX, Just(NUMBER_MAX)]
}

fn name() -> impl Strategy<Value = Name> {
    "[A-Za-z0-9._-]{1,64}".prop_map(|s| Name::new(&s).expect("drawn from the syntax"))
}

fn agent_id() -> impl Strategy<Value = AgentId> {
    "[A-Za-z0-9._-]{1,64}(/[A-Za-z0-9._-]{1,64})?".prop_map(|s| AgentId::new(&s).expect("drawn from the syntax"))
}

fn connectors() -> impl Strategy<Value = Vec<ConnectorAd>> {
    let one = (name(), any::<u16>(), any::<u16>()).prop_map(|(name, priority, weight)| ConnectorAd {
        name,
        priority,
        weight,
    });
    vec(one, 0..6)
}

fn hello() -> impl Strategy<Value = Hello> {
    let sessions = || vec(any::<u128>().prop_map(SessionId), 0..16);
    let agent = (agent_id(), any::<u64>(), connectors(), any::<u64>(), sessions()).prop_map(
        |(agent_id, i, connectors, seen, sessions)| {
            HelloRole::Agent(HelloAgent { agent_id, instance: Instance(i), connectors, seen: Epoch(seen), sessions })
        },
    );
    let hub = (name(), any::<u64>(), name(), option::of(name()), sessions()).prop_map(
        |(replica_id, i, namespace, region, sessions)| {
            HelloRole::Hub(HelloHub { replica_id, incarnation: Incarnation(i), namespace, region, sessions })
        },
    );
    let resume = (any::<u128>(), number(), number(), any::<[u8; 32]>()).prop_map(|(s, attempt, received, proof)| {
        ResumeRequest { session: SessionId(s), attempt, received, proof: Secret(proof) }
    });
    (prop_oneof![agent, hub], any::<[u8; 16]>(), number(), vec(name(), 0..32), option::of(resume)).prop_map(
        |(role, challenge, initial_window, capabilities, resume)| Hello {
            role,
            challenge: Secret(challenge),
            initial_window,
            capabilities,
            resume,
        },
    )
}

fn signature() -> impl Strategy<Value = Signature> {
    (vec("([A-Za-z0-9+/]{4}){1,40}", 1..8), name(), "([A-Za-z0-9+/]{4}){1,40}")
        .prop_map(|(chain, scheme, signature)| Signature { chain, scheme, signature })
}

fn welcome() -> impl Strategy<Value = Welcome> {
    let resumed =
        (number(), any::<[u8; 32]>()).prop_map(|(received, proof)| ResumeAccept { received, proof: Secret(proof) });
    let attachment = (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(epoch, nonce, firm)| Attachment {
        epoch: Epoch(epoch),
        nonce: Nonce(nonce),
        firm,
    });
    let who = (name(), any::<u64>(), name(), option::of(name()), any::<u128>(), any::<[u8; 16]>());
    let what = (option::of(any::<[u8; 32]>()), option::of(resumed), option::of(attachment), option::of(signature()));
    (who, what, number(), number(), vec(name(), 0..32)).prop_map(
        |(
            (replica_id, incarnation, namespace, region, session, challenge),
            (secret, resumed, attachment, signature),
            resume_window_ms,
            initial_window,
            capabilities,
        )| Welcome {
            replica_id,
            incarnation: Incarnation(incarnation),
            namespace,
            region,
            session: SessionId(session),
            secret: secret.map(Secret),
            resumed,
            attachment,
            resume_window_ms,
            challenge: Secret(challenge),
            initial_window,
            capabilities,
            signature,
        },
    )
}

fn body() -> impl Strategy<Value = Body> {
    let rst = || select(RstCode::ALL);
    prop_oneof![
        (any::<u64>(), name(), agent_id(), any::<[u8; 16]>(), number()).prop_map(
            |(nonce, connector, agent_id, key, limit)| Body::Open(Box::new(Open {
                nonce: Nonce(nonce),
                connector,
                agent_id,
                key: Secret(key),
                limit
            }))
        ),
        option::of(rst()).prop_map(|code| Body::OpenAck { result: code.map_or(Ok(()), Err) }),
        (number(), vec(any::<u8>(), 1..600)).prop_map(|(off, bytes)| Body::Data { off, bytes: bytes.into() }),
        (number(), number()).prop_map(|(consumed, limit)| Body::Credit { consumed, limit }),
        number().prop_map(|final_off| Body::Fin { final_off }),
        (rst(), number()).prop_map(|(code, final_off)| Body::Rst { code, final_off }),
        (any::<u64>(), agent_id(), any::<[u8; 16]>(), number(), number()).prop_map(
            |(nonce, agent_id, key, next, limit)| Body::Resume(Box::new(Resume {
                nonce: Nonce(nonce),
                agent_id,
                key: Secret(key),
                next,
                limit
            }))
        ),
    ]
}

/// Any frame but the handshake ones.
fn frame() -> impl Strategy<Value = Frame> {
    let notice = (agent_id(), any::<u64>(), name(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(
        |(agent_id, instance, replica_id, epoch, nonce, firm)| {
            let (instance, epoch, nonce) = (Instance(instance), Epoch(epoch), Nonce(nonce));
            Frame::Epoch(Box::new(EpochNotice { agent_id, instance, replica_id, epoch, nonce, firm }))
        },
    );
    let status = (any::<bool>(), any::<bool>(), any::<bool>(), number()).prop_map(
        |(registry_healthy, draining, active, initial_window)| {
            Frame::Status(Status { registry_healthy, draining, active, initial_window })
        },
    );
    let session = prop_oneof![
        number().prop_map(|received| Frame::Ack { received }),
        number().prop_map(|token| Frame::Ping { token }),
        number().prop_map(|token| Frame::Pong { token }),
        (select(CloseCode::ALL), number()).prop_map(|(code, retry_after_ms)| Frame::GoAway { code, retry_after_ms }),
        notice,
        status,
        (number(), connectors()).prop_map(|(generation, connectors)| Frame::Connectors { generation, connectors }),
        "\\PC{1,200}".prop_map(|t| Frame::Token { token: SecretText(t) }),
    ];
    let stream = (any::<u128>(), any::<u64>(), body()).prop_map(|(c, e, b)| Frame::stream(Cid(c), Epoch(e), b));
    prop_oneof![session, stream]
}

fn handshake() -> impl Strategy<Value = Frame> {
    prop_oneof![
        hello().prop_map(|h| Frame::Hello(Box::new(h))),
        welcome().prop_map(|w| Frame::Welcome(Box::new(w))),
        option::of(signature()).prop_map(|signature| Frame::Auth(Box::new(Auth { signature }))),
    ]
}

fn any_frame() -> impl Strategy<Value = Frame> {
    prop_oneof![5 => frame(), 1 => handshake()]
}

fn any_plane() -> impl Strategy<Value = Plane> {
    select(vec![Plane::Tunnel, Plane::Mesh])
}

fn dialect() -> impl Strategy<Value = Dialect> {
    (select(vec![Codec::JsonV1, Codec::BinaryV2]), any_plane()).prop_map(|(codec, plane)| Dialect { codec, plane })
}

fn decoded(dialect: Dialect, msg: &Bytes) -> Option<(u64, Vec<Frame>)> {
    let mut frames = Vec::new();
    let number = decode(dialect, msg, &WireLimits::ESTABLISHED, &mut frames).ok()?;
    assert!(frames.len() <= MESSAGE_MAX_BYTES / MESSAGE_BYTES_PER_FRAME, "what decoding appends is bounded");
    Some((number, frames))
}

fn number_for(frame: &Frame, n: u64) -> u64 {
    if frame.unnumbered() { 0 } else { n }
}

/// Accepted messages re-encode to themselves (v2) or to a fixed point (v1).
fn check_canonical(dialect: Dialect, msg: &Bytes) {
    let Some((number, frames)) = decoded(dialect, msg) else { return };
    let extensible = frames.iter().any(|f| matches!(f, Frame::Hello(_) | Frame::Welcome(_) | Frame::Auth(_)));
    if frames.is_empty() || extensible {
        return;
    }
    let again = encode_message(dialect, number, &frames);
    match dialect.codec {
        // A frame that was skipped is the only thing v2 does not give back.
        Codec::BinaryV2 if has_optional(msg) => assert!(again.len() < msg.len()),
        Codec::BinaryV2 => assert_eq!(&again, msg, "accepted, but not canonical"),
        Codec::JsonV1 => assert_eq!(decoded(dialect, &again), Some((number, frames))),
    }
}

/// Whether a valid v2 message has a frame with the optional flag.
fn has_optional(msg: &Bytes) -> bool {
    fn number(msg: &[u8], at: &mut usize) -> usize {
        let (mut n, mut shift) = (0, 0);
        loop {
            let b = msg[*at];
            *at += 1;
            n |= usize::from(b & 0x7f) << shift;
            shift += 7;
            if b < 0x80 {
                return n;
            }
        }
    }
    let mut at = 0;
    number(msg, &mut at);
    while at < msg.len() {
        if msg[at] & 0x80 != 0 {
            return true;
        }
        at += 1;
        at += number(msg, &mut at);
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_frame_survives_either_encoding(d in dialect(), frame in any_frame(), n in 1..=NUMBER_MAX) {
        let n = number_for(&frame, n);
        let msg = encode_message(d, n, std::slice::from_ref(&frame));
        prop_assert_eq!(decoded(d, &msg), Some((n, vec![frame])));
    }

    #[test]
    fn v1_and_v2_carry_the_same(plane in any_plane(), frame in any_frame(), n in 1..=NUMBER_MAX) {
        let [v2, v1] = Dialect::of(plane);
        let n = number_for(&frame, n);
        let text = encode_message(v1, n, std::slice::from_ref(&frame));
        let (n1, from_text) = decoded(v1, &text).expect("v1 decodes");
        let (n2, from_binary) = decoded(v2, &encode_message(v2, n1, &from_text)).expect("v2 decodes");
        prop_assert_eq!((n2, from_binary.as_slice()), (n, std::slice::from_ref(&frame)));
        prop_assert_eq!(encode_message(v1, n2, &from_binary), text);
    }

    #[test]
    fn a_v2_message_of_many_frames_is_canonical(frames in vec(frame(), 1..20), n in 1..=NUMBER_MAX) {
        let d = Dialect { codec: Codec::BinaryV2, plane: Plane::Mesh };
        let n = if frames.iter().all(Frame::unnumbered) { 0 } else { n };
        let msg = encode_message(d, n, &frames);
        check_canonical(d, &msg);
        prop_assert_eq!(decoded(d, &msg), Some((n, frames)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(d in dialect(), bytes in vec(any::<u8>(), 0..400)) {
        check_canonical(d, &bytes.into());
    }

    #[test]
    fn arbitrary_text_never_panics(text in r#"[\[\]{}:,"\\a-f0-9nul ]{0,80}"#, plane in any_plane()) {
        check_canonical(Dialect { codec: Codec::JsonV1, plane }, &text.into());
    }

    #[test]
    fn a_mutated_message_never_panics(
        d in dialect(),
        frame in any_frame(),
        edits in vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..4),
    ) {
        let n = number_for(&frame, 5);
        let mut bytes = encode_message(d, n, &[frame]).to_vec();
        for (at, byte, how) in edits {
            let at = at.index(bytes.len() + 1);
            match how {
                0 if at < bytes.len() => bytes[at] = byte,
                1 if at < bytes.len() => bytes[at] ^= 1 << (byte & 7),
                2 => bytes.insert(at, byte),
                _ => bytes.truncate(at),
            }
        }
        check_canonical(d, &bytes.into());
    }

    /// Where the message lies in memory, and what was decoded before, is of no
    /// account.
    #[test]
    fn the_slice_a_message_lies_in_does_not_matter(
        d in dialect(), frame in any_frame(), before in vec(any::<u8>(), 0..9), after in vec(any::<u8>(), 0..9),
    ) {
        let n = number_for(&frame, 5);
        let msg = encode_message(d, n, std::slice::from_ref(&frame));
        let whole = Bytes::from([before.as_slice(), &msg, &after].concat());
        let part = whole.slice(before.len()..before.len() + msg.len());
        let mut frames = vec![Frame::Ping { token: 1 }];
        let got = decode(d, &part, &WireLimits::ESTABLISHED, &mut frames).expect("valid");
        prop_assert_eq!((got, frames), (n, vec![Frame::Ping { token: 1 }, frame]));
    }
}

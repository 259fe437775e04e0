//! Targets over the codecs of `nowconnect_core::wire` (verification (e) 1, 2,
//! 5). Each input starts with one byte that picks the dialect, so one corpus
//! serves both encodings and planes.

use bytes::Bytes;
use nowconnect_core::error::ProtocolError;
use nowconnect_core::wire::{
    Body, Codec, Dialect, Frame, JSON_DEPTH_MAX, MESSAGE_BYTES_PER_FRAME, MESSAGE_MAX_BEFORE_AUTH_BYTES, Plane,
    WireLimits, decode, encode_message,
};
use serde_json::{Map, Value};

fn dialect(selector: u8) -> Dialect {
    let plane = if selector & 2 == 0 { Plane::Tunnel } else { Plane::Mesh };
    let codec = if selector & 1 == 0 { Codec::JsonV1 } else { Codec::BinaryV2 };
    Dialect { codec, plane }
}

fn limits(selector: u8) -> WireLimits {
    if selector & 4 == 0 { WireLimits::ESTABLISHED } else { WireLimits::BEFORE_AUTH }
}

fn decoded(dialect: Dialect, msg: &Bytes, limits: &WireLimits) -> Result<(u64, Vec<Frame>), ProtocolError> {
    let mut frames = Vec::new();
    decode(dialect, msg, limits, &mut frames).map(|number| (number, frames))
}

/// Arbitrary bytes do not panic the decoder; what it accepts is within its
/// limits, re-encodes, and decodes to the same again. In v2 payloads are
/// slices of the message and the message re-encodes to itself, but for frames
/// that were skipped; only extensible text may differ.
pub fn frame_decode(data: &[u8]) {
    let Some((&selector, rest)) = data.split_first() else { return };
    let (dialect, limits) = (dialect(selector), limits(selector));
    let msg = Bytes::copy_from_slice(rest);
    let Ok((number, frames)) = decoded(dialect, &msg, &limits) else { return };
    assert!(msg.len() <= limits.message_bytes);
    assert!(frames.len() <= limits.message_bytes / MESSAGE_BYTES_PER_FRAME);
    for frame in &frames {
        if let Frame::Stream { body: Body::Data { bytes, .. }, .. } = frame {
            assert!(!bytes.is_empty() && bytes.len() <= limits.payload_bytes);
            let shared = msg.as_ptr_range().contains(&bytes.as_ptr());
            assert_eq!(shared, dialect.codec == Codec::BinaryV2, "payload is a slice in v2 only");
        }
    }
    if frames.is_empty() {
        return;
    }
    let again = encode_message(dialect, number, &frames);
    if dialect.codec == Codec::BinaryV2 && !frames.iter().any(handshake) {
        assert_eq!(&again[..], without_skipped(&msg), "v2 has one spelling");
    }
    // A message whose numbered frame was skipped is not valid without it.
    if number == 0 || frames.iter().any(|f| !f.unnumbered()) {
        assert_eq!(decoded(dialect, &again, &WireLimits::ESTABLISHED), Ok((number, frames)));
    }
}

/// A v2 message that was accepted, less the frames that carry the optional flag.
fn without_skipped(msg: &[u8]) -> Vec<u8> {
    let number = |at: usize| {
        let len = msg[at..].iter().take_while(|b| **b >= 0x80).count() + 1;
        let value = msg[at..at + len].iter().rev().fold(0_usize, |n, b| n << 7 | usize::from(b & 0x7f));
        (value, at + len)
    };
    let (_, mut at) = number(0);
    let mut kept = msg[..at].to_vec();
    while at < msg.len() {
        let (len, body) = number(at + 1);
        if msg[at] & 0x80 == 0 {
            kept.extend_from_slice(&msg[at..body + len]);
        }
        at = body + len;
    }
    kept
}

fn handshake(frame: &Frame) -> bool {
    matches!(frame, Frame::Hello(_) | Frame::Welcome(_) | Frame::Auth(_))
}

/// The same bytes give the same frames or the same error wherever they lie, and
/// several messages decoded into one vector give what each gives alone.
pub fn frame_split(data: &[u8]) {
    let [selector, at, rest @ ..] = data else { return };
    let (dialect, limits) = (dialect(*selector), limits(*selector));
    let whole = Bytes::copy_from_slice(rest);
    let alone = decoded(dialect, &whole, &limits);

    let before = usize::from(*at);
    let mut padded = vec![*at; before];
    padded.extend_from_slice(rest);
    padded.extend_from_slice(data);
    let inside = Bytes::from(padded).slice(before..before + rest.len());
    assert_eq!(decoded(dialect, &inside, &limits), alone);

    let (first, second) = rest.split_at(before.min(rest.len()));
    let (first, second) = (Bytes::copy_from_slice(first), Bytes::copy_from_slice(second));
    let (Ok(one), Ok(two)) = (decoded(dialect, &first, &limits), decoded(dialect, &second, &limits)) else { return };
    let mut frames = Vec::new();
    assert_eq!(decode(dialect, &first, &limits, &mut frames), Ok(one.0));
    assert_eq!(decode(dialect, &second, &limits, &mut frames), Ok(two.0));
    assert_eq!(frames, [one.1, two.1].concat());
}

/// Whatever one encoding accepts, the other one carries unchanged.
pub fn differential_v1_v2(data: &[u8]) {
    let Some((&selector, rest)) = data.split_first() else { return };
    let limits = WireLimits::ESTABLISHED;
    let from = dialect(selector);
    let to = dialect(selector ^ 1);
    let Ok((number, frames)) = decoded(from, &Bytes::copy_from_slice(rest), &limits) else { return };
    for frame in frames {
        let number = match (frame.unnumbered(), number) {
            (true, _) => 0,
            (false, n) => n,
        };
        let other = encode_message(to, number, std::slice::from_ref(&frame));
        let (n, carried) = decoded(to, &other, &limits).unwrap_or_else(|e| panic!("{to:?} refuses {frame:?}: {e}"));
        assert_eq!((n, carried.as_slice()), (number, std::slice::from_ref(&frame)));
        let back = encode_message(from, n, &carried);
        assert_eq!(decoded(from, &back, &limits), Ok((number, vec![frame])));
    }
}

/// The handshake parser agrees with a slow model over `serde_json::Value`: a
/// text without repeated keys is accepted by both or by neither, and a HELLO
/// that was accepted says what the model reads.
pub fn hello_json(data: &[u8]) {
    let v1 = Dialect { codec: Codec::JsonV1, plane: Plane::Mesh };
    let limits = WireLimits::BEFORE_AUTH;
    let direct = decoded(v1, &Bytes::copy_from_slice(data), &limits);
    let Ok(value) = serde_json::from_slice::<Value>(data) else {
        // The model refuses numbers beyond a float's range even under keys
        // that are skipped, so only the converse holds.
        return;
    };
    let plain = Bytes::from(value.to_string());
    let Some(fields) = value.as_object() else {
        assert!(direct.is_err(), "only objects are messages");
        return;
    };
    let known = fields.get("type").and_then(Value::as_str);
    if !matches!(known, Some("HELLO" | "WELCOME" | "AUTH")) || plain.len() > MESSAGE_MAX_BEFORE_AUTH_BYTES {
        return;
    }
    let model = depth(&value) <= JSON_DEPTH_MAX && model_accepts(fields);
    let again = decoded(v1, &plain, &limits);
    assert_eq!(again.is_ok(), model, "parser and model differ on {plain:?}: {again:?}");
    if direct.is_ok() {
        assert_eq!(direct, again, "white space, escapes and order of keys are of no account");
    }
    if let Ok((_, frames)) = again
        && let [Frame::Hello(hello)] = frames.as_slice()
    {
        assert_eq!(fields.get("initial_window").and_then(Value::as_u64), Some(hello.initial_window));
        assert_eq!(fields.get("challenge").and_then(Value::as_str), Some(hello.challenge.to_hex().as_str()));
        assert_eq!(list_len(fields, "capabilities"), Some(hello.capabilities.len()));
        assert_eq!(fields.contains_key("resume"), hello.resume.is_some());
    }
}

fn list_len(fields: &Map<String, Value>, key: &str) -> Option<usize> {
    fields.get(key)?.as_array().map(Vec::len)
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

type Check = fn(&Value) -> bool;

/// Whether each required key is there and right, and each optional key absent
/// or right.
fn object(fields: &Map<String, Value>, required: &[(&str, Check)], optional: &[(&str, Check)]) -> bool {
    required.iter().all(|(key, check)| fields.get(*key).is_some_and(check))
        && optional.iter().all(|(key, check)| fields.get(*key).is_none_or(check))
}

fn nested(value: &Value, required: &[(&str, Check)]) -> bool {
    value.as_object().is_some_and(|fields| object(fields, required, &[]))
}

fn list(value: &Value, max: usize, check: Check) -> bool {
    value.as_array().is_some_and(|items| items.len() <= max && items.iter().all(check))
}

fn hex(value: &Value, digits: usize) -> bool {
    value.as_str().is_some_and(|s| s.len() == digits && s.bytes().all(|b| b"0123456789abcdef".contains(&b)))
}

fn plain_name(s: &str) -> bool {
    (1..=64).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn base64(value: &Value) -> bool {
    let Some(text) = value.as_str() else { return false };
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.trim_end_matches('=');
    let pads = text.len() - digits.len();
    let last = digits.bytes().last().and_then(|b| ALPHABET.iter().position(|a| *a == b));
    let stray = match (pads, last) {
        (0, Some(_)) => 0,
        (1, Some(value)) => value & 3,
        (2, Some(value)) => value & 15,
        _ => return false,
    };
    text.len() <= 8192 && text.len().is_multiple_of(4) && stray == 0 && digits.bytes().all(|b| ALPHABET.contains(&b))
}

const NAME: Check = |v| v.as_str().is_some_and(plain_name);
const AGENT_ID: Check =
    |v| v.as_str().is_some_and(|s| s.split_once('/').map_or(plain_name(s), |(a, b)| plain_name(a) && plain_name(b)));
const NUMBER: Check = |v| v.as_u64().is_some_and(|n| n < 1 << 53);
const SMALL: Check = |v| v.as_u64().is_some_and(|n| n < 1 << 16);
const FLAG: Check = Value::is_boolean;
const HEX16: Check = |v| hex(v, 16);
const HEX32: Check = |v| hex(v, 32);
const HEX64: Check = |v| hex(v, 64);
const EPOCH: Check = |v| v.as_str().is_some_and(|s| s.parse::<u64>().is_ok_and(|n| n.to_string() == s));
const CAPABILITIES: Check = |v| list(v, 32, NAME);
const CONNECTORS: Check = |v| list(v, 256, |c| nested(c, &[("name", NAME), ("priority", SMALL), ("weight", SMALL)]));
const RESUME: Check = |v| nested(v, &[("session", HEX32), ("attempt", NUMBER), ("received", NUMBER), ("proof", HEX64)]);
const RESUMED: Check = |v| nested(v, &[("received", NUMBER), ("proof", HEX64)]);
const ATTACHMENT: Check = |v| nested(v, &[("epoch", EPOCH), ("nonce", HEX16), ("firm", FLAG)]);
const CHAIN: Check = |v| list(v, 8, base64) && v.as_array().is_some_and(|c| !c.is_empty());
const SIGNATURE: Check = |v| nested(v, &[("chain", CHAIN), ("scheme", NAME), ("signature", base64)]);
const SESSIONS: Check = |v| list(v, 16, HEX32);

fn model_accepts(fields: &Map<String, Value>) -> bool {
    let common: &[(&str, Check)] = &[("challenge", HEX32), ("initial_window", NUMBER), ("capabilities", CAPABILITIES)];
    let text = |key| fields.get(key).and_then(Value::as_str);
    match (text("type"), text("role")) {
        (Some("HELLO"), Some("agent")) => {
            let agent: &[(&str, Check)] =
                &[("agent_id", AGENT_ID), ("instance", HEX16), ("connectors", CONNECTORS), ("seen", EPOCH)];
            object(fields, &[agent, common].concat(), &[("resume", RESUME)])
        }
        (Some("HELLO"), Some("hub")) => {
            let hub: &[(&str, Check)] =
                &[("replica_id", NAME), ("incarnation", HEX16), ("namespace", NAME), ("sessions", SESSIONS)];
            object(fields, &[hub, common].concat(), &[("resume", RESUME), ("region", NAME)])
        }
        (Some("WELCOME"), _) => {
            let hub: &[(&str, Check)] = &[
                ("replica_id", NAME),
                ("incarnation", HEX16),
                ("namespace", NAME),
                ("session", HEX32),
                ("resume_window_ms", NUMBER),
            ];
            let optional: &[(&str, Check)] = &[
                ("region", NAME),
                ("secret", HEX64),
                ("resumed", RESUMED),
                ("attachment", ATTACHMENT),
                ("signature", SIGNATURE),
            ];
            object(fields, &[hub, common].concat(), optional)
        }
        (Some("AUTH"), _) => object(fields, &[], &[("signature", SIGNATURE)]),
        _ => false,
    }
}

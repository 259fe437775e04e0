//! The v1 encoding: JSON text, one frame a message, the field and type names of
//! the first NowConnect. It is an encoding of the same frames under the same
//! rules, so it is as strict as v2: objects only, no unknown, missing or
//! repeated key, numbers up to 2^53-1, canonical base64, at most eight levels
//! (checked before the parser runs). Attacks 35 and 36.
//!
//! DATA is the hot path: its text is borrowed, base64 goes through SIMD straight
//! into the output. Error details are fixed text and positions, because the
//! parser's own messages quote the peer (B10).

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::hello::{Capped, Num, Object, name, present};
use super::types::FrameType;
use super::{
    Body, CONNECTORS_MAX, ConnectorAd, EpochNotice, Frame, JSON_DEPTH_MAX, Open, Plane, Resume, SecretText, Status,
    TOKEN_MAX_BYTES, WireLimits, bad_name, check_message_size, check_payload_size, hello, malformed, too_large,
    unexpected,
};
use crate::error::{CloseCode, ProtocolError, ProtocolErrorKind, RstCode};
use crate::id::{AgentId, Cid, Epoch, Instance, Nonce, Secret};
use crate::planted;

/// Declares the texts of frames: `type` and `n`, for stream frames also `cid`
/// and `epoch`, then the frame's own keys in canonical order.
macro_rules! texts {
    ($($t:ident { $($(#[$m:meta])* $f:ident: $ft:ty),* })*) => {$(
        #[derive(Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $t<'a> {
            #[serde(rename = "type", borrow)]
            kind: Cow<'a, str>,
            n: Num,
            $($(#[$m])* $f: $ft),*
        }
    )*};
}
macro_rules! stream_texts {
    ($($t:ident { $($(#[$m:meta])* $f:ident: $ft:ty),* })*) => {texts! {$(
        $t { cid: Cid, epoch: Epoch, $($(#[$m])* $f: $ft),* }
    )*}};
}

texts! {
    AckText { received: Num }
    ProbeText { token: Num }
    GoAwayText { #[serde(borrow)] code: Cow<'a, str>, retry_after_ms: Num }
    EpochText {
        #[serde(borrow)] agent_id: Cow<'a, str>, instance: Instance, #[serde(borrow)] replica_id: Cow<'a, str>,
        epoch: Epoch, nonce: Nonce, firm: bool
    }
    StatusText { registry_healthy: bool, draining: bool, active: bool, initial_window: Num }
    ConnectorsText { generation: Num, #[serde(borrow)] connectors: Capped<Object<ConnectorText<'a>>, CONNECTORS_MAX> }
    TokenText { #[serde(borrow)] token: Cow<'a, str> }
    DataText { #[serde(borrow)] cid: Cow<'a, str>, #[serde(borrow)] epoch: Cow<'a, str>, seq: Num, #[serde(borrow)] b64: Cow<'a, str> }
}
stream_texts! {
    OpenText {
        nonce: Nonce, #[serde(borrow)] connector: Cow<'a, str>, #[serde(borrow)] agent_id: Cow<'a, str>,
        key: Secret<16>, limit: Num
    }
    OpenAckText {
        ok: bool,
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")] code: Option<String>
    }
    CreditText { consumed: Num, limit: Num }
    FinText { seq: Num }
    RstText { seq: Num, #[serde(borrow)] code: Cow<'a, str> }
    ResumeText { nonce: Nonce, #[serde(borrow)] agent_id: Cow<'a, str>, key: Secret<16>, next: Num, limit: Num }
}

/// A connector inside CONNECTORS, where unknown keys are refused.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConnectorText<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    priority: u16,
    weight: u16,
}

/// What is read of a frame whose type must first be found. Every other key is
/// for the frame's own parse: HELLO, WELCOME and AUTH may hold a strange `n`.
#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
}

/// What is read of a frame of unknown type.
#[derive(Deserialize)]
struct Envelope {
    /// Read before; here it must not repeat.
    #[serde(rename = "type")]
    _kind: serde::de::IgnoredAny,
    #[serde(default, deserialize_with = "present")]
    n: Option<Num>,
    #[serde(default, deserialize_with = "present")]
    optional: Option<bool>,
}

pub(super) fn decode(
    plane: Plane,
    msg: &Bytes,
    limits: &WireLimits,
    frames: &mut Vec<Frame>,
) -> Result<u64, ProtocolError> {
    check_message_size(msg.len(), limits)?;
    let text = checked_text(msg)?;
    let kind = match leading_type(text) {
        Some(kind) => Cow::Borrowed(kind),
        None => parse::<Kind<'_>>("frame", text)?.kind,
    };
    let Some(ty) = FrameType::from_v1_name(plane, &kind) else { return skip_unknown(text) };
    let (number, frame) = decode_frame(ty, text, limits)?;
    if number == 0 && !ty.unnumbered() {
        return Err(unexpected("a frame that must be numbered came with n 0"));
    }
    if number != 0 && ty.unnumbered() {
        return Err(unexpected("a frame that is never numbered came with n above 0"));
    }
    frames.push(frame);
    Ok(number)
}

#[cold]
fn skip_unknown(text: &str) -> Result<u64, ProtocolError> {
    let envelope: Envelope = parse("frame", text)?;
    if envelope.optional != Some(true) || planted::on(59) {
        return Err(ProtocolError::new(
            ProtocolErrorKind::UnknownType,
            "the frame type is unknown on this plane and not flagged optional",
        ));
    }
    envelope.n.map(|n| n.0).ok_or_else(|| malformed("an optional frame of unknown type has no n"))
}

/// The type when it is written first and plainly, as this encoder does. Only a
/// hint that saves a parse: the frame's own parse refuses a second `type`.
fn leading_type(text: &str) -> Option<&str> {
    let (kind, _) = text.strip_prefix("{\"type\":\"")?.split_once('"')?;
    (!kind.contains('\\')).then_some(kind)
}

/// The text of one JSON object, after the checks that come before any parse.
pub(super) fn checked_text(bytes: &[u8]) -> Result<&str, ProtocolError> {
    let text = std::str::from_utf8(bytes).map_err(|_| malformed("the text is not UTF-8"))?;
    let mut rest = bytes;
    let mut depth = 0_usize;
    while let Some((&b, after)) = rest.split_first() {
        rest = after;
        match b {
            b'{' | b'[' => {
                depth += 1;
                if depth > JSON_DEPTH_MAX {
                    return Err(malformed("the text is nested deeper than the limit"));
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => rest = after_string(rest),
            _ => {}
        }
    }
    Ok(text)
}

/// What follows the string whose opening quote was just read.
fn after_string(mut rest: &[u8]) -> &[u8] {
    while let Some(at) = memchr::memchr2(b'"', b'\\', rest) {
        let escape = rest.get(at) == Some(&b'\\');
        rest = rest.get(at + 1 + usize::from(escape)..).unwrap_or_default();
        if !escape {
            return rest;
        }
    }
    &[]
}

/// Parses one JSON object. `what` names the frame in the error.
pub(super) fn parse<'a, T: Deserialize<'a>>(what: &'static str, text: &'a str) -> Result<T, ProtocolError> {
    serde_json::from_str(text).map(|Object(t)| t).map_err(|e| {
        let reason = match e.classify() {
            serde_json::error::Category::Data => "a key is missing, unknown, repeated, or its value out of range",
            serde_json::error::Category::Eof => "the text ends early",
            serde_json::error::Category::Syntax | serde_json::error::Category::Io => "the text is not JSON",
        };
        malformed(format!("{what}: {reason} (line {}, column {})", e.line(), e.column()))
    })
}

/// Appends a value as JSON text.
pub(super) fn write<T: Serialize>(value: &T, head: &mut BytesMut) {
    serde_json::to_writer(head.writer(), value).expect("texts of frames have string keys and memory takes all bytes");
}

fn decode_frame(ty: FrameType, text: &str, limits: &WireLimits) -> Result<(u64, Frame), ProtocolError> {
    Ok(match ty {
        FrameType::Data => {
            let t: DataText<'_> = parse("DATA", text)?;
            let cid =
                Cid::parse(&t.cid).ok_or_else(|| malformed("DATA: cid is not 32 lower-case hexadecimal digits"))?;
            let epoch = Epoch::parse(&t.epoch).ok_or_else(|| malformed("DATA: epoch is not a decimal number"))?;
            let bytes = base64_decode(&t.b64, limits)?;
            (t.n.0, Frame::Stream { cid, epoch, body: Body::Data { off: t.seq.0, bytes } })
        }
        FrameType::Hello => (0, Frame::Hello(Box::new(hello::decode_hello(text.as_bytes())?))),
        FrameType::Welcome => (0, Frame::Welcome(Box::new(hello::decode_welcome(text.as_bytes())?))),
        FrameType::Auth => (0, Frame::Auth(Box::new(hello::decode_auth(text.as_bytes())?))),
        FrameType::Ack => {
            let t: AckText<'_> = parse("ACK", text)?;
            (t.n.0, Frame::Ack { received: t.received.0 })
        }
        FrameType::Ping => {
            let t: ProbeText<'_> = parse("PING", text)?;
            (t.n.0, Frame::Ping { token: t.token.0 })
        }
        FrameType::Pong => {
            let t: ProbeText<'_> = parse("PONG", text)?;
            (t.n.0, Frame::Pong { token: t.token.0 })
        }
        FrameType::GoAway => {
            let t: GoAwayText<'_> = parse("GOAWAY", text)?;
            let code = CloseCode::from_name(&t.code).ok_or_else(|| malformed("GOAWAY: the code is unknown"))?;
            (t.n.0, Frame::GoAway { code, retry_after_ms: t.retry_after_ms.0 })
        }
        FrameType::Epoch => {
            let t: EpochText<'_> = parse("EPOCH", text)?;
            let notice = EpochNotice {
                agent_id: agent_id(&t.agent_id)?,
                instance: t.instance,
                replica_id: name("replica_id", &t.replica_id)?,
                epoch: t.epoch,
                nonce: t.nonce,
                firm: t.firm,
            };
            (t.n.0, Frame::Epoch(Box::new(notice)))
        }
        FrameType::Status => {
            let t: StatusText<'_> = parse("STATUS", text)?;
            let status = Status {
                registry_healthy: t.registry_healthy,
                draining: t.draining,
                active: t.active,
                initial_window: t.initial_window.0,
            };
            (t.n.0, Frame::Status(status))
        }
        FrameType::Connectors => {
            let t: ConnectorsText<'_> = parse("CONNECTORS", text)?;
            let list = t.connectors.within("connectors")?;
            let mut connectors = Vec::with_capacity(list.len());
            for Object(c) in list {
                connectors.push(ConnectorAd { name: name("name", &c.name)?, priority: c.priority, weight: c.weight });
            }
            (t.n.0, Frame::Connectors { generation: t.generation.0, connectors })
        }
        FrameType::Token => {
            let t: TokenText<'_> = parse("TOKEN", text)?;
            if t.token.is_empty() {
                return Err(malformed("TOKEN: the token is empty"));
            }
            if t.token.len() > TOKEN_MAX_BYTES {
                return Err(too_large("TOKEN: the token is longer than the limit"));
            }
            (t.n.0, Frame::Token { token: SecretText(t.token.into_owned()) })
        }
        FrameType::Open
        | FrameType::OpenAck
        | FrameType::Credit
        | FrameType::Fin
        | FrameType::Rst
        | FrameType::Resume => decode_stream(ty, text)?,
    })
}

fn decode_stream(ty: FrameType, text: &str) -> Result<(u64, Frame), ProtocolError> {
    // The keys every stream frame shares; the body is built from the rest.
    macro_rules! stream {
        ($t:ident, $body:expr) => {
            Ok(($t.n.0, Frame::Stream { cid: $t.cid, epoch: $t.epoch, body: $body }))
        };
    }
    match ty {
        FrameType::Open => {
            let t: OpenText<'_> = parse("OPEN", text)?;
            let open = Open {
                nonce: t.nonce,
                connector: name("connector", &t.connector)?,
                agent_id: agent_id(&t.agent_id)?,
                key: t.key,
                limit: t.limit.0,
            };
            stream!(t, Body::Open(Box::new(open)))
        }
        FrameType::OpenAck => {
            let t: OpenAckText<'_> = parse("OPEN_ACK", text)?;
            let result = match (t.ok, &t.code) {
                (true, None) => Ok(()),
                (false, Some(code)) => Err(rst_code(code)?),
                _ => return Err(malformed("OPEN_ACK: code is there exactly when ok is false")),
            };
            stream!(t, Body::OpenAck { result })
        }
        FrameType::Credit => {
            let t: CreditText<'_> = parse("CREDIT", text)?;
            stream!(t, Body::Credit { consumed: t.consumed.0, limit: t.limit.0 })
        }
        FrameType::Fin => {
            let t: FinText<'_> = parse("FIN", text)?;
            stream!(t, Body::Fin { final_off: t.seq.0 })
        }
        FrameType::Rst => {
            let t: RstText<'_> = parse("RST", text)?;
            stream!(t, Body::Rst { code: rst_code(&t.code)?, final_off: t.seq.0 })
        }
        FrameType::Resume => {
            let t: ResumeText<'_> = parse("RESUME", text)?;
            let resume = Resume {
                nonce: t.nonce,
                agent_id: agent_id(&t.agent_id)?,
                key: t.key,
                next: t.next.0,
                limit: t.limit.0,
            };
            stream!(t, Body::Resume(Box::new(resume)))
        }
        FrameType::Hello
        | FrameType::Welcome
        | FrameType::Auth
        | FrameType::Ack
        | FrameType::Ping
        | FrameType::Pong
        | FrameType::GoAway
        | FrameType::Epoch
        | FrameType::Status
        | FrameType::Connectors
        | FrameType::Token
        | FrameType::Data => Err(malformed("not a stream frame without payload")),
    }
}

fn rst_code(text: &str) -> Result<RstCode, ProtocolError> {
    RstCode::from_name(text).ok_or_else(|| malformed("RST or OPEN_ACK: the code is unknown"))
}

fn agent_id(text: &str) -> Result<AgentId, ProtocolError> {
    AgentId::new(text).map_err(|e| bad_name(format!("agent_id: {e}")))
}

pub(super) fn encode(plane: Plane, number: u64, frame: &Frame, head: &mut BytesMut) {
    let name = FrameType::of(frame).v1_name(plane);
    let (kind, n) = (Cow::Borrowed(name), Num(number));
    match frame {
        Frame::Hello(hello) => hello::encode_hello(hello, head),
        Frame::Welcome(welcome) => hello::encode_welcome(welcome, head),
        Frame::Auth(auth) => hello::encode_auth(auth, head),
        Frame::Ack { received } => write(&AckText { kind, n, received: Num(*received) }, head),
        Frame::Ping { token } | Frame::Pong { token } => write(&ProbeText { kind, n, token: Num(*token) }, head),
        Frame::GoAway { code, retry_after_ms } => {
            write(&GoAwayText { kind, n, code: code.name().into(), retry_after_ms: Num(*retry_after_ms) }, head);
        }
        Frame::Epoch(notice) => {
            let text = EpochText {
                kind,
                n,
                agent_id: notice.agent_id.as_str().into(),
                instance: notice.instance,
                replica_id: notice.replica_id.as_str().into(),
                epoch: notice.epoch,
                nonce: notice.nonce,
                firm: notice.firm,
            };
            write(&text, head);
        }
        Frame::Status(status) => {
            let text = StatusText {
                kind,
                n,
                registry_healthy: status.registry_healthy,
                draining: status.draining,
                active: status.active,
                initial_window: Num(status.initial_window),
            };
            write(&text, head);
        }
        Frame::Connectors { generation, connectors } => {
            let texts = connectors.iter().map(|c| {
                Object(ConnectorText { name: c.name.as_str().into(), priority: c.priority, weight: c.weight })
            });
            let connectors = Capped::new(texts.collect());
            write(&ConnectorsText { kind, n, generation: Num(*generation), connectors }, head);
        }
        Frame::Token { token } => write(&TokenText { kind, n, token: token.0.as_str().into() }, head),
        Frame::Stream { cid, epoch, body: Body::Data { off, bytes } } => {
            head.reserve(160 + base64_simd::STANDARD.encoded_length(bytes.len()));
            put(
                head,
                format_args!(
                    "{{\"type\":\"{name}\",\"n\":{number},\"cid\":\"{cid}\",\"epoch\":\"{epoch}\",\"seq\":{off},\"b64\":\""
                ),
            );
            base64_append(bytes, head);
            head.put_slice(b"\"}");
        }
        Frame::Stream { cid, epoch, body } => encode_stream(kind, n, *cid, *epoch, body, head),
    }
}

fn encode_stream(kind: Cow<'_, str>, n: Num, cid: Cid, epoch: Epoch, body: &Body, head: &mut BytesMut) {
    match body {
        Body::Open(open) => {
            let text = OpenText {
                kind,
                n,
                cid,
                epoch,
                nonce: open.nonce,
                connector: open.connector.as_str().into(),
                agent_id: open.agent_id.as_str().into(),
                key: open.key,
                limit: Num(open.limit),
            };
            write(&text, head);
        }
        Body::OpenAck { result } => {
            let code = result.err().map(|c| c.name().to_owned());
            write(&OpenAckText { kind, n, cid, epoch, ok: result.is_ok(), code }, head);
        }
        Body::Credit { consumed, limit } => {
            write(&CreditText { kind, n, cid, epoch, consumed: Num(*consumed), limit: Num(*limit) }, head);
        }
        Body::Fin { final_off } => write(&FinText { kind, n, cid, epoch, seq: Num(*final_off) }, head),
        Body::Rst { code, final_off } => {
            write(&RstText { kind, n, cid, epoch, seq: Num(*final_off), code: code.name().into() }, head);
        }
        Body::Resume(resume) => {
            let text = ResumeText {
                kind,
                n,
                cid,
                epoch,
                nonce: resume.nonce,
                agent_id: resume.agent_id.as_str().into(),
                key: resume.key,
                next: Num(resume.next),
                limit: Num(resume.limit),
            };
            write(&text, head);
        }
        Body::Data { .. } => debug_assert!(false, "DATA is written by encode"),
    }
}

fn put(head: &mut BytesMut, text: std::fmt::Arguments<'_>) {
    // Memory takes all bytes, so this cannot fail.
    let _ = head.write_fmt(text);
}

/// Appends payload in canonical base64; its letters need no JSON escape.
fn base64_append(payload: &[u8], head: &mut BytesMut) {
    use base64_simd::AsOut as _;
    let start = head.len();
    head.resize(start + base64_simd::STANDARD.encoded_length(payload.len()), 0);
    let _ = base64_simd::STANDARD.encode(payload, head[start..].as_out());
}

/// Decodes canonical base64 (padded, no stray bits) after checking its size.
fn base64_decode(text: &str, limits: &WireLimits) -> Result<Bytes, ProtocolError> {
    let wrong = |_| malformed("DATA: b64 is not canonical base64");
    let len = base64_simd::STANDARD.decoded_length(text.as_bytes()).map_err(wrong)?;
    check_payload_size(len, limits)?;
    let payload: Vec<u8> = base64_simd::STANDARD.decode_type(text).map_err(wrong)?;
    Ok(Bytes::from(payload))
}

/// Whether a text is canonical base64.
pub(super) fn is_base64(text: &str) -> bool {
    base64_simd::STANDARD.check(text.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests;

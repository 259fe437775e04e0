//! The v2 encoding: a message is its number, then frames of type byte, body
//! length and body. Numbers are minimal LEB128 of at most 2^53-1, so one value
//! has one spelling and `encode(decode(x)) == x` for every accepted message
//! without handshake or skipped frames. Payload is a slice of the message on
//! the way in and a slice of its own on the way out: never copied here.
//! Everything is length-checked before it is allocated (attacks 35 and 37).
//! Must not know what a number means.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::types::FrameType;
use super::{
    Body, CONNECTORS_MAX, ConnectorAd, EpochNotice, Frame, MESSAGE_BYTES_PER_FRAME, NUMBER_MAX, Open, Resume,
    SecretText, Status, TOKEN_MAX_BYTES, WireLimits, bad_name, check_message_size, check_payload_size, hello,
    malformed, too_large, unexpected,
};
use crate::error::{CloseCode, ProtocolError, ProtocolErrorKind, RstCode};
use crate::id::{AgentId, Cid, Epoch, Instance, Name, Nonce, Secret};
use crate::planted;

/// Set in a type byte: a receiver that does not know the type skips the frame.
const OPTIONAL: u8 = 0x80;
/// Bytes of a stream frame's body before its own fields: cid and epoch.
const STREAM_HEAD_BYTES: usize = 24;

/// Longest form of any u64; a number that may travel has at most 8 bytes.
const NUMBER_MAX_BYTES: usize = 10;

const REGISTRY_HEALTHY: u8 = 1;
const DRAINING: u8 = 2;
const ACTIVE: u8 = 4;

pub(super) fn decode(msg: &Bytes, limits: &WireLimits, frames: &mut Vec<Frame>) -> Result<u64, ProtocolError> {
    check_message_size(msg.len(), limits)?;
    let mut reader = Reader { rest: msg };
    let number = reader.number()?;
    if reader.rest.is_empty() {
        return Err(malformed("a message of at least one frame was expected, it holds none"));
    }
    // Tiny frames grow when decoded; this bounds the growth (attack 37).
    let mut room = limits.message_bytes / MESSAGE_BYTES_PER_FRAME;
    let (mut numbered, mut skipped) = (false, false);
    while let Some((&type_byte, rest)) = reader.rest.split_first() {
        room = room.checked_sub(1).ok_or_else(|| too_large("more frames in one message than the limit"))?;
        reader.rest = rest;
        let len = reader.number()?;
        let body = reader.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        let Some(ty) = FrameType::from_number(type_byte) else {
            skip_unknown(type_byte)?;
            skipped = true;
            continue;
        };
        if number == 0 && !ty.unnumbered() {
            return Err(unexpected("a frame that must be numbered came in an unnumbered message"));
        }
        if number != 0 && ty.handshake() {
            return Err(unexpected("a handshake frame came in a numbered message"));
        }
        numbered |= !ty.unnumbered();
        let mut r = Reader { rest: body };
        if ty == FrameType::Data {
            let (cid, epoch, off) = (r.cid()?, r.epoch()?, r.number()?);
            check_payload_size(r.rest.len(), limits)?;
            let end = msg.len() - reader.rest.len();
            let bytes = msg.slice(end - r.rest.len()..end);
            frames.push(Frame::Stream { cid, epoch, body: Body::Data { off, bytes } });
            continue;
        }
        frames.push(decode_control(ty, &mut r)?);
        if !r.rest.is_empty() {
            return Err(malformed("bytes follow the last field of a frame"));
        }
    }
    // A skipped frame may have been the numbered one.
    if number != 0 && !numbered && !skipped {
        return Err(unexpected("a numbered message came without a frame that is numbered"));
    }
    Ok(number)
}

#[cold]
fn skip_unknown(type_byte: u8) -> Result<(), ProtocolError> {
    if type_byte & OPTIONAL == 0 || planted::on(59) {
        return Err(ProtocolError::new(
            ProtocolErrorKind::UnknownType,
            format!("frame type {type_byte} is unknown and not flagged optional"),
        ));
    }
    if FrameType::from_number(type_byte & !OPTIONAL).is_some() {
        return Err(malformed("the optional flag was set on a frame type that is not optional"));
    }
    Ok(())
}

/// Decodes one body other than DATA's.
#[inline(never)]
fn decode_control(ty: FrameType, r: &mut Reader<'_>) -> Result<Frame, ProtocolError> {
    Ok(match ty {
        FrameType::Hello => Frame::Hello(Box::new(hello::decode_hello(r.rest_taken())?)),
        FrameType::Welcome => Frame::Welcome(Box::new(hello::decode_welcome(r.rest_taken())?)),
        FrameType::Auth => Frame::Auth(Box::new(hello::decode_auth(r.rest_taken())?)),
        FrameType::Ack => Frame::Ack { received: r.number()? },
        FrameType::Ping => Frame::Ping { token: r.number()? },
        FrameType::Pong => Frame::Pong { token: r.number()? },
        FrameType::GoAway => {
            let code = CloseCode::from_number(r.byte()?).ok_or_else(|| malformed("GOAWAY: the code is unknown"))?;
            Frame::GoAway { code, retry_after_ms: r.number()? }
        }
        FrameType::Epoch => Frame::Epoch(Box::new(EpochNotice {
            agent_id: r.agent_id()?,
            instance: Instance(r.u64()?),
            replica_id: r.name("replica_id")?,
            epoch: r.epoch()?,
            nonce: Nonce(r.u64()?),
            firm: match r.byte()? {
                0 => false,
                1 => true,
                _ => return Err(malformed("EPOCH: firm is neither 0 nor 1")),
            },
        })),
        FrameType::Status => {
            let flags = r.byte()?;
            if flags & !(REGISTRY_HEALTHY | DRAINING | ACTIVE) != 0 {
                return Err(malformed("STATUS: a reserved flag is set"));
            }
            Frame::Status(Status {
                registry_healthy: flags & REGISTRY_HEALTHY != 0,
                draining: flags & DRAINING != 0,
                active: flags & ACTIVE != 0,
                initial_window: r.number()?,
            })
        }
        FrameType::Connectors => {
            let generation = r.number()?;
            let count = usize::try_from(r.number()?).unwrap_or(usize::MAX);
            if count > CONNECTORS_MAX {
                return Err(bad_name("connectors: more entries than the limit"));
            }
            let mut connectors = Vec::with_capacity(count);
            for _ in 0..count {
                connectors.push(ConnectorAd { name: r.name("name")?, priority: r.u16()?, weight: r.u16()? });
            }
            Frame::Connectors { generation, connectors }
        }
        FrameType::Token => {
            let text = r.rest_taken();
            if text.len() > TOKEN_MAX_BYTES {
                return Err(too_large("TOKEN: the token is longer than the limit"));
            }
            match std::str::from_utf8(text) {
                Ok(t) if !t.is_empty() => Frame::Token { token: SecretText(t.to_owned()) },
                _ => return Err(malformed("TOKEN: the token is empty or not UTF-8")),
            }
        }
        FrameType::Open
        | FrameType::OpenAck
        | FrameType::Data
        | FrameType::Credit
        | FrameType::Fin
        | FrameType::Rst
        | FrameType::Resume => Frame::Stream { cid: r.cid()?, epoch: r.epoch()?, body: decode_stream(ty, r)? },
    })
}

fn decode_stream(ty: FrameType, r: &mut Reader<'_>) -> Result<Body, ProtocolError> {
    Ok(match ty {
        FrameType::Open => Body::Open(Box::new(Open {
            nonce: Nonce(r.u64()?),
            connector: r.name("connector")?,
            agent_id: r.agent_id()?,
            key: Secret(r.array()?),
            limit: r.number()?,
        })),
        FrameType::OpenAck => Body::OpenAck {
            result: match r.byte()? {
                0 => Ok(()),
                n => Err(RstCode::from_number(n).ok_or_else(|| malformed("OPEN_ACK: the code is unknown"))?),
            },
        },
        FrameType::Credit => Body::Credit { consumed: r.number()?, limit: r.number()? },
        FrameType::Fin => Body::Fin { final_off: r.number()? },
        FrameType::Rst => {
            let code = RstCode::from_number(r.byte()?).ok_or_else(|| malformed("RST: the code is unknown"))?;
            Body::Rst { code, final_off: r.number()? }
        }
        FrameType::Resume => Body::Resume(Box::new(Resume {
            nonce: Nonce(r.u64()?),
            agent_id: r.agent_id()?,
            key: Secret(r.array()?),
            next: r.number()?,
            limit: r.number()?,
        })),
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
        | FrameType::Data => return Err(malformed("not a stream frame without payload")),
    })
}

/// What is left of a message or of a body.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    fn byte(&mut self) -> Result<u8, ProtocolError> {
        let (&b, rest) = self.rest.split_first().ok_or_else(truncated)?;
        self.rest = rest;
        Ok(b)
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], ProtocolError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or_else(truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn rest_taken(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    fn u16(&mut self) -> Result<u16, ProtocolError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    #[inline]
    fn u64(&mut self) -> Result<u64, ProtocolError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    #[inline]
    fn cid(&mut self) -> Result<Cid, ProtocolError> {
        Ok(Cid(u128::from_be_bytes(self.array()?)))
    }

    #[inline]
    fn epoch(&mut self) -> Result<Epoch, ProtocolError> {
        Ok(Epoch(self.u64()?))
    }

    /// A minimal LEB128 number of at most 2^53-1, hence at most 8 bytes.
    #[inline]
    fn number(&mut self) -> Result<u64, ProtocolError> {
        match self.rest.split_first() {
            Some((&b, rest)) if b < 0x80 => {
                self.rest = rest;
                Ok(u64::from(b))
            }
            _ => self.long_number(),
        }
    }

    /// A number of two bytes or more, read as one word: a loop over its bytes
    /// was a third of the cost of decoding DATA.
    #[inline]
    fn long_number(&mut self) -> Result<u64, ProtocolError> {
        let word = match self.rest.first_chunk() {
            Some(chunk) => u64::from_le_bytes(*chunk),
            None => {
                // Continuation bits in the padding mean that the number goes on.
                let mut padded = [0x80; 8];
                padded.iter_mut().zip(self.rest).for_each(|(p, b)| *p = *b);
                u64::from_le_bytes(padded)
            }
        };
        let stops = !word & 0x8080_8080_8080_8080;
        if stops == 0 {
            return Err(if self.rest.len() < 8 { truncated() } else { malformed("a number has more than 8 bytes") });
        }
        let bits = stops.trailing_zeros() + 1;
        let used = word & (u64::MAX >> (64 - bits));
        if used >> (bits - 8) == 0 && bits > 8 {
            return Err(malformed("a number is not in its shortest form"));
        }
        // Squeeze the eighth bit out of each byte: pairs, fours, eights.
        let x = used & 0x7f7f_7f7f_7f7f_7f7f;
        let x = (x & 0x007f_007f_007f_007f) | ((x & 0x7f00_7f00_7f00_7f00) >> 1);
        let x = (x & 0x0000_3fff_0000_3fff) | ((x & 0x3fff_0000_3fff_0000) >> 2);
        let value = (x & 0x0fff_ffff) | ((x & 0x0fff_ffff_0000_0000) >> 4);
        if value > NUMBER_MAX {
            return Err(malformed("a number exceeds 2^53-1"));
        }
        self.rest = self.rest.get(bits as usize / 8..).unwrap_or_default();
        Ok(value)
    }

    fn text(&mut self) -> Result<&'a str, ProtocolError> {
        let len = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        std::str::from_utf8(self.take(len)?).map_err(|_| malformed("a text is not UTF-8"))
    }

    fn name(&mut self, field: &'static str) -> Result<Name, ProtocolError> {
        Name::new(self.text()?).map_err(|e| bad_name(format!("{field}: {e}")))
    }

    fn agent_id(&mut self) -> Result<AgentId, ProtocolError> {
        AgentId::new(self.text()?).map_err(|e| bad_name(format!("agent_id: {e}")))
    }
}

#[cold]
fn truncated() -> ProtocolError {
    malformed("a frame or field ends early")
}

pub(super) fn encode_message_start(number: u64, head: &mut BytesMut) {
    put_number(number, head);
}

/// Whether the payload has to follow: that of the frame and `more` bytes.
#[inline]
pub(super) fn encode_frame(frame: &Frame, more: usize, head: &mut BytesMut) -> bool {
    let ty = FrameType::of(frame);
    if let Frame::Stream { cid, epoch, body: Body::Data { off, bytes } } = frame {
        let len = STREAM_HEAD_BYTES + number_len(*off) + bytes.len() + more;
        // One append of everything before the payload.
        let mut out = [0; 1 + NUMBER_MAX_BYTES + STREAM_HEAD_BYTES + NUMBER_MAX_BYTES];
        out[0] = ty.number();
        let at = 1 + number_len(len as u64);
        write_number(len as u64, &mut out[1..at]);
        out[at..at + 16].copy_from_slice(&cid.0.to_be_bytes());
        out[at + 16..at + STREAM_HEAD_BYTES].copy_from_slice(&epoch.0.to_be_bytes());
        let end = at + STREAM_HEAD_BYTES + number_len(*off);
        write_number(*off, &mut out[at + STREAM_HEAD_BYTES..end]);
        head.put_slice(&out[..end]);
        return true;
    }
    head.put_u8(ty.number());
    // Nearly every body is shorter than 128 bytes: one length byte is set
    // aside and the body moved only when that was wrong.
    let at = head.len();
    head.put_u8(0);
    encode_control(frame, head);
    let len = head.len() - at - 1;
    let extra = number_len(len as u64) - 1;
    if extra > 0 {
        let body_end = head.len();
        head.put_bytes(0, extra);
        head.copy_within(at + 1..body_end, at + 1 + extra);
    }
    write_number(len as u64, &mut head[at..=at + extra]);
    false
}

fn encode_control(frame: &Frame, head: &mut BytesMut) {
    match frame {
        Frame::Hello(hello) => hello::encode_hello(hello, head),
        Frame::Welcome(welcome) => hello::encode_welcome(welcome, head),
        Frame::Auth(auth) => hello::encode_auth(auth, head),
        Frame::Ack { received } => put_number(*received, head),
        Frame::Ping { token } | Frame::Pong { token } => put_number(*token, head),
        Frame::GoAway { code, retry_after_ms } => {
            head.put_u8(code.number());
            put_number(*retry_after_ms, head);
        }
        Frame::Epoch(notice) => {
            put_text(notice.agent_id.as_str(), head);
            head.put_u64(notice.instance.0);
            put_text(notice.replica_id.as_str(), head);
            head.put_u64(notice.epoch.0);
            head.put_u64(notice.nonce.0);
            head.put_u8(u8::from(notice.firm));
        }
        Frame::Status(status) => {
            let flag = |set: bool, bit: u8| if set { bit } else { 0 };
            head.put_u8(
                flag(status.registry_healthy, REGISTRY_HEALTHY)
                    | flag(status.draining, DRAINING)
                    | flag(status.active, ACTIVE),
            );
            put_number(status.initial_window, head);
        }
        Frame::Connectors { generation, connectors } => {
            put_number(*generation, head);
            put_number(connectors.len() as u64, head);
            for c in connectors {
                put_text(c.name.as_str(), head);
                head.put_u16(c.priority);
                head.put_u16(c.weight);
            }
        }
        Frame::Token { token } => head.put_slice(token.0.as_bytes()),
        Frame::Stream { cid, epoch, body } => {
            head.put_u128(cid.0);
            head.put_u64(epoch.0);
            encode_stream(body, head);
        }
    }
}

fn encode_stream(body: &Body, head: &mut BytesMut) {
    match body {
        Body::Open(open) => {
            head.put_u64(open.nonce.0);
            put_text(open.connector.as_str(), head);
            put_text(open.agent_id.as_str(), head);
            head.put_slice(&open.key.0);
            put_number(open.limit, head);
        }
        Body::OpenAck { result } => head.put_u8(result.map_or_else(RstCode::number, |()| 0)),
        // `encode_frame` has returned before it comes here with DATA.
        Body::Data { off, .. } => put_number(*off, head),
        Body::Credit { consumed, limit } => {
            put_number(*consumed, head);
            put_number(*limit, head);
        }
        Body::Fin { final_off } => put_number(*final_off, head),
        Body::Rst { code, final_off } => {
            head.put_u8(code.number());
            put_number(*final_off, head);
        }
        Body::Resume(resume) => {
            head.put_u64(resume.nonce.0);
            put_text(resume.agent_id.as_str(), head);
            head.put_slice(&resume.key.0);
            put_number(resume.next, head);
            put_number(resume.limit, head);
        }
    }
}

fn put_text(text: &str, head: &mut BytesMut) {
    put_number(text.len() as u64, head);
    head.put_slice(text.as_bytes());
}

/// Bytes of a number's shortest form.
#[inline]
const fn number_len(n: u64) -> usize {
    (64 - (n | 1).leading_zeros() as usize).div_ceil(7)
}

#[inline]
fn put_number(n: u64, head: &mut BytesMut) {
    let mut buf = [0; NUMBER_MAX_BYTES];
    let out = &mut buf[..number_len(n)];
    write_number(n, out);
    head.put_slice(out);
}

/// Writes `n` into exactly `number_len(n)` bytes.
#[inline]
fn write_number(mut n: u64, out: &mut [u8]) {
    debug_assert!(n <= NUMBER_MAX, "a number beyond 2^53-1 is refused by every peer");
    let last = out.len().saturating_sub(1);
    for (i, b) in out.iter_mut().enumerate() {
        *b = (n as u8 & 0x7f) | if i < last { 0x80 } else { 0 };
        n >>= 7;
    }
}

#[cfg(test)]
mod tests;

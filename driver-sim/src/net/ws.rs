//! The WebSocket layer of one end of a connection (L1): the code of the
//! production driver where it has no runtime in it.
//!
//! Reading is tungstenite's with the driver's own [`meter`] in front; frames
//! are made and queued by the driver's own [`outgoing`], so headers, masks and
//! the places where a pong or a close may go are what production writes. What
//! differs is below: sockets are [`Pipe`]s, and mask keys follow from the tape
//! (D1). tungstenite masks its control frames with keys of its own, from the
//! system; they are unmasked by the reader and reach no hash and no timing.

#[allow(unreachable_pub, reason = "the driver exports what this crate does not")]
#[path = "../../../driver-tokio/src/ws/meter.rs"]
mod meter;
#[path = "../../../driver-tokio/src/ws/outgoing.rs"]
mod outgoing;

use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use nowconnect_core::rng::Seed;
use nowconnect_core::wire::{Codec, MESSAGE_MAX_BEFORE_AUTH_BYTES, MESSAGE_MAX_BYTES};
use tokio::io::AsyncWrite;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, OpCode};
use tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig, WebSocketContext};

use super::pipe::Pipe;
use crate::tape::Lane;
use meter::Meter;
use outgoing::Outgoing;

/// Bytes the reader asks the socket for at a time: as with production's
/// larger buffers, a message is read in one or in many calls.
const READ_BUFFER_BYTES: usize = 8 * 1024;

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Message(Bytes),
    /// Bytes the peer's ping carried; an answer is queued.
    Ping(Bytes),
    Pong(Bytes),
    /// The peer said good-bye; an answer is queued.
    Closed,
    /// The stream ended without a good-bye.
    Eof,
    /// The peer broke a rule and is told this code.
    Broken(u16),
    /// Nothing to read for now.
    Nothing,
}

/// The WebSocket layer of one end.
#[derive(Debug)]
pub(super) struct Ws {
    reader: WebSocketContext,
    meter: Meter,
    /// Messages and control frames taken from the reader.
    taken: u64,
    out: Outgoing,
    text: bool,
    keys: Option<nowconnect_core::rng::Rng>,
}

/// What tungstenite reads from during one call; it writes control frames.
struct Wire<'a> {
    pipe: Option<(&'a mut Pipe, &'a mut Lane)>,
    meter: &'a mut Meter,
    control: Vec<u8>,
}

impl Read for Wire<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some((pipe, lane)) = &mut self.pipe else { return Err(io::ErrorKind::WouldBlock.into()) };
        if pipe.at_end() {
            return Ok(0);
        }
        let all = pipe.readable().min(out.len());
        // A read may give less than there is (N3).
        let n = if lane.chance(1, 4) { lane.between(1, all.max(1) as u64) as usize } else { all };
        let n = out.get_mut(..n.min(all)).map_or(0, |out| pipe.read(out));
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let ok = out.get(..n).is_some_and(|b| self.meter.pass(b));
        if ok { Ok(n) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.control.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The send buffer as a socket: takes what it has room for, now and then in
/// smaller parts (N3, N12).
struct Sink<'a> {
    pipe: &'a mut Pipe,
    lane: &'a mut Lane,
    most: u64,
}

impl Sink<'_> {
    fn take(&mut self, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.pipe.room() == 0 {
            return Poll::Pending;
        }
        let most = if self.lane.chance(1, 4) { self.lane.between(1, self.most) } else { self.most };
        let (mut left, mut taken) = (most as usize, 0);
        for buf in bufs {
            let part = buf.get(..buf.len().min(left)).unwrap_or(&[]);
            let n = self.pipe.accept(part);
            taken += n;
            left -= n;
            if n < buf.len() {
                break;
            }
        }
        Poll::Ready(Ok(taken))
    }
}

impl AsyncWrite for Sink<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.take(&[IoSlice::new(buf)])
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.take(bufs)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Ws {
    /// An end after the upgrade. A client masks with keys from `seed`, and
    /// takes the full size of messages at once; a server does when the session
    /// is authenticated (attack 8).
    pub(super) fn new(role: Role, codec: Codec, seed: u64) -> Self {
        let max = match role {
            Role::Client => MESSAGE_MAX_BYTES,
            Role::Server => MESSAGE_MAX_BEFORE_AUTH_BYTES,
        };
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(4096)
            .max_message_size(Some(max))
            .max_frame_size(Some(max))
            .accept_unmasked_frames(false);
        let masks = |label: &str| match role {
            Role::Client => Some(Seed::from_u64(seed).fork(label).rng()),
            Role::Server => None,
        };
        let text = codec == Codec::JsonV1;
        Self {
            reader: WebSocketContext::new(role, Some(config)),
            meter: Meter::default(),
            taken: 0,
            out: Outgoing::new(text, masks("data")),
            text,
            keys: masks("ping"),
        }
    }

    /// The session is authenticated.
    pub(super) fn trust(&mut self) {
        self.reader.set_config(|config| {
            config.max_message_size = Some(MESSAGE_MAX_BYTES);
            config.max_frame_size = Some(MESSAGE_MAX_BYTES);
        });
    }

    /// Bytes queued and not taken by the socket.
    pub(super) fn queued_bytes(&self) -> u64 {
        self.out.queued_bytes() as u64
    }

    /// Queues one message.
    pub(super) fn queue(&mut self, chunks: impl IntoIterator<Item = Bytes>, len: usize) {
        self.out.message(chunks, len);
    }

    /// Queues a ping, as something between two nodes may send one.
    pub(super) fn ping(&mut self, payload: [u8; 8]) {
        let mask = self.keys.as_mut().map(nowconnect_core::rng::Rng::bytes::<4>);
        let header = FrameHeader { opcode: OpCode::Control(Control::Ping), mask, ..FrameHeader::default() };
        let mut frame = Vec::with_capacity(16);
        // Writing into a growing buffer cannot fail.
        let _ = header.format(payload.len() as u64, &mut frame);
        let key = mask.unwrap_or([0; 4]);
        frame.extend(payload.iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k));
        self.out.pong(frame.into());
    }

    /// Hands what is queued to the socket. True when it took everything.
    pub(super) fn flush(&mut self, pipe: &mut Pipe, lane: &mut Lane, most: u64) -> bool {
        let mut sink = Sink { pipe, lane, most: most.max(1) };
        let ready = self.out.poll_flush(&mut Context::from_waker(Waker::noop()), &mut sink);
        matches!(ready, Poll::Ready(Ok(())))
    }

    /// Whether bytes of a message that is not complete were read since the
    /// last call.
    pub(super) fn take_grown(&mut self) -> bool {
        self.meter.take_grown()
    }

    /// Reads the next thing from the socket.
    pub(super) fn read(&mut self, pipe: &mut Pipe, lane: &mut Lane) -> Incoming {
        let must_read = self.meter.complete() == self.taken;
        if must_read && pipe.readable() == 0 && !pipe.at_end() {
            return Incoming::Nothing;
        }
        let read = {
            let mut wire = Wire { pipe: Some((pipe, lane)), meter: &mut self.meter, control: Vec::new() };
            self.reader.read(&mut wire)
        };
        self.taken += u64::from(read.is_ok());
        match read {
            Ok(Message::Binary(bytes)) if !self.text => Incoming::Message(bytes),
            Ok(Message::Text(text)) if self.text => Incoming::Message(text.into()),
            Ok(Message::Binary(_) | Message::Text(_)) => self.broken(1003),
            Ok(Message::Ping(payload)) => {
                let pong = self.control(|reader, wire| reader.flush(wire));
                self.out.pong(pong);
                Incoming::Ping(payload)
            }
            Ok(Message::Pong(payload)) => Incoming::Pong(payload),
            Ok(Message::Close(_)) => {
                let answer = self.control(|reader, wire| reader.flush(wire));
                self.out.close(answer);
                Incoming::Closed
            }
            Ok(Message::Frame(_)) => self.broken(1002),
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &tungstenite::Error) -> Incoming {
        use tungstenite::Error as E;
        use tungstenite::error::ProtocolError as P;
        let code = match (self.meter.fault(), error) {
            (Some(meter::Fault::Fragments), _) => 1009,
            (Some(meter::Fault::LongLength), _) => 1002,
            (None, E::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => return Incoming::Nothing,
            (None, E::Io(_) | E::ConnectionClosed | E::AlreadyClosed) => return Incoming::Eof,
            (None, E::Protocol(P::ResetWithoutClosingHandshake)) => return Incoming::Eof,
            (None, E::Capacity(_)) => 1009,
            (None, E::Utf8(_)) => 1007,
            (
                None,
                E::Protocol(_)
                | E::Tls(_)
                | E::WriteBufferFull(_)
                | E::AttackAttempt
                | E::Url(_)
                | E::Http(_)
                | E::HttpFormat(_),
            ) => 1002,
        };
        self.broken(code)
    }

    fn broken(&mut self, code: u16) -> Incoming {
        self.out.drop_unsent();
        self.close(code);
        Incoming::Broken(code)
    }

    /// Queues a close behind what is queued.
    pub(super) fn close(&mut self, code: u16) {
        if self.out.is_closed() {
            return;
        }
        let frame = CloseFrame { code: CloseCode::from(code), reason: "".into() };
        let bytes = self.control(|reader, wire| reader.close(wire, Some(frame)));
        self.out.close(bytes);
    }

    /// The control frame tungstenite writes when `act` is done.
    fn control(&mut self, act: impl FnOnce(&mut WebSocketContext, &mut Wire<'_>) -> tungstenite::Result<()>) -> Bytes {
        let mut wire = Wire { pipe: None, meter: &mut self.meter, control: Vec::new() };
        // An error says that the peer's close was answered, which is what we want.
        let _ = act(&mut self.reader, &mut wire);
        wire.control.into()
    }
}

#[cfg(test)]
#[path = "ws_tests.rs"]
mod tests;

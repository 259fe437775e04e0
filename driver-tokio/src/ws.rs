//! WebSocket connections that carry sessions: reading, writing and closing.
//!
//! Reading is tungstenite's, over an adapter that turns the current task's
//! poll into blocking-style reads; writing is [`outgoing`]'s, so that payload
//! goes from the core to the socket without a copy. Reading never waits for
//! writing (semantics 3): pongs and closes are queued, not written, by a read.
//!
//! Keeps attacks 6 to 13: reserved bits, masks, sizes before allocation, at
//! most 16 fragments, control frames, ping floods, text where binary is due.
//! A peer that breaks one is told the close code of RFC 6455, 7.4.1 and gets
//! nothing more. Must not know frames of the core, names or credentials.
//! Pumps call [`WsConn::poll_recv`] until pending, then [`WsConn::poll_flush`].

mod io;
mod meter;
mod outgoing;

use std::io::{Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use nowconnect_core::rng::Seed;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::time::Instant;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig, WebSocketContext};

pub use io::{Io, dns_names};
pub use meter::FRAGMENTS_MAX;
use meter::{Fault, Meter};
use outgoing::Outgoing;

/// Read buffer of a link, bytes: a whole DATA frame with its head.
pub const READ_BUFFER_LINK_BYTES: usize = 72 * 1024;
/// Read buffer of a tunnel, bytes: smaller, a hub has many.
pub const READ_BUFFER_TUNNEL_BYTES: usize = 32 * 1024;
/// Pings (and unasked pongs) a peer may send at once (attack 11).
pub const PING_BURST: u32 = 20;
/// Pings a second it may go on with.
pub const PING_PER_SECOND: u32 = 10;
/// Between two [`WsEvent::Partial`] of a connection, at least.
pub const PARTIAL_EVERY: Duration = Duration::from_secs(1);
/// Incoming bytes read and thrown away after the close, at most.
const DRAIN_MAX_BYTES: usize = 1024 * 1024;

/// What a connection is told at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WsOptions {
    /// Messages are text (v1) rather than binary (v2), both ways.
    pub text: bool,
    /// Read buffer, bytes; allocated at once.
    pub read_buffer_bytes: usize,
    /// Largest incoming message, bytes; see [`WsConn::set_message_max`].
    pub message_max_bytes: usize,
}

/// What came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WsEvent {
    /// A whole message, of the kind the connection was told to expect.
    Message(Bytes),
    /// Bytes of a message came in that is not complete yet: the peer lives. At
    /// most once in [`PARTIAL_EVERY`]; WebSocket pings are no such bytes.
    Partial,
    /// The peer closed, with its code if it gave one; our answer is queued.
    Closed {
        /// RFC 6455, 7.4; 1002 when the peer's own code was not allowed.
        code: Option<u16>,
    },
}

/// Why a connection is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WsError {
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(std::io::ErrorKind),
    /// The stream ended without a WebSocket close.
    #[error("the connection ended without a WebSocket close")]
    Eof,
    /// A message exceeds the limit (close 1009).
    #[error("the peer sent a message above the size limit")]
    TooLarge,
    /// A message in more than 16 frames (close 1009).
    #[error("the peer sent a message in more than {FRAGMENTS_MAX} fragments")]
    Fragments,
    /// Bytes that are no WebSocket (close 1002).
    #[error("the peer broke the WebSocket protocol")]
    Protocol,
    /// Text that is not UTF-8 (close 1007).
    #[error("the peer sent text that is not UTF-8")]
    Utf8,
    /// Text where binary is due, or the reverse (close 1003).
    #[error("the peer sent text where binary is due, or the reverse")]
    WrongKind,
    /// More pings than allowed (close 1008).
    #[error("the peer sent more than {PING_PER_SECOND} pings a second")]
    PingFlood,
    /// The connection was used after its end.
    #[error("the connection is closed already")]
    Closed,
}

impl WsError {
    /// Every label, for metrics that start at zero.
    pub const NAMES: [&'static str; 9] =
        ["io", "eof", "too_large", "fragments", "protocol", "utf8", "wrong_kind", "ping_flood", "closed"];

    /// The metric label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::Eof => "eof",
            Self::TooLarge => "too_large",
            Self::Fragments => "fragments",
            Self::Protocol => "protocol",
            Self::Utf8 => "utf8",
            Self::WrongKind => "wrong_kind",
            Self::PingFlood => "ping_flood",
            Self::Closed => "closed",
        }
    }

    /// The code the peer is told; `None` when there is nobody left to tell.
    #[must_use]
    pub const fn close_code(self) -> Option<u16> {
        match self {
            Self::Io(_) | Self::Eof | Self::Closed => None,
            Self::TooLarge | Self::Fragments => Some(1009),
            Self::Protocol => Some(1002),
            Self::Utf8 => Some(1007),
            Self::WrongKind => Some(1003),
            Self::PingFlood => Some(1008),
        }
    }

    fn from_tungstenite(error: &tungstenite::Error) -> Self {
        use tungstenite::Error as E;
        use tungstenite::error::ProtocolError as P;
        match error {
            E::Io(error) => Self::Io(error.kind()),
            E::Protocol(P::ResetWithoutClosingHandshake) => Self::Eof,
            E::ConnectionClosed | E::AlreadyClosed => Self::Closed,
            E::Capacity(_) => Self::TooLarge,
            E::Utf8(_) => Self::Utf8,
            E::Protocol(_)
            | E::Tls(_)
            | E::WriteBufferFull(_)
            | E::AttackAttempt
            | E::Url(_)
            | E::Http(_)
            | E::HttpFormat(_) => Self::Protocol,
        }
    }
}

/// Token bucket over incoming control frames, in thousandths of a ping.
#[derive(Debug)]
struct Pings {
    milli: u64,
    at: Instant,
}

impl Pings {
    fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.at).as_millis().saturating_mul(u128::from(PING_PER_SECOND));
        let full = u128::from(PING_BURST) * 1000;
        self.milli = u64::try_from(full.min(u128::from(self.milli) + gained)).unwrap_or(u64::MAX);
        self.at = now;
        match self.milli.checked_sub(1000) {
            Some(left) => {
                self.milli = left;
                true
            }
            None => false,
        }
    }
}

/// When the caller was last told that a message is still arriving.
#[derive(Debug, Default)]
struct Partial(Option<Instant>);

impl Partial {
    /// Whether it is due to be told at `now`; counts as told then.
    fn take(&mut self, now: Instant) -> bool {
        let due = self.0.is_none_or(|told| now.saturating_duration_since(told) >= PARTIAL_EVERY);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

/// What tungstenite reads from and writes to during one call.
struct Wire<'a, 'b, 'c> {
    io: &'a mut Io,
    cx: Option<&'b mut Context<'c>>,
    leftover: &'a mut Bytes,
    meter: &'a mut Meter,
    control: Vec<u8>,
}

impl Read for Wire<'_, '_, '_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = if self.leftover.is_empty() {
            let Some(cx) = &mut self.cx else { return Err(std::io::ErrorKind::WouldBlock.into()) };
            match self.io.poll_fill(cx, out) {
                Poll::Ready(read) => read?,
                Poll::Pending => return Err(std::io::ErrorKind::WouldBlock.into()),
            }
        } else {
            let n = out.len().min(self.leftover.len());
            self.leftover.copy_to_slice(&mut out[..n]);
            n
        };
        if self.meter.pass(&out[..n]) { Ok(n) } else { Err(std::io::ErrorKind::InvalidData.into()) }
    }
}

impl Write for Wire<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.control.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Frames (the close among them) still go out.
    Flush,
    /// The write side is being shut down.
    Shutdown,
    /// Unread input is thrown away: closing over it would make the kernel send
    /// RST, which can destroy what was just written.
    Drain,
    /// Done.
    Over,
}

/// One WebSocket connection after its handshake.
#[derive(Debug)]
pub struct WsConn {
    io: Io,
    reader: WebSocketContext,
    meter: Meter,
    /// Messages and control frames taken from the reader.
    taken: u64,
    leftover: Bytes,
    out: Outgoing,
    text: bool,
    pings: Pings,
    partial: Partial,
    ended: bool,
    ending: Ending,
    drained: usize,
}

impl WsConn {
    /// A connection over `io` after the upgrade; `leftover` is what the HTTP
    /// side had read beyond it. `role` decides who masks (RFC 6455, 5.1).
    #[must_use]
    pub fn new(io: Io, role: Role, leftover: Bytes, options: WsOptions) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(options.read_buffer_bytes)
            // The writer under tungstenite is memory and sees control frames only.
            .write_buffer_size(0)
            .max_write_buffer_size(4096)
            .max_message_size(Some(options.message_max_bytes))
            .max_frame_size(Some(options.message_max_bytes))
            .accept_unmasked_frames(false);
        let mask = match role {
            Role::Client => Some(mask_seed().rng()),
            Role::Server => None,
        };
        Self {
            io,
            reader: WebSocketContext::new(role, Some(config)),
            meter: Meter::default(),
            taken: 0,
            leftover,
            out: Outgoing::new(options.text, mask),
            text: options.text,
            pings: Pings { milli: u64::from(PING_BURST) * 1000, at: Instant::now() },
            partial: Partial::default(),
            ended: false,
            ending: Ending::Flush,
            drained: 0,
        }
    }

    /// The stream underneath, for its addresses and TLS facts.
    #[must_use]
    pub fn io(&self) -> &Io {
        &self.io
    }

    /// Changes the largest incoming message, bytes: 16 KiB before
    /// authentication, 256 KiB after (attack 8). Applies from the next frame.
    pub fn set_message_max(&mut self, bytes: usize) {
        self.reader.set_config(|config| {
            config.max_message_size = Some(bytes);
            config.max_frame_size = Some(bytes);
        });
    }

    /// Bytes queued and not handed to the socket, frame headers included. TLS
    /// may hold up to 64 KiB more.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.out.queued_bytes()
    }

    /// Queues one message of `len` bytes made of `chunks`; nothing is written
    /// before [`Self::poll_flush`]. The queue has no limit of its own: the
    /// caller looks at [`Self::queued_bytes`] (B2). After a close the message
    /// is dropped.
    ///
    /// # Panics
    /// When the chunks do not add up to `len`: the frame header would lie.
    pub fn queue(&mut self, chunks: impl IntoIterator<Item = Bytes>, len: usize) {
        self.out.message(chunks, len);
    }

    /// Writes what is queued. Ready when all of it went to the socket.
    ///
    /// # Errors
    /// Those of the socket; the connection is of no more use then.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.out.poll_flush(cx, &mut self.io)
    }

    /// The next message or the end. Never waits for writing. After a pending
    /// or any event call [`Self::poll_flush`]: an answer may be queued.
    ///
    /// # Errors
    /// The connection is of no more use; where the peer broke a rule its close
    /// code is queued and unsent messages are dropped: see [`Self::finish`].
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<WsEvent, WsError>> {
        if self.ended {
            return Poll::Ready(Err(WsError::Closed));
        }
        loop {
            // Without a complete message at hand the reader would clear its
            // whole free buffer for a read that finds nothing.
            let must_read = self.meter.complete() == self.taken && self.leftover.is_empty();
            if must_read && !self.io.poll_maybe_readable(cx) {
                return self.nothing();
            }
            let read = {
                let mut wire = Wire {
                    io: &mut self.io,
                    cx: Some(cx),
                    leftover: &mut self.leftover,
                    meter: &mut self.meter,
                    control: Vec::new(),
                };
                self.reader.read(&mut wire)
            };
            self.taken += u64::from(read.is_ok());
            match read {
                Ok(Message::Binary(bytes)) if !self.text => return Poll::Ready(Ok(WsEvent::Message(bytes))),
                Ok(Message::Text(text)) if self.text => return Poll::Ready(Ok(WsEvent::Message(text.into()))),
                Ok(Message::Binary(_) | Message::Text(_)) => return Poll::Ready(Err(self.fail(WsError::WrongKind))),
                Ok(Message::Ping(_)) => {
                    if !self.pings.take(Instant::now()) {
                        return Poll::Ready(Err(self.fail(WsError::PingFlood)));
                    }
                    let pong = self.control(|reader, wire| reader.flush(wire));
                    self.out.pong(pong);
                }
                Ok(Message::Pong(_)) => {
                    if !self.pings.take(Instant::now()) {
                        return Poll::Ready(Err(self.fail(WsError::PingFlood)));
                    }
                }
                Ok(Message::Close(frame)) => {
                    let answer = self.control(|reader, wire| reader.flush(wire));
                    self.out.close(answer);
                    self.ended = true;
                    return Poll::Ready(Ok(WsEvent::Closed { code: frame.map(|frame| frame.code.into()) }));
                }
                Ok(Message::Frame(_)) => return Poll::Ready(Err(self.fail(WsError::Protocol))),
                Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    return self.nothing();
                }
                Err(error) => {
                    let error = match self.meter.fault() {
                        Some(Fault::Fragments) => WsError::Fragments,
                        Some(Fault::LongLength) => WsError::Protocol,
                        None => WsError::from_tungstenite(&error),
                    };
                    return Poll::Ready(Err(self.fail(error)));
                }
            }
        }
    }

    /// No message is complete. What came of one counts now or not at all: a
    /// later look, for a write of our own, must not find it (L9).
    fn nothing(&mut self) -> Poll<Result<WsEvent, WsError>> {
        if self.meter.take_grown() && self.partial.take(Instant::now()) {
            return Poll::Ready(Ok(WsEvent::Partial));
        }
        Poll::Pending
    }

    /// Queues a close with `code` after what is queued. Best effort: see
    /// [`Self::finish`] for getting it out. Reading goes on until the peer's
    /// answer.
    pub fn close(&mut self, code: u16) {
        if self.out.is_closed() {
            return;
        }
        let frame = CloseFrame { code: CloseCode::from(code), reason: "".into() };
        let bytes = self.control(|reader, wire| reader.close(wire, Some(frame)));
        self.out.close(bytes);
    }

    fn fail(&mut self, error: WsError) -> WsError {
        self.ended = true;
        if let Some(code) = error.close_code() {
            self.out.drop_unsent();
            self.close(code);
        }
        error
    }

    /// The control frame tungstenite writes when `act` is done.
    fn control(
        &mut self,
        act: impl FnOnce(&mut WebSocketContext, &mut Wire<'_, '_, '_>) -> tungstenite::Result<()>,
    ) -> Bytes {
        let mut wire = Wire {
            io: &mut self.io,
            cx: None,
            leftover: &mut self.leftover,
            meter: &mut self.meter,
            control: Vec::new(),
        };
        // The writer is memory: an error here says that the peer's close was
        // answered, which is what we want.
        let _ = act(&mut self.reader, &mut wire);
        wire.control.into()
    }

    /// Ends the connection: writes what is queued, shuts the write side down
    /// and reads to the end of at most 1 MiB. Errors end it too. The caller
    /// bounds the time; [`Self::finish`] does so itself.
    pub fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.ending = match self.ending {
                Ending::Flush => match ready!(self.out.poll_flush(cx, &mut self.io)) {
                    Ok(()) => Ending::Shutdown,
                    Err(_) => Ending::Over,
                },
                Ending::Shutdown => match ready!(Pin::new(&mut self.io).poll_shutdown(cx)) {
                    Ok(()) => Ending::Drain,
                    Err(_) => Ending::Over,
                },
                Ending::Drain => {
                    let mut buf = [0; 4096];
                    let mut buf = ReadBuf::new(&mut buf);
                    match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
                        Ok(()) if !buf.filled().is_empty() && self.drained < DRAIN_MAX_BYTES => {
                            self.drained += buf.filled().len();
                            Ending::Drain
                        }
                        Ok(()) | Err(_) => Ending::Over,
                    }
                }
                Ending::Over => return Poll::Ready(()),
            };
        }
    }

    /// [`Self::poll_finish`] within `limit`, then the socket is dropped.
    pub async fn finish(mut self, limit: Duration) {
        let _ = tokio::time::timeout(limit, std::future::poll_fn(|cx| self.poll_finish(cx))).await;
    }
}

/// A seed for mask keys from the TLS library's generator: the keys must not be
/// guessable by whoever chooses the payload (RFC 6455, 10.3).
fn mask_seed() -> Seed {
    let mut seed = Seed([0; 32]);
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut seed.0)
        .expect("the system's random generator works");
    seed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_refill_with_time_up_to_the_burst() {
        let start = Instant::now();
        let mut pings = Pings { milli: u64::from(PING_BURST) * 1000, at: start };
        assert!((0..PING_BURST).all(|_| pings.take(start)));
        assert!(!pings.take(start));
        assert!(!pings.take(start + Duration::from_millis(99)));
        assert!(pings.take(start + Duration::from_millis(100)));
        let later = start + Duration::from_secs(3600);
        assert!((0..PING_BURST).all(|_| pings.take(later)));
        assert!(!pings.take(later));
    }

    #[test]
    fn a_partial_message_is_told_once_a_second() {
        let start = Instant::now();
        let mut partial = Partial::default();
        let told: Vec<u64> =
            (0..35).map(|n| n * 100).filter(|ms| partial.take(start + Duration::from_millis(*ms))).collect();
        assert_eq!(told, [0, 1000, 2000, 3000]);
    }

    #[test]
    fn names_are_distinct_and_listed() {
        for error in [WsError::Io(std::io::ErrorKind::Other), WsError::Eof, WsError::Closed, WsError::PingFlood] {
            assert!(WsError::NAMES.contains(&error.name()));
        }
    }
}

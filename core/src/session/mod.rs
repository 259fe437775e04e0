//! A session: one tunnel or link, living across the WebSocket connections that
//! carry it until it is lost (semantics 2).
//!
//! It owns message numbers, acknowledgement, replay, the egress queues with
//! their fairness and caps, liveness probing and the proofs of a resumption.
//! Invariants: S9 (order, exactly once, over any number of reconnections), S8
//! (a replayed message or resumption changes nothing), B2 (bounded in-flight
//! bytes and frames), B4 (in-flight returns to exactly 0), A2 (DATA leaves a
//! queue to the wire or with its stream's RST, never silently).
//! It must not know streams' offsets, epochs' meaning, sockets, handshakes or
//! who the peer is: frames are routed by `mux`, connections by the driver.
//!
//! The owner calls `on_message` for what arrives, `send` for what is due,
//! `poll_transmit` when the socket can take bytes, and `handle_timeout` at
//! `poll_timeout`. No call costs O(streams).

mod chunks;
mod live;
mod queue;
mod resume;
mod rx;
mod tx;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::config::Liveness;
use crate::error::{CloseCode, ProtocolError, ProtocolErrorKind};
use crate::id::{Cid, Secret, SessionId};
use crate::planted;
use crate::rng::Seed;
use crate::time::{Deadline, Instant};
use crate::wire::{Body, Codec, Dialect, FRAME_KINDS, Frame, ResumeAccept, ResumeRequest, WireLimits, decode};

pub use chunks::Chunks;
use live::Live;
use resume::Attempts;
use rx::{Arrival, Rx};
use tx::Tx;

/// What a session is made from.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Encoding and plane, fixed for the session's life.
    pub dialect: Dialect,
    /// The session's name, chosen by the acceptor.
    pub id: SessionId,
    /// Shared by the two ends; proves a resumption.
    pub secret: Secret<32>,
    /// Frames in flight above which no DATA is pulled.
    pub send_queue_depth: u32,
    /// Encoded bytes in flight above which no DATA is pulled.
    pub inflight_bytes: u64,
    /// When the peer is probed, doubted and given up.
    pub liveness: Liveness,
}

/// Payload bytes of a stream that left its queue: for the wire, or because
/// the stream's RST or RESUME made them obsolete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// The stream.
    pub cid: Cid,
    /// How many.
    pub bytes: u64,
}

/// One WebSocket message: head bytes and payload slices, to be written in
/// this order (vectored) behind one WebSocket header.
#[derive(Clone, Debug, Default)]
pub struct TxMessage {
    /// The parts.
    pub chunks: Chunks,
    /// Their total length, bytes.
    pub len: usize,
}

impl TxMessage {
    /// The message in one buffer (tests, simulations without vectored writes).
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        if let [only] = &*self.chunks {
            return only.clone();
        }
        let mut whole = Vec::with_capacity(self.len);
        for c in &*self.chunks {
            whole.extend_from_slice(c);
        }
        whole.into()
    }
}

/// Messages on their way to the socket; owned and drained by the caller.
#[derive(Debug, Default)]
pub struct TxBatch {
    /// The messages, first to be written first.
    pub messages: VecDeque<TxMessage>,
    /// Their total length, bytes; the caller lowers it as it takes messages.
    pub bytes: usize,
}

/// What is left after [`Session::poll_transmit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxState {
    /// Nothing waits, or there is no connection.
    Idle,
    /// More could be sent at once; only the budget ended the call.
    More,
    /// DATA waits, but a cap is reached; an ACK will lift it.
    Blocked(BlockedBy),
}

/// The cap that holds DATA back; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockedBy {
    /// `send_queue_depth`.
    QueueDepth,
    /// `per_link_max_inflight_bytes`.
    InflightBytes,
}

/// What [`Session::handle_timeout`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// Nothing the owner has to act on, except perhaps to transmit.
    None,
    /// Nothing was heard for `liveness.dead`: close the connection. Reported
    /// once per connection.
    Dead,
}

/// Plain counts of one session, over all its connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionCounters {
    /// Frames received, by index of [`FRAME_KINDS`]; duplicates not included.
    pub frames_in: [u64; FRAME_KINDS.len()],
    /// Frames encoded, by index of [`FRAME_KINDS`]; a replay is not a new frame.
    pub frames_out: [u64; FRAME_KINDS.len()],
    /// Messages received, duplicates included.
    pub messages_in: u64,
    /// Messages handed to the wire, replays included.
    pub messages_out: u64,
    /// Encoded bytes received, duplicates included.
    pub bytes_in: u64,
    /// Encoded bytes handed to the wire, replays included.
    pub bytes_out: u64,
    /// Messages handed to the wire again after a resumption.
    pub messages_replayed: u64,
    /// Received messages with a number that had arrived before.
    pub messages_duplicate: u64,
    /// Messages that came while the session had no connection (C5).
    pub messages_stale: u64,
    /// Harmless oddities: a PONG nobody asked for.
    pub glitches: u64,
    /// Resumptions that succeeded.
    pub resumed: u64,
    /// Resumptions that were refused by this side.
    pub resume_refused: u64,
    /// Times DATA came to a stop at `send_queue_depth`.
    pub blocked_queue_depth: u64,
    /// Times DATA came to a stop at the in-flight cap.
    pub blocked_inflight_bytes: u64,
    /// EPOCH notices given up because too many waited (the registry audit of
    /// semantics 4 is their backstop).
    pub epochs_dropped: u64,
}

/// One side of a tunnel or link. See the module's header.
#[derive(Debug)]
pub struct Session {
    dialect: Dialect,
    id: SessionId,
    secret: Secret<32>,
    connected: bool,
    blocked: Option<BlockedBy>,
    rx: Rx,
    tx: Tx,
    live: Live,
    attempts: Attempts,
    counters: SessionCounters,
}

impl Session {
    /// A session on a fresh connection.
    #[must_use]
    pub fn new(config: SessionConfig, seed: Seed, now: Instant) -> Self {
        let mut rng = seed.fork("session").rng();
        Self {
            dialect: config.dialect,
            id: config.id,
            secret: config.secret,
            connected: true,
            blocked: None,
            rx: Rx::default(),
            tx: Tx::new(config.dialect, config.send_queue_depth, config.inflight_bytes, rng.next_u64()),
            live: Live::new(config.liveness, rng.next_u64(), now),
            attempts: Attempts::default(),
            counters: SessionCounters::default(),
        }
    }

    /// The session's name.
    #[must_use]
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// Encoding and plane.
    #[must_use]
    pub const fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Takes one message of the current connection. ACK, PING and PONG are
    /// consumed; the other frames are appended to `frames`, in order. A
    /// message that had arrived before appends nothing (S8). Without a
    /// connection the message is a late one and is ignored (C5); what it held
    /// is replayed by the peer after the resumption.
    ///
    /// # Errors
    /// When the message is no message of this dialect, leaves a gap in the
    /// numbers, acknowledges what was never sent, or holds a handshake frame.
    /// Nothing was appended then, and the session must be closed.
    pub fn on_message(&mut self, now: Instant, msg: &Bytes, frames: &mut Vec<Frame>) -> Result<(), ProtocolError> {
        if !self.connected {
            self.counters.messages_stale += 1;
            return Ok(());
        }
        let start = frames.len();
        let result = self.take_message(now, msg, frames, start);
        if result.is_err() {
            frames.truncate(start);
        }
        result
    }

    fn take_message(
        &mut self,
        now: Instant,
        msg: &Bytes,
        frames: &mut Vec<Frame>,
        start: usize,
    ) -> Result<(), ProtocolError> {
        self.live.on_heard(now);
        self.counters.messages_in += 1;
        self.counters.bytes_in += msg.len() as u64;
        let number = decode(self.dialect, msg, &WireLimits::ESTABLISHED, frames)?;
        if self.rx.on_number(now, number, msg.len())? == Arrival::Duplicate {
            self.counters.messages_duplicate += 1;
            frames.truncate(start);
            return Ok(());
        }
        // Session-only frames are taken out in place, keeping the others' order.
        let mut keep = start;
        for ix in start..frames.len() {
            let Some(frame) = frames.get(ix) else { break };
            if let Some(n) = self.counters.frames_in.get_mut(kind_ix(frame)) {
                *n += 1;
            }
            match frame {
                Frame::Ack { received } => self.tx.on_ack(*received)?,
                Frame::Ping { token } => self.live.on_ping(*token),
                Frame::Pong { token } => {
                    if !self.live.on_pong(now, *token) {
                        self.counters.glitches += 1;
                    }
                }
                Frame::Hello(_) | Frame::Welcome(_) | Frame::Auth(_) => {
                    return Err(ProtocolError::new(
                        ProtocolErrorKind::Unexpected,
                        format!("expected a frame of an established session, got {}", frame.kind()),
                    ));
                }
                Frame::GoAway { .. }
                | Frame::Epoch(_)
                | Frame::Status(_)
                | Frame::Connectors { .. }
                | Frame::Token { .. }
                | Frame::Stream { .. } => {
                    frames.swap(keep, ix);
                    keep += 1;
                }
            }
        }
        frames.truncate(keep);
        Ok(())
    }

    /// Bytes of a message that is not complete yet arrived: the peer lives.
    pub fn on_heard(&mut self, now: Instant) {
        if self.connected {
            self.live.on_heard(now);
        }
    }

    /// Queues a frame. Control is always accepted and never waits behind DATA;
    /// DATA is bounded by the credit the caller holds. Handshake frames, ACK,
    /// PING and PONG are not the caller's to send and are ignored.
    ///
    /// `released` gets what an RST or a RESUME made obsolete in the stream's
    /// queue, and the bytes of DATA that came after an RST.
    pub fn send(&mut self, _now: Instant, frame: Frame, released: &mut Vec<Released>) {
        match frame {
            Frame::Stream { cid, epoch, body } => self.tx.queues.push(cid, epoch, body, released),
            Frame::GoAway { .. }
            | Frame::Epoch(_)
            | Frame::Status(_)
            | Frame::Connectors { .. }
            | Frame::Token { .. } => self.tx.notices.push(frame),
            Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::Auth(_)
            | Frame::Ack { .. }
            | Frame::Ping { .. }
            | Frame::Pong { .. } => debug_assert!(false, "{} belongs to the handshake or the session", frame.kind()),
        }
        self.counters.epochs_dropped = self.tx.notices.epochs_dropped();
    }

    /// Drops the DATA and the FIN of a stream that wait, because its peer ended
    /// it; an RST of our own does the same. Control of the stream still goes.
    pub fn discard(&mut self, cid: Cid, released: &mut Vec<Released>) {
        self.tx.queues.discard_data(cid, released);
    }

    /// The streams whose DATA or FIN waits, for checks.
    pub fn waiting_streams(&self) -> impl Iterator<Item = Cid> {
        self.tx.queues.with_data()
    }

    /// Whether [`Self::poll_transmit`] would produce a message now.
    #[must_use]
    pub fn wants_transmit(&self, now: Instant) -> bool {
        self.connected
            && (self.live.wants_transmit() || self.rx.ack_due(now) || self.tx.replay_waits() || self.tx.fresh_ready())
    }

    /// Appends whole messages to `batch` until `budget_bytes` are used or
    /// nothing is left: first liveness and ACK, then the replay, then control,
    /// then DATA inside the caps. `released` gets the payload that left.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        budget_bytes: usize,
        batch: &mut TxBatch,
        released: &mut Vec<Released>,
    ) -> TxState {
        if !self.connected {
            return TxState::Idle;
        }
        let before = batch.bytes;
        while batch.bytes.saturating_sub(before) < budget_bytes {
            let message = if let Some(frame) = self.next_unnumbered(now) {
                self.count_out(&frame);
                self.tx.encode_unnumbered(frame)
            } else if let Some(message) = self.tx.next_replayed() {
                self.counters.messages_replayed += 1;
                message
            } else if !self.tx.control_ready()
                && let Some(frame) = self.tx.notices.pop_go_away()
            {
                // After the control that was queued before it, which the end
                // of the session would otherwise swallow; before DATA.
                self.count_out(&frame);
                self.tx.encode_unnumbered(frame)
            } else if self.tx.fresh_ready() {
                let ack = if self.dialect.codec == Codec::BinaryV2 { self.rx.take_ack(now, true) } else { None };
                self.tx.encode_numbered(ack, &mut self.counters.frames_out, released)
            } else {
                break;
            };
            self.counters.messages_out += 1;
            self.counters.bytes_out += message.len as u64;
            batch.bytes += message.len;
            batch.messages.push_back(message);
        }
        let blocked = self.tx.blocked_by();
        if self.blocked != blocked {
            match blocked {
                Some(BlockedBy::QueueDepth) => self.counters.blocked_queue_depth += 1,
                Some(BlockedBy::InflightBytes) => self.counters.blocked_inflight_bytes += 1,
                None => {}
            }
            self.blocked = blocked;
        }
        if self.wants_transmit(now) { TxState::More } else { blocked.map_or(TxState::Idle, TxState::Blocked) }
    }

    /// PONG, PING, and an ACK that is due and finds no message to ride on.
    fn next_unnumbered(&mut self, now: Instant) -> Option<Frame> {
        if let Some(frame) = self.live.next_frame(now) {
            return Some(frame);
        }
        let rides = self.dialect.codec == Codec::BinaryV2 && !self.tx.replay_waits() && self.tx.fresh_numbered_ready();
        if rides { None } else { self.rx.take_ack(now, false).map(|received| Frame::Ack { received }) }
    }

    fn count_out(&mut self, frame: &Frame) {
        if let Some(n) = self.counters.frames_out.get_mut(kind_ix(frame)) {
            *n += 1;
        }
    }

    /// The connection is gone; queues and replay stay for the next one.
    pub fn on_connection_lost(&mut self, now: Instant) {
        self.connected = false;
        self.live.on_connection(now);
        if planted::on(12) || planted::on(37) {
            self.rx.forget_unacknowledged();
        }
        self.rx.on_connection();
    }

    /// Whether a connection carries the session now.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        self.connected
    }

    /// The number up to which the peer need not send again.
    fn resume_position(&self) -> u64 {
        let received = self.rx.received();
        if planted::on(20) { received + 1 } else { received }
    }

    /// The dialler's half of a resumption, for the HELLO with `challenge`.
    /// Each call is a new attempt; only the latest can be accepted.
    pub fn resume_request(&mut self, challenge: &Secret<16>) -> ResumeRequest {
        let attempt = self.attempts.next();
        let received = self.resume_position();
        let proof = resume::request_proof(&self.secret, self.id, attempt, received, challenge);
        ResumeRequest { session: self.id, attempt, received, proof }
    }

    /// The acceptor's half: checks the proof (in constant time), that the
    /// attempt is a new one, and that the dialler's number lies within what
    /// was acknowledged and what was sent. Then the session is on the new
    /// connection, an older one being dead to it, and replays the rest.
    ///
    /// # Errors
    /// [`CloseCode::ResumeRefused`]; the session is as it was (a stranger
    /// must not be able to break it).
    pub fn accept_resume(
        &mut self,
        now: Instant,
        req: &ResumeRequest,
        dialler_challenge: &Secret<16>,
        acceptor_challenge: &Secret<16>,
    ) -> Result<ResumeAccept, CloseCode> {
        let genuine = req.session == self.id
            && resume::verify_request(&self.secret, self.id, req, dialler_challenge)
            && self.attempts.is_new(req.attempt)
            && self.tx.may_resume_at(req.received);
        if !genuine {
            self.counters.resume_refused += 1;
            return Err(CloseCode::ResumeRefused);
        }
        self.attempts.accept(req.attempt);
        self.reconnect(now, req.received);
        let received = self.resume_position();
        let proof =
            resume::accept_proof(&self.secret, self.id, req.attempt, received, dialler_challenge, acceptor_challenge);
        Ok(ResumeAccept { received, proof })
    }

    /// The dialler takes the acceptor's answer to its latest attempt.
    ///
    /// # Errors
    /// [`CloseCode::ResumeRefused`] when proof or number do not fit; the
    /// session is as it was.
    pub fn on_resume_accepted(
        &mut self,
        now: Instant,
        accept: &ResumeAccept,
        dialler_challenge: &Secret<16>,
        acceptor_challenge: &Secret<16>,
    ) -> Result<(), CloseCode> {
        let genuine = self.attempts.awaited().is_some_and(|attempt| {
            resume::verify_accept(&self.secret, self.id, attempt, accept, dialler_challenge, acceptor_challenge)
        }) && self.tx.may_resume_at(accept.received);
        if !genuine {
            self.counters.resume_refused += 1;
            return Err(CloseCode::ResumeRefused);
        }
        self.attempts.answered();
        self.reconnect(now, accept.received);
        Ok(())
    }

    fn reconnect(&mut self, now: Instant, peer_received: u64) {
        self.tx.resume_at(peer_received);
        self.rx.on_connection();
        self.live.on_connection(now);
        self.connected = true;
        self.counters.resumed += 1;
    }

    /// Runs the timers that are due: PING, ACK, and the peer's silence.
    pub fn handle_timeout(&mut self, now: Instant) -> SessionEvent {
        if !self.connected {
            return SessionEvent::None;
        }
        self.rx.handle_timeout(now);
        if self.live.handle_timeout(now) { SessionEvent::Dead } else { SessionEvent::None }
    }

    /// When [`Self::handle_timeout`] is due next; `None` without a connection.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if self.connected { Deadline::earliest(self.live.poll_timeout(), self.rx.poll_timeout()) } else { None }
    }

    /// Whether new streams should go elsewhere: no connection, or nothing
    /// heard for `liveness.suspect`.
    #[must_use]
    pub fn is_suspect(&self, now: Instant) -> bool {
        !self.connected || self.live.is_suspect(now)
    }

    /// Smoothed round-trip time, once measured.
    #[must_use]
    pub const fn rtt(&self) -> Option<Duration> {
        self.live.rtt()
    }

    /// Moves the round-trip samples since the last call (at most the latest
    /// 16) into `into`.
    pub fn take_rtt_samples(&mut self, into: &mut Vec<Duration>) {
        self.live.take_rtt_samples(into);
    }

    /// Frames that the peer has not acknowledged, and streams whose control waits.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.tx.inflight_frames() as usize + self.tx.queues.control_len()
    }

    /// Payload bytes of a stream that wait in its queue.
    #[must_use]
    pub fn unsent_bytes(&self, cid: Cid) -> u64 {
        self.tx.queues.unsent_bytes(cid)
    }

    /// Payload bytes held in queues and replay; in v1 the replay's are counted
    /// as they are held, in encoded form.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.tx.held_bytes()
    }

    /// Other caps and timers from now on. Messages in flight beyond a lower cap
    /// stay; DATA waits until ACKs have brought them below it.
    pub fn reload(&mut self, now: Instant, send_queue_depth: u32, inflight_bytes: u64, liveness: Liveness) {
        self.tx.set_caps(send_queue_depth, inflight_bytes);
        self.live.reload(now, liveness);
    }

    /// Whether everything that was said has arrived: nothing waits, nothing is
    /// in flight.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !self.tx.control_ready() && !self.tx.data_waits() && self.tx.inflight_frames() == 0
    }

    /// Encoded bytes sent and not yet acknowledged.
    #[must_use]
    pub const fn inflight_bytes(&self) -> u64 {
        self.tx.inflight_bytes()
    }

    /// Frames sent and not yet acknowledged. A frame is numbered in the moment
    /// it is pulled, so none is ever pulled and not in flight.
    #[must_use]
    pub const fn queue_depth(&self) -> u32 {
        self.tx.inflight_frames()
    }

    /// The counts.
    #[must_use]
    pub const fn counters(&self) -> &SessionCounters {
        &self.counters
    }

    /// Recomputes every sum and list from scratch. O(everything): tests only.
    ///
    /// # Panics
    /// When an invariant is broken.
    pub fn check_invariants(&self) {
        self.tx.check_invariants();
        self.rx.check_invariants();
    }
}

/// Index of a frame's type in [`FRAME_KINDS`].
const fn kind_ix(frame: &Frame) -> usize {
    match frame {
        Frame::Hello(_) => 0,
        Frame::Welcome(_) => 1,
        Frame::Auth(_) => 2,
        Frame::Ack { .. } => 3,
        Frame::Ping { .. } => 4,
        Frame::Pong { .. } => 5,
        Frame::GoAway { .. } => 6,
        Frame::Epoch(_) => 7,
        Frame::Status(_) => 8,
        Frame::Connectors { .. } => 9,
        Frame::Token { .. } => 10,
        Frame::Stream { body, .. } => match body {
            Body::Open(_) => 11,
            Body::OpenAck { .. } => 12,
            Body::Data { .. } => 13,
            Body::Credit { .. } => 14,
            Body::Fin { .. } => 15,
            Body::Rst { .. } => 16,
            Body::Resume(_) => 17,
        },
    }
}

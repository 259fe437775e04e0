//! The sending half of a session: messages are numbered and encoded once, kept
//! until acknowledged, and sent again after a resumption (the replay queue
//! holds head bytes and payload references). In-flight bytes and frames are
//! what is kept; DATA is pulled only below both caps, and the frame that
//! reaches a cap is the last (B2). They return to exactly 0 when everything is
//! acknowledged (B4). It must not know time or connections.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::queue::{Notices, Pulled, Queues};
use super::{BlockedBy, Chunks, Released, Session, TxMessage, kind_ix};
use crate::error::{ProtocolError, ProtocolErrorKind};
use crate::id::{Cid, Fence};
use crate::planted;
use crate::wire::{
    Body, Codec, DATA_PAYLOAD_MAX_BYTES, Dialect, FRAME_KINDS, Frame, encode_head, encode_message_start,
};

/// Size at which a message stops growing: one frame of the largest payload.
const MESSAGE_FULL_BYTES: usize = DATA_PAYLOAD_MAX_BYTES;
/// Frames at which a message stops growing.
const MESSAGE_FULL_FRAMES: u32 = 64;
/// Head bytes are cut from blocks of this size; a kept head pins its block.
const ARENA_BYTES: usize = 16 * 1024;
/// A block with less left is not started on.
const ARENA_REST_BYTES: usize = 1024;

/// A message that is not acknowledged.
#[derive(Debug)]
struct Sent {
    chunks: Chunks,
    len: usize,
    /// Frames, not counting an ACK that rides along.
    frames: u32,
    /// Payload bytes held by it.
    held: u64,
}

#[derive(Debug)]
pub(super) struct Tx {
    pub(super) queues: Queues,
    pub(super) notices: Notices,
    dialect: Dialect,
    depth_max: u32,
    inflight_max_bytes: u64,
    /// Highest number acknowledged; the front of `sent` is the next one.
    acked: u64,
    sent: VecDeque<Sent>,
    /// First of `sent` that this connection has not carried.
    cursor: usize,
    inflight_bytes: u64,
    inflight_frames: u32,
    replay_held: u64,
    arena: BytesMut,
    chunks: Vec<Bytes>,
    /// The rest of the payload of the frame that was pulled last.
    more: Vec<Bytes>,
}

impl Session {
    /// Takes back the OPENs of `own` streams that were never sent and are under
    /// another fence than `keep`, with what waits behind them. `released` gets
    /// their payload.
    pub fn take_back_opens(
        &mut self,
        keep: Fence,
        own: impl Fn(Cid) -> bool,
        released: &mut Vec<Released>,
    ) -> Vec<Cid> {
        self.tx.queues.take_back_opens(keep, own, released)
    }
}

impl Tx {
    pub(super) fn new(dialect: Dialect, depth_max: u32, inflight_max_bytes: u64, hash_seed: u64) -> Self {
        Self {
            queues: Queues::new(hash_seed),
            notices: Notices::default(),
            dialect,
            // With a cap of 0 nothing could ever be sent and no ACK would lift it.
            depth_max: depth_max.max(1),
            inflight_max_bytes: inflight_max_bytes.max(1),
            acked: 0,
            sent: VecDeque::new(),
            cursor: 0,
            inflight_bytes: 0,
            inflight_frames: 0,
            replay_held: 0,
            arena: BytesMut::new(),
            chunks: Vec::new(),
            more: Vec::new(),
        }
    }

    pub(super) const fn inflight_bytes(&self) -> u64 {
        self.inflight_bytes
    }

    pub(super) const fn inflight_frames(&self) -> u32 {
        self.inflight_frames
    }

    pub(super) const fn held_bytes(&self) -> u64 {
        self.queues.data_bytes() + self.replay_held
    }

    fn last_number(&self) -> u64 {
        self.acked + self.sent.len() as u64
    }

    /// The peer has received everything up to `received`.
    pub(super) fn on_ack(&mut self, received: u64) -> Result<(), ProtocolError> {
        if received > self.last_number() {
            return Err(ProtocolError::new(
                ProtocolErrorKind::Numbering,
                format!("expected an ACK of at most {}, got {received}", self.last_number()),
            ));
        }
        // A lower one is a late one: ACKs ride on replayed messages too.
        while self.acked < received
            && let Some(done) = self.sent.pop_front()
        {
            self.acked += 1;
            self.cursor = self.cursor.saturating_sub(1);
            self.inflight_bytes -= done.len as u64;
            self.inflight_frames -= done.frames;
            self.replay_held -= done.held;
        }
        Ok(())
    }

    /// Whether a peer that has received `received` can be served: what is
    /// acknowledged is gone, and what was not sent cannot have arrived.
    pub(super) fn may_resume_at(&self, received: u64) -> bool {
        if planted::on(20) {
            return received >= self.acked;
        }
        (self.acked..=self.last_number()).contains(&received)
    }

    /// Everything after `received` is sent again on the new connection.
    pub(super) fn resume_at(&mut self, received: u64) {
        let judged = self.on_ack(received);
        debug_assert!(judged.is_ok(), "the caller asked may_resume_at");
        self.cursor = if planted::on(2001) { self.sent.len().min(1) } else { 0 };
    }

    /// Other caps; see [`Self::new`] for 0.
    pub(super) fn set_caps(&mut self, depth_max: u32, inflight_max_bytes: u64) {
        self.depth_max = depth_max.max(1);
        self.inflight_max_bytes = inflight_max_bytes.max(1);
    }

    pub(super) fn data_waits(&self) -> bool {
        self.queues.data_waits()
    }

    pub(super) fn replay_waits(&self) -> bool {
        self.cursor < self.sent.len()
    }

    pub(super) fn next_replayed(&mut self) -> Option<TxMessage> {
        let sent = self.sent.get(self.cursor)?;
        self.cursor += 1;
        Some(TxMessage { chunks: sent.chunks.clone(), len: sent.len })
    }

    pub(super) fn control_ready(&self) -> bool {
        self.queues.control_waits() || !self.notices.is_empty()
    }

    fn cap_reached(&self, more_bytes: usize, more_frames: u32) -> Option<BlockedBy> {
        let decoded = planted::on(31) && self.dialect.codec == Codec::JsonV1;
        let inflight_bytes = if decoded { self.inflight_bytes / 4 * 3 } else { self.inflight_bytes };
        if self.inflight_frames + more_frames >= self.depth_max {
            Some(BlockedBy::QueueDepth)
        } else if inflight_bytes + more_bytes as u64 >= self.inflight_max_bytes {
            Some(BlockedBy::InflightBytes)
        } else {
            None
        }
    }

    /// The cap that holds waiting DATA back.
    pub(super) fn blocked_by(&self) -> Option<BlockedBy> {
        if self.queues.data_waits() { self.cap_reached(0, 0) } else { None }
    }

    /// Whether a numbered message could be made now.
    pub(super) fn fresh_numbered_ready(&self) -> bool {
        self.control_ready() || (self.queues.data_waits() && self.cap_reached(0, 0).is_none())
    }

    /// Whether any message that is no replay could be made now.
    pub(super) fn fresh_ready(&self) -> bool {
        self.fresh_numbered_ready() || self.notices.go_away_waits()
    }

    fn start(&mut self, number: u64) {
        debug_assert!(self.chunks.is_empty() && self.arena.is_empty());
        if self.arena.capacity() < ARENA_REST_BYTES {
            self.arena.reserve(ARENA_BYTES);
        }
        encode_message_start(self.dialect, number, &mut self.arena);
    }

    /// Appends a frame, whose payload goes on with `more`; returns the encoded
    /// bytes it added.
    fn append(&mut self, number: u64, mut frame: Frame) -> usize {
        if self.dialect.codec == Codec::JsonV1
            && !self.more.is_empty()
            && let Frame::Stream { body: Body::Data { bytes, .. }, .. } = &mut frame
        {
            // Its payload is written anew as text in any case.
            let mut all = BytesMut::from(&bytes[..]);
            self.more.drain(..).for_each(|piece| all.extend_from_slice(&piece));
            *bytes = all.freeze();
        }
        let before = self.arena.len();
        let more: usize = self.more.iter().map(Bytes::len).sum();
        let payload_follows = encode_head(self.dialect, number, &frame, more, &mut self.arena);
        let head = self.arena.len() - before;
        let Frame::Stream { body: Body::Data { bytes, .. }, .. } = frame else { return head };
        if !payload_follows {
            return head;
        }
        let added = head + bytes.len() + more;
        self.chunks.push(self.arena.split().freeze());
        self.chunks.push(bytes);
        self.chunks.append(&mut self.more);
        added
    }

    fn finish(&mut self) -> Chunks {
        if !self.arena.is_empty() {
            self.chunks.push(self.arena.split().freeze());
        }
        Chunks::take(&mut self.chunks)
    }

    /// A message outside the numbering, not kept.
    pub(super) fn encode_unnumbered(&mut self, frame: Frame) -> TxMessage {
        self.start(0);
        self.append(0, frame);
        let chunks = self.finish();
        let len = chunks.iter().map(Bytes::len).sum();
        TxMessage { chunks, len }
    }

    /// The next message: session notices, control of streams, then DATA inside
    /// the caps, as much as one message takes. The caller asked
    /// [`Self::fresh_numbered_ready`].
    pub(super) fn encode_numbered(
        &mut self,
        ack: Option<u64>,
        frames_out: &mut [u64; FRAME_KINDS.len()],
        released: &mut Vec<Released>,
    ) -> TxMessage {
        let number = self.last_number() + 1;
        self.start(number);
        let mut len = self.arena.len();
        let (mut frames, mut payload) = (0, 0);
        if let Some(received) = ack {
            let frame = Frame::Ack { received };
            frames_out[kind_ix(&frame)] += 1;
            len += self.append(number, frame);
        }
        let frames_max = if self.dialect.codec == Codec::JsonV1 { 1 } else { MESSAGE_FULL_FRAMES };
        while frames < frames_max && len < MESSAGE_FULL_BYTES {
            let (frame, bytes) = if let Some(frame) = self.notices.pop().or_else(|| self.queues.pop_control()) {
                (frame, 0)
            } else if self.notices.go_away_waits()
                || self.cap_reached(if frames == 0 { 0 } else { len }, frames).is_some()
            {
                break;
            } else {
                let room = if frames == 0 { DATA_PAYLOAD_MAX_BYTES } else { MESSAGE_FULL_BYTES - len };
                match self.queues.pull(room, &mut self.more) {
                    Pulled::Frame(frame, bytes) => (frame, bytes),
                    Pulled::NoRoom | Pulled::Empty => break,
                }
            };
            if let Frame::Stream { cid, .. } = &frame
                && bytes > 0
            {
                released.push(Released { cid: *cid, bytes: bytes as u64 });
            }
            frames_out[kind_ix(&frame)] += 1;
            frames += 1;
            payload += bytes;
            len += self.append(number, frame);
        }
        debug_assert!(frames > 0, "asked for a message without a frame");
        let chunks = self.finish();
        let held = match self.dialect.codec {
            Codec::BinaryV2 => payload as u64,
            Codec::JsonV1 if payload > 0 => len as u64,
            Codec::JsonV1 => 0,
        };
        self.inflight_bytes += len as u64;
        self.inflight_frames += frames;
        self.replay_held += held;
        self.sent.push_back(Sent { chunks: chunks.clone(), len, frames, held });
        self.cursor = self.sent.len();
        TxMessage { chunks, len }
    }

    pub(super) fn check_invariants(&self) {
        self.queues.check_invariants();
        assert!(self.cursor <= self.sent.len(), "the replay cursor is inside the replay queue");
        let sum = |of: fn(&Sent) -> u64| self.sent.iter().map(of).sum::<u64>();
        assert_eq!(sum(|s| s.len as u64), self.inflight_bytes, "in-flight bytes are those of the messages kept (B4)");
        assert_eq!(sum(|s| u64::from(s.frames)), u64::from(self.inflight_frames), "in-flight frames likewise");
        assert_eq!(sum(|s| s.held), self.replay_held, "held payload likewise");
        for s in &self.sent {
            assert_eq!(s.chunks.iter().map(Bytes::len).sum::<usize>(), s.len, "a message's parts add up");
            assert!(s.frames > 0, "a numbered message has a frame");
        }
    }
}

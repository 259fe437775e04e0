//! What waits to be numbered: notices of the session, control of streams, and
//! DATA with its FIN.
//!
//! Control is level-triggered: one entry per stream with something to say, one
//! slot per kind, so that pending control is bounded by live streams and not
//! by traffic, and a hundred CREDITs become one. DATA is pulled by deficit
//! round robin (L7). An entry exists only while it has something waiting, and
//! both lists are linked through the entries: every operation is O(1) in the
//! number of streams. Payload is split by reference, never copied.
//! It must not know numbers, caps or encodings.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use rustc_hash::FxSeededState;
use slab::Slab;

use super::Released;
use crate::error::RstCode;
use crate::id::{Cid, Epoch};
use crate::wire::{Body, DATA_PAYLOAD_MAX_BYTES, Frame, Open, Resume};

/// Bytes a stream may send per turn while others wait (semantics 3).
pub(super) const QUANTUM_BYTES: usize = 16 * 1024;
/// Least a frame costs of its stream's turn: a stream of one-byte frames must
/// not take thousands of frames per turn.
pub(super) const FRAME_COST_MIN_BYTES: usize = 64;
/// EPOCH notices that may wait; beyond it the oldest is given up.
const EPOCHS_WAITING_MAX: usize = 4096;

const NIL: usize = usize::MAX;

/// Frames about the session itself. The latest STATUS, CONNECTORS, TOKEN and
/// GOAWAY replaces a waiting one; EPOCH notices queue.
#[derive(Debug, Default)]
pub(super) struct Notices {
    order: VecDeque<Notice>,
    status: Option<Frame>,
    connectors: Option<Frame>,
    token: Option<Frame>,
    go_away: Option<Frame>,
    epochs_waiting: usize,
    epochs_dropped: u64,
}

#[derive(Debug)]
enum Notice {
    Status,
    Connectors,
    Token,
    Epoch(Frame),
}

impl Notices {
    pub(super) fn push(&mut self, frame: Frame) {
        let (slot, notice) = match frame {
            Frame::Status(_) => (&mut self.status, Notice::Status),
            Frame::Connectors { .. } => (&mut self.connectors, Notice::Connectors),
            Frame::Token { .. } => (&mut self.token, Notice::Token),
            Frame::GoAway { .. } => {
                self.go_away = Some(frame);
                return;
            }
            Frame::Epoch(_)
            | Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::Auth(_)
            | Frame::Ack { .. }
            | Frame::Ping { .. }
            | Frame::Pong { .. }
            | Frame::Stream { .. } => {
                self.push_epoch(frame);
                return;
            }
        };
        if slot.replace(frame).is_none() {
            self.order.push_back(notice);
        }
    }

    fn push_epoch(&mut self, frame: Frame) {
        if self.epochs_waiting == EPOCHS_WAITING_MAX
            && let Some(oldest) = self.order.iter().position(|n| matches!(n, Notice::Epoch(_)))
        {
            // At most three other notices precede it, so this is O(1).
            self.order.remove(oldest);
            self.epochs_waiting -= 1;
            self.epochs_dropped += 1;
        }
        self.epochs_waiting += 1;
        self.order.push_back(Notice::Epoch(frame));
    }

    pub(super) fn pop(&mut self) -> Option<Frame> {
        match self.order.pop_front()? {
            Notice::Status => self.status.take(),
            Notice::Connectors => self.connectors.take(),
            Notice::Token => self.token.take(),
            Notice::Epoch(frame) => {
                self.epochs_waiting -= 1;
                Some(frame)
            }
        }
    }

    pub(super) const fn pop_go_away(&mut self) -> Option<Frame> {
        self.go_away.take()
    }

    pub(super) const fn go_away_waits(&self) -> bool {
        self.go_away.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) const fn epochs_dropped(&self) -> u64 {
        self.epochs_dropped
    }
}

/// A piece of a stream's half that waits: DATA, or FIN as the last one.
#[derive(Debug)]
struct Piece {
    epoch: Epoch,
    off: u64,
    /// Empty exactly for FIN, whose `off` is the final offset.
    bytes: Bytes,
    next: usize,
}

#[derive(Clone, Copy, Debug)]
struct Links {
    prev: usize,
    next: usize,
}

#[derive(Clone, Copy, Debug)]
struct Credit {
    epoch: Epoch,
    consumed: u64,
    limit: u64,
}

#[derive(Debug)]
struct Entry {
    cid: Cid,
    open: Option<(Epoch, Box<Open>)>,
    open_ack: Option<(Epoch, Result<(), RstCode>)>,
    resume: Option<(Epoch, Box<Resume>)>,
    credit: Option<Credit>,
    rst: Option<(Epoch, RstCode, u64)>,
    /// First and last piece.
    first: usize,
    last: usize,
    bytes: u64,
    deficit: usize,
    dirty: Links,
    ring: Links,
}

impl Entry {
    fn new(cid: Cid) -> Self {
        let off = Links { prev: NIL, next: NIL };
        Self {
            cid,
            open: None,
            open_ack: None,
            resume: None,
            credit: None,
            rst: None,
            first: NIL,
            last: NIL,
            bytes: 0,
            deficit: 0,
            dirty: off,
            ring: off,
        }
    }

    const fn has_control(&self) -> bool {
        self.open.is_some()
            || self.open_ack.is_some()
            || self.resume.is_some()
            || self.credit.is_some()
            || self.rst.is_some()
    }

    const fn has_data(&self) -> bool {
        self.first != NIL
    }

    /// The next control frame in the order a receiver needs them: a stream is
    /// opened or bound before it is credited, and reset last.
    fn take_control(&mut self) -> Option<(Epoch, Body)> {
        if let Some((epoch, open)) = self.open.take() {
            return Some((epoch, Body::Open(open)));
        }
        if let Some((epoch, result)) = self.open_ack.take() {
            return Some((epoch, Body::OpenAck { result }));
        }
        if let Some((epoch, resume)) = self.resume.take() {
            return Some((epoch, Body::Resume(resume)));
        }
        if let Some(Credit { epoch, consumed, limit }) = self.credit.take() {
            return Some((epoch, Body::Credit { consumed, limit }));
        }
        let (epoch, code, final_off) = self.rst.take()?;
        Some((epoch, Body::Rst { code, final_off }))
    }
}

/// A list threaded through the entries by the links `of` selects.
#[derive(Debug)]
struct List {
    head: usize,
    tail: usize,
    len: usize,
    of: fn(&mut Entry) -> &mut Links,
}

impl List {
    fn new(of: fn(&mut Entry) -> &mut Links) -> Self {
        Self { head: NIL, tail: NIL, len: 0, of }
    }

    fn push_back(&mut self, entries: &mut Slab<Entry>, ix: usize) {
        let tail = self.tail;
        *(self.of)(&mut entries[ix]) = Links { prev: tail, next: NIL };
        match entries.get_mut(tail) {
            Some(last) => (self.of)(last).next = ix,
            None => self.head = ix,
        }
        self.tail = ix;
        self.len += 1;
    }

    fn remove(&mut self, entries: &mut Slab<Entry>, ix: usize) {
        let Links { prev, next } = *(self.of)(&mut entries[ix]);
        match entries.get_mut(prev) {
            Some(before) => (self.of)(before).next = next,
            None => self.head = next,
        }
        match entries.get_mut(next) {
            Some(after) => (self.of)(after).prev = prev,
            None => self.tail = prev,
        }
        self.len -= 1;
    }
}

/// What [`Queues::pull`] found.
#[derive(Debug)]
pub(super) enum Pulled {
    /// A DATA or FIN frame, and the payload bytes it takes from its queue.
    Frame(Frame, usize),
    /// The next frame does not fit in the room left.
    NoRoom,
    /// Nothing waits.
    Empty,
}

/// The queues of all streams of a session.
#[derive(Debug)]
pub(super) struct Queues {
    entries: Slab<Entry>,
    pieces: Slab<Piece>,
    by_cid: HashMap<Cid, usize, FxSeededState>,
    /// Entries with control, by when they first got some.
    dirty: List,
    /// Entries with data, in the order of their turns.
    ring: List,
    data_bytes: u64,
}

impl Queues {
    pub(super) fn new(hash_seed: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "any bits will do as a hash seed")]
        let hasher = FxSeededState::with_seed(hash_seed as usize);
        Self {
            entries: Slab::new(),
            pieces: Slab::new(),
            by_cid: HashMap::with_hasher(hasher),
            dirty: List::new(|e| &mut e.dirty),
            ring: List::new(|e| &mut e.ring),
            data_bytes: 0,
        }
    }

    pub(super) const fn control_waits(&self) -> bool {
        self.dirty.len > 0
    }

    pub(super) const fn data_waits(&self) -> bool {
        self.ring.len > 0
    }

    pub(super) const fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    pub(super) fn unsent_bytes(&self, cid: Cid) -> u64 {
        self.by_cid.get(&cid).and_then(|ix| self.entries.get(*ix)).map_or(0, |e| e.bytes)
    }

    pub(super) fn push(&mut self, cid: Cid, epoch: Epoch, body: Body, released: &mut Vec<Released>) {
        let ix = match self.by_cid.get(&cid) {
            Some(ix) => *ix,
            None => {
                let ix = self.entries.insert(Entry::new(cid));
                self.by_cid.insert(cid, ix);
                ix
            }
        };
        let had_control = self.entries[ix].has_control();
        self.apply(ix, epoch, body, released);
        self.settle_control(ix, had_control);
    }

    fn apply(&mut self, ix: usize, epoch: Epoch, body: Body, released: &mut Vec<Released>) {
        let e = &mut self.entries[ix];
        let ended = e.rst.is_some();
        match body {
            Body::Open(open) => e.open = Some((epoch, open)),
            Body::OpenAck { result } => e.open_ack = Some((epoch, result)),
            Body::Credit { consumed, limit } => {
                if !ended {
                    let old = e.credit.map_or((0, 0), |c| (c.consumed, c.limit));
                    e.credit = Some(Credit { epoch, consumed: consumed.max(old.0), limit: limit.max(old.1) });
                }
            }
            Body::Resume(resume) => {
                // Data under the binding that ends here would be dropped by the
                // receiver; both ends retransmit from RESUME's positions.
                // Credit is absolute and holds under any binding.
                if let Some(c) = &mut e.credit {
                    c.epoch = epoch;
                }
                e.resume = Some((epoch, resume));
                self.discard(ix, Some(epoch), released);
            }
            Body::Rst { code, final_off } => {
                if ended {
                    return;
                }
                e.credit = None;
                if e.open.take().is_some() {
                    // The peer never heard of the stream.
                    e.open_ack = None;
                    e.resume = None;
                } else {
                    e.rst = Some((epoch, code, final_off));
                }
                self.discard(ix, None, released);
            }
            Body::Data { off, bytes } => {
                if ended {
                    released.push(Released { cid: e.cid, bytes: bytes.len() as u64 });
                } else if !bytes.is_empty() {
                    self.append(ix, Piece { epoch, off, bytes, next: NIL });
                }
            }
            Body::Fin { final_off } => {
                if !ended {
                    self.append(ix, Piece { epoch, off: final_off, bytes: Bytes::new(), next: NIL });
                }
            }
        }
    }

    /// Puts the entry where its control slots say, and drops it when empty.
    fn settle_control(&mut self, ix: usize, had_control: bool) {
        let e = &self.entries[ix];
        match (had_control, e.has_control()) {
            (false, true) => self.dirty.push_back(&mut self.entries, ix),
            (true, false) => self.dirty.remove(&mut self.entries, ix),
            (true, true) | (false, false) => {}
        }
        self.drop_if_empty(ix);
    }

    fn drop_if_empty(&mut self, ix: usize) {
        let e = &self.entries[ix];
        if !e.has_control() && !e.has_data() {
            self.by_cid.remove(&e.cid);
            self.entries.remove(ix);
        }
    }

    fn append(&mut self, ix: usize, piece: Piece) {
        let len = piece.bytes.len() as u64;
        let at = self.pieces.insert(piece);
        let e = &mut self.entries[ix];
        let last = std::mem::replace(&mut e.last, at);
        e.bytes += len;
        self.data_bytes += len;
        match self.pieces.get_mut(last) {
            Some(last) => last.next = at,
            None => {
                e.first = at;
                e.deficit = QUANTUM_BYTES;
                self.ring.push_back(&mut self.entries, ix);
            }
        }
    }

    /// Drops the pieces not queued under `keep` (all of them for `None`).
    fn discard(&mut self, ix: usize, keep: Option<Epoch>, released: &mut Vec<Released>) {
        let e = &mut self.entries[ix];
        let cid = e.cid;
        let had_data = e.has_data();
        let (mut at, mut last_kept, mut bytes) = (e.first, NIL, 0);
        e.first = NIL;
        while let Some(piece) = self.pieces.get_mut(at) {
            let next = piece.next;
            if keep == Some(piece.epoch) {
                piece.next = NIL;
                match self.pieces.get_mut(last_kept) {
                    Some(last) => last.next = at,
                    None => e.first = at,
                }
                last_kept = at;
            } else {
                bytes += piece.bytes.len() as u64;
                self.pieces.remove(at);
            }
            at = next;
        }
        e.last = last_kept;
        e.bytes -= bytes;
        self.data_bytes -= bytes;
        if had_data && !e.has_data() {
            self.ring.remove(&mut self.entries, ix);
        }
        if bytes > 0 {
            released.push(Released { cid, bytes });
        }
    }

    /// The next control frame.
    pub(super) fn pop_control(&mut self) -> Option<Frame> {
        let ix = self.dirty.head;
        let e = self.entries.get_mut(ix)?;
        let cid = e.cid;
        let (epoch, body) = e.take_control()?;
        self.settle_control(ix, true);
        Some(Frame::Stream { cid, epoch, body })
    }

    /// The next DATA or FIN by deficit round robin, with at most `room` bytes
    /// of payload. Large pieces are split at the quantum, or at the frame
    /// limit while a single stream has data.
    pub(super) fn pull(&mut self, room: usize) -> Pulled {
        loop {
            let ix = self.ring.head;
            let sole = self.ring.len == 1;
            let limit = if sole { DATA_PAYLOAD_MAX_BYTES } else { QUANTUM_BYTES };
            let Some(e) = self.entries.get_mut(ix) else { return Pulled::Empty };
            let Some(piece) = self.pieces.get_mut(e.first) else { return Pulled::Empty };
            let take = piece.bytes.len().min(limit);
            if take > room {
                return Pulled::NoRoom;
            }
            if !sole {
                // What a stream saved while it was alone is not a debt of the
                // others (L7).
                e.deficit = e.deficit.min(2 * QUANTUM_BYTES);
            }
            let cost = take.max(FRAME_COST_MIN_BYTES);
            if e.deficit < cost {
                // Every stream that is not at the head holds a full quantum,
                // so this is done at most once per call.
                e.deficit += limit;
                self.ring.remove(&mut self.entries, ix);
                self.ring.push_back(&mut self.entries, ix);
                continue;
            }
            e.deficit -= cost;
            e.bytes -= take as u64;
            self.data_bytes -= take as u64;
            let (epoch, off) = (piece.epoch, piece.off);
            let body = if take == 0 {
                Body::Fin { final_off: off }
            } else {
                Body::Data { off, bytes: piece.bytes.split_to(take) }
            };
            let frame = Frame::Stream { cid: e.cid, epoch, body };
            if piece.bytes.is_empty() {
                let at = std::mem::replace(&mut e.first, piece.next);
                if e.first == NIL {
                    e.last = NIL;
                    self.ring.remove(&mut self.entries, ix);
                    self.drop_if_empty(ix);
                }
                self.pieces.remove(at);
            } else {
                piece.off += take as u64;
            }
            return Pulled::Frame(frame, take);
        }
    }

    pub(super) fn check_invariants(&self) {
        let (mut control, mut with_data, mut pieces, mut bytes) = (0, 0, 0, 0);
        for (ix, e) in &self.entries {
            assert_eq!(self.by_cid.get(&e.cid), Some(&ix), "every entry is found by its cid");
            assert!(e.has_control() || e.has_data(), "an entry without anything to say is dropped");
            assert!(e.rst.is_none() || !e.has_data(), "RST supersedes data");
            control += usize::from(e.has_control());
            with_data += usize::from(e.has_data());
            let (mut own, mut at, mut last) = (0, e.first, NIL);
            while let Some(p) = self.pieces.get(at) {
                pieces += 1;
                own += p.bytes.len() as u64;
                last = at;
                at = p.next;
            }
            assert_eq!((own, last), (e.bytes, e.last), "a stream's pieces add up");
            bytes += own;
        }
        assert_eq!(self.by_cid.len(), self.entries.len(), "no cid without an entry");
        assert_eq!(control, self.walk(&self.dirty, |e| e.dirty), "the dirty list holds every entry with control");
        assert_eq!(with_data, self.walk(&self.ring, |e| e.ring), "the ring holds every entry with data");
        assert_eq!((pieces, bytes), (self.pieces.len(), self.data_bytes), "all pieces add up");
    }

    fn walk(&self, list: &List, of: fn(&Entry) -> Links) -> usize {
        let (mut at, mut prev, mut n) = (list.head, NIL, 0);
        while let Some(e) = self.entries.get(at) {
            assert_eq!(of(e).prev, prev, "links agree both ways");
            prev = at;
            at = of(e).next;
            n += 1;
        }
        assert_eq!((prev, n), (list.tail, list.len), "a list ends at its tail");
        n
    }
}

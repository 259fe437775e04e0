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
use crate::id::{Cid, Epoch, Fence};
use crate::planted;
use crate::wire::{Body, DATA_PAYLOAD_MAX_BYTES, Frame, Open, Resume};

/// Bytes a stream may send per turn while others wait (semantics 3).
pub(super) const QUANTUM_BYTES: usize = 16 * 1024;
/// Least a frame costs of its stream's turn: a stream of one-byte frames must
/// not take thousands of frames per turn.
pub(super) const FRAME_COST_MIN_BYTES: usize = 64;
/// Pieces that go into one frame: its chunks are written one by one.
const PIECES_PER_FRAME_MAX: usize = 64;
/// EPOCH notices that may wait; beyond it the oldest is given up.
const EPOCHS_WAITING_MAX: usize = 4096;

/// Index in one of the slabs. 32 bit keep an entry in one cache line: with
/// 100,000 streams every turn misses the cache, and lines are what it costs.
type Ix = u32;

/// The index of nothing.
const NIL: Ix = Ix::MAX;

fn insert<T>(slab: &mut Slab<T>, value: T) -> Ix {
    Ix::try_from(slab.insert(value)).expect("fewer than 2^32 frames wait")
}

fn get<T>(slab: &Slab<T>, ix: Ix) -> Option<&T> {
    slab.get(ix as usize)
}

fn get_mut<T>(slab: &mut Slab<T>, ix: Ix) -> Option<&mut T> {
    slab.get_mut(ix as usize)
}

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
        if matches!(frame, Frame::Status(_)) {
            // It says all that a GOAWAY that still waits would say, and later.
            self.go_away = None;
        }
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
    next: Ix,
}

#[derive(Clone, Copy, Debug)]
struct Links {
    prev: Ix,
    next: Ix,
}

const UNLINKED: Links = Links { prev: NIL, next: NIL };

/// A stream with something waiting.
#[derive(Debug)]
struct Entry {
    cid: Cid,
    /// Its slots, if it has control waiting.
    control: Ix,
    /// First and last piece.
    first: Ix,
    last: Ix,
    deficit: u32,
    bytes: u64,
    ring: Links,
}

const _: () = assert!(size_of::<Entry>() <= 48);

#[derive(Clone, Copy, Debug)]
struct Credit {
    epoch: Epoch,
    consumed: u64,
    limit: u64,
}

/// The control slots of a stream, one per kind.
#[derive(Debug)]
struct Control {
    entry: Ix,
    dirty: Links,
    open: Option<(Epoch, Box<Open>)>,
    open_ack: Option<(Epoch, Result<(), RstCode>)>,
    resume: Option<(Epoch, Box<Resume>)>,
    credit: Option<Credit>,
    rst: Option<(Epoch, RstCode, u64)>,
}

impl Control {
    const fn new(entry: Ix) -> Self {
        Self { entry, dirty: UNLINKED, open: None, open_ack: None, resume: None, credit: None, rst: None }
    }

    const fn is_empty(&self) -> bool {
        self.open.is_none()
            && self.open_ack.is_none()
            && self.resume.is_none()
            && self.credit.is_none()
            && self.rst.is_none()
    }

    /// The next frame in the order a receiver needs them: a stream is opened
    /// or bound before it is credited, and reset last.
    fn take(&mut self) -> Option<(Epoch, Body)> {
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

/// A list threaded through a slab by the links `of` selects.
#[derive(Debug)]
struct List<T> {
    head: Ix,
    tail: Ix,
    len: usize,
    of: fn(&mut T) -> &mut Links,
}

impl<T> List<T> {
    fn new(of: fn(&mut T) -> &mut Links) -> Self {
        Self { head: NIL, tail: NIL, len: 0, of }
    }

    fn push_back(&mut self, slab: &mut Slab<T>, ix: Ix) {
        let tail = self.tail;
        *(self.of)(&mut slab[ix as usize]) = Links { prev: tail, next: NIL };
        match get_mut(slab, tail) {
            Some(last) => (self.of)(last).next = ix,
            None => self.head = ix,
        }
        self.tail = ix;
        self.len += 1;
    }

    fn remove(&mut self, slab: &mut Slab<T>, ix: Ix) {
        let Links { prev, next } = *(self.of)(&mut slab[ix as usize]);
        match get_mut(slab, prev) {
            Some(before) => (self.of)(before).next = next,
            None => self.head = next,
        }
        match get_mut(slab, next) {
            Some(after) => (self.of)(after).prev = prev,
            None => self.tail = prev,
        }
        self.len -= 1;
    }

    fn check(&self, slab: &Slab<T>, of: fn(&T) -> Links) {
        let (mut at, mut prev, mut n) = (self.head, NIL, 0);
        while let Some(e) = get(slab, at) {
            assert_eq!(of(e).prev, prev, "links agree both ways");
            prev = at;
            at = of(e).next;
            n += 1;
        }
        assert_eq!((prev, n), (self.tail, self.len), "a list ends at its tail");
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
    controls: Slab<Control>,
    pieces: Slab<Piece>,
    by_cid: HashMap<Cid, Ix, FxSeededState>,
    /// Streams with control, by when they first got some.
    dirty: List<Control>,
    /// Streams with data, in the order of their turns.
    ring: List<Entry>,
    data_bytes: u64,
}

impl Queues {
    pub(super) fn new(hash_seed: u64) -> Self {
        // Seeded, so that nobody can mint cids that collide; any bits will do.
        let hasher = FxSeededState::with_seed(hash_seed as usize);
        Self {
            entries: Slab::new(),
            controls: Slab::new(),
            pieces: Slab::new(),
            by_cid: HashMap::with_hasher(hasher),
            dirty: List::new(|c| &mut c.dirty),
            ring: List::new(|e| &mut e.ring),
            data_bytes: 0,
        }
    }

    pub(super) fn control_waits(&self) -> bool {
        self.dirty.len > 0 && !self.control_starves()
    }

    /// Control waits until no DATA does (planted bug 29).
    fn control_starves(&self) -> bool {
        planted::on(29) && self.data_waits()
    }

    pub(super) const fn control_len(&self) -> usize {
        self.dirty.len
    }

    pub(super) const fn data_waits(&self) -> bool {
        self.ring.len > 0
    }

    pub(super) const fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    pub(super) fn unsent_bytes(&self, cid: Cid) -> u64 {
        self.by_cid.get(&cid).and_then(|ix| get(&self.entries, *ix)).map_or(0, |e| e.bytes)
    }

    pub(super) fn push(&mut self, cid: Cid, epoch: Epoch, body: Body, released: &mut Vec<Released>) {
        let (entries, by_cid) = (&mut self.entries, &mut self.by_cid);
        let ix = *by_cid.entry(cid).or_insert_with(|| {
            let empty = Entry { cid, control: NIL, first: NIL, last: NIL, deficit: 0, bytes: 0, ring: UNLINKED };
            insert(entries, empty)
        });
        let ended = get(&self.controls, self.entries[ix as usize].control).is_some_and(|c| c.rst.is_some());
        match body {
            Body::Open(open) => self.control(ix).open = Some((epoch, open)),
            Body::OpenAck { result } => self.control(ix).open_ack = Some((epoch, result)),
            Body::Resume(resume) => {
                // Data under the binding that ends here would be dropped by the
                // receiver; both ends retransmit from RESUME's positions.
                // Credit is absolute and holds under any binding.
                let control = self.control(ix);
                if let Some(c) = &mut control.credit {
                    c.epoch = epoch;
                }
                control.resume = Some((epoch, resume));
                self.discard(ix, Some(epoch), released);
            }
            Body::Data { bytes, .. } if ended => released.push(Released { cid, bytes: bytes.len() as u64 }),
            Body::Credit { .. } | Body::Fin { .. } | Body::Rst { .. } if ended => {}
            Body::Data { bytes, .. } if bytes.is_empty() => {}
            Body::Data { .. } if planted::on(30) && self.entries[ix as usize].bytes >= 2 * QUANTUM_BYTES as u64 => {}
            Body::Data { off, bytes } => self.append(ix, Piece { epoch, off, bytes, next: NIL }),
            Body::Fin { final_off } => {
                self.append(ix, Piece { epoch, off: final_off, bytes: Bytes::new(), next: NIL });
            }
            Body::Credit { consumed, limit } => {
                let slot = &mut self.control(ix).credit;
                let old = slot.map_or((0, 0), |c| (c.consumed, c.limit));
                *slot = Some(Credit { epoch, consumed: consumed.max(old.0), limit: limit.max(old.1) });
            }
            Body::Rst { code, final_off } => {
                let control = self.control(ix);
                control.credit = None;
                if control.open.is_some() {
                    // The peer never heard of the stream.
                    self.drop_control(ix);
                } else {
                    control.rst = Some((epoch, code, final_off));
                }
                self.discard(ix, None, released);
            }
        }
        self.drop_if_empty(ix);
    }

    /// The control slots of an entry, which waits for its turn from now on.
    fn control(&mut self, ix: Ix) -> &mut Control {
        let e = &mut self.entries[ix as usize];
        if e.control == NIL {
            e.control = insert(&mut self.controls, Control::new(ix));
            self.dirty.push_back(&mut self.controls, e.control);
        }
        &mut self.controls[e.control as usize]
    }

    fn drop_control(&mut self, ix: Ix) {
        let at = std::mem::replace(&mut self.entries[ix as usize].control, NIL);
        self.dirty.remove(&mut self.controls, at);
        self.controls.remove(at as usize);
    }

    fn drop_if_empty(&mut self, ix: Ix) {
        let e = &self.entries[ix as usize];
        if e.control == NIL && e.first == NIL {
            self.by_cid.remove(&e.cid);
            self.entries.remove(ix as usize);
        }
    }

    fn append(&mut self, ix: Ix, piece: Piece) {
        let len = piece.bytes.len() as u64;
        let at = insert(&mut self.pieces, piece);
        let e = &mut self.entries[ix as usize];
        let last = std::mem::replace(&mut e.last, at);
        e.bytes += len;
        self.data_bytes += len;
        match get_mut(&mut self.pieces, last) {
            Some(last) => last.next = at,
            None => {
                e.first = at;
                e.deficit = QUANTUM_BYTES as u32;
                self.ring.push_back(&mut self.entries, ix);
            }
        }
    }

    /// Drops the pieces of a stream that is over.
    pub(super) fn discard_data(&mut self, cid: Cid, released: &mut Vec<Released>) {
        let Some(&ix) = self.by_cid.get(&cid) else { return };
        self.discard(ix, None, released);
        self.drop_if_empty(ix);
    }

    /// The streams that have pieces.
    pub(super) fn with_data(&self) -> impl Iterator<Item = Cid> {
        self.entries.iter().filter(|(_, e)| e.first != NIL).map(|(_, e)| e.cid)
    }

    /// Drops the pieces not queued under `keep` (all of them for `None`).
    fn discard(&mut self, ix: Ix, keep: Option<Epoch>, released: &mut Vec<Released>) {
        let e = &mut self.entries[ix as usize];
        let cid = e.cid;
        let had_data = e.first != NIL;
        let (mut at, mut last_kept, mut bytes) = (e.first, NIL, 0);
        e.first = NIL;
        while let Some(piece) = get_mut(&mut self.pieces, at) {
            let next = piece.next;
            if keep == Some(piece.epoch) {
                piece.next = NIL;
                match get_mut(&mut self.pieces, last_kept) {
                    Some(last) => last.next = at,
                    None => e.first = at,
                }
                last_kept = at;
            } else {
                bytes += piece.bytes.len() as u64;
                self.pieces.remove(at as usize);
            }
            at = next;
        }
        e.last = last_kept;
        e.bytes -= bytes;
        self.data_bytes -= bytes;
        if had_data && last_kept == NIL {
            self.ring.remove(&mut self.entries, ix);
        }
        if bytes > 0 {
            released.push(Released { cid, bytes });
        }
    }

    /// Takes back the OPENs that wait under another fence than `keep` and that
    /// the caller calls its own, with whatever waits behind them; in the order
    /// they would have left in. A walk over the control that waits.
    pub(super) fn take_back_opens(
        &mut self,
        keep: Fence,
        own: impl Fn(Cid) -> bool,
        released: &mut Vec<Released>,
    ) -> Vec<Cid> {
        let mut taken = Vec::new();
        let mut at = self.dirty.head;
        while let Some(control) = get(&self.controls, at) {
            let (ix, next) = (control.entry, control.dirty.next);
            let stale = control.open.as_ref().is_some_and(|(epoch, o)| Fence { epoch: *epoch, nonce: o.nonce } != keep);
            let cid = self.entries[ix as usize].cid;
            if stale && own(cid) {
                // The peer never heard of the stream.
                self.drop_control(ix);
                self.discard(ix, None, released);
                self.drop_if_empty(ix);
                taken.push(cid);
            }
            at = next;
        }
        taken
    }

    /// The next control frame.
    pub(super) fn pop_control(&mut self) -> Option<Frame> {
        if self.control_starves() {
            return None;
        }
        let control = get_mut(&mut self.controls, self.dirty.head)?;
        let ix = control.entry;
        let (epoch, body) = control.take()?;
        let done = control.is_empty();
        let cid = self.entries[ix as usize].cid;
        if done {
            self.drop_control(ix);
            self.drop_if_empty(ix);
        }
        Some(Frame::Stream { cid, epoch, body })
    }

    /// The next DATA or FIN by deficit round robin, with at most `room` bytes
    /// of payload. Large pieces are split at the quantum, or at the frame
    /// limit while a single stream has data. Small ones that wait go into one
    /// frame, whose payload goes on in `more`: turns are counted in bytes and
    /// the cap of a session in frames, and who writes little at a time must not
    /// use up the frames of all (L7).
    pub(super) fn pull(&mut self, room: usize, more: &mut Vec<Bytes>) -> Pulled {
        loop {
            let ix = self.ring.head;
            let sole = self.ring.len == 1;
            let limit = if sole { DATA_PAYLOAD_MAX_BYTES } else { QUANTUM_BYTES };
            let Some(e) = get_mut(&mut self.entries, ix) else { return Pulled::Empty };
            let Some(piece) = get_mut(&mut self.pieces, e.first) else { return Pulled::Empty };
            let take = piece.bytes.len().min(limit);
            if take > room {
                return Pulled::NoRoom;
            }
            if !sole {
                // What a stream saved while it was alone is not a debt of the
                // others (L7).
                e.deficit = e.deficit.min(2 * QUANTUM_BYTES as u32);
            }
            let cost = take.max(FRAME_COST_MIN_BYTES) as u32;
            if e.deficit < cost {
                // Every stream that is not at the head holds a full quantum,
                // so this is done at most once per call.
                e.deficit += limit as u32;
                if planted::on(2002) {
                    continue;
                }
                self.ring.remove(&mut self.entries, ix);
                self.ring.push_back(&mut self.entries, ix);
                continue;
            }
            let (cid, epoch, off) = (e.cid, piece.epoch, piece.off);
            let body = if take == 0 {
                Body::Fin { final_off: off }
            } else {
                Body::Data { off, bytes: piece.bytes.split_to(take) }
            };
            piece.off += take as u64;
            let most = limit.min(room).min(e.deficit as usize);
            let mut taken = take;
            while let Some(piece) = get_mut(&mut self.pieces, e.first).filter(|p| p.bytes.is_empty()) {
                let done = std::mem::replace(&mut e.first, piece.next);
                self.pieces.remove(done as usize);
                // FIN is the last; it never goes into a frame of DATA.
                let next = get_mut(&mut self.pieces, e.first).filter(|p| p.epoch == epoch && !p.bytes.is_empty());
                let Some(next) = next.filter(|_| taken < most && more.len() < PIECES_PER_FRAME_MAX - 1) else { break };
                let n = next.bytes.len().min(most - taken);
                more.push(next.bytes.split_to(n));
                next.off += n as u64;
                taken += n;
            }
            e.deficit -= taken.max(FRAME_COST_MIN_BYTES) as u32;
            e.bytes -= taken as u64;
            self.data_bytes -= taken as u64;
            if e.first == NIL {
                e.last = NIL;
                self.ring.remove(&mut self.entries, ix);
                self.drop_if_empty(ix);
            }
            return Pulled::Frame(Frame::Stream { cid, epoch, body }, taken);
        }
    }

    pub(super) fn check_invariants(&self) {
        let (mut with_control, mut with_data, mut pieces, mut bytes) = (0, 0, 0, 0);
        for (ix, e) in &self.entries {
            assert_eq!(self.by_cid.get(&e.cid).map(|i| *i as usize), Some(ix), "every entry is found by its cid");
            assert!(e.control != NIL || e.first != NIL, "an entry without anything to say is dropped (B5)");
            if let Some(c) = get(&self.controls, e.control) {
                with_control += 1;
                assert_eq!(c.entry as usize, ix, "control knows its entry");
                assert!(!c.is_empty(), "control without a frame is dropped");
                assert!(c.rst.is_none() || (e.first == NIL && c.credit.is_none()), "RST supersedes credit and data");
            }
            let (mut own, mut at, mut last) = (0, e.first, NIL);
            while let Some(p) = get(&self.pieces, at) {
                pieces += 1;
                own += p.bytes.len() as u64;
                last = at;
                at = p.next;
            }
            assert_eq!((own, last), (e.bytes, e.last), "a stream's pieces add up");
            with_data += usize::from(e.first != NIL);
            bytes += own;
        }
        assert_eq!(self.by_cid.len(), self.entries.len(), "no cid without an entry");
        self.dirty.check(&self.controls, |c| c.dirty);
        self.ring.check(&self.entries, |e| e.ring);
        assert_eq!((with_control, with_control), (self.dirty.len, self.controls.len()), "all control is listed");
        assert_eq!(with_data, self.ring.len, "the ring holds every stream with data");
        assert_eq!((pieces, bytes), (self.pieces.len(), self.data_bytes), "all pieces add up");
    }
}

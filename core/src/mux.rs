//! The sessions of one node and the connections that carry them.
//!
//! Owns every [`Session`], which connection it is on, and the process budget.
//! A connection is either in its handshake (control's business; its outgoing
//! messages wait in a small outbox here) or carries one session. Keeps B2 (by
//! the session's caps), B3 and B5. Knows nothing of agents, registries and
//! routes: what a lost session means is for control to say.

mod checks;
mod distance;
mod io;
mod split;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::config::{Limits, Liveness};
use crate::credit::Budget;
use crate::error::{CloseCode, ProtocolError, ProtocolErrorKind};
use crate::id::{AgentId, ConnKey, Incarnation, Instance, Name, SessionId, SessionKey, TargetIx};
use crate::observed::Observed;
use crate::planted;
use crate::session::{Released, Session, SessionEvent, TxBatch, TxMessage, TxState};
use crate::shard::{ControlNote, Shard, ShardNote, ShardOut};
use crate::slots::Slots;
use crate::time::{Deadline, Instant};
use crate::wire::{Body, Dialect, Frame, Plane};

pub use io::{Check, Input, NodeOut};

/// Who is at the other end of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// An agent (seen from a hub).
    Agent {
        /// Its id.
        id: AgentId,
        /// Its run.
        instance: Instance,
    },
    /// A hub (seen from a hub or an agent).
    Hub {
        /// Its replica id.
        replica_id: Name,
        /// Its run.
        incarnation: Incarnation,
    },
}

impl Peer {
    /// Its name for logs.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Agent { id, .. } => id.as_str(),
            Self::Hub { replica_id, .. } => replica_id.as_str(),
        }
    }
}

/// A session and what carries it.
#[derive(Debug)]
pub struct Entry {
    /// The state machine.
    pub session: Session,
    /// Tunnel or link.
    pub plane: Plane,
    /// The other end.
    pub peer: Peer,
    /// Which target we dial to get it back; `None` for sessions we accepted.
    pub dialled: Option<TargetIx>,
    /// The connection it is on.
    pub conn: Option<ConnKey>,
    /// Since when it has none.
    pub suspended_at: Option<Instant>,
    /// How long it may have none.
    pub resume_window: Duration,
    usable: bool,
    distance: distance::Distance,
    held: u64,
}

/// What happened to sessions, for control to act upon.
#[derive(Debug, PartialEq)]
pub enum SessionNews {
    /// Its connection is gone; it may come back.
    Suspended {
        /// Which.
        key: SessionKey,
        /// Why the connection ended.
        cause: CloseCode,
    },
    /// It did not come back in time, or its end was announced.
    Over {
        /// Which.
        key: SessionKey,
        /// Why.
        cause: CloseCode,
    },
}

#[derive(Debug)]
struct Outbox {
    messages: VecDeque<Bytes>,
}

/// Frames that may wait or be unacknowledged on a session, however few streams it
/// may have.
const RESERVE_MIN_FRAMES: usize = 1 << 16;

/// DATA has its caps; control is never held back, and is bounded by this. An
/// honest peer acknowledges within 20 ms what it has received: what a whole
/// node's streams have to say at once, twice, and the DATA in flight many times
/// over, is beyond that (B2, attack 13).
fn reserve(limits: &Limits) -> usize {
    (limits.max_streams as usize * 2 + limits.send_queue_depth as usize * 64).max(RESERVE_MIN_FRAMES)
}

/// The sessions of a node.
#[derive(Debug)]
pub struct Mux {
    sessions: Slots<SessionKey, Entry>,
    by_id: BTreeMap<SessionId, SessionKey>,
    carried: BTreeMap<ConnKey, SessionKey>,
    outboxes: BTreeMap<ConnKey, Outbox>,
    deadlines: BTreeSet<(Instant, SessionKey)>,
    budget: Budget,
    reserve: usize,
    session_held: u64,
    touched: Vec<SessionKey>,
    rtt: Vec<Duration>,
    released: Vec<Released>,
    shard_out: ShardOut,
    retired: [Retired; 2],
    retired_bytes: [[u64; 2]; 2],
    /// Sessions ever suspended, resumed and lost, by plane (tunnel, link).
    pub totals: [SessionTotals; 2],
}

/// How often sessions of a plane changed state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionTotals {
    /// Established anew.
    pub established: u64,
    /// Lost their connection.
    pub suspended: u64,
    /// Went on over another.
    pub resumed: u64,
    /// Are over.
    pub lost: u64,
    /// Ended by a protocol error.
    pub protocol_errors: u64,
}

/// Frames received and sent, by index in [`FRAME_KINDS`](crate::wire::FRAME_KINDS), of sessions that are over.
pub type Retired = ([u64; 18], [u64; 18]);

const fn plane_ix(plane: Plane) -> usize {
    match plane {
        Plane::Tunnel => 0,
        Plane::Mesh => 1,
    }
}

impl Mux {
    /// No sessions, and as much to hold as `limits` says.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            sessions: Slots::new(),
            by_id: BTreeMap::new(),
            carried: BTreeMap::new(),
            outboxes: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            budget: Budget::new(limits.memory_budget_bytes),
            reserve: reserve(limits),
            session_held: 0,
            touched: Vec::new(),
            rtt: Vec::new(),
            released: Vec::new(),
            shard_out: ShardOut::default(),
            retired: [Retired::default(), Retired::default()],
            retired_bytes: [[0; 2]; 2],
            totals: [SessionTotals::default(); 2],
        }
    }

    /// A session.
    #[must_use]
    pub fn get(&self, key: SessionKey) -> Option<&Entry> {
        self.sessions.get(key)
    }

    /// A session, to be changed.
    pub fn get_mut(&mut self, key: SessionKey) -> Option<&mut Entry> {
        self.sessions.get_mut(key)
    }

    /// All sessions.
    pub fn iter(&self) -> impl Iterator<Item = (SessionKey, &Entry)> {
        self.sessions.iter()
    }

    /// How many sessions there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is no session.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// The session with this wire name.
    #[must_use]
    pub fn find(&self, id: SessionId) -> Option<SessionKey> {
        self.by_id.get(&id).copied()
    }

    /// The session a connection carries.
    #[must_use]
    pub fn carried_by(&self, conn: ConnKey) -> Option<SessionKey> {
        self.carried.get(&conn).copied()
    }

    /// Payload bytes this node holds, and may hold.
    #[must_use]
    pub const fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Frame totals of sessions that are over: tunnels, links. What is alive
    /// counts for itself, so totals never fall.
    #[must_use]
    pub const fn retired(&self) -> &[Retired; 2] {
        &self.retired
    }

    /// Encoded bytes received and sent by sessions of tunnels and of links that
    /// are over, as [`Mux::retired`].
    #[must_use]
    pub const fn retired_bytes(&self) -> &[[u64; 2]; 2] {
        &self.retired_bytes
    }

    /// Queues a handshake message on a connection.
    pub fn post(&mut self, conn: ConnKey, message: Bytes, out: &mut NodeOut) {
        self.outboxes.entry(conn).or_insert_with(|| Outbox { messages: VecDeque::new() }).messages.push_back(message);
        out.wake.push(conn);
    }

    /// Adds a session that was just established on `conn`.
    pub fn establish(
        &mut self,
        session: Session,
        plane: Plane,
        peer: Peer,
        dialled: Option<TargetIx>,
        conn: ConnKey,
        resume_window: Duration,
    ) -> SessionKey {
        let id = session.id();
        let key = self.sessions.insert(Entry {
            session,
            plane,
            peer,
            dialled,
            conn: Some(conn),
            suspended_at: None,
            resume_window,
            usable: true,
            distance: distance::Distance::default(),
            held: 0,
        });
        self.by_id.insert(id, key);
        self.carried.insert(conn, key);
        self.totals[plane_ix(plane)].established += 1;
        self.rearm(key, None);
        key
    }

    /// Puts a resumed session on its new connection. Returns the connection it
    /// was still on, if any, which the caller closes.
    pub fn rebind(&mut self, now: Instant, key: SessionKey, conn: ConnKey, out: &mut NodeOut) -> Option<ConnKey> {
        let before = self.next_deadline(key);
        let entry = self.sessions.get_mut(key)?;
        let old = entry.conn.replace(conn);
        if let Some(old) = old
            && !planted::on(2005)
        {
            self.carried.remove(&old);
        }
        self.carried.insert(conn, key);
        let totals = &mut self.totals[plane_ix(entry.plane)];
        *(if planted::on(2022) { &mut totals.established } else { &mut totals.resumed }) += 1;
        let after = entry.suspended_at.take().map_or(Duration::ZERO, |t| now.since(t));
        out.observed.push(Observed::SessionResumed { plane: entry.plane, peer: entry.peer.name().to_owned(), after });
        out.wake.push(conn);
        self.touched.push(key);
        // The resumption acknowledged what the peer had received.
        self.account(key);
        self.rearm(key, before);
        old
    }

    /// Queues a frame on a session; stale keys are ignored (C5).
    pub fn send(&mut self, now: Instant, key: SessionKey, frame: Frame, out: &mut NodeOut) {
        self.queue(now, key, frame, out);
    }

    /// [`Self::send`]; false if there is no such session.
    fn queue(&mut self, now: Instant, key: SessionKey, frame: Frame, out: &mut NodeOut) -> bool {
        let Some(entry) = self.sessions.get_mut(key) else { return false };
        entry.session.send(now, frame, &mut self.released);
        if let Some(conn) = entry.conn
            && out.wake.last() != Some(&conn)
        {
            out.wake.push(conn);
        }
        // What is queued moves no timer of a session.
        self.account(key);
        true
    }

    /// A connection ended. Its session, if any, is suspended.
    pub fn on_disconnected(
        &mut self,
        now: Instant,
        conn: ConnKey,
        cause: CloseCode,
        news: &mut Vec<SessionNews>,
        out: &mut NodeOut,
    ) {
        self.outboxes.remove(&conn);
        let Some(key) = self.carried.remove(&conn) else { return };
        self.suspend(now, key, cause, news, out);
    }

    /// Told here and at once, as it is counted: the session may be over before
    /// control looks at the news (A1).
    fn suspend(
        &mut self,
        now: Instant,
        key: SessionKey,
        cause: CloseCode,
        news: &mut Vec<SessionNews>,
        out: &mut NodeOut,
    ) {
        let before = self.next_deadline(key);
        let Some(entry) = self.sessions.get_mut(key) else { return };
        entry.conn = None;
        entry.suspended_at = Some(now);
        entry.session.on_connection_lost(now);
        self.touched.push(key);
        self.totals[plane_ix(entry.plane)].suspended += 1;
        let peer = entry.peer.name().to_owned();
        out.observed.push(Observed::SessionSuspended { plane: entry.plane, peer, cause });
        news.push(SessionNews::Suspended { key, cause });
        if planted::on(2004) && cause == CloseCode::Dead {
            return;
        }
        self.rearm(key, before);
    }

    /// Removes a session for ever.
    pub fn remove(&mut self, key: SessionKey, cause: CloseCode, out: &mut NodeOut) -> Option<Entry> {
        if let Some(at) = self.next_deadline(key) {
            self.deadlines.remove(&(at, key));
        }
        let entry = self.sessions.remove(key)?;
        self.by_id.remove(&entry.session.id());
        if !planted::on(32) || entry.conn.is_some() {
            self.session_held -= entry.held;
        }
        if let Some(conn) = entry.conn {
            self.carried.remove(&conn);
            self.close(conn, entry.session.dialect(), cause, 0, out);
        }
        let (counters, retired) = (entry.session.counters(), &mut self.retired[plane_ix(entry.plane)]);
        for (sum, n) in retired.0.iter_mut().zip(&counters.frames_in) {
            *sum += n;
        }
        for (sum, n) in retired.1.iter_mut().zip(&counters.frames_out) {
            *sum += n;
        }
        let bytes = &mut self.retired_bytes[plane_ix(entry.plane)];
        *bytes = [bytes[0] + counters.bytes_in, bytes[1] + counters.bytes_out];
        self.totals[plane_ix(entry.plane)].lost += 1;
        out.observed.push(Observed::SessionLost { plane: entry.plane, peer: entry.peer.name().to_owned(), cause });
        Some(entry)
    }

    /// Says GOAWAY on a connection and closes it.
    pub fn close(&mut self, conn: ConnKey, dialect: Dialect, code: CloseCode, retry_after_ms: u64, out: &mut NodeOut) {
        let goaway = crate::wire::encode_message(dialect, 0, &[Frame::GoAway { code, retry_after_ms }]);
        self.post(conn, goaway, out);
        out.close.push((conn, code));
    }

    /// A message arrived on a connection that carries a session. Its frames are
    /// appended to `frames` in the peer's order, which the caller keeps: an
    /// EPOCH and the OPEN under its fence may share a message.
    ///
    /// # Errors
    /// When the peer broke the protocol; the caller ends the session.
    pub fn on_message(
        &mut self,
        now: Instant,
        conn: ConnKey,
        message: &Bytes,
        frames: &mut Vec<Frame>,
        out: &mut NodeOut,
    ) -> Result<(), ProtocolError> {
        let Some(&key) = self.carried.get(&conn) else { return Ok(()) };
        let before = self.next_deadline(key);
        let Some(entry) = self.sessions.get_mut(key) else { return Ok(()) };
        let (plane, start) = (entry.plane, frames.len());
        let mut result = entry.session.on_message(now, message, frames);
        let kept = entry.session.backlog();
        if frames.len() > start && kept > self.reserve {
            frames.truncate(start);
            let detail = format!("expected at most {} frames unacknowledged, got {kept}", self.reserve);
            result = Err(ProtocolError::new(ProtocolErrorKind::Unacknowledged, detail));
        }
        if entry.session.wants_transmit(now) {
            out.wake.push(conn);
        }
        if !entry.usable {
            self.touched.push(key);
        }
        entry.session.take_rtt_samples(&mut self.rtt);
        for sample in self.rtt.drain(..) {
            if entry.distance.measured(sample) {
                self.touched.push(key);
            }
            out.observed.push(Observed::Rtt { plane: entry.plane, sample });
        }
        self.account(key);
        self.rearm(key, before);
        if result.is_err() {
            self.totals[plane_ix(plane)].protocol_errors += 1;
        }
        result
    }

    /// Bytes of a message that is not complete yet arrived: the peer lives, and
    /// nothing else. Without a session on `conn` it says nothing (C5).
    pub fn on_heard(&mut self, now: Instant, conn: ConnKey) {
        let Some(&key) = self.carried.get(&conn) else { return };
        let before = self.next_deadline(key);
        let Some(entry) = self.sessions.get_mut(key) else { return };
        entry.session.on_heard(now);
        if !entry.usable {
            self.touched.push(key);
        }
        self.rearm(key, before);
    }

    /// Takes messages for a connection: the handshake's first, then the session's.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        conn: ConnKey,
        budget_bytes: usize,
        batch: &mut TxBatch,
        shard: &mut Shard,
        out: &mut NodeOut,
    ) -> TxState {
        let (state, session) = self.take_messages(now, conn, budget_bytes, batch);
        let Some(key) = session else { return state };
        for r in self.released.drain(..) {
            shard.on_released(now, r.cid, key, r.bytes, &mut self.shard_out);
        }
        self.flush_shard(now, shard, out, &mut Vec::new());
        state
    }

    /// The messages themselves; what left the session's queue is in `released`.
    fn take_messages(
        &mut self,
        now: Instant,
        conn: ConnKey,
        budget_bytes: usize,
        batch: &mut TxBatch,
    ) -> (TxState, Option<SessionKey>) {
        if let Some(outbox) = self.outboxes.get_mut(&conn) {
            while let Some(m) = outbox.messages.pop_front() {
                let len = m.len();
                batch.bytes += len;
                batch.messages.push_back(TxMessage { chunks: m.into(), len });
            }
            self.outboxes.remove(&conn);
        }
        let Some(&key) = self.carried.get(&conn) else { return (TxState::Idle, None) };
        let before = self.next_deadline(key);
        let Some(entry) = self.sessions.get_mut(key) else { return (TxState::Idle, None) };
        let state = entry.session.poll_transmit(now, budget_bytes, batch, &mut self.released);
        self.account(key);
        self.rearm(key, before);
        (state, Some(key))
    }

    /// Carries out what the shard wants: frames into sessions, the rest to the
    /// caller. Notes for control are appended to `notes`.
    pub fn flush_shard(&mut self, now: Instant, shard: &mut Shard, out: &mut NodeOut, notes: &mut Vec<ShardNote>) {
        self.carry_out(now, shard, out);
        for note in self.shard_out.notes.drain(..) {
            if note == ShardNote::Drained {
                out.drained = true;
            } else {
                notes.push(note);
            }
        }
        self.budget.set_held(self.session_held + shard.held_bytes());
        shard.set_budget(now, &self.budget);
    }

    /// Frames into sessions, sockets, targets and events to the caller; the
    /// notes stay in the shard's output.
    fn carry_out(&mut self, now: Instant, shard: &mut Shard, out: &mut NodeOut) {
        let mut so = std::mem::take(&mut self.shard_out);
        let mut unsent = Vec::new();
        while !so.frames.is_empty() || !so.refenced.is_empty() || !so.obsolete.is_empty() {
            for (key, frame) in so.frames.drain(..) {
                let opens = if let Frame::Stream { cid, body: Body::Open(_), .. } = &frame { Some(*cid) } else { None };
                if !self.queue(now, key, frame, out)
                    && let Some(cid) = opens
                {
                    unsent.push((key, cid));
                }
            }
            // Behind an EPOCH the agent would refuse them (O4).
            for (key, fence) in so.refenced.drain(..) {
                let Some(entry) = self.sessions.get_mut(key) else { continue };
                let stale = entry.session.take_back_opens(fence, |cid| shard.knows(cid), &mut self.released);
                unsent.extend(stale.into_iter().map(|cid| (key, cid)));
                self.account(key);
            }
            for (key, cid) in so.obsolete.drain(..) {
                let Some(entry) = self.sessions.get_mut(key) else { continue };
                entry.session.discard(cid, &mut self.released);
                self.account(key);
            }
            // Discarded by a reset: the stream is gone, nobody waits for it. Or
            // taken back with its OPEN: it is sent anew.
            self.released.clear();
            // The shard has not heard yet that this session is over, or has
            // another fence. What was never sent may go to the next candidate;
            // each is tried once.
            for (key, cid) in unsent.drain(..) {
                shard.on_unsent(now, key, cid, &mut so);
            }
        }
        out.socks.append(&mut so.socks);
        out.targets.append(&mut so.targets);
        out.observed.append(&mut so.observed);
        self.shard_out = so;
    }

    /// Another budget, other caps and timers, of every session.
    pub fn reload(&mut self, now: Instant, limits: &Limits, liveness: Liveness, out: &mut NodeOut) {
        self.budget.set_cap(limits.memory_budget_bytes);
        self.reserve = reserve(limits);
        let keys: Vec<SessionKey> = self.sessions.iter().map(|(key, _)| key).collect();
        for key in keys {
            let before = self.next_deadline(key);
            let Some(entry) = self.sessions.get_mut(key) else { continue };
            entry.session.reload(now, limits.send_queue_depth, limits.inflight_bytes, liveness);
            if let (Some(conn), true) = (entry.conn, entry.session.wants_transmit(now)) {
                out.wake.push(conn);
            }
            self.touched.push(key);
            self.rearm(key, before);
        }
    }

    /// The shard's output vector, for calls into the shard between flushes.
    pub const fn shard_out(&mut self) -> &mut ShardOut {
        &mut self.shard_out
    }

    /// Lets a session's timers run and gives up those without a connection
    /// for too long.
    pub fn handle_timeout(&mut self, now: Instant, news: &mut Vec<SessionNews>, out: &mut NodeOut) {
        while let Some((at, key)) = self.deadlines.first().copied() {
            if at > now {
                break;
            }
            self.deadlines.pop_first();
            let Some(entry) = self.sessions.get_mut(key) else { continue };
            self.touched.push(key);
            if let Some(since) = entry.suspended_at {
                if now.since(since) >= entry.resume_window {
                    news.push(SessionNews::Over { key, cause: CloseCode::Transport });
                } else {
                    self.rearm(key, None);
                }
                continue;
            }
            match entry.session.handle_timeout(now) {
                SessionEvent::None => {}
                SessionEvent::Dead => {
                    if let Some(conn) = entry.conn {
                        let dialect = entry.session.dialect();
                        self.carried.remove(&conn);
                        self.close(conn, dialect, CloseCode::Dead, 0, out);
                        self.suspend(now, key, CloseCode::Dead, news, out);
                    }
                    continue;
                }
            }
            if let (Some(conn), true) = (entry.conn, entry.session.wants_transmit(now)) {
                out.wake.push(conn);
            }
            self.rearm(key, None);
        }
    }

    /// Tells the shard which sessions take new streams and how far away their
    /// peers are, where that changed since the last call. Only sessions that
    /// were touched are looked at.
    pub fn refresh_usable(&mut self, now: Instant, notes: &mut Vec<ControlNote>) {
        for key in std::mem::take(&mut self.touched) {
            let Some(entry) = self.sessions.get_mut(key) else { continue };
            let usable = entry.conn.is_some() && !entry.session.is_suspect(now);
            if usable != entry.usable {
                entry.usable = usable;
                notes.push(ControlNote::SessionUsable { session: key, usable });
            }
            if let Some(class) = entry.distance.untold() {
                notes.push(ControlNote::Distance { session: key, class });
            }
        }
    }

    /// The next moment a session needs `handle_timeout`.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        self.deadlines.first().map(|(at, _)| Deadline { at: *at, why: "session" })
    }

    fn next_deadline(&self, key: SessionKey) -> Option<Instant> {
        let entry = self.sessions.get(key)?;
        match entry.suspended_at {
            Some(since) => Some(since.after(entry.resume_window)),
            None => entry.session.poll_timeout().map(|d| d.at),
        }
    }

    fn rearm(&mut self, key: SessionKey, before: Option<Instant>) {
        let after = self.next_deadline(key);
        if before == after && before.is_some_and(|at| self.deadlines.contains(&(at, key))) {
            return;
        }
        if let Some(at) = before {
            self.deadlines.remove(&(at, key));
        }
        if let Some(at) = after {
            self.deadlines.insert((at, key));
        }
    }

    fn account(&mut self, key: SessionKey) {
        if let Some(entry) = self.sessions.get_mut(key) {
            let held = entry.session.held_bytes();
            self.session_held = self.session_held - entry.held + held;
            entry.held = held;
        }
    }
}

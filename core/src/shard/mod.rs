//! The data plane of one node: its streams, and what happens to them.
//!
//! Owns the stream table, dedup, the origin's open attempts and the credit
//! between sockets and sessions. Keeps S1–S9, B1, B4–B7, I1, I2, L12 and the
//! per-frame order of checks: known cid, bound session, bound epoch, position,
//! credit, FIN/RST table. Every call is O(what it was given); the loss of a
//! session and the relief of memory pressure are worked off in chunks (C3).
//! Knows sessions by key only: neither sockets, encodings nor the registry.
//!
//! A hub's shard originates streams for its clients and carries those of other
//! hubs to its tunnels; an agent's shard connects targets. Control speaks to it
//! in [`ControlNote`]s and hears [`ShardNote`]s.

mod bulk;
mod eject;
mod ending;
mod frames;
mod note;
mod origin;
mod pass;
mod record;
mod reload;
mod select;
mod shadow;
mod share;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

pub use ending::Ending;
pub use note::{Addressee, Attach, ControlNote, Note, Question, SessionUp, ShadowNote, ShardNote};
pub use reload::ShardConfig;
pub use share::{Elsewhere, shard_of_lane};

use crate::config::{Limits, ListenerConfig, OpenTimers, Selection};
use crate::credit::Pressure;
use crate::dedup::{Dedup, Terminal};
use crate::error::RstCode;
use crate::hash::KeyedState;
use crate::id::{AgentId, Cid, Fence, Incarnation, Name, SessionKey, SockKey, StreamKey};
use crate::observed::{Cause, Observed, ShardCounters, Side};
use crate::planted;
use crate::rng::{Rng, Seed};
use crate::route::Routes;
use crate::slots::Slots;
use crate::stream::{End, Half, Part, Stream};
use crate::time::{Deadline, Instant};
use crate::wire::{Body, Frame, Plane};

/// Streams worked off per call of bulk work (C3).
const BULK_STREAMS: usize = 256;
/// Payload bytes of one stream that may wait in its session's queue.
const QUEUE_PER_STREAM_BYTES: u64 = 128 * 1024;
/// Limit violations in a minute that close a session (attack 39).
const VIOLATIONS_PER_MINUTE: u32 = 3;
/// Shortest time between two RST(UNKNOWN) on one session (attack 44).
const UNKNOWN_RST_EVERY: Duration = Duration::from_millis(100);

/// What the node is.
#[derive(Clone, Debug)]
pub enum Role {
    /// A hub, with its client listeners.
    Hub {
        /// The listeners, by [`ListenerIx`](crate::id::ListenerIx).
        listeners: Vec<ListenerConfig>,
        /// Deadlines of opening.
        open: OpenTimers,
        /// How candidates are selected.
        selection: Selection,
    },
    /// An agent.
    Agent {
        /// Deadline of connecting a target.
        target_timeout: Duration,
    },
}

/// What happens at a socket.
#[derive(Clone, Debug)]
pub enum SockEvent {
    /// Bytes were read (at most what `read_budget` allowed).
    Data(Bytes),
    /// This many bytes of earlier writes went into the socket.
    Written(u64),
    /// The peer half-closed.
    Eof,
    /// Everything was written and our half was closed.
    ShutDown,
    /// The connection was aborted or failed.
    Aborted,
}

/// What to do with a socket. Order matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SockOp {
    /// Write these bytes.
    Write(Bytes),
    /// Half-close after all writes, then report [`SockEvent::ShutDown`].
    ShutDown,
    /// `read_budget` is no longer 0.
    Readable,
    /// Reset the connection at once; what is unwritten is discarded.
    Abort(RstCode),
    /// Both halves ended: close.
    Close,
}

/// What a shard wants done. Owned by the caller and reused.
#[derive(Debug, Default)]
pub struct ShardOut {
    /// Frames for sessions, to be queued in this order.
    pub frames: Vec<(SessionKey, Frame)>,
    /// Socket operations.
    pub socks: Vec<(SockKey, SockOp)>,
    /// Sessions whose fence was replaced, with the new one: OPENs of this shard
    /// that still wait there under the old one come back to `on_unsent`.
    pub refenced: Vec<(SessionKey, Fence)>,
    /// Streams that a session's peer ended: what of their DATA still waits
    /// there is of no use to anybody.
    pub obsolete: Vec<(SessionKey, Cid)>,
    /// Targets to connect (agent): answer with `on_target`.
    pub targets: Vec<(StreamKey, Name)>,
    /// Notes to control.
    pub notes: Vec<ShardNote>,
    /// Events.
    pub observed: Vec<Observed>,
}

#[derive(Debug)]
struct SessionInfo {
    plane: Plane,
    peer: Option<Incarnation>,
    replica: Option<Name>,
    /// Whose attachment is on it: a lost tunnel costs the same with ten others
    /// and with ten thousand (C3).
    agent: Option<AgentId>,
    usable: bool,
    /// When it last became usable again after an interruption.
    back_at: Instant,
    initial_window: u64,
    /// How far away its peer is, in classes.
    distance: u8,
    streams: BTreeSet<StreamKey>,
    pending_opens: u32,
    violations: u32,
    violations_since: Instant,
    last_unknown_rst: Option<Instant>,
}

/// A shard of a hub or an agent.
#[derive(Debug)]
pub struct Shard {
    role: Role,
    limits: Limits,
    incarnation: Incarnation,
    lane: u8,
    minted: u64,
    rng: Rng,
    streams: Slots<StreamKey, Stream>,
    by_cid: HashMap<Cid, StreamKey, KeyedState>,
    sessions: BTreeMap<SessionKey, SessionInfo>,
    attachments: BTreeMap<AgentId, BTreeMap<SessionKey, Attach>>,
    /// What an attachment exposed and does not any more.
    withdrawn: BTreeMap<SessionKey, BTreeSet<Name>>,
    routes: Routes,
    ejections: eject::Ejections,
    /// Ejections since the start.
    ejected: BTreeMap<(Name, RstCode), u64>,
    shadow: Option<Box<shadow::Shadow>>,
    load: BTreeMap<Fence, u64>,
    /// With the number of the question each stream asked.
    waiting_route: BTreeMap<Name, BTreeMap<StreamKey, u64>>,
    questions: u64,
    elsewhere: Elsewhere,
    timers: BTreeSet<(Instant, StreamKey)>,
    dedup: Dedup,
    pressure: Pressure,
    throttled: BTreeSet<StreamKey>,
    /// Streams whose socket is not read because the budget is used up.
    starved: bulk::Starved,
    /// Bytes the budget has left.
    room: u64,
    relieving: bool,
    relief_at: Option<Instant>,
    lost: VecDeque<(SessionKey, BTreeSet<StreamKey>)>,
    /// How often a session was interrupted, until its last stream is told.
    interruptions: BTreeMap<SessionKey, u16>,
    clients: Vec<u32>,
    draining: bool,
    /// What becomes of the streams that are left then.
    leftover: Option<Box<ending::Leftover>>,
    lease_until: Option<Instant>,
    socket_held: u64,
    violations: BTreeMap<Name, u64>,
    counters: ShardCounters,
}

impl Shard {
    /// A shard that mints cids of `incarnation` in `lane`.
    #[must_use]
    pub fn new(role: Role, limits: Limits, incarnation: Incarnation, lane: u8, seed: &Seed) -> Self {
        let mut rng = seed.fork("shard").rng();
        let listeners = if let Role::Hub { listeners, .. } = &role { listeners.len() } else { 0 };
        Self {
            dedup: Dedup::new(limits.tombstones),
            by_cid: HashMap::with_hasher(KeyedState::new(&mut rng)),
            counters: ShardCounters {
                opened_local: vec![0; listeners],
                opened_mesh: vec![0; listeners],
                open_failures: vec![[0; 32]; listeners],
                shadow_local: vec![0; listeners],
                shadow_mesh: vec![0; listeners],
                shadow_refused: vec![[0; 32]; listeners],
                ..ShardCounters::default()
            },
            clients: vec![0; listeners],
            role,
            limits,
            incarnation,
            lane,
            minted: 0,
            rng,
            streams: Slots::new(),
            sessions: BTreeMap::new(),
            attachments: BTreeMap::new(),
            withdrawn: BTreeMap::new(),
            routes: Routes::default(),
            ejections: eject::Ejections::default(),
            ejected: BTreeMap::new(),
            shadow: None,
            load: BTreeMap::new(),
            waiting_route: BTreeMap::new(),
            questions: 0,
            elsewhere: Elsewhere::default(),
            timers: BTreeSet::new(),
            pressure: Pressure::Low,
            throttled: BTreeSet::new(),
            starved: bulk::Starved::default(),
            room: u64::MAX,
            relieving: false,
            relief_at: None,
            lost: VecDeque::new(),
            interruptions: BTreeMap::new(),
            draining: false,
            leftover: None,
            lease_until: None,
            socket_held: 0,
            violations: BTreeMap::new(),
        }
    }

    /// Totals since the start.
    #[must_use]
    pub const fn counters(&self) -> &ShardCounters {
        &self.counters
    }

    /// Live streams.
    #[must_use]
    pub const fn streams(&self) -> usize {
        self.streams.len()
    }

    /// The attachments streams may be opened under, for `status`.
    pub fn attachments(&self) -> impl Iterator<Item = &Attach> {
        self.attachments.values().flat_map(BTreeMap::values)
    }

    /// Clients of a listener now.
    #[must_use]
    pub fn clients(&self, listener: crate::id::ListenerIx) -> u32 {
        self.clients.get(usize::from(listener.0)).copied().unwrap_or(0)
    }

    /// Payload bytes held outside session queues: early data, data above a
    /// sink's limit, and data handed to sockets but not yet written.
    #[must_use]
    pub const fn held_bytes(&self) -> u64 {
        self.socket_held
    }

    /// Streams reset because a peer ignored its limit or offsets, by replica id
    /// (links only: an agent's name is no metric label, B10).
    pub fn violations_by_peer(&self) -> impl Iterator<Item = (&Name, u64)> {
        self.violations.iter().map(|(n, v)| (n, *v))
    }

    /// Whether streams wait on this session (dials hurry then).
    #[must_use]
    pub fn has_streams(&self, session: SessionKey) -> bool {
        self.sessions.get(&session).is_some_and(|s| !s.streams.is_empty())
    }

    /// The mesh or tunnel a stream's frames may come from, for tests and `status`.
    #[must_use]
    pub fn stream(&self, key: StreamKey) -> Option<&Stream> {
        self.streams.get(key)
    }

    /// Takes a note from control.
    pub fn on_note(&mut self, now: Instant, note: ControlNote, out: &mut ShardOut) {
        match note {
            ControlNote::Routes(changes) => {
                for change in changes.iter() {
                    self.ejections.follow(now, change, &self.routes);
                    self.shadow_follows(change);
                    self.routes.apply(change);
                }
            }
            ControlNote::RouteAnswer { connector, question, result } => {
                self.on_route_answer(now, &connector, question.number, result, out);
            }
            ControlNote::SessionUp(up) => {
                self.sessions.insert(
                    up.session,
                    SessionInfo {
                        plane: up.plane,
                        peer: up.peer,
                        replica: up.replica,
                        agent: None,
                        usable: true,
                        back_at: now,
                        initial_window: up.initial_window,
                        distance: 0,
                        streams: BTreeSet::new(),
                        pending_opens: 0,
                        violations: 0,
                        violations_since: now,
                        last_unknown_rst: None,
                    },
                );
            }
            ControlNote::SessionUsable { session, usable } => {
                if let Some(s) = self.sessions.get_mut(&session) {
                    if usable && !s.usable {
                        s.back_at = now;
                    }
                    if s.usable && !usable {
                        let n = self.interruptions.entry(session).or_default();
                        *n = n.wrapping_add(1);
                    }
                    s.usable = usable;
                }
            }
            ControlNote::Distance { session, class } => {
                if let Some(s) = self.sessions.get_mut(&session) {
                    s.distance = class;
                }
            }
            ControlNote::InitialWindow { session, bytes } => {
                if let Some(s) = self.sessions.get_mut(&session) {
                    s.initial_window = bytes;
                    if planted::on(21) {
                        for key in &s.streams {
                            let Some(open) = self.streams.get_mut(*key).filter(|s| s.open) else { continue };
                            let Some(side) = open.side_of(session) else { continue };
                            open.halves[1 - side].limit += bytes;
                        }
                    }
                }
            }
            ControlNote::SessionLost { session } => {
                self.dedup.forget_session(session);
                if let Some(agent_id) = self.sessions.get(&session).and_then(|info| info.agent.as_ref())
                    && let Some(by_session) = self.attachments.get_mut(agent_id)
                {
                    by_session.remove(&session);
                    if by_session.is_empty() {
                        self.attachments.remove(agent_id);
                    }
                }
                self.withdrawn.remove(&session);
                if let Some(mut info) = self.sessions.remove(&session) {
                    if info.plane == Plane::Mesh {
                        self.take_others_too(&mut info.streams);
                    }
                    self.lost.push_back((session, info.streams));
                    self.work_off_lost(now, out);
                } else {
                    self.interruptions.remove(&session);
                }
            }
            ControlNote::Reload(config) => self.reload(&config),
            ControlNote::Exposes(connectors) => self.expose(&connectors),
            ControlNote::Withdrawn { session, connectors } => {
                if self.sessions.contains_key(&session) {
                    self.withdraw(session, connectors);
                }
            }
            ControlNote::Attach(attach) => {
                if planted::on(58)
                    && let Ok(name) = Name::new(attach.agent_id.as_str())
                {
                    self.violations.entry(name).or_default();
                }
                let (session, fence) = (attach.session, attach.fence);
                if let Some(info) = self.sessions.get_mut(&session) {
                    info.agent = Some(attach.agent_id.clone());
                }
                let of_agent = self.attachments.entry(attach.agent_id.clone()).or_default();
                let before = of_agent.insert(session, attach);
                if before.is_some_and(|b| b.fence != fence) && !self.is_agent() {
                    out.refenced.push((session, fence));
                }
            }
            ControlNote::Detach { agent_id, fence } => {
                if let Some(by_session) = self.attachments.get_mut(&agent_id) {
                    by_session.retain(|_, a| a.fence != fence);
                    if by_session.is_empty() {
                        self.attachments.remove(&agent_id);
                    }
                }
            }
            ControlNote::Lease(until) => self.lease_until = until,
            ControlNote::Shadow(note) => self.on_shadow(note.as_ref()),
            ControlNote::Drain(plan) => {
                self.draining = true;
                self.leftover = Some(Box::new(ending::Leftover::new(plan)));
                self.note_if_drained(out);
            }
            ControlNote::Shutdown => {
                self.draining = true;
                let all: BTreeSet<StreamKey> = self.streams.iter().map(|(k, _)| k).collect();
                for key in all {
                    self.reset(now, key, RstCode::Shutdown, Side::Hub, None, out);
                }
                self.note_if_drained(out);
            }
        }
    }

    /// When `handle_timeout` is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if !self.lost.is_empty() {
            return Some(Deadline { at: Instant::ZERO, why: "streams of a lost session" });
        }
        if self.relieving {
            return Some(Deadline { at: Instant::ZERO, why: "streams throttled by the budget" });
        }
        let opening = self.timers.first().map(|(at, _)| Deadline { at: *at, why: "stream open" });
        let relief = self.relief_at.map(|at| Deadline { at, why: "memory relief" });
        let leftover = self.leftover_due().map(|at| Deadline { at, why: "streams of a node that leaves" });
        Deadline::earliest(leftover, Deadline::earliest(opening, relief))
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut ShardOut) {
        self.work_off_lost(now, out);
        self.relieve(now, out);
        self.free_memory(now, out);
        self.end_leftover(now, out);
        let mut worked = 0;
        while let Some((at, key)) = self.timers.first().copied() {
            if at > now || worked == BULK_STREAMS {
                break;
            }
            self.timers.pop_first();
            worked += 1;
            if let Some(s) = self.streams.get_mut(key) {
                s.deadline = None;
                self.on_open_deadline(now, key, out);
            }
        }
    }

    fn mint(&mut self) -> Cid {
        self.minted += 1;
        Cid::new(self.incarnation, self.lane, self.minted)
    }

    fn arm(&mut self, key: StreamKey, at: Instant) {
        if let Some(s) = self.streams.get_mut(key) {
            if let Some(old) = s.deadline.replace(at) {
                self.timers.remove(&(old, key));
            }
            self.timers.insert((at, key));
        }
    }

    fn disarm(&mut self, key: StreamKey) {
        if let Some(s) = self.streams.get_mut(key)
            && let Some(old) = s.deadline.take()
        {
            self.timers.remove(&(old, key));
        }
    }

    /// Binds end 1 or 0 of a stream to a session in the session's own index.
    fn index_session(&mut self, key: StreamKey, session: SessionKey, opening: bool) {
        if let Some(info) = self.sessions.get_mut(&session) {
            info.streams.insert(key);
            info.pending_opens += u32::from(opening);
        }
    }

    fn unindex_session(&mut self, key: StreamKey, session: SessionKey, was_opening: bool) {
        if let Some(info) = self.sessions.get_mut(&session) {
            info.streams.remove(&key);
            let counted = was_opening && info.pending_opens > 0;
            info.pending_opens -= u32::from(counted && !(planted::on(2027) && info.plane == Plane::Mesh));
        }
    }

    /// Removes a stream from every index and tells its story.
    fn remove(&mut self, now: Instant, key: StreamKey, how: Terminal, by: Side, out: &mut ShardOut) -> Option<Stream> {
        self.disarm(key);
        let stream = self.streams.remove(key)?;
        if !planted::on(22) || how == Terminal::Finished {
            self.socket_held -= stream.held();
        }
        self.by_cid.remove(&stream.cid);
        self.throttled.remove(&key);
        self.starved.remove(key);
        for end in stream.ends {
            if let End::Session(s) = end {
                self.unindex_session(key, s, !stream.open);
            }
        }
        if stream.cid.0 != 0 {
            self.dedup.bury(stream.cid, how);
        }
        let cause = match how {
            Terminal::Finished => {
                self.counters.finished += 1;
                Cause::Finished
            }
            Terminal::Reset(code) => {
                if let Some(n) = self.counters.reset.get_mut(usize::from(code.number())) {
                    *n += 1;
                }
                Cause::Reset(code)
            }
        };
        if let Part::Origin(o) = &stream.part {
            let ix = usize::from(o.listener.0);
            if let Some(n) = self.clients.get_mut(ix) {
                *n = n.saturating_sub(1);
            }
            if o.waits == crate::stream::OriginWait::Route {
                let connector = self.connector_of(o.listener);
                if let Some(waiting) = self.waiting_route.get_mut(&connector) {
                    waiting.remove(&key);
                    if waiting.is_empty() {
                        self.waiting_route.remove(&connector);
                    }
                }
            }
            if o.carrier.is_some()
                && let Some(n) = self.load.get_mut(&stream.fence)
            {
                *n = n.saturating_sub(1);
                if *n == 0 {
                    self.load.remove(&stream.fence);
                }
            }
            if !stream.open
                && let Terminal::Reset(code) = how
                && let Some(row) = self.counters.open_failures.get_mut(ix)
                && let Some(n) = row.get_mut(usize::from(code.number()))
            {
                *n += 1;
            }
        }
        self.tell(now, key, &stream, cause, by, out);
        if !planted::on(2053) {
            self.note_if_drained(out);
        }
        Some(stream)
    }

    fn note_if_drained(&self, out: &mut ShardOut) {
        if self.draining && self.streams.is_empty() {
            out.notes.push(ShardNote::Drained);
        }
    }

    /// Ends a stream abruptly: RST to every session it is bound to except
    /// `silent`, abort to its socket (S5).
    fn reset(
        &mut self,
        now: Instant,
        key: StreamKey,
        code: RstCode,
        by: Side,
        silent: Option<SessionKey>,
        out: &mut ShardOut,
    ) {
        let silent: &[SessionKey] = silent.as_slice();
        self.end(now, key, code, by, silent, out);
    }

    /// [`Self::reset`], with any number of sessions that are not told.
    fn end(
        &mut self,
        now: Instant,
        key: StreamKey,
        code: RstCode,
        by: Side,
        silent: &[SessionKey],
        out: &mut ShardOut,
    ) {
        let Some(stream) = self.remove(now, key, Terminal::Reset(code), by, out) else { return };
        let refused = matches!(&stream.part, Part::Origin(o) if o.last_no.is_some());
        for (side, end) in stream.ends.iter().enumerate() {
            match *end {
                End::Pending => {}
                End::Socket(_) if planted::on(35) && refused => {}
                End::Socket(sock) if planted::on(16) && code == RstCode::Lost => {
                    out.socks.extend([(sock, SockOp::ShutDown), (sock, SockOp::Close)]);
                }
                End::Socket(sock) => out.socks.push((sock, SockOp::Abort(code))),
                // Nobody reads on there. An RST of ours would have done the same.
                End::Session(s) if silent.contains(&s) => {
                    if !planted::on(2058) {
                        out.obsolete.push((s, stream.cid));
                    }
                }
                End::Session(s) => {
                    // An agent that has not answered refuses; everything else
                    // resets: a hub cannot know that no target socket remains (S7).
                    let sending = usize::from(side == 0);
                    let body = if !stream.open && matches!(stream.part, Part::Agent) {
                        Body::OpenAck { result: Err(code) }
                    } else {
                        Body::Rst { code, final_off: stream.halves[sending].sent }
                    };
                    out.frames.push((s, Frame::stream(stream.cid, stream.fence.epoch, body)));
                }
            }
        }
    }

    /// Ends a stream whose halves are both done.
    fn finish_if_done(&mut self, now: Instant, key: StreamKey, by: Side, out: &mut ShardOut) {
        let Some(s) = self.streams.get(key) else { return };
        let mut halves = s.halves.iter();
        let over = if planted::on(14) { halves.any(Half::is_done) } else { halves.all(Half::is_done) };
        if !over {
            return;
        }
        if let Some(stream) = self.remove(now, key, Terminal::Finished, by, out)
            && let Some((_, sock)) = stream.socket()
        {
            out.socks.push((sock, SockOp::Close));
        }
    }

    /// Checks what must hold between any two calls; for tests and the simulator.
    ///
    /// # Panics
    /// When an invariant is broken.
    pub fn check_invariants(&self) {
        let mut held = 0;
        for (key, s) in self.streams.iter() {
            held += s.held();
            assert!(s.cid.0 == 0 || self.by_cid.get(&s.cid) == Some(&key), "the index names every live cid (B6)");
            for (h, half) in s.halves.iter().enumerate() {
                let waiting: u64 = half.waiting.iter().map(|b| b.len() as u64).sum();
                assert_eq!(waiting, half.next - half.sent, "half {h}: what waits is what was not passed on (A3)");
                if matches!(s.ends[1 - h], End::Session(_)) {
                    assert!(half.sent <= half.limit, "half {h}: sent beyond the limit (B4)");
                }
            }
            if let Some(at) = s.deadline {
                assert!(self.timers.contains(&(at, key)), "an armed deadline is in the timers (B9)");
            }
            for end in s.ends {
                if let End::Session(k) = end
                    && let Some(info) = self.sessions.get(&k)
                {
                    assert!(info.streams.contains(&key), "a session's index names its streams (B5)");
                }
            }
        }
        self.check_counts();
        self.starved.check(&self.streams);
        self.ejections.check(&self.routes);
        assert_eq!(held, self.socket_held, "held bytes add up (B3)");
        assert!(self.timers.len() <= self.streams.len(), "at most one timer a stream (B9)");
    }
}

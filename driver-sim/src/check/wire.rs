//! The ledger of the wire: what every session said, read with the core's codec
//! as it leaves one machine and as it reaches the other.
//!
//! Keeps, per session and direction: numbers without gaps, a repeat that is the
//! same bytes (S9), acknowledgements of what arrived (S1), bytes and frames in
//! flight below the caps (B2), nobody passed over for long (L7). Per stream: see
//! `wire/stream.rs`. Per process: no more control than it has cause for, see
//! `wire/amplification.rs` (B8). It must not look into a machine.

mod amplification;
mod stream;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use nowconnect_core::config::Mode;
use nowconnect_core::error::{CloseCode, ProtocolError};
use nowconnect_core::hub::Hub;
use nowconnect_core::id::{AgentId, Cid, Epoch, Fence, Incarnation, Nonce, SessionId};
use nowconnect_core::wire::{Body, Dialect, Frame, HelloRole, Plane, WireLimits, decode};

use crate::faults::{At, Point};
use crate::marks::Mark;
use crate::node::Machine;
use crate::world::{Violation, World};

use self::amplification::Allowance;
use self::stream::Carried;

/// DATA of one stream after which a neighbour that waits is remembered.
const TURN_BYTES: u64 = 96 << 10;
/// DATA of one stream after which that neighbour counts as starved.
pub(super) const STARVED_BYTES: u64 = 320 << 10;

/// A message and what it says, read once with the core's codec when it leaves
/// its machine.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) bytes: Bytes,
    /// Its number in its session; 0: none.
    pub(crate) number: u64,
    pub(crate) frames: Vec<Frame>,
    /// Of all its bytes.
    pub(crate) hash: u64,
}

impl Told {
    /// What a message says.
    fn read(dialect: Dialect, bytes: Bytes, mut frames: Vec<Frame>) -> (Self, Option<ProtocolError>) {
        let (number, error) = match decode(dialect, &bytes, &WireLimits::ESTABLISHED, &mut frames) {
            Ok(number) => (number, None),
            Err(e) => (0, Some(e)),
        };
        let hash = digest(&bytes);
        (Self { bytes, number, frames, hash }, error)
    }
}

/// A stream frame that a machine was given before.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) session: u32,
    /// The end that said it.
    pub(crate) from: usize,
    pub(crate) frame: Frame,
}

/// Frames kept for whoever wants to say one again.
const SEEN_MAX: usize = 256;

/// A message that was sent and not yet acknowledged.
#[derive(Debug)]
struct Kept {
    hash: u64,
    len: u64,
    frames: u64,
}

/// What one end of a session sends.
#[derive(Debug, Default)]
struct Direction {
    /// Highest number sent.
    sent: u64,
    /// Highest number that arrived.
    arrived: u64,
    /// Numbers up to here are acknowledged.
    acknowledged: u64,
    kept: VecDeque<Kept>,
    kept_bytes: u64,
    kept_frames: u64,
    /// Largest first window this end granted, as the other knows it.
    window: u64,
    /// The stream that has the turn, its DATA since, and who waited then.
    turn: Option<(Cid, u64, Option<Cid>)>,
}

#[derive(Debug)]
struct Ledger {
    plane: Plane,
    /// Who speaks on it: who dials, who accepts.
    nodes: [u16; 2],
    dirs: [Direction; 2],
    streams: HashMap<Cid, Carried>,
    fence: Option<Fence>,
    /// The fence before: shards of a split hub hear of the new one a little
    /// later than the agent does, which then refuses.
    former: Option<Fence>,
    /// The connection of the latest handshake, and whether its acceptor counts
    /// as established by that alone.
    conn: u32,
    bound: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Line {
    session: Option<u32>,
    /// Next number, by sender.
    next: [u64; 2],
    asked: Option<(SessionId, u64)>,
    window: u64,
    pub(super) heard: [u64; 2],
    /// What each end acknowledged last.
    acknowledged: [u64; 2],
    /// PINGs that each end was given and has not answered.
    pings: [u32; 2],
}

/// The ledger.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    lines: Vec<Line>,
    sessions: Vec<Ledger>,
    by_id: BTreeMap<SessionId, u32>,
    /// The session between two hubs that brought each stream.
    crossed: HashMap<Cid, u32>,
    /// The one session that a fence opens streams on.
    openers: BTreeMap<(AgentId, Fence), u32>,
    /// Sessions with a connection, as far as anybody knows.
    open: Vec<u32>,
    /// Room of messages that were read.
    spare: Vec<Vec<Frame>>,
    /// Control that each process has cause for, by node.
    allowances: Vec<Allowance>,
    /// Epochs that each agent was given.
    granted: BTreeMap<(At, Epoch), Nonce>,
    /// Streams that end at a hostile agent, whose own they are.
    hostile: BTreeSet<Cid>,
    /// Runs of hostile hubs: streams of theirs have neither a client nor what it
    /// wrote.
    pub(crate) strangers: BTreeSet<Incarnation>,
    /// What hostile hubs opened and no agent may hear of.
    pub(crate) forbidden: BTreeSet<Cid>,
    /// Frames that arrived lately, if anybody wants them.
    pub(crate) seen: Option<VecDeque<Seen>>,
    pub(super) points: Vec<Point>,
    pub(super) marks: Vec<Mark>,
    /// A hub that says DUPLICATE on a mesh connection.
    pub(super) duplicate: bool,
    /// WELCOME and GOAWAY in the message that arrived last.
    pub(super) welcome: bool,
    pub(super) dismissed: bool,
    /// It came for the first time.
    fresh: bool,
    /// Streams seen lately, for whoever wants to forge a frame of one.
    pub(crate) recent: VecDeque<(Cid, Epoch)>,
}

/// What the ledger may ask of the world.
pub(super) struct Ghost<'a> {
    pub(super) world: &'a World,
    pub(super) conn: u32,
    pub(super) end: usize,
}

fn broken(id: &str, text: String) -> Result<(), Violation> {
    Err(Violation::new(id, text))
}

fn digest(bytes: &[u8]) -> u64 {
    let mut state = bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = (state ^ u64::from_le_bytes(word)).wrapping_mul(0x9fb2_1c65_1e98_df25);
        state ^= state >> 32;
    }
    state
}

impl Ghost<'_> {
    fn node(&self) -> &crate::node::Node {
        &self.world.nodes[usize::from(self.world.conns[self.conn as usize].nodes[self.end])]
    }

    fn flipped(&self) -> bool {
        let ix = self.world.conns[self.conn as usize].nodes[self.end];
        self.world.check.nodes.get(&ix).is_some_and(|g| g.flipped)
    }

    fn has_links(&self) -> bool {
        self.node().hub().is_some_and(|h| h.mux().iter().any(|(_, e)| e.plane == Plane::Mesh))
    }

    fn what(&self, cid: Cid) -> String {
        let client = self.world.cids.get(&cid).map_or_else(|| "nobody's".to_owned(), |c| format!("client {c}'s"));
        format!("{} on conn {} about {client} stream {cid}", self.node().name, self.conn)
    }

    /// The sender is a hub of several shards.
    fn is_split(&self) -> bool {
        matches!(self.node().at, At::Hub(n) if self.world.plan.hubs[usize::from(n)].shards > 0)
    }

    /// Caps of the sender: bytes and frames in flight.
    fn caps(&self) -> (u64, u64) {
        // As it was told last.
        let limits = match &self.node().machine {
            Some(Machine::Hub(h)) => &h.control().config().limits,
            Some(Machine::Agent(a)) => &a.tunnels().config().limits,
            None => return (u64::MAX, u64::MAX),
        };
        (limits.inflight_bytes.max(1), u64::from(limits.send_queue_depth.max(1)))
    }

    /// The sender's windows: first and largest. A reload only narrows them.
    fn windows(&self) -> (u64, u64) {
        let plan = &self.world.plan;
        let window = match self.node().at {
            At::Hub(n) => plan.hubs.get(usize::from(n)).map(|h| h.window),
            At::Agent(n) => plan.agents.get(usize::from(n)).map(|a| a.window),
        };
        window.map_or((0, 0), |w| (w.0, w.0.max(w.1)))
    }
}

impl Wire {
    /// With frames kept for whoever wants to say one again, or not.
    pub(super) fn keeping(seen: bool) -> Self {
        Self { seen: seen.then(VecDeque::new), ..Self::default() }
    }

    pub(super) fn line(&mut self, conn: u32) -> &mut Line {
        let ix = conn as usize;
        if self.lines.len() <= ix {
            self.lines.resize(ix + 1, Line::default());
        }
        &mut self.lines[ix]
    }

    /// When an end last heard something.
    pub(crate) fn heard(&self, conn: u32, end: usize) -> u64 {
        self.lines.get(conn as usize).map_or(0, |l| l.heard[end])
    }

    /// A message leaves a machine.
    pub(super) fn sent(&mut self, g: &Ghost<'_>, dialect: Dialect, message: Bytes) -> (Told, Result<(), Violation>) {
        let (told, error) = Told::read(dialect, message, self.spare.pop().unwrap_or_default());
        let result = match error {
            Some(e) => broken("D2", format!("{} sent what cannot be read: {e}", g.node().name)),
            None => self.judge(g, dialect, &told),
        };
        (told, result)
    }

    /// A message has done its duty.
    pub(crate) fn recycle(&mut self, told: Told) {
        let mut frames = told.frames;
        frames.clear();
        if self.spare.len() < 64 {
            self.spare.push(frames);
        }
    }

    fn judge(&mut self, g: &Ghost<'_>, dialect: Dialect, told: &Told) -> Result<(), Violation> {
        let (conn, end, plane) = (g.conn, g.end, dialect.plane);
        let (number, frames) = (told.number, told.frames.as_slice());
        amplification::judge_size(g, dialect.codec, told)?;
        self.judge_mode(g, plane, frames)?;
        if number == 0 {
            for f in frames {
                self.unnumbered(g, plane, f)?;
            }
            return Ok(());
        }
        let Some(session) = self.line(conn).session else {
            return broken("I3", format!("{}: message {number} on conn {conn} before a session", g.node().name));
        };
        let expected = self.line(conn).next[end];
        if number != expected {
            let text = format!("{}: message {number} on conn {conn}, {expected} was next", g.node().name);
            return broken("S9", text);
        }
        self.line(conn).next[end] += 1;
        let Some(ledger) = self.sessions.get_mut(session as usize) else { return Ok(()) };
        let dir = &mut ledger.dirs[end];
        let hash = told.hash;
        if number <= dir.sent {
            let at = number.saturating_sub(dir.acknowledged + 1) as usize;
            if number > dir.acknowledged && dir.kept.get(at).is_some_and(|k| k.hash != hash) {
                let text = format!("{}: message {number} on conn {conn} is not what it was before", g.node().name);
                return broken("S9", text);
            }
            return Ok(());
        }
        dir.sent = number;
        let data = frames.iter().any(|f| matches!(f, Frame::Stream { body: Body::Data { .. }, .. }));
        let (bytes_max, frames_max) = g.caps();
        if data && (dir.kept_bytes >= bytes_max || dir.kept_frames >= frames_max) {
            let text = format!(
                "{}: DATA on conn {conn} with {} bytes and {} frames in flight; the caps are {bytes_max} and {frames_max}",
                g.node().name,
                dir.kept_bytes,
                dir.kept_frames
            );
            return broken("B2", text);
        }
        // An ACK that rides along is not counted.
        let counted = frames.iter().filter(|f| !matches!(f, Frame::Ack { .. })).count() as u64;
        let kept = Kept { hash, len: told.bytes.len() as u64, frames: counted };
        dir.kept_bytes += kept.len;
        dir.kept_frames += kept.frames;
        dir.kept.push_back(kept);
        for f in frames {
            match f {
                Frame::Stream { cid, epoch, body } => {
                    self.spend(g, *cid, body)?;
                    self.stream(g, session, *cid, *epoch, body)?;
                }
                // The agent's own EPOCH refuses one; it grants nothing.
                Frame::Epoch(n) if plane == Plane::Tunnel && g.end == 1 => {
                    if let Some(l) = self.sessions.get_mut(session as usize) {
                        l.former = l.fence.replace(Fence { epoch: n.epoch, nonce: n.nonce });
                        self.note_fence(g, Fence { epoch: n.epoch, nonce: n.nonce });
                    }
                }
                Frame::Hello(_)
                | Frame::Welcome(_)
                | Frame::Auth(_)
                | Frame::Ack { .. }
                | Frame::Ping { .. }
                | Frame::Pong { .. }
                | Frame::GoAway { .. }
                | Frame::Epoch(_)
                | Frame::Status(_)
                | Frame::Connectors { .. }
                | Frame::Token { .. } => self.unnumbered(g, plane, f)?,
            }
        }
        Ok(())
    }

    /// M1, M2: what a mode forbids on the mesh.
    fn judge_mode(&self, g: &Ghost<'_>, plane: Plane, frames: &[Frame]) -> Result<(), Violation> {
        let Some(mode) = g.node().hub().map(Hub::mode).filter(|_| plane == Plane::Mesh) else { return Ok(()) };
        // What was open before a flip goes on: then the way is judged where it
        // is chosen. A hub that is off may speak over links it still has.
        if g.flipped() && (mode == Mode::Shadow || g.has_links()) {
            return Ok(());
        }
        for f in frames {
            let (id, forbidden) = match mode {
                Mode::Active => return Ok(()),
                Mode::Off => ("M1", !matches!(f, Frame::GoAway { .. })),
                Mode::Shadow => {
                    ("M2", matches!(f, Frame::Stream { body: Body::Open(_) | Body::Data { .. } | Body::Resume(_), .. }))
                }
            };
            if forbidden {
                return broken(id, format!("{} says {} on the mesh in mode {mode:?}", g.node().name, f.kind()));
            }
        }
        Ok(())
    }

    /// A hub grants a fence: a mark if the agent had its epoch under another nonce.
    fn note_fence(&mut self, g: &Ghost<'_>, fence: Fence) {
        let agent = g.world.nodes[usize::from(g.world.conns[g.conn as usize].nodes[0])].at;
        if self.granted.insert((agent, fence.epoch), fence.nonce).is_some_and(|before| before != fence.nonce) {
            self.marks.push(Mark::EqualEpoch);
        }
    }

    fn unnumbered(&mut self, g: &Ghost<'_>, plane: Plane, frame: &Frame) -> Result<(), Violation> {
        let (conn, end) = (g.conn, g.end);
        match frame {
            Frame::Hello(h) => {
                self.points.push(Point::Hello);
                let line = self.line(conn);
                line.asked = h.resume.as_ref().map(|r| (r.session, r.received));
                line.window = h.initial_window;
                if let HelloRole::Hub(_) = h.role
                    && plane == Plane::Tunnel
                {
                    return broken("I3", format!("{} says a hub's HELLO on a tunnel", g.node().name));
                }
            }
            Frame::Welcome(w) => {
                self.points.push(Point::Welcome);
                let line = *self.line(conn);
                let session = if let Some(accept) = &w.resumed {
                    let Some(&session) = self.by_id.get(&w.session) else {
                        return broken("S9", format!("{} resumes a session that never was", g.node().name));
                    };
                    let asked = line.asked.map_or(0, |a| a.1);
                    let Some(ledger) = self.sessions.get_mut(session as usize) else { return Ok(()) };
                    for (sender, received) in [(0, accept.received), (1, asked)] {
                        let dir = &mut ledger.dirs[sender];
                        if received > dir.arrived {
                            let text = format!(
                                "conn {conn}: a resumption says {received} messages of end {sender} arrived, {} did",
                                dir.arrived
                            );
                            return broken("S1", text);
                        }
                        dir.forget(received);
                    }
                    self.line(conn).next = [accept.received + 1, asked + 1];
                    session
                } else {
                    let session = self.sessions.len() as u32;
                    self.sessions.push(Ledger {
                        plane,
                        nodes: g.world.conns[conn as usize].nodes,
                        dirs: [Direction::default(), Direction::default()],
                        streams: HashMap::new(),
                        fence: w.attachment.as_ref().map(|a| Fence { epoch: a.epoch, nonce: a.nonce }),
                        former: None,
                        conn,
                        bound: plane == Plane::Tunnel,
                    });
                    self.by_id.insert(w.session, session);
                    self.line(conn).next = [1, 1];
                    session
                };
                self.line(conn).session = Some(session);
                if !self.open.contains(&session) {
                    self.open.push(session);
                }
                if let Some(a) = &w.attachment {
                    self.note_fence(g, Fence { epoch: a.epoch, nonce: a.nonce });
                }
                if let Some(ledger) = self.sessions.get_mut(session as usize) {
                    // Each end's first window, as the other may know it from now on.
                    ledger.conn = conn;
                    ledger.bound |= w.resumed.is_some();
                    for (dir, window) in ledger.dirs.iter_mut().zip([line.window, w.initial_window]) {
                        dir.window = dir.window.max(window);
                    }
                    if let Some(a) = &w.attachment {
                        ledger.fence = Some(Fence { epoch: a.epoch, nonce: a.nonce });
                    }
                }
            }
            Frame::Status(s) => {
                if let Some(l) = self.line(conn).session.and_then(|s| self.sessions.get_mut(s as usize)) {
                    l.dirs[end].window = l.dirs[end].window.max(s.initial_window);
                }
            }
            Frame::Ack { received } => {
                let before = &mut self.line(conn).acknowledged[end];
                if std::mem::replace(before, *received) >= *received {
                    return broken(
                        "B8",
                        format!("{} acknowledges message {received} on conn {conn} again", g.node().name),
                    );
                }
                if let Some(l) = self.line(conn).session.and_then(|s| self.sessions.get(s as usize))
                    && *received > l.dirs[1 - end].arrived
                {
                    let text = format!(
                        "{} acknowledges message {received} on conn {conn}, {} arrived",
                        g.node().name,
                        l.dirs[1 - end].arrived
                    );
                    return broken("S1", text);
                }
            }
            Frame::Pong { .. } => {
                let pings = &mut self.line(conn).pings[end];
                let Some(left) = pings.checked_sub(1) else {
                    return broken("B8", format!("{} answers a PING that never came on conn {conn}", g.node().name));
                };
                *pings = left;
            }
            Frame::GoAway { code, .. } => {
                self.duplicate |= plane == Plane::Mesh && *code == CloseCode::Duplicate;
            }
            Frame::Auth(_)
            | Frame::Ping { .. }
            | Frame::Epoch(_)
            | Frame::Connectors { .. }
            | Frame::Token { .. }
            | Frame::Stream { .. } => {}
        }
        Ok(())
    }

    /// A message is about to reach a machine.
    pub(super) fn arrived(&mut self, conn: u32, to: usize, node: u16, told: &Told) {
        let from = 1 - to;
        let (number, frames) = (told.number, told.frames.as_slice());
        for f in frames {
            self.welcome |= matches!(f, Frame::Welcome(_));
            self.dismissed |= matches!(f, Frame::GoAway { .. });
            if matches!(f, Frame::Ping { .. }) {
                self.line(conn).pings[to] += 1;
            }
        }
        let session = self.line(conn).session;
        if let Some(ledger) = session.and_then(|s| self.sessions.get_mut(s as usize)) {
            let fresh = number == ledger.dirs[from].arrived + 1;
            self.fresh = fresh;
            if fresh {
                ledger.dirs[from].arrived = number;
            }
            for f in frames {
                match f {
                    Frame::Ack { received } => ledger.dirs[to].forget(*received),
                    Frame::Stream { cid, body, .. } if fresh => {
                        let Some(s) = ledger.streams.get_mut(cid) else { continue };
                        if s.over[to] {
                            let ok = matches!(body, Body::OpenAck { result: Ok(()) });
                            self.marks.push(if ok { Mark::AckAfterCancel } else { Mark::TombstoneUsed });
                        }
                        match body {
                            Body::Open(o) => s.allowed[to] = s.allowed[to].max(o.limit),
                            Body::Data { off, bytes } => s.arrived[from] = *off + bytes.len() as u64,
                            Body::Credit { limit, .. } => s.allowed[to] = s.allowed[to].max(*limit),
                            Body::Fin { .. } => s.fin_arrived[from] = true,
                            Body::OpenAck { .. } | Body::Rst { .. } | Body::Resume(_) => {}
                        }
                    }
                    Frame::Hello(_)
                    | Frame::Welcome(_)
                    | Frame::Auth(_)
                    | Frame::Ping { .. }
                    | Frame::Pong { .. }
                    | Frame::GoAway { .. }
                    | Frame::Epoch(_)
                    | Frame::Status(_)
                    | Frame::Connectors { .. }
                    | Frame::Token { .. }
                    | Frame::Stream { .. } => {}
                }
            }
        }
        self.earn(node, frames);
        self.keep_seen(session, from, frames);
    }

    /// Remembers frames for whoever wants to say one again.
    fn keep_seen(&mut self, session: Option<u32>, from: usize, frames: &[Frame]) {
        let (Some(seen), Some(session)) = (&mut self.seen, session) else { return };
        for frame in frames.iter().filter(|f| matches!(f, Frame::Stream { .. })) {
            seen.push_back(Seen { session, from, frame: frame.clone() });
        }
        while seen.len() > SEEN_MAX {
            seen.pop_front();
        }
    }

    /// L7: the stream whose turn it is, when it has had too much of it, and
    /// who else has a claim; the second value is who was found waiting before.
    pub(super) fn long_turn(&mut self, conn: u32, end: usize) -> Option<(SessionId, Cid, Option<Cid>)> {
        let session = self.line(conn).session?;
        let (cid, had, waited) = self.sessions.get(session as usize)?.dirs[end].turn?;
        let due = if waited.is_some() { STARVED_BYTES } else { TURN_BYTES };
        if had < due {
            return None;
        }
        let id = self.by_id.iter().find(|(_, s)| **s == session).map(|(id, _)| *id)?;
        Some((id, cid, waited))
    }

    pub(super) fn waits(&mut self, conn: u32, end: usize, who: Option<Cid>) {
        let session = self.line(conn).session;
        if let Some(l) = session.and_then(|s| self.sessions.get_mut(s as usize))
            && let Some((cid, had, _)) = l.dirs[end].turn
        {
            l.dirs[end].turn = Some((cid, if who.is_some() { had } else { 0 }, who));
        }
    }

    /// Connections that an acceptor answered with WELCOME and that are the
    /// latest of their session.
    pub(crate) fn current(&self) -> impl Iterator<Item = (u32, bool)> {
        self.open.iter().filter_map(|s| self.sessions.get(*s as usize)).map(|l| (l.conn, l.bound))
    }

    /// Forgets sessions of which nothing is left.
    pub(crate) fn prune(&mut self, mut alive: impl FnMut(u32) -> bool) {
        let sessions = &self.sessions;
        self.open.retain(|s| sessions.get(*s as usize).is_some_and(|l| alive(l.conn)));
    }

    /// How much of each direction of a stream is known to have arrived
    /// somewhere.
    pub(crate) fn position(&self, cid: Cid) -> Option<[u64; 2]> {
        self.sessions.iter().rev().find_map(|l| l.streams.get(&cid)).map(|s| s.arrived)
    }

    /// Its OPEN was accepted, so that no further session will carry it.
    pub(crate) fn is_answered(&self, cid: Cid) -> bool {
        self.sessions.iter().any(|l| l.streams.get(&cid).is_some_and(|s| s.ack == Some(Ok(()))))
    }

    /// Whether a stream is a hostile hub's.
    pub(crate) fn is_strangers(&self, cid: Cid) -> bool {
        self.strangers.contains(&cid.incarnation())
    }

    /// Whether the message that arrived last came for the first time.
    pub(crate) const fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The session of a connection.
    pub(crate) fn session_of(&self, conn: u32) -> Option<u32> {
        self.lines.get(conn as usize).and_then(|l| l.session)
    }

    /// The session that a dial asked to go on with.
    pub(super) fn asked(&self, conn: u32) -> Option<SessionId> {
        self.lines.get(conn as usize).and_then(|l| l.asked).map(|(id, _)| id)
    }

    /// Whether a stream was opened on the session of a connection.
    pub(crate) fn carries(&self, conn: u32, cid: Cid) -> bool {
        let session = self.session_of(conn);
        session.and_then(|s| self.sessions.get(s as usize)).is_some_and(|l| l.streams.contains_key(&cid))
    }
}

impl Direction {
    fn forget(&mut self, received: u64) {
        while self.acknowledged < received {
            let Some(k) = self.kept.pop_front() else { break };
            self.acknowledged += 1;
            self.kept_bytes -= k.len;
            self.kept_frames -= k.frames;
        }
    }
}

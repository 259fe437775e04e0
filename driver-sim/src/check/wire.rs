//! The ledger of the wire: what every session said, read with the core's codec
//! as it leaves one machine and as it reaches the other.
//!
//! Keeps, per session and direction: numbers without gaps, a repeat that is the
//! same bytes (S9), acknowledgements of what arrived (S1), bytes and frames in
//! flight below the caps (B2), nobody passed over for long (L7). Per stream:
//! contiguous offsets that hold the stream's own bytes (S9, S1, I1), credit
//! kept and never taken back (B4), reports of what a socket really took (B1),
//! an end where the writer ended (S2), silence after the last word (S4), an
//! OPEN_ACK that tells the truth (S7), one OPEN a session (S6) under the
//! session's own fence (O1, O4). It must not look into a machine.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use nowconnect_core::config::Mode;
use nowconnect_core::error::{CloseCode, RstCode};
use nowconnect_core::hub::Hub;
use nowconnect_core::id::{AgentId, Cid, Epoch, Fence, SessionId};
use nowconnect_core::wire::{Body, Dialect, Frame, HelloRole, Plane, WireLimits, decode};

use crate::faults::Point;
use crate::marks::Mark;
use crate::payload::{self, Half};
use crate::world::{Violation, World};

/// DATA of one stream after which a neighbour that waits is remembered.
const TURN_BYTES: u64 = 96 << 10;
/// DATA of one stream after which that neighbour counts as starved.
pub(super) const STARVED_BYTES: u64 = 320 << 10;

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

/// One stream on one session; index 0 is the session's dialling end.
#[derive(Debug, Default)]
struct Carried {
    opener: usize,
    epoch: Epoch,
    /// Opened under a fence that its hub had just given up.
    stale: bool,
    /// What was answered.
    ack: Option<Result<(), RstCode>>,
    /// Next offset, by sender.
    next: [u64; 2],
    /// Bytes that arrived, by sender.
    arrived: [u64; 2],
    fin: [Option<u64>; 2],
    fin_arrived: [bool; 2],
    over: [bool; 2],
    /// Limit this end granted, and limit it knows.
    granted: [u64; 2],
    allowed: [u64; 2],
    consumed: [u64; 2],
}

#[derive(Debug)]
struct Ledger {
    plane: Plane,
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
}

/// The ledger.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    lines: Vec<Line>,
    sessions: Vec<Ledger>,
    by_id: BTreeMap<SessionId, u32>,
    /// The one session that a fence opens streams on.
    openers: BTreeMap<(AgentId, Fence), u32>,
    /// Sessions with a connection, as far as anybody knows.
    open: Vec<u32>,
    frames: Vec<Frame>,
    pub(super) points: Vec<Point>,
    pub(super) marks: Vec<Mark>,
    /// A hub that says DUPLICATE on a mesh connection.
    pub(super) duplicate: bool,
    /// WELCOME and GOAWAY in the message that arrived last.
    pub(super) welcome: bool,
    pub(super) dismissed: bool,
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
        matches!(self.node().at, crate::faults::At::Hub(n) if self.world.plan.hubs[usize::from(n)].shards > 0)
    }

    /// Caps of the sender: bytes and frames in flight.
    fn caps(&self) -> (u64, u64) {
        match self.node().at {
            crate::faults::At::Hub(n) => {
                let h = &self.world.plan.hubs[usize::from(n)];
                (h.inflight.max(1), u64::from(h.queue_depth.max(1)))
            }
            crate::faults::At::Agent(n) => (self.world.plan.agents[usize::from(n)].inflight.max(1), 1000),
        }
    }

    /// The largest window anybody may grant.
    fn window_max(&self) -> u64 {
        let hubs = self.world.plan.hubs.iter().map(|h| h.window);
        hubs.chain(self.world.plan.agents.iter().map(|a| a.window)).map(|w| w.0.max(w.1)).max().unwrap_or(0)
    }
}

impl Wire {
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
    pub(super) fn sent(&mut self, g: &Ghost<'_>, dialect: Dialect, message: &Bytes) -> Result<(), Violation> {
        let mut frames = std::mem::take(&mut self.frames);
        frames.clear();
        let number = match decode(dialect, message, &WireLimits::ESTABLISHED, &mut frames) {
            Ok(n) => n,
            Err(e) => return broken("D2", format!("{} sent what cannot be read: {e}", g.node().name)),
        };
        let result = self.judge(g, dialect.plane, number, message, &frames);
        self.frames = frames;
        result
    }

    fn judge(
        &mut self,
        g: &Ghost<'_>,
        plane: Plane,
        number: u64,
        message: &Bytes,
        frames: &[Frame],
    ) -> Result<(), Violation> {
        let (conn, end) = (g.conn, g.end);
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
        let hash = digest(message);
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
        let kept = Kept { hash, len: message.len() as u64, frames: counted };
        dir.kept_bytes += kept.len;
        dir.kept_frames += kept.frames;
        dir.kept.push_back(kept);
        for f in frames {
            match f {
                Frame::Stream { cid, epoch, body } => self.stream(g, session, *cid, *epoch, body)?,
                // The agent's own EPOCH refuses one; it grants nothing.
                Frame::Epoch(n) if plane == Plane::Tunnel && g.end == 1 => {
                    if let Some(l) = self.sessions.get_mut(session as usize) {
                        l.former = l.fence.replace(Fence { epoch: n.epoch, nonce: n.nonce });
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
            Frame::GoAway { code, .. } => {
                self.duplicate |= plane == Plane::Mesh && *code == CloseCode::Duplicate;
            }
            Frame::Auth(_)
            | Frame::Ping { .. }
            | Frame::Pong { .. }
            | Frame::Epoch(_)
            | Frame::Connectors { .. }
            | Frame::Token { .. }
            | Frame::Stream { .. } => {}
        }
        Ok(())
    }

    fn stream(&mut self, g: &Ghost<'_>, session: u32, cid: Cid, epoch: Epoch, body: &Body) -> Result<(), Violation> {
        let end = g.end;
        let Some(ledger) = self.sessions.get_mut(session as usize) else { return Ok(()) };
        let (fence, mut stale) = (ledger.fence, false);
        if let Body::Open(open) = body {
            self.points.push(Point::Open);
            if ledger.plane == Plane::Tunnel {
                let named = Fence { epoch, nonce: open.nonce };
                if end == 0 {
                    return broken("I2", format!("{}: an agent opens", g.what(cid)));
                }
                stale = ledger.former == Some(named) && g.is_split();
                if fence != Some(named) && !stale {
                    return broken("O4", format!("{}: OPEN under {named:?}, the tunnel has {fence:?}", g.what(cid)));
                }
                let first = *self.openers.entry((open.agent_id.clone(), named)).or_insert(session);
                if first != session {
                    return broken("O1", format!("{}: two sessions open under {named:?}", g.what(cid)));
                }
            }
            let carried = Carried {
                opener: end,
                epoch,
                stale,
                granted: if end == 0 { [open.limit, 0] } else { [0, open.limit] },
                allowed: if end == 0 { [ledger.dirs[1].window, 0] } else { [0, ledger.dirs[0].window] },
                ..Carried::default()
            };
            if ledger.streams.insert(cid, carried).is_some() {
                return broken("S6", format!("{}: OPEN a second time on one session", g.what(cid)));
            }
            self.recent.push_back((cid, epoch));
            if self.recent.len() > 32 {
                self.recent.pop_front();
            }
            return Ok(());
        }
        let Some(s) = ledger.streams.get_mut(&cid) else {
            // Only an answer to what nobody knows.
            let answer = matches!(body, Body::Rst { .. } | Body::OpenAck { result: Err(_) });
            return if answer {
                Ok(())
            } else {
                broken("I2", format!("{}: {} without an OPEN on this session", g.what(cid), body.kind()))
            };
        };
        if matches!(body, Body::Rst { code: RstCode::Unknown, .. }) {
            // An answer in the words of the question, whoever asked it.
            return Ok(());
        }
        if epoch != s.epoch {
            return broken("O4", format!("{}: {} under {epoch}, opened under {}", g.what(cid), body.kind(), s.epoch));
        }
        if s.over[end] && !matches!(body, Body::Rst { .. }) {
            return broken("S4", format!("{}: {} after its RST or refusal", g.what(cid), body.kind()));
        }
        if matches!(body, Body::Data { .. } | Body::Fin { .. } | Body::Credit { .. })
            && end != s.opener
            && s.ack != Some(Ok(()))
            && !matches!(body, Body::Credit { .. })
        {
            return broken("S7", format!("{}: {} before its OPEN_ACK", g.what(cid), body.kind()));
        }
        match body {
            Body::OpenAck { result } => {
                self.points.push(Point::OpenAck);
                if end == s.opener || s.ack.is_some() {
                    return broken("S7", format!("{}: OPEN_ACK a second time or from the opener", g.what(cid)));
                }
                let connected = g.world.check.connected.contains_key(&cid);
                if result.is_ok() && !connected {
                    return broken("S7", format!("{}: OPEN_ACK ok, its target was never connected", g.what(cid)));
                }
                if result.is_err() && connected && !g.node().is_hub() {
                    return broken("S7", format!("{}: refused, but its target was connected", g.what(cid)));
                }
                if s.stale && result.is_ok() {
                    return broken("O4", format!("{}: accepted under {epoch}, which was given up", g.what(cid)));
                }
                s.ack = Some(*result);
                s.over[end] |= result.is_err();
            }
            Body::Data { off, bytes } => {
                let to = *off + bytes.len() as u64;
                if *off != s.next[end] {
                    return broken("S9", format!("{}: DATA at {off}, {} was next", g.what(cid), s.next[end]));
                }
                if s.fin[end].is_some() {
                    return broken("S4", format!("{}: DATA after FIN", g.what(cid)));
                }
                if to > s.allowed[end] {
                    let text = format!("{}: DATA up to {to}, the limit is {}", g.what(cid), s.allowed[end]);
                    return broken("B4", text);
                }
                s.next[end] = to;
                let up = end == s.opener;
                if let Some(client) = g.world.cids.get(&cid)
                    && let Err(e) = payload::check(Half { client: *client, up }, *off, bytes)
                {
                    return broken("I1", format!("{}: {e}", g.what(cid)));
                }
                let dir = &mut ledger.dirs[end];
                dir.turn = Some(match dir.turn {
                    Some((who, had, waits)) if who == cid => (cid, had + bytes.len() as u64, waits),
                    _ => (cid, bytes.len() as u64, None),
                });
            }
            Body::Credit { consumed, limit } => {
                if *limit < s.granted[end] || *consumed < s.consumed[end] {
                    let text = format!(
                        "{}: CREDIT {consumed}/{limit} after {}/{}",
                        g.what(cid),
                        s.consumed[end],
                        s.granted[end]
                    );
                    return broken("B4", text);
                }
                let most = s.arrived[1 - end] + u64::from(s.fin_arrived[1 - end]);
                if *consumed > most {
                    let text = format!("{}: CREDIT says {consumed} consumed, {most} arrived", g.what(cid));
                    return broken("B1", text);
                }
                if let Some(took) = g.world.took(cid, end == s.opener)
                    && *consumed > took
                {
                    let text = format!("{}: CREDIT says {consumed} consumed, the socket took {took}", g.what(cid));
                    return broken("B1", text);
                }
                if *limit > consumed + g.window_max() {
                    return broken("B1", format!("{}: CREDIT {consumed}/{limit} is above any window", g.what(cid)));
                }
                (s.granted[end], s.consumed[end]) = (*limit, *consumed);
            }
            Body::Fin { final_off } => {
                self.points.push(Point::Fin);
                if s.fin[end].is_some() {
                    return broken("S4", format!("{}: FIN a second time", g.what(cid)));
                }
                if *final_off != s.next[end] {
                    return broken("S2", format!("{}: FIN at {final_off}, {} was sent", g.what(cid), s.next[end]));
                }
                if let Some((wrote, ended)) = g.world.wrote(cid, end == s.opener)
                    && (!ended || wrote != *final_off)
                {
                    let text = format!(
                        "{}: FIN at {final_off}, its writer wrote {wrote} and {}",
                        g.what(cid),
                        if ended { "ended" } else { "did not end" }
                    );
                    return broken("S2", text);
                }
                if s.fin[1 - end].is_none() {
                    self.marks.push(if end == s.opener { Mark::FinClientFirst } else { Mark::FinTargetFirst });
                }
                if s.arrived[end] < s.next[end] {
                    self.marks.push(Mark::FinWithDataBuffered);
                }
                s.fin[end] = Some(*final_off);
            }
            Body::Rst { .. } => {
                self.points.push(Point::Rst);
                if s.fin[1 - end].is_some() && !s.fin_arrived[1 - end] {
                    self.marks.push(Mark::RstCrossedFin);
                }
                s.over[end] = true;
            }
            Body::Open(_) | Body::Resume(_) => {}
        }
        Ok(())
    }

    /// A message is about to reach a machine.
    pub(super) fn arrived(&mut self, conn: u32, to: usize, dialect: Dialect, message: &Bytes) {
        let from = 1 - to;
        let mut frames = std::mem::take(&mut self.frames);
        frames.clear();
        let number = decode(dialect, message, &WireLimits::ESTABLISHED, &mut frames).unwrap_or(0);
        self.welcome |= frames.iter().any(|f| matches!(f, Frame::Welcome(_)));
        self.dismissed |= frames.iter().any(|f| matches!(f, Frame::GoAway { .. }));
        let session = self.line(conn).session;
        if let Some(ledger) = session.and_then(|s| self.sessions.get_mut(s as usize)) {
            let fresh = number == ledger.dirs[from].arrived + 1;
            if fresh {
                ledger.dirs[from].arrived = number;
            }
            for f in &frames {
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
        self.frames = frames;
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

    /// Whether a stream was opened on the session of a connection.
    /// Its OPEN was accepted, so that no further session will carry it.
    pub(crate) fn is_answered(&self, cid: Cid) -> bool {
        self.sessions.iter().any(|l| l.streams.get(&cid).is_some_and(|s| s.ack == Some(Ok(()))))
    }

    pub(crate) fn carries(&self, conn: u32, cid: Cid) -> bool {
        let session = self.lines.get(conn as usize).and_then(|l| l.session);
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

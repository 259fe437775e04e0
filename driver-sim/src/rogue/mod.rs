//! Hostile peers (G8): agents and hubs that are who they say and get through
//! the handshake, and then break the rules one after the other: on streams of
//! their own, on streams of others, on their session. What they say reaches a
//! hub at once, past the network, and what they hear is read with the core's
//! codec. What is common to both is here; the agent's part is in `agent.rs`, the
//! hub's in `hub.rs`.
//!
//! Keeps: the oracles judge everybody else as ever; left out of S1, S2 and B4
//! are only clients of the connector that nobody but a hostile agent has, and
//! targets of streams that a hostile hub opened. A hub may find as many breaches
//! as were made, and one that ends a session is answered with its end (attacks
//! 33 to 54). Must not know how a hub notices.

mod agent;
mod hub;

use std::collections::BTreeMap;

use bytes::Bytes;
use nowconnect_core::error::{CloseCode, RstCode};
use nowconnect_core::id::{AgentId, Cid, Epoch, Incarnation};
use nowconnect_core::mux::Input;
use nowconnect_core::session::TxState;
use nowconnect_core::wire::{
    Body, Codec, Dialect, Frame, NUMBER_MAX, Plane, SecretText, Status, Welcome, WireLimits, decode, encode_message,
};
use serde::{Deserialize, Serialize};

pub(crate) use self::agent::{CONNECTOR, client_plan};
use crate::event::Event;
use crate::faults::At;
use crate::marks::Mark;
use crate::net::key;
use crate::node::Machine;
use crate::plan::MS;
use crate::tape::Lane;
use crate::world::{Phase, World};

/// The number of every client of a hostile agent, and of every target that a
/// hostile hub reached.
pub(crate) const CLIENT: u32 = u32::MAX - 1;
/// Their sessions, seen from a hub: the beginning of their names.
pub(crate) const PEER: &str = "hostile-";
/// Their number as a node; no plan has so many.
const NODE: u8 = 200;
/// A hub that is at work has closed a broken connection by then.
const ENDED_WITHIN: u64 = 500 * MS;
/// Their first window.
pub(crate) const WINDOW: u64 = 65_536;

/// A hostile peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoguePlan {
    /// The hub that it dials.
    pub hub: u8,
    /// When it comes, nanoseconds.
    pub at: u64,
    /// Between two of its acts, nanoseconds, at most.
    pub gap: u64,
    /// It is a hub, not an agent.
    #[serde(default)]
    pub is_hub: bool,
}

impl RoguePlan {
    /// Draws an agent for a world of so many hubs.
    #[must_use]
    pub fn draw(l: &mut Lane, hubs: u64, safety_ns: u64) -> Self {
        let at = l.between(1000, safety_ns / MS / 2 + 1000) * MS;
        Self { hub: l.below(hubs) as u8, at, gap: l.spread(5, 2000) * MS, is_hub: false }
    }

    /// Draws a hub.
    #[must_use]
    pub fn draw_hub(l: &mut Lane, hubs: u64, safety_ns: u64) -> Self {
        Self { is_hub: true, gap: l.spread(100, 3000) * MS, ..Self::draw(l, hubs, safety_ns) }
    }

    const fn plane(self) -> Plane {
        if self.is_hub { Plane::Mesh } else { Plane::Tunnel }
    }
}

/// A stream of its own.
#[derive(Clone, Copy, Debug)]
struct Bound {
    epoch: Epoch,
    /// What it may send, and has.
    limit: u64,
    next: u64,
    got: u64,
}

/// What it knows.
#[derive(Debug)]
pub(crate) struct Rogue {
    plan: RoguePlan,
    node: Option<u16>,
    lane: Lane,
    conn: Option<u32>,
    welcomed: bool,
    sent: u64,
    received: u64,
    streams: BTreeMap<Cid, Bound>,
    /// To be said at its next turn.
    answers: Vec<Frame>,
    /// The connection has to end, since when.
    broken: Option<u64>,
    /// It has broken a rule on this connection.
    guilty: bool,
    /// Its run: an agent's instance, a hub's incarnation.
    run: u64,
    /// What only a hub knows.
    of_hub: hub::Known,
    /// Times it has opened many streams at once.
    crowds: u32,
}

/// What an act must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing but counters, or an end of its own stream.
    Borne,
    /// At most so many violations of limits on its own stream: counted, and its
    /// session ends when there are more of them.
    Counted(u64),
    /// The same, and at least one of them if the stream is open there.
    Punished(u64),
    /// The session ends at once.
    Ended,
}

impl World {
    pub(crate) fn start_rogues(&mut self) {
        for (ix, plan) in self.plan.rogues.clone().into_iter().enumerate() {
            let mut lane = self.tape.lane(if plan.is_hub { "rogue hub" } else { "rogue" }, ix as u64);
            let run = if plan.is_hub { lane.next_u64() } else { 0 };
            self.rogues.push(Rogue {
                plan,
                node: None,
                lane,
                conn: None,
                welcomed: false,
                sent: 0,
                received: 0,
                streams: BTreeMap::new(),
                answers: Vec::new(),
                broken: None,
                guilty: false,
                run,
                of_hub: hub::Known::default(),
                crowds: 0,
            });
            self.at(plan.at, Event::Rogue { ix: ix as u32 });
        }
    }

    /// Whether a name is that of a hostile hub.
    pub(crate) fn is_rogue_hub(&self, name: &str) -> bool {
        let number = name.strip_prefix(PEER).and_then(|n| n.parse::<usize>().ok());
        number.and_then(|n| self.plan.rogues.get(n)).is_some_and(|r| r.is_hub)
    }

    /// A turn of a hostile peer.
    pub(crate) fn on_rogue(&mut self, ix: u32) {
        if self.phase != Phase::Safety {
            return;
        }
        let r = &mut self.rogues[ix as usize];
        let (hub, gap) = (u16::from(r.plan.hub), 1 + r.lane.below(r.plan.gap));
        self.after(gap, Event::Rogue { ix });
        let h = &self.nodes[usize::from(hub)];
        if !h.is_up() || h.paused || h.lag > 0 || h.shortages > 0 {
            return;
        }
        let r = &self.rogues[ix as usize];
        let up = r.conn.is_some_and(|c| self.conns[c as usize].up[1] && self.conns[c as usize].runs[1] == h.run);
        if !up {
            if self.now >= r.of_hub.rests_until {
                self.rogue_comes(ix, hub);
            }
            return;
        }
        if let Some(since) = r.broken
            // What a shard judges waits for a shard that stands still.
            && self.calm(hub).is_some_and(|calm| self.now - since.max(calm) > ENDED_WITHIN)
        {
            let text = format!(
                "node {hub} keeps a connection whose peer broke the protocol {} ms ago",
                (self.now - since) / MS
            );
            return self.fail("D2", text);
        }
        let answers = std::mem::take(&mut self.rogues[ix as usize].answers);
        for frame in answers {
            self.rogue_says(ix, &[frame]);
        }
        let r = &self.rogues[ix as usize];
        match (r.welcomed, r.plan.is_hub) {
            (false, _) => {}
            (true, false) => self.rogue_acts(ix, hub),
            (true, true) => self.rogue_hub_acts(ix, hub),
        }
    }

    /// It connects, and says HELLO or what may not come first.
    fn rogue_comes(&mut self, ix: u32, hub: u16) {
        let plan = self.rogues[ix as usize].plan;
        let node = match self.rogues[ix as usize].node {
            Some(node) => node,
            None => {
                let node = self.add_node(At::Agent(NODE), format!("{PEER}{ix}"), 0, true);
                self.rogues[ix as usize].node = Some(node);
                node
            }
        };
        let conn = self.rogue_conn(ix, node, hub, plan.plane());
        let r = &mut self.rogues[ix as usize];
        (r.conn, r.welcomed, r.sent, r.received, r.broken, r.guilty) = (Some(conn), false, 0, 0, None, false);
        r.streams.clear();
        r.answers.clear();
        if plan.is_hub { self.rogue_hub_comes(ix, hub, conn) } else { self.rogue_agent_comes(ix, hub, conn) }
    }

    /// One frame under the next number, or under none.
    fn rogue_says(&mut self, ix: u32, frames: &[Frame]) {
        let message = self.rogue_message(ix, frames);
        self.rogue_sends(ix, message, Outcome::Borne);
    }

    fn rogue_message(&mut self, ix: u32, frames: &[Frame]) -> Bytes {
        let r = &mut self.rogues[ix as usize];
        let number = if frames.iter().all(Frame::unnumbered) { 0 } else { r.sent + 1 };
        r.sent = r.sent.max(number);
        encode_message(r.dialect(), number, frames)
    }

    fn rogue_sends(&mut self, ix: u32, message: Bytes, outcome: Outcome) {
        let r = &mut self.rogues[ix as usize];
        let (hub, Some(conn), dialect) = (u16::from(r.plan.hub), r.conn, r.dialect()) else { return };
        if !self.conns[conn as usize].up[1] {
            return;
        }
        let first = outcome != Outcome::Borne && !std::mem::replace(&mut r.guilty, true);
        if outcome == Outcome::Ended {
            r.broken.get_or_insert(self.now);
        }
        self.trace.mix_bytes(&message);
        let mut frames = Vec::new();
        let _ = decode(dialect, &message, &WireLimits::ESTABLISHED, &mut frames);
        // Cause for an answer each, like any other frame.
        self.check.wire.cause(hub, 8 + 2 * frames.len() as u64);
        let owed = self.check.nodes.entry(hub).or_default();
        owed.breaches_owed[usize::from(dialect.plane == Plane::Mesh)] += u64::from(first);
        if let Outcome::Counted(n) | Outcome::Punished(n) = outcome {
            owed.flow_owed += n;
        }
        self.count_frames(conn, 1, &frames);
        let sure = matches!(outcome, Outcome::Punished(_)).then(|| self.rogue_flow(hub, conn, &frames)).flatten();
        self.input(hub, Input::Message { conn: key(conn, 1), message });
        if let (Some(before), Some(m)) = (sure, &self.nodes[usize::from(hub)].machine)
            && flow_violations(m) == before
        {
            self.fail("B4", format!("node {hub} does not punish hostile peer {ix} for {frames:?}"));
        }
    }

    /// Violations of limits that a whole hub counts, if the stream that these
    /// frames are of is open there and theirs.
    fn rogue_flow(&self, hub: u16, conn: u32, frames: &[Frame]) -> Option<u64> {
        let whole = self.plan.hubs.get(usize::from(hub)).is_some_and(|h| h.shards == 0);
        let m = self.nodes[usize::from(hub)].machine.as_ref().filter(|_| whole)?;
        let Frame::Stream { cid, epoch, .. } = frames.first()? else { return None };
        let session = m.mux().carried_by(key(conn, 1))?;
        let stream = m.shards().iter().find_map(|s| s.find(*cid))?;
        let theirs = stream.open && stream.fence.epoch == *epoch && stream.side_of(session).is_some();
        theirs.then(|| flow_violations(m))
    }

    /// A breach that ends its session: with bytes that no peer may send, or with
    /// a frame that only the other plane, phase or side has. `frames` are those
    /// that this kind of peer may not say.
    fn rogue_breaks(&mut self, ix: u32, mut frames: Vec<Frame>) {
        let r = &mut self.rogues[ix as usize];
        let (number, dialect) = (r.sent + 1, r.dialect());
        let say = |number, frame: Frame| encode_message(dialect, number, &[frame]);
        let choice = r.lane.below(7 + frames.len() as u64);
        let message = match choice {
            0 => {
                let status = Status { registry_healthy: true, draining: false, active: true, initial_window: 1 };
                let token = Frame::Token { token: SecretText("a number too high".to_owned()) };
                say(number + 2, if r.plan.is_hub { Frame::Status(status) } else { token })
            }
            1 => Bytes::from_static(&[0, 0x55, 3, 1, 2, 3]),
            2 => Bytes::from_static(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            3 => Bytes::from_static(&[]),
            4 => say(0, Frame::Ack { received: NUMBER_MAX }),
            5 => say(0, Frame::Welcome(Box::new(welcome()))),
            6 => Bytes::from(vec![0; WireLimits::ESTABLISHED.message_bytes + 1]),
            n => {
                let frame = frames.swap_remove(n as usize - 7);
                say(if frame.unnumbered() { 0 } else { number }, frame)
            }
        };
        self.line(None, || {
            format!("hostile peer {ix} breaks its session: {:?}", message.slice(..message.len().min(24)))
        });
        self.marks.hit(Mark::HostileSession);
        self.rogue_sends(ix, message, Outcome::Ended);
    }

    /// What a hub writes to a hostile peer is read at once. Inside `settle`.
    pub(crate) fn pump_rogue(&mut self, conn: u32, ix: u32) {
        let c = &self.conns[conn as usize];
        let (hub, closing) = (usize::from(c.nodes[1]), c.closing_at(1));
        if !c.up[1] {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        loop {
            let node = &mut self.nodes[hub];
            let at = node.clock(self.now);
            let Some(m) = &mut node.machine else { break };
            let state = m.poll_transmit(at, key(conn, 1), 256 << 10, &mut batch, &mut node.out);
            let mut any = false;
            while let Some(m) = batch.messages.pop_front() {
                any = true;
                self.rogue_hears(ix, conn, &m.to_bytes());
            }
            batch.bytes = 0;
            if state != TxState::More || !any {
                break;
            }
        }
        self.batch = batch;
        if let Some(cause) = closing {
            self.conns[conn as usize].up[1] = false;
            self.line(None, || format!("node {hub} closes the connection of hostile peer {ix}: {cause}"));
            let r = &self.rogues[ix as usize];
            if r.broken.is_some() && r.conn == Some(conn) {
                self.marks.hit(if r.plan.is_hub { Mark::HostileHubEnded } else { Mark::HostileEnded });
            }
            self.raw_input(hub as u16, Input::Disconnected { conn: key(conn, 1), cause });
        }
    }

    fn rogue_hears(&mut self, ix: u32, conn: u32, message: &Bytes) {
        self.trace.mix_bytes(message);
        let mut frames = Vec::new();
        let dialect = self.rogues[ix as usize].dialect();
        let number = match decode(dialect, message, &WireLimits::ESTABLISHED, &mut frames) {
            Ok(number) => number,
            Err(e) => return self.fail("D2", format!("a hub says what cannot be read on conn {conn}: {e}")),
        };
        let r = &mut self.rogues[ix as usize];
        if r.conn != Some(conn) {
            return;
        }
        r.received = r.received.max(number);
        if number > 0 {
            r.answers.push(Frame::Ack { received: number });
        }
        for frame in frames {
            match frame {
                Frame::Welcome(w) => {
                    r.welcomed = !r.plan.is_hub;
                    r.of_hub.welcome = Some(*w);
                }
                Frame::Ping { token } => r.answers.push(Frame::Pong { token }),
                Frame::Stream { cid, epoch, body } => {
                    r.hears_of(cid, epoch, &body);
                    if let Some(mark) = r.of_hub.hears_of(cid, &body) {
                        self.marks.hit(mark);
                    }
                }
                Frame::Hello(_)
                | Frame::Auth(_)
                | Frame::Ack { .. }
                | Frame::Pong { .. }
                | Frame::GoAway { .. }
                | Frame::Epoch(_)
                | Frame::Status(_)
                | Frame::Connectors { .. }
                | Frame::Token { .. } => {}
            }
        }
    }

    /// Whether a hub may find a breach now: of a hostile peer of its own, once for
    /// each connection on which one was made.
    pub(crate) fn rogue_blamed(&mut self, hub: u16, plane: Plane) -> bool {
        let owed = &mut self.check.nodes.entry(hub).or_default().breaches_owed[usize::from(plane == Plane::Mesh)];
        let found = *owed > 0;
        *owed = owed.saturating_sub(1);
        found
    }

    /// The world heals: no more of them.
    pub(crate) fn rogues_leave(&mut self) {
        for ix in 0..self.rogues.len() {
            let (hub, Some(conn)) = (u16::from(self.rogues[ix].plan.hub), self.rogues[ix].conn) else { continue };
            let c = &mut self.conns[conn as usize];
            if std::mem::replace(&mut c.up[1], false) && c.runs[1] == self.nodes[usize::from(hub)].run {
                let cause = CloseCode::Transport;
                self.input(hub, Input::Disconnected { conn: key(conn, 1), cause });
            }
        }
        for actor in 0..self.actors.len() as u32 {
            if self.actors[actor as usize].client == CLIENT && self.actors[actor as usize].is_alive() {
                self.abort(actor);
            }
        }
    }
}

impl Rogue {
    const fn dialect(&self) -> Dialect {
        Dialect { codec: Codec::BinaryV2, plane: self.plan.plane() }
    }

    fn hears_of(&mut self, cid: Cid, epoch: Epoch, body: &Body) {
        match body {
            Body::Open(open) => {
                let bound = Bound { epoch, limit: open.limit, next: 0, got: 0 };
                self.streams.insert(cid, bound);
                let result = if self.lane.chance(7, 8) { Ok(()) } else { Err(RstCode::Refused) };
                self.answers.push(Frame::stream(cid, epoch, Body::OpenAck { result }));
            }
            Body::Data { off, bytes } => {
                let Some(s) = self.streams.get_mut(&cid) else { return };
                s.got = s.got.max(off + bytes.len() as u64);
                let (consumed, limit) = (s.got, s.got + 65_536);
                if self.lane.chance(1, 2) {
                    self.answers.push(Frame::stream(cid, epoch, Body::Credit { consumed, limit }));
                }
            }
            Body::Credit { limit, .. } => {
                if let Some(s) = self.streams.get_mut(&cid) {
                    s.limit = s.limit.max(*limit);
                }
            }
            Body::Rst { .. } | Body::OpenAck { result: Err(_) } => drop(self.streams.remove(&cid)),
            Body::OpenAck { result: Ok(()) } | Body::Fin { .. } | Body::Resume(_) => {}
        }
    }

    /// On a stream of its own (attacks 38 to 42).
    fn on_own(&mut self, cid: Cid) -> (Vec<Frame>, Outcome) {
        let Some(s) = self.streams.get_mut(&cid) else { return (Vec::new(), Outcome::Borne) };
        let data = |off, len: u64| Body::Data { off, bytes: Bytes::from(vec![b'!'; len as usize]) };
        let (mut over, mut sure) = (false, false);
        let bodies = match self.lane.below(12) {
            0 | 1 => {
                let (at, len) = (s.next, s.limit.saturating_sub(s.next).min(500));
                s.next += len;
                if len > 0 { vec![data(at, len)] } else { Vec::new() }
            }
            // Beyond credit, and beyond what came before.
            2 => vec![data(s.limit.min(NUMBER_MAX - 100), 100)],
            3 => {
                sure = true;
                vec![data(s.next + 1, 10)]
            }
            // What was said before, otherwise.
            4 => {
                let len = s.next.clamp(1, 200);
                s.next = s.next.max(len.min(s.limit));
                vec![data(0, len)]
            }
            5 => vec![Body::Credit { consumed: 0, limit: 0 }],
            6 => vec![Body::Credit { consumed: NUMBER_MAX, limit: NUMBER_MAX }],
            7 => vec![Body::Fin { final_off: s.next }, Body::Fin { final_off: s.next }],
            // Past its end, and perhaps another end.
            8 => {
                sure = true;
                let mut bodies = vec![Body::Fin { final_off: s.next }, data(s.next, 5)];
                if self.lane.chance(1, 2) {
                    bodies.push(Body::Fin { final_off: s.next + 5 });
                }
                bodies
            }
            9 => vec![Body::OpenAck { result: Ok(()) }, Body::OpenAck { result: Err(RstCode::Busy) }],
            // An end below what was sent.
            10 => {
                sure = s.next > 0;
                vec![Body::Fin { final_off: s.next / 2 }]
            }
            _ => {
                over = true;
                let code = RstCode::ALL[self.lane.below(RstCode::ALL.len() as u64) as usize];
                vec![Body::Rst { code, final_off: s.next }, data(s.next, 5)]
            }
        };
        let epoch = s.epoch;
        if over {
            self.streams.remove(&cid);
        }
        let frames: Vec<Frame> = bodies.into_iter().map(|b| Frame::stream(cid, epoch, b)).collect();
        let most = frames.len() as u64;
        let outcome = if sure { Outcome::Punished(most) } else { Outcome::Counted(most) };
        (frames, outcome)
    }

    /// On a stream of somebody else whose cid it guessed (attack 48).
    fn on_others(&mut self, cid: Cid, epoch: Epoch) -> (Vec<Frame>, Outcome) {
        let off = self.lane.below(5000);
        let body = match self.lane.below(6) {
            0 => Body::Data { off, bytes: Bytes::from_static(b"bytes of a stranger") },
            1 => Body::Fin { final_off: off },
            2 => Body::Rst { code: RstCode::Abort, final_off: off },
            3 => Body::Credit { consumed: off, limit: NUMBER_MAX },
            4 => Body::OpenAck { result: Err(RstCode::Refused) },
            _ => Body::OpenAck { result: Ok(()) },
        };
        (vec![Frame::stream(cid, epoch, body)], Outcome::Borne)
    }

    /// On a stream that nobody has (attacks 40, 43, 44).
    fn on_nobodys(&mut self) -> (Vec<Frame>, Outcome) {
        let cid = Cid::new(Incarnation(self.lane.next_u64()), 0, 1 + self.lane.below(9));
        self.on_others(cid, Epoch(1))
    }
}

fn flow_violations(m: &Machine) -> u64 {
    m.shards().iter().map(|s| s.counters().flow_violations).sum()
}

fn agent_id(text: &str) -> AgentId {
    AgentId::new(text).expect("a valid name")
}

/// What only who was dialled may say.
fn welcome() -> Welcome {
    Welcome {
        replica_id: crate::node::name("hub-0"),
        incarnation: Incarnation(1),
        namespace: crate::node::name("sim"),
        region: None,
        session: nowconnect_core::id::SessionId(1),
        secret: Some(nowconnect_core::id::Secret([1; 32])),
        resumed: None,
        attachment: None,
        resume_window_ms: 0,
        challenge: nowconnect_core::id::Secret([2; 16]),
        initial_window: 1,
        capabilities: Vec::new(),
        signature: None,
    }
}

//! Hostile agents (G8): each has an id, a token and a connector of its own, goes
//! through the handshake, and then breaks the rules one after the other: on
//! streams of its own clients, on streams of others, on its session. What it says
//! reaches its hub at once, past the network, and what it hears is read with the
//! core's codec.
//!
//! Keeps: the oracles judge everybody else as ever; only clients of the
//! connector that nobody but a hostile agent has are left out of S1, S2 and B4.
//! A hub may find as many breaches as were made, and one that ends a session is
//! answered with its end (attacks 34 to 53). Must not know how a hub notices.

use std::collections::BTreeMap;

use bytes::Bytes;
use nowconnect_core::error::RstCode;
use nowconnect_core::id::{AgentId, Cid, Epoch, Instance, ListenerIx, Nonce, Secret};
use nowconnect_core::mux::Input;
use nowconnect_core::principal::{AgentGrant, Principal};
use nowconnect_core::wire::{
    Body, Codec, ConnectorAd, Dialect, Frame, Hello, HelloAgent, HelloRole, NUMBER_MAX, Open, Plane, SecretText,
    Status, Welcome, WireLimits, decode, encode_message,
};
use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::faults::At;
use crate::marks::Mark;
use crate::net::key;
use crate::node::{Machine, name};
use crate::plan::{ClientPlan, Ending, FlowPlan, MS, TargetPlan};
use crate::sock::sock_key;
use crate::tape::Lane;
use crate::world::{Phase, World};

/// The number of every client of a hostile agent.
pub(crate) const CLIENT: u32 = u32::MAX - 1;
/// The connector that hostile agents expose.
pub(crate) const CONNECTOR: &str = "hostile";
/// Its sessions, seen from a hub.
pub(crate) const PEER: &str = "hostile-";
/// Its number as a node; no plan has so many.
const AGENT: u8 = 200;
/// A hub that is at work has closed a broken connection by then.
const ENDED_WITHIN: u64 = 500 * MS;
/// Its first window.
pub(crate) const WINDOW: u64 = 65_536;
/// Clients of its own at a time.
const CLIENTS_MAX: usize = 4;

/// A hostile agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoguePlan {
    /// Its hub.
    pub hub: u8,
    /// When it comes, nanoseconds.
    pub at: u64,
    /// Between two of its acts, nanoseconds, at most.
    pub gap: u64,
}

impl RoguePlan {
    /// Draws one for a world of so many hubs.
    #[must_use]
    pub fn draw(l: &mut Lane, hubs: u64, safety_ns: u64) -> Self {
        let at = l.between(1000, safety_ns / MS / 2 + 1000) * MS;
        Self { hub: l.below(hubs) as u8, at, gap: l.spread(5, 2000) * MS }
    }
}

/// A stream that its hub opened here.
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
    instance: u64,
}

/// What an act must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing but counters, or an end of its own stream.
    Borne,
    /// At most so many violations of limits on its own stream: counted, and its
    /// session ends when there are more of them.
    Counted(u64),
    /// The session ends at once.
    Ended,
}

const DIALECT: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Tunnel };

/// A client of its own: it talks, reads and never ends by itself.
pub(crate) fn client_plan() -> ClientPlan {
    let flow = FlowPlan { total: 20_000, chunk: 2000, write_gap: 50 * MS, read: 1 << 16, read_gap: 0, after: 0 };
    ClientPlan {
        id: CLIENT,
        at: 0,
        hub: 0,
        connector: 0,
        up: flow,
        down: flow,
        client_end: Ending::Hold,
        target_end: Ending::Hold,
        target: TargetPlan::Accept(MS),
        latency: MS,
        buffer: 1 << 16,
    }
}

impl World {
    pub(crate) fn start_rogues(&mut self) {
        for (ix, plan) in self.plan.rogues.clone().into_iter().enumerate() {
            let lane = self.tape.lane("rogue", ix as u64);
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
                instance: 0,
            });
            self.at(plan.at, Event::Rogue { ix: ix as u32 });
        }
    }

    /// A turn of a hostile agent.
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
            return self.rogue_comes(ix, hub);
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
        if self.rogues[ix as usize].welcomed {
            self.rogue_acts(ix, hub);
        }
    }

    /// It connects, and says HELLO or what may not come first.
    fn rogue_comes(&mut self, ix: u32, hub: u16) {
        let node = match self.rogues[ix as usize].node {
            Some(node) => node,
            None => {
                let node = self.add_node(At::Agent(AGENT), format!("{PEER}{ix}"), 0, true);
                self.rogues[ix as usize].node = Some(node);
                node
            }
        };
        let conn = self.rogue_conn(ix, node, hub);
        let r = &mut self.rogues[ix as usize];
        let early = r.lane.chance(1, 10);
        (r.conn, r.welcomed, r.sent, r.received, r.broken, r.guilty) = (Some(conn), false, 0, 0, None, false);
        r.streams.clear();
        r.answers.clear();
        r.instance += u64::from(r.lane.chance(1, 3));
        let seen = if r.lane.chance(1, 4) { NUMBER_MAX } else { 0 };
        let strange = r.lane.chance(1, 12);
        let hello = Frame::Hello(Box::new(Hello {
            role: HelloRole::Agent(HelloAgent {
                // Somebody else's id is none of its token's.
                agent_id: agent_id(if strange { "agent-0".to_owned() } else { format!("{PEER}{ix}") }),
                instance: Instance(r.instance),
                connectors: vec![ConnectorAd { name: name(CONNECTOR), priority: 0, weight: 1 }],
                seen: Epoch(seen),
                sessions: Vec::new(),
            }),
            challenge: Secret([7; 16]),
            initial_window: WINDOW,
            capabilities: Vec::new(),
            resume: None,
        }));
        let grant =
            AgentGrant { subject: format!("{PEER}{ix}"), connectors: Some(vec![name(CONNECTOR)]), expires: None };
        self.line(None, || format!("hostile agent {ix} comes to node {hub} (conn {conn})"));
        self.input(hub, Input::Accepted { conn: key(conn, 1), dialect: DIALECT, principal: Principal::Agent(grant) });
        if early {
            self.marks.hit(Mark::HostileSession);
            self.rogue_sends(ix, encode_message(DIALECT, 0, &[Frame::Ack { received: 1 }]), Outcome::Ended);
        } else {
            self.rogue_sends(ix, encode_message(DIALECT, 0, &[hello]), Outcome::Borne);
        }
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
        encode_message(DIALECT, number, frames)
    }

    fn rogue_sends(&mut self, ix: u32, message: Bytes, outcome: Outcome) {
        let r = &mut self.rogues[ix as usize];
        let (hub, Some(conn)) = (u16::from(r.plan.hub), r.conn) else { return };
        if !self.conns[conn as usize].up[1] {
            return;
        }
        let first = outcome != Outcome::Borne && !std::mem::replace(&mut r.guilty, true);
        if outcome == Outcome::Ended {
            r.broken.get_or_insert(self.now);
        }
        self.trace.mix_bytes(&message);
        // Cause for an answer, like any other frame.
        self.check.wire.cause(hub, 8);
        let owed = self.check.nodes.entry(hub).or_default();
        owed.breaches_owed += u64::from(first);
        if let Outcome::Counted(n) = outcome {
            owed.flow_owed += n;
        }
        let mut frames = Vec::new();
        let _ = decode(DIALECT, &message, &WireLimits::ESTABLISHED, &mut frames);
        self.count_frames(conn, 1, &frames);
        self.input(hub, Input::Message { conn: key(conn, 1), message });
    }

    /// Its clients come, and it breaks a rule.
    fn rogue_acts(&mut self, ix: u32, hub: u16) {
        let own = self.rogue_clients(hub);
        if own < CLIENTS_MAX && self.rogues[ix as usize].lane.chance(1, 2) {
            self.rogue_client(ix, hub);
        }
        let others: Vec<(Cid, Epoch)> = self.check.wire.recent.iter().copied().collect();
        let r = &mut self.rogues[ix as usize];
        let mine: Vec<Cid> = r.streams.keys().copied().collect();
        let act = r.lane.below(10);
        let (frames, outcome) = match act {
            0..=4 => match r.lane.pick(&mine).copied() {
                Some(cid) => r.on_own(cid),
                None => return,
            },
            5..=7 => match r.lane.pick(&others).copied().filter(|(cid, _)| !r.streams.contains_key(cid)) {
                Some((cid, epoch)) => r.on_others(cid, epoch),
                None => r.on_nobodys(),
            },
            8 => r.on_nobodys(),
            _ if r.lane.chance(1, 3) => return self.rogue_breaks(ix),
            _ => return,
        };
        if frames.is_empty() {
            return;
        }
        self.marks.hit(match act {
            0..=4 => Mark::HostileStream,
            _ => Mark::HostileGuess,
        });
        self.line(None, || format!("hostile agent {ix} says {frames:?}"));
        let flood = if self.rogues[ix as usize].lane.chance(1, 10) { 20 } else { 1 };
        for _ in 0..flood {
            let message = self.rogue_message(ix, &frames);
            self.rogue_sends(ix, message, outcome);
        }
    }

    /// A breach that ends its session.
    fn rogue_breaks(&mut self, ix: u32) {
        let r = &mut self.rogues[ix as usize];
        let number = r.sent + 1;
        let say = |number, frame: Frame| encode_message(DIALECT, number, &[frame]);
        let open = Open {
            nonce: Nonce(1),
            connector: name(CONNECTOR),
            agent_id: agent_id("agent-0".to_owned()),
            key: Secret([1; 16]),
            limit: 1000,
        };
        let cid = Cid::new(nowconnect_core::id::Incarnation(5), 0, number);
        let status = Status { registry_healthy: true, draining: false, active: true, initial_window: 1 };
        let message = match r.lane.below(9) {
            0 => say(number + 2, Frame::Token { token: SecretText("a number too high".to_owned()) }),
            1 => Bytes::from_static(&[0, 0x55, 3, 1, 2, 3]),
            2 => Bytes::from_static(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            3 => Bytes::from_static(&[]),
            4 => say(number, Frame::stream(cid, Epoch(1), Body::Open(Box::new(open)))),
            5 => say(0, Frame::Ack { received: NUMBER_MAX }),
            6 => say(number, Frame::Status(status)),
            7 => say(0, Frame::Welcome(Box::new(welcome()))),
            _ => Bytes::from(vec![0; WireLimits::ESTABLISHED.message_bytes + 1]),
        };
        self.line(None, || {
            format!("hostile agent {ix} breaks its session: {:?}", message.slice(..message.len().min(24)))
        });
        self.marks.hit(Mark::HostileSession);
        self.rogue_sends(ix, message, Outcome::Ended);
    }

    fn rogue_clients(&self, hub: u16) -> usize {
        let own = |a: &&crate::actor::Actor| a.client == CLIENT && a.is_alive();
        self.actors.iter().filter(own).filter(|a| self.socks[a.sock as usize].node == hub).count()
    }

    /// A client of its own, at its hub or another one.
    fn rogue_client(&mut self, ix: u32, hub: u16) {
        let hubs = self.plan.hubs.len() as u64;
        let lane = &mut self.rogues[ix as usize].lane;
        let at = if lane.chance(1, 3) { lane.below(hubs) as u16 } else { hub };
        let n = &self.nodes[usize::from(at)];
        if !n.is_up() || n.paused || !n.held.is_empty() || n.lag > 0 || n.shortages > 0 || !n.stalls.is_empty() {
            return;
        }
        let listener = ListenerIx(self.plan.connectors);
        let (actor, sock) = self.add_actor(CLIENT, true, at, None);
        let n = &mut self.nodes[usize::from(at)];
        let clock = n.clock(self.now);
        let Some(Machine::Hub(machine)) = &mut n.machine else { return };
        match machine.open(clock, listener, sock_key(sock), &mut n.out) {
            Ok(stream) => {
                self.socks[sock as usize].stream = Some(stream);
                self.settle(at);
                self.step(actor, MS);
            }
            Err(code) => {
                self.socks[sock as usize].gone = true;
                self.count_refused(at, listener.0, code);
                self.settle(at);
                self.end_actor(actor, crate::actor::Fate::Refused);
            }
        }
    }

    /// What a hub writes to a hostile agent is read at once. Inside `settle`.
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
            if state != nowconnect_core::session::TxState::More || !any {
                break;
            }
        }
        self.batch = batch;
        if let Some(cause) = closing {
            self.conns[conn as usize].up[1] = false;
            self.line(None, || format!("node {hub} closes the connection of hostile agent {ix}: {cause}"));
            if self.rogues[ix as usize].broken.is_some() {
                self.marks.hit(Mark::HostileEnded);
            }
            self.raw_input(hub as u16, Input::Disconnected { conn: key(conn, 1), cause });
        }
    }

    fn rogue_hears(&mut self, ix: u32, conn: u32, message: &Bytes) {
        self.trace.mix_bytes(message);
        let mut frames = Vec::new();
        let number = match decode(DIALECT, message, &WireLimits::ESTABLISHED, &mut frames) {
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
        for frame in &frames {
            match frame {
                Frame::Welcome(_) => r.welcomed = true,
                Frame::Ping { token } => r.answers.push(Frame::Pong { token: *token }),
                Frame::Stream { cid, epoch, body } => r.hears_of(*cid, *epoch, body),
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
    pub(crate) fn rogue_blamed(&mut self, hub: u16) -> bool {
        let owed = &mut self.check.nodes.entry(hub).or_default().breaches_owed;
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
                let cause = nowconnect_core::error::CloseCode::Transport;
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
            Body::Rst { .. } => drop(self.streams.remove(&cid)),
            Body::OpenAck { .. } | Body::Fin { .. } | Body::Resume(_) => {}
        }
    }

    /// On a stream of its own (attacks 38 to 42).
    fn on_own(&mut self, cid: Cid) -> (Vec<Frame>, Outcome) {
        let Some(s) = self.streams.get_mut(&cid) else { return (Vec::new(), Outcome::Borne) };
        let data = |off, len: u64| Body::Data { off, bytes: Bytes::from(vec![b'!'; len as usize]) };
        let mut over = false;
        let bodies = match self.lane.below(11) {
            0 | 1 => {
                let (at, len) = (s.next, s.limit.saturating_sub(s.next).min(500));
                s.next += len;
                if len > 0 { vec![data(at, len)] } else { Vec::new() }
            }
            // Beyond credit, and beyond what came before.
            2 => vec![data(s.limit.min(NUMBER_MAX - 100), 100)],
            3 => vec![data(s.next + 1, 10)],
            // What was said before, otherwise.
            4 => vec![data(0, s.next.clamp(1, 200))],
            5 => vec![Body::Credit { consumed: 0, limit: 0 }],
            6 => vec![Body::Credit { consumed: NUMBER_MAX, limit: NUMBER_MAX }],
            7 => vec![Body::Fin { final_off: s.next }, Body::Fin { final_off: s.next }],
            8 => vec![Body::Fin { final_off: s.next }, data(s.next, 5), Body::Fin { final_off: s.next + 5 }],
            9 => vec![Body::OpenAck { result: Ok(()) }, Body::OpenAck { result: Err(RstCode::Busy) }],
            _ => {
                over = true;
                vec![Body::Rst { code: RstCode::Abort, final_off: s.next }, data(s.next, 5)]
            }
        };
        let epoch = s.epoch;
        if over {
            self.streams.remove(&cid);
        }
        let frames: Vec<Frame> = bodies.into_iter().map(|b| Frame::stream(cid, epoch, b)).collect();
        let outcome = Outcome::Counted(frames.len() as u64);
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
        let cid = Cid::new(nowconnect_core::id::Incarnation(self.lane.next_u64()), 0, 1 + self.lane.below(9));
        self.on_others(cid, Epoch(1))
    }
}

fn agent_id(text: String) -> AgentId {
    AgentId::new(&text).expect("a valid name")
}

/// What only a hub may say.
fn welcome() -> Welcome {
    Welcome {
        replica_id: name("hub-0"),
        incarnation: nowconnect_core::id::Incarnation(1),
        namespace: name("sim"),
        region: None,
        session: nowconnect_core::id::SessionId(1),
        secret: Some(Secret([1; 32])),
        resumed: None,
        attachment: None,
        resume_window_ms: 0,
        challenge: Secret([2; 16]),
        initial_window: 1,
        capabilities: Vec::new(),
        signature: None,
    }
}

//! The world: virtual time, one heap of events, and the nodes, connections,
//! sockets and actors they concern.
//!
//! Owns the order of events and who is up; what an event does is in `node`
//! (machines), `net` (connections), `actor` (clients and targets) and `inject`
//! (faults); what must hold is in `check`. Nothing here reads a clock or draws
//! outside the tape's lanes (D1).

use std::collections::BTreeMap;

use nowconnect_core::id::Cid;
use nowconnect_core::session::TxBatch;

use crate::actor::Actor;
use crate::check::Check;
use crate::event::{Agenda, Event, Undo};
use crate::faults::{Class, Point, Triggered};
use crate::marks::Marks;
use crate::net::{Conn, Net};
use crate::node::Node;
use crate::plan::{Level, Plan};
use crate::registry::RegistryModel;
use crate::rogue::Rogue;
use crate::sock::Sock;
use crate::tape::{Lane, Tape};
use crate::trace::Trace;

/// Wall clock of the registry when the world begins, milliseconds since 1970.
pub(crate) const WALL_AT_ZERO: u64 = 1_800_000_000_000;

/// What a run found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant, by its number.
    pub id: String,
    /// What was expected and what happened.
    pub text: String,
}

impl Violation {
    /// A violation of an invariant.
    #[must_use]
    pub fn new(id: impl Into<String>, text: impl Into<String>) -> Self {
        Self { id: id.into(), text: text.into() }
    }
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Faults happen; nothing may go wrong.
    Safety,
    /// The world is healed; everything must come to an end.
    Liveness,
}

/// A run under way.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) now: u64,
    pub(crate) agenda: Agenda,
    pub(crate) phase: Phase,
    pub(crate) healed_at: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) net: Net,
    pub(crate) conns: Vec<Conn>,
    pub(crate) socks: Vec<Sock>,
    pub(crate) actors: Vec<Actor>,
    /// The client's actor and, once it is connected, its target's, by client.
    pub(crate) pairs: BTreeMap<u32, [Option<u32>; 2]>,
    /// Which client a cid belongs to.
    pub(crate) cids: BTreeMap<Cid, u32>,
    pub(crate) registry: RegistryModel,
    pub(crate) trace: Trace,
    pub(crate) check: Check,
    pub(crate) marks: Marks,
    pub(crate) violation: Option<Violation>,
    pub(crate) tie: Lane,
    pub(crate) draws: Lane,
    /// How much a call to an actor's socket moves (L1).
    pub(crate) sock_draws: Lane,
    pub(crate) registry_draws: Lane,
    pub(crate) fault_draws: Lane,
    pub(crate) hostile_draws: Lane,
    pub(crate) point_counts: BTreeMap<Point, u32>,
    pub(crate) triggered: Vec<Triggered>,
    /// When each of them came.
    pub(crate) triggered_at: Vec<u64>,
    /// Carried out, by class.
    pub(crate) faults_done: [u64; Class::ALL.len()],
    /// Inputs, timeouts and notes given to machines.
    pub(crate) inputs: u64,
    pub(crate) batch: TxBatch,
    pub(crate) rogues: Vec<Rogue>,
    pub(crate) tape: Tape,
}

impl World {
    pub(crate) fn new(plan: Plan, tape: Tape, trace: Trace) -> Self {
        Self {
            now: 0,
            agenda: Agenda::default(),
            phase: Phase::Safety,
            healed_at: 0,
            nodes: Vec::new(),
            net: Net::new(&plan, &tape),
            conns: Vec::new(),
            socks: Vec::new(),
            actors: Vec::new(),
            pairs: BTreeMap::new(),
            cids: BTreeMap::new(),
            registry: RegistryModel::new(WALL_AT_ZERO),
            trace,
            check: Check::new(&plan),
            marks: Marks::default(),
            violation: None,
            tie: tape.lane("tie", 0),
            draws: tape.lane("world", 0),
            sock_draws: tape.lane("actor sockets", 0),
            registry_draws: tape.lane("registry", 0),
            fault_draws: tape.lane("vulnerable", 0),
            hostile_draws: tape.lane("hostile", 0),
            point_counts: BTreeMap::new(),
            triggered: Vec::new(),
            triggered_at: Vec::new(),
            faults_done: [0; Class::ALL.len()],
            inputs: 0,
            batch: TxBatch::default(),
            rogues: Vec::new(),
            tape,
            plan,
        }
    }

    fn start(&mut self) {
        self.arm_registry();
        for ix in 0..self.plan.hubs.len() {
            self.add_hub(ix);
        }
        for ix in 0..self.plan.agents.len() {
            self.add_agent(ix);
        }
        for ix in 0..self.nodes.len() as u16 {
            let start = self.start_of(ix);
            if start == 0 {
                self.boot(ix);
            } else {
                self.at(start, Event::Undo(Undo::Restart { node: ix }));
            }
        }
        for (ix, c) in self.plan.clients.iter().enumerate() {
            let tie = self.tie.next_u64() as u32;
            self.agenda.push(c.at, tie, Event::Client { client: ix as u32 });
        }
        for (ix, f) in self.plan.faults.iter().enumerate() {
            let tie = self.tie.next_u64() as u32;
            self.agenda.push(f.at, tie, Event::Fault { ix: ix as u32 });
        }
        self.start_rogues();
        let safety = self.plan.safety_ns;
        self.at(safety, Event::Heal);
    }

    /// Puts an event on the heap, never in the past.
    pub(crate) fn at(&mut self, at: u64, event: Event) {
        let tie = if self.plan.shuffle { self.tie.next_u64() as u32 } else { 0 };
        self.agenda.push(at.max(self.now), tie, event);
    }

    pub(crate) fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now.saturating_add(delay), event);
    }

    /// Runs to the end or to the first violation.
    pub(crate) fn run(&mut self) {
        self.start();
        let limit = self.check.deadline();
        while self.violation.is_none() {
            let Some(at) = self.agenda.next_at() else { break };
            if at > limit {
                break;
            }
            if self.phase == Phase::Liveness && self.check.is_over(at) {
                break;
            }
            let Some((at, event)) = self.agenda.pop() else { break };
            self.now = at;
            self.trace.mix(at);
            self.show_event(&event);
            self.dispatch(event);
            self.trace.step();
            if self.trace.events.is_multiple_of(256) {
                self.check_everything();
            }
        }
        if self.violation.is_none() {
            self.check_everything();
            self.check_end();
        }
    }

    pub(crate) fn fail(&mut self, id: &str, text: impl Into<String>) {
        if self.violation.is_none() {
            self.violation = Some(Violation::new(id, text));
        }
    }

    /// The process an event is for, if it is for one.
    fn addressee(&self, event: &Event) -> Option<u16> {
        Some(match event {
            Event::Timer { node, .. }
            | Event::DialFailed { node, .. }
            | Event::Target { node, .. }
            | Event::Checked { node, .. }
            | Event::Reply { node, .. }
            | Event::Renew { node, .. }
            | Event::Note { node, .. } => *node,
            // What arrives at a kernel does not wait for the process.
            Event::Deliver { .. } | Event::Reset { .. } if self.plan.level == Level::L1 => return None,
            Event::Ready { conn, end: to }
            | Event::Heard { conn, to, .. }
            | Event::Linger { conn, end: to }
            | Event::Deliver { conn, to }
            | Event::Reset { conn, to } => self.conns[*conn as usize].nodes[usize::from(*to)],
            Event::Accept { conn } => self.conns[*conn as usize].nodes[1],
            Event::Connected { conn } => self.conns[*conn as usize].nodes[0],
            Event::Sock { sock } | Event::SockAborted { sock } => self.socks[*sock as usize].node,
            Event::Client { client } => u16::from(self.plan.clients[*client as usize].hub),
            Event::DialTimeout { .. }
            | Event::GiveUp { .. }
            | Event::Actor { .. }
            | Event::Registry(_)
            | Event::Fault { .. }
            | Event::Undo(_)
            | Event::Rogue { .. }
            | Event::Unhold { .. }
            | Event::Heal
            | Event::Probe { .. } => return None,
        })
    }

    pub(crate) fn dispatch(&mut self, event: Event) {
        let Some(node) = self.addressee(&event) else { return self.handle(event) };
        if let Some(event) = self.hold(node, event) {
            self.take(node, event);
        }
    }

    /// Hands an event to a process that is at work, unless it is for a shard
    /// that is not.
    fn take(&mut self, node: u16, event: Event) {
        if let Some(event) = self.stalls(node, event) {
            self.handle(event);
        }
    }

    /// Puts an event of a paused or lagging process aside; order is kept.
    fn hold(&mut self, ix: u16, event: Event) -> Option<Event> {
        let (now, lag) = (self.now, self.nodes[usize::from(ix)].lag);
        let node = &mut self.nodes[usize::from(ix)];
        if node.paused {
            node.held.push_back(event);
            return None;
        }
        if node.held.is_empty() && lag == 0 {
            return Some(event);
        }
        node.held.push_back(event);
        if !std::mem::replace(&mut node.unholding, true) {
            let by = self.draws.below(lag + 1);
            self.at(now + by, Event::Unhold { node: ix });
        }
        None
    }

    /// Handles what was put aside.
    pub(crate) fn unhold(&mut self, ix: u16) {
        self.nodes[usize::from(ix)].unholding = false;
        let mut held = std::mem::take(&mut self.nodes[usize::from(ix)].held);
        while let Some(event) = held.pop_front() {
            if self.nodes[usize::from(ix)].paused {
                self.nodes[usize::from(ix)].held.push_back(event);
            } else {
                self.take(ix, event);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Timer { node, run } => self.on_timer(node, run),
            Event::Deliver { conn, to } => self.on_deliver(conn, to),
            Event::Heard { conn, to, until } => self.hear_whole(conn, usize::from(to), until),
            Event::Reset { conn, to } => self.on_reset(conn, to),
            Event::Ready { conn, end } => self.on_ready(conn, usize::from(end)),
            Event::Linger { conn, end } => self.on_linger(conn, usize::from(end)),
            Event::GiveUp { conn, end } => self.on_give_up(conn, end),
            Event::Accept { conn } => self.on_accept(conn),
            Event::Connected { conn } => self.on_connected(conn),
            Event::DialTimeout { conn } => self.on_dial_timeout(conn),
            Event::DialFailed { node, run, target } => self.on_dial_failed(node, run, target),
            Event::Client { client } => self.on_client(client),
            Event::Actor { actor } => self.on_actor(actor),
            Event::Sock { sock } => self.on_sock(sock),
            Event::SockAborted { sock } => self.on_sock_aborted(sock),
            Event::Target { node, run, stream, client, result } => self.on_target(node, run, stream, client, result),
            Event::Checked { node, run, connector, number, result } => {
                self.on_checked(node, run, connector, number, result);
            }
            Event::Registry(step) => self.on_registry_step(step),
            Event::Reply { node, run, token, result } => self.on_registry_reply(node, run, token, *result),
            Event::Renew { node, run } => self.on_renew(node, run),
            Event::Note { node, run, to } => self.on_note(node, run, to),
            Event::Fault { ix } => self.on_fault(ix),
            Event::Undo(undo) => self.on_undo(undo),
            Event::Rogue { ix } => self.on_rogue(ix),
            Event::Unhold { node } => self.unhold(node),
            Event::Heal => self.heal(),
            Event::Probe { round } => self.on_probe(round),
        }
    }

    /// Keeps a line for whoever reads this run.
    pub(crate) fn line(&mut self, client: Option<u32>, text: impl FnOnce() -> String) {
        if self.trace.is_verbose() {
            let (now, text) = (self.now, text());
            self.trace.line(now, client, text);
        }
    }
}

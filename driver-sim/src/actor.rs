//! Clients and targets: each follows its part of the plan, and everything it
//! reads is checked at once (S1, S2). Their sockets are in `sock.rs`. Must not
//! know what lies between the two nodes.

use std::collections::VecDeque;

use nowconnect_core::error::RstCode;
use nowconnect_core::id::{ListenerIx, Name, StreamKey};
use nowconnect_core::mux::{Check, Input};

use crate::event::Event;
use crate::marks::Mark;
use crate::node::Machine;
use crate::payload::{self, Half};
use crate::plan::{ClientPlan, Ending, FlowPlan, MS, TargetPlan};
use crate::rogue;
use crate::sock::{Sock, sock_key};
use crate::world::{Phase, World};

/// What became of an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Still going.
    Alive,
    /// Both directions ended in order.
    Finished,
    /// It aborted by itself.
    Aborted,
    /// It was reset.
    Reset(Option<RstCode>),
    /// Its connect failed.
    Refused,
}

/// A client or a target.
#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) client: u32,
    pub(crate) is_client: bool,
    pub(crate) sock: u32,
    pub(crate) wrote: u64,
    pub(crate) read: u64,
    pub(crate) fin_sent: bool,
    pub(crate) eof_seen: bool,
    pub(crate) fate: Fate,
    pub(crate) ended_at: u64,
    write_at: u64,
    read_at: u64,
    fin_at: Option<u64>,
    fin_sent_at: u64,
    /// The next step on the heap.
    step_at: Option<u64>,
}

impl Actor {
    pub(crate) const fn is_alive(&self) -> bool {
        matches!(self.fate, Fate::Alive)
    }
}

impl World {
    pub(crate) fn client_plan(&self, client: u32) -> ClientPlan {
        if client == rogue::CLIENT { rogue::client_plan() } else { self.check.client_plan(&self.plan, client) }
    }

    /// A client of the plan connects to its hub.
    pub(crate) fn on_client(&mut self, index: u32) {
        let plan = self.plan.clients[index as usize];
        let node = &mut self.nodes[usize::from(plan.hub)];
        if node.shortages > 0 {
            self.marks.hit(Mark::NoDescriptors);
            return node.backlog.push(index);
        }
        self.connect_client(plan);
    }

    pub(crate) fn connect_client(&mut self, plan: ClientPlan) {
        let node = self.lands_at(plan.hub);
        let (actor, sock) = self.add_actor(plan.id, true, node, None);
        self.pairs.insert(plan.id, [Some(actor), None]);
        self.line(Some(plan.id), || format!("client {} connects to node {node} for c{}", plan.id, plan.connector));
        let now = self.now;
        let n = &mut self.nodes[usize::from(node)];
        let at = n.clock(now);
        let Some(Machine::Hub(hub)) = &mut n.machine else {
            self.socks[sock as usize].gone = true;
            return self.end_actor(actor, Fate::Refused);
        };
        match hub.open(at, ListenerIx(plan.connector), sock_key(sock), &mut n.out) {
            Ok(stream) => {
                self.socks[sock as usize].stream = Some(stream);
                let n = &mut self.nodes[usize::from(node)];
                n.opening.push(plan.id, now);
                self.settle(node);
                self.step(actor, plan.latency);
            }
            Err(code) => {
                self.socks[sock as usize].gone = true;
                self.settle(node);
                self.count_refused(node, plan.connector, code);
                if code == RstCode::Draining {
                    self.judge_refused(node, plan.id);
                }
                self.judge_turned_away(node, plan.id, code);
                self.end_actor(actor, Fate::Reset(Some(code)));
            }
        }
    }

    pub(crate) fn add_actor(
        &mut self,
        client: u32,
        is_client: bool,
        node: u16,
        stream: Option<StreamKey>,
    ) -> (u32, u32) {
        let (actor, sock) = (self.actors.len() as u32, self.socks.len() as u32);
        self.actors.push(Actor {
            client,
            is_client,
            sock,
            wrote: 0,
            read: 0,
            fin_sent: false,
            eof_seen: false,
            fate: Fate::Alive,
            ended_at: 0,
            write_at: 0,
            read_at: 0,
            fin_at: None,
            fin_sent_at: 0,
            step_at: None,
        });
        self.socks.push(Sock {
            node,
            run: self.nodes[usize::from(node)].run,
            stream,
            actor,
            sent: 0,
            taken: 0,
            fin: false,
            eof_said: false,
            paused: false,
            queue: VecDeque::new(),
            buffered: VecDeque::new(),
            buffered_bytes: 0,
            written: 0,
            shut_due: false,
            shut: false,
            closed: false,
            reset: None,
            gone: false,
            due: false,
        });
        (actor, sock)
    }

    /// An agent wants a target. Inside `settle`.
    pub(crate) fn connect_target(&mut self, ix: u16, stream: StreamKey, wanted: &Name) {
        let node = &self.nodes[usize::from(ix)];
        let run = node.run;
        let Some(cid) = node.agent().and_then(|a| a.shard().stream(stream)).map(|s| s.cid) else { return };
        let stranger = self.check.wire.is_strangers(cid).then_some(rogue::CLIENT);
        let client = self.cids.get(&cid).copied().or(stranger);
        let withdrawn = |a: &nowconnect_core::agent::Agent| a.targets().any(|t| t.connector == wanted && !t.up);
        if node.agent().is_some_and(withdrawn) {
            return self.fail("I1", format!("node {ix} connects {wanted}, which it has withdrawn"));
        }
        self.judge_taken(ix);
        self.vulnerable(crate::faults::Point::Target, ix, None);
        if let Some(text) = self.judge_tenant(ix, cid, client, wanted) {
            return self.fail("I1", text);
        }
        if let Err(v) = self.check.on_target_wanted(cid, client) {
            return self.fail(&v.id, v.text);
        }
        let plan = client.map(|c| self.client_plan(c));
        let node = &self.nodes[usize::from(ix)];
        let (delay, result) = match (node.targets_down, plan.map(|p| p.target)) {
            _ if node.shortages > 0 => (0, Err(RstCode::Unreachable)),
            (Some(true), _) | (None, Some(TargetPlan::Hang)) => (self.plan.timers.target, Err(RstCode::TargetTimeout)),
            (Some(false), _) => (MS, Err(RstCode::Refused)),
            (None, Some(TargetPlan::Refuse(after))) => (after.min(self.plan.timers.target), Err(RstCode::Refused)),
            (None, Some(TargetPlan::Accept(after))) => {
                if after < self.plan.timers.target {
                    (after, Ok(()))
                } else {
                    (self.plan.timers.target, Err(RstCode::TargetTimeout))
                }
            }
            (None, None) => (MS, Ok(())),
        };
        self.line(client, || format!("node {ix} connects the target of {cid}"));
        self.trace.mix(u64::from(ix) ^ (cid.0 >> 64) as u64);
        self.trace.mix(cid.0 as u64);
        self.trace.mix_bytes(wanted.as_str().as_bytes());
        self.after(delay, Event::Target { node: ix, run, stream, client, result });
    }

    /// An agent checks a target: it finds what the agent's clients would. Inside
    /// `settle`.
    pub(crate) fn check_target(&mut self, ix: u16, check: Check) {
        let node = &self.nodes[usize::from(ix)];
        let (delay, result) = match node.targets_down {
            _ if node.shortages > 0 => (0, Err(RstCode::Unreachable)),
            Some(true) => return,
            Some(false) => (MS, Err(RstCode::Refused)),
            None => (MS, Ok(())),
        };
        let (run, Check { connector, number, .. }) = (node.run, check);
        self.after(delay, Event::Checked { node: ix, run, connector, number, result });
    }

    pub(crate) fn on_checked(&mut self, ix: u16, run: u32, connector: Name, number: u64, result: Result<(), RstCode>) {
        if self.nodes[usize::from(ix)].run == run {
            self.input(ix, Input::Checked { connector, number, result });
        }
    }

    pub(crate) fn on_target(
        &mut self,
        ix: u16,
        run: u32,
        stream: StreamKey,
        client: Option<u32>,
        result: Result<(), RstCode>,
    ) {
        if self.nodes[usize::from(ix)].run != run || !self.nodes[usize::from(ix)].is_up() {
            return;
        }
        let cid = self.nodes[usize::from(ix)].agent().and_then(|a| a.shard().stream(stream)).map(|s| s.cid);
        self.trace.mix(u64::from(stream.ix) << 16 | u64::from(ix) << 8 | result.err().map_or(0, |c| c as u64 + 1));
        if let Err(code) = result {
            return self.input(ix, Input::Target { stream, result: Err(code) });
        }
        let id = client.unwrap_or(u32::MAX);
        let (actor, sock) = self.add_actor(id, false, ix, Some(stream));
        if let Some(cid) = cid {
            self.check.on_target_connected(cid, actor);
        }
        if let Some(c) = client.filter(|c| *c != rogue::CLIENT) {
            let pair = self.pairs.entry(c).or_default();
            if let Some(before) = pair[1].replace(actor)
                && self.actors[before as usize].is_alive()
            {
                // An earlier attempt's target that nobody closed yet.
                self.check.extra_targets.push(before);
            }
        }
        self.line(client, || format!("the target of client {id} is connected"));
        self.input(ix, Input::Target { stream, result: Ok(sock_key(sock)) });
        let latency = client.map_or(MS, |c| self.client_plan(c).latency);
        self.step(actor, latency);
    }

    /// Aborts every target of an agent.
    pub(crate) fn abort_targets(&mut self, ix: u16) {
        for n in 0..self.actors.len() as u32 {
            let a = &self.actors[n as usize];
            if !a.is_client && a.is_alive() && self.socks[a.sock as usize].node == ix {
                self.abort(n);
            }
        }
    }

    /// Has an actor act after `delay`, unless it will act before.
    pub(crate) fn step(&mut self, actor: u32, delay: u64) {
        let at = self.now + delay;
        let a = &mut self.actors[actor as usize];
        if !a.is_alive() || a.step_at.is_some_and(|t| t <= at) {
            return;
        }
        a.step_at = Some(at);
        self.at(at, Event::Actor { actor });
    }

    pub(crate) fn end_actor(&mut self, actor: u32, fate: Fate) {
        let now = self.now;
        let a = &mut self.actors[actor as usize];
        a.fate = fate;
        a.ended_at = now;
        let (client, is_client) = (a.client, a.is_client);
        if fate == Fate::Finished && now > a.fin_sent_at + 60_000 * MS {
            self.marks.hit(Mark::HalfClosedLong);
        }
        self.line(Some(client), || format!("{} {client} ends: {fate:?}", side(is_client)));
        self.trace.mix(u64::from(actor) << 8 | u64::from(matches!(fate, Fate::Finished)));
        self.on_actor_end(actor);
    }

    pub(crate) fn abort(&mut self, actor: u32) {
        let sock = self.actors[actor as usize].sock;
        let client = self.actors[actor as usize].client;
        let latency = if client == u32::MAX { MS } else { self.client_plan(client).latency };
        self.end_actor(actor, Fate::Aborted);
        self.after(latency, Event::SockAborted { sock });
    }

    /// An actor's turn.
    pub(crate) fn on_actor(&mut self, ix: u32) {
        let now = self.now;
        let a = &mut self.actors[ix as usize];
        if a.step_at.is_some_and(|t| t > now) {
            return;
        }
        a.step_at = None;
        if !a.is_alive() {
            return;
        }
        let (client, is_client, sock_ix) = (a.client, a.is_client, a.sock);
        let plan = self.client_plan(client);
        let healed = self.phase == Phase::Liveness;
        let (mine, other) = if is_client { (plan.up, plan.down) } else { (plan.down, plan.up) };
        let ending = if is_client { plan.client_end } else { plan.target_end };
        let ending = match ending {
            Ending::FinLater(_) | Ending::Hold | Ending::FinAfterOther if healed => Ending::Fin,
            e @ (Ending::Fin
            | Ending::FinLater(_)
            | Ending::FinAfterOther
            | Ending::Abort(_)
            | Ending::AbortAfterRead(_)
            | Ending::Hold) => e,
        };
        if let Some(code) = self.socks[sock_ix as usize].reset {
            return self.end_actor(ix, Fate::Reset(code));
        }
        if !self.read(ix, &other, healed) {
            return;
        }
        let a = &self.actors[ix as usize];
        let (wrote, read) = (a.wrote, a.read);
        let aborts = match ending {
            Ending::Abort(at) => wrote >= u64::from(at.min(mine.total)),
            Ending::AbortAfterRead(at) => read >= u64::from(at.min(other.total)),
            Ending::Fin | Ending::FinLater(_) | Ending::FinAfterOther | Ending::Hold => false,
        };
        if aborts {
            return self.abort(ix);
        }
        self.write(ix, &mine, &plan, ending, healed);
        let a = &self.actors[ix as usize];
        if a.fin_sent && a.eof_seen {
            return self.end_actor(ix, Fate::Finished);
        }
        self.plan_step(ix, &mine, &other, &plan, healed);
    }

    /// False when the run is over for this actor.
    fn read(&mut self, ix: u32, flow: &FlowPlan, healed: bool) -> bool {
        let now = self.now;
        let a = &self.actors[ix as usize];
        let (client, is_client, sock_ix) = (a.client, a.is_client, a.sock);
        if !healed && (now < a.read_at || flow.read_gap == u64::MAX) {
            return true;
        }
        let half = Half { client, up: !is_client };
        let mut left = u64::from(flow.read);
        let mut freed = false;
        while left > 0 {
            let sock = &mut self.socks[sock_ix as usize];
            let Some(mut front) = sock.buffered.pop_front() else { break };
            let piece = front.split_to(front.len().min(left as usize));
            if !front.is_empty() {
                sock.buffered.push_front(front);
            }
            left -= piece.len() as u64;
            sock.buffered_bytes -= piece.len() as u64;
            freed = true;
            let at = self.actors[ix as usize].read;
            if client == rogue::CLIENT {
                // Whatever a hostile peer says to its own.
            } else if let Err(e) = payload::check(half, at, &piece) {
                self.fail("S1", format!("{} {client} read {} bytes: {e}", side(is_client), piece.len()));
                return false;
            }
            self.actors[ix as usize].read += piece.len() as u64;
            self.check.delivered += piece.len() as u64;
        }
        let sock = &self.socks[sock_ix as usize];
        let blocked = !sock.queue.is_empty();
        let ended = sock.shut && sock.buffered.is_empty() && sock.queue.is_empty();
        let a = &mut self.actors[ix as usize];
        if freed && !healed {
            a.read_at = now.saturating_add(flow.read_gap);
        }
        if ended && !std::mem::replace(&mut a.eof_seen, true) {
            let read = a.read;
            self.line(Some(client), || format!("{} {client} reads the end after {read} bytes", side(is_client)));
            self.on_eof(ix);
        }
        if freed && blocked {
            self.sock_due(sock_ix);
        }
        self.violation.is_none()
    }

    fn write(&mut self, ix: u32, flow: &FlowPlan, plan: &ClientPlan, ending: Ending, healed: bool) {
        let now = self.now;
        let a = &mut self.actors[ix as usize];
        let sock = &mut self.socks[a.sock as usize];
        if a.fin_sent {
            return;
        }
        let ready = a.read >= u64::from(flow.after) || a.eof_seen || healed;
        if a.wrote < u64::from(flow.total) && ready && (now >= a.write_at || healed) {
            let room = u64::from(plan.buffer).saturating_sub(sock.sent - sock.taken);
            let mut len = room.min(u64::from(flow.total) - a.wrote);
            if !healed {
                len = len.min(u64::from(flow.chunk));
            }
            if let Ending::Abort(at) = ending {
                len = len.min(u64::from(at).saturating_sub(a.wrote));
            }
            if len > 0 {
                a.wrote += len;
                sock.sent += len;
                a.write_at = now + flow.write_gap;
                let sock = a.sock;
                if !std::mem::replace(&mut self.socks[sock as usize].due, true) {
                    self.after(plan.latency, Event::Sock { sock });
                }
            }
        }
        let a = &mut self.actors[ix as usize];
        let done = a.wrote == u64::from(flow.total);
        let fin = done
            && match ending {
                Ending::Fin => true,
                Ending::FinLater(after) => now >= *a.fin_at.get_or_insert(now + after),
                Ending::FinAfterOther => a.eof_seen,
                Ending::Hold | Ending::Abort(_) | Ending::AbortAfterRead(_) => a.eof_seen,
            };
        if fin {
            a.fin_sent = true;
            a.fin_sent_at = now;
            let (sock, client, is_client) = (a.sock, a.client, a.is_client);
            self.line(Some(client), || format!("{} {client} half-closes after {} bytes", side(is_client), flow.total));
            self.socks[sock as usize].fin = true;
            if !std::mem::replace(&mut self.socks[sock as usize].due, true) {
                self.after(plan.latency, Event::Sock { sock });
            }
        }
    }

    /// When this actor has something to do again by itself; what arrives and
    /// what is taken from it steps it as well.
    fn plan_step(&mut self, ix: u32, mine: &FlowPlan, other: &FlowPlan, plan: &ClientPlan, healed: bool) {
        let now = self.now;
        let a = &self.actors[ix as usize];
        let sock = &self.socks[a.sock as usize];
        let mut next = u64::MAX;
        if !sock.buffered.is_empty() && (healed || other.read_gap != u64::MAX) {
            next = next.min(if healed { now } else { a.read_at });
        }
        let room = sock.sent - sock.taken < u64::from(plan.buffer);
        if a.wrote < u64::from(mine.total) && room && (a.read >= u64::from(mine.after) || a.eof_seen || healed) {
            next = next.min(if healed { now } else { a.write_at });
        }
        if let (Some(at), false) = (a.fin_at, a.fin_sent) {
            next = next.min(at);
        }
        if next != u64::MAX {
            self.step(ix, next.saturating_sub(now).max(1000));
        }
    }
}

pub(crate) const fn side(is_client: bool) -> &'static str {
    if is_client { "client" } else { "target" }
}

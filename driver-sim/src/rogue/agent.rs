//! Hostile agents: each has an id, a token and a connector of its own, and
//! clients that come for it. Must not know what a hostile hub does.

use nowconnect_core::id::{Cid, Epoch, Incarnation, Instance, ListenerIx, Nonce, Secret};
use nowconnect_core::mux::Input;
use nowconnect_core::principal::{AgentGrant, Principal};
use nowconnect_core::wire::{
    Body, ConnectorAd, Frame, Hello, HelloAgent, HelloRole, NUMBER_MAX, Open, Status, encode_message,
};

use super::{CLIENT, Outcome, PEER, WINDOW, agent_id};
use crate::actor::{Actor, Fate};
use crate::marks::Mark;
use crate::net::key;
use crate::node::{Machine, name};
use crate::plan::{ClientPlan, Ending, FlowPlan, MS, TargetPlan};
use crate::sock::sock_key;
use crate::world::World;

/// The connector that hostile agents expose.
pub(crate) const CONNECTOR: &str = "hostile";
/// Clients of its own at a time.
const CLIENTS_MAX: usize = 4;

/// A client of its own: it talks, reads and never ends by itself. So does a
/// target that a hostile hub reached.
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
    /// Its HELLO, or what may not come first.
    pub(super) fn rogue_agent_comes(&mut self, ix: u32, hub: u16, conn: u32) {
        let r = &mut self.rogues[ix as usize];
        let early = r.lane.chance(1, 10);
        r.run += u64::from(r.lane.chance(1, 3));
        let seen = if r.lane.chance(1, 4) { NUMBER_MAX } else { 0 };
        let strange = r.lane.chance(1, 12);
        let (dialect, instance) = (r.dialect(), Instance(r.run));
        let hello = Frame::Hello(Box::new(Hello {
            role: HelloRole::Agent(HelloAgent {
                // Somebody else's id is none of its token's.
                agent_id: if strange { agent_id("agent-0") } else { agent_id(&format!("{PEER}{ix}")) },
                instance,
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
        self.input(hub, Input::Accepted { conn: key(conn, 1), dialect, principal: Principal::Agent(grant) });
        if early {
            self.marks.hit(Mark::HostileSession);
            self.rogue_sends(ix, encode_message(dialect, 0, &[Frame::Ack { received: 1 }]), Outcome::Ended);
        } else {
            self.rogue_sends(ix, encode_message(dialect, 0, &[hello]), Outcome::Borne);
        }
    }

    /// Its clients come, and it breaks a rule.
    pub(super) fn rogue_acts(&mut self, ix: u32, hub: u16) {
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
            _ if r.lane.chance(1, 3) => {
                let frames = r.what_hubs_say();
                return self.rogue_breaks(ix, frames);
            }
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

    fn rogue_clients(&self, hub: u16) -> usize {
        let own = |a: &&Actor| a.client == CLIENT && a.is_client && a.is_alive();
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
                self.end_actor(actor, Fate::Refused);
            }
        }
    }
}

impl super::Rogue {
    /// What no agent may say.
    fn what_hubs_say(&self) -> Vec<Frame> {
        let open = Open {
            nonce: Nonce(1),
            connector: name(CONNECTOR),
            agent_id: agent_id("agent-0"),
            key: Secret([1; 16]),
            limit: 1000,
        };
        let cid = Cid::new(Incarnation(5), 0, self.sent + 1);
        let status = Status { registry_healthy: true, draining: false, active: true, initial_window: 1 };
        vec![Frame::stream(cid, Epoch(1), Body::Open(Box::new(open))), Frame::Status(status)]
    }
}

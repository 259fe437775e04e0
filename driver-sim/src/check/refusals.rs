//! Why a client is refused while it all goes on: BUSY, BUDGET and DENIED are said
//! where a limit was reached, there was no room, or a token or a file says so,
//! and nowhere else (L3, B7, I4). Asked of the answer that leaves the process
//! that gives it, and of a listener that takes nobody. What a process waits for
//! is counted on the wire; limits are those of its file.

use std::collections::{BTreeMap, HashMap};

use nowconnect_core::error::RstCode;
use nowconnect_core::id::{AgentId, Cid};
use nowconnect_core::wire::{Body, Frame};

use super::wire::Told;
use crate::faults::{At, Class};
use crate::node::{agent_config, hub_config};
use crate::world::World;

/// An OPEN that reached a process and is not answered.
#[derive(Clone, Copy, Debug)]
struct Asked {
    at: u64,
    run: u32,
    /// The agent it names.
    agent: Option<u8>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    asked: HashMap<(u16, Cid), Asked>,
    waiting: BTreeMap<u16, u32>,
}

fn number(agent: &AgentId) -> Option<u8> {
    agent.as_str().strip_prefix("agent-")?.parse().ok()
}

impl World {
    /// A message is about to reach a machine: what it is asked.
    pub(super) fn note_asked(&mut self, conn: u32, to: usize, told: &Told) {
        let ix = self.conns[conn as usize].nodes[to];
        for f in &told.frames {
            let Frame::Stream { cid, body: Body::Open(open), .. } = f else { continue };
            let asked = Asked { at: self.now, run: self.nodes[usize::from(ix)].run, agent: number(&open.agent_id) };
            let q = &mut self.check.questions;
            if q.asked.insert((ix, *cid), asked).is_none() {
                *q.waiting.entry(ix).or_default() += 1;
            }
        }
    }

    /// A message leaves a machine: what it answers.
    pub(super) fn note_answers(&mut self, conn: u32, end: usize, told: &Told) {
        let c = &self.conns[conn as usize];
        let ix = c.nodes[end];
        if c.rogue.is_some() || told.number == 0 {
            return;
        }
        for f in &told.frames {
            let Frame::Stream { cid, body: Body::OpenAck { result }, .. } = f else { continue };
            let waiting = self.check.questions.waiting.get(&ix).copied().unwrap_or(0);
            let Some(asked) = self.check.questions.asked.remove(&(ix, *cid)) else { continue };
            self.check.questions.waiting.insert(ix, waiting.saturating_sub(1));
            // What a hostile peer asks for is refused for more reasons.
            if let Err(code) = result
                && asked.run == self.nodes[usize::from(ix)].run
                && self.cids.contains_key(cid)
            {
                self.judge_answer(ix, *cid, *code, asked, waiting);
            }
        }
    }

    fn judge_answer(&mut self, ix: u16, cid: Cid, code: RstCode, asked: Asked, waiting: u32) {
        // An owner passes on what its agent says.
        if self.check.opening.is_refused(cid) && self.nodes[usize::from(ix)].is_hub() {
            return;
        }
        let wrong = if code == RstCode::Busy {
            !self.is_near_a_limit(ix, waiting)
        } else if code == RstCode::Budget {
            !self.check.rooms.was_full(ix, asked.at, self.now, 0)
        } else {
            code == RstCode::Denied && !self.may_deny(ix, asked.agent)
        };
        if wrong {
            let name = &self.nodes[usize::from(ix)].name;
            let text = format!("{name} answers {cid} with {code}, and has no cause: {waiting} OPENs wait there");
            self.fail("L3", text);
        }
    }

    /// A listener refuses a client at once.
    pub(crate) fn judge_turned_away(&mut self, ix: u16, client: u32, code: RstCode) {
        let wrong = if code == RstCode::Busy {
            !self.is_near_a_limit(ix, 0)
        } else if code == RstCode::Budget {
            !self.check.rooms.was_full(ix, self.now, self.now, 0) && self.has_room(ix)
        } else {
            code == RstCode::Denied
        };
        if wrong {
            self.fail("L3", format!("node {ix} refuses client {client} with {code}, and has no cause"));
        }
    }

    /// Whether a process holds less than it may now.
    fn has_room(&self, ix: u16) -> bool {
        let m = self.nodes[usize::from(ix)].machine.as_ref();
        m.is_some_and(|m| m.mux().budget().held() < m.mux().budget().cap())
    }

    /// Whether a process may have as many streams or OPENs as its file allows,
    /// or was told otherwise while it ran.
    fn is_near_a_limit(&self, ix: u16, waiting: u32) -> bool {
        let node = &self.nodes[usize::from(ix)];
        let Some(m) = &node.machine else { return true };
        let (limits, most) = match node.at {
            At::Hub(n) => {
                let file = hub_config(&self.plan, usize::from(n), &self.plan.hubs[usize::from(n)]);
                let most = file.listeners.iter().map(|l| l.max_connections).min();
                (file.limits, most)
            }
            At::Agent(n) => (agent_config(&self.plan, usize::from(n), &self.plan.agents[usize::from(n)]).limits, None),
        };
        let streams = m.streams() as u32 + waiting;
        let share = limits.max_pending_opens / m.shards().len().max(1) as u32;
        let opening = waiting + node.opening.waiting() as u32;
        let flipped = self.check.nodes.get(&ix).is_some_and(|g| g.flipped);
        self.is_rewired(ix)
            || flipped
            || streams >= limits.max_streams
            || opening >= share
            || most.is_some_and(|most| streams >= most)
    }

    /// Whether a process may deny a connector that clients ask for: one that a
    /// token does not name, or that is listed where it is not. What was taken
    /// back is no offence to ask for.
    fn may_deny(&self, ix: u16, agent: Option<u8>) -> bool {
        let n = if let At::Agent(n) = self.nodes[usize::from(ix)].at { Some(n) } else { agent };
        let Some(n) = n.filter(|n| usize::from(*n) < self.plan.agents.len()) else { return true };
        let plan = &self.plan.agents[usize::from(n)];
        plan.token_ns > 0
            || self.plan.hostile > 0
            || self.faults_done[Class::Registry as usize] > 0
            || self.nodes.iter().any(|node| node.is_clone)
    }
}

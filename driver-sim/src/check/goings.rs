//! Who is on the way out, seen by those that choose, and two that want one place
//! (L8, L10): nobody opens at an agent that said that it leaves, or at an owner
//! that does while another hub surely serves; and two live processes of one agent
//! do not take its place from each other without end. Must not know how a
//! candidate is ranked, or who is sent away.

use std::collections::{BTreeMap, VecDeque};

use nowconnect_core::id::{AgentId, Name};

use super::rank::Chosen;
use crate::faults::{At, Class};
use crate::net::place;
use crate::plan::{MS, ModePlan};
use crate::world::World;

/// What a hub needs to hear of an attachment elsewhere, on top of what was drawn:
/// the notice, and a look at the registry with its time-out.
const TO_HEAR: u64 = 5000 * MS;
/// The time that turns of two are counted over.
const GUARD: u64 = 59_000 * MS;
/// Turns of two in that time: as many as make a flap at this hub, and some more
/// because others are told of it later.
const TURNS_MAX: usize = 6;

/// A process of an agent: the node, and which run of it.
type Process = (u16, u32);

/// When one process took it from another.
type Taken = (u64, Process, Process);

/// Who took an agent's place at a hub from whom.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    holder: BTreeMap<(u16, AgentId), Process>,
    /// Who was attached last, at any hub.
    last: BTreeMap<AgentId, Process>,
    taken: BTreeMap<(u16, AgentId), VecDeque<Taken>>,
}

impl Turns {
    /// A process begins: a hub knows of no turns.
    pub(super) fn forget(&mut self, ix: u16) {
        self.holder.retain(|(hub, _), _| *hub != ix);
        self.taken.retain(|(hub, _), _| *hub != ix);
    }
}

impl World {
    /// L10: a client is opened at a candidate: not at an agent that leaves, and
    /// at a hub that leaves only if nobody else is there.
    pub(super) fn judge_goer(&mut self, ix: u16, client: u32, chosen: &Chosen) {
        if self.check.drains.is_empty() || !self.is_fast() || self.plan.hostile > 0 {
            return;
        }
        let At::Hub(n) = self.nodes[usize::from(ix)].at else { return };
        let notes = self.plan.hubs[usize::from(n)].note_delay_ns * 8;
        let way = 8 * (self.plan.net.latency.1 + self.plan.net.jitter);
        let slack = self.plan.late_timers_ns * 2 + notes + way + 1000 * MS;
        let quiet = self.calm(ix).is_some_and(|t| t + slack < self.now)
            && self.check.interrupted.get(&ix).is_none_or(|at| at + slack < self.now);
        if !quiet {
            return;
        }
        let found = if chosen.local {
            self.leaving_agent(ix, &chosen.agent, slack)
        } else {
            self.leaving_owner(ix, client, &chosen.owner, slack)
        };
        if let Some(text) = found {
            self.fail("L10", format!("client {client} of node {ix} is opened at {}: {text}", chosen.agent));
        }
    }

    fn leaving_agent(&self, ix: u16, agent: &AgentId, slack: u64) -> Option<String> {
        let (n, _) = self.agent_plan(agent)?;
        let node = self.node_of(At::Agent(n));
        let cloned = self.nodes.iter().any(|x| x.is_clone && x.at == At::Agent(n));
        let since = self.drains_since(node).filter(|_| !cloned)?;
        let heard = self.calm(node).is_some_and(|t| t + slack < self.now)
            && self.carries_tunnel(ix, node, agent)
            && self.is_quiet_between(ix, node, slack)
            && self.has_heard(ix, node, since + slack);
        (heard && since + slack < self.now)
            .then(|| format!("it said {} ms ago that it leaves", (self.now - since) / MS))
    }

    /// Whether a hub has heard an agent that dialled it since then. A network may
    /// deliver nothing one way for less than `liveness.dead`: the session stays, and
    /// what the agent said is still on its way while OPENs reach it (seed 11922: 4.7
    /// s). Messages come in order, so that whatever comes later comes behind it.
    fn has_heard(&self, hub: u16, agent: u16, since: u64) -> bool {
        let mut conns = (0..).zip(&self.conns);
        conns.any(|(n, c)| c.nodes == [agent, hub] && c.up[1] && self.check.wire.heard(n, 1) > since)
    }

    fn leaving_owner(&self, ix: u16, client: u32, owner: &Name, slack: u64) -> Option<String> {
        let registry = self.faults_done[Class::Registry as usize] > 0;
        let ejected = self.check.nodes.get(&ix).is_some_and(|g| g.ejected);
        let twins = self.nodes.iter().any(|x| x.is_clone);
        if registry || ejected || twins || self.few_opens(ix) || self.is_rewired(ix) {
            return None;
        }
        let gone = self.nodes.iter().position(|x| x.name == owner.as_str())? as u16;
        let since = self.drains_since(gone)?;
        let wanted = self.client_plan(client).connector;
        let told = since + slack < self.now && self.is_quiet_between(ix, gone, slack) && self.is_linked(ix, gone);
        if !told {
            return None;
        }
        let stays = (0..self.plan.hubs.len() as u16).filter(|h| {
            let hub = &self.plan.hubs[usize::from(*h)];
            let flipped = self.check.nodes.get(h).is_some_and(|g| g.flipped);
            *h != gone && !self.check.drains.contains_key(h) && hub.mode == ModePlan::Active && !flipped
        });
        stays.into_iter().find_map(|h| {
            let near = h == ix
                || (self.is_linked(ix, h)
                    && self.is_quiet_between(ix, h, slack + TO_HEAR)
                    && self.calm(h).is_some_and(|t| t + slack + TO_HEAR < self.now)
                    && self.check.interrupted.get(&h).is_none_or(|at| at + slack + TO_HEAR < self.now));
            let (agent, _) =
                self.surely_serves(h, wanted, self.now, slack + TO_HEAR).filter(|(_, held)| near && held.firm)?;
            let lag = (self.now - since) / MS;
            Some(format!("its hub {owner} said {lag} ms ago that it leaves, and {agent} is at hub-{h}"))
        })
    }

    /// Whether no dial between two nodes was welcome lately.
    fn is_quiet_between(&self, a: u16, b: u16, slack: u64) -> bool {
        self.welcomed(a, b) + slack < self.now && self.welcomed(b, a) + slack < self.now
    }

    /// L8: an agent is attached to a hub, by the process at the other end.
    pub(super) fn judge_turns(&mut self, hub: u16, agent: &AgentId, takeover: bool) {
        let process = self.nodes[usize::from(hub)].hub().and_then(|h| {
            let session = h.control().tunnels().find(|t| t.agent_id == agent)?.session;
            let (conn, _) = place(h.mux().get(session)?.conn?);
            let c = &self.conns[conn as usize];
            Some((c.nodes[0], c.runs[0]))
        });
        let (Some(process), now) = (process, self.now) else { return };
        let place = (hub, agent.clone());
        let turns = &mut self.check.turns;
        let before = turns.holder.insert(place.clone(), process);
        // Who had it at this hub last may have lost it to a third one elsewhere: then
        // it is that one's which was taken (seed 9878 of `swarm`, six processes).
        let last = turns.last.insert(agent.clone(), process);
        let took = |b: &Process| *b != process && takeover && (last == Some(*b) || last == Some(process));
        let Some(before) = before.filter(took) else { return };
        let taken = turns.taken.entry(place).or_default();
        taken.push_back((now, before, process));
        while taken.front().is_some_and(|(at, ..)| at + GUARD < now) {
            taken.pop_front();
        }
        let pair = |(_, a, b): &&Taken| (*a, *b) == (before, process) || (*b, *a) == (before, process);
        let n = taken.iter().filter(pair).count();
        if n > TURNS_MAX {
            let text =
                format!("two processes of {agent} took its place at node {hub} from each other {n} times in a minute");
            self.fail("L8", text);
        }
    }
}

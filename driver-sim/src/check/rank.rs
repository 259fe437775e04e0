//! M8: a client gets the best of those that surely serve it: by priority, then
//! a tunnel of its own hub before the mesh (semantics 7). Asked at the first
//! candidate of a client, where this hub never ejected anybody and delays no
//! return. Must not know how a candidate is chosen.

use nowconnect_core::id::{AgentId, Name};

use crate::faults::At;
use crate::plan::{AgentPlan, MS};
use crate::world::World;

/// What was chosen for a client.
pub(super) struct Chosen {
    pub(super) agent: AgentId,
    /// Over a tunnel of the client's own hub.
    pub(super) local: bool,
    /// The hub that it is attached to.
    pub(super) owner: Name,
}

impl World {
    /// A client has its first candidate.
    pub(super) fn judge_rank(&mut self, ix: u16, client: u32, chosen: &Chosen) {
        let At::Hub(n) = self.nodes[usize::from(ix)].at else { return };
        let plan = &self.plan.hubs[usize::from(n)];
        let slack = self.plan.late_timers_ns * 2 + plan.note_delay_ns * 8 + 1000 * MS;
        let wanted = self.client_plan(client).connector;
        let undisturbed = self.calm(ix).is_some_and(|t| t + slack < self.now)
            && self.check.interrupted.get(&ix).is_none_or(|at| at + slack < self.now)
            && !self.leaves(ix)
            && !self.few_opens(ix)
            && plan.failback_ns == 0
            && !self.check.nodes.get(&ix).is_some_and(|g| g.ejected);
        let Some(given) = self.rank_of(&chosen.agent, wanted, chosen.local).filter(|_| undisturbed) else { return };
        let better = |agent: &AgentId| {
            self.is_heard(ix, agent) && self.rank_of(agent, wanted, true).is_some_and(|rank| rank < given)
        };
        let Some(agent) = self.who_surely_serve(ix, wanted, self.now, slack).find(|(agent, _)| better(agent)) else {
            return;
        };
        let text = format!(
            "client {client} of node {ix} is opened at {}{}, though {} is attached here and ranks before it",
            chosen.agent,
            if chosen.local { "" } else { " over another hub" },
            agent.0
        );
        self.fail("M8", text);
    }

    /// Whether a hub's tunnel of an agent has a connection, and the agent spoke
    /// lately: who is silent is asked last.
    fn is_heard(&self, ix: u16, agent: &AgentId) -> bool {
        let node = &self.nodes[usize::from(ix)];
        let at = node.clock(self.now);
        let tunnel = node.hub().and_then(|hub| {
            let tunnel = hub.control().tunnels().find(|t| t.agent_id == agent)?;
            hub.mux().get(tunnel.session)
        });
        tunnel.is_some_and(|e| e.conn.is_some() && !e.session.is_suspect(at))
    }

    /// Lower is better.
    fn rank_of(&self, agent: &AgentId, wanted: u16, local: bool) -> Option<(u16, bool)> {
        let (_, plan): (u8, &AgentPlan) = self.agent_plan(agent)?;
        let (_, priority, _) = plan.connectors.iter().find(|c| c.0 == wanted)?;
        Some((*priority, !local))
    }
}

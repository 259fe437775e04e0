//! Agents that are attached while the registry is away: they serve their hub's
//! clients, and are claimed when it is back (L11, M4). What a hub holds is known
//! from what it says; must not look into a machine for a reason.

use nowconnect_core::config::Mode;
use nowconnect_core::error::RstCode;
use nowconnect_core::id::AgentId;
use nowconnect_core::observed::{Cause, StreamRecord};

use crate::faults::At;
use crate::marks::Mark;
use crate::node::connector;
use crate::plan::{MS, ModePlan};
use crate::world::World;

/// What an OPEN needs to be asked with, and a claim to be answered, on top of
/// what was drawn.
const SLACK: u64 = 2000 * MS;

/// An attachment, as its hub said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// Since the first word of it.
    pub(super) since: u64,
    /// The registry knows of it.
    pub(super) firm: bool,
}

impl World {
    /// A hub says that it holds an attachment. Whether it held it before
    /// without the registry.
    pub(super) fn ghost_attached(&mut self, hub: u16, agent: &AgentId, firm: bool) -> bool {
        let now = self.now;
        let held = self.check.held.entry((hub, agent.clone())).or_insert(Held { since: now, firm });
        let provisional = !held.firm;
        held.firm = firm;
        if !firm {
            held.since = now;
        }
        provisional
    }

    /// Whether a client's stream was opened once, or nobody knows whose it is.
    pub(super) fn was_tried(&self, r: &StreamRecord) -> bool {
        let client = r.sock.and_then(|k| self.socks.get(k.ix as usize)).map(|s| self.actors[s.actor as usize].client);
        client.is_none_or(|c| self.check.opening.tried.contains(&c))
    }

    pub(super) fn agent_plan(&self, agent: &AgentId) -> Option<(u8, &crate::plan::AgentPlan)> {
        let n: u8 = agent.as_str().strip_prefix("agent-")?.parse().ok()?;
        Some((n, self.plan.agents.get(usize::from(n))?))
    }

    /// Whether any process of an agent had a connector withdrawn at or after
    /// `from`, because its target failed its checks.
    fn was_withdrawn(&self, agent: u8, wanted: u16, from: u64) -> bool {
        let wanted = connector(wanted);
        let over = |at: &Option<u64>| at.is_none_or(|t| t >= from);
        let of = |ix: u16| self.nodes[usize::from(ix)].at == At::Agent(agent);
        self.check.withdrawn.iter().any(|((ix, name), at)| *name == wanted && of(*ix) && over(at))
    }

    /// Whether a hub's tunnel of an agent has a connection over which the agent
    /// is heard: one that died in silence is not noticed for a while.
    pub(super) fn carries_tunnel(&self, ix: u16, node: u16, agent: &AgentId) -> bool {
        if self.conns.iter().any(|c| c.nodes == [node, ix] && c.up[1] && c.pipes[0].dead) {
            return false;
        }
        let Some(hub) = self.nodes[usize::from(ix)].hub() else { return false };
        let tunnel = hub.control().tunnels().find(|t| t.agent_id == agent);
        tunnel.is_some_and(|t| hub.mux().get(t.session).is_some_and(|e| e.conn.is_some()))
    }

    /// An agent that was attached to a hub undisturbed for a while before `came`
    /// and exposes a connector, as far as can be said from outside.
    pub(super) fn surely_serves(&self, ix: u16, wanted: u16, came: u64, slack: u64) -> Option<(&AgentId, &Held)> {
        self.who_surely_serve(ix, wanted, came, slack).next()
    }

    /// All such agents.
    pub(super) fn who_surely_serve(
        &self,
        ix: u16,
        wanted: u16,
        came: u64,
        slack: u64,
    ) -> impl Iterator<Item = (&AgentId, &Held)> {
        let serves = move |((hub, agent), held): &(&(u16, AgentId), &Held)| {
            let Some((n, plan)) = self.agent_plan(agent) else { return false };
            let exposed = plan.connectors.iter().any(|c| c.0 == wanted);
            let node = self.node_of(At::Agent(n));
            let calm =
                self.calm(node).is_some_and(|t| t + slack < came) && !self.leaves(node) && !self.is_rewired(node);
            // What an earlier run of the agent left behind may have been
            // withdrawn by it, and serves nobody.
            let present = held.since >= self.nodes[usize::from(node)].started;
            // An agent whose target failed its checks has said so.
            let back = !self.was_withdrawn(n, wanted, came.saturating_sub(slack));
            // That it is back, it can say on a tunnel that carries only.
            let told = !self.was_withdrawn(n, wanted, 0)
                || (self.carries_tunnel(ix, node, agent) && self.welcomed(ix, node) + slack < came);
            let heard = self.check.heard.get(&(ix, node));
            let told = told && heard.is_none_or(|(at, all)| at + slack < came && all.contains(&connector(wanted)));
            hub == &ix && exposed && back && told && plan.token_ns == 0 && calm && present && held.since + slack < came
        };
        self.check.held.iter().filter(serves).map(|((_, agent), held)| (agent, held))
    }

    /// L11, M4: who has an agent of its own needs no registry. Called for a
    /// record of a hub that ran undisturbed.
    pub(super) fn judge_refusal(&mut self, ix: u16, r: &StreamRecord, slack: u64) {
        let provisional = |w: &Self, agent: &AgentId| w.check.held.get(&(ix, agent.clone())).is_some_and(|h| !h.firm);
        if r.cause == Cause::Finished && r.local && r.agent_id.as_ref().is_some_and(|a| provisional(self, a)) {
            self.marks.hit(Mark::ProvisionalServed);
        }
        // Whom an agent refused was served as well as could be.
        if r.cid.0 != 0
            || self.was_tried(r)
            || r.open.is_some()
            || self.few_opens(ix)
            || !matches!(r.cause, Cause::Reset(RstCode::NoRoute | RstCode::RegistryDown))
        {
            return;
        }
        let came = self.now.saturating_sub(r.total.as_nanos() as u64);
        if self.check.interrupted.get(&ix).is_some_and(|at| at + slack >= came) || self.leaves(ix) {
            return;
        }
        if let Some((agent, held)) = self.surely_serves(ix, r.listener.0, came, slack) {
            let text = format!(
                "node {ix} refused a client of c{} ({:?}), though {agent} is attached here since {} ms, {}",
                r.listener.0,
                r.cause,
                (self.now - held.since) / MS,
                if held.firm { "firm" } else { "provisional" }
            );
            let id = if held.firm { "M4" } else { "L11" };
            self.fail(id, text);
        }
    }

    /// Whether a hub relies on its registry, and on being found there.
    pub(crate) fn counts_registry_ready(&self, ix: u16) -> bool {
        let node = &self.nodes[usize::from(ix)];
        node.hub().is_some_and(|h| h.mode() != Mode::Off && h.control().registry_ready(node.clock(self.now)))
    }

    /// L6: a hub that comes to count its registry as ready is listed with what
    /// it holds: what it takes for listed, and, if nothing was disturbed for a
    /// while, all whose agents are there.
    pub(crate) fn judge_registry_ready(&mut self, ix: u16) {
        let Some(g) = self.check.nodes.get(&ix) else { return };
        let since = g.healthy_since;
        let waited = since + self.plan.timers.lease <= self.now;
        let disturbed = self.registry.is_faulty() || self.check.registry_hurt >= since || g.fenced || self.is_twin(ix);
        if waited || disturbed || !self.counts_registry_ready(ix) {
            return;
        }
        let quiet =
            self.check.quiet_from.max(self.check.interrupted.get(&ix).copied().unwrap_or(0)) + SLACK * 2 < since;
        let listed = self.registry.snapshot(nowconnect_core::time::Instant::from_nanos(self.now));
        let Some(hub) = self.nodes[usize::from(ix)].hub() else { return };
        if hub.control().tunnels().next().is_some() {
            self.marks.hit(Mark::RegistryReady);
        }
        let missing = hub.control().tunnels().find(|t| {
            let there = hub.mux().get(t.session).is_some_and(|e| e.conn.is_some());
            let calm = |(n, _)| {
                let node = self.node_of(At::Agent(n));
                let since = since.saturating_sub(SLACK * 2);
                self.calm(node).is_some_and(|t| t < since) && self.welcomed(ix, node) < since
            };
            let sure = t.firm || quiet && self.agent_plan(t.agent_id).is_some_and(calm);
            // Another instance took it, or a claim of ours did that was executed late.
            let taken = listed.iter().any(|l| l.agent_id == *t.agent_id && l.fence > t.fence);
            let found = listed.iter().any(|l| l.agent_id == *t.agent_id && l.hub == *hub.run() && l.fence == t.fence);
            there && sure && !taken && !found
        });
        if let Some(t) = missing {
            let how = if t.firm { "firm" } else { "provisional" };
            let text = format!(
                "node {ix} counts the registry as ready {} ms after it came back, and is not listed with {} under {:?}, {how}: {listed:?}",
                (self.now - since) / MS,
                t.agent_id,
                t.fence,
            );
            self.fail("L6", text);
        }
    }

    /// L11: with the registry back and nothing else in the way, an attachment
    /// made without it is claimed within one lease.
    pub(super) fn check_reclaimed(&mut self) {
        let lease = self.plan.timers.lease;
        let found = self.check.held.iter().filter(|(_, h)| !h.firm).find_map(|((hub, agent), held)| {
            let node = &self.nodes[usize::from(*hub)];
            let (At::Hub(h), machine) = (node.at, node.hub()?) else { return None };
            let mode = node.mode.unwrap_or(self.plan.hubs[usize::from(h)].mode);
            let g = self.check.nodes.get(hub).filter(|g| g.unhealthy_since.is_none())?;
            let (n, _) = self.agent_plan(agent)?;
            let of = self.node_of(At::Agent(n));
            let tunnel = machine.control().tunnels().find(|t| t.agent_id == agent)?;
            let up = machine.mux().get(tunnel.session)?.conn.is_some();
            let disturbed = [
                held.since,
                g.healthy_since,
                self.check.quiet_from,
                self.calm(*hub)?,
                self.calm(of)?,
                self.welcomed(*hub, of),
                self.check.interrupted.get(hub).copied().unwrap_or(0),
            ];
            let since = disturbed.into_iter().max().unwrap_or(0);
            let notes = self.plan.hubs[usize::from(h)].note_delay_ns * 8;
            let within = lease + SLACK + notes + 4 * self.plan.late_timers_ns;
            let late = self.now.saturating_sub(since);
            (mode != ModePlan::Off && up && late > within).then(|| {
                format!("{} holds {agent} without the registry for {} ms, which answers", node.name, late / MS)
            })
        });
        if let Some(text) = found {
            self.fail("L11", text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Level;
    use crate::profile::Profile;
    use crate::tape::Tape;
    use crate::trace::Trace;

    #[test]
    fn a_hub_that_counts_its_registry_as_ready_and_is_not_listed_is_noticed() {
        let plan = crate::run::plan(1, Profile::named("registry-out").expect("a profile"), Level::L0);
        let mut world = World::new(plan, Tape::from_seed(1), Trace::default());
        world.run();
        assert_eq!(world.violation, None);
        let hub = world.check.held.keys().map(|(hub, _)| *hub).next().expect("a hub with an agent");
        world.check.nodes.get_mut(&hub).expect("a hub").healthy_since = world.now;
        world.judge_registry_ready(hub);
        assert_eq!(world.violation, None, "it is");
        let at = nowconnect_core::time::Instant::from_nanos(world.now);
        world.registry.damage(at, crate::registry::Damage::Flush, &mut world.registry_draws);
        world.judge_registry_ready(hub);
        assert_eq!(world.violation.map(|v| v.id).as_deref(), Some("L6"));
    }

    #[test]
    fn an_attachment_that_nobody_claims_is_noticed() {
        let plan = crate::run::plan(1, Profile::named("registry-out").expect("a profile"), Level::L0);
        let mut world = World::new(plan, Tape::from_seed(1), Trace::default());
        world.run();
        assert_eq!(world.violation, None);
        assert!(!world.check.held.is_empty() && world.check.held.values().all(|h| h.firm), "all is claimed at the end");
        world.now += 60_000 * MS;
        world.check_reclaimed();
        assert_eq!(world.violation, None, "what is firm needs no claim");
        world.check.held.values_mut().for_each(|h| h.firm = false);
        world.check_reclaimed();
        assert_eq!(world.violation.map(|v| v.id).as_deref(), Some("L11"));
    }
}

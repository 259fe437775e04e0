//! What two keys of a hub's configuration change: `registry.on_outage` (M4, O7)
//! and `auth.on_expiry` (I4). What a hub was told is in the plan; must not look
//! into a machine for a reason.

use std::time::Duration;

use nowconnect_core::config::Mode;
use nowconnect_core::error::CloseCode;
use nowconnect_core::id::AgentId;
use nowconnect_core::observed::{Cause, StreamRecord};

use crate::faults::At;
use crate::marks::Mark;
use crate::plan::{AgentPlan, ExpiryPlan, HubPlan, MS};
use crate::world::World;

/// What a hub needs to end a tunnel that is due.
const SLACK: u64 = 200 * MS;

impl World {
    pub(super) fn hub_plan(&self, ix: u16) -> Option<&HubPlan> {
        match self.nodes[usize::from(ix)].at {
            At::Hub(n) => self.plan.hubs.get(usize::from(n)),
            At::Agent(_) => None,
        }
    }

    /// O7: with `on_outage: cached` a hub goes on as owner while the registry is
    /// away, and for a lease after it said so last; not where another run holds
    /// its lease, as far as its shards have heard.
    pub(super) fn serves_without_lease(&self, ix: u16) -> bool {
        let Some(plan) = self.hub_plan(ix).filter(|p| p.cached) else { return false };
        let Some(g) = self.check.nodes.get(&ix) else { return false };
        let active = self.nodes[usize::from(ix)].hub().is_some_and(|h| h.mode() == Mode::Active);
        let lease = self.plan.timers.lease + self.plan.timers.lease / 1000;
        // One that was never well since it started has no word for it.
        let unheard = g.healthy_since == 0 && self.renewals_in_vain(ix) >= 2;
        let away = unheard || g.unhealthy_since.is_some() || self.now < g.healthy_since + lease;
        active && away && (plan.shards > 0 || !g.fenced)
    }

    /// M4: with `on_outage: refuse` nothing opens across hubs while the registry
    /// is known to be away.
    pub(crate) fn judge_outage(&mut self, ix: u16) {
        if self.hub_plan(ix).is_none_or(|p| p.cached) {
            return;
        }
        let out = self.check.nodes.get(&ix).and_then(|g| g.unhealthy_since.filter(|since| g.ok_at < *since));
        if let Some(since) = out {
            let text = format!(
                "node {ix} opens a stream across hubs, {} ms after it knew that the registry is out",
                (self.now - since) / MS
            );
            self.fail("M4", text);
        }
    }

    /// A stream finished that was accepted while the registry was known to be
    /// away.
    pub(super) fn note_cached(&mut self, ix: u16, r: &StreamRecord) {
        let total = r.total.as_nanos() as u64;
        let out = self.check.nodes.get(&ix).and_then(|g| g.unhealthy_since);
        if r.cause == Cause::Finished
            && !r.local
            && r.owner.is_some()
            && out.is_some_and(|t| t + total < self.now)
            && self.hub_plan(ix).is_some_and(|p| p.cached)
        {
            self.marks.hit(Mark::CachedServed);
        }
    }

    /// A hub says that the token of an attachment ran out.
    pub(super) fn ghost_token_expired(&mut self, ix: u16, agent: &AgentId) {
        let at = self.nodes[usize::from(ix)].clock(self.now);
        if let Some(g) = self.check.nodes.get_mut(&ix) {
            g.expired.insert(agent.clone(), at);
        }
    }

    /// It has another one now, or is gone.
    pub(super) fn ghost_token_anew(&mut self, ix: u16, agent: &str) {
        if let Some(g) = self.check.nodes.get_mut(&ix) {
            g.expired.retain(|id, _| id.as_str() != agent);
        }
    }

    /// I4: an attachment is over. For its token only when that is the rule, and
    /// not before its time.
    pub(super) fn ghost_token_end(&mut self, ix: u16, agent: &AgentId, cause: CloseCode) {
        let at = self.nodes[usize::from(ix)].clock(self.now);
        let expired = self.check.nodes.get(&ix).and_then(|g| g.expired.get(agent)).copied();
        let rule = self.hub_plan(ix).map(|p| p.on_expiry);
        self.ghost_token_anew(ix, agent.as_str());
        if cause != CloseCode::Auth || self.may_outgrow_its_token(agent) {
            return;
        }
        let right = match rule {
            Some(ExpiryPlan::Keep) | None => false,
            Some(ExpiryPlan::Cut) => expired.is_some(),
            Some(ExpiryPlan::Drain(ms)) => expired.is_some_and(|e| at >= e.after(Duration::from_millis(ms))),
        };
        if right {
            return self.marks.hit(Mark::TokenCut);
        }
        let text =
            format!("node {ix} ends the tunnel of {agent} for its token at {at:?}: {rule:?}, ran out {expired:?}");
        self.fail("I4", text);
    }

    /// Whether an agent may say on a live tunnel that it exposes what a narrower
    /// token of its own does not name: the tunnel ends for that too.
    fn may_outgrow_its_token(&self, agent: &AgentId) -> bool {
        let named = |(n, _): &(usize, &AgentPlan)| agent.as_str() == format!("agent-{n}");
        let Some((n, plan)) = self.plan.agents.iter().enumerate().find(named) else { return false };
        let speaks = plan.check_ns > 0 || self.is_rewired(self.node_of(At::Agent(n as u8)));
        speaks && plan.token_ns > 0 && plan.scope.as_ref().is_some_and(|s| s.len() > 1)
    }

    /// I4: what a token that ran out leaves behind ends when the rule says so.
    pub(super) fn check_expired(&mut self) {
        let found = self.check.nodes.iter().find_map(|(ix, g)| {
            let within = match self.hub_plan(*ix)?.on_expiry {
                ExpiryPlan::Keep => return None,
                ExpiryPlan::Cut => 0,
                ExpiryPlan::Drain(ms) => ms * MS,
            };
            let late = Duration::from_nanos(within + SLACK + 2 * self.plan.late_timers_ns);
            let at = self.nodes[usize::from(*ix)].clock(self.now);
            let calm = self.calm(*ix).is_some_and(|since| self.now - since > within + SLACK);
            let (agent, since) = g.expired.iter().find(|(_, since)| calm && at > since.after(late))?;
            Some(format!("node {ix} keeps the tunnel of {agent}, whose token ran out at {since:?}, at {at:?}"))
        });
        if let Some(text) = found {
            self.fail("I4", text);
        }
    }
}

//! B5 of the registry: what a hub that is gone left there is swept. Entries of
//! runs that hold no lease, leases that ran out and agents announced for a
//! connector without being attached anywhere are seen out by the hubs that live,
//! three to four leases apart.
//!
//! Must not know which hub sweeps.

use std::collections::BTreeMap;

use nowconnect_core::config::Mode;
use nowconnect_core::id::{AgentId, Incarnation, Name};
use nowconnect_core::time::Instant;

use crate::node::connector;
use crate::plan::MS;
use crate::world::World;

/// A hub sweeps again after at most so many leases.
const SWEPT_EVERY: u64 = 4;
/// On top of that: its request, late timers.
const SLACK: u64 = 3000 * MS;

/// What nobody needs any more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    /// An attachment at a run that holds no lease.
    Attachment(AgentId, Name, Incarnation),
    /// A lease that ran out.
    Lease(Name),
    /// An agent in the index of a connector that is attached nowhere.
    Announced(Name, AgentId),
}

/// Since when each thing is left there.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    since: BTreeMap<Left, u64>,
    /// Since when somebody has been there to sweep without anything in its way.
    swept_from: Option<u64>,
    /// When the registry failed last, as far as anybody looked.
    failed: u64,
}

impl World {
    fn left(&self) -> Vec<Left> {
        let (registry, wall) = (self.registry.primary(), self.registry.wall_millis(Instant::from_nanos(self.now)));
        let live = |replica: &Name| registry.lease(replica).filter(|(_, end)| wall < *end).map(|(run, _)| run);
        let held = registry.attachments().filter_map(|(agent, replica)| {
            let (run, _) = registry.attachment(agent, replica)?;
            (live(replica) != Some(run)).then(|| Left::Attachment(agent.clone(), replica.clone(), run))
        });
        let mut left: Vec<Left> = held.collect();
        for n in 0..self.plan.hubs.len() {
            let replica = crate::node::name(&format!("hub-{n}"));
            if registry.lease(&replica).is_some() && live(&replica).is_none() {
                left.push(Left::Lease(replica));
            }
        }
        for (n, plan) in self.plan.agents.iter().enumerate() {
            let Ok(agent) = AgentId::new(&format!("agent-{n}")) else { continue };
            if registry.attachments().any(|(a, _)| *a == agent) {
                continue;
            }
            let names = plan.connectors.iter().map(|c| connector(c.0));
            left.extend(names.filter(|c| registry.is_announced(c, &agent)).map(|c| Left::Announced(c, agent.clone())));
        }
        left
    }

    /// Whether a hub runs that sweeps: undisturbed, with the registry at hand.
    fn sweeper(&self) -> Option<u64> {
        let of = |ix: u16| {
            let node = &self.nodes[usize::from(ix)];
            let hub = node.hub().filter(|h| h.mode() != Mode::Off && !h.control().is_draining())?;
            let g = self.check.nodes.get(&ix).filter(|g| g.unhealthy_since.is_none() && !g.fenced && !g.flipped)?;
            (hub.mode() != Mode::Off && !self.is_twin(ix)).then_some(())?;
            Some(self.calm(ix)?.max(g.healthy_since).max(node.started))
        };
        let there = (0..self.plan.hubs.len() as u16).filter_map(of).min()?;
        (!self.registry.is_faulty()).then_some(there.max(self.check.registry_hurt))
    }

    fn swept_within(&self) -> u64 {
        self.plan.timers.lease * SWEPT_EVERY + SLACK + 4 * self.plan.late_timers_ns
    }

    /// B5: what is left for longer than a sweep takes.
    pub(super) fn check_leftovers(&mut self) {
        let (now, left, sweeper, within) = (self.now, self.left(), self.sweeper(), self.swept_within());
        let known = &mut self.check.leftovers;
        known.since.retain(|l, _| left.contains(l));
        for l in left {
            known.since.entry(l).or_insert(now);
        }
        if self.registry.is_faulty() {
            known.failed = now;
        }
        let failed = known.failed;
        known.swept_from = sweeper.map(|from| from.max(failed));
        let Some(from) = known.swept_from else { return };
        let due = known.since.iter().find(|(_, since)| now > from.max(**since) + within);
        if let Some((left, since)) = due {
            let text = format!("the registry keeps {left:?} for {} ms, with hubs there to sweep", (now - since) / MS);
            self.fail("B5", text);
        }
    }

    /// When what is left must be gone, if anything is and somebody sweeps.
    pub(super) fn leftovers_until(&self) -> Option<u64> {
        let known = &self.check.leftovers;
        let since = known.since.values().max()?;
        Some((*since).max(known.swept_from?) + self.swept_within())
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
    fn what_nobody_sweeps_is_noticed_and_what_is_held_is_not() {
        let plan = crate::run::plan(1, Profile::named("registry-out").expect("a profile"), Level::L0);
        let mut world = World::new(plan, Tape::from_seed(1), Trace::default());
        world.run();
        assert_eq!(world.violation, None);
        assert_eq!((world.left(), world.leftovers_until()), (Vec::new(), None));
        // As if the hubs had died: their leases run out.
        world.now += world.plan.timers.lease + 1000 * MS;
        let left = world.left();
        assert!(left.iter().any(|l| matches!(l, Left::Attachment(..))), "{left:?}");
        assert!(left.iter().any(|l| matches!(l, Left::Lease(_))), "{left:?}");
        world.check_leftovers();
        assert_eq!(world.violation, None, "it was only just left");
        assert_eq!(world.leftovers_until(), Some(world.now + world.swept_within()));
        world.now += world.swept_within() + MS;
        world.check_leftovers();
        assert_eq!(world.violation.map(|v| v.id).as_deref(), Some("B5"));
    }
}

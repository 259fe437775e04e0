//! Two live hubs with one replica id (X5): the registry lets one of them hold
//! the lease, and the other one hears of it and says so. What they may do to
//! streams and attachments is asked by the other oracles as ever (O1, O3, O7,
//! S); links and tunnels are asked for when there is one of them again (L2, L4).

use crate::marks::Mark;
use crate::plan::{MS, ModePlan};
use crate::world::World;

/// Renewals come every second, each with its time-out.
const RENEWED_WITHIN: u64 = 4000 * MS;

/// A hub that lives twice.
#[derive(Debug)]
pub(crate) struct Pair {
    hub: u8,
    nodes: [u16; 2],
    since: u64,
    /// One of them said that the other holds the lease.
    known: bool,
    over: bool,
}

impl World {
    /// A hub lives twice from now on.
    pub(crate) fn ghost_twins(&mut self, hub: u8, twin: u16) {
        let pair = Pair { hub, nodes: [u16::from(hub), twin], since: self.now, known: false, over: false };
        self.check.twins.push(pair);
    }

    /// And no more.
    pub(crate) fn ghost_twins_over(&mut self, hub: u8, twin: u16) {
        for pair in self.check.twins.iter_mut().filter(|p| p.nodes == [u16::from(hub), twin]) {
            pair.over = true;
        }
    }

    /// A hub says that another run of it holds its lease.
    pub(super) fn ghost_fenced(&mut self, ix: u16) {
        let mut met = false;
        for pair in self.check.twins.iter_mut().filter(|p| !p.over && p.nodes.contains(&ix)) {
            met |= !std::mem::replace(&mut pair.known, true);
        }
        if met {
            self.marks.hit(Mark::TwinFenced);
        }
    }

    /// Whether a node is, or was a moment ago, one of two with its name.
    pub(super) fn is_twin(&self, ix: u16) -> bool {
        self.check.twins.iter().any(|p| p.nodes.contains(&ix))
    }

    /// X5: with the registry answering both, one of two hears of the other.
    pub(super) fn check_twins(&mut self) {
        let found = self.check.twins.iter().find(|p| {
            let mode = self.nodes[usize::from(p.hub)].mode.unwrap_or(self.plan.hubs[usize::from(p.hub)].mode);
            let both = p.nodes.map(|n| {
                let g = self.check.nodes.get(&n)?;
                let calm = self.calm(n)?;
                let answered = g.unhealthy_since.is_none();
                answered.then_some(calm.max(g.healthy_since))
            });
            let [Some(a), Some(b)] = both else { return false };
            let since = p.since.max(a).max(b).max(self.check.quiet_from.min(self.now));
            let late = RENEWED_WITHIN + 4 * self.plan.late_timers_ns;
            mode != ModePlan::Off && !p.known && !p.over && self.now - since > late
        });
        if let Some(pair) = found {
            let text = format!(
                "two hubs live as hub-{} since {} ms and neither says so",
                pair.hub,
                (self.now - pair.since) / MS
            );
            self.fail("O5", text);
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
    fn twins_that_say_nothing_of_each_other_are_noticed() {
        let plan = crate::run::plan(1, Profile::named("registry-out").expect("a profile"), Level::L0);
        let mut world = World::new(plan, Tape::from_seed(1), Trace::default());
        world.run();
        assert_eq!(world.violation, None);
        world.ghost_twins(0, 1);
        world.ghost_fenced(1);
        world.now += 60_000 * MS;
        world.check_twins();
        assert_eq!(world.violation, None, "one of them said so");
        assert_eq!(world.marks.count(Mark::TwinFenced), 1);
        world.check.twins.clear();
        world.ghost_twins(0, 1);
        world.now += 60_000 * MS;
        world.check_twins();
        assert_eq!(world.violation.take().map(|v| v.id).as_deref(), Some("O5"));
        world.ghost_twins_over(0, 1);
        world.check_twins();
        assert_eq!(world.violation, None, "it is over");
    }
}

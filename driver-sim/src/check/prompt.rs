//! M4: nobody waits for the registry. A client that needs another hub is asked
//! for, or refused, within a tenth of a second, whether the registry answers, is
//! known to be out or has just fallen silent.
//!
//! Must not know what is asked of the registry.

use nowconnect_core::error::RstCode;
use nowconnect_core::observed::{Cause, StreamRecord};

use crate::faults::At;
use crate::plan::MS;
use crate::world::World;

/// Whom to ask is known by then, or nobody is.
const WITHIN: u64 = 100 * MS;

impl World {
    /// How long a hub may take; `None`: its clients wait for something else.
    fn decides_within(&self, ix: u16) -> Option<u64> {
        let At::Hub(n) = self.nodes[usize::from(ix)].at else { return None };
        let hub = &self.plan.hubs[usize::from(n)];
        (!hub.first_byte).then_some(WITHIN + self.plan.late_timers_ns * 2 + hub.note_delay_ns * 8)
    }

    /// A client was refused and never asked for. Called for a record of a hub
    /// that ran undisturbed.
    pub(super) fn judge_prompt(&mut self, ix: u16, r: &StreamRecord, total: u64) {
        if self.decides_within(ix).is_none_or(|within| total <= within) {
            return;
        }
        let refused = matches!(r.cause, Cause::Reset(RstCode::NoRoute | RstCode::RegistryDown));
        // Who came for a hostile agent may have been asked for there.
        let known = r.listener.0 < self.plan.connectors;
        if known && refused && r.open.is_none() && r.cid.0 == 0 && !self.was_tried(r) {
            let text = format!("node {ix} refused a client ({:?}) after {} ms, asked nobody", r.cause, total / MS);
            self.fail("M4", text);
        }
    }

    /// A client that came then has its first candidate.
    pub(super) fn judge_waited(&mut self, ix: u16, client: u32, came: u64) {
        let Some(within) = self.decides_within(ix) else { return };
        let waited = self.now - came;
        if waited > within && self.calm(ix).is_some_and(|since| since <= came) {
            let text = format!("node {ix} asked nobody for client {client} for {} ms", waited / MS);
            self.fail("M4", text);
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
    fn a_client_that_nobody_is_asked_for_in_time_is_noticed() {
        let plan = crate::run::plan(1, Profile::named("calm").expect("a profile"), Level::L0);
        let mut world = World::new(plan, Tape::from_seed(1), Trace::default());
        world.plan.hubs[0].first_byte = false;
        world.run();
        assert_eq!(world.violation, None);
        let within = world.decides_within(0).expect("its clients are opened when they come");
        world.judge_waited(0, 1, world.now - within);
        assert_eq!(world.violation, None);
        world.plan.hubs[0].first_byte = true;
        world.judge_waited(0, 1, world.now - within - 1);
        assert_eq!(world.violation, None, "it may have said nothing so far");
        world.plan.hubs[0].first_byte = false;
        world.judge_waited(0, 1, world.now - within - 1);
        assert_eq!(world.violation.map(|v| v.id).as_deref(), Some("M4"));
    }
}

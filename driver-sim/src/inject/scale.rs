//! Hubs that leave for good (X6): drained like any other, and then gone. The
//! healing leaves them out. Those that come late have a time in their plan. Must
//! not judge what comes of it.

use crate::event::{Event, Undo};
use crate::faults::At;
use crate::marks::Mark;
use crate::world::{Phase, World};

impl World {
    /// A hub is told to leave; it does not come back.
    pub(super) fn retire(&mut self, ix: u16, lameduck_ms: u64, timeout_ms: u64, alone: bool, lasts: u64) {
        // The last one stays, whatever a plan that was made small says.
        let stays = |n: usize| n != usize::from(ix) && self.nodes[n].is_up() && !self.nodes[n].leaves_for_good;
        let node = &self.nodes[usize::from(ix)];
        if !node.is_up() || node.paused || !(0..self.plan.hubs.len()).any(stays) {
            return;
        }
        self.nodes[usize::from(ix)].leaves_for_good = true;
        if lasts > 0 {
            self.drain(ix, lameduck_ms, timeout_ms, alone);
        }
        self.after(lasts, Event::Undo(Undo::Gone { node: ix }));
    }

    /// It is gone now, also if it died meanwhile or sleeps.
    pub(super) fn gone(&mut self, ix: u16) {
        if self.phase == Phase::Liveness {
            return;
        }
        if let At::Hub(n) = self.nodes[usize::from(ix)].at
            && self.plan.hubs[usize::from(n)].start_ns > 0
            && self.nodes[usize::from(ix)].drained
        {
            self.marks.hit(Mark::Scaled);
        }
        self.stop(ix);
        self.crash(ix, false);
        self.nodes[usize::from(ix)].retired = true;
    }
}

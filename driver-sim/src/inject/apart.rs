//! Faults that set a part of the world apart from the rest: a shard that stands
//! still (P7), a hub at another registry (X7), two groups of nodes that lose each
//! other (N7). Must not judge what comes of it.

use std::collections::VecDeque;

use nowconnect_core::shard::Addressee;

use crate::event::{Event, Undo};
use crate::faults::At;
use crate::marks::Mark;
use crate::world::World;

impl World {
    fn shards_of(&self, ix: u16) -> u8 {
        match self.nodes[usize::from(ix)].at {
            At::Hub(n) => self.plan.hubs[usize::from(n)].shards,
            At::Agent(_) => 0,
        }
    }

    /// A shard of a split hub stands still: what is for it is put aside by
    /// [`Self::stalls`]. Its timers go on with control's, as the machine has one
    /// deadline for all.
    pub(super) fn stall(&mut self, ix: u16, shard: u8, lasts: u64) {
        let shards = self.shards_of(ix);
        if shards == 0 || !self.nodes[usize::from(ix)].is_up() {
            return;
        }
        let (shard, node) = (shard % shards, &mut self.nodes[usize::from(ix)]);
        node.stalls.push(shard);
        let run = node.run;
        self.after(lasts, Event::Undo(Undo::Stall { node: ix, run, shard }));
    }

    /// Which shard an event is for, if it is for one.
    fn shard_of(&self, ix: u16, event: &Event) -> Option<u8> {
        if let Event::Note { to: Addressee::Shard(n), .. } = event {
            Some(*n)
        } else if let Event::Sock { sock } | Event::SockAborted { sock } = event {
            self.socks[*sock as usize].stream.map(|s| s.parts().0)
        } else if let Event::Client { .. } = event {
            // By the key that its socket will have.
            Some((self.socks.len() % usize::from(self.shards_of(ix).max(1))) as u8)
        } else {
            None
        }
    }

    /// Puts an event of a shard that stands still aside; order is kept.
    pub(crate) fn stalls(&mut self, ix: u16, event: Event) -> Option<Event> {
        if self.nodes[usize::from(ix)].stalls.is_empty() {
            return Some(event);
        }
        let shard = self.shard_of(ix, &event);
        let node = &mut self.nodes[usize::from(ix)];
        match shard.filter(|s| node.stalls.contains(s)) {
            Some(shard) => {
                node.stalled.push_back((shard, event));
                None
            }
            None => {
                node.beside_stall = true;
                Some(event)
            }
        }
    }

    /// A shard goes on, with what waited for it.
    pub(super) fn unstall(&mut self, ix: u16, run: u32, shard: u8) {
        let node = &mut self.nodes[usize::from(ix)];
        let Some(at) = node.stalls.iter().position(|s| *s == shard).filter(|_| node.run == run) else { return };
        node.stalls.remove(at);
        if node.stalls.contains(&shard) {
            return;
        }
        let beside = std::mem::take(&mut node.beside_stall);
        let (waited, others): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut node.stalled).into_iter().partition(|(s, _)| *s == shard);
        node.stalled = others;
        if beside && !waited.is_empty() {
            self.marks.hit(Mark::ShardStalled);
        }
        self.line(None, || format!("shard {shard} of node {ix} goes on, {} events waited", waited.len()));
        self.ghost_disturbed(ix);
        for (_, event) in waited {
            self.dispatch(event);
        }
    }

    /// All shards of a node go on.
    pub(super) fn go_on(&mut self, ix: u16) {
        let run = self.nodes[usize::from(ix)].run;
        while let Some(shard) = self.nodes[usize::from(ix)].stalls.first().copied() {
            self.unstall(ix, run, shard);
        }
    }

    /// A hub talks to another registry from now on, empty when the first hub
    /// comes there.
    pub(super) fn point_elsewhere(&mut self, ix: u16, restart: bool, lasts: u64) {
        if self.nodes[usize::from(ix)].paused || self.registry.is_elsewhere(usize::from(ix)) {
            return;
        }
        if restart {
            self.stop(ix);
        }
        let now = self.wall();
        self.check.registry_hurt = self.now;
        self.registry.point_elsewhere(now, usize::from(ix), &mut self.registry_draws);
        if restart {
            self.boot(ix);
        }
        self.after(lasts, Event::Undo(Undo::Elsewhere { node: ix, restart }));
    }

    /// And to its own again.
    pub(super) fn point_back(&mut self, ix: u16, restart: bool) {
        let restart = restart && self.nodes[usize::from(ix)].is_up() && !self.nodes[usize::from(ix)].paused;
        if restart {
            self.stop(ix);
        }
        let now = self.wall();
        self.check.registry_hurt = self.now;
        self.registry.point_back(now, usize::from(ix), &mut self.registry_draws);
        if restart {
            self.boot(ix);
        }
    }

    /// Two groups of nodes lose each other.
    pub(super) fn partition(&mut self, order: u64, lasts: u64) {
        let mut lane = self.tape.lane("partition", order);
        let sides: Vec<bool> = (0..self.nodes.len()).map(|_| lane.chance(1, 2)).collect();
        let mut hubs = [false; 2];
        for (a, here) in sides.iter().enumerate() {
            if self.nodes[a].is_hub() {
                hubs[usize::from(*here)] = true;
            }
            for (b, _) in sides.iter().enumerate().filter(|(_, there)| *there != here) {
                self.block(a as u16, b as u16, lasts);
            }
        }
        if hubs == [true; 2] {
            self.marks.hit(Mark::Partitioned);
        }
    }
}

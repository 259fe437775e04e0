//! How connections break: cuts, blocks and their end, processes that die, and
//! the kernel's patience. The same for both levels except where it says so.

use super::USER_TIMEOUT_NS;
use super::pipe::Item;
use crate::event::Event;
use crate::faults::CutHow;
use crate::marks::Mark;
use crate::plan::{Level, MS};
use crate::world::World;

impl World {
    /// `TCP_USER_TIMEOUT`: what was written is not acknowledged for too long.
    pub(crate) fn on_give_up(&mut self, conn: u32, end: u8) {
        let end = usize::from(end);
        let c = &self.conns[conn as usize];
        let since = [c.pipes[end].stuck_since, c.pipes[end].shut_since].into_iter().flatten().min();
        let late = since.is_some_and(|t| self.now >= t + USER_TIMEOUT_NS);
        if c.up[end] && (late || c.closing[end].is_some()) {
            self.line(None, || format!("conn {conn} times out at end {end}"));
            match self.plan.level {
                Level::L0 => self.disconnect(conn, end),
                Level::L1 => self.give_up_bytes(conn, end),
            }
        } else if c.up[end]
            && let Some(t) = since
        {
            self.at(t + USER_TIMEOUT_NS, Event::GiveUp { conn, end: end as u8 });
        }
    }

    /// What a block held back goes on.
    pub(crate) fn release(&mut self, from: u16, to: u16) {
        for conn in 0..self.conns.len() {
            for end in 0..2 {
                let c = &mut self.conns[conn];
                if c.nodes[end] != from || c.nodes[1 - end] != to || c.pipes[end].stuck == 0 {
                    continue;
                }
                let stuck = std::mem::take(&mut c.pipes[end].stuck);
                c.pipes[end].stuck_since = None;
                for _ in 0..stuck {
                    let pipe = &mut self.conns[conn].pipes[end];
                    pipe.last_at = pipe.last_at.max(self.now + MS) + 1;
                    let at = pipe.last_at;
                    self.at(at, Event::Deliver { conn: conn as u32, to: 1 - end as u8 });
                }
            }
        }
    }

    /// Breaks every connection between two nodes (or of one).
    pub(crate) fn cut(&mut self, a: u16, b: Option<u16>, how: CutHow) {
        for conn in 0..self.conns.len() as u32 {
            let c = &self.conns[conn as usize];
            let hit = match b {
                Some(b) => c.nodes == [a, b] || c.nodes == [b, a],
                None => c.nodes.contains(&a),
            };
            if !hit || c.rogue.is_some() || !(c.up[0] || c.up[1]) {
                continue;
            }
            let first = usize::from(c.nodes[0] != a);
            self.cut_one(conn, first, how);
        }
    }

    /// A proxy before a hub cuts what was idle for so long.
    pub(crate) fn cut_idle(&mut self, hub: u16, idle_ns: u64, how: CutHow) {
        for conn in 0..self.conns.len() as u32 {
            let c = &self.conns[conn as usize];
            if c.nodes[1] == hub && c.up == [true; 2] && self.now >= c.active_at + idle_ns {
                self.marks.hit(Mark::IdleCut);
                self.cut_one(conn, 1, how);
            }
        }
    }

    /// The proxy before a hub loses every connection that came through it.
    pub(crate) fn cut_accepted(&mut self, hub: u16, how: CutHow) {
        for conn in 0..self.conns.len() as u32 {
            let c = &self.conns[conn as usize];
            if c.nodes[1] == hub && c.rogue.is_none() && (c.up[0] || c.up[1]) {
                self.marks.hit(Mark::IngressRestarted);
                self.cut_one(conn, 1, how);
            }
        }
    }

    /// Breaks a connection; of one that only one end notices, `first` does.
    fn cut_one(&mut self, conn: u32, first: usize, how: CutHow) {
        self.line(None, || format!("conn {conn} is cut ({how:?})"));
        match how {
            CutHow::Fin => {
                for end in 0..2 {
                    if self.conns[conn as usize].up[end] {
                        self.transmit(conn, 1 - end, Item::Fin);
                    }
                }
            }
            CutHow::Rst => {
                for end in 0..2 {
                    let delay = self.net.lane.below(50 * MS);
                    self.after(delay, Event::Reset { conn, to: end });
                }
            }
            CutHow::OneSide => {
                self.kill(conn);
                self.after(0, Event::Reset { conn, to: first as u8 });
            }
            CutHow::Silent => {
                // At L1 one direction may die alone (N4).
                let which = match self.plan.level {
                    Level::L0 => 2,
                    Level::L1 => self.net.lane.below(4) as usize,
                };
                if which < 2 {
                    self.kill_one(conn, which);
                } else {
                    self.kill(conn);
                }
            }
        }
    }

    /// Nothing arrives any more in either direction.
    fn kill(&mut self, conn: u32) {
        for end in 0..2 {
            self.kill_one(conn, end);
        }
    }

    /// Nothing of what `end` writes arrives any more.
    pub(super) fn kill_one(&mut self, conn: u32, end: usize) {
        let pipe = &mut self.conns[conn as usize].pipes[end];
        pipe.dead = true;
        if pipe.bytes > 0 && pipe.stuck_since.is_none() {
            pipe.stuck_since = Some(self.now);
            self.after(USER_TIMEOUT_NS, Event::GiveUp { conn, end: end as u8 });
        }
    }

    /// A process is gone: its kernel closes its connections, or nobody does.
    pub(crate) fn drop_conns(&mut self, ix: u16, silent: bool) {
        for conn in 0..self.conns.len() as u32 {
            for end in 0..2 {
                let c = &mut self.conns[conn as usize];
                if c.nodes[end] != ix || !(c.up[end] || c.ends[end].is_some()) {
                    continue;
                }
                c.up[end] = false;
                if c.rogue.is_some() {
                    continue;
                }
                if silent {
                    self.conns[conn as usize].ends[end] = None;
                    self.kill(conn);
                } else if self.plan.level == Level::L1 {
                    self.close_socket(conn, end);
                } else {
                    let [a, b] = self.conns[conn as usize].nodes;
                    let delay = self.net.latency(a, b);
                    self.after(delay, Event::Reset { conn, to: 1 - end as u8 });
                }
            }
        }
    }
}

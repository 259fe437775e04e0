//! Who belongs to whom: hubs and their links, attachments and what the registry
//! lists.
//!
//! Keeps: of two simultaneous dials one survives (L4); when all is quiet the
//! registry names the hub that holds an attachment, under its fence (O6, L5),
//! and every hub knows that the registry answers (L6). Must not know how a link
//! or a claim comes about.

use nowconnect_core::config::Mode;

use crate::marks::Mark;
use crate::plan::MS;
use crate::world::World;

/// Two refusals this close together concern the same pair of dials.
const TOGETHER: u64 = 2000 * MS;

impl World {
    /// A hub says that a link to its peer is one too many.
    pub(crate) fn said_duplicate(&mut self, conn: u32, end: usize) {
        let c = &self.conns[conn as usize];
        let ([a, b], run) = (c.nodes, c.runs[0]);
        if end == 1 {
            self.check.pace.was_spare(a, run);
        }
        if self.is_twin(a) || self.is_twin(b) {
            return;
        }
        self.marks.hit(if end == 1 { Mark::SimultaneousDialKeptOurs } else { Mark::SimultaneousDialKeptTheirs });
        let now = self.now;
        self.check.duplicates.entry((a.min(b), a.max(b))).or_default()[usize::from(a > b)] = Some(now);
    }

    /// One of the dials did become a link, which broke only now.
    pub(crate) fn link_was_there(&mut self, ix: u16, peer: &str) {
        if let Some(other) = self.nodes.iter().position(|n| n.name == peer) {
            let other = other as u16;
            self.check.duplicates.remove(&(ix.min(other), ix.max(other)));
        }
    }

    fn has_link(&self, a: u16, b: u16) -> bool {
        let name = self.nodes[usize::from(b)].name.as_str();
        self.nodes[usize::from(a)].hub().is_some_and(|hub| {
            hub.control()
                .links(hub.mux())
                .iter()
                .any(|l| l.session.is_some() && l.replica.is_some_and(|r| r.as_str() == name))
        })
    }

    /// L4: both dials were given up for the other one.
    pub(crate) fn check_duplicates(&mut self) {
        let mut found = None;
        for ((a, b), said) in &self.check.duplicates {
            let [Some(x), Some(y)] = *said else { continue };
            let since = x.min(y);
            let same = [*a, *b].into_iter().all(|n| {
                let n = &self.nodes[usize::from(n)];
                n.is_up() && !n.paused && n.started < since
            });
            if x.abs_diff(y) < TOGETHER && same && !self.has_link(*a, *b) && !self.has_link(*b, *a) {
                found = Some(format!("hub-{a} and hub-{b} each gave up a dial for the other one and have no link"));
            }
        }
        let now = self.now;
        self.check.duplicates.retain(|_, said| said.iter().flatten().any(|at| now - at < TOGETHER));
        if let Some(text) = found {
            self.fail("L4", text);
        }
    }

    /// O6, L5, L6: what the registry says when all is quiet.
    pub(crate) fn check_registry(&mut self) {
        let listed = self.registry.snapshot(nowconnect_core::time::Instant::from_nanos(self.now));
        for ix in 0..self.plan.hubs.len() {
            let Some(hub) = self.nodes[ix].hub().filter(|h| h.mode() != Mode::Off) else { continue };
            if !hub.control().registry_healthy() {
                return self.fail("L6", format!("hub-{ix} counts the registry as out long after the healing"));
            }
            if !self.counts_registry_ready(ix as u16) {
                return self.fail("L6", format!("hub-{ix} still looks after what it holds long after the healing"));
            }
            // Also what a fault took from the registry, or was swept after a
            // lease ended, is claimed again by now, and nothing is provisional.
            let missing = hub.control().tunnels().find(|t| {
                let up = hub.mux().get(t.session).is_some_and(|e| e.conn.is_some());
                up && !(t.firm
                    && listed.iter().any(|l| l.agent_id == *t.agent_id && l.hub == *hub.run() && l.fence == t.fence))
            });
            if let Some(t) = missing {
                let text = format!(
                    "hub-{ix} holds {} under {:?}, {}; the registry lists {listed:?}",
                    t.agent_id,
                    t.fence,
                    if t.firm { "firm" } else { "provisional" }
                );
                return self.fail("O6", text);
            }
            // And what was released, in vain or late, is gone. An agent that is
            // away may be listed under a fence of before; it is claimed with its
            // return.
            let left = listed
                .iter()
                .find(|l| l.hub == *hub.run() && !hub.control().tunnels().any(|t| *t.agent_id == l.agent_id));
            if let Some(l) = left {
                let text = format!(
                    "the registry lists {} at hub-{ix} under {:?}, which does not hold it",
                    l.agent_id, l.fence
                );
                return self.fail("L5", text);
            }
        }
    }
}

//! The pace of dials, seen from outside (L8): whoever lost a connection that
//! had lasted dials again at once, nobody dials without end, and dials are
//! spread: no three of a run come after the same time, to the nanosecond. Counts
//! dials and connections; must not look into a machine.

use std::collections::{BTreeMap, VecDeque};

use nowconnect_core::id::TargetIx;

use crate::faults::At;
use crate::plan::MS;
use crate::world::World;

/// A connection that was up for so long did last, whatever the first delay.
const LASTED: u64 = 3000 * MS;
/// The dial after it comes within 30 % of the first delay; with some slack.
const PROMPT: u64 = 400 * MS;
/// The time that dials of one target are counted over.
const WINDOW: u64 = 10_000 * MS;
/// Dials of one target in that time. Connections that last a second each, two
/// failures between them, are sixteen.
const DIALS_MAX: usize = 20;

/// Dials that are spread do not come so often after the same time.
const ALIKE: u32 = 3;

/// What a process did about one of its targets.
#[derive(Debug, Default)]
struct Dials {
    /// The latest ones.
    recent: VecDeque<u64>,
    /// The connection of the last one.
    conn: u32,
    /// Since when that was welcome, and when it was gone.
    welcomed: Option<u64>,
    gone: Option<u64>,
    /// When it was not connected at all.
    failed: Option<u64>,
    /// The peer said why it ends, and perhaps when to come back.
    dismissed: bool,
}

impl Dials {
    /// A dial: how many there were in the window.
    fn count(&mut self, now: u64) -> usize {
        self.recent.push_back(now);
        while self.recent.front().is_some_and(|at| now - at >= WINDOW) {
            self.recent.pop_front();
        }
        self.recent.len()
    }

    /// When the connection before was lost, if it had lasted and nobody asked
    /// for a pause.
    fn lost_after_long(&self) -> Option<u64> {
        let (from, to) = (self.welcomed?, self.gone?);
        (!self.dismissed && to - from >= LASTED).then_some(to)
    }
}

/// The dials of all processes.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    dials: BTreeMap<(u16, u32, TargetIx), Dials>,
    /// When a dial between two nodes was last welcome.
    welcomed: BTreeMap<(u16, u16), u64>,
    /// How often dials between a process and a node of the plan, or another by
    /// its name, were welcome, whoever made them.
    met: BTreeMap<(u16, u32, At), u64>,
    /// Dials of a process that were one too many: the link is there.
    spare: BTreeMap<(u16, u32), u64>,
    /// How often a dial came so long after what it makes up for, to the
    /// nanosecond.
    gaps: BTreeMap<u64, u32>,
}

const fn pair(a: u16, b: u16) -> (u16, u16) {
    if a < b { (a, b) } else { (b, a) }
}

impl Pace {
    /// When a connection was dialled, if it is the last one of its process to
    /// its target.
    pub(super) fn dialled(&self, from: u16, conn: u32) -> Option<u64> {
        let of = |((node, ..), d): (&(u16, u32, TargetIx), &Dials)| {
            (*node == from && d.conn == conn).then(|| d.recent.back().copied())
        };
        self.dials.iter().find_map(of).flatten()
    }

    /// A dial came so long after what it makes up for; whether too many did.
    fn is_alike(&mut self, gap: u64) -> bool {
        let n = self.gaps.entry(gap).or_default();
        *n += 1;
        *n >= ALIKE
    }

    /// A process heard that a dial of its own was one too many.
    pub(super) fn was_spare(&mut self, node: u16, run: u32) {
        *self.spare.entry((node, run)).or_default() += 1;
    }

    /// How often a process met others again, each after the first time, or may
    /// have believed so: of several links whose addresses it does not know one
    /// was lost, and the others are dialled in vain.
    pub(super) fn reconnects(&self, node: u16, run: u32) -> u64 {
        let own = self.met.range((node, run, At::Hub(0))..=(node, run, At::Agent(u8::MAX)));
        let spare = self.spare.get(&(node, run)).copied().unwrap_or(0);
        own.map(|(_, n)| n.saturating_sub(1)).sum::<u64>() + spare
    }
}

impl World {
    fn dials_of(&mut self, conn: u32) -> Option<&mut Dials> {
        let c = &self.conns[conn as usize];
        let key = (c.nodes[0], c.runs[0], c.target);
        self.check.pace.dials.get_mut(&key).filter(|d| d.conn == conn)
    }

    /// A dialler read WELCOME.
    pub(super) fn pace_welcomed(&mut self, conn: u32) {
        let c = &self.conns[conn as usize];
        let ([a, b], now) = (c.nodes, self.now);
        for (node, run, other) in [(a, c.runs[0], b), (b, c.runs[1], a)] {
            let other = self.nodes[usize::from(other)].at;
            *self.check.pace.met.entry((node, run, other)).or_default() += 1;
        }
        self.check.pace.welcomed.insert(pair(a, b), now);
        if let Some(d) = self.dials_of(conn) {
            d.welcomed = Some(now);
        }
    }

    /// A dialler read GOAWAY.
    pub(super) fn pace_dismissed(&mut self, conn: u32) {
        if let Some(d) = self.dials_of(conn) {
            d.dismissed = true;
        }
    }

    /// When a dial between two nodes was last welcome.
    pub(super) fn welcomed(&self, a: u16, b: u16) -> u64 {
        self.check.pace.welcomed.get(&pair(a, b)).copied().unwrap_or(0)
    }

    /// A dialler's connection is gone, as far as it is told.
    pub(crate) fn pace_gone(&mut self, conn: u32) {
        let now = self.now;
        if let Some(d) = self.dials_of(conn) {
            d.gone.get_or_insert(now);
        }
    }

    /// A dial came to nothing.
    pub(crate) fn pace_failed(&mut self, from: u16, run: u32, target: TargetIx) {
        let now = self.now;
        if let Some(d) = self.check.pace.dials.get_mut(&(from, run, target)) {
            d.failed.get_or_insert(now);
        }
    }

    /// L8: a process dials.
    pub(crate) fn pace_dial(&mut self, from: u16, to: u16, target: TargetIx, conn: u32) {
        let now = self.now;
        let node = &self.nodes[usize::from(from)];
        let (run, calm) = (node.run, self.calm(from));
        // Of several hubs an agent may want another one first.
        let wants = !self.is_rewired(from)
            && match node.at {
                // Off, or about to be: its links are not wanted.
                At::Hub(_) => self.check.nodes.get(&from).is_none_or(|g| !g.flipped),
                At::Agent(n) => {
                    let a = &self.plan.agents[usize::from(n)];
                    a.hubs.len() <= usize::from(a.parallel)
                }
            };
        let late = 2 * self.plan.late_timers_ns;
        let between = self.check.pace.welcomed.get(&pair(from, to)).copied();
        let d = self.check.pace.dials.entry((from, run, target)).or_default();
        let dialled = d.recent.back().copied();
        let many = d.count(now);
        let lost = d.lost_after_long().filter(|_| d.welcomed == between);
        // Another connection of the two is none of this one's business.
        let alone = between.is_none_or(|at| d.welcomed.or(dialled).is_some_and(|mine| at <= mine));
        let since = d.gone.or(d.failed).filter(|_| !d.dismissed && alone);
        (d.conn, d.welcomed, d.gone, d.failed, d.dismissed) = (conn, None, None, None, false);
        if many > DIALS_MAX {
            let text = format!("node {from} dials node {to} {many} times within {} s", WINDOW / MS / 1000);
            return self.fail("L8", text);
        }
        let undisturbed = |from_then: u64| wants && calm.is_some_and(|since| since <= from_then);
        // Of two hubs with one name the one that goes may be the one that was heard of.
        let one = !self.is_twin(from) && !self.is_twin(to);
        if let Some(gap) = since.filter(|since| one && undisturbed(*since)).map(|since| now - since)
            && self.check.pace.is_alike(gap)
        {
            let text = format!("node {from} dials node {to}: {ALIKE} dials came after {gap} ns, to the dot");
            return self.fail("L8", text);
        }
        if let Some(lost) = lost
            && one
            && undisturbed(lost)
            && now - lost > PROMPT + late
        {
            let text = format!(
                "node {from} lost a connection to node {to} that had lasted, and dials again only after {} ms",
                (now - lost) / MS
            );
            self.fail("L8", text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dials_that_come_after_one_time_are_noticed_and_others_are_not() {
        let mut pace = Pace::default();
        assert!(!(0..1000).any(|n| pace.is_alike(n)), "spread");
        assert_eq!([pace.is_alike(7), pace.is_alike(7)], [false, true]);
    }

    #[test]
    fn a_process_meets_each_of_its_peers_for_the_first_time_once() {
        let mut pace = Pace::default();
        for (node, run, other) in [(0, 1, At::Hub(1)), (0, 1, At::Hub(2)), (0, 1, At::Agent(9)), (0, 2, At::Hub(1))] {
            *pace.met.entry((node, run, other)).or_default() += 1;
        }
        assert_eq!([pace.reconnects(0, 1), pace.reconnects(0, 2), pace.reconnects(1, 1)], [0; 3]);
        *pace.met.entry((0, 1, At::Hub(2))).or_default() += 2;
        assert_eq!([pace.reconnects(0, 1), pace.reconnects(0, 2)], [2, 0]);
        pace.was_spare(0, 2);
        assert_eq!(pace.reconnects(0, 2), 1);
    }

    #[test]
    fn dials_are_counted_over_the_last_ten_seconds() {
        let mut d = Dials::default();
        let counted: Vec<usize> = (0..60).map(|n| d.count(n * 400 * MS)).collect();
        assert_eq!(counted.iter().max(), Some(&25), "one every 400 ms");
        assert!(counted[24] > DIALS_MAX);
        assert_eq!(d.count(100_000 * MS), 1);
    }

    #[test]
    fn only_a_connection_that_lasted_and_was_not_dismissed_is_dialled_at_once() {
        let lost =
            |welcomed, gone, dismissed| Dials { welcomed, gone, dismissed, ..Dials::default() }.lost_after_long();
        assert_eq!(lost(Some(5), Some(5 + LASTED), false), Some(5 + LASTED));
        assert_eq!(lost(Some(5), Some(5 + LASTED), true), None);
        assert_eq!(lost(Some(5), Some(4 + LASTED), false), None);
        assert_eq!(lost(None, Some(LASTED), false), None);
        assert_eq!(lost(Some(5), None, false), None);
    }
}

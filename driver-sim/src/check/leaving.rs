//! Nodes that leave (L10): what a hub may refuse and reset, and when.
//!
//! Keeps: a lame duck takes every client as before; nobody is reset for a drain
//! before its deadline, by the leaving process's own clock; agents that can be
//! attached elsewhere are before their hub takes nothing new. Must not know how
//! a node leaves.

use std::time::Duration;

use nowconnect_core::config::DrainTimes;
use nowconnect_core::error::RstCode;
use nowconnect_core::mux::Input;
use nowconnect_core::observed::DrainStep;
use nowconnect_core::time::Instant;

use crate::actor::{Fate, side};
use crate::faults::{At, Class};
use crate::marks::Mark;
use crate::plan::MS;
use crate::world::World;

/// What an agent needs to attach elsewhere once it is told: its dial and its
/// handshake, a claim with its time-out, and some slack.
const TO_MOVE: u64 = 4000 * MS;
/// In what a process that could has left.
const SLACK: u64 = 2000 * MS;
/// A hub that runs for so long has its links, and its registry.
const SETTLED: u64 = 8000 * MS;

/// A process that leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    begun: u64,
    /// By the process's own clock: from when on it takes nothing new, and until
    /// when it resets nothing.
    closes_at: Instant,
    deadline: Instant,
    /// What its agents have to move in.
    lameduck: u64,
    /// Nothing but drains ever went wrong before it.
    alone: bool,
    /// It takes nothing new.
    closed: bool,
    /// Since when it carries nothing either.
    idle: Option<u64>,
}

impl World {
    /// Nothing went wrong so far but drains.
    pub(crate) fn only_drains(&self) -> bool {
        let other = |c: &&Class| **c != Class::Operate;
        let none = Class::ALL.iter().filter(other).all(|c| self.faults_done[*c as usize] == 0);
        none && self.check.nodes.values().all(|g| !g.flipped && !g.rewired)
    }

    /// A process is told to leave.
    pub(crate) fn drain(&mut self, ix: u16, lameduck_ms: u64, timeout_ms: u64, alone: bool) {
        let node = &self.nodes[usize::from(ix)];
        if !node.is_up() {
            return;
        }
        let at = node.clock(self.now);
        // An agent has no lame duck: who opens hears of it at once.
        let lameduck = if node.is_hub() { lameduck_ms } else { 0 };
        let times =
            DrainTimes { lameduck: Duration::from_millis(lameduck), timeout: Duration::from_millis(timeout_ms) };
        let closes_at = at.after(times.lameduck);
        let drain = Drain {
            begun: self.now,
            closes_at,
            deadline: closes_at.after(times.timeout),
            lameduck: lameduck * MS,
            alone,
            closed: false,
            idle: None,
        };
        // One under way goes on as it was asked for first.
        self.check.drains.entry(ix).or_insert(drain);
        self.input(ix, Input::Drain(times));
    }

    /// Since when a process knows that it leaves.
    pub(super) fn drains_since(&self, ix: u16) -> Option<u64> {
        self.check.drains.get(&ix).map(|d| d.begun)
    }

    /// Whether a process takes nothing new because it leaves.
    pub(super) fn leaves(&self, ix: u16) -> bool {
        let closed = |d: &Drain| d.closed || self.nodes[usize::from(ix)].clock(self.now) >= d.closes_at;
        self.check.drains.get(&ix).is_some_and(closed)
    }

    /// L10: it takes something new: an OPEN of another hub, or one at an agent.
    /// The shards of a split hub may learn later that it is closed.
    pub(crate) fn judge_taken(&mut self, ix: u16) {
        let node = &self.nodes[usize::from(ix)];
        let told = node.hub().is_none_or(|h| h.notes_under_way() == 0);
        if told && self.check.drains.get(&ix).is_some_and(|d| d.closed) {
            let text = format!("{} takes an OPEN, though it takes nothing new any more", node.name);
            self.fail("L10", text);
        }
    }

    /// L10: who leaves and carries nothing any more has left: it does not wait
    /// for its deadline.
    pub(super) fn check_left(&mut self) {
        let now = self.now;
        let late = SLACK + 4 * self.plan.late_timers_ns;
        let mut found = None;
        for (ix, d) in &mut self.check.drains {
            let node = &self.nodes[usize::from(*ix)];
            let notes = node.hub().map_or(0, |_| self.plan.hubs[usize::from(*ix)].note_delay_ns * 8);
            let streams = node.machine.as_ref().map_or(0, |m| m.shards().iter().map(|s| s.streams()).sum::<usize>());
            // A shard of a split hub resets what it carries at its own deadline and says
            // when that is nothing. One that stands still says neither, and without its
            // word control does not leave, not even at the deadline (seed 1674).
            let runs = node.is_up() && !node.paused && node.stalls.is_empty();
            let waits = runs && !node.drained && streams == 0 && (d.closed || !node.is_hub());
            d.idle = waits.then(|| d.idle.unwrap_or(now));
            if d.idle.is_some_and(|since| since + late + notes < now) {
                found = Some(format!("{} leaves, carries nothing, and has not left", node.name));
            }
        }
        if let Some(text) = found {
            self.fail("L10", text);
        }
    }

    pub(super) fn ghost_drain(&mut self, ix: u16, step: DrainStep) {
        let at = self.nodes[usize::from(ix)].clock(self.now);
        match step {
            DrainStep::Begun => {}
            DrainStep::Cancelled => {
                self.marks.hit(Mark::DrainTakenBack);
                self.check.drains.remove(&ix);
            }
            DrainStep::Closed => {
                let Some(d) = self.check.drains.get_mut(&ix) else { return };
                d.closed = true;
                let drain = *d;
                if drain.lameduck > 0 {
                    self.marks.hit(Mark::LameDuck);
                    self.judge_moved(ix, &drain);
                }
            }
            DrainStep::Deadline { .. } => {
                self.marks.hit(Mark::DrainReset);
                let now = self.now;
                self.check.ended.insert(ix, now);
                self.excuse_leaving(ix);
                let deadline = self.check.drains.get(&ix).map(|d| d.deadline);
                if deadline.is_none_or(|d| at < d) {
                    let text = format!("node {ix} resets what it carries at {at:?}, its deadline is {deadline:?}");
                    self.fail("L10", text);
                }
            }
        }
    }

    /// A process is told to end at once.
    pub(crate) fn ghost_stopped(&mut self, ix: u16) {
        let now = self.now;
        self.check.ended.insert(ix, now);
    }

    /// L10: a hub refuses a client with DRAINING.
    pub(crate) fn judge_refused(&mut self, ix: u16, client: u32) {
        if !self.leaves(ix) {
            let text = format!("node {ix} refuses client {client} with DRAINING, though it still serves");
            self.fail("L10", text);
        }
    }

    /// L10: a socket was reset because some process leaves, which none has come
    /// to yet.
    pub(super) fn judge_ending(&mut self, ix: u32) {
        let a = &self.actors[ix as usize];
        let (client, is_client, fate) = (a.client, a.is_client, a.fate);
        if client == crate::rogue::CLIENT {
            return;
        }
        let came = self.client_plan(client).at;
        if fate == Fate::Reset(Some(RstCode::Shutdown)) && self.check.ended.values().all(|at| *at < came) {
            let text = format!("the {} of client {client} was reset with SHUTDOWN, and nobody ends", side(is_client));
            self.fail("L10", text);
        }
    }

    /// L10: whoever can be attached elsewhere is, before its hub takes nothing
    /// new. Asked where nothing else went wrong.
    fn judge_moved(&mut self, ix: u16, drain: &Drain) {
        let slack = 2 * self.plan.late_timers_ns + 8 * (self.plan.net.latency.1 + self.plan.net.jitter);
        if !drain.alone || !self.only_drains() || drain.lameduck / 2 < TO_MOVE + slack || !self.is_fast() {
            return;
        }
        let settled = |h: &u8| {
            let node = u16::from(*h);
            let n = &self.nodes[usize::from(node)];
            node != ix && n.is_up() && n.started + SETTLED < drain.begun && !self.check.drains.contains_key(&node)
        };
        let found = self.plan.agents.iter().enumerate().find(|(n, plan)| {
            let node = self.node_of(At::Agent(*n as u8));
            let Some(agent) = self.nodes[usize::from(node)].agent().filter(|_| plan.token_ns == 0) else {
                return false;
            };
            let connected = |hub: u16| {
                let name = &self.nodes[usize::from(hub)].name;
                agent.mux().iter().any(|(_, e)| e.conn.is_some() && e.peer.name() == name)
            };
            let since = self.nodes[usize::from(node)].started + SETTLED;
            since < drain.begun
                && !self.check.drains.contains_key(&node)
                && connected(ix)
                && plan.hubs.iter().any(settled)
                && !plan.hubs.iter().any(|h| u16::from(*h) != ix && connected(u16::from(*h)))
        });
        match found.map(|(n, _)| n) {
            Some(n) => {
                let text = format!(
                    "node {ix} takes nothing new any more, {} ms after it said so; agent-{n} is attached nowhere else",
                    (self.now - drain.begun) / MS
                );
                self.fail("L10", text);
            }
            None => self.marks.hit(Mark::MovedInTime),
        }
    }
}

//! A hub leaves, in two phases. As a lame duck it serves as before, while peers
//! look for other owners and agents are told, one after the other, to attach
//! elsewhere first; that can be taken back. Then it is closed: it takes nothing
//! new, and its shards wait for the streams that are left ([`Ending`]).
//! Keeps L10: new clients find an open way all the time, and nothing is reset
//! before the deadline. What agents do about it is theirs; what a closed hub
//! still carries, the shards know.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::control::Control;
use crate::config::{DrainTimes, Mode};
use crate::due::Due;
use crate::error::CloseCode;
use crate::id::{AgentId, Instance, SessionKey};
use crate::mux::{Mux, NodeOut};
use crate::observed::{DrainStep, Observed};
use crate::planted;
use crate::registry::Located;
use crate::shard::{ControlNote, Ending};
use crate::time::{Deadline, Instant};
use crate::wire::{Frame, Status};

/// Agents asked for in the registry in one call.
const ASK_BATCH: usize = 256;

/// A drain under way.
#[derive(Debug)]
pub(super) struct Leaving {
    times: DrainTimes,
    /// When the lame duck ends.
    closes_at: Instant,
    /// It has: nothing new is taken.
    closed: bool,
    /// Tunnels whose agents were not told yet.
    untold: Due<SessionKey, ()>,
    /// Agents attached here that are known to be attached at another hub too.
    elsewhere: BTreeSet<AgentId>,
    /// When the registry is asked next where the others are.
    ask_at: Option<Instant>,
    /// The agent asked for last, if others are left after it.
    asked: Option<AgentId>,
}

/// A drain as `status` and metrics show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainView {
    /// Nothing new is taken any more.
    pub closed: bool,
    /// When that is or was so.
    pub closes_at: Instant,
    /// No stream is reset before.
    pub deadline: Instant,
    /// Agents attached here.
    pub agents: usize,
    /// Those of them that were told to attach elsewhere.
    pub told: usize,
    /// Those of them that are known to be attached elsewhere as well; always 0
    /// in mode `off`, where hubs know nothing of each other.
    pub elsewhere: usize,
}

impl Control {
    /// Whether this hub leaves: from the first word of it, lame duck included.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.leaving.is_some() || self.stopped
    }

    /// Whether it takes no new streams.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.stopped || self.leaving.as_ref().is_some_and(|l| l.closed)
    }

    /// The drain under way.
    #[must_use]
    pub fn drain_view(&self) -> Option<DrainView> {
        let l = self.leaving.as_ref()?;
        let agents = self.attachments.len();
        Some(DrainView {
            closed: l.closed,
            closes_at: l.closes_at,
            deadline: l.closes_at.after(l.times.timeout),
            agents,
            told: agents.saturating_sub(l.untold.len()),
            elsewhere: l.elsewhere.iter().filter(|id| self.attachments.contains_key(*id)).count(),
        })
    }

    /// What one session is told: an agent hears of a drain when it is its turn,
    /// and a link that is about to end is none to open streams over.
    pub(super) fn status_to(&self, key: SessionKey) -> Status {
        let status = self.status();
        let quits = self.quitting.contains_key(&key);
        let waits = self.leaving.as_ref().is_some_and(|l| l.untold.get(key).is_some());
        let draining = (status.draining && !waits) || quits || self.running_out.contains(&key);
        Status { draining, active: status.active && !quits, ..status }
    }

    /// Begins to leave. A drain under way goes on as it was asked for first.
    pub(super) fn drain(
        &mut self,
        now: Instant,
        times: DrainTimes,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if self.is_draining() {
            return;
        }
        let times = if planted::on(60) { DrainTimes { lameduck: Default::default(), ..times } } else { times };
        let mut tunnels: Vec<SessionKey> = self.attachments.values().map(|a| a.session).collect();
        for left in (2..=tunnels.len()).rev() {
            let drawn = usize::try_from(self.rng.below(left as u64)).unwrap_or_default();
            tunnels.swap(left - 1, drawn);
        }
        // Evenly over the first half: the second one is for the last of them.
        let share = times.lameduck / 2;
        let all = u32::try_from(tunnels.len()).unwrap_or(u32::MAX).max(1);
        let mut untold = Due::default();
        for (key, nth) in tunnels.into_iter().zip(0..all) {
            untold.insert(key, now.after(share / all * nth), ());
        }
        let asks = self.config.mode != Mode::Off;
        self.leaving = Some(Leaving {
            times,
            closes_at: now.after(times.lameduck),
            closed: false,
            untold,
            elsewhere: BTreeSet::new(),
            ask_at: asks.then_some(now),
            asked: None,
        });
        out.observed.push(Observed::Drain(DrainStep::Begun));
        self.last_status = Some(self.status());
        let links: Vec<SessionKey> = self.links.values().copied().collect();
        for key in links {
            mux.send(now, key, Frame::Status(self.status_to(key)), out);
        }
        self.drain_timeouts(now, mux, notes, out);
    }

    /// Takes a drain back, while it is a lame duck only: what it has closed
    /// cannot be opened again.
    pub(super) fn undrain(&mut self, now: Instant, mux: &mut Mux, out: &mut NodeOut) {
        if self.is_closed() {
            return;
        }
        let Some(l) = self.leaving.take() else { return };
        out.observed.push(Observed::Drain(DrainStep::Cancelled));
        self.last_status = Some(self.status());
        let told: Vec<SessionKey> = mux.iter().map(|(key, _)| key).filter(|key| l.untold.get(*key).is_none()).collect();
        for key in told {
            mux.send(now, key, Frame::Status(self.status_to(key)), out);
        }
    }

    /// Does what is due.
    pub(super) fn drain_timeouts(
        &mut self,
        now: Instant,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if self.stopped {
            return;
        }
        while let Some(l) = self.leaving.as_mut()
            && let Some(key) = l.untold.late(now)
        {
            l.untold.remove(key);
            mux.send(now, key, Frame::Status(self.status_to(key)), out);
        }
        if self.leaving.as_ref().is_some_and(|l| !l.closed && l.closes_at <= now) {
            self.close(now, mux, notes, out);
        }
        if self.leaving.as_ref().is_some_and(|l| l.ask_at.is_some_and(|at| at <= now)) {
            self.ask_where(now, out);
        }
    }

    /// The lame duck is over.
    fn close(&mut self, now: Instant, mux: &mut Mux, notes: &mut Vec<ControlNote>, out: &mut NodeOut) {
        let Some(l) = self.leaving.as_mut() else { return };
        l.closed = true;
        l.untold = Due::default();
        notes.push(ControlNote::Drain(Ending::after(now, l.times.timeout)));
        out.close_listeners = true;
        out.observed.push(Observed::Drain(DrainStep::Closed));
        self.last_status = Some(self.status());
        let keys: Vec<SessionKey> = mux.iter().map(|(k, _)| k).collect();
        for key in keys {
            mux.send(now, key, Frame::Status(self.status_to(key)), out);
            mux.send(now, key, Frame::GoAway { code: CloseCode::Draining, retry_after_ms: 0 }, out);
        }
    }

    /// Asks the registry where the agents are that are known to be here only.
    fn ask_where(&mut self, now: Instant, out: &mut NodeOut) {
        let Some(l) = self.leaving.as_mut() else { return };
        l.ask_at = Some(now.after(self.config.registry.renew_every));
        if self.registry_unwell() {
            return;
        }
        let Some(l) = self.leaving.as_mut() else { return };
        let from = l.asked.take().map_or(Bound::Unbounded, Bound::Excluded);
        let here = (self.attachments.range((from, Bound::Unbounded)))
            .filter(|(id, a)| l.untold.get(a.session).is_none() && !l.elsewhere.contains(*id));
        let ask: Vec<AgentId> = here.map(|(id, _)| id.clone()).take(ASK_BATCH).collect();
        // Who is nowhere else must not keep the others from being asked for.
        l.asked = ask.last().filter(|_| ask.len() == ASK_BATCH).cloned();
        for agent_id in ask {
            self.ask_owners(now, &agent_id, out);
        }
    }

    /// The registry lists these attachments of an agent.
    pub(super) fn learn_elsewhere(&mut self, agent_id: &AgentId, listed: &[Located]) {
        let Some(a) = self.attachments.get(agent_id) else { return };
        let also = listed.iter().any(|l| l.instance == a.instance && l.hub.replica_id != self.run.replica_id);
        let Some(l) = self.leaving.as_mut() else { return };
        if also {
            l.elsewhere.insert(agent_id.clone());
        } else {
            l.elsewhere.remove(agent_id);
        }
    }

    /// Another hub says that it holds this agent now.
    pub(super) fn heard_elsewhere(&mut self, agent_id: &AgentId, instance: Instance) {
        if self.attachments.get(agent_id).is_some_and(|a| a.instance == instance)
            && let Some(l) = self.leaving.as_mut()
        {
            l.elsewhere.insert(agent_id.clone());
        }
    }

    /// A session is over: nobody is left to tell.
    pub(super) fn forget_untold(&mut self, key: SessionKey) {
        if let Some(l) = self.leaving.as_mut() {
            l.untold.remove(key);
        }
    }

    pub(super) fn next_of_drain(&self) -> Option<Deadline> {
        let l = self.leaving.as_ref().filter(|_| !self.stopped)?;
        let closes = (!l.closed).then_some(l.closes_at);
        let at = [l.untold.next(), closes, l.ask_at].into_iter().flatten().min()?;
        Some(Deadline { at, why: "drain" })
    }
}

//! After an outage of the registry, or of this hub's lease: every attachment is
//! audited or claimed again at once, a bounded number at a time, and the
//! registry counts as ready only when that is done (semantics 5 and 10).
//!
//! Keeps: L6 (while this hub says `ready` its attachments are listed, as far as
//! it can know), L5 and L11 (sooner than the audit, which stays the backstop),
//! C3; a registry that just came back is never asked about more than
//! [`AT_ONCE`] attachments of this hub at a time.
//!
//! Must not know: how an attachment is audited or claimed.

use std::collections::BTreeSet;

use super::control::Control;
use crate::config::Mode;
use crate::id::AgentId;
use crate::planted;
use crate::time::Instant;

/// Attachments that are looked after at once: the next begins when one is done.
/// So the registry's own pace bounds what it is asked, whatever there is.
const AT_ONCE: usize = 64;

/// What is left to look after.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// Begun, and not known to be listed.
    begun: BTreeSet<AgentId>,
    /// Not begun.
    waiting: BTreeSet<AgentId>,
    /// No other one begins on a suspicion before.
    suspected_until: Option<Instant>,
    /// Readiness waits for it no longer than this.
    ready_by: Option<Instant>,
    /// The registry answered as if it had lost data: with the next renewal.
    pub(super) wanted: bool,
}

impl Control {
    /// The registry is back, or our lease is.
    pub(super) fn recover(&mut self, now: Instant) {
        self.begin_recovery(now);
        self.recovery.ready_by = (!planted::on(2025)).then(|| now.after(self.config.registry.lease));
    }

    /// An attachment is not listed though nobody took it over: what the registry
    /// lost is seldom one entry. At most once per lease, because a claim for an
    /// agent that has left can do the same to one attachment; readiness knows of
    /// no outage and does not wait.
    pub(super) fn suspect_loss(&mut self, now: Instant) {
        let r = &mut self.recovery;
        if r.begun.is_empty() && r.suspected_until.is_none_or(|until| until <= now) {
            r.suspected_until = Some(now.after(self.config.registry.lease));
            self.begin_recovery(now);
        }
    }

    fn begin_recovery(&mut self, now: Instant) {
        let r = &mut self.recovery;
        r.begun.clear();
        let lost = |firm: bool| !(firm && planted::on(2057));
        r.waiting = self.attachments.iter().filter(|(_, a)| lost(a.firm)).map(|(id, _)| id.clone()).collect();
        r.wanted = false;
        // The backstop of those that wait, should those before them get no answer.
        let waiting: Vec<AgentId> = r.waiting.iter().cloned().collect();
        for agent_id in waiting {
            let at = self.next_audit(now);
            self.upkeep_by(&agent_id, at);
        }
        self.begin_more(now);
    }

    fn begin_more(&mut self, now: Instant) {
        while self.recovery.begun.len() < AT_ONCE
            && let Some(agent_id) = self.recovery.waiting.pop_first()
        {
            self.upkeep_by(&agent_id, now);
            self.recovery.begun.insert(agent_id);
        }
    }

    /// The entry of one attachment is in doubt, for a reason that is known.
    pub(super) fn recover_one(&mut self, now: Instant, agent_id: &AgentId) {
        if self.config.mode == Mode::Off {
            return;
        }
        if !self.recovery.begun.contains(agent_id) {
            self.recovery.waiting.insert(agent_id.clone());
        }
        self.upkeep_by(agent_id, now);
        self.begin_more(now);
    }

    /// An attachment is listed, is over, or cannot be claimed now because its
    /// agent does not answer: nothing of it is waited for.
    pub(super) fn looked_after(&mut self, now: Instant, agent_id: &AgentId) {
        let r = &mut self.recovery;
        if r.begun.remove(agent_id) || r.waiting.remove(agent_id) {
            self.begin_more(now);
        }
    }

    /// Nothing is looked after any more.
    pub(super) fn stop_recovery(&mut self) {
        self.recovery = Recovery::default();
    }

    /// Whether attachments are still to be audited or claimed after an outage.
    /// At most for one lease after the first renewal that succeeded.
    #[must_use]
    pub fn is_recovering(&self, now: Instant) -> bool {
        let r = &self.recovery;
        let left = !(r.begun.is_empty() && r.waiting.is_empty());
        self.config.mode != Mode::Off && left && r.ready_by.is_some_and(|by| now < by)
    }

    /// Whether the registry can be relied on: it answers, and what this hub
    /// holds is listed again since it does (semantics 10).
    #[must_use]
    pub fn registry_ready(&self, now: Instant) -> bool {
        self.registry_healthy() && !self.is_recovering(now)
    }

    /// What must hold between any two calls.
    pub(super) fn check_recovery(&self) {
        assert!(self.recovery.begun.len() <= AT_ONCE, "a bounded number at a time");
        let all = self.recovery.begun.iter().chain(&self.recovery.waiting);
        for agent_id in all {
            assert!(self.attachments.contains_key(agent_id), "what is over is not looked after");
        }
        let idle = self.recovery.begun.is_empty();
        assert!(!idle || self.recovery.waiting.is_empty(), "somebody begins the next");
    }
}

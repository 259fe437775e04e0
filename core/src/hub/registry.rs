//! The hub's use of the registry: lease, lookups, deadlines. Its failures are
//! kept away from data: nothing here blocks a stream whose route is known.
//! Keeps O7 (lease counted from before the renewal was sent) and M4.

use std::time::Duration;

use super::control::{Asked, Control, PendingOp, Remote};
use crate::config::{Mode, OnOutage};
use crate::error::RstCode;
use crate::id::{AgentId, Fence, Name};
use crate::mux::{Mux, NodeOut};
use crate::observed::Observed;
use crate::planted;
use crate::registry::{HubRun, Located, RegistryError, RegistryOp, RegistryReply, RegistryResult, Token};
use crate::shard::{ControlNote, Question};
use crate::time::Instant;
use crate::wire::EpochNotice;

/// Failures in a row after which the registry counts as unhealthy.
const FAILURES_TO_UNHEALTHY: u32 = 2;
/// Operations under way at once; beyond it an operation fails at once.
pub(super) const PENDING_OPS_MAX: usize = 4096;
/// How long a client that needs another hub waits for the registry before it is
/// answered from what is known: less than the 100 ms of M4.
const ANSWER_WITHIN: Duration = Duration::from_millis(80);

impl Remote {
    /// Takes a lookup's answer. An attachment that is not listed any more was
    /// ended, or the registry lost it and its owner will claim it again: until
    /// `until` it is asked when nothing else is left, because the owner fences.
    /// True if anything changed.
    fn take_listing(&mut self, located: Vec<Located>, now: Instant, until: Instant) -> bool {
        let replaces = |new: &Located, old: &Located| {
            new.agent_id == old.agent_id && (new.hub.replica_id == old.hub.replica_id || new.instance != old.instance)
        };
        let held = self.faded.len();
        self.faded.retain(|(old, end)| *end > now && !located.iter().any(|new| replaces(new, old)));
        if self.located == located {
            return self.faded.len() != held;
        }
        let gone = std::mem::replace(&mut self.located, located);
        let lost = gone.into_iter().filter(|old| !self.located.iter().any(|new| replaces(new, old)));
        self.faded.extend(lost.map(|old| (old, until)));
        true
    }

    fn knows_other_than(&self, run: &HubRun) -> bool {
        let mut all = self.located.iter().chain(self.faded.iter().map(|(l, _)| l));
        all.any(|l| l.hub.replica_id != run.replica_id)
    }
}

impl Control {
    /// Asks the registry. False when too much is under way already; the lease
    /// is renewed all the same.
    pub(super) fn ask(&mut self, now: Instant, op: RegistryOp, what: Asked, out: &mut NodeOut) -> bool {
        if self.pending.len() >= PENDING_OPS_MAX && !matches!(what, Asked::Renew { .. }) {
            return false;
        }
        self.next_token += 1;
        let token = Token(self.next_token);
        self.pending.insert(token, PendingOp { deadline: now.after(self.config.registry.op_timeout), what });
        out.registry.push((token, op));
        true
    }

    pub(super) fn renew(&mut self, now: Instant, out: &mut NodeOut) {
        let takes_over = self.lease_seen.take();
        self.lease_before = takes_over.or(self.lease_before);
        let op = RegistryOp::Renew {
            hub: self.run.clone(),
            lease: self.config.registry.lease,
            takes_over,
            region: self.config.region.clone(),
        };
        self.ask(now, op, Asked::Renew { sent: now, lease: self.config.registry.lease }, out);
        self.renew_at = Some(now.after(self.config.registry.renew_every));
    }

    /// Renews unless that is under way.
    pub(super) fn renew_at_once(&mut self, now: Instant, out: &mut NodeOut) {
        if !self.pending.values().any(|p| matches!(p.what, Asked::Renew { .. })) {
            self.renew(now, out);
        }
    }

    /// The registry answered.
    pub(crate) fn on_registry(
        &mut self,
        now: Instant,
        token: Token,
        result: RegistryResult,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let Some(op) = self.pending.remove(&token) else {
            if let Some(agent_id) = self.late_claims.remove(&token)
                && let Ok(RegistryReply::Claimed { epoch, nonce, .. }) = result
            {
                self.on_late_claim(now, &agent_id, Fence { epoch, nonce }, out);
            }
            return;
        };
        self.on_outcome(now, op.what, result, mux, notes, out);
    }

    fn on_outcome(
        &mut self,
        now: Instant,
        what: Asked,
        result: RegistryResult,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        match what {
            Asked::Renew { sent, lease } => {
                let was = self.registry_healthy;
                self.on_renewed(now, sent, lease, &result, notes, out);
                if was && !self.registry_healthy {
                    self.believe_told(now, mux, notes, out);
                }
                if result.is_ok() {
                    self.ask_leases(now, mux, out);
                }
            }
            Asked::Leases { replicas, sent } => self.on_leases(now, &replicas, sent, &result),
            Asked::Claim { conn, agent_id } => self.on_claimed(now, conn, agent_id, result, mux, notes, out),
            Asked::Lookup { connector } => self.on_looked_up(now, &connector, result, notes, out),
            Asked::Reclaim { agent_id, session, claim_id, again } => {
                self.on_reclaimed(now, &agent_id, session, (claim_id, again), result, mux, notes, out);
            }
            Asked::SetConnectors { agent_id, fence } => self.on_audited(now, &agent_id, fence, &result, out),
            Asked::Owners { agent_id, told } => self.on_owners(now, &agent_id, told, result, mux, notes, out),
            Asked::Release { agent_id } => {
                if result.is_err() {
                    self.orphan(now, agent_id);
                }
            }
            Asked::Resign | Asked::Sweep => {}
        }
    }

    fn on_renewed(
        &mut self,
        now: Instant,
        sent: Instant,
        lease: Duration,
        result: &RegistryResult,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let unwell = self.registry_unwell();
        match result {
            Ok(RegistryReply::Renewed) => {
                self.registry_failures = 0;
                // What was attached while the registry was away, or was listed
                // under a lease that ended, is looked after now.
                let over = self.lease_until.is_none_or(|until| until <= now);
                let back = !self.registry_healthy || over || self.recovery.wanted;
                let from = if planted::on(7) { now } else { sent };
                self.lease_until = Some(from.after(lease));
                self.lease_held = true;
                if self.config.mode == Mode::Active {
                    notes.push(ControlNote::Lease(self.lease_until));
                }
                self.set_health(true, out);
                self.look_up_all(now, out);
                if back {
                    self.recover(now);
                }
            }
            Ok(RegistryReply::LeaseHeld { by }) => {
                self.registry_failures = 0;
                self.look_up_all(now, out);
                if self.lease_held && self.lease_before == Some(*by) {
                    // The run before this one again: the registry lost data (R3, R4).
                    self.lease_seen = Some(*by);
                    self.recovery.wanted = true;
                    self.renew(now, out);
                } else if self.lease_held {
                    // It answers, but lists nothing of this hub: degraded.
                    self.set_health(false, out);
                    // A newer run of this replica id took over: this one fences
                    // itself and waits for that lease to end. Taking it back
                    // would make the two renew in turns for ever.
                    self.lease_until = None;
                    notes.push(ControlNote::Lease(None));
                    out.observed.push(Observed::LeaseHeldByOther);
                } else if !std::mem::replace(&mut self.lease_tried, true) {
                    // The run before this one, most likely dead: compare-and-set, once at once.
                    self.lease_seen = Some(*by);
                    self.renew(now, out);
                } else {
                    // Somebody took it in between: not a dead run. At the usual pace.
                    out.observed.push(Observed::LeaseHeldByOther);
                    self.lease_seen = Some(*by);
                }
            }
            Ok(_) | Err(RegistryError::Definite(_) | RegistryError::Unknown(_)) => {
                self.registry_failures = self.registry_failures.saturating_add(1);
                if self.registry_unwell() {
                    self.set_health(false, out);
                    self.keep_serving_as_owner(now, notes);
                }
            }
        }
        // Who is a candidate depends on it (semantics 5).
        self.routes_dirty |= unwell != self.registry_unwell();
    }

    /// Renewals fail in a row.
    pub(super) const fn registry_unwell(&self) -> bool {
        self.registry_failures >= FAILURES_TO_UNHEALTHY
    }

    /// Whether another run of this replica id holds its lease.
    const fn is_fenced(&self) -> bool {
        self.lease_held && self.lease_until.is_none()
    }

    /// What agents are told: a hub that has not asked yet is not unwell.
    pub(super) fn registry_serves(&self) -> bool {
        self.registry_healthy() || !(self.registry_unwell() || self.lease_held)
    }

    /// With `on_outage: cached` other hubs still try what they know, and the
    /// fence is checked against the live session (semantics 5): leases decide
    /// availability. Not where another run of this replica id holds the lease.
    fn keep_serving_as_owner(&self, now: Instant, notes: &mut Vec<ControlNote>) {
        let r = &self.config.registry;
        if r.on_outage == OnOutage::Cached && self.config.mode == Mode::Active && !self.is_fenced() {
            notes.push(ControlNote::Lease(Some(now.after(r.lease))));
        }
    }

    fn set_health(&mut self, healthy: bool, out: &mut NodeOut) {
        if std::mem::replace(&mut self.registry_healthy, healthy) != healthy {
            out.observed.push(Observed::RegistryHealth { healthy });
        }
    }

    /// Looks a connector up, unless that is under way. False if the registry
    /// cannot be asked.
    pub(super) fn look_up(&mut self, now: Instant, connector: &Name, out: &mut NodeOut) -> bool {
        let remote = self.remote.entry(connector.clone()).or_default();
        if remote.asking {
            return true;
        }
        remote.asking = true;
        let asked = self.ask(
            now,
            RegistryOp::Lookup { connector: connector.clone() },
            Asked::Lookup { connector: connector.clone() },
            out,
        );
        if !asked && let Some(remote) = self.remote.get_mut(connector) {
            remote.asking = false;
            remote.next = Some(now.after(self.config.registry.lookup_fresh));
        }
        asked
    }

    pub(super) fn look_up_all(&mut self, now: Instant, out: &mut NodeOut) {
        if !self.looks_across() {
            return;
        }
        let connectors: Vec<Name> = self.remote.keys().cloned().collect();
        for connector in connectors {
            let half_fresh = now.after(self.config.registry.lookup_fresh / 2);
            if self.remote.get(&connector).is_some_and(|r| r.next.is_none_or(|at| at <= half_fresh)) {
                self.look_up(now, &connector, out);
            }
        }
    }

    /// What is known of an agent's attachments changed: ask anew.
    pub(super) fn forget_lookups(&mut self, now: Instant, notice: &EpochNotice, out: &mut NodeOut) {
        if !self.looks_across() {
            return;
        }
        let connectors: Vec<Name> = self.remote.keys().cloned().collect();
        for connector in connectors {
            if let Some(r) = self.remote.get_mut(&connector) {
                r.faded.retain(|(l, _)| {
                    l.agent_id != notice.agent_id
                        || (l.instance == notice.instance && l.hub.replica_id != notice.replica_id)
                });
                r.again |= r.asking;
            }
            self.look_up(now, &connector, out);
        }
    }

    fn on_looked_up(
        &mut self,
        now: Instant,
        connector: &Name,
        result: RegistryResult,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let refusal = if result.is_ok() { self.refusal() } else { RstCode::RegistryDown };
        if let Ok(RegistryReply::Attachments(located)) = &result {
            self.find_leftovers(now, located);
        }
        let Some(remote) = self.remote.get_mut(connector) else { return };
        remote.asking = false;
        // Also after a failure: a registry that refuses at once must not be
        // asked again at once (B9).
        remote.next = Some(now.after(self.config.registry.lookup_fresh));
        let ok = if let Ok(RegistryReply::Attachments(located)) = result {
            let until = now.after(self.config.registry.lease);
            if remote.take_listing(located, now, until) {
                self.published.others_changed(connector);
            }
            true
        } else {
            // An old answer stays usable: the owner fences (semantics 5).
            false
        };
        let again = std::mem::take(&mut remote.again);
        if ok && again && self.look_up(now, connector, out) {
            return;
        }
        let Some(remote) = self.remote.get(connector) else { return };
        let result =
            if ok && remote.knows_other_than(&self.run) || self.exposes(connector) { Ok(()) } else { Err(refusal) };
        self.answer_wanted(connector, result, notes);
    }

    /// What is listed of this run and not held, no answer told of: its release
    /// went to another registry, or never arrived. Looked after (L5).
    fn find_leftovers(&mut self, now: Instant, located: &[Located]) {
        let left = located.iter().filter(|l| l.hub == self.run && !self.attachments.contains_key(&l.agent_id));
        let left: Vec<AgentId> =
            left.filter(|l| !self.may_be_ours(&l.agent_id, l.fence)).map(|l| l.agent_id.clone()).collect();
        for agent_id in left {
            self.orphan(now, agent_id);
        }
    }

    /// Answers every shard that waits for this connector.
    pub(super) fn answer_wanted(
        &mut self,
        connector: &Name,
        result: Result<(), RstCode>,
        notes: &mut Vec<ControlNote>,
    ) {
        let Some(remote) = self.remote.get_mut(connector) else { return };
        remote.answer_by = None;
        for (shard, number) in std::mem::take(&mut remote.wanted) {
            let question = Question { shard, number };
            notes.push(ControlNote::RouteAnswer { connector: connector.clone(), question, result });
        }
    }

    pub(super) fn exposes(&self, connector: &Name) -> bool {
        self.published.exposes(connector)
    }

    /// A stream has no candidate.
    pub(super) fn on_need_route(
        &mut self,
        now: Instant,
        connector: Name,
        afresh: bool,
        question: Question,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if !self.routes_across() || (self.registry_unwell() && !planted::on(49)) {
            // Nobody is asked: what this hub has itself, perhaps since the stream
            // asked, or nothing. Refused at once, not after a time-out (M4,
            // planted bug 49).
            let result = if self.exposes(&connector) { Ok(()) } else { Err(self.refusal()) };
            notes.push(ControlNote::RouteAnswer { connector, question, result });
            return;
        }
        let remote = self.remote.entry(connector.clone()).or_default();
        // A shard's questions come in order.
        remote.wanted.insert(question.shard, question.number);
        if !planted::on(49) {
            remote.answer_by.get_or_insert(now.after(if planted::on(2036) {
                ANSWER_WITHIN * 1000
            } else {
                ANSWER_WITHIN
            }));
        }
        // What the streams tried came from an earlier lookup: one that is
        // already under way may be as old.
        remote.again |= afresh && remote.asking;
        if !self.look_up(now, &connector, out) {
            self.answer_wanted(&connector, Err(RstCode::RegistryDown), notes);
        }
    }

    /// When the first client that waits for a lookup is answered without it.
    pub(super) fn next_answer(&self) -> Option<Instant> {
        self.remote.values().filter_map(|r| r.answer_by).min()
    }

    /// The registry takes too long: who waits hears what is known (M4).
    fn answer_overdue(&mut self, now: Instant, notes: &mut Vec<ControlNote>) {
        let overdue = |(c, r): (&Name, &Remote)| r.answer_by.is_some_and(|at| at <= now).then(|| c.clone());
        let connectors: Vec<Name> = self.remote.iter().filter_map(overdue).collect();
        for connector in connectors {
            let known = self.remote.get(&connector).is_some_and(|r| r.knows_other_than(&self.run));
            let result = if known || self.exposes(&connector) { Ok(()) } else { Err(RstCode::RegistryDown) };
            self.answer_wanted(&connector, result, notes);
        }
    }

    /// Whether clients of this hub may be carried by way of others.
    pub(super) fn routes_across(&self) -> bool {
        match self.config.mode {
            Mode::Active => true,
            Mode::Shadow => planted::on(50),
            Mode::Off => false,
        }
    }

    pub(super) fn next_lookup(&self) -> Option<Instant> {
        if !self.looks_across() {
            return None;
        }
        self.remote.values().filter(|r| !r.asking).filter_map(|r| r.next).min()
    }

    pub(super) fn registry_timeouts(
        &mut self,
        now: Instant,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        // Every operation has the same time, so the oldest token is the first due.
        while let Some(entry) = self.pending.first_entry()
            && entry.get().deadline <= now
        {
            let token = *entry.key();
            let op = entry.remove();
            if planted::on(3) && self.claim_again(now, &op.what, out) {
                let deadline = now.after(self.config.registry.op_timeout);
                self.pending.insert(token, PendingOp { deadline, ..op });
                continue;
            }
            if let Asked::Claim { agent_id, .. } = &op.what {
                if self.late_claims.len() >= PENDING_OPS_MAX {
                    self.late_claims.pop_first();
                }
                self.late_claims.insert(token, agent_id.clone());
            }
            let result = Err(RegistryError::Unknown("no reply inside its deadline".to_owned()));
            self.on_outcome(now, op.what, result, mux, notes, out);
        }
        self.answer_overdue(now, notes);
        if self.renew_at.is_some_and(|at| at <= now) {
            self.renew(now, out);
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            // Spread over the hubs so that they do not sweep in step.
            let lease = u64::try_from(self.config.registry.lease.as_millis()).unwrap_or(u64::MAX);
            let next = Duration::from_millis(lease * 3 + self.rng.below(lease.max(1)));
            self.sweep_at = Some(now.after(next));
            self.ask(now, RegistryOp::Sweep, Asked::Sweep, out);
        }
        if self.next_lookup().is_some_and(|at| at <= now) {
            let due: Vec<Name> = self
                .remote
                .iter()
                .filter(|(_, r)| !r.asking && r.next.is_some_and(|at| at <= now))
                .map(|(c, _)| c.clone())
                .collect();
            for connector in due {
                let idle = self.remote.get(&connector).is_some_and(|r| r.wanted.is_empty());
                if idle && !self.is_listened_for(&connector) {
                    self.remote.remove(&connector);
                    self.published.others_changed(&connector);
                } else if self.registry_failures < FAILURES_TO_UNHEALTHY {
                    self.look_up(now, &connector, out);
                } else if let Some(r) = self.remote.get_mut(&connector) {
                    // Asked again with the first renewal that succeeds.
                    r.next = None;
                }
            }
        }
    }
}

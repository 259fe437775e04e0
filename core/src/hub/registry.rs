//! The hub's use of the registry: lease, lookups, deadlines. Its failures are
//! kept away from data: nothing here blocks a stream whose route is known.
//! Keeps O7 (lease counted from before the renewal was sent) and M4.

use std::time::Duration;

use super::control::{Asked, Control, PendingOp};
use crate::config::Mode;
use crate::error::RstCode;
use crate::id::{AgentId, Name};
use crate::mux::{Mux, NodeOut};
use crate::observed::Observed;
use crate::planted;
use crate::registry::{RegistryError, RegistryOp, RegistryReply, RegistryResult, Token};
use crate::shard::{ControlNote, Question};
use crate::time::Instant;

/// Failures in a row after which the registry counts as unhealthy.
const FAILURES_TO_UNHEALTHY: u32 = 2;
/// Operations under way at once; beyond it an operation fails at once.
const PENDING_OPS_MAX: usize = 4096;

impl Control {
    /// Asks the registry. False when too much is under way already.
    pub(super) fn ask(&mut self, now: Instant, op: RegistryOp, what: Asked, out: &mut NodeOut) -> bool {
        if self.pending.len() >= PENDING_OPS_MAX {
            return false;
        }
        self.next_token += 1;
        let token = Token(self.next_token);
        self.pending.insert(token, PendingOp { deadline: now.after(self.config.registry.op_timeout), what });
        out.registry.push((token, op));
        true
    }

    pub(super) fn renew(&mut self, now: Instant, out: &mut NodeOut) {
        let op = RegistryOp::Renew {
            hub: self.run.clone(),
            lease: self.config.registry.lease,
            takes_over: self.lease_seen.take(),
            region: self.config.region.clone(),
        };
        self.ask(now, op, Asked::Renew { sent: now }, out);
        self.renew_at = Some(now.after(self.config.registry.renew_every));
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
                // Too late: the agent has a provisional attachment or none. What
                // the registry lists under this fence would lead others astray.
                let fence = crate::id::Fence { epoch, nonce };
                let op = RegistryOp::Release { agent_id, hub: self.run.clone(), fence };
                self.ask(now, op, Asked::Release, out);
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
            Asked::Renew { sent } => self.on_renewed(now, sent, &result, notes, out),
            Asked::Claim { conn, agent_id } => self.on_claimed(now, conn, agent_id, result, mux, notes, out),
            Asked::Lookup { connector } => self.on_looked_up(now, &connector, result, notes, out),
            Asked::SetConnectors { agent_id, fence } => {
                // Stale: another claim took over; its notice or the audit ends this attachment.
                let stale = result == Ok(RegistryReply::Stale);
                if stale && self.attachments.get(&agent_id).is_some_and(|a| a.fence == fence) {
                    self.routes_dirty = true;
                }
            }
            Asked::Release | Asked::Sweep => {}
        }
    }

    fn on_renewed(
        &mut self,
        now: Instant,
        sent: Instant,
        result: &RegistryResult,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        match result {
            Ok(RegistryReply::Renewed) => {
                self.registry_failures = 0;
                let from = if planted::on(7) { now } else { sent };
                self.lease_until = Some(from.after(self.config.registry.lease));
                self.lease_held = true;
                if self.config.mode == Mode::Active {
                    notes.push(ControlNote::Lease(self.lease_until));
                }
                self.set_health(true, out);
                self.look_up_all(now, out);
            }
            Ok(RegistryReply::LeaseHeld { by }) => {
                self.registry_failures = 0;
                self.set_health(true, out);
                if self.lease_held {
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
                if self.registry_failures >= FAILURES_TO_UNHEALTHY {
                    self.set_health(false, out);
                }
            }
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
        if !self.routes_across() {
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
    pub(super) fn forget_lookups(&mut self, now: Instant, _agent_id: &AgentId, out: &mut NodeOut) {
        if !self.routes_across() {
            return;
        }
        let connectors: Vec<Name> = self.remote.keys().cloned().collect();
        for connector in connectors {
            if let Some(r) = self.remote.get_mut(&connector) {
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
        let Some(remote) = self.remote.get_mut(connector) else { return };
        remote.asking = false;
        // Also after a failure: a registry that refuses at once must not be
        // asked again at once (B9).
        remote.next = Some(now.after(self.config.registry.lookup_fresh));
        let ok = if let Ok(RegistryReply::Attachments(located)) = result {
            if remote.located != located {
                remote.located = located;
                self.routes_dirty = true;
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
        let known = remote.located.iter().any(|l| l.hub.replica_id != self.run.replica_id);
        let result = if ok && known || self.exposes(connector) { Ok(()) } else { Err(refusal) };
        self.answer_wanted(connector, result, notes);
    }

    /// Answers every shard that waits for this connector.
    pub(super) fn answer_wanted(
        &mut self,
        connector: &Name,
        result: Result<(), RstCode>,
        notes: &mut Vec<ControlNote>,
    ) {
        let Some(remote) = self.remote.get_mut(connector) else { return };
        for (shard, number) in std::mem::take(&mut remote.wanted) {
            let question = Question { shard, number };
            notes.push(ControlNote::RouteAnswer { connector: connector.clone(), question, result });
        }
    }

    fn exposes(&self, connector: &Name) -> bool {
        self.attachments.values().any(|a| a.open_to().iter().any(|ad| ad.name == *connector))
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
        let unhealthy = !self.registry_healthy && self.registry_failures >= FAILURES_TO_UNHEALTHY;
        if !self.routes_across() || (unhealthy && !planted::on(49)) {
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
        // What the streams tried came from an earlier lookup: one that is
        // already under way may be as old.
        remote.again |= afresh && remote.asking;
        if !self.look_up(now, &connector, out) {
            self.answer_wanted(&connector, Err(RstCode::RegistryDown), notes);
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
        if !self.routes_across() {
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
                if self.registry_healthy {
                    self.look_up(now, &connector, out);
                } else if let Some(r) = self.remote.get_mut(&connector) {
                    // Asked again with the first renewal that succeeds.
                    r.next = None;
                }
            }
        }
    }
}

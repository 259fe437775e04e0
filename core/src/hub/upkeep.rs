//! What a hub's attachments are to the registry after their claim: audited once
//! per lease, claimed again when the registry lost them or never heard, ended
//! when another instance took over; and entries that name this hub for what it
//! does not hold are taken back. Streams are not touched by any of it.
//! Keeps O2 (a new fence is above the old one, or is claimed again), O5 (a claim
//! of unknown outcome keeps its id; only our own fences are released), O6, L5,
//! L11. It must not know what streams do.

use std::time::Duration;

use super::control::{Asked, AttachmentState, Control};
use super::registry::PENDING_OPS_MAX;
use crate::config::Mode;
use crate::error::CloseCode;
use crate::id::{AgentId, ClaimId, Epoch, Fence, Nonce, SessionKey};
use crate::mux::{Mux, NodeOut, Peer};
use crate::observed::Observed;
use crate::planted;
use crate::registry::{
    Claim, EPOCHS_PER_MILLI, Located, RegistryError, RegistryOp, RegistryReply, RegistryResult, SEEN_UNCHECKED_MAX,
    provisional_epoch, seen_clamped,
};
use crate::shard::{Attach, ControlNote};
use crate::time::Instant;
use crate::wire::{EpochNotice, Frame};

/// Agents looked after in one call; the others in the next.
const UPKEEP_BATCH: usize = 256;
/// How often entries of an agent without attachment are looked for, one lease
/// apart: a step may be executed late (R2), or be undone by a failover (R3).
const ORPHAN_ROUNDS: u8 = 3;

/// What is left to do for an agent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Upkeep {
    /// Without an attachment: how often entries are still looked for.
    rounds: u8,
}

impl Control {
    /// Looks after an agent by `at`, or earlier if that was so.
    pub(super) fn upkeep_by(&mut self, agent_id: &AgentId, at: Instant) {
        if self.config.mode != Mode::Off && self.upkeep.at(agent_id).is_none_or(|due| at < due) {
            self.upkeep.insert(agent_id.clone(), at, Upkeep { rounds: ORPHAN_ROUNDS });
        }
    }

    /// A new attachment: audited within a lease, or claimed again soon.
    pub(super) fn look_after(&mut self, now: Instant, agent_id: &AgentId, firm: bool) {
        let at = if firm { self.next_audit(now) } else { self.soon(now) };
        self.upkeep_by(agent_id, at);
    }

    fn draw(&mut self, below: Duration) -> Duration {
        Duration::from_nanos(self.rng.below(u64::try_from(below.as_nanos()).unwrap_or(u64::MAX)))
    }

    pub(super) fn next_audit(&mut self, now: Instant) -> Instant {
        let quarter = self.config.registry.lease / 4;
        now.after(quarter * 3 + self.draw(quarter))
    }

    fn soon(&mut self, now: Instant) -> Instant {
        let pace = self.config.registry.renew_every;
        now.after(pace / 2 + self.draw(pace))
    }

    /// Does what is due.
    pub(super) fn keep_up(&mut self, now: Instant, mux: &Mux, out: &mut NodeOut) {
        for _ in 0..UPKEEP_BATCH {
            let Some(agent_id) = self.upkeep.late(now) else { return };
            let Some(Upkeep { rounds }) = self.upkeep.remove(agent_id.clone()) else { return };
            let held = self.attachments.get(&agent_id).map(|a| (a.session, a.fence, a.firm));
            let told = self.attachments.get(&agent_id).is_some_and(|a| a.told.is_some());
            let leased = self.lease_until.is_some_and(|until| now < until);
            let (next, rounds) = match held {
                // Nothing of this hub is listed: its next renewal looks after all.
                _ if !leased => (now.after(self.config.registry.lease), rounds),
                Some((_, _, true)) if told => {
                    self.ask_owners(now, &agent_id, out);
                    (self.soon(now), rounds)
                }
                Some((_, fence, true)) => {
                    let asked = self.audit(now, &agent_id, fence, out);
                    (if asked { self.next_audit(now) } else { self.soon(now) }, rounds)
                }
                Some((session, _, false)) => {
                    // Only for an agent that is there: a claim ends what its other instances hold.
                    if mux.get(session).is_some_and(|e| e.conn.is_some() && !e.session.is_suspect(now)) {
                        self.claim_anew(now, &agent_id, out);
                    } else {
                        self.looked_after(now, &agent_id);
                    }
                    (self.soon(now), rounds)
                }
                None => {
                    self.ask_owners(now, &agent_id, out);
                    if rounds <= 1 {
                        continue;
                    }
                    (now.after(self.config.registry.lease), rounds - 1)
                }
            };
            self.upkeep.insert(agent_id, next, Upkeep { rounds });
        }
    }

    /// Writes an attachment's connectors again if the registry holds it: that
    /// shows whether it does, and mends the index and a change that got lost.
    fn audit(&mut self, now: Instant, agent_id: &AgentId, fence: Fence, out: &mut NodeOut) -> bool {
        let Some(a) = self.attachments.get(agent_id) else { return true };
        let connectors = a.open_to().to_vec();
        let op = RegistryOp::SetConnectors { agent_id: agent_id.clone(), hub: self.run.clone(), fence, connectors };
        self.ask(now, op, Asked::SetConnectors { agent_id: agent_id.clone(), fence }, out)
    }

    pub(super) fn on_audited(
        &mut self,
        now: Instant,
        agent_id: &AgentId,
        fence: Fence,
        result: &RegistryResult,
        out: &mut NodeOut,
    ) {
        if self.attachments.get(agent_id).is_none_or(|a| a.fence != fence) {
            return;
        }
        match result {
            Ok(RegistryReply::Done) => self.looked_after(now, agent_id),
            // Lost, or another claim took over: who holds it now?
            Ok(RegistryReply::Stale) => self.ask_owners(now, agent_id, out),
            Ok(_) | Err(RegistryError::Definite(_) | RegistryError::Unknown(_)) => {
                let at = self.soon(now);
                self.upkeep_by(agent_id, at);
            }
        }
    }

    pub(super) fn ask_owners(&mut self, now: Instant, agent_id: &AgentId, out: &mut NodeOut) {
        let told = self.attachments.get(agent_id).and_then(|a| a.told).map(|t| t.fence);
        let op = RegistryOp::Agent { agent_id: agent_id.clone() };
        if !self.ask(now, op, Asked::Owners { agent_id: agent_id.clone(), told }, out) {
            let at = self.soon(now);
            self.upkeep_by(agent_id, at);
        }
    }

    /// Which attachments the registry lists for an agent.
    pub(super) fn on_owners(
        &mut self,
        now: Instant,
        agent_id: &AgentId,
        told: Option<Fence>,
        result: RegistryResult,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let Ok(RegistryReply::Attachments(listed)) = result else {
            let at = self.soon(now);
            return self.upkeep_by(agent_id, at);
        };
        self.learn_holders(agent_id, &listed);
        self.learn_elsewhere(agent_id, &listed);
        self.told_is_answered(now, agent_id, told, out);
        let held = self.attachments.get(agent_id).map(|a| (a.session, a.instance, a.fence));
        let ours = |l: &&Located| l.agent_id == *agent_id && l.hub == self.run;
        let stale: Vec<Fence> =
            listed.iter().filter(ours).map(|l| l.fence).filter(|f| !self.may_be_ours(agent_id, *f)).collect();
        for fence in stale {
            self.release(now, agent_id, fence, out);
        }
        let Some((session, instance, fence)) = held else { return };
        // An entry under this run is a claim of its own: for a handshake that goes on,
        // which takes the place itself, or for nobody.
        if let Some(l) = listed.iter().find(|l| l.hub != self.run && l.instance != instance && l.fence > fence) {
            self.learn_holder(now, agent_id, l.instance, Some(instance), out);
            return self.lose(now, session, CloseCode::Superseded, mux, notes, out);
        }
        if listed.iter().any(|l| l.hub == self.run && l.fence == fence) {
            return self.looked_after(now, agent_id);
        }
        if let Some(a) = self.attachments.get_mut(agent_id) {
            let lost = std::mem::replace(&mut a.firm, false);
            self.upkeep_by(agent_id, now);
            if lost {
                self.suspect_loss(now);
            }
        }
    }

    /// Whether a fence is that of the attachment, or of a claim for it or for
    /// an agent in its handshake.
    pub(super) fn may_be_ours(&self, agent_id: &AgentId, fence: Fence) -> bool {
        self.attachments
            .get(agent_id)
            .is_some_and(|a| a.fence == fence || a.claim.as_ref().is_some_and(|c| c.nonce == fence.nonce))
            || self.pending.values().any(|p| matches!(&p.what, Asked::Claim { agent_id: id, .. } if id == agent_id))
    }

    /// Claims an attachment that the registry does not list; with the same
    /// claim as before if that one's outcome is unknown (O5).
    fn claim_anew(&mut self, now: Instant, agent_id: &AgentId, out: &mut NodeOut) {
        let (claim_id, nonce) = (ClaimId(self.rng.next_u128()), Nonce(self.rng.next_u64()));
        let seen = self.epochs.highest(agent_id);
        let granted = self.epochs.granted(agent_id);
        let hub = self.run.clone();
        let Some(a) = self.attachments.get_mut(agent_id) else { return };
        let again = a.claim.is_some();
        let claim = a.claim.get_or_insert_with(|| {
            Box::new(Claim {
                agent_id: agent_id.clone(),
                instance: a.instance,
                hub,
                claim_id,
                nonce,
                seen,
                granted,
                connectors: if a.expired { Vec::new() } else { a.connectors.clone() },
            })
        });
        let claim_id = claim.claim_id;
        let asked = Asked::Reclaim { agent_id: agent_id.clone(), session: a.session, claim_id, again };
        let op = RegistryOp::Claim(claim.clone());
        self.ask(now, op, asked, out);
    }

    #[expect(clippy::too_many_arguments, reason = "one claim's facts, used once")]
    pub(super) fn on_reclaimed(
        &mut self,
        now: Instant,
        agent_id: &AgentId,
        session: SessionKey,
        (claim_id, repeated): (ClaimId, bool),
        result: RegistryResult,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let waits =
            |a: &&mut AttachmentState| a.session == session && a.claim.as_ref().is_some_and(|c| c.claim_id == claim_id);
        let held = self.attachments.get_mut(agent_id).filter(waits);
        match (result, held) {
            (Ok(RegistryReply::Claimed { epoch, nonce, superseded }), Some(a)) => {
                let fence = Fence { epoch, nonce };
                let asked_for = a.claim.take();
                let changed = asked_for.is_none_or(|c| c.connectors != a.open_to());
                if epoch > a.fence.epoch {
                    self.adopt(now, agent_id, fence, (true, !superseded.is_empty()), mux, notes, out);
                }
                // Not newer, so the agent would not take it: claimed with `seen`.
                // What was asked before may be out of date: audited.
                let held = self.attachments.get(agent_id).is_some_and(|a| a.fence == fence);
                // An answer from memory: what the first one listed may be swept by now.
                let at = if held && repeated {
                    now
                } else if changed || !held {
                    self.soon(now)
                } else {
                    self.next_audit(now)
                };
                self.upkeep.remove(agent_id.clone());
                self.upkeep_by(agent_id, at);
                if held && !repeated {
                    self.looked_after(now, agent_id);
                }
            }
            (Ok(RegistryReply::Claimed { epoch, nonce, .. }), None) => {
                self.on_late_claim(now, agent_id, Fence { epoch, nonce }, out);
            }
            (Ok(_) | Err(RegistryError::Definite(_)), Some(a)) => a.claim = None,
            // It may have happened, or may still: the next one is the same.
            (Err(RegistryError::Unknown(_)), Some(_)) => {}
            (Err(RegistryError::Unknown(_)), None) => self.orphan(now, agent_id.clone()),
            (Ok(_) | Err(RegistryError::Definite(_)), None) => {}
        }
    }

    /// The attachment goes on under a new fence: new streams open under it, open
    /// ones keep the epoch they are bound to (semantics 3).
    fn adopt(
        &mut self,
        now: Instant,
        agent_id: &AgentId,
        fence: Fence,
        (firm, takeover): (bool, bool),
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if planted::on(3) {
            return;
        }
        self.learn_epoch(now, agent_id, fence.epoch, firm);
        let Some(a) = self.attachments.get_mut(agent_id) else { return };
        a.fence = fence;
        a.firm = firm;
        notes.push(ControlNote::Attach(Attach {
            agent_id: agent_id.clone(),
            session: a.session,
            fence,
            connectors: a.open_to().iter().map(|ad| ad.name.clone()).collect(),
        }));
        let (session, instance) = (a.session, a.instance);
        let notice = self.notice(agent_id, instance, fence, firm);
        mux.send(now, session, Frame::Epoch(Box::new(notice.clone())), out);
        self.broadcast_epoch(now, &notice, mux, out);
        self.own_route_changed(agent_id);
        let (agent_id, epoch) = (agent_id.clone(), fence.epoch);
        out.observed.push(Observed::Attached { agent_id, epoch, firm, takeover, again: true });
    }

    /// An agent does not take the epoch it was given, because it has a higher
    /// one from another hub, or the same, and says which (O2, O3).
    pub(super) fn on_epoch_refused(
        &mut self,
        now: Instant,
        key: SessionKey,
        notice: &EpochNotice,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let Some(Peer::Agent { id, .. }) = mux.get(key).map(|e| &e.peer) else { return };
        let own = self.epochs.highest(id);
        let named = self.known_floor(now).map_or(notice.epoch, |floor| seen_clamped(own.max(floor), notice.epoch));
        let honest = self.honest(now);
        let Some(a) = self.attachments.get_mut(id).filter(|a| a.session == key && notice.nonce == a.fence.nonce) else {
            return;
        };
        a.firm = false;
        let before = a.refused_at.replace(now);
        let again = before.is_some_and(|at| now.since(at) < self.config.registry.renew_every);
        let id = id.clone();
        self.epochs.learn(&id, named, false, honest);
        // Nobody can be opened there under the one it did not take, and the
        // registry may be out: it gets a provisional one above its own (M4). One
        // that takes none is not answered as fast as it refuses.
        if !again {
            let epoch = provisional_epoch(named, named, self.known_floor(now));
            let fence = Fence { epoch, nonce: Nonce(self.rng.next_u64()) };
            self.adopt(now, &id, fence, (false, false), mux, notes, out);
        }
        let at = self.soon(now);
        self.upkeep_by(&id, at);
    }

    /// What a claim granted that nobody waits for any more.
    pub(super) fn on_late_claim(&mut self, now: Instant, agent_id: &AgentId, fence: Fence, out: &mut NodeOut) {
        // The claim is under way once more for this attachment: that answer counts.
        if !self.may_be_ours(agent_id, fence) {
            self.release_claimed(now, agent_id, fence, out);
        }
    }

    /// Takes back what a claim granted in vain. That claim may have taken the
    /// place of the entry of an attachment that is held all the same, so that
    /// one is audited at once, and a registry that comes back is not ready
    /// before (O6, L6).
    pub(super) fn release_claimed(&mut self, now: Instant, agent_id: &AgentId, fence: Fence, out: &mut NodeOut) {
        self.release(now, agent_id, fence, out);
        if self.attachments.contains_key(agent_id) {
            self.recover_one(now, agent_id);
        }
    }

    /// An attachment is over.
    pub(super) fn forget_attachment(
        &mut self,
        now: Instant,
        agent_id: &AgentId,
        a: &AttachmentState,
        out: &mut NodeOut,
    ) {
        self.upkeep.remove(agent_id.clone());
        self.looked_after(now, agent_id);
        if self.config.mode == Mode::Off {
            return;
        }
        if a.claim.is_some() || !a.firm {
            // It may be listed under a fence that was never heard of here, or one
            // before it still is: its release may have been in vain.
            self.orphan(now, agent_id.clone());
        }
        self.release(now, agent_id, a.fence, out);
    }

    /// Takes an entry of this hub back. Compare-and-act: a newer one stays (O5).
    pub(super) fn release(&mut self, now: Instant, agent_id: &AgentId, fence: Fence, out: &mut NodeOut) {
        if self.config.mode == Mode::Off {
            // Without a lease nothing of this hub is listed (M1).
            return;
        }
        let op = RegistryOp::Release { agent_id: agent_id.clone(), hub: self.run.clone(), fence };
        if !self.ask(now, op, Asked::Release { agent_id: agent_id.clone() }, out) {
            self.orphan(now, agent_id.clone());
        }
    }

    /// The registry may list this hub for an agent that it does not hold.
    pub(super) fn orphan(&mut self, now: Instant, agent_id: AgentId) {
        let stopped = self.renew_at.is_none();
        if !stopped && self.upkeep.len() < self.attachments.len() + PENDING_OPS_MAX {
            let at = self.soon(now);
            self.upkeep_by(&agent_id, at);
        }
    }

    /// Another hub took this one for the owner, under a fence that it does not
    /// hold: the registry told it so. What that one lists instead of an
    /// attachment of ours, an audit finds out, long before its turn.
    pub(super) fn on_not_owner(&mut self, now: Instant, agent_id: &AgentId) {
        if self.attachments.contains_key(agent_id) {
            let at = self.soon(now);
            self.upkeep_by(agent_id, at);
        } else {
            self.orphan(now, agent_id.clone());
        }
    }

    /// An agent was given this epoch; `firm`: by the registry, whose floor is
    /// at most a day below then.
    pub(super) fn learn_epoch(&mut self, now: Instant, agent_id: &AgentId, granted: Epoch, firm: bool) {
        let honest = self.honest(now);
        self.epochs.learn(agent_id, granted, firm, honest);
        if firm && self.known_floor(now).is_none_or(|known| known < granted) {
            self.floor = Some((now, granted));
        }
    }

    /// What no honest epoch lies above.
    pub(super) fn honest(&self, now: Instant) -> Epoch {
        self.known_floor(now).map_or(Epoch(SEEN_UNCHECKED_MAX), |f| seen_clamped(f, Epoch(u64::MAX)))
    }

    /// About where the registry's floor is now; counted on by our own clock.
    pub(super) fn known_floor(&self, now: Instant) -> Option<Epoch> {
        let (at, epoch) = self.floor?;
        let millis = u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX);
        Some(Epoch(epoch.0.saturating_add(millis.saturating_mul(EPOCHS_PER_MILLI))))
    }
}

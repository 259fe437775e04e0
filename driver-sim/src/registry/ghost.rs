//! What the oracles know of the registry and no machine does: every claim
//! executed and whether it was lost since, every renewal and release that
//! acted, and whether each step kept its promises.
//!
//! Keeps: O2, O3 and O5 are judged per lineage, the unbroken run of data a
//! server answers from; only a loss that a fault made breaks a lineage. The
//! first violation stays.
//!
//! Must not know: how requests travel, which fault is in force.

use std::collections::BTreeMap;
use std::time::Duration;

use nowconnect_core::id::{AgentId, ClaimId, Epoch, Fence, Incarnation, Instance};
use nowconnect_core::registry::{
    CLAIM_MEMORY, Claim, EPOCHS_PER_MILLI, HubRun, Located, MemoryRegistry, RegistryOp, RegistryReply, RegistryResult,
    SEEN_AHEAD_MAX, StoredKey,
};
use nowconnect_core::time::Instant;

use super::server::ServerId;

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its number in the catalogue.
    pub id: &'static str,
    /// What was seen.
    pub text: String,
}

/// A claim that was granted an epoch at a server.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecutedClaim {
    /// The agent.
    pub agent_id: AgentId,
    /// The agent's run.
    pub instance: Instance,
    /// The hub that claimed.
    pub hub: HubRun,
    /// The claim.
    pub claim_id: ClaimId,
    /// What it was granted.
    pub fence: Fence,
    /// Whom it ended.
    pub superseded: Vec<Located>,
    /// When it was executed.
    pub at: Instant,
    /// The same by the registry's wall clock, milliseconds since 1970.
    pub wall_millis: u64,
    /// Where.
    pub server: ServerId,
    /// The primary's data does not contain it: a failover, a flush or a
    /// restore lost it, or it was made at a master that no longer counts.
    pub lost: bool,
    /// The agent's epoch was lost since.
    pub epoch_lost: bool,
    /// The memory of this claim was lost since.
    pub memory_lost: bool,
}

/// A renewal or release that the registry carried out.
#[derive(Clone, Debug, PartialEq)]
pub enum Acted {
    /// A lease was taken or renewed.
    Renewed {
        /// By whom.
        hub: HubRun,
        /// When.
        at: Instant,
        /// How long it lasts from there.
        lease: Duration,
        /// Where.
        server: ServerId,
    },
    /// An attachment was ended, or was gone already.
    Released {
        /// Whose.
        agent_id: AgentId,
        /// At which hub.
        hub: HubRun,
        /// Under which fence.
        fence: Fence,
        /// When.
        at: Instant,
        /// Where.
        server: ServerId,
    },
}

/// What a step may not harm, read before it.
#[derive(Debug, Default)]
pub(super) struct Before {
    stored: Epoch,
    held: Option<(Incarnation, Fence)>,
    lease: Option<(Incarnation, u64)>,
    listed: Vec<Located>,
}

/// Where and when a step is taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) server: ServerId,
    pub(super) primary: bool,
    pub(super) at: Instant,
    pub(super) wall: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Ghost {
    pub(super) claims: Vec<ExecutedClaim>,
    /// Claims by agent, newest last.
    by_agent: BTreeMap<AgentId, Vec<usize>>,
    /// Of whose data a server was made, as of when.
    made_of: BTreeMap<ServerId, (ServerId, Instant)>,
    pub(super) acted: Vec<Acted>,
    pub(super) marks: BTreeMap<&'static str, u64>,
    /// Highest wall-clock time of a claim: what it let be forgotten stays so.
    wall_high: u64,
    violation: Option<Violation>,
}

impl Ghost {
    pub(super) fn check(&self) -> Result<(), Violation> {
        self.violation.clone().map_or(Ok(()), Err)
    }

    pub(super) fn mark(&mut self, what: &'static str) {
        *self.marks.entry(what).or_default() += 1;
    }

    fn violated(&mut self, id: &'static str, text: String) {
        self.violation.get_or_insert(Violation { id, text });
    }

    pub(super) fn before(state: &MemoryRegistry, wall: u64, op: &RegistryOp) -> Before {
        let mut before = Before::default();
        match op {
            RegistryOp::Claim(c) => before.stored = state.epoch(&c.agent_id),
            RegistryOp::Release { agent_id, hub, .. } | RegistryOp::SetConnectors { agent_id, hub, .. } => {
                before.stored = state.epoch(agent_id);
                before.held = state.attachment(agent_id, &hub.replica_id);
            }
            RegistryOp::Renew { hub, .. } | RegistryOp::Resign { hub } => before.lease = state.lease(&hub.replica_id),
            RegistryOp::Sweep => before.listed = state.all_listed(wall).collect(),
            RegistryOp::Lookup { .. } | RegistryOp::Agent { .. } | RegistryOp::Leases { .. } => {}
        }
        before
    }

    /// Judges a step that was taken and remembers what it did.
    pub(super) fn after(
        &mut self,
        place: Place,
        before: &Before,
        op: &RegistryOp,
        result: &RegistryResult,
        state: &MemoryRegistry,
    ) {
        match op {
            RegistryOp::Claim(claim) => {
                self.wall_high = self.wall_high.max(place.wall);
                if let Ok(RegistryReply::Claimed { epoch, nonce, superseded }) = result {
                    let fence = Fence { epoch: *epoch, nonce: *nonce };
                    self.claimed(place, before.stored, claim, fence, superseded);
                }
                self.epoch_kept(before.stored, &claim.agent_id, state, op);
            }
            RegistryOp::Release { agent_id, hub, fence } | RegistryOp::SetConnectors { agent_id, hub, fence, .. } => {
                self.epoch_kept(before.stored, agent_id, state, op);
                let now = state.attachment(agent_id, &hub.replica_id);
                if before.held.is_some_and(|held| held != (hub.incarnation, *fence)) && now != before.held {
                    self.violated("O5", format!("{op:?} changed an attachment of another fence: {:?}", before.held));
                }
                if let RegistryOp::Release { .. } = op {
                    self.released(place, agent_id, hub, *fence, result);
                }
            }
            RegistryOp::Renew { hub, lease, takes_over, .. } => {
                // More than a lease is left only when the clock stepped back.
                let longest = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
                let lives = |until: u64| place.wall < until && until - place.wall <= longest;
                let held = before.lease.filter(|(_, until)| lives(*until)).map(|(run, _)| run);
                let allowed = held.is_none_or(|run| run == hub.incarnation || *takes_over == Some(run));
                if !allowed && state.lease(&hub.replica_id) != before.lease {
                    self.violated("O5", format!("{op:?} replaced the live lease of run {held:?}"));
                }
                if *result == Ok(RegistryReply::Renewed) {
                    let (hub, at, server) = (hub.clone(), place.at, place.server);
                    self.acted.push(Acted::Renewed { hub, at, lease: *lease, server });
                }
            }
            RegistryOp::Resign { hub } => {
                let other = before.lease.is_some_and(|(run, until)| run != hub.incarnation && place.wall < until);
                if other && state.lease(&hub.replica_id) != before.lease {
                    self.violated("O5", format!("{op:?} ended the live lease of run {:?}", before.lease));
                }
            }
            RegistryOp::Sweep => {
                let kept: Vec<Located> = state.all_listed(place.wall).collect();
                if kept != before.listed {
                    self.violated("O5", format!("a sweep turned the listing {:?} into {kept:?}", before.listed));
                }
                self.epochs_kept(place, state);
            }
            RegistryOp::Lookup { .. } | RegistryOp::Agent { .. } | RegistryOp::Leases { .. } => {}
        }
    }

    fn epoch_kept(&mut self, before: Epoch, agent_id: &AgentId, state: &MemoryRegistry, op: &RegistryOp) {
        let now = state.epoch(agent_id);
        if now < before {
            self.violated("O5", format!("the epoch of {agent_id} fell from {before} to {now} by {op:?}"));
        }
    }

    /// No claim that counts at this server lies above the agent's stored epoch.
    fn epochs_kept(&mut self, place: Place, state: &MemoryRegistry) {
        let fallen =
            self.claims.iter().find(|c| self.same_lineage(c, place) && state.epoch(&c.agent_id) < c.fence.epoch);
        if let Some(c) = fallen {
            let text = format!("a sweep left {} at epoch {}, below {c:?}", c.agent_id, state.epoch(&c.agent_id));
            self.violated("O5", text);
        }
    }

    fn released(&mut self, place: Place, agent_id: &AgentId, hub: &HubRun, fence: Fence, result: &RegistryResult) {
        match result {
            Ok(RegistryReply::Done) => {
                let (agent_id, hub, at, server) = (agent_id.clone(), hub.clone(), place.at, place.server);
                self.acted.push(Acted::Released { agent_id, hub, fence, at, server });
            }
            Ok(RegistryReply::Stale) => self.mark("release found a newer owner and did nothing"),
            Ok(_) | Err(_) => {}
        }
    }

    fn claimed(&mut self, place: Place, stored: Epoch, claim: &Claim, fence: Fence, superseded: &[Located]) {
        let floor = place.wall.saturating_mul(EPOCHS_PER_MILLI);
        let known = stored.max(claim.granted);
        let base = known.0.max(floor);
        let seen = claim.seen.0.min(base.saturating_add(SEEN_AHEAD_MAX));
        match self.judge(place, claim, fence, superseded) {
            Judged::Retry => return self.mark("claim retried and answered from memory (idempotent)"),
            Judged::Broken(violation) => drop(self.violation.get_or_insert(violation)),
            Judged::New if fence.epoch.0 <= base.max(seen) => self.violated(
                "O2",
                format!("{claim:?} was granted {fence:?}, not above stored {stored}, seen {seen} and floor {floor}"),
            ),
            Judged::New => {}
        }
        if seen > base {
            self.mark("epoch raised by seen");
        } else if floor > stored.0 {
            self.mark("epoch raised by floor");
        }
        self.by_agent.entry(claim.agent_id.clone()).or_default().push(self.claims.len());
        self.claims.push(ExecutedClaim {
            agent_id: claim.agent_id.clone(),
            instance: claim.instance,
            hub: claim.hub.clone(),
            claim_id: claim.claim_id,
            fence,
            superseded: superseded.to_vec(),
            at: place.at,
            wall_millis: place.wall,
            server: place.server,
            lost: !place.primary,
            epoch_lost: false,
            memory_lost: false,
        });
    }

    fn judge(&self, place: Place, claim: &Claim, fence: Fence, superseded: &[Located]) -> Judged {
        let broken = |id, text| Judged::Broken(Violation { id, text });
        let past =
            || self.by_agent.get(&claim.agent_id).into_iter().flatten().rev().filter_map(|ix| self.claims.get(*ix));
        // First: a retry gets its old answer, also after other claims (O5).
        let same =
            |old: &&ExecutedClaim| old.claim_id == claim.claim_id && old.fence == fence && self.contains(old, place);
        if let Some(old) = past().find(same) {
            let remembered = !old.memory_lost && self.wall_high < old.wall_millis.saturating_add(memory_millis());
            if remembered && old.superseded != superseded {
                return broken("O5", format!("a retry got {superseded:?}, the first time {:?}", old.superseded));
            }
            return Judged::Retry;
        }
        for old in past() {
            let known = self.contains(old, place);
            let remembered =
                known && !old.memory_lost && self.wall_high < old.wall_millis.saturating_add(memory_millis());
            if old.claim_id == claim.claim_id && remembered {
                return broken("O5", format!("a retry of {old:?} was granted {fence:?}"));
            }
            if old.fence.epoch == fence.epoch && old.claim_id != claim.claim_id && !self.excused(old, place) {
                return broken("O3", format!("{claim:?} was granted {fence:?}, the epoch of {old:?}"));
            }
            if old.fence.epoch > fence.epoch && self.same_lineage(old, place) {
                return broken("O2", format!("{claim:?} was granted {fence:?} after {old:?}"));
            }
        }
        Judged::New
    }

    /// A server began with the data another one had at an instant.
    pub(super) fn made_of(&mut self, server: ServerId, old: ServerId, data_of: Instant) {
        self.made_of.insert(server, (old, data_of));
    }

    /// Whether the data this server answers from came to contain the claim.
    fn contains(&self, c: &ExecutedClaim, place: Place) -> bool {
        if place.primary && !c.lost {
            return true;
        }
        let mut server = place.server;
        while c.server != server {
            match self.made_of.get(&server) {
                Some((old, data_of)) if c.at <= *data_of => server = *old,
                Some(_) | None => return false,
            }
        }
        true
    }

    /// Whether it still bounds the agent's epochs there.
    fn same_lineage(&self, c: &ExecutedClaim, place: Place) -> bool {
        !c.epoch_lost && self.contains(c, place)
    }

    /// Whether an equal epoch is the doing of an injected fault: the server knew
    /// nothing of the first claim, and its clock did not pass the first claim's
    /// either, or that one lay above its own millisecond already.
    fn excused(&self, old: &ExecutedClaim, place: Place) -> bool {
        let above = old.wall_millis.saturating_add(1).saturating_mul(EPOCHS_PER_MILLI);
        !self.same_lineage(old, place) && (place.wall <= old.wall_millis || old.fence.epoch.0 > above)
    }

    /// The primary's data from now on is that of `until`, or empty.
    pub(super) fn lose_after(&mut self, until: Option<Instant>) -> bool {
        let mut any = false;
        for c in &mut self.claims {
            let gone = !c.lost && until.is_none_or(|until| c.at > until);
            c.lost |= gone;
            any |= gone;
        }
        any
    }

    /// The primary lost a key.
    pub(super) fn evicted(&mut self, key: &StoredKey) {
        for c in &mut self.claims {
            match key {
                StoredKey::Epoch(agent_id) => c.epoch_lost |= c.agent_id == *agent_id,
                StoredKey::Claim(agent_id, claim_id) => {
                    c.memory_lost |= c.agent_id == *agent_id && c.claim_id == *claim_id;
                }
                StoredKey::Lease(_) | StoredKey::Attachments(_) | StoredKey::Index(_) => {}
            }
        }
    }
}

enum Judged {
    New,
    Retry,
    Broken(Violation),
}

fn memory_millis() -> u64 {
    u64::try_from(CLAIM_MEMORY.as_millis()).unwrap_or(u64::MAX)
}

//! The registry of one process: the same steps as the Redis scripts, as pure
//! data. It serves `demo`, a single hub and tests, and it is the model the
//! Redis scripts are compared with (the contract test runs the same operations
//! against both), so a rule changed here is changed there.
//!
//! Keeps: O2 and O3 (epochs of an agent strictly increase, whatever is released
//! or swept), O5 (a repeated step changes nothing and answers alike; a
//! compare-and-act never removes a newer owner). Leases decide what is listed,
//! never what is granted: availability, not safety.
//!
//! Must not know: the clock (the registry's wall clock is an argument), hubs'
//! machines, Redis.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::{
    CLAIM_MEMORY, Claim, EPOCH_MAX, HubRun, Located, RegistryError, RegistryOp, RegistryReply, RegistryResult,
    next_epoch,
};
use crate::id::{AgentId, ClaimId, Epoch, Fence, Incarnation, Instance, Name};
use crate::planted;
use crate::wire::ConnectorAd;

mod faults;
#[cfg(test)]
mod tests;

pub use faults::StoredKey;

/// The registry of one process. `Clone` and `PartialEq` make a snapshot to
/// restore (fault R4) and to compare.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemoryRegistry {
    leases: BTreeMap<Name, Lease>,
    /// Never shrinks: an epoch outlives its attachments (planted bug 5).
    epochs: BTreeMap<AgentId, Epoch>,
    attachments: BTreeMap<AgentId, BTreeMap<Name, Attachment>>,
    claims: BTreeMap<(AgentId, ClaimId), Granted>,
    claim_order: VecDeque<(u64, AgentId, ClaimId)>,
    /// Which agents were ever announced for a connector. A hint: readers check
    /// each entry against the attachments.
    index: BTreeMap<Name, BTreeSet<AgentId>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Lease {
    incarnation: Incarnation,
    region: Option<Name>,
    until_millis: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct Attachment {
    instance: Instance,
    incarnation: Incarnation,
    fence: Fence,
    claim_id: ClaimId,
    connectors: Vec<ConnectorAd>,
}

impl Attachment {
    fn held_by(&self, hub: &HubRun, fence: Fence) -> bool {
        self.incarnation == hub.incarnation && self.fence == fence
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Granted {
    fence: Fence,
    superseded: Vec<Located>,
    until_millis: u64,
}

impl Granted {
    fn reply(&self) -> RegistryReply {
        claimed(self.fence, self.superseded.clone())
    }
}

const fn claimed(fence: Fence, superseded: Vec<Located>) -> RegistryReply {
    RegistryReply::Claimed { epoch: fence.epoch, nonce: fence.nonce, superseded }
}

fn done_if(acted: bool) -> RegistryReply {
    if acted { RegistryReply::Done } else { RegistryReply::Stale }
}

/// Redis keeps expiries in whole milliseconds and refuses zero.
fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// How far the clock of a hub that sweeps runs ahead (planted bug 6).
const SWEEPER_AHEAD_MILLIS: u64 = 60_000;

/// An epoch as Lua's `tostring` writes it, with 14 significant digits
/// (planted bug 11).
fn as_lua_text(epoch: Epoch) -> Epoch {
    let digits = epoch.0.checked_ilog10().map_or(1, |n| n + 1);
    let unit = 10_u64.pow(digits.saturating_sub(14));
    Epoch((epoch.0 + unit / 2) / unit * unit)
}

impl MemoryRegistry {
    /// The highest epoch granted to an agent, as it is kept for the next claim;
    /// 0 if it never claimed. It never decreases (O6).
    #[must_use]
    pub fn stored_epoch(&self, agent_id: &AgentId) -> Epoch {
        self.epochs.get(agent_id).copied().unwrap_or_default()
    }

    /// Takes one step. `now_wall_millis` is the registry's wall clock,
    /// milliseconds since 1970; it ends leases and gives the floor of epochs.
    ///
    /// # Errors
    /// `Definite` when the epochs of an agent are used up ([`EPOCH_MAX`]);
    /// never `Unknown`.
    pub fn execute(&mut self, now_wall_millis: u64, op: &RegistryOp) -> RegistryResult {
        let now = now_wall_millis;
        Ok(match op {
            RegistryOp::Renew { hub, lease, takes_over, region } => {
                self.renew(now, hub, millis(*lease), *takes_over, region.as_ref())
            }
            RegistryOp::Resign { hub } => self.resign(now, hub),
            RegistryOp::Claim(claim) => return self.claim(now, claim),
            RegistryOp::SetConnectors { agent_id, hub, fence, connectors } => {
                self.set_connectors(agent_id, hub, *fence, connectors)
            }
            RegistryOp::Release { agent_id, hub, fence } => self.release(agent_id, hub, *fence),
            RegistryOp::Lookup { connector } => RegistryReply::Attachments(self.lookup(now, connector)),
            RegistryOp::Agent { agent_id } => RegistryReply::Attachments(self.listed(now, agent_id).collect()),
            RegistryOp::Leases { replicas } => RegistryReply::Leases(self.holders(now, replicas)),
            RegistryOp::Sweep => RegistryReply::Swept(self.sweep(now)),
        })
    }

    fn live(&self, now: u64, replica_id: &Name) -> Option<&Lease> {
        self.leases.get(replica_id).filter(|l| now < l.until_millis)
    }

    fn holders(&self, now: u64, replicas: &BTreeSet<Name>) -> Vec<HubRun> {
        let run = |replica_id: &Name| {
            let incarnation = self.live(now, replica_id)?.incarnation;
            Some(HubRun { replica_id: replica_id.clone(), incarnation })
        };
        replicas.iter().filter_map(run).collect()
    }

    fn renew(
        &mut self,
        now: u64,
        hub: &HubRun,
        lease_millis: u64,
        takes_over: Option<Incarnation>,
        region: Option<&Name>,
    ) -> RegistryReply {
        if let Some(holder) = self.live(now, &hub.replica_id)
            && holder.incarnation != hub.incarnation
            && takes_over != Some(holder.incarnation)
            // More than a lease is left only when the clock stepped back: who
            // lives renews it to a lease from now, who is dead would stay for
            // as long as the step was.
            && holder.until_millis.saturating_sub(now) <= lease_millis
            && !planted::on(2007)
        {
            return RegistryReply::LeaseHeld { by: holder.incarnation };
        }
        let lease = Lease {
            incarnation: hub.incarnation,
            region: region.cloned(),
            until_millis: now.saturating_add(lease_millis),
        };
        self.leases.insert(hub.replica_id.clone(), lease);
        RegistryReply::Renewed
    }

    fn resign(&mut self, now: u64, hub: &HubRun) -> RegistryReply {
        match self.live(now, &hub.replica_id) {
            Some(holder) if holder.incarnation != hub.incarnation => RegistryReply::Stale,
            Some(_) | None => {
                self.leases.remove(&hub.replica_id);
                RegistryReply::Done
            }
        }
    }

    fn claim(&mut self, now: u64, claim: &Claim) -> RegistryResult {
        self.forget_claims(now);
        let Claim { agent_id, instance, hub, claim_id, nonce, seen, granted, connectors } = claim;
        let known = self.claims.get(&(agent_id.clone(), *claim_id));
        if let Some(granted) = known.filter(|_| !planted::on(2056)) {
            let reply = granted.reply();
            self.announce(agent_id, connectors);
            return Ok(reply);
        }
        let own = self.attachments.get(agent_id).and_then(|held| held.get(&hub.replica_id));
        if let Some(own) = own.filter(|a| a.claim_id == *claim_id) {
            let reply = claimed(own.fence, Vec::new());
            self.announce(agent_id, connectors);
            return Ok(reply);
        }

        let stored = self.epochs.get(agent_id).copied().unwrap_or_default();
        let epoch = next_epoch(stored.max(*granted), *seen, now);
        let epoch = if planted::on(11) { as_lua_text(epoch) } else { epoch };
        if epoch.0 > EPOCH_MAX {
            return Err(RegistryError::Definite(super::epochs_used_up()));
        }
        let fence = Fence { epoch, nonce: *nonce };
        let held = self.attachments.entry(agent_id.clone()).or_default();
        let superseded: Vec<Located> = held
            .iter()
            .filter(|(_, a)| a.instance != *instance)
            .map(|(replica_id, a)| located(agent_id, replica_id, a, None))
            .collect();
        held.retain(|_, a| a.instance == *instance);
        let attachment = Attachment {
            instance: *instance,
            incarnation: hub.incarnation,
            fence,
            claim_id: *claim_id,
            connectors: connectors.clone(),
        };
        held.insert(hub.replica_id.clone(), attachment);
        self.epochs.insert(agent_id.clone(), epoch);

        let until_millis = now.saturating_add(millis(CLAIM_MEMORY));
        self.claim_order.push_back((until_millis, agent_id.clone(), *claim_id));
        let granted = Granted { fence, superseded, until_millis };
        let reply = granted.reply();
        self.claims.insert((agent_id.clone(), *claim_id), granted);
        self.announce(agent_id, connectors);
        Ok(reply)
    }

    fn forget_claims(&mut self, now: u64) {
        while self.claim_order.front().is_some_and(|(until, ..)| *until <= now) {
            if let Some((_, agent_id, claim_id)) = self.claim_order.pop_front() {
                self.claims.remove(&(agent_id, claim_id));
            }
        }
    }

    fn set_connectors(
        &mut self,
        agent_id: &AgentId,
        hub: &HubRun,
        fence: Fence,
        connectors: &[ConnectorAd],
    ) -> RegistryReply {
        let held = self.attachments.get_mut(agent_id).and_then(|held| held.get_mut(&hub.replica_id));
        let Some(attachment) = held.filter(|a| a.held_by(hub, fence)) else {
            return RegistryReply::Stale;
        };
        attachment.connectors = connectors.to_vec();
        self.announce(agent_id, connectors);
        RegistryReply::Done
    }

    fn release(&mut self, agent_id: &AgentId, hub: &HubRun, fence: Fence) -> RegistryReply {
        let Some(held) = self.attachments.get_mut(agent_id) else { return RegistryReply::Done };
        let ours = held.get(&hub.replica_id).is_none_or(|a| {
            let fence = if planted::on(2006) { a.fence } else { fence };
            a.held_by(hub, fence)
        });
        if ours {
            held.remove(&hub.replica_id);
            if planted::on(5) {
                self.epochs.remove(agent_id);
            }
        }
        done_if(ours)
    }

    fn announce(&mut self, agent_id: &AgentId, connectors: &[ConnectorAd]) {
        for ad in connectors {
            self.index.entry(ad.name.clone()).or_default().insert(agent_id.clone());
        }
    }

    fn lookup(&self, now: u64, connector: &Name) -> Vec<Located> {
        let hints = self.index.get(connector).into_iter().flatten();
        hints
            .flat_map(|agent_id| self.listed(now, agent_id))
            .filter(|l| l.connectors.iter().any(|ad| ad.name == *connector))
            .collect()
    }

    /// The agent's attachments at hubs whose present run holds a live lease,
    /// by replica id.
    fn listed(&self, now: u64, agent_id: &AgentId) -> impl Iterator<Item = Located> {
        let held = self.attachments.get_key_value(agent_id);
        held.into_iter().flat_map(move |(agent_id, held)| {
            held.iter().filter_map(move |(replica_id, a)| {
                let lease = self.live(now, replica_id).filter(|l| l.incarnation == a.incarnation)?;
                Some(located(agent_id, replica_id, a, lease.region.clone()))
            })
        })
    }

    fn sweep(&mut self, now: u64) -> u32 {
        let mut removed = 0_u32;
        let now = if planted::on(6) { now.saturating_add(SWEEPER_AHEAD_MILLIS) } else { now };
        self.leases.retain(|_, l| now < l.until_millis);
        let leases = &self.leases;
        for held in self.attachments.values_mut() {
            held.retain(|replica_id, a| {
                let live = leases.get(replica_id).is_some_and(|l| l.incarnation == a.incarnation);
                removed = removed.saturating_add(u32::from(!live));
                live || planted::on(2034)
            });
        }
        self.attachments.retain(|_, held| !held.is_empty());
        let attachments = &self.attachments;
        self.index.retain(|connector, agents| {
            agents.retain(|agent_id| {
                let exposes = |a: &Attachment| a.connectors.iter().any(|ad| ad.name == *connector);
                let live = attachments.get(agent_id).is_some_and(|held| held.values().any(exposes));
                removed = removed.saturating_add(u32::from(!live));
                live
            });
            !agents.is_empty()
        });
        removed
    }
}

fn located(agent_id: &AgentId, replica_id: &Name, a: &Attachment, region: Option<Name>) -> Located {
    Located {
        agent_id: agent_id.clone(),
        instance: a.instance,
        hub: HubRun { replica_id: replica_id.clone(), incarnation: a.incarnation },
        fence: a.fence,
        connectors: a.connectors.clone(),
        region,
    }
}

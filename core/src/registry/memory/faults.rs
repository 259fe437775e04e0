//! Hooks for fault models: what may be lost from a registry behind its back,
//! and what an oracle may look at without asking through an operation.
//!
//! Keeps: nothing here is called by a machine or a driver in service; a lost
//! key leaves the rest as it was, as an eviction in Redis does.
//!
//! Must not know: why something is lost, time beyond its arguments.

use super::{Located, MemoryRegistry};
use crate::id::{AgentId, ClaimId, Epoch, Fence, Incarnation, Name};

/// One key as Redis would hold it: the unit of eviction (fault R5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoredKey {
    /// The lease of a replica.
    Lease(Name),
    /// All attachments of an agent: one hash.
    Attachments(AgentId),
    /// An agent's epoch.
    Epoch(AgentId),
    /// The memory of one claim.
    Claim(AgentId, ClaimId),
    /// The index of a connector.
    Index(Name),
}

/// For fault models.
impl MemoryRegistry {
    /// Every key held now, in a fixed order.
    pub fn keys(&self) -> impl Iterator<Item = StoredKey> + '_ {
        let leases = self.leases.keys().cloned().map(StoredKey::Lease);
        let attachments = self.attachments.iter().filter(|(_, held)| !held.is_empty());
        let attachments = attachments.map(|(agent_id, _)| StoredKey::Attachments(agent_id.clone()));
        let epochs = self.epochs.keys().cloned().map(StoredKey::Epoch);
        let claims = self.claims.keys().map(|(agent_id, claim_id)| StoredKey::Claim(agent_id.clone(), *claim_id));
        let index = self.index.keys().cloned().map(StoredKey::Index);
        leases.chain(attachments).chain(epochs).chain(claims).chain(index)
    }

    /// Loses a key (R5). False when it was not there.
    pub fn evict(&mut self, key: &StoredKey) -> bool {
        match key {
            StoredKey::Lease(replica_id) => self.leases.remove(replica_id).is_some(),
            StoredKey::Attachments(agent_id) => self.attachments.remove(agent_id).is_some(),
            StoredKey::Epoch(agent_id) => self.epochs.remove(agent_id).is_some(),
            StoredKey::Claim(agent_id, claim_id) => {
                self.claim_order.retain(|(_, agent, claim)| agent != agent_id || claim != claim_id);
                self.claims.remove(&(agent_id.clone(), *claim_id)).is_some()
            }
            StoredKey::Index(connector) => self.index.remove(connector).is_some(),
        }
    }

    /// Makes one attachment record unreadable (R9): to every reader it is
    /// absent from now on. False when it was not there.
    pub fn spoil_attachment(&mut self, agent_id: &AgentId, replica_id: &Name) -> bool {
        self.attachments.get_mut(agent_id).is_some_and(|held| held.remove(replica_id).is_some())
    }

    /// Takes an agent out of a connector's index, as if it had not been
    /// announced. False when it was not in it.
    pub fn unannounce(&mut self, connector: &Name, agent_id: &AgentId) -> bool {
        self.index.get_mut(connector).is_some_and(|agents| agents.remove(agent_id))
    }

    /// Whether an agent is in a connector's index.
    #[must_use]
    pub fn is_announced(&self, connector: &Name, agent_id: &AgentId) -> bool {
        self.index.get(connector).is_some_and(|agents| agents.contains(agent_id))
    }

    /// An agent's stored epoch; zero when there is none.
    #[must_use]
    pub fn epoch(&self, agent_id: &AgentId) -> Epoch {
        self.epochs.get(agent_id).copied().unwrap_or_default()
    }

    /// Who holds a replica's lease, and until when by the registry's wall
    /// clock (milliseconds since 1970). It may be over.
    #[must_use]
    pub fn lease(&self, replica_id: &Name) -> Option<(Incarnation, u64)> {
        self.leases.get(replica_id).map(|l| (l.incarnation, l.until_millis))
    }

    /// The attachment an agent has at a replica, listed or not.
    #[must_use]
    pub fn attachment(&self, agent_id: &AgentId, replica_id: &Name) -> Option<(Incarnation, Fence)> {
        let attachment = self.attachments.get(agent_id)?.get(replica_id)?;
        Some((attachment.incarnation, attachment.fence))
    }

    /// Agent and replica of every attachment, listed or not, in a fixed order.
    pub fn attachments(&self) -> impl Iterator<Item = (&AgentId, &Name)> {
        self.attachments.iter().flat_map(|(agent_id, held)| held.keys().map(move |replica_id| (agent_id, replica_id)))
    }

    /// Every attachment that is listed at this wall-clock time, by agent and replica.
    pub fn all_listed(&self, now_wall_millis: u64) -> impl Iterator<Item = Located> {
        self.attachments.keys().flat_map(move |agent_id| self.listed(now_wall_millis, agent_id))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{T0, agent, claim, granted, hub, listed, lookup, name, renew};
    use super::*;
    use crate::registry::{RegistryOp, RegistryReply};

    fn served() -> (MemoryRegistry, Fence) {
        let mut r = MemoryRegistry::default();
        r.execute(T0, &renew(&hub(1, 1), None)).unwrap();
        let (fence, _) = granted(r.execute(T0, &claim(agent(1), 1, hub(1, 1), 1, 0)));
        (r, fence)
    }

    #[test]
    fn each_key_can_be_lost_by_itself() {
        let (full, fence) = served();
        let keys: Vec<StoredKey> = full.keys().collect();
        assert_eq!(keys.len(), 5, "{keys:?}");
        for key in keys {
            let mut r = full.clone();
            assert!(r.evict(&key) && !r.evict(&key), "{key:?}");
            assert_eq!(r.keys().count(), 4);
            let lists = listed(r.execute(T0, &lookup("ldap"))).len();
            let needed = matches!(key, StoredKey::Lease(_) | StoredKey::Attachments(_) | StoredKey::Index(_));
            assert_eq!(lists, usize::from(!needed), "{key:?}");
        }
        assert_eq!(full.epoch(&agent(1)), fence.epoch);
        assert_eq!(full.all_listed(T0).map(|l| l.fence).collect::<Vec<_>>(), [fence]);
        assert_eq!(full.attachments().count(), 1);
        assert_eq!(full.all_listed(T0 + 60_000).count(), 0, "the lease is over");
    }

    #[test]
    fn a_claim_whose_memory_was_lost_is_remembered_anew_for_its_whole_time() {
        let (mut r, _) = served();
        assert!(r.evict(&StoredKey::Claim(agent(1), ClaimId(1))));
        assert!(r.spoil_attachment(&agent(1), &name("hub-1")));
        let (second, _) = granted(r.execute(T0 + 30_000, &claim(agent(1), 1, hub(1, 1), 1, 0)));
        granted(r.execute(T0 + 61_000, &claim(agent(1), 1, hub(1, 1), 2, 0)));
        let (again, _) = granted(r.execute(T0 + 61_000, &claim(agent(1), 1, hub(1, 1), 1, 0)));
        assert_eq!(again, second, "the memory of the first execution must not end that of the second");
    }

    #[test]
    fn a_spoilt_attachment_is_absent_and_an_unannounced_one_is_not_found() {
        let (full, fence) = served();
        let mut r = full.clone();
        assert_eq!(r.attachment(&agent(1), &name("hub-1")), Some((Incarnation(1), fence)));
        assert!(r.spoil_attachment(&agent(1), &name("hub-1")));
        let set = RegistryOp::SetConnectors { agent_id: agent(1), hub: hub(1, 1), fence, connectors: Vec::new() };
        assert_eq!(r.execute(T0, &set), Ok(RegistryReply::Stale));
        let mut r = full;
        assert!(r.is_announced(&name("ldap"), &agent(1)) && r.unannounce(&name("ldap"), &agent(1)));
        assert!(listed(r.execute(T0, &lookup("ldap"))).is_empty());
        assert_eq!(listed(r.execute(T0, &RegistryOp::Agent { agent_id: agent(1) })).len(), 1);
        assert_eq!(r.lease(&name("hub-1")), Some((Incarnation(1), T0 + 10_000)));
    }
}

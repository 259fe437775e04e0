//! The registry of the world: what waits for it, what it takes now, and what it
//! lists. Must not know what is asked for what.

use std::collections::BTreeSet;

use nowconnect_core::id::AgentId;
use nowconnect_core::registry::{RegistryOp, RegistryReply, Token};

use super::{World, name};

impl World {
    /// What waits for the registry is answered, the latest first.
    pub(crate) fn release_registry_backwards(&mut self) {
        self.registry_ops.make_contiguous().reverse();
        self.registry_held = false;
    }

    /// Operations the registry was asked and has not answered.
    pub(crate) fn registry_waiting(&self) -> usize {
        self.registry_ops.len()
    }

    /// The hubs and agents of the attachments that are to be looked at or
    /// claimed by operations that wait.
    pub(crate) fn upkeep_waiting(&self) -> BTreeSet<(usize, AgentId)> {
        let agent = |op: &RegistryOp| match op {
            RegistryOp::SetConnectors { agent_id, .. } | RegistryOp::Agent { agent_id } => Some(agent_id.clone()),
            RegistryOp::Claim(c) => Some(c.agent_id.clone()),
            RegistryOp::Renew { .. }
            | RegistryOp::Resign { .. }
            | RegistryOp::Release { .. }
            | RegistryOp::Lookup { .. }
            | RegistryOp::Leases { .. }
            | RegistryOp::Sweep => None,
        };
        self.registry_ops.iter().filter_map(|(n, _, op)| Some((*n, agent(op)?))).collect()
    }

    /// The next operation that the registry takes now.
    pub(super) fn next_registry_op(&mut self) -> Option<(usize, Token, RegistryOp)> {
        if self.registry_held || self.claims_held && self.claim_waits() {
            return None;
        }
        let takes = |op: &RegistryOp| !self.only_renewals || matches!(op, RegistryOp::Renew { .. });
        let ix = self.registry_ops.iter().position(|(_, _, op)| takes(op))?;
        self.registry_ops.remove(ix)
    }

    /// Whether the next operation is a claim.
    pub(crate) fn claim_waits(&self) -> bool {
        matches!(self.registry_ops.front(), Some((_, _, RegistryOp::Claim(_))))
    }

    pub(super) fn registry_millis(&self) -> u64 {
        1_000_000 + self.now.as_nanos() / 1_000_000 + self.registry_ahead - self.registry_behind
    }

    /// Attachments the registry lists for a connector.
    pub(crate) fn located(&mut self, connector: &str) -> usize {
        let op = RegistryOp::Lookup { connector: name(connector) };
        match self.registry.execute(self.registry_millis(), &op) {
            Ok(RegistryReply::Attachments(l)) => l.len(),
            other => panic!("{other:?}"),
        }
    }
}

//! Another configuration of a shard while its streams go on: limits hold for
//! what is new and take nothing back (B3, planted bug 52), a listener keeps its
//! place for ever, a connector that was withdrawn is refused so that the origin
//! may ask elsewhere. Must not know where a configuration comes from.

use std::collections::BTreeSet;

use super::{Role, Shard};
use crate::config::Limits;
use crate::id::{Name, SessionKey};
use crate::planted;

/// Names kept of what an attachment withdrew: those of a few CONNECTORS.
const WITHDRAWN_MAX: usize = 1024;

/// What a shard runs on.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Listeners with their deadlines, or the agent's. A listener that is gone
    /// keeps its place, with room for nobody.
    pub role: Role,
    /// Limits.
    pub limits: Limits,
}

impl Shard {
    pub(super) fn reload(&mut self, config: &ShardConfig) {
        let before = self.selection().map(|s| s.fall);
        self.role = config.role.clone();
        if self.selection().map(|s| s.fall) != before {
            // Counted by another rule.
            self.ejections.forgive();
        }
        if !planted::on(2016) {
            self.dedup.resize(config.limits.tombstones);
        }
        self.limits = config.limits.clone();
        let listeners = if let Role::Hub { listeners, .. } = &self.role { listeners.len() } else { 0 };
        self.clients.resize(listeners.max(self.clients.len()), 0);
        self.counters.opened_local.resize(self.clients.len(), 0);
        self.counters.opened_mesh.resize(self.clients.len(), 0);
        self.counters.open_failures.resize(self.clients.len(), [0; 32]);
        self.counters.shadow_local.resize(self.clients.len(), 0);
        self.counters.shadow_mesh.resize(self.clients.len(), 0);
        self.counters.shadow_refused.resize(self.clients.len(), [0; 32]);
    }

    /// Whether a listener takes no further client. With a limit below what
    /// there is, nobody gets in until enough have left.
    pub(super) fn is_full(&self, listener: usize, max: u32) -> bool {
        // Places of one name count together: its connector may have changed.
        let Role::Hub { listeners, .. } = &self.role else { return true };
        let name = listeners.get(listener).map(|l| &l.name);
        let same = listeners.iter().enumerate().filter(|(_, l)| Some(&l.name) == name);
        let clients: u32 = same.map(|(ix, _)| self.clients_everywhere(ix)).sum();
        if planted::on(52) { max.wrapping_sub(clients) == 0 } else { clients >= max }
    }

    /// What the attachments expose from now on (agent).
    pub(super) fn expose(&mut self, connectors: &[Name]) {
        for attach in self.attachments.values_mut().flat_map(|by_session| by_session.values_mut()) {
            let before = std::mem::replace(&mut attach.connectors, connectors.to_vec());
            let gone: BTreeSet<Name> = before.into_iter().filter(|c| !connectors.contains(c)).collect();
            let kept = self.withdrawn.entry(attach.session).or_default();
            kept.extend(gone);
        }
    }

    /// What an attachment does not expose any more, in addition to what was
    /// withdrawn before: an OPEN for that may still be on its way.
    pub(super) fn withdraw(&mut self, session: SessionKey, gone: BTreeSet<Name>) {
        let kept = self.withdrawn.entry(session).or_default();
        if kept.len() + gone.len() > WITHDRAWN_MAX {
            kept.clear();
        }
        kept.extend(gone);
    }
}

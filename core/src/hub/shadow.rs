//! What `shadow` knows and does not use: the candidates at other hubs that this
//! hub would have in `active`, and what it would tell a client without any. The
//! registry is asked as in `active`; shards count by it and route by their own
//! attachments alone (M2).
//!
//! Must not know what is counted, nor by whom.

use super::control::Control;
use crate::config::{Mode, OnOutage};
use crate::error::RstCode;
use crate::id::Name;
use crate::mux::Mux;
use crate::route::{RouteChange, Routes};
use crate::shard::{ControlNote, ShadowNote};
use std::sync::Arc;

/// What the shards were told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Candidates at other hubs.
    routes: Routes,
    /// What a client without any would be told; `None` out of `shadow`.
    otherwise: Option<RstCode>,
}

impl Control {
    /// Whether this hub decides as in `active` without acting on it.
    pub(super) fn shadows(&self) -> bool {
        matches!(self.config.mode, Mode::Shadow)
    }

    /// Whether other hubs' attachments are looked up: to be used, or to be
    /// counted by.
    pub(super) fn looks_across(&self) -> bool {
        matches!(self.config.mode, Mode::Shadow | Mode::Active)
    }

    /// Tells the shards what changed, for the connectors that routes are looked
    /// at for anyway.
    pub(super) fn publish_shadow(&mut self, connectors: &[Name], mux: &Mux, notes: &mut Vec<ControlNote>) {
        if !self.shadows() {
            if self.told.otherwise.is_some() {
                self.told = Told::default();
                notes.push(ControlNote::Shadow(None));
            }
            return;
        }
        let otherwise = if self.registry_healthy() { RstCode::NoRoute } else { RstCode::RegistryDown };
        if connectors.is_empty() && self.told.otherwise == Some(otherwise) {
            return;
        }
        let usable = !self.registry_unwell() || self.config.registry.on_outage == OnOutage::Cached;
        let all = if self.told.otherwise.is_none() { self.remote_connectors() } else { Vec::new() };
        let mut changes: Vec<RouteChange> = Vec::new();
        for connector in all.iter().chain(connectors) {
            let mut now = if usable { self.elsewhere(connector, true, mux) } else { crate::route::Candidates::new() };
            let gone = (self.told.routes.of(connector))
                .filter(|c| !now.contains_key(&(c.agent_id.clone(), c.owner.clone())))
                .map(|c| c.gone(connector.clone()));
            changes.extend(gone);
            while let Some((_, candidate)) = now.pop_first() {
                changes.push(candidate.at(connector.clone()));
            }
        }
        changes.retain(|change| self.told.routes.apply(change));
        if changes.is_empty() && self.told.otherwise == Some(otherwise) {
            return;
        }
        self.told.otherwise = Some(otherwise);
        notes.push(ControlNote::Shadow(Some(ShadowNote { changes: Arc::from(changes), otherwise })));
    }
}

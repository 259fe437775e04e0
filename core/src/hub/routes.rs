//! What a hub publishes to its shards as candidates: its own attachments, and
//! those of other hubs as last looked up. Owns the index of which attachment
//! exposes which connector, and what changed since the last note: work per
//! change does not grow with the number of agents (C3).
//!
//! Keeps M4 (while the registry is unwell, other hubs' attachments are
//! candidates only with `on_outage: cached`). Must not know streams.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::control::Control;
use crate::config::OnOutage;
use crate::id::{AgentId, Name};
use crate::mux::{Mux, Peer};
use crate::registry::Located;
use crate::route::{Candidate, Candidates, RANK_FADED, RANK_LEAVING, RouteChange, Routes, rank, weight};
use crate::shard::ControlNote;

/// What is published, and what is to be published next.
#[derive(Debug, Default)]
pub(super) struct Published {
    routes: Routes,
    /// Which of this hub's attachments expose a connector.
    exposed: BTreeMap<Name, BTreeSet<AgentId>>,
    /// The same, by agent.
    by_agent: BTreeMap<AgentId, Vec<Name>>,
    /// Own attachments to look at again.
    own: BTreeSet<(Name, AgentId)>,
    /// Connectors whose candidates at other hubs are to be looked at again.
    others: BTreeSet<Name>,
}

impl Published {
    /// Whether an attachment of this hub exposes the connector.
    pub(super) fn exposes(&self, connector: &Name) -> bool {
        self.exposed.contains_key(connector)
    }

    /// The candidates as the shards know them.
    pub(super) fn of(&self, connector: &Name) -> impl Iterator<Item = &Candidate> {
        self.routes.of(connector)
    }

    /// Other hubs' candidates of this connector changed.
    pub(super) fn others_changed(&mut self, connector: &Name) {
        self.others.insert(connector.clone());
    }
}

impl Control {
    /// Connectors that were looked up at the registry.
    pub(super) fn remote_connectors(&self) -> Vec<Name> {
        self.remote.keys().cloned().collect()
    }

    /// An attachment of this hub came, went, or changed what it exposes.
    pub(super) fn own_route_changed(&mut self, agent_id: &AgentId) {
        let names = |a: &super::control::AttachmentState| a.open_to().iter().map(|ad| ad.name.clone()).collect();
        let now: Vec<Name> = self.attachments.get(agent_id).map(names).unwrap_or_default();
        let p = &mut self.published;
        let before = p.by_agent.remove(agent_id).unwrap_or_default();
        for name in before.iter().filter(|name| !now.contains(name)) {
            if let Some(agents) = p.exposed.get_mut(name) {
                agents.remove(agent_id);
                if agents.is_empty() {
                    p.exposed.remove(name);
                }
            }
        }
        for name in &now {
            p.exposed.entry(name.clone()).or_default().insert(agent_id.clone());
        }
        p.own.extend(before.iter().chain(&now).map(|name| (name.clone(), agent_id.clone())));
        if !now.is_empty() {
            p.by_agent.insert(agent_id.clone(), now);
        }
    }

    /// Another configuration gives other priorities.
    pub(super) fn own_ranks_changed(&mut self) {
        let all = |(agent_id, names): (&AgentId, &Vec<Name>)| {
            names.iter().map(|name| (name.clone(), agent_id.clone())).collect::<Vec<_>>()
        };
        let all: Vec<_> = self.published.by_agent.iter().flat_map(all).collect();
        self.published.own.extend(all);
    }

    /// Whether other hubs' attachments may be used now (semantics 5).
    fn others_usable(&self) -> bool {
        self.routes_across() && (!self.registry_unwell() || self.config.registry.on_outage == OnOutage::Cached)
    }

    /// Tells the shards what changed, before anything else is told: streams may
    /// wait for just these routes.
    pub(super) fn publish_routes(&mut self, mux: &Mux, notes: &mut Vec<ControlNote>) {
        if std::mem::take(&mut self.routes_dirty) {
            let connectors: Vec<Name> = self.published.routes.connectors().chain(self.remote.keys()).cloned().collect();
            self.published.others.extend(connectors);
        }
        let looked_at: Vec<Name> = self.published.others.iter().cloned().collect();
        self.publish_shadow(&looked_at, mux, notes);
        if self.published.own.is_empty() && self.published.others.is_empty() {
            return;
        }
        let mut changes: Vec<RouteChange> = Vec::new();
        let run = self.run.replica_id.clone();
        for (connector, agent_id) in std::mem::take(&mut self.published.own) {
            let candidate = self.own_candidate(&connector, &agent_id);
            let speaks = self.attachments.get(&agent_id).is_some_and(|a| !a.expired);
            let withdrawn = candidate.is_none() && speaks;
            changes.push(RouteChange { connector, agent_id, owner: run.clone(), withdrawn, candidate });
        }
        for connector in std::mem::take(&mut self.published.others) {
            let mut now = self.other_candidates(&connector, mux);
            let gone: Vec<RouteChange> = (self.published.routes.of(&connector))
                .filter(|c| !c.local && !now.contains_key(&(c.agent_id.clone(), c.owner.clone())))
                .map(|c| c.gone(connector.clone()))
                .collect();
            changes.extend(gone);
            while let Some((_, candidate)) = now.pop_first() {
                changes.push(candidate.at(connector.clone()));
            }
        }
        changes.retain(|change| self.published.routes.apply(change));
        if !changes.is_empty() {
            notes.insert(0, ControlNote::Routes(Arc::from(changes)));
        }
    }

    fn own_candidate(&self, connector: &Name, agent_id: &AgentId) -> Option<Candidate> {
        let a = self.attachments.get(agent_id)?;
        let ad = a.open_to().iter().find(|ad| ad.name == *connector)?;
        Some(Candidate {
            agent_id: agent_id.clone(),
            instance: a.instance,
            fence: a.fence,
            session: a.session,
            owner: self.run.replica_id.clone(),
            local: true,
            rank: rank(
                self.config.selection.priority(agent_id, connector, ad.priority),
                !crate::planted::on(2054),
                true,
            ),
            weight: weight(ad.weight),
        })
    }

    fn other_candidates(&self, connector: &Name, mux: &Mux) -> Candidates {
        if self.others_usable() { self.elsewhere(connector, false, mux) } else { Candidates::new() }
    }

    /// Attachments at other hubs that expose a connector and could be asked; in
    /// `shadow` as if all hubs that are linked were active.
    pub(super) fn elsewhere(&self, connector: &Name, shadow: bool, mux: &Mux) -> Candidates {
        let mut all = Candidates::new();
        let Some(remote) = self.remote.get(connector) else { return all };
        let faded = remote.faded.iter().map(|(l, _)| (l, RANK_FADED));
        let listed = remote.located.iter().map(|l| (l, 0));
        // What is listed takes the place of what was.
        for (l, last) in faded.chain(listed).filter(|(l, _)| l.hub.replica_id != self.run.replica_id) {
            if let Some(candidate) = self.other_candidate(connector, l, last, shadow, mux) {
                all.insert((candidate.agent_id.clone(), candidate.owner.clone()), candidate);
            }
        }
        all
    }

    fn other_candidate(&self, connector: &Name, l: &Located, last: u64, shadow: bool, mux: &Mux) -> Option<Candidate> {
        let key = *self.links.get(&l.hub.replica_id).filter(|key| !self.quitting.contains_key(key))?;
        let this_run = mux
            .get(key)
            .is_some_and(|e| matches!(&e.peer, Peer::Hub { incarnation, .. } if *incarnation == l.hub.incarnation));
        let status = self.statuses.get(&key);
        if !this_run || status.is_some_and(|s| !(s.active || shadow)) {
            return None;
        }
        let leaving = if status.is_some_and(|s| s.draining) && !crate::planted::on(2049) { RANK_LEAVING } else { 0 };
        let ad = l.connectors.iter().find(|ad| ad.name == *connector)?;
        let priority = self.config.selection.priority(&l.agent_id, connector, ad.priority);
        Some(Candidate {
            agent_id: l.agent_id.clone(),
            instance: l.instance,
            fence: l.fence,
            session: key,
            owner: l.hub.replica_id.clone(),
            local: false,
            rank: last | leaving | rank(priority, false, l.region == self.config.region),
            weight: weight(ad.weight),
        })
    }

    pub(super) fn check_routes(&self) {
        for (agent_id, a) in &self.attachments {
            for ad in a.open_to() {
                let listed = self.published.exposed.get(&ad.name).is_some_and(|agents| agents.contains(agent_id));
                assert!(listed, "the index of connectors knows every attachment");
            }
        }
        let indexed: usize = self.published.exposed.values().map(BTreeSet::len).sum();
        let exposed: usize = self
            .attachments
            .values()
            .map(|a| a.open_to().iter().map(|ad| &ad.name).collect::<BTreeSet<_>>().len())
            .sum();
        assert_eq!(indexed, exposed, "and nothing else");
    }
}

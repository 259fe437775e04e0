//! `/readyz` of a hub (semantics 10): ready, degraded or draining, for reasons
//! of a closed set, with the detail of mesh, registry and listeners.
//!
//! Keeps L6: everything is derived when asked. `docs/operations.md` lists the
//! reasons; a test compares.

use std::collections::BTreeMap;
use std::time::Duration;

use nowconnect_core::config::Mode;
use nowconnect_core::hub::{Hub, Unready};
use nowconnect_core::time::Instant;
use serde_json::{Value, json};

use super::Shared;

/// Why a hub is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Draining,
    MeshLinkDown,
    RegistryUnhealthy,
    ReplicaIdTwice,
}

impl Reason {
    pub(crate) const ALL: [Self; 4] =
        [Self::Draining, Self::MeshLinkDown, Self::RegistryUnhealthy, Self::ReplicaIdTwice];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::MeshLinkDown => "mesh_link_down",
            Self::RegistryUnhealthy => "registry_unhealthy",
            Self::ReplicaIdTwice => "replica_id_twice",
        }
    }
}

/// What one listener could do now.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListenerState {
    pub(super) unready: Option<&'static str>,
    pub(super) listening: bool,
}

impl ListenerState {
    pub(super) const fn status(self) -> &'static str {
        if self.unready.is_none() { "ready" } else { "unavailable" }
    }

    pub(super) fn json(self) -> Value {
        let mut value = json!({ "status": self.status(), "listening": self.listening });
        if let Some(reason) = self.unready {
            value["reason"] = reason.into();
        }
        value
    }
}

/// Whether a balancer should send clients here, and why not.
pub(super) struct Readiness {
    pub(super) state: &'static str,
    pub(super) reasons: Vec<Reason>,
    pub(super) listeners: BTreeMap<String, ListenerState>,
    mode: Mode,
    links: Vec<Value>,
    mesh: &'static str,
    pub(super) registry: &'static str,
    lease_age: Option<f64>,
}

/// How long ago the last renewal that succeeded was sent, in seconds; counted
/// from the start of the process when there was none.
pub(super) fn lease_age(hub: &Hub, now: Instant) -> f64 {
    let lease = hub.control().config().registry.lease;
    let sent =
        hub.control().lease_until().map_or(Duration::ZERO, |until| until.since(Instant::ZERO).saturating_sub(lease));
    now.since(Instant::ZERO).saturating_sub(sent).as_secs_f64()
}

impl Readiness {
    /// In `off` and `shadow` always ready, with the detail shown.
    pub(super) fn of(hub: &Hub, shared: &Shared, now: Instant) -> Self {
        let off = hub.mode() == Mode::Off;
        let mut reasons = Vec::new();
        let draining = hub.control().is_draining();
        if draining {
            reasons.push(Reason::Draining);
        }
        let mesh_healthy = hub.mesh_healthy(now);
        if !off && !mesh_healthy {
            reasons.push(Reason::MeshLinkDown);
        }
        let registry_healthy = hub.control().registry_healthy();
        if !registry_healthy {
            reasons.push(Reason::RegistryUnhealthy);
            if shared.counts.lease_held_by_other.get() {
                reasons.push(Reason::ReplicaIdTwice);
            }
        }
        let state = if draining {
            "draining"
        } else if hub.mode() == Mode::Active && !reasons.is_empty() {
            "degraded"
        } else {
            "ready"
        };
        let healthy = |yes| match yes {
            _ if off => "unused",
            true => "healthy",
            false => "unhealthy",
        };
        let links = (hub.control().links(hub.mux()).iter())
            .map(|l| {
                json!({
                    "peer": l.replica.map(|r| r.as_str()),
                    "state": l.state.label(),
                    "configured": l.configured,
                    "down_seconds": l.down_since.map(|at| now.since(at).as_secs_f64()),
                })
            })
            .collect();
        let listeners = (shared.setup().core.listeners.iter())
            .filter_map(|l| Some((l.name.as_str().to_owned(), listener(hub, shared, l.name.as_str())?)))
            .collect();
        Self {
            state,
            reasons,
            listeners,
            mode: hub.mode(),
            links,
            mesh: healthy(mesh_healthy),
            registry: healthy(registry_healthy),
            lease_age: (!off).then(|| lease_age(hub, now)),
        }
    }

    pub(super) fn reasons(&self) -> Vec<&'static str> {
        self.reasons.iter().map(|r| r.name()).collect()
    }

    pub(super) fn json(&self) -> String {
        let listeners: BTreeMap<&str, Value> = self.listeners.iter().map(|(n, l)| (n.as_str(), l.json())).collect();
        json!({
            "status": self.state,
            "mode": self.mode.name(),
            "reasons": self.reasons(),
            "mesh": { "status": self.mesh, "links": self.links },
            "registry": { "status": self.registry, "lease_age_seconds": self.lease_age },
            "listeners": listeners,
        })
        .to_string()
    }
}

/// What the listener of this name could do now; `None` when there is none.
pub(super) fn listener(hub: &Hub, shared: &Shared, name: &str) -> Option<ListenerState> {
    let setup = shared.setup();
    let l = setup.core.listeners.iter().find(|l| l.name.as_str() == name)?;
    let unready = match hub.listener(l) {
        _ if hub.control().is_draining() => Some(Unready::Draining),
        Some(ix) => hub.unready(ix),
        None => Some(Unready::Full),
    };
    let listening = shared.open.borrow().iter().any(|open| open.name() == name && open.is_listening());
    Some(ListenerState { unready: unready.map(Unready::name), listening })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::documented;
    use std::collections::BTreeSet;

    #[test]
    fn the_documentation_lists_exactly_the_reasons() {
        let page = include_str!("../../../docs/operations.md");
        let hub: BTreeSet<String> = Reason::ALL.iter().map(|r| r.name().to_owned()).collect();
        assert_eq!(documented(page, "## Why a hub is not ready"), hub);
        let listener: BTreeSet<String> = Unready::ALL.iter().map(|r| r.name().to_owned()).collect();
        assert_eq!(documented(page, "## Why a listener is not ready"), listener);
    }
}

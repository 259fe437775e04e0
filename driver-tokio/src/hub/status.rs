//! Readiness and `/status` of a hub (semantics 10).

use std::collections::BTreeMap;

use nowconnect_core::config::Mode;
use nowconnect_core::hub::Hub;
use nowconnect_core::link;
use serde_json::{Value, json};

use super::Shared;
use super::reload::OpenListener;
use crate::node::Node;
use crate::status;

/// Whether a balancer should send clients here, and why not.
pub(super) struct Readiness {
    pub(super) state: &'static str,
    reasons: Vec<String>,
    mesh: BTreeMap<String, &'static str>,
    registry: &'static str,
    listeners: BTreeMap<String, &'static str>,
}

impl Readiness {
    /// In `off` and `shadow` always ready, with the detail shown.
    pub(super) fn of(hub: &Hub, shared: &Shared) -> Self {
        let mut reasons: Vec<String> = Vec::new();
        let mut mesh = BTreeMap::new();
        for l in hub.control().links(hub.mux()) {
            let peer = l.replica.map_or("unknown", |r| r.as_str()).to_owned();
            if l.state != link::State::Established {
                reasons.push(format!("mesh: the link to {peer} is {}", l.state.label()));
            }
            mesh.insert(peer, l.state.label());
        }
        let healthy = hub.control().registry_healthy();
        if !healthy {
            reasons.push("registry: the lease is not renewed".to_owned());
        }
        let draining = shared.leaving.get() || hub.control().is_draining();
        let state = if draining {
            "draining"
        } else if hub.mode() == Mode::Active && !reasons.is_empty() {
            "degraded"
        } else {
            "ready"
        };
        let open = |connector| if !draining && hub.could_open(connector) { "ready" } else { "unavailable" };
        Self {
            state,
            reasons,
            mesh,
            registry: if healthy { "healthy" } else { "unhealthy" },
            listeners: shared
                .setup()
                .core
                .listeners
                .iter()
                .map(|l| (l.name.as_str().to_owned(), open(&l.connector)))
                .collect(),
        }
    }

    pub(super) fn json(&self, mode: Mode) -> String {
        json!({
            "status": self.state,
            "mode": mode.name(),
            "reasons": self.reasons,
            "mesh": self.mesh,
            "registry": { "status": self.registry },
            "listeners": self.listeners,
        })
        .to_string()
    }
}

/// What `/status` shows.
pub(super) fn take(node: &Node<Hub>, shared: &Shared) -> Value {
    let now = node.clock().now();
    node.look(|hub| {
        let ready = Readiness::of(hub, shared);
        let (control, mux) = (hub.control(), hub.mux());
        let links: Vec<Value> = control
            .links(mux)
            .into_iter()
            .map(|l| {
                json!({
                    "replica": l.replica.map(|r| r.as_str()),
                    "state": l.state.label(),
                    "session": status::session(mux, l.session, now),
                    "reconnects": l.reconnects,
                    "errors": l.errors,
                })
            })
            .collect();
        let tunnels: Vec<Value> = control
            .tunnels()
            .map(|t| {
                json!({
                    "agent": t.agent_id.as_str(),
                    "epoch": t.fence.epoch.to_string(),
                    "firm": t.firm,
                    "session": status::session(mux, Some(t.session), now),
                })
            })
            .collect();
        let setup = shared.setup();
        let open = shared.open.borrow();
        let addr = |name: &str| open.iter().find(|o| o.name() == name).and_then(OpenListener::addr);
        let listeners: Vec<Value> = (setup.core.listeners.iter())
            .map(|l| {
                json!({
                    "name": l.name.as_str(),
                    "bind": addr(l.name.as_str()).map(|a| a.to_string()),
                    "connector": l.connector.as_str(),
                    "status": ready.listeners.get(l.name.as_str()),
                    "clients": hub.listener(l).map_or(0, |ix| hub.clients(ix)),
                    "max_connections": l.max_connections,
                })
            })
            .collect();
        let limits = &hub.control().config().limits;
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "role": "hub",
            "mode": hub.mode().name(),
            "replica": hub.run().replica_id.as_str(),
            "incarnation": hub.run().incarnation.to_string(),
            "status": ready.state,
            "reasons": ready.reasons,
            "registry": { "status": ready.registry },
            "links": links,
            "tunnels": tunnels,
            "listeners": listeners,
            "streams": hub.streams(),
            "limits": {
                "max_streams": limits.max_streams,
                "max_sessions": limits.max_sessions,
                "sessions": mux.len(),
            },
            "needs_restart": *shared.restart.borrow(),
            "memory": status::memory(mux),
        })
    })
}

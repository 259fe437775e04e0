//! `/status` of a hub (semantics 10).

use nowconnect_core::hub::Hub;
use serde_json::{Value, json};

use super::Shared;
use super::readiness::Readiness;
use super::reload::OpenListener;
use crate::node::Node;
use crate::status;

/// What `/status` shows.
pub(super) fn take(node: &Node<Hub>, shared: &Shared) -> Value {
    let now = node.clock().now();
    node.look(|hub| {
        let ready = Readiness::of(hub, shared, now);
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
        let addr = |name: &str| open.iter().find(|o| o.name() == name).map(OpenListener::addr);
        let listeners: Vec<Value> = (setup.core.listeners.iter())
            .map(|l| {
                json!({
                    "name": l.name.as_str(),
                    "bind": addr(l.name.as_str()).map(|a| a.to_string()),
                    "connector": l.connector.as_str(),
                    "status": ready.listeners.get(l.name.as_str()).map(|l| l.status()),
                    "listening": ready.listeners.get(l.name.as_str()).map(|l| l.listening),
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
            "reasons": ready.reasons(),
            "registry": { "status": ready.registry },
            "links": links,
            "tunnels": tunnels,
            "listeners": listeners,
            "streams": hub.streams(),
            "drain": super::drain::show(hub, now),
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

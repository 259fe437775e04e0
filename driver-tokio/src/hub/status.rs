//! `/status` of a hub (semantics 10).

use nowconnect_core::hub::Hub;

use super::Shared;
use super::readiness::Readiness;
use super::reload::OpenListener;
use crate::answers::Word;
use crate::answers::hub::{Limits, Link, Listener, RegistryBrief, RoleHub, Status, Tunnel};
use crate::dial::WsUrl;
use crate::node::Node;
use crate::status;

/// What `/status` shows.
pub(super) fn take(node: &Node<Hub>, shared: &Shared) -> Status {
    let now = node.clock().now();
    node.look(|hub| {
        let ready = Readiness::of(hub, shared, now);
        let (control, mux) = (hub.control(), hub.mux());
        let links = (control.links(mux).into_iter())
            .map(|l| Link {
                peer: l.replica.map(ToString::to_string),
                url: l.url.and_then(WsUrl::shown),
                state: Word(l.state),
                session: status::session(mux, l.session, now),
                reconnects: l.reconnects,
                errors: l.errors,
            })
            .collect();
        let tunnels = control
            .tunnels()
            .map(|t| Tunnel {
                agent: t.agent_id.to_string(),
                epoch: t.fence.epoch.to_string(),
                firm: t.firm,
                session: status::session(mux, Some(t.session), now),
            })
            .collect();
        let setup = shared.setup();
        let open = shared.open.borrow();
        let addr = |name: &str| open.iter().find(|o| o.name() == name).map(OpenListener::addr);
        let listeners = (setup.core.listeners.iter())
            .map(|l| {
                let now = ready.listeners.get(l.name.as_str());
                Listener {
                    name: l.name.to_string(),
                    bind: addr(l.name.as_str()).map(|a| a.to_string()),
                    connector: l.connector.to_string(),
                    status: now.map(|l| l.status()),
                    listening: now.map(|l| l.listening),
                    clients: hub.listener(l).map_or(0, |ix| hub.clients(ix)),
                    max_connections: l.max_connections,
                }
            })
            .collect();
        let limits = &control.config().limits;
        Status {
            version: env!("CARGO_PKG_VERSION"),
            role: RoleHub::Hub,
            mode: Word(hub.mode()),
            replica: hub.run().replica_id.to_string(),
            incarnation: hub.run().incarnation.to_string(),
            status: ready.state,
            registry: RegistryBrief { status: ready.registry.status },
            reasons: ready.reasons,
            links,
            tunnels,
            listeners,
            streams: hub.streams(),
            drain: super::drain::show(hub, now),
            limits: Limits { max_streams: limits.max_streams, max_sessions: limits.max_sessions, sessions: mux.len() },
            needs_restart: shared.restart.borrow().clone(),
            memory: status::memory(mux),
        }
    })
}

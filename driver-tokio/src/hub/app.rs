//! What answers on a hub's HTTP ports: authentication, readiness, metrics.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use http::HeaderMap;
use nowconnect_core::config::Mode;
use nowconnect_core::error::ProtocolErrorKind;
use nowconnect_core::hub::Hub;
use nowconnect_core::link;
use nowconnect_core::mux::Input;
use nowconnect_core::observed::StreamRecord;
use nowconnect_core::principal::{HubGrant, Principal};
use nowconnect_core::wire::Plane;

use super::{Shared, Totals, snapshot};
use crate::clock::unix_millis;
use crate::conn;
use crate::http::{HttpApp, Refusal, Reject, Upgraded};
use crate::node::Node;

/// Totals of what the core does not count.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) refused: Totals<&'static str>,
    pub(crate) protocol_errors: Totals<(&'static str, &'static str)>,
    pub(crate) ends: Totals<&'static str>,
}

impl Counts {
    pub(super) fn ended(&self, _listener: &str, r: &StreamRecord) {
        *self.ends.borrow_mut().entry(r.cause.name()).or_default() += 1;
    }

    pub(super) fn protocol_error(&self, plane: Plane, kind: ProtocolErrorKind) {
        let plane = if plane == Plane::Mesh { "mesh" } else { "tunnel" };
        *self.protocol_errors.borrow_mut().entry((plane, kind.name())).or_default() += 1;
    }

    fn refusal(&self, reason: &'static str) {
        *self.refused.borrow_mut().entry(reason).or_default() += 1;
    }
}

pub(super) struct App {
    node: Node<Hub>,
    shared: Rc<Shared>,
    keys_checked: Cell<u64>,
}

impl App {
    pub(super) const fn new(node: Node<Hub>, shared: Rc<Shared>) -> Self {
        Self { node, shared, keys_checked: Cell::new(0) }
    }

    /// Key files are looked at again at most once a second.
    fn refresh_keys(&self, now_millis: u64) {
        if now_millis.saturating_sub(self.keys_checked.replace(now_millis)) < 1000 {
            return;
        }
        match self.shared.auth.reload_if_changed() {
            Ok(true) => tracing::info!(event = "keys_reloaded"),
            Ok(false) => {}
            Err(e) => {
                if let Some(suppressed) = self.shared.lines.allow("keys_unusable", "") {
                    tracing::error!(event = "keys_unusable", suppressed, "the last good keys stay in use: {e}");
                }
            }
        }
    }
}

impl HttpApp for App {
    fn authenticate(
        &self,
        plane: Plane,
        headers: &HeaderMap,
        tls_peer: Option<Vec<String>>,
    ) -> Result<Principal, Reject> {
        if plane == Plane::Mesh {
            if self.shared.setup.core.mode == Mode::Off {
                let message = "this hub runs with ha.mode off".to_owned();
                return Err(Reject { status: 404, reason_label: "mode_off", message });
            }
            return Ok(Principal::Hub(HubGrant { dns_names: tls_peer }));
        }
        let now = unix_millis();
        self.refresh_keys(now);
        let values: Vec<&str> =
            headers.get_all(http::header::AUTHORIZATION).iter().map(|v| v.to_str().unwrap_or("\u{fffd}")).collect();
        match self.shared.auth.verify(&values, now / 1000) {
            Ok(grant) => Ok(Principal::Agent(grant.on_clock(now / 1000, self.node.clock().now()))),
            Err(reject) => {
                if let Some(suppressed) = self.shared.lines.allow("auth_rejected", reject.name()) {
                    tracing::warn!(event = "auth_rejected", reason = reject.name(), suppressed, "{reject}");
                }
                self.shared.counts.refusal(reject.name());
                // The peer learns the class only; the log line has the detail.
                let message = "the token was not accepted".to_owned();
                Err(Reject { status: reject.http_status(), reason_label: reject.name(), message })
            }
        }
    }

    fn accept(&self, upgraded: Upgraded) {
        let key = self.node.add_conn();
        self.node.input(Input::Accepted { conn: key, dialect: upgraded.dialect, principal: upgraded.principal });
        tokio::task::spawn_local(conn::run(self.node.clone(), key, upgraded.conn, false));
    }

    fn readyz(&self, strict: bool) -> (u16, String) {
        let r = readiness(&self.node, &self.shared);
        let status = match r.state {
            "ready" => 200,
            "degraded" if strict => 503,
            "degraded" => self.shared.setup.degraded_status,
            _ => 503,
        };
        (status, r.json)
    }

    fn readyz_listener(&self, name: &str) -> (u16, String) {
        let listener = self.shared.setup.core.listeners.iter().find(|l| l.name.as_str() == name);
        let Some(l) = listener else {
            return (404, serde_json::json!({ "error": "no listener of this name" }).to_string());
        };
        let ok = !self.shared.leaving.get() && self.node.look(|hub| hub.could_open(&l.connector));
        let body =
            serde_json::json!({ "listener": l.name.as_str(), "status": if ok { "ready" } else { "unavailable" } });
        (if ok { 200 } else { 503 }, body.to_string())
    }

    fn metrics(&self) -> Option<(&'static str, Vec<u8>)> {
        match self.shared.metrics.render(&snapshot::take(&self.node, &self.shared)) {
            Ok(page) => Some(page),
            Err(e) => {
                tracing::error!(event = "metrics_failed", "{e}");
                None
            }
        }
    }

    fn refused(&self, why: Refusal) {
        self.shared.counts.refusal(why.name());
    }
}

pub(super) struct Readiness {
    state: &'static str,
    json: String,
}

/// `/readyz` as semantics 10 has it: in `off` and `shadow` always ready, with
/// the detail shown.
pub(super) fn readiness(node: &Node<Hub>, shared: &Shared) -> Readiness {
    node.look(|hub| {
        let mut reasons: Vec<String> = Vec::new();
        let mut mesh = BTreeMap::new();
        for l in hub.control().links(hub.mux()) {
            let peer = l.replica.map_or("unknown", |r| r.as_str()).to_owned();
            if l.state != link::State::Established {
                reasons.push(format!("mesh: the link to {peer} is {}", l.state.name()));
            }
            mesh.insert(peer, l.state.name());
        }
        if !hub.control().registry_healthy() {
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
        let listeners: BTreeMap<&str, &str> = shared
            .setup
            .core
            .listeners
            .iter()
            .map(|l| (l.name.as_str(), if !draining && hub.could_open(&l.connector) { "ready" } else { "unavailable" }))
            .collect();
        let registry = if hub.control().registry_healthy() { "healthy" } else { "unhealthy" };
        let json = serde_json::json!({
            "status": state,
            "mode": hub.mode().name(),
            "reasons": reasons,
            "mesh": mesh,
            "registry": { "status": registry },
            "listeners": listeners,
        });
        Readiness { state, json: json.to_string() }
    })
}

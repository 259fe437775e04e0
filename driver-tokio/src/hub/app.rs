//! What answers on a hub's HTTP ports: authentication, readiness, metrics.

use std::cell::Cell;
use std::rc::Rc;

use http::HeaderMap;
use nowconnect_core::config::Mode;
use nowconnect_core::error::ProtocolErrorKind;
use nowconnect_core::hub::Hub;
use nowconnect_core::mux::Input;
use nowconnect_core::principal::{HubGrant, Principal};
use nowconnect_core::wire::Plane;
use serde_json::json;

use super::status::{self, Readiness};
use super::{Shared, Totals, snapshot};
use crate::admin::{Acting, Action, AdminApp};
use crate::clock::unix_millis;
use crate::conn;
use crate::http::{HttpApp, Refusal, Reject, Upgraded};
use crate::node::Node;

/// Totals of what the core does not count.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) refused: Totals<&'static str>,
    pub(crate) protocol_errors: Totals<(&'static str, &'static str)>,
}

impl Counts {
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
        match self.shared.auth.borrow().reload_if_changed() {
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
            // A link that is kept for its streams may come back (M1).
            let closed = |hub: &Hub| hub.mode() == Mode::Off && hub.mux().iter().all(|(_, e)| e.plane != Plane::Mesh);
            if self.node.look(closed) {
                let message = "this hub runs with ha.mode off".to_owned();
                return Err(Reject { status: 404, reason_label: "mode_off", message });
            }
            return Ok(Principal::Hub(HubGrant { dns_names: tls_peer }));
        }
        let now = unix_millis();
        self.refresh_keys(now);
        let values: Vec<&str> =
            headers.get_all(http::header::AUTHORIZATION).iter().map(|v| v.to_str().unwrap_or("\u{fffd}")).collect();
        match self.shared.auth.borrow().verify(&values, now / 1000) {
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
        let (state, json) = self.node.look(|hub| {
            let r = Readiness::of(hub, &self.shared);
            (r.state, r.json(hub.mode()))
        });
        let status = match state {
            "ready" => 200,
            "degraded" if strict => 503,
            "degraded" => self.shared.setup().degraded_status,
            _ => 503,
        };
        (status, json)
    }

    fn readyz_listener(&self, name: &str) -> (u16, String) {
        let setup = self.shared.setup();
        let listener = setup.core.listeners.iter().find(|l| l.name.as_str() == name);
        let Some(l) = listener else {
            return (404, json!({ "error": "no listener of this name" }).to_string());
        };
        let ok = !self.shared.leaving.get() && self.node.look(|hub| hub.could_open(&l.connector));
        let body = json!({ "listener": l.name.as_str(), "status": if ok { "ready" } else { "unavailable" } });
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

impl AdminApp for App {
    fn readyz(&self, strict: bool) -> (u16, String) {
        HttpApp::readyz(self, strict)
    }

    fn readyz_listener(&self, name: &str) -> (u16, String) {
        HttpApp::readyz_listener(self, name)
    }

    fn metrics(&self) -> Option<(&'static str, Vec<u8>)> {
        HttpApp::metrics(self)
    }

    fn status(&self) -> serde_json::Value {
        status::take(&self.node, &self.shared)
    }

    fn act(&self, action: Action) -> Acting {
        let (node, shared) = (self.node.clone(), Rc::clone(&self.shared));
        // A task of its own: whoever asked may go away in the middle of it.
        let task = tokio::task::spawn_local(async move {
            match action {
                Action::Reload => super::reload::run(&node, &shared).await.answer(),
            }
        });
        Box::pin(async { task.await.unwrap_or_else(|e| (500, json!({ "error": e.to_string() }).to_string())) })
    }
}

//! What answers on a hub's HTTP ports: authentication, readiness, metrics.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use http::HeaderMap;
use nowconnect_core::config::Mode;
use nowconnect_core::error::{CloseCode, ProtocolErrorKind};
use nowconnect_core::hub::Hub;
use nowconnect_core::mux::Input;
use nowconnect_core::observed::Observed;
use nowconnect_core::principal::{HubGrant, Principal};
use nowconnect_core::wire::Plane;

use super::readiness::{self, Readiness};
use super::{Shared, Totals, snapshot, status};
use crate::admin::{self, Acting, Action, AdminApp};
use crate::answers::{self, Failed, ReadyzListener, State, Status};
use crate::conn;
use crate::http::{HttpApp, Refusal, Reject, Upgraded};
use crate::net;
use crate::node::Node;

/// Totals of what the core does not count.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) refused: Totals<&'static str>,
    /// Connections that had to wait for their turn.
    pub(crate) throttled: Cell<u64>,
    pub(crate) protocol_errors: Totals<(&'static str, &'static str)>,
    /// Handshakes that came to nothing, by plane and cause.
    pub(crate) handshakes: Totals<(&'static str, &'static str)>,
    pub(crate) replica_id_twice: Cell<u64>,
    pub(crate) agent_id_twice: Cell<u64>,
    pub(crate) agent_id_refused: Cell<u64>,
    /// Attachments won and lost, by change and cause.
    pub(crate) ownership: Totals<(&'static str, &'static str)>,
    /// Another process held this replica id when the registry was last asked.
    pub(crate) lease_held_by_other: Cell<bool>,
}

impl Counts {
    pub(super) fn protocol_error(&self, plane: Plane, kind: ProtocolErrorKind) {
        let plane = if plane == Plane::Mesh { "mesh" } else { "tunnel" };
        *self.protocol_errors.borrow_mut().entry((plane, kind.name())).or_default() += 1;
    }

    pub(super) fn handshake_failure(&self, plane: Plane, cause: CloseCode) {
        let plane = if plane == Plane::Mesh { "mesh" } else { "tunnel" };
        *self.handshakes.borrow_mut().entry((plane, cause.name())).or_default() += 1;
    }

    /// Counts what changes who holds an agent, and remembers who holds the lease.
    pub(super) fn ownership(&self, event: &Observed) {
        let (change, cause) = if let Observed::Attached { firm, takeover, again, .. } = event {
            let cause = match (*again, *takeover, *firm) {
                (true, _, _) => "reclaim",
                (_, true, _) => "takeover",
                (_, _, true) => "claim",
                _ => "provisional",
            };
            ("gained", cause)
        } else if let Observed::Detached { cause, .. } = event {
            ("lost", cause.name())
        } else if let Observed::LeaseHeldByOther = event {
            return self.lease_held_by_other.set(true);
        } else {
            if let Observed::RegistryHealth { healthy: true } = event {
                self.lease_held_by_other.set(false);
            }
            return;
        };
        *self.ownership.borrow_mut().entry((change, cause)).or_default() += 1;
    }

    pub(super) fn refusal(&self, reason: &'static str) {
        *self.refused.borrow_mut().entry(reason).or_default() += 1;
    }
}

pub(super) struct App {
    node: Node<Hub>,
    shared: Rc<Shared>,
}

impl App {
    pub(super) const fn new(node: Node<Hub>, shared: Rc<Shared>) -> Self {
        Self { node, shared }
    }
}

impl HttpApp for App {
    fn authenticate(&self, plane: Plane, headers: &HeaderMap, tls: HubGrant) -> Result<Principal, Reject> {
        if plane == Plane::Mesh {
            // A link that is kept for its streams may come back (M1).
            let closed = |hub: &Hub| hub.mode() == Mode::Off && hub.mux().iter().all(|(_, e)| e.plane != Plane::Mesh);
            if self.node.look(closed) {
                let (reason_label, message) = ("mode_off", "this hub runs with ha.mode off".to_owned());
                self.shared.counts.refusal(reason_label);
                return Err(Reject { status: 404, reason_label, message });
            }
            return Ok(Principal::Hub(tls));
        }
        let values: Vec<&str> =
            headers.get_all(http::header::AUTHORIZATION).iter().map(|v| v.to_str().unwrap_or("\u{fffd}")).collect();
        match self.shared.grant(&self.node.clock(), |auth, now| auth.verify(&values, now)) {
            Ok(grant) => Ok(Principal::Agent(grant)),
            Err(reject) => {
                // The peer learns the class only; the log line has the detail.
                let message = "the token was not accepted".to_owned();
                Err(Reject { status: reject.http_status(), reason_label: reject.name(), message })
            }
        }
    }

    fn user_timeout(&self) -> Duration {
        net::session_user_timeout(self.shared.setup().core.liveness.dead)
    }

    fn accept(&self, upgraded: Upgraded) {
        let key = self.node.add_conn();
        self.node.input(Input::Accepted { conn: key, dialect: upgraded.dialect, principal: upgraded.principal });
        tokio::task::spawn_local(conn::run(self.node.clone(), key, upgraded.conn, false));
    }

    fn readyz(&self, strict: bool) -> (u16, String) {
        let ready = self.node.look(|hub| Readiness::of(hub, &self.shared, self.node.clock().now()));
        let status = match ready.state {
            State::Ready => 200,
            State::Degraded if !strict => self.shared.setup().degraded_status,
            State::Degraded | State::Draining => 503,
        };
        (status, answers::text(&answers::Readyz::Hub(ready.answer())))
    }

    fn readyz_listener(&self, name: &str) -> (u16, String) {
        let state = self.node.look(|hub| readiness::listener(hub, &self.shared, name));
        let Some(state) = state else {
            let unknown = ReadyzListener::Unknown(Failed::because("no listener of this name"));
            return (404, answers::text(&unknown));
        };
        let status = if state.unready.is_none() { 200 } else { 503 };
        (status, answers::text(&ReadyzListener::Known(state.named(name))))
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
        // What was denied is counted where that was decided, by its reason.
        if why != Refusal::Denied {
            self.shared.counts.refusal(why.name());
        }
    }

    fn throttled(&self, key: &'static str) {
        let throttled = &self.shared.counts.throttled;
        throttled.set(throttled.get() + 1);
        if let Some(suppressed) = self.shared.lines.allow("handshakes_throttled", key) {
            tracing::warn!(
                event = "handshakes_throttled",
                port = key,
                suppressed,
                "more connections than limits.handshake_rate, or from one address than its share: they wait for their turn"
            );
        }
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

    fn status(&self) -> String {
        answers::text(&Status::Hub(status::take(&self.node, &self.shared)))
    }

    fn act(&self, action: Action) -> Acting {
        let (node, shared) = (self.node.clone(), Rc::clone(&self.shared));
        admin::acting(action, async move {
            match action {
                Action::Reload => match shared.reloads.try_turn() {
                    Ok(turn) => super::reload::run(&node, &shared, turn).await.answer(),
                    Err(refused) => refused.answer(),
                },
                Action::Drain => super::drain::begin(&node, &shared),
                Action::Undrain => super::drain::cancel(&node, &shared),
            }
        })
    }
}

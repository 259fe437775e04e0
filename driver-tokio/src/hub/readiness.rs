//! `/readyz` of a hub (semantics 10): ready, degraded or draining, for reasons
//! of a closed set, with the detail of mesh, registry and listeners.
//!
//! Keeps L6: everything is derived when asked. `docs/operations.md` lists the
//! reasons; a test compares.

use std::collections::BTreeMap;
use std::time::Duration;

use nowconnect_core::config::Mode;
use nowconnect_core::hub::{Hub, PeerLease, Unready};
use nowconnect_core::time::Instant;

use super::Shared;
use crate::answers::hub::{
    Availability, Health, Lease, ListenerReady, Mesh, MeshLink, NamedListener, Readyz, Reason, Registry,
};
use crate::answers::{State, Word};
use crate::dial::WsUrl;

/// What one listener could do now.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListenerState {
    pub(super) unready: Option<Unready>,
    pub(super) listening: bool,
}

impl ListenerState {
    pub(super) const fn status(self) -> Availability {
        if self.unready.is_none() { Availability::Ready } else { Availability::Unavailable }
    }

    fn brief(self) -> ListenerReady {
        ListenerReady { status: self.status(), listening: self.listening, reason: self.unready.map(Word) }
    }

    pub(super) fn named(self, name: &str) -> NamedListener {
        NamedListener {
            listener: name.to_owned(),
            status: self.status(),
            listening: self.listening,
            reason: self.unready.map(Word),
        }
    }
}

/// Whether a balancer should send clients here, and why not.
pub(super) struct Readiness {
    pub(super) state: State,
    pub(super) reasons: Vec<Reason>,
    pub(super) listeners: BTreeMap<String, ListenerState>,
    pub(super) registry: Registry,
    mode: Mode,
    mesh: Mesh,
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
        } else if hub.control().is_recovering(now) {
            reasons.push(Reason::RegistryRecovering);
        }
        let state = if draining {
            State::Draining
        } else if hub.mode() == Mode::Active && !reasons.is_empty() {
            State::Degraded
        } else {
            State::Ready
        };
        let healthy = |yes| match yes {
            _ if off => Health::Unused,
            true => Health::Healthy,
            false => Health::Unhealthy,
        };
        let links = (hub.control().links(hub.mux()).iter())
            .map(|l| MeshLink {
                peer: l.replica.map(ToString::to_string),
                url: l.url.and_then(WsUrl::shown),
                state: Word(l.state),
                configured: l.configured,
                down_seconds: l.down_since.map(|at| now.since(at).as_secs_f64()),
                lease: match l.lease {
                    PeerLease::Live { .. } => Some(Lease::Live),
                    PeerLease::Absent { until } if now < until => Some(Lease::None),
                    PeerLease::Absent { .. } | PeerLease::Unknown => None,
                },
            })
            .collect();
        let listeners = (shared.setup().core.listeners.iter())
            .filter_map(|l| Some((l.name.to_string(), listener(hub, shared, l.name.as_str())?)))
            .collect();
        Self {
            state,
            reasons,
            listeners,
            mode: hub.mode(),
            mesh: Mesh { status: healthy(mesh_healthy), links },
            registry: Registry {
                status: healthy(hub.control().registry_ready(now)),
                lease_age_seconds: (!off).then(|| lease_age(hub, now)),
            },
        }
    }

    /// The body of `/readyz`.
    pub(super) fn answer(self) -> Readyz {
        Readyz {
            status: self.state,
            mode: Word(self.mode),
            reasons: self.reasons,
            mesh: self.mesh,
            registry: self.registry,
            listeners: self.listeners.into_iter().map(|(name, l)| (name, l.brief())).collect(),
        }
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
    // A port that could not be opened again refuses whom a balancer sends.
    let closed = (!listening).then_some(Unready::NotListening);
    Some(ListenerState { unready: unready.or(closed), listening })
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

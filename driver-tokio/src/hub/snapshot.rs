//! The totals of a hub as the samples of one scrape.

use nowconnect_core::config::Mode;
use nowconnect_core::error::RstCode;
use nowconnect_core::hub::{Hub, LinkView, PeerLease};
use nowconnect_core::link::State;
use nowconnect_core::observed::ShardCounters;
use nowconnect_core::shard::Shard;
use nowconnect_core::time::Instant;
use nowconnect_core::wire::Plane;

use super::Shared;
use super::readiness::{self, Readiness};
use crate::answers;
use crate::answers::hub::Reason;
use crate::clock::unix_millis;
use crate::dial::WsUrl;
use crate::metrics::{Family, Snapshot};
use crate::node::Node;
use crate::registry::Registry;
use crate::{reload, snapshot};

/// Everything `/metrics` shows now.
pub(super) fn take(node: &Node<Hub>, shared: &Shared) -> Snapshot {
    let mut s = Snapshot::default();
    node.look(|hub| {
        let counters = hub.counters();
        listeners(&mut s, &counters, hub);
        snapshot::shards(&mut s, &counters, hub.streams());
        snapshot::sessions(&mut s, hub.mux(), &[Plane::Tunnel, Plane::Mesh]);
        links(&mut s, hub, node.clock().now(), shared.setup().legacy_metric_names);
        ejections(&mut s, hub);
        s.add(Family::RegistryHealthy, &[], u64::from(hub.control().registry_healthy()));
        let now = node.clock().now();
        readiness(&mut s, &Readiness::of(hub, shared, now));
        limits(&mut s, hub, shared);
        s.add(Family::StreamsSuspended, &[], hub.suspended() as u64);
        if hub.mode() != Mode::Off {
            s.add(Family::LeaseAge, &[], (readiness::lease_age(hub, now) * 1e6) as u64);
        }
        if let Some(first) = hub.control().tunnels().filter_map(|t| t.expires).min() {
            // Past ends too: such a tunnel is kept without new streams.
            let (left, over) = (first.since(now).as_secs(), now.since(first).as_secs());
            s.add(Family::TokenNotAfter, &["attached"], (unix_millis() / 1000 + left).saturating_sub(over));
        }
    });
    for ((change, cause), n) in shared.counts.ownership.borrow().iter() {
        s.add(Family::OwnershipChanges, &[change, cause], *n);
    }
    for (reason, n) in shared.counts.refused.borrow().iter() {
        s.add(Family::AuthRejects, &[reason], *n);
    }
    s.add(Family::HttpThrottled, &[], shared.counts.throttled.get());
    for ((plane, kind), n) in shared.counts.protocol_errors.borrow().iter() {
        s.add(Family::ProtocolErrors, &[plane, kind], *n);
    }
    for ((plane, cause), n) in shared.counts.handshakes.borrow().iter() {
        s.add(Family::HandshakeFailures, &[plane, cause], *n);
    }
    s.add(Family::ReplicaIdConflicts, &[], shared.counts.replica_id_twice.get());
    s.add(Family::DuplicateAgents, &[], shared.counts.agent_id_twice.get());
    s.add(Family::DuplicateAgentRefusals, &[], shared.counts.agent_id_refused.get());
    let keys = shared.keys();
    for (result, n) in keys.fetches.results() {
        s.add(Family::JwksFetches, &[result], n);
    }
    if let Some(age) = keys.jwks.as_ref().and_then(|jwks| jwks.age_seconds()) {
        s.add(Family::JwksAge, &["url"], age);
    }
    shared.reloads.add_to(&mut s);
    reload::add_certs(&mut s, &shared.certs);
    if let Registry::Redis(redis) = &**shared.registry.borrow() {
        s.add(Family::RegistryCorruptValues, &[], redis.health().corrupt_values);
    }
    s
}

/// Also of listeners that are gone: totals never fall.
fn listeners(s: &mut Snapshot, c: &ShardCounters, hub: &Hub) {
    for (ix, l) in hub.control().config().listeners.iter().enumerate() {
        let name = l.name.as_str();
        let at = |v: &[u64]| v.get(ix).copied().unwrap_or(0);
        s.add(Family::StreamsTotal, &[name, "local"], at(&c.opened_local));
        s.add(Family::StreamsTotal, &[name, "mesh"], at(&c.opened_mesh));
        if hub.mode() == Mode::Shadow || at(&c.shadow_local) + at(&c.shadow_mesh) > 0 {
            s.add(Family::ShadowDecisions, &[name, "local"], at(&c.shadow_local));
            s.add(Family::ShadowDecisions, &[name, "mesh"], at(&c.shadow_mesh));
        }
        for code in RstCode::ALL {
            let n = c.shadow_refused.get(ix).and_then(|r| r.get(usize::from(code.number()))).copied().unwrap_or(0);
            if n > 0 {
                s.add(Family::ShadowDecisions, &[name, code.name()], n);
            }
            let n = c.open_failures.get(ix).and_then(|r| r.get(usize::from(code.number()))).copied().unwrap_or(0);
            if n > 0 {
                s.add(Family::OpenFailures, &[name, code.name()], n);
            }
        }
    }
}

fn ejections(s: &mut Snapshot, hub: &Hub) {
    for l in &hub.control().config().listeners {
        s.add(Family::CandidatesEjected, &[l.connector.as_str()], 0);
    }
    for shard in hub.shards() {
        for connector in shard.ejected_now() {
            s.add(Family::CandidatesEjected, &[connector.as_str()], 1);
        }
        for (connector, code, n) in shard.ejected_ever() {
            s.add(Family::Ejections, &[connector.as_str(), code.name()], n);
        }
    }
}

fn readiness(s: &mut Snapshot, r: &Readiness) {
    for state in answers::State::ALL {
        s.add(Family::Readiness, &[state.name()], u64::from(r.state == state));
    }
    for reason in Reason::ALL {
        s.add(Family::ReadinessReason, &[reason.name()], u64::from(r.reasons.contains(&reason)));
    }
    for (name, l) in &r.listeners {
        s.add(Family::ListenerReady, &[name], u64::from(l.unready.is_none()));
        s.add(Family::ListenerListening, &[name], u64::from(l.listening));
    }
}

fn limits(s: &mut Snapshot, hub: &Hub, shared: &Shared) {
    let setup = shared.setup();
    let limits = &setup.core.limits;
    let pending_opens = hub.shards().iter().map(Shard::pending_opens).max().unwrap_or(0);
    snapshot::limits(s, hub.mux(), limits, hub.streams(), pending_opens);
    let handshakes = hub.control().handshakes() as u64;
    s.add_share(Family::LimitUsed, &["max_handshakes", ""], handshakes, limits.max_handshakes.into());
    for l in &setup.core.listeners {
        let clients = hub.listener(l).map_or(0, |ix| hub.clients(ix)).into();
        s.add_share(Family::LimitUsed, &["max_connections", l.name.as_str()], clients, l.max_connections.into());
    }
}

fn links(s: &mut Snapshot, hub: &Hub, now: Instant, legacy_names: bool) {
    for (peer, n) in hub.violations_by_peer() {
        s.add(Family::MeshBackpressureDrops, &[peer.as_str(), RstCode::Flow.name()], n);
    }
    let totals = hub.control().link_totals();
    s.add(Family::MeshLinkReconnects, &[], totals.reconnects);
    s.add(Family::MeshLinkErrors, &[], totals.errors);
    for l in hub.control().links(hub.mux()) {
        if hub.mode() == Mode::Off && l.session.is_none() {
            // Nobody wants it: what is not there is not down.
            continue;
        }
        let peer = peer_label(&l);
        let peer = peer.as_str();
        for state in State::ALL {
            s.add(Family::MeshLinks, &[peer, state.label()], u64::from(l.state == state));
        }
        if l.configured {
            let absent = matches!(l.lease, PeerLease::Absent { until } if now < until);
            s.add(Family::MeshPeerAbsent, &[peer], u64::from(absent));
        }
        let rtt = l.session.and_then(|key| hub.mux().get(key)).and_then(|e| e.session.rtt());
        if let (true, Some(rtt)) = (legacy_names, rtt) {
            let millis = u64::try_from(rtt.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
            s.add(Family::MeshRttMs, &[peer], millis);
        }
    }
}

/// The peer's name; until it told one, where it is dialled. Both from a
/// configuration, so there are no more of them than it names.
fn peer_label(l: &LinkView<'_>) -> String {
    let address = || l.url.and_then(|url| WsUrl::parse(url).ok()).map(|url| url.label());
    l.replica.map(ToString::to_string).or_else(address).unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nowconnect_core::id::{Name, SessionKey};

    #[test]
    fn a_peer_is_called_by_its_name_or_by_its_address() {
        let name = Name::new("hub-b").unwrap();
        let label = |replica, url| {
            peer_label(&LinkView {
                replica,
                url,
                state: State::Backoff,
                session: None::<SessionKey>,
                reconnects: 0,
                errors: 0,
                configured: true,
                down_since: None,
                lease: PeerLease::Unknown,
            })
        };
        assert_eq!(label(Some(&name), Some("wss://b.example.com/mesh")), "hub-b");
        assert_eq!(label(None, Some("wss://b.example.com/mesh?key=secret")), "b.example.com:443");
        assert_eq!(label(None, Some("wss://edge:8443/c/mesh")), "edge:8443/c/mesh", "several behind one edge");
        assert_eq!(label(None, Some("ws://[::1]:80/mesh")), "[::1]:80");
    }
}

//! The core's plain totals as the samples of one scrape.

use nowconnect_core::error::RstCode;
use nowconnect_core::hub::Hub;
use nowconnect_core::id::Name;
use nowconnect_core::link::State;
use nowconnect_core::wire::{FRAME_KINDS, Plane};

use super::Shared;
use crate::metrics::{Family, Snapshot};
use crate::node::Node;
use crate::registry::Registry;

const ALL_STATES: [State; 4] = [State::Connecting, State::Established, State::Backoff, State::Closed];

/// Everything `/metrics` shows now.
pub(super) fn take(node: &Node<Hub>, shared: &Shared) -> Snapshot {
    let mut s = Snapshot::default();
    node.look(|hub| {
        streams(&mut s, hub, shared);
        sessions(&mut s, hub);
        let budget = hub.mux().budget();
        s.add(Family::MemoryHeld, &[], budget.held());
        s.add(Family::MemoryBudget, &[], budget.cap());
        s.add(Family::RegistryHealthy, &[], u64::from(hub.control().registry_healthy()));
    });
    for (reason, n) in shared.counts.refused.borrow().iter() {
        s.add(Family::AuthRejects, &[reason], *n);
    }
    for ((plane, kind), n) in shared.counts.protocol_errors.borrow().iter() {
        s.add(Family::ProtocolErrors, &[plane, kind], *n);
    }
    for (cause, n) in shared.counts.ends.borrow().iter() {
        s.add(Family::StreamEnds, &[cause], *n);
    }
    if let Registry::Redis(redis) = &*shared.registry {
        s.add(Family::RegistryCorruptValues, &[], redis.health().corrupt_values);
    }
    s
}

fn streams(s: &mut Snapshot, hub: &Hub, shared: &Shared) {
    let c = hub.shard().counters();
    for (ix, l) in shared.setup.core.listeners.iter().enumerate() {
        let name = l.name.as_str();
        let at = |v: &[u64]| v.get(ix).copied().unwrap_or(0);
        s.add(Family::StreamsTotal, &[name, "local"], at(&c.opened_local));
        s.add(Family::StreamsTotal, &[name, "mesh"], at(&c.opened_mesh));
        for code in RstCode::ALL {
            let n = c.open_failures.get(ix).and_then(|r| r.get(usize::from(code.number()))).copied().unwrap_or(0);
            if n > 0 {
                s.add(Family::OpenFailures, &[name, code.name()], n);
            }
        }
    }
    s.add(Family::Streams, &[], hub.shard().streams() as u64);
    s.add(Family::StreamBytes, &["in"], c.bytes_from_sockets);
    s.add(Family::StreamBytes, &["out"], c.bytes_to_sockets);
    s.add(Family::OwnerEpochMismatch, &[], c.epoch_mismatch);
    s.add(Family::CidDedupDropped, &[], c.duplicates);
    s.add(Family::MeshBackpressure, &["credit"], c.paused_credit);
    s.add(Family::MeshBackpressure, &["queue"], c.paused_queue);
    s.add(Family::MeshBackpressure, &["budget"], c.paused_budget);
    for (peer, n) in hub.shard().violations_by_peer() {
        s.add(Family::MeshBackpressureDrops, &[peer.as_str(), RstCode::Flow.name()], n);
    }
}

fn sessions(s: &mut Snapshot, hub: &Hub) {
    let mut tunnels = 0;
    let (mut queue, mut inflight) = (0, 0);
    for (_, e) in hub.mux().iter() {
        let counters = e.session.counters();
        let family = match e.plane {
            Plane::Tunnel => {
                tunnels += u64::from(e.conn.is_some());
                queue += u64::from(e.session.queue_depth());
                inflight += e.session.inflight_bytes();
                Family::TunnelFrames
            }
            Plane::Mesh => {
                let peer = e.peer.name();
                s.add(Family::SessionQueueFrames, &["mesh", peer], u64::from(e.session.queue_depth()));
                s.add(Family::SessionInflightBytes, &["mesh", peer], e.session.inflight_bytes());
                Family::MeshFrames
            }
        };
        for (ix, kind) in FRAME_KINDS.iter().enumerate() {
            let at = |v: &[u64]| v.get(ix).copied().unwrap_or(0);
            for (dir, n) in [("in", at(&counters.frames_in)), ("out", at(&counters.frames_out))] {
                if n > 0 {
                    s.add(family, &[dir, kind], n);
                }
            }
        }
    }
    s.add(Family::SessionQueueFrames, &["tunnel", ""], queue);
    s.add(Family::SessionInflightBytes, &["tunnel", ""], inflight);
    s.add(Family::Tunnels, &[], tunnels);
    for (plane, t) in ["tunnel", "mesh"].iter().zip(hub.mux().totals) {
        s.add(Family::SessionsSuspended, &[plane], t.suspended);
        s.add(Family::SessionsResumed, &[plane], t.resumed);
        s.add(Family::SessionsLost, &[plane], t.lost);
    }
    for (retired, plane) in hub.mux().retired().iter().zip([Family::TunnelFrames, Family::MeshFrames]) {
        for (ix, kind) in FRAME_KINDS.iter().enumerate() {
            for (dir, counts) in [("in", &retired.0), ("out", &retired.1)] {
                if let Some(n) = counts.get(ix).filter(|n| **n > 0) {
                    s.add(plane, &[dir, kind], *n);
                }
            }
        }
    }
    let unknown = Name::new("unknown").expect("a valid name");
    for l in hub.control().links(hub.mux()) {
        let peer = l.replica.unwrap_or(&unknown).as_str();
        for state in ALL_STATES {
            s.add(Family::MeshLinks, &[peer, state.name()], u64::from(l.state == state));
        }
        s.add(Family::MeshLinkReconnects, &[], l.reconnects);
        s.add(Family::MeshLinkErrors, &[], l.errors);
    }
}

//! What hubs and agents have in common at a scrape: the totals of the shards
//! and of the sessions, copied from the core's plain integers.

use nowconnect_core::error::RstCode;
use nowconnect_core::mux::Mux;
use nowconnect_core::observed::{Cause, ShardCounters};
use nowconnect_core::wire::{FRAME_KINDS, Plane};

use crate::metrics::{Family, Snapshot};

/// Streams, bytes and pauses of the shards.
pub(crate) fn shards(s: &mut Snapshot, c: &ShardCounters, streams: usize) {
    s.add(Family::Streams, &[], streams as u64);
    s.add(Family::StreamBytes, &["in"], c.bytes_from_sockets);
    s.add(Family::StreamBytes, &["out"], c.bytes_to_sockets);
    s.add(Family::StreamsCarried, &[], c.carried);
    s.add(Family::OwnerEpochMismatch, &[], c.epoch_mismatch);
    s.add(Family::CidDedupDropped, &[], c.duplicates);
    s.add(Family::MeshBackpressure, &["credit"], c.paused_credit);
    s.add(Family::MeshBackpressure, &["queue"], c.paused_queue);
    s.add(Family::MeshBackpressure, &["budget"], c.paused_budget);
    ends(s, c);
}

fn ends(s: &mut Snapshot, c: &ShardCounters) {
    s.add(Family::StreamEnds, &[Cause::Finished.name()], c.finished);
    for code in RstCode::ALL {
        let n = c.reset.get(usize::from(code.number())).copied().unwrap_or(0);
        if n > 0 {
            s.add(Family::StreamEnds, &[code.name()], n);
        }
    }
}

/// Frames, queues and fates of the sessions of `planes`, and the memory. A
/// link's gauges carry its peer; tunnels are summed, because what is at their
/// other end is no label (B10).
pub(crate) fn sessions(s: &mut Snapshot, mux: &Mux, planes: &[Plane]) {
    let mut tunnels = 0;
    let (mut queue, mut inflight) = (0, 0);
    for (_, e) in mux.iter() {
        let (depth, bytes) = (u64::from(e.session.queue_depth()), e.session.inflight_bytes());
        match e.plane {
            Plane::Tunnel => {
                tunnels += u64::from(e.conn.is_some());
                queue += depth;
                inflight += bytes;
            }
            Plane::Mesh => {
                s.add(Family::SessionQueueFrames, &["mesh", e.peer.name()], depth);
                s.add(Family::SessionInflightBytes, &["mesh", e.peer.name()], bytes);
            }
        }
        let counters = e.session.counters();
        frames(s, e.plane, &counters.frames_in, &counters.frames_out);
    }
    s.add(Family::SessionQueueFrames, &["tunnel", ""], queue);
    s.add(Family::SessionInflightBytes, &["tunnel", ""], inflight);
    s.add(Family::Tunnels, &[], tunnels);
    let both = [(Plane::Tunnel, "tunnel"), (Plane::Mesh, "mesh")];
    for (((plane, name), totals), retired) in both.into_iter().zip(mux.totals).zip(mux.retired()) {
        if planes.contains(&plane) {
            s.add(Family::SessionsSuspended, &[name], totals.suspended);
            s.add(Family::SessionsResumed, &[name], totals.resumed);
            s.add(Family::SessionsLost, &[name], totals.lost);
            frames(s, plane, &retired.0, &retired.1);
        }
    }
    s.add(Family::MemoryHeld, &[], mux.budget().held());
    s.add(Family::MemoryBudget, &[], mux.budget().cap());
}

fn frames(s: &mut Snapshot, plane: Plane, received: &[u64], sent: &[u64]) {
    let family = if plane == Plane::Mesh { Family::MeshFrames } else { Family::TunnelFrames };
    for (dir, counts) in [("in", received), ("out", sent)] {
        for (kind, n) in FRAME_KINDS.iter().zip(counts).filter(|(_, n)| **n > 0) {
            s.add(family, &[dir, kind], *n);
        }
    }
}

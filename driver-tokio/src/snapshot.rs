//! What hubs and agents have in common at a scrape: the totals of the shards
//! and of the sessions, copied from the core's plain integers.

use nowconnect_core::config::Limits;
use nowconnect_core::error::RstCode;
use nowconnect_core::mux::Mux;
use nowconnect_core::observed::{Cause, ShardCounters};
use nowconnect_core::session::Session;
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
    s.add(Family::FramesRejected, &["session"], c.wrong_session);
    s.add(Family::FramesRejected, &["epoch"], c.wrong_epoch);
    s.add(Family::FramesRejected, &["unknown"], c.unknown);
    s.add(Family::FramesRejected, &["glitch"], c.glitches);
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
    let mut states = [[0; 2]; 2];
    let mut traffic = *mux.retired_bytes();
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
        let plane = usize::from(e.plane == Plane::Mesh);
        states[plane][usize::from(e.conn.is_none())] += 1;
        traffic[plane] = [traffic[plane][0] + counters.bytes_in, traffic[plane][1] + counters.bytes_out];
        frames(s, e.plane, &counters.frames_in, &counters.frames_out);
    }
    s.add(Family::SessionQueueFrames, &["tunnel", ""], queue);
    s.add(Family::SessionInflightBytes, &["tunnel", ""], inflight);
    s.add(Family::Tunnels, &[], tunnels);
    let both = [(Plane::Tunnel, "tunnel"), (Plane::Mesh, "mesh")];
    let sums = mux.totals.into_iter().zip(mux.retired()).zip(states).zip(traffic);
    for ((plane, name), (((totals, retired), [connected, suspended]), [received, sent])) in both.into_iter().zip(sums) {
        if planes.contains(&plane) {
            s.add(Family::Sessions, &[name, "connected"], connected);
            s.add(Family::Sessions, &[name, "suspended"], suspended);
            s.add(Family::SessionBytes, &[name, "in"], received);
            s.add(Family::SessionBytes, &[name, "out"], sent);
            s.add(Family::SessionsEstablished, &[name], totals.established);
            s.add(Family::SessionsSuspended, &[name], totals.suspended);
            s.add(Family::SessionsResumed, &[name], totals.resumed);
            s.add(Family::SessionsLost, &[name], totals.lost);
            frames(s, plane, &retired.0, &retired.1);
        }
    }
    s.add(Family::MemoryHeld, &[], mux.budget().held());
    s.add(Family::MemoryBudget, &[], mux.budget().cap());
}

/// The used share of every limit that hubs and agents have.
pub(crate) fn limits(s: &mut Snapshot, mux: &Mux, limits: &Limits, streams: usize, pending_opens: u32) {
    let fullest = |of: fn(&Session) -> u64| mux.iter().map(|(_, e)| of(&e.session)).max().unwrap_or(0);
    for (limit, used, most) in [
        ("memory_budget_bytes", mux.budget().held(), mux.budget().cap()),
        ("max_streams", streams as u64, limits.max_streams.into()),
        ("max_sessions", mux.iter().count() as u64, limits.max_sessions.into()),
        ("max_pending_opens", pending_opens.into(), limits.max_pending_opens.into()),
        ("send_queue_depth", fullest(|s| s.queue_depth().into()), limits.send_queue_depth.into()),
        ("per_link_max_inflight_bytes", fullest(Session::inflight_bytes), limits.inflight_bytes),
    ] {
        s.add_share(Family::LimitUsed, &[limit, ""], used, most);
    }
}

fn frames(s: &mut Snapshot, plane: Plane, received: &[u64], sent: &[u64]) {
    let family = if plane == Plane::Mesh { Family::MeshFrames } else { Family::TunnelFrames };
    for (dir, counts) in [("in", received), ("out", sent)] {
        for (kind, n) in FRAME_KINDS.iter().zip(counts).filter(|(_, n)| **n > 0) {
            s.add(family, &[dir, kind], *n);
        }
    }
}

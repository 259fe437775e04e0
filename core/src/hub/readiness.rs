//! What a balancer is told (semantics 10): whether the mesh is whole, and
//! whether a listener could take a client at this moment. Derived from state on
//! every question and never kept, so that it cannot go stale (L6).

use std::time::Duration;

use super::Hub;
use super::leases::PeerLease;
use super::view::LinkView;
use crate::credit::Pressure;
use crate::id::ListenerIx;
use crate::link::State;
use crate::time::Instant;

/// How long a link that was established may be away before the mesh counts as
/// unhealthy.
pub const MESH_GRACE: Duration = Duration::from_secs(3);

/// Why a listener could not take a client now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unready {
    /// This hub takes no new streams.
    Draining,
    /// No attachment that could be asked exposes the connector.
    NoCandidate,
    /// `max_connections` of the listener or `limits.max_streams` is reached.
    Full,
    /// `limits.memory_budget_bytes` is used up.
    Memory,
    /// The driver's word, for want of any other: its port is not open.
    NotListening,
}

impl Unready {
    /// Every reason.
    pub const ALL: [Self; 5] = [Self::Draining, Self::NoCandidate, Self::Full, Self::Memory, Self::NotListening];

    /// The word in `/readyz`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::NoCandidate => "no_candidate",
            Self::Full => "full",
            Self::Memory => "memory",
            Self::NotListening => "not_listening",
        }
    }
}

impl LinkView<'_> {
    /// Whether this link is missed by now: to a configured peer with a live
    /// lease, and not established for [`MESH_GRACE`], or not yet since the start.
    /// A peer that took its lease again has that time from then on. What is not
    /// known counts as live ([`PeerLease::Unknown`], and an answer that is too
    /// old): a link must not be down unseen because the registry is away.
    #[must_use]
    pub fn is_missed(&self, now: Instant) -> bool {
        let since = match self.lease {
            PeerLease::Absent { until } if now < until => return false,
            PeerLease::Absent { .. } | PeerLease::Unknown => self.down_since,
            PeerLease::Live { since } => self.down_since.max(since),
        };
        self.configured && self.state != State::Established && since.is_none_or(|at| now.since(at) >= MESH_GRACE)
    }
}

impl Hub {
    /// Whether there is a link to every configured peer that holds a live lease,
    /// or was within [`MESH_GRACE`].
    #[must_use]
    pub fn mesh_healthy(&self, now: Instant) -> bool {
        !self.control.links(&self.mux).iter().any(|l| l.is_missed(now))
    }

    /// Why a client of this listener would be refused now; `None`: it would be
    /// carried.
    #[must_use]
    pub fn unready(&self, listener: ListenerIx) -> Option<Unready> {
        let config = self.control.config();
        let Some(l) = config.listeners.get(usize::from(listener.0)) else { return Some(Unready::NoCandidate) };
        if self.control.is_draining() {
            Some(Unready::Draining)
        } else if !self.could_open(&l.connector) {
            Some(Unready::NoCandidate)
        } else if self.clients(listener) >= l.max_connections || self.streams() >= config.limits.max_streams as usize {
            Some(Unready::Full)
        } else if self.mux.budget().pressure() >= Pressure::Lowered {
            Some(Unready::Memory)
        } else {
            None
        }
    }
}

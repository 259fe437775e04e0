//! Where a connector can be reached now: an immutable snapshot that control
//! publishes and shards read. A stale snapshot is safe, because the owner
//! fences every OPEN (O4).

use std::collections::BTreeMap;

use crate::id::{AgentId, Fence, Name, SessionKey};

/// Ranks from here on: attachments that the registry does not list any more.
pub const RANK_FADED: u64 = 1 << 32;

/// One attachment that exposes a connector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The agent.
    pub agent_id: AgentId,
    /// The attachment's fence.
    pub fence: Fence,
    /// The session an OPEN is sent on: the tunnel itself, or the link to the owner.
    pub session: SessionKey,
    /// The hub that holds the attachment.
    pub owner: Name,
    /// Whether that is this hub.
    pub local: bool,
    /// Class of preference, lower first; equals share by weight.
    pub rank: u64,
    /// Share among equals, at least 1.
    pub weight: u16,
}

impl Candidate {
    /// Whether the registry listed it once and does not any more: it may be
    /// over, or withdrawn, or only forgotten.
    #[must_use]
    pub const fn is_faded(&self) -> bool {
        self.rank >= RANK_FADED
    }
}

/// All candidates by connector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Candidates in no particular order.
    pub by_connector: BTreeMap<Name, Vec<Candidate>>,
}

impl Routes {
    /// The candidates of a connector.
    #[must_use]
    pub fn of(&self, connector: &Name) -> &[Candidate] {
        self.by_connector.get(connector).map_or(&[], Vec::as_slice)
    }
}

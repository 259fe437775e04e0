//! Where a connector can be reached now: what control publishes and shards
//! read. Control says what changed, so that one attachment that comes or goes
//! costs the same with ten others and with ten thousand. Stale routes are safe,
//! because the owner fences every OPEN (O4).

use std::collections::BTreeMap;

use crate::id::{AgentId, Fence, Instance, Name, SessionKey};

/// Ranks from here on: attachments that the registry does not list any more.
pub const RANK_FADED: u64 = 1 << 32;

/// Added to the rank of an attachment whose hub leaves: it serves when no other
/// does.
pub const RANK_LEAVING: u64 = 1 << 31;

/// One attachment that exposes a connector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The agent.
    pub agent_id: AgentId,
    /// Its run.
    pub instance: Instance,
    /// The attachment's fence.
    pub fence: Fence,
    /// The session an OPEN is sent on: the tunnel itself, or the link to the owner.
    pub session: SessionKey,
    /// The hub that holds the attachment.
    pub owner: Name,
    /// Whether that is this hub.
    pub local: bool,
    /// Class of preference, lower first: made by [`rank`]. Those of one rank at
    /// one distance share by weight.
    pub rank: u64,
    /// Share among equals: made by [`weight`].
    pub weight: u16,
}

/// Largest weight that counts. Whatever an agent announces, it gets at most this
/// many times the streams of another of its rank.
pub const WEIGHT_MAX: u16 = 1000;

/// The weight of a candidate that announces this one: 1 to [`WEIGHT_MAX`].
#[must_use]
pub fn weight(announced: u16) -> u16 {
    announced.clamp(1, WEIGHT_MAX)
}

/// The rank of a candidate: priority, then own tunnels, then the hub's region.
#[must_use]
pub fn rank(priority: u16, local: bool, same_region: bool) -> u64 {
    u64::from(priority) << 2 | u64::from(!local) << 1 | u64::from(!same_region)
}

impl Candidate {
    /// Its priority, lower is preferred; with a hub that leaves, or without an
    /// entry in the registry, it is behind everyone's.
    #[must_use]
    pub const fn priority(&self) -> u64 {
        self.rank >> 2
    }

    /// Whether the registry listed it once and does not any more: it may be
    /// over, or withdrawn, or only forgotten.
    #[must_use]
    pub const fn is_faded(&self) -> bool {
        self.rank >= RANK_FADED
    }

    /// The change that takes it away.
    #[must_use]
    pub fn gone(&self, connector: Name) -> RouteChange {
        let (agent_id, owner) = (self.agent_id.clone(), self.owner.clone());
        RouteChange { connector, agent_id, owner, withdrawn: false, candidate: None }
    }

    /// The change that adds it, or puts it in the place of the one before.
    #[must_use]
    pub fn at(self, connector: Name) -> RouteChange {
        let (agent_id, owner) = (self.agent_id.clone(), self.owner.clone());
        RouteChange { connector, agent_id, owner, withdrawn: false, candidate: Some(self) }
    }
}

/// What became of one attachment as a candidate of one connector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteChange {
    /// The connector.
    pub connector: Name,
    /// The attachment's agent.
    pub agent_id: AgentId,
    /// The hub that holds or held it.
    pub owner: Name,
    /// It is none any more because the agent says so: its other attachments,
    /// which may still be candidates, do not carry the connector either.
    pub withdrawn: bool,
    /// The candidate it is now; `None` if it is none any more.
    pub candidate: Option<Candidate>,
}

/// The candidates of one connector, one per agent and hub (O1).
pub type Candidates = BTreeMap<(AgentId, Name), Candidate>;

/// All candidates by connector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    by_connector: BTreeMap<Name, Candidates>,
}

impl Routes {
    /// The candidates of a connector, in no order that means anything.
    pub fn of(&self, connector: &Name) -> impl Iterator<Item = &Candidate> {
        self.by_connector.get(connector).into_iter().flat_map(BTreeMap::values)
    }

    /// The connectors with candidates.
    pub fn connectors(&self) -> impl Iterator<Item = &Name> {
        self.by_connector.keys()
    }

    /// What is known of one attachment.
    #[must_use]
    pub fn get(&self, connector: &Name, at: &(AgentId, Name)) -> Option<&Candidate> {
        self.by_connector.get(connector)?.get(at)
    }

    /// Takes a change. False if it says nothing new.
    pub fn apply(&mut self, change: &RouteChange) -> bool {
        let at = (change.agent_id.clone(), change.owner.clone());
        if self.get(&change.connector, &at) == change.candidate.as_ref() {
            return false;
        }
        match &change.candidate {
            Some(candidate) => {
                self.by_connector.entry(change.connector.clone()).or_default().insert(at, candidate.clone());
            }
            None => {
                if let Some(all) = self.by_connector.get_mut(&change.connector) {
                    all.remove(&at);
                    if all.is_empty() {
                        self.by_connector.remove(&change.connector);
                    }
                }
            }
        }
        true
    }
}

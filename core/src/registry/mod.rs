//! The registry as the core sees it: operations out, replies in, both plain
//! data. No word of Redis here. Which hub holds which attachment, under which
//! fence, and which hub incarnation is alive.
//!
//! Every operation is an atomic step at the registry and idempotent under
//! retry with the same ids (O5). Outcome `Unknown` (timed out, connection
//! lost) is not an error: the step may have happened or may still happen (R2).

mod memory;

pub use memory::{MemoryRegistry, StoredKey};

use std::collections::BTreeSet;
use std::time::Duration;

use crate::id::{AgentId, ClaimId, Epoch, Fence, Incarnation, Instance, Name, Nonce};
use crate::wire::ConnectorAd;

/// Names one operation until its reply; the core ignores replies it no longer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// A hub's run, as the registry knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HubRun {
    /// The replica.
    pub replica_id: Name,
    /// Its run.
    pub incarnation: Incarnation,
}

/// One step the registry is asked to take.
#[derive(Clone, Debug, PartialEq)]
pub enum RegistryOp {
    /// Take or renew this hub's lease. A newer incarnation of the replica takes
    /// over when `last_seen` is the incarnation it read before (compare-and-set),
    /// or when more than `lease` is left of the other's: the registry's clock
    /// stepped back. All runs of a replica id have leases of one length.
    Renew {
        /// Who renews.
        hub: HubRun,
        /// How long the lease lasts from the moment the registry executes this.
        lease: Duration,
        /// The incarnation this one replaces, when it takes over.
        takes_over: Option<Incarnation>,
        /// Where peers see this hub (shown in `status`).
        region: Option<Name>,
    },
    /// Give the lease back at an orderly stop.
    Resign {
        /// Who leaves.
        hub: HubRun,
    },
    /// Claim an attachment: epoch = max(stored, seen, floor) + 1.
    Claim(Box<Claim>),
    /// Replace the connectors of an attachment, if the fence still holds it.
    SetConnectors {
        /// The attachment's agent.
        agent_id: AgentId,
        /// The hub that holds it.
        hub: HubRun,
        /// Its fence.
        fence: Fence,
        /// The complete new set.
        connectors: Vec<ConnectorAd>,
    },
    /// End an attachment, if the fence still holds it. Never touches the epoch.
    Release {
        /// The attachment's agent.
        agent_id: AgentId,
        /// The hub that held it.
        hub: HubRun,
        /// Its fence.
        fence: Fence,
    },
    /// Which live attachments expose a connector?
    Lookup {
        /// The connector.
        connector: Name,
    },
    /// Which attachments does an agent have? (audit, `status`)
    Agent {
        /// The agent.
        agent_id: AgentId,
    },
    /// Which of these replicas hold a live lease?
    Leases {
        /// The replicas, in one question.
        replicas: BTreeSet<Name>,
    },
    /// Remove index entries of attachments and hubs that are gone
    /// (compare-and-delete; garbage collection only).
    Sweep,
}

/// Body of [`RegistryOp::Claim`].
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// The agent.
    pub agent_id: AgentId,
    /// Its run; another one supersedes all attachments of the previous.
    pub instance: Instance,
    /// The hub that claims.
    pub hub: HubRun,
    /// Constant over retries of this claim.
    pub claim_id: ClaimId,
    /// Drawn by the hub for this claim.
    pub nonce: Nonce,
    /// The highest epoch the agent or the hub has seen. The registry clamps it
    /// to max(stored, floor) + one day (attack 50).
    pub seen: Epoch,
    /// The highest epoch that a registry granted for this agent, as far as the
    /// hub knows: counts like a stored one. It keeps the order when the registry
    /// lost its data and its clock stepped back.
    pub granted: Epoch,
    /// What the attachment exposes.
    pub connectors: Vec<ConnectorAd>,
}

/// What the registry answered.
#[derive(Clone, Debug, PartialEq)]
pub enum RegistryReply {
    /// [`RegistryOp::Renew`]: the lease holds.
    Renewed,
    /// [`RegistryOp::Renew`]: another incarnation holds the replica id.
    LeaseHeld {
        /// That incarnation.
        by: Incarnation,
    },
    /// [`RegistryOp::Claim`]: the attachment is under this epoch.
    Claimed {
        /// The epoch granted.
        epoch: Epoch,
        /// The claim's nonce (the first one's on a retry).
        nonce: Nonce,
        /// Attachments of another instance that this claim ended, whether or not
        /// their hubs hold leases; `region` is not filled in here.
        superseded: Vec<Located>,
    },
    /// The compare-and-act found the fence and acted. Release and Resign also
    /// answer so when nothing is there any more: a retry answers alike (O5).
    Done,
    /// The compare-and-act found something else and did nothing.
    Stale,
    /// [`RegistryOp::Lookup`], [`RegistryOp::Agent`].
    Attachments(Vec<Located>),
    /// [`RegistryOp::Leases`]: the runs that hold one, by replica id.
    Leases(Vec<HubRun>),
    /// [`RegistryOp::Sweep`]: how many entries were removed.
    Swept(u32),
}

/// One attachment as the registry lists it. Only those whose hub holds a live
/// lease are listed.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// The agent.
    pub agent_id: AgentId,
    /// Its run.
    pub instance: Instance,
    /// The hub that holds the attachment.
    pub hub: HubRun,
    /// The attachment's fence.
    pub fence: Fence,
    /// What it exposes.
    pub connectors: Vec<ConnectorAd>,
    /// The hub's region.
    pub region: Option<Name>,
}

/// What became of an operation that got no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// It certainly did not and will not happen.
    #[error("the registry refused: {0}")]
    Definite(String),
    /// It may have happened, or may still.
    #[error("the registry's answer is unknown: {0}")]
    Unknown(String),
}

/// The result of one operation.
pub type RegistryResult = Result<RegistryReply, RegistryError>;

/// 2^10 epochs a millisecond: the floor of an epoch is the registry's clock in
/// milliseconds times this (below 2^53 until the year 2248).
pub const EPOCHS_PER_MILLI: u64 = 1024;
/// How far `seen` may lie above the higher one of what is stored and the floor.
pub const SEEN_AHEAD_MAX: u64 = 86_400_000 * EPOCHS_PER_MILLI;

/// Largest epoch a registry grants: Lua numbers are exact up to here (planted
/// bug 11). A claim above it is refused; epochs never wrap.
pub const EPOCH_MAX: u64 = (1 << 53) - 1;
/// How long a claim's answer is remembered for its retries, even after another
/// claim ended the attachment: a retry that arrives then must not take it back.
pub const CLAIM_MEMORY: Duration = Duration::from_secs(60);

/// The text of the refusal at [`EPOCH_MAX`].
#[must_use]
pub fn epochs_used_up() -> String {
    format!("expected the next epoch of this agent to be at most {EPOCH_MAX}; give the agent another id")
}

/// The rule every registry implements: epoch = max(stored, seen, floor) + 1,
/// `stored` being the higher one of what is stored and what the claim says was
/// granted before,
/// `seen` clamped to max(stored, floor) + one day (semantics 4). So whoever has
/// honestly seen more than a registry that lost its data gets above it in a few
/// claims, and who names a huge `seen` again and again needs some 80 000 claims
/// to use up the epochs of its own id, and of no other (attack 50).
#[must_use]
pub fn next_epoch(stored: Epoch, seen: Epoch, registry_millis: u64) -> Epoch {
    let floor = registry_millis.saturating_mul(EPOCHS_PER_MILLI);
    let base = stored.max(Epoch(floor));
    Epoch(base.max(seen_clamped(base, seen)).0.saturating_add(1))
}

/// What of `seen` counts beside `base`, the higher one of what is stored and
/// the floor.
#[must_use]
pub fn seen_clamped(base: Epoch, seen: Epoch) -> Epoch {
    seen.min(Epoch(base.0.saturating_add(SEEN_AHEAD_MAX)))
}

/// Largest `seen` of an agent that counts while no registry told its floor.
/// Honest epochs stay below it until the year 2112.
pub const SEEN_UNCHECKED_MAX: u64 = 1 << 52;

/// The epoch of a provisional attachment, granted without the registry:
/// max(own, seen) + 1. `own` is the highest epoch the hub knows for the agent.
/// `seen` is clamped as a registry clamps it, by the floor as far as the hub
/// knows it. While it never heard of one (`None`), an honest agent may have seen
/// any epoch of this century: up to [`SEEN_UNCHECKED_MAX`] counts.
#[must_use]
pub fn provisional_epoch(own: Epoch, seen: Epoch, floor: Option<Epoch>) -> Epoch {
    let counts = match floor {
        Some(floor) => seen_clamped(own.max(floor), seen),
        None => seen_clamped(own, seen).max(seen.min(Epoch(SEEN_UNCHECKED_MAX))),
    };
    Epoch(own.max(counts).0.saturating_add(1))
}

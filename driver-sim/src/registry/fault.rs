//! What can go wrong with the registry: the faults R1 to R10, whom they hit
//! and for how long, and what the production driver makes of each error.
//!
//! Keeps: the verdict on every error is the one of `classify` in
//! `driver-tokio/src/registry/connection.rs`.
//!
//! Must not know: how a request travels, what a server holds.

use std::time::Duration;

use nowconnect_core::id::{AgentId, Name};
use nowconnect_core::registry::{MemoryRegistry, RegistryError, RegistryOp, StoredKey};
use nowconnect_core::time::Instant;

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// Every client.
    All,
    /// The clients of one machine, whichever run.
    Node(usize),
}

impl Whom {
    pub(super) fn is(self, node: usize) -> bool {
        match self {
            Self::All => true,
            Self::Node(n) => n == node,
        }
    }
}

/// Class of a fault, as numbered in the fault model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
#[expect(missing_docs, reason = "the fault model's numbers")]
pub enum Class {
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// Number of classes.
pub const CLASSES: usize = 10;

/// What a server may answer instead of executing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerError {
    /// The script is not loaded, and loading it does not help.
    NoScript,
    /// The server reads its data set.
    Loading,
    /// Another script runs too long.
    Busy,
    /// A replica without its master.
    MasterDown,
    /// The cluster does not serve this slot.
    ClusterDown,
    /// The access rights changed.
    NoAuth,
    /// A replica asked to write.
    ReadOnly,
    /// Memory is full: refuses what needs some.
    Oom,
    /// A script failed, or a code nobody knows: what happened is open.
    Unrecognised,
}

impl ServerError {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::NoScript,
        Self::Loading,
        Self::Busy,
        Self::MasterDown,
        Self::ClusterDown,
        Self::NoAuth,
        Self::ReadOnly,
        Self::Oom,
        Self::Unrecognised,
    ];

    const fn code(self) -> &'static str {
        match self {
            Self::NoScript => "NOSCRIPT",
            Self::Loading => "LOADING",
            Self::Busy => "BUSY",
            Self::MasterDown => "MASTERDOWN",
            Self::ClusterDown => "CLUSTERDOWN",
            Self::NoAuth => "NOAUTH",
            Self::ReadOnly => "READONLY",
            Self::Oom => "OOM",
            Self::Unrecognised => "ERR",
        }
    }

    /// The outcome the production driver reports (`classify` in
    /// `driver-tokio/src/registry/connection.rs`; texts of `describe` there).
    #[must_use]
    pub fn outcome(self) -> RegistryError {
        let text = format!("the server answered {}", self.code());
        match self {
            Self::NoScript
            | Self::Loading
            | Self::Busy
            | Self::MasterDown
            | Self::ClusterDown
            | Self::NoAuth
            | Self::ReadOnly
            | Self::Oom => RegistryError::Definite(text),
            Self::Unrecognised => RegistryError::Unknown(text),
        }
    }

    /// Whether the production driver gives the connection up (same place).
    #[must_use]
    pub const fn abandons(self) -> bool {
        match self {
            Self::Loading | Self::MasterDown | Self::ClusterDown | Self::NoAuth | Self::ReadOnly => true,
            Self::NoScript | Self::Busy | Self::Oom | Self::Unrecognised => false,
        }
    }

    /// Whether the questions asked on a new connection (PING, ROLE) fail too:
    /// `establish` there.
    pub(super) const fn fails_dial(self) -> bool {
        match self {
            Self::Loading | Self::MasterDown | Self::NoAuth | Self::ReadOnly => true,
            Self::NoScript | Self::Busy | Self::ClusterDown | Self::Oom | Self::Unrecognised => false,
        }
    }

    /// Whether this operation meets the error. Full memory refuses what writes
    /// more; a replica refuses what writes at all.
    pub(super) const fn meets(self, op: &RegistryOp) -> bool {
        match self {
            Self::Oom => {
                matches!(op, RegistryOp::Renew { .. } | RegistryOp::Claim(_) | RegistryOp::SetConnectors { .. })
            }
            Self::ReadOnly => writes(op),
            Self::NoScript => !reads(op),
            Self::Loading | Self::Busy | Self::MasterDown | Self::ClusterDown | Self::NoAuth | Self::Unrecognised => {
                true
            }
        }
    }
}

pub(super) const fn reads(op: &RegistryOp) -> bool {
    matches!(op, RegistryOp::Lookup { .. } | RegistryOp::Agent { .. } | RegistryOp::Leases { .. })
}

pub(super) const fn writes(op: &RegistryOp) -> bool {
    !reads(op)
}

/// A fault that lasts until its end. `per_mille`: how many of a thousand
/// requests it hits.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// R1: connections are refused, those that stood break.
    Refuse,
    /// R1: nothing arrives and nothing comes back.
    Blackhole,
    /// R1: each request travels this much longer.
    Slow {
        /// At least.
        min: Duration,
        /// At most.
        max: Duration,
    },
    /// R2: executed, the reply lost.
    LoseReplies {
        /// How often.
        per_mille: u16,
    },
    /// R2: executed only after the client gave up, by up to `max` more.
    LateCommits {
        /// How often.
        per_mille: u16,
        /// Longest delay past the client's time-out.
        max: Duration,
        /// The reply still reaches the core, under the old token. The
        /// production driver never does that: it has answered `Unknown`.
        reply: bool,
    },
    /// R2: a claim or a change of connectors takes its first step and not the
    /// second, which announces the connectors; the driver answers `Unknown`
    /// (`Call::acted` in `driver-tokio/src/registry/redis.rs`).
    HalfDone {
        /// How often.
        per_mille: u16,
    },
    /// R3: these clients still reach a master of before, now a replica: reads
    /// are as old as the fault, writes are answered READONLY, upon which the
    /// production driver dials anew.
    Demoted {
        /// A new dial still ends there and is given up for its ROLE.
        sticky: bool,
    },
    /// R6: lookups are answered from a state this much older than the fault.
    StaleReads {
        /// How old.
        lag: Duration,
    },
    /// R7, and R5 for [`ServerError::Oom`]: errors instead of execution.
    Errors {
        /// Which.
        error: ServerError,
        /// How often.
        per_mille: u16,
    },
    /// R8: leases end for readers before their time.
    EarlyExpiry {
        /// By how much.
        by: Duration,
    },
    /// R8: ended leases are listed a while longer.
    LateExpiry {
        /// How long.
        by: Duration,
    },
    /// R10: the reply is another request's. The production driver sees it by
    /// the echo in every reply, answers `Unknown` and gives the connection up
    /// (`Call::misaligned` in `driver-tokio/src/registry/redis.rs`).
    Misalign {
        /// How often.
        per_mille: u16,
    },
}

impl Fault {
    /// The class it belongs to.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Refuse | Self::Blackhole | Self::Slow { .. } => Class::R1,
            Self::LoseReplies { .. } | Self::LateCommits { .. } | Self::HalfDone { .. } => Class::R2,
            Self::Demoted { .. } => Class::R3,
            Self::StaleReads { .. } => Class::R6,
            Self::Errors { error: ServerError::Oom, .. } => Class::R5,
            Self::Errors { .. } => Class::R7,
            Self::EarlyExpiry { .. } | Self::LateExpiry { .. } => Class::R8,
            Self::Misalign { .. } => Class::R10,
        }
    }
}

/// Damage done at one instant, which nothing undoes.
#[derive(Clone, Debug, PartialEq)]
pub enum Damage {
    /// R4: restart empty, FLUSHALL.
    Flush,
    /// R4: a state this much older is put back.
    Restore {
        /// How old; at most what [`super::RegistryModel::arm`] keeps.
        age: Duration,
    },
    /// R5: this key is lost.
    Evict(StoredKey),
    /// R5: a drawn one of the keys held is lost.
    EvictAny,
    /// R9: the record of one attachment becomes unreadable or of a later
    /// schema: absent to every reader (`read_attachment` in
    /// `driver-tokio/src/registry/record.rs`, `record` in its `prelude.lua`).
    /// For any other record that is the same as losing its key.
    Spoil(AgentId, Name),
    /// R9: so a drawn one.
    SpoilAny,
}

impl Damage {
    /// The class it belongs to.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Flush | Self::Restore { .. } => Class::R4,
            Self::Evict(_) | Self::EvictAny => Class::R5,
            Self::Spoil(..) | Self::SpoilAny => Class::R9,
        }
    }
}

/// A fault in force.
#[derive(Clone, Debug)]
pub(super) struct Active {
    pub(super) fault: Fault,
    pub(super) whom: Whom,
    pub(super) from: Instant,
    pub(super) until: Instant,
    /// What stale readers see.
    pub(super) view: Option<Box<MemoryRegistry>>,
}

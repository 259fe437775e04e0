//! What an agent answers. Field by field what `docs/operations.md` describes.

use std::collections::BTreeMap;

use nowconnect_core::agent::TunnelState;
use nowconnect_core::error::RstCode;
use nowconnect_core::link;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Closed, Memory, ResultDraining, Session, State, Word, tags};

tags! {
    /// The process is an agent.
    RoleAgent = Agent;
    /// Nothing new is taken: an agent has no lame duck.
    PhaseClosed = Closed;
}

/// `GET /status` of an agent.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AgentStatus", deny_unknown_fields)]
pub(crate) struct Status {
    /// Version of the program.
    pub(crate) version: &'static str,
    /// What the process is.
    pub(crate) role: RoleAgent,
    /// `agent_id`.
    pub(crate) agent: String,
    /// This run of the process: 16 hexadecimal digits.
    pub(crate) instance: String,
    /// The highest epoch it was ever given, decimal; 0 for none.
    pub(crate) highest_epoch: String,
    /// As in `/readyz`.
    pub(crate) status: State,
    /// Why it is not ready.
    pub(crate) reasons: Vec<Reason>,
    /// `hubs` of the configuration in force, and removed ones while they are used up.
    pub(crate) hubs: Vec<Hub>,
    /// `connectors` of the configuration in force.
    pub(crate) connectors: Vec<Connector>,
    /// Streams that are open or opening.
    pub(crate) streams: usize,
    /// The drain under way, else null.
    pub(crate) drain: Option<Drain>,
    /// Keys that changed in the file and take effect with a restart.
    pub(crate) needs_restart: Vec<&'static str>,
    /// Payload held.
    pub(crate) memory: Memory,
}

/// Why an agent is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "AgentReason")]
pub(crate) enum Reason {
    /// It was told to leave.
    Draining,
    /// A target fails its checks.
    TargetsDown,
    /// Fewer tunnels are connected than `parallel` asks for.
    TunnelsMissing,
}

impl Reason {
    pub(crate) const ALL: [Self; 3] = [Self::Draining, Self::TargetsDown, Self::TunnelsMissing];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::TargetsDown => "targets_down",
            Self::TunnelsMissing => "tunnels_missing",
        }
    }
}

impl Closed for TunnelState {
    const NAME: &'static str = "TunnelState";
    const ABOUT: &'static str = "Where the tunnel to a hub stands; `resting`: enough others serve.";
    fn all() -> Vec<Self> {
        std::iter::once(Self::Resting).chain(link::State::ALL.map(Self::Wanted)).collect()
    }
    fn word(self) -> &'static str {
        match self {
            Self::Resting => "resting",
            Self::Wanted(state) => state.label(),
        }
    }
}

/// A hub in `/status`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AgentHub", deny_unknown_fields)]
pub(crate) struct Hub {
    /// Its address, as in `hubs`.
    pub(crate) url: String,
    /// Its `ha.replica_id`; null until it told its name.
    pub(crate) replica: Option<String>,
    /// Where the tunnel stands.
    pub(crate) state: Word<TunnelState>,
    /// The attachment's epoch, decimal; null without one.
    pub(crate) epoch: Option<String>,
    /// The tunnel's session; null without one.
    pub(crate) session: Option<Session>,
}

/// A connector in `/status`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Connector {
    /// `connectors[].name`.
    pub(crate) name: String,
    /// `connectors[].target`.
    pub(crate) target: String,
    /// `connectors[].priority`; lower is preferred.
    pub(crate) priority: u16,
    /// `connectors[].weight`: share among equals.
    pub(crate) weight: u16,
    /// Whether its target passes its checks; null when it is not checked.
    pub(crate) up: Option<bool>,
    /// Why the last check failed; null when none did, or it is not checked.
    pub(crate) last_failure: Option<Word<RstCode>>,
}

/// An agent's drain.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AgentDrain", deny_unknown_fields)]
pub(crate) struct Drain {
    /// How far it is.
    pub(crate) phase: PhaseClosed,
    /// Milliseconds until the deadline, when streams are reset; 0 afterwards.
    pub(crate) resets_in_ms: u64,
    /// Streams that are left.
    pub(crate) streams: usize,
}

/// What an agent answers to POST `/drain`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AgentDraining", deny_unknown_fields)]
pub(crate) struct Draining {
    /// What became of it.
    pub(crate) result: ResultDraining,
    /// Whether the process ends when it is done.
    pub(crate) exits: bool,
}

/// `GET /readyz` of an agent: 200 when ready, or degraded with a connected
/// tunnel and without `?strict`, else 503.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AgentReadyz", deny_unknown_fields)]
pub(crate) struct Readyz {
    /// Whether it serves all it is configured for.
    pub(crate) status: State,
    /// Why it is not ready.
    pub(crate) reasons: Vec<Reason>,
    /// Its tunnels in numbers.
    pub(crate) tunnels: Tunnels,
    /// `hubs` of the configuration in force, and removed ones while they are used up.
    pub(crate) hubs: Vec<HubBrief>,
    /// Targets that are checked, by connector.
    pub(crate) targets: BTreeMap<String, Target>,
}

/// Tunnels in numbers.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Tunnels {
    /// Tunnels that have a connection.
    pub(crate) connected: usize,
    /// `parallel`, or the number of `hubs` if that is less.
    pub(crate) wanted: usize,
}

/// A hub in `/readyz`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AgentHubBrief", deny_unknown_fields)]
pub(crate) struct HubBrief {
    /// Its address, as in `hubs`.
    pub(crate) url: String,
    /// Its `ha.replica_id`; null until it told its name.
    pub(crate) replica: Option<String>,
    /// Where the tunnel stands.
    pub(crate) state: Word<TunnelState>,
}

/// Whether a target passes its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// Yes.
    Up,
    /// No: its connector is withdrawn.
    Down,
}

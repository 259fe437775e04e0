//! What a hub answers. Field by field what `docs/operations.md` describes.

use std::collections::BTreeMap;

use nowconnect_core::config::Mode;
use nowconnect_core::hub::Unready;
use nowconnect_core::link;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Memory, ResultDraining, Session, State, Word, tags};

tags! {
    /// The process is a hub.
    RoleHub = Hub;
    /// Its listeners are closed and its last stream has ended.
    PhaseStopped = Stopped;
}

/// `GET /status` of a hub.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "HubStatus", deny_unknown_fields)]
pub(crate) struct Status {
    /// Version of the program.
    pub(crate) version: &'static str,
    /// What the process is.
    pub(crate) role: RoleHub,
    /// `ha.mode` in force.
    pub(crate) mode: Word<Mode>,
    /// `ha.replica_id`.
    pub(crate) replica: String,
    /// This run of the process: 16 hexadecimal digits.
    pub(crate) incarnation: String,
    /// As in `/readyz`.
    pub(crate) status: State,
    /// Why it is not ready.
    pub(crate) reasons: Vec<Reason>,
    /// The registry, as this hub sees it.
    pub(crate) registry: RegistryBrief,
    /// Links to peers: configured ones first, then those that dialled this hub.
    pub(crate) links: Vec<Link>,
    /// Attachments of agents at this hub.
    pub(crate) tunnels: Vec<Tunnel>,
    /// The listeners of the configuration in force.
    pub(crate) listeners: Vec<Listener>,
    /// Streams that are open or opening.
    pub(crate) streams: usize,
    /// The drain under way, else null.
    pub(crate) drain: Option<Drain>,
    /// Limits, and their use.
    pub(crate) limits: Limits,
    /// Keys that changed in the file and take effect with a restart.
    pub(crate) needs_restart: Vec<&'static str>,
    /// Payload held.
    pub(crate) memory: Memory,
}

/// Why a hub is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "HubReason")]
pub(crate) enum Reason {
    /// It was told to leave.
    Draining,
    /// A configured peer that may live has no link.
    MeshLinkDown,
    /// Renewals of the lease fail.
    RegistryUnhealthy,
    /// The registry answers again, and attachments of this hub are still to be
    /// looked after.
    RegistryRecovering,
    /// Another live process uses this `ha.replica_id`.
    ReplicaIdTwice,
}

impl Reason {
    pub(crate) const ALL: [Self; 5] =
        [Self::Draining, Self::MeshLinkDown, Self::RegistryUnhealthy, Self::RegistryRecovering, Self::ReplicaIdTwice];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::MeshLinkDown => "mesh_link_down",
            Self::RegistryUnhealthy => "registry_unhealthy",
            Self::RegistryRecovering => "registry_recovering",
            Self::ReplicaIdTwice => "replica_id_twice",
        }
    }
}

/// Whether a part of the mesh can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Health {
    /// Yes.
    Healthy,
    /// No.
    Unhealthy,
    /// It is not used: `ha.mode` is `off`.
    Unused,
}

/// The registry in `/status`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct RegistryBrief {
    /// Whether the lease is renewed, and what this hub holds is listed since.
    pub(crate) status: Health,
}

/// A link in `/status`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Link {
    /// The peer's `ha.replica_id`; null until it told its name.
    pub(crate) peer: Option<String>,
    /// The URL it is dialled at, as configured, without its query; null for a
    /// hub that dialled this one.
    pub(crate) url: Option<String>,
    /// Where it stands.
    pub(crate) state: Word<link::State>,
    /// Its session; null without one.
    pub(crate) session: Option<Session>,
    /// Times it was established again.
    pub(crate) reconnects: u64,
    /// Failed dials and lost connections.
    pub(crate) errors: u64,
}

/// An attachment in `/status`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Tunnel {
    /// The agent.
    pub(crate) agent: String,
    /// The attachment's epoch, decimal.
    pub(crate) epoch: String,
    /// Granted by the registry; false: provisional.
    pub(crate) firm: bool,
    /// The tunnel's session; null when it ended meanwhile.
    pub(crate) session: Option<Session>,
}

/// A listener in `/status`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "HubListener", deny_unknown_fields)]
pub(crate) struct Listener {
    /// `listeners[].name`.
    pub(crate) name: String,
    /// The address it is bound to; null when it is not.
    pub(crate) bind: Option<String>,
    /// `listeners[].connector`.
    pub(crate) connector: String,
    /// Whether a client could be carried now.
    pub(crate) status: Option<Availability>,
    /// Whether its listening socket is open.
    pub(crate) listening: Option<bool>,
    /// Clients connected now.
    pub(crate) clients: u32,
    /// `listeners[].max_connections`.
    pub(crate) max_connections: u32,
}

/// Whether a client of a listener could be carried now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Availability {
    /// Yes.
    Ready,
    /// No.
    Unavailable,
}

/// Limits of a hub and their use.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Limits {
    /// `limits.max_streams`.
    pub(crate) max_streams: u32,
    /// `limits.max_sessions`.
    pub(crate) max_sessions: u32,
    /// Sessions of tunnels and links, also suspended ones.
    pub(crate) sessions: usize,
}

/// A hub's drain.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "HubDrain", deny_unknown_fields)]
pub(crate) struct Drain {
    /// How far it is.
    pub(crate) phase: Phase,
    /// Milliseconds until the lame duck ends; 0 afterwards.
    pub(crate) closes_in_ms: u64,
    /// Milliseconds until the deadline, when streams are reset; 0 afterwards.
    pub(crate) resets_in_ms: u64,
    /// Streams that are left.
    pub(crate) streams: usize,
    /// Where its agents are.
    pub(crate) agents: DrainAgents,
}

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Not ready, and it serves as before.
    Lameduck,
    /// Nothing new is taken.
    Closed,
}

/// Agents of a hub that leaves.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct DrainAgents {
    /// Agents attached here.
    pub(crate) attached: usize,
    /// Those told to attach elsewhere.
    pub(crate) told: usize,
    /// Those attached to another hub as well.
    pub(crate) elsewhere: usize,
}

/// What a hub answers to POST `/drain`: the drain as in `/status`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "HubDraining", deny_unknown_fields)]
pub(crate) struct Draining {
    /// What became of it.
    pub(crate) result: ResultDraining,
    /// Whether the process ends when it is done.
    pub(crate) exits: bool,
    /// How far it is.
    pub(crate) phase: Phase,
    /// Milliseconds until the lame duck ends; 0 afterwards.
    pub(crate) closes_in_ms: u64,
    /// Milliseconds until the deadline, when streams are reset; 0 afterwards.
    pub(crate) resets_in_ms: u64,
    /// Streams that are left.
    pub(crate) streams: usize,
    /// Where its agents are.
    pub(crate) agents: DrainAgents,
}

/// What a hub that has stopped answers to POST `/drain`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "HubStopped", deny_unknown_fields)]
pub(crate) struct Stopped {
    /// What became of it.
    pub(crate) result: ResultDraining,
    /// Whether the process ends when it is done.
    pub(crate) exits: bool,
    /// How far it is.
    pub(crate) phase: PhaseStopped,
}

/// `GET /readyz` of a hub: 200 when ready, `http.degraded_status` (200 unless
/// set) when degraded, 503 when draining.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "HubReadyz", deny_unknown_fields)]
pub(crate) struct Readyz {
    /// Whether it should be given clients.
    pub(crate) status: State,
    /// `ha.mode` in force.
    pub(crate) mode: Word<Mode>,
    /// Why it is not ready.
    pub(crate) reasons: Vec<Reason>,
    /// Links to other hubs.
    pub(crate) mesh: Mesh,
    /// The registry, as this hub sees it.
    pub(crate) registry: Registry,
    /// The listeners, by name.
    pub(crate) listeners: BTreeMap<String, ListenerReady>,
}

/// Links in `/readyz`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Mesh {
    /// Whether no peer is missed.
    pub(crate) status: Health,
    /// Configured peers first, then those that dialled this hub.
    pub(crate) links: Vec<MeshLink>,
}

/// A link in `/readyz`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct MeshLink {
    /// The peer's `ha.replica_id`; null until it told its name.
    pub(crate) peer: Option<String>,
    /// The URL it is dialled at, as configured, without its query; null for a
    /// hub that dialled this one.
    pub(crate) url: Option<String>,
    /// Where it stands.
    pub(crate) state: Word<link::State>,
    /// Whether `ha.mesh.peers` names it; false: it dialled this hub.
    pub(crate) configured: bool,
    /// Seconds without a connection; null while there is one, and when there never was.
    pub(crate) down_seconds: Option<f64>,
    /// Whether a configured peer without a link holds a lease, as the registry
    /// said; null while there is a link, and when it did not say.
    pub(crate) lease: Option<Lease>,
}

/// Whether a peer holds a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Lease {
    /// Yes: its link is missed.
    Live,
    /// No: it stopped, or is dead for longer than its lease.
    None,
}

/// The registry in `/readyz`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Registry {
    /// Whether the lease is renewed, and what this hub holds is listed since.
    pub(crate) status: Health,
    /// Seconds since the renewal the lease counts from, or since the start when
    /// this hub holds none; null in mode `off`.
    pub(crate) lease_age_seconds: Option<f64>,
}

/// A listener in `/readyz`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct ListenerReady {
    /// Whether a client could be carried now.
    pub(crate) status: Availability,
    /// Whether its listening socket is open.
    pub(crate) listening: bool,
    /// Why not; left out when it is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<Word<Unready>>,
}

/// `GET /readyz/LISTENER`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct NamedListener {
    /// `listeners[].name`.
    pub(crate) listener: String,
    /// Whether a client could be carried now.
    pub(crate) status: Availability,
    /// Whether its listening socket is open.
    pub(crate) listening: bool,
    /// Why not; left out when it is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<Word<Unready>>,
}

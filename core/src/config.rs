//! Validated configuration of the machines. The driver parses files into its
//! own raw form, checks them and builds these; the core trusts them. Defaults
//! are those of semantics 9.

mod selection;

use std::time::Duration;

use crate::id::{AgentId, Name};

pub use selection::{AgentPriority, HealthConfig, Selection};

/// Limits of one process. All bytes are payload bytes unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Payload bytes one process may hold (queues, replay, held early data).
    pub memory_budget_bytes: u64,
    /// Window a half starts with; a quarter of it once half the budget is used.
    pub stream_window_initial_bytes: u64,
    /// Window a half may grow to.
    pub stream_window_max_bytes: u64,
    /// Streams one process carries at once.
    pub max_streams: u32,
    /// Frames one session may have waiting or in flight.
    pub send_queue_depth: u32,
    /// Encoded bytes one session may have sent and not acknowledged.
    pub inflight_bytes: u64,
    /// Terminal causes remembered for late frames.
    pub tombstones: u32,
    /// Streams of one session whose OPEN is not answered yet.
    pub max_pending_opens: u32,
    /// Sessions (tunnels and links) one process carries at once.
    pub max_sessions: u32,
    /// Connections that have not finished their handshake.
    pub max_handshakes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_budget_bytes: 512 << 20,
            stream_window_initial_bytes: 64 << 10,
            stream_window_max_bytes: 1 << 20,
            max_streams: 100_000,
            send_queue_depth: 1000,
            inflight_bytes: 8 << 20,
            tombstones: 65_536,
            max_pending_opens: 10_000,
            max_sessions: 10_000,
            max_handshakes: 1_000,
        }
    }
}

/// When a peer is probed, doubted and given up. Any byte from it counts as life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// Interval of PING.
    pub ping: Duration,
    /// Silence after which no new stream is opened there.
    pub suspect: Duration,
    /// Silence after which its connection is closed.
    pub dead: Duration,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { ping: Duration::from_secs(1), suspect: Duration::from_secs(3), dead: Duration::from_secs(10) }
    }
}

/// Delay before dial n: `initial * multiplier^n`, at most `max`, then reduced
/// by up to `jitter` of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Delay before the second dial.
    pub initial: Duration,
    /// Largest delay.
    pub max: Duration,
    /// Growth per failure, in thousandths (1500 = 1.5).
    pub multiplier_milli: u32,
    /// Random share of the delay, in thousandths (300 = 30 %).
    pub jitter_milli: u32,
    /// Dials in a row that may fail before giving up; 0 = never give up.
    pub max_retries: u32,
    /// Largest delay while streams wait on the session.
    pub max_while_streams_wait: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(500),
            max: Duration::from_secs(30),
            multiplier_milli: 1500,
            jitter_milli: 300,
            max_retries: 0,
            max_while_streams_wait: Duration::from_secs(2),
        }
    }
}

/// HA mode of a hub (semantics 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// One replica: no registry command, no mesh frame.
    #[default]
    Off,
    /// Links, registry and decisions run and are measured; bytes travel as in `off`.
    Shadow,
    /// Streams cross hubs.
    Active,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Off, Self::Shadow, Self::Active];

    /// The word in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Shadow => "shadow",
            Self::Active => "active",
        }
    }
}

/// What becomes of a live tunnel whose token ran out. Nothing new is opened
/// there in any case (I4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExpiry {
    /// Streams may end by themselves for this long; then the tunnel ends.
    Drain(Duration),
    /// It ends at once, with its streams.
    Cut,
    /// It stays for the streams it has.
    Keep,
}

/// When a client's OPEN is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpenRule {
    /// At once.
    #[default]
    Eager,
    /// With the client's first byte, or after `first_byte_wait`.
    FirstByte,
}

/// One listener, as far as the core is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Its name: a metric label.
    pub name: Name,
    /// The service its clients want.
    pub connector: Name,
    /// When OPEN is sent.
    pub open: OpenRule,
    /// Clients at once.
    pub max_connections: u32,
}

/// One configured mesh peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Where the driver dials; not interpreted by the core.
    pub url: String,
    /// The replica expected there, when configured.
    pub replica_id: Option<Name>,
    /// The host in `url`: with `replica_id` a certificate may hold it in place
    /// of the replica id (semantics 8).
    pub host: Option<String>,
}

/// Deadlines of opening a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenTimers {
    /// One candidate.
    pub attempt_timeout: Duration,
    /// All candidates together.
    pub timeout: Duration,
    /// `open: first-byte` opens after this without one.
    pub first_byte_wait: Duration,
}

impl Default for OpenTimers {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(10),
            first_byte_wait: Duration::from_secs(1),
        }
    }
}

/// What happens to new streams of other hubs' agents while the registry is
/// unwell (semantics 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnOutage {
    /// They are refused at once.
    #[default]
    Refuse,
    /// Attachments known from before are still tried; their owners check the
    /// fence against the live session.
    Cached,
}

/// The registry's use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistryTimers {
    /// A hub's lease.
    pub lease: Duration,
    /// Interval of its renewal.
    pub renew_every: Duration,
    /// Deadline of one operation.
    pub op_timeout: Duration,
    /// How long a looked-up connector is used before it is looked up again.
    pub lookup_fresh: Duration,
    /// While it is unwell.
    pub on_outage: OnOutage,
}

impl Default for RegistryTimers {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            renew_every: Duration::from_secs(1),
            op_timeout: Duration::from_millis(500),
            lookup_fresh: Duration::from_secs(1),
            on_outage: OnOutage::Refuse,
        }
    }
}

/// How a node leaves (semantics 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainTimes {
    /// How long a hub still takes new clients, while balancers and agents look
    /// for another one. Agents have none: who opens hears of it at once.
    pub lameduck: Duration,
    /// After that, how long open streams may take to end by themselves before
    /// any of them is reset.
    pub timeout: Duration,
}

impl Default for DrainTimes {
    fn default() -> Self {
        Self { lameduck: Duration::from_secs(10), timeout: Duration::from_secs(60) }
    }
}

impl DrainTimes {
    /// Nothing new from now on, and this long for what is open.
    #[must_use]
    pub const fn at_once(timeout: Duration) -> Self {
        Self { lameduck: Duration::ZERO, timeout }
    }
}

/// A hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubConfig {
    /// This replica.
    pub replica_id: Name,
    /// Prefix of all its names in the registry; peers of another are refused.
    pub namespace: Name,
    /// Where it runs.
    pub region: Option<Name>,
    /// HA mode.
    pub mode: Mode,
    /// Client listeners.
    pub listeners: Vec<ListenerConfig>,
    /// Mesh peers.
    pub peers: Vec<PeerConfig>,
    /// Limits.
    pub limits: Limits,
    /// Liveness of sessions.
    pub liveness: Liveness,
    /// How long a session outlives its connection.
    pub resume_window: Duration,
    /// Back-off of mesh dials.
    pub backoff: Backoff,
    /// Open deadlines.
    pub open: OpenTimers,
    /// How candidates are selected.
    pub selection: Selection,
    /// Registry deadlines.
    pub registry: RegistryTimers,
    /// Deadline of a handshake, from the connection to WELCOME.
    pub handshake_timeout: Duration,
    /// A tunnel whose token names no connectors may advertise any
    /// (`auth.insecure_allow_unscoped`).
    pub insecure_allow_unscoped: bool,
    /// What becomes of a live tunnel whose token ran out.
    pub on_expiry: OnExpiry,
    /// Hubs neither give nor ask for a proof of identity on the mesh
    /// (`insecure_allow_plaintext` on loopback, without keys).
    pub insecure_mesh: bool,
}

/// One service an agent exposes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectorConfig {
    /// Its name.
    pub name: Name,
    /// Where the driver connects; not interpreted by the core.
    pub target: String,
    /// Rank; lower is preferred.
    pub priority: u16,
    /// Share among equals.
    pub weight: u16,
    /// How its target is checked; `None`: not at all.
    pub health: Option<HealthConfig>,
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// This agent.
    pub agent_id: AgentId,
    /// URLs of its hubs; not interpreted by the core beyond their number.
    pub hubs: Vec<String>,
    /// Attachments to keep at distinct hubs.
    pub parallel: u16,
    /// What it exposes.
    pub connectors: Vec<ConnectorConfig>,
    /// Limits.
    pub limits: Limits,
    /// Liveness of sessions.
    pub liveness: Liveness,
    /// How long a session outlives its connection.
    pub resume_window: Duration,
    /// Back-off of dials.
    pub backoff: Backoff,
    /// Deadline of connecting a target.
    pub target_timeout: Duration,
    /// Deadline of a handshake, from the connection to WELCOME.
    pub handshake_timeout: Duration,
}

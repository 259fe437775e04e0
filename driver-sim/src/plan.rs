//! What a run consists of: nodes, network, clients and faults, drawn from the
//! tape before the run (`plan/draw.rs`) and then plain data. The shrinker edits a plan, a
//! standalone test carries one, and a part that is taken away changes nothing
//! in the parts that stay. Must not know how anything is carried out.

mod draw;

use serde::{Deserialize, Serialize};

use crate::faults::{At, Class, Planned};

/// One millisecond in nanoseconds, the unit of all virtual time here.
pub const MS: u64 = 1_000_000;

/// How the network carries messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// Whole WebSocket messages.
    #[default]
    L0,
    /// Bytes, through a WebSocket codec and sockets with buffers.
    L1,
}

/// HA mode of a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModePlan {
    /// One replica.
    Off,
    /// Measured, not used.
    Shadow,
    /// In use.
    Active,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Names the lanes that are drawn from while it runs.
    pub seed: u64,
    /// What drew it.
    pub profile: String,
    /// How messages are carried.
    pub level: Level,
    /// Hubs, `hub-0` first.
    pub hubs: Vec<HubPlan>,
    /// Agents, `agent-0` first.
    pub agents: Vec<AgentPlan>,
    /// Clients, in no order of time.
    pub clients: Vec<ClientPlan>,
    /// What goes wrong, and when.
    pub faults: Vec<Planned>,
    /// Chance of a fault at a vulnerable moment, in 10,000.
    pub at_vulnerable: u32,
    /// Classes that may happen at vulnerable moments.
    pub classes: Vec<Class>,
    /// Chance that a message carries a forged frame too, in 10,000.
    #[serde(default)]
    pub hostile: u32,
    /// Hostile agents and hubs (G8).
    #[serde(default)]
    pub rogues: Vec<crate::rogue::RoguePlan>,
    /// Vulnerable moments that did something, by (point, occurrence); `Some`
    /// replaces the drawing by this list.
    pub triggered: Option<Vec<crate::faults::Triggered>>,
    /// The one node that the healing leaves out: it is dead from then on.
    #[serde(default)]
    pub frozen: Option<Frozen>,
    /// Other runs that this one is compared with.
    #[serde(default)]
    pub twin: Option<Twin>,
    /// Length of the safety phase, nanoseconds.
    pub safety_ns: u64,
    /// The network.
    pub net: NetPlan,
    /// Deadlines shared by all nodes.
    pub timers: TimerPlan,
    /// Connectors are `c0` to `c(n-1)`; each hub has a listener for each.
    pub connectors: u16,
    /// Wire encoding 1 in `v1` of 256 dials, else 2.
    pub v1: u16,
    /// Ends of streams a node remembers; 0: as many as it does unless told.
    #[serde(default)]
    pub tombstones: u32,
    /// After this many of 1,000 messages a peer of a later version says
    /// something optional that nobody knows yet (P6).
    #[serde(default)]
    pub newer: u16,
    /// Timers fire late by up to this, nanoseconds; 0: exactly on time.
    pub late_timers_ns: u64,
    /// Same-instant events in drawn order (else first in, first out).
    pub shuffle: bool,
}

/// Runs that belong together: each must hold, and what clients see of one is
/// judged by another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Twin {
    /// Without HA, in mode off and in mode shadow: clients see no difference
    /// (M1, M2). The plan's own modes do not count.
    Modes,
    /// Without these clients, which stall: the others are no slower for them (L7).
    Without(Vec<u32>),
}

/// A node that never comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// Which.
    pub at: At,
    /// Its whole machine is gone: nobody is told.
    pub silent: bool,
}

/// A hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubPlan {
    /// Its mode.
    pub mode: ModePlan,
    /// Shards it is split into; 0: hosted whole, notes carried at once.
    pub shards: u8,
    /// Longest delay of a note when split, nanoseconds.
    pub note_delay_ns: u64,
    /// Memory budget, bytes.
    pub budget: u64,
    /// Frames a session may have in flight.
    pub queue_depth: u32,
    /// Encoded bytes a session may have in flight.
    pub inflight: u64,
    /// Initial and largest window, bytes.
    pub window: (u64, u64),
    /// Clients wait for their first byte before an OPEN.
    pub first_byte: bool,
    /// Clock drift, parts per million.
    pub drift_ppm: i32,
    /// Region number.
    pub region: u8,
    /// Peers it dials, by hub number (it may list itself).
    pub peers: Vec<u8>,
    /// With the registry out, attachments of other hubs that are known are
    /// still tried (`registry.on_outage: cached`).
    #[serde(default)]
    pub cached: bool,
    /// What becomes of a tunnel whose token ran out (`auth.on_expiry`).
    #[serde(default)]
    pub on_expiry: ExpiryPlan,
    /// How far its wall clock is ahead of whoever issues tokens, milliseconds (G6).
    #[serde(default)]
    pub skew_ms: i64,
    /// How long an agent that came back is not preferred, nanoseconds.
    #[serde(default)]
    pub failback_ns: u64,
    /// When it starts, nanoseconds.
    #[serde(default)]
    pub start_ns: u64,
}

/// What a hub does when the token of a tunnel has run out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExpiryPlan {
    /// It stays for the streams it has.
    #[default]
    Keep,
    /// It ends at once.
    Cut,
    /// It ends after this many milliseconds.
    Drain(u64),
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentPlan {
    /// Its hubs, in its order.
    pub hubs: Vec<u8>,
    /// Attachments it keeps.
    pub parallel: u16,
    /// Connectors it exposes, with priority and weight.
    pub connectors: Vec<(u16, u16, u16)>,
    /// Connectors its token names; `None`: the token does not say.
    pub scope: Option<Vec<u16>>,
    /// Lifetime of each token it dials with, nanoseconds; 0: none.
    pub token_ns: u64,
    /// Windows and budget as for hubs.
    pub budget: u64,
    /// Initial and largest window, bytes.
    pub window: (u64, u64),
    /// Encoded bytes a session may have in flight.
    pub inflight: u64,
    /// Clock drift, parts per million.
    pub drift_ppm: i32,
    /// When it starts, nanoseconds.
    pub start_ns: u64,
    /// Between checks of its targets, nanoseconds; 0: none.
    #[serde(default)]
    pub check_ns: u64,
}

/// One direction of a client's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowPlan {
    /// Bytes its writer writes.
    pub total: u32,
    /// Bytes a write.
    pub chunk: u32,
    /// Between writes, nanoseconds.
    pub write_gap: u64,
    /// Bytes a read.
    pub read: u32,
    /// Between reads, nanoseconds; `u64::MAX`: never reads until the world heals.
    pub read_gap: u64,
    /// Bytes of the other direction its writer waits for first.
    pub after: u32,
}

/// How a writer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// Half-close after the last byte.
    Fin,
    /// Half-close this long after the last byte, nanoseconds.
    FinLater(u64),
    /// Half-close after the other side did.
    FinAfterOther,
    /// Abort once this many bytes were written.
    Abort(u32),
    /// Abort once this many bytes were read.
    AbortAfterRead(u32),
    /// Nothing; half-closes only when the world heals.
    Hold,
}

/// What a target does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetPlan {
    /// Connects after this long, nanoseconds.
    Accept(u64),
    /// Refuses after this long, nanoseconds.
    Refuse(u64),
    /// Never answers (until the agent's own deadline).
    Hang,
}

/// A client and its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientPlan {
    /// Its number: names its payload.
    pub id: u32,
    /// When it connects, nanoseconds.
    pub at: u64,
    /// To which hub.
    pub hub: u8,
    /// For which connector.
    pub connector: u16,
    /// Client to target.
    pub up: FlowPlan,
    /// Target to client.
    pub down: FlowPlan,
    /// How the client ends.
    pub client_end: Ending,
    /// How the target ends.
    pub target_end: Ending,
    /// What the target does.
    pub target: TargetPlan,
    /// Latency between the actors and their nodes, nanoseconds.
    pub latency: u64,
    /// Buffer of their sockets, bytes.
    pub buffer: u32,
}

/// The network between nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetPlan {
    /// Base latency range of a pair, nanoseconds.
    pub latency: (u64, u64),
    /// Jitter per message, nanoseconds.
    pub jitter: u64,
    /// Short jitter is likelier than long.
    #[serde(default)]
    pub exponential: bool,
    /// Bandwidth range of a pair, bytes a second.
    pub bandwidth: (u64, u64),
    /// Socket buffer range, bytes.
    pub buffer: (u64, u64),
    /// Largest piece the network carries at once (L1), bytes.
    pub mtu: (u64, u64),
    /// Time a dial takes to give up, nanoseconds.
    pub dial_timeout: u64,
}

/// Deadlines, nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerPlan {
    /// `open.attempt_timeout`.
    pub attempt: u64,
    /// `open.timeout`.
    pub open: u64,
    /// `resume_window`.
    pub resume: u64,
    /// Lease of a hub.
    pub lease: u64,
    /// `liveness.dead`.
    pub dead: u64,
    /// Largest reconnect delay.
    pub backoff_max: u64,
    /// Deadline of a target.
    pub target: u64,
    /// Deadline of a handshake.
    pub handshake: u64,
}

impl Plan {
    /// A plan as [`Self::to_json`] wrote it.
    ///
    /// # Errors
    /// What is wrong with the text, or with the plan: a node that is named and
    /// not there, a client's number that is taken twice.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let plan: Self = serde_json::from_str(text).map_err(|e| format!("not a plan: {e}"))?;
        crate::edit::judge(&plan)?;
        Ok(plan)
    }

    /// As one line of JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

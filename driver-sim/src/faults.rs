//! The fault model: what can go wrong, how it is drawn, and at which moments
//! it is likelier. Carried out by the world (`inject.rs`); numbers in brackets
//! are those of the fault catalogue (N network, P process, R registry, G agent,
//! C client, X operators). Clients' faults are part of their plans, and so is a
//! small memory budget (P5).

mod draw;

use serde::{Deserialize, Serialize};

pub use self::draw::draw_triggered;
use crate::plan::{MS, ModePlan};
pub use crate::proof::Keys;
pub use crate::reload::Reload;

/// A class of faults, switched on and off together by the swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Class {
    /// Connections break, noticed by one or both sides (N4, N11).
    Cut,
    /// Messages stop without a sign (N5, N7, N8).
    Block,
    /// Latency and bandwidth get much worse (N1, N2, N6).
    Slow,
    /// Dials fail, hang, come late or end at another address (N10, N11).
    Dial,
    /// Processes die and come back (P1).
    Crash,
    /// Processes stop for a while (P2).
    Pause,
    /// Inputs are handled late, by a process or by one shard of a hub (P3, P7).
    Lag,
    /// The registry fails (R).
    Registry,
    /// Two processes of one agent, moves, flaps (G1, G2, G3, G4).
    Agent,
    /// Targets refuse, hang, go away (G5).
    Target,
    /// Operators drain and stop nodes (X3), or take hubs away (X6).
    Operate,
    /// A proxy before a hub cuts idle connections, or restarts (N11).
    Ingress,
    /// A process is out of descriptors (P5).
    Shortage,
    /// Two live hubs have one replica id (X5).
    Twin,
}

impl Class {
    /// All classes.
    pub const ALL: &'static [Self] = &[
        Self::Cut,
        Self::Block,
        Self::Slow,
        Self::Dial,
        Self::Crash,
        Self::Pause,
        Self::Lag,
        Self::Registry,
        Self::Agent,
        Self::Target,
        Self::Operate,
        Self::Ingress,
        Self::Shortage,
        Self::Twin,
    ];

    /// Its name on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Block => "block",
            Self::Slow => "slow",
            Self::Dial => "dial",
            Self::Crash => "crash",
            Self::Pause => "pause",
            Self::Lag => "lag",
            Self::Registry => "registry",
            Self::Agent => "agent",
            Self::Target => "target",
            Self::Operate => "operate",
            Self::Ingress => "ingress",
            Self::Shortage => "shortage",
            Self::Twin => "twin",
        }
    }
}

/// A node of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum At {
    /// A hub.
    Hub(u8),
    /// An agent.
    Agent(u8),
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CutHow {
    /// Both sides see an orderly end after what was under way (ingress restart).
    Fin,
    /// Both sides see a reset; what is under way is lost.
    Rst,
    /// Only the first sees it; the other notices when it sends or by its timers.
    OneSide,
    /// Nobody sees it: nothing arrives any more.
    Silent,
}

/// What a name resolves to while it is wrong (N11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Landing {
    /// To no address at all.
    Empty,
    /// To one where nobody listens, or no machine is.
    Nobody {
        /// Nothing answers; else it refuses.
        hang: bool,
    },
    /// To another hub's.
    Hub(u8),
}

/// What happens to the registry. See `registry.rs` for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegistryFault {
    /// Refuses connections (R1).
    Refuse,
    /// Never answers (R1).
    Blackhole,
    /// Answers late, by up to this many milliseconds (R1, R2).
    Slow(u64),
    /// Some replies get lost after the commit, in 1,000 (R2).
    LoseReplies(u32),
    /// A failover that loses this many milliseconds of writes (R3).
    Failover(u64),
    /// Comes back empty (R4).
    Empty,
    /// Comes back as it was this many milliseconds ago (R4).
    Restore(u64),
    /// Evicts some keys (R5).
    Evict(u8),
    /// Some operations are executed after their time-out, in 1,000 (R2).
    LateCommits(u32),
    /// Some operations take only their first step, in 1,000 (R2).
    HalfDone(u32),
    /// A demoted master: refuses writes, reads are old (R3); new connections
    /// end there too, or not.
    ReadOnly(bool),
    /// Fails with this error (R5, R7).
    Errors(u8),
    /// Lookups are answered from the past (R6).
    Stale(u64),
    /// Its clock steps by this many milliseconds (P4).
    Wall(i64),
    /// Leases end early or late (R8).
    Expiry(i64),
    /// Values corrupted (R9).
    Corrupt(u8),
    /// Replies misaligned (R10).
    Misalign,
}

/// One thing that goes wrong. Durations are milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// Every connection between two nodes breaks.
    Cut {
        /// One node.
        a: At,
        /// The other.
        b: At,
        /// How.
        how: CutHow,
    },
    /// Every connection of a node breaks.
    CutAll {
        /// The node.
        at: At,
        /// How.
        how: CutHow,
    },
    /// Nothing passes from one node to another for a while; what was sent
    /// arrives afterwards, if the connection lives.
    Block {
        /// From here.
        a: At,
        /// To here.
        b: At,
        /// And back.
        both: bool,
        /// For this long.
        ms: u64,
    },
    /// Nothing passes to or from a node for a while.
    Isolate {
        /// The node.
        at: At,
        /// For this long.
        ms: u64,
    },
    /// Two nodes lose each other again and again.
    Flap {
        /// One node.
        a: At,
        /// The other.
        b: At,
        /// Cuts.
        times: u8,
        /// Between cuts.
        every_ms: u64,
        /// How.
        how: CutHow,
    },
    /// Two nodes are far away from each other for a while.
    Slow {
        /// One node.
        a: At,
        /// The other.
        b: At,
        /// Latency grows by this factor, bandwidth shrinks by it.
        factor: u32,
        /// For this long.
        ms: u64,
    },
    /// Dials to a hub are refused, or hang, for a while.
    RefuseDials {
        /// The hub.
        hub: u8,
        /// They hang instead.
        hang: bool,
        /// For this long.
        ms: u64,
    },
    /// Dials to any hub land at this one for a while (a balancer).
    Redirect {
        /// This hub.
        hub: u8,
        /// For this long.
        ms: u64,
    },
    /// A hub's name resolves to something else for a while, for agents and
    /// peers alike.
    Address {
        /// The hub.
        hub: u8,
        /// What it resolves to.
        to: Landing,
        /// For this long.
        ms: u64,
    },
    /// A process dies.
    Crash {
        /// Which.
        at: At,
        /// It is back after this long.
        down_ms: u64,
        /// The whole machine dies: nobody is told.
        silent: bool,
    },
    /// A process stops and goes on.
    Pause {
        /// Which.
        at: At,
        /// For this long.
        ms: u64,
    },
    /// A process handles everything late for a while.
    Lag {
        /// Which.
        at: At,
        /// By up to this much.
        by_ms: u64,
        /// For this long.
        ms: u64,
    },
    /// One shard of a split hub stands still for a while: its notes, sockets and
    /// new clients wait. Control, the sessions and the other shards go on.
    Stall {
        /// The hub.
        hub: u8,
        /// The shard, of as many as it has.
        shard: u8,
        /// For this long.
        ms: u64,
    },
    /// A hub talks to another registry for a while, empty at first (X7).
    Elsewhere {
        /// The hub.
        hub: u8,
        /// It is started anew for it and for the way back, as a changed
        /// `redis_url` asks; else the address led elsewhere.
        restart: bool,
        /// For this long.
        ms: u64,
    },
    /// The registry fails, for every hub or one, for a while.
    Registry {
        /// How.
        what: RegistryFault,
        /// Only for this hub.
        hub: Option<u8>,
        /// For this long (where it lasts).
        ms: u64,
    },
    /// A second process of an agent runs for a while.
    Clone {
        /// The agent.
        agent: u8,
        /// For this long.
        ms: u64,
    },
    /// Targets of an agent refuse (or hang) for a while.
    Targets {
        /// The agent.
        agent: u8,
        /// They hang instead.
        hang: bool,
        /// For this long.
        ms: u64,
    },
    /// Every target connection of an agent is aborted.
    AbortTargets {
        /// The agent.
        agent: u8,
    },
    /// A node is told to leave, and is restarted after a while, done or not.
    Drain {
        /// Which.
        at: At,
        /// Restarted after this long.
        ms: u64,
        /// A hub serves as before for this long.
        #[serde(default)]
        lameduck_ms: u64,
        /// Then open streams have this long before any is reset.
        #[serde(default = "minute")]
        timeout_ms: u64,
        /// It is taken back after this long.
        #[serde(default)]
        back_ms: Option<u64>,
    },
    /// A hub is in another mode until the healing, by a reload (X1); sometimes
    /// with less room for clients than it has.
    Mode {
        /// The hub.
        hub: u8,
        /// Its new mode.
        mode: ModePlan,
    },
    /// Nodes lose all their connections' traffic one after the other and get
    /// it back in another order (N8).
    Swizzle {
        /// Orders the nodes.
        order: u64,
        /// Time for all of it.
        ms: u64,
    },
    /// All nodes fall into two groups that lose each other (N7).
    Partition {
        /// Says who is in which.
        order: u64,
        /// For this long.
        ms: u64,
    },
    /// A node is told to stop, and comes back.
    Stop {
        /// Which.
        at: At,
        /// It is back after this long.
        down_ms: u64,
    },
    /// A hub is drained, stopped and gone for good: also after the healing.
    Leave {
        /// The hub.
        hub: u8,
        /// It serves as before for this long.
        lameduck_ms: u64,
        /// Then open streams have this long.
        timeout_ms: u64,
    },
    /// A proxy before a hub cuts every connection through it on which nothing
    /// passed for so long, either way.
    IdleCut {
        /// The hub.
        hub: u8,
        /// Idle for so long.
        idle_ms: u64,
        /// How.
        how: CutHow,
        /// For this long.
        ms: u64,
    },
    /// The proxy before a hub restarts: all connections through it are gone at
    /// once, and dials are refused meanwhile.
    IngressRestart {
        /// The hub.
        hub: u8,
        /// How.
        how: CutHow,
        /// It is back after this long.
        ms: u64,
    },
    /// A process has no descriptor left: it accepts nobody (who waits in the
    /// backlog waits on), dials nobody and connects no target.
    NoDescriptors {
        /// Which.
        at: At,
        /// For this long.
        ms: u64,
    },
    /// A node's configuration changes while it runs (X2), until the healing.
    Reload {
        /// Which.
        at: At,
        /// What of it.
        what: Reload,
    },
    /// A hub proves itself otherwise (X4), until the healing.
    Certificate {
        /// The hub.
        hub: u8,
        /// With what.
        keys: Keys,
    },
    /// A second process runs with a hub's configuration, replica id included;
    /// clients and peers end at one or the other.
    Twin {
        /// The hub.
        hub: u8,
        /// For this long.
        ms: u64,
    },
}

/// Longer than any run, milliseconds: until the healing.
pub(crate) const FOREVER: u64 = 1_000_000_000;

/// What a drain once took, when it was not said.
const fn minute() -> u64 {
    60_000
}

impl Fault {
    /// The class it belongs to.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Cut { .. } | Self::CutAll { .. } | Self::Flap { .. } => Class::Cut,
            Self::Block { .. } | Self::Isolate { .. } | Self::Swizzle { .. } | Self::Partition { .. } => Class::Block,
            Self::Slow { .. } => Class::Slow,
            Self::RefuseDials { .. } | Self::Redirect { .. } | Self::Address { .. } => Class::Dial,
            Self::Crash { .. } => Class::Crash,
            Self::Pause { .. } => Class::Pause,
            Self::Lag { .. } | Self::Stall { .. } => Class::Lag,
            Self::Registry { .. } | Self::Elsewhere { .. } => Class::Registry,
            Self::Clone { .. } => Class::Agent,
            Self::Targets { .. } | Self::AbortTargets { .. } => Class::Target,
            Self::Drain { .. }
            | Self::Stop { .. }
            | Self::Leave { .. }
            | Self::Mode { .. }
            | Self::Reload { .. }
            | Self::Certificate { .. } => Class::Operate,
            Self::IdleCut { .. } | Self::IngressRestart { .. } => Class::Ingress,
            Self::NoDescriptors { .. } => Class::Shortage,
            Self::Twin { .. } => Class::Twin,
        }
    }

    /// How long it lasts, nanoseconds, as far as it is said.
    #[must_use]
    pub const fn lasts(&self) -> u64 {
        match self {
            Self::Cut { .. }
            | Self::CutAll { .. }
            | Self::AbortTargets { .. }
            | Self::Mode { .. }
            | Self::Reload { .. }
            | Self::Certificate { .. } => 0,
            Self::Flap { times, every_ms, .. } => *times as u64 * *every_ms * MS,
            Self::Leave { lameduck_ms, timeout_ms, .. } => (*lameduck_ms + *timeout_ms) * MS,
            Self::Crash { down_ms, .. } | Self::Stop { down_ms, .. } => *down_ms * MS,
            Self::Block { ms, .. }
            | Self::Isolate { ms, .. }
            | Self::Slow { ms, .. }
            | Self::RefuseDials { ms, .. }
            | Self::Redirect { ms, .. }
            | Self::Address { ms, .. }
            | Self::Stall { ms, .. }
            | Self::Elsewhere { ms, .. }
            | Self::Partition { ms, .. }
            | Self::Pause { ms, .. }
            | Self::Lag { ms, .. }
            | Self::Registry { ms, .. }
            | Self::Clone { ms, .. }
            | Self::Targets { ms, .. }
            | Self::Swizzle { ms, .. }
            | Self::IdleCut { ms, .. }
            | Self::IngressRestart { ms, .. }
            | Self::NoDescriptors { ms, .. }
            | Self::Twin { ms, .. }
            | Self::Drain { ms, .. } => *ms * MS,
        }
    }
}

/// A fault at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// When, nanoseconds.
    pub at: u64,
    /// What.
    pub fault: Fault,
}

/// Moments at which a fault is likelier to find something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Point {
    /// An OPEN was sent.
    Open,
    /// An OPEN_ACK was sent.
    OpenAck,
    /// A FIN was sent.
    Fin,
    /// An RST was sent.
    Rst,
    /// A handshake's first message was sent.
    Hello,
    /// A handshake was answered.
    Welcome,
    /// A resumed session goes on.
    Resumed,
    /// A claim was sent to the registry.
    Claim,
    /// A lease renewal was sent.
    Renew,
    /// A target was connected.
    Target,
}

impl Point {
    /// All points.
    pub const ALL: &'static [Self] = &[
        Self::Open,
        Self::OpenAck,
        Self::Fin,
        Self::Rst,
        Self::Hello,
        Self::Welcome,
        Self::Resumed,
        Self::Claim,
        Self::Renew,
        Self::Target,
    ];
}

/// A fault at the n-th occurrence of a vulnerable moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Triggered {
    /// The moment.
    pub point: Point,
    /// Its occurrence in the run, from 0.
    pub nth: u32,
    /// What happens then.
    pub fault: Fault,
}

//! What machines want the operator to know: plain events and counters. The
//! driver turns them into logs and metrics; labels are closed sets or names
//! from the configuration (B10), and A1 ties every counter to what happened.

use std::time::Duration;

use crate::error::{CloseCode, ProtocolErrorKind, RstCode};
use crate::id::{AgentId, Cid, Epoch, ListenerIx, Name, SessionKey, SockKey, StreamKey};
use crate::wire::Plane;

/// How a stream ended, and who caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Both halves ended cleanly.
    Finished,
    /// It was reset or refused.
    Reset(RstCode),
}

impl Cause {
    /// Metric label and log word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Finished => "FINISHED",
            Self::Reset(code) => code.name(),
        }
    }
}

/// Which side ended a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client or what is between it and this hub.
    Client,
    /// The agent, its target, or what is between.
    Agent,
    /// This hub.
    Hub,
}

impl Side {
    /// Log word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Agent => "agent",
            Self::Hub => "hub",
        }
    }
}

/// One stream, told once at its end by its origin (semantics 10).
#[derive(Clone, Debug)]
pub struct StreamRecord {
    /// Its (last) name.
    pub cid: Cid,
    /// The client's connection, for the driver to add the address.
    pub sock: Option<SockKey>,
    /// The listener.
    pub listener: ListenerIx,
    /// The agent, once one was chosen.
    pub agent_id: Option<AgentId>,
    /// The hub whose tunnel carried it.
    pub owner: Option<Name>,
    /// Whether that was this hub.
    pub local: bool,
    /// The epoch it was bound under.
    pub epoch: Epoch,
    /// The epochs of all attachments it was tried at, in that order; the last
    /// one is `epoch`, unless no attempt was left.
    pub epochs: Box<[Epoch]>,
    /// Times the session that carried it last was interrupted meanwhile: silent,
    /// or without a connection.
    pub suspensions: u32,
    /// From accept to the choice of a candidate.
    pub route: Option<Duration>,
    /// From accept to OPEN_ACK.
    pub open: Option<Duration>,
    /// From accept to the first byte back.
    pub first_byte: Option<Duration>,
    /// From accept to the end.
    pub total: Duration,
    /// Bytes from the client.
    pub bytes_up: u64,
    /// Bytes to the client.
    pub bytes_down: u64,
    /// How it ended.
    pub cause: Cause,
    /// Who ended it.
    pub by: Side,
}

/// One stream of an agent, told once at its end (semantics 10): what the hubs
/// do not see. The cid joins it to the origin's record.
#[derive(Clone, Debug)]
pub struct CarriedRecord {
    /// Its name at the agent.
    pub stream: StreamKey,
    /// Its name on the wire.
    pub cid: Cid,
    /// The epoch of the attachment it came by.
    pub epoch: Epoch,
    /// The session it came by, while that exists.
    pub session: Option<SessionKey>,
    /// Whether its target was connected.
    pub connected: bool,
    /// Bytes towards the target.
    pub bytes_up: u64,
    /// Bytes from the target.
    pub bytes_down: u64,
    /// How it ended.
    pub cause: Cause,
    /// Who ended it.
    pub by: Side,
}

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainStep {
    /// It was asked for.
    Begun,
    /// It was taken back.
    Cancelled,
    /// Nothing new is taken from now on (hub; an agent begins with it).
    Closed,
    /// The deadline passed with streams left, which are reset now: those that
    /// moved nothing for a while first.
    Deadline {
        /// Quiet ones.
        quiet: usize,
        /// The others.
        busy: usize,
    },
}

/// Something worth a log line or a sample.
#[derive(Clone, Debug)]
pub enum Observed {
    /// A stream of a client of this hub ended.
    Stream(Box<StreamRecord>),
    /// A stream of this agent ended.
    Carried(Box<CarriedRecord>),
    /// A stream was opened (OPEN_ACK came), after this long.
    Opened {
        /// The listener.
        listener: ListenerIx,
        /// Over this hub's own tunnel.
        local: bool,
        /// Since the client was accepted.
        after: Duration,
    },
    /// A session was established.
    SessionUp {
        /// Tunnel or link.
        plane: Plane,
        /// The peer.
        peer: String,
    },
    /// A session lost its connection and waits to be resumed.
    SessionSuspended {
        /// Tunnel or link.
        plane: Plane,
        /// The peer.
        peer: String,
        /// What ended the connection.
        cause: CloseCode,
    },
    /// A session goes on over a new connection.
    SessionResumed {
        /// Tunnel or link.
        plane: Plane,
        /// The peer.
        peer: String,
        /// How long it had none.
        after: Duration,
    },
    /// A session is over.
    SessionLost {
        /// Tunnel or link.
        plane: Plane,
        /// The peer.
        peer: String,
        /// Why.
        cause: CloseCode,
    },
    /// A dial or handshake failed.
    HandshakeFailed {
        /// Tunnel or link.
        plane: Plane,
        /// Why.
        cause: CloseCode,
        /// What was expected and what came; fixed text only.
        detail: &'static str,
        /// Of a dial of ours: its number among the peers or hubs of the
        /// configuration.
        target: Option<u16>,
    },
    /// A peer broke the protocol; its session or connection is closed.
    ProtocolViolation {
        /// Tunnel or link.
        plane: Plane,
        /// How.
        kind: ProtocolErrorKind,
        /// What was expected and what came; fixed text and numbers only.
        detail: String,
    },
    /// A round trip was measured.
    Rtt {
        /// Tunnel or link.
        plane: Plane,
        /// The sample.
        sample: Duration,
    },
    /// This hub holds an attachment.
    Attached {
        /// The agent.
        agent_id: AgentId,
        /// Its epoch.
        epoch: Epoch,
        /// Whether the registry granted it.
        firm: bool,
        /// Whether another instance's attachments were ended by it.
        takeover: bool,
        /// Whether the tunnel was there already: claimed again, because the
        /// registry was away or had lost it.
        again: bool,
    },
    /// An attachment's token ran out on the live tunnel: nothing new is opened
    /// there until the agent comes back with another (I4).
    TokenExpired {
        /// The agent.
        agent_id: AgentId,
    },
    /// A fresh token came on a live tunnel and counts from now on.
    TokenRenewed {
        /// The agent.
        agent_id: AgentId,
    },
    /// A fresh token came on a live tunnel and was not accepted: the one
    /// before goes on.
    TokenRefused {
        /// The agent.
        agent_id: AgentId,
    },
    /// A hub answered to a fresh token (agent).
    TokenAnswered {
        /// The hub.
        peer: String,
        /// Whether it takes it.
        accepted: bool,
    },
    /// This hub's attachment ended.
    Detached {
        /// The agent.
        agent_id: AgentId,
        /// Its epoch.
        epoch: Epoch,
        /// What ended its session.
        cause: CloseCode,
    },
    /// The registry became usable or unusable.
    RegistryHealth {
        /// Which.
        healthy: bool,
    },
    /// Two live incarnations of one replica id.
    LeaseHeldByOther,
    /// Two live instances take an agent over from each other: the one that holds
    /// it now stays for a minute.
    DuplicateAgent {
        /// The agent.
        agent_id: AgentId,
    },
    /// The other one of the two was sent away.
    DuplicateAgentRefused {
        /// The agent.
        agent_id: AgentId,
        /// For how long.
        retry_after: Duration,
    },
    /// An agent was offered an epoch that is not above its highest, twice in a
    /// row although it said so: it starts over as a new instance.
    StartedOver {
        /// Its highest epoch.
        highest: Epoch,
        /// What it was offered.
        offered: Epoch,
    },
    /// A hub found itself among its peers and dropped that entry.
    PeerIsSelf {
        /// Index in `ha.mesh.peers`.
        peer: u16,
    },
    /// Fewer distinct hubs than `parallel` asks for.
    FewerHubs {
        /// Attachments wanted.
        wanted: u16,
        /// Distinct hubs found.
        have: u16,
    },
    /// Too many OPENs in a row failed at a candidate: others are asked first.
    Ejected {
        /// The connector.
        connector: Name,
        /// The agent.
        agent_id: AgentId,
        /// The hub that holds its attachment.
        owner: Name,
        /// What the last of them was answered.
        code: RstCode,
        /// For how long.
        time: Duration,
    },
    /// OPENs succeed there again.
    Reinstated {
        /// The connector.
        connector: Name,
        /// The agent.
        agent_id: AgentId,
        /// The hub that holds its attachment.
        owner: Name,
    },
    /// The target of a connector failed its checks: the connector is withdrawn
    /// (agent).
    TargetDown {
        /// The connector.
        connector: Name,
        /// Why the last check failed.
        code: RstCode,
    },
    /// It passes them again: the connector is exposed (agent).
    TargetUp {
        /// The connector.
        connector: Name,
    },
    /// This node leaves, and how far it is.
    Drain(DrainStep),
    /// A dial gave up after `max_retries`.
    GaveUp {
        /// Tunnel or link.
        plane: Plane,
        /// Index of the target.
        target: u16,
    },
}

/// Totals of one shard, plain integers that only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardCounters {
    /// Streams opened for own clients, by listener: over the own tunnel.
    pub opened_local: Vec<u64>,
    /// Streams opened for own clients, by listener: over the mesh.
    pub opened_mesh: Vec<u64>,
    /// Opens of own clients that failed, by listener and [`RstCode::number`].
    pub open_failures: Vec<[u64; 32]>,
    /// Clients that `active` would have carried over the own tunnel, by listener
    /// (counted in `shadow`).
    pub shadow_local: Vec<u64>,
    /// Clients that `active` would have carried over the mesh, by listener.
    pub shadow_mesh: Vec<u64>,
    /// Clients that `active` would have refused, by listener and [`RstCode::number`].
    pub shadow_refused: Vec<[u64; 32]>,
    /// Streams of any part that ended cleanly.
    pub finished: u64,
    /// Streams of any part that were reset, by [`RstCode::number`].
    pub reset: [u64; 32],
    /// Streams carried for another hub (owner part) or opened at an agent.
    pub carried: u64,
    /// Payload bytes from sockets.
    pub bytes_from_sockets: u64,
    /// Payload bytes written to sockets.
    pub bytes_to_sockets: u64,
    /// OPENs under another fence than the attachment's.
    pub epoch_mismatch: u64,
    /// Frames of a stream that is bound under another epoch.
    pub wrong_epoch: u64,
    /// OPENs and DATA that were duplicates.
    pub duplicates: u64,
    /// Frames of a stream that is bound to another session.
    pub wrong_session: u64,
    /// Frames of streams unknown here.
    pub unknown: u64,
    /// CREDIT that said nothing new or nonsense, and similar oddities.
    pub glitches: u64,
    /// Streams reset because a peer ignored its limit or its offsets.
    pub flow_violations: u64,
    /// Times a source was paused for want of credit.
    pub paused_credit: u64,
    /// Times a source was paused because its session's queue was full.
    pub paused_queue: u64,
    /// Times a source was paused by the process budget.
    pub paused_budget: u64,
    /// Streams reset to free memory.
    pub budget_resets: u64,
}

impl ShardCounters {
    /// Adds the totals of another shard of the same node.
    pub fn add(&mut self, other: &Self) {
        let Self {
            opened_local,
            opened_mesh,
            open_failures,
            shadow_local,
            shadow_mesh,
            shadow_refused,
            finished,
            reset,
            carried,
            bytes_from_sockets,
            bytes_to_sockets,
            epoch_mismatch,
            wrong_epoch,
            duplicates,
            wrong_session,
            unknown,
            glitches,
            flow_violations,
            paused_credit,
            paused_queue,
            paused_budget,
            budget_resets,
        } = other;
        for (sum, row) in [
            (&mut self.opened_local, opened_local),
            (&mut self.opened_mesh, opened_mesh),
            (&mut self.shadow_local, shadow_local),
            (&mut self.shadow_mesh, shadow_mesh),
        ] {
            sum.resize(sum.len().max(row.len()), 0);
            sum.iter_mut().zip(row).for_each(|(sum, n)| *sum += n);
        }
        for (sums, rows) in [(&mut self.open_failures, open_failures), (&mut self.shadow_refused, shadow_refused)] {
            sums.resize(sums.len().max(rows.len()), [0; 32]);
            for (sum, row) in sums.iter_mut().zip(rows) {
                sum.iter_mut().zip(row).for_each(|(sum, n)| *sum += n);
            }
        }
        self.reset.iter_mut().zip(reset).for_each(|(sum, n)| *sum += n);
        for (sum, n) in [
            (&mut self.finished, finished),
            (&mut self.carried, carried),
            (&mut self.bytes_from_sockets, bytes_from_sockets),
            (&mut self.bytes_to_sockets, bytes_to_sockets),
            (&mut self.epoch_mismatch, epoch_mismatch),
            (&mut self.wrong_epoch, wrong_epoch),
            (&mut self.duplicates, duplicates),
            (&mut self.wrong_session, wrong_session),
            (&mut self.unknown, unknown),
            (&mut self.glitches, glitches),
            (&mut self.flow_violations, flow_violations),
            (&mut self.paused_credit, paused_credit),
            (&mut self.paused_queue, paused_queue),
            (&mut self.paused_budget, paused_budget),
            (&mut self.budget_resets, budget_resets),
        ] {
            *sum += n;
        }
    }
}

//! Notes between a shard and the control of its node. They are the only way
//! the two speak, so the simulator can put drawn delays between them. A whole
//! node carries them at once; a split hub hands them out as [`Note`]s, which
//! also hold the stream frames a session received for a shard.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Ending, ShardConfig};
use crate::error::{CloseCode, RstCode};
use crate::id::{AgentId, Cid, Epoch, Fence, Incarnation, Name, SessionKey};
use crate::route::RouteChange;
use crate::time::Instant;
use crate::wire::{Body, Plane};

/// Which `NeedRoute` an answer is for. An answer that was on its way before a
/// stream asked is not that stream's: it may know less than was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The shard that asks.
    pub shard: u8,
    /// Its count of questions, from 1.
    pub number: u64,
}

/// Who takes a [`Note`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Addressee {
    /// The control of the hub.
    Control,
    /// One of its shards.
    Shard(u8),
}

/// What a split hub gives its caller to carry: each addressee takes its notes
/// in the order they were written, after any time.
#[derive(Clone, Debug)]
pub enum Note {
    /// From control to a shard.
    ToShard {
        /// The addressee.
        shard: u8,
        /// What control says.
        note: ControlNote,
    },
    /// A stream frame that a session received, behind the notes written before.
    Frame {
        /// The addressee: the shard its lane belongs to.
        shard: u8,
        /// The session it came on.
        session: SessionKey,
        /// Its stream.
        cid: Cid,
        /// The epoch it came under.
        epoch: Epoch,
        /// What it says.
        body: Body,
    },
    /// From a shard to control.
    ToControl {
        /// The sender.
        shard: u8,
        /// What the shard says.
        note: ShardNote,
    },
}

impl Note {
    /// Who takes it.
    #[must_use]
    pub const fn addressee(&self) -> Addressee {
        match self {
            Self::ToShard { shard, .. } | Self::Frame { shard, .. } => Addressee::Shard(*shard),
            Self::ToControl { .. } => Addressee::Control,
        }
    }
}

/// From control to a shard.
#[derive(Clone, Debug)]
pub enum ControlNote {
    /// What changed in the candidates, in this order.
    Routes(Arc<[RouteChange]>),
    /// The answer to `NeedRoute`: `Ok` after fresh routes were sent, or why there are none.
    RouteAnswer {
        /// The connector asked for.
        connector: Name,
        /// The latest question it answers; only that shard is told.
        question: Question,
        /// `Err` fails the streams that wait for it.
        result: Result<(), RstCode>,
    },
    /// A session is established; streams may be bound to it.
    SessionUp(SessionUp),
    /// A session takes new streams, or not (suspect, suspended, draining).
    SessionUsable {
        /// The session.
        session: SessionKey,
        /// Whether it takes new streams.
        usable: bool,
    },
    /// A session's peer is farther away than was thought, or nearer.
    Distance {
        /// The session.
        session: SessionKey,
        /// Class of its round-trip time, lower is nearer.
        class: u8,
    },
    /// The peer changed what it takes directly after an OPEN.
    InitialWindow {
        /// The session.
        session: SessionKey,
        /// Bytes.
        bytes: u64,
    },
    /// A session is over; its streams end.
    SessionLost {
        /// The session.
        session: SessionKey,
    },
    /// This hub holds an attachment (hub), or was granted one (agent).
    Attach(Attach),
    /// The attachment is over or replaced.
    Detach {
        /// Its agent.
        agent_id: AgentId,
        /// Its fence.
        fence: Fence,
    },
    /// Another configuration.
    Reload(Arc<ShardConfig>),
    /// What this agent exposes under all its attachments.
    Exposes(Vec<Name>),
    /// What an agent withdrew with its latest CONNECTORS.
    Withdrawn {
        /// Its tunnel.
        session: SessionKey,
        /// What it does not expose any more.
        connectors: BTreeSet<Name>,
    },
    /// Until when this hub may take streams of other hubs as owner (O7); `None`:
    /// it may not at all.
    Lease(Option<Instant>),
    /// What `active` would have, or that this is not `shadow` (any more).
    Shadow(Option<ShadowNote>),
    /// Take no new streams, and end those that are left in this way.
    Drain(Ending),
    /// End every stream now.
    Shutdown,
}

/// What a hub in `shadow` knows and does not use.
#[derive(Clone, Debug)]
pub struct ShadowNote {
    /// What changed in the candidates at other hubs, in this order.
    pub changes: Arc<[RouteChange]>,
    /// What a client without any candidate would be told.
    pub otherwise: RstCode,
}

/// A session a shard may use.
#[derive(Clone, Debug)]
pub struct SessionUp {
    /// The session.
    pub session: SessionKey,
    /// Tunnel or link.
    pub plane: Plane,
    /// On a link: the peer's run, the only one whose cids it may mint.
    pub peer: Option<Incarnation>,
    /// On a link: the peer's replica id, for its metric label.
    pub replica: Option<Name>,
    /// Bytes of DATA the peer takes directly after an OPEN.
    pub initial_window: u64,
}

/// An attachment a shard fences OPENs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// The agent.
    pub agent_id: AgentId,
    /// Its tunnel.
    pub session: SessionKey,
    /// The fence.
    pub fence: Fence,
    /// What may be opened.
    pub connectors: Vec<Name>,
}

/// From a shard to control.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardNote {
    /// A stream waits for candidates of this connector.
    NeedRoute {
        /// The connector.
        connector: Name,
        /// The known ones answered no: do not answer from memory.
        afresh: bool,
        /// Comes back with the answer.
        question: Question,
    },
    /// A peer broke the rules of streams too often: close its session.
    Misbehaved {
        /// The session.
        session: SessionKey,
        /// The code for its GOAWAY.
        code: CloseCode,
    },
    /// Another hub took this one for the owner of an attachment that it does not hold.
    NotOwner {
        /// The attachment's agent.
        agent_id: AgentId,
    },
    /// The last stream is gone (sent while draining).
    Drained,
}

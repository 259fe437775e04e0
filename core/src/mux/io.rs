//! What goes into a node and what comes out: the whole face of hub and agent
//! to their driver, as data.
//!
//! Must not know what anything in it leads to.

use std::time::Duration;

use bytes::Bytes;

use crate::config::DrainTimes;
use crate::error::{CloseCode, RstCode};
use crate::id::{ConnKey, Name, SessionKey, SockKey, StreamKey, TargetIx};
use crate::identity::{Proof, Verified};
use crate::observed::Observed;
use crate::principal::{AgentGrant, HubGrant, Principal};
use crate::registry::{RegistryOp, RegistryResult, Token};
use crate::shard::{Note, SockEvent, SockOp};
use crate::wire::{Dialect, SecretText, Signature};

/// What happened outside a node.
#[derive(Clone, Debug)]
pub enum Input {
    /// A dial succeeded up to the WebSocket upgrade.
    Connected {
        /// Which target was dialled.
        target: TargetIx,
        /// The connection.
        conn: ConnKey,
        /// What the peer chose.
        dialect: Dialect,
        /// What TLS said of the peer.
        peer: HubGrant,
    },
    /// A dial failed before that.
    DialFailed {
        /// Which target was dialled.
        target: TargetIx,
    },
    /// A peer connected and was authenticated as far as its plane demands.
    Accepted {
        /// The connection.
        conn: ConnKey,
        /// What was agreed.
        dialect: Dialect,
        /// Who it is.
        principal: Principal,
    },
    /// A WebSocket message arrived.
    Message {
        /// The connection.
        conn: ConnKey,
        /// The message.
        message: Bytes,
    },
    /// Bytes of a message that is not complete yet arrived: over a slow wire a
    /// message may take longer than `liveness.dead`. Counts as life of the peer
    /// whose session the connection carries, and as nothing else; ignored
    /// elsewhere, so a handshake keeps its deadline. Given at most once a second
    /// and connection, and only for bytes that arrived since the last input.
    Heard {
        /// The connection.
        conn: ConnKey,
    },
    /// A connection ended or failed.
    Disconnected {
        /// The connection.
        conn: ConnKey,
        /// Why; [`CloseCode::Transport`] unless the WebSocket layer knows better.
        cause: CloseCode,
    },
    /// Something happened at a client or target socket.
    Socket {
        /// Its stream.
        stream: StreamKey,
        /// What.
        event: SockEvent,
    },
    /// A target was connected, or not (agent).
    Target {
        /// Its stream.
        stream: StreamKey,
        /// The socket, or why there is none.
        result: Result<SockKey, RstCode>,
    },
    /// A target was checked (agent).
    Checked {
        /// Of [`Check`].
        connector: Name,
        /// Of [`Check`]; the result of another one is ignored.
        number: u64,
        /// Whether it could be connected, or why not.
        result: Result<(), RstCode>,
    },
    /// The registry answered (hub).
    Registry {
        /// Which operation.
        token: Token,
        /// With what.
        result: RegistryResult,
    },
    /// The statement of [`Proof::Sign`] was signed, or why it cannot be (hub).
    Signed {
        /// The connection it is for.
        conn: ConnKey,
        /// The signature under it.
        result: Result<Signature, &'static str>,
    },
    /// The signature of [`Proof::Verify`] was judged (hub).
    Verified {
        /// The connection it came on.
        conn: ConnKey,
        /// What it proves, or the first rule it breaks; fixed text only.
        result: Result<Verified, &'static str>,
    },
    /// The token of `NodeOut::tokens` was judged (hub).
    Judged {
        /// The session it came on.
        session: SessionKey,
        /// What it grants; `None` when it is not accepted.
        grant: Option<AgentGrant>,
    },
    /// What the peer of a link proved itself with does not reach the CAs any
    /// more (hub); ignored for other sessions. The driver judges what
    /// [`Control::proofs`](crate::hub::Control::proofs) holds whenever the CAs
    /// change, and ends connections whose TLS rests on a CA that left by itself.
    Distrust {
        /// The link's session.
        session: SessionKey,
    },
    /// There is a fresh token: it is sent to every hub (agent).
    Token {
        /// The token. Never logged.
        token: SecretText,
    },
    /// Leave: a hub serves new clients for a while yet, then takes nothing new
    /// and waits for its streams. Peers are told. One under way is not changed.
    Drain(DrainTimes),
    /// Stay after all (hub): ignored once it takes nothing new.
    Undrain,
    /// End everything now.
    Shutdown,
}

/// A target to check: it is connected and closed again, without a byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its connector.
    pub connector: Name,
    /// Comes back with the result.
    pub number: u64,
    /// After this it has failed, whatever comes.
    pub timeout: Duration,
}

/// What a node wants done. Owned by the caller, drained each turn, reused.
#[derive(Debug, Default)]
pub struct NodeOut {
    /// Targets to dial; answer with `Connected` or `DialFailed`.
    pub dial: Vec<TargetIx>,
    /// Connections that have something to transmit.
    pub wake: Vec<ConnKey>,
    /// Connections to close once their outbox is flushed.
    pub close: Vec<(ConnKey, CloseCode)>,
    /// Socket operations, in order.
    pub socks: Vec<(SockKey, SockOp)>,
    /// Targets of streams to connect; answer with `Target`.
    pub targets: Vec<(StreamKey, Name)>,
    /// Targets to check; answer with `Checked`.
    pub checks: Vec<Check>,
    /// Registry operations; answer with `Registry`.
    pub registry: Vec<(Token, RegistryOp)>,
    /// Signatures to make or judge; answer with `Signed` or `Verified`.
    pub proofs: Vec<(ConnKey, Proof)>,
    /// Fresh tokens of agents on live tunnels; answer with `Judged`.
    pub tokens: Vec<(SessionKey, SecretText)>,
    /// Events.
    pub observed: Vec<Observed>,
    /// Notes of a split hub, to be given back with `on_note`: to each addressee
    /// in this order, after any time. Always empty otherwise.
    pub notes: Vec<Note>,
    /// A drain has come so far that no client is to be accepted: the listening
    /// sockets are closed.
    pub close_listeners: bool,
    /// Every stream is gone after `Drain`.
    pub drained: bool,
}

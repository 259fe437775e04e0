//! Closed sets of reasons. The same names appear on the wire, in logs, in
//! metric labels and in the documentation; `name()` is that spelling.

macro_rules! codes {
    ($(#[$doc:meta])* $t:ident { $($(#[$vdoc:meta])* $v:ident = $n:literal, $s:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $t { $($(#[$vdoc])* $v = $n),* }

        impl $t {
            /// Every variant, in wire order.
            pub const ALL: &'static [Self] = &[$(Self::$v),*];

            /// The name on v1 wires, in logs and in metric labels.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$v => $s),* }
            }
            /// The number on v2 wires.
            #[must_use]
            pub const fn number(self) -> u8 {
                self as u8
            }
            /// The code with this number.
            #[must_use]
            pub const fn from_number(n: u8) -> Option<Self> {
                match n { $($n => Some(Self::$v),)* _ => None }
            }
            /// The code with this name.
            #[must_use]
            pub fn from_name(s: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|c| c.name() == s)
            }
        }
        impl std::fmt::Display for $t {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.name()) }
        }
    };
}

codes! {
    /// Why a stream was refused or reset (RST, and OPEN_ACK with `ok` false).
    RstCode {
        /// A socket aborted (TCP RST) on the other side.
        Abort = 1, "ABORT";
        /// The hub asked holds no attachment under the (epoch, nonce) of the OPEN.
        NotOwner = 2, "NOT_OWNER";
        /// The node asked takes no new streams because it is leaving.
        Draining = 3, "DRAINING";
        /// A stream or rate limit of the node asked is reached.
        Busy = 4, "BUSY";
        /// The target refused the connection.
        Refused = 5, "REFUSED";
        /// The target's address could not be resolved or reached.
        Unreachable = 6, "UNREACHABLE";
        /// The target did not answer the connect in time.
        TargetTimeout = 7, "TARGET_TIMEOUT";
        /// The connector is outside the agent's scope, or unknown to it. Never retried.
        Denied = 8, "DENIED";
        /// No attachment of any agent exposes the connector.
        NoRoute = 9, "NO_ROUTE";
        /// The registry cannot be asked and the rule is to refuse.
        RegistryDown = 10, "REGISTRY_DOWN";
        /// The memory budget is exhausted.
        Budget = 11, "BUDGET";
        /// The sender ignored its credit limit, offsets or final size.
        Flow = 12, "FLOW";
        /// A frame named a stream this node does not have.
        Unknown = 13, "UNKNOWN";
        /// A session that carried the stream was lost.
        Lost = 14, "LOST";
        /// The open did not finish inside `open.timeout`.
        Timeout = 15, "TIMEOUT";
        /// The client went away before the stream was open.
        Cancelled = 16, "CANCELLED";
        /// A frame that no state of the stream allows.
        Protocol = 17, "PROTOCOL";
        /// The node is stopping and the drain deadline passed.
        Shutdown = 18, "SHUTDOWN";
    }
}

impl RstCode {
    /// Whether an origin may try the next candidate after this answer to an
    /// OPEN: only a definite "this one did nothing" (S6, semantics 3).
    #[must_use]
    pub const fn definite_no(self) -> bool {
        matches!(
            self,
            Self::NotOwner | Self::Draining | Self::Busy | Self::Refused | Self::Unreachable | Self::TargetTimeout
        )
    }
}

/// What a GOAWAY ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Nothing yet: the session stays for its streams.
    Nothing,
    /// The connection; the session may be resumed.
    Connection,
    /// The session, definitely.
    Session,
}

impl CloseCode {
    /// What a GOAWAY with this code ends.
    #[must_use]
    pub const fn ends(self) -> Ends {
        match self {
            Self::Draining => Ends::Nothing,
            // An answer that came too late may have been a resumption, and the
            // side that gave up still has the session.
            Self::Dead | Self::HandshakeTimeout | Self::Transport => Ends::Connection,
            Self::DuplicateId
            | Self::Superseded
            | Self::Protocol
            | Self::Auth
            | Self::Namespace
            | Self::Itself
            | Self::Glitches
            | Self::Flow
            | Self::Busy
            | Self::ResumeRefused
            | Self::Duplicate
            | Self::Shutdown => Ends::Session,
        }
    }
}

codes! {
    /// Why a session or a connection is closed (GOAWAY).
    CloseCode {
        /// The node is leaving; attach elsewhere.
        Draining = 1, "DRAINING";
        /// Two live instances use this agent id, or two hubs this replica id; come back after `retry_after`.
        DuplicateId = 2, "DUPLICATE_ID";
        /// A newer attachment or session of the same peer took over.
        Superseded = 3, "SUPERSEDED";
        /// A frame or message broke the protocol.
        Protocol = 4, "PROTOCOL";
        /// The credential does not allow what HELLO asked for, or ran out.
        Auth = 5, "AUTH";
        /// The peers' namespaces differ.
        Namespace = 6, "NAMESPACE";
        /// The peer is this very hub.
        Itself = 7, "SELF";
        /// Too many small offences in a minute.
        Glitches = 8, "GLITCHES";
        /// Repeated violation of credit limits.
        Flow = 9, "FLOW";
        /// A limit on sessions or handshakes is reached.
        Busy = 10, "BUSY";
        /// Nothing was heard from the peer for `liveness.dead`.
        Dead = 11, "DEAD";
        /// The session to resume does not exist or may not be resumed so.
        ResumeRefused = 12, "RESUME_REFUSED";
        /// The handshake did not finish in time.
        HandshakeTimeout = 13, "HANDSHAKE_TIMEOUT";
        /// Another session to this peer survived a simultaneous dial.
        Duplicate = 14, "DUPLICATE";
        /// The process stops.
        Shutdown = 15, "SHUTDOWN";
        /// The connection failed or ended underneath.
        Transport = 16, "TRANSPORT";
    }
}

/// A peer broke the protocol: what was expected and what came. The detail is
/// composed from fixed text and numbers, never from peer strings (B10).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct ProtocolError {
    /// The closed reason, a metric label.
    pub kind: ProtocolErrorKind,
    /// What was expected and what came.
    pub detail: std::borrow::Cow<'static, str>,
}

impl ProtocolError {
    /// An error of `kind`.
    pub fn new(kind: ProtocolErrorKind, detail: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

codes! {
    /// How a peer broke the protocol.
    ProtocolErrorKind {
        /// A message, frame or field exceeds its size limit.
        TooLarge = 1, "TOO_LARGE";
        /// Bytes that are no frame of this encoding.
        Malformed = 2, "MALFORMED";
        /// A frame type that is unknown and not flagged optional.
        UnknownType = 3, "UNKNOWN_TYPE";
        /// A frame that is not allowed in this phase or on this plane.
        Unexpected = 4, "UNEXPECTED";
        /// A message number that leaves a gap, or an ACK above what was sent.
        Numbering = 5, "NUMBERING";
        /// A name breaks its syntax, or a list its limit.
        BadName = 6, "BAD_NAME";
        /// A cid minted by the wrong side, or reused.
        BadCid = 7, "BAD_CID";
        /// It has us say more than it acknowledges.
        Unacknowledged = 8, "UNACKNOWLEDGED";
    }
}

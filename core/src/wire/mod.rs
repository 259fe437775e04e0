//! Frames, and the two encodings of them. This module owns syntax only: sizes,
//! depth, canonical forms, unknown types. It cannot see epochs, offsets or
//! names as anything but values, and it names no control, shard or policy.
//! Decoding is total: no input panics (D2); `encode(decode(x)) == x` for
//! canonical `x`. `core/PROTOCOL.md` is the normative text.

mod binary;
mod hello;
mod json;
mod types;

use bytes::{Bytes, BytesMut};

pub use hello::{
    Attachment, Auth, ConnectorAd, Hello, HelloAgent, HelloHub, HelloRole, ResumeAccept, ResumeRequest, Signature,
    Welcome,
};

use crate::error::{CloseCode, ProtocolError, ProtocolErrorKind, RstCode};
use crate::id::{AgentId, Cid, Epoch, Instance, Name, Nonce, Secret};

/// Largest payload of one DATA frame, bytes.
pub const DATA_PAYLOAD_MAX_BYTES: usize = 64 * 1024;
/// Largest message before the peer is authenticated and HELLO was accepted, bytes.
pub const MESSAGE_MAX_BEFORE_AUTH_BYTES: usize = 16 * 1024;
/// Largest message afterwards, bytes.
pub const MESSAGE_MAX_BYTES: usize = 256 * 1024;
/// Deepest nesting of a JSON text.
pub const JSON_DEPTH_MAX: usize = 8;
/// Most connectors in one HELLO or CONNECTORS (attack 53).
pub const CONNECTORS_MAX: usize = 256;
/// Most capabilities in one HELLO or WELCOME.
pub const CAPABILITIES_MAX: usize = 32;
/// Most sessions in a hub's HELLO.
pub const SESSIONS_MAX: usize = 16;
/// Longest certificate chain in WELCOME or AUTH, certificates.
pub const CHAIN_MAX: usize = 8;
/// Longest certificate or signature in WELCOME or AUTH, bytes of base64 text.
pub const SIGNATURE_TEXT_MAX_BYTES: usize = 8 * 1024;
/// Longest credential in TOKEN, bytes.
pub const TOKEN_MAX_BYTES: usize = 8 * 1024;
/// A v2 message holds at most one frame per this many bytes of the message
/// limit in force: 256 frames before authentication, 4096 afterwards. Without
/// it a message of 3-byte frames would decode to 27 times its size.
pub const MESSAGE_BYTES_PER_FRAME: usize = 64;
/// Largest number on the wire outside epochs: what JSON numbers carry exactly.
pub const NUMBER_MAX: u64 = (1 << 53) - 1;

/// Which of the two relations a connection carries; decides the v1 type names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plane {
    /// Agent and hub, on `/tunnel`.
    Tunnel,
    /// Hub and hub, on `/mesh`.
    Mesh,
}

/// An encoding, fixed for the life of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Codec {
    /// v1: JSON text, one frame a message, payload in base64.
    JsonV1,
    /// v2: binary, one or more frames a message.
    BinaryV2,
}

/// Encoding and plane: together the WebSocket subprotocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dialect {
    /// The encoding.
    pub codec: Codec,
    /// The relation.
    pub plane: Plane,
}

impl Dialect {
    /// All dialects of a plane, best first.
    #[must_use]
    pub const fn of(plane: Plane) -> [Self; 2] {
        [Self { codec: Codec::BinaryV2, plane }, Self { codec: Codec::JsonV1, plane }]
    }

    /// The WebSocket subprotocol name.
    #[must_use]
    pub const fn subprotocol(self) -> &'static str {
        match (self.plane, self.codec) {
            (Plane::Tunnel, Codec::BinaryV2) => "nowconnect.tunnel.v2",
            (Plane::Tunnel, Codec::JsonV1) => "nowconnect.tunnel.v1",
            (Plane::Mesh, Codec::BinaryV2) => "nowconnect.mesh.v2",
            (Plane::Mesh, Codec::JsonV1) => "nowconnect.mesh.v1",
        }
    }
}

/// Syntactic limits of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireLimits {
    /// Largest message, bytes in encoded form.
    pub message_bytes: usize,
    /// Largest DATA payload, bytes after decoding.
    pub payload_bytes: usize,
}

impl WireLimits {
    /// The limits before HELLO is accepted.
    pub const BEFORE_AUTH: Self = Self { message_bytes: MESSAGE_MAX_BEFORE_AUTH_BYTES, payload_bytes: 0 };
    /// The limits of an established session.
    pub const ESTABLISHED: Self = Self { message_bytes: MESSAGE_MAX_BYTES, payload_bytes: DATA_PAYLOAD_MAX_BYTES };
}

/// One unit between nodes.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// First message of the dialler.
    Hello(Box<Hello>),
    /// The acceptor's answer.
    Welcome(Box<Welcome>),
    /// Third message of a mesh handshake: the dialler's proof of identity.
    Auth(Box<Auth>),
    /// Messages 1..=`received` of the peer have arrived.
    Ack {
        /// Highest contiguous message number received.
        received: u64,
    },
    /// Liveness and round-trip probe.
    Ping {
        /// Echoed in the PONG.
        token: u64,
    },
    /// Answer to PING.
    Pong {
        /// The PING's token.
        token: u64,
    },
    /// The session (or the handshake) ends, and why.
    GoAway {
        /// The reason.
        code: CloseCode,
        /// Do not come back before this many milliseconds; 0 = no wish.
        retry_after_ms: u64,
    },
    /// An attachment's fence changed (tunnel) or became known (mesh).
    Epoch(Box<EpochNotice>),
    /// What the sender wants its peers to know about itself.
    Status(Status),
    /// Replaces the set of connectors an agent exposes.
    Connectors {
        /// Increases with each change; a lower or equal one is ignored.
        generation: u64,
        /// The complete new set.
        connectors: Vec<ConnectorAd>,
    },
    /// A fresh credential for a live tunnel; from a hub the answer to it.
    Token {
        /// The JWT, or [`TOKEN_ACCEPTED`] or [`TOKEN_REFUSED`]. Never logged.
        token: SecretText,
    },
    /// A frame of one stream.
    Stream {
        /// The stream.
        cid: Cid,
        /// The epoch it is bound under.
        epoch: Epoch,
        /// What is said.
        body: Body,
    },
}

/// What a stream frame says.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Carry a new client.
    Open(Box<Open>),
    /// The agent's answer: its connect to the target succeeded, or not.
    OpenAck {
        /// `Err` is a refusal: no target socket remains (S7).
        result: Result<(), RstCode>,
    },
    /// Payload at a byte offset of the half.
    Data {
        /// Offset of the first byte in the half (v1 `seq`).
        off: u64,
        /// 1 to 65536 bytes.
        bytes: Bytes,
    },
    /// Absolute flow control for the half flowing towards the sender of this frame.
    Credit {
        /// Bytes the far end has written to its socket; `final + 1` after EOF.
        consumed: u64,
        /// Offset the receiver of this frame may send up to.
        limit: u64,
    },
    /// The half ends cleanly here (half-close).
    Fin {
        /// Length of the half in bytes.
        final_off: u64,
    },
    /// The stream ends abruptly, both halves.
    Rst {
        /// Why.
        code: RstCode,
        /// Where the sender's half stood.
        final_off: u64,
    },
    /// Go on with an open stream over this session (re-homing).
    Resume(Box<Resume>),
}

/// Body of OPEN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// With the frame's epoch: the fence of the attachment meant.
    pub nonce: Nonce,
    /// The service asked for.
    pub connector: Name,
    /// The agent meant.
    pub agent_id: AgentId,
    /// Secret that a later RESUME must show.
    pub key: Secret<16>,
    /// Offset the agent may send up to before the first CREDIT.
    pub limit: u64,
}

/// Body of RESUME.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// With the frame's epoch: the fence of the attachment meant.
    pub nonce: Nonce,
    /// The agent meant.
    pub agent_id: AgentId,
    /// The key of the OPEN.
    pub key: Secret<16>,
    /// Next offset the sender expects to receive.
    pub next: u64,
    /// Offset the receiver of this frame may send up to.
    pub limit: u64,
}

/// Body of EPOCH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochNotice {
    /// The agent whose attachment this is.
    pub agent_id: AgentId,
    /// The agent's run.
    pub instance: Instance,
    /// The hub that holds the attachment.
    pub replica_id: Name,
    /// The epoch.
    pub epoch: Epoch,
    /// The claim's nonce.
    pub nonce: Nonce,
    /// Whether the registry granted it (false: provisional).
    pub firm: bool,
}

/// Body of STATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The registry answers.
    pub registry_healthy: bool,
    /// The sender takes no new streams.
    pub draining: bool,
    /// The sender carries streams for other hubs (mode `active`).
    pub active: bool,
    /// Bytes of DATA the sender takes directly after an OPEN.
    pub initial_window: u64,
}

/// What a hub answers to a TOKEN it takes, in a TOKEN of its own.
pub const TOKEN_ACCEPTED: &str = "accepted";
/// And to one that it does not take.
pub const TOKEN_REFUSED: &str = "refused";

/// Text that must not be logged.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(pub String);

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText(..)")
    }
}

impl Frame {
    /// A stream frame.
    #[must_use]
    pub const fn stream(cid: Cid, epoch: Epoch, body: Body) -> Self {
        Self::Stream { cid, epoch, body }
    }

    /// Closed label of the frame's type, for metrics: the v1 name without `M_`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Hello(_) => "HELLO",
            Self::Welcome(_) => "WELCOME",
            Self::Auth(_) => "AUTH",
            Self::Ack { .. } => "ACK",
            Self::Ping { .. } => "PING",
            Self::Pong { .. } => "PONG",
            Self::GoAway { .. } => "GOAWAY",
            Self::Epoch(_) => "EPOCH",
            Self::Status(_) => "STATUS",
            Self::Connectors { .. } => "CONNECTORS",
            Self::Token { .. } => "TOKEN",
            Self::Stream { body, .. } => body.kind(),
        }
    }

    /// Whether a message with this frame alone carries number 0 and is neither
    /// acknowledged nor replayed: the handshake, ACK, PING, PONG and GOAWAY.
    #[must_use]
    pub const fn unnumbered(&self) -> bool {
        matches!(
            self,
            Self::Hello(_)
                | Self::Welcome(_)
                | Self::Auth(_)
                | Self::Ack { .. }
                | Self::Ping { .. }
                | Self::Pong { .. }
                | Self::GoAway { .. }
        )
    }
}

impl Body {
    /// Closed label of the body's type.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Open(_) => "OPEN",
            Self::OpenAck { .. } => "OPEN_ACK",
            Self::Data { .. } => "DATA",
            Self::Credit { .. } => "CREDIT",
            Self::Fin { .. } => "FIN",
            Self::Rst { .. } => "RST",
            Self::Resume(_) => "RESUME",
        }
    }
}

/// Labels of all frame types, in v2 type-number order.
pub const FRAME_KINDS: [&str; 18] = [
    "HELLO",
    "WELCOME",
    "AUTH",
    "ACK",
    "PING",
    "PONG",
    "GOAWAY",
    "EPOCH",
    "STATUS",
    "CONNECTORS",
    "TOKEN",
    "OPEN",
    "OPEN_ACK",
    "DATA",
    "CREDIT",
    "FIN",
    "RST",
    "RESUME",
];

fn malformed(detail: impl Into<std::borrow::Cow<'static, str>>) -> ProtocolError {
    ProtocolError::new(ProtocolErrorKind::Malformed, detail)
}

fn too_large(detail: impl Into<std::borrow::Cow<'static, str>>) -> ProtocolError {
    ProtocolError::new(ProtocolErrorKind::TooLarge, detail)
}

fn unexpected(detail: impl Into<std::borrow::Cow<'static, str>>) -> ProtocolError {
    ProtocolError::new(ProtocolErrorKind::Unexpected, detail)
}

fn bad_name(detail: impl Into<std::borrow::Cow<'static, str>>) -> ProtocolError {
    ProtocolError::new(ProtocolErrorKind::BadName, detail)
}

fn check_message_size(len: usize, limits: &WireLimits) -> Result<(), ProtocolError> {
    if len <= limits.message_bytes {
        return Ok(());
    }
    Err(too_large(format!("a message of at most {} bytes was expected, it has {len}", limits.message_bytes)))
}

fn check_payload_size(len: usize, limits: &WireLimits) -> Result<(), ProtocolError> {
    if len == 0 {
        return Err(malformed("DATA: at least one byte of payload was expected, it has none"));
    }
    if len <= limits.payload_bytes {
        return Ok(());
    }
    Err(too_large(format!("DATA: a payload of at most {} bytes was expected, it has {len}", limits.payload_bytes)))
}

/// What one message held.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// The message's number in its session, from 1; 0 = not numbered.
    pub number: u64,
    /// The frames, in order. Frames of unknown optional types are left out.
    pub frames: Vec<Frame>,
}

/// Decodes one WebSocket message.
///
/// `frames` is appended to; on error what was appended is to be discarded.
/// Returns the message's number (0 = unnumbered). Payloads are slices of `msg`
/// in v2 and freshly decoded in v1.
///
/// # Errors
/// When the message breaks a syntactic rule of `PROTOCOL.md`.
pub fn decode(
    dialect: Dialect,
    msg: &Bytes,
    limits: &WireLimits,
    frames: &mut Vec<Frame>,
) -> Result<u64, ProtocolError> {
    match dialect.codec {
        Codec::JsonV1 => json::decode(dialect.plane, msg, limits, frames),
        Codec::BinaryV2 => binary::decode(msg, limits, frames),
    }
}

/// Appends the start of a message: in v2 the number, in v1 nothing (there the
/// number is a field of the frame).
pub fn encode_message_start(dialect: Dialect, number: u64, head: &mut BytesMut) {
    if dialect.codec == Codec::BinaryV2 {
        binary::encode_message_start(number, head);
    }
}

/// Appends one frame to `head`, except for the payload of a v2 DATA frame:
/// that is returned, to be sent as its own slice right after `head` (the core
/// never copies payload). A v1 DATA frame is complete in `head`.
#[must_use]
pub fn encode_frame(dialect: Dialect, number: u64, frame: &Frame, head: &mut BytesMut) -> Option<Bytes> {
    let payload_follows = encode_head(dialect, number, frame, 0, head);
    let Frame::Stream { body: Body::Data { bytes, .. }, .. } = frame else { return None };
    payload_follows.then(|| bytes.clone())
}

/// [`encode_frame`] for a caller that owns the payload already: whether it has
/// to follow `head`. In v2 a DATA frame goes on with `more` bytes of payload
/// after its own; v1 has none.
pub(crate) fn encode_head(dialect: Dialect, number: u64, frame: &Frame, more: usize, head: &mut BytesMut) -> bool {
    match dialect.codec {
        Codec::JsonV1 => {
            json::encode(dialect.plane, number, frame, head);
            false
        }
        Codec::BinaryV2 => binary::encode_frame(frame, more, head),
    }
}

/// Encodes a whole message into one buffer (handshakes, tests, fuzzing).
#[must_use]
pub fn encode_message(dialect: Dialect, number: u64, frames: &[Frame]) -> Bytes {
    let mut out = BytesMut::new();
    encode_message_start(dialect, number, &mut out);
    for f in frames {
        if let Some(payload) = encode_frame(dialect, number, f, &mut out) {
            out.extend_from_slice(&payload);
        }
    }
    out.freeze()
}

//! Bodies of the handshake frames. They are JSON in both encodings so that a
//! later version can add fields: unknown keys of HELLO, WELCOME and AUTH are
//! skipped (all other frames refuse them), known ones are typed and bounded.

use serde::{Deserialize, Serialize};

use crate::id::{AgentId, Epoch, Incarnation, Instance, Name, Nonce, Secret, SessionId};

/// First message of a dialler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Who dials.
    #[serde(flatten)]
    pub role: HelloRole,
    /// Fresh random number of this connection; the signatures of WELCOME and
    /// AUTH cover it, so a recorded handshake is worthless (attack 30).
    pub challenge: Secret<16>,
    /// Bytes of DATA the dialler takes directly after an OPEN.
    pub initial_window: u64,
    /// What the dialler can do beyond this version.
    pub capabilities: Vec<Name>,
    /// Present to go on with a session that lost its connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<ResumeRequest>,
}

/// Who sent a HELLO.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum HelloRole {
    /// An agent, on `/tunnel`.
    Agent(HelloAgent),
    /// A hub, on `/mesh`.
    Hub(HelloHub),
}

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HelloAgent {
    /// The agent.
    pub agent_id: AgentId,
    /// Its run.
    pub instance: Instance,
    /// The services it exposes, at most 256.
    pub connectors: Vec<ConnectorAd>,
    /// The highest epoch it was ever given (0 = none).
    pub seen: Epoch,
}

/// One exposed service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectorAd {
    /// The connector.
    pub name: Name,
    /// Rank among the agents that expose it; lower is preferred.
    pub priority: u16,
    /// Share among equals.
    pub weight: u16,
}

/// What a hub says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HelloHub {
    /// The replica.
    pub replica_id: Name,
    /// Its run.
    pub incarnation: Incarnation,
    /// Hubs of different namespaces refuse each other.
    pub namespace: Name,
    /// Where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Name>,
    /// The sessions it believes to have with the acceptor.
    pub sessions: Vec<SessionId>,
}

/// Asks to go on with a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResumeRequest {
    /// The session.
    pub session: SessionId,
    /// Counts this session's resume attempts; must increase, so a recorded
    /// proof is worthless.
    pub attempt: u64,
    /// Highest contiguous message number the dialler has received.
    pub received: u64,
    /// HMAC-SHA-256 with the session's secret, see PROTOCOL.md.
    pub proof: Secret<32>,
}

/// The acceptor's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The accepting hub.
    pub replica_id: Name,
    /// Its run.
    pub incarnation: Incarnation,
    /// Its namespace.
    pub namespace: Name,
    /// Where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Name>,
    /// The session, new or resumed.
    pub session: SessionId,
    /// The secret of a new session; absent when one is resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret<32>>,
    /// Present when the session goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed: Option<ResumeAccept>,
    /// Fence of the tunnel's attachment; absent on the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    /// How long the acceptor keeps the session without a connection, in
    /// milliseconds.
    pub resume_window_ms: u64,
    /// Fresh random number of this connection (see [`Hello::challenge`]).
    pub challenge: Secret<16>,
    /// Bytes of DATA the acceptor takes directly after an OPEN.
    pub initial_window: u64,
    /// What both sides can do beyond this version.
    pub capabilities: Vec<Name>,
    /// The acceptor's proof of identity on the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

/// The acceptor's half of a resumption.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResumeAccept {
    /// Highest contiguous message number the acceptor has received.
    pub received: u64,
    /// HMAC-SHA-256 with the session's secret, see PROTOCOL.md.
    pub proof: Secret<32>,
}

/// The fence an attachment was granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The epoch.
    pub epoch: Epoch,
    /// The claim's nonce.
    pub nonce: Nonce,
    /// Granted by the registry (true) or provisional (false).
    pub firm: bool,
}

/// Third message of a mesh handshake.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Auth {
    /// The dialler's proof of identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

/// Proof of a hub's identity: what exactly is signed is in PROTOCOL.md.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Signature {
    /// Certificate chain, leaf first, each DER in base64.
    pub chain: Vec<String>,
    /// The signature scheme's IANA name in lower case, e.g. `ecdsa_secp256r1_sha256`.
    pub scheme: Name,
    /// The signature in base64.
    pub signature: String,
}

//! Bodies of the handshake frames. They are the same JSON text in both
//! encodings so that a later version can add fields: unknown keys of HELLO,
//! WELCOME and AUTH are skipped (all other frames refuse them), known ones are
//! typed, bounded and must not repeat (attacks 35 and 53).
//!
//! The wire form is declared apart from the types of the API: a flattened,
//! tagged enum would buffer what a peer sends before it is judged, and would
//! take arrays for objects. `None` here never means `null`.

use std::borrow::Cow;
use std::fmt;

use bytes::BytesMut;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    CAPABILITIES_MAX, CHAIN_MAX, CONNECTORS_MAX, NUMBER_MAX, SESSIONS_MAX, SIGNATURE_TEXT_MAX_BYTES, bad_name, json,
    malformed, too_large,
};
use crate::error::ProtocolError;
use crate::id::{AgentId, Epoch, Incarnation, Instance, Name, Nonce, Secret, SessionId};

/// First message of a dialler.
#[derive(Clone, Debug, PartialEq)]
pub struct Hello {
    /// Who dials.
    pub role: HelloRole,
    /// Fresh random number of this connection; the signatures of WELCOME and
    /// AUTH cover it, so a recorded handshake is worthless (attack 30).
    pub challenge: Secret<16>,
    /// Bytes of DATA the dialler takes directly after an OPEN.
    pub initial_window: u64,
    /// What the dialler can do beyond this version.
    pub capabilities: Vec<Name>,
    /// Present to go on with a session that lost its connection.
    pub resume: Option<ResumeRequest>,
}

/// Who sent a HELLO.
#[derive(Clone, Debug, PartialEq)]
pub enum HelloRole {
    /// An agent, on `/tunnel`.
    Agent(HelloAgent),
    /// A hub, on `/mesh`.
    Hub(HelloHub),
}

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct HelloAgent {
    /// The agent.
    pub agent_id: AgentId,
    /// Its run.
    pub instance: Instance,
    /// The services it exposes, at most 256.
    pub connectors: Vec<ConnectorAd>,
    /// The highest epoch it was ever given (0 = none).
    pub seen: Epoch,
    /// Its sessions that have a connection, at most 16: a hub that holds one
    /// of them refuses with DUPLICATE and leaves it alone.
    pub sessions: Vec<SessionId>,
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
#[derive(Clone, Debug, PartialEq)]
pub struct HelloHub {
    /// The replica.
    pub replica_id: Name,
    /// Its run.
    pub incarnation: Incarnation,
    /// Hubs of different namespaces refuse each other.
    pub namespace: Name,
    /// Where it runs.
    pub region: Option<Name>,
    /// The sessions it believes to have with the acceptor.
    pub sessions: Vec<SessionId>,
}

/// Asks to go on with a session.
#[derive(Clone, Debug, PartialEq)]
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
#[derive(Clone, Debug, PartialEq)]
pub struct Welcome {
    /// The accepting hub.
    pub replica_id: Name,
    /// Its run.
    pub incarnation: Incarnation,
    /// Its namespace.
    pub namespace: Name,
    /// Where it runs.
    pub region: Option<Name>,
    /// The session, new or resumed.
    pub session: SessionId,
    /// The secret of a new session; absent when one is resumed.
    pub secret: Option<Secret<32>>,
    /// Present when the session goes on.
    pub resumed: Option<ResumeAccept>,
    /// Fence of the tunnel's attachment; absent on the mesh.
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
    pub signature: Option<Signature>,
}

/// The acceptor's half of a resumption.
#[derive(Clone, Debug, PartialEq)]
pub struct ResumeAccept {
    /// Highest contiguous message number the acceptor has received.
    pub received: u64,
    /// HMAC-SHA-256 with the session's secret, see PROTOCOL.md.
    pub proof: Secret<32>,
}

/// The fence an attachment was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The epoch.
    pub epoch: Epoch,
    /// The claim's nonce.
    pub nonce: Nonce,
    /// Granted by the registry (true) or provisional (false).
    pub firm: bool,
}

/// Third message of a mesh handshake.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Auth {
    /// The dialler's proof of identity.
    pub signature: Option<Signature>,
}

/// Proof of a hub's identity: what exactly is signed is in PROTOCOL.md.
#[derive(Clone, Debug, PartialEq)]
pub struct Signature {
    /// Certificate chain, leaf first, each DER in base64.
    pub chain: Vec<String>,
    /// The signature scheme's IANA name in lower case, e.g. `ecdsa_secp256r1_sha256`.
    pub scheme: Name,
    /// The signature in base64.
    pub signature: String,
}

/// A number of at most 2^53-1; JSON readers elsewhere lose bits above.
#[derive(Clone, Copy, Serialize)]
#[serde(transparent)]
pub(super) struct Num(pub(super) u64);

impl<'de> Deserialize<'de> for Num {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let n = u64::deserialize(d)?;
        if n <= NUMBER_MAX { Ok(Self(n)) } else { Err(D::Error::custom("a number exceeds 2^53-1")) }
    }
}

/// A JSON object. Derived structs alone would take an array in its place.
#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        d.deserialize_map(ObjectVisitor(std::marker::PhantomData)).map(Self)
    }
}

/// A list that stops growing at its limit and remembers that there was more.
pub(super) struct Capped<T, const MAX: usize> {
    items: Vec<T>,
    over: bool,
}

impl<T, const MAX: usize> Default for Capped<T, MAX> {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl<T, const MAX: usize> Capped<T, MAX> {
    pub(super) const fn new(items: Vec<T>) -> Self {
        Self { items, over: false }
    }

    const fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn within(self, field: &'static str) -> Result<Vec<T>, ProtocolError> {
        if self.over {
            return Err(bad_name(format!("{field}: at most {MAX} entries were expected, there are more")));
        }
        Ok(self.items)
    }
}

impl<T: Serialize, const MAX: usize> Serialize for Capped<T, MAX> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(&self.items)
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Capped<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct ListVisitor<T, const MAX: usize>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for ListVisitor<T, MAX> {
            type Value = Capped<T, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while items.len() < MAX {
                    match seq.next_element()? {
                        Some(item) => items.push(item),
                        None => return Ok(Capped { items, over: false }),
                    }
                }
                let mut over = false;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    over = true;
                }
                Ok(Capped { items, over })
            }
        }
        d.deserialize_seq(ListVisitor(std::marker::PhantomData))
    }
}

/// An optional key: absent is `None`, but `null` is a value of the wrong type.
pub(super) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}

/// The two keys that say how to read the rest of a HELLO.
#[derive(Deserialize)]
struct HelloKind<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    role: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
struct AgentHelloText {
    #[serde(rename = "type")]
    kind: String,
    role: String,
    agent_id: String,
    instance: Instance,
    connectors: Capped<Object<ConnectorText>, CONNECTORS_MAX>,
    seen: Epoch,
    #[serde(default, skip_serializing_if = "Capped::is_empty")]
    sessions: Capped<SessionId, SESSIONS_MAX>,
    challenge: Secret<16>,
    initial_window: Num,
    capabilities: Capped<String, CAPABILITIES_MAX>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    resume: Option<Object<ResumeText>>,
}

#[derive(Serialize, Deserialize)]
struct HubHelloText {
    #[serde(rename = "type")]
    kind: String,
    role: String,
    replica_id: String,
    incarnation: Incarnation,
    namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    region: Option<String>,
    sessions: Capped<SessionId, SESSIONS_MAX>,
    challenge: Secret<16>,
    initial_window: Num,
    capabilities: Capped<String, CAPABILITIES_MAX>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    resume: Option<Object<ResumeText>>,
}

/// A connector inside HELLO, where unknown keys are skipped.
#[derive(Serialize, Deserialize)]
struct ConnectorText {
    name: String,
    priority: u16,
    weight: u16,
}

#[derive(Serialize, Deserialize)]
struct ResumeText {
    session: SessionId,
    attempt: Num,
    received: Num,
    proof: Secret<32>,
}

#[derive(Serialize, Deserialize)]
struct WelcomeText {
    #[serde(rename = "type")]
    kind: String,
    replica_id: String,
    incarnation: Incarnation,
    namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    region: Option<String>,
    session: SessionId,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    secret: Option<Secret<32>>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    resumed: Option<Object<ResumedText>>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    attachment: Option<Object<AttachmentText>>,
    resume_window_ms: Num,
    challenge: Secret<16>,
    initial_window: Num,
    capabilities: Capped<String, CAPABILITIES_MAX>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    signature: Option<Object<SignatureText>>,
}

#[derive(Serialize, Deserialize)]
struct ResumedText {
    received: Num,
    proof: Secret<32>,
}

#[derive(Serialize, Deserialize)]
struct AttachmentText {
    epoch: Epoch,
    nonce: Nonce,
    firm: bool,
}

#[derive(Serialize, Deserialize)]
struct AuthText {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    signature: Option<Object<SignatureText>>,
}

#[derive(Serialize, Deserialize)]
struct SignatureText {
    chain: Capped<String, CHAIN_MAX>,
    scheme: String,
    signature: String,
}

/// Parses a HELLO; `bytes` is the whole v1 message or v2 body.
pub(super) fn decode_hello(bytes: &[u8]) -> Result<Hello, ProtocolError> {
    let text = json::checked_text(bytes)?;
    let kind: HelloKind<'_> = json::parse("HELLO", text)?;
    check_kind("HELLO", &kind.kind)?;
    match &*kind.role {
        "agent" => {
            let t: AgentHelloText = json::parse("HELLO", text)?;
            let mut connectors = Vec::with_capacity(t.connectors.items.len());
            for Object(c) in t.connectors.within("connectors")? {
                let name = name("connectors", &c.name)?;
                connectors.push(ConnectorAd { name, priority: c.priority, weight: c.weight });
            }
            let agent_id = AgentId::new(&t.agent_id).map_err(|e| bad_name(format!("agent_id: {e}")))?;
            Ok(Hello {
                role: HelloRole::Agent(HelloAgent {
                    agent_id,
                    instance: t.instance,
                    connectors,
                    seen: t.seen,
                    sessions: t.sessions.within("sessions")?,
                }),
                challenge: t.challenge,
                initial_window: t.initial_window.0,
                capabilities: names("capabilities", t.capabilities)?,
                resume: t.resume.map(|Object(r)| r.into()),
            })
        }
        "hub" => {
            let t: HubHelloText = json::parse("HELLO", text)?;
            Ok(Hello {
                role: HelloRole::Hub(HelloHub {
                    replica_id: name("replica_id", &t.replica_id)?,
                    incarnation: t.incarnation,
                    namespace: name("namespace", &t.namespace)?,
                    region: t.region.map(|r| name("region", &r)).transpose()?,
                    sessions: t.sessions.within("sessions")?,
                }),
                challenge: t.challenge,
                initial_window: t.initial_window.0,
                capabilities: names("capabilities", t.capabilities)?,
                resume: t.resume.map(|Object(r)| r.into()),
            })
        }
        _ => Err(malformed("HELLO: the role is neither agent nor hub")),
    }
}

/// Parses a WELCOME; `bytes` is the whole v1 message or v2 body.
pub(super) fn decode_welcome(bytes: &[u8]) -> Result<Welcome, ProtocolError> {
    let t: WelcomeText = json::parse("WELCOME", json::checked_text(bytes)?)?;
    check_kind("WELCOME", &t.kind)?;
    Ok(Welcome {
        replica_id: name("replica_id", &t.replica_id)?,
        incarnation: t.incarnation,
        namespace: name("namespace", &t.namespace)?,
        region: t.region.map(|r| name("region", &r)).transpose()?,
        session: t.session,
        secret: t.secret,
        resumed: t.resumed.map(|Object(r)| ResumeAccept { received: r.received.0, proof: r.proof }),
        attachment: t.attachment.map(|Object(a)| Attachment { epoch: a.epoch, nonce: a.nonce, firm: a.firm }),
        resume_window_ms: t.resume_window_ms.0,
        challenge: t.challenge,
        initial_window: t.initial_window.0,
        capabilities: names("capabilities", t.capabilities)?,
        signature: t.signature.map(|Object(s)| s.checked()).transpose()?,
    })
}

/// Parses an AUTH; `bytes` is the whole v1 message or v2 body.
pub(super) fn decode_auth(bytes: &[u8]) -> Result<Auth, ProtocolError> {
    let t: AuthText = json::parse("AUTH", json::checked_text(bytes)?)?;
    check_kind("AUTH", &t.kind)?;
    Ok(Auth { signature: t.signature.map(|Object(s)| s.checked()).transpose()? })
}

pub(super) fn encode_hello(hello: &Hello, head: &mut BytesMut) {
    let kind = "HELLO".to_owned();
    let capabilities = texts(&hello.capabilities);
    let initial_window = Num(hello.initial_window);
    let resume = hello.resume.as_ref().map(|r| {
        Object(ResumeText { session: r.session, attempt: Num(r.attempt), received: Num(r.received), proof: r.proof })
    });
    match &hello.role {
        HelloRole::Agent(agent) => json::write(
            &AgentHelloText {
                kind,
                role: "agent".to_owned(),
                agent_id: agent.agent_id.as_str().to_owned(),
                instance: agent.instance,
                connectors: Capped::new(agent.connectors.iter().map(|c| Object(c.into())).collect()),
                seen: agent.seen,
                sessions: Capped::new(agent.sessions.clone()),
                challenge: hello.challenge,
                initial_window,
                capabilities,
                resume,
            },
            head,
        ),
        HelloRole::Hub(hub) => json::write(
            &HubHelloText {
                kind,
                role: "hub".to_owned(),
                replica_id: hub.replica_id.as_str().to_owned(),
                incarnation: hub.incarnation,
                namespace: hub.namespace.as_str().to_owned(),
                region: hub.region.as_ref().map(|r| r.as_str().to_owned()),
                sessions: Capped::new(hub.sessions.clone()),
                challenge: hello.challenge,
                initial_window,
                capabilities,
                resume,
            },
            head,
        ),
    }
}

pub(super) fn encode_welcome(w: &Welcome, head: &mut BytesMut) {
    let text = WelcomeText {
        kind: "WELCOME".to_owned(),
        replica_id: w.replica_id.as_str().to_owned(),
        incarnation: w.incarnation,
        namespace: w.namespace.as_str().to_owned(),
        region: w.region.as_ref().map(|r| r.as_str().to_owned()),
        session: w.session,
        secret: w.secret,
        resumed: w.resumed.as_ref().map(|r| Object(ResumedText { received: Num(r.received), proof: r.proof })),
        attachment: w
            .attachment
            .as_ref()
            .map(|a| Object(AttachmentText { epoch: a.epoch, nonce: a.nonce, firm: a.firm })),
        resume_window_ms: Num(w.resume_window_ms),
        challenge: w.challenge,
        initial_window: Num(w.initial_window),
        capabilities: texts(&w.capabilities),
        signature: w.signature.as_ref().map(|s| Object(s.into())),
    };
    json::write(&text, head);
}

pub(super) fn encode_auth(auth: &Auth, head: &mut BytesMut) {
    let signature = auth.signature.as_ref().map(|s| Object(s.into()));
    json::write(&AuthText { kind: "AUTH".to_owned(), signature }, head);
}

impl From<ResumeText> for ResumeRequest {
    fn from(r: ResumeText) -> Self {
        Self { session: r.session, attempt: r.attempt.0, received: r.received.0, proof: r.proof }
    }
}

impl From<&ConnectorAd> for ConnectorText {
    fn from(c: &ConnectorAd) -> Self {
        Self { name: c.name.as_str().to_owned(), priority: c.priority, weight: c.weight }
    }
}

impl From<&Signature> for SignatureText {
    fn from(s: &Signature) -> Self {
        Self {
            chain: Capped::new(s.chain.clone()),
            scheme: s.scheme.as_str().to_owned(),
            signature: s.signature.clone(),
        }
    }
}

impl SignatureText {
    fn checked(self) -> Result<Signature, ProtocolError> {
        let chain = self.chain.within("chain")?;
        if chain.is_empty() {
            return Err(bad_name("chain: at least the leaf certificate was expected, there is none"));
        }
        for text in chain.iter().chain([&self.signature]) {
            if text.len() > SIGNATURE_TEXT_MAX_BYTES {
                return Err(too_large("signature: a certificate or the signature is longer than the limit"));
            }
            if text.is_empty() || !json::is_base64(text) {
                return Err(malformed("signature: a certificate or the signature is not canonical base64"));
            }
        }
        Ok(Signature { chain, scheme: name("scheme", &self.scheme)?, signature: self.signature })
    }
}

fn check_kind(expected: &'static str, kind: &str) -> Result<(), ProtocolError> {
    if kind == expected {
        return Ok(());
    }
    Err(malformed(format!("{expected}: the body's type does not agree with the frame's")))
}

pub(super) fn name(field: &'static str, text: &str) -> Result<Name, ProtocolError> {
    Name::new(text).map_err(|e| bad_name(format!("{field}: {e}")))
}

fn names<const MAX: usize>(field: &'static str, list: Capped<String, MAX>) -> Result<Vec<Name>, ProtocolError> {
    list.within(field)?.iter().map(|n| name(field, n)).collect()
}

fn texts<const MAX: usize>(names: &[Name]) -> Capped<String, MAX> {
    Capped::new(names.iter().map(|n| n.as_str().to_owned()).collect())
}

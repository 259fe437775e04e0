//! What a process answers its operator and its balancers, as types: the JSON of
//! `/status`, `/readyz`, `/readyz/LISTENER`, and of POST `/drain`, `/undrain` and
//! `/reload`. Their JSON Schema comes from the same types
//! (`nowconnect status --schema`), so that neither can be changed alone.
//!
//! Keeps: every object is closed (no field outside the schema), every word of a
//! closed set is listed, B10. Epochs and runs are text, because they exceed what
//! JSON numbers hold.
//!
//! Must not know: where the figures come from.

pub(crate) mod agent;
pub(crate) mod hub;

use std::borrow::Cow;

use nowconnect_core::config::Mode;
use nowconnect_core::error::RstCode;
use nowconnect_core::hub::Unready;
use nowconnect_core::link;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

/// Which answer a schema is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Answer {
    /// `GET /status`.
    Status,
    /// `GET /readyz`.
    Readyz,
    /// `GET /readyz/LISTENER`.
    ReadyzListener,
    /// `POST /drain`.
    Drain,
    /// `POST /undrain`.
    Undrain,
    /// `POST /reload`.
    Reload,
}

/// The JSON Schema (2020-12) of an answer, of hubs and of agents, with every
/// HTTP status that carries JSON.
#[must_use]
pub fn schema(answer: Answer) -> serde_json::Value {
    // As it is written, not as it would be read: a field that may be null is there.
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    match answer {
        Answer::Status => generator.into_root_schema_for::<Status>(),
        Answer::Readyz => generator.into_root_schema_for::<Readyz>(),
        Answer::ReadyzListener => generator.into_root_schema_for::<ReadyzListener>(),
        Answer::Drain => generator.into_root_schema_for::<DrainAnswer>(),
        Answer::Undrain => generator.into_root_schema_for::<UndrainAnswer>(),
        Answer::Reload => generator.into_root_schema_for::<ReloadAnswer>(),
    }
    .to_value()
}

/// An answer as JSON text.
pub(crate) fn text(answer: &impl Serialize) -> String {
    // Fails for no type of this module.
    serde_json::to_string(answer).unwrap_or_else(|e| format!("{{\"error\":\"the answer cannot be written: {e}\"}}"))
}

/// What a process does: `GET /status`, of a hub or an agent.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Status {
    Hub(hub::Status),
    Agent(agent::Status),
}

/// Whether a process should be given clients, and why not: `GET /readyz`, of a
/// hub or an agent.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Readyz {
    Hub(hub::Readyz),
    Agent(agent::Readyz),
}

/// Whether a client of one listener could be carried now:
/// `GET /readyz/LISTENER`. 200 when it is ready, else 503; 404 for a name that
/// no listener has, and always at an agent.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum ReadyzListener {
    Known(hub::NamedListener),
    Unknown(Failed),
}

/// `POST /drain`. 500 when the process ended while it answered.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum DrainAnswer {
    Hub(hub::Draining),
    /// A hub that has stopped.
    Stopped(hub::Stopped),
    Agent(agent::Draining),
    Failed(Failed),
}

/// `POST /undrain`. 200, or 409 when it cannot be taken back.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum UndrainAnswer {
    Cancelled(Cancelled),
    Refused(Refused),
    Failed(Failed),
}

/// `POST /reload`. 200, or 422 when nothing of the file is in force.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum ReloadAnswer {
    Applied(Applied),
    Refused(Refused),
    Failed(Failed),
}

/// Declares enums of one word, for fields that tell answers apart.
macro_rules! tags {
    ($($(#[$doc:meta])* $t:ident = $v:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub(crate) enum $t { $v }
    )*};
}
pub(crate) use tags;

tags! {
    /// The file is in force.
    ResultApplied = Applied;
    /// Nothing has changed.
    ResultRefused = Refused;
    /// The process leaves.
    ResultDraining = Draining;
    /// The process stays.
    ResultCancelled = Cancelled;
}

/// A reload that was carried out.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Applied {
    /// What became of it.
    pub(crate) result: ResultApplied,
    /// Keys that changed in the file and take effect with a restart.
    pub(crate) needs_restart: Vec<&'static str>,
}

/// What was asked for was not done, and nothing has changed.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Refused {
    /// What became of it.
    pub(crate) result: ResultRefused,
    /// Why, for a person.
    pub(crate) error: String,
}

impl Refused {
    pub(crate) fn because(why: &str) -> Self {
        Self { result: ResultRefused::Refused, error: why.to_owned() }
    }
}

/// A drain that was taken back.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Cancelled {
    /// What became of it.
    pub(crate) result: ResultCancelled,
}

/// There is no such thing, or the process could not answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Failed {
    /// Why, for a person.
    pub(crate) error: String,
}

impl Failed {
    pub(crate) fn because(why: &str) -> Self {
        Self { error: why.to_owned() }
    }
}

/// Whether a process should be given clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Yes.
    Ready,
    /// It serves, but not everything: see `reasons`.
    Degraded,
    /// It leaves.
    Draining,
}

impl State {
    pub(crate) const ALL: [Self; 3] = [Self::Ready, Self::Degraded, Self::Draining];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
        }
    }
}

/// A session of a tunnel or a link.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Session {
    /// Whether a connection carries it.
    pub(crate) state: SessionState,
    /// Smoothed round-trip time in milliseconds; null until it was measured.
    pub(crate) rtt_ms: Option<f64>,
    /// Frames that wait or are in flight.
    pub(crate) queue_frames: u32,
    /// Bytes sent and not acknowledged yet, as encoded.
    pub(crate) inflight_bytes: u64,
}

/// Whether a connection carries a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SessionState {
    /// Yes, and its peer was heard lately.
    Connected,
    /// Yes, but its peer is silent: nothing new is opened there.
    Suspect,
    /// No: it waits for its dialler until `resume_window` has passed.
    Suspended,
}

/// Payload the process holds.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Memory {
    /// Bytes held now.
    pub(crate) held_bytes: u64,
    /// `limits.memory_budget_bytes`.
    pub(crate) budget_bytes: u64,
}

/// A closed set of the core.
pub(crate) trait Closed: Copy + 'static {
    /// Its name in a schema.
    const NAME: &'static str;
    /// What it says.
    const ABOUT: &'static str;
    /// All of it.
    fn all() -> Vec<Self>;
    /// The word of one.
    fn word(self) -> &'static str;
}

/// One of a closed set of the core, as its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word<T>(pub(crate) T);

impl<T: Closed> Serialize for Word<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.word())
    }
}

impl<T: Closed> JsonSchema for Word<T> {
    fn schema_name() -> Cow<'static, str> {
        T::NAME.into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let words: Vec<&str> = T::all().into_iter().map(T::word).collect();
        json_schema!({ "type": "string", "description": T::ABOUT, "enum": words })
    }
}

impl Closed for Mode {
    const NAME: &'static str = "Mode";
    const ABOUT: &'static str = "`ha.mode` in force.";
    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }
    fn word(self) -> &'static str {
        self.name()
    }
}

impl Closed for link::State {
    const NAME: &'static str = "LinkState";
    const ABOUT: &'static str = "Where the link to a hub stands.";
    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }
    fn word(self) -> &'static str {
        self.label()
    }
}

impl Closed for Unready {
    const NAME: &'static str = "Unready";
    const ABOUT: &'static str = "Why a client of a listener would be refused now.";
    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }
    fn word(self) -> &'static str {
        self.name()
    }
}

impl Closed for RstCode {
    const NAME: &'static str = "RstCode";
    const ABOUT: &'static str = "Why a stream was refused or reset, or a check failed.";
    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }
    fn word(self) -> &'static str {
        self.name()
    }
}

#[cfg(test)]
mod tests;

//! Configuration files: read, substituted, checked, turned into what the
//! machines and the driver run on (semantics 9).
//!
//! [`parse_hub`] and [`parse_agent`] are pure: text and environment are
//! arguments, no file is opened. They report every bad value at once, each
//! with line, column and key; only text that is no YAML, or a list where a
//! mapping belongs, stops at the first. Values from the environment, URLs of
//! the registry and the like never appear in a message (attack 60).

mod agent;
mod ha;
mod hub;
mod limits;
mod raw;
mod selection;
mod subst;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use nowconnect_core::wire::Plane;
use serde::Deserialize;

pub use agent::{AgentSetup, parse_agent};
pub use hub::{AuthSetup, HubSetup, JwksSetup, ListenerBind, MeshListen, MeshTlsFiles, ServerTlsFiles, parse_hub};
pub use subst::Env;
pub use value::{Cidr, ListenTls, Place, Secret, WhenUnavailable, Wire};

use raw::Section;
use value::{Leaf, Scalar};

/// Where status, metrics and health are shown to the operator (semantics 9).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminSetup {
    /// Unix socket, for the owner of the process alone.
    pub socket: Option<PathBuf>,
    /// TCP; beyond loopback only with `token_file`.
    pub bind: Option<SocketAddr>,
    /// File with the bearer token that `bind` asks for; read at each request.
    pub token_file: Option<PathBuf>,
}

/// Largest file that is read, in bytes.
pub const FILE_MAX_BYTES: usize = 1 << 20;

/// How a file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParseOptions {
    /// Unknown keys are warnings instead of errors.
    pub allow_unknown_keys: bool,
}

/// Which process a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `nowconnect hub`.
    Hub,
    /// `nowconnect agent`.
    Agent,
}

/// One thing wrong with a file, or worth saying about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where, when it can be told.
    pub at: Option<Place>,
    /// The key, as in `ha.mesh.peers[1]`; empty for the file as a whole.
    pub key: String,
    /// What was expected, what came, what to change.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = self.at {
            write!(f, "line {}, column {}: ", at.line, at.column)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything wrong with a file, in the order of its lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<Finding>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, finding) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            finding.fmt(f)?;
        }
        Ok(())
    }
}

/// Whose file this is: an agent's has `agent_id`, `hubs` or `connectors`.
///
/// # Errors
/// When the text is not a YAML mapping.
pub fn kind_of(text: &str) -> Result<Kind, ConfigErrors> {
    let keys: raw::TopKeys = read(text)?;
    let agents = ["agent_id", "hubs", "connectors"];
    Ok(if keys.0.iter().any(|k| agents.contains(&k.as_str())) { Kind::Agent } else { Kind::Hub })
}

/// The JSON Schema of a file, for editors.
#[must_use]
pub fn schema(kind: Kind) -> serde_json::Value {
    let generator =
        || schemars::generate::SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true).into_generator();
    match kind {
        Kind::Hub => generator().into_root_schema_for::<raw::HubFile>(),
        Kind::Agent => generator().into_root_schema_for::<raw::AgentFile>(),
    }
    .to_value()
}

/// Every key of a file, as in `ha.mesh.peers[].url`, from its schema.
#[must_use]
pub fn keys(kind: Kind) -> BTreeSet<String> {
    fn walk(schema: &serde_json::Value, path: &str, found: &mut BTreeSet<String>) {
        let mut leaf = true;
        if let Some(properties) = schema.get("properties").and_then(|p| p.as_object()) {
            leaf = false;
            for (name, inner) in properties {
                let inner_path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                walk(inner, &inner_path, found);
            }
        }
        if let Some(items) = schema.get("items") {
            leaf = false;
            walk(items, &format!("{path}[]"), found);
        }
        for branch in schema.get("anyOf").and_then(|a| a.as_array()).into_iter().flatten() {
            if branch.get("properties").is_some() {
                walk(branch, path, found);
            }
        }
        if leaf {
            found.insert(path.to_owned());
        }
    }
    let mut found = BTreeSet::new();
    walk(&schema(kind), "", &mut found);
    found
}

/// Reads text into a file's raw form. Alias bombs, deep nesting and repeated
/// keys are refused by the parser.
fn read<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, ConfigErrors> {
    let whole = |message: String, at| ConfigErrors(vec![Finding { at, key: String::new(), message }]);
    if text.len() > FILE_MAX_BYTES {
        return Err(whole(format!("the file has {} bytes, at most {FILE_MAX_BYTES} are read", text.len()), None));
    }
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        strict_booleans: true,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_depth: 32,
            max_nodes: 100_000,
            max_aliases: 1_000,
            max_documents: 1,
        },
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|e| {
        let at = e.location().and_then(Place::of);
        whole(structural(e.without_snippet(), at.is_some()), at)
    })
}

/// The parser's message in words of this page.
fn structural(e: &serde_saphyr::Error, placed: bool) -> String {
    if let serde_saphyr::Error::DuplicateMappingKey { key, .. } = e {
        let key = key.as_deref().map_or(String::new(), |k| format!(" {:?}", k.chars().take(64).collect::<String>()));
        return format!("the key{key} is written twice; keep one");
    }
    let text = e.to_string();
    for (theirs, ours) in [
        ("expected mapping start", "expected a mapping of keys, got a list or a single value"),
        ("expected sequence start", "expected a list, got a mapping or a single value"),
        ("expected string scalar", "expected a single value, got a mapping or a list"),
        (
            "budget breached",
            "the file says too much once its aliases are expanded: at most 100000 nodes, 1000 aliases and 32 levels are read",
        ),
    ] {
        if text.starts_with(theirs) {
            return ours.to_owned();
        }
    }
    // The place is printed by `Finding`; the parser appends it as well, and for
    // what an alias stands for also where that was written.
    match text.find(" at line ") {
        Some(cut) if placed => text.get(..cut).unwrap_or(&text).to_owned(),
        Some(_) | None => text,
    }
}

/// The state of one check: what was found so far.
struct Check<'a> {
    env: Env<'a>,
    options: ParseOptions,
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
}

impl<'a> Check<'a> {
    fn new(env: Env<'a>, options: ParseOptions) -> Self {
        Self { env, options, errors: Vec::new(), warnings: Vec::new() }
    }

    fn error(&mut self, at: Option<Place>, key: &str, message: impl Into<String>) {
        self.errors.push(Finding { at, key: key.to_owned(), message: message.into() });
    }

    fn warn(&mut self, at: Option<Place>, key: &str, message: impl Into<String>) {
        self.warnings.push(Finding { at, key: key.to_owned(), message: message.into() });
    }

    /// Ends the check: the warnings, or every error.
    fn finish(mut self) -> Result<Vec<Finding>, ConfigErrors> {
        // Stable, so that findings of one place keep the order of the checks.
        let by_place = |f: &Finding| f.at.map_or((u64::MAX, 0), |p| (p.line, p.column));
        self.errors.sort_by_key(by_place);
        self.warnings.sort_by_key(by_place);
        if self.errors.is_empty() { Ok(self.warnings) } else { Err(ConfigErrors(self.errors)) }
    }

    /// The substituted text of a leaf.
    fn text<T>(&mut self, key: &str, leaf: &Leaf<T>) -> Option<String> {
        match subst::expand(&leaf.text, self.env) {
            Ok(text) => Some(text.into_owned()),
            Err(message) => {
                self.error(leaf.at, key, message);
                None
            }
        }
    }

    /// One scalar; `None` when it is wrong, which has been noted.
    fn leaf<T: Scalar>(&mut self, key: &str, leaf: &Leaf<T>) -> Option<T> {
        let text = self.text(key, leaf)?;
        match T::read(&text) {
            Ok(value) => Some(value),
            Err(expected) => {
                let got = if T::SECRET {
                    String::new()
                } else {
                    // What was written, not what the environment made of it.
                    format!(", got {:?}", leaf.text.chars().take(80).collect::<String>())
                };
                self.error(leaf.at, key, format!("{expected}{got}"));
                None
            }
        }
    }

    /// One optional scalar.
    fn value<T: Scalar>(&mut self, key: &str, leaf: Option<&Leaf<T>>) -> Option<T> {
        leaf.and_then(|leaf| self.leaf(key, leaf))
    }

    /// A scalar that must be there.
    fn required<T: Scalar>(&mut self, at: Option<Place>, key: &str, leaf: Option<&Leaf<T>>) -> Option<T> {
        if leaf.is_none() {
            self.error(at, key, "this key is required");
        }
        self.value(key, leaf)
    }

    /// Overwrites `slot` when the key is there.
    fn set<T: Scalar>(&mut self, key: &str, leaf: Option<&Leaf<T>>, slot: &mut T) {
        if let Some(value) = self.value(key, leaf) {
            *slot = value;
        }
    }

    /// Overwrites `slot` with a number inside `bounds`.
    fn number<T>(&mut self, key: &str, leaf: Option<&Leaf<T>>, bounds: RangeInclusive<T>, slot: &mut T)
    where
        T: Scalar + PartialOrd + Copy + fmt::Display,
    {
        if let Some(value) = self.value(key, leaf) {
            if bounds.contains(&value) {
                *slot = value;
            } else {
                let at = leaf.and_then(|l| l.at);
                self.error(at, key, format!("expected {} to {}, got {value}", bounds.start(), bounds.end()));
            }
        }
    }

    /// Overwrites `slot` with a duration inside `bounds`.
    fn duration(
        &mut self,
        key: &str,
        leaf: Option<&Leaf<Duration>>,
        bounds: RangeInclusive<Duration>,
        slot: &mut Duration,
    ) {
        if let Some(value) = self.value(key, leaf) {
            if bounds.contains(&value) {
                *slot = value;
            } else {
                let [low, high, got] = [*bounds.start(), *bounds.end(), value].map(value::show_duration);
                self.error(leaf.and_then(|l| l.at), key, format!("expected {low} to {high}, got {got}"));
            }
        }
    }

    /// Two durations in strict order; noted at whichever of them was written.
    fn ordered(&mut self, small: (&str, Option<Place>, Duration), large: (&str, Option<Place>, Duration)) {
        if small.2 >= large.2 {
            let (named, at) = if small.1.is_some() { (small.0, small.1) } else { (large.0, large.1) };
            self.error(
                at,
                named,
                format!(
                    "{} ({}) must be less than {} ({})",
                    small.0,
                    value::show_duration(small.2),
                    large.0,
                    value::show_duration(large.2)
                ),
            );
        }
    }

    /// Notes the keys a section does not have.
    fn unknown<S: Section>(&mut self, path: &str, section: &S) {
        for key in section.unknown() {
            if key.name.starts_with("x-") {
                continue;
            }
            let shown: String = key.name.chars().take(64).collect();
            let full = if path.is_empty() { shown.clone() } else { format!("{path}.{shown}") };
            if self.options.allow_unknown_keys {
                self.warn(key.at, &full, "unknown key, ignored because of --allow-unknown-keys");
                continue;
            }
            let nearest = S::KEYS
                .iter()
                .map(|known| (strsim::damerau_levenshtein(&shown, known), known))
                .min()
                .filter(|(distance, known)| *distance <= 1 + known.len() / 4);
            let message = match nearest {
                Some((_, known)) => format!("unknown key; did you mean `{known}`?"),
                None => format!("unknown key; expected one of {}", S::KEYS.join(", ")),
            };
            self.error(key.at, &full, message);
        }
    }

    /// Notes every value that occurs twice.
    fn unique<'v>(&mut self, what: &str, values: impl Iterator<Item = (String, Option<Place>, &'v str)>) {
        let mut seen: BTreeMap<&'v str, String> = BTreeMap::new();
        for (key, at, value) in values {
            if let Some(first) = seen.get(value) {
                self.errors.push(Finding {
                    at,
                    message: format!("this {what}, `{value}`, is already used by {first}"),
                    key,
                });
            } else {
                seen.insert(value, key);
            }
        }
    }

    /// A `ws://` or `wss://` URL of what is dialled for one plane; gives host and
    /// whether it is encrypted.
    fn websocket_url(&mut self, at: Option<Place>, key: &str, url: &str, dialled: Plane) -> Option<WebSocketUrl> {
        const EXPECTED: &str = "expected a URL such as wss://hub-b.example.com/mesh";
        let Ok(uri) = url.parse::<http::Uri>() else {
            self.error(at, key, EXPECTED);
            return None;
        };
        let encrypted = match uri.scheme_str() {
            Some("wss") => true,
            Some("ws") => false,
            Some(_) | None => {
                self.error(at, key, format!("{EXPECTED}; the scheme must be wss (or ws, in plain text)"));
                return None;
            }
        };
        let authority = uri.authority().map_or("", http::uri::Authority::as_str);
        let host = uri.host().unwrap_or("");
        if authority.contains('@') || host.is_empty() {
            self.error(at, key, format!("{EXPECTED}; user names in it are not used"));
            return None;
        }
        for (wrong, plane, right) in [("/tunnel", Plane::Mesh, "/mesh"), ("/mesh", Plane::Tunnel, "/tunnel")] {
            if dialled == plane && uri.path().ends_with(wrong) {
                self.error(at, key, format!("hubs answer {wrong} to others: expected a path that ends in {right}"));
            }
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let loopback = bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        Some(WebSocketUrl { encrypted, loopback, host: bare.to_owned() })
    }

    fn admin(&mut self, section: Option<&raw::AdminSection>) -> AdminSetup {
        let Some(s) = section else { return AdminSetup::default() };
        self.unknown("admin", s);
        let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
        let setup = AdminSetup {
            socket: self.value("admin.socket", s.socket.as_ref()).and_then(path),
            bind: self.value("admin.bind", s.bind.as_ref()),
            token_file: self.value("admin.token_file", s.token_file.as_ref()).and_then(path),
        };
        if let (Some(addr), None) = (setup.bind, &setup.token_file)
            && !addr.ip().to_canonical().is_loopback()
        {
            let at = s.bind.as_ref().and_then(|l| l.at);
            self.error(
                at,
                "admin.bind",
                format!("{addr} is reachable from other machines: set admin.token_file, or use a loopback address"),
            );
        }
        if let (None, Some(_)) = (setup.bind, &setup.token_file) {
            let at = s.token_file.as_ref().and_then(|l| l.at);
            self.warn(at, "admin.token_file", "guards admin.bind, which is absent; admin.socket asks for no token");
        }
        setup
    }

    fn liveness(&mut self, section: Option<&raw::LivenessSection>, slot: &mut nowconnect_core::config::Liveness) {
        let Some(s) = section else { return };
        self.unknown("liveness", s);
        self.duration("liveness.ping", s.ping.as_ref(), MS_50..=MINUTE, &mut slot.ping);
        self.duration("liveness.suspect", s.suspect.as_ref(), MS_50..=2 * MINUTE, &mut slot.suspect);
        self.duration("liveness.dead", s.dead.as_ref(), MS_50..=5 * MINUTE, &mut slot.dead);
        let place = |leaf: &Option<Leaf<Duration>>| leaf.as_ref().and_then(|l| l.at);
        let suspect = ("liveness.suspect", place(&s.suspect), slot.suspect);
        self.ordered(("liveness.ping", place(&s.ping), slot.ping), suspect);
        self.ordered(suspect, ("liveness.dead", place(&s.dead), slot.dead));
    }
}

struct WebSocketUrl {
    encrypted: bool,
    loopback: bool,
    host: String,
}

const MS_50: Duration = Duration::from_millis(50);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Reads a duration as configuration files write it.
///
/// # Errors
/// What was expected.
pub fn read_duration(text: &str) -> Result<Duration, String> {
    Duration::read(text).map_err(std::borrow::Cow::into_owned)
}

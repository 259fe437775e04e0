//! An agent's file, checked. The rules it shares with a hub's (liveness,
//! windows, budget) live beside the hub's. Opens no file.

use std::path::PathBuf;
use std::time::Duration;

use nowconnect_core::config::{AgentConfig, Backoff, ConnectorConfig, Limits, Liveness};
use nowconnect_core::id::AgentId;
use nowconnect_core::route::WEIGHT_MAX;
use nowconnect_core::wire::Plane;

use super::hub::{BUDGET_MIN, place};
use super::limits::SharedLimits;
use super::raw::{self, AgentFile};
use super::subst::Env;
use super::value::{At, Leaf, Milli, Wire};
use super::{AdminSetup, Check, ConfigErrors, Finding, MINUTE, MS_50, ParseOptions, SECOND, read, selection};

/// Most connectors of one agent (attack 53).
const CONNECTORS_MAX: usize = 256;

/// Everything `nowconnect agent` runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSetup {
    /// For the core.
    pub core: AgentConfig,
    /// File with the token; re-read when it changes.
    pub token_file: PathBuf,
    /// Encodings offered to hubs.
    pub wire: Wire,
    /// CAs of the hubs; the system's roots when absent.
    pub tls_ca_bundle: Option<PathBuf>,
    /// Status, metrics and health for the operator.
    pub admin: AdminSetup,
    /// `ws://` hubs were permitted.
    pub insecure_allow_plaintext: bool,
    /// Whether the file gives `limits.memory_budget_bytes`; the default bows
    /// to the container's memory limit ([`AgentSetup::fit_budget`]).
    pub memory_budget_given: bool,
    /// Worth saying, none of it fatal.
    pub warnings: Vec<Finding>,
}

impl AgentSetup {
    /// Lowers a defaulted budget to half of the container's memory limit
    /// (semantics 3).
    pub fn fit_budget(&mut self, container_limit: Option<u64>) {
        if let (false, Some(limit)) = (self.memory_budget_given, container_limit) {
            let budget = &mut self.core.limits.memory_budget_bytes;
            *budget = (*budget).min((limit / 2).max(BUDGET_MIN));
        }
    }
}

/// Reads and checks an agent's file.
///
/// # Errors
/// Everything wrong with it, in the order of its lines.
pub fn parse_agent(text: &str, env: Env<'_>, options: ParseOptions) -> Result<AgentSetup, ConfigErrors> {
    let file: AgentFile = read(text)?;
    let mut check = Check::new(env, options);
    check.unknown("", &file);
    let agent_id = check.required(None, "agent_id", file.agent_id.as_ref());
    let token_file = check.required(None, "token_file", file.token_file.as_ref());
    let mut core = AgentConfig {
        // Replaced below; a missing id has been noted and ends the check.
        agent_id: agent_id.unwrap_or_else(|| AgentId::new("agent").expect("a constant name")),
        hubs: Vec::new(),
        parallel: 1,
        connectors: Vec::new(),
        limits: Limits::default(),
        liveness: Liveness::default(),
        resume_window: Duration::from_secs(30),
        backoff: Backoff::default(),
        // Below a hub's open.attempt_timeout (2 s), so that a target that does
        // not answer is a definite no to the hub and not a time-out of its own.
        target_timeout: Duration::from_millis(1500),
        handshake_timeout: Duration::from_secs(5),
    };
    let mut insecure = false;
    check.set("insecure_allow_plaintext", file.insecure_allow_plaintext.as_ref(), &mut insecure);
    if insecure {
        let at = place(file.insecure_allow_plaintext.as_ref());
        check.warn(at, "insecure_allow_plaintext", "tokens and payload may cross the network unencrypted");
    }
    hubs(&mut check, &mut core, file.hubs.as_deref(), insecure);
    core.parallel = if core.hubs.len() > 1 { 2 } else { 1 };
    check.number("parallel", file.parallel.as_ref(), 1..=64, &mut core.parallel);
    let listed = core.hubs.len();
    if file.parallel.is_some() && usize::from(core.parallel) > listed && listed > 0 {
        let text = format!("an agent has one tunnel to each of its hubs, and `hubs` lists {listed}");
        check.warn(place(file.parallel.as_ref()), "parallel", text);
    }
    let tls = file.tls.unwrap_or_default();
    check.unknown("tls", &tls);
    let tls_ca_bundle = check.value("tls.ca_bundle", tls.ca_bundle.as_ref()).map(PathBuf::from);
    let mut wire = Wire::default();
    check.set("wire", file.wire.as_ref(), &mut wire);
    connectors(&mut check, &mut core, file.connectors.as_deref());
    reconnect(&mut check, &mut core.backoff, &file.reconnect.unwrap_or_default());
    let admin = check.admin(file.admin.as_ref());
    check.liveness(file.liveness.as_ref(), &mut core.liveness);
    check.duration("resume_window", file.resume_window.as_ref(), SECOND..=10 * MINUTE, &mut core.resume_window);
    check.duration(
        "handshake_timeout",
        file.handshake_timeout.as_ref(),
        2 * MS_50..=MINUTE,
        &mut core.handshake_timeout,
    );
    check.duration("target_timeout", file.target_timeout.as_ref(), MS_50..=MINUTE, &mut core.target_timeout);
    let s = file.limits.unwrap_or_default();
    check.unknown("limits", &s);
    SharedLimits {
        budget: s.memory_budget_bytes.as_ref(),
        window_initial: s.stream_window_initial_bytes.as_ref(),
        window_max: s.stream_window_max_bytes.as_ref(),
        max_streams: s.max_streams.as_ref(),
        tombstones: s.tombstones.as_ref(),
        max_pending_opens: s.max_pending_opens.as_ref(),
    }
    .apply(&mut check, &mut core.limits);
    let limits = &mut core.limits;
    check.number("limits.send_queue_depth", s.send_queue_depth.as_ref(), 16..=1_000_000, &mut limits.send_queue_depth);
    check.number("limits.inflight_bytes", s.inflight_bytes.as_ref(), 256 << 10..=1 << 30, &mut limits.inflight_bytes);

    let warnings = check.finish()?;
    Ok(AgentSetup {
        core,
        token_file: token_file.unwrap_or_default().into(),
        wire,
        tls_ca_bundle,
        admin,
        insecure_allow_plaintext: insecure,
        memory_budget_given: s.memory_budget_bytes.is_some(),
        warnings,
    })
}

fn hubs(check: &mut Check<'_>, core: &mut AgentConfig, urls: Option<&[Leaf<String>]>, insecure: bool) {
    let urls = urls.unwrap_or_default();
    if urls.is_empty() {
        check.error(None, "hubs", "at least one hub is required, such as wss://hub-a.example.com/tunnel");
    }
    let mut places = Vec::new();
    for (i, leaf) in urls.iter().enumerate() {
        let key = format!("hubs[{i}]");
        let Some(url) = check.leaf(&key, leaf) else { continue };
        let Some(parsed) = check.websocket_url(leaf.at, &key, &url, Plane::Tunnel) else { continue };
        if !parsed.encrypted && !insecure {
            check.error(leaf.at, &key, "ws:// is plain text: use wss://, or set insecure_allow_plaintext: true");
        }
        places.push((key, leaf.at, url.clone()));
        core.hubs.push(url);
    }
    check.unique("URL", places.iter().map(|(key, at, url)| (key.clone(), *at, url.as_str())));
}

fn connectors(check: &mut Check<'_>, core: &mut AgentConfig, sections: Option<&[At<raw::ConnectorSection>]>) {
    let sections = sections.unwrap_or_default();
    if sections.is_empty() || sections.len() > CONNECTORS_MAX {
        let got = sections.len();
        check.error(
            sections.first().and_then(|s| s.at),
            "connectors",
            format!(
                "expected 1 to {CONNECTORS_MAX} connectors such as {{name: ldap, target: '10.0.0.5:389'}}, got {got}"
            ),
        );
    }
    let mut places = Vec::new();
    for (i, At { value: s, at }) in sections.iter().enumerate() {
        let path = format!("connectors[{i}]");
        let key = |name: &str| format!("{path}.{name}");
        check.unknown(&path, s);
        let name = check.required(*at, &key("name"), s.name.as_ref());
        let target = check.required(*at, &key("target"), s.target.as_ref());
        if let Some(target) = &target
            && !host_and_port(target)
        {
            check.error(
                place(s.target.as_ref()),
                &key("target"),
                "expected HOST:PORT, such as 10.0.0.5:389 or ldap.example.com:389",
            );
        }
        let mut priority = 0;
        check.set(&key("priority"), s.priority.as_ref(), &mut priority);
        let mut weight = 1;
        check.number(&key("weight"), s.weight.as_ref(), 1..=WEIGHT_MAX, &mut weight);
        let health = selection::health(check, &path, *at, s.health.as_ref());
        places.extend(name.clone().map(|name| (key("name"), place(s.name.as_ref()), name)));
        if let (Some(name), Some(target)) = (name, target) {
            core.connectors.push(ConnectorConfig { name, target, priority, weight, health });
        }
    }
    check.unique("name", places.iter().map(|(key, at, name)| (key.clone(), *at, name.as_str())));
}

fn host_and_port(target: &str) -> bool {
    let Some((host, port)) = target.rsplit_once(':') else { return false };
    let named = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    let bracketed = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .is_some_and(|h| h.parse::<std::net::Ipv6Addr>().is_ok());
    (named || bracketed) && port.parse::<u16>().is_ok_and(|p| p != 0)
}

fn reconnect(check: &mut Check<'_>, backoff: &mut Backoff, s: &raw::ReconnectSection) {
    check.unknown("reconnect", s);
    let initial = s.initial_delay.as_ref();
    check.duration("reconnect.initial_delay", initial, MS_50..=MINUTE, &mut backoff.initial);
    let max = s.max_delay.as_ref();
    check.duration("reconnect.max_delay", max, MS_50..=60 * MINUTE, &mut backoff.max);
    if backoff.initial > backoff.max {
        check.error(place(initial).or(place(max)), "reconnect.initial_delay", "must not exceed reconnect.max_delay");
    }
    let mut multiplier = Milli(backoff.multiplier_milli);
    check.number("reconnect.multiplier", s.multiplier.as_ref(), Milli(1000)..=Milli(10_000), &mut multiplier);
    backoff.multiplier_milli = multiplier.0;
    let mut jitter = Milli(backoff.jitter_milli);
    check.number("reconnect.jitter", s.jitter.as_ref(), Milli(0)..=Milli(1000), &mut jitter);
    backoff.jitter_milli = jitter.0;
    check.set("reconnect.max_retries", s.max_retries.as_ref(), &mut backoff.max_retries);
    check.duration(
        "reconnect.max_delay_while_streams_wait",
        s.max_delay_while_streams_wait.as_ref(),
        MS_50..=MINUTE,
        &mut backoff.max_while_streams_wait,
    );
}

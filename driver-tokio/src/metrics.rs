//! Everything `/metrics` shows. The core keeps plain totals; whoever serves a
//! scrape copies them into a [`Snapshot`] and hands it to [`Metrics::render`],
//! so that nothing on the data path touches this module. Only what cannot be
//! copied afterwards, the histograms, is observed through handles resolved once
//! at the start.
//!
//! Keeps: B10. Families and their label names are a closed table here; label
//! values come from closed sets and from the configuration, never from a peer.
//! `docs/metrics.md` is checked against the table in both directions.
//!
//! Must not know: the hub, sockets, HTTP.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use nowconnect_core::registry::{RegistryError, RegistryOp, RegistryResult};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder};

/// What a family is to Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A total since the start of the process.
    Counter,
    /// A level.
    Gauge,
    /// A level given in millionths, shown as a fraction.
    Fraction,
}

macro_rules! families {
    ($($(#[$doc:meta])* $v:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        /// Every family a [`Snapshot`] fills.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Family { $(#[doc = $help] $v),* }

        impl Family {
            /// Every family, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$v),*];

            /// The name in the exposition.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$v => $name),* }
            }
            /// Counter or gauge.
            #[must_use]
            pub const fn kind(self) -> Kind {
                match self { $(Self::$v => Kind::$kind),* }
            }
            /// Label names; samples give their values in this order.
            #[must_use]
            pub const fn labels(self) -> &'static [&'static str] {
                match self { $(Self::$v => &[$($label),*]),* }
            }
            /// One sentence of explanation.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$v => $help),* }
            }
        }
    };
}

families! {
    StreamsTotal = Counter "nowconnect_streams_total" ["listener", "path"] "Streams opened, by listener and path (local or mesh).";
    ShadowDecisions = Counter "nowconnect_shadow_decisions_total" ["listener", "outcome"] "In mode shadow: clients by what active would have done with them, by listener and outcome (local, mesh, or the reason of the refusal).";
    Streams = Gauge "nowconnect_streams" [] "Streams open now.";
    StreamBytes = Counter "nowconnect_stream_bytes_total" ["direction"] "Payload bytes at client and target sockets: in (read) and out (written).";
    OpenFailures = Counter "nowconnect_open_failures_total" ["listener", "reason"] "Streams that could not be opened, by listener (at an agent: connector) and reason.";
    Ejections = Counter "nowconnect_ejections_total" ["connector", "reason"] "Candidates ejected because opens failed there, by connector and reason of the last failure.";
    CandidatesEjected = Gauge "nowconnect_candidates_ejected" ["connector"] "Candidates of each connector of a listener that are ejected or on trial now.";
    TargetUp = Gauge "nowconnect_target_up" ["connector"] "1 while the target of a connector with connectors[].health passes its checks, else 0.";
    TargetChecks = Counter "nowconnect_target_checks_total" ["connector", "result"] "Checks of targets, by result: passed or failed.";
    StreamsCarried = Counter "nowconnect_streams_carried_total" [] "Streams taken from another node: by a hub to its tunnel, by an agent to a target.";
    StreamEnds = Counter "nowconnect_stream_ends_total" ["cause"] "Streams that ended at this node, by cause: FINISHED or the reason of the reset.";
    MeshLinks = Gauge "nowconnect_mesh_links" ["peer", "state"] "Links to each peer in each state (0 or 1): connecting, established, backoff, closed; peer is the host:port of its URL until its name is known; in mode off only while a link is used up.";
    MeshPeerAbsent = Gauge "nowconnect_mesh_peer_absent" ["peer"] "1 while a configured peer without a link holds no lease either: it left, or is dead for longer than its lease.";
    Tunnels = Gauge "nowconnect_tunnels" [] "Tunnels established now.";
    MeshFrames = Counter "nowconnect_mesh_frames_total" ["dir", "type"] "Frames on links, by direction (in or out) and type.";
    TunnelFrames = Counter "nowconnect_tunnel_frames_total" ["dir", "type"] "Frames on tunnels, by direction (in or out) and type.";
    SessionQueueFrames = Gauge "nowconnect_session_queue_frames" ["plane", "peer"] "Frames waiting or in flight, for each link and for all tunnels together (no peer).";
    SessionInflightBytes = Gauge "nowconnect_session_inflight_bytes" ["plane", "peer"] "Encoded bytes sent and not acknowledged, for each link and for all tunnels together (no peer).";
    SessionsSuspended = Counter "nowconnect_sessions_suspended_total" ["plane"] "Sessions whose connection broke while they live on.";
    SessionsResumed = Counter "nowconnect_sessions_resumed_total" ["plane"] "Sessions that continued on a new connection.";
    SessionsLost = Counter "nowconnect_sessions_lost_total" ["plane"] "Sessions that are over, for whatever reason.";
    OwnerEpochMismatch = Counter "nowconnect_owner_epoch_mismatch_total" [] "OPEN frames refused because their epoch and nonce are not the attachment's.";
    FramesRejected = Counter "nowconnect_frames_rejected_total" ["reason"] "Frames of streams dropped without effect: their stream is bound to another session (session) or under another epoch (epoch), is none here (unknown), or they say nothing new or nothing possible (glitch).";
    CidDedupDropped = Counter "nowconnect_cid_dedup_dropped_total" [] "Duplicate frames dropped.";
    MeshBackpressureDrops = Counter "nowconnect_mesh_backpressure_drops_total" ["peer", "reason"] "Streams reset because a peer ignored its credit limit.";
    MeshBackpressure = Counter "nowconnect_mesh_backpressure_total" ["reason"] "Times a source was paused for lack of credit, queue or in-flight room.";
    SessionsEstablished = Counter "nowconnect_sessions_established_total" ["plane"] "Sessions established anew; a resumption is none.";
    Sessions = Gauge "nowconnect_sessions" ["plane", "state"] "Sessions now, connected or suspended.";
    SessionBytes = Counter "nowconnect_session_bytes_total" ["plane", "dir"] "Encoded bytes of sessions, by direction (in or out), replays included.";
    StreamsSuspended = Gauge "nowconnect_streams_suspended" [] "Streams that wait for an interrupted session now.";
    OwnershipChanges = Counter "nowconnect_ownership_changes_total" ["change", "cause"] "Attachments gained (claim, provisional, reclaim, takeover) and lost (code of the session's end) here.";
    LeaseAge = Fraction "nowconnect_registry_lease_age_seconds" [] "Seconds since the renewal that this hub's lease counts from; since the start when it holds none.";
    LimitUsed = Fraction "nowconnect_limit_used_ratio" ["limit", "listener"] "Used share of each limit, 0 to 1; of limits of a session, in the fullest one.";
    CertificateNotAfter = Gauge "nowconnect_certificate_not_after_timestamp_seconds" ["use"] "End of the certificate in use that ends first, seconds since 1970, by use: http, mesh, mesh_ca, tunnel_ca, jwks_ca.";
    TokenNotAfter = Gauge "nowconnect_token_not_after_timestamp_seconds" ["holder"] "End of the token, seconds since 1970: an agent's own (self); of those attached to a hub the one that ends first (attached).";
    Readiness = Gauge "nowconnect_readiness" ["state"] "State of readiness (0 or 1): ready, degraded, draining.";
    ReadinessReason = Gauge "nowconnect_readiness_reason" ["reason"] "Reasons not to be ready (0 or 1), those of /readyz.";
    ListenerReady = Gauge "nowconnect_listener_ready" ["listener"] "1 while a client of this listener could be carried.";
    ListenerListening = Gauge "nowconnect_listener_listening" ["listener"] "1 while the listening socket is open (listeners[].when_unavailable).";
    MeshLinkReconnects = Counter "nowconnect_mesh_link_reconnects_total" [] "Links established again after a loss.";
    MeshLinkErrors = Counter "nowconnect_mesh_link_errors_total" [] "Mesh dials and connections that failed.";
    MemoryHeld = Gauge "nowconnect_memory_held_bytes" [] "Payload bytes this process holds now.";
    MemoryBudget = Gauge "nowconnect_memory_budget_bytes" [] "Payload bytes this process may hold (limits.memory_budget_bytes).";
    MeshRttMs = Gauge "nowconnect_mesh_rtt_ms" ["peer"] "Latest round trip to each peer in milliseconds, rounded up; with metrics.legacy_names only.";
    ProtocolErrors = Counter "nowconnect_protocol_errors_total" ["plane", "kind"] "Sessions closed because a peer broke the protocol.";
    HandshakeFailures = Counter "nowconnect_handshake_failures_total" ["plane", "cause"] "Handshakes on tunnels and links that came to nothing, by the code of their end.";
    AuthRejects = Counter "nowconnect_auth_rejects_total" ["reason"] "Connections refused before or during authentication.";
    HttpThrottled = Counter "nowconnect_http_throttled_total" [] "Connections to http.bind, ha.mesh.listen and metrics.bind that had to wait because more came than limits.handshake_rate, or from one address than its share.";
    JwksFetches = Counter "nowconnect_jwks_fetches_total" ["result"] "Fetches of auth.jwt.jwks_url: ok, connect, tls, timeout, http, status, redirect, too_large or content.";
    JwksAge = Gauge "nowconnect_jwks_age_seconds" ["source"] "Age of the key set in use, by where it comes from (url).";
    RegistryHealthy = Gauge "nowconnect_registry_healthy" [] "1 while this hub's lease is renewed in time, else 0.";
    ReplicaIdConflicts = Counter "nowconnect_replica_id_conflicts_total" [] "Renewals refused because another run of this ha.replica_id holds the lease.";
    DuplicateAgents = Counter "nowconnect_duplicate_agents_total" [] "Times two live processes with one agent_id took it from each other three times within 60 s.";
    DuplicateAgentRefusals = Counter "nowconnect_duplicate_agent_refusals_total" [] "Handshakes refused because another live process holds the agent_id.";
    ConfigReloads = Counter "nowconnect_config_reloads_total" ["result"] "Reloads of the configuration file: applied or refused.";
    ConfigLastReload = Gauge "nowconnect_config_last_reload_success_timestamp_seconds" [] "When the configuration in force was read, seconds since 1970.";
    CertificateReloads = Counter "nowconnect_certificate_reloads_total" ["result"] "Certificates, keys and CA bundles read anew because a file changed: applied, or refused with the last good set kept.";
    RegistryCorruptValues = Counter "nowconnect_registry_corrupt_values_total" [] "Values in the registry that were no records of ours and counted as absent.";
}

/// Values of every family at one moment: plain numbers. Adding to the same
/// family and labels twice sums, so shards can add one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    samples: BTreeMap<(Family, Vec<String>), u64>,
    sparse: bool,
}

impl Snapshot {
    /// A snapshot that shows nothing but what is added: an agent has no mesh
    /// and no registry, and must not say 0 for them.
    #[must_use]
    pub fn sparse() -> Self {
        Self { sparse: true, ..Self::default() }
    }

    /// Adds `value` to the sample of `family` with these label values, in the
    /// order of [`Family::labels`]. A wrong number of labels is a defect of the
    /// caller: it fails debug builds, otherwise missing ones are empty.
    pub fn add(&mut self, family: Family, labels: &[&str], value: u64) {
        debug_assert_eq!(labels.len(), family.labels().len(), "labels of {}", family.name());
        let labels = labels.iter().map(|l| (*l).to_owned()).collect();
        let sample = self.samples.entry((family, labels)).or_default();
        *sample = sample.saturating_add(value);
    }

    /// Adds `part / whole` to a sample of a [`Kind::Fraction`] family.
    pub fn add_share(&mut self, family: Family, labels: &[&str], part: u64, whole: u64) {
        let millionths = u128::from(part) * 1_000_000 / u128::from(whole.max(1));
        self.add(family, labels, u64::try_from(millionths).unwrap_or(u64::MAX));
    }

    fn families(&self) -> Vec<MetricFamily> {
        let mut by_family: BTreeMap<Family, Vec<Metric>> = BTreeMap::new();
        for ((family, labels), value) in &self.samples {
            by_family.entry(*family).or_default().push(sample(*family, labels, *value));
        }
        // What has no labels exists from the start, so that rate() sees its first step.
        for family in Family::ALL.iter().filter(|f| f.labels().is_empty() && !self.sparse) {
            by_family.entry(*family).or_insert_with(|| vec![sample(*family, &[], 0)]);
        }
        let describe = |(family, metrics): (Family, Vec<Metric>)| {
            let mut out = MetricFamily::default();
            out.set_name(family.name().to_owned());
            out.set_help(family.help().to_owned());
            out.set_field_type(match family.kind() {
                Kind::Counter => MetricType::COUNTER,
                Kind::Gauge | Kind::Fraction => MetricType::GAUGE,
            });
            out.set_metric(metrics);
            out
        };
        by_family.into_iter().map(describe).collect()
    }
}

fn sample(family: Family, labels: &[String], value: u64) -> Metric {
    let pair = |(name, value): (&&str, &String)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value(value.clone());
        pair
    };
    let mut metric = Metric::from_label(family.labels().iter().zip(labels).map(pair).collect());
    let value = if family.kind() == Kind::Fraction { value as f64 / 1e6 } else { value as f64 };
    match family.kind() {
        Kind::Counter => {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        Kind::Gauge | Kind::Fraction => {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
    }
    metric
}

/// The name of an operation in metrics and logs.
#[must_use]
pub const fn op_name(op: &RegistryOp) -> &'static str {
    match op {
        RegistryOp::Renew { .. } => "renew",
        RegistryOp::Resign { .. } => "resign",
        RegistryOp::Claim(_) => "claim",
        RegistryOp::SetConnectors { .. } => "set_connectors",
        RegistryOp::Release { .. } => "release",
        RegistryOp::Lookup { .. } => "lookup",
        RegistryOp::Agent { .. } => "agent",
        RegistryOp::Leases { .. } => "leases",
        RegistryOp::Sweep => "sweep",
    }
}

/// Seconds: half a millisecond on one machine to the longest open.timeout.
const OPEN_BUCKETS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Seconds: a loopback to a satellite.
const RTT_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// The histograms, and the rendering of everything.
pub struct Metrics {
    registry: Registry,
    open: HistogramVec,
    mesh_rtt: Histogram,
    tunnel_rtt: Histogram,
    registry_seconds: HistogramVec,
    registry_errors: IntCounterVec,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics(..)")
    }
}

impl Metrics {
    /// The metrics of a hub's process.
    ///
    /// # Errors
    /// Only if a name or label of the fixed set above is not valid, which a test
    /// excludes.
    pub fn new() -> Result<Self, prometheus::Error> {
        Self::shown(true)
    }

    /// Those of an agent's: without opens of clients, mesh and registry.
    ///
    /// # Errors
    /// As [`Metrics::new`].
    pub fn of_agent() -> Result<Self, prometheus::Error> {
        Self::shown(false)
    }

    fn shown(hub: bool) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        // What is not shown goes to a registry that nobody gathers.
        let hub_only = if hub { registry.clone() } else { Registry::new() };
        let histogram =
            |registry: &Registry, name: &str, help: &str, buckets: &[f64]| -> Result<Histogram, prometheus::Error> {
                let h = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
                registry.register(Box::new(h.clone()))?;
                Ok(h)
            };
        let open = HistogramVec::new(
            HistogramOpts::new(
                "nowconnect_open_seconds",
                "Time from a client's connection to the target's, for streams that opened, by path (local or mesh).",
            )
            .buckets(OPEN_BUCKETS.to_vec()),
            &["path"],
        )?;
        for path in ["local", "mesh"] {
            // Shown from the start.
            let _ = open.with_label_values(&[path]);
        }
        hub_only.register(Box::new(open.clone()))?;
        let mesh_rtt =
            histogram(&hub_only, "nowconnect_mesh_rtt_seconds", "Round trips of PING on links.", RTT_BUCKETS)?;
        let tunnel_rtt =
            histogram(&registry, "nowconnect_tunnel_rtt_seconds", "Round trips of PING on tunnels.", RTT_BUCKETS)?;
        let registry_seconds = HistogramVec::new(
            HistogramOpts::new(
                "nowconnect_registry_seconds",
                "Duration of registry operations, whatever their outcome.",
            )
            .buckets(RTT_BUCKETS.to_vec()),
            &["op"],
        )?;
        hub_only.register(Box::new(registry_seconds.clone()))?;
        let registry_errors = IntCounterVec::new(
            Opts::new(
                "nowconnect_registry_errors_total",
                "Registry operations without a reply, by outcome: definite (did not happen) or unknown (may have).",
            ),
            &["op", "outcome"],
        )?;
        hub_only.register(Box::new(registry_errors.clone()))?;
        let build = prometheus::IntGaugeVec::new(
            Opts::new("nowconnect_build_info", "Always 1; the version of the binary."),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build))?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self { registry, open, mesh_rtt, tunnel_rtt, registry_seconds, registry_errors })
    }

    /// A stream is open; `took` counts from the client's connection.
    pub fn observe_open(&self, local: bool, took: Duration) {
        let path = if local { "local" } else { "mesh" };
        self.open.with_label_values(&[path]).observe(took.as_secs_f64());
    }

    /// A PING of a link came back.
    pub fn observe_mesh_rtt(&self, rtt: Duration) {
        self.mesh_rtt.observe(rtt.as_secs_f64());
    }

    /// A PING of a tunnel came back.
    pub fn observe_tunnel_rtt(&self, rtt: Duration) {
        self.tunnel_rtt.observe(rtt.as_secs_f64());
    }

    /// A registry operation ended.
    pub fn observe_registry(&self, op: &RegistryOp, took: Duration, result: &RegistryResult) {
        let op = op_name(op);
        self.registry_seconds.with_label_values(&[op]).observe(took.as_secs_f64());
        let outcome = match result {
            Ok(_) => return,
            Err(RegistryError::Definite(_)) => "definite",
            Err(RegistryError::Unknown(_)) => "unknown",
        };
        self.registry_errors.with_label_values(&[op, outcome]).inc();
    }

    /// The exposition: its content type and its bytes.
    ///
    /// # Errors
    /// When encoding fails, which no value can cause.
    pub fn render(&self, snapshot: &Snapshot) -> Result<(&'static str, Vec<u8>), prometheus::Error> {
        let mut families = self.registry.gather();
        families.extend(snapshot.families());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        let mut out = Vec::with_capacity(16 << 10);
        TextEncoder::new().encode(&families, &mut out)?;
        Ok((prometheus::TEXT_FORMAT, out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Name, type, labels: of every family rendered once with every sample.
    fn rendered() -> (BTreeSet<(String, String, String)>, String) {
        let metrics = Metrics::new().unwrap();
        let mut snapshot = Snapshot::default();
        for family in Family::ALL {
            let labels: Vec<&str> = family.labels().iter().map(|_| "x\"\n").collect();
            snapshot.add(*family, &labels, 3);
        }
        metrics.observe_open(true, Duration::from_millis(3));
        let failed = Err(RegistryError::Unknown("no answer".to_owned()));
        metrics.observe_registry(&RegistryOp::Sweep, Duration::from_millis(1), &failed);
        let (content_type, bytes) = metrics.render(&snapshot).unwrap();
        assert!(content_type.starts_with("text/plain; version=0.0.4"));
        let text = String::from_utf8(bytes).unwrap();
        let mut out = BTreeSet::new();
        for line in text.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            let of_family = |l: &&str| {
                l.strip_prefix(name).is_some_and(|rest| {
                    let rest = if kind == "histogram" { rest.strip_prefix("_count").unwrap_or("?") } else { rest };
                    rest.starts_with(['{', ' '])
                })
            };
            let sample = text.lines().find(of_family).unwrap_or_else(|| panic!("no sample of {name}"));
            let labels: Vec<&str> = match sample.split_once('{') {
                None => Vec::new(),
                Some((_, rest)) => rest.split("=\"").filter_map(|part| part.rsplit([',', '{']).next()).collect(),
            };
            let labels: Vec<&str> = labels.into_iter().filter(|l| !l.contains('"')).collect();
            out.insert((name.to_owned(), kind.to_owned(), labels.join(", ")));
        }
        (out, text)
    }

    #[test]
    fn the_documentation_names_exactly_what_is_rendered() {
        let mut documented = BTreeSet::new();
        for line in include_str!("../../docs/metrics.md").lines().filter(|l| l.starts_with("| `")) {
            let cells: Vec<String> = line.trim_matches('|').split('|').map(|c| c.trim().replace('`', "")).collect();
            assert_eq!(cells.len(), 5, "{line}");
            assert!(cells[3].len() > 10 && !cells[4].is_empty(), "expected a meaning, and when to worry: {line}");
            assert!(documented.insert((cells[0].clone(), cells[1].clone(), cells[2].clone())), "twice: {line}");
            if let Some(family) = Family::ALL.iter().find(|f| f.name() == cells[0]) {
                assert_eq!(cells[3], family.help(), "the meaning in docs/metrics.md and the HELP text");
            }
        }
        let (rendered, _) = rendered();
        let undocumented: Vec<_> = rendered.difference(&documented).collect();
        let imaginary: Vec<_> = documented.difference(&rendered).collect();
        assert!(
            undocumented.is_empty() && imaginary.is_empty(),
            "not in docs: {undocumented:#?}\nnot rendered: {imaginary:#?}"
        );
    }

    #[test]
    fn samples_are_summed_escaped_and_exact() {
        let metrics = Metrics::new().unwrap();
        let mut snapshot = Snapshot::default();
        snapshot.add(Family::StreamsTotal, &["l1", "mesh"], 40);
        snapshot.add(Family::StreamsTotal, &["l1", "mesh"], 2);
        snapshot.add(Family::StreamsTotal, &["l\"2", "local"], 9_007_199_254_740_991);
        let (_, bytes) = metrics.render(&snapshot).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        for line in [
            "nowconnect_streams_total{listener=\"l1\",path=\"mesh\"} 42",
            "nowconnect_streams_total{listener=\"l\\\"2\",path=\"local\"} 9007199254740991",
            "nowconnect_cid_dedup_dropped_total 0",
            "# TYPE nowconnect_streams_total counter",
        ] {
            assert!(text.lines().any(|l| l == line), "expected {line} in\n{text}");
        }
        assert!(!text.contains("nowconnect_mesh_links{"), "no sample was given");
    }

    #[test]
    fn names_follow_the_conventions() {
        let (rendered, _) = rendered();
        for (name, kind, _) in rendered {
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            assert!(name.starts_with("nowconnect_") || name.starts_with("process_"), "{name}");
        }
    }
}

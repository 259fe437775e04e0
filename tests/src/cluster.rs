//! A running system: redis-server, hubs, one agent, and on demand TCP proxies
//! where the network would be. Everything is configured through files as an
//! operator would write them, lives in one temporary directory and is killed
//! when dropped.
//!
//! Hub 0 is `hub-a`, hub 1 `hub-b`. The agent attaches to hub 0 alone unless
//! told otherwise, so a client of hub 1 always crosses the mesh.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tempfile::TempDir;

use crate::certs::{Authority, Files};
use crate::http;
use crate::ingress::Ingress;
use crate::metrics::Metrics;
use crate::ports::Port;
use crate::process::{Process, nowconnect};
use crate::proxy::Proxy;
use crate::redis::Redis;
use crate::token;
use crate::wait::{PATIENCE, eventually};

/// Which encoding the sessions speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// JSON text.
    V1,
    /// Binary.
    V2,
}

impl Wire {
    /// The word in the configuration and the end of the subprotocol's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// What to start. The default: two hubs, plain, v2, agent attached to hub 0.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of hubs.
    pub hubs: usize,
    /// Encoding of tunnels and links.
    pub wire: Wire,
    /// TLS on tunnels, mutual TLS between hubs.
    pub tls: bool,
    /// With `tls`: an ingress ends it in front of each hub's mesh port.
    pub ingress: bool,
    /// Keys added under `auth.jwt` of every hub, each with a comma before it.
    pub jwt_extra: String,
    /// Services: connector (and listener) name and target.
    pub connectors: Vec<(String, String)>,
    /// Keys added to each of them at the agent, each with a comma before it.
    pub connector_extra: String,
    /// Listeners whose connector only a [further agent](Cluster::further_agent) has.
    pub foreign: Vec<String>,
    /// The hubs the agent knows.
    pub attach: Vec<usize>,
    /// Attachments the agent keeps.
    pub parallel: usize,
    /// Put a proxy between the agent and each of its hubs.
    pub tunnel_proxy: bool,
    /// Put a proxy in front of each hub for its peers.
    pub mesh_proxy: bool,
    /// Hubs know their peers by replica id as well.
    pub named_peers: bool,
    /// What listeners do without a candidate. `reset` unless a test is about the
    /// default: most want to see how a client is refused, at any time.
    pub when_unavailable: &'static str,
    /// Logs as JSON instead of text.
    pub log_json: bool,
    /// The agent's pauses between dials are the defaults instead of short ones.
    pub default_reconnect: bool,
    /// Lines added to every hub's configuration.
    pub hub_extra: String,
    /// Lines added to the agent's configuration.
    pub agent_extra: String,
    /// The agent's token, when it is not to be a good one.
    pub token: Option<String>,
    /// Variables for every process.
    pub env: Vec<(String, String)>,
    /// The registry's URL, when it is not that of the cluster's own server.
    pub redis_url: Option<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            hubs: 2,
            wire: Wire::V2,
            tls: false,
            ingress: false,
            jwt_extra: String::new(),
            connectors: Vec::new(),
            connector_extra: String::new(),
            foreign: Vec::new(),
            attach: vec![0],
            parallel: 1,
            tunnel_proxy: false,
            mesh_proxy: false,
            named_peers: false,
            when_unavailable: "reset",
            log_json: false,
            default_reconnect: false,
            hub_extra: String::new(),
            agent_extra: String::new(),
            token: None,
            env: Vec::new(),
            redis_url: None,
        }
    }
}

impl Plan {
    /// Adds a service.
    #[must_use]
    pub fn connector(mut self, name: &str, target: impl ToString) -> Self {
        self.connectors.push((name.to_owned(), target.to_string()));
        self
    }

    /// Sets the encoding.
    #[must_use]
    pub const fn wire(mut self, wire: Wire) -> Self {
        self.wire = wire;
        self
    }

    /// Starts everything and waits until every listener of every hub could
    /// open a stream.
    ///
    /// # Panics
    /// When something does not start.
    pub async fn start(self) -> Cluster {
        let cluster = self.start_processes().await;
        cluster.wait_ready().await;
        cluster
    }

    /// Starts everything and waits for nothing but redis.
    ///
    /// # Panics
    /// When something does not start.
    pub async fn start_processes(self) -> Cluster {
        let dir = TempDir::with_prefix("nowconnect-").unwrap();
        let authority = Authority::create(dir.path(), "ca");
        fs::write(dir.path().join("hmac"), token::SECRET).unwrap();
        let redis = Redis::start().await;
        let mut hubs = Vec::new();
        for ix in 0..self.hubs {
            hubs.push(Hub::prepare(&self, dir.path(), &authority, ix).await);
        }
        let mut cluster = Cluster {
            tls: self.tls.then(|| authority.client(None)),
            plan: self,
            authority,
            hubs,
            agent: None,
            tunnel_proxies: Vec::new(),
            redis,
            dir,
        };
        cluster.write_hub_files();
        for ix in 0..cluster.hubs.len() {
            cluster.start_hub(ix);
        }
        cluster.prepare_agent().await;
        cluster.start_agent();
        cluster
    }
}

/// One hub: its ports and its process.
pub struct Hub {
    /// Replica id.
    pub name: String,
    /// The process; absent after [`Cluster::kill_hub`].
    pub process: Option<Process>,
    /// Proxy its peers go through, when planned.
    pub mesh_proxy: Option<Proxy>,
    /// What ends TLS for its peers, when planned.
    ingress: Option<Ingress>,
    http: Port,
    metrics: Port,
    mesh: Option<Port>,
    listeners: Vec<(String, Port)>,
    files: Files,
}

impl Hub {
    async fn prepare(plan: &Plan, _dir: &Path, authority: &Authority, ix: usize) -> Self {
        let name = hub_name(ix);
        let http = Port::reserve();
        let mesh = plan.tls.then(Port::reserve);
        let mesh_addr = mesh.as_ref().map_or(http.addr, |p| p.addr);
        let mesh_proxy = if plan.mesh_proxy { Some(Proxy::start(mesh_addr).await) } else { None };
        let names = plan.connectors.iter().map(|(c, _)| c).chain(&plan.foreign);
        let listeners = names.map(|c| (c.clone(), Port::reserve())).collect();
        let files = authority.issue(&name, &[&name, "localhost", "127.0.0.1"]);
        let ingress = if plan.ingress {
            let own = authority.issue(&format!("ingress-{name}"), &["localhost"]);
            Some(Ingress::start(mesh_addr, &own).await)
        } else {
            None
        };
        Self { ingress, name, process: None, mesh_proxy, http, metrics: Port::reserve(), mesh, listeners, files }
    }

    /// Where peers dial this hub.
    pub fn mesh_url(&self) -> String {
        let direct = self.mesh.as_ref().unwrap_or(&self.http).number();
        let port = self.mesh_proxy.as_ref().map_or(direct, |p| p.addr.port());
        let port = self.ingress.as_ref().map_or(port, |i| i.addr.port());
        // A name only where a certificate has to match it.
        let (scheme, host) = if self.mesh.is_some() { ("wss", "localhost") } else { ("ws", "127.0.0.1") };
        format!("{scheme}://{host}:{port}/mesh")
    }

    /// The port of the mesh, past any proxy and ingress.
    #[must_use]
    pub fn mesh(&self) -> SocketAddr {
        self.mesh.as_ref().map_or(self.http.addr, |p| p.addr)
    }

    /// Its certificate and key.
    #[must_use]
    pub const fn files(&self) -> &Files {
        &self.files
    }

    /// The HTTP endpoint: tunnels, health, readiness.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http.addr
    }

    /// # Panics
    /// When the hub is not running.
    #[must_use]
    pub fn running(&self) -> &Process {
        self.process.as_ref().unwrap()
    }
}

/// Name of hub `ix`.
#[must_use]
pub fn hub_name(ix: usize) -> String {
    format!("hub-{}", char::from(b'a' + u8::try_from(ix).unwrap()))
}

/// Name of the agent.
pub const AGENT: &str = "plant-7";

/// The running system.
pub struct Cluster {
    /// What was asked for.
    pub plan: Plan,
    /// The hubs.
    pub hubs: Vec<Hub>,
    /// The agent; absent after [`Cluster::kill_agent`].
    pub agent: Option<Process>,
    /// Proxies between the agent and the hubs it attaches to, in that order.
    pub tunnel_proxies: Vec<Proxy>,
    /// The registry.
    pub redis: Redis,
    /// Signs every certificate of this system.
    pub authority: Authority,
    tls: Option<Arc<ClientConfig>>,
    dir: TempDir,
}

impl Cluster {
    /// Where clients of `connector` connect at hub `ix`.
    ///
    /// # Panics
    /// When there is no such connector.
    #[must_use]
    pub fn listener(&self, ix: usize, connector: &str) -> SocketAddr {
        self.hubs[ix].listeners.iter().find(|(name, _)| name == connector).unwrap().1.addr
    }

    /// Directory of this system's files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Configuration file of hub `ix`.
    #[must_use]
    pub fn hub_file(&self, ix: usize) -> PathBuf {
        self.dir.path().join(format!("{}.yaml", hub_name(ix)))
    }

    /// Configuration file of the agent.
    #[must_use]
    pub fn agent_file(&self) -> PathBuf {
        self.dir.path().join("agent.yaml")
    }

    /// File with the agent's token.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.dir.path().join("token")
    }

    /// Starts hub `ix`, again if it was killed, on the same ports.
    pub fn start_hub(&mut self, ix: usize) {
        let mut command = nowconnect(["hub", "--config"]);
        command.arg(self.hub_file(ix)).envs(self.plan.env.iter().cloned()).args(self.log_format());
        self.hubs[ix].process = Some(Process::spawn(&hub_name(ix), command));
    }

    fn log_format(&self) -> [&'static str; 2] {
        ["--log-format", if self.plan.log_json { "json" } else { "text" }]
    }

    /// Kills hub `ix` without warning.
    pub fn kill_hub(&mut self, ix: usize) {
        self.hubs[ix].process = None;
    }

    /// Starts the agent, again if it was killed.
    pub fn start_agent(&mut self) {
        let mut command = nowconnect(["agent", "--config"]);
        command.arg(self.agent_file()).envs(self.plan.env.iter().cloned()).args(self.log_format());
        self.agent = Some(Process::spawn("agent", command));
    }

    /// Kills the agent without warning.
    pub fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// `path` of hub `ix`'s HTTP endpoint.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn get(&self, ix: usize, path: &str) -> std::io::Result<http::Answer> {
        http::get(self.hubs[ix].http.addr, self.tls.as_ref(), path).await
    }

    /// The metrics of hub `ix`.
    ///
    /// # Panics
    /// When it gives none.
    pub async fn metrics(&self, ix: usize) -> Metrics {
        Metrics::parse(&self.metrics_page(ix).await)
    }

    /// The same as it is served.
    ///
    /// # Panics
    /// When it gives none.
    pub async fn metrics_page(&self, ix: usize) -> String {
        let answer = http::get(self.hubs[ix].metrics.addr, None, "/metrics").await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// The metrics of the agent, from its admin socket.
    ///
    /// # Panics
    /// When it gives none.
    pub async fn agent_metrics(&self) -> Metrics {
        Metrics::parse(&self.agent_metrics_page().await)
    }

    /// The same as it is served.
    ///
    /// # Panics
    /// When it gives none.
    pub async fn agent_metrics_page(&self) -> String {
        let answer = http::get_unix(&self.dir.path().join("agent.sock"), "/metrics").await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// Waits until metric `name` with `labels` at hub `ix` is at least `least`.
    ///
    /// # Panics
    /// When it is not in time.
    pub async fn wait_metric(&self, ix: usize, name: &str, labels: &[(&str, &str)], least: f64) {
        eventually(&format!("{name}{labels:?} >= {least} at {}", hub_name(ix)), PATIENCE, || async {
            let value = self.metrics(ix).await.sum(name, labels)?;
            (value >= least).then_some(())
        })
        .await;
    }

    /// Waits until no hub is in a handshake. With a link up, none of two dials at
    /// once gives way after that. Hub 0 is asked first: its dial is the one that
    /// survives, and what it confirmed is still a handshake at hub 1.
    ///
    /// # Panics
    /// When they are not in time.
    pub async fn wait_no_handshake(&self) {
        for ix in 0..self.hubs.len() {
            eventually(&format!("{} is in no handshake", hub_name(ix)), PATIENCE, || async {
                let used = [("limit", "max_handshakes")];
                (self.metrics(ix).await.sum("nowconnect_limit_used_ratio", &used)? == 0.0).then_some(())
            })
            .await;
        }
    }

    /// Waits until `connector` could be opened through hub `ix`.
    ///
    /// # Panics
    /// When it cannot in time.
    pub async fn wait_open(&self, ix: usize, connector: &str) {
        let path = format!("/readyz/{connector}");
        eventually(&format!("{path} is 200 at {}", hub_name(ix)), PATIENCE, || async {
            assert!(self.hubs[ix].running().runs(), "{} ended", hub_name(ix));
            assert!(self.agent.as_ref().is_none_or(Process::runs), "the agent ended");
            self.get(ix, &path).await.ok().filter(|a| a.status == 200)
        })
        .await;
    }

    /// Waits until every hub is ready and every listener could open a stream.
    ///
    /// # Panics
    /// When they are not in time.
    pub async fn wait_ready(&self) {
        for ix in 0..self.hubs.len() {
            if self.hubs[ix].process.is_none() {
                continue;
            }
            eventually(&format!("{} is ready", hub_name(ix)), PATIENCE, || async {
                assert!(self.hubs[ix].running().runs(), "{} ended", hub_name(ix));
                let answer = self.get(ix, "/readyz").await.ok()?;
                let body: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
                (answer.status == 200 && body["status"] == "ready").then_some(())
            })
            .await;
            for (connector, _) in &self.plan.connectors {
                self.wait_open(ix, connector).await;
            }
        }
    }

    /// # Panics
    /// When a process that was started has ended.
    pub fn assert_alive(&mut self) {
        for process in self.hubs.iter_mut().filter_map(|h| h.process.as_mut()).chain(self.agent.as_mut()) {
            process.assert_alive();
        }
    }

    /// Every process of the product, for its CPU time and memory.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.hubs.iter().filter_map(|h| h.process.as_ref()).chain(self.agent.as_ref()).map(Process::pid).collect()
    }

    async fn prepare_agent(&mut self) {
        let (scheme, host) = if self.plan.tls { ("wss", "localhost") } else { ("ws", "127.0.0.1") };
        let mut urls = Vec::new();
        for &ix in &self.plan.attach {
            let mut port = self.hubs[ix].http.number();
            if self.plan.tunnel_proxy {
                let proxy = Proxy::start(self.hubs[ix].http.addr).await;
                port = proxy.addr.port();
                self.tunnel_proxies.push(proxy);
            }
            urls.push(format!("'{scheme}://{host}:{port}/tunnel'"));
        }
        let names: Vec<&str> = self.plan.connectors.iter().map(|(c, _)| c.as_str()).collect();
        let token = self.plan.token.clone().unwrap_or_else(|| token::good(AGENT, &names));
        fs::write(self.token_file(), token).unwrap();
        let mut yaml = format!(
            "agent_id: {AGENT}\nhubs: [{}]\nparallel: {}\nwire: {}\ntoken_file: {}\nadmin: {{ socket: {} }}\n{}",
            urls.join(", "),
            self.plan.parallel,
            self.plan.wire.name(),
            self.token_file().display(),
            self.dir.path().join("agent.sock").display(),
            if self.plan.default_reconnect { "" } else { SHORT_RECONNECT },
        );
        if self.plan.tls {
            let _ = writeln!(yaml, "tls: {{ ca_bundle: {} }}", self.dir.path().join("ca.pem").display());
        } else {
            yaml.push_str("insecure_allow_plaintext: true\n");
        }
        yaml.push_str("connectors:\n");
        for (name, target) in &self.plan.connectors {
            let _ = writeln!(yaml, "  - {{ name: {name}, target: '{target}'{} }}", self.plan.connector_extra);
        }
        yaml.push_str(&self.plan.agent_extra);
        fs::write(self.agent_file(), yaml).unwrap();
    }

    fn write_hub_files(&self) {
        for ix in 0..self.hubs.len() {
            fs::write(self.hub_file(ix), self.hub_yaml(ix)).unwrap();
        }
    }

    fn hub_yaml(&self, ix: usize) -> String {
        let hub = &self.hubs[ix];
        let dir = self.dir.path().display();
        let mut yaml = String::from("listeners:\n");
        for (name, port) in &hub.listeners {
            let when = self.plan.when_unavailable;
            let _ = writeln!(
                yaml,
                "  - {{ name: {name}, bind: '{}', connector: {name}, when_unavailable: {when} }}",
                port.addr
            );
        }
        let tls = format!("cert_file: {}, key_file: {}", hub.files.cert.display(), hub.files.key.display());
        let http_tls = if self.plan.tls { format!(", tls: {{ {tls} }}") } else { String::new() };
        let peers: Vec<String> = (self.hubs.iter().enumerate())
            .filter(|&(other, _)| other != ix)
            .map(|(_, peer)| match self.plan.named_peers {
                true => format!("{{ url: '{}', replica_id: {} }}", peer.mesh_url(), peer.name),
                false => format!("'{}'", peer.mesh_url()),
            })
            .collect();
        let _ = write!(
            yaml,
            "http: {{ bind: '{http}'{http_tls} }}\nmetrics: {{ bind: '{metrics}' }}\nadmin: {{ socket: {dir}/{name}.sock }}\n\
             auth:\n  jwt: {{ audience: nowconnect, issuer: '{issuer}', {algorithms}hmac_secret_file: {dir}/hmac{jwt_extra} }}\n\
             ha:\n  enabled: true\n  mode: active\n  replica_id: {name}\n  namespace: tests\n  redis_url: {redis}\n  mesh:\n    \
             peers: [{peers}]\n    connect_backoff_max_sec: 1\n    wire: {wire}\n",
            http = hub.http.addr,
            metrics = hub.metrics.addr,
            name = hub.name,
            issuer = token::ISSUER,
            // Keys of several kinds each have the default of their kind.
            algorithms = if self.plan.jwt_extra.contains("jwks_url") { "" } else { "algorithms: [HS256], " },
            jwt_extra = self.plan.jwt_extra,
            redis = self.plan.redis_url.clone().unwrap_or_else(|| self.redis.url()),
            peers = peers.join(", "),
            wire = self.plan.wire.name(),
        );
        match &hub.mesh {
            Some(port) => {
                let _ = writeln!(
                    yaml,
                    "    listen: {}\n    listen_tls: {}\n    require_mtls: true\n    tls: {{ ca_bundle: {dir}/ca.pem, {tls} }}",
                    port.addr,
                    if self.plan.ingress { "ingress" } else { "native" },
                );
            }
            None => yaml.push_str("    require_mtls: false\n    insecure_allow_plaintext: true\n"),
        }
        yaml.push_str(&self.plan.hub_extra);
        yaml
    }
}

/// Pauses between dials in tests.
pub const SHORT_RECONNECT: &str =
    "reconnect: { initial_delay: 50ms, max_delay: 1s, multiplier: 1.5, jitter: 0.3, max_retries: 0 }\n";

/// How long a test lets the system hold a session without a connection when it
/// wants the loss to be seen soon.
pub const SHORT_RESUME: Duration = Duration::from_secs(2);

//! A hub process: ports, registry, signals around the core's `Hub`.

mod app;
mod readiness;
mod snapshot;
mod status;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use nowconnect_core::error::RstCode;
use nowconnect_core::hub::Hub;
use nowconnect_core::id::{ConnKey, ListenerIx, Name, SessionKey, SockKey, StreamKey, TargetIx};
use nowconnect_core::identity::Proof;
use nowconnect_core::mux::{Input, NodeOut};
use nowconnect_core::observed::{Cause, Observed, StreamRecord};
use nowconnect_core::principal::AgentGrant;
use nowconnect_core::registry::{RegistryOp, Token};
use nowconnect_core::wire::{Plane, SecretText};
use tokio::net::TcpListener;

use crate::auth::{AuthReject, TokenGrant, TunnelAuth};
use crate::cli::RunError;
use crate::clock::{Monotonic, unix_millis};
use crate::config::{HubSetup, ListenTls};
use crate::dial::WsUrl;
use crate::dialer::{self, Target};
use crate::http::{HttpLimits, HttpListener, Routes};
use crate::identity::MeshIdentity;
use crate::jwks::Jwks;
use crate::limiter::Limiter;
use crate::listener::{self, Clients};
use crate::metrics::Metrics;
use crate::node::{Effects, Node};
use crate::registry::{RedisPlace, RedisRegistry, RedisTimeouts, Registry, SharedMemory};
use crate::{admin, expiry, net, observe, signals, tls};

/// Connections the kernel queues per listening socket.
const BACKLOG: i32 = 1024;

/// Told of every stream's record besides the log.
pub type RecordHook = Rc<dyn Fn(&StreamRecord, Option<SocketAddr>)>;

/// What a hub's parts share.
pub(crate) struct Shared {
    pub(crate) setup: HubSetup,
    pub(crate) auth: Rc<TunnelAuth>,
    /// The keys by URL.
    pub(crate) jwks: Option<Rc<Jwks>>,
    keys_checked: Cell<u64>,
    pub(crate) registry: Rc<Registry>,
    pub(crate) metrics: Metrics,
    pub(crate) lines: Limiter,
    pub(crate) clients: Clients,
    pub(crate) counts: app::Counts,
    pub(crate) leaving: Cell<bool>,
    /// Bound client ports, in the order of the configuration.
    pub(crate) bound: RefCell<Vec<SocketAddr>>,
    /// What this hub signs with on the mesh, and whom it believes; storing
    /// another one counts from the next handshake.
    pub(crate) identity: ArcSwapOption<MeshIdentity>,
    /// When the certificates in use end.
    pub(crate) certificates: expiry::Ends,
    /// Whether each of them listens now.
    pub(crate) listening: Vec<Rc<Cell<bool>>>,
    targets: Vec<Target>,
    hook: Option<RecordHook>,
}

impl Shared {
    /// What a token grants, on the core's clock. A refusal is counted and told;
    /// an unknown key makes the key set by URL look again.
    pub(crate) fn grant(
        &self,
        clock: &Monotonic,
        verify: impl FnOnce(&TunnelAuth, u64) -> Result<TokenGrant, AuthReject>,
    ) -> Result<AgentGrant, AuthReject> {
        let now = unix_millis();
        self.refresh_keys(now);
        let result = verify(&self.auth, now / 1000);
        if let Err(reject) = &result {
            if let (AuthReject::UnknownKey, Some(jwks)) = (reject, &self.jwks) {
                jwks.ask();
            }
            if let Some(suppressed) = self.lines.allow("auth_rejected", reject.name()) {
                tracing::warn!(event = "auth_rejected", reason = reject.name(), suppressed, "{reject}");
            }
            self.counts.refusal(reject.name());
        }
        result.map(|grant| grant.on_clock(now / 1000, clock.now()))
    }

    /// Key files are looked at again at most once a second.
    fn refresh_keys(&self, now_millis: u64) {
        if now_millis.saturating_sub(self.keys_checked.replace(now_millis)) < 1000 {
            return;
        }
        match self.auth.reload_if_changed() {
            Ok(true) => tracing::info!(event = "keys_reloaded"),
            Ok(false) => {}
            Err(e) => {
                if let Some(suppressed) = self.lines.allow("keys_unusable", "") {
                    tracing::error!(event = "keys_unusable", suppressed, "the last good keys stay in use: {e}");
                }
            }
        }
    }
}

/// A hub that runs in the current `LocalSet`.
pub struct RunningHub {
    /// The machine.
    pub node: Node<Hub>,
    /// Bound client ports, in the order of the configuration.
    pub listeners: Vec<SocketAddr>,
    /// Bound HTTP port.
    pub http: SocketAddr,
    /// Bound metrics port.
    pub metrics: Option<SocketAddr>,
    /// The operator's endpoints.
    pub admin: admin::Serving,
    shared: Rc<Shared>,
    accepting: Vec<tokio::task::JoinHandle<()>>,
    /// The key set by URL.
    fetching: Option<tokio::task::JoinHandle<()>>,
}

impl std::fmt::Debug for RunningHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningHub").field("http", &self.http).finish_non_exhaustive()
    }
}

/// Runs a hub until it is told to stop.
///
/// # Errors
/// When its configuration cannot be used (exit code 2) or a port cannot be bound.
pub fn run(setup: HubSetup) -> Result<(), RunError> {
    signals::raise_file_limit();
    signals::block_on(async move {
        let mut signals = signals::Signals::new()?;
        let hub = start(setup, None, None).await?;
        tracing::info!(event = "ready", replica = %hub.shared.setup.core.replica_id, http = %hub.http, mode = hub.shared.setup.core.mode.name());
        signals.first().await;
        tokio::select! {
            () = hub.leave() => {}
            () = signals.next() => hub.stop().await,
        }
        Ok(())
    })
}

/// Binds everything and starts the machine.
///
/// # Errors
/// As [`run`].
pub async fn start(
    setup: HubSetup,
    registry: Option<Registry>,
    hook: Option<RecordHook>,
) -> Result<RunningHub, RunError> {
    let config = |e: &dyn std::fmt::Display| RunError::Config(e.to_string());
    let auth = Rc::new(TunnelAuth::from_setup(&setup.auth).map_err(|e| config(&e))?);
    let jwks = setup.auth.jwks.as_ref().map(|j| Jwks::new(j, &auth)).transpose().map_err(|e| config(&e))?.map(Rc::new);
    let mesh_client = match &setup.mesh_tls {
        Some(files) if setup.core.peers.iter().any(|p| p.url.starts_with("wss:")) => {
            Some(tls::mesh_client(files).map_err(|e| config(&e))?)
        }
        _ => None,
    };
    let identity = setup.mesh_tls.as_ref().map(MeshIdentity::load).transpose().map_err(|e| config(&e))?;
    if let (Some(identity), Some(files)) = (&identity, &setup.mesh_tls) {
        for doubt in identity.doubts(&setup.core.replica_id, unix_millis() / 1000, &files.cert_file) {
            tracing::warn!(event = "mesh_certificate", "{doubt}");
        }
    }
    let mut targets = Vec::new();
    for peer in &setup.core.peers {
        let url = WsUrl::parse(&peer.url).map_err(|e| RunError::Config(format!("ha.mesh.peers: {}: {e}", peer.url)))?;
        targets.push(Target { url, tls: mesh_client.clone(), dialects: setup.mesh_wire.dialects(Plane::Mesh) });
    }
    let registry = match (registry, &setup.redis_url) {
        (Some(r), _) => r,
        (None, Some(url)) => {
            let timeouts = RedisTimeouts { op: setup.core.registry.op_timeout, ..RedisTimeouts::default() };
            let place = RedisPlace {
                url: url.reveal().to_owned(),
                password_file: setup.redis_password_file.clone(),
                ca_bundle: setup.redis_ca_bundle.clone(),
                identity: setup.redis_identity.as_ref().map(|f| (f.cert_file.clone(), f.key_file.clone())),
            };
            let redis = RedisRegistry::open(place, setup.core.namespace.clone(), timeouts)
                .await
                .map_err(|e| RunError::Config(e.to_string()))?;
            Registry::Redis(Box::new(redis))
        }
        (None, None) => Registry::Memory(SharedMemory::default()),
    };
    let metrics = Metrics::new().map_err(|e| RunError::Failed(e.to_string()))?;

    let mut bound = Vec::new();
    for l in &setup.listeners {
        bound.push(bind(l.addr, &format!("listeners[{}].bind", l.name))?);
    }
    let http = bind(setup.http_bind, "http.bind")?;
    let metrics_port = setup.metrics_bind.map(|addr| bind(addr, "metrics.bind")).transpose()?;
    let mesh_port = setup.mesh_listen.as_ref().map(|m| bind(m.addr, "ha.mesh.listen")).transpose()?;
    let admin_ports = admin::bind(&setup.admin)?;
    let http_tls = setup.http_tls.as_ref().map(tls::http_server).transpose().map_err(|e| config(&e))?;
    let mesh_tls = match (&setup.mesh_listen, &setup.mesh_tls) {
        (Some(m), Some(files)) if m.tls == ListenTls::Native => Some(tls::mesh_server(files).map_err(|e| config(&e))?),
        (Some(m), None) if m.tls == ListenTls::Native => {
            return Err(RunError::Config("ha.mesh.listen_tls: native needs ha.mesh.tls".to_owned()));
        }
        _ => None,
    };

    let clock = Monotonic::new();
    let lines = Limiter::new(clock);
    let fetching = jwks.as_ref().map(|j| tokio::task::spawn_local(Rc::clone(j).run(Rc::clone(&auth))));
    let shared = Rc::new(Shared {
        auth,
        jwks,
        keys_checked: Cell::new(0),
        registry: Rc::new(registry),
        metrics,
        lines: lines.clone(),
        clients: Clients::default(),
        counts: app::Counts::default(),
        leaving: Cell::new(false),
        bound: RefCell::default(),
        identity: ArcSwapOption::from_pointee(identity),
        certificates: expiry::of_hub(&setup),
        listening: setup.listeners.iter().map(|_| Rc::default()).collect(),
        targets,
        hook,
        setup,
    });
    let mut out = NodeOut::default();
    let core = Arc::new(shared.setup.core.clone());
    let machine = Hub::new(core, signals::os_seed(), clock.now(), &mut out);
    let node = Node::start(machine, out, clock, Box::new(HubEffects(Rc::clone(&shared))));

    let local = |s: &TcpListener| s.local_addr().map_err(|e| RunError::Failed(e.to_string()));
    let own = Rc::new(app::App::new(node.clone(), Rc::clone(&shared)));
    let app: Rc<dyn crate::http::HttpApp> = Rc::clone(&own) as _;
    let mut accepting = Vec::new();
    let mut listeners = Vec::new();
    let settings = shared.setup.listeners.iter().zip(&shared.setup.core.listeners).zip(&shared.listening).zip(0..);
    for (socket, (((l, core), listening), ix)) in bound.into_iter().zip(settings) {
        listeners.push(local(&socket)?);
        let setting = listener::Setting {
            ix: ListenerIx(ix),
            name: l.name.clone(),
            connector: core.connector.clone(),
            allow: l.allow.clone(),
            when_unavailable: l.when_unavailable,
            listening: Rc::clone(listening),
        };
        let (clients, lines) = (Rc::clone(&shared.clients), lines.clone());
        accepting.push(tokio::task::spawn_local(listener::run(node.clone(), setting, socket, clients, lines)));
    }
    shared.bound.borrow_mut().clone_from(&listeners);
    let serve = |socket: TcpListener, routes: Routes, tls: Option<Arc<rustls::ServerConfig>>| {
        let limits = HttpLimits {
            connections_max: shared.setup.core.limits.max_handshakes as usize,
            connections_per_ip_max: shared.setup.core.limits.max_handshakes as usize,
            ..HttpLimits::default()
        };
        let tls = tls.map(|t| Arc::new(arc_swap::ArcSwap::new(t)));
        let setting = HttpListener { routes, tls, limits };
        tokio::task::spawn_local(crate::http::serve(socket, setting, Rc::clone(&app), std::future::pending()));
    };
    let http_addr = local(&http)?;
    let metrics_addr = metrics_port.as_ref().map(local).transpose()?;
    let public = Routes { mesh: mesh_port.is_none(), ..Routes::PUBLIC };
    serve(http, public, http_tls);
    if let Some(socket) = metrics_port {
        serve(socket, Routes::METRICS, None);
    }
    if let Some(socket) = mesh_port {
        serve(socket, Routes::MESH, mesh_tls);
    }
    let operator: Rc<dyn admin::AdminApp> = own;
    let admin = admin_ports.serve(&operator).map_err(|e| RunError::Failed(e.to_string()))?;
    Ok(RunningHub { node, listeners, http: http_addr, metrics: metrics_addr, admin, shared, accepting, fetching })
}

fn bind(addr: SocketAddr, key: &str) -> Result<TcpListener, RunError> {
    net::listen(addr, BACKLOG).map_err(|e| RunError::Failed(format!("{key}: cannot listen on {addr}: {e}")))
}

impl RunningHub {
    /// Leaves in order: readiness first, listeners stay open for
    /// `drain.lameduck`, then no new streams, and an end when all are gone or
    /// `drain.timeout` has passed.
    pub async fn leave(&self) {
        let drain = &self.shared.setup.drain;
        tracing::info!(
            event = "draining",
            lameduck_ms = drain.lameduck.as_millis() as u64,
            timeout_ms = drain.timeout.as_millis() as u64
        );
        self.shared.leaving.set(true);
        tokio::time::sleep(drain.lameduck).await;
        for a in &self.accepting {
            a.abort();
        }
        self.node.input(Input::Drain);
        if tokio::time::timeout(drain.timeout, self.node.drained()).await.is_err() {
            tracing::warn!(event = "drain_deadline", "drain.timeout passed; the remaining streams are reset");
        }
        self.stop().await;
    }

    /// Ends at once: streams are reset, peers are told.
    pub async fn stop(&self) {
        for a in &self.accepting {
            a.abort();
        }
        if let Some(task) = &self.fetching {
            task.abort();
        }
        self.node.input(Input::Shutdown);
        self.node.flushed(Duration::from_secs(1)).await;
        tracing::info!(event = "stopped");
    }
}

struct HubEffects(Rc<Shared>);

impl HubEffects {
    fn listener(&self, ix: ListenerIx) -> (&str, &str) {
        self.0.setup.core.listeners.get(usize::from(ix.0)).map_or(("", ""), |l| (l.name.as_str(), l.connector.as_str()))
    }
}

impl Effects<Hub> for HubEffects {
    fn dial(&self, node: &Node<Hub>, target: TargetIx) {
        if let Some(t) = self.0.targets.get(usize::from(target.0)) {
            dialer::start(node, target, t, || Ok(None), &self.0.lines);
        }
    }

    fn connect(&self, node: &Node<Hub>, stream: StreamKey, _connector: Name) {
        node.input(Input::Target { stream, result: Err::<SockKey, _>(RstCode::Protocol) });
    }

    fn registry(&self, node: &Node<Hub>, token: Token, op: RegistryOp) {
        let (node, shared) = (node.clone(), Rc::clone(&self.0));
        tokio::task::spawn_local(async move {
            let started = node.clock().now();
            let result = shared.registry.execute(&op).await;
            shared.metrics.observe_registry(&op, node.clock().now().since(started), &result);
            node.input(Input::Registry { token, result });
        });
    }

    fn prove(&self, node: &Node<Hub>, conn: ConnKey, proof: Proof) {
        const NONE: &str = "this hub has no mesh key: ha.mesh.tls is missing";
        let identity = self.0.identity.load();
        node.input(match (proof, identity.as_deref()) {
            (Proof::Sign { statement }, own) => {
                Input::Signed { conn, result: own.ok_or(NONE).and_then(|i| i.sign(&statement)) }
            }
            (Proof::Verify { statements, signature }, own) => {
                let now = unix_millis() / 1000;
                Input::Verified { conn, result: own.ok_or(NONE).and_then(|i| i.verify(&statements, &signature, now)) }
            }
        });
    }

    fn judge(&self, node: &Node<Hub>, session: SessionKey, token: SecretText) {
        let grant = self.0.grant(&node.clock(), |auth, now| auth.verify_token(&token.0, now)).ok();
        node.input(Input::Judged { session, grant });
    }

    fn observe(&self, _node: &Node<Hub>, event: Observed) {
        let s = &self.0;
        match &event {
            Observed::Stream(r) => {
                let (listener, connector) = self.listener(r.listener);
                let client = r.sock.and_then(|k| s.clients.borrow().get(&k).copied());
                observe::stream_record(r, listener, connector, s.setup.core.replica_id.as_str(), client);
                if let (Cause::Reset(code), None) = (r.cause, r.open)
                    && let Some(suppressed) = s.lines.allow("open_failed", &format!("{code} {connector}"))
                {
                    tracing::warn!(
                        event = "open_failed",
                        listener,
                        connector,
                        reason = code.name(),
                        suppressed,
                        "a client could not be carried"
                    );
                }
                if let Some(hook) = &s.hook {
                    hook(r, client);
                }
            }
            Observed::Opened { local, after, .. } => s.metrics.observe_open(*local, *after),
            Observed::Rtt { plane: Plane::Mesh, sample } => s.metrics.observe_mesh_rtt(*sample),
            Observed::Rtt { plane: Plane::Tunnel, sample } => s.metrics.observe_tunnel_rtt(*sample),
            Observed::ProtocolViolation { plane, kind, .. } => s.counts.protocol_error(*plane, *kind),
            Observed::LeaseHeldByOther => {
                s.counts.replica_id_twice.set(s.counts.replica_id_twice.get() + 1);
                s.counts.ownership(&event);
            }
            Observed::DuplicateAgent { .. } => s.counts.agent_id_twice.set(s.counts.agent_id_twice.get() + 1),
            Observed::DuplicateAgentRefused { .. } => {
                s.counts.agent_id_refused.set(s.counts.agent_id_refused.get() + 1);
            }
            Observed::Attached { .. } | Observed::Detached { .. } | Observed::RegistryHealth { .. } => {
                s.counts.ownership(&event);
            }
            // Lines only, written below; an agent's.
            Observed::SessionUp { .. }
            | Observed::Carried(_)
            | Observed::SessionSuspended { .. }
            | Observed::SessionResumed { .. }
            | Observed::SessionLost { .. }
            | Observed::HandshakeFailed { .. }
            | Observed::TokenExpired { .. }
            | Observed::StartedOver { .. }
            | Observed::TokenRenewed { .. }
            | Observed::TokenRefused { .. }
            | Observed::TokenAnswered { .. }
            | Observed::PeerIsSelf { .. }
            | Observed::FewerHubs { .. }
            | Observed::GaveUp { .. } => {}
        }
        observe::event(&event, &s.lines);
    }
}

/// Totals by name, for what only events tell.
pub(crate) type Totals<K> = RefCell<BTreeMap<K, u64>>;

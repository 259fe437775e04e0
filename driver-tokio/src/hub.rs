//! A hub process: ports, registry, signals around the core's `Hub`.

mod app;
mod drain;
mod keys;
mod readiness;
mod reload;
mod snapshot;
mod status;
mod trust;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nowconnect_core::config::Mode;
use nowconnect_core::error::RstCode;
use nowconnect_core::hub::Hub;
use nowconnect_core::id::{ConnKey, ListenerIx, Name, SessionKey, SockKey, StreamKey, TargetIx};
use nowconnect_core::identity::Proof;
use nowconnect_core::mux::{Input, NodeOut};
use nowconnect_core::observed::{Cause, Observed, StreamRecord};
use nowconnect_core::registry::{RegistryOp, Token};
use nowconnect_core::wire::{Plane, SecretText};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

pub use reload::RESTART;

use crate::certs::{self, Certs};
use crate::cli::RunError;
use crate::clock::{Monotonic, unix_millis};
use crate::config::{HubSetup, ListenTls};
use crate::dial::WsUrl;
use crate::dialer::{self, Target};
use crate::http::{HttpLimits, HttpListener, Routes, TlsSource};
use crate::limiter::Limiter;
use crate::listener::Clients;
use crate::metrics::Metrics;
use crate::node::{Effects, Node};
use crate::registry::{RedisPlace, RedisRegistry, RedisTimeouts, Registry, SharedMemory};
use crate::reload::Reloads;
use crate::signals::Asked;
use crate::{admin, net, observe, signals};

/// How long a hub that stops waits for what it told peers and the registry.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Connections the kernel queues per listening socket.
const BACKLOG: i32 = 1024;

/// Told of every stream's record besides the log.
pub type RecordHook = Rc<dyn Fn(&StreamRecord, Option<SocketAddr>)>;

/// What a hub's parts share.
pub(crate) struct Shared {
    setup: RefCell<Rc<HubSetup>>,
    keys: RefCell<Rc<keys::Keys>>,
    pub(crate) registry: RefCell<Rc<Registry>>,
    /// Operations that the registry has not answered.
    unanswered: watch::Sender<usize>,
    pub(crate) certs: Certs,
    pub(crate) reloads: Reloads,
    /// Keys of the file that wait for a restart.
    pub(crate) restart: RefCell<Vec<&'static str>>,
    source: Option<Source>,
    pub(crate) metrics: Metrics,
    pub(crate) lines: Limiter,
    pub(crate) clients: Clients,
    pub(crate) counts: app::Counts,
    /// A signal asked it to leave: the next one ends it.
    pub(crate) stop_asked: Cell<bool>,
    /// Open client ports, in the order of the configuration.
    pub(crate) open: RefCell<Vec<reload::OpenListener>>,
    targets: RefCell<BTreeMap<String, Target>>,
    hook: Option<RecordHook>,
}

impl Shared {
    /// The configuration in force.
    pub(crate) fn setup(&self) -> Rc<HubSetup> {
        Rc::clone(&self.setup.borrow())
    }

    fn stop_accepting(&self) {
        self.open.borrow_mut().iter_mut().for_each(reload::OpenListener::close);
    }
}

/// Reads the configuration file, checked in full.
pub type Source = Box<dyn Fn() -> Result<HubSetup, RunError>>;

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
    watch: tokio::task::JoinHandle<()>,
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
pub fn run(setup: HubSetup, source: Source) -> Result<(), RunError> {
    signals::raise_file_limit();
    signals::block_on(async move {
        let mut signals = signals::Signals::new()?;
        let (replica, mode) = (setup.core.replica_id.clone(), setup.core.mode);
        // The first question to a registry may take long, and SIGTERM must not.
        let reload_asked = Notify::new();
        let started = start(setup, Some(source), None, None);
        tokio::pin!(started);
        let hub = loop {
            tokio::select! {
                hub = &mut started => break hub?,
                asked = signals.wait() => match asked {
                    Asked::Reload => reload_asked.notify_one(),
                    Asked::Stop => {
                        tracing::info!(event = "stopped");
                        return Ok(());
                    }
                },
            }
        };
        tracing::info!(event = "ready", %replica, http = %hub.http, mode = mode.name());
        // So may that of a reload.
        let reloads = hub.reloads(&reload_asked);
        tokio::pin!(reloads);
        loop {
            tokio::select! {
                () = &mut reloads => {}
                asked = signals.wait() => match asked {
                    Asked::Reload => reload_asked.notify_one(),
                    Asked::Stop if hub.shared.stop_asked.replace(true) => break,
                    Asked::Stop => hub.drain(),
                },
                () = hub.node.drained() => break,
            }
        }
        hub.stop().await;
        Ok(())
    })
}

/// Binds everything and starts the machine.
///
/// # Errors
/// As [`run`].
pub async fn start(
    setup: HubSetup,
    source: Option<Source>,
    registry: Option<Registry>,
    hook: Option<RecordHook>,
) -> Result<RunningHub, RunError> {
    let config = |e: &dyn std::fmt::Display| RunError::Config(e.to_string());
    let keys = keys::Keys::load(&setup.auth)?;
    let certs = Certs::new(certs::Set::of_hub(&setup).map_err(|e| config(&e))?);
    if let (Some(identity), Some(files)) = (certs.identity(), &setup.mesh_tls) {
        for doubt in identity.doubts(&setup.core.replica_id, unix_millis() / 1000, &files.cert_file) {
            tracing::warn!(event = "mesh_certificate", "{doubt}");
        }
    }
    let targets = reload::targets(&setup)?;
    let registry = match registry {
        Some(registry) => registry,
        None => connect_registry(&setup).await?,
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
    if let (Some(m), None) = (&setup.mesh_listen, &setup.mesh_tls)
        && m.tls == ListenTls::Native
    {
        return Err(RunError::Config("ha.mesh.listen_tls: native needs ha.mesh.tls".to_owned()));
    }

    let clock = Monotonic::new();
    let lines = Limiter::new(clock);
    let shared = Rc::new(Shared {
        keys: RefCell::new(Rc::new(keys)),
        registry: RefCell::new(Rc::new(registry)),
        unanswered: watch::Sender::new(0),
        certs,
        reloads: Reloads::at_start(),
        restart: RefCell::default(),
        source,
        metrics,
        lines: lines.clone(),
        clients: Clients::default(),
        counts: app::Counts::default(),
        stop_asked: Cell::new(false),
        open: RefCell::default(),
        targets: RefCell::new(targets),
        hook,
        setup: RefCell::new(Rc::new(setup)),
    });
    let setup = shared.setup();
    let mut out = NodeOut::default();
    let core = Arc::new(setup.core.clone());
    let (seed, began) = (signals::os_seed(), clock.now());
    let machine = Hub::new(core, seed, began, &mut out);
    let node = Node::start(machine, out, clock, Box::new(HubEffects(Rc::clone(&shared))));
    #[cfg(test)]
    node.journal().made(crate::journal::Config::Hub(Box::new(setup.core.clone())), seed, began);

    let local = |s: &TcpListener| s.local_addr().map_err(|e| RunError::Failed(e.to_string()));
    let own = Rc::new(app::App::new(node.clone(), Rc::clone(&shared)));
    let app: Rc<dyn crate::http::HttpApp> = Rc::clone(&own) as _;
    let mut listeners = Vec::new();
    for (socket, l) in bound.into_iter().zip(&setup.listeners) {
        listeners.push(local(&socket)?);
        let mut open = reload::OpenListener::new(l.clone(), socket)
            .map_err(|e| RunError::Failed(format!("listeners[{}].bind: {e}", l.name)))?;
        open.accept(&node, &shared);
        shared.open.borrow_mut().push(open);
    }
    let serve = |socket: TcpListener, routes: Routes, tls: Option<TlsSource>| {
        let limits = HttpLimits {
            connections_max: setup.core.limits.max_handshakes as usize,
            connections_per_address_max: setup.handshakes_per_address() as usize,
            connections_per_second: setup.handshake_rate,
            ..HttpLimits::default()
        };
        let setting = HttpListener { routes, tls, limits };
        tokio::task::spawn_local(crate::http::serve(socket, setting, Rc::clone(&app), std::future::pending()));
    };
    let http_addr = local(&http)?;
    let metrics_addr = metrics_port.as_ref().map(local).transpose()?;
    let public = Routes { mesh: mesh_port.is_none(), ..Routes::PUBLIC };
    serve(http, public, shared.certs.http());
    if let Some(socket) = metrics_port {
        serve(socket, Routes::METRICS, None);
    }
    if let Some(socket) = mesh_port {
        serve(socket, Routes::MESH, shared.certs.mesh());
    }
    let operator: Rc<dyn admin::AdminApp> = own;
    let admin = admin_ports.serve(&operator).map_err(|e| RunError::Failed(e.to_string()))?;
    let watch = tokio::task::spawn_local(reload::watch(node.clone(), Rc::clone(&shared)));
    Ok(RunningHub { node, listeners, http: http_addr, metrics: metrics_addr, admin, shared, watch })
}

/// Where the registry is, and what it takes to get in.
pub(crate) fn redis_place(setup: &HubSetup) -> Option<RedisPlace> {
    Some(RedisPlace {
        url: setup.redis_url.as_ref()?.reveal().to_owned(),
        password_file: setup.redis_password_file.clone(),
        ca_bundle: setup.redis_ca_bundle.clone(),
        identity: setup.redis_identity.as_ref().map(|f| (f.cert_file.clone(), f.key_file.clone())),
    })
}

/// In `off` nothing is asked, so nobody is connected to (M1).
async fn connect_registry(setup: &HubSetup) -> Result<Registry, RunError> {
    let Some(place) = redis_place(setup).filter(|_| setup.core.mode != Mode::Off) else {
        return Ok(Registry::Memory(SharedMemory::default()));
    };
    let timeouts = RedisTimeouts { op: setup.core.registry.op_timeout, ..RedisTimeouts::default() };
    let redis = RedisRegistry::open(place, setup.core.namespace.clone(), timeouts)
        .await
        .map_err(|e| RunError::Config(e.to_string()))?;
    Ok(Registry::Redis(Box::new(redis)))
}

fn bind(addr: SocketAddr, key: &str) -> Result<TcpListener, RunError> {
    net::listen(addr, BACKLOG).map_err(|e| RunError::Failed(format!("{key}: cannot listen on {addr}: {e}")))
}

impl RunningHub {
    /// Reloads whenever a signal `asked` for it. One that comes during a reload
    /// is answered by another one afterwards.
    async fn reloads(&self, asked: &Notify) {
        loop {
            asked.notified().await;
            let turn = self.shared.reloads.turn().await;
            reload::run(&self.node, &self.shared, turn).await;
        }
    }

    /// Leaves in order; the node says when it has ([`Node::drained`]). One
    /// under way goes on as it is.
    pub fn drain(&self) {
        self.node.input(Input::Drain(self.shared.setup().drain));
    }

    /// Ends at once: streams are reset, peers are told, and the registry is: a
    /// lease that is not given back has others miss this hub until it is over.
    pub async fn stop(&self) {
        self.watch.abort();
        self.shared.stop_accepting();
        self.node.input(Input::Shutdown);
        let mut unanswered = self.shared.unanswered.subscribe();
        let answered = tokio::time::timeout(LAST_WORDS, unanswered.wait_for(|n| *n == 0));
        let ((), _) = tokio::join!(self.node.flushed(LAST_WORDS), answered);
        tracing::info!(event = "stopped");
    }
}

struct HubEffects(Rc<Shared>);

impl HubEffects {
    /// Name and connector of a listener, also of one that is gone.
    fn listener(node: &Node<Hub>, ix: ListenerIx) -> (String, String) {
        node.look(|hub| {
            let l = hub.control().config().listeners.get(usize::from(ix.0));
            l.map_or_else(Default::default, |l| (l.name.to_string(), l.connector.to_string()))
        })
    }
}

impl Effects<Hub> for HubEffects {
    fn dial(&self, node: &Node<Hub>, target: TargetIx) {
        let url = node.look(|hub| hub.control().config().peers.get(usize::from(target.0)).map(|p| p.url.clone()));
        let known = url.and_then(|url| self.0.targets.borrow().get(&url).cloned());
        match known {
            Some(t) => {
                let t = Target { tls: self.0.certs.dialer(), ..t };
                dialer::start(node, target, &t, || Ok(None), &self.0.lines);
            }
            // Of a peer that was removed: its session cannot come back.
            None => {
                let node = node.clone();
                tokio::task::spawn_local(async move { node.input(Input::DialFailed { target }) });
            }
        }
    }

    fn connect(&self, node: &Node<Hub>, stream: StreamKey, _connector: Name) {
        node.input(Input::Target { stream, result: Err::<SockKey, _>(RstCode::Protocol) });
    }

    fn registry(&self, node: &Node<Hub>, token: Token, op: RegistryOp) {
        let (node, shared) = (node.clone(), Rc::clone(&self.0));
        // The one of this moment: a reload may put another in its place.
        let registry = Rc::clone(&shared.registry.borrow());
        shared.unanswered.send_modify(|n| *n += 1);
        tokio::task::spawn_local(async move {
            let started = node.clock().now();
            let result = registry.execute(&op).await;
            shared.metrics.observe_registry(&op, node.clock().now().since(started), &result);
            node.input(Input::Registry { token, result });
            shared.unanswered.send_modify(|n| *n -= 1);
        });
    }

    fn prove(&self, node: &Node<Hub>, conn: ConnKey, proof: Proof) {
        const NONE: &str = "this hub has no mesh key: ha.mesh.tls is missing";
        let identity = self.0.certs.identity();
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

    fn trusts(&self, chain: &[CertificateDer<'static>]) -> bool {
        self.0.certs.trusts(chain)
    }

    fn judge(&self, node: &Node<Hub>, session: SessionKey, token: SecretText) {
        let grant = self.0.grant(&node.clock(), |auth, now| auth.verify_token(&token.0, now)).ok();
        node.input(Input::Judged { session, grant });
    }

    fn close_listeners(&self) {
        self.0.stop_accepting();
    }

    fn observe(&self, node: &Node<Hub>, event: Observed) {
        let s = &self.0;
        match &event {
            Observed::Stream(r) => {
                let (listener, connector) = Self::listener(node, r.listener);
                let (listener, connector) = (listener.as_str(), connector.as_str());
                let client = r.sock.and_then(|k| s.clients.borrow().get(&k).copied());
                observe::stream_record(r, listener, connector, s.setup().core.replica_id.as_str(), client);
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
            Observed::HandshakeFailed { plane, cause, .. } => s.counts.handshake_failure(*plane, *cause),
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
            | Observed::TokenExpired { .. }
            | Observed::StartedOver { .. }
            | Observed::TokenRenewed { .. }
            | Observed::TokenRefused { .. }
            | Observed::TokenAnswered { .. }
            | Observed::PeerIsSelf { .. }
            | Observed::FewerHubs { .. }
            | Observed::Ejected { .. }
            | Observed::Reinstated { .. }
            | Observed::TargetDown { .. }
            | Observed::TargetUp { .. }
            | Observed::Drain(_)
            | Observed::GaveUp { .. } => {}
        }
        let url = |ix| {
            let listed = node.look(|hub| hub.control().config().peers.get(usize::from(ix)).map(|p| p.url.clone()));
            listed.and_then(|url| WsUrl::shown(&url))
        };
        observe::event(&event, url, &s.lines);
    }
}

/// Totals by name, for what only events tell.
pub(crate) type Totals<K> = RefCell<BTreeMap<K, u64>>;

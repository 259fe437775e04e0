//! An agent process: hubs, targets and signals around the core's `Agent`.

mod app;
mod reload;
mod renewal;
mod scope;
#[cfg(test)]
mod tests;
mod token;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nowconnect_core::agent::Agent;
use nowconnect_core::config::DrainTimes;
use nowconnect_core::error::RstCode;
use nowconnect_core::id::{ConnKey, Name, SessionKey, SockKey, StreamKey, TargetIx};
use nowconnect_core::identity::Proof;
use nowconnect_core::mux::{Check, Input, NodeOut};
use nowconnect_core::observed::{CarriedRecord, Cause, Observed};
use nowconnect_core::registry::{RegistryOp, Token};
use nowconnect_core::wire::{Plane, SecretText};
use rustls::pki_types::CertificateDer;
use tokio::sync::Notify;

pub use reload::RESTART;

use crate::certs::{self, Certs};
use crate::cli::RunError;
use crate::clock::Monotonic;
use crate::config::AgentSetup;
use crate::dial::WsUrl;
use crate::dialer::{self, Target};
use crate::limiter::Limiter;
use crate::metrics::Metrics;
use crate::node::{Effects, Node};
use crate::reload::Reloads;
use crate::signals::Asked;
use crate::{admin, observe, secret, signals, target};

/// Largest token file, bytes: what the `Authorization` header may carry.
const TOKEN_MAX_BYTES: u64 = 8 * 1024;
/// How long a stopping agent lets its streams end by themselves.
const DRAIN: Duration = Duration::from_secs(60);

/// Runs an agent until it is told to stop.
///
/// # Errors
/// When its configuration cannot be used (exit code 2), or when every hub was
/// given up after `reconnect.max_retries` (exit code 1).
pub fn run(setup: AgentSetup, source: Source) -> Result<(), RunError> {
    signals::raise_file_limit();
    signals::block_on(async move {
        let mut signals = signals::Signals::new()?;
        let agent = start(setup, Some(source))?;
        // Beside the signals: a reload may wait for hubs, and SIGTERM must not.
        let reload_asked = Notify::new();
        let reloads = agent.reloads(&reload_asked);
        tokio::pin!(reloads);
        loop {
            tokio::select! {
                () = &mut reloads => {}
                asked = signals.wait() => match asked {
                    Asked::Reload => reload_asked.notify_one(),
                    Asked::Stop if agent.shared.stop_asked.replace(true) => break,
                    Asked::Stop => drain(&agent.node),
                },
                () = agent.node.drained() => break,
                () = agent.gave_up() => return Err(RunError::Failed("every hub was given up (reconnect.max_retries)".to_owned())),
            }
        }
        agent.stop().await;
        Ok(())
    })
}

/// An agent that runs in the current `LocalSet`.
pub struct RunningAgent {
    /// The machine.
    pub node: Node<Agent>,
    /// The operator's endpoints.
    pub admin: admin::Serving,
    shared: Rc<Shared>,
    renewal: tokio::task::JoinHandle<()>,
    watch: tokio::task::JoinHandle<()>,
}

/// Reads the configuration file, checked in full.
pub type Source = Box<dyn Fn() -> Result<AgentSetup, RunError>>;

impl std::fmt::Debug for RunningAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningAgent").finish_non_exhaustive()
    }
}

/// What an agent's parts share.
struct Shared {
    setup: RefCell<Rc<AgentSetup>>,
    targets: RefCell<BTreeMap<String, Target>>,
    certs: Certs,
    reloads: Reloads,
    /// Keys of the file that wait for a restart.
    restart: RefCell<Vec<&'static str>>,
    source: Option<Source>,
    lines: Limiter,
    metrics: Metrics,
    /// Connectors of the streams that were opened, for their records.
    carried: RefCell<BTreeMap<StreamKey, Name>>,
    connecting: Rc<target::Connecting>,
    /// Opens that failed here, by connector and reason.
    failures: RefCell<BTreeMap<(Name, &'static str), u64>>,
    protocol_errors: RefCell<BTreeMap<&'static str, u64>>,
    /// A signal asked it to leave: the next one ends it.
    stop_asked: Cell<bool>,
    /// The latest token was not taken by some hub.
    token_refused: Cell<bool>,
    /// A tunnel came up since the file was looked at.
    tunnel_came: Cell<bool>,
    /// When the token ends, in seconds since 1970, if it says.
    token_ends: Cell<Option<u64>>,
    /// What the tokens that hubs judged let it expose.
    scopes: RefCell<scope::Scopes>,
    /// Something may have come to its end: see [`RunningAgent::gave_up`].
    gave_up: Notify,
}

impl Shared {
    /// The configuration in force.
    fn setup(&self) -> Rc<AgentSetup> {
        Rc::clone(&self.setup.borrow())
    }
}

/// Starts the machine.
///
/// # Errors
/// As [`run`].
pub fn start(setup: AgentSetup, source: Option<Source>) -> Result<RunningAgent, RunError> {
    let certs = Certs::new(certs::Set::of_agent(&setup).map_err(|e| RunError::Config(e.to_string()))?);
    let targets = reload::targets(&setup)?;
    let endpoints = admin::bind(&setup.admin)?;
    let metrics = Metrics::of_agent().map_err(|e| RunError::Failed(e.to_string()))?;
    let clock = Monotonic::new();
    let shared = Rc::new(Shared {
        lines: Limiter::new(clock),
        metrics,
        carried: RefCell::default(),
        connecting: Rc::default(),
        failures: RefCell::default(),
        protocol_errors: RefCell::default(),
        stop_asked: Cell::new(false),
        token_refused: Cell::new(false),
        tunnel_came: Cell::new(false),
        token_ends: Cell::new(None),
        scopes: RefCell::default(),
        gave_up: Notify::new(),
        targets: RefCell::new(targets),
        certs,
        reloads: Reloads::at_start(),
        restart: RefCell::default(),
        source,
        setup: RefCell::new(Rc::new(setup)),
    });
    let setup = shared.setup();
    // Before the first dial, so that no change falls between.
    let token = read_token(&setup.token_file).ok();
    let mut out = NodeOut::default();
    let (seed, began) = (signals::os_seed(), clock.now());
    let machine = Agent::new(Arc::new(setup.core.clone()), seed, began, &mut out);
    let node = Node::start(machine, out, clock, Box::new(AgentEffects(Rc::clone(&shared))));
    #[cfg(test)]
    node.journal().made(crate::journal::Config::Agent(Box::new(setup.core.clone())), seed, began);
    let app: Rc<dyn admin::AdminApp> = Rc::new(app::App { node: node.clone(), shared: Rc::clone(&shared) });
    let admin = endpoints.serve(&app).map_err(|e| RunError::Failed(e.to_string()))?;
    let renewal = tokio::task::spawn_local(renewal::run(node.clone(), Rc::clone(&shared), token));
    let watch = tokio::task::spawn_local(reload::watch(node.clone(), Rc::clone(&shared)));
    Ok(RunningAgent { node, admin, shared, renewal, watch })
}

impl RunningAgent {
    /// Reloads whenever a signal `asked` for it. One that comes during a reload
    /// is answered by another one afterwards.
    async fn reloads(&self, asked: &Notify) {
        loop {
            asked.notified().await;
            let turn = self.shared.reloads.turn().await;
            reload::run(&self.node, &self.shared, turn).await;
        }
    }

    /// Ends at once.
    pub async fn stop(&self) {
        self.renewal.abort();
        self.watch.abort();
        self.node.input(Input::Shutdown);
        self.node.flushed(Duration::from_secs(1)).await;
        tracing::info!(event = "stopped");
    }

    /// Resolves when every hub was given up and no tunnel is left.
    pub async fn gave_up(&self) {
        while !self.node.look(|agent| agent.tunnels().is_given_up()) {
            self.shared.gave_up.notified().await;
        }
    }
}

/// Withdraws the connectors and lets streams end; the node says when they have.
fn drain(node: &Node<Agent>) {
    node.input(Input::Drain(DrainTimes::at_once(DRAIN)));
}

/// The token of this very dial: the file may have changed (semantics 9).
fn read_token(path: &Path) -> Result<String, String> {
    secret::read("token_file", path, TOKEN_MAX_BYTES)
}

struct AgentEffects(Rc<Shared>);

impl AgentEffects {
    fn record(&self, node: &Node<Agent>, r: &CarriedRecord) {
        // A connect whose time is over ends by itself just now, and is told and
        // counted then; the machine's clock may be a moment ahead.
        if r.cause != Cause::Reset(RstCode::TargetTimeout) {
            self.0.connecting.give_up(r.stream);
        }
        let Some(connector) = self.0.carried.borrow_mut().remove(&r.stream) else { return };
        let setup = self.0.setup();
        let core = &setup.core;
        let target = core.connectors.iter().find(|c| c.name == connector).map_or("", |c| c.target.as_str());
        let owner = node.look(|agent| {
            let entry = r.session.and_then(|key| agent.mux().get(key))?;
            Some(entry.peer.name().to_owned())
        });
        observe::carried_record(r, core.agent_id.as_str(), owner.as_deref(), connector.as_str(), target);
    }
}

impl Effects<Agent> for AgentEffects {
    fn dial(&self, node: &Node<Agent>, ix: TargetIx) {
        let url = node.look(|agent| agent.tunnels().config().hubs.get(usize::from(ix.0)).cloned());
        let known = url.and_then(|url| self.0.targets.borrow().get(&url).cloned());
        if let Some(t) = known {
            let shared = Rc::clone(&self.0);
            let bearer = move || {
                let token = read_token(&shared.setup().token_file)?;
                shared.scopes.borrow_mut().dials_with(&token);
                Ok(Some(token))
            };
            let t = Target { tls: self.0.certs.dialer(), ..t };
            dialer::start(node, ix, &t, bearer, &self.0.lines);
        }
    }

    fn connect(&self, node: &Node<Agent>, stream: StreamKey, connector: Name) {
        self.0.carried.borrow_mut().insert(stream, connector.clone());
        let setup = self.0.setup();
        match setup.core.connectors.iter().find(|c| c.name == connector) {
            Some(c) => {
                let (shared, address) = (Rc::clone(&self.0), c.target.clone());
                let failed = move |code: RstCode| {
                    if let Some(suppressed) = shared.lines.allow("target_failed", &format!("{code} {connector}")) {
                        tracing::warn!(
                            event = "target_failed",
                            %connector,
                            target = address,
                            reason = code.name(),
                            suppressed,
                            "a target could not be connected"
                        );
                    }
                    *shared.failures.borrow_mut().entry((connector, code.name())).or_default() += 1;
                };
                let timeout = setup.core.target_timeout;
                target::start(node, stream, c.target.clone(), timeout, &self.0.connecting, failed);
            }
            None => {
                let node = node.clone();
                tokio::task::spawn_local(async move {
                    node.input(Input::Target { stream, result: Err::<SockKey, _>(RstCode::Denied) });
                });
            }
        }
    }

    fn check(&self, node: &Node<Agent>, check: Check) {
        // The machine knows what is configured; without it the check fails in time.
        let address = node.look(|agent| {
            let mut connectors = agent.tunnels().config().connectors.iter();
            connectors.find(|c| c.name == check.connector).map(|c| c.target.clone())
        });
        if let Some(address) = address {
            target::check(node, check, address);
        }
    }

    fn registry(&self, _node: &Node<Agent>, _token: Token, _op: RegistryOp) {}

    fn prove(&self, _node: &Node<Agent>, _conn: ConnKey, _proof: Proof) {}

    fn trusts(&self, chain: &[CertificateDer<'static>]) -> bool {
        self.0.certs.trusts(chain)
    }

    fn judge(&self, _node: &Node<Agent>, _session: SessionKey, _token: SecretText) {}

    fn close_listeners(&self) {}

    fn observe(&self, node: &Node<Agent>, event: Observed) {
        if let Observed::Carried(r) = &event {
            self.record(node, r);
        }
        if let Observed::Rtt { plane: Plane::Tunnel, sample } = &event {
            self.0.metrics.observe_tunnel_rtt(*sample);
        }
        if let Observed::ProtocolViolation { kind, .. } = &event {
            *self.0.protocol_errors.borrow_mut().entry(kind.name()).or_default() += 1;
        }
        if let Observed::TokenAnswered { peer, accepted } = &event {
            if *accepted {
                self.0.scopes.borrow_mut().accepted(peer);
            } else {
                self.0.token_refused.set(true);
            }
        }
        if let Observed::SessionUp { peer, .. } | Observed::SessionResumed { peer, .. } = &event {
            self.0.scopes.borrow_mut().up(peer);
            self.0.tunnel_came.set(true);
        }
        if let Observed::SessionLost { peer, .. } = &event {
            self.0.scopes.borrow_mut().lost(peer);
        }
        if let Observed::GaveUp { .. } | Observed::SessionLost { .. } = &event {
            self.0.gave_up.notify_one();
        }
        let url = |ix| {
            let listed = node.look(|agent| agent.tunnels().config().hubs.get(usize::from(ix)).cloned());
            listed.and_then(|url| WsUrl::shown(&url))
        };
        observe::event(&event, url, &self.0.lines);
    }
}

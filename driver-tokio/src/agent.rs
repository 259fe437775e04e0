//! An agent process: hubs, targets and signals around the core's `Agent`.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nowconnect_core::agent::Agent;
use nowconnect_core::error::RstCode;
use nowconnect_core::id::{Name, SockKey, StreamKey, TargetIx};
use nowconnect_core::mux::{Input, NodeOut};
use nowconnect_core::observed::Observed;
use nowconnect_core::registry::{RegistryOp, Token};
use nowconnect_core::wire::Plane;

use crate::cli::RunError;
use crate::clock::Monotonic;
use crate::config::AgentSetup;
use crate::dial::WsUrl;
use crate::dialer::{self, Target};
use crate::limiter::Limiter;
use crate::node::{Effects, Node};
use crate::{observe, signals, target, tls};

/// Largest token file, bytes: what the `Authorization` header may carry.
const TOKEN_MAX_BYTES: u64 = 8 * 1024;
/// How long a stopping agent lets its streams end by themselves.
const DRAIN: Duration = Duration::from_secs(60);

/// Runs an agent until it is told to stop.
///
/// # Errors
/// When its configuration cannot be used (exit code 2), or when every hub was
/// given up after `reconnect.max_retries` (exit code 1).
pub fn run(setup: AgentSetup) -> Result<(), RunError> {
    signals::raise_file_limit();
    signals::block_on(async move {
        let mut signals = signals::Signals::new()?;
        let agent = start(setup)?;
        tokio::select! {
            () = signals.first() => {}
            () = agent.gave_up() => return Err(RunError::Failed("every hub was given up (reconnect.max_retries)".to_owned())),
        }
        tokio::select! {
            () = agent.leave() => {}
            () = signals.next() => agent.stop().await,
        }
        Ok(())
    })
}

/// An agent that runs in the current `LocalSet`.
#[derive(Debug)]
pub struct RunningAgent {
    /// The machine.
    pub node: Node<Agent>,
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    setup: AgentSetup,
    targets: Vec<Target>,
    lines: Limiter,
    given_up: Cell<usize>,
    gave_up: tokio::sync::Notify,
}

/// Starts the machine.
///
/// # Errors
/// As [`run`].
pub fn start(setup: AgentSetup) -> Result<RunningAgent, RunError> {
    let needs_tls = setup.core.hubs.iter().any(|h| h.starts_with("wss:"));
    let client = if needs_tls {
        Some(tls::tunnel_client(setup.tls_ca_bundle.as_deref()).map_err(|e| RunError::Config(e.to_string()))?)
    } else {
        None
    };
    let mut targets = Vec::new();
    for hub in &setup.core.hubs {
        let url = WsUrl::parse(hub).map_err(|e| RunError::Config(format!("hubs: {hub}: {e}")))?;
        targets.push(Target { url, tls: client.clone(), dialects: setup.wire.dialects(Plane::Tunnel) });
    }
    let clock = Monotonic::new();
    let shared = Rc::new(Shared {
        lines: Limiter::new(clock),
        given_up: Cell::new(0),
        gave_up: tokio::sync::Notify::new(),
        targets,
        setup,
    });
    let mut out = NodeOut::default();
    let machine = Agent::new(Arc::new(shared.setup.core.clone()), signals::os_seed(), clock.now(), &mut out);
    let node = Node::start(machine, out, clock, Box::new(AgentEffects(Rc::clone(&shared))));
    Ok(RunningAgent { node, shared })
}

impl RunningAgent {
    /// Withdraws the connectors, lets streams end, then stops.
    pub async fn leave(&self) {
        tracing::info!(event = "draining", timeout_ms = DRAIN.as_millis() as u64);
        self.node.input(Input::Drain);
        if tokio::time::timeout(DRAIN, self.node.drained()).await.is_err() {
            tracing::warn!(event = "drain_deadline", "the remaining streams are reset");
        }
        self.stop().await;
    }

    /// Ends at once.
    pub async fn stop(&self) {
        self.node.input(Input::Shutdown);
        self.node.flushed(Duration::from_secs(1)).await;
        tracing::info!(event = "stopped");
    }

    /// Resolves when every hub was given up.
    pub async fn gave_up(&self) {
        self.shared.gave_up.notified().await;
    }
}

/// The token of this very dial: the file may have changed (semantics 9).
fn read_token(path: &PathBuf) -> Result<Option<String>, String> {
    use std::io::Read as _;
    let problem = |e: std::io::Error| format!("token_file {}: {e}", path.display());
    let mut text = String::new();
    std::fs::File::open(path).map_err(problem)?.take(TOKEN_MAX_BYTES + 1).read_to_string(&mut text).map_err(problem)?;
    let token = text.trim();
    if token.is_empty() || token.len() as u64 > TOKEN_MAX_BYTES {
        return Err(format!("token_file {}: expected a token of 1 to {TOKEN_MAX_BYTES} bytes", path.display()));
    }
    Ok(Some(token.to_owned()))
}

struct AgentEffects(Rc<Shared>);

impl Effects<Agent> for AgentEffects {
    fn dial(&self, node: &Node<Agent>, ix: TargetIx) {
        if let Some(t) = self.0.targets.get(usize::from(ix.0)) {
            let path = self.0.setup.token_file.clone();
            dialer::start(node, ix, t, move || read_token(&path), &self.0.lines);
        }
    }

    fn connect(&self, node: &Node<Agent>, stream: StreamKey, connector: Name) {
        match self.0.setup.core.connectors.iter().find(|c| c.name == connector) {
            Some(c) => target::start(node, stream, c.target.clone(), self.0.setup.core.target_timeout),
            None => {
                let node = node.clone();
                tokio::task::spawn_local(async move {
                    node.input(Input::Target { stream, result: Err::<SockKey, _>(RstCode::Denied) });
                });
            }
        }
    }

    fn registry(&self, _node: &Node<Agent>, _token: Token, _op: RegistryOp) {}

    fn observe(&self, _node: &Node<Agent>, event: Observed) {
        if let Observed::GaveUp { .. } = event {
            let n = self.0.given_up.get() + 1;
            self.0.given_up.set(n);
            if n >= self.0.targets.len() {
                self.0.gave_up.notify_one();
            }
        }
        observe::event(&event, &self.0.lines);
    }
}

//! `nowconnect demo`: two hubs, their mesh and an agent in one process on
//! loopback, with the registry in memory; and, when no target is named, a
//! small web server to carry clients to. Everything is what `hub` and `agent`
//! run, from configuration texts like those of `deploy/examples`.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nowconnect_core::id::{AgentId, Name};
use nowconnect_core::observed::StreamRecord;
use tokio::net::TcpListener;

use crate::cert::{self, Signer, TokenRequest};
use crate::cli::{RunError, emit};
use crate::clock::unix_millis;
use crate::config::{ParseOptions, parse_agent, parse_hub};
use crate::hub::{RecordHook, RunningHub};
use crate::registry::{Registry, SharedMemory};
use crate::{agent, hub, net, signals};

/// How long the parts may take to find each other.
const START_LIMIT: Duration = Duration::from_secs(15);

/// What `nowconnect demo` was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DemoOptions {
    /// HOST:PORT of one's own server; an embedded one when absent.
    pub target: Option<String>,
    /// First of the loopback ports to use; chosen by the system when absent.
    pub port_base: Option<u16>,
}

/// Runs the demonstration until SIGINT or SIGTERM.
///
/// # Errors
/// When a port is taken or the parts do not find each other.
pub fn run(options: DemoOptions) -> Result<(), RunError> {
    signals::raise_file_limit();
    signals::block_on(async move {
        let mut signals = signals::Signals::new()?;
        let demo = tokio::select! {
            demo = start(&options) => demo?,
            () = signals.stop() => return Ok(()),
        };
        emit(&demo.greeting)?;
        signals.stop().await;
        demo.agent.stop().await;
        for hub in &demo.hubs {
            hub.stop().await;
        }
        Ok(())
    })
}

pub(crate) struct Demo {
    pub(crate) hubs: [RunningHub; 2],
    pub(crate) agent: agent::RunningAgent,
    /// Where clients connect to, of each hub.
    #[cfg(test)]
    pub(crate) clients: [SocketAddr; 2],
    greeting: String,
    _files: tempfile::TempDir,
}

/// Four loopback ports: client ports of both hubs, HTTP ports of both hubs.
fn ports(base: Option<u16>) -> Result<[u16; 4], RunError> {
    if let Some(base) = base {
        let last =
            base.checked_add(3).ok_or_else(|| RunError::Config("--port-base: expected at most 65532".to_owned()))?;
        return Ok([base, base + 1, base + 2, last]);
    }
    // All at once, so that they differ; each is bound again by its hub.
    let probe = || std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| Ok((l.local_addr()?.port(), l)));
    let failed = |e: std::io::Error| RunError::Failed(format!("no loopback port: {e}"));
    let held = [probe().map_err(failed)?, probe().map_err(failed)?, probe().map_err(failed)?, probe().map_err(failed)?];
    Ok(held.map(|(port, _)| port))
}

pub(crate) async fn start(options: &DemoOptions) -> Result<Demo, RunError> {
    let files = tempfile::TempDir::with_prefix("nowconnect-demo-")
        .map_err(|e| RunError::Failed(format!("a temporary directory cannot be made: {e}")))?;
    let secret = signals::os_seed().0.iter().map(|b| format!("{b:02x}")).collect::<String>();
    write_private(&files.path().join("hmac"), &secret)?;
    let request = TokenRequest {
        agent: AgentId::new("demo-agent").expect("a constant name"),
        connectors: vec![Name::new("demo").expect("a constant name")],
        issuer: "demo".to_owned(),
        audience: "nowconnect".to_owned(),
        ttl: Duration::from_secs(24 * 3600 - 60),
    };
    let signer = Signer::HmacSecretFile(files.path().join("hmac"));
    let token = cert::token(&request, &signer, unix_millis() / 1000).map_err(|e| RunError::Failed(e.to_string()))?;
    write_private(&files.path().join("token"), &token)?;

    let [clients_a, clients_b, http_a, http_b] = ports(options.port_base)?;
    let memory = SharedMemory::default();
    let mut hubs = Vec::new();
    for (name, clients, http, peer) in [("hub-a", clients_a, http_a, http_b), ("hub-b", clients_b, http_b, http_a)] {
        let text = hub_text(name, clients, http, peer, &files.path().join("hmac"));
        let setup =
            parse_hub(&text, &|_| None, ParseOptions::default()).map_err(|e| RunError::Failed(e.to_string()))?;
        hubs.push(
            hub::start(setup, None, Some(Registry::Memory(memory.clone())), (!cfg!(test)).then(|| printer(name)))
                .await?,
        );
    }
    let hubs: [RunningHub; 2] =
        hubs.try_into().map_err(|_| RunError::Failed("two hubs were to be started".to_owned()))?;

    let target = match &options.target {
        Some(t) => t.clone(),
        None => embedded_target()?.to_string(),
    };
    let text = agent_text(http_a, &target, &files.path().join("token"));
    let setup = parse_agent(&text, &|_| None, ParseOptions::default())
        .map_err(|e| RunError::Config(format!("--target {target}: {e}")))?;
    let agent = agent::start(setup, None)?;
    ready(&hubs).await?;

    let clients =
        [SocketAddr::from((Ipv4Addr::LOCALHOST, clients_a)), SocketAddr::from((Ipv4Addr::LOCALHOST, clients_b))];
    let greeting = greeting(clients, [http_a, http_b], &target, options.target.is_none());
    Ok(Demo {
        hubs,
        agent,
        #[cfg(test)]
        clients,
        greeting,
        _files: files,
    })
}

fn write_private(path: &Path, text: &str) -> Result<(), RunError> {
    use std::io::Write as _;
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut f| f.write_all(text.as_bytes()))
        .map_err(|e| RunError::Failed(format!("{}: {e}", path.display())))
}

fn hub_text(name: &str, clients: u16, http: u16, peer: u16, secret: &Path) -> String {
    format!(
        "listeners:\n  - {{ name: demo, bind: '127.0.0.1:{clients}', connector: demo }}\n\
         http: {{ bind: '127.0.0.1:{http}' }}\n\
         auth: {{ jwt: {{ issuer: demo, hmac_secret_file: '{}' }} }}\n\
         ha:\n  enabled: true\n  mode: active\n  replica_id: {name}\n  redis_url: 'redis://in-memory'\n\
         \x20 mesh:\n    peers: ['ws://127.0.0.1:{peer}/mesh']\n    require_mtls: false\n    insecure_allow_plaintext: true\n",
        secret.display()
    )
}

fn agent_text(http: u16, target: &str, token: &Path) -> String {
    format!(
        "agent_id: demo-agent\nhubs: ['ws://127.0.0.1:{http}/tunnel']\ntoken_file: '{}'\n\
         connectors: [{{ name: demo, target: '{target}' }}]\ninsecure_allow_plaintext: true\n",
        token.display()
    )
}

/// Waits until both hubs can carry a client.
async fn ready(hubs: &[RunningHub; 2]) -> Result<(), RunError> {
    let connector = Name::new("demo").expect("a constant name");
    let all = async {
        loop {
            if hubs.iter().all(|h| h.node.look(|hub| hub.could_open(&connector))) {
                return;
            }
            // Start-up only: nothing tells us, so we look again.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(START_LIMIT, all).await.map_err(|_| {
        RunError::Failed("the hubs and the agent did not find each other; see --log-level info".to_owned())
    })
}

fn greeting(clients: [SocketAddr; 2], http: [u16; 2], target: &str, embedded: bool) -> String {
    let [a, b] = clients;
    let [http_a, http_b] = http;
    let (what, how) =
        if embedded { ("an embedded web server", ["curl http://", "/"]) } else { ("your server", ["", ""]) };
    let [before, after] = how;
    format!(
        "nowconnect demo: two hubs, their mesh and one agent in this process, on loopback only\n\n\
         \x20 hub-a   clients on {a}   readiness http://127.0.0.1:{http_a}/readyz\n\
         \x20 hub-b   clients on {b}   readiness http://127.0.0.1:{http_b}/readyz\n\
         \x20 agent   attached to hub-a only; its target is {what} at {target}\n\n\
         Try, in another terminal:\n\
         \x20 {before}{a}{after}      client → hub-a → agent → target\n\
         \x20 {before}{b}{after}      client → hub-b → mesh → hub-a → agent → target\n\n\
         Streams are shown as they end. Ctrl-C stops."
    )
}

/// Prints each stream's path, bytes and time.
fn printer(origin: &'static str) -> RecordHook {
    let number = Rc::new(RefCell::new(0u64));
    Rc::new(move |r: &StreamRecord, client: Option<SocketAddr>| {
        *number.borrow_mut() += 1;
        let path = match &r.owner {
            None => format!("client → {origin} (no route)"),
            Some(_) if r.local => format!("client → {origin} → agent → target"),
            Some(owner) => format!("client → {origin} → mesh → {owner} → agent → target"),
        };
        let client = client.map_or_else(String::new, |c| format!("  from {c}"));
        let line = format!(
            "{path}   {} B up, {} B down, {:.1} ms, {}{client}",
            r.bytes_up,
            r.bytes_down,
            r.total.as_secs_f64() * 1000.0,
            r.cause.name().to_lowercase(),
        );
        // A closed standard output ends the printing, not the demo.
        let _ = emit(&line);
    })
}

/// A web server that says how the request came to it.
fn embedded_target() -> Result<SocketAddr, RunError> {
    let failed = |e: std::io::Error| RunError::Failed(format!("the embedded target cannot listen: {e}"));
    let listener: TcpListener = net::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 128).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tokio::task::spawn_local(async move {
        loop {
            let (tcp, _) = net::accept(&listener).await;
            tokio::task::spawn_local(async move {
                let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    let text = format!(
                        "Hello from the target behind the agent.\n{} {} came through the tunnel.\n",
                        request.method(),
                        request.uri().path()
                    );
                    Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(text))))
                });
                // A client that goes away is none of the target's errors.
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(tcp), service)
                    .await;
            });
        }
    });
    Ok(address)
}

//! Reload of a hub: the file is read, checked in full, everything it needs is
//! made (sockets, keys, certificates), and only then put in force, at once
//! (M7, semantics 9). A file that cannot be used changes nothing and is named
//! with its key and line. What needs a restart is said by name; the rest
//! applies. Streams stay as they are.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;

use nowconnect_core::config::Mode;
use nowconnect_core::hub::Hub;
use nowconnect_core::wire::Plane;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{Shared, bind, connect_registry, trust};
use crate::certs::{self, Certs};
use crate::cli::RunError;
use crate::config::{HubSetup, ListenerBind, ServerTlsFiles};
use crate::dial::WsUrl;
use crate::dialer::Target;
#[cfg(test)]
use crate::journal::{self, Call};
use crate::listener::{self, Port};
use crate::net;
use crate::node::Node;
use crate::reload::{Outcome, Turn};

/// Keys of a hub that a reload leaves as they were, named when they changed.
pub const RESTART: &[&str] = &[
    "admin.bind",
    "admin.socket",
    "admin.token_file",
    "ha.mesh.listen",
    "ha.mesh.listen_tls",
    "ha.namespace",
    "ha.redis_password_file",
    "ha.redis_tls.ca_bundle",
    "ha.redis_tls.cert_file",
    "ha.redis_tls.key_file",
    "ha.redis_url",
    "ha.replica_id",
    "http.bind",
    "limits.handshake_rate",
    "limits.max_handshakes",
    "limits.max_handshakes_per_address",
    "limits.stream_window_initial_bytes",
    "metrics.bind",
    "registry.op_timeout",
];

/// A configured client port.
pub(crate) struct OpenListener {
    /// As configured.
    setup: ListenerBind,
    port: Port,
    /// Where it listens, with the port number it was given.
    addr: SocketAddr,
    task: Option<JoinHandle<()>>,
}

impl OpenListener {
    pub(super) fn new(setup: ListenerBind, socket: TcpListener) -> std::io::Result<Self> {
        let addr = socket.local_addr()?;
        Ok(Self { setup, port: Rc::new(RefCell::new(Some(Rc::new(socket)))), addr, task: None })
    }

    /// The same port under another configuration.
    fn renewed(&self, setup: ListenerBind) -> Self {
        Self { setup, port: Rc::clone(&self.port), addr: self.addr, task: None }
    }

    pub(super) const fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(super) fn name(&self) -> &str {
        self.setup.name.as_str()
    }

    /// Whether its socket listens now and clients are accepted.
    pub(super) fn is_listening(&self) -> bool {
        self.task.is_some() && self.port.borrow().is_some()
    }

    /// Accepts no more; who is in the kernel's queue stays there.
    pub(super) fn pause(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    /// Listens no more: a connect fails at once, and a client tries its next
    /// server.
    pub(super) fn close(&mut self) {
        self.pause();
        self.port.replace(None);
    }

    /// Accepts clients, as the machine's listener of this name.
    pub(super) fn accept(&mut self, node: &Node<Hub>, shared: &Rc<Shared>) {
        self.pause();
        let setup = shared.setup();
        let Some(core) = setup.core.listeners.iter().find(|l| l.name == self.setup.name) else { return };
        let Some(ix) = node.look(|hub| hub.listener(core)) else { return };
        let setting = listener::Setting {
            ix,
            name: self.setup.name.clone(),
            connector: core.connector.clone(),
            allow: self.setup.allow.clone(),
            when_unavailable: self.setup.when_unavailable,
        };
        self.task = Some(tokio::task::spawn_local(listener::run(
            node.clone(),
            setting,
            Rc::clone(&self.port),
            self.addr,
            Rc::clone(&shared.clients),
            shared.lines.clone(),
        )));
    }
}

impl Drop for OpenListener {
    fn drop(&mut self) {
        self.pause();
    }
}

/// Where the peers are.
pub(super) fn targets(setup: &HubSetup) -> Result<BTreeMap<String, Target>, RunError> {
    let target = |url: &String| {
        let parsed = WsUrl::parse(url).map_err(|e| RunError::Config(format!("ha.mesh.peers: {url}: {e}")))?;
        let dialects = setup.mesh_wire.dialects(Plane::Mesh);
        let user_timeout = net::session_user_timeout(setup.core.liveness.dead);
        Ok((url.clone(), Target { url: parsed, tls: None, dialects, user_timeout }))
    };
    setup.core.peers.iter().map(|p| target(&p.url)).collect()
}

/// Puts back what only a restart changes; the names of what it put back.
fn keep(new: &mut HubSetup, old: &HubSetup) -> Vec<&'static str> {
    let mut kept = Vec::new();
    macro_rules! keep {
        ($($key:literal: $($field:ident).+;)*) => {
            $(if new.$($field).+ != old.$($field).+ {
                new.$($field).+ = old.$($field).+.clone();
                kept.push($key);
            })*
        };
    }
    keep! {
        "admin.bind": admin.bind;
        "admin.socket": admin.socket;
        "admin.token_file": admin.token_file;
        "ha.namespace": core.namespace;
        "ha.replica_id": core.replica_id;
        "http.bind": http_bind;
        "limits.handshake_rate": handshake_rate;
        "limits.max_handshakes": core.limits.max_handshakes;
        "limits.max_handshakes_per_address": max_handshakes_per_address;
        "limits.stream_window_initial_bytes": core.limits.stream_window_initial_bytes;
        "metrics.bind": metrics_bind;
        "registry.op_timeout": core.registry.op_timeout;
    }
    if new.mesh_listen.map(|m| m.addr) != old.mesh_listen.map(|m| m.addr) {
        kept.push("ha.mesh.listen");
    }
    if new.mesh_listen.map(|m| m.tls) != old.mesh_listen.map(|m| m.tls) {
        kept.push("ha.mesh.listen_tls");
    }
    new.mesh_listen = old.mesh_listen;
    // While nothing is asked of it, the registry may be another.
    if old.core.mode != Mode::Off {
        keep! {
            "ha.redis_password_file": redis_password_file;
            "ha.redis_tls.ca_bundle": redis_ca_bundle;
            "ha.redis_url": redis_url;
        }
        let file =
            |of: &HubSetup, get: fn(&ServerTlsFiles) -> &PathBuf| of.redis_identity.as_ref().map(|f| get(f).clone());
        for (key, get) in [
            ("ha.redis_tls.cert_file", (|f| &f.cert_file) as fn(&ServerTlsFiles) -> &PathBuf),
            ("ha.redis_tls.key_file", |f| &f.key_file),
        ] {
            if file(new, get) != file(old, get) {
                kept.push(key);
            }
        }
        new.redis_identity.clone_from(&old.redis_identity);
    }
    kept.sort_unstable();
    kept
}

fn is_same_registry(a: &HubSetup, b: &HubSetup) -> bool {
    let place = |s: &HubSetup| {
        let asked = s.core.mode != Mode::Off;
        (asked, s.redis_url.clone(), s.redis_password_file.clone(), s.redis_ca_bundle.clone(), s.redis_identity.clone())
    };
    place(a) == place(b)
}

/// What would not work with what is kept.
fn impossible(new: &HubSetup, old: &HubSetup) -> Option<String> {
    if new.http_tls.is_some() != old.http_tls.is_some() {
        return Some("http.tls cannot be added or removed while the hub runs: restart it".to_owned());
    }
    if new.mesh_tls.is_none() && old.mesh_tls.is_some() && old.mesh_listen.is_some() {
        return Some("ha.mesh.tls cannot be removed while ha.mesh.listen is served: restart the hub".to_owned());
    }
    if new.core.mode == Mode::Active && !new.core.peers.is_empty() && new.redis_url.is_none() {
        return Some(
            "ha.mode: active with peers needs ha.redis_url; that key cannot change now: restart the hub".to_owned(),
        );
    }
    None
}

/// Reads the file and puts it in force, or nothing of it. What is not polled
/// to its end changes nothing and gives its turn back.
pub(super) async fn run(node: &Node<Hub>, shared: &Rc<Shared>, _turn: Turn<'_>) -> Outcome {
    let outcome = match &shared.source {
        Some(source) => match attempt(node, shared, source).await {
            Ok(restart) => Outcome::Applied(restart),
            Err(why) => Outcome::Refused(why.to_string()),
        },
        None => Outcome::Refused("this hub runs without a file".to_owned()),
    };
    shared.reloads.note(&outcome, "ha.mode", shared.setup().core.mode.name());
    outcome
}

async fn attempt(node: &Node<Hub>, shared: &Rc<Shared>, source: &super::Source) -> Result<Vec<&'static str>, RunError> {
    let config = |e: &dyn std::fmt::Display| RunError::Config(e.to_string());
    if node.look(|hub| hub.control().is_draining()) {
        return Err(RunError::Failed("the hub is leaving".to_owned()));
    }
    let old = shared.setup();
    let mut new = source()?;
    let restart = keep(&mut new, &old);
    if let Some(why) = impossible(&new, &old) {
        return Err(RunError::Config(why));
    }
    // The same keys stay, with what was fetched of them.
    let keys = if new.auth == old.auth { None } else { Some(shared.keys().renewed(&new.auth).await?) };
    let mut registry = if is_same_registry(&new, &old) { None } else { Some(Rc::new(connect_registry(&new).await?)) };
    // Nothing waits from here on: certificates that are renewed meanwhile would be
    // put back to those of before, and links that rest on them ended.
    let set = certs::Set::of_hub(&new).map_err(|e| config(&e))?;
    let mut open: Vec<OpenListener> = Vec::new();
    for l in &new.listeners {
        let before = shared.open.borrow();
        let same = before.iter().find(|o| o.setup.addr == l.addr && (l.addr.port() != 0 || o.setup.name == l.name));
        let key = format!("listeners[{}].bind", l.name);
        open.push(match same {
            Some(same) => same.renewed(l.clone()),
            None => OpenListener::new(l.clone(), bind(l.addr, &key)?)
                .map_err(|e| RunError::Failed(format!("{key}: {}: {e}", l.addr)))?,
        });
    }
    // What the machine wants dialled must be there.
    let mut targets = targets(&new)?;
    // A removed peer's link may have to come back while streams use it up.
    for (url, target) in shared.targets.borrow().iter() {
        targets.entry(url.clone()).or_insert_with(|| target.clone());
    }
    let targets_before = shared.targets.replace(targets);
    // What is asked on the way out of the registry goes to the one of before.
    let joins = new.core.mode != Mode::Off;
    let registry_before = registry.take_if(|_| joins).map(|new| shared.registry.replace(new));
    let drain = new.drain.timeout;
    #[cfg(test)]
    node.journal().calls(Call::Reload(journal::Config::Hub(Box::new(new.core.clone())), drain));
    if let Err(e) = node.enter(|hub, now, out| hub.reload(now, &new.core, drain, out)) {
        shared.targets.replace(targets_before);
        if let Some(before) = registry_before {
            shared.registry.replace(before);
        }
        return Err(RunError::Config(e.to_string()));
    }
    if let Some(keys) = keys {
        keys.begin();
        shared.keys.replace(Rc::new(keys));
    }
    if let Some(registry) = registry {
        shared.registry.replace(registry);
    }
    shared.certs.install(set);
    shared.keys().trust(shared.certs.jwks());
    shared.setup.replace(Rc::new(new));
    // The sockets that are not wanted any more close here.
    drop(shared.open.replace(open));
    for l in shared.open.borrow_mut().iter_mut() {
        l.accept(node, shared);
    }
    shared.certs.verify_again(node);
    trust::judge_links(node, &shared.certs);
    shared.restart.replace(restart.clone());
    Ok(restart)
}

/// Looks after the files of certificates until the task is dropped.
pub(super) async fn watch(node: Node<Hub>, shared: Rc<Shared>) {
    loop {
        tokio::time::sleep(certs::LOOK_EVERY).await;
        let certs: &Certs = &shared.certs;
        if certs.renew(&node, |used| certs::Piece::of_hub(&shared.setup(), used)) {
            shared.keys().trust(certs.jwks());
            trust::judge_links(&node, certs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ParseOptions, parse_hub};

    fn setup(text: &str) -> HubSetup {
        parse_hub(text, &|_| None, ParseOptions::default()).unwrap()
    }

    const OLD: &str = "\
http: { bind: '127.0.0.1:1' }
ha:
  enabled: true
  mode: shadow
  replica_id: a
  redis_url: redis://a
  mesh: { listen: '127.0.0.1:2', listen_tls: ingress, tls: { ca_bundle: a, cert_file: a, key_file: a } }
";

    #[test]
    fn what_needs_a_restart_is_kept_and_named_and_nothing_else_is() {
        let old = setup(OLD);
        let everything = "\
http: { bind: '127.0.0.1:9', degraded_status: 503 }
metrics: { bind: '127.0.0.1:8' }
admin: { socket: /s, bind: '127.0.0.1:7', token_file: /t }
ha:
  enabled: true
  mode: active
  replica_id: b
  namespace: other
  redis_url: rediss://b
  redis_password_file: /p
  redis_tls: { ca_bundle: c, cert_file: c, key_file: c }
  mesh: { listen: '127.0.0.1:3', listen_tls: native, tls: { ca_bundle: b, cert_file: b, key_file: b } }
registry: { op_timeout: 400ms, lease: 20s }
limits: { handshake_rate: 5, max_handshakes: 5, max_handshakes_per_address: 5, stream_window_initial_bytes: 16384, max_streams: 7 }
";
        let mut new = setup(everything);
        assert_eq!(keep(&mut new, &old), RESTART);
        assert_eq!(keep(&mut new, &old), Vec::<&str>::new(), "all of it was put back");
        assert_eq!((new.core.mode, new.core.limits.max_streams, new.degraded_status), (Mode::Active, 7, 503));
        let mut off = setup(&OLD.replace("shadow", "off"));
        let mut other = setup(&OLD.replace("redis://a", "redis://b"));
        assert_eq!(keep(&mut other, &off), Vec::<&str>::new(), "while it is off the registry is free to change");
        off.redis_url = None;
        assert!(impossible(&setup(OLD), &off).is_none());
    }

    /// `liveness.dead` reaches the sockets, also after a reload.
    #[tokio::test]
    async fn a_longer_silence_is_borne_by_the_kernel_too() {
        use crate::http::HttpApp as _;
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), [b'a'; 32]).unwrap();
        let with = |dead: &str| {
            setup(&format!(
                "{{ liveness: {{ dead: {dead} }}, http: {{ bind: '127.0.0.1:0' }}, auth: {{ jwt: {{ issuer: i, \
                 algorithms: [HS256], hmac_secret_file: {} }} }}, ha: {{ mesh: {{ insecure_allow_plaintext: true, \
                 peers: ['ws://127.0.0.1:1/mesh'] }} }} }}",
                secret.path().display()
            ))
        };
        let longer = with("60s");
        let local = tokio::task::LocalSet::new();
        let test = async move {
            let source: crate::hub::Source = Box::new(move || Ok(longer.clone()));
            let hub = crate::hub::start(with("25s"), Some(source), None, None).await.unwrap();
            let app = crate::hub::app::App::new(hub.node.clone(), Rc::clone(&hub.shared));
            let both = || {
                let dialled = hub.shared.targets.borrow().values().map(|t| t.user_timeout.as_secs()).collect();
                (app.user_timeout().as_secs(), dialled)
            };
            assert_eq!(both(), (25, vec![25]));
            let turn = hub.shared.reloads.turn().await;
            assert!(matches!(run(&hub.node, &hub.shared, turn).await, Outcome::Applied(_)));
            assert_eq!(both(), (60, vec![60]));
        };
        Box::pin(local.run_until(test)).await;
    }

    /// A bundle with other CAs under the same name, and one that cannot be used.
    #[tokio::test]
    async fn a_reload_reads_the_cas_of_the_key_set_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name).display().to_string();
        let own = rcgen::generate_simple_self_signed(["idp".to_owned()]).unwrap().cert.pem();
        std::fs::write(file("ca"), &own).unwrap();
        std::fs::write(file("secret"), [b'a'; 32]).unwrap();
        let text = format!(
            "{{ http: {{ bind: '127.0.0.1:0' }}, auth: {{ jwt: {{ issuer: i, hmac_secret_file: {}, jwks_url: \
             'https://127.0.0.1:1/keys', jwks_ca_bundle: {} }} }} }}",
            file("secret"),
            file("ca")
        );
        let local = tokio::task::LocalSet::new();
        let test = async move {
            let again = text.clone();
            let source: crate::hub::Source = Box::new(move || Ok(setup(&again)));
            let hub = crate::hub::start(setup(&text), Some(source), None, None).await.unwrap();
            let trusted = || hub.shared.keys().jwks.as_ref().and_then(|jwks| jwks.tls()).unwrap();
            let first = trusted();
            // Nobody else looks: the reload has to.
            hub.watch.abort();
            let turn = hub.shared.reloads.turn().await;
            assert!(matches!(run(&hub.node, &hub.shared, turn).await, Outcome::Applied(_)));
            let second = trusted();
            assert!(!std::sync::Arc::ptr_eq(&first, &second), "the bundle was not read again");
            std::fs::write(file("ca"), "none").unwrap();
            let turn = hub.shared.reloads.turn().await;
            let Outcome::Refused(why) = run(&hub.node, &hub.shared, turn).await else { panic!("a broken bundle") };
            assert!(why.contains("auth.jwt.jwks_ca_bundle"), "{why}");
            assert!(std::sync::Arc::ptr_eq(&second, &trusted()), "the last good one stays");
        };
        Box::pin(local.run_until(test)).await;
    }

    #[test]
    fn the_documentation_names_the_same_keys() {
        let page = include_str!("../../../docs/configuration.md");
        for (whose, keys) in [("hub", RESTART), ("agent", crate::agent::RESTART)] {
            let list = page.split(&format!("<!-- restart: {whose} -->\n")).nth(1).unwrap().lines().next().unwrap();
            let named: Vec<&str> = list.split(", ").map(|k| k.trim_matches('`')).collect();
            assert_eq!(named, keys, "{whose}");
        }
    }
}

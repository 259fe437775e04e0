//! The ingress configurations in `deploy/ingress`, run: real nginx and HAProxy
//! from these very files, with ports, names and paths of the test put in.
//! Tunnels and links go through them, a hub without a certificate does not, an
//! idle session is not cut, and client ports lead to a hub that serves. Traefik
//! is not installed by ./test: its files are read and checked.

#![allow(clippy::unwrap_used, clippy::unwrap_in_result, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nowconnect_tests::actors::{Pinger, Transfer};
use nowconnect_tests::certs::Authority;
use nowconnect_tests::cluster::{Cluster, Plan, hub_name};
use nowconnect_tests::ports::Port;
use nowconnect_tests::process::{Process, Signal, installed, nowconnect_path, run};
use nowconnect_tests::target::Target;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const NGINX: &str = include_str!("../../deploy/ingress/nginx.conf");
const HAPROXY: &str = include_str!("../../deploy/ingress/haproxy.cfg");

/// Puts values of the test into a file; each placeholder must be there.
fn filled(text: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from} is not in the file any more");
        text.replace(from, to)
    })
}

/// A front server: the port agents and hubs use, and the one of clients.
struct Edge {
    _process: Process,
    tls: Port,
    clients: Port,
}

#[derive(Clone, Copy)]
enum Kind {
    Nginx,
    HaProxy,
}

impl Edge {
    /// In front of hub `ix`: its /tunnel as `127.0.0.1`, its /mesh as
    /// `localhost`, cutting what is silent for ten seconds; and in front of
    /// the client ports of both hubs.
    async fn start(kind: Kind, cluster: &Cluster, ix: usize) -> Self {
        let (tls, clients) = (Port::reserve(), Port::reserve());
        let dir = cluster.dir().join(format!("edge-{ix}"));
        fs::create_dir(&dir).unwrap();
        let name = hub_name(ix);
        let file = |name: &str| cluster.dir().join(name).display().to_string();
        let hub = cluster.hubs[ix].http().to_string();
        let both = [0, 1].map(|ix| cluster.listener(ix, "t").to_string());
        let process = match kind {
            Kind::Nginx => {
                let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|what| format!("    {what}_temp_path {}/{what};\n", dir.display()))
                    .concat();
                let text = filled(
                    NGINX,
                    &[
                        ("http {\n", format!("http {{\n{temporary}")),
                        ("/run/nginx.pid", dir.join("pid").display().to_string()),
                        ("/var/log/nginx/error.log warn", "stderr warn".to_owned()),
                        ("worker_processes auto", "worker_processes 1".to_owned()),
                        ("worker_rlimit_nofile 131072;\n", String::new()),
                        ("worker_connections 32768", "worker_connections 1024".to_owned()),
                        ("listen 443", format!("listen {}", tls.addr)),
                        ("listen 389", format!("listen {}", clients.addr)),
                        ("server_name hub-a.example.com", "server_name 127.0.0.1".to_owned()),
                        ("server_name mesh-a.example.com", "server_name localhost".to_owned()),
                        ("/etc/nginx/nowconnect/hub-a.crt", file(&format!("{name}.crt"))),
                        ("/etc/nginx/nowconnect/hub-a.key", file(&format!("{name}.key"))),
                        ("/etc/nginx/nowconnect/mesh-ca.pem", file("ca.pem")),
                        ("127.0.0.1:8765", hub.clone()),
                        ("127.0.0.1:8767", hub),
                        ("10.0.0.11:389", both[0].clone()),
                        ("10.0.0.12:389", both[1].clone()),
                        ("proxy_read_timeout 60s", "proxy_read_timeout 10s".to_owned()),
                        ("proxy_send_timeout 60s", "proxy_send_timeout 10s".to_owned()),
                    ],
                );
                fs::write(dir.join("nginx.conf"), text).unwrap();
                let mut command = Command::new(installed("nginx", "nginx"));
                command.arg("-p").arg(&dir).arg("-c").arg(dir.join("nginx.conf")).args([
                    "-e",
                    "stderr",
                    "-g",
                    "daemon off;",
                ]);
                Process::spawn("nginx", command)
            }
            Kind::HaProxy => {
                let pem = [file(&format!("{name}.crt")), file(&format!("{name}.key"))]
                    .map(|f| fs::read_to_string(f).unwrap());
                fs::write(dir.join("edge.pem"), pem.concat()).unwrap();
                let checked = [0, 1].map(|ix| cluster.hubs[ix].http().port());
                let text = filled(
                    HAPROXY,
                    &[
                        ("maxconn 40000", "maxconn 1000".to_owned()),
                        ("bind :443", format!("bind {}", tls.addr)),
                        ("bind :389", format!("bind {}", clients.addr)),
                        ("-i hub-a.example.com", "-i 127.0.0.1".to_owned()),
                        ("-i mesh-a.example.com", "-i localhost".to_owned()),
                        ("/etc/haproxy/nowconnect/hub-a.pem", dir.join("edge.pem").display().to_string()),
                        ("/etc/haproxy/nowconnect/mesh-ca.pem", file("ca.pem")),
                        ("10.0.0.11:389 check port 8765", format!("{} check port {}", both[0], checked[0])),
                        ("10.0.0.12:389 check port 8765", format!("{} check port {}", both[1], checked[1])),
                        ("127.0.0.1:8765", hub.clone()),
                        ("127.0.0.1:8767", hub),
                        ("/readyz/l1", "/readyz/t".to_owned()),
                        ("timeout tunnel 60s", "timeout tunnel 10s".to_owned()),
                    ],
                );
                fs::write(dir.join("haproxy.cfg"), text).unwrap();
                let mut command = Command::new(installed("haproxy", "haproxy"));
                command.arg("-db").arg("-f").arg(dir.join("haproxy.cfg"));
                Process::spawn("haproxy", command)
            }
        };
        for port in [&tls, &clients] {
            eventually("the front server listens", PATIENCE, || async {
                assert!(process.runs(), "it ended");
                TcpStream::connect(port.addr).await.ok()
            })
            .await;
        }
        Self { _process: process, tls, clients }
    }
}

/// Replaces in a configuration; the text must be there.
fn edit(file: &Path, changes: &[(String, String)]) {
    let text = fs::read_to_string(file).unwrap();
    let changed = changes.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from.as_str()), "{from} in {text}");
        text.replace(from.as_str(), to)
    });
    fs::write(file, changed).unwrap();
}

/// Sends every tunnel and link through the edges: TLS ends there.
async fn go_through(cluster: &mut Cluster, edges: &[Edge; 2]) {
    let file = |name: &str| cluster.dir().join(name).display().to_string();
    for ix in [0, 1] {
        let (name, other) = (hub_name(ix), 1 - ix);
        let tls = format!(
            "tls: {{ ca_bundle: {}, cert_file: {}, key_file: {} }}",
            file("ca.pem"),
            file(&format!("{name}.crt")),
            file(&format!("{name}.key"))
        );
        let peer =
            format!("{{ url: 'wss://localhost:{}/mesh', replica_id: {} }}", edges[other].tls.number(), hub_name(other));
        edit(
            &cluster.hub_file(ix),
            &[
                (format!("'ws://{}/mesh'", cluster.hubs[other].http()), peer),
                (
                    "require_mtls: false\n    insecure_allow_plaintext: true".to_owned(),
                    format!("listen_tls: ingress\n    require_mtls: true\n    {tls}"),
                ),
            ],
        );
    }
    edit(
        &cluster.agent_file(),
        &[
            (format!("ws://{}/tunnel", cluster.hubs[0].http()), format!("wss://{}/tunnel", edges[0].tls.addr)),
            ("insecure_allow_plaintext: true".to_owned(), format!("tls: {{ ca_bundle: {} }}", file("ca.pem"))),
        ],
    );
    cluster.kill_agent();
    for ix in [0, 1] {
        cluster.kill_hub(ix);
        cluster.start_hub(ix);
    }
    cluster.start_agent();
    cluster.wait_ready().await;
}

/// Status of a GET over TLS to `name`, asking for `host`; an error when the
/// connection is refused.
async fn get(edge: SocketAddr, tls: &Arc<ClientConfig>, name: &str, host: &str, path: &str) -> std::io::Result<u16> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let socket = TcpStream::connect(edge).await?;
    let mut io = TlsConnector::from(Arc::clone(tls)).connect(name, socket).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    match io.read_to_end(&mut answer).await {
        Err(e) if answer.is_empty() => return Err(e),
        _ => {}
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok());
    status.ok_or_else(|| std::io::Error::other("no HTTP answer"))
}

/// Neither without a certificate nor with a stranger's does anything reach
/// /mesh; with one of our CA it does, and what answers then is the hub.
async fn only_hubs_reach_the_mesh(cluster: &Cluster, edge: &Edge) {
    let at = edge.tls.addr;
    let nobody = cluster.authority.client(None);
    let ours = cluster.authority.issue("prober", &["prober"]);
    let hub = cluster.authority.client(Some(&ours));
    let strangers = cluster.dir().join("strangers");
    fs::create_dir_all(&strangers).unwrap();
    let stranger = Authority::create(&strangers, "ca").issue("stranger", &["hub-b"]);
    let stranger = cluster.authority.client(Some(&stranger));
    let status = |tls: Arc<ClientConfig>, name: &'static str, host: &'static str, path: &'static str| async move {
        bounded("the answer", PATIENCE, get(at, &tls, name, host, path)).await
    };
    // The hub wants an upgrade: 426 is its answer, not the edge's.
    assert_eq!(status(Arc::clone(&hub), "localhost", "localhost", "/mesh").await.unwrap(), 426);
    for (who, tls, name) in [
        ("no certificate", &nobody, "localhost"),
        ("no certificate, by way of the other host", &nobody, "127.0.0.1"),
        ("a stranger's certificate", &stranger, "localhost"),
    ] {
        match status(Arc::clone(tls), name, "localhost", "/mesh").await {
            Ok(code) => assert!([400, 403, 421].contains(&code), "{who}: {code}"),
            Err(_) => assert_eq!(who, "a stranger's certificate", "only a bad certificate may end the handshake"),
        }
    }
    // Agents need no certificate, and nothing else is shown outside.
    assert_eq!(status(Arc::clone(&nobody), "127.0.0.1", "127.0.0.1", "/tunnel").await.unwrap(), 426);
    for path in ["/readyz", "/metrics", "/mesh", "/tunnel/x"] {
        assert_eq!(status(Arc::clone(&nobody), "127.0.0.1", "127.0.0.1", path).await.unwrap(), 404, "{path}");
    }
}

const PAGE: &str = include_str!("../../docs/ingress.md");

/// The self-check of docs/ingress.md, run as it is printed there but for the
/// mesh's address, in a directory with the files it names. The three answers are
/// those of the page for `front`: nobody, a stranger, a hub of ours.
async fn the_self_check_answers_as_printed(cluster: &Cluster, mesh: SocketAddr, front: &str) {
    let section = PAGE.split("\n## Self-check\n").nth(1).expect("the section of the self-check");
    let section = section.split("\n## ").next().unwrap();
    let script = section.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let host = "mesh-a.example.com/";
    assert_eq!(script.matches(host).count(), 1);
    let script = script.replace(host, &format!("localhost:{}/", mesh.port()));
    let row = section.lines().find(|l| l.starts_with(&format!("| {front}"))).expect("a row for it");
    let cells: Vec<&str> = row.split('|').map(str::trim).collect();
    assert_eq!(cells[5], "run by the tests");

    let dir = tempfile::tempdir().unwrap();
    for file in ["ca.pem", "hub-b.crt", "hub-b.key"] {
        fs::copy(cluster.dir().join(file), dir.path().join(file)).unwrap();
    }
    let _curl = installed("curl", "curl");
    let bin = nowconnect_path();
    let path = format!("{}:{}", bin.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["-euc", &script]).current_dir(dir.path()).env("PATH", path);
    for proxy in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    let done = bounded("the self-check", PATIENCE, run(command)).await;
    assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
    let answers: Vec<&str> = done.stdout.lines().filter(|l| l.len() == 3).collect();
    assert_eq!(answers, cells[2..5], "{front}: {}{}", done.stdout, done.stderr);
}

/// Without an edge, the port passed through as it is: the same command asks the hub.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_ends_tls_itself_answers_the_self_check() {
    let cluster = Plan { tls: true, ..Plan::default() }.start().await;
    the_self_check_answers_as_printed(&cluster, cluster.hubs[0].mesh(), "the hub itself").await;
}

async fn tunnels_and_links_pass(kind: Kind) {
    let target = Target::start().await;
    let mut cluster = Plan::default().connector("t", target.addr).start().await;
    let edges = [Edge::start(kind, &cluster, 0).await, Edge::start(kind, &cluster, 1).await];
    go_through(&mut cluster, &edges).await;
    only_hubs_reach_the_mesh(&cluster, &edges[0]).await;
    let front = match kind {
        Kind::Nginx => "nginx",
        Kind::HaProxy => "HAProxy",
    };
    the_self_check_answers_as_printed(&cluster, edges[0].tls.addr, front).await;

    // Clients of hub B are carried by B's edge, the link, A's edge and the tunnel.
    let mut idle = Pinger::open(cluster.listener(1, "t"), 1).await.unwrap();
    for (n, transfer) in Transfer::ALL.into_iter().enumerate() {
        assert_eq!(transfer.run(cluster.listener(1, "t"), 10 + n as u64, 2 << 20).await, Ok(()));
        // The L4 front: a half-closed client still gets its answer.
        assert_eq!(transfer.run(edges[0].clients.addr, 20 + n as u64, 300_000).await, Ok(()));
    }
    cluster.wait_metric(1, "nowconnect_streams_total", &[("path", "mesh")], 4.0).await;
    // One of two simultaneous dials gives way at the start; no more.
    cluster.wait_no_handshake().await;
    let ends = async |ix: usize| {
        let page = cluster.metrics(ix).await;
        ["nowconnect_sessions_suspended_total", "nowconnect_sessions_lost_total"].map(|n| page.sum(n, &[]).unwrap())
    };
    let before = [ends(0).await, ends(1).await];
    assert!(before.iter().all(|[suspended, lost]| *suspended == 0.0 && *lost <= 1.0), "{before:?}");
    // Silent for longer than the edges bear silence: the pings, one a second, keep it alive.
    let rtts = ["nowconnect_tunnel_rtt_seconds_count", "nowconnect_mesh_rtt_seconds_count"];
    let page = cluster.metrics(0).await;
    for name in rtts {
        cluster.wait_metric(0, name, &[], page.sum(name, &[]).unwrap() + 12.0).await;
    }
    bounded("an echo after the silence", PATIENCE, idle.ping(1000)).await.unwrap();
    for ix in [0, 1] {
        assert_eq!(ends(ix).await, before[ix], "sessions suspended and lost at {}", hub_name(ix));
    }
    idle.close().await.unwrap();
    cluster.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_and_links_pass_nginx() {
    tunnels_and_links_pass(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_and_links_pass_haproxy() {
    tunnels_and_links_pass(Kind::HaProxy).await;
}

async fn with_tunnels_to_both() -> (Target, Cluster) {
    let target = Target::start().await;
    let plan = Plan { attach: vec![0, 1], parallel: 2, ..Plan::default() };
    let cluster = plan.connector("t", target.addr).start().await;
    for ix in [0, 1] {
        cluster.wait_metric(ix, "nowconnect_tunnels", &[], 1.0).await;
    }
    (target, cluster)
}

/// HAProxy asks `/readyz/LISTENER`: a hub that drains gets no new client, and
/// none is refused meanwhile (L10).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_moves_clients_off_a_draining_hub() {
    let (_target, mut cluster) = with_tunnels_to_both().await;
    let edge = Edge::start(Kind::HaProxy, &cluster, 0).await;
    // Its checks begin with "up": wait until both hubs were given clients.
    for ix in [0, 1] {
        eventually("both hubs get clients", PATIENCE, || async {
            assert_eq!(Transfer::Echo.run(edge.clients.addr, 1, 1000).await, Ok(()));
            let n = cluster.metrics(ix).await.sum("nowconnect_streams_total", &[])?;
            (n >= 1.0).then_some(())
        })
        .await;
    }
    cluster.hubs[0].running().signal(Signal::TERM);
    let mut carried = 0_u64;
    while cluster.hubs[0].process.as_mut().unwrap().exited().is_none() {
        carried += 1;
        assert_eq!(Transfer::Echo.run(edge.clients.addr, carried, 1000).await, Ok(()), "client {carried}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(Transfer::Echo.run(edge.clients.addr, 0, 1000).await, Ok(()), "after its end");
    assert!(carried > 10, "{carried}");
}

/// nginx does not ask; a hub that is gone refuses the connect, and the next one
/// gets the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_takes_the_next_hub_when_one_is_gone() {
    let (_target, mut cluster) = with_tunnels_to_both().await;
    let edge = Edge::start(Kind::Nginx, &cluster, 0).await;
    cluster.kill_hub(0);
    for n in 0..5 {
        let outcome = bounded("a client", LONG_PATIENCE, Transfer::Echo.run(edge.clients.addr, n, 100_000)).await;
        assert_eq!(outcome, Ok(()), "client {n}");
    }
    cluster.kill_hub(1);
    cluster.start_hub(0);
    cluster.wait_open(0, "t").await;
    eventually("back at the first", LONG_PATIENCE, || async {
        Transfer::Echo.run(edge.clients.addr, 9, 1000).await.ok()
    })
    .await;
}

/// Seconds of a directive such as `proxy_read_timeout 60s;`.
fn seconds(text: &str, directive: &str) -> u64 {
    let line = text.lines().find_map(|l| l.trim().strip_prefix(directive)).unwrap_or_else(|| panic!("{directive}"));
    line.trim().trim_end_matches(';').trim_end_matches('s').parse().unwrap()
}

#[test]
fn edges_bear_more_silence_than_sessions() {
    // Defaults of docs/configuration.md.
    let page = include_str!("../../docs/configuration.md");
    let row = page.lines().find(|l| l.starts_with("| `liveness.dead` |")).unwrap();
    let dead: u64 = row.split('|').nth(2).unwrap().trim().trim_end_matches('s').parse().unwrap();
    for (text, directive) in [(NGINX, "proxy_read_timeout"), (NGINX, "proxy_send_timeout"), (HAPROXY, "timeout tunnel")]
    {
        assert!(seconds(text, directive) > dead, "{directive}: a session that is suspect must not be cut by its edge");
    }
    assert!(NGINX.contains("proxy_buffering off;"));
}

fn traefik(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/ingress/traefik").join(name);
    serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Paths of all leaves; list indexes as `[]`.
fn leaves(at: &str, value: &Value, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                leaves(&format!("{at}.{key}"), value, out);
            }
        }
        Value::Array(list) => list.iter().for_each(|v| leaves(&format!("{at}[]"), v, out)),
        Value::Object(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.insert(at.to_owned());
        }
    }
}

/// Whether `path` is `pattern`, where `*` stands for one name.
fn matches(pattern: &str, path: &str) -> bool {
    let (a, b): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), path.split('.').collect());
    a.len() == b.len() && a.iter().zip(b).all(|(p, s)| *p == "*" || *p == s)
}

/// Keys of Traefik 3 that these files use; another one is a slip of the pen.
const TRAEFIK_KEYS: &[&str] = &[
    ".entryPoints.*.address",
    ".entryPoints.*.transport.respondingTimeouts.readTimeout",
    ".providers.file.filename",
    ".providers.file.watch",
    ".log.level",
    ".http.routers.*.rule",
    ".http.routers.*.entryPoints[]",
    ".http.routers.*.service",
    ".http.routers.*.tls",
    ".http.routers.*.tls.options",
    ".http.services.*.loadBalancer.servers[].url",
    ".http.services.*.loadBalancer.healthCheck.path",
    ".http.services.*.loadBalancer.healthCheck.interval",
    ".http.services.*.loadBalancer.healthCheck.timeout",
    ".tcp.routers.*.rule",
    ".tcp.routers.*.entryPoints[]",
    ".tcp.routers.*.service",
    ".tcp.services.*.loadBalancer.servers[].address",
    ".tls.certificates[].certFile",
    ".tls.certificates[].keyFile",
    ".tls.options.*.minVersion",
    ".tls.options.*.clientAuth.clientAuthType",
    ".tls.options.*.clientAuth.caFiles[]",
];

#[test]
fn traefik_files_are_consistent() {
    let (statics, dynamic) = (traefik("static.yml"), traefik("dynamic.yml"));
    let mut used = BTreeSet::new();
    leaves("", &statics, &mut used);
    leaves("", &dynamic, &mut used);
    for path in &used {
        assert!(TRAEFIK_KEYS.iter().any(|key| matches(key, path)), "{path} is no key of Traefik");
    }
    for key in TRAEFIK_KEYS {
        assert!(used.iter().any(|path| matches(key, path)), "{key} is used no more");
    }
    let mut hosts = BTreeSet::new();
    for plane in ["http", "tcp"] {
        for (name, router) in dynamic[plane]["routers"].as_object().unwrap() {
            assert!(dynamic[plane]["services"][router["service"].as_str().unwrap()].is_object(), "{name}: its service");
            for entry in router["entryPoints"].as_array().unwrap() {
                assert!(statics["entryPoints"][entry.as_str().unwrap()].is_object(), "{name}: its entry point");
            }
            if let Some(options) = router["tls"]["options"].as_str() {
                assert!(dynamic["tls"]["options"][options].is_object(), "{name}: its TLS options");
            }
            let host = router["rule"].as_str().unwrap().split('`').nth(1).unwrap().to_owned();
            assert!(hosts.insert(host), "{name}: routers that share a host may get each other's TLS options");
        }
    }
    let mesh = &dynamic["http"]["routers"]["mesh"];
    let options = &dynamic["tls"]["options"][mesh["tls"]["options"].as_str().unwrap()];
    assert_eq!(options["clientAuth"]["clientAuthType"], "RequireAndVerifyClientCert");
    assert!(!options["clientAuth"]["caFiles"].as_array().unwrap().is_empty());
    assert!(mesh["rule"].as_str().unwrap().contains("Path(`/mesh`)"));
}

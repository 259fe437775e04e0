//! A hub's own ports in one process: whom they let in before authentication
//! (semantics 8), and what a start that is refused says and leaves behind.

#![allow(clippy::unwrap_used, reason = "tests")]

mod transport;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use nowconnect::cli::RunError;
use nowconnect::config::{ParseOptions, parse_hub};
use nowconnect::hub::{RunningHub, start};
use nowconnect::net;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;
use transport::run;

/// Starts a hub with `limits`; what it reads lies in the directory.
async fn with_limits(limits: &str) -> (RunningHub, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, [b'a'; 32]).unwrap();
    let text = format!(
        "http: {{ bind: '127.0.0.1:0' }}\nmetrics: {{ bind: '127.0.0.1:0' }}\nlimits: {{ {limits} }}\n\
         auth: {{ jwt: {{ issuer: i, algorithms: [HS256], hmac_secret_file: {} }} }}\n",
        secret.display()
    );
    let setup = parse_hub(&text, &|_| None, ParseOptions::default()).unwrap();
    (start(setup, None, None, None).await.unwrap(), dir)
}

async fn from(source: Ipv4Addr, hub: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    socket.connect(hub).await
}

/// What `/healthz` answers a client at `source`.
async fn asked_from(source: Ipv4Addr, hub: SocketAddr) -> std::io::Result<String> {
    let mut tcp = from(source, hub).await?;
    tcp.write_all(b"GET /healthz HTTP/1.1\r\nHost: hub\r\n\r\n").await?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

const OK: &str = "HTTP/1.1 200 OK";
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// `limits.max_handshakes_per_address`.
#[test]
fn an_address_at_its_cap_is_refused_and_another_one_served() {
    run(async {
        let (hub, _dir) = with_limits("max_handshakes_per_address: 1").await;
        for port in [hub.http, hub.metrics.unwrap()] {
            let _idle = from(Ipv4Addr::LOCALHOST, port).await.unwrap();
            let refused = asked_from(Ipv4Addr::LOCALHOST, port).await.unwrap_err().kind();
            assert!(matches!(refused, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{refused:?}");
            assert_eq!(asked_from(OTHER, port).await.unwrap(), OK);
        }
    });
}

/// `limits.handshake_rate`, of each port for itself.
#[test]
fn each_port_takes_so_many_connections_a_second() {
    run(async {
        let began = Instant::now();
        let (hub, _dir) = with_limits("handshake_rate: 1").await;
        for port in [hub.http, hub.metrics.unwrap()] {
            let ask = || asked_from(Ipv4Addr::LOCALHOST, port);
            let (a, b) = tokio::join!(ask(), ask());
            assert_eq!([a.unwrap(), b.unwrap()], [OK, OK], "nobody is refused");
        }
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(2), "the second one at each port did not wait: {took:?}");
    });
}

/// A port of this test's alone: bound and not listening, so that a hub can.
struct Reserved {
    addr: SocketAddr,
    _socket: Socket,
}

impl Reserved {
    fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        Self { addr: socket.local_addr().unwrap().as_socket().unwrap(), _socket: socket }
    }
}

/// Everything a hub can listen on, and files that can be used.
struct Place {
    ports: Vec<(&'static str, Reserved)>,
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let keys = ["listeners[l1].bind", "http.bind", "metrics.bind", "ha.mesh.listen", "admin.bind"];
        let dir = tempfile::tempdir().unwrap();
        let own = rcgen::generate_simple_self_signed(["hub-a".to_owned()]).unwrap();
        for (name, text) in
            [("secret", "a".repeat(32)), ("good.crt", own.cert.pem()), ("good.key", own.signing_key.serialize_pem())]
        {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Self { ports: keys.map(|key| (key, Reserved::new())).into(), dir }
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn addr(&self, key: &str) -> SocketAddr {
        self.ports.iter().find(|(k, _)| *k == key).unwrap().1.addr
    }

    /// The hub's file; good as it is.
    fn text(&self) -> String {
        format!(
            "listeners: [{{ name: l1, bind: '{}', connector: c }}]\n\
             http: {{ bind: '{}' }}\n\
             metrics: {{ bind: '{}' }}\n\
             admin: {{ bind: '{}', socket: {} }}\n\
             auth: {{ jwt: {{ issuer: i, algorithms: [HS256], hmac_secret_file: {} }} }}\n\
             ha:\n  enabled: true\n  mode: off\n  replica_id: hub-a\n  mesh: {{ listen: '{}', insecure_allow_plaintext: true }}\n",
            self.addr("listeners[l1].bind"),
            self.addr("http.bind"),
            self.addr("metrics.bind"),
            self.addr("admin.bind"),
            self.file("admin.sock"),
            self.file("secret"),
            self.addr("ha.mesh.listen"),
        )
    }

    /// The same with one thing changed.
    fn with(&self, from: &str, to: &str) -> String {
        let text = self.text();
        assert!(text.contains(from), "{from} is not in\n{text}");
        text.replacen(from, to, 1)
    }

    /// Why a hub does not start from this file; nothing of it listens then.
    async fn refused(&self, text: &str) -> RunError {
        let setup = parse_hub(text, &|_| None, ParseOptions::default()).unwrap_or_else(|e| panic!("{text}\n{e}"));
        let why = start(setup, None, None, None).await.err().unwrap_or_else(|| panic!("it starts with\n{text}"));
        for (key, port) in &self.ports {
            let connected = TcpStream::connect(port.addr).await.map_err(|e| e.kind()).err();
            assert_eq!(connected, Some(ErrorKind::ConnectionRefused), "{key} is served after: {why}");
        }
        let socket = self.dir.path().join("admin.sock");
        let left = std::os::unix::net::UnixStream::connect(&socket).is_ok();
        assert!(!left, "admin.socket is served after: {why}");
        why
    }
}

#[test]
fn a_start_that_finds_a_port_taken_names_its_key_and_leaves_nothing_open() {
    run(async {
        let keys = Place::new().ports.into_iter().map(|(key, _)| key);
        for key in keys {
            let place = Place::new();
            // Taken at another address of the loopback than the one looked at afterwards.
            let taken = net::listen((OTHER, 0).into(), 1).unwrap();
            let addr = taken.local_addr().unwrap();
            let why = place.refused(&place.with(&place.addr(key).to_string(), &addr.to_string())).await;
            let RunError::Failed(text) = &why else { panic!("{key}: {why:?}") };
            assert!(text.starts_with(&format!("{key}: cannot listen on {addr}: ")), "{text}");
            assert!(!place.dir.path().join("admin.sock").exists(), "{key}: the socket's file is left");
        }
        let place = Place::new();
        std::fs::write(place.file("admin.sock"), "somebody's").unwrap();
        let why = place.refused(&place.text()).await;
        assert!(matches!(&why, RunError::Failed(text) if text.starts_with("admin.socket: cannot listen on ")), "{why}");
        assert_eq!(std::fs::read(place.file("admin.sock")).unwrap(), b"somebody's", "what is there stays");

        // What all of that was about works without it.
        std::fs::remove_file(place.file("admin.sock")).unwrap();
        let setup = parse_hub(&place.text(), &|_| None, ParseOptions::default()).unwrap();
        let _hub = start(setup, None, None, None).await.unwrap();
        for (key, port) in &place.ports {
            assert!(TcpStream::connect(port.addr).await.is_ok(), "{key}");
        }
    });
}

#[test]
fn a_start_with_a_file_it_cannot_use_names_key_and_file_and_leaves_nothing_open() {
    run(async {
        let place = Place::new();
        let [absent, crt, key, secret] = ["absent", "good.crt", "good.key", "secret"].map(|name| place.file(name));
        let http = format!("http: {{ bind: '{}'", place.addr("http.bind"));
        let http_tls =
            |crt: &str, key: &str| place.with(&http, &format!("{http}, tls: {{ cert_file: {crt}, key_file: {key} }}"));
        let mesh_tls = |ca: &str, crt: &str, key: &str| {
            let tls = format!("listen_tls: native, tls: {{ ca_bundle: {ca}, cert_file: {crt}, key_file: {key} }}");
            place.with("insecure_allow_plaintext: true", &tls)
        };
        let redis = |more: &str| {
            place.with("  mode: off\n", &format!("  mode: shadow\n  redis_url: rediss://127.0.0.1:1\n{more}"))
        };
        let jwt = |more: &str| place.with("issuer: i, algorithms: [HS256]", &format!("issuer: i{more}"));
        let rows = [
            ("http.tls.cert_file", &absent, http_tls(&absent, &key)),
            ("http.tls.cert_file", &secret, http_tls(&secret, &key)),
            ("http.tls.key_file", &absent, http_tls(&crt, &absent)),
            ("http.tls.key_file", &crt, http_tls(&crt, &crt)),
            ("ha.mesh.tls.ca_bundle", &absent, mesh_tls(&absent, &crt, &key)),
            ("ha.mesh.tls.cert_file", &absent, mesh_tls(&crt, &absent, &key)),
            ("ha.mesh.tls.key_file", &secret, mesh_tls(&crt, &crt, &secret)),
            ("ha.redis_tls.ca_bundle", &absent, redis(&format!("  redis_tls: {{ ca_bundle: {absent} }}\n"))),
            ("ha.redis_tls.ca_bundle", &secret, redis(&format!("  redis_tls: {{ ca_bundle: {secret} }}\n"))),
            (
                "ha.redis_tls.cert_file",
                &absent,
                redis(&format!("  redis_tls: {{ ca_bundle: {crt}, cert_file: {absent}, key_file: {key} }}\n")),
            ),
            (
                "ha.redis_tls.cert_file",
                &secret,
                redis(&format!("  redis_tls: {{ ca_bundle: {crt}, cert_file: {secret}, key_file: {key} }}\n")),
            ),
            (
                "ha.redis_tls.key_file",
                &absent,
                redis(&format!("  redis_tls: {{ ca_bundle: {crt}, cert_file: {crt}, key_file: {absent} }}\n")),
            ),
            (
                "ha.redis_password_file",
                &absent,
                redis(&format!("  redis_tls: {{ ca_bundle: {crt} }}\n  redis_password_file: {absent}\n")),
            ),
            ("auth.jwt.hmac_secret_file", &absent, place.with(&secret, &absent)),
            ("auth.jwt.public_key_file", &absent, jwt(&format!(", public_key_file: {absent}"))),
            ("auth.jwt.jwks_file", &secret, jwt(&format!(", jwks_file: {secret}"))),
            (
                "auth.jwt.jwks_ca_bundle",
                &absent,
                jwt(&format!(", jwks_url: 'https://127.0.0.1:1/k', jwks_ca_bundle: {absent}")),
            ),
            ("admin.token_file", &absent, place.with("admin: { ", &format!("admin: {{ token_file: {absent}, "))),
        ];
        for (key, file, text) in rows {
            let why = place.refused(&text).await;
            let RunError::Config(text) = &why else { panic!("{key}: {why:?}") };
            assert!(text.contains(key) && text.contains(file.as_str()), "expected {key} and {file}: {text}");
        }
    });
}

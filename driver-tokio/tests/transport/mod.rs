//! A hub's HTTP port with an application that echoes, and certificates.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::HeaderMap;
use nowconnect::dial::{Dial, DialTimeouts, WsUrl};
use nowconnect::http::{HttpApp, HttpLimits, HttpListener, Refusal, Reject, Routes, TlsSource, Upgraded, serve};
use nowconnect::net;
use nowconnect::ws::{Io, WsConn, WsEvent};
use nowconnect_core::principal::{AgentGrant, HubGrant, Principal};
use nowconnect_core::wire::{Dialect, MESSAGE_MAX_BYTES, Plane};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpListener;

/// A stuck test ends with this; nothing is asserted about time.
const GUARD: Duration = Duration::from_secs(60);

/// Runs `work` as the product does: one thread, one `LocalSet`.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async { tokio::time::timeout(GUARD, work).await.expect("the test hangs") })
}

#[derive(Default)]
pub struct Echo {
    pub refused: RefCell<Vec<Refusal>>,
    /// Ports of connections that had to wait for their turn.
    pub throttled: RefCell<Vec<&'static str>>,
    pub ended: Rc<RefCell<Vec<&'static str>>>,
    pub accepted: Cell<u32>,
    pub principals: RefCell<Vec<Principal>>,
    /// Of accepted sockets; `None` leaves the default.
    pub user_timeout: Cell<Option<Duration>>,
    /// What the accepted sockets have.
    pub user_timeouts: RefCell<Vec<Option<Duration>>>,
}

impl HttpApp for Echo {
    fn authenticate(&self, plane: Plane, headers: &HeaderMap, tls: HubGrant) -> Result<Principal, Reject> {
        if plane == Plane::Mesh {
            return Ok(Principal::Hub(tls));
        }
        match headers.get("authorization") {
            Some(value) if value == "Bearer good" => {
                Ok(Principal::Agent(AgentGrant { subject: "a".into(), connectors: None, expires: None }))
            }
            _ => Err(Reject { status: 401, reason_label: "token", message: "expected a valid token".into() }),
        }
    }

    fn accept(&self, upgraded: Upgraded) {
        self.accepted.set(self.accepted.get() + 1);
        self.principals.borrow_mut().push(upgraded.principal);
        self.user_timeouts.borrow_mut().push(user_timeout(&upgraded.conn));
        let ended = Rc::clone(&self.ended);
        tokio::task::spawn_local(async move {
            let mut conn = upgraded.conn;
            let end = loop {
                match next(&mut conn).await {
                    Ok(WsEvent::Message(bytes)) => {
                        if bytes == "grow" {
                            conn.set_message_max(MESSAGE_MAX_BYTES);
                        }
                        let len = bytes.len();
                        conn.queue([bytes], len);
                    }
                    Ok(WsEvent::Partial) => {}
                    Ok(WsEvent::Closed { .. }) => break "closed",
                    Err(error) => break error.name(),
                }
            };
            ended.borrow_mut().push(end);
            conn.finish(Duration::from_secs(5)).await;
        });
    }

    fn readyz(&self, strict: bool) -> (u16, String) {
        (if strict { 503 } else { 200 }, r#"{"status":"degraded"}"#.into())
    }

    fn readyz_listener(&self, name: &str) -> (u16, String) {
        (if name == "l1" { 200 } else { 404 }, "{}".into())
    }

    fn metrics(&self) -> Option<(&'static str, Vec<u8>)> {
        Some(("text/plain; version=0.0.4", b"up 1\n".to_vec()))
    }

    fn refused(&self, why: Refusal) {
        self.refused.borrow_mut().push(why);
    }

    fn throttled(&self, key: &'static str) {
        self.throttled.borrow_mut().push(key);
    }

    fn user_timeout(&self) -> Duration {
        self.user_timeout.get().unwrap_or(net::SESSION_USER_TIMEOUT)
    }
}

/// `TCP_USER_TIMEOUT` of a connection's socket.
pub fn user_timeout(conn: &WsConn) -> Option<Duration> {
    socket2::SockRef::from(conn.io().tcp()).tcp_user_timeout().unwrap()
}

/// The next message or end, writing what is queued meanwhile.
pub async fn next(conn: &mut WsConn) -> Result<WsEvent, nowconnect::ws::WsError> {
    loop {
        let event = poll_fn(|cx| {
            let event = conn.poll_recv(cx);
            let _ = conn.poll_flush(cx);
            event
        })
        .await;
        // How bytes are cut on their way is nobody's to say.
        if event != Ok(WsEvent::Partial) {
            return event;
        }
    }
}

/// Sends one message and waits until it is written.
pub async fn send(conn: &mut WsConn, bytes: impl Into<Bytes>) {
    let bytes = bytes.into();
    let len = bytes.len();
    conn.queue([bytes], len);
    poll_fn(|cx| conn.poll_flush(cx)).await.unwrap();
}

pub fn start(routes: Routes, tls: Option<TlsSource>, limits: HttpLimits) -> (SocketAddr, Rc<Echo>) {
    let listener = net::listen((Ipv4Addr::LOCALHOST, 0).into(), 128).unwrap();
    (listener.local_addr().unwrap(), accept_on(listener, HttpListener { routes, tls, limits }))
}

/// The public port on a socket that listens already.
pub fn serve_on(listener: TcpListener, limits: HttpLimits) -> Rc<Echo> {
    accept_on(listener, HttpListener { routes: Routes::PUBLIC, tls: None, limits })
}

fn accept_on(listener: TcpListener, setting: HttpListener) -> Rc<Echo> {
    let app = Rc::new(Echo::default());
    tokio::task::spawn_local(serve(listener, setting, Rc::<Echo>::clone(&app), std::future::pending()));
    app
}

pub fn tunnel(url: &WsUrl) -> Dial<'_> {
    const DIALECTS: [Dialect; 2] = Dialect::of(Plane::Tunnel);
    Dial {
        url,
        tls: None,
        bearer: Some("good"),
        dialects: &DIALECTS,
        timeouts: DialTimeouts::default(),
        read_buffer_bytes: 32 * 1024,
        message_max_bytes: MESSAGE_MAX_BYTES,
    }
}

/// A connected pair of TCP sockets.
pub async fn tcp_pair() -> (tokio::net::TcpStream, tokio::net::TcpStream) {
    let listener = net::listen((Ipv4Addr::LOCALHOST, 0).into(), 16).unwrap();
    let dialled = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (dialled, net::accept(&listener).await.0)
}

pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        Arc::new(roots)
    }

    fn leaf(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    pub fn server(&self, name: &str, client_ca: Option<&Self>) -> TlsSource {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let (chain, key) = self.leaf(name);
        let config = match client_ca {
            Some(ca) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(ca.roots(), provider).build().unwrap(),
            ),
            None => builder.with_no_client_auth(),
        };
        Arc::new(ArcSwap::from_pointee(config.with_single_cert(chain, key).unwrap()))
    }

    pub fn client(&self, identity: Option<(&Self, &str)>) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(self.roots());
        Arc::new(match identity {
            Some((ca, name)) => {
                let (chain, key) = ca.leaf(name);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        })
    }
}

/// Two ends of a TLS connection, dialler first.
pub async fn tls_pair() -> (Io, Io) {
    let ca = Ca::new("ca");
    let (a, b) = tcp_pair().await;
    let connector = tokio_rustls::TlsConnector::from(ca.client(None));
    let acceptor = tokio_rustls::TlsAcceptor::from(ca.server("hub-a", None).load_full());
    let (a, b) = tokio::join!(connector.connect("hub-a".try_into().unwrap(), a), acceptor.accept(b));
    (Io::TlsClient(Box::new(a.unwrap())), Io::TlsServer(Box::new(b.unwrap())))
}

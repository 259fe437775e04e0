//! The HTTP side of a hub: health, readiness, metrics, and the upgrade of
//! `/tunnel` and `/mesh` to WebSocket.
//!
//! Owns admission before authentication: time, size, number and rate of
//! everything an unknown peer may make us do (attacks 1 to 6, 14, 60). A
//! connection carries one request; credentials are judged before any upgrade
//! work (I3, I4). What is refused is counted under a closed reason.
//!
//! HTTP/1.1 itself is hyper's; upgrade headers are checked by tungstenite. The
//! application behind is a [`HttpApp`]: this module knows neither tokens nor
//! sessions nor what makes a hub ready.

mod gate;
mod rate;
mod upgrade;

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nowconnect_core::principal::{HubGrant, Principal};
use nowconnect_core::wire::{Dialect, MESSAGE_MAX_BEFORE_AUTH_BYTES, Plane};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::net;
use crate::ws::{Io, WsConn};
use gate::{Gate, Pass};
use rate::{Rate, Shares};

/// TLS of a listener; storing another one applies to connections accepted
/// from then on (certificate reload).
pub type TlsSource = Arc<ArcSwap<rustls::ServerConfig>>;

/// Limits on connections that have not been upgraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// From the connection to the end of the request's head (attack 1).
    pub head_timeout: Duration,
    /// TLS handshake.
    pub tls_timeout: Duration,
    /// The whole exchange after TLS, response included.
    pub exchange_timeout: Duration,
    /// Largest request head, bytes; at least 8192 (attack 2).
    pub head_max_bytes: usize,
    /// Most request headers (attack 2).
    pub headers_max: usize,
    /// Connections at once; beyond it the oldest is shed (attack 3).
    pub connections_max: usize,
    /// Connections at once from one IPv4 address or IPv6 /64 (attack 3).
    /// Behind a balancer all share one address: raise it to `connections_max`.
    pub connections_per_address_max: usize,
    /// Connections a second, as many at once; beyond it they wait for their
    /// turn, the next ones in the kernel's queue (attack 3). One address has the
    /// same part of it as of `connections_max`; beyond that it waits alone.
    pub connections_per_second: u32,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(5),
            tls_timeout: Duration::from_secs(10),
            exchange_timeout: Duration::from_secs(10),
            head_max_bytes: 16 * 1024,
            headers_max: 64,
            connections_max: 1000,
            connections_per_address_max: 250,
            connections_per_second: 1000,
        }
    }
}

/// Which paths a listener answers; all others are 404.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// `/tunnel`.
    pub tunnel: bool,
    /// `/mesh`.
    pub mesh: bool,
    /// `/healthz`.
    pub health: bool,
    /// `/readyz` and `/readyz/<listener>`.
    pub ready: bool,
    /// `/metrics`.
    pub metrics: bool,
}

impl Routes {
    /// The hub's public port (`http.bind`).
    pub const PUBLIC: Self = Self { tunnel: true, mesh: true, health: true, ready: true, metrics: false };
    /// A port of the mesh's own (`ha.mesh.listen`).
    pub const MESH: Self = Self { tunnel: false, mesh: true, health: false, ready: false, metrics: false };
    /// `metrics.bind` (attack 60); a balancer that asks there waits behind no flood
    /// of strangers.
    pub const METRICS: Self = Self { tunnel: false, mesh: false, health: true, ready: true, metrics: true };

    /// The key that says where these are served.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self { tunnel: true, .. } => "http.bind",
            Self { mesh: true, .. } => "ha.mesh.listen",
            Self { .. } => "metrics.bind",
        }
    }
}

/// A refusal of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// HTTP status, 400 to 599.
    pub status: u16,
    /// Closed set of the application, a metric label.
    pub reason_label: &'static str,
    /// Text for the peer: no secret, nothing of the token.
    pub message: String,
}

/// Why this module refused or ended a connection; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// Too many connections from one address.
    PerAddress,
    /// The oldest was shed for a newer one.
    Shed,
    /// The TLS handshake failed.
    Tls,
    /// A deadline passed.
    Timeout,
    /// The request is no HTTP/1.1 or exceeds the limits.
    Http,
    /// No such path here.
    Path,
    /// Another method than GET.
    Method,
    /// No (proper) upgrade request.
    Upgrade,
    /// A browser's cross-site request.
    Origin,
    /// A header came twice that may come once.
    Duplicate,
    /// No subprotocol in common.
    Subprotocol,
    /// The application refused the credentials.
    Denied,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 12] = [
        Self::PerAddress,
        Self::Shed,
        Self::Tls,
        Self::Timeout,
        Self::Http,
        Self::Path,
        Self::Method,
        Self::Upgrade,
        Self::Origin,
        Self::Duplicate,
        Self::Subprotocol,
        Self::Denied,
    ];

    /// The metric label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PerAddress => "per_address",
            Self::Shed => "shed",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Http => "http",
            Self::Path => "path",
            Self::Method => "method",
            Self::Upgrade => "upgrade",
            Self::Origin => "origin",
            Self::Duplicate => "duplicate",
            Self::Subprotocol => "subprotocol",
            Self::Denied => "denied",
        }
    }
}

/// A connection that was upgraded.
#[derive(Debug)]
pub struct Upgraded {
    /// The connection, limited to messages of 16 KiB until told otherwise.
    pub conn: WsConn,
    /// Encoding and plane.
    pub dialect: Dialect,
    /// Whom [`HttpApp::authenticate`] said it is.
    pub principal: Principal,
    /// The peer's address (a balancer's, if there is one).
    pub remote: SocketAddr,
}

/// What answers behind the listener.
pub trait HttpApp {
    /// Judges the credentials of an upgrade request. `tls` holds the dNSNames
    /// of the TLS client certificate, when TLS asked for one, and on a port of
    /// the mesh's own what the TLS connection is known by.
    ///
    /// # Errors
    /// The refusal to answer with.
    fn authenticate(&self, plane: Plane, headers: &HeaderMap, tls: HubGrant) -> Result<Principal, Reject>;

    /// Takes over an upgraded connection.
    fn accept(&self, upgraded: Upgraded);

    /// Status and JSON of `/readyz`; `strict` asks for 503 when degraded.
    fn readyz(&self, strict: bool) -> (u16, String);

    /// Status and JSON of `/readyz/<name>`; 404 for a name it does not know.
    fn readyz_listener(&self, name: &str) -> (u16, String);

    /// Content type and text of `/metrics`.
    fn metrics(&self) -> Option<(&'static str, Vec<u8>)>;

    /// Counts a refusal.
    fn refused(&self, why: Refusal);

    /// Counts a connection that has to wait for its turn, at the port `key` names.
    fn throttled(&self, key: &'static str);

    /// `TCP_USER_TIMEOUT` of the sockets accepted from now on.
    fn user_timeout(&self) -> Duration {
        net::SESSION_USER_TIMEOUT
    }
}

/// One listener's setting.
#[derive(Clone, Debug)]
pub struct HttpListener {
    /// What it answers.
    pub routes: Routes,
    /// TLS, when it ends here. ALPN must offer nothing but `http/1.1`.
    pub tls: Option<TlsSource>,
    /// Limits.
    pub limits: HttpLimits,
}

pub(crate) type Body = Full<Bytes>;

struct Server {
    setting: HttpListener,
    app: Rc<dyn HttpApp>,
}

/// Accepts on `listener` until `shutdown` is ready; then exchanges in progress
/// are dropped, upgraded connections are not touched. Must run in a
/// [`tokio::task::LocalSet`].
pub async fn serve(
    listener: TcpListener,
    setting: HttpListener,
    app: Rc<dyn HttpApp>,
    shutdown: impl Future<Output = ()>,
) {
    let gate = Gate::new(setting.limits.connections_max, setting.limits.connections_per_address_max);
    let l = &setting.limits;
    let mut shares = Shares::new(l.connections_per_second, l.connections_per_address_max, l.connections_max);
    let rate = Rc::new(RefCell::new(Rate::new(l.connections_per_second, Instant::now())));
    let server = Rc::new(Server { setting, app });
    let mut tasks = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let (tcp, remote) = tokio::select! {
            accepted = net::accept(&listener) => accepted,
            Some(_) = tasks.join_next() => continue,
            () = &mut shutdown => return,
        };
        let Some((pass, shed)) = gate.admit(remote.ip()) else {
            server.app.refused(Refusal::PerAddress);
            net::abort(tcp);
            continue;
        };
        if shed {
            server.app.refused(Refusal::Shed);
        }
        // Who is refused costs nobody else a turn, and who has had its share waits
        // aside, in the place that it has until its exchange is over.
        let now = Instant::now();
        let aside = shares.as_mut().and_then(|s| s.take(gate::site(remote.ip()), now));
        let wait = if aside.is_none() { rate.borrow_mut().take(now) } else { None };
        if aside.is_some() || wait.is_some() {
            server.app.throttled(server.setting.routes.key());
        }
        if let Some(wait) = wait {
            let mut turn = std::pin::pin!(sleep(wait));
            loop {
                tokio::select! {
                    () = &mut turn => break,
                    Some(_) = tasks.join_next() => {}
                    () = &mut shutdown => return,
                }
            }
        }
        let id = pass.id();
        let (server, rate) = (Rc::clone(&server), Rc::clone(&rate));
        let task = tasks.spawn_local(Box::pin(async move {
            if let Some(wait) = aside {
                sleep(wait).await;
                let turn = rate.borrow_mut().take(Instant::now());
                sleep(turn.unwrap_or_default()).await;
            }
            server.connection(tcp, remote, pass).await;
        }));
        gate.runs_in(id, task);
    }
}

impl Server {
    async fn connection(self: Rc<Self>, tcp: TcpStream, remote: SocketAddr, pass: Pass) {
        // Without the options a dead peer is noticed later; no reason to refuse it.
        let _ = net::tune_session(&tcp, self.app.user_timeout());
        let Some(io) = self.tls(tcp).await else { return };
        // Elsewhere something may end TLS before us and begin it anew.
        let exporter = if self.setting.routes == Routes::MESH { io.tls_exporter() } else { None };
        let tls_peer = HubGrant { dns_names: io.peer_dns_names(), exporter };
        let pending = upgrade::Pending::default();
        let service = service_fn(|request| {
            let response = self.answer(request, tls_peer.clone(), &pending);
            async { Ok::<_, Infallible>(response) }
        });
        let limits = &self.setting.limits;
        let exchange = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_timeout)
            .max_headers(limits.headers_max)
            .max_buf_size(limits.head_max_bytes.max(8192))
            .keep_alive(false)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        match timeout(limits.exchange_timeout, exchange).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                return self.app.refused(if error.is_timeout() { Refusal::Timeout } else { Refusal::Http });
            }
            Err(_) => return self.app.refused(Refusal::Timeout),
        }
        let Some(granted) = pending.take() else { return };
        if let Some(upgraded) = granted.finish(remote, MESSAGE_MAX_BEFORE_AUTH_BYTES).await {
            drop(pass);
            self.app.accept(upgraded);
        }
    }

    async fn tls(&self, tcp: TcpStream) -> Option<Io> {
        let Some(source) = &self.setting.tls else { return Some(Io::Plain(tcp)) };
        let handshake = TlsAcceptor::from(source.load_full()).accept(tcp);
        match timeout(self.setting.limits.tls_timeout, Box::pin(handshake)).await {
            Ok(Ok(tls)) => Some(Io::TlsServer(Box::new(tls))),
            Ok(Err(_)) => {
                self.app.refused(Refusal::Tls);
                None
            }
            Err(_) => {
                self.app.refused(Refusal::Timeout);
                None
            }
        }
    }

    fn answer(&self, request: Request<Incoming>, tls_peer: HubGrant, pending: &upgrade::Pending) -> Response<Body> {
        let routes = &self.setting.routes;
        let path = request.uri().path().to_owned();
        let plane = match path.as_str() {
            "/tunnel" if routes.tunnel => Some(Plane::Tunnel),
            "/mesh" if routes.mesh => Some(Plane::Mesh),
            _ => None,
        };
        if let Some(plane) = plane {
            return upgrade::answer(&*self.app, plane, request, tls_peer, pending).unwrap_or_else(|(why, response)| {
                self.app.refused(why);
                *response
            });
        }
        self.page(&path, &request).unwrap_or_else(|(why, response)| {
            self.app.refused(why);
            *response
        })
    }

    fn page(&self, path: &str, request: &Request<Incoming>) -> Answer {
        let routes = &self.setting.routes;
        let not_found = || Err((Refusal::Path, Box::new(text(StatusCode::NOT_FOUND, "no such path\n"))));
        let listener = path.strip_prefix("/readyz/");
        let known = match path {
            "/healthz" => routes.health,
            "/readyz" => routes.ready,
            "/metrics" => routes.metrics,
            _ => routes.ready && listener.is_some(),
        };
        if !known {
            return not_found();
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return Err((Refusal::Method, Box::new(wrong_method("GET, HEAD"))));
        }
        Ok(match path {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let query = request.uri().query().unwrap_or_default();
                let strict = query.split('&').any(|part| part.split('=').next() == Some("strict"));
                json(self.app.readyz(strict))
            }
            "/metrics" => match self.app.metrics() {
                Some((kind, body)) => page(StatusCode::OK, kind, body.into()),
                None => return not_found(),
            },
            _ => json(self.app.readyz_listener(listener.unwrap_or_default())),
        })
    }
}

/// A response, or the refusal to count with its response.
type Answer = Result<Response<Body>, (Refusal, Box<Response<Body>>)>;

pub(crate) fn page(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    page(status, "text/plain; charset=utf-8", body.into())
}

pub(crate) fn json((status, body): (u16, String)) -> Response<Body> {
    page(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), "application/json", body.into())
}

pub(crate) fn wrong_method(allow: &'static str) -> Response<Body> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("expected {allow}\n"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

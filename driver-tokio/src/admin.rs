//! The operator's view of one process, `/status`, `/metrics`, `/healthz`,
//! `/readyz`, and what may be asked of it by POST ([`Action`]), on a Unix socket
//! or a TCP port of its own (`admin.socket`, `admin.bind`; semantics 9, 10).
//!
//! The socket is for the user of the process alone (mode 0600); TCP beyond
//! loopback asks for a bearer token, compared in constant time (attack 60). A
//! browser's cross-site or rebound request gets nothing. Connections, request
//! sizes and times are capped as on the public port (attacks 1 to 3). What is
//! shown belongs to the [`AdminApp`] behind; this module knows no machine.

mod actions;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use http::header::{AUTHORIZATION, HOST, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, SockAddr, Socket, Type};
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::cli::RunError;
use crate::config::AdminSetup;
use crate::http::{Body, HttpLimits, json, page, text, wrong_method};
use crate::{net, secret};

pub(crate) use actions::acting;
pub use actions::{Acting, Action};

/// Exchanges at once on one endpoint; further connections wait in the kernel.
const EXCHANGES_MAX: usize = 16;
/// Connections the kernel queues.
const BACKLOG: i32 = 64;
/// Largest bearer token, bytes.
const TOKEN_MAX_BYTES: u64 = 4096;
/// Pause after an `accept` that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(75);

/// What is shown.
pub trait AdminApp {
    /// Status and JSON of `/readyz`; `strict` asks for 503 when degraded.
    fn readyz(&self, strict: bool) -> (u16, String);
    /// Status and JSON of `/readyz/<listener>`; 404 where there is none.
    fn readyz_listener(&self, name: &str) -> (u16, String);
    /// Content type and text of `/metrics`.
    fn metrics(&self) -> Option<(&'static str, Vec<u8>)>;
    /// The JSON of `/status`.
    fn status(&self) -> String;
    /// Does what is asked; status and JSON of the answer.
    fn act(&self, action: Action) -> Acting;
}

/// Endpoints that are bound and not served yet.
#[derive(Debug, Default)]
pub struct Endpoints {
    unix: Option<(UnixListener, SocketFile)>,
    tcp: Option<(TcpListener, Option<PathBuf>)>,
}

/// Serves until it is dropped; then the socket file is removed.
#[derive(Debug, Default)]
pub struct Serving {
    /// The bound TCP port.
    pub addr: Option<SocketAddr>,
    tasks: Vec<JoinHandle<()>>,
    _file: Option<SocketFile>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The file of a bound Unix socket; removed when dropped, unless another
/// process has put its own there since.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    node: Option<(u64, u64)>,
}

fn node_of(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.node.is_some() && node_of(&self.path) == self.node {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether the token that `admin.bind` asks for can be read.
pub(crate) fn check_token(setup: &AdminSetup) -> Result<(), String> {
    let asked = setup.token_file.as_ref().filter(|_| setup.bind.is_some());
    asked.map_or(Ok(()), |path| secret::read("admin.token_file", path, TOKEN_MAX_BYTES).map(drop))
}

/// Binds what the setup names.
///
/// # Errors
/// When the token cannot be used (exit code 2), or a port or path cannot be
/// bound (exit code 1); the text names the key.
pub fn bind(setup: &AdminSetup) -> Result<Endpoints, RunError> {
    let unix = match &setup.socket {
        Some(path) => Some(
            bind_unix(path)
                .map_err(|e| RunError::Failed(format!("admin.socket: cannot listen on {}: {e}", path.display())))?,
        ),
        None => None,
    };
    let tcp = match setup.bind {
        Some(addr) => {
            check_token(setup).map_err(RunError::Config)?;
            let socket = net::listen(addr, BACKLOG)
                .map_err(|e| RunError::Failed(format!("admin.bind: cannot listen on {addr}: {e}")))?;
            Some((socket, setup.token_file.clone()))
        }
        None => None,
    };
    Ok(Endpoints { unix, tcp })
}

fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(io::Error::other("something that is no socket is there; it is not replaced"));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::other("another process answers there"));
        }
        // Left by a process that was killed.
        std::fs::remove_file(path)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile { path: path.to_owned(), node: node_of(path) };
    // Before listen(), so that nobody else can have connected.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = UnixListener::from_std(std::os::unix::net::UnixListener::from(std::os::fd::OwnedFd::from(socket)))?;
    Ok((listener, file))
}

impl Endpoints {
    /// Answers from now on. Must run in a [`tokio::task::LocalSet`].
    ///
    /// # Errors
    /// When the bound port cannot be told.
    pub fn serve(self, app: &Rc<dyn AdminApp>) -> io::Result<Serving> {
        let mut serving = Serving::default();
        if let Some((listener, file)) = self.unix {
            let server = Rc::new(Server { app: Rc::clone(app), guard: Guard::File });
            serving.tasks.push(tokio::task::spawn_local(async move {
                run(async || accept_unix(&listener).await, server).await;
            }));
            serving._file = Some(file);
        }
        if let Some((listener, token)) = self.tcp {
            serving.addr = Some(listener.local_addr()?);
            let guard = token.map_or(Guard::Loopback, Guard::Token);
            let server = Rc::new(Server { app: Rc::clone(app), guard });
            serving.tasks.push(tokio::task::spawn_local(async move {
                run(async || net::accept(&listener).await.0, server).await;
            }));
        }
        Ok(serving)
    }
}

async fn accept_unix(listener: &UnixListener) -> tokio::net::UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn run<S>(accept: impl AsyncFn() -> S, server: Rc<Server>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut exchanges = JoinSet::new();
    loop {
        tokio::select! {
            stream = accept(), if exchanges.len() < EXCHANGES_MAX => {
                exchanges.spawn_local(Rc::clone(&server).exchange(stream));
            }
            Some(_) = exchanges.join_next() => {}
        }
    }
}

/// What a request must show.
#[derive(Debug)]
enum Guard {
    /// The file's mode has judged already.
    File,
    /// Loopback: a local name as Host, so that no web page can be rebound to it.
    Loopback,
    /// The bearer token in this file.
    Token(PathBuf),
}

struct Server {
    app: Rc<dyn AdminApp>,
    guard: Guard,
}

impl Server {
    async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(self: Rc<Self>, stream: S) {
        let limits = HttpLimits::default();
        let service = service_fn(|request| {
            let server = Rc::clone(&self);
            async move { Ok::<_, Infallible>(server.answer(&request).await) }
        });
        let exchange = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_timeout)
            .max_headers(limits.headers_max)
            .max_buf_size(limits.head_max_bytes)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        // Whoever broke off or was too slow has seen it.
        let _ = timeout(limits.exchange_timeout, Box::pin(exchange)).await;
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        if let Err(refusal) = self.admit(request) {
            return *refusal;
        }
        if let Some(action) = Action::of(request.uri().path()) {
            if request.method() != Method::POST {
                return wrong_method("POST");
            }
            return json(self.app.act(action).await);
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return wrong_method("GET, HEAD");
        }
        let path = request.uri().path();
        let strict = || {
            let query = request.uri().query().unwrap_or_default();
            query.split('&').any(|part| part.split('=').next() == Some("strict"))
        };
        match path {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => json(self.app.readyz(strict())),
            "/metrics" => match self.app.metrics() {
                Some((kind, body)) => page(StatusCode::OK, kind, body.into()),
                None => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be rendered\n"),
            },
            "/status" => json((200, self.app.status())),
            _ => match path.strip_prefix("/readyz/") {
                Some(name) => json(self.app.readyz_listener(name)),
                None => text(
                    StatusCode::NOT_FOUND,
                    "expected /status, /metrics, /healthz, /readyz, /readyz/<listener> or POST /reload, /drain, /undrain\n",
                ),
            },
        }
    }

    fn admit(&self, request: &Request<Incoming>) -> Result<(), Box<Response<Body>>> {
        let refuse = |status, why: &'static str| Err(Box::new(text(status, why)));
        if request.headers().contains_key(ORIGIN) {
            return refuse(StatusCode::FORBIDDEN, "not for web pages\n");
        }
        match &self.guard {
            Guard::File => Ok(()),
            Guard::Loopback if local_name(request) => Ok(()),
            Guard::Loopback => refuse(StatusCode::FORBIDDEN, "expected a loopback address or localhost as Host\n"),
            Guard::Token(path) => {
                let secret = match secret::read("admin.token_file", path, TOKEN_MAX_BYTES) {
                    Ok(secret) => secret,
                    Err(why) => {
                        tracing::error!(event = "admin_token_unusable", "{why}");
                        return refuse(StatusCode::SERVICE_UNAVAILABLE, "the token cannot be checked\n");
                    }
                };
                if bearer(request).is_some_and(|shown| bool::from(shown.as_bytes().ct_eq(secret.as_bytes()))) {
                    return Ok(());
                }
                let mut response = text(StatusCode::UNAUTHORIZED, "expected the bearer token of admin.token_file\n");
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                Err(Box::new(response))
            }
        }
    }
}

/// The one bearer token of a request.
fn bearer<B>(request: &Request<B>) -> Option<&str> {
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn local_name<B>(request: &Request<B>) -> bool {
    let Some(host) = request.headers().get(HOST).and_then(|h| h.to_str().ok()) else { return false };
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests;

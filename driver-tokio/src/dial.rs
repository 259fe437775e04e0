//! Dialling a hub: name lookup, TCP, TLS, HTTP/1.1 upgrade to WebSocket.
//!
//! Owns the client side of the handshake and its deadlines, one per phase, so
//! that an error names the phase that hung. Offers the subprotocols of one
//! plane best first and takes nothing the server picked beyond them; offers no
//! extension and refuses one that comes back (semantics 2). Follows no
//! redirect, reads no response body (a refusal's text is the peer's, B10).
//!
//! Errors say what to check and carry neither token nor peer strings. Must not
//! know back-off, sessions or HELLO: one call, one attempt.

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, HOST, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use nowconnect_core::wire::{Codec, Dialect};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::Role;

use crate::net;
use crate::ws::{Io, WsConn, WsOptions};

/// Largest response head, bytes (hyper's own minimum is 8 KiB).
const RESPONSE_HEAD_MAX_BYTES: usize = 16 * 1024;
/// Most response headers.
const RESPONSE_HEADERS_MAX: usize = 64;

/// The address of a WebSocket endpoint: `ws://` or `wss://`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WsUrl {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

/// Why a URL was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WsUrlError {
    /// No URL at all.
    #[error("expected a URL such as wss://hub.example.com/tunnel")]
    Malformed,
    /// Another scheme.
    #[error("expected the scheme ws:// or wss://")]
    Scheme,
    /// Credentials in the URL end up in logs of whoever sees it.
    #[error("expected no user or password in the URL (use token_file)")]
    UserInfo,
}

impl WsUrl {
    /// Parses `ws://host[:port][/path][?query]` or the same with `wss`.
    ///
    /// # Errors
    /// See [`WsUrlError`].
    pub fn parse(text: &str) -> Result<Self, WsUrlError> {
        if text.contains('#') {
            return Err(WsUrlError::Malformed);
        }
        let uri: Uri = text.parse().map_err(|_| WsUrlError::Malformed)?;
        let tls = match uri.scheme_str() {
            Some("wss") => true,
            Some("ws") => false,
            Some(_) | None => return Err(WsUrlError::Scheme),
        };
        let authority = uri.authority().ok_or(WsUrlError::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(WsUrlError::UserInfo);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            // `host:` and `host:99999` are no default port.
            None if authority.as_str().len() > authority.host().len() => return Err(WsUrlError::Malformed),
            None => {
                if tls {
                    443
                } else {
                    80
                }
            }
        };
        if host.is_empty() || port == 0 {
            return Err(WsUrlError::Malformed);
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { tls, host, port, path })
    }

    /// Whether the scheme is `wss`.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Host name or address literal, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, 443 or 80 when the URL names none.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A configured URL as anybody may see it: without its query.
    #[must_use]
    pub fn shown(url: &str) -> Option<String> {
        Self::parse(url).ok().map(|url| url.to_string())
    }

    /// What a peer is called in metrics until its name is known: `host:port`,
    /// and the path unless it is the usual `/mesh`.
    #[must_use]
    pub fn label(&self) -> String {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        let path = self.path.split('?').next().unwrap_or_default();
        let path = if path == "/mesh" { "" } else { path };
        format!("{open}{}{close}:{}{path}", self.host, self.port)
    }

    /// `host[:port]` as an HTTP Host header wants it.
    fn authority(&self) -> String {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        let default = if self.tls { 443 } else { 80 };
        if self.port == default {
            format!("{open}{}{close}", self.host)
        } else {
            format!("{open}{}{close}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for WsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the query: people put secrets there (B10).
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "{}://{}{path}", if self.tls { "wss" } else { "ws" }, self.authority())
    }
}

/// Deadlines of one dial, by phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialTimeouts {
    /// Name lookup.
    pub lookup: Duration,
    /// TCP connect, per address.
    pub connect: Duration,
    /// TLS handshake.
    pub tls: Duration,
    /// Request and response of the upgrade.
    pub upgrade: Duration,
    /// `TCP_USER_TIMEOUT` of the connection afterwards.
    pub user: Duration,
}

impl Default for DialTimeouts {
    fn default() -> Self {
        let five = Duration::from_secs(5);
        Self { lookup: five, connect: five, tls: five, upgrade: five, user: net::SESSION_USER_TIMEOUT }
    }
}

/// Everything one dial needs.
#[derive(Clone, Debug)]
pub struct Dial<'a> {
    /// Where to.
    pub url: &'a WsUrl,
    /// Needed for `wss`; names what is trusted and who we are.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Token for `Authorization: Bearer`. Never logged.
    pub bearer: Option<&'a str>,
    /// Dialects to offer, best first; see [`Dialect::of`]. One plane only.
    pub dialects: &'a [Dialect],
    /// Deadlines.
    pub timeouts: DialTimeouts,
    /// Read buffer of the connection, bytes.
    pub read_buffer_bytes: usize,
    /// Largest incoming message at first, bytes.
    pub message_max_bytes: usize,
}

/// A connection that is ready for HELLO.
#[derive(Debug)]
pub struct Dialed {
    /// The connection.
    pub conn: WsConn,
    /// What the server picked.
    pub dialect: Dialect,
    /// dNSNames of the server's certificate; empty without TLS.
    pub peer_dns_names: Vec<String>,
    /// What both ends of the TLS 1.3 connection can compute and nobody else.
    pub exporter: Option<[u8; 32]>,
    /// The address that answered.
    pub remote: SocketAddr,
}

/// Phases that can hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialPhase {
    /// Name lookup.
    Lookup,
    /// TCP connect.
    Connect,
    /// TLS handshake.
    Tls,
    /// HTTP upgrade.
    Upgrade,
}

/// Why a TLS handshake failed, as far as an operator can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFault {
    /// The URL says `wss` and no TLS configuration was given, or its host is
    /// no name TLS can check.
    Configuration,
    /// The server's chain does not reach a trusted CA.
    UnknownIssuer,
    /// The server's certificate is past its end.
    Expired,
    /// The server's certificate is not valid yet.
    NotYetValid,
    /// The server's certificate is for another name.
    WrongName,
    /// The server refused or misses our certificate.
    OurCertificate,
    /// The peer does not speak TLS.
    NotTls,
    /// Anything else.
    Other,
}

/// What was wrong with the answer to the upgrade request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpgradeFault {
    /// No HTTP/1.1, or a head beyond the limits, or an early end.
    Http,
    /// 101 without the proper `Upgrade` and `Connection`.
    Upgrade,
    /// `Sec-WebSocket-Accept` does not match the key.
    Accept,
    /// An extension nobody offered.
    Extension,
    /// No subprotocol, or none that was offered.
    Subprotocol,
    /// The token holds characters no header can carry.
    Token,
}

/// Why a dial failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialError {
    /// The name does not resolve.
    Dns,
    /// No address took the TCP connection; the last one's error.
    Connect(io::ErrorKind),
    /// TLS failed.
    Tls(TlsFault),
    /// The server answered with another status than 101.
    Http {
        /// The status.
        status: u16,
    },
    /// The server's answer is no proper upgrade.
    Protocol(UpgradeFault),
    /// A phase ran out of time.
    Timeout(DialPhase),
}

impl DialError {
    /// Every label, for metrics that start at zero.
    pub const NAMES: [&'static str; 6] = ["dns", "connect", "tls", "http", "protocol", "timeout"];

    /// The metric label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Connect(_) => "connect",
            Self::Tls(_) => "tls",
            Self::Http { .. } => "http",
            Self::Protocol(_) => "protocol",
            Self::Timeout(_) => "timeout",
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns => f.write_str("the host name does not resolve: check the URL and DNS"),
            Self::Connect(kind) => write!(f, "no TCP connection ({kind}): check host, port and firewall"),
            Self::Tls(fault) => write!(
                f,
                "TLS failed: {}",
                match fault {
                    TlsFault::Configuration => "no TLS configuration for wss://, or a host that is no name or address",
                    TlsFault::UnknownIssuer => "the server's certificate is from no trusted CA: check tls.ca_bundle",
                    TlsFault::Expired => "the server's certificate has expired",
                    TlsFault::NotYetValid => "the server's certificate is not valid yet: check both clocks",
                    TlsFault::WrongName => "the server's certificate is for another name: check the URL's host",
                    TlsFault::OurCertificate => {
                        "the server wants a client certificate it trusts: check tls.cert_file, tls.key_file and its CA"
                    }
                    TlsFault::NotTls => "the server does not speak TLS on this port: check scheme and port",
                    TlsFault::Other => "the handshake was refused",
                }
            ),
            Self::Http { status } => {
                write!(f, "expected HTTP 101 and got {status}")?;
                f.write_str(match status {
                    400 => ": the server does not know this version's subprotocols, or a proxy drops upgrade headers",
                    401 => ": check the token (signature, audience, issuer, expiry)",
                    403 => ": the server or a proxy forbids the connection",
                    404 => ": check the URL's path",
                    405 | 426 => ": a proxy on the way does not pass WebSocket upgrades",
                    300..=399 => ": redirects are not followed, put the final URL into the configuration",
                    429 => ": too many connections, later dials back off",
                    502..=504 => ": a proxy on the way reaches no hub",
                    _ => "",
                })
            }
            Self::Protocol(fault) => write!(
                f,
                "no WebSocket upgrade: {}",
                match fault {
                    UpgradeFault::Http => "the answer is no HTTP/1.1 response: check the port",
                    UpgradeFault::Upgrade => "101 without Upgrade: websocket and Connection: upgrade",
                    UpgradeFault::Accept => "Sec-WebSocket-Accept does not match: a cache or proxy answered",
                    UpgradeFault::Extension => "the server chose an extension that was not offered",
                    UpgradeFault::Subprotocol => "the server chose no subprotocol that was offered: check its version",
                    UpgradeFault::Token => "the token holds characters a header cannot carry: check token_file",
                }
            ),
            Self::Timeout(phase) => f.write_str(match phase {
                DialPhase::Lookup => "the name lookup got no answer in time: check DNS",
                DialPhase::Connect => "no address answered the TCP connect in time: check host, port and firewall",
                DialPhase::Tls => "the TLS handshake got no answer in time",
                DialPhase::Upgrade => "the upgrade request got no answer in time",
            }),
        }
    }
}

impl std::error::Error for DialError {}

async fn within<T>(limit: Duration, phase: DialPhase, work: impl Future<Output = T>) -> Result<T, DialError> {
    timeout(limit, work).await.map_err(|_| DialError::Timeout(phase))
}

/// Dials once: every address of the name in turn, then TLS, then the upgrade.
///
/// # Errors
/// See [`DialError`].
pub async fn dial(dial: Dial<'_>) -> Result<Dialed, DialError> {
    let (tcp, remote) = connect(&dial).await?;
    // Options only shorten how long a dead peer is noticed; without them the
    // liveness PING still decides.
    let _ = net::tune_session(&tcp, dial.timeouts.user);
    let io = if dial.url.tls {
        let config = dial.tls.clone().ok_or(DialError::Tls(TlsFault::Configuration))?;
        let name = ServerName::try_from(dial.url.host.clone()).map_err(|_| DialError::Tls(TlsFault::Configuration))?;
        let handshake = tokio_rustls::TlsConnector::from(config).connect(name, tcp);
        let tls = Box::pin(within(dial.timeouts.tls, DialPhase::Tls, handshake)).await?;
        Io::TlsClient(Box::new(tls.map_err(|error| tls_error(&error).unwrap_or(DialError::Tls(TlsFault::Other)))?))
    } else {
        Io::Plain(tcp)
    };
    let peer_dns_names = io.peer_dns_names().unwrap_or_default();
    let exporter = io.tls_exporter();
    let (io, leftover, dialect) =
        Box::pin(within(dial.timeouts.upgrade, DialPhase::Upgrade, upgrade(&dial, io))).await??;
    let options = WsOptions {
        text: dialect.codec == Codec::JsonV1,
        read_buffer_bytes: dial.read_buffer_bytes,
        message_max_bytes: dial.message_max_bytes,
    };
    Ok(Dialed { conn: WsConn::new(io, Role::Client, leftover, options), dialect, peer_dns_names, exporter, remote })
}

async fn connect(dial: &Dial<'_>) -> Result<(TcpStream, SocketAddr), DialError> {
    let lookup = tokio::net::lookup_host((dial.url.host.as_str(), dial.url.port));
    let addresses = within(dial.timeouts.lookup, DialPhase::Lookup, lookup).await?.map_err(|_| DialError::Dns)?;
    let mut last = DialError::Dns;
    for address in addresses {
        match within(dial.timeouts.connect, DialPhase::Connect, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok((tcp, address)),
            Ok(Err(error)) => last = DialError::Connect(error.kind()),
            Err(late) => last = late,
        }
    }
    Err(last)
}

async fn upgrade(dial: &Dial<'_>, io: Io) -> Result<(Io, Bytes, Dialect), DialError> {
    let key = generate_key();
    let request = request(dial, &key)?;
    let (mut sender, conn) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(RESPONSE_HEAD_MAX_BYTES)
        .max_headers(RESPONSE_HEADERS_MAX)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(io))
        .await
        .map_err(|error| http_error(&error))?;
    let mut conn = pin!(conn.with_upgrades());
    // hyper's connection must not be polled once it is done.
    let mut conn_done = false;
    let response = {
        let mut answer = pin!(sender.send_request(request));
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => break answer,
                _ = &mut conn, if !conn_done => conn_done = true,
            }
        }
    };
    let mut response = response.map_err(|error| http_error(&error))?;
    let dialect = check(&response, &key, dial.dialects)?;
    let upgraded = hyper::upgrade::on(&mut response);
    if !conn_done {
        // Its error, if any, is also the upgrade's.
        let _ = conn.await;
    }
    let parts = upgraded
        .await
        .ok()
        .and_then(|upgraded| upgraded.downcast::<TokioIo<Io>>().ok())
        .ok_or(DialError::Protocol(UpgradeFault::Http))?;
    Ok((parts.io.into_inner(), parts.read_buf, dialect))
}

fn request(dial: &Dial<'_>, key: &str) -> Result<Request<Empty<Bytes>>, DialError> {
    let offers: Vec<&str> = dial.dialects.iter().map(|dialect| dialect.subprotocol()).collect();
    let mut request = Request::get(dial.url.path.as_str())
        .header(HOST, dial.url.authority())
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, key)
        .header(SEC_WEBSOCKET_PROTOCOL, offers.join(", "))
        .body(Empty::new())
        .map_err(|_| DialError::Protocol(UpgradeFault::Http))?;
    if let Some(token) = dial.bearer {
        let mut value =
            HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| DialError::Protocol(UpgradeFault::Token))?;
        value.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, value);
    }
    Ok(request)
}

/// The value of a header that must come exactly once.
fn single<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

fn check(response: &Response<Incoming>, key: &str, offered: &[Dialect]) -> Result<Dialect, DialError> {
    let fault = |fault| Err(DialError::Protocol(fault));
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(DialError::Http { status: response.status().as_u16() });
    }
    let headers = response.headers();
    let websocket = single(headers, &UPGRADE).is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
    let upgrade = single(headers, &CONNECTION)
        .is_some_and(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")));
    if !websocket || !upgrade {
        return fault(UpgradeFault::Upgrade);
    }
    if single(headers, &SEC_WEBSOCKET_ACCEPT) != Some(derive_accept_key(key.as_bytes()).as_str()) {
        return fault(UpgradeFault::Accept);
    }
    if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
        return fault(UpgradeFault::Extension);
    }
    let chosen = single(headers, &SEC_WEBSOCKET_PROTOCOL);
    match offered.iter().find(|dialect| Some(dialect.subprotocol()) == chosen) {
        Some(dialect) => Ok(*dialect),
        None => fault(UpgradeFault::Subprotocol),
    }
}

/// A failed exchange: with TLS 1.3 the server's verdict on our certificate
/// comes only now.
fn http_error(error: &hyper::Error) -> DialError {
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    io.and_then(tls_error).unwrap_or(DialError::Protocol(UpgradeFault::Http))
}

fn tls_error(error: &io::Error) -> Option<DialError> {
    use rustls::Error;
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    let fault = if let Error::InvalidCertificate(bad) = error {
        certificate_fault(bad)
    } else if matches!(error, Error::AlertReceived(alert) if about_our_certificate(*alert)) {
        TlsFault::OurCertificate
    } else if matches!(error, Error::InvalidMessage(_)) {
        TlsFault::NotTls
    } else {
        TlsFault::Other
    };
    Some(DialError::Tls(fault))
}

fn certificate_fault(bad: &rustls::CertificateError) -> TlsFault {
    use rustls::CertificateError as Bad;
    if matches!(bad, Bad::UnknownIssuer | Bad::BadSignature) {
        TlsFault::UnknownIssuer
    } else if matches!(bad, Bad::Expired | Bad::ExpiredContext { .. }) {
        TlsFault::Expired
    } else if matches!(bad, Bad::NotValidYet | Bad::NotValidYetContext { .. }) {
        TlsFault::NotYetValid
    } else if matches!(bad, Bad::NotValidForName | Bad::NotValidForNameContext { .. }) {
        TlsFault::WrongName
    } else {
        TlsFault::Other
    }
}

fn about_our_certificate(alert: rustls::AlertDescription) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnknownCA
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate
            | Alert::DecryptError
            | Alert::AccessDenied
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let url = WsUrl::parse("wss://hub.example.com/tunnel").unwrap();
        assert_eq!((url.is_tls(), url.host(), url.port()), (true, "hub.example.com", 443));
        assert_eq!(url.to_string(), "wss://hub.example.com/tunnel");
        let url = WsUrl::parse("ws://[::1]:8765").unwrap();
        assert_eq!(
            (url.is_tls(), url.host(), url.port(), url.authority().as_str()),
            (false, "::1", 8765, "[::1]:8765")
        );
        assert_eq!(url.to_string(), "ws://[::1]:8765/");
        assert_eq!(WsUrl::parse("ws://hub/t?token=x").unwrap().to_string(), "ws://hub/t");
        for (text, error) in [
            ("https://hub/tunnel", WsUrlError::Scheme),
            ("hub/tunnel", WsUrlError::Malformed),
            ("/tunnel", WsUrlError::Scheme),
            ("wss://user:pw@hub/tunnel", WsUrlError::UserInfo),
            ("wss://hub:99999/tunnel", WsUrlError::Malformed),
            ("wss://hub:0/tunnel", WsUrlError::Malformed),
            ("wss://hub/tunnel#x", WsUrlError::Malformed),
            ("", WsUrlError::Malformed),
        ] {
            assert_eq!(WsUrl::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn refusals_name_what_to_check() {
        for (status, word) in [(401, "token"), (404, "path"), (400, "subprotocol"), (302, "redirect")] {
            let text = DialError::Http { status }.to_string();
            assert!(text.contains(word), "{text}");
        }
    }
}

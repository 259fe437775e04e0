//! The upgrade of one request to WebSocket, step by step, cheapest and least
//! trusting first: method, upgrade wish, browser origin, duplicate headers,
//! credentials, and only then the handshake's own headers and subprotocol
//! (attacks 4, 5, 6, 14). Extensions are never accepted. Knows no tokens.

use std::cell::Cell;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, ORIGIN, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE, WWW_AUTHENTICATE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use nowconnect_core::principal::{HubGrant, Principal};
use nowconnect_core::wire::{Codec, Dialect, Plane};
use tungstenite::error::{Error as WsLibError, ProtocolError};
use tungstenite::handshake::server::create_response_with_body;
use tungstenite::protocol::Role;

use super::{Answer, Body, HttpApp, Refusal, Upgraded, text, wrong_method};
use crate::ws::{Io, READ_BUFFER_LINK_BYTES, READ_BUFFER_TUNNEL_BYTES, WsConn, WsOptions};

/// Headers that must not come twice: two readers could believe different ones.
const ONCE: [HeaderName; 6] = [AUTHORIZATION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE, HOST, CONTENT_LENGTH];

/// An upgrade that was answered with 101.
pub(super) struct Granted {
    on_upgrade: OnUpgrade,
    dialect: Dialect,
    principal: Principal,
}

/// Where the request's handler leaves the upgrade for the connection's task.
#[derive(Default)]
pub(super) struct Pending(Cell<Option<Granted>>);

impl Pending {
    pub(super) fn take(&self) -> Option<Granted> {
        self.0.take()
    }
}

impl Granted {
    /// The WebSocket connection, once HTTP let go of the stream.
    pub(super) async fn finish(self, remote: SocketAddr, message_max_bytes: usize) -> Option<Upgraded> {
        let parts = self.on_upgrade.await.ok()?.downcast::<TokioIo<Io>>().ok()?;
        let options = WsOptions {
            text: self.dialect.codec == Codec::JsonV1,
            read_buffer_bytes: match self.dialect.plane {
                Plane::Tunnel => READ_BUFFER_TUNNEL_BYTES,
                Plane::Mesh => READ_BUFFER_LINK_BYTES,
            },
            message_max_bytes,
        };
        let conn = WsConn::new(parts.io.into_inner(), Role::Server, parts.read_buf, options);
        Some(Upgraded { conn, dialect: self.dialect, principal: self.principal, remote })
    }
}

fn refuse<T>(why: Refusal, response: Response<Body>) -> Result<T, (Refusal, Box<Response<Body>>)> {
    Err((why, Box::new(response)))
}

fn upgrade_required() -> Response<Body> {
    let mut response = text(StatusCode::UPGRADE_REQUIRED, "expected a WebSocket upgrade, version 13\n");
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response
}

/// Answers a request on the path of `plane`.
pub(super) fn answer(
    app: &dyn HttpApp,
    plane: Plane,
    mut request: Request<Incoming>,
    tls_peer: HubGrant,
    pending: &Pending,
) -> Answer {
    if request.method() != Method::GET {
        return refuse(Refusal::Method, wrong_method("GET"));
    }
    let headers = request.headers();
    if !headers.contains_key(UPGRADE) {
        return refuse(Refusal::Upgrade, upgrade_required());
    }
    if headers.contains_key(ORIGIN) {
        return refuse(Refusal::Origin, text(StatusCode::FORBIDDEN, "browsers have no business here\n"));
    }
    if let Some(name) = ONCE.iter().find(|name| headers.get_all(*name).iter().nth(1).is_some()) {
        let body = format!("expected the header {name} once\n");
        return refuse(Refusal::Duplicate, text(StatusCode::BAD_REQUEST, body));
    }
    if headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0") {
        return refuse(Refusal::Upgrade, text(StatusCode::BAD_REQUEST, "expected an upgrade without a body\n"));
    }
    let principal = match app.authenticate(plane, headers, tls_peer) {
        Ok(principal) => principal,
        Err(reject) => {
            let status = StatusCode::from_u16(reject.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = text(status, reject.message + "\n");
            if status == StatusCode::UNAUTHORIZED {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            return refuse(Refusal::Denied, response);
        }
    };
    let mut response = match create_response_with_body(&request, || Full::new(Bytes::new())) {
        Ok(response) => response,
        Err(WsLibError::Protocol(ProtocolError::MissingSecWebSocketVersionHeader)) => {
            return refuse(Refusal::Upgrade, upgrade_required());
        }
        // The library's text names headers, not their values.
        Err(error) => return refuse(Refusal::Upgrade, text(StatusCode::BAD_REQUEST, format!("{error}\n"))),
    };
    let Some(dialect) = common_dialect(plane, request.headers()) else {
        let names = Dialect::of(plane).map(Dialect::subprotocol).join(", ");
        let body = format!("expected Sec-WebSocket-Protocol with one of: {names}\n");
        return refuse(Refusal::Subprotocol, text(StatusCode::BAD_REQUEST, body));
    };
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(dialect.subprotocol()));
    pending.0.set(Some(Granted { on_upgrade: hyper::upgrade::on(&mut request), dialect, principal }));
    Ok(response)
}

/// The newest dialect of `plane` the peer offers, in whatever order.
fn common_dialect(plane: Plane, headers: &HeaderMap) -> Option<Dialect> {
    let offers = || {
        let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).map(str::trim)
    };
    Dialect::of(plane).into_iter().find(|dialect| offers().any(|offer| offer == dialect.subprotocol()))
}

//! Dials of a node: hub to peer, agent to hub. One task a dial: TCP, TLS and
//! the WebSocket upgrade; then the pump. The core decides when to dial and
//! what a failure means.

use std::sync::Arc;
use std::time::Duration;

use nowconnect_core::id::TargetIx;
use nowconnect_core::mux::Input;
use nowconnect_core::principal::HubGrant;
use nowconnect_core::wire::{Dialect, MESSAGE_MAX_BEFORE_AUTH_BYTES, MESSAGE_MAX_BYTES, Plane};

use crate::conn;
use crate::dial::{Dial, DialTimeouts, WsUrl, dial};
use crate::limiter::Limiter;
use crate::node::{Machine, Node};
use crate::ws::READ_BUFFER_LINK_BYTES;

/// Where one target of a node is, and how it is spoken to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The address.
    pub url: WsUrl,
    /// For `wss`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Dialects to offer, best first.
    pub dialects: Vec<Dialect>,
    /// `TCP_USER_TIMEOUT` of the connection.
    pub user_timeout: Duration,
}

/// Starts a dial. `bearer` is asked for the token of this very dial.
pub fn start<M: Machine>(
    node: &Node<M>,
    ix: TargetIx,
    target: &Target,
    bearer: impl FnOnce() -> Result<Option<String>, String> + 'static,
    lines: &Limiter,
) {
    let (node, target, lines) = (node.clone(), target.clone(), lines.clone());
    tokio::task::spawn_local(async move {
        let failed = |why: String| {
            if let Some(suppressed) = lines.allow("dial_failed", &target.url.to_string()) {
                tracing::warn!(event = "dial_failed", url = %target.url, suppressed, "{why}");
            }
            node.input(Input::DialFailed { target: ix });
        };
        // A peer hub proves itself after the dial; the agent's hub is the one TLS checked.
        let mesh = target.dialects.iter().any(|d| d.plane == Plane::Mesh);
        let bearer = match bearer() {
            Ok(b) => b,
            Err(why) => return failed(why),
        };
        let dialed = dial(Dial {
            url: &target.url,
            tls: target.tls.clone(),
            bearer: bearer.as_deref(),
            dialects: &target.dialects,
            timeouts: DialTimeouts { user: target.user_timeout, ..DialTimeouts::default() },
            // A node that dials has few sessions: the large buffer holds a whole
            // DATA frame, so that one read takes it.
            read_buffer_bytes: READ_BUFFER_LINK_BYTES,
            message_max_bytes: if mesh { MESSAGE_MAX_BEFORE_AUTH_BYTES } else { MESSAGE_MAX_BYTES },
        })
        .await;
        match dialed {
            Ok(d) => {
                let key = node.add_conn();
                // rustls compared the certificate with the url's host; who the peer
                // is, its signature says, and the names where TLS ends at both.
                let dns_names = Some(d.peer_dns_names).filter(|names| !names.is_empty());
                let peer = HubGrant { dns_names, exporter: d.exporter };
                node.input(Input::Connected { target: ix, conn: key, dialect: d.dialect, peer });
                conn::run(node, key, d.conn, !mesh).await;
            }
            Err(e) => failed(e.to_string()),
        }
    });
}

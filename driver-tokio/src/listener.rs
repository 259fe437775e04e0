//! Client listeners of a hub: accept, the source list, the socket's pump, and
//! what happens while nobody could carry a client (`when_unavailable`).
//!
//! Keeps: a connection that was accepted belongs to the machine or was reset;
//! closing the listening socket touches no client that is connected. Must not
//! know why there is no candidate.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use nowconnect_core::hub::Hub;
use nowconnect_core::id::{ListenerIx, Name, SockKey};
use nowconnect_core::time::Instant;
use tokio::net::TcpListener;

use crate::config::{Cidr, WhenUnavailable};
use crate::limiter::Limiter;
use crate::net;
use crate::node::Node;
use crate::socket;

/// Connections the kernel queues per listening socket.
const BACKLOG: i32 = 1024;
/// How long there must be no candidate before a listener refuses (semantics 10).
const UNAVAILABLE_FOR: Duration = Duration::from_secs(2);
/// How often candidates are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Addresses of the clients that are connected, for stream records.
pub type Clients = Rc<RefCell<std::collections::BTreeMap<SockKey, SocketAddr>>>;

/// One client port.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Its place in the configuration.
    pub ix: ListenerIx,
    /// Its name, for log lines.
    pub name: Name,
    /// What its clients want.
    pub connector: Name,
    /// Ranges clients may come from; empty = everybody.
    pub allow: Vec<Cidr>,
    /// What happens while nothing serves the connector.
    pub when_unavailable: WhenUnavailable,
}

/// A port's socket while it listens. The task that serves the port closes and
/// reopens it; whoever configures ports keeps it from one task to the next.
pub type Port = Rc<RefCell<Option<Rc<TcpListener>>>>;

/// Serves one client port until the task is dropped.
pub async fn run(node: Node<Hub>, at: Setting, port: Port, addr: SocketAddr, clients: Clients, lines: Limiter) {
    loop {
        let open = port.borrow().clone();
        if let Some(open) = open {
            tokio::select! {
                () = accept(&node, &at, &open, &clients, &lines) => {}
                () = unavailable(&node, &at) => {
                    port.replace(None);
                    tracing::warn!(
                        event = "listener_closed", listener = %at.name, connector = %at.connector,
                        "no hub holds an attachment for this connector; clients are refused until one does (listeners[].when_unavailable)"
                    );
                }
            }
            continue;
        }
        while !could_open(&node, &at) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        match net::listen(addr, BACKLOG) {
            Ok(again) => {
                port.replace(Some(Rc::new(again)));
                tracing::info!(event = "listener_reopened", listener = %at.name, connector = %at.connector);
            }
            Err(e) => {
                if let Some(suppressed) = lines.allow("listener_not_reopened", at.name.as_str()) {
                    tracing::error!(event = "listener_not_reopened", listener = %at.name, %addr, suppressed, "{e}; tried again");
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

fn could_open(node: &Node<Hub>, at: &Setting) -> bool {
    node.look(|hub| hub.could_open(&at.connector))
}

/// Resolves when the listening socket is to be closed.
async fn unavailable(node: &Node<Hub>, at: &Setting) {
    if at.when_unavailable == WhenUnavailable::Reset {
        return std::future::pending().await;
    }
    let mut since: Option<Instant> = None;
    loop {
        let now = node.clock().now();
        if could_open(node, at) {
            since = None;
        } else if now.since(*since.get_or_insert(now)) >= UNAVAILABLE_FOR {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn accept(node: &Node<Hub>, at: &Setting, listener: &TcpListener, clients: &Clients, lines: &Limiter) {
    loop {
        let (tcp, remote) = net::accept(listener).await;
        if !at.allow.is_empty() && !at.allow.iter().any(|c| c.contains(remote.ip())) {
            if let Some(suppressed) = lines.allow("client_refused", at.name.as_str()) {
                tracing::warn!(event = "client_refused", listener = %at.name, client = %remote, suppressed, "source address is not in listeners[].allow");
            }
            net::abort(tcp);
            continue;
        }
        // Without the options a dead client is noticed later; no reason to refuse.
        let _ = net::tune_client(&tcp);
        let sock = node.add_sock();
        clients.borrow_mut().insert(sock, remote);
        #[cfg(test)]
        node.journal().calls(crate::journal::Call::Open(at.ix, sock));
        match node.enter(|hub, now, out| hub.open(now, at.ix, sock, out)) {
            Ok(stream) => {
                let (node, clients) = (node.clone(), Rc::clone(clients));
                tokio::task::spawn_local(async move {
                    socket::run(node, stream, sock, tcp).await;
                    clients.borrow_mut().remove(&sock);
                });
            }
            Err(code) => {
                clients.borrow_mut().remove(&sock);
                node.remove_sock(sock);
                if let Some(suppressed) = lines.allow("open_failed", &format!("{code} {}", at.connector)) {
                    tracing::warn!(
                        event = "open_failed",
                        listener = %at.name,
                        connector = %at.connector,
                        client = %remote,
                        reason = code.name(),
                        suppressed,
                        "a client was refused at once"
                    );
                }
                net::abort(tcp);
            }
        }
    }
}

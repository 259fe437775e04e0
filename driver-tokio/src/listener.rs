//! Client listeners of a hub: accept, the source list, and the socket's pump.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use nowconnect_core::hub::Hub;
use nowconnect_core::id::{ListenerIx, SockKey};
use tokio::net::TcpListener;

use crate::config::Cidr;
use crate::limiter::Limiter;
use crate::net;
use crate::node::Node;
use crate::socket;

/// Addresses of the clients that are connected, for stream records.
pub type Clients = Rc<RefCell<std::collections::BTreeMap<SockKey, SocketAddr>>>;

/// Accepts clients of one listener until the task is dropped.
pub async fn run(
    node: Node<Hub>,
    ix: ListenerIx,
    name: String,
    listener: Rc<TcpListener>,
    allow: Vec<Cidr>,
    clients: Clients,
    lines: Limiter,
) {
    loop {
        let (tcp, remote) = net::accept(&listener).await;
        if !allow.is_empty() && !allow.iter().any(|c| c.contains(remote.ip())) {
            if let Some(suppressed) = lines.allow("client_refused", &name) {
                tracing::warn!(event = "client_refused", listener = name, client = %remote, suppressed, "source address is not in listeners[].allow");
            }
            net::abort(tcp);
            continue;
        }
        // Without the options a dead client is noticed later; no reason to refuse.
        let _ = net::tune_client(&tcp);
        let sock = node.add_sock();
        clients.borrow_mut().insert(sock, remote);
        match node.enter(|hub, now, out| hub.open(now, ix, sock, out)) {
            Ok(stream) => {
                let (node, clients) = (node.clone(), Rc::clone(&clients));
                tokio::task::spawn_local(async move {
                    socket::run(node, stream, sock, tcp).await;
                    clients.borrow_mut().remove(&sock);
                });
            }
            Err(code) => {
                clients.borrow_mut().remove(&sock);
                node.remove_sock(sock);
                if let Some(suppressed) = lines.allow("open_failed", &name) {
                    tracing::warn!(event = "open_failed", listener = name, client = %remote, reason = code.name(), suppressed, "a client was refused at once");
                }
                net::abort(tcp);
            }
        }
    }
}

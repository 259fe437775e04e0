//! Connects the targets of an agent's streams, and those it only checks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use nowconnect_core::agent::Agent;
use nowconnect_core::error::RstCode;
use nowconnect_core::id::StreamKey;
use nowconnect_core::mux::{Check, Input};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::net;
use crate::node::Node;
use crate::socket;

/// Connects that are under way, by stream: who does not wait any more leaves
/// none behind, or a target that does not answer would cost a descriptor for
/// each client that came and went.
#[derive(Debug, Default)]
pub struct Connecting(RefCell<BTreeMap<StreamKey, AbortHandle>>);

impl Connecting {
    /// The stream is over.
    pub fn give_up(&self, stream: StreamKey) {
        if let Some(task) = self.0.borrow_mut().remove(&stream) {
            task.abort();
        }
    }
}

/// Connects `address` for a stream and runs its socket; `failed` hears why
/// there is none.
pub fn start(
    node: &Node<Agent>,
    stream: StreamKey,
    address: String,
    timeout: Duration,
    connecting: &Rc<Connecting>,
    failed: impl FnOnce(RstCode) + 'static,
) {
    let (node, under_way) = (node.clone(), Rc::clone(connecting));
    let task = tokio::task::spawn_local(async move {
        let connected = connect(&address, timeout).await;
        under_way.0.borrow_mut().remove(&stream);
        match connected {
            Ok(tcp) => {
                // Without the options a dead target is noticed later; no reason to refuse.
                let _ = net::tune_client(&tcp);
                let sock = node.add_sock();
                node.input(Input::Target { stream, result: Ok(sock) });
                socket::run(node, stream, sock, tcp).await;
            }
            Err(code) => {
                failed(code);
                node.input(Input::Target { stream, result: Err(code) });
            }
        }
    });
    // It runs only after this.
    connecting.0.borrow_mut().insert(stream, task.abort_handle());
}

/// Connects `address` and lets it go at once, without a byte.
pub fn check(node: &Node<Agent>, check: Check, address: String) {
    let node = node.clone();
    tokio::task::spawn_local(async move {
        let Check { connector, number, timeout } = check;
        let result = connect(&address, timeout).await.map(drop);
        node.input(Input::Checked { connector, number, result });
    });
}

async fn connect(address: &str, timeout: Duration) -> Result<TcpStream, RstCode> {
    match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
        Ok(Ok(tcp)) => Ok(tcp),
        Ok(Err(e)) => Err(code_of(&e)),
        Err(_) => Err(RstCode::TargetTimeout),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "std's set of kinds is open")]
fn code_of(e: &std::io::Error) -> RstCode {
    match e.kind() {
        ErrorKind::ConnectionRefused => RstCode::Refused,
        ErrorKind::TimedOut => RstCode::TargetTimeout,
        _ => RstCode::Unreachable,
    }
}

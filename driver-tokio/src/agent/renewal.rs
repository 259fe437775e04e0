//! A token that changes in its file counts without a restart: the tunnels come
//! back with it, one after the other, and their sessions are resumed, so that
//! no stream notices. The next tunnel waits for the one before: a token that
//! no hub accepts costs one connection, not all.

use std::rc::Rc;
use std::time::Duration;

use nowconnect_core::agent::Agent;
use nowconnect_core::error::CloseCode;
use nowconnect_core::id::{ConnKey, SessionKey};

use super::{Shared, read_token};
use crate::node::Node;

/// How often the file is looked at, and whether a tunnel is back.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs until the task is dropped; `used` is the token so far.
pub(super) async fn run(node: Node<Agent>, shared: Rc<Shared>, mut used: Option<String>) {
    // Tunnels that still run on an earlier token.
    let mut stale: Vec<SessionKey> = Vec::new();
    let mut renewing: Option<SessionKey> = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // Unreadable or empty: somebody is writing it. The dials say so.
        if let Ok(token) = read_token(&shared.setup().token_file)
            && used.as_ref() != Some(&token)
        {
            tracing::info!(event = "token_changed", "the tunnels return with the new token");
            used = Some(token);
            stale = node.look(|agent| agent.mux().iter().map(|(key, _)| key).collect());
        }
        let carried =
            |key: SessionKey| -> Option<Option<ConnKey>> { node.look(|agent| agent.mux().get(key).map(|e| e.conn)) };
        if renewing.is_some_and(|key| carried(key) == Some(None)) {
            continue;
        }
        renewing = stale.pop();
        if let Some(conn) = renewing.and_then(carried).flatten() {
            node.close(conn, CloseCode::Transport);
        }
    }
}

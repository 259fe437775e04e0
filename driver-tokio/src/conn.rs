//! The pump of one WebSocket connection: one task that reads and writes.
//!
//! Reading never stops because writing is blocked (the deadlock of WaterWall
//! #332 and yamux #102); what is written is pulled from the machine only when
//! little waits here, so bytes outside the session's accounting stay few (B2).

use std::task::Poll;
use std::time::Duration;

use nowconnect_core::error::CloseCode;
use nowconnect_core::id::ConnKey;
use nowconnect_core::mux::Input;
use nowconnect_core::session::{TxBatch, TxState};
use nowconnect_core::wire::MESSAGE_MAX_BYTES;

use crate::certs::{self, Chain};
use crate::node::{Machine, Node};
use crate::ws::{WsConn, WsEvent};

/// Bytes pulled from the machine at a time.
const PULL_BYTES: usize = 256 * 1024;
/// Nothing more is pulled while this much waits for the socket.
const LOW_WATER_BYTES: usize = 128 * 1024;
/// Messages handled before other tasks get their turn.
const MESSAGES_PER_TURN: u32 = 64;
/// Time for the last bytes and the peer's answer after a close.
const LINGER: Duration = Duration::from_secs(2);

/// Runs a connection under `key` until it ends, and tells the machine.
/// `trusted`: the full message size is allowed from the start (we dialled).
pub async fn run<M: Machine>(node: Node<M>, key: ConnKey, mut ws: WsConn, trusted: bool) {
    let chain: Option<Chain> = ws.io().peer_chain().map(Into::into);
    // A CA may have left since TLS asked for it.
    let late = chain.as_deref().is_some_and(|c| !node.trusts(c));
    node.with_conn(key, |slot| slot.chain = chain);
    if late {
        certs::end(&node, key);
    }
    let mut batch = TxBatch::default();
    let mut large = trusted;
    if large {
        ws.set_message_max(MESSAGE_MAX_BYTES);
    }
    let cause = std::future::poll_fn(|cx| {
        node.with_conn(key, |slot| slot.waker = Some(cx.waker().clone()));
        let mut messages = 0;
        loop {
            let mut idle = true;
            if !large && node.look(|m| m.mux().carried_by(key).is_some()) {
                large = true;
                ws.set_message_max(MESSAGE_MAX_BYTES);
            }
            match ws.poll_recv(cx) {
                Poll::Ready(Ok(WsEvent::Message(message))) => {
                    node.input(Input::Message { conn: key, message });
                    messages += 1;
                    idle = false;
                }
                Poll::Ready(Ok(WsEvent::Partial)) => {
                    node.input(Input::Heard { conn: key });
                    idle = false;
                }
                Poll::Ready(Ok(WsEvent::Closed { .. })) => return Poll::Ready(CloseCode::Transport),
                Poll::Ready(Err(e)) => {
                    return Poll::Ready(if e.close_code().is_some() {
                        CloseCode::Protocol
                    } else {
                        CloseCode::Transport
                    });
                }
                Poll::Pending => {}
            }
            let (dirty, close) = node.with_conn(key, |s| (s.dirty, s.close)).unwrap_or((false, None));
            if dirty && ws.queued_bytes() < LOW_WATER_BYTES && (idle || messages % 16 == 0) {
                node.with_conn(key, |s| s.dirty = false);
                let state = node.transmit(key, PULL_BYTES, &mut batch);
                if state == TxState::More {
                    node.with_conn(key, |s| s.dirty = true);
                }
                for m in batch.messages.drain(..) {
                    ws.queue(m.chunks, m.len);
                }
                batch.bytes = 0;
                idle = false;
            }
            if ws.queued_bytes() > 0 && (idle || ws.queued_bytes() >= LOW_WATER_BYTES) {
                match ws.poll_flush(cx) {
                    Poll::Ready(Ok(())) => idle = false,
                    Poll::Ready(Err(_)) => return Poll::Ready(CloseCode::Transport),
                    Poll::Pending => {}
                }
            }
            if let Some(code) = close
                // Nothing more is said on a transport that is given up: under
                // load there would never be a moment without anything to say.
                && (code == CloseCode::Transport
                    || ws.queued_bytes() == 0 && !node.with_conn(key, |s| s.dirty).unwrap_or(false))
            {
                return Poll::Ready(code);
            }
            if idle {
                // A partial write may have left bytes below the socket (TLS).
                if let Poll::Ready(Err(_)) = ws.poll_flush(cx) {
                    return Poll::Ready(CloseCode::Transport);
                }
                return Poll::Pending;
            }
            if messages >= MESSAGES_PER_TURN {
                if let Poll::Ready(Err(_)) = ws.poll_flush(cx) {
                    return Poll::Ready(CloseCode::Transport);
                }
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    })
    .await;
    node.remove_conn(key);
    node.input(Input::Disconnected { conn: key, cause });
    ws.close(if cause == CloseCode::Transport { 1000 } else { 1008 });
    ws.finish(LINGER).await;
}

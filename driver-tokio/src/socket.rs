//! The pump of one client or target socket: one task that does both directions.
//!
//! Reads only what `read_budget` allows, so TCP itself holds back a sender
//! whose stream has no credit; half-closes and aborts each on their own (S3,
//! S5). An idle socket owns no buffer: reads go into one block of the thread.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::Poll;

use bytes::{Buf as _, Bytes};
use nowconnect_core::id::{SockKey, StreamKey};
use nowconnect_core::mux::Input;
use nowconnect_core::shard::{SockEvent, SockOp};
use tokio::io::{AsyncWrite as _, Interest};
use tokio::net::TcpStream;

use crate::net;
use crate::node::{Machine, Node};

/// Bytes read at a time: the largest DATA payload.
const READ_BYTES: usize = 64 * 1024;
/// A payload below this is copied out of the block it was read into, so that
/// small pieces that wait do not pin 64 KiB each.
const COPY_BELOW_BYTES: usize = 16 * 1024;
/// Reads before other tasks get their turn.
const READS_PER_TURN: u32 = 4;
/// Slices of one vectored write.
const SLICES: usize = 32;

struct Pump<M: Machine> {
    node: Node<M>,
    stream: StreamKey,
    tcp: TcpStream,
    writes: VecDeque<Bytes>,
    /// A half-close is due after the writes / done.
    shut: Shut,
    /// The peer half-closed.
    eof: bool,
    /// `read_budget` was 0; `Readable` follows.
    paused: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shut {
    No,
    Due,
    Done,
}

enum Next {
    Wait,
    Again,
    Over,
}

/// Runs a socket until both halves ended or it is aborted.
pub async fn run<M: Machine>(node: Node<M>, stream: StreamKey, sock: SockKey, tcp: TcpStream) {
    // Until both halves have ended in order: when this process is killed, the
    // kernel must not show an end that nobody sent (S2).
    net::reset_on_drop(&tcp);
    let mut pump = Pump { node, stream, tcp, writes: VecDeque::new(), shut: Shut::No, eof: false, paused: false };
    loop {
        match pump.turn(sock).await {
            Next::Again => tokio::task::yield_now().await,
            Next::Over => break,
            Next::Wait => {
                let mut interest = Interest::ERROR;
                if !pump.writes.is_empty() {
                    interest |= Interest::WRITABLE;
                }
                if !pump.eof && !pump.paused {
                    interest |= Interest::READABLE;
                }
                tokio::select! {
                    biased;
                    () = pump.node.ops(sock) => {}
                    ready = pump.tcp.ready(interest) => {
                        let failed = match ready {
                            Ok(r) => r.is_error() && (pump.paused || pump.eof) && pump.writes.is_empty(),
                            Err(_) => true,
                        };
                        if failed {
                            pump.event(SockEvent::Aborted);
                            break;
                        }
                    }
                }
            }
        }
    }
    pump.node.remove_sock(sock);
}

impl<M: Machine> Pump<M> {
    fn event(&self, event: SockEvent) {
        self.node.input(Input::Socket { stream: self.stream, event });
    }

    async fn turn(&mut self, sock: SockKey) -> Next {
        while let Some(op) = self.node.next_op(sock) {
            match op {
                SockOp::Write(b) => self.writes.push_back(b),
                SockOp::ShutDown => self.shut = Shut::Due,
                SockOp::Readable => self.paused = false,
                SockOp::Close => {
                    net::close_on_drop(&self.tcp);
                    return Next::Over;
                }
                SockOp::Abort(_) => {
                    self.abort();
                    return Next::Over;
                }
            }
        }
        if !self.writes.is_empty() && !self.write() {
            self.event(SockEvent::Aborted);
            return Next::Over;
        }
        if self.writes.is_empty() && self.shut == Shut::Due {
            self.shut = Shut::Done;
            let done = std::future::poll_fn(|cx| {
                // A TCP shutdown never waits.
                Poll::Ready(matches!(Pin::new(&mut self.tcp).poll_shutdown(cx), Poll::Ready(Ok(()))))
            })
            .await;
            if !done {
                self.event(SockEvent::Aborted);
                return Next::Over;
            }
            self.event(SockEvent::ShutDown);
            return Next::Again;
        }
        if self.eof || self.paused {
            return Next::Wait;
        }
        for _ in 0..READS_PER_TURN {
            let budget = self.node.read_budget(self.stream).min(READ_BYTES);
            if budget == 0 {
                self.paused = true;
                return Next::Wait;
            }
            match self.read(budget) {
                Ok(Some(bytes)) if bytes.is_empty() => {
                    self.eof = true;
                    self.event(SockEvent::Eof);
                    return Next::Wait;
                }
                Ok(Some(bytes)) => self.event(SockEvent::Data(bytes)),
                Ok(None) => return Next::Wait,
                Err(_) => {
                    self.event(SockEvent::Aborted);
                    return Next::Over;
                }
            }
        }
        Next::Again
    }

    /// What can be read now; `None` when nothing is there, empty at the end.
    fn read(&self, budget: usize) -> std::io::Result<Option<Bytes>> {
        use bytes::BufMut as _;
        self.node.with_read_block(|block| {
            block.reserve(READ_BYTES);
            match self.tcp.try_read_buf(&mut (&mut *block).limit(budget)) {
                Ok(n) if n < COPY_BELOW_BYTES => {
                    #[allow(clippy::disallowed_methods, reason = "small payloads must not pin a 64 KiB block")]
                    let bytes = Bytes::copy_from_slice(block);
                    block.clear();
                    Ok(Some(bytes))
                }
                Ok(_) => Ok(Some(block.split().freeze())),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
                Err(e) => Err(e),
            }
        })
    }

    /// Writes as much as the socket takes; false when it failed.
    fn write(&mut self) -> bool {
        let mut total = 0;
        let mut ok = true;
        while !self.writes.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut used = 0;
            for (slice, bytes) in slices.iter_mut().zip(&self.writes) {
                *slice = IoSlice::new(bytes);
                used += 1;
            }
            match self.tcp.try_write_vectored(slices.get(..used).unwrap_or(&[])) {
                Ok(mut n) => {
                    total += n as u64;
                    while n > 0 {
                        let Some(front) = self.writes.front_mut() else { break };
                        let take = n.min(front.len());
                        front.advance(take);
                        n -= take;
                        if front.is_empty() {
                            self.writes.pop_front();
                        }
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    ok = false;
                    break;
                }
            }
        }
        if total > 0 {
            self.event(SockEvent::Written(total));
        }
        ok
    }

    fn abort(&self) {
        // The socket is dropped right after; without linger the kernel sends RST.
        net::reset_on_drop(&self.tcp);
    }
}

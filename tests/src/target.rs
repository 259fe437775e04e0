//! The backend of the transfer tests: one TCP server that does what the first
//! 32 bytes of each connection ask for, so that a single connector serves all
//! kinds of transfer. How many connections each stream made and how the last one
//! ended is recorded by stream number, which is how a test sees what arrived at
//! the far side.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::payload::{Checker, Direction, Pattern};
use crate::proxy::reset;
use crate::wait::{PATIENCE, bounded};

/// Length of a request head.
pub const HEAD_BYTES: usize = 32;
/// Length of the sink's answer: count and SHA-256.
pub const RECEIPT_BYTES: usize = 40;
const MAGIC: [u8; 4] = *b"NCT1";

/// What a client asks the target to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Send everything back; half-close after the client's.
    Echo,
    /// Take everything; only after the client's half-close answer with count
    /// and SHA-256.
    Sink,
    /// Send `len` bytes of the downward pattern, then half-close.
    Source,
    /// Take `len` bytes, then reset the connection.
    Reset,
    /// Read nothing until [`Target::resume_reading`], then behave as `Sink`.
    Deaf,
    /// Send `len` bytes without a pattern (throughput), then half-close.
    Flood,
    /// Take everything without checking it (throughput), answer like `Sink`
    /// with an empty hash.
    Drain,
}

impl Op {
    const ALL: [Self; 7] = [Self::Echo, Self::Sink, Self::Source, Self::Reset, Self::Deaf, Self::Flood, Self::Drain];
}

/// The request a client starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What to do.
    pub op: Op,
    /// Seed of the payload.
    pub seed: u64,
    /// Number of the stream: part of the payload and key of the record.
    pub stream: u64,
    /// Length meant by the operation.
    pub len: u64,
}

impl Head {
    /// Its bytes.
    #[must_use]
    pub fn encode(self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = self.op as u8;
        out[8..16].copy_from_slice(&self.seed.to_le_bytes());
        out[16..24].copy_from_slice(&self.stream.to_le_bytes());
        out[24..].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; HEAD_BYTES]) -> Option<Self> {
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let op = *Op::ALL.get(usize::from(bytes[4]))?;
        (bytes[..4] == MAGIC).then(|| Self { op, seed: number(8), stream: number(16), len: number(24) })
    }
}

/// How a connection ended, as the target saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The client's half-close arrived and the answer was delivered.
    Clean,
    /// The connection was reset.
    Reset,
    /// A wrong byte, a missing head or another failure.
    Bad(String),
}

#[derive(Default)]
struct Shared {
    ends: Mutex<BTreeMap<u64, End>>,
    /// Connections by the stream their head named.
    made: Mutex<BTreeMap<u64, u64>>,
    ended: Notify,
    hear: watch::Sender<bool>,
    accepted: AtomicU64,
}

/// A running target.
pub struct Target {
    /// Where it listens.
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Target {
    /// Starts a target on a port of the OS.
    ///
    /// # Panics
    /// When no port is left.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { addr, shared, accepting }
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections on which `stream` asked for something: 1 when it was opened
    /// once (S6), 0 when it was refused. One whose head never came is in
    /// [`Target::accepted`] only.
    #[must_use]
    pub fn connections_of(&self, stream: u64) -> u64 {
        self.shared.made.lock().unwrap().get(&stream).copied().unwrap_or(0)
    }

    /// Connections on which nobody asked for anything (yet).
    #[must_use]
    pub fn unasked(&self) -> u64 {
        let asked: u64 = self.shared.made.lock().unwrap().values().sum();
        self.accepted() - asked
    }

    /// Lets every `Deaf` connection read.
    pub fn resume_reading(&self) {
        self.shared.hear.send_replace(true);
    }

    /// Undoes [`Target::resume_reading`] for later connections.
    pub fn stop_reading(&self) {
        self.shared.hear.send_replace(false);
    }

    /// How `stream` ended, once it has.
    ///
    /// # Panics
    /// When it has not within the patience of the harness.
    pub async fn end_of(&self, stream: u64) -> End {
        bounded(&format!("the target's end of stream {stream}"), PATIENCE, async {
            loop {
                let next = self.shared.ended.notified();
                tokio::pin!(next);
                next.as_mut().enable();
                if let Some(end) = self.shared.ends.lock().unwrap().get(&stream) {
                    return end.clone();
                }
                next.await;
            }
        })
        .await
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        // Out of descriptors: the connection waits in the backlog.
        let Ok((socket, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let _ = socket.set_nodelay(true);
            serve(socket, &shared).await;
        });
    }
}

async fn serve(mut socket: TcpStream, shared: &Shared) {
    let mut head = [0; HEAD_BYTES];
    match socket.read_exact(&mut head).await {
        Ok(_) => {}
        // Probes and empty streams: nothing asked, nothing answered.
        Err(_) => return,
    }
    let Some(head) = Head::decode(&head) else { return };
    *shared.made.lock().unwrap().entry(head.stream).or_default() += 1;
    let end = match obey(&mut socket, head, shared).await {
        Ok(()) => End::Clean,
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => End::Reset,
        Err(e) => End::Bad(e.to_string()),
    };
    shared.ends.lock().unwrap().insert(head.stream, end);
    shared.ended.notify_waiters();
}

async fn obey(socket: &mut TcpStream, head: Head, shared: &Shared) -> std::io::Result<()> {
    let down = Pattern::new(head.seed, head.stream, Direction::Down);
    match head.op {
        Op::Echo => {
            let mut up = Checker::new(Pattern::new(head.seed, head.stream, Direction::Up));
            let mut buffer = vec![0; 16 * 1024];
            loop {
                let n = socket.read(&mut buffer).await?;
                if n == 0 {
                    return socket.shutdown().await;
                }
                up.take(&buffer[..n]).map_err(std::io::Error::other)?;
                socket.write_all(&buffer[..n]).await?;
            }
        }
        Op::Sink => sink(socket, head).await,
        Op::Source => {
            let mut buffer = vec![0; 64 * 1024];
            let mut offset = 0;
            while offset < head.len {
                let n = usize::try_from(head.len - offset).unwrap_or(usize::MAX).min(buffer.len());
                down.fill(offset, &mut buffer[..n]);
                socket.write_all(&buffer[..n]).await?;
                offset += n as u64;
            }
            socket.shutdown().await?;
            until_eof(socket).await
        }
        Op::Reset => {
            let mut left = head.len;
            let mut buffer = vec![0; 16 * 1024];
            while left > 0 {
                let n = socket.read(&mut buffer).await?;
                if n == 0 {
                    return Err(std::io::Error::other("half-close before the bytes to take had arrived"));
                }
                left = left.saturating_sub(n as u64);
            }
            reset(socket);
            Ok(())
        }
        Op::Deaf => {
            // The sender lives in `shared`, so this cannot fail.
            let _ = shared.hear.subscribe().wait_for(|hear| *hear).await;
            sink(socket, head).await
        }
        Op::Flood => {
            let buffer = vec![0x5a; 256 * 1024];
            let mut left = head.len;
            while left > 0 {
                let n = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                socket.write_all(&buffer[..n]).await?;
                left -= n as u64;
            }
            socket.shutdown().await?;
            until_eof(socket).await
        }
        Op::Drain => {
            let mut buffer = vec![0; 256 * 1024];
            let mut count = 0u64;
            loop {
                let n = socket.read(&mut buffer).await?;
                if n == 0 {
                    break;
                }
                count += n as u64;
            }
            let mut receipt = [0; RECEIPT_BYTES];
            receipt[..8].copy_from_slice(&count.to_le_bytes());
            socket.write_all(&receipt).await?;
            socket.shutdown().await
        }
    }
}

async fn sink(socket: &mut TcpStream, head: Head) -> std::io::Result<()> {
    let mut up = Checker::new(Pattern::new(head.seed, head.stream, Direction::Up));
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = socket.read(&mut buffer).await?;
        if n == 0 {
            break;
        }
        up.take(&buffer[..n]).map_err(std::io::Error::other)?;
        hash.update(&buffer[..n]);
    }
    let mut receipt = [0; RECEIPT_BYTES];
    receipt[..8].copy_from_slice(&up.offset().to_le_bytes());
    receipt[8..].copy_from_slice(&hash.finalize());
    socket.write_all(&receipt).await?;
    socket.shutdown().await
}

async fn until_eof(socket: &mut TcpStream) -> std::io::Result<()> {
    let mut rest = [0; 1024];
    while socket.read(&mut rest).await? != 0 {}
    Ok(())
}

//! Clients of the transfer tests. Each connects to a listener, asks the
//! [target](crate::target) for something and checks every byte that comes
//! back; the result says whether and how it went wrong, so a test can expect
//! success, a reset or a refusal.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::payload::{Checker, Direction, Pattern};
use crate::target::{Head, Op, RECEIPT_BYTES};
use crate::wait::{PATIENCE, bounded, eventually};

/// Seed of all transfers; the stream number makes them differ.
pub const SEED: u64 = 0x6e6f_7763_6f6e_6e31;

/// Why a transfer did not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection was reset (ECONNRESET or EPIPE after it).
    Reset,
    /// The stream ended before everything had arrived: a false EOF (S2).
    Short {
        /// Bytes that had arrived.
        got: u64,
        /// Bytes expected.
        want: u64,
    },
    /// Wrong bytes, or more than were sent.
    Corrupt(String),
    /// Anything else the OS said.
    Io(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset => f.write_str("reset"),
            Self::Short { got, want } => write!(f, "ended after {got} of {want} bytes"),
            Self::Corrupt(what) => write!(f, "corrupt: {what}"),
            Self::Io(what) => f.write_str(what),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        match e.kind() {
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => Self::Reset,
            _ => Self::Io(e.to_string()),
        }
    }
}

/// Result of an actor.
pub type Outcome<T = ()> = Result<T, Failure>;

/// One transfer to perform.
#[derive(Clone, Copy, Debug)]
pub enum Transfer {
    /// The target sends, the client checks.
    Download,
    /// The client sends and half-closes; the target's receipt, sent only after
    /// that, must hold the right count and hash.
    Upload,
    /// Both ways at once; the client half-closes when it has sent everything.
    Echo,
}

impl Transfer {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Download, Self::Upload, Self::Echo];

    /// Performs it through the listener at `addr`.
    ///
    /// # Errors
    /// When a byte is wrong or missing, or the connection failed.
    pub async fn run(self, addr: SocketAddr, stream: u64, len: u64) -> Outcome {
        match self {
            Self::Download => download(addr, stream, len).await,
            Self::Upload => upload(addr, stream, len).await,
            Self::Echo => echo(addr, stream, len).await,
        }
    }
}

/// Connects and sends the request.
///
/// # Errors
/// When the connection fails.
pub async fn ask(addr: SocketAddr, op: Op, stream: u64, len: u64) -> Outcome<TcpStream> {
    let mut socket = TcpStream::connect(addr).await?;
    socket.set_nodelay(true)?;
    socket.write_all(&Head { op, seed: SEED, stream, len }.encode()).await?;
    Ok(socket)
}

async fn download(addr: SocketAddr, stream: u64, len: u64) -> Outcome {
    let mut socket = ask(addr, Op::Source, stream, len).await?;
    receive(&mut socket, stream, len).await?;
    Ok(socket.shutdown().await?)
}

/// Reads `len` bytes of the downward pattern and the end of the half.
///
/// # Errors
/// When a byte is wrong or missing, or the connection failed.
pub async fn receive(socket: &mut TcpStream, stream: u64, len: u64) -> Outcome {
    let mut checker = Checker::new(Pattern::new(SEED, stream, Direction::Down));
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = socket.read(&mut buffer).await?;
        if n == 0 {
            break;
        }
        checker.take(&buffer[..n]).map_err(Failure::Corrupt)?;
    }
    match checker.offset() {
        got if got == len => Ok(()),
        got if got < len => Err(Failure::Short { got, want: len }),
        got => Err(Failure::Corrupt(format!("{got} bytes came, {len} were sent"))),
    }
}

async fn upload(addr: SocketAddr, stream: u64, len: u64) -> Outcome {
    let mut socket = ask(addr, Op::Sink, stream, len).await?;
    let hash = send(&mut socket, stream, len).await?;
    socket.shutdown().await?;
    take_receipt(&mut socket, len, hash).await
}

/// Sends `len` bytes of the upward pattern; returns their SHA-256.
///
/// # Errors
/// When the connection failed.
pub async fn send(socket: &mut TcpStream, stream: u64, len: u64) -> Outcome<[u8; 32]> {
    let pattern = Pattern::new(SEED, stream, Direction::Up);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut offset = 0;
    while offset < len {
        let n = usize::try_from(len - offset).unwrap_or(usize::MAX).min(buffer.len());
        pattern.fill(offset, &mut buffer[..n]);
        hash.update(&buffer[..n]);
        socket.write_all(&buffer[..n]).await?;
        offset += n as u64;
    }
    Ok(hash.finalize().into())
}

/// Reads the sink's receipt and the end after it.
///
/// # Errors
/// When the receipt does not match or the connection failed.
pub async fn take_receipt(socket: &mut TcpStream, len: u64, hash: [u8; 32]) -> Outcome {
    let mut receipt = Vec::new();
    socket.take(RECEIPT_BYTES as u64 + 1).read_to_end(&mut receipt).await?;
    if receipt.len() != RECEIPT_BYTES {
        return Err(Failure::Short { got: receipt.len() as u64, want: RECEIPT_BYTES as u64 });
    }
    let count = u64::from_le_bytes(receipt[..8].try_into().unwrap());
    if count != len {
        return Err(Failure::Corrupt(format!("the target received {count} of {len} bytes")));
    }
    if receipt[8..] != hash {
        return Err(Failure::Corrupt("the target's hash differs".to_owned()));
    }
    Ok(())
}

async fn echo(addr: SocketAddr, stream: u64, len: u64) -> Outcome {
    let socket = ask(addr, Op::Echo, stream, len).await?;
    let (mut rx, mut tx) = socket.into_split();
    let pattern = Pattern::new(SEED, stream, Direction::Up);
    let sending = async move {
        let mut buffer = vec![0; 16 * 1024];
        let mut offset = 0;
        while offset < len {
            let n = usize::try_from(len - offset).unwrap_or(usize::MAX).min(buffer.len());
            pattern.fill(offset, &mut buffer[..n]);
            tx.write_all(&buffer[..n]).await?;
            offset += n as u64;
        }
        tx.shutdown().await?;
        // Kept: dropping an owned half would not close, but say it plainly.
        Outcome::Ok(tx)
    };
    let receiving = async move {
        let mut checker = Checker::new(pattern);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = rx.read(&mut buffer).await?;
            if n == 0 {
                return Ok(checker.offset());
            }
            checker.take(&buffer[..n]).map_err(Failure::Corrupt)?;
        }
    };
    let (_tx, got) = tokio::try_join!(sending, receiving)?;
    if got == len { Ok(()) } else { Err(Failure::Short { got, want: len }) }
}

/// A stream that stays open and answers on demand.
pub struct Pinger {
    socket: TcpStream,
    stream: u64,
    offset: u64,
}

impl Pinger {
    /// Opens an echo stream and makes one round trip.
    ///
    /// # Errors
    /// When it does not work.
    pub async fn open(addr: SocketAddr, stream: u64) -> Outcome<Self> {
        Self::on(ask(addr, Op::Echo, stream, 0).await?, stream).await
    }

    /// The same on a socket that has [asked](ask) for an echo already.
    ///
    /// # Errors
    /// When it does not work.
    pub async fn on(socket: TcpStream, stream: u64) -> Outcome<Self> {
        let mut pinger = Self { socket, stream, offset: 0 };
        pinger.ping(64).await?;
        Ok(pinger)
    }

    /// Sends the next `n` bytes and waits for nothing.
    ///
    /// # Errors
    /// When the socket does not take them.
    pub async fn push(&mut self, n: usize) -> Outcome {
        let bytes = Pattern::new(SEED, self.stream, Direction::Up).bytes(self.offset, n);
        self.offset += n as u64;
        Ok(self.socket.write_all(&bytes).await?)
    }

    /// Its own address, as the hub sees it.
    ///
    /// # Panics
    /// When the socket is gone.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// Sends `n` bytes and reads them back.
    ///
    /// # Errors
    /// When they do not come back as they were.
    pub async fn ping(&mut self, n: usize) -> Outcome {
        let bytes = Pattern::new(SEED, self.stream, Direction::Up).bytes(self.offset, n);
        self.socket.write_all(&bytes).await?;
        let mut back = vec![0; n];
        let mut got = 0;
        while got < n {
            let more = self.socket.read(&mut back[got..]).await?;
            if more == 0 {
                return Err(Failure::Short { got: got as u64, want: n as u64 });
            }
            got += more;
        }
        if back != bytes {
            return Err(Failure::Corrupt(format!("echo differs after offset {}", self.offset)));
        }
        self.offset += n as u64;
        Ok(())
    }

    /// Half-closes and expects the target's end.
    ///
    /// # Errors
    /// When something else comes.
    pub async fn close(mut self) -> Outcome {
        self.socket.shutdown().await?;
        match self.socket.read(&mut [0; 1]).await? {
            0 => Ok(()),
            _ => Err(Failure::Corrupt("bytes nobody sent".to_owned())),
        }
    }

    /// The socket itself.
    #[must_use]
    pub fn into_socket(self) -> TcpStream {
        self.socket
    }
}

/// How long a [`Flow`] rests after each piece it sent: a load, and no benchmark.
const REST: Duration = Duration::from_millis(2);

/// A long transfer both ways at once: sends until it is told to stop, and checks
/// every byte that comes back.
pub struct Flow {
    stop: Arc<AtomicBool>,
    moved: Arc<AtomicU64>,
    task: JoinHandle<Outcome<u64>>,
}

impl Flow {
    /// Starts it through the listener at `addr`.
    #[must_use]
    pub fn start(addr: SocketAddr, stream: u64) -> Self {
        let (stop, moved) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let task = tokio::spawn(flow(addr, stream, Arc::clone(&stop), Arc::clone(&moved)));
        Self { stop, moved, task }
    }

    /// Waits until `bytes` more have come back, or it has failed; that, [`Flow::end`] tells.
    ///
    /// # Panics
    /// When they have not after the patience of the harness.
    pub async fn more(&self, bytes: u64) {
        let from = self.moved.load(Ordering::SeqCst);
        eventually("a long transfer goes on", PATIENCE, || async {
            (self.moved.load(Ordering::SeqCst) >= from + bytes || self.task.is_finished()).then_some(())
        })
        .await;
    }

    /// Half-closes, awaits the other end, and tells how many bytes came back.
    ///
    /// # Errors
    /// When one was wrong or missing, or the connection failed, at any time.
    ///
    /// # Panics
    /// When the end does not come.
    pub async fn end(self) -> Outcome<u64> {
        self.stop.store(true, Ordering::SeqCst);
        bounded("the end of a long transfer", PATIENCE, self.task).await.unwrap()
    }
}

async fn flow(addr: SocketAddr, stream: u64, stop: Arc<AtomicBool>, moved: Arc<AtomicU64>) -> Outcome<u64> {
    let (mut rx, mut tx) = ask(addr, Op::Echo, stream, 0).await?.into_split();
    let pattern = Pattern::new(SEED, stream, Direction::Up);
    let sending = async {
        let mut buffer = vec![0; 8 * 1024];
        let mut offset = 0;
        while !stop.load(Ordering::SeqCst) {
            pattern.fill(offset, &mut buffer);
            tx.write_all(&buffer).await?;
            offset += buffer.len() as u64;
            tokio::time::sleep(REST).await;
        }
        tx.shutdown().await?;
        Outcome::Ok(offset)
    };
    let receiving = async {
        let mut checker = Checker::new(pattern);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = rx.read(&mut buffer).await?;
            if n == 0 {
                return Outcome::Ok(checker.offset());
            }
            checker.take(&buffer[..n]).map_err(Failure::Corrupt)?;
            moved.store(checker.offset(), Ordering::SeqCst);
        }
    };
    let (want, got) = tokio::try_join!(sending, receiving)?;
    if got == want { Ok(got) } else { Err(Failure::Short { got, want }) }
}

/// Connects, and waits for the end of a client that cannot be carried.
///
/// # Panics
/// When that is not a reset, or takes too long.
pub async fn refused(addr: SocketAddr) {
    let ended = async {
        // It may be over before the client has looked.
        read_to_end(&mut TcpStream::connect(addr).await?).await
    };
    assert_eq!(bounded("the refusal", PATIENCE, ended).await, Err(Failure::Reset));
}

/// Reads until the connection ends; `Ok` is a clean end.
///
/// # Errors
/// How it ended otherwise.
pub async fn read_to_end(socket: &mut TcpStream) -> Outcome<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut got = 0;
    loop {
        let n = socket.read(&mut buffer).await?;
        if n == 0 {
            return Ok(got);
        }
        got += n as u64;
    }
}

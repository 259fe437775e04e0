//! A TCP proxy that misbehaves on command: cut every connection now, cut after
//! so many more bytes (so also in the middle of a frame), hold everything, hold
//! answers only, refuse new connections. It stands where the network between two nodes is.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::wait::eventually;

/// How a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Orderly end of both directions.
    Fin,
    /// TCP reset on both sides; what is under way is lost.
    Rst,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    /// Raised by each cut: connections of an earlier number end.
    cuts: u64,
    how: Cut,
    stalled: bool,
    holding: bool,
    refusing: bool,
}

/// What [`Proxy::hold_answers`] needs to know of a connection.
#[derive(Default)]
struct Answer {
    waits: AtomicBool,
    /// The client's side has ended.
    over: AtomicBool,
}

struct Shared {
    rule: watch::Sender<Rule>,
    /// Bytes until the next cut; negative: none is planned.
    fuse: AtomicI64,
    fuse_how: Mutex<Cut>,
    bytes: AtomicU64,
    accepts: Mutex<Vec<SystemTime>>,
    open: AtomicU64,
    answers: Mutex<Vec<Arc<Answer>>>,
}

/// A running proxy; ends with all its connections when dropped.
pub struct Proxy {
    /// Where it listens.
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy to `upstream`, which need not listen yet.
    ///
    /// # Panics
    /// When no port is left.
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (rule, _) =
            watch::channel(Rule { cuts: 0, how: Cut::Fin, stalled: false, holding: false, refusing: false });
        let shared = Arc::new(Shared {
            rule,
            fuse: AtomicI64::new(-1),
            fuse_how: Mutex::new(Cut::Rst),
            bytes: AtomicU64::new(0),
            accepts: Mutex::default(),
            open: AtomicU64::new(0),
            answers: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, upstream, Arc::clone(&shared)));
        Self { addr, shared, accepting }
    }

    /// Ends every connection now.
    pub fn cut(&self, how: Cut) {
        self.shared.cut(how);
    }

    /// Ends every connection once exactly `bytes` more have passed, both
    /// directions together.
    pub fn cut_after(&self, bytes: u32, how: Cut) {
        *self.shared.fuse_how.lock().unwrap() = how;
        self.shared.fuse.store(i64::from(bytes), Ordering::SeqCst);
    }

    /// Passes nothing on until [`Proxy::heal`]; connections stay.
    pub fn stall(&self) {
        self.shared.rule.send_modify(|r| r.stalled = true);
    }

    /// Resets new connections until [`Proxy::heal`].
    pub fn refuse(&self) {
        self.shared.rule.send_modify(|r| r.refusing = true);
    }

    /// From a stall or from nothing: passes on what clients say, and of the
    /// answers the HTTP head only, until [`Proxy::heal`]. A dial then gets as far
    /// as its handshake's first message.
    pub fn hold_answers(&self) {
        self.shared.rule.send_modify(|r| {
            r.stalled = false;
            r.holding = true;
        });
    }

    /// Clients that are there and whose answer waits.
    #[must_use]
    pub fn held(&self) -> usize {
        let answers = self.shared.answers.lock().unwrap();
        answers.iter().filter(|a| a.waits.load(Ordering::SeqCst) && !a.over.load(Ordering::SeqCst)).count()
    }

    /// Ends [`Proxy::stall`], [`Proxy::hold_answers`] and [`Proxy::refuse`].
    pub fn heal(&self) {
        self.shared.rule.send_modify(|r| {
            r.stalled = false;
            r.holding = false;
            r.refusing = false;
        });
    }

    /// Cuts so far.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.shared.rule.borrow().cuts
    }

    /// Bytes passed so far, both directions.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepts.lock().unwrap().len() as u64
    }

    /// When each of them came.
    #[must_use]
    pub fn accepts(&self) -> Vec<SystemTime> {
        self.shared.accepts.lock().unwrap().clone()
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Waits for the `n`-th cut.
    ///
    /// # Panics
    /// When it has not happened after `within`.
    pub async fn wait_cuts(&self, n: u64, within: Duration) {
        eventually(&format!("cut number {n} of the proxy"), within, || async { (self.cuts() >= n).then_some(()) })
            .await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut(Cut::Rst);
    }
}

impl Shared {
    fn cut(&self, how: Cut) {
        self.rule.send_modify(|r| {
            r.cuts += 1;
            r.how = how;
        });
    }

    /// How many of `n` bytes may pass before the planned cut, and whether that
    /// cut is due after them.
    fn burn(&self, n: usize) -> (usize, bool) {
        let want = i64::try_from(n).unwrap();
        let before = self.fuse.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
            ..0 => None,
            left if left <= want => Some(-1),
            left => Some(left - want),
        });
        match before {
            Ok(left) if left <= want => (usize::try_from(left).unwrap(), true),
            _ => (n, false),
        }
    }
}

async fn accept(listener: TcpListener, upstream: SocketAddr, shared: Arc<Shared>) {
    while let Ok((near, _)) = listener.accept().await {
        shared.accepts.lock().unwrap().push(SystemTime::now());
        let rule = *shared.rule.borrow();
        if rule.refusing {
            reset(&near);
            continue;
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            shared.open.fetch_add(1, Ordering::SeqCst);
            carry(near, upstream, &shared, rule.cuts).await;
            shared.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn carry(mut near: TcpStream, upstream: SocketAddr, shared: &Shared, born: u64) {
    let Ok(mut far) = TcpStream::connect(upstream).await else {
        reset(&near);
        return;
    };
    // Best effort: only the shape of the traffic depends on it.
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    let mut rule = shared.rule.subscribe();
    let answer = Arc::new(Answer::default());
    shared.answers.lock().unwrap().push(Arc::clone(&answer));
    let up = async |from, to| {
        let done = copy(from, to, shared, None).await;
        answer.over.store(true, Ordering::SeqCst);
        done
    };
    let how = {
        let (near_rx, near_tx) = near.split();
        let (far_rx, far_tx) = far.split();
        tokio::select! {
            how = async {
                match rule.wait_for(|r| r.cuts > born).await {
                    Ok(rule) => rule.how,
                    Err(_) => Cut::Rst,
                }
            } => how,
            done = async { tokio::join!(up(near_rx, far_tx), copy(far_rx, near_tx, shared, Some(&answer))) } => {
                if done.0.is_ok() && done.1.is_ok() { Cut::Fin } else { Cut::Rst }
            }
        }
    };
    shared.answers.lock().unwrap().retain(|a| !Arc::ptr_eq(a, &answer));
    if how == Cut::Rst {
        reset(&near);
        reset(&far);
    }
}

/// Copies one direction; `answer` says that it is the one to the client.
async fn copy(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    shared: &Shared,
    answer: Option<&Answer>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 32 * 1024];
    // A server says nothing after its head before the client has spoken again, so
    // that the head is never read together with more.
    let mut head = answer.is_some();
    let mut rule = shared.rule.subscribe();
    loop {
        // The sender lives in `shared`, so this cannot fail.
        let _ = rule.wait_for(|r| !r.stalled).await;
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return to.shutdown().await;
        }
        let _ = rule.wait_for(|r| !r.stalled).await;
        if let (Some(answer), false) = (answer, head) {
            answer.waits.store(true, Ordering::SeqCst);
            let _ = rule.wait_for(|r| !r.holding).await;
            answer.waits.store(false, Ordering::SeqCst);
        }
        head &= !buffer[..n].windows(4).any(|w| w == b"\r\n\r\n");
        let (pass, due) = shared.burn(n);
        let written = to.write_all(&buffer[..pass]).await;
        shared.bytes.fetch_add(pass as u64, Ordering::SeqCst);
        if due {
            let how = *shared.fuse_how.lock().unwrap();
            shared.cut(how);
            std::future::pending::<()>().await;
        }
        written?;
    }
}

/// Makes the coming close of `stream` a TCP reset.
pub fn reset(stream: &TcpStream) {
    // Fails only on a socket that is already dead.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

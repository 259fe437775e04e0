//! What a node was asked and what it answered, call by call, to be played again
//! on a fresh machine (D3): the driver adds nothing to the core that would make
//! its answers depend on more than seed, configuration, calls and times. Without
//! that no failure of production could be played again in the simulator.
//!
//! Tests only: it keeps payload and grows as long as the node lives.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use nowconnect_core::agent::Agent;
use nowconnect_core::config::{AgentConfig, HubConfig};
use nowconnect_core::hub::Hub;
use nowconnect_core::id::{ConnKey, ListenerIx, SockKey, StreamKey};
use nowconnect_core::mux::{Input, NodeOut};
use nowconnect_core::rng::Seed;
use nowconnect_core::session::{TxBatch, TxMessage, TxState};
use nowconnect_core::time::Instant;

use crate::node::Machine;

/// Everything the driver calls a machine with.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Input(Input),
    Timeout,
    Transmit(ConnKey, usize),
    Read(StreamKey),
    Open(ListenerIx, SockKey),
    Reload(Config, Duration),
}

#[derive(Clone, Debug)]
pub(crate) enum Config {
    Hub(Box<HubConfig>),
    Agent(Box<AgentConfig>),
}

#[derive(Debug)]
struct Entry {
    at: Instant,
    call: Call,
    answer: String,
}

/// How a machine was made, and all since.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    made: Option<(Config, Seed, Instant)>,
    /// What it wanted when it was made.
    first: String,
    /// The call that comes next, and what it said besides its output.
    next: Option<Call>,
    said: String,
    entries: Vec<Entry>,
}

/// What a call put into an empty batch.
pub(crate) fn sent(state: TxState, batch: &TxBatch) -> String {
    let messages: Vec<_> = batch.messages.iter().map(TxMessage::to_bytes).collect();
    format!("{state:?} {messages:?}")
}

impl Journal {
    pub(crate) fn made(&mut self, config: Config, seed: Seed, at: Instant) {
        self.made = Some((config, seed, at));
    }

    pub(crate) fn wants(&mut self, out: &NodeOut) {
        self.first = format!("{out:?}");
    }

    pub(crate) fn calls(&mut self, call: Call) {
        self.next = Some(call);
    }

    pub(crate) fn says(&mut self, answer: impl std::fmt::Debug) {
        let _ = write!(self.said, "{answer:?}");
    }

    pub(crate) fn done(&mut self, at: Instant, out: &NodeOut) {
        let said = std::mem::take(&mut self.said);
        if let Some(call) = self.next.take() {
            self.entries.push(Entry { at, call, answer: format!("{said}{out:?}") });
        }
    }

    /// Plays it on a fresh machine; how many calls there were.
    ///
    /// # Panics
    /// At the first answer that is another one.
    pub(crate) fn replay<M: Replayed>(&self) -> usize {
        let (config, seed, at) = self.made.as_ref().expect("it was made");
        let mut out = NodeOut::default();
        let mut machine = M::again(config, seed, *at, &mut out);
        assert_eq!(format!("{out:?}"), self.first, "when it was made");
        for (n, Entry { at, call, answer }) in self.entries.iter().enumerate() {
            let mut out = NodeOut::default();
            let said = match call.clone() {
                Call::Input(input) => {
                    machine.handle(*at, input, &mut out);
                    String::new()
                }
                Call::Timeout => {
                    machine.handle_timeout(*at, &mut out);
                    String::new()
                }
                Call::Transmit(conn, budget) => {
                    let mut batch = TxBatch::default();
                    let state = machine.poll_transmit(*at, conn, budget, &mut batch, &mut out);
                    format!("{:?}", sent(state, &batch))
                }
                Call::Read(stream) => format!("{:?}", machine.read_budget(stream)),
                Call::Open(_, _) | Call::Reload(_, _) => {
                    machine.own(*at, call, &mut out);
                    String::new()
                }
            };
            // `poll_timeout` has to be asked as often as it was.
            machine.poll_timeout();
            assert_eq!(format!("{said}{out:?}"), *answer, "call {n} at {at:?}: {call:?}");
        }
        self.entries.len()
    }
}

/// A machine that is made again.
pub(crate) trait Replayed: Machine + Sized {
    fn again(config: &Config, seed: &Seed, at: Instant, out: &mut NodeOut) -> Self;
    /// Calls that only one kind of machine has.
    fn own(&mut self, at: Instant, call: &Call, out: &mut NodeOut);
}

impl Replayed for Hub {
    fn again(config: &Config, seed: &Seed, at: Instant, out: &mut NodeOut) -> Self {
        let Config::Hub(config) = config else { panic!("a hub's journal") };
        Self::new(Arc::new((**config).clone()), *seed, at, out)
    }

    fn own(&mut self, at: Instant, call: &Call, out: &mut NodeOut) {
        match call {
            Call::Open(listener, sock) => {
                // Its key is part of every call for it that follows.
                let _ = self.open(at, *listener, *sock, out);
            }
            Call::Reload(Config::Hub(config), drain) => {
                let _ = self.reload(at, config, *drain, out);
            }
            Call::Input(_) | Call::Timeout | Call::Transmit(..) | Call::Read(_) | Call::Reload(Config::Agent(_), _) => {
                panic!("not a hub's own: {call:?}")
            }
        }
    }
}

impl Replayed for Agent {
    fn again(config: &Config, seed: &Seed, at: Instant, out: &mut NodeOut) -> Self {
        let Config::Agent(config) = config else { panic!("an agent's journal") };
        Self::new(Arc::new((**config).clone()), *seed, at, out)
    }

    fn own(&mut self, at: Instant, call: &Call, out: &mut NodeOut) {
        match call {
            Call::Reload(Config::Agent(config), drain) => {
                let _ = self.reload(at, config, *drain, out);
            }
            Call::Input(_)
            | Call::Timeout
            | Call::Transmit(..)
            | Call::Read(_)
            | Call::Open(..)
            | Call::Reload(Config::Hub(_), _) => {
                panic!("not an agent's own: {call:?}")
            }
        }
    }
}

mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::demo::{self, Demo, DemoOptions};

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                tokio::task::spawn_local(async move {
                    let (mut read, mut write) = tcp.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
            }
        });
        addr
    }

    /// Sends and takes back as much as `bytes`, in both directions at once.
    async fn client(addr: SocketAddr, bytes: usize) {
        let (mut read, mut write) = TcpStream::connect(addr).await.unwrap().into_split();
        let sent: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let writes = async move {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let ((), n) = tokio::join!(writes, read.read_to_end(&mut received));
        assert_eq!((n.unwrap(), received == expected), (bytes, true));
    }

    fn replayed(demo: &Demo) -> [usize; 3] {
        let hub = |ix: usize| demo.hubs[ix].node.journal().replay::<Hub>();
        [hub(0), hub(1), demo.agent.node.journal().replay::<Agent>()]
    }

    /// D3: two hubs, their link, an agent and clients on real sockets and real
    /// timers; each machine, made again and given the same calls, says the same.
    #[test]
    fn what_a_node_did_is_done_again_by_its_journal() {
        crate::signals::block_on(async {
            let target = Some(echo().await.to_string());
            let demo = demo::start(&DemoOptions { target, port_base: None }).await.unwrap();
            for round in 0..3_usize {
                let clients = (0..8).map(|n| client(demo.clients[n % 2], 1 + n * round * 40_000));
                join_all(clients).await;
            }
            // One that is gone before its answer.
            drop(TcpStream::connect(demo.clients[1]).await.unwrap());
            client(demo.clients[1], 1000).await;
            let running = replayed(&demo);
            assert!(running.iter().all(|calls| *calls > 100), "{running:?}");
            demo.agent.stop().await;
            for hub in &demo.hubs {
                hub.stop().await;
            }
            let whole = replayed(&demo);
            assert!(whole.iter().zip(running).all(|(whole, before)| *whole > before), "{whole:?}, {running:?}");
            Ok(())
        })
        .unwrap();
    }

    async fn join_all(clients: impl Iterator<Item = impl Future<Output = ()>>) {
        let mut all: Vec<_> = clients.map(Box::pin).collect();
        std::future::poll_fn(|cx| {
            all.retain_mut(|c| c.as_mut().poll(cx).is_pending());
            if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }
}

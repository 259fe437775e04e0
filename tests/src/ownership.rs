//! What tests of ownership have in common: epochs as the logs tell them, and
//! clients that count what became of them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::actors::{Failure, Outcome, Pinger, Transfer, read_to_end};
use crate::cluster::Cluster;
use crate::process::Log;
use crate::wait::{PATIENCE, bounded, eventually};

/// The epochs a node says an agent was attached under, in the order it says so.
/// Of a hub with several agents: [`epochs_of`].
///
/// # Panics
/// When a line holds no epoch.
#[must_use]
pub fn epochs(log: &Log) -> Vec<u64> {
    epochs_in(&log.tail(usize::MAX), "epoch=")
}

/// The same of one agent, at a hub.
///
/// # Panics
/// When a line holds no epoch.
#[must_use]
pub fn epochs_of(log: &Log, agent: &str) -> Vec<u64> {
    epochs_in(&log.tail(usize::MAX), &format!("agent={agent} "))
}

fn epochs_in(lines: &str, needle: &str) -> Vec<u64> {
    let attached = lines.lines().filter(|l| l.contains("attached") && l.contains("epoch=") && l.contains(needle));
    attached
        .map(|l| {
            let (_, rest) = l.split_once("epoch=").unwrap();
            let digits: String = rest.chars().filter(|c| !matches!(c, '"')).take_while(char::is_ascii_digit).collect();
            digits.parse().unwrap_or_else(|e| panic!("no epoch in {l:?}: {e}"))
        })
        .collect()
}

/// # Panics
/// When an epoch is not above the one before, or there is none.
pub fn assert_rising(epochs: &[u64]) {
    assert!(!epochs.is_empty() && epochs.windows(2).all(|w| w[0] < w[1]), "epochs of one agent must rise: {epochs:?}");
}

/// Streams that stay open over whatever happens.
pub struct Standing(Vec<Pinger>);

impl Standing {
    /// Opens one at each address.
    ///
    /// # Panics
    /// When one does not open.
    pub async fn open(addrs: &[SocketAddr]) -> Self {
        let mut all = Vec::new();
        for (n, addr) in addrs.iter().enumerate() {
            all.push(Pinger::open(*addr, 7000 + n as u64).await.unwrap());
        }
        Self(all)
    }

    /// An echo on each.
    ///
    /// # Panics
    /// When one failed.
    pub async fn ping(&mut self) {
        for pinger in &mut self.0 {
            bounded("an echo on a stream that stands", PATIENCE, pinger.ping(512)).await.unwrap();
        }
    }

    /// Ends each cleanly.
    ///
    /// # Panics
    /// When one failed.
    pub async fn close(self) {
        for pinger in self.0 {
            bounded("the clean end of a stream that stands", PATIENCE, pinger.close()).await.unwrap();
        }
    }
}

/// The registry is back after what `began` then: hubs are ready, streams that
/// stood still stand, and a new agent's claim is above everything before.
///
/// # Panics
/// When it is not so.
#[expect(clippy::print_stdout, reason = "times are for the reader of a test")]
pub async fn recovered(mut cluster: Cluster, mut standing: Standing, what: &str, began: Instant) {
    for ix in [0, 1] {
        cluster.wait_status(ix, "ready").await;
    }
    cluster.wait_echo(1, "t").await;
    println!("{what}: ready and open across hubs {:?} after", began.elapsed());
    standing.ping().await;
    standing.close().await;
    cluster.kill_agent();
    cluster.start_agent();
    cluster.wait_metric(0, "nowconnect_tunnels", &[], 1.0).await;
    let log = cluster.hubs[0].running().log.clone();
    eventually("the new agent is attached", PATIENCE, || async { (epochs(&log).len() >= 2).then_some(()) }).await;
    assert_rising(&epochs(&log));
    cluster.wait_echo(1, "t").await;
    cluster.assert_alive();
}

/// Connects a client and waits for its refusal; how long that took.
///
/// # Panics
/// When it was not refused.
pub async fn refusal(addr: SocketAddr) -> Duration {
    let started = Instant::now();
    // The reset may come before the connect has returned.
    let outcome = bounded("the refusal", PATIENCE, async {
        let mut socket = TcpStream::connect(addr).await?;
        read_to_end(&mut socket).await
    })
    .await;
    assert_eq!(outcome, Err(Failure::Reset));
    started.elapsed()
}

/// A short echo.
///
/// # Errors
/// When it failed.
pub async fn echo(addr: SocketAddr, stream: u64) -> Outcome {
    bounded("an echo", PATIENCE, Transfer::Echo.run(addr, stream, 2000)).await
}

impl Cluster {
    /// Waits until hub `ix` says `status` in its readiness.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn wait_status(&self, ix: usize, status: &str) {
        eventually(&format!("hub {ix} is {status}"), PATIENCE, || async {
            let answer = self.get(ix, "/readyz").await.ok()?;
            let body: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
            (body["status"] == status).then_some(())
        })
        .await;
    }

    /// Waits until a new stream works at hub `ix`.
    ///
    /// # Panics
    /// When none does in time.
    pub async fn wait_echo(&self, ix: usize, connector: &str) {
        let addr = self.listener(ix, connector);
        eventually(&format!("an echo through hub {ix}"), PATIENCE, || async { echo(addr, 1).await.ok() }).await;
    }
}

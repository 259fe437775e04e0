//! How long new streams take to work again when the hub an agent is attached to
//! is killed: measured, not asserted on.

use std::time::{Duration, Instant};

use crate::actors::Transfer;
use crate::cluster::{Cluster, Plan};
use crate::target::Target;
use crate::wait::{PATIENCE, eventually};

/// What some kills showed.
#[derive(Clone, Debug)]
pub struct Times {
    /// Attachments the agent keeps.
    pub parallel: usize,
    /// From each kill to the first new stream that worked at the survivor,
    /// shortest first.
    pub all: Vec<Duration>,
}

impl Times {
    /// The one in the middle.
    #[must_use]
    pub fn median(&self) -> Duration {
        self.all.get(self.all.len() / 2).copied().unwrap_or_default()
    }

    /// The longest.
    #[must_use]
    pub fn maximum(&self) -> Duration {
        self.all.last().copied().unwrap_or_default()
    }
}

/// Kills the owner `kills` times, with default timers.
///
/// # Panics
/// When a system does not start or does not recover.
pub async fn measure(kills: usize, parallel: usize) -> Times {
    let target = Target::start().await;
    let plan = Plan { attach: vec![0, 1], parallel, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let mut all = Vec::new();
    for n in 0..kills {
        let owner = owner(&cluster).await;
        let survivor = 1 - owner;
        let addr = cluster.listener(survivor, "t");
        let killed = Instant::now();
        cluster.kill_hub(owner);
        // A client that is refused comes back at once, as clients of a balancer do.
        loop {
            let attempt = tokio::time::timeout(Duration::from_secs(1), async {
                Transfer::Echo.run(addr, n as u64, 100).await.is_ok()
            });
            if attempt.await.unwrap_or(false) {
                break;
            }
            assert!(killed.elapsed() < PATIENCE, "no stream worked after kill {n}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        all.push(killed.elapsed());
        cluster.start_hub(owner);
        cluster.wait_ready().await;
        if parallel > 1 {
            for ix in [0, 1] {
                cluster.wait_metric(ix, "nowconnect_tunnels", &[], 1.0).await;
            }
        }
    }
    all.sort_unstable();
    Times { parallel, all }
}

/// A hub that holds the agent; the first one if both do.
async fn owner(cluster: &Cluster) -> usize {
    eventually("a hub holds the agent", PATIENCE, || async {
        for ix in [0, 1] {
            if cluster.metrics(ix).await.sum("nowconnect_tunnels", &[]) == Some(1.0) {
                return Some(ix);
            }
        }
        None
    })
    .await
}

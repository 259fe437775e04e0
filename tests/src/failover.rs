//! How long new streams take to work again when the hub an agent is attached to
//! is killed under load: times are measured and not asserted on; that nothing
//! ends wrongly is checked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::actors::{Failure, Outcome, Pinger, Transfer, read_to_end};
use crate::cluster::{Cluster, Plan};
use crate::target::Target;
use crate::wait::{PATIENCE, bounded, eventually};

/// A new client comes to the survivor this often.
const EVERY: Duration = Duration::from_millis(20);
/// How long new clients are watched after the first one was served.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// Clients that open, echo and close all the time, at each hub.
const LOAD: u64 = 8;
/// Streams that stand, at each hub.
const STANDING: u64 = 4;

/// What some kills showed.
#[derive(Clone, Debug)]
pub struct Times {
    /// Attachments the agent keeps.
    pub parallel: usize,
    /// From each kill to the first answer on a stream that a client opened at
    /// the survivor after it; shortest first.
    pub first: Vec<Duration>,
    /// From each kill to the moment after which every new client of the
    /// survivor was served within a second; shortest first.
    pub all: Vec<Duration>,
    /// New clients of the survivor that were reset before they were served.
    pub refused: u64,
    /// Streams that passed the dead hub and ended, each as an abort.
    pub aborted: u64,
    /// Streams beside it, all of which went on.
    pub untouched: u64,
}

/// The one in the middle.
#[must_use]
pub fn median(times: &[Duration]) -> Duration {
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// One client that came after the kill: when, since the kill, and until when.
struct Attempt {
    came: Duration,
    ended: Duration,
    outcome: Outcome,
}

/// Kills the owner `kills` times. All timers are defaults, but for the links of
/// a hub that comes back.
///
/// # Panics
/// When a system does not start or does not recover, or a stream ends as if
/// nothing had happened.
pub async fn measure(kills: usize, parallel: usize) -> Times {
    let target = Target::start().await;
    let plan = Plan { attach: vec![0, 1], parallel, default_reconnect: true, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).connector("u", target.addr).start().await;
    // At each hub an agent of its own, whose streams pass no other hub.
    let own = |ix: usize| cluster.further_agent(&format!("own-{ix}"), &[ix], &[("u", target.addr.to_string())]);
    let _own = [own(0), own(1)];
    let mut times = Times { parallel, first: vec![], all: vec![], refused: 0, aborted: 0, untouched: 0 };
    for _ in 0..kills {
        attached(&cluster, parallel).await;
        let owner = owner(&cluster).await;
        one_kill(&mut cluster, owner, &mut times).await;
        cluster.wait_ready().await;
    }
    times.first.sort_unstable();
    times.all.sort_unstable();
    times
}

async fn one_kill(cluster: &mut Cluster, owner: usize, times: &mut Times) {
    let survivor = 1 - owner;
    let (doomed, addr) = (cluster.listener(owner, "t"), cluster.listener(survivor, "t"));
    let local = times.parallel > 1;
    let mut standing = Vec::new();
    for n in 0..STANDING {
        standing.push((true, Pinger::open(doomed, n).await.unwrap()));
        // With a tunnel of its own the survivor's streams do not pass the other.
        standing.push((!local, Pinger::open(addr, 100 + n).await.unwrap()));
    }
    if !local {
        let crossed = crossing(cluster, survivor).await;
        for n in 0..STANDING {
            standing.push((false, Pinger::open(cluster.listener(survivor, "u"), 200 + n).await.unwrap()));
        }
        assert_eq!(crossing(cluster, survivor).await, crossed, "the survivor's own agent serves its clients");
    }
    let load = Load::start(&[doomed, addr]);
    load.runs().await;

    let killed = Instant::now();
    cluster.kill_hub(owner);
    let attempts = attempts(addr, killed).await;

    let first = attempts.iter().filter(|a| a.outcome.is_ok()).map(|a| a.ended).min().unwrap();
    let badly = |a: &&Attempt| a.outcome.is_err() || a.ended - a.came > Duration::from_secs(1);
    let all = attempts.iter().filter(badly).map(|a| a.came + EVERY).max().unwrap_or_default().max(first);
    times.first.push(first);
    times.all.push(all);
    for failed in attempts.iter().filter_map(|a| a.outcome.as_ref().err()) {
        assert_eq!(*failed, Failure::Reset, "a client that cannot be served is reset");
        times.refused += 1;
    }
    // With its hub back a suspended session is known to be lost; else that would
    // take `resume_window`.
    cluster.start_hub(owner);
    for (passes, mut pinger) in standing {
        if passes {
            let mut socket = pinger.into_socket();
            let end = bounded("the end of a stream that passed the dead hub", PATIENCE, read_to_end(&mut socket)).await;
            assert_eq!(end, Err(Failure::Reset), "an abort, never a clean end");
            times.aborted += 1;
        } else {
            bounded("an echo beside the dead hub", PATIENCE, pinger.ping(1000)).await.unwrap();
            pinger.close().await.unwrap();
            times.untouched += 1;
        }
    }
    load.stop().await;
}

/// New clients of the survivor, until some were served and a while longer.
async fn attempts(addr: SocketAddr, killed: Instant) -> Vec<Attempt> {
    let served = Arc::new(AtomicBool::new(false));
    let (mut all, mut done) = (JoinSet::new(), Vec::new());
    let mut ticks = tokio::time::interval(EVERY);
    let mut until = None;
    for n in 0.. {
        ticks.tick().await;
        if until.is_none() && served.load(Ordering::Relaxed) {
            until = Some(Instant::now() + AFTERWARDS);
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        assert!(killed.elapsed() < PATIENCE, "no stream worked after the kill");
        let served = Arc::clone(&served);
        all.spawn(async move {
            let came = killed.elapsed();
            let outcome = Transfer::Echo.run(addr, 10_000 + n, 100).await;
            served.fetch_or(outcome.is_ok(), Ordering::Relaxed);
            Attempt { came, ended: killed.elapsed(), outcome }
        });
    }
    while let Some(attempt) = bounded("the last clients", PATIENCE, all.join_next()).await {
        done.push(attempt.unwrap());
    }
    done
}

/// Clients in the background, at both hubs. What passes the dead one fails, and
/// goes on when it can.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Load {
    fn start(addrs: &[SocketAddr]) -> Self {
        let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut tasks = JoinSet::new();
        for (n, &addr) in (0..LOAD).flat_map(|n| addrs.iter().map(move |addr| (n, addr))) {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match Transfer::Echo.run(addr, 1_000 + n, 20_000).await {
                        Ok(()) => drop(served.fetch_add(1, Ordering::Relaxed)),
                        Err(Failure::Corrupt(what)) => panic!("{what}"),
                        Err(Failure::Short { got, want }) => panic!("a clean end after {got} of {want} bytes"),
                        // Nobody listens at a dead hub: a client comes back a little later.
                        Err(Failure::Reset | Failure::Io(_)) => tokio::time::sleep(EVERY).await,
                    }
                }
            });
        }
        Self { stop, served, tasks }
    }

    async fn runs(&self) {
        eventually("the load runs", PATIENCE, || async {
            (self.served.load(Ordering::Relaxed) >= 10 * LOAD).then_some(())
        })
        .await;
    }

    async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(task) = bounded("the end of the load", PATIENCE, self.tasks.join_next()).await {
            task.unwrap();
        }
    }
}

/// Streams of `u` at a hub that went over the mesh.
async fn crossing(cluster: &Cluster, ix: usize) -> f64 {
    let over = [("listener", "u"), ("path", "mesh")];
    cluster.metrics(ix).await.sum("nowconnect_streams_total", &over).unwrap_or(0.0)
}

/// Waits until the agent is attached as often as planned, and each hub's own
/// agent to its hub.
async fn attached(cluster: &Cluster, parallel: usize) {
    eventually("the agent's attachments", PATIENCE, || async {
        let mut tunnels = 0.0;
        for ix in [0, 1] {
            let here = cluster.metrics(ix).await.sum("nowconnect_tunnels", &[])?;
            if here < 1.0 {
                return None;
            }
            tunnels += here;
        }
        (tunnels >= parallel as f64 + 2.0).then_some(())
    })
    .await;
}

/// A hub that holds the agent; the first one if both do.
async fn owner(cluster: &Cluster) -> usize {
    eventually("a hub holds the agent", PATIENCE, || async {
        for ix in [0, 1] {
            if cluster.metrics(ix).await.sum("nowconnect_tunnels", &[]) == Some(2.0) {
                return Some(ix);
            }
        }
        None
    })
    .await
}

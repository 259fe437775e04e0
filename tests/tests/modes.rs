//! The mode of a hub changes while it carries streams: none is lost, none
//! changes its path, and what is new follows the new mode (semantics 6).

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nowconnect_tests::actors::{Failure, Pinger, Transfer};
use nowconnect_tests::cluster::{Cluster, Plan};
use nowconnect_tests::process::{Signal, nowconnect, run};
use nowconnect_tests::target::Target;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};

/// Writes the mode into a hub's file.
fn write_mode(cluster: &Cluster, ix: usize, mode: &str) {
    let text = fs::read_to_string(cluster.hub_file(ix)).unwrap();
    let lines = text.lines().map(|l| if l.starts_with("  mode: ") { format!("  mode: {mode}") } else { l.to_owned() });
    fs::write(cluster.hub_file(ix), lines.collect::<Vec<_>>().join("\n") + "\n").unwrap();
}

/// Switches hub `ix` by SIGHUP and waits until it says so.
async fn flip(cluster: &Cluster, ix: usize, mode: &str) {
    write_mode(cluster, ix, mode);
    cluster.hubs[ix].running().signal(Signal::HUP);
    eventually(&format!("hub {ix} is {mode}"), PATIENCE, || async {
        let answer = cluster.get(ix, "/readyz").await.ok()?;
        answer.body.contains(&format!("\"mode\":\"{mode}\"")).then_some(())
    })
    .await;
}

async fn sum(cluster: &Cluster, ix: usize, name: &str, labels: &[(&str, &str)]) -> f64 {
    cluster.metrics(ix).await.sum(name, labels).unwrap_or(0.0)
}

/// Frames of all kinds on links, both ways.
async fn mesh_frames(cluster: &Cluster, ix: usize) -> f64 {
    sum(cluster, ix, "nowconnect_mesh_frames_total", &[]).await
}

/// Both hubs are in one mode; a number of its own for each time.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Phase(u64);

impl Phase {
    /// A hub is about to change, or one has and the other has not.
    const BETWEEN: Self = Self(0);

    fn new(number: u64, mode: &str) -> Self {
        Self(2 * number + u64::from(mode == "active"))
    }

    const fn is_active(self) -> bool {
        self.0 % 2 == 1
    }
}

/// Clients that come to hub B all the time for the agent of hub A, whatever the mode.
#[derive(Default)]
struct Crossing {
    phase: AtomicU64,
    /// The phase in which a client was last treated as its mode says.
    served: AtomicU64,
    stop: AtomicBool,
}

impl Crossing {
    fn phase(&self) -> Phase {
        Phase(self.phase.load(Ordering::SeqCst))
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase.0, Ordering::SeqCst);
    }

    /// One client after the other; how many were carried. Each is carried whole
    /// or reset before a byte came back, and none that came in `off` or `shadow`
    /// and was decided on in it is carried.
    async fn load(self: Arc<Self>, addr: SocketAddr, first: u64) -> Result<u64, String> {
        // A load, and no benchmark.
        const REST: Duration = Duration::from_millis(5);
        let mut carried = 0;
        for n in first.. {
            if self.stop.load(Ordering::SeqCst) {
                break;
            }
            let before = self.phase();
            let opened = bounded("a client's fate", LONG_PATIENCE, Pinger::open(addr, n)).await;
            let phase = Some(before).filter(|p| *p == self.phase() && *p != Phase::BETWEEN);
            match (opened, phase) {
                (Ok(_), Some(phase)) if !phase.is_active() => {
                    return Err(format!("client {n} was carried in off or shadow"));
                }
                (Ok(mut pinger), phase) => {
                    for piece in 0..20 {
                        tokio::time::sleep(REST).await;
                        let echo = bounded("an echo", LONG_PATIENCE, pinger.ping(1000)).await;
                        echo.map_err(|e| format!("client {n} was cut after {piece} pieces: {e}"))?;
                    }
                    pinger.close().await.map_err(|e| format!("the end of client {n}: {e}"))?;
                    carried += 1;
                    self.has_served(phase);
                }
                (Err(Failure::Reset), phase) => {
                    self.has_served(phase.filter(|p| !p.is_active()));
                    tokio::time::sleep(REST).await;
                }
                (Err(other), _) => return Err(format!("client {n} was neither carried nor reset: {other}")),
            }
        }
        Ok(carried)
    }

    fn has_served(&self, phase: Option<Phase>) {
        if let Some(phase) = phase {
            self.served.store(phase.0, Ordering::SeqCst);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_rounds_of_flips_under_load_lose_and_reroute_no_stream() {
    let target = Target::start().await;
    let mut cluster = Plan::default().connector("t", target.addr).start().await;
    let mut open = Vec::new();
    for hub in [0, 1, 0, 1] {
        open.push(Pinger::open(cluster.listener(hub, "t"), open.len() as u64).await.unwrap());
    }
    let opened = async |cluster: &Cluster| sum(cluster, 1, "nowconnect_streams_total", &[("path", "mesh")]).await;
    let mut crossed = opened(&cluster).await;
    // Clients of the agent's own hub come and go all the while: no mode may touch them.
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = tokio::spawn({
        let (stop, served, addr) = (Arc::clone(&stop), Arc::clone(&served), cluster.listener(0, "t"));
        async move {
            while !stop.load(Ordering::Relaxed) {
                let n = 100 + served.fetch_add(1, Ordering::Relaxed);
                Transfer::Echo.run(addr, n, 50_000).await.map_err(|e| format!("transfer {n}: {e}"))?;
            }
            Ok::<(), String>(())
        }
    });
    let crossing = Arc::<Crossing>::default();
    let crossers = [1, 2].map(|n| tokio::spawn(Arc::clone(&crossing).load(cluster.listener(1, "t"), n << 32)));
    // One that crosses is opened in each `active`, and stays until the next.
    let mut stays: Option<Pinger> = None;
    let mut phases = 0;
    for round in 0..20 {
        for mode in ["off", "shadow", "active", "shadow"] {
            crossing.enter(Phase::BETWEEN);
            for hub in [round % 2, 1 - round % 2] {
                flip(&cluster, hub, mode).await;
                for (ix, pinger) in open.iter_mut().chain(&mut stays).enumerate() {
                    assert_eq!(pinger.ping(2000).await, Ok(()), "stream {ix}, round {round}, {mode}");
                }
            }
            phases += 1;
            let phase = Phase::new(phases, mode);
            crossing.enter(phase);
            eventually(&format!("clients of hub B see {mode}, round {round}"), PATIENCE, || async {
                let seen = crossing.served.load(Ordering::SeqCst) == phase.0;
                (seen || crossers.iter().any(tokio::task::JoinHandle::is_finished)).then_some(())
            })
            .await;
            if phase.is_active() {
                let next = Pinger::open(cluster.listener(1, "t"), phases).await.unwrap();
                crossed += 1.0;
                if let Some(before) = stays.replace(next) {
                    assert_eq!(before.close().await, Ok(()), "round {round}");
                }
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    crossing.stop.store(true, Ordering::SeqCst);
    assert_eq!(load.await.unwrap(), Ok(()));
    for crosser in crossers {
        let carried = crosser.await.unwrap().unwrap();
        assert!(carried >= 1, "both cross");
        crossed += carried as f64;
    }
    assert!(served.load(Ordering::Relaxed) > 1);
    for ix in [0, 1] {
        assert_eq!(sum(&cluster, ix, "nowconnect_sessions_lost_total", &[("plane", "tunnel")]).await, 0.0);
        assert_eq!(sum(&cluster, ix, "nowconnect_config_reloads_total", &[("result", "applied")]).await, 80.0);
    }
    assert_eq!(opened(&cluster).await, crossed, "none was opened anew, and none but what clients saw carried");
    for hub in [0, 1] {
        flip(&cluster, hub, "active").await;
    }
    cluster.wait_ready().await;
    for hub in [0, 1] {
        assert_eq!(Transfer::Echo.run(cluster.listener(hub, "t"), 900 + hub as u64, 100_000).await, Ok(()));
    }
    for pinger in open.into_iter().chain(stays) {
        assert_eq!(pinger.close().await, Ok(()));
    }
    cluster.assert_alive();
}

/// M1: the link lives for its stream, and is silent afterwards; nothing new crosses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn off_keeps_what_crosses_takes_nothing_new_and_falls_silent() {
    let target = Target::start().await;
    let mut cluster = Plan::default().connector("t", target.addr).start().await;
    for off in [0, 1] {
        let mut crossing = Pinger::open(cluster.listener(1, "t"), 1).await.unwrap();
        flip(&cluster, off, "off").await;
        let refused = Transfer::Echo.run(cluster.listener(1, "t"), 2, 1000).await;
        assert!(refused.is_err(), "with hub {off} in off nothing new crosses: {refused:?}");
        crossing.ping(10_000).await.unwrap();
        assert_eq!(crossing.close().await, Ok(()));
        eventually("no link is left", PATIENCE, || async {
            let up = sum(&cluster, off, "nowconnect_mesh_links", &[("state", "established")]).await;
            (up == 0.0).then_some(())
        })
        .await;
        let before = mesh_frames(&cluster, off).await;
        // Some thousand transfers' worth of turns: whatever had a timer would have spoken.
        for n in 0..20 {
            assert_eq!(Transfer::Echo.run(cluster.listener(0, "t"), 10 + n, 100_000).await, Ok(()));
        }
        assert_eq!(mesh_frames(&cluster, off).await, before, "mesh frames in off");
        flip(&cluster, off, "active").await;
        cluster.wait_ready().await;
    }
    cluster.assert_alive();
}

/// A hub that ran alone claims what is attached to it, and others find it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn going_active_claims_live_attachments_without_touching_their_streams() {
    let target = Target::start().await;
    let cluster = Plan::default().connector("t", target.addr).start().await;
    let epoch = || async {
        let mut command = nowconnect(["status", "--output", "json", "--socket"]);
        command.arg(cluster.dir().join("hub-a.sock"));
        let status: serde_json::Value = serde_json::from_str(&run(command).await.stdout).unwrap();
        status["tunnels"][0]["epoch"].as_str().unwrap().parse::<u64>().unwrap()
    };
    let mut local = Pinger::open(cluster.listener(0, "t"), 1).await.unwrap();
    let before = epoch().await;
    flip(&cluster, 0, "off").await;
    assert_eq!(epoch().await, before, "leaving does not touch the attachment");
    flip(&cluster, 0, "active").await;
    cluster.wait_ready().await;
    eventually("it is claimed, with the epoch it had as `seen`", PATIENCE, || async {
        (epoch().await > before).then_some(())
    })
    .await;
    local.ping(1000).await.unwrap();
    assert_eq!(Transfer::Echo.run(cluster.listener(1, "t"), 2, 10_000).await, Ok(()));
}

/// Clients that `active` would have treated so.
async fn decided(cluster: &Cluster, hub: usize, outcome: &str) -> f64 {
    sum(cluster, hub, "nowconnect_shadow_decisions_total", &[("listener", "t"), ("outcome", outcome)]).await
}

/// M2: `shadow` tells what `active` would have done, and does what `off` does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shadow_counts_where_active_would_have_carried_each_client() {
    let target = Target::start().await;
    let mut cluster = Plan::default().connector("t", target.addr).start().await;
    for hub in [0, 1] {
        flip(&cluster, hub, "shadow").await;
    }
    let crossing = sum(&cluster, 1, "nowconnect_streams_total", &[("path", "mesh")]).await;
    // Its first lookup may be under way.
    eventually("hub B knows the agent at hub A", PATIENCE, || async {
        assert!(Transfer::Echo.run(cluster.listener(1, "t"), 1, 100).await.is_err(), "nothing crosses in shadow");
        (decided(&cluster, 1, "mesh").await >= 1.0).then_some(())
    })
    .await;
    let before = [decided(&cluster, 1, "mesh").await, decided(&cluster, 0, "local").await];
    for n in 0..10 {
        assert_eq!(Transfer::Echo.run(cluster.listener(0, "t"), 10 + n, 1000).await, Ok(()));
        assert!(Transfer::Echo.run(cluster.listener(1, "t"), 30 + n, 1000).await.is_err());
    }
    assert_eq!(
        [decided(&cluster, 1, "mesh").await, decided(&cluster, 0, "local").await],
        [before[0] + 10.0, before[1] + 10.0]
    );
    assert_eq!(decided(&cluster, 0, "mesh").await, 0.0);
    assert_eq!(sum(&cluster, 1, "nowconnect_streams_total", &[("path", "mesh")]).await, crossing, "none was opened");
    for kind in ["OPEN", "DATA"] {
        assert_eq!(sum(&cluster, 1, "nowconnect_mesh_frames_total", &[("dir", "out"), ("type", kind)]).await, 0.0);
    }

    // Without the registry `active` would refuse; in shadow nobody notices.
    cluster.redis.process.kill();
    eventually("the outage shows in what would have been", PATIENCE, || async {
        assert_eq!(Transfer::Echo.run(cluster.listener(0, "t"), 60, 1000).await, Ok(()));
        assert!(Transfer::Echo.run(cluster.listener(1, "t"), 61, 100).await.is_err());
        (decided(&cluster, 1, "REGISTRY_DOWN").await >= 1.0).then_some(())
    })
    .await;
    cluster.assert_alive();
}

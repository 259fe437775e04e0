//! One client that never reads costs the others nothing (L7) and the process
//! only what its window allows (B1, B3); when it reads again it gets
//! everything.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests; throughput is measured from outside")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nowconnect_tests::actors::{ask, read_to_end, receive, send, take_receipt};
use nowconnect_tests::cluster::{Cluster, Plan, Wire};
use nowconnect_tests::cpu::resident_bytes;
use nowconnect_tests::target::{Op, Target};
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;

/// The budget every process is given.
const BUDGET: u64 = 64 << 20;
/// What the stalled client asked for: far more than all socket buffers hold.
const STALLED: u64 = 96 << 20;
/// Share of its solo throughput that the crowd must keep.
const KEPT: f64 = 0.8;
/// Measurements before a ratio counts as bad: the machine is shared.
const ATTEMPTS: usize = 4;

async fn scene(wire: Wire) -> (Target, Cluster) {
    let target = Target::start().await;
    let limits = format!("limits: {{ memory_budget_bytes: {BUDGET} }}\n");
    let plan = Plan { hub_extra: limits.clone(), agent_extra: limits, ..Plan::default() };
    let cluster = plan.wire(wire).connector("t", target.addr).start().await;
    (target, cluster)
}

/// Time in which 20 clients download 8 MiB each.
async fn crowd(addr: SocketAddr, base: u64) -> Duration {
    let started = Instant::now();
    let mut all = JoinSet::new();
    for n in 0..20 {
        all.spawn(async move {
            let mut socket = ask(addr, Op::Flood, base + n, 8 << 20).await?;
            read_to_end(&mut socket).await
        });
    }
    bounded("20 downloads", LONG_PATIENCE, async {
        while let Some(done) = all.join_next().await {
            assert_eq!(done.unwrap(), Ok(8 << 20));
        }
    })
    .await;
    started.elapsed()
}

async fn held(cluster: &Cluster) -> Vec<f64> {
    let mut held = Vec::new();
    for ix in 0..cluster.hubs.len() {
        let metrics = cluster.metrics(ix).await;
        held.push(metrics.sum("nowconnect_memory_held_bytes", &[]).expect("the metric exists"));
    }
    held.push(cluster.agent_metrics().await.sum("nowconnect_memory_held_bytes", &[]).expect("the metric exists"));
    held
}

async fn a_client_that_never_reads(wire: Wire) {
    let (_target, mut cluster) = scene(wire).await;
    let addr = cluster.listener(1, "t");
    crowd(addr, 1000).await;
    let resident: Vec<u64> = cluster.pids().into_iter().map(resident_bytes).collect();

    let mut stalled = ask(addr, Op::Source, 1, STALLED).await.unwrap();
    eventually("something is held for the stalled client", PATIENCE, || async {
        held(&cluster).await.iter().any(|&bytes| bytes > 0.0).then_some(())
    })
    .await;

    let mut best: f64 = 0.0;
    for attempt in 0..ATTEMPTS as u64 {
        let with = crowd(addr, 10_000 + attempt * 100).await;
        for (node, bytes) in held(&cluster).await.into_iter().enumerate() {
            assert!(bytes <= BUDGET as f64, "node {node} holds {bytes} bytes");
        }
        // The same 20 without it: on a second system, idle but for them.
        let alone = crowd_without_the_stalled(wire).await;
        best = best.max(alone.as_secs_f64() / with.as_secs_f64());
        if best >= KEPT {
            break;
        }
    }
    assert!(best >= KEPT, "20 clients keep only {:.0} % of their throughput", best * 100.0);

    for (pid, before) in cluster.pids().into_iter().zip(resident) {
        let now = resident_bytes(pid);
        assert!(now <= before + BUDGET, "process {pid} grew from {before} to {now} bytes");
    }
    let outcome = bounded("the stalled client's download", LONG_PATIENCE, receive(&mut stalled, 1, STALLED)).await;
    assert_eq!(outcome, Ok(()));
    cluster.assert_alive();
}

async fn crowd_without_the_stalled(wire: Wire) -> Duration {
    let (_target, cluster) = scene(wire).await;
    let addr = cluster.listener(1, "t");
    // Windows have to grow before they are compared.
    crowd(addr, 1000).await;
    crowd(addr, 2000).await
}

/// The other direction: a target that does not read holds its client back and
/// nobody else.
async fn a_target_that_does_not_read(wire: Wire) {
    let (target, mut cluster) = scene(wire).await;
    let addr = cluster.listener(1, "t");
    let stalled = tokio::spawn(async move {
        let mut socket = ask(addr, Op::Deaf, 1, STALLED).await?;
        let hash = send(&mut socket, 1, STALLED).await?;
        socket.shutdown().await?;
        take_receipt(&mut socket, STALLED, hash).await
    });
    eventually("something is held for the deaf target", PATIENCE, || async {
        held(&cluster).await.iter().any(|&bytes| bytes > 0.0).then_some(())
    })
    .await;
    crowd(addr, 1000).await;
    for (node, bytes) in held(&cluster).await.into_iter().enumerate() {
        assert!(bytes <= BUDGET as f64, "node {node} holds {bytes} bytes");
    }
    assert!(!stalled.is_finished(), "the client was not held back");
    target.resume_reading();
    let outcome = bounded("the upload to the target that reads again", LONG_PATIENCE, stalled).await;
    assert_eq!(outcome.unwrap(), Ok(()));
    eventually("nothing is held any more", PATIENCE, || async {
        held(&cluster).await.iter().all(|&bytes| bytes == 0.0).then_some(())
    })
    .await;
    cluster.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_v2() {
    a_client_that_never_reads(Wire::V2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_v1() {
    a_client_that_never_reads(Wire::V1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_does_not_read_v2() {
    a_target_that_does_not_read(Wire::V2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_does_not_read_v1() {
    a_target_that_does_not_read(Wire::V1).await;
}

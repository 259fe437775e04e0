//! Hubs on a Redis Cluster: a master that dies, with a replica to take its place
//! and without. Streams go on, clients of the agent's own hub notice nothing,
//! new streams across hubs are refused at once and work again afterwards (M4,
//! O2, L5, L6).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; times are for the reader")]

use std::time::{Duration, Instant};

use nowconnect_tests::actors::Failure;
use nowconnect_tests::cluster::{Cluster, Plan};
use nowconnect_tests::ownership::{Standing, echo, recovered, refusal};
use nowconnect_tests::redis_cluster::{MASTERS, RedisCluster};
use nowconnect_tests::target::Target;
use nowconnect_tests::wait::{LONG_PATIENCE, eventually};

const DOWN: [(&str, &str); 1] = [("reason", "REGISTRY_DOWN")];

struct Scene {
    redis: RedisCluster,
    cluster: Cluster,
    standing: Standing,
    _target: Target,
}

async fn scene(replicas: bool) -> Scene {
    let redis = RedisCluster::start(replicas, &[]).await;
    let target = Target::start().await;
    let plan = Plan { redis_url: Some(redis.url()), ..Plan::default() };
    let cluster = plan.connector("t", target.addr).start().await;
    let standing = Standing::open(&[cluster.listener(0, "t"), cluster.listener(1, "t")]).await;
    let mut keys = 0;
    for node in redis.nodes.iter().take(MASTERS) {
        keys += u64::from(node.call("DBSIZE").await.unwrap().trim() != ":0");
    }
    assert!(keys >= 2, "the records are spread over the masters");
    Scene { redis, cluster, standing, _target: target }
}

impl Scene {
    /// The master that keeps hub A's lease.
    async fn kill_a_master(&mut self) -> usize {
        let victim = self.redis.home("nowconnect:tests:hub:hub-a").await;
        self.redis.nodes[victim].process.kill();
        victim
    }

    async fn refused_for_want_of_redis(&self) -> f64 {
        self.cluster.metrics(1).await.sum("nowconnect_open_failures_total", &DOWN).unwrap_or(0.0)
    }

    /// Whatever happened: all as before, and epochs above those of before.
    async fn recovers(self, began: Instant) {
        recovered(self.cluster, self.standing, "a master", began).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_the_cluster_takes_over_and_no_stream_ends() {
    let mut s = scene(true).await;
    let began = Instant::now();
    let victim = s.kill_a_master().await;
    let (mut crossed, mut refused) = (0, 0);
    eventually("the replica is master", LONG_PATIENCE, || async {
        let role = s.redis.nodes[MASTERS + victim].call("ROLE").await.ok()?;
        role.contains("master").then_some(())
    })
    .await;
    println!("a replica took over after {:?}", began.elapsed());
    for n in 0..20 {
        s.standing.ping().await;
        assert_eq!(echo(s.cluster.listener(0, "t"), n).await, Ok(()), "local");
        match echo(s.cluster.listener(1, "t"), 100 + n).await {
            Ok(()) => crossed += 1,
            Err(Failure::Reset) => refused += 1,
            Err(other) => panic!("across hubs: {other}"),
        }
    }
    println!("{crossed} crossed, {refused} refused");
    assert!(s.refused_for_want_of_redis().await >= f64::from(refused), "for want of the registry and nothing else");
    s.recovers(began).await;
}

/// Nobody takes the place of the dead: the cluster serves nothing at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_without_one_of_its_masters_refuses_what_crosses_and_comes_back() {
    let mut s = scene(false).await;
    let began = Instant::now();
    let victim = s.kill_a_master().await;
    for ix in [0, 1] {
        s.cluster.wait_status(ix, "degraded").await;
    }
    println!("degraded after {:?}", began.elapsed());
    let before = s.refused_for_want_of_redis().await;
    let mut slowest = Duration::ZERO;
    for n in 0..20 {
        s.standing.ping().await;
        assert_eq!(echo(s.cluster.listener(0, "t"), n).await, Ok(()), "local");
        slowest = slowest.max(refusal(s.cluster.listener(1, "t")).await);
    }
    println!("20 refused, the slowest after {slowest:?}");
    assert_eq!(s.refused_for_want_of_redis().await - before, 20.0, "each for want of the registry and nothing else");
    let back = Instant::now();
    s.redis.nodes[victim].restart().await;
    s.recovers(back).await;
}

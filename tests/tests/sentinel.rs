//! A failover by real Sentinels that loses the last writes: epochs go on rising,
//! no stream ends, and hubs find the new master by themselves (R3, O2, L5).

#![allow(clippy::unwrap_used, reason = "tests")]

use nowconnect_tests::cluster::Plan;
use nowconnect_tests::ownership::{Standing, assert_rising, echo, epochs};
use nowconnect_tests::redis::{Redis, Sentinels};
use nowconnect_tests::target::Target;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_loses_the_last_claims_lets_no_epoch_fall() {
    let mut master = Redis::start().await;
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &master.addr().port().to_string()]).await;
    let sentinels = Sentinels::watch(&master).await;
    let target = Target::start().await;
    let plan = Plan { redis_url: Some(sentinels.url()), ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let keys = master.call("DBSIZE").await.unwrap();
    assert_ne!(keys.trim(), ":0", "the hubs found the master by way of the Sentinels");

    // The replica misses everything from here on: the claims of a new agent.
    replica.freeze(true);
    cluster.kill_agent();
    cluster.start_agent();
    let log = cluster.hubs[0].running().log.clone();
    eventually("the new agent's claim", PATIENCE, || async { (epochs(&log).len() >= 2).then_some(()) }).await;
    cluster.wait_echo(1, "t").await;
    let mut standing = Standing::open(&[cluster.listener(0, "t"), cluster.listener(1, "t")]).await;
    master.process.kill();
    replica.freeze(false);
    eventually("the Sentinels name the replica", LONG_PATIENCE, || async {
        let named = sentinels.master().await.ok()?;
        standing_port(&named, replica.addr().port()).then_some(())
    })
    .await;
    standing.ping().await;
    for ix in [0, 1] {
        cluster.wait_status(ix, "ready").await;
        assert_eq!(echo(cluster.listener(0, "t"), 5).await, Ok(()), "local");
    }
    cluster.wait_echo(1, "t").await;
    standing.ping().await;
    standing.close().await;
    cluster.kill_agent();
    cluster.start_agent();
    let before = epochs(&log).len();
    eventually("a claim at the new master", PATIENCE, || async { (epochs(&log).len() > before).then_some(()) }).await;
    assert_rising(&epochs(&log));
    cluster.wait_echo(1, "t").await;
    assert_ne!(replica.call("DBSIZE").await.unwrap().trim(), ":0");
}

fn standing_port(named: &str, port: u16) -> bool {
    named.lines().any(|l| l == port.to_string())
}

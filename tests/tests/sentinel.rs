//! A failover by real Sentinels that loses the last writes, watched while it
//! happens: no stream ends, the agent's own hub serves all the time, what would
//! cross hubs is refused for want of the registry and nothing else, epochs go on
//! rising, and hubs find the new master by themselves (R3, O2, M4, L5, L6).
//!
//! Nothing is left to luck: the replica is shown to lack the last claim, and the
//! Sentinels wait until both hubs have noticed.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; times are for the reader")]

use std::time::{Duration, Instant};

use nowconnect_tests::actors::Failure;
use nowconnect_tests::cluster::{AGENT, Cluster, Plan};
use nowconnect_tests::http;
use nowconnect_tests::ownership::{Standing, assert_rising, echo, epochs};
use nowconnect_tests::redis::{Redis, Sentinels};
use nowconnect_tests::target::Target;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};

/// Silence of the master after which the Sentinels act.
const SOON: Duration = Duration::from_millis(1500);
/// Far beyond the part of the test in which they must not.
const NOT_YET: Duration = Duration::from_secs(600);
/// Looks at a state that lasts as long as the test wants.
const LOOKS: u32 = 30;

/// What clients that came one after the other saw.
struct Clients {
    standing: Standing,
    next: u64,
    local: u32,
    crossed: u32,
    refused: u32,
    /// The longest time to a refusal.
    slowest: Duration,
    /// Refusals that took longer than the 100 ms aimed at.
    late: u32,
}

impl Clients {
    /// Echoes on streams that stand, a new stream at the agent's own hub, and
    /// one that has to cross; whether that one did.
    async fn look(&mut self, cluster: &Cluster) -> bool {
        self.standing.ping().await;
        self.next += 2;
        assert_eq!(echo(cluster.listener(0, "t"), self.next).await, Ok(()), "local");
        self.local += 1;
        let began = Instant::now();
        match echo(cluster.listener(1, "t"), self.next + 1).await {
            Ok(()) => {
                self.crossed += 1;
                true
            }
            Err(Failure::Reset) => {
                let took = began.elapsed();
                self.refused += 1;
                self.slowest = self.slowest.max(took);
                self.late += u32::from(took > Duration::from_millis(100));
                false
            }
            Err(other) => panic!("across hubs: {other}"),
        }
    }

    /// What was seen since the last time.
    fn tell(&mut self, when: &str) {
        println!(
            "{when}: {} local streams opened, across hubs {} opened and {} refused, the slowest after {:?}, {} later than 100 ms",
            self.local, self.crossed, self.refused, self.slowest, self.late
        );
        (self.local, self.crossed, self.refused, self.late, self.slowest) = (0, 0, 0, 0, Duration::ZERO);
    }
}

async fn status_of(cluster: &Cluster, ix: usize) -> String {
    let answer = bounded("/readyz", PATIENCE, cluster.get(ix, "/readyz")).await.unwrap();
    serde_json::from_str::<serde_json::Value>(&answer.body).unwrap()["status"].as_str().unwrap().to_owned()
}

async fn both_are(cluster: &Cluster, status: &str) -> bool {
    status_of(cluster, 0).await == status && status_of(cluster, 1).await == status
}

async fn refused_for_want_of_redis(cluster: &Cluster) -> f64 {
    let down = [("reason", "REGISTRY_DOWN")];
    cluster.metrics(1).await.sum("nowconnect_open_failures_total", &down).unwrap_or(0.0)
}

/// The highest epoch the agent itself has seen.
async fn highest(cluster: &Cluster) -> u64 {
    let answer = http::get_unix(&cluster.dir().join("agent.sock"), "/status").await.unwrap();
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let epoch = &body["highest_epoch"];
    epoch.as_u64().or_else(|| epoch.as_str()?.parse().ok()).unwrap_or_else(|| panic!("no epoch in {body}"))
}

/// The agent's epoch as a server stores it.
async fn stored(redis: &Redis) -> u64 {
    let answer = redis.call(&format!("GET nowconnect:tests:{{{AGENT}}}:ep")).await.unwrap();
    answer.lines().nth(1).and_then(|l| l.parse().ok()).unwrap_or_else(|| panic!("no epoch: {answer:?}"))
}

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
    eventually("the replica has the first claim", PATIENCE, || async {
        replica.call("DBSIZE").await.ok().filter(|a| a == &keys)
    })
    .await;

    // The replica misses everything from here on: the claim of a new agent. Its
    // link is cut while it sleeps, so that nothing waits for it either.
    sentinels.act_after(NOT_YET).await;
    replica.freeze(true);
    assert_eq!(master.call("CLIENT KILL TYPE replica").await.unwrap().trim(), ":1");
    cluster.kill_agent();
    cluster.start_agent();
    let log = cluster.hubs[0].running().log.clone();
    eventually("the new agent's claim", PATIENCE, || async { (epochs(&log).len() >= 2).then_some(()) }).await;
    cluster.wait_echo(1, "t").await;
    let claimed = *epochs(&log).last().unwrap();
    assert_eq!((stored(&master).await, highest(&cluster).await), (claimed, claimed));
    let standing = Standing::open(&[cluster.listener(0, "t"), cluster.listener(1, "t")]).await;
    let mut clients =
        Clients { standing, next: 100, local: 0, crossed: 0, refused: 0, slowest: Duration::ZERO, late: 0 };
    assert!(both_are(&cluster, "ready").await);

    // The master is gone, and nobody takes its place yet.
    master.process.kill();
    replica.freeze(false);
    let killed = Instant::now();
    assert!(stored(&replica).await < claimed, "the replica lacks the last claim");
    while !both_are(&cluster, "degraded").await {
        clients.look(&cluster).await;
        assert!(killed.elapsed() < PATIENCE, "the hubs do not notice");
    }
    clients.tell(&format!("until degraded, {:?} after the kill", killed.elapsed()));
    let before = refused_for_want_of_redis(&cluster).await;
    for _ in 0..LOOKS {
        assert!(!clients.look(&cluster).await, "nothing new crosses without a registry");
    }
    let refused = refused_for_want_of_redis(&cluster).await - before;
    assert_eq!(refused, f64::from(LOOKS), "each for want of the registry and nothing else");
    clients.tell("degraded, no master");

    // The Sentinels make the replica the master.
    let began = Instant::now();
    sentinels.act_after(SOON).await;
    let port = replica.addr().port().to_string();
    let mut named = None;
    while !(named.is_some() && both_are(&cluster, "ready").await) {
        clients.look(&cluster).await;
        if named.is_none() && sentinels.master().await.is_ok_and(|m| m.lines().any(|l| l == port)) {
            named = Some(began.elapsed());
        }
        assert!(began.elapsed() < LONG_PATIENCE, "no new master");
    }
    clients.tell(&format!("until ready again, {:?} after the Sentinels were let go", began.elapsed()));
    println!("the Sentinels named the new master after {:?}", named.unwrap());
    // What they say can be relied on: the owner's attachment is listed by then,
    // and who does not know it asks.
    assert!(clients.look(&cluster).await, "both call themselves ready, and nothing crosses");
    clients.tell(&format!("until a stream crossed, after {:?}", began.elapsed()));

    // What the new master did not know is claimed above what the agent has seen.
    eventually("the attachment is claimed again", PATIENCE, || async {
        (highest(&cluster).await > claimed).then_some(())
    })
    .await;
    for _ in 0..LOOKS {
        assert!(clients.look(&cluster).await, "streams cross hubs again");
    }
    clients.tell("afterwards");
    let again = stored(&replica).await;
    assert!(again > claimed, "{again} at the new master, {claimed} was lost");
    assert_eq!(highest(&cluster).await, again);
    clients.standing.close().await;
    cluster.kill_agent();
    cluster.start_agent();
    eventually("a claim at the new master", PATIENCE, || async {
        epochs(&log).last().is_some_and(|last| *last > again).then_some(())
    })
    .await;
    let all = epochs(&log);
    assert_rising(&all);
    assert!(all.len() >= 4, "the first agent, the second, that one again, the third: {all:?}");
    cluster.wait_echo(1, "t").await;
    assert!(stored(&replica).await > again);
    cluster.assert_alive();
}

//! A Redis that stops, freezes, forgets or takes no writes: no stream ends,
//! clients of the agent's own hub notice nothing, new streams across hubs are
//! refused at once and work again afterwards, epochs rise throughout (M4, O2,
//! L5, L6, L11). With `NC_TEST_OUTAGE_SECS` outages last longer than here.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; times are for the reader")]

use std::time::{Duration, Instant};

use nowconnect_tests::actors::Failure;
use nowconnect_tests::cluster::{Cluster, Plan};
use nowconnect_tests::ownership::{Standing, assert_rising, echo, epochs, recovered, refusal};
use nowconnect_tests::redis::Redis;
use nowconnect_tests::target::Target;
use nowconnect_tests::wait::{PATIENCE, bounded};

/// How long Redis is away. Past a lease, so that attachments are not listed any more.
fn length() -> Duration {
    let secs = std::env::var("NC_TEST_OUTAGE_SECS").ok().and_then(|s| s.parse().ok()).unwrap_or(10);
    Duration::from_secs(secs)
}

struct Scene {
    cluster: Cluster,
    standing: Standing,
    /// What an echo on a new stream at the agent's own hub takes while all is well.
    before: Duration,
    _target: Target,
}

async fn scene(hub_extra: &str) -> Scene {
    let target = Target::start().await;
    let plan = Plan { hub_extra: hub_extra.to_owned(), ..Plan::default() };
    let cluster = plan.connector("t", target.addr).start().await;
    let standing = Standing::open(&[cluster.listener(0, "t"), cluster.listener(1, "t")]).await;
    let mut scene = Scene { cluster, standing, before: Duration::ZERO, _target: target };
    let mut opens = Vec::new();
    for n in 0..20 {
        opens.push(scene.local(n).await);
    }
    scene.before = median(opens);
    scene
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

impl Scene {
    /// A new stream at the agent's own hub, there and back.
    async fn local(&self, n: u64) -> Duration {
        let began = Instant::now();
        assert_eq!(echo(self.cluster.listener(0, "t"), n).await, Ok(()), "local");
        began.elapsed()
    }

    async fn is_degraded(&self, ix: usize) -> bool {
        let answer = bounded("/readyz", PATIENCE, self.cluster.get(ix, "/readyz")).await.unwrap();
        serde_json::from_str::<serde_json::Value>(&answer.body).unwrap()["status"] == "degraded"
    }

    /// From here on Redis is away: what must hold until it is back.
    async fn live_through(&mut self, kind: &str) {
        let began = Instant::now();
        let (mut opens, mut crossing, mut n) = (Vec::new(), Duration::ZERO, 1000);
        // What is known is still tried until the hubs know that Redis is away.
        while !(self.is_degraded(0).await && self.is_degraded(1).await) {
            self.standing.ping().await;
            opens.push(self.local(n).await);
            let at = Instant::now();
            match echo(self.cluster.listener(1, "t"), n + 1).await {
                Ok(()) | Err(Failure::Reset) => crossing = crossing.max(at.elapsed()),
                Err(other) => panic!("across hubs: {other}"),
            }
            n += 2;
        }
        println!("{kind}: degraded after {:?}; until then across hubs {crossing:?} at most", began.elapsed());
        let down = [("reason", "REGISTRY_DOWN")];
        let before = self.cluster.metrics(1).await.sum("nowconnect_open_failures_total", &down).unwrap_or(0.0);
        let (mut refused, mut slowest) = (0_u32, Duration::ZERO);
        while refused < 5 || began.elapsed() < length() {
            self.standing.ping().await;
            opens.push(self.local(100 + u64::from(refused)).await);
            slowest = slowest.max(refusal(self.cluster.listener(1, "t")).await);
            refused += 1;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        println!("{kind}: {refused} refused, the slowest after {slowest:?}");
        println!(
            "{kind}: an echo at the agent's hub {:?} before, {:?} meanwhile (medians)",
            self.before,
            median(opens)
        );
        let after = self.cluster.metrics(1).await.sum("nowconnect_open_failures_total", &down).unwrap_or(0.0);
        assert_eq!(after - before, f64::from(refused), "each for want of the registry and nothing else");
    }

    /// Redis is back.
    async fn recover(self, kind: &str) {
        recovered(self.cluster, self.standing, kind, Instant::now()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_stops_and_comes_back_empty() {
    let mut s = scene("").await;
    s.cluster.redis.process.kill();
    s.live_through("stopped").await;
    s.cluster.redis.restart().await;
    s.recover("stopped").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_freezes_and_goes_on() {
    let mut s = scene("").await;
    s.cluster.redis.freeze(true);
    s.live_through("frozen").await;
    s.cluster.redis.freeze(false);
    s.recover("frozen").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_takes_no_writes_for_a_while() {
    let mut s = scene("").await;
    let other = Redis::start().await;
    s.cluster.redis.call(&format!("REPLICAOF 127.0.0.1 {}", other.addr().port())).await.unwrap();
    s.live_through("read-only").await;
    // It is empty by now, for so is the one it followed.
    s.cluster.redis.call("REPLICAOF NO ONE").await.unwrap();
    s.recover("read-only").await;
}

/// Flushed while it serves: nobody is refused anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_forgets_everything() {
    let mut s = scene("registry: { lease: 4s }\n").await;
    let log = s.cluster.hubs[0].running().log.clone();
    let mut n = 0;
    for round in 0..3 {
        s.cluster.redis.call("FLUSHALL").await.unwrap();
        let flushed = Instant::now();
        let mut after = 0;
        // Until the attachment is claimed again, and for a while after it.
        while after < 20 {
            s.standing.ping().await;
            assert_eq!(echo(s.cluster.listener(0, "t"), n).await, Ok(()), "local");
            assert_eq!(echo(s.cluster.listener(1, "t"), n + 1).await, Ok(()), "across hubs, {:?}", flushed.elapsed());
            n += 2;
            if epochs(&log).len() >= round + 2 {
                after += 1;
            }
            assert!(flushed.elapsed() < PATIENCE, "the attachment is not claimed again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    println!("{n} streams opened over three flushes");
    assert_rising(&epochs(&s.cluster.hubs[0].running().log));
    s.standing.close().await;
}

/// An agent that comes while Redis is away is served at its hub under an epoch
/// of the hub's own, and claimed when Redis is back (O2, O6).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_comes_during_an_outage_is_served_and_claimed_after_it() {
    let mut s = scene("").await;
    s.cluster.redis.process.kill();
    for ix in [0, 1] {
        s.cluster.wait_status(ix, "degraded").await;
    }
    s.cluster.kill_agent();
    s.cluster.start_agent();
    let gained = |cause| [("change", "gained"), ("cause", cause)];
    // It takes the place of the one that was killed.
    s.cluster.wait_metric(0, "nowconnect_ownership_changes_total", &gained("takeover"), 1.0).await;
    assert!(s.cluster.hubs[0].running().log.tail(usize::MAX).contains("firm=false"), "under an epoch of the hub's own");
    s.cluster.wait_echo(0, "t").await;
    s.cluster.redis.restart().await;
    s.cluster.wait_metric(0, "nowconnect_ownership_changes_total", &gained("reclaim"), 1.0).await;
    for ix in [0, 1] {
        s.cluster.wait_status(ix, "ready").await;
    }
    s.cluster.wait_echo(1, "t").await;
    let epochs = epochs(&s.cluster.hubs[0].running().log);
    assert!(epochs.len() >= 3, "before, meanwhile, after: {epochs:?}");
    assert_rising(&epochs);
}

/// The rule `cached`: what is known is still tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_cached_routes_new_streams_cross_hubs_all_the_same() {
    let mut s = scene("registry: { lease: 2s, op_timeout: 500ms, renew_every: 500ms, on_outage: cached }\n").await;
    s.cluster.redis.process.kill();
    for ix in [0, 1] {
        s.cluster.wait_status(ix, "degraded").await;
    }
    let until = Instant::now() + Duration::from_secs(5);
    let mut n = 0;
    while Instant::now() < until {
        assert_eq!(echo(s.cluster.listener(1, "t"), n).await, Ok(()), "across hubs, past the lease");
        s.standing.ping().await;
        n += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    s.cluster.redis.restart().await;
    for ix in [0, 1] {
        s.cluster.wait_status(ix, "ready").await;
    }
    s.standing.close().await;
}

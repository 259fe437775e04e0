//! A Redis that stops, freezes, forgets or takes no writes: no stream ends,
//! clients of the agent's own hub notice nothing, new streams across hubs are
//! refused at once and work again afterwards, epochs rise throughout (M4, O2,
//! L5, L6, L11). With `NC_TEST_OUTAGE_SECS` outages last longer than here.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; times are for the reader")]

use std::time::{Duration, Instant};

use nowconnect_tests::actors::Failure;
use nowconnect_tests::cluster::{AGENT, Cluster, Plan};
use nowconnect_tests::ownership::{Standing, assert_rising, echo, epochs_of};
use nowconnect_tests::process::Process;
use nowconnect_tests::redis::Redis;
use nowconnect_tests::target::Target;
use nowconnect_tests::wait::{PATIENCE, bounded, eventually};

/// How long Redis is away. Past a lease, so that attachments are not listed any more.
fn length() -> Duration {
    let secs = std::env::var("NC_TEST_OUTAGE_SECS").ok().and_then(|s| s.parse().ok()).unwrap_or(10);
    Duration::from_secs(secs)
}

/// Rests between two looks, before, during and after an outage alike: after an
/// idle pause a connect is slower than after another one.
const PACE: Duration = Duration::from_millis(100);
/// Of the further agent, which is at hub B as the cluster's own one is at hub A.
const OTHER: &str = "plant-8";

/// Looks before an outage and after it: as many as fit into it.
fn looks() -> u32 {
    u32::try_from(length().as_millis() / PACE.as_millis()).unwrap().max(100)
}

/// Two hubs, each with an agent of its own: `t` is local at hub A and crosses
/// from hub B, `u` the other way round.
struct Scene {
    cluster: Cluster,
    standing: Standing,
    other: Process,
    /// What an echo on a new stream at an agent's own hub takes while all is well.
    before: Vec<Duration>,
    next: u64,
    target: Target,
}

async fn scene(hub_extra: &str) -> Scene {
    let target = Target::start().await;
    let plan = Plan { hub_extra: hub_extra.to_owned(), foreign: vec!["u".to_owned()], ..Plan::default() };
    let cluster = plan.connector("t", target.addr).start().await;
    let other = cluster.further_agent(OTHER, &[1], &[("u", target.addr.to_string())]);
    for ix in [0, 1] {
        cluster.wait_open(ix, "u").await;
        cluster.wait_echo(ix, "u").await;
    }
    let [a, b] = [0, 1].map(|ix| ["t", "u"].map(|name| cluster.listener(ix, name)));
    let standing = Standing::open(&[a, b].concat()).await;
    Scene { cluster, standing, other, before: Vec::new(), next: 0, target }
}

/// The half and all but one in a hundred took no longer.
fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
    format!("p50 {:?}, p99 {:?} of {}", at(50), at(99), times.len())
}

/// Clients that had to cross hubs.
#[derive(Default)]
struct Crossing {
    served: u32,
    refused: Vec<Duration>,
    slowest_served: Duration,
}

impl Scene {
    /// One after the other: echoes on all streams that stand, a new stream at
    /// each agent's own hub, one that has to cross either way; and a rest.
    async fn look(&mut self, opens: &mut Vec<Duration>, crossing: &mut Crossing) {
        self.standing.ping().await;
        for (ix, name) in [(0, "t"), (1, "u")] {
            let (began, addr) = (Instant::now(), self.cluster.listener(ix, name));
            assert_eq!(echo(addr, self.next).await, Ok(()), "local, {name}");
            opens.push(began.elapsed());
            self.next += 1;
        }
        for (ix, name) in [(1, "t"), (0, "u")] {
            let (began, addr) = (Instant::now(), self.cluster.listener(ix, name));
            match echo(addr, self.next).await {
                Ok(()) => {
                    crossing.served += 1;
                    crossing.slowest_served = crossing.slowest_served.max(began.elapsed());
                }
                Err(Failure::Reset) => crossing.refused.push(began.elapsed()),
                Err(other) => panic!("across hubs, {name}: {other}"),
            }
            self.next += 1;
        }
        tokio::time::sleep(PACE).await;
    }

    /// As many looks as an outage has, while all is well. Where the machine keeps
    /// Redis from answering in time, that is what refusals are for, and nothing else.
    async fn all_is_well(&mut self) -> Vec<Duration> {
        let (mut opens, mut crossing) = (Vec::new(), Crossing::default());
        let before = self.registry_down().await;
        for _ in 0..looks() {
            self.look(&mut opens, &mut crossing).await;
        }
        let slow = self.registry_down().await - before;
        assert_eq!(crossing.refused.len() as f64, slow, "what does not cross is refused for want of the registry");
        assert!(crossing.served > looks(), "{} of {} cross", crossing.served, 2 * looks());
        opens
    }

    async fn is_degraded(&self, ix: usize) -> bool {
        let answer = bounded("/readyz", PATIENCE, self.cluster.get(ix, "/readyz")).await.unwrap();
        serde_json::from_str::<serde_json::Value>(&answer.body).unwrap()["status"] == "degraded"
    }

    /// Clients refused for want of the registry, at both hubs.
    async fn registry_down(&self) -> f64 {
        let mut sum = 0.0;
        for ix in [0, 1] {
            let page = self.cluster.metrics(ix).await;
            sum += page.sum("nowconnect_open_failures_total", &[("reason", "REGISTRY_DOWN")]).unwrap_or(0.0);
        }
        sum
    }

    /// From here on Redis is away: what must hold until it is back.
    async fn live_through(&mut self, kind: &str) {
        let began = Instant::now();
        let (mut opens, mut crossing) = (Vec::new(), Crossing::default());
        // What is known is still tried until the hubs know that Redis is away.
        while !(self.is_degraded(0).await && self.is_degraded(1).await) {
            self.look(&mut opens, &mut crossing).await;
            assert!(began.elapsed() < PATIENCE, "the hubs do not notice");
        }
        println!(
            "{kind}: degraded after {:?}; until then {} across hubs, the slowest {:?}, and {} refused",
            began.elapsed(),
            crossing.served,
            crossing.slowest_served,
            crossing.refused.len()
        );
        let (before, mut crossing) = (self.registry_down().await, Crossing::default());
        // The looks before are part of the outage, and are counted with it.
        while opens.len() < 2 * looks() as usize || began.elapsed() < length() {
            self.look(&mut opens, &mut crossing).await;
        }
        let refused = crossing.refused.len();
        assert_eq!(crossing.served, 0, "nothing new crosses without a registry");
        let after = self.registry_down().await;
        assert_eq!(after - before, refused as f64, "each for want of the registry and nothing else");
        let late = crossing.refused.iter().filter(|t| **t > Duration::from_millis(100)).count();
        let slowest = crossing.refused.iter().max().unwrap();
        println!("{kind}: {refused} refused, the slowest after {slowest:?}, {late} later than 100 ms");
        println!("{kind}: new streams at the agents' own hubs before: {}", quantiles(self.before.clone()));
        println!("{kind}: new streams at the agents' own hubs meanwhile: {}", quantiles(opens));
    }

    /// Redis is back: hubs are ready, streams that stood still stand, everything
    /// works as before, and claims of new agents are above all there were.
    async fn recover(mut self, kind: &str) {
        let began = Instant::now();
        for ix in [0, 1] {
            self.cluster.wait_status(ix, "ready").await;
        }
        for (ix, name) in [(1, "t"), (0, "u")] {
            self.cluster.wait_echo(ix, name).await;
        }
        println!("{kind}: ready and open across hubs {:?} after", began.elapsed());
        let opens = self.all_is_well().await;
        println!("{kind}: new streams at the agents' own hubs after: {}", quantiles(opens));
        self.standing.close().await;
        drop(self.other);
        self.cluster.kill_agent();
        let logs = [0, 1].map(|ix| self.cluster.hubs[ix].running().log.clone());
        let epochs = || [epochs_of(&logs[0], AGENT), epochs_of(&logs[1], OTHER)];
        let had = epochs().map(|all| all.len());
        self.cluster.start_agent();
        let _other = self.cluster.further_agent(OTHER, &[1], &[("u", self.target.addr.to_string())]);
        eventually("the new agents are attached", PATIENCE, || async {
            epochs().iter().zip(had).all(|(all, had)| all.len() > had).then_some(())
        })
        .await;
        for (ix, name) in [(1, "t"), (0, "u")] {
            self.cluster.wait_echo(ix, name).await;
        }
        for (agent, all) in [AGENT, OTHER].into_iter().zip(epochs()) {
            println!("{kind}: {agent} was attached under {all:?}");
            assert_rising(&all);
        }
        for (log, never) in logs.iter().zip([OTHER, AGENT]) {
            assert!(epochs_of(log, never).is_empty(), "each agent was at its own hub only");
        }
        self.cluster.assert_alive();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_stops_and_comes_back_empty() {
    let mut s = scene("").await;
    s.before = s.all_is_well().await;
    s.cluster.redis.process.kill();
    s.live_through("stopped").await;
    s.cluster.redis.restart().await;
    s.recover("stopped").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_freezes_and_goes_on() {
    let mut s = scene("").await;
    s.before = s.all_is_well().await;
    s.cluster.redis.freeze(true);
    s.live_through("frozen").await;
    s.cluster.redis.freeze(false);
    s.recover("frozen").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_takes_no_writes_for_a_while() {
    let mut s = scene("").await;
    s.before = s.all_is_well().await;
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
    let logs = [0, 1].map(|ix| s.cluster.hubs[ix].running().log.clone());
    let epochs = || [epochs_of(&logs[0], AGENT), epochs_of(&logs[1], OTHER)];
    let mut n = 0;
    for round in 0..3 {
        s.cluster.redis.call("FLUSHALL").await.unwrap();
        let flushed = Instant::now();
        let mut after = 0;
        // Until the attachments are claimed again, and for a while after it.
        while after < 20 {
            s.standing.ping().await;
            for (ix, name) in [(0, "t"), (1, "t"), (1, "u"), (0, "u")] {
                let outcome = echo(s.cluster.listener(ix, name), n).await;
                assert_eq!(outcome, Ok(()), "{name} at hub {ix}, {:?}", flushed.elapsed());
                n += 1;
            }
            if epochs().iter().all(|all| all.len() >= round + 2) {
                after += 1;
            }
            assert!(flushed.elapsed() < PATIENCE, "the attachments are not claimed again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    println!("{n} streams opened over three flushes");
    for all in epochs() {
        assert_rising(&all);
    }
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
    let epochs = epochs_of(&s.cluster.hubs[0].running().log, AGENT);
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

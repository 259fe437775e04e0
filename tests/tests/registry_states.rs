//! A Redis that answers and cannot be used: settings that endanger the registry,
//! a replica without its master, a server that is still loading. The hub says
//! what it is, goes on with what does not need the registry, and comes back; an
//! agent that came meanwhile is claimed (semantics 5, R3, R6, M4, L11).

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Instant;

use nowconnect_tests::cluster::{Cluster, Plan};
use nowconnect_tests::ownership::{Standing, assert_rising, echo, epochs, recovered, refusal};
use nowconnect_tests::ports::Port;
use nowconnect_tests::process::Log;
use nowconnect_tests::redis::Redis;
use nowconnect_tests::target::Target;
use nowconnect_tests::wait::{PATIENCE, eventually};

/// Lines of `event` that have `field` in them.
fn said(log: &Log, event: &str, field: &str) -> usize {
    let (event, lines) = (format!("event=\"{event}\""), log.tail(usize::MAX));
    lines.lines().filter(|l| l.contains(&event) && l.contains(field)).count()
}

/// What a hub says of a server with these arguments, once it is connected.
async fn advice(args: &[&str], commands: &[&str], login: &str) -> (Cluster, Redis, Log) {
    let redis = Redis::start_with(args).await;
    for command in commands {
        assert_eq!(redis.call(command).await.unwrap().trim(), "+OK", "{command}");
    }
    let url = redis.url().replace("redis://", &format!("redis://{login}"));
    let target = Target::start().await;
    let plan = Plan { hubs: 1, redis_url: Some(url), ..Plan::default() };
    let cluster = plan.connector("t", target.addr).start().await;
    let log = cluster.hubs[0].running().log.clone();
    assert_eq!(said(&log, "registry_connected", ""), 1);
    // It is advice: the hub is ready and serves.
    cluster.wait_status(0, "ready").await;
    assert_eq!(echo(cluster.listener(0, "t"), 1).await, Ok(()));
    (cluster, redis, log)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_endanger_the_registry_are_named() {
    let (_cluster, _redis, log) = advice(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"], &[], "").await;
    assert_eq!(said(&log, "registry_advice", "about=\"eviction\""), 1);
    assert_eq!(said(&log, "registry_advice", "maxmemory-policy is allkeys-lru"), 1);
    assert_eq!(said(&log, "registry_advice", "set it to noeviction"), 1);
    assert_eq!(said(&log, "registry_advice", "about=\"persistence\""), 1);
    assert_eq!(said(&log, "registry_advice", "set appendonly yes"), 1);
    assert_eq!(said(&log, "registry_advice", ""), 2, "and nothing else");

    // A server that may not be asked.
    let user = ["ACL SETUSER nc on >hunter2 ~nowconnect:* +@all -config -info"];
    let (_cluster, _redis, log) = advice(&[], &user, "nc:hunter2@").await;
    assert_eq!(said(&log, "registry_advice", "about=\"unchecked\""), 2);
    assert_eq!(said(&log, "registry_advice", "+info"), 1);
    assert_eq!(said(&log, "registry_advice", "+config|get"), 1);
    assert_eq!(said(&log, "registry_advice", ""), 2);
    assert_eq!(log.count("hunter2"), 0, "no line holds the password");

    // And one as it should be.
    let good = ["--maxmemory-policy", "noeviction", "--appendonly", "yes"];
    let (_cluster, redis, log) = advice(&good, &[], "").await;
    assert_eq!(said(&log, "registry_advice", ""), 0);
    eventually("the connection to Redis is kept alive", PATIENCE, || async {
        let to = timers(redis.addr().port());
        (to == ["02"]).then_some(())
    })
    .await;
}

/// A server that lets a hub in and executes nothing for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_may_not_do_what_a_hub_asks_is_named() {
    let redis = Redis::start_with(&[]).await;
    let acl = async |rule: &str| {
        assert_eq!(redis.call(&format!("ACL SETUSER nc {rule}")).await.unwrap().trim(), "+OK");
    };
    acl("on >hunter2 ~nowconnect:* +@all").await;
    let url = redis.url().replace("redis://", "redis://nc:hunter2@");
    let target = Target::start().await;
    let plan = Plan { hubs: 1, redis_url: Some(url), ..Plan::default() };
    let cluster = plan.connector("t", target.addr).start().await;
    let log = cluster.hubs[0].running().log.clone();
    assert_eq!(said(&log, "registry_refused", ""), 0);
    acl("-@scripting").await;
    cluster.wait_status(0, "degraded").await;
    eventually("the hub says why", PATIENCE, || async {
        (said(&log, "registry_refused", "NOPERM") == 1).then_some(())
    })
    .await;
    assert_eq!(echo(cluster.listener(0, "t"), 1).await, Ok(()), "local clients are served");
    assert_eq!(said(&log, "registry_refused", ""), 1, "once for each reason");
    assert_eq!(log.count("hunter2"), 0, "no line holds the password");
    acl("+@scripting").await;
    cluster.wait_status(0, "ready").await;
}

/// The timers that run for TCP connections to a port of this machine, as the
/// kernel numbers them: 00 none, 01 unacknowledged data, 02 keepalive.
fn timers(port: u16) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let to = format!("0100007F:{port:04X}");
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let rows = table.lines().skip(1).map(fields).filter(|f| f[2] == to && f[3] == "01");
    rows.map(|f| f[5].split(':').next().unwrap().to_owned()).collect()
}

struct Scene {
    redis: Redis,
    cluster: Cluster,
    standing: Standing,
    _target: Target,
}

async fn scene(args: &[&str]) -> Scene {
    let redis = Redis::start_with(args).await;
    let target = Target::start().await;
    let plan = Plan { redis_url: Some(redis.url()), ..Plan::default() };
    let cluster = plan.connector("t", target.addr).start().await;
    let standing = Standing::open(&[cluster.listener(0, "t"), cluster.listener(1, "t")]).await;
    Scene { redis, cluster, standing, _target: target }
}

impl Scene {
    /// Both hubs are degraded, say `why`, and go on with what they can.
    async fn degraded(&mut self, why: &str) {
        for ix in [0, 1] {
            self.cluster.wait_status(ix, "degraded").await;
            let log = &self.cluster.hubs[ix].running().log;
            eventually(&format!("hub {ix} says {why}"), PATIENCE, || async {
                (said(log, "registry_dial_failed", why) >= 1).then_some(())
            })
            .await;
            let warned = said(log, "registry_dial_failed", why);
            assert_eq!(warned, 1, "once, and not at each dial");
            let body = self.cluster.get(ix, "/readyz").await.unwrap().body;
            assert!(body.contains("registry_unhealthy"), "{body}");
        }
        let down = [("reason", "REGISTRY_DOWN")];
        let refusals = async |cluster: &Cluster| {
            cluster.metrics(1).await.sum("nowconnect_open_failures_total", &down).unwrap_or(0.0)
        };
        let before = refusals(&self.cluster).await;
        for n in 0..5 {
            self.standing.ping().await;
            assert_eq!(echo(self.cluster.listener(0, "t"), n).await, Ok(()), "local");
            refusal(self.cluster.listener(1, "t")).await;
        }
        assert_eq!(refusals(&self.cluster).await - before, 5.0, "for want of the registry and nothing else");
    }
}

/// A failover gone half way: a replica that may not answer with old data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_its_master_is_named_and_left_when_it_is_one() {
    let mut s = scene(&["--replica-serve-stale-data", "no"]).await;
    for ix in [0, 1] {
        assert_eq!(said(&s.cluster.hubs[ix].running().log, "registry_disconnected", ""), 0);
    }
    let nobody = Port::reserve();
    assert_eq!(s.redis.call(&format!("REPLICAOF 127.0.0.1 {}", nobody.number())).await.unwrap().trim(), "+OK");
    assert!(s.redis.call("GET x").await.unwrap().starts_with("-MASTERDOWN"));
    s.degraded("the server answers MASTERDOWN").await;
    for ix in [0, 1] {
        let log = &s.cluster.hubs[ix].running().log;
        assert_eq!(said(log, "registry_disconnected", "MASTERDOWN"), 1, "the connection that stood was given up");
    }
    s.redis.call("REPLICAOF NO ONE").await.unwrap();
    recovered(s.cluster, s.standing, "a replica without master", Instant::now()).await;
}

/// A server that comes back with much to load answers, and is of no use yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loads_is_named_and_used_when_it_has() {
    // Slow enough to be seen at it, as long as the test wants, and with an answer
    // every kilobyte.
    let args = ["--enable-debug-command", "yes", "--key-load-delay", "1000"];
    let args = [&args[..], &["--loading-process-events-interval-bytes", "1024"]].concat();
    let mut s = scene(&args).await;
    assert_eq!(s.redis.call("DEBUG POPULATE 40000 filler 32").await.unwrap().trim(), "+OK");
    assert_eq!(s.redis.call("SAVE").await.unwrap().trim(), "+OK");
    let before = *epochs(&s.cluster.hubs[0].running().log).last().unwrap();
    s.redis.restart().await;
    assert!(s.redis.call("GET x").await.unwrap().starts_with("-LOADING"));
    s.degraded("the server answers LOADING").await;
    assert!(s.redis.call("GET x").await.unwrap().starts_with("-LOADING"), "it loads to the end of this");
    assert_eq!(s.redis.call("CONFIG SET key-load-delay 0").await.unwrap().trim(), "+OK");
    let began = Instant::now();
    let log = s.cluster.hubs[0].running().log.clone();
    recovered(s.cluster, s.standing, "a server that loads", began).await;
    assert!(epochs(&log).iter().skip(1).all(|later| *later > before));
}

/// Nobody was attached under its id before: the attachment is a hub's own until
/// the registry is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_nobody_knew_is_provisional_until_it_is_claimed() {
    let mut s = scene(&[]).await;
    let theirs = Target::start().await;
    s.redis.process.kill();
    for ix in [0, 1] {
        s.cluster.wait_status(ix, "degraded").await;
    }
    let gained = async |cluster: &Cluster, cause: &str| {
        let labels = [("change", "gained"), ("cause", cause)];
        cluster.metrics(0).await.sum("nowconnect_ownership_changes_total", &labels).unwrap_or(0.0)
    };
    assert_eq!(gained(&s.cluster, "provisional").await, 0.0);
    let (claims, reclaims) = (gained(&s.cluster, "claim").await, gained(&s.cluster, "reclaim").await);
    let _new = s.cluster.further_agent("plant-8", &[0], &[("t", theirs.addr.to_string())]);
    s.cluster.wait_metric(0, "nowconnect_tunnels", &[], 2.0).await;
    assert_eq!(gained(&s.cluster, "provisional").await, 1.0);
    assert_eq!(gained(&s.cluster, "claim").await, claims, "nothing was claimed");
    // It serves the clients of its hub; the one that was there goes.
    s.cluster.kill_agent();
    eventually("the new agent serves", PATIENCE, || async {
        let _ = echo(s.cluster.listener(0, "t"), 1).await;
        (theirs.accepted() >= 1).then_some(())
    })
    .await;

    s.redis.restart().await;
    eventually("it is claimed", PATIENCE, || async { (gained(&s.cluster, "reclaim").await > reclaims).then_some(()) })
        .await;
    assert_eq!(gained(&s.cluster, "provisional").await, 1.0);
    let lines = s.cluster.hubs[0].running().log.tail(usize::MAX);
    let own: Vec<&str> = lines.lines().filter(|l| l.contains("event=\"attached\"") && l.contains("plant-8")).collect();
    assert!(own.len() == 2 && own[0].contains("firm=false") && own[1].contains("firm=true"), "{own:?}");
    assert_rising(&own.iter().map(|l| epoch(l)).collect::<Vec<_>>());
    // Now hub B's clients find it, too.
    s.cluster.wait_status(1, "ready").await;
    s.cluster.wait_echo(1, "t").await;
}

fn epoch(line: &str) -> u64 {
    let (_, rest) = line.split_once("epoch=").unwrap();
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

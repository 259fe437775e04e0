//! Who owns an agent when hubs stop, die or share a name, with real processes
//! (O1, O4, O7, M6; attack 31, fault G1, X5).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; what was seen is for the reader")]

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use nowconnect_tests::actors::{Failure, Pinger, ask, read_to_end};
use nowconnect_tests::cluster::{Cluster, Plan};
use nowconnect_tests::ownership::{Standing, assert_rising, echo, epochs};
use nowconnect_tests::process::{Process, Signal, nowconnect};
use nowconnect_tests::proxy::Proxy;
use nowconnect_tests::stamps;
use nowconnect_tests::target::{End, Op, Target};
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};

/// Timers by which a lost owner is noticed soon.
const SHORT: &str = "resume_window: 1s\nliveness: { ping: 500ms, suspect: 1s, dead: 3s }\n";

fn short_plan() -> Plan {
    Plan { hub_extra: SHORT.to_owned(), agent_extra: SHORT.to_owned(), ..Plan::default() }
}

/// O7, O4, S6: the owner sleeps past its lease with OPENs and bytes on their way
/// to it. The target is asked, too: what was refused never got there, what was
/// served got there once, and no byte comes twice or out of turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_slept_past_its_lease_accepts_nothing_of_before() {
    let target = Target::start().await;
    // The link lives on, so that what waits in it is judged when the owner wakes.
    let hub_extra = "resume_window: 1s\nliveness: { ping: 500ms, suspect: 1s, dead: 15s }\n\
                     registry: { lease: 2s, renew_every: 500ms, op_timeout: 500ms }\nopen: { timeout: 3s }\n";
    let plan = Plan { attach: vec![0, 1], parallel: 1, hub_extra: hub_extra.to_owned(), ..short_plan() };
    let cluster = plan.connector("t", target.addr).start().await;
    // The owner is the hub with the tunnel.
    let owner = usize::from(cluster.metrics(0).await.sum("nowconnect_tunnels", &[]) != Some(1.0));
    let other = 1 - owner;
    let mut local = Pinger::open(cluster.listener(owner, "t"), 301).await.unwrap();
    let mut across = Pinger::open(cluster.listener(other, "t"), 302).await.unwrap();
    across.ping(1000).await.unwrap();
    local.ping(1000).await.unwrap();
    let rejected = cluster.metrics(owner).await.sum("nowconnect_owner_epoch_mismatch_total", &[]).unwrap_or(0.0);

    cluster.hubs[owner].running().signal(Signal::STOP);
    // Bytes of streams that are open.
    for pinger in [&mut local, &mut across] {
        pinger.push(20_000).await.unwrap();
    }
    // These OPENs wait in the owner's socket, under the epoch of now.
    let mut waiting = Vec::new();
    for n in 0..5 {
        waiting.push(ask(cluster.listener(other, "t"), Op::Echo, 100 + n, 0).await.unwrap());
    }
    // And these clients in its backlog.
    let mut backlog = Vec::new();
    for n in 0..3 {
        backlog.push(ask(cluster.listener(owner, "t"), Op::Echo, 200 + n, 0).await.unwrap());
    }
    // The agent gives its hub up and attaches elsewhere, under a higher epoch.
    cluster.wait_metric(other, "nowconnect_tunnels", &[], 1.0).await;
    cluster.wait_echo(other, "t").await;
    for mut socket in waiting {
        let outcome = bounded("the end of a stream that nobody answered", PATIENCE, read_to_end(&mut socket)).await;
        assert_eq!(outcome, Err(Failure::Reset), "an abort, never a clean end");
    }
    // Until then its session could go on, with its streams.
    cluster.agent.as_ref().unwrap().wait_line("session_lost", PATIENCE).await;
    cluster.hubs[owner].running().signal(Signal::CONT);

    // What was bound to the sleeper ends as an abort, or was over before.
    for (name, pinger) in [("local", local), ("across", across)] {
        let mut socket = pinger.into_socket();
        let outcome = bounded("the end of a stream over the sleeper", PATIENCE, read_to_end(&mut socket)).await;
        assert_eq!(outcome, Err(Failure::Reset), "{name}");
    }
    let mut served = 0;
    for (stream, socket) in (200..).zip(backlog) {
        // Served anew by way of the other hub, or refused; what it is, it is whole.
        let outcome =
            bounded("a client that waited", PATIENCE, async { Pinger::on(socket, stream).await?.close().await });
        match outcome.await {
            Ok(()) => {
                served += 1;
                assert_eq!(target.connections_of(stream), 1, "served once");
            }
            Err(Failure::Reset) => assert_eq!(target.connections_of(stream), 0, "refused"),
            Err(other) => panic!("stream {stream}: {other}"),
        }
    }
    println!("{served} of 3 clients in the sleeper's backlog were served, the others refused");
    eventually("the sleeper counts what it refused", PATIENCE, || async {
        let now = cluster.metrics(owner).await.sum("nowconnect_owner_epoch_mismatch_total", &[])?;
        (now >= rejected + 5.0).then_some(())
    })
    .await;
    for ix in [owner, other] {
        cluster.wait_status(ix, "ready").await;
        cluster.wait_echo(ix, "t").await;
        assert_eq!(cluster.metrics(ix).await.sum("nowconnect_protocol_errors_total", &[]).unwrap_or(0.0), 0.0);
    }
    let mut all = epochs(&cluster.agent.as_ref().unwrap().log);
    assert_rising(&all);
    all.dedup();
    assert!(all.len() >= 2, "attached at both in turn: {all:?}");
    // The sleeper is awake and has said whatever it had to say.
    for stream in 100..105 {
        assert_eq!(target.connections_of(stream), 0, "stream {stream} was refused");
    }
    for stream in [301, 302] {
        assert_eq!(target.connections_of(stream), 1, "stream {stream} was opened once");
        assert_eq!(target.end_of(stream).await, End::Reset, "stream {stream}: no wrong byte, no clean end");
    }
    eventually("every connection of the target was asked for", PATIENCE, || async {
        (target.unasked() == 0).then_some(())
    })
    .await;
}

/// Clients that open, echo and close all the time; how many went wrong.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    fn start(addr: SocketAddr) -> Self {
        let (stop, done, failed) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (s, d, f) = (Arc::clone(&stop), Arc::clone(&done), Arc::clone(&failed));
        let task = tokio::spawn(async move {
            for n in 0.. {
                if s.load(Ordering::Relaxed) {
                    return;
                }
                let total = if echo(addr, 10_000 + n).await.is_ok() { &d } else { &f };
                total.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, done, failed, task }
    }

    fn failures(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    async fn more(&self, n: u64) {
        let from = self.done.load(Ordering::Relaxed);
        eventually("more clients are served", LONG_PATIENCE, || async {
            (self.done.load(Ordering::Relaxed) >= from + n).then_some(())
        })
        .await;
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.failed.load(Ordering::Relaxed)
    }
}

/// M6 with attachments at both hubs: the survivor's clients notice nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_owner_costs_only_what_passed_it() {
    let target = Target::start().await;
    let mut cluster =
        Plan { attach: vec![0, 1], parallel: 2, ..short_plan() }.connector("t", target.addr).start().await;
    for ix in [0, 1] {
        cluster.wait_metric(ix, "nowconnect_tunnels", &[], 1.0).await;
    }
    let load = Load::start(cluster.listener(1, "t"));
    load.more(10).await;
    let mut lives = Standing::open(&[cluster.listener(1, "t"), cluster.listener(1, "t")]).await;
    let mut dies = Pinger::open(cluster.listener(0, "t"), 3).await.unwrap().into_socket();
    cluster.kill_hub(0);
    assert_eq!(bounded("its own client's end", PATIENCE, read_to_end(&mut dies)).await, Err(Failure::Reset));
    for _ in 0..10 {
        lives.ping().await;
    }
    load.more(20).await;
    assert_eq!(load.end().await, 0, "clients of the survivor");
    lives.close().await;
    cluster.start_hub(0);
    cluster.wait_ready().await;
    cluster.wait_echo(0, "t").await;
}

/// M6 with an attachment at the dead hub only: new streams come to the survivor,
/// and what did not pass the dead hub goes on: streams of another agent, which
/// is attached to the survivor alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_owner_is_replaced_by_the_hub_that_lives() {
    let target = Target::start().await;
    let plan = Plan { attach: vec![0, 1], parallel: 1, ..short_plan() };
    let mut cluster = plan.connector("t", target.addr).connector("u", target.addr).start().await;
    let owner = usize::from(cluster.metrics(0).await.sum("nowconnect_tunnels", &[]) != Some(1.0));
    let survivor = 1 - owner;
    let neighbour = cluster.further_agent("plant-8", &[survivor], &[("u", target.addr.to_string())]);
    cluster.wait_metric(survivor, "nowconnect_tunnels", &[], 1.0).await;
    cluster.wait_echo(survivor, "u").await;
    let crossing = async |cluster: &Cluster| {
        let over = [("listener", "u"), ("path", "mesh")];
        cluster.metrics(survivor).await.sum("nowconnect_streams_total", &over).unwrap_or(0.0)
    };
    let crossed = crossing(&cluster).await;
    let mut beside = Standing::open(&[cluster.listener(survivor, "u"); 8]).await;
    let beside_load = Load::start(cluster.listener(survivor, "u"));
    beside_load.more(10).await;
    let load = Load::start(cluster.listener(survivor, "t"));
    load.more(10).await;
    assert_eq!(load.failures(), 0);
    let across = Pinger::open(cluster.listener(survivor, "t"), 3).await.unwrap();
    cluster.kill_hub(owner);
    for _ in 0..20 {
        beside.ping().await;
    }
    cluster.wait_metric(survivor, "nowconnect_tunnels", &[], 2.0).await;
    load.more(20).await;
    let at_takeover = load.failures();
    load.more(20).await;
    assert_eq!(load.end().await, at_takeover, "none once the agent is attached");
    let mut socket = across.into_socket();
    let outcome = bounded("the end of what passed the dead hub", PATIENCE, read_to_end(&mut socket)).await;
    assert_eq!(outcome, Err(Failure::Reset), "an abort, never a clean end");
    beside_load.more(20).await;
    assert_eq!(beside_load.end().await, 0, "clients whose streams do not pass the dead hub");
    beside.ping().await;
    beside.close().await;
    assert_eq!(crossing(&cluster).await, crossed, "none of them crossed");
    assert!(neighbour.runs());
    assert_rising(&epochs(&cluster.agent.as_ref().unwrap().log));
    cluster.start_hub(owner);
    cluster.wait_ready().await;
}

/// Only this hub is cut off from Redis: its agents are found at another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_alone_without_redis_loses_no_agent() {
    let target = Target::start().await;
    let mut cluster =
        Plan { attach: vec![0, 1], parallel: 1, ..Plan::default() }.connector("t", target.addr).start().await;
    let owner = usize::from(cluster.metrics(0).await.sum("nowconnect_tunnels", &[]) != Some(1.0));
    let proxy = Proxy::start(cluster.redis.addr()).await;
    let file = cluster.hub_file(owner);
    let text = fs::read_to_string(&file).unwrap();
    let through = text.replace(&cluster.redis.url(), &format!("redis://{}/0", proxy.addr));
    assert_ne!(through, text);
    fs::write(&file, through).unwrap();
    cluster.kill_hub(owner);
    cluster.start_hub(owner);
    cluster.wait_ready().await;
    // Wherever it went meanwhile, it comes back to a hub of its own.
    let agent = eventually("the agent is attached", PATIENCE, || async {
        for ix in [0, 1] {
            if cluster.metrics(ix).await.sum("nowconnect_tunnels", &[]) == Some(1.0) {
                return Some(ix);
            }
        }
        None
    })
    .await;
    if agent != owner {
        // Send it to the hub that will be cut off.
        cluster.kill_hub(agent);
        cluster.wait_metric(owner, "nowconnect_tunnels", &[], 1.0).await;
        cluster.start_hub(agent);
        cluster.wait_ready().await;
    }
    let mut standing = Standing::open(&[cluster.listener(owner, "t"), cluster.listener(1 - owner, "t")]).await;
    proxy.stall();
    cluster.wait_status(owner, "degraded").await;
    cluster.wait_metric(1 - owner, "nowconnect_tunnels", &[], 1.0).await;
    for n in 0..10 {
        standing.ping().await;
        for ix in [0, 1] {
            assert_eq!(echo(cluster.listener(ix, "t"), n).await, Ok(()), "hub {ix}");
        }
    }
    proxy.heal();
    cluster.wait_status(owner, "ready").await;
    standing.close().await;
}

/// A file like another hub's, on ports of its own.
fn twin(cluster: &Cluster, ix: usize) -> std::path::PathBuf {
    let text = fs::read_to_string(cluster.hub_file(ix)).unwrap();
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut line = line.to_owned();
        if let Some((before, rest)) = line.split_once("bind: '127.0.0.1:") {
            let (_, after) = rest.split_once('\'').unwrap();
            line = format!("{before}bind: '127.0.0.1:0'{after}");
        }
        lines.push(line.replace(".sock", "-twin.sock"));
    }
    let file = cluster.dir().join("twin.yaml");
    fs::write(&file, lines.join("\n")).unwrap();
    file
}

/// X5: the newer of two hubs with one replica id holds the lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hubs_with_one_replica_id_are_told_apart() {
    let target = Target::start().await;
    let cluster = Plan::default().connector("t", target.addr).start().await;
    let mut standing = Standing::open(&[cluster.listener(0, "t")]).await;
    let mut command = nowconnect(["hub", "--config"]);
    command.arg(twin(&cluster, 0));
    let newer = Process::spawn("twin", command);
    cluster.wait_metric(0, "nowconnect_replica_id_conflicts_total", &[], 1.0).await;
    cluster.wait_status(0, "degraded").await;
    assert!(cluster.hubs[0].running().log.count("replica_id_twice") > 0);
    assert_eq!(newer.log.count("replica_id_twice"), 0, "the newer one holds the lease");
    standing.ping().await;
    assert_eq!(echo(cluster.listener(0, "t"), 1).await, Ok(()), "its own clients are served");
    // The newer one's link stays: the older one is told, and waits.
    let told = [("plane", "mesh"), ("cause", "DUPLICATE_ID")];
    cluster.wait_metric(1, "nowconnect_handshake_failures_total", &told, 1.0).await;
    drop(newer);
    cluster.wait_status(0, "ready").await;
    cluster.wait_echo(1, "t").await;
    standing.close().await;
}

/// G1: two live processes with one agent id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_with_one_id_end_with_one_that_stays() {
    let target = Target::start().await;
    let began = SystemTime::now();
    let plan = Plan { attach: vec![0, 1], parallel: 1, tunnel_proxy: true, ..Plan::default() };
    let cluster = plan.connector("t", target.addr).start().await;
    let mut text = fs::read_to_string(cluster.agent_file()).unwrap().replace("agent.sock", "second.sock");
    // Each has ways of its own to the hubs, on which its dials are seen.
    let mut its_ways = Vec::new();
    for (ix, first) in cluster.tunnel_proxies.iter().enumerate() {
        let way = Proxy::start(cluster.hubs[ix].http()).await;
        text = text.replace(&first.addr.to_string(), &way.addr.to_string());
        its_ways.push(way);
    }
    let file = cluster.dir().join("second.yaml");
    fs::write(&file, text).unwrap();
    let mut command = nowconnect(["agent", "--config"]);
    command.arg(file);
    let second = Process::spawn("second agent", command);
    let total = |name: &'static str| {
        let cluster = &cluster;
        async move {
            let mut sum = 0.0;
            for ix in [0, 1] {
                sum += cluster.metrics(ix).await.sum(name, &[]).unwrap_or(0.0);
            }
            sum
        }
    };
    eventually("the flap is noticed and somebody sent away", PATIENCE, || async {
        let noticed = total("nowconnect_duplicate_agents_total").await >= 1.0;
        (noticed && total("nowconnect_duplicate_agent_refusals_total").await >= 1.0).then_some(())
    })
    .await;
    let log = |needle| (0..2).map(|ix| cluster.hubs[ix].running().log.count(needle)).sum::<usize>();
    assert!(log("agent_id_twice") >= 1);
    // Each hub has a guard of its own, so that one may send away whom the other
    // keeps, until both have seen three turns. Nobody takes turns any more once
    // both have sent the same one away since the last turn, and clients are
    // served by the other one.
    let agents = [(cluster.agent.as_ref().unwrap(), &cluster.tunnel_proxies), (&second, &its_ways)];
    let refused_at = |agent: &Process, way: &Proxy| {
        let (lines, url) = (agent.log.tail(usize::MAX), format!("{}/tunnel", way.addr));
        let of_way = lines.lines().filter(|l| l.contains("cause=\"DUPLICATE_ID\"") && l.contains(&url));
        of_way.map(|l| stamps::since(began, l)).collect::<Vec<_>>()
    };
    let claims = eventually("both hubs keep the same one", PATIENCE, || async {
        let logs = (0..2).map(|ix| cluster.hubs[ix].running().log.tail(usize::MAX)).collect::<String>();
        let turns: Vec<_> = logs.lines().filter(|l| l.contains("takeover=true")).collect();
        let last = turns.iter().map(|l| stamps::since(began, l)).max()?;
        let since = |(agent, ways): &(&Process, &Vec<Proxy>)| {
            ways.iter().all(|way| refused_at(agent, way).last().is_some_and(|at| *at > last))
        };
        agents.iter().any(since).then_some(turns.len())
    })
    .await;
    let ix = 0;
    cluster.wait_echo(ix, "t").await;
    for n in 0..20 {
        assert_eq!(echo(cluster.listener(ix, "t"), n).await, Ok(()));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(log("takeover=true"), claims, "the incumbent stays");
    assert!(second.runs());
    // Who was sent away stays away for as long as it was told, and comes back.
    let told = (0..2).find_map(|ix| cluster.hubs[ix].running().log.find("event=\"agent_id_refused\"")).unwrap();
    let (_, told) = told.split_once("retry_after_ms=").unwrap();
    let told: u64 = told.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap();
    assert_eq!(told, 10_000, "liveness.dead: by then it can be known whether the incumbent is gone");
    let mut refusals = Vec::new();
    for (agent, ways) in agents {
        for way in ways {
            refusals.extend(refused_at(agent, way).first().map(|at| (way, *at)));
        }
    }
    let back = |(way, refused): &(&Proxy, Duration)| {
        let dials = way.accepts().into_iter().filter_map(|at| at.duration_since(began).ok());
        dials.filter(|at| at > refused).map(|at| at - *refused).min()
    };
    eventually("one that was sent away comes back", PATIENCE, || async { refusals.iter().find_map(back) }).await;
    for after in refusals.iter().filter_map(back) {
        println!("refused for {told} ms, back {after:?} later");
        // Without a wish of the hub's it would be a second and a third at most.
        assert!(after > Duration::from_secs(5), "back {after:?} later");
    }
}

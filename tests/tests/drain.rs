//! Hubs and agents that leave, with real processes: nothing is reset before the
//! deadline, no new client is refused, agents are attached elsewhere first
//! (L10); by signal and by the operator's command; taken back (X3).

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ldap3::LdapConnAsync;
use nowconnect_tests::actors::{Failure, Pinger, Transfer, read_to_end};
use nowconnect_tests::balancer::Balancer;
use nowconnect_tests::cluster::{Cluster, Plan, hub_name};
use nowconnect_tests::http;
use nowconnect_tests::process::{Finished, Signal, nowconnect, run};
use nowconnect_tests::slapd::{ADMIN, PASSWORD, Slapd};
use nowconnect_tests::target::Target;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};
use serde_json::Value;
use tokio::task::JoinSet;

fn drain_keys(lameduck: &str, timeout: &str) -> String {
    format!("drain: {{ lameduck: {lameduck}, timeout: {timeout} }}\n")
}

fn socket(cluster: &Cluster, process: &str) -> PathBuf {
    cluster.dir().join(format!("{process}.sock"))
}

/// `/status` of a hub or the agent; `None` when it is gone.
async fn status(cluster: &Cluster, process: &str) -> Option<Value> {
    let answer = http::get_unix(&socket(cluster, process), "/status").await.ok()?;
    serde_json::from_str(&answer.body).ok()
}

async fn command(cluster: &Cluster, process: &str, args: &[&str]) -> Finished {
    let mut command = nowconnect(args);
    command.arg("--socket").arg(socket(cluster, process));
    bounded("the command", LONG_PATIENCE, run(command)).await
}

/// An agent that prefers hub 0 with one tunnel, and knows hub 1.
async fn one_tunnel(target: &Target, drain: String) -> Cluster {
    let plan = Plan { attach: vec![0, 1], hub_extra: drain, ..Plan::default() };
    plan.connector("t", target.addr).start().await
}

fn tunnels(status: &Value) -> usize {
    status["tunnels"].as_array().map_or(0, Vec::len)
}

/// New clients of both hubs are served all the time: of the one that leaves
/// until it closes, though its agent has another tunnel by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_attached_elsewhere_before_their_hub_closes() {
    let target = Target::start().await;
    // Long enough for a few rounds and the other tunnel on a machine that has much to do.
    let mut cluster = one_tunnel(&target, drain_keys("15s", "60s")).await;
    assert_eq!(tunnels(&status(&cluster, "hub-a").await.unwrap()), 1);
    let mut open = Pinger::open(cluster.listener(0, "t"), 1).await.unwrap();
    cluster.hubs[0].running().signal(Signal::TERM);
    let (mut served, mut elsewhere) = ([0, 0], false);
    loop {
        let before = status(&cluster, "hub-a").await.unwrap();
        for (ix, served) in served.iter_mut().enumerate() {
            let outcome = Transfer::Echo.run(cluster.listener(ix, "t"), 2, 1000).await;
            let now = status(&cluster, "hub-a").await.unwrap();
            if ix == 1 || now["drain"]["phase"] != "closed" {
                assert_eq!(outcome, Ok(()), "a client of {}", hub_name(ix));
                *served += 1;
            }
            elsewhere |= now["drain"]["agents"]["elsewhere"] == 1;
        }
        open.ping(100).await.unwrap();
        if before["drain"]["phase"] == "closed" {
            break;
        }
    }
    assert!(served.into_iter().min().unwrap() > 3, "{served:?}");
    assert!(elsewhere, "hub A knew that its agent was at hub B as well");
    assert_eq!(tunnels(&status(&cluster, "hub-b").await.unwrap()), 1);
    let refused = Transfer::Echo.run(cluster.listener(0, "t"), 3, 10).await;
    assert!(matches!(refused, Err(Failure::Io(_) | Failure::Reset)), "{refused:?}");
    // What was open goes on, and its end is the hub's end.
    open.ping(1000).await.unwrap();
    open.close().await.unwrap();
    let code = cluster.hubs[0].process.as_mut().unwrap().wait_exit(LONG_PATIENCE).await.code();
    assert_eq!(code, Some(0));
    assert_eq!(Transfer::Echo.run(cluster.listener(1, "t"), 4, 10_000).await, Ok(()));
}

/// A hub under load leaves behind HAProxy: no new connection fails, no open one
/// before the deadline, and what is left then is reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_nothing_is_reset_before_the_deadline_and_no_new_client_fails() {
    let target = Target::start().await;
    // Busy is who moves a byte in the last quarter, also on a machine that has much to do.
    let plan = Plan { attach: vec![0, 1], parallel: 2, hub_extra: drain_keys("5s", "16s"), ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    for ix in [0, 1] {
        cluster.wait_metric(ix, "nowconnect_tunnels", &[], 1.0).await;
    }
    let balancer = Balancer::start(&cluster, "t").await;
    // Streams that outlast the deadline, idle and busy, of hub A's own clients.
    let mut held = Vec::new();
    for n in 0..12 {
        held.push(Pinger::open(cluster.listener(0, "t"), 100 + n).await.unwrap());
    }
    let at = socket(&cluster, "hub-a");
    let mut left = JoinSet::new();
    for (n, mut pinger) in held.into_iter().enumerate() {
        let at = at.clone();
        left.spawn(async move {
            let ended = if n % 2 == 0 {
                loop {
                    if let Err(e) = pinger.ping(100).await {
                        break e;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            } else {
                read_to_end(&mut pinger.into_socket()).await.expect_err("an abort, never an end")
            };
            assert_eq!(ended, Failure::Reset);
            // Gone, or past its deadline: it was not before.
            let answer = http::get_unix(&at, "/status").await.map(|a| a.body).unwrap_or_default();
            let status: Value = serde_json::from_str(&answer).unwrap_or_default();
            let early = status["drain"]["resets_in_ms"].as_u64().is_some_and(|ms| ms > 0);
            assert!(!early, "reset before the deadline: {}", status["drain"]);
        });
    }
    let stop = Arc::new(AtomicBool::new(false));
    let carried = Arc::new(AtomicU64::new(0));
    let mut load = JoinSet::new();
    for client in 0..4 {
        let (addr, stop, carried) = (balancer.addr(), Arc::clone(&stop), Arc::clone(&carried));
        load.spawn(async move {
            let mut n = client * 1_000_000;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                assert_eq!(Transfer::Echo.run(addr, n, 2000).await, Ok(()), "client {n}");
                carried.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let both_get_some = async || {
        for ix in [0, 1] {
            cluster.wait_metric(ix, "nowconnect_streams_total", &[], 20.0).await;
        }
    };
    both_get_some().await;
    cluster.hubs[0].running().signal(Signal::TERM);
    let code = cluster.hubs[0].process.as_mut().unwrap().wait_exit(LONG_PATIENCE).await.code();
    assert_eq!(code, Some(0));
    let before = carried.load(Ordering::Relaxed);
    eventually("the load goes on at hub B", PATIENCE, || async {
        (carried.load(Ordering::Relaxed) > before + 20).then_some(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    while let Some(done) = load.join_next().await {
        done.unwrap();
    }
    while let Some(done) = left.join_next().await {
        done.unwrap();
    }
    let line = cluster.hubs[0].running().wait_line("drain_deadline", PATIENCE).await;
    assert!(line.contains("quiet=6") && line.contains("busy=6"), "{line}");
}

async fn bind_once(addr: SocketAddr) -> Result<(), ldap3::LdapError> {
    let (conn, mut ldap) = LdapConnAsync::new(&format!("ldap://{addr}")).await?;
    let driving = tokio::spawn(conn.drive());
    ldap.simple_bind(ADMIN, PASSWORD).await?.success()?;
    ldap.unbind().await?;
    let _ = driving.await;
    Ok(())
}

/// Issue 4: each hub in turn is drained by SIGTERM, waited for, started again
/// and waited for, under a steady stream of short binds: none fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_both_hubs_costs_no_bind() {
    let slapd = Slapd::start().await;
    let plan = Plan { attach: vec![0, 1], parallel: 2, hub_extra: drain_keys("5s", "30s"), ..Plan::default() };
    let mut cluster = plan.connector("ldap", slapd.addr()).start().await;
    let balancer = Balancer::start(&cluster, "ldap").await;
    let stop = Arc::new(AtomicBool::new(false));
    let bound = Arc::new(AtomicU64::new(0));
    let mut load = JoinSet::new();
    for _ in 0..4 {
        let (addr, stop, bound) = (balancer.addr(), Arc::clone(&stop), Arc::clone(&bound));
        load.spawn(async move {
            let mut failed = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match bounded("a bind", LONG_PATIENCE, bind_once(addr)).await {
                    Ok(()) => drop(bound.fetch_add(1, Ordering::Relaxed)),
                    Err(e) => failed.push(e.to_string()),
                }
            }
            failed
        });
    }
    // A hub is back when its agent is, and the balancer gives it clients.
    for ix in [0, 1] {
        cluster.wait_metric(ix, "nowconnect_tunnels", &[], 1.0).await;
        cluster.wait_metric(ix, "nowconnect_streams_total", &[], 5.0).await;
    }
    for ix in [0, 1] {
        let before = bound.load(Ordering::Relaxed);
        cluster.hubs[ix].running().signal(Signal::TERM);
        let code = cluster.hubs[ix].process.as_mut().unwrap().wait_exit(LONG_PATIENCE).await.code();
        assert_eq!(code, Some(0), "{}", hub_name(ix));
        cluster.start_hub(ix);
        cluster.wait_ready().await;
        cluster.wait_metric(ix, "nowconnect_tunnels", &[], 1.0).await;
        cluster.wait_metric(ix, "nowconnect_streams_total", &[], 5.0).await;
        let during = bound.load(Ordering::Relaxed) - before;
        assert!(during > 20, "{}: {during} binds", hub_name(ix));
    }
    stop.store(true, Ordering::Relaxed);
    let mut failed = Vec::new();
    while let Some(more) = load.join_next().await {
        failed.extend(more.unwrap());
    }
    assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), bound.load(Ordering::Relaxed));
}

/// `nowconnect drain`: asked for, watched, taken back, carried through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_drains_a_hub_takes_it_back_and_drains_it_again() {
    let target = Target::start().await;
    let mut cluster = one_tunnel(&target, drain_keys("300s", "300s")).await;
    let idle = command(&cluster, "hub-a", &["drain", "--cancel"]).await;
    assert_eq!(idle.status.code(), Some(1));
    assert!(idle.stderr.contains("does not drain"), "{}", idle.stderr);

    let asked = command(&cluster, "hub-a", &["drain", "--no-wait"]).await;
    assert_eq!(asked.status.code(), Some(0), "{}", asked.stderr);
    // Half of 300 s for one agent: told at once.
    eventually("the agent is attached elsewhere, and hub A knows", PATIENCE, || async {
        let status = status(&cluster, "hub-a").await?;
        let agents = &status["drain"]["agents"];
        let there = agents["attached"] == 1 && agents["told"] == 1 && agents["elsewhere"] == 1;
        (there && status["status"] == "draining" && status["drain"]["phase"] == "lameduck").then_some(())
    })
    .await;
    let table = command(&cluster, "hub-a", &["status"]).await.stdout;
    assert!(table.contains("\ndrain    lame duck"), "{table}");
    assert_eq!(cluster.get(0, "/readyz").await.unwrap().status, 503);
    assert_eq!(cluster.get(0, "/readyz/t").await.unwrap().status, 503);
    assert_eq!(Transfer::Echo.run(cluster.listener(0, "t"), 1, 1000).await, Ok(()), "it serves all the same");
    let late = command(&cluster, "hub-a", &["drain", "--timeout", "1s"]).await;
    assert_eq!(late.status.code(), Some(1));
    assert!(late.stderr.contains("--timeout") && late.stdout.contains("1 attached elsewhere"), "{late:?}");

    let back = command(&cluster, "hub-a", &["drain", "--cancel"]).await;
    assert_eq!((back.status.code(), back.stdout.trim()), (Some(0), "the process stays"));
    cluster.wait_ready().await;
    assert_eq!(status(&cluster, "hub-a").await.unwrap()["drain"], Value::Null);
    for ix in [0, 1] {
        assert_eq!(Transfer::Echo.run(cluster.listener(ix, "t"), 2, 1000).await, Ok(()));
    }

    // The times are those in force: a reload changes them.
    let file = cluster.hub_file(0);
    let text = fs::read_to_string(&file).unwrap().replace("lameduck: 300s", "lameduck: 1s");
    fs::write(&file, text).unwrap();
    assert_eq!(command(&cluster, "hub-a", &["reload"]).await.status.code(), Some(0));
    let open = Pinger::open(cluster.listener(0, "t"), 3).await.unwrap();
    let at = socket(&cluster, "hub-a");
    let waits = tokio::spawn(async move {
        let mut command = nowconnect(["drain", "--socket"]);
        command.arg(at);
        run(command).await
    });
    eventually("the hub has closed", PATIENCE, || async {
        (status(&cluster, "hub-a").await?["drain"]["phase"] == "closed").then_some(())
    })
    .await;
    let late = command(&cluster, "hub-a", &["drain", "--cancel"]).await;
    assert_eq!(late.status.code(), Some(1));
    assert!(late.stderr.contains("too late"), "{}", late.stderr);
    let refused = command(&cluster, "hub-a", &["reload"]).await;
    assert!(refused.stderr.contains("the hub is leaving"), "{}", refused.stderr);
    open.close().await.unwrap();
    let done = bounded("the end of the drain", LONG_PATIENCE, waits).await.unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
    assert!(done.stdout.trim_end().ends_with("stopped"), "{}", done.stdout);
    let code = cluster.hubs[0].process.as_mut().unwrap().wait_exit(LONG_PATIENCE).await.code();
    assert_eq!(code, Some(0));
    let log = &cluster.hubs[0].running().log;
    for event in ["event=\"draining\"", "event=\"drain_cancelled\"", "event=\"drain_closed\"", "event=\"stopped\""] {
        assert!(log.count(event) > 0, "{event}");
    }
    let nobody = command(&cluster, "hub-a", &["drain"]).await;
    assert_eq!(nobody.status.code(), Some(1), "{}", nobody.stdout);
}

/// SIGTERM after the operator's drain goes on with that one; the next ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_joins_the_operators_drain_and_the_next_one_ends_it() {
    let target = Target::start().await;
    let mut cluster = one_tunnel(&target, drain_keys("300s", "300s")).await;
    let mut open = Pinger::open(cluster.listener(0, "t"), 1).await.unwrap();
    assert_eq!(command(&cluster, "hub-a", &["drain", "--no-wait"]).await.status.code(), Some(0));
    cluster.hubs[0].running().signal(Signal::TERM);
    // A signal that is handled later than this request would end the stream.
    for _ in 0..10 {
        open.ping(100).await.unwrap();
        assert_eq!(status(&cluster, "hub-a").await.unwrap()["drain"]["phase"], "lameduck");
    }
    cluster.hubs[0].running().signal(Signal::TERM);
    cluster.hubs[0].process.as_mut().unwrap().wait_exit(PATIENCE).await;
    assert_eq!(read_to_end(&mut open.into_socket()).await, Err(Failure::Reset));
}

/// An agent leaves: hubs open nothing more there, what is open ends by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_drains_an_agent() {
    let target = Target::start().await;
    let mut cluster = one_tunnel(&target, String::new()).await;
    let mut open = Pinger::open(cluster.listener(1, "t"), 1).await.unwrap();
    assert_eq!(command(&cluster, "agent", &["drain", "--no-wait"]).await.status.code(), Some(0));
    for ix in [0, 1] {
        eventually("no hub has a candidate", PATIENCE, || async {
            cluster.get(ix, "/readyz/t").await.ok().filter(|a| a.status == 503)
        })
        .await;
    }
    let shown = status(&cluster, "agent").await.unwrap();
    assert_eq!((&shown["drain"]["phase"], &shown["drain"]["streams"]), (&"closed".into(), &1.into()));
    let back = command(&cluster, "agent", &["drain", "--cancel"]).await;
    assert_eq!(back.status.code(), Some(1));
    open.ping(1000).await.unwrap();
    open.close().await.unwrap();
    assert_eq!(cluster.agent.as_mut().unwrap().wait_exit(LONG_PATIENCE).await.code(), Some(0));
}

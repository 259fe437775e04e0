//! What balancers and operators are told (semantics 10, L6): `/readyz` follows
//! its causes in both directions, a listener without candidates stops listening
//! and returns, each stream leaves its records, failure lines are limited and
//! none is lost from the count.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::ErrorKind;

use nowconnect_tests::actors::{Pinger, Transfer, read_to_end, refused};
use nowconnect_tests::cluster::{AGENT, Cluster, Plan, hub_name};
use nowconnect_tests::ports::Port;
use nowconnect_tests::process::{Log, Signal};
use nowconnect_tests::proxy::Cut;
use nowconnect_tests::target::Target;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};
use serde_json::Value;
use tokio::net::TcpStream;

/// `/readyz` of a hub: HTTP status and body.
async fn readyz(cluster: &Cluster, ix: usize, path: &str) -> Option<(u16, Value)> {
    let answer = cluster.get(ix, path).await.ok()?;
    Some((answer.status, serde_json::from_str(&answer.body).ok()?))
}

fn has(body: &Value, reason: &str) -> bool {
    body["reasons"].as_array().unwrap().iter().any(|r| r == reason)
}

/// Waits until hub `ix` says `status` for exactly `reasons`.
async fn wait_status(cluster: &Cluster, ix: usize, status: &str, reasons: &[&str]) -> (u16, Value) {
    eventually(&format!("{} is {status} for {reasons:?}", hub_name(ix)), LONG_PATIENCE, || async {
        let (code, body) = readyz(cluster, ix, "/readyz").await?;
        (body["status"] == status && body["reasons"] == serde_json::json!(reasons)).then_some((code, body))
    })
    .await
}

/// L6: mesh and registry, both directions, with the grace of a link that was
/// there; `?strict` and `http.degraded_status`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_follows_the_mesh_and_the_registry() {
    let target = Target::start().await;
    let mut cluster = Plan { mesh_proxy: true, ..Plan::default() }.connector("t", target.addr).start().await;
    let file = cluster.hub_file(1);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("http: { bind", "http: { degraded_status: 503, bind")).unwrap();
    cluster.kill_hub(1);
    cluster.start_hub(1);
    cluster.wait_ready().await;
    let (code, body) = wait_status(&cluster, 0, "ready", &[]).await;
    assert_eq!(code, 200);
    assert_eq!((&body["mode"], &body["mesh"]["status"]), (&"active".into(), &"healthy".into()));
    let link = &body["mesh"]["links"][0];
    assert_eq!((&link["peer"], &link["state"]), (&"hub-b".into(), &"established".into()), "{body}");
    assert_eq!((&link["configured"], &link["down_seconds"]), (&true.into(), &Value::Null), "{body}");
    assert_eq!(body["registry"]["status"], "healthy");
    assert!(body["registry"]["lease_age_seconds"].as_f64().is_some_and(|s| s < 10.0), "{body}");
    assert_eq!(body["listeners"]["t"], serde_json::json!({ "status": "ready", "listening": true }));

    for hub in &cluster.hubs {
        let proxy = hub.mesh_proxy.as_ref().unwrap();
        proxy.refuse();
        proxy.cut(Cut::Rst);
    }
    // Every answer on the way holds the rule: missed for 3 s and not earlier.
    let (code, body) = eventually("hub A misses the link", LONG_PATIENCE, || async {
        let (code, body) = readyz(&cluster, 0, "/readyz").await?;
        let link = &body["mesh"]["links"][0];
        let down = link["down_seconds"].as_f64().unwrap_or(0.0);
        let missed = link["state"] != "established" && down >= 3.0;
        assert_eq!(has(&body, "mesh_link_down"), missed, "{body}");
        missed.then_some((code, body))
    })
    .await;
    assert_eq!((code, &body["status"], &body["mesh"]["status"]), (200, &"degraded".into(), &"unhealthy".into()));
    assert_eq!(readyz(&cluster, 0, "/readyz?strict").await.unwrap().0, 503);
    let (code, _) = wait_status(&cluster, 1, "degraded", &["mesh_link_down"]).await;
    assert_eq!(code, 503, "http.degraded_status");
    // The hub with the tunnel serves; the other one cannot.
    assert_eq!(readyz(&cluster, 0, "/readyz/t").await.unwrap().0, 200);
    let (code, body) = readyz(&cluster, 1, "/readyz/t").await.unwrap();
    assert_eq!((code, &body["reason"], &body["listener"]), (503, &"no_candidate".into(), &"t".into()));
    assert_eq!(Transfer::Echo.run(cluster.listener(0, "t"), 1, 10_000).await, Ok(()));
    for hub in &cluster.hubs {
        hub.mesh_proxy.as_ref().unwrap().heal();
    }
    for ix in [0, 1] {
        wait_status(&cluster, ix, "ready", &[]).await;
    }

    cluster.redis.process.signal(Signal::STOP);
    for ix in [0, 1] {
        let (_, body) = wait_status(&cluster, ix, "degraded", &["registry_unhealthy"]).await;
        assert_eq!(body["registry"]["status"], "unhealthy");
        assert_eq!(cluster.get(ix, "/healthz").await.unwrap().status, 200);
    }
    cluster.redis.process.signal(Signal::CONT);
    for ix in [0, 1] {
        wait_status(&cluster, ix, "ready", &[]).await;
    }
    cluster.assert_alive();
}

/// A peer counts while it may live: one that stopped in an orderly way is missed
/// by nobody, one that was killed until its lease is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_missed_while_it_holds_a_lease() {
    let target = Target::start().await;
    let plan = Plan { hub_extra: "drain: { lameduck: 0s, timeout: 1s }\n".to_owned(), ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let lease = |body: &Value| body["mesh"]["links"][0]["lease"].clone();
    let (_, body) = wait_status(&cluster, 0, "ready", &[]).await;
    assert_eq!(lease(&body), Value::Null, "nobody asks for the lease of a peer with a link: {body}");
    let absent = [("peer", "hub-b")];
    cluster.wait_metric(0, "nowconnect_mesh_peer_absent", &absent, 0.0).await;

    cluster.hubs[1].running().signal(Signal::TERM);
    cluster.hubs[1].process.as_mut().unwrap().wait_exit(LONG_PATIENCE).await;
    let exists = "EXISTS nowconnect:tests:hub:hub-b";
    assert_eq!(cluster.redis.call(exists).await.unwrap(), ":0\r\n", "it gave its lease back before it ended");
    cluster.kill_hub(1);
    // Past the grace for the link, it is ready for as long as the registry says so.
    eventually("hub B is known to be gone, for longer than the grace", LONG_PATIENCE, || async {
        let (code, body) = readyz(&cluster, 0, "/readyz").await?;
        let link = &body["mesh"]["links"][0];
        let gone = lease(&body) == "none" && link["down_seconds"].as_f64().is_some_and(|s| s > 3.5);
        assert_eq!(has(&body, "mesh_link_down"), link["down_seconds"].as_f64() >= Some(3.0) && lease(&body) != "none");
        (gone && code == 200 && body["status"] == "ready" && body["mesh"]["status"] == "healthy").then_some(())
    })
    .await;
    cluster.wait_metric(0, "nowconnect_mesh_peer_absent", &absent, 1.0).await;
    cluster.start_hub(1);
    eventually("the link is back", LONG_PATIENCE, || async {
        let (_, body) = readyz(&cluster, 0, "/readyz").await?;
        (body["mesh"]["links"][0]["state"] == "established" && body["status"] == "ready").then_some(())
    })
    .await;

    cluster.kill_hub(1);
    let (_, body) = wait_status(&cluster, 0, "degraded", &["mesh_link_down"]).await;
    assert_eq!(lease(&body), "live", "{body}");
    assert_eq!(cluster.metrics(0).await.sum("nowconnect_mesh_peer_absent", &absent), Some(0.0));
    eventually("its lease is over and hub A ready", LONG_PATIENCE, || async {
        let (_, body) = readyz(&cluster, 0, "/readyz").await?;
        if body["status"] != "ready" {
            assert!(lease(&body) != "none", "{body}");
            return None;
        }
        assert_eq!((lease(&body), cluster.redis.call(exists).await.unwrap()), ("none".into(), ":0\r\n".to_owned()));
        Some(())
    })
    .await;
    cluster.assert_alive();
}

/// `/readyz/LISTENER` is about this moment: full is not ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_listener_is_not_ready() {
    let target = Target::start().await;
    let mut cluster = Plan::default().connector("t", target.addr).start().await;
    let file = cluster.hub_file(0);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("connector: t,", "connector: t, max_connections: 2,")).unwrap();
    cluster.kill_hub(0);
    cluster.start_hub(0);
    cluster.wait_ready().await;
    let one = Pinger::open(cluster.listener(0, "t"), 1).await.unwrap();
    assert_eq!(readyz(&cluster, 0, "/readyz/t").await.unwrap().0, 200);
    let two = Pinger::open(cluster.listener(0, "t"), 2).await.unwrap();
    let (code, body) = readyz(&cluster, 0, "/readyz/t").await.unwrap();
    assert_eq!((code, &body["reason"]), (503, &"full".into()));
    one.close().await.unwrap();
    eventually("room again", PATIENCE, || async { (readyz(&cluster, 0, "/readyz/t").await?.0 == 200).then_some(()) })
        .await;
    two.close().await.unwrap();
    cluster.assert_alive();
}

async fn wait_refused(cluster: &Cluster, ix: usize) {
    eventually(&format!("a connect to {} fails", hub_name(ix)), LONG_PATIENCE, || async {
        match TcpStream::connect(cluster.listener(ix, "t")).await {
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => Some(()),
            _ => None,
        }
    })
    .await;
    let listening = cluster.metrics(ix).await.sum("nowconnect_listener_listening", &[("listener", "t")]);
    assert_eq!(listening, Some(0.0));
}

/// `when_unavailable: refuse`: connects fail while nothing serves, clients that
/// are connected go on, and the first candidate brings the listener back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_without_candidates_refuses_and_returns() {
    let target = Target::start().await;
    let plan = Plan { when_unavailable: "refuse", tunnel_proxy: true, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    // An agent that took its time has made it close and return already. Once the
    // record of a stream that came after that is in the log, those lines are too.
    cluster.wait_metric(0, "nowconnect_listener_listening", &[("listener", "t")], 1.0).await;
    let log = cluster.hubs[0].running().log.clone();
    let count = || (log.count("listener_closed"), log.count("listener_reopened"));
    let first = bounded("a client", LONG_PATIENCE, Pinger::open(cluster.listener(0, "t"), 4)).await.unwrap();
    let from = first.local_addr().to_string();
    first.close().await.unwrap();
    cluster.hubs[0].running().wait_line(&from, PATIENCE).await;
    let before = count();
    let mut client = Pinger::open(cluster.listener(0, "t"), 1).await.unwrap();
    // The tunnel is away: nobody new, but the stream waits for its session.
    cluster.tunnel_proxies[0].refuse();
    cluster.tunnel_proxies[0].cut(Cut::Rst);
    wait_refused(&cluster, 0).await;
    let (code, body) = readyz(&cluster, 0, "/readyz/t").await.unwrap();
    assert_eq!((code, &body["listening"], &body["reason"]), (503, &false.into(), &"no_candidate".into()));
    cluster.tunnel_proxies[0].heal();
    cluster.wait_open(0, "t").await;
    bounded("the client that was connected", LONG_PATIENCE, client.ping(1000)).await.unwrap();
    cluster.wait_metric(0, "nowconnect_listener_listening", &[("listener", "t")], 1.0).await;
    assert_eq!(Transfer::Echo.run(cluster.listener(0, "t"), 2, 10_000).await, Ok(()));
    client.close().await.unwrap();

    // The agent is gone: no hub takes clients, and all do when it is back.
    cluster.kill_agent();
    for ix in [0, 1] {
        wait_refused(&cluster, ix).await;
    }
    cluster.start_agent();
    for ix in [0, 1] {
        cluster.wait_open(ix, "t").await;
        cluster.wait_metric(ix, "nowconnect_listener_listening", &[("listener", "t")], 1.0).await;
        assert_eq!(Transfer::Echo.run(cluster.listener(ix, "t"), 3, 10_000).await, Ok(()));
    }
    eventually("it closed and returned twice", PATIENCE, || async {
        (count() == (before.0 + 2, before.1 + 2)).then_some(())
    })
    .await;
    cluster.assert_alive();
}

/// Fields of the lines in a log with target `stream` that hold `needle`.
fn records(log: &Log, needle: &str) -> Vec<Value> {
    let text = log.tail(usize::MAX);
    let lines = text.lines().filter(|l| l.contains(needle));
    let json = lines.filter_map(|l| serde_json::from_str::<Value>(l).ok());
    json.filter(|v| v["target"] == "stream").map(|v| v["fields"].clone()).collect()
}

async fn record(log: &Log, needle: &str) -> Value {
    eventually(&format!("a record with {needle}"), PATIENCE, || async { records(log, needle).pop() }).await
}

/// Every field of both records of a stream, and of one that failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_stream_leaves_its_records() {
    let target = Target::start().await;
    let closed = Port::reserve();
    let plan = Plan { log_json: true, mesh_proxy: true, ..Plan::default() };
    let plan = plan.connector("t", target.addr).connector("closed", closed.addr);
    let mut cluster = plan.start().await;
    let mut client = Pinger::open(cluster.listener(1, "t"), 7).await.unwrap();
    client.ping(1000).await.unwrap();
    for hub in &cluster.hubs {
        hub.mesh_proxy.as_ref().unwrap().cut(Cut::Rst);
    }
    bounded("an echo after the cut", LONG_PATIENCE, client.ping(1000)).await.unwrap();
    let from = client.local_addr().to_string();
    client.close().await.unwrap();
    let hub = record(&cluster.hubs[1].running().log, &from).await;
    let cid = hub["cid"].as_str().unwrap().to_owned();
    for (field, value) in [
        ("listener", "t"),
        ("client", from.as_str()),
        ("origin", "hub-b"),
        ("owner", "hub-a"),
        ("agent", AGENT),
        ("connector", "t"),
        ("path", "mesh"),
        ("cause", "FINISHED"),
    ] {
        assert_eq!(hub[field], value, "{field} in {hub}");
    }
    assert_eq!(hub["epoch"], hub["epochs"], "one attempt: {hub}");
    assert!(hub["epoch"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    let times: Vec<f64> = ["route_ms", "open_ms", "first_byte_ms", "total_ms"].map(|t| hub[t].as_f64().unwrap()).into();
    assert!(times.is_sorted(), "{hub}");
    assert!(hub["bytes_up"].as_u64().unwrap() > 2000 && hub["bytes_down"].as_u64().unwrap() >= 2000, "{hub}");
    assert!(hub["suspensions"].as_u64().unwrap() >= 1, "{hub}");
    assert!(["client", "agent"].contains(&hub["by"].as_str().unwrap()), "{hub}");

    let agent = record(&cluster.agent.as_ref().unwrap().log, &cid).await;
    for (field, value) in [
        ("agent", AGENT),
        ("owner", "hub-a"),
        ("connector", "t"),
        ("target", &target.addr.to_string()),
        ("cause", "FINISHED"),
    ] {
        assert_eq!(agent[field], value, "{field} in {agent}");
    }
    for field in ["epoch", "bytes_up", "bytes_down"] {
        assert_eq!(agent[field], hub[field], "{field}: {agent} {hub}");
    }
    assert_eq!(agent["connected"], true);
    // Once each; the owner between them tells nothing.
    for (log, n) in [
        (&cluster.hubs[1].running().log, 1),
        (&cluster.agent.as_ref().unwrap().log, 1),
        (&cluster.hubs[0].running().log, 0),
    ] {
        assert_eq!(records(log, &cid).len(), n);
    }

    refused(cluster.listener(0, "closed")).await;
    let hub = record(&cluster.hubs[0].running().log, "\"connector\":\"closed\"").await;
    assert_eq!(
        (&hub["cause"], &hub["by"], &hub["path"]),
        (&"REFUSED".into(), &"agent".into(), &"none".into()),
        "{hub}"
    );
    assert!(hub["open_ms"].is_null() && hub["first_byte_ms"].is_null() && hub["route_ms"].is_number(), "{hub}");
    let agent = record(&cluster.agent.as_ref().unwrap().log, "\"connector\":\"closed\"").await;
    assert_eq!((&agent["cause"], &agent["connected"]), (&"REFUSED".into(), &false.into()), "{agent}");
    cluster.assert_alive();
}

/// Ten lines a second for each event, reason and connector; the next line says
/// how many were left out, so that lines and `suppressed` add up to what happened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failure_lines_are_limited_and_add_up() {
    let closed = Port::reserve();
    let plan = Plan { log_json: true, ..Plan::default() }.connector("closed", closed.addr);
    let mut cluster = plan.start().await;
    let addr = cluster.listener(0, "closed");
    let try_one = move || async move {
        // The reset may come before the connect is done.
        let Ok(mut socket) = TcpStream::connect(addr).await else { return };
        bounded("the refusal", LONG_PATIENCE, read_to_end(&mut socket)).await.unwrap_err();
    };
    let burst: Vec<_> = (0..300).map(|_| tokio::spawn(try_one())).collect();
    for one in burst {
        one.await.unwrap();
    }
    let told = |log: &Log| {
        let text = log.tail(usize::MAX);
        let lines = text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
        let lines: Vec<u64> = lines
            .filter(|v| v["fields"]["event"] == "open_failed")
            .inspect(|v| {
                assert_eq!((&v["fields"]["connector"], &v["fields"]["reason"]), (&"closed".into(), &"REFUSED".into()))
            })
            .map(|v| v["fields"]["suppressed"].as_u64().unwrap())
            .collect();
        (lines.len() as u64, lines.iter().sum::<u64>())
    };
    let (lines, suppressed) = eventually("lines and what they leave out add up", LONG_PATIENCE, || async {
        try_one().await;
        let failures = cluster.metrics(0).await.sum("nowconnect_open_failures_total", &[("reason", "REFUSED")])?;
        let (lines, suppressed) = told(&cluster.hubs[0].running().log);
        (lines + suppressed == failures as u64).then_some((lines, suppressed))
    })
    .await;
    assert!(suppressed > 0 && lines < 300, "{lines} lines, {suppressed} left out");
    cluster.assert_alive();
}

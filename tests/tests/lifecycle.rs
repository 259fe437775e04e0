//! Processes come and go: graceful and immediate ends, crashes, restarts, the
//! helpers of the command line, the demo.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::process::Command;

use nowconnect_tests::actors::{Failure, Pinger, Transfer, ask, read_to_end, receive};
use nowconnect_tests::cluster::{AGENT, Plan};
use nowconnect_tests::process::{Process, Signal, nowconnect, run};
use nowconnect_tests::target::{Op, Target};
use nowconnect_tests::token;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// L10: what is under way finishes, readiness says so, the process ends well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_term_signal_drains() {
    let target = Target::start().await;
    let hub_extra = "drain: { lameduck: 500ms, timeout: 60s }\n".to_owned();
    let mut cluster = Plan { hub_extra, ..Plan::default() }.connector("t", target.addr).start().await;
    let addr = cluster.listener(0, "t");
    let len = 32 << 20;
    let mut running = ask(addr, Op::Source, 1, len).await.unwrap();
    running.readable().await.unwrap();
    cluster.hubs[0].running().signal(Signal::TERM);
    eventually("readiness is 503 and says draining", PATIENCE, || async {
        let answer = cluster.get(0, "/readyz").await.ok()?;
        (answer.status == 503 && answer.body.contains("draining")).then_some(())
    })
    .await;
    let outcome = bounded("the transfer under way", LONG_PATIENCE, receive(&mut running, 1, len)).await;
    assert_eq!(outcome, Ok(()));
    drop(running);
    let status = cluster.hubs[0].process.as_mut().unwrap().wait_exit(LONG_PATIENCE).await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_term_signal_ends_at_once() {
    let target = Target::start().await;
    let hub_extra = "drain: { lameduck: 300s, timeout: 600s }\n".to_owned();
    let mut cluster = Plan { hub_extra, ..Plan::default() }.connector("t", target.addr).start().await;
    let mut open = Pinger::open(cluster.listener(0, "t"), 1).await.unwrap();
    cluster.hubs[0].running().signal(Signal::TERM);
    eventually("the hub drains", PATIENCE, || async {
        cluster.get(0, "/readyz").await.ok().filter(|a| a.status == 503)
    })
    .await;
    open.ping(100).await.unwrap();
    cluster.hubs[0].running().signal(Signal::TERM);
    // Far below the 300 s of the lameduck time.
    cluster.hubs[0].process.as_mut().unwrap().wait_exit(PATIENCE).await;
    let mut socket = open.into_socket();
    assert_eq!(read_to_end(&mut socket).await, Err(Failure::Reset), "an open stream ends as an abort, never as EOF");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_ends_on_term() {
    let target = Target::start().await;
    let mut cluster = Plan::default().connector("t", target.addr).start().await;
    let agent = cluster.agent.as_mut().unwrap();
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait_exit(LONG_PATIENCE).await.code(), Some(0));
}

/// A killed agent: its streams end as aborts, a new one takes over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_is_replaced() {
    let target = Target::start().await;
    let short = "resume_window: 2s\n".to_owned();
    let plan = Plan { hub_extra: short.clone(), agent_extra: short, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let mut sockets = Vec::new();
    for hub in [0, 1] {
        sockets.push(Pinger::open(cluster.listener(hub, "t"), hub as u64).await.unwrap().into_socket());
    }
    cluster.kill_agent();
    for mut socket in sockets {
        let outcome = bounded("the end of a dead agent's stream", PATIENCE, read_to_end(&mut socket)).await;
        assert_eq!(outcome, Err(Failure::Reset));
    }
    cluster.start_agent();
    for hub in [0, 1] {
        cluster.wait_open(hub, "t").await;
        let outcome = Transfer::Echo.run(cluster.listener(hub, "t"), 100 + hub as u64, 100_000).await;
        assert_eq!(outcome, Ok(()));
    }
}

/// A killed hub: streams over it end as aborts; agent and peer come back to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_hub_comes_back() {
    let target = Target::start().await;
    let short = "resume_window: 2s\n".to_owned();
    let plan = Plan { hub_extra: short.clone(), agent_extra: short, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let mut socket = Pinger::open(cluster.listener(1, "t"), 1).await.unwrap().into_socket();
    cluster.kill_hub(0);
    let outcome = bounded("the end of a stream over a dead hub", PATIENCE, read_to_end(&mut socket)).await;
    assert_eq!(outcome, Err(Failure::Reset));
    cluster.start_hub(0);
    cluster.wait_ready().await;
    for hub in [0, 1] {
        let outcome = Transfer::Echo.run(cluster.listener(hub, "t"), 10 + hub as u64, 100_000).await;
        assert_eq!(outcome, Ok(()));
    }
}

/// Two attachments: when one hub dies, clients of the other go on undisturbed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_tunnels_survive_a_hub() {
    let target = Target::start().await;
    let plan = Plan { attach: vec![0, 1], parallel: 2, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    for hub in [0, 1] {
        let local = [("path", "local")];
        eventually(&format!("hub {hub} opens over a tunnel of its own"), PATIENCE, || async {
            let before = cluster.metrics(hub).await.sum("nowconnect_streams_total", &local).unwrap_or(0.0);
            Transfer::Echo.run(cluster.listener(hub, "t"), 1, 10).await.ok()?;
            let after = cluster.metrics(hub).await.sum("nowconnect_streams_total", &local).unwrap_or(0.0);
            (after > before).then_some(())
        })
        .await;
    }
    let mut pinger = Pinger::open(cluster.listener(1, "t"), 2).await.unwrap();
    cluster.kill_hub(0);
    for _ in 0..20 {
        bounded("an echo through the hub that lives", PATIENCE, pinger.ping(1000)).await.unwrap();
    }
    pinger.close().await.unwrap();
    let outcome = Transfer::Download.run(cluster.listener(1, "t"), 3, 100_000).await;
    assert_eq!(outcome, Ok(()));
}

/// M4: without its registry a hub starts, says so, and serves the clients of
/// its own tunnels; the other hub refuses at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_starts_without_its_registry() {
    let target = Target::start().await;
    let mut cluster = Plan::default().connector("t", target.addr).start().await;
    cluster.redis.process.kill();
    for ix in [0, 1] {
        cluster.kill_hub(ix);
        cluster.start_hub(ix);
    }
    cluster.wait_open(0, "t").await;
    for ix in [0, 1] {
        eventually("a hub without registry is degraded and says why", PATIENCE, || async {
            let answer = cluster.get(ix, "/readyz").await.ok()?;
            let body: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
            let why = body["reasons"].as_array()?.iter().any(|r| r == "registry_unhealthy");
            (answer.status == 200 && body["status"] == "degraded" && why).then_some(())
        })
        .await;
        assert_eq!(cluster.get(ix, "/readyz?strict").await.unwrap().status, 503);
        let mut probe = nowconnect(["healthcheck", "--url"]);
        probe.arg(format!("http://{}/readyz", cluster.hubs[ix].http()));
        assert_eq!(run(probe).await.status.code(), Some(0), "degraded is not dead");
    }
    for transfer in Transfer::ALL {
        assert_eq!(transfer.run(cluster.listener(0, "t"), 1, 100_000).await, Ok(()));
    }
    eventually("hub B refuses for want of the registry", PATIENCE, || async {
        let mut socket = TcpStream::connect(cluster.listener(1, "t")).await.ok()?;
        assert_eq!(bounded("the refusal", PATIENCE, read_to_end(&mut socket)).await, Err(Failure::Reset));
        let reason = [("reason", "REGISTRY_DOWN")];
        cluster.metrics(1).await.sum("nowconnect_open_failures_total", &reason)
    })
    .await;
    cluster.assert_alive();
}

/// The token file is read again: an agent that was refused gets in later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_token_is_taken_up() {
    let target = Target::start().await;
    let plan = Plan { token: Some(token::good("somebody-else", &["t"])), ..Plan::default() };
    let cluster = plan.connector("t", target.addr).start_processes().await;
    eventually("the hub refuses the wrong token", PATIENCE, || async {
        (cluster.hubs[0].running().log.count("AUTH") > 0).then_some(())
    })
    .await;
    fs::write(cluster.token_file(), token::good(AGENT, &["t"])).unwrap();
    cluster.wait_ready().await;
    assert_eq!(Transfer::Echo.run(cluster.listener(1, "t"), 1, 10_000).await, Ok(()));
}

/// `nowconnect token` and `nowconnect cert` make what hubs and agents accept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_the_command_line_are_accepted() {
    let dir = TempDir::new().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, token::SECRET).unwrap();
    let mut command =
        nowconnect(["token", "--agent-id", AGENT, "--connector", "t", "--ttl", "1h", "--issuer", token::ISSUER]);
    command.arg("--hmac-secret-file").arg(&secret);
    let made = run(command).await;
    assert_eq!(made.status.code(), Some(0), "{}", made.stderr);
    let target = Target::start().await;
    let plan = Plan { token: Some(made.stdout.trim().to_owned()), ..Plan::default() };
    let cluster = plan.connector("t", target.addr).start().await;
    assert_eq!(Transfer::Echo.run(cluster.listener(0, "t"), 1, 10_000).await, Ok(()));
}

#[tokio::test]
async fn certificates_of_the_command_line_verify() {
    let dir = TempDir::new().unwrap();
    for args in [&["--ca"][..], &["--hub", "hub-a"], &["--agent", AGENT]] {
        let mut command = nowconnect(["cert", "--out"]);
        command.arg(dir.path()).args(args);
        let done = run(command).await;
        assert_eq!(done.status.code(), Some(0), "{args:?}: {}", done.stderr);
    }
    let file = |name: &str| dir.path().join(name);
    for name in ["hub-a.crt", &format!("{AGENT}.crt")] {
        let mut verify = Command::new("openssl");
        verify.arg("verify").arg("-CAfile").arg(file("ca.pem")).arg(file(name));
        let done = run(verify).await;
        assert!(done.status.success(), "{name}: {}{}", done.stdout, done.stderr);
    }
    let mut show = Command::new("openssl");
    show.args(["x509", "-noout", "-ext", "subjectAltName", "-in"]).arg(file("hub-a.crt"));
    assert!(run(show).await.stdout.contains("DNS:hub-a"));
}

/// The README's first command: an embedded target one can reach, and the path
/// of each stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_shows_the_path() {
    let demo = Process::spawn("demo", nowconnect(["demo"]));
    let line = demo.wait_line("curl ", PATIENCE).await;
    let url =
        line.split_whitespace().find(|w| w.starts_with("http://")).unwrap_or_else(|| panic!("no URL in {line:?}"));
    let addr = url.trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
    let answer = nowconnect_tests::http::get(addr, None, "/").await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let path = demo.wait_line("mesh → hub-a → agent → target", PATIENCE).await;
    assert!(path.contains("client → hub-b"), "{path}");
    demo.signal(Signal::INT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_takes_ones_own_target() {
    let target = Target::start().await;
    let demo = Process::spawn("demo", nowconnect(["demo", "--target", &target.addr.to_string()]));
    let line = demo.wait_line("hub-b", PATIENCE).await;
    let addr = line
        .split(|c: char| c.is_whitespace() || "/()'\"".contains(c))
        .find_map(|w| w.parse::<std::net::SocketAddr>().ok())
        .unwrap_or_else(|| panic!("no address in {line:?}"));
    eventually("the demo's listener accepts", PATIENCE, || async { TcpStream::connect(addr).await.ok() }).await;
    assert_eq!(Transfer::Echo.run(addr, 1, 100_000).await, Ok(()));
}

#[tokio::test]
async fn completions_and_version_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let done = run(nowconnect(["completions", shell])).await;
        assert_eq!(done.status.code(), Some(0));
        assert!(done.stdout.contains("check-config"), "{shell}");
    }
    let version = run(nowconnect(["--version"])).await;
    assert!(version.stdout.starts_with("nowconnect "), "{}", version.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_answer_as_documented() {
    let target = Target::start().await;
    let cluster = Plan::default().connector("t", target.addr).start().await;
    let health = cluster.get(0, "/healthz").await.unwrap();
    assert_eq!((health.status, health.body.trim()), (200, "ok"));
    let ready: serde_json::Value = serde_json::from_str(&cluster.get(0, "/readyz").await.unwrap().body).unwrap();
    for key in ["status", "reasons", "mesh", "registry", "listeners"] {
        assert!(!ready[key].is_null(), "{key} in {ready}");
    }
    assert_eq!(cluster.get(0, "/readyz/nothing").await.unwrap().status, 404);
    assert_eq!(cluster.get(0, "/metrics").await.unwrap().status, 404, "metrics have a port of their own");
    assert_eq!(Transfer::Echo.run(cluster.listener(1, "t"), 1, 10_000).await, Ok(()));
    cluster.wait_metric(1, "nowconnect_mesh_links", &[("peer", "hub-a"), ("state", "established")], 1.0).await;
    cluster.wait_metric(1, "nowconnect_mesh_frames_total", &[("type", "OPEN")], 1.0).await;
    cluster.wait_metric(1, "nowconnect_mesh_rtt_seconds_count", &[], 1.0).await;
}

//! What an operator sees: every documented family appears and moves when the
//! thing it counts happens, at hubs and at the agent; `nowconnect status` and
//! `healthcheck` show a running system (semantics 10, A1).

#![allow(clippy::unwrap_used, reason = "tests")]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use nowconnect_core::error::RstCode;
use nowconnect_core::id::{Cid, Incarnation, Name, Secret};
use nowconnect_core::wire::{Body, Codec, Dialect, EpochNotice, Frame, Open, Plane, encode_message};
use nowconnect_tests::actors::{Pinger, Transfer, ask, refused};
use nowconnect_tests::certs::Authority;
use nowconnect_tests::cluster::{AGENT, Cluster, Plan};
use nowconnect_tests::hostile::{Peer, agent_hello, hub_hello};
use nowconnect_tests::metrics::Metrics;
use nowconnect_tests::ports::Port;
use nowconnect_tests::process::{installed, nowconnect, run};
use nowconnect_tests::proxy::Cut;
use nowconnect_tests::target::{Op, Target};
use nowconnect_tests::token;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The public key of RFC 7517, A.1, marked for signatures.
const KEY_SET: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","use":"sig","kid":"1",
    "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

const MESH: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Mesh };
const TUNNEL: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Tunnel };

/// The families of docs/metrics.md.
fn documented() -> BTreeSet<String> {
    let page = include_str!("../../docs/metrics.md");
    let name = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
    page.lines().filter_map(name).collect()
}

/// The families on a page: a histogram's three series are one.
fn families(metrics: &Metrics) -> BTreeSet<String> {
    let documented = documented();
    let family = |name: &&str| {
        let bare = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        bare.filter(|bare| documented.contains(*bare)).unwrap_or(name).to_owned()
    };
    metrics.names().iter().map(family).collect()
}

fn at_least(metrics: &Metrics, name: &str, labels: &[(&str, &str)], least: f64) {
    let value = metrics.sum(name, labels);
    assert!(value.is_some_and(|v| v >= least), "{name}{labels:?}: expected at least {least}, got {value:?}");
}

/// The first connection that brings a byte; a check of the target brings none.
async fn asked(target: &TcpListener) -> TcpStream {
    loop {
        let (mut socket, _) = target.accept().await.unwrap();
        if socket.read(&mut [0; 1]).await.is_ok_and(|n| n == 1) {
            return socket;
        }
    }
}

/// A hub of nobody's, by hand: learns the agent's fence from the EPOCH of its
/// next attachment, opens a stream and sends more than it may.
fn overrun(hub: SocketAddr) {
    let mut peer = Peer::establish(hub, MESH, "", hub_hello("hub-z", "tests")).unwrap_or_else(|r| panic!("{r:?}"));
    peer.frame(0, Frame::Auth(Box::default()));
    let notice: RefCell<Option<EpochNotice>> = RefCell::new(None);
    peer.frames_until(|f| {
        if let Frame::Epoch(n) = f {
            *notice.borrow_mut() = Some((**n).clone());
        }
        notice.borrow().is_some()
    })
    .unwrap();
    let notice = notice.into_inner().unwrap();
    let (cid, epoch) = (Cid::new(Incarnation(0xfeed_0000_0000_0001), 0, 1), notice.epoch);
    let open = Open {
        nonce: notice.nonce,
        connector: Name::new("t").unwrap(),
        agent_id: notice.agent_id,
        key: Secret([3; 16]),
        limit: 65_536,
    };
    // One message, so that no credit can come in between.
    let data = |n: u64| Body::Data { off: n * 65_536, bytes: Bytes::from(vec![0; 65_536]) };
    let bodies = [Body::Open(Box::new(open)), data(0), data(1), data(2)];
    let frames = bodies.map(|body| Frame::Stream { cid, epoch, body });
    peer.message(&encode_message(MESH, 1, &frames));
    let refused = |f: &Frame| matches!(f, Frame::Stream { body: Body::Rst { code: RstCode::Flow, .. }, .. });
    peer.frames_until(refused).unwrap();
}

/// A peer with a good token: asks for more than that allows, then sends a bad
/// message.
fn break_the_protocol(hub: SocketAddr) {
    let token = token::good("intruder", &["x"]);
    let more = Peer::establish(hub, TUNNEL, &token, agent_hello("intruder", &["not-mine"]));
    assert!(more.is_err(), "attached with a connector the token does not name");
    let mut peer = Peer::establish(hub, TUNNEL, &token, agent_hello("intruder", &["x"])).unwrap();
    peer.message(&[0xff; 9]);
    let _ = peer.until_closed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_documented_family_appears_and_moves() {
    let target = Target::start().await;
    let closed = Port::reserve();
    let push = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // A key set by URL that nobody serves, with a copy on disk.
    let dir = TempDir::with_prefix("nowconnect-metrics-").unwrap();
    fs::write(dir.path().join("keys.json"), KEY_SET).unwrap();
    let copy = fs::File::options().write(true).open(dir.path().join("keys.json")).unwrap();
    copy.set_modified(SystemTime::now() - Duration::from_secs(100)).unwrap();
    let jwt_extra = format!(
        ", jwks_url: 'http://127.0.0.1:1/keys', insecure_allow_plaintext_jwks: true, jwks_cache_file: {}",
        dir.path().join("keys.json").display()
    );
    // An agent that names a CA bundle, to see when that ends.
    let _ca = Authority::create(dir.path(), "ca");
    let agent_extra = format!("tls: {{ ca_bundle: {} }}\n", dir.path().join("ca.pem").display());
    let plan = Plan {
        mesh_proxy: true,
        tunnel_proxy: true,
        jwt_extra,
        agent_extra,
        // One check of each target, which withdraws nothing.
        connector_extra: ", health: { kind: tcp, interval: 1h }".to_owned(),
        hub_extra: "selection: { fall: 1, eject: 1h, eject_max: 2h }\nlimits: { handshake_rate: 100 }\n".to_owned(),
        ..Plan::default()
    };
    let plan = plan.connector("t", target.addr).connector("closed", closed.addr);
    let mut cluster = plan.connector("push", push.local_addr().unwrap()).start().await;
    // The names of the enable page, at hub B.
    let file = cluster.hub_file(1);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("metrics: { "));
    fs::write(&file, text.replace("metrics: { ", "metrics: { legacy_names: true, ")).unwrap();
    cluster.kill_hub(1);
    cluster.start_hub(1);
    cluster.wait_ready().await;

    // Traffic, failures, a reader that lags, a cut.
    for hub in [0, 1] {
        for (n, transfer) in Transfer::ALL.into_iter().enumerate() {
            assert_eq!(transfer.run(cluster.listener(hub, "t"), 10 * hub as u64 + n as u64, 300_000).await, Ok(()));
        }
        refused(cluster.listener(hub, "closed")).await;
    }
    let lagging = ask(cluster.listener(1, "t"), Op::Source, 50, 64 << 20).await.unwrap();
    lagging.readable().await.unwrap();
    eventually("the agent stops reading its target", PATIENCE, || async {
        let paused =
            cluster.agent_metrics().await.sum("nowconnect_mesh_backpressure_total", &[("reason", "credit")])?;
        (paused > 0.0).then_some(())
    })
    .await;
    cluster.wait_metric(1, "nowconnect_memory_held_bytes", &[], 1.0).await;
    // The agent holds what its hub has not acknowledged. Its target speaks when
    // the tunnel stands still already: what was under way before may all be
    // acknowledged, and credit for more may not come any more.
    let mut client = TcpStream::connect(cluster.listener(0, "push")).await.unwrap();
    client.write_all(b"?").await.unwrap();
    let mut served = bounded("the agent's connection", PATIENCE, asked(&push)).await;
    cluster.tunnel_proxies[0].stall();
    let pushed = vec![7; 65_536];
    served.write_all(&pushed).await.unwrap();
    eventually("the agent holds what it has sent", PATIENCE, || async {
        let held = cluster.agent_metrics().await.sum("nowconnect_memory_held_bytes", &[])?;
        (held >= 65_536.0).then_some(())
    })
    .await;
    cluster.tunnel_proxies[0].heal();
    let mut got = vec![0; pushed.len()];
    bounded("what was held", LONG_PATIENCE, client.read_exact(&mut got)).await.unwrap();
    assert!(got == pushed, "other bytes than were sent");
    drop((client, served));
    let mut pingers = Vec::new();
    for hub in [0, 1] {
        pingers.push(Pinger::open(cluster.listener(hub, "t"), 60 + hub as u64).await.unwrap());
    }
    // What waits for a session is seen while it waits, at the hub and at the agent.
    cluster.tunnel_proxies[0].refuse();
    cluster.tunnel_proxies[0].cut(Cut::Rst);
    cluster.wait_metric(0, "nowconnect_sessions", &[("plane", "tunnel"), ("state", "suspended")], 1.0).await;
    cluster.wait_metric(0, "nowconnect_streams_suspended", &[], 3.0).await;
    eventually("the agent is degraded", PATIENCE, || async {
        let page = cluster.agent_metrics().await;
        let degraded = page.sum("nowconnect_readiness", &[("state", "degraded")])?;
        let reason = page.sum("nowconnect_readiness_reason", &[("reason", "tunnels_missing")])?;
        (degraded + reason + page.sum("nowconnect_streams_suspended", &[])? >= 5.0).then_some(())
    })
    .await;
    cluster.tunnel_proxies[0].heal();
    for pinger in &mut pingers {
        bounded("an echo after the outage", LONG_PATIENCE, pinger.ping(1000)).await.unwrap();
    }
    cluster.tunnel_proxies[0].cut(Cut::Rst);
    for hub in &cluster.hubs {
        hub.mesh_proxy.as_ref().unwrap().cut(Cut::Rst);
    }
    for pinger in &mut pingers {
        bounded("an echo after the cut", LONG_PATIENCE, pinger.ping(1000)).await.unwrap();
    }
    for (hub, name, plane) in [(0, "tunnel", "tunnel"), (1, "link", "mesh")] {
        eventually(&format!("the {name} is resumed"), PATIENCE, || async {
            let n = cluster.metrics(hub).await.sum("nowconnect_sessions_resumed_total", &[("plane", plane)])?;
            (n >= 1.0).then_some(())
        })
        .await;
    }
    let agent = eventually("the agent has measured a round trip", PATIENCE, || async {
        let page = cluster.agent_metrics().await;
        (page.sum("nowconnect_tunnel_rtt_seconds_count", &[])? >= 1.0).then_some(page)
    })
    .await;
    at_least(&agent, "nowconnect_sessions_suspended_total", &[("plane", "tunnel")], 1.0);
    at_least(&agent, "nowconnect_sessions_resumed_total", &[("plane", "tunnel")], 1.0);
    at_least(&agent, "nowconnect_stream_ends_total", &[("cause", "FINISHED")], 6.0);
    at_least(&agent, "nowconnect_open_failures_total", &[("listener", "closed"), ("reason", "REFUSED")], 2.0);
    at_least(&agent, "nowconnect_target_up", &[("connector", "t")], 1.0);
    at_least(&agent, "nowconnect_target_checks_total", &[("connector", "t"), ("result", "passed")], 1.0);
    at_least(&agent, "nowconnect_target_checks_total", &[("connector", "closed"), ("result", "failed")], 1.0);
    at_least(&agent, "nowconnect_streams_carried_total", &[], 11.0);
    at_least(&agent, "nowconnect_streams", &[], 3.0);
    at_least(&agent, "nowconnect_tunnels", &[], 1.0);
    at_least(&agent, "nowconnect_stream_bytes_total", &[("direction", "in")], 600_000.0);
    at_least(&agent, "nowconnect_stream_bytes_total", &[("direction", "out")], 600_000.0);
    at_least(&agent, "nowconnect_memory_budget_bytes", &[], 4e6);
    at_least(&agent, "nowconnect_tunnel_frames_total", &[("dir", "in"), ("type", "OPEN")], 11.0);
    at_least(&agent, "nowconnect_build_info", &[], 1.0);
    at_least(&agent, "nowconnect_sessions", &[("plane", "tunnel"), ("state", "connected")], 1.0);
    at_least(&agent, "nowconnect_sessions_established_total", &[("plane", "tunnel")], 1.0);
    at_least(&agent, "nowconnect_session_bytes_total", &[("plane", "tunnel"), ("dir", "in")], 600_000.0);
    at_least(&agent, "nowconnect_session_bytes_total", &[("plane", "tunnel"), ("dir", "out")], 600_000.0);
    at_least(&agent, "nowconnect_limit_used_ratio", &[("limit", "max_streams")], 3e-5);
    let soon = token::unix_now() as f64 + 60.0;
    at_least(&agent, "nowconnect_token_not_after_timestamp_seconds", &[("holder", "self")], soon);
    at_least(&agent, "nowconnect_certificate_not_after_timestamp_seconds", &[("use", "tunnel_ca")], soon);
    check_metrics(&cluster.agent_metrics_page().await, true).await;
    let strangers = families(&agent).into_iter().filter(|f| !documented().contains(f));
    assert_eq!(strangers.collect::<Vec<_>>(), Vec::<String>::new());
    for name in ["nowconnect_registry_healthy", "nowconnect_mesh_links", "nowconnect_open_seconds_count"] {
        assert_eq!(agent.sum(name, &[]), None, "{name} is no business of an agent");
    }
    let busy = cluster.metrics(0).await;
    at_least(&busy, "nowconnect_ejections_total", &[("connector", "closed"), ("reason", "REFUSED")], 1.0);
    at_least(&busy, "nowconnect_candidates_ejected", &[("connector", "closed")], 1.0);
    assert_eq!(busy.sum("nowconnect_candidates_ejected", &[("connector", "t")]), Some(0.0));
    // What the reader that lags does not take is held at its own hub.
    let holding = cluster.metrics(1).await;
    for limit in ["memory_budget_bytes", "max_streams", "max_sessions", "max_connections"] {
        let page = if limit == "memory_budget_bytes" { &holding } else { &busy };
        let share = page.sum("nowconnect_limit_used_ratio", &[("limit", limit)]);
        assert!(share.is_some_and(|s| s > 0.0 && s < 1.0), "{limit}: {share:?}");
    }
    at_least(&busy, "nowconnect_limit_used_ratio", &[("limit", "max_connections"), ("listener", "t")], 1e-4);
    // Of this moment: what was cut may still be on its way back.
    cluster.wait_metric(0, "nowconnect_readiness", &[("state", "ready")], 1.0).await;
    cluster.wait_metric(0, "nowconnect_listener_ready", &[("listener", "t")], 1.0).await;
    cluster.wait_metric(0, "nowconnect_listener_listening", &[("listener", "t")], 1.0).await;
    drop(lagging);
    drop(pingers);

    // Peers that break rules.
    let refusals = |page: &Metrics| page.sum("nowconnect_auth_rejects_total", &[]).unwrap_or(0.0);
    let (before, hub) = (refusals(&cluster.metrics(0).await), cluster.hubs[0].http());
    let dial = move || Peer::establish(hub, TUNNEL, "no.token", agent_hello("intruder", &["x"]));
    assert!(tokio::task::spawn_blocking(move || dial().is_err()).await.unwrap());
    assert_eq!(refusals(&cluster.metrics(0).await) - before, 1.0, "one refusal, one reason");
    assert_eq!(cluster.get(0, "/nowhere").await.unwrap().status, 404);
    let hub = cluster.hubs[0].http();
    tokio::task::spawn_blocking(move || break_the_protocol(hub)).await.unwrap();
    let overrunning = tokio::task::spawn_blocking(move || overrun(hub));
    cluster.wait_metric(0, "nowconnect_mesh_links", &[("peer", "hub-z"), ("state", "established")], 1.0).await;
    cluster.kill_agent();
    cluster.start_agent();
    bounded("the reset of a stream that ignored its limit", LONG_PATIENCE, overrunning).await.unwrap();

    // More connections than a second brings.
    eventually("some have to wait", PATIENCE, || async {
        let mut many = Vec::new();
        for _ in 0..200 {
            // Those beyond what one address may have are reset.
            many.extend(TcpStream::connect(hub).await.ok());
        }
        (cluster.metrics(0).await.sum("nowconnect_http_throttled_total", &[])? >= 1.0).then_some(())
    })
    .await;
    cluster.hubs[0].running().wait_line("handshakes_throttled", PATIENCE).await;

    // The registry goes away.
    cluster.redis.process.kill();
    cluster.wait_metric(1, "nowconnect_registry_errors_total", &[("op", "renew")], 1.0).await;
    for ix in [0, 1] {
        eventually("the lease is not renewed", PATIENCE, || async {
            (cluster.metrics(ix).await.sum("nowconnect_registry_healthy", &[])? == 0.0).then_some(())
        })
        .await;
        cluster.wait_metric(ix, "nowconnect_registry_lease_age_seconds", &[], 2.0).await;
        cluster.wait_metric(ix, "nowconnect_readiness", &[("state", "degraded")], 1.0).await;
        cluster.wait_metric(ix, "nowconnect_readiness_reason", &[("reason", "registry_unhealthy")], 1.0).await;
    }

    let (a, b) = (cluster.metrics(0).await, cluster.metrics(1).await);
    at_least(&a, "nowconnect_streams_total", &[("listener", "t"), ("path", "local")], 4.0);
    at_least(&b, "nowconnect_streams_total", &[("listener", "t"), ("path", "mesh")], 5.0);
    at_least(&a, "nowconnect_streams_carried_total", &[], 5.0);
    for (page, peer) in [(&a, "hub-b"), (&b, "hub-a")] {
        at_least(page, "nowconnect_stream_bytes_total", &[("direction", "in")], 600_000.0);
        at_least(page, "nowconnect_stream_bytes_total", &[("direction", "out")], 600_000.0);
        at_least(page, "nowconnect_stream_ends_total", &[("cause", "FINISHED")], 3.0);
        at_least(page, "nowconnect_stream_ends_total", &[("cause", "REFUSED")], 1.0);
        at_least(page, "nowconnect_open_failures_total", &[("listener", "closed"), ("reason", "REFUSED")], 1.0);
        at_least(page, "nowconnect_open_seconds_count", &[], 4.0);
        at_least(page, "nowconnect_mesh_links", &[("peer", peer), ("state", "established")], 1.0);
        at_least(page, "nowconnect_mesh_frames_total", &[("dir", "out"), ("type", "DATA")], 1.0);
        at_least(page, "nowconnect_mesh_frames_total", &[("dir", "in"), ("type", "DATA")], 1.0);
        at_least(page, "nowconnect_mesh_rtt_seconds_count", &[], 1.0);
        at_least(page, "nowconnect_sessions_suspended_total", &[("plane", "mesh")], 1.0);
        at_least(page, "nowconnect_registry_seconds_count", &[("op", "renew")], 1.0);
        at_least(page, "process_open_fds", &[], 1.0);
    }
    at_least(&a, "nowconnect_sessions_lost_total", &[("plane", "tunnel")], 1.0);
    at_least(&a, "nowconnect_open_seconds_count", &[("path", "local")], 4.0);
    at_least(&b, "nowconnect_open_seconds_count", &[("path", "mesh")], 4.0);
    for plane in ["tunnel", "mesh"] {
        at_least(&a, "nowconnect_sessions_established_total", &[("plane", plane)], 1.0);
        at_least(&a, "nowconnect_session_bytes_total", &[("plane", plane), ("dir", "out")], 100_000.0);
    }
    at_least(&a, "nowconnect_ownership_changes_total", &[("change", "gained"), ("cause", "claim")], 1.0);
    at_least(&a, "nowconnect_ownership_changes_total", &[("change", "gained"), ("cause", "takeover")], 1.0);
    at_least(&a, "nowconnect_ownership_changes_total", &[("change", "lost")], 1.0);
    at_least(&a, "nowconnect_token_not_after_timestamp_seconds", &[("holder", "attached")], soon);
    check_metrics(&cluster.metrics_page(0).await, true).await;
    check_metrics(&cluster.metrics_page(1).await, false).await;
    at_least(&a, "nowconnect_tunnel_rtt_seconds_count", &[], 1.0);
    at_least(&a, "nowconnect_jwks_fetches_total", &[("result", "connect")], 1.0);
    at_least(&a, "nowconnect_jwks_age_seconds", &[("source", "url")], 100.0);
    at_least(&a, "nowconnect_handshake_failures_total", &[("plane", "tunnel"), ("cause", "AUTH")], 1.0);
    at_least(&a, "nowconnect_auth_rejects_total", &[("reason", "path")], 1.0);
    at_least(&a, "nowconnect_protocol_errors_total", &[("plane", "tunnel")], 1.0);
    at_least(&a, "nowconnect_mesh_backpressure_drops_total", &[("peer", "hub-z"), ("reason", "FLOW")], 1.0);
    let reconnects = |m: &Metrics| m.sum("nowconnect_mesh_link_reconnects_total", &[]).unwrap();
    let errors = |m: &Metrics| m.sum("nowconnect_mesh_link_errors_total", &[]).unwrap();
    assert!(reconnects(&a) + reconnects(&b) >= 1.0, "the link was cut");
    assert!(errors(&a) + errors(&b) >= 1.0, "hub B was away");
    at_least(&b, "nowconnect_mesh_rtt_ms", &[("peer", "hub-a")], 1.0);
    assert_eq!(a.sum("nowconnect_mesh_rtt_ms", &[]), None, "not without metrics.legacy_names");

    // What `active` would have done is counted in `shadow`: this client it would
    // have refused for want of the registry.
    let text = fs::read_to_string(cluster.hub_file(1)).unwrap();
    assert!(text.contains("  mode: active\n"));
    fs::write(cluster.hub_file(1), text.replace("  mode: active\n", "  mode: shadow\n")).unwrap();
    cluster.hubs[1].running().signal(nowconnect_tests::process::Signal::HUP);
    eventually("hub B is in shadow", PATIENCE, || async {
        cluster.get(1, "/readyz").await.ok().filter(|a| a.body.contains("\"mode\":\"shadow\""))
    })
    .await;
    let decided = async |outcome: &str| {
        let labels = [("listener", "t"), ("outcome", outcome)];
        cluster.metrics(1).await.sum("nowconnect_shadow_decisions_total", &labels).unwrap_or(0.0)
    };
    assert_eq!((decided("mesh").await, decided("REGISTRY_DOWN").await), (0.0, 0.0));
    refused(cluster.listener(1, "t")).await;
    assert_eq!((decided("mesh").await, decided("REGISTRY_DOWN").await), (0.0, 1.0));
    let shadow = cluster.metrics(1).await;

    let shown = &(&(&families(&a) | &families(&b)) | &families(&agent)) | &families(&shadow);
    let missing: Vec<_> = documented().difference(&shown).cloned().collect();
    let unknown: Vec<_> = shown.difference(&documented()).cloned().collect();
    assert!(missing.is_empty() && unknown.is_empty(), "never seen: {missing:?}; not documented: {unknown:?}");
    cluster.assert_alive();
}

/// What promtool says of a page. It refuses `nowconnect_mesh_rtt_ms`, which is
/// why that name has to be asked for.
async fn check_metrics(page: &str, good: bool) {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, page.as_bytes()).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let checked = tokio::task::spawn_blocking(move || {
        let mut command = std::process::Command::new(installed("promtool", "prometheus"));
        command.args(["check", "metrics"]).stdin(file).output().unwrap()
    })
    .await
    .unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned() + &String::from_utf8_lossy(&checked.stdout);
    assert_eq!(checked.status.success(), good, "{said}");
    if !good {
        assert!(said.lines().all(|l| l.starts_with("nowconnect_mesh_rtt_ms ")), "{said}");
    }
}

/// Asks a process of `cluster` for its status through its socket.
async fn status(cluster: &Cluster, name: &str, output: &str) -> String {
    let mut command = nowconnect(["status", "--output", output, "--socket"]);
    command.arg(cluster.dir().join(format!("{name}.sock")));
    let done = run(command).await;
    assert_eq!(done.status.code(), Some(0), "{name}: {}", done.stderr);
    done.stdout
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_shows_sessions_epochs_and_streams() {
    let target = Target::start().await;
    let mut cluster = Plan::default().connector("t", target.addr).start().await;
    let _open = Pinger::open(cluster.listener(1, "t"), 1).await.unwrap();
    cluster.wait_metric(1, "nowconnect_mesh_rtt_seconds_count", &[], 1.0).await;
    let json = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    let a = json(status(&cluster, "hub-a", "json").await);
    let b = json(status(&cluster, "hub-b", "json").await);
    let g = json(status(&cluster, "agent", "json").await);

    assert_eq!((&a["role"], &a["mode"], &a["status"]), (&"hub".into(), &"active".into(), &"ready".into()));
    assert_eq!((&b["replica"], &b["registry"]["status"]), (&"hub-b".into(), &"healthy".into()));
    assert_ne!(a["incarnation"], b["incarnation"]);
    assert_eq!((&b["links"][0]["peer"], &b["links"][0]["state"]), (&"hub-a".into(), &"established".into()));
    assert_eq!(b["links"][0]["session"]["state"], "connected");
    assert!(b["links"][0]["session"]["rtt_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{b}");
    assert_eq!(a["tunnels"][0]["agent"], AGENT);
    assert_eq!(a["tunnels"][0]["epoch"], g["hubs"][0]["epoch"]);
    assert_eq!(g["highest_epoch"], g["hubs"][0]["epoch"]);
    assert_eq!((&g["role"], &g["agent"], &g["status"]), (&"agent".into(), &AGENT.into(), &"ready".into()));
    assert_eq!((&g["hubs"][0]["replica"], &g["hubs"][0]["state"]), (&"hub-a".into(), &"established".into()));
    assert_eq!(b["listeners"][0]["bind"], cluster.listener(1, "t").to_string());
    assert_eq!((&b["listeners"][0]["clients"], &b["listeners"][0]["status"]), (&1.into(), &"ready".into()));
    for process in [&a, &b, &g] {
        assert_eq!(process["streams"], 1, "{process}");
        assert!(process["memory"]["budget_bytes"].as_u64().is_some_and(|n| n > 0), "{process}");
        assert_eq!(process["version"], env!("CARGO_PKG_VERSION"));
    }
    for (name, words) in [("hub-a", [AGENT, "established"]), ("agent", ["hub-a", "connected"])] {
        let table = status(&cluster, name, "text").await;
        for word in words {
            assert!(table.contains(word), "{word} in\n{table}");
        }
    }

    let mut healthy = nowconnect(["healthcheck", "--socket"]);
    healthy.arg(cluster.dir().join("agent.sock"));
    let done = run(healthy).await;
    assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
    // An agent without any hub is not healthy, and says why.
    cluster.kill_hub(0);
    eventually("the agent is unhealthy", PATIENCE, || async {
        let mut unhealthy = nowconnect(["healthcheck", "--socket"]);
        unhealthy.arg(cluster.dir().join("agent.sock"));
        let done = run(unhealthy).await;
        (done.status.code() == Some(1) && done.stderr.contains("status 503")).then_some(())
    })
    .await;
    let table = status(&cluster, "agent", "text").await;
    assert!(table.contains("tunnels_missing") && table.contains("suspended"), "{table}");
    let hub = run(nowconnect(["healthcheck", "--url", &format!("http://{}/readyz", cluster.hubs[1].http())])).await;
    assert_eq!(hub.status.code(), Some(0), "{}", hub.stderr);

    let nobody = run(nowconnect(["status", "--socket", "/nowhere/at/all.sock"])).await;
    assert_eq!(nobody.status.code(), Some(1));
    let agent = cluster.agent.as_mut().unwrap();
    agent.signal(nowconnect_tests::process::Signal::TERM);
    assert_eq!(agent.wait_exit(LONG_PATIENCE).await.code(), Some(0));
    assert!(!cluster.dir().join("agent.sock").exists(), "the socket goes with its process");
}

/// A rotated token reaches the hub without a restart and without a lost byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_token_is_taken_up_under_load() {
    let target = Target::start().await;
    let mut cluster = Plan::default().connector("t", target.addr).start().await;
    let mut pinger = Pinger::open(cluster.listener(1, "t"), 1).await.unwrap();
    let addr = cluster.listener(0, "t");
    let load = tokio::spawn(async move { Transfer::Download.run(addr, 2, 64 << 20).await });
    let mut claims = token::claims(AGENT, &["t"]);
    claims["jti"] = "second".into();
    let second = token::sign(&serde_json::json!({"alg": "HS256", "typ": "JWT"}), &claims.to_string(), token::SECRET);
    fs::write(cluster.token_file(), second).unwrap();
    let log = &cluster.hubs[0].running().log;
    eventually("the hub took the second token", PATIENCE, || async { log.find("token_renewed") }).await;
    // Logs of two processes are read by two threads.
    let agent = cluster.agent.as_mut().unwrap();
    agent.wait_line("token_changed", PATIENCE).await;
    assert_eq!(agent.log.count("token_changed"), 1);
    bounded("an echo", PATIENCE, pinger.ping(1000)).await.unwrap();
    pinger.close().await.unwrap();
    assert_eq!(bounded("the load", LONG_PATIENCE, load).await.unwrap(), Ok(()));
    cluster.assert_alive();
}

/// With `admin.bind` and a token: no bearer, no answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_port_asks_for_its_token() {
    let target = Target::start().await;
    let port = Port::reserve();
    let mut cluster = Plan::default().connector("t", target.addr).start().await;
    let secret = cluster.dir().join("admin.token");
    fs::write(&secret, "a-long-secret\n").unwrap();
    let file = cluster.agent_file();
    let text = fs::read_to_string(&file).unwrap();
    let admin = format!("admin: {{ bind: '{}', token_file: {}, ", port.addr, secret.display());
    fs::write(&file, text.replace("admin: { ", &admin)).unwrap();
    cluster.kill_agent();
    assert!(cluster.dir().join("agent.sock").exists(), "killed, it left its socket behind; the next one replaces it");
    cluster.start_agent();
    let url = format!("http://{}", port.addr);
    eventually("the port answers", PATIENCE, || async {
        let mut command = nowconnect(["status", "--url", &url, "--token-file"]);
        command.arg(&secret);
        (run(command).await.status.code() == Some(0)).then_some(())
    })
    .await;
    let without = run(nowconnect(["status", "--url", &url])).await;
    assert_eq!(without.status.code(), Some(1));
    assert!(without.stderr.contains("status 401"), "{}", without.stderr);
    let mut raw = TcpStream::connect(port.addr).await.unwrap();
    raw.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer wrong\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut raw, &mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401") && !answer.contains("nowconnect_streams"), "{answer}");
    assert!(status(&cluster, "agent", "json").await.contains("\"role\":\"agent\""), "the socket asks for none");
}

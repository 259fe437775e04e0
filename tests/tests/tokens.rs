//! Tokens of live tunnels with real processes (semantics 8, I4, attack 25):
//! fresh ones in band under load, rotated keys, and each rule of
//! `auth.on_expiry` when one runs out in the middle of a stream, also of one that
//! crosses hubs.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::time::{Duration, Instant};

use nowconnect_tests::actors::{Failure, Pinger, Transfer, read_to_end};
use nowconnect_tests::cluster::{AGENT, Cluster, Plan};
use nowconnect_tests::process::{nowconnect, run};
use nowconnect_tests::proxy::Cut;
use nowconnect_tests::target::Target;
use nowconnect_tests::token;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};
use serde_json::json;

fn signed(lasts: i64, jti: &str, secret: &str) -> String {
    signed_for(&["t"], lasts, jti, secret)
}

fn signed_for(connectors: &[&str], lasts: i64, jti: &str, secret: &str) -> String {
    let mut claims = token::claims(AGENT, connectors);
    claims["exp"] = (token::unix_now() + lasts).into();
    claims["jti"] = jti.into();
    token::sign(&json!({"alg": "HS256", "typ": "JWT"}), &claims.to_string(), secret)
}

const WITHOUT_LEEWAY: &str = ", leeway: 0s";

/// The agent replaces its token in time, again and again, also with one of a
/// new key: no stream notices, no session is even suspended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fresh_tokens_and_a_new_key_reach_live_tunnels_under_load() {
    let target = Target::start().await;
    let jwt_extra = WITHOUT_LEEWAY.to_owned();
    let plan = Plan { token: Some(signed(60, "first", token::SECRET)), jwt_extra, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let mut pinger = Pinger::open(cluster.listener(1, "t"), 1).await.unwrap();
    let addr = cluster.listener(0, "t");
    let load = tokio::spawn(async move { Transfer::Download.run(addr, 2, 64 << 20).await });
    let renewed = |n: usize| {
        let log = cluster.hubs[0].running().log.clone();
        async move {
            eventually("the hub took the token", PATIENCE, || async {
                (log.count("token_renewed") >= n).then_some(())
            })
            .await;
        }
    };
    fs::write(cluster.token_file(), signed(1000, "second", token::SECRET)).unwrap();
    renewed(1).await;
    // A token of a key that the hub does not have yet is refused, and sent again.
    let rotated = token::SECRET.chars().rev().collect::<String>();
    fs::write(cluster.token_file(), signed(2000, "third", &rotated)).unwrap();
    let agent = cluster.agent.as_ref().unwrap();
    eventually("the hub refuses it", PATIENCE, || async { agent.log.find("token_refused") }).await;
    fs::write(cluster.dir().join("hmac"), &rotated).unwrap();
    renewed(2).await;
    bounded("an echo", PATIENCE, pinger.ping(1000)).await.unwrap();
    pinger.close().await.unwrap();
    assert_eq!(bounded("the load", LONG_PATIENCE, load).await.unwrap(), Ok(()));
    let metrics = cluster.metrics(0).await;
    assert_eq!(metrics.sum("nowconnect_sessions_suspended_total", &[("plane", "tunnel")]), Some(0.0));
    let ends = metrics.sum("nowconnect_token_not_after_timestamp_seconds", &[("holder", "attached")]).unwrap();
    assert!(ends > (token::unix_now() + 1500) as f64, "the gauge shows the third token's end: {ends}");
    let own = cluster.agent_metrics().await.sum("nowconnect_token_not_after_timestamp_seconds", &[("holder", "self")]);
    assert!(own.is_some_and(|own| (own - ends).abs() < 10.0), "{own:?} {ends}");
    for process in [cluster.hubs[0].running(), cluster.agent.as_ref().unwrap()] {
        assert_eq!(process.log.find("eyJ"), None, "a token is in a log");
    }
    cluster.assert_alive();
}

/// A token that changes while a dial is under way reaches the tunnel of that dial,
/// which went out with the token of before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_changes_during_a_dial_reaches_its_tunnel() {
    let target = Target::start().await;
    let plan = Plan { token: Some(signed(1000, "first", token::SECRET)), tunnel_proxy: true, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let way = &cluster.tunnel_proxies[0];
    let before = way.accepted();
    way.stall();
    way.cut(Cut::Rst);
    eventually("the agent dials", PATIENCE, || async { (way.accepted() > before).then_some(()) }).await;
    fs::write(cluster.token_file(), signed(2000, "second", token::SECRET)).unwrap();
    cluster.agent.as_mut().unwrap().wait_line("token_changed", PATIENCE).await;
    cluster.tunnel_proxies[0].heal();
    eventually("the hub knows the second token", PATIENCE, || async {
        let ends = [("holder", "attached")];
        let ends = cluster.metrics(0).await.sum("nowconnect_token_not_after_timestamp_seconds", &ends)?;
        (ends > (token::unix_now() + 1500) as f64).then_some(())
    })
    .await;
    cluster.wait_echo(0, "t").await;
    cluster.assert_alive();
}

/// A connector that the token does not name is kept from the hubs, which would
/// end the tunnel: the reload is refused and says so. A token that names it
/// counts at once, also in the same breath.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connector_outside_the_token_is_refused_and_the_tunnel_lives() {
    let target = Target::start().await;
    let plan = Plan { token: Some(signed(1000, "narrow", token::SECRET)), ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).connector("u", target.addr).start_processes().await;
    // The agent begins with what its token names.
    let file = cluster.agent_file();
    let both = fs::read_to_string(&file).unwrap();
    let one: String = both.lines().filter(|l| !l.contains("name: u,")).map(|l| format!("{l}\n")).collect();
    fs::write(&file, &one).unwrap();
    cluster.kill_agent();
    cluster.start_agent();
    for ix in [0, 1] {
        cluster.wait_open(ix, "t").await;
    }
    let mut stream = Pinger::open(cluster.listener(1, "t"), 1).await.unwrap();
    let reload = async |cluster: &Cluster| {
        let mut command = nowconnect(["reload", "--timeout", "60s", "--socket"]);
        command.arg(cluster.dir().join("agent.sock"));
        bounded("the reload", LONG_PATIENCE, run(command)).await
    };

    fs::write(&file, &both).unwrap();
    let done = reload(&cluster).await;
    assert_eq!(done.status.code(), Some(1), "{}", done.stdout);
    for named in ["connectors: \"u\"", "names (t)", "token_file"] {
        assert!(done.stderr.contains(named), "{named:?} in {}", done.stderr);
    }
    bounded("an echo", PATIENCE, stream.ping(1000)).await.unwrap();
    assert_eq!(Transfer::Echo.run(cluster.listener(0, "t"), 2, 10_000).await, Ok(()));
    assert_eq!(cluster.get(0, "/readyz/u").await.unwrap().status, 503, "nothing of the file is in force");

    // The token and the connector in one go: the reload waits for the hub, 3 s
    // long, and says so if that was not enough.
    fs::write(cluster.token_file(), signed_for(&["t", "u"], 1000, "wide", token::SECRET)).unwrap();
    let mut too_soon = 0;
    let done = loop {
        let asked = Instant::now();
        let done = reload(&cluster).await;
        if !done.stderr.contains("reload again after `token_accepted`") {
            break done;
        }
        assert!(asked.elapsed() >= Duration::from_secs(3), "it did not wait: {}", done.stderr);
        too_soon += 1;
        assert!(too_soon < 15, "{}", done.stderr);
    };
    assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
    for ix in [0, 1] {
        cluster.wait_open(ix, "u").await;
    }
    assert_eq!(Transfer::Echo.run(cluster.listener(1, "u"), 3, 10_000).await, Ok(()));

    // A token that the hub does not take helps nobody.
    let other = token::SECRET.chars().rev().collect::<String>();
    fs::write(cluster.token_file(), signed_for(&["t", "u", "v"], 1000, "unknown", &other)).unwrap();
    fs::write(&file, format!("{both}  - {{ name: v, target: '{}' }}\n", target.addr)).unwrap();
    let done = reload(&cluster).await;
    assert_eq!(done.status.code(), Some(1), "{}", done.stdout);
    assert!(done.stderr.contains("hub-a took last does not name \"v\""), "{}", done.stderr);

    bounded("an echo", PATIENCE, stream.ping(1000)).await.unwrap();
    stream.close().await.unwrap();
    let metrics = cluster.metrics(0).await;
    assert_eq!(metrics.sum("nowconnect_sessions_suspended_total", &[("plane", "tunnel")]), Some(0.0));
    let refused = cluster.agent_metrics().await.sum("nowconnect_config_reloads_total", &[("result", "refused")]);
    assert_eq!(refused, Some(2.0 + f64::from(too_soon)));
    assert_eq!(cluster.agent.as_ref().unwrap().log.find("eyJ"), None, "a token is in a log");
    cluster.assert_alive();
}

/// Streams that were open when the token ran out: one of a client of the agent's
/// own hub, and one that crosses, of a client of hub B.
struct Expired {
    cluster: Cluster,
    streams: [Pinger; 2],
    _target: Target,
}

async fn expiring(rule: &str, drain: &str) -> Expired {
    let target = Target::start().await;
    // A restart of the file's own key `auth` is not possible: the rule stands beside `jwt`.
    let jwt_extra = format!("{WITHOUT_LEEWAY} }}\n  on_expiry: {rule}\n  x-rest: {{ a: b");
    let hub_extra = format!("drain: {{ timeout: {drain} }}\n");
    let plan = Plan { token: Some(signed(30, rule, token::SECRET)), jwt_extra, hub_extra, ..Plan::default() };
    let cluster = plan.connector("t", target.addr).start().await;
    let mut streams = Vec::new();
    for ix in [0, 1] {
        streams.push(Pinger::open(cluster.listener(ix, "t"), 1 + ix as u64).await.unwrap());
    }
    let crossed = cluster.metrics(1).await.sum("nowconnect_streams_total", &[("listener", "t"), ("path", "mesh")]);
    assert_eq!(crossed, Some(1.0), "the second one crosses");
    let log = &cluster.hubs[0].running().log;
    eventually("the token ran out", LONG_PATIENCE, || async { log.find("token_expired") }).await;
    let Ok(streams) = <[Pinger; 2]>::try_from(streams) else { panic!("two of them") };
    Expired { cluster, streams, _target: target }
}

impl Expired {
    async fn ping(&mut self) {
        for (ix, stream) in self.streams.iter_mut().enumerate() {
            let done = bounded("an echo", PATIENCE, stream.ping(1000)).await;
            assert_eq!(done, Ok(()), "of a client of hub {ix}");
        }
    }

    /// Both end as aborts, at the client.
    async fn both_are_reset(self) -> Cluster {
        for (ix, stream) in self.streams.into_iter().enumerate() {
            let mut socket = stream.into_socket();
            let end = bounded("the reset", LONG_PATIENCE, read_to_end(&mut socket)).await;
            assert_eq!(end, Err(Failure::Reset), "of a client of hub {ix}");
        }
        self.cluster
    }

    /// I4: nothing new in any case, from nowhere.
    async fn takes_nothing_new(&self) {
        for ix in [0, 1] {
            match tokio::net::TcpStream::connect(self.cluster.listener(ix, "t")).await {
                Ok(mut socket) => {
                    let end = bounded("the refusal", PATIENCE, read_to_end(&mut socket)).await;
                    assert_eq!(end, Err(Failure::Reset), "at hub {ix}");
                }
                // Before the client has looked at its new socket.
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "at hub {ix}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keep_leaves_open_streams_alone() {
    let mut s = expiring("keep", "1s").await;
    s.takes_nothing_new().await;
    s.ping().await;
    // 80 % of its life was told before.
    assert!(s.cluster.agent.as_ref().unwrap().log.find("token_ages").is_some());
    // A fresh token makes it whole again.
    fs::write(s.cluster.token_file(), signed(1000, "fresh", token::SECRET)).unwrap();
    for ix in [0, 1] {
        s.cluster.wait_open(ix, "t").await;
        let outcome = bounded("an echo", PATIENCE, Transfer::Echo.run(s.cluster.listener(ix, "t"), 10, 1000)).await;
        assert_eq!(outcome, Ok(()), "a new stream at hub {ix}");
    }
    s.ping().await;
    for stream in s.streams {
        stream.close().await.unwrap();
    }
    s.cluster.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_ends_open_streams_at_once() {
    let s = expiring("cut", "600s").await;
    s.takes_nothing_new().await;
    s.both_are_reset().await.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_lets_open_streams_end_within_its_time() {
    let mut s = expiring("drain", "20s").await;
    s.takes_nothing_new().await;
    s.ping().await;
    s.both_are_reset().await.assert_alive();
}

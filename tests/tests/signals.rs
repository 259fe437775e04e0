//! Signals are heard whatever a process waits for, and an agent that may give
//! hubs up outlives their rolling restart.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nowconnect_tests::actors::Transfer;
use nowconnect_tests::cluster::{AGENT, Cluster, Plan};
use nowconnect_tests::process::{Signal, nowconnect, run};
use nowconnect_tests::target::Target;
use nowconnect_tests::token;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};
use serde_json::json;
use tokio::net::TcpListener;

/// Nodes of a cluster that take connections and never say anything.
struct Silence {
    url: String,
    asked: Arc<AtomicUsize>,
}

impl Silence {
    /// As many as a URL may name: to ask them all takes half a minute.
    const NODES: usize = 64;

    async fn start() -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let hosts: Vec<String> = (1..=Self::NODES).map(|n| format!("127.0.0.{n}:{port}")).collect();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut held = Vec::new();
            loop {
                held.push(listener.accept().await.unwrap());
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { url: format!("redis-cluster://{}", hosts.join(",")), asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// The first hub asks them, and a signal ends it before it is through.
    async fn ends_with_sigterm(&self, cluster: &mut Cluster) {
        eventually("the registry is asked", PATIENCE, || async { (self.asked() > 0).then_some(()) }).await;
        let hub = cluster.hubs[0].process.as_mut().unwrap();
        hub.signal(Signal::TERM);
        let status = hub.wait_exit(LONG_PATIENCE).await;
        assert!(status.success(), "{status}");
        assert!(self.asked() < Self::NODES, "it had asked all of them first");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_waits_for_its_registry_at_the_start_hears_sigterm() {
    let silence = Silence::start().await;
    let plan = Plan { hubs: 1, redis_url: Some(silence.url.clone()), ..Plan::default() };
    let mut cluster = plan.connector("t", "127.0.0.1:1").start_processes().await;
    silence.ends_with_sigterm(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_waits_for_a_registry_in_a_reload_hears_sigterm() {
    let target = Target::start().await;
    let silence = Silence::start().await;
    let hub_extra = "drain: { lameduck: 0s, timeout: 1s }\n".to_owned();
    let mut cluster = Plan { hubs: 1, hub_extra, ..Plan::default() }.connector("t", target.addr).start().await;
    let active = fs::read_to_string(cluster.hub_file(0)).unwrap();
    fs::write(cluster.hub_file(0), active.replace("  mode: active\n", "  mode: off\n")).unwrap();
    cluster.hubs[0].running().signal(Signal::HUP);
    cluster.wait_metric(0, "nowconnect_config_reloads_total", &[("result", "applied")], 1.0).await;
    let elsewhere = active.replace(&cluster.redis.url(), &silence.url);
    assert_ne!(elsewhere, active);
    fs::write(cluster.hub_file(0), elsewhere).unwrap();
    cluster.hubs[0].running().signal(Signal::HUP);
    silence.ends_with_sigterm(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_waits_for_a_hub_in_a_reload_hears_sigterm() {
    // The wait lasts 3 s. Where it ended before the signal was heard, that may
    // have been the machine: a reload that goes first does so each time.
    for _ in 0..5 {
        if an_agent_in_a_reload_hears_sigterm_first().await {
            return;
        }
    }
    panic!("the reload went first, each time");
}

/// Whether the signal ended the agent while a reload was still under way.
async fn an_agent_in_a_reload_hears_sigterm_first() -> bool {
    let target = Target::start().await;
    let mut cluster = Plan { hubs: 1, ..Plan::default() }.connector("t", target.addr).start().await;
    // A token that the hub does not take: the reload waits for it as long as it may.
    let other = token::SECRET.chars().rev().collect::<String>();
    let claims = token::claims(AGENT, &["t", "u"]).to_string();
    fs::write(cluster.token_file(), token::sign(&json!({"alg": "HS256", "typ": "JWT"}), &claims, &other)).unwrap();
    let more = format!("connectors:\n  - {{ name: u, target: '{}' }}\n", target.addr);
    let text = fs::read_to_string(cluster.agent_file()).unwrap();
    fs::write(cluster.agent_file(), text.replace("connectors:\n", &more)).unwrap();
    cluster.agent.as_ref().unwrap().signal(Signal::HUP);
    // Refused while the signal's is under way; or it came first, and that one follows.
    let mut command = nowconnect(["reload", "--timeout", "60s", "--socket"]);
    command.arg(cluster.dir().join("agent.sock"));
    let done = bounded("the other reload", LONG_PATIENCE, run(command)).await;
    assert_eq!(done.status.code(), Some(1), "{}", done.stdout);
    let agent = cluster.agent.as_mut().unwrap();
    let waited = "has not taken the one in token_file";
    agent.signal(Signal::TERM);
    let status = agent.wait_exit(PATIENCE).await;
    assert!(status.success(), "{status}");
    agent.wait_line("stopped", PATIENCE).await;
    // The other reload's own, if that waited itself; any more is the signal's.
    agent.log.count(waited) == usize::from(done.stderr.contains(waited))
}

/// Waits until the agent is attached to hub `ix` and clients get through.
async fn served_at(cluster: &Cluster, ix: usize) {
    let tunnels = [("plane", "tunnel"), ("state", "connected")];
    cluster.wait_metric(ix, "nowconnect_sessions", &tunnels, 1.0).await;
    cluster.wait_open(ix, "t").await;
    assert_eq!(Transfer::Echo.run(cluster.listener(ix, "t"), 1, 10_000).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_may_give_hubs_up_outlives_their_rolling_restart() {
    for parallel in [1, 2] {
        let target = Target::start().await;
        let agent_extra =
            "reconnect: { initial_delay: 50ms, max_delay: 50ms, jitter: 0, max_retries: 2 }\nresume_window: 1s\n";
        let plan = Plan {
            attach: vec![0, 1],
            parallel,
            default_reconnect: true,
            agent_extra: agent_extra.to_owned(),
            ..Plan::default()
        };
        let mut cluster = plan.connector("t", target.addr).start().await;
        served_at(&cluster, 0).await;
        let mut given_up = 0;
        for (round, ix) in [0, 1, 0, 1].into_iter().enumerate() {
            cluster.kill_hub(ix);
            served_at(&cluster, 1 - ix).await;
            // With one tunnel wanted, hub `ix` may rest before that.
            if parallel == 2 {
                given_up += 1;
                let log = &cluster.agent.as_ref().unwrap().log;
                eventually("it is given up", PATIENCE, || async { (log.count("gave_up") == given_up).then_some(()) })
                    .await;
            }
            // By then the other tunnel has lasted.
            let log = &cluster.agent.as_ref().unwrap().log;
            let lost = || async { (log.count("session_lost") > round).then_some(()) };
            eventually("its session is over", PATIENCE, lost).await;
            cluster.start_hub(ix);
            eventually("the hub is back", PATIENCE, || async {
                cluster.get(ix, "/readyz").await.ok().filter(|a| a.status == 200)
            })
            .await;
        }
        cluster.assert_alive();
        // With both away for good it says so, and ends.
        cluster.kill_hub(0);
        cluster.kill_hub(1);
        let agent = cluster.agent.as_mut().unwrap();
        let status = agent.wait_exit(LONG_PATIENCE).await;
        assert_eq!(status.code(), Some(1));
        agent.wait_line("every hub was given up", Duration::from_secs(5)).await;
    }
}

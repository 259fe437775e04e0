//! Several agents on one connector, as real processes (semantics 7): a target
//! that dies is withdrawn by its agent and comes back, opens that fail eject a
//! candidate, an agent that lowers its rank is passed over while another lives.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nowconnect_tests::actors::{Pinger, Transfer};
use nowconnect_tests::cluster::{Cluster, Plan};
use nowconnect_tests::http;
use nowconnect_tests::metrics::Metrics;
use nowconnect_tests::ports::Port;
use nowconnect_tests::process::{Process, Signal, nowconnect};
use nowconnect_tests::target::Target;
use nowconnect_tests::token;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, eventually};
use serde_json::Value;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A port before a target that can stop listening and listen again. Who comes
/// and goes without a byte does not get to the target.
struct Front {
    port: Port,
    to: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl Front {
    async fn start(to: SocketAddr) -> Self {
        let mut front = Self { port: Port::reserve(), to, accepting: None };
        front.up().await;
        front
    }

    const fn addr(&self) -> SocketAddr {
        self.port.addr
    }

    async fn up(&mut self) {
        let (listener, to) = (TcpListener::bind(self.addr()).await.unwrap(), self.to);
        self.accepting = Some(tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                tokio::spawn(async move {
                    if near.peek(&mut [0]).await.is_ok_and(|n| n > 0)
                        && let Ok(mut far) = TcpStream::connect(to).await
                    {
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        }));
    }

    /// From now on a connect is refused; what is connected stays.
    async fn down(&mut self) {
        let accepting = self.accepting.take().unwrap();
        accepting.abort();
        assert!(accepting.await.unwrap_err().is_cancelled());
    }
}

/// A further agent beside the cluster's.
struct Extra {
    name: &'static str,
    socket: PathBuf,
    process: Process,
}

impl Extra {
    /// Starts it as the cluster's agent with other lines of `connectors`.
    fn start(cluster: &Cluster, name: &'static str, connectors: &str) -> Self {
        let at = |end: &str| cluster.dir().join(format!("{name}.{end}"));
        fs::write(at("token"), token::good(name, &["t"])).unwrap();
        let text = fs::read_to_string(cluster.agent_file()).unwrap();
        let (own, _) = text.split_once("connectors:\n").unwrap();
        let own: String = (own.lines())
            .map(|l| match l.split_once(": ").map_or(l, |(key, _)| key) {
                "agent_id" => format!("agent_id: {name}\n"),
                "token_file" => format!("token_file: {}\n", at("token").display()),
                "admin" => format!("admin: {{ socket: {} }}\n", at("sock").display()),
                _ => format!("{l}\n"),
            })
            .collect();
        fs::write(at("yaml"), format!("{own}connectors:\n{connectors}")).unwrap();
        let mut command = nowconnect(["agent", "--config"]);
        command.arg(at("yaml"));
        Self { name, socket: at("sock"), process: Process::spawn(name, command) }
    }

    async fn metrics(&self) -> Metrics {
        let answer = http::get_unix(&self.socket, "/metrics").await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        Metrics::parse(&answer.body)
    }

    /// Waits until it has as many tunnels.
    async fn attached(&self, tunnels: f64) {
        eventually(&format!("{} has {tunnels} tunnels", self.name), PATIENCE, || async {
            assert!(self.process.runs(), "{} ended", self.name);
            let answer = http::get_unix(&self.socket, "/metrics").await.ok()?;
            (Metrics::parse(&answer.body).sum("nowconnect_tunnels", &[]) == Some(tunnels)).then_some(())
        })
        .await;
    }
}

/// Gives the cluster's agent other connectors, with a restart.
fn own_connectors(cluster: &mut Cluster, connectors: &str) {
    let file = cluster.agent_file();
    let text = fs::read_to_string(&file).unwrap();
    let (own, _) = text.split_once("connectors:\n").unwrap();
    fs::write(&file, format!("{own}connectors:\n{connectors}")).unwrap();
    cluster.kill_agent();
    cluster.start_agent();
}

fn connector(target: SocketAddr, more: &str) -> String {
    format!("  - {{ name: t, target: '{target}'{more} }}\n")
}

/// Which of two targets the next client of a hub gets; it must get one.
async fn lands(cluster: &Cluster, hub: usize, targets: [&Target; 2], stream: &AtomicU64) -> usize {
    let stream = stream.fetch_add(1, Relaxed);
    let before = targets.map(Target::accepted);
    assert_eq!(Transfer::Echo.run(cluster.listener(hub, "t"), stream, 1000).await, Ok(()), "client {stream}");
    targets.iter().zip(before).position(|(t, n)| t.accepted() > n).expect("one of the targets")
}

async fn wait_lands(cluster: &Cluster, hub: usize, targets: [&Target; 2], wanted: usize, stream: &AtomicU64) {
    eventually(&format!("clients of hub {hub} get target {wanted}"), LONG_PATIENCE, || async {
        (lands(cluster, hub, targets, stream).await == wanted).then_some(())
    })
    .await;
}

async fn up(cluster: &Cluster) -> Option<f64> {
    cluster.agent_metrics().await.sum("nowconnect_target_up", &[("connector", "t")])
}

async fn agent_readyz(cluster: &Cluster, path: &str) -> (u16, Value) {
    let answer = http::get_unix(&cluster.dir().join("agent.sock"), path).await.unwrap();
    (answer.status, serde_json::from_str(&answer.body).unwrap())
}

/// A target dies: its agent withdraws the connector at both hubs and keeps its
/// tunnels and streams; no client fails, at no time. It returns: clients return
/// after `failback_after`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_down_is_withdrawn_and_comes_back_after_failback_after() {
    let (first, second) = (Target::start().await, Target::start().await);
    let targets = [&first, &second];
    let mut front = Front::start(first.addr).await;
    let plan = Plan {
        attach: vec![0, 1],
        parallel: 2,
        hub_extra: "selection: { fall: 0, failback_after: 3s }\n".to_owned(),
        ..Plan::default()
    };
    let mut cluster = plan.connector("t", front.addr()).start().await;
    let checks = ", health: { kind: tcp, interval: 500ms, timeout: 500ms, fall: 3, rise: 2 }";
    own_connectors(&mut cluster, &connector(front.addr(), checks));
    cluster.wait_ready().await;
    eventually("the agent is attached to both", PATIENCE, || async {
        let metrics = http::get_unix(&cluster.dir().join("agent.sock"), "/metrics").await.ok()?;
        (Metrics::parse(&metrics.body).sum("nowconnect_tunnels", &[]) == Some(2.0)).then_some(())
    })
    .await;
    let other = Extra::start(&cluster, "plant-8", &connector(second.addr, ", priority: 5"));
    other.attached(2.0).await;
    let stream = AtomicU64::new(0);
    // Its tunnels are new: what came back is preferred after `failback_after`.
    for hub in [0, 1] {
        wait_lands(&cluster, hub, targets, 0, &stream).await;
    }
    let mut open = Pinger::open(cluster.listener(0, "t"), 1_000_001).await.unwrap();
    assert_eq!(agent_readyz(&cluster, "/readyz").await.1["targets"], serde_json::json!({ "t": "up" }));

    let told = async |cluster: &Cluster, hub: usize| {
        let labels = [("dir", "in"), ("type", "CONNECTORS")];
        cluster.metrics(hub).await.sum("nowconnect_tunnel_frames_total", &labels).unwrap_or(0.0)
    };
    let told_before = [told(&cluster, 0).await, told(&cluster, 1).await];
    front.down().await;
    eventually("the connector is withdrawn", LONG_PATIENCE, || async {
        // No client is refused meanwhile: a target that refuses is a definite no.
        lands(&cluster, 0, targets, &stream).await;
        (up(&cluster).await == Some(0.0)).then_some(())
    })
    .await;
    let (status, body) = agent_readyz(&cluster, "/readyz").await;
    assert_eq!((status, &body["status"]), (200, &"degraded".into()), "{body}");
    assert_eq!(
        (&body["reasons"], &body["targets"]),
        (&serde_json::json!(["targets_down"]), &serde_json::json!({ "t": "down" }))
    );
    assert_eq!(agent_readyz(&cluster, "/readyz?strict").await.0, 503);
    for hub in [0, 1] {
        eventually("the hub has heard of it", PATIENCE, || async {
            (told(&cluster, hub).await > told_before[hub]).then_some(())
        })
        .await;
    }
    let failures = |m: &Metrics| m.sum("nowconnect_open_failures_total", &[]).unwrap_or(0.0);
    let tried = failures(&cluster.agent_metrics().await);
    for n in 0..20 {
        assert_eq!(lands(&cluster, n % 2, targets, &stream).await, 1);
    }
    assert_eq!(failures(&cluster.agent_metrics().await), tried, "nobody is led to the dead target any more");
    open.ping(10_000).await.expect("streams are left alone");
    assert_eq!(cluster.agent_metrics().await.sum("nowconnect_tunnels", &[]), Some(2.0));
    let log = cluster.agent.as_ref().unwrap();
    assert_eq!(log.wait_line("target_down", PATIENCE).await.matches("REFUSED").count(), 1);

    let healed = Instant::now();
    front.up().await;
    eventually("the connector is exposed again", LONG_PATIENCE, || async {
        (up(&cluster).await == Some(1.0)).then_some(())
    })
    .await;
    wait_lands(&cluster, 0, targets, 0, &stream).await;
    let after = healed.elapsed();
    assert!(after >= Duration::from_secs(3), "preferred {after:?} after its target was back");
    wait_lands(&cluster, 1, targets, 0, &stream).await;
    open.ping(10_000).await.unwrap();
    let metrics = cluster.agent_metrics().await;
    for (result, least) in [("failed", 3.0), ("passed", 4.0)] {
        let labels = [("connector", "t"), ("result", result)];
        assert!(metrics.sum("nowconnect_target_checks_total", &labels).unwrap() >= least, "{result}");
    }
    assert!(other.metrics().await.sum("nowconnect_target_up", &[]).is_none(), "it checks nothing");
    cluster.assert_alive();
}

/// Without checks the hub finds out by opening: after `fall` failures the
/// candidate is not asked, after `eject` it is tried and returns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opens_that_fail_eject_a_candidate_until_it_works_again() {
    let (first, second) = (Target::start().await, Target::start().await);
    let targets = [&first, &second];
    let mut front = Front::start(first.addr).await;
    let plan = Plan {
        hubs: 1,
        hub_extra: "selection: { fall: 3, rise: 2, eject: 1s, eject_max: 2s }\n".to_owned(),
        ..Plan::default()
    };
    let mut cluster = plan.connector("t", front.addr()).start().await;
    let other = Extra::start(&cluster, "plant-8", &connector(second.addr, ", priority: 5"));
    other.attached(1.0).await;
    let stream = AtomicU64::new(0);
    assert_eq!(lands(&cluster, 0, targets, &stream).await, 0);
    let now = async |cluster: &Cluster| {
        cluster.metrics(0).await.sum("nowconnect_candidates_ejected", &[("connector", "t")]).unwrap()
    };
    assert_eq!(now(&cluster).await, 0.0);

    front.down().await;
    for _ in 0..3 {
        assert_eq!(lands(&cluster, 0, targets, &stream).await, 1);
    }
    assert_eq!(now(&cluster).await, 1.0);
    let labels = [("connector", "t"), ("reason", "REFUSED")];
    assert_eq!(cluster.metrics(0).await.sum("nowconnect_ejections_total", &labels), Some(1.0));
    let line = cluster.hubs[0].running().wait_line("candidate_ejected", PATIENCE).await;
    assert!(line.contains("plant-7") && line.contains("for_ms=1000"), "{line}");
    // Trials fail meanwhile, at most one at a time, and no client notices.
    cluster.wait_metric(0, "nowconnect_ejections_total", &labels, 1.0).await;
    eventually("a trial fails", LONG_PATIENCE, || async {
        assert_eq!(lands(&cluster, 0, targets, &stream).await, 1);
        (cluster.metrics(0).await.sum("nowconnect_ejections_total", &labels)? >= 2.0).then_some(())
    })
    .await;
    let failed = cluster.agent_metrics().await.sum("nowconnect_open_failures_total", &[]).unwrap();
    let clients = stream.load(Relaxed) as f64;
    assert!(failed < 10.0 && failed < clients, "{failed} of {clients} clients were led there first");

    front.up().await;
    wait_lands(&cluster, 0, targets, 0, &stream).await;
    eventually("it is reinstated", LONG_PATIENCE, || async {
        lands(&cluster, 0, targets, &stream).await;
        (now(&cluster).await == 0.0).then_some(())
    })
    .await;
    for _ in 0..5 {
        assert_eq!(lands(&cluster, 0, targets, &stream).await, 0);
    }
    cluster.hubs[0].running().wait_line("candidate_reinstated", PATIENCE).await;
    cluster.assert_alive();
}

/// The worse one of what an agent says and what the hub gives it counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_lowers_its_rank_is_passed_over_while_another_lives() {
    let (first, second) = (Target::start().await, Target::start().await);
    let targets = [&first, &second];
    let mut cluster = Plan { hubs: 1, ..Plan::default() }.connector("t", first.addr).start().await;
    own_connectors(&mut cluster, &connector(first.addr, ", priority: 1"));
    cluster.wait_ready().await;
    let mut other = Extra::start(&cluster, "plant-8", &connector(second.addr, ""));
    other.attached(1.0).await;
    let stream = AtomicU64::new(0);
    wait_lands(&cluster, 0, targets, 1, &stream).await;
    for _ in 0..10 {
        assert_eq!(lands(&cluster, 0, targets, &stream).await, 1);
    }
    // The hub gives plant-8 a rank behind that, which it cannot undo.
    let file = cluster.hub_file(0);
    let text = fs::read_to_string(&file).unwrap();
    let given = "selection: { priorities: [{ agent: plant-8, priority: 2 }] }\n";
    fs::write(&file, format!("{text}{given}")).unwrap();
    cluster.hubs[0].running().signal(Signal::HUP);
    cluster.wait_metric(0, "nowconnect_config_reloads_total", &[("result", "applied")], 1.0).await;
    for _ in 0..10 {
        assert_eq!(lands(&cluster, 0, targets, &stream).await, 0);
    }
    fs::write(&file, &text).unwrap();
    cluster.hubs[0].running().signal(Signal::HUP);
    cluster.wait_metric(0, "nowconnect_config_reloads_total", &[("result", "applied")], 2.0).await;
    assert_eq!(lands(&cluster, 0, targets, &stream).await, 1);
    other.process.assert_alive();
    drop(other);
    cluster.wait_metric(0, "nowconnect_sessions_suspended_total", &[], 1.0).await;
    wait_lands(&cluster, 0, targets, 0, &stream).await;
    cluster.assert_alive();
}

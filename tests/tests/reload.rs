//! A configuration file changes under load: taken as a whole or not at all,
//! and no stream that is open notices.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::PathBuf;

use nowconnect_tests::actors::{Flow, Pinger, Transfer};
use nowconnect_tests::certs::Authority;
use nowconnect_tests::cluster::{Cluster, Plan, hub_name};
use nowconnect_tests::ports::Port;
use nowconnect_tests::process::{Finished, Signal, nowconnect, run};
use nowconnect_tests::proxy::Cut;
use nowconnect_tests::target::{End, Target};
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, eventually};
use tokio::net::TcpStream;

fn edit(file: &PathBuf, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from:?} in\n{text}");
    fs::write(file, text.replacen(from, to, 1)).unwrap();
}

/// `nowconnect reload` at a hub, or at the agent.
async fn reload(cluster: &Cluster, socket: &str) -> Finished {
    let mut command = nowconnect(["reload", "--timeout", "60s", "--socket"]);
    command.arg(cluster.dir().join(socket));
    run(command).await
}

async fn applied(cluster: &Cluster, socket: &str) -> String {
    let done = reload(cluster, socket).await;
    assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
    done.stdout
}

async fn reloads(cluster: &Cluster, ix: usize, result: &str) -> f64 {
    cluster.metrics(ix).await.sum("nowconnect_config_reloads_total", &[("result", result)]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_used_is_refused_by_name_and_nothing_changes() {
    let target = Target::start().await;
    let mut cluster = Plan::default().connector("t", target.addr).start().await;
    let mut open = Vec::new();
    for hub in [0, 1] {
        open.push(Pinger::open(cluster.listener(hub, "t"), hub as u64).await.unwrap());
    }
    let file = cluster.hub_file(0);
    let good = fs::read_to_string(&file).unwrap();
    let taken = Port::reserve();
    let _holder = std::net::TcpListener::bind(taken.addr).unwrap();
    let extra = format!("listeners:\n  - {{ name: more, bind: '{}', connector: t }}\n", taken.addr);
    // What is wrong, and how the part of it that names its place begins.
    let at = |text: &str, line: &str, column: usize, rest: &str| {
        let line = text.lines().position(|l| l == line).unwrap() + 1;
        format!("hub-a.yaml:{line}:{column}: {rest}")
    };
    let mood = good.replace("  mode: active\n", "  mode: off\n  mood: good\n");
    let sideways = good.replace("  mode: active\n", "  mode: sideways\n");
    let twice = good.replace("  mode: active\n", "  mode: active\n  mode: active\n");
    let nowhere = good.replace("hmac_secret_file: ", "hmac_secret_file: /nowhere");
    let in_use = good.replace("listeners:\n", &extra).replace("  mode: active\n", "  mode: off\n");
    let cases = [
        (at(&mood, "  mood: good", 3, "ha.mood: unknown key"), mood),
        (at(&sideways, "  mode: sideways", 9, "ha.mode: "), sideways),
        ("hub-a.yaml:11:3: the key \"mode\" is written twice".to_owned(), twice),
        ("hub-a.yaml: the file is empty".to_owned(), String::new()),
        ("auth.jwt.hmac_secret_file".to_owned(), nowhere),
        ("listeners[more].bind".to_owned(), in_use),
    ];
    for (n, (named, text)) in cases.iter().enumerate() {
        fs::write(&file, text).unwrap();
        let done = reload(&cluster, "hub-a.sock").await;
        assert_eq!(done.status.code(), Some(1), "case {n}: {}", done.stdout);
        assert!(done.stderr.contains(named), "case {n}: {named:?} in {}", done.stderr);
        assert_eq!(reloads(&cluster, 0, "refused").await, n as f64 + 1.0);
    }
    // The same by signal, where only the log tells.
    let (named, text) = &cases[1];
    let log = &cluster.hubs[0].running().log;
    assert_eq!(log.count(named), 1, "the second reload");
    fs::write(&file, text).unwrap();
    cluster.hubs[0].running().signal(Signal::HUP);
    let refused = cases.len() as f64 + 1.0;
    cluster.wait_metric(0, "nowconnect_config_reloads_total", &[("result", "refused")], refused).await;
    let said = || log.tail(usize::MAX).lines().filter(|l| l.contains("config_refused") && l.contains(named)).count();
    eventually("the log names file, line and key", PATIENCE, || async { (said() == 2).then_some(()) }).await;
    assert_eq!(reloads(&cluster, 0, "applied").await, 0.0);
    let ready = cluster.get(0, "/readyz").await.unwrap();
    assert!(ready.body.contains("\"mode\":\"active\""), "{}", ready.body);
    for (hub, pinger) in open.iter_mut().enumerate() {
        pinger.ping(10_000).await.unwrap();
        assert_eq!(Transfer::Echo.run(cluster.listener(hub, "t"), 10 + hub as u64, 100_000).await, Ok(()));
    }
    fs::write(&file, &good).unwrap();
    assert_eq!(applied(&cluster, "hub-a.sock").await.trim(), "applied");
    // What a reload cannot change is said, and the rest of the file applies.
    edit(&file, "  replica_id: hub-a\n", "  replica_id: hub-z\n");
    edit(&file, "connector: t,", "connector: t, max_connections: 1,");
    let said = applied(&cluster, "hub-a.sock").await;
    assert!(said.contains("ha.replica_id: takes effect with a restart"), "{said}");
    assert!(Transfer::Echo.run(cluster.listener(0, "t"), 20, 10).await.is_err(), "max_connections is lower");
    cluster.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_limits_and_peers_change_while_streams_go_on() {
    let target = Target::start().await;
    let mut cluster = Plan::default().connector("t", target.addr).start().await;
    let mut open = Vec::new();
    for hub in [0, 1, 1] {
        open.push(Pinger::open(cluster.listener(hub, "t"), open.len() as u64).await.unwrap());
    }
    let file = cluster.hub_file(1);
    let good = fs::read_to_string(&file).unwrap();
    let hup = async |cluster: &Cluster, n: f64| {
        cluster.hubs[1].running().signal(Signal::HUP);
        cluster.wait_metric(1, "nowconnect_config_reloads_total", &[("result", "applied")], n).await;
    };
    // Below use: two clients stay, a third is refused.
    edit(&file, "connector: t,", "connector: t, max_connections: 1,");
    let more = Port::reserve();
    edit(&file, "listeners:\n", &format!("listeners:\n  - {{ name: more, bind: '{}', connector: t }}\n", more.addr));
    hup(&cluster, 1.0).await;
    assert!(Transfer::Echo.run(cluster.listener(1, "t"), 10, 10).await.is_err());
    assert_eq!(Transfer::Echo.run(more.addr, 11, 100_000).await, Ok(()), "the new listener serves");
    // The listener goes; its streams stay.
    let gone = good.lines().filter(|l| !l.contains("name: t,")).collect::<Vec<_>>().join("\n") + "\n";
    let only_more =
        format!("listeners:\n  - {{ name: more, bind: '{}', connector: t, allow: [10.0.0.0/8] }}\n", more.addr);
    fs::write(&file, gone.replace("listeners:\n", &only_more)).unwrap();
    hup(&cluster, 2.0).await;
    assert!(TcpStream::connect(cluster.listener(1, "t")).await.is_err(), "nobody listens there");
    assert!(Transfer::Echo.run(more.addr, 12, 10).await.is_err(), "from outside `allow`");
    for pinger in &mut open {
        pinger.ping(10_000).await.unwrap();
    }
    // Without its peer: what crosses goes on, nothing new does, and the link ends with it.
    let peers = good.lines().find(|l| l.contains("peers: [")).unwrap();
    let alone = |text: &str| text.replace(peers, "    peers: []");
    fs::write(&file, alone(&good)).unwrap();
    let other = cluster.hub_file(0);
    let other_good = fs::read_to_string(&other).unwrap();
    let other_peers = other_good.lines().find(|l| l.contains("peers: [")).unwrap().to_owned();
    fs::write(&other, other_good.replace(&other_peers, "    peers: []")).unwrap();
    applied(&cluster, "hub-a.sock").await;
    hup(&cluster, 3.0).await;
    assert!(Transfer::Echo.run(cluster.listener(1, "t"), 13, 10).await.is_err());
    for pinger in &mut open {
        pinger.ping(10_000).await.unwrap();
    }
    for pinger in open {
        assert_eq!(pinger.close().await, Ok(()));
    }
    eventually("the link is over", PATIENCE, || async {
        let lost = cluster.metrics(1).await.sum("nowconnect_sessions_lost_total", &[("plane", "mesh")])?;
        (lost >= 1.0).then_some(())
    })
    .await;
    // As before: one side dials is enough.
    fs::write(&file, &good).unwrap();
    hup(&cluster, 4.0).await;
    cluster.wait_open(1, "t").await;
    assert_eq!(Transfer::Echo.run(cluster.listener(1, "t"), 14, 100_000).await, Ok(()));
    cluster.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_changes_targets_connectors_and_hubs() {
    let (first, second) = (Target::start().await, Target::start().await);
    let mut cluster = Plan::default().connector("t", first.addr).connector("u", first.addr).start().await;
    let mut open = Pinger::open(cluster.listener(1, "t"), 1).await.unwrap();
    let file = cluster.agent_file();
    let good = fs::read_to_string(&file).unwrap();
    // Another target, for what opens from now on.
    fs::write(&file, good.replace(&first.addr.to_string(), &second.addr.to_string())).unwrap();
    applied(&cluster, "agent.sock").await;
    let asked = first.accepted();
    for hub in [0, 1] {
        assert_eq!(Transfer::Echo.run(cluster.listener(hub, "t"), 2 + hub as u64, 10_000).await, Ok(()));
    }
    assert_eq!((first.accepted(), second.accepted()), (asked, 2));
    open.ping(1000).await.unwrap();
    // A connector is withdrawn on the live tunnel.
    let without: String = good.lines().filter(|l| !l.contains("name: u,")).map(|l| format!("{l}\n")).collect();
    fs::write(&file, &without).unwrap();
    cluster.agent.as_ref().unwrap().signal(Signal::HUP);
    eventually("`u` is not served any more", PATIENCE, || async {
        let answers = [cluster.get(0, "/readyz/u").await.ok()?, cluster.get(1, "/readyz/u").await.ok()?];
        answers.iter().all(|a| a.status == 503).then_some(())
    })
    .await;
    assert_eq!(cluster.get(0, "/readyz/t").await.unwrap().status, 200);
    // The file is wrong: nothing changes.
    fs::write(&file, without.replace("hubs: [", "hubs: ['nowhere', ")).unwrap();
    let done = reload(&cluster, "agent.sock").await;
    assert!(done.status.code() == Some(1) && done.stderr.contains("hubs[0]"), "{}", done.stderr);
    // Another hub: the tunnel moves; what is open ends where it is.
    let port = |ix: usize| cluster.hubs[ix].http().port().to_string();
    fs::write(&file, good.replace(&port(0), &port(1))).unwrap();
    applied(&cluster, "agent.sock").await;
    eventually("hub-b serves by itself", PATIENCE, || async {
        let local = [("path", "local")];
        let _ = Transfer::Echo.run(cluster.listener(1, "t"), 5, 100).await;
        (cluster.metrics(1).await.sum("nowconnect_streams_total", &local)? >= 1.0).then_some(())
    })
    .await;
    open.ping(10_000).await.unwrap();
    assert_eq!(open.close().await, Ok(()));
    cluster.assert_alive();
}

/// The number of links and tunnels that were suspended at a hub.
async fn established(cluster: &Cluster, ix: usize) -> bool {
    let m = cluster.metrics(ix).await;
    m.sum("nowconnect_mesh_links", &[("state", "established")]) == Some(1.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_cas_change_under_load() {
    let target = Target::start().await;
    let mut cluster = Plan { tls: true, ..Plan::default() }.connector("t", target.addr).start().await;
    let mut open = Vec::new();
    for hub in [0, 1] {
        open.push(Pinger::open(cluster.listener(hub, "t"), hub as u64).await.unwrap());
    }
    // And load: long transfers, both ways at once, by way of each hub.
    let flows: Vec<Flow> = (0..4).map(|n| Flow::start(cluster.listener(n % 2, "t"), 500 + n as u64)).collect();
    let flowing = async |flows: &[Flow]| {
        for flow in flows {
            flow.more(256 * 1024).await;
        }
    };
    flowing(&flows).await;
    let bundle = cluster.dir().join("ca.pem");
    let old = fs::read_to_string(&bundle).unwrap();
    let count = async |cluster: &Cluster, ix: usize, result: &str| {
        cluster.metrics(ix).await.sum("nowconnect_certificate_reloads_total", &[("result", result)]).unwrap()
    };
    // Two hubs that dial each other at the start give one session up.
    cluster.wait_no_handshake().await;
    let lost = async |cluster: &Cluster, ix: usize| {
        cluster.metrics(ix).await.sum("nowconnect_sessions_lost_total", &[]).unwrap()
    };
    let lost_before = [lost(&cluster, 0).await, lost(&cluster, 1).await];
    // A certificate that is none is kept out, and everything goes on.
    let cert = cluster.dir().join("hub-a.crt");
    let good = fs::read_to_string(&cert).unwrap();
    fs::write(&cert, "no certificate").unwrap();
    cluster.wait_metric(0, "nowconnect_certificate_reloads_total", &[("result", "refused")], 1.0).await;
    let not_after =
        cluster.metrics(0).await.sum("nowconnect_certificate_not_after_timestamp_seconds", &[("use", "http")]);
    assert!(not_after.unwrap() > 1e9);
    fs::write(&cert, good).unwrap();
    cluster.wait_metric(0, "nowconnect_certificate_reloads_total", &[("result", "applied")], 1.0).await;
    assert_eq!(cluster.get(0, "/healthz").await.unwrap().status, 200, "new handshakes work");

    // Two CAs overlap.
    let next = Authority::create(cluster.dir(), "ca2");
    let new = fs::read_to_string(cluster.dir().join("ca2.pem")).unwrap();
    let seen = [count(&cluster, 0, "applied").await, count(&cluster, 1, "applied").await];
    fs::write(&bundle, format!("{old}{new}")).unwrap();
    for ix in [0, 1] {
        cluster.wait_metric(ix, "nowconnect_certificate_reloads_total", &[("result", "applied")], seen[ix] + 1.0).await;
    }
    // Every hub gets a certificate of the new CA.
    for ix in [0, 1] {
        let name = hub_name(ix);
        let before = count(&cluster, ix, "applied").await;
        let _ = next.issue(&name, &[&name, "localhost", "127.0.0.1"]);
        cluster.wait_metric(ix, "nowconnect_certificate_reloads_total", &[("result", "applied")], before + 1.0).await;
    }
    for pinger in &mut open {
        pinger.ping(10_000).await.unwrap();
    }
    flowing(&flows).await;
    // The old CA leaves: live links were made under it and come back under the new one.
    fs::write(&bundle, &new).unwrap();
    for ix in [0, 1] {
        cluster.hubs[ix].running().wait_line("certificates_reloaded", PATIENCE).await;
    }
    cluster.agent.as_ref().unwrap().wait_line("peer_untrusted", LONG_PATIENCE).await;
    eventually("a hub ended the link made under the old CA", LONG_PATIENCE, || async {
        let said = |ix: usize| cluster.hubs[ix].running().log.find("peer_untrusted").is_some();
        (said(0) || said(1)).then_some(())
    })
    .await;
    eventually("links and streams are back", LONG_PATIENCE, || async {
        (established(&cluster, 0).await && established(&cluster, 1).await).then_some(())
    })
    .await;
    flowing(&flows).await;
    for (n, flow) in flows.into_iter().enumerate() {
        let moved = flow.end().await.unwrap_or_else(|e| panic!("transfer {n}: {e}"));
        assert!(moved >= 3 * 256 * 1024, "transfer {n}: {moved} bytes");
        assert_eq!(target.end_of(500 + n as u64).await, End::Clean, "transfer {n}, every byte checked at the target");
        assert_eq!(target.connections_of(500 + n as u64), 1, "transfer {n}");
    }
    for pinger in &mut open {
        pinger.ping(10_000).await.unwrap();
    }
    for ix in [0, 1] {
        assert_eq!(lost(&cluster, ix).await, lost_before[ix], "sessions lost at {}", hub_name(ix));
        assert_eq!(Transfer::Echo.run(cluster.listener(ix, "t"), 10 + ix as u64, 100_000).await, Ok(()));
    }
    cluster.assert_alive();
}

/// Whatever is wrong with a certificate, a key or a CA bundle: the reload is
/// refused and says which key and file, and old and new connections go on with
/// the last good set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_key_or_ca_is_refused_by_name_and_the_last_good_set_serves() {
    let target = Target::start().await;
    let plan = Plan { tls: true, mesh_proxy: true, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let flows = [0, 1].map(|hub| Flow::start(cluster.listener(hub, "t"), 500 + hub as u64));
    let path = |file: &str| cluster.dir().join(file);
    let read = |file: &str| fs::read_to_string(path(file)).unwrap();
    // The file, what is in it, and the key that names it.
    let cases = [
        ("hub-a.crt", "no certificate".to_owned(), "cert_file"),
        ("hub-a.key", "no key".to_owned(), "key_file"),
        ("hub-a.key", String::new(), "key_file"),
        ("hub-a.key", read("hub-b.key"), "key_file"),
        ("ca.pem", "no CA".to_owned(), "ha.mesh.tls.ca_bundle"),
        ("ca.pem", read("hub-a.key"), "ha.mesh.tls.ca_bundle"),
        ("ca.pem", read("ca.pem").replace("MII", "AAA"), "ha.mesh.tls.ca_bundle"),
    ];
    let unusable = [("result", "refused")];
    for (n, (file, text, key)) in cases.into_iter().enumerate() {
        let good = read(file);
        assert_ne!(good, text);
        let before = cluster.metrics(0).await.sum("nowconnect_certificate_reloads_total", &unusable).unwrap();
        fs::write(path(file), text).unwrap();
        let done = reload(&cluster, "hub-a.sock").await;
        assert_eq!(done.status.code(), Some(1), "case {n}, {file}: {}", done.stdout);
        let named = [key, file].iter().all(|word| done.stderr.contains(word));
        assert!(named, "case {n}: expected {key} and {file} in {}", done.stderr);
        assert_eq!(reloads(&cluster, 0, "refused").await, n as f64 + 1.0);
        // Without being asked to, the hub looks at its files as well.
        cluster.wait_metric(0, "nowconnect_certificate_reloads_total", &unusable, before + 1.0).await;

        assert_eq!(cluster.get(0, "/healthz").await.unwrap().status, 200, "case {n}: new connections");
        let resumed = async |ix: usize| {
            let mesh = [("plane", "mesh")];
            cluster.metrics(ix).await.sum("nowconnect_sessions_resumed_total", &mesh).unwrap_or(0.0)
        };
        let before = resumed(0).await;
        for hub in &cluster.hubs {
            hub.mesh_proxy.as_ref().unwrap().cut(Cut::Rst);
        }
        eventually("the link is back", PATIENCE, || async { (resumed(0).await > before).then_some(()) }).await;
        for (hub, flow) in flows.iter().enumerate() {
            flow.more(64 * 1024).await;
            let outcome = Transfer::Echo.run(cluster.listener(hub, "t"), 10 + hub as u64, 100_000).await;
            assert_eq!(outcome, Ok(()), "case {n}: new streams by way of {}", hub_name(hub));
        }
        fs::write(path(file), good).unwrap();
        assert_eq!(applied(&cluster, "hub-a.sock").await.trim(), "applied");
    }
    for (hub, flow) in flows.into_iter().enumerate() {
        flow.end().await.unwrap_or_else(|e| panic!("by way of {}: {e}", hub_name(hub)));
    }
    cluster.assert_alive();
}

//! A CA leaves a hub while links rest on it (semantics 8, I3): the link ends for
//! good, nobody comes back by the secret of its session, and whoever has a
//! certificate of another CA is let in. Links that rest on that one stay.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::PathBuf;

use nowconnect_tests::actors::{Failure, Pinger, Transfer, read_to_end};
use nowconnect_tests::certs::Authority;
use nowconnect_tests::cluster::{Cluster, Plan, hub_name};
use nowconnect_tests::process::{nowconnect, run};
use nowconnect_tests::target::Target;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};

const RELOADED: &str = "nowconnect_certificate_reloads_total";
const REFUSED: [(&str, &str); 2] = [("plane", "mesh"), ("cause", "AUTH")];
const MESH: [(&str, &str); 1] = [("plane", "mesh")];

async fn value(cluster: &Cluster, ix: usize, name: &str, labels: &[(&str, &str)]) -> f64 {
    cluster.metrics(ix).await.sum(name, labels).unwrap_or(0.0)
}

/// Does something to the files of certificates and waits until `hubs` use them.
async fn renewed(cluster: &Cluster, hubs: &[usize], change: impl FnOnce()) {
    let mut before = Vec::new();
    for &ix in hubs {
        before.push(value(cluster, ix, RELOADED, &[("result", "applied")]).await);
    }
    change();
    for (&ix, before) in hubs.iter().zip(before) {
        cluster.wait_metric(ix, RELOADED, &[("result", "applied")], before + 1.0).await;
    }
}

/// Gives hub 0 a bundle of its own with these CAs, by a reload.
async fn bundle(cluster: &Cluster, name: &str, cas: &str) -> PathBuf {
    let (file, path) = (cluster.hub_file(0), cluster.dir().join(name));
    fs::write(&path, cas).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    let (head, rest) = text.split_once("ca_bundle: ").unwrap();
    let (_, tail) = rest.split_once(',').unwrap();
    fs::write(&file, format!("{head}ca_bundle: {},{tail}", path.display())).unwrap();
    let mut command = nowconnect(["reload", "--timeout", "60s", "--socket"]);
    command.arg(cluster.dir().join("hub-a.sock"));
    let done = run(command).await;
    assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
    path
}

/// A hub's certificate is of this CA from now on.
fn issue(authority: &Authority, ix: usize) {
    let name = hub_name(ix);
    let _ = authority.issue(&name, &[&name, "localhost", "127.0.0.1"]);
}

fn untrusted(peer: &str) -> String {
    format!("event=\"peer_untrusted\" peer=\"{peer}\"")
}

fn said_untrusted(cluster: &Cluster, peer: &str) -> bool {
    cluster.hubs[0].running().log.find(&untrusted(peer)).is_some()
}

/// Clients of a hub are carried. Its HTTP port shows the certificates that
/// change here, so it is not asked.
async fn carries(cluster: &Cluster, ix: usize) {
    eventually(&format!("{} carries", hub_name(ix)), LONG_PATIENCE, || async {
        Transfer::Echo.run(cluster.listener(ix, "t"), 10, 100_000).await.ok()
    })
    .await;
}

/// Everybody trusts two CAs; hub-c has a certificate of the second one, the
/// others one of the first. The authority of the second.
async fn overlapping(cluster: &mut Cluster) -> (Authority, [String; 2]) {
    let dir = cluster.dir().to_owned();
    let next = Authority::create(&dir, "ca2");
    let [old, new] = ["ca.pem", "ca2.pem"].map(|f| fs::read_to_string(dir.join(f)).unwrap());
    renewed(cluster, &[0, 1, 2], || fs::write(dir.join("ca.pem"), format!("{old}{new}")).unwrap()).await;
    cluster.kill_hub(2);
    issue(&next, 2);
    cluster.start_hub(2);
    carries(cluster, 2).await;
    (next, [old, new])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_behind_an_ingress_ends_when_the_ca_of_its_peer_leaves() {
    let target = Target::start().await;
    let plan = Plan { hubs: 3, named_peers: true, tls: true, ingress: true, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let (next, [old, new]) = overlapping(&mut cluster).await;
    let trust = bundle(&cluster, "trust-a.pem", &format!("{old}{new}")).await;
    let far = Pinger::open(cluster.listener(1, "t"), 1).await.unwrap();
    let mut neighbour = Pinger::open(cluster.listener(2, "t"), 2).await.unwrap();
    assert!(!said_untrusted(&cluster, "hub-b"), "both CAs are known");
    let lost = value(&cluster, 0, "nowconnect_sessions_lost_total", &MESH).await;

    // The old CA leaves hub-a alone; hub-b would take the link up again at once.
    let refused = value(&cluster, 0, "nowconnect_handshake_failures_total", &REFUSED).await;
    renewed(&cluster, &[0], || fs::write(&trust, &new).unwrap()).await;
    let mut socket = far.into_socket();
    let end = bounded("the end of the stream", PATIENCE, read_to_end(&mut socket)).await;
    assert_eq!(end, Err(Failure::Reset), "an abort, never an end");
    cluster.hubs[0].running().wait_line(&untrusted("hub-b"), PATIENCE).await;
    assert!(!said_untrusted(&cluster, "hub-c"));
    assert_eq!(value(&cluster, 0, "nowconnect_sessions_lost_total", &MESH).await, lost + 1.0);
    cluster.wait_metric(0, "nowconnect_handshake_failures_total", &REFUSED, refused + 2.0).await;
    for ix in [0, 1] {
        assert_eq!(value(&cluster, ix, "nowconnect_sessions_resumed_total", &MESH).await, 0.0, "{}", hub_name(ix));
    }
    let up = async |cluster: &Cluster, peer: &str| {
        value(cluster, 0, "nowconnect_mesh_links", &[("peer", peer), ("state", "established")]).await
    };
    assert_eq!((up(&cluster, "hub-b").await, up(&cluster, "hub-c").await), (0.0, 1.0));
    neighbour.ping(10_000).await.unwrap();

    // With a certificate of the new CA hub-b is let in again.
    renewed(&cluster, &[1], || issue(&next, 1)).await;
    eventually("the link is back", LONG_PATIENCE, || async { (up(&cluster, "hub-b").await == 1.0).then_some(()) })
        .await;
    carries(&cluster, 1).await;
    neighbour.ping(10_000).await.unwrap();
    assert_eq!(value(&cluster, 0, "nowconnect_sessions_lost_total", &MESH).await, lost + 1.0, "hub-c's went on");

    // The same by a reload that names another bundle: nobody is left.
    let _ = Authority::create(cluster.dir(), "ca3");
    let third = fs::read_to_string(cluster.dir().join("ca3.pem")).unwrap();
    bundle(&cluster, "trust-a3.pem", &third).await;
    let mut socket = neighbour.into_socket();
    let end = bounded("the end of the neighbour's stream", PATIENCE, read_to_end(&mut socket)).await;
    assert_eq!(end, Err(Failure::Reset));
    cluster.hubs[0].running().wait_line(&untrusted("hub-c"), PATIENCE).await;
    assert_eq!(value(&cluster, 0, "nowconnect_sessions_lost_total", &MESH).await, lost + 3.0);
    cluster.assert_alive();
}

/// Where TLS ends at both hubs a session waits for a peer with a certificate
/// that counts (`certificates_and_cas_change_under_load` has one come back), and
/// for nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_native_link_is_not_resumed_by_whom_no_ca_vouches_for() {
    let target = Target::start().await;
    let hub_extra = "resume_window: 2s\n".to_owned();
    let plan = Plan { hubs: 3, named_peers: true, tls: true, hub_extra, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let (next, [_, new]) = overlapping(&mut cluster).await;
    let far = Pinger::open(cluster.listener(1, "t"), 1).await.unwrap();
    let mut neighbour = Pinger::open(cluster.listener(2, "t"), 2).await.unwrap();
    bundle(&cluster, "trust-a.pem", &new).await;
    let mut socket = far.into_socket();
    let end = bounded("the end of the stream", LONG_PATIENCE, read_to_end(&mut socket)).await;
    assert_eq!(end, Err(Failure::Reset), "an abort, never an end");
    for ix in [0, 1] {
        assert_eq!(value(&cluster, ix, "nowconnect_sessions_resumed_total", &MESH).await, 0.0, "{}", hub_name(ix));
    }
    neighbour.ping(10_000).await.unwrap();

    renewed(&cluster, &[1], || issue(&next, 1)).await;
    carries(&cluster, 1).await;
    neighbour.ping(10_000).await.unwrap();
    cluster.assert_alive();
}

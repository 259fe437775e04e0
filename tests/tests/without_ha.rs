//! A single hub with HA switched off behaves as if there were none: clients are
//! carried, the registry hears nothing, no peer is dialled or let in (M1).

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use nowconnect_core::wire::{Codec, Dialect, Plane};
use nowconnect_tests::actors::{Pinger, Transfer};
use nowconnect_tests::cluster::{Cluster, Plan};
use nowconnect_tests::hostile::{Peer, Reaction};
use nowconnect_tests::target::{End, Target};
use nowconnect_tests::wait::{PATIENCE, eventually};
use tokio::net::TcpListener;

/// Connections Redis has accepted; each question is one.
async fn connections(cluster: &Cluster) -> u64 {
    let info = cluster.redis.call("INFO stats").await.unwrap();
    let line = info.lines().find_map(|l| l.strip_prefix("total_connections_received:")).unwrap();
    line.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_without_ha_serves_and_has_no_side_effects() {
    let target = Target::start().await;
    // A peer that would notice being dialled.
    let peer = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut cluster = Plan { hubs: 1, ..Plan::default() }.connector("t", target.addr).start().await;
    let file = cluster.hub_file(0);
    let with = fs::read_to_string(&file).unwrap();
    let url = format!("'ws://{}/mesh'", peer.local_addr().unwrap());
    let without =
        with.replace("  enabled: true\n", "  enabled: false\n").replace("peers: []", &format!("peers: [{url}]"));
    assert!(without.contains("enabled: false") && without.contains(&url));
    fs::write(&file, without).unwrap();
    cluster.kill_hub(0);
    // What it left would end at any time: its lease lasts for seconds.
    cluster.redis.call("FLUSHALL").await.unwrap();
    let asked = connections(&cluster).await;
    cluster.start_hub(0);
    cluster.wait_ready().await;

    let addr = cluster.listener(0, "t");
    let mut open = Pinger::open(addr, 100).await.unwrap();
    for (n, transfer) in Transfer::ALL.into_iter().enumerate() {
        assert_eq!(transfer.run(addr, n as u64, 3_000_000).await, Ok(()), "{transfer:?}");
        assert_eq!(target.end_of(n as u64).await, End::Clean);
    }
    // A new agent is taken without a claim.
    cluster.kill_agent();
    cluster.start_agent();
    eventually("the new agent carries", PATIENCE, || async { Transfer::Echo.run(addr, 50, 100).await.ok() }).await;
    drop(open.ping(1).await);

    let http = cluster.hubs[0].http();
    let mesh = Dialect { codec: Codec::BinaryV2, plane: Plane::Mesh };
    let let_in = tokio::task::spawn_blocking(move || Peer::upgrade(http, mesh, "").err()).await.unwrap();
    assert!(matches!(let_in, Some(Reaction::Status(404, _))), "{let_in:?}");
    let ready: serde_json::Value = serde_json::from_str(&cluster.get(0, "/readyz").await.unwrap().body).unwrap();
    assert_eq!((&ready["status"], &ready["mode"]), (&"ready".into(), &"off".into()));
    assert_eq!((&ready["mesh"]["status"], &ready["registry"]["status"]), (&"unused".into(), &"unused".into()));
    let metrics = cluster.metrics(0).await;
    for name in ["nowconnect_mesh_frames_total", "nowconnect_registry_errors_total"] {
        assert_eq!(metrics.sum(name, &[]).unwrap_or(0.0), 0.0, "{name}");
    }
    assert_eq!(metrics.sum("nowconnect_registry_seconds_count", &[]).unwrap_or(0.0), 0.0);
    // What is not wanted is not down: no gauge that an alert could take for a link that is missed.
    for gauge in ["nowconnect_mesh_links", "nowconnect_mesh_peer_absent"] {
        assert_eq!(metrics.sum(gauge, &[]), None, "{gauge}");
    }
    assert_eq!(metrics.sum("nowconnect_mesh_link_errors_total", &[]), Some(0.0));
    // This question.
    assert_eq!(connections(&cluster).await, asked + 1, "nobody else came to Redis");
    assert_eq!(cluster.redis.call("DBSIZE").await.unwrap(), ":0\r\n");
    let dialled = tokio::time::timeout(std::time::Duration::from_millis(1), peer.accept()).await;
    assert!(dialled.is_err(), "a peer was dialled");
    cluster.assert_alive();
}

//! Broken connections lose nothing: while 64 transfers run, the connection of
//! the tunnel or of the link is cut 20 times, at chosen bytes and so in the
//! middle of frames, orderly and with resets. Every transfer completes, every
//! byte is right, nothing is reset (semantics 2, numbered sessions).

#![allow(clippy::unwrap_used, reason = "tests")]

use nowconnect_tests::actors::{Pinger, Transfer};
use nowconnect_tests::cluster::{Cluster, Plan, Wire};
use nowconnect_tests::proxy::{Cut, Proxy};
use nowconnect_tests::target::{End, Target};
use nowconnect_tests::wait::{LONG_PATIENCE, bounded};
use tokio::task::JoinSet;

const CUTS: u64 = 20;
const TRANSFERS: u64 = 64;
/// Bytes of one transfer, each way: together well above what the cuts wait for.
const LENGTH: u64 = 1_300_001;

/// Which connections are cut.
#[derive(Clone, Copy, Debug)]
enum Where {
    Tunnel,
    Link,
}

async fn cut_twenty_times(wire: Wire, place: Where) {
    let target = Target::start().await;
    // The cuts begin while OPENs are still under way. They wait behind what each
    // new connection replays, and one that carries a megabyte before the next
    // cut can keep them longer than the default open.timeout; this test is about
    // loss, not about that deadline.
    let hub_extra = "open: { timeout: 60s }\n".to_owned();
    let plan = Plan { tunnel_proxy: true, mesh_proxy: true, hub_extra, ..Plan::default() };
    let mut cluster = plan.wire(wire).connector("t", target.addr).start().await;
    // The tunnel is cut under clients of hub A, the link under those of hub B.
    let (hub, proxies): (usize, Vec<&Proxy>) = match place {
        Where::Tunnel => (0, vec![&cluster.tunnel_proxies[0]]),
        Where::Link => (1, cluster.hubs.iter().map(|h| h.mesh_proxy.as_ref().unwrap()).collect()),
    };
    let addr = cluster.listener(hub, "t");
    // Of the link's two possible connections one carries the session.
    let mut quiet = Pinger::open(addr, 1_000).await.unwrap();
    let before: Vec<u64> = proxies.iter().map(|p| p.bytes()).collect();
    for _ in 0..20 {
        quiet.ping(1000).await.unwrap();
    }
    let moved = |(ix, p): &(usize, &&Proxy)| p.bytes() - before[*ix];
    let proxy = *proxies.iter().enumerate().max_by_key(moved).unwrap().1;

    let mut all = JoinSet::new();
    for stream in 0..TRANSFERS {
        let transfer = Transfer::ALL[stream as usize % 3];
        all.spawn(async move { (stream, transfer, transfer.run(addr, stream, LENGTH).await) });
    }
    let first = proxy.cuts();
    for n in 1..=CUTS {
        // Odd distances: the cut falls anywhere in a frame, also in its head.
        let bytes = 200_003 + u32::try_from(n).unwrap() * 70_001;
        let how = if n % 2 == 0 { Cut::Fin } else { Cut::Rst };
        proxy.cut_after(bytes, how);
        proxy.wait_cuts(first + n, LONG_PATIENCE).await;
        assert!(!all.is_empty());
    }
    bounded("64 transfers over a connection that was cut 20 times", LONG_PATIENCE, async {
        while let Some(done) = all.join_next().await {
            let (stream, transfer, outcome) = done.unwrap();
            assert_eq!(outcome, Ok(()), "stream {stream}: {transfer:?}");
        }
    })
    .await;
    for stream in 0..TRANSFERS {
        assert_eq!(target.end_of(stream).await, End::Clean, "stream {stream}");
    }
    bounded("the quiet stream", LONG_PATIENCE, quiet.ping(1000)).await.unwrap();
    quiet.close().await.unwrap();
    nothing_was_reset(&cluster).await;
    cluster.assert_alive();
}

/// Cut while nothing moves: the next byte finds a session that came back.
async fn cut_when_idle(wire: Wire) {
    let target = Target::start().await;
    let plan = Plan { tunnel_proxy: true, mesh_proxy: true, ..Plan::default() };
    let mut cluster = plan.wire(wire).connector("t", target.addr).start().await;
    let mut pingers = Vec::new();
    for stream in 0..8 {
        let hub = usize::try_from(stream % 2).unwrap();
        pingers.push(Pinger::open(cluster.listener(hub, "t"), stream).await.unwrap());
    }
    for how in [Cut::Rst, Cut::Fin, Cut::Rst] {
        cluster.tunnel_proxies[0].cut(how);
        for hub in &cluster.hubs {
            hub.mesh_proxy.as_ref().unwrap().cut(how);
        }
        for pinger in &mut pingers {
            bounded("an echo after a cut", LONG_PATIENCE, pinger.ping(5000)).await.unwrap();
        }
    }
    nothing_was_reset(&cluster).await;
    cluster.assert_alive();
}

async fn nothing_was_reset(cluster: &Cluster) {
    let mut ended = Vec::new();
    for ix in 0..cluster.hubs.len() {
        ended.push((format!("hub {ix}"), cluster.metrics(ix).await));
    }
    ended.push(("the agent".to_owned(), cluster.agent_metrics().await));
    for (node, metrics) in &ended {
        let lost = metrics.sum("nowconnect_stream_ends_total", &[("cause", "LOST")]);
        assert_eq!(lost, None, "streams lost at {node}");
        assert!(metrics.sum("nowconnect_stream_ends_total", &[]).is_some(), "{node} counts ends");
    }
}

macro_rules! matrix {
    ($($name:ident: $work:ident($($arg:expr),*);)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $work($($arg),*).await;
        }
    )*};
}

matrix! {
    tunnel_cut_twenty_times_v2: cut_twenty_times(Wire::V2, Where::Tunnel);
    tunnel_cut_twenty_times_v1: cut_twenty_times(Wire::V1, Where::Tunnel);
    link_cut_twenty_times_v2: cut_twenty_times(Wire::V2, Where::Link);
    link_cut_twenty_times_v1: cut_twenty_times(Wire::V1, Where::Link);
    idle_sessions_come_back_v2: cut_when_idle(Wire::V2);
    idle_sessions_come_back_v1: cut_when_idle(Wire::V1);
}

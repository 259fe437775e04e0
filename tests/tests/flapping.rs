//! An agent that comes and goes ten times a second: what it costs is bounded
//! (L8), the agents beside it notice nothing (I2), and the counters tell.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::wildcard_enum_match_arm, reason = "tests")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nowconnect_core::error::CloseCode;
use nowconnect_core::id::Instance;
use nowconnect_core::wire::{Codec, Dialect, HelloRole, Plane};
use nowconnect_tests::actors::Transfer;
use nowconnect_tests::cluster::Plan;
use nowconnect_tests::hostile::{Peer, Reaction, agent_hello};
use nowconnect_tests::ownership::{Standing, echo};
use nowconnect_tests::proxy::Cut;
use nowconnect_tests::target::Target;
use nowconnect_tests::token;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};

const TUNNEL: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Tunnel };
/// Attachments made as fast as they go, at least ten a second.
const TIMES: u64 = 300;

/// What became of the attempts.
#[derive(Debug, Default)]
struct Tally {
    attached: u32,
    sent_away: u32,
}

/// Attaches as a new instance each time, and breaks off.
fn flap(hub: SocketAddr, token: &str) -> Tally {
    let mut tally = Tally::default();
    for n in 0..TIMES {
        let mut hello = agent_hello("flapper", &["f"]);
        if let HelloRole::Agent(agent) = &mut hello.role {
            agent.instance = Instance(0x0f1a_0000_0000_0000 + n);
        }
        match Peer::establish(hub, TUNNEL, token, hello) {
            Ok(_) => tally.attached += 1,
            Err(Reaction::Closed { goaway: Some(CloseCode::Busy), .. }) => tally.sent_away += 1,
            Err(other) => panic!("attempt {n}: {other:?}"),
        }
    }
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_attaches_ten_times_a_second_is_slowed_and_costs_nobody_else() {
    let target = Target::start().await;
    let mut cluster = Plan::default().connector("t", target.addr).start().await;
    let mut standing = Standing::open(&[cluster.listener(0, "t"), cluster.listener(1, "t")]).await;
    // What a hub claims anew for an attachment that it has is none.
    let gained = async || {
        let metrics = cluster.metrics(0).await;
        let by = |labels: &[(&str, &str)]| metrics.sum("nowconnect_ownership_changes_total", labels).unwrap_or(0.0);
        by(&[("change", "gained")]) - by(&[("change", "gained"), ("cause", "reclaim")])
    };
    let before = gained().await;
    let hub = cluster.hubs[0].http();
    let token = token::good("flapper", &["f"]);
    let began = Instant::now();
    let mut flapper = tokio::task::spawn_blocking(move || flap(hub, &token));
    let mut served = 0;
    let tally = loop {
        tokio::select! {
            done = &mut flapper => break done.unwrap(),
            () = async {
                standing.ping().await;
                for ix in [0, 1] {
                    assert_eq!(echo(cluster.listener(ix, "t"), served).await, Ok(()), "a neighbour's client, hub {ix}");
                }
            } => served += 1,
        }
    };
    let took = began.elapsed();
    println!("{tally:?} in {took:?}; {served} rounds of the neighbour's clients");
    assert!(served > 0);
    assert_eq!(u64::from(tally.attached + tally.sent_away), TIMES);
    // Sixty at once, and two a second after that, however fast it comes.
    let most = 60 + 2 * u32::try_from(took.as_secs() + 1).unwrap();
    assert!(tally.attached <= most && tally.sent_away > 0, "{tally:?} in {took:?}, at most {most} may attach");
    let claims = gained().await - before;
    assert_eq!(claims, f64::from(tally.attached), "every attachment is counted, and no other");
    let metrics = cluster.metrics(0).await;
    let busy = [("plane", "tunnel"), ("cause", "BUSY")];
    assert_eq!(metrics.sum("nowconnect_handshake_failures_total", &busy), Some(f64::from(tally.sent_away)));
    // Nothing of it stays.
    eventually("only the neighbour's tunnel is left", LONG_PATIENCE, || async {
        let tunnels =
            cluster.metrics(0).await.sum("nowconnect_sessions", &[("plane", "tunnel"), ("state", "connected")]);
        (tunnels == Some(1.0)).then_some(())
    })
    .await;
    let sessions = cluster.metrics(0).await.sum("nowconnect_sessions", &[("plane", "tunnel")]).unwrap();
    assert!(sessions <= 2.0, "of all its sessions at most the last one waits to be resumed: {sessions}");
    standing.ping().await;
    standing.close().await;
    cluster.assert_alive();
}

/// Its network flaps instead: the session goes on, and so does every stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_breaks_ten_times_a_second_loses_no_stream() {
    let target = Target::start().await;
    let mut cluster = Plan { tunnel_proxy: true, ..Plan::default() }
        .connector("t", target.addr)
        .connector("u", target.addr)
        .start()
        .await;
    let own = cluster.further_agent("plant-8", &[1], &[("u", target.addr.to_string())]);
    cluster.wait_metric(1, "nowconnect_tunnels", &[], 1.0).await;
    let mut neighbour = Standing::open(&[cluster.listener(1, "u")]).await;
    let addr = cluster.listener(0, "t");
    let mut transfers = tokio::task::JoinSet::new();
    for stream in 0..6 {
        transfers.spawn(async move { Transfer::ALL[stream as usize % 3].run(addr, stream, 1 << 20).await });
    }
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    for n in 0..50 {
        ticks.tick().await;
        cluster.tunnel_proxies[0].cut(if n % 2 == 0 { Cut::Rst } else { Cut::Fin });
        assert_eq!(echo(cluster.listener(1, "u"), 1000 + n).await, Ok(()), "a neighbour's client");
        neighbour.ping().await;
    }
    while let Some(done) = bounded("the transfers", LONG_PATIENCE, transfers.join_next()).await {
        assert_eq!(done.unwrap(), Ok(()));
    }
    eventually("the tunnel is back", PATIENCE, || async { echo(addr, 9000).await.ok() }).await;
    let metrics = cluster.metrics(0).await;
    let count = |name: &str| metrics.sum(name, &[("plane", "tunnel")]).unwrap_or(0.0);
    let (suspended, resumed) =
        (count("nowconnect_sessions_suspended_total"), count("nowconnect_sessions_resumed_total"));
    println!("{suspended} times suspended, {resumed} times resumed");
    assert!(suspended >= 2.0 && resumed >= 2.0, "counted: {suspended} and {resumed}");
    assert_eq!(count("nowconnect_sessions_lost_total"), 0.0);
    assert_eq!(cluster.metrics(1).await.sum("nowconnect_sessions_suspended_total", &[("plane", "tunnel")]), Some(0.0));
    neighbour.close().await;
    assert!(own.runs());
    cluster.assert_alive();
}

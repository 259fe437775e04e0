//! The network between two hubs swallows everything: connections stand, no byte
//! arrives, nobody is told. Only streams that cross suffer; each hub notices by
//! silence alone; afterwards there is one session again, also when both dial at
//! the same moment (L2, L4, S2, M6). With `NC_TEST_DEFAULT_LIVENESS` some of
//! them wait for the silence that hubs wait for by default.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; times are for the reader")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nowconnect_tests::actors::{Failure, Pinger, Transfer, ask, read_to_end};
use nowconnect_tests::cluster::{Cluster, Plan};
use nowconnect_tests::ownership::{Standing, echo};
use nowconnect_tests::proxy::Proxy;
use nowconnect_tests::stamps;
use nowconnect_tests::target::{End, Op, Target};
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};
use tokio::io::AsyncWriteExt as _;
use tokio::task::{JoinHandle, JoinSet};

const LINK: [(&str, &str); 1] = [("plane", "mesh")];
/// What a hub says when nothing came from its peer for `liveness.dead`. Nothing
/// else can end a connection here: the proxies keep both its sides open.
const DEAD: &str = "event=\"session_suspended\" plane=\"mesh\"";

fn proxies(cluster: &Cluster) -> Vec<&Proxy> {
    cluster.hubs.iter().filter_map(|h| h.mesh_proxy.as_ref()).collect()
}

fn cut(cluster: &Cluster) {
    proxies(cluster).into_iter().for_each(Proxy::stall);
}

fn heal(cluster: &Cluster) {
    proxies(cluster).into_iter().for_each(Proxy::heal);
}

/// What hub `ix` said of silences so far.
fn silences(cluster: &Cluster, ix: usize) -> Vec<String> {
    let log = cluster.hubs[ix].running().log.tail(usize::MAX);
    log.lines().filter(|l| l.contains(DEAD) && l.contains("cause=\"DEAD\"")).map(str::to_owned).collect()
}

fn noticed(cluster: &Cluster, ix: usize) -> usize {
    silences(cluster, ix).len()
}

/// Waits until both hubs say so. The time is that of their own line: by the
/// rule it is `liveness.dead` after the last message, which came before the cut.
async fn both_notice(cluster: &Cluster, before: [usize; 2], cut: SystemTime) {
    for ix in [0, 1] {
        let line = eventually("the silent peer is noticed", PATIENCE, || async {
            silences(cluster, ix).into_iter().nth(before[ix])
        })
        .await;
        println!("hub {ix}: noticed {:?} after the cut", stamps::since(cut, &line));
    }
}

/// The liveness of hubs: short times, or the defaults where they are asked for.
fn liveness(short: &str) -> &str {
    if std::env::var_os("NC_TEST_DEFAULT_LIVENESS").is_none() { short } else { "" }
}

async fn sum(cluster: &Cluster, ix: usize, name: &str, labels: &[(&str, &str)]) -> f64 {
    cluster.metrics(ix).await.sum(name, labels).unwrap_or(0.0)
}

/// Waits until no hub has a session to the other, not even one to be resumed.
async fn no_session(cluster: &Cluster) {
    for ix in [0, 1] {
        eventually(&format!("hub {ix} gives the session up"), PATIENCE, || async {
            (cluster.metrics(ix).await.sum("nowconnect_sessions", &LINK)? == 0.0).then_some(())
        })
        .await;
    }
}

/// L4: each hub has exactly one session to the other, and it is the same one
/// that carries `streams` more streams.
async fn one_session(cluster: &Cluster, streams: u64) {
    for ix in [0, 1] {
        eventually(&format!("hub {ix} has one session"), PATIENCE, || async {
            let m = cluster.metrics(ix).await;
            let count = |name: &str, state| m.sum(name, &[("plane", "mesh"), ("state", state)]);
            let settled = count("nowconnect_sessions", "connected") == Some(1.0)
                && count("nowconnect_sessions", "suspended") == Some(0.0)
                && m.sum("nowconnect_mesh_links", &[("state", "established")]) == Some(1.0);
            settled.then_some(())
        })
        .await;
    }
    cluster.wait_echo(1, "t").await;
    let mut before = Vec::new();
    for ix in [0, 1] {
        before.push(sum(cluster, ix, "nowconnect_sessions_established_total", &LINK).await);
    }
    for n in 0..streams {
        assert_eq!(echo(cluster.listener(1, "t"), 50_000 + n).await, Ok(()));
    }
    for ix in [0, 1] {
        let now = sum(cluster, ix, "nowconnect_sessions_established_total", &LINK).await;
        assert_eq!(now, before[ix], "hub {ix}: no further session was made");
        assert_eq!(sum(cluster, ix, "nowconnect_protocol_errors_total", &[]).await, 0.0);
    }
}

/// Clients of one listener, one after the other, none of which may fail.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    task: JoinHandle<Result<(), Failure>>,
}

impl Load {
    fn start(addr: SocketAddr) -> Self {
        let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (s, n) = (Arc::clone(&stop), Arc::clone(&served));
        let task = tokio::spawn(async move {
            while !s.load(Ordering::Relaxed) {
                Transfer::Echo.run(addr, 20_000 + n.fetch_add(1, Ordering::Relaxed), 3000).await?;
            }
            Ok(())
        });
        Self { stop, served, task }
    }

    async fn more(&self, n: u64) {
        let from = self.served.load(Ordering::Relaxed);
        eventually("local clients are served", LONG_PATIENCE, || async {
            (self.served.load(Ordering::Relaxed) >= from + n || self.task.is_finished()).then_some(())
        })
        .await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert_eq!(self.task.await.unwrap(), Ok(()), "a local client failed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blackholed_mesh_costs_only_what_crosses_it() {
    let target = Target::start().await;
    let liveness = liveness("liveness: { ping: 500ms, suspect: 1s, dead: 3s }\n");
    let plan = Plan { mesh_proxy: true, hub_extra: format!("resume_window: 2s\n{liveness}"), ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).connector("u", target.addr).start().await;
    // An agent of hub B's own, so that both hubs have local clients.
    let own = cluster.further_agent("plant-8", &[1], &[("u", target.addr.to_string())]);
    cluster.wait_metric(1, "nowconnect_tunnels", &[], 1.0).await;
    let local = [cluster.listener(0, "t"), cluster.listener(1, "u")];
    let load = [Load::start(local[0]), Load::start(local[1])];
    let mut standing = Standing::open(&local).await;
    let mut crossing = Pinger::open(cluster.listener(1, "t"), 1).await.unwrap();
    crossing.ping(1000).await.unwrap();

    let at = SystemTime::now();
    cut(&cluster);
    // Under way when the peer is not known to be dead: never opened, never ended well.
    let mut early = ask(cluster.listener(1, "t"), Op::Echo, 2, 0).await.unwrap();
    both_notice(&cluster, [0, 0], at).await;
    for ix in [0, 1] {
        cluster.wait_status(ix, "degraded").await;
    }
    no_session(&cluster).await;
    let mut socket = crossing.into_socket();
    let end = bounded("the end of the crossing stream", PATIENCE, read_to_end(&mut socket)).await;
    assert_eq!(end, Err(Failure::Reset), "an abort, never a clean end");
    assert_eq!(target.end_of(1).await, End::Reset, "at the target too");
    let end = bounded("the end of an early client", PATIENCE, read_to_end(&mut early)).await;
    assert_eq!(end, Err(Failure::Reset));
    for n in 0..5 {
        standing.ping().await;
        let refused = bounded("the refusal", PATIENCE, Transfer::Echo.run(cluster.listener(1, "t"), 10 + n, 100)).await;
        assert_eq!(refused, Err(Failure::Reset), "nothing new crosses");
    }
    for load in &load {
        load.more(20).await;
    }
    standing.ping().await;

    let began = Instant::now();
    heal(&cluster);
    for ix in [0, 1] {
        cluster.wait_status(ix, "ready").await;
    }
    cluster.wait_echo(1, "t").await;
    println!("across hubs again {:?} after healing", began.elapsed());
    one_session(&cluster, 10).await;
    for load in load {
        load.end().await;
    }
    for ix in [0, 1] {
        let lost = sum(&cluster, ix, "nowconnect_sessions_suspended_total", &[("plane", "tunnel")]).await;
        assert_eq!(lost, 0.0, "hub {ix}: no tunnel was touched");
    }
    standing.close().await;
    assert!(own.runs());
    cluster.assert_alive();
}

/// Hub B's clients have a better agent behind the link and a worse one of the
/// hub's own. The link falls silent: those that come then are asked of it, are
/// never opened and never ended well. Long before it is given up, all others are
/// served by the agent at hand. Says from when on.
async fn a_silent_link_is_avoided(hub_extra: &str) -> Duration {
    let target = Target::start().await;
    let plan = Plan { mesh_proxy: true, hub_extra: hub_extra.to_owned(), ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let spare = cluster.further_agent_with("plant-8", &[1], &[("t", target.addr.to_string())], ", priority: 9");
    cluster.wait_metric(1, "nowconnect_tunnels", &[], 1.0).await;
    let addr = cluster.listener(1, "t");
    for n in 0..5 {
        assert_eq!(echo(addr, n).await, Ok(()));
    }
    let crossed = sum(&cluster, 1, "nowconnect_streams_total", &[("listener", "t"), ("path", "mesh")]).await;
    assert_eq!(crossed, 5.0, "the better agent");

    let began = Instant::now();
    cut(&cluster);
    let mut early = Vec::new();
    let avoided = loop {
        let came = began.elapsed();
        let mut socket = ask(addr, Op::Echo, 100 + early.len() as u64, 0).await.unwrap();
        socket.shutdown().await.unwrap();
        // Whoever is served is served at once; the others wait.
        if let Ok(end) = tokio::time::timeout(Duration::from_millis(100), read_to_end(&mut socket)).await {
            assert_eq!(end, Ok(0), "a client is served or waits");
            break came;
        }
        early.push(socket);
        assert!(began.elapsed() < PATIENCE, "new clients still go into the silent link");
    };
    assert_eq!([noticed(&cluster, 0), noticed(&cluster, 1)], [0, 0], "the link was not given up");
    assert!(!early.is_empty(), "a link is not avoided for nothing");
    for n in 0..20 {
        assert_eq!(echo(addr, 1000 + n).await, Ok(()), "from now on all are served");
    }
    for mut socket in early {
        let end = bounded("the end of an early client", PATIENCE, read_to_end(&mut socket)).await;
        assert_eq!(end, Err(Failure::Reset));
    }
    assert!(spare.runs());
    cluster.assert_alive();
    avoided
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_streams_avoid_a_link_that_is_silent() {
    // It would be given up long after the test, and no open that fails counts.
    let times = liveness("liveness: { ping: 500ms, suspect: 1s, dead: 300s }\n");
    let avoided = a_silent_link_is_avoided(&format!("{times}selection: {{ fall: 0 }}\n")).await;
    println!("new clients avoid a silent link from {avoided:?} after the cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_streams_avoid_a_link_that_does_not_answer() {
    // The silence itself would count long after the test.
    let times = liveness("liveness: { suspect: 100s, dead: 300s }\nopen: { attempt_timeout: 500ms }\n");
    let avoided = a_silent_link_is_avoided(times).await;
    println!("new clients avoid a link that does not answer from {avoided:?} after the cut");
}

/// Shorter than `resume_window`: the dead peer is noticed all the same, and
/// every stream goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_blackhole_of_the_mesh_loses_no_stream() {
    let target = Target::start().await;
    let hub_extra = "resume_window: 120s\nliveness: { ping: 500ms, suspect: 1s, dead: 2s }\n".to_owned();
    let plan = Plan { mesh_proxy: true, hub_extra, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let addr = cluster.listener(1, "t");
    let mut all = JoinSet::new();
    for stream in 0..12 {
        let transfer = Transfer::ALL[stream as usize % 3];
        all.spawn(async move { (stream, transfer.run(addr, stream, 4 << 20).await) });
    }
    let mut quiet = Pinger::open(addr, 100).await.unwrap();
    let bytes = || proxies(&cluster).iter().map(|p| p.bytes()).sum::<u64>();
    eventually("the transfers move", PATIENCE, || async { (bytes() > 2 << 20).then_some(()) }).await;
    // One of two dials at the start gave way.
    cluster.wait_no_handshake().await;
    let mut lost = Vec::new();
    for ix in [0, 1] {
        lost.push(sum(&cluster, ix, "nowconnect_sessions_lost_total", &LINK).await);
    }
    for _ in 0..2 {
        let before = [noticed(&cluster, 0), noticed(&cluster, 1)];
        let at = SystemTime::now();
        cut(&cluster);
        both_notice(&cluster, before, at).await;
        heal(&cluster);
        bounded("an echo after the cut", LONG_PATIENCE, quiet.ping(1000)).await.unwrap();
    }
    while let Some(done) = bounded("the transfers", LONG_PATIENCE, all.join_next()).await {
        let (stream, outcome) = done.unwrap();
        assert_eq!(outcome, Ok(()), "stream {stream}");
    }
    quiet.close().await.unwrap();
    for ix in [0, 1] {
        assert_eq!(sum(&cluster, ix, "nowconnect_sessions_lost_total", &LINK).await, lost[ix], "hub {ix}");
        assert_eq!(sum(&cluster, ix, "nowconnect_stream_ends_total", &[("cause", "LOST")]).await, 0.0, "hub {ix}");
    }
    one_session(&cluster, 5).await;
    cluster.assert_alive();
}

/// Both hubs dial while neither has a session: each has had the other's HELLO
/// before any answer passes, so that two sessions come about and one has to go.
/// Whichever hub hears its answer first, the lower id's dial survives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_dials_at_once_end_in_one_session() {
    let target = Target::start().await;
    let hub_extra = "resume_window: 1s\nliveness: { ping: 300ms, suspect: 600ms, dead: 1500ms }\n".to_owned();
    let plan = Plan { mesh_proxy: true, hub_extra, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let gave_way = |cluster: &Cluster, ix: usize| {
        let log = cluster.hubs[ix].running().log.tail(usize::MAX);
        let ended =
            |l: &&str| l.contains("event=\"session_ended\" plane=\"mesh\"") && l.contains("cause=\"DUPLICATE\"");
        log.lines().filter(ended).count()
    };
    // The lower id's dial, which goes by way of the other one's proxy, is heard
    // last, first, and at the same moment.
    for (round, first) in [Some(0), Some(1), None].into_iter().enumerate() {
        cut(&cluster);
        no_session(&cluster).await;
        proxies(&cluster).into_iter().for_each(Proxy::hold_answers);
        let before = [gave_way(&cluster, 0), gave_way(&cluster, 1)];
        eventually("a dial of each hub has asked and not heard", PATIENCE, || async {
            proxies(&cluster).iter().all(|p| p.held() == 1).then_some(())
        })
        .await;
        let began = Instant::now();
        if let Some(ix) = first {
            proxies(&cluster)[ix].heal();
            // The other hub has heard; its session is known here as well.
            cluster.wait_metric(ix, "nowconnect_sessions", &[("plane", "mesh"), ("state", "connected")], 1.0).await;
            assert_eq!(proxies(&cluster)[1 - ix].held(), 1, "round {round}: the other dial is still under way");
        }
        heal(&cluster);
        one_session(&cluster, 5).await;
        println!("round {round}: one session {:?} after healing", began.elapsed());
        eventually("the lower id's dial survives", PATIENCE, || async {
            let open: Vec<u64> = proxies(&cluster).iter().map(|p| p.open()).collect();
            (open == [0, 1]).then_some(())
        })
        .await;
        if first == Some(0) {
            for (ix, before) in before.into_iter().enumerate() {
                assert_eq!(
                    gave_way(&cluster, ix),
                    before + 1,
                    "round {round}, hub {ix}: a session gave way to another"
                );
            }
        }
    }
    cluster.assert_alive();
}

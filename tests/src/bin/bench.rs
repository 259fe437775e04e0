//! Numbers of the data path, with HAProxy from Debian as a plain TCP relay
//! beside it in the same run and over the same number of hops:
//! client → hub → agent → target against two HAProxies in a row, and
//! client → hub B → hub A → agent → target against three.
//!
//! `cargo build --release -p nowconnect && cargo run --release -p nowconnect-tests --bin bench`
//! prints a Markdown table. Arguments: `quick` for a smoke run, `v1` for the
//! JSON encoding, `tls` for TLS on tunnels and mutual TLS on the mesh (HAProxy
//! stays plain then), `baseline` for HAProxy alone; `failover [KILLS]` instead
//! measures how soon new streams work after the kill of a hub under load. Clients run in this process, the target in a second one
//! of the same program; neither is part of the CPU figures.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool whose output is its result")]

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nowconnect_tests::actors::{Pinger, ask, read_to_end};
use nowconnect_tests::cluster::{Plan, Wire};
use nowconnect_tests::cpu::{cpu_seconds, resident_bytes};
use nowconnect_tests::failover::median;
use nowconnect_tests::ports::Port;
use nowconnect_tests::process::{Process, installed};
use nowconnect_tests::target::{Op, RECEIPT_BYTES, Target};
use nowconnect_tests::wait::{PATIENCE, eventually};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const MIB: f64 = 1_048_576.0;
const GIB: f64 = MIB * 1024.0;

/// One way from a client to the target, and the processes on it.
struct Way {
    name: String,
    addr: SocketAddr,
    pids: Vec<u32>,
    /// Open files a stream takes in the busiest process on the way.
    descriptors: u64,
}

impl Way {
    fn cpu(&self) -> f64 {
        self.pids.iter().map(|&pid| cpu_seconds(pid)).sum()
    }

    fn resident(&self) -> f64 {
        self.pids.iter().map(|&pid| resident_bytes(pid) as f64).sum()
    }
}

/// How much to measure.
#[derive(Clone, Copy)]
struct Effort {
    bulk_bytes: u64,
    timed: Duration,
    idle: [usize; 2],
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args == ["serve-target"] {
        return serve_target();
    }
    if let Some("failover") = args.first().map(String::as_str) {
        let kills = args.get(1).map_or(Some(20), |n| n.parse().ok());
        let (Some(kills), true) = (kills, args.len() <= 2) else {
            eprintln!("expected failover [KILLS]");
            std::process::exit(2);
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        return runtime.block_on(failover(kills));
    }
    let has = |word: &str| args.iter().any(|a| a == word);
    if let Some(odd) = args.iter().find(|a| !["quick", "v1", "tls", "baseline"].contains(&a.as_str())) {
        eprintln!("unknown argument {odd:?}: expected quick, v1, tls, baseline or failover [KILLS]");
        std::process::exit(2);
    }
    let effort = if has("quick") {
        Effort { bulk_bytes: 64 << 20, timed: Duration::from_millis(500), idle: [100, 200] }
    } else {
        Effort { bulk_bytes: 1 << 30, timed: Duration::from_secs(5), idle: [2_000, 10_000] }
    };
    raise_descriptors();
    let wire = if has("v1") { Wire::V1 } else { Wire::V2 };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure(effort, wire, has("tls"), has("baseline")));
}

/// From the kill of a hub under load to new streams at the other one.
async fn failover(kills: usize) {
    raise_descriptors();
    println!(
        "| agent attached to | kills | first new stream: median, maximum | all new streams: median, maximum | \
         new clients reset meanwhile | streams aborted, untouched |\n|---|---|---|---|---|---|"
    );
    let last = |times: &[Duration]| times.last().copied().unwrap_or_default();
    for (parallel, to) in [(2, "both hubs"), (1, "the dead hub only")] {
        let t = nowconnect_tests::failover::measure(kills, parallel).await;
        println!(
            "| {to} | {kills} | {:.0?}, {:.0?} | {:.0?}, {:.0?} | {} | {}, {} |",
            median(&t.first),
            last(&t.first),
            median(&t.all),
            last(&t.all),
            t.refused,
            t.aborted,
            t.untouched,
        );
    }
}

/// The target, in a process of its own: with the clients' sockets here, both
/// would not fit under one limit of open files.
fn serve_target() {
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let target = Target::start().await;
        println!("{}", target.addr);
        // Until the bench ends and the pipe with it.
        let _ = tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin())).await;
    });
}

struct TargetProcess {
    addr: SocketAddr,
    child: std::process::Child,
}

impl TargetProcess {
    fn start() -> Self {
        use std::io::BufRead as _;
        let program = std::env::current_exe().unwrap();
        let piped = std::process::Stdio::piped;
        let mut child = Command::new(program).arg("serve-target").stdin(piped()).stdout(piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { addr: line.trim().parse().unwrap(), child }
    }
}

impl Drop for TargetProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every idle stream takes one descriptor here, one in each of our relays and
/// two in each HAProxy.
fn raise_descriptors() {
    let old = getrlimit(Resource::Nofile);
    for wanted in [65_536, old.maximum.unwrap_or(65_536)] {
        let new = Rlimit { current: Some(wanted), maximum: Some(old.maximum.unwrap_or(wanted).max(wanted)) };
        if setrlimit(Resource::Nofile, new).is_ok() {
            return;
        }
    }
}

async fn measure(effort: Effort, wire: Wire, tls: bool, baseline: bool) {
    let target = TargetProcess::start();
    let haproxies = Haproxies::start(target.addr, 3).await;
    let mut ways = vec![haproxies.way(2), haproxies.way(3)];
    // Kept until the end: dropping it ends the processes.
    let mut system = None;
    if !baseline {
        let plan = Plan { tls, wire, hub_extra: LIMITS.to_owned(), agent_extra: LIMITS.to_owned(), ..Plan::default() };
        let cluster = system.insert(plan.connector("t", target.addr).start().await);
        let kind = format!("nowconnect {}{}", wire.name(), if tls { " TLS" } else { "" });
        let agent = cluster.agent.as_ref().unwrap().pid();
        let hubs: Vec<u32> = cluster.hubs.iter().map(|h| h.running().pid()).collect();
        let one = Way {
            name: format!("{kind}, one hub"),
            addr: cluster.listener(0, "t"),
            pids: vec![hubs[0], agent],
            descriptors: 1,
        };
        let both = vec![hubs[0], hubs[1], agent];
        ways.insert(1, one);
        ways.push(Way {
            name: format!("{kind}, two hubs"),
            addr: cluster.listener(1, "t"),
            pids: both,
            descriptors: 1,
        });
    }
    let mut table: Vec<(String, Vec<String>)> = Vec::new();
    // First, while no process has memory to reuse from other work.
    let mut memory = Vec::new();
    for way in &ways {
        memory.push(idle_memory(way, effort.idle).await);
    }
    for (ix, count) in effort.idle.into_iter().enumerate() {
        let row = memory.iter().map(|cells| cells[ix].clone()).collect();
        table.push((format!("KiB per idle stream, {count} streams"), row));
    }
    for streams in [1, 16] {
        for (op, word) in [(Op::Flood, "down"), (Op::Drain, "up")] {
            let mut row = Vec::new();
            for way in &ways {
                row.push(bulk(way, op, streams, effort.bulk_bytes).await);
            }
            table.push((format!("{word}, {streams} stream(s): MiB/s (CPU s/GiB)"), row));
        }
    }
    for streams in [1, 64] {
        let mut row = Vec::new();
        for way in &ways {
            row.push(ping_pong(way, streams, effort.timed).await);
        }
        table.push((format!("64-byte round trips/s, {streams} stream(s) (p50 / p99 µs)"), row));
    }
    let mut row = Vec::new();
    for way in &ways {
        row.push(new_streams(way, effort.timed).await);
    }
    table.push(("new streams/s, 16 clients (CPU ms each)".to_owned(), row));
    print_table(&ways, &table);
}

/// Room for the idle streams; everything else at its default.
const LIMITS: &str = "limits: { max_streams: 50000 }\n";

fn print_table(ways: &[Way], table: &[(String, Vec<String>)]) {
    let mut out = String::from("| |");
    for way in ways {
        let _ = write!(out, " {} |", way.name);
    }
    out.push_str("\n|---|");
    out.push_str(&"---|".repeat(ways.len()));
    for (name, cells) in table {
        let _ = write!(out, "\n| {name} | {} |", cells.join(" | "));
    }
    println!("{out}");
}

/// Moves `bytes` in all over `streams` streams.
async fn bulk(way: &Way, op: Op, streams: u64, bytes: u64) -> String {
    let addr = way.addr;
    let each = bytes / streams;
    let cpu = way.cpu();
    let started = Instant::now();
    let mut all = JoinSet::new();
    for stream in 0..streams {
        all.spawn(async move {
            let mut socket = ask(addr, op, stream, each).await?;
            if op == Op::Flood {
                return read_to_end(&mut socket).await.map(|got| assert_eq!(got, each));
            }
            let buffer = vec![0x5a; 256 * 1024];
            let mut left = each;
            while left > 0 {
                let n = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                socket.write_all(&buffer[..n]).await?;
                left -= n as u64;
            }
            socket.shutdown().await?;
            read_to_end(&mut socket).await.map(|got| assert_eq!(got, RECEIPT_BYTES as u64))
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap().unwrap();
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu = way.cpu() - cpu;
    format!("{:.0} ({:.2})", bytes as f64 / MIB / seconds, cpu / (bytes as f64 / GIB))
}

/// Round trips on streams that are open already.
async fn ping_pong(way: &Way, streams: u64, time: Duration) -> String {
    let addr = way.addr;
    let mut pingers = Vec::new();
    for stream in 0..streams {
        pingers.push(Pinger::open(addr, stream).await.unwrap());
    }
    let started = Instant::now();
    let mut all = JoinSet::new();
    for mut pinger in pingers {
        all.spawn(async move {
            let mut micros = Vec::new();
            while started.elapsed() < time {
                let sent = Instant::now();
                pinger.ping(64).await.unwrap();
                micros.push(u64::try_from(sent.elapsed().as_micros()).unwrap());
            }
            pinger.close().await.unwrap();
            micros
        });
    }
    let mut micros = Vec::new();
    while let Some(done) = all.join_next().await {
        micros.extend(done.unwrap());
    }
    let seconds = started.elapsed().as_secs_f64();
    micros.sort_unstable();
    let at = |percent: usize| micros[(micros.len() - 1) * percent / 100];
    format!("{:.0} ({} / {})", micros.len() as f64 / seconds, at(50), at(99))
}

/// Streams opened, used for one round trip and closed.
async fn new_streams(way: &Way, time: Duration) -> String {
    let addr = way.addr;
    let count = Arc::new(AtomicU64::new(0));
    let cpu = way.cpu();
    let started = Instant::now();
    let mut all = JoinSet::new();
    for client in 0..16u64 {
        let count = Arc::clone(&count);
        all.spawn(async move {
            while started.elapsed() < time {
                Pinger::open(addr, client).await.unwrap().close().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    let seconds = started.elapsed().as_secs_f64();
    let count = count.load(Ordering::Relaxed) as f64;
    format!("{:.0} ({:.2})", count / seconds, (way.cpu() - cpu) * 1000.0 / count)
}

/// Resident memory that open, used, now idle streams add, at each of `counts`
/// (rising; the streams of a smaller one stay open for the next).
async fn idle_memory(way: &Way, counts: [usize; 2]) -> Vec<String> {
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let before = way.resident();
    let mut open = Vec::new();
    let mut cells = Vec::new();
    for count in counts {
        let needed = count as u64 * way.descriptors + 500;
        if allowed < needed {
            cells.push(format!("not measured: needs `ulimit -n {needed}`, has {allowed}"));
            continue;
        }
        while open.len() < count {
            let mut some = JoinSet::new();
            for stream in open.len()..(open.len() + 50).min(count) {
                let addr = way.addr;
                some.spawn(async move { Pinger::open(addr, stream as u64).await });
            }
            while let Some(done) = some.join_next().await {
                open.push(done.unwrap().unwrap());
            }
        }
        cells.push(format!("{:.1}", (way.resident() - before) / count as f64 / 1024.0));
    }
    cells
}

/// A row of HAProxies, each relaying to the next, the last to the target.
struct Haproxies {
    /// Nearest to the target first.
    row: Vec<(Process, Port)>,
    _dir: TempDir,
}

impl Haproxies {
    async fn start(target: SocketAddr, count: usize) -> Self {
        let program = installed("haproxy", "haproxy");
        let dir = TempDir::with_prefix("nowconnect-haproxy-").unwrap();
        let mut next = target;
        let mut row = Vec::new();
        for ix in 0..count {
            let port = Port::reserve();
            let file = dir.path().join(format!("{ix}.cfg"));
            let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(65_536);
            let config = format!(
                "global\n  maxconn {}\ndefaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1h\n  \
                 timeout server 1h\nlisten relay\n  bind {}\n  server next {next}\n",
                descriptors.saturating_sub(200) / 2,
                port.addr,
            );
            fs::write(&file, config).unwrap();
            let mut command = Command::new(&program);
            command.arg("-db").arg("-f").arg(&file);
            let process = Process::spawn(&format!("haproxy {ix}"), command);
            eventually("haproxy accepts", PATIENCE, || async { TcpStream::connect(port.addr).await.ok() }).await;
            next = port.addr;
            row.push((process, port));
        }
        Self { row, _dir: dir }
    }

    fn way(&self, hops: usize) -> Way {
        Way {
            name: format!("HAProxy ×{hops}"),
            addr: self.row[hops - 1].1.addr,
            pids: self.row[..hops].iter().map(|(process, _)| process.pid()).collect(),
            descriptors: 2,
        }
    }
}

//! The harness checked on its own: a test whose tools lie is worth nothing.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use nowconnect_tests::actors::{Failure, Pinger, Transfer, ask, read_to_end, receive, send, take_receipt};
use nowconnect_tests::process::{Signal, run};
use nowconnect_tests::proxy::{Cut, Proxy, reset};
use nowconnect_tests::redis::Redis;
use nowconnect_tests::slapd::{BASE, PEOPLE, SEARCH_ALL, Slapd};
use nowconnect_tests::target::{End, Op, Target};
use nowconnect_tests::wait::{PATIENCE, bounded, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_complete_through_the_proxy() {
    let target = Target::start().await;
    let proxy = Proxy::start(target.addr).await;
    let mut stream = 0;
    for len in [0, 1, 4096, 65_537, 1 << 20] {
        for transfer in Transfer::ALL {
            stream += 1;
            assert_eq!(transfer.run(proxy.addr, stream, len).await, Ok(()), "{transfer:?} {len}");
            assert_eq!(target.end_of(stream).await, End::Clean, "{transfer:?} {len}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_cut_falls_on_the_byte() {
    let target = Target::start().await;
    let proxy = Proxy::start(target.addr).await;
    let before = proxy.bytes();
    proxy.cut_after(100_003, Cut::Rst);
    let failure = Transfer::Download.run(proxy.addr, 1, 1 << 20).await.unwrap_err();
    assert_eq!(failure, Failure::Reset);
    assert_eq!(proxy.bytes() - before, 100_003);
    assert_eq!(proxy.cuts(), 1);
    // An orderly cut is an early end, which the client must not take for success.
    proxy.cut_after(100_003, Cut::Fin);
    let failure = Transfer::Download.run(proxy.addr, 2, 1 << 20).await.unwrap_err();
    assert!(matches!(failure, Failure::Short { .. } | Failure::Reset), "{failure}");
    assert_eq!(Transfer::Download.run(proxy.addr, 3, 1 << 20).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_proxy_holds_and_heals() {
    let target = Target::start().await;
    let proxy = Proxy::start(target.addr).await;
    let mut pinger = Pinger::open(proxy.addr, 1).await.unwrap();
    proxy.stall();
    let ping = tokio::time::timeout(Duration::from_millis(300), pinger.ping(10)).await;
    assert!(ping.is_err(), "a byte passed a stalled proxy");
    proxy.heal();
    proxy.refuse();
    assert_eq!(Transfer::Echo.run(proxy.addr, 2, 10).await, Err(Failure::Reset));
    proxy.heal();
    assert_eq!(Transfer::Echo.run(proxy.addr, 3, 10).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborts_are_told_from_ends() {
    let target = Target::start().await;
    let mut socket = ask(target.addr, Op::Reset, 1, 10).await.unwrap();
    socket.write_all(&[0; 10]).await.unwrap();
    assert_eq!(read_to_end(&mut socket).await, Err(Failure::Reset));

    let socket = Pinger::open(target.addr, 2).await.unwrap().into_socket();
    reset(&socket);
    drop(socket);
    assert_eq!(target.end_of(2).await, End::Reset);

    Pinger::open(target.addr, 3).await.unwrap().close().await.unwrap();
    assert_eq!(target.end_of(3).await, End::Clean);

    let mut wrong = ask(target.addr, Op::Sink, 4, 10).await.unwrap();
    wrong.write_all(&[0; 10]).await.unwrap();
    wrong.shutdown().await.unwrap();
    assert!(matches!(target.end_of(4).await, End::Bad(_)));

    let mut other = ask(target.addr, Op::Source, 5, 10).await.unwrap();
    assert!(matches!(receive(&mut other, 6, 10).await, Err(Failure::Corrupt(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deaf_target_reads_when_told() {
    let target = Target::start().await;
    let len = 32 << 20;
    let sending = tokio::spawn(async move {
        let mut socket = ask(target.addr, Op::Deaf, 1, len).await?;
        let hash = send(&mut socket, 1, len).await?;
        socket.shutdown().await?;
        take_receipt(&mut socket, len, hash).await
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!sending.is_finished(), "socket buffers cannot hold 32 MiB");
    target.resume_reading();
    bounded("the upload", PATIENCE, sending).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_runs_and_stops_on_signals() {
    let mut redis = Redis::start().await;
    assert_eq!(redis.call("SET a 1").await.unwrap(), "+OK\r\n");
    assert_eq!(redis.call("GET a").await.unwrap(), "$1\r\n1\r\n");
    redis.process.signal(Signal::TERM);
    assert!(redis.process.wait_exit(PATIENCE).await.success());
    assert!(redis.call("PING").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slapd_serves_its_entries() {
    let slapd = Slapd::start().await;
    let mut search = slapd.tool("ldapsearch", slapd.addr());
    search.args(["-LLL", "-ZZ", "-b", BASE, "(uid=*)", "dn"]);
    let found = run(search).await;
    assert!(found.status.success(), "{}", found.stderr);
    assert_eq!(found.stdout.matches("dn: ").count(), PEOPLE);

    // The hand-made request gets a result far longer than the part the tests read of it.
    let mut socket = TcpStream::connect(slapd.addr()).await.unwrap();
    socket.write_all(SEARCH_ALL).await.unwrap();
    let mut part = vec![0; 500_000];
    bounded("half a megabyte of entries", PATIENCE, socket.read_exact(&mut part)).await.unwrap();
}

#[tokio::test]
async fn a_reserved_port_can_be_listened_on_and_is_given_to_nobody_else() {
    let port = nowconnect_tests::ports::Port::reserve();
    assert!(TcpStream::connect(port.addr).await.is_err(), "nobody listens yet");
    let listener = tokio::net::TcpListener::bind(port.addr).await.unwrap();
    eventually("the listener accepts", PATIENCE, || async { TcpStream::connect(port.addr).await.ok() }).await;
    drop(listener);
}

//! An abort on one side is an abort on the other, never an end (S2, S5); what
//! cannot be opened is refused at once and says why (S7, L12).

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use nowconnect_tests::actors::{Failure, Pinger, ask, read_to_end, send};
use nowconnect_tests::cluster::{Plan, Wire};
use nowconnect_tests::ports::Port;
use nowconnect_tests::proxy::reset;
use nowconnect_tests::target::{End, Op, Target};
use nowconnect_tests::wait::{PATIENCE, bounded, eventually};
use tokio::net::TcpStream;

async fn aborts_cross(wire: Wire) {
    let target = Target::start().await;
    let mut cluster = Plan::default().wire(wire).connector("t", target.addr).start().await;
    let mut stream = 0;
    for hub in [0, 1] {
        let addr = cluster.listener(hub, "t");
        let mut neighbour = Pinger::open(addr, 10_000 + hub as u64).await.unwrap();

        // The client aborts: quiet, and with bytes under way both ways.
        stream += 1;
        let socket = Pinger::open(addr, stream).await.unwrap().into_socket();
        reset(&socket);
        drop(socket);
        assert_eq!(target.end_of(stream).await, End::Reset, "quiet client at hub {hub}");

        stream += 1;
        let mut socket = ask(addr, Op::Source, stream, 64 << 20).await.unwrap();
        socket.readable().await.unwrap();
        // What the OS says of unsent bytes is not the point here.
        let _ = socket.try_write(b"unread");
        reset(&socket);
        drop(socket);
        assert_eq!(target.end_of(stream).await, End::Reset, "busy client at hub {hub}");

        // A client that closes without reading what it was sent aborts, too.
        stream += 1;
        socket = ask(addr, Op::Source, stream, 64 << 20).await.unwrap();
        socket.readable().await.unwrap();
        drop(socket);
        assert_eq!(target.end_of(stream).await, End::Reset, "client with unread bytes at hub {hub}");

        // The target aborts: at once, and in the middle of an upload.
        for len in [0, 100_000] {
            stream += 1;
            let mut socket = ask(addr, Op::Reset, stream, len).await.unwrap();
            // May fail half-way: that is the reset.
            let _ = send(&mut socket, stream, len).await;
            let outcome = bounded("the reset", PATIENCE, read_to_end(&mut socket)).await;
            assert_eq!(outcome, Err(Failure::Reset), "target after {len} bytes at hub {hub}");
        }
        neighbour.ping(1000).await.unwrap();
        neighbour.close().await.unwrap();
    }
    cluster.assert_alive();
}

async fn refusals_name_their_reason(wire: Wire) {
    let target = Target::start().await;
    let closed = Port::reserve();
    let cluster = Plan::default()
        .wire(wire)
        .connector("open", target.addr)
        .connector("refused", closed.addr)
        // A broadcast address: the OS knows no TCP way there, on any machine.
        .connector("unreachable", "255.255.255.255:9")
        .start()
        .await;
    for (connector, reason) in [("refused", "REFUSED"), ("unreachable", "UNREACHABLE")] {
        for hub in [0, 1] {
            let before = failures(&cluster.metrics(hub).await, reason);
            // The refusal may overtake the end of our own connect.
            match TcpStream::connect(cluster.listener(hub, connector)).await {
                Ok(mut socket) => {
                    let outcome = bounded("the refusal", PATIENCE, read_to_end(&mut socket)).await;
                    assert_eq!(outcome, Err(Failure::Reset), "{connector} at hub {hub}");
                }
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{connector} at hub {hub}"),
            }
            eventually(&format!("{reason} is counted at hub {hub}"), PATIENCE, || async {
                (failures(&cluster.metrics(hub).await, reason) > before).then_some(())
            })
            .await;
            cluster.hubs[hub].running().wait_line(reason, PATIENCE).await;
        }
    }
    for hub in [0, 1] {
        let mut pinger = Pinger::open(cluster.listener(hub, "open"), hub as u64).await.unwrap();
        pinger.ping(100).await.unwrap();
    }
}

fn failures(metrics: &nowconnect_tests::metrics::Metrics, reason: &str) -> f64 {
    metrics.sum("nowconnect_open_failures_total", &[("reason", reason)]).unwrap_or(0.0)
}

/// A half-closed stream stays as long as its other half lives (S3, C2).
async fn half_closed_streams_stay(wire: Wire) {
    let target = Target::start().await;
    let mut cluster = Plan::default().wire(wire).connector("t", target.addr).start().await;
    for hub in [0, 1] {
        let stream = 50 + hub as u64;
        let mut socket = ask(cluster.listener(hub, "t"), Op::Deaf, stream, 5).await.unwrap();
        let hash = send(&mut socket, stream, 5).await.unwrap();
        tokio::io::AsyncWriteExt::shutdown(&mut socket).await.unwrap();
        let early = tokio::time::timeout(Duration::from_secs(2), socket.readable()).await;
        assert!(early.is_err(), "nothing may arrive while the target has not answered");
        target.resume_reading();
        nowconnect_tests::actors::take_receipt(&mut socket, 5, hash).await.unwrap();
        assert_eq!(target.end_of(stream).await, End::Clean);
        if hub == 0 {
            target.stop_reading();
        }
    }
    cluster.assert_alive();
}

macro_rules! both {
    ($($v2:ident $v1:ident: $work:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $v2() {
            $work(Wire::V2).await;
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $v1() {
            $work(Wire::V1).await;
        }
    )*};
}

both! {
    aborts_cross_v2 aborts_cross_v1: aborts_cross;
    refusals_name_their_reason_v2 refusals_name_their_reason_v1: refusals_name_their_reason;
    half_closed_streams_stay_v2 half_closed_streams_stay_v1: half_closed_streams_stay;
}

//! Transfers of every interesting length, both encodings, local and across the
//! mesh; every byte is checked (S1, S2, S3, S9).

#![allow(clippy::unwrap_used, reason = "tests")]

use nowconnect_tests::actors::{Transfer, read_to_end};
use nowconnect_tests::cluster::{Cluster, Plan, Wire};
use nowconnect_tests::target::{End, Target};
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Lengths at and around the sizes of pages, frames and windows.
const LENGTHS: [u64; 10] = [0, 1, 4095, 4096, 4097, 65_535, 65_536, 65_537, 1 << 20, 64 << 20];

async fn scene(wire: Wire) -> (Target, Cluster) {
    let target = Target::start().await;
    let cluster = Plan::default().wire(wire).connector("t", target.addr).start().await;
    (target, cluster)
}

async fn every_length(wire: Wire, hub: usize) {
    let (target, mut cluster) = scene(wire).await;
    let addr = cluster.listener(hub, "t");
    let mut stream = 0;
    for len in LENGTHS {
        for transfer in Transfer::ALL {
            stream += 1;
            let what = format!("{transfer:?} of {len} bytes");
            let outcome = bounded(&what, LONG_PATIENCE, transfer.run(addr, stream, len)).await;
            assert_eq!(outcome, Ok(()), "{what}");
            assert_eq!(target.end_of(stream).await, End::Clean, "{what}");
        }
    }
    let path = if hub == 0 { "local" } else { "mesh" };
    let carried = cluster.metrics(hub).await.sum("nowconnect_streams_total", &[("path", path)]);
    assert!(carried >= Some(stream as f64), "streams of path {path}: {carried:?}, made {stream}");
    cluster.assert_alive();
}

async fn sixty_four_at_once(wire: Wire, hub: usize) {
    let (target, mut cluster) = scene(wire).await;
    let addr = cluster.listener(hub, "t");
    let mut all = JoinSet::new();
    for stream in 0..64u64 {
        let transfer = Transfer::ALL[stream as usize % 3];
        let len = LENGTHS[stream as usize % 9].max(1 << (stream % 21));
        all.spawn(async move { (stream, transfer, len, transfer.run(addr, stream, len).await) });
    }
    bounded("64 transfers", LONG_PATIENCE, async {
        while let Some(done) = all.join_next().await {
            let (stream, transfer, len, outcome) = done.unwrap();
            assert_eq!(outcome, Ok(()), "stream {stream}: {transfer:?} of {len} bytes");
        }
    })
    .await;
    for stream in 0..64 {
        assert_eq!(target.end_of(stream).await, End::Clean, "stream {stream}");
    }
    cluster.assert_alive();
}

/// A client that says nothing at all and half-closes gets the target's answer
/// to that: here, its end.
async fn empty_streams_end_cleanly(wire: Wire, hub: usize) {
    let (_target, mut cluster) = scene(wire).await;
    let addr = cluster.listener(hub, "t");
    for _ in 0..20 {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        socket.shutdown().await.unwrap();
        assert_eq!(bounded("the end", PATIENCE, read_to_end(&mut socket)).await, Ok(0));
    }
    cluster.assert_alive();
}

macro_rules! matrix {
    ($($name:ident: $wire:expr, $hub:expr;)*) => {$(
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn every_length() {
                super::every_length($wire, $hub).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sixty_four_at_once() {
                super::sixty_four_at_once($wire, $hub).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn empty_streams_end_cleanly() {
                super::empty_streams_end_cleanly($wire, $hub).await;
            }
        }
    )*};
}

matrix! {
    v2_local: Wire::V2, 0;
    v2_mesh: Wire::V2, 1;
    v1_local: Wire::V1, 0;
    v1_mesh: Wire::V1, 1;
}

//! A hub that says everything twice, and one that means an owner of before: what
//! was done is not done again, what is stale or not its stream's is refused, and
//! all of it is counted (S6, S8, O4; the frames are written by hand, the system is
//! real).

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

use std::cell::RefCell;
use std::net::SocketAddr;

use bytes::Bytes;
use nowconnect_core::error::RstCode;
use nowconnect_core::id::{AgentId, Cid, Epoch, Fence, Incarnation, Name, Nonce, Secret};
use nowconnect_core::wire::{Body, Codec, Dialect, Frame, Open, Plane};
use nowconnect_tests::actors::SEED;
use nowconnect_tests::cluster::{AGENT, Cluster, Plan};
use nowconnect_tests::hostile::{Peer, hub_hello};
use nowconnect_tests::payload::{Direction, Pattern};
use nowconnect_tests::target::{End, Head, Op, RECEIPT_BYTES, Target};
use sha2::{Digest as _, Sha256};

const MESH: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Mesh };
const STREAM: u64 = 77;
const LENGTH: usize = 20_000;

/// The fence of the agent's attachment at hub A, as the registry has it.
async fn fence(cluster: &Cluster) -> Fence {
    let answer = cluster.redis.call(&format!("HGET nowconnect:tests:{{{AGENT}}}:att hub-a")).await.unwrap();
    let record: serde_json::Value = serde_json::from_str(answer.lines().nth(1).unwrap()).unwrap();
    let text = |key: &str| record[key].as_str().unwrap().to_owned();
    Fence { epoch: Epoch::parse(&text("epoch")).unwrap(), nonce: Nonce::parse(&text("nonce")).unwrap() }
}

fn cid(n: u64) -> Cid {
    Cid::new(Incarnation(0xfeed_0000_0000_0001), 0, n)
}

fn open(cid: Cid, fence: Fence) -> Frame {
    let open = Open {
        nonce: fence.nonce,
        connector: Name::new("t").unwrap(),
        agent_id: AgentId::new(AGENT).unwrap(),
        key: Secret([3; 16]),
        limit: 65_536,
    };
    Frame::Stream { cid, epoch: fence.epoch, body: Body::Open(Box::new(open)) }
}

fn data(cid: Cid, fence: Fence, all: &[u8], from: usize, to: usize) -> Frame {
    let bytes = Bytes::copy_from_slice(&all[from..to]);
    Frame::Stream { cid, epoch: fence.epoch, body: Body::Data { off: from as u64, bytes } }
}

/// Carries a stream to the sink and says each thing at least twice; the receipt.
fn say_all_twice(hub: SocketAddr, fence: Fence, payload: &[u8]) -> Vec<u8> {
    let mut all = Head { op: Op::Sink, seed: SEED, stream: STREAM, len: LENGTH as u64 }.encode().to_vec();
    all.extend(payload);
    let (cid, end) = (cid(1), all.len());
    let fin = Frame::Stream { cid, epoch: fence.epoch, body: Body::Fin { final_off: end as u64 } };
    let mut peer = Peer::establish(hub, MESH, "", hub_hello("hub-z", "tests")).unwrap_or_else(|r| panic!("{r:?}"));
    peer.frame(0, Frame::Auth(Box::default()));
    let frames = [
        open(cid, fence),
        data(cid, fence, &all, 0, 5000),
        open(cid, fence),
        data(cid, fence, &all, 0, 5000),
        // Some of it anew.
        data(cid, fence, &all, 3000, 12_000),
        data(cid, fence, &all, 0, 12_000),
        data(cid, fence, &all, 12_000, end),
        fin.clone(),
        data(cid, fence, &all, 100, end),
        fin,
        open(cid, fence),
    ];
    for (frame, number) in frames.into_iter().zip(1..) {
        peer.frame(number, frame);
    }
    let receipt = RefCell::new(Vec::new());
    peer.frames_until(|f| {
        if let Frame::Stream { body: Body::Data { bytes, .. }, .. } = f {
            receipt.borrow_mut().extend_from_slice(bytes);
        }
        receipt.borrow().len() >= RECEIPT_BYTES
    })
    .unwrap();
    receipt.into_inner()
}

/// What the hub answers to an OPEN under each of `fences`.
fn answers(hub: SocketAddr, fences: [Fence; 3]) -> Vec<RstCode> {
    let mut peer = Peer::establish(hub, MESH, "", hub_hello("hub-z", "tests")).unwrap_or_else(|r| panic!("{r:?}"));
    peer.frame(0, Frame::Auth(Box::default()));
    let codes = RefCell::new(Vec::new());
    for (fence, n) in fences.into_iter().zip(1..) {
        peer.frame(n, open(cid(n), fence));
        peer.frames_until(|f| {
            if let Frame::Stream { body: Body::OpenAck { result: Err(code) }, .. } = f {
                codes.borrow_mut().push(*code);
            }
            codes.borrow().len() >= usize::try_from(n).unwrap()
        })
        .unwrap_or_else(|r| panic!("OPEN {n} under {fence:?}: {r:?}"));
    }
    codes.into_inner()
}

/// Two hubs and an agent, by way of which `conversation` has carried a stream to
/// the sink: the target got each byte once, and an end.
async fn carried_by(conversation: fn(SocketAddr, Fence, &[u8]) -> Vec<u8>) -> Cluster {
    let target = Target::start().await;
    let cluster = Plan::default().connector("t", target.addr).start().await;
    let (hub, fence) = (cluster.hubs[0].http(), fence(&cluster).await);
    let payload = Pattern::new(SEED, STREAM, Direction::Up).bytes(0, LENGTH);
    let expected: [u8; 32] = Sha256::digest(&payload).into();
    let receipt = tokio::task::spawn_blocking(move || conversation(hub, fence, &payload)).await.unwrap();
    assert_eq!(receipt[..8], (LENGTH as u64).to_le_bytes(), "nothing ended it and nothing was added");
    assert_eq!(receipt[8..], expected);
    assert_eq!(target.end_of(STREAM).await, End::Clean);
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_twice_is_done_once_and_counted() {
    let mut cluster = carried_by(say_all_twice).await;
    let carried = cluster.agent_metrics().await.sum("nowconnect_streams_carried_total", &[]);
    assert_eq!(carried, Some(1.0), "one connection to the target");
    // Two OPENs, one DATA that was all there; what lies partly behind is trimmed.
    cluster.wait_metric(0, "nowconnect_cid_dedup_dropped_total", &[], 3.0).await;
    cluster.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_under_another_epoch_or_nonce_is_refused_and_counted() {
    let target = Target::start().await;
    let mut cluster = Plan::default().connector("t", target.addr).start().await;
    let (hub, good) = (cluster.hubs[0].http(), fence(&cluster).await);
    let stale = [
        Fence { epoch: Epoch(good.epoch.0 - 1), ..good },
        Fence { epoch: Epoch(good.epoch.0 + 1), ..good },
        Fence { nonce: Nonce(good.nonce.0 ^ 1), ..good },
    ];
    let codes = tokio::task::spawn_blocking(move || answers(hub, stale)).await.unwrap();
    assert_eq!(codes, [RstCode::NotOwner; 3], "{stale:?}");
    let counted = cluster.metrics(0).await.sum("nowconnect_owner_epoch_mismatch_total", &[]);
    assert_eq!(counted, Some(3.0));
    let carried = cluster.agent_metrics().await.sum("nowconnect_streams_carried_total", &[]);
    assert_eq!(carried.unwrap_or(0.0), 0.0, "the agent heard of none");
    cluster.assert_alive();
}

/// DATA, FIN, RST and CREDIT of a stream that goes on.
fn frames_of(cid: Cid, fence: Fence, all: &[u8]) -> [Frame; 4] {
    let frame = |body| Frame::Stream { cid, epoch: fence.epoch, body };
    [
        data(cid, fence, all, 5000, 9000),
        frame(Body::Fin { final_off: 5000 }),
        frame(Body::Rst { code: RstCode::Abort, final_off: 5000 }),
        frame(Body::Credit { consumed: 0, limit: 1 << 40 }),
    ]
}

/// Carries a stream to the sink while another hub, and the same one under other
/// epochs, speak of it; the receipt.
fn carry_beside_strangers(hub: SocketAddr, fence: Fence, payload: &[u8]) -> Vec<u8> {
    let mut all = Head { op: Op::Sink, seed: SEED, stream: STREAM, len: LENGTH as u64 }.encode().to_vec();
    all.extend(payload);
    let (cid, cid_of_other, end) = (cid(1), cid(2), all.len());
    let [mut peer, mut other] = ["hub-y", "hub-z"].map(|name| {
        let mut peer = Peer::establish(hub, MESH, "", hub_hello(name, "tests")).unwrap_or_else(|r| panic!("{r:?}"));
        peer.frame(0, Frame::Auth(Box::default()));
        peer
    });
    peer.frame(1, open(cid, fence));
    peer.frames_until(|f| matches!(f, Frame::Stream { body: Body::OpenAck { result: Ok(()) }, .. })).unwrap();
    peer.frame(2, data(cid, fence, &all, 0, 5000));
    let garbage = vec![0xaa; end];
    for (frame, number) in frames_of(cid, fence, &garbage).into_iter().zip(1..) {
        other.frame(number, frame);
    }
    // An OPEN under an old fence is answered: what was said before it has been read.
    other.frame(5, open(cid_of_other, Fence { nonce: Nonce(1), ..fence }));
    other.frames_until(|f| matches!(f, Frame::Stream { body: Body::OpenAck { result: Err(_) }, .. })).unwrap();
    let epochs = [-1, 1].map(|by| Fence { epoch: Epoch(fence.epoch.0.wrapping_add_signed(by)), ..fence });
    let stale = epochs.into_iter().flat_map(|fence| frames_of(cid, fence, &garbage));
    for (frame, number) in stale.zip(3..) {
        peer.frame(number, frame);
    }
    peer.frame(11, data(cid, fence, &all, 5000, end));
    peer.frame(12, Frame::Stream { cid, epoch: fence.epoch, body: Body::Fin { final_off: end as u64 } });
    let receipt = RefCell::new(Vec::new());
    peer.frames_until(|f| {
        if let Frame::Stream { body: Body::Data { bytes, .. }, .. } = f {
            receipt.borrow_mut().extend_from_slice(bytes);
        }
        receipt.borrow().len() >= RECEIPT_BYTES
    })
    .unwrap();
    receipt.into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_off_their_streams_session_or_epoch_are_dropped_and_counted() {
    let mut cluster = carried_by(carry_beside_strangers).await;
    let metrics = cluster.metrics(0).await;
    let rejected = |reason| metrics.sum("nowconnect_frames_rejected_total", &[("reason", reason)]);
    assert_eq!((rejected("session"), rejected("epoch")), (Some(4.0), Some(8.0)));
    assert_eq!(metrics.sum("nowconnect_owner_epoch_mismatch_total", &[]), Some(1.0), "the OPEN, and no other frame");
    cluster.assert_alive();
}

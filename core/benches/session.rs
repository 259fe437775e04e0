//! Cost of one DATA frame through a pair of sessions: queued, encoded,
//! decoded on the other side and acknowledged. The gate is 150 ns a frame at
//! 100,000 streams and 60 ns at 1,000.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nowconnect_core::config::Liveness;
use nowconnect_core::id::{Cid, Epoch, Incarnation, Secret, SessionId};
use nowconnect_core::rng::Seed;
use nowconnect_core::session::{Released, Session, SessionConfig, TxBatch};
use nowconnect_core::time::Instant;
use nowconnect_core::wire::{Body, Codec, Dialect, Frame, Plane};

/// Frames per turn: the depth cap ends each `poll_transmit` after so many.
const BATCH: u64 = 256;

fn session(dialect: Dialect) -> Session {
    let config = SessionConfig {
        dialect,
        id: SessionId(1),
        secret: Secret([7; 32]),
        send_queue_depth: BATCH as u32,
        inflight_bytes: 64 << 20,
        liveness: Liveness::default(),
    };
    Session::new(config, Seed::from_u64(1), Instant::ZERO)
}

struct Pair {
    from: Session,
    to: Session,
    now: Instant,
    batch: TxBatch,
    frames: Vec<Frame>,
    released: Vec<Released>,
    payload: Bytes,
}

impl Pair {
    /// Every stream has a frame queued, so queues and tables have their size.
    fn new(dialect: Dialect, streams: u64, len: usize) -> Self {
        let mut pair = Self {
            from: session(dialect),
            to: session(dialect),
            now: Instant::ZERO,
            batch: TxBatch::default(),
            frames: Vec::new(),
            released: Vec::new(),
            payload: Bytes::from(vec![7; len]),
        };
        for n in 0..streams {
            pair.queue(Cid::new(Incarnation(1), 0, n * 7_919 % streams));
        }
        pair
    }

    fn queue(&mut self, cid: Cid) {
        let body = Body::Data { off: 0, bytes: self.payload.clone() };
        self.from.send(self.now, Frame::stream(cid, Epoch(5), body), &mut Vec::new());
    }

    fn carry(&mut self, back: bool) {
        let (from, to) = if back { (&mut self.to, &mut self.from) } else { (&mut self.from, &mut self.to) };
        from.poll_transmit(self.now, usize::MAX, &mut self.batch, &mut self.released);
        while let Some(m) = self.batch.messages.pop_front() {
            // One copy stands for the socket; it is part of what is measured.
            to.on_message(self.now, &m.to_bytes(), &mut self.frames).expect("own messages decode");
        }
        self.batch.bytes = 0;
        black_box(&self.frames);
        self.frames.clear();
    }

    /// 256 frames leave, arrive and are acknowledged, and 256 are queued.
    #[inline(never)]
    fn turn(&mut self) {
        self.carry(false);
        self.now = self.now.after(Duration::from_millis(20));
        self.carry(true);
        let mut released = std::mem::take(&mut self.released);
        for Released { cid, .. } in released.drain(..) {
            self.queue(cid);
        }
        self.released = released;
    }
}

fn data_frames(c: &mut Criterion) {
    for (codec, name) in [(Codec::BinaryV2, "v2"), (Codec::JsonV1, "v1")] {
        for len in [64_usize, 512] {
            let mut group = c.benchmark_group(format!("session/{name}/{len} B"));
            group.throughput(Throughput::Elements(BATCH)).sample_size(20).measurement_time(Duration::from_secs(2));
            for streams in [1_000_u64, 100_000] {
                let mut pair = Pair::new(Dialect { codec, plane: Plane::Mesh }, streams, len);
                (0..7).for_each(|_| pair.turn());
                assert_eq!(pair.from.inflight_bytes(), 0, "a turn acknowledges what it sent");
                group.bench_function(format!("{streams} streams"), |b| b.iter(|| pair.turn()));
            }
            group.finish();
        }
    }
}

criterion_group!(benches, data_frames);
criterion_main!(benches);

//! What a DATA frame costs in either encoding, each way, and a v2 message of
//! many small frames. Run with `cargo bench -p nowconnect-core --bench wire`.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nowconnect_core::id::{Cid, Epoch};
use nowconnect_core::wire::{
    Body, Codec, Dialect, Frame, Plane, WireLimits, decode, encode_frame, encode_message, encode_message_start,
};

fn data(payload: usize) -> Frame {
    let bytes = Bytes::from(vec![0x5a; payload]);
    Frame::stream(
        Cid(0x0011_2233_4455_6677_0200_0000_0000_0001),
        Epoch(1_826_000_000_000_123),
        Body::Data { off: 1 << 30, bytes },
    )
}

fn codecs(c: &mut Criterion) {
    for (codec, name) in [(Codec::BinaryV2, "v2"), (Codec::JsonV1, "v1")] {
        let dialect = Dialect { codec, plane: Plane::Mesh };
        for payload in [512, 16 * 1024, 64 * 1024] {
            let frame = data(payload);
            let mut group = c.benchmark_group(format!("{name} DATA {payload}"));
            group.throughput(Throughput::Bytes(payload as u64));
            group.bench_function("encode", |b| {
                let mut head = BytesMut::with_capacity(128 * 1024);
                b.iter(|| {
                    head.clear();
                    encode_message_start(dialect, 77, &mut head);
                    let payload = encode_frame(dialect, 77, black_box(&frame), &mut head);
                    black_box((&head, payload));
                });
            });
            // As it comes from a socket: already shared, so a slice is a count.
            let msg = BytesMut::from(&*encode_message(dialect, 77, std::slice::from_ref(&frame))).freeze();
            let _shared = msg.clone();
            group.bench_function("decode", |b| {
                let mut frames = Vec::with_capacity(4);
                b.iter(|| {
                    frames.clear();
                    let n = decode(dialect, black_box(&msg), &WireLimits::ESTABLISHED, &mut frames);
                    black_box((&frames, n.is_ok()));
                });
            });
        }
    }
    let dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Mesh };
    let frames: Vec<Frame> = (0..64).map(|_| data(512)).collect();
    let msg = BytesMut::from(&*encode_message(dialect, 77, &frames)).freeze();
    let mut group = c.benchmark_group("v2 64 x DATA 512");
    group.throughput(Throughput::Elements(64));
    group.bench_function("decode", |b| {
        b.iter_batched_ref(
            || Vec::with_capacity(64),
            |out| decode(dialect, black_box(&msg), &WireLimits::ESTABLISHED, out).is_ok(),
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, codecs);
criterion_main!(benches);

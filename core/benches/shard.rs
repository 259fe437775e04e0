//! Cost of one DATA frame in a node. `owner` and `endpoint` are the shard
//! alone: the gate is 60 ns at 1,000 streams and 150 ns at 100,000. `relay` is
//! a hub's sessions and shard together, from a message in to a message out.
//! `poll_timeout` has a gate of 20 ns.
#![expect(clippy::disallowed_methods, reason = "a bench measures time")]

mod fixture;

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fixture::{BATCH, Endpoint, Owner, Relay};

/// Turns before the first one counted, so that buffers have their size.
const WARM: u64 = 7;

fn payload(len: usize) -> Bytes {
    Bytes::from(vec![7; len])
}

fn shard(c: &mut Criterion) {
    for len in [512_usize, 16 << 10] {
        let mut group = c.benchmark_group(format!("shard/{len} B"));
        group.throughput(Throughput::Elements(BATCH as u64)).sample_size(20).measurement_time(Duration::from_secs(2));
        for streams in [1_000_u64, 100_000] {
            group.bench_function(format!("owner/{streams} streams"), |b| {
                let mut owner = Owner::new(streams, payload(len));
                (0..WARM).for_each(|_| owner.turn());
                b.iter(|| owner.turn());
                owner.shard.check_invariants();
            });
            group.bench_function(format!("endpoint/{streams} streams"), |b| {
                let mut endpoint = Endpoint::new(streams, payload(len));
                (0..WARM).for_each(|_| endpoint.turn());
                b.iter(|| endpoint.turn());
                endpoint.shard.check_invariants();
            });
        }
        group.finish();
    }
}

fn relay(c: &mut Criterion) {
    for len in [512_usize, 16 << 10] {
        let mut group = c.benchmark_group(format!("relay/{len} B"));
        group.throughput(Throughput::Elements(BATCH as u64)).sample_size(20).measurement_time(Duration::from_secs(2));
        for streams in [1_000_u64, 100_000] {
            for per_message in [1, 64] {
                group.bench_function(format!("{streams} streams/{per_message} a message"), |b| {
                    let mut relay = Relay::new(streams, payload(len), per_message);
                    b.iter_custom(|turns| {
                        let (mut total, mut messages) = (Duration::ZERO, Vec::new());
                        for _ in 0..turns.max(WARM) {
                            relay.produce(&mut messages);
                            let start = std::time::Instant::now();
                            relay.carry(&mut messages);
                            total += start.elapsed();
                            relay.acknowledge();
                        }
                        total * u32::try_from(turns).unwrap_or(u32::MAX)
                            / u32::try_from(turns.max(WARM)).unwrap_or(u32::MAX)
                    });
                });
            }
        }
        group.finish();
    }
}

fn poll_timeout(c: &mut Criterion) {
    let mut group = c.benchmark_group("poll_timeout");
    group.sample_size(20).measurement_time(Duration::from_secs(1));
    let endpoint = Endpoint::new(1_000, payload(512));
    group.bench_function("shard", |b| b.iter(|| black_box(&endpoint.shard).poll_timeout()));
    let session = fixture::session(
        nowconnect_core::wire::Dialect {
            codec: nowconnect_core::wire::Codec::BinaryV2,
            plane: nowconnect_core::wire::Plane::Mesh,
        },
        1,
    );
    group.bench_function("session", |b| b.iter(|| black_box(&session).poll_timeout()));
    let relay = Relay::new(1_000, payload(512), 1);
    group.bench_function("sessions of a node", |b| b.iter(|| black_box(&relay.mux).poll_timeout()));
    group.finish();
}

criterion_group!(benches, shard, relay, poll_timeout);
criterion_main!(benches);

//! The outgoing half against writers that take little at a time.

use super::*;
use nowconnect_core::rng::Seed;
use std::task::Waker;
use tungstenite::protocol::{Message, Role, WebSocket};

/// Takes at most `step` bytes a write and `room` bytes in all.
struct Sink {
    bytes: Vec<u8>,
    step: usize,
    room: usize,
    writes: usize,
}

impl Sink {
    fn new(step: usize, room: usize) -> Self {
        Self { bytes: Vec::new(), step, room, writes: 0 }
    }
}

impl AsyncWrite for Sink {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let n = buf.len().min(self.step).min(self.room);
        if n == 0 {
            return Poll::Pending;
        }
        self.room -= n;
        self.writes += 1;
        self.bytes.extend_from_slice(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).take(self.step).collect();
        self.poll_write(cx, &all)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn flush(out: &mut Outgoing, sink: &mut Sink) -> bool {
    out.poll_flush(&mut Context::from_waker(Waker::noop()), sink).is_ready()
}

fn read_all(bytes: Vec<u8>, role: Role) -> Vec<Message> {
    let mut ws = WebSocket::from_raw_socket(io::Cursor::new(bytes), role, None);
    std::iter::from_fn(|| ws.read().ok()).collect()
}

fn pong(payload: &[u8]) -> Bytes {
    let mut bytes = vec![0x8a, payload.len() as u8];
    bytes.extend_from_slice(payload);
    bytes.into()
}

#[test]
fn any_cut_of_the_writes_yields_the_same_messages() {
    let sizes = [0, 1, 125, 126, 511, 512, 513, 3000, 65_535, 65_536, 20_000];
    for (role, mask) in [(Role::Client, None), (Role::Server, Some(Seed::from_u64(7).rng()))] {
        for step in [1, 7, 1000, usize::MAX] {
            let mut out = Outgoing::new(false, mask.clone());
            let mut want = Vec::new();
            for (i, &size) in sizes.iter().enumerate() {
                let body: Vec<u8> = (0..size).map(|k| (k * 7 + i) as u8).collect();
                let body = Bytes::from(body);
                let cut = size / 3;
                out.message([body.slice(..cut), body.slice(cut..)], size);
                want.push(Message::Binary(body));
            }
            let total = out.queued_bytes();
            let mut sink = Sink::new(step, usize::MAX);
            assert!(flush(&mut out, &mut sink));
            assert_eq!((sink.bytes.len(), out.queued_bytes()), (total, 0));
            assert_eq!(read_all(sink.bytes, role), want);
        }
    }
}

#[test]
fn a_pong_goes_between_frames_wherever_the_socket_stopped() {
    let body = Bytes::from(vec![9; 2000]);
    for stopped_at in 0..4100 {
        let mut out = Outgoing::new(false, None);
        for _ in 0..3 {
            out.message([body.slice(..1990), body.slice(1990..)], 2000);
        }
        let mut sink = Sink::new(usize::MAX, stopped_at);
        assert!(!flush(&mut out, &mut sink));
        out.pong(pong(b"old"));
        out.pong(pong(b"new"));
        sink.room = usize::MAX;
        assert!(flush(&mut out, &mut sink));
        let got = read_all(sink.bytes, Role::Client);
        let at = got.iter().position(Message::is_pong).unwrap();
        assert_eq!(got[at], Message::Pong(Bytes::from_static(b"new")));
        assert_eq!(got.len(), 4);
        assert!(at <= stopped_at / 2004 + 1, "the pong waited behind the queue: {at} after {stopped_at}");
    }
}

#[test]
fn pongs_to_a_peer_that_does_not_read_take_constant_room() {
    let mut out = Outgoing::new(false, None);
    out.message([Bytes::from_static(&[1; 600])], 600);
    let mut sink = Sink::new(usize::MAX, 100);
    for _ in 0..1000 {
        out.pong(pong(&[3; 125]));
        assert!(!flush(&mut out, &mut sink));
    }
    assert_eq!(out.queued_bytes(), 604 + 127 - 100);
}

#[test]
fn a_failing_connection_drops_what_was_not_begun() {
    let close = Bytes::from_static(&[0x88, 2, 0x03, 0xea]);
    for stopped_at in [0, 1, 700, 1300] {
        let mut out = Outgoing::new(false, None);
        for _ in 0..3 {
            out.message([Bytes::from_static(&[1; 600])], 600);
        }
        let mut sink = Sink::new(usize::MAX, stopped_at);
        assert!(!flush(&mut out, &mut sink));
        out.drop_unsent();
        out.close(close.clone());
        out.message([Bytes::from_static(b"late")], 4);
        sink.room = usize::MAX;
        assert!(flush(&mut out, &mut sink));
        let got = read_all(sink.bytes, Role::Client);
        assert_eq!(got.len(), stopped_at.div_ceil(604) + 1);
        assert!(got.last().unwrap().is_close());
        assert_eq!(out.queued_bytes(), 0);
    }
}

#[test]
fn many_small_messages_take_few_writes() {
    let mut out = Outgoing::new(false, None);
    for _ in 0..1000 {
        out.message([Bytes::from_static(&[1; 20]), Bytes::from_static(&[2; 200])], 220);
    }
    let mut sink = Sink::new(usize::MAX, usize::MAX);
    assert!(flush(&mut out, &mut sink));
    assert_eq!(sink.writes, 1);
}

#[test]
fn masking_in_words_equals_masking_in_bytes() {
    let key = [1, 2, 3, 4];
    for len in 0..40 {
        let mut words = vec![0x55; len];
        apply_mask(&mut words, key);
        let bytes: Vec<u8> = (0..len).map(|i| 0x55 ^ key[i % 4]).collect();
        assert_eq!(words, bytes);
    }
}

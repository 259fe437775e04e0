//! The outgoing half of a WebSocket connection: frames as a queue of chunks,
//! written with vectored I/O.
//!
//! Payload is never copied when it need not be masked; chunks of up to
//! [`COPY_MAX_BYTES`] are copied together with the headers around them, since a
//! reference and an I/O vector cost more than so few bytes. Client frames are
//! copied once and masked in place (RFC 6455, 5.3).
//!
//! Frame boundaries are kept, so that a pong or close goes out between frames
//! and not behind the whole queue. At most one pong waits besides one that is
//! queued: a peer that pings and does not read costs constant memory
//! (attacks 11, 13). Knows no socket state beyond the writer it is handed.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use nowconnect_core::rng::Rng;
use tokio::io::AsyncWrite;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Data, OpCode};

/// Chunks up to this size are copied next to the headers.
const COPY_MAX_BYTES: usize = 512;
/// Size at which the copied bytes are closed into a chunk.
const TAIL_SEAL_BYTES: usize = 16 * 1024;
/// First allocation of the tail.
const TAIL_START_BYTES: usize = 2 * 1024;
/// Chunks handed to one vectored write.
const SLICES_MAX: usize = 64;

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Edge {
    /// The next chunk continues the frame.
    Inside,
    /// A frame ends with this chunk.
    End,
    /// As `End`, and the chunk is a pong.
    Pong,
}

#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    edge: Edge,
}

/// Frames waiting to be written.
#[derive(Debug)]
pub(super) struct Outgoing {
    queue: VecDeque<Chunk>,
    tail: BytesMut,
    /// Bytes of `tail` up to the last end of a frame in it.
    tail_edge: usize,
    queued: usize,
    /// What has been written so far ends at the end of a frame.
    at_edge: bool,
    pong: Option<Bytes>,
    pong_queued: bool,
    opcode: OpCode,
    /// Present in the client role: where mask keys come from.
    mask: Option<Rng>,
    /// A close frame was queued: nothing may follow it.
    closed: bool,
}

impl Outgoing {
    pub(super) fn new(text: bool, mask: Option<Rng>) -> Self {
        Self {
            queue: VecDeque::new(),
            tail: BytesMut::new(),
            tail_edge: 0,
            queued: 0,
            at_edge: true,
            pong: None,
            pong_queued: false,
            opcode: OpCode::Data(if text { Data::Text } else { Data::Binary }),
            mask,
            closed: false,
        }
    }

    /// Bytes not written yet, headers included, waiting pong excluded.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Appends one message made of `chunks`. After a close it is dropped.
    pub(super) fn message(&mut self, chunks: impl IntoIterator<Item = Bytes>, len: usize) {
        if self.closed {
            return;
        }
        let key = self.mask.as_mut().map(|rng| {
            let [a, b, c, d, ..] = rng.next_u64().to_le_bytes();
            [a, b, c, d]
        });
        let header = FrameHeader { opcode: self.opcode, mask: key, ..FrameHeader::default() };
        let head_len = header.len(len as u64);
        let copied = if key.is_some() { len } else { 0 };
        self.tail.reserve((head_len + copied).max(if self.tail.capacity() == 0 { TAIL_START_BYTES } else { 0 }));
        // Writing into a growing buffer cannot fail.
        let _ = header.format(len as u64, &mut (&mut self.tail).writer());
        self.queued += head_len + len;
        let mut seen = 0;
        match key {
            Some(key) => {
                let start = self.tail.len();
                for chunk in chunks {
                    seen += chunk.len();
                    self.tail.extend_from_slice(&chunk);
                }
                apply_mask(&mut self.tail[start..], key);
            }
            None => {
                for chunk in chunks {
                    seen += chunk.len();
                    if chunk.len() <= COPY_MAX_BYTES {
                        self.tail.extend_from_slice(&chunk);
                    } else {
                        self.seal();
                        self.queue.push_back(Chunk { bytes: chunk, edge: Edge::Inside });
                    }
                }
            }
        }
        assert_eq!(seen, len, "the chunks of a message must add up to its announced length");
        self.end_frame();
    }

    fn end_frame(&mut self) {
        if self.tail.is_empty() {
            if let Some(last) = self.queue.back_mut() {
                last.edge = Edge::End;
            }
        } else {
            self.tail_edge = self.tail.len();
            if self.tail.len() >= TAIL_SEAL_BYTES {
                self.seal();
            }
        }
    }

    /// Moves the tail into the queue, cut at the last end of a frame in it.
    fn seal(&mut self) {
        if self.tail_edge > 0 {
            let bytes = self.tail.split_to(self.tail_edge).freeze();
            self.queue.push_back(Chunk { bytes, edge: Edge::End });
            self.tail_edge = 0;
        }
        if !self.tail.is_empty() {
            self.queue.push_back(Chunk { bytes: self.tail.split().freeze(), edge: Edge::Inside });
        }
    }

    /// Sends `frame`, a complete pong, after the frame in progress; replaces
    /// one that still waits.
    pub(super) fn pong(&mut self, frame: Bytes) {
        if !self.closed {
            self.pong = Some(frame);
        }
    }

    /// Appends `frame`, a complete close frame, after everything queued.
    pub(super) fn close(&mut self, frame: Bytes) {
        if self.closed || frame.is_empty() {
            return;
        }
        self.closed = true;
        self.pong = None;
        self.queued += frame.len();
        self.seal();
        self.queue.push_back(Chunk { bytes: frame, edge: Edge::End });
    }

    /// Drops every frame that was not begun, so that a close gets out even
    /// when the peer reads slowly.
    pub(super) fn drop_unsent(&mut self) {
        if self.closed {
            return;
        }
        self.seal();
        self.pong = None;
        let keep = self.first_edge();
        for chunk in self.queue.drain(keep..) {
            self.queued -= chunk.bytes.len();
        }
        self.pong_queued = self.queue.iter().any(|chunk| chunk.edge == Edge::Pong);
    }

    /// Index in the queue where a frame of another kind may be put.
    fn first_edge(&self) -> usize {
        if self.at_edge { 0 } else { self.queue.iter().position(|c| c.edge != Edge::Inside).map_or(0, |i| i + 1) }
    }

    fn place_pong(&mut self) {
        if self.pong_queued {
            return;
        }
        if let Some(bytes) = self.pong.take() {
            let at = self.first_edge();
            self.queued += bytes.len();
            self.queue.insert(at, Chunk { bytes, edge: Edge::Pong });
            self.pong_queued = true;
        }
    }

    fn written(&mut self, mut n: usize) {
        self.queued -= n;
        while n > 0 {
            let Some(front) = self.queue.front_mut() else { return };
            if n < front.bytes.len() {
                front.bytes.advance(n);
                self.at_edge = false;
                return;
            }
            n -= front.bytes.len();
            self.at_edge = front.edge != Edge::Inside;
            if front.edge == Edge::Pong {
                self.pong_queued = false;
            }
            self.queue.pop_front();
        }
    }

    /// Writes until nothing is left or the socket is full.
    pub(super) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        loop {
            self.seal();
            self.place_pong();
            if self.queue.is_empty() {
                return Pin::new(io).poll_flush(cx);
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut used = 0;
            for (slice, chunk) in slices.iter_mut().zip(&self.queue) {
                *slice = IoSlice::new(&chunk.bytes);
                used += 1;
            }
            match Pin::new(&mut *io).poll_write_vectored(cx, &slices[..used]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => self.written(n),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// XORs `buf` with the repeated `key`.
fn apply_mask(buf: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = buf.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, k) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= k;
    }
}

#[cfg(test)]
#[path = "outgoing_tests.rs"]
mod tests;

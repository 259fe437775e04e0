//! One direction of a connection, as two kernels and the wire between them
//! hold it. Pure: when something moves is `net`'s and `bytes`'s.
//!
//! At L0 only the wire is used (`items`). At L1 a byte goes from the writer's
//! send buffer (`unsent`) in pieces over the wire into the reader's receive
//! buffer (`unread`). The send buffer holds a byte until it has arrived; the
//! wire takes no more than the receive buffer has room for. Keeps: bytes are
//! never lost, doubled or reordered except by [`Pipe::reset`]; an end follows
//! the data; what was accepted is not what was delivered. Must not know what
//! the bytes say.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes, BytesMut};

use crate::check::wire::Told;

/// What is under way in one direction.
#[derive(Debug)]
pub(crate) enum Item {
    /// A whole message (L0).
    Message(Told),
    /// Some bytes (L1).
    Piece(Bytes),
    /// The sender closed in order.
    Fin,
}

impl Item {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Message(told) => told.bytes.len() as u64,
            Self::Piece(b) => b.len() as u64,
            Self::Fin => 0,
        }
    }
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    pub(crate) items: VecDeque<Item>,
    /// Bytes accepted from the writer that have not arrived.
    pub(crate) bytes: u64,
    /// The last item's arrival.
    pub(crate) last_at: u64,
    /// The wire is busy until then.
    pub(crate) free_at: u64,
    /// Items that should have arrived but are held back by a block.
    pub(crate) stuck: u32,
    /// Since when something has been stuck.
    pub(crate) stuck_since: Option<u64>,
    /// Nothing arrives any more, and nobody is told.
    pub(crate) dead: bool,
    /// L1: accepted from the writer, not on the wire yet.
    unsent: BytesMut,
    /// L1: bytes on the wire.
    flying: u64,
    /// L1: arrived, not read.
    unread: BytesMut,
    /// L1: sizes of the two buffers.
    send_cap: u64,
    receive_cap: u64,
    fin_due: bool,
    fin_sent: bool,
    fin_here: bool,
    /// L1: since when the reader's full buffer has held data back.
    pub(crate) shut_since: Option<u64>,
}

impl Pipe {
    /// Sets the sizes of the send and the receive buffer (L1), bytes.
    pub(crate) fn sized(send_cap: u64, receive_cap: u64) -> Self {
        Self { send_cap: send_cap.max(1), receive_cap: receive_cap.max(1), ..Self::default() }
    }

    /// How much the send buffer takes now.
    pub(crate) const fn room(&self) -> u64 {
        if self.fin_due { 0 } else { self.send_cap.saturating_sub(self.bytes) }
    }

    /// Takes what fits of `bytes` into the send buffer.
    pub(crate) fn accept(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(usize::try_from(self.room()).unwrap_or(usize::MAX));
        self.unsent.extend_from_slice(bytes.get(..n).unwrap_or(&[]));
        self.bytes += n as u64;
        n
    }

    /// The writer is done: an end follows what is buffered.
    pub(crate) const fn finish(&mut self) {
        self.fin_due = true;
    }

    /// What the wire takes next: at most `most` bytes, within the reader's room.
    pub(crate) fn launch(&mut self, most: usize) -> Option<Item> {
        let window = self.receive_cap.saturating_sub(self.flying + self.unread.len() as u64);
        if self.unsent.is_empty() {
            if self.fin_due && !self.fin_sent {
                self.fin_sent = true;
                return Some(Item::Fin);
            }
            return None;
        }
        let len = self.unsent.len().min(most).min(usize::try_from(window).unwrap_or(usize::MAX));
        if len == 0 {
            return None;
        }
        self.flying += len as u64;
        Some(Item::Piece(self.unsent.split_to(len).freeze()))
    }

    /// Data waits, nothing is under way, and the reader has no room.
    pub(crate) fn is_shut(&self) -> bool {
        !self.unsent.is_empty() && self.flying == 0 && self.unread.len() as u64 >= self.receive_cap
    }

    /// A piece left the wire; the send buffer may forget it.
    pub(crate) const fn landed(&mut self, len: u64) {
        self.flying = self.flying.saturating_sub(len);
        self.bytes = self.bytes.saturating_sub(len);
    }

    /// Puts a piece that landed into the receive buffer. False after an end:
    /// the socket it was for does not exist any more.
    pub(crate) fn receive(&mut self, piece: &[u8]) -> bool {
        if self.fin_here {
            return false;
        }
        self.unread.extend_from_slice(piece);
        true
    }

    /// An end arrived, behind everything before it.
    pub(crate) const fn end(&mut self) {
        self.fin_here = true;
    }

    /// Bytes that can be read.
    pub(crate) fn readable(&self) -> usize {
        self.unread.len()
    }

    /// Everything was read, and the end is here.
    pub(crate) fn at_end(&self) -> bool {
        self.fin_here && self.unread.is_empty()
    }

    /// Reads at most `out.len()` bytes.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> usize {
        let n = out.len().min(self.unread.len());
        if let (Some(to), Some(from)) = (out.get_mut(..n), self.unread.get(..n)) {
            to.copy_from_slice(from);
            self.unread.advance(n);
        }
        n
    }

    /// Throws away what is unread and says how much it was.
    pub(crate) fn discard(&mut self) -> usize {
        let n = self.unread.len();
        self.unread.clear();
        n
    }

    /// The reader's side was reset: what is under way and what is unread are
    /// lost, and nothing arrives any more.
    pub(crate) fn reset(&mut self) {
        self.items.clear();
        self.stuck = 0;
        self.bytes = 0;
        self.flying = 0;
        self.dead = true;
        self.unsent = BytesMut::new();
        self.unread = BytesMut::new();
    }

    /// The writer's side was reset: what is not on the wire stays off it.
    pub(crate) fn drop_unsent(&mut self) {
        self.bytes = self.bytes.saturating_sub(self.unsent.len() as u64);
        self.unsent = BytesMut::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: u32) -> Vec<u8> {
        (0..n).map(|i| (i * 7) as u8).collect()
    }

    fn land(p: &mut Pipe) -> bool {
        match p.items.pop_front() {
            Some(Item::Piece(b)) => {
                p.landed(b.len() as u64);
                p.receive(&b)
            }
            Some(Item::Fin) => {
                p.end();
                true
            }
            Some(Item::Message(_)) | None => false,
        }
    }

    fn fly(p: &mut Pipe, most: usize) {
        while let Some(item) = p.launch(most) {
            p.items.push_back(item);
        }
    }

    fn read_all(p: &mut Pipe) -> Vec<u8> {
        let mut out = vec![0; p.readable()];
        assert_eq!(p.read(&mut out), out.len());
        out
    }

    #[test]
    fn a_write_that_was_accepted_is_not_delivered_and_keeps_its_room_until_it_is() {
        let mut p = Pipe::sized(10, 100);
        assert_eq!(p.accept(&bytes(25)), 10);
        assert_eq!(p.accept(&bytes(1)), 0, "the send buffer is full");
        fly(&mut p, 4);
        assert_eq!((p.items.len(), p.room(), p.readable()), (3, 0, 0), "on the wire is not there yet");
        assert!(land(&mut p));
        assert_eq!((p.room(), p.readable()), (4, 4));
        while !p.items.is_empty() {
            assert!(land(&mut p));
        }
        assert_eq!(read_all(&mut p), bytes(10));
    }

    #[test]
    fn the_wire_takes_no_more_than_the_reader_has_room_for() {
        let mut p = Pipe::sized(100, 8);
        assert_eq!(p.accept(&bytes(20)), 20);
        fly(&mut p, 5);
        assert_eq!(p.items.iter().map(Item::len).sum::<u64>(), 8);
        assert!(!p.is_shut(), "something is under way");
        while !p.items.is_empty() {
            land(&mut p);
        }
        assert!(p.is_shut() && p.launch(5).is_none());
        assert_eq!(p.read(&mut [0; 3]), 3);
        assert!(!p.is_shut());
        fly(&mut p, 5);
        assert_eq!(p.items.iter().map(Item::len).sum::<u64>(), 3);
    }

    #[test]
    fn an_end_queues_behind_the_data() {
        let mut p = Pipe::sized(100, 4);
        p.accept(&bytes(9));
        p.finish();
        assert_eq!(p.accept(&bytes(1)), 0, "nothing is written after the end");
        let mut got = Vec::new();
        while !p.at_end() {
            fly(&mut p, 3);
            assert!(land(&mut p), "bytes and the end arrive");
            got.extend(read_all(&mut p));
        }
        assert_eq!(got, bytes(9));
        assert!(p.launch(3).is_none(), "it ends once");
        assert!(!p.receive(&[1]), "what comes after an end is refused");
    }

    #[test]
    fn a_reset_discards_what_is_unread_and_what_is_under_way() {
        let mut p = Pipe::sized(100, 100);
        p.accept(&bytes(60));
        fly(&mut p, 20);
        land(&mut p);
        assert_eq!((p.readable(), p.items.len()), (20, 2));
        p.reset();
        assert_eq!((p.readable(), p.items.len(), p.bytes), (0, 0, 0));
        assert!(p.dead && !p.at_end(), "a reset is no end");
    }

    #[test]
    fn bytes_keep_their_order_under_any_sizes() {
        for (send, receive, most, read) in [(1, 1, 1, 1), (3, 7, 2, 5), (64, 2, 9, 1), (2, 64, 64, 64), (7, 7, 3, 2)] {
            let (mut p, all, mut at, mut got) = (Pipe::sized(send, receive), bytes(200), 0, Vec::new());
            while got.len() < all.len() {
                at += p.accept(&all[at..]);
                fly(&mut p, most);
                land(&mut p);
                let mut out = vec![0; read];
                let n = p.read(&mut out);
                got.extend_from_slice(&out[..n]);
            }
            assert_eq!(got, all, "{send} {receive} {most} {read}");
        }
    }
}

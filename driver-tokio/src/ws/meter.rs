//! Watches the frame boundaries of the incoming bytes on their way to the
//! WebSocket reader, which shows whole messages only.
//!
//! Owns the rules a message view cannot check: at most [`FRAGMENTS_MAX`]
//! frames a message (attack 9) and lengths in their shortest form (attack 8).
//! It also counts complete messages, so that the connection knows when the
//! reader holds none and a socket read is due, and tells whether a message has
//! grown without being complete. Costs a few instructions a
//! frame, none a byte. Knows nothing of masks, payload or sockets.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Data, OpCode};

/// Most frames one message may come in (attack 9).
pub const FRAGMENTS_MAX: u32 = 16;
/// Longest frame header: 2 + 8 of length + 4 of mask (RFC 6455, 5.2).
const HEADER_MAX_BYTES: usize = 14;

/// A rule broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// More than [`FRAGMENTS_MAX`] frames in a message.
    Fragments,
    /// A length not in its shortest form.
    LongLength,
}

/// Position in the incoming frame stream.
#[derive(Debug, Default)]
pub(super) struct Meter {
    head: [u8; HEADER_MAX_BYTES],
    head_len: usize,
    /// Payload bytes still to come of the current frame.
    payload: u64,
    /// The current frame completes a message (or is a control frame).
    completes: bool,
    /// The current frame is a part of a message, not a control frame.
    data: bool,
    /// Payload of the message that is not complete has passed since it was
    /// last asked.
    grown: bool,
    in_frame: bool,
    fragments: u32,
    /// Messages and control frames that have passed completely.
    complete: u64,
    fault: Option<Fault>,
    /// The reader will refuse what comes now; stop looking.
    off: bool,
}

impl Meter {
    /// Messages and control frames that have passed completely.
    pub(super) fn complete(&self) -> u64 {
        self.complete
    }

    /// Whether payload of the message that is not complete yet has passed since
    /// the last call. Control frames are none: anything in between sends them.
    pub(super) fn take_grown(&mut self) -> bool {
        std::mem::take(&mut self.grown)
    }

    /// The first rule broken.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Looks at the next bytes; false once a rule was broken.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) -> bool {
        while !self.off && self.fault.is_none() {
            if self.in_frame {
                let n = self.payload.min(bytes.len() as u64);
                self.payload -= n;
                self.grown |= self.data && n > 0;
                // n is at most bytes.len(), so it fits.
                bytes = &bytes[n as usize..];
                if self.payload > 0 {
                    break;
                }
                self.in_frame = false;
                self.complete += u64::from(self.completes);
                self.grown &= !(self.data && self.completes);
            }
            if bytes.is_empty() {
                break;
            }
            bytes = self.header(bytes);
        }
        self.fault.is_none()
    }

    fn header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let had = self.head_len;
        let take = (HEADER_MAX_BYTES - had).min(bytes.len());
        self.head[had..had + take].copy_from_slice(&bytes[..take]);
        self.head_len = had + take;
        let mut cursor = Cursor::new(&self.head[..self.head_len]);
        match FrameHeader::parse(&mut cursor) {
            Ok(None) => &bytes[take..],
            Ok(Some((header, len))) => {
                let used = usize::try_from(cursor.position()).unwrap_or(HEADER_MAX_BYTES);
                self.head_len = 0;
                self.frame(&header, len, used);
                &bytes[used.saturating_sub(had)..]
            }
            Err(_) => {
                self.off = true;
                bytes
            }
        }
    }

    fn frame(&mut self, header: &FrameHeader, len: u64, used: usize) {
        if header.len(len) != used {
            self.fault = Some(Fault::LongLength);
            return;
        }
        self.in_frame = true;
        self.payload = len;
        match header.opcode {
            OpCode::Control(_) => {
                self.data = false;
                self.completes = true;
            }
            OpCode::Data(data) => {
                self.data = true;
                self.fragments = if data == Data::Continue { self.fragments.saturating_add(1) } else { 1 };
                self.completes = header.is_final;
                if self.fragments > FRAGMENTS_MAX {
                    self.fault = Some(Fault::Fragments);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![u8::from(fin) << 7 | opcode];
        match payload.len() {
            n @ 0..=125 => out.push(n as u8),
            n => {
                out.push(126);
                out.extend_from_slice(&(n as u16).to_be_bytes());
            }
        }
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn counts_the_same_however_the_bytes_are_cut() {
        let mut all = Vec::new();
        all.extend(frame(true, 2, &[0x81; 300]));
        all.extend(frame(false, 2, &[1; 5]));
        all.extend(frame(true, 9, &[2; 125]));
        all.extend(frame(true, 0, &[]));
        all.extend(frame(true, 1, b"x"));
        for cut in 1..=all.len() {
            let mut meter = Meter::default();
            for piece in all.chunks(cut) {
                assert!(meter.pass(piece));
            }
            assert_eq!(meter.complete(), 4, "cut {cut}");
        }
    }

    #[test]
    fn only_an_unfinished_message_grows() {
        let mut meter = Meter::default();
        let mut told = |bytes: &[u8]| {
            assert!(meter.pass(bytes));
            (meter.take_grown(), meter.take_grown())
        };
        let whole = frame(true, 2, &[7; 300]);
        assert_eq!(told(&whole), (false, false), "it is complete");
        assert_eq!(told(&whole[..4]), (false, false), "a header is no payload yet");
        assert_eq!(told(&whole[4..5]), (true, false), "once for what has passed");
        assert_eq!(told(&whole[5..299]), (true, false));
        assert_eq!(told(&whole[299..]), (false, false));
        assert_eq!(told(&frame(false, 2, &[1; 5])), (true, false), "a fragment is a part");
        assert_eq!(told(&frame(true, 9, &[2; 9])), (false, false), "a ping is not the peer's message");
        assert_eq!(told(&frame(true, 9, &[2; 9])[..5]), (false, false));
    }

    #[test]
    fn sixteen_fragments_pass_and_seventeen_do_not() {
        let mut meter = Meter::default();
        assert!(meter.pass(&frame(false, 2, &[0])));
        for _ in 0..14 {
            assert!(meter.pass(&frame(false, 0, &[])));
            assert!(meter.pass(&frame(true, 9, &[])), "a ping between fragments is none of them");
        }
        assert!(meter.pass(&frame(true, 0, &[])));
        assert!(meter.pass(&frame(false, 2, &[0])));
        for _ in 0..15 {
            assert!(meter.pass(&frame(false, 0, &[])));
        }
        assert!(!meter.pass(&frame(false, 0, &[])));
        assert_eq!(meter.fault(), Some(Fault::Fragments));
    }

    #[test]
    fn a_length_in_a_longer_form_is_a_fault() {
        for bytes in [&[0x82, 126, 0, 5][..], &[0x82, 127, 0, 0, 0, 0, 0, 0, 1, 0]] {
            let mut meter = Meter::default();
            assert!(!meter.pass(bytes));
            assert_eq!(meter.fault(), Some(Fault::LongLength));
        }
    }
}

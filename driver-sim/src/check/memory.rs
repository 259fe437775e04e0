//! B1: what a node holds of one direction of a stream, whatever is at its two
//! ends: of every stream with a socket every 256 events, and of each that DATA
//! just came for, also where it is only carried on.
//!
//! Must not know how a machine comes by less.

use nowconnect_core::id::Cid;
use nowconnect_core::shard::shard_of_lane;
use nowconnect_core::stream::{End, HalfState, Stream};
use nowconnect_core::wire::{Body, Frame};

use super::wire::Told;
use crate::plan::Plan;
use crate::world::World;

/// One frame on top of a window, and what a candidate before gave.
const FRAME_ROOM: u64 = 128 << 10;

/// What anybody may hold of one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    /// Read from a socket and not sent.
    from_socket: u64,
    /// From a session.
    from_session: u64,
}

impl Most {
    pub(super) fn of(plan: &Plan) -> Self {
        let windows = plan.hubs.iter().map(|h| h.window).chain(plan.agents.iter().map(|a| a.window));
        let windows = windows.chain(plan.rogues.iter().map(|_| (crate::rogue::WINDOW, crate::rogue::WINDOW)));
        let none = Self { from_socket: 0, from_session: 0 };
        windows.fold(none, |most, w| Self {
            // Bytes for one candidate are kept for the next, whatever its window.
            from_socket: most.from_socket.max(w.0),
            from_session: most.from_session.max(w.0.max(w.1) + FRAME_ROOM),
        })
    }

    /// The half that holds more, and how much.
    fn exceeded(self, stream: &Stream) -> Option<(usize, u64)> {
        stream.halves.iter().enumerate().find_map(|(h, half)| {
            // From a socket no more is read than may be sent, or than the
            // first window while nobody knows who will take it.
            let from_socket = matches!(stream.ends[h], End::Socket(_));
            let held = half.waiting_bytes() + if from_socket { 0 } else { half.queued };
            let most = if from_socket { self.from_socket } else { self.from_session };
            (half.state != HalfState::Aborted && held > most).then_some((h, held))
        })
    }
}

impl World {
    /// Of every stream with a socket.
    pub(super) fn check_memory(&mut self) {
        for sock in self.socks.iter().filter(|s| !s.gone && !s.closed) {
            let node = &self.nodes[usize::from(sock.node)];
            let machine = node.machine.as_ref().filter(|_| node.run == sock.run);
            let Some(stream) = machine.and_then(|m| m.stream(sock.stream?)) else { continue };
            if let Some((h, held)) = self.check.most.exceeded(stream) {
                let text = format!("{} holds {held} bytes of half {h} of {}", node.name, stream.cid);
                return self.fail("B1", text);
            }
        }
    }

    /// A message reaches a machine: the streams that it has DATA of.
    pub(super) fn note_touched(&mut self, told: &Told) {
        self.check.asked_now.clear();
        let touched = &mut self.check.touched;
        touched.clear();
        for f in &told.frames {
            if let Frame::Stream { cid, body: Body::Data { .. }, .. } = f
                && touched.last() != Some(cid)
            {
                touched.push(*cid);
            }
        }
    }

    /// After it: what the machine holds of them.
    pub(super) fn judge_touched(&mut self, ix: u16) {
        let touched = std::mem::take(&mut self.check.touched);
        let found = touched.iter().find_map(|cid| self.holds_too_much(ix, *cid));
        self.check.touched = touched;
        if let Some(text) = found {
            self.fail("B1", text);
        }
    }

    fn holds_too_much(&self, ix: u16, cid: Cid) -> Option<String> {
        let node = &self.nodes[usize::from(ix)];
        let shards = node.machine.as_ref()?.shards();
        let stream = shards.get(shard_of_lane(cid.lane(), shards.len()))?.find(cid)?;
        let (h, held) = self.check.most.exceeded(stream)?;
        Some(format!("{} holds {held} bytes of half {h} of {cid}", node.name))
    }
}

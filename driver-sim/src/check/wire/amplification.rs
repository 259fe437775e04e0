//! How much a process says because of what it is told (B8).
//!
//! The bound, frame by frame. An ACK says something new on its connection, so
//! there is at most one for each message received. A PONG answers a PING. A
//! frame of a stream that is no payload (OPEN_ACK, CREDIT, RST; FIN ends
//! payload and comes once) has one cause of its own:
//!
//! - an OPEN that came in: one OPEN_ACK, which is its own and kept until it is
//!   said, whatever else there is cause for. A refused OPEN was never a stream
//!   of the process, and a split hub may have hundreds of them on their way to
//!   its shards;
//! - another frame of a stream that came in: DATA the CREDIT for it or an RST,
//!   CREDIT and RST the same one passed on, OPEN_ACK the same and a CREDIT, FIN
//!   a CREDIT;
//! - something a socket did: took bytes (a CREDIT), aborted or failed (an RST);
//! - a stream that ends by itself (a deadline, a lost session, a drain): an RST
//!   to each side, so two for each OPEN that came in or went out.
//!
//! Control of a stream is level-triggered: one slot a stream and kind. So a
//! process may fall behind by a few frames a stream and never by more, which is
//! the room of the bucket. Bytes: a control frame of version 2 has at most 64
//! ([`FRAME_MAX`]); JSON spells names and numbers out.
//!
//! Forged frames count as cause like any other: one each. Must not know why a
//! machine says something.

use std::collections::BTreeMap;

use nowconnect_core::id::Cid;
use nowconnect_core::wire::{Body, Codec, Frame};

use super::{Ghost, Told, Wire, broken};
use crate::world::Violation;

/// Causes an OPEN is good for, besides its answer.
const OPEN_CAUSES: u64 = 2;
/// Causes that are kept whatever was opened.
const ROOM: u64 = 64;
/// And for each stream that was ever there at one time.
const ROOM_PER_STREAM: u64 = 4;
/// Bytes of a control frame in binary, and in JSON.
const FRAME_MAX: (usize, usize) = (64, 256);
/// Bytes of a message around its frames.
const HEAD_MAX: usize = 16;

/// What a process has cause for.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    left: u64,
    /// Most streams at one time.
    peak: u64,
    /// OPENs that came in and were not answered, by how often.
    asked: BTreeMap<Cid, u32>,
}

impl Allowance {
    fn earn(&mut self, n: u64) {
        self.left = (self.left + n).min(ROOM + ROOM_PER_STREAM * self.peak);
    }

    /// An OPEN came in.
    fn ask(&mut self, cid: Cid) {
        *self.asked.entry(cid).or_default() += 1;
    }

    /// An OPEN is answered; false if it never came.
    fn answer(&mut self, cid: Cid) -> bool {
        let Some(n) = self.asked.get_mut(&cid) else { return false };
        *n -= 1;
        if *n == 0 {
            self.asked.remove(&cid);
        }
        true
    }

    /// Something that needs a cause is said; false if there is none.
    const fn spend(&mut self) -> bool {
        let Some(left) = self.left.checked_sub(1) else { return false };
        self.left = left;
        true
    }
}

/// A frame that answers, reports or ends and carries no payload.
const fn is_control(frame: &Frame) -> bool {
    match frame {
        Frame::Ack { .. } | Frame::Ping { .. } | Frame::Pong { .. } => true,
        Frame::Stream { body, .. } => {
            matches!(body, Body::OpenAck { .. } | Body::Credit { .. } | Body::Fin { .. } | Body::Rst { .. })
        }
        Frame::Hello(_)
        | Frame::Welcome(_)
        | Frame::Auth(_)
        | Frame::GoAway { .. }
        | Frame::Epoch(_)
        | Frame::Status(_)
        | Frame::Connectors { .. }
        | Frame::Token { .. } => false,
    }
}

/// Control frames are small.
pub(super) fn judge_size(g: &Ghost<'_>, codec: Codec, told: &Told) -> Result<(), Violation> {
    let each = match codec {
        Codec::BinaryV2 => FRAME_MAX.0,
        Codec::JsonV1 => FRAME_MAX.1,
    };
    let (len, most) = (told.bytes.len(), HEAD_MAX + each * told.frames.len());
    if len <= most || !told.frames.iter().all(is_control) {
        return Ok(());
    }
    broken("B8", format!("{}: {} control frames take {len} bytes, at most {most}", g.node().name, told.frames.len()))
}

impl Wire {
    fn allowance(&mut self, node: u16) -> &mut Allowance {
        let ix = usize::from(node);
        if self.allowances.len() <= ix {
            self.allowances.resize_with(ix + 1, Allowance::default);
        }
        &mut self.allowances[ix]
    }

    /// A process starts.
    pub(crate) fn forget_causes(&mut self, node: u16) {
        *self.allowance(node) = Allowance { left: ROOM, ..Allowance::default() };
    }

    /// Frames reach a process.
    pub(super) fn earn(&mut self, node: u16, frames: &[Frame]) {
        let a = self.allowance(node);
        let mut n = 0;
        for f in frames {
            let Frame::Stream { cid, body, .. } = f else { continue };
            if let Body::Open(_) = body {
                a.ask(*cid);
                n += OPEN_CAUSES;
            } else {
                n += 1;
            }
        }
        if n > 0 {
            a.earn(n);
        }
    }

    /// A socket did something, or a frame came that nobody sent.
    pub(crate) fn cause(&mut self, node: u16, n: u64) {
        self.allowance(node).earn(n);
    }

    /// A process has so many streams now. What waits for a session to come
    /// back is there and has not been told to anybody.
    pub(crate) fn note_streams(&mut self, node: u16, streams: usize) {
        let a = self.allowance(node);
        a.peak = a.peak.max(streams as u64);
    }

    /// A process says something about a stream.
    pub(super) fn spend(&mut self, g: &Ghost<'_>, cid: Cid, body: &Body) -> Result<(), Violation> {
        let node = g.world.conns[g.conn as usize].nodes[g.end];
        match body {
            Body::Open(_) => {
                let streams = g.node().machine.as_ref().map_or(0, crate::node::Machine::streams) as u64;
                let a = self.allowance(node);
                a.peak = a.peak.max(streams);
                a.earn(OPEN_CAUSES);
            }
            Body::OpenAck { .. } | Body::Credit { .. } | Body::Rst { .. } => {
                let streams = g.node().machine.as_ref().map_or(0, crate::node::Machine::streams) as u64;
                let a = self.allowance(node);
                a.peak = a.peak.max(streams);
                let answers = matches!(body, Body::OpenAck { .. });
                if if answers { !a.answer(cid) } else { !a.spend() } {
                    let text = format!("{}: {} without a cause left for it", g.what(cid), body.kind());
                    return broken("B8", text);
                }
            }
            Body::Data { .. } | Body::Fin { .. } | Body::Resume(_) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_kept_up_to_the_room_there_is_and_no_longer() {
        let mut a = Allowance { peak: 2, ..Allowance::default() };
        a.earn(5);
        assert_eq!(a.left, 5);
        a.earn(1000);
        assert_eq!(a.left, ROOM + 2 * ROOM_PER_STREAM);
    }

    #[test]
    fn a_frame_that_comes_in_is_a_cause_and_an_open_for_several() {
        let mut w = Wire::default();
        w.forget_causes(1);
        w.allowance(1).left = 0;
        let rst = Frame::stream(
            Cid(1),
            nowconnect_core::id::Epoch(1),
            Body::Rst { code: nowconnect_core::error::RstCode::Abort, final_off: 0 },
        );
        w.earn(1, &[rst, Frame::Ping { token: 1 }]);
        assert_eq!(w.allowance(1).left, 1);
        w.cause(1, 2);
        assert_eq!(w.allowance(1).left, 3);
        assert_eq!(w.allowance(0).left, 0, "a process has its own");
        w.cause(1, 1000);
        assert_eq!(w.allowance(1).left, ROOM);
        w.note_streams(1, 100);
        w.note_streams(1, 0);
        w.cause(1, 1000);
        assert_eq!(w.allowance(1).left, ROOM + 100 * ROOM_PER_STREAM, "for the most there were");
    }

    #[test]
    fn what_has_no_cause_is_noticed() {
        use crate::plan::Level;
        use crate::profile::Profile;
        let plan = crate::run::plan(2, Profile::named("calm").expect("a profile"), Level::L0);
        let mut world = crate::world::World::new(plan, crate::tape::Tape::from_seed(2), crate::trace::Trace::default());
        world.run();
        assert_eq!(world.violation, None);
        let mut wire = std::mem::take(&mut world.check.wire);
        let g = Ghost { world: &world, conn: 0, end: 0 };
        let node = world.conns[0].nodes[0];
        let credit = Body::Credit { consumed: 1, limit: 2 };
        wire.allowance(node).left = 1;
        assert_eq!(wire.spend(&g, Cid(1), &credit), Ok(()));
        assert_eq!(wire.spend(&g, Cid(1), &credit).map_err(|v| v.id), Err("B8".to_owned()));
        let frame = |n| Frame::stream(Cid(n), nowconnect_core::id::Epoch(1), credit.clone());
        let dialect =
            nowconnect_core::wire::Dialect { codec: Codec::BinaryV2, plane: nowconnect_core::wire::Plane::Mesh };
        let bytes = nowconnect_core::wire::encode_message(dialect, 1, &[frame(1), frame(2)]);
        let (mut told, _) = Told::read(dialect, bytes, Vec::new());
        assert_eq!(judge_size(&g, Codec::BinaryV2, &told), Ok(()));
        told.bytes = bytes::Bytes::from(vec![0; 2 * FRAME_MAX.0 + HEAD_MAX + 1]);
        assert_eq!(judge_size(&g, Codec::BinaryV2, &told).map_err(|v| v.id), Err("B8".to_owned()));
    }
}

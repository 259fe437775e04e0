//! A1 of what changes nothing but counters: frames that came before, under
//! another fence, on a session that does not carry their stream, of a stream that
//! nobody knows. Honest peers say none of them but OPENs that come too late;
//! each one that a forger adds is counted once, as what it is. A link that was
//! established once was not established again. A hub in shadow decides once for
//! each of its clients, a hub in another mode for none.
//!
//! Must not know what is counted where.

use std::collections::BTreeSet;

use nowconnect_core::config::Mode;
use nowconnect_core::error::RstCode;
use nowconnect_core::id::Cid;
use nowconnect_core::observed::ShardCounters;
use nowconnect_core::wire::{Body, Frame};

use crate::faults::At;
use crate::marks::Mark;
use crate::net::key;
use crate::node::Machine;
use crate::world::World;

/// What was seen of a process.
#[derive(Debug, Default)]
pub(super) struct Odd {
    /// OPENs that reached it.
    opens: u64,
    /// OPENs that it refused for their fence, as its peers heard.
    not_owned: BTreeSet<Cid>,
    /// OPENs that this hub never took.
    not_taken: BTreeSet<Cid>,
    /// Frames that nobody sent and that reached it.
    forged: u64,
    /// RST(UNKNOWN) that reached it: whoever was given a forged frame says so on
    /// the session it came on.
    told: u64,
}

/// Which counter tells of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Duplicate,
    WrongEpoch,
    WrongSession,
}

impl Kind {
    const fn of(self, c: &ShardCounters) -> u64 {
        match self {
            Self::Duplicate => c.duplicates,
            Self::WrongEpoch => c.wrong_epoch,
            Self::WrongSession => c.wrong_session,
        }
    }

    /// What a frame is to a machine that has its stream.
    fn judge(how: Mark, carried: bool, body: &Body) -> Option<Self> {
        let moves = matches!(body, Body::Open(_) | Body::Data { .. } | Body::Fin { .. });
        match (how, carried) {
            (Mark::Repeated, _) | (Mark::Replayed, true) => moves.then_some(Self::Duplicate),
            (Mark::Forged, true) => Some(Self::WrongEpoch),
            (_, false) => Some(Self::WrongSession),
            _ => None,
        }
    }
}

/// A forged frame that a machine is being given.
#[derive(Debug)]
pub(crate) struct Given {
    cid: Cid,
    kind: Kind,
    times: u64,
    before: u64,
}

fn sum(m: &Machine) -> ShardCounters {
    let mut sum = ShardCounters::default();
    m.shards().iter().for_each(|s| sum.add(s.counters()));
    sum
}

impl World {
    /// A frame of a stream reaches a process from another one.
    pub(super) fn count_odd(&mut self, conn: u32, to: usize, frame: &Frame) {
        let Frame::Stream { cid, body, .. } = frame else { return };
        let c = &self.conns[conn as usize];
        let (ix, from) = (c.nodes[to], c.nodes[1 - to]);
        match body {
            Body::Open(_) => {
                self.ghost(ix).odd.opens += 1;
                self.check.asked_now.push(*cid);
            }
            Body::OpenAck { result: Err(RstCode::NotOwner) } => {
                let same = self.nodes[usize::from(from)].run == c.runs[1 - to];
                let is_hub = self.nodes[usize::from(from)].is_hub();
                let odd = &mut self.ghost(from).odd;
                // What a hub took and could not carry on was under the right fence.
                if same && (!is_hub || odd.not_taken.contains(cid)) {
                    odd.not_owned.insert(*cid);
                }
            }
            Body::Rst { code: RstCode::Unknown, .. } => self.ghost(ix).odd.told += 1,
            Body::OpenAck { .. }
            | Body::Data { .. }
            | Body::Credit { .. }
            | Body::Fin { .. }
            | Body::Rst { .. }
            | Body::Resume(_) => {}
        }
    }

    /// Frames that nobody sent ride along in a message.
    pub(crate) fn expect_odd(&mut self, conn: u32, to: usize, frame: &Frame, how: Mark, times: u64) {
        let ix = self.conns[conn as usize].nodes[to];
        self.ghost(ix).odd.forged += times;
        let Frame::Stream { cid, body, .. } = frame else { return };
        let node = &self.nodes[usize::from(ix)];
        let whole = match node.at {
            At::Hub(n) => self.plan.hubs.get(usize::from(n)).is_some_and(|h| h.shards == 0),
            At::Agent(_) => true,
        };
        let Some(m) = node.machine.as_ref().filter(|_| whole && self.check.wire.is_fresh()) else { return };
        let there = m.shards().iter().any(|s| s.find(*cid).is_some());
        let carried = self.check.wire.carries(conn, *cid);
        let taken = m.mux().carried_by(key(conn, to)).is_some();
        let Some(kind) = Kind::judge(how, carried, body).filter(|_| taken && (there || how == Mark::Repeated)) else {
            return;
        };
        let before = kind.of(&sum(m));
        self.check.given = Some(Given { cid: *cid, kind, times, before });
    }

    /// After a message: OPENs that a whole hub did not take are refused.
    pub(super) fn note_not_taken(&mut self, ix: u16) {
        let asked = std::mem::take(&mut self.check.asked_now);
        let whole = self.plan.hubs.get(usize::from(ix)).is_some_and(|h| h.shards == 0);
        for cid in asked.iter().filter(|_| whole) {
            let m = self.nodes[usize::from(ix)].machine.as_ref();
            if m.is_some_and(|m| m.shards().iter().all(|s| s.find(*cid).is_none())) {
                self.ghost(ix).odd.not_taken.insert(*cid);
            }
        }
        self.check.asked_now = asked;
    }

    /// After the message.
    pub(super) fn judge_given(&mut self, ix: u16, conn: u32, to: usize) {
        let Some(given) = self.check.given.take() else { return };
        let Some(m) = &self.nodes[usize::from(ix)].machine else { return };
        let there = m.shards().iter().any(|s| s.find(given.cid).is_some());
        if !there || m.mux().carried_by(key(conn, to)).is_none() {
            return;
        }
        let counted = given.kind.of(&sum(m)) - given.before;
        if counted < given.times {
            let text = format!(
                "node {ix} was given {} frames of {} that are {:?} and counts {counted}",
                given.times, given.cid, given.kind
            );
            self.fail("A1", text);
        }
    }

    /// A1: of one process.
    pub(super) fn check_odd(&self, ix: u16) -> Option<(&'static str, String)> {
        let node = &self.nodes[usize::from(ix)];
        let m = node.machine.as_ref()?;
        let g = self.check.nodes.get(&ix)?;
        let c = sum(m);
        let refused = g.odd.not_owned.len() as u64;
        if c.epoch_mismatch < refused {
            let text = format!("counts {} OPENs under another fence, refused {refused} for it", c.epoch_mismatch);
            return Some(("A1", text));
        }
        if let Machine::Hub(hub) = m {
            let counted: u64 = hub.control().links(hub.mux()).iter().map(|l| l.reconnects).sum();
            let seen = self.check.pace.reconnects(ix, node.run);
            if counted > seen {
                return Some((
                    "A1",
                    format!("counts {counted} links established again, it met its peers again {seen} times"),
                ));
            }
        }
        if !self.plan.rogues.is_empty() {
            return None;
        }
        if let (Machine::Hub(hub), At::Hub(n)) = (m, node.at) {
            let plan = self.plan.hubs.get(usize::from(n))?;
            let counted =
                c.shadow_local.iter().chain(&c.shadow_mesh).chain(c.shadow_refused.iter().flatten()).sum::<u64>();
            let shadows = hub.mode() == Mode::Shadow && !g.flipped && !plan.first_byte;
            let came = if shadows { node.opening.all } else { 0 };
            let judged = shadows || hub.mode() != Mode::Shadow && !g.flipped;
            if judged && counted != came {
                return Some(("A1", format!("counts {counted} clients as in shadow, {came} came")));
            }
        }
        let forged = g.odd.forged;
        if c.epoch_mismatch > g.odd.opens + forged {
            let text = format!("counts {} OPENs under another fence of {}", c.epoch_mismatch, g.odd.opens);
            return Some(("A1", text));
        }
        // Of more streams than it remembers it may not know some any more.
        let streams = g.odd.opens + m.shards().iter().map(nowconnect_core::shard::Shard::minted).sum::<u64>();
        let remembers = streams <= self.remembers(ix);
        let unknown = if remembers { c.unknown.saturating_sub(g.odd.told) } else { 0 };
        let wrong_session = c.wrong_session.saturating_sub(g.odd.told);
        // An answer names the fence of the question.
        let wrong_epoch = c.wrong_epoch.saturating_sub(g.odd.told);
        let odd = [
            ("came before", c.duplicates),
            ("are of a stream of another session", wrong_session),
            ("are of a stream under another epoch", wrong_epoch),
            ("are of a stream that never was", unknown),
        ];
        let found = odd.into_iter().find(|(_, n)| *n > forged);
        found.map(|(what, n)| ("A1", format!("counts {n} frames that {what}; {forged} that nobody sent reached it")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nowconnect_core::wire::Body;

    #[test]
    fn a_frame_is_counted_as_what_it_is() {
        let fin = Body::Fin { final_off: 3 };
        let credit = Body::Credit { consumed: 0, limit: 1 };
        assert_eq!(Kind::judge(Mark::Repeated, true, &fin), Some(Kind::Duplicate));
        assert_eq!(Kind::judge(Mark::Replayed, true, &fin), Some(Kind::Duplicate));
        assert_eq!(Kind::judge(Mark::Replayed, true, &credit), None, "it may have been surpassed or not");
        assert_eq!(Kind::judge(Mark::Replayed, false, &credit), Some(Kind::WrongSession));
        assert_eq!(Kind::judge(Mark::Forged, true, &credit), Some(Kind::WrongEpoch));
        let c = ShardCounters { duplicates: 1, wrong_epoch: 2, wrong_session: 3, ..ShardCounters::default() };
        assert_eq!([Kind::Duplicate, Kind::WrongEpoch, Kind::WrongSession].map(|k| k.of(&c)), [1, 2, 3]);
    }
}

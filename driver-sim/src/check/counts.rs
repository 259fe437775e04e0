//! What a machine counts, against what was seen of it (A1): opens against the
//! OPEN_ACKs that reached it and the clients it served, refusals and resets by
//! code against its records, sessions against the handshakes that reached it.
//!
//! Where nothing outside tells a number exactly, it lies between what surely
//! happened and what can have. Must not know what is counted where.

use std::collections::{BTreeMap, BTreeSet};

use nowconnect_core::error::RstCode;
use nowconnect_core::id::Cid;
use nowconnect_core::mux::SessionTotals;
use nowconnect_core::observed::{CarriedRecord, Cause, Observed, ShardCounters, StreamRecord};
use nowconnect_core::wire::{Body, Frame, Plane};

use super::wire::Told;
use crate::node::Machine;
use crate::world::World;

/// What was seen of a process since it started; by plane: tunnels, links.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Streams of its own clients that an OPEN_ACK said yes to.
    acknowledged: [BTreeSet<Cid>; 2],
    /// Those it was seen to open.
    opened: [u64; 2],
    /// Its clients that were refused, by listener and code.
    refused: BTreeMap<(u16, u8), u64>,
    /// Its streams that ended in order, and those that were reset, by code.
    finished: u64,
    reset: BTreeMap<u8, u64>,
    /// Handshakes that reached it: to begin a session, to resume one.
    begun: [u64; 2],
    resumed: [u64; 2],
    /// What it said of its sessions.
    said: [SessionTotals; 2],
}

const fn ix_of(plane: Plane) -> usize {
    match plane {
        Plane::Tunnel => 0,
        Plane::Mesh => 1,
    }
}

impl Seen {
    fn ended(&mut self, cause: Cause) {
        match cause {
            Cause::Finished => self.finished += 1,
            Cause::Reset(code) => *self.reset.entry(code.number()).or_default() += 1,
        }
    }

    /// What it counts of streams and has no cause for.
    fn of_streams(&self, c: &ShardCounters, is_hub: bool) -> Option<String> {
        let counted = [&c.opened_local, &c.opened_mesh].map(|of| of.iter().sum::<u64>());
        for ((counted, ways), (opened, acked)) in
            counted.into_iter().zip(["its tunnels", "the mesh"]).zip(self.opened.iter().zip(&self.acknowledged))
        {
            if counted < *opened || counted > acked.len() as u64 {
                return Some(format!(
                    "counts {counted} streams opened over {ways}; {opened} were seen open, {} acknowledged",
                    acked.len()
                ));
            }
        }
        for (listener, by_code) in c.open_failures.iter().enumerate() {
            for (code, n) in by_code.iter().enumerate() {
                let seen = self.refused.get(&(listener as u16, code as u8)).copied().unwrap_or(0);
                if seen != *n {
                    return Some(format!("counts {n} opens of listener {listener} refused with {code}, {seen} were"));
                }
            }
        }
        // Of streams between two sessions nobody tells.
        let fits = |counted: u64, told: u64| if is_hub { counted >= told } else { counted == told };
        if !fits(c.finished, self.finished) {
            return Some(format!("counts {} streams that finished, told of {}", c.finished, self.finished));
        }
        let told = |code: usize| self.reset.get(&(code as u8)).copied().unwrap_or(0);
        let odd = c.reset.iter().enumerate().find(|(code, n)| !fits(**n, told(*code)))?;
        Some(format!("counts {} streams reset with {}, told of {}", odd.1, odd.0, told(odd.0)))
    }

    /// What it counts of sessions and has no cause for.
    fn of_sessions(&self, totals: &[SessionTotals; 2]) -> Option<String> {
        for (ix, (counted, plane)) in totals.iter().zip(["tunnels", "links"]).enumerate() {
            let said = SessionTotals { protocol_errors: counted.protocol_errors, ..self.said[ix] };
            if *counted != said {
                return Some(format!("counts of its {plane} {counted:?}, said {said:?}"));
            }
            if counted.established > self.begun[ix] || counted.resumed > self.resumed[ix] {
                return Some(format!(
                    "counts {} {plane} established and {} resumed, of {} and {} handshakes that reached it",
                    counted.established, counted.resumed, self.begun[ix], self.resumed[ix]
                ));
            }
        }
        None
    }
}

impl World {
    /// A process says something of its sessions or its streams.
    pub(super) fn count_event(&mut self, ix: u16, event: &Observed) {
        let seen = &mut self.ghost(ix).seen;
        match event {
            Observed::SessionUp { plane, .. } => seen.said[ix_of(*plane)].established += 1,
            Observed::SessionSuspended { plane, .. } => seen.said[ix_of(*plane)].suspended += 1,
            Observed::SessionResumed { plane, .. } => seen.said[ix_of(*plane)].resumed += 1,
            Observed::SessionLost { plane, .. } => seen.said[ix_of(*plane)].lost += 1,
            Observed::Stream(r) => {
                let StreamRecord { listener, cause, open, .. } = **r;
                seen.ended(cause);
                if let (Cause::Reset(code), None) = (cause, open) {
                    *seen.refused.entry((listener.0, code.number())).or_default() += 1;
                }
            }
            Observed::Carried(r) => {
                let CarriedRecord { cause, .. } = **r;
                seen.ended(cause);
            }
            Observed::Opened { .. }
            | Observed::HandshakeFailed { .. }
            | Observed::ProtocolViolation { .. }
            | Observed::Rtt { .. }
            | Observed::Attached { .. }
            | Observed::TokenExpired { .. }
            | Observed::TokenRenewed { .. }
            | Observed::TokenRefused { .. }
            | Observed::TokenAnswered { .. }
            | Observed::Detached { .. }
            | Observed::RegistryHealth { .. }
            | Observed::LeaseHeldByOther
            | Observed::DuplicateAgent { .. }
            | Observed::DuplicateAgentRefused { .. }
            | Observed::StartedOver { .. }
            | Observed::PeerIsSelf { .. }
            | Observed::FewerHubs { .. }
            | Observed::Ejected { .. }
            | Observed::Reinstated { .. }
            | Observed::TargetDown { .. }
            | Observed::TargetUp { .. }
            | Observed::Drain(_)
            | Observed::GaveUp { .. } => {}
        }
    }

    /// A client was refused at the door: it was never a stream.
    pub(crate) fn count_refused(&mut self, ix: u16, listener: u16, code: RstCode) {
        *self.ghost(ix).seen.refused.entry((listener, code.number())).or_default() += 1;
    }

    /// A client of a hub was seen open.
    pub(super) fn count_open(&mut self, ix: u16, local: bool) {
        self.ghost(ix).seen.opened[usize::from(!local)] += 1;
    }

    /// A message reaches a process.
    pub(super) fn count_message(&mut self, conn: u32, to: usize, told: &Told) {
        self.count_frames(conn, to, &told.frames);
    }

    /// What it says, also where it comes past the network.
    pub(crate) fn count_frames(&mut self, conn: u32, to: usize, frames: &[Frame]) {
        let c = &self.conns[conn as usize];
        let (ix, from, plane) = (c.nodes[to], c.nodes[1 - to], ix_of(c.dialect.plane));
        let mine = self.nodes[usize::from(ix)].hub().map(|h| h.run().incarnation);
        let (answers, rogue) = (plane == 0 && to == 1, c.rogue.is_some());
        for f in frames {
            self.count_odd(conn, to, f);
            match f {
                Frame::Stream { cid, body: Body::OpenAck { result: Err(_) } | Body::Rst { .. }, .. } if answers => {
                    self.check.opening.refused(*cid);
                }
                Frame::Stream { cid, body: Body::OpenAck { result: Ok(()) }, .. }
                    if mine == Some(cid.incarnation()) =>
                {
                    if self.ghost(ix).seen.acknowledged[plane].insert(*cid) {
                        self.nodes[usize::from(ix)].opening.answered(*cid);
                    }
                }
                // An answer to a wish to resume may be a session of its own.
                Frame::Hello(h) if to == 1 => {
                    if h.resume.is_none() {
                        self.check.heard.remove(&(ix, from));
                    }
                    let seen = &mut self.ghost(ix).seen;
                    seen.begun[plane] += 1;
                    seen.resumed[plane] += u64::from(h.resume.is_some());
                }
                Frame::Welcome(w) if to == 0 => {
                    let seen = &mut self.ghost(ix).seen;
                    let kind = if w.resumed.is_some() { &mut seen.resumed } else { &mut seen.begun };
                    kind[plane] += 1;
                }
                Frame::Connectors { connectors, .. } if to == 1 => {
                    let names = connectors.iter().map(|ad| ad.name.clone()).collect();
                    self.check.heard.insert((ix, from), (self.now, names));
                }
                Frame::Epoch(e) if rogue => self.note_lie(ix, &e.agent_id),
                Frame::Hello(_)
                | Frame::Welcome(_)
                | Frame::Auth(_)
                | Frame::Ack { .. }
                | Frame::Ping { .. }
                | Frame::Pong { .. }
                | Frame::GoAway { .. }
                | Frame::Epoch(_)
                | Frame::Status(_)
                | Frame::Connectors { .. }
                | Frame::Token { .. }
                | Frame::Stream { .. } => {}
            }
        }
    }

    /// A1: of one process.
    pub(super) fn check_counts(&self, ix: u16) -> Option<(&'static str, String)> {
        let m = self.nodes[usize::from(ix)].machine.as_ref()?;
        let seen = &self.check.nodes.get(&ix)?.seen;
        let mut sum = ShardCounters::default();
        m.shards().iter().for_each(|s| sum.add(s.counters()));
        let found = seen.of_streams(&sum, matches!(m, Machine::Hub(_)));
        found.or_else(|| seen.of_sessions(&m.mux().totals)).map(|text| ("A1", text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_lies_between_what_happened_and_what_can_have() {
        let mut seen = Seen::default();
        let mut c = ShardCounters { opened_local: vec![0, 2], opened_mesh: vec![0, 0], ..ShardCounters::default() };
        assert!(seen.of_streams(&c, true).is_some_and(|t| t.contains("2 streams opened over its tunnels")));
        seen.acknowledged[0].extend([Cid(1), Cid(2)]);
        assert_eq!(seen.of_streams(&c, true), None);
        seen.opened = [2, 1];
        assert!(seen.of_streams(&c, true).is_some_and(|t| t.contains("0 streams opened over the mesh; 1 were")));
        seen.opened = [1, 0];
        c.open_failures = vec![[0; 32]];
        c.open_failures[0][usize::from(RstCode::Busy.number())] = 1;
        assert!(seen.of_streams(&c, true).is_some_and(|t| t.contains("refused with 4, 0 were")));
        seen.refused.insert((0, RstCode::Busy.number()), 1);
        assert_eq!(seen.of_streams(&c, true), None);
        c.finished = 1;
        assert_eq!(seen.of_streams(&c, true), None, "a hub carries for others too");
        assert!(seen.of_streams(&c, false).is_some());
        seen.ended(Cause::Finished);
        seen.ended(Cause::Reset(RstCode::Lost));
        assert!(seen.of_streams(&c, true).is_some_and(|t| t.contains("reset with 14, told of 1")));
    }

    #[test]
    fn sessions_need_a_handshake_each_and_are_told() {
        let mut seen = Seen::default();
        let mut totals = [SessionTotals::default(); 2];
        totals[1].established = 1;
        assert!(seen.of_sessions(&totals).is_some_and(|t| t.starts_with("counts of its links")));
        seen.said[1].established = 1;
        assert!(seen.of_sessions(&totals).is_some_and(|t| t.contains("of 0 and 0 handshakes")));
        seen.begun[1] = 1;
        assert_eq!(seen.of_sessions(&totals), None);
        totals[1].resumed = 1;
        seen.said[1].resumed = 1;
        assert!(seen.of_sessions(&totals).is_some());
    }
}

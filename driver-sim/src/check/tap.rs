//! Where the wire is read: at the seam between a machine and its connections.
//! Feeds the ledger, makes vulnerable moments of what it saw, and tells the
//! ledger what the sockets at the two ends of a stream gave and took (B1, S2,
//! L7). Must not judge a frame.

use bytes::Bytes;
use nowconnect_core::id::{Cid, SessionId};

use super::wire::{Ghost, STARVED_BYTES, Told};
use crate::world::World;

impl World {
    /// Part of a message arrived: its peer lives (L9). What was under way when the
    /// process gave the connection up comes when a block ends and helps no session
    /// of it (L1 seed 2553 of `network`).
    pub(crate) fn ghost_heard(&mut self, conn: u32, end: usize) {
        if self.conns[conn as usize].closing_at(end).is_none() {
            self.check.wire.line(conn).heard[end] = self.now;
        }
    }

    /// What the socket at the end of a direction took: bytes, and one more for
    /// its end.
    pub(super) fn took(&self, cid: Cid, client: bool) -> Option<u64> {
        let actor = self.end_of(cid, client)?;
        let sock = &self.socks[self.actors[actor as usize].sock as usize];
        Some(sock.written + u64::from(sock.is_shut()))
    }

    /// What the writer of a direction wrote, and whether it ended.
    pub(super) fn wrote(&self, cid: Cid, client: bool) -> Option<(u64, bool)> {
        let actor = &self.actors[self.end_of(cid, client)? as usize];
        Some((actor.wrote, actor.fin_sent))
    }

    fn end_of(&self, cid: Cid, client: bool) -> Option<u32> {
        if client {
            self.cids.get(&cid).and_then(|c| self.pairs.get(c)).and_then(|p| p[0])
        } else {
            self.check.connected.get(&cid).copied()
        }
    }

    /// A message leaves a machine: judged, and a moment at which much can go
    /// wrong.
    pub(crate) fn tap(&mut self, conn: u32, end: usize, message: Bytes) -> Told {
        let dialect = self.conns[conn as usize].dialect;
        let mut wire = std::mem::take(&mut self.check.wire);
        let (told, result) = wire.sent(&Ghost { world: self, conn, end }, dialect, message);
        if let Err(v) = result {
            self.fail(&v.id, v.text);
        } else if let Some((id, cid, waited)) = wire.long_turn(conn, end) {
            let waiting = self.who_waits(conn, end, id, cid, waited);
            if let (Some(w), Some(_)) = (waiting, waited) {
                self.fail("L7", format!("conn {conn}: {w} waits while {cid} sends {STARVED_BYTES} bytes in a row"));
            }
            wire.waits(conn, end, waiting);
        }
        for m in wire.marks.drain(..) {
            self.marks.hit(m);
        }
        let mut points = std::mem::take(&mut wire.points);
        let duplicate = std::mem::take(&mut wire.duplicate);
        self.check.wire = wire;
        if duplicate {
            self.said_duplicate(conn, end);
        }
        self.note_welcome(conn, end, &told);
        self.note_answers(conn, end, &told);
        let nodes = self.conns[conn as usize].nodes;
        for p in points.drain(..) {
            self.vulnerable(p, nodes[end], Some(nodes[1 - end]));
        }
        self.check.wire.points = points;
        told
    }

    /// A stream of a session that has DATA to send and is not `cid`: the one
    /// that waited before, or any.
    fn who_waits(&self, conn: u32, end: usize, id: SessionId, cid: Cid, waited: Option<Cid>) -> Option<Cid> {
        let node = &self.nodes[usize::from(self.conns[conn as usize].nodes[end])];
        let mux = node.machine.as_ref()?.mux();
        let session = &mux.get(mux.find(id)?)?.session;
        let has = |c: Cid| c != cid && session.unsent_bytes(c) > 0;
        if let Some(w) = waited {
            return has(w).then_some(w);
        }
        self.cids.keys().copied().find(|c| has(*c))
    }

    /// A message reaches a machine.
    pub(crate) fn tap_in(&mut self, conn: u32, to: usize, told: &Told) {
        self.judge_opens(conn, told);
        self.note_touched(told);
        self.count_message(conn, to, told);
        self.note_asked(conn, to, told);
        self.ghost_heard(conn, to);
        let node = self.conns[conn as usize].nodes[to];
        let wire = &mut self.check.wire;
        wire.arrived(conn, to, node, told);
        let (welcome, dismissed) = (std::mem::take(&mut wire.welcome), std::mem::take(&mut wire.dismissed));
        if to == 0 && welcome {
            self.pace_welcomed(conn);
        }
        if to == 0 && dismissed {
            self.pace_dismissed(conn);
        }
    }
}

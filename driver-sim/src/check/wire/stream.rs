//! One stream on one session: what each frame of it may say, given the frames
//! before it and what the sockets at its two ends gave and took.
//!
//! Keeps: one OPEN a session (S6) under the session's own fence (O1, O4), an
//! OPEN_ACK that tells the truth (S7), contiguous offsets that hold the stream's
//! own bytes (S9, I1), credit kept and never taken back (B4), reports of what a
//! socket really took (B1), an end where the writer ended (S2), silence after
//! the last word (S4). It must not look into a machine.

use nowconnect_core::error::RstCode;
use nowconnect_core::id::{Cid, Epoch, Fence};
use nowconnect_core::wire::{Body, Plane};

use super::{Ghost, Wire, broken};
use crate::faults::Point;
use crate::marks::Mark;
use crate::payload::{self, Half};
use crate::world::Violation;

/// One stream on one session; index 0 is the session's dialling end.
#[derive(Debug, Default)]
pub(super) struct Carried {
    pub(super) opener: usize,
    pub(super) epoch: Epoch,
    /// Opened under a fence that its hub had just given up.
    pub(super) stale: bool,
    /// What was answered.
    pub(super) ack: Option<Result<(), RstCode>>,
    /// Next offset, by sender.
    pub(super) next: [u64; 2],
    /// Bytes that arrived, by sender.
    pub(super) arrived: [u64; 2],
    pub(super) fin: [Option<u64>; 2],
    pub(super) fin_arrived: [bool; 2],
    pub(super) over: [bool; 2],
    /// Limit this end granted, and limit it knows.
    pub(super) granted: [u64; 2],
    pub(super) allowed: [u64; 2],
    pub(super) consumed: [u64; 2],
    /// The other session of the hub that carries it on.
    beyond: Option<u32>,
}

impl Carried {
    /// The end of the hub that carries it on, if one does.
    const fn relay(&self, plane: Plane) -> Option<usize> {
        match (self.beyond, plane) {
            (None, _) => None,
            (Some(_), Plane::Tunnel) => Some(1),
            (Some(_), Plane::Mesh) => Some(1 - self.opener),
        }
    }
}

impl Wire {
    /// Who speaks on the sessions that a stream was opened on.
    pub(crate) fn hops(&self, cid: Cid) -> Vec<[u16; 2]> {
        self.sessions.iter().filter(|l| l.streams.contains_key(&cid)).map(|l| l.nodes).collect()
    }

    /// A stream that came over the mesh goes on over a tunnel of a hub.
    fn join(&mut self, cid: Cid, tunnel: u32, hub: u16) {
        let Some(mesh) = self.crossed.get(&cid).copied() else { return };
        let Some(ledger) = self.sessions.get_mut(mesh as usize) else { return };
        let nodes = ledger.nodes;
        let Some(before) = ledger.streams.get_mut(&cid).filter(|s| nodes[1 - s.opener] == hub) else { return };
        before.beyond = Some(tunnel);
        if let Some(s) = self.sessions.get_mut(tunnel as usize).and_then(|l| l.streams.get_mut(&cid)) {
            s.beyond = Some(mesh);
        }
    }

    /// B1: how far whoever says CREDIT may let its peer go: its own largest
    /// window beyond what its socket took; and a hub that carries the stream on
    /// as far as it may go itself, or its first window.
    fn most_granted(&self, g: &Ghost<'_>, session: u32, cid: Cid, body: &Body) -> u64 {
        let (Body::Credit { consumed, .. }, (first, largest)) = (body, g.windows()) else { return 0 };
        let own = consumed.saturating_add(largest);
        let Some(ledger) = self.sessions.get(session as usize) else { return own };
        let Some(s) = ledger.streams.get(&cid).filter(|s| s.relay(ledger.plane) == Some(g.end)) else { return own };
        let Some(far) = s.beyond.and_then(|far| self.sessions.get(far as usize)) else { return own };
        let Some(there) = far.streams.get(&cid) else { return own };
        let may = there.relay(far.plane).map_or(0, |end| there.allowed[end]);
        match ledger.plane {
            Plane::Mesh => may.max(first),
            // What the origin granted is passed on with the OPEN.
            Plane::Tunnel => may,
        }
    }

    /// The sessions it was opened on, by number.
    pub(crate) fn carriers(&self, cid: Cid) -> Vec<u32> {
        (0..).zip(&self.sessions).filter(|(_, l)| l.streams.contains_key(&cid)).map(|(n, _)| n).collect()
    }

    pub(super) fn stream(
        &mut self,
        g: &Ghost<'_>,
        session: u32,
        cid: Cid,
        epoch: Epoch,
        body: &Body,
    ) -> Result<(), Violation> {
        let end = g.end;
        let strangers = self.is_strangers(cid);
        // Its run counts anew: an earlier target of this cid may be the one that was.
        let again = strangers && self.hops(cid).len() > 1;
        let most = self.most_granted(g, session, cid, body);
        let Some(ledger) = self.sessions.get_mut(session as usize) else { return Ok(()) };
        let (fence, mut stale) = (ledger.fence, false);
        if let Body::Open(open) = body {
            self.points.push(Point::Open);
            if self.forbidden.contains(&cid) {
                return broken("O1", format!("{}: a hostile hub's OPEN that had to be refused", g.what(cid)));
            }
            if ledger.plane == Plane::Tunnel {
                let named = Fence { epoch, nonce: open.nonce };
                if end == 0 {
                    return broken("I2", format!("{}: an agent opens", g.what(cid)));
                }
                stale = ledger.former == Some(named) && g.is_split();
                if fence != Some(named) && !stale {
                    return broken("O4", format!("{}: OPEN under {named:?}, the tunnel has {fence:?}", g.what(cid)));
                }
                let first = *self.openers.entry((open.agent_id.clone(), named)).or_insert(session);
                if first != session {
                    return broken("O1", format!("{}: two sessions open under {named:?}", g.what(cid)));
                }
            }
            let carried = Carried {
                opener: end,
                epoch,
                stale,
                granted: if end == 0 { [open.limit, 0] } else { [0, open.limit] },
                allowed: if end == 0 { [ledger.dirs[1].window, 0] } else { [0, ledger.dirs[0].window] },
                ..Carried::default()
            };
            let (plane, nodes) = (ledger.plane, ledger.nodes);
            if ledger.streams.insert(cid, carried).is_some() {
                return broken("S6", format!("{}: OPEN a second time on one session", g.what(cid)));
            }
            match plane {
                Plane::Mesh => drop(self.crossed.insert(cid, session)),
                Plane::Tunnel => self.join(cid, session, nodes[1]),
            }
            if open.connector.as_str() == crate::rogue::CONNECTOR {
                self.hostile.insert(cid);
                return Ok(());
            }
            if strangers {
                self.marks.push(Mark::HostileOpenCarried);
                return Ok(());
            }
            self.recent.push_back((cid, epoch));
            if self.recent.len() > 32 {
                self.recent.pop_front();
            }
            return Ok(());
        }
        let Some(s) = ledger.streams.get_mut(&cid) else {
            // Only an answer to what nobody knows.
            let answer = matches!(body, Body::Rst { .. } | Body::OpenAck { result: Err(_) });
            return if answer {
                Ok(())
            } else {
                broken("I2", format!("{}: {} without an OPEN on this session", g.what(cid), body.kind()))
            };
        };
        if self.hostile.contains(&cid) {
            return Ok(());
        }
        if matches!(body, Body::Rst { code: RstCode::Unknown, .. }) {
            // An answer in the words of the question, whoever asked it.
            return Ok(());
        }
        if epoch != s.epoch {
            return broken("O4", format!("{}: {} under {epoch}, opened under {}", g.what(cid), body.kind(), s.epoch));
        }
        if s.over[end] && !matches!(body, Body::Rst { .. }) {
            return broken("S4", format!("{}: {} after its RST or refusal", g.what(cid), body.kind()));
        }
        if matches!(body, Body::Data { .. } | Body::Fin { .. } | Body::Credit { .. })
            && end != s.opener
            && s.ack != Some(Ok(()))
            && !matches!(body, Body::Credit { .. })
        {
            return broken("S7", format!("{}: {} before its OPEN_ACK", g.what(cid), body.kind()));
        }
        match body {
            Body::OpenAck { result } => {
                self.points.push(Point::OpenAck);
                if end == s.opener || s.ack.is_some() {
                    return broken("S7", format!("{}: OPEN_ACK a second time or from the opener", g.what(cid)));
                }
                let connected = g.world.check.connected.contains_key(&cid);
                if result.is_ok() && !connected {
                    return broken("S7", format!("{}: OPEN_ACK ok, its target was never connected", g.what(cid)));
                }
                if result.is_err() && connected && !again && !g.node().is_hub() {
                    return broken("S7", format!("{}: refused, but its target was connected", g.what(cid)));
                }
                if s.stale && result.is_ok() {
                    return broken("O4", format!("{}: accepted under {epoch}, which was given up", g.what(cid)));
                }
                s.ack = Some(*result);
                s.over[end] |= result.is_err();
            }
            Body::Data { off, bytes } => {
                let to = *off + bytes.len() as u64;
                if *off != s.next[end] {
                    return broken("S9", format!("{}: DATA at {off}, {} was next", g.what(cid), s.next[end]));
                }
                if s.fin[end].is_some() {
                    return broken("S4", format!("{}: DATA after FIN", g.what(cid)));
                }
                if to > s.allowed[end] {
                    let text = format!("{}: DATA up to {to}, the limit is {}", g.what(cid), s.allowed[end]);
                    return broken("B4", text);
                }
                s.next[end] = to;
                let up = end == s.opener;
                if let Some(client) = g.world.cids.get(&cid)
                    && let Err(e) = payload::check(Half { client: *client, up }, *off, bytes)
                {
                    return broken("I1", format!("{}: {e}", g.what(cid)));
                }
                let dir = &mut ledger.dirs[end];
                dir.turn = Some(match dir.turn {
                    Some((who, had, waits)) if who == cid => (cid, had + bytes.len() as u64, waits),
                    _ => (cid, bytes.len() as u64, None),
                });
            }
            Body::Credit { consumed, limit } => {
                if *limit < s.granted[end] || *consumed < s.consumed[end] {
                    let text = format!(
                        "{}: CREDIT {consumed}/{limit} after {}/{}",
                        g.what(cid),
                        s.consumed[end],
                        s.granted[end]
                    );
                    return broken("B4", text);
                }
                let came = s.arrived[1 - end] + u64::from(s.fin_arrived[1 - end]);
                if *consumed > came {
                    let text = format!("{}: CREDIT says {consumed} consumed, {came} arrived", g.what(cid));
                    return broken("B1", text);
                }
                if let Some(took) = g.world.took(cid, end == s.opener)
                    && *consumed > took
                {
                    let text = format!("{}: CREDIT says {consumed} consumed, the socket took {took}", g.what(cid));
                    return broken("B1", text);
                }
                // A hostile hub may grant what it likes to those that write to it.
                if *limit > most && !(strangers && end == s.opener) {
                    let text = format!("{}: CREDIT {consumed}/{limit}, it may grant up to {most}", g.what(cid));
                    return broken("B1", text);
                }
                (s.granted[end], s.consumed[end]) = (*limit, *consumed);
            }
            Body::Fin { final_off } => {
                self.points.push(Point::Fin);
                if s.fin[end].is_some() {
                    return broken("S4", format!("{}: FIN a second time", g.what(cid)));
                }
                if *final_off != s.next[end] {
                    return broken("S2", format!("{}: FIN at {final_off}, {} was sent", g.what(cid), s.next[end]));
                }
                if let Some((wrote, ended)) = g.world.wrote(cid, end == s.opener)
                    && (!ended || wrote != *final_off)
                {
                    let text = format!(
                        "{}: FIN at {final_off}, its writer wrote {wrote} and {}",
                        g.what(cid),
                        if ended { "ended" } else { "did not end" }
                    );
                    return broken("S2", text);
                }
                if s.fin[1 - end].is_none() {
                    self.marks.push(if end == s.opener { Mark::FinClientFirst } else { Mark::FinTargetFirst });
                }
                if s.arrived[end] < s.next[end] {
                    self.marks.push(Mark::FinWithDataBuffered);
                }
                s.fin[end] = Some(*final_off);
            }
            Body::Rst { .. } => {
                self.points.push(Point::Rst);
                if s.fin[1 - end].is_some() && !s.fin_arrived[1 - end] {
                    self.marks.push(Mark::RstCrossedFin);
                }
                s.over[end] = true;
            }
            Body::Open(_) | Body::Resume(_) => {}
        }
        Ok(())
    }
}

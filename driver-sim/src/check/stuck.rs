//! Why nothing moves: what a failure says of whoever still waits, and of a dial
//! that led nowhere (L1, L2, L4, L12). Reads the machines and judges nothing.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use nowconnect_core::id::SessionKey;
use nowconnect_core::shard::Shard;
use nowconnect_core::stream::{End, Half, OriginWait, Part, Stream};

use crate::actor::{Actor, Fate, side};
use crate::node::Machine;
use crate::plan::MS;
use crate::world::World;

/// So many of those who wait are told.
const TOLD_MAX: usize = 6;

impl World {
    /// L1, L12: somebody waits for ever.
    pub(super) fn say_who_is_stuck(&mut self) {
        let mut text = String::new();
        for a in self.actors.iter().filter(|a| a.fate == Fate::Alive).take(TOLD_MAX) {
            let s = &self.socks[a.sock as usize];
            let _ = writeln!(
                text,
                "{} {} (node {}): wrote {} (node took {}), read {}, {}{}{}",
                side(a.is_client),
                a.client,
                s.node,
                a.wrote,
                s.taken,
                a.read,
                if a.fin_sent { "ended" } else { "not ended" },
                if a.eof_seen { ", saw the end" } else { "" },
                if s.paused { ", its socket is not read" } else { "" },
            );
            if a.is_client {
                self.way_of(a, &mut text);
            }
        }
        for ix in 0..self.nodes.len() as u16 {
            let _ = writeln!(text, "{}", self.state_of(ix));
        }
        self.fail("L1", format!("streams are stuck after the healing:\n{text}"));
    }

    /// What every node on its way knows of a client's stream.
    fn way_of(&self, client: &Actor, text: &mut String) {
        let sock = &self.socks[client.sock as usize];
        let m = self.nodes[usize::from(sock.node)].machine.as_ref();
        let Some(stream) = m.and_then(|m| m.stream(sock.stream?)) else {
            let _ = writeln!(text, "  {} knows no stream of it", self.nodes[usize::from(sock.node)].name);
            return;
        };
        let cid = stream.cid;
        self.stream_at(sock.node, stream, text);
        let mut others: BTreeSet<u16> = self.check.wire.hops(cid).into_iter().flatten().collect();
        others.remove(&sock.node);
        for ix in others {
            let m = self.nodes[usize::from(ix)].machine.as_ref();
            match m.and_then(|m| m.shards().iter().find_map(|s| s.find(cid))) {
                Some(stream) => self.stream_at(ix, stream, text),
                None => drop(writeln!(text, "  {} knows no stream {cid}", self.nodes[usize::from(ix)].name)),
            }
        }
    }

    fn stream_at(&self, ix: u16, s: &Stream, text: &mut String) {
        let waits = match &s.part {
            Part::Origin(o) => match o.waits {
                OriginWait::FirstByte => "waits for a first byte",
                OriginWait::Route => "waits for a route",
                OriginWait::Answer => "waits for an answer to its OPEN",
                OriginWait::Nothing => "open",
            },
            Part::Owner | Part::Agent if s.open => "open",
            Part::Owner | Part::Agent => "not open",
        };
        let name = &self.nodes[usize::from(ix)].name;
        let due = s.deadline.map_or_else(String::new, |at| format!(", due at {at:?}"));
        let _ = writeln!(text, "  {name}: stream {}, {waits}{due}", s.cid);
        for (half, way) in s.halves.iter().zip(["up", "down"]) {
            let _ = writeln!(text, "    {way}: {}", of_half(half));
        }
        for (end, which) in s.ends.iter().zip(["client", "target"]) {
            match end {
                End::Pending => drop(writeln!(text, "    towards the {which}: nothing yet")),
                End::Socket(_) => {}
                End::Session(key) => drop(writeln!(text, "    towards the {which}: {}", self.session_at(ix, *key))),
            }
        }
    }

    /// A session: whether it is carried, and what waits in it.
    fn session_at(&self, ix: u16, key: SessionKey) -> String {
        let m = self.nodes[usize::from(ix)].machine.as_ref();
        let Some(e) = m.and_then(|m| m.mux().get(key)) else { return "a session that is gone".to_owned() };
        let carried = match (e.conn, e.suspended_at) {
            (Some(conn), _) => format!("carried by conn {}", crate::net::place(conn).0),
            (None, Some(since)) => format!("suspended since {since:?}"),
            (None, None) => "never carried".to_owned(),
        };
        let c = e.session.counters();
        format!(
            "session with {}, {carried}; {} frames and {} B in flight, {} B held, {}; blocked {} times by frames, {} by \
             bytes, {} messages replayed",
            e.peer.name(),
            e.session.queue_depth(),
            e.session.inflight_bytes(),
            e.session.held_bytes(),
            if e.session.is_settled() { "nothing waits" } else { "something waits" },
            c.blocked_queue_depth,
            c.blocked_inflight_bytes,
            c.messages_replayed,
        )
    }

    /// A process: its budget and what it waits for itself.
    fn state_of(&self, ix: u16) -> String {
        let node = &self.nodes[usize::from(ix)];
        let Some(m) = &node.machine else { return format!("{} is down", node.name) };
        let streams: usize = m.shards().iter().map(Shard::streams).sum();
        let (budget, now) = (m.mux().budget(), node.clock(self.now));
        let due = m
            .poll_timeout()
            .map_or_else(|| "nothing".to_owned(), |d| format!("`{}` in {} ms", d.why, d.at.since(now).as_millis()));
        format!(
            "{}: {streams} streams, holds {} of {} B ({:?}), due next: {due}{}",
            node.name,
            budget.held(),
            budget.cap(),
            budget.pressure(),
            if node.paused { ", paused" } else { "" }
        )
    }

    /// The last dial of a node to another one and what came of it, either way.
    pub(super) fn last_dials(&self, a: u16, b: u16) -> String {
        let name = |n: u16| self.nodes[usize::from(n)].name.as_str();
        let mut text = String::new();
        for [from, to] in [[a, b], [b, a]] {
            let _ = match self.last_dial(from, to) {
                Some(told) => write!(text, "\n  {} dialled {} last {told}", name(from), name(to)),
                None if self.wants_to_dial(from, to) => write!(text, "\n  {} never dialled {}", name(from), name(to)),
                None => Ok(()),
            };
        }
        for n in [a, b] {
            let _ = write!(text, "\n  {}", self.state_of(n));
            if let Some((at, cause, detail)) = self.check.refusals.get(&n) {
                let _ = write!(text, "; its last handshake that failed, at {} ms: {cause:?}, {detail}", at / MS);
            }
        }
        text
    }

    /// Whether a configuration names another node for it to dial.
    fn wants_to_dial(&self, from: u16, to: u16) -> bool {
        let url = &self.nodes[usize::from(to)].name;
        match self.nodes[usize::from(from)].machine.as_ref() {
            Some(Machine::Hub(h)) => h.control().config().peers.iter().any(|p| p.url == *url),
            Some(Machine::Agent(a)) => a.tunnels().config().hubs.contains(url),
            None => false,
        }
    }

    fn last_dial(&self, from: u16, to: u16) -> Option<String> {
        let conn = self.conns.iter().rposition(|c| c.nodes == [from, to])?;
        let c = &self.conns[conn];
        let at = self.check.pace.dialled(from, conn as u32);
        let came = match (c.connected, c.given_up, self.check.wire.session_of(conn as u32)) {
            (false, true, _) => "given up before it was connected",
            (false, false, _) => "not connected yet",
            (true, _, None) if c.up == [true; 2] => "connected, no WELCOME yet",
            (true, _, None) => "connected and closed without a WELCOME",
            (true, _, Some(_)) if c.up == [true; 2] => "welcome and there",
            (true, _, Some(_)) => "welcome and closed",
        };
        Some(match at {
            Some(at) => format!("at {} ms (conn {conn}): {came}", at / MS),
            None => format!("in an earlier run (conn {conn}): {came}"),
        })
    }
}

/// A half in words: what came, what may come, what went on and may go on.
fn of_half(h: &Half) -> String {
    format!(
        "{:?}, got {} of {} granted, passed on {} of a limit of {}, far end took {}, {} B wait here and {} in the \
         session's queue{}",
        h.state,
        h.next,
        h.granted,
        h.sent,
        h.limit,
        h.consumed,
        h.waiting_bytes(),
        h.queued,
        if h.paused { ", its source is not read" } else { "" }
    )
}

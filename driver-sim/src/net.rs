//! Connections between nodes, with the semantics of TCP that matter: a write
//! that was accepted is not delivered, items of one direction keep their order
//! and those of different connections do not (N9), an orderly end queues behind
//! the data, a reset does not, and a peer that is gone without a word is
//! noticed by timers or by the reset that answers a write.
//!
//! At L0 a whole WebSocket message travels (`whole.rs`); at L1 pieces of bytes
//! do, between sockets with buffers and WebSocket layers (`bytes.rs`). Dialling
//! and the wire (`pipe.rs`, `breaks.rs`) are the same for both. Must not know
//! what a message says.

mod breaks;
mod bytes;
mod pipe;
mod whole;
mod ws;

use std::collections::{BTreeMap, VecDeque};

use nowconnect_core::error::CloseCode;
use nowconnect_core::id::{ConnKey, Name, TargetIx};
use nowconnect_core::mux::Input;
use nowconnect_core::principal::{AgentGrant, HubGrant, Principal};
use nowconnect_core::time::Instant;
use nowconnect_core::wire::{Codec, Dialect, Plane};

use self::bytes::End;
use self::pipe::{Item, Pipe};
use crate::check::wire::Told;
use crate::event::Event;
use crate::faults::{At, Landing};
use crate::marks::Mark;
use crate::node::{Machine, connector};
use crate::plan::{Level, MS, Plan};
use crate::tape::{Lane, Tape};
use crate::world::World;

/// The session sockets' `TCP_USER_TIMEOUT` of the production driver.
const USER_TIMEOUT_NS: u64 = 10_000 * MS;
/// More messages than a handshake has in one direction.
const HANDSHAKE_MESSAGES: u8 = 3;
/// Between two words to a machine that a message is still arriving, at least.
const HEARD_EVERY_NS: u64 = 1000 * MS;
/// Bytes a node takes from its machine for a connection at a time.
const PULL_BYTES: u64 = 256 << 10;

/// A connection between two nodes; end 0 dialled.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) nodes: [u16; 2],
    pub(crate) runs: [u32; 2],
    /// The machine at this end knows the connection.
    pub(crate) up: [bool; 2],
    /// The machine at this end has something to write.
    dirty: [bool; 2],
    /// The machine at this end wants it closed.
    closing: [Option<CloseCode>; 2],
    pub(crate) pipes: [Pipe; 2],
    pub(crate) dialect: Dialect,
    pub(crate) target: TargetIx,
    /// The dialler gave up before it heard of it.
    pub(crate) given_up: bool,
    /// It is a hostile peer's, by number.
    pub(crate) rogue: Option<u32>,
    /// The certificate of an end is not its own, or of a CA the other one does
    /// not know.
    pub(crate) unproven: [bool; 2],
    /// The CA of the certificate that an end showed in TLS.
    pub(crate) shown: [Option<u8>; 2],
    /// The CA of the one it signed with, once the other end accepted that.
    pub(crate) signed: [Option<u8>; 2],
    pub(crate) connected: bool,
    /// Messages that reached each end, as far as it matters (a handshake).
    heard: [u8; 2],
    buffer: u64,
    /// L1: what each process has of the connection.
    ends: [Option<Box<End>>; 2],
    /// L1: the kernel at this end has no such socket any more.
    gone: [bool; 2],
    /// L1: what each direction should say.
    said: [VecDeque<Told>; 2],
    /// When something was last put on the wire, either way.
    active_at: u64,
}

/// The state of the network.
#[derive(Debug)]
pub(crate) struct Net {
    lane: Lane,
    base: BTreeMap<(u16, u16), (u64, u64)>,
    /// How many faults block a direction.
    blocked: BTreeMap<(u16, u16), u32>,
    slow: BTreeMap<(u16, u16), u32>,
    /// Hubs whose dials are refused (`false`) or hang (`true`).
    pub(crate) dials: BTreeMap<u16, Vec<bool>>,
    pub(crate) redirect: Vec<u16>,
    /// What names of hubs resolve to, where that is wrong.
    pub(crate) addresses: BTreeMap<u8, Vec<Landing>>,
    /// Second processes of hubs, by the hub they share a replica id with.
    pub(crate) twins: BTreeMap<u8, u16>,
    tape: Tape,
    latency: (u64, u64),
    bandwidth: (u64, u64),
    jitter: u64,
    exponential: bool,
}

impl Net {
    pub(crate) fn new(plan: &Plan, tape: &Tape) -> Self {
        Self {
            lane: tape.lane("net", 0),
            base: BTreeMap::new(),
            blocked: BTreeMap::new(),
            slow: BTreeMap::new(),
            dials: BTreeMap::new(),
            redirect: Vec::new(),
            addresses: BTreeMap::new(),
            twins: BTreeMap::new(),
            tape: tape.clone(),
            latency: plan.net.latency,
            bandwidth: plan.net.bandwidth,
            jitter: plan.net.jitter,
            exponential: plan.net.exponential,
        }
    }

    /// Latency and bandwidth of a pair, the same both ways.
    fn pair(&mut self, a: u16, b: u16) -> (u64, u64) {
        let key = (a.min(b), a.max(b));
        let (tape, latency, bandwidth) = (&self.tape, self.latency, self.bandwidth);
        let base = *self.base.entry(key).or_insert_with(|| {
            let mut l = tape.lane("pair", (u64::from(key.0) << 16) | u64::from(key.1));
            (l.between(latency.0, latency.1), l.between(bandwidth.0, bandwidth.1).max(1))
        });
        let factor = u64::from(self.slow.get(&key).copied().unwrap_or(1));
        (base.0 * factor, (base.1 / factor).max(1000))
    }

    fn latency(&mut self, a: u16, b: u16) -> u64 {
        let (base, _) = self.pair(a, b);
        base + self.draw_jitter()
    }

    /// What one item takes longer than the wire does: anything up to the
    /// longest, or half as likely with each further tenth of it (N1).
    fn draw_jitter(&mut self) -> u64 {
        let any = self.lane.below(self.jitter + 1);
        if !self.exponential {
            return any;
        }
        let tenths = u64::from(self.lane.next_u64().trailing_zeros());
        (tenths * (self.jitter / 10) + any / 10).min(self.jitter)
    }

    pub(crate) fn is_blocked(&self, from: u16, to: u16) -> bool {
        self.blocked.get(&(from, to)).is_some_and(|n| *n > 0)
    }

    pub(crate) fn block(&mut self, from: u16, to: u16) {
        *self.blocked.entry((from, to)).or_insert(0) += 1;
    }

    /// True when that was the last fault in the way.
    pub(crate) fn unblock(&mut self, from: u16, to: u16) -> bool {
        let n = self.blocked.entry((from, to)).or_insert(0);
        *n = n.saturating_sub(1);
        *n == 0
    }

    pub(crate) fn slow(&mut self, a: u16, b: u16, factor: u32) {
        let f = self.slow.entry((a.min(b), a.max(b))).or_insert(1);
        *f = f.saturating_mul(factor).min(1000);
    }

    pub(crate) fn unslow(&mut self, a: u16, b: u16) {
        self.slow.remove(&(a.min(b), a.max(b)));
    }

    pub(crate) fn heal(&mut self) -> Vec<(u16, u16)> {
        self.slow.clear();
        self.dials.clear();
        self.redirect.clear();
        self.addresses.clear();
        self.twins.clear();
        std::mem::take(&mut self.blocked).into_iter().filter(|(_, n)| *n > 0).map(|(k, _)| k).collect()
    }
}

/// A machine's name for its end of a connection.
pub(crate) const fn key(conn: u32, end: usize) -> ConnKey {
    ConnKey { ix: conn * 2 + end as u32, generation: 0 }
}

pub(crate) const fn place(key: ConnKey) -> (u32, usize) {
    (key.ix / 2, (key.ix % 2) as usize)
}

impl Conn {
    /// Messages of an end that have not arrived, as far as they are known.
    pub(crate) fn under_way(&self, end: usize) -> impl Iterator<Item = &Told> {
        let whole = self.pipes[end].items.iter().filter_map(|i| match i {
            Item::Message(told) => Some(told),
            Item::Piece(_) | Item::Fin => None,
        });
        whole.chain(&self.said[end])
    }

    /// What the machine at an end wants it closed for.
    pub(crate) const fn closing_at(&self, end: usize) -> Option<CloseCode> {
        self.closing[end]
    }

    /// Whether an end wants it closed.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.iter().any(Option::is_some)
    }
}

impl World {
    /// Where what is meant for a hub ends: at it, or at its twin.
    pub(crate) fn lands_at(&mut self, hub: u8) -> u16 {
        match self.net.twins.get(&hub) {
            Some(twin) if self.net.lane.chance(1, 2) => *twin,
            _ => u16::from(hub),
        }
    }

    /// A hostile peer's connection, which no network carries.
    pub(crate) fn rogue_conn(&mut self, ix: u32, from: u16, to: u16, plane: Plane) -> u32 {
        let conn = self.conns.len() as u32;
        let pipes = self.pipes_of(conn, from, to);
        self.conns.push(Conn {
            nodes: [from, to],
            runs: [0, self.nodes[usize::from(to)].run],
            up: [false, true],
            dirty: [false; 2],
            closing: [None; 2],
            pipes,
            dialect: Dialect { codec: Codec::BinaryV2, plane },
            target: TargetIx(0),
            given_up: true,
            rogue: Some(ix),
            unproven: [false; 2],
            shown: [None; 2],
            signed: [None; 2],
            connected: true,
            heard: [0; 2],
            buffer: 1,
            ends: [None, None],
            gone: [false; 2],
            said: Default::default(),
            active_at: self.now,
        });
        conn
    }

    /// A node dials a hub of its list.
    pub(crate) fn dial(&mut self, from: u16, target: TargetIx) {
        let node = &self.nodes[usize::from(from)];
        // As its configuration names them by now: what is gone keeps its place.
        let (url, plane) = match &node.machine {
            Some(Machine::Hub(h)) => {
                (h.control().config().peers.get(usize::from(target.0)).map(|p| p.url.clone()), Plane::Mesh)
            }
            Some(Machine::Agent(a)) => (a.tunnels().config().hubs.get(usize::from(target.0)).cloned(), Plane::Tunnel),
            None => return,
        };
        let hub: Option<u8> = url.and_then(|u| u.strip_prefix("hub-")?.parse().ok());
        let run = node.run;
        let Some(hub) = hub else {
            return self.fail("D2", format!("node {from} dials target {}, which it does not have", target.0));
        };
        let landing = self.net.addresses.get(&hub).and_then(|a| a.last()).copied();
        let landing = landing.filter(|l| *l != Landing::Hub(hub));
        let mut to = self.lands_at(if let Some(Landing::Hub(other)) = landing { other } else { hub });
        if landing.is_some() {
            self.marks.hit(Mark::OldAddress);
        }
        if plane == Plane::Tunnel
            && let Some(other) = self.net.redirect.last()
        {
            to = *other;
        }
        self.check.dials += 1;
        self.pace_dial(from, to, target, self.conns.len() as u32);
        let codec = if self.net.lane.below(256) < u64::from(self.plan.v1) { Codec::JsonV1 } else { Codec::BinaryV2 };
        let buffer = self.net.lane.between(self.plan.net.buffer.0, self.plan.net.buffer.1).max(1);
        let conn = self.conns.len() as u32;
        let pipes = self.pipes_of(conn, from, to);
        self.conns.push(Conn {
            nodes: [from, to],
            runs: [run, 0],
            up: [false; 2],
            dirty: [false; 2],
            closing: [None; 2],
            pipes,
            dialect: Dialect { codec, plane },
            target,
            given_up: false,
            rogue: None,
            unproven: [false; 2],
            shown: [None; 2],
            signed: [None; 2],
            connected: false,
            heard: [0; 2],
            buffer,
            ends: [None, None],
            gone: [false; 2],
            said: Default::default(),
            active_at: self.now,
        });
        self.line(None, || format!("node {from} dials hub {to} (conn {conn})"));
        let there = self.net.latency(from, to);
        let back = self.net.latency(from, to);
        let timeout = self.plan.net.dial_timeout;
        self.after(timeout, Event::DialTimeout { conn });
        if self.nodes[usize::from(from)].shortages > 0 {
            return self.after(MS, Event::DialFailed { node: from, run, target });
        }
        match landing {
            Some(Landing::Empty) => return self.after(MS, Event::DialFailed { node: from, run, target }),
            Some(Landing::Nobody { hang: true }) => return,
            Some(Landing::Nobody { hang: false }) => {
                return self.after(there + back, Event::DialFailed { node: from, run, target });
            }
            // The certificate there is for another host. Agents are let through:
            // theirs may be a name that all hubs share.
            Some(Landing::Hub(_)) if plane == Plane::Mesh => {
                return self.after(2 * there + back, Event::DialFailed { node: from, run, target });
            }
            Some(Landing::Hub(_)) | None => {}
        }
        let dials = self.net.dials.get(&to).and_then(|d| d.last()).copied();
        let hub = &self.nodes[usize::from(to)];
        let dark = hub.silent
            || hub.shortages > 0
            || self.net.is_blocked(from, to)
            || self.net.is_blocked(to, from)
            || dials == Some(true);
        if dark {
            return;
        }
        if !hub.is_up() || dials == Some(false) {
            return self.after(there + back, Event::DialFailed { node: from, run, target });
        }
        // TCP and TLS take a round trip before the request gets through.
        self.after(2 * there + back, Event::Accept { conn });
    }

    pub(crate) fn on_dial_failed(&mut self, ix: u16, run: u32, target: TargetIx) {
        if self.nodes[usize::from(ix)].run == run {
            for c in &mut self.conns {
                if c.nodes[0] == ix && c.runs[0] == run && c.target == target && !c.connected {
                    c.given_up = true;
                }
            }
            self.pace_failed(ix, run, target);
            self.input(ix, Input::DialFailed { target });
        }
    }

    pub(crate) fn on_dial_timeout(&mut self, conn: u32) {
        let c = &mut self.conns[conn as usize];
        if c.connected || std::mem::replace(&mut c.given_up, true) {
            return;
        }
        let (node, run, target) = (c.nodes[0], c.runs[0], c.target);
        if self.nodes[usize::from(node)].run == run {
            self.at(self.now, Event::DialFailed { node, run, target });
        }
    }

    pub(crate) fn on_accept(&mut self, conn: u32) {
        let [from, to] = self.conns[conn as usize].nodes;
        let hub = &self.nodes[usize::from(to)];
        if !hub.is_up() || hub.shortages > 0 || self.net.is_blocked(from, to) {
            // The dialler's own deadline ends this.
            return;
        }
        let (run, at) = (hub.run, hub.clock(self.now));
        if !self.meet(conn) {
            let (back, c) = (self.net.latency(from, to), &self.conns[conn as usize]);
            let failed = Event::DialFailed { node: from, run: c.runs[0], target: c.target };
            return self.after(back, failed);
        }
        let Some(principal) = self.principal(conn, from, to, at) else {
            // The upgrade is answered 401.
            let (back, c) = (self.net.latency(from, to), &self.conns[conn as usize]);
            let failed = Event::DialFailed { node: from, run: c.runs[0], target: c.target };
            return self.after(back, failed);
        };
        let c = &mut self.conns[conn as usize];
        c.runs[1] = run;
        c.up[1] = true;
        let dialect = c.dialect;
        if let (At::Agent(n), Principal::Agent(grant)) = (self.nodes[usize::from(from)].at, &principal) {
            self.ghost_token(to, n, grant.expires);
            self.plan_renewal(conn, n);
        }
        let back = self.net.latency(from, to);
        self.after(back, Event::Connected { conn });
        self.trace.mix(u64::from(conn));
        self.open_end(conn, 1);
        if let At::Hub(n) = self.nodes[usize::from(from)].at
            && self.certificate(conn, n).1
            && self.ends_tls(conn)
        {
            self.conns[conn as usize].unproven[0] = true;
            self.marks.hit(Mark::WrongCertificate);
        }
        self.input(to, Input::Accepted { conn: key(conn, 1), dialect, principal });
    }

    /// Whom a hub takes the dialler for; `None`: for nobody.
    fn principal(&mut self, conn: u32, from: u16, to: u16, hub_now: Instant) -> Option<Principal> {
        Some(match self.nodes[usize::from(from)].at {
            At::Hub(n) => Principal::Hub(self.link_grant(conn, n)),
            At::Agent(n) => {
                let (scope, lasts) = self.token(conn, n);
                let lasts = self.lasts_at(to, lasts)?;
                let connectors: Option<Vec<Name>> = scope.map(|s| s.iter().map(|c| connector(*c)).collect());
                let expires = (lasts > 0).then(|| Instant::from_nanos(hub_now.as_nanos().saturating_add(lasts)));
                Principal::Agent(AgentGrant { subject: format!("agent-{n}"), connectors, expires })
            }
        })
    }

    pub(crate) fn on_connected(&mut self, conn: u32) {
        let c = &self.conns[conn as usize];
        let [from, to] = c.nodes;
        let blocked = self.net.is_blocked(to, from);
        let node = &self.nodes[usize::from(from)];
        if c.given_up || blocked || node.run != c.runs[0] || !node.is_up() || !c.up[1] {
            let c = &mut self.conns[conn as usize];
            c.up[0] = false;
            c.gone[0] = true;
            if c.up[1] && !blocked {
                let back = self.net.latency(from, to);
                self.after(back, Event::Reset { conn, to: 1 });
            }
            return;
        }
        let c = &mut self.conns[conn as usize];
        c.connected = true;
        c.up[0] = true;
        let (target, dialect) = (c.target, c.dialect);
        self.open_end(conn, 0);
        let At::Hub(name) = self.nodes[usize::from(to)].at else { return };
        // Before an ingress it is the ingress's, for the hub's host.
        let dns_names = Some(vec![if self.ends_tls(conn) {
            crate::proof::own_name(name, self.nodes[usize::from(to)].keys.wrong_name).0
        } else {
            format!("hub-{name}")
        }]);
        let peer = HubGrant { dns_names, exporter: Some(crate::proof::exporter(conn)) };
        self.input(from, Input::Connected { target, conn: key(conn, 0), dialect, peer });
        // What it knows may have changed since TLS asked.
        self.judge_tls(from, conn, 0);
    }

    /// A machine has something to write on a connection. Inside `settle`.
    pub(crate) fn wake(&mut self, k: ConnKey) {
        let (conn, end) = place(k);
        if let Some(c) = self.conns.get_mut(conn as usize)
            && c.up[end]
        {
            c.dirty[end] = true;
            self.pump(conn, end);
        }
    }

    /// A machine wants a connection closed. Inside `settle`.
    pub(crate) fn close(&mut self, k: ConnKey, code: CloseCode) {
        let (conn, end) = place(k);
        let Some(c) = self.conns.get_mut(conn as usize) else { return };
        if !c.up[end] || c.closing[end].is_some() {
            return;
        }
        c.closing[end] = Some(code);
        c.dirty[end] = true;
        self.after(USER_TIMEOUT_NS, Event::GiveUp { conn, end: end as u8 });
        self.pump(conn, end);
    }

    /// Writes what the machine has while the socket takes it. The machine's
    /// outputs are left for `settle`.
    fn pump(&mut self, conn: u32, end: usize) {
        if let Some(ix) = self.conns[conn as usize].rogue {
            return self.pump_rogue(conn, ix);
        }
        match self.plan.level {
            Level::L0 => self.pump_whole(conn, end),
            Level::L1 => self.pump_bytes(conn, end),
        }
    }

    pub(crate) fn on_deliver(&mut self, conn: u32, to: u8) {
        match self.plan.level {
            Level::L0 => self.deliver_whole(conn, usize::from(to)),
            Level::L1 => self.deliver_bytes(conn, usize::from(to)),
        }
    }

    pub(crate) fn on_reset(&mut self, conn: u32, to: u8) {
        if self.conns[conn as usize].rogue.is_some() {
            return;
        }
        match self.plan.level {
            Level::L0 => self.reset_whole(conn, usize::from(to)),
            Level::L1 => self.reset_bytes(conn, usize::from(to)),
        }
    }

    /// There is room again: the sender may go on.
    fn unclog(&mut self, conn: u32, from: usize) {
        let c = &self.conns[conn as usize];
        let waits = c.up[from] && (c.dirty[from] || c.closing[from].is_some());
        if !waits && !c.ends[from].as_ref().is_some_and(|e| e.waits()) {
            return;
        }
        let ix = c.nodes[from];
        let node = &self.nodes[usize::from(ix)];
        if node.run != c.runs[from] || node.paused {
            // A paused process goes on when it wakes.
            return;
        }
        self.pump(conn, from);
        self.settle(ix);
    }

    /// After a pause: writes what waited.
    pub(crate) fn pump_all(&mut self, ix: u16) {
        for conn in 0..self.conns.len() as u32 {
            for end in 0..2 {
                if self.conns[conn as usize].nodes[end] == ix {
                    self.unclog(conn, end);
                }
            }
        }
    }

    /// A whole message reached a machine.
    fn deliver(&mut self, conn: u32, to: usize, told: Told) {
        let receiver = self.conns[conn as usize].nodes[to];
        self.trace.mix(u64::from(conn) << 2 | to as u64);
        self.trace.mix(told.hash);
        self.check.messages += 1;
        self.show_message(conn, to, &told);
        self.tap_in(conn, to, &told);
        let carried = self.carries_on(conn, to, &told);
        let message = self.tamper(conn, to, &told);
        self.check.wire.recycle(told);
        self.input(receiver, Input::Message { conn: key(conn, to), message });
        self.after_message(conn, to, carried);
        self.say_something_newer(conn, to);
    }

    /// A peer of a later version may send optional frames once the handshake
    /// is over (P6).
    fn say_something_newer(&mut self, conn: u32, to: usize) {
        if self.plan.newer == 0 {
            return;
        }
        let c = &mut self.conns[conn as usize];
        c.heard[to] = c.heard[to].saturating_add(1);
        let (receiver, codec, late) = (c.nodes[to], c.dialect.codec, c.heard[to] > HANDSHAKE_MESSAGES);
        if !late || !c.up[to] || self.net.lane.below(1000) >= u64::from(self.plan.newer) {
            return;
        }
        self.marks.hit(Mark::NewerPeer);
        let message = match codec {
            Codec::JsonV1 => ::bytes::Bytes::from_static(br#"{"type":"LATER","n":0,"optional":true,"more":[1]}"#),
            Codec::BinaryV2 => ::bytes::Bytes::from_static(&[0, 0xff, 3, 1, 2, 3]),
        };
        self.input(receiver, Input::Message { conn: key(conn, to), message });
    }

    /// Puts an item on the wire; the sender's buffer has counted its bytes.
    fn transmit(&mut self, conn: u32, end: usize, item: Item) {
        let [a, b] = self.conns[conn as usize].nodes;
        let (latency, bandwidth) = self.net.pair(a, b);
        let jitter = self.net.draw_jitter();
        let len = item.len();
        let now = self.now;
        let c = &mut self.conns[conn as usize];
        c.active_at = now;
        let pipe = &mut c.pipes[end];
        pipe.items.push_back(item);
        if pipe.dead {
            // Written to a peer that is gone without a word.
            if pipe.stuck_since.is_none() {
                pipe.stuck_since = Some(now);
                self.after(USER_TIMEOUT_NS, Event::GiveUp { conn, end: end as u8 });
            }
            return;
        }
        let begins = pipe.free_at.max(now);
        pipe.free_at = begins + len * 1_000_000_000 / bandwidth;
        let heard = begins + latency + HEARD_EVERY_NS;
        let arriving = matches!(pipe.items.back(), Some(Item::Message(_))) && begins + HEARD_EVERY_NS < pipe.free_at;
        let until = pipe.free_at + latency;
        pipe.last_at = pipe.last_at.max(pipe.free_at + latency + jitter);
        let at = pipe.last_at;
        // Same-instant items of one pipe must keep their order on the heap.
        pipe.last_at += 1;
        self.at(at, Event::Deliver { conn, to: 1 - end as u8 });
        if arriving {
            self.at(heard, Event::Heard { conn, to: 1 - end as u8, until });
        }
    }

    /// Tells a machine that its connection is gone.
    fn disconnect(&mut self, conn: u32, end: usize) {
        let c = &mut self.conns[conn as usize];
        if !std::mem::replace(&mut c.up[end], false) {
            return;
        }
        let ix = c.nodes[end];
        if self.nodes[usize::from(ix)].run == c.runs[end] {
            self.input(ix, Input::Disconnected { conn: key(conn, end), cause: CloseCode::Transport });
        }
    }
}

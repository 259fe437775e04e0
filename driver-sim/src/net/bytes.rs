//! Connections of L1: bytes through WebSocket layers and sockets with buffers.
//!
//! Two parts per end. The kernel takes what arrives whether or not the process
//! runs, answers for sockets that are gone, and gives up what is not taken for
//! too long. The process pulls from its machine only while little waits for the
//! socket, reads whenever it has a turn, and ends a connection in order: its
//! frames, a close, the end of the stream, then what still comes is thrown away
//! for a while. That order is the one of the production driver's `conn.rs`.
//! Must not know what a message says.

use std::collections::VecDeque;

use nowconnect_core::error::CloseCode;
use nowconnect_core::mux::Input;
use tungstenite::protocol::Role;

use super::pipe::{Item, Pipe};
use super::ws::{Incoming, Ws};
use super::{HEARD_EVERY_NS, PULL_BYTES, USER_TIMEOUT_NS, key};
use crate::event::Event;
use crate::plan::{Level, MS};
use crate::tape::mix;
use crate::world::World;

/// Nothing more is pulled while this much waits for the socket.
const LOW_WATER_BYTES: u64 = 128 << 10;
/// Messages handled before other tasks get their turn.
const MESSAGES_PER_TURN: u32 = 64;
/// Time for the last bytes and the peer's answer after a close.
const LINGER_NS: u64 = 2000 * MS;
/// Incoming bytes thrown away after the close, at most.
const DRAIN_MAX_BYTES: usize = 1 << 20;
/// A process that is not scheduled at once reads this much later, at most.
const SCHEDULED_WITHIN_NS: u64 = MS;
/// Between two pings of something in the middle, at least: below the rate at
/// which the driver closes.
const PING_EVERY_NS: u64 = 1000 * MS;

/// How far the end of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// The machine knows it.
    Open,
    /// Frames (the close among them) still go out.
    Flush,
    /// The write side has ended; what comes is thrown away.
    Drain,
}

/// What a process has of a connection.
#[derive(Debug)]
pub(super) struct End {
    ws: Ws,
    life: Life,
    trusted: bool,
    /// The kernel gave the connection up; the process hears of it in its turn.
    failed: bool,
    /// A turn to read is on the heap.
    ready: bool,
    drained: usize,
    /// From when on the machine may be told that a message is still arriving.
    heard_at: u64,
    ping_at: u64,
    pings: VecDeque<[u8; 8]>,
}

impl End {
    /// Something waits for the socket.
    pub(super) fn waits(&self) -> bool {
        self.life != Life::Open || self.ws.queued_bytes() > 0
    }
}

impl World {
    /// The two directions of a new connection. Buffers are as small as drawn
    /// where the way is short; on a long way they let a drawn rate through, as
    /// a buffer below that is a slower wire and nothing else.
    pub(super) fn pipes_of(&mut self, conn: u32, from: u16, to: u16) -> [Pipe; 2] {
        if self.plan.level == Level::L0 {
            return Default::default();
        }
        let (latency, bandwidth) = self.net.pair(from, to);
        let way = latency + self.plan.net.jitter + 1000;
        let mut l = self.tape.lane("sockets", u64::from(conn));
        let rate = if l.chance(1, 8) { 256 << 10 } else { 4 << 20 }.min(bandwidth);
        let least = way.saturating_mul(rate) / 1_000_000_000;
        let (low, high) = self.plan.net.buffer;
        let mut size = || l.between(low, high).max(least).min(4 << 20);
        [Pipe::sized(size(), size()), Pipe::sized(size(), size())]
    }

    /// The process at an end has its WebSocket layer.
    pub(super) fn open_end(&mut self, conn: u32, end: usize) {
        if self.plan.level == Level::L0 {
            return;
        }
        let role = if end == 0 { Role::Client } else { Role::Server };
        let seed = self.tape.lane("mask", u64::from(conn)).next_u64();
        let c = &mut self.conns[conn as usize];
        c.ends[end] = Some(Box::new(End {
            ws: Ws::new(role, c.dialect.codec, seed),
            life: Life::Open,
            trusted: end == 0,
            failed: false,
            ready: true,
            drained: 0,
            heard_at: 0,
            ping_at: 0,
            pings: VecDeque::new(),
        }));
        self.after(0, Event::Ready { conn, end: end as u8 });
    }

    /// Pulls from the machine and writes while the socket takes it. May run
    /// inside `settle`, to which the machine's outputs are left.
    pub(super) fn pump_bytes(&mut self, conn: u32, end: usize) {
        loop {
            let c = &mut self.conns[conn as usize];
            let Some(e) = &c.ends[end] else { return };
            if e.failed {
                return;
            }
            if !c.up[end] {
                return self.finish(conn, end);
            }
            let transport = c.closing[end] == Some(CloseCode::Transport);
            if c.dirty[end] && !transport && e.ws.queued_bytes() < LOW_WATER_BYTES && !self.pull(conn, end) {
                return;
            }
            self.write_out(conn, end);
            let c = &self.conns[conn as usize];
            let queued = c.ends[end].as_ref().map_or(0, |e| e.ws.queued_bytes());
            if transport || !c.dirty[end] || queued >= LOW_WATER_BYTES {
                break;
            }
        }
        let c = &mut self.conns[conn as usize];
        let Some(code) = c.closing[end] else { return };
        let empty = c.ends[end].as_ref().is_some_and(|e| e.ws.queued_bytes() == 0) && !c.dirty[end];
        if code == CloseCode::Transport || empty {
            c.up[end] = false;
            let ix = c.nodes[end];
            self.raw_input(ix, Input::Disconnected { conn: key(conn, end), cause: code });
            self.hang_up(conn, end, code);
        }
    }

    /// Takes messages from the machine. False when there is none.
    fn pull(&mut self, conn: u32, end: usize) -> bool {
        let c = &mut self.conns[conn as usize];
        c.dirty[end] = false;
        let now = self.now;
        let node = &mut self.nodes[usize::from(c.nodes[end])];
        let at = node.clock(now);
        let Some(m) = &mut node.machine else { return false };
        let mut batch = std::mem::take(&mut self.batch);
        let state = m.poll_transmit(at, key(conn, end), PULL_BYTES as usize, &mut batch, &mut node.out);
        if state == nowconnect_core::session::TxState::More {
            c.dirty[end] = true;
        }
        for m in batch.messages.drain(..) {
            let told = self.tap(conn, end, m.to_bytes());
            let c = &mut self.conns[conn as usize];
            c.said[end].push_back(told);
            if let Some(e) = &mut c.ends[end] {
                e.ws.queue(m.chunks, m.len);
            }
        }
        batch.bytes = 0;
        self.batch = batch;
        if let Some(e) = &mut self.conns[conn as usize].ends[end]
            && now >= e.ping_at
            && self.net.lane.chance(1, 32)
        {
            let payload = mix(now ^ u64::from(conn)).to_le_bytes();
            e.ping_at = now + PING_EVERY_NS;
            e.pings.push_back(payload);
            e.ws.ping(payload);
        }
        true
    }

    /// Hands the kernel what it takes. True when nothing waits any more.
    fn write_out(&mut self, conn: u32, end: usize) -> bool {
        let most = self.plan.net.mtu.1;
        let c = &mut self.conns[conn as usize];
        let Some(e) = &mut c.ends[end] else { return true };
        let done = e.ws.flush(&mut c.pipes[end], &mut self.net.lane, most.max(512));
        self.push(conn, end);
        done
    }

    /// Puts on the wire what the reader's window allows.
    fn push(&mut self, conn: u32, end: usize) {
        let mtu = self.plan.net.mtu.1.max(1);
        loop {
            let most = if self.net.lane.chance(1, 8) { self.net.lane.between(1, mtu) } else { mtu };
            let Some(item) = self.conns[conn as usize].pipes[end].launch(most as usize) else { break };
            self.transmit(conn, end, item);
        }
        let pipe = &mut self.conns[conn as usize].pipes[end];
        if !pipe.is_shut() {
            pipe.shut_since = None;
        } else if pipe.shut_since.is_none() {
            pipe.shut_since = Some(self.now);
            self.after(USER_TIMEOUT_NS, Event::GiveUp { conn, end: end as u8 });
        }
    }

    /// Something arrives at a kernel.
    pub(super) fn deliver_bytes(&mut self, conn: u32, to: usize) {
        let from = 1 - to;
        let c = &mut self.conns[conn as usize];
        let (sender, receiver) = (c.nodes[from], c.nodes[to]);
        let silent = self.nodes[usize::from(receiver)].silent;
        let gone = c.gone[to];
        let pipe = &mut c.pipes[from];
        if pipe.dead {
            return;
        }
        let blocked = self.net.is_blocked(sender, receiver);
        if blocked || silent {
            pipe.stuck += u32::from(blocked);
            pipe.dead = !blocked;
            if pipe.stuck_since.is_none() {
                pipe.stuck_since = Some(self.now);
                self.after(USER_TIMEOUT_NS, Event::GiveUp { conn, end: from as u8 });
            }
            return;
        }
        let Some(item) = pipe.items.pop_front() else { return };
        pipe.landed(item.len());
        match item {
            // Of L0 only.
            Item::Message(_) => {}
            Item::Piece(piece) => {
                if gone || !pipe.receive(&piece) {
                    // A socket that is gone answers with a reset.
                    let back = self.net.latency(sender, receiver);
                    self.after(back, Event::Reset { conn, to: from as u8 });
                }
            }
            Item::Fin => pipe.end(),
        }
        if !gone {
            self.readable(conn, to);
        }
        self.unclog(conn, from);
    }

    /// The process at an end has something to read; it comes to it at once, or
    /// a little later and finds more.
    fn readable(&mut self, conn: u32, end: usize) {
        let c = &mut self.conns[conn as usize];
        let Some(e) = &mut c.ends[end] else { return };
        if e.ready {
            return;
        }
        let node = &self.nodes[usize::from(c.nodes[end])];
        let runs = !node.paused && node.lag == 0 && node.held.is_empty();
        let late = if runs { self.net.lane.chance(1, 4) } else { true };
        if late {
            e.ready = true;
            let by = self.net.lane.below(SCHEDULED_WITHIN_NS);
            self.after(by, Event::Ready { conn, end: end as u8 });
        } else {
            self.on_ready(conn, end);
        }
    }

    /// A process' turn with a connection.
    pub(crate) fn on_ready(&mut self, conn: u32, end: usize) {
        let c = &mut self.conns[conn as usize];
        let Some(e) = &mut c.ends[end] else { return };
        e.ready = false;
        if e.failed {
            c.ends[end] = None;
            c.gone[end] = true;
            return self.disconnect(conn, end);
        }
        if e.life != Life::Open {
            return self.finish(conn, end);
        }
        let ix = c.nodes[end];
        if self.read_messages(conn, end) {
            self.pump(conn, end);
            self.settle(ix);
        }
    }

    /// Reads until nothing is left or others are due. False when the
    /// connection is over for the machine.
    fn read_messages(&mut self, conn: u32, end: usize) -> bool {
        let from = 1 - end;
        for n in 0.. {
            let c = &mut self.conns[conn as usize];
            let ix = usize::from(c.nodes[end]);
            if !c.up[end] || self.nodes[ix].run != c.runs[end] {
                return false;
            }
            let Some(e) = &mut c.ends[end] else { return false };
            if n == MESSAGES_PER_TURN {
                e.ready = true;
                self.after(1, Event::Ready { conn, end: end as u8 });
                break;
            }
            let carried = |m: &crate::node::Machine| m.mux().carried_by(key(conn, end)).is_some();
            if !e.trusted && self.nodes[ix].machine.as_ref().is_some_and(carried) {
                e.trusted = true;
                e.ws.trust();
            }
            match e.ws.read(&mut c.pipes[from], &mut self.net.lane) {
                Incoming::Message(message) => {
                    let Some(told) = c.said[from].pop_front().filter(|told| told.bytes == message) else {
                        self.fail("N9", format!("conn {conn}: a message of {} bytes was never sent so", message.len()));
                        return false;
                    };
                    self.deliver(conn, end, told);
                }
                Incoming::Ping(_) => {}
                Incoming::Pong(payload) => {
                    // A pong may be skipped for a later one.
                    let known = e.pings.iter().position(|p| *p == *payload);
                    match known {
                        Some(at) => drop(e.pings.drain(..=at)),
                        None => self.fail("N9", format!("conn {conn}: a pong that nobody asked for")),
                    }
                }
                Incoming::Nothing => {
                    if e.ws.take_grown() && self.now >= e.heard_at {
                        e.heard_at = self.now + HEARD_EVERY_NS;
                        self.ghost_heard(conn, end);
                        self.input(ix as u16, Input::Heard { conn: key(conn, end) });
                    }
                    break;
                }
                Incoming::Closed | Incoming::Eof => {
                    self.line(None, || format!("node {ix} sees the end of conn {conn}"));
                    self.over(conn, end, CloseCode::Transport);
                    return false;
                }
                Incoming::Broken(code) => {
                    self.fail("N9", format!("conn {conn}: node {ix} sees a broken WebSocket and closes with {code}"));
                    self.over(conn, end, CloseCode::Protocol);
                    return false;
                }
            }
        }
        // What was read makes room for more.
        self.push(conn, from);
        true
    }

    /// A connection is over by its own doing: tells the machine and ends it.
    fn over(&mut self, conn: u32, end: usize, cause: CloseCode) {
        let c = &mut self.conns[conn as usize];
        c.up[end] = false;
        let ix = c.nodes[end];
        self.hang_up(conn, end, cause);
        self.input(ix, Input::Disconnected { conn: key(conn, end), cause });
    }

    /// The machine has let go: says good-bye, within a bound.
    fn hang_up(&mut self, conn: u32, end: usize, cause: CloseCode) {
        let Some(e) = &mut self.conns[conn as usize].ends[end] else { return };
        e.ws.close(if cause == CloseCode::Transport { 1000 } else { 1008 });
        e.life = Life::Flush;
        self.after(LINGER_NS, Event::Linger { conn, end: end as u8 });
        self.finish(conn, end);
    }

    /// Goes on with the end of a connection.
    fn finish(&mut self, conn: u32, end: usize) {
        let Some(e) = &self.conns[conn as usize].ends[end] else { return };
        if e.life == Life::Flush && self.write_out(conn, end) {
            let c = &mut self.conns[conn as usize];
            c.pipes[end].finish();
            if let Some(e) = &mut c.ends[end] {
                e.life = Life::Drain;
            }
            self.push(conn, end);
        }
        let c = &mut self.conns[conn as usize];
        let Some(e) = &mut c.ends[end] else { return };
        if e.life != Life::Drain {
            return;
        }
        e.drained += c.pipes[1 - end].discard();
        if c.pipes[1 - end].at_end() || e.drained >= DRAIN_MAX_BYTES {
            self.close_socket(conn, end);
        }
        self.push(conn, 1 - end);
    }

    /// The socket is dropped, whatever became of its last bytes.
    pub(crate) fn on_linger(&mut self, conn: u32, end: usize) {
        let open = self.conns[conn as usize].ends[end].as_ref().is_some_and(|e| e.life == Life::Open);
        if !open {
            self.close_socket(conn, end);
        }
    }

    /// A process lets go of a socket. With unread input the kernel sends a
    /// reset; without, it goes on to deliver what it has, and the end behind it.
    pub(super) fn close_socket(&mut self, conn: u32, end: usize) {
        let c = &mut self.conns[conn as usize];
        let Some(e) = c.ends[end].take() else { return };
        c.gone[end] = true;
        if e.failed {
            return;
        }
        if c.pipes[1 - end].discard() > 0 {
            c.pipes[end].drop_unsent();
            self.send_reset(conn, 1 - end);
        } else {
            c.pipes[end].finish();
            self.push(conn, end);
        }
    }

    fn send_reset(&mut self, conn: u32, to: usize) {
        let c = &self.conns[conn as usize];
        if c.pipes[1 - to].dead {
            return;
        }
        let [a, b] = c.nodes;
        let delay = self.net.latency(a, b);
        self.after(delay, Event::Reset { conn, to: to as u8 });
    }

    /// A reset arrives at a kernel: unread bytes are gone with it.
    pub(super) fn reset_bytes(&mut self, conn: u32, to: usize) {
        let from = 1 - to;
        let c = &mut self.conns[conn as usize];
        let ix = c.nodes[to];
        if self.net.is_blocked(c.nodes[from], ix) || self.nodes[usize::from(ix)].silent {
            return;
        }
        c.pipes[from].reset();
        c.pipes[to].drop_unsent();
        self.line(None, || format!("node {ix} sees conn {conn} reset"));
        self.fail_end(conn, to);
    }

    /// The kernel gives up a connection whose bytes nobody takes.
    pub(super) fn give_up_bytes(&mut self, conn: u32, end: usize) {
        let c = &mut self.conns[conn as usize];
        c.pipes[1 - end].discard();
        c.pipes[end].drop_unsent();
        self.send_reset(conn, 1 - end);
        self.fail_end(conn, end);
    }

    fn fail_end(&mut self, conn: u32, end: usize) {
        let c = &mut self.conns[conn as usize];
        match &mut c.ends[end] {
            Some(e) => {
                e.failed = true;
                self.readable(conn, end);
            }
            None => c.gone[end] = true,
        }
    }
}

//! Connections of L0: a message arrives whole or not at all.
//!
//! The node writes while the socket's buffer has room, as it does at L1, but
//! what counts is whole messages. Must not know what a message says.

use nowconnect_core::error::CloseCode;
use nowconnect_core::mux::Input;

use super::pipe::Item;
use super::{HEARD_EVERY_NS, PULL_BYTES, USER_TIMEOUT_NS, key};
use crate::event::Event;
use crate::world::World;

impl World {
    pub(super) fn pump_whole(&mut self, conn: u32, end: usize) {
        loop {
            let c = &mut self.conns[conn as usize];
            if !c.up[end] {
                return;
            }
            let room = c.buffer.saturating_sub(c.pipes[end].bytes);
            let transport = c.closing[end] == Some(CloseCode::Transport);
            if !c.dirty[end] || transport {
                break;
            }
            if room == 0 {
                return;
            }
            c.dirty[end] = false;
            let ix = usize::from(c.nodes[end]);
            let mut batch = std::mem::take(&mut self.batch);
            let (now, node) = (self.now, &mut self.nodes[ix]);
            let at = node.clock(now);
            let Some(m) = &mut node.machine else { return };
            let budget = room.min(PULL_BYTES) as usize;
            let state = m.poll_transmit(at, key(conn, end), budget, &mut batch, &mut node.out);
            if state == nowconnect_core::session::TxState::More {
                self.conns[conn as usize].dirty[end] = true;
            }
            while let Some(m) = batch.messages.pop_front() {
                let told = self.tap(conn, end, m.to_bytes());
                self.conns[conn as usize].pipes[end].bytes += told.bytes.len() as u64;
                self.transmit(conn, end, Item::Message(told));
            }
            batch.bytes = 0;
            self.batch = batch;
        }
        // Everything is in the socket: an orderly close may follow.
        let c = &mut self.conns[conn as usize];
        if let Some(code) = c.closing[end] {
            c.up[end] = false;
            let ix = c.nodes[end];
            self.transmit(conn, end, Item::Fin);
            self.raw_input(ix, Input::Disconnected { conn: key(conn, end), cause: code });
        }
    }

    pub(super) fn deliver_whole(&mut self, conn: u32, to: usize) {
        let from = 1 - to;
        let c = &mut self.conns[conn as usize];
        if c.pipes[from].dead {
            return;
        }
        let (sender, receiver) = (c.nodes[from], c.nodes[to]);
        if self.net.is_blocked(sender, receiver) {
            let pipe = &mut c.pipes[from];
            pipe.stuck += 1;
            if pipe.stuck_since.is_none() {
                pipe.stuck_since = Some(self.now);
                self.after(USER_TIMEOUT_NS, Event::GiveUp { conn, end: from as u8 });
            }
            return;
        }
        let Some(item) = c.pipes[from].items.pop_front() else { return };
        let node = &self.nodes[usize::from(receiver)];
        if node.silent {
            // The machine is gone: nothing answers.
            c.pipes[from].dead = true;
            return;
        }
        let alive = c.up[to] && node.is_up() && node.run == c.runs[to];
        match item {
            Item::Message(told) => {
                c.pipes[from].bytes -= told.bytes.len() as u64;
                if alive {
                    self.deliver(conn, to, told);
                } else if c.up[from] {
                    // A closed socket answers with a reset.
                    let back = self.net.latency(sender, receiver);
                    self.after(back, Event::Reset { conn, to: from as u8 });
                }
                self.unclog(conn, from);
            }
            Item::Piece(_) | Item::Fin => {
                if alive {
                    self.line(None, || format!("node {receiver} sees the end of conn {conn}"));
                    self.disconnect(conn, to);
                }
            }
        }
    }

    /// A part of a message that takes long arrives. Nothing does any more when
    /// the connection broke, nor while a block holds items back.
    pub(crate) fn hear_whole(&mut self, conn: u32, to: usize, until: u64) {
        let from = 1 - to;
        let c = &self.conns[conn as usize];
        let (pipe, receiver) = (&c.pipes[from], c.nodes[to]);
        let node = &self.nodes[usize::from(receiver)];
        let alive = c.up[to] && !node.silent && node.is_up() && node.run == c.runs[to];
        if !alive || pipe.dead || pipe.items.is_empty() {
            return;
        }
        let held_back = pipe.stuck > 0 || self.net.is_blocked(c.nodes[from], receiver);
        if self.now + HEARD_EVERY_NS < until {
            self.after(HEARD_EVERY_NS, Event::Heard { conn, to: to as u8, until });
        }
        if !held_back {
            self.ghost_heard(conn, to);
            self.input(receiver, Input::Heard { conn: key(conn, to) });
        }
    }

    pub(super) fn reset_whole(&mut self, conn: u32, to: usize) {
        let from = 1 - to;
        let c = &mut self.conns[conn as usize];
        if self.net.is_blocked(c.nodes[from], c.nodes[to]) {
            return;
        }
        // Unread bytes are gone with it.
        c.pipes[from].items.clear();
        c.pipes[from].bytes = 0;
        c.pipes[from].dead = true;
        let ix = c.nodes[to];
        self.line(None, || format!("node {ix} sees conn {conn} reset"));
        self.disconnect(conn, to);
    }
}

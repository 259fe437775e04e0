//! The sockets between actors and nodes, as a node sees them: a buffer each
//! way, so that a node that may not read, or an actor that does not, is felt by
//! the other side as with TCP. What a node does with a socket that is gone or
//! closed is judged here (S4, D2). Must not know what an actor wants.

use std::collections::VecDeque;

use bytes::Bytes;
use nowconnect_core::error::RstCode;
use nowconnect_core::id::{SockKey, StreamKey};
use nowconnect_core::mux::Input;
use nowconnect_core::shard::{SockEvent, SockOp};

use crate::actor::side;
use crate::event::Event;
use crate::marks::Mark;
use crate::payload::{self, Half};
use crate::plan::{ClientPlan, Level, MS};
use crate::tape::Lane;
use crate::world::World;

/// Bytes a node reads from a socket at a time, as the production driver.
const READ_BYTES: usize = 64 << 10;

/// A TCP connection between an actor and a node.
#[derive(Debug)]
pub(crate) struct Sock {
    pub(crate) node: u16,
    pub(crate) run: u32,
    pub(crate) stream: Option<StreamKey>,
    pub(crate) actor: u32,
    /// Bytes the actor wrote, and bytes the node read.
    pub(crate) sent: u64,
    pub(crate) taken: u64,
    pub(crate) fin: bool,
    pub(crate) eof_said: bool,
    pub(crate) paused: bool,
    /// What the node wrote: in its own queue, and in the socket's buffer.
    pub(crate) queue: VecDeque<Bytes>,
    pub(crate) buffered: VecDeque<Bytes>,
    pub(crate) buffered_bytes: u64,
    /// Bytes the node wrote into the buffer in all.
    pub(crate) written: u64,
    pub(crate) shut_due: bool,
    pub(crate) shut: bool,
    /// The node is done with it.
    pub(crate) closed: bool,
    pub(crate) reset: Option<Option<RstCode>>,
    /// The node does not exist for it any more.
    pub(crate) gone: bool,
    pub(crate) due: bool,
}

impl Sock {
    /// The node's half is closed towards the actor.
    pub(crate) const fn is_shut(&self) -> bool {
        self.shut
    }
}

pub(crate) const fn sock_key(ix: u32) -> SockKey {
    SockKey { ix, generation: 0 }
}

impl World {
    /// What a node wants done with a socket. Inside `settle`.
    pub(crate) fn on_sock_op(&mut self, key: SockKey, op: SockOp) {
        let Some(sock) = self.socks.get_mut(key.ix as usize) else {
            return self.fail("D2", format!("an operation on socket {}, which nobody has", key.ix));
        };
        if sock.gone {
            return;
        }
        let actor = sock.actor;
        let (client, is_client) = (self.actors[actor as usize].client, self.actors[actor as usize].is_client);
        if sock.closed {
            return self.fail("S4", format!("{op:?} for a socket of client {client} that was closed before"));
        }
        self.trace.mix(u64::from(key.ix) << 3 | op_number(&op));
        match op {
            SockOp::Write(bytes) => {
                if sock.shut_due {
                    return self.fail("S4", format!("bytes for client {client} after the end of its direction"));
                }
                sock.queue.push_back(bytes);
                self.sock_due(key.ix);
            }
            SockOp::ShutDown => {
                sock.shut_due = true;
                self.sock_due(key.ix);
            }
            SockOp::Readable => {
                sock.paused = false;
                self.marks.hit(Mark::SourcePausedAndResumed);
                self.sock_due(key.ix);
            }
            SockOp::Close => {
                sock.closed = true;
                // Closing ends the node's direction too, if nothing did before.
                sock.shut = true;
                let unread = sock.sent > sock.taken || !sock.queue.is_empty();
                self.line(Some(client), || format!("its {} socket is closed", side(is_client)));
                if unread {
                    // A kernel answers unread input with a reset.
                    self.socks[key.ix as usize].reset = Some(None);
                }
                self.step(actor, MS / 10);
            }
            SockOp::Abort(code) => {
                sock.closed = true;
                sock.queue.clear();
                sock.reset = Some(Some(code));
                self.line(Some(client), || format!("its {} socket is reset: {code}", side(is_client)));
                self.step(actor, MS / 10);
            }
        }
    }

    pub(crate) fn sock_due(&mut self, sock: u32) {
        if !std::mem::replace(&mut self.socks[sock as usize].due, true) {
            self.after(0, Event::Sock { sock });
        }
    }

    /// A node's turn with a socket: write what fits, read what is allowed.
    pub(crate) fn on_sock(&mut self, ix: u32) {
        self.socks[ix as usize].due = false;
        let sock = &self.socks[ix as usize];
        let (node, actor) = (sock.node, sock.actor);
        if sock.gone || sock.closed || self.nodes[usize::from(node)].run != sock.run {
            return;
        }
        let Some(stream) = sock.stream else { return };
        let client = self.actors[actor as usize].client;
        let plan = self.client_plan(client);
        self.flush(ix, node, stream, actor, &plan);
        let sock = &mut self.socks[ix as usize];
        if sock.closed || sock.gone || sock.paused || sock.eof_said {
            return;
        }
        let waiting = sock.sent - sock.taken;
        if waiting == 0 {
            if sock.fin {
                sock.eof_said = true;
                self.input(node, Input::Socket { stream, event: SockEvent::Eof });
            }
            return;
        }
        let Some(m) = &mut self.nodes[usize::from(node)].machine else { return };
        let budget = m.read_budget(stream);
        self.trace.mix(budget as u64);
        if budget == 0 {
            sock.paused = true;
            self.marks.hit(Mark::SourcePaused);
            return;
        }
        let len = budget.min(READ_BYTES).min(usize::try_from(waiting).unwrap_or(usize::MAX));
        let len = part(self.plan.level, &mut self.sock_draws, len);
        let half = Half { client, up: self.actors[actor as usize].is_client };
        let bytes = payload::cut(half, sock.taken, len);
        sock.taken += len as u64;
        let more = sock.sent > sock.taken || sock.fin;
        // The actor may write again.
        self.step(actor, plan.latency);
        self.check.nodes.entry(node).or_default().from_sockets += len as u64;
        self.input(node, Input::Socket { stream, event: SockEvent::Data(bytes) });
        if more {
            self.sock_due(ix);
        }
    }

    fn flush(&mut self, ix: u32, node: u16, stream: StreamKey, actor: u32, plan: &ClientPlan) {
        let (level, lane) = (self.plan.level, &mut self.sock_draws);
        let sock = &mut self.socks[ix as usize];
        let (mut written, mut again) = (0, false);
        while let Some(front) = sock.queue.front_mut() {
            let room = u64::from(plan.buffer).saturating_sub(sock.buffered_bytes) as usize;
            if room == 0 {
                break;
            }
            let whole = room.min(front.len());
            let len = part(level, lane, whole);
            let piece = front.split_to(len);
            written += piece.len() as u64;
            sock.buffered_bytes += piece.len() as u64;
            sock.written += piece.len() as u64;
            if front.is_empty() {
                sock.queue.pop_front();
            }
            sock.buffered.push_back(piece);
            if len < whole {
                // A partial write; the rest has a turn of its own.
                again = true;
                break;
            }
        }
        let shut = sock.queue.is_empty() && sock.shut_due && !sock.shut;
        if shut {
            sock.shut = true;
        }
        if written > 0 || shut {
            self.step(actor, plan.latency);
        }
        if again {
            self.sock_due(ix);
        }
        if written > 0 {
            self.check.nodes.entry(node).or_default().to_sockets += written;
            self.input(node, Input::Socket { stream, event: SockEvent::Written(written) });
        }
        if shut {
            self.input(node, Input::Socket { stream, event: SockEvent::ShutDown });
        }
    }

    pub(crate) fn on_sock_aborted(&mut self, ix: u32) {
        let sock = &mut self.socks[ix as usize];
        if std::mem::replace(&mut sock.gone, true) || sock.closed {
            return;
        }
        let (node, run, stream) = (sock.node, sock.run, sock.stream);
        if let Some(stream) = stream
            && self.nodes[usize::from(node)].run == run
        {
            self.input(node, Input::Socket { stream, event: SockEvent::Aborted });
        }
    }

    /// A process died with its sockets.
    pub(crate) fn drop_socks(&mut self, ix: u16) {
        for n in 0..self.socks.len() {
            let sock = &mut self.socks[n];
            if sock.node == ix && !sock.gone && !sock.closed {
                sock.gone = true;
                sock.reset = Some(None);
                sock.queue.clear();
                let actor = sock.actor;
                self.step(actor, MS);
            }
        }
    }
}

/// How much of `whole` one call to a socket moves: at L1 now and then less
/// than could be (N3), but no less than a sixteenth.
fn part(level: Level, lane: &mut Lane, whole: usize) -> usize {
    if level == Level::L0 || whole < 2 || !lane.chance(1, 4) {
        return whole;
    }
    let whole = whole as u64;
    lane.between((whole / 16).max(1), whole) as usize
}

const fn op_number(op: &SockOp) -> u64 {
    match op {
        SockOp::Write(_) => 0,
        SockOp::ShutDown => 1,
        SockOp::Readable => 2,
        SockOp::Abort(_) => 3,
        SockOp::Close => 4,
    }
}

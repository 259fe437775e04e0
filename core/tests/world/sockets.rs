//! Sockets of the small world: what clients and targets are told, and what
//! targets do with it. Must not know connections.

use super::*;

impl World {
    pub(super) fn sock_op(&mut self, n: usize, key: SockKey, op: SockOp) {
        let Some(sock) = self.nodes[n].socks.get_mut(&key) else { return };
        let stream = sock.stream.unwrap();
        match op {
            SockOp::Write(b) => {
                sock.received.extend_from_slice(&b);
                if sock.stalled {
                    sock.unconfirmed += b.len() as u64;
                } else {
                    self.input(n, Input::Socket { stream, event: SockEvent::Written(b.len() as u64) });
                }
            }
            SockOp::ShutDown => {
                sock.eof_received = true;
                self.input(n, Input::Socket { stream, event: SockEvent::ShutDown });
            }
            SockOp::Readable => {}
            SockOp::Abort(code) => {
                sock.aborted = Some(code);
            }
            SockOp::Close => sock.closed = true,
        }
    }

    /// A stalled socket reads again.
    pub(crate) fn unstall(&mut self, n: usize, key: SockKey) {
        let sock = self.sock(n, key);
        sock.stalled = false;
        let bytes = std::mem::take(&mut sock.unconfirmed);
        let stream = sock.stream.unwrap();
        self.input(n, Input::Socket { stream, event: SockEvent::Written(bytes) });
    }

    pub(super) fn open_target(&mut self, n: usize, stream: StreamKey) {
        match self.target_of(n) {
            Target::Refuse => self.input(n, Input::Target { stream, result: Err(RstCode::Refused) }),
            Target::Hang => {}
            Target::Accept | Target::Echo => {
                let node = &mut self.nodes[n];
                let key = SockKey { ix: node.next_sock, generation: 0 };
                node.next_sock += 1;
                node.socks.insert(key, Sock { stream: Some(stream), ..Sock::default() });
                self.input(n, Input::Target { stream, result: Ok(key) });
            }
        }
    }

    /// Lets sockets be read as far as their budgets allow.
    pub(super) fn feed(&mut self, n: usize) -> bool {
        let mut worked = false;
        let echo = self.target_of(n) == Target::Echo && matches!(self.nodes[n].machine, Machine::Agent(_));
        let keys: Vec<SockKey> = self.nodes[n].socks.keys().copied().collect();
        for key in keys {
            let Some(sock) = self.nodes[n].socks.get_mut(&key) else { continue };
            if sock.aborted.is_some() || sock.closed || sock.eof_said {
                continue;
            }
            let Some(stream) = sock.stream else { continue };
            if echo {
                if !sock.received.is_empty() {
                    let b = std::mem::take(&mut sock.received);
                    sock.to_node.push_back(b.into());
                }
                sock.eof_to_node |= sock.eof_received;
            }
            let Some(mut chunk) = sock.to_node.pop_front() else {
                if sock.eof_to_node && !sock.eof_said {
                    sock.eof_said = true;
                    worked = true;
                    self.input(n, Input::Socket { stream, event: SockEvent::Eof });
                }
                continue;
            };
            let budget = match &mut self.nodes[n].machine {
                Machine::Hub(h) => h.read_budget(stream),
                Machine::Agent(a) => a.read_budget(stream),
            }
            .min(64 * 1024);
            let take = budget.min(chunk.len());
            let part = chunk.split_to(take);
            let sock = self.sock(n, key);
            if !chunk.is_empty() {
                sock.to_node.push_front(chunk);
            }
            if take > 0 {
                worked = true;
                self.input(n, Input::Socket { stream, event: SockEvent::Data(part) });
            }
        }
        worked
    }
}

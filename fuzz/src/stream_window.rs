//! `stream_window` (verification (e) 12): one stream through two shards and two
//! sessions, operation by operation, against a model that keeps every byte in a
//! list: writes, credit, FIN, RST, cuts and resumptions. Every frame that leaves
//! is judged against what the model says may leave (S1, S2, S3, S9, B1, B4), and
//! at the end everything has arrived or both ends have heard of the abort (S5).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nowconnect_core::config::{Limits, ListenerConfig, Liveness, OpenRule, OpenTimers, Selection};
use nowconnect_core::id::{
    Epoch, Fence, Incarnation, Instance, ListenerIx, Nonce, Secret, SessionId, SessionKey, SockKey, StreamKey,
};
use nowconnect_core::rng::Seed;
use nowconnect_core::route::Candidate;
use nowconnect_core::session::{Released, Session, SessionConfig, SessionEvent, TxBatch, TxMessage};
use nowconnect_core::shard::{Attach, ControlNote, Role, SessionUp, Shard, ShardOut, SockEvent, SockOp};
use nowconnect_core::time::Instant;
use nowconnect_core::wire::{Body, Codec, Dialect, Frame, Plane, WireLimits, decode};

use crate::peer::{agent, name};
use crate::tape::{Tape, payload};

const KEY: SessionKey = SessionKey { ix: 1, generation: 0 };
const FENCE: Fence = Fence { epoch: Epoch(7), nonce: Nonce(70) };
const OPS_MAX: usize = 500;

/// What the model knows of a half: 0 flows up, 1 down.
#[derive(Default)]
struct Half {
    /// Written by the source socket, and whether it ended.
    wrote: Vec<u8>,
    ended: bool,
    /// Bytes and end that left the source's node, and up to where they may.
    left: usize,
    left_end: bool,
    may_leave: u64,
    /// Written to the sink socket, confirmed by it, and its end.
    arrived: Vec<u8>,
    taken: u64,
    got_end: bool,
    took_end: bool,
    /// The last CREDIT that left the sink's node.
    told: (u64, u64),
}

struct Node {
    shard: Shard,
    session: Session,
    out: ShardOut,
    stream: Option<StreamKey>,
    /// Highest message number that left.
    number: u64,
    /// Nothing of the stream may leave any more.
    said_end: bool,
    /// Its socket was reset or aborted.
    over: bool,
    closed: bool,
}

struct World {
    now: Instant,
    nodes: [Node; 2],
    halves: [Half; 2],
    /// What is on the way from each node.
    queues: [VecDeque<Bytes>; 2],
    connected: bool,
    challenges: u8,
    aborted: bool,
    open: bool,
    window_max: u64,
    dialect: Dialect,
}

fn node(role: Role, limits: &Limits, dialect: Dialect, n: u64) -> Node {
    let config = SessionConfig {
        dialect,
        id: SessionId(1),
        secret: Secret([9; 32]),
        send_queue_depth: limits.send_queue_depth,
        inflight_bytes: limits.inflight_bytes,
        liveness: Liveness::default(),
    };
    let shard = Shard::new(role, limits.clone(), Incarnation(n), 0, &Seed::from_u64(n));
    let session = Session::new(config, Seed::from_u64(n), Instant::ZERO);
    let (out, stream) = (ShardOut::default(), None);
    Node { shard, session, out, stream, number: 0, said_end: false, over: false, closed: false }
}

fn world(tape: &mut Tape<'_>) -> World {
    let initial = [16_384, 1, 100, 65_536][tape.below(4)];
    let limits = Limits {
        stream_window_initial_bytes: initial,
        stream_window_max_bytes: [65_536, 100, 131_072][tape.below(3)].max(initial),
        send_queue_depth: [1000, 2][tape.below(2)],
        inflight_bytes: [1 << 20, 3000][tape.below(2)],
        ..Limits::default()
    };
    let codec = if tape.one_in(3) { Codec::JsonV1 } else { Codec::BinaryV2 };
    let dialect = Dialect { codec, plane: Plane::Tunnel };
    let listener =
        ListenerConfig { name: name("l"), connector: name("ldap"), open: OpenRule::Eager, max_connections: 1 };
    let origin = Role::Hub { listeners: vec![listener], open: OpenTimers::default(), selection: Selection::default() };
    let target_timeout = Duration::from_millis(1500);
    let mut w = World {
        now: Instant::from_nanos(1),
        nodes: [node(origin, &limits, dialect, 1), node(Role::Agent { target_timeout }, &limits, dialect, 2)],
        halves: Default::default(),
        queues: Default::default(),
        connected: true,
        challenges: 0,
        aborted: false,
        open: false,
        window_max: limits.stream_window_max_bytes,
        dialect,
    };
    w.halves[0].may_leave = initial;
    let up = SessionUp { session: KEY, plane: Plane::Tunnel, peer: None, replica: None, initial_window: initial };
    let candidate = Candidate {
        agent_id: agent("a"),
        instance: Instance(1),
        fence: FENCE,
        session: KEY,
        owner: name("hub"),
        local: true,
        rank: 0,
        weight: 1,
    };
    let attach = Attach { agent_id: agent("a"), session: KEY, fence: FENCE, connectors: vec![name("ldap")] };
    for n in &mut w.nodes {
        n.shard.on_note(w.now, ControlNote::SessionUp(up.clone()), &mut n.out);
    }
    let [o, a] = &mut w.nodes;
    o.shard.on_note(w.now, ControlNote::Routes(Arc::from([candidate.at(name("ldap"))])), &mut o.out);
    a.shard.on_note(w.now, ControlNote::Attach(attach), &mut a.out);
    let sock = SockKey { ix: 0, generation: 0 };
    o.stream = o.shard.open(w.now, ListenerIx(0), sock, &mut o.out).ok();
    w.settle();
    w
}

/// One stream is what the model says it is.
pub fn stream_window(data: &[u8]) {
    let mut tape = Tape::new(data);
    let mut w = world(&mut tape);
    for _ in 0..OPS_MAX {
        if tape.is_at_end() {
            break;
        }
        w.step(&mut tape);
    }
    w.end();
}

impl World {
    fn step(&mut self, tape: &mut Tape<'_>) {
        let n = tape.below(2);
        match tape.below(12) {
            0..=2 => {
                let size = tape.size();
                self.write(n, size);
            }
            3 => self.finish(n),
            4 | 5 => {
                let most = tape.size() as u64;
                self.take(n, most);
            }
            6 => {
                let budget = if tape.one_in(2) { tape.size() } else { usize::MAX };
                self.transmit(n, budget);
            }
            7 | 8 => {
                for _ in 0..=tape.below(6) {
                    self.deliver(n);
                }
            }
            9 => {
                let pause = Duration::from_millis(u64::from(tape.byte()));
                self.pass(pause);
            }
            10 if tape.one_in(4) => self.abort(n),
            10 => self.cut(),
            _ => self.resume(tape.below(4)),
        }
    }

    /// The socket of node `n` writes what it may.
    fn write(&mut self, n: usize, size: usize) {
        let node = &mut self.nodes[n];
        let Some(stream) = node.stream.filter(|_| !node.over && !self.halves[n].ended) else { return };
        let room = node.shard.read_budget(stream).min(size);
        if room == 0 {
            return;
        }
        let half = &mut self.halves[n];
        let bytes = payload(n as u128, half.wrote.len() as u64, room);
        half.wrote.extend_from_slice(&bytes);
        node.shard.on_socket(self.now, stream, SockEvent::Data(bytes), &mut node.out);
        self.settle();
    }

    fn finish(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some(stream) = node.stream.filter(|_| !node.over && !self.halves[n].ended) else { return };
        self.halves[n].ended = true;
        node.shard.on_socket(self.now, stream, SockEvent::Eof, &mut node.out);
        self.settle();
    }

    /// The socket of node `n` takes what was written to it.
    fn take(&mut self, n: usize, most: u64) {
        let node = &mut self.nodes[n];
        let half = &mut self.halves[1 - n];
        let Some(stream) = node.stream.filter(|_| !node.over) else { return };
        let waits = half.arrived.len() as u64 - half.taken;
        let event = if waits > 0 {
            half.taken += waits.min(most);
            SockEvent::Written(waits.min(most))
        } else if half.got_end && !half.took_end {
            half.took_end = true;
            SockEvent::ShutDown
        } else {
            return;
        };
        node.shard.on_socket(self.now, stream, event, &mut node.out);
        self.settle();
    }

    fn abort(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some(stream) = node.stream.filter(|_| !node.over && !node.closed) else { return };
        node.over = true;
        self.aborted = true;
        node.shard.on_socket(self.now, stream, SockEvent::Aborted, &mut node.out);
        self.settle();
    }

    fn cut(&mut self) {
        self.connected = false;
        self.queues = Default::default();
        for n in &mut self.nodes {
            n.session.on_connection_lost(self.now);
        }
    }

    /// The session goes on, unless an answer gets lost on the way.
    fn resume(&mut self, lost: usize) {
        if self.connected {
            return;
        }
        self.challenges = self.challenges.wrapping_add(1);
        let (dialler, acceptor) = (Secret([self.challenges; 16]), Secret([self.challenges ^ 0x80; 16]));
        let [o, a] = &mut self.nodes;
        let request = a.session.resume_request(&dialler);
        if lost == 1 {
            return;
        }
        let accept = o.session.accept_resume(self.now, &request, &dialler, &acceptor).expect("an honest resumption");
        if lost == 2 {
            o.session.on_connection_lost(self.now);
            return;
        }
        a.session.on_resume_accepted(self.now, &accept, &dialler, &acceptor).expect("an honest answer");
        self.connected = true;
    }

    fn transmit(&mut self, n: usize, budget: usize) -> bool {
        let mut batch = TxBatch::default();
        let mut released: Vec<Released> = Vec::new();
        let node = &mut self.nodes[n];
        node.session.poll_transmit(self.now, budget, &mut batch, &mut released);
        for r in released {
            node.shard.on_released(self.now, r.cid, KEY, r.bytes, &mut node.out);
        }
        let messages: Vec<Bytes> = batch.messages.iter().map(TxMessage::to_bytes).collect();
        for message in &messages {
            self.judge(n, message);
        }
        let sent = !messages.is_empty();
        self.queues[n].extend(messages);
        self.settle();
        sent
    }

    /// Whether the model lets this message leave node `n`.
    fn judge(&mut self, n: usize, message: &Bytes) {
        let mut frames = Vec::new();
        let number = decode(self.dialect, message, &WireLimits::ESTABLISHED, &mut frames).expect("a message");
        if number == 0 || number <= self.nodes[n].number {
            return;
        }
        assert_eq!(number, self.nodes[n].number + 1, "a gap in the numbers");
        self.nodes[n].number = number;
        for frame in frames {
            let Frame::Stream { body, .. } = frame else { continue };
            assert!(!self.nodes[n].said_end, "{} after the stream's end (S4)", body.kind());
            let [up, down] = &mut self.halves;
            let (mine, other) = if n == 0 { (up, down) } else { (down, up) };
            match body {
                Body::Data { off, bytes } => {
                    assert_eq!(off, mine.left as u64, "DATA is not contiguous (S9)");
                    let end = mine.left + bytes.len();
                    assert_eq!(mine.wrote.get(mine.left..end), Some(&bytes[..]), "not what was written (S1)");
                    assert!(end as u64 <= mine.may_leave, "more than the credit that arrived (B4)");
                    mine.left = end;
                }
                Body::Fin { final_off } => {
                    let whole = mine.ended && mine.left == mine.wrote.len() && !mine.left_end;
                    assert!(whole && final_off == mine.left as u64, "FIN before everything (S2)");
                    mine.left_end = true;
                }
                Body::Credit { consumed, limit } => {
                    assert!(consumed >= other.told.0 && limit >= other.told.1, "CREDIT falls (B4)");
                    assert!(consumed <= other.taken + u64::from(other.took_end), "CREDIT before consumption (B1)");
                    assert!(limit <= other.taken + 1 + self.window_max, "more credit than a window (B1)");
                    other.told = (consumed, limit);
                }
                Body::Rst { .. } | Body::OpenAck { result: Err(_) } => self.nodes[n].said_end = true,
                Body::Open(_) | Body::OpenAck { result: Ok(()) } | Body::Resume(_) => {}
            }
        }
    }

    /// The oldest message of node `n` arrives.
    fn deliver(&mut self, n: usize) -> bool {
        let Some(message) = self.queues[n].pop_front() else { return false };
        let to = 1 - n;
        let mut frames = Vec::new();
        let node = &mut self.nodes[to];
        node.session.on_message(self.now, &message, &mut frames).expect("honest messages");
        for frame in frames {
            let Frame::Stream { cid, epoch, body } = frame else { continue };
            if let Body::Credit { limit, .. } = &body {
                self.halves[to].may_leave = self.halves[to].may_leave.max(*limit);
            }
            if let Body::Open(open) = &body {
                self.halves[1].may_leave = open.limit;
            }
            self.open |= matches!(body, Body::OpenAck { result: Ok(()) });
            node.shard.on_frame(self.now, KEY, cid, epoch, body, &mut node.out);
        }
        self.settle();
        true
    }

    fn settle(&mut self) {
        for n in 0..2 {
            let node = &mut self.nodes[n];
            if let Some((stream, _)) = node.out.targets.pop() {
                assert!(node.stream.is_none(), "a second target (S6)");
                node.stream = Some(stream);
                let sock = SockKey { ix: 1, generation: 0 };
                node.shard.on_target(self.now, stream, Ok(sock), &mut node.out);
            }
            let mut released = Vec::new();
            for (_, frame) in node.out.frames.drain(..) {
                node.session.send(self.now, frame, &mut released);
            }
            assert!(node.out.targets.is_empty());
            node.out.observed.clear();
            assert!(node.out.notes.is_empty(), "{:?}", node.out.notes);
            for (_, op) in std::mem::take(&mut node.out.socks) {
                self.sock_op(n, &op);
            }
            self.nodes[n].shard.check_invariants();
            self.nodes[n].session.check_invariants();
        }
    }

    fn sock_op(&mut self, n: usize, op: &SockOp) {
        let half = &mut self.halves[1 - n];
        let node = &mut self.nodes[n];
        if node.over && matches!(op, SockOp::Abort(_)) {
            return;
        }
        assert!(!node.over && !node.closed, "{op:?} after the end (S4)");
        match op {
            SockOp::Write(bytes) => {
                assert!(!half.got_end, "bytes after the end (S2)");
                half.arrived.extend_from_slice(bytes);
                assert!(half.wrote.starts_with(&half.arrived), "not what was written (S1)");
                let waits = half.arrived.len() as u64 - half.taken;
                assert!(waits <= self.window_max, "{waits} bytes wait for a socket (B1)");
            }
            SockOp::ShutDown => {
                assert!(half.ended && half.arrived == half.wrote, "a false end (S2)");
                half.got_end = true;
            }
            SockOp::Readable => {}
            SockOp::Abort(code) => {
                assert!(self.aborted || !self.open, "{code} without a cause");
                node.over = true;
                self.aborted = true;
            }
            SockOp::Close => {
                assert!(self.halves.iter().all(|h| h.ended && h.arrived == h.wrote), "closed too early (S3)");
                node.closed = true;
            }
        }
    }

    fn pass(&mut self, pause: Duration) {
        self.now = self.now.after(pause);
        let mut dead = false;
        for node in &mut self.nodes {
            if node.session.poll_timeout().is_some_and(|d| d.at <= self.now) {
                dead |= node.session.handle_timeout(self.now) == SessionEvent::Dead;
                assert!(node.session.poll_timeout().is_none_or(|d| d.at > self.now), "no progress (B9)");
            }
            if node.shard.poll_timeout().is_some_and(|d| d.at <= self.now) {
                node.shard.handle_timeout(self.now, &mut node.out);
            }
        }
        self.settle();
        if dead {
            self.cut();
        }
    }

    /// Everything is delivered and taken, and both sockets end.
    fn end(&mut self) {
        for _ in 0..100_000 {
            self.resume(0);
            let mut worked = false;
            for n in 0..2 {
                self.finish(n);
                worked |= self.transmit(n, usize::MAX);
                while self.deliver(n) {
                    worked = true;
                }
                let before = (self.halves[1 - n].taken, self.halves[1 - n].took_end);
                self.take(n, u64::MAX);
                worked |= before != (self.halves[1 - n].taken, self.halves[1 - n].took_end);
            }
            if !worked {
                // Only an ACK may still be due.
                if self.nodes.iter().all(|n| n.session.queue_depth() == 0) {
                    break;
                }
                self.pass(Duration::from_millis(20));
            }
        }
        for (n, node) in self.nodes.iter().enumerate() {
            assert_eq!(node.shard.streams(), 0, "node {n} keeps the stream (B5)");
            assert_eq!((node.session.queue_depth(), node.session.inflight_bytes()), (0, 0), "in flight (B4)");
            assert_eq!((node.session.held_bytes(), node.shard.held_bytes()), (0, 0), "held (B5)");
            assert!(node.over || node.closed || node.stream.is_none(), "node {n}'s socket hears nothing (S5)");
        }
        for half in self.halves.iter().filter(|_| !self.aborted) {
            assert!(half.arrived == half.wrote && half.took_end, "bytes or their end are missing (S2)");
        }
    }
}

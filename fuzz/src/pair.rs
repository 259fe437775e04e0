//! `pair` (verification (e) 10): a real hub and a real agent, honest both, over
//! a wire that the tape delays, cuts and heals, with sockets that write, stall,
//! half-close and abort as the tape says. Judged: what sockets get is what the
//! others wrote, in order, once, and its end is no false one (S1, S2, S3, S9),
//! one connect per cid (S6), no reset without a cause (L1), and that after the
//! tape has ended and the wire is healed everything finishes and nothing is
//! left (S4, S5, B4, B5).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use nowconnect_core::error::{CloseCode, RstCode};
use nowconnect_core::id::{Cid, ConnKey, ListenerIx, SessionId, SockKey, StreamKey, TargetIx};
use nowconnect_core::mux::{Input, NodeOut};
use nowconnect_core::observed::Observed;
use nowconnect_core::principal::{AgentGrant, HubGrant, Principal};
use nowconnect_core::registry::MemoryRegistry;
use nowconnect_core::session::TxBatch;
use nowconnect_core::shard::{SockEvent, SockOp};
use nowconnect_core::time::{Deadline, Instant};
use nowconnect_core::wire::{Codec, Dialect, Plane};

use crate::tape::{Tape, payload, says};

mod nodes;

use nodes::{Machine, nodes};

const HUB: usize = 0;
const AGENT: usize = 1;
const OPS_MAX: usize = 600;
const CLIENTS_MAX: usize = 6;
const WINDOW: Duration = Duration::from_secs(20);

/// A client's socket, or its target's.
struct Sock {
    node: usize,
    key: SockKey,
    stream: StreamKey,
    client: usize,
    /// Bytes that the outside wants to write, and those the node took.
    wants: u64,
    wrote: u64,
    wants_end: bool,
    ended: bool,
    got: u64,
    unwritten: u64,
    got_end: bool,
    stalled: bool,
    over: bool,
    /// It was reset, or aborted by itself.
    broken: bool,
    aborted: bool,
}

impl Sock {
    fn tag(client: usize, node: usize) -> u128 {
        (client as u128 + 1) << 64 | node as u128
    }
}

/// One connection; queue 0 flows to the agent.
struct Wire {
    keys: [ConnKey; 2],
    queues: [VecDeque<Bytes>; 2],
    /// A node wants it closed, once what it said has arrived.
    closing: [bool; 2],
    open: bool,
}

struct World {
    now: Instant,
    nodes: [Machine; 2],
    outs: [NodeOut; 2],
    wires: Vec<Wire>,
    socks: Vec<Sock>,
    asked: Vec<StreamKey>,
    dials: Vec<TargetIx>,
    cids: BTreeMap<Cid, usize>,
    connected: BTreeMap<Cid, u32>,
    /// Client by client: a reset of its stream has a cause.
    excused: Vec<bool>,
    suspended: [Option<Instant>; 2],
    /// Those each node had before this step.
    sessions: [Vec<SessionId>; 2],
    registry: MemoryRegistry,
    codec: Codec,
    keys: u32,
}

fn world(flags: u8) -> World {
    let now = Instant::from_nanos(1);
    let mut outs = [NodeOut::default(), NodeOut::default()];
    let nodes = nodes(flags, now, &mut outs);
    World {
        now,
        nodes,
        outs,
        wires: Vec::new(),
        socks: Vec::new(),
        asked: Vec::new(),
        dials: Vec::new(),
        cids: BTreeMap::new(),
        connected: BTreeMap::new(),
        excused: Vec::new(),
        suspended: [None; 2],
        sessions: [Vec::new(), Vec::new()],
        registry: MemoryRegistry::default(),
        codec: if flags & 1 == 0 { Codec::BinaryV2 } else { Codec::JsonV1 },
        keys: 0,
    }
}

/// Over any wire, what is written arrives, or its loss is seen as an abort.
pub fn pair(data: &[u8]) {
    let mut tape = Tape::new(data);
    let mut w = world(tape.byte());
    w.settle();
    if !tape.one_in(4) {
        w.run(3);
    }
    for _ in 0..OPS_MAX {
        if tape.is_at_end() {
            break;
        }
        w.step(&mut tape);
    }
    w.heal();
}

impl World {
    fn step(&mut self, tape: &mut Tape<'_>) {
        let sock = tape.below(self.socks.len());
        match tape.below(18) {
            0 | 1 => self.client(),
            2..=4 => {
                let size = tape.size() as u64;
                if let Some(s) = self.socks.get_mut(sock).filter(|s| !s.wants_end) {
                    s.wants += size;
                }
            }
            5 => {
                if let Some(s) = self.socks.get_mut(sock) {
                    s.wants_end = true;
                }
            }
            6 if tape.one_in(4) => self.abort(sock),
            6 | 7 => {
                if let Some(s) = self.socks.get_mut(sock) {
                    s.stalled = !s.stalled;
                }
            }
            8 => {
                self.deliver(HUB, 1 + tape.below(8));
            }
            9 => {
                self.deliver(AGENT, 1 + tape.below(8));
            }
            10 => {
                let budget = if tape.one_in(2) { tape.size() } else { usize::MAX };
                self.transmit(HUB, budget);
            }
            11 => {
                let budget = if tape.one_in(2) { tape.size() } else { usize::MAX };
                self.transmit(AGENT, budget);
            }
            12 => {
                let chunk = tape.size();
                self.read(sock, chunk);
            }
            13 => {
                let most = tape.size() as u64;
                self.write(sock, most);
            }
            14 => {
                let pause = tape.pause();
                self.pass(pause);
            }
            15 if tape.one_in(2) => self.cut(),
            15 => {
                self.answer_target(tape.one_in(4));
            }
            16 => {
                self.answer_dial(tape.one_in(4));
            }
            _ => {
                self.run(1 + tape.below(3));
            }
        }
    }

    fn input(&mut self, n: usize, input: Input) {
        self.nodes[n].handle(self.now, input, &mut self.outs[n]);
        self.settle();
    }

    fn key(&mut self) -> u32 {
        self.keys += 1;
        self.keys
    }

    fn sock(&mut self, node: usize, key: SockKey, stream: StreamKey, client: usize) {
        let (wants, wrote, got, unwritten) = (0, 0, 0, 0);
        let (wants_end, ended, got_end, stalled) = (false, false, false, false);
        let (over, broken, aborted) = (false, false, false);
        self.socks.push(Sock {
            node,
            key,
            stream,
            client,
            wants,
            wrote,
            wants_end,
            ended,
            got,
            unwritten,
            got_end,
            stalled,
            over,
            broken,
            aborted,
        });
    }

    fn client(&mut self) {
        if self.excused.len() >= CLIENTS_MAX {
            return;
        }
        let key = SockKey { ix: self.key(), generation: 0 };
        let Machine::Hub(hub) = &mut self.nodes[HUB] else { return };
        let Ok(stream) = hub.open(self.now, ListenerIx(0), key, &mut self.outs[HUB]) else { return };
        self.sock(HUB, key, stream, self.excused.len());
        // Until it is open it may be refused, by whomever.
        self.excused.push(false);
        self.settle();
    }

    fn abort(&mut self, ix: usize) {
        let Some(s) = self.socks.get_mut(ix).filter(|s| !s.over) else { return };
        (s.over, s.broken, s.aborted) = (true, true, true);
        self.excused[s.client] = true;
        let (node, stream) = (s.node, s.stream);
        self.input(node, Input::Socket { stream, event: SockEvent::Aborted });
    }

    /// The node reads what the outside wrote, at most `chunk`.
    fn read(&mut self, ix: usize, chunk: usize) -> bool {
        let Some((node, stream)) = self.socks.get(ix).filter(|s| !s.over && !s.ended).map(|s| (s.node, s.stream))
        else {
            return false;
        };
        let s = &self.socks[ix];
        let left = s.wants - s.wrote;
        if left == 0 {
            if !s.wants_end {
                return false;
            }
            self.socks[ix].ended = true;
            self.input(node, Input::Socket { stream, event: SockEvent::Eof });
            return true;
        }
        let room = self.nodes[node].room(stream).min(chunk) as u64;
        let len = room.min(left);
        if len == 0 {
            return false;
        }
        let s = &mut self.socks[ix];
        let bytes = payload(Sock::tag(s.client, node), s.wrote, usize::try_from(len).expect("a chunk"));
        s.wrote += len;
        self.input(node, Input::Socket { stream, event: SockEvent::Data(bytes) });
        true
    }

    /// The outside takes what the node wrote, at most `most`.
    fn write(&mut self, ix: usize, most: u64) -> bool {
        let Some(s) = self.socks.get_mut(ix).filter(|s| !s.over && !s.stalled) else { return false };
        let (node, stream) = (s.node, s.stream);
        let event = if s.unwritten > 0 {
            let n = s.unwritten.min(most);
            s.unwritten -= n;
            SockEvent::Written(n)
        } else if std::mem::take(&mut s.got_end) {
            SockEvent::ShutDown
        } else {
            return false;
        };
        self.input(node, Input::Socket { stream, event });
        true
    }

    fn answer_target(&mut self, refuse: bool) -> bool {
        if self.asked.is_empty() {
            return false;
        }
        let stream = self.asked.remove(0);
        let cid = self.nodes[AGENT].parts().0.stream(stream).map(|s| s.cid);
        let client = cid.and_then(|cid| self.cids.get(&cid)).copied();
        if refuse {
            if let Some(client) = client {
                self.excused[client] = true;
            }
            self.input(AGENT, Input::Target { stream, result: Err(RstCode::Refused) });
            return true;
        }
        let key = SockKey { ix: self.key(), generation: 0 };
        if let Some(client) = client {
            self.sock(AGENT, key, stream, client);
        }
        self.input(AGENT, Input::Target { stream, result: Ok(key) });
        true
    }

    fn answer_dial(&mut self, refuse: bool) -> bool {
        let Some(target) = self.dials.pop() else { return false };
        if refuse {
            self.input(AGENT, Input::DialFailed { target });
            return true;
        }
        let keys = [self.key(), self.key()].map(|ix| ConnKey { ix, generation: 0 });
        let dialect = Dialect { codec: self.codec, plane: Plane::Tunnel };
        self.wires.push(Wire { keys, queues: Default::default(), closing: [false; 2], open: true });
        let principal = Principal::Agent(AgentGrant { subject: "a".to_owned(), connectors: None, expires: None });
        self.input(HUB, Input::Accepted { conn: keys[HUB], dialect, principal });
        self.input(AGENT, Input::Connected { target, conn: keys[AGENT], dialect, peer: HubGrant::default() });
        true
    }

    /// Puts what a node has to say on its wires.
    fn transmit(&mut self, n: usize, budget: usize) -> bool {
        let mut sent = false;
        for ix in 0..self.wires.len() {
            if !self.wires[ix].open || self.wires[ix].closing[n] {
                continue;
            }
            let mut batch = TxBatch::default();
            let key = self.wires[ix].keys[n];
            self.nodes[n].transmit(self.now, key, budget, &mut batch, &mut self.outs[n]);
            let messages = batch.messages.iter().map(nowconnect_core::session::TxMessage::to_bytes);
            let before = self.wires[ix].queues[n].len();
            self.wires[ix].queues[n].extend(messages);
            sent |= self.wires[ix].queues[n].len() > before;
            self.settle();
        }
        sent
    }

    /// Delivers what node `from` said, at most `count` messages a wire.
    fn deliver(&mut self, from: usize, count: usize) -> bool {
        let mut worked = false;
        for ix in 0..self.wires.len() {
            for _ in 0..count {
                let w = &mut self.wires[ix];
                if !w.open {
                    break;
                }
                let to = 1 - from;
                let conn = w.keys[to];
                if let Some(message) = w.queues[from].pop_front() {
                    self.input(to, Input::Message { conn, message });
                } else if w.closing[from] {
                    self.close(ix);
                } else {
                    break;
                }
                worked = true;
            }
        }
        worked
    }

    fn close(&mut self, ix: usize) {
        let w = &mut self.wires[ix];
        if std::mem::replace(&mut w.open, false) {
            let keys = w.keys;
            for (n, conn) in keys.into_iter().enumerate() {
                self.input(n, Input::Disconnected { conn, cause: CloseCode::Transport });
            }
        }
    }

    /// Every connection breaks; what is on the way is lost.
    fn cut(&mut self) {
        for ix in 0..self.wires.len() {
            self.close(ix);
        }
        self.wires.retain(|w| w.open);
    }

    /// Carries out what the nodes want.
    fn settle(&mut self) {
        let hub = self.nodes[HUB].parts().0;
        for s in self.socks.iter().filter(|s| s.node == HUB && !s.over) {
            if let Some(stream) = hub.stream(s.stream).filter(|st| st.cid != Cid(0)) {
                self.cids.insert(stream.cid, s.client);
            }
        }
        for n in [HUB, AGENT] {
            self.nodes[n].check();
            let mut out = std::mem::take(&mut self.outs[n]);
            for event in out.observed.drain(..) {
                self.observe(n, &event);
            }
            self.dials.append(&mut out.dial);
            for (stream, _) in out.targets.drain(..) {
                if let Some(st) = self.nodes[AGENT].parts().0.stream(stream) {
                    let times = self.connected.entry(st.cid).or_default();
                    *times += 1;
                    assert_eq!(*times, 1, "a target is connected twice for one cid (S6)");
                }
                self.asked.push(stream);
            }
            for (sock, op) in out.socks.drain(..) {
                self.sock_op(n, sock, &op);
            }
            for (token, op) in out.registry.drain(..) {
                let millis = 1_000_000 + self.now.as_nanos() / 1_000_000;
                let result = self.registry.execute(millis, &op);
                self.nodes[n].handle(self.now, Input::Registry { token, result }, &mut self.outs[n]);
            }
            for (key, _) in out.close.drain(..) {
                if let Some(ix) = self.wires.iter().position(|w| w.keys[n] == key && w.open) {
                    let mut batch = TxBatch::default();
                    self.nodes[n].transmit(self.now, key, usize::MAX, &mut batch, &mut self.outs[n]);
                    let messages = batch.messages.iter().map(nowconnect_core::session::TxMessage::to_bytes);
                    self.wires[ix].queues[n].extend(messages);
                    self.wires[ix].closing[n] = true;
                }
            }
        }
        for n in [HUB, AGENT] {
            self.sessions[n] = self.nodes[n].parts().1.iter().map(|(_, e)| e.session.id()).collect();
        }
        let quiet = |o: &NodeOut| {
            o.socks.is_empty()
                && o.registry.is_empty()
                && o.close.is_empty()
                && o.targets.is_empty()
                && o.dial.is_empty()
        };
        if !self.outs.iter().all(quiet) {
            self.settle();
        }
    }

    fn observe(&mut self, n: usize, event: &Observed) {
        if let Observed::SessionSuspended { .. } = event {
            self.suspended[n] = Some(self.now);
        } else if let Observed::SessionResumed { .. } | Observed::SessionUp { .. } = event {
            self.suspended[n] = None;
        } else if let Observed::SessionLost { .. } = event {
            let long = |at: &Option<Instant>| at.is_some_and(|at| self.now.since(at) >= WINDOW);
            let here = |m: &Machine, id: &SessionId| m.parts().1.find(*id).is_some();
            let shared = |id: &&SessionId| !here(&self.nodes[n], id) && here(&self.nodes[1 - n], id);
            // A session that the other node never heard of, or lost before, is no loss.
            let lost = self.sessions[n].iter().any(|id| shared(&id));
            assert!(!lost || self.suspended.iter().any(long), "a session is lost that could go on (L1)");
            self.excused.fill(true);
        }
    }

    fn sock_op(&mut self, n: usize, key: SockKey, op: &SockOp) {
        let Some(ix) = self.socks.iter().position(|s| s.key == key) else {
            assert!(matches!(op, SockOp::Abort(_)), "{op:?} on a target that nobody waits for (S7)");
            return;
        };
        let client = self.socks[ix].client;
        let other = self.socks.iter().filter(|s| s.client == client && s.node != n).map(|s| (s.wrote, s.ended));
        let others: Vec<(u64, bool)> = other.collect();
        let open = self.nodes[n].parts().0.stream(self.socks[ix].stream).is_some_and(|s| s.open);
        let s = &mut self.socks[ix];
        if std::mem::take(&mut s.aborted) && matches!(op, SockOp::Abort(_)) {
            return;
        }
        assert!(!s.over, "{op:?} after the end of its socket (S4)");
        match op {
            SockOp::Write(bytes) => {
                assert!(!s.got_end, "bytes after the end of a half (S2)");
                assert!(says(Sock::tag(client, 1 - n), s.got, bytes), "not what the other side wrote (S1)");
                s.got += bytes.len() as u64;
                s.unwritten += bytes.len() as u64;
                assert!(others.iter().any(|(wrote, _)| s.got <= *wrote), "more than the other side wrote (S1)");
            }
            SockOp::ShutDown => {
                s.got_end = true;
                assert!(others.contains(&(s.got, true)), "an end that is not the other side's (S2)");
            }
            SockOp::Readable => {}
            SockOp::Abort(code) => {
                (s.over, s.broken) = (true, true);
                let never_opened = n == HUB && !open && s.got == 0;
                assert!(self.excused[client] || never_opened, "{code} without a cause (L1)");
                self.excused[client] = true;
            }
            SockOp::Close => {
                // A client that came and went without a word opens nothing.
                let probe = s.wrote == 0 && others.is_empty();
                assert!(s.ended && (probe || others.contains(&(s.got, true))), "closed before both ends (S3)");
                s.over = true;
            }
        }
    }

    fn pass(&mut self, pause: Duration) {
        let end = self.now.after(pause);
        let mut again = 0;
        while let Some(due) = Deadline::earliest(self.nodes[HUB].due(), self.nodes[AGENT].due()).filter(|d| d.at <= end)
        {
            again = if due.at > self.now { 0 } else { again + 1 };
            assert!(again < 32, "{} is due again and again (B9)", due.why);
            self.now = self.now.max(due.at);
            for n in [HUB, AGENT] {
                if self.nodes[n].due().is_some_and(|d| d.at <= self.now) {
                    self.nodes[n].time_out(self.now, &mut self.outs[n]);
                    self.settle();
                }
            }
        }
        self.now = end;
    }

    /// Everything that can happen now happens, `rounds` times; whether anything did.
    fn run(&mut self, rounds: usize) -> bool {
        let mut worked = false;
        for _ in 0..rounds {
            worked = self.answer_dial(false) | self.answer_target(false);
            for n in [HUB, AGENT] {
                worked |= self.transmit(n, usize::MAX) | self.deliver(n, usize::MAX);
            }
            for ix in 0..self.socks.len() {
                worked |= self.read(ix, 64 << 10) | self.write(ix, u64::MAX);
            }
            if !worked {
                break;
            }
        }
        worked
    }

    /// The wire is perfect from now on and all sockets come to their end.
    fn heal(&mut self) {
        let end = self.now.after(Duration::from_secs(180));
        while self.now < end {
            for s in &mut self.socks {
                (s.stalled, s.wants_end) = (false, true);
            }
            for _ in 0..10_000 {
                if !self.run(1) {
                    break;
                }
            }
            if self.socks.iter().all(|s| s.over) && self.asked.is_empty() && self.idle() {
                break;
            }
            // As fast as a round trip: probes are answered.
            let due = Deadline::earliest(self.nodes[HUB].due(), self.nodes[AGENT].due());
            let next = due.map_or(Duration::from_millis(1), |d| d.at.since(self.now));
            self.pass(next.max(Duration::from_micros(1)));
        }
        for s in &self.socks {
            assert!(s.over, "a socket of client {} at node {} hangs (S5, L1)", s.client, s.node);
            let fine = s.broken
                || (s.wrote == 0 && s.got == 0)
                || self.socks.iter().any(|o| o.client == s.client && o.node != s.node && o.wrote == s.got);
            assert!(fine, "bytes are missing (S2)");
        }
        for (client, excused) in self.excused.iter().enumerate() {
            let broken = self.socks.iter().any(|s| s.client == client && s.broken);
            assert!(*excused || !broken, "a stream broke without a cause (L1)");
        }
        assert!(self.idle(), "something is left (B4, B5)");
    }

    /// No stream, and nothing on the way.
    fn idle(&self) -> bool {
        self.nodes.iter().all(|m| {
            let (shard, mux) = m.parts();
            let quiet = |s: &nowconnect_core::session::Session| s.inflight_bytes() == 0 && s.queue_depth() == 0;
            shard.streams() == 0 && mux.budget().held() == 0 && mux.iter().all(|(_, e)| quiet(&e.session))
        })
    }
}

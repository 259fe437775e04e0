//! Random sockets, deliveries and pressure against a perfect wire: what a socket
//! gets is what the other one wrote, in order, to the end or to an abort (S1 to
//! S5, A3), and nothing is left at the end (B5).

use super::*;
use crate::credit::Pressure;
use crate::id::Cid;
use crate::shard::SockOp;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Byte `k` that side `side` of stream `cid` writes.
fn byte(cid: Cid, side: usize, k: u64) -> u8 {
    (k.wrapping_mul(31).wrapping_add(k / 251).wrapping_add(cid.counter() * 7).wrapping_add(side as u64 * 101)) as u8
}

/// A socket as the outside sees it.
#[derive(Debug)]
struct Sock {
    stream: StreamKey,
    cid: Cid,
    side: usize,
    /// Bytes written by the outside and not read by the node, then read.
    offered: u64,
    read: u64,
    eof: bool,
    eof_said: bool,
    /// Bytes got, and how many of them the kernel took.
    got: u64,
    taken: u64,
    shut_due: bool,
    saw_eof: bool,
    /// Terminal causes seen (S4).
    ends: u32,
    aborted: bool,
    /// By the outside.
    gone: bool,
    /// Told that it may not be read.
    paused: bool,
}

struct Net {
    bench: Bench,
    socks: BTreeMap<SockKey, Sock>,
    targets: VecDeque<StreamKey>,
    next_sock: u32,
}

impl Net {
    fn new() -> Self {
        Self { bench: Bench::new(), socks: BTreeMap::new(), targets: VecDeque::new(), next_sock: 0 }
    }

    fn node(side: usize) -> usize {
        if side == 0 { ORIGIN } else { AGENT }
    }

    fn add(&mut self, stream: StreamKey, side: usize) {
        let cid = self.bench.shards[Self::node(side)].stream(stream).unwrap().cid;
        let sock = Sock {
            stream,
            cid,
            side,
            offered: 0,
            read: 0,
            eof: false,
            eof_said: false,
            got: 0,
            taken: 0,
            shut_due: false,
            saw_eof: false,
            ends: 0,
            aborted: false,
            gone: false,
            paused: false,
        };
        self.socks.insert(SockKey { ix: self.next_sock, generation: 0 }, sock);
        self.next_sock += 1;
    }

    fn peer(&self, cid: Cid, side: usize) -> Option<&Sock> {
        self.socks.values().find(|s| s.cid == cid && s.side != side)
    }

    /// Executes what the shards want of the outside.
    fn settle(&mut self) {
        self.bench.flush();
        for n in [ORIGIN, AGENT] {
            for (key, op) in std::mem::take(&mut self.bench.outs[n].socks) {
                let Some(s) = self.socks.get(&key) else { continue };
                let (cid, side) = (s.cid, s.side);
                if s.gone && matches!(op, SockOp::Abort(_)) {
                    // The socket aborted by itself; the shard may say so too.
                    continue;
                }
                assert_eq!(s.ends, 0, "no operation after the end (S4): {op:?}");
                let (written, ended) = self.peer(cid, side).map_or((0, false), |p| (p.read, p.eof_said));
                let s = self.socks.get_mut(&key).unwrap();
                match op {
                    SockOp::Write(b) => {
                        assert!(!s.shut_due && !s.saw_eof, "no byte after the end");
                        for x in &b {
                            assert_eq!(*x, byte(cid, 1 - side, s.got), "S1 at {}", s.got);
                            s.got += 1;
                        }
                        assert!(s.got <= written, "S1: not written by the other socket");
                    }
                    SockOp::ShutDown => {
                        assert!(ended && s.got == written, "S2: {} of {written}", s.got);
                        s.shut_due = true;
                    }
                    SockOp::Readable => s.paused = false,
                    SockOp::Abort(_) => {
                        s.ends += 1;
                        s.aborted = true;
                    }
                    SockOp::Close => {
                        assert!(s.saw_eof && s.eof_said, "closed only after both ends (S3)");
                        s.ends += 1;
                    }
                }
            }
        }
        let targets = std::mem::take(&mut self.bench.outs[AGENT].targets);
        self.targets.extend(targets.into_iter().map(|(k, _)| k));
        for note in std::mem::take(&mut self.bench.notes) {
            let ShardNote::NeedRoute { connector, question, .. } = note else { panic!("honest shards, yet {note:?}") };
            let answer = ControlNote::RouteAnswer { connector, question, result: Err(RstCode::NoRoute) };
            self.bench.note(ORIGIN, answer);
            self.settle();
        }
    }

    /// Reads a socket as the driver does; true if something happened.
    fn read(&mut self, key: SockKey) -> bool {
        let s = &self.socks[&key];
        if s.ends > 0 || s.eof_said || s.paused {
            return false;
        }
        let (n, stream) = (Self::node(s.side), s.stream);
        let left = s.offered - s.read;
        if left == 0 && !s.eof {
            return false;
        }
        let budget = self.bench.shards[n].read_budget(stream) as u64;
        let s = self.socks.get_mut(&key).unwrap();
        if budget == 0 {
            s.paused = true;
            return false;
        }
        let event = if left == 0 {
            s.eof_said = true;
            SockEvent::Eof
        } else {
            let take = left.min(budget).min(20_000);
            let bytes: Vec<u8> = (s.read..s.read + take).map(|k| byte(s.cid, s.side, k)).collect();
            s.read += take;
            SockEvent::Data(bytes.into())
        };
        self.bench.socket(n, stream, event);
        self.settle();
        true
    }

    /// The kernel takes some of what was written to a socket.
    fn take(&mut self, key: SockKey, most: u64) -> bool {
        let s = self.socks.get_mut(&key).unwrap();
        if s.ends > 0 {
            return false;
        }
        let n = (s.got - s.taken).min(most);
        s.taken += n;
        let (node, stream) = (Self::node(s.side), s.stream);
        let event = if n > 0 {
            SockEvent::Written(n)
        } else if s.shut_due && !s.saw_eof && s.taken == s.got {
            s.saw_eof = true;
            SockEvent::ShutDown
        } else {
            return false;
        };
        self.bench.socket(node, stream, event);
        self.settle();
        true
    }

    fn connect(&mut self, ok: bool) {
        let Some(stream) = self.targets.pop_front() else { return };
        let alive = self.bench.shards[AGENT].stream(stream).is_some();
        if ok && alive {
            self.add(stream, 1);
            self.bench.target(stream, Ok(self.next_sock - 1));
        } else if alive {
            self.bench.target(stream, Err(RstCode::Refused));
        } else {
            self.bench.target(stream, Ok(self.next_sock));
            self.next_sock += 1;
        }
        self.settle();
    }

    fn pick(&self, ix: usize) -> Option<SockKey> {
        if self.socks.is_empty() { None } else { self.socks.keys().nth(ix % self.socks.len()).copied() }
    }

    fn step(&mut self, op: u8, ix: usize, amount: u64) {
        match op {
            0 if self.socks.len() < 12 => {
                let key = self.bench.open(self.next_sock);
                self.add(key, 0);
            }
            1 => self.connect(!amount.is_multiple_of(5)),
            2 => {
                if let Some(s) = self.pick(ix).and_then(|k| self.socks.get_mut(&k))
                    && !s.eof
                {
                    s.offered += amount;
                }
            }
            3 => {
                if let Some(s) = self.pick(ix).and_then(|k| self.socks.get_mut(&k)) {
                    s.eof = true;
                }
            }
            4 if amount.is_multiple_of(4) => {
                if let Some(key) = self.pick(ix)
                    && self.socks[&key].ends == 0
                {
                    let s = self.socks.get_mut(&key).unwrap();
                    s.ends += 1;
                    (s.aborted, s.gone) = (true, true);
                    let (n, stream) = (Self::node(s.side), s.stream);
                    self.bench.socket(n, stream, SockEvent::Aborted);
                }
            }
            5 | 6 => {
                if let Some(key) = self.pick(ix) {
                    self.read(key);
                }
            }
            7 => {
                if let Some(key) = self.pick(ix) {
                    self.take(key, amount);
                }
            }
            8 => {
                let level = [Pressure::Low, Pressure::Half, Pressure::High][ix % 3];
                for n in 0..3 {
                    self.bench.shards[n].set_pressure(self.bench.now, level);
                }
            }
            9 => {
                self.bench.now = self.bench.now.after(Duration::from_millis(amount % 50));
                self.timeouts();
            }
            _ => {
                for _ in 0..=amount % 8 {
                    self.bench.deliver([LINK_O, LINK_W, TUNNEL_W, TUNNEL_A][ix % 4]);
                    self.settle();
                }
            }
        }
        self.settle();
    }

    fn timeouts(&mut self) {
        for n in 0..3 {
            while self.bench.shards[n].poll_timeout().is_some_and(|d| d.at <= self.bench.now) {
                self.bench.shards[n].handle_timeout(self.bench.now, &mut self.bench.outs[n]);
                self.settle();
            }
        }
    }

    /// Everybody ends in order; all that is possible happens.
    fn finish(&mut self) {
        for n in 0..3 {
            self.bench.shards[n].set_pressure(self.bench.now, Pressure::Low);
        }
        self.timeouts();
        loop {
            let mut any = false;
            while !self.targets.is_empty() {
                self.connect(true);
            }
            for s in self.socks.values_mut() {
                s.eof = true;
            }
            for key in self.socks.keys().copied().collect::<Vec<_>>() {
                any |= self.read(key) | self.take(key, u64::MAX);
            }
            for from in [LINK_O, LINK_W, TUNNEL_W, TUNNEL_A] {
                any |= self.bench.deliver(from);
                self.settle();
            }
            self.timeouts();
            if !any && self.targets.is_empty() {
                break;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn sockets_see_a_perfect_wire(
        ops in prop::collection::vec((0u8..14, 0usize..12, 0u64..120_000), 1..250)
    ) {
        let mut net = Net::new();
        for (op, ix, amount) in ops {
            net.step(op, ix, amount);
        }
        net.finish();
        for (key, s) in &net.socks {
            prop_assert_eq!(s.ends, 1, "every socket has one end (S4): {:?} {:?}", key, s);
            if let Some(peer) = net.peer(s.cid, s.side) {
                if s.aborted && !peer.aborted {
                    // The other socket had all and had ended before (S5).
                    prop_assert!(s.gone && peer.saw_eof && peer.eof_said, "{:?} {:?}", s, peer);
                }
                if !s.aborted {
                    prop_assert_eq!(s.got, peer.read, "{:?} {:?}", s, peer);
                    prop_assert!(peer.aborted || peer.read == peer.offered, "all of it arrived");
                }
            } else {
                prop_assert!(s.aborted, "without a target a client is refused (L12)");
            }
        }
        net.bench.assert_empty();
    }
}

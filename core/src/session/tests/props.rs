//! Two sessions over a connection that breaks at any message, against naive
//! models.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Open(bool, u64),
    Data(bool, u64, usize),
    Fin(bool, u64),
    Credit(bool, u64, u64, u64),
    Rst(bool, u64),
    Status(bool, u64),
    /// One side transmits with this budget; the messages go on the wire.
    Transmit(bool, usize),
    /// So many messages of one direction arrive.
    Arrive(bool, usize),
    /// The connection breaks: everything on the wire is lost.
    Cut,
    /// A resumption; its answer is lost when false.
    Resume(bool),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let n = 1u64..6;
    prop_oneof![
        1 => (any::<bool>(), n.clone()).prop_map(|(s, n)| Op::Open(s, n)),
        4 => (any::<bool>(), n.clone(), 1usize..40_000).prop_map(|(s, n, len)| Op::Data(s, n, len)),
        1 => (any::<bool>(), n.clone()).prop_map(|(s, n)| Op::Fin(s, n)),
        2 => (any::<bool>(), n.clone(), 0u64..1000, 0u64..1000).prop_map(|(s, n, c, l)| Op::Credit(s, n, c, l)),
        1 => (any::<bool>(), n).prop_map(|(s, n)| Op::Rst(s, n)),
        1 => (any::<bool>(), 0u64..100).prop_map(|(s, w)| Op::Status(s, w)),
        6 => (any::<bool>(), 1usize..200_000).prop_map(|(s, b)| Op::Transmit(s, b)),
        6 => (any::<bool>(), 1usize..6).prop_map(|(s, n)| Op::Arrive(s, n)),
        1 => Just(Op::Cut),
        2 => prop::bool::weighted(0.8).prop_map(Op::Resume),
        2 => (1u64..50).prop_map(Op::Wait),
    ]
}

/// What one side said about one stream, and what the other heard.
#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    opened: u32,
    bytes: u64,
    fin: Option<u64>,
    consumed: u64,
    limit: u64,
    rst: bool,
}

#[derive(Default)]
struct Side {
    said: BTreeMap<u64, Said>,
    heard: BTreeMap<u64, Said>,
    status_said: Option<u64>,
    status_heard: Option<u64>,
    queued: u64,
    released: u64,
}

struct World {
    now: Instant,
    sessions: [Session; 2],
    /// Messages on their way from side 0 and from side 1.
    wire: [VecDeque<Bytes>; 2],
    sides: [Side; 2],
}

impl World {
    fn new(dialect: Dialect, depth: u32, inflight: u64) -> Self {
        let make = |n| {
            let config = SessionConfig { send_queue_depth: depth, inflight_bytes: inflight, ..config(dialect) };
            Session::new(config, Seed::from_u64(n), at(0))
        };
        Self { now: at(0), sessions: [make(1), make(2)], wire: Default::default(), sides: Default::default() }
    }

    fn send(&mut self, from: usize, n: u64, body: Body) {
        // Streams of the two directions have cids of their own.
        let cid = Cid::new(Incarnation(from as u64), 0, n);
        let mut released = Vec::new();
        self.sessions[from].send(self.now, Frame::stream(cid, E, body), &mut released);
        self.sides[from].released += released.iter().map(|r| r.bytes).sum::<u64>();
    }

    /// The byte of a half at an offset, so that any gap or doubling shows.
    fn byte(n: u64, off: u64) -> u8 {
        (n.wrapping_mul(31) ^ off.wrapping_mul(0x9e37_79b9) >> 7) as u8
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Open(side, n) => {
                let from = usize::from(side);
                let said = self.sides[from].said.entry(n).or_default();
                if *said == Said::default() {
                    said.opened = 1;
                    let Frame::Stream { body, .. } = open(n) else { unreachable!() };
                    self.send(from, n, body);
                }
            }
            Op::Data(side, n, len) => {
                let from = usize::from(side);
                let said = self.sides[from].said.entry(n).or_default();
                if said.fin.is_none() && !said.rst {
                    let off = said.bytes;
                    said.bytes += len as u64;
                    self.sides[from].queued += len as u64;
                    let bytes = (off..off + len as u64).map(|o| Self::byte(n, o)).collect::<Vec<_>>().into();
                    self.send(from, n, Body::Data { off, bytes });
                }
            }
            Op::Fin(side, n) => {
                let from = usize::from(side);
                let said = self.sides[from].said.entry(n).or_default();
                if said.fin.is_none() && !said.rst {
                    let final_off = said.bytes;
                    said.fin = Some(final_off);
                    self.send(from, n, Body::Fin { final_off });
                }
            }
            Op::Credit(side, n, more_consumed, more_limit) => {
                let from = usize::from(side);
                let said = self.sides[from].said.entry(n).or_default();
                if !said.rst {
                    said.consumed += more_consumed;
                    said.limit += more_limit;
                    let (consumed, limit) = (said.consumed, said.limit);
                    self.send(from, n, Body::Credit { consumed, limit });
                }
            }
            Op::Rst(side, n) => {
                let from = usize::from(side);
                let said = self.sides[from].said.entry(n).or_default();
                if !said.rst {
                    said.rst = true;
                    let final_off = said.bytes;
                    self.send(from, n, Body::Rst { code: RstCode::Abort, final_off });
                }
            }
            Op::Status(side, window) => {
                let from = usize::from(side);
                self.sides[from].status_said = Some(window);
                self.sessions[from].send(self.now, status(window), &mut Vec::new());
            }
            Op::Transmit(side, budget) => self.transmit(usize::from(side), budget),
            Op::Arrive(side, count) => self.arrive(usize::from(side), count),
            Op::Cut => {
                self.wire = Default::default();
                for s in &mut self.sessions {
                    s.on_connection_lost(self.now);
                }
            }
            Op::Resume(answered) => self.resume(answered),
            Op::Wait(ms) => {
                self.now = self.now.after(Duration::from_millis(ms));
                for s in &mut self.sessions {
                    s.handle_timeout(self.now);
                }
            }
        }
        for s in &self.sessions {
            s.check_invariants();
        }
    }

    fn transmit(&mut self, from: usize, budget: usize) {
        let (mut batch, mut released) = (TxBatch::default(), Vec::new());
        let s = &mut self.sessions[from];
        let wanted = s.wants_transmit(self.now);
        let state = s.poll_transmit(self.now, budget, &mut batch, &mut released);
        assert_eq!(wanted, !batch.messages.is_empty(), "wants_transmit says whether a message comes");
        assert_eq!(state == TxState::More, s.wants_transmit(self.now));
        self.sides[from].released += released.iter().map(|r| r.bytes).sum::<u64>();
        self.wire[from].extend(batch.messages.iter().map(TxMessage::to_bytes));
    }

    fn arrive(&mut self, from: usize, count: usize) {
        let mut frames = Vec::new();
        for m in self.wire[from].drain(..count.min(self.wire[from].len())).collect::<Vec<_>>() {
            self.sessions[1 - from].on_message(self.now, &m, &mut frames).expect("a faithful peer");
        }
        let side = &mut self.sides[from];
        for f in frames {
            if let Frame::Status(s) = f {
                side.status_heard = Some(s.initial_window);
                continue;
            }
            let Frame::Stream { cid, body, .. } = f else { panic!("{} came out", f.kind()) };
            assert_eq!(cid.incarnation(), Incarnation(from as u64));
            let heard = side.heard.entry(cid.counter()).or_default();
            assert!(!heard.rst, "nothing follows RST");
            match body {
                Body::Open(_) => {
                    assert_eq!(*heard, Said::default(), "OPEN comes first");
                    heard.opened += 1;
                }
                Body::Data { off, bytes } => {
                    assert_eq!(off, heard.bytes, "DATA comes in order, exactly once (S9)");
                    assert_eq!(heard.fin, None);
                    assert!(bytes.iter().zip(off..).all(|(b, o)| *b == Self::byte(cid.counter(), o)));
                    heard.bytes += bytes.len() as u64;
                }
                Body::Fin { final_off } => {
                    assert_eq!((final_off, heard.fin), (heard.bytes, None), "FIN comes last, once");
                    heard.fin = Some(final_off);
                }
                Body::Credit { consumed, limit } => {
                    assert!(consumed >= heard.consumed && limit >= heard.limit, "credit never shrinks (B4)");
                    (heard.consumed, heard.limit) = (consumed, limit);
                }
                Body::Rst { .. } => heard.rst = true,
                Body::OpenAck { .. } | Body::Resume(_) => unreachable!(),
            }
        }
    }

    fn resume(&mut self, answered: bool) {
        let [a, b] = &mut self.sessions;
        if a.is_connected() && b.is_connected() {
            return;
        }
        self.wire = Default::default();
        let req = a.resume_request(&DIALLER);
        let accept = b.accept_resume(self.now, &req, &DIALLER, &ACCEPTOR).expect("an honest resumption");
        if answered {
            a.on_resume_accepted(self.now, &accept, &DIALLER, &ACCEPTOR).expect("an honest answer");
        } else {
            a.on_connection_lost(self.now);
        }
    }

    /// Heals everything and compares.
    fn settle(&mut self) {
        self.run(Op::Resume(true));
        for _ in 0..400 {
            self.run(Op::Wait(20));
            for side in [0, 1] {
                self.transmit(side, usize::MAX);
                self.arrive(side, usize::MAX);
            }
        }
        for (s, side) in self.sessions.iter().zip(&self.sides) {
            s.check_invariants();
            assert_eq!((s.inflight_bytes(), s.queue_depth(), s.held_bytes()), (0, 0, 0), "idle is exactly 0 (B4)");
            assert_eq!(side.released, side.queued, "every queued byte is reported once");
            assert_eq!(side.status_heard, side.status_said);
            for (n, said) in &side.said {
                let heard = side.heard.get(n).cloned().unwrap_or_default();
                if said.rst && !heard.rst {
                    assert_eq!((said.opened, heard), (1, Said::default()), "taken back before it left");
                } else if said.rst {
                    assert!(heard.bytes <= said.bytes && heard.consumed <= said.consumed);
                } else {
                    assert_eq!(&heard, said);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_frame_arrives_exactly_once_over_a_connection_that_breaks(
        v2 in any::<bool>(), depth in 1u32..20, inflight in 1u64..200_000,
        ops in proptest::collection::vec(op(), 1..150),
    ) {
        let mut world = World::new(if v2 { V2 } else { V1 }, depth, inflight);
        for op in ops {
            world.run(op);
        }
        world.settle();
    }

    /// B2: DATA never goes past a cap by more than the frame that reaches it.
    #[test]
    fn caps_hold(
        depth in 1u32..50, inflight in 1u64..300_000,
        sizes in proptest::collection::vec((1u64..10, 1usize..70_000), 1..60),
        acks in proptest::collection::vec(0u64..5, 0..30),
    ) {
        let mut s = capped(depth, inflight);
        let mut offs = BTreeMap::<u64, u64>::new();
        for (n, len) in sizes {
            let off = offs.entry(n).or_default();
            send(&mut s, [data(n, *off, len)]);
            *off += len as u64;
        }
        let (mut sent, mut acked) = (0, 0);
        for more in acks.into_iter().chain([0]) {
            let (out, state) = transmit(&mut s, at(0));
            sent += out.len() as u64;
            prop_assert!(s.queue_depth() <= depth);
            prop_assert!(s.inflight_bytes() < inflight + 65_536 + 100);
            match state {
                TxState::Blocked(BlockedBy::QueueDepth) => prop_assert_eq!(s.queue_depth(), depth),
                TxState::Blocked(BlockedBy::InflightBytes) => prop_assert!(s.inflight_bytes() >= inflight),
                TxState::Idle => prop_assert!(!s.wants_transmit(at(0))),
                TxState::More => prop_assert!(false, "an unlimited budget leaves nothing"),
            }
            acked = sent.min(acked + more);
            take(&mut s, at(0), &numbered(0, &[Frame::Ack { received: acked }])).unwrap();
            s.check_invariants();
        }
    }

    /// L7: while several streams have data, none gets more than two quanta
    /// ahead of another.
    #[test]
    fn backlogged_streams_share_evenly(
        sizes in proptest::collection::vec(proptest::collection::vec(1usize..40_000, 10..20), 2..8),
        budget in 1usize..100_000,
    ) {
        let mut s = session(V2);
        let mut left = BTreeMap::new();
        for (n, pieces) in sizes.iter().enumerate() {
            let n = n as u64;
            let mut off = 0;
            for len in pieces {
                send(&mut s, [data(n, off, *len)]);
                off += *len as u64;
            }
            left.insert(n, (0u64, off));
        }
        let mut all_backlogged = true;
        while all_backlogged {
            let mut batch = TxBatch::default();
            let state = s.poll_transmit(at(0), budget, &mut batch, &mut Vec::new());
            for m in &batch.messages {
                for f in decoded(V2, &m.to_bytes()).1 {
                    let Frame::Stream { cid, body: Body::Data { bytes, .. }, .. } = f else { continue };
                    left.get_mut(&cid.counter()).unwrap().0 += bytes.len() as u64;
                    all_backlogged &= left.values().all(|(done, all)| done < all);
                    if !all_backlogged {
                        break;
                    }
                    let most = left.values().map(|(done, _)| *done).max().unwrap();
                    let least = left.values().map(|(done, _)| *done).min().unwrap();
                    prop_assert!(most - least <= 2 * 16_384 + 64, "{least} against {most}");
                }
            }
            prop_assert!(!all_backlogged || state == TxState::More);
        }
    }

    #[test]
    fn credits_coalesce_to_the_maximum_of_each(
        credits in proptest::collection::vec((0u64..1000, 0u64..1000), 1..50),
    ) {
        let mut s = session(V2);
        send(&mut s, credits.iter().map(|(c, l)| credit(1, *c, *l)));
        let consumed = credits.iter().map(|(c, _)| *c).max().unwrap();
        let limit = credits.iter().map(|(_, l)| *l).max().unwrap();
        prop_assert_eq!(transmitted(&mut s, at(0)), [credit(1, consumed, limit)]);
    }

    /// Whatever the bytes are, they are an error or frames, never a panic, and
    /// the books stay right (D2).
    #[test]
    fn hostile_messages_change_no_books(
        msgs in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..20),
        acks in proptest::collection::vec(0u64..6, 0..5),
    ) {
        let mut s = session(V2);
        send(&mut s, [open(1), data(1, 0, 100)]);
        transmit(&mut s, at(0));
        let hostile = msgs.into_iter().map(Bytes::from);
        for m in hostile.chain(acks.into_iter().map(|received| numbered(0, &[Frame::Ack { received }]))) {
            let _ = take(&mut s, at(1), &m);
            s.check_invariants();
        }
    }
}

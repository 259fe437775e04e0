//! `agent_machine` (verification (e) 9): a real agent, its targets, and hubs
//! that are hostile. Judged: no panic and no broken invariant (D2), memory and
//! timers (B3, B5, B9), epochs that rise (O2), targets connected only for an
//! OPEN under the tunnel's own fence (O4) and once per cid (S6), OPEN_ACK that
//! tells the truth (S7), bytes that stay on their stream (I2), the rules of one
//! session as [`Peer`](crate::peer) holds them, and that every OPEN ends (B7).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nowconnect_core::agent::Agent;
use nowconnect_core::config::{AgentConfig, Backoff, ConnectorConfig, DrainTimes, Limits, Liveness};
use nowconnect_core::error::{CloseCode, RstCode};
use nowconnect_core::id::{
    Cid, ConnKey, Epoch, Fence, Incarnation, Instance, Nonce, Secret, SessionId, SockKey, StreamKey, TargetIx,
};
use nowconnect_core::mux::{Check, Input, NodeOut};
use nowconnect_core::observed::Observed;
use nowconnect_core::principal::HubGrant;
use nowconnect_core::rng::Seed;
use nowconnect_core::session::TxBatch;
use nowconnect_core::shard::{SockEvent, SockOp};
use nowconnect_core::time::Instant;
use nowconnect_core::wire::{
    Attachment, Body, Codec, DATA_PAYLOAD_MAX_BYTES, Dialect, Frame, HelloRole, NUMBER_MAX, Plane, ResumeAccept,
    Welcome, WireLimits, decode, encode_message,
};

use crate::peer::{Cast, Peer, agent, name, proof, window_of_the_node};
use crate::tape::{Tape, payload, says};

mod operate;

const BUDGET_BYTES: u64 = 512 << 10;
const STREAMS_MAX: u32 = 12;
const OPS_MAX: usize = 400;
const TARGET_TIMEOUT: Duration = Duration::from_millis(1500);

struct Conn {
    key: ConnKey,
    dialect: Dialect,
    open: bool,
    challenge: Secret<16>,
    /// The session, attempt and position the agent wants to go on with.
    resume: Option<(SessionId, u64, u64)>,
    said_hello: bool,
    session: Option<usize>,
}

/// A session of ours and the fence it has now.
struct Side {
    peer: Peer,
    fence: Fence,
    connected: BTreeSet<Cid>,
}

struct Target {
    stream: StreamKey,
    sock: SockKey,
    cid: Cid,
    side: usize,
    sent: u64,
    ended: bool,
    got: u64,
    unwritten: u64,
    shut: bool,
    over: bool,
    aborted: bool,
}

struct World {
    agent: Agent,
    now: Instant,
    out: NodeOut,
    batch: TxBatch,
    conns: Vec<Conn>,
    sides: Vec<Side>,
    /// Targets asked for: stream, cid, session.
    asked: Vec<(StreamKey, Cid, usize)>,
    targets: Vec<Target>,
    dials: Vec<TargetIx>,
    /// Checks of targets that were asked for.
    checks: Vec<Check>,
    /// What the configuration was drawn from.
    flags: u8,
    cast: Cast,
    highest: Epoch,
    /// What the runs before this one had: a HELLO of theirs may still leave.
    earlier: Vec<(Instance, Epoch)>,
    replay: Vec<(ConnKey, Bytes)>,
    keys: u32,
}

fn config(flags: u8) -> AgentConfig {
    let connector =
        |n: &str| ConnectorConfig { name: name(n), target: "t".to_owned(), priority: 0, weight: 1, health: None };
    AgentConfig {
        agent_id: agent("a"),
        hubs: vec!["1".to_owned(), "2".to_owned(), "3".to_owned()],
        parallel: 1 + u16::from(flags >> 1 & 1),
        connectors: vec![connector("ldap"), connector("web")],
        limits: Limits {
            memory_budget_bytes: BUDGET_BYTES,
            stream_window_initial_bytes: window_of_the_node(),
            stream_window_max_bytes: 64 << 10,
            max_streams: STREAMS_MAX,
            send_queue_depth: 32,
            inflight_bytes: 128 << 10,
            tombstones: 4,
            max_pending_opens: 4,
            max_sessions: 6,
            max_handshakes: 4,
        },
        liveness: Liveness::default(),
        resume_window: Duration::from_secs(if flags & 1 == 0 { 20 } else { 0 }),
        backoff: Backoff::default(),
        target_timeout: TARGET_TIMEOUT,
        handshake_timeout: Duration::from_secs(5),
    }
}

/// An agent among hostile hubs breaks none of its promises.
pub fn agent_machine(data: &[u8]) {
    let mut tape = Tape::new(data);
    let flags = tape.byte();
    let mut out = NodeOut::default();
    let now = Instant::from_nanos(1);
    let agent_under_test = Agent::new(Arc::new(config(flags)), Seed::from_u64(u64::from(flags)), now, &mut out);
    let cast = Cast {
        agents: vec![agent("a"), agent("b")],
        connectors: vec![name("ldap"), name("web"), name("other")],
        fences: Vec::new(),
        cids: Vec::new(),
        incarnations: vec![Incarnation(1), Incarnation(2)],
        instances: vec![agent_under_test.tunnels().instance(), Instance(1)],
    };
    let mut w = World {
        agent: agent_under_test,
        now,
        out,
        batch: TxBatch::default(),
        conns: Vec::new(),
        sides: Vec::new(),
        asked: Vec::new(),
        targets: Vec::new(),
        dials: Vec::new(),
        checks: Vec::new(),
        flags,
        cast,
        highest: Epoch(0),
        earlier: Vec::new(),
        replay: Vec::new(),
        keys: 0,
    };
    w.settle();
    for _ in 0..OPS_MAX {
        if tape.is_at_end() {
            break;
        }
        w.step(&mut tape);
        w.settle();
        for (conn, message) in std::mem::take(&mut w.replay) {
            w.deliver(conn, &message);
        }
        assert_eq!(w.agent.tunnels().highest_epoch(), w.highest, "the highest epoch is the last taken (O2)");
    }
    w.end();
}

impl World {
    fn step(&mut self, tape: &mut Tape<'_>) {
        match tape.below(20) {
            0 => self.dialled(tape),
            1 | 2 => self.welcome(tape),
            3 => self.target(tape),
            4..=6 => self.socket(tape),
            7 | 8 => self.transmit_some(tape),
            9 => {
                let pause = tape.pause();
                self.pass(pause);
            }
            10..=12 => self.speak(tape, true),
            13..=16 => self.speak(tape, false),
            17 => self.raw(tape),
            18 => self.open(tape),
            _ => match tape.below(8) {
                0 if tape.one_in(4) => self.input(Input::Drain(DrainTimes::at_once(tape.pause()))),
                1 if tape.one_in(8) => self.input(Input::Shutdown),
                7 if tape.one_in(2) => self.operate(tape),
                _ => self.disconnect(tape),
            },
        }
    }

    fn input(&mut self, input: Input) {
        self.agent.handle(self.now, input, &mut self.out);
    }

    fn key(&mut self) -> u32 {
        self.keys += 1;
        self.keys
    }

    fn dialled(&mut self, tape: &mut Tape<'_>) {
        if self.dials.is_empty() {
            return;
        }
        let target = self.dials.remove(tape.below(self.dials.len()));
        if tape.one_in(4) {
            return self.input(Input::DialFailed { target });
        }
        self.conns.retain(|c| c.open);
        let key = ConnKey { ix: self.key(), generation: 0 };
        let codec = if tape.one_in(3) { Codec::JsonV1 } else { Codec::BinaryV2 };
        let dialect = Dialect { codec, plane: Plane::Tunnel };
        self.conns.push(Conn {
            key,
            dialect,
            open: true,
            challenge: Secret([0; 16]),
            resume: None,
            said_hello: false,
            session: None,
        });
        self.input(Input::Connected { target, conn: key, dialect, peer: HubGrant::default() });
        self.settle();
        if !tape.one_in(8) {
            let ix = self.conns.len() - 1;
            self.say_welcome(tape, ix);
        }
    }

    fn welcome(&mut self, tape: &mut Tape<'_>) {
        let ix = tape.below(self.conns.len());
        if self.conns.get(ix).is_some_and(|c| c.open) {
            self.say_welcome(tape, ix);
        }
    }

    /// WELCOME to the agent's HELLO, or a refusal.
    fn say_welcome(&mut self, tape: &mut Tape<'_>, ix: usize) {
        self.transmit(self.conns[ix].key, usize::MAX);
        let n = self.key();
        let c = &self.conns[ix];
        let (key, dialect) = (c.key, c.dialect);
        if !c.said_hello || c.session.is_some() {
            return;
        }
        if tape.one_in(8) {
            let code = tape.pick(CloseCode::ALL).unwrap_or(CloseCode::Busy);
            let refusal = Frame::GoAway { code, retry_after_ms: tape.number() };
            return self.deliver(key, &encode_message(dialect, 0, &[refusal]));
        }
        let mine = Secret([n as u8; 16]);
        let wanted = c.resume.filter(|_| !tape.one_in(4));
        let side = self.sides.iter().position(|s| wanted.is_some_and(|(id, ..)| id == s.peer.id));
        let resumed = side.zip(wanted).map(|(s, (id, attempt, _))| {
            let p = &self.sides[s].peer;
            // Never between what came and what was sent: we could not go on.
            let received = match tape.below(16) {
                14 => tape.number().min(p.received),
                15 => NUMBER_MAX,
                _ => p.received,
            };
            let label = b"nowconnect resume accept v1\0";
            let mut right = proof(&p.secret, label, id, attempt, received, &[&c.challenge.0, &mine.0]);
            right.0[0] ^= u8::from(tape.one_in(16));
            ResumeAccept { received, proof: right }
        });
        let initial_window = if tape.one_in(3) { tape.number() } else { 32_768 };
        let epoch = if tape.one_in(6) { Epoch(tape.number()) } else { Epoch(self.highest.0.saturating_add(1)) };
        let fence = Fence { epoch, nonce: Nonce(u64::from(n)) };
        let (id, secret) = (SessionId(u128::from(n)), Secret([n as u8; 32]));
        let welcome = Welcome {
            replica_id: tape.pick(&["hub-1", "hub-2", "hub-3"]).map_or_else(|| name("hub-1"), name),
            incarnation: tape.pick(&self.cast.incarnations).unwrap_or_default(),
            namespace: name("default"),
            region: None,
            session: side.map_or(id, |s| self.sides[s].peer.id),
            secret: resumed.is_none().then_some(secret),
            resumed,
            attachment: Some(Attachment { epoch, nonce: fence.nonce, firm: tape.one_in(2) }).filter(|_| side.is_none()),
            resume_window_ms: if tape.one_in(4) { tape.number() } else { 20_000 },
            challenge: mine,
            initial_window,
            capabilities: Vec::new(),
            signature: None,
        };
        let wanted_from = wanted.map(|(.., received)| received);
        self.deliver(key, &encode_message(dialect, 0, &[Frame::Welcome(Box::new(welcome))]));
        if self.agent.mux().carried_by(key).is_none() {
            return;
        }
        let s = side.unwrap_or(self.sides.len());
        if side.is_none() {
            assert!(epoch > self.highest, "an epoch that does not rise is taken (O2)");
            self.highest = epoch;
            let peer = Peer::new(u128::from(n) << 32, dialect, id, secret, initial_window);
            self.sides.push(Side { peer, fence, connected: BTreeSet::new() });
            self.cast.fences.push(fence);
        } else {
            let p = &mut self.sides[s].peer;
            p.window = p.window.max(initial_window);
            let unheard = p.unheard(wanted_from.unwrap_or(0));
            self.replay.extend(unheard.into_iter().map(|m| (key, m)));
        }
        self.conns[ix].session = Some(s);
    }

    /// A target is connected, or not.
    fn target(&mut self, tape: &mut Tape<'_>) {
        if self.asked.is_empty() {
            return;
        }
        let (stream, cid, side) = self.asked.remove(tape.below(self.asked.len()));
        if tape.one_in(4) {
            let code = tape.pick(&[RstCode::Refused, RstCode::Unreachable, RstCode::TargetTimeout]);
            return self.input(Input::Target { stream, result: Err(code.unwrap_or(RstCode::Refused)) });
        }
        let sock = SockKey { ix: self.key(), generation: 0 };
        self.targets.push(Target {
            stream,
            sock,
            cid,
            side,
            sent: 0,
            ended: false,
            got: 0,
            unwritten: 0,
            shut: false,
            over: false,
            aborted: false,
        });
        self.input(Input::Target { stream, result: Ok(sock) });
    }

    fn socket(&mut self, tape: &mut Tape<'_>) {
        let alive: Vec<usize> = (0..self.targets.len()).filter(|i| !self.targets[*i].over).collect();
        let Some(ix) = tape.pick(&alive) else { return };
        let stream = self.targets[ix].stream;
        let room = self.agent.read_budget(stream);
        let t = &mut self.targets[ix];
        let event = match tape.below(12) {
            0 => {
                (t.over, t.aborted) = (true, true);
                SockEvent::Aborted
            }
            1 if !t.ended => {
                t.ended = true;
                SockEvent::Eof
            }
            2..=4 if t.unwritten > 0 => {
                let n = t.unwritten.min(if tape.one_in(2) { tape.size() as u64 } else { u64::MAX });
                t.unwritten -= n;
                SockEvent::Written(n)
            }
            5 if t.shut && t.unwritten == 0 => SockEvent::ShutDown,
            _ if room > 0 && !t.ended => {
                let len = tape.size().min(room);
                let bytes = payload(u128::from(t.sock.ix) << 96, t.sent, len);
                t.sent += len as u64;
                SockEvent::Data(bytes)
            }
            _ => return,
        };
        self.input(Input::Socket { stream, event });
    }

    fn disconnect(&mut self, tape: &mut Tape<'_>) {
        let ix = tape.below(self.conns.len());
        let Some(c) = self.conns.get_mut(ix).filter(|c| c.open) else { return };
        c.open = false;
        let conn = c.key;
        self.input(Input::Disconnected { conn, cause: CloseCode::Transport });
    }

    fn session(&self, tape: &mut Tape<'_>) -> Option<(ConnKey, usize)> {
        let c = self.conns.get(tape.below(self.conns.len())).filter(|c| c.open)?;
        Some((c.key, c.session?))
    }

    fn speak(&mut self, tape: &mut Tape<'_>, good: bool) {
        let Some((key, s)) = self.session(tape) else { return };
        let side = &mut self.sides[s];
        let frames = if good { side.peer.good_step(tape) } else { side.peer.frames(tape, &self.cast) };
        for message in side.peer.encode_all(frames) {
            self.deliver(key, &message);
        }
    }

    /// An OPEN as it should be.
    fn open(&mut self, tape: &mut Tape<'_>) {
        let Some((key, s)) = self.session(tape) else { return };
        let side = &mut self.sides[s];
        let frame = side.peer.good_open(tape, side.fence, agent("a"), name("ldap"));
        let message = side.peer.encode(&[frame]);
        self.deliver(key, &message);
    }

    fn raw(&mut self, tape: &mut Tape<'_>) {
        let ix = tape.below(self.conns.len());
        let Some(c) = self.conns.get(ix).filter(|c| c.open) else { return };
        let (key, session) = (c.key, c.session);
        let from = tape.below(self.sides.len());
        let replay = self.sides.get(from).and_then(|s| tape.pick(&s.peer.said));
        let message = match replay {
            Some(m) if tape.one_in(2) => m,
            _ => {
                let len = usize::from(tape.byte());
                Bytes::copy_from_slice(tape.raw(len))
            }
        };
        if let Some(side) = session.and_then(|s| self.sides.get_mut(s)) {
            side.peer.said_raw(&message);
        }
        self.deliver(key, &message);
    }

    fn deliver(&mut self, conn: ConnKey, message: &Bytes) {
        let session = self.agent.mux().carried_by(conn);
        let side = self.conns.iter().find(|c| c.key == conn).and_then(|c| c.session);
        self.settle();
        self.input(Input::Message { conn, message: message.clone() });
        let targets: Vec<StreamKey> = self.out.targets.drain(..).map(|(key, _)| key).collect();
        let (Some(s), Some(_)) = (side, session) else {
            assert!(targets.is_empty(), "a target before authentication (I3)");
            return self.settle();
        };
        let dialect = self.sides[s].peer.dialect;
        let mut frames = Vec::new();
        let _ = decode(dialect, message, &WireLimits::ESTABLISHED, &mut frames);
        let mut admitted = Vec::new();
        for frame in &frames {
            let side = &mut self.sides[s];
            if let Frame::Epoch(n) = frame
                && n.agent_id == agent("a")
                && n.instance == self.cast.instances[0]
                && n.epoch > self.highest
                && self.agent.tunnels().highest_epoch() >= n.epoch
            {
                self.highest = n.epoch;
                side.fence = Fence { epoch: n.epoch, nonce: n.nonce };
                self.cast.fences.push(side.fence);
            }
            if let Frame::Stream { cid, epoch, body: Body::Open(open) } = frame
                && side.fence == (Fence { epoch: *epoch, nonce: open.nonce })
                && open.agent_id == agent("a")
            {
                admitted.push(*cid);
            }
        }
        for stream in targets {
            let Some(cid) = self.agent.shard().stream(stream).map(|st| st.cid) else { continue };
            assert!(admitted.contains(&cid), "a target is connected for another fence (O4)");
            assert!(self.sides[s].connected.insert(cid), "a target is connected twice for one cid (S6)");
            self.asked.push((stream, cid, s));
        }
        self.settle();
    }

    fn transmit_some(&mut self, tape: &mut Tape<'_>) {
        let ix = tape.below(self.conns.len());
        let Some(key) = self.conns.get(ix).map(|c| c.key) else { return };
        let budget = if tape.one_in(3) { tape.size() } else { usize::MAX };
        self.transmit(key, budget);
    }

    fn transmit(&mut self, key: ConnKey, budget: usize) {
        let mut batch = std::mem::take(&mut self.batch);
        self.agent.poll_transmit(self.now, key, budget, &mut batch, &mut self.out);
        for message in batch.messages.drain(..) {
            self.observe(key, &message.to_bytes());
        }
        batch.bytes = 0;
        self.batch = batch;
    }

    fn observe(&mut self, key: ConnKey, message: &Bytes) {
        let Some(ix) = self.conns.iter().position(|c| c.key == key && c.open) else { return };
        if let Some(s) = self.conns[ix].session {
            for frame in self.sides[s].peer.hear(message).into_iter().flatten() {
                self.judge(s, &frame);
            }
            return;
        }
        let c = &mut self.conns[ix];
        let mut frames = Vec::new();
        decode(c.dialect, message, &WireLimits::ESTABLISHED, &mut frames).expect("the agent speaks the dialect");
        if let Some(Frame::Hello(hello)) = frames.pop() {
            let HelloRole::Agent(me) = &hello.role else { panic!("an agent says it is a hub") };
            let of_run = self.earlier.iter().find(|(run, _)| *run == me.instance).map_or(self.highest, |(_, had)| *had);
            assert!(me.agent_id == agent("a") && me.seen <= of_run, "HELLO tells the truth (O2)");
            c.challenge = hello.challenge;
            c.resume = hello.resume.map(|r| (r.session, r.attempt, r.received));
            c.said_hello = true;
        }
    }

    /// What one session hears of the agent's targets (I2, S7).
    fn judge(&mut self, s: usize, frame: &Frame) {
        let Frame::Stream { cid, body, .. } = frame else { return };
        if self.cast.cids.len() < 64 && !self.cast.cids.contains(cid) {
            self.cast.cids.push(*cid);
        }
        let mut own = self.targets.iter().filter(|t| t.cid == *cid && t.side == s);
        match body {
            Body::OpenAck { result: Ok(()) } => assert!(own.next().is_some(), "OPEN_ACK without a target (S7)"),
            Body::Data { off, bytes } => {
                assert!(own.any(|t| says(u128::from(t.sock.ix) << 96, *off, bytes)), "a stranger's bytes (I2, S1)");
            }
            Body::Open(_)
            | Body::OpenAck { .. }
            | Body::Credit { .. }
            | Body::Fin { .. }
            | Body::Rst { .. }
            | Body::Resume(_) => {}
        }
    }

    fn settle(&mut self) {
        assert!(self.out.registry.is_empty(), "an agent asks no registry");
        // Whatever is asked for outside of a message has no OPEN behind it.
        assert!(self.out.targets.is_empty(), "a target that no OPEN asked for (O4)");
        self.dials.append(&mut self.out.dial);
        self.checks.append(&mut self.out.checks);
        let many = self.checks.len().saturating_sub(16);
        self.checks.drain(..many);
        self.out.wake.clear();
        for event in self.out.observed.drain(..) {
            if let Observed::StartedOver { highest, offered } = event {
                // Nothing of the instance before is left to be confused with.
                assert_eq!(highest, self.highest, "it says which epoch it had");
                assert!(offered <= highest, "nobody starts over for an epoch that rises (O2)");
                assert_eq!(self.agent.mux().len(), 0, "a session outlives its instance");
                self.highest = Epoch(0);
                let before = std::mem::replace(&mut self.cast.instances[0], self.agent.tunnels().instance());
                assert_ne!(before, self.cast.instances[0], "another instance");
                self.earlier.push((before, highest));
            }
        }
        for (sock, op) in std::mem::take(&mut self.out.socks) {
            self.sock_op(sock, &op);
        }
        for (key, _) in std::mem::take(&mut self.out.close) {
            self.transmit(key, usize::MAX);
        }
        self.agent.check_invariants();
        for a in self.agent.shard().attachments() {
            assert!(self.agent.mux().get(a.session).is_some(), "an attachment outlives its session (B5)");
        }
        for t in self.targets.iter().filter(|t| !t.over) {
            assert!(self.agent.shard().stream(t.stream).is_some(), "a target outlives its stream (S7, B5)");
        }
        let frame = (DATA_PAYLOAD_MAX_BYTES as u64 * 4).div_ceil(3) + 256;
        let held = self.agent.mux().budget().held();
        let most = BUDGET_BYTES + frame * u64::from(2 * STREAMS_MAX + 6);
        assert!(held <= most, "{held} bytes are held with a budget of {BUDGET_BYTES} (B3)");
        assert!(self.agent.shard().streams() <= STREAMS_MAX as usize, "more streams than allowed");
    }

    fn sock_op(&mut self, sock: SockKey, op: &SockOp) {
        let t = self.targets.iter_mut().find(|t| t.sock == sock).expect("an operation on a socket of ours");
        if std::mem::take(&mut t.aborted) && matches!(op, SockOp::Abort(_)) {
            return;
        }
        assert!(!t.over, "{op:?} after the end of its target (S4)");
        match op {
            SockOp::Write(bytes) => {
                assert!(!t.shut, "bytes after the end of a half (S2)");
                let source = &self.sides[t.side].peer;
                assert!(source.is_source_of(t.cid, t.got, bytes), "bytes that no hub said on this stream (I1, S1)");
                t.got += bytes.len() as u64;
                t.unwritten += bytes.len() as u64;
            }
            SockOp::ShutDown => assert!(!std::mem::replace(&mut t.shut, true), "two ends of one half"),
            SockOp::Readable => {}
            SockOp::Abort(_) => t.over = true,
            SockOp::Close => {
                assert!(t.ended, "a target that goes on writing is closed (S3)");
                t.over = true;
            }
        }
    }

    fn pass(&mut self, pause: Duration) {
        let end = self.now.after(pause);
        let mut again = 0;
        while let Some(due) = self.agent.poll_timeout().filter(|d| d.at <= end) {
            again = if due.at > self.now { 0 } else { again + 1 };
            assert!(again < 32, "{} is due again and again (B9)", due.why);
            self.now = self.now.max(due.at);
            self.agent.handle_timeout(self.now, &mut self.out);
            self.settle();
        }
        self.now = end;
    }

    /// Targets that do not answer are given up (B7), and when everything is
    /// closed nothing is left (B5).
    fn end(&mut self) {
        self.pass(TARGET_TIMEOUT + Duration::from_millis(1));
        let open = self.targets.iter().filter(|t| !t.over).count();
        assert_eq!(self.agent.shard().streams(), open, "a stream without target after its time (B7)");
        for t in &mut self.targets {
            if !std::mem::replace(&mut t.over, true) {
                t.aborted = true;
                let input = Input::Socket { stream: t.stream, event: SockEvent::Aborted };
                self.agent.handle(self.now, input, &mut self.out);
            }
        }
        for conn in std::mem::take(&mut self.conns).into_iter().filter(|c| c.open).map(|c| c.key) {
            self.input(Input::Disconnected { conn, cause: CloseCode::Transport });
        }
        self.settle();
        self.pass(Duration::from_secs(60));
        assert_eq!(self.agent.shard().streams(), 0, "streams are left (B5)");
        assert_eq!(self.agent.mux().len(), 0, "sessions are left (B5)");
        assert_eq!(self.agent.mux().budget().held(), 0, "bytes are left (B5)");
        assert_eq!(self.agent.shard().poll_timeout(), None, "timers are left (B5)");
    }
}

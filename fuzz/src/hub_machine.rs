//! `hub_machine` (verification (e) 8): a real hub between hostile agents,
//! hostile hubs, clients and a registry that answers late, in any order or
//! not at all. Judged: no panic and no broken invariant (D2, C1-C5), memory,
//! work and timers (B3, B5, B8, B9), strangers' bytes and names (I1, I2, I3),
//! fences (O4), the same rules for one session as [`Peer`](crate::peer) holds
//! them, and that at the end every client has its answer (L12).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nowconnect_core::config::{
    Backoff, DrainTimes, HubConfig, Limits, ListenerConfig, Liveness, Mode, OnExpiry, OpenRule, OpenTimers, PeerConfig,
    RegistryTimers, Selection,
};
use nowconnect_core::error::CloseCode;
use nowconnect_core::hub::{Hub, Unready};
use nowconnect_core::id::{
    AgentId, Cid, ConnKey, Epoch, Fence, Incarnation, Instance, ListenerIx, Name, Nonce, Secret, SessionId, SessionKey,
    SockKey, StreamKey, TargetIx,
};
use nowconnect_core::identity::Proof;
use nowconnect_core::mux::{Input, NodeOut};
use nowconnect_core::principal::Principal;
use nowconnect_core::registry::{
    HubRun, Located, MemoryRegistry, RegistryError, RegistryOp, RegistryReply, RegistryResult, Token,
};
use nowconnect_core::rng::Seed;
use nowconnect_core::session::TxBatch;
use nowconnect_core::shard::SockEvent;
use nowconnect_core::time::Instant;
use nowconnect_core::wire::{Body, Dialect, Frame, WireLimits, decode};

use crate::peer::{Cast, Peer, ads, agent, name, window_of_the_node};
use crate::tape::{Tape, payload};

mod handshakes;
mod notes;
mod operate;
mod verdict;

const BUDGET_BYTES: u64 = 512 << 10;
const STREAMS_MAX: u32 = 12;
const SESSIONS_MAX: u32 = 6;
const CONNS_MAX: usize = 10;
const OPS_MAX: usize = 400;
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection with one of the hostile.
struct Conn {
    key: ConnKey,
    dialect: Dialect,
    open: bool,
    principal: Principal,
    /// The challenge of our HELLO, or of the hub's when it dialled.
    challenge: Secret<16>,
    /// Index of the session it carries, as far as we know.
    session: Option<usize>,
    /// What the hub said it received, when it dialled.
    received: Option<u64>,
    /// The window our HELLO declared.
    window: u64,
    /// By the hub.
    dialled: bool,
    /// The session and attempt the hub wants to go on with.
    resume: Option<(SessionId, u64)>,
    /// Our WELCOME is on the way, or the hub's AUTH is: handshake frames come.
    shaking: bool,
    /// The names that our signature was found to prove.
    proved: Vec<String>,
    /// The session of a WELCOME that the hub still judges.
    welcomed: Option<usize>,
}

/// A session of ours, and what the hub may do with it.
struct Side {
    peer: Peer,
    agent: Option<AgentId>,
    scopes: Vec<Option<Vec<Name>>>,
}

struct Client {
    sock: SockKey,
    stream: StreamKey,
    tag: u128,
    sent: u64,
    ended: bool,
    got: u64,
    unwritten: u64,
    shut: bool,
    over: bool,
    /// It aborted by itself, which the hub may repeat.
    aborted: bool,
}

struct World {
    hub: Hub,
    now: Instant,
    out: NodeOut,
    batch: TxBatch,
    conns: Vec<Conn>,
    sides: Vec<Side>,
    clients: Vec<Client>,
    dials: Vec<TargetIx>,
    asked: Vec<(Token, RegistryOp)>,
    answered: Vec<(Token, RegistryResult)>,
    registry: MemoryRegistry,
    cast: Cast,
    /// Which client speaks under a cid of the hub's own.
    cids: Vec<(Cid, usize)>,
    unscoped: bool,
    /// What the configuration was drawn from.
    flags: u8,
    /// Hubs need no signatures.
    insecure: bool,
    /// What the hub wants signed or judged.
    proofs: Vec<(ConnKey, Proof)>,
    /// Tunnels whose fresh token is to be judged.
    tokens: Vec<SessionKey>,
    keys: u32,
    /// To be said again after a resumption.
    replay: Vec<(ConnKey, Bytes)>,
    /// Between the parts of a split hub.
    notes: notes::Notes,
    /// The end has begun.
    over: bool,
}

fn config(mode: Mode, flags: u8) -> HubConfig {
    let listener = |n: &str, open| ListenerConfig { name: name(n), connector: name(n), open, max_connections: 8 };
    HubConfig {
        replica_id: name("hub-m"),
        namespace: name("default"),
        region: None,
        mode,
        listeners: vec![listener("ldap", OpenRule::Eager), listener("web", OpenRule::FirstByte)],
        peers: vec![
            PeerConfig { url: "1".into(), replica_id: None, host: None },
            PeerConfig { url: "2".into(), replica_id: Some(name("hub-z")), host: Some("z.example".into()) },
        ],
        limits: Limits {
            memory_budget_bytes: BUDGET_BYTES,
            stream_window_initial_bytes: window_of_the_node(),
            stream_window_max_bytes: 64 << 10,
            max_streams: STREAMS_MAX,
            send_queue_depth: 32,
            inflight_bytes: 128 << 10,
            tombstones: 4,
            max_pending_opens: 4,
            max_sessions: SESSIONS_MAX,
            max_handshakes: 4,
        },
        liveness: Liveness::default(),
        resume_window: Duration::from_secs(if flags & 1 == 0 { 20 } else { 0 }),
        backoff: Backoff::default(),
        open: OpenTimers { timeout: OPEN_TIMEOUT, ..OpenTimers::default() },
        selection: Selection::default(),
        registry: RegistryTimers::default(),
        handshake_timeout: Duration::from_secs(5),
        insecure_allow_unscoped: flags & 2 == 0,
        on_expiry: OnExpiry::Keep,
        insecure_mesh: flags & 4 == 0,
    }
}

/// A hub among hostile peers breaks none of its promises.
pub fn hub_machine(data: &[u8]) {
    let mut tape = Tape::new(data);
    let flags = tape.byte();
    let mode = [Mode::Active, Mode::Off, Mode::Shadow][tape.below(3)];
    let mut out = NodeOut::default();
    let now = Instant::from_nanos(1);
    let config = config(mode, flags);
    let unscoped = config.insecure_allow_unscoped;
    let (config, seed) = (Arc::new(config), Seed::from_u64(u64::from(flags)));
    let hub = match flags >> 3 & 3 {
        0 | 1 => Hub::new(config, seed, now, &mut out),
        more => Hub::split(config, seed, now, more, &mut out),
    };
    let cast = Cast {
        agents: vec![agent("a"), agent("b"), agent("a/x")],
        connectors: vec![name("ldap"), name("web"), name("other")],
        fences: vec![Fence { epoch: Epoch(1), nonce: Nonce(1) }],
        cids: Vec::new(),
        incarnations: vec![Incarnation(1), Incarnation(2), hub.run().incarnation],
        instances: vec![Instance(0), Instance(1), Instance(2)],
    };
    let mut w = World {
        hub,
        now,
        out,
        batch: TxBatch::default(),
        conns: Vec::new(),
        sides: Vec::new(),
        clients: Vec::new(),
        dials: Vec::new(),
        asked: Vec::new(),
        answered: Vec::new(),
        registry: MemoryRegistry::default(),
        cast,
        cids: Vec::new(),
        unscoped,
        flags,
        insecure: flags & 4 == 0,
        proofs: Vec::new(),
        tokens: Vec::new(),
        keys: 0,
        replay: Vec::new(),
        notes: notes::Notes::default(),
        over: false,
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
    }
    w.end();
}

impl World {
    fn step(&mut self, tape: &mut Tape<'_>) {
        self.some_notes(tape);
        while !self.proofs.is_empty() && !tape.one_in(4) {
            self.prove(tape);
        }
        while !self.tokens.is_empty() && !tape.one_in(4) {
            self.judge_token(tape);
        }
        match tape.below(20) {
            0 => self.accept(tape),
            1 | 2 => self.hello(tape),
            3 => self.dialled(tape),
            4 => self.welcome(tape),
            5 | 6 => self.registry(tape),
            7 => self.client(tape),
            8..=10 => self.socket(tape),
            11 | 12 => self.transmit_some(tape),
            13 => {
                let pause = tape.pause();
                self.pass(pause);
            }
            14 | 15 => self.speak(tape, true),
            16 | 17 => self.speak(tape, false),
            18 => self.raw(tape),
            _ => match tape.below(8) {
                0 if tape.one_in(4) => {
                    let times = DrainTimes { lameduck: tape.pause(), timeout: tape.pause() };
                    self.input(Input::Drain(times));
                }
                1 if tape.one_in(8) => self.input(Input::Shutdown),
                2 if tape.one_in(4) => self.input(Input::Undrain),
                7 if tape.one_in(2) => self.operate(tape),
                _ => self.disconnect(tape),
            },
        }
    }

    fn input(&mut self, input: Input) {
        self.hub.handle(self.now, input, &mut self.out);
    }

    fn key(&mut self) -> (u32, ConnKey) {
        self.keys += 1;
        (self.keys, ConnKey { ix: self.keys, generation: 0 })
    }

    fn registry(&mut self, tape: &mut Tape<'_>) {
        if tape.one_in(8)
            && let Some((token, result)) = tape.pick(&self.answered)
        {
            return self.input(Input::Registry { token, result });
        }
        if self.asked.is_empty() {
            return;
        }
        let late = tape.one_in(4);
        let (token, op) = self.asked.remove(if late { tape.below(self.asked.len()) } else { 0 });
        let millis = 1_000_000 + self.now.as_nanos() / 1_000_000;
        let result = match tape.below(8) {
            0 => Err(RegistryError::Definite("no".to_owned())),
            1 => Err(RegistryError::Unknown("perhaps".to_owned())),
            2 => Ok(RegistryReply::LeaseHeld { by: Incarnation(5) }),
            3 => Ok(RegistryReply::Stale),
            4 => Ok(RegistryReply::Attachments(vec![self.located(tape)])),
            _ => self.registry.execute(millis, &op),
        };
        self.answered.truncate(8);
        self.answered.push((token, result.clone()));
        self.input(Input::Registry { token, result });
    }

    /// An attachment at a peer.
    fn located(&self, tape: &mut Tape<'_>) -> Located {
        let incarnation = tape.pick(&self.cast.incarnations).unwrap_or_default();
        Located {
            agent_id: tape.pick(&self.cast.agents).unwrap_or_else(|| agent("a")),
            instance: Instance(1),
            hub: HubRun { replica_id: name(if tape.one_in(4) { "hub-z" } else { "hub-b" }), incarnation },
            fence: Fence { epoch: Epoch(100 + tape.below(4) as u64), nonce: Nonce(9) },
            connectors: ads(tape, &self.cast),
            region: None,
        }
    }

    fn client(&mut self, tape: &mut Tape<'_>) {
        let (n, _) = self.key();
        let sock = SockKey { ix: n, generation: 0 };
        let listener = ListenerIx(tape.below(3) as u16);
        let (unready, heard) = (self.hub.unready(listener), self.hub.notes_under_way() == 0);
        let opened = self.hub.open(self.now, listener, sock, &mut self.out);
        // A shard may not have heard yet of what control says.
        if heard {
            assert!(opened.is_ok() || unready.is_some(), "ready, and a client is refused (L6)");
            assert!(opened.is_err() || !matches!(unready, Some(Unready::Full | Unready::Memory)), "{unready:?} (L6)");
        }
        if let Ok(stream) = opened {
            let tag = u128::from(n) << 96;
            let (sent, got, unwritten) = (0, 0, 0);
            let (ended, shut, over, aborted) = (false, false, false, false);
            self.clients.push(Client { sock, stream, tag, sent, ended, got, unwritten, shut, over, aborted });
        }
    }

    /// Something happens at a client's socket.
    fn socket(&mut self, tape: &mut Tape<'_>) {
        let alive: Vec<usize> = (0..self.clients.len()).filter(|i| !self.clients[*i].over).collect();
        let Some(ix) = tape.pick(&alive) else { return };
        let stream = self.clients[ix].stream;
        let room = self.hub.read_budget(stream);
        let c = &mut self.clients[ix];
        let event = match tape.below(12) {
            0 => {
                (c.over, c.aborted) = (true, true);
                SockEvent::Aborted
            }
            1 if !c.ended => {
                c.ended = true;
                SockEvent::Eof
            }
            2..=4 if c.unwritten > 0 => {
                let n = c.unwritten.min(if tape.one_in(2) { tape.size() as u64 } else { u64::MAX });
                c.unwritten -= n;
                SockEvent::Written(n)
            }
            5 if c.shut && c.unwritten == 0 => SockEvent::ShutDown,
            _ if room > 0 && !c.ended => {
                let len = tape.size().min(room);
                let bytes = payload(c.tag, c.sent, len);
                c.sent += len as u64;
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

    /// Frames on a session: what a good peer says, or what the tape says.
    fn speak(&mut self, tape: &mut Tape<'_>, good: bool) {
        let ix = tape.below(self.conns.len());
        let Some((key, Some(s))) = self.conns.get(ix).filter(|c| c.open).map(|c| (c.key, c.session)) else { return };
        let side = &mut self.sides[s];
        let frames = if good { side.peer.good_step(tape) } else { side.peer.frames(tape, &self.cast) };
        let count = frames.len();
        let measured = tape.one_in(4);
        let messages = side.peer.encode_all(frames);
        if measured {
            self.all_notes();
        }
        let before = if measured { Some(self.control_frames_out()) } else { None };
        let (streams, sessions) = (self.hub.streams(), self.hub.mux().len());
        for message in messages {
            self.deliver(key, &message);
        }
        if let Some(before) = before {
            self.all_notes();
            let sent = self.control_frames_out() - before;
            let lost = sessions.saturating_sub(self.hub.mux().len());
            // Each frame may be answered, passed on, and end what it belongs to;
            // a session that goes takes its streams along and may change the status.
            let most = 3 * count + sessions * (1 + lost) + 4 * lost * streams + 4;
            assert!(sent <= most as u64, "{count} frames made the hub send {sent} (B8)");
        }
    }

    /// Sends everything, and says how many frames but DATA left so far.
    fn control_frames_out(&mut self) -> u64 {
        let keys: Vec<ConnKey> = self.conns.iter().filter(|c| c.open).map(|c| c.key).collect();
        for key in keys {
            self.transmit(key, usize::MAX);
        }
        let count = |out: &[u64; 18]| out.iter().sum::<u64>() - out[13];
        let retired: u64 = self.hub.mux().retired().iter().map(|r| count(&r.1)).sum();
        retired + self.hub.mux().iter().map(|(_, e)| count(&e.session.counters().frames_out)).sum::<u64>()
    }

    /// Bytes that are no message, or a message of another time or session.
    fn raw(&mut self, tape: &mut Tape<'_>) {
        let ix = tape.below(self.conns.len());
        let Some(key) = self.conns.get(ix).filter(|c| c.open).map(|c| c.key) else { return };
        // What was said before may have made it a session.
        self.transmit(key, usize::MAX);
        let session = self.conns[ix].session;
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
        let known = self.hub.mux().carried_by(conn).and_then(|k| self.hub.mux().get(k));
        let dialect = known.map(|e| e.session.dialect());
        let attached: Vec<(AgentId, Fence)> =
            self.hub.control().tunnels().map(|t| (t.agent_id.clone(), t.fence)).collect();
        let (carried, streams) = (self.hub.counters().carried, self.hub.streams());
        self.input(Input::Message { conn, message: message.clone() });
        // A split hub has only taken note of it.
        let new = self.hub.counters().carried - carried;
        let mut frames = Vec::new();
        if let Some(dialect) = dialect {
            let _ = decode(dialect, message, &WireLimits::ESTABLISHED, &mut frames);
        } else {
            assert!(self.hub.streams() <= streams, "a stream before authentication (I3)");
        }
        let fenced = |f: &&Frame| {
            let Frame::Stream { epoch, body: Body::Open(open), .. } = f else { return false };
            attached.contains(&(open.agent_id.clone(), Fence { epoch: *epoch, nonce: open.nonce }))
        };
        assert!(new <= frames.iter().filter(fenced).count() as u64, "an OPEN under another fence was taken (O4)");
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
        self.hub.poll_transmit(self.now, key, budget, &mut batch, &mut self.out);
        for message in batch.messages.drain(..) {
            self.observe(key, &message.to_bytes());
        }
        batch.bytes = 0;
        self.batch = batch;
    }

    /// Time passes, and what falls due inside it is done.
    fn pass(&mut self, pause: Duration) {
        let end = self.now.after(pause);
        let mut again = 0;
        while let Some(due) = self.hub.poll_timeout().filter(|d| d.at <= end) {
            again = if due.at > self.now { 0 } else { again + 1 };
            assert!(again < 32, "{} is due again and again (B9)", due.why);
            self.now = self.now.max(due.at);
            self.hub.handle_timeout(self.now, &mut self.out);
            self.settle();
            if self.over {
                self.all_notes();
            }
        }
        self.now = end;
        self.judge_links();
    }

    /// Nobody says anything any more: every client is answered (L12), and when
    /// everything is closed nothing is left (B5).
    fn end(&mut self) {
        // No part waits for another any more.
        self.over = true;
        self.all_notes();
        self.pass(OPEN_TIMEOUT + Duration::from_millis(1));
        for c in self.clients.iter().filter(|c| !c.over) {
            let open = self.hub.stream(c.stream).is_some_and(|s| s.open);
            assert!(open, "a client hangs (L12)");
        }
        for c in &mut self.clients {
            if !std::mem::replace(&mut c.over, true) {
                c.aborted = true;
                let input = Input::Socket { stream: c.stream, event: SockEvent::Aborted };
                self.hub.handle(self.now, input, &mut self.out);
            }
        }
        for conn in std::mem::take(&mut self.conns).into_iter().filter(|c| c.open).map(|c| c.key) {
            self.input(Input::Disconnected { conn, cause: CloseCode::Transport });
        }
        self.settle();
        self.all_notes();
        self.pass(Duration::from_secs(60));
        assert_eq!(self.hub.streams(), 0, "streams are left (B5)");
        assert_eq!(self.hub.mux().len(), 0, "sessions are left (B5)");
        assert_eq!(self.hub.mux().budget().held(), 0, "bytes are left (B5)");
        assert!(self.hub.shards().iter().all(|s| s.poll_timeout().is_none()), "timers are left (B5)");
    }
}

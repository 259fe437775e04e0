//! A small world for core tests: hubs and agents, a network of messages, a
//! registry in memory, sockets that are byte vectors. No clock, no threads:
//! time jumps to the next deadline. The simulator proper is `driver-sim`; this
//! one is just enough to drive whole nodes through their public API.
#![allow(dead_code, reason = "each test file uses its part of the world")]
#![allow(clippy::unwrap_used, reason = "a broken test world should panic")]

mod checks;
mod connections;
mod deployments;
pub(crate) mod notes;
mod registry;
mod sockets;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
pub(crate) use deployments::{agent_config, hub_config};
use notes::{Form, Mail, Pace, Seen};
use nowconnect_core::agent::Agent;
use nowconnect_core::config::{
    AgentConfig, Backoff, ConnectorConfig, HubConfig, Limits, ListenerConfig, Liveness, Mode, OnExpiry, OpenRule,
    OpenTimers, PeerConfig, RegistryTimers, Selection,
};
use nowconnect_core::error::{CloseCode, RstCode};
use nowconnect_core::hub::Hub;
use nowconnect_core::id::{AgentId, ConnKey, ListenerIx, Name, SockKey, StreamKey, TargetIx};
use nowconnect_core::identity::{Proof, Verified};
use nowconnect_core::mux::{Input, NodeOut};
use nowconnect_core::observed::Observed;
use nowconnect_core::principal::{AgentGrant, HubGrant, Principal};
use nowconnect_core::registry::{MemoryRegistry, RegistryError, RegistryOp, RegistryResult, Token};
use nowconnect_core::rng::Seed;
use nowconnect_core::session::TxBatch;
use nowconnect_core::shard::Addressee;
use nowconnect_core::shard::{SockEvent, SockOp};
use nowconnect_core::time::Instant;
use nowconnect_core::wire::{Codec, Dialect, Plane, Signature};

pub(crate) fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}

#[expect(clippy::large_enum_variant, reason = "a handful of nodes")]
enum Machine {
    Hub(Hub),
    Agent(Agent),
}

/// A client or target socket of a node.
#[derive(Default)]
pub(crate) struct Sock {
    pub(crate) stream: Option<StreamKey>,
    /// Bytes the outside has written and the node has not read.
    pub(crate) to_node: VecDeque<Bytes>,
    pub(crate) eof_to_node: bool,
    eof_said: bool,
    /// Bytes the node wrote.
    pub(crate) received: Vec<u8>,
    pub(crate) eof_received: bool,
    pub(crate) aborted: Option<RstCode>,
    pub(crate) closed: bool,
    /// The outside does not read: written bytes stay unconfirmed.
    pub(crate) stalled: bool,
    pub(crate) unconfirmed: u64,
}

pub(crate) struct Node {
    pub(crate) name: String,
    machine: Machine,
    pub(crate) out: NodeOut,
    pub(crate) socks: BTreeMap<SockKey, Sock>,
    next_sock: u32,
    dial_names: Vec<String>,
    pub(crate) records: Vec<Observed>,
    pub(crate) down: bool,
    pub(crate) mail: Mail,
}

struct Conn {
    ends: [(usize, ConnKey); 2],
    /// What is under way, and when it arrives.
    queues: [VecDeque<(Instant, Bytes)>; 2],
    open: bool,
}

/// How targets behave.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Target {
    /// Connects; the test drives the socket.
    Accept,
    /// Echoes, and half-closes after the client did.
    Echo,
    /// Refuses.
    Refuse,
    /// Never answers.
    Hang,
}

pub(crate) struct World {
    /// Of the tokens agents dial with from now on.
    pub(crate) token_expires: Option<Instant>,
    /// The connectors they name.
    pub(crate) token_connectors: Option<Vec<Name>>,
    /// What fresh tokens that come in band are found to grant, in turn.
    pub(crate) judged: VecDeque<Option<AgentGrant>>,
    /// Fresh tokens that came and wait for a verdict.
    pub(crate) tokens: Vec<(usize, nowconnect_core::id::SessionKey, String)>,
    pub(crate) now: Instant,
    pub(crate) nodes: Vec<Node>,
    conns: Vec<Conn>,
    next_conn: u32,
    pub(crate) registry: MemoryRegistry,
    /// Milliseconds its clock is ahead.
    pub(crate) registry_ahead: u64,
    /// Milliseconds its clock stepped back.
    pub(crate) registry_behind: u64,
    pub(crate) registry_down: bool,
    /// Every operation fails at once.
    pub(crate) registry_fails_at_once: bool,
    /// Operations wait.
    pub(crate) registry_held: bool,
    /// Operations wait, but for renewals.
    pub(crate) only_renewals: bool,
    /// Claims wait, and what comes behind one.
    pub(crate) claims_held: bool,
    /// Nodes whose operations get lost.
    pub(crate) registry_deaf: Vec<usize>,
    /// Further names that lead to a node.
    pub(crate) aliases: Vec<(String, String)>,
    /// How long a message takes from one node to the other, either way.
    pub(crate) distances: Vec<([String; 2], Duration)>,
    /// Calls of `handle_timeout`.
    pub(crate) timeouts: u64,
    /// Dials of all nodes.
    pub(crate) dials: u64,
    pub(crate) target: Target,
    /// Those of single agents that behave otherwise.
    pub(crate) targets_of: BTreeMap<usize, Target>,
    /// Checks of targets that were answered.
    pub(crate) checks: u64,
    pub(crate) codec: Codec,
    registry_ops: VecDeque<(usize, Token, RegistryOp)>,
    pub(crate) unreachable: Vec<(String, String)>,
    batch: TxBatch,
    /// Messages are delivered; false holds them in the network.
    pub(crate) deliver: bool,
    /// Hubs whose notes stay where they are, but for [`World::carry`].
    pub(crate) notes_held: Vec<usize>,
    /// The names in a hub's certificate, where they are not just its own.
    pub(crate) certificates: BTreeMap<usize, Vec<String>>,
    /// Hubs whose proofs wait.
    pub(crate) proofs_held: Vec<usize>,
    proofs: VecDeque<(usize, ConnKey, Proof)>,
    /// The exporters of TLS at the dialler and at the acceptor of a link.
    pub(crate) exporters: [Option<[u8; 32]>; 2],
}

impl Drop for World {
    fn drop(&mut self) {
        for node in self.nodes.iter_mut().filter(|n| matches!(n.machine, Machine::Hub(_))) {
            notes::keep(std::mem::take(&mut node.socks).into_iter().map(|(key, s)| Seen {
                hub: node.name.clone(),
                client: key.ix,
                received: s.received,
                eof: s.eof_received,
                closed: s.closed,
                aborted: s.aborted,
            }));
        }
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            now: Instant::from_nanos(1),
            nodes: Vec::new(),
            conns: Vec::new(),
            next_conn: 0,
            registry: MemoryRegistry::default(),
            registry_ahead: 0,
            registry_behind: 0,
            registry_down: false,
            registry_fails_at_once: false,
            registry_held: false,
            only_renewals: false,
            claims_held: false,
            registry_deaf: Vec::new(),
            aliases: Vec::new(),
            distances: Vec::new(),
            timeouts: 0,
            dials: 0,
            target: Target::Echo,
            targets_of: BTreeMap::new(),
            checks: 0,
            codec: Codec::BinaryV2,
            registry_ops: VecDeque::new(),
            unreachable: Vec::new(),
            batch: TxBatch::default(),
            deliver: true,
            notes_held: Vec::new(),
            certificates: BTreeMap::new(),
            proofs_held: Vec::new(),
            proofs: VecDeque::new(),
            exporters: [None; 2],
            token_expires: None,
            token_connectors: None,
            judged: VecDeque::new(),
            tokens: Vec::new(),
        }
    }

    pub(crate) fn hub(&mut self, config: HubConfig, seed: u64) -> usize {
        let mut out = NodeOut::default();
        let dial_names = config.peers.iter().map(|p| p.url.clone()).collect();
        let name = config.replica_id.to_string();
        let (config, seed) = (Arc::new(config), Seed::from_u64(seed));
        let hub = match notes::form() {
            Form::Whole => Hub::new(config, seed, self.now, &mut out),
            Form::Split(shards, _) => Hub::split(config, seed, self.now, shards, &mut out),
        };
        self.push(name, Machine::Hub(hub), out, dial_names)
    }

    pub(crate) fn agent(&mut self, config: AgentConfig, seed: u64) -> usize {
        let mut out = NodeOut::default();
        let dial_names = config.hubs.clone();
        let name = config.agent_id.to_string();
        let agent = Agent::new(Arc::new(config), Seed::from_u64(seed), self.now, &mut out);
        self.push(name, Machine::Agent(agent), out, dial_names)
    }

    fn push(&mut self, name: String, machine: Machine, out: NodeOut, dial_names: Vec<String>) -> usize {
        self.nodes.push(Node {
            name,
            machine,
            out,
            socks: BTreeMap::new(),
            next_sock: 0,
            dial_names,
            records: Vec::new(),
            down: false,
            mail: Mail::default(),
        });
        self.nodes.len() - 1
    }

    pub(crate) fn as_hub(&self, n: usize) -> &Hub {
        match &self.nodes[n].machine {
            Machine::Hub(h) => h,
            Machine::Agent(_) => panic!("node {n} is an agent"),
        }
    }

    pub(crate) fn as_agent(&self, n: usize) -> &Agent {
        match &self.nodes[n].machine {
            Machine::Agent(a) => a,
            Machine::Hub(_) => panic!("node {n} is a hub"),
        }
    }

    pub(crate) fn input(&mut self, n: usize, input: Input) {
        let node = &mut self.nodes[n];
        if node.down {
            return;
        }
        match &mut node.machine {
            Machine::Hub(h) => {
                h.handle(self.now, input, &mut node.out);
                h.check_invariants();
                self.carry_at_once(n);
            }
            Machine::Agent(a) => {
                a.handle(self.now, input, &mut node.out);
                a.check_invariants();
            }
        }
    }

    /// Gives a hub another configuration.
    pub(crate) fn reload_hub(&mut self, n: usize, config: &HubConfig) -> Result<(), nowconnect_core::hub::ReloadError> {
        let node = &mut self.nodes[n];
        let Machine::Hub(h) = &mut node.machine else { panic!("node {n} is an agent") };
        let result = h.reload(self.now, config, Duration::from_secs(60), &mut node.out);
        h.check_invariants();
        node.dial_names = h.control().config().peers.iter().map(|p| p.url.clone()).collect();
        self.carry_at_once(n);
        result
    }

    /// Gives an agent another configuration.
    pub(crate) fn reload_agent(
        &mut self,
        n: usize,
        config: &AgentConfig,
    ) -> Result<(), nowconnect_core::agent::ReloadError> {
        let node = &mut self.nodes[n];
        let Machine::Agent(a) = &mut node.machine else { panic!("node {n} is a hub") };
        let result = a.reload(self.now, config, Duration::from_secs(60), &mut node.out);
        a.check_invariants();
        node.dial_names = a.tunnels().config().hubs.clone();
        result
    }

    /// A client connects to listener 0 of a hub.
    pub(crate) fn client(&mut self, n: usize) -> Result<SockKey, RstCode> {
        self.client_at(n, ListenerIx(0))
    }

    /// A client connects to a listener of a hub.
    pub(crate) fn client_at(&mut self, n: usize, listener: ListenerIx) -> Result<SockKey, RstCode> {
        let node = &mut self.nodes[n];
        let key = SockKey { ix: node.next_sock, generation: 0 };
        node.next_sock += 1;
        node.socks.insert(key, Sock::default());
        let Machine::Hub(h) = &mut node.machine else { panic!("clients connect to hubs") };
        let stream = h.open(self.now, listener, key, &mut node.out);
        h.check_invariants();
        self.carry_at_once(n);
        let node = &mut self.nodes[n];
        match stream {
            Ok(s) => {
                node.socks.get_mut(&key).unwrap().stream = Some(s);
                Ok(key)
            }
            Err(code) => {
                node.socks.remove(&key);
                Err(code)
            }
        }
    }

    pub(crate) fn sock(&mut self, n: usize, key: SockKey) -> &mut Sock {
        self.nodes[n].socks.get_mut(&key).unwrap()
    }

    pub(crate) fn write(&mut self, n: usize, key: SockKey, bytes: impl Into<Bytes>) {
        self.sock(n, key).to_node.push_back(bytes.into());
    }

    pub(crate) fn eof(&mut self, n: usize, key: SockKey) {
        self.sock(n, key).eof_to_node = true;
    }

    pub(crate) fn abort(&mut self, n: usize, key: SockKey) {
        if let Some(stream) = self.sock(n, key).stream {
            self.nodes[n].socks.remove(&key);
            self.input(n, Input::Socket { stream, event: SockEvent::Aborted });
        }
    }

    /// Cuts every connection between two nodes; what is in the network is lost.
    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        let hit: Vec<usize> = (0..self.conns.len())
            .filter(|i| {
                let [(x, _), (y, _)] = self.conns[*i].ends;
                self.conns[*i].open && ((x, y) == (a, b) || (x, y) == (b, a))
            })
            .collect();
        for i in hit {
            self.close_conn(i, CloseCode::Transport);
        }
    }

    /// Loses the messages in the network between two nodes beyond the first `keep`, then cuts.
    fn close_conn(&mut self, i: usize, cause: CloseCode) {
        let c = &mut self.conns[i];
        if !std::mem::replace(&mut c.open, false) {
            return;
        }
        c.queues = [VecDeque::new(), VecDeque::new()];
        let ends = c.ends;
        for (n, conn) in ends {
            self.input(n, Input::Disconnected { conn, cause });
        }
    }

    /// On every connection a part of a message arrives, both ways.
    pub(crate) fn dribble(&mut self) {
        let ends: Vec<_> = self.conns.iter().filter(|c| c.open).flat_map(|c| c.ends).collect();
        for (n, conn) in ends {
            self.input(n, Input::Heard { conn });
        }
    }

    pub(crate) fn crash(&mut self, n: usize) {
        self.nodes[n].down = true;
        for i in 0..self.conns.len() {
            if self.conns[i].ends.iter().any(|(x, _)| *x == n) {
                self.close_conn(i, CloseCode::Transport);
            }
        }
    }

    /// Runs until nothing is left to do at this instant.
    pub(crate) fn settle(&mut self) {
        for _ in 0..200_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the world does not settle");
    }

    /// Whether a node said that its last stream is gone.
    pub(crate) fn drained(&self, n: usize) -> bool {
        self.nodes[n].out.drained
    }

    /// Whether a hub said that its listening sockets are to be closed.
    pub(crate) fn closes_listeners(&self, n: usize) -> bool {
        self.nodes[n].out.close_listeners
    }

    /// Gives a hub one of its notes back.
    fn note(&mut self, n: usize, note: nowconnect_core::shard::Note) {
        let node = &mut self.nodes[n];
        let Machine::Hub(h) = &mut node.machine else { panic!("agents have no notes") };
        h.on_note(self.now, note, &mut node.out);
        h.check_invariants();
    }

    /// The pace that carries notes at once does so after every call.
    fn carry_at_once(&mut self, n: usize) {
        if self.notes_held.contains(&n) || !matches!(notes::form(), Form::Split(_, Pace::AtOnce)) {
            return;
        }
        loop {
            let node = &mut self.nodes[n];
            node.mail.post(self.now, &mut node.out.notes);
            let Some(note) = node.mail.due(self.now) else { return };
            self.note(n, note);
        }
    }

    /// Delivers the oldest note for an addressee; false if there is none.
    pub(crate) fn carry(&mut self, n: usize, to: Addressee) -> bool {
        let node = &mut self.nodes[n];
        node.mail.post(self.now, &mut node.out.notes);
        let Some(note) = node.mail.next_for(to) else { return false };
        self.note(n, note);
        true
    }

    /// Delivers notes that are due: one, if that is all there is to do.
    fn carry_notes(&mut self, only_one: bool) -> bool {
        let mut worked = false;
        for n in 0..self.nodes.len() {
            if self.nodes[n].down || self.notes_held.contains(&n) {
                continue;
            }
            if let Some(note) = self.nodes[n].mail.due(self.now) {
                self.note(n, note);
                worked = true;
                if only_one {
                    return true;
                }
            }
        }
        worked
    }

    pub(crate) fn step(&mut self) -> bool {
        let worked = self.step_outside();
        let late = matches!(notes::form(), Form::Split(_, Pace::Late));
        worked | (!(late && worked) && self.carry_notes(late))
    }

    /// All but notes.
    fn step_outside(&mut self) -> bool {
        let mut worked = false;
        for n in 0..self.nodes.len() {
            worked |= self.execute(n);
        }
        if self.deliver {
            for i in 0..self.conns.len() {
                for side in 0..2 {
                    let queue = &mut self.conns[i].queues[side];
                    if queue.front().is_some_and(|(at, _)| *at <= self.now)
                        && let Some((_, m)) = queue.pop_front()
                    {
                        let (to, conn) = self.conns[i].ends[side];
                        self.input(to, Input::Message { conn, message: m });
                        worked = true;
                    }
                }
            }
        }
        for n in 0..self.nodes.len() {
            worked |= self.feed(n);
        }
        while let Some(i) = self.proofs.iter().position(|(n, ..)| !self.proofs_held.contains(n)) {
            let Some((n, conn, proof)) = self.proofs.remove(i) else { break };
            worked = true;
            self.prove(n, conn, &proof);
        }
        while let Some((n, token, op)) = self.next_registry_op() {
            worked = true;
            let result: RegistryResult = if self.registry_fails_at_once {
                Err(RegistryError::Definite("down".into()))
            } else {
                self.registry.execute(self.registry_millis(), &op)
            };
            self.input(n, Input::Registry { token, result });
        }
        worked
    }

    fn execute(&mut self, n: usize) -> bool {
        let mut out = std::mem::take(&mut self.nodes[n].out);
        let mut worked = false;
        self.nodes[n].mail.post(self.now, &mut out.notes);
        for TargetIx(ix) in out.dial.drain(..) {
            worked = true;
            self.dial(n, usize::from(ix));
        }
        for conn in out.wake.drain(..) {
            worked |= self.transmit(n, conn);
        }
        for (conn, code) in out.close.drain(..) {
            worked = true;
            self.transmit(n, conn);
            if let Some(i) = self.conns.iter().position(|c| c.open && c.ends.contains(&(n, conn))) {
                // What was flushed arrives before the close.
                let side = usize::from(self.conns[i].ends[0] == (n, conn));
                while let Some((_, m)) = self.conns[i].queues[side].pop_front() {
                    let (to, peer_conn) = self.conns[i].ends[side];
                    self.input(to, Input::Message { conn: peer_conn, message: m });
                }
                self.close_conn(i, code);
            }
        }
        for (sock, op) in out.socks.drain(..) {
            worked = true;
            self.sock_op(n, sock, op);
        }
        for (stream, _connector) in out.targets.drain(..) {
            worked = true;
            self.open_target(n, stream);
        }
        for check in out.checks.drain(..) {
            worked = true;
            self.check_target(n, check);
        }
        for (token, op) in out.registry.drain(..) {
            worked = true;
            if !self.registry_down && !self.registry_deaf.contains(&n) {
                self.registry_ops.push_back((n, token, op));
            }
        }
        for (conn, proof) in out.proofs.drain(..) {
            worked = true;
            self.proofs.push_back((n, conn, proof));
        }
        for (session, token) in out.tokens.drain(..) {
            worked = true;
            match self.judged.pop_front() {
                Some(grant) => self.input(n, Input::Judged { session, grant }),
                None => self.tokens.push((n, session, token.0)),
            }
        }
        self.nodes[n].records.append(&mut out.observed);
        // Keep what inputs above produced meanwhile.
        let later = std::mem::replace(&mut self.nodes[n].out, out);
        let o = &mut self.nodes[n].out;
        o.dial.extend(later.dial);
        o.wake.extend(later.wake);
        o.close.extend(later.close);
        o.socks.extend(later.socks);
        o.targets.extend(later.targets);
        o.checks.extend(later.checks);
        o.registry.extend(later.registry);
        o.proofs.extend(later.proofs);
        o.tokens.extend(later.tokens);
        o.observed.extend(later.observed);
        o.notes.extend(later.notes);
        o.close_listeners |= later.close_listeners;
        o.drained |= later.drained;
        worked
    }

    /// The earliest deadline of any node.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.nodes
            .iter()
            .enumerate()
            .filter(|(_, n)| !n.down)
            .filter_map(|(ix, n)| {
                let due = match &n.machine {
                    Machine::Hub(h) => h.poll_timeout(),
                    Machine::Agent(a) => a.poll_timeout(),
                };
                let note = n.mail.next_at().filter(|_| !self.notes_held.contains(&ix));
                [due.map(|d| d.at), note].into_iter().flatten().min()
            })
            .chain(self.next_arrival())
            .min()
    }

    /// Runs for `d`, jumping from deadline to deadline.
    pub(crate) fn run_for(&mut self, d: Duration) {
        let end = self.now.after(d);
        self.settle();
        while let Some(at) = self.next_deadline() {
            if at > end {
                break;
            }
            self.now = self.now.max(at);
            for n in 0..self.nodes.len() {
                let node = &mut self.nodes[n];
                if node.down {
                    continue;
                }
                match &mut node.machine {
                    Machine::Hub(h) => {
                        if h.poll_timeout().is_some_and(|d| d.at <= self.now) {
                            self.timeouts += 1;
                            h.handle_timeout(self.now, &mut node.out);
                        }
                        h.check_invariants();
                        self.carry_at_once(n);
                    }
                    Machine::Agent(a) => {
                        if a.poll_timeout().is_some_and(|d| d.at <= self.now) {
                            self.timeouts += 1;
                            a.handle_timeout(self.now, &mut node.out);
                        }
                        a.check_invariants();
                    }
                }
            }
            self.settle();
        }
        self.now = end;
    }

    /// Runs until `done` holds or `d` has passed; true if it held.
    pub(crate) fn run_until(&mut self, d: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now.after(d);
        loop {
            self.settle();
            if done(self) {
                return true;
            }
            match self.next_deadline() {
                Some(at) if at <= end => {
                    let step = at.since(self.now).max(Duration::from_nanos(1));
                    self.run_for(step);
                }
                _ => return false,
            }
        }
    }

    /// The target sockets of an agent that are alive.
    pub(crate) fn targets(&self, n: usize) -> Vec<SockKey> {
        self.nodes[n].socks.keys().copied().collect()
    }
}

/// Two hubs, a mesh, one agent that dials hub-a only.
pub(crate) fn two_hubs(codec: Codec) -> (World, usize, usize, usize) {
    let mut w = World::new();
    w.codec = codec;
    let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
    let b = w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
    let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(Duration::from_secs(3));
    (w, a, b, g)
}

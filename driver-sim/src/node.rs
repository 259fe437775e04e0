//! Hosts one machine: gives it inputs, carries out what it wants, arms its
//! deadline, and lets it crash and come back. The same four jobs as the tokio
//! driver's `node.rs`, on virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use nowconnect_core::agent::Agent;
use nowconnect_core::config::{
    AgentConfig, Backoff, ConnectorConfig, HealthConfig, HubConfig, Limits, ListenerConfig, Liveness, Mode, OnExpiry,
    OnOutage, OpenRule, OpenTimers, PeerConfig, RegistryTimers, Selection,
};
use nowconnect_core::hub::Hub;
use nowconnect_core::id::{AgentId, ConnKey, Name, StreamKey};
use nowconnect_core::mux::{Input, Mux, NodeOut};
use nowconnect_core::rng::Seed;
use nowconnect_core::session::{TxBatch, TxState};
use nowconnect_core::shard::{Addressee, Note, Shard};
use nowconnect_core::stream::Stream;
use nowconnect_core::time::{Deadline, Instant};

use crate::check::limits::Brings;
use crate::check::opening::Opening;
use crate::event::Event;
use crate::faults::At;
use crate::net::place;
use crate::plan::{AgentPlan, ExpiryPlan, HubPlan, ModePlan, Plan};
use crate::proof::Keys;
use crate::reload::Changed;
use crate::world::{Phase, World};

/// Calls of `handle_timeout` in a row at one instant that are no busy loop:
/// chunked work (256 streams a call) comes back at once.
const TIMEOUTS_AT_ONCE_MAX: u32 = 1000;

/// A hub or an agent.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a handful of nodes")]
pub(crate) enum Machine {
    Hub(Hub),
    Agent(Agent),
}

macro_rules! both {
    ($self:expr, $m:ident => $e:expr) => {
        match $self {
            Machine::Hub($m) => $e,
            Machine::Agent($m) => $e,
        }
    };
}

impl Machine {
    pub(crate) fn handle(&mut self, now: Instant, input: Input, out: &mut NodeOut) {
        both!(self, m => m.handle(now, input, out));
    }
    pub(crate) fn handle_timeout(&mut self, now: Instant, out: &mut NodeOut) {
        both!(self, m => m.handle_timeout(now, out));
    }
    pub(crate) fn poll_timeout(&self) -> Option<Deadline> {
        both!(self, m => m.poll_timeout())
    }
    pub(crate) fn poll_transmit(
        &mut self,
        now: Instant,
        conn: ConnKey,
        budget: usize,
        batch: &mut TxBatch,
        out: &mut NodeOut,
    ) -> TxState {
        both!(self, m => m.poll_transmit(now, conn, budget, batch, out))
    }
    pub(crate) fn read_budget(&mut self, stream: StreamKey) -> usize {
        both!(self, m => m.read_budget(stream))
    }
    pub(crate) fn mux(&self) -> &Mux {
        both!(self, m => m.mux())
    }
    /// The shards: several of a split hub.
    pub(crate) fn shards(&self) -> &[Shard] {
        match self {
            Self::Hub(h) => h.shards(),
            Self::Agent(a) => std::slice::from_ref(a.shard()),
        }
    }
    pub(crate) fn stream(&self, key: StreamKey) -> Option<&Stream> {
        match self {
            Self::Hub(h) => h.stream(key),
            Self::Agent(a) => a.shard().stream(key),
        }
    }
    pub(crate) fn streams(&self) -> usize {
        self.shards().iter().map(Shard::streams).sum()
    }
    pub(crate) fn check_invariants(&self) {
        both!(self, m => m.check_invariants());
    }
}

/// A process of the world.
#[derive(Debug)]
pub(crate) struct Node {
    /// Which part of the plan it runs.
    pub(crate) at: At,
    pub(crate) name: String,
    /// `None` while it is down.
    pub(crate) machine: Option<Machine>,
    pub(crate) out: NodeOut,
    /// Counts its processes: events of an earlier one are void.
    pub(crate) run: u32,
    /// When this process started.
    pub(crate) started: u64,
    /// Its death was seen by nobody.
    pub(crate) silent: bool,
    pub(crate) paused: bool,
    /// Inputs are late by up to this.
    pub(crate) lag: u64,
    pub(crate) held: VecDeque<Event>,
    /// Shards that stand still, once for each fault, what waits for them, and
    /// whether anything else was done meanwhile.
    pub(crate) stalls: Vec<u8>,
    pub(crate) stalled: VecDeque<(u8, Event)>,
    pub(crate) beside_stall: bool,
    pub(crate) unholding: bool,
    /// The earliest deadline event on the heap.
    armed: Option<u64>,
    timeouts_at: u64,
    timeouts: u32,
    pub(crate) drift_ppm: i32,
    /// How far the wall clock was stepped, nanoseconds: no machine sees it,
    /// unless planted bug 44 gives it the wall clock for its own.
    pub(crate) wall_ns: i64,
    /// A second process of an agent, on borrowed time.
    pub(crate) is_clone: bool,
    /// A mode other than the plan's, until the healing.
    pub(crate) mode: Option<ModePlan>,
    /// What else its file says otherwise, until the healing.
    pub(crate) changed: Changed,
    /// What a hub proves itself with.
    pub(crate) keys: Keys,
    /// What its targets do instead of the plan: refuse, or hang.
    pub(crate) targets_down: Option<bool>,
    pub(crate) drained: bool,
    /// It is on its way out for good, and gone.
    pub(crate) leaves_for_good: bool,
    pub(crate) retired: bool,
    /// Notes inside a split hub, and when the last of each queue is due.
    notes: BTreeMap<Addressee, (u64, VecDeque<Note>)>,
    /// Clients whose OPEN is not answered yet.
    pub(crate) opening: Opening,
    /// Faults that leave it without a descriptor, and the clients (of the plan)
    /// that wait to be accepted.
    pub(crate) shortages: u32,
    pub(crate) backlog: Vec<u32>,
    /// OPENs of other hubs it carried on, as far as they were judged.
    pub(crate) carried: u64,
}

impl Node {
    /// This process's own clock. It starts at 1 so that nothing mistakes an
    /// instant for "never".
    pub(crate) fn clock(&self, now: u64) -> Instant {
        let real = now.saturating_sub(self.started);
        if self.drift_ppm == 0 {
            return Instant::from_nanos(1 + real.saturating_add_signed(self.wall_ns));
        }
        let drift = (i128::from(real) * i128::from(self.drift_ppm) / 1_000_000) as i64;
        Instant::from_nanos(1 + real.saturating_add_signed(drift).saturating_add_signed(self.wall_ns))
    }

    /// The first moment of the world at which the clock shows `at` or later.
    fn when(&self, at: Instant) -> u64 {
        let shown = at.as_nanos().saturating_sub(1).saturating_add_signed(self.wall_ns.saturating_neg());
        if self.drift_ppm == 0 {
            return self.started.saturating_add(shown);
        }
        let scale = 1_000_000 + i128::from(self.drift_ppm);
        let real = (i128::from(shown) * 1_000_000 / scale) as u64;
        let mut t = self.started.saturating_add(real.saturating_sub(2));
        while self.clock(t) < at {
            t += 1;
        }
        t
    }

    pub(crate) const fn is_hub(&self) -> bool {
        matches!(self.at, At::Hub(_))
    }

    pub(crate) const fn is_up(&self) -> bool {
        self.machine.is_some()
    }

    pub(crate) fn hub(&self) -> Option<&Hub> {
        match &self.machine {
            Some(Machine::Hub(h)) => Some(h),
            _ => None,
        }
    }

    pub(crate) fn agent(&self) -> Option<&Agent> {
        match &self.machine {
            Some(Machine::Agent(a)) => Some(a),
            _ => None,
        }
    }
}

pub(crate) fn name(s: &str) -> Name {
    Name::new(s).expect("names of the plan are valid")
}

pub(crate) fn connector(n: u16) -> Name {
    name(&format!("c{n}"))
}

fn limits(budget: u64, window: (u64, u64), inflight: u64, depth: u32) -> Limits {
    Limits {
        memory_budget_bytes: budget,
        stream_window_initial_bytes: window.0,
        stream_window_max_bytes: window.1,
        send_queue_depth: depth,
        inflight_bytes: inflight,
        ..Limits::default()
    }
}

const fn remembering(plan: &Plan, mut limits: Limits) -> Limits {
    if plan.tombstones > 0 {
        limits.tombstones = plan.tombstones;
    }
    limits
}

fn liveness(plan: &Plan) -> Liveness {
    Liveness { dead: Duration::from_nanos(plan.timers.dead), ..Liveness::default() }
}

fn backoff(plan: &Plan) -> Backoff {
    Backoff { max: Duration::from_nanos(plan.timers.backoff_max), ..Backoff::default() }
}

pub(crate) const fn mode(m: ModePlan) -> Mode {
    match m {
        ModePlan::Off => Mode::Off,
        ModePlan::Shadow => Mode::Shadow,
        ModePlan::Active => Mode::Active,
    }
}

pub(crate) fn hub_config(plan: &Plan, ix: usize, h: &HubPlan) -> HubConfig {
    HubConfig {
        replica_id: name(&format!("hub-{ix}")),
        namespace: name("sim"),
        region: Some(name(&format!("r{}", h.region))),
        mode: mode(h.mode),
        listeners: (0..plan.connectors)
            .map(connector)
            // Of hostile agents alone; the last one.
            .chain(plan.rogues.iter().any(|r| !r.is_hub).then(|| name(crate::rogue::CONNECTOR)))
            .enumerate()
            .map(|(c, connector)| ListenerConfig {
                name: name(&format!("l{c}")),
                connector,
                open: if h.first_byte { OpenRule::FirstByte } else { OpenRule::Eager },
                max_connections: 10_000,
            })
            .collect(),
        peers: h.peers.iter().map(|p| PeerConfig { url: format!("hub-{p}"), replica_id: None, host: None }).collect(),
        limits: remembering(plan, limits(h.budget, h.window, h.inflight, h.queue_depth)),
        liveness: liveness(plan),
        resume_window: Duration::from_nanos(plan.timers.resume),
        backoff: backoff(plan),
        open: OpenTimers {
            attempt_timeout: Duration::from_nanos(plan.timers.attempt),
            timeout: Duration::from_nanos(plan.timers.open),
            ..OpenTimers::default()
        },
        // As fast as the faults of a run.
        selection: Selection {
            eject: Duration::from_secs(2),
            eject_max: Duration::from_secs(20),
            failback_after: Duration::from_nanos(h.failback_ns),
            ..Selection::default()
        },
        registry: RegistryTimers {
            lease: Duration::from_nanos(plan.timers.lease),
            on_outage: if h.cached { OnOutage::Cached } else { OnOutage::Refuse },
            ..RegistryTimers::default()
        },
        handshake_timeout: Duration::from_nanos(plan.timers.handshake),
        insecure_allow_unscoped: true,
        on_expiry: match h.on_expiry {
            ExpiryPlan::Keep => OnExpiry::Keep,
            ExpiryPlan::Cut => OnExpiry::Cut,
            ExpiryPlan::Drain(ms) => OnExpiry::Drain(Duration::from_millis(ms)),
        },
        insecure_mesh: false,
    }
}

fn checks(every_ns: u64) -> HealthConfig {
    let interval = Duration::from_nanos(every_ns);
    HealthConfig { interval, timeout: interval / 2, ..HealthConfig::default() }
}

pub(crate) fn agent_config(plan: &Plan, ix: usize, a: &AgentPlan) -> AgentConfig {
    AgentConfig {
        agent_id: AgentId::new(&format!("agent-{ix}")).expect("names of the plan are valid"),
        hubs: a.hubs.iter().map(|h| format!("hub-{h}")).collect(),
        parallel: a.parallel,
        connectors: a
            .connectors
            .iter()
            .map(|(c, priority, weight)| ConnectorConfig {
                name: connector(*c),
                target: "target".to_owned(),
                priority: *priority,
                weight: *weight,
                health: (a.check_ns > 0).then(|| checks(a.check_ns)),
            })
            .collect(),
        limits: remembering(plan, limits(a.budget, a.window, a.inflight, 1000)),
        liveness: liveness(plan),
        resume_window: Duration::from_nanos(plan.timers.resume),
        backoff: backoff(plan),
        target_timeout: Duration::from_nanos(plan.timers.target),
        handshake_timeout: Duration::from_nanos(plan.timers.handshake),
    }
}

impl World {
    pub(crate) fn add_node(&mut self, at: At, node_name: String, drift_ppm: i32, is_clone: bool) -> u16 {
        self.nodes.push(Node {
            at,
            name: node_name,
            machine: None,
            out: NodeOut::default(),
            run: 0,
            started: 0,
            silent: false,
            paused: false,
            lag: 0,
            held: VecDeque::new(),
            stalls: Vec::new(),
            stalled: VecDeque::new(),
            beside_stall: false,
            unholding: false,
            armed: None,
            timeouts_at: 0,
            timeouts: 0,
            drift_ppm,
            wall_ns: 0,
            is_clone,
            mode: None,
            changed: Changed::default(),
            keys: Keys::default(),
            targets_down: None,
            drained: false,
            leaves_for_good: false,
            retired: false,
            notes: BTreeMap::new(),
            opening: Opening::default(),
            shortages: 0,
            backlog: Vec::new(),
            carried: 0,
        });
        (self.nodes.len() - 1) as u16
    }

    pub(crate) fn add_hub(&mut self, ix: usize) {
        let drift = self.plan.hubs[ix].drift_ppm;
        self.add_node(At::Hub(ix as u8), format!("hub-{ix}"), drift, false);
    }

    pub(crate) fn add_agent(&mut self, ix: usize) {
        let drift = self.plan.agents[ix].drift_ppm;
        self.add_node(At::Agent(ix as u8), format!("agent-{ix}"), drift, false);
    }

    /// When a node of the plan starts.
    pub(crate) fn start_of(&self, ix: u16) -> u64 {
        match self.nodes[usize::from(ix)].at {
            At::Hub(n) => self.plan.hubs[usize::from(n)].start_ns,
            At::Agent(n) => self.plan.agents[usize::from(n)].start_ns,
        }
    }

    pub(crate) fn add_clone(&mut self, at: At) -> u16 {
        let of = usize::from(self.node_of(at));
        let node = self.add_node(at, format!("{} (clone)", self.nodes[of].name), 0, true);
        self.nodes[usize::from(node)].keys = self.nodes[of].keys;
        self.boot(node);
        node
    }

    /// The node of the plan; clones have none.
    pub(crate) fn node_of(&self, at: At) -> u16 {
        match at {
            At::Hub(n) => u16::from(n),
            At::Agent(n) => (self.plan.hubs.len() + usize::from(n)) as u16,
        }
    }

    /// Starts a process.
    pub(crate) fn boot(&mut self, ix: u16) {
        let node = &mut self.nodes[usize::from(ix)];
        if node.machine.is_some() || node.retired {
            return;
        }
        node.run += 1;
        node.started = self.now;
        node.silent = false;
        node.paused = false;
        node.drained = false;
        node.armed = None;
        node.out = NodeOut::default();
        node.notes.clear();
        node.opening = Opening::default();
        node.carried = 0;
        let (at, run) = (node.at, node.run);
        let lane = self.tape.entropy("machine", (u64::from(ix) << 32) | u64::from(run));
        let (now, seed) = (node.clock(self.now), Seed::from_u64(lane));
        let mut out = NodeOut::default();
        let machine = match at {
            At::Hub(n) => {
                let h = &self.plan.hubs[usize::from(n)];
                let config = Arc::new(self.hub_file(ix, n));
                Machine::Hub(if h.shards == 0 {
                    Hub::new(config, seed, now, &mut out)
                } else {
                    Hub::split(config, seed, now, h.shards, &mut out)
                })
            }
            At::Agent(n) => {
                let config = Arc::new(self.agent_file(ix, n));
                Machine::Agent(Agent::new(config, seed, now, &mut out))
            }
        };
        let node = &mut self.nodes[usize::from(ix)];
        node.machine = Some(machine);
        node.out = out;
        self.line(None, || format!("{} starts (run {run})", self_name(ix)));
        self.check.on_boot(ix);
        self.ghost_boot(ix);
        self.settle(ix);
    }

    /// Gives a machine one input and carries out what it wants.
    pub(crate) fn input(&mut self, ix: u16, input: Input) {
        self.raw_input(ix, input);
        self.settle(ix);
    }

    fn notice(&mut self, ix: u16, input: &Input) {
        if let Input::Socket { .. } | Input::Target { .. } = input {
            self.check.wire.cause(ix, 1);
        }
        if let Input::Disconnected { conn, .. } = input
            && let (conn, 0) = place(*conn)
        {
            self.pace_gone(conn);
        }
    }

    /// Gives a machine one input, inside `settle`.
    pub(crate) fn raw_input(&mut self, ix: u16, input: Input) {
        self.notice(ix, &input);
        let (now, brings, before) = (self.now, Brings::of(&input), self.held_before(ix));
        let node = &mut self.nodes[usize::from(ix)];
        let at = node.clock(now);
        if let Some(m) = &mut node.machine {
            m.handle(at, input, &mut node.out);
            self.inputs += 1;
            self.judge_held(ix, before, brings);
        }
    }

    /// A note inside a split hub is on its way: first in, first out for each
    /// addressee, after a drawn delay. Inside `settle`.
    fn post_note(&mut self, ix: u16, note: Note) {
        let to = note.addressee();
        let longest = match self.nodes[usize::from(ix)].at {
            At::Hub(n) => self.plan.hubs[usize::from(n)].note_delay_ns,
            At::Agent(_) => 0,
        };
        let delay = if self.phase == Phase::Safety { self.draws.below(longest + 1) } else { 0 };
        let now = self.now;
        let node = &mut self.nodes[usize::from(ix)];
        let run = node.run;
        let (last, queue) = node.notes.entry(to).or_default();
        *last = (*last + 1).max(now + delay);
        queue.push_back(note);
        let at = *last;
        self.at(at, Event::Note { node: ix, run, to });
    }

    /// A note inside a split hub is due.
    pub(crate) fn on_note(&mut self, ix: u16, run: u32, to: Addressee) {
        let now = self.now;
        if self.nodes[usize::from(ix)].run != run {
            return;
        }
        let before = self.held_before(ix);
        let node = &mut self.nodes[usize::from(ix)];
        let at = node.clock(now);
        let Some(note) = node.notes.get_mut(&to).and_then(|(_, q)| q.pop_front()) else { return };
        let Some(Machine::Hub(hub)) = &mut node.machine else { return };
        let brings = Brings::of_note(&note);
        hub.on_note(at, note, &mut node.out);
        self.inputs += 1;
        self.judge_held(ix, before, brings);
        self.marks.hit(crate::marks::Mark::Split);
        self.settle(ix);
    }

    pub(crate) fn on_timer(&mut self, ix: u16, run: u32) {
        let now = self.now;
        let node = &mut self.nodes[usize::from(ix)];
        if node.run != run || node.machine.is_none() {
            return;
        }
        if node.armed.is_some_and(|at| at <= now) {
            node.armed = None;
        }
        let at = node.clock(now);
        if node.machine.as_ref().and_then(Machine::poll_timeout).is_some_and(|d| d.at <= at) {
            let before = self.held_before(ix);
            let node = &mut self.nodes[usize::from(ix)];
            let Some(m) = &mut node.machine else { return };
            if node.timeouts_at == now {
                node.timeouts += 1;
            } else {
                (node.timeouts_at, node.timeouts) = (now, 0);
            }
            let why = m.poll_timeout().map_or("", |d| d.why);
            m.handle_timeout(at, &mut node.out);
            self.inputs += 1;
            if node.timeouts > TIMEOUTS_AT_ONCE_MAX {
                let text = format!("{}: `{why}` is due again and again at one instant", node.name);
                return self.fail("B9", text);
            }
            self.judge_held(ix, before, Brings::Nothing);
            self.trace.mix(u64::from(ix) << 8 | why.len() as u64);
        }
        self.settle(ix);
    }

    /// Carries out everything a node wants, and arms its deadline.
    pub(crate) fn settle(&mut self, ix: u16) {
        loop {
            let node = &mut self.nodes[usize::from(ix)];
            if node.machine.is_none() {
                return;
            }
            let mut out = std::mem::take(&mut node.out);
            if is_quiet(&out) {
                node.out = out;
                break;
            }
            self.execute(ix, &mut out);
            // Give the room back, keeping what came meanwhile.
            let node = &mut self.nodes[usize::from(ix)];
            if is_quiet(&node.out) {
                node.out = out;
            }
        }
        self.after_input(ix);
        self.arm(ix);
    }

    fn execute(&mut self, ix: u16, out: &mut NodeOut) {
        for event in out.observed.drain(..) {
            self.on_observed(ix, event);
        }
        for target in out.dial.drain(..) {
            self.dial(ix, target);
        }
        for conn in out.wake.drain(..) {
            self.wake(conn);
        }
        for (conn, code) in out.close.drain(..) {
            self.close(conn, code);
        }
        for (sock, op) in out.socks.drain(..) {
            self.on_sock_op(sock, op);
        }
        for (stream, connector) in out.targets.drain(..) {
            self.connect_target(ix, stream, &connector);
        }
        for check in out.checks.drain(..) {
            self.check_target(ix, check);
        }
        for (token, op) in out.registry.drain(..) {
            self.ask_registry(ix, token, op);
        }
        for (conn, proof) in out.proofs.drain(..) {
            self.prove(ix, conn, &proof);
        }
        for (session, token) in out.tokens.drain(..) {
            self.judge_token(ix, session, &token);
        }
        for note in out.notes.drain(..) {
            self.post_note(ix, note);
        }
        // Whoever comes is refused by the machine itself.
        out.close_listeners = false;
        if std::mem::take(&mut out.drained) {
            self.nodes[usize::from(ix)].drained = true;
        }
    }

    fn arm(&mut self, ix: u16) {
        let late = if self.phase == Phase::Safety { self.plan.late_timers_ns } else { 0 };
        let node = &self.nodes[usize::from(ix)];
        let Some(due) = node.machine.as_ref().and_then(Machine::poll_timeout) else { return };
        let at = node.when(due.at).max(self.now);
        if node.armed.is_some_and(|armed| armed <= at) {
            return;
        }
        let (run, late) = (node.run, if late > 0 { self.draws.below(late) } else { 0 });
        self.nodes[usize::from(ix)].armed = Some(at + late);
        self.at(at + late, Event::Timer { node: ix, run });
    }

    /// A process dies: its sockets are closed by its kernel, unless the whole
    /// machine went (`silent`).
    pub(crate) fn crash(&mut self, ix: u16, silent: bool) {
        let node = &mut self.nodes[usize::from(ix)];
        if node.machine.take().is_none() {
            return;
        }
        node.out = NodeOut::default();
        node.held.clear();
        node.stalls.clear();
        node.stalled.clear();
        node.paused = false;
        node.lag = 0;
        node.silent = silent;
        self.line(None, || format!("{} dies{}", self_name(ix), if silent { " with its machine" } else { "" }));
        self.check.on_crash(ix, self.now);
        self.excuse(ix);
        self.drop_conns(ix, silent);
        self.drop_socks(ix);
    }
}

fn self_name(ix: u16) -> String {
    format!("node {ix}")
}

const fn is_quiet(out: &NodeOut) -> bool {
    out.dial.is_empty()
        && out.wake.is_empty()
        && out.close.is_empty()
        && out.socks.is_empty()
        && out.targets.is_empty()
        && out.checks.is_empty()
        && out.registry.is_empty()
        && out.observed.is_empty()
        && out.proofs.is_empty()
        && out.tokens.is_empty()
        && out.notes.is_empty()
        && !out.drained
}

//! Oracles: what must hold, asked from outside the machines wherever possible.
//!
//! Safety is asked when something happens (S, I, O) and of everything every
//! 256 events (the machines' own invariants: B); liveness is asked after the
//! healing (L). The ghost state here is what a perfect wire would have done.

mod counts;
mod ends;
mod goings;
mod leases;
mod leaving;
mod leftovers;
pub(crate) mod limits;
mod lost;
mod memory;
mod nodes;
mod odd;
pub(crate) mod opening;
mod outage;
pub(crate) mod pace;
mod probes;
mod prompt;
mod rank;
mod rare;
mod ready;
mod refusals;
mod relations;
mod room;
mod rules;
mod stuck;
mod tap;
mod tenant;
mod twins;
pub(crate) mod wire;

use std::collections::{BTreeMap, BTreeSet};

use nowconnect_core::error::{CloseCode, RstCode};
use nowconnect_core::id::{AgentId, Cid, Name};
use nowconnect_core::observed::Observed;
use nowconnect_core::planted;
use nowconnect_core::wire::{Body, Frame, Open, Plane};

use crate::actor::{Fate, side};
use crate::event::Event;
use crate::faults::{At, Fault, Point};
use crate::marks::Mark;
use crate::plan::{ClientPlan, Ending, FlowPlan, MS, Plan, TargetPlan};
use crate::registry::Effect;
use crate::tape::mix;
use crate::trust::Proofs;
use crate::world::{Phase, Violation, World};

/// Clients connected after the healing are numbered from here.
pub(crate) const PROBES_FROM: u32 = 20_000;
/// Time between two looks at whether everything is over.
const PROBE_EVERY: u64 = 1000 * MS;
/// Without a byte for anybody for this long, whoever still waits is stuck.
const PATIENCE: u64 = 60_000 * MS;
/// Nobody needs longer than this after the healing, whatever the wire.
const SLOWEST: u64 = 1_200_000 * MS;
/// Bytes a second below which a wire holds a new client's OPEN back for long.
const SLOW_BELOW: u64 = 1 << 20;

/// What is remembered to judge the rest.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) dials: u64,
    pub(crate) messages: u64,
    pub(crate) delivered: u64,
    pub(crate) extra_targets: Vec<u32>,
    pub(crate) late_faults: Vec<Fault>,
    pub(crate) effects: Vec<Effect>,
    /// Processes that were told to leave and have not ended or been told to stay.
    pub(crate) drains: BTreeMap<u16, leaving::Drain>,
    /// Hubs had certificates that are not their own, or not known to all.
    pub(crate) strange_keys: bool,
    /// What peers proved themselves with.
    pub(crate) proofs: Proofs,
    /// When a process was last told to stop, or reset what it still carried.
    pub(crate) ended: BTreeMap<u16, u64>,
    probes: Vec<ClientPlan>,
    /// Probes that were connected.
    probing: usize,
    wanted: BTreeMap<Cid, u32>,
    /// The target's actor, by cid.
    pub(crate) connected: BTreeMap<Cid, u32>,
    pub(crate) wire: wire::Wire,
    pub(crate) nodes: BTreeMap<u16, nodes::NodeGhost>,
    /// Sessions, from their WELCOME to their end.
    sessions: lost::Sessions,
    rooms: room::Rooms,
    turns: goings::Turns,
    /// OPENs that processes have to answer.
    questions: refusals::Questions,
    /// What was lost that may have carried streams.
    excuses: Vec<ends::Loss>,
    /// When one of a pair of hubs last found the other's connection one too
    /// many: a dial of the lower number, a dial of the higher.
    pub(crate) duplicates: BTreeMap<(u16, u16), [Option<u64>; 2]>,
    pub(crate) pace: pace::Pace,
    /// What a node may hold of a stream, and the streams of the message that is
    /// being delivered.
    most: memory::Most,
    leases: leases::Leases,
    /// A forged frame in the message that is being delivered.
    given: Option<odd::Given>,
    /// The OPENs in it.
    asked_now: Vec<Cid>,
    leftovers: leftovers::Leftovers,
    touched: Vec<Cid>,
    /// Each process's last handshake that failed: when, and what it said.
    refusals: BTreeMap<u16, (u64, CloseCode, &'static str)>,
    /// What each hub holds.
    pub(crate) held: BTreeMap<(u16, AgentId), outage::Held>,
    /// When a hub's sessions last lost a connection.
    pub(crate) interrupted: BTreeMap<u16, u64>,
    /// When a hub last lost a link, or its connection.
    parted: BTreeMap<u16, u64>,
    /// Every fault so far was over by then.
    pub(crate) quiet_from: u64,
    /// When something was done to the registry last, or a hub was led to another.
    pub(crate) registry_hurt: u64,
    /// When a process died last, told to or not.
    pub(super) crashed: BTreeMap<u16, u64>,
    /// Hubs that live twice.
    pub(crate) twins: Vec<twins::Pair>,
    opening: opening::Seen,
    /// The hub each agent attached to last.
    pub(crate) attached: BTreeMap<AgentId, u16>,
    /// Connectors whose targets failed their checks, with when that was over.
    pub(super) withdrawn: BTreeMap<(u16, Name), Option<u64>>,
    /// What a hub heard an agent's process expose last, since its HELLO there,
    /// and when.
    pub(super) heard: BTreeMap<(u16, u16), (u64, BTreeSet<Name>)>,
    calm: bool,
    settle_ns: u64,
    /// When tunnels and links must be there (L2, L4), and the registry agree
    /// with them (L5), after the healing; whether each was asked.
    related_ns: u64,
    listed_ns: u64,
    asked: [bool; 2],
    limit: u64,
    over_at: Option<u64>,
    /// Bytes delivered, and since when there are no more.
    progress: (u64, u64),
    probed: bool,
}

impl Check {
    pub(crate) fn new(plan: &Plan) -> Self {
        let t = &plan.timers;
        // A silent peer is noticed, its session given up at the later end, and
        // the next dial made.
        let settle_ns = t.dead * 2 + t.resume + t.backoff_max * 2 + t.handshake + t.lease + 10_000 * MS;
        // A silent peer is noticed by either side, the dial that found it alive
        // or was under way fails, and the next one comes after a back-off.
        let related_ns = (t.dead + t.backoff_max * 2 + t.handshake * 2 + 5000 * MS).min(settle_ns);
        Self {
            dials: 0,
            messages: 0,
            delivered: 0,
            extra_targets: Vec::new(),
            late_faults: Vec::new(),
            effects: Vec::new(),
            drains: BTreeMap::new(),
            strange_keys: false,
            proofs: Proofs::default(),
            ended: BTreeMap::new(),
            probes: Vec::new(),
            probing: 0,
            wanted: BTreeMap::new(),
            connected: BTreeMap::new(),
            wire: wire::Wire::keeping(plan.hostile > 0),
            nodes: BTreeMap::new(),
            sessions: lost::Sessions::default(),
            rooms: room::Rooms::default(),
            turns: goings::Turns::default(),
            questions: refusals::Questions::default(),
            excuses: Vec::new(),
            duplicates: BTreeMap::new(),
            pace: pace::Pace::default(),
            most: memory::Most::of(plan),
            leases: leases::Leases::default(),
            given: None,
            asked_now: Vec::new(),
            leftovers: leftovers::Leftovers::default(),
            touched: Vec::new(),
            refusals: BTreeMap::new(),
            held: BTreeMap::new(),
            interrupted: BTreeMap::new(),
            parted: BTreeMap::new(),
            quiet_from: 0,
            registry_hurt: 0,
            crashed: BTreeMap::new(),
            twins: Vec::new(),
            opening: opening::Seen::default(),
            attached: BTreeMap::new(),
            withdrawn: BTreeMap::new(),
            heard: BTreeMap::new(),
            calm: plan.faults.is_empty() && plan.at_vulnerable == 0 && plan.triggered.is_none(),
            settle_ns,
            related_ns,
            listed_ns: (related_ns + t.lease * 3 / 2).min(settle_ns),
            asked: [false; 2],
            limit: plan.safety_ns + settle_ns * 2 + SLOWEST + 60_000 * MS,
            over_at: None,
            progress: (0, 0),
            probed: false,
        }
    }

    pub(crate) const fn deadline(&self) -> u64 {
        self.limit
    }

    pub(crate) fn is_over(&self, at: u64) -> bool {
        self.over_at.is_some_and(|t| at > t)
    }

    pub(crate) fn client_plan(&self, plan: &Plan, client: u32) -> ClientPlan {
        if client >= PROBES_FROM {
            return self.probes.get((client - PROBES_FROM) as usize).copied().unwrap_or_else(orphan);
        }
        // Clients are numbered in order, but the shrinker takes some away.
        let near = plan.clients.get(client as usize).filter(|c| c.id == client);
        near.or_else(|| plan.clients.iter().find(|c| c.id == client)).copied().unwrap_or_else(orphan)
    }

    pub(crate) fn on_boot(&mut self, ix: u16) {
        self.drains.remove(&ix);
        self.withdrawn.retain(|(node, _), _| *node != ix);
    }

    pub(crate) fn on_crash(&mut self, ix: u16, now: u64) {
        self.crashed.insert(ix, now);
        self.drains.remove(&ix);
    }

    /// S6: an agent wants a target for a cid.
    pub(crate) fn on_target_wanted(&mut self, cid: Cid, client: Option<u32>) -> Result<(), Violation> {
        // A hub that starts counting anew hurts streams of its own: one target
        // for each session that took it for a new one.
        let most = if self.wire.is_strangers(cid) { self.wire.hops(cid).len().max(1) as u32 } else { 1 };
        let n = self.wanted.entry(cid).or_insert(0);
        *n += 1;
        if *n > most {
            return Err(Violation::new("S6", format!("the target of {cid} is connected for the {n}th time")));
        }
        if let Some(client) = client.filter(|client| self.opening.is_given_up(*client, cid)) {
            let text = format!("the target of {cid} is connected; client {client} was asked for as another since");
            return Err(Violation::new("S6", text));
        }
        Ok(())
    }

    pub(crate) fn on_target_connected(&mut self, cid: Cid, actor: u32) {
        self.connected.insert(cid, actor);
    }
}

/// OPENs of another hub that reach a hub.
#[derive(Debug)]
pub(crate) struct Asked {
    carried: u64,
    opens: Vec<Open>,
}

/// The target of a cid nobody knows: reads whatever comes.
fn orphan() -> ClientPlan {
    let flow = FlowPlan { total: 0, chunk: 1, write_gap: 0, read: 1 << 16, read_gap: 0, after: 0 };
    ClientPlan {
        id: u32::MAX,
        at: 0,
        hub: 0,
        connector: 0,
        up: flow,
        down: flow,
        client_end: Ending::Fin,
        target_end: Ending::FinAfterOther,
        target: TargetPlan::Accept(MS),
        latency: MS,
        buffer: 1 << 16,
    }
}

impl World {
    pub(crate) fn on_observed(&mut self, ix: u16, event: Observed) {
        self.line(None, || format!("node {ix}: {event:?}"));
        self.count_event(ix, &event);
        if let Observed::HandshakeFailed { cause, detail, .. } = event {
            self.check.refusals.insert(ix, (self.now, cause, detail));
        }
        self.trace.mix(u64::from(ix));
        self.trace.mix_debug(&event);
        match event {
            Observed::Stream(record) => self.ghost_record(ix, &record),
            Observed::RegistryHealth { healthy } => self.ghost_health(ix, healthy),
            // What a hostile peer does to its session is no excuse for others.
            Observed::SessionLost { peer, .. } | Observed::SessionSuspended { peer, .. }
                if peer.starts_with(crate::rogue::PEER) => {}
            Observed::SessionLost { plane, peer, cause } => {
                if plane == Plane::Mesh {
                    self.check.parted.insert(ix, self.now);
                }
                if plane == Plane::Mesh && matches!(cause, CloseCode::Shutdown | CloseCode::Auth) {
                    self.link_was_there(ix, &peer);
                }
                let session = self.judge_lost(ix, plane, &peer, cause);
                self.excuse_session(ix, plane, peer, session);
            }
            Observed::SessionSuspended { plane, peer, cause } => {
                self.judge_suspended(ix, cause);
                self.check.interrupted.insert(ix, self.now);
                if cause == CloseCode::Dead {
                    self.marks.hit(Mark::DeadPeerNoticed);
                }
                if plane == Plane::Mesh {
                    self.check.parted.insert(ix, self.now);
                    self.link_was_there(ix, &peer);
                }
            }
            Observed::HandshakeFailed { plane: Plane::Mesh, cause: CloseCode::Auth, .. } => self.judge_unproven(ix),
            Observed::HandshakeFailed { cause: CloseCode::ResumeRefused, .. } => self.marks.hit(Mark::ResumeRefused),
            Observed::LeaseHeldByOther => {
                self.marks.hit(Mark::LeaseTaken);
                self.ghost_fenced(ix);
                self.check.nodes.entry(ix).or_default().fenced = true;
            }
            Observed::Attached { agent_id, firm, takeover, .. } if self.nodes[usize::from(ix)].is_hub() => {
                self.note_attached(ix, &agent_id, firm, takeover);
            }
            Observed::Detached { agent_id, cause, .. } => {
                self.ghost_token_end(ix, &agent_id, cause);
                self.check.held.remove(&(ix, agent_id));
            }
            Observed::TokenExpired { agent_id } => {
                self.marks.hit(Mark::TokenExpired);
                self.ghost_token_expired(ix, &agent_id);
            }
            Observed::TokenRenewed { agent_id } => {
                self.marks.hit(Mark::TokenRenewed);
                self.ghost_token_anew(ix, agent_id.as_str());
            }
            Observed::TokenRefused { .. } => self.marks.hit(Mark::TokenRefused),
            Observed::Drain(step) => self.ghost_drain(ix, step),
            Observed::SessionResumed { peer, .. } => {
                self.note_session_up(ix);
                self.ghost_token_anew(ix, &peer);
                self.vulnerable(Point::Resumed, ix, None);
            }
            Observed::StartedOver { highest, offered } => {
                self.note_started_over(ix);
                self.ghost_started_over(ix, highest, offered);
            }
            Observed::SessionUp { .. } => self.note_session_up(ix),
            Observed::Ejected { .. } => {
                self.marks.hit(Mark::Ejected);
                self.check.nodes.entry(ix).or_default().ejected = true;
            }
            Observed::Reinstated { .. } => self.marks.hit(Mark::Reinstated),
            Observed::TargetDown { connector, .. } => {
                self.marks.hit(Mark::TargetDown);
                self.check.withdrawn.insert((ix, connector), None);
            }
            Observed::TargetUp { connector } => {
                self.marks.hit(Mark::TargetUp);
                self.check.withdrawn.insert((ix, connector), Some(self.now));
            }
            Observed::ProtocolViolation { plane, kind, detail } => {
                if self.rogue_blamed(ix, plane) {
                    return;
                }
                self.fail(
                    "D2",
                    format!("node {ix} finds a peer in breach of the protocol on {plane:?}: {kind:?}, {detail}"),
                );
            }
            Observed::Opened { .. }
            | Observed::Carried(_)
            | Observed::TokenAnswered { .. }
            | Observed::HandshakeFailed { .. }
            | Observed::Rtt { .. }
            | Observed::Attached { .. }
            | Observed::PeerIsSelf { .. }
            | Observed::FewerHubs { .. }
            | Observed::DuplicateAgent { .. }
            | Observed::DuplicateAgentRefused { .. }
            | Observed::GaveUp { .. } => {}
        }
    }

    /// What a message asks a hub to carry for another hub, and how much it had
    /// carried before. A split hub answers later.
    pub(crate) fn carries_on(&self, conn: u32, to: usize, told: &wire::Told) -> Option<Asked> {
        let c = &self.conns[conn as usize];
        let node = &self.nodes[usize::from(c.nodes[to])];
        let (hub, At::Hub(n)) = (node.hub()?, node.at) else { return None };
        if c.dialect.plane != Plane::Mesh || self.plan.hubs[usize::from(n)].shards > 0 {
            return None;
        }
        let open = |f: &Frame| {
            let Frame::Stream { body: Body::Open(o), .. } = f else { return None };
            Some((**o).clone())
        };
        let opens: Vec<Open> = told.frames.iter().filter_map(open).collect();
        (!opens.is_empty()).then(|| Asked { carried: hub.counters().carried, opens })
    }

    /// After a message: what it may not have done.
    pub(crate) fn after_message(&mut self, conn: u32, to: usize, asked: Option<Asked>) {
        let ix = self.conns[conn as usize].nodes[to];
        self.judge_touched(ix);
        self.judge_given(ix, conn, to);
        self.note_not_taken(ix);
        let c = &self.conns[conn as usize];
        let streams = self.nodes[usize::from(ix)].machine.as_ref().map_or(0, crate::node::Machine::streams);
        self.check.wire.note_streams(ix, streams);
        let Some(hub) = self.nodes[usize::from(ix)].hub() else { return };
        if c.unproven[1 - to] && hub.mux().carried_by(crate::net::key(conn, to)).is_some() {
            let text = format!("node {ix} has a session on conn {conn}, whose certificate proves nothing");
            return self.fail("I3", text);
        }
        self.judge_speaker(ix, conn, to);
        let Some(hub) = self.nodes[usize::from(ix)].hub() else { return };
        let Some(asked) = asked else { return };
        let more = hub.counters().carried - asked.carried;
        if more < asked.opens.len() as u64 {
            self.note_not_carried(ix, &asked.opens);
        }
        if more == asked.opens.len() as u64 {
            for o in asked.opens {
                self.ghost_scope(ix, &o.agent_id, &o.connector);
            }
        }
    }

    /// S2: an actor was shown the end of its incoming direction.
    pub(crate) fn on_eof(&mut self, ix: u32) {
        let a = &self.actors[ix as usize];
        let (client, is_client, read) = (a.client, a.is_client, a.read);
        if client == crate::rogue::CLIENT {
            return;
        }
        if client == u32::MAX {
            return self.fail("S2", "a target that belongs to no client was shown an end");
        }
        let peer = self.pairs.get(&client).and_then(|p| p[usize::from(is_client)]);
        let Some(peer) = peer.map(|p| &self.actors[p as usize]) else {
            // A probe of a first-byte listener comes and goes unseen (semantics 3).
            let plan = self.client_plan(client);
            if is_client && plan.up.total == 0 && read == 0 && self.plan.hubs[usize::from(plan.hub)].first_byte {
                return;
            }
            return self.fail("S2", format!("client {client} was shown an end without a target"));
        };
        if !peer.fin_sent || peer.wrote != read {
            let text = format!(
                "the {} of client {client} was shown a clean end after {read} bytes; its peer wrote {} and {}",
                side(is_client),
                peer.wrote,
                if peer.fin_sent { "ended" } else { "did not end" }
            );
            self.fail("S2", text);
        }
    }

    pub(crate) fn on_actor_end(&mut self, ix: u32) {
        let a = &self.actors[ix as usize];
        let (client, is_client, fate) = (a.client, a.is_client, a.fate);
        if let Fate::Reset(Some(code)) = fate
            && client != crate::rogue::CLIENT
            && matches!(code, RstCode::Flow | RstCode::Protocol)
        {
            self.fail("B4", format!("the {} of client {client} was reset with {code}", side(is_client)));
        }
        self.judge_ending(ix);
    }

    /// Everything that holds at any time.
    pub(crate) fn check_everything(&mut self) {
        for node in &self.nodes {
            if let Some(m) = &node.machine {
                m.check_invariants();
            }
        }
        if let Err(v) = self.registry.check() {
            self.fail(v.id, v.text);
        }
        self.check_nodes();
        self.check_reclaimed();
        self.check_expired();
        self.check_twins();
        self.check_duplicates();
        self.check_memory();
        self.check_limits();
        self.read_leases();
        self.check_leftovers();
        self.check_ready();
        self.check_left();
    }

    /// After the healing: new clients, then an end.
    pub(crate) fn on_probe(&mut self, round: u32) {
        let since = self.now - self.healed_at;
        if self.check.over_at.is_some() {
            return;
        }
        if since >= self.check.related_ns && !std::mem::replace(&mut self.check.asked[0], true) {
            self.check_relations(true);
        }
        if since >= self.check.listed_ns && !std::mem::replace(&mut self.check.asked[1], true) {
            self.check_registry();
        }
        let alive = self.actors.iter().filter(|a| a.fate == Fate::Alive).count();
        if since >= self.check.settle_ns && !self.check.probed {
            self.check.probed = true;
            self.check_relations(false);
            self.check_registry();
            self.check_readiness();
            self.check_silence();
            self.start_probes();
        } else if self.check.probed && self.is_wire_taken() && since <= self.check.settle_ns + SLOWEST {
            // By bytes of streams that were broken off, perhaps.
            self.check.progress = (self.check.delivered, self.now);
        } else if self.check.probed && alive == 0 {
            if !self.next_probe() {
                // Late frames, acknowledgements and tombstones settle, and what is
                // left in the registry is swept.
                self.check_leftovers();
                let swept = self.leftovers_until().map_or(0, |at| at + 2000 * MS);
                self.check.over_at = Some((self.now + 5000 * MS).max(swept));
                return;
            }
        } else if since > self.check.settle_ns + PATIENCE {
            // Thin wires take their time: stuck is who gets nothing any more.
            let (bytes, at) = self.check.progress;
            if bytes != self.check.delivered {
                self.check.progress = (self.check.delivered, self.now);
            } else if self.now - at > PATIENCE || since > self.check.settle_ns + SLOWEST {
                return self.say_who_is_stuck();
            }
        }
        self.after(PROBE_EVERY, Event::Probe { round: round + 1 });
    }

    /// What must hold when everything is over.
    pub(crate) fn check_end(&mut self) {
        if self.phase != Phase::Liveness || self.check.over_at.is_none() {
            return self.fail("L1", "the run ended before everything was over");
        }
        if planted::current() == Some(planted::CANARY) && mix(self.plan.seed).is_multiple_of(100) {
            return self.fail("CANARY", "the bug that fails one run in a hundred");
        }
        for p in self.check.probes.clone() {
            let fate = self.pairs.get(&p.id).and_then(|x| x[0]).map(|a| self.actors[a as usize].fate);
            if fate != Some(Fate::Finished) {
                return self
                    .fail("L3", format!("a new client of hub-{} for c{} ended as {fate:?}", p.hub, p.connector));
            }
        }
        for (client, pair) in self.pairs.clone() {
            let [Some(c), Some(t)] = pair else { continue };
            let (c, t) = (self.actors[c as usize].fate, self.actors[t as usize].fate);
            // S5: an abort on one side is an abort on the other, unless that had ended.
            for (a, b) in [(c, t), (t, c)] {
                if matches!(a, Fate::Aborted | Fate::Reset(_)) && b == Fate::Alive {
                    return self.fail("S5", format!("client {client}: one side aborted, the other still waits"));
                }
            }
        }
        self.check_ends();
        self.check_calm();
        for ix in 0..self.nodes.len() {
            let Some(m) = &self.nodes[ix].machine else { continue };
            let (streams, held) = (m.streams(), m.mux().budget().held());
            if streams > 0 {
                return self.fail("B5", format!("node {ix} still has {streams} streams"));
            }
            if held > 0 {
                return self.fail("B4", format!("node {ix} still accounts for {held} bytes"));
            }
        }
    }

    /// Without faults nothing may be refused or reset but by the plan.
    fn check_calm(&mut self) {
        if !self.check.calm
            || self.plan.hubs.iter().any(|h| h.budget < 64 << 20)
            || self.plan.agents.iter().any(|a| a.budget < 64 << 20 || a.token_ns > 0)
        {
            return;
        }
        for (client, pair) in self.pairs.clone() {
            let plan = self.client_plan(client);
            let Some(c) = pair[0].map(|c| &self.actors[c as usize]) else { continue };
            let accepts = matches!(plan.target, TargetPlan::Accept(after) if after * 2 < self.plan.timers.attempt.min(self.plan.timers.target));
            let willing = |e: Ending| !matches!(e, Ending::Abort(_) | Ending::AbortAfterRead(_));
            if plan.at < 10_000 * MS || !accepts || !willing(plan.client_end) || !willing(plan.target_end) {
                continue;
            }
            // The healing restarts agents whose tokens run out.
            let restarted = c.ended_at >= self.healed_at && self.plan.agents.iter().any(|a| a.token_ns > 0);
            if c.fate != Fate::Finished && !restarted && self.should_carry(usize::from(plan.hub), plan.connector) {
                return self.fail("L1", format!("client {client} ended as {:?} in a run without faults", c.fate));
            }
        }
    }
}

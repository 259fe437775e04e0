//! The registry of a simulated world: the core's `MemoryRegistry` behind a
//! network and a Redis that fail as R1 to R10 of the fault model say, and what
//! the production driver makes of that.
//!
//! A request is two events: it arrives and is executed there, atomically; its
//! reply arrives. The world's heap owns both: `submit` and `step` put [`Effect`]s
//! into the caller's list, the world hands every [`Step`] back at its instant,
//! also those of clients that are gone, and nothing is ever cancelled.
//!
//! Keeps: without a fault in force, every answer is `MemoryRegistry`'s at the
//! instant of arrival, and those of one client come in the order it asked.
//! Nothing is random but what the caller draws.
//!
//! Must not know: hubs, the world's other parts.
//!
//! Where it is simpler than the production driver: an operation is one atomic
//! step at the server. There, `Claim` and `SetConnectors` announce connectors
//! in a second step (modelled as [`Fault::HalfDone`]), lookups and sweeps read
//! in several round trips.

mod client;
mod fault;
mod ghost;
mod plan;
mod serve;
mod server;
#[cfg(test)]
mod tests;

use std::time::Duration;

use nowconnect_core::registry::{MemoryRegistry, RegistryError, RegistryOp, RegistryReply, RegistryResult, Token};
use nowconnect_core::time::Instant;

use client::Conns;
use fault::{Active, reads, writes};
pub use fault::{CLASSES, Class, Damage, Fault, ServerError, Whom};
pub use ghost::{Acted, ExecutedClaim, Violation};
use ghost::{Ghost, Place};
use server::Server;
pub use server::ServerId;

/// `SWEEP_DEADLINES` of the production driver: how many time-outs a sweep has.
const SWEEP_DEADLINES: u32 = 20;

/// Randomness, given by the caller.
pub trait Draw {
    /// A number in `0..n`; 0 when `n` is 0.
    fn below(&mut self, n: u64) -> u64;
}

impl<F: FnMut(u64) -> u64> Draw for F {
    fn below(&mut self, n: u64) -> u64 {
        self(n)
    }
}

/// One run of a hub process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client {
    /// Its machine.
    pub node: usize,
    /// Counts the machine's runs.
    pub run: u64,
}

/// Names a request in traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What the world does next for the registry.
#[derive(Debug)]
pub enum Effect {
    /// The core's `Input::Registry`, now.
    Reply {
        /// To whom. Its run may be over.
        client: Client,
        /// The operation.
        token: Token,
        /// Its outcome.
        result: RegistryResult,
    },
    /// To be handed to [`RegistryModel::step`] at that instant.
    At(Instant, Step),
}

/// An event of the registry, opaque to the world.
#[derive(Debug)]
pub struct Step(Kind);

#[derive(Debug)]
enum Kind {
    Arrive(Box<Request>),
    Reply(Box<Request>),
    TimedOut { client: Client, generation: u32 },
}

impl Step {
    /// For traces.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.0 {
            Kind::Arrive(_) => "registry request",
            Kind::Reply(_) => "registry reply",
            Kind::TimedOut { .. } => "registry time-out",
        }
    }

    /// Which request it belongs to; `None` for a time-out of the driver.
    #[must_use]
    pub const fn request(&self) -> Option<RequestId> {
        match &self.0 {
            Kind::Arrive(request) | Kind::Reply(request) => Some(request.id),
            Kind::TimedOut { .. } => None,
        }
    }
}

#[derive(Debug)]
struct Request {
    id: RequestId,
    client: Client,
    token: Token,
    op: RegistryOp,
    submitted: Instant,
    generation: u32,
    /// The driver's time-out is on the heap already.
    timing: bool,
    /// Executed late; whether its reply reaches the core nevertheless.
    late: Option<bool>,
    result: RegistryResult,
}

/// An old master that some still reach.
#[derive(Clone, Debug)]
struct Pinned {
    server: Server,
    nodes: Vec<usize>,
    until: Instant,
}

/// Another registry than the one that everybody is meant to use, and who uses it.
#[derive(Clone, Debug)]
struct Other {
    server: Server,
    nodes: Vec<usize>,
}

/// The clock of the servers: `TIME` of Redis.
#[derive(Clone, Copy, Debug)]
struct WallClock {
    at: Instant,
    millis: u64,
    drift_ppm: i64,
}

impl WallClock {
    fn millis(&self, now: Instant) -> u64 {
        let nanos = i128::from(u64::try_from(now.since(self.at).as_nanos()).unwrap_or(u64::MAX));
        let passed = (nanos + nanos * i128::from(self.drift_ppm) / 1_000_000) / 1_000_000;
        self.millis.saturating_add_signed(i64::try_from(passed).unwrap_or(i64::MAX))
    }
}

/// A Redis as its clients meet it.
#[derive(Clone, Debug)]
pub struct RegistryModel {
    clock: WallClock,
    primary: Server,
    pinned: Option<Pinned>,
    elsewhere: Option<Other>,
    active: Vec<Active>,
    conns: Conns,
    latency: (Duration, Duration),
    op_timeout: Duration,
    requests: u64,
    servers: u32,
    claims_under_way: u32,
    last_claim: Option<Instant>,
    ghost: Ghost,
    injected: [u64; CLASSES],
}

impl RegistryModel {
    /// An empty registry. `wall_millis_at_zero`: its wall clock at
    /// `Instant::ZERO`, milliseconds since 1970.
    #[must_use]
    pub fn new(wall_millis_at_zero: u64) -> Self {
        Self {
            clock: WallClock { at: Instant::ZERO, millis: wall_millis_at_zero, drift_ppm: 0 },
            primary: Server::new(ServerId(0), MemoryRegistry::default(), Instant::ZERO, None),
            pinned: None,
            elsewhere: None,
            active: Vec::new(),
            conns: Conns::default(),
            latency: (Duration::from_micros(100), Duration::from_millis(2)),
            op_timeout: Duration::from_millis(500),
            requests: 0,
            servers: 1,
            claims_under_way: 0,
            last_claim: None,
            ghost: Ghost::default(),
            injected: [0; CLASSES],
        }
    }

    /// How long a request or a reply travels when nothing is wrong; 100 us to
    /// 2 ms unless set.
    pub fn set_latency(&mut self, min: Duration, max: Duration) {
        self.latency = (min, max.max(min));
    }

    /// The clients' time-out (`registry.op_timeout`); 500 ms unless set.
    pub fn set_op_timeout(&mut self, op_timeout: Duration) {
        self.op_timeout = op_timeout;
    }

    /// From now on the last `keep` can be gone back to by failovers, restores
    /// and stale reads. Costs a copy of every write.
    pub fn arm(&mut self, keep: Duration) {
        self.primary.arm(keep);
    }

    /// A hub sends an operation.
    pub fn submit(
        &mut self,
        now: Instant,
        client: Client,
        token: Token,
        op: RegistryOp,
        draw: &mut dyn Draw,
        effects: &mut Vec<Effect>,
    ) -> RequestId {
        self.prune(now);
        self.requests += 1;
        let id = RequestId(self.requests);
        let refuse = |why: &str, effects: &mut Vec<Effect>| {
            let result = Err(RegistryError::Definite(format!("not connected to Redis: {why}")));
            effects.push(Effect::Reply { client, token, result });
            id
        };
        let blocked = !self.active.is_empty() && self.dial_fails(client.node);
        let refusing = self.hits(client.node, |f| *f == Fault::Refuse).is_some();
        let travel = travel(self.latency, draw);
        let conn = self.conns.of(client, now);
        if refusing {
            conn.abandon(conn.generation, now, draw);
        }
        if !conn.is_up(now, blocked) {
            if refusing {
                self.count(Class::R1);
            }
            return refuse("given up or refused", effects);
        }
        let generation = conn.generation;
        let mut request = Box::new(Request {
            id,
            client,
            token,
            op,
            submitted: now,
            generation,
            timing: false,
            late: None,
            result: Ok(RegistryReply::Done),
        });
        let mut at = now.after(travel);
        if !self.active.is_empty() {
            at = self.delayed(&mut request, at, draw);
        }
        if request.late.is_none()
            && let Some(conn) = self.conns.find(client)
        {
            at = conn.arrival(at);
        }
        if matches!(request.op, RegistryOp::Claim(_)) {
            self.claims_under_way += 1;
        }
        self.time(&mut request, at, effects);
        effects.push(Effect::At(at, Step(Kind::Arrive(request))));
        id
    }

    /// An event that is due.
    pub fn step(&mut self, now: Instant, step: Step, draw: &mut dyn Draw, effects: &mut Vec<Effect>) {
        self.prune(now);
        match step.0 {
            Kind::Arrive(request) => self.arrive(now, request, draw, effects),
            Kind::Reply(request) => self.reply(now, request, draw, effects),
            Kind::TimedOut { client, generation } => {
                if let Some(conn) = self.conns.find(client) {
                    conn.timed_out(generation, now, draw);
                }
            }
        }
    }

    fn deadline(&self, request: &Request) -> Instant {
        let times = if request.op == RegistryOp::Sweep { SWEEP_DEADLINES } else { 1 };
        request.submitted.after(self.op_timeout.saturating_mul(times))
    }

    /// Puts the driver's time-out on the heap if nothing comes before it.
    fn time(&self, request: &mut Request, at: Instant, effects: &mut Vec<Effect>) {
        let deadline = self.deadline(request);
        if at >= deadline && !request.timing {
            request.timing = true;
            let step = Step(Kind::TimedOut { client: request.client, generation: request.generation });
            effects.push(Effect::At(deadline, step));
        }
    }

    fn delayed(&mut self, request: &mut Request, mut at: Instant, draw: &mut dyn Draw) -> Instant {
        let node = request.client.node;
        let slow = self.hits(node, |f| matches!(f, Fault::Slow { .. }));
        if let Some(&Fault::Slow { min, max }) = slow.map(|a| &a.fault) {
            self.count(Class::R1);
            at = at.after(travel((min, max.max(min)), draw));
        }
        let late = self.hits(node, |f| matches!(f, Fault::LateCommits { .. }));
        if let Some(&Fault::LateCommits { per_mille, max, reply }) = late.map(|a| &a.fault)
            && chance(per_mille, draw)
        {
            self.count(Class::R2);
            request.late = Some(reply);
            at = at.max(self.deadline(request).after(travel((Duration::ZERO, max), draw)));
        }
        at
    }

    fn arrive(&mut self, now: Instant, mut request: Box<Request>, draw: &mut dyn Draw, effects: &mut Vec<Effect>) {
        if matches!(request.op, RegistryOp::Claim(_)) {
            self.claims_under_way = self.claims_under_way.saturating_sub(1);
        }
        let mut answered = true;
        if self.conns.find(request.client).is_some_and(|c| c.stuck) && writes(&request.op) {
            request.result = Err(ServerError::ReadOnly.outcome());
        } else if self.active.is_empty() {
            request.result = self.execute(now, &request, 0);
        } else if self.hits(request.client.node, |f| *f == Fault::Refuse).is_some() {
            self.count(Class::R1);
            request.result = Err(RegistryError::Unknown("connection lost".to_owned()));
            self.abandon(now, &request, draw);
            return deliver(*request, effects);
        } else if self.hits(request.client.node, |f| *f == Fault::Blackhole).is_some() {
            self.count(Class::R1);
            return self.swallow(now, request, effects);
        } else {
            answered = self.serve(now, &mut request, draw);
        }
        if !answered || request.late == Some(false) {
            if matches!((&request.op, &request.result), (RegistryOp::Claim(_), Ok(_))) {
                self.ghost.mark("claim executed but its reply was lost");
            }
            return self.swallow(now, request, effects);
        }
        let at = now.after(travel(self.latency, draw));
        let at = match self.conns.find(request.client) {
            Some(conn) if request.late.is_none() => conn.reply(request.generation, at),
            Some(_) | None => at,
        };
        self.time(&mut request, at, effects);
        effects.push(Effect::At(at, Step(Kind::Reply(request))));
    }

    fn server(&self, node: usize) -> &Server {
        match (&self.elsewhere, &self.pinned) {
            (Some(other), _) if other.nodes.contains(&node) => &other.server,
            (_, Some(old)) if old.nodes.contains(&node) => &old.server,
            _ => &self.primary,
        }
    }

    fn server_mut(&mut self, node: usize) -> &mut Server {
        match (&mut self.elsewhere, &mut self.pinned) {
            (Some(other), _) if other.nodes.contains(&node) => &mut other.server,
            (_, Some(old)) if old.nodes.contains(&node) => &mut old.server,
            _ => &mut self.primary,
        }
    }

    fn execute(&mut self, now: Instant, request: &Request, skew_millis: i64) -> RegistryResult {
        let op = &request.op;
        let wall = self.wall_millis(now).saturating_add_signed(skew_millis);
        let node = request.client.node;
        let elsewhere = self.is_elsewhere(node);
        let primary = !elsewhere && !self.pinned.as_ref().is_some_and(|old| old.nodes.contains(&node));
        if elsewhere {
            self.ghost.mark("answered by another registry");
        } else if !primary {
            self.count(Class::R3);
        }
        if reads(op) {
            return self.server_mut(node).execute(now, wall, op);
        }
        let before = Ghost::before(&self.server(node).state, wall, op);
        let server = self.server_mut(node);
        let result = server.execute(now, wall, op);
        let place = Place { server: server.id, primary, at: now, wall };
        let state = match (&self.elsewhere, &self.pinned) {
            (Some(other), _) if elsewhere => &other.server.state,
            (_, Some(old)) if !primary => &old.server.state,
            _ => &self.primary.state,
        };
        self.ghost.after(place, &before, op, &result, state);
        if now > self.deadline(request) {
            self.ghost.mark("late execution after the client's time-out");
        }
        if matches!(op, RegistryOp::Claim(_)) {
            self.last_claim = Some(now);
        } else if *op == RegistryOp::Sweep
            && (self.claims_under_way > 0 || self.last_claim.is_some_and(|at| at >= request.submitted))
        {
            self.ghost.mark("sweeper raced with a claim");
        }
        result
    }

    fn reply(&mut self, now: Instant, mut request: Box<Request>, draw: &mut dyn Draw, effects: &mut Vec<Effect>) {
        let node = request.client.node;
        if !self.active.is_empty() {
            let claimed = matches!((&request.op, &request.result), (RegistryOp::Claim(_), Ok(_)));
            if self.hits(node, |f| *f == Fault::Blackhole).is_some() {
                self.count(Class::R1);
                if claimed {
                    self.ghost.mark("claim executed but its reply was lost");
                }
                return self.swallow(now, request, effects);
            }
            let misalign = |f: &Fault| if let Fault::Misalign { per_mille } = f { Some(*per_mille) } else { None };
            let misaligned = self.strikes(node, misalign, draw);
            let broken = self.hits(node, |f| *f == Fault::Refuse).is_some();
            if broken || misaligned {
                self.count(if broken { Class::R1 } else { Class::R10 });
                if claimed {
                    self.ghost.mark("claim executed but its reply was lost");
                }
                let why = if broken { "connection lost" } else { "the reply belonged to another request" };
                request.result = Err(RegistryError::Unknown(why.to_owned()));
                self.abandon(now, &request, draw);
                return deliver(*request, effects);
            }
        }
        if let Some(conn) = self.conns.find(request.client)
            && request.late.is_none()
        {
            conn.answered(request.generation);
        }
        deliver(*request, effects);
    }

    /// Nobody will hear of this request; the driver notices by its time-out.
    fn swallow(&self, now: Instant, mut request: Box<Request>, effects: &mut Vec<Effect>) {
        if !request.timing {
            let deadline = self.deadline(&request).max(now);
            self.time(&mut request, deadline, effects);
        }
    }

    fn abandon(&mut self, now: Instant, request: &Request, draw: &mut dyn Draw) {
        if let Some(conn) = self.conns.find(request.client) {
            conn.abandon(request.generation, now, draw);
        }
    }

    fn hits(&self, node: usize, is: impl Fn(&Fault) -> bool) -> Option<&Active> {
        self.active.iter().find(|a| a.whom.is(node) && is(&a.fault))
    }

    /// Whether a fault that hits some requests hits this one.
    fn strikes(&self, node: usize, rate: impl Fn(&Fault) -> Option<u16>, draw: &mut dyn Draw) -> bool {
        self.active.iter().filter(|a| a.whom.is(node)).filter_map(|a| rate(&a.fault)).any(|r| chance(r, draw))
    }

    fn dial_fails(&self, node: usize) -> bool {
        let fails = |f: &Fault| {
            matches!(f, Fault::Refuse | Fault::Blackhole | Fault::Demoted { sticky: true })
                || matches!(f, Fault::Errors { error, per_mille } if *per_mille >= 1000 && error.fails_dial())
        };
        self.hits(node, fails).is_some()
    }

    fn count(&mut self, class: Class) {
        self.injected[class as usize] += 1;
    }

    fn prune(&mut self, now: Instant) {
        if !self.active.is_empty() {
            self.active.retain(|a| now < a.until);
        }
        if self.pinned.as_ref().is_some_and(|old| old.until <= now) {
            self.pinned = None;
        }
    }
}

fn deliver(request: Request, effects: &mut Vec<Effect>) {
    let Request { client, token, result, .. } = request;
    effects.push(Effect::Reply { client, token, result });
}

fn travel((min, max): (Duration, Duration), draw: &mut dyn Draw) -> Duration {
    let spread = u64::try_from(max.saturating_sub(min).as_nanos()).unwrap_or(u64::MAX);
    min + Duration::from_nanos(draw.below(spread.saturating_add(1)))
}

fn chance(per_mille: u16, draw: &mut dyn Draw) -> bool {
    per_mille >= 1000 || draw.below(1000) < u64::from(per_mille)
}

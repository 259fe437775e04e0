//! Makes a failing plan small: less after the violation, fewer classes of
//! faults, nodes, clients and faults, then smaller sizes and shorter delays,
//! over and over until nothing more can go. A smaller plan is taken only if it
//! breaks the same invariant, and with a planted bug only if it holds without
//! it. Same plan, same result, unless the caller ends it early.

use crate::edit::{without_agent, without_hub};
use crate::faults::{Class, Fault, Planned};
use crate::plan::{FlowPlan, MS, ModePlan, Plan, TargetPlan};
use crate::repeat::perform;
use crate::run::Keep;
use crate::world::Violation;

/// What a plan consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Faults, planned and at vulnerable moments.
    pub faults: usize,
    /// Hubs and agents.
    pub nodes: usize,
    /// Clients.
    pub clients: usize,
    /// Payload bytes they mean to send.
    pub bytes: u64,
}

impl Size {
    /// The size of a plan.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        Self {
            faults: plan.faults.len() + plan.triggered.as_ref().map_or(0, Vec::len),
            nodes: plan.hubs.len() + plan.agents.len(),
            clients: plan.clients.len(),
            bytes: plan.clients.iter().map(|c| u64::from(c.up.total) + u64::from(c.down.total)).sum(),
        }
    }

    /// At most a dozen faults and three nodes.
    #[must_use]
    pub const fn is_small(&self) -> bool {
        self.faults <= 12 && self.nodes <= 3
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { faults, nodes, clients, bytes } = self;
        write!(f, "{faults} faults, {nodes} nodes, {clients} clients, {bytes} B")
    }
}

/// A shrunk plan.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The plan.
    pub plan: Plan,
    /// What it breaks.
    pub violation: Violation,
    /// The size at first.
    pub before: Size,
    /// The size now.
    pub after: Size,
    /// Plans tried.
    pub runs: u64,
    /// Nothing more could go (else the caller ended it).
    pub done: bool,
}

struct Shrinker<'a> {
    best: Plan,
    found: Violation,
    failed_at: u64,
    planted: Option<u16>,
    runs: u64,
    go_on: &'a mut dyn FnMut(u64, &Size) -> bool,
    stopped: bool,
}

/// Shrinks a failing plan. `go_on` is asked before each run, with the number of
/// runs and the size so far. `None`: the plan holds, there is nothing to shrink.
///
/// # Errors
/// The bug cannot be on in this build.
pub fn shrink(
    plan: Plan,
    planted: Option<u16>,
    go_on: &mut dyn FnMut(u64, &Size) -> bool,
) -> Result<Option<Shrunk>, String> {
    let Some(mut first) = perform(plan, planted, Keep::Outcome) else {
        return Err("the planted bug cannot be on in this build".to_owned());
    };
    let Some(found) = first.violation.take() else {
        return Ok(None);
    };
    let before = Size::of(&Plan { triggered: Some(first.triggered.clone()), ..first.plan.clone() });
    let failed_at = first.virtual_ns;
    let mut s = Shrinker { best: first.plan, found, failed_at, planted, runs: 1, go_on, stopped: false };
    s.attempt(|p| {
        // What was drawn at vulnerable moments becomes part of the plan.
        p.triggered = Some(first.triggered.clone());
        p.at_vulnerable = 0;
    });
    s.plan_what_was_triggered();
    loop {
        let at_start = s.best.clone();
        s.cut_the_end();
        s.drop_classes();
        s.drop_nodes();
        s.drop_clients();
        s.drop_faults();
        s.simplify();
        s.halve();
        if s.stopped || s.best == at_start {
            break;
        }
    }
    let after = Size::of(&s.best);
    Ok(Some(Shrunk { plan: s.best, violation: s.found, before, after, runs: s.runs, done: !s.stopped }))
}

impl Shrinker<'_> {
    /// Takes a plan if it fails in the same way.
    fn take(&mut self, plan: Plan) -> bool {
        if self.stopped || plan == self.best {
            return false;
        }
        if !(self.go_on)(self.runs, &Size::of(&self.best)) {
            self.stopped = true;
            return false;
        }
        self.runs += 1;
        let Some(report) = perform(plan, self.planted, Keep::Outcome) else { return false };
        let Some(found) = report.violation else { return false };
        if found.id != self.found.id {
            return false;
        }
        if self.planted.is_some() {
            let without = perform(report.plan.clone(), None, Keep::Outcome);
            if without.is_none_or(|r| r.violation.is_some()) {
                return false;
            }
        }
        self.best = report.plan;
        self.found = found;
        self.failed_at = report.virtual_ns;
        true
    }

    fn attempt(&mut self, edit: impl FnOnce(&mut Plan)) -> bool {
        let mut plan = self.best.clone();
        edit(&mut plan);
        self.take(plan)
    }

    /// A fault at a time is easier to move than one at the n-th occurrence.
    fn plan_what_was_triggered(&mut self) {
        let Some(report) = perform(self.best.clone(), self.planted, Keep::Outcome) else { return };
        self.attempt(|p| {
            p.triggered = None;
            let times = report.triggered.iter().zip(&report.triggered_at);
            p.faults.extend(times.map(|(t, at)| Planned { at: *at, fault: t.fault }));
        });
    }

    /// Nothing after the violation matters.
    fn cut_the_end(&mut self) {
        let at = self.failed_at;
        let in_time = |p: &mut Plan| {
            p.faults.retain(|f| f.at <= at);
            p.clients.retain(|c| c.at <= at);
        };
        if !self.attempt(|p| {
            in_time(p);
            p.safety_ns = p.safety_ns.min(at + MS);
        }) {
            self.attempt(in_time);
        }
        // A violation after the healing may not need the long time before it.
        let last = self.best.faults.iter().map(|f| f.at).chain(self.best.clients.iter().map(|c| c.at)).max();
        let last = last.unwrap_or(0) + 1000 * MS;
        self.attempt(|p| p.safety_ns = p.safety_ns.min(last));
        while self.best.safety_ns > 2000 * MS && self.attempt(|p| p.safety_ns /= 2) {}
    }

    fn drop_classes(&mut self) {
        let off = |p: &mut Plan, drop: &dyn Fn(Class) -> bool| {
            p.faults.retain(|f| !drop(f.fault.class()));
            if let Some(list) = &mut p.triggered {
                list.retain(|t| !drop(t.fault.class()));
            }
            p.classes.retain(|c| !drop(*c));
        };
        if self.attempt(|p| off(p, &|_| true)) {
            return;
        }
        for class in Class::ALL {
            self.attempt(|p| off(p, &|c| c == *class));
        }
    }

    fn drop_nodes(&mut self) {
        for n in (0..self.best.hubs.len() as u8).rev() {
            for keep in [false, true] {
                if without_hub(&self.best, n, keep).is_some_and(|p| self.take(p)) {
                    break;
                }
            }
        }
        for n in (0..self.best.agents.len() as u8).rev() {
            if let Some(p) = without_agent(&self.best, n) {
                self.take(p);
            }
        }
    }

    /// Takes away pieces of a list, half of it at first, then less and less.
    fn minimise(&mut self, length: impl Fn(&Plan) -> usize, drop: impl Fn(&mut Plan, std::ops::Range<usize>)) {
        let mut piece = length(&self.best);
        while piece > 0 && !self.stopped {
            let mut at = 0;
            while at < length(&self.best) && !self.stopped {
                let end = (at + piece).min(length(&self.best));
                if !self.attempt(|p| drop(p, at..end)) {
                    at = end;
                }
            }
            piece /= 2;
        }
    }

    fn drop_clients(&mut self) {
        self.minimise(
            |p| p.clients.len(),
            |p, gone| {
                p.clients.drain(gone);
            },
        );
    }

    fn drop_faults(&mut self) {
        self.minimise(
            |p| p.faults.len() + p.triggered.as_ref().map_or(0, Vec::len),
            |p, gone| {
                let planned = p.faults.len();
                let cut = |n: usize| n.min(planned);
                p.faults.drain(cut(gone.start)..cut(gone.end));
                if let Some(list) = &mut p.triggered {
                    list.drain(gone.start.max(planned) - planned..gone.end.max(planned) - planned);
                }
            },
        );
    }

    /// Whatever need not be special is not.
    fn simplify(&mut self) {
        for n in (0..self.best.rogues.len()).rev() {
            self.attempt(|p| {
                p.rogues.remove(n);
            });
        }
        self.attempt(|p| p.shuffle = false);
        self.attempt(|p| p.late_timers_ns = 0);
        self.attempt(|p| p.v1 = 0);
        self.attempt(|p| p.net.jitter = 0);
        self.attempt(|p| p.net.latency = (MS, MS));
        self.attempt(|p| p.net.bandwidth = (1 << 30, 1 << 30));
        self.attempt(|p| p.net.buffer = (1 << 20, 1 << 20));
        self.attempt(|p| p.classes.clear());
        for n in 0..self.best.hubs.len() {
            self.attempt(|p| {
                p.hubs[n].shards = 0;
                p.hubs[n].note_delay_ns = 0;
            });
            self.attempt(|p| p.hubs[n].mode = ModePlan::Active);
            self.attempt(|p| p.hubs[n].peers.retain(|peer| usize::from(*peer) != n));
            self.attempt(|p| {
                let h = &mut p.hubs[n];
                (h.budget, h.queue_depth, h.inflight, h.window) = (512 << 20, 1000, 8 << 20, (65_536, 1 << 20));
            });
            self.attempt(|p| {
                let h = &mut p.hubs[n];
                (h.first_byte, h.drift_ppm, h.region, h.start_ns) = (false, 0, 0, 0);
            });
        }
        for n in 0..self.best.agents.len() {
            self.attempt(|p| {
                let a = &mut p.agents[n];
                (a.budget, a.inflight, a.window, a.drift_ppm) = (512 << 20, 8 << 20, (65_536, 1 << 20), 0);
            });
            self.attempt(|p| {
                let a = &mut p.agents[n];
                (a.scope, a.start_ns, a.token_ns) = (None, 0, 0);
            });
            self.attempt(|p| {
                p.agents[n].hubs.truncate(1);
                p.agents[n].parallel = 1;
            });
        }
    }

    /// Half of each size and delay, while it still fails.
    fn halve(&mut self) {
        for n in 0..self.best.clients.len() {
            let flow = |f: &mut FlowPlan| {
                f.total /= 2;
                f.after = f.after.min(f.total);
            };
            while self.best.clients[n].up.total > 0
                && self.attempt(|p| {
                    let c = &mut p.clients[n];
                    flow(&mut c.up);
                    c.down.after = c.down.after.min(c.up.total);
                })
            {}
            while self.best.clients[n].down.total > 0
                && self.attempt(|p| {
                    let c = &mut p.clients[n];
                    flow(&mut c.down);
                    c.up.after = c.up.after.min(c.down.total);
                })
            {}
            self.attempt(|p| (p.clients[n].up.write_gap, p.clients[n].up.read_gap) = (0, 0));
            self.attempt(|p| (p.clients[n].down.write_gap, p.clients[n].down.read_gap) = (0, 0));
            self.attempt(|p| (p.clients[n].up.after, p.clients[n].down.after) = (0, 0));
            self.attempt(|p| (p.clients[n].up.chunk, p.clients[n].up.read) = (1 << 16, 1 << 16));
            self.attempt(|p| (p.clients[n].down.chunk, p.clients[n].down.read) = (1 << 16, 1 << 16));
            self.attempt(|p| p.clients[n].target = TargetPlan::Accept(MS));
            self.attempt(|p| (p.clients[n].latency, p.clients[n].buffer) = (MS, 1 << 16));
            self.attempt(|p| p.clients[n].at -= p.clients[n].at % (1000 * MS));
            while self.best.clients[n].at > 1000 * MS && self.attempt(|p| p.clients[n].at /= 2) {}
        }
        for n in 0..self.best.faults.len() {
            while self.best.faults[n].fault.lasts() > MS && self.attempt(|p| halve_fault(&mut p.faults[n].fault)) {}
            self.attempt(|p| p.faults[n].at -= p.faults[n].at % (1000 * MS));
            while self.best.faults[n].at > 1000 * MS && self.attempt(|p| p.faults[n].at /= 2) {}
        }
        for n in 0..self.best.triggered.as_ref().map_or(0, Vec::len) {
            self.attempt(|p| {
                if let Some(t) = p.triggered.as_mut().and_then(|l| l.get_mut(n)) {
                    halve_fault(&mut t.fault);
                }
            });
        }
    }
}

fn halve_fault(fault: &mut Fault) {
    match fault {
        Fault::Cut { .. }
        | Fault::CutAll { .. }
        | Fault::AbortTargets { .. }
        | Fault::Mode { .. }
        | Fault::Reload { .. }
        | Fault::Certificate { .. } => {}
        Fault::Leave { lameduck_ms, timeout_ms, .. } => {
            (*lameduck_ms, *timeout_ms) = (*lameduck_ms / 2, *timeout_ms / 2)
        }
        Fault::Flap { times, .. } => *times = (*times / 2).max(1),
        Fault::Crash { down_ms: ms, .. }
        | Fault::Stop { down_ms: ms, .. }
        | Fault::Block { ms, .. }
        | Fault::Isolate { ms, .. }
        | Fault::Slow { ms, .. }
        | Fault::RefuseDials { ms, .. }
        | Fault::Redirect { ms, .. }
        | Fault::Address { ms, .. }
        | Fault::Stall { ms, .. }
        | Fault::Elsewhere { ms, .. }
        | Fault::Partition { ms, .. }
        | Fault::Pause { ms, .. }
        | Fault::Lag { ms, .. }
        | Fault::Registry { ms, .. }
        | Fault::Clone { ms, .. }
        | Fault::Targets { ms, .. }
        | Fault::Swizzle { ms, .. }
        | Fault::IdleCut { ms, .. }
        | Fault::IngressRestart { ms, .. }
        | Fault::NoDescriptors { ms, .. }
        | Fault::Twin { ms, .. }
        | Fault::Drain { ms, .. } => *ms /= 2,
    }
}

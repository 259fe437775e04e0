//! Carries out faults, undoes them, and heals the world.

mod apart;
mod scale;

use std::time::Duration;

use nowconnect_core::mux::Input;
use nowconnect_core::registry::{RegistryOp, RegistryResult, Token};
use nowconnect_core::time::Instant;

use crate::event::{Event, Undo};
use crate::faults::{At, Class, CutHow, Fault, Point, RegistryFault, Triggered, draw_triggered};
use crate::marks::Mark;
use crate::plan::MS;
use crate::proof::Keys;
use crate::registry::{self, Client, Damage, Draw, Effect, ServerError, Whom};
use crate::reload::Changed;
use crate::tape::Lane;
use crate::world::{Phase, World};

/// The planted bug that lives in this world's clocks.
const PLANTED_WALL_CLOCK: u16 = 44;
/// How far back the registry can be set.
const KEEP: Duration = Duration::from_secs(30);

impl Draw for Lane {
    fn below(&mut self, n: u64) -> u64 {
        Self::below(self, n)
    }
}

impl World {
    pub(crate) fn on_fault(&mut self, ix: u32) {
        let Some(planned) = self.plan.faults.get(ix as usize).copied() else { return };
        if self.phase == Phase::Safety {
            self.inject(planned.fault);
        }
    }

    /// A vulnerable moment: something may go wrong just now. What it does is
    /// put on the heap, since machines are at work.
    pub(crate) fn vulnerable(&mut self, point: Point, node: u16, peer: Option<u16>) {
        if self.phase != Phase::Safety || (self.plan.at_vulnerable == 0 && self.plan.triggered.is_none()) {
            return;
        }
        let count = self.point_counts.entry(point).or_insert(0);
        let nth = *count;
        *count += 1;
        let fault = if let Some(list) = &self.plan.triggered {
            list.iter().find(|t| t.point == point && t.nth == nth).map(|t| t.fault)
        } else if self.fault_draws.chance(u64::from(self.plan.at_vulnerable), 10_000) {
            let at = self.nodes[usize::from(node)].at;
            let peer = peer.map(|p| self.nodes[usize::from(p)].at);
            let mut lane = self.tape.lane("triggered", u64::from(nth) << 8 | point as u64);
            draw_triggered(&self.plan.classes, point, at, peer, &mut lane)
        } else {
            None
        };
        if let Some(fault) = fault {
            self.triggered.push(Triggered { point, nth, fault });
            self.triggered_at.push(self.now);
            if let Fault::Registry { .. } = fault {
                // No machine is touched, and what is being asked is to meet it.
                self.marks.hit(Mark::RegistryAtMoment);
                return self.inject(fault);
            }
            let ix = self.check.late_faults.len() as u32;
            self.check.late_faults.push(fault);
            self.after(0, Event::Undo(Undo::Late { ix }));
        }
    }

    /// Something goes wrong.
    pub(crate) fn inject(&mut self, fault: Fault) {
        self.faults_done[fault.class() as usize] += 1;
        self.line(None, || format!("FAULT {fault:?}"));
        let lasts = fault.lasts();
        let alone = self.only_drains();
        self.check.quiet_from = self.check.quiet_from.max(self.now + lasts);
        match fault {
            Fault::Cut { a, b, how } => {
                let (a, b) = (self.node_of(a), self.node_of(b));
                self.cut(a, Some(b), how);
            }
            Fault::CutAll { at, how } => {
                let node = self.node_of(at);
                self.cut(node, None, how);
            }
            Fault::Flap { a, b, times, every_ms, how } => {
                let (a, b) = (self.node_of(a), self.node_of(b));
                self.flap(a, b, times, every_ms * MS, how);
            }
            Fault::Block { a, b, both, .. } => {
                let (a, b) = (self.node_of(a), self.node_of(b));
                self.block(a, b, lasts);
                if both {
                    self.block(b, a, lasts);
                }
            }
            Fault::Isolate { at, .. } => {
                let node = self.node_of(at);
                for other in (0..self.nodes.len() as u16).filter(|n| *n != node) {
                    self.block(node, other, lasts);
                    self.block(other, node, lasts);
                }
            }
            Fault::Slow { a, b, factor, .. } => {
                let (a, b) = (self.node_of(a), self.node_of(b));
                self.net.slow(a, b, factor);
                self.after(lasts, Event::Undo(Undo::Slow { a, b }));
            }
            Fault::RefuseDials { hub, hang, .. } => {
                let hub = u16::from(hub);
                self.net.dials.entry(hub).or_default().push(hang);
                self.after(lasts, Event::Undo(Undo::Dials { hub }));
            }
            Fault::Redirect { hub, .. } => {
                // A plan may have fewer hubs than its faults name; an agent
                // never answers a dial.
                self.net.redirect.push(u16::from(hub) % self.plan.hubs.len().max(1) as u16);
                self.after(lasts, Event::Undo(Undo::Redirect));
            }
            Fault::Crash { at, silent, .. } => {
                let node = self.node_of(at);
                if silent {
                    self.marks.hit(Mark::SilentDeath);
                }
                self.crash(node, silent);
                self.after(lasts, Event::Undo(Undo::Restart { node }));
            }
            Fault::Pause { at, .. } => {
                let node = self.node_of(at);
                if self.nodes[usize::from(node)].is_up() && !self.nodes[usize::from(node)].paused {
                    self.nodes[usize::from(node)].paused = true;
                    if self.nodes[usize::from(node)].is_hub() && lasts > self.plan.timers.lease {
                        self.marks.hit(Mark::PausedPastLease);
                    }
                    self.after(lasts, Event::Undo(Undo::Pause { node }));
                }
            }
            Fault::Lag { at, by_ms, .. } => {
                let node = self.node_of(at);
                self.nodes[usize::from(node)].lag = by_ms * MS;
                self.after(lasts, Event::Undo(Undo::Lag { node }));
            }
            Fault::Address { hub, to, .. } => {
                self.net.addresses.entry(hub).or_default().push(to);
                self.after(lasts, Event::Undo(Undo::Address { hub }));
            }
            Fault::Stall { hub, shard, .. } => self.stall(u16::from(hub), shard, lasts),
            Fault::Elsewhere { hub, restart, .. } => self.point_elsewhere(u16::from(hub), restart, lasts),
            Fault::Partition { order, .. } => self.partition(order, lasts),
            Fault::Registry { what, hub, .. } => self.inject_registry(what, hub, lasts),
            Fault::Clone { agent, .. } => {
                self.marks.hit(Mark::TwoInstances);
                let node = self.add_clone(At::Agent(agent));
                self.after(lasts, Event::Undo(Undo::Clone { node }));
            }
            Fault::Targets { agent, hang, .. } => {
                let node = self.node_of(At::Agent(agent));
                self.nodes[usize::from(node)].targets_down = Some(hang);
                self.after(lasts, Event::Undo(Undo::Targets { node }));
            }
            Fault::AbortTargets { agent } => {
                let node = self.node_of(At::Agent(agent));
                self.abort_targets(node);
            }
            Fault::Drain { at, lameduck_ms, timeout_ms, back_ms, .. } => {
                let node = self.node_of(at);
                if !self.nodes[usize::from(node)].paused {
                    self.drain(node, lameduck_ms, timeout_ms, alone);
                    self.after(lasts, Event::Undo(Undo::Drained { node }));
                    if let Some(back) = back_ms {
                        self.after(back * MS, Event::Undo(Undo::Undrain { node }));
                    }
                }
            }
            Fault::Leave { hub, lameduck_ms, timeout_ms } => {
                self.retire(u16::from(hub), lameduck_ms, timeout_ms, alone, lasts);
            }
            Fault::Mode { hub, mode } => {
                let node = u16::from(hub);
                if self.nodes[usize::from(node)].paused {
                    // Nobody there takes a signal: the next process has it.
                    self.nodes[usize::from(node)].mode = Some(mode);
                } else {
                    self.flip(node, Some(mode));
                }
            }
            Fault::Reload { at, what } => {
                let node = self.node_of(at);
                self.change(node, what);
            }
            Fault::Certificate { hub, keys } => {
                self.set_keys(u16::from(hub), keys);
            }
            Fault::Swizzle { order, .. } => self.swizzle(order, lasts),
            Fault::IdleCut { hub, idle_ms, how, .. } => {
                let until = self.now + lasts;
                self.cut_idle_ones(u16::from(hub), idle_ms * MS, how, until);
            }
            Fault::IngressRestart { hub, how, .. } => {
                let hub = u16::from(hub);
                self.cut_accepted(hub, how);
                self.net.dials.entry(hub).or_default().push(false);
                self.after(lasts, Event::Undo(Undo::Dials { hub }));
            }
            Fault::NoDescriptors { at, .. } => {
                let node = self.node_of(at);
                self.nodes[usize::from(node)].shortages += 1;
                self.after(lasts, Event::Undo(Undo::Shortage { node }));
            }
            Fault::Twin { hub, .. } => {
                if !self.net.twins.contains_key(&hub) {
                    self.marks.hit(Mark::TwinHub);
                    let node = self.add_clone(At::Hub(hub));
                    self.net.twins.insert(hub, node);
                    self.ghost_twins(hub, node);
                    self.after(lasts, Event::Undo(Undo::Twin { hub, node }));
                }
            }
            Fault::Stop { at, .. } => {
                let node = self.node_of(at);
                self.stop(node);
                self.after(lasts, Event::Undo(Undo::Restart { node }));
            }
        }
    }

    /// An orderly stop: the machine says good-bye, its connections are flushed.
    pub(crate) fn stop(&mut self, node: u16) {
        if self.nodes[usize::from(node)].paused {
            return;
        }
        self.excuse(node);
        self.ghost_stopped(node);
        self.input(node, Input::Shutdown);
        self.crash(node, false);
    }

    fn block(&mut self, from: u16, to: u16, lasts: u64) {
        self.net.block(from, to);
        self.after(lasts, Event::Undo(Undo::Block { from, to }));
    }

    /// Clogs half of the nodes one by one, then unclogs them in another order.
    fn swizzle(&mut self, order: u64, lasts: u64) {
        let mut lane = self.tape.lane("swizzle", order);
        let nodes: Vec<u16> = (0..self.nodes.len() as u16)
            .filter(|_| lane.chance(1, 2))
            .filter(|n| !self.nodes[usize::from(*n)].is_clone)
            .collect();
        for node in nodes {
            let from = lane.below(lasts / 2 + 1);
            let until = from + 1 + lane.below(lasts / 2 + 1);
            let ix = self.check.late_faults.len() as u32;
            let at = self.nodes[usize::from(node)].at;
            self.check.late_faults.push(Fault::Isolate { at, ms: (until - from) / MS + 1 });
            self.after(from, Event::Undo(Undo::Late { ix }));
        }
    }

    fn flap(&mut self, a: u16, b: u16, left: u8, every_ns: u64, how: CutHow) {
        self.cut(a, Some(b), how);
        if left > 1 {
            self.after(every_ns, Event::Undo(Undo::Flap { a, b, left: left - 1, every_ns, how }));
        }
    }

    /// The proxy before a hub looks for idle connections, and again later.
    fn cut_idle_ones(&mut self, hub: u16, idle_ns: u64, how: CutHow, until: u64) {
        self.cut_idle(hub, idle_ns, how);
        if self.now < until {
            let next = (idle_ns / 4).clamp(100 * MS, 5000 * MS);
            self.after(next, Event::Undo(Undo::Idle { hub, idle_ns, how, until }));
        }
    }

    /// Descriptors are free again: whoever waited is accepted.
    fn accept_backlog(&mut self, node: u16) {
        for client in std::mem::take(&mut self.nodes[usize::from(node)].backlog) {
            self.after(0, Event::Client { client });
        }
    }

    fn wall(&self) -> Instant {
        Instant::from_nanos(self.now)
    }

    fn inject_registry(&mut self, what: RegistryFault, hub: Option<u8>, lasts: u64) {
        use registry::Fault as F;
        let now = self.wall();
        let until = Instant::from_nanos(self.now + lasts);
        let whom = hub.map_or(Whom::All, |h| Whom::Node(usize::from(h)));
        let ms = Duration::from_millis;
        self.check.registry_hurt = self.now;
        let lasting = match what {
            RegistryFault::Refuse => F::Refuse,
            RegistryFault::Blackhole => F::Blackhole,
            RegistryFault::Slow(by) => F::Slow { min: ms(by / 4), max: ms(by) },
            RegistryFault::LoseReplies(per_mille) => F::LoseReplies { per_mille: per_mille.min(1000) as u16 },
            RegistryFault::LateCommits(per_mille) => {
                F::LateCommits { per_mille: per_mille.min(1000) as u16, max: ms(5000), reply: false }
            }
            RegistryFault::HalfDone(per_mille) => F::HalfDone { per_mille: per_mille.min(1000) as u16 },
            RegistryFault::ReadOnly(sticky) => F::Demoted { sticky },
            RegistryFault::Errors(n) => {
                let error = ServerError::ALL[usize::from(n) % ServerError::ALL.len()];
                F::Errors { error, per_mille: 1000 }
            }
            RegistryFault::Stale(by) => F::StaleReads { lag: ms(by) },
            RegistryFault::Expiry(by) if by < 0 => F::EarlyExpiry { by: ms(by.unsigned_abs().min(1000)) },
            RegistryFault::Expiry(by) => F::LateExpiry { by: ms(by.unsigned_abs()) },
            RegistryFault::Misalign => F::Misalign { per_mille: 300 },
            RegistryFault::Failover(lose) => {
                let pinned = hub.map(usize::from).into_iter().collect();
                return self.registry.failover(now, ms(lose), pinned, until);
            }
            RegistryFault::Empty => {
                self.registry.damage(now, Damage::Flush, &mut self.registry_draws);
                return;
            }
            RegistryFault::Restore(age) => {
                self.registry.damage(now, Damage::Restore { age: ms(age) }, &mut self.registry_draws);
                return;
            }
            RegistryFault::Evict(n) => {
                for _ in 0..n {
                    self.registry.damage(now, Damage::EvictAny, &mut self.registry_draws);
                }
                return;
            }
            RegistryFault::Corrupt(n) => {
                for _ in 0..n {
                    self.registry.damage(now, Damage::SpoilAny, &mut self.registry_draws);
                }
                return;
            }
            RegistryFault::Wall(by) => {
                self.marks.hit(Mark::WallClockStepped);
                self.note_step(by);
                self.step_wall_clocks(by);
                return self.registry.step_wall(now, by);
            }
        };
        self.registry.inject(now, lasting, whom, until);
    }

    /// The wall clocks of all machines jump with the registry's. Machines are
    /// told monotonic time only; planted bug 44 is a driver that mixes them up.
    fn step_wall_clocks(&mut self, by_ms: i64) {
        if nowconnect_core::planted::current() != Some(PLANTED_WALL_CLOCK) {
            return;
        }
        for ix in 0..self.nodes.len() as u16 {
            let node = &mut self.nodes[usize::from(ix)];
            node.wall_ns = node.wall_ns.saturating_add(by_ms.saturating_mul(MS as i64));
            self.settle(ix);
        }
    }

    /// Faults of the registry that look into the past need its past kept.
    pub(crate) fn arm_registry(&mut self) {
        let triggered = self.plan.triggered.iter().flatten().map(|t| t.fault);
        let drawn = self.plan.at_vulnerable > 0 && self.plan.classes.contains(&Class::Registry);
        if drawn || self.plan.faults.iter().map(|f| f.fault).chain(triggered).any(|f| f.class() == Class::Registry) {
            self.registry.arm(KEEP);
        }
    }

    /// A hub asks the registry. Inside `settle`.
    pub(crate) fn ask_registry(&mut self, node: u16, token: Token, op: RegistryOp) {
        let point = match op {
            RegistryOp::Claim(_) => Some(Point::Claim),
            RegistryOp::Renew { .. } => Some(Point::Renew),
            RegistryOp::Resign { .. }
            | RegistryOp::SetConnectors { .. }
            | RegistryOp::Release { .. }
            | RegistryOp::Lookup { .. }
            | RegistryOp::Agent { .. }
            | RegistryOp::Leases { .. }
            | RegistryOp::Sweep => None,
        };
        if let Some(point) = point {
            self.vulnerable(point, node, None);
        }
        self.line(None, || format!("node {node} asks the registry {token:?}: {op:?}"));
        self.trace.mix(u64::from(node) << 32 | token.0);
        self.trace.mix_debug(&op);
        self.ghost_asked(node, token, &op);
        let client = Client { node: usize::from(node), run: u64::from(self.nodes[usize::from(node)].run) };
        let mut effects = std::mem::take(&mut self.check.effects);
        let now = self.wall();
        self.registry.submit(now, client, token, op, &mut self.registry_draws, &mut effects);
        self.registry_effects(&mut effects);
    }

    pub(crate) fn on_registry_step(&mut self, step: registry::Step) {
        let mut effects = std::mem::take(&mut self.check.effects);
        let now = self.wall();
        self.registry.step(now, step, &mut self.registry_draws, &mut effects);
        self.registry_effects(&mut effects);
    }

    fn registry_effects(&mut self, effects: &mut Vec<Effect>) {
        for effect in effects.drain(..) {
            match effect {
                Effect::At(at, step) => self.at(at.as_nanos(), Event::Registry(step)),
                Effect::Reply { client, token, result } => {
                    let (node, run) = (client.node as u16, client.run as u32);
                    self.at(self.now, Event::Reply { node, run, token, result: Box::new(result) });
                }
            }
        }
        self.check.effects = std::mem::take(effects);
    }

    pub(crate) fn on_registry_reply(&mut self, node: u16, run: u32, token: Token, result: RegistryResult) {
        if self.nodes[usize::from(node)].run != run || !self.nodes[usize::from(node)].is_up() {
            return;
        }
        self.line(None, || format!("the registry answers node {node} {token:?}: {result:?}"));
        self.trace.mix(u64::from(node) << 32 | token.0);
        self.trace.mix_debug(&result);
        self.ghost_answered(node, token, &result);
        let before = self.counts_registry_ready(node);
        self.input(node, Input::Registry { token, result });
        if !before {
            self.judge_registry_ready(node);
        }
    }

    pub(crate) fn on_undo(&mut self, undo: Undo) {
        match undo {
            Undo::Late { ix } => {
                if self.phase == Phase::Safety
                    && let Some(fault) = self.check.late_faults.get(ix as usize).copied()
                {
                    self.inject(fault);
                }
            }
            Undo::Block { from, to } => {
                if self.net.unblock(from, to) {
                    self.release(from, to);
                }
            }
            Undo::Slow { a, b } => self.net.unslow(a, b),
            Undo::Dials { hub } => {
                if let Some(d) = self.net.dials.get_mut(&hub) {
                    d.pop();
                }
            }
            Undo::Redirect => {
                self.net.redirect.pop();
            }
            Undo::Address { hub } => {
                if let Some(a) = self.net.addresses.get_mut(&hub) {
                    a.pop();
                }
            }
            Undo::Stall { node, run, shard } => self.unstall(node, run, shard),
            Undo::Elsewhere { node, restart } => {
                if self.phase == Phase::Safety {
                    self.point_back(node, restart);
                }
            }
            Undo::Restart { node } => {
                if !self.nodes[usize::from(node)].is_clone && !self.is_frozen(node) {
                    self.boot(node);
                }
            }
            Undo::Gone { node } => self.gone(node),
            Undo::Pause { node } => self.wake_up(node),
            Undo::Lag { node } => {
                self.nodes[usize::from(node)].lag = 0;
                self.ghost_disturbed(node);
            }
            Undo::Targets { node } => self.nodes[usize::from(node)].targets_down = None,
            Undo::Clone { node } => self.crash(node, false),
            Undo::Twin { hub, node } => {
                self.ghost_twins_over(hub, node);
                self.net.twins.remove(&hub);
                self.crash(node, false);
            }
            Undo::Idle { hub, idle_ns, how, until } => {
                if self.phase == Phase::Safety {
                    self.cut_idle_ones(hub, idle_ns, how, until);
                }
            }
            Undo::Shortage { node } => {
                let n = &mut self.nodes[usize::from(node)];
                n.shortages = n.shortages.saturating_sub(1);
                if n.shortages == 0 {
                    self.accept_backlog(node);
                }
            }
            Undo::Flap { a, b, left, every_ns, how } => {
                if self.phase == Phase::Safety {
                    self.flap(a, b, left, every_ns, how);
                }
            }
            Undo::Undrain { node } => {
                if self.phase == Phase::Safety && !self.nodes[usize::from(node)].paused {
                    self.input(node, Input::Undrain);
                }
            }
            Undo::Drained { node } => {
                let n = &self.nodes[usize::from(node)];
                // Taken back, or another process by now.
                if self.check.drains.contains_key(&node) && n.is_up() && !n.paused {
                    let all = n.drained;
                    self.marks.hit(if all { Mark::Drained } else { Mark::DrainDeadline });
                    self.stop(node);
                    self.boot(node);
                }
            }
        }
    }

    fn wake_up(&mut self, ix: u16) {
        if std::mem::replace(&mut self.nodes[usize::from(ix)].paused, false) {
            self.line(None, || format!("node {ix} wakes up"));
            self.ghost_disturbed(ix);
            // It reads its files before anything that came meanwhile.
            self.judge_again(ix);
            self.unhold(ix);
            self.pump_all(ix);
        }
    }

    /// An agent whose credentials fell short gets others by starting anew.
    fn has_short_token(&self, ix: u16) -> bool {
        match self.nodes[usize::from(ix)].at {
            At::Agent(n) => self.plan.agents[usize::from(n)].token_ns > 0,
            At::Hub(_) => false,
        }
    }

    /// The healing left this node out, or it had left for good.
    pub(crate) fn is_frozen(&self, node: u16) -> bool {
        let frozen = self.phase == Phase::Liveness && self.plan.frozen.is_some_and(|f| self.node_of(f.at) == node);
        frozen || self.nodes[usize::from(node)].retired
    }

    /// Faults end, for all nodes or all but one; what they left behind stays
    /// for the system to deal with.
    pub(crate) fn heal(&mut self) {
        self.phase = Phase::Liveness;
        self.healed_at = self.now;
        self.line(None, || "the world heals".to_owned());
        for (from, to) in self.net.heal() {
            self.release(from, to);
        }
        let now = self.wall();
        self.check.registry_hurt = self.now;
        self.registry.heal_all(now, &mut self.registry_draws);
        self.check.quiet_from = self.now;
        for ix in 0..self.nodes.len() as u16 {
            self.nodes[usize::from(ix)].lag = 0;
            self.nodes[usize::from(ix)].shortages = 0;
            self.accept_backlog(ix);
            self.ghost_disturbed(ix);
            self.nodes[usize::from(ix)].targets_down = None;
            self.wake_up(ix);
            self.go_on(ix);
            // Also of a hub that is down just now and comes back later.
            // All have the first certificates again at one instant: no rotation.
            let keys = std::mem::take(&mut self.nodes[usize::from(ix)].keys);
            self.check.strange_keys |= keys != Keys::default();
            let changed = std::mem::take(&mut self.nodes[usize::from(ix)].changed) != Changed::default();
            let flipped = self.nodes[usize::from(ix)].mode.take().is_some();
            if self.nodes[usize::from(ix)].is_up() && !self.is_frozen(ix) {
                if flipped {
                    self.flip(ix, None);
                } else if changed && !self.check.drains.contains_key(&ix) && !self.has_short_token(ix) {
                    // Whoever is started anew below reads it then.
                    self.tell_file(ix);
                }
            }
            let n = &self.nodes[usize::from(ix)];
            if n.is_clone {
                self.crash(ix, false);
            } else if self.is_frozen(ix) {
                let silent = self.plan.frozen.is_some_and(|f| f.silent);
                self.crash(ix, silent);
                self.nodes[usize::from(ix)].silent = silent;
            } else if n.is_up() && (self.check.drains.contains_key(&ix) || self.has_short_token(ix)) {
                self.stop(ix);
                self.boot(ix);
            } else {
                self.boot(ix);
            }
        }
        self.judge_everywhere();
        self.rogues_leave();
        for actor in 0..self.actors.len() as u32 {
            self.step(actor, MS);
        }
        self.after(1, Event::Probe { round: 0 });
    }
}

//! Faults from the tape: one of a class that a plan can be hit by, and what
//! happens at a vulnerable moment. Must not know how any is carried out.

use super::{At, Class, CutHow, FOREVER, Fault, Keys, Landing, Point, RegistryFault, Reload};
use crate::plan::{ModePlan, Plan};
use crate::tape::Lane;

impl Fault {
    /// Draws a fault of a class; `None` when the plan has nothing it can hit.
    #[must_use]
    pub fn draw(class: Class, plan: &Plan, l: &mut Lane) -> Option<Self> {
        let hubs = plan.hubs.len() as u64;
        let agents = plan.agents.len() as u64;
        let hub = |l: &mut Lane| l.below(hubs) as u8;
        let node = |l: &mut Lane| {
            let n = l.below(hubs + agents);
            if n < hubs { At::Hub(n as u8) } else { At::Agent((n - hubs) as u8) }
        };
        let pair = |l: &mut Lane| {
            // Mesh links and tunnels alike.
            let a = At::Hub(l.below(hubs) as u8);
            let b = if hubs > 1 && l.chance(1, 2) {
                At::Hub(l.below(hubs) as u8)
            } else {
                At::Agent(l.below(agents.max(1)) as u8)
            };
            if l.chance(1, 2) { (a, b) } else { (b, a) }
        };
        let how = |l: &mut Lane| [CutHow::Rst, CutHow::Fin, CutHow::OneSide, CutHow::Silent][l.weighted(&[4, 2, 2, 3])];
        Some(match class {
            Class::Cut => match l.weighted(&[6, 2, 2]) {
                0 => {
                    let (a, b) = pair(l);
                    Self::Cut { a, b, how: how(l) }
                }
                1 => Self::CutAll { at: node(l), how: how(l) },
                _ => {
                    let (a, b) = pair(l);
                    Self::Flap { a, b, times: l.between(2, 12) as u8, every_ms: l.spread(100, 10_000), how: how(l) }
                }
            },
            Class::Block => {
                let ms = if l.chance(1, 12) { FOREVER } else { l.spread(200, 45_000) };
                if ms < FOREVER && l.chance(1, 8) {
                    Self::Swizzle { order: l.next_u64(), ms }
                } else if l.chance(1, 8) {
                    Self::Partition { order: l.next_u64(), ms }
                } else if l.chance(1, 4) {
                    Self::Isolate { at: node(l), ms }
                } else {
                    let (a, b) = pair(l);
                    Self::Block { a, b, both: l.chance(1, 2), ms }
                }
            }
            Class::Slow => {
                let (a, b) = pair(l);
                Self::Slow { a, b, factor: l.spread(2, 200) as u32, ms: l.spread(500, 20_000) }
            }
            Class::Dial => {
                if l.chance(1, 4) {
                    let to = match l.below(4) {
                        0 => Landing::Empty,
                        1 => Landing::Nobody { hang: l.chance(1, 2) },
                        _ => Landing::Hub(hub(l)),
                    };
                    Self::Address { hub: hub(l), to, ms: l.spread(500, 30_000) }
                } else if l.chance(1, 3) {
                    Self::Redirect { hub: hub(l), ms: l.spread(500, 30_000) }
                } else {
                    Self::RefuseDials { hub: hub(l), hang: l.chance(1, 2), ms: l.spread(500, 30_000) }
                }
            }
            Class::Crash => Self::Crash {
                at: node(l),
                down_ms: if l.chance(1, 4) { 0 } else { l.spread(10, 60_000) },
                silent: l.chance(1, 3),
            },
            Class::Pause => Self::Pause { at: node(l), ms: l.spread(10, 120_000) },
            Class::Lag => {
                let n = hub(l);
                let shards = plan.hubs.get(usize::from(n)).map_or(0, |h| h.shards);
                if shards > 1 && l.chance(2, 3) {
                    Self::Stall { hub: n, shard: l.below(u64::from(shards)) as u8, ms: l.spread(50, 30_000) }
                } else {
                    Self::Lag { at: node(l), by_ms: l.spread(1, 500), ms: l.spread(500, 20_000) }
                }
            }
            Class::Registry if l.chance(1, 16) => {
                let ms = if l.chance(1, 3) { FOREVER } else { l.spread(2000, 40_000) };
                Self::Elsewhere { hub: hub(l), restart: l.chance(1, 2), ms }
            }
            Class::Registry => {
                let what = match l.below(17) {
                    0 => RegistryFault::Refuse,
                    1 => RegistryFault::Blackhole,
                    2 => RegistryFault::Slow(l.spread(1, 10_000)),
                    3 => RegistryFault::LoseReplies(l.spread(10, 1000) as u32),
                    4 => RegistryFault::Failover(l.below(5001)),
                    5 => RegistryFault::Empty,
                    6 => RegistryFault::Restore(l.spread(100, 30_000)),
                    7 => RegistryFault::Evict(l.between(1, 5) as u8),
                    8 => RegistryFault::ReadOnly(l.chance(1, 2)),
                    9 => RegistryFault::Errors(l.below(9) as u8),
                    10 => RegistryFault::Stale(l.spread(100, 10_000)),
                    11 => {
                        let by = l.spread(1, 86_400_000) as i64;
                        RegistryFault::Wall(if l.chance(1, 2) { by } else { -by })
                    }
                    12 => RegistryFault::Expiry(l.below(4001) as i64 - 2000),
                    13 => RegistryFault::Corrupt(l.between(1, 4) as u8),
                    14 => RegistryFault::LateCommits(l.spread(10, 1000) as u32),
                    15 => RegistryFault::HalfDone(l.spread(10, 1000) as u32),
                    _ => RegistryFault::Misalign,
                };
                Self::Registry { what, hub: l.chance(1, 3).then(|| hub(l)), ms: l.spread(100, 40_000) }
            }
            Class::Agent => Self::Clone { agent: l.below(agents.max(1)) as u8, ms: l.spread(500, 30_000) },
            Class::Target => {
                let agent = l.below(agents.max(1)) as u8;
                if l.chance(1, 2) {
                    Self::AbortTargets { agent }
                } else {
                    Self::Targets { agent, hang: l.chance(1, 2), ms: l.spread(500, 10_000) }
                }
            }
            Class::Operate => {
                if l.chance(1, 4) {
                    let at = node(l);
                    Self::Reload { at, what: Reload::draw(at, plan, l) }
                } else if hubs > 1 && l.chance(1, 24) {
                    let (lameduck_ms, timeout_ms) =
                        (l.below(3) * l.between(500, 3000), l.below(2) * l.spread(500, 8000));
                    Self::Leave { hub: l.between(1, hubs - 1) as u8, lameduck_ms, timeout_ms }
                } else if l.chance(1, 12) {
                    Self::Certificate { hub: hub(l), keys: Keys::draw(l) }
                } else if l.chance(1, 5) {
                    let mode = [ModePlan::Active, ModePlan::Shadow, ModePlan::Off][l.below(3) as usize];
                    Self::Mode { hub: hub(l), mode }
                } else if l.chance(1, 2) {
                    let at = node(l);
                    let lameduck_ms = if l.chance(1, 3) { 0 } else { l.spread(500, 12_000) };
                    let timeout_ms = l.spread(500, 60_000);
                    let ms = lameduck_ms + if l.chance(1, 2) { l.spread(500, 10_000) } else { timeout_ms + 4000 };
                    let back_ms = l.chance(1, 4).then(|| l.below(lameduck_ms + 1000));
                    Self::Drain { at, ms, lameduck_ms, timeout_ms, back_ms }
                } else {
                    Self::Stop { at: node(l), down_ms: l.spread(10, 20_000) }
                }
            }
            Class::Ingress => {
                let (hub, how) = (hub(l), if l.chance(1, 2) { CutHow::Rst } else { CutHow::Fin });
                if l.chance(1, 2) {
                    Self::IdleCut { hub, idle_ms: l.spread(900, 60_000), how, ms: l.spread(2000, 60_000) }
                } else {
                    Self::IngressRestart { hub, how, ms: l.spread(10, 10_000) }
                }
            }
            Class::Shortage => Self::NoDescriptors { at: node(l), ms: l.spread(200, 20_000) },
            Class::Twin => Self::Twin { hub: hub(l), ms: l.spread(1000, 40_000) },
        })
    }
}

/// Draws what happens at a vulnerable moment at `at`, which speaks with `peer`.
#[must_use]
pub fn draw_triggered(classes: &[Class], point: Point, at: At, peer: Option<At>, l: &mut Lane) -> Option<Fault> {
    let class = *l.pick(classes)?;
    Some(match (class, peer) {
        (Class::Registry, _) => return draw_at_registry(point, at, l),
        (Class::Cut, Some(b)) => Fault::Cut {
            a: at,
            b,
            how: [CutHow::Rst, CutHow::Fin, CutHow::OneSide, CutHow::Silent][l.below(4) as usize],
        },
        (Class::Block, Some(b)) => Fault::Block { a: at, b, both: l.chance(1, 2), ms: l.spread(200, 40_000) },
        (Class::Crash, _) => Fault::Crash { at, down_ms: l.spread(1, 20_000), silent: l.chance(1, 3) },
        (Class::Pause, _) => Fault::Pause { at, ms: l.spread(10, 40_000) },
        (Class::Lag, _) => Fault::Lag { at, by_ms: l.spread(1, 500), ms: l.spread(500, 10_000) },
        _ => return None,
    })
}

/// What happens to the registry while it is asked for a claim or a lease: this
/// very request is hit, and for a short while those after it.
fn draw_at_registry(point: Point, at: At, l: &mut Lane) -> Option<Fault> {
    let (At::Hub(n), Point::Claim | Point::Renew) = (at, point) else { return None };
    let what = match l.below(6) {
        0 => RegistryFault::LoseReplies(1000),
        1 => RegistryFault::LateCommits(1000),
        2 => RegistryFault::HalfDone(1000),
        3 => RegistryFault::Failover(l.spread(10, 5000)),
        4 => RegistryFault::ReadOnly(l.chance(1, 2)),
        _ => RegistryFault::Refuse,
    };
    // A failover that one hub alone does not see is drawn now and then.
    let hub = if let RegistryFault::Failover(_) = what { l.chance(1, 3).then_some(n) } else { Some(n) };
    Some(Fault::Registry { what, hub, ms: l.spread(1, 4000) })
}

//! Edits of a plan that leave a plan: taking away a hub, an agent or clients
//! renumbers what names the others. Must not know why anybody wants them.

use std::collections::BTreeSet;

use crate::faults::{At, Fault, Landing, Reload};
use crate::plan::Plan;

/// The same fault with its nodes renamed; `None` if one of them is gone.
fn renamed(fault: Fault, name: &impl Fn(At) -> Option<At>) -> Option<Fault> {
    let hub = |n: u8| match name(At::Hub(n))? {
        At::Hub(n) => Some(n),
        At::Agent(_) => None,
    };
    let agent = |n: u8| match name(At::Agent(n))? {
        At::Agent(n) => Some(n),
        At::Hub(_) => None,
    };
    Some(match fault {
        Fault::Cut { a, b, how } => Fault::Cut { a: name(a)?, b: name(b)?, how },
        Fault::CutAll { at, how } => Fault::CutAll { at: name(at)?, how },
        Fault::Block { a, b, both, ms } => Fault::Block { a: name(a)?, b: name(b)?, both, ms },
        Fault::Isolate { at, ms } => Fault::Isolate { at: name(at)?, ms },
        Fault::Flap { a, b, times, every_ms, how } => Fault::Flap { a: name(a)?, b: name(b)?, times, every_ms, how },
        Fault::Slow { a, b, factor, ms } => Fault::Slow { a: name(a)?, b: name(b)?, factor, ms },
        Fault::RefuseDials { hub: h, hang, ms } => Fault::RefuseDials { hub: hub(h)?, hang, ms },
        Fault::Redirect { hub: h, ms } => Fault::Redirect { hub: hub(h)?, ms },
        Fault::Address { hub: h, to, ms } => {
            let to = match to {
                Landing::Hub(other) => Landing::Hub(hub(other)?),
                Landing::Empty | Landing::Nobody { .. } => to,
            };
            Fault::Address { hub: hub(h)?, to, ms }
        }
        Fault::Stall { hub: h, shard, ms } => Fault::Stall { hub: hub(h)?, shard, ms },
        Fault::Elsewhere { hub: h, restart, ms } => Fault::Elsewhere { hub: hub(h)?, restart, ms },
        Fault::Partition { order, ms } => Fault::Partition { order, ms },
        Fault::Crash { at, down_ms, silent } => Fault::Crash { at: name(at)?, down_ms, silent },
        Fault::Pause { at, ms } => Fault::Pause { at: name(at)?, ms },
        Fault::Lag { at, by_ms, ms } => Fault::Lag { at: name(at)?, by_ms, ms },
        Fault::Registry { what, hub: None, ms } => Fault::Registry { what, hub: None, ms },
        Fault::Registry { what, hub: Some(h), ms } => Fault::Registry { what, hub: Some(hub(h)?), ms },
        Fault::Clone { agent: a, ms } => Fault::Clone { agent: agent(a)?, ms },
        Fault::Targets { agent: a, hang, ms } => Fault::Targets { agent: agent(a)?, hang, ms },
        Fault::AbortTargets { agent: a } => Fault::AbortTargets { agent: agent(a)? },
        Fault::Drain { at, ms, lameduck_ms, timeout_ms, back_ms } => {
            Fault::Drain { at: name(at)?, ms, lameduck_ms, timeout_ms, back_ms }
        }
        Fault::Mode { hub: h, mode } => Fault::Mode { hub: hub(h)?, mode },
        Fault::Swizzle { order, ms } => Fault::Swizzle { order, ms },
        Fault::Stop { at, down_ms } => Fault::Stop { at: name(at)?, down_ms },
        Fault::IdleCut { hub: h, idle_ms, how, ms } => Fault::IdleCut { hub: hub(h)?, idle_ms, how, ms },
        Fault::IngressRestart { hub: h, how, ms } => Fault::IngressRestart { hub: hub(h)?, how, ms },
        Fault::NoDescriptors { at, ms } => Fault::NoDescriptors { at: name(at)?, ms },
        Fault::Reload { at, what } => {
            let what = match what {
                Reload::Peer { hub: h, there } => Reload::Peer { hub: hub(h)?, there },
                Reload::Connector { .. } | Reload::Limits(_) | Reload::Streams(_) => what,
            };
            Fault::Reload { at: name(at)?, what }
        }
        Fault::Certificate { hub: h, keys } => Fault::Certificate { hub: hub(h)?, keys },
        Fault::Leave { hub: h, lameduck_ms, timeout_ms } => Fault::Leave { hub: hub(h)?, lameduck_ms, timeout_ms },
        Fault::Twin { hub: h, ms } => Fault::Twin { hub: hub(h)?, ms },
    })
}

fn rename_faults(plan: &mut Plan, name: &impl Fn(At) -> Option<At>) {
    let kept = plan.faults.iter().filter_map(|p| Some(crate::faults::Planned { fault: renamed(p.fault, name)?, ..*p }));
    plan.faults = kept.collect();
    if let Some(list) = &plan.triggered {
        let kept = list.iter().filter_map(|t| Some(crate::faults::Triggered { fault: renamed(t.fault, name)?, ..*t }));
        plan.triggered = Some(kept.collect());
    }
}

/// Without hub `gone` and its clients, or with them at another hub. `None` if
/// it is the last one.
#[must_use]
pub fn without_hub(plan: &Plan, gone: u8, keep_clients: bool) -> Option<Plan> {
    if plan.hubs.len() < 2 || usize::from(gone) >= plan.hubs.len() {
        return None;
    }
    let mut plan = plan.clone();
    plan.hubs.remove(usize::from(gone));
    let number = |n: u8| (n != gone).then(|| n - u8::from(n > gone));
    for hub in &mut plan.hubs {
        hub.peers = hub.peers.iter().filter_map(|p| number(*p)).collect();
    }
    for agent in &mut plan.agents {
        agent.hubs = agent.hubs.iter().filter_map(|h| number(*h)).collect();
        if agent.hubs.is_empty() {
            agent.hubs.push(0);
        }
        agent.parallel = agent.parallel.min(agent.hubs.len() as u16);
    }
    plan.clients.retain_mut(|c| match number(c.hub) {
        Some(hub) => {
            c.hub = hub;
            true
        }
        None => {
            c.hub = 0;
            keep_clients
        }
    });
    plan.rogues.retain_mut(|r| {
        number(r.hub).is_some_and(|hub| {
            r.hub = hub;
            true
        })
    });
    rename_faults(&mut plan, &|at| match at {
        At::Hub(n) => number(n).map(At::Hub),
        At::Agent(_) => Some(at),
    });
    Some(plan)
}

/// Without agent `gone`. `None` if it is the last one.
#[must_use]
pub fn without_agent(plan: &Plan, gone: u8) -> Option<Plan> {
    if plan.agents.len() < 2 || usize::from(gone) >= plan.agents.len() {
        return None;
    }
    let mut plan = plan.clone();
    plan.agents.remove(usize::from(gone));
    rename_faults(&mut plan, &|at| match at {
        At::Agent(n) if n == gone => None,
        At::Agent(n) => Some(At::Agent(n - u8::from(n > gone))),
        At::Hub(_) => Some(at),
    });
    Some(plan)
}

/// Whether a plan that somebody wrote can be carried out.
pub(crate) fn judge(plan: &Plan) -> Result<(), String> {
    if plan.hubs.is_empty() || plan.agents.is_empty() {
        return Err("at least one hub and one agent are expected".to_owned());
    }
    if plan.hubs.len() + plan.agents.len() > 64 {
        return Err("at most 64 nodes are expected".to_owned());
    }
    let (hubs, agents) = (plan.hubs.len(), plan.agents.len());
    let hub = |n: u8| usize::from(n) < hubs;
    if let Some(n) =
        plan.hubs.iter().flat_map(|h| &h.peers).chain(plan.agents.iter().flat_map(|a| &a.hubs)).find(|n| !hub(**n))
    {
        return Err(format!("hub-{n} is named, there are {hubs} hubs"));
    }
    if let Some(ix) = plan.agents.iter().position(|a| a.hubs.is_empty()) {
        return Err(format!("agent-{ix} has no hub"));
    }
    if plan.hubs.iter().any(|h| h.shards > 8) {
        return Err("at most 8 shards a hub are expected".to_owned());
    }
    if let Some(r) = plan.rogues.iter().find(|r| !hub(r.hub)) {
        return Err(format!("a hostile peer is at hub-{}, which is not there", r.hub));
    }
    let mut ids = BTreeSet::new();
    for c in &plan.clients {
        if !hub(c.hub) || c.connector >= plan.connectors {
            return Err(format!("client {} is for hub-{} and c{}, which are not there", c.id, c.hub, c.connector));
        }
        if c.id >= crate::check::PROBES_FROM || !ids.insert(c.id) {
            return Err(format!("client {} is there twice, or its number is too high", c.id));
        }
        if [c.up, c.down].iter().any(|f| f.chunk == 0 || f.read == 0) || c.buffer == 0 {
            return Err(format!("client {}: chunk, read and buffer are at least 1", c.id));
        }
    }
    let there = |at: At| match at {
        At::Hub(n) => hub(n).then_some(at),
        At::Agent(n) => (usize::from(n) < agents).then_some(at),
    };
    let triggered = plan.triggered.iter().flatten().map(|t| t.fault);
    match plan.faults.iter().map(|p| p.fault).chain(triggered).find(|f| renamed(*f, &there).is_none()) {
        Some(f) => Err(format!("{f:?} names a node that is not there")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Level;
    use crate::profile::{PROFILES, Profile};
    use crate::run;

    fn drawn(seed: u64, profile: &Profile) -> Plan {
        run::plan(seed, profile, Level::L0)
    }

    #[test]
    fn a_drawn_plan_is_one_that_can_be_written_and_read() {
        for profile in PROFILES {
            for seed in 0..20 {
                let plan = drawn(seed, profile);
                assert_eq!(Plan::from_json(&plan.to_json()), Ok(plan));
            }
        }
    }

    #[test]
    fn what_is_taken_away_is_named_nowhere() {
        for profile in PROFILES {
            for seed in 0..20 {
                let plan = drawn(seed, profile);
                for n in 0..plan.hubs.len() as u8 {
                    for edited in [without_hub(&plan, n, true), without_hub(&plan, n, false)].into_iter().flatten() {
                        assert_eq!(judge(&edited), Ok(()));
                        assert_eq!(edited.hubs.len() + 1, plan.hubs.len());
                    }
                }
                for n in 0..plan.agents.len() as u8 {
                    if let Some(edited) = without_agent(&plan, n) {
                        assert_eq!(judge(&edited), Ok(()));
                    }
                }
            }
        }
    }

    #[test]
    fn a_plan_that_cannot_be_carried_out_is_refused() {
        let good = drawn(1, &PROFILES[0]);
        let bad = |edit: &dyn Fn(&mut Plan)| {
            let mut plan = good.clone();
            edit(&mut plan);
            assert!(Plan::from_json(&plan.to_json()).is_err());
        };
        bad(&|p| p.hubs.clear());
        bad(&|p| p.clients[0].hub = 200);
        bad(&|p| p.clients[0].up.chunk = 0);
        bad(&|p| p.clients[1].id = p.clients[0].id);
        bad(&|p| p.faults.push(crate::faults::Planned { at: 0, fault: Fault::AbortTargets { agent: 99 } }));
        assert!(Plan::from_json("{").is_err());
    }
}

//! The compound scenarios of the fault catalogue: faults that matter together,
//! in an order that chance finds seldom. Each shapes a calm plan; times and
//! sizes stay drawn.

use crate::faults::{At, CutHow, Fault, Keys, Planned, Point, RegistryFault, Reload, Triggered};
use crate::plan::{Ending, MS, ModePlan, Plan, TargetPlan, Twin};
use crate::rogue::RoguePlan;
use crate::tape::Lane;

fn plan_fault(plan: &mut Plan, at_ms: u64, fault: Fault) {
    plan.faults.push(Planned { at: at_ms * MS, fault });
}

/// The first agent may use every hub, starting with hub 0; the others stay.
fn first_agent_roams(plan: &mut Plan) {
    let hubs = plan.hubs.len() as u8;
    if let Some(a) = plan.agents.first_mut() {
        a.hubs = (0..hubs).collect();
        a.parallel = 1;
        a.start_ns = 0;
    }
}

/// {failover loses a claim, agent moves from A to B, A asleep for 30 s wakes}.
pub(crate) fn failover_move_wake(plan: &mut Plan, l: &mut Lane) {
    first_agent_roams(plan);
    let (agent, a, b) = (At::Agent(0), At::Hub(0), 1);
    let at = l.between(8000, 20_000);
    plan_fault(plan, at, Fault::Pause { at: a, ms: l.between(20_000, 35_000) });
    plan_fault(plan, at, Fault::Redirect { hub: b, ms: l.between(5000, 40_000) });
    plan_fault(plan, at + l.below(50), Fault::Cut { a: agent, b: a, how: CutHow::Rst });
    let lose = RegistryFault::Failover(l.between(1000, 5000));
    plan_fault(plan, at + l.between(100, 4000), Fault::Registry { what: lose, hub: None, ms: l.between(1, 5000) });
    // And back again.
    plan_fault(plan, at + 36_000, Fault::Redirect { hub: 0, ms: 5000 });
    plan_fault(plan, at + 36_000 + l.below(500), Fault::CutAll { at: agent, how: CutHow::Rst });
}

/// {mesh asymmetric, FIN in flight, resume}.
pub(crate) fn asymmetric_fin_resume(plan: &mut Plan, l: &mut Lane) {
    for a in &mut plan.agents {
        a.hubs = vec![0];
        a.parallel = 1;
    }
    for c in &mut plan.clients {
        // Of one hub alone they are that hub's.
        c.hub = u8::from(plan.hubs.len() > 1);
    }
    let mut triggered = Vec::new();
    let mut nth = 0;
    for _ in 0..12 {
        nth += l.between(1, 8) as u32;
        let (a, b) = if l.chance(1, 2) { (At::Hub(0), At::Hub(1)) } else { (At::Hub(1), At::Hub(0)) };
        let fault = if l.chance(1, 2) {
            Fault::Block { a, b, both: false, ms: l.spread(50, 8000) }
        } else {
            let how = [CutHow::Rst, CutHow::OneSide, CutHow::Fin][l.below(3) as usize];
            Fault::Cut { a, b, how }
        };
        triggered.push(Triggered { point: Point::Fin, nth, fault });
    }
    plan.triggered = Some(triggered);
}

/// {lease expiry while a renewal's reply is lost}.
pub(crate) fn lease_renewal_lost(plan: &mut Plan, l: &mut Lane) {
    first_agent_roams(plan);
    let mut at = l.between(6000, 12_000);
    for _ in 0..3 {
        let hub = l.below(2) as u8;
        let ms = l.between(6000, 16_000);
        let what = RegistryFault::LoseReplies(if l.chance(1, 2) { 1000 } else { l.between(500, 999) as u32 });
        plan_fault(plan, at, Fault::Registry { what, hub: Some(hub), ms });
        if l.chance(1, 2) {
            plan_fault(
                plan,
                at + l.below(ms),
                Fault::Crash { at: At::Hub(hub), down_ms: l.below(3000), silent: l.chance(1, 2) },
            );
        }
        at += ms + l.between(1000, 6000);
    }
}

/// {sweeper between a claim and the announcement of its connectors}.
pub(crate) fn sweep_between(plan: &mut Plan, l: &mut Lane) {
    first_agent_roams(plan);
    let mut at = l.between(5000, 10_000);
    for _ in 0..4 {
        let what = RegistryFault::HalfDone(l.between(300, 1000) as u32);
        plan_fault(plan, at, Fault::Registry { what, hub: None, ms: l.between(1000, 6000) });
        let agent = l.below(plan.agents.len() as u64) as u8;
        plan_fault(plan, at + l.below(2000), Fault::CutAll { at: At::Agent(agent), how: CutHow::Rst });
        plan_fault(
            plan,
            at + l.below(3000),
            Fault::Crash { at: At::Agent(agent), down_ms: l.below(1000), silent: false },
        );
        at += l.between(6000, 12_000);
    }
}

/// {drains of all hubs in turn, each with time to go elsewhere, some taken back}.
pub(crate) fn rolling_drain(plan: &mut Plan, l: &mut Lane) {
    let hubs = plan.hubs.len() as u8;
    for a in &mut plan.agents {
        a.hubs = (0..hubs).collect();
        a.parallel = if l.chance(3, 4) { 1 } else { 2 };
        (a.start_ns, a.token_ns) = (0, 0);
    }
    let mut at = l.between(8500, 10_000);
    for hub in 0..hubs {
        let (lameduck_ms, timeout_ms) = (l.between(8000, 12_000), l.spread(500, 12_000));
        let whole = lameduck_ms + timeout_ms + 4000;
        let back_ms = l.chance(1, 4).then(|| l.below(lameduck_ms + 1000));
        let ms = if l.chance(2, 3) { whole } else { lameduck_ms + l.below(timeout_ms) };
        plan_fault(plan, at, Fault::Drain { at: At::Hub(hub), ms, lameduck_ms, timeout_ms, back_ms });
        at += ms + l.between(8500, 10_000);
    }
    plan.safety_ns = plan.safety_ns.max((at + 2000) * MS);
    for c in &mut plan.clients {
        c.at = (4000 + l.below(at - 4000)) * MS + l.below(MS);
    }
}

/// {one hub, then more, then one again: late ones come while it serves, and are
/// drained and gone before the healing} (X6).
pub(crate) fn scale(plan: &mut Plan, l: &mut Lane) {
    let hubs = plan.hubs.len() as u8;
    for a in &mut plan.agents {
        a.hubs.clear();
        a.hubs.extend(0..hubs);
        a.parallel = l.between(1, u64::from(hubs)) as u16;
        a.token_ns = 0;
    }
    let (mut from, mut until) = (vec![0; plan.hubs.len()], vec![u64::MAX; plan.hubs.len()]);
    let mut at = l.between(2000, 6000);
    for (hub, from) in plan.hubs.iter_mut().zip(&mut from).skip(1) {
        (hub.start_ns, *from) = (at * MS, at);
        at += l.between(500, 6000);
    }
    at += l.between(6000, 10_000);
    for hub in (1..hubs).rev() {
        let (lameduck_ms, timeout_ms) = (l.between(0, 3) * l.between(1000, 3000), l.spread(500, 8000));
        plan_fault(plan, at, Fault::Leave { hub, lameduck_ms, timeout_ms });
        until[usize::from(hub)] = at + lameduck_ms;
        at += lameduck_ms + timeout_ms + l.below(6000);
    }
    plan.safety_ns = plan.safety_ns.max((at + 4000) * MS);
    for c in &mut plan.clients {
        // Where a balancer sends them: to a hub that is there and not leaving.
        let when = 1000 + l.below(at - 1000);
        let there = |h: &u8| from[usize::from(*h)] + 1000 < when && when < until[usize::from(*h)];
        let there: Vec<u8> = (0..hubs).filter(there).collect();
        c.at = when * MS + l.below(MS);
        c.hub = l.pick(&there).copied().unwrap_or(0);
    }
}

/// {certificates of a new CA for all hubs, in three steps with overlap or in one
/// without, while hubs start anew and have to prove themselves}.
pub(crate) fn rotation(plan: &mut Plan, l: &mut Lane) {
    plan.hostile = 0;
    let hubs = plan.hubs.len() as u8;
    let (first, second, last) = (
        Keys { knows: 3, ..Keys::default() },
        Keys { ca: 1, knows: 3, ..Keys::default() },
        Keys { ca: 1, knows: 2, ..Keys::default() },
    );
    let steps: &[Keys] = if l.chance(2, 3) { &[first, second, last] } else { &[last] };
    let mut at = l.between(5000, 8000);
    for keys in steps {
        for hub in 0..hubs {
            plan_fault(plan, at + l.below(3000), Fault::Certificate { hub, keys: *keys });
            let down_ms = l.below(1000);
            plan_fault(plan, at + l.below(8000), Fault::Stop { at: At::Hub(hub), down_ms });
        }
        at += l.between(3500, 12_000);
    }
}

/// {a CA leaves one hub alone, whose peers get certificates of another one later;
/// connections break around it}. Nobody starts anew: links rest on old proofs.
pub(crate) fn trust(plan: &mut Plan, l: &mut Lane) {
    plan.hostile = 0;
    let hubs = plan.hubs.len() as u8;
    let both = Keys { knows: 3, ..Keys::default() };
    let mut at = l.between(4000, 7000);
    for hub in 0..hubs {
        plan_fault(plan, at + l.below(500), Fault::Certificate { hub, keys: both });
    }
    // Which hubs have a certificate of the new CA by now, and which trust only that.
    let (mut new, mut strict) = (vec![false; plan.hubs.len()], vec![false; plan.hubs.len()]);
    let keys = |new: bool, strict: bool| Keys { ca: u8::from(new), knows: if strict { 2 } else { 3 }, ..both };
    at += 1000;
    while at + 8000 < plan.safety_ns / MS {
        let ix = l.below(u64::from(hubs)) as usize;
        if l.chance(1, 2) {
            strict[ix] = !strict[ix] || l.chance(1, 2);
        } else {
            new[ix] = !new[ix] || l.chance(1, 2);
        }
        plan_fault(plan, at, Fault::Certificate { hub: ix as u8, keys: keys(new[ix], strict[ix]) });
        if l.chance(1, 2) {
            let (a, b) = (At::Hub(ix as u8), At::Hub(l.below(u64::from(hubs)) as u8));
            let how = [CutHow::Rst, CutHow::Fin, CutHow::OneSide, CutHow::Silent][l.below(4) as usize];
            plan_fault(plan, (at + l.below(2000)).saturating_sub(1000), Fault::Cut { a, b, how });
        }
        at += l.spread(300, 8000);
    }
}

/// {one reload after the other, and nothing else}.
pub(crate) fn reloads(plan: &mut Plan, l: &mut Lane) {
    let nodes = plan.hubs.len() as u64 + plan.agents.len() as u64;
    let hubs = plan.hubs.len() as u64;
    let mut at = l.between(3000, 6000);
    while at + 2000 < plan.safety_ns / MS {
        let n = l.below(nodes);
        let node = if n < hubs { At::Hub(n as u8) } else { At::Agent((n - hubs) as u8) };
        let what = Reload::draw(node, plan, l);
        plan_fault(plan, at, Fault::Reload { at: node, what });
        at += l.spread(50, 6000);
    }
}

/// {drain during a mode flip; sometimes the one that leaves dies}.
pub(crate) fn drain_in_flip(plan: &mut Plan, l: &mut Lane) {
    first_agent_roams(plan);
    let mut at = l.between(6000, 10_000);
    for round in 0..3 {
        let hub = l.below(2) as u8;
        let (lameduck_ms, timeout_ms) = (l.below(3) * l.between(500, 3000), l.between(500, 8000));
        let back_ms = l.chance(1, 4).then(|| l.below(lameduck_ms + 1000));
        let ms = lameduck_ms + l.between(500, 8000).min(9000 - lameduck_ms);
        plan_fault(plan, at, Fault::Drain { at: At::Hub(hub), ms, lameduck_ms, timeout_ms, back_ms });
        if l.chance(1, 3) {
            let (down_ms, silent) = (l.below(2000), l.chance(1, 2));
            plan_fault(plan, at + l.below(ms), Fault::Crash { at: At::Hub(hub), down_ms, silent });
        }
        let mode = [ModePlan::Shadow, ModePlan::Off, ModePlan::Active][(round + l.below(2) as usize) % 3];
        plan_fault(plan, at + l.below(3000), Fault::Mode { hub: 1 - hub, mode });
        at += l.between(9000, 14_000);
        plan_fault(plan, at, Fault::Mode { hub: 1 - hub, mode: ModePlan::Active });
        at += l.between(1000, 4000);
    }
}

/// {renewals answered late, then not at all, while another hub opens streams}.
pub(crate) fn lease_edge(plan: &mut Plan, l: &mut Lane) {
    for a in &mut plan.agents {
        a.hubs = vec![0];
        a.parallel = 1;
        a.start_ns = 0;
    }
    let (slow, ms) = (l.between(8000, 12_000), 4000);
    let what = RegistryFault::Slow(l.between(300, 500));
    plan_fault(plan, slow, Fault::Registry { what, hub: Some(0), ms });
    let what = if l.chance(1, 2) { RegistryFault::Blackhole } else { RegistryFault::Refuse };
    let out = slow + ms - l.below(1000);
    plan_fault(plan, out, Fault::Registry { what, hub: Some(0), ms: 20_000 });
    let end = out * MS + plan.timers.lease;
    let hubs = plan.hubs.len() as u64;
    for c in &mut plan.clients {
        c.hub = if hubs > 1 { 1 + l.below(hubs - 1) as u8 } else { 0 };
        // The lease ends within a second or so after the outage began.
        c.at = end - 1200 * MS + l.below(2200) * MS + l.below(MS);
    }
}

/// {claims answered after their time-out, while agents come and go}.
pub(crate) fn slow_claims(plan: &mut Plan, l: &mut Lane) {
    for a in &mut plan.agents {
        a.parallel = 1;
    }
    let mut at = l.between(4000, 8000);
    for _ in 0..4 {
        let ms = l.between(2000, 6000);
        let what = RegistryFault::Slow(l.between(400, 1000));
        plan_fault(plan, at, Fault::Registry { what, hub: None, ms });
        let agent = At::Agent(l.below(plan.agents.len() as u64) as u8);
        plan_fault(plan, at + l.below(ms / 2), Fault::Crash { at: agent, down_ms: l.below(300), silent: false });
        at += ms + l.between(1000, 5000);
    }
}

/// {all hubs restart at one moment, far from each other, again and again}.
pub(crate) fn dial_together(plan: &mut Plan, l: &mut Lane) {
    let far = l.between(60, 200) * MS;
    plan.net.latency = (far, far + l.below(20) * MS);
    plan.shuffle = true;
    for (ix, h) in plan.hubs.iter_mut().enumerate() {
        h.peers.retain(|p| usize::from(*p) != ix);
    }
    let hubs = plan.hubs.len() as u8;
    let mut at = l.between(3000, 6000);
    for _ in 0..3 {
        let down_ms = l.between(1, 500);
        for hub in 0..hubs {
            plan_fault(plan, at, Fault::Stop { at: At::Hub(hub), down_ms });
            for other in 0..hub {
                // First dials come to nothing at both; the second ones meet.
                let (a, b) = (At::Hub(other), At::Hub(hub));
                plan_fault(plan, at, Fault::Block { a, b, both: true, ms: down_ms + 2000 });
            }
        }
        at += l.between(10_000, 15_000);
    }
}

/// {the registry does not answer for long, while clients come to hubs without
/// an agent of their own}.
pub(crate) fn registry_out(plan: &mut Plan, l: &mut Lane) {
    for a in &mut plan.agents {
        a.hubs.truncate(1);
        a.parallel = 1;
    }
    let at = l.between(10_000, 14_000);
    plan.timers.resume = 1000 * MS;
    // A connection that is silent is given up by its client, and everything
    // fails at once; one whose answers all come too late stays.
    let what = match l.below(4) {
        0 => RegistryFault::Refuse,
        1 => RegistryFault::Blackhole,
        _ => RegistryFault::Slow(l.between(2000, 3600)),
    };
    let ms = l.between(10_000, 25_000);
    plan_fault(plan, at, Fault::Registry { what, hub: None, ms });
    if l.chance(1, 2) {
        // Nobody was ever there, and clients ask all the while.
        plan.agents.iter_mut().for_each(|a| a.start_ns = (at + ms) * MS);
        for c in &mut plan.clients {
            c.at = (at + 1000 + l.below(ms)) * MS;
        }
        return;
    }
    // What was known of other hubs is gone with their agents.
    for n in 0..plan.agents.len() as u8 {
        let before = l.between(6000, 8000);
        plan_fault(plan, at - before, Fault::Crash { at: At::Agent(n), down_ms: ms + before, silent: false });
    }
}

/// Megabytes byte by byte (L1) would take minutes of real time.
fn whole_packets(plan: &mut Plan) {
    plan.net.mtu = (plan.net.mtu.0.max(1024), plan.net.mtu.1.max(1024));
}

/// {one stream of a pair of hubs pours while others trickle, over a thin wire}.
pub(crate) fn thin_wire(plan: &mut Plan, l: &mut Lane) {
    let rate = l.spread(128 << 10, 512 << 10);
    plan.net.bandwidth = (rate, rate);
    plan.net.buffer = (64 << 10, 64 << 10);
    whole_packets(plan);
    let from = l.between(3000, 6000) * MS;
    for c in &mut plan.clients {
        c.at = from + l.below(2000) * MS;
        for flow in [&mut c.up, &mut c.down] {
            flow.total = l.spread(64 << 10, 768 << 10) as u32;
            (flow.chunk, flow.read) = (65_536, 65_536);
            (flow.write_gap, flow.read_gap, flow.after) = (0, 0, 0);
        }
        c.buffer = 256 << 10;
    }
    // Caps that this traffic reaches, in one encoding or the other.
    if l.chance(1, 2) {
        let cap = l.spread(32 << 10, 128 << 10);
        plan.hubs.iter_mut().for_each(|h| h.inflight = cap);
        plan.agents.iter_mut().for_each(|a| a.inflight = cap);
        plan.v1 = if l.chance(1, 2) { 256 } else { plan.v1 };
    }
}

/// {some streams stall while others pour over the same wire}; run again without
/// those that stall (L7).
pub(crate) fn fairness(plan: &mut Plan, l: &mut Lane) {
    let rate = l.spread(192 << 10, 512 << 10);
    plan.net.bandwidth = (rate, rate);
    plan.net.latency = (MS, l.between(2, 20) * MS);
    (plan.net.jitter, plan.net.exponential) = (MS, false);
    plan.net.buffer = (64 << 10, 64 << 10);
    whole_packets(plan);
    plan.late_timers_ns = 0;
    // Whether an OPEN gets through a full wire in time is another question.
    (plan.timers.attempt, plan.timers.open) = (10_000 * MS, 10_000 * MS);
    for h in &mut plan.hubs {
        h.budget = 512 << 20;
    }
    plan.agents.truncate(1);
    for a in &mut plan.agents {
        (a.hubs, a.parallel, a.start_ns, a.token_ns, a.budget) = (vec![0], 1, 0, 0, 512 << 20);
        a.connectors = (0..plan.connectors).map(|c| (c, 0, 1)).collect();
        a.scope = None;
    }
    plan.clients.truncate(l.between(4, 12) as usize);
    let stalled = l.between(1, 2) as usize;
    let hub = l.below(plan.hubs.len() as u64) as u8;
    let (from, lasts) = (l.between(4000, 6000) * MS, l.between(10, 14));
    // So much that the first windows of those that stall are little beside it.
    let others = plan.clients.len() - stalled;
    let each = (rate * lasts / others as u64).max(128 << 10);
    let slow = l.chance(1, 2);
    for (ix, c) in plan.clients.iter_mut().enumerate() {
        c.hub = hub;
        c.at = from + l.below(500) * MS;
        c.buffer = 256 << 10;
        c.target = TargetPlan::Accept(MS);
        (c.client_end, c.target_end) = (Ending::Fin, Ending::Fin);
        for flow in [&mut c.up, &mut c.down] {
            flow.total = each as u32;
            (flow.chunk, flow.read) = (65_536, 65_536);
            (flow.write_gap, flow.read_gap, flow.after) = (0, 0, 0);
        }
        if ix < stalled {
            // What its own socket holds it has taken: little.
            c.buffer = l.spread(1 << 10, 8 << 10) as u32;
            c.at = from - l.below(1000) * MS;
            for flow in [&mut c.up, &mut c.down] {
                flow.read = 256;
                flow.read_gap = if slow { l.between(100, 1000) * MS } else { u64::MAX };
            }
        }
    }
    let ids = plan.clients.iter().take(stalled).map(|c| c.id).collect();
    plan.twin = Some(Twin::Without(ids));
}

/// {one node loses all its connections again and again, each after it lasted}.
pub(crate) fn steady_cuts(plan: &mut Plan, l: &mut Lane) {
    for a in &mut plan.agents {
        a.hubs = vec![l.below(plan.hubs.len() as u64) as u8];
        a.parallel = 1;
        a.start_ns = 0;
    }
    let at = if l.chance(1, 2) { At::Hub(0) } else { At::Agent(0) };
    let mut when = l.between(4000, 8000);
    while when + 3000 < plan.safety_ns / MS {
        let how = [CutHow::Rst, CutHow::Fin, CutHow::OneSide][l.below(3) as usize];
        plan_fault(plan, when, Fault::CutAll { at, how });
        when += l.between(4500, 8000);
    }
}

/// {agents lose their connections and come back with tokens that name fewer
/// connectors, or run out, while clients go on asking}.
pub(crate) fn short_tokens(plan: &mut Plan, l: &mut Lane) {
    plan.connectors = plan.connectors.max(2);
    for a in &mut plan.agents {
        a.connectors = (0..plan.connectors).map(|c| (c, 0, 1)).collect();
        a.scope = Some((0..plan.connectors).collect());
        a.token_ns = l.between(8000, 40_000) * MS;
    }
    for c in &mut plan.clients {
        c.connector = l.below(u64::from(plan.connectors)) as u16;
    }
    let mut at = l.between(2000, 4000);
    while at + 3000 < plan.safety_ns / MS {
        let agent = l.below(plan.agents.len() as u64) as u8;
        plan_fault(plan, at, Fault::CutAll { at: At::Agent(agent), how: CutHow::Rst });
        at += l.between(500, 4000);
    }
}

/// {hostile agents at every hub, from early on, and hostile hubs at most}.
pub(crate) fn rogue(plan: &mut Plan, l: &mut Lane) {
    for hub in 0..plan.hubs.len() as u64 {
        let drawn = RoguePlan::draw(l, 1, 20_000 * MS);
        plan.rogues.push(RoguePlan { hub: hub as u8, ..drawn });
    }
    for hub in 0..plan.hubs.len() as u64 {
        let drawn = RoguePlan::draw_hub(l, 1, 20_000 * MS);
        if l.chance(3, 4) {
            plan.rogues.push(RoguePlan { hub: hub as u8, ..drawn });
        }
    }
}

/// {up to ten thousand clients at one hub within a second, beside what else
/// goes wrong} (C5). Most have a word to say, some more than fits a frame.
pub(crate) fn burst(plan: &mut Plan, l: &mut Lane) {
    let hub = l.below(plan.hubs.len() as u64) as u8;
    let (at, within) = (l.between(5000, 15_000) * MS, l.spread(1, 1000) * MS);
    let first = plan.clients.len() as u32;
    // The largest ones cost seconds of real time, so they are few.
    let (least, most) = if l.chance(1, 16) { (2500, 9900) } else { (300, 2500) };
    for n in 0..l.spread(least, most) as u32 {
        let Some(mut c) = plan.clients.get((n % first.max(1)) as usize).copied() else { return };
        (c.id, c.hub, c.at) = (first + n, hub, at + l.below(within));
        let most = if l.chance(1, 32) { 2048 } else { 64 };
        for flow in [&mut c.up, &mut c.down] {
            flow.total = flow.total.min(l.spread(1, most) as u32);
            (flow.chunk, flow.read, flow.after) = (flow.chunk.max(64), flow.read.max(64), 0);
        }
        plan.clients.push(c);
    }
}

/// All scenarios, for runs that mix one of them into everything else.
pub(crate) const ALL: &[fn(&mut Plan, &mut Lane)] = &[
    failover_move_wake,
    asymmetric_fin_resume,
    lease_renewal_lost,
    sweep_between,
    drain_in_flip,
    rolling_drain,
    rotation,
    reloads,
    lease_edge,
    slow_claims,
    dial_together,
    registry_out,
    thin_wire,
    short_tokens,
    steady_cuts,
    scale,
];

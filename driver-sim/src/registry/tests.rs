//! Each fault does what it says, the same draws give the same run, and without
//! a fault the registry is `MemoryRegistry`.

use std::collections::BTreeMap;

use nowconnect_core::id::{AgentId, ClaimId, Epoch, Fence, Incarnation, Instance, Name, Nonce};
use nowconnect_core::registry::{Claim, EPOCHS_PER_MILLI, HubRun, RegistryOp, RegistryReply};
use nowconnect_core::rng::{Rng, Seed};
use nowconnect_core::wire::ConnectorAd;

use super::ghost::{Before, Ghost};
use super::*;

const T0: u64 = 1_700_000_000_000;
const SECOND: Duration = Duration::from_secs(1);

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}
fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}
fn agent(n: u64) -> AgentId {
    AgentId::new(&format!("agent-{n}")).unwrap()
}
fn hub(node: usize) -> HubRun {
    HubRun { replica_id: name(&format!("hub-{node}")), incarnation: Incarnation(1) }
}
fn client(node: usize) -> Client {
    Client { node, run: 0 }
}
fn renew(node: usize) -> RegistryOp {
    RegistryOp::Renew { hub: hub(node), lease: SECOND * 10, takes_over: None, region: None }
}
fn claim(agent_id: AgentId, instance: u64, node: usize, id: u128, seen: u64) -> RegistryOp {
    RegistryOp::Claim(Box::new(Claim {
        agent_id,
        instance: Instance(instance),
        hub: hub(node),
        claim_id: ClaimId(id),
        nonce: Nonce(u64::try_from(id).unwrap()),
        seen: Epoch(seen),
        granted: Epoch(0),
        connectors: vec![ConnectorAd { name: name("ldap"), priority: 0, weight: 1 }],
    }))
}
fn lookup() -> RegistryOp {
    RegistryOp::Lookup { connector: name("ldap") }
}
fn release(agent_id: AgentId, node: usize, fence: Fence) -> RegistryOp {
    RegistryOp::Release { agent_id, hub: hub(node), fence }
}

/// The least world: a heap in order of time and of making.
struct World {
    model: RegistryModel,
    rng: Rng,
    heap: BTreeMap<(Instant, u64), Step>,
    made: u64,
    tokens: u64,
    replies: Vec<(Instant, Client, Token, RegistryResult)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let (rng, heap) = (Seed::from_u64(seed).rng(), BTreeMap::new());
        Self { model: RegistryModel::new(T0), rng, heap, made: 0, tokens: 0, replies: Vec::new() }
    }

    fn take(&mut self, now: Instant, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::At(when, step) => {
                    assert!(when >= now, "{step:?}");
                    self.made += 1;
                    self.heap.insert((when, self.made), step);
                }
                Effect::Reply { client, token, result } => self.replies.push((now, client, token, result)),
            }
        }
    }

    fn submit(&mut self, now: Instant, node: usize, op: RegistryOp) -> Token {
        self.run_until(now);
        self.tokens += 1;
        let (token, mut effects) = (Token(self.tokens), Vec::new());
        let rng = &mut self.rng;
        self.model.submit(now, client(node), token, op, &mut |n| rng.below(n), &mut effects);
        self.take(now, effects);
        token
    }

    fn run_until(&mut self, until: Instant) {
        while let Some(entry) = self.heap.first_entry()
            && entry.key().0 <= until
        {
            let ((now, _), step) = entry.remove_entry();
            let (rng, mut effects) = (&mut self.rng, Vec::new());
            self.model.step(now, step, &mut |n| rng.below(n), &mut effects);
            self.take(now, effects);
        }
    }

    /// Submits and runs a second; the answer, if there is one by then.
    fn ask(&mut self, now: Instant, node: usize, op: RegistryOp) -> Option<RegistryResult> {
        let token = self.submit(now, node, op);
        self.run_until(now.after(SECOND));
        self.replies.iter().find(|r| r.2 == token).map(|r| r.3.clone())
    }

    fn granted(&mut self, now: Instant, node: usize, op: RegistryOp) -> Fence {
        match self.ask(now, node, op) {
            Some(Ok(RegistryReply::Claimed { epoch, nonce, .. })) => Fence { epoch, nonce },
            other => panic!("expected a grant, got {other:?}"),
        }
    }

    fn listed(&mut self, now: Instant, node: usize) -> Vec<Fence> {
        match self.ask(now, node, lookup()) {
            Some(Ok(RegistryReply::Attachments(l))) => l.into_iter().map(|l| l.fence).collect(),
            other => panic!("expected a listing, got {other:?}"),
        }
    }

    fn damage(&mut self, now: Instant, damage: Damage) -> bool {
        let rng = &mut self.rng;
        self.model.damage(now, damage, &mut |n| rng.below(n))
    }

    fn marked(&self, what: &str) -> bool {
        self.model.marks().contains_key(what)
    }
}

/// A world in which hub 1 holds agent 1, two seconds in.
fn served() -> (World, Fence) {
    let mut w = World::new(7);
    w.model.arm(SECOND * 60);
    assert_eq!(w.ask(at(0), 1, renew(1)), Some(Ok(RegistryReply::Renewed)));
    let fence = w.granted(at(1000), 1, claim(agent(1), 1, 1, 1, 0));
    (w, fence)
}

#[track_caller]
fn definite(result: Option<RegistryResult>) {
    assert!(matches!(result, Some(Err(RegistryError::Definite(_)))), "{result:?}");
}
#[track_caller]
fn unknown(result: Option<RegistryResult>) {
    assert!(matches!(result, Some(Err(RegistryError::Unknown(_)))), "{result:?}");
}

fn any_op(rng: &mut Rng, n: u64) -> RegistryOp {
    let node = usize::try_from(rng.below(3)).unwrap();
    let who = agent(rng.below(3));
    match rng.below(8) {
        0 | 1 => renew(node),
        2 | 3 => claim(who, rng.below(2), node, u128::from(n) + 1, rng.next_u64() >> rng.below(60)),
        4 => release(who, node, Fence { epoch: Epoch(rng.below(9)), nonce: Nonce(rng.below(9)) }),
        5 => RegistryOp::Sweep,
        6 => RegistryOp::Agent { agent_id: who },
        _ => lookup(),
    }
}

fn storm(seed: u64, faults: bool) -> World {
    let mut w = World::new(seed);
    w.model.arm(SECOND * 5);
    let mut plan = Seed::from_u64(seed).fork("plan").rng();
    let mut now = 0;
    for n in 0..300 {
        now += plan.below(120);
        if faults && plan.below(4) == 0 {
            inject_any(&mut w, &mut plan, at(now));
        }
        let op = any_op(&mut plan, n);
        w.submit(at(now), usize::try_from(plan.below(3)).unwrap(), op);
    }
    w.run_until(at(now + 60_000));
    w
}

fn inject_any(w: &mut World, plan: &mut Rng, now: Instant) {
    w.run_until(now);
    let per_mille = 400;
    let until = now.after(Duration::from_millis(plan.below(800)));
    let by = Duration::from_millis(plan.below(1000));
    let fault = match plan.below(19) {
        0 => Fault::Refuse,
        1 => Fault::Blackhole,
        2 => Fault::Slow { min: Duration::ZERO, max: by },
        3 => Fault::LoseReplies { per_mille },
        4 => Fault::LateCommits { per_mille, max: by, reply: true },
        5 => Fault::LateCommits { per_mille, max: by, reply: false },
        6 => Fault::HalfDone { per_mille },
        7 => Fault::Demoted { sticky: plan.below(2) == 0 },
        8 => Fault::StaleReads { lag: by * 3 },
        9 => Fault::EarlyExpiry { by },
        10 => Fault::LateExpiry { by },
        11 => Fault::Misalign { per_mille },
        12 => return w.model.failover(now, by * 5, vec![1], until),
        13 => return w.model.step_wall(now, i64::try_from(plan.below(4000)).unwrap() - 2000),
        n @ 14..18 => {
            let all = [Damage::EvictAny, Damage::SpoilAny, Damage::Restore { age: by * 3 }, Damage::Flush];
            w.damage(now, all[usize::try_from(n - 14).unwrap()].clone());
            return;
        }
        _ => {
            let ix = usize::try_from(plan.below(9)).unwrap();
            Fault::Errors { error: ServerError::ALL[ix], per_mille }
        }
    };
    let whom = if plan.below(2) == 0 { Whom::All } else { Whom::Node(1) };
    w.model.inject(now, fault, whom, until);
}

#[test]
fn a_healthy_registry_is_the_one_in_memory_and_keeps_the_order_of_a_client() {
    for seed in 0..20 {
        let mut w = World::new(seed);
        w.model.set_latency(Duration::ZERO, Duration::ZERO);
        let mut plain = MemoryRegistry::default();
        let mut plan = Seed::from_u64(seed).fork("plan").rng();
        let mut last = [0; 3];
        for n in 0..200 {
            // One at a time: the instant of arrival is known to a nanosecond.
            let now = at(n * 100);
            let op = any_op(&mut plan, n);
            let token = w.submit(now, 0, op.clone());
            w.run_until(now.after(Duration::from_millis(1)));
            assert_eq!(w.replies.last().unwrap().2, token);
            assert_eq!(w.replies.last().unwrap().3, plain.execute(T0 + n * 100, &op), "{op:?}");
        }
        assert_eq!(w.model.primary(), &plain);
        assert_eq!(w.model.check(), Ok(()));
        assert_eq!(w.model.injected(), &[0; CLASSES]);
        for (_, client, token, _) in storm(seed, false).replies {
            assert!(last[client.node] < token.0, "replies of a client in the order of its requests");
            last[client.node] = token.0;
        }
    }
}

#[test]
fn the_same_draws_give_the_same_run_and_no_fault_breaks_an_invariant() {
    let mut marks = BTreeMap::new();
    let mut injected = [0; CLASSES];
    for seed in 0..150 {
        let (a, b) = (storm(seed, true), storm(seed, true));
        assert_eq!(a.replies, b.replies);
        assert_eq!(a.model.primary(), b.model.primary());
        assert_eq!(a.model.executed_claims(), b.model.executed_claims());
        assert_eq!(a.model.check(), Ok(()), "seed {seed}");
        marks.extend(a.model.marks().clone());
        injected.iter_mut().zip(a.model.injected()).for_each(|(sum, n)| *sum += n);
    }
    assert!(injected.iter().all(|n| *n > 0), "{injected:?}");
    for mark in [
        "claim executed but its reply was lost",
        "claim executed but its connectors were not announced",
        "epoch raised by seen",
        "epoch raised by floor",
        "failover lost a claim",
        "sweeper raced with a claim",
        "late execution after the client's time-out",
        "release found a newer owner and did nothing",
    ] {
        assert!(marks.contains_key(mark), "{mark} in {marks:?}");
    }
}

#[test]
fn r1_refused_blackholed_slow() {
    let (mut w, _) = served();
    w.model.inject(at(3000), Fault::Refuse, Whom::Node(1), at(4000));
    let token = w.submit(at(3000), 1, renew(1));
    assert_eq!(w.replies.last().map(|r| (r.0, r.2)), Some((at(3000), token)), "at once");
    definite(w.replies.last().map(|r| r.3.clone()));
    assert_eq!(w.ask(at(3100), 2, renew(2)), Some(Ok(RegistryReply::Renewed)), "others are served");
    assert_eq!(w.ask(at(6000), 1, renew(1)), Some(Ok(RegistryReply::Renewed)), "dialled again");

    w.model.inject(at(8000), Fault::Blackhole, Whom::All, at(10_000));
    assert_eq!(w.ask(at(8000), 1, renew(1)), None);
    assert_eq!(w.ask(at(9000), 1, renew(1)), None);
    definite(w.ask(at(9900), 1, renew(1)));
    w.run_until(at(20_000));
    w.model.inject(at(20_000), Fault::Slow { min: SECOND * 3, max: SECOND * 3 }, Whom::All, at(21_000));
    let token = w.submit(at(20_000), 2, renew(2));
    w.run_until(at(30_000));
    let (when, ..) = *w.replies.iter().find(|r| r.2 == token).unwrap();
    assert!(when >= at(23_000) && when < at(23_010));
    assert!(w.marked("late execution after the client's time-out"));
}

#[test]
fn r2_a_lost_reply_was_executed_and_a_retry_gets_the_first_answer() {
    let (mut w, _) = served();
    w.model.inject(at(3000), Fault::LoseReplies { per_mille: 1000 }, Whom::All, at(4000));
    let op = claim(agent(2), 1, 1, 2, 0);
    assert_eq!(w.ask(at(3000), 1, op.clone()), None);
    let executed = w.model.executed_claims().last().unwrap().clone();
    assert_eq!(executed.agent_id, agent(2));
    assert_eq!(w.granted(at(5000), 1, op), executed.fence);
    assert_eq!(w.model.executed_claims().len(), 2, "a retry is no second claim");
    assert!(w.marked("claim executed but its reply was lost"));
    assert!(w.marked("claim retried and answered from memory (idempotent)"));
}

#[test]
fn r2_a_late_commit_overtakes_nothing_less_and_may_or_may_not_be_heard_of() {
    for reply in [true, false] {
        let (mut w, _) = served();
        let late = Fault::LateCommits { per_mille: 1000, max: SECOND, reply };
        w.model.inject(at(3000), late, Whom::All, at(3001));
        let token = w.submit(at(3000), 1, claim(agent(1), 1, 1, 2, 0));
        let newer = w.granted(at(3002), 1, claim(agent(1), 2, 1, 3, 0));
        w.run_until(at(6000));
        let last = w.model.executed_claims().last().unwrap();
        assert_eq!((last.claim_id, last.fence > newer), (ClaimId(2), true), "executed after the newer one");
        assert!(last.at >= at(3500));
        assert_eq!(w.replies.iter().any(|r| r.2 == token), reply);
    }
}

#[test]
fn r2_half_done_leaves_a_claim_that_no_lookup_finds() {
    let (mut w, fence) = served();
    w.damage(at(2500), Damage::Evict(nowconnect_core::registry::StoredKey::Index(name("ldap"))));
    w.model.inject(at(3000), Fault::HalfDone { per_mille: 1000 }, Whom::All, at(4000));
    unknown(w.ask(at(3000), 1, claim(agent(1), 1, 1, 2, 0)));
    assert!(w.listed(at(5000), 2).is_empty());
    let [held] = &*w.model.snapshot(at(5000)) else { panic!("expected one attachment") };
    assert!(held.fence.epoch > fence.epoch);
}

#[test]
fn r3_a_failover_loses_the_last_writes_and_a_pinned_hub_writes_in_vain() {
    let (mut w, kept) = served();
    w.granted(at(4000), 1, claim(agent(2), 1, 1, 2, 0));
    w.model.failover(at(6000), SECOND * 3, vec![1], at(9000));
    assert!(w.marked("failover lost a claim"));
    assert_eq!(w.listed(at(6000), 2), [kept]);
    let vain = w.granted(at(7000), 1, claim(agent(3), 1, 1, 3, 0));
    assert_eq!(w.listed(at(7500), 2), [kept]);
    assert!(w.listed(at(7800), 1).contains(&vain));
    assert_eq!(w.listed(at(9000), 1), [kept]);
    let lost: Vec<bool> = w.model.executed_claims().iter().map(|c| c.lost).collect();
    assert_eq!(lost, [false, true, true]);
    assert_eq!(w.model.check(), Ok(()));
}

/// The oracle takes what the old master's data were made of for its past
/// (seed 439 of `registry`: the answer to a retry there counted as a grant).
#[test]
fn r3_a_retry_at_an_old_master_made_of_a_backup_is_no_second_claim() {
    let (mut w, _) = served();
    let op = claim(agent(2), 1, 1, 2, 0);
    let first = w.granted(at(3000), 1, op.clone());
    w.run_until(at(5000));
    assert!(w.damage(at(5000), Damage::Restore { age: SECOND }));
    let late = w.granted(at(5500), 1, claim(agent(3), 1, 1, 3, 0));
    w.model.failover(at(6000), SECOND * 3, vec![1], at(9000));
    assert_eq!(w.granted(at(7000), 1, op), first);
    assert_eq!(w.granted(at(7500), 1, claim(agent(3), 1, 1, 3, 0)), late);
    assert_eq!(w.model.executed_claims().len(), 3);
    assert_eq!(w.model.check(), Ok(()));
}

#[test]
fn r3_a_demoted_master_reads_old_and_refuses_writes_until_dialled_anew() {
    let (mut w, old) = served();
    w.model.inject(at(2000), Fault::Demoted { sticky: false }, Whom::Node(1), at(60_000));
    let new = w.granted(at(3000), 2, claim(agent(1), 2, 2, 2, 0));
    w.ask(at(4000), 2, renew(2));
    assert_eq!(w.listed(at(5000), 1), [old]);
    assert_eq!(w.listed(at(6000), 2), [new]);
    match w.ask(at(7000), 1, renew(1)) {
        Some(Err(RegistryError::Definite(why))) => assert!(why.contains("READONLY"), "{why}"),
        other => panic!("expected READONLY, got {other:?}"),
    }
    assert_eq!(w.listed(at(9000), 1), [new], "the new connection leads to the master");
    w.model.inject(at(10_000), Fault::Demoted { sticky: true }, Whom::Node(1), at(20_000));
    definite(w.ask(at(11_000), 1, renew(1)));
    definite(w.ask(at(15_000), 1, lookup()));
    w.model.heal_all(at(16_000), &mut |_| 0);
    w.ask(at(17_000), 1, renew(1));
    assert_eq!(w.ask(at(19_000), 1, renew(1)), Some(Ok(RegistryReply::Renewed)));
}

#[test]
fn r4_a_restored_server_cannot_go_back_beyond_what_it_was_restored_from() {
    let (mut w, first) = served();
    w.run_until(at(3000));
    assert!(w.damage(at(5000), Damage::Restore { age: SECOND * 3 }));
    assert!(w.damage(at(5001), Damage::Restore { age: SECOND * 5 }));
    assert_eq!(w.listed(at(5001), 2), [first], "that is what it had");
    assert!(w.model.executed_claims().iter().all(|c| !c.lost), "and the ghost knows");
    w.model.failover(at(5002), SECOND * 5, Vec::new(), at(5002));
    assert!(w.model.executed_claims().iter().all(|c| !c.lost));
    assert_eq!(w.model.check(), Ok(()));
}

#[test]
fn r4_flush_and_restore() {
    let (mut w, first) = served();
    w.run_until(at(3000));
    w.granted(at(3000), 1, claim(agent(1), 1, 1, 2, 0));
    assert!(w.damage(at(5000), Damage::Restore { age: SECOND * 3 }));
    assert_eq!(w.listed(at(5000), 2), [first]);
    assert!(w.damage(at(7000), Damage::Flush));
    assert_eq!(w.model.primary(), &MemoryRegistry::default());
    assert!(w.model.executed_claims().iter().all(|c| c.lost));
    w.model.step_wall(at(7000), -3_600_000);
    let (seen, id) = (first.epoch.0, 3);
    assert!(w.granted(at(8000), 1, claim(agent(1), 1, 1, id, seen)) > first);
    assert!(w.marked("epoch raised by seen"));
    let amnesiac = w.granted(at(9000), 1, claim(agent(1), 2, 1, 4, 0));
    assert!(amnesiac > first, "the stored epoch keeps the order");
    assert_eq!(w.model.check(), Ok(()));
}

#[test]
fn r5_r9_keys_go_one_by_one() {
    let (mut w, _) = served();
    let mut left = w.model.primary().keys().count();
    assert!(w.damage(at(2000), Damage::Spoil(agent(1), name("hub-1"))));
    assert!(!w.damage(at(2000), Damage::Spoil(agent(1), name("hub-1"))));
    assert!(!w.damage(at(2000), Damage::SpoilAny));
    left -= 1;
    assert_eq!(w.model.primary().keys().count(), left);
    while left > 0 {
        assert!(w.damage(at(2000), Damage::EvictAny));
        left -= 1;
        assert_eq!(w.model.primary().keys().count(), left);
    }
    assert!(!w.damage(at(2000), Damage::EvictAny));
    assert!(w.model.executed_claims().iter().all(|c| c.epoch_lost && c.memory_lost && !c.lost));
    w.model.inject(at(3000), Fault::Errors { error: ServerError::Oom, per_mille: 1000 }, Whom::All, at(9000));
    definite(w.ask(at(3000), 1, renew(1)));
    definite(w.ask(at(4000), 1, claim(agent(1), 1, 1, 2, 0)));
    assert!(w.listed(at(5000), 1).is_empty(), "reads need no memory");
    assert_eq!(w.model.executed_claims().len(), 1);
}

#[test]
fn r6_stale_reads_answer_from_before() {
    let (mut w, old) = served();
    let new = w.granted(at(4000), 1, claim(agent(1), 1, 1, 2, 0));
    w.model.inject(at(5500), Fault::StaleReads { lag: SECOND * 3 }, Whom::Node(2), at(7000));
    assert_eq!(w.listed(at(5500), 2), [old]);
    assert_eq!(w.listed(at(5600), 1), [new]);
    assert_eq!(w.ask(at(5700), 2, renew(2)), Some(Ok(RegistryReply::Renewed)), "writes go to the master");
    assert_eq!(w.listed(at(7000), 2), [new]);
}

#[test]
fn r7_errors_are_what_the_production_driver_makes_of_them() {
    for error in ServerError::ALL {
        let (mut w, _) = served();
        w.model.inject(at(3000), Fault::Errors { error, per_mille: 1000 }, Whom::All, at(3100));
        let result = w.ask(at(3000), 1, renew(1));
        if error == ServerError::Unrecognised {
            unknown(result)
        } else {
            definite(result)
        }
        let next = w.submit(at(4001), 1, renew(1));
        w.run_until(at(4100));
        assert!(w.replies.iter().any(|r| r.2 == next && r.3.is_ok()), "{error:?}: served again");
        let (mut w, _) = served();
        w.model.inject(at(3000), Fault::Errors { error, per_mille: 1000 }, Whom::All, at(3010));
        w.submit(at(3000), 1, renew(1));
        let soon = w.submit(at(3020), 1, renew(1));
        w.run_until(at(3040));
        let served = w.replies.iter().any(|r| r.2 == soon && r.3.is_ok());
        assert_eq!(served, !error.abandons(), "{error:?}: a connection given up is down for a while");
    }
}

#[test]
fn r8_leases_end_early_or_late_for_readers() {
    let (mut w, fence) = served();
    w.model.inject(at(9000), Fault::EarlyExpiry { by: SECOND }, Whom::Node(2), at(9800));
    assert!(w.listed(at(9100), 2).is_empty());
    assert_eq!(w.listed(at(9101), 1), [fence]);
    w.model.inject(at(10_100), Fault::LateExpiry { by: SECOND }, Whom::Node(2), at(12_000));
    assert_eq!(w.listed(at(10_200), 2), [fence]);
    assert!(w.listed(at(10_201), 1).is_empty());
    assert!(w.listed(at(11_200), 2).is_empty());
}

#[test]
fn r10_a_misaligned_reply_is_unknown_and_ends_the_connection() {
    let (mut w, _) = served();
    w.model.inject(at(3000), Fault::Misalign { per_mille: 1000 }, Whom::Node(1), at(3010));
    unknown(w.ask(at(3000), 1, claim(agent(2), 1, 1, 2, 0)));
    assert_eq!(w.model.executed_claims().len(), 2);
    assert_eq!(w.model.injected()[Class::R10 as usize], 1);
}

#[test]
fn the_wall_clock_steps_and_drifts() {
    let mut m = RegistryModel::new(T0);
    assert_eq!(m.wall_millis(at(1500)), T0 + 1500);
    m.step_wall(at(2000), -5000);
    assert_eq!(m.wall_millis(at(3000)), T0 - 2000);
    m.set_drift(at(3000), 500);
    assert_eq!(m.wall_millis(at(1_003_000)), T0 - 2000 + 1_000_500);
}

/// Judges steps that a wrong registry could have taken.
fn judged(steps: &[(RegistryOp, u64, Fence)]) -> Option<&'static str> {
    let mut g = Ghost::default();
    let state = MemoryRegistry::default();
    for (op, wall, fence) in steps {
        let result = Ok(RegistryReply::Claimed { epoch: fence.epoch, nonce: fence.nonce, superseded: Vec::new() });
        let place = Place { server: ServerId(0), primary: true, at: at(wall - T0), wall: *wall };
        g.after(place, &Before::default(), op, &result, &state);
    }
    g.check().err().map(|v| v.id)
}

#[test]
fn the_oracles_see_what_a_wrong_registry_does() {
    let floor = T0 * EPOCHS_PER_MILLI;
    let fence = |epoch, nonce| Fence { epoch: Epoch(epoch), nonce: Nonce(nonce) };
    let by = |id| claim(agent(1), 1, 1, id, 0);
    assert_eq!(judged(&[(by(1), T0, fence(floor + 1, 1)), (by(2), T0, fence(floor + 2, 2))]), None);
    assert_eq!(judged(&[(by(1), T0, fence(floor + 9, 1)), (by(2), T0, fence(floor + 9, 2))]), Some("O3"));
    assert_eq!(judged(&[(by(1), T0, fence(floor + 9, 1)), (by(2), T0, fence(floor + 8, 2))]), Some("O2"));
    assert_eq!(judged(&[(by(1), T0, fence(floor, 1))]), Some("O2"), "not above the floor");
    let seen = claim(agent(1), 1, 1, 1, floor + 50);
    assert_eq!(judged(&[(seen, T0, fence(floor + 50, 1))]), Some("O2"), "not above what was seen");
    assert_eq!(judged(&[(by(1), T0, fence(floor + 1, 1)), (by(1), T0, fence(floor + 2, 1))]), Some("O5"));
    let later = T0 + 60_001;
    let anew = fence(later * EPOCHS_PER_MILLI + 1, 1);
    assert_eq!(judged(&[(by(1), T0, fence(floor + 1, 1)), (by(1), later, anew)]), None, "forgotten by then");

    // A release that took a newer owner away, or the epoch with it (planted bug 5).
    let mut held = MemoryRegistry::default();
    held.execute(T0, &claim(agent(1), 1, 1, 1, 0)).unwrap();
    let place = Place { server: ServerId(0), primary: true, at: at(0), wall: T0 };
    let key = nowconnect_core::registry::StoredKey::Attachments(agent(1));
    for key in [key, nowconnect_core::registry::StoredKey::Epoch(agent(1))] {
        let op = release(agent(1), 1, fence(3, 3));
        let (mut g, mut after) = (Ghost::default(), held.clone());
        let before = Ghost::before(&held, T0, &op);
        assert!(after.evict(&key));
        g.after(place, &before, &op, &Ok(RegistryReply::Done), &after);
        assert_eq!(g.check().err().map(|v| v.id), Some("O5"), "{key:?}");
    }
    // A sweep that ended what was listed, a renewal that took a live lease.
    held.execute(T0, &renew(1)).unwrap();
    let sweep = RegistryOp::Sweep;
    let (mut g, before) = (Ghost::default(), Ghost::before(&held, T0, &sweep));
    g.after(place, &before, &sweep, &Ok(RegistryReply::Swept(1)), &MemoryRegistry::default());
    assert_eq!(g.check().err().map(|v| v.id), Some("O5"));
    let other = HubRun { incarnation: Incarnation(2), ..hub(1) };
    let RegistryOp::Renew { lease, .. } = renew(1) else { panic!("a renewal") };
    let steal = RegistryOp::Renew { hub: other.clone(), lease, takes_over: None, region: None };
    let (mut g, before) = (Ghost::default(), Ghost::before(&held, T0, &steal));
    let mut stolen = MemoryRegistry::default();
    stolen.execute(T0, &steal).unwrap();
    g.after(place, &before, &steal, &Ok(RegistryReply::Renewed), &stolen);
    assert_eq!(g.check().err().map(|v| v.id), Some("O5"));
}

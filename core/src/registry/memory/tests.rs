//! The rules of epochs, leases and claims, and a naive model beside them.

use proptest::prelude::*;

use super::*;
use crate::id::Nonce;
use crate::registry::{EPOCHS_PER_MILLI, SEEN_AHEAD_MAX, SEEN_UNCHECKED_MAX, provisional_epoch};

pub(super) const T0: u64 = 1_700_000_000_000;
const LEASE: Duration = Duration::from_secs(10);

pub(super) fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}
pub(super) fn agent(n: u8) -> AgentId {
    AgentId::new(&format!("agent-{n}")).unwrap()
}
pub(super) fn hub(n: u8, run: u64) -> HubRun {
    HubRun { replica_id: name(&format!("hub-{n}")), incarnation: Incarnation(run) }
}
fn ads(connectors: &[&str]) -> Vec<ConnectorAd> {
    connectors.iter().map(|c| ConnectorAd { name: name(c), priority: 0, weight: 1 }).collect()
}
pub(super) fn renew(hub: &HubRun, takes_over: Option<u64>) -> RegistryOp {
    let takes_over = takes_over.map(Incarnation);
    RegistryOp::Renew { hub: hub.clone(), lease: LEASE, takes_over, region: Some(name("eu1")) }
}
pub(super) fn claim(agent_id: AgentId, instance: u64, hub: HubRun, id: u128, seen: u64) -> RegistryOp {
    RegistryOp::Claim(Box::new(Claim {
        agent_id,
        instance: Instance(instance),
        hub,
        claim_id: ClaimId(id),
        nonce: Nonce(u64::try_from(id).unwrap() ^ 0xff),
        seen: Epoch(seen),
        granted: Epoch(0),
        connectors: ads(&["ldap"]),
    }))
}
pub(super) fn lookup(connector: &str) -> RegistryOp {
    RegistryOp::Lookup { connector: name(connector) }
}
#[track_caller]
pub(super) fn granted(result: RegistryResult) -> (Fence, Vec<Located>) {
    let reply = result.unwrap();
    let RegistryReply::Claimed { epoch, nonce, superseded } = reply else { panic!("expected Claimed, got {reply:?}") };
    (Fence { epoch, nonce }, superseded)
}
#[track_caller]
pub(super) fn listed(result: RegistryResult) -> Vec<Located> {
    let reply = result.unwrap();
    let RegistryReply::Attachments(list) = reply else { panic!("expected Attachments, got {reply:?}") };
    list
}

#[test]
fn the_epoch_is_above_stored_seen_and_floor() {
    let mut r = MemoryRegistry::default();
    let floor = T0 * EPOCHS_PER_MILLI;
    let (a, _) = granted(r.execute(T0, &claim(agent(1), 1, hub(1, 1), 1, 0)));
    assert_eq!(a.epoch, Epoch(floor + 1));
    let (b, _) = granted(r.execute(T0, &claim(agent(1), 1, hub(1, 1), 2, 0)));
    assert_eq!(b.epoch, Epoch(floor + 2));
    let (c, _) = granted(r.execute(T0, &claim(agent(1), 1, hub(1, 1), 3, floor + 700)));
    assert_eq!(c.epoch, Epoch(floor + 701));
    // The registry's clock steps back: the stored epoch keeps the order (P4).
    let (d, _) = granted(r.execute(T0 - 86_400_000, &claim(agent(1), 1, hub(1, 1), 4, 0)));
    assert_eq!(d.epoch, Epoch(floor + 702));
}

#[test]
fn what_was_granted_before_counts_like_a_stored_epoch() {
    let mut r = MemoryRegistry::default();
    let RegistryOp::Claim(mut c) = claim(agent(1), 1, hub(1, 1), 1, 0) else { unreachable!() };
    // The data is lost and the clock stepped back by days.
    c.granted = Epoch(T0 * EPOCHS_PER_MILLI + 3 * SEEN_AHEAD_MAX);
    let (a, _) = granted(r.execute(T0, &RegistryOp::Claim(c.clone())));
    assert_eq!(a.epoch, Epoch(c.granted.0 + 1));
}

#[test]
fn a_provisional_epoch_is_clamped_as_well() {
    let floor = Epoch(T0 * EPOCHS_PER_MILLI);
    let honest = Epoch(floor.0 + 5);
    assert_eq!(provisional_epoch(Epoch(0), honest, None), Epoch(honest.0 + 1));
    assert_eq!(provisional_epoch(honest, Epoch(3), Some(floor)), Epoch(honest.0 + 1));
    for known in [None, Some(floor)] {
        let first = provisional_epoch(Epoch(0), Epoch(u64::MAX), known);
        assert!(first.0 <= SEEN_UNCHECKED_MAX + 1, "far below EPOCH_MAX");
        let second = provisional_epoch(first, Epoch(u64::MAX), known);
        assert!(second > first && second.0 <= first.0 + SEEN_AHEAD_MAX + 1, "a day each, never used up soon");
    }
}

#[test]
fn a_poisonous_seen_is_clamped_and_epochs_never_wrap() {
    let mut r = MemoryRegistry::default();
    let (a, _) = granted(r.execute(T0, &claim(agent(1), 1, hub(1, 1), 1, u64::MAX)));
    assert_eq!(a.epoch, Epoch(T0 * EPOCHS_PER_MILLI + SEEN_AHEAD_MAX + 1));
    // Naming it again gains a day a claim, of this agent alone.
    let (next, _) = granted(r.execute(T0, &claim(agent(1), 1, hub(1, 1), 9, u64::MAX)));
    assert_eq!(next.epoch, Epoch(a.epoch.0 + SEEN_AHEAD_MAX + 1));
    let (other, _) = granted(r.execute(T0, &claim(agent(2), 1, hub(1, 1), 10, 0)));
    assert_eq!(other.epoch, Epoch(T0 * EPOCHS_PER_MILLI + 1));
    let last_day = EPOCH_MAX / EPOCHS_PER_MILLI;
    let before = r.clone();
    for id in 2..5 {
        let refused = r.execute(last_day, &claim(agent(1), 2, hub(1, 1), id, u64::MAX)).unwrap_err();
        assert!(matches!(refused, RegistryError::Definite(_)), "{refused:?}");
    }
    assert_eq!(r.attachments, before.attachments);
    assert_eq!(r.epochs, before.epochs);
}

#[test]
fn a_lost_registry_continues_above_what_the_agent_has_seen() {
    let mut r = MemoryRegistry::default();
    let (old, _) = granted(r.execute(T0, &claim(agent(1), 1, hub(1, 1), 1, 0)));
    let mut empty = MemoryRegistry::default();
    let (new, _) = granted(empty.execute(T0 - 3_600_000, &claim(agent(1), 1, hub(1, 1), 2, old.epoch.0)));
    assert!(new.epoch > old.epoch);
}

/// The agent is days ahead of a registry that lost its data: its claims catch up.
#[test]
fn an_honest_seen_beyond_the_clamp_is_reached_in_a_few_claims() {
    let mut r = MemoryRegistry::default();
    let highest = Epoch(T0 * EPOCHS_PER_MILLI + 3 * SEEN_AHEAD_MAX + 17);
    let mut claims = 1..;
    let above = claims
        .find(|id| granted(r.execute(T0, &claim(agent(1), 1, hub(1, 1), *id, highest.0))).0.epoch > highest)
        .unwrap();
    assert_eq!(above, 4);
    let floor = Epoch(T0 * EPOCHS_PER_MILLI);
    let alone = std::iter::successors(Some(floor), |own| Some(provisional_epoch(*own, highest, Some(floor))));
    assert_eq!(alone.take_while(|e| *e <= highest).count(), 4, "and without a registry");
}

#[test]
fn a_retried_claim_gets_the_first_answer_even_when_it_was_superseded_meanwhile() {
    let mut r = MemoryRegistry::default();
    granted(r.execute(T0, &claim(agent(1), 1, hub(2, 1), 9, 0)));
    let first = claim(agent(1), 2, hub(1, 1), 1, 0);
    let answer = r.execute(T0, &first);
    let (fence, superseded) = granted(answer.clone());
    assert_eq!(superseded.len(), 1);
    let state = r.clone();
    assert_eq!(r.execute(T0 + 1, &first), answer);
    assert_eq!(r, state);

    let (newer, superseded) = granted(r.execute(T0 + 2, &claim(agent(1), 3, hub(2, 1), 2, 0)));
    assert_eq!(superseded.first().map(|l| l.fence), Some(fence));
    let state = r.clone();
    assert_eq!(r.execute(T0 + 3, &first), answer, "the late retry must not take the agent back");
    assert_eq!(r, state);
    assert!(newer.epoch > fence.epoch);
}

#[test]
fn a_retry_after_the_memory_of_claims_still_finds_its_attachment() {
    let mut r = MemoryRegistry::default();
    let op = claim(agent(1), 1, hub(1, 1), 1, 0);
    let (fence, _) = granted(r.execute(T0, &op));
    let later = T0 + u64::try_from(CLAIM_MEMORY.as_millis()).unwrap() + 1;
    let (again, superseded) = granted(r.execute(later, &op));
    assert_eq!(again, fence);
    assert!(superseded.is_empty());
    assert!(r.claims.is_empty() && r.claim_order.is_empty());
}

#[test]
fn instances_supersede_and_attachments_of_one_instance_coexist() {
    let mut r = MemoryRegistry::default();
    for n in 1..=3 {
        r.execute(T0, &renew(&hub(n, 1), None)).unwrap();
    }
    let (a, none) = granted(r.execute(T0, &claim(agent(1), 1, hub(1, 1), 1, 0)));
    assert!(none.is_empty());
    let (b, none) = granted(r.execute(T0, &claim(agent(1), 1, hub(2, 1), 2, 0)));
    assert!(none.is_empty());
    let fences = |r: &mut MemoryRegistry| -> Vec<Fence> {
        listed(r.execute(T0, &lookup("ldap"))).iter().map(|l| l.fence).collect()
    };
    assert_eq!(fences(&mut r), [a, b]);
    let (b2, none) = granted(r.execute(T0, &claim(agent(1), 1, hub(2, 1), 3, 0)));
    assert!(none.is_empty(), "a re-attachment at the same hub replaces");
    assert_eq!(fences(&mut r), [a, b2]);
    let (c, superseded) = granted(r.execute(T0, &claim(agent(1), 2, hub(1, 1), 4, 0)));
    assert_eq!(superseded.iter().map(|l| l.fence).collect::<Vec<_>>(), [a, b2]);
    assert_eq!(fences(&mut r), [c]);
}

#[test]
fn a_lease_is_taken_over_only_by_compare_and_set() {
    let mut r = MemoryRegistry::default();
    let (old, new) = (hub(1, 1), hub(1, 2));
    assert_eq!(r.execute(T0, &renew(&old, None)), Ok(RegistryReply::Renewed));
    let held = Ok(RegistryReply::LeaseHeld { by: Incarnation(1) });
    assert_eq!(r.execute(T0, &renew(&new, None)), held);
    assert_eq!(r.execute(T0, &renew(&new, Some(7))), held);
    assert_eq!(r.execute(T0, &renew(&new, Some(1))), Ok(RegistryReply::Renewed));
    assert_eq!(r.execute(T0, &renew(&new, Some(1))), Ok(RegistryReply::Renewed), "retry");
    let held = Ok(RegistryReply::LeaseHeld { by: Incarnation(2) });
    assert_eq!(r.execute(T0, &renew(&old, None)), held);
    assert_eq!(r.execute(T0, &RegistryOp::Resign { hub: old.clone() }), Ok(RegistryReply::Stale));
    let after = T0 + u64::try_from(LEASE.as_millis()).unwrap();
    assert_eq!(r.execute(after - 1, &renew(&old, None)), held);
    assert_eq!(r.execute(after, &renew(&old, None)), Ok(RegistryReply::Renewed), "expired");
    assert_eq!(r.execute(after, &RegistryOp::Resign { hub: old.clone() }), Ok(RegistryReply::Done));
    assert_eq!(r.execute(after, &RegistryOp::Resign { hub: old }), Ok(RegistryReply::Done), "retry");
}

#[test]
fn a_lease_that_a_clock_stepping_back_made_longer_holds_nobody_up() {
    let mut r = MemoryRegistry::default();
    assert_eq!(r.execute(T0, &renew(&hub(1, 1), None)), Ok(RegistryReply::Renewed));
    let held = Ok(RegistryReply::LeaseHeld { by: Incarnation(1) });
    assert_eq!(r.execute(T0, &renew(&hub(1, 2), None)), held, "a lease and no more");
    assert_eq!(r.execute(T0 - 1, &renew(&hub(1, 2), None)), Ok(RegistryReply::Renewed));
}

#[test]
fn only_the_present_run_of_a_hub_with_a_lease_is_listed_and_the_rest_is_swept() {
    let mut r = MemoryRegistry::default();
    let (fence, _) = granted(r.execute(T0, &claim(agent(1), 1, hub(1, 1), 1, 0)));
    let agent_op = RegistryOp::Agent { agent_id: agent(1) };
    assert!(listed(r.execute(T0, &agent_op)).is_empty(), "claimed without a lease: not listed");
    r.execute(T0, &renew(&hub(1, 1), None)).unwrap();
    let seen = listed(r.execute(T0, &agent_op));
    assert_eq!(seen.iter().map(|l| l.fence).collect::<Vec<_>>(), [fence]);
    assert_eq!(seen.first().and_then(|l| l.region.clone()), Some(name("eu1")));
    assert_eq!(r.execute(T0, &RegistryOp::Sweep), Ok(RegistryReply::Swept(0)));
    r.execute(T0, &renew(&hub(1, 2), Some(1))).unwrap();
    assert!(listed(r.execute(T0, &lookup("ldap"))).is_empty(), "a crash ends all its attachments at once");
    assert_eq!(r.execute(T0, &RegistryOp::Sweep), Ok(RegistryReply::Swept(2)), "attachment and index entry");
    assert_eq!(r.execute(T0, &RegistryOp::Sweep), Ok(RegistryReply::Swept(0)));
    let (next, _) = granted(r.execute(T0, &claim(agent(1), 1, hub(1, 2), 2, 0)));
    assert!(next.epoch > fence.epoch, "the epoch outlives release and sweep");
}

#[test]
fn release_and_set_connectors_act_on_exactly_their_fence() {
    let mut r = MemoryRegistry::default();
    r.execute(T0, &renew(&hub(1, 1), None)).unwrap();
    let (old, _) = granted(r.execute(T0, &claim(agent(1), 1, hub(1, 1), 1, 0)));
    let (new, _) = granted(r.execute(T0, &claim(agent(1), 1, hub(1, 1), 2, 0)));
    let release = |fence, run| RegistryOp::Release { agent_id: agent(1), hub: hub(1, run), fence };
    let set =
        |fence| RegistryOp::SetConnectors { agent_id: agent(1), hub: hub(1, 1), fence, connectors: ads(&["ssh"]) };
    let other_nonce = Fence { nonce: Nonce(77), ..new };
    for (op, want) in [
        (release(old, 1), RegistryReply::Stale),
        (release(other_nonce, 1), RegistryReply::Stale),
        (release(new, 2), RegistryReply::Stale),
        (set(old), RegistryReply::Stale),
        (set(new), RegistryReply::Done),
        (set(new), RegistryReply::Done),
    ] {
        assert_eq!(r.execute(T0, &op), Ok(want), "{op:?}");
    }
    assert!(listed(r.execute(T0, &lookup("ldap"))).is_empty(), "the index is a hint; the attachment decides");
    assert_eq!(listed(r.execute(T0, &lookup("ssh"))).len(), 1);
    for want in [RegistryReply::Done, RegistryReply::Done] {
        assert_eq!(r.execute(T0, &release(new, 1)), Ok(want));
    }
    assert_eq!(r.execute(T0, &set(new)), Ok(RegistryReply::Stale));
}

/// The naive model: a list of what was granted and not yet ended, searched
/// linearly, with no index and no memory beyond it.
#[derive(Default)]
struct Naive {
    held: Vec<Located>,
    leases: Vec<(HubRun, u64)>,
    granted: Vec<(AgentId, Fence)>,
}

impl Naive {
    fn live(&self, now: u64, hub: &HubRun) -> bool {
        self.leases.iter().any(|(h, until)| h == hub && now < *until)
    }
    fn lists(&self, now: u64, keep: impl Fn(&Located) -> bool) -> Vec<Located> {
        let mut out: Vec<Located> = self.held.iter().filter(|l| self.live(now, &l.hub) && keep(l)).cloned().collect();
        out.sort_by(|a, b| (&a.agent_id, &a.hub).cmp(&(&b.agent_id, &b.hub)));
        out
    }
}

#[derive(Clone, Debug)]
enum Step {
    Renew { hub: u8, run: u64, takes_over: Option<u64> },
    Resign { hub: u8, run: u64 },
    Claim { agent: u8, instance: u64, hub: u8, run: u64, seen: u64, connector: u8 },
    Act { pick: usize, release: bool, connector: u8 },
    Tick { millis: u64 },
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..4_u8, 1..3_u64, prop::option::of(1..3_u64)).prop_map(|(hub, run, takes_over)| Step::Renew {
            hub,
            run,
            takes_over
        }),
        (1..4_u8, 1..3_u64).prop_map(|(hub, run)| Step::Resign { hub, run }),
        (1..4_u8, 1..3_u64, 1..4_u8, 1..3_u64, any::<u64>(), 0..3_u8).prop_map(
            |(agent, instance, hub, run, seen, connector)| Step::Claim { agent, instance, hub, run, seen, connector }
        ),
        (any::<usize>(), any::<bool>(), 0..3_u8).prop_map(|(pick, release, connector)| Step::Act {
            pick,
            release,
            connector
        }),
        (0..15_000_u64).prop_map(|millis| Step::Tick { millis }),
        Just(Step::Sweep),
    ]
}

const CONNECTORS: [&str; 3] = ["ldap", "ssh", "web"];

proptest! {
    #[test]
    fn behaves_like_the_naive_model(steps in prop::collection::vec(step(), 1..60)) {
        let (mut r, mut m, mut now) = (MemoryRegistry::default(), Naive::default(), T0);
        let lease_millis = u64::try_from(LEASE.as_millis()).unwrap();
        for (i, step) in steps.into_iter().enumerate() {
            let op = match step {
                Step::Tick { millis } => { now += millis; continue; }
                Step::Sweep => RegistryOp::Sweep,
                Step::Renew { hub: h, run, takes_over } => renew(&hub(h, run), takes_over),
                Step::Resign { hub: h, run } => RegistryOp::Resign { hub: hub(h, run) },
                Step::Claim { agent: a, instance, hub: h, run, seen, connector } => {
                    let mut op = claim(agent(a), instance, hub(h, run), i as u128 + 1, seen);
                    if let RegistryOp::Claim(c) = &mut op {
                        c.connectors = ads(&[CONNECTORS[usize::from(connector)]]);
                    }
                    op
                }
                Step::Act { pick, release, connector } => {
                    let Some((agent_id, fence)) = m.granted.get(pick % m.granted.len().max(1)).cloned() else { continue };
                    let hub = m.held.iter().find(|l| l.fence == fence).map_or(hub(1, 1), |l| l.hub.clone());
                    if release {
                        RegistryOp::Release { agent_id, hub, fence }
                    } else {
                        let connectors = ads(&[CONNECTORS[usize::from(connector)]]);
                        RegistryOp::SetConnectors { agent_id, hub, fence, connectors }
                    }
                }
            };
            let before = r.epochs.clone();
            let reply = r.execute(now, &op).unwrap();
            match (&op, &reply) {
                (RegistryOp::Renew { hub, takes_over, .. }, reply) => {
                    m.leases.retain(|(_, until)| now < *until);
                    let holder = m.leases.iter().find(|(h, _)| h.replica_id == hub.replica_id).map(|(h, _)| h.incarnation);
                    match holder {
                        Some(by) if by != hub.incarnation && *takes_over != Some(by) => {
                            prop_assert_eq!(reply, &RegistryReply::LeaseHeld { by });
                        }
                        _ => {
                            prop_assert_eq!(reply, &RegistryReply::Renewed);
                            m.leases.retain(|(h, _)| h.replica_id != hub.replica_id);
                            m.leases.push((hub.clone(), now + lease_millis));
                        }
                    }
                }
                (RegistryOp::Resign { hub }, _) => m.leases.retain(|(h, _)| h != hub),
                (RegistryOp::Claim(c), RegistryReply::Claimed { epoch, nonce, superseded }) => {
                    let fence = Fence { epoch: *epoch, nonce: *nonce };
                    let stored = before.get(&c.agent_id).copied().unwrap_or_default();
                    prop_assert_eq!(*epoch, next_epoch(stored, c.seen, now));
                    prop_assert!(*epoch > stored);
                    let mut ended: Vec<Located> = Vec::new();
                    m.held.retain(|l| {
                        let other = l.agent_id == c.agent_id && l.instance != c.instance;
                        if other { ended.push(Located { region: None, ..l.clone() }); }
                        let replaced = l.agent_id == c.agent_id && l.hub.replica_id == c.hub.replica_id;
                        !other && !replaced
                    });
                    ended.sort_by(|a, b| a.hub.cmp(&b.hub));
                    prop_assert_eq!(superseded, &ended);
                    m.held.push(Located {
                        agent_id: c.agent_id.clone(), instance: c.instance, hub: c.hub.clone(), fence,
                        connectors: c.connectors.clone(), region: Some(name("eu1")),
                    });
                    m.granted.push((c.agent_id.clone(), fence));
                }
                (RegistryOp::SetConnectors { fence, connectors, hub, .. }, reply) => {
                    let found = m.held.iter_mut().find(|l| l.fence == *fence && l.hub == *hub);
                    prop_assert_eq!(reply == &RegistryReply::Done, found.is_some());
                    if let Some(l) = found { l.connectors.clone_from(connectors); }
                }
                (RegistryOp::Release { agent_id, fence, hub }, reply) => {
                    let other = m.held.iter().any(|l| {
                        l.agent_id == *agent_id && l.hub.replica_id == hub.replica_id && (l.fence != *fence || l.hub != *hub)
                    });
                    prop_assert_eq!(reply == &RegistryReply::Stale, other);
                    m.held.retain(|l| l.fence != *fence || l.hub != *hub || l.agent_id != *agent_id);
                }
                (RegistryOp::Sweep, RegistryReply::Swept(n)) => {
                    let dead = m.held.iter().filter(|l| !m.live(now, &l.hub)).count();
                    prop_assert!(usize::try_from(*n).unwrap() >= dead);
                    m.held = m.lists(now, |_| true);
                }
                (op, reply) => prop_assert!(false, "{:?} answered {:?}", op, reply),
            }
            // O5: a step repeated at once changes nothing; all but Sweep, which
            // reports what it did, answer alike.
            let state = r.clone();
            let again = r.execute(now, &op).unwrap();
            prop_assert_eq!(&r, &state);
            if op != RegistryOp::Sweep { prop_assert_eq!(again, reply); }

            for c in CONNECTORS {
                let want = m.lists(now, |l| l.connectors.iter().any(|ad| ad.name.as_str() == c));
                prop_assert_eq!(listed(r.execute(now, &lookup(c))), want);
            }
            let mut held: Vec<HubRun> = m.leases.iter().filter(|(_, until)| now < *until).map(|(h, _)| h.clone()).collect();
            held.sort();
            let asked = RegistryOp::Leases { replicas: (1..5).map(|n| hub(n, 1).replica_id).collect() };
            prop_assert_eq!(r.execute(now, &asked), Ok(RegistryReply::Leases(held)));
            for a in 1..4 {
                let want = m.lists(now, |l| l.agent_id == agent(a));
                prop_assert_eq!(listed(r.execute(now, &RegistryOp::Agent { agent_id: agent(a) })), want);
            }
        }
    }
}

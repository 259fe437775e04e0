//! What the registry loses, does late or never answers, and how hubs mend it
//! without touching a stream (O2, O5, O6, L5, L11, M4).

#![allow(clippy::unwrap_used, reason = "a test stops where its preparation failed")]

use std::time::Duration;

use nowconnect_core::config::Mode;
use nowconnect_core::error::{CloseCode, RstCode};
use nowconnect_core::id::{AgentId, ClaimId, Fence, Incarnation, Instance, ListenerIx, Nonce};
use nowconnect_core::mux::Input;
use nowconnect_core::observed::Observed;
use nowconnect_core::registry::{Claim, HubRun, MemoryRegistry, RegistryOp, RegistryReply, StoredKey};
use nowconnect_core::wire::Codec;

use crate::world::{Target, World, agent_config, hub_config, name, two_hubs};
use crate::{count, echo, payload};

const LEASE: Duration = Duration::from_secs(10);

fn plant_7() -> AgentId {
    AgentId::new("plant-7").unwrap()
}

/// The only attachment of a hub.
fn tunnel(w: &World, hub: usize) -> (Fence, bool) {
    let mut all = w.as_hub(hub).control().tunnels();
    let only = all.next().map(|t| (t.fence, t.firm)).expect("an attachment");
    assert!(all.next().is_none());
    only
}

fn lone_hub() -> (World, usize) {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
    w.run_for(Duration::from_secs(1));
    (w, a)
}

#[test]
fn a_registry_that_lost_everything_lists_all_again_within_a_lease_and_no_client_notices() {
    let (mut w, a, b, g) = two_hubs(Codec::BinaryV2);
    let open = w.client(b).unwrap();
    w.write(b, open, payload(1000));
    w.run_for(Duration::from_millis(50));
    let before = tunnel(&w, a).0;

    w.registry = MemoryRegistry::default();
    w.run_for(Duration::from_millis(2500));
    // Nothing is listed, and the owner is asked all the same.
    assert_eq!(echo(&mut w, b, 5000), Ok(()), "an empty listing wipes no route");
    w.run_for(LEASE);
    let (after, firm) = tunnel(&w, a);
    assert!(firm && after > before);
    assert_eq!((w.located("ldap"), w.registry.stored_epoch(&plant_7())), (1, after.epoch));
    assert_eq!(w.as_agent(g).tunnels().highest_epoch(), after.epoch, "the agent was told");
    for hub in [a, b] {
        assert_eq!(echo(&mut w, hub, 5000), Ok(()), "under the new fence");
    }
    w.write(b, open, payload(500));
    w.eof(b, open);
    w.run_for(Duration::from_secs(1));
    assert_eq!((w.sock(b, open).aborted, w.sock(b, open).received.len()), (None, 1500), "bound as before");
}

/// Whenever the registry forgets, an audit or a renewal may be next: an agent
/// that is claimed by a hub without a lease is found by nobody.
#[test]
fn a_registry_that_forgets_just_before_an_audit_costs_no_client() {
    let (mut audits, mut next) = (0, Duration::from_secs(3));
    while next < Duration::from_secs(8) {
        let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
        assert_eq!(echo(&mut w, b, 100), Ok(()));
        w.run_for(next);
        let before = tunnel(&w, a).0;
        w.registry = MemoryRegistry::default();
        for _ in 0..30 {
            assert_eq!(echo(&mut w, b, 100), Ok(()), "{next:?}");
            w.run_for(Duration::from_millis(50));
        }
        audits += u32::from(tunnel(&w, a).0 > before);
        next += Duration::from_millis(100);
    }
    assert!(audits >= 10, "{audits} of 50 came soon after");
}

#[test]
fn entries_lost_one_by_one_come_back_within_a_lease() {
    for key in [
        StoredKey::Attachments(plant_7()),
        StoredKey::Index(name("ldap")),
        StoredKey::Epoch(plant_7()),
        StoredKey::Lease(name("hub-a")),
    ] {
        let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
        assert!(w.registry.evict(&key), "{key:?}");
        w.run_for(LEASE + Duration::from_secs(1));
        assert_eq!(w.located("ldap"), 1, "{key:?}");
        assert_eq!(w.registry.attachment(&plant_7(), &name("hub-a")).map(|(_, f)| f), Some(tunnel(&w, a).0), "{key:?}");
        assert_eq!(echo(&mut w, b, 100), Ok(()), "{key:?}");
    }
}

/// R2: the claim is executed after it was given up. It is asked again under its
/// id, so that one epoch is granted, and what was open meanwhile stays.
#[test]
fn a_claim_of_unknown_outcome_keeps_its_id_until_it_is_known() {
    let (mut w, a) = lone_hub();
    w.target = Target::Accept;
    w.registry_held = true;
    let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(Duration::from_millis(600));
    let (provisional, firm) = tunnel(&w, a);
    assert!(!firm, "the agent is served meanwhile");
    let c = w.client(a).unwrap();
    w.run_for(Duration::from_millis(50));
    assert_eq!(w.targets(g).len(), 1);
    w.registry_held = false;
    w.run_for(Duration::from_secs(3));
    let (fence, firm) = tunnel(&w, a);
    assert!(firm && fence.epoch > provisional.epoch);
    let stored = w.registry.attachment(&plant_7(), &name("hub-a")).map(|(_, f)| f);
    assert_eq!((stored, w.registry.stored_epoch(&plant_7())), (Some(fence), fence.epoch), "one claim (O5)");
    assert_eq!(w.sock(a, c).aborted, None);
}

/// A second process of the agent is gone before its claim is answered. That
/// claim took the place of the first one's entry, and is taken back; the first
/// one is listed again at once, long before its audit (O6, L6).
#[test]
fn an_attachment_whose_entry_a_claim_for_nobody_took_is_listed_again_at_once() {
    let (mut w, a) = lone_hub();
    w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(Duration::from_secs(1));
    let before = tunnel(&w, a);
    assert!(before.1);
    w.registry_held = true;
    let second = w.agent(agent_config("plant-7", &["hub-a"], 1), 4);
    w.run_for(Duration::from_millis(10));
    w.crash(second);
    w.run_for(Duration::from_millis(10));
    w.registry_held = false;
    w.run_for(Duration::from_millis(10));
    let (fence, firm) = tunnel(&w, a);
    assert!(firm && fence > before.0, "the entry was taken and claimed again");
    assert_eq!(w.registry.attachment(&plant_7(), &name("hub-a")).map(|(_, f)| f), Some(fence));
    assert_eq!(w.located("ldap"), 1);
}

/// The claim of a process that is gone is executed after that of the one that
/// came next, at the same hub. The entry is the hub's own and nobody's: it takes
/// it back, and the tunnel that it serves stays (L1, O6).
#[test]
fn an_entry_of_this_hub_that_nobody_holds_ends_no_tunnel_of_it() {
    let (mut w, a) = lone_hub();
    w.target = Target::Accept;
    w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(Duration::from_secs(1));
    let c = w.client(a).unwrap();
    w.run_for(Duration::from_millis(50));
    let (before, _) = tunnel(&w, a);
    let late = Claim {
        agent_id: plant_7(),
        instance: Instance(99),
        hub: w.as_hub(a).run().clone(),
        claim_id: ClaimId(99),
        nonce: Nonce(99),
        seen: before.epoch,
        granted: before.epoch,
        connectors: Vec::new(),
    };
    let Ok(RegistryReply::Claimed { epoch, .. }) = w.registry.execute(1_001_000, &RegistryOp::Claim(Box::new(late)))
    else {
        panic!("a claim is granted");
    };
    w.run_for(LEASE + Duration::from_secs(1));
    assert_eq!(w.sock(a, c).aborted, None);
    let (fence, firm) = tunnel(&w, a);
    assert!(firm && fence.epoch > epoch, "claimed again");
    assert_eq!(w.registry.attachment(&plant_7(), &name("hub-a")).map(|(_, f)| f), Some(fence));
    assert_eq!(w.located("ldap"), 1);
}

#[test]
fn an_agent_that_came_during_an_outage_is_claimed_within_a_lease_after_it() {
    let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
    w.registry_down = true;
    w.run_for(Duration::from_secs(15));
    w.agent(agent_config("plant-8", &["hub-a"], 1), 8);
    w.crash(2);
    w.run_for(Duration::from_secs(45));
    assert!(!tunnel(&w, a).1);
    let open = w.client(a).unwrap();
    w.write(a, open, payload(10));
    w.run_for(Duration::from_millis(20));
    assert_eq!(w.sock(a, open).received.len(), 10, "local clients are served (M4)");
    w.registry_down = false;
    w.run_for(LEASE);
    assert!(tunnel(&w, a).1);
    assert_eq!(w.located("ldap"), 1);
    assert_eq!(echo(&mut w, b, 100), Ok(()));
    assert_eq!(w.sock(a, open).aborted, None);
}

/// An OPEN that waits for an interrupted tunnel was never sent. When its fence
/// is replaced meanwhile it goes out under the new one, also for a client of
/// another hub, and the agent has nothing to refuse (O4).
#[test]
fn an_open_that_waits_goes_out_under_the_fence_that_came_meanwhile() {
    for codec in [Codec::BinaryV2, Codec::JsonV1] {
        let (mut w, a, b, g) = two_hubs(codec);
        w.registry = MemoryRegistry::default();
        w.claims_held = true;
        assert!(w.run_until(LEASE * 2, |w| w.claim_waits()), "it is missed");
        let before = tunnel(&w, a).0;
        w.unreachable.push(("plant-7".to_owned(), "hub-a".to_owned()));
        w.cut(g, a);
        let data = payload(5000);
        let clients = [a, b].map(|hub| (hub, w.client(hub).unwrap()));
        for (hub, c) in clients {
            w.write(hub, c, data.clone());
            w.eof(hub, c);
        }
        w.run_for(Duration::from_millis(100));
        w.claims_held = false;
        w.settle();
        assert!(tunnel(&w, a).0 > before, "the claim is granted while the agent is away");
        w.unreachable.clear();
        w.run_for(Duration::from_secs(5));
        assert_eq!(w.as_agent(g).mux().totals[0].resumed, 1);
        for (hub, c) in clients {
            assert_eq!((w.sock(hub, c).aborted, w.sock(hub, c).received == data), (None, true), "a client of {hub}");
        }
        assert_eq!(w.as_agent(g).shard().counters().epoch_mismatch, 0, "nothing came under {before:?}");
    }
}

/// Two hubs that do not hear of each other claim again after a loss, with the
/// registry's clock stepped back: the agent takes no lower epoch, says which it
/// has, and the hub claims above it (O2).
#[test]
fn an_epoch_below_the_agents_highest_is_claimed_anew() {
    let mut w = World::new();
    let hubs = [w.hub(hub_config("hub-a", Mode::Active, &[]), 1), w.hub(hub_config("hub-b", Mode::Active, &[]), 2)];
    w.run_for(Duration::from_secs(20));
    let g = w.agent(agent_config("plant-7", &["hub-a", "hub-b"], 2), 3);
    w.run_for(Duration::from_secs(3));
    w.registry_behind = 15_000;
    w.registry = MemoryRegistry::default();
    w.run_for(LEASE * 2);
    let fences = hubs.map(|h| tunnel(&w, h));
    assert!(fences.iter().all(|(_, firm)| *firm), "{fences:?}");
    assert_eq!(w.as_agent(g).tunnels().highest_epoch(), fences.iter().map(|(f, _)| f.epoch).max().unwrap());
    for h in hubs {
        assert_eq!(echo(&mut w, h, 100), Ok(()), "the agent fences with what hub {h} opens under");
    }
}

/// Neither the registry nor the next hub has heard of the epochs before: what
/// the agent says it has seen is enough to be above it at once (O2).
#[test]
fn a_hub_that_never_saw_the_agent_claims_above_what_the_agent_has_seen() {
    let mut w = World::new();
    let [a, b] = [("hub-a", 1), ("hub-b", 2)].map(|(h, seed)| w.hub(hub_config(h, Mode::Active, &[]), seed));
    w.run_for(Duration::from_secs(20));
    let g = w.agent(agent_config("plant-7", &["hub-a", "hub-b"], 1), 3);
    w.run_for(Duration::from_secs(3));
    let (from, to) = if w.as_hub(a).control().tunnels().count() == 1 { (a, b) } else { (b, a) };
    let before = tunnel(&w, from).0;
    w.registry_behind = 15_000;
    w.registry = MemoryRegistry::default();
    w.crash(from);
    assert!(w.run_until(Duration::from_secs(60), |w| w.as_hub(to).control().tunnels().count() == 1));
    assert!(tunnel(&w, to).0.epoch > before.epoch);
    w.run_for(Duration::from_secs(1));
    assert_eq!(count(&w, to, |r| matches!(r, Observed::Attached { .. })), 1, "no epoch was offered in vain");
    assert_eq!(w.as_agent(g).tunnels().highest_epoch(), tunnel(&w, to).0.epoch);
}

/// The notice of a take-over is lost when there is no link: the audit ends the
/// older attachment within a lease (O1).
#[test]
fn a_hub_that_heard_no_notice_finds_itself_superseded() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
    w.hub(hub_config("hub-b", Mode::Active, &[]), 2);
    w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(Duration::from_secs(2));
    w.agent(agent_config("plant-7", &["hub-b"], 1), 4);
    w.run_for(LEASE + Duration::from_secs(1));
    let ended = |r: &Observed| matches!(r, Observed::SessionLost { cause: CloseCode::Superseded, peer, .. } if peer == "plant-7");
    assert!(count(&w, a, ended) > 0);
}

#[test]
fn a_release_that_got_lost_is_made_up_for() {
    let (mut w, a) = lone_hub();
    let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(Duration::from_secs(1));
    w.crash(g);
    // Its session is given up 40 s later, and the release never arrives.
    w.run_for(Duration::from_secs(38));
    w.registry_deaf.push(a);
    w.run_for(Duration::from_secs(3));
    assert_eq!(w.as_hub(a).control().tunnels().count(), 0);
    w.registry_deaf.clear();
    assert_eq!(w.located("ldap"), 1);
    w.run_for(Duration::from_secs(4));
    assert_eq!(w.located("ldap"), 0);
}

/// A failover brings an entry of this hub back that it does not hold (R3): the
/// hub that follows it is told NOT_OWNER, and the entry goes.
/// The release of an attachment fails, and the agent is attached anew without
/// the registry: when that attachment ends nothing of either is listed (L5).
/// Nobody asks for its connector here, so nobody else would find it.
#[test]
fn what_could_not_be_released_before_a_provisional_attachment_goes_with_it() {
    let (mut w, a) = lone_hub();
    let elsewhere = || {
        let mut config = agent_config("plant-7", &["hub-a"], 1);
        config.connectors[0].name = name("other");
        config
    };
    let first = w.agent(elsewhere(), 3);
    w.run_for(Duration::from_secs(1));
    let listed = |w: &World| w.registry.attachment(&plant_7(), &name("hub-a")).map(|(_, f)| f);
    assert_eq!(listed(&w), Some(tunnel(&w, a).0));
    // It answers, and refuses: what was asked has surely not happened.
    w.registry_fails_at_once = true;
    w.run_for(Duration::from_secs(3));
    w.crash(first);
    let second = w.agent(elsewhere(), 4);
    w.run_for(Duration::from_secs(3));
    assert!(!tunnel(&w, a).1, "attached without the registry");
    w.crash(second);
    w.run_for(Duration::from_secs(3));
    w.registry_fails_at_once = false;
    assert!(w.run_until(Duration::from_secs(120), |w| w.as_hub(a).control().tunnels().next().is_none()));
    w.run_for(LEASE);
    assert_eq!(listed(&w), None);
}

#[test]
fn a_stale_entry_goes_when_somebody_follows_it() {
    let (mut w, a, b, g) = two_hubs(Codec::BinaryV2);
    let old = w.registry.clone();
    w.crash(g);
    w.run_for(Duration::from_secs(50));
    assert_eq!((w.as_hub(a).control().tunnels().count(), w.located("ldap")), (0, 0));
    w.registry = old;
    // Before it finds the entry itself.
    assert!(w.run_until(Duration::from_secs(2), |w| w.located("ldap") == 1));
    let c = w.client(b).unwrap();
    w.run_for(Duration::from_secs(4));
    assert_eq!((w.sock(b, c).aborted, w.located("ldap")), (Some(RstCode::NotOwner), 0));
}

/// M4 at the very start of an outage: nothing timed out yet.
#[test]
fn a_client_is_refused_within_100_ms_by_a_registry_that_just_fell_silent() {
    let mut w = World::new();
    w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
    let b = w.hub(hub_config("hub-b", Mode::Active, &[]), 2);
    w.run_for(Duration::from_secs(3));
    w.registry_held = true;
    let c = w.client(b).unwrap();
    w.run_for(Duration::from_millis(100));
    assert_eq!(w.sock(b, c).aborted, Some(RstCode::RegistryDown));
}

#[test]
fn a_lease_that_returns_from_the_dead_is_taken_over_again() {
    let (mut w, a) = lone_hub();
    w.crash(a);
    let old = w.registry.clone();
    let next = w.hub(hub_config("hub-a", Mode::Active, &[]), 9);
    w.run_for(Duration::from_secs(2));
    let run = w.as_hub(next).run().incarnation;
    assert_eq!(w.registry.lease(&name("hub-a")).map(|(by, _)| by), Some(run));
    w.registry = old;
    w.run_for(Duration::from_millis(1100));
    assert_eq!(w.registry.lease(&name("hub-a")).map(|(by, _)| by), Some(run), "not a lease later");
}

#[test]
fn a_hub_whose_lease_another_run_holds_says_so() {
    let (mut w, a) = lone_hub();
    assert!(w.as_hub(a).control().registry_healthy());
    let run = w.as_hub(a).run().clone();
    let op = RegistryOp::Renew {
        hub: HubRun { incarnation: Incarnation(7), ..run.clone() },
        lease: LEASE,
        takes_over: Some(run.incarnation),
        region: None,
    };
    assert_eq!(w.registry.execute(1_001_000, &op), Ok(RegistryReply::Renewed));
    w.run_for(Duration::from_millis(1100));
    assert!(!w.as_hub(a).control().registry_healthy(), "nothing of it is listed");
    w.run_for(LEASE + Duration::from_secs(2));
    assert!(w.as_hub(a).control().registry_healthy(), "that lease ended");
}

#[test]
fn a_hub_that_stops_gives_its_lease_back_first() {
    let (mut w, a) = lone_hub();
    w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(Duration::from_secs(1));
    w.nodes[a].out.registry.clear();
    w.input(a, Input::Shutdown);
    let ops: Vec<&RegistryOp> = w.nodes[a].out.registry.iter().map(|(_, op)| op).collect();
    assert!(matches!(ops.as_slice(), [RegistryOp::Resign { .. }, RegistryOp::Release { .. }]), "{ops:?}");
}

/// What other hubs know of a connector follows the agent within a lease, without
/// a client that asks.
#[test]
fn another_hub_learns_by_itself_which_connectors_there_are() {
    let (mut w, a, b, g) = two_hubs(Codec::BinaryV2);
    let served = |w: &World, hub| w.as_hub(hub).unready(ListenerIx(0)).is_none();
    assert!(w.run_until(LEASE, |w| served(w, a) && served(w, b)));
    let mut config = agent_config("plant-7", &["hub-a"], 1);
    let all = std::mem::take(&mut config.connectors);
    for exposed in [false, true, false] {
        config.connectors = if exposed { all.clone() } else { Vec::new() };
        w.reload_agent(g, &config).unwrap();
        assert!(w.run_until(LEASE, |w| served(w, a) == exposed && served(w, b) == exposed), "{exposed}");
    }
}

/// An audit that finds all in order changes nothing, however often.
#[test]
fn an_attachment_that_nothing_happens_to_keeps_its_fence() {
    let (mut w, a, _, g) = two_hubs(Codec::BinaryV2);
    w.run_for(LEASE);
    let before = tunnel(&w, a);
    let claims = |w: &World| count(w, a, |r| matches!(r, Observed::Attached { .. }));
    let claimed = claims(&w);
    w.run_for(LEASE * 20);
    assert_eq!((tunnel(&w, a), claims(&w)), (before, claimed));
    assert_eq!(w.as_agent(g).tunnels().highest_epoch(), before.0.epoch);
}

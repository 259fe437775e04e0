//! After an outage: what hubs hold is listed again at once, a bounded number at
//! a time, and until then no hub says that the registry can be relied on (L5,
//! L6, L11; semantics 5 and 10).

use std::time::Duration;

use nowconnect_core::config::Mode;
use nowconnect_core::error::RstCode;
use nowconnect_core::observed::Observed;
use nowconnect_core::registry::MemoryRegistry;
use nowconnect_core::wire::Codec;

use crate::world::{World, agent_config, hub_config, two_hubs};
use crate::{count, echo};

const LEASE: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);
/// Attachments that are looked after at once.
const AT_ONCE: usize = 64;
/// More than fit.
const MANY: usize = 150;

fn healthy(w: &World, hub: usize) -> bool {
    w.as_hub(hub).control().registry_healthy()
}

fn ready(w: &World, hub: usize) -> bool {
    w.as_hub(hub).control().registry_ready(w.now)
}

fn firm(w: &World, hub: usize) -> usize {
    w.as_hub(hub).control().tunnels().filter(|t| t.firm).count()
}

fn claimed_again(w: &World, hub: usize) -> usize {
    count(w, hub, |r| matches!(r, Observed::Attached { again: true, .. }))
}

/// Two hubs whose agent attached a second time; and the registry from before
/// that claim, which lists the first attachment.
fn claimed_twice() -> (World, usize, usize, MemoryRegistry) {
    let (mut w, a, b, g) = two_hubs(Codec::BinaryV2);
    let old = w.registry.clone();
    w.crash(g);
    w.agent(agent_config("plant-7", &["hub-a"], 1), 4);
    w.run_for(SECOND);
    assert_eq!((echo(&mut w, b, 100), old != w.registry), (Ok(()), true));
    (w, a, b, old)
}

/// A hub with many agents.
fn crowd() -> (World, usize) {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
    for n in 0..MANY {
        w.agent(agent_config(&format!("plant-{n}"), &["hub-a"], 1), 10 + n as u64);
    }
    w.run_for(2 * SECOND);
    assert_eq!(firm(&w, a), MANY);
    (w, a)
}

/// A failover that lost the last claim leaves an entry under a fence that
/// nobody holds: who follows it is refused.
#[test]
fn who_calls_itself_ready_after_a_failover_is_found_by_the_other_hub() {
    let (mut w, a, b, old) = claimed_twice();
    w.registry_down = true;
    w.run_for(5 * SECOND);
    assert!(!ready(&w, a) && !ready(&w, b));
    w.registry = old;
    w.registry_down = false;
    let back = w.now;
    assert!(w.run_until(LEASE, |w| ready(w, a) && ready(w, b)));
    // Two renewals are a second apart.
    assert!(w.now.since(back) < 2 * SECOND, "{:?}", w.now.since(back));
    assert_eq!(echo(&mut w, b, 1000), Ok(()), "the other hub finds it");
    assert_eq!(claimed_again(&w, a), 1);
}

/// Renewals are answered and nothing else is: the hub does not call itself
/// ready, but for a lease only.
#[test]
fn readiness_waits_for_what_is_not_claimed_yet_and_not_for_ever() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
    w.run_for(SECOND);
    assert!(ready(&w, a), "nothing is held, and nothing waited for");
    w.registry_down = true;
    w.run_for(3 * SECOND);
    w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(3 * SECOND);
    w.registry_down = false;
    w.only_renewals = true;
    assert!(w.run_until(3 * SECOND, |w| healthy(w, a)));
    let back = w.now;
    let early = w.run_until(2 * LEASE, |w| ready(w, a)) && w.now.since(back) < LEASE;
    assert!(!early, "ready after {:?} with nothing claimed", w.now.since(back));
    assert_eq!((w.now.since(back) <= LEASE + SECOND, firm(&w, a)), (true, 0), "a lease at most");
    w.only_renewals = false;
    w.run_for(3 * SECOND);
    assert_eq!((firm(&w, a), w.located("ldap")), (1, 1));

    // The same outage again, and what waits is answered: ready with the answer.
    w.registry_down = true;
    w.run_for(3 * SECOND);
    w.registry_down = false;
    w.only_renewals = true;
    assert!(w.run_until(3 * SECOND, |w| healthy(w, a)));
    assert!(!ready(&w, a));
    w.only_renewals = false;
    assert!(w.run_until(SECOND / 100, |w| ready(w, a)));
}

/// Nobody waits for an agent that does not answer: nothing could be opened there.
#[test]
fn readiness_waits_for_no_agent_that_is_away() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
    let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(2 * SECOND);
    w.registry_down = true;
    w.run_for(3 * SECOND);
    w.unreachable.push(("plant-7".to_owned(), "hub-a".to_owned()));
    w.cut(a, g);
    w.registry = MemoryRegistry::default();
    w.registry_down = false;
    assert!(w.run_until(3 * SECOND, |w| healthy(w, a)));
    w.run_for(SECOND / 100);
    assert_eq!((ready(&w, a), w.located("ldap")), (true, 0), "held, and not claimed");
}

#[test]
fn a_registry_that_is_back_is_asked_about_a_bounded_number_at_once() {
    let (mut w, a) = crowd();
    w.registry_down = true;
    w.run_for(4 * SECOND);
    w.registry = MemoryRegistry::default();
    w.registry_down = false;
    w.only_renewals = true;
    assert!(w.run_until(3 * SECOND, |w| healthy(w, a)));
    w.run_for(SECOND / 100);
    assert_eq!(w.upkeep_waiting().len(), AT_ONCE);
    w.only_renewals = false;
    assert!(w.run_until(SECOND / 100, |w| ready(w, a)), "no time passes between one and the next");
    assert_eq!((firm(&w, a), w.located("ldap")), (MANY, MANY));
}

/// Nobody noticed an outage. The first attachment that is found missing, at its
/// turn, has the others looked at.
#[test]
fn one_attachment_that_is_missing_is_seldom_alone() {
    let (mut w, a) = crowd();
    w.registry = MemoryRegistry::default();
    assert!(w.run_until(LEASE, |w| claimed_again(w, a) > 0));
    w.run_for(SECOND / 100);
    assert_eq!((claimed_again(&w, a), w.located("ldap")), (MANY, MANY));
    assert!(healthy(&w, a) && ready(&w, a), "the registry was never out");
    w.run_for(2 * LEASE);
    assert_eq!(claimed_again(&w, a), MANY, "nothing is claimed twice");
}

/// The same with one attachment: the hub that is asked for it under another
/// fence looks, long before its turn.
#[test]
fn who_is_asked_under_a_fence_that_it_does_not_hold_looks_what_is_listed() {
    let (mut w, _, b, old) = claimed_twice();
    let claimed = w.now;
    w.registry = old;
    w.run_for(SECOND * 3);
    assert_eq!(echo(&mut w, b, 100), Err(Some(RstCode::NotOwner)));
    w.run_for(SECOND * 2);
    assert_eq!(echo(&mut w, b, 100), Ok(()));
    assert!(w.now.since(claimed) < LEASE * 3 / 5, "the next audit would be later");
}

/// A registry that came back from a backup, or that the hub was led away from
/// and back to, lists what the hub has let go since.
#[test]
fn what_the_registry_lists_in_vain_is_released_by_the_hub_that_finds_it() {
    let (mut w, a, _, g) = two_hubs(Codec::BinaryV2);
    let old = w.registry.clone();
    w.crash(g);
    w.run_for(60 * SECOND);
    assert_eq!(w.located("ldap"), 0, "its session is over");
    w.registry = old;
    assert!(w.run_until(2 * SECOND, |w| w.located("ldap") == 1));
    assert!(echo(&mut w, a, 100).is_err());
    w.run_for(3 * SECOND);
    assert_eq!(w.located("ldap"), 0);
}

/// Attachments of `off` have no turn of their own: part of a registry that does
/// not answer must not keep the others from being claimed.
#[test]
fn after_off_those_that_wait_are_claimed_although_those_before_them_get_no_answer() {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", Mode::Off, &[]), 1);
    for n in 0..MANY {
        w.agent(agent_config(&format!("plant-{n}"), &["hub-a"], 1), 10 + n as u64);
    }
    w.run_for(2 * SECOND);
    w.only_renewals = true;
    w.reload_hub(a, &hub_config("hub-a", Mode::Active, &[])).unwrap();
    w.run_for(2 * SECOND);
    assert_eq!(w.upkeep_waiting().len(), AT_ONCE);
    w.run_for(LEASE);
    assert_eq!(w.upkeep_waiting().len(), MANY, "each has been asked for");
    w.only_renewals = false;
    w.run_for(2 * SECOND);
    assert_eq!((firm(&w, a), w.located("ldap")), (MANY, MANY));
}

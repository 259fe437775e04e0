//! What hubs and agents tell of a stream at its end, and what a hub says of
//! itself meanwhile (semantics 10): told once, with the interruptions it lived
//! through; readiness follows its causes in both directions (L6).

mod world;

use std::time::Duration;

use nowconnect_core::config::{DrainTimes, HubConfig, Mode, OnExpiry};
use nowconnect_core::error::RstCode;
use nowconnect_core::hub::Unready;
use nowconnect_core::id::ListenerIx;
use nowconnect_core::mux::Input;
use nowconnect_core::observed::{CarriedRecord, Cause, Observed, Side, StreamRecord};
use nowconnect_core::wire::Codec;
use world::{Target, World, agent_config, hub_config, two_hubs};

const S: fn(u64) -> Duration = Duration::from_secs;

fn origins(w: &World, n: usize) -> Vec<StreamRecord> {
    let of = |r: &Observed| if let Observed::Stream(r) = r { Some((**r).clone()) } else { None };
    w.nodes[n].records.iter().filter_map(of).collect()
}

fn carried(w: &World, n: usize) -> Vec<CarriedRecord> {
    let of = |r: &Observed| if let Observed::Carried(r) = r { Some((**r).clone()) } else { None };
    w.nodes[n].records.iter().filter_map(of).collect()
}

#[test]
fn origin_and_agent_tell_a_stream_once_with_its_interruptions() {
    let (mut w, a, b, g) = two_hubs(Codec::BinaryV2);
    let c = w.client(b).unwrap();
    w.write(b, c, vec![1; 100]);
    w.run_for(S(1));
    for _ in 0..2 {
        w.cut(a, b);
        w.run_for(S(3));
    }
    let t = w.targets(g)[0];
    w.write(g, t, vec![2; 30]);
    w.run_for(S(1));
    w.eof(b, c);
    w.eof(g, t);
    w.run_for(S(1));
    let [origin] = origins(&w, b).try_into().unwrap();
    assert_eq!((origin.cause, origin.bytes_up, origin.bytes_down), (Cause::Finished, 100, 130), "echoed, and 30 more");
    assert_eq!((origin.suspensions, origin.local), (2, false));
    assert_eq!(*origin.epochs, [origin.epoch]);
    let [agent] = carried(&w, g).try_into().unwrap();
    assert_eq!((agent.cid, agent.epoch, agent.connected), (origin.cid, origin.epoch, true));
    assert_eq!((agent.bytes_up, agent.bytes_down, agent.cause), (100, 130, Cause::Finished));
    assert!(agent.session.is_some());
    assert!(origins(&w, a).is_empty() && carried(&w, a).is_empty(), "the owner between them tells nothing");

    // A later stream of the same session starts at none.
    let c = w.client(b).unwrap();
    w.run_for(S(1));
    w.abort(b, c);
    w.run_for(S(1));
    assert_eq!(origins(&w, b)[1].suspensions, 0);
}

/// A1: one late timer notices that the agent is silent and that its token ran out.
#[test]
fn a_session_that_is_over_in_the_call_that_suspends_it_is_told_as_suspended_too() {
    let mut w = World::new();
    w.token_expires = Some(w.now.after(S(20)));
    let a = w.hub(HubConfig { on_expiry: OnExpiry::Cut, ..hub_config("hub-a", Mode::Active, &[]) }, 1);
    w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(S(2));
    w.deliver = false;
    w.now = w.now.after(S(60));
    w.run_for(Duration::ZERO);
    let totals = w.as_hub(a).mux().totals[0];
    assert_eq!((totals.suspended, totals.lost), (1, 1));
    let said = |r: &&Observed| matches!(r, Observed::SessionSuspended { .. } | Observed::SessionLost { .. });
    let said: Vec<&Observed> = w.nodes[a].records.iter().filter(said).collect();
    assert!(matches!(said[..], [Observed::SessionSuspended { .. }, Observed::SessionLost { .. }]), "{said:?}");
}

#[test]
fn a_refusal_is_told_as_the_agents() {
    let (mut w, _, b, g) = two_hubs(Codec::BinaryV2);
    w.target = Target::Refuse;
    w.client(b).unwrap();
    w.run_for(S(1));
    let [origin] = origins(&w, b).try_into().unwrap();
    assert_eq!((origin.cause, origin.by), (Cause::Reset(RstCode::Refused), Side::Agent));
    assert_eq!((origin.epochs.len(), origin.open), (1, None));
    let [agent] = carried(&w, g).try_into().unwrap();
    assert_eq!((agent.cause, agent.connected), (Cause::Reset(RstCode::Refused), false));
}

#[test]
fn a_session_that_never_came_back_counts_too() {
    let (mut w, a, b, g) = two_hubs(Codec::BinaryV2);
    w.client(b).unwrap();
    w.run_for(S(1));
    w.unreachable.extend([("hub-a".to_owned(), "hub-b".to_owned()), ("hub-b".to_owned(), "hub-a".to_owned())]);
    w.cut(a, b);
    w.run_for(S(1));
    assert_eq!((w.as_hub(b).suspended(), w.as_hub(a).suspended(), w.as_agent(g).shard().suspended()), (1, 1, 0));
    w.run_for(S(60));
    let [origin] = origins(&w, b).try_into().unwrap();
    assert_eq!((origin.cause, origin.suspensions), (Cause::Reset(RstCode::Lost), 1));
    assert_eq!(carried(&w, g).len(), 1);
    assert_eq!((w.as_hub(b).suspended(), w.as_hub(a).suspended()), (0, 0));
}

/// L6: a link that was there is missed after three seconds, one that never was
/// at once; and not any more when it is back.
#[test]
fn the_mesh_is_unhealthy_without_a_link_for_three_seconds() {
    let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
    assert!(w.as_hub(a).mesh_healthy(w.now) && w.as_hub(b).mesh_healthy(w.now));
    w.unreachable.extend([("hub-a".to_owned(), "hub-b".to_owned()), ("hub-b".to_owned(), "hub-a".to_owned())]);
    w.cut(a, b);
    w.run_for(Duration::from_millis(2900));
    assert!(w.as_hub(a).mesh_healthy(w.now) && w.as_hub(b).mesh_healthy(w.now), "within the grace");
    w.run_for(Duration::from_millis(200));
    assert!(!w.as_hub(a).mesh_healthy(w.now) && !w.as_hub(b).mesh_healthy(w.now));
    // Also when the session is lost for good, and counted from the cut.
    w.run_for(S(60));
    assert!(!w.as_hub(a).mesh_healthy(w.now) && !w.as_hub(b).mesh_healthy(w.now));
    w.unreachable.clear();
    w.run_for(S(40));
    assert!(w.as_hub(a).mesh_healthy(w.now) && w.as_hub(b).mesh_healthy(w.now));

    let mut w = World::new();
    w.unreachable.push(("hub-a".to_owned(), "hub-b".to_owned()));
    let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
    w.run_for(Duration::from_millis(100));
    assert!(!w.as_hub(a).mesh_healthy(w.now), "there was none yet");
}

/// Lets time pass and says when hub `n` was healthy: from and until, as long as
/// it is one stretch each.
fn watch(w: &mut World, n: usize, millis: u64) -> Vec<(u64, bool)> {
    let mut seen: Vec<(u64, bool)> = Vec::new();
    for at in (0..=millis).step_by(100) {
        let healthy = w.as_hub(n).mesh_healthy(w.now);
        if seen.last().is_none_or(|(_, before)| *before != healthy) {
            seen.push((at, healthy));
        }
        w.run_for(Duration::from_millis(100));
    }
    seen
}

/// Semantics 10: who gave its lease back, or is dead for longer than it lasts,
/// is missed by nobody; who may live is.
#[test]
fn a_peer_without_a_lease_is_not_missed() {
    let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
    w.input(b, Input::Shutdown);
    w.settle();
    w.crash(b);
    assert_eq!(watch(&mut w, a, 30_000), [(0, true)], "it stopped in an orderly way");

    let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
    w.crash(b);
    let seen = watch(&mut w, a, 30_000);
    let [(0, true), (missed, false), (over, true)] = seen[..] else { panic!("{seen:?}") };
    assert!((3000..=3200).contains(&missed), "{seen:?}");
    // A lease lasts 10 s, and the question comes with a renewal.
    assert!((9000..=11_500).contains(&over), "{seen:?}");
}

/// L6: what the registry said counts while it can be asked; then a link that is
/// down is missed again, whatever it said last.
#[test]
fn an_old_answer_hides_no_link_that_is_down() {
    let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
    w.input(b, Input::Shutdown);
    w.settle();
    w.crash(b);
    w.run_for(S(10));
    assert!(w.as_hub(a).mesh_healthy(w.now));
    w.registry_down = true;
    let seen = watch(&mut w, a, 10_000);
    let [(0, true), (missed, false)] = seen[..] else { panic!("{seen:?}") };
    assert!((1500..=2700).contains(&missed), "not for one renewal that fails: {seen:?}");
    assert!(!w.as_hub(a).control().registry_healthy());
    w.registry_down = false;
    let seen = watch(&mut w, a, 10_000);
    assert!(matches!(seen[..], [(0, false), (1..=2000, true)]), "{seen:?}");
}

/// A peer that took its lease (again) has the grace to be linked; who a URL
/// leads to is not known before the first link, unless it is configured.
#[test]
fn a_peer_that_takes_its_lease_is_missed_after_the_grace() {
    let mut w = World::new();
    w.unreachable.extend([("hub-a".to_owned(), "hub-b".to_owned()), ("hub-b".to_owned(), "hub-a".to_owned())]);
    let mut config = hub_config("hub-a", Mode::Active, &["hub-b"]);
    config.peers[0].replica_id = Some(world::name("hub-b"));
    let a = w.hub(config, 1);
    let nameless = w.hub(hub_config("hub-c", Mode::Active, &["hub-b"]), 2);
    assert_eq!(watch(&mut w, nameless, 20_000), [(0, false)], "nobody knows whose lease to ask for");
    assert!(w.as_hub(a).mesh_healthy(w.now), "not started yet");
    w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 3);
    let seen = watch(&mut w, a, 20_000);
    let [(0, true), (missed, false)] = seen[..] else { panic!("{seen:?}") };
    assert!((3000..=4500).contains(&missed), "{seen:?}");
    w.unreachable.clear();
    w.run_for(S(40));
    assert!(w.as_hub(a).mesh_healthy(w.now));
}

#[test]
fn a_listener_says_why_it_is_not_ready() {
    let mut w = World::new();
    let mut config = hub_config("hub-a", Mode::Active, &[]);
    config.listeners[0].max_connections = 2;
    let a = w.hub(config, 1);
    w.run_for(S(1));
    let l = ListenerIx(0);
    assert_eq!(w.as_hub(a).unready(l), Some(Unready::NoCandidate));
    assert_eq!(w.as_hub(a).unready(ListenerIx(9)), Some(Unready::NoCandidate));
    let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(S(2));
    assert_eq!(w.as_hub(a).unready(l), None);
    let first = w.client(a).unwrap();
    assert_eq!(w.as_hub(a).unready(l), None);
    w.client(a).unwrap();
    assert_eq!(w.as_hub(a).unready(l), Some(Unready::Full));
    w.abort(a, first);
    w.run_for(S(1));
    assert_eq!(w.as_hub(a).unready(l), None);
    w.unreachable.push(("plant-7".to_owned(), "hub-a".to_owned()));
    w.cut(g, a);
    w.run_for(S(1));
    assert_eq!(w.as_hub(a).unready(l), Some(Unready::NoCandidate), "its tunnel has no connection");
    w.unreachable.clear();
    w.run_for(S(10));
    assert_eq!(w.as_hub(a).unready(l), None);
    w.input(a, Input::Drain(DrainTimes::at_once(Duration::from_secs(60))));
    assert_eq!(w.as_hub(a).unready(l), Some(Unready::Draining));
}

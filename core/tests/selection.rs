//! Which candidate a client gets (semantics 7): priority and what an agent may
//! say of it, candidates that fail, agents that were away, targets that fail
//! their checks.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests; everything unexpected is one case")]

mod world;

use std::time::Duration;

use nowconnect_core::config::{
    AgentConfig, AgentPriority, ConnectorConfig, HealthConfig, HubConfig, Limits, Mode, Selection,
};
use nowconnect_core::error::RstCode;
use nowconnect_core::id::{AgentId, SockKey};
use nowconnect_core::observed::Observed;
use nowconnect_core::route::WEIGHT_MAX;
use nowconnect_core::wire::Codec;
use world::notes::{Form, Pace, in_form};
use world::{Target, World, agent_config, hub_config, name};

const S: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;

fn in_forms(scenario: fn()) {
    for form in [Form::Whole, Form::Split(1, Pace::AtOnce), Form::Split(1, Pace::Drawn(7)), Form::Split(1, Pace::Late)]
    {
        let run = std::panic::catch_unwind(|| in_form(form, scenario));
        run.unwrap_or_else(|_| panic!("{form:?}: the scenario fails as said above"));
    }
}

fn with_priority(id: &str, hubs: &[&str], priority: u16) -> AgentConfig {
    let mut config = agent_config(id, hubs, u16::try_from(hubs.len()).unwrap());
    config.connectors[0].priority = priority;
    config
}

fn selection() -> Selection {
    Selection { fall: 3, rise: 2, eject: S(10), eject_max: S(25), ..Selection::default() }
}

/// One hub and two agents: `first` of priority 0 and `second` of 1.
fn two_agents(selection: Selection) -> (World, usize, usize, usize) {
    let mut w = World::new();
    w.target = Target::Accept;
    let hub = w.hub(HubConfig { selection, ..hub_config("hub-a", Mode::Off, &[]) }, 1);
    let first = w.agent(with_priority("first", &["hub-a"], 0), 2);
    let second = w.agent(with_priority("second", &["hub-a"], 1), 3);
    w.run_for(S(1));
    (w, hub, first, second)
}

fn reload(w: &mut World, hub: usize, selection: Selection) {
    let config = HubConfig { selection, ..w.as_hub(hub).control().config().clone() };
    w.reload_hub(hub, &config).unwrap();
    w.run_for(MS(1));
}

/// What becomes of a client: the agent whose target it gets, or the refusal.
fn lands(w: &mut World, hub: usize) -> Result<usize, RstCode> {
    let (c, at) = open(w, hub)?;
    w.abort(hub, c);
    w.run_for(MS(1));
    Ok(at)
}

fn open(w: &mut World, hub: usize) -> Result<(SockKey, usize), RstCode> {
    let count = |w: &World| {
        let agents = (0..w.nodes.len()).filter(|n| *n != hub && !w.nodes[*n].name.starts_with("hub"));
        agents.map(|n| (n, w.targets(n).len())).collect::<Vec<_>>()
    };
    let before = count(w);
    let c = w.client(hub)?;
    let done = w.run_until(S(15), |w| w.sock(hub, c).aborted.is_some() || count(w) != before);
    assert!(done, "it is connected or refused");
    match w.sock(hub, c).aborted {
        Some(code) => Err(code),
        None => {
            let now = count(w);
            let at = before.iter().zip(&now).find(|(b, n)| b.1 < n.1).expect("one target more").0.0;
            w.run_for(MS(1));
            Ok((c, at))
        }
    }
}

fn events(w: &World, n: usize) -> Vec<String> {
    let word = |r: &Observed| match r {
        Observed::Ejected { agent_id, code, time, .. } => Some(format!("{agent_id} out {code} {}", time.as_secs())),
        Observed::Reinstated { agent_id, .. } => Some(format!("{agent_id} in")),
        Observed::TargetDown { connector, code } => Some(format!("{connector} down {code}")),
        Observed::TargetUp { connector } => Some(format!("{connector} up")),
        _ => None,
    };
    w.nodes[n].records.iter().filter_map(word).collect()
}

fn ejected(w: &World, hub: usize) -> usize {
    w.as_hub(hub).shards().iter().map(|s| s.ejected_now().count()).sum()
}

/// OPENs that an agent got.
fn asked(w: &World, agent: usize) -> u64 {
    let counters = w.as_agent(agent).shard().counters();
    counters.carried
}

#[test]
fn a_candidate_that_fails_is_ejected_and_comes_back_on_trial() {
    in_forms(|| {
        let (mut w, hub, first, second) = two_agents(selection());
        assert_eq!(lands(&mut w, hub), Ok(first));
        w.targets_of.insert(first, Target::Refuse);
        for n in 1..=3 {
            assert_eq!(lands(&mut w, hub), Ok(second), "a refusal is a definite no");
            assert_eq!(asked(&w, first), 1 + n);
        }
        assert_eq!((events(&w, hub), ejected(&w, hub)), (vec!["first out REFUSED 10".to_owned()], 1));
        for _ in 0..5 {
            assert_eq!(lands(&mut w, hub), Ok(second));
        }
        assert_eq!(asked(&w, first), 4, "an ejected one is not asked while another is left");

        // On trial: one OPEN, and it is out for twice as long, but never beyond the most.
        for (time, n) in [(20, 5), (25, 6), (25, 7)] {
            w.run_for(S(26));
            for _ in 0..3 {
                assert_eq!(lands(&mut w, hub), Ok(second));
            }
            assert_eq!(asked(&w, first), n);
            assert_eq!(events(&w, hub).pop(), Some(format!("first out REFUSED {time}")));
        }
        w.targets_of.clear();
        w.run_for(S(26));
        assert_eq!((lands(&mut w, hub), ejected(&w, hub)), (Ok(first), 1), "one success is not enough");
        assert_eq!((lands(&mut w, hub), ejected(&w, hub)), (Ok(first), 0));
        assert_eq!(events(&w, hub).pop(), Some("first in".to_owned()));
        w.targets_of.insert(first, Target::Refuse);
        for _ in 0..3 {
            lands(&mut w, hub).unwrap();
        }
        assert_eq!(events(&w, hub).pop(), Some("first out REFUSED 10".to_owned()), "what was before is forgotten");
    });
}

#[test]
fn a_success_between_failures_starts_the_count_anew() {
    let (mut w, hub, first, second) = two_agents(selection());
    for _ in 0..4 {
        for _ in 0..2 {
            w.targets_of.insert(first, Target::Refuse);
            assert_eq!(lands(&mut w, hub), Ok(second));
        }
        w.targets_of.clear();
        assert_eq!(lands(&mut w, hub), Ok(first));
    }
    assert!(events(&w, hub).is_empty());
}

#[test]
fn ejected_candidates_are_used_when_no_other_is_left_and_successes_bring_them_back() {
    let (mut w, hub, first, second) = two_agents(selection());
    w.target = Target::Refuse;
    for _ in 0..3 {
        assert_eq!(lands(&mut w, hub), Err(RstCode::Refused));
    }
    assert_eq!(ejected(&w, hub), 2);
    assert_eq!((asked(&w, first), asked(&w, second)), (3, 3));
    assert_eq!(lands(&mut w, hub), Err(RstCode::Refused));
    assert_eq!((asked(&w, first), asked(&w, second)), (4, 4), "both are asked: none other is left");
    w.target = Target::Accept;
    for _ in 0..2 {
        assert_eq!(lands(&mut w, hub), Ok(first));
    }
    assert_eq!((ejected(&w, hub), events(&w, hub).pop()), (1, Some("first in".to_owned())));
}

#[test]
fn a_trial_is_one_open_at_a_time() {
    let (mut w, hub, first, second) = two_agents(selection());
    w.targets_of.insert(first, Target::Refuse);
    for _ in 0..3 {
        lands(&mut w, hub).unwrap();
    }
    w.run_for(S(11));
    w.targets_of.insert(first, Target::Hang);
    let trial = w.client(hub).unwrap();
    w.run_for(MS(1));
    assert_eq!(asked(&w, first), 4, "the trial");
    for _ in 0..3 {
        assert_eq!(lands(&mut w, hub), Ok(second), "others do not wait for it");
    }
    assert_eq!(asked(&w, first), 4);
    // Its client goes away: another one may try.
    w.abort(hub, trial);
    w.run_for(MS(1));
    let trial = w.client(hub).unwrap();
    w.run_for(MS(1));
    assert_eq!(asked(&w, first), 5);
    w.run_for(S(2));
    assert_eq!(w.sock(hub, trial).aborted, None, "the agent's no came in time for the next candidate");
    assert_eq!(events(&w, hub).pop(), Some("first out TARGET_TIMEOUT 20".to_owned()));
}

#[test]
fn what_a_candidate_is_not_to_blame_for_ejects_nobody() {
    // At its limit of streams: BUSY.
    let mut w = World::new();
    w.target = Target::Accept;
    let hub = w.hub(HubConfig { selection: selection(), ..hub_config("hub-a", Mode::Off, &[]) }, 1);
    let limits = Limits { max_streams: 1, ..Limits::default() };
    let first = w.agent(AgentConfig { limits, ..with_priority("first", &["hub-a"], 0) }, 2);
    let second = w.agent(with_priority("second", &["hub-a"], 1), 3);
    w.run_for(S(1));
    let (held, at) = open(&mut w, hub).unwrap();
    assert_eq!(at, first);
    for _ in 0..10 {
        assert_eq!(lands(&mut w, hub), Ok(second));
    }
    w.abort(hub, held);
    w.run_for(MS(1));
    assert_eq!(lands(&mut w, hub), Ok(first), "it is asked as soon as it has room");
    // A client that goes away before the answer.
    w.targets_of.insert(first, Target::Hang);
    for _ in 0..10 {
        let c = w.client(hub).unwrap();
        w.run_for(MS(1));
        w.abort(hub, c);
    }
    assert_eq!((ejected(&w, hub), events(&w, hub)), (0, vec![]));
}

#[test]
fn a_candidate_that_says_nothing_in_time_is_ejected() {
    let (mut w, hub, first, second) = two_agents(selection());
    // The agent gives its target longer than the hub gives the agent.
    let slow = AgentConfig { target_timeout: S(5), ..w.as_agent(first).tunnels().config().clone() };
    w.reload_agent(first, &slow).unwrap();
    w.targets_of.insert(first, Target::Hang);
    for _ in 0..3 {
        assert_eq!(lands(&mut w, hub), Err(RstCode::Timeout), "no definite no: nobody else is asked (S6)");
    }
    assert_eq!(events(&w, hub), ["first out TIMEOUT 10"]);
    assert_eq!(lands(&mut w, hub), Ok(second));
}

#[test]
fn fall_0_ejects_nobody_and_a_reload_counts() {
    let (mut w, hub, first, second) = two_agents(Selection { fall: 0, ..selection() });
    w.targets_of.insert(first, Target::Refuse);
    for n in 1..=10 {
        assert_eq!(lands(&mut w, hub), Ok(second));
        assert_eq!(asked(&w, first), n);
    }
    reload(&mut w, hub, Selection { fall: 2, ..selection() });
    for _ in 0..4 {
        assert_eq!(lands(&mut w, hub), Ok(second));
    }
    assert_eq!((asked(&w, first), ejected(&w, hub)), (12, 1));
    reload(&mut w, hub, Selection { fall: 0, ..selection() });
    assert_eq!(ejected(&w, hub), 0);
    assert_eq!(lands(&mut w, hub), Ok(second));
    assert_eq!(asked(&w, first), 13, "it is asked again");
}

#[test]
fn another_attachment_starts_without_a_record() {
    let (mut w, hub, first, second) = two_agents(selection());
    w.targets_of.insert(first, Target::Refuse);
    for _ in 0..3 {
        assert_eq!(lands(&mut w, hub), Ok(second));
    }
    assert_eq!(ejected(&w, hub), 1);
    // A resumed tunnel is the same attachment.
    w.cut(hub, first);
    w.run_for(S(5));
    assert_eq!(ejected(&w, hub), 1);
    w.targets_of.clear();
    w.crash(first);
    let again = w.agent(with_priority("first", &["hub-a"], 0), 9);
    w.run_for(S(2));
    assert_eq!((ejected(&w, hub), lands(&mut w, hub)), (0, Ok(again)));
}

#[test]
fn an_agent_that_came_back_is_preferred_after_failback_after() {
    in_forms(|| {
        let (mut w, hub, first, second) = two_agents(Selection { failback_after: S(20), ..selection() });
        assert_eq!(lands(&mut w, hub), Ok(first), "who was never away does not come back");
        w.crash(first);
        w.run_for(S(31));
        assert_eq!(lands(&mut w, hub), Ok(second));
        let first = w.agent(with_priority("first", &["hub-a"], 0), 9);
        w.run_for(S(15));
        assert_eq!(lands(&mut w, hub), Ok(second));
        // Away for a moment: counted from there.
        w.cut(hub, first);
        w.run_for(S(15));
        assert_eq!(lands(&mut w, hub), Ok(second), "it was not there all the time");
        w.run_for(S(10));
        assert_eq!(lands(&mut w, hub), Ok(first));
        // Another run of the agent takes the place of the one before.
        w.crash(first);
        w.nodes[first].name.clear();
        let first = w.agent(with_priority("first", &["hub-a"], 0), 10);
        w.run_for(S(10));
        assert_eq!(lands(&mut w, hub), Ok(second));
        // With nobody else it serves at once.
        w.crash(second);
        w.run_for(MS(100));
        assert_eq!(lands(&mut w, hub), Ok(first));
    });
}

#[test]
fn a_reinstated_candidate_is_preferred_after_failback_after() {
    let (mut w, hub, first, second) = two_agents(Selection { failback_after: S(20), rise: 1, ..selection() });
    w.targets_of.insert(first, Target::Refuse);
    for _ in 0..3 {
        assert_eq!(lands(&mut w, hub), Ok(second));
    }
    w.targets_of.clear();
    w.run_for(S(29));
    assert_eq!(lands(&mut w, hub), Ok(second), "10 s ejected, 20 s not preferred");
    w.run_for(S(1));
    assert_eq!(lands(&mut w, hub), Ok(first), "its trial");
    assert_eq!((lands(&mut w, hub), ejected(&w, hub)), (Ok(first), 0), "and it was there all the time since");
}

#[test]
fn who_came_back_later_waits_for_who_came_back_earlier() {
    let (mut w, hub, first, second) = two_agents(Selection { failback_after: S(20), ..selection() });
    for n in [first, second] {
        w.crash(n);
    }
    w.run_for(S(31));
    let second = w.agent(with_priority("second", &["hub-a"], 1), 9);
    w.run_for(S(2));
    assert_eq!(lands(&mut w, hub), Ok(second), "somebody serves");
    let first = w.agent(with_priority("first", &["hub-a"], 0), 10);
    w.run_for(S(19));
    assert_eq!(lands(&mut w, hub), Ok(second));
    w.run_for(S(2));
    assert_eq!(lands(&mut w, hub), Ok(first));
}

#[test]
fn among_equals_a_place_is_taken_at_once() {
    let mut w = World::new();
    w.target = Target::Accept;
    let selection = Selection { failback_after: S(1000), ..selection() };
    let hub = w.hub(HubConfig { selection, ..hub_config("hub-a", Mode::Off, &[]) }, 1);
    let a = w.agent(with_priority("a", &["hub-a"], 0), 2);
    let b = w.agent(with_priority("b", &["hub-a"], 0), 3);
    w.agent(with_priority("c", &["hub-a"], 1), 4);
    w.run_for(S(1));
    w.crash(a);
    w.run_for(S(31));
    let a = w.agent(with_priority("a", &["hub-a"], 0), 5);
    w.run_for(S(1));
    let landed: Vec<usize> = (0..4).map(|_| open(&mut w, hub).unwrap().1).collect();
    assert_eq!(landed.iter().filter(|n| **n == a).count(), 2, "{landed:?}");
    assert_eq!(landed.iter().filter(|n| **n == b).count(), 2, "{landed:?}");
}

/// An agent cannot draw every client by the weight it announces, at its own hub
/// or at another.
#[test]
fn a_weight_counts_up_to_its_limit() {
    fn scenario() {
        for (local, weights) in [(true, [u16::MAX, WEIGHT_MAX]), (false, [u16::MAX, WEIGHT_MAX]), (true, [0, 1])] {
            let mut w = World::new();
            w.target = Target::Accept;
            let hub = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
            w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
            let at = if local { "hub-a" } else { "hub-b" };
            let agents = [("greedy", 3), ("modest", 4)].map(|(id, seed)| {
                let mut config = agent_config(id, &[at], 1);
                config.connectors[0].weight = weights[seed as usize - 3];
                w.agent(config, seed)
            });
            w.run_for(S(3));
            for _ in 0..12 {
                open(&mut w, hub).unwrap();
            }
            assert_eq!(agents.map(|n| w.targets(n).len()), [6, 6], "{weights:?}, local: {local}");
        }
    }
    in_forms(scenario);
}

#[test]
fn an_agent_lowers_its_rank_and_the_hub_has_the_last_word() {
    for codec in [Codec::BinaryV2, Codec::JsonV1] {
        let (mut w, hub, first, second) = two_agents(selection());
        w.codec = codec;
        let lower = |w: &mut World, n: usize, priority| {
            let mut config = w.as_agent(n).tunnels().config().clone();
            config.connectors[0].priority = priority;
            w.reload_agent(n, &config).unwrap();
            w.run_for(MS(1));
        };
        lower(&mut w, first, 5);
        assert_eq!(lands(&mut w, hub), Ok(second));
        // The hub gives `second` a rank behind that: it cannot raise itself.
        let to = |agent: &str, connector: Option<&str>, priority| AgentPriority {
            agent_id: AgentId::new(agent).unwrap(),
            connector: connector.map(name),
            priority,
        };
        let priorities = vec![to("second", None, 10)];
        reload(&mut w, hub, Selection { priorities, ..selection() });
        assert_eq!(lands(&mut w, hub), Ok(first));
        lower(&mut w, second, 0);
        assert_eq!(lands(&mut w, hub), Ok(first));
        lower(&mut w, first, 11);
        assert_eq!(lands(&mut w, hub), Ok(second));
        let priorities = vec![to("second", None, 10), to("second", Some("ldap"), 12), to("second", Some("ssh"), 1)];
        reload(&mut w, hub, Selection { priorities, ..selection() });
        assert_eq!(lands(&mut w, hub), Ok(first), "the entry for the connector counts");
        reload(&mut w, hub, selection());
        assert_eq!(lands(&mut w, hub), Ok(second));
    }
}

fn checked() -> HealthConfig {
    HealthConfig { interval: S(2), timeout: S(1), fall: 3, rise: 2 }
}

/// Two hubs with a link, `first` at both and `second` at both.
fn checked_agents(selection: Selection) -> (World, [usize; 2], usize, usize) {
    let mut w = World::new();
    w.target = Target::Accept;
    let config =
        |hub: &str, peer: &str| HubConfig { selection: selection.clone(), ..hub_config(hub, Mode::Active, &[peer]) };
    let a = w.hub(config("hub-a", "hub-b"), 1);
    let b = w.hub(config("hub-b", "hub-a"), 2);
    let agent = |id: &str, hubs: &[&str], priority| {
        let mut config = with_priority(id, hubs, priority);
        config.connectors[0].health = Some(checked());
        config
    };
    let first = w.agent(agent("first", &["hub-a", "hub-b"], 0), 3);
    let second = w.agent(agent("second", &["hub-a"], 1), 4);
    w.run_for(S(3));
    (w, [a, b], first, second)
}

#[test]
fn a_target_that_is_down_is_withdrawn_and_comes_back() {
    in_forms(|| {
        let (mut w, hubs, first, second) = checked_agents(Selection { fall: 0, ..selection() });
        let (open_a, at) = open(&mut w, hubs[0]).unwrap();
        assert_eq!(at, first);
        assert_eq!(lands(&mut w, hubs[1]), Ok(first));
        w.targets_of.insert(first, Target::Refuse);
        let down = |w: &World| !w.as_agent(first).targets().next().unwrap().up;
        w.run_for(S(3));
        assert!(!down(&w), "fewer than `fall` checks have failed");
        assert!(w.run_until(S(4), |w| down(w)));
        w.run_for(MS(1));
        assert_eq!(events(&w, first), ["ldap down REFUSED"]);
        let before = asked(&w, first);
        for hub in hubs {
            assert_eq!(lands(&mut w, hub), Ok(second));
        }
        assert_eq!(asked(&w, first), before, "it is not asked any more");
        assert_eq!(w.sock(hubs[0], open_a).aborted, None, "streams are left alone");
        assert_eq!(w.as_agent(first).mux().len(), 2, "and so are the tunnels");

        w.targets_of.clear();
        w.run_for(S(1));
        assert!(down(&w), "fewer than `rise` checks have succeeded");
        assert!(w.run_until(S(5), |w| !down(w)));
        w.run_for(S(2));
        assert_eq!(events(&w, first).pop(), Some("ldap up".to_owned()));
        for hub in hubs {
            assert_eq!(lands(&mut w, hub), Ok(first));
        }
    });
}

#[test]
fn what_an_agent_withdrew_came_back_even_if_other_hubs_never_noticed() {
    in_forms(|| {
        let (mut w, hubs, first, second) = checked_agents(Selection { failback_after: S(20), ..selection() });
        let mut config = w.as_agent(first).tunnels().config().clone();
        let quick = HealthConfig { interval: MS(100), timeout: MS(50), fall: 1, rise: 1 };
        config.connectors[0].health = Some(quick);
        w.reload_agent(first, &config).unwrap();
        w.run_for(S(2));
        assert_eq!(lands(&mut w, hubs[0]), Ok(first));
        // For less than a lookup is fresh: hub A goes on to list it at hub B.
        w.targets_of.insert(first, Target::Refuse);
        w.run_for(MS(150));
        w.targets_of.clear();
        w.run_for(MS(150));
        assert_eq!(events(&w, first), ["ldap down REFUSED", "ldap up"]);
        assert_eq!(lands(&mut w, hubs[0]), Ok(second));
        // One tunnel that is lost is no absence: the other one was there.
        w.run_for(S(20));
        assert_eq!(lands(&mut w, hubs[0]), Ok(first));
        w.cut(hubs[0], first);
        w.unreachable.push(("hub-a".to_owned(), "first".to_owned()));
        w.run_for(S(35));
        assert_eq!(lands(&mut w, hubs[0]), Ok(first), "over hub B");
        w.unreachable.clear();
        assert!(w.run_until(S(60), |w| w.as_agent(first).mux().len() == 2));
        w.run_for(MS(10));
        assert_eq!(lands(&mut w, hubs[0]), Ok(first));
    });
}

#[test]
fn an_open_on_its_way_to_a_withdrawn_connector_goes_to_the_next_candidate() {
    let (mut w, hubs, first, second) = checked_agents(Selection { fall: 0, ..selection() });
    // The hubs do not hear of it.
    w.targets_of.insert(first, Target::Refuse);
    let down = |w: &World| !w.as_agent(first).targets().next().unwrap().up;
    w.run_for(MS(4500));
    w.deliver = false;
    assert!(w.run_until(S(2), |w| down(w)));
    let c = w.client(hubs[0]).unwrap();
    w.deliver = true;
    w.run_for(MS(10));
    assert_eq!((w.sock(hubs[0], c).aborted, w.targets(second).len()), (None, 1));
}

#[test]
fn two_withdrawals_in_a_row_are_both_a_definite_no() {
    let mut w = World::new();
    w.target = Target::Accept;
    let hub = w.hub(hub_config("hub-a", Mode::Off, &[]), 1);
    let first = w.agent(with_priority("first", &["hub-a"], 0), 2);
    w.agent(with_priority("second", &["hub-a"], 1), 3);
    w.run_for(S(1));
    let mut config = w.as_agent(first).tunnels().config().clone();
    for extra in ["ssh", "rdp"] {
        let one = ConnectorConfig { name: name(extra), ..config.connectors[0].clone() };
        config.connectors.push(one);
    }
    w.reload_agent(first, &config).unwrap();
    w.run_for(MS(10));
    w.deliver = false;
    let c = w.client(hub).unwrap();
    w.settle();
    for _ in 0..3 {
        config.connectors.remove(0);
        w.reload_agent(first, &config).unwrap();
        w.settle();
    }
    w.deliver = true;
    w.run_for(MS(10));
    assert_eq!(w.sock(hub, c).aborted, None, "what was withdrawn first is not forgotten for the later one");
}

#[test]
fn a_check_that_gets_no_answer_has_failed_and_late_ones_count_for_nothing() {
    let (mut w, hubs, first, second) = checked_agents(selection());
    w.targets_of.insert(first, Target::Hang);
    w.run_for(S(8));
    assert_eq!(events(&w, first), ["ldap down TARGET_TIMEOUT"]);
    let failed = |w: &World| w.as_agent(first).targets().next().unwrap().failed;
    let n = failed(&w);
    for number in 0..10 {
        let late = nowconnect_core::mux::Input::Checked { connector: name("ldap"), number, result: Ok(()) };
        w.input(first, late);
    }
    w.run_for(MS(1));
    let target = w.as_agent(first).targets().next().unwrap();
    assert!(!target.up && failed(&w) == n, "{target:?}");
    assert_eq!(lands(&mut w, hubs[0]), Ok(second));
    // Checks are an interval apart, less up to a tenth.
    let before = failed(&w);
    w.run_for(S(40));
    assert!((20..=23).contains(&(failed(&w) - before)), "{}", failed(&w) - before);
}

#[test]
fn an_agent_that_attaches_while_its_target_is_down_exposes_it_later() {
    let (mut w, hubs, first, second) = checked_agents(selection());
    w.targets_of.insert(first, Target::Refuse);
    w.run_for(S(8));
    for hub in hubs {
        w.cut(hub, first);
        w.unreachable.push((w.nodes[hub].name.clone(), "first".to_owned()));
    }
    w.run_for(S(40));
    assert_eq!(w.as_agent(first).mux().len(), 0);
    w.unreachable.clear();
    assert!(w.run_until(S(60), |w| w.as_agent(first).mux().len() == 2));
    w.run_for(S(2));
    assert_eq!(lands(&mut w, hubs[1]), Ok(second), "HELLO does not name it");
    w.targets_of.clear();
    w.run_for(S(6));
    for hub in hubs {
        assert_eq!(lands(&mut w, hub), Ok(first));
    }
}

#[test]
fn a_reload_keeps_what_is_known_of_a_target_that_stays() {
    let (mut w, hubs, first, second) = checked_agents(selection());
    w.targets_of.insert(first, Target::Refuse);
    w.run_for(S(8));
    let before = w.as_agent(first).tunnels().config().clone();
    let mut config = before.clone();
    config.connectors.push(ConnectorConfig { name: name("ssh"), ..config.connectors[0].clone() });
    w.reload_agent(first, &config).unwrap();
    w.run_for(MS(10));
    let up: Vec<bool> = w.as_agent(first).targets().map(|t| t.up).collect();
    assert_eq!(up, [false, true], "ldap is down still, ssh is new");
    assert_eq!(lands(&mut w, hubs[0]), Ok(second));
    // Another target: nothing is known of it.
    let mut config = before.clone();
    config.connectors[0].target = "another".to_owned();
    w.reload_agent(first, &config).unwrap();
    assert!(w.as_agent(first).targets().all(|t| t.up));
    // Without checks it is exposed whatever it does.
    w.run_for(S(8));
    let mut config = before.clone();
    config.connectors[0].health = None;
    w.reload_agent(first, &config).unwrap();
    w.targets_of.clear();
    w.run_for(S(2));
    assert_eq!((w.as_agent(first).targets().count(), lands(&mut w, hubs[1])), (0, Ok(first)));
}

#[test]
fn an_agent_that_leaves_checks_nothing_and_exposes_nothing() {
    let (mut w, hubs, first, second) = checked_agents(selection());
    w.targets_of.insert(first, Target::Refuse);
    w.run_for(S(8));
    let times = nowconnect_core::config::DrainTimes::at_once(Duration::from_secs(60));
    w.input(first, nowconnect_core::mux::Input::Drain(times));
    w.targets_of.clear();
    let checks = w.as_agent(first).targets().map(|t| t.passed + t.failed).sum::<u64>();
    w.run_for(S(20));
    assert_eq!(w.as_agent(first).targets().map(|t| t.passed + t.failed).sum::<u64>(), checks);
    for hub in hubs {
        assert_eq!(lands(&mut w, hub), Ok(second));
    }
}

/// The hub that a client of hub-o is carried to: one of two that have the agent,
/// hub-x and hub-y.
fn carried_to(region: [Option<&str>; 3], distance: [Duration; 2]) -> &'static str {
    let mut w = World::new();
    w.target = Target::Accept;
    let [o, x, y] = [("hub-o", region[0]), ("hub-x", region[1]), ("hub-y", region[2])].map(|(replica, region)| {
        let others: Vec<&str> = ["hub-o", "hub-x", "hub-y"].into_iter().filter(|other| *other != replica).collect();
        let config = HubConfig { region: region.map(name), ..hub_config(replica, Mode::Active, &others) };
        w.hub(config, u64::from(replica.as_bytes()[4]))
    });
    for (hub, far) in ["hub-x", "hub-y"].into_iter().zip(distance) {
        w.distances.push((["hub-o".to_owned(), hub.to_owned()], far));
    }
    w.agent(agent_config("plant-7", &["hub-x", "hub-y"], 2), 9);
    // Until every link has been measured some times.
    w.run_for(S(60));
    let carried = |w: &World| [x, y].map(|hub| w.as_hub(hub).shards()[0].counters().carried);
    for _ in 0..10 {
        let before = carried(&w);
        let c = w.client(o).unwrap();
        let there = w.run_until(S(1), |w| carried(w) != before);
        assert!(there, "it is carried somewhere");
        w.abort(o, c);
        w.run_for(S(1));
    }
    match carried(&w) {
        [10, 0] => "hub-x",
        [0, 10] => "hub-y",
        [to_x, to_y] => panic!("{to_x} to hub-x and {to_y} to hub-y"),
    }
}

/// Semantics 7: of owners with equal priority those of the origin's own region
/// come first, and among those the nearer by round trip.
#[test]
fn an_owner_in_the_same_region_comes_first_and_then_the_nearer_one() {
    let (east, west) = (Some("east"), Some("west"));
    for (region, distance, want) in [
        ([east, west, east], [MS(1), MS(1)], "hub-y"),
        ([east, east, west], [MS(1), MS(1)], "hub-x"),
        ([east, east, west], [MS(50), MS(1)], "hub-x"),
        ([east, east, east], [MS(50), MS(1)], "hub-y"),
        ([None, None, None], [MS(1), MS(50)], "hub-x"),
        ([None, None, None], [MS(50), MS(1)], "hub-y"),
    ] {
        assert_eq!(carried_to(region, distance), want, "{region:?}, {distance:?}");
    }
}

//! Level L1: connections as bytes, and what they have to show for it.

#![allow(clippy::unwrap_used, reason = "tests")]

use nowconnect_sim::faults::{At, CutHow, Fault, Planned};
use nowconnect_sim::plan::{Level, MS, NetPlan, Plan};
use nowconnect_sim::profile::Profile;
use nowconnect_sim::run::{Keep, Report, plan, run};

fn drawn(profile: &str, seed: u64) -> Plan {
    plan(seed, Profile::named(profile).unwrap(), Level::L1)
}

/// A calm world of two hubs on a network of one's own, without hostile agents:
/// how far those get is a matter of sizes.
fn world(seed: u64, net: impl FnOnce(&mut NetPlan)) -> Plan {
    let mut p = drawn("calm", seed);
    p.rogues.clear();
    p.net.latency = (20_000, 20_000);
    p.net.jitter = 1000;
    p.net.bandwidth = (1 << 26, 1 << 26);
    p.net.buffer = (1 << 16, 1 << 16);
    p.net.mtu = (65_536, 65_536);
    net(&mut p.net);
    p
}

fn held(report: &Report) {
    assert_eq!(report.violation, None, "seed {} of {}", report.plan.seed, report.plan.profile);
}

fn says(report: &Report, text: &str) -> bool {
    report.lines.iter().any(|l| l.text.contains(text))
}

#[test]
fn a_seed_has_one_hash_whatever_is_kept() {
    for seed in [3, 5, 11] {
        let first = run(drawn("swarm", seed), Keep::Outcome);
        let again = run(drawn("swarm", seed), Keep::Steps);
        assert_eq!((first.hash, first.events), (again.hash, again.events), "seed {seed}");
        assert_eq!(again.steps.last(), Some(&again.hash));
    }
}

#[test]
fn sizes_change_how_bytes_travel_and_nothing_else() {
    let delivered: Vec<u64> = [(1 << 20, 65_536), (1 << 16, 7), (64, 1500), (3, 3)]
        .into_iter()
        .map(|(buffer, mtu)| {
            let mut p = world(2, |n| {
                n.buffer = (buffer, buffer);
                n.mtu = (mtu, mtu);
            });
            for c in &mut p.clients {
                // The same in each, and little enough for pieces of three bytes.
                c.up.total = c.up.total.min(3000);
                c.down.total = c.down.total.min(3000);
                c.up.after = c.up.after.min(c.down.total);
                c.down.after = c.down.after.min(c.up.total);
            }
            let r = run(p, Keep::Outcome);
            held(&r);
            r.delivered
        })
        .collect();
    assert!(delivered[0] > 0);
    assert!(delivered.iter().all(|d| *d == delivered[0]), "{delivered:?}");
}

#[test]
fn a_small_piece_is_an_event_of_its_own() {
    let events = |mtu: u64| run(world(2, |n| n.mtu = (mtu, mtu)), Keep::Outcome).events;
    assert!(events(16) > 5 * events(65_536), "bytes are carried, not messages");
}

/// A world with one fault between an agent and its hub, kept as a story.
fn with_fault(seed: u64, at: u64, fault: impl Fn(At, At) -> Fault) -> Report {
    let mut p = world(seed, |_| {});
    p.safety_ns = p.safety_ns.max(60_000 * MS);
    let hub = At::Hub(p.agents[0].hubs[0]);
    p.faults.push(Planned { at: at * MS, fault: fault(At::Agent(0), hub) });
    run(p, Keep::Story)
}

#[test]
fn every_kind_of_cut_is_survived() {
    for how in [CutHow::Fin, CutHow::Rst, CutHow::OneSide, CutHow::Silent] {
        for seed in 0..4 {
            let r = with_fault(seed, 9000, |a, b| Fault::Cut { a, b, how });
            held(&r);
            assert!(says(&r, "is cut"), "{how:?} {seed}: the fault has something to cut");
        }
    }
}

/// The tunnel of agent 0 to its hub when the fault came: its connection, and
/// what was told of it from then on as (nanoseconds after the fault, text).
fn tunnel(r: &Report) -> Vec<(u64, &str)> {
    let fault = r.lines.iter().position(|l| l.text.starts_with("FAULT")).unwrap();
    let dial = format!("node {} dials hub {} (conn ", r.plan.hubs.len(), r.plan.agents[0].hubs[0]);
    let (before, after) = r.lines.split_at(fault);
    let conn = before.iter().rev().find_map(|l| l.text.strip_prefix(&dial)).unwrap().trim_end_matches(')');
    let is_ours = |text: &str| {
        let words = || text.split([' ', '(', ')']);
        words().zip(words().skip(1)).any(|w| w == ("conn", conn))
    };
    let since = after[0].at;
    after
        .iter()
        .filter(|l| l.text.starts_with(&dial) || is_ours(&l.text))
        .filter(|l| !l.text.contains("is cut"))
        .map(|l| (l.at - since, l.text.as_str()))
        .collect()
}

#[test]
fn an_orderly_end_is_seen_as_one_and_a_reset_as_one() {
    for (how, sees, not) in [(CutHow::Fin, "sees the end", "reset"), (CutHow::Rst, "reset", "sees the end")] {
        let r = with_fault(1, 9000, |a, b| Fault::Cut { a, b, how });
        let told = tunnel(&r);
        assert!(told.iter().any(|(_, t)| t.contains(sees)), "{how:?}: {told:?}");
        assert!(!told.iter().any(|(_, t)| t.contains(not)), "{how:?}: {told:?}");
    }
}

#[test]
fn what_a_blackhole_held_back_arrives_when_it_ends_before_anybody_notices() {
    // Shorter than any timer: the connection lives on and nothing is lost.
    let r = with_fault(1, 9000, |a, b| Fault::Block { a, b, both: true, ms: 900 });
    held(&r);
    let told = tunnel(&r);
    assert!(!told.iter().any(|(after, _)| *after < 5000 * MS), "{told:?}");
}

#[test]
fn a_dead_peer_is_noticed_by_timers_only() {
    let r = with_fault(1, 9000, |a, b| Fault::Block { a, b, both: true, ms: 40_000 });
    held(&r);
    let told = tunnel(&r);
    let first = told.first().unwrap();
    assert!(first.0 >= 1000 * MS && first.0 <= 40_000 * MS, "{told:?}");
}

//! The command `nowconnect-sim` as its user sees it: exit codes, messages, and
//! output that can be used.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use nowconnect_sim::marks::Mark;
use nowconnect_sim::plan::{Level, Plan};
use nowconnect_sim::profile::{PROFILES, Profile};
use nowconnect_sim::run;

/// Exit code, output, messages.
fn sim(args: &str) -> (i32, String, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_nowconnect-sim")).args(args.split_whitespace()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
}

/// The value of a line of the summary.
fn line<'a>(out: &'a str, name: &str) -> &'a str {
    out.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in\n{out}")).trim()
}

#[test]
fn seeds_that_hold_end_with_0_and_say_what_was_done() {
    let (code, out, err) = sim("run --seeds 0..8 --profile calm --jobs 2");
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(line(&out, "seeds"), "8, 0 failed");
    assert!(line(&out, "time").contains("s virtual") && line(&out, "time").contains("s CPU, 2 jobs"));
    assert!(line(&out, "speed").contains("x real time per CPU second"));
    assert!(line(&out, "faults").starts_with("0: cut 0, block 0"));
    assert!(line(&out, "marks").contains(" hit"));
    let (_, again, _) = sim("run --seeds 0..8 --profile calm --jobs 1");
    assert_eq!(line(&out, "hash"), line(&again, "hash"), "one job and two");
    let (_, other, _) = sim("run --seeds 1..9 --profile calm");
    assert_ne!(line(&out, "hash"), line(&other, "hash"));
}

#[test]
fn wrong_usage_ends_with_2_and_says_what_was_expected() {
    for (args, expected) in [
        ("", "Usage"),
        ("run", "--seeds"),
        ("run --seeds 7", "expected A..B"),
        ("run --seeds 9..9", "expected A..B"),
        ("run --seeds 0..2 --seed 1", "cannot be used with"),
        ("run --seed 1 --profile nobody", "expected mixed or one of swarm"),
        ("run --seed 1 --level L7", "L0"),
        ("run --seed 1 --planted 4", "in no catalogue"),
        ("explain", "--seed"),
        ("shrink --plan no-such-file", "no-such-file"),
        ("planted --only 4", "in no catalogue"),
    ] {
        let (code, out, err) = sim(args);
        assert_eq!(code, 2, "{args}: {out}{err}");
        assert!(err.contains(expected), "{args}: expected {expected:?} in {err}");
        assert_eq!(out, "", "{args}");
    }
}

#[test]
#[cfg(not(feature = "planted"))]
fn a_build_without_planted_bugs_says_so() {
    for args in
        ["planted", "run --seed 1 --planted 14", "run --seeds 0..9 --planted 14", "shrink --seed 1 --planted 14"]
    {
        let (code, _, err) = sim(args);
        assert_eq!(code, 2, "{args}: {err}");
        assert!(err.contains("--features planted"), "{args}: {err}");
    }
    let (code, out, _) = sim("planted --list");
    assert_eq!(code, 0);
    assert!(out.lines().count() > 40, "{out}");
}

#[test]
fn what_there_is_can_be_listed() {
    let (code, out, _) = sim("profiles");
    assert_eq!(code, 0);
    assert!(PROFILES.iter().all(|p| out.contains(p.what)), "{out}");
    let (code, out, _) = sim("marks");
    assert_eq!(code, 0);
    assert_eq!(out.lines().count(), Mark::ALL.len());
}

#[test]
fn marks_are_counted_and_one_never_hit_is_a_failure() {
    let (code, out, _) = sim("marks --seeds 0..2 --profile calm");
    assert_eq!(code, 1, "two seeds without faults cannot meet every mark");
    assert_eq!(out.lines().count(), Mark::ALL.len());
    assert!(out.lines().any(|l| l.trim_start().starts_with("0  SilentDeath")), "{out}");
}

#[test]
fn a_seed_has_one_hash_in_every_command() {
    let (code, out, _) = sim("hashes --seeds 0..3 --profile calm");
    assert_eq!(code, 0);
    let hashes: Vec<&str> = out.lines().map(|l| l.split_once(' ').unwrap().1).collect();
    assert_eq!(hashes.len(), 3);
    let (code, one, _) = sim("run --seed 1 --profile calm");
    assert_eq!(code, 0);
    assert!(one.starts_with("held: seed 1 of calm, event ") && one.contains(&format!("trace {}", hashes[1])), "{one}");
}

/// A plan that cannot hold: every handshake is given up before its answer can
/// be there, so no agent is ever attached. Its file, in a directory of its own.
fn failing() -> (tempfile::TempDir, String) {
    let mut plan = run::plan(5, Profile::named("process").unwrap(), Level::L0);
    assert!(plan.net.latency.0 > 1000 && !plan.faults.is_empty());
    plan.timers.handshake = 1000;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plan.json");
    std::fs::write(&file, plan.to_json()).unwrap();
    let name = file.to_str().unwrap().to_owned();
    (dir, name)
}

#[test]
fn a_run_that_fails_ends_with_1_and_says_how_to_see_it_again() {
    let (_dir, file) = failing();
    let (code, out, _) = sim(&format!("run --plan {file}"));
    assert_eq!(code, 1, "{out}");
    assert!(out.starts_with("FAILED L"), "{out}");
    for what in ["run", "explain", "shrink"] {
        let again = format!("cargo run --release -p nowconnect-sim -- {what} --plan {file}");
        assert!(out.contains(&again), "{out}");
    }
    let (code, told, _) = sim(&format!("explain --plan {file} --events 30"));
    assert_eq!(code, 1);
    let id = out.split([' ', ':']).nth(1).unwrap();
    assert!(told.starts_with(&format!("FAILED {id}: ")), "{told}");
    for part in ["again: cargo run", "PLAN\n", "hub-0: ", "agent-0: ", "THE LAST 30 EVENTS"] {
        assert!(told.contains(part), "expected {part:?} in {told}");
    }
    let last = told.split("THE LAST 30 EVENTS").nth(1).unwrap();
    let events: std::collections::BTreeSet<&str> =
        last.lines().filter(|l| l.starts_with('#')).map(|l| l.split(' ').next().unwrap()).collect();
    assert_eq!(events.len(), 30, "{last}");
}

#[test]
fn a_failing_run_shrinks_to_a_test_and_a_plan_that_fail_alike() {
    let (dir, file) = failing();
    let (_, out, _) = sim(&format!("run --plan {file}"));
    let id = out.split([' ', ':']).nth(1).unwrap();
    let small = dir.path().join("small.json");
    let (code, test, err) = sim(&format!("shrink --plan {file} --json {}", small.display()));
    assert_eq!(code, 1, "{err}");
    assert!(err.contains(" to 0 faults, 2 nodes, 0 clients, 0 B"), "{err}");
    let (head, rest) = test.split_once("const PLAN: &str = r#\"").unwrap();
    assert!(head.starts_with("//! ") && head.contains("#[test]\nfn seed_5_process_"), "{head}");
    assert!(head.contains("use nowconnect_sim::plan::Plan;") && head.contains("use nowconnect_sim::run::{Keep, run};"));
    let plan = Plan::from_json(rest.split_once("\"#;").unwrap().0).unwrap();
    assert_eq!(Plan::from_json(&std::fs::read_to_string(&small).unwrap()).as_ref(), Ok(&plan));
    let (code, out, _) = sim(&format!("run --plan {}", small.display()));
    assert_eq!(code, 1);
    assert!(out.starts_with(&format!("FAILED {id}: ")), "{out}");
}

#[test]
fn a_run_that_holds_has_nothing_to_shrink() {
    let (code, out, _) = sim("shrink --seed 1 --profile calm");
    assert_eq!((code, out.as_str()), (0, "held: seed 1 of calm, nothing to shrink\n"));
}

#[test]
fn deployments_are_compared_where_asked_for() {
    let (code, out, err) = sim("run --seeds 0..3 --diff --jobs 1");
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(
        line(&out, "compared"),
        "3 seeds run without HA, in mode off, in mode shadow and in one of them beside active hubs, 0 differed"
    );
    let (code, out, _) = sim("run --seed 1 --diff");
    assert_eq!(code, 0);
    assert!(out.starts_with("held: seed 1 of "), "{out}");
    let (_dir, file) = failing();
    let (code, _, err) = sim(&format!("run --plan {file} --diff"));
    assert_eq!(code, 2);
    assert!(err.contains("`twin`"), "{err}");
}

#[test]
#[cfg(feature = "planted")]
fn a_difference_is_a_failure_with_a_line_that_repeats_it() {
    let (code, out, err) = sim("run --seeds 0..40 --profile swarm --planted 50 --diff --first --jobs 2");
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.starts_with("FAILED M2 at event "), "{out}");
    let again = out.lines().find(|l| l.trim_start().starts_with("cargo run")).unwrap();
    let (again, commit) = again.split_once("   # commit ").unwrap_or((again, ""));
    assert!(again.ends_with(" --profile swarm --diff --planted 50"), "{again}");
    assert!(commit.chars().all(|c| c.is_ascii_hexdigit()), "{commit}");
    let seed = again.split("--seed ").nth(1).unwrap().split(' ').next().unwrap();
    let (code, told, _) = sim(&format!("explain --seed {seed} --profile swarm --diff --planted 50"));
    assert_eq!(code, 1);
    assert!(told.starts_with("FAILED M2: ") && told.contains("compared: without HA"), "{told}");
}

/// The example of the README is what its commands print.
#[test]
#[cfg(feature = "planted")]
fn the_failing_run_of_the_readme_is_as_it_is_told_there() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let block = |command: &str| {
        let (_, rest) = readme.split_once(&format!("$ sim {command}\n")).unwrap();
        rest.split("```").next().unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let command = "run --seed 0 --profile swarm --planted 16";
    let (code, out, _) = sim(command);
    assert_eq!(code, 1);
    // The commit is another one each time, and unknown outside a clone.
    let line = |l: &str| l.split("   # commit ").next().unwrap().to_owned();
    let told: Vec<String> = block(command).iter().map(|l| line(l)).collect();
    assert_eq!(told, out.lines().map(line).collect::<Vec<_>>(), "regenerate it with `sim {command}`");
    assert!(block(command).iter().any(|l| l.contains("   # commit ")));
    let commit = Command::new("git").args(["rev-parse", "HEAD"]).output();
    let commit = commit.map_or_else(|_| String::new(), |out| String::from_utf8(out.stdout).unwrap());
    let named = out.split("   # commit ").nth(1).map(|rest| rest.split('\n').next().unwrap());
    assert!(commit.is_empty() || named.is_some_and(|c| c.len() >= 12 && commit.starts_with(c)), "{named:?}");
    let command = "explain --seed 0 --profile swarm --planted 16";
    let (_, out, _) = sim(command);
    let told: Vec<String> = block(command).into_iter().filter(|l| !l.contains('…')).collect();
    assert!(told.len() > 8, "{told:?}");
    let mut lines = out.lines();
    for line in told {
        assert!(lines.any(|l| l == line), "{line:?} is not told any more: regenerate it with `sim {command}`");
    }
}

#[test]
fn a_drawn_plan_can_be_kept_and_is_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plan.json");
    let (code, text, _) = sim("plan --seed 2 --profile calm");
    assert_eq!(code, 0);
    std::fs::write(&file, text).unwrap();
    let trace = |out: &str| out.split(" trace ").nth(1).unwrap().split('\n').next().unwrap().to_owned();
    let (_, of_file, _) = sim(&format!("run --plan {}", file.display()));
    let (_, of_seed, _) = sim("run --seed 2 --profile calm");
    assert_eq!(trace(&of_file), trace(&of_seed));
    std::fs::write(&file, "{}").unwrap();
    let (code, _, err) = sim(&format!("run --plan {}", file.display()));
    assert_eq!(code, 2);
    assert!(err.contains("plan.json: not a plan: missing field"), "{err}");
}

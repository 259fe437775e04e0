//! Runs that once found something, by name. A seed names a run only as long as
//! plans are drawn as they were; what must stay for good is a plan in `plans/`.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use nowconnect_sim::plan::{Level, Plan};
use nowconnect_sim::profile::Profile;
use nowconnect_sim::run::{Keep, plan, run};

/// A seed that found something.
struct Found {
    /// What it found, in a few words; unique.
    name: &'static str,
    profile: &'static str,
    level: Level,
    seed: u64,
    /// The invariant that was broken.
    broke: &'static str,
}

const FOUND: &[Found] = &[
    Found { name: "no route after errors of the registry", profile: "swarm", level: Level::L0, seed: 22, broke: "L3" },
    Found { name: "not the owner after a sweep", profile: "sweep-between", level: Level::L0, seed: 37, broke: "L3" },
    Found { name: "not the owner after crashes", profile: "speed", level: Level::L0, seed: 29, broke: "L3" },
    Found {
        name: "one of two tunnels after a redirect",
        profile: "failover-move-wake",
        level: Level::L0,
        seed: 31,
        broke: "L2",
    },
    Found { name: "one of two tunnels after cuts", profile: "network", level: Level::L0, seed: 83, broke: "L2" },
    Found { name: "no link after the healing", profile: "swarm", level: Level::L0, seed: 108, broke: "L4" },
    Found { name: "sent away for a clone that was gone", profile: "speed", level: Level::L0, seed: 145, broke: "L2" },
    Found { name: "a retry at an old master", profile: "registry", level: Level::L0, seed: 439, broke: "O2" },
    Found { name: "redirected to a hub that is none", profile: "swarm", level: Level::L0, seed: 3768, broke: "L2" },
    Found { name: "many streams lost at once", profile: "slow-claims", level: Level::L0, seed: 8267, broke: "B8" },
    Found {
        name: "refused beside what an earlier run left",
        profile: "swarm",
        level: Level::L0,
        seed: 4738,
        broke: "M4",
    },
    Found { name: "read beyond the memory budget", profile: "swarm", level: Level::L0, seed: 664, broke: "B3" },
    Found { name: "first bytes kept and not counted", profile: "thin-wire", level: Level::L0, seed: 2499, broke: "B3" },
    Found {
        name: "an address that stood for another hub",
        profile: "swarm",
        level: Level::L0,
        seed: 1688,
        broke: "L4",
    },
    Found { name: "listed where it was pointed away from", profile: "swarm", level: Level::L0, seed: 518, broke: "L5" },
    Found { name: "an address asked in vain for ever", profile: "swarm", level: Level::L0, seed: 1944, broke: "L2" },
    Found {
        name: "a dead hub that kept others from being asked",
        profile: "swarm",
        level: Level::L0,
        seed: 394,
        broke: "L2",
    },
    Found {
        name: "what waited for downloads that were broken off",
        profile: "swarm",
        level: Level::L1,
        seed: 1576,
        broke: "L3",
    },
    Found { name: "an entry that a late claim took", profile: "swarm", level: Level::L0, seed: 1548, broke: "L6" },
    Found { name: "what could not be released before", profile: "swarm", level: Level::L0, seed: 2206, broke: "L5" },
    Found {
        name: "one peer's address taken for another's",
        profile: "rotation",
        level: Level::L0,
        seed: 11_773,
        broke: "L4",
    },
];

#[test]
fn seeds_that_found_something_hold() {
    for (ix, f) in FOUND.iter().enumerate() {
        assert!(FOUND[..ix].iter().all(|g| g.name != f.name), "{} is there twice", f.name);
        let report = run(plan(f.seed, Profile::named(f.profile).unwrap(), f.level), Keep::Outcome);
        assert_eq!(
            report.violation, None,
            "{} (broke {}): cargo run --release -p nowconnect-sim -- run --seed {} --profile {} --level {:?}",
            f.name, f.broke, f.seed, f.profile, f.level
        );
    }
}

#[test]
fn plans_that_found_something_hold() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let plan = Plan::from_json(&std::fs::read_to_string(&file).unwrap())
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let report = run(plan, Keep::Outcome);
        assert_eq!(report.violation, None, "run --plan {}", file.display());
    }
}

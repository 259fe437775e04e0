//! The pipeline itself, end to end: a planted bug is switched on, noticed,
//! named, and shrunk. `cargo test -p nowconnect-sim --features planted`.

#![cfg(feature = "planted")]
#![allow(clippy::unwrap_used, reason = "tests")]

use nowconnect_sim::campaign::{Live, Options, run};
use nowconnect_sim::plan::Level;
use nowconnect_sim::profile::Choice;
use nowconnect_sim::repeat::perform;
use nowconnect_sim::run::Keep;
use nowconnect_sim::shrink::shrink;

/// An end is shown after a loss as if nothing was missing.
const FALSE_END: u16 = 14;

fn first_catch(jobs: usize) -> nowconnect_sim::campaign::Failure {
    nowconnect_sim::panics::keep_quiet();
    let options = Options {
        seeds: 0..200,
        choice: Choice::Mixed,
        level: Level::L0,
        planted: Some(FALSE_END),
        jobs,
        stop_at_first: true,
    };
    run(&options, &Live::default(), &|_| {}).failures.remove(0)
}

#[test]
fn the_first_seed_that_notices_does_not_depend_on_threads() {
    let (one, two) = (first_catch(1), first_catch(2));
    assert_eq!(one, two);
    assert_eq!(one.violation.id, "S2");
    assert!(one.case.command("run").contains(" --features planted -- run --seed "), "{}", one.case.command("run"));
    assert!(one.case.command("run").ends_with(" --planted 14"));
}

#[test]
fn a_planted_bug_shrinks_to_a_dozen_faults_and_three_nodes() {
    let found = first_catch(2);
    let plan = nowconnect_sim::run::plan(found.case.seed, Choice::Mixed.of(found.case.seed), Level::L0);
    let small = shrink(plan, Some(FALSE_END), &mut |runs, _| runs < 4000).unwrap().unwrap();
    assert!(small.after.is_small(), "from {} to {}", small.before, small.after);
    assert_eq!(small.violation.id, "S2");
    let again = perform(small.plan.clone(), Some(FALSE_END), Keep::Outcome).unwrap().violation;
    assert_eq!(again, Some(small.violation));
    assert_eq!(perform(small.plan, None, Keep::Outcome).unwrap().violation, None);
}

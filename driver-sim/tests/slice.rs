//! The slice of the campaign that the test command runs: fixed seeds at both
//! levels, the same on one thread and on two.

use nowconnect_sim::campaign::{Live, Options, Totals, at_commit, run};
use nowconnect_sim::plan::Level;
use nowconnect_sim::profile::Choice;

/// Seeds with whole messages.
const L0: u64 = 500;
/// Seeds with bytes through the codec.
const L1: u64 = 50;

fn campaign(seeds: std::ops::Range<u64>, level: Level, jobs: usize) -> Totals {
    nowconnect_sim::panics::keep_quiet();
    let options =
        Options { seeds, choice: Choice::Mixed, level, planted: None, diff: false, jobs, stop_at_first: false };
    run(&options, &Live::default(), &|_| {})
}

/// Every failing seed, with the command that runs it again.
fn demand(totals: &Totals, seeds: u64) {
    let told: Vec<String> = totals
        .failures
        .iter()
        .map(|f| format!("{}: {}\n  {}", f.violation.id, f.violation.text, f.case.command("run") + &at_commit()))
        .collect();
    assert!(told.is_empty(), "{} of {seeds} seeds failed\n{}", told.len(), told.join("\n"));
    assert_eq!(totals.seeds, seeds);
    assert!(totals.delivered > 0 && totals.repeated > 0 && totals.faults.iter().all(|n| *n > 0 || seeds < L0));
}

#[test]
fn whole_messages_hold() {
    demand(&campaign(0..L0, Level::L0, 2), L0);
}

#[test]
fn bytes_hold() {
    // Another stretch of seeds than the above.
    demand(&campaign(10_000..10_000 + L1, Level::L1, 2), L1);
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (one, two) = (campaign(700..740, Level::L0, 1), campaign(700..740, Level::L0, 2));
    assert_eq!(format!("{:016x}", one.hash), format!("{:016x}", two.hash));
    assert_eq!(one.failures, two.failures);
    assert_eq!((one.seeds, one.events, one.inputs, one.faults), (two.seeds, two.events, two.inputs, two.faults));
    assert_eq!(one.marks, two.marks);
    // And the hash is of something.
    assert_ne!(one.hash, campaign(701..741, Level::L0, 1).hash);
}

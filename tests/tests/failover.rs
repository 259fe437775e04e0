//! What `bench failover` measures, three kills at a time: order and counts are
//! asserted here, times are for the bench (M6, S2).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; times are for the reader")]

use nowconnect_tests::failover::{Times, measure, median};

const KILLS: usize = 3;

async fn kills(parallel: usize) -> Times {
    let times = measure(KILLS, parallel).await;
    println!(
        "{parallel} attachments, {KILLS} kills: first new stream after {:?}, all after {:?} (medians); {} refused, \
         {} aborted, {} untouched",
        median(&times.first),
        median(&times.all),
        times.refused,
        times.aborted,
        times.untouched
    );
    assert_eq!((times.first.len(), times.all.len()), (KILLS, KILLS), "new streams worked after each kill");
    for (first, all) in times.first.iter().zip(&times.all) {
        assert!(first <= all, "the first one comes first: {times:?}");
    }
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kill_of_one_of_two_attachments_is_not_noticed_at_the_other() {
    let times = kills(2).await;
    assert_eq!((times.aborted, times.untouched), (4 * KILLS as u64, 4 * KILLS as u64));
    assert_eq!(times.refused, 0, "the survivor has a tunnel of its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kill_of_the_only_attachment_costs_what_passed_it_and_nothing_else() {
    let times = kills(1).await;
    assert_eq!((times.aborted, times.untouched), (8 * KILLS as u64, 4 * KILLS as u64));
}

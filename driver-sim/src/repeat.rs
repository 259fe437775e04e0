//! The same tape must make the same run (D1): runs a plan again and, if
//! anything differs, names the first event that does.

use crate::plan::Plan;
use crate::run::{Keep, Report, run, run_planted};

/// Runs that look for a difference that was seen once.
const TRIES: u32 = 8;

/// Carries out a plan, with a planted bug if one is wanted. `None` when that
/// bug cannot be on in this build.
#[must_use]
pub fn perform(plan: Plan, planted: Option<u16>, keep: Keep) -> Option<Report> {
    match planted {
        Some(bug) => run_planted(plan, bug, keep),
        None => Some(run(plan, keep)),
    }
}

/// Runs the plan of a report again; `Some` says where the two runs differ.
#[must_use]
pub fn difference(first: &Report, planted: Option<u16>) -> Option<String> {
    let second = perform(first.plan.clone(), planted, Keep::Steps)?;
    if same(first, &second) {
        return None;
    }
    let seen = format!(
        "hash {:016x} after {} events, then {:016x} after {}",
        first.hash, first.events, second.hash, second.events
    );
    if !first.steps.is_empty() {
        return Some(format!("{seen}; {}", named(&first.steps, &second, planted)));
    }
    for _ in 0..TRIES {
        let third = perform(first.plan.clone(), planted, Keep::Steps)?;
        if !same(&second, &third) {
            return Some(format!("{seen}; {}", named(&second.steps, &third, planted)));
        }
    }
    Some(format!("{seen}; not seen again in {TRIES} runs"))
}

fn same(a: &Report, b: &Report) -> bool {
    (a.hash, a.events) == (b.hash, b.events)
}

/// The first event after which two runs differ.
#[must_use]
pub fn first_difference(a: &[u64], b: &[u64]) -> u64 {
    let common = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    common as u64
}

fn named(steps: &[u64], other: &Report, planted: Option<u16>) -> String {
    let event = first_difference(steps, &other.steps);
    let story = perform(other.plan.clone(), planted, Keep::Story);
    let told: Vec<String> =
        story.iter().flat_map(|r| &r.lines).filter(|l| l.event == event).take(3).map(ToString::to_string).collect();
    let told = if told.is_empty() { "of which the story tells nothing".to_owned() } else { told.join(" | ") };
    format!("the first event that differs is #{event}: {told}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Level;
    use crate::profile::PROFILES;

    #[test]
    fn the_first_event_that_differs_is_named() {
        assert_eq!(first_difference(&[1, 2, 3], &[1, 2, 4]), 2);
        assert_eq!(first_difference(&[1, 2], &[1, 2, 4]), 2);
        assert_eq!(first_difference(&[], &[7]), 0);
    }

    #[test]
    fn a_changed_hash_is_a_difference_and_the_event_is_found() {
        let plan = crate::run::plan(3, &PROFILES[0], Level::L0);
        let mut first = run(plan, Keep::Steps);
        assert_eq!(difference(&first, None), None);
        first.hash ^= 1;
        first.steps[40..].iter_mut().for_each(|s| *s ^= 1);
        let text = difference(&first, None).unwrap();
        assert!(text.contains("is #40:"), "{text}");
    }
}

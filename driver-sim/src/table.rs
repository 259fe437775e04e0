//! The table of planted bugs: how soon the oracles notice each mistake.
//!
//! A seed counts as a catch only if the same plan passes without the mistake,
//! so that a defect of the core or a false alarm never shines as an oracle.
//! Must not know what a bug does: everything it needs stands in the plan that
//! any seed of the profile draws.

use nowconnect_core::planted::{Applies, BUGS, Bug};

use crate::plan::{Level, Plan};
use crate::profile::{PROFILES, Profile};
use crate::run::{Keep, Report, plan, run, run_planted};
use crate::world::Violation;

/// One seed in this many is run twice and must give the same trace (D1).
pub const REPEAT_EVERY: u64 = 50;

/// What became of a bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Noticed.
    Caught {
        /// The seed.
        seed: u64,
        /// Seeds that were run, this one included.
        after: u64,
        /// What broke.
        violation: Violation,
    },
    /// Not noticed in so many seeds.
    Missed {
        /// Seeds that were run.
        after: u64,
    },
    /// Cannot be switched on here; why.
    Elsewhere(String),
}

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// The bug.
    pub bug: &'static Bug,
    /// What became of it.
    pub outcome: Outcome,
}

impl Row {
    /// Whether what broke is what the catalogue expects, if it says.
    #[must_use]
    pub fn as_expected(&self) -> bool {
        match &self.outcome {
            Outcome::Caught { violation, .. } => {
                self.bug.oracle.is_empty() || self.bug.oracle.contains(&violation.id.as_str())
            }
            Outcome::Missed { .. } => false,
            Outcome::Elsewhere(_) => true,
        }
    }
}

/// Runs a plan, and again when that is its turn: two runs of one tape are one
/// trace (D1). `None` if the bug cannot be on.
#[must_use]
pub fn run_checked(plan: &Plan, bug: Option<u16>) -> Option<Report> {
    let again = || match bug {
        Some(id) => run_planted(plan.clone(), id, Keep::Outcome),
        None => Some(run(plan.clone(), Keep::Outcome)),
    };
    let mut first = again()?;
    if first.violation.is_none() && plan.seed.is_multiple_of(REPEAT_EVERY) {
        let second = again()?;
        if (second.hash, second.events) != (first.hash, first.events) {
            let text = format!(
                "two runs of one tape differ: hash {:016x} after {} events, {:016x} after {}",
                first.hash, first.events, second.hash, second.events
            );
            first.violation = Some(Violation::new("D1", text));
        }
    }
    Some(first)
}

/// The profile of a seed when none is asked for: three of four seeds are of the
/// default one, the fourth of the named scenarios in turn.
#[must_use]
pub fn rotation(seed: u64) -> &'static Profile {
    let mut scenarios = PROFILES.iter().filter(|p| p.script.is_some());
    let turn = (seed / 4) as usize % scenarios.clone().count().max(1);
    let scenario = (seed % 4 == 3).then(|| scenarios.nth(turn)).flatten();
    scenario.unwrap_or(&PROFILES[0])
}

/// Runs seeds with a bug on until it is noticed. Without a profile: in
/// [`rotation`].
#[must_use]
pub fn hunt(bug: &'static Bug, profile: Option<&Profile>, level: Level, seeds: std::ops::Range<u64>) -> Row {
    let elsewhere = |why: &str| Row { bug, outcome: Outcome::Elsewhere(why.to_owned()) };
    match bug.applies {
        Applies::Core | Applies::Simulator => {}
        Applies::Driver => return elsewhere("the mistake is one of the production driver"),
        Applies::Later(why) => return elsewhere(why),
    }
    let mut after = 0;
    for seed in seeds {
        after += 1;
        let drawn = plan(seed, profile.unwrap_or_else(|| rotation(seed)), level);
        let Some(report) = run_checked(&drawn, Some(bug.id)) else {
            return elsewhere("this build has no planted bugs");
        };
        let Some(violation) = report.violation else { continue };
        if violation.id == "CANARY" || run_checked(&drawn, None).is_some_and(|r| r.violation.is_none()) {
            return Row { bug, outcome: Outcome::Caught { seed, after, violation } };
        }
    }
    Row { bug, outcome: Outcome::Missed { after } }
}

/// Every bug, in the catalogue's order.
pub fn table(profile: Option<&Profile>, level: Level, seeds: u64) -> impl Iterator<Item = Row> {
    BUGS.iter().map(move |bug| hunt(bug, profile, level, 0..seeds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_with_a_script_has_its_turn_and_the_default_most_of_them() {
        let all: Vec<&str> = (0..400).map(|s| rotation(s).name).collect();
        for p in PROFILES.iter().filter(|p| p.script.is_some()) {
            assert!(all.contains(&p.name), "{}", p.name);
        }
        assert_eq!(all.iter().filter(|n| **n == PROFILES[0].name).count(), 300);
    }

    /// Mistakes of different kinds, each noticed by another oracle. All of them
    /// are in `planted`, the command.
    #[cfg(feature = "planted")]
    #[test]
    fn mistakes_are_noticed_by_the_oracle_they_break() {
        use nowconnect_core::planted::find;
        for (id, invariant) in [(1, "O3"), (14, "S2"), (36, "S7"), (47, "L6"), (55, "I3"), (58, "B10"), (2001, "S9")] {
            let bug = find(id).expect("a bug of the catalogue");
            let row = hunt(bug, None, Level::L0, 0..60);
            let Outcome::Caught { violation, .. } = &row.outcome else { panic!("bug {id} was not noticed") };
            assert_eq!(violation.id, invariant, "bug {id}: {}", violation.text);
        }
    }
}

//! The table of planted bugs: how soon the oracles notice each mistake, and in
//! which run.
//!
//! A seed counts as a catch only if the same plan passes without the mistake,
//! so that a defect of the core or a false alarm never shines as an oracle.
//! Must not know what a bug does: everything it needs stands in the plan that
//! any seed of the profile draws.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::sync_channel;

use nowconnect_core::planted::{Applies, Bug};

use crate::campaign::{self, Case, Ran};
use crate::plan::Level;
use crate::profile::Choice;
use crate::repeat::{difference, perform};
use crate::run::Keep;
use crate::world::Violation;

/// Most bugs are to be noticed within so many seeds.
pub const SOON: u64 = 200;

/// Which runs are looked through for each bug.
#[derive(Clone, Debug)]
pub struct Search {
    /// The seeds.
    pub seeds: Range<u64>,
    /// The profile of each.
    pub choice: Choice,
    /// How messages are carried.
    pub level: Level,
}

/// What became of a bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Noticed.
    Caught {
        /// The run that noticed it.
        case: Case,
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

    /// Whether it was noticed within [`SOON`] seeds.
    #[must_use]
    pub const fn is_soon(&self) -> bool {
        matches!(self.outcome, Outcome::Caught { after, .. } if after <= SOON)
    }
}

/// Why a bug cannot be switched on in a simulated world, if it cannot.
#[must_use]
pub fn elsewhere(bug: &Bug) -> Option<String> {
    match bug.applies {
        Applies::Core | Applies::Simulator => None,
        Applies::Driver => Some(format!("production driver only: {}", bug.needs)),
        Applies::Later(why) => Some(format!("later: {why}")),
    }
}

/// Runs seeds with a bug on until it is noticed.
#[must_use]
pub fn hunt(bug: &'static Bug, search: &Search) -> Row {
    let row = |outcome| Row { bug, outcome };
    if let Some(why) = elsewhere(bug) {
        return row(Outcome::Elsewhere(why));
    }
    for seed in search.seeds.clone() {
        let profile = search.choice.of(seed);
        let l1 = search.level == Level::L1;
        let case = Case { seed, profile: profile.name, planted: Some(bug.id), l1, diff: false };
        let Some(Ran { case, report, .. }) = campaign::one(case, Keep::Outcome) else {
            return row(Outcome::Elsewhere("not in this build".to_owned()));
        };
        let Some(violation) = report.violation else { continue };
        let holds = perform(case.plan(), None, Keep::Outcome)
            .is_some_and(|r| r.violation.is_none() && difference(&r, None).is_none());
        if holds {
            return row(Outcome::Caught { case, after: seed - search.seeds.start + 1, violation });
        }
    }
    row(Outcome::Missed { after: search.seeds.end - search.seeds.start })
}

/// Hunts each bug, on so many threads, and shows the rows in the order of
/// `bugs`, each as soon as those before it are known. Ends early when `show`
/// fails; bugs that are being hunted then are hunted to their end.
///
/// # Errors
/// What `show` returns.
pub fn table<E>(
    bugs: &[&'static Bug],
    search: &Search,
    jobs: usize,
    mut show: impl FnMut(&Row) -> Result<(), E>,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let (send, receive) = sync_channel::<(usize, Row)>(bugs.len());
    std::thread::scope(|scope| {
        // Moved in: its end is the end of the channel for the jobs.
        let receive = receive;
        for _ in 0..jobs.max(1) {
            let (send, next) = (send.clone(), &next);
            scope.spawn(move || {
                while let Some((ix, bug)) = {
                    let ix = next.fetch_add(1, Relaxed);
                    bugs.get(ix).map(|bug| (ix, bug))
                } {
                    if send.send((ix, hunt(bug, search))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let mut waiting: Vec<Option<Row>> = bugs.iter().map(|_| None).collect();
        let mut shown = 0;
        for (ix, row) in receive {
            if let Some(place) = waiting.get_mut(ix) {
                *place = Some(row);
            }
            while let Some(Some(row)) = waiting.get(shown) {
                show(row)?;
                shown += 1;
            }
        }
        Ok(())
    })
}

#[cfg(all(test, feature = "planted"))]
mod tests {
    use super::*;
    use nowconnect_core::planted::{CANARY, find};

    fn search(seeds: Range<u64>) -> Search {
        Search { seeds, choice: Choice::Mixed, level: Level::L0 }
    }

    /// Mistakes of different kinds, each noticed by another oracle. All of them
    /// are in `planted`, the command.
    #[test]
    fn mistakes_are_noticed_by_the_oracle_they_break() {
        crate::panics::keep_quiet();
        let expected =
            [(1, "O3"), (14, "S2"), (36, "S7"), (47, "L6"), (55, "I3"), (58, "B10"), (2001, "S9"), (CANARY, "CANARY")];
        let bugs: Vec<_> = expected.iter().filter_map(|(id, _)| find(*id)).collect();
        let mut rows = Vec::new();
        let shown: Result<(), ()> = table(&bugs, &search(1..160), 2, |row| {
            rows.push(row.clone());
            Ok(())
        });
        assert_eq!((shown, rows.len()), (Ok(()), bugs.len()));
        for ((id, invariant), row) in expected.iter().zip(rows) {
            let Outcome::Caught { violation, .. } = &row.outcome else { panic!("bug {id} was not noticed") };
            assert_eq!(row.bug.id, *id, "rows come in the order of the bugs");
            assert_eq!(violation.id, *invariant, "bug {id}: {}", violation.text);
            assert!(row.as_expected() && row.is_soon(), "{id}");
        }
    }

    #[test]
    fn what_is_not_here_is_said_and_what_is_not_noticed_too() {
        let there = |applies| elsewhere(&Bug { applies, ..*find(CANARY).unwrap() });
        assert!(there(Applies::Driver).is_some_and(|why| why.starts_with("production driver")));
        assert!(there(Applies::Later("soon")).is_some_and(|why| why.starts_with("later: ")));
        assert_eq!((there(Applies::Core), there(Applies::Simulator)), (None, None));
        assert_eq!(hunt(find(CANARY).unwrap(), &search(1..4)).outcome, Outcome::Missed { after: 3 });
    }
}

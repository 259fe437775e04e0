//! Many seeds, on several threads that share nothing but a counter: what came
//! out, in sum. Keeps: the sum does not depend on the number of threads. Must
//! not know a clock or a terminal; whoever shows progress reads [`Live`].

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nowconnect_core::planted;

use crate::diff;
use crate::faults::Class;
use crate::marks::{Mark, Marks};
use crate::plan::{Level, Plan};
use crate::profile::{Choice, PROFILES, Profile};
use crate::repeat::{difference, perform};
use crate::run::{Keep, Report, plan};
use crate::tape::mix;
use crate::world::Violation;

/// One seed in so many is run twice (D1); each failing seed is, too.
pub const REPEAT_ONE_IN: u64 = 50;

/// From so many seeds on a mark that was never hit is a failure.
#[must_use]
pub const fn marks_demanded_from(level: Level) -> u64 {
    match level {
        Level::L0 => 5000,
        // A seed costs more there, and bytes meet what is rare sooner.
        Level::L1 => 2000,
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seeds.
    pub seeds: Range<u64>,
    /// The profile of each.
    pub choice: Choice,
    /// How messages are carried.
    pub level: Level,
    /// The planted bug that is on.
    pub planted: Option<u16>,
    /// Compare the deployments of every seed, instead of one seed in
    /// [`diff::EVERY`].
    pub diff: bool,
    /// Threads; 0 counts as 1.
    pub jobs: usize,
    /// No seed after the first one that fails is of interest.
    pub stop_at_first: bool,
}

/// A run, named so that it can be run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// The seed.
    pub seed: u64,
    /// The name of its profile.
    pub profile: &'static str,
    /// The planted bug that is on.
    pub planted: Option<u16>,
    /// Bytes instead of messages.
    pub l1: bool,
    /// Its three deployments compared.
    pub diff: bool,
}

/// Behind a command, as a comment of the shell: which commit this is a build of,
/// where that is known.
#[must_use]
pub fn at_commit() -> String {
    option_env!("NOWCONNECT_COMMIT").map_or_else(String::new, |commit| format!("   # commit {commit}"))
}

impl Case {
    /// Its plan.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let level = if self.l1 { Level::L1 } else { Level::L0 };
        let profile = Profile::named(self.profile).unwrap_or(&PROFILES[0]);
        if self.diff { diff::plan(self.seed, profile, level) } else { plan(self.seed, profile, level) }
    }

    /// The arguments that name it.
    #[must_use]
    pub fn arguments(&self) -> String {
        let mut text = format!("--seed {} --profile {}", self.seed, self.profile);
        if self.l1 {
            text.push_str(" --level L1");
        }
        if self.diff {
            text.push_str(" --diff");
        }
        if let Some(bug) = self.planted {
            text.push_str(&format!(" --planted {bug}"));
        }
        text
    }

    /// The command that does `what` with it.
    #[must_use]
    pub fn command(&self, what: &str) -> String {
        let features = if self.planted.is_some() { " --features planted" } else { "" };
        format!("cargo run --release -p nowconnect-sim{features} -- {what} {}", self.arguments())
    }
}

/// A seed that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub case: Case,
    /// What was found wrong.
    pub violation: Violation,
    /// Events until then.
    pub events: u64,
    /// Virtual time until then, nanoseconds.
    pub virtual_ns: u64,
    /// The hash of its trace.
    pub hash: u64,
}

/// Sums over seeds.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Seeds.
    pub seeds: u64,
    /// Events of the worlds.
    pub events: u64,
    /// Inputs, timeouts and notes given to machines.
    pub inputs: u64,
    /// Virtual time, nanoseconds.
    pub virtual_ns: u64,
    /// Faults carried out, in the order of [`Class::ALL`].
    pub faults: [u64; Class::ALL.len()],
    /// Payload bytes delivered.
    pub delivered: u64,
    /// Messages delivered.
    pub messages: u64,
    /// Rare circumstances met.
    pub marks: Marks,
    /// Seeds that were run twice.
    pub repeated: u64,
    /// Seeds whose deployments were compared.
    pub compared: u64,
    /// Of all seeds and their traces; the order of running does not matter.
    pub hash: u64,
    /// Seeds that failed, by number.
    pub failures: Vec<Failure>,
}

impl Totals {
    fn add(&mut self, r: &Report) {
        self.seeds += 1;
        self.events += r.events;
        self.inputs += r.inputs;
        self.virtual_ns += r.virtual_ns;
        for (sum, n) in self.faults.iter_mut().zip(r.faults) {
            *sum += n;
        }
        self.delivered += r.delivered;
        self.messages += r.messages;
        self.marks.merge(&r.marks);
        self.hash = self.hash.wrapping_add(mix(r.plan.seed ^ mix(r.hash)));
    }

    fn merge(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.events += other.events;
        self.inputs += other.inputs;
        self.virtual_ns += other.virtual_ns;
        for (sum, n) in self.faults.iter_mut().zip(other.faults) {
            *sum += n;
        }
        self.delivered += other.delivered;
        self.messages += other.messages;
        self.marks.merge(&other.marks);
        self.repeated += other.repeated;
        self.compared += other.compared;
        self.hash = self.hash.wrapping_add(other.hash);
        self.failures.extend(other.failures);
    }

    /// Marks that this campaign had to hit and did not.
    #[must_use]
    pub fn owed(&self, options: &Options) -> Vec<Mark> {
        let demanded = self.seeds >= marks_demanded_from(options.level)
            && options.planted.is_none()
            && options.choice.meets_every_mark();
        if demanded { self.marks.missing().collect() } else { Vec::new() }
    }
}

/// How far a campaign is; may be read at any time from another thread.
#[derive(Debug, Default)]
pub struct Live {
    /// Seeds done.
    pub seeds: AtomicU64,
    /// Seeds that failed.
    pub failures: AtomicU64,
    /// Virtual time so far, nanoseconds.
    pub virtual_ns: AtomicU64,
    /// Faults carried out.
    pub faults: AtomicU64,
    /// A bit for each mark hit.
    marks: [AtomicU64; 2],
}

const _: () = assert!(Mark::ALL.len() <= 128, "a bit for each mark");

impl Live {
    fn add(&self, r: &Report, failed: bool) {
        self.seeds.fetch_add(1, Relaxed);
        self.failures.fetch_add(u64::from(failed), Relaxed);
        self.virtual_ns.fetch_add(r.virtual_ns, Relaxed);
        self.faults.fetch_add(r.faults.iter().sum(), Relaxed);
        for m in Mark::ALL.iter().filter(|m| r.marks.count(**m) > 0) {
            let ix = *m as usize;
            self.marks[ix / 64].fetch_or(1 << (ix % 64), Relaxed);
        }
    }

    /// How many marks were hit.
    #[must_use]
    pub fn marks_hit(&self) -> u32 {
        self.marks.iter().map(|bits| bits.load(Relaxed).count_ones()).sum()
    }
}

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The run that was made, or the one of several that failed.
    pub case: Case,
    /// What it found.
    pub report: Report,
    /// It was run twice.
    pub twice: bool,
    /// Its deployments were compared.
    pub compared: bool,
}

/// Runs one seed, twice if it is its turn or it fails, and compares its
/// deployments if it is its turn; the report holds what was found, a difference
/// between two runs included. `None` when the planted bug cannot be on.
#[must_use]
pub fn one(case: Case, keep: Keep) -> Option<Ran> {
    let its_turn = mix(case.seed).is_multiple_of(REPEAT_ONE_IN);
    let keep = if its_turn && keep == Keep::Outcome { Keep::Steps } else { keep };
    let ran = single(case, keep, its_turn)?;
    if case.diff || !diff::its_turn(case.seed) || ran.report.violation.is_some() {
        return Some(ran);
    }
    let compared = single(Case { diff: true, ..case }, keep, false)?;
    if compared.report.violation.is_some() {
        return Some(compared);
    }
    Some(Ran { compared: true, ..ran })
}

fn single(case: Case, keep: Keep, twice: bool) -> Option<Ran> {
    let mut report = perform(case.plan(), case.planted, keep)?;
    let twice = twice || report.violation.is_some();
    if twice && let Some(text) = difference(&report, case.planted) {
        let before = report.violation.map_or_else(String::new, |v| format!(" (and {}: {})", v.id, v.text));
        report.violation = Some(Violation::new("D1", format!("two runs of one tape differ: {text}{before}")));
    }
    Some(Ran { case, report, twice, compared: case.diff })
}

/// The case of a seed.
#[must_use]
pub fn case(options: &Options, seed: u64) -> Case {
    let profile = options.choice.of(seed).name;
    Case { seed, profile, planted: options.planted, l1: options.level == Level::L1, diff: options.diff }
}

/// Whether a planted bug can be on in this build; if not, why.
///
/// # Errors
/// It is in no catalogue, or the build lacks the feature `planted`.
pub fn check_planted(bug: u16) -> Result<(), String> {
    let can = planted::set(Some(bug));
    planted::set(None);
    if can {
        Ok(())
    } else if planted::BUGS.iter().any(|b| b.id == bug) {
        Err(format!("planted bug {bug} is not in this build: build with --features planted"))
    } else {
        Err(format!("planted bug {bug} is in no catalogue: `nowconnect-sim planted --list` shows them"))
    }
}

/// Runs a campaign. `found` is called with each failing seed as it comes, in
/// no order of seeds, on the thread that found it.
pub fn run(options: &Options, live: &Live, found: &(dyn Fn(&Failure) + Sync)) -> Totals {
    let next = AtomicU64::new(options.seeds.start);
    let end = AtomicU64::new(options.seeds.end);
    let mut totals = Totals::default();
    std::thread::scope(|scope| {
        let jobs: Vec<_> =
            (0..options.jobs.max(1)).map(|_| scope.spawn(|| job(options, &next, &end, live, found))).collect();
        for job in jobs {
            match job.join() {
                Ok(part) => totals.merge(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    totals.failures.sort_by_key(|f| f.case.seed);
    if options.stop_at_first {
        totals.failures.truncate(1);
    }
    totals
}

fn job(options: &Options, next: &AtomicU64, end: &AtomicU64, live: &Live, found: &dyn Fn(&Failure)) -> Totals {
    let mut totals = Totals::default();
    loop {
        let seed = next.fetch_add(1, Relaxed);
        // Seeds below the first failing one are run in any case, so that the
        // first one is the first one whoever finds it.
        if seed >= end.load(Relaxed) {
            return totals;
        }
        let Some(ran) = one(case(options, seed), Keep::Outcome) else { return totals };
        let Ran { case, report, twice, compared } = ran;
        totals.add(&report);
        totals.repeated += u64::from(twice);
        totals.compared += u64::from(compared);
        live.add(&report, report.violation.is_some());
        if let Some(violation) = report.violation {
            if options.stop_at_first {
                end.fetch_min(seed, Relaxed);
            }
            let (events, virtual_ns, hash) = (report.events, report.virtual_ns, report.hash);
            let failure = Failure { case, violation, events, virtual_ns, hash };
            found(&failure);
            totals.failures.push(failure);
        }
    }
}

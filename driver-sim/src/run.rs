//! One run: from a plan to a report. A panic inside a machine is a violation
//! like any other (D2), under the invariant its message names.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::diff;
use crate::faults::Class;
use crate::marks::Marks;
use crate::panics::{Running, place};
use crate::plan::{Level, Plan, Twin};
use crate::profile::Profile;
use crate::share::{self, Span};
use crate::tape::{Tape, mix};
use crate::trace::{Line, Trace};
use crate::world::{Violation, World};

/// What to run, and what to keep of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Only the outcome.
    #[default]
    Outcome,
    /// Every line of the story.
    Story,
    /// The hash after each event.
    Steps,
}

/// What came out of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The plan.
    pub plan: Plan,
    /// What was found wrong.
    pub violation: Option<Violation>,
    /// Hash of every event and output.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// Virtual time, nanoseconds.
    pub virtual_ns: u64,
    /// Faults carried out, in the order of [`Class::ALL`].
    pub faults: [u64; Class::ALL.len()],
    /// Inputs, timeouts and notes given to machines: core events.
    pub inputs: u64,
    /// Payload bytes that reached a client or a target.
    pub delivered: u64,
    /// WebSocket messages delivered.
    pub messages: u64,
    /// Rare circumstances met.
    pub marks: Marks,
    /// Vulnerable moments that did something.
    pub triggered: Vec<crate::faults::Triggered>,
    /// When each of them came, nanoseconds.
    pub triggered_at: Vec<u64>,
    /// What each client and each target saw.
    pub transcripts: Vec<diff::Transcript>,
    /// How long each of them took.
    pub spans: Vec<Span>,
    /// The story, if it was kept.
    pub lines: Vec<Line>,
    /// The hash after each event, if it was kept.
    pub steps: Vec<u64>,
}

/// The invariant that a panic's message names, by convention at its end: "(B5)".
fn named_in(message: &str) -> Option<&str> {
    let (_, tail) = message.rsplit_once('(')?;
    let (id, _) = tail.split_once(')')?;
    let mut chars = id.chars();
    (chars.next().is_some_and(|c| "SOIBALMDC".contains(c)) && id.len() <= 3 && chars.all(|c| c.is_ascii_digit()))
        .then_some(id)
}

/// Draws the plan of a seed.
#[must_use]
pub fn plan(seed: u64, profile: &Profile, level: Level) -> Plan {
    Plan::draw(&Tape::from_seed(seed), seed, profile, level)
}

/// Carries out a plan.
#[must_use]
pub fn run(plan: Plan, keep: Keep) -> Report {
    let tape = Tape::from_seed(plan.seed);
    run_on(plan, tape, keep)
}

/// Carries out a plan with one planted bug on (`nowconnect_core::planted`), and
/// switches it off again whatever happens. `None` when that bug cannot be on:
/// it is in no catalogue, or this build lacks the feature `planted`. A caller
/// that counts catches must look at that.
#[must_use]
pub fn run_planted(plan: Plan, bug: u16, keep: Keep) -> Option<Report> {
    let _off = Off;
    nowconnect_core::planted::set(Some(bug)).then(|| run(plan, keep))
}

/// Switches planted bugs off when it goes.
struct Off;

impl Drop for Off {
    fn drop(&mut self) {
        nowconnect_core::planted::set(None);
    }
}

/// Carries out a plan on a tape of one's own, and whatever it is compared with.
#[must_use]
pub fn run_on(plan: Plan, tape: Tape, keep: Keep) -> Report {
    let report = match &plan.twin {
        None => return alone(plan, tape, keep),
        Some(Twin::Modes) => diff::compare(&plan, |p| alone(p, tape.clone(), keep)),
        Some(Twin::Without(stalled)) => share::compare(&plan, stalled, |p, round| {
            let other = || Tape::from_seed(mix(plan.seed.wrapping_add(round)));
            alone(p, if round == 0 { tape.clone() } else { other() }, keep)
        }),
    };
    Report { plan, ..report }
}

/// Carries out one plan.
fn alone(plan: Plan, tape: Tape, keep: Keep) -> Report {
    let trace = match keep {
        Keep::Outcome => Trace::default(),
        Keep::Story => Trace::verbose(),
        Keep::Steps => Trace::stepping(),
    };
    let mut world = World::new(plan, tape, trace);
    let running = Running::begin();
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run()));
    drop(running);
    if let Err(panic) = outcome {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "a panic without words".to_owned());
        let id = named_in(&text).unwrap_or("D2").to_owned();
        world.violation = Some(Violation::new(
            id,
            match place() {
                Some(place) => format!("panic at {place}: {text}"),
                None => format!("panic: {text}"),
            },
        ));
    }
    world.collect_marks();
    Report {
        violation: world.violation.take(),
        hash: world.trace.hash(),
        events: world.trace.events,
        virtual_ns: world.now,
        faults: world.faults_done,
        inputs: world.inputs,
        delivered: world.check.delivered,
        messages: world.check.messages,
        marks: std::mem::take(&mut world.marks),
        triggered: std::mem::take(&mut world.triggered),
        triggered_at: std::mem::take(&mut world.triggered_at),
        transcripts: world.transcripts(),
        spans: world.spans(),
        lines: world.trace.lines().to_vec(),
        steps: world.trace.steps().to_vec(),
        plan: world.plan,
    }
}

//! Commands over many seeds: `run`, `hashes`, `marks`.

use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;

use nowconnect_sim::campaign::{self, Failure, Live, Options, Totals, marks_demanded_from};
use nowconnect_sim::explain::seconds;
use nowconnect_sim::marks::Mark;
use nowconnect_sim::repeat::perform;
use nowconnect_sim::run::Keep;

use super::clock::Start;
use super::{End, Stop, Which, by_class, jobs, mark, progress, range, single};

/// Failing seeds that are told in full.
const FAILURES_TOLD: usize = 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// Seeds A to B-1
    #[arg(long, value_name = "A..B", value_parser = range, required_unless_present_any = ["seed", "plan"], conflicts_with_all = ["seed", "plan"])]
    seeds: Option<Range<u64>>,
    /// One seed
    #[arg(long, conflicts_with = "plan")]
    seed: Option<u64>,
    /// A plan from a file (see `plan` and `shrink`)
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    #[command(flatten)]
    which: Which,
    /// Threads; all cores if not said
    #[arg(long)]
    jobs: Option<usize>,
    /// Stop at the first seed that fails
    #[arg(long)]
    first: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Hashes {
    /// Seeds A to B-1
    #[arg(long, value_name = "A..B", value_parser = range)]
    seeds: Range<u64>,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Marks {
    /// Run these seeds and count
    #[arg(long, value_name = "A..B", value_parser = range)]
    seeds: Option<Range<u64>>,
    #[command(flatten)]
    which: Which,
    /// Threads; all cores if not said
    #[arg(long)]
    jobs: Option<usize>,
}

fn options(which: &Which, seeds: Range<u64>, wanted: Option<usize>, first: bool) -> Result<Options, Stop> {
    if let Some(bug) = which.planted {
        campaign::check_planted(bug).map_err(Stop::Usage)?;
    }
    Ok(Options {
        seeds,
        choice: which.profile,
        level: which.level.into(),
        planted: which.planted,
        diff: which.diff,
        jobs: jobs(wanted),
        stop_at_first: first,
    })
}

fn conduct(options: &Options, start: &Start) -> Totals {
    let live = Live::default();
    let seeds = options.seeds.end - options.seeds.start;
    let lines = progress::Lines::default();
    let found = |f: &Failure| lines.say(format!("{} breaks {}", f.case.arguments(), f.violation.id));
    progress::shown(&live, &lines, seeds, start, || campaign::run(options, &live, &found))
}

pub(crate) fn run(args: &Run, out: &mut dyn Write) -> Result<End, Stop> {
    let Some(seeds) = args.seeds.clone() else {
        return single::run(&args.which, args.seed, args.plan.as_deref(), out);
    };
    let options = options(&args.which, seeds, args.jobs, args.first)?;
    let start = Start::now();
    let totals = conduct(&options, &start);
    let (real, cpu) = (start.real(), start.cpu());
    let owed = totals.owed(&options);
    summary(&totals, &options, real, cpu, out)?;
    if !owed.is_empty() {
        writeln!(out, "\nFAILED: a campaign of this size must meet every mark, and never met")?;
        for m in &owed {
            writeln!(out, "  {}", mark(*m))?;
        }
    }
    Ok(if totals.failures.is_empty() && owed.is_empty() { End::Held } else { End::Failed })
}

fn summary(t: &Totals, options: &Options, real: f64, cpu: f64, out: &mut dyn Write) -> Result<(), Stop> {
    for f in t.failures.iter().take(FAILURES_TOLD) {
        let at = seconds(f.virtual_ns);
        writeln!(out, "FAILED {} at event {}, {at}, trace {:016x}", f.violation.id, f.events, f.hash)?;
        writeln!(out, "  {}", f.violation.text.trim_end().replace('\n', "\n  "))?;
        writeln!(out, "  {}{}\n", f.case.command("run"), campaign::at_commit())?;
    }
    if t.failures.len() > FAILURES_TOLD {
        let all: Vec<String> = t.failures.iter().map(|f| format!("{} {}", f.case.seed, f.violation.id)).collect();
        writeln!(out, "all seeds that failed: {}\n", all.join(", "))?;
    }
    let (virtual_s, faults) = (t.virtual_ns as f64 / 1e9, t.faults.iter().sum::<u64>());
    writeln!(out, "seeds     {}, {} failed", t.seeds, t.failures.len())?;
    writeln!(out, "time      {virtual_s:.0} s virtual, {real:.1} s real, {cpu:.1} s CPU, {} jobs", options.jobs)?;
    writeln!(
        out,
        "speed     {:.0} x real time per CPU second, {:.0} core events per CPU second ({} core events, {} events)",
        virtual_s / cpu,
        t.inputs as f64 / cpu,
        t.inputs,
        t.events
    )?;
    writeln!(out, "payload   {} B delivered in {} messages", t.delivered, t.messages)?;
    writeln!(out, "faults    {faults}: {}", by_class(&t.faults))?;
    let different = t.failures.iter().filter(|f| f.violation.id == "D1").count();
    writeln!(out, "repeated  {} seeds run twice, {different} differed", t.repeated)?;
    let unlike = t.failures.iter().filter(|f| f.case.diff).count();
    writeln!(
        out,
        "compared  {} seeds run without HA, in mode off, in mode shadow and in one of them beside active hubs, {unlike} differed",
        t.compared
    )?;
    let never: Vec<String> = t.marks.missing().map(|m| format!("{m:?}")).collect();
    let apply = Mark::ALL.iter().filter(|m| m.later().is_none()).count();
    let hit = apply - never.len();
    let from = marks_demanded_from(options.level);
    let demanded = if options.planted.is_some() || !options.choice.meets_every_mark() {
        "; not demanded of this kind of campaign".to_owned()
    } else if t.seeds < from {
        format!("; not demanded below {from} seeds")
    } else {
        String::new()
    };
    let never = match never.len() {
        0 => String::new(),
        // Few seeds meet few.
        n if n > 8 && !demanded.is_empty() => String::new(),
        _ => format!("; never {}", never.join(", ")),
    };
    writeln!(out, "marks     {hit} of {apply} hit{demanded}{never}")?;
    // Of a campaign that may stop anywhere it says nothing.
    if !options.stop_at_first {
        writeln!(out, "hash      {:016x}", t.hash)?;
    }
    Ok(())
}

pub(crate) fn hashes(args: &Hashes, out: &mut dyn Write) -> Result<End, Stop> {
    let options = options(&args.which, args.seeds.clone(), Some(1), false)?;
    for seed in options.seeds.clone() {
        if let Some(report) = perform(campaign::case(&options, seed).plan(), options.planted, Keep::Outcome) {
            writeln!(out, "{seed} {:016x}", report.hash)?;
        }
    }
    Ok(End::Held)
}

pub(crate) fn marks(args: &Marks, out: &mut dyn Write) -> Result<End, Stop> {
    let Some(seeds) = args.seeds.clone() else {
        for m in Mark::ALL {
            let later = m.later().map_or_else(String::new, |why| format!(" (not yet: {why})"));
            writeln!(out, "{}{later}", mark(*m))?;
        }
        return Ok(End::Held);
    };
    let options = options(&args.which, seeds, args.jobs, false)?;
    let totals = conduct(&options, &Start::now());
    for m in Mark::ALL {
        writeln!(out, "{:>10}  {}", totals.marks.count(*m), mark(*m))?;
    }
    let missed = totals.marks.missing().next().is_some();
    Ok(if missed { End::Failed } else { End::Held })
}

//! Commands about one run: `run --seed`, `explain`, `shrink`, `plan`.

use std::io::Write;
use std::path::{Path, PathBuf};

use nowconnect_sim::campaign::{self, Case};
use nowconnect_sim::emit;
use nowconnect_sim::explain::{self, seconds};
use nowconnect_sim::plan::{Level, Plan};
use nowconnect_sim::repeat::{difference, perform};
use nowconnect_sim::run::{Keep, Report};
use nowconnect_sim::shrink::Size;

use super::clock::Start;
use super::{End, Stop, Which, by_class};

/// Events told by `explain`.
const EVENTS: u64 = 200;
/// Seconds that `shrink` takes at most.
const SECONDS: f64 = 120.0;

/// Which run.
#[derive(Debug, clap::Args)]
pub(crate) struct One {
    /// The seed
    #[arg(long, required_unless_present = "plan", conflicts_with = "plan")]
    seed: Option<u64>,
    /// A plan from a file instead
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    #[command(flatten)]
    one: One,
    /// How many of the last events
    #[arg(long, default_value_t = EVENTS)]
    events: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Shrink {
    #[command(flatten)]
    one: One,
    /// Write the test to this file instead of the output
    #[arg(long, value_name = "FILE")]
    test: Option<PathBuf>,
    /// Write the plan to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Seconds it may take
    #[arg(long, default_value_t = SECONDS)]
    seconds: f64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Print {
    #[command(flatten)]
    one: One,
}

/// A run that was asked for, its name, and the arguments that name it.
struct Asked {
    plan: Plan,
    planted: Option<u16>,
    name: String,
    arguments: String,
}

impl Asked {
    fn command(&self, what: &str) -> String {
        let features = if self.planted.is_some() { " --features planted" } else { "" };
        format!("cargo run --release -p nowconnect-sim{features} -- {what} {}", self.arguments)
    }
}

fn asked(which: &Which, seed: Option<u64>, file: Option<&Path>) -> Result<Asked, Stop> {
    if let Some(bug) = which.planted {
        campaign::check_planted(bug).map_err(Stop::Usage)?;
    }
    let planted = which.planted;
    if let Some(file) = file {
        if which.diff {
            return Err(Stop::Usage(
                "--diff and --plan: a plan says itself what it is compared with (`twin`)".to_owned(),
            ));
        }
        let named = |e: String| Stop::Usage(format!("{}: {e}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|e| named(e.to_string()))?;
        let plan = Plan::from_json(&text).map_err(named)?;
        let mut arguments = format!("--plan {}", file.display());
        if let Some(bug) = planted {
            arguments.push_str(&format!(" --planted {bug}"));
        }
        return Ok(Asked { plan, planted, name: arguments.clone(), arguments });
    }
    let seed = seed.unwrap_or_default();
    let profile = which.profile.of(seed);
    let level = Level::from(which.level);
    let case = Case { seed, profile: profile.name, planted, l1: level == Level::L1, diff: which.diff };
    let name = format!("seed {seed} of {}", profile.name);
    Ok(Asked { plan: case.plan(), planted, name, arguments: case.arguments() })
}

impl One {
    fn asked(&self) -> Result<Asked, Stop> {
        asked(&self.which, self.seed, self.plan.as_deref())
    }
}

fn carried_out(asked: &Asked, keep: Keep) -> Result<Report, Stop> {
    perform(asked.plan.clone(), asked.planted, keep)
        .ok_or_else(|| Stop::Usage("the planted bug cannot be on in this build".to_owned()))
}

pub(crate) fn run(which: &Which, seed: Option<u64>, file: Option<&Path>, out: &mut dyn Write) -> Result<End, Stop> {
    let asked = asked(which, seed, file)?;
    let report = carried_out(&asked, Keep::Steps)?;
    writeln!(out, "{}", explain::outcome(&asked.name, &report))?;
    writeln!(out, "  faults: {}", by_class(&report.faults))?;
    let different = difference(&report, asked.planted);
    if let Some(text) = &different {
        writeln!(out, "FAILED D1: two runs of one tape differ: {text}")?;
    }
    if let Some(v) = &report.violation {
        writeln!(out, "  {}", v.text.trim_end().replace('\n', "\n  "))?;
        writeln!(out, "  again:   {}{}", asked.command("run"), campaign::at_commit())?;
        writeln!(out, "  explain: {}", asked.command("explain"))?;
        writeln!(out, "  shrink:  {}", asked.command("shrink"))?;
    }
    Ok(if report.violation.is_none() && different.is_none() { End::Held } else { End::Failed })
}

pub(crate) fn explain(args: &Explain, out: &mut dyn Write) -> Result<End, Stop> {
    let asked = args.one.asked()?;
    let report = carried_out(&asked, Keep::Story)?;
    write!(out, "{}", explain::explain(&asked.name, &asked.command("run"), &report, args.events))?;
    Ok(if report.violation.is_none() { End::Held } else { End::Failed })
}

pub(crate) fn print(args: &Print, out: &mut dyn Write) -> Result<End, Stop> {
    writeln!(out, "{}", emit::json(&args.one.asked()?.plan))?;
    Ok(End::Held)
}

pub(crate) fn shrink(args: &Shrink, out: &mut dyn Write) -> Result<End, Stop> {
    let asked = args.one.asked()?;
    let start = Start::now();
    let mut told = 0.0;
    let mut go_on = |runs: u64, size: &Size| {
        if start.real() >= told + 5.0 {
            told = start.real();
            let _ = writeln!(std::io::stderr(), "{runs} runs: {size}");
        }
        start.real() < args.seconds
    };
    let shrunk = nowconnect_sim::shrink::shrink(asked.plan.clone(), asked.planted, &mut go_on).map_err(Stop::Usage)?;
    let Some(shrunk) = shrunk else {
        writeln!(out, "held: {}, nothing to shrink", asked.name)?;
        return Ok(End::Held);
    };
    let _ = writeln!(
        std::io::stderr(),
        "{} after {} runs in {:.0} s{}: from {} to {}; {} at {}",
        asked.name,
        shrunk.runs,
        start.real(),
        if shrunk.done { "" } else { " (time is up)" },
        shrunk.before,
        shrunk.after,
        shrunk.violation.id,
        seconds(shrunk.plan.safety_ns),
    );
    let test =
        emit::test(&shrunk.plan, &shrunk.violation, asked.planted, &format!("nowconnect-sim run {}", asked.arguments));
    let write_to = |file: &Path, text: &str| {
        std::fs::write(file, text).map_err(|e| Stop::Usage(format!("{}: {e}", file.display())))
    };
    if let Some(file) = &args.json {
        write_to(file, &emit::json(&shrunk.plan))?;
    }
    match &args.test {
        Some(file) => write_to(file, &test)?,
        None => write!(out, "{test}")?,
    }
    Ok(End::Failed)
}

//! `planted`: the table of planted bugs. A catch counts only if the same plan
//! holds without the bug.

use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::sync_channel;

use nowconnect_core::planted::{Applies, BUGS, Bug};
use nowconnect_sim::campaign;
use nowconnect_sim::plan::Level;
use nowconnect_sim::profile::{Choice, MIXED};
use nowconnect_sim::repeat::{difference, perform};
use nowconnect_sim::run::{Keep, plan};

use super::{End, LevelName, Stop, choice, jobs, range};

#[derive(Debug, clap::Args)]
pub(crate) struct Planted {
    /// Seeds to look through for each bug
    #[arg(long, value_name = "A..B", value_parser = range, default_value = "0..2000")]
    seeds: Range<u64>,
    /// Only these bugs
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    only: Vec<u16>,
    /// Only say what there is
    #[arg(long)]
    list: bool,
    /// How runs are drawn
    #[arg(long, default_value = MIXED, value_parser = choice)]
    profile: Choice,
    /// L0: whole messages; L1: bytes through the WebSocket codec
    #[arg(long, default_value = "L0", ignore_case = true)]
    level: LevelName,
    /// Threads; all cores if not said
    #[arg(long)]
    jobs: Option<usize>,
}

/// What became of a bug.
enum Fate {
    Caught { seed: u64, profile: &'static str, after: u64, by: String },
    Missed { after: u64 },
    Elsewhere(String),
}

fn elsewhere(bug: &Bug) -> Option<String> {
    match bug.applies {
        Applies::Core | Applies::Simulator => None,
        Applies::Driver => Some(format!("production driver only: {}", bug.needs)),
        Applies::Later(why) => Some(format!("later: {why}")),
    }
}

/// Looks through seeds until the bug is noticed.
fn hunt(bug: &Bug, args: &Planted) -> Fate {
    if let Some(why) = elsewhere(bug) {
        return Fate::Elsewhere(why);
    }
    let level = Level::from(args.level);
    for seed in args.seeds.clone() {
        let profile = args.profile.of(seed);
        let case = campaign::Case { seed, profile: profile.name, planted: Some(bug.id), l1: level == Level::L1 };
        let Some((report, _)) = campaign::one(case, args.profile, Keep::Outcome) else {
            return Fate::Elsewhere("not in this build".to_owned());
        };
        let Some(violation) = report.violation else { continue };
        let holds = perform(plan(seed, profile, level), None, Keep::Outcome)
            .is_some_and(|r| r.violation.is_none() && difference(&r, None).is_none());
        if holds {
            let after = seed - args.seeds.start + 1;
            return Fate::Caught { seed, profile: profile.name, after, by: violation.id };
        }
    }
    Fate::Missed { after: args.seeds.end - args.seeds.start }
}

fn row(bug: &Bug, fate: &Fate) -> String {
    let expected = if bug.oracle.is_empty() { String::new() } else { format!(" (expected {})", bug.oracle.join(" ")) };
    let what = match fate {
        Fate::Caught { seed, profile, after, by } => {
            let other = if bug.oracle.is_empty() || bug.oracle.contains(&by.as_str()) { "" } else { &expected };
            format!("caught   {after:>5}  {by:<4} seed {seed} of {profile}{other}")
        }
        Fate::Missed { after } => format!("MISSED   {after:>5}  {}{expected}", "-"),
        Fate::Elsewhere(why) => format!("-                {why}"),
    };
    format!("{:>5}  {what}\n       {}", bug.id, bug.what)
}

pub(crate) fn planted(args: &Planted, out: &mut dyn Write) -> Result<End, Stop> {
    if let Some(id) = args.only.iter().find(|id| BUGS.iter().all(|b| b.id != **id)) {
        return Err(Stop::Usage(format!("planted bug {id} is in no catalogue: `nowconnect-sim planted --list`")));
    }
    let wanted: Vec<&Bug> = BUGS.iter().filter(|b| args.only.is_empty() || args.only.contains(&b.id)).collect();
    if args.list {
        for bug in wanted {
            let why = elsewhere(bug).map_or_else(String::new, |why| format!(" [{why}]"));
            writeln!(out, "{:>5}  {}{why}", bug.id, bug.what)?;
        }
        return Ok(End::Held);
    }
    if let Some(first) = wanted.first() {
        campaign::check_planted(first.id).map_err(Stop::Usage)?;
    }
    writeln!(out, "   id  result   seeds  by   first seed")?;
    out.flush()?;
    let next = AtomicUsize::new(0);
    let (mut caught, mut soon, mut missed) = (0, 0, 0);
    let (send, receive) = sync_channel::<(usize, Fate)>(wanted.len());
    std::thread::scope(|scope| {
        for _ in 0..jobs(args.jobs) {
            let send = send.clone();
            scope.spawn(|| {
                // Moved in: the channel ends when the last job does.
                let send = send;
                loop {
                    let ix = next.fetch_add(1, Relaxed);
                    let Some(bug) = wanted.get(ix) else { return };
                    if send.send((ix, hunt(bug, args))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        // In the catalogue's order, each as soon as those before it are known.
        let mut waiting: Vec<Option<Fate>> = wanted.iter().map(|_| None).collect();
        let mut shown = 0;
        for (ix, fate) in receive {
            if let Some(place) = waiting.get_mut(ix) {
                *place = Some(fate);
            }
            while let (Some(bug), Some(Some(fate))) = (wanted.get(shown), waiting.get(shown)) {
                match fate {
                    Fate::Caught { after, .. } => {
                        caught += 1;
                        soon += u32::from(*after <= 200);
                    }
                    Fate::Missed { .. } => missed += 1,
                    Fate::Elsewhere(_) => {}
                }
                writeln!(out, "{}", row(bug, fate))?;
                out.flush()?;
                shown += 1;
            }
        }
        Ok::<(), Stop>(())
    })?;
    writeln!(out, "{caught} caught, {soon} of them within 200 seeds; {missed} missed")?;
    Ok(if missed == 0 { End::Held } else { End::Failed })
}

//! `planted`: the table of planted bugs in words. What counts as a catch is the
//! library's (`table`).

use std::io::Write;
use std::ops::Range;

use nowconnect_core::planted::{BUGS, Bug};
use nowconnect_sim::campaign;
use nowconnect_sim::plan::Level;
use nowconnect_sim::profile::{Choice, MIXED};
use nowconnect_sim::table::{Outcome, Row, SOON, Search, elsewhere, table};

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

fn line(row: &Row) -> String {
    let oracle = row.bug.oracle.join(" ");
    let expected =
        |shown: bool| if shown && !oracle.is_empty() { format!(" (expected {oracle})") } else { String::new() };
    let what = match &row.outcome {
        Outcome::Caught { case, after, violation } => {
            // Noticed by something else than its oracle: that oracle is asleep,
            // or the catalogue lacks one.
            let caught = if row.as_expected() { "caught  " } else { "BY OTHER" };
            let by = expected(!row.as_expected());
            format!("{caught} {after:>5}  {:<4} {}{by}", violation.id, case.arguments())
        }
        Outcome::Missed { after } => format!("MISSED   {after:>5}  -{}", expected(true)),
        Outcome::Elsewhere(why) => format!("-            -  -    {why}"),
    };
    format!("{:>5}  {what}\n       {}", row.bug.id, row.bug.what)
}

pub(crate) fn planted(args: &Planted, out: &mut dyn Write) -> Result<End, Stop> {
    if let Some(id) = args.only.iter().find(|id| BUGS.iter().all(|b| b.id != **id)) {
        return Err(Stop::Usage(format!("planted bug {id} is in no catalogue: `nowconnect-sim planted --list`")));
    }
    let wanted: Vec<&'static Bug> = BUGS.iter().filter(|b| args.only.is_empty() || args.only.contains(&b.id)).collect();
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
    let search = Search { seeds: args.seeds.clone(), choice: args.profile, level: Level::from(args.level) };
    let (mut caught, mut soon, mut missed, mut not_here, mut other) = (0, 0, 0, 0, 0);
    table(&wanted, &search, jobs(args.jobs), |row| {
        match &row.outcome {
            Outcome::Caught { .. } => caught += 1,
            Outcome::Missed { .. } => missed += 1,
            Outcome::Elsewhere(_) => not_here += 1,
        }
        other += u32::from(!row.as_expected() && matches!(row.outcome, Outcome::Caught { .. }));
        soon += u32::from(row.is_soon());
        writeln!(out, "{}", line(row))?;
        out.flush()
    })?;
    writeln!(
        out,
        "{caught} caught, {soon} of them within {SOON} seeds, {other} by another oracle than expected; {missed} missed; \
         {not_here} not to be made here"
    )?;
    Ok(if missed == 0 && other == 0 { End::Held } else { End::Failed })
}

//! The command line: its words, and which command does what. What a run is and
//! what it finds is the library's.

mod clock;
mod planted;
mod progress;
mod single;
mod sweep;

use std::io::{self, Write};
use std::ops::Range;

use clap::{Parser, Subcommand, ValueEnum};
use nowconnect_sim::faults::Class;
use nowconnect_sim::marks::Mark;
use nowconnect_sim::plan::Level;
use nowconnect_sim::profile::{Choice, MIXED, PROFILES};

/// Runs nowconnect's machines in a simulated world, breaks it, and checks what must hold.
///
/// A seed and a profile are a run, for ever. Exit code 0: everything held; 1: a
/// violation; 2: usage.
#[derive(Debug, Parser)]
#[command(name = "nowconnect-sim", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one seed, a range of seeds, or a plan from a file
    Run(sweep::Run),
    /// Tell a run: the plan, the last events, the streams concerned
    Explain(single::Explain),
    /// Make a failing run small and print it as a test
    Shrink(single::Shrink),
    /// Print the plan of a run as JSON
    Plan(single::Print),
    /// Print a line `seed hash` for each seed
    Hashes(sweep::Hashes),
    /// The table of planted bugs: which are noticed, how soon, by what
    Planted(planted::Planted),
    /// The rare circumstances a campaign must meet; with --seeds: how often it did
    Marks(sweep::Marks),
    /// The kinds of runs
    Profiles,
}

/// Which run.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Which {
    /// How a run is drawn; `mixed`: even seeds swarm, odd seeds all other profiles in turn
    #[arg(long, default_value = MIXED, value_parser = choice)]
    pub(crate) profile: Choice,
    /// Switch this planted bug on (needs --features planted)
    #[arg(long, value_name = "ID")]
    pub(crate) planted: Option<u16>,
    /// L0: whole messages; L1: bytes through the WebSocket codec
    #[arg(long, default_value = "L0", ignore_case = true)]
    pub(crate) level: LevelName,
    /// Compare: without HA, in mode off and in mode shadow clients must see the same
    #[arg(long)]
    pub(crate) diff: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LevelName {
    #[value(name = "L0")]
    L0,
    #[value(name = "L1")]
    L1,
}

impl From<LevelName> for Level {
    fn from(name: LevelName) -> Self {
        match name {
            LevelName::L0 => Self::L0,
            LevelName::L1 => Self::L1,
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Held,
    Failed,
}

/// Why a command did not end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Wrong arguments, in words.
    Usage(String),
    /// Its output could not be written.
    Output(io::Error),
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Self {
        Self::Output(e)
    }
}

/// `A..B`: from A, without B.
pub(crate) fn range(text: &str) -> Result<Range<u64>, String> {
    let expected = "expected A..B with A below B, for example 0..1000";
    let (from, to) = text.split_once("..").ok_or(expected)?;
    let number = |s: &str| s.trim().replace('_', "").parse::<u64>().map_err(|_| expected.to_owned());
    let (from, to) = (number(from)?, number(to)?);
    if from < to { Ok(from..to) } else { Err(expected.to_owned()) }
}

fn choice(name: &str) -> Result<Choice, String> {
    Choice::named(name).ok_or_else(|| {
        let names: Vec<&str> = PROFILES.iter().map(|p| p.name).collect();
        format!("expected {MIXED} or one of {}", names.join(", "))
    })
}

/// Threads for a campaign, if nobody says.
pub(crate) fn jobs(wanted: Option<usize>) -> usize {
    wanted.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).clamp(1, 256)
}

/// Faults by class, in words.
pub(crate) fn by_class(faults: &[u64; Class::ALL.len()]) -> String {
    let words: Vec<String> = Class::ALL.iter().zip(faults).map(|(c, n)| format!("{} {n}", c.name())).collect();
    words.join(", ")
}

/// A mark's name on the command line.
pub(crate) fn mark(mark: Mark) -> String {
    format!("{mark:?}: {}", mark.text())
}

pub(crate) fn carry_out(command: Command, out: &mut dyn Write) -> Result<End, Stop> {
    match command {
        Command::Run(args) => sweep::run(&args, out),
        Command::Explain(args) => single::explain(&args, out),
        Command::Shrink(args) => single::shrink(&args, out),
        Command::Plan(args) => single::print(&args, out),
        Command::Hashes(args) => sweep::hashes(&args, out),
        Command::Planted(args) => planted::planted(&args, out),
        Command::Marks(args) => sweep::marks(&args, out),
        Command::Profiles => {
            writeln!(out, "{MIXED:<22} even seeds swarm, odd seeds all others in turn (the default)")?;
            for p in PROFILES {
                writeln!(out, "{:<22} {}", p.name, p.what)?;
            }
            Ok(End::Held)
        }
    }
}

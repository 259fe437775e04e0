//! The command `nowconnect-sim`: reads arguments, runs one of the commands of
//! `cli`, ends with 0 (all held), 1 (a violation) or 2 (usage).

mod cli;

use std::io::{BufWriter, ErrorKind, Write as _};
use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    nowconnect_sim::panics::keep_quiet();
    let args = cli::Args::parse();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let ended =
        cli::carry_out(args.command, &mut out).and_then(|end| out.flush().map(|()| end).map_err(cli::Stop::from));
    match ended {
        Ok(cli::End::Held) => ExitCode::SUCCESS,
        Ok(cli::End::Failed) => ExitCode::from(1),
        Err(cli::Stop::Usage(text)) => {
            let _ = out.flush();
            let _ = writeln!(std::io::stderr(), "nowconnect-sim: {text}");
            ExitCode::from(2)
        }
        // Whoever read the output has seen enough.
        Err(cli::Stop::Output(e)) if e.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(cli::Stop::Output(e)) => {
            let _ = writeln!(std::io::stderr(), "nowconnect-sim: cannot write: {e}");
            ExitCode::from(1)
        }
    }
}

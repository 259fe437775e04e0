//! `nowconnect drain`: asks a process to leave, then watches until it is gone,
//! as an operator or a `preStop` hook wants it. Says what is left whenever that
//! changes. Asks `/status` only, so it may be broken off without harm.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::ask::{self, Place};
use crate::cli::{AdminArgs, Output, RunError, duration, emit};

/// How often the process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks in a row that must find nobody: the process is gone, not just busy.
const LOOKS_WITHOUT_ANSWER: u32 = 4;

/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Take a hub's drain back, while its listeners are open.
    #[arg(long, conflicts_with_all = ["no_wait", "timeout"])]
    cancel: bool,
    /// Return at once; the process goes on draining and ends by itself.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for the end, such as 2m [default: as long as it takes].
    #[arg(long, value_parser = duration, conflicts_with = "no_wait")]
    timeout: Option<Duration>,
    /// Lines to read, or JSON: the answer as it came, then `drain` of `/status` as often as it says something new.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// The command.
///
/// # Errors
/// When the process refuses or cannot be asked, when the drain is taken back
/// meanwhile, or when `--timeout` has passed (exit code 1).
pub(crate) fn run(args: &DrainArgs) -> Result<(), RunError> {
    let say = |answer: &str, line: &str| match args.output {
        Output::Json => emit(answer),
        Output::Text if line.is_empty() => Ok(()),
        Output::Text => emit(line),
    };
    args.admin.ask(|place| {
        if args.cancel {
            return say(&ask(place, "/undrain")?, "the process stays");
        }
        let answer = ask(place, "/drain")?;
        say(&answer, if args.no_wait { "draining; the process ends by itself" } else { "" })?;
        if args.no_wait { Ok(()) } else { watch(place, args.timeout, args.output) }
    })
}

/// The answer as it came.
fn ask(place: Place<'_>, path: &str) -> Result<String, RunError> {
    let (status, body) = ask::post(place, path, ANSWER_WITHIN)?;
    if status == "200" {
        return Ok(body);
    }
    let answer: Value = serde_json::from_str(&body).unwrap_or_default();
    let why = answer["error"].as_str().map_or_else(|| format!("status {status}"), ask::printable);
    Err(RunError::Failed(why))
}

/// The run of a process, so that the next one at the same place is not taken
/// for it.
fn run_of(status: &Value) -> String {
    format!("{}{}", status["incarnation"], status["instance"])
}

/// One line of what is left.
pub(crate) fn progress(drain: &Value) -> String {
    let number = |path: &str| drain.pointer(path).and_then(Value::as_u64).unwrap_or_default();
    let mut line = format!("{} streams left", number("/streams"));
    if drain["agents"].is_object() {
        let [attached, told, elsewhere] = ["attached", "told", "elsewhere"].map(|k| number(&format!("/agents/{k}")));
        line += &format!("; {attached} agents here, {told} told to go, {elsewhere} attached elsewhere");
    }
    if drain["phase"] == "lameduck" { format!("lame duck: {line}") } else { format!("closed: {line}") }
}

/// Watches until the process has ended.
///
/// # Errors
/// When the drain was taken back, or `within` passed; the drain goes on then.
fn watch(place: Place<'_>, within: Option<Duration>, output: Output) -> Result<(), RunError> {
    // A program is told by the exit code.
    let over = |line: &str| if output == Output::Json { Ok(()) } else { emit(line) };
    let (mut run, mut last, mut missed, mut waited) = (None, String::new(), 0, Duration::ZERO);
    loop {
        match ask::get(place, "/status", ANSWER_WITHIN) {
            Err(_) if missed + 1 < LOOKS_WITHOUT_ANSWER => missed += 1,
            Err(_) => return over("stopped"),
            Ok(body) => {
                missed = 0;
                let status: Value = serde_json::from_str(&body).unwrap_or_default();
                let now = run_of(&status);
                if *run.get_or_insert_with(|| now.clone()) != now {
                    return over("stopped; another process answers there by now");
                }
                if status["drain"].is_null() && status["status"] != "draining" {
                    return Err(RunError::Failed("the drain was taken back".to_owned()));
                }
                let line = progress(&status["drain"]);
                if line != last {
                    match (output, &status["drain"]) {
                        (Output::Text, _) => emit(&line)?,
                        (Output::Json, Value::Null) => {}
                        (Output::Json, drain) => emit(&drain.to_string())?,
                    }
                    last = line;
                }
            }
        }
        if within.is_some_and(|within| waited >= within) {
            return Err(RunError::Failed("--timeout has passed; the process is still draining".to_owned()));
        }
        std::thread::sleep(LOOK_EVERY);
        waited += LOOK_EVERY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn progress_says_what_is_left_of_hub_and_agent() {
        let agents = json!({ "attached": 7, "told": 5, "elsewhere": 4 });
        let hub = json!({ "phase": "lameduck", "streams": 3, "agents": agents });
        let line = "lame duck: 3 streams left; 7 agents here, 5 told to go, 4 attached elsewhere";
        assert_eq!(progress(&hub), line);
        assert_eq!(progress(&json!({ "phase": "closed", "streams": 0 })), "closed: 0 streams left");
    }
}

//! How far a campaign is: a bar on a terminal, else a line now and then.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use nowconnect_sim::campaign::Live;
use nowconnect_sim::marks::Mark;

use super::clock::Start;

/// Seconds between lines where there is no terminal.
const LINE_EVERY_S: f64 = 10.0;
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// In words.
fn told(live: &Live, start: &Start) -> String {
    let (real, virtual_s) = (start.real(), live.virtual_ns.load(Relaxed) as f64 / 1e9);
    format!(
        "{:.0} seeds/s, {:.0}x real time, {} faults, {} of {} marks, {} failed",
        live.seeds.load(Relaxed) as f64 / real,
        virtual_s / real,
        live.faults.load(Relaxed),
        live.marks_hit(),
        Mark::ALL.iter().filter(|m| m.later().is_none()).count(),
        live.failures.load(Relaxed)
    )
}

/// Lines to be shown above the bar.
#[derive(Debug, Default)]
pub(crate) struct Lines(Mutex<Vec<String>>);

impl Lines {
    /// Shows a line soon.
    pub(crate) fn say(&self, line: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Does the work while showing how far it is.
pub(crate) fn shown<T>(live: &Live, lines: &Lines, seeds: u64, start: &Start, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let shower = scope.spawn(|| show(live, lines, seeds, start, &done));
        let result = work();
        done.store(true, Relaxed);
        shower.thread().unpark();
        result
    })
}

fn show(live: &Live, lines: &Lines, seeds: u64, start: &Start, done: &AtomicBool) {
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal { ProgressBar::new(seeds) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}  {eta}") {
        bar.set_style(style);
    }
    let mut next_line = LINE_EVERY_S;
    while !done.load(Relaxed) {
        std::thread::park_timeout(LOOK_EVERY);
        for line in lines.take() {
            bar.suspend(|| {
                let _ = writeln!(std::io::stderr(), "{line}");
            });
        }
        bar.set_position(live.seeds.load(Relaxed));
        bar.set_message(told(live, start));
        if !terminal && start.real() > next_line && !done.load(Relaxed) {
            next_line = start.real() + LINE_EVERY_S;
            let _ = writeln!(std::io::stderr(), "{}/{seeds}  {}", live.seeds.load(Relaxed), told(live, start));
        }
    }
    bar.finish_and_clear();
}

//! One child process: its output is kept line by line, it is killed when
//! dropped, and a test that panics prints the last lines of every process it
//! had, so a failure can be read without running it again.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use rustix::process::Signal;

use crate::wait::eventually;

/// Lines kept per process.
const LINES_KEPT: usize = 20_000;
/// Lines printed when a test fails.
const LINES_SHOWN: usize = 40;

/// The captured output of a process, shared with the threads that read it.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<VecDeque<String>>>);

impl Log {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES_KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The first kept line with `needle` in it.
    #[must_use]
    pub fn find(&self, needle: &str) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().find(|l| l.contains(needle)).cloned()
    }

    /// How many kept lines have `needle` in them.
    #[must_use]
    pub fn count(&self, needle: &str) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|l| l.contains(needle)).count()
    }

    /// The last `n` lines.
    #[must_use]
    pub fn tail(&self, n: usize) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = lines.len().saturating_sub(n);
        lines.iter().skip(skip).fold(String::new(), |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        })
    }
}

/// A running child process.
pub struct Process {
    name: String,
    child: Child,
    /// What it printed, standard output and standard error in one.
    pub log: Log,
}

impl Process {
    /// Starts `command`, capturing its output.
    ///
    /// # Panics
    /// When the program cannot be started.
    #[must_use]
    pub fn spawn(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {name} ({command:?}): {e}"));
        let log = Log::default();
        let out = child.stdout.take().unwrap();
        let err = child.stderr.take().unwrap();
        capture(log.clone(), out);
        capture(log.clone(), err);
        Self { name: name.to_owned(), child, log }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; does nothing when the process has been reaped.
    pub fn signal(&self, signal: Signal) {
        // A pid that does not fit or is gone means there is nobody to signal.
        if let Some(pid) = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Kills it at once and reaps it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its exit status, when it has ended.
    ///
    /// # Panics
    /// When the OS cannot tell.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Whether it still runs, told without reaping it.
    #[must_use]
    pub fn runs(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // After the name in parentheses comes the state; Z is ended and not reaped.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    /// # Panics
    /// When the process has ended, with its last lines.
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.exited() {
            panic!("{} ended: {status}\n{}", self.name, self.log.tail(LINES_SHOWN));
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it still runs after `within`.
    pub async fn wait_exit(&mut self, within: Duration) -> ExitStatus {
        let what = format!("end of {}", self.name);
        let child = std::cell::RefCell::new(&mut self.child);
        eventually(&what, within, || {
            let status = child.borrow_mut().try_wait().unwrap();
            async move { status }
        })
        .await
    }

    /// Waits for a line with `needle` in it.
    ///
    /// # Panics
    /// When there is none after `within`, with the last lines.
    pub async fn wait_line(&self, needle: &str, within: Duration) -> String {
        let what = format!("a line with {needle:?} from {}", self.name);
        eventually(&what, within, || {
            let line = self.log.find(needle);
            async move { line }
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let ended = self.child.try_wait().ok().flatten();
        self.kill();
        if std::thread::panicking() {
            let state = ended.map_or_else(|| "was still running".to_owned(), |s| format!("had ended: {s}"));
            eprintln!("---- {} {state}; last lines:\n{}", self.name, self.log.tail(LINES_SHOWN));
        }
    }
}

fn capture(log: Log, from: impl Read + Send + 'static) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n') {
            let Ok(line) = line else { return };
            log.push(String::from_utf8_lossy(&line).into_owned());
        }
    });
}

/// What a finished command said.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a command to its end, off the async threads.
///
/// # Panics
/// When it cannot be started.
pub async fn run(mut command: Command) -> Finished {
    tokio::task::spawn_blocking(move || {
        command.stdin(Stdio::null());
        let output = command.output().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        Finished {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    })
    .await
    .unwrap()
}

/// Where the binary under test is: `NOWCONNECT_BIN`, or beside the running
/// test in the same target directory and profile.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn nowconnect_path() -> PathBuf {
    if let Some(path) = std::env::var_os("NOWCONNECT_BIN") {
        return path.into();
    }
    let exe = std::env::current_exe().unwrap();
    exe.ancestors()
        .skip(1)
        .take(3)
        .map(|dir| dir.join("nowconnect"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no `nowconnect` near {}: run `cargo build -p nowconnect` first", exe.display()))
}

/// A `nowconnect` command line. Variables that could steer the program are
/// taken out of its environment.
#[must_use]
pub fn nowconnect<I, S>(args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(nowconnect_path());
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("NC_") {
            command.env_remove(key);
        }
    }
    command.args(args);
    command
}

/// Finds a server program: on `PATH`, or where Debian puts it for root only.
///
/// # Panics
/// When it is not installed; names the package.
#[must_use]
pub fn installed(program: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|p| p.is_file())
        .unwrap_or_else(|| panic!("{program} is missing: install the Debian package {package} (./test does)"))
}

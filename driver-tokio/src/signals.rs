//! The process around a node: runtime, signals, entropy, file limit.

use std::future::Future;
use std::time::Duration;

use nowconnect_core::rng::Seed;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::LocalSet;

use crate::cli::RunError;

/// Runs a node's future on one thread with its `LocalSet`.
///
/// # Errors
/// What the future returns, or the runtime's refusal to start.
pub fn block_on(future: impl Future<Output = Result<(), RunError>>) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| RunError::Failed(format!("the runtime cannot be started: {e}")))?;
    let outcome = LocalSet::new().block_on(&runtime, future);
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

/// SIGTERM, SIGINT and SIGHUP.
#[derive(Debug)]
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn new() -> Result<Self, RunError> {
        let failed = |e: std::io::Error| RunError::Failed(format!("signals: {e}"));
        Ok(Self {
            term: signal(SignalKind::terminate()).map_err(failed)?,
            int: signal(SignalKind::interrupt()).map_err(failed)?,
            hup: signal(SignalKind::hangup()).map_err(failed)?,
        })
    }

    /// Waits for what is asked next.
    pub async fn wait(&mut self) -> Asked {
        tokio::select! {
            _ = self.term.recv() => Asked::Stop,
            _ = self.int.recv() => Asked::Stop,
            _ = self.hup.recv() => Asked::Reload,
        }
    }

    /// Waits until the process is asked to stop. It reloads nothing: it has no
    /// file, or it is leaving.
    pub async fn stop(&mut self) {
        while self.wait().await == Asked::Reload {
            tracing::warn!(event = "config_refused", "SIGHUP: there is no file to read, or the process is leaving");
        }
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// A seed from the operating system, through the TLS library's generator.
#[must_use]
pub fn os_seed() -> Seed {
    let mut seed = Seed([0; 32]);
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut seed.0)
        .expect("the system's random generator works");
    seed
}

/// Raises the soft limit of open files to the hard one: a hub needs one a client.
pub fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if setrlimit(Resource::Nofile, limit).is_err() {
        tracing::warn!(event = "file_limit", "the limit of open files cannot be raised (ulimit -n)");
    }
}

//! What a reload came to, said in the same way by hub and agent: to whoever
//! asked, in the log, in metrics.

use std::cell::Cell;

use tokio::sync::{Mutex, MutexGuard};

use crate::answers::{self, Applied, Refused, ReloadAnswer, ResultApplied};
use crate::clock::unix_millis;
use crate::metrics::{Family, Snapshot};

/// What a reload came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The file is in force, but for these keys, which need a restart.
    Applied(Vec<&'static str>),
    /// Nothing has changed, because of this.
    Refused(String),
}

impl Outcome {
    /// Status and JSON for whoever asked over HTTP.
    #[must_use]
    pub(crate) fn answer(&self) -> (u16, String) {
        match self {
            Self::Applied(restart) => {
                let applied = Applied { result: ResultApplied::Applied, needs_restart: restart.clone() };
                (200, answers::text(&ReloadAnswer::Applied(applied)))
            }
            Self::Refused(why) => (422, answers::text(&ReloadAnswer::Refused(Refused::because(why)))),
        }
    }
}

/// Reloads so far.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    applied: Cell<u64>,
    refused: Cell<u64>,
    /// When the configuration in force was read, seconds since 1970.
    last_applied: Cell<u64>,
    /// Held by the one that is under way.
    turn: Mutex<()>,
}

/// The right to reload, given back when it is dropped.
pub(crate) type Turn<'a> = MutexGuard<'a, ()>;

impl Reloads {
    /// The configuration of the start is in force.
    pub(crate) fn at_start() -> Self {
        Self { last_applied: Cell::new(unix_millis() / 1000), ..Self::default() }
    }

    /// Waits for the turn: for who cannot be told to ask again.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        self.turn.lock().await
    }

    /// The turn at once, or a refusal, counted and logged, while another reload
    /// is under way.
    pub(crate) fn try_turn(&self) -> Result<Turn<'_>, Outcome> {
        self.turn.try_lock().map_err(|_| {
            let outcome = Outcome::Refused("another reload is under way; ask again".to_owned());
            self.note(&outcome, "", "");
            outcome
        })
    }

    /// Counts and logs one; `what` of the configuration now is `is`.
    pub(crate) fn note(&self, outcome: &Outcome, what: &'static str, is: &str) {
        match outcome {
            Outcome::Applied(restart) => {
                self.applied.set(self.applied.get() + 1);
                self.last_applied.set(unix_millis() / 1000);
                tracing::info!(event = "config_reloaded", key = what, value = is, "the file is in force");
                for key in restart {
                    tracing::warn!(event = "restart_needed", key, "this key changed and takes effect with a restart");
                }
            }
            Outcome::Refused(why) => {
                self.refused.set(self.refused.get() + 1);
                tracing::error!(event = "config_refused", "the configuration in force stays: {why}");
            }
        }
    }

    pub(crate) fn add_to(&self, s: &mut Snapshot) {
        s.add(Family::ConfigReloads, &["applied"], self.applied.get());
        s.add(Family::ConfigReloads, &["refused"], self.refused.get());
        s.add(Family::ConfigLastReload, &[], self.last_applied.get());
    }
}

/// Renewals and ends of certificates.
pub(crate) fn add_certs(s: &mut Snapshot, certs: &crate::certs::Certs) {
    s.add(Family::CertificateReloads, &["applied"], certs.taken.get());
    s.add(Family::CertificateReloads, &["refused"], certs.refused.get());
    for (usage, at) in certs.not_after() {
        s.add(Family::CertificateNotAfter, &[usage], u64::try_from(at).unwrap_or(0));
    }
}

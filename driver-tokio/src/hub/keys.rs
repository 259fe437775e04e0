//! What tunnels' tokens are verified with: keys from files, and by URL with
//! the task that fetches them. One set is in force at a time; a reload makes
//! the next one in full before it takes the place of this one (M7).

use std::cell::Cell;
use std::rc::Rc;

use nowconnect_core::principal::AgentGrant;

use super::Shared;
use crate::auth::{AuthReject, TokenGrant, TunnelAuth};
use crate::cli::RunError;
use crate::clock::{Monotonic, unix_millis};
use crate::config::AuthSetup;
use crate::jwks::Jwks;
use crate::limiter::Limiter;

/// A set of keys.
pub(crate) struct Keys {
    auth: Rc<TunnelAuth>,
    /// The keys by URL.
    pub(crate) jwks: Option<Rc<Jwks>>,
    checked: Cell<u64>,
    fetching: Option<tokio::task::JoinHandle<()>>,
}

impl Keys {
    /// Reads the files, and begins to fetch what comes by URL.
    ///
    /// # Errors
    /// The first file or URL that cannot be used.
    pub(crate) fn load(setup: &AuthSetup) -> Result<Self, RunError> {
        let config = |e: &dyn std::fmt::Display| RunError::Config(e.to_string());
        let auth = Rc::new(TunnelAuth::from_setup(setup).map_err(|e| config(&e))?);
        let jwks = setup.jwks.as_ref().map(|j| Jwks::new(j, &auth)).transpose().map_err(|e| config(&e))?.map(Rc::new);
        let fetching = jwks.as_ref().map(|j| tokio::task::spawn_local(Rc::clone(j).run(Rc::clone(&auth))));
        Ok(Self { auth, jwks, checked: Cell::new(0), fetching })
    }

    /// Key files are looked at again at most once a second.
    fn refresh(&self, now_millis: u64, lines: &Limiter) {
        if now_millis.saturating_sub(self.checked.replace(now_millis)) < 1000 {
            return;
        }
        match self.auth.reload_if_changed() {
            Ok(true) => tracing::info!(event = "keys_reloaded"),
            Ok(false) => {}
            Err(e) => {
                if let Some(suppressed) = lines.allow("keys_unusable", "") {
                    tracing::error!(event = "keys_unusable", suppressed, "the last good keys stay in use: {e}");
                }
            }
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(task) = &self.fetching {
            task.abort();
        }
    }
}

impl Shared {
    /// The keys in force.
    pub(crate) fn keys(&self) -> Rc<Keys> {
        Rc::clone(&self.keys.borrow())
    }

    /// What a token grants, on the core's clock. A refusal is counted and told;
    /// an unknown key makes the key set by URL look again.
    pub(crate) fn grant(
        &self,
        clock: &Monotonic,
        verify: impl FnOnce(&TunnelAuth, u64) -> Result<TokenGrant, AuthReject>,
    ) -> Result<AgentGrant, AuthReject> {
        let now = unix_millis();
        let keys = self.keys();
        keys.refresh(now, &self.lines);
        let result = verify(&keys.auth, now / 1000);
        if let Err(reject) = &result {
            if let (AuthReject::UnknownKey, Some(jwks)) = (reject, &keys.jwks) {
                jwks.ask();
            }
            if let Some(suppressed) = self.lines.allow("auth_rejected", reject.name()) {
                tracing::warn!(event = "auth_rejected", reason = reject.name(), suppressed, "{reject}");
            }
            self.counts.refusal(reject.name());
        }
        result.map(|grant| grant.on_clock(now / 1000, clock.now()))
    }
}

//! Another configuration for a running agent: computed in full, then put in
//! force in one call. No stream ends by it. A tunnel that is not wanted any
//! more is used up: its hub opens nothing new as soon as enough others serve,
//! and it ends with its last stream. What is exposed is told on the live
//! tunnels (CONNECTORS). Must not know files, targets or tokens.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Agent;
use super::tunnels::{HubState, Tunnels};
use crate::config::AgentConfig;
use crate::error::CloseCode;
use crate::id::SessionKey;
use crate::mux::{Mux, NodeOut};
use crate::planted;
use crate::shard::{ControlNote, Role, Shard, ShardConfig};
use crate::time::Instant;
use crate::wire::Frame;

/// Most addresses over the life of an agent.
const PLACES_MAX: usize = 4096;

/// Why a configuration cannot be put in force while the agent runs. Nothing of
/// it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReloadError {
    /// It is another agent.
    #[error("agent_id cannot change while the agent runs: restart it")]
    AgentId,
    /// What was announced to every hub.
    #[error("limits.stream_window_initial_bytes cannot change while the process runs: restart it")]
    InitialWindow,
    /// Addresses that were ever there are remembered.
    #[error("hubs changed too often since the start: restart the agent")]
    Places,
    /// It drains or has stopped.
    #[error("the agent is leaving")]
    Leaving,
}

/// A tunnel on its way out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quit {
    /// Its hub was told to open nothing more.
    withdrawn: bool,
    /// When it ends whatever it carries.
    until: Instant,
}

impl Agent {
    /// Puts another configuration in force. `drain` is how long streams over a
    /// tunnel that is not wanted any more may take to end. An address that was
    /// there keeps its index in [`Tunnels::config`]; one that is gone stays,
    /// undialled.
    ///
    /// # Errors
    /// When it cannot be done; then nothing has changed (M7).
    pub fn reload(
        &mut self,
        now: Instant,
        config: &AgentConfig,
        drain: Duration,
        out: &mut NodeOut,
    ) -> Result<(), ReloadError> {
        let listed: BTreeSet<&String> = config.hubs.iter().collect();
        let config = match self.tunnels.placed(config) {
            Ok(config) => config,
            Err(e) => {
                if planted::on(2020) {
                    self.mux.reload(now, &config.limits, config.liveness, out);
                }
                return Err(e);
            }
        };
        let role = Role::Agent { target_timeout: config.target_timeout };
        let limits = config.limits.clone();
        self.notes.push(ControlNote::Reload(Arc::new(ShardConfig { role, limits })));
        self.mux.reload(now, &config.limits, config.liveness, out);
        let listed = config.hubs.iter().map(|url| listed.contains(url)).collect();
        self.tunnels.reload(now, config, listed, drain, &mut self.mux, &mut self.notes, out);
        self.settle(now, out);
        Ok(())
    }
}

impl Tunnels {
    fn placed(&self, new: &AgentConfig) -> Result<AgentConfig, ReloadError> {
        let old = &self.config;
        if self.draining {
            return Err(ReloadError::Leaving);
        }
        if new.agent_id != old.agent_id {
            return Err(ReloadError::AgentId);
        }
        if new.limits.stream_window_initial_bytes != old.limits.stream_window_initial_bytes {
            return Err(ReloadError::InitialWindow);
        }
        let added = new.hubs.iter().filter(|url| !old.hubs.contains(url));
        let hubs: Vec<String> = old.hubs.iter().chain(added).cloned().collect();
        if hubs.len() > PLACES_MAX { Err(ReloadError::Places) } else { Ok(AgentConfig { hubs, ..new.clone() }) }
    }

    fn reload(
        &mut self,
        now: Instant,
        config: AgentConfig,
        listed: Vec<bool>,
        drain: Duration,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let before = std::mem::replace(&mut self.config, Arc::new(config));
        self.hubs.resize_with(self.config.hubs.len(), HubState::default);
        for (h, listed) in self.hubs.iter_mut().zip(listed) {
            if listed && !h.listed {
                // As if it were new.
                h.same_as_other = false;
                h.shunned = false;
            }
            h.listed = listed;
            if let Some(link) = h.link.as_mut() {
                link.reload(self.config.backoff);
            }
            if !listed && h.session.is_none() {
                h.link = None;
            }
        }
        self.try_again(mux);
        self.told_fewer = false;
        if self.config.connectors != before.connectors {
            self.health.reload(now, &before.connectors, &self.config.connectors);
            self.say_exposed(now, mux, notes, out);
        }
        let until = now.after(drain);
        let sessions: Vec<(SessionKey, bool)> = self.hubs.iter().filter_map(|h| Some((h.session?, h.listed))).collect();
        for (key, listed) in sessions {
            if !listed {
                self.quitting.entry(key).or_insert(Quit { withdrawn: false, until });
            } else if self.quitting.remove(&key).is_some_and(|q| q.withdrawn) {
                self.generation += 1;
                self.advertise(now, key, mux, out);
            }
        }
        // More tunnels than are wanted: the last addresses rest.
        let mut surplus = self.serving(mux).saturating_sub(self.wanted());
        for ix in (0..self.hubs.len()).rev() {
            let Some(h) = self.hubs.get(ix) else { continue };
            let Some(key) = h.session.filter(|_| h.listed && !h.leaving && h.is_connected(mux)) else { continue };
            if surplus > 0 {
                surplus -= 1;
                self.quitting.insert(key, Quit { withdrawn: false, until });
            }
        }
        self.want(now, mux, out);
    }

    /// Whether its hub was told to open nothing more there.
    pub(super) fn is_withdrawn(&self, key: SessionKey) -> bool {
        self.quitting.get(&key).is_some_and(|q| q.withdrawn)
    }

    /// Says what is exposed, with the latest generation.
    pub(super) fn advertise(&self, now: Instant, key: SessionKey, mux: &mut Mux, out: &mut NodeOut) {
        let connectors = self.ads();
        mux.send(now, key, Frame::Connectors { generation: self.generation, connectors }, out);
    }

    /// Ends the tunnels that are not wanted any more: nothing new once enough
    /// others serve, the end once nothing is on them and all is said.
    pub(super) fn quit_idle(
        &mut self,
        now: Instant,
        shard: &Shard,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if self.quitting.is_empty() {
            return;
        }
        // Another one was lost meanwhile: a surplus tunnel is none any more.
        let mut missing = self.wanted().saturating_sub(self.serving(mux));
        let listed = |h: &HubState| h.listed && !h.leaving && h.is_connected(mux);
        let spare: Vec<SessionKey> = self.hubs.iter().filter(|h| listed(h)).filter_map(|h| h.session).collect();
        for key in spare {
            if missing > 0
                && let Some(q) = self.quitting.remove(&key)
            {
                missing -= 1;
                if q.withdrawn {
                    self.generation += 1;
                    self.advertise(now, key, mux, out);
                }
            }
        }
        let enough = self.serving(mux) >= self.wanted();
        let waiting: Vec<SessionKey> =
            self.quitting.iter().filter(|(_, q)| enough && !q.withdrawn).map(|(key, _)| *key).collect();
        for key in waiting {
            self.generation += 1;
            let generation = self.generation;
            mux.send(now, key, Frame::Connectors { generation, connectors: Vec::new() }, out);
            if let Some(q) = self.quitting.get_mut(&key) {
                q.withdrawn = true;
            }
        }
        let over = |(key, q): (&SessionKey, &Quit)| {
            let Some(e) = mux.get(*key) else { return true };
            let idle = !shard.has_streams(*key) && (e.conn.is_none() || e.session.is_settled());
            (q.withdrawn && idle) || q.until <= now
        };
        let due: Vec<SessionKey> = self.quitting.iter().filter(|q| over((q.0, q.1))).map(|(key, _)| *key).collect();
        for key in due {
            self.quitting.remove(&key);
            self.lose(now, key, CloseCode::Shutdown, mux, notes, out);
        }
    }

    /// When the next of them ends in any case.
    pub(super) fn next_quit(&self) -> Option<Instant> {
        self.quitting.values().map(|q| q.until).min()
    }

    /// Its configuration, every address in its place.
    #[must_use]
    pub fn config(&self) -> &AgentConfig {
        &self.config
    }
}

//! Another configuration for a running hub: computed in full, then put in
//! force in one call. Nothing that is open ends by it: a limit below its use
//! refuses what is new (B3, planted bug 52), listeners and peers keep their
//! places, links of removed peers are used up. Must not know files.

use std::sync::Arc;
use std::time::Duration;

use super::Hub;
use super::control::{Control, PeerState};
use super::split::share_of;
use crate::config::{HubConfig, ListenerConfig, PeerConfig};
use crate::id::{AgentId, ListenerIx, Name};
use crate::link::{Event, Link};
use crate::mux::{Mux, NodeOut};
use crate::observed::Observed;
use crate::planted;
use crate::rng::Seed;
use crate::shard::{ControlNote, Role, Shard, ShardConfig};
use crate::time::Instant;

/// Most places of listeners and of peers over the life of a hub.
const PLACES_MAX: usize = 4096;

/// Why a configuration cannot be put in force while the hub runs. Nothing of
/// it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReloadError {
    /// It is another hub.
    #[error("ha.replica_id cannot change while the hub runs: restart it")]
    ReplicaId,
    /// It would write under other names in the registry.
    #[error("ha.namespace cannot change while the hub runs: restart it")]
    Namespace,
    /// What was announced to every peer.
    #[error("limits.stream_window_initial_bytes cannot change while the process runs: restart it")]
    InitialWindow,
    /// Listeners and peers that were ever there are remembered.
    #[error("listeners or ha.mesh.peers changed too often since the start: restart the hub")]
    Places,
    /// It drains or has stopped.
    #[error("the hub is leaving")]
    Leaving,
}

impl Hub {
    /// Puts another configuration in force. `drain` is how long streams over
    /// the link of a removed peer may take to end. Where listeners and peers
    /// stand afterwards is in [`Control::config`]: what was there keeps its
    /// index, and what is gone stays with room for nobody, or undialled.
    ///
    /// # Errors
    /// When it cannot be done; then nothing has changed (M7).
    pub fn reload(
        &mut self,
        now: Instant,
        config: &HubConfig,
        drain: Duration,
        out: &mut NodeOut,
    ) -> Result<(), ReloadError> {
        let listed = &config.peers;
        let config = match self.control.placed(config) {
            Ok(config) => config,
            Err(e) => {
                if planted::on(2020) {
                    self.mux.reload(now, &config.limits, config.liveness, out);
                }
                return Err(e);
            }
        };
        let shards = self.shards.len();
        let limits = if self.split.is_some() { share_of(&config.limits, shards) } else { config.limits.clone() };
        let (listeners, selection) = (config.listeners.clone(), config.selection.clone());
        let role = Role::Hub { listeners, open: config.open, selection };
        // Before whatever follows from the change.
        self.notes.push(ControlNote::Reload(Arc::new(ShardConfig { role, limits })));
        self.mux.reload(now, &config.limits, config.liveness, out);
        self.over.lower(if self.split.is_some() { shards } else { 1 });
        self.control.reload(now, config, listed, drain, &mut self.mux, &mut self.notes, out);
        if self.split.is_none() {
            self.tell_shards(now, out);
            self.over.heard(&self.shards, &self.control);
        }
        self.settle(now, out);
        Ok(())
    }

    /// Where the listener with this name and connector is, if it takes clients.
    #[must_use]
    pub fn listener(&self, wanted: &ListenerConfig) -> Option<ListenerIx> {
        let same = |l: &ListenerConfig| is_same(l, wanted) && l.max_connections > 0;
        let ix = self.control.config().listeners.iter().position(same)?;
        u16::try_from(ix).ok().map(ListenerIx)
    }
}

fn is_same(a: &ListenerConfig, b: &ListenerConfig) -> bool {
    (&a.name, &a.connector) == (&b.name, &b.connector)
}

impl Control {
    /// The configuration with everything in its place.
    fn placed(&self, new: &HubConfig) -> Result<HubConfig, ReloadError> {
        let old = &self.config;
        if self.is_draining() {
            return Err(ReloadError::Leaving);
        }
        if new.replica_id != old.replica_id {
            return Err(ReloadError::ReplicaId);
        }
        if new.namespace != old.namespace {
            return Err(ReloadError::Namespace);
        }
        if new.limits.stream_window_initial_bytes != old.limits.stream_window_initial_bytes {
            return Err(ReloadError::InitialWindow);
        }
        let mut placed = new.clone();
        let stays = |was: &ListenerConfig| {
            let now = new.listeners.iter().find(|l| is_same(l, was)).cloned();
            now.unwrap_or_else(|| ListenerConfig { max_connections: 0, ..was.clone() })
        };
        let added = new.listeners.iter().filter(|l| !old.listeners.iter().any(|was| is_same(was, l)));
        placed.listeners = old.listeners.iter().map(stays).chain(added.cloned()).collect();
        let added = new.peers.iter().filter(|p| !old.peers.contains(p));
        placed.peers = old.peers.iter().chain(added).cloned().collect();
        if placed.listeners.len() > PLACES_MAX || placed.peers.len() > PLACES_MAX {
            return Err(ReloadError::Places);
        }
        Ok(placed)
    }

    fn reload(
        &mut self,
        now: Instant,
        config: HubConfig,
        listed: &[PeerConfig],
        drain: Duration,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let before = std::mem::replace(&mut self.config, Arc::new(config));
        let config = Arc::clone(&self.config);
        for (p, peer) in self.peers.iter_mut().zip(&config.peers) {
            p.listed = listed.contains(peer);
            p.link.reload(config.backoff);
        }
        for peer in config.peers.iter().skip(self.peers.len()) {
            let mut link = Link::new(config.backoff, Seed(self.rng.bytes()), now);
            // Dialled below, if it is wanted.
            link.on_event(now, Event::Disabled);
            // Missed only after the grace of a link that was lost (L6).
            let state = PeerState::new(link, peer, &self.run.replica_id, Some(now));
            if state.itself {
                out.observed.push(Observed::PeerIsSelf { peer: super::control::target(self.peers.len()).0 });
            }
            self.peers.push(state);
        }
        self.hurry(now, &before);
        if before.selection.priorities != config.selection.priorities {
            self.own_ranks_changed();
        }
        if before.insecure_allow_unscoped && !config.insecure_allow_unscoped {
            self.narrow(now, notes, out);
        }
        self.switch_mode(now, before.mode, mux, notes, out);
        self.sort_links(now, now.after(drain), mux, out);
        self.forget_unasked();
        self.look_up_listeners(now, out);
        self.routes_dirty = true;
        self.broadcast_status(now, mux, out);
    }

    /// What waits by an earlier timer does not wait longer than by the new one.
    fn hurry(&mut self, now: Instant, before: &HubConfig) {
        let timers = self.config.registry;
        if timers == before.registry {
            return;
        }
        // In the order of tokens, which stays that of deadlines.
        let latest = now.after(timers.op_timeout);
        for op in self.pending.values_mut() {
            op.deadline = op.deadline.min(latest);
        }
        self.renew_at = self.renew_at.map(|at| at.min(now.after(timers.renew_every)));
        for remote in self.remote.values_mut() {
            remote.next = remote.next.map(|at| at.min(now.after(timers.lookup_fresh)));
        }
    }

    /// A token without scope allows nothing any more (I4).
    fn narrow(&mut self, now: Instant, notes: &mut Vec<ControlNote>, out: &mut NodeOut) {
        let unscoped: Vec<AgentId> = (self.attachments.iter_mut())
            .filter(|(_, a)| a.grant.connectors.is_none() && !a.connectors.is_empty())
            .map(|(agent_id, a)| {
                a.held_back.append(&mut a.connectors);
                a.earlier.unscoped();
                agent_id.clone()
            })
            .collect();
        for agent_id in unscoped {
            self.publish_connectors(now, &agent_id, notes, out);
        }
    }

    /// Connectors that no listener wants are not looked up for ever.
    fn forget_unasked(&mut self) {
        let config = Arc::clone(&self.config);
        self.remote.retain(|connector, r| is_listened_for(&config, connector) || !r.wanted.is_empty() || r.asking);
    }
}

impl Control {
    /// Whether a listener that takes clients leads to it.
    pub(super) fn is_listened_for(&self, connector: &Name) -> bool {
        is_listened_for(&self.config, connector)
    }
}

fn is_listened_for(config: &HubConfig, connector: &Name) -> bool {
    config.listeners.iter().any(|l| l.max_connections > 0 && l.connector == *connector)
}

/// What was above a limit when that was lowered: it may only fall (B3). While
/// a shard has not heard of the limit nothing is known.
#[derive(Debug, Default)]
pub(super) struct Over {
    /// Shards that have not.
    unheard: usize,
    streams: usize,
    clients: Vec<u32>,
}

impl Over {
    const fn lower(&mut self, shards: usize) {
        self.unheard += shards;
    }

    /// A shard has the limits; with the last one what is there is known.
    pub(super) fn heard(&mut self, shards: &[Shard], control: &Control) {
        self.unheard = self.unheard.saturating_sub(if shards.len() > 1 { 1 } else { self.unheard });
        let config = control.config();
        let (streams, clients) = used(shards, config.listeners.len());
        self.streams = if streams > config.limits.max_streams as usize { streams } else { 0 };
        let above = |(n, l): (&u32, &ListenerConfig)| if *n > l.max_connections { *n } else { 0 };
        self.clients = clients.iter().zip(&config.listeners).map(above).collect();
        if self.clients.iter().all(|n| *n == 0) {
            self.clients.clear();
        }
    }

    /// What has left does not come back.
    pub(super) fn sink(&mut self, shards: &[Shard]) {
        if self.unheard > 0 || (self.streams == 0 && self.clients.is_empty()) {
            return;
        }
        let (streams, clients) = used(shards, self.clients.len());
        self.streams = self.streams.min(streams);
        self.clients.iter_mut().zip(clients).for_each(|(above, n)| *above = (*above).min(n));
    }

    /// # Panics
    /// When a limit is exceeded by more than what was there when it was lowered.
    pub(super) fn check(&self, shards: &[Shard], control: &Control) {
        if self.unheard > 0 {
            return;
        }
        let config = control.config();
        let (streams, clients) = used(shards, config.listeners.len());
        for (ix, (n, l)) in clients.iter().zip(&config.listeners).enumerate() {
            let max = l.max_connections.max(self.clients.get(ix).copied().unwrap_or(0));
            assert!(*n <= max, "a listener's limit holds over all shards (B3)");
        }
        let max = (config.limits.max_streams as usize).max(self.streams);
        assert!(streams <= max, "streams of all shards are within the limit (B3)");
    }
}

/// Streams, and clients by listener.
fn used(shards: &[Shard], listeners: usize) -> (usize, Vec<u32>) {
    let of = |ix: usize| shards.iter().map(|s| s.clients(ListenerIx(u16::try_from(ix).unwrap_or(u16::MAX)))).sum();
    (shards.iter().map(Shard::streams).sum(), (0..listeners).map(of).collect())
}

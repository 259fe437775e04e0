//! The two nodes of `pair` behind one face, and how they are configured.

use std::sync::Arc;
use std::time::Duration;

use nowconnect_core::agent::Agent;
use nowconnect_core::config::{
    AgentConfig, Backoff, ConnectorConfig, HubConfig, Limits, ListenerConfig, Liveness, Mode, OnExpiry, OpenRule,
    OpenTimers, RegistryTimers, Selection,
};
use nowconnect_core::hub::Hub;
use nowconnect_core::id::{ConnKey, StreamKey};
use nowconnect_core::mux::{Input, Mux, NodeOut};
use nowconnect_core::rng::Seed;
use nowconnect_core::session::TxBatch;
use nowconnect_core::shard::Shard;
use nowconnect_core::time::{Deadline, Instant};

use super::{AGENT, HUB, WINDOW};
use crate::peer::{agent, name};

#[expect(clippy::large_enum_variant, reason = "there are two")]
pub(super) enum Machine {
    Hub(Hub),
    Agent(Agent),
}

impl Machine {
    pub(super) fn handle(&mut self, now: Instant, input: Input, out: &mut NodeOut) {
        match self {
            Self::Hub(h) => h.handle(now, input, out),
            Self::Agent(a) => a.handle(now, input, out),
        }
    }

    pub(super) fn transmit(
        &mut self,
        now: Instant,
        conn: ConnKey,
        budget: usize,
        batch: &mut TxBatch,
        out: &mut NodeOut,
    ) {
        match self {
            Self::Hub(h) => h.poll_transmit(now, conn, budget, batch, out),
            Self::Agent(a) => a.poll_transmit(now, conn, budget, batch, out),
        };
    }

    pub(super) fn time_out(&mut self, now: Instant, out: &mut NodeOut) {
        match self {
            Self::Hub(h) => h.handle_timeout(now, out),
            Self::Agent(a) => a.handle_timeout(now, out),
        }
    }

    pub(super) fn due(&self) -> Option<Deadline> {
        match self {
            Self::Hub(h) => h.poll_timeout(),
            Self::Agent(a) => a.poll_timeout(),
        }
    }

    pub(super) fn room(&mut self, stream: StreamKey) -> usize {
        match self {
            Self::Hub(h) => h.read_budget(stream),
            Self::Agent(a) => a.read_budget(stream),
        }
    }

    pub(super) fn parts(&self) -> (&Shard, &Mux) {
        match self {
            Self::Hub(h) => (&h.shards()[0], h.mux()),
            Self::Agent(a) => (a.shard(), a.mux()),
        }
    }

    pub(super) fn check(&self) {
        match self {
            Self::Hub(h) => h.check_invariants(),
            Self::Agent(a) => a.check_invariants(),
        }
    }
}

fn limits(flags: u8) -> Limits {
    Limits {
        stream_window_initial_bytes: [65_536, 1000, 16_384, 70_000][usize::from(flags >> 2 & 3)],
        stream_window_max_bytes: 256 << 10,
        send_queue_depth: if flags & 16 == 0 { 1000 } else { 4 },
        inflight_bytes: if flags & 32 == 0 { 8 << 20 } else { 20_000 },
        ..Limits::default()
    }
}

/// A hub and an agent, as the flags want them.
pub(super) fn nodes(flags: u8, now: Instant, outs: &mut [NodeOut; 2]) -> [Machine; 2] {
    let hub = HubConfig {
        replica_id: name("hub-a"),
        namespace: name("default"),
        region: None,
        mode: if flags & 2 == 0 { Mode::Off } else { Mode::Active },
        listeners: vec![ListenerConfig {
            name: name("l"),
            connector: name("ldap"),
            open: if flags & 64 == 0 { OpenRule::Eager } else { OpenRule::FirstByte },
            max_connections: 100,
        }],
        peers: Vec::new(),
        limits: limits(flags),
        liveness: Liveness::default(),
        resume_window: WINDOW,
        backoff: Backoff::default(),
        open: OpenTimers::default(),
        selection: Selection::default(),
        registry: RegistryTimers::default(),
        handshake_timeout: Duration::from_secs(5),
        insecure_allow_unscoped: true,
        on_expiry: OnExpiry::Keep,
        insecure_mesh: true,
    };
    let connector =
        ConnectorConfig { name: name("ldap"), target: "t".to_owned(), priority: 0, weight: 1, health: None };
    let config = AgentConfig {
        agent_id: agent("a"),
        hubs: vec!["1".to_owned()],
        parallel: 1,
        connectors: vec![connector],
        limits: limits(flags >> 1),
        liveness: Liveness::default(),
        resume_window: WINDOW,
        backoff: Backoff::default(),
        target_timeout: Duration::from_millis(1500),
        handshake_timeout: Duration::from_secs(5),
    };
    let hub = Hub::new(Arc::new(hub), Seed::from_u64(1), now, &mut outs[HUB]);
    let agent = Agent::new(Arc::new(config), Seed::from_u64(2), now, &mut outs[AGENT]);
    [Machine::Hub(hub), Machine::Agent(agent)]
}

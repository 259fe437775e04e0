//! One registry server: its state, and as much of its past as faults need.
//!
//! Keeps: `state_at` is exactly the state after the last change made at or
//! before that instant (changes are logged and replayed, not sampled).
//!
//! Must not know: clients, faults, oracles.

use std::collections::VecDeque;
use std::time::Duration;

use nowconnect_core::id::{AgentId, Name};
use nowconnect_core::registry::{MemoryRegistry, RegistryOp, RegistryResult, StoredKey};
use nowconnect_core::time::Instant;

use super::fault::writes;

/// One unbroken run of one server's data; a restored or emptied server and a
/// new master are new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerId(pub u32);

#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) id: ServerId,
    pub(super) state: MemoryRegistry,
    past: Option<Past>,
    /// What its first state was the state of: it knows nothing older.
    data_of: Instant,
}

#[derive(Clone, Debug)]
struct Past {
    keep: Duration,
    base: MemoryRegistry,
    log: VecDeque<(Instant, Change)>,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Op { wall: u64, op: RegistryOp },
    Evict(StoredKey),
    Spoil(AgentId, Name),
    Unannounce(Name, AgentId),
}

impl Change {
    fn apply(&self, state: &mut MemoryRegistry) {
        match self {
            Self::Op { wall, op } => drop(state.execute(*wall, op)),
            Self::Evict(key) => drop(state.evict(key)),
            Self::Spoil(agent_id, replica_id) => drop(state.spoil_attachment(agent_id, replica_id)),
            Self::Unannounce(connector, agent_id) => drop(state.unannounce(connector, agent_id)),
        }
    }
}

impl Server {
    pub(super) fn new(id: ServerId, state: MemoryRegistry, data_of: Instant, keep: Option<Duration>) -> Self {
        let mut server = Self { id, state, past: None, data_of };
        if let Some(keep) = keep {
            server.arm(keep);
        }
        server
    }

    pub(super) fn arm(&mut self, keep: Duration) {
        self.past = Some(Past { keep, base: self.state.clone(), log: VecDeque::new() });
    }

    /// An instant that it can go back to: this one, or that of its first state.
    pub(super) fn not_before(&self, at: Instant) -> Instant {
        at.max(self.data_of)
    }

    pub(super) fn kept(&self) -> Option<Duration> {
        self.past.as_ref().map(|p| p.keep)
    }

    pub(super) fn execute(&mut self, now: Instant, wall: u64, op: &RegistryOp) -> RegistryResult {
        if let Some(past) = &mut self.past
            && writes(op)
        {
            past.push(now, Change::Op { wall, op: op.clone() });
        }
        self.state.execute(wall, op)
    }

    /// Makes a change that no operation makes.
    pub(super) fn change(&mut self, now: Instant, change: Change) {
        change.apply(&mut self.state);
        if let Some(past) = &mut self.past {
            past.push(now, change);
        }
    }

    /// The state at an instant; the oldest one known when that is too long
    /// ago, the present one when nothing is kept.
    pub(super) fn state_at(&self, at: Instant) -> MemoryRegistry {
        let Some(past) = &self.past else { return self.state.clone() };
        let mut state = past.base.clone();
        for (_, change) in past.log.iter().take_while(|(when, _)| *when <= at) {
            change.apply(&mut state);
        }
        state
    }
}

impl Past {
    fn push(&mut self, now: Instant, change: Change) {
        while self.log.front().is_some_and(|(at, _)| at.after(self.keep) < now)
            && let Some((_, old)) = self.log.pop_front()
        {
            old.apply(&mut self.base);
        }
        self.log.push_back((now, change));
    }
}

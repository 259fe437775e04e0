//! What the world's fault plan does to the registry, and what oracles ask it.
//!
//! Keeps: every loss made here is known to the ghost, so that no oracle takes
//! it for a defect.
//!
//! Must not know: how requests travel.

use std::collections::BTreeMap;
use std::time::Duration;

use nowconnect_core::registry::{Located, MemoryRegistry, StoredKey};
use nowconnect_core::time::Instant;

use super::fault::Active;
use super::server::{Change, Server};
use super::{
    Acted, CLASSES, Class, Damage, Draw, ExecutedClaim, Fault, Other, Pinned, RegistryModel, ServerId, Violation, Whom,
};

impl RegistryModel {
    /// A fault is in force from now until `until`.
    pub fn inject(&mut self, now: Instant, fault: Fault, whom: Whom, until: Instant) {
        self.prune(now);
        let view = if let Fault::StaleReads { lag } = &fault {
            Some(Box::new(self.primary.state_at(before(now, *lag))))
        } else {
            matches!(fault, Fault::Demoted { .. }).then(|| Box::new(self.primary.state.clone()))
        };
        self.active.push(Active { fault, whom, from: now, until, view });
    }

    /// R3: a replica that lacks the last `lose` becomes the master. `pinned`
    /// machines go on talking to the old one until `until`; what is written
    /// there is lost then. Needs [`Self::arm`]; without it nothing is lost.
    pub fn failover(&mut self, now: Instant, lose: Duration, pinned: Vec<usize>, until: Instant) {
        self.prune(now);
        self.count(Class::R3);
        let cut = self.primary.not_before(before(now, lose.min(self.primary.kept().unwrap_or_default())));
        let state = self.primary.state_at(cut);
        let new = self.new_server(state, cut);
        self.ghost.made_of(new.id, self.primary.id, cut);
        let old = std::mem::replace(&mut self.primary, new);
        if self.ghost.lose_after(Some(cut)) {
            self.ghost.mark("failover lost a claim");
        }
        self.pinned = (!pinned.is_empty() && until > now).then_some(Pinned { server: old, nodes: pinned, until });
    }

    /// R4, R5, R9: something is gone. False when there was nothing to harm.
    pub fn damage(&mut self, now: Instant, damage: Damage, draw: &mut dyn Draw) -> bool {
        let class = damage.class();
        let harmed = match damage {
            Damage::Flush => {
                self.primary = self.new_server(MemoryRegistry::default(), now);
                self.ghost.lose_after(None);
                true
            }
            Damage::Restore { age } => {
                let cut = self.primary.not_before(before(now, age.min(self.primary.kept().unwrap_or_default())));
                let new = self.new_server(self.primary.state_at(cut), cut);
                self.ghost.made_of(new.id, self.primary.id, cut);
                self.primary = new;
                self.ghost.lose_after(Some(cut));
                true
            }
            Damage::Evict(key) => self.evict(now, key),
            Damage::EvictAny => {
                let keys: Vec<StoredKey> = self.primary.state.keys().collect();
                pick(keys, draw).is_some_and(|key| self.evict(now, key))
            }
            Damage::Spoil(agent_id, replica_id) => {
                let there = self.primary.state.attachment(&agent_id, &replica_id).is_some();
                self.primary.change(now, Change::Spoil(agent_id, replica_id));
                there
            }
            Damage::SpoilAny => {
                let held = self.primary.state.attachments().map(|(a, r)| (a.clone(), r.clone())).collect();
                let picked = pick(held, draw);
                picked.is_some_and(|(agent_id, replica_id)| {
                    self.primary.change(now, Change::Spoil(agent_id, replica_id));
                    true
                })
            }
        };
        if harmed {
            self.count(class);
        }
        harmed
    }

    fn evict(&mut self, now: Instant, key: StoredKey) -> bool {
        let there = self.primary.state.keys().any(|k| k == key);
        self.ghost.evicted(&key);
        self.primary.change(now, Change::Evict(key));
        there
    }

    fn new_server(&mut self, state: MemoryRegistry, data_of: Instant) -> Server {
        let id = ServerId(self.servers);
        self.servers += 1;
        Server::new(id, state, data_of, self.primary.kept())
    }

    /// Every lasting fault ends. What was lost stays lost, what travels arrives.
    pub fn heal_all(&mut self, now: Instant, draw: &mut dyn Draw) {
        self.prune(now);
        self.active.clear();
        self.pinned = None;
        for node in self.elsewhere.iter().flat_map(|o| o.nodes.clone()).collect::<Vec<_>>() {
            self.point_back(now, node, draw);
        }
    }

    /// X7: a machine talks to another registry from now on, which is empty when
    /// the first one comes. Its clock is that of the other servers.
    pub fn point_elsewhere(&mut self, now: Instant, node: usize, draw: &mut dyn Draw) {
        if self.is_elsewhere(node) {
            return;
        }
        if self.elsewhere.is_none() {
            let server = self.new_server(MemoryRegistry::default(), now);
            self.elsewhere = Some(Other { server, nodes: Vec::new() });
        }
        if let Some(other) = &mut self.elsewhere {
            other.nodes.push(node);
        }
        self.conns.dial_anew(node, now, draw);
    }

    /// And to its own again. What was written there is gone with the last one.
    pub fn point_back(&mut self, now: Instant, node: usize, draw: &mut dyn Draw) {
        let Some(other) = &mut self.elsewhere else { return };
        other.nodes.retain(|n| *n != node);
        if other.nodes.is_empty() {
            self.elsewhere = None;
        }
        self.conns.dial_anew(node, now, draw);
    }

    /// Whether a machine talks to another registry.
    #[must_use]
    pub fn is_elsewhere(&self, node: usize) -> bool {
        self.elsewhere.as_ref().is_some_and(|o| o.nodes.contains(&node))
    }

    /// Whether a lasting fault is in force.
    #[must_use]
    pub fn is_faulty(&self) -> bool {
        !self.active.is_empty() || self.pinned.is_some() || self.elsewhere.is_some()
    }

    /// The servers' wall clock jumps.
    pub fn step_wall(&mut self, now: Instant, delta_millis: i64) {
        self.clock.millis = self.wall_millis(now).saturating_add_signed(delta_millis);
        self.clock.at = now;
    }

    /// The servers' wall clock runs this much too fast from now on.
    pub fn set_drift(&mut self, now: Instant, ppm: i64) {
        self.step_wall(now, 0);
        self.clock.drift_ppm = ppm;
    }

    /// The servers' wall clock, milliseconds since 1970.
    #[must_use]
    pub fn wall_millis(&self, now: Instant) -> u64 {
        self.clock.millis(now)
    }

    /// Every claim executed, in order; `lost` and its like are up to date.
    #[must_use]
    pub fn executed_claims(&self) -> &[ExecutedClaim] {
        &self.ghost.claims
    }

    /// Every renewal and release that acted, in order.
    #[must_use]
    pub fn acted(&self) -> &[Acted] {
        &self.ghost.acted
    }

    /// The attachments the primary lists now (O6).
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> Vec<Located> {
        self.primary.state.all_listed(self.wall_millis(now)).collect()
    }

    /// The primary's data.
    #[must_use]
    pub const fn primary(&self) -> &MemoryRegistry {
        &self.primary.state
    }

    /// How often a fault of each class hit something.
    #[must_use]
    pub const fn injected(&self) -> &[u64; CLASSES] {
        &self.injected
    }

    /// Rare things that happened, and how often.
    #[must_use]
    pub const fn marks(&self) -> &BTreeMap<&'static str, u64> {
        &self.ghost.marks
    }

    /// Whether O2, O3 and O5 held so far at the registry itself.
    ///
    /// # Errors
    /// The first violation.
    pub fn check(&self) -> Result<(), Violation> {
        self.ghost.check()
    }
}

fn before(now: Instant, by: Duration) -> Instant {
    Instant::from_nanos(now.as_nanos().saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
}

fn pick<T>(mut from: Vec<T>, draw: &mut dyn Draw) -> Option<T> {
    let n = u64::try_from(from.len()).ok().filter(|n| *n > 0)?;
    let ix = usize::try_from(draw.below(n)).ok()?;
    (ix < from.len()).then(|| from.swap_remove(ix))
}

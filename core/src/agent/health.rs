//! Checks of targets: when one is due, what its result means, and which
//! connectors are withdrawn by it (semantics 7). A target counts as up until
//! `fall` checks in a row have failed, and as down until `rise` in a row have
//! succeeded. A check that is not answered in time has failed; an answer to
//! another one than the last is ignored (C5). Holds one deadline a checked
//! connector. Must not know how a target is reached, nor who is told.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Agent;
use super::tunnels::Tunnels;
use crate::config::{ConnectorConfig, HealthConfig};
use crate::due::Due;
use crate::error::RstCode;
use crate::id::{Name, SessionKey};
use crate::mux::{Check, Mux, NodeOut};
use crate::observed::Observed;
use crate::rng::{Rng, Seed};
use crate::shard::ControlNote;
use crate::time::Instant;

/// The state of a target that is checked, for `status`, metrics and health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetView<'a> {
    /// Its connector.
    pub connector: &'a Name,
    /// Whether it passes its checks.
    pub up: bool,
    /// Checks since the start that succeeded.
    pub passed: u64,
    /// Checks since the start that failed.
    pub failed: u64,
    /// Why the last one failed, if it did.
    pub last: Option<RstCode>,
}

#[derive(Debug)]
struct Target {
    config: HealthConfig,
    up: bool,
    /// Results in a row that speak for the other state.
    against: u32,
    /// The check that is under way.
    asked: Option<u64>,
    /// When the one after it begins.
    next: Instant,
    passed: u64,
    failed: u64,
    last: Option<RstCode>,
}

/// Every target that is checked.
#[derive(Debug)]
pub(super) struct Health {
    targets: BTreeMap<Name, Target>,
    /// When something is to be done for one: a check begins, or is given up.
    due: Due<Name, ()>,
    checks: u64,
    rng: Rng,
}

impl Health {
    pub(super) fn new(connectors: &[ConnectorConfig], seed: &Seed, now: Instant) -> Self {
        let rng = seed.fork("health").rng();
        let mut health = Self { targets: BTreeMap::new(), due: Due::default(), checks: 0, rng };
        health.reload(now, &[], connectors);
        health
    }

    /// Takes other connectors. One whose target and checks stay keeps its
    /// state; every other begins as if it were up, with a check at once.
    pub(super) fn reload(&mut self, now: Instant, before: &[ConnectorConfig], connectors: &[ConnectorConfig]) {
        let mut old = std::mem::take(&mut self.targets);
        self.due = Due::default();
        for c in connectors {
            let Some(config) = c.health else { continue };
            let stays = before.iter().any(|b| b.name == c.name && b.target == c.target && b.health == c.health);
            let old = old.remove(&c.name);
            let (passed, failed) = old.as_ref().map_or((0, 0), |t| (t.passed, t.failed));
            let target = old.filter(|_| stays).unwrap_or(Target {
                config,
                up: true,
                against: 0,
                asked: None,
                next: now,
                passed,
                failed,
                last: None,
            });
            // An answer that is under way is waited for anew.
            let at = if target.asked.is_some() { now.after(config.timeout) } else { target.next };
            self.due.insert(c.name.clone(), at, ());
            self.targets.insert(c.name.clone(), target);
        }
    }

    /// Whether a connector may be exposed.
    pub(super) fn is_up(&self, connector: &Name) -> bool {
        self.targets.get(connector).is_none_or(|t| t.up)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.due.next()
    }

    /// Begins checks and gives up those that take too long. True if a target
    /// went down.
    fn handle_timeout(&mut self, now: Instant, out: &mut NodeOut) -> bool {
        let mut changed = false;
        while let Some(connector) = self.due.late(now) {
            let Some(t) = self.targets.get_mut(&connector) else { break };
            if let Some(number) = t.asked {
                changed |= self.on_checked(now, connector, number, Err(RstCode::TargetTimeout), out);
                continue;
            }
            self.checks += 1;
            t.asked = Some(self.checks);
            // The agents of many premises, and the targets of one, drift apart.
            let tenth = u64::try_from(t.config.interval.as_nanos() / 10).unwrap_or(u64::MAX).max(1);
            t.next = now.after(t.config.interval.saturating_sub(Duration::from_nanos(self.rng.next_u64() % tenth)));
            let timeout = t.config.timeout;
            self.due.insert(connector.clone(), now.after(timeout), ());
            out.checks.push(Check { connector, number: self.checks, timeout });
        }
        changed
    }

    /// A check came to a result. True if the connector is to be withdrawn, or
    /// exposed again.
    fn on_checked(
        &mut self,
        now: Instant,
        connector: Name,
        number: u64,
        result: Result<(), RstCode>,
        out: &mut NodeOut,
    ) -> bool {
        let Some(t) = self.targets.get_mut(&connector).filter(|t| t.asked == Some(number)) else { return false };
        t.asked = None;
        self.due.insert(connector.clone(), t.next.max(now), ());
        t.last = result.err();
        *(if result.is_ok() { &mut t.passed } else { &mut t.failed }) += 1;
        if result.is_ok() == t.up {
            t.against = 0;
            return false;
        }
        t.against += 1;
        if t.against < (if t.up { t.config.fall } else { t.config.rise }) {
            return false;
        }
        t.against = 0;
        t.up = result.is_ok();
        out.observed.push(match result {
            Ok(()) => Observed::TargetUp { connector },
            Err(code) => Observed::TargetDown { connector, code },
        });
        true
    }
}

impl Agent {
    /// What the checks of targets say.
    pub fn targets(&self) -> impl Iterator<Item = TargetView<'_>> {
        self.tunnels.health.targets.iter().map(|(connector, t)| TargetView {
            connector,
            up: t.up,
            passed: t.passed,
            failed: t.failed,
            last: t.last,
        })
    }
}

impl Tunnels {
    /// The connectors that are exposed now.
    pub(super) fn exposed(&self) -> impl Iterator<Item = &ConnectorConfig> {
        self.config.connectors.iter().filter(|c| self.health.is_up(&c.name))
    }

    /// Their names.
    pub(super) fn exposed_names(&self) -> Vec<Name> {
        self.exposed().map(|c| c.name.clone()).collect()
    }

    pub(super) fn on_checked(
        &mut self,
        now: Instant,
        connector: Name,
        number: u64,
        result: Result<(), RstCode>,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if self.health.on_checked(now, connector, number, result, out) {
            self.say_exposed(now, mux, notes, out);
        }
    }

    pub(super) fn check_targets(
        &mut self,
        now: Instant,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        // Who leaves exposes nothing any more.
        if !self.draining && self.health.handle_timeout(now, out) {
            self.say_exposed(now, mux, notes, out);
        }
    }

    /// Says what is exposed from now on, to the shard and on every tunnel that
    /// still takes streams. Streams that are open stay.
    pub(super) fn say_exposed(&mut self, now: Instant, mux: &mut Mux, notes: &mut Vec<ControlNote>, out: &mut NodeOut) {
        if self.draining {
            return;
        }
        notes.push(ControlNote::Exposes(self.exposed_names()));
        self.generation += 1;
        let keys: Vec<SessionKey> = mux.iter().map(|(key, _)| key).collect();
        for key in keys {
            if !self.is_withdrawn(key) {
                self.advertise(now, key, mux, out);
            }
        }
    }
}

//! Which hubs hold a lease, and since when, from what the registry carried out:
//! what a hub has to know of its peers' leases (L6) and of hubs that are gone
//! (B5). The registry's own data has the last word.
//!
//! Must not know what a hub heard of it.

use std::collections::BTreeMap;

use nowconnect_core::config::RegistryTimers;
use nowconnect_core::id::Name;
use nowconnect_core::registry::RegistryOp;
use nowconnect_core::time::Instant;

use crate::plan::MS;
use crate::registry::{Acted, RegistryModel};
use crate::world::World;

/// The leases, as they were renewed.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// What the registry carried out, as far as it was read.
    read: usize,
    /// Since when each replica has one without a gap, when it was renewed last,
    /// and until when.
    held: BTreeMap<Name, (u64, u64, u64)>,
    /// When each asked last for the end of its own.
    resigned: BTreeMap<Name, u64>,
}

/// A lease now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lease {
    /// It is held, without a gap since.
    Held(u64),
    /// It is over since, at the latest.
    Over(u64),
    /// There never was one.
    Never,
}

impl Leases {
    fn read(&mut self, registry: &RegistryModel) {
        for acted in registry.acted().iter().skip(self.read) {
            self.read += 1;
            let Acted::Renewed { hub, at, lease, .. } = acted else { continue };
            let (at, lasts) = (at.as_nanos(), lease.as_nanos() as u64);
            let held = self.held.entry(hub.replica_id.clone()).or_insert((at, at, at));
            // It ran out, or was given back and is taken again (an undrain).
            let resigned = self.resigned.get(&hub.replica_id).copied().unwrap_or(0);
            if at > held.2 || (held.1..=at).contains(&resigned) {
                held.0 = at;
            }
            (held.1, held.2) = (at, at + lasts);
        }
    }

    fn of(&self, registry: &RegistryModel, replica: &Name, now: u64) -> Lease {
        let Some((from, renewed, until)) = self.held.get(replica).copied() else { return Lease::Never };
        let resigned = self.resigned.get(replica).copied().unwrap_or(0);
        let wall = registry.wall_millis(Instant::from_nanos(now));
        let stored = registry.primary().lease(replica).is_some_and(|(_, end)| wall < end);
        if stored {
            Lease::Held(from.max(resigned))
        } else {
            Lease::Over(if resigned > renewed { until.min(resigned) } else { until })
        }
    }
}

/// Operations that a hub may wait for, one after the other, before it knows.
const OPS: u64 = 3;

/// How long a hub may take to hear of a lease: it asks behind each renewal.
pub(super) fn heard_within() -> u64 {
    let t = RegistryTimers::default();
    (t.renew_every * 2 + t.op_timeout).as_nanos() as u64 + OPS * t.op_timeout.as_nanos() as u64
}

impl World {
    /// A hub asks the registry for the end of its lease.
    pub(super) fn lease_resigned(&mut self, op: &RegistryOp) {
        if let RegistryOp::Resign { hub } = op {
            self.check.leases.resigned.insert(hub.replica_id.clone(), self.now);
        }
    }

    /// Reads what the registry carried out since.
    pub(super) fn read_leases(&mut self) {
        self.check.leases.read(&self.registry);
    }

    /// The lease of a hub of the plan.
    pub(super) fn lease_of(&self, hub: u16) -> Lease {
        let name = crate::node::name(&self.nodes[usize::from(hub)].name);
        self.check.leases.of(&self.registry, &name, self.now)
    }

    /// Whether nothing was the matter with the registry, nor with who reaches
    /// which, for so long.
    pub(super) fn registry_quiet_for(&self, long: u64) -> bool {
        !self.registry.is_faulty() && self.check.registry_hurt + long < self.now
    }

    /// L6: a peer that has held its lease for so long that whoever has no link to
    /// it must miss it, whatever it was told before.
    pub(super) fn is_peer_due(&self, peer: u16, grace: u64) -> bool {
        let long = heard_within() + grace;
        self.registry_quiet_for(long) && matches!(self.lease_of(peer), Lease::Held(since) if since + long < self.now)
    }

    /// L6: a peer that has been without a lease for so long that nobody may miss
    /// it who can ask.
    pub(super) fn is_peer_gone(&self, ix: u16, peer: u16, slack: u64) -> bool {
        let long = heard_within() + slack;
        let asks = self.check.nodes.get(&ix).is_some_and(|g| {
            g.unhealthy_since.is_none() && g.healthy_since + long < self.now && g.ok_at + 2000 * MS > self.now
        });
        asks && self.registry_quiet_for(long)
            && matches!(self.lease_of(peer), Lease::Over(since) if since + long < self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nowconnect_core::id::Incarnation;
    use nowconnect_core::registry::{HubRun, Token};
    use std::time::Duration;

    fn step(r: &mut RegistryModel, at: u64, op: RegistryOp) {
        let client = crate::registry::Client { node: 0, run: 1 };
        let (mut effects, mut none) = (Vec::new(), |_: u64| 0);
        r.submit(Instant::from_nanos(at), client, Token(1), op, &mut none, &mut effects);
        while let Some(effect) = effects.pop() {
            if let crate::registry::Effect::At(at, step) = effect {
                r.step(at, step, &mut none, &mut effects);
            }
        }
    }

    #[test]
    fn a_lease_is_held_from_its_first_renewal_without_a_gap_and_over_when_given_back() {
        let (mut r, mut leases) = (RegistryModel::new(1_800_000_000_000), Leases::default());
        let hub = HubRun { replica_id: crate::node::name("hub-0"), incarnation: Incarnation(1) };
        let renew =
            || RegistryOp::Renew { hub: hub.clone(), lease: Duration::from_secs(10), takes_over: None, region: None };
        let s = 1000 * MS;
        let of = |l: &mut Leases, r: &RegistryModel, now| {
            l.read(r);
            l.of(r, &hub.replica_id, now)
        };
        assert_eq!(of(&mut leases, &r, s), Lease::Never);
        step(&mut r, s, renew());
        let Lease::Held(first) = of(&mut leases, &r, 2 * s) else { panic!("it was renewed") };
        assert!((s..s + 10 * MS).contains(&first));
        step(&mut r, 9 * s, renew());
        assert_eq!(of(&mut leases, &r, 15 * s), Lease::Held(first), "without a gap");
        assert!(matches!(of(&mut leases, &r, 20 * s), Lease::Over(at) if (19 * s..20 * s).contains(&at)));
        step(&mut r, 30 * s, renew());
        assert!(matches!(of(&mut leases, &r, 31 * s), Lease::Held(at) if at >= 30 * s));
        step(&mut r, 32 * s, RegistryOp::Resign { hub: hub.clone() });
        leases.resigned.insert(hub.replica_id.clone(), 32 * s);
        assert_eq!(of(&mut leases, &r, 33 * s), Lease::Over(32 * s));
    }
}

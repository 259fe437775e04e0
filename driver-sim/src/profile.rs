//! Named kinds of runs: what a profile fixes, the tape does not draw.

use crate::faults::Class;
use crate::plan::{ModePlan, Plan};
use crate::scenario;
use crate::tape::Lane;

/// A kind of run.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is for, one line.
    pub what: &'static str,
    /// Hubs, if fixed.
    pub hubs: Option<u8>,
    /// Agents, if fixed.
    pub agents: Option<u8>,
    /// Clients, if fixed.
    pub clients: Option<u16>,
    /// Length of the safety phase in milliseconds, if fixed.
    pub safety_ms: Option<u64>,
    /// Mode of the hubs, if fixed.
    pub mode: Option<ModePlan>,
    /// Whether hubs may be split, if fixed.
    pub split: Option<bool>,
    /// Planned faults a minute, if fixed; 0 switches all faults off.
    pub faults_per_minute: Option<u32>,
    /// Classes of faults; empty: swarm selection among all.
    pub classes: &'static [Class],
    /// Largest direction, bytes.
    pub bytes_max: u32,
    /// Shapes the drawn plan: a named scenario.
    pub script: Option<fn(&mut Plan, &mut Lane)>,
}

const SWARM: Profile = Profile {
    name: "swarm",
    what: "everything drawn; each class of faults off in about half the runs",
    hubs: None,
    agents: None,
    clients: None,
    safety_ms: None,
    mode: None,
    split: None,
    faults_per_minute: None,
    classes: &[],
    bytes_max: 1 << 20,
    script: None,
};

/// A calm base for a scripted scenario.
const SCENARIO: Profile = Profile {
    hubs: Some(2),
    agents: Some(2),
    clients: Some(24),
    safety_ms: Some(60_000),
    mode: Some(ModePlan::Active),
    faults_per_minute: Some(0),
    ..SWARM
};

/// All profiles; the first is the default.
pub const PROFILES: &[Profile] = &[
    SWARM,
    Profile {
        name: "calm",
        what: "no faults at all: nothing may be refused or reset",
        faults_per_minute: Some(0),
        ..SWARM
    },
    Profile {
        name: "network",
        what: "only the network fails",
        classes: &[Class::Cut, Class::Block, Class::Slow, Class::Dial],
        ..SWARM
    },
    Profile {
        name: "process",
        what: "hubs and agents crash, pause and lag",
        classes: &[Class::Crash, Class::Pause, Class::Lag],
        ..SWARM
    },
    Profile {
        name: "registry",
        what: "only the registry fails",
        classes: &[Class::Registry],
        mode: Some(ModePlan::Active),
        ..SWARM
    },
    Profile {
        name: "speed",
        what: "3 hubs, 4 agents, 50 streams, faults on: the figure of the README",
        hubs: Some(3),
        agents: Some(4),
        clients: Some(50),
        safety_ms: Some(60_000),
        mode: Some(ModePlan::Active),
        split: Some(false),
        faults_per_minute: Some(20),
        ..SWARM
    },
    Profile {
        name: "failover-move-wake",
        what: "a failover loses the claim of an agent that moved while its old hub slept",
        script: Some(scenario::failover_move_wake),
        ..SCENARIO
    },
    Profile {
        name: "asymmetric-fin-resume",
        what: "the mesh passes one way only, breaks and resumes while FINs are under way",
        script: Some(scenario::asymmetric_fin_resume),
        ..SCENARIO
    },
    Profile {
        name: "lease-renewal-lost",
        what: "a lease ends while the answers to its renewals get lost",
        script: Some(scenario::lease_renewal_lost),
        ..SCENARIO
    },
    Profile {
        name: "sweep-between",
        what: "the sweeper runs between a claim and the announcement of its connectors",
        script: Some(scenario::sweep_between),
        ..SCENARIO
    },
    Profile {
        name: "drain-in-flip",
        what: "a hub drains while the modes of the hubs change",
        script: Some(scenario::drain_in_flip),
        ..SCENARIO
    },
    Profile {
        name: "rolling-drain",
        what: "one hub after the other leaves, with time for its agents and clients to go elsewhere",
        hubs: Some(3),
        agents: Some(3),
        clients: Some(48),
        script: Some(scenario::rolling_drain),
        ..SCENARIO
    },
    Profile {
        name: "rotation",
        what: "hubs get certificates of another CA while they start anew and prove themselves",
        hubs: Some(3),
        script: Some(scenario::rotation),
        ..SCENARIO
    },
    Profile {
        name: "reloads",
        what: "configurations change: peers, hubs, listeners, connectors, limits; nothing else goes wrong",
        hubs: Some(3),
        clients: Some(48),
        script: Some(scenario::reloads),
        ..SCENARIO
    },
    Profile {
        name: "lease-edge",
        what: "renewals answered late and then not at all while other hubs open streams",
        script: Some(scenario::lease_edge),
        ..SCENARIO
    },
    Profile {
        name: "slow-claims",
        what: "claims are answered after their time-out while agents come and go",
        script: Some(scenario::slow_claims),
        ..SCENARIO
    },
    Profile {
        name: "dial-together",
        what: "hubs far from each other start at one moment and dial each other",
        script: Some(scenario::dial_together),
        ..SCENARIO
    },
    Profile {
        name: "registry-out",
        what: "clients of hubs without an agent while the registry does not answer",
        script: Some(scenario::registry_out),
        ..SCENARIO
    },
    Profile {
        name: "thin-wire",
        what: "many streams with much to say over a thin wire",
        script: Some(scenario::thin_wire),
        ..SCENARIO
    },
    Profile {
        name: "fairness",
        what: "streams that stall beside others; run again without them",
        script: Some(scenario::fairness),
        ..SCENARIO
    },
    Profile {
        name: "short-tokens",
        what: "agents come back with tokens that name less or run out, while clients go on asking",
        script: Some(scenario::short_tokens),
        ..SCENARIO
    },
    Profile {
        name: "steady-cuts",
        what: "a node loses its connections again and again, each after it had lasted",
        script: Some(scenario::steady_cuts),
        ..SCENARIO
    },
    Profile {
        name: "rogue",
        what: "hostile agents and hubs break every rule; nothing else goes wrong, for anybody",
        script: Some(scenario::rogue),
        ..SCENARIO
    },
    Profile {
        name: "burst",
        what: "thousands of clients at one moment, with little to say each",
        faults_per_minute: Some(12),
        clients: Some(12),
        script: Some(scenario::burst),
        ..SCENARIO
    },
    Profile {
        name: "trust",
        what: "a CA leaves one hub after the other while links rest on it; their peers get certificates of another",
        hubs: Some(3),
        script: Some(scenario::trust),
        ..SCENARIO
    },
    Profile {
        name: "scale",
        what: "one hub becomes several and one again: late ones come, are drained and gone for good",
        hubs: Some(3),
        agents: Some(3),
        clients: Some(48),
        script: Some(scenario::scale),
        ..SCENARIO
    },
];

/// The name of the rotation on the command line.
pub const MIXED: &str = "mixed";

/// Which profile a seed runs.
#[derive(Clone, Copy, Debug)]
pub enum Choice {
    /// Every seed the same.
    One(&'static Profile),
    /// Even seeds the first profile of [`PROFILES`], odd ones all others in turn.
    Mixed,
}

impl Choice {
    /// The choice with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        if name == MIXED { Some(Self::Mixed) } else { Profile::named(name).map(Self::One) }
    }

    /// The profile of a seed.
    #[must_use]
    pub fn of(self, seed: u64) -> &'static Profile {
        match self {
            Self::One(profile) => profile,
            Self::Mixed if seed.is_multiple_of(2) => &SWARM,
            Self::Mixed => {
                let others = PROFILES.len() - 1;
                PROFILES.get(1 + (seed / 2 % others as u64) as usize).unwrap_or(&SWARM)
            }
        }
    }

    /// Whether a campaign of it must meet every mark.
    #[must_use]
    pub fn meets_every_mark(self) -> bool {
        match self {
            Self::Mixed => true,
            Self::One(profile) => profile.name == SWARM.name,
        }
    }
}

impl Profile {
    /// The profile with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        PROFILES.iter().find(|p| p.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rotation_runs_every_profile_and_half_of_it_is_swarm() {
        let turn = 2 * (PROFILES.len() as u64 - 1);
        let names: Vec<&str> = (40..40 + turn).map(|s| Choice::Mixed.of(s).name).collect();
        for p in PROFILES {
            let n = names.iter().filter(|n| **n == p.name).count() as u64;
            assert_eq!(n, if p.name == SWARM.name { turn / 2 } else { 1 }, "{}", p.name);
        }
    }

    #[test]
    fn names_are_found_and_none_is_taken_twice() {
        for p in PROFILES {
            assert_eq!(PROFILES.iter().filter(|q| q.name == p.name).count(), 1);
            assert_eq!(Choice::named(p.name).map(|c| c.of(1).name), Some(p.name));
            assert_ne!(p.name, MIXED);
        }
        assert!(Choice::named("swar").is_none());
    }
}

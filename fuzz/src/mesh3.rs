//! `mesh3` (verification (e) 11): the simulator itself on a tape of bytes: three
//! hubs, two agents, their registry and every class of faults. Judged: all that
//! the simulator judges. A failure is a run that `nowconnect-sim` can explain.

use nowconnect_sim::plan::{Level, Plan};
use nowconnect_sim::profile::{PROFILES, Profile};
use nowconnect_sim::run::{Keep, run_on};
use nowconnect_sim::tape::Tape;

/// A small world, so that a fuzzer sees many.
const CLIENTS: u16 = 8;
const SAFETY_MS: u64 = 10_000;

/// The profile: everything drawn, in a small world.
fn small() -> Profile {
    Profile {
        hubs: Some(3),
        agents: Some(2),
        clients: Some(CLIENTS),
        safety_ms: Some(SAFETY_MS),
        bytes_max: 1 << 14,
        ..PROFILES[0].clone()
    }
}

/// Three hubs and two agents keep every promise, whatever the tape does to them.
pub fn mesh3(data: &[u8]) {
    let tape = Tape::from_bytes(data);
    let plan = Plan::draw(&tape, 0, &small(), Level::L0);
    let report = run_on(plan, tape, Keep::Outcome);
    if let Some(v) = report.violation {
        panic!("{}: {}", v.id, v.text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes are choices: other bytes are another run, the same are the same.
    #[test]
    fn the_bytes_decide_the_run() {
        let hash = |data: &[u8]| {
            let tape = Tape::from_bytes(data);
            let plan = Plan::draw(&tape, 0, &small(), Level::L0);
            assert_eq!((plan.hubs.len(), plan.agents.len()), (3, 2));
            run_on(plan, tape, Keep::Outcome).hash
        };
        let bytes: Vec<u8> = (0..=255).cycle().take(1024).collect();
        let mut other = bytes.clone();
        other[0] ^= 1;
        assert_eq!(hash(&bytes), hash(&bytes));
        assert_ne!(hash(&bytes), hash(&other));
        assert_ne!(hash(&bytes), hash(&[]));
    }
}

//! Differential runs: one tape, three deployments. With HA absent (one hub with
//! no peer and no registry), off and shadow every client must see the same, byte
//! for byte and end for end, whatever befalls the registry and the mesh (M1, M2).
//!
//! What is compared is what a client can see: how much it read, whether its
//! connection ended in order, and with what. Times are not. Must not know what
//! a mode does.

use crate::faults::{At, Fault};
use crate::plan::{Ending, Level, ModePlan, Plan};
use crate::profile::Profile;
use crate::run::{Keep, plan, run};
use crate::world::Violation;

/// One seed in this many of a campaign is also run as a difference.
pub const EVERY: u64 = 50;

/// How a client or a target ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ended {
    /// Not yet.
    NotYet,
    /// In order, both ways.
    InOrder,
    /// By its own abort.
    Aborted,
    /// By a reset, or not connected at all.
    Reset,
}

/// What one end of a stream saw.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Transcript {
    /// The client's number.
    pub client: u32,
    /// The client itself, or its target.
    pub is_client: bool,
    /// Bytes it read; each was checked when it came.
    pub read: u64,
    /// It was shown an end.
    pub eof: bool,
    /// How it ended: which of several deadlines came first is not told.
    pub fate: Ended,
}

/// A plan that leaves nothing to chance between the three: what happens to
/// clients and their own hub's agents stays, faults of the mesh and the registry
/// stay, and nothing else goes wrong.
fn even(mut p: Plan) -> Plan {
    p.at_vulnerable = 0;
    p.hostile = 0;
    p.triggered = None;
    p.late_timers_ns = 0;
    // Draws of the network are shared by all connections: without jitter none counts.
    p.net.jitter = 0;
    p.v1 = 0;
    p.net.buffer = (4 << 20, 4 << 20);
    p.net.bandwidth = (1 << 30, 1 << 30);
    p.faults.retain(|f| match f.fault {
        Fault::Registry { .. } => true,
        Fault::Cut { a, b, .. } | Fault::Block { a, b, .. } | Fault::Flap { a, b, .. } | Fault::Slow { a, b, .. } => {
            matches!((a, b), (At::Hub(_), At::Hub(_)))
        }
        Fault::CutAll { .. }
        | Fault::Isolate { .. }
        | Fault::RefuseDials { .. }
        | Fault::Redirect { .. }
        | Fault::Crash { .. }
        | Fault::Pause { .. }
        | Fault::Lag { .. }
        | Fault::Clone { .. }
        | Fault::Targets { .. }
        | Fault::AbortTargets { .. }
        | Fault::Drain { .. }
        | Fault::Mode { .. }
        | Fault::Swizzle { .. }
        | Fault::Stop { .. } => false,
    });
    let hubs = p.hubs.len() as u8;
    for a in &mut p.agents {
        // Which hub an agent finds first is chance: it is at every one of them but
        // the last, whose clients can only be carried across, or not at all.
        let served = hubs.max(2) - 1;
        a.hubs = (0..served).collect();
        a.parallel = u16::from(served);
        a.start_ns = 0;
        a.token_ns = 0;
        a.budget = 512 << 20;
    }
    for h in &mut p.hubs {
        h.budget = 512 << 20;
        h.shards = 0;
    }
    // Clients that come while agents still attach see the attaching, which the
    // registry may delay; later ones may not see a difference.
    let from = 15_000 * crate::plan::MS;
    for c in &mut p.clients {
        // How far a stream came when somebody aborts it is a matter of time.
        for end in [&mut c.client_end, &mut c.target_end] {
            if matches!(end, Ending::Abort(_) | Ending::AbortAfterRead(_)) {
                *end = Ending::Fin;
            }
        }
        c.at = c.at.max(from) + if c.at < from { c.at / 8 } else { 0 };
    }
    p
}

fn with_mode(p: &Plan, mode: ModePlan, peers: bool) -> Plan {
    let mut p = p.clone();
    for h in &mut p.hubs {
        h.mode = mode;
        if !peers {
            h.peers.clear();
        }
    }
    if !peers {
        p.faults.clear();
    }
    p
}

/// The three runs of a seed compared. An `Err` names the first difference, or
/// what a run itself found wrong.
///
/// # Errors
/// When transcripts differ, or one of the runs fails.
pub fn diff(seed: u64, profile: &Profile, level: Level) -> Result<(), Violation> {
    compare(&even(plan(seed, profile, level)))
}

fn compare(even: &Plan) -> Result<(), Violation> {
    let absent = transcript(with_mode(even, ModePlan::Off, false))?;
    for (name, id, mode) in [("off", "M1", ModePlan::Off), ("shadow", "M2", ModePlan::Shadow)] {
        let other = transcript(with_mode(even, mode, true))?;
        if let Some((a, b)) = absent.iter().zip(&other).find(|(a, b)| a != b) {
            let text = format!("without HA: {a:?}; with mode {name}: {b:?}");
            return Err(Violation::new(id, text));
        }
        if absent.len() != other.len() {
            let text = format!("without HA {} ends were seen, with mode {name} {}", absent.len(), other.len());
            return Err(Violation::new(id, text));
        }
    }
    Ok(())
}

fn transcript(plan: Plan) -> Result<Vec<Transcript>, Violation> {
    let report = run(plan, Keep::Outcome);
    match report.violation {
        Some(v) => Err(v),
        None => Ok(report.transcripts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_without_a_route_across_look_alike_and_active_does_not() {
        let profile = Profile::named("swarm").expect("the default profile");
        let mut differs = 0;
        for seed in 0..6 {
            assert_eq!(diff(seed, profile, Level::L0), Ok(()), "seed {seed}");
            let even = even(plan(seed, profile, Level::L0));
            let active = transcript(with_mode(&even, ModePlan::Active, true));
            let absent = transcript(with_mode(&even, ModePlan::Off, false));
            differs += u32::from(active != absent);
        }
        assert!(differs > 0, "clients carried across hubs are seen");
    }
}

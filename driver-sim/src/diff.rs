//! Differential runs: one tape, several deployments. With HA absent (one hub with
//! no peer and no registry), off and shadow every client must see the same, byte
//! for byte and end for end, whatever befalls the registry and the mesh (M1, M2).
//!
//! What is compared is what a client can see: how much it read, whether its
//! connection ended in order, and with what. Times are not. Must not know what
//! a mode does.

use crate::faults::{At, Fault};
use crate::plan::{Ending, Level, ModePlan, Plan, Twin};
use crate::profile::Profile;
use crate::run::Report;
use crate::tape::mix;
use crate::world::Violation;

/// One seed in this many of a campaign is also run as a difference.
pub const EVERY: u64 = 50;
/// Other seeds than those that are run twice.
const SALT: u64 = 0x006d_6f64_6573;

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
    p.twin = Some(Twin::Modes);
    p.at_vulnerable = 0;
    p.hostile = 0;
    p.rogues.clear();
    p.triggered = None;
    // A node that is gone at one instant ends streams wherever they are then.
    p.frozen = None;
    p.late_timers_ns = 0;
    // Draws of the network are shared by all connections: without jitter none counts.
    p.net.jitter = 0;
    p.net.exponential = false;
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
        | Fault::Address { .. }
        | Fault::Stall { .. }
        | Fault::Elsewhere { .. }
        | Fault::Partition { .. }
        | Fault::Crash { .. }
        | Fault::Pause { .. }
        | Fault::Lag { .. }
        | Fault::Clone { .. }
        | Fault::Targets { .. }
        | Fault::AbortTargets { .. }
        | Fault::Drain { .. }
        | Fault::Mode { .. }
        | Fault::Reload { .. }
        | Fault::Certificate { .. }
        | Fault::Swizzle { .. }
        | Fault::IdleCut { .. }
        | Fault::IngressRestart { .. }
        | Fault::NoDescriptors { .. }
        | Fault::Twin { .. }
        | Fault::Leave { .. }
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
        h.start_ns = 0;
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
    p.twin = None;
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

/// The plan of a seed, to be carried out in the three deployments.
#[must_use]
pub fn plan(seed: u64, profile: &Profile, level: Level) -> Plan {
    even(crate::run::plan(seed, profile, level))
}

/// Whether a campaign compares the deployments of a seed.
#[must_use]
pub const fn its_turn(seed: u64) -> bool {
    mix(seed ^ SALT).is_multiple_of(EVERY)
}

/// The deployments of a plan; `carry_out` runs one. The report is that of
/// the one in which a client saw something else than without HA, or of the first
/// that failed by itself.
pub(crate) fn compare(even: &Plan, mut carry_out: impl FnMut(Plan) -> Report) -> Report {
    let absent = carry_out(with_mode(even, ModePlan::Off, false));
    if absent.violation.is_some() {
        return within("without HA", absent);
    }
    let off = carry_out(with_mode(even, ModePlan::Off, true));
    let off = judge(&absent, off, "off", "M1");
    if off.violation.is_some() {
        return off;
    }
    let shadow = carry_out(with_mode(even, ModePlan::Shadow, true));
    let shadow = judge(&absent, shadow, "shadow", "M2");
    let (Some(last), true) = (even.hubs.len().checked_sub(1), even.hubs.len() > 1) else { return shadow };
    if shadow.violation.is_some() {
        return shadow;
    }
    // Modes may differ between hubs: the one without an agent beside active ones,
    // which would carry its clients if it let them.
    let (mode, name, id) = if even.seed.is_multiple_of(2) {
        (ModePlan::Shadow, "shadow beside active hubs", "M2")
    } else {
        (ModePlan::Off, "off beside active hubs", "M1")
    };
    let mut mixed = with_mode(even, ModePlan::Active, true);
    mixed.hubs[last].mode = mode;
    let its_own = |r: &mut Report| {
        r.transcripts.retain(|t| even.clients.iter().any(|c| c.id == t.client && usize::from(c.hub) == last));
    };
    let (mut absent, mut beside) = (absent, carry_out(mixed));
    its_own(&mut absent);
    its_own(&mut beside);
    judge(&absent, beside, name, id)
}

/// What a run found by itself, and where.
fn within(deployment: &str, mut report: Report) -> Report {
    if let Some(v) = &mut report.violation {
        v.text = format!("{deployment}: {}", v.text);
    }
    report
}

fn judge(absent: &Report, mut other: Report, mode: &str, id: &str) -> Report {
    if other.violation.is_some() {
        return within(&format!("in mode {mode}"), other);
    }
    let (a, b) = (&absent.transcripts, &other.transcripts);
    let text = if let Some((a, b)) = a.iter().zip(b).find(|(a, b)| a != b) {
        Some(format!("without HA {a}; in mode {mode} {b}"))
    } else if a.len() == b.len() {
        None
    } else {
        Some(format!("without HA {} ends were seen, in mode {mode} {}", a.len(), b.len()))
    };
    other.violation = text.map(|text| Violation::new(id, text));
    other
}

impl std::fmt::Display for Transcript {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (side, eof) = (crate::actor::side(self.is_client), if self.eof { " and its end" } else { "" });
        write!(f, "the {side} of client {} read {} bytes{eof} ({:?})", self.client, self.read, self.fate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Keep, run};

    fn swarm() -> &'static Profile {
        Profile::named("swarm").expect("the default profile")
    }

    #[test]
    fn modes_without_a_route_across_look_alike_and_active_does_not() {
        let mut differs = 0;
        for seed in 0..6 {
            let even = plan(seed, swarm(), Level::L0);
            assert_eq!(run(even.clone(), Keep::Outcome).violation, None, "seed {seed}");
            let seen = |mode, peers| run(with_mode(&even, mode, peers), Keep::Outcome).transcripts;
            differs += u32::from(seen(ModePlan::Active, true) != seen(ModePlan::Off, false));
        }
        assert!(differs > 0, "clients carried across hubs are seen");
    }

    #[test]
    fn what_a_client_sees_otherwise_is_named() {
        let even = plan(1, swarm(), Level::L0);
        // A deployment in which one client sees a byte less.
        let report = compare(&even, |plan| {
            let shadow = plan.hubs.iter().all(|h| h.mode == ModePlan::Shadow);
            let mut r = run(plan, Keep::Outcome);
            let short = r.transcripts.iter_mut().find(|t| shadow && t.is_client && t.read > 0);
            short.into_iter().for_each(|t| t.read -= 1);
            r
        });
        let found = report.violation.expect("a difference");
        assert_eq!(found.id, "M2");
        assert!(found.text.contains("of client ") && found.text.contains("in mode shadow"), "{}", found.text);
    }

    #[test]
    fn one_seed_in_fifty_has_its_turn() {
        let turns = (0..50_000).filter(|s| its_turn(*s)).count();
        assert!((900..1100).contains(&turns), "{turns} of 50,000");
    }

    #[cfg(feature = "planted")]
    #[test]
    fn a_shadow_that_moves_the_routing_table_is_noticed() {
        crate::panics::keep_quiet();
        let found = (0..20).find_map(|seed| {
            let report = crate::run::run_planted(plan(seed, swarm(), Level::L0), 50, Keep::Outcome);
            report.expect("bug 50 is in this build").violation
        });
        assert_eq!(found.map(|v| v.id).as_deref(), Some("M2"));
    }
}

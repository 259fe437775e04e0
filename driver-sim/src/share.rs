//! The share of goodput that a stream keeps beside others that stall (L7): the
//! run is repeated without those, and whoever is slower with them than without
//! by more than a fifth was held up.
//!
//! Compares virtual times of whole streams. Must not know why a stream stalls.

use crate::plan::Plan;
use crate::run::Report;
use crate::world::Violation;

/// Of its goodput alone a stream keeps so many hundredths.
const KEPT: u128 = 80;
/// Streams below this are all latency and say nothing about a share.
const ENOUGH: u64 = 128 << 10;

/// What a client and its target read, and how long it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The client.
    pub client: u32,
    /// Payload both ends read.
    pub bytes: u64,
    /// When it connected, nanoseconds.
    pub from: u64,
    /// When both directions had ended in order; `None` if they never did.
    pub to: Option<u64>,
}

/// The plan without these clients.
fn without(plan: &Plan, stalled: &[u32]) -> Plan {
    let mut plan = plan.clone();
    plan.twin = None;
    plan.clients.retain(|c| !stalled.contains(&c.id));
    plan
}

/// The plan with and without the clients that stall; `carry_out` runs one.
pub(crate) fn compare(plan: &Plan, stalled: &[u32], mut carry_out: impl FnMut(Plan) -> Report) -> Report {
    let mut with = carry_out(Plan { twin: None, ..plan.clone() });
    if with.violation.is_some() {
        return with;
    }
    let mut solo = carry_out(without(plan, stalled));
    if let Some(v) = &mut solo.violation {
        v.text = format!("without the clients that stall: {}", v.text);
        return solo;
    }
    with.violation = solo.spans.iter().find_map(|alone| judge(plan, alone, &with));
    with
}

/// L7: one stream beside the stalled ones and without them.
fn judge(plan: &Plan, alone: &Span, with: &Report) -> Option<Violation> {
    // What ended only because the world healed tells nothing.
    let until = alone.to.filter(|to| *to < plan.safety_ns && alone.bytes >= ENOUGH)?;
    let beside = with.spans.iter().find(|s| s.client == alone.client);
    let (took, bytes) = (until - alone.from, alone.bytes);
    let (slower, beside_bytes) = match beside {
        Some(Span { to: Some(to), bytes, from, .. }) => (to - from, *bytes),
        Some(s) => (u64::MAX, s.bytes),
        None => (u64::MAX, 0),
    };
    // bytes / time with them >= 80 % of bytes / time alone.
    let kept = u128::from(beside_bytes) * u128::from(took) * 100 >= u128::from(bytes) * u128::from(slower) * KEPT;
    let ms = |ns: u64| if ns == u64::MAX { "for ever".to_owned() } else { format!("{} ms", ns / crate::plan::MS) };
    (!kept).then(|| {
        let text = format!(
            "client {} carried {bytes} bytes in {}; beside streams that stall {beside_bytes} in {}",
            alone.client,
            ms(took),
            ms(slower)
        );
        Violation::new("L7", text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Level, Twin};
    use crate::profile::Profile;
    use crate::run::{Keep, run};

    fn drawn(seed: u64) -> Plan {
        crate::run::plan(seed, Profile::named("fairness").expect("a profile"), Level::L0)
    }

    #[test]
    fn a_share_is_judged_of_streams_that_had_enough_to_say() {
        let mut judged = 0;
        for seed in 0..8 {
            let plan = drawn(seed);
            let Some(Twin::Without(stalled)) = plan.twin.clone() else { panic!("a plan to compare") };
            assert!(!stalled.is_empty() && stalled.len() < plan.clients.len());
            let report = run(plan.clone(), Keep::Outcome);
            assert_eq!(report.violation, None, "seed {seed}");
            let solo = run(without(&plan, &stalled), Keep::Outcome);
            let counts = |s: &&Span| s.bytes >= ENOUGH && s.to.is_some_and(|to| to < plan.safety_ns);
            judged += solo.spans.iter().filter(counts).count();
        }
        assert!(judged > 16, "{judged} streams compared");
    }

    #[test]
    fn who_is_slower_by_more_than_a_fifth_was_held_up() {
        let plan = drawn(1);
        let solo = Span { client: 3, bytes: 1 << 20, from: 0, to: Some(8_000_000_000) };
        let mut with = run(Plan { twin: None, ..plan.clone() }, Keep::Outcome);
        for (to, held_up) in [(Some(9_990_000_000), false), (Some(10_010_000_000), true), (None, true)] {
            with.spans = vec![Span { to, ..solo }];
            assert_eq!(judge(&plan, &solo, &with).is_some(), held_up, "{to:?}");
        }
        with.spans.clear();
        assert_eq!(judge(&plan, &solo, &with).map(|v| v.id).as_deref(), Some("L7"));
    }
}

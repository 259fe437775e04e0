//! The share of goodput that streams keep beside others that stall (L7): the
//! run is repeated without those, and who carries a fifth less a second with
//! them than without was held up.
//!
//! The streams compared are equals on one wire. Which of them the windows
//! favour is chance and may be another one in each run, so the fastest of one
//! run is compared with the fastest of the other, the second with the second,
//! and so on to the slowest: each place keeps its share, and so does whoever is
//! on it. A direction counts as carried when its reader has seen its end, not
//! when its writer's socket has taken it.
//!
//! When acknowledgements meet the other direction's data matters too, and one
//! pair of runs may fall into step where the other does not. So a share that
//! looks too small is measured on further draws of the wire, and the middle one
//! of [`ROUNDS`] counts: what stalled streams cost, they cost every time.
//!
//! Compares virtual times of whole streams. Must not know why a stream stalls.

use std::cmp::Ordering;

use crate::plan::Plan;
use crate::run::Report;
use crate::world::Violation;

/// Of its goodput alone a stream keeps so many hundredths.
const KEPT: u128 = 80;
/// Pairs of runs that settle a doubt.
pub(crate) const ROUNDS: u64 = 5;
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

/// The plan with and without the clients that stall; `carry_out` runs one on a
/// draw of the wire, the plan's own first.
pub(crate) fn compare(plan: &Plan, stalled: &[u32], mut carry_out: impl FnMut(Plan, u64) -> Report) -> Report {
    let mut pair = |round| {
        let with = carry_out(Plan { twin: None, ..plan.clone() }, round);
        if with.violation.is_some() {
            return Err(Box::new(with));
        }
        let mut solo = carry_out(without(plan, stalled), round);
        if let Some(v) = &mut solo.violation {
            v.text = format!("without the clients that stall: {}", v.text);
            return Err(Box::new(solo));
        }
        Ok((worst(plan, &solo.spans, &with.spans), with))
    };
    let mut found = Vec::new();
    let mut own = None;
    for round in 0..ROUNDS {
        match pair(round) {
            Ok((share, with)) => {
                found.extend(share);
                let with = own.get_or_insert(with);
                if round == 0 && found.iter().all(|s| s.kept >= KEPT) {
                    return with.clone();
                }
            }
            Err(broken) => return *broken,
        }
    }
    let mut report = own.expect("there is a first round");
    report.violation = judge(found);
    report
}

/// What a stream carried, and in what time.
#[derive(Clone, Copy, Debug)]
struct Pace {
    client: u32,
    bytes: u64,
    /// Nanoseconds; `u64::MAX`: it never ended.
    took: u64,
}

impl Pace {
    fn of(span: &Span) -> Self {
        let took = span.to.map_or(u64::MAX, |to| to.saturating_sub(span.from).max(1));
        Self { client: span.client, bytes: span.bytes, took }
    }

    /// Both sides of `a.bytes / a.took` against `b.bytes / b.took`.
    fn goodputs(a: &Self, b: &Self) -> (u128, u128) {
        (u128::from(a.bytes) * u128::from(b.took), u128::from(b.bytes) * u128::from(a.took))
    }

    fn faster(a: &Self, b: &Self) -> Ordering {
        let (a, b) = Self::goodputs(a, b);
        b.cmp(&a)
    }
}

impl std::fmt::Display for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "client {} carried {} bytes ", self.client, self.bytes)?;
        match self.took {
            u64::MAX => f.write_str("and never ended"),
            ns => write!(f, "in {} ms", ns / crate::plan::MS),
        }
    }
}

/// What the worst place kept of its goodput in one pair of runs.
#[derive(Clone, Debug)]
struct Share {
    /// Hundredths.
    kept: u128,
    text: String,
}

/// The streams beside the stalled ones and without them; `None` if nothing
/// can be said.
fn worst(plan: &Plan, solo: &[Span], with: &[Span]) -> Option<Share> {
    // What ended only because the world healed tells nothing.
    let tells = |s: &&Span| s.to.is_some_and(|to| to < plan.safety_ns) && s.bytes >= ENOUGH;
    let mut alone: Vec<Pace> = solo.iter().filter(tells).map(Pace::of).collect();
    let beside = |p: &Pace| {
        let span = with.iter().find(|s| s.client == p.client);
        span.map_or(Pace { bytes: 0, took: u64::MAX, ..*p }, Pace::of)
    };
    let mut beside: Vec<Pace> = alone.iter().map(beside).collect();
    alone.sort_by(Pace::faster);
    beside.sort_by(Pace::faster);
    let shares = alone.iter().zip(&beside).enumerate().map(|(place, (a, b))| {
        let (alone, beside) = Pace::goodputs(a, b);
        (beside * 100 / alone.max(1), place, a, b)
    });
    let (kept, place, a, b) = shares.min_by_key(|(kept, place, ..)| (*kept, *place))?;
    let text = format!("the one on place {} of {}: {b}; without them {a}", place + 1, alone.len());
    Some(Share { kept, text })
}

/// L7: the middle one of all rounds.
fn judge(mut found: Vec<Share>) -> Option<Violation> {
    found.sort_by_key(|s| s.kept);
    let shares: Vec<String> = found.iter().map(|s| s.kept.to_string()).collect();
    let middle = found.get(found.len() / 2).filter(|s| s.kept < KEPT)?;
    let text = format!(
        "beside streams that stall others keep {} % of their goodput ({} in {} draws of the wire); {}",
        middle.kept,
        shares.join(", "),
        found.len(),
        middle.text
    );
    Some(Violation::new("L7", text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Level, MS, Twin};
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

    fn span(client: u32, ms: u64) -> Span {
        Span { client, bytes: 1 << 20, from: 0, to: (ms > 0).then_some(ms * MS) }
    }

    fn kept(solo: &[Span], with: &[Span]) -> Option<u128> {
        worst(&drawn(1), solo, with).map(|s| s.kept)
    }

    #[test]
    fn a_share_is_that_of_the_worst_place() {
        let solo = [span(1, 8_000), span(2, 12_000), span(3, 12_000)];
        assert_eq!(kept(&solo, &solo), Some(100));
        assert_eq!(kept(&solo, &[span(1, 12_000), span(2, 8_000), span(3, 12_000)]), Some(100), "they changed places");
        assert_eq!(kept(&solo, &[span(1, 12_000), span(2, 12_000), span(3, 12_000)]), Some(66), "nobody is first");
        assert_eq!(kept(&solo, &[span(1, 8_000), span(2, 12_000), span(3, 15_100)]), Some(79), "one is held up");
        assert_eq!(kept(&solo, &[span(1, 8_000), span(2, 12_000), span(3, 0)]), Some(0), "one never ended");
        assert_eq!(kept(&solo, &[]), Some(0), "they were not even there");
        assert_eq!(kept(&[span(1, 0)], &[span(1, 8_000)]), None, "alone it did not end either");
    }

    #[test]
    fn what_is_lost_on_most_draws_of_the_wire_was_taken() {
        let shares = |all: &[u128]| all.iter().map(|kept| Share { kept: *kept, text: String::new() }).collect();
        assert_eq!(judge(shares(&[75, 95, 79, 90, 80])), None);
        assert_eq!(judge(shares(&[75, 95, 79, 90, 79])).map(|v| v.id).as_deref(), Some("L7"));
        assert_eq!(judge(Vec::new()), None);
    }

    #[test]
    fn a_doubt_is_settled_by_further_pairs_and_nothing_else_is() {
        let plan = drawn(1);
        let Some(Twin::Without(stalled)) = plan.twin.clone() else { panic!("a plan to compare") };
        let template = run(Plan { twin: None, ..plan.clone() }, Keep::Outcome);
        for (slow, rounds, broken) in
            [(&[][..], 1, false), (&[0, 3][..], ROUNDS, false), (&[0, 1, 4][..], ROUNDS, true)]
        {
            let mut runs = 0;
            let report = compare(&plan, &stalled, |p, round| {
                runs += 1;
                let stalls = p.clients.iter().any(|c| stalled.contains(&c.id));
                let ms = if stalls && slow.contains(&round) { 11_000 } else { 8_000 };
                Report { spans: vec![span(9, ms)], ..template.clone() }
            });
            assert_eq!((runs, report.violation.is_some()), (2 * rounds, broken), "{slow:?}");
        }
    }
}

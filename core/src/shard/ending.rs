//! The streams that are left when a node leaves. None is reset before the
//! deadline (L10). Then all are, spread over a while so that their clients do
//! not all come back in one instant: first the quiet ones, which moved nothing
//! for some time and lose least, then those that were still at work. A quiet
//! stream is never shown an end: nobody ended it (S2).
//!
//! Looks at all streams twice in the life of a node; the resets come in chunks
//! (C3). Must not know why the node leaves.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{BULK_STREAMS, Shard, ShardOut};
use crate::error::RstCode;
use crate::id::StreamKey;
use crate::observed::{DrainStep, Observed, Side};
use crate::stream::Stream;
use crate::time::Instant;

/// Longest time that a stream must have moved nothing to count as quiet.
const QUIET_MAX: Duration = Duration::from_secs(10);
/// Longest time over which resets are spread.
const SPREAD_MAX: Duration = Duration::from_secs(5);

/// When and how the streams of a node that leaves end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// None is reset before.
    pub deadline: Instant,
    /// What moved nothing for this long before the deadline is quiet.
    pub quiet: Duration,
    /// From the deadline on, resets are spread evenly over this.
    pub spread: Duration,
}

impl Ending {
    /// Streams have `timeout` from `now` on to end by themselves. A stream is
    /// quiet after a quarter of it without a byte, at most 10 s; the resets
    /// take a twentieth of it, at most 5 s.
    #[must_use]
    pub fn after(now: Instant, timeout: Duration) -> Self {
        Self {
            deadline: now.after(timeout),
            quiet: (timeout / 4).min(QUIET_MAX),
            spread: (timeout / 20).min(SPREAD_MAX),
        }
    }
}

/// The streams on their way out.
#[derive(Debug)]
pub(super) struct Leftover {
    plan: Ending,
    /// When they are looked at to find the quiet ones; `None` once that is done.
    look_at: Option<Instant>,
    /// How far each was then.
    seen: BTreeMap<StreamKey, u64>,
    /// Those to reset, in this order, once the deadline has passed.
    order: Option<VecDeque<StreamKey>>,
    /// How many they were, and how many of them had their turn.
    all: u32,
    past: u32,
}

impl Leftover {
    pub(super) fn new(plan: Ending) -> Self {
        let look_at = Instant::from_nanos(plan.deadline.as_nanos().saturating_sub(nanos(plan.quiet)));
        Self { plan, look_at: Some(look_at), seen: BTreeMap::new(), order: None, all: 0, past: 0 }
    }

    fn next(&self) -> Option<Instant> {
        let Some(order) = &self.order else { return Some(self.look_at.unwrap_or(self.plan.deadline)) };
        let nth = nanos(self.plan.spread).saturating_mul(u64::from(self.past)) / u64::from(self.all.max(1));
        (!order.is_empty()).then(|| self.plan.deadline.after(Duration::from_nanos(nth)))
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// A sum that changes whenever a byte, an end or an acknowledgement moves.
fn progress(s: &Stream) -> u64 {
    s.halves.iter().map(|h| h.next + h.sent + h.consumed).sum()
}

impl Shard {
    /// What becomes of the streams that are left, once nothing new is taken.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.leftover.as_ref().map(|left| left.plan)
    }

    /// When a stream is looked at or reset next because the node leaves.
    pub(super) fn leftover_due(&self) -> Option<Instant> {
        if self.streams.is_empty() { None } else { self.leftover.as_ref()?.next() }
    }

    /// Does what is due with the streams that are left.
    pub(super) fn end_leftover(&mut self, now: Instant, out: &mut ShardOut) {
        let Some(left) = self.leftover.as_deref_mut() else { return };
        if left.look_at.is_some_and(|at| at <= now) {
            left.look_at = None;
            left.seen = self.streams.iter().map(|(key, s)| (key, progress(s))).collect();
        }
        if left.order.is_none() && left.plan.deadline <= now {
            let seen = std::mem::take(&mut left.seen);
            let is_quiet = |key: &StreamKey, s: &Stream| {
                let idle = s.halves.iter().all(|h| h.waiting_bytes() == 0 && h.queued == 0);
                idle && s.open && seen.get(key) == Some(&progress(s))
            };
            let (quiet, busy): (Vec<_>, Vec<_>) = self.streams.iter().partition(|(key, s)| is_quiet(key, s));
            if !quiet.is_empty() || !busy.is_empty() {
                let step = DrainStep::Deadline { quiet: quiet.len(), busy: busy.len() };
                out.observed.push(Observed::Drain(step));
            }
            let order: VecDeque<StreamKey> = quiet.iter().chain(&busy).map(|(key, _)| *key).collect();
            left.all = u32::try_from(order.len()).unwrap_or(u32::MAX);
            left.order = Some(order);
        }
        for _ in 0..BULK_STREAMS {
            let Some(left) = self.leftover.as_deref_mut() else { return };
            if left.next().is_none_or(|at| at > now) {
                return;
            }
            let Some(key) = left.order.as_mut().and_then(VecDeque::pop_front) else { return };
            left.past = left.past.saturating_add(1);
            self.reset(now, key, RstCode::Shutdown, Side::Hub, None, out);
        }
    }
}

//! Work on many streams at once: the loss of a session, the relief of memory
//! pressure, the release of memory by force. Done in chunks of 256 streams a
//! call (C3); what is left is due at once. Keeps B3 and B9 (no timer while there
//! is nothing to do).

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::{BULK_STREAMS, Shard, ShardOut};
use crate::credit::{Budget, Pressure};
use crate::error::RstCode;
use crate::id::StreamKey;
use crate::observed::Side;
use crate::planted;
use crate::slots::Slots;
use crate::stream::{End, Stream};
use crate::time::Instant;
use crate::wire::Plane;

/// How often memory is freed by force while the budget is exhausted.
const RELIEF_EVERY: Duration = Duration::from_secs(1);

/// Streams whose sockets are not read until the process holds less: first come,
/// first read, or those behind would never be (L7).
#[derive(Debug, Default)]
pub(super) struct Starved {
    order: VecDeque<StreamKey>,
    there: BTreeSet<StreamKey>,
}

impl Starved {
    /// Waits behind the others; once.
    pub(super) fn insert(&mut self, key: StreamKey) {
        if self.there.insert(key) {
            self.order.push_back(key);
        }
    }

    /// Waits no more. Its place in the order is skipped when its turn comes.
    pub(super) fn remove(&mut self, key: StreamKey) {
        self.there.remove(&key);
        if self.there.is_empty() {
            self.order.clear();
        }
    }

    fn pop(&mut self) -> Option<StreamKey> {
        while let Some(key) = self.order.pop_front() {
            if self.there.remove(&key) {
                return Some(key);
            }
        }
        None
    }

    fn is_empty(&self) -> bool {
        self.there.is_empty()
    }

    pub(super) fn check(&self, streams: &Slots<StreamKey, Stream>) {
        assert!(self.there.iter().all(|key| streams.get(*key).is_some()), "only live streams wait (B5)");
        assert!(self.order.len() >= self.there.len(), "whoever waits has a place");
    }
}

impl Shard {
    /// What the process holds, or may hold, changed.
    pub fn set_budget(&mut self, now: Instant, budget: &Budget) {
        self.room = budget.room();
        self.set_pressure(now, budget.pressure());
        self.relieving = self.may_relieve();
    }

    /// Whether somebody waits for what there is by now. What the level forbids
    /// is no work and no timer (B9).
    fn may_relieve(&self) -> bool {
        (self.room > 0 && !self.starved.is_empty()) || (self.pressure < Pressure::High && !self.throttled.is_empty())
    }

    /// The process budget's level changed.
    pub fn set_pressure(&mut self, now: Instant, pressure: Pressure) {
        if pressure == self.pressure {
            return;
        }
        self.relief_at = if pressure == Pressure::Full { Some(now.after(RELIEF_EVERY)) } else { None };
        self.pressure = pressure;
        self.relieving = self.may_relieve();
    }

    /// With a link, what it never carried is lost (planted bugs 2017, 2018).
    pub(super) fn take_others_too(&self, lost: &mut BTreeSet<StreamKey>) {
        if !planted::on(2017) && !planted::on(2018) {
            return;
        }
        let crosses = |s: &Stream| {
            let on =
                |e: &End| matches!(e, End::Session(k) if self.sessions.get(k).is_some_and(|i| i.plane == Plane::Mesh));
            s.ends.iter().any(on)
        };
        lost.extend(self.streams.iter().filter(|(_, s)| s.open && crosses(s) == planted::on(2018)).map(|(k, _)| k));
    }

    /// Ends a bounded number of streams whose session was lost.
    pub(super) fn work_off_lost(&mut self, now: Instant, out: &mut ShardOut) {
        let mut budget = BULK_STREAMS;
        while budget > 0 {
            let Some((session, streams)) = self.lost.front_mut() else { return };
            let session = *session;
            let Some(key) = streams.pop_first() else {
                self.lost.pop_front();
                self.interruptions.remove(&session);
                continue;
            };
            budget -= 1;
            let by = match self.streams.get(key).and_then(|s| s.side_of(session)) {
                Some(0) => Side::Client,
                Some(_) => Side::Agent,
                None if planted::on(2017) || planted::on(2018) => Side::Hub,
                None => continue,
            };
            if planted::on(33) && self.streams.get(key).is_some_and(|s| !s.open) {
                self.disarm(key);
                continue;
            }
            self.reset(now, key, RstCode::Lost, by, Some(session), out);
        }
    }

    /// After pressure fell: grants what was held back, in chunks.
    pub(super) fn relieve(&mut self, now: Instant, out: &mut ShardOut) {
        if !self.relieving {
            return;
        }
        for _ in 0..BULK_STREAMS {
            // Whoever is woken reads after this call: all may, until one has.
            if self.room > 0
                && let Some(key) = self.starved.pop()
            {
                (0..2).for_each(|h| self.wake_source(key, h, out));
                continue;
            }
            let throttled = if self.pressure < Pressure::High { self.throttled.pop_first() } else { None };
            let Some(key) = throttled else {
                self.relieving = false;
                return;
            };
            for h in 0..2 {
                self.grant(now, key, h, true, out);
                self.wake_source(key, h, out);
            }
        }
        self.relieving = self.may_relieve();
    }

    /// The stream that holds most, and how much.
    fn heaviest(&self) -> Option<(u64, StreamKey)> {
        let weight = |s: &Stream| s.held() + s.halves.iter().map(|h| h.queued).sum::<u64>();
        let worst = self.streams.iter().max_by_key(|(k, s)| (weight(s), std::cmp::Reverse(*k)));
        worst.map(|(k, s)| (weight(s), k))
    }

    /// What the next reset by force would free, if one is due.
    pub(crate) fn relief_due(&self, now: Instant) -> Option<u64> {
        self.relief_at.filter(|at| *at <= now).and_then(|_| self.heaviest()).map(|(held, _)| held)
    }

    /// Another shard holds a heavier stream: this one waits for its turn.
    pub(crate) fn postpone_relief(&mut self, now: Instant) {
        self.relief_at = self.relief_at.map(|at| at.max(now.after(RELIEF_EVERY)));
    }

    /// The budget is exhausted: resets the stream that holds most. A walk over
    /// all streams, at most once a second and only in this emergency.
    pub(super) fn free_memory(&mut self, now: Instant, out: &mut ShardOut) {
        if self.relief_at.is_none_or(|at| at > now) {
            return;
        }
        self.relief_at = Some(now.after(RELIEF_EVERY));
        if let Some((held, key)) = self.heaviest()
            && held > 0
        {
            self.counters.budget_resets += 1;
            self.reset(now, key, RstCode::Budget, Side::Hub, None, out);
        }
    }
}

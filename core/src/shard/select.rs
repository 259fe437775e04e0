//! The origin's choice among the candidates of a connector, and what an answer
//! to an OPEN says of the one that was chosen (semantics 7). The order is total,
//! so that a choice can be repeated. Must not know how routes come to be.

use smallvec::SmallVec;

use super::eject::{At, Standing, Verdict, speaks_against};
use super::{Role, Shard, ShardOut};
use crate::config::Selection;
use crate::error::RstCode;
use crate::id::{Fence, Name, StreamKey};
use crate::observed::Observed;
use crate::planted;
use crate::route::Candidate;
use crate::stream::{End, Part};
use crate::time::Instant;

/// How well a candidate can be asked, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// Nothing speaks against it.
    Ready,
    /// It came back a short while ago; those that were there before are all of
    /// a worse priority, and serve.
    HeldBack,
    /// The registry does not list it any more.
    Faded,
    /// Too many OPENs failed there.
    Ejected,
    /// Its session is silent or suspended: an OPEN waits in its queue, and is
    /// taken back at its deadline, unsent.
    Silent,
}

type Fences = SmallVec<[Fence; 8]>;

/// Which of the candidates (since when they are back, priority, fence) are held
/// back: in the order in which they came, each whose forerunners that are not
/// held back are all of a worse priority. So a return to a better priority is
/// delayed, a place among equals is not, and somebody serves.
fn held(mut all: SmallVec<[(Instant, u64, Fence); 8]>) -> Fences {
    all.sort_unstable();
    let mut held = Fences::new();
    let mut served: Option<u64> = None;
    for (since, priority, fence) in all {
        if since > Instant::ZERO && served.is_some_and(|served| served > priority) {
            held.push(fence);
        } else {
            served = Some(served.map_or(priority, |served| served.min(priority)));
        }
    }
    held
}

impl Shard {
    pub(super) const fn selection(&self) -> Option<&Selection> {
        match &self.role {
            Role::Hub { selection, .. } => Some(selection),
            Role::Agent { .. } => None,
        }
    }

    /// The best candidate that was not tried: by class, then by rank (priority,
    /// own tunnel, region), by how far away it is, by streams of this shard per
    /// weight, and at last by fence.
    pub(super) fn choose(&self, now: Instant, connector: &Name, tried: &[Fence]) -> Option<Candidate> {
        let selection = self.selection()?;
        let left = || {
            self.routes.of(connector).filter(|c| !tried.contains(&c.fence)).filter_map(|c| {
                let session = self.sessions.get(&c.session)?;
                let free = session.pending_opens < self.limits.max_pending_opens || planted::on(2015);
                free.then(|| (self.class(now, connector, c), session.distance, c))
            })
        };
        let mut held_back = Fences::new();
        if !selection.failback_after.is_zero() {
            let ready = left().filter(|(class, ..)| *class == Class::Ready);
            let since = |c| self.back_since(now, connector, c, selection);
            held_back = held(ready.map(|(.., c)| (since(c), c.priority(), c.fence)).collect());
        }
        left()
            .min_by_key(|(class, distance, c)| {
                let class = if held_back.contains(&c.fence) { Class::HeldBack } else { *class };
                let streams = self.load.get(&c.fence).copied().unwrap_or(0);
                (
                    class,
                    if planted::on(2030) { 0 } else { c.rank },
                    *distance,
                    (streams + 1) * 1000 / u64::from(c.weight.max(1)),
                    c.fence,
                )
            })
            .map(|(.., c)| c.clone())
    }

    fn class(&self, now: Instant, connector: &Name, c: &Candidate) -> Class {
        if !self.sessions.get(&c.session).is_some_and(|s| s.usable) {
            return Class::Silent;
        }
        match self.ejections.standing(now, connector, c) {
            Standing::Out => Class::Ejected,
            Standing::Trial(Some(key)) if self.is_asking(key, c) => Class::Ejected,
            Standing::Trial(_) | Standing::In if c.is_faded() => Class::Faded,
            Standing::Trial(_) | Standing::In => Class::Ready,
        }
    }

    /// Since when a candidate that was away is back; zero for one that was not,
    /// or is back for long enough.
    fn back_since(&self, now: Instant, connector: &Name, c: &Candidate, selection: &Selection) -> Instant {
        let interrupted = self.interruptions.contains_key(&c.session);
        let resumed = self.sessions.get(&c.session).filter(|_| interrupted).map(|s| s.back_at);
        let since = self.ejections.back_since(connector, c).max(resumed);
        since.filter(|since| now < since.after(selection.failback_after)).unwrap_or(Instant::ZERO)
    }

    /// Whether a stream waits for this candidate's answer.
    fn is_asking(&self, key: StreamKey, c: &Candidate) -> bool {
        self.streams.get(key).is_some_and(|s| !s.open && s.fence == c.fence && s.ends[1] == End::Session(c.session))
    }

    /// The OPEN of a stream goes to this candidate.
    pub(super) fn on_asked(&mut self, now: Instant, key: StreamKey, connector: &Name, c: &Candidate) {
        if self.ejections.any_record() {
            self.ejections.asked(now, &(connector.clone(), c.agent_id.clone(), c.owner.clone()), key);
        }
    }

    /// The candidate that a stream of this shard asked last, while it is one.
    fn asked_candidate(&self, key: StreamKey) -> Option<At> {
        let s = self.streams.get(key)?;
        let (Part::Origin(o), End::Session(session)) = (&s.part, s.ends[1]) else { return None };
        let carrier = o.carrier.as_ref()?;
        let connector = self.connector_of(o.listener);
        let c = self.routes.get(&connector, &(carrier.agent_id.clone(), carrier.owner.clone()))?;
        let same = c.session == session && !c.is_faded();
        same.then(|| (connector, carrier.agent_id.clone(), carrier.owner.clone()))
    }

    /// What a stream asked connected its target.
    pub(super) fn on_candidate_answered(&mut self, now: Instant, key: StreamKey, out: &mut ShardOut) {
        if !self.ejections.any_record() {
            return;
        }
        let Some(at) = self.asked_candidate(key) else { return };
        let Role::Hub { selection, .. } = &self.role else { return };
        if self.ejections.succeeded(now, &at, selection) == Some(Verdict::Reinstated) {
            let (connector, agent_id, owner) = at;
            out.observed.push(Observed::Reinstated { connector, agent_id, owner });
        }
    }

    /// What a stream asked did not connect its target, or said nothing in time.
    pub(super) fn on_candidate_failed(&mut self, now: Instant, key: StreamKey, code: RstCode, out: &mut ShardOut) {
        if !speaks_against(code) {
            return;
        }
        let Some(at) = self.asked_candidate(key) else { return };
        let Role::Hub { selection, .. } = &self.role else { return };
        if let Some(Verdict::Ejected(time)) = self.ejections.failed(now, at.clone(), selection) {
            let (connector, agent_id, owner) = at;
            *self.ejected.entry((connector.clone(), code)).or_default() += 1;
            out.observed.push(Observed::Ejected { connector, agent_id, owner, code, time });
        }
    }

    /// Candidates that are ejected or on trial now, by connector.
    pub fn ejected_now(&self) -> impl Iterator<Item = &Name> {
        self.ejections.ejected()
    }

    /// Ejections since the start, by connector and cause.
    pub fn ejected_ever(&self) -> impl Iterator<Item = (&Name, RstCode, u64)> {
        self.ejected.iter().map(|((connector, code), n)| (connector, *code, *n))
    }
}

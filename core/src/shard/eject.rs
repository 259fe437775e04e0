//! Which candidates are worth asking, as this shard has found: ejection by
//! failed OPENs, the way back, and how long an agent that came back must have
//! been there before it is preferred again (semantics 7). Knows what it holds
//! of candidates that failed or were away, and nothing of the others, so a shard
//! in which everything works pays nothing. Bounded by the candidates there are,
//! and by [`GONE_MAX`] for those that are not.
//!
//! Must not know streams, sessions or sockets; the order of candidates is for
//! `origin` to say.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::Selection;
use crate::due::Due;
use crate::error::RstCode;
use crate::id::{AgentId, Name, StreamKey};
use crate::route::{Candidate, RouteChange, Routes};
use crate::time::Instant;

/// Agents remembered for having been a candidate of a connector, the earliest
/// forgotten first: those come back as if they were new.
const GONE_MAX: usize = 4096;

/// One attachment as a candidate of one connector: connector, agent, owner.
pub(super) type At = (Name, AgentId, Name);

/// Whether an OPEN that ended so says something about the candidate. `BUSY`,
/// `BUDGET` and `DRAINING` come from one that works, `NOT_OWNER` and `DENIED`
/// from a route or a scope that is wrong; a lost session is seen as such.
pub(super) const fn speaks_against(code: RstCode) -> bool {
    match code {
        RstCode::Refused | RstCode::Unreachable | RstCode::TargetTimeout | RstCode::Timeout => true,
        RstCode::Abort
        | RstCode::NotOwner
        | RstCode::Draining
        | RstCode::Busy
        | RstCode::Denied
        | RstCode::NoRoute
        | RstCode::RegistryDown
        | RstCode::Budget
        | RstCode::Flow
        | RstCode::Unknown
        | RstCode::Lost
        | RstCode::Cancelled
        | RstCode::Protocol
        | RstCode::Shutdown => false,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It failed lately, not often enough.
    In,
    /// Ejected until then, and on trial from then on: one OPEN at a time.
    Out { until: Instant },
}

/// What is known against a candidate.
#[derive(Debug)]
struct Record {
    state: State,
    /// OPENs in a row that failed, while it is in.
    fails: u32,
    /// OPENs in a row that succeeded, while it is out.
    successes: u32,
    /// Ejections since it was last reinstated.
    times: u32,
    /// The stream whose OPEN is its trial.
    trial: Option<StreamKey>,
}

/// What an answer changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Ejected for this long.
    Ejected(Duration),
    /// A candidate like any other again.
    Reinstated,
}

/// How a candidate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Like any other.
    In,
    /// It may be tried with one OPEN, which is the one of this stream if that
    /// is still on its way.
    Trial(Option<StreamKey>),
    /// Used only when no other is left.
    Out,
}

/// What a shard knows against candidates.
#[derive(Debug, Default)]
pub(super) struct Ejections {
    records: BTreeMap<At, Record>,
    /// Agents that were candidates of a connector and are none now, or said so
    /// at this hub while others still list them.
    gone: Due<(Name, AgentId), ()>,
    /// Since when agents that came back are candidates again.
    back: BTreeMap<(Name, AgentId), Instant>,
}

fn place(connector: &Name, c: &Candidate) -> At {
    (connector.clone(), c.agent_id.clone(), c.owner.clone())
}

impl Ejections {
    /// How a candidate stands now.
    pub(super) fn standing(&self, now: Instant, connector: &Name, c: &Candidate) -> Standing {
        if self.records.is_empty() {
            return Standing::In;
        }
        match self.records.get(&place(connector, c)) {
            Some(Record { state: State::Out { until }, .. }) if now < *until => Standing::Out,
            Some(Record { state: State::Out { .. }, trial, .. }) => Standing::Trial(*trial),
            Some(Record { state: State::In, .. }) | None => Standing::In,
        }
    }

    /// Since when a candidate that was away is there again; `None` if it never was.
    pub(super) fn back_since(&self, connector: &Name, c: &Candidate) -> Option<Instant> {
        let back =
            if self.back.is_empty() { None } else { self.back.get(&(connector.clone(), c.agent_id.clone())).copied() };
        if self.records.is_empty() {
            return back;
        }
        let trial = self.records.get(&place(connector, c)).and_then(|r| match r.state {
            State::Out { until } => Some(until),
            State::In => None,
        });
        back.max(trial)
    }

    /// Whether anything is known against anybody.
    pub(super) fn any_record(&self) -> bool {
        !self.records.is_empty()
    }

    /// The OPEN of `stream` goes to a candidate: if that is on trial, it is the trial.
    pub(super) fn asked(&mut self, now: Instant, at: &At, stream: StreamKey) {
        if let Some(r) = self.records.get_mut(at)
            && let State::Out { until } = r.state
            && until <= now
        {
            r.trial = Some(stream);
        }
    }

    /// An OPEN at a candidate failed for a reason that speaks against it.
    pub(super) fn failed(&mut self, now: Instant, at: At, config: &Selection) -> Option<Verdict> {
        if config.fall == 0 {
            return None;
        }
        let fresh = Record { state: State::In, fails: 0, successes: 0, times: 0, trial: None };
        let r = self.records.entry(at).or_insert(fresh);
        match r.state {
            State::In => {
                r.fails += 1;
                if r.fails < config.fall {
                    return None;
                }
            }
            // Asked because no other was left, or before it was ejected.
            State::Out { until } if now < until => {
                r.successes = 0;
                return None;
            }
            State::Out { .. } => {}
        }
        let doubled = config.eject.saturating_mul(1 << r.times.min(20));
        let time = doubled.min(config.eject_max.max(config.eject));
        *r = Record {
            state: State::Out { until: now.after(time) },
            fails: 0,
            successes: 0,
            times: r.times.saturating_add(1),
            trial: None,
        };
        Some(Verdict::Ejected(time))
    }

    /// An OPEN at a candidate succeeded.
    pub(super) fn succeeded(&mut self, now: Instant, at: &At, config: &Selection) -> Option<Verdict> {
        let r = self.records.get_mut(at)?;
        let State::Out { until } = r.state else {
            self.records.remove(at);
            return None;
        };
        r.successes += 1;
        r.trial = None;
        if r.successes < config.rise {
            return None;
        }
        self.records.remove(at);
        self.back.insert((at.0.clone(), at.1.clone()), until.min(now));
        Some(Verdict::Reinstated)
    }

    /// Nobody is ejected any more: another configuration says so.
    pub(super) fn forgive(&mut self) {
        self.records.clear();
    }

    /// A candidate comes, goes, or is replaced; `routes` are those before.
    pub(super) fn follow(&mut self, now: Instant, change: &RouteChange, routes: &Routes) {
        let own = (change.agent_id.clone(), change.owner.clone());
        if change.candidate.is_none() && !self.records.is_empty() {
            self.records.remove(&(change.connector.clone(), own.0.clone(), own.1.clone()));
        }
        let before = routes.get(&change.connector, &own).filter(|c| !c.is_faded());
        let after = change.candidate.as_ref().filter(|c| !c.is_faded());
        let same = match (before, after) {
            // A tunnel that took the place of another, or another run of the agent.
            (Some(b), Some(a)) => b.instance == a.instance && (!a.local || b.session == a.session),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if same {
            return;
        }
        // Another attachment starts without a record.
        self.records.remove(&(change.connector.clone(), own.0.clone(), own.1.clone()));
        let elsewhere = |c: &Candidate| c.agent_id == own.0 && c.owner != own.1 && !c.is_faded();
        let instance = after.or(before).map(|c| c.instance);
        let stays =
            !change.withdrawn && routes.of(&change.connector).any(|c| elsewhere(c) && Some(c.instance) == instance);
        let agent = (change.connector.clone(), change.agent_id.clone());
        if stays && self.gone.get(agent.clone()).is_none() {
            // It was there all the time, over another hub.
            return;
        }
        if after.is_none() {
            self.back.remove(&agent);
            self.gone.insert(agent, now, ());
            if self.gone.len() > GONE_MAX
                && let Some(first) = self.gone.late(now)
            {
                self.gone.remove(first);
            }
        } else if self.gone.remove(agent.clone()).is_some() || before.is_some() {
            self.back.insert(agent, now);
        }
    }

    /// Candidates that are ejected or on trial, by connector.
    pub(super) fn ejected(&self) -> impl Iterator<Item = &Name> {
        self.records.iter().filter(|(_, r)| matches!(r.state, State::Out { .. })).map(|(at, _)| &at.0)
    }

    /// # Panics
    /// When it knows of a candidate that is none.
    pub(super) fn check(&self, routes: &Routes) {
        for (connector, agent_id, owner) in self.records.keys() {
            let at = (agent_id.clone(), owner.clone());
            assert!(routes.get(connector, &at).is_some(), "nothing is kept against what is no candidate (B5)");
        }
        assert!(self.gone.len() <= GONE_MAX, "what is gone is bounded (B5)");
        for (connector, agent_id) in self.back.keys() {
            assert!(routes.of(connector).any(|c| c.agent_id == *agent_id), "only who is there came back (B5)");
        }
    }
}

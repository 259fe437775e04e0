//! What an agent shows its operator: readiness, status, metrics.

use std::rc::Rc;

use nowconnect_core::agent::Agent;
use nowconnect_core::id::SessionKey;
use nowconnect_core::time::Instant;
use nowconnect_core::wire::Plane;

use super::Shared;
use crate::admin::{self, Acting, Action, AdminApp};
use crate::answers::agent::{
    Connector, Drain, Draining, Hub, HubBrief, PhaseClosed, Readyz, Reason, RoleAgent, Status, Target, Tunnels,
};
use crate::answers::{self, DrainAnswer, Failed, ReadyzListener, Refused, ResultDraining, State, UndrainAnswer, Word};
use crate::metrics::{Family, Snapshot};
use crate::node::Node;
use crate::{reload, snapshot, status};

pub(super) struct App {
    pub(super) node: Node<Agent>,
    pub(super) shared: Rc<Shared>,
}

/// `drain` of `/status`.
fn drain(agent: &Agent, now: Instant) -> Option<Drain> {
    let ending = agent.shard().ending()?;
    Some(Drain {
        phase: PhaseClosed::Closed,
        resets_in_ms: status::millis_until(ending.deadline, now),
        streams: agent.shard().streams(),
    })
}

struct Readiness {
    state: State,
    serving: usize,
    wanted: usize,
    reasons: Vec<Reason>,
}

impl App {
    fn connected(agent: &Agent, session: Option<SessionKey>) -> bool {
        session.and_then(|key| agent.mux().get(key)).is_some_and(|e| e.conn.is_some())
    }

    /// Ready with as many tunnels as asked for and no target that fails its
    /// checks; degraded otherwise.
    fn readiness(&self, agent: &Agent) -> Readiness {
        let serving = agent.tunnels().hubs().filter(|(_, _, session)| Self::connected(agent, *session)).count();
        let setup = self.shared.setup();
        let wanted = usize::from(setup.core.parallel).min(setup.core.hubs.len());
        let mut reasons = Vec::new();
        if agent.tunnels().is_draining() {
            reasons.push(Reason::Draining);
        }
        if agent.targets().any(|t| !t.up) {
            reasons.push(Reason::TargetsDown);
        }
        if serving < wanted {
            reasons.push(Reason::TunnelsMissing);
        }
        let state = if agent.tunnels().is_draining() {
            State::Draining
        } else if reasons.is_empty() {
            State::Ready
        } else {
            State::Degraded
        };
        Readiness { state, serving, wanted, reasons }
    }

    fn readiness_of(&self, s: &mut Snapshot, agent: &Agent) {
        let r = self.readiness(agent);
        for state in State::ALL {
            s.add(Family::Readiness, &[state.name()], u64::from(r.state == state));
        }
        for reason in Reason::ALL {
            s.add(Family::ReadinessReason, &[reason.name()], u64::from(r.reasons.contains(&reason)));
        }
    }
}

impl AdminApp for App {
    /// 503 as well when no tunnel is connected: such an agent serves nobody.
    fn readyz(&self, strict: bool) -> (u16, String) {
        self.node.look(|agent| {
            let r = self.readiness(agent);
            let status = match r.state {
                State::Ready => 200,
                State::Degraded if !strict && r.serving > 0 => 200,
                State::Degraded | State::Draining => 503,
            };
            let hubs = (agent.tunnels().hubs().zip(&agent.tunnels().config().hubs))
                .filter(|((_, _, session), url)| session.is_some() || self.shared.setup().core.hubs.contains(url))
                .map(|((state, replica, _), url)| HubBrief {
                    url: url.clone(),
                    replica: replica.map(ToString::to_string),
                    state: Word(state),
                })
                .collect();
            let word = |up| if up { Target::Up } else { Target::Down };
            let readyz = Readyz {
                status: r.state,
                reasons: r.reasons,
                tunnels: Tunnels { connected: r.serving, wanted: r.wanted },
                hubs,
                targets: agent.targets().map(|t| (t.connector.to_string(), word(t.up))).collect(),
            };
            (status, answers::text(&answers::Readyz::Agent(readyz)))
        })
    }

    fn readyz_listener(&self, _name: &str) -> (u16, String) {
        (404, answers::text(&ReadyzListener::Unknown(Failed::because("an agent has no listeners"))))
    }

    fn metrics(&self) -> Option<(&'static str, Vec<u8>)> {
        let mut s = Snapshot::sparse();
        self.node.look(|agent| {
            snapshot::shards(&mut s, agent.shard().counters(), agent.shard().streams());
            snapshot::sessions(&mut s, agent.mux(), &[Plane::Tunnel]);
            let (shard, limits) = (agent.shard(), &self.shared.setup().core.limits);
            snapshot::limits(&mut s, agent.mux(), limits, shard.streams(), shard.pending_opens());
            s.add(Family::StreamsSuspended, &[], shard.suspended() as u64);
            for t in agent.targets() {
                let name = t.connector.as_str();
                s.add(Family::TargetUp, &[name], u64::from(t.up));
                s.add(Family::TargetChecks, &[name, "passed"], t.passed);
                s.add(Family::TargetChecks, &[name, "failed"], t.failed);
            }
            self.readiness_of(&mut s, agent);
        });
        if let Some(end) = self.shared.token_ends.get() {
            s.add(Family::TokenNotAfter, &["self"], end);
        }
        for ((connector, reason), n) in self.shared.failures.borrow().iter() {
            s.add(Family::OpenFailures, &[connector.as_str(), reason], *n);
        }
        for (kind, n) in self.shared.protocol_errors.borrow().iter() {
            s.add(Family::ProtocolErrors, &["tunnel", kind], *n);
        }
        self.shared.reloads.add_to(&mut s);
        reload::add_certs(&mut s, &self.shared.certs);
        match self.shared.metrics.render(&s) {
            Ok(page) => Some(page),
            Err(e) => {
                tracing::error!(event = "metrics_failed", "{e}");
                None
            }
        }
    }

    fn act(&self, action: Action) -> Acting {
        let (node, shared) = (self.node.clone(), Rc::clone(&self.shared));
        admin::acting(action, async move {
            match action {
                Action::Reload => match shared.reloads.try_turn() {
                    Ok(turn) => super::reload::run(&node, &shared, turn).await.answer(),
                    Err(refused) => refused.answer(),
                },
                Action::Drain => {
                    super::drain(&node);
                    let draining = Draining { result: ResultDraining::Draining, exits: true };
                    (200, answers::text(&DrainAnswer::Agent(draining)))
                }
                Action::Undrain => {
                    let why = "an agent's drain cannot be taken back: its connectors are withdrawn at once";
                    (409, answers::text(&UndrainAnswer::Refused(Refused::because(why))))
                }
            }
        })
    }

    fn status(&self) -> String {
        let now = self.node.clock().now();
        let setup = self.shared.setup();
        let config = &setup.core;
        self.node.look(|agent| {
            let r = self.readiness(agent);
            let mux = agent.mux();
            let epoch = |session| {
                agent.shard().attachments().find(|a| Some(a.session) == session).map(|a| a.fence.epoch.to_string())
            };
            let hubs = (agent.tunnels().hubs().zip(&agent.tunnels().config().hubs))
                // One that was removed is shown while it is used up.
                .filter(|((_, _, session), url)| session.is_some() || config.hubs.contains(url))
                .map(|((state, replica, session), url)| Hub {
                    url: url.clone(),
                    replica: replica.map(ToString::to_string),
                    state: Word(state),
                    epoch: epoch(session),
                    session: status::session(mux, session, now),
                })
                .collect();
            let connectors = (config.connectors.iter())
                .map(|c| {
                    let checked = agent.targets().find(|t| *t.connector == c.name);
                    Connector {
                        name: c.name.to_string(),
                        target: c.target.clone(),
                        priority: c.priority,
                        weight: c.weight,
                        up: checked.map(|t| t.up),
                        last_failure: checked.and_then(|t| t.last).map(Word),
                    }
                })
                .collect();
            answers::text(&answers::Status::Agent(Status {
                version: env!("CARGO_PKG_VERSION"),
                role: RoleAgent::Agent,
                agent: config.agent_id.to_string(),
                instance: agent.tunnels().instance().to_string(),
                highest_epoch: agent.tunnels().highest_epoch().to_string(),
                status: r.state,
                reasons: r.reasons,
                hubs,
                connectors,
                streams: agent.shard().streams(),
                drain: drain(agent, now),
                needs_restart: self.shared.restart.borrow().clone(),
                memory: status::memory(mux),
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_exactly_the_reasons() {
        let page = include_str!("../../../docs/operations.md");
        let reasons = Reason::ALL.map(|r| r.name().to_owned()).into();
        assert_eq!(status::documented(page, "## Why an agent is not ready"), reasons);
    }
}

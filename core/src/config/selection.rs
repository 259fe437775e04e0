//! Validated configuration of how a candidate is selected (hub) and how a
//! target is checked (agent). Numbers and names only: what they lead to is for
//! the shard, for control and for the agent to say.

use std::time::Duration;

use crate::id::{AgentId, Name};

/// How a hub selects among the candidates of a connector (semantics 7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Failed OPENs in a row after which a candidate is ejected; 0 = never.
    pub fall: u32,
    /// OPENs in a row that succeed until it is a candidate like any other
    /// again; at least 1.
    pub rise: u32,
    /// For how long it is ejected the first time; each time after a trial that
    /// failed twice as long as before.
    pub eject: Duration,
    /// For how long at most.
    pub eject_max: Duration,
    /// How long a candidate of a better priority that came back must have been
    /// there before it is preferred again.
    pub failback_after: Duration,
    /// Priorities that the hub gives; for one agent and connector the first
    /// entry that names both counts before one that names the agent only.
    pub priorities: Vec<AgentPriority>,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            fall: 3,
            rise: 2,
            eject: Duration::from_secs(10),
            eject_max: Duration::from_secs(300),
            failback_after: Duration::ZERO,
            priorities: Vec::new(),
        }
    }
}

/// The priority that a hub gives an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPriority {
    /// The agent.
    pub agent_id: AgentId,
    /// The connector; `None`: all of them.
    pub connector: Option<Name>,
    /// Lower is preferred.
    pub priority: u16,
}

impl Selection {
    /// What counts of the priority an agent advertises: it may lower its own
    /// rank and never raise it above the one the hub gives.
    #[must_use]
    pub fn priority(&self, agent_id: &AgentId, connector: &Name, advertised: u16) -> u16 {
        let mut of_agent = self.priorities.iter().filter(|p| p.agent_id == *agent_id);
        let exact = of_agent.clone().find(|p| p.connector.as_ref() == Some(connector));
        let given = exact.or_else(|| of_agent.find(|p| p.connector.is_none())).map_or(0, |p| p.priority);
        given.max(advertised)
    }
}

/// How an agent checks the target of a connector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// From one check to the next.
    pub interval: Duration,
    /// How long one may take; at most `interval`.
    pub timeout: Duration,
    /// Checks in a row that fail until the connector is withdrawn; at least 1.
    pub fall: u32,
    /// Checks in a row that succeed until it is exposed again; at least 1.
    pub rise: u32,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(5), timeout: Duration::from_secs(2), fall: 3, rise: 2 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_lowers_its_rank_and_never_raises_it() {
        let (a, b) = (AgentId::new("a").expect("an id"), AgentId::new("b").expect("an id"));
        let (ldap, ssh) = (Name::new("ldap").expect("a name"), Name::new("ssh").expect("a name"));
        let given = |connector: Option<&Name>, priority| AgentPriority {
            agent_id: a.clone(),
            connector: connector.cloned(),
            priority,
        };
        let s = Selection { priorities: vec![given(None, 10), given(Some(&ldap), 5)], ..Selection::default() };
        assert_eq!((s.priority(&a, &ldap, 0), s.priority(&a, &ssh, 0)), (5, 10), "the entry that names both counts");
        assert_eq!((s.priority(&a, &ldap, 4), s.priority(&a, &ldap, 6)), (5, 6));
        assert_eq!((s.priority(&b, &ldap, 0), s.priority(&b, &ldap, 7)), (0, 7), "without an entry it is 0");
    }
}

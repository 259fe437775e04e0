//! What this hub remembers of agents, attached or not: the epochs it saw granted,
//! which a claim names as `seen` and `granted` and a provisional epoch lies
//! above (O2), and who held them in turn.
//!
//! Bounded: what was not used for longest goes when there are too many. Its
//! epoch is kept as a lower bound for every agent that is not known, so that
//! forgetting never lets an epoch in that is not new. The bound itself is held
//! to where honest epochs lie, so that one agent that named a huge `seen` does
//! not use up the epochs of others (attack 50).
//!
//! Must not know attachments, the registry's health or the clock.

use std::collections::BTreeMap;

use super::flap::Turns;
use crate::id::{AgentId, Epoch};

/// What is known of one agent.
#[derive(Clone, Debug)]
struct Known {
    highest: Epoch,
    granted: Epoch,
    used: u64,
    turns: Turns,
}

/// Epochs by agent.
#[derive(Debug)]
pub(super) struct Epochs {
    known: BTreeMap<AgentId, Known>,
    /// The agents by when they were used last.
    order: BTreeMap<u64, AgentId>,
    uses: u64,
    most: usize,
    forgotten: Epoch,
}

impl Epochs {
    /// Remembers at most `most` agents.
    pub(super) const fn new(most: usize) -> Self {
        Self { known: BTreeMap::new(), order: BTreeMap::new(), uses: 0, most, forgotten: Epoch(0) }
    }

    /// The highest epoch of an agent, or one that none of its forgotten epochs
    /// lies above.
    pub(super) fn highest(&self, agent_id: &AgentId) -> Epoch {
        self.known.get(agent_id).map_or(self.forgotten, |k| k.highest)
    }

    /// The highest epoch that a registry granted to the agent, as far as known.
    /// Never more: it counts like a stored one there.
    pub(super) fn granted(&self, agent_id: &AgentId) -> Epoch {
        self.known.get(agent_id).map(|k| k.granted).unwrap_or_default()
    }

    /// Who held the agent in turn, once an epoch of it is known.
    pub(super) fn turns(&mut self, agent_id: &AgentId) -> Option<&mut Turns> {
        self.known.get_mut(agent_id).map(|k| &mut k.turns)
    }

    /// An agent has this epoch; `firm`: a registry granted it. `honest` is what
    /// no honest epoch lies above now.
    pub(super) fn learn(&mut self, agent_id: &AgentId, epoch: Epoch, firm: bool, honest: Epoch) {
        self.uses += 1;
        let start =
            Known { highest: self.highest(agent_id), granted: Epoch(0), used: self.uses, turns: Turns::default() };
        let known = self.known.entry(agent_id.clone()).or_insert(start);
        self.order.remove(&known.used);
        known.used = self.uses;
        known.highest = known.highest.max(epoch);
        if firm {
            known.granted = known.granted.max(epoch);
        }
        self.order.insert(self.uses, agent_id.clone());
        while self.known.len() > self.most
            && let Some((_, oldest)) = self.order.pop_first()
        {
            if let Some(gone) = self.known.remove(&oldest) {
                self.forgotten = self.forgotten.max(gone.highest.min(honest));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(n: u64) -> AgentId {
        AgentId::new(&format!("a-{n}")).unwrap()
    }

    #[test]
    fn many_agents_take_no_more_room_and_no_stale_epoch_gets_in() {
        let mut e = Epochs::new(100);
        for n in 0..10_000 {
            e.learn(&agent(n), Epoch(n), n % 2 == 0, Epoch(5000));
            // One that is used goes on being known.
            e.learn(&agent(7), Epoch(3), false, Epoch(5000));
        }
        assert_eq!((e.known.len(), e.order.len()), (100, 100));
        assert_eq!((e.highest(&agent(7)), e.granted(&agent(7))), (Epoch(7), Epoch(0)));
        assert_eq!((e.highest(&agent(9998)), e.granted(&agent(9998))), (Epoch(9998), Epoch(9998)));
        for n in [0, 1, 4000, 4999] {
            assert!(e.highest(&agent(n)) >= Epoch(n), "agent {n} is forgotten, its epoch is not");
            assert_eq!(e.granted(&agent(n)), Epoch(0));
        }
        assert_eq!(e.highest(&agent(123_456)), Epoch(5000), "a poisoned epoch is not handed on");
    }

    #[test]
    fn an_agent_that_comes_back_goes_on_above_what_was_forgotten() {
        let mut e = Epochs::new(1);
        e.learn(&agent(1), Epoch(500), true, Epoch(u64::MAX));
        e.learn(&agent(2), Epoch(10), true, Epoch(u64::MAX));
        assert_eq!(e.highest(&agent(1)), Epoch(500));
        e.learn(&agent(1), Epoch(501), true, Epoch(u64::MAX));
        assert_eq!((e.highest(&agent(1)), e.granted(&agent(1))), (Epoch(501), Epoch(501)));
        assert!(e.highest(&agent(2)) >= Epoch(10));
    }
}

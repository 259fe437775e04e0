//! Sessions and their ends, seen from outside (L1, L9): who lost a session for
//! good, and whether anything entitled it to that.
//!
//! Keeps: a session is lost only when its two ends could not talk for as long as
//! it may be resumed, when one of its processes is gone, or by a rule whose
//! occasion is known from outside; whoever comes second follows the first. A
//! peer is given up for dead only when nothing was delivered to that end for
//! `liveness.dead`. Which session it was is known from its WELCOME on the wire;
//! of a machine it is asked only whether it still has it.

use std::collections::{BTreeMap, BTreeSet};

use nowconnect_core::error::CloseCode;
use nowconnect_core::id::{AgentId, SessionId};
use nowconnect_core::wire::{Codec, Frame, Plane};

use super::leases::heard_within;
use super::wire::Told;
use crate::faults::{At, Class};
use crate::plan::MS;
use crate::world::World;

/// A session, since it was granted.
#[derive(Debug)]
struct Known {
    id: SessionId,
    plane: Plane,
    codec: Codec,
    /// Who dialled, who accepted, and which run of each.
    nodes: [u16; 2],
    runs: [u32; 2],
    /// Its connection and those before, as the acceptor says.
    conn: u32,
    earlier: Vec<u32>,
    /// Each end has it, has no connection for it, has lost it.
    up: [bool; 2],
    suspended: [bool; 2],
    lost: [bool; 2],
}

/// All sessions, by their number in the ledger of the wire.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    all: BTreeMap<u32, Known>,
    /// Those that an end may still have, by node.
    of: BTreeMap<u16, Vec<u32>>,
    /// Agents that began anew as another instance.
    started_over: BTreeSet<u16>,
    /// Of whose agents a hostile hub told a hub that it has them.
    lied: BTreeSet<(u16, AgentId)>,
}

impl Known {
    fn end_of(&self, node: u16) -> Option<usize> {
        self.nodes.iter().position(|n| *n == node)
    }
}

impl World {
    /// A message leaves a machine: perhaps it grants a session, or goes on with
    /// one.
    pub(super) fn note_welcome(&mut self, conn: u32, end: usize, told: &Told) {
        let Some(Frame::Welcome(w)) = told.frames.first() else { return };
        let c = &self.conns[conn as usize];
        let Some(ledger) = self.check.wire.session_of(conn).filter(|_| end == 1 && c.rogue.is_none()) else { return };
        let (nodes, runs, dialect, id) = (c.nodes, c.runs, c.dialect, w.session);
        if w.resumed.is_some() {
            if let Some(k) = self.check.sessions.all.get_mut(&ledger) {
                let before = std::mem::replace(&mut k.conn, conn);
                k.earlier.push(before);
            }
            return;
        }
        let up = [false, self.has_session(nodes[1], id)];
        let known = Known {
            id,
            plane: dialect.plane,
            codec: dialect.codec,
            nodes,
            runs,
            conn,
            earlier: Vec::new(),
            up,
            suspended: [false; 2],
            lost: [false; 2],
        };
        self.check.sessions.all.insert(ledger, known);
        for n in nodes {
            self.check.sessions.of.entry(n).or_default().push(ledger);
        }
    }

    /// A process begins: it has no session.
    pub(super) fn forget_sessions(&mut self, ix: u16) {
        self.check.sessions.of.remove(&ix);
        self.check.sessions.started_over.remove(&ix);
        self.check.sessions.lied.retain(|(hub, _)| *hub != ix);
        self.check.turns.forget(ix);
    }

    pub(super) fn note_started_over(&mut self, ix: u16) {
        self.check.sessions.started_over.insert(ix);
    }

    pub(super) fn note_lie(&mut self, hub: u16, agent: &AgentId) {
        self.check.sessions.lied.insert((hub, agent.clone()));
    }

    fn has_session(&self, ix: u16, id: SessionId) -> bool {
        self.nodes[usize::from(ix)].machine.as_ref().is_some_and(|m| m.mux().find(id).is_some())
    }

    /// Whether a machine has a session and no connection for it.
    fn is_suspended(&self, ix: u16, id: SessionId) -> bool {
        let mux = self.nodes[usize::from(ix)].machine.as_ref().map(crate::node::Machine::mux);
        mux.is_some_and(|m| m.find(id).and_then(|k| m.get(k)).is_some_and(|e| e.conn.is_none()))
    }

    /// A process says that it has a session, or that one goes on.
    pub(super) fn note_session_up(&mut self, ix: u16) {
        for s in self.check.sessions.of.get(&ix).cloned().unwrap_or_default() {
            let Some(k) = self.check.sessions.all.get(&s) else { continue };
            let Some(end) = k.end_of(ix) else { continue };
            let (here, suspended) = (self.has_session(ix, k.id), self.is_suspended(ix, k.id));
            if let Some(k) = self.check.sessions.all.get_mut(&s) {
                k.up[end] |= here;
                k.suspended[end] = suspended;
            }
        }
    }

    /// L9: a process says that a session has no connection any more: given up
    /// for dead is only who said nothing for so long.
    pub(super) fn judge_suspended(&mut self, ix: u16, cause: CloseCode) {
        let mut found = None;
        for s in self.check.sessions.of.get(&ix).cloned().unwrap_or_default() {
            let Some(k) = self.check.sessions.all.get(&s) else { continue };
            let Some(end) = k.end_of(ix) else { continue };
            if k.suspended[end] || !self.is_suspended(ix, k.id) {
                continue;
            }
            let silent = self.now.saturating_sub(self.check.wire.heard(k.conn, end));
            // By a clock that may be a little fast.
            let dead = self.plan.timers.dead;
            if cause == CloseCode::Dead && silent + dead / 1000 < dead {
                found = Some((k.conn, silent));
            }
            if let Some(k) = self.check.sessions.all.get_mut(&s) {
                k.suspended[end] = true;
            }
        }
        if let Some((conn, silent)) = found {
            let name = &self.nodes[usize::from(ix)].name;
            let text =
                format!("{name} gives its peer on conn {conn} up for dead, {} ms after it heard it", silent / MS);
            self.fail("L9", text);
        }
    }

    /// L1: a process says that a session is over. Which one it was, if the wire
    /// knows it.
    pub(super) fn judge_lost(&mut self, ix: u16, plane: Plane, peer: &str, cause: CloseCode) -> Option<u32> {
        let of = self.check.sessions.of.get(&ix)?;
        let gone = |s: &u32| {
            self.check.sessions.all.get(s).is_some_and(|k| {
                let its = |end: usize| {
                    let other = &self.nodes[usize::from(k.nodes[1 - end])];
                    // A second process has its own name here only.
                    let name = other.name.split(" (").next();
                    k.plane == plane && name == Some(peer) && k.up[end] && !k.lost[end]
                };
                k.end_of(ix).is_some_and(its) && !self.has_session(ix, k.id)
            })
        };
        let s = of.iter().copied().find(gone)?;
        let wrong = self.why_not(ix, s, cause);
        let k = self.check.sessions.all.get_mut(&s)?;
        let end = k.end_of(ix)?;
        k.lost[end] = true;
        let (conn, other) = (k.conn, k.nodes[1 - end]);
        if let Some(of) = self.check.sessions.of.get_mut(&ix) {
            of.retain(|x| *x != s);
        }
        if let Some(why) = wrong {
            let name = |n: u16| self.nodes[usize::from(n)].name.as_str();
            let text =
                format!("{} loses its session with {} ({cause:?}, last on conn {conn}): {why}", name(ix), name(other));
            self.fail("L1", text);
        }
        Some(s)
    }

    /// How long one of the two ends of a session has heard nothing of the other.
    fn apart(&self, k: &Known) -> u64 {
        let heard = |end: usize| {
            let conns = k.earlier.iter().chain([&k.conn]);
            conns.map(|c| self.check.wire.heard(*c, end)).max().unwrap_or(0)
        };
        self.now.saturating_sub(heard(0).min(heard(1)))
    }

    /// Why a process may not lose a session now; `None` if it may.
    fn why_not(&self, ix: u16, s: u32, cause: CloseCode) -> Option<String> {
        let k = self.check.sessions.all.get(&s)?;
        let end = k.end_of(ix)?;
        let (other, t) = (k.nodes[1 - end], &self.plan.timers);
        let peer = &self.nodes[usize::from(other)];
        // Who never took it has nothing on it.
        if k.lost[1 - end] || !k.up[1 - end] || !peer.is_up() || peer.run != k.runs[1 - end] || t.resume == 0 {
            return None;
        }
        // The window of who accepted counts from when the dialler has noticed.
        let window = if end == 1 { t.resume + t.dead } else { t.resume };
        let apart = self.apart(k);
        if apart + window / 1000 >= window || self.rules_it(ix, other, k, cause) {
            return None;
        }
        let text = format!("they were apart for {} ms, it may be resumed for {} ms", apart / MS, window / MS);
        Some(text)
    }

    /// Whether a rule ends a session for this cause, and there was occasion.
    fn rules_it(&self, ix: u16, other: u16, k: &Known, cause: CloseCode) -> bool {
        let done = |c: Class| self.faults_done[c as usize] > 0;
        let ghost = |n: u16| self.check.nodes.get(&n);
        let strangers = self.plan.hostile > 0 || !self.plan.rogues.is_empty();
        let keys = || self.check.strange_keys || self.nodes.iter().any(|n| n.keys != crate::proof::Keys::default());
        match cause {
            // It was told to end, or another file or mode leaves this one out.
            CloseCode::Shutdown => {
                let ended = self.check.ended.get(&ix).is_some_and(|at| *at >= self.nodes[usize::from(ix)].started);
                ended || ghost(ix).is_some_and(|g| g.flipped || g.rewired)
            }
            CloseCode::Duplicate => {
                let twice = self.is_twin(ix) || self.is_twin(other);
                k.plane == Plane::Mesh && (twice || self.gives_way(ix, k))
            }
            CloseCode::Superseded | CloseCode::DuplicateId => {
                let agent = self.nodes[usize::from(k.nodes[0])].at;
                let twice = self.nodes.iter().any(|n| n.is_clone && n.at == agent);
                let astray = done(Class::Dial) || self.is_twin(ix) || self.is_twin(other);
                let over = self.check.sessions.started_over.contains(&k.nodes[0]);
                let before = self.is_claimed_before(k);
                twice || astray || over || before || self.was_lied_to(ix, k.nodes[0]) || self.gives_way(ix, k)
            }
            // The dial ended at another process than the one that has it.
            CloseCode::ResumeRefused => self.asked_elsewhere(k) || keys(),
            CloseCode::Auth => self.has_short_tokens(k.nodes[0]) || keys(),
            CloseCode::Protocol | CloseCode::Flow | CloseCode::Glitches | CloseCode::Busy => strangers,
            CloseCode::Draining
            | CloseCode::Dead
            | CloseCode::Transport
            | CloseCode::HandshakeTimeout
            | CloseCode::Namespace
            | CloseCode::Itself => false,
        }
    }

    /// Whether the process of an agent before this one was claimed once more since
    /// this one started: by a hub that has not noticed its end, or that its last
    /// HELLO reached late. Of a claim that the hub of this session made itself it
    /// is no excuse unless it holds that one now.
    fn is_claimed_before(&self, k: &Known) -> bool {
        let [agent, hub] = k.nodes.map(|n| &self.nodes[usize::from(n)]);
        let (Some(now), Some(own)) = (agent.agent().map(|a| a.tunnels().instance()), hub.hub()) else { return false };
        let claims = self.registry.executed_claims().iter().rev();
        claims.take_while(|c| c.at.as_nanos() >= agent.started).any(|c| {
            let of_before = agent.name.split(" (").next() == Some(c.agent_id.as_str()) && c.instance != now;
            of_before && (c.hub != *own.run() || own.control().tunnels().any(|t| t.fence == c.fence))
        })
    }

    /// Whether a hostile hub told a hub that it has an agent, while the registry
    /// could not be asked: then another hub is believed (O6).
    fn was_lied_to(&self, hub: u16, agent: u16) -> bool {
        let name = &self.nodes[usize::from(agent)].name;
        let of = |(told, id): &(u16, AgentId)| *told == hub && name.split(" (").next() == Some(id.as_str());
        !self.registry_quiet_for(heard_within()) && self.check.sessions.lied.iter().any(of)
    }

    /// Whether the two ends of a session have another connection that it cannot
    /// go on over: in another encoding, or dialled by the other.
    fn gives_way(&self, ix: u16, k: &Known) -> bool {
        let [a, b] = k.nodes;
        self.conns.iter().any(|c| {
            let other = (c.nodes == [a, b] && c.dialect.codec != k.codec) || c.nodes == [b, a];
            let end = c.nodes.iter().position(|n| *n == ix);
            other && c.dialect.plane == k.plane && end.is_some_and(|end| c.up[end])
        })
    }

    /// Whether the last dial that asked to resume a session ended elsewhere.
    fn asked_elsewhere(&self, k: &Known) -> bool {
        let asked = |conn: &usize| self.check.wire.asked(*conn as u32) == Some(k.id);
        let last = (0..self.conns.len()).rev().filter(|c| self.conns[*c].nodes[0] == k.nodes[0]).find(asked);
        last.is_some_and(|c| self.conns[c].nodes[1] != k.nodes[1])
    }

    fn has_short_tokens(&self, ix: u16) -> bool {
        match self.nodes[usize::from(ix)].at {
            At::Agent(n) => self.plan.agents[usize::from(n)].token_ns > 0,
            At::Hub(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Level;
    use crate::profile::Profile;
    use crate::tape::Tape;
    use crate::trace::Trace;

    #[test]
    fn a_session_is_lost_for_a_reason_that_can_be_seen() {
        let plan = crate::run::plan(1, Profile::named("calm").expect("a profile"), Level::L0);
        let mut world = World::new(plan, Tape::from_seed(1), Trace::default());
        world.plan.timers.resume = 20_000 * MS;
        world.run();
        assert_eq!(world.violation, None);
        let there = |(_, k): &(&u32, &Known)| (0..2).all(|end| k.up[end] && world.has_session(k.nodes[end], k.id));
        let (s, nodes) = world.check.sessions.all.iter().find(there).map(|(s, k)| (*s, k.nodes)).expect("a session");
        let [dialler, acceptor] = nodes;
        for cause in [CloseCode::Transport, CloseCode::Dead, CloseCode::ResumeRefused, CloseCode::Shutdown] {
            assert!(world.why_not(dialler, s, cause).is_some(), "{cause:?}: both are there and talk");
        }
        world.ghost_stopped(dialler);
        assert_eq!(world.why_not(dialler, s, CloseCode::Shutdown), None, "it was told to end");
        assert!(world.why_not(acceptor, s, CloseCode::Shutdown).is_some(), "and the other one was not");
        world.now += world.plan.timers.resume;
        assert_eq!(world.why_not(dialler, s, CloseCode::Transport), None, "nothing came for as long as the window");
        assert!(
            world.why_not(acceptor, s, CloseCode::Transport).is_some(),
            "whose window counts from its peer's notice"
        );
        world.now += world.plan.timers.dead;
        assert_eq!(world.why_not(acceptor, s, CloseCode::Transport), None);
        world.now -= world.plan.timers.dead + world.plan.timers.resume;
        world.crash(dialler, true);
        assert_eq!(world.why_not(acceptor, s, CloseCode::Superseded), None, "its peer died");
    }
}

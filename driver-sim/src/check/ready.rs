//! What a balancer is told against what is there (L6), both ways and in time:
//! a hub whose links are all there calls its mesh healthy, one that misses a
//! link does not; a listener with an agent at hand has a candidate, one of a
//! connector that nobody exposes has none.
//!
//! What is there is read off the wire, the plan and the registry's leases. Of a
//! hub it is asked what it answers, and whom it knows by name.

use nowconnect_core::config::Mode;
use nowconnect_core::hub::{MESH_GRACE, Unready};
use nowconnect_core::id::{AgentId, ListenerIx};

use crate::faults::At;
use crate::net::key;
use crate::plan::{MS, ModePlan};
use crate::world::World;

/// What a hub has to see what changed, on top of its deadlines.
const WITHIN: u64 = 3000 * MS;

impl World {
    /// L6: every hub, every 256 events.
    pub(super) fn check_ready(&mut self) {
        for h in 0..self.plan.hubs.len() {
            let ix = h as u16;
            let slack = WITHIN + 4 * self.plan.late_timers_ns + 8 * self.plan.hubs[h].note_delay_ns;
            let calm = self.calm(ix).is_some_and(|since| since + slack < self.now);
            if !calm || self.leaves(ix) || self.is_twin(ix) {
                continue;
            }
            let found = self.judge_mesh(ix, slack).or_else(|| self.judge_listeners(ix, slack));
            if let Some(text) = found {
                return self.fail("L6", format!("{}: {text}", self.nodes[h].name));
            }
        }
    }

    /// The other hubs that the file of a hub names now.
    fn peers_of(&self, ix: u16) -> Vec<u16> {
        let At::Hub(n) = self.nodes[usize::from(ix)].at else { return Vec::new() };
        let named = self.hub_file(ix, n).peers;
        let number = |url: &str| url.strip_prefix("hub-").and_then(|n| n.parse::<u16>().ok());
        named.iter().filter_map(|p| number(&p.url)).filter(|n| *n != ix).collect()
    }

    fn judge_mesh(&self, ix: u16, slack: u64) -> Option<String> {
        let node = &self.nodes[usize::from(ix)];
        let hub = node.hub().filter(|h| h.mode() != Mode::Off)?;
        let at = node.clock(self.now);
        let peers = self.peers_of(ix);
        let healthy = hub.mesh_healthy(at);
        let parted = self.check.parted.get(&ix).copied().unwrap_or(0);
        let links = hub.control().links(hub.mux());
        let known = |peer: u16| {
            let name = self.nodes[usize::from(peer)].name.as_str();
            links.iter().any(|l| l.configured && l.replica.is_some_and(|r| r.as_str() == name))
        };
        // A peer without a lease is missed by nobody who knows its name.
        let linked = |peer: &u16| {
            self.welcomed(ix, *peer) + slack < self.now && self.is_linked(ix, *peer)
                || known(*peer) && self.is_peer_gone(ix, *peer, slack)
        };
        // An own address that never answered: the hub cannot know that nobody
        // but itself is meant.
        let own = |url: &str| url == self.nodes[usize::from(ix)].name;
        let knows = !links.iter().any(|l| l.configured && l.replica.is_none() && l.url.is_some_and(own));
        // A file that could not be taken yet, or was refused, names others.
        let named = |url: &str| peers.iter().any(|p| url == format!("hub-{p}")) || own(url);
        let taken = hub.control().config().peers.iter().all(|p| named(&p.url));
        if !healthy && knows && taken && parted + slack < self.now && !self.is_rewired(ix) && peers.iter().all(linked) {
            let missed: Vec<_> = links.iter().filter(|l| l.is_missed(at)).collect();
            return Some(format!(
                "calls its mesh unhealthy, and all its links are there but to those without a lease: {peers:?}; misses {missed:?}"
            ));
        }
        let grace = MESH_GRACE.as_nanos() as u64 + slack;
        let lost = parted.max(self.calm(ix)?);
        let missed = peers.iter().find(|peer| {
            known(**peer) && self.is_peer_due(**peer, grace) && !self.is_twin(**peer) && !self.has_end(ix, **peer)
        });
        (healthy && lost + grace < self.now)
            .then_some(missed?)
            .map(|peer| format!("calls its mesh healthy, and has had no connection with node {peer} for so long"))
    }

    /// Whether two hubs have a connection that carries their session, at both.
    pub(super) fn is_linked(&self, a: u16, b: u16) -> bool {
        self.conns.iter().enumerate().any(|(conn, c)| {
            (c.nodes == [a, b] || c.nodes == [b, a])
                && c.up == [true; 2]
                && !c.is_closing()
                && (0..2).all(|end| {
                    let m = self.nodes[usize::from(c.nodes[end])].machine.as_ref();
                    m.is_some_and(|m| m.mux().carried_by(key(conn as u32, end)).is_some())
                })
        })
    }

    /// Whether a hub has its end of any connection with another node.
    fn has_end(&self, ix: u16, other: u16) -> bool {
        let mut conns = self.conns.iter();
        conns.any(|c| (c.nodes == [ix, other] && c.up[0]) || (c.nodes == [other, ix] && c.up[1]))
    }

    fn judge_listeners(&self, ix: u16, slack: u64) -> Option<String> {
        let hub = self.nodes[usize::from(ix)].hub()?;
        for wanted in 0..self.plan.connectors {
            let unready = hub.unready(ListenerIx(wanted));
            // A lame duck has that to say first.
            let (none, leaves) = (unready == Some(Unready::NoCandidate), unready == Some(Unready::Draining));
            if none
                && let Some((agent, _)) = self.surely_serves(ix, wanted, self.now, slack)
                && self.check.interrupted.get(&ix).is_none_or(|at| at + slack < self.now)
                && self.has_tunnel_of(ix, agent, slack)
            {
                return Some(format!("has no candidate for c{wanted}, though {agent} is attached here"));
            }
            if !none && !leaves && !self.ever_exposed(wanted) {
                return Some(format!("has a candidate for c{wanted}, which nobody ever exposed"));
            }
        }
        None
    }

    /// Whether an agent's tunnel has had its connection for a while.
    fn has_tunnel_of(&self, ix: u16, agent: &AgentId, slack: u64) -> bool {
        let named = self.nodes.iter().position(|n| n.name == agent.as_str());
        named
            .is_some_and(|n| self.carries_tunnel(ix, n as u16, agent) && self.welcomed(ix, n as u16) + slack < self.now)
    }

    /// Whether any process that could expose a connector ever ran.
    fn ever_exposed(&self, wanted: u16) -> bool {
        self.nodes.iter().any(|n| match n.at {
            At::Agent(a) => n.run > 0 && self.plan.agents[usize::from(a)].connectors.iter().any(|c| c.0 == wanted),
            At::Hub(_) => false,
        })
    }

    /// L6: what a hub answers when everything is healed and has had its time.
    pub(super) fn check_readiness(&mut self) {
        for h in 0..self.plan.hubs.len() {
            let Some(hub) = self.nodes[h].hub() else { continue };
            let at = self.nodes[h].clock(self.now);
            let peers = self.peers_of(h as u16);
            let there = |p: &u16| {
                self.plan.hubs[usize::from(*p)].mode != ModePlan::Off
                    && self.nodes[usize::from(*p)].is_up()
                    && !self.is_frozen(*p)
            };
            if hub.mode() != Mode::Off && peers.iter().all(there) && !hub.mesh_healthy(at) {
                return self.fail("L6", format!("hub-{h} calls its mesh unhealthy long after the healing"));
            }
            for wanted in 0..self.plan.connectors {
                let unready = hub.unready(ListenerIx(wanted));
                if self.should_carry(h, wanted) && matches!(unready, Some(Unready::NoCandidate | Unready::Draining)) {
                    let text =
                        format!("hub-{h} could take no client of c{wanted} ({unready:?}), and should carry them");
                    return self.fail("L6", text);
                }
            }
        }
    }
}

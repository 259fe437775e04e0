//! After the healing: who must be connected again (L2, L4), new clients that
//! must be served (L3). Must not know what went wrong before.

use crate::faults::At;
use crate::plan::{ClientPlan, FlowPlan, MS, ModePlan};
use crate::world::World;

use super::{PROBES_FROM, SLOW_BELOW, orphan};

impl World {
    /// L2, L4: every agent is attached, every pair of hubs has its link. Soon
    /// after the healing only where no id was ever used twice: what a second
    /// process leaves behind is guarded against, or waits to be resumed, for
    /// longer.
    pub(super) fn check_relations(&mut self, soon: bool) {
        for (n, agent) in self.plan.agents.clone().iter().enumerate() {
            let ix = self.node_of(At::Agent(n as u8));
            let Some(a) = self.nodes[usize::from(ix)].agent() else { continue };
            let cloned = self.nodes.iter().any(|n| n.is_clone && n.at == self.nodes[usize::from(ix)].at);
            if soon && (cloned || agent.hubs.iter().any(|h| self.is_twin(u16::from(*h)))) {
                continue;
            }
            let have = a.mux().iter().filter(|(_, e)| e.conn.is_some()).count();
            let there = agent.hubs.iter().filter(|h| !self.is_frozen(u16::from(**h))).count();
            let want = usize::from(agent.parallel).min(there);
            if have < want {
                let dials = agent.hubs.iter().filter(|h| !self.has_tunnel(ix, u16::from(**h)));
                let dials: String = dials.map(|h| self.last_dials(ix, u16::from(*h))).collect();
                let text = format!(
                    "agent-{n} has {have} of {want} tunnels {} s after the healing{dials}",
                    (self.now - self.healed_at) / MS / 1000
                );
                return self.fail("L2", text);
            }
        }
        for a in 0..self.plan.hubs.len() {
            for b in 0..self.plan.hubs.len() {
                let linked = self.plan.hubs[a].mode != ModePlan::Off && self.plan.hubs[b].mode != ModePlan::Off;
                let peers =
                    self.plan.hubs[a].peers.contains(&(b as u8)) || self.plan.hubs[b].peers.contains(&(a as u8));
                let twice = self.is_twin(a as u16) || self.is_twin(b as u16);
                if a == b || !linked || !peers || self.is_frozen(b as u16) || (soon && twice) {
                    continue;
                }
                let name = format!("hub-{b}");
                let Some(hub) = self.nodes[a].hub() else { continue };
                let n = hub
                    .control()
                    .links(hub.mux())
                    .iter()
                    .filter(|l| {
                        l.replica.is_some_and(|r| r.as_str() == name)
                            && l.session.is_some_and(|k| hub.mux().get(k).is_some_and(|e| e.conn.is_some()))
                    })
                    .count();
                if n != 1 {
                    let dials = self.last_dials(a as u16, b as u16);
                    return self.fail("L4", format!("hub-{a} has {n} links to hub-{b} after the healing{dials}"));
                }
            }
        }
    }

    fn has_tunnel(&self, agent: u16, hub: u16) -> bool {
        let name = &self.nodes[usize::from(hub)].name;
        let m = self.nodes[usize::from(agent)].machine.as_ref();
        m.is_some_and(|m| m.mux().iter().any(|(_, e)| e.conn.is_some() && e.peer.name() == name))
    }

    /// Whether a client of a connector at a hub should be carried now.
    pub(super) fn should_carry(&self, hub: usize, wanted: u16) -> bool {
        let attached = |h: usize| {
            self.nodes[h].hub().is_some_and(|x| {
                x.control().tunnels().any(|t| {
                    let up = x.mux().get(t.session).is_some_and(|e| e.conn.is_some());
                    let agent =
                        self.plan.agents.iter().enumerate().find(|(n, _)| t.agent_id.as_str() == format!("agent-{n}"));
                    // What runs out is not renewed in band, nor is the tunnel replaced.
                    let lasts = agent.is_some_and(|(_, a)| a.token_ns == 0);
                    up && lasts && agent.is_some_and(|(_, a)| a.connectors.iter().any(|c| c.0 == wanted))
                })
            })
        };
        if attached(hub) {
            return true;
        }
        if !self.nodes[hub].is_up() {
            return false;
        }
        self.plan.hubs[hub].mode == ModePlan::Active
            && (0..self.plan.hubs.len()).any(|h| h != hub && self.plan.hubs[h].mode == ModePlan::Active && attached(h))
    }

    /// L3: new clients everywhere.
    pub(super) fn start_probes(&mut self) {
        for hub in 0..self.plan.hubs.len() {
            for wanted in 0..self.plan.connectors {
                if !self.should_carry(hub, wanted) {
                    continue;
                }
                let id = PROBES_FROM + self.check.probes.len() as u32;
                let flow = FlowPlan { total: 5000, chunk: 2000, write_gap: 0, read: 1 << 16, read_gap: 0, after: 0 };
                let probe = ClientPlan { id, hub: hub as u8, connector: wanted, up: flow, down: flow, ..orphan() };
                self.check.probes.push(probe);
            }
        }
        // On a slow wire they would time out behind each other's bytes and what
        // else is under way: there they come one by one, when it is quiet.
        while self.is_fast() && self.next_probe() {}
    }

    /// No wire holds what is small back for long.
    pub(super) const fn is_fast(&self) -> bool {
        self.plan.net.bandwidth.0 >= SLOW_BELOW
    }

    /// Whether what was written before takes some slow wire for a while yet.
    pub(super) fn is_wire_taken(&self) -> bool {
        if self.is_fast() {
            return false;
        }
        let until = self.now + 1000 * MS;
        self.conns.iter().any(|c| c.up == [true; 2] && c.pipes.iter().any(|p| !p.dead && p.free_at > until))
    }

    /// Connects the next new client; false when all were.
    pub(super) fn next_probe(&mut self) -> bool {
        let Some(probe) = self.check.probes.get(self.check.probing).copied() else { return false };
        self.check.probing += 1;
        self.connect_client(probe);
        true
    }
}

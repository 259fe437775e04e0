//! I1 as the plan has it: a client reaches a target of the connector that its
//! listener names, at an agent that exposes it and whose token allows it; every
//! OPEN on its way says so, and goes over that agent's own tunnel.
//!
//! A listener names one connector for as long as a run lasts: a reload leaves it
//! without room or gives that back, and does not point it elsewhere. What an
//! agent exposes now and then is a part of its plan. Must not look into a machine.

use nowconnect_core::config::OpenTimers;
use nowconnect_core::id::{Cid, Name};
use nowconnect_core::wire::{Body, Frame, Open, Plane};

use super::wire::Told;
use crate::faults::At;
use crate::node::connector;
use crate::rogue;
use crate::world::World;

impl World {
    /// The connector that an honest client came for.
    fn came_for(&self, client: u32) -> Option<Name> {
        (client != rogue::CLIENT).then(|| connector(self.client_plan(client).connector))
    }

    /// An agent connects a target: what is wrong with it.
    pub(crate) fn judge_tenant(&self, ix: u16, cid: Cid, client: Option<u32>, wanted: &Name) -> Option<String> {
        let client = client?;
        let came_for = self.came_for(client)?;
        if *wanted != came_for {
            return Some(format!("node {ix} connects {wanted} for {cid}; client {client} came for {came_for}"));
        }
        let At::Agent(n) = self.nodes[usize::from(ix)].at else { return None };
        let plan = self.plan.agents.get(usize::from(n))?;
        let exposed = plan.connectors.iter().any(|c| connector(c.0) == *wanted);
        let allowed = plan.scope.as_ref().is_none_or(|s| s.iter().any(|c| connector(*c) == *wanted));
        (!exposed || !allowed)
            .then(|| format!("node {ix} connects {wanted} for client {client}: exposed {exposed}, allowed {allowed}"))
    }

    /// OPENs of honest clients that reach a machine.
    pub(super) fn judge_opens(&mut self, conn: u32, told: &Told) {
        for f in &told.frames {
            let Frame::Stream { cid, body: Body::Open(open), .. } = f else { continue };
            if let Some(text) = self.judge_open(conn, *cid, open) {
                return self.fail("I1", text);
            }
        }
    }

    /// Semantics 3: a client that ends before its first byte, where that is
    /// waited for, comes and goes unseen.
    fn is_probe(&self, client: u32) -> bool {
        if client == rogue::CLIENT {
            return false;
        }
        let plan = self.client_plan(client);
        let wait = OpenTimers::default().first_byte_wait.as_nanos() as u64;
        let actor = self.pairs.get(&client).and_then(|p| p[0]).map(|a| &self.actors[a as usize]);
        let ended = actor.is_some_and(|a| a.wrote == 0 && a.fin_sent);
        self.plan.hubs[usize::from(plan.hub)].first_byte && ended && self.now < plan.at + wait
    }

    fn judge_open(&self, conn: u32, cid: Cid, open: &Open) -> Option<String> {
        if self.check.wire.is_strangers(cid) || open.connector.as_str() == rogue::CONNECTOR {
            return None;
        }
        let (agent, wanted) = (&open.agent_id, &open.connector);
        if let Some(client) = self.cids.get(&cid)
            && let Some(came_for) = self.came_for(*client)
            && *wanted != came_for
        {
            return Some(format!("conn {conn}: OPEN of {cid} for {wanted}; client {client} came for {came_for}"));
        }
        if let Some(client) = self.cids.get(&cid)
            && self.is_probe(*client)
        {
            return Some(format!("conn {conn}: OPEN of {cid} for client {client}, which ended without a byte"));
        }
        let c = &self.conns[conn as usize];
        if c.dialect.plane == Plane::Tunnel
            && let At::Agent(n) = self.nodes[usize::from(c.nodes[0])].at
            && agent.as_str() != format!("agent-{n}")
        {
            return Some(format!("OPEN of {cid} for {agent} over a tunnel of agent-{n} (conn {conn})"));
        }
        let exposes =
            self.agent_plan(agent).is_some_and(|(_, a)| a.connectors.iter().any(|c| connector(c.0) == *wanted));
        (!exposes).then(|| format!("conn {conn}: OPEN of {cid} for {wanted} at {agent}, which never exposes it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Level;
    use crate::profile::Profile;
    use crate::tape::Tape;
    use crate::trace::Trace;
    use nowconnect_core::id::{AgentId, Nonce, Secret};

    #[test]
    fn another_connector_and_another_agent_are_noticed() {
        let plan = crate::run::plan(1, Profile::named("calm").expect("a profile"), Level::L0);
        let mut world = World::new(plan, Tape::from_seed(1), Trace::default());
        world.run();
        assert_eq!(world.violation, None);
        let (cid, client) = world.cids.iter().next().map(|(c, n)| (*c, *n)).expect("a client");
        let wanted = connector(world.client_plan(client).connector);
        let serves = |a: &crate::plan::AgentPlan| a.connectors.iter().any(|c| connector(c.0) == wanted);
        let n = world.plan.agents.iter().position(serves).expect("an agent") as u8;
        let node = world.node_of(At::Agent(n));
        assert_eq!(world.judge_tenant(node, cid, Some(client), &wanted), None);
        assert!(world.judge_tenant(node, cid, Some(client), &connector(77)).is_some());
        assert_eq!(world.judge_tenant(node, cid, None, &connector(77)), None, "nobody knows whose it is");
        let over = |c: &crate::net::Conn| c.dialect.plane == Plane::Tunnel && c.nodes[0] == node;
        let conn = world.conns.iter().position(over).expect("a tunnel") as u32;
        let agent_id = AgentId::new(&format!("agent-{n}")).expect("a name");
        let mut open = Open { nonce: Nonce(1), connector: wanted, agent_id, key: Secret([0; 16]), limit: 1 };
        assert_eq!(world.judge_open(conn, cid, &open), None);
        world.plan.agents[usize::from(n)].connectors.clear();
        assert!(world.judge_open(conn, cid, &open).is_some_and(|t| t.contains("never exposes")));
        open.connector = connector(77);
        assert!(world.judge_open(conn, cid, &open).is_some_and(|t| t.contains("came for")));
        (open.connector, open.agent_id) = (connector(0), AgentId::new("agent-77").expect("a name"));
        assert!(world.judge_open(conn, Cid(1), &open).is_some_and(|t| t.contains("over a tunnel of")));
    }
}

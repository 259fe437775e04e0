//! What is known of each process from outside: what it asked and was answered,
//! what its sockets gave and took, since when it runs undisturbed.
//!
//! Keeps: the lease ends by the hub's own clock, counted from its request (O7);
//! readiness follows the registry (L6); a silent peer is given up (L9); a live
//! connection carries its session; attachments differ in their epochs and only
//! rise (O2, O3); counters equal what happened (A1); labels are configured
//! names (B10); tokens and certificates are asked for (I3, I4).

use std::collections::BTreeMap;

use nowconnect_core::agent::Agent;
use nowconnect_core::hub::Hub;
use nowconnect_core::id::{AgentId, Epoch, Name};
use nowconnect_core::observed::StreamRecord;
use nowconnect_core::registry::{RegistryOp, RegistryReply, RegistryResult, Token};
use nowconnect_core::time::Instant;

use crate::faults::{At, Class};
use crate::net::{key, place};
use crate::node::connector;
use crate::plan::MS;
use crate::reload::Changed;
use crate::world::World;

/// How long a hub may take to notice that the registry does not answer: two
/// renewals a second apart, each with its time-out, and some slack.
const READY_WITHIN: u64 = 5000 * MS;

/// What is known of a process.
#[derive(Debug, Default)]
pub(crate) struct NodeGhost {
    /// Its mode changed while it ran: what is open may be of an earlier one.
    pub(crate) flipped: bool,
    /// Something else of its configuration did: peers, hubs, what is exposed.
    pub(crate) rewired: bool,
    /// It ejected a candidate.
    pub(super) ejected: bool,
    /// It has run undisturbed since.
    pub(crate) calm_since: u64,
    /// Its registry answered last, has been out since, and is back since.
    pub(super) ok_at: u64,
    pub(crate) unhealthy_since: Option<u64>,
    pub(super) healthy_since: u64,
    renewals: BTreeMap<Token, Instant>,
    lease_until: Option<Instant>,
    /// Payload its sockets gave and took.
    pub(crate) from_sockets: u64,
    pub(crate) to_sockets: u64,
    highest: Epoch,
    /// Another run holds its lease, as it was told last.
    pub(super) fenced: bool,
    /// Violations of limits that hostile peers owe it.
    pub(crate) flow_owed: u64,
    /// Breaches of the protocol by hostile peers that it may still find: on
    /// tunnels, on links.
    pub(crate) breaches_owed: [u64; 2],
    /// A hostile hub shows it a proof that is none.
    pub(crate) unproven: bool,
    /// Agents whose token ran out on their tunnel, when by the hub's clock.
    pub(super) expired: BTreeMap<AgentId, Instant>,
    /// When each agent's token runs out, by the hub's clock.
    tokens: BTreeMap<u8, Instant>,
    /// What it held, and was allowed to.
    pub(super) limits: super::limits::Held,
    /// What it did, as far as it was seen.
    pub(super) seen: super::counts::Seen,
    /// Frames that change nothing.
    pub(super) odd: super::odd::Odd,
}

impl World {
    pub(super) fn ghost(&mut self, ix: u16) -> &mut NodeGhost {
        self.check.nodes.entry(ix).or_default()
    }

    /// A process was started, woke up or lags no more.
    pub(crate) fn ghost_disturbed(&mut self, ix: u16) {
        let now = self.now;
        self.ghost(ix).calm_since = now;
    }

    pub(crate) fn ghost_boot(&mut self, ix: u16) {
        let now = self.now;
        let rewired = self.nodes[usize::from(ix)].changed != Changed::default();
        *self.ghost(ix) = NodeGhost { calm_since: now, ok_at: now, rewired, ..NodeGhost::default() };
        self.check.wire.forget_causes(ix);
        self.ghost_limits(ix);
        self.forget_sessions(ix);
        self.check.held.retain(|(hub, _), _| *hub != ix);
    }

    /// Its mode changed at run time.
    pub(crate) fn ghost_flipped(&mut self, ix: u16) {
        self.ghost(ix).flipped = true;
    }

    /// Its configuration changed at run time.
    pub(crate) fn ghost_rewired(&mut self, ix: u16) {
        self.ghost(ix).rewired = true;
    }

    /// Whether a process runs with another configuration than the plan's, or did.
    pub(crate) fn is_rewired(&self, ix: u16) -> bool {
        self.check.nodes.get(&ix).is_some_and(|g| g.rewired)
    }

    /// Since when a process has run undisturbed; `None` while it does not.
    pub(crate) fn calm(&self, ix: u16) -> Option<u64> {
        let n = &self.nodes[usize::from(ix)];
        let disturbed = n.paused || n.lag > 0 || !n.held.is_empty() || n.machine.is_none();
        (!disturbed && n.stalls.is_empty()).then(|| self.check.nodes.get(&ix).map_or(0, |g| g.calm_since))
    }

    /// The same of its control and its sessions, which wait for no shard.
    fn awake(&self, ix: u16) -> Option<u64> {
        let n = &self.nodes[usize::from(ix)];
        let disturbed = n.paused || n.lag > 0 || !n.held.is_empty() || n.machine.is_none();
        (!disturbed).then(|| self.check.nodes.get(&ix).map_or(0, |g| g.calm_since))
    }

    pub(crate) fn ghost_asked(&mut self, ix: u16, token: Token, op: &RegistryOp) {
        self.lease_resigned(op);
        let at = self.nodes[usize::from(ix)].clock(self.now);
        let off = |h: &Hub| h.mode() == nowconnect_core::config::Mode::Off;
        // The last word of a hub that goes off gives its lease back.
        if self.nodes[usize::from(ix)].hub().is_some_and(off) && !matches!(op, RegistryOp::Resign { .. }) {
            self.fail("M1", format!("node {ix} asks the registry in mode off: {op:?}"));
        }
        if matches!(op, RegistryOp::Renew { .. }) {
            self.ghost(ix).renewals.insert(token, at);
        }
    }

    pub(crate) fn ghost_answered(&mut self, ix: u16, token: Token, result: &RegistryResult) {
        let (now, lease) = (self.now, self.plan.timers.lease);
        let g = self.ghost(ix);
        let Some(sent) = g.renewals.remove(&token) else { return };
        if matches!(result, Ok(RegistryReply::Renewed | RegistryReply::LeaseHeld { .. })) {
            g.ok_at = now;
        }
        if *result == Ok(RegistryReply::Renewed) {
            let until = Some(sent.after(std::time::Duration::from_nanos(lease)));
            g.lease_until = g.lease_until.max(until);
            g.fenced = false;
        }
    }

    /// Renewals of a process that were not answered within the time-out.
    pub(super) fn renewals_in_vain(&self, ix: u16) -> usize {
        let node = &self.nodes[usize::from(ix)];
        let Some(hub) = node.hub() else { return 0 };
        let (at, patience) = (node.clock(self.now), hub.control().config().registry.op_timeout);
        let late = |sent: &&Instant| sent.after(patience) <= at;
        self.check.nodes.get(&ix).map_or(0, |g| g.renewals.values().filter(late).count())
    }

    /// O7: whether OPENs of other hubs were carried on just now, by a hub whole
    /// or split. A shard may hear late that the lease was lost, never that it
    /// ran out: the deadline it knows is by the hub's own clock.
    pub(crate) fn check_carried(&mut self, ix: u16) {
        let Some(hub) = self.nodes[usize::from(ix)].hub() else { return };
        let carried = hub.shards().iter().map(|s| s.counters().carried).sum();
        if std::mem::replace(&mut self.nodes[usize::from(ix)].carried, carried) < carried {
            self.ghost_carried(ix);
            self.judge_taken(ix);
        }
    }

    fn ghost_carried(&mut self, ix: u16) {
        let node = &self.nodes[usize::from(ix)];
        let at = node.clock(self.now);
        let until = self.check.nodes.get(&ix).and_then(|g| g.lease_until);
        if until.is_none_or(|until| at >= until) && !self.serves_without_lease(ix) {
            let text = format!("{} carries an OPEN of another hub at {at:?}, its lease ended at {until:?}", node.name);
            self.fail("O7", text);
        }
    }

    /// OPENs of other hubs were not carried on: a mark if the hub holds the
    /// attachment and its lease has run out, by its own clock.
    pub(super) fn note_not_carried(&mut self, ix: u16, opens: &[nowconnect_core::wire::Open]) {
        let at = self.nodes[usize::from(ix)].clock(self.now);
        let until = self.check.nodes.get(&ix).and_then(|g| g.lease_until);
        let holds = |agent: &AgentId| self.check.held.contains_key(&(ix, agent.clone()));
        if until.is_some_and(|until| at >= until)
            && !self.serves_without_lease(ix)
            && opens.iter().any(|o| holds(&o.agent_id))
        {
            self.marks.hit(crate::marks::Mark::LeaseSelfFence);
        }
    }

    /// A tunnel was accepted: the token it came with.
    pub(crate) fn ghost_token(&mut self, hub: u16, agent: u8, expires: Option<Instant>) {
        let tokens = &mut self.ghost(hub).tokens;
        // A dial may come to nothing, and then the token before counts: the
        // latest end of all that were shown is the one that surely holds.
        let until = expires.unwrap_or(Instant::from_nanos(u64::MAX));
        let known = tokens.entry(agent).or_insert(until);
        *known = (*known).max(until);
    }

    /// I4: a stream is opened at an agent of this hub.
    pub(crate) fn ghost_opened(&mut self, hub: u16, agent: &str, client: u32) {
        let Some(n) = agent.strip_prefix("agent-").and_then(|n| n.parse::<u8>().ok()) else { return };
        let at = self.nodes[usize::from(hub)].clock(self.now);
        let late = 200 * MS + self.plan.late_timers_ns;
        if self.calm(hub).is_some_and(|t| self.now - t > 1000 * MS)
            && let Some(until) = self.check.nodes.get(&hub).and_then(|g| g.tokens.get(&n)).copied()
            && at.as_nanos() > until.as_nanos().saturating_add(late)
        {
            self.fail(
                "I4",
                format!("client {client} is opened at {agent}, whose token ran out at {until:?}, at {at:?}"),
            );
        }
    }

    /// I1, I4: a stream is opened at an agent of this hub: the token that came
    /// with the tunnel's connection names the connector.
    pub(crate) fn ghost_scope(&mut self, hub: u16, agent: &AgentId, wanted: &Name) {
        let Some(n) = agent.as_str().strip_prefix("agent-").and_then(|n| n.parse::<u8>().ok()) else { return };
        let found = self.nodes[usize::from(hub)].hub().and_then(|h| {
            let session = h.control().tunnels().find(|t| t.agent_id == agent)?.session;
            let (conn, _) = place(h.mux().get(session)?.conn?);
            let scope = self.token(conn, n).0?;
            (!scope.iter().any(|c| connector(*c) == *wanted)).then_some(scope)
        });
        if let Some(scope) = found {
            let text = format!("node {hub} opens {wanted} at {agent}, whose token names the connectors {scope:?} only");
            self.fail("I1", text);
        }
    }

    /// A stream of a client of this hub is over.
    pub(crate) fn ghost_record(&mut self, ix: u16, r: &StreamRecord) {
        self.note_record(ix, r);
        self.note_cached(ix, r);
        let total = r.total.as_nanos() as u64;
        let At::Hub(n) = self.nodes[usize::from(ix)].at else { return };
        let calm = self.calm(ix).is_some_and(|t| self.now - t > total + 1000 * MS);
        if let Some(sock) = r.sock.and_then(|k| self.socks.get(k.ix as usize))
            && (r.bytes_up != sock.taken || r.bytes_down > sock.written)
        {
            let text = format!(
                "node {ix} records {} bytes up and {} down of {}; its socket gave {} and took {}",
                r.bytes_up, r.bytes_down, r.cid, sock.taken, sock.written
            );
            return self.fail("A1", text);
        }
        if !calm {
            return;
        }
        let slack = self.plan.late_timers_ns * 2 + self.plan.hubs[usize::from(n)].note_delay_ns * 8 + 1000 * MS;
        let waits = self.plan.hubs[usize::from(n)].first_byte;
        // Whether it was opened after all or not.
        let waited = r.open.map_or(total, |after| after.as_nanos() as u64);
        if !waits && waited > self.plan.timers.open + slack {
            let text = format!("node {ix} kept a client {} ms without opening its stream", waited / MS);
            return self.fail("L12", text);
        }
        self.judge_refusal(ix, r, slack);
        self.judge_prompt(ix, r, total);
    }

    pub(crate) fn ghost_health(&mut self, ix: u16, healthy: bool) {
        let now = self.now;
        let g = self.ghost(ix);
        g.unhealthy_since = (!healthy).then_some(now);
        g.healthy_since = now;
    }

    /// Whole checks of every process, every 256 events.
    pub(crate) fn check_nodes(&mut self) {
        for ix in 0..self.nodes.len() as u16 {
            let node = &self.nodes[usize::from(ix)];
            let found = if let Some(hub) = node.hub() {
                self.check_hub(ix, hub)
            } else if let Some(agent) = node.agent() {
                self.check_agent(ix, agent)
            } else {
                None
            };
            if let Some((id, text)) = found
                .or_else(|| self.check_counters(ix))
                .or_else(|| self.check_counts(ix))
                .or_else(|| self.check_odd(ix))
            {
                return self.fail(id, format!("{}: {text}", self.nodes[usize::from(ix)].name));
            }
            if let Some(agent) = self.nodes[usize::from(ix)].agent() {
                let highest = agent.tunnels().highest_epoch();
                self.ghost(ix).highest = highest;
            }
        }
        self.check_connections();
    }

    fn check_hub(&self, ix: u16, hub: &Hub) -> Option<(&'static str, String)> {
        // Who proved its name by a certificate of the mesh is a peer.
        let configured =
            |name: &str| (0..self.plan.hubs.len()).any(|n| name == format!("hub-{n}")) || self.is_rogue_hub(name);
        if let Some((name, _)) = hub.violations_by_peer().iter().find(|(n, _)| !configured(n.as_str())) {
            return Some(("B10", format!("`{name}` is a label and no configured peer")));
        }
        let g = self.check.nodes.get(&ix)?;
        let since = g.ok_at.max(self.awake(ix)?);
        let late = READY_WITHIN + 4 * self.plan.late_timers_ns;
        if hub.mode() != nowconnect_core::config::Mode::Off
            && self.now - since > late
            && hub.control().registry_healthy()
        {
            return Some((
                "L6",
                format!("counts the registry as healthy, it was silent for {} ms", (self.now - since) / MS),
            ));
        }
        None
    }

    /// O2 is an instance's: one that is offered less than it had, because the
    /// registry lost it or a hostile hub claimed too much for it, is over.
    pub(super) fn ghost_started_over(&mut self, ix: u16, highest: Epoch, offered: Epoch) {
        let cause = self.faults_done[Class::Registry as usize] > 0 || !self.plan.rogues.is_empty();
        if offered > highest || !cause {
            let text = format!("node {ix} starts over, is offered {offered} after {highest}");
            return self.fail("O2", text);
        }
        self.ghost(ix).highest = Epoch(0);
    }

    fn check_agent(&self, ix: u16, agent: &Agent) -> Option<(&'static str, String)> {
        let mut fences: Vec<_> = agent.shard().attachments().map(|a| a.fence).collect();
        fences.sort();
        if let Some([a, b]) = fences.windows(2).find(|w| matches!(w, [a, b] if a.epoch == b.epoch)) {
            return Some(("O3", format!("serves under {a:?} and {b:?}: one epoch, two claims")));
        }
        let highest = agent.tunnels().highest_epoch();
        let before = self.check.nodes.get(&ix).map_or(Epoch(0), |g| g.highest);
        (highest < before).then(|| ("O2", format!("its highest epoch fell from {before} to {highest}")))
    }

    /// A1: what a machine counts is what its sockets saw.
    fn check_counters(&self, ix: u16) -> Option<(&'static str, String)> {
        let m = self.nodes[usize::from(ix)].machine.as_ref()?;
        let g = self.check.nodes.get(&ix)?;
        let (mut from, mut to, mut flow) = (0, 0, 0);
        for shard in m.shards() {
            let c = shard.counters();
            (from, to, flow) = (from + c.bytes_from_sockets, to + c.bytes_to_sockets, flow + c.flow_violations);
        }
        if from != g.from_sockets {
            return Some(("A1", format!("counts {from} bytes from sockets, they gave {}", g.from_sockets)));
        }
        if to > g.to_sockets {
            return Some(("A1", format!("counts {to} bytes to sockets, they took {}", g.to_sockets)));
        }
        (flow > g.flow_owed).then(|| ("B4", "found a peer beyond its credit or its offsets".to_owned()))
    }

    /// L9: nobody believes in a peer that says nothing; and what is connected
    /// carries its session.
    fn check_connections(&mut self) {
        let mut wire = std::mem::take(&mut self.check.wire);
        wire.prune(|conn| self.conns[conn as usize].up != [false; 2]);
        let mut found = None;
        for (conn, bound) in wire.current() {
            let c = &self.conns[conn as usize];
            for end in 0..2 {
                let ix = c.nodes[end];
                let node = &self.nodes[usize::from(ix)];
                let Some(m) = node.machine.as_ref().filter(|_| c.up[end] && node.run == c.runs[end]) else { continue };
                let Some(calm) = self.awake(ix) else { continue };
                let carried = m.mux().carried_by(key(conn, end)).is_some();
                let silent = self.now.saturating_sub(wire.heard(conn, end).max(calm));
                let dead = self.plan.timers.dead + 2 * self.plan.late_timers_ns + 2500 * MS;
                if carried && silent > dead {
                    found = Some(("L9", format!("{} hears nothing on conn {conn} for {} ms", node.name, silent / MS)));
                }
                if end == 1 && bound && !carried && c.up == [true; 2] && !c.is_closing() {
                    found = Some(("L9", format!("{}: conn {conn} is alive and carries nothing", node.name)));
                }
            }
        }
        self.check.wire = wire;
        if let Some((id, text)) = found {
            self.fail(id, text);
        }
    }
}

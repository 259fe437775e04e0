//! Configurations that change while a node runs (X2): a peer, an address, a
//! listener or a connector goes or comes back, limits fall below their use or
//! rise. What a node is to be told follows from the plan and what was changed
//! since; streams that are open are left alone by all of it. Now and then the
//! file is wrong at first: then it is refused and nothing has changed (M7). Must
//! not know what a machine makes of it. A change of mode is in `flip`.

use std::collections::BTreeSet;
use std::time::Duration;

use nowconnect_core::agent::ReloadError as AgentError;
use nowconnect_core::config::{AgentConfig, HubConfig, Limits, PeerConfig};
use nowconnect_core::hub::ReloadError as HubError;
use nowconnect_core::id::AgentId;
use nowconnect_core::mux::NodeOut;
use serde::{Deserialize, Serialize};

use crate::faults::At;
use crate::marks::Mark;
use crate::node::{Machine, agent_config, connector, hub_config, mode, name};
use crate::plan::Plan;
use crate::tape::Lane;
use crate::world::World;

/// How long what was taken away is used up.
pub(crate) const DRAIN: Duration = Duration::from_secs(60);

/// No node is told to make do with less: a few windows.
const BUDGET_MIN: u64 = 1 << 20;

/// What a new configuration changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reload {
    /// A peer of a hub, or a hub of an agent, is in the file or not.
    Peer {
        /// Its number.
        hub: u8,
        /// It is there.
        there: bool,
    },
    /// A listener of a hub, or a connector of an agent.
    Connector {
        /// Its number.
        connector: u16,
        /// It is there.
        there: bool,
    },
    /// Caps of sessions and the largest window, in hundredths of the plan's.
    Limits(u16),
    /// Most streams at one time.
    Streams(u32),
}

impl Reload {
    /// Draws a change for a node of the plan.
    pub(crate) fn draw(at: At, plan: &Plan, l: &mut Lane) -> Self {
        match l.weighted(&[3, 3, 2, 1]) {
            0 => Self::Peer { hub: l.below(plan.hubs.len() as u64) as u8, there: l.chance(1, 3) },
            1 => {
                // A token may name fewer connectors than the file does.
                let fixed = matches!(at, At::Agent(n) if plan.agents[usize::from(n)].token_ns > 0);
                let connector = l.below(u64::from(plan.connectors)) as u16;
                Self::Connector { connector, there: l.chance(1, 3) || fixed }
            }
            2 => Self::Limits(l.spread(1, 400) as u16),
            _ => Self::Streams(l.spread(1, 64) as u32),
        }
    }
}

/// What differs from the plan, until the healing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    peers: BTreeSet<u8>,
    connectors: BTreeSet<u16>,
    percent: Option<u16>,
    streams: Option<u32>,
}

impl Changed {
    fn apply(&mut self, what: Reload) {
        match what {
            Reload::Peer { hub, there: true } => drop(self.peers.remove(&hub)),
            Reload::Peer { hub, there: false } => drop(self.peers.insert(hub)),
            Reload::Connector { connector, there: true } => drop(self.connectors.remove(&connector)),
            Reload::Connector { connector, there: false } => drop(self.connectors.insert(connector)),
            Reload::Limits(percent) => self.percent = Some(percent),
            Reload::Streams(most) => self.streams = Some(most),
        }
    }

    fn limit(&self, limits: &mut Limits) {
        let scaled = |n: u64, percent: u16| (n.saturating_mul(u64::from(percent)) / 100).max(1);
        if let Some(percent) = self.percent {
            limits.inflight_bytes = scaled(limits.inflight_bytes, percent);
            limits.send_queue_depth = scaled(u64::from(limits.send_queue_depth), percent) as u32;
            let window = scaled(limits.stream_window_max_bytes, percent.min(100));
            limits.stream_window_max_bytes = window.max(limits.stream_window_initial_bytes);
            limits.max_pending_opens = u32::from(percent);
            limits.tombstones = u32::from(percent);
            let budget = scaled(limits.memory_budget_bytes, percent.min(100)).max(BUDGET_MIN);
            limits.memory_budget_bytes = budget.min(limits.memory_budget_bytes);
        }
        if let Some(most) = self.streams {
            limits.max_streams = most;
        }
    }

    /// The file of a hub; listeners that are gone have room for nobody.
    pub(crate) fn of_hub(&self, mut config: HubConfig) -> HubConfig {
        self.limit(&mut config.limits);
        config.peers.retain(|p| !self.peers.iter().any(|gone| p.url == format!("hub-{gone}")));
        for listener in &mut config.listeners {
            if self.connectors.iter().any(|gone| listener.connector == connector(*gone)) {
                listener.max_connections = 0;
            }
        }
        config
    }

    /// The file of an agent, which keeps one hub at least.
    pub(crate) fn of_agent(&self, mut config: AgentConfig) -> AgentConfig {
        self.limit(&mut config.limits);
        let there = |url: &String| !self.peers.iter().any(|gone| *url == format!("hub-{gone}"));
        if config.hubs.iter().any(there) {
            config.hubs.retain(there);
        }
        config.connectors.retain(|c| !self.connectors.iter().any(|gone| c.name == connector(*gone)));
        config
    }
}

/// What no process can change while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    Identity,
    /// A hub's; an agent has none.
    Namespace,
    FirstWindow,
    Places,
}

const FLAWS: [Flaw; 4] = [Flaw::Identity, Flaw::Namespace, Flaw::FirstWindow, Flaw::Places];

/// More peers, or hubs, than there is room for.
const TOO_MANY: usize = 5000;

impl Flaw {
    fn in_hub(self, mut file: HubConfig) -> HubConfig {
        match self {
            Self::Identity => file.replica_id = name("hub-99"),
            Self::Namespace => file.namespace = name("elsewhere"),
            Self::FirstWindow => file.limits.stream_window_initial_bytes += 1,
            Self::Places => file.peers.extend((0..TOO_MANY).map(|n| PeerConfig {
                url: format!("hub-{}", 1000 + n),
                replica_id: None,
                host: None,
            })),
        }
        file
    }

    fn in_agent(self, mut file: AgentConfig) -> AgentConfig {
        match self {
            Self::Identity | Self::Namespace => {
                file.agent_id = AgentId::new("agent-99").expect("a name like those of plans");
            }
            Self::FirstWindow => file.limits.stream_window_initial_bytes += 1,
            Self::Places => file.hubs.extend((0..TOO_MANY).map(|n| format!("hub-{}", 1000 + n))),
        }
        file
    }

    /// How a refusal for it begins: with the key to change.
    const fn named(self, hub: bool) -> &'static str {
        match self {
            Self::Identity if hub => "ha.replica_id ",
            Self::Identity | Self::Namespace if !hub => "agent_id ",
            Self::Identity | Self::Namespace => "ha.namespace ",
            Self::FirstWindow => "limits.stream_window_initial_bytes ",
            Self::Places if hub => "listeners or ha.mesh.peers ",
            Self::Places => "hubs ",
        }
    }
}

/// Where two texts part: what stands there in each.
fn difference(a: &str, b: &str) -> Option<(String, String)> {
    if a == b {
        return None;
    }
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
    let around = |s: &str| s.chars().skip(same.saturating_sub(40)).take(100).collect();
    Some((around(a), around(b)))
}

impl World {
    /// The configuration a hub is to have now.
    pub(crate) fn hub_file(&self, ix: u16, n: u8) -> HubConfig {
        let node = &self.nodes[usize::from(ix)];
        let plan = &self.plan.hubs[usize::from(n)];
        let mut config = node.changed.of_hub(hub_config(&self.plan, usize::from(n), plan));
        if let Some(m) = node.mode {
            config.mode = mode(m);
        }
        config
    }

    /// The configuration an agent is to have now.
    pub(crate) fn agent_file(&self, ix: u16, n: u8) -> AgentConfig {
        let plan = &self.plan.agents[usize::from(n)];
        self.nodes[usize::from(ix)].changed.of_agent(agent_config(&self.plan, usize::from(n), plan))
    }

    /// A node's file changes and it is told so; one that sleeps or is down has
    /// it when it starts next.
    pub(crate) fn change(&mut self, ix: u16, what: Reload) {
        self.nodes[usize::from(ix)].changed.apply(what);
        if self.nodes[usize::from(ix)].paused {
            return;
        }
        // Somebody edits the file, gets it wrong and tries again.
        let mut lane = self.tape.lane("refused", (self.now << 8) | u64::from(ix));
        if lane.chance(1, 2) {
            self.offer_flawed(ix, FLAWS[lane.below(FLAWS.len() as u64) as usize]);
        }
        let streams = self.nodes[usize::from(ix)].machine.as_ref().map_or(0, Machine::streams);
        match what {
            Reload::Peer { there: false, .. } | Reload::Connector { there: false, .. } if streams > 0 => {
                self.marks.hit(Mark::Reloaded);
            }
            Reload::Streams(most) if streams > most as usize => self.marks.hit(Mark::LimitBelowUse),
            Reload::Peer { .. } | Reload::Connector { .. } | Reload::Limits(_) | Reload::Streams(_) => {}
        }
        self.tell_file(ix);
    }

    /// M7: what cannot be put in force while a node runs is refused, also what
    /// is new and right in the same file; and nothing of the node has changed.
    fn offer_flawed(&mut self, ix: u16, flaw: Flaw) {
        let at = self.nodes[usize::from(ix)].at;
        let (hub, agent) = match at {
            At::Hub(n) => (Some(flaw.in_hub(self.hub_file(ix, n))), None),
            At::Agent(n) => (None, Some(flaw.in_agent(self.agent_file(ix, n)))),
        };
        let (now, hub_there) = (self.now, hub.is_some());
        let node = &mut self.nodes[usize::from(ix)];
        let at = node.clock(now);
        let Some(machine) = &mut node.machine else { return };
        let state = |m: &Machine, out: &NodeOut| format!("{m:?} {out:?}");
        let before = state(machine, &node.out);
        let answer = match (&mut *machine, hub, agent) {
            (Machine::Hub(m), Some(file), _) => {
                m.reload(at, &file, DRAIN, &mut node.out).map_err(|e| (e == HubError::Leaving, e.to_string()))
            }
            (Machine::Agent(m), _, Some(file)) => {
                m.reload(at, &file, DRAIN, &mut node.out).map_err(|e| (e == AgentError::Leaving, e.to_string()))
            }
            _ => return,
        };
        self.inputs += 1;
        let (name, after) = (node.name.clone(), state(machine, &node.out));
        match answer {
            Ok(()) => self.fail("M7", format!("{name} takes a configuration with another {flaw:?}")),
            Err((leaving, told)) if !leaving && !told.starts_with(flaw.named(hub_there)) => {
                self.fail("M7", format!("{name} refuses another {flaw:?} with: {told}"));
            }
            Err(_) => self.marks.hit(Mark::ReloadRefused),
        }
        if let Some((was, is)) = difference(&before, &after) {
            self.fail("M7", format!("{name} refused another {flaw:?}, and changed: it was …{was}…, it is …{is}…"));
        }
    }

    /// Tells a node what is in its file. One that cannot take it, because it
    /// leaves, is started anew by whoever runs it.
    pub(crate) fn tell_file(&mut self, ix: u16) {
        let at = self.nodes[usize::from(ix)].at;
        let (hub, agent) = match at {
            At::Hub(n) => (Some(self.hub_file(ix, n)), None),
            At::Agent(n) => (None, Some(self.agent_file(ix, n))),
        };
        let now = self.now;
        let node = &mut self.nodes[usize::from(ix)];
        let at = node.clock(now);
        let mut flipped = false;
        let taken = match (&mut node.machine, hub, agent) {
            (Some(Machine::Hub(m)), Some(config), _) => {
                // Also a mode that came while it slept.
                flipped = m.mode() != config.mode;
                m.reload(at, &config, DRAIN, &mut node.out).is_ok()
            }
            (Some(Machine::Agent(m)), _, Some(config)) => m.reload(at, &config, DRAIN, &mut node.out).is_ok(),
            _ => return,
        };
        if !taken {
            self.stop(ix);
            return self.boot(ix);
        }
        self.inputs += 1;
        self.ghost_rewired(ix);
        self.ghost_limits(ix);
        if flipped {
            self.ghost_flipped(ix);
        }
        self.settle(ix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_states_differ_where_their_words_do() {
        assert_eq!(difference("a b", "a b"), None);
        assert_eq!(difference("cap: 1, x", "cap: 2, x"), Some(("cap: 1, x".to_owned(), "cap: 2, x".to_owned())));
        assert!(difference("cap", "cap: 2").is_some(), "more is another");
    }
}

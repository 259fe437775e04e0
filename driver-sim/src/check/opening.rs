//! Clients whose OPEN is not answered yet: which cid each has, and whether it
//! was rightly told yes (S7) and asked for once at a time (S6). The machines count the cids they mint and the
//! answers they take, so only that many clients are looked at, however many
//! wait: who came last, and whom the OPEN_ACKs that came name. Must not know how
//! a candidate is chosen.

use std::collections::{BTreeMap, BTreeSet};

use nowconnect_core::id::Cid;
use nowconnect_core::stream::Part;

use super::rank::Chosen;
use crate::flip::Path;
use crate::marks::Mark;
use crate::node::{Machine, connector};
use crate::world::World;

/// The clients of one process that wait, with the cid each had last.
#[derive(Debug, Default)]
pub(crate) struct Opening {
    clients: BTreeMap<u32, Cid>,
    /// When each came.
    came: BTreeMap<u32, u64>,
    /// Those that an OPEN_ACK said yes to, which a split hub learns later.
    answered: Vec<Cid>,
    /// All that ever came.
    pub(super) all: u64,
    /// Cids minted and streams opened, as far as they were looked at.
    counted: (u64, u64),
}

impl Opening {
    pub(crate) fn push(&mut self, client: u32, now: u64) {
        self.all += 1;
        self.came.insert(client, now);
        self.clients.insert(client, Cid(0));
    }

    pub(crate) fn answered(&mut self, cid: Cid) {
        self.answered.push(cid);
    }

    /// Clients that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.clients.len()
    }

    fn count(&mut self, machine: &Machine) -> (u64, u64) {
        let (mut minted, mut opened) = (0, 0);
        for shard in machine.shards() {
            let c = shard.counters();
            minted += shard.minted();
            opened += c.opened_local.iter().chain(&c.opened_mesh).sum::<u64>();
        }
        let before = std::mem::replace(&mut self.counted, (minted, opened));
        // A reload that takes a listener away takes its count along.
        (minted - before.0, opened.checked_sub(before.1).unwrap_or(u64::MAX))
    }
}

/// What was seen of clients in all processes.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Clients that were opened once.
    pub(super) tried: BTreeSet<u32>,
    pub(super) opened: BTreeSet<Cid>,
    /// The last cid of each client.
    latest: BTreeMap<u32, Cid>,
    /// Cids that the agent asked said no to.
    refused: BTreeSet<Cid>,
}

impl Seen {
    /// An agent said no to an OPEN.
    pub(super) fn refused(&mut self, cid: Cid) {
        self.refused.insert(cid);
    }

    /// Whether an agent said no to an OPEN.
    pub(super) fn is_refused(&self, cid: Cid) -> bool {
        self.refused.contains(&cid)
    }

    /// Whether a client was asked for under another name since.
    pub(super) fn is_given_up(&self, client: u32, cid: Cid) -> bool {
        self.latest.get(&client).is_some_and(|latest| *latest != cid)
    }
}

/// What was found of a client.
struct Found {
    /// It has another cid than before.
    minted: bool,
    /// Its OPEN was answered.
    opened: bool,
}

impl World {
    /// After each input of a hub: which cid its opening clients have now.
    pub(crate) fn after_input(&mut self, ix: u16) {
        self.check_carried(ix);
        let node = &mut self.nodes[usize::from(ix)];
        let Some(machine) = node.machine.as_ref().filter(|m| matches!(m, Machine::Hub(_))) else { return };
        let (mut minted, mut opened) = node.opening.count(machine);
        if minted == 0 && opened == 0 {
            return;
        }
        let mut opening = std::mem::take(&mut self.nodes[usize::from(ix)].opening.clients);
        // Who is asked for is mostly who came last.
        let mut at = u32::MAX;
        while minted > 0
            && let Some((&client, known)) = opening.range_mut(..at).next_back()
        {
            at = client;
            let found = self.look(ix, client, known);
            minted -= u64::from(found.as_ref().is_some_and(|f| f.minted));
            opened = opened.saturating_sub(u64::from(found.as_ref().is_some_and(|f| f.opened)));
            if found.is_none_or(|f| f.opened) {
                opening.remove(&client);
            }
        }
        let mut answered = std::mem::take(&mut self.nodes[usize::from(ix)].opening.answered);
        answered.retain(|cid| {
            let Some(client) = self.cids.get(cid).copied() else { return false };
            let Some(known) = opening.get_mut(&client).filter(|known| *known == cid) else { return false };
            let found = self.look(ix, client, known);
            opened = opened.saturating_sub(u64::from(found.as_ref().is_some_and(|f| f.opened)));
            let over = found.is_none_or(|f| f.opened);
            if over {
                opening.remove(&client);
            }
            !over
        });
        self.nodes[usize::from(ix)].opening.answered = answered;
        // One without an answer is open too, or was and is gone.
        if opened > 0 {
            opening.retain(|client, known| self.look(ix, *client, known).is_some_and(|f| !f.opened));
        }
        self.nodes[usize::from(ix)].opening.clients = opening;
    }

    /// S6: the next candidate is asked only once the one before said no; who was
    /// asked to connect a target and did not answer may still have.
    fn judge_next(&mut self, client: u32, before: Cid, cid: Cid) {
        if self.check.wanted.contains_key(&before) && !self.check.opening.refused.contains(&before) {
            let text = format!("client {client} is opened as {cid}; the agent asked as {before} did not say no");
            self.fail("S6", text);
        }
    }

    /// `None` once the client is gone.
    fn look(&mut self, ix: u16, client: u32, known: &mut Cid) -> Option<Found> {
        let actor = self.pairs.get(&client)?[0]?;
        let key = self.socks[self.actors[actor as usize].sock as usize].stream?;
        let stream = self.nodes[usize::from(ix)].machine.as_ref()?.stream(key)?;
        let (cid, open) = (stream.cid, stream.open);
        let chosen = match &stream.part {
            Part::Origin(o) => {
                o.carrier.as_ref().map(|c| Chosen { agent: c.agent_id.clone(), local: c.local, owner: c.owner.clone() })
            }
            Part::Owner | Part::Agent => None,
        };
        let path = Path::of(stream);
        let before = *known;
        let minted = cid.0 != 0 && before != cid;
        if minted {
            *known = cid;
            self.check.opening.latest.insert(client, cid);
            self.judge_next(client, before, cid);
        }
        if cid.0 != 0 && self.cids.insert(cid, client).is_none() {
            path.into_iter().for_each(|path| self.judge_path(ix, &path));
            let first = self.check.opening.tried.insert(client);
            if !first {
                self.marks.hit(Mark::Retried);
            }
            let came = self.nodes[usize::from(ix)].opening.came.remove(&client);
            if let Some(came) = came.filter(|_| first) {
                self.judge_waited(ix, client, came);
            }
            if let Some(chosen) = &chosen
                && first
            {
                self.judge_rank(ix, client, chosen);
                self.judge_goer(ix, client, chosen);
            }
            if let Some(Chosen { agent, local: true, .. }) = chosen {
                let wanted = connector(self.client_plan(client).connector);
                self.ghost_opened(ix, agent.as_str(), client);
                self.ghost_scope(ix, &agent, &wanted);
            }
            self.line(Some(client), || format!("client {client} is opened as {cid}"));
        }
        let fresh = open && self.check.opening.opened.insert(cid);
        if let (true, Some(path)) = (fresh, path) {
            self.count_open(ix, path.is_local());
        }
        if fresh && !self.check.connected.contains_key(&cid) {
            self.fail("S7", format!("client {client}: OPEN_ACK ok for {cid}, whose target was never connected"));
        }
        Some(Found { minted, opened: open })
    }
}

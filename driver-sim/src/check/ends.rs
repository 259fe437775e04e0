//! The verdict on every stream when all is over: what a perfect wire would have
//! done, given what its two ends did and what befell the nodes between them.
//!
//! Keeps: an open stream is reset only by one of its ends or by the loss of a
//! process or a session on its way (L1, S5, M5, M6); bytes and ends are the
//! business of the moment they are seen. Must not know how a stream is carried.

use nowconnect_core::id::Cid;

use crate::actor::{Fate, side};
use crate::diff::{Ended, Transcript};
use crate::plan::Ending;
use crate::share::Span;
use crate::world::World;

impl World {
    /// What every client of the plan saw, and its target.
    pub(crate) fn transcripts(&self) -> Vec<Transcript> {
        let ends = self.pairs.iter().filter(|(id, _)| **id < super::PROBES_FROM);
        let actors = ends.flat_map(|(_, pair)| pair.iter().flatten()).map(|a| &self.actors[*a as usize]);
        actors
            .map(|a| Transcript {
                client: a.client,
                is_client: a.is_client,
                read: a.read,
                eof: a.eof_seen,
                fate: match a.fate {
                    Fate::Alive => Ended::NotYet,
                    Fate::Finished => Ended::InOrder,
                    Fate::Aborted => Ended::Aborted,
                    Fate::Reset(_) | Fate::Refused => Ended::Reset,
                },
            })
            .collect()
    }

    /// From when to when each of them was there.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let ends = self.pairs.iter().filter(|(id, _)| **id < super::PROBES_FROM);
        let clients = ends.filter_map(|(id, [client, target])| {
            let actor = |a: &Option<u32>| a.map(|a| &self.actors[a as usize]);
            let (c, t) = (actor(client)?, actor(target)?);
            // What a socket's buffer holds was not carried: a direction is over
            // when whoever reads it has seen its end.
            let (from, to) = (self.client_plan(*id).at, c.ended_at.max(t.ended_at));
            let finished = c.fate == Fate::Finished && t.fate == Fate::Finished && to > from;
            Some(Span { client: *id, bytes: c.read + t.read, from, to: finished.then_some(to) })
        });
        clients.collect()
    }

    /// Something happened to a process that may cost open streams.
    pub(crate) fn excuse(&mut self, node: u16) {
        self.check.excuses.push((self.now, node));
    }

    /// Whether any process that may have carried a stream lost something.
    fn excused(&self, from: u64, to: u64, agent: u16) -> bool {
        let touched = |n: u16| n == agent || self.nodes[usize::from(n)].is_hub();
        self.check.excuses.iter().any(|(at, n)| (from..=to).contains(at) && touched(*n))
    }

    /// L1, S5: no reset comes from nowhere.
    pub(crate) fn check_ends(&mut self) {
        let budget = self
            .nodes
            .iter()
            .filter_map(|n| n.machine.as_ref())
            .any(|m| m.shards().iter().any(|s| s.counters().budget_resets > 0));
        if budget {
            return;
        }
        let opened: Vec<Cid> = self.check.opened.iter().copied().collect();
        for cid in opened {
            let (Some(client), Some(target)) = (self.cids.get(&cid).copied(), self.check.connected.get(&cid).copied())
            else {
                continue;
            };
            let Some(c) = self.pairs.get(&client).and_then(|p| p[0]) else { continue };
            let (c, t) = (&self.actors[c as usize], &self.actors[target as usize]);
            if matches!(c.fate, Fate::Aborted) || matches!(t.fate, Fate::Aborted) {
                continue;
            }
            let plan = self.client_plan(client);
            let agent = self.socks[t.sock as usize].node;
            let reset = [c, t]
                .into_iter()
                .find(|a| matches!(a.fate, Fate::Reset(_)) && !self.excused(plan.at, a.ended_at, agent));
            if let Some(a) = reset {
                let text = format!(
                    "the {} of client {client} was reset ({:?}) for no reason: nobody aborted, no process or session was lost",
                    side(a.is_client),
                    a.fate
                );
                return self.fail("L1", text);
            }
            let whole = |e: Ending| !matches!(e, Ending::Abort(_) | Ending::AbortAfterRead(_));
            if c.fate == Fate::Finished
                && t.fate == Fate::Finished
                && whole(plan.client_end)
                && whole(plan.target_end)
                && (c.read != t.wrote || t.read != c.wrote)
            {
                let text = format!(
                    "client {client} wrote {} and read {}, its target wrote {} and read {}",
                    c.wrote, c.read, t.wrote, t.read
                );
                return self.fail("A3", text);
            }
        }
    }
}

//! The verdict on every stream when all is over: what a perfect wire would have
//! done, given what its two ends did and what befell the nodes between them.
//!
//! Keeps: an open stream is reset only by one of its ends or by the loss of a
//! process or a session on its way (L1, S5, M5, M6); bytes and ends are the
//! business of the moment they are seen. Must not know how a stream is carried.

use std::collections::BTreeSet;

use nowconnect_core::error::RstCode;
use nowconnect_core::id::Cid;
use nowconnect_core::wire::Plane;

use crate::actor::{Fate, side};
use crate::diff::{Ended, Transcript};
use crate::plan::Ending;
use crate::share::Span;
use crate::world::World;

/// Something that may cost open streams.
#[derive(Clone, Debug)]
pub(crate) struct Loss {
    at: u64,
    /// Who had it.
    node: u16,
    what: Lost,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Lost {
    /// The process itself.
    Process,
    /// The time it gives its streams to end.
    Patience,
    /// A session, by whom it was with and its number on the wire, if it has one.
    Session { plane: Plane, peer: String, session: Option<u32> },
}

/// The processes that carry a stream: two for each session it was opened on.
#[derive(Debug)]
struct Way {
    hops: Vec<[u16; 2]>,
    sessions: Vec<u32>,
}

impl Way {
    fn passes(&self, node: u16) -> bool {
        self.hops.iter().flatten().any(|n| *n == node)
    }
}

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

    /// A process ends: with it whatever it carries.
    pub(crate) fn excuse(&mut self, node: u16) {
        self.check.excuses.push(Loss { at: self.now, node, what: Lost::Process });
    }

    /// A process lost a session for good: with it the streams it carried.
    pub(super) fn excuse_session(&mut self, node: u16, plane: Plane, peer: String, session: Option<u32>) {
        self.check.excuses.push(Loss { at: self.now, node, what: Lost::Session { plane, peer, session } });
    }

    /// A process that leaves resets what is left, one stream after the other.
    pub(crate) fn excuse_leaving(&mut self, node: u16) {
        self.check.excuses.push(Loss { at: self.now, node, what: Lost::Patience });
    }

    /// Whether a node goes by this name, for its peers: a second process of an
    /// agent or a hub has the same.
    fn is_named(&self, node: u16, name: &str) -> bool {
        let mine = &self.nodes[usize::from(node)].name;
        mine == name || mine.strip_prefix(name).is_some_and(|rest| rest.starts_with(' '))
    }

    /// Whether what was lost carried a stream: a process that it passes, or
    /// a session between two of them that are neighbours.
    fn carried_it(&self, loss: &Loss, way: &Way) -> bool {
        match &loss.what {
            Lost::Process | Lost::Patience => way.passes(loss.node),
            Lost::Session { session: Some(s), .. } => way.sessions.contains(s),
            Lost::Session { peer, .. } => way.hops.iter().any(|hop| match hop.iter().position(|n| *n == loss.node) {
                Some(ix) => self.is_named(hop[1 - ix], peer),
                None => false,
            }),
        }
    }

    /// Whether a process on the way had to reset streams to make room, and this
    /// one says that it was one of them.
    fn gave_room(&self, way: &Way, fates: [Fate; 2], from: u64, to: u64) -> bool {
        fates.contains(&Fate::Reset(Some(RstCode::Budget)))
            && way.hops.iter().flatten().any(|n| self.made_room(*n, from, to))
    }

    /// A reset without a cause on its way: by what happened elsewhere meanwhile.
    fn accuse(&self, from: u64, to: u64, way: &Way) -> (&'static str, String) {
        let meanwhile = || self.check.excuses.iter().filter(|l| (from..=to).contains(&l.at));
        let died = |l: &&Loss| l.what == Lost::Process && self.nodes[usize::from(l.node)].is_hub();
        let parted = |l: &&Loss| matches!(l.what, Lost::Session { plane: Plane::Mesh, .. });
        let name = |n: u16| self.nodes[usize::from(n)].name.as_str();
        let hubs = way.hops.iter().flatten().copied().collect::<BTreeSet<u16>>();
        let hubs = hubs.into_iter().map(name).collect::<Vec<_>>().join(", ");
        if let Some(l) = meanwhile().rfind(died) {
            return ("M6", format!("{} died, the stream passed {hubs} only", name(l.node)));
        }
        if let Some(Loss { node, what: Lost::Session { peer, .. }, .. }) = meanwhile().rfind(parted) {
            return ("M5", format!("{} lost its link to {peer}, the stream passed {hubs}", name(*node)));
        }
        ("L1", format!("nobody aborted, no process or session was lost on its way over {hubs}"))
    }

    /// L1, S5, M5, M6: no reset comes from nowhere.
    pub(crate) fn check_ends(&mut self) {
        let opened: Vec<Cid> = self.check.opening.opened.iter().copied().collect();
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
            let reset = [c, t].into_iter().find(|a| matches!(a.fate, Fate::Reset(_)));
            if let Some(a) = reset {
                let mut way = Way { hops: self.check.wire.hops(cid), sessions: self.check.wire.carriers(cid) };
                way.hops.extend([c, t].map(|a| [self.socks[a.sock as usize].node; 2]));
                let took = |l: &Loss| (plan.at..=a.ended_at).contains(&l.at) && self.carried_it(l, &way);
                if !self.check.excuses.iter().any(took) && !self.gave_room(&way, [c.fate, t.fate], plan.at, a.ended_at)
                {
                    let (id, why) = self.accuse(plan.at, a.ended_at, &way);
                    let who = side(a.is_client);
                    let text = format!("the {who} of client {client} was reset ({:?}) for no reason: {why}", a.fate);
                    return self.fail(id, text);
                }
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

//! What a process may hold at most: payload (B3), OPENs without an answer (B7)
//! and terminal causes (B5).
//!
//! Keeps: nothing is taken from a socket beyond the memory budget, and beyond
//! it only what peers were granted before comes on top; the other two compare
//! what a machine says it holds with its configuration. A limit that a reload
//! lowered below its use binds from then on: what is above it does not grow.
//! Must not know how a machine comes by less.

use nowconnect_core::mux::Input;
use nowconnect_core::shard::{Note, Shard, SockEvent};
use nowconnect_core::wire::{Body, Codec};

use crate::node::Machine;
use crate::world::World;

/// What is known of a process about its limits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    /// Payload after what it did last.
    payload: u64,
    /// Most OPENs of one session, while a reload left more than it allows.
    pending: u32,
    /// The largest limits it was told: shards of a split hub hear late.
    most: (u32, u32),
}

/// How much payload an input may bring in beyond the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Brings {
    /// None.
    Nothing,
    /// What a socket gave: it was asked for, and there was room.
    Taken,
    /// At most so many bytes, which a peer sent within its credit.
    Granted(u64),
}

impl Brings {
    pub(crate) fn of(input: &Input) -> Self {
        if let Input::Socket { event: SockEvent::Data(_), .. } = input {
            Self::Taken
        } else if let Input::Message { message, .. } = input {
            Self::Granted(message.len() as u64)
        } else {
            Self::Nothing
        }
    }

    pub(crate) fn of_note(note: &Note) -> Self {
        let Note::Frame { body: Body::Data { bytes, .. }, .. } = note else { return Self::Nothing };
        Self::Granted(bytes.len() as u64)
    }
}

/// What a payload budget of `cap` allows to be held, of which there was
/// `before`; a socket gives only what there is room for.
const fn most_held(cap: u64, before: u64, brings: Brings) -> u64 {
    let had = if before > cap { before } else { cap };
    match brings {
        Brings::Taken => cap,
        Brings::Nothing => had,
        Brings::Granted(n) => had.saturating_add(n),
    }
}

/// The share of a shard, at least one.
const fn share(limit: u32, shards: usize) -> u32 {
    let each = limit / if shards == 0 { 1 } else { shards as u32 };
    if each == 0 { 1 } else { each }
}

impl World {
    /// B3: what a machine held before it was given something, and may hold.
    pub(crate) fn held_before(&mut self, ix: u16) -> (u64, u64) {
        let Some(m) = &self.nodes[usize::from(ix)].machine else { return (0, 0) };
        let (held, cap) = (m.mux().budget().held(), m.mux().budget().cap());
        let last = self.check.nodes.get(&ix).map_or(u64::MAX, |g| g.limits.payload);
        // What left for the wire since is kept as it was, unless it is text.
        if held > cap && held > last && !speaks_json(m) {
            let text =
                format!("node {ix} held {last} bytes and holds {held} without having taken any; its cap is {cap}");
            self.fail("B3", text);
        }
        (held, cap)
    }

    /// B3: what it holds since it was given something.
    pub(crate) fn judge_held(&mut self, ix: u16, (before, cap): (u64, u64), brings: Brings) {
        let Some(m) = &self.nodes[usize::from(ix)].machine else { return };
        let held = m.mux().budget().held();
        self.ghost(ix).limits.payload = held;
        self.note_room(ix, before, held, cap);
        if held <= cap {
            return;
        }
        let most = most_held(cap, before, brings);
        if held > most {
            let text = format!("node {ix} holds {held} bytes of {cap} after {brings:?}, before it held {before}");
            self.fail("B3", text);
        }
    }

    /// It was started, or was told its limits again.
    pub(crate) fn ghost_limits(&mut self, ix: u16) {
        let Some(m) = &self.nodes[usize::from(ix)].machine else { return };
        let (limits, pending) = (limits_of(m), pending(m));
        let held = m.mux().budget().held();
        let g = &mut self.ghost(ix).limits;
        *g = Held { payload: held, pending, most: (g.most.0.max(limits.0), g.most.1.max(limits.1)) };
    }

    /// Whether a process may find every session at its most OPENs without an
    /// answer: it was told to make do with few.
    pub(super) fn few_opens(&self, ix: u16) -> bool {
        let m = self.nodes[usize::from(ix)].machine.as_ref();
        m.is_some_and(|m| share(limits_of(m).0, m.shards().len()) as usize <= self.plan.clients.len())
    }

    /// Ends of streams that a process remembers, each in its shard; none if that
    /// may have been fewer.
    pub(super) fn remembers(&self, ix: u16) -> u64 {
        let Some(m) = &self.nodes[usize::from(ix)].machine else { return 0 };
        if self.is_rewired(ix) { 0 } else { u64::from(share(limits_of(m).1, m.shards().len())) }
    }

    /// B5, B7: of every process, every 256 events.
    pub(super) fn check_limits(&mut self) {
        for ix in 0..self.nodes.len() as u16 {
            let Some(m) = &self.nodes[usize::from(ix)].machine else { continue };
            let Some(g) = self.check.nodes.get(&ix).map(|g| g.limits) else { continue };
            let shards = m.shards().len();
            let (mut opens, mut causes) = limits_of(m);
            if let Machine::Hub(h) = m
                && (shards > 1 || h.notes_under_way() > 0)
            {
                (opens, causes) = (g.most.0.max(opens), g.most.1.max(causes));
            }
            let now = pending(m);
            let (most, causes) = (share(opens, shards).max(g.pending), share(causes, shards));
            if now > most {
                let text = format!("node {ix} waits for answers to {now} OPENs of one session, at most {most}");
                return self.fail("B7", text);
            }
            if let Some(kept) = m.shards().iter().map(Shard::tombstones).find(|kept| *kept > causes as usize) {
                return self.fail("B5", format!("node {ix} remembers {kept} ended streams, at most {causes}"));
            }
            self.ghost(ix).limits.pending = if now > share(opens, shards) { now } else { 0 };
        }
    }
}

fn speaks_json(m: &Machine) -> bool {
    m.mux().iter().any(|(_, e)| e.session.dialect().codec == Codec::JsonV1)
}

/// `max_pending_opens` and `tombstones`, as it was told last.
fn limits_of(m: &Machine) -> (u32, u32) {
    let limits = match m {
        Machine::Hub(h) => &h.control().config().limits,
        Machine::Agent(a) => &a.tunnels().config().limits,
    };
    (limits.max_pending_opens, limits.tombstones)
}

fn pending(m: &Machine) -> u32 {
    m.shards().iter().map(Shard::pending_opens).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_cap_comes_only_what_a_peer_was_granted() {
        assert_eq!(most_held(100, 40, Brings::Taken), 100);
        assert_eq!(most_held(100, 140, Brings::Taken), 100, "no socket is read then");
        assert_eq!(most_held(100, 40, Brings::Nothing), 100);
        assert_eq!(most_held(100, 140, Brings::Nothing), 140);
        assert_eq!(most_held(100, 140, Brings::Granted(7)), 147);
        assert_eq!((share(10, 3), share(2, 4), share(5, 0)), (3, 1, 5));
    }
}

//! What the heap holds: events keyed by (time, drawn tie-break, sequence), so
//! that events of one instant happen in every order sooner or later.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use nowconnect_core::error::RstCode;
use nowconnect_core::id::{Name, StreamKey, TargetIx};
use nowconnect_core::registry::{RegistryResult, Token};
use nowconnect_core::shard::Addressee;

use crate::registry::Step;

/// Something that happens to the world.
#[derive(Debug)]
pub(crate) enum Event {
    /// A deadline of a node.
    Timer { node: u16, run: u32 },
    /// The next item of a pipe arrives at end `to` of a connection.
    Deliver { conn: u32, to: u8 },
    /// L0: bytes of a message arrive at end `to` that is complete at `until`.
    Heard { conn: u32, to: u8, until: u64 },
    /// A reset arrives at end `to`, past everything that is under way.
    Reset { conn: u32, to: u8 },
    /// A closing connection is given up with what it could not write.
    GiveUp { conn: u32, end: u8 },
    /// L1: the process at an end may read its socket.
    Ready { conn: u32, end: u8 },
    /// L1: a closed connection has lingered long enough.
    Linger { conn: u32, end: u8 },
    /// A dial reached the hub.
    Accept { conn: u32 },
    /// The answer to a dial reached the dialler.
    Connected { conn: u32 },
    /// A dial took too long.
    DialTimeout { conn: u32 },
    /// A dial failed.
    DialFailed { node: u16, run: u32, target: TargetIx },
    /// A client of the plan connects.
    Client { client: u32 },
    /// An actor acts.
    Actor { actor: u32 },
    /// A node's socket may be read or written.
    Sock { sock: u32 },
    /// A connection of an actor was reset by the actor.
    SockAborted { sock: u32 },
    /// A target answered its connect.
    Target { node: u16, run: u32, stream: StreamKey, client: Option<u32>, result: Result<(), RstCode> },
    /// A target answered a check.
    Checked { node: u16, run: u32, connector: Name, number: u64, result: Result<(), RstCode> },
    /// A step of the registry.
    Registry(Step),
    /// The registry's reply reached the hub.
    Reply { node: u16, run: u32, token: Token, result: Box<RegistryResult> },
    /// The file with an agent's token was replaced.
    Renew { node: u16, run: u32 },
    /// A note inside a split hub is due.
    Note { node: u16, run: u32, to: Addressee },
    /// Fault number n of the plan.
    Fault { ix: u32 },
    /// A hostile peer has its turn.
    Rogue { ix: u32 },
    /// The end of something lasting.
    Undo(Undo),
    /// What a lagging or paused node put aside is handled.
    Unhold { node: u16 },
    /// The world heals.
    Heal,
    /// New clients after the healing (L3), and whether everything is over.
    Probe { round: u32 },
}

/// The end of a lasting fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Undo {
    /// Not an end: a fault drawn at a vulnerable moment.
    Late {
        ix: u32,
    },
    Block {
        from: u16,
        to: u16,
    },
    Slow {
        a: u16,
        b: u16,
    },
    Dials {
        hub: u16,
    },
    Redirect,
    /// A hub's name resolves to it again.
    Address {
        hub: u8,
    },
    /// A shard goes on.
    Stall {
        node: u16,
        run: u32,
        shard: u8,
    },
    /// A hub talks to its own registry again.
    Elsewhere {
        node: u16,
        restart: bool,
    },
    Restart {
        node: u16,
    },
    /// A hub that leaves for good is gone.
    Gone {
        node: u16,
    },
    Pause {
        node: u16,
    },
    Lag {
        node: u16,
    },
    Targets {
        node: u16,
    },
    Clone {
        node: u16,
    },
    Flap {
        a: u16,
        b: u16,
        left: u8,
        every_ns: u64,
        how: crate::faults::CutHow,
    },
    Drained {
        node: u16,
    },
    /// Not an end: what leaves is to stay after all.
    Undrain {
        node: u16,
    },
    /// Not an end: the proxy before a hub looks for idle connections.
    Idle {
        hub: u16,
        idle_ns: u64,
        how: crate::faults::CutHow,
        until: u64,
    },
    Shortage {
        node: u16,
    },
    Twin {
        hub: u8,
        node: u16,
    },
}

/// A place in the order of events. Keys move when the heap does; events stay
/// where they are.
#[derive(Clone, Copy, Debug)]
struct Key {
    at: u64,
    tie: u32,
    slot: u32,
    seq: u64,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Key {}
impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest first.
        (other.at, other.tie, other.seq).cmp(&(self.at, self.tie, self.seq))
    }
}

/// The events to come.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    heap: BinaryHeap<Key>,
    events: Vec<Option<Event>>,
    free: Vec<u32>,
    seq: u64,
}

impl Agenda {
    pub(crate) fn push(&mut self, at: u64, tie: u32, event: Event) {
        self.seq += 1;
        let slot = self.free.pop().unwrap_or(self.events.len() as u32);
        match self.events.get_mut(slot as usize) {
            Some(place) => *place = Some(event),
            None => self.events.push(Some(event)),
        }
        self.heap.push(Key { at, tie, slot, seq: self.seq });
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, Event)> {
        let key = self.heap.pop()?;
        self.free.push(key.slot);
        let event = self.events.get_mut(key.slot as usize)?.take()?;
        Some((key.at, event))
    }

    pub(crate) fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|e| e.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_then_tie_then_order_and_places_are_used_again() {
        let mut agenda = Agenda::default();
        for round in 0..3 {
            for (ix, (at, tie)) in [(5, 1), (3, 9), (5, 0), (3, 9), (4, 7)].into_iter().enumerate() {
                agenda.push(at, tie, Event::Fault { ix: ix as u32 });
            }
            assert_eq!(agenda.next_at(), Some(3));
            let order: Vec<(u64, u32)> = std::iter::from_fn(|| agenda.pop())
                .map(|(at, e)| if let Event::Fault { ix } = e { (at, ix) } else { (at, u32::MAX) })
                .collect();
            assert_eq!(order, [(3, 1), (3, 3), (4, 4), (5, 2), (5, 0)], "round {round}");
        }
        assert_eq!(agenda.events.len(), 5);
    }
}

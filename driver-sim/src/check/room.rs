//! When a process had no room left: what it held against its memory budget (B3),
//! looked at before and after each input. A stream that is reset, and a client
//! that is refused, to make room is so only while there was none. Must not ask a
//! machine what it did for want of room.

use std::collections::BTreeMap;

use crate::plan::MS;
use crate::world::World;

/// A full budget is put up with for so long before a stream is reset.
const PATIENCE: u64 = 1000 * MS;

/// From when to when a process was seen without room.
#[derive(Clone, Copy, Debug)]
struct Full {
    from: u64,
    to: u64,
    over: bool,
}

/// The same of all processes, whatever became of them.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    full: BTreeMap<u16, Vec<Full>>,
}

impl Rooms {
    fn note(&mut self, ix: u16, now: u64, held: u64, cap: u64) {
        let full = self.full.entry(ix).or_default();
        match full.last_mut().filter(|f| !f.over) {
            Some(f) => f.to = now,
            None => full.push(Full { from: now, to: now, over: false }),
        }
        if let Some(f) = full.last_mut() {
            f.over = held < cap;
        }
    }

    /// Whether a process was without room for `long` at any time from then to then.
    pub(super) fn was_full(&self, ix: u16, from: u64, to: u64, long: u64) -> bool {
        let full = self.full.get(&ix).into_iter().flatten();
        full.clone().any(|f| f.from <= to && f.to >= from && f.to - f.from >= long)
    }
}

impl World {
    /// What a process held before an input and holds after it.
    pub(super) fn note_room(&mut self, ix: u16, before: u64, held: u64, cap: u64) {
        if before >= cap || held >= cap {
            let now = self.now;
            self.check.rooms.note(ix, now, held, cap);
        }
    }

    /// Whether a process had cause to reset a stream for want of room.
    pub(super) fn made_room(&self, ix: u16, from: u64, to: u64) -> bool {
        // JSON makes more of what is held while it leaves, which nobody sees.
        let long = if self.plan.v1 > 0 { 0 } else { PATIENCE - PATIENCE / 100 };
        self.check.rooms.was_full(ix, from, to, long)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_full_from_when_it_is_seen_so_until_it_has_room() {
        let mut rooms = Rooms::default();
        rooms.note(1, 10, 100, 100);
        rooms.note(1, 1500 * MS, 130, 100);
        rooms.note(1, 1600 * MS, 20, 100);
        rooms.note(1, 9000 * MS, 100, 100);
        assert!(rooms.was_full(1, 0, 2000 * MS, PATIENCE) && rooms.was_full(1, 1550 * MS, 1550 * MS, PATIENCE));
        assert!(!rooms.was_full(1, 1700 * MS, 8000 * MS, 0), "it had room");
        assert!(rooms.was_full(1, 8000 * MS, 9000 * MS, 0) && !rooms.was_full(1, 8000 * MS, 9000 * MS, 1));
        assert!(!rooms.was_full(2, 0, u64::MAX, 0), "another one");
    }
}

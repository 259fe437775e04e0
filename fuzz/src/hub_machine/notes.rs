//! The notes of a hub split into control and shards: in order for each
//! addressee, after any time. Judged here: a shard carries an OPEN only under
//! an attachment it knows (O4).

use std::collections::{BTreeMap, VecDeque};

use nowconnect_core::id::Fence;
use nowconnect_core::shard::{Addressee, Note};
use nowconnect_core::wire::Body;

use super::World;
use crate::tape::Tape;

/// What waits for each of the hub's parts.
#[derive(Default)]
pub(super) struct Notes(BTreeMap<Addressee, VecDeque<Note>>);

impl Notes {
    /// Takes what the hub has written.
    pub(super) fn take(&mut self, written: &mut Vec<Note>) {
        for note in written.drain(..) {
            self.0.entry(note.addressee()).or_default().push_back(note);
        }
    }

    fn waiting(&self) -> Vec<Addressee> {
        self.0.iter().filter(|(_, q)| !q.is_empty()).map(|(to, _)| *to).collect()
    }

    fn next(&mut self, to: Addressee) -> Option<Note> {
        self.0.get_mut(&to)?.pop_front()
    }
}

impl World {
    /// Some notes arrive, at whom the tape says.
    pub(super) fn some_notes(&mut self, tape: &mut Tape<'_>) {
        loop {
            let waiting = self.notes.waiting();
            if waiting.is_empty() || tape.one_in(6) {
                return;
            }
            if let Some(to) = tape.pick(&waiting) {
                self.note(to);
            }
        }
    }

    /// All notes arrive, and those they lead to.
    pub(super) fn all_notes(&mut self) {
        while let Some(to) = self.notes.waiting().first() {
            self.note(*to);
        }
    }

    fn note(&mut self, to: Addressee) {
        let Some(note) = self.notes.next(to) else { return };
        let carried = self.hub.counters().carried;
        let fits = match &note {
            Note::Frame { shard, session, epoch, body: Body::Open(open), .. } => {
                let fence = Fence { epoch: *epoch, nonce: open.nonce };
                let shard = &self.hub.shards()[usize::from(*shard)];
                let fits = shard.attachments().any(|a| a.agent_id == open.agent_id && a.fence == fence);
                fits && self.hub.mux().get(*session).is_some()
            }
            Note::Frame { .. } | Note::ToShard { .. } | Note::ToControl { .. } => false,
        };
        self.hub.on_note(self.now, note, &mut self.out);
        let new = self.hub.counters().carried - carried;
        assert!(new <= u64::from(fits), "a shard took an OPEN under another fence (O4)");
        self.settle();
    }
}

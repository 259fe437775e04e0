//! Notes of split hubs on their way: one queue an addressee, each as slow as
//! the test's form says. And what forms have in common: what clients saw.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use nowconnect_core::error::RstCode;
use nowconnect_core::rng::{Rng, Seed};
use nowconnect_core::shard::{Addressee, Note};
use nowconnect_core::time::Instant;

/// Longest way of a drawn note. Scenarios look at their clients a millisecond
/// after something happened at the earliest, a few notes later.
const DRAWN_MAX: Duration = Duration::from_micros(50);

/// How notes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Before anything else happens, as in a whole hub.
    AtOnce,
    /// One at a time, when nothing else is left to do at this instant.
    Late,
    /// Each takes a time drawn from this seed, without overtaking.
    Drawn(u64),
}

/// How hubs are built in this test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Form {
    /// One shard, notes carried at once inside.
    #[default]
    Whole,
    /// Shards, and how their notes travel.
    Split(u8, Pace),
}

/// What a client had from its hub in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) hub: String,
    pub(crate) client: u32,
    pub(crate) received: Vec<u8>,
    pub(crate) eof: bool,
    pub(crate) closed: bool,
    pub(crate) aborted: Option<RstCode>,
}

thread_local! {
    static FORM: Cell<Form> = const { Cell::new(Form::Whole) };
    static SEEN: RefCell<Vec<Seen>> = const { RefCell::new(Vec::new()) };
}

/// The form of the worlds this thread makes now.
pub(crate) fn form() -> Form {
    FORM.get()
}

/// A world is over: its clients' part is kept.
pub(crate) fn keep(seen: impl IntoIterator<Item = Seen>) {
    SEEN.with_borrow_mut(|all| all.extend(seen));
}

/// Runs a scenario with hubs of this form; what all its clients saw, in order.
pub(crate) fn in_form(form: Form, scenario: impl Fn()) -> Vec<Seen> {
    FORM.set(form);
    SEEN.take();
    scenario();
    FORM.set(Form::Whole);
    SEEN.take()
}

/// The notes of one hub that are under way.
#[derive(Default)]
pub(crate) struct Mail {
    queues: BTreeMap<Addressee, VecDeque<(Instant, Note)>>,
    rng: Option<Rng>,
}

impl Mail {
    /// Takes what a hub wrote.
    pub(crate) fn post(&mut self, now: Instant, notes: &mut Vec<Note>) {
        for note in notes.drain(..) {
            let at = match form() {
                Form::Split(_, Pace::Drawn(seed)) => {
                    let rng = self.rng.get_or_insert_with(|| Seed::from_u64(seed).rng());
                    now.after(Duration::from_nanos(rng.below(DRAWN_MAX.as_nanos() as u64)))
                }
                Form::Whole | Form::Split(..) => now,
            };
            let queue = self.queues.entry(note.addressee()).or_default();
            let at = queue.back().map_or(at, |(before, _)| at.max(*before));
            queue.push_back((at, note));
        }
    }

    /// The next note that is due, of the addressee whose note is oldest.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Note> {
        let (at, to) = self.queues.iter().filter_map(|(to, q)| Some((q.front()?.0, *to))).min()?;
        if at <= now { self.next_for(to) } else { None }
    }

    /// The next note for an addressee, due or not.
    pub(crate) fn next_for(&mut self, to: Addressee) -> Option<Note> {
        self.queues.get_mut(&to)?.pop_front().map(|(_, note)| note)
    }

    /// When the next note is due.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.queues.values().filter_map(|q| Some(q.front()?.0)).min()
    }

    /// The notes for an addressee, oldest first.
    pub(crate) fn of(&self, to: Addressee) -> impl Iterator<Item = &Note> {
        self.queues.get(&to).into_iter().flatten().map(|(_, note)| note)
    }
}

//! A hub split into control and shards, as threads would hold them: sessions
//! stay with control, and what control or a session has for a shard, or a shard
//! for control, waits in `out.notes` until the caller gives it to
//! [`Hub::on_note`]. Keeps the order of notes to one addressee, a lane in one
//! shard (S6), the limits of the process over all shards (B3) and `drained` as
//! the word of all.
//!
//! What is not a note goes to its shard at once: sockets, clients, timers,
//! released payload, and the frames a shard sends. Limits in split form:
//! - `max_streams` and a listener's `max_connections` hold in sum: a shard is
//!   told what the others carry before it opens or takes an OPEN.
//! - The memory budget is one; every shard is told its level at once, and of all
//!   shards the one with the heaviest stream resets it when nothing else helps.
//! - `max_pending_opens` of a session and `tombstones` are divided, at least one
//!   a shard. A session's flow violations and RST(UNKNOWN) are counted by each
//!   shard for itself, so their limits are those of a shard.
//! - Streams are balanced over equal candidates by each shard for itself.

use super::Hub;
use crate::config::{HubConfig, Limits};
use crate::id::{Cid, Epoch, SHARDS_MAX, SessionKey, SockKey};
use crate::mux::NodeOut;
use crate::rng::Seed;
use crate::shard::{Attach, ControlNote, Elsewhere, Note, Role, Shard, ShardNote};
use crate::time::Instant;
use crate::wire::Body;
use std::sync::Arc;

/// What a split hub knows besides its parts.
#[derive(Debug, Default)]
pub(super) struct Split {
    /// Notes the caller has.
    under_way: u64,
    /// Shards whose last stream is gone, as control has heard, by bit.
    drained: u8,
}

impl Split {
    fn put(&mut self, note: Note, out: &mut NodeOut) {
        self.under_way += 1;
        out.notes.push(note);
    }

    /// Control's notes leave for every shard; an answer for the one that asked.
    pub(super) fn post(&mut self, shards: usize, notes: &mut Vec<ControlNote>, out: &mut NodeOut) {
        for note in notes.drain(..) {
            if let ControlNote::RouteAnswer { question, .. } = &note {
                self.put(Note::ToShard { shard: question.shard, note }, out);
                continue;
            }
            for ix in 0..shards {
                self.put(Note::ToShard { shard: ix as u8, note: note.clone() }, out);
            }
        }
    }

    /// A stream frame leaves for its shard, behind the notes before it.
    pub(super) fn post_frame(
        &mut self,
        ix: usize,
        session: SessionKey,
        cid: Cid,
        epoch: Epoch,
        body: Body,
        out: &mut NodeOut,
    ) {
        self.put(Note::Frame { shard: ix as u8, session, cid, epoch, body }, out);
    }

    /// What shards said leaves for control.
    pub(super) fn post_to_control(&mut self, notes: Vec<(usize, ShardNote)>, out: &mut NodeOut) {
        for (ix, note) in notes {
            self.put(Note::ToControl { shard: ix as u8, note }, out);
        }
    }
}

/// The limits of one of `shards` shards.
pub(super) fn share_of(limits: &Limits, shards: usize) -> Limits {
    let share = |of: u32| (of / u32::try_from(shards).unwrap_or(1).max(1)).max(1);
    Limits {
        max_pending_opens: share(limits.max_pending_opens),
        tombstones: share(limits.tombstones),
        ..limits.clone()
    }
}

impl Hub {
    /// A hub of `shards` shards (1 to [`SHARDS_MAX`]; other numbers are brought
    /// into that range) that starts now and leaves its notes to the caller. A
    /// client goes to the shard its socket's key says, in turn; a stream of
    /// another hub to the one its lane says.
    #[must_use]
    pub fn split(config: Arc<HubConfig>, seed: Seed, now: Instant, shards: u8, out: &mut NodeOut) -> Self {
        let shards = shards.clamp(1, SHARDS_MAX);
        let mut hub = Self::idle(Arc::clone(&config), &seed, now);
        let limits = share_of(&config.limits, usize::from(shards));
        let shard = |lane: u8| {
            let (listeners, selection) = (config.listeners.clone(), config.selection.clone());
            let role = Role::Hub { listeners, open: config.open, selection };
            let seed = if lane == 0 { seed } else { seed.fork(&format!("lane {lane}")) };
            Shard::new(role, limits.clone(), hub.run().incarnation, lane, &seed)
        };
        hub.shards = (0..shards).map(shard).collect();
        hub.split = Some(Split::default());
        hub.start(now, out);
        hub
    }

    /// Takes a note that was in `out.notes`. Those of one addressee must come in
    /// the order they were written; between addressees any order will do. What
    /// concerns a session or a stream that is gone is ignored (C5).
    pub fn on_note(&mut self, now: Instant, note: Note, out: &mut NodeOut) {
        let Some(split) = &mut self.split else { return };
        split.under_way = split.under_way.saturating_sub(1);
        match note {
            Note::ToShard { shard, note } => {
                let ix = usize::from(shard);
                let reload = matches!(note, ControlNote::Reload(_));
                if let Some(shard) = self.shards.get_mut(ix) {
                    shard.on_note(now, note, self.mux.shard_out());
                }
                if reload {
                    self.over.heard(&self.shards, &self.control);
                }
                self.settle_shard(now, ix, out);
            }
            Note::Frame { shard, session, cid, epoch, body } => {
                let ix = usize::from(shard);
                if matches!(body, Body::Open(_)) {
                    self.tell_elsewhere(ix);
                }
                if let Some(shard) = self.shards.get_mut(ix) {
                    shard.on_frame(now, session, cid, epoch, body, self.mux.shard_out());
                }
                self.settle_shard(now, ix, out);
            }
            Note::ToControl { shard, note } => {
                if note == ShardNote::Drained && shard < SHARDS_MAX {
                    split.drained |= 1 << shard;
                    out.drained |= split.drained.count_ones() as usize == self.shards.len();
                }
                self.control.on_shard_note(now, note, &mut self.mux, &mut self.notes, out);
                self.settle(now, out);
            }
        }
    }

    /// Which shard takes a client: in turn, by its socket's key.
    pub(super) fn shard_of_client(&mut self, sock: SockKey) -> usize {
        if self.split.is_none() {
            return 0;
        }
        let ix = sock.ix as usize % self.shards.len().max(1);
        self.tell_elsewhere(ix);
        ix
    }

    fn tell_elsewhere(&mut self, ix: usize) {
        let mut elsewhere = Elsewhere::default();
        for (_, other) in self.shards.iter().enumerate().filter(|(other, _)| *other != ix) {
            elsewhere.add(other);
        }
        if let Some(shard) = self.shards.get_mut(ix) {
            shard.set_elsewhere(elsewhere);
        }
    }

    /// Carries out what a shard wants after a call, and settles the rest.
    pub(super) fn settle_shard(&mut self, now: Instant, ix: usize, out: &mut NodeOut) {
        if let (Some(split), Some(shard)) = (&mut self.split, self.shards.get_mut(ix)) {
            let mut notes = Vec::new();
            self.mux.flush_one(now, ix, shard, out, &mut notes);
            split.post_to_control(notes, out);
        }
        self.settle(now, out);
    }

    /// Does what is due in the shards.
    pub(super) fn shards_timeout(&mut self, now: Instant, out: &mut NodeOut) {
        if self.split.is_none() {
            for shard in &mut self.shards {
                shard.handle_timeout(now, self.mux.shard_out());
            }
            return;
        }
        // One reset by force a second in the process, of the heaviest stream.
        let due = self.shards.iter().enumerate().filter_map(|(ix, s)| Some((s.relief_due(now)?, ix)));
        let worst = due.max_by_key(|(held, ix)| (*held, std::cmp::Reverse(*ix))).map(|(_, ix)| ix);
        for ix in 0..self.shards.len() {
            let Some(shard) = self.shards.get_mut(ix) else { continue };
            if worst.is_some_and(|worst| worst != ix) {
                shard.postpone_relief(now);
            }
            shard.handle_timeout(now, self.mux.shard_out());
            self.settle_shard(now, ix, out);
        }
    }

    /// How many notes the caller has that were not given back.
    #[must_use]
    pub fn notes_under_way(&self) -> u64 {
        self.split.as_ref().map_or(0, |s| s.under_way)
    }

    /// What holds between the parts: lanes always, agreement only while no note
    /// is under way.
    pub(super) fn check_shards(&self) {
        for (ix, shard) in self.shards.iter().enumerate() {
            shard.check_share(ix, self.shards.len());
        }
        self.over.check(&self.shards, &self.control);
        if self.notes_under_way() > 0 {
            return;
        }
        for shard in &self.shards {
            let attachments = self.control.attachments.iter().map(|(agent_id, a)| Attach {
                agent_id: agent_id.clone(),
                session: a.session,
                fence: a.fence,
                connectors: a.open_to().iter().map(|ad| ad.name.clone()).collect(),
            });
            shard.check_agrees(self.mux.usable(), attachments);
            assert_eq!(shard.is_draining(), self.control.is_closed(), "all take streams or none");
        }
    }
}

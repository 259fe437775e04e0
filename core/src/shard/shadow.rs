//! What `active` would have done with the clients of a hub in `shadow`: the same
//! choice among the same candidates, counted and not carried out (semantics 6).
//! A client costs one decision, when it would be opened; its bytes travel as in
//! `off`, whatever the outcome (M2).
//!
//! Must not know how candidates are chosen.

use super::{ShadowNote, Shard};
use crate::error::RstCode;
use crate::id::{ListenerIx, Name};
use crate::planted;
use crate::route::{RouteChange, Routes};
use crate::time::Instant;

/// What the hub would have in `active`.
#[derive(Clone, Debug)]
pub(super) struct Shadow {
    /// Own attachments and those at other hubs.
    routes: Routes,
    /// What a client without a candidate would be told.
    otherwise: RstCode,
}

impl Shard {
    /// Control says what `active` would know, or that this is not `shadow` (any
    /// more).
    pub(super) fn on_shadow(&mut self, note: Option<&ShadowNote>) {
        let Some(note) = note else {
            self.shadow = None;
            return;
        };
        let routes = match self.shadow.take() {
            Some(shadow) => shadow.routes,
            None => self.routes.clone(),
        };
        let mut shadow = Shadow { routes, otherwise: note.otherwise };
        for change in note.changes.iter() {
            shadow.routes.apply(change);
        }
        self.shadow = Some(Box::new(shadow));
    }

    /// Own attachments are candidates in every mode.
    pub(super) fn shadow_follows(&mut self, change: &RouteChange) {
        if let Some(shadow) = &mut self.shadow {
            // What the hub stops using it may still know.
            let other = change.candidate.is_none()
                && shadow
                    .routes
                    .get(&change.connector, &(change.agent_id.clone(), change.owner.clone()))
                    .is_some_and(|c| !c.local);
            if !other {
                shadow.routes.apply(change);
            }
        }
    }

    /// Counts where a client that is about to be opened would have gone.
    pub(super) fn decide_in_shadow(&mut self, now: Instant, listener: ListenerIx, connector: &Name) {
        let Some(mut shadow) = self.shadow.take() else { return };
        std::mem::swap(&mut self.routes, &mut shadow.routes);
        let choice = self.choose(now, connector, &[]).map(|c| c.local);
        std::mem::swap(&mut self.routes, &mut shadow.routes);
        let (ix, refusal) = (usize::from(listener.0), usize::from(shadow.otherwise.number()));
        self.shadow = Some(shadow);
        let counted = match choice {
            Some(true) => self.counters.shadow_local.get_mut(ix),
            Some(false) => self.counters.shadow_mesh.get_mut(ix),
            None if planted::on(2043) => None,
            None => self.counters.shadow_refused.get_mut(ix).and_then(|by_code| by_code.get_mut(refusal)),
        };
        if let Some(n) = counted {
            *n += 1;
        }
    }
}

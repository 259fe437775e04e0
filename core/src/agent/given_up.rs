//! Hubs that are dialled no more: `max_retries` dials in a row failed. Whether
//! an agent has nowhere left to go is read off its links and sessions, never
//! counted: a hub that was given up is tried again when a tunnel that had lasted
//! breaks, when enough others serve and one is lost, or when another
//! configuration is put in force. Must not know what the process does about it.

use super::tunnels::{HubState, Tunnels};
use crate::id::TargetIx;
use crate::link::{Event, Link, State};
use crate::mux::{Mux, NodeOut};
use crate::observed::Observed;
use crate::time::Instant;
use crate::wire::Plane;

impl HubState {
    pub(super) fn is_given_up(&self) -> bool {
        self.link.as_ref().is_some_and(|l| l.state() == State::Closed)
    }
}

/// Tells the link of hub `ix` of a failure, and says so when it was the last allowed.
pub(super) fn failed(now: Instant, ix: usize, link: &mut Link, event: Event, out: &mut NodeOut) {
    let before = link.state();
    link.on_event(now, event);
    if link.state() == State::Closed && before != State::Closed {
        let target = u16::try_from(ix).unwrap_or(u16::MAX);
        out.observed.push(Observed::GaveUp { plane: Plane::Tunnel, target });
    }
}

impl Tunnels {
    /// Whether every configured hub was given up and no tunnel is left, not even
    /// one that may be resumed. Never while it drains: that has its own end.
    /// Becomes true with [`Observed::GaveUp`] or [`Observed::SessionLost`].
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        !self.draining
            && self.hubs.iter().all(|h| h.session.is_none())
            && self.hubs.iter().filter(|h| h.listed).all(HubState::is_given_up)
    }

    pub(super) fn on_dial_failed(&mut self, now: Instant, target: TargetIx, mux: &Mux, out: &mut NodeOut) {
        let ix = usize::from(target.0);
        let Some(h) = self.hubs.get_mut(ix) else { return };
        h.dialling = false;
        if let Some(l) = h.link.as_mut() {
            failed(now, ix, l, Event::Failed, out);
        }
        self.want(now, mux, out);
    }

    /// The hub answers and has not got the session: after a restart, say. It is
    /// asked for another one soon, not given up, nor after the pauses of its
    /// absence.
    pub(super) fn on_resume_refused(&mut self, now: Instant, target: TargetIx, mux: &Mux, out: &mut NodeOut) {
        let Some(h) = self.hubs.get_mut(usize::from(target.0)) else { return };
        h.dialling = false;
        if let Some(l) = h.link.as_mut() {
            l.on_refused(now);
            l.hasten(now);
        }
        self.want(now, mux, out);
    }

    /// What was given up may be tried again: something changed since.
    pub(super) fn try_again(&mut self, mux: &Mux) {
        for h in self.hubs.iter_mut().filter(|h| h.is_given_up() && !h.is_connected(mux)) {
            h.link = None;
        }
    }
}

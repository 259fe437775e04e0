//! Modes at run time: what joining and leaving the others means for the
//! registry, the links and the streams that are open. Streams keep the path
//! they have; a link that is not wanted any more lives until its last stream
//! ends (M1), nothing new is routed by an earlier policy (M3), and what is
//! attached is claimed with the epoch it has (O2).
//! Must not know who switches, nor where configurations come from.

use super::control::{Asked, Control};
use super::handshake::Stage;
use crate::config::Mode;
use crate::due::Due;
use crate::error::CloseCode;
use crate::id::{ConnKey, Name, SessionKey};
use crate::link::{Action, Event};
use crate::mux::{Mux, NodeOut};
use crate::registry::RegistryOp;
use crate::shard::ControlNote;
use crate::time::Instant;
use crate::wire::{Frame, Plane};

impl Control {
    /// The configuration says another mode than `before`.
    pub(super) fn switch_mode(
        &mut self,
        now: Instant,
        before: Mode,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        match (before, self.config.mode) {
            (Mode::Off, Mode::Shadow | Mode::Active) => self.join(now, out),
            (Mode::Shadow | Mode::Active, Mode::Off) => self.leave(now, mux, notes, out),
            (Mode::Shadow, Mode::Active) => {
                notes.push(ControlNote::Lease(self.lease_until));
                self.look_up_listeners(now, out);
            }
            (Mode::Active, Mode::Shadow) => {
                notes.push(ControlNote::Lease(None));
                self.forget_routes_across(notes);
                self.look_up_listeners(now, out);
            }
            (Mode::Off, Mode::Off) | (Mode::Shadow, Mode::Shadow) | (Mode::Active, Mode::Active) => return,
        }
        self.routes_dirty = true;
    }

    /// Asks the registry for a lease, and where everything is.
    pub(super) fn join_registry(&mut self, now: Instant, out: &mut NodeOut) {
        self.renew(now, out);
        self.sweep_at = Some(now.after(self.config.registry.lease));
        self.look_up_listeners(now, out);
    }

    /// Looks every listener's connector up that is not known yet.
    pub(super) fn look_up_listeners(&mut self, now: Instant, out: &mut NodeOut) {
        if !self.looks_across() {
            return;
        }
        let wanted = self.config.listeners.iter().filter(|l| l.max_connections > 0);
        let connectors: Vec<Name> = wanted.map(|l| l.connector.clone()).collect();
        for connector in connectors {
            if !self.remote.contains_key(&connector) {
                self.look_up(now, &connector, out);
            }
        }
    }

    /// From `off`. What is attached was never claimed: the first renewal that
    /// succeeds looks after it, with the epoch it has as `seen`.
    fn join(&mut self, now: Instant, out: &mut NodeOut) {
        for a in self.attachments.values_mut() {
            a.firm = false;
            a.claim = None;
            a.telling = false;
            a.tell_again = false;
        }
        self.join_registry(now, out);
    }

    /// To `off`. Links end below, when their streams have.
    fn leave(&mut self, now: Instant, mux: &mut Mux, notes: &mut Vec<ControlNote>, out: &mut NodeOut) {
        // What was asked for the registry's sake is nobody's any more; an agent
        // in its handshake still waits for its claim.
        self.pending.retain(|_, p| matches!(p.what, Asked::Claim { .. }));
        self.ask(now, RegistryOp::Resign { hub: self.run.clone() }, Asked::Resign, out);
        self.renew_at = None;
        self.sweep_at = None;
        self.lease_until = None;
        self.lease_seen = None;
        self.lease_tried = false;
        self.registry_healthy = false;
        self.registry_failures = 0;
        self.upkeep = Due::default();
        self.stop_recovery();
        notes.push(ControlNote::Lease(None));
        self.forget_routes_across(notes);
        let mesh = |(conn, h): (&ConnKey, &super::handshake::Handshake)| {
            let new = match &h.stage {
                // Whether it resumes a session is seen with its HELLO.
                Stage::Hello(_) | Stage::Claim(_) => false,
                Stage::Welcome { resume, .. } => resume.is_none(),
                Stage::Dialling(_) | Stage::Accepting(_) => true,
            };
            (h.dialect.plane == Plane::Mesh && new).then_some(*conn)
        };
        let conns: Vec<ConnKey> = self.handshakes.iter().filter_map(mesh).collect();
        for conn in conns {
            self.refuse_handshake(now, conn, CloseCode::Draining, "ha.mode was switched to off", mux, out);
        }
    }

    /// Nobody is asked any more: who waits for a lookup hears what is here.
    fn forget_routes_across(&mut self, notes: &mut Vec<ControlNote>) {
        let connectors: Vec<Name> = self.remote.keys().cloned().collect();
        for connector in connectors {
            let result = if self.exposes(&connector) { Ok(()) } else { Err(self.refusal()) };
            self.answer_wanted(&connector, result, notes);
        }
        self.remote.clear();
    }

    /// Whether a peer is to be dialled for a link of its own.
    pub(super) fn is_wanted(&self, ix: usize) -> bool {
        self.config.mode != Mode::Off && self.peers.get(ix).is_some_and(|p| p.listed && !p.itself)
    }

    /// Dials what is wanted and was not, and lets the other links end: at the
    /// latest at `deadline`, if it is their peer that was removed.
    pub(super) fn sort_links(&mut self, now: Instant, deadline: Instant, mux: &mut Mux, out: &mut NodeOut) {
        for ix in 0..self.peers.len() {
            let wanted = self.is_wanted(ix);
            let Some(p) = self.peers.get_mut(ix) else { continue };
            if wanted && p.link.on_event(now, Event::Enabled) == Some(Action::Dial) {
                self.dial(ix, out);
            }
        }
        let links: Vec<SessionKey> = self.links.values().copied().collect();
        for key in links {
            let Some(entry) = mux.get(key) else { continue };
            let removed = entry.dialled.is_some_and(|t| self.peers.get(usize::from(t.0)).is_some_and(|p| !p.listed));
            let until = if self.config.mode == Mode::Off { Some(None) } else { removed.then_some(Some(deadline)) };
            let before = self.quitting.get(&key).copied();
            match until {
                // The earlier deadline stays; `off` has none.
                Some(until) => drop(self.quitting.insert(key, before.flatten().filter(|_| until.is_some()).or(until))),
                None => drop(self.quitting.remove(&key)),
            }
            if before.is_some() != until.is_some() {
                mux.send(now, key, Frame::Status(self.status_to(key)), out);
            }
        }
        self.rest_links(now, mux);
    }

    /// No link is dialled that is neither wanted nor has a session to resume.
    pub(super) fn rest_links(&mut self, now: Instant, mux: &Mux) {
        for ix in 0..self.peers.len() {
            let has_session = mux.iter().any(|(_, e)| e.dialled.is_some_and(|t| usize::from(t.0) == ix));
            if !has_session
                && !self.is_wanted(ix)
                && let Some(p) = self.peers.get_mut(ix)
            {
                p.link.on_event(now, Event::Disabled);
            }
        }
    }

    /// Ends the links that are not wanted any more, once no stream is on them
    /// and the peer has heard everything: what it opened before it knew is
    /// answered by then.
    pub(super) fn quit_idle(
        &mut self,
        now: Instant,
        carries: impl Fn(SessionKey) -> bool,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if self.quitting.is_empty() {
            return;
        }
        let over = |(key, until): (&SessionKey, &Option<Instant>)| {
            let Some(e) = mux.get(*key) else { return true };
            let idle = !carries(*key) && (e.conn.is_none() || e.session.is_settled());
            idle || until.is_some_and(|at| at <= now)
        };
        let due: Vec<SessionKey> = self.quitting.iter().filter(|q| over((q.0, q.1))).map(|(key, _)| *key).collect();
        for key in due {
            self.quitting.remove(&key);
            self.lose(now, key, CloseCode::Shutdown, mux, notes, out);
        }
    }
}

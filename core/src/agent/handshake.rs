//! The agent's side of a handshake: HELLO, the WELCOME or refusal that answers
//! it, and what of both makes a tunnel. Keeps O2 (an epoch that is not newer
//! than the highest is never taken) and one tunnel per replica. Must not know
//! which hubs are wanted, nor when one is dialled again.

use std::time::Duration;

use bytes::Bytes;

use super::tunnels::{HubState, Tunnels};
use crate::error::CloseCode;
use crate::id::{ConnKey, Epoch, Fence, Name, Secret, SessionId, SessionKey, TargetIx};
use crate::link::{Event, Link};
use crate::mux::{Mux, NodeOut, Peer};
use crate::observed::Observed;
use crate::planted;
use crate::rng::Seed;
use crate::session::{Session, SessionConfig};
use crate::shard::{Attach, ControlNote, SessionUp};
use crate::time::Instant;
use crate::wire::{
    ConnectorAd, Dialect, Frame, Hello, HelloAgent, HelloRole, Plane, Welcome, WireLimits, decode, encode_message,
};

/// A WELCOME may be somewhat larger than a stranger's HELLO.
const WELCOME_LIMITS: WireLimits = WireLimits { message_bytes: 64 * 1024, payload_bytes: 0 };

/// Most sessions a HELLO names (PROTOCOL.md `SESSIONS_MAX`).
const SESSIONS_MAX: usize = 16;

/// A connection on its way to a session.
#[derive(Debug)]
pub(super) struct Handshake {
    target: TargetIx,
    dialect: Dialect,
    challenge: Secret<16>,
    resume: Option<SessionKey>,
    /// The highest epoch that HELLO named.
    seen: Epoch,
    /// The sessions that HELLO named.
    named: Vec<SessionKey>,
    /// Of the connectors it named.
    generation: u64,
}

impl Tunnels {
    pub(super) fn ads(&self) -> Vec<ConnectorAd> {
        self.exposed().map(|c| ConnectorAd { name: c.name.clone(), priority: c.priority, weight: c.weight }).collect()
    }

    pub(super) fn on_connected(
        &mut self,
        now: Instant,
        target: TargetIx,
        conn: ConnKey,
        dialect: Dialect,
        mux: &mut Mux,
        out: &mut NodeOut,
    ) {
        let ix = usize::from(target.0);
        let surplus = self.is_surplus(ix, mux);
        let Some(h) = self.hubs.get_mut(ix) else { return };
        if surplus || h.link.is_none() || (self.draining && h.session.is_none()) {
            // Not wanted any more: enough others serve by now.
            h.dialling = false;
            h.link = h.link.take().filter(|_| h.session.is_some());
            out.close.push((conn, CloseCode::Transport));
            return;
        }
        let named: Vec<(SessionKey, SessionId)> = mux
            .iter()
            .filter(|(_, e)| e.conn.is_some())
            .map(|(key, e)| (key, e.session.id()))
            .take(SESSIONS_MAX)
            .collect();
        let challenge = Secret(self.rng.bytes());
        let resume = h.session.and_then(|key| {
            let e = mux.get_mut(key)?;
            (e.conn.is_none() && e.session.dialect() == dialect).then(|| (key, e.session.resume_request(&challenge)))
        });
        let hello = Hello {
            role: HelloRole::Agent(HelloAgent {
                agent_id: self.config.agent_id.clone(),
                instance: self.instance,
                connectors: self.ads(),
                seen: self.highest,
                sessions: named.iter().map(|(_, id)| *id).collect(),
            }),
            challenge,
            initial_window: self.config.limits.stream_window_initial_bytes,
            capabilities: Vec::new(),
            resume: resume.as_ref().map(|(_, r)| r.clone()),
        };
        mux.post(conn, encode_message(dialect, 0, &[Frame::Hello(Box::new(hello))]), out);
        let deadline = now.after(self.config.handshake_timeout);
        let resume = resume.map(|(k, _)| k);
        let generation = self.generation;
        let (seen, named) = (self.highest, named.into_iter().map(|(key, _)| key).collect());
        self.handshakes.insert(
            conn,
            deadline,
            Handshake { target, dialect, challenge, resume, seen, named, generation },
        );
    }

    pub(super) fn on_handshake_lost(
        &mut self,
        now: Instant,
        conn: ConnKey,
        cause: CloseCode,
        mux: &Mux,
        out: &mut NodeOut,
    ) {
        let Some(h) = self.handshakes.remove(conn) else { return };
        out.observed.push(Observed::HandshakeFailed {
            plane: Plane::Tunnel,
            cause,
            detail: "the connection ended before WELCOME",
            target: Some(h.target.0),
        });
        self.on_dial_failed(now, h.target, mux, out);
    }

    pub(super) fn give_up(
        &mut self,
        now: Instant,
        conn: ConnKey,
        cause: CloseCode,
        detail: &'static str,
        mux: &mut Mux,
        out: &mut NodeOut,
    ) {
        let Some(h) = self.handshakes.remove(conn) else { return };
        out.observed.push(Observed::HandshakeFailed { plane: Plane::Tunnel, cause, detail, target: Some(h.target.0) });
        mux.close(conn, h.dialect, cause, 0, out);
        self.on_dial_failed(now, h.target, mux, out);
    }

    pub(super) fn on_handshake_message(
        &mut self,
        now: Instant,
        conn: ConnKey,
        message: &Bytes,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let Some(h) = self.handshakes.get(conn) else { return };
        let (dialect, target, resume) = (h.dialect, h.target, h.resume);
        let mut frames = Vec::new();
        let frame = match decode(dialect, message, &WELCOME_LIMITS, &mut frames) {
            Ok(_) if frames.len() == 1 => frames.pop(),
            Ok(_) => None,
            Err(e) => {
                out.observed.push(Observed::ProtocolViolation {
                    plane: Plane::Tunnel,
                    kind: e.kind,
                    detail: e.detail.to_string(),
                });
                None
            }
        };
        match frame {
            Some(Frame::Welcome(w)) => self.on_welcome(now, conn, *w, mux, notes, out),
            Some(Frame::GoAway { code, retry_after_ms }) => {
                self.handshakes.remove(conn);
                out.close.push((conn, code));
                if code == CloseCode::Duplicate {
                    self.leads_to_another(target, mux, out);
                } else {
                    out.observed.push(Observed::HandshakeFailed {
                        plane: Plane::Tunnel,
                        cause: code,
                        detail: "the hub refused",
                        target: Some(target.0),
                    });
                }
                if let Some(h) = self.hubs.get_mut(usize::from(target.0)) {
                    h.on_retry_after(now, retry_after_ms);
                }
                let refused = resume.filter(|_| code == CloseCode::ResumeRefused);
                if let Some(key) = refused {
                    self.lose(now, key, code, mux, notes, out);
                    self.on_resume_refused(now, target, mux, out);
                } else {
                    self.on_dial_failed(now, target, mux, out);
                }
            }
            Some(_) | None => {
                self.give_up(now, conn, CloseCode::Protocol, "expected WELCOME or GOAWAY", mux, out);
            }
        }
    }

    fn on_welcome(
        &mut self,
        now: Instant,
        conn: ConnKey,
        w: Welcome,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let Some(h) = self.handshakes.get(conn) else { return };
        let (dialect, target, challenge, resume) = (h.dialect, h.target, h.challenge, h.resume);
        let (seen, named, generation) = (h.seen, h.named.clone(), h.generation);
        let ix = usize::from(target.0);
        let peer = Peer::Hub { replica_id: w.replica_id.clone(), incarnation: w.incarnation };
        if let (Some(key), Some(accept)) = (resume, &w.resumed) {
            let ok = mux.get_mut(key).is_some_and(|e| {
                e.peer == peer && e.session.on_resume_accepted(now, accept, &challenge, &w.challenge).is_ok()
            });
            if !ok {
                self.give_up(now, conn, CloseCode::ResumeRefused, "the hub's proof or position is wrong", mux, out);
                return self.lose(now, key, CloseCode::ResumeRefused, mux, notes, out);
            }
            self.handshakes.remove(conn);
            self.up(now, ix);
            if let Some(old) = mux.rebind(now, key, conn, out) {
                out.close.push((old, CloseCode::Superseded));
            }
            notes.push(ControlNote::InitialWindow { session: key, bytes: w.initial_window });
            self.want(now, mux, out);
            return;
        }
        let (Some(secret), Some(attachment)) = (w.secret, &w.attachment) else {
            return self.give_up(now, conn, CloseCode::Protocol, "WELCOME without a secret or an attachment", mux, out);
        };
        if self.draining {
            return self.give_up(now, conn, CloseCode::Shutdown, "this agent leaves", mux, out);
        }
        if !self.hubs.get(ix).is_some_and(|h| h.listed) {
            let detail = "this address was removed from `hubs`";
            return self.give_up(now, conn, CloseCode::Shutdown, detail, mux, out);
        }
        if let Some(old) = resume {
            // The hub did not go on with the session: it is over.
            self.lose(now, old, CloseCode::ResumeRefused, mux, notes, out);
        }
        let newest = if planted::on(1) { attachment.epoch >= self.highest } else { attachment.epoch > self.highest };
        if !newest && attachment.epoch > seen {
            // Another hub's later claim was answered first. The order of
            // acceptance is kept (O2): claimed once more with what is known now.
            self.handshakes.remove(conn);
            mux.close(conn, dialect, CloseCode::Superseded, 0, out);
            if let Some(h) = self.hubs.get_mut(ix) {
                h.dialling = false;
            }
            return self.dial(ix, out);
        }
        if !newest {
            return self.on_stale_offer(now, conn, attachment.epoch, mux, notes, out);
        }
        if let Some(old) = self.hubs.get(ix).and_then(|h| h.session) {
            let elsewhere = mux.get(old).is_some_and(|e| e.conn.is_some() && e.peer != peer);
            if elsewhere && !self.hand_on(now, ix) {
                // There is no address left for the tunnel this one would replace.
                self.handshakes.remove(conn);
                if let Some(h) = self.hubs.get_mut(ix) {
                    h.dialling = false;
                }
                return mux.close(conn, dialect, CloseCode::Superseded, 0, out);
            }
            if !elsewhere {
                // It could not be asked for in this encoding, or gave way at the hub.
                self.lose(now, old, CloseCode::Superseded, mux, notes, out);
            }
        }
        self.highest = attachment.epoch;
        self.rest_others(now, ix, &w.replica_id, &named);
        self.handshakes.remove(conn);
        let config = SessionConfig {
            dialect,
            id: w.session,
            secret,
            send_queue_depth: self.config.limits.send_queue_depth,
            inflight_bytes: self.config.limits.inflight_bytes,
            liveness: self.config.liveness,
        };
        let session = Session::new(config, Seed(self.rng.bytes()), now);
        let window = Duration::from_millis(w.resume_window_ms).min(self.config.resume_window);
        let key = mux.establish(session, Plane::Tunnel, peer, Some(target), conn, window);
        if let Some(h) = self.hubs.get_mut(ix) {
            h.session = Some(key);
            h.replica = Some(w.replica_id.clone());
            h.leaving = false;
            h.unwell = false;
            h.stale_offers = 0;
        }
        self.up(now, ix);
        if generation != self.generation {
            // They changed while HELLO was answered.
            self.advertise(now, key, mux, out);
        }
        let fence = Fence { epoch: attachment.epoch, nonce: attachment.nonce };
        notes.push(ControlNote::SessionUp(SessionUp {
            session: key,
            plane: Plane::Tunnel,
            peer: None,
            replica: None,
            initial_window: w.initial_window,
        }));
        notes.push(ControlNote::Attach(Attach {
            agent_id: self.config.agent_id.clone(),
            session: key,
            fence,
            connectors: self.exposed_names(),
        }));
        out.observed.push(Observed::SessionUp { plane: Plane::Tunnel, peer: w.replica_id.as_str().to_owned() });
        out.observed.push(Observed::Attached {
            agent_id: self.config.agent_id.clone(),
            epoch: fence.epoch,
            firm: attachment.firm,
            takeover: false,
            again: false,
        });
        self.want(now, mux, out);
    }

    /// HELLO carried `seen`, and the hub offers no more all the same: its
    /// registry lost more than it can make up for, or the hub ignored it. Claimed
    /// once more at once; then this instance is over, unless it is attached
    /// elsewhere and would lose that (O2, semantics 4).
    fn on_stale_offer(
        &mut self,
        now: Instant,
        conn: ConnKey,
        offered: Epoch,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let Some(h) = self.handshakes.get(conn) else { return };
        let (ix, dialect) = (usize::from(h.target.0), h.dialect);
        let Some(hub) = self.hubs.get_mut(ix) else { return };
        hub.stale_offers = hub.stale_offers.saturating_add(1);
        if hub.stale_offers == 1 {
            self.handshakes.remove(conn);
            mux.close(conn, dialect, CloseCode::Superseded, 0, out);
            if let Some(hub) = self.hubs.get_mut(ix) {
                hub.dialling = false;
            }
            return self.dial(ix, out);
        }
        self.give_up(now, conn, CloseCode::Protocol, "WELCOME offers an epoch that is not newer", mux, out);
        if !mux.iter().any(|(_, e)| e.conn.is_some()) {
            self.start_over(now, offered, mux, notes, out);
        }
    }

    /// The hub holds a tunnel of ours over another address. That address may
    /// have led here for a while only (a balancer, DNS): with no other left to
    /// try for the first time, those that have a tunnel are dialled too, in turn: one at each refusal
    /// of the first address of those refused, so that none is asked at the pace of
    /// all others together (L8).
    fn leads_to_another(&mut self, target: TargetIx, mux: &Mux, out: &mut NodeOut) {
        let ix = usize::from(target.0);
        let Some(h) = self.hubs.get_mut(ix).filter(|h| h.session.is_none()) else { return };
        h.same_as_other = true;
        h.replica = None;
        // What was dialled in vain is tried all the while, and may be gone for good.
        let left = |h: &HubState| {
            let untried = h.link.as_ref().is_none_or(|l| l.attempts() == 0);
            h.listed && h.session.is_none() && !h.same_as_other && untried
        };
        if self.draining || self.hubs.iter().any(left) {
            return;
        }
        let first = self.hubs.iter().position(|h| h.listed && h.session.is_none() && h.same_as_other);
        if first != Some(ix) {
            return;
        }
        let n = self.hubs.len();
        let next = (1..=n).map(|by| (self.asked + by) % n).find(|ix| {
            self.hubs.get(*ix).and_then(|h| h.session).and_then(|k| mux.get(k)).is_some_and(|e| e.conn.is_some())
        });
        if let Some(next) = next {
            self.asked = next;
            self.dial(next, out);
        }
    }

    /// Address `ix` leads elsewhere now: its tunnel lives on under an address
    /// that was refused because of such a tunnel. False if there is none.
    fn hand_on(&mut self, now: Instant, ix: usize) -> bool {
        let Some(to) = self.hubs.iter().position(|h| h.listed && h.same_as_other && h.session.is_none()) else {
            return false;
        };
        let Some(h) = self.hubs.get_mut(ix) else { return false };
        let (session, replica, leaving, unwell) = (h.session.take(), h.replica.take(), h.leaving, h.unwell);
        if let Some(h) = self.hubs.get_mut(to) {
            h.session = session;
            h.replica = replica;
            h.leaving = leaving;
            h.unwell = unwell;
            h.same_as_other = false;
            let seed = self.seed.fork(&format!("hub {to} {}", now.as_nanos()));
            h.link.get_or_insert_with(|| Link::new(self.config.backoff, seed, now)).on_event(now, Event::Up);
        }
        true
    }

    /// The same replica twice serves nobody better (semantics 4), and it has
    /// just replaced our attachment by the one of address `ix`. Their sessions
    /// end by the hub's GOAWAY, which may have come before this WELCOME. What
    /// HELLO could name (`named`) is not dialled while this tunnel lives, so
    /// that a hub that does not heed HELLO is not asked in turns for ever.
    fn rest_others(&mut self, now: Instant, ix: usize, replica: &Name, named: &[SessionKey]) {
        for (i, h) in self.hubs.iter_mut().enumerate() {
            if i == ix {
                h.same_as_other = false;
                h.shunned = false;
                // Its handshake was on the way when it was told to rest.
                h.link.get_or_insert_with(|| Link::new(self.config.backoff, self.seed.fork("woken"), now));
            } else if h.replica.as_ref() == Some(replica) {
                h.same_as_other = true;
                h.shunned = h.session.is_some_and(|key| named.contains(&key));
                if h.session.is_none() && !h.dialling {
                    // What made two handshakes at a time is over: like a refusal.
                    let mut link = Link::new(self.config.backoff, self.seed.fork("same"), now);
                    link.on_event(now, Event::Failed);
                    h.link = Some(link).filter(|_| !h.shunned && h.listed);
                }
            }
        }
    }
}

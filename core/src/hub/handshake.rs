//! Connections on their way to a session: HELLO, WELCOME and AUTH, in both
//! roles. Owns every connection until it carries a session or is closed; each
//! phase accepts exactly one frame type (attack 52) under the small limits of
//! unauthenticated peers, inside one deadline (attack 1).

use std::time::Duration;

use bytes::Bytes;

use super::control::{Control, target};
use crate::error::{CloseCode, ProtocolError, ProtocolErrorKind};
use crate::id::{ConnKey, Secret, SessionKey, TargetIx};
use crate::link;
use crate::mux::{Mux, NodeOut};
use crate::observed::Observed;
use crate::principal::{AgentGrant, HubGrant, Principal};
use crate::registry::Claim;
use crate::session::SessionConfig;
use crate::shard::ControlNote;
use crate::time::Instant;
use crate::wire::{
    Dialect, Frame, Hello, HelloHub, HelloRole, MESSAGE_MAX_BYTES, Plane, Welcome, WireLimits, decode, encode_message,
};

/// A connection in its handshake.
#[derive(Debug)]
pub(super) struct Handshake {
    pub(super) dialect: Dialect,
    pub(super) stage: Stage,
}

/// What it waits for.
#[derive(Debug)]
pub(super) enum Stage {
    /// The peer's HELLO.
    Hello(Principal),
    /// The registry's answer to the claim for this agent.
    Claim(Box<Claiming>),
    /// The WELCOME to our HELLO.
    Welcome { target: TargetIx, challenge: Secret<16>, resume: Option<SessionKey>, peer: HubGrant },
    /// The AUTH of a peer we sent WELCOME to.
    Auth(Box<Accepting>),
}

/// An agent whose attachment is being claimed.
#[derive(Debug)]
pub(super) struct Claiming {
    pub(super) hello: Hello,
    pub(super) grant: AgentGrant,
    /// What the registry was asked.
    pub(super) claim: Box<Claim>,
}

/// A hub that was welcomed.
#[derive(Debug)]
pub(super) struct Accepting {
    pub(super) peer: HelloHub,
    pub(super) initial_window: u64,
    pub(super) session: SessionConfig,
}

impl Control {
    pub(crate) fn on_accepted(
        &mut self,
        now: Instant,
        conn: ConnKey,
        dialect: Dialect,
        principal: Principal,
        mux: &mut Mux,
        out: &mut NodeOut,
    ) {
        if self.handshakes.len() >= self.config.limits.max_handshakes as usize {
            return mux.close(conn, dialect, CloseCode::Busy, 1000, out);
        }
        let deadline = now.after(self.config.handshake_timeout);
        self.handshakes.insert(conn, deadline, Handshake { dialect, stage: Stage::Hello(principal) });
    }

    pub(crate) fn dial(&mut self, ix: usize, out: &mut NodeOut) {
        let Some(p) = self.peers.get_mut(ix) else { return };
        // One dial at a time per peer; a late answer of the driver is used.
        if !p.itself && !std::mem::replace(&mut p.dialling, true) {
            out.dial.push(target(ix));
        }
    }

    pub(crate) fn on_dial_failed(&mut self, now: Instant, target: TargetIx, out: &mut NodeOut) {
        let Some(p) = self.peers.get_mut(usize::from(target.0)) else { return };
        p.dialling = false;
        p.link.on_event(now, link::Event::Failed);
        if p.link.state() == link::State::Closed {
            out.observed.push(Observed::GaveUp { plane: Plane::Mesh, target: target.0 });
        }
    }

    pub(crate) fn on_connected(
        &mut self,
        now: Instant,
        target: TargetIx,
        conn: ConnKey,
        dialect: Dialect,
        peer: HubGrant,
        mux: &mut Mux,
        out: &mut NodeOut,
    ) {
        let ours = mux.iter().find(|(_, e)| e.dialled == Some(target)).map(|(k, _)| k);
        let challenge = Secret(self.rng.bytes());
        let sessions =
            mux.iter().filter(|(_, e)| e.plane == Plane::Mesh).map(|(_, e)| e.session.id()).take(16).collect();
        let resume = ours.and_then(|key| {
            let e = mux.get_mut(key)?;
            // A session that still has its connection is not lost; do not touch it.
            (e.conn.is_none() && e.session.dialect() == dialect).then(|| (key, e.session.resume_request(&challenge)))
        });
        let hello = Hello {
            role: HelloRole::Hub(HelloHub {
                replica_id: self.run.replica_id.clone(),
                incarnation: self.run.incarnation,
                namespace: self.config.namespace.clone(),
                region: self.config.region.clone(),
                sessions,
            }),
            challenge,
            initial_window: self.config.limits.stream_window_initial_bytes,
            capabilities: Vec::new(),
            resume: resume.as_ref().map(|(_, r)| r.clone()),
        };
        mux.post(conn, encode_message(dialect, 0, &[Frame::Hello(Box::new(hello))]), out);
        let stage = Stage::Welcome { target, challenge, resume: resume.map(|(k, _)| k), peer };
        self.handshakes.insert(conn, now.after(self.config.handshake_timeout), Handshake { dialect, stage });
    }

    /// A connection ended before it carried a session.
    pub(crate) fn on_handshake_lost(&mut self, now: Instant, conn: ConnKey, cause: CloseCode, out: &mut NodeOut) {
        let Some(h) = self.handshakes.remove(conn) else { return };
        self.dial_over(now, &h.stage, out);
        out.observed.push(Observed::HandshakeFailed {
            plane: h.dialect.plane,
            cause,
            detail: "the connection ended before the handshake was done",
        });
    }

    fn dial_over(&mut self, now: Instant, stage: &Stage, out: &mut NodeOut) {
        if let Stage::Welcome { target, .. } = stage {
            self.on_dial_failed(now, *target, out);
        }
    }

    /// Refuses a connection in its handshake.
    pub(super) fn refuse_handshake(
        &mut self,
        now: Instant,
        conn: ConnKey,
        cause: CloseCode,
        detail: &'static str,
        mux: &mut Mux,
        out: &mut NodeOut,
    ) {
        self.refuse_for(now, conn, cause, detail, Duration::ZERO, mux, out);
    }

    /// The same; the peer may come back after `wait` (zero: when it likes).
    pub(super) fn refuse_for(
        &mut self,
        now: Instant,
        conn: ConnKey,
        cause: CloseCode,
        detail: &'static str,
        wait: Duration,
        mux: &mut Mux,
        out: &mut NodeOut,
    ) {
        let Some(h) = self.handshakes.remove(conn) else { return };
        self.dial_over(now, &h.stage, out);
        out.observed.push(Observed::HandshakeFailed { plane: h.dialect.plane, cause, detail });
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        mux.close(conn, h.dialect, cause, wait_ms, out);
    }

    pub(super) fn expire_handshakes(&mut self, now: Instant, mux: &mut Mux, out: &mut NodeOut) {
        while let Some(conn) = self.handshakes.late(now) {
            self.refuse_handshake(now, conn, CloseCode::HandshakeTimeout, "the peer did not answer in time", mux, out);
        }
    }

    /// A message on a connection that carries no session yet.
    pub(crate) fn on_handshake_message(
        &mut self,
        now: Instant,
        conn: ConnKey,
        message: &Bytes,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let Some(h) = self.handshakes.get(conn) else { return };
        let dialect = h.dialect;
        let mut frames = Vec::new();
        let frame = match decode(dialect, message, &handshake_limits(&h.stage), &mut frames) {
            Ok(_) if frames.len() == 1 => frames.pop(),
            Ok(_) => None,
            Err(e) => {
                out.observed.push(Observed::ProtocolViolation {
                    plane: dialect.plane,
                    kind: e.kind,
                    detail: e.detail.to_string(),
                });
                return self.refuse_handshake(now, conn, CloseCode::Protocol, "not a frame of this encoding", mux, out);
            }
        };
        let Some(frame) = frame else {
            return self.refuse_handshake(
                now,
                conn,
                CloseCode::Protocol,
                "a handshake message holds one frame",
                mux,
                out,
            );
        };
        let Some(h) = self.handshakes.get(conn) else { return };
        match (&h.stage, frame) {
            (Stage::Hello(Principal::Agent(grant)), Frame::Hello(hello)) if dialect.plane == Plane::Tunnel => {
                let grant = grant.clone();
                self.on_agent_hello(now, conn, *hello, grant, mux, notes, out);
            }
            (Stage::Hello(Principal::Hub(grant)), Frame::Hello(hello)) if dialect.plane == Plane::Mesh => {
                let grant = grant.clone();
                self.on_hub_hello(now, conn, *hello, &grant, mux, notes, out);
            }
            (Stage::Welcome { .. }, Frame::Welcome(welcome)) => {
                self.on_hub_welcome(now, conn, *welcome, mux, notes, out);
            }
            (Stage::Auth(_), Frame::Auth(_)) => self.on_hub_auth(now, conn, mux, notes, out),
            (Stage::Welcome { target, resume, .. }, Frame::GoAway { code, retry_after_ms }) => {
                let (target, resume) = (*target, *resume);
                self.handshakes.remove(conn);
                out.close.push((conn, code));
                if let Some(p) = self.peers.get_mut(usize::from(target.0)) {
                    if retry_after_ms > 0 {
                        p.link.on_retry_after(now, Duration::from_millis(retry_after_ms));
                    }
                    if code == CloseCode::Itself {
                        p.itself = true;
                        out.observed.push(Observed::PeerIsSelf { peer: target.0 });
                    }
                }
                if code == CloseCode::Duplicate {
                    // The peer keeps the session it already has with us; its
                    // loss, not a timer, makes us dial again.
                    self.dial_covered(now, target, mux);
                } else {
                    out.observed.push(Observed::HandshakeFailed {
                        plane: Plane::Mesh,
                        cause: code,
                        detail: "the peer refused",
                    });
                    self.on_dial_failed(now, target, out);
                }
                if let (Some(key), CloseCode::ResumeRefused) = (resume, code) {
                    self.lose(now, key, code, mux, notes, out);
                }
            }
            (_, Frame::GoAway { code, .. }) => {
                self.handshakes.remove(conn);
                out.close.push((conn, code));
            }
            _ => {
                let e = ProtocolError::new(
                    ProtocolErrorKind::Unexpected,
                    "another frame than this phase of the handshake allows",
                );
                out.observed.push(Observed::ProtocolViolation {
                    plane: dialect.plane,
                    kind: e.kind,
                    detail: e.detail.to_string(),
                });
                self.refuse_handshake(now, conn, CloseCode::Protocol, "another frame than this phase allows", mux, out);
            }
        }
    }

    /// A session's parameters for a new session in this dialect.
    pub(super) fn new_session(&mut self, dialect: Dialect) -> SessionConfig {
        SessionConfig {
            dialect,
            id: self.new_session_id(),
            secret: Secret(self.rng.bytes()),
            send_queue_depth: self.config.limits.send_queue_depth,
            inflight_bytes: self.config.limits.inflight_bytes,
            liveness: self.config.liveness,
        }
    }

    /// How long a session we accepted may be without a connection. The window
    /// counts from the dialler's detection, which may come `liveness.dead` later
    /// than ours (semantics 2).
    pub(super) fn accepted_window(&self) -> Duration {
        let window = self.config.resume_window;
        if window.is_zero() { window } else { window.saturating_add(self.config.liveness.dead) }
    }

    /// A WELCOME with everything but session, attachment and resumption.
    pub(super) fn welcome(&mut self, session: crate::id::SessionId) -> Welcome {
        Welcome {
            replica_id: self.run.replica_id.clone(),
            incarnation: self.run.incarnation,
            namespace: self.config.namespace.clone(),
            region: self.config.region.clone(),
            session,
            secret: None,
            resumed: None,
            attachment: None,
            resume_window_ms: u64::try_from(self.config.resume_window.as_millis()).unwrap_or(u64::MAX).min(1 << 40),
            challenge: Secret(self.rng.bytes()),
            initial_window: self.config.limits.stream_window_initial_bytes,
            capabilities: Vec::new(),
            signature: None,
        }
    }
}

/// A dialler trusts whom it dialled with larger messages than a stranger.
const fn handshake_limits(stage: &Stage) -> WireLimits {
    match stage {
        Stage::Hello(_) | Stage::Claim(_) | Stage::Auth(_) => WireLimits::BEFORE_AUTH,
        Stage::Welcome { .. } => WireLimits { message_bytes: MESSAGE_MAX_BYTES, payload_bytes: 0 },
    }
}

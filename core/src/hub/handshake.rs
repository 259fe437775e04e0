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
    /// What follows the WELCOME of a hub we dialled.
    Dialling(Box<Dialling>),
    /// What follows the HELLO of a hub that may become a peer.
    Accepting(Box<Accepting>),
}

/// What the handshake of a hub we dialled waits for, after its WELCOME.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DialStep {
    /// The verdict on that WELCOME.
    Verdict,
    /// Our signature, for AUTH.
    Signature,
}

/// What the handshake of a hub that dialled us waits for, after its HELLO.
#[derive(Debug)]
pub(super) enum AcceptStep {
    /// Our signature, for WELCOME.
    Signature,
    /// Its AUTH.
    Auth,
    /// The verdict on that AUTH. What the peer says meanwhile, as it may, is held.
    Verdict(Held),
}

impl Stage {
    /// Whom we dialled, and which session we want back from there.
    fn dialled(&self) -> Option<(TargetIx, Option<SessionKey>)> {
        match self {
            Self::Welcome { target, resume, .. } => Some((*target, *resume)),
            Self::Dialling(d) => Some((d.target, None)),
            Self::Hello(_) | Self::Claim(_) | Self::Accepting(_) => None,
        }
    }

    fn dialled_target(&self) -> Option<u16> {
        self.dialled().map(|(target, _)| target.0)
    }
}

/// Messages of a peer whose AUTH is being judged: not looked at before (I3).
#[derive(Debug, Default)]
pub(super) struct Held {
    messages: Vec<Bytes>,
    bytes: usize,
}

impl Held {
    /// False when it is more than a peer may say before it is known.
    fn push(&mut self, message: &Bytes) -> bool {
        self.bytes += message.len() + HELD_COST;
        self.messages.push(message.clone());
        self.bytes <= MESSAGE_MAX_BYTES
    }

    pub(super) fn take(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.messages)
    }
}

/// What a held message counts beside its bytes.
const HELD_COST: usize = 256;

/// An agent whose attachment is being claimed.
#[derive(Debug)]
pub(super) struct Claiming {
    pub(super) hello: Hello,
    pub(super) grant: AgentGrant,
    /// What the registry was asked.
    pub(super) claim: Box<Claim>,
}

/// A hub that was welcomed, or will be with our signature.
#[derive(Debug)]
pub(super) struct Accepting {
    pub(super) step: AcceptStep,
    pub(super) peer: HelloHub,
    pub(super) initial_window: u64,
    pub(super) session: SessionConfig,
    /// The peer's challenge.
    pub(super) challenge: Secret<16>,
    pub(super) welcome: Welcome,
    pub(super) exporter: Option<[u8; 32]>,
    /// What its AUTH shows, once that is judged.
    pub(super) chain: Vec<String>,
}

/// A hub we dialled, whose WELCOME is here.
#[derive(Debug)]
pub(super) struct Dialling {
    pub(super) step: DialStep,
    pub(super) target: TargetIx,
    /// Our challenge.
    pub(super) challenge: Secret<16>,
    pub(super) welcome: Welcome,
    /// Of the TLS connection; none once the peer's signature shows that TLS
    /// does not end there.
    pub(super) exporter: Option<[u8; 32]>,
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
        let was = p.link.state();
        p.link.on_event(now, link::Event::Failed);
        if was != link::State::Closed && p.link.state() == link::State::Closed {
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
        if ours.is_none() && !self.is_wanted(usize::from(target.0)) {
            // The configuration changed while it was dialled.
            if let Some(p) = self.peers.get_mut(usize::from(target.0)) {
                p.dialling = false;
                p.link.on_event(now, link::Event::Disabled);
            }
            return out.close.push((conn, CloseCode::Transport));
        }
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
            target: h.stage.dialled_target(),
        });
    }

    fn dial_over(&mut self, now: Instant, stage: &Stage, out: &mut NodeOut) {
        if let Some((target, _)) = stage.dialled() {
            self.on_dial_failed(now, target, out);
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
        out.observed.push(Observed::HandshakeFailed {
            plane: h.dialect.plane,
            cause,
            detail,
            target: h.stage.dialled_target(),
        });
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
        let Some(h) = self.handshakes.get_mut(conn) else { return };
        let dialect = h.dialect;
        if let Stage::Accepting(a) = &mut h.stage
            && let AcceptStep::Verdict(held) = &mut a.step
        {
            if !held.push(message) {
                let detail = "the peer says too much before its AUTH is judged";
                self.refuse_handshake(now, conn, CloseCode::Busy, detail, mux, out);
            }
            return;
        }
        let mut frames = Vec::new();
        let frame = match decode(dialect, message, &WireLimits::BEFORE_AUTH, &mut frames) {
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
            (Stage::Accepting(a), Frame::Auth(auth)) if matches!(a.step, AcceptStep::Auth) => {
                self.on_hub_auth(now, conn, *auth, mux, notes, out)
            }
            (stage, Frame::GoAway { code, retry_after_ms }) if stage.dialled().is_some() => {
                let Some((target, resume)) = stage.dialled() else { return };
                self.handshakes.remove(conn);
                out.close.push((conn, code));
                if let Some(p) = self.peers.get_mut(usize::from(target.0)).filter(|_| retry_after_ms > 0) {
                    p.link.on_retry_after(now, Duration::from_millis(retry_after_ms));
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
                        target: Some(target.0),
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
        if window.is_zero() {
            window
        } else if crate::planted::on(2045) {
            window / 8
        } else {
            window.saturating_add(self.config.liveness.dead)
        }
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

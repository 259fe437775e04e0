//! The agent's tunnels: which hubs are dialled, the handshake, the fences.
//!
//! One link per configured hub. `parallel` of them are wanted at distinct
//! replicas; the others rest until one of those is in trouble. The same replica
//! behind two addresses counts once: the second is dropped and another address
//! tried, until all were; then the agent runs with fewer and says so.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::config::AgentConfig;
use crate::due::Due;
use crate::error::{CloseCode, Ends, ProtocolError, ProtocolErrorKind};
use crate::id::{ConnKey, Epoch, Fence, Instance, Name, Secret, SessionKey, TargetIx};
use crate::link::{self, Event, Link};
use crate::mux::{Mux, NodeOut, Peer, SessionNews};
use crate::observed::Observed;
use crate::planted;
use crate::rng::{Rng, Seed};
use crate::session::{Session, SessionConfig};
use crate::shard::{Attach, ControlNote, SessionUp, Shard, ShardNote};
use crate::time::{Deadline, Instant};
use crate::wire::{
    ConnectorAd, Dialect, EpochNotice, Frame, Hello, HelloAgent, HelloRole, Plane, Welcome, WireLimits, decode,
    encode_message,
};

/// A WELCOME may be somewhat larger than a stranger's HELLO.
const WELCOME_LIMITS: WireLimits = WireLimits { message_bytes: 64 * 1024, payload_bytes: 0 };

/// What one configured hub is to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelState {
    /// Not dialled: enough others serve.
    Resting,
    /// Its link is wanted and in this state.
    Wanted(link::State),
}

#[derive(Debug)]
struct HubState {
    /// `None` while resting.
    link: Option<Link>,
    replica: Option<Name>,
    session: Option<SessionKey>,
    dialling: bool,
    /// Its replica is served over another address already.
    same_as_other: bool,
    /// It says that it drains or that its registry is unwell.
    leaving: bool,
}

#[derive(Debug)]
struct Handshake {
    target: TargetIx,
    dialect: Dialect,
    challenge: Secret<16>,
    resume: Option<SessionKey>,
}

/// The agent's control plane.
#[derive(Debug)]
pub struct Tunnels {
    config: Arc<AgentConfig>,
    instance: Instance,
    highest: Epoch,
    hubs: Vec<HubState>,
    handshakes: Due<ConnKey, Handshake>,
    rng: Rng,
    seed: Seed,
    draining: bool,
    told_fewer: bool,
}

impl Tunnels {
    pub(super) fn new(config: Arc<AgentConfig>, instance: Instance, seed: &Seed, _now: Instant) -> Self {
        let hubs = config
            .hubs
            .iter()
            .map(|_| HubState {
                link: None,
                replica: None,
                session: None,
                dialling: false,
                same_as_other: false,
                leaving: false,
            })
            .collect();
        Self {
            instance,
            highest: Epoch(0),
            hubs,
            handshakes: Due::default(),
            rng: seed.fork("tunnels").rng(),
            seed: *seed,
            draining: false,
            told_fewer: false,
            config,
        }
    }

    /// This run of the agent.
    #[must_use]
    pub const fn instance(&self) -> Instance {
        self.instance
    }

    /// The highest epoch ever granted.
    #[must_use]
    pub const fn highest_epoch(&self) -> Epoch {
        self.highest
    }

    /// Every configured hub: its state, its replica once known, its session.
    pub fn hubs(&self) -> impl Iterator<Item = (TunnelState, Option<&Name>, Option<SessionKey>)> {
        self.hubs.iter().map(|h| {
            let state = h.link.as_ref().map_or(TunnelState::Resting, |l| TunnelState::Wanted(l.state()));
            (state, h.replica.as_ref(), h.session)
        })
    }

    pub(super) fn start(&mut self, now: Instant, mux: &Mux, out: &mut NodeOut) {
        self.want(now, mux, out);
    }

    /// Wakes resting hubs until enough serve, and lets surplus dials rest.
    fn want(&mut self, now: Instant, mux: &Mux, out: &mut NodeOut) {
        if self.draining {
            return;
        }
        let wanted = usize::from(self.config.parallel).min(self.hubs.len()).max(1);
        let connected = |h: &HubState| h.session.and_then(|k| mux.get(k)).is_some_and(|e| e.conn.is_some());
        let serving = self.hubs.iter().filter(|h| connected(h) && !h.leaving).count();
        let trying = self
            .hubs
            .iter()
            .filter(|h| {
                !connected(h)
                    && h.link.as_ref().is_some_and(|l| l.state() == link::State::Connecting && l.attempts() == 0)
            })
            .count();
        let mut missing = wanted.saturating_sub(serving + trying);
        for ix in 0..self.hubs.len() {
            if missing == 0 {
                break;
            }
            let Some(h) = self.hubs.get_mut(ix) else { break };
            if h.link.is_some() || h.same_as_other || h.leaving {
                continue;
            }
            h.link = Some(Link::new(self.config.backoff, self.seed.fork(&format!("hub {ix} {}", now.as_nanos())), now));
            missing -= 1;
            self.dial(ix, out);
        }
        if serving >= wanted {
            // Those that are neither serving nor carrying a session may rest.
            for h in &mut self.hubs {
                if h.session.is_none() && !h.dialling {
                    h.link = None;
                }
            }
        }
        let distinct = self.hubs.iter().filter(|h| !h.same_as_other).count();
        if distinct < wanted && !std::mem::replace(&mut self.told_fewer, true) {
            let have = u16::try_from(distinct).unwrap_or(u16::MAX);
            out.observed.push(Observed::FewerHubs { wanted: self.config.parallel, have });
        }
    }

    fn dial(&mut self, ix: usize, out: &mut NodeOut) {
        if let Some(h) = self.hubs.get_mut(ix)
            && !std::mem::replace(&mut h.dialling, true)
        {
            out.dial.push(TargetIx(u16::try_from(ix).unwrap_or(u16::MAX)));
        }
    }

    pub(super) fn on_dial_failed(&mut self, now: Instant, target: TargetIx, mux: &Mux, out: &mut NodeOut) {
        let Some(h) = self.hubs.get_mut(usize::from(target.0)) else { return };
        h.dialling = false;
        if let Some(l) = h.link.as_mut() {
            l.on_event(now, Event::Failed);
            if l.state() == link::State::Closed {
                out.observed.push(Observed::GaveUp { plane: Plane::Tunnel, target: target.0 });
            }
        }
        self.want(now, mux, out);
    }

    fn ads(&self) -> Vec<ConnectorAd> {
        self.config
            .connectors
            .iter()
            .map(|c| ConnectorAd { name: c.name.clone(), priority: c.priority, weight: c.weight })
            .collect()
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
        let Some(h) = self.hubs.get_mut(usize::from(target.0)) else { return };
        if h.link.is_none() || (self.draining && h.session.is_none()) {
            // Not wanted any more: a HELLO would replace the tunnel that is.
            h.dialling = false;
            out.close.push((conn, CloseCode::Transport));
            return;
        }
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
            }),
            challenge,
            initial_window: self.config.limits.stream_window_initial_bytes,
            capabilities: Vec::new(),
            resume: resume.as_ref().map(|(_, r)| r.clone()),
        };
        mux.post(conn, encode_message(dialect, 0, &[Frame::Hello(Box::new(hello))]), out);
        let deadline = now.after(self.config.handshake_timeout);
        let resume = resume.map(|(k, _)| k);
        self.handshakes.insert(conn, deadline, Handshake { target, dialect, challenge, resume });
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
        });
        self.on_dial_failed(now, h.target, mux, out);
    }

    fn give_up(
        &mut self,
        now: Instant,
        conn: ConnKey,
        cause: CloseCode,
        detail: &'static str,
        mux: &mut Mux,
        out: &mut NodeOut,
    ) {
        let Some(h) = self.handshakes.remove(conn) else { return };
        out.observed.push(Observed::HandshakeFailed { plane: Plane::Tunnel, cause, detail });
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
                out.observed.push(Observed::HandshakeFailed {
                    plane: Plane::Tunnel,
                    cause: code,
                    detail: "the hub refused",
                });
                if retry_after_ms > 0
                    && let Some(l) = self.hubs.get_mut(usize::from(target.0)).and_then(|h| h.link.as_mut())
                {
                    l.on_retry_after(now, Duration::from_millis(retry_after_ms));
                }
                if let (Some(key), CloseCode::ResumeRefused) = (resume, code) {
                    self.lose(now, key, code, mux, notes, out);
                }
                self.on_dial_failed(now, target, mux, out);
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
        if let Some(old) = resume {
            // The hub did not go on with the session: it is over.
            self.lose(now, old, CloseCode::ResumeRefused, mux, notes, out);
        }
        let newest = if planted::on(1) { attachment.epoch >= self.highest } else { attachment.epoch > self.highest };
        if !newest {
            // HELLO carried `seen`, so this can only be a hub that ignored it (O2).
            return self.give_up(now, conn, CloseCode::Protocol, "WELCOME offers an epoch that is not newer", mux, out);
        }
        self.highest = attachment.epoch;
        self.rest_others(now, ix, &w.replica_id);
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
        }
        self.up(now, ix);
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
            connectors: self.config.connectors.iter().map(|c| c.name.clone()).collect(),
        }));
        out.observed.push(Observed::SessionUp { plane: Plane::Tunnel, peer: w.replica_id.as_str().to_owned() });
        out.observed.push(Observed::Attached {
            agent_id: self.config.agent_id.clone(),
            epoch: fence.epoch,
            firm: attachment.firm,
            takeover: false,
        });
        self.want(now, mux, out);
    }

    /// The same replica twice serves nobody better (semantics 4), and it has
    /// just replaced our attachment by the one of address `ix`: its other
    /// addresses rest while that tunnel lives. Their sessions end by the hub's
    /// GOAWAY, which may have come before this WELCOME.
    fn rest_others(&mut self, now: Instant, ix: usize, replica: &Name) {
        for (i, h) in self.hubs.iter_mut().enumerate() {
            if i == ix {
                h.same_as_other = false;
                // Its handshake was on the way when it was told to rest.
                h.link.get_or_insert_with(|| Link::new(self.config.backoff, self.seed.fork("woken"), now));
            } else if h.replica.as_ref() == Some(replica) {
                h.same_as_other = true;
                if h.session.is_none() {
                    h.link = None;
                }
            }
        }
    }

    /// The tunnel of address `ix` is over: what rested because of it may lead
    /// elsewhere by now.
    fn wake_others(&mut self, ix: usize) {
        let Some(replica) = self.hubs.get(ix).and_then(|h| h.replica.clone()) else { return };
        let Some(h) = self.hubs.get(ix) else { return };
        if h.same_as_other {
            return;
        }
        for h in &mut self.hubs {
            h.same_as_other &= h.replica.as_ref() != Some(&replica);
        }
    }

    fn up(&mut self, now: Instant, ix: usize) {
        if let Some(h) = self.hubs.get_mut(ix) {
            h.dialling = false;
            if let Some(l) = h.link.as_mut() {
                l.set_streams_wait(now, false);
                l.on_event(now, Event::Up);
            }
        }
    }

    /// A frame that is not the shard's business.
    pub(super) fn on_frame(
        &mut self,
        now: Instant,
        key: SessionKey,
        frame: Frame,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if mux.get(key).is_none() {
            // A frame before it in the same message ended the session.
            return;
        }
        match frame {
            Frame::GoAway { code, retry_after_ms } => {
                let hub = self.hubs.iter_mut().find(|h| h.session == Some(key));
                if let (Some(l), true) = (hub.and_then(|h| h.link.as_mut()), retry_after_ms > 0) {
                    l.on_retry_after(now, Duration::from_millis(retry_after_ms));
                }
                match code.ends() {
                    Ends::Nothing => {
                        self.set_leaving(key, true);
                        self.want(now, mux, out);
                    }
                    Ends::Connection => {}
                    Ends::Session => self.lose(now, key, code, mux, notes, out),
                }
            }
            Frame::Epoch(notice) => {
                // A re-claim after an outage: the binding of open streams stays,
                // new OPENs come under the new fence (semantics 3).
                if notice.agent_id == self.config.agent_id
                    && notice.instance == self.instance
                    && notice.epoch > self.highest
                {
                    self.highest = notice.epoch;
                    notes.push(ControlNote::Attach(Attach {
                        agent_id: self.config.agent_id.clone(),
                        session: key,
                        fence: Fence { epoch: notice.epoch, nonce: notice.nonce },
                        connectors: self.config.connectors.iter().map(|c| c.name.clone()).collect(),
                    }));
                } else if notice.agent_id == self.config.agent_id && notice.instance == self.instance {
                    // A claim of another hub was granted a higher one meanwhile: this
                    // hub is told, and claims with it (O2).
                    let refusal = EpochNotice { epoch: self.highest, ..*notice };
                    mux.send(now, key, Frame::Epoch(Box::new(refusal)), out);
                }
            }
            Frame::Status(status) => {
                self.set_leaving(key, status.draining);
                notes.push(ControlNote::InitialWindow { session: key, bytes: status.initial_window });
                self.want(now, mux, out);
            }
            Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::Auth(_)
            | Frame::Ack { .. }
            | Frame::Ping { .. }
            | Frame::Pong { .. }
            | Frame::Connectors { .. }
            | Frame::Token { .. }
            | Frame::Stream { .. } => {
                let e =
                    ProtocolError::new(ProtocolErrorKind::Unexpected, "a frame that a hub does not send on a tunnel");
                self.on_violation(now, key, &e, mux, notes, out);
            }
        }
    }

    fn set_leaving(&mut self, key: SessionKey, leaving: bool) {
        if let Some(h) = self.hubs.iter_mut().find(|h| h.session == Some(key)) {
            h.leaving = leaving;
        }
    }

    pub(super) fn on_violation(
        &mut self,
        now: Instant,
        key: SessionKey,
        e: &ProtocolError,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        out.observed.push(Observed::ProtocolViolation {
            plane: Plane::Tunnel,
            kind: e.kind,
            detail: e.detail.to_string(),
        });
        self.lose(now, key, CloseCode::Protocol, mux, notes, out);
    }

    pub(super) fn on_session_news(
        &mut self,
        now: Instant,
        news: SessionNews,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        shard: &Shard,
        out: &mut NodeOut,
    ) {
        match news {
            SessionNews::Suspended { key, cause } => {
                let Some(entry) = mux.get(key) else { return };
                let window = entry.resume_window;
                out.observed.push(Observed::SessionSuspended {
                    plane: Plane::Tunnel,
                    peer: entry.peer.name().to_owned(),
                    cause,
                });
                if let Some(l) = self.hubs.iter_mut().find(|h| h.session == Some(key)).and_then(|h| h.link.as_mut()) {
                    l.set_streams_wait(now, shard.has_streams(key));
                    l.on_event(now, Event::Lost);
                }
                if window.is_zero() {
                    self.lose(now, key, cause, mux, notes, out);
                }
                self.want(now, mux, out);
            }
            SessionNews::Over { key, cause } => self.lose(now, key, cause, mux, notes, out),
        }
    }

    fn lose(
        &mut self,
        now: Instant,
        key: SessionKey,
        cause: CloseCode,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if mux.remove(key, cause, out).is_none() {
            return;
        }
        notes.push(ControlNote::SessionLost { session: key });
        let ix = self.hubs.iter().position(|h| h.session == Some(key));
        if let Some(ix) = ix {
            self.wake_others(ix);
        }
        if let Some(h) = ix.and_then(|ix| self.hubs.get_mut(ix)) {
            h.session = None;
            h.leaving = false;
            if let Some(l) = h.link.as_mut() {
                l.set_streams_wait(now, false);
                l.on_event(now, Event::Lost);
            }
            if h.same_as_other {
                h.link = None;
            }
        }
        self.want(now, mux, out);
    }

    pub(super) fn on_shard_note(
        &mut self,
        now: Instant,
        note: &ShardNote,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if let ShardNote::Misbehaved { session, code } = note {
            out.observed.push(Observed::ProtocolViolation {
                plane: Plane::Tunnel,
                kind: ProtocolErrorKind::BadCid,
                detail: format!("stream rules broken: {code}"),
            });
            self.lose(now, *session, *code, mux, notes, out);
        }
    }

    pub(super) fn drain(&mut self, now: Instant, mux: &mut Mux, notes: &mut Vec<ControlNote>, out: &mut NodeOut) {
        self.draining = true;
        notes.push(ControlNote::Drain);
        let keys: Vec<SessionKey> = mux.iter().map(|(k, _)| k).collect();
        for key in keys {
            // Withdrawing everything makes hubs open elsewhere; streams go on.
            mux.send(now, key, Frame::Connectors { generation: u64::from(u32::MAX), connectors: Vec::new() }, out);
        }
    }

    pub(super) fn shutdown(&mut self, now: Instant, mux: &mut Mux, notes: &mut Vec<ControlNote>, out: &mut NodeOut) {
        self.draining = true;
        let keys: Vec<SessionKey> = mux.iter().map(|(k, _)| k).collect();
        for key in keys {
            self.lose(now, key, CloseCode::Shutdown, mux, notes, out);
        }
        for h in &mut self.hubs {
            h.link = None;
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, mux: &mut Mux, out: &mut NodeOut) {
        for ix in 0..self.hubs.len() {
            let Some(h) = self.hubs.get_mut(ix) else { continue };
            if self.draining && h.session.is_none() {
                // Leaving: only sessions that still carry streams are brought back.
                h.link = None;
            }
            let action = h.link.as_mut().and_then(|l| l.handle_timeout(now));
            if action == Some(link::Action::Dial) {
                self.dial(ix, out);
            }
        }
        while let Some(conn) = self.handshakes.late(now) {
            self.give_up(now, conn, CloseCode::HandshakeTimeout, "the hub did not answer in time", mux, out);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        let links = self.hubs.iter().filter_map(|h| h.link.as_ref()).filter_map(Link::poll_timeout).min();
        let handshakes = self.handshakes.next().map(|at| Deadline { at, why: "handshake" });
        Deadline::earliest(links, handshakes)
    }
}

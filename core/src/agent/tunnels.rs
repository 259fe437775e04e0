//! The agent's tunnels: which hubs are dialled, and what they say later.
//!
//! One link per configured hub. `parallel` of them are wanted at distinct
//! replicas; the others rest until one of those is in trouble. The same replica
//! behind two addresses counts once: other addresses are tried first, then
//! these again at the back-off's pace; until one leads elsewhere the agent runs
//! with fewer and says so. Keeps L2 and L8. Must not know the handshake.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::given_up;
use super::handshake::Handshake;
use super::health::Health;
use super::reload::Quit;
use crate::config::{AgentConfig, DrainTimes};
use crate::due::Due;
use crate::error::{CloseCode, Ends, ProtocolError, ProtocolErrorKind};
use crate::id::{ConnKey, Epoch, Fence, Instance, Name, SessionKey, TargetIx};
use crate::link::{self, Event, Link};
use crate::mux::{Mux, NodeOut, SessionNews};
use crate::observed::{DrainStep, Observed};
use crate::rng::{Rng, Seed};
use crate::shard::{Attach, ControlNote, Ending, Shard, ShardNote};
use crate::time::{Deadline, Instant};
use crate::wire::{EpochNotice, Frame, Plane, SecretText, TOKEN_ACCEPTED, TOKEN_REFUSED};

/// What one configured hub is to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelState {
    /// Not dialled: enough others serve.
    Resting,
    /// Its link is wanted and in this state.
    Wanted(link::State),
}

#[derive(Debug)]
pub(super) struct HubState {
    /// The configuration names it still.
    pub(super) listed: bool,
    /// `None` while resting.
    pub(super) link: Option<Link>,
    /// Until when it asked not to be dialled. A link rests, and is made anew,
    /// while other hubs serve.
    pub(super) rests_until: Option<Instant>,
    pub(super) replica: Option<Name>,
    pub(super) session: Option<SessionKey>,
    pub(super) dialling: bool,
    /// It led to a replica that is served over another address: dialled last,
    /// and again and again at the back-off's pace, for it may lead elsewhere.
    pub(super) same_as_other: bool,
    /// That replica let it take the other address's place although HELLO named
    /// the tunnel: it is not dialled again while that lives.
    pub(super) shunned: bool,
    /// It says that it drains.
    pub(super) leaving: bool,
    /// It says that its registry is unwell: others may not find the agent there.
    pub(super) unwell: bool,
    /// Times in a row it offered an epoch that is not above our highest.
    pub(super) stale_offers: u8,
}

impl Default for HubState {
    fn default() -> Self {
        Self {
            listed: true,
            link: None,
            rests_until: None,
            replica: None,
            session: None,
            dialling: false,
            same_as_other: false,
            shunned: false,
            leaving: false,
            unwell: false,
            stale_offers: 0,
        }
    }
}

impl HubState {
    pub(super) fn is_connected(&self, mux: &Mux) -> bool {
        self.session.and_then(|k| mux.get(k)).is_some_and(|e| e.conn.is_some())
    }

    /// It said how long it wants not to be dialled; 0: it has no wish.
    pub(super) fn on_retry_after(&mut self, now: Instant, ms: u64) {
        if ms > 0
            && let Some(link) = &mut self.link
        {
            link.on_retry_after(now, Duration::from_millis(ms));
            self.rests_until = Some(link.rests_until());
        }
    }
}

/// The agent's control plane.
#[derive(Debug)]
pub struct Tunnels {
    pub(super) config: Arc<AgentConfig>,
    pub(super) instance: Instance,
    pub(super) highest: Epoch,
    pub(super) hubs: Vec<HubState>,
    pub(super) handshakes: Due<ConnKey, Handshake>,
    pub(super) rng: Rng,
    pub(super) seed: Seed,
    pub(super) draining: bool,
    /// The first dials were made; those go out at once.
    started: bool,
    /// Tunnels in a row, over all hubs, that were lost before they had lasted.
    unsteady: u32,
    pub(super) told_fewer: bool,
    /// Of what was last advertised after HELLO.
    pub(super) generation: u64,
    /// Tunnels on their way out.
    pub(super) quitting: BTreeMap<SessionKey, Quit>,
    /// The address with a tunnel that was last asked where it leads.
    pub(super) asked: usize,
    /// Of the targets.
    pub(super) health: Health,
}

/// A tunnel lost its connection, and perhaps had before. True if it lost one
/// now that had lasted.
fn note_lost(unsteady: &mut u32, ix: usize, link: &mut Link, now: Instant, out: &mut NodeOut) -> bool {
    let served = link.state() == link::State::Established;
    given_up::failed(now, ix, link, Event::Lost, out);
    if served {
        *unsteady = if link.attempts() == 0 { 0 } else { unsteady.saturating_add(1) };
    }
    served && *unsteady == 0
}

impl Tunnels {
    pub(super) fn new(config: Arc<AgentConfig>, instance: Instance, seed: &Seed, now: Instant) -> Self {
        let hubs = config.hubs.iter().map(|_| HubState::default()).collect();
        Self {
            instance,
            highest: Epoch(0),
            hubs,
            handshakes: Due::default(),
            rng: seed.fork("tunnels").rng(),
            seed: *seed,
            draining: false,
            started: false,
            unsteady: 0,
            told_fewer: false,
            generation: 0,
            quitting: BTreeMap::new(),
            asked: 0,
            health: Health::new(&config.connectors, seed, now),
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

    /// Whether this agent leaves and takes nothing new.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.draining
    }

    pub(super) fn start(&mut self, now: Instant, mux: &Mux, out: &mut NodeOut) {
        self.want(now, mux, out);
        self.started = true;
    }

    pub(super) fn wanted(&self) -> usize {
        let listed = self.hubs.iter().filter(|h| h.listed).count();
        usize::from(self.config.parallel).min(listed).max(1)
    }

    /// Tunnels that have a connection and a hub that stays.
    pub(super) fn serving(&self, mux: &Mux) -> usize {
        let stays = |h: &HubState| h.session.is_some_and(|key| !self.quitting.contains_key(&key));
        self.hubs.iter().filter(|h| h.is_connected(mux) && !h.leaving && stays(h)).count()
    }

    /// Whether there are enough of them, and one with a registry that is well:
    /// with unwell ones only, clients of other hubs may not get here (semantics 4).
    fn is_served(&self, mux: &Mux) -> bool {
        self.serving(mux) >= self.wanted() && self.hubs.iter().any(|h| h.is_connected(mux) && !h.leaving && !h.unwell)
    }

    /// Whether address `ix` needs no new tunnel any more.
    pub(super) fn is_surplus(&self, ix: usize, mux: &Mux) -> bool {
        self.hubs.get(ix).is_some_and(|h| h.session.is_none()) && self.is_served(mux)
    }

    /// Wakes resting hubs until enough serve, and lets surplus dials rest.
    pub(super) fn want(&mut self, now: Instant, mux: &Mux, out: &mut NodeOut) {
        if self.draining {
            return;
        }
        let (wanted, serving) = (self.wanted(), self.serving(mux));
        // A first dial that is due or under way, of a hub without a session.
        let trying = |h: &HubState| {
            !h.is_connected(mux)
                && h.link.as_ref().is_some_and(|l| {
                    l.attempts() == 0
                        && (l.state() == link::State::Connecting
                            || (l.state() == link::State::Backoff && h.session.is_none()))
                })
        };
        let trying = self.hubs.iter().filter(|h| trying(h)).count();
        let mut missing = wanted.saturating_sub(serving + trying);
        let served = self.is_served(mux);
        if !served && trying == 0 {
            // One more at a time, and each hub at most once: when all are unwell
            // the agent ends up at every hub, and serves the clients of each.
            missing = missing.max(1);
        }
        // Addresses that led to a replica we have come last.
        for again in [false, true] {
            for ix in 0..self.hubs.len() {
                if missing == 0 {
                    break;
                }
                let Some(h) = self.hubs.get_mut(ix) else { break };
                if h.link.is_some() || !h.listed || h.same_as_other != again || h.shunned || h.leaving {
                    continue;
                }
                let seed = self.seed.fork(&format!("hub {ix} {}", now.as_nanos()));
                missing -= 1;
                if self.started {
                    // Every agent of a hub that died wakes another one now; and
                    // who is sent away everywhere must not go round at that pace,
                    // as the second process of one agent would (L8).
                    let mut link = match self.unsteady {
                        0 => Link::soon(self.config.backoff, seed, now),
                        n => Link::wary(self.config.backoff, seed, now, n),
                    };
                    if let Some(at) = h.rests_until {
                        link.rest_until(at);
                    }
                    h.link = Some(link);
                } else {
                    h.link = Some(Link::new(self.config.backoff, seed, now));
                    self.dial(ix, out);
                }
            }
        }
        if served {
            self.told_fewer = false;
            // Those that are neither serving nor carrying a session may rest.
            for h in &mut self.hubs {
                if h.session.is_none() && !h.dialling {
                    h.link = None;
                }
            }
        }
        let distinct = self.hubs.iter().filter(|h| h.listed && !h.same_as_other).count();
        if distinct < wanted && !std::mem::replace(&mut self.told_fewer, true) {
            let have = u16::try_from(distinct).unwrap_or(u16::MAX);
            out.observed.push(Observed::FewerHubs { wanted: self.config.parallel, have });
        }
    }

    pub(super) fn dial(&mut self, ix: usize, out: &mut NodeOut) {
        if let Some(h) = self.hubs.get_mut(ix)
            && !std::mem::replace(&mut h.dialling, true)
        {
            out.dial.push(TargetIx(u16::try_from(ix).unwrap_or(u16::MAX)));
        }
    }

    /// The tunnel of address `ix` is over: what led to the same replica may
    /// lead elsewhere by now, or be the only way there.
    fn wake_others(&mut self, ix: usize) {
        let Some(replica) = self.hubs.get(ix).map(|h| h.replica.clone()) else { return };
        for h in &mut self.hubs {
            // Of an address that was refused the replica is not known.
            if h.replica.is_none() || h.replica == replica {
                h.same_as_other = false;
                h.shunned = false;
            }
        }
    }

    /// Tunnel `ix` had lasted and is in trouble. The pauses between dials of the
    /// other hubs were chosen while it served, and so it was decided to give some up.
    fn hasten_others(&mut self, now: Instant, ix: usize, mux: &Mux) {
        self.try_again(mux);
        for (_, h) in self.hubs.iter_mut().enumerate().filter(|(other, _)| *other != ix) {
            if h.listed
                && !h.leaving
                && !h.shunned
                && !h.is_connected(mux)
                && let Some(l) = h.link.as_mut()
            {
                l.hasten_gently(now);
            }
        }
    }

    pub(super) fn up(&mut self, now: Instant, ix: usize) {
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
                if let Some(h) = self.hubs.iter_mut().find(|h| h.session == Some(key)) {
                    h.on_retry_after(now, retry_after_ms);
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
                        connectors: self.exposed_names(),
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
                if let Some(h) = self.hubs.iter_mut().find(|h| h.session == Some(key)) {
                    h.unwell = !status.registry_healthy;
                }
                notes.push(ControlNote::InitialWindow { session: key, bytes: status.initial_window });
                self.want(now, mux, out);
            }
            Frame::Token { token } if matches!(token.0.as_str(), TOKEN_ACCEPTED | TOKEN_REFUSED) => {
                let peer = mux.get(key).map_or_else(String::new, |e| e.peer.name().to_owned());
                out.observed.push(Observed::TokenAnswered { peer, accepted: token.0 == TOKEN_ACCEPTED });
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

    /// A fresh token goes to every hub, over the live tunnels.
    pub(super) fn send_token(&self, now: Instant, token: &SecretText, mux: &mut Mux, out: &mut NodeOut) {
        for key in self.hubs.iter().filter_map(|h| h.session) {
            mux.send(now, key, Frame::Token { token: token.clone() }, out);
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
                let ix = self.hubs.iter().position(|h| h.session == Some(key));
                if let Some((ix, l)) = ix.and_then(|ix| Some((ix, self.hubs.get_mut(ix)?.link.as_mut()?))) {
                    l.set_streams_wait(now, shard.has_streams(key));
                    if note_lost(&mut self.unsteady, ix, l, now, out) {
                        self.hasten_others(now, ix, mux);
                    }
                }
                if window.is_zero() {
                    self.lose(now, key, cause, mux, notes, out);
                }
                self.want(now, mux, out);
            }
            SessionNews::Over { key, cause } => self.lose(now, key, cause, mux, notes, out),
        }
    }

    pub(super) fn lose(
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
        self.quitting.remove(&key);
        notes.push(ControlNote::SessionLost { session: key });
        let ix = self.hubs.iter().position(|h| h.session == Some(key));
        if cause == CloseCode::ResumeRefused
            && let Some(h) = ix.and_then(|ix| self.hubs.get_mut(ix))
        {
            // Whoever answers there does not have that session: the address
            // leads somewhere else by now.
            h.same_as_other = false;
            h.shunned = false;
        }
        if let Some(ix) = ix
            && !self.hubs.get(ix).is_some_and(|h| h.same_as_other)
        {
            self.wake_others(ix);
        }
        let mut hasten = false;
        if let Some((ix, h)) = ix.and_then(|ix| Some((ix, self.hubs.get_mut(ix)?))) {
            h.session = None;
            h.leaving = false;
            h.unwell = false;
            if let Some(l) = h.link.as_mut() {
                l.set_streams_wait(now, false);
                hasten = note_lost(&mut self.unsteady, ix, l, now, out);
                if cause == CloseCode::ResumeRefused {
                    l.hasten(now);
                }
            }
            if h.shunned || !h.listed {
                h.link = None;
            }
        }
        if let Some(ix) = ix.filter(|_| hasten) {
            self.hasten_others(now, ix, mux);
        }
        self.want(now, mux, out);
    }

    /// Nobody grants this instance an epoch above its highest: it ends, and
    /// another one begins whose order starts anew (semantics 4).
    pub(super) fn start_over(
        &mut self,
        now: Instant,
        offered: Epoch,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        out.observed.push(Observed::StartedOver { highest: self.highest, offered });
        self.instance = Instance(self.rng.next_u64());
        self.highest = Epoch(0);
        for h in &mut self.hubs {
            h.stale_offers = 0;
        }
        while let Some(conn) = self.handshakes.late(Instant::from_nanos(u64::MAX)) {
            self.give_up(now, conn, CloseCode::Superseded, "it was begun for an instance that is over", mux, out);
        }
        let keys: Vec<SessionKey> = mux.iter().map(|(k, _)| k).collect();
        for key in keys {
            self.lose(now, key, CloseCode::Superseded, mux, notes, out);
        }
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

    /// Nothing new from now on. Hubs hear of it before anything else and open
    /// elsewhere; what was on its way here is told to try the next attachment.
    pub(super) fn drain(
        &mut self,
        now: Instant,
        times: DrainTimes,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if std::mem::replace(&mut self.draining, true) {
            return;
        }
        notes.push(ControlNote::Drain(Ending::after(now, times.timeout)));
        out.observed.push(Observed::Drain(DrainStep::Begun));
        let keys: Vec<SessionKey> = mux.iter().map(|(k, _)| k).collect();
        for key in keys.into_iter().take(if crate::planted::on(2047) { 0 } else { usize::MAX }) {
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

    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        self.check_targets(now, mux, notes, out);
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
        let quit = self.next_quit().map(|at| Deadline { at, why: "tunnel of a removed hub" });
        let check = self.health.next().filter(|_| !self.draining).map(|at| Deadline { at, why: "check of a target" });
        Deadline::earliest(Deadline::earliest(quit, check), Deadline::earliest(links, handshakes))
    }
}

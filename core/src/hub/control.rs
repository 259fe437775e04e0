//! A hub's control plane: peers, attachments, registry, routes. Owns who may
//! attach and what is published to the shard; never sees a payload byte.
//! Keeps O1, O4 (by giving shards the fences), O7, L4, I3.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::drain::Leaving;
use super::epochs::Epochs;
use super::handshake::Handshake;
use super::leases::PeerLease;
use super::notice::Told;
use super::recovery::Recovery;
use super::routes::Published;
use super::scope::Earlier;
use super::trust::Proven;
use super::twin::GaveWay;
use super::upkeep::Upkeep;
use crate::config::{HubConfig, Mode, PeerConfig};
use crate::due::Due;
use crate::error::{CloseCode, Ends, ProtocolError, RstCode};
use crate::id::{
    AgentId, ClaimId, ConnKey, Epoch, Fence, Incarnation, Instance, Name, SessionId, SessionKey, TargetIx,
};
use crate::link::Link;
use crate::mux::{Mux, NodeOut, Peer, SessionNews};
use crate::observed::Observed;
use crate::planted;
use crate::principal::AgentGrant;
use crate::registry::{Claim, HubRun, Located, RegistryOp, Token};
use crate::rng::{Rng, Seed};
use crate::route::Candidate;
use crate::shard::{ControlNote, ShardNote};
use crate::time::{Deadline, Instant};
use crate::wire::{ConnectorAd, Frame, Plane, Status};

/// Agents whose epochs are remembered beyond those that can be attached.
const EPOCHS_MORE: usize = 65_536;

/// One configured mesh peer.
#[derive(Debug)]
pub(super) struct PeerState {
    pub(super) link: Link,
    /// Learned from its WELCOME, or configured.
    pub(super) replica: Option<Name>,
    /// It refused our dial because a link to it stands, and more than one does
    /// of which no address is known: which of them is not known either.
    pub(super) covered: bool,
    /// It is this very hub.
    pub(super) itself: bool,
    /// The configuration names it still.
    pub(super) listed: bool,
    /// A dial is under way in the driver.
    pub(super) dialling: bool,
    /// When the last link to it ended.
    pub(super) lost_at: Option<Instant>,
    /// What the registry said of its lease since.
    pub(super) lease: PeerLease,
}

impl PeerState {
    pub(super) fn new(link: Link, peer: &PeerConfig, own: &Name, lost_at: Option<Instant>) -> Self {
        Self {
            link,
            replica: peer.replica_id.clone(),
            covered: false,
            itself: peer.replica_id.as_ref() == Some(own),
            listed: true,
            dialling: false,
            lost_at,
            lease: PeerLease::Unknown,
        }
    }
}

/// One attachment of this hub.
#[derive(Debug)]
pub(super) struct AttachmentState {
    pub(super) session: SessionKey,
    pub(super) instance: Instance,
    pub(super) fence: Fence,
    /// Granted by the registry, which lists it as far as this hub knows.
    pub(super) firm: bool,
    /// A claim for it whose outcome is not known: asked again under its own id (O5).
    pub(super) claim: Option<Box<Claim>>,
    /// Another hub says who took it over, and the registry has not said yet.
    pub(super) told: Option<Told>,
    /// When its agent last did not take the epoch that it was given.
    pub(super) refused_at: Option<Instant>,
    pub(super) connectors: Vec<ConnectorAd>,
    /// Advertised too, but only an earlier grant allowed it.
    pub(super) held_back: Vec<ConnectorAd>,
    pub(super) earlier: Earlier,
    pub(super) connectors_generation: u64,
    pub(super) grant: AgentGrant,
    /// The grant ran out: nothing new is opened here.
    pub(super) expired: bool,
    /// The tunnel ends then, because its grant ran out.
    pub(super) close_at: Option<Instant>,
    /// The registry is being told of the connectors ...
    pub(super) telling: bool,
    /// ... which are others by now.
    pub(super) tell_again: bool,
    /// A fresh token of the agent is being judged.
    pub(super) judging: bool,
}

impl AttachmentState {
    /// What may be opened now (I4).
    pub(super) fn open_to(&self) -> &[ConnectorAd] {
        if self.expired { &[] } else { &self.connectors }
    }
}

/// An operation the registry was asked for.
#[derive(Debug)]
pub(super) struct PendingOp {
    pub(super) deadline: Instant,
    pub(super) what: Asked,
}

/// What a registry reply is for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asked {
    /// With the lease asked for: the configured one may be another by the reply.
    Renew {
        sent: Instant,
        lease: Duration,
    },
    Claim {
        conn: ConnKey,
        agent_id: AgentId,
    },
    Reclaim {
        agent_id: AgentId,
        session: SessionKey,
        claim_id: ClaimId,
        /// Asked before, under this id; the outcome is unknown.
        again: bool,
    },
    SetConnectors {
        agent_id: AgentId,
        fence: Fence,
    },
    Owners {
        agent_id: AgentId,
        /// What another hub had told by then.
        told: Option<Fence>,
    },
    Release {
        agent_id: AgentId,
    },
    Resign,
    Lookup {
        connector: Name,
    },
    Leases {
        replicas: BTreeSet<Name>,
        sent: Instant,
    },
    Sweep,
}

/// Remote candidates of a connector, as last looked up.
#[derive(Debug, Default)]
pub(super) struct Remote {
    pub(super) located: Vec<Located>,
    /// When it is asked again by itself; `None`: with the next renewal that succeeds.
    pub(super) next: Option<Instant>,
    pub(super) asking: bool,
    /// Listed before and not any more; asked when nothing else is left, until then.
    pub(super) faded: Vec<(Located, Instant)>,
    /// When what waits is answered from what is known, whatever the registry does (M4).
    pub(super) answer_by: Option<Instant>,
    /// Shards that wait for this lookup's answer, with their latest question.
    pub(super) wanted: BTreeMap<u8, u64>,
    /// What waits must not be answered by a lookup sent before.
    pub(super) again: bool,
}

/// A hub's control plane.
#[derive(Debug)]
pub struct Control {
    pub(super) config: Arc<HubConfig>,
    pub(super) run: HubRun,
    pub(super) rng: Rng,
    pub(super) handshakes: Due<ConnKey, Handshake>,
    pub(super) peers: Vec<PeerState>,
    /// The one session per peer hub.
    pub(super) links: BTreeMap<Name, SessionKey>,
    /// How their peers proved themselves.
    pub(super) proven: BTreeMap<SessionKey, Proven>,
    /// Runs of peers that gave way to other runs.
    pub(super) gave_way: GaveWay,
    pub(super) statuses: BTreeMap<SessionKey, Status>,
    pub(super) attachments: BTreeMap<AgentId, AttachmentState>,
    pub(super) epochs: Epochs,
    pub(super) pending: BTreeMap<Token, PendingOp>,
    /// Claims that were given up, for their late answers.
    pub(super) late_claims: BTreeMap<Token, AgentId>,
    /// When an agent's entries in the registry are looked after next.
    pub(super) upkeep: Due<AgentId, Upkeep>,
    /// What an outage of the registry left to look after.
    pub(super) recovery: Recovery,
    /// A floor of epochs that the registry let be known, and when.
    pub(super) floor: Option<(Instant, Epoch)>,
    pub(super) next_token: u64,
    pub(super) remote: BTreeMap<Name, Remote>,
    pub(super) registry_healthy: bool,
    pub(super) registry_failures: u32,
    pub(super) lease_until: Option<Instant>,
    /// The run to take the lease over from with the next renewal.
    pub(super) lease_seen: Option<Incarnation>,
    /// The run it was taken over from: dead, whatever a registry that lost data says.
    pub(super) lease_before: Option<Incarnation>,
    /// This run held the lease once: from then on it never takes over (O7).
    pub(super) lease_held: bool,
    /// The take-over at the start was tried.
    pub(super) lease_tried: bool,
    pub(super) renew_at: Option<Instant>,
    pub(super) sweep_at: Option<Instant>,
    /// When the next token of an attachment may run out.
    pub(super) expiry_at: Option<Instant>,
    pub(super) leaving: Option<Leaving>,
    /// It was told to end at once.
    pub(super) stopped: bool,
    /// Tunnels whose agents were told to go elsewhere because the token ran out.
    pub(super) running_out: BTreeSet<SessionKey>,
    /// Links that end when their last stream does, or at their deadline.
    pub(super) quitting: BTreeMap<SessionKey, Option<Instant>>,
    /// Links changed: what other hubs hold is looked at again as a whole.
    pub(super) routes_dirty: bool,
    pub(super) last_status: Option<Status>,
    pub(super) published: Published,
    pub(super) told: super::shadow::Told,
}

impl Control {
    pub(super) fn new(config: Arc<HubConfig>, incarnation: Incarnation, seed: &Seed, now: Instant) -> Self {
        let peers = config
            .peers
            .iter()
            .enumerate()
            .map(|(ix, p)| {
                let link = Link::new(config.backoff, seed.fork(&format!("peer {ix}")), now);
                PeerState::new(link, p, &config.replica_id, None)
            })
            .collect();
        Self {
            run: HubRun { replica_id: config.replica_id.clone(), incarnation },
            rng: seed.fork("control").rng(),
            handshakes: Due::default(),
            peers,
            links: BTreeMap::new(),
            proven: BTreeMap::new(),
            gave_way: GaveWay::default(),
            statuses: BTreeMap::new(),
            attachments: BTreeMap::new(),
            epochs: Epochs::new(config.limits.max_sessions as usize + EPOCHS_MORE),
            pending: BTreeMap::new(),
            late_claims: BTreeMap::new(),
            upkeep: Due::default(),
            recovery: Recovery::default(),
            floor: None,
            next_token: 0,
            remote: BTreeMap::new(),
            registry_healthy: false,
            registry_failures: 0,
            lease_until: None,
            lease_seen: None,
            lease_before: None,
            lease_held: false,
            lease_tried: false,
            renew_at: None,
            sweep_at: None,
            expiry_at: None,
            leaving: None,
            stopped: false,
            running_out: BTreeSet::new(),
            quitting: BTreeMap::new(),
            routes_dirty: true,
            last_status: None,
            published: Published::default(),
            told: super::shadow::Told::default(),
            config,
        }
    }

    /// Dials every peer and takes the lease, as the mode demands.
    pub(super) fn start(&mut self, now: Instant, out: &mut NodeOut) {
        if self.config.mode == Mode::Off {
            for p in &mut self.peers {
                p.link.on_event(now, crate::link::Event::Disabled);
            }
            return;
        }
        for (ix, _) in self.peers.iter().enumerate().filter(|(_, p)| p.itself) {
            out.observed.push(Observed::PeerIsSelf { peer: target(ix).0 });
        }
        for ix in 0..self.peers.len() {
            self.dial(ix, out);
        }
        self.join_registry(now, out);
    }

    /// This hub's run.
    pub(super) const fn run(&self) -> &HubRun {
        &self.run
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &HubConfig {
        &self.config
    }

    /// Whether the registry answered lately (always in `off`).
    #[must_use]
    pub fn registry_healthy(&self) -> bool {
        let cached = planted::on(47) && self.lease_held;
        self.config.mode == Mode::Off || self.registry_healthy || cached
    }

    pub(super) fn has_candidate(&self, connector: &Name, mux: &Mux) -> bool {
        let up = |c: &Candidate| !c.is_faded() && mux.get(c.session).is_some_and(|e| e.conn.is_some());
        self.published.of(connector).any(up) || planted::on(2024)
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
        let Some(entry) = mux.get(key) else { return };
        let plane = entry.plane;
        match frame {
            Frame::GoAway { code, retry_after_ms } => {
                if let (Some(target), true) = (entry.dialled, retry_after_ms > 0)
                    && let Some(p) = self.peers.get_mut(usize::from(target.0))
                {
                    p.link.on_retry_after(now, Duration::from_millis(retry_after_ms));
                }
                if code.ends() == Ends::Session {
                    self.lose(now, key, code, mux, notes, out);
                }
            }
            // A hub speaks for itself only (I3).
            Frame::Epoch(notice) if plane == Plane::Mesh && entry.peer.name() != notice.replica_id.as_str() => {
                let e = ProtocolError::new(
                    crate::error::ProtocolErrorKind::Unexpected,
                    "an EPOCH in the name of another hub",
                );
                self.on_violation(now, key, &e, mux, notes, out);
            }
            Frame::Epoch(notice) if plane == Plane::Mesh => {
                self.on_epoch_notice(now, &notice, mux, notes, out);
            }
            Frame::Status(status) if plane == Plane::Mesh => {
                self.statuses.insert(key, status);
                self.routes_dirty = true;
                notes.push(ControlNote::InitialWindow { session: key, bytes: status.initial_window });
            }
            Frame::Epoch(notice) => self.on_epoch_refused(now, key, &notice, mux, notes, out),
            Frame::Connectors { generation, connectors } if plane == Plane::Tunnel => {
                self.on_connectors(now, key, generation, connectors, mux, notes, out);
            }
            Frame::Token { token } if plane == Plane::Tunnel => self.on_token(now, key, token, mux, out),
            Frame::Connectors { .. }
            | Frame::Token { .. }
            | Frame::Status(_)
            | Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::Auth(_)
            | Frame::Ack { .. }
            | Frame::Ping { .. }
            | Frame::Pong { .. }
            | Frame::Stream { .. } => {
                let e = ProtocolError::new(
                    crate::error::ProtocolErrorKind::Unexpected,
                    "a frame that this plane does not carry in this phase",
                );
                self.on_violation(now, key, &e, mux, notes, out);
            }
        }
    }

    /// A peer broke the protocol: its session ends, definitely.
    pub(super) fn on_violation(
        &mut self,
        now: Instant,
        key: SessionKey,
        e: &ProtocolError,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if let Some(entry) = mux.get(key) {
            out.observed.push(Observed::ProtocolViolation {
                plane: entry.plane,
                kind: e.kind,
                detail: e.detail.to_string(),
            });
        }
        self.lose(now, key, CloseCode::Protocol, mux, notes, out);
    }

    /// What became of a session's connection. `streams_wait`: a shard has
    /// streams on it, as a hint.
    pub(super) fn on_session_news(
        &mut self,
        now: Instant,
        news: SessionNews,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        streams_wait: bool,
        out: &mut NodeOut,
    ) {
        match news {
            SessionNews::Suspended { key, cause } => {
                let Some(entry) = mux.get(key) else { return };
                if let Some(target) = entry.dialled
                    && let Some(p) = self.peers.get_mut(usize::from(target.0))
                {
                    p.link.set_streams_wait(now, streams_wait);
                    p.link.on_event(now, crate::link::Event::Lost);
                }
                if entry.resume_window.is_zero() {
                    self.lose(now, key, cause, mux, notes, out);
                }
            }
            SessionNews::Over { key, cause } => self.lose(now, key, cause, mux, notes, out),
        }
    }

    /// Ends a session for ever, with everything that depends on it.
    pub(super) fn lose(
        &mut self,
        now: Instant,
        key: SessionKey,
        cause: CloseCode,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let Some(entry) = mux.remove(key, cause, out) else { return };
        self.routes_dirty |= entry.plane == Plane::Mesh;
        self.statuses.remove(&key);
        self.proven.remove(&key);
        self.quitting.remove(&key);
        self.running_out.remove(&key);
        self.forget_untold(key);
        notes.push(ControlNote::SessionLost { session: key });
        match &entry.peer {
            Peer::Agent { id, .. } => {
                if self.attachments.get(id).is_some_and(|a| a.session == key)
                    && let Some(a) = self.attachments.remove(id)
                {
                    self.own_route_changed(id);
                    notes.push(ControlNote::Detach { agent_id: id.clone(), fence: a.fence });
                    out.observed.push(Observed::Detached { agent_id: id.clone(), epoch: a.fence.epoch, cause });
                    self.forget_attachment(now, id, &a, out);
                }
            }
            Peer::Hub { replica_id, .. } => {
                if self.links.get(replica_id) == Some(&key) {
                    self.links.remove(replica_id);
                    self.gave_way.forget(replica_id);
                }
                let known = self.peers.iter().any(|p| p.replica.as_ref() == Some(replica_id));
                for p in &mut self.peers {
                    if !known && p.replica.is_none() {
                        // It may have stood for this address.
                        p.lost_at = Some(entry.suspended_at.unwrap_or(now));
                    }
                    // Of those that may have led to it each asks its peer anew.
                    if if known { p.replica.as_ref() == Some(replica_id) } else { p.covered } {
                        // The peer's own dial may have carried it: now it is ours to dial.
                        p.covered = false;
                        p.lost_at = Some(entry.suspended_at.unwrap_or(now));
                        p.link.set_streams_wait(now, false);
                        p.link.on_event(now, crate::link::Event::Lost);
                    }
                }
                self.rest_links(now, mux);
            }
        }
    }

    /// A note from the shard.
    pub(super) fn on_shard_note(
        &mut self,
        now: Instant,
        note: ShardNote,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        match note {
            ShardNote::NeedRoute { connector, afresh, question } => {
                self.on_need_route(now, connector, afresh, question, notes, out);
            }
            ShardNote::Misbehaved { session, code } => {
                if let Some(entry) = mux.get(session) {
                    out.observed.push(Observed::ProtocolViolation {
                        plane: entry.plane,
                        kind: crate::error::ProtocolErrorKind::BadCid,
                        detail: format!("stream rules broken: {code}"),
                    });
                }
                self.lose(now, session, code, mux, notes, out);
            }
            ShardNote::NotOwner { agent_id } => self.on_not_owner(now, &agent_id),
            ShardNote::Drained => {}
        }
    }

    /// What this hub wants its peers to know of it.
    pub(super) fn status(&self) -> Status {
        Status {
            registry_healthy: self.registry_serves(),
            draining: self.is_draining(),
            active: self.config.mode == Mode::Active && !self.is_closed(),
            initial_window: self.config.limits.stream_window_initial_bytes,
        }
    }

    /// Tells every session, if the status changed.
    pub(super) fn broadcast_status(&mut self, now: Instant, mux: &mut Mux, out: &mut NodeOut) {
        let status = self.status();
        if self.last_status == Some(status) {
            return;
        }
        self.last_status = Some(status);
        let mut keys: Vec<SessionKey> = mux.iter().map(|(k, _)| k).collect();
        if planted::on(56) {
            planted::hash_order(&mut keys);
        }
        for key in keys {
            mux.send(now, key, Frame::Status(self.status_to(key)), out);
        }
    }

    pub(super) fn shutdown(&mut self, now: Instant, mux: &mut Mux, notes: &mut Vec<ControlNote>, out: &mut NodeOut) {
        self.stopped = true;
        self.stop_recovery();
        if self.config.mode != Mode::Off {
            // Before the releases: with the lease every attachment goes from the
            // listings at once, and the process may end before all are answered.
            let op = RegistryOp::Resign { hub: self.run.clone() };
            self.ask(now, op, Asked::Resign, out);
            self.renew_at = None;
            self.lease_until = None;
        }
        let keys: BTreeSet<SessionKey> = mux.iter().map(|(k, _)| k).collect();
        for key in keys {
            self.lose(now, key, CloseCode::Shutdown, mux, notes, out);
        }
        for p in &mut self.peers {
            p.link.on_event(now, crate::link::Event::Shutdown);
        }
        self.upkeep = Due::default();
    }

    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        for ix in 0..self.peers.len() {
            let Some(p) = self.peers.get_mut(ix) else { continue };
            if p.link.handle_timeout(now) == Some(crate::link::Action::Dial) {
                self.dial(ix, out);
            }
        }
        self.expire_handshakes(now, mux, out);
        self.registry_timeouts(now, mux, notes, out);
        self.keep_up(now, mux, out);
        self.expire_tokens(now, mux, notes, out);
        self.drain_timeouts(now, mux, notes, out);
        self.broadcast_status(now, mux, out);
    }

    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        let mut d = self.peers.iter().filter(|p| !p.itself).filter_map(|p| p.link.poll_timeout()).min();
        let quit = self.quitting.values().filter_map(|at| *at).min();
        d = Deadline::earliest(d, quit.map(|at| Deadline { at, why: "link of a removed peer" }));
        d = Deadline::earliest(d, self.handshakes.next().map(|at| Deadline { at, why: "handshake" }));
        d = Deadline::earliest(
            d,
            self.pending.first_key_value().map(|(_, p)| Deadline { at: p.deadline, why: "registry operation" }),
        );
        d = Deadline::earliest(d, self.renew_at.map(|at| Deadline { at, why: "lease renewal" }));
        d = Deadline::earliest(d, self.upkeep.next().map(|at| Deadline { at, why: "registry upkeep" }));
        d = Deadline::earliest(d, self.next_answer().map(|at| Deadline { at, why: "answer without the registry" }));
        d = Deadline::earliest(d, self.sweep_at.map(|at| Deadline { at, why: "registry sweep" }));
        d = Deadline::earliest(d, self.expiry_at.map(|at| Deadline { at, why: "token expiry" }));
        d = Deadline::earliest(d, self.next_of_drain());
        Deadline::earliest(d, self.next_lookup().map(|at| Deadline { at, why: "registry lookup" }))
    }

    pub(super) fn new_session_id(&mut self) -> SessionId {
        SessionId(self.rng.next_u128())
    }

    pub(super) fn no_route(&self) -> RstCode {
        if self.config.mode == Mode::Active && !self.registry_healthy {
            RstCode::RegistryDown
        } else {
            RstCode::NoRoute
        }
    }

    pub(super) fn check_invariants(&self, mux: &Mux) {
        for (agent, a) in &self.attachments {
            let entry = mux.get(a.session).expect("an attachment has a session (B5)");
            assert!(matches!(&entry.peer, Peer::Agent { id, .. } if id == agent), "of its own agent (I1)");
        }
        for (replica, key) in &self.links {
            let entry = mux.get(*key).expect("a link has a session (B5)");
            assert!(
                matches!(&entry.peer, Peer::Hub { replica_id, .. } if replica_id == replica),
                "to its own hub (I3)"
            );
        }
        self.check_routes();
        self.check_recovery();
        self.check_proofs();
        let mesh = mux.iter().filter(|(_, e)| e.plane == Plane::Mesh).count();
        assert_eq!(mesh, self.links.len(), "one session per hub pair (L4)");
        assert!(self.gave_way.len() <= self.links.len(), "runs of linked replicas only");
    }
}

/// Which peer a dial goes to, as an index.
pub(super) fn target(ix: usize) -> TargetIx {
    TargetIx(u16::try_from(ix).unwrap_or(u16::MAX))
}

//! Tunnels: an agent's HELLO, the claim of its attachment, its connectors and
//! its end. Keeps I1 and I4 (what a token allows), O1 (one attachment per
//! agent and hub), O2 (epochs never fall, with or without a registry).

use super::control::{Asked, AttachmentState, Control};
use super::flap::Away;
use super::handshake::{Claiming, Stage};
use super::scope::{Earlier, allowed, part};
use crate::config::Mode;
use crate::error::{CloseCode, RstCode};
use crate::id::{AgentId, ClaimId, ConnKey, Epoch, Fence, Instance, Name, Nonce, SessionKey};
use crate::mux::{Mux, NodeOut, Peer};
use crate::observed::Observed;
use crate::planted;
use crate::principal::AgentGrant;
use crate::registry::{Claim, Located, RegistryError, RegistryOp, RegistryReply, RegistryResult, provisional_epoch};
use crate::session::Session;
use crate::shard::{Attach, ControlNote, SessionUp};
use crate::time::Instant;
use crate::wire::{Attachment, ConnectorAd, Frame, Hello, HelloAgent, HelloRole, Plane, encode_message};

fn names(connectors: &[ConnectorAd]) -> Vec<Name> {
    connectors.iter().map(|ad| ad.name.clone()).collect()
}

impl Control {
    pub(super) fn on_agent_hello(
        &mut self,
        now: Instant,
        conn: ConnKey,
        hello: Hello,
        grant: AgentGrant,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let HelloRole::Agent(agent) = &hello.role else {
            return self.refuse_handshake(now, conn, CloseCode::Protocol, "a hub's HELLO on /tunnel", mux, out);
        };
        if !agent.agent_id.covered_by_subject(&grant.subject) {
            let detail = "the token's sub is not this agent_id (or its part before '/')";
            return self.refuse_handshake(now, conn, CloseCode::Auth, detail, mux, out);
        }
        if !agent.connectors.iter().all(|ad| allowed(&grant, &ad.name, self.config.insecure_allow_unscoped)) {
            let detail = "HELLO names a connector outside the token's claim `connectors`";
            return self.refuse_handshake(now, conn, CloseCode::Auth, detail, mux, out);
        }
        if self.is_draining() && hello.resume.is_none() {
            return self.refuse_handshake(now, conn, CloseCode::Draining, "this hub is draining", mux, out);
        }
        if let Some(request) = hello.resume.clone() {
            let wanted = Peer::Agent { id: agent.agent_id.clone(), instance: agent.instance };
            return self.resume(now, conn, &hello, &request, &wanted, Some(grant), mux, notes, out);
        }
        if self.attachments.get(&agent.agent_id).is_some_and(|a| {
            a.instance == agent.instance && mux.get(a.session).is_some_and(|e| agent.sessions.contains(&e.session.id()))
        }) {
            let detail = "the agent is attached here over another of its addresses";
            return self.refuse_handshake(now, conn, CloseCode::Duplicate, detail, mux, out);
        }
        // Resumptions are not counted: a full hub must not lose what it has.
        if self.is_full(mux) && !self.attachments.contains_key(&agent.agent_id) {
            return self.refuse_handshake(now, conn, CloseCode::Busy, "limits.max_sessions is reached", mux, out);
        }
        if self.config.mode == Mode::Off {
            // Who is not here is nowhere.
            self.learn_holders(&agent.agent_id, &[]);
        }
        let away = self.epochs.turns(&agent.agent_id).and_then(|t| t.send_away(now, agent.instance));
        if let Some(away) = away {
            let agent_id = agent.agent_id.clone();
            return self.turn_away(now, conn, agent_id, away, mux, out);
        }
        let claim = self.new_claim(agent);
        let (nonce, agent_id) = (claim.nonce, claim.agent_id.clone());
        let alone = Fence { epoch: self.provisional(now, agent), nonce };
        if let Some(h) = self.handshakes.get_mut(conn) {
            h.stage = Stage::Claim(Box::new(Claiming { hello, grant, claim: Box::new(claim.clone()) }));
        }
        if self.config.mode == Mode::Off {
            return self.attach(now, conn, alone, true, Vec::new(), None, mux, notes, out);
        }
        if !self.ask(now, RegistryOp::Claim(Box::new(claim)), Asked::Claim { conn, agent_id }, out) {
            self.attach_provisionally(now, conn, false, mux, notes, out);
        }
    }

    /// The highest epoch that the agent or this hub has seen.
    fn seen(&self, agent: &HelloAgent) -> Epoch {
        let own = self.epochs.highest(&agent.agent_id);
        if planted::on(2) { own } else { agent.seen.max(own) }
    }

    /// Without the registry: max(seen) + 1, no wall clock (semantics 4).
    fn provisional(&self, now: Instant, agent: &HelloAgent) -> Epoch {
        let own = self.epochs.highest(&agent.agent_id);
        let seen = if planted::on(2) { own } else { agent.seen };
        provisional_epoch(own, seen, self.known_floor(now))
    }

    fn new_claim(&mut self, agent: &HelloAgent) -> Claim {
        Claim {
            agent_id: agent.agent_id.clone(),
            instance: agent.instance,
            hub: self.run.clone(),
            claim_id: ClaimId(self.rng.next_u128()),
            nonce: Nonce(self.rng.next_u64()),
            seen: self.seen(agent),
            granted: self.epochs.granted(&agent.agent_id),
            connectors: agent.connectors.clone(),
        }
    }

    /// Claims a second time, under another id, while the first answer may still
    /// come (planted bug 3). False if it did so before or nobody waits.
    pub(super) fn claim_again(&mut self, now: Instant, what: &Asked, out: &mut NodeOut) -> bool {
        let Asked::Claim { conn, .. } = what else { return false };
        let Some(Stage::Claim(c)) = self.handshakes.get(*conn).map(|h| &h.stage) else { return false };
        let HelloRole::Agent(agent) = c.hello.role.clone() else { return false };
        if self.pending.values().any(|p| p.what == *what) {
            return false;
        }
        let claim = self.new_claim(&agent);
        self.ask(now, RegistryOp::Claim(Box::new(claim)), what.clone(), out)
    }

    /// Another instance of the agent holds its id, or it comes too often.
    fn turn_away(
        &mut self,
        now: Instant,
        conn: ConnKey,
        agent_id: AgentId,
        away: Away,
        mux: &mut Mux,
        out: &mut NodeOut,
    ) {
        let (cause, detail, wait) = match away {
            Away::Duplicate(wait) => {
                // The incumbent may be gone by then: it is asked for, and the
                // other one told to come back no later than that can be known.
                let wait = wait.min(self.config.liveness.dead);
                if self.config.mode != Mode::Off {
                    let op = RegistryOp::Agent { agent_id: agent_id.clone() };
                    self.ask(now, op, Asked::Owners { agent_id: agent_id.clone(), told: None }, out);
                }
                out.observed.push(Observed::DuplicateAgentRefused { agent_id, retry_after: wait });
                (CloseCode::DuplicateId, "two live instances use this agent_id; the incumbent stays", wait)
            }
            Away::TooOften(wait) => (CloseCode::Busy, "this agent attaches afresh too often", wait),
        };
        self.refuse_for(now, conn, cause, detail, wait, mux, out);
    }

    /// Who holds the agent: its attachment here and those that the registry lists.
    pub(super) fn learn_holders(&mut self, agent_id: &AgentId, listed: &[Located]) {
        let here = self.attachments.get(agent_id).map(|a| a.instance);
        if let Some(turns) = self.epochs.turns(agent_id) {
            turns.held_only_by(listed.iter().map(|l| l.instance).chain(here));
        }
    }

    /// This instance holds the agent now.
    pub(super) fn learn_holder(
        &mut self,
        now: Instant,
        agent_id: &AgentId,
        instance: Instance,
        before: Option<Instance>,
        out: &mut NodeOut,
    ) {
        let Some(turns) = self.epochs.turns(agent_id) else { return };
        if turns.held_by(now, instance, before) {
            out.observed.push(Observed::DuplicateAgent { agent_id: agent_id.clone() });
        }
    }

    pub(super) fn is_full(&self, mux: &Mux) -> bool {
        mux.len() >= self.config.limits.max_sessions as usize
    }

    /// The registry answered a claim, or will not.
    pub(super) fn on_claimed(
        &mut self,
        now: Instant,
        conn: ConnKey,
        agent_id: AgentId,
        result: RegistryResult,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        match result {
            Ok(RegistryReply::Claimed { epoch, nonce, .. }) if self.handshakes.get(conn).is_none() => {
                // The agent left meanwhile: what was claimed for it is nobody's. It
                // counts as one of its attachments (L8).
                self.learn_epoch(now, &agent_id, epoch, true);
                self.release_claimed(now, &agent_id, Fence { epoch, nonce }, out);
            }
            Ok(RegistryReply::Claimed { epoch, nonce, superseded }) => {
                self.attach(now, conn, Fence { epoch, nonce }, true, superseded, None, mux, notes, out);
            }
            Ok(_) | Err(RegistryError::Definite(_)) => {
                self.attach_provisionally(now, conn, false, mux, notes, out);
            }
            Err(RegistryError::Unknown(_)) if self.handshakes.get(conn).is_none() => self.orphan(now, agent_id),
            Err(RegistryError::Unknown(_)) => self.attach_provisionally(now, conn, true, mux, notes, out),
        }
    }

    /// The registry did not grant it, or did without our knowledge: then the
    /// claim is `open` and asked again, under its own id.
    fn attach_provisionally(
        &mut self,
        now: Instant,
        conn: ConnKey,
        open: bool,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let Some(Stage::Claim(c)) = self.handshakes.get(conn).map(|h| &h.stage) else { return };
        let HelloRole::Agent(agent) = &c.hello.role else { return };
        let epoch = self.provisional(now, agent);
        let claim = open.then(|| c.claim.clone());
        let fence = Fence { epoch, nonce: Nonce(self.rng.next_u64()) };
        self.attach(now, conn, fence, false, Vec::new(), claim, mux, notes, out);
    }

    #[expect(clippy::too_many_arguments, reason = "one attachment's facts, used once")]
    fn attach(
        &mut self,
        now: Instant,
        conn: ConnKey,
        fence: Fence,
        firm: bool,
        superseded: Vec<Located>,
        claim: Option<Box<Claim>>,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        // Only a connection that still waits for its claim is attached.
        if !matches!(self.handshakes.get(conn).map(|h| &h.stage), Some(Stage::Claim(_))) {
            return;
        }
        let Some(h) = self.handshakes.remove(conn) else { return };
        let Stage::Claim(claiming) = h.stage else { return };
        let Claiming { hello, grant, .. } = *claiming;
        let initial_window = hello.initial_window;
        let HelloRole::Agent(agent) = hello.role else { return };
        if self.is_full(mux) && !self.attachments.contains_key(&agent.agent_id) {
            // Others that said HELLO at the same time were answered first.
            if claim.is_some() {
                self.orphan(now, agent.agent_id);
            } else if firm {
                self.release(now, &agent.agent_id, fence, out);
            }
            return mux.close(conn, h.dialect, CloseCode::Busy, 0, out);
        }
        let before = superseded
            .iter()
            .map(|l| l.instance)
            .chain(self.attachments.get(&agent.agent_id).map(|a| a.instance))
            .find(|before| *before != agent.instance);
        if let Some(old) = self.attachments.get(&agent.agent_id)
            && !(planted::on(2008) && old.instance != agent.instance)
        {
            // Replaced by itself or superseded by another instance: either way
            // one attachment per agent and hub (O1).
            let key = old.session;
            self.lose(now, key, CloseCode::Superseded, mux, notes, out);
        }
        let granted = firm && self.config.mode != Mode::Off;
        self.learn_epoch(now, &agent.agent_id, fence.epoch, granted);
        self.learn_holder(now, &agent.agent_id, agent.instance, before, out);

        let config = self.new_session(h.dialect);
        let mut welcome = self.welcome(config.id);
        welcome.secret = Some(config.secret);
        welcome.attachment = Some(Attachment { epoch: fence.epoch, nonce: fence.nonce, firm });
        mux.post(conn, encode_message(h.dialect, 0, &[Frame::Welcome(Box::new(welcome))]), out);
        let seed = crate::rng::Seed(self.rng.bytes());
        let session = Session::new(config, seed, now);
        let peer = Peer::Agent { id: agent.agent_id.clone(), instance: agent.instance };
        let key = mux.establish(session, Plane::Tunnel, peer, None, conn, self.accepted_window());
        mux.send(now, key, Frame::Status(self.status_to(key)), out);

        notes.push(ControlNote::SessionUp(SessionUp {
            session: key,
            plane: Plane::Tunnel,
            peer: None,
            replica: None,
            initial_window,
        }));
        notes.push(ControlNote::Attach(Attach {
            agent_id: agent.agent_id.clone(),
            session: key,
            fence,
            connectors: names(&agent.connectors),
        }));
        let exposed = names(&agent.connectors);
        out.observed.push(Observed::SessionUp { plane: Plane::Tunnel, peer: agent.agent_id.as_str().to_owned() });
        out.observed.push(Observed::Attached {
            agent_id: agent.agent_id.clone(),
            epoch: fence.epoch,
            firm,
            takeover: before.is_some(),
            again: false,
        });
        self.broadcast_epoch(now, &self.notice(&agent.agent_id, agent.instance, fence, firm), mux, out);
        self.look_after(now, &agent.agent_id, firm);
        self.expiry_at = [self.expiry_at, grant.expires].into_iter().flatten().min();
        let agent_id = agent.agent_id.clone();
        self.attachments.insert(
            agent.agent_id,
            AttachmentState {
                session: key,
                instance: agent.instance,
                fence,
                firm,
                claim,
                told: None,
                refused_at: None,
                connectors: agent.connectors,
                held_back: Vec::new(),
                earlier: Earlier::default(),
                connectors_generation: 0,
                grant,
                expired: false,
                close_at: None,
                telling: false,
                tell_again: false,
                judging: false,
            },
        );
        self.own_route_changed(&agent_id);
        // Clients may be waiting for just this connector.
        self.answer_waiting(&exposed, notes);
    }

    /// An agent adds or withdraws connectors on a live tunnel.
    pub(super) fn on_connectors(
        &mut self,
        now: Instant,
        key: SessionKey,
        generation: u64,
        connectors: Vec<ConnectorAd>,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let unscoped = self.config.insecure_allow_unscoped;
        let Some(Peer::Agent { id: agent_id, .. }) = mux.get(key).map(|e| &e.peer) else { return };
        let Some(a) = self.attachments.get_mut(agent_id).filter(|a| a.session == key) else { return };
        if generation <= a.connectors_generation {
            return;
        }
        let (connectors, beyond) = part(&a.grant, connectors, unscoped);
        // What an earlier token allowed may be named again, and is not served:
        // an agent tells all it has whenever a target's check turns over.
        if !beyond.iter().all(|ad| a.earlier.allowed(&ad.name)) {
            return self.lose(now, key, CloseCode::Auth, mux, notes, out);
        }
        a.held_back = beyond;
        a.connectors_generation = generation;
        let before = std::mem::replace(&mut a.connectors, connectors);
        let stays = |ad: &ConnectorAd| a.connectors.iter().any(|new| new.name == ad.name);
        let gone = before.iter().filter(|ad| !stays(ad)).map(|ad| ad.name.clone()).collect();
        notes.push(ControlNote::Withdrawn { session: key, connectors: gone });
        let agent_id = agent_id.clone();
        self.publish_connectors(now, &agent_id, notes, out);
    }

    /// Tells the shard and the registry what may be opened at an attachment now.
    pub(super) fn publish_connectors(
        &mut self,
        now: Instant,
        agent_id: &AgentId,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let Some(a) = self.attachments.get(agent_id) else { return };
        let fence = a.fence;
        let exposed = names(a.open_to());
        notes.push(ControlNote::Attach(Attach {
            agent_id: agent_id.clone(),
            session: a.session,
            fence,
            connectors: exposed.clone(),
        }));
        let firm = a.firm;
        self.own_route_changed(agent_id);
        // An attachment that is not listed takes them along when it is claimed.
        if self.config.mode != Mode::Off && firm && !self.audit(now, agent_id, fence, out) {
            self.upkeep_by(agent_id, now.after(self.config.registry.renew_every));
        }
        self.answer_waiting(&exposed, notes);
    }

    /// The agent came back with another token: it counts from now on, also
    /// for what was advertised under the earlier one.
    pub(super) fn renew_grant(
        &mut self,
        now: Instant,
        agent_id: &AgentId,
        grant: AgentGrant,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let unscoped = self.config.insecure_allow_unscoped;
        let Some(a) = self.attachments.get_mut(agent_id) else { return };
        let before = a.open_to().to_vec();
        let mut all = std::mem::take(&mut a.connectors);
        all.append(&mut a.held_back);
        a.earlier.replaced(&a.grant, &grant, unscoped);
        (a.connectors, a.held_back) = if planted::on(54) { (all, Vec::new()) } else { part(&grant, all, unscoped) };
        a.expired = grant.expires.is_some_and(|at| at <= now);
        a.close_at = None;
        self.expiry_at = [self.expiry_at, grant.expires].into_iter().flatten().min();
        a.grant = grant;
        if a.open_to() != before {
            self.publish_connectors(now, agent_id, notes, out);
        }
    }

    /// Goes on with a suspended session, on either plane.
    #[expect(clippy::too_many_arguments, reason = "one resumption's facts, used in two places")]
    pub(super) fn resume(
        &mut self,
        now: Instant,
        conn: ConnKey,
        hello: &Hello,
        request: &crate::wire::ResumeRequest,
        wanted: &Peer,
        grant: Option<AgentGrant>,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let Some(dialect) = self.handshakes.get(conn).map(|h| h.dialect) else { return };
        let mut welcome = self.welcome(request.session);
        let key = mux.find(request.session);
        let accepted = key.and_then(|key| {
            let entry = mux.get_mut(key)?;
            // Only the dialler resumes, only as who it was, only in its encoding (attack 51).
            if entry.dialled.is_some() || entry.peer != *wanted || entry.session.dialect() != dialect {
                return None;
            }
            entry.session.accept_resume(now, request, &hello.challenge, &welcome.challenge).ok().map(|a| (key, a))
        });
        let Some((key, accept)) = accepted else {
            return self.refuse_handshake(
                now,
                conn,
                CloseCode::ResumeRefused,
                "no such session for this peer, proof or position",
                mux,
                out,
            );
        };
        self.handshakes.remove(conn);
        welcome.resumed = Some(accept);
        if let Peer::Agent { id, .. } = wanted {
            welcome.attachment = self.attachments.get(id).map(|a| Attachment {
                epoch: a.fence.epoch,
                nonce: a.fence.nonce,
                firm: a.firm,
            });
            if let Some(grant) = grant
                && self.attachments.get(id).is_some_and(|a| a.session == key)
            {
                self.renew_grant(now, id, grant, notes, out);
                self.need_not_leave(now, key, mux, out);
            }
        }
        mux.post(conn, encode_message(dialect, 0, &[Frame::Welcome(Box::new(welcome))]), out);
        if let Some(old) = mux.rebind(now, key, conn, out) {
            out.close.push((old, CloseCode::Superseded));
        }
        notes.push(ControlNote::InitialWindow { session: key, bytes: hello.initial_window });
        self.routes_dirty |= matches!(wanted, Peer::Hub { .. });
    }

    /// Lets streams that wait for one of these connectors, which this hub can
    /// reach by itself now, look at the routes again.
    fn answer_waiting(&mut self, connectors: &[Name], notes: &mut Vec<ControlNote>) {
        for connector in connectors {
            self.answer_wanted(connector, Ok(()), notes);
        }
    }

    /// What a stream without any candidate is told.
    pub(super) fn refusal(&self) -> RstCode {
        self.no_route()
    }
}

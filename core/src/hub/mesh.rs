//! Links: HELLO, WELCOME and AUTH between hubs, and which of two simultaneous
//! dials survives. Keeps L4 (one session per pair; the lower replica id's dial
//! survives); who a peer is, `proof.rs` judges.

use super::control::Control;
use super::handshake::{AcceptStep, Accepting, DialStep, Dialling, Handshake, Stage};
use super::proof::UNPROVEN;
use super::trust::Proven;
use super::twin::GAVE_WAY;
use crate::config::Mode;
use crate::error::CloseCode;
use crate::id::{ConnKey, Incarnation, Name, Secret, SessionKey, TargetIx};
use crate::link;
use crate::mux::{Mux, NodeOut, Peer};
use crate::observed::Observed;
use crate::planted;
use crate::principal::HubGrant;
use crate::session::{Session, SessionConfig};
use crate::shard::{ControlNote, SessionUp};
use crate::time::Instant;
use crate::wire::{Auth, Frame, Hello, HelloRole, Plane, Welcome, encode_message};

impl Control {
    pub(super) fn on_hub_hello(
        &mut self,
        now: Instant,
        conn: ConnKey,
        hello: Hello,
        grant: &HubGrant,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let HelloRole::Hub(peer) = &hello.role else {
            return self.refuse_handshake(now, conn, CloseCode::Protocol, "an agent's HELLO on /mesh", mux, out);
        };
        if self.config.mode == Mode::Off && hello.resume.is_none() {
            return self.refuse_handshake(now, conn, CloseCode::Draining, "this hub runs with ha.mode off", mux, out);
        }
        if peer.namespace != self.config.namespace {
            return self.refuse_handshake(now, conn, CloseCode::Namespace, "ha.namespace differs", mux, out);
        }
        if peer.replica_id == self.run.replica_id {
            self.find_itself(&hello.challenge, out);
            return self.refuse_handshake(now, conn, CloseCode::Itself, "the peer has our own ha.replica_id", mux, out);
        }
        // Where TLS asked for a certificate it must be the same hub's.
        if grant.dns_names.as_ref().is_some_and(|names| !self.proves(names, &peer.replica_id)) {
            return self.refuse_handshake(now, conn, CloseCode::Auth, UNPROVEN, mux, out);
        }
        let wanted = Peer::Hub { replica_id: peer.replica_id.clone(), incarnation: peer.incarnation };
        if let Some(request) = hello.resume.clone() {
            // The session stays as it is: who comes need not be its peer.
            if mux.find(request.session).is_some_and(|key| !self.may_go_on(key, &peer.replica_id, grant)) {
                return self.refuse_handshake(now, conn, CloseCode::ResumeRefused, UNPROVEN, mux, out);
            }
            return self.resume(now, conn, &hello, &request, &wanted, None, mux, notes, out);
        }
        if self.gave_way(&peer.replica_id, peer.incarnation, mux) {
            // It comes back no later than a death of the other one can be noticed.
            let wait = self.config.liveness.dead;
            return self.refuse_for(now, conn, CloseCode::DuplicateId, GAVE_WAY, wait, mux, out);
        }
        if let Some(key) = self.links.get(&peer.replica_id).copied() {
            let (listed, same_run, ours, up) = mux.get(key).map_or((false, false, false, false), |e| {
                (peer.sessions.contains(&e.session.id()), e.peer == wanted, e.dialled.is_some(), e.conn.is_some())
            });
            // Of two sessions the lower replica id's dial survives. A session the
            // peer does not list is dead there, unless it is our own dial's and
            // the peer may just not have heard of it when it said HELLO.
            if same_run && up && ours && self.run.replica_id < peer.replica_id {
                return self.refuse_handshake(now, conn, CloseCode::Duplicate, "our own dial survives", mux, out);
            }
            if same_run && up && listed {
                return self.refuse_handshake(now, conn, CloseCode::Duplicate, "the session is alive", mux, out);
            }
            // Suspended on both sides: our dial resumes it, with its streams. The
            // peer dials only because it heard of it after its own dial's refusal.
            if same_run && ours && listed {
                return self.refuse_handshake(now, conn, CloseCode::Duplicate, "our own dial resumes it", mux, out);
            }
        }
        if self.is_full(mux) && !self.links.contains_key(&peer.replica_id) {
            return self.refuse_handshake(now, conn, CloseCode::Busy, "limits.max_sessions is reached", mux, out);
        }
        let Some(dialect) = self.handshakes.get(conn).map(|h| h.dialect) else { return };
        let session = self.new_session(dialect);
        let mut welcome = self.welcome(session.id);
        welcome.secret = Some(session.secret);
        let (peer, initial_window, challenge) = (peer.clone(), hello.initial_window, hello.challenge);
        let exporter = grant.exporter;
        let step = AcceptStep::Signature;
        let chain = Vec::new();
        let accepting = Accepting { step, peer, initial_window, session, challenge, welcome, exporter, chain };
        self.prove_to_dialler(conn, Box::new(accepting), mux, out);
    }

    /// A HELLO that carries the challenge of one of our dials is that dial's
    /// own: the entry of `ha.mesh.peers` leads here and is not dialled any more.
    /// What a peer says of its name proves nothing yet, so a WELCOME or GOAWAY
    /// with our name is a dial that failed.
    fn find_itself(&mut self, challenge: &Secret<16>, out: &mut NodeOut) {
        let ours = |(_, h): (_, &Handshake)| match &h.stage {
            Stage::Welcome { target, challenge: c, .. } => (c == challenge).then_some(*target),
            Stage::Hello(_) | Stage::Claim(_) | Stage::Dialling(_) | Stage::Accepting(_) => None,
        };
        let Some(target) = self.handshakes.iter().find_map(ours) else { return };
        if let Some(p) = self.peers.get_mut(usize::from(target.0)) {
            p.itself = true;
            out.observed.push(Observed::PeerIsSelf { peer: target.0 });
        }
    }

    /// The peer we welcomed is who it says: the session exists on both sides.
    pub(super) fn accept_link(
        &mut self,
        now: Instant,
        conn: ConnKey,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let Some(h) = self.handshakes.remove(conn) else { return };
        let Stage::Accepting(a) = h.stage else { return };
        let Accepting { peer, initial_window, session, exporter, chain, .. } = *a;
        let proven = (!self.config.insecure_mesh).then(|| Proven::new(chain, exporter.is_some()));
        let wins = self.settle_duplicate(now, &peer.replica_id, peer.incarnation, false, mux, notes, out);
        if !wins {
            out.observed.push(Observed::HandshakeFailed {
                plane: Plane::Mesh,
                cause: CloseCode::Duplicate,
                detail: "of two simultaneous dials the other survives",
                target: None,
            });
            return mux.close(conn, h.dialect, CloseCode::Duplicate, 0, out);
        }
        self.establish_link(
            now,
            conn,
            session,
            peer.replica_id,
            peer.incarnation,
            initial_window,
            None,
            proven,
            mux,
            notes,
            out,
        );
    }

    pub(super) fn on_hub_welcome(
        &mut self,
        now: Instant,
        conn: ConnKey,
        welcome: Welcome,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let Some(h) = self.handshakes.get(conn) else { return };
        let Stage::Welcome { target, challenge, resume, peer } = &h.stage else { return };
        let (target, challenge, resume, tls) = (*target, *challenge, *resume, peer.clone());
        let ix = usize::from(target.0);
        if welcome.namespace != self.config.namespace {
            return self.refuse_handshake(now, conn, CloseCode::Namespace, "ha.namespace differs", mux, out);
        }
        if welcome.replica_id == self.run.replica_id {
            return self.refuse_handshake(now, conn, CloseCode::Itself, "the peer has our own ha.replica_id", mux, out);
        }
        let expected = self.config.peers.get(ix).and_then(|p| p.replica_id.clone());
        if expected.as_ref().is_some_and(|e| *e != welcome.replica_id) {
            let detail = "the peer's replica_id is not the one configured for this url";
            return self.refuse_handshake(now, conn, CloseCode::Auth, detail, mux, out);
        }
        if let (Some(key), Some(accept)) = (resume, &welcome.resumed) {
            let ok = self.may_go_on(key, &welcome.replica_id, &tls) && mux.get_mut(key).is_some_and(|e| {
                matches!(&e.peer, Peer::Hub { replica_id, incarnation } if *replica_id == welcome.replica_id && *incarnation == welcome.incarnation)
                    && e.session.on_resume_accepted(now, accept, &challenge, &welcome.challenge).is_ok()
            });
            if !ok {
                self.refuse_handshake(
                    now,
                    conn,
                    CloseCode::ResumeRefused,
                    "the acceptor's proof or position is wrong",
                    mux,
                    out,
                );
                return self.lose(now, key, CloseCode::ResumeRefused, mux, notes, out);
            }
            self.handshakes.remove(conn);
            self.link_up(now, target);
            if let Some(old) = mux.rebind(now, key, conn, out) {
                out.close.push((old, CloseCode::Superseded));
            }
            notes.push(ControlNote::InitialWindow { session: key, bytes: welcome.initial_window });
            self.routes_dirty = true;
            return;
        }
        if !self.is_wanted(ix) {
            let detail = "this link is not wanted any more";
            return self.refuse_handshake(now, conn, CloseCode::Draining, detail, mux, out);
        }
        if welcome.secret.is_none() {
            return self.refuse_handshake(now, conn, CloseCode::Protocol, "WELCOME without a secret", mux, out);
        }
        let dialling = Dialling { step: DialStep::Verdict, target, challenge, welcome, exporter: tls.exporter };
        self.judge_acceptor(now, conn, Box::new(dialling), mux, notes, out);
    }

    /// The peer we dialled is who it says: we confirm, and the session exists.
    pub(super) fn confirm_link(
        &mut self,
        now: Instant,
        conn: ConnKey,
        auth: Auth,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let dialled = |h: &Handshake| if let Stage::Dialling(d) = &h.stage { Some(d.target) } else { None };
        let Some(target) = self.handshakes.get(conn).and_then(dialled) else { return };
        if !self.is_wanted(usize::from(target.0)) {
            // A reload took the peer away while its WELCOME was judged.
            let detail = "this link is not wanted any more";
            return self.refuse_handshake(now, conn, CloseCode::Draining, detail, mux, out);
        }
        let Some(Handshake { dialect, stage: Stage::Dialling(d) }) = self.handshakes.remove(conn) else { return };
        let Dialling { welcome, exporter, .. } = *d;
        let Some(secret) = welcome.secret else { return };
        let signature = welcome.signature.filter(|_| !self.config.insecure_mesh);
        let proven = signature.map(|s| Proven::new(s.chain, exporter.is_some()));
        let ix = usize::from(target.0);
        if let Some(p) = self.peers.get_mut(ix) {
            p.replica = Some(welcome.replica_id.clone());
            p.covered = false;
        }
        self.uncover(now);
        let wins = self.settle_duplicate(now, &welcome.replica_id, welcome.incarnation, true, mux, notes, out);
        if !wins {
            // The session the peer dialled survives; ours was never confirmed.
            mux.close(conn, dialect, CloseCode::Duplicate, 0, out);
            let survivor = self.links.get(&welcome.replica_id).and_then(|key| mux.get(*key));
            let same = survivor.is_some_and(
                |e| matches!(&e.peer, Peer::Hub { incarnation, .. } if *incarnation == welcome.incarnation),
            );
            if same {
                self.dial_covered(now, target, mux);
            } else {
                // Another process under that name: its address is not the link's.
                self.on_dial_failed(now, target, out);
            }
            return;
        }
        mux.post(conn, encode_message(dialect, 0, &[Frame::Auth(Box::new(auth))]), out);
        let mut session = self.new_session(dialect);
        session.id = welcome.session;
        session.secret = secret;
        self.link_up(now, target);
        self.establish_link(
            now,
            conn,
            session,
            welcome.replica_id,
            welcome.incarnation,
            welcome.initial_window,
            Some(target),
            proven,
            mux,
            notes,
            out,
        );
    }

    /// With an older session to this replica: may the new one replace it?
    /// The lower replica id's dial survives; a session of an earlier run of
    /// the peer, or one without a connection, gives way at once.
    fn settle_duplicate(
        &mut self,
        now: Instant,
        replica: &Name,
        incarnation: Incarnation,
        new_is_ours: bool,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) -> bool {
        let Some(key) = self.links.get(replica).copied() else { return true };
        let Some(entry) = mux.get(key) else { return true };
        let same_run = matches!(&entry.peer, Peer::Hub { incarnation: i, .. } if *i == incarnation);
        let old_is_ours = entry.dialled.is_some();
        let lower_dials = if self.run.replica_id < *replica { new_is_ours } else { !new_is_ours };
        let lower_dials = lower_dials && !planted::on(39);
        if same_run && entry.conn.is_some() && old_is_ours != new_is_ours && !lower_dials {
            return false;
        }
        if planted::on(40) && same_run && entry.conn.is_some() {
            return true;
        }
        if self.gave_way(replica, incarnation, mux) {
            return false;
        }
        let (before, runs) = (entry.peer.clone(), std::mem::take(&mut self.gave_way));
        self.lose(now, key, CloseCode::Duplicate, mux, notes, out);
        self.gave_way = runs;
        if let Peer::Hub { incarnation: old, .. } = before
            && !same_run
        {
            self.gave_way.to(replica, old, incarnation);
        }
        true
    }

    /// Our dial was in vain because a session with that peer is alive. Which
    /// peer that is may not be known yet (no `replica_id` configured and it
    /// dialled us first): if no address is known of one link only, it is that
    /// one. Of several it is one of them, and dialled again when one is over.
    pub(super) fn dial_covered(&mut self, now: Instant, target: TargetIx, mux: &mut Mux) {
        let ix = usize::from(target.0);
        self.take_over_address(now, target, mux);
        let unclaimed: Vec<Name> = self.unclaimed().map(|(replica, _)| replica.clone()).collect();
        let Some(p) = self.peers.get_mut(ix) else { return };
        p.dialling = false;
        if p.replica.is_none() {
            match unclaimed.as_slice() {
                [only] => p.replica = Some(only.clone()),
                several => p.covered = !several.is_empty(),
            }
        }
        let known = p.replica.as_ref().and_then(|r| self.links.get(r)).is_some_and(|k| mux.get(*k).is_some());
        p.link.on_event(now, if known || p.covered { link::Event::Up } else { link::Event::Failed });
        self.uncover(now);
    }

    /// Another address led to the peer that answered here when its session was
    /// dialled (a name that pointed elsewhere for a while, N11). From now on the
    /// session is dialled here; where the other address leads by now is found
    /// out anew, or its own hub would be without a link for as long as that
    /// session lives (L4). Not where several sessions may be meant: a wrong guess
    /// would cost a session at its next resumption.
    fn take_over_address(&mut self, now: Instant, target: TargetIx, mux: &mut Mux) {
        let ix = usize::from(target.0);
        let Some(known) = self.peers.get(ix).map(|p| p.replica.clone()) else { return };
        // The refusal may be for a dial of the peer's own, which overtook the news
        // that it survives: then which peer this is will be known soon.
        let accepting = |(_, h): (_, &Handshake)| matches!(h.stage, Stage::Accepting(_));
        if known.is_none() && (self.unclaimed().next().is_some() || self.handshakes.iter().any(accepting)) {
            return;
        }
        let elsewhere = |key: SessionKey| {
            let other = mux.get(key)?.dialled.filter(|t| *t != target)?;
            let open = self.config.peers.get(usize::from(other.0)).is_some_and(|p| p.replica_id.is_none());
            (open && self.is_wanted(usize::from(other.0))).then_some(other)
        };
        let meant = self.links.iter().filter(|(replica, _)| known.as_ref().is_none_or(|known| known == *replica));
        let mut meant = meant.filter_map(|(replica, key)| Some((replica.clone(), *key, elsewhere(*key)?)));
        let (Some((replica, key, other)), None) = (meant.next(), meant.next()) else { return };
        if let Some(p) = self.peers.get_mut(usize::from(other.0)) {
            p.replica = None;
            p.lost_at = Some(now);
            p.link.on_event(now, link::Event::Lost);
        }
        if let (Some(e), Some(p)) = (mux.get_mut(key), self.peers.get_mut(ix)) {
            e.dialled = Some(target);
            p.replica = Some(replica);
        }
    }

    /// The links of which no address is known.
    pub(super) fn unclaimed(&self) -> impl Iterator<Item = (&Name, SessionKey)> {
        let known = |r: &Name| self.peers.iter().any(|p| p.replica.as_ref() == Some(r));
        self.links.iter().filter(move |(r, _)| !known(r)).map(|(r, key)| (r, *key))
    }

    /// An address was learned: are there links left for all that stand for one?
    fn uncover(&mut self, now: Instant) {
        let covered = self.peers.iter().filter(|p| p.covered).count();
        if covered > self.unclaimed().count() {
            for p in self.peers.iter_mut().filter(|p| p.covered) {
                p.covered = false;
                p.lost_at = Some(now);
                p.link.on_event(now, link::Event::Lost);
            }
        }
    }

    fn link_up(&mut self, now: Instant, target: TargetIx) {
        if let Some(p) = self.peers.get_mut(usize::from(target.0)) {
            p.dialling = false;
            p.link.set_streams_wait(now, false);
            p.link.on_event(now, link::Event::Up);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one link's facts, used in two places")]
    fn establish_link(
        &mut self,
        now: Instant,
        conn: ConnKey,
        config: SessionConfig,
        replica_id: Name,
        incarnation: Incarnation,
        initial_window: u64,
        dialled: Option<TargetIx>,
        proven: Option<Proven>,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let seed = crate::rng::Seed(self.rng.bytes());
        let session = Session::new(config, seed, now);
        let peer = Peer::Hub { replica_id: replica_id.clone(), incarnation };
        let window = if dialled.is_some() { self.config.resume_window } else { self.accepted_window() };
        let key: SessionKey = mux.establish(session, Plane::Mesh, peer, dialled, conn, window);
        mux.send(now, key, Frame::Status(self.status_to(key)), out);
        if dialled.is_none() {
            // Whoever dialled, the link to that replica is up: no dial in vain.
            for p in self.peers.iter_mut().filter(|p| p.replica.as_ref() == Some(&replica_id)) {
                if !p.dialling {
                    p.link.on_event(now, link::Event::Up);
                }
            }
        }
        out.observed.push(Observed::SessionUp { plane: Plane::Mesh, peer: replica_id.as_str().to_owned() });
        self.links.insert(replica_id.clone(), key);
        if let Some(proven) = proven {
            self.proven.insert(key, proven);
        }
        self.routes_dirty = true;
        notes.push(ControlNote::SessionUp(SessionUp {
            session: key,
            plane: Plane::Mesh,
            peer: Some(incarnation),
            replica: Some(replica_id),
            initial_window,
        }));
        self.look_up_all(now, out);
    }
}

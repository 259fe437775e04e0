//! What the hub said and did, held against the rules: what one session hears of
//! others (I1, I2), what clients get (S1 to S4), and bounds and identities that
//! hold between any two inputs (B3, B5, I1, I3).

use bytes::Bytes;
use nowconnect_core::id::{Cid, ConnKey, Epoch, Fence, Name, Nonce, SockKey};
use nowconnect_core::link::State;
use nowconnect_core::mux::Peer as Behind;
use nowconnect_core::principal::Principal;
use nowconnect_core::shard::{Shard, SockOp};
use nowconnect_core::wire::{Body, DATA_PAYLOAD_MAX_BYTES, Frame, Plane, WireLimits, decode};

use super::{BUDGET_BYTES, SESSIONS_MAX, STREAMS_MAX, Side, World};
use crate::peer::{Peer, proof};
use crate::tape::says;

impl World {
    /// What the hub said on a connection.
    pub(super) fn observe(&mut self, key: ConnKey, message: &Bytes) {
        let Some(ix) = self.conns.iter().position(|c| c.key == key) else { return };
        if !self.conns[ix].open {
            return;
        }
        if let (Some(s), false) = (self.conns[ix].session, self.conns[ix].shaking) {
            let frames = self.sides[s].peer.hear(message);
            for frame in frames.into_iter().flatten() {
                self.judge(s, &frame);
            }
            return;
        }
        let mut frames = Vec::new();
        let dialect = self.conns[ix].dialect;
        decode(dialect, message, &WireLimits::ESTABLISHED, &mut frames).expect("the hub speaks the dialect");
        let c = &mut self.conns[ix];
        match frames.pop() {
            Some(Frame::Hello(hello)) => {
                c.challenge = hello.challenge;
                c.resume = hello.resume.as_ref().map(|r| (r.session, r.attempt));
                c.received = hello.resume.map(|r| r.received);
            }
            Some(Frame::Auth(_)) => c.shaking = false,
            Some(Frame::Welcome(w)) => {
                let known = self.sides.iter().position(|s| s.peer.id == w.session);
                let scope = match &c.principal {
                    Principal::Agent(g) => g.connectors.clone(),
                    Principal::Hub(_) => None,
                };
                let s = known.unwrap_or(self.sides.len());
                if let Some(secret) = w.secret {
                    assert!(known.is_none(), "a session id is used twice");
                    let peer = Peer::new(u128::from(key.ix) << 32, dialect, w.session, secret, c.window);
                    self.sides.push(Side { peer, agent: None, scopes: Vec::new() });
                }
                let side = &mut self.sides[s];
                if let Some(r) = &w.resumed {
                    let label = b"nowconnect resume accept v1\0";
                    let p = &side.peer;
                    let challenges = [&c.challenge.0, &w.challenge.0];
                    let right = proof(&p.secret, label, p.id, c.resume.map_or(0, |(_, n)| n), r.received, &challenges);
                    assert!(right == r.proof, "the hub's half of a resumption is wrong");
                    assert!(r.received <= p.sent, "the hub received what was never sent");
                    self.replay.extend(p.unheard(r.received).into_iter().map(|m| (key, m)));
                }
                side.scopes.push(scope);
                if let Some(a) = &w.attachment {
                    side.peer.fences = vec![Fence { epoch: a.epoch, nonce: a.nonce }];
                }
                c.session = Some(s);
                // A hub that dialled says AUTH before its session begins.
                c.shaking = dialect.plane == Plane::Mesh && w.resumed.is_none();
            }
            _ => {}
        }
    }

    /// What one session hears of others (I1, I2).
    fn judge(&mut self, s: usize, frame: &Frame) {
        let Frame::Stream { cid, body, .. } = frame else { return };
        if self.cast.cids.len() < 64 && !self.cast.cids.contains(cid) {
            self.cast.cids.push(*cid);
        }
        match body {
            Body::Open(open) if self.sides[s].peer.dialect.plane == Plane::Tunnel => {
                let side = &mut self.sides[s];
                let may = |scope: &Option<Vec<Name>>| {
                    scope.as_ref().map_or(self.unscoped, |names| names.contains(&open.connector))
                };
                assert!(side.scopes.iter().any(may), "an OPEN outside the token's scope (I1)");
                let agent = side.agent.get_or_insert_with(|| open.agent_id.clone());
                assert_eq!(*agent, open.agent_id, "one session, two agents (I1)");
            }
            Body::Data { off, bytes } => {
                let mine = cid.incarnation() == self.hub.run().incarnation;
                let owner = self.cids.iter().find(|(c, _)| c == cid).map(|(_, client)| *client);
                let client = owner.is_some_and(|client| says(self.clients[client].tag, *off, bytes));
                let others = || self.sides.iter().enumerate().filter(|(i, _)| *i != s);
                let fits = client || others().any(|(_, side)| side.peer.is_source_of(*cid, *off, bytes));
                assert!(fits, "bytes on {cid} (the hub's own: {mine}) that no end of it said (I2, S1)");
            }
            Body::Open(_)
            | Body::OpenAck { .. }
            | Body::Credit { .. }
            | Body::Fin { .. }
            | Body::Rst { .. }
            | Body::Resume(_) => {}
        }
    }

    /// Carries out what the hub wants and looks at what it is.
    pub(super) fn settle(&mut self) {
        for (i, c) in self.clients.iter().enumerate().filter(|(_, c)| !c.over) {
            if let Some(stream) = self.hub.stream(c.stream)
                && stream.cid != Cid(0)
                && !self.cids.contains(&(stream.cid, i))
            {
                self.cids.push((stream.cid, i));
            }
        }
        assert!(self.out.targets.is_empty(), "a hub connects no targets");
        self.dials.append(&mut self.out.dial);
        self.asked.append(&mut self.out.registry);
        self.notes.take(&mut self.out.notes);
        self.proofs.append(&mut self.out.proofs);
        self.tokens.extend(self.out.tokens.drain(..).map(|(session, _)| session));
        for c in self.conns.iter_mut().filter(|c| c.session.is_none()) {
            if self.hub.mux().carried_by(c.key).is_some()
                && let Some(side) = c.welcomed.take()
            {
                (c.session, c.shaking) = (Some(side), true);
            }
        }
        self.out.wake.clear();
        self.out.observed.clear();
        for (sock, op) in std::mem::take(&mut self.out.socks) {
            self.sock_op(sock, &op);
        }
        for (key, _) in std::mem::take(&mut self.out.close) {
            self.transmit(key, usize::MAX);
        }
        self.hub.check_invariants();
        self.look();
    }

    pub(super) fn sock_op(&mut self, sock: SockKey, op: &SockOp) {
        let Some(ix) = self.clients.iter().position(|c| c.sock == sock) else {
            assert!(matches!(op, SockOp::Abort(_)), "an operation on a client that was never accepted");
            return;
        };
        let (tag_off, over) = (self.clients[ix].got, self.clients[ix].over);
        let c = &mut self.clients[ix];
        if std::mem::take(&mut c.aborted) && matches!(op, SockOp::Abort(_)) {
            return;
        }
        assert!(!over, "{op:?} after the end of its client (S4)");
        match op {
            SockOp::Write(bytes) => {
                assert!(!c.shut, "bytes after the end of a half (S2)");
                c.got += bytes.len() as u64;
                c.unwritten += bytes.len() as u64;
                let own = || self.cids.iter().filter(|(_, client)| *client == ix).map(|(cid, _)| *cid);
                let said = own().any(|cid| self.sides.iter().any(|s| s.peer.is_source_of(cid, tag_off, bytes)));
                assert!(said, "a client gets bytes that no agent of its stream said (I1, S1)");
            }
            SockOp::ShutDown => assert!(!std::mem::replace(&mut c.shut, true), "two ends of one half"),
            SockOp::Readable => {}
            SockOp::Abort(_) => c.over = true,
            SockOp::Close => {
                assert!(c.ended, "a client that goes on writing is closed (S3)");
                c.over = true;
            }
        }
    }

    /// What readiness and gauges say of links is what sessions are (L6).
    pub(super) fn judge_links(&self) {
        let links = self.hub.control().links(self.hub.mux());
        for l in &links {
            let up = l.session.and_then(|key| self.hub.mux().get(key)).is_some_and(|e| e.conn.is_some());
            assert_eq!(l.state == State::Established, up, "a link is shown as it is not (L6)");
            assert!(!(up && l.is_missed(self.now)), "an established link is missed (L6)");
        }
        let whole = links.iter().all(|l| l.state == State::Established);
        assert!(self.hub.mesh_healthy(self.now) || !whole, "every link is there and the mesh unhealthy (L6)");
    }

    pub(super) fn look(&mut self) {
        self.cast.fences.truncate(1);
        self.cast.fences.extend(self.hub.control().tunnels().map(|t| t.fence));
        self.cast.fences.extend((0..2).map(|n| Fence { epoch: Epoch(100 + n), nonce: Nonce(9) }));
        let held = self.hub.mux().budget().held();
        // Two halves and a frame of each, in the larger encoding.
        let frame = (DATA_PAYLOAD_MAX_BYTES as u64 * 4).div_ceil(3) + 256;
        let most = BUDGET_BYTES + frame * u64::from(2 * STREAMS_MAX + SESSIONS_MAX);
        assert!(held <= most, "{held} bytes are held with a budget of {BUDGET_BYTES} (B3)");
        assert!(self.hub.streams() <= STREAMS_MAX as usize, "more streams than allowed");
        // A shard hears of the end of a session by a note.
        let heard = self.hub.notes_under_way() == 0;
        for a in self.hub.shards().iter().flat_map(Shard::attachments).filter(|_| heard) {
            assert!(self.hub.mux().get(a.session).is_some(), "an attachment outlives its session (B5)");
        }
        for (_, e) in self.hub.mux().iter() {
            let Some(c) = e.conn.and_then(|key| self.conns.iter().find(|c| c.key == key)) else { continue };
            match (&e.peer, &c.principal) {
                (Behind::Agent { id, .. }, Principal::Agent(grant)) => {
                    assert!(id.covered_by_subject(&grant.subject), "an agent under another's token (I1)");
                }
                (Behind::Hub { replica_id, .. }, Principal::Hub(grant)) => {
                    let named = |names: &Vec<String>| {
                        let host = |n: &String| n == "z.example" && replica_id.as_str() == "hub-z";
                        names.iter().any(|n| n == replica_id.as_str() || host(n))
                    };
                    assert!(
                        c.dialled || grant.dns_names.as_ref().is_none_or(named),
                        "a hub under another's certificate (I3)"
                    );
                    let proved = self.insecure || c.resume.is_some() || named(&c.proved);
                    assert!(proved, "a hub that did not prove its name (I3)");
                }
                _ => panic!("a session of the wrong plane (I3)"),
            }
        }
    }
}

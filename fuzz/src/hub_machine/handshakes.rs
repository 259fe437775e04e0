//! How the hostile get in: connections they open or are dialled on, HELLO,
//! WELCOME and AUTH, right or spoiled, and resumptions. Judges nothing.

use std::time::Duration;

use nowconnect_core::id::{ConnKey, Epoch, Instance, Secret, SessionId};
use nowconnect_core::identity::{Proof, Verified};
use nowconnect_core::mux::Input;
use nowconnect_core::principal::{AgentGrant, HubGrant, Principal};
use nowconnect_core::wire::{
    Auth, Codec, Dialect, Frame, Hello, HelloAgent, HelloHub, HelloRole, Plane, ResumeAccept, Signature, Welcome,
    encode_message,
};

use super::{CONNS_MAX, Conn, Side, World};
use crate::peer::{Peer, ads, agent, name, proof};
use crate::tape::Tape;

/// Stands for any signature: what it is worth the verdict says.
fn signature() -> Signature {
    Signature { chain: vec!["AAAA".to_owned()], scheme: name("ed25519"), signature: "AAAA".to_owned() }
}

impl World {
    fn dialect(tape: &mut Tape<'_>, plane: Plane) -> Dialect {
        Dialect { codec: if tape.one_in(3) { Codec::JsonV1 } else { Codec::BinaryV2 }, plane }
    }

    fn connect(&mut self, dialect: Dialect, principal: Principal, dialled: bool) -> ConnKey {
        let (n, key) = self.key();
        let challenge = Secret([n as u8; 16]);
        self.conns.push(Conn {
            key,
            dialect,
            open: true,
            principal,
            challenge,
            session: None,
            resume: None,
            window: 0,
            received: None,
            dialled,
            shaking: true,
            proved: Vec::new(),
            welcomed: None,
        });
        key
    }

    /// Answers the oldest wish for a signature or a verdict, or one that nobody has.
    pub(super) fn prove(&mut self, tape: &mut Tape<'_>) {
        if self.proofs.is_empty() {
            return;
        }
        let late = tape.one_in(8);
        let (conn, proof) = self.proofs.remove(if late { tape.below(self.proofs.len()) } else { 0 });
        let input = match proof {
            Proof::Sign { .. } if tape.one_in(16) => Input::Signed { conn, result: Err("no key") },
            Proof::Sign { .. } => Input::Signed { conn, result: Ok(signature()) },
            Proof::Verify { .. } if tape.one_in(8) => Input::Verified { conn, result: Err("it does not fit") },
            Proof::Verify { statements, .. } => {
                let all = ["hub-b", "hub-z", "hub-x", "z.example", "hub-bb", "*"];
                let names: Vec<String> = all.iter().skip(tape.below(6)).map(|n| (*n).to_owned()).collect();
                if let Some(c) = self.conns.iter_mut().find(|c| c.key == conn) {
                    c.proved.clone_from(&names);
                }
                Input::Verified { conn, result: Ok(Verified { names, statement: tape.below(statements.len()) }) }
            }
        };
        self.input(input);
        self.settle();
    }

    /// A fresh token of an agent is no good, another's, or allows nothing at all.
    pub(super) fn judge_token(&mut self, tape: &mut Tape<'_>) {
        let session = self.tokens.remove(tape.below(self.tokens.len()));
        let subject = tape.pick(&["a", "b", "a/x"]).unwrap_or("a").to_owned();
        let expires = tape.one_in(2).then(|| self.now.after(Duration::from_secs(3)));
        let grant = (!tape.one_in(2)).then(|| AgentGrant { subject, connectors: Some(Vec::new()), expires });
        self.input(Input::Judged { session, grant });
        self.settle();
    }

    pub(super) fn accept(&mut self, tape: &mut Tape<'_>) {
        self.conns.retain(|c| c.open);
        if self.conns.len() >= CONNS_MAX {
            return;
        }
        let (plane, principal) = if tape.one_in(3) {
            let dns_names = (!tape.one_in(2)).then(|| vec![if tape.one_in(4) { "hub-x" } else { "hub-b" }.to_owned()]);
            (Plane::Mesh, Principal::Hub(HubGrant { dns_names, exporter: None }))
        } else {
            let subject = tape.pick(&["a", "b", "a/x"]).unwrap_or("a").to_owned();
            let scope = |set: usize| self.cast.connectors.iter().take(set).cloned().collect();
            let connectors = if tape.one_in(3) { None } else { Some(scope(3 - tape.below(3))) };
            let expires = tape.one_in(8).then(|| self.now.after(Duration::from_secs(3)));
            (Plane::Tunnel, Principal::Agent(AgentGrant { subject, connectors, expires }))
        };
        let dialect = Self::dialect(tape, plane);
        let conn = self.connect(dialect, principal.clone(), false);
        self.input(Input::Accepted { conn, dialect, principal });
        self.settle();
        if !tape.one_in(8) {
            let ix = self.conns.len() - 1;
            self.say_hello(tape, ix);
        }
    }

    pub(super) fn hello(&mut self, tape: &mut Tape<'_>) {
        let ix = tape.below(self.conns.len());
        if ix < self.conns.len() {
            self.say_hello(tape, ix);
        }
    }

    /// HELLO, or AUTH where that is next; resuming if the tape wants and can.
    fn say_hello(&mut self, tape: &mut Tape<'_>, ix: usize) {
        let Some(c) = self.conns.get(ix).filter(|c| c.open) else { return };
        let (dialect, challenge, key, principal) = (c.dialect, c.challenge, c.key, c.principal.clone());
        if c.session.is_some() && c.shaking {
            // To a hub that dialled it is one frame too many.
            self.conns[ix].shaking = c.dialled;
            let signature = (!tape.one_in(16)).then(signature);
            let auth = encode_message(dialect, 0, &[Frame::Auth(Box::new(Auth { signature }))]);
            return self.deliver(key, &auth);
        }
        let fitting: Vec<usize> = (0..self.sides.len()).filter(|s| self.sides[*s].peer.dialect == dialect).collect();
        let resumed = if tape.one_in(2) { tape.pick(&fitting) } else { None };
        let resume = resumed.map(|s| self.sides[s].peer.resume_request(tape, &challenge));
        if self.hub.mux().carried_by(key).is_none() {
            self.conns[ix].resume = resume.as_ref().map(|r| (r.session, r.attempt));
        }
        let role = if (dialect.plane == Plane::Tunnel) != tape.one_in(32) {
            let subject = match &principal {
                Principal::Agent(g) => agent(&g.subject),
                Principal::Hub(_) => agent("a"),
            };
            HelloRole::Agent(HelloAgent {
                agent_id: if tape.one_in(4) { self.cast.agents[tape.below(3)].clone() } else { subject },
                instance: Instance(tape.below(2) as u64),
                connectors: ads(tape, &self.cast),
                seen: Epoch(if tape.one_in(4) { tape.number() } else { 0 }),
                sessions: self.sides.iter().map(|s| s.peer.id).take(tape.below(3)).collect(),
            })
        } else {
            HelloRole::Hub(HelloHub {
                replica_id: tape.pick(&["hub-b", "hub-z", "hub-x", "hub-m"]).map_or_else(|| name("hub-b"), name),
                incarnation: tape.pick(&self.cast.incarnations).unwrap_or_default(),
                namespace: name(if tape.one_in(16) { "elsewhere" } else { "default" }),
                region: tape.one_in(2).then(|| name("eu")),
                sessions: self.sides.iter().map(|s| s.peer.id).take(tape.below(3)).collect(),
            })
        };
        let initial_window = if tape.one_in(3) { tape.number() } else { 32_768 };
        if let Some(side) = resumed.and_then(|s| self.sides.get_mut(s)) {
            side.peer.window = side.peer.window.max(initial_window);
        }
        let hello = Hello { role, challenge, initial_window, capabilities: Vec::new(), resume };
        self.conns[ix].window = initial_window;
        let hello = encode_message(dialect, 0, &[Frame::Hello(Box::new(hello))]);
        self.deliver(key, &hello);
    }

    /// The answer to a dial of the hub.
    pub(super) fn dialled(&mut self, tape: &mut Tape<'_>) {
        if self.dials.is_empty() {
            return;
        }
        let target = self.dials.remove(tape.below(self.dials.len()));
        if tape.one_in(3) {
            return self.input(Input::DialFailed { target });
        }
        let dialect = Self::dialect(tape, Plane::Mesh);
        let dns_names = tape.one_in(4).then(|| vec!["hub-b".to_owned()]);
        let peer = HubGrant { dns_names, exporter: tape.one_in(4).then_some([1; 32]) };
        let conn = self.connect(dialect, Principal::Hub(peer.clone()), true);
        self.input(Input::Connected { target, conn, dialect, peer });
    }

    /// WELCOME on a connection that the hub dialled.
    pub(super) fn welcome(&mut self, tape: &mut Tape<'_>) {
        let dialled: Vec<usize> =
            (0..self.conns.len()).filter(|i| self.conns[*i].open && self.conns[*i].session.is_none()).collect();
        let Some(ix) = tape.pick(&dialled) else { return };
        self.transmit(self.conns[ix].key, usize::MAX);
        let (n, _) = self.key();
        let c = &self.conns[ix];
        if c.session.is_some() || self.hub.mux().carried_by(c.key).is_some() {
            return;
        }
        let mine = Secret([n as u8; 16]);
        let wanted = c.resume.filter(|_| !tape.one_in(4)).map(|(id, _)| id);
        let wanted_from = c.received;
        let side = self.sides.iter().position(|s| Some(s.peer.id) == wanted);
        let resumed = side.and_then(|s| self.sides.get(s)).map(|s| {
            let received = s.peer.received;
            let label = b"nowconnect resume accept v1\0";
            let attempt = c.resume.map_or(1, |(_, attempt)| attempt);
            let challenges = [&c.challenge.0, &mine.0];
            ResumeAccept { received, proof: proof(&s.peer.secret, label, s.peer.id, attempt, received, &challenges) }
        });
        let initial_window = if tape.one_in(3) { tape.number() } else { 32_768 };
        let (id, secret) = (SessionId(u128::from(n)), Secret([n as u8; 32]));
        let welcome = Welcome {
            replica_id: tape.pick(&["hub-b", "hub-z", "hub-x", "hub-m"]).map_or_else(|| name("hub-b"), name),
            incarnation: tape.pick(&self.cast.incarnations).unwrap_or_default(),
            namespace: name(if tape.one_in(16) { "elsewhere" } else { "default" }),
            region: None,
            session: side.map_or(id, |s| self.sides[s].peer.id),
            secret: resumed.is_none().then_some(secret),
            resumed,
            attachment: None,
            resume_window_ms: tape.number(),
            challenge: mine,
            initial_window,
            capabilities: Vec::new(),
            signature: (!tape.one_in(16)).then(signature),
        };
        let ix_of_side = side.unwrap_or(self.sides.len());
        if side.is_none() {
            let peer = Peer::new(u128::from(n), c.dialect, id, secret, initial_window);
            self.sides.push(Side { peer, agent: None, scopes: Vec::new() });
        }
        let key = c.key;
        let welcome = encode_message(c.dialect, 0, &[Frame::Welcome(Box::new(welcome))]);
        self.deliver(key, &welcome);
        self.settle();
        self.conns[ix].welcomed = side.is_none().then_some(ix_of_side);
        while !self.proofs.is_empty() && !tape.one_in(8) {
            self.prove(tape);
        }
        // Only the hub knows whether it took it.
        if self.hub.mux().carried_by(key).is_some() {
            let c = &mut self.conns[ix];
            (c.session, c.shaking, c.welcomed) = (Some(ix_of_side), side.is_none(), None);
            if let Some(received) = wanted_from {
                self.replay.extend(self.sides[ix_of_side].peer.unheard(received).into_iter().map(|m| (key, m)));
            }
        }
    }
}

//! Who a peer hub is: signatures under WELCOME and AUTH, and which names of a
//! certificate may speak for which replica. Keeps I3: no frame of a link is
//! looked at before both sides have proved who they are, and a hub speaks for
//! itself only (attacks 26 to 30). Keys and certificates are the driver's:
//! it is asked, and answers with an input. It must not know what a link is for.

use bytes::Bytes;

use super::control::Control;
use super::handshake::{AcceptStep, Accepting, DialStep, Dialling, Held, Stage};
use crate::config::PeerConfig;
use crate::error::CloseCode;
use crate::id::{ConnKey, Name, Secret};
use crate::identity::{Party, Proof, Signer, Statement, Verified};
use crate::mux::{Mux, NodeOut};
use crate::planted;
use crate::shard::ControlNote;
use crate::time::Instant;
use crate::wire::{Auth, Dialect, Frame, Signature, encode_message};

/// Why a peer is refused that shows a certificate.
pub(super) const UNPROVEN: &str =
    "no dNSName in the peer's certificate is its replica_id or the host configured for it";
/// Why a peer is refused that shows none.
const UNSIGNED: &str = "the peer does not sign: ha.mesh.tls is missing there";

impl Control {
    /// May these names of a certificate speak for this replica? Exactly its id,
    /// or the host of a peer configured with it: no part of a name, no wildcard
    /// (planted bug 55).
    pub(super) fn proves(&self, names: &[String], replica: &Name) -> bool {
        if planted::on(55) {
            return names.iter().any(|n| n.contains(replica.as_str()));
        }
        names.iter().filter(|n| !n.contains('*')).any(|n| {
            let configured = |p: &PeerConfig| p.replica_id.as_ref() == Some(replica) && p.host.as_ref() == Some(n);
            n == replica.as_str() || self.config.peers.iter().any(configured)
        })
    }

    const fn ourselves<'a>(&'a self, challenge: &'a Secret<16>) -> Party<'a> {
        Party { replica_id: &self.run.replica_id, incarnation: self.run.incarnation, challenge }
    }

    /// What is signed in a handshake that we accepted.
    fn statement_to(&self, a: &Accepting, signer: Signer) -> Vec<u8> {
        let p = &a.peer;
        let statement = Statement {
            signer,
            dialler: Party { replica_id: &p.replica_id, incarnation: p.incarnation, challenge: &a.challenge },
            acceptor: self.ourselves(&a.welcome.challenge),
            namespace: &self.config.namespace,
            dialect: a.session.dialect,
            exporter: a.exporter.as_ref(),
        };
        statement.to_bytes()
    }

    /// What is signed in a handshake that we dialled.
    fn statement_from(&self, d: &Dialling, dialect: Dialect, signer: Signer, bound: bool) -> Vec<u8> {
        let w = &d.welcome;
        let statement = Statement {
            signer,
            dialler: self.ourselves(&d.challenge),
            acceptor: Party { replica_id: &w.replica_id, incarnation: w.incarnation, challenge: &w.challenge },
            namespace: &self.config.namespace,
            dialect,
            exporter: d.exporter.as_ref().filter(|_| bound),
        };
        statement.to_bytes()
    }

    /// A HELLO was taken: WELCOME follows, with our signature.
    pub(super) fn prove_to_dialler(&mut self, conn: ConnKey, a: Box<Accepting>, mux: &mut Mux, out: &mut NodeOut) {
        let insecure = self.config.insecure_mesh;
        if !insecure {
            let statement = self.statement_to(&a, Signer::Acceptor);
            out.proofs.push((conn, Proof::Sign { statement }));
        }
        let Some(h) = self.handshakes.get_mut(conn) else { return };
        h.stage = Stage::Accepting(a);
        if insecure {
            self.welcome_hub(conn, None, mux, out);
        }
    }

    fn welcome_hub(&mut self, conn: ConnKey, signature: Option<Signature>, mux: &mut Mux, out: &mut NodeOut) {
        let Some(h) = self.handshakes.get_mut(conn) else { return };
        let Stage::Accepting(a) = &mut h.stage else { return };
        a.step = AcceptStep::Auth;
        let mut welcome = a.welcome.clone();
        welcome.signature = signature;
        mux.post(conn, encode_message(h.dialect, 0, &[Frame::Welcome(Box::new(welcome))]), out);
    }

    /// A WELCOME for a new session came: is it the peer's?
    pub(super) fn judge_acceptor(
        &mut self,
        now: Instant,
        conn: ConnKey,
        d: Box<Dialling>,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let Some(dialect) = self.handshakes.get(conn).map(|h| h.dialect) else { return };
        let insecure = self.config.insecure_mesh;
        if !insecure {
            let Some(signature) = d.welcome.signature.clone() else {
                return self.refuse_handshake(now, conn, CloseCode::Auth, UNSIGNED, mux, out);
            };
            // Only the acceptor knows whether TLS ends there. If it does, what it
            // signs is bound to this very connection, and nobody between can
            // make it sign less. If it does not, it signs no exporter.
            let bound = d.exporter.is_some().then_some(true);
            let sign = |bound| self.statement_from(&d, dialect, Signer::Acceptor, bound);
            let statements = bound.into_iter().chain([false]).map(sign).collect();
            out.proofs.push((conn, Proof::Verify { statements, signature }));
        }
        if let Some(h) = self.handshakes.get_mut(conn) {
            h.stage = Stage::Dialling(d);
        }
        if insecure {
            self.confirm_link(now, conn, Auth::default(), mux, notes, out);
        }
    }

    /// The peer we welcomed says AUTH: is it the peer's?
    pub(super) fn on_hub_auth(
        &mut self,
        now: Instant,
        conn: ConnKey,
        auth: Auth,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if self.config.insecure_mesh {
            return self.accept_link(now, conn, mux, notes, out);
        }
        let Some(signature) = auth.signature else {
            return self.refuse_handshake(now, conn, CloseCode::Auth, UNSIGNED, mux, out);
        };
        let Some(Stage::Accepting(a)) = self.handshakes.get(conn).map(|h| &h.stage) else { return };
        // One statement: where TLS ends here, it ends here for the dialler too,
        // or something is between.
        let statements = vec![self.statement_to(a, Signer::Dialler)];
        let chain = signature.chain.clone();
        out.proofs.push((conn, Proof::Verify { statements, signature }));
        if let Some(Stage::Accepting(a)) = self.handshakes.get_mut(conn).map(|h| &mut h.stage) {
            a.chain = chain;
            a.step = AcceptStep::Verdict(Held::default());
        }
    }

    /// The driver signed for us, or cannot.
    pub(super) fn on_signed(
        &mut self,
        now: Instant,
        conn: ConnKey,
        result: Result<Signature, &'static str>,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let accepting = match self.handshakes.get(conn).map(|h| &h.stage) {
            Some(Stage::Accepting(a)) if matches!(a.step, AcceptStep::Signature) => true,
            Some(Stage::Dialling(d)) if d.step == DialStep::Signature => false,
            Some(
                Stage::Accepting(_) | Stage::Dialling(_) | Stage::Hello(_) | Stage::Claim(_) | Stage::Welcome { .. },
            )
            | None => return,
        };
        match result {
            Err(detail) => self.refuse_handshake(now, conn, CloseCode::Auth, detail, mux, out),
            Ok(signature) if accepting => self.welcome_hub(conn, Some(signature), mux, out),
            Ok(signature) => self.confirm_link(now, conn, Auth { signature: Some(signature) }, mux, notes, out),
        }
    }

    /// The verdict on a peer's signature. Returns what an accepted peer has
    /// said since its AUTH.
    pub(super) fn on_verified(
        &mut self,
        now: Instant,
        conn: ConnKey,
        result: Result<Verified, &'static str>,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) -> Vec<Bytes> {
        let replica = match self.handshakes.get(conn).map(|h| &h.stage) {
            Some(Stage::Accepting(a)) if matches!(a.step, AcceptStep::Verdict(_)) => &a.peer.replica_id,
            Some(Stage::Dialling(d)) if d.step == DialStep::Verdict => &d.welcome.replica_id,
            Some(
                Stage::Accepting(_) | Stage::Dialling(_) | Stage::Hello(_) | Stage::Claim(_) | Stage::Welcome { .. },
            )
            | None => return Vec::new(),
        };
        let statement =
            match result.and_then(|v| if self.proves(&v.names, replica) { Ok(v.statement) } else { Err(UNPROVEN) }) {
                Ok(statement) => statement,
                Err(detail) => {
                    self.refuse_handshake(now, conn, CloseCode::Auth, detail, mux, out);
                    return Vec::new();
                }
            };
        let Some(h) = self.handshakes.get_mut(conn) else { return Vec::new() };
        match &mut h.stage {
            Stage::Accepting(a) => {
                let AcceptStep::Verdict(held) = &mut a.step else { return Vec::new() };
                let held = held.take();
                self.accept_link(now, conn, mux, notes, out);
                held
            }
            Stage::Dialling(d) => {
                d.step = DialStep::Signature;
                if statement > 0 {
                    d.exporter = None;
                }
                let dialect = h.dialect;
                let Some(Stage::Dialling(d)) = self.handshakes.get(conn).map(|h| &h.stage) else { return Vec::new() };
                let statement = self.statement_from(d, dialect, Signer::Dialler, true);
                out.proofs.push((conn, Proof::Sign { statement }));
                Vec::new()
            }
            Stage::Hello(_) | Stage::Claim(_) | Stage::Welcome { .. } => Vec::new(),
        }
    }
}

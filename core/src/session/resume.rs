//! Proofs and attempt numbers of a resumption. What is proved is possession of
//! the session's secret, bound to this very pair of connections by both
//! challenges and to one attempt by its number, so that neither a recorded
//! HELLO nor a recorded WELCOME resumes anything (S8, attack 30).
//! It must not know what a session queues.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::id::{Secret, SessionId};
use crate::wire::{ResumeAccept, ResumeRequest};

const REQUEST_LABEL: &[u8] = b"nowconnect resume v1\0";
const ACCEPT_LABEL: &[u8] = b"nowconnect resume accept v1\0";

/// Attempt numbers of both roles; a session uses those of its own.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// Dialler: the latest attempt made.
    made: u64,
    /// Dialler: whether `made` still waits for its answer.
    awaiting: bool,
    /// Acceptor: the latest attempt accepted.
    accepted: u64,
}

impl Attempts {
    pub(super) const fn next(&mut self) -> u64 {
        self.made += 1;
        self.awaiting = true;
        self.made
    }

    pub(super) const fn awaited(&self) -> Option<u64> {
        if self.awaiting { Some(self.made) } else { None }
    }

    pub(super) const fn answered(&mut self) {
        self.awaiting = false;
    }

    pub(super) fn is_new(&self, attempt: u64) -> bool {
        if crate::planted::on(2044) { attempt == self.accepted + 1 } else { attempt > self.accepted }
    }

    pub(super) const fn accept(&mut self, attempt: u64) {
        self.accepted = attempt;
    }
}

fn mac(secret: &Secret<32>, label: &[u8], session: SessionId, attempt: u64, received: u64) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0).expect("HMAC takes a key of any length");
    mac.update(label);
    mac.update(&session.0.to_be_bytes());
    mac.update(&attempt.to_be_bytes());
    mac.update(&received.to_be_bytes());
    mac
}

fn request_mac(secret: &Secret<32>, session: SessionId, attempt: u64, received: u64, d: &Secret<16>) -> Hmac<Sha256> {
    let mut mac = mac(secret, REQUEST_LABEL, session, attempt, received);
    mac.update(&d.0);
    mac
}

fn accept_mac(
    secret: &Secret<32>,
    session: SessionId,
    attempt: u64,
    received: u64,
    dialler_challenge: &Secret<16>,
    acceptor_challenge: &Secret<16>,
) -> Hmac<Sha256> {
    let mut mac = mac(secret, ACCEPT_LABEL, session, attempt, received);
    mac.update(&dialler_challenge.0);
    mac.update(&acceptor_challenge.0);
    mac
}

/// The dialler's proof.
pub(super) fn request_proof(
    secret: &Secret<32>,
    session: SessionId,
    attempt: u64,
    received: u64,
    challenge: &Secret<16>,
) -> Secret<32> {
    Secret(request_mac(secret, session, attempt, received, challenge).finalize().into_bytes().into())
}

/// Checks the dialler's proof in constant time.
pub(super) fn verify_request(
    secret: &Secret<32>,
    session: SessionId,
    req: &ResumeRequest,
    challenge: &Secret<16>,
) -> bool {
    request_mac(secret, session, req.attempt, req.received, challenge).verify_slice(&req.proof.0).is_ok()
}

/// The acceptor's proof.
pub(super) fn accept_proof(
    secret: &Secret<32>,
    session: SessionId,
    attempt: u64,
    received: u64,
    dialler_challenge: &Secret<16>,
    acceptor_challenge: &Secret<16>,
) -> Secret<32> {
    let mac = accept_mac(secret, session, attempt, received, dialler_challenge, acceptor_challenge);
    Secret(mac.finalize().into_bytes().into())
}

/// Checks the acceptor's proof in constant time.
pub(super) fn verify_accept(
    secret: &Secret<32>,
    session: SessionId,
    attempt: u64,
    accept: &ResumeAccept,
    dialler_challenge: &Secret<16>,
    acceptor_challenge: &Secret<16>,
) -> bool {
    accept_mac(secret, session, attempt, accept.received, dialler_challenge, acceptor_challenge)
        .verify_slice(&accept.proof.0)
        .is_ok()
}

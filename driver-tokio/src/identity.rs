//! A hub's proof of who it is to its peers (semantics 8, attacks 26 to 32):
//! signs with the mesh key, and judges chains and signatures of peers.
//!
//! Path building is webpki's, with its own budget of signatures; what comes in
//! is bounded before: at most eight certificates, in one message of 16 KiB.
//! Which name proves which replica is for the core to say. No part of a
//! certificate reaches a message or a log. Must not know connections.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nowconnect_core::id::Name;
use nowconnect_core::identity::Verified;
use nowconnect_core::wire::{CHAIN_MAX, Signature};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};

use crate::config::MeshTlsFiles;
use crate::tls::{self, TlsError};

/// The schemes a signature may have, best first: those TLS 1.3 signs with.
const SCHEMES: [(SignatureScheme, &str); 6] = [
    (SignatureScheme::ECDSA_NISTP256_SHA256, "ecdsa_secp256r1_sha256"),
    (SignatureScheme::ECDSA_NISTP384_SHA384, "ecdsa_secp384r1_sha384"),
    (SignatureScheme::ED25519, "ed25519"),
    (SignatureScheme::RSA_PSS_SHA512, "rsa_pss_rsae_sha512"),
    (SignatureScheme::RSA_PSS_SHA384, "rsa_pss_rsae_sha384"),
    (SignatureScheme::RSA_PSS_SHA256, "rsa_pss_rsae_sha256"),
];

/// The mesh key and certificate of this hub, and the CAs of its peers.
pub struct MeshIdentity {
    own: CertifiedKey,
    /// Ready for the wire.
    chain: Vec<String>,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl std::fmt::Debug for MeshIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshIdentity").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

impl MeshIdentity {
    /// Loads key, certificate and CAs.
    ///
    /// # Errors
    /// When a file cannot be used, or the chain is too long for the handshake.
    pub fn load(files: &MeshTlsFiles) -> Result<Self, TlsError> {
        let (cert_key, cert_file) = ("ha.mesh.tls.cert_file", files.cert_file.as_path());
        let own = tls::certified(cert_file, &files.key_file)?;
        let chain: Vec<String> = own.cert.iter().map(|c| STANDARD.encode(c)).collect();
        // HELLO's neighbours in WELCOME are small; half of a message is theirs.
        let bytes: usize = chain.iter().map(String::len).sum();
        if chain.len() > CHAIN_MAX || bytes > CHAIN_TEXT_MAX_BYTES {
            let problem = format!(
                "holds {} certificates, {bytes} bytes in base64; a peer takes {CHAIN_MAX} and {CHAIN_TEXT_MAX_BYTES}: \
                 keep the hub's own and its intermediates, without the root",
                chain.len()
            );
            return Err(TlsError::File { key: cert_key, path: cert_file.to_owned(), problem });
        }
        if own.key.choose_scheme(&SCHEMES.map(|(scheme, _)| scheme)).is_none() {
            let problem = "expected an EC P-256, EC P-384, Ed25519 or RSA key".to_owned();
            return Err(TlsError::File { key: "ha.mesh.tls.key_file", path: files.key_file.clone(), problem });
        }
        let roots = tls::bundle("ha.mesh.tls.ca_bundle", &files.ca_bundle)?;
        Ok(Self { own, chain, roots, algorithms: tls::provider().signature_verification_algorithms })
    }

    /// What an operator should know of the hub's own certificate: peers will
    /// judge it as [`MeshIdentity::verify`] does.
    #[must_use]
    pub fn doubts(&self, replica: &Name, now_unix: u64, cert_file: &Path) -> Vec<String> {
        let file = cert_file.display();
        let mut doubts = Vec::new();
        match self.own.cert.split_first() {
            None => {}
            Some((leaf, rest)) => match self.judge_chain(leaf, rest, now_unix) {
                Err(why) => doubts.push(format!("ha.mesh.tls.cert_file: {file}: peers will refuse it: {why}")),
                Ok(parsed) if !names(&parsed).any(|n| n == replica.as_str()) => doubts.push(format!(
                    "ha.mesh.tls.cert_file: {file}: no dNSName is this hub's ha.replica_id ({replica}): peers need an \
                     entry {{url, replica_id: {replica}}} in ha.mesh.peers whose host the certificate holds"
                )),
                Ok(_) => {}
            },
        }
        doubts
    }

    /// Signs a statement.
    ///
    /// # Errors
    /// When the key does not work.
    pub fn sign(&self, statement: &[u8]) -> Result<Signature, &'static str> {
        const BROKEN: &str = "our mesh key does not sign: ha.mesh.tls.key_file";
        let signer = self.own.key.choose_scheme(&SCHEMES.map(|(scheme, _)| scheme)).ok_or(BROKEN)?;
        let named = SCHEMES.iter().find(|(scheme, _)| *scheme == signer.scheme()).ok_or(BROKEN)?;
        let scheme = Name::new(named.1).map_err(|_| BROKEN)?;
        let signature = signer.sign(statement).map_err(|_| BROKEN)?;
        Ok(Signature { chain: self.chain.clone(), scheme, signature: STANDARD.encode(signature) })
    }

    /// Judges a peer's signature at `now_unix`, in seconds since 1970.
    ///
    /// # Errors
    /// The first rule it breaks, in fixed words.
    pub fn verify(
        &self,
        statements: &[Vec<u8>],
        signature: &Signature,
        now_unix: u64,
    ) -> Result<Verified, &'static str> {
        if signature.chain.is_empty() || signature.chain.len() > CHAIN_MAX {
            return Err("expected a chain of 1 to 8 certificates");
        }
        let scheme = SCHEMES.iter().find(|(_, name)| *name == signature.scheme.as_str());
        let scheme = scheme.ok_or("the signature has a scheme that is not accepted")?.0;
        let decode = |text: &String| STANDARD.decode(text).map_err(|_| "a certificate or signature is no base64");
        let chain: Vec<CertificateDer<'static>> =
            signature.chain.iter().map(|c| decode(c).map(Into::into)).collect::<Result<_, _>>()?;
        let signed = decode(&signature.signature)?;
        let (leaf, intermediates) = chain.split_first().ok_or("expected a chain of 1 to 8 certificates")?;
        let leaf = self.judge_chain(leaf, intermediates, now_unix)?;
        let algorithms = self.algorithms.mapping.iter().find(|(s, _)| *s == scheme).map_or(&[] as &[_], |(_, a)| *a);
        let fits = |statement: &Vec<u8>| {
            algorithms.iter().any(|algorithm| leaf.verify_signature(*algorithm, statement, &signed).is_ok())
        };
        let statement = statements.iter().position(fits).ok_or(
            "the signature does not fit this handshake: replayed, relayed, or something between two native ends of TLS",
        )?;
        Ok(Verified { names: names(&leaf).map(str::to_owned).collect(), statement })
    }

    /// Whether a chain that was accepted before, as it came, still would be.
    ///
    /// # Errors
    /// The first rule it breaks, in fixed words.
    pub fn stands(&self, chain: &[String], now_unix: u64) -> Result<(), &'static str> {
        let decode = |text: &String| STANDARD.decode(text).map(CertificateDer::from).map_err(|_| "no base64");
        let chain: Vec<CertificateDer<'static>> = chain.iter().map(decode).collect::<Result<_, _>>()?;
        let (leaf, intermediates) = chain.split_first().ok_or("no certificate")?;
        self.judge_chain(leaf, intermediates, now_unix).map(drop)
    }

    /// The leaf, if its chain reaches a CA of the mesh and it is a hub's: one
    /// for servers, which agents' certificates are not.
    fn judge_chain<'a>(
        &self,
        leaf: &'a CertificateDer<'a>,
        intermediates: &[CertificateDer<'_>],
        now_unix: u64,
    ) -> Result<EndEntityCert<'a>, &'static str> {
        let leaf = EndEntityCert::try_from(leaf).map_err(|_| "the certificate cannot be read")?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now_unix));
        leaf.verify_for_usage(
            self.algorithms.all,
            &self.roots.roots,
            intermediates,
            now,
            KeyUsage::server_auth(),
            None,
            None,
        )
        .map_err(|e| problem(&e))?;
        Ok(leaf)
    }
}

/// Longest chain in base64, bytes: with everything else it must fit a message
/// before authentication.
const CHAIN_TEXT_MAX_BYTES: usize = 12 * 1024;

/// Names that may prove something: a wildcard proves nobody (attack 26).
fn names<'a>(leaf: &'a EndEntityCert<'_>) -> impl Iterator<Item = &'a str> {
    leaf.valid_dns_names().filter(|n| !n.contains('*'))
}

fn problem(e: &webpki::Error) -> &'static str {
    use webpki::Error as E;
    if matches!(e, E::CertExpired { .. }) {
        "the certificate has expired"
    } else if matches!(e, E::CertNotValidYet { .. }) {
        "the certificate is not valid yet: check both clocks"
    } else if matches!(e, E::RequiredEkuNotFoundContext(_)) {
        "the certificate is for another purpose than a server's, as an agent's is"
    } else if matches!(e, E::CaUsedAsEndEntity) {
        "the certificate is a CA's"
    } else if matches!(
        e,
        E::MaximumSignatureChecksExceeded
            | E::MaximumPathBuildCallsExceeded
            | E::MaximumPathDepthExceeded
            | E::MaximumNameConstraintComparisonsExceeded
    ) {
        "the chain takes too much work to judge"
    } else {
        "the chain does not reach a CA of ha.mesh.tls.ca_bundle"
    }
}

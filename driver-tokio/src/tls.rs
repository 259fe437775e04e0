//! rustls configurations, built from PEM files.
//!
//! Owns which certificates are trusted where: the HTTP port shows a
//! certificate and asks for none; the mesh demands one in both directions and
//! never resumes a session, because a resumed session keeps the old chain
//! after a CA has left (semantics 8). Names in certificates are read here and
//! compared by the core (I3). Every error names the file, the key of the
//! configuration and what was expected. Knows no socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::config::{MeshTlsFiles, ServerTlsFiles};

/// A certificate, key or bundle that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// Something is wrong with one file.
    #[error("{key}: {}: {problem}", path.display())]
    File {
        /// The key of the configuration that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What was expected and what came.
        problem: String,
    },
    /// The system has no usable CA certificate.
    #[error("the system has no usable CA certificates; name a bundle with {0}")]
    NoSystemRoots(&'static str),
    /// rustls refused the combination.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

impl TlsError {
    fn file(key: &'static str, path: &Path, problem: impl Into<String>) -> Self {
        Self::File { key, path: path.to_owned(), problem: problem.into() }
    }
}

/// The cryptography of the process.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}

fn setup(e: impl std::fmt::Display) -> TlsError {
    TlsError::Setup(e.to_string())
}

/// The certificates of a PEM file, in its order.
///
/// # Errors
/// When it cannot be read or holds none.
pub fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = std::fs::read(path).map_err(|e| TlsError::file(key, path, format!("cannot be read: {e}")))?;
    certificates_in(key, path, &bytes)
}

/// The same of a file that was read already.
pub(crate) fn certificates_in(
    key: &'static str,
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(TlsError::file(key, path, "expected PEM with at least one CERTIFICATE block, there is none")),
        Err(e) => Err(TlsError::file(key, path, format!("expected PEM: {e}"))),
    }
}

fn private_key(key: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = std::fs::read(path).map_err(|e| TlsError::file(key, path, format!("cannot be read: {e}")))?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
        // The parser's error could quote the file; a key file is not quoted.
        TlsError::file(key, path, "expected PEM with one unencrypted PRIVATE KEY block, there is none")
    })
}

/// The CAs of a PEM file.
pub(crate) fn bundle(key: &'static str, path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(key, path)? {
        roots
            .add(certificate)
            .map_err(|e| TlsError::file(key, path, format!("holds an unusable CA certificate: {e}")))?;
    }
    Ok(Arc::new(roots))
}

/// The hub's certificate and key on the mesh, which must belong together.
pub(crate) fn certified(cert_file: &Path, key_file: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = certificates("ha.mesh.tls.cert_file", cert_file)?;
    let key = private_key("ha.mesh.tls.key_file", key_file)?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(mismatch("ha.mesh.tls.key_file", key_file, cert_file))
}

/// Says a mismatch of certificate and key in words of the configuration.
fn mismatch(key: &'static str, path: &Path, cert_file: &Path) -> impl FnOnce(rustls::Error) -> TlsError {
    let (path, cert_file) = (path.to_owned(), cert_file.to_owned());
    move |e| {
        let cert_file = cert_file.display();
        if matches!(e, rustls::Error::InconsistentKeys(_)) {
            TlsError::file(key, &path, format!("is not the key of the certificate in {cert_file}"))
        } else {
            TlsError::file(key, &path, format!("cannot be used with {cert_file}: {e}"))
        }
    }
}

/// TLS of the HTTP port: no client certificate, HTTP/1.1 only.
///
/// # Errors
/// When a file cannot be used.
pub fn http_server(files: &ServerTlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates("http.tls.cert_file", &files.cert_file)?;
    let key = private_key("http.tls.key_file", &files.key_file)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(setup)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(mismatch("http.tls.key_file", &files.key_file, &files.cert_file))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// TLS of a native mesh port: a client certificate of the bundle is demanded,
/// nothing is resumed (attack 26).
///
/// # Errors
/// When a file cannot be used.
pub fn mesh_server(files: &MeshTlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates("ha.mesh.tls.cert_file", &files.cert_file)?;
    let key = private_key("ha.mesh.tls.key_file", &files.key_file)?;
    let roots = bundle("ha.mesh.tls.ca_bundle", &files.ca_bundle)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|e| TlsError::file("ha.mesh.tls.ca_bundle", &files.ca_bundle, e.to_string()))?;
    // Peers are hubs, which know TLS 1.3; its exporter is what they sign.
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(setup)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(mismatch("ha.mesh.tls.key_file", &files.key_file, &files.cert_file))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// TLS of mesh dials: shows the hub's certificate, trusts the bundle only.
///
/// # Errors
/// When a file cannot be used.
pub fn mesh_client(files: &MeshTlsFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let chain = certificates("ha.mesh.tls.cert_file", &files.cert_file)?;
    let key = private_key("ha.mesh.tls.key_file", &files.key_file)?;
    let roots = bundle("ha.mesh.tls.ca_bundle", &files.ca_bundle)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(setup)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(mismatch("ha.mesh.tls.key_file", &files.key_file, &files.cert_file))?;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// TLS of an agent's dials: trusts `ca_bundle`, or the system's roots.
///
/// # Errors
/// When the bundle cannot be used, or the system has no root at all.
pub fn tunnel_client(ca_bundle: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    https_client("tls.ca_bundle", ca_bundle)
}

/// TLS of a client without a certificate: trusts the bundle that `key` names,
/// or the system's roots.
///
/// # Errors
/// As [`tunnel_client`].
pub fn https_client(key: &'static str, ca_bundle: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = match ca_bundle {
        Some(path) => bundle(key, path)?,
        None => {
            let mut roots = RootCertStore::empty();
            let native = rustls_native_certs::load_native_certs();
            for problem in &native.errors {
                tracing::warn!(event = "system_ca_unreadable", %problem, "a system CA certificate cannot be read");
            }
            let (added, _) = roots.add_parsable_certificates(native.certs);
            if added == 0 {
                return Err(TlsError::NoSystemRoots(key));
            }
            Arc::new(roots)
        }
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(setup)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Whether a chain that was shown, its own certificate first, still reaches one
/// of `roots`. Names and use were judged when it was shown.
///
/// # Errors
/// Why it does not.
pub(crate) fn reaches(roots: &RootCertStore, chain: &[CertificateDer<'_>]) -> Result<(), webpki::Error> {
    let Some((own, between)) = chain.split_first() else { return Err(webpki::Error::UnknownIssuer) };
    let parsed = webpki::EndEntityCert::try_from(own)?;
    let algorithms = provider().signature_verification_algorithms.all;
    let millis = Duration::from_millis(crate::clock::unix_millis());
    let now = rustls::pki_types::UnixTime::since_unix_epoch(millis);
    let judge = |usage| parsed.verify_for_usage(algorithms, &roots.roots, between, now, usage, None, None);
    // A hub that never accepts or never dials may have a certificate for one of the two.
    judge(webpki::KeyUsage::server_auth()).or_else(|_| judge(webpki::KeyUsage::client_auth())).map(|_| ())
}

/// The dNSNames of a certificate; common names do not count (attack 26).
/// Empty when the certificate cannot be parsed.
#[must_use]
pub fn dns_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    webpki::EndEntityCert::try_from(certificate)
        .map(|parsed| parsed.valid_dns_names().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// When a certificate ends, in seconds since 1970; `None` when it cannot be
/// parsed.
#[must_use]
pub fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

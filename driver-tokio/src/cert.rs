//! `nowconnect cert` and `nowconnect token`: certificates and tokens for
//! trying things out (semantics 10).
//!
//! Writes PEM files, keys readable by their owner only, and never replaces one
//! unasked. A hub's certificate serves both directions of the mesh, so it
//! carries both extended key usages. Reads no clock: the time is an argument.

use std::path::{Path, PathBuf};

use jsonwebtoken::{Algorithm, EncodingKey};
use nowconnect_core::id::{AgentId, Name};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// Certificate of the CA, in the output directory.
pub const CA_CERT: &str = "ca.pem";
/// Key of the CA, in the output directory.
pub const CA_KEY: &str = "ca.key";

/// Whom a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A new CA: `ca.pem`, `ca.key`.
    Ca,
    /// A hub: `NAME.crt`, `NAME.key`, for NAME and further names or addresses.
    Hub {
        /// Its replica id, the first dNSName.
        name: Name,
        /// Further host names and IP addresses.
        san: Vec<String>,
    },
    /// An agent: `NAME.crt`, `NAME.key`, for clients of an ingress.
    Agent {
        /// Its name.
        name: Name,
    },
}

/// Why a certificate or token could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A file is there already.
    #[error("{} exists; use --force to replace it", .0.display())]
    Exists(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// What was asked for makes no certificate or token.
    #[error("{0}")]
    Refused(String),
}

fn file(path: &Path, problem: impl std::fmt::Display) -> CertError {
    CertError::File { path: path.to_owned(), problem: problem.to_string() }
}

fn refused(e: impl std::fmt::Display) -> CertError {
    CertError::Refused(e.to_string())
}

/// Makes the files of one subject in `out`, valid from a minute before
/// `now_unix` (clocks differ) for `days`; returns what was written.
///
/// # Errors
/// When a file exists and `force` is false, a name is not usable, or the
/// directory holds no CA to sign with.
pub fn make(out: &Path, subject: &Subject, days: u32, now_unix: u64, force: bool) -> Result<Vec<PathBuf>, CertError> {
    let now = i64::try_from(now_unix).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    let now = now.ok_or_else(|| refused("the clock shows a time certificates cannot express"))?;
    let key = KeyPair::generate().map_err(refused)?;
    let mut params = parameters(subject)?;
    params.not_before = now - Duration::minutes(1);
    params.not_after = now
        .checked_add(Duration::days(i64::from(days)))
        .filter(|end| end.year() < 10_000)
        .ok_or_else(|| refused(format!("--days {days} reaches beyond the year 9999")))?;
    let (certificate, cert_name, key_name) = match subject {
        Subject::Ca => (params.self_signed(&key).map_err(refused)?, CA_CERT.to_owned(), CA_KEY.to_owned()),
        Subject::Hub { name, .. } | Subject::Agent { name } => {
            let issuer = issuer(out)?;
            let signed = params.signed_by(&key, &issuer).map_err(refused)?;
            (signed, format!("{name}.crt"), format!("{name}.key"))
        }
    };
    std::fs::create_dir_all(out).map_err(|e| file(out, e))?;
    let (cert_path, key_path) = (out.join(cert_name), out.join(key_name));
    if let (false, Some(there)) = (force, [&cert_path, &key_path].into_iter().find(|p| p.exists())) {
        return Err(CertError::Exists(there.clone()));
    }
    write(&key_path, &key.serialize_pem(), 0o600, force)?;
    write(&cert_path, &certificate.pem(), 0o644, force)?;
    Ok(vec![cert_path, key_path])
}

fn parameters(subject: &Subject) -> Result<CertificateParams, CertError> {
    let (common_name, san, usages) = match subject {
        Subject::Ca => ("nowconnect CA".to_owned(), Vec::new(), Vec::new()),
        Subject::Hub { name, san } => {
            let mut names = vec![name.to_string()];
            names.extend(san.iter().filter(|s| s.as_str() != name.as_str()).cloned());
            let both = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            (name.to_string(), names, both)
        }
        Subject::Agent { name } => {
            (name.to_string(), vec![name.to_string()], vec![ExtendedKeyUsagePurpose::ClientAuth])
        }
    };
    for name in &san {
        if name.parse::<std::net::IpAddr>().is_err() && rustls::pki_types::DnsName::try_from(name.as_str()).is_err() {
            return Err(refused(format!("{name:?} is neither a host name nor an IP address")));
        }
    }
    let mut params = CertificateParams::new(san).map_err(refused)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    if matches!(subject, Subject::Ca) {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    } else {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
    }
    params.extended_key_usages = usages;
    Ok(params)
}

fn issuer(out: &Path) -> Result<Issuer<'static, KeyPair>, CertError> {
    let read = |name: &str| {
        let path = out.join(name);
        std::fs::read_to_string(&path)
            .map_err(|e| file(&path, format!("{e}; make a CA first: nowconnect cert --out {} --ca", out.display())))
    };
    let (cert, key) = (read(CA_CERT)?, read(CA_KEY)?);
    let key =
        KeyPair::from_pem(&key).map_err(|e| file(&out.join(CA_KEY), format!("expected a PEM private key: {e}")))?;
    Issuer::from_ca_cert_pem(&cert, key)
        .map_err(|e| file(&out.join(CA_CERT), format!("expected a PEM CA certificate: {e}")))
}

fn write(path: &Path, text: &str, mode: u32, force: bool) -> Result<(), CertError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    if force {
        // A new file, so that an old one's wider permissions do not stay.
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(file(path, e)),
        }
    }
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut out = opened.map_err(|e| {
        let exists = e.kind() == std::io::ErrorKind::AlreadyExists;
        if exists { CertError::Exists(path.to_owned()) } else { file(path, e) }
    })?;
    out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(|e| file(path, e))
}

/// What signs a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signer {
    /// File with a shared secret; HS256.
    HmacSecretFile(PathBuf),
    /// PEM file with a private key; ES256, RS256 or EdDSA by its type.
    PrivateKeyFile(PathBuf),
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// `sub`.
    pub agent: AgentId,
    /// `connectors`; the claim is left out when empty.
    pub connectors: Vec<Name>,
    /// `iss`.
    pub issuer: String,
    /// `aud`.
    pub audience: String,
    /// `exp - iat`.
    pub ttl: std::time::Duration,
}

/// Makes a signed token.
///
/// # Errors
/// When the key cannot be read or is of another type.
pub fn token(request: &TokenRequest, signer: &Signer, now_unix: u64) -> Result<String, CertError> {
    let mut claims = serde_json::json!({
        "iss": request.issuer,
        "sub": request.agent,
        "aud": request.audience,
        "iat": now_unix,
        "exp": now_unix.saturating_add(request.ttl.as_secs()),
    });
    if let (false, Some(claims)) = (request.connectors.is_empty(), claims.as_object_mut()) {
        claims.insert("connectors".to_owned(), serde_json::json!(request.connectors));
    }
    let (algorithm, key) = match signer {
        Signer::HmacSecretFile(path) => {
            let secret = std::fs::read(path).map_err(|e| file(path, e))?;
            let secret = secret.strip_suffix(b"\n").unwrap_or(&secret);
            let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
            if secret.len() < crate::auth::HMAC_SECRET_MIN_BYTES {
                let least = crate::auth::HMAC_SECRET_MIN_BYTES;
                return Err(file(path, format!("expected at least {least} bytes of secret, got {}", secret.len())));
            }
            (Algorithm::HS256, EncodingKey::from_secret(secret))
        }
        Signer::PrivateKeyFile(path) => {
            let pem = std::fs::read(path).map_err(|e| file(path, e))?;
            let candidates = [
                (Algorithm::ES256, EncodingKey::from_ec_pem(&pem)),
                (Algorithm::RS256, EncodingKey::from_rsa_pem(&pem)),
                (Algorithm::EdDSA, EncodingKey::from_ed_pem(&pem)),
            ];
            let found = candidates.into_iter().find_map(|(algorithm, key)| key.ok().map(|key| (algorithm, key)));
            found.ok_or_else(|| {
                file(
                    path,
                    "expected a PEM private key in PKCS#8 form (EC P-256, RSA or Ed25519); \
                     `openssl pkcs8 -topk8 -nocrypt` converts others",
                )
            })?
        }
    };
    let header = jsonwebtoken::Header::new(algorithm);
    jsonwebtoken::encode(&header, &claims, &key).map_err(|e| refused(format!("the key cannot sign a token: {e}")))
}

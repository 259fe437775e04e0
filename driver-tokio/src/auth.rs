//! Tokens of agents (semantics 8, attacks 5, 15-22).
//!
//! Owns the keys and the judgement of one `Authorization` header. Signature
//! arithmetic is jsonwebtoken's; the rules are here, because its defaults are
//! not ours: it takes a token without `aud`, tolerates a minute of clock
//! difference and reads the process's clock. Each key has exactly one
//! algorithm, fixed before any token is seen; what a token's header says about
//! algorithms and keys can only make it fail. Nothing here is ever fetched
//! (`jwks.rs` does, from the configured URL), and no part of a token reaches a message or a log (attack 60).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use nowconnect_core::id::{AgentId, Name};
use nowconnect_core::principal::AgentGrant;
use nowconnect_core::time::Instant;
use serde::Deserialize;

use crate::config::AuthSetup;

/// Longest `Authorization` value, in bytes (attack 22).
pub const AUTHORIZATION_MAX_BYTES: usize = 8 << 10;
/// Shortest shared secret, in bytes: what HS256 needs (RFC 7518, 3.2).
pub const HMAC_SECRET_MIN_BYTES: usize = 32;
/// Most names in the claim `connectors` (attack 53).
pub const CONNECTORS_MAX: usize = 256;
/// Largest key set file, in bytes, and most keys in it (attack 24).
pub const JWKS_MAX_BYTES: u64 = 256 << 10;
const JWKS_MAX_KEYS: usize = 64;
/// Longest `kid` that is looked at, in bytes (attack 16).
const KID_MAX_BYTES: usize = 128;

macro_rules! rejects {
    ($($(#[$doc:meta])* $v:ident = $name:literal, $text:literal;)*) => {
        /// Why a token was refused. `name()` is the metric label; `Display` is
        /// the whole of what a log line may say.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum AuthReject { $($(#[$doc])* $v),* }

        impl AuthReject {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$v),*];

            /// The metric label.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$v => $name),* }
            }
        }

        impl std::fmt::Display for AuthReject {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$v => $text),* })
            }
        }
    };
}

rejects! {
    /// No `Authorization` header.
    Missing = "missing", "expected an Authorization header, there is none";
    /// More than one `Authorization` header.
    Duplicate = "duplicate", "expected one Authorization header, there are several";
    /// Not `Bearer TOKEN`.
    NotBearer = "not_bearer", "expected `Authorization: Bearer TOKEN`";
    /// Above 8 KiB.
    TooLong = "too_long", "the Authorization header exceeds 8 KiB";
    /// Not three canonical base64url segments of JSON.
    Malformed = "malformed", "the token is no JWT of three base64url segments";
    /// The header names keys or extensions.
    ForbiddenHeader = "forbidden_header", "the token's header holds jwk, jku, x5u, x5c or crit, which are never honoured";
    /// The key chosen is not for the algorithm the header names.
    Algorithm = "algorithm", "the token's alg is not the one configured for its key (auth.jwt.algorithms)";
    /// No key has the `kid`.
    UnknownKey = "unknown_key", "no configured key has the token's kid";
    /// The signature does not fit.
    Signature = "signature", "the token's signature does not fit the key";
    /// A required claim is missing or of the wrong type.
    Claims = "claims", "the token lacks exp, iss, sub or aud, or a claim has the wrong type";
    /// `aud` is another's.
    Audience = "audience", "the token's aud does not hold auth.jwt.audience";
    /// `iss` is another's.
    Issuer = "issuer", "the token's iss is not auth.jwt.issuer";
    /// `sub` is no agent id.
    Subject = "subject", "the token's sub is no agent id";
    /// Past `exp`.
    Expired = "expired", "the token has expired";
    /// Before `nbf`, or issued in the future.
    NotYetValid = "not_yet_valid", "the token is not valid yet (nbf or iat in the future)";
    /// Longer than `auth.jwt.max_lifetime`.
    Lifetime = "lifetime", "the token's lifetime exceeds auth.jwt.max_lifetime";
    /// The claim `connectors` is no list of names.
    Connectors = "connectors", "the token's connectors claim is no list of at most 256 connector names";
}

impl AuthReject {
    /// 400 when the request itself is wrong (attack 5), else 401.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        if matches!(self, Self::Duplicate) { 400 } else { 401 }
    }
}

/// What a valid token grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenGrant {
    /// The token's `sub`.
    pub subject: String,
    /// Claim `connectors`; `None` when absent.
    pub connectors: Option<Vec<Name>>,
    /// When it ends, leeway included, in seconds since 1970.
    pub expires_unix: u64,
}

impl TokenGrant {
    /// The grant on the core's clock, given what both clocks show now.
    #[must_use]
    pub fn on_clock(self, now_unix: u64, now: Instant) -> AgentGrant {
        let left = Duration::from_secs(self.expires_unix.saturating_sub(now_unix));
        AgentGrant { subject: self.subject, connectors: self.connectors, expires: Some(now.after(left)) }
    }
}

/// Why the keys cannot be used: file, key of the configuration, what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthSetupError {
    /// No key is configured.
    #[error(
        "tunnel authentication is not configured: set auth.jwt.public_key_file, auth.jwt.hmac_secret_file, auth.jwt.jwks_file \
         or auth.jwt.jwks_url with auth.jwt.issuer (or NC_JWT_PUBLIC_KEY_FILE, NC_JWT_HMAC_SECRET_FILE, NC_JWT_JWKS_FILE, \
         NC_JWT_JWKS_URL with NC_JWT_ISSUER)"
    )]
    NoKey,
    /// No issuer is configured.
    #[error("auth.jwt.issuer is required to check tokens (or NC_JWT_ISSUER)")]
    NoIssuer,
    /// A file cannot be read or holds something else.
    #[error("{key}: {}: {problem}", path.display())]
    File {
        /// The key that names the file.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What was expected and what came.
        problem: String,
    },
}

#[derive(Clone)]
struct Key {
    kid: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

#[derive(Clone)]
struct Keys {
    /// Of files.
    keys: Vec<Key>,
    /// Of `auth.jwt.jwks_url`.
    fetched: Vec<Key>,
    stamps: Vec<Stamp>,
}

impl Keys {
    fn all(&self) -> Vec<&Key> {
        self.keys.iter().chain(&self.fetched).collect()
    }
}

/// What tells that a file was changed.
type Stamp = Option<(SystemTime, u64)>;

/// The judge of tokens.
pub struct TunnelAuth {
    setup: AuthSetup,
    issuer: String,
    keys: ArcSwap<Keys>,
}

impl std::fmt::Debug for TunnelAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunnelAuth").field("keys", &self.keys.load().keys.len()).finish_non_exhaustive()
    }
}

impl TunnelAuth {
    /// Loads the keys.
    ///
    /// # Errors
    /// When none is configured, or a file does not hold what its key promises.
    pub fn from_setup(setup: &AuthSetup) -> Result<Self, AuthSetupError> {
        if !setup.usable() {
            return Err(AuthSetupError::NoKey);
        }
        let issuer = setup.issuer.clone().ok_or(AuthSetupError::NoIssuer)?;
        let keys = ArcSwap::from_pointee(load(setup)?);
        Ok(Self { setup: setup.clone(), issuer, keys })
    }

    /// Loads the keys anew if one of their files has changed; whether it did.
    /// Live tunnels are not judged again.
    ///
    /// # Errors
    /// When a changed file cannot be used; the keys in force stay.
    pub fn reload_if_changed(&self) -> Result<bool, AuthSetupError> {
        if stamps(&self.setup) == self.keys.load().stamps {
            return Ok(false);
        }
        let loaded = load(&self.setup)?;
        let fetched = self.keys.load().fetched.clone();
        self.keys.store(Arc::new(Keys { fetched, ..loaded }));
        Ok(true)
    }

    /// A key set that was fetched takes the place of the one before.
    ///
    /// # Errors
    /// When it is no key set, or holds no key that can be used: then the one
    /// before stays.
    pub fn take_fetched(&self, bytes: &[u8]) -> Result<(), String> {
        let fetched = key_set(bytes, &self.setup.algorithms)?;
        self.keys.store(Arc::new(Keys { fetched, ..Keys::clone(&self.keys.load()) }));
        Ok(())
    }

    /// The fetched key set is too old to be used.
    pub fn drop_fetched(&self) {
        self.keys.store(Arc::new(Keys { fetched: Vec::new(), ..Keys::clone(&self.keys.load()) }));
    }

    /// Judges a token that came on a live tunnel, as [`TunnelAuth::verify`] does.
    ///
    /// # Errors
    /// The first rule the token breaks.
    pub fn verify_token(&self, token: &str, now_unix: u64) -> Result<TokenGrant, AuthReject> {
        self.verify(&[&format!("Bearer {token}")], now_unix)
    }

    /// Judges the `Authorization` headers of one request at `now_unix`, in
    /// seconds since 1970.
    ///
    /// # Errors
    /// The first rule the token breaks.
    pub fn verify(&self, authorization: &[&str], now_unix: u64) -> Result<TokenGrant, AuthReject> {
        let value = match authorization {
            [] => return Err(AuthReject::Missing),
            [one] => *one,
            _ => return Err(AuthReject::Duplicate),
        };
        if value.len() > AUTHORIZATION_MAX_BYTES {
            return Err(AuthReject::TooLong);
        }
        let (scheme, token) = value.split_once(' ').ok_or(AuthReject::NotBearer)?;
        if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.contains(char::is_whitespace) {
            return Err(AuthReject::NotBearer);
        }
        let claims = self.signed_claims(token)?;
        self.judge(claims, now_unix)
    }

    /// The claims, once a key's signature over them was found right.
    fn signed_claims(&self, token: &str) -> Result<Claims, AuthReject> {
        let (message, signature) = token.rsplit_once('.').ok_or(AuthReject::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(AuthReject::Malformed)?;
        if claims.contains('.') {
            return Err(AuthReject::Malformed);
        }
        // Strict about padding and trailing bits: one token has one spelling (attack 22).
        let bytes = |segment: &str| URL_SAFE_NO_PAD.decode(segment).map_err(|_| AuthReject::Malformed);
        let header: Header = object(&bytes(header)?).ok_or(AuthReject::Malformed)?;
        if header.names_a_key() {
            return Err(AuthReject::ForbiddenHeader);
        }
        bytes(signature)?;
        let keys = self.keys.load();
        let all = keys.all();
        let key = header.choose(&all)?;
        match jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.key, key.algorithm) {
            Ok(true) => {}
            Ok(false) | Err(_) => return Err(AuthReject::Signature),
        }
        object(&bytes(claims)?).ok_or(AuthReject::Claims)
    }

    fn judge(&self, claims: Claims, now: u64) -> Result<TokenGrant, AuthReject> {
        let leeway = self.setup.leeway.as_secs();
        if !claims.aud.holds(&self.setup.audience) {
            return Err(AuthReject::Audience);
        }
        if claims.iss != self.issuer {
            return Err(AuthReject::Issuer);
        }
        if AgentId::new(&claims.sub).is_err() {
            return Err(AuthReject::Subject);
        }
        let expires_unix = claims.exp.saturating_add(leeway);
        if now >= expires_unix {
            return Err(AuthReject::Expired);
        }
        let soonest = claims.nbf.unwrap_or(0).max(claims.iat.unwrap_or(0));
        if soonest > now.saturating_add(leeway) {
            return Err(AuthReject::NotYetValid);
        }
        let issued = claims.iat.map_or(now, |iat| iat.min(now));
        // The leeway covers an issuer whose clock is behind ours.
        if claims.exp.saturating_sub(issued) > self.setup.max_lifetime.as_secs().saturating_add(leeway) {
            return Err(AuthReject::Lifetime);
        }
        let connectors = match claims.connectors {
            None => None,
            Some(names) if names.len() > CONNECTORS_MAX => return Err(AuthReject::Connectors),
            Some(names) => {
                Some(names.iter().map(|n| Name::new(n)).collect::<Result<_, _>>().map_err(|_| AuthReject::Connectors)?)
            }
        };
        Ok(TokenGrant { subject: claims.sub, connectors, expires_unix })
    }
}

/// A header or a set of claims is an object (RFC 7515, 4; RFC 7519, 3); derived
/// readers would also take a list of the values, in the order of our fields.
fn object<T: serde::de::DeserializeOwned>(json: &[u8]) -> Option<T> {
    json.trim_ascii_start().starts_with(b"{").then(|| serde_json::from_slice(json).ok()).flatten()
}

/// Present in any form, including `null`.
fn present<'de, D: serde::Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(d).map(|_| true)
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default, deserialize_with = "present")]
    jwk: bool,
    #[serde(default, deserialize_with = "present")]
    jku: bool,
    #[serde(default, deserialize_with = "present")]
    x5u: bool,
    #[serde(default, deserialize_with = "present")]
    x5c: bool,
    #[serde(default, deserialize_with = "present")]
    crit: bool,
}

impl Header {
    const fn names_a_key(&self) -> bool {
        self.jwk || self.jku || self.x5u || self.x5c || self.crit
    }

    /// The one key to try. A `kid` selects among the keys that have one; the
    /// keys from PEM and secret files have none and are told apart by their
    /// algorithms. Then the header's `alg` must be the key's, word for word.
    fn choose<'k>(&self, keys: &[&'k Key]) -> Result<&'k Key, AuthReject> {
        let named = |k: &&Key| match &self.kid {
            Some(kid) => k.kid.as_ref().is_none_or(|own| own == kid),
            // A set of one key needs no name to choose by.
            None => k.kid.is_none() || keys.iter().filter(|k| k.kid.is_some()).count() == 1,
        };
        if let Some(kid) = &self.kid {
            let sane = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'=' | b'+' | b':');
            if kid.is_empty() || kid.len() > KID_MAX_BYTES || kid.contains("..") || !kid.bytes().all(sane) {
                return Err(AuthReject::UnknownKey);
            }
        }
        let mut candidates = keys.iter().copied().filter(named).peekable();
        if candidates.peek().is_none() {
            return Err(AuthReject::UnknownKey);
        }
        candidates.find(|k| algorithm_name(k.algorithm) == Some(self.alg.as_str())).ok_or(AuthReject::Algorithm)
    }
}

/// Numbers are whole and not negative, and a claim that occurs twice is an
/// error: both follow from the types (attack 18).
#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: u64,
    #[serde(default, deserialize_with = "number_if_present")]
    nbf: Option<u64>,
    #[serde(default, deserialize_with = "number_if_present")]
    iat: Option<u64>,
    #[serde(default, deserialize_with = "list_if_present")]
    connectors: Option<Vec<String>>,
}

// `null` is not "absent": a claim somebody wrote must mean something.
fn number_if_present<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    u64::deserialize(d).map(Some)
}

fn list_if_present<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Vec<String>>, D::Error> {
    Vec::deserialize(d).map(Some)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    fn holds(&self, ours: &str) -> bool {
        match self {
            Self::One(one) => one == ours,
            Self::Several(several) => several.iter().any(|a| a == ours),
        }
    }
}

/// The algorithms this version knows, by the names of RFC 7518 and RFC 8037.
fn algorithm_name(algorithm: Algorithm) -> Option<&'static str> {
    [
        (Algorithm::HS256, "HS256"),
        (Algorithm::ES256, "ES256"),
        (Algorithm::RS256, "RS256"),
        (Algorithm::PS256, "PS256"),
        (Algorithm::EdDSA, "EdDSA"),
    ]
    .into_iter()
    .find_map(|(known, name)| (known == algorithm).then_some(name))
}

/// What a key's type can do; the first is the default.
#[derive(Clone, Copy)]
enum KeyType {
    Hmac,
    EcP256,
    Rsa,
    Ed25519,
}

impl KeyType {
    const fn algorithms(self) -> &'static [Algorithm] {
        match self {
            Self::Hmac => &[Algorithm::HS256],
            Self::EcP256 => &[Algorithm::ES256],
            Self::Rsa => &[Algorithm::RS256, Algorithm::PS256],
            Self::Ed25519 => &[Algorithm::EdDSA],
        }
    }

    /// The one algorithm a key of this type is used with.
    fn pin(self, allowed: &[Algorithm]) -> Result<Algorithm, String> {
        let mut fitting = self.algorithms().iter().copied().filter(|a| allowed.is_empty() || allowed.contains(a));
        let names = || self.algorithms().iter().copied().filter_map(algorithm_name).collect::<Vec<_>>().join(" or ");
        match (fitting.next(), fitting.next()) {
            (Some(one), None) => Ok(one),
            (Some(default), Some(_)) if allowed.is_empty() => Ok(default),
            (Some(_), Some(_)) => Err(format!("auth.jwt.algorithms must name one algorithm for this key: {}", names())),
            (None, _) => Err(format!("auth.jwt.algorithms names none that this key can be used with ({})", names())),
        }
    }
}

fn sources(setup: &AuthSetup) -> [Option<&Path>; 3] {
    [&setup.public_key_file, &setup.hmac_secret_file, &setup.jwks_file].map(|file| file.as_deref())
}

fn stamps(setup: &AuthSetup) -> Vec<Stamp> {
    let stamp = |path: &Path| std::fs::metadata(path).and_then(|m| Ok((m.modified()?, m.len()))).ok();
    sources(setup).into_iter().flatten().map(stamp).collect()
}

/// Makes keys of a file's bytes.
type Parse<'a> = &'a dyn Fn(&[u8]) -> Result<Vec<Key>, String>;

fn load(setup: &AuthSetup) -> Result<Keys, AuthSetupError> {
    // Taken first: a change while loading is then seen the next time.
    let stamps = stamps(setup);
    let mut keys = Vec::new();
    let mut from = |key: &'static str, path: Option<&Path>, parse: Parse<'_>| {
        let Some(path) = path else { return Ok(()) };
        let parsed = read_limited(path).and_then(|bytes| parse(&bytes));
        let file = |problem| AuthSetupError::File { key, path: path.to_owned(), problem };
        parsed.map(|found| keys.extend(found)).map_err(file)
    };
    let [public_key, secret, set] = sources(setup);
    let allowed = setup.algorithms.as_slice();
    from("auth.jwt.public_key_file", public_key, &|bytes| public_key_pem(bytes, allowed))?;
    from("auth.jwt.hmac_secret_file", secret, &|bytes| hmac_secret(bytes, allowed))?;
    from("auth.jwt.jwks_file", set, &|bytes| key_set(bytes, allowed))?;
    Ok(Keys { keys, fetched: Vec::new(), stamps })
}

pub(crate) fn read_limited(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|e| format!("cannot be read: {e}"))?;
    let mut bytes = Vec::new();
    file.take(JWKS_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > JWKS_MAX_BYTES {
        return Err(format!("exceeds {JWKS_MAX_BYTES} bytes"));
    }
    Ok(bytes)
}

fn public_key_pem(bytes: &[u8], allowed: &[Algorithm]) -> Result<Vec<Key>, String> {
    const EXPECTED: &str = "expected one PEM block `PUBLIC KEY` (EC P-256, RSA or Ed25519)";
    if bytes.windows(12).any(|w| w == b"PRIVATE KEY-") {
        return Err(format!("{EXPECTED}, it holds a private key; hubs only need the public one"));
    }
    let candidates = [
        (KeyType::EcP256, DecodingKey::from_ec_pem(bytes)),
        (KeyType::Rsa, DecodingKey::from_rsa_pem(bytes)),
        (KeyType::Ed25519, DecodingKey::from_ed_pem(bytes)),
    ];
    let found = candidates.into_iter().find_map(|(key_type, key)| key.ok().map(|key| (key_type, key)));
    let (key_type, key) = found.ok_or(EXPECTED)?;
    if matches!(key_type, KeyType::EcP256) && key.try_get_as_bytes().map_or(0, <[u8]>::len) != 65 {
        return Err(format!("{EXPECTED}, it holds an EC key of another curve"));
    }
    Ok(vec![Key { kid: None, algorithm: key_type.pin(allowed)?, key }])
}

fn hmac_secret(bytes: &[u8], allowed: &[Algorithm]) -> Result<Vec<Key>, String> {
    // Editors end files with a newline; nobody means it to be part of the secret.
    let secret = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
    if secret.len() < HMAC_SECRET_MIN_BYTES {
        return Err(format!("expected at least {HMAC_SECRET_MIN_BYTES} bytes of secret, got {}", secret.len()));
    }
    if secret.windows(11).any(|w| w == b"-----BEGIN ") {
        // The classic confusion: a public key, known to all, used as a secret (attack 15).
        return Err(
            "expected a random secret, it holds PEM; a public key belongs into auth.jwt.public_key_file".to_owned()
        );
    }
    Ok(vec![Key { kid: None, algorithm: KeyType::Hmac.pin(allowed)?, key: DecodingKey::from_secret(secret) }])
}

fn key_set(bytes: &[u8], allowed: &[Algorithm]) -> Result<Vec<Key>, String> {
    let set: JwkSet = serde_json::from_slice(bytes).map_err(|e| format!("expected a JSON Web Key Set: {e}"))?;
    if set.keys.len() > JWKS_MAX_KEYS {
        return Err(format!("expected at most {JWKS_MAX_KEYS} keys, got {}", set.keys.len()));
    }
    let mut keys: Vec<Key> = Vec::new();
    for jwk in &set.keys {
        let key_type = match &jwk.algorithm {
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => KeyType::EcP256,
            AlgorithmParameters::RSA(_) => KeyType::Rsa,
            AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => KeyType::Ed25519,
            // Secrets do not belong into a set of public keys; the rest is not known here.
            AlgorithmParameters::EllipticCurve(_)
            | AlgorithmParameters::OctetKeyPair(_)
            | AlgorithmParameters::OctetKey(_)
            | AlgorithmParameters::Other(_)
            | _ => continue,
        };
        let signs = jwk.common.public_key_use.as_ref().is_none_or(|u| *u == PublicKeyUse::Signature)
            && jwk.common.key_operations.as_ref().is_none_or(|ops| ops.contains(&KeyOperations::Verify));
        if !signs {
            continue;
        }
        let algorithm = match jwk.common.key_algorithm {
            None => key_type.pin(allowed),
            Some(named) => {
                let fits = |a: &&Algorithm| algorithm_name(**a).is_some_and(|name| name == named.to_string());
                let known = key_type.algorithms().iter().find(fits).copied();
                let permitted = known.filter(|a| allowed.is_empty() || allowed.contains(a));
                permitted.ok_or_else(|| String::from("its alg is not permitted"))
            }
        };
        // A set may hold keys for others; those that do not fit are left out.
        let (Ok(algorithm), Ok(key)) = (algorithm, DecodingKey::from_jwk(jwk)) else { continue };
        let kid = jwk.common.key_id.clone();
        if kid.is_some() && keys.iter().any(|k| k.kid == kid) {
            return Err("two keys of the set have the same kid".to_owned());
        }
        keys.push(Key { kid, algorithm, key });
    }
    if keys.is_empty() {
        return Err("the set holds no signature key of type EC P-256, RSA or Ed25519 that auth.jwt.algorithms permits"
            .to_owned());
    }
    Ok(keys)
}

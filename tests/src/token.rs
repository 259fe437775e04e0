//! JSON Web Tokens, good and bad, made by hand: an implementation apart from
//! the product's, and one that can also write what no library would.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

/// The issuer all test hubs are configured with.
pub const ISSUER: &str = "https://idp.test";
/// The shared secret all test hubs are configured with (256 bit, hexadecimal text).
pub const SECRET: &str = "5f9c1c7be5d04a1f8d2f6c0e3b7a9d114466aa88cc00ee22113355779900bbdd";

/// Seconds since 1970.
#[must_use]
pub fn unix_now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// The claims of a good token for `agent`, allowed to expose `connectors`.
#[must_use]
pub fn claims(agent: &str, connectors: &[&str]) -> Value {
    let now = unix_now();
    json!({
        "iss": ISSUER, "aud": "nowconnect", "sub": agent, "connectors": connectors,
        "iat": now, "nbf": now - 5, "exp": now + 3600,
    })
}

/// A good token.
#[must_use]
pub fn good(agent: &str, connectors: &[&str]) -> String {
    sign(&json!({"alg": "HS256", "typ": "JWT"}), &claims(agent, connectors).to_string(), SECRET)
}

/// Signs `claims`, any text, under `header` with HMAC-SHA-256 whatever the
/// header says.
#[must_use]
pub fn sign(header: &Value, claims: &str, secret: &str) -> String {
    let body = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    format!("{body}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

//! `jwt` (verification (e) 6): tokens put together from the tape, signed with
//! keys the hub trusts or not, then cut and twisted. The hub's judge
//! (`nowconnect::auth`) accepts one if and only if the checker below does,
//! which was written from RFC 7515, RFC 7519 and semantics 8 and shares no
//! code with it: own base64url, own reading of claims, and signatures compared
//! with those that were made. The keys' files are gone before the first token,
//! so nothing can be fetched on a token's word.

use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jsonwebtoken::{Algorithm, EncodingKey};
use nowconnect::auth::TunnelAuth;
use nowconnect::config::AuthSetup;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use sha2::Sha256;

use crate::tape::Tape;

const NOW: u64 = 1_800_000_000;
const LEEWAY: u64 = 5;
const LIFETIME: u64 = 24 * 3600;
const HMAC_SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const ISSUER: &str = "https://idp";
const AUDIENCE: &str = "nowconnect";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signer {
    Hmac,
    Ec,
    Ed,
    /// A key of the right kind that nobody trusts.
    Stranger,
}

/// A key as a hub knows it: who signs with it, its name and its algorithm.
type Trusted = (Signer, Option<&'static str>, &'static str);

const HMAC: Trusted = (Signer::Hmac, None, "HS256");
const EC: Trusted = (Signer::Ec, None, "ES256");
const EC_P: Trusted = (Signer::Ec, Some("p"), "ES256");
const ED_E: Trusted = (Signer::Ed, Some("e"), "EdDSA");

const HUBS: [&[Trusted]; 4] = [&[HMAC], &[EC, HMAC], &[HMAC, EC_P, ED_E], &[EC_P]];

struct Bench {
    ec: EncodingKey,
    ed: EncodingKey,
    stranger: EncodingKey,
    hubs: Vec<TunnelAuth>,
}

fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory for keys");
        let [ec, stranger] = [(); 2].map(|()| KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key"));
        let ed = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (x, y) = ec.public_key_raw().split_at(1).1.split_at(32);
        let p = serde_json::json!({"kty": "EC", "crv": "P-256", "kid": "p", "x": b64(x), "y": b64(y)});
        let e = serde_json::json!({"kty": "OKP", "crv": "Ed25519", "kid": "e", "x": b64(ed.public_key_raw())});
        let put = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).expect("a file of keys");
            Some(path)
        };
        let hmac = put("hmac", HMAC_SECRET);
        let ec_pem = put("ec.pub", ec.public_key_pem().as_bytes());
        let both = put("two.json", serde_json::json!({"keys": [p, e]}).to_string().as_bytes());
        let one = put("one.json", serde_json::json!({"keys": [p]}).to_string().as_bytes());
        let files = [(None, &hmac, &None), (ec_pem, &hmac, &None), (None, &hmac, &both), (None, &None, &one)];
        let hubs = files.into_iter().map(|(public_key_file, hmac_secret_file, jwks_file)| {
            let setup = AuthSetup {
                audience: AUDIENCE.to_owned(),
                issuer: Some(ISSUER.to_owned()),
                algorithms: Vec::new(),
                public_key_file,
                hmac_secret_file: hmac_secret_file.clone(),
                jwks_file: jwks_file.clone(),
                jwks: None,
                max_lifetime: Duration::from_secs(LIFETIME),
                leeway: Duration::from_secs(LEEWAY),
            };
            TunnelAuth::from_setup(&setup).expect("good keys")
        });
        let key = |pair: &KeyPair| EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).expect("a key");
        Bench {
            ec: key(&ec),
            ed: EncodingKey::from_ed_pem(ed.serialize_pem().as_bytes()).expect("a key"),
            stranger: key(&stranger),
            hubs: hubs.collect(),
        }
    })
}

/// A signature that was made: by whom, over what, and its text.
type Signed = (Signer, String, String);

/// A token is taken if and only if the checker takes it.
pub fn jwt(data: &[u8]) {
    let mut tape = Tape::new(data);
    let hub = tape.below(HUBS.len());
    let mut signed: Vec<Signed> = Vec::new();
    let mut tokens = Vec::new();
    for _ in 0..=tape.below(2) {
        let token = token(&mut tape, hub, &mut signed);
        tokens.push(token);
    }
    for _ in 0..tape.below(4) {
        twist(&mut tape, &mut tokens);
    }
    let scheme = tape.pick(&["Bearer ", "bearer ", "BEARER ", "Basic ", "Bearer", "Bearer  ", ""]).unwrap_or("Bearer ");
    let mut headers = vec![format!("{scheme}{}", tokens.swap_remove(0))];
    match tape.below(16) {
        13 => headers.clear(),
        14 => headers.push(headers[0].clone()),
        15 => headers[0].push_str(&"A".repeat(usize::from(tape.byte()) << 6)),
        _ => {}
    }
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let now = NOW + u64::from(tape.byte()) % 16;
    let theirs = bench().hubs[hub].verify(&headers, now);
    let ours = check(HUBS[hub], &headers, now, &signed);
    match (&theirs, &ours) {
        (Ok(grant), Some(claims)) => {
            assert_eq!(grant.subject, claims.sub);
            assert_eq!(grant.expires_unix, claims.exp.saturating_add(LEEWAY));
            let names = |g: &Vec<nowconnect_core::id::Name>| g.iter().map(ToString::to_string).collect::<Vec<_>>();
            assert_eq!(grant.connectors.as_ref().map(names), claims.connectors);
        }
        (Err(_), None) => {}
        _ => panic!("the hub says {theirs:?}, the checker {ours:?}, of {headers:?} at {now}"),
    }
}

fn token(tape: &mut Tape<'_>, hub: usize, signed: &mut Vec<Signed>) -> String {
    let (own, kid, alg) = tape.pick(HUBS[hub]).unwrap_or(HMAC);
    let signer = if tape.one_in(6) {
        tape.pick(&[Signer::Stranger, Signer::Hmac, Signer::Ec, Signer::Ed]).unwrap_or(own)
    } else {
        own
    };
    let message = format!("{}.{}", segment(&header(tape, kid, alg)), segment(&claims(tape)));
    let bench = bench();
    let by = |key, algorithm| jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).expect("a signature");
    let signature = match signer {
        Signer::Hmac => segment(&mac(&message)),
        Signer::Ec => by(&bench.ec, Algorithm::ES256),
        Signer::Ed => by(&bench.ed, Algorithm::EdDSA),
        Signer::Stranger => by(&bench.stranger, Algorithm::ES256),
    };
    let token = format!("{message}.{signature}");
    signed.push((signer, message, signature));
    token
}

fn segment(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn mac(message: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(HMAC_SECRET).expect("HMAC takes a key of any length");
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn raw(tape: &mut Tape<'_>) -> Vec<u8> {
    let len = usize::from(tape.byte());
    tape.raw(len).to_vec()
}

/// A header for this key, or another.
fn header(tape: &mut Tape<'_>, kid: Option<&str>, alg: &str) -> Vec<u8> {
    if tape.one_in(24) {
        return raw(tape);
    }
    let mut fields = Vec::new();
    let named = if tape.one_in(8) {
        tape.pick(&["\"HS256\"", "\"ES256\"", "\"EdDSA\"", "\"none\"", "\"RS256\"", "\"hs256\"", "7", "null"])
            .unwrap_or("null")
            .to_owned()
    } else {
        format!("\"{alg}\"")
    };
    if tape.one_in(24) {
        return format!("[{named},null,false]").into_bytes();
    }
    if !tape.one_in(24) {
        fields.push(format!("\"alg\":{named}"));
    }
    let other = ["\"p\"", "\"e\"", "\"x\"", "\"\"", "null", "5", "\"../p\"", "\"p p\"", "\"\\u0070\""];
    match tape.below(8) {
        7 => fields.push(format!("\"kid\":{}", tape.pick(&other).unwrap_or("null"))),
        6 => {}
        _ => fields.extend(kid.map(|k| format!("\"kid\":\"{k}\""))),
    }
    if tape.one_in(8) {
        let extra = [
            "\"typ\":\"JWT\"",
            "\"jwk\":{}",
            "\"jku\":null",
            "\"x5u\":\"https://evil\"",
            "\"x5c\":[]",
            "\"crit\":[\"exp\"]",
            "\"alg\":\"none\"",
            "\"b64\":false",
            "\"k\\u0069d\":\"p\"",
            "\"z\":1e999",
        ];
        fields.push(tape.pick(&extra).unwrap_or("\"typ\":\"JWT\"").to_owned());
    }
    format!("{{{}}}", fields.join(",")).into_bytes()
}

/// Claims, right but for what the tape spoils.
fn claims(tape: &mut Tape<'_>) -> Vec<u8> {
    if tape.one_in(24) {
        return raw(tape);
    }
    let mut fields: Vec<(&str, String)> = vec![
        ("iss", format!("\"{ISSUER}\"")),
        ("sub", "\"plant-7\"".to_owned()),
        ("aud", format!("\"{AUDIENCE}\"")),
        ("exp", (NOW + 3600).to_string()),
    ];
    for _ in 0..tape.below(5) {
        let at = tape.below(9);
        let value = value(tape);
        match at {
            0..=3 if tape.one_in(4) => {
                fields.truncate(at);
            }
            0..=3 if fields.len() > at => fields[at].1 = value,
            4 => fields.push(("nbf", value)),
            5 => fields.push(("iat", value)),
            6 => fields.push(("connectors", value)),
            7 => fields.push(("aud", value)),
            _ => fields.push(("scope", value)),
        }
    }
    if tape.one_in(24) {
        let values: Vec<String> = fields.into_iter().map(|(_, v)| v).collect();
        return format!("[{}]", values.join(",")).into_bytes();
    }
    let fields: Vec<String> = fields.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
    format!("{{{}}}", fields.join(", ")).into_bytes()
}

fn value(tape: &mut Tape<'_>) -> String {
    let words = [
        "\"nowconnect\"",
        "[\"nowconnect\"]",
        "[\"other\",\"nowconnect\"]",
        "[\"nowconnect\",5]",
        "[]",
        "[\"ldap\",\"web\"]",
        "[\"a b\"]",
        "null",
        "true",
        "\"a/b\"",
        "\"a/b/c\"",
        "\"\"",
        "\"https://idp\"",
        "{\"a\":[1e999]}",
        "-1",
        "1e3",
        "18446744073709551615",
        "18446744073709551616",
        "1800003600.0",
    ];
    match tape.below(8) {
        0..=2 => {
            let near = [NOW, NOW - LEEWAY, NOW + LEEWAY, NOW + LIFETIME, NOW + LIFETIME + LEEWAY, 0];
            let near = tape.pick(&near).unwrap_or(NOW);
            (near + u64::from(tape.byte()) % 32).saturating_sub(8).to_string()
        }
        3 => String::from_utf8_lossy(&raw(tape)).into_owned(),
        4 => format!("[{}]", vec!["\"c\""; 250 + tape.below(10)].join(",")),
        _ => tape.pick(&words).unwrap_or("null").to_owned(),
    }
}

/// Spoils the first token, or makes one of two.
fn twist(tape: &mut Tape<'_>, tokens: &mut [String]) {
    let at = tape.below(tokens[0].len() + 1);
    let byte = tape.pick(b"A-_=.+/ \ngQw").unwrap_or(b'A');
    let other = tokens.last().cloned().unwrap_or_default();
    let token = &mut tokens[0];
    match tape.below(6) {
        0 if at < token.len() => token.replace_range(at..=at, &char::from(byte).to_string()),
        1 => token.insert(at, char::from(byte)),
        2 => token.truncate(at),
        3 => token.push(char::from(byte)),
        4 => {
            let (message, _) = token.rsplit_once('.').unwrap_or((token, ""));
            *token = format!("{message}.{}", other.rsplit('.').next().unwrap_or_default());
        }
        _ => {
            let header = token.split('.').next().unwrap_or_default();
            *token = format!("{header}.{}", other.split_once('.').map_or("", |(_, rest)| rest));
        }
    }
}

// The checker.

#[derive(Debug)]
struct Claims {
    sub: String,
    exp: u64,
    connectors: Option<Vec<String>>,
}

fn check(keys: &[Trusted], headers: &[&str], now: u64, signed: &[Signed]) -> Option<Claims> {
    let [value] = headers else { return None };
    let token = match value.get(..7) {
        Some(scheme) if value.len() <= 8192 && scheme.eq_ignore_ascii_case("bearer ") => &value[7..],
        Some(_) | None => return None,
    };
    let segments: Vec<&str> = token.split('.').collect();
    let [header, claims, signature] = segments[..] else { return None };
    let (header, claims) = (decoded(header)?, decoded(claims)?);
    decoded(signature)?;

    let header = fields(&header, &["alg", "kid", "jwk", "jku", "x5u", "x5c", "crit"])?;
    let of = |name: &str| header.iter().find(|(k, _)| k == name).map(|(_, v)| v);
    if ["jwk", "jku", "x5u", "x5c", "crit"].iter().any(|name| of(name).is_some()) {
        return None;
    }
    let alg = of("alg")?.as_str()?;
    let kid = match of("kid") {
        None | Some(Value::Null) => None,
        Some(kid) => Some(kid.as_str()?),
    };
    let names = keys.iter().filter(|k| k.1.is_some()).count();
    let chosen = keys.iter().find(|(_, name, own)| {
        let named = match (kid, name) {
            (Some(kid), Some(name)) => kid == *name,
            (Some(kid), None) => {
                // A name that could be a path or a query is none.
                let odd = |c: char| !(c.is_ascii_alphanumeric() || "._-=+:".contains(c));
                !kid.is_empty() && kid.len() <= 128 && !kid.contains(odd) && !kid.contains("..")
            }
            (None, Some(_)) => names == 1,
            (None, None) => true,
        };
        named && *own == alg
    })?;
    let message = token.rsplit_once('.')?.0;
    let right = match chosen.0 {
        Signer::Hmac => decoded(signature)? == mac(message),
        Signer::Ec | Signer::Ed | Signer::Stranger => {
            signed.iter().any(|(by, said, text)| *by == chosen.0 && said == message && text == signature)
        }
    };
    if !right {
        return None;
    }

    let claims = fields(&claims, &["iss", "sub", "aud", "exp", "nbf", "iat", "connectors"])?;
    let of = |name: &str| claims.iter().find(|(k, _)| k == name).map(|(_, v)| v);
    let text = |name: &str| of(name)?.as_str();
    let number = |name: &str| match of(name) {
        None => Some(None),
        Some(value) => value.as_u64().map(Some),
    };
    let strings = |value: &Value| -> Option<Vec<String>> {
        value.as_array()?.iter().map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let audiences = match of("aud")? {
        Value::String(one) => vec![one.clone()],
        several @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            strings(several)?
        }
    };
    let connectors = match of("connectors") {
        None => None,
        Some(value) => Some(strings(value)?),
    };
    let plain =
        |s: &str| (1..=64).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    let sub = text("sub")?;
    let (exp, nbf, iat) = (number("exp")??, number("nbf")?, number("iat")?);
    let subject = sub.split_once('/').map_or_else(|| plain(sub), |(a, b)| plain(a) && plain(b));
    let known = audiences.iter().any(|a| a == AUDIENCE) && text("iss")? == ISSUER && subject;
    let alive = u128::from(now) < u128::from(exp) + u128::from(LEEWAY);
    let begun = [nbf, iat].iter().flatten().all(|t| *t <= now + LEEWAY);
    let short = exp.saturating_sub(iat.unwrap_or(now).min(now)) <= LIFETIME + LEEWAY;
    let few = connectors.as_ref().is_none_or(|c| c.len() <= 256 && c.iter().all(|c| plain(c)));
    (known && alive && begun && short && few).then(|| Claims { sub: sub.to_owned(), exp, connectors })
}

/// Base64url without padding; its last character has no stray bits.
fn decoded(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (mut bits, mut count, mut out) = (0_u32, 0, Vec::new());
    for byte in text.bytes() {
        bits = bits << 6 | u32::try_from(ALPHABET.iter().position(|a| *a == byte)?).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from(bits >> count & 0xff).ok()?);
            bits &= (1 << count) - 1;
        }
    }
    (count < 6 && bits == 0).then_some(out)
}

/// The fields of an object, the known ones with their values; none of the known
/// twice. The others are only skipped, as they may hold anything.
fn fields(json: &[u8], known: &[&str]) -> Option<Vec<(String, Value)>> {
    struct Pairs<'k>(&'k [&'k str]);
    impl<'de> Visitor<'de> for Pairs<'_> {
        type Value = Vec<(String, Value)>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut pairs: Self::Value = Vec::new();
            while let Some(key) = map.next_key::<String>()? {
                if !self.0.contains(&key.as_str()) {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                if pairs.iter().any(|(k, _)| *k == key) {
                    return Err(serde::de::Error::custom("twice"));
                }
                pairs.push((key, map.next_value()?));
            }
            Ok(pairs)
        }
    }
    let mut reader = serde_json::Deserializer::from_slice(json);
    let pairs = reader.deserialize_map(Pairs(known)).ok()?;
    reader.end().ok()?;
    Some(pairs)
}

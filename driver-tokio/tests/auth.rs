//! Tokens: what passes, and attacks 5 and 15 to 22 with the reason each is
//! refused for. Tokens are put together by hand where a library would refuse
//! to make them.

#![allow(clippy::unwrap_used, clippy::unwrap_in_result, reason = "a test that cannot go on should fail there")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use nowconnect::auth::{AuthReject, AuthSetupError, TunnelAuth};
use nowconnect::config::AuthSetup;
use rcgen::{KeyPair, PKCS_ED25519, PKCS_RSA_SHA256};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

struct Bench {
    dir: tempfile::TempDir,
    ec: KeyPair,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap(), ec: KeyPair::generate().unwrap() };
        bench.put("ec.pub", bench.ec.public_key_pem());
        bench
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn setup(&self) -> AuthSetup {
        AuthSetup {
            audience: "nowconnect".into(),
            issuer: Some("https://idp".into()),
            algorithms: Vec::new(),
            public_key_file: Some(self.path("ec.pub")),
            hmac_secret_file: None,
            jwks_file: None,
            jwks: None,
            max_lifetime: Duration::from_secs(24 * 3600),
            leeway: Duration::from_secs(5),
        }
    }

    fn auth(&self) -> TunnelAuth {
        TunnelAuth::from_setup(&self.setup()).unwrap()
    }

    fn es256(&self) -> EncodingKey {
        EncodingKey::from_ec_pem(self.ec.serialize_pem().as_bytes()).unwrap()
    }

    /// A token signed with the EC key, whatever its header says.
    fn signed(&self, header: &Value, claims: &str) -> String {
        sign(&header.to_string(), claims, &self.es256(), Algorithm::ES256)
    }

    fn token(&self, claims: &Value) -> String {
        self.signed(&json!({"alg": "ES256", "typ": "JWT"}), &claims.to_string())
    }
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn sign(header: &str, claims: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", b64(header), b64(claims));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn claims() -> Value {
    json!({"iss": "https://idp", "sub": "plant-7", "aud": "nowconnect", "iat": NOW - 10, "exp": NOW + 3600, "connectors": ["ldap"]})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

fn verify(auth: &TunnelAuth, token: &str) -> Result<nowconnect::auth::TokenGrant, AuthReject> {
    auth.verify(&[&format!("Bearer {token}")], NOW)
}

#[test]
fn a_good_token() {
    let bench = Bench::new();
    let grant = verify(&bench.auth(), &bench.token(&claims())).unwrap();
    assert_eq!(grant.subject, "plant-7");
    assert_eq!(grant.connectors.as_ref().unwrap()[0].as_str(), "ldap");
    assert_eq!(grant.expires_unix, NOW + 3605);
    let at = nowconnect_core::time::Instant::from_nanos(7_000_000_000);
    let on_clock = grant.on_clock(NOW, at);
    assert_eq!(on_clock.expires, Some(at.after(Duration::from_secs(3605))));
}

#[test]
fn variants_that_pass() {
    let bench = Bench::new();
    let auth = bench.auth();
    for (what, claims) in [
        ("array of audiences", with("aud", json!(["other", "nowconnect"]))),
        ("no connectors", without("connectors")),
        ("no iat", without("iat")),
        ("nbf just ahead, inside the leeway", with("nbf", json!(NOW + 5))),
        ("expired inside the leeway", with("exp", json!(NOW - 4))),
        ("agent id with a replica", with("sub", json!("plant-7/a"))),
        ("unknown claim", with("scope", json!("x"))),
    ] {
        assert!(verify(&auth, &bench.token(&claims)).is_ok(), "{what}");
    }
    assert_eq!(verify(&auth, &bench.token(&without("connectors"))).unwrap().connectors, None);
    // Identity providers put a kid into every token; a lone PEM key has none to compare.
    assert!(verify(&auth, &bench.signed(&json!({"alg": "ES256", "kid": "2026-11"}), &claims().to_string())).is_ok());
    assert!(auth.verify(&[&format!("bearer {}", bench.token(&claims()))], NOW).is_ok());
}

#[test]
fn a_list_is_no_header_and_no_set_of_claims() {
    let bench = Bench::new();
    let auth = bench.auth();
    let (header, good) = (json!({"alg": "ES256"}), claims().to_string());
    assert!(verify(&auth, &bench.signed(&header, &good)).is_ok());
    assert_eq!(verify(&auth, &bench.signed(&json!(["ES256"]), &good)), Err(AuthReject::Malformed));
    let listed = json!(["https://idp", "plant-7", "nowconnect", NOW + 3600, NOW, NOW, ["ldap"]]).to_string();
    assert_eq!(verify(&auth, &bench.signed(&header, &listed)), Err(AuthReject::Claims));
}

#[test]
fn attacks() {
    let bench = Bench::new();
    let auth = bench.auth();
    let good = bench.token(&claims());
    let text = claims().to_string();
    let parts: Vec<&str> = good.split('.').collect();
    let (header, body, signature) = (parts[0], parts[1], parts[2]);
    let raw = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let public_pem = bench.ec.public_key_pem();
    let as_secret = EncodingKey::from_secret(public_pem.as_bytes());
    let hs_of_ours = sign(&json!({"alg": "HS256"}).to_string(), &text, &as_secret, Algorithm::HS256);
    let other = KeyPair::generate().unwrap();
    let other = EncodingKey::from_ec_pem(other.serialize_pem().as_bytes()).unwrap();
    let headed = |extra: Value| {
        let mut header = json!({"alg": "ES256"});
        header.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        bench.signed(&header, &text)
    };
    let odd = |claims: &str| bench.signed(&json!({"alg": "ES256"}), claims);
    let exp = NOW + 3600;
    // The last character of a 64-byte signature carries four bits nobody reads.
    let respelled = {
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let (head, last) = signature.split_at(signature.len() - 1);
        let at = alphabet.find(last).unwrap();
        format!("{header}.{body}.{head}{}", &alphabet[at + 1..at + 2])
    };
    use AuthReject as R;
    let rows: Vec<(&str, String, R)> = vec![
        ("15 alg none, no signature", format!("{}.{body}.", b64(r#"{"alg":"none"}"#)), R::Algorithm),
        ("15 alg None", format!("{}.{body}.{signature}", b64(r#"{"alg":"None"}"#)), R::Algorithm),
        ("15 HS256 signed with the public key", hs_of_ours, R::Algorithm),
        ("15 unlisted alg", bench.signed(&json!({"alg": "ES384"}), &text), R::Algorithm),
        ("15 alg missing", format!("{}.{body}.{signature}", b64("{}")), R::Malformed),
        ("15 alg twice", format!("{}.{body}.{signature}", b64(r#"{"alg":"ES256","alg":"none"}"#)), R::Malformed),
        ("15 another key", sign(&json!({"alg": "ES256"}).to_string(), &text, &other, Algorithm::ES256), R::Signature),
        ("16 kid with a path", headed(json!({"kid": "../../etc/passwd"})), R::UnknownKey),
        ("16 kid with SQL", headed(json!({"kid": "' OR 1=1 --"})), R::UnknownKey),
        ("16 long kid", headed(json!({"kid": "k".repeat(200)})), R::UnknownKey),
        ("16 empty kid", headed(json!({"kid": ""})), R::UnknownKey),
        ("16 kid of 10 KiB", headed(json!({"kid": "k".repeat(10 << 10)})), R::TooLong),
        ("16 kid of another type", headed(json!({"kid": 7})), R::Malformed),
        ("17 jwk", headed(json!({"jwk": {"kty": "EC"}})), R::ForbiddenHeader),
        ("17 jku", headed(json!({"jku": "https://evil/keys"})), R::ForbiddenHeader),
        ("17 x5u", headed(json!({"x5u": "https://evil/cert"})), R::ForbiddenHeader),
        ("17 x5c", headed(json!({"x5c": []})), R::ForbiddenHeader),
        ("17 crit", headed(json!({"crit": ["exp"]})), R::ForbiddenHeader),
        ("17 null jwk", headed(json!({"jwk": null})), R::ForbiddenHeader),
        ("18 exp missing", bench.token(&without("exp")), R::Claims),
        ("18 exp text", bench.token(&with("exp", json!(exp.to_string()))), R::Claims),
        ("18 exp fraction", bench.token(&with("exp", json!(1e10 + 0.5))), R::Claims),
        ("18 exp negative", bench.token(&with("exp", json!(-1))), R::Claims),
        ("18 exp null", bench.token(&with("exp", json!(null))), R::Claims),
        ("18 exp 1e400", odd(&text.replace(&exp.to_string(), "1e400")), R::Claims),
        ("18 exp twice", odd(&text.replace("\"exp\":", "\"exp\":9999999999,\"exp\":")), R::Claims),
        ("18 exp past", bench.token(&with("exp", json!(NOW - 5))), R::Expired),
        ("18 exp zero", bench.token(&with("exp", json!(0))), R::Expired),
        ("18 exp in the far future", bench.token(&with("exp", json!(NOW + 25 * 3600))), R::Lifetime),
        ("18 exp at the end of numbers", bench.token(&with("exp", json!(u64::MAX))), R::Lifetime),
        ("18 long lifetime, nearly over", bench.token(&with("iat", json!(NOW - 30 * 3600))), R::Lifetime),
        ("18 iat in the future", bench.token(&with("iat", json!(NOW + 60))), R::NotYetValid),
        ("18 iat text", bench.token(&with("iat", json!("now"))), R::Claims),
        ("18 iat null", bench.token(&with("iat", json!(null))), R::Claims),
        ("18 nbf in the future", bench.token(&with("nbf", json!(NOW + 6))), R::NotYetValid),
        ("18 nbf negative", bench.token(&with("nbf", json!(-1))), R::Claims),
        ("19 aud missing", bench.token(&without("aud")), R::Claims),
        ("19 aud prefix", bench.token(&with("aud", json!("nowconnect-admin"))), R::Audience),
        ("19 aud empty", bench.token(&with("aud", json!(""))), R::Audience),
        ("19 aud of others", bench.token(&with("aud", json!(["a", "b"]))), R::Audience),
        ("19 aud empty list", bench.token(&with("aud", json!([]))), R::Audience),
        ("19 aud number", bench.token(&with("aud", json!(7))), R::Claims),
        ("20 wrong iss", bench.token(&with("iss", json!("https://idp/"))), R::Issuer),
        ("20 iss missing", bench.token(&without("iss")), R::Claims),
        ("21 sub missing", bench.token(&without("sub")), R::Claims),
        ("21 sub of hostile characters", bench.token(&with("sub", json!("a\r\nb"))), R::Subject),
        ("21 sub empty", bench.token(&with("sub", json!(""))), R::Subject),
        ("connectors no list", bench.token(&with("connectors", json!("ldap"))), R::Claims),
        ("connectors null", bench.token(&with("connectors", json!(null))), R::Claims),
        ("connectors with a glob", bench.token(&with("connectors", json!(["*"]))), R::Connectors),
        ("connectors, 300 of them", bench.token(&with("connectors", json!(vec!["c"; 300]))), R::Connectors),
        ("22 signature cut", format!("{header}.{body}.{}", b64(&raw[..63])), R::Signature),
        ("22 signature longer", format!("{header}.{body}.{}", b64([raw.clone(), vec![0]].concat())), R::Signature),
        ("22 signature of zeros", format!("{header}.{body}.{}", b64([0; 64])), R::Signature),
        ("22 no signature", format!("{header}.{body}."), R::Signature),
        ("22 padding", format!("{header}.{body}.{signature}=="), R::Malformed),
        ("22 trailing bits", respelled, R::Malformed),
        ("22 plain base64", format!("{header}.{body}.{}", STANDARD.encode([0xff; 64])), R::Malformed),
        ("22 two segments", format!("{header}.{body}"), R::Malformed),
        ("22 four segments", format!("{good}.{signature}"), R::Malformed),
        ("22 five segments", format!("{good}..{signature}"), R::Malformed),
        (
            "22 other claims",
            format!("{header}.{}.{signature}", b64(with("sub", json!("plant-8")).to_string())),
            R::Signature,
        ),
        ("22 above 8 KiB", "x".repeat(9 << 10), R::TooLong),
        ("22 header no JSON", format!("{}.{body}.{signature}", b64("{")), R::Malformed),
        ("22 header with bytes after it", format!("{}.{body}.{signature}", b64(r#"{"alg":"ES256"} {}"#)), R::Malformed),
        ("22 claims no JSON", odd("[1]"), R::Claims),
        ("22 claims of a NUL", odd("\u{0}"), R::Claims),
        ("22 empty", String::new(), R::NotBearer),
        ("22 space inside", format!("{header}. {body}.{signature}"), R::NotBearer),
    ];
    assert!(rows.len() >= 25);
    for (attack, token, expected) in &rows {
        let reject = verify(&auth, token).expect_err(attack);
        assert_eq!(reject, *expected, "{attack}");
        assert_eq!(reject.http_status(), 401, "{attack}");
    }
    assert!(verify(&auth, &good).is_ok(), "the judge was not harmed");
}

#[test]
fn attack_5_headers() {
    let bench = Bench::new();
    let auth = bench.auth();
    let good = format!("Bearer {}", bench.token(&claims()));
    for (headers, reject, status) in [
        (vec![], AuthReject::Missing, 401),
        (vec![good.as_str(), good.as_str()], AuthReject::Duplicate, 400),
        (vec!["Basic dTpw"], AuthReject::NotBearer, 401),
        (vec!["Bearer"], AuthReject::NotBearer, 401),
        (vec![""], AuthReject::NotBearer, 401),
    ] {
        let got = auth.verify(&headers, NOW).unwrap_err();
        assert_eq!((got, got.http_status()), (reject, status), "{headers:?}");
    }
    let names: std::collections::BTreeSet<_> = AuthReject::ALL.iter().map(|r| r.name()).collect();
    assert_eq!(names.len(), AuthReject::ALL.len(), "metric labels are distinct");
}

#[test]
fn every_type_of_key() {
    let bench = Bench::new();
    let text = claims().to_string();
    let ed = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let rsa = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let rsa_key = EncodingKey::from_rsa_pem(rsa.serialize_pem().as_bytes()).unwrap();
    let ed_key = EncodingKey::from_ed_pem(ed.serialize_pem().as_bytes()).unwrap();
    bench.put("ed.pub", ed.public_key_pem());
    bench.put("rsa.pub", rsa.public_key_pem());
    bench.put("secret", [SECRET, b"\n"].concat());
    let public = |name: &str, algorithms: &[Algorithm]| {
        let setup =
            AuthSetup { public_key_file: Some(bench.path(name)), algorithms: algorithms.to_vec(), ..bench.setup() };
        TunnelAuth::from_setup(&setup)
    };
    let eddsa = sign(r#"{"alg":"EdDSA"}"#, &text, &ed_key, Algorithm::EdDSA);
    assert!(verify(&public("ed.pub", &[]).unwrap(), &eddsa).is_ok());
    let rs256 = sign(r#"{"alg":"RS256"}"#, &text, &rsa_key, Algorithm::RS256);
    let ps256 = sign(r#"{"alg":"PS256"}"#, &text, &rsa_key, Algorithm::PS256);
    // One algorithm per key: the other of the same family is refused.
    let rs_only = public("rsa.pub", &[]).unwrap();
    assert!(verify(&rs_only, &rs256).is_ok());
    assert_eq!(verify(&rs_only, &ps256), Err(AuthReject::Algorithm));
    let ps_only = public("rsa.pub", &[Algorithm::PS256]).unwrap();
    assert!(verify(&ps_only, &ps256).is_ok());
    assert_eq!(verify(&ps_only, &rs256), Err(AuthReject::Algorithm));
    assert!(public("rsa.pub", &[Algorithm::PS256, Algorithm::RS256]).is_err(), "one algorithm per key");
    assert!(public("ec.pub", &[Algorithm::RS256]).is_err(), "no algorithm for this key");

    let hmac = AuthSetup { public_key_file: None, hmac_secret_file: Some(bench.path("secret")), ..bench.setup() };
    let hs256 = sign(r#"{"alg":"HS256"}"#, &text, &EncodingKey::from_secret(SECRET), Algorithm::HS256);
    assert!(verify(&TunnelAuth::from_setup(&hmac).unwrap(), &hs256).is_ok());

    // Two keys side by side: each only under its own algorithm.
    let both = AuthSetup { hmac_secret_file: Some(bench.path("secret")), ..bench.setup() };
    let both = TunnelAuth::from_setup(&both).unwrap();
    assert!(verify(&both, &hs256).is_ok());
    assert!(verify(&both, &bench.token(&claims())).is_ok());
    let pem_as_secret = EncodingKey::from_secret(bench.ec.public_key_pem().as_bytes());
    let confused = sign(r#"{"alg":"HS256"}"#, &text, &pem_as_secret, Algorithm::HS256);
    assert_eq!(verify(&both, &confused), Err(AuthReject::Signature));
}

fn jwk(key: &KeyPair, kid: Option<&str>) -> Value {
    let point = key.public_key_raw();
    let mut jwk = json!({"kty": "EC", "crv": "P-256", "use": "sig", "x": b64(&point[1..33]), "y": b64(&point[33..65])});
    if let Some(kid) = kid {
        jwk["kid"] = json!(kid);
    }
    jwk
}

#[test]
fn key_sets() {
    let bench = Bench::new();
    let second = KeyPair::generate().unwrap();
    let second_key = EncodingKey::from_ec_pem(second.serialize_pem().as_bytes()).unwrap();
    let text = claims().to_string();
    let set = json!({"keys": [jwk(&bench.ec, Some("one")), jwk(&second, Some("two")),
        {"kty": "oct", "kid": "shared", "k": b64(SECRET), "alg": "HS256"}]});
    let file = bench.put("jwks.json", set.to_string());
    let setup = AuthSetup { public_key_file: None, jwks_file: Some(file), ..bench.setup() };
    let auth = TunnelAuth::from_setup(&setup).unwrap();
    let by = |kid: Option<&str>, key: &EncodingKey| {
        let header = kid.map_or(json!({"alg": "ES256"}), |kid| json!({"alg": "ES256", "kid": kid}));
        sign(&header.to_string(), &text, key, Algorithm::ES256)
    };
    assert!(verify(&auth, &by(Some("one"), &bench.es256())).is_ok());
    assert!(verify(&auth, &by(Some("two"), &second_key)).is_ok());
    assert_eq!(verify(&auth, &by(Some("two"), &bench.es256())), Err(AuthReject::Signature), "kid selects exactly");
    assert_eq!(verify(&auth, &by(Some("three"), &second_key)), Err(AuthReject::UnknownKey));
    assert_eq!(verify(&auth, &by(None, &second_key)), Err(AuthReject::UnknownKey), "several keys need a kid");
    let shared = sign(r#"{"alg":"HS256","kid":"shared"}"#, &text, &EncodingKey::from_secret(SECRET), Algorithm::HS256);
    assert_eq!(verify(&auth, &shared), Err(AuthReject::UnknownKey), "a set holds no secrets");

    // Rotation: the set is read again once it has changed; a bad one changes nothing.
    assert_eq!(auth.reload_if_changed(), Ok(false));
    bench.put("jwks.json", "<html>502</html>");
    assert!(auth.reload_if_changed().is_err());
    assert!(verify(&auth, &by(Some("one"), &bench.es256())).is_ok(), "the last good set stays");
    bench.put("jwks.json", json!({"keys": [jwk(&second, Some("three"))]}).to_string());
    assert_eq!(auth.reload_if_changed(), Ok(true));
    assert!(verify(&auth, &by(Some("three"), &second_key)).is_ok());
    assert!(verify(&auth, &by(None, &second_key)).is_ok(), "a set of one key needs no kid");
    assert_eq!(verify(&auth, &by(Some("one"), &bench.es256())), Err(AuthReject::UnknownKey));
}

#[test]
fn unusable_keys() {
    let bench = Bench::new();
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    type Change = fn(&mut AuthSetup, &Path);
    let public: Change = |s, f| s.public_key_file = Some(f.to_owned());
    let secret: Change = |s, f| s.hmac_secret_file = Some(f.to_owned());
    let set: Change = |s, f| s.jwks_file = Some(f.to_owned());
    let rows: Vec<(&str, Change, String, &str)> = vec![
        ("no PEM", public, "hello".into(), "expected one PEM block `PUBLIC KEY`"),
        ("private key", public, bench.ec.serialize_pem(), "it holds a private key"),
        ("other curve", public, p384.public_key_pem(), "another curve"),
        ("short secret", secret, "x".repeat(31), "expected at least 32 bytes of secret, got 31"),
        ("PEM as secret", secret, bench.ec.public_key_pem(), "auth.jwt.public_key_file"),
        ("no JSON", set, "<html>".into(), "expected a JSON Web Key Set"),
        ("no key", set, json!({"keys": []}).to_string(), "holds no signature key"),
        (
            "encryption key only",
            set,
            json!({"keys": [{"kty": "EC", "crv": "P-256", "use": "enc", "x": "AA", "y": "AA"}]}).to_string(),
            "holds no signature key",
        ),
        (
            "kid twice",
            set,
            json!({"keys": [jwk(&bench.ec, Some("a")), jwk(&bench.ec, Some("a"))]}).to_string(),
            "same kid",
        ),
        ("65 keys", set, json!({"keys": vec![jwk(&bench.ec, None); 65]}).to_string(), "at most 64 keys"),
        ("huge", set, "x".repeat(300 << 10), "exceeds 262144 bytes"),
    ];
    for (what, change, content, fragment) in rows {
        let file = bench.put("bad", content);
        let mut setup = AuthSetup { public_key_file: None, ..bench.setup() };
        change(&mut setup, &file);
        let error = TunnelAuth::from_setup(&setup).expect_err(what).to_string();
        assert!(error.contains(fragment) && error.starts_with("auth.jwt."), "{what}: {error}");
    }
    let none = AuthSetup { public_key_file: None, ..bench.setup() };
    assert_eq!(TunnelAuth::from_setup(&none).unwrap_err(), AuthSetupError::NoKey);
    let no_issuer = AuthSetup { issuer: None, ..bench.setup() };
    assert_eq!(TunnelAuth::from_setup(&no_issuer).unwrap_err(), AuthSetupError::NoIssuer);
    let absent = AuthSetup { public_key_file: Some(bench.path("absent")), ..bench.setup() };
    assert!(TunnelAuth::from_setup(&absent).unwrap_err().to_string().contains("absent: cannot be read"));
}

//! Before a WebSocket exists: requests and tokens.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nowconnect_tests::hostile::{Peer, Reaction, raw_http, slow_http, upgrade_headers, upgrade_request};
use nowconnect_tests::token::{self, SECRET, claims, sign, unix_now};
use serde_json::{Value, json};

use super::{Attack, Case, INTRUDER, TUNNEL, Want};

fn case(name: &'static str, act: fn(&Attack) -> Reaction, want: Want) -> Case {
    Case { name, act, want }
}

/// A correct upgrade but for what `bend` does to its headers.
fn bent(attack: &Attack, bend: impl for<'a> FnOnce(&mut Vec<(&'a str, &'a str)>)) -> Reaction {
    let bearer = format!("Bearer {}", attack.token());
    let mut headers = upgrade_headers(TUNNEL.subprotocol(), &bearer);
    bend(&mut headers);
    raw_http(attack.hub, upgrade_request("/tunnel", &headers).as_bytes())
}

fn replace<'a>(headers: &mut [(&'a str, &'a str)], name: &str, value: &'a str) {
    headers.iter_mut().filter(|(n, _)| *n == name).for_each(|h| h.1 = value);
}

pub(super) fn requests() -> Vec<Case> {
    vec![
        case("1 a head that never ends", |a| slow_http(a.hub), Want::Refused(&[408])),
        case(
            "2 a head of 64 KiB",
            |a| bent(a, |h| h.push(("X-Long", Box::leak("a".repeat(64 * 1024).into_boxed_str())))),
            Want::Refused(&[431, 400]),
        ),
        case("2 a thousand headers", |a| bent(a, |h| h.extend([("X-Many", "1"); 1000])), Want::Refused(&[431, 400])),
        case(
            "4 no upgrade",
            |a| raw_http(a.hub, b"GET /tunnel HTTP/1.1\r\nHost: x\r\n\r\n"),
            Want::Status(&[400, 426]),
        ),
        case("4 no such path", |a| raw_http(a.hub, b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"), Want::Status(&[404])),
        case(
            "4 a POST",
            |a| raw_http(a.hub, b"POST /tunnel HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
            Want::Status(&[400, 405, 426]),
        ),
        case(
            "4 HTTP/2 with prior knowledge",
            |a| raw_http(a.hub, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
            Want::Refused(&[400, 404, 405, 426, 505]),
        ),
        case(
            "4 no HTTP at all",
            |a| raw_http(a.hub, &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 13, 10, 13, 10]),
            Want::Refused(&[400]),
        ),
        case("4 another upgrade", |a| bent(a, |h| replace(h, "Upgrade", "h2c")), Want::Status(&[400, 426])),
        case(
            "4 WebSocket version 12",
            |a| bent(a, |h| replace(h, "Sec-WebSocket-Version", "12")),
            Want::Status(&[400, 426]),
        ),
        case("4 no WebSocket key", |a| bent(a, |h| h.retain(|(n, _)| *n != "Sec-WebSocket-Key")), Want::Status(&[400])),
        case(
            "5 two Authorization headers",
            |a| bent(a, |h| h.push(("Authorization", "Bearer x"))),
            Want::Status(&[400, 401]),
        ),
        case(
            "5 two WebSocket keys",
            |a| bent(a, |h| h.push(("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="))),
            Want::Status(&[400]),
        ),
        case("5 no Authorization", |a| bent(a, |h| h.retain(|(n, _)| *n != "Authorization")), Want::Status(&[401])),
        case("5 another scheme", |a| bent(a, |h| replace(h, "Authorization", "Basic dTpw")), Want::Status(&[401])),
        case("14 a browser's page", |a| bent(a, |h| h.push(("Origin", "https://evil.example"))), Want::Status(&[403])),
        case("an unknown subprotocol is told the known ones", unknown_subprotocol, Want::Status(&[400])),
        case(
            "no subprotocol",
            |a| bent(a, |h| h.retain(|(n, _)| *n != "Sec-WebSocket-Protocol")),
            Want::Status(&[400]),
        ),
        case(
            "a link's subprotocol on /tunnel",
            |a| bent(a, |h| replace(h, "Sec-WebSocket-Protocol", "nowconnect.mesh.v2")),
            Want::Status(&[400]),
        ),
        case("6 permessage-deflate is not taken up", deflate_offer, Want::Status(&[101])),
    ]
}

fn unknown_subprotocol(attack: &Attack) -> Reaction {
    let reaction = bent(attack, |h| replace(h, "Sec-WebSocket-Protocol", "nowconnect.tunnel.v9"));
    match &reaction {
        Reaction::Status(400, body) if !body.contains("nowconnect.tunnel.v2") => Reaction::Open,
        _ => reaction,
    }
}

fn deflate_offer(attack: &Attack) -> Reaction {
    let reaction = bent(attack, |h| h.push(("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")));
    // The 101 must not accept the extension; its head is not part of the
    // reaction, so a second connection shows that frames stay uncompressed.
    let mut peer = match Peer::upgrade(attack.hub, TUNNEL, &attack.token()) {
        Ok(peer) => peer,
        Err(other) => return other,
    };
    peer.ws(0xc2, b"compressed?");
    match peer.until_closed() {
        Reaction::Closed { .. } => reaction,
        other => other,
    }
}

/// Tries to upgrade with the claims of a good token after `bend`.
fn with_claims(attack: &Attack, bend: impl FnOnce(&mut Value)) -> Reaction {
    let mut claims = claims(INTRUDER, &["theirs"]);
    bend(&mut claims);
    with_token(attack, &sign(&json!({"alg": "HS256", "typ": "JWT"}), &claims.to_string(), SECRET))
}

fn with_header(attack: &Attack, header: &Value) -> Reaction {
    with_token(attack, &sign(header, &claims(INTRUDER, &["theirs"]).to_string(), SECRET))
}

fn with_token(attack: &Attack, token: &str) -> Reaction {
    match Peer::upgrade(attack.hub, TUNNEL, token) {
        Ok(peer) => {
            drop(peer);
            Reaction::Status(101, String::new())
        }
        Err(reaction) => reaction,
    }
}

fn unsigned(attack: &Attack, alg: &str) -> Reaction {
    let head = URL_SAFE_NO_PAD.encode(json!({"alg": alg, "typ": "JWT"}).to_string());
    let body = URL_SAFE_NO_PAD.encode(claims(INTRUDER, &["theirs"]).to_string());
    with_token(attack, &format!("{head}.{body}."))
}

pub(super) fn tokens() -> Vec<Case> {
    const NO: Want = Want::Status(&[401]);
    vec![
        case("a good token is let in", |a| with_claims(a, |_| {}), Want::Status(&[101])),
        case("15 alg none", |a| unsigned(a, "none"), NO),
        case("15 alg None", |a| unsigned(a, "None"), NO),
        case("15 HS256 without a signature", |a| unsigned(a, "HS256"), NO),
        case("15 an algorithm that is not listed", |a| with_header(a, &json!({"alg": "HS384"})), NO),
        case("15 an algorithm of another family", |a| with_header(a, &json!({"alg": "ES256"})), NO),
        case("15 no algorithm", |a| with_header(a, &json!({"typ": "JWT"})), NO),
        case(
            "another secret",
            |a| {
                let other = "00".repeat(32);
                with_token(a, &sign(&json!({"alg": "HS256"}), &claims(INTRUDER, &["theirs"]).to_string(), &other))
            },
            NO,
        ),
        case(
            "17 an extension nobody understands",
            |a| with_header(a, &json!({"alg": "HS256", "crit": ["x"], "x": 1})),
            NO,
        ),
        case("18 no exp", |a| with_claims(a, |c| drop(c.as_object_mut().unwrap().remove("exp"))), NO),
        case("18 exp as text", |a| with_claims(a, |c| c["exp"] = json!((unix_now() + 600).to_string())), NO),
        case("18 exp negative", |a| with_claims(a, |c| c["exp"] = json!(-1)), NO),
        case("18 exp beyond all numbers", huge_exp, NO),
        case("18 expired", |a| with_claims(a, |c| c["exp"] = json!(unix_now() - 3600)), NO),
        case("18 not yet valid", |a| with_claims(a, |c| c["nbf"] = json!(unix_now() + 3600)), NO),
        case("18 valid for a year", |a| with_claims(a, |c| c["exp"] = json!(unix_now() + 365 * 86_400)), NO),
        case("19 no aud", |a| with_claims(a, |c| drop(c.as_object_mut().unwrap().remove("aud"))), NO),
        case("19 another aud", |a| with_claims(a, |c| c["aud"] = json!("other")), NO),
        case("19 an aud that only begins alike", |a| with_claims(a, |c| c["aud"] = json!("nowconnect-x")), NO),
        case("20 another issuer", |a| with_claims(a, |c| c["iss"] = json!("https://evil.example")), NO),
        case("20 no issuer", |a| with_claims(a, |c| drop(c.as_object_mut().unwrap().remove("iss"))), NO),
        case("no sub", |a| with_claims(a, |c| drop(c.as_object_mut().unwrap().remove("sub"))), NO),
        case("22 padding", |a| with_token(a, &format!("{}=", token::good(INTRUDER, &["theirs"]))), NO),
        case("22 five segments", |a| with_token(a, &format!("{}.AAAA.AAAA", token::good(INTRUDER, &["theirs"]))), NO),
        case("22 no token", |a| with_token(a, "not-a-token"), NO),
        case(
            "22 more than 8 KiB",
            |a| with_claims(a, |c| c["filler"] = json!("a".repeat(9000))),
            Want::Status(&[401, 431, 400]),
        ),
    ]
}

fn huge_exp(attack: &Attack) -> Reaction {
    let claims = claims(INTRUDER, &["theirs"]).to_string();
    let exp = format!("\"exp\":{}", unix_now() + 3600);
    let at = claims.find("\"exp\":").unwrap();
    let huge = format!("{}\"exp\":1e400{}", &claims[..at], &claims[at + exp.len()..]);
    with_token(attack, &sign(&json!({"alg": "HS256"}), &huge, SECRET))
}

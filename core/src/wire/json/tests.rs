//! What the JSON encoding accepts, refuses and shares.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;
use crate::error::ProtocolErrorKind::{self, BadName, Malformed, TooLarge, Unexpected, UnknownType};

fn decoded(text: &str) -> Result<(u64, Vec<Frame>), ProtocolErrorKind> {
    let mut frames = Vec::new();
    let msg = Bytes::copy_from_slice(text.as_bytes());
    let n = decode(Plane::Tunnel, &msg, &WireLimits::ESTABLISHED, &mut frames).map_err(|e| e.kind)?;
    Ok((n, frames))
}

const FENCED: &str = r#""cid":"000102030405060708090a0b0c0d0e0f","epoch":"7""#;

fn data(b64: &str) -> String {
    format!(r#"{{"type":"DATA","n":1,{FENCED},"seq":0,"b64":"{b64}"}}"#)
}

fn payload_of(text: &str) -> Result<Bytes, ProtocolErrorKind> {
    let (_, frames) = decoded(text)?;
    match frames.into_iter().next() {
        Some(Frame::Stream { body: Body::Data { bytes, .. }, .. }) => Ok(bytes),
        other => panic!("DATA was expected, got {other:?}"),
    }
}

#[test]
fn only_canonical_base64_is_taken() {
    assert_eq!(payload_of(&data("AA==")), Ok(Bytes::from_static(&[0])));
    assert_eq!(payload_of(&data(r"\u0041\u0041==")), Ok(Bytes::from_static(&[0])), "an escape is only a spelling");
    assert_eq!(payload_of(&data(r"\/\/\/\/")), Ok(Bytes::from_static(&[255; 3])));
    for bad in
        ["", "AA", "AA=", "AB==", "AAB=", "A A=", "AA==\\n", "-_-_", "AAAA====", "====", "A===", "=AAA", "AA==AA=="]
    {
        assert_eq!(payload_of(&data(bad)), Err(Malformed), "{bad}");
    }
}

#[test]
fn payload_size_is_checked_before_it_is_decoded() {
    assert_eq!(payload_of(&data(&STANDARD.encode(vec![1; 65_536]))).map(|b| b.len()), Ok(65_536));
    assert_eq!(payload_of(&data(&STANDARD.encode(vec![1; 65_537]))), Err(TooLarge));
    let huge = "\u{0}".repeat(262_145);
    assert_eq!(decoded(&huge), Err(TooLarge));
}

#[test]
fn depth_is_judged_before_the_parser_runs() {
    // The nested value sits under a key that HELLO skips; broken JSON behind
    // the ninth level shows that nothing was parsed.
    let nested = |depth: usize| format!(r#"{{"type":"AUTH","x":{}1{}}}"#, "[".repeat(depth), "]".repeat(depth));
    assert!(decoded(&nested(7)).is_ok());
    let nested = nested(8);
    let refused = checked_text(nested.as_bytes()).map_err(|e| e.detail);
    assert_eq!(refused, Err("the text is nested deeper than the limit".into()));
    assert!(decoded(r#"{"type":"AUTH","x":"[[[[[[[[[[\"[[[[[[[[[[\\"}"#).is_ok(), "brackets in strings do not nest");
    assert_eq!(decoded(&format!(r#"{{"type":"AUTH","x":{}"#, "[".repeat(100_000))), Err(Malformed));
}

#[test]
fn keys_are_exact() {
    let fin = |extra: &str| decoded(&format!(r#"{{"type":"FIN","n":1,{FENCED}{extra}}}"#));
    assert!(fin(r#","seq":4"#).is_ok());
    assert_eq!(fin(""), Err(Malformed), "missing");
    assert_eq!(fin(r#","seq":4,"seq":4"#), Err(Malformed), "repeated");
    assert_eq!(fin(r#","seq":4,"type":"FIN""#), Err(Malformed), "type repeated");
    assert_eq!(fin(r#","seq":4,"x":1"#), Err(Malformed), "unknown");
    assert_eq!(fin(r#","seq":4,"optional":true"#), Err(Malformed), "FIN is not optional");
    for wrong in ["\"4\"", "4.0", "-1", "4e0", "null", "true", "[4]", "9007199254740992", "18446744073709551616", "04"]
    {
        assert_eq!(fin(&format!(r#","seq":{wrong}"#)), Err(Malformed), "{wrong}");
    }
    assert!(fin(r#","seq":9007199254740991"#).is_ok());
    assert_eq!(decoded(r#"["FIN",1,"000102030405060708090a0b0c0d0e0f","7",4]"#), Err(Malformed), "no object");
}

#[test]
fn the_order_of_keys_is_free() {
    let plain = decoded(&format!(r#"{{"type":"FIN","n":1,{FENCED},"seq":4}}"#));
    assert!(plain.is_ok());
    assert_eq!(decoded(&format!(r#" {{ "seq":4 , {FENCED}, "n":1, "ty\u0070e":"\u0046IN" }} "#)), plain);
}

#[test]
fn unknown_types_are_skipped_only_when_flagged() {
    assert_eq!(decoded(r#"{"type":"NEW","n":4,"optional":true,"x":{"y":[1]}}"#), Ok((4, vec![])));
    assert_eq!(decoded(r#"{"type":"NEW","n":4,"optional":false}"#), Err(UnknownType));
    assert_eq!(decoded(r#"{"type":"NEW","n":4}"#), Err(UnknownType));
    assert_eq!(decoded(r#"{"type":"NEW","optional":true}"#), Err(Malformed));
    assert_eq!(decoded(r#"{"type":"NEW","n":4,"n":4,"optional":true}"#), Err(Malformed));
    assert_eq!(decoded(r#"{"type":"NEW","n":4,"optional":true,"#), Err(Malformed));
    assert_eq!(decoded(r#"{"type":"M_FIN","n":4}"#), Err(UnknownType), "a link's name on a tunnel");
}

#[test]
fn numbering_and_phases() {
    assert_eq!(decoded(r#"{"type":"ACK","n":0,"received":3}"#), Ok((0, vec![Frame::Ack { received: 3 }])));
    assert_eq!(decoded(r#"{"type":"ACK","n":2,"received":3}"#), Err(Unexpected));
    assert_eq!(decoded(r#"{"type":"ACK","received":3}"#), Err(Malformed));
    assert_eq!(decoded(&format!(r#"{{"type":"FIN","n":0,{FENCED},"seq":4}}"#)), Err(Unexpected));
}

#[test]
fn an_open_ack_has_a_code_exactly_when_it_refuses() {
    let ack = |tail: &str| decoded(&format!(r#"{{"type":"OPEN_ACK","n":1,{FENCED},{tail}}}"#)).map(|_| ());
    assert_eq!(ack(r#""ok":true"#), Ok(()));
    assert_eq!(ack(r#""ok":false,"code":"REFUSED""#), Ok(()));
    for bad in
        [r#""ok":true,"code":"REFUSED""#, r#""ok":false"#, r#""ok":false,"code":"NO""#, r#""ok":true,"code":null"#]
    {
        assert_eq!(ack(bad), Err(Malformed), "{bad}");
    }
}

const HELLO: &str = r#""type":"HELLO","role":"agent","agent_id":"a","instance":"0000000000000001","seen":"0","challenge":"00000000000000000000000000000000","initial_window":65536"#;

#[test]
fn a_hello_skips_what_it_does_not_know_and_nothing_else() {
    let hello = |tail: &str| decoded(&format!("{{{HELLO}{tail}}}")).map(|(n, f)| (n, f.len()));
    let lists = r#","connectors":[{"name":"ldap","priority":1,"weight":1,"later":[]}],"capabilities":[]"#;
    assert_eq!(hello(lists), Ok((0, 1)));
    assert_eq!(hello(&format!(r#"{lists},"later":{{"a":null}},"replica_id":7"#)), Ok((0, 1)));
    for repeated in ["type\":\"HELLO\"", "role\":\"agent\"", "seen\":\"0\"", "capabilities\":[]"] {
        assert_eq!(hello(&format!("{lists},\"{repeated}")), Err(Malformed), "{repeated}");
    }
    assert_eq!(hello(&format!(r#"{lists},"resume":null"#)), Err(Malformed));
    assert_eq!(hello(r#","connectors":[["ldap",1,1]],"capabilities":[]"#), Err(Malformed), "an array for an object");
    assert_eq!(
        hello(r#","connectors":[{"name":"ldap","priority":1,"weight":65536}],"capabilities":[]"#),
        Err(Malformed)
    );
    assert_eq!(hello(r#","connectors":[{"name":"ld ap","priority":1,"weight":1}],"capabilities":[]"#), Err(BadName));
    assert_eq!(hello(r#","connectors":[]"#), Err(Malformed));
    let many = |n: usize| vec![r#""c""#; n].join(",");
    assert_eq!(hello(&format!(r#","connectors":[],"capabilities":[{}]"#, many(32))), Ok((0, 1)));
    assert_eq!(hello(&format!(r#","connectors":[],"capabilities":[{}]"#, many(33))), Err(BadName));
    let ads = |n: usize| vec![r#"{"name":"c","priority":0,"weight":1}"#; n].join(",");
    assert_eq!(hello(&format!(r#","connectors":[{}],"capabilities":[]"#, ads(256))), Ok((0, 1)));
    assert_eq!(hello(&format!(r#","connectors":[{}],"capabilities":[]"#, ads(257))), Err(BadName));
}

#[test]
fn signatures_are_bounded_and_canonical() {
    let auth = |chain: &str, sig: &str| {
        let text =
            format!(r#"{{"type":"AUTH","signature":{{"chain":[{chain}],"scheme":"ed25519","signature":"{sig}"}}}}"#);
        decoded(&text).map(|_| ())
    };
    assert_eq!(auth(r#""AA==""#, "AA=="), Ok(()));
    assert_eq!(auth(&[r#""AA==""#; 8].join(","), "AA=="), Ok(()));
    assert_eq!(auth(&[r#""AA==""#; 9].join(","), "AA=="), Err(BadName));
    assert_eq!(auth("", "AA=="), Err(BadName));
    assert_eq!(auth(r#""AB==""#, "AA=="), Err(Malformed));
    assert_eq!(auth(r#""AA==""#, ""), Err(Malformed));
    assert_eq!(auth(&format!("\"{}\"", "A".repeat(8192)), "AA=="), Ok(()));
    assert_eq!(auth(&format!("\"{}\"", "A".repeat(8196)), "AA=="), Err(TooLarge));
}

#[test]
fn errors_do_not_quote_the_peer() {
    for text in [r#"{"type":"FIN","n":1,"sEcReT":1}"#, r#"{"type":"sEcReT","n":1}"#, r#"{"sEcReT""#] {
        let refused = decode(Plane::Mesh, &Bytes::from(text), &WireLimits::ESTABLISHED, &mut Vec::new());
        assert!(!refused.expect_err("malformed").to_string().contains("sEcReT"));
    }
}

proptest! {
    /// The fast base64 and the well-worn one accept the same texts and give the
    /// same bytes, so the fast one may be exchanged at any time.
    #[test]
    fn both_base64_agree(payload in proptest::collection::vec(any::<u8>(), 1..400), at: usize, to in "[ -~]") {
        let mut out = BytesMut::new();
        base64_append(&payload, &mut out);
        let text = String::from_utf8(out.to_vec()).expect("base64 is ASCII");
        prop_assert_eq!(&text, &STANDARD.encode(&payload));
        let mut mutated = text;
        let at = at % mutated.len();
        mutated.replace_range(at..=at, &to);
        let fast = base64_decode(&mutated, &WireLimits::ESTABLISHED).ok();
        prop_assert_eq!(fast.map(|b| b.to_vec()), STANDARD.decode(&mutated).ok());
        prop_assert_eq!(is_base64(&mutated), STANDARD.decode(&mutated).is_ok());
    }

    #[test]
    fn both_base64_agree_on_any_text(text in "[A-D/+=]{0,12}") {
        let slow = STANDARD.decode(&text).ok().filter(|b| !b.is_empty());
        prop_assert_eq!(base64_decode(&text, &WireLimits::ESTABLISHED).ok().map(|b| b.to_vec()), slow);
    }
}

#[test]
fn a_handshake_means_the_same_wherever_its_type_is_written() {
    let limits = WireLimits::BEFORE_AUTH;
    for extra in [r#""n":{"a":[]}"#, r#""n":-1"#, r#""optional":7"#, r#""n":1,"n":2"#] {
        let first = format!(r#"{{"type":"AUTH",{extra}}}"#);
        let last = format!(r#"{{{extra},"type":"AUTH"}}"#);
        for text in [first, last] {
            let mut frames = Vec::new();
            let number = decode(Plane::Mesh, &Bytes::from(text.clone()), &limits, &mut frames);
            assert_eq!((number, frames.len()), (Ok(0), 1), "{text}");
        }
    }
    for twice in
        [r#"{"type":"NEW","n":1,"type":"NEW","optional":true}"#, r#"{"n":1,"type":"NEW","n":1,"optional":true}"#]
    {
        assert!(decode(Plane::Mesh, &Bytes::from(twice), &limits, &mut Vec::new()).is_err(), "{twice}");
    }
}

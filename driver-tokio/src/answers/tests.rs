//! What a schema says of an answer: every object is closed, every field is
//! explained, words are those of logs and metrics.

use super::*;
use clap::ValueEnum as _;
use serde_json::{Value, json};

fn each_object(value: &Value, path: &str, look: &mut impl FnMut(&str, &serde_json::Map<String, Value>)) {
    match value {
        Value::Object(map) => {
            look(path, map);
            for (key, inner) in map {
                each_object(inner, &format!("{path}/{key}"), look);
            }
        }
        Value::Array(items) => items.iter().for_each(|inner| each_object(inner, path, look)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// An undocumented field, or an open object, fails here and end to end.
#[test]
fn every_object_is_closed_and_every_field_explained() {
    for answer in Answer::value_variants() {
        let (whole, mut objects) = (schema(*answer), 0);
        each_object(&whole, "", &mut |path, s| {
            let Some(fields) = s.get("properties").and_then(Value::as_object) else { return };
            objects += 1;
            assert_eq!(s.get("additionalProperties"), Some(&json!(false)), "{answer:?} {path}");
            for (name, field) in fields {
                assert!(field["description"].is_string(), "{answer:?} {path}: {name} has no description");
            }
            // What may be null is there all the same; only `reason` is left out.
            let required = s["required"].as_array().unwrap();
            let missing: Vec<&String> = fields.keys().filter(|f| !required.iter().any(|r| r == *f)).collect();
            assert!(missing.iter().all(|f| *f == "reason"), "{answer:?} {path}: {missing:?}");
        });
        assert!(objects >= 2, "{answer:?}: {objects}");
    }
}

fn words(def: &str, answer: Answer) -> Vec<String> {
    let whole = schema(answer);
    let set = &whole["$defs"][def];
    let listed = set["enum"].as_array().into_iter().flatten();
    let explained = set["oneOf"].as_array().into_iter().flatten();
    let explained = explained.flat_map(|s| s["enum"].as_array().into_iter().flatten().chain(s.get("const")));
    listed.chain(explained).map(|w| w.as_str().unwrap().to_owned()).collect()
}

#[test]
fn words_are_those_of_metrics_and_logs() {
    let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    assert_eq!(words("State", Answer::Readyz), names(&State::ALL.map(State::name)));
    assert_eq!(words("HubReason", Answer::Readyz), names(&hub::Reason::ALL.map(hub::Reason::name)));
    assert_eq!(words("AgentReason", Answer::Readyz), names(&agent::Reason::ALL.map(agent::Reason::name)));
    assert_eq!(words("Mode", Answer::Status), ["off", "shadow", "active"]);
    assert_eq!(words("LinkState", Answer::Status), names(&link::State::ALL.map(link::State::label)));
    assert_eq!(words("TunnelState", Answer::Status).len(), 1 + link::State::ALL.len());
    assert_eq!(words("Unready", Answer::ReadyzListener), names(&Unready::ALL.map(Unready::name)));
    assert_eq!(words("RstCode", Answer::Status).len(), RstCode::ALL.len());
    assert_eq!(words("Phase", Answer::Drain), ["lameduck", "closed"]);
    assert_eq!(words("PhaseStopped", Answer::Drain), ["stopped"]);
}

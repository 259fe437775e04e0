//! A plan as a test that stands alone. Must not know how the plan came about.

use std::fmt::Write as _;

use serde_json::Value;

use crate::plan::Plan;
use crate::world::Violation;

/// The JSON of a plan, one hub, agent, client or fault a line.
#[must_use]
pub fn json(plan: &Plan) -> String {
    let Ok(Value::Object(keys)) = serde_json::to_value(plan) else { return plan.to_json() };
    let mut text = String::from("{");
    for (ix, (key, value)) in keys.iter().enumerate() {
        let comma = if ix == 0 { "" } else { "," };
        let items = value.as_array().filter(|items| items.iter().any(Value::is_object));
        let _ = if let Some(items) = items {
            let items: Vec<String> = items.iter().map(|i| format!("    {i}")).collect();
            write!(text, "{comma}\n  \"{key}\": [\n{}\n  ]", items.join(",\n"))
        } else {
            write!(text, "{comma}\n  \"{key}\": {value}")
        };
    }
    text.push_str("\n}");
    text
}

/// Names of Rust from any text.
fn word(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect()
}

/// A whole file for `driver-sim/tests/`. It demands that the plan holds; with a
/// planted bug, that the bug is noticed and that the plan holds without it.
#[must_use]
pub fn test(plan: &Plan, violation: &Violation, planted: Option<u16>, origin: &str) -> String {
    let name = format!("seed_{}_{}_{}", plan.seed, word(&plan.profile), word(&violation.id));
    let what: String = violation.text.lines().map(|l| format!("//! {}\n", l.trim_end())).collect();
    let head = match planted {
        Some(_) => "#![cfg(feature = \"planted\")]\n#![allow(clippy::unwrap_used, reason = \"tests\")]\n",
        None => "#![allow(clippy::unwrap_used, reason = \"tests\")]\n",
    };
    let (import, body) = match planted {
        Some(bug) => (
            "use nowconnect_sim::run::{Keep, run, run_planted};",
            format!(
                "    let plan = Plan::from_json(PLAN).unwrap();\n    let found = run_planted(plan.clone(), {bug}, \
                 Keep::Outcome).unwrap().violation;\n    assert_eq!(found.map(|v| v.id).as_deref(), Some({:?}));\n    \
                 assert_eq!(run(plan, Keep::Outcome).violation, None);\n",
                violation.id
            ),
        ),
        None => (
            "use nowconnect_sim::run::{Keep, run};",
            "    let plan = Plan::from_json(PLAN).unwrap();\n    assert_eq!(run(plan, Keep::Outcome).violation, \
             None);\n"
                .to_owned(),
        ),
    };
    format!(
        "//! {}, shrunk from\n//! `{origin}`:\n{what}\n{head}\nuse nowconnect_sim::plan::Plan;\n{import}\n\n\
         #[test]\nfn {name}() {{\n{body}}}\n\nconst PLAN: &str = r#\"{}\"#;\n",
        violation.id,
        json(plan)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Level;
    use crate::profile::PROFILES;

    #[test]
    fn the_text_of_a_plan_is_the_plan() {
        for (seed, profile) in PROFILES.iter().enumerate() {
            let plan = crate::run::plan(seed as u64, profile, Level::L0);
            assert_eq!(Plan::from_json(&json(&plan)), Ok(plan.clone()));
            assert!(!json(&plan).contains("\"#"), "a raw string can hold it");
        }
    }
}

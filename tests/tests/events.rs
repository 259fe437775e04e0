//! Log lines are an interface: each has a stable `event`, and
//! docs/operations.md lists exactly those there are, with the level they have.
//! Reads the sources; a line without an event fails.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn sources(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Every log macro of the driver: its level and what is between its brackets.
fn lines() -> Vec<(String, String)> {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../driver-tokio/src"), &mut files);
    let mut out = Vec::new();
    for text in &files {
        for (at, macro_path) in text.match_indices("tracing::") {
            let Some((level, rest)) = text[at + macro_path.len()..].split_once("!(") else { continue };
            if !matches!(level, "error" | "warn" | "info" | "debug" | "trace") {
                continue;
            }
            let mut depth = 1;
            let end = rest.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            out.push((level.to_owned(), rest[..end.unwrap()].to_owned()));
        }
    }
    assert!(out.len() > 30, "the scan finds the log lines");
    out
}

#[test]
fn the_table_of_events_is_that_of_the_code() {
    let mut in_code: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (level, body) in lines() {
        if body.trim_start().starts_with("target: \"stream\"") {
            continue;
        }
        let event = body.split_once("event = \"").unwrap_or_else(|| panic!("a log line without event: {body}")).1;
        in_code.entry(event.split('"').next().unwrap().to_owned()).or_default().insert(level);
    }
    let page = include_str!("../../docs/operations.md");
    let (_, section) = page.split_once("## Log events").unwrap();
    let mut documented: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut security = 0;
    for row in section.lines().filter(|l| l.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 4, "{row}");
        assert!(matches!(cells[2], "" | "security"), "{row}");
        security += usize::from(cells[2] == "security");
        assert!(cells[3].len() > 10, "what does it mean? {row}");
        let levels = cells[1].split(", ").map(str::to_owned).collect();
        assert!(documented.insert(cells[0].trim_matches('`').to_owned(), levels).is_none(), "twice: {row}");
    }
    assert!(security > 10);
    let missing: Vec<_> = in_code.iter().filter(|(e, l)| documented.get(*e) != Some(l)).collect();
    let gone: Vec<_> = documented.keys().filter(|e| !in_code.contains_key(*e)).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "## Log events of docs/operations.md: rows to add or mend (event, level): {missing:?}; rows to take out: {gone:?}"
    );
}

#[test]
fn the_fields_of_stream_records_are_documented() {
    let records: Vec<String> = lines()
        .into_iter()
        .map(|(_, body)| body)
        .filter(|b| b.trim_start().starts_with("target: \"stream\""))
        .collect();
    assert_eq!(records.len(), 2, "one of the hub, one of the agent");
    let mut in_code: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for body in &records {
        let at = if body.contains("origin,") { "hub" } else { "agent" };
        // One field a line, `name` or `name = value`.
        for line in body.lines().skip(2) {
            let name: String = line.trim().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if !name.is_empty() {
                in_code.entry(name).or_default().insert(at);
            }
        }
    }
    let page = include_str!("../../docs/operations.md");
    let (_, rest) = page.split_once("## Stream records").unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let documented: BTreeMap<String, BTreeSet<&str>> = section
        .lines()
        .filter_map(|l| l.strip_prefix("| `")?.split_once("` | "))
        .map(|(name, rest)| {
            let at = rest.split(' ').next().unwrap();
            (name.to_owned(), if at == "both" { ["hub", "agent"].into() } else { [at].into() })
        })
        .collect();
    assert_eq!(in_code, documented);
}

//! What `deploy/` gives to Prometheus and Grafana: promtool accepts and tests
//! the rules, every alert has a test in which it fires, and every metric and
//! label that a rule or a panel names is one the exporter has. What the
//! exporter has is docs/metrics.md, which is compared with the code and, in
//! metrics.rs, with a running system.

#![allow(clippy::unwrap_used, clippy::unwrap_in_result, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use nowconnect_tests::process::installed;

const ALERTS: &str = include_str!("../../deploy/prometheus/alerts.yml");
const ALERTS_TEST: &str = include_str!("../../deploy/prometheus/alerts_test.yml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/nowconnect.json");

/// Labels that Prometheus adds to every series.
const ADDED: [&str; 2] = ["instance", "job"];

fn promtool(args: &[&str]) {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/prometheus");
    let done = Command::new(installed("promtool", "prometheus")).args(args).current_dir(dir).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "promtool {args:?}: {said}");
}

#[test]
fn promtool_accepts_and_tests_the_rules() {
    promtool(&["check", "rules", "alerts.yml"]);
    promtool(&["test", "rules", "alerts_test.yml"]);
}

fn alerts() -> BTreeSet<&'static str> {
    ALERTS.lines().filter_map(|l| l.trim().strip_prefix("- alert: ")).collect()
}

#[test]
fn every_alert_fires_in_a_test() {
    assert!(alerts().len() > 15);
    for alert in alerts() {
        let fires = ALERTS_TEST.lines().any(|l| {
            l.contains(&format!("alertname=\"{alert}\"")) && l.contains("value: 1")
                || l.trim() == format!("- alertname: {alert}")
        });
        assert!(fires, "{alert} fires in no test of alerts_test.yml");
    }
}

#[test]
fn alerts_named_in_the_documentation_exist() {
    let page = include_str!("../../docs/metrics.md");
    let named: BTreeSet<&str> = page
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| word.starts_with("NowConnect") && word.len() > "NowConnect".len())
        .collect();
    assert!(named.is_subset(&alerts()), "{:?}", named.difference(&alerts()));
    // A hub that is down has no metric to be named at.
    let told: BTreeSet<&str> = named.into_iter().chain(["NowConnectHubDown"]).collect();
    assert_eq!(told, alerts(), "each alert stands in the row of its metric");
}

/// Series of the exporter with their labels: a histogram has three.
fn exported() -> BTreeMap<String, BTreeSet<String>> {
    let page = include_str!("../../docs/metrics.md");
    let mut out = BTreeMap::new();
    for row in page.lines().filter(|l| l.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let name = cells[0].trim_matches('`');
        let mut labels: BTreeSet<String> = cells[2].split(", ").filter(|l| !l.is_empty()).map(str::to_owned).collect();
        labels.extend(ADDED.map(str::to_owned));
        if cells[1] == "histogram" {
            for end in ["_sum", "_count"] {
                out.insert(format!("{name}{end}"), labels.clone());
            }
            labels.insert("le".to_owned());
            out.insert(format!("{name}_bucket"), labels);
        } else {
            out.insert(name.to_owned(), labels);
        }
    }
    out.insert("up".to_owned(), ADDED.map(str::to_owned).into());
    out
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Series that an expression selects, each with the labels of its selector.
fn selected(expr: &str) -> Vec<(String, BTreeSet<String>)> {
    let mut out = Vec::new();
    let mut rest = expr;
    while let Some(at) = rest.find(['n', 'p', 'u']) {
        let before = rest[..at].chars().next_back();
        let word: String = rest[at..].chars().take_while(|c| is_word(*c)).collect();
        rest = &rest[at + word.len().max(1)..];
        let ours = word.starts_with("nowconnect_") || word.starts_with("process_") || word == "up";
        if !ours || before.is_some_and(|c| is_word(c) || c == '"') {
            continue;
        }
        let labels = match rest.strip_prefix('{').and_then(|r| r.split_once('}')) {
            None => BTreeSet::new(),
            Some((inside, _)) => labels_of_selector(inside),
        };
        out.push((word, labels));
    }
    out
}

fn labels_of_selector(inside: &str) -> BTreeSet<String> {
    let mut labels = BTreeSet::new();
    // Values hold no quotes; between them are names and operators.
    for between in inside.split('"').step_by(2) {
        let name: String = between.chars().filter(|c| is_word(*c)).collect();
        if !name.is_empty() {
            labels.insert(name);
        }
    }
    labels
}

/// Labels in `by (...)` and in legends.
fn grouped(expr: &str) -> BTreeSet<String> {
    let lists = expr.split("by (").skip(1).filter_map(|part| part.split(')').next());
    lists.flat_map(|list| list.split(',')).map(|l| l.trim().to_owned()).collect()
}

fn check(place: &str, expr: &str, legend: &str) {
    let exported = exported();
    let series = selected(expr);
    assert!(!series.is_empty(), "{place}: no metric in {expr}");
    let mut known: BTreeSet<String> = BTreeSet::new();
    for (name, labels) in series {
        let has = exported.get(&name).unwrap_or_else(|| panic!("{place}: the exporter has no {name}"));
        for label in labels {
            assert!(has.contains(&label), "{place}: {name} has no label {label}");
        }
        known.extend(has.iter().cloned());
    }
    let shown = legend.split("{{").skip(1).filter_map(|part| part.split("}}").next()).map(|l| l.trim().to_owned());
    for label in grouped(expr).into_iter().chain(shown) {
        assert!(known.contains(&label), "{place}: no metric of this expression has the label {label}");
    }
}

#[test]
fn rules_name_what_the_exporter_has() {
    // `expr:` on one line, or the deeper lines below `expr: |`.
    let (mut name, mut lines, mut n) = ("", ALERTS.lines().peekable(), 0);
    while let Some(line) = lines.next() {
        if let Some(alert) = line.trim().strip_prefix("- alert: ") {
            name = alert;
        }
        let Some(expr) = line.trim().strip_prefix("expr: ") else { continue };
        let mut text = expr.to_owned();
        if expr == "|" {
            let indent = line.len() - line.trim_start().len();
            text.clear();
            while let Some(more) = lines.next_if(|l| l.len() - l.trim_start().len() > indent) {
                text.push_str(more);
                text.push('\n');
            }
        }
        check(name, &text, "");
        n += 1;
    }
    assert_eq!(n, alerts().len());
    for label in ALERTS.split("$labels.").skip(1).map(|r| r.chars().take_while(|c| is_word(*c)).collect::<String>()) {
        assert!(exported().values().any(|has| has.contains(&label)), "no metric has the label {label}");
    }
}

#[test]
fn panels_name_what_the_exporter_has() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let (mut ids, mut shown) = (BTreeSet::new(), String::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "two panels have the id of {title}");
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let expr = target["expr"].as_str().unwrap();
            check(title, expr, target["legendFormat"].as_str().unwrap());
            shown.push_str(expr);
        }
    }
    // What one does not look at on a dashboard.
    let elsewhere = [
        "nowconnect_mesh_rtt_ms",
        "nowconnect_tunnel_frames_total",
        "process_max_fds",
        "process_start_time_seconds",
        "process_threads",
        "process_virtual_memory_bytes",
    ];
    let page = include_str!("../../docs/metrics.md");
    for name in page.lines().filter_map(|l| Some(l.strip_prefix("| `")?.split_once('`')?.0)) {
        assert!(shown.contains(name) || elsewhere.contains(&name), "no panel shows {name}");
    }
}

#[test]
fn the_check_finds_what_it_must() {
    let refused = |expr: &str, legend: &str| std::panic::catch_unwind(|| check("x", expr, legend)).is_err();
    assert!(!refused("sum by (le) (rate(nowconnect_mesh_rtt_seconds_bucket{instance=\"a\"}[5m]))", "{{le}}"));
    for (expr, legend) in [
        ("nowconnect_nothing > 0", ""),
        ("nowconnect_streams{colour=\"red\"}", ""),
        ("nowconnect_streams_total{listener=\"up\", paht=~\"a|b\"}", ""),
        ("sum by (agent) (nowconnect_streams)", ""),
        ("nowconnect_streams", "{{agent}}"),
        ("nowconnect_mesh_rtt_seconds > 1", ""),
        ("vector(1)", ""),
    ] {
        assert!(refused(expr, legend), "{expr}");
    }
}

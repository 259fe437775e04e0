//! The core stays a pure state machine, and its modules know only what they
//! may: checked in the text of the sources, so that a convenient import does
//! not pass unseen. The table below is the one of ARCHITECTURE.md.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use nowconnect_tests::sources::{code, is_test, read, rust_files, without_tests};

/// Which modules of the core each module may name. Exact: an entry that is not
/// used fails as well.
const IMPORTS: &[(&str, &[&str])] = &[
    (
        "agent",
        &[
            "config", "due", "error", "id", "link", "mux", "observed", "planted", "rng", "session", "shard", "time",
            "wire",
        ],
    ),
    ("config", &["id"]),
    ("credit", &["planted", "time"]),
    ("dedup", &["error", "id", "planted"]),
    ("due", &["time"]),
    ("error", &[]),
    ("hash", &["rng"]),
    (
        "hub",
        &[
            "config",
            "credit",
            "due",
            "error",
            "id",
            "identity",
            "link",
            "mux",
            "observed",
            "planted",
            "principal",
            "registry",
            "rng",
            "route",
            "session",
            "shard",
            "stream",
            "time",
            "wire",
        ],
    ),
    ("id", &["slots"]),
    ("identity", &["id", "wire"]),
    ("link", &["config", "planted", "rng", "time"]),
    (
        "mux",
        &[
            "config",
            "credit",
            "error",
            "id",
            "identity",
            "observed",
            "planted",
            "principal",
            "registry",
            "session",
            "shard",
            "slots",
            "time",
            "wire",
        ],
    ),
    ("observed", &["error", "id", "wire"]),
    ("planted", &[]),
    ("principal", &["id", "time"]),
    ("registry", &["id", "planted", "wire"]),
    ("rng", &[]),
    ("route", &["id"]),
    ("session", &["config", "error", "id", "planted", "rng", "time", "wire"]),
    (
        "shard",
        &[
            "config", "credit", "dedup", "due", "error", "hash", "id", "observed", "planted", "rng", "route", "slots",
            "stream", "time", "wire",
        ],
    ),
    ("slots", &[]),
    ("stream", &["credit", "error", "id", "planted", "time"]),
    ("time", &[]),
    ("wire", &["error", "id", "planted"]),
];

/// Crates the core may depend on: pure and deterministic ones.
const DEPENDENCIES: &[&str] = &[
    "base64",
    "base64-simd",
    "bytes",
    "hmac",
    "lru",
    "memchr",
    "rand_chacha",
    "rustc-hash",
    "serde",
    "serde_json",
    "sha2",
    "slab",
    "smallvec",
    "thiserror",
    "tracing",
];

/// Parts of `std` the core may name: none of them reaches outside.
const STD: &[&str] =
    &["borrow", "cmp", "collections", "fmt", "hash", "marker", "mem", "num", "ops", "slice", "str", "sync", "time"];

/// Words that mean a clock, a runtime, global randomness, hidden concurrency or
/// a hash order that changes from run to run.
const FORBIDDEN: &[&str] = &[
    "SystemTime",
    "tokio",
    "async",
    "RandomState",
    "DefaultHasher",
    "getrandom",
    "thread_rng",
    "OsRng",
    "Mutex",
    "RwLock",
    "Condvar",
    "mpsc",
    "thread_local",
    "println",
    "eprintln",
    "f32",
    "f64",
];

/// The module of planted bugs may hold a switch per thread (tests set it, and a
/// release is built without it) and a hash order that changes from run to run,
/// which is one of its bugs.
const PLANTED: (&str, &[&str], &[&str]) = ("planted", &["cell"], &["RandomState", "thread_local"]);

/// What follows each occurrence of `prefix`, up to the end of the word.
fn after<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(prefix)
        .filter(|(at, _)| !text[..*at].ends_with(word))
        .map(|(at, _)| &text[at + prefix.len()..])
        .map(|rest| &rest[..rest.find(|c| !word(c)).unwrap_or(rest.len())])
        .collect()
}

fn has_word(text: &str, word: &str) -> bool {
    after(text, word).contains(&"")
}

/// The core's product code: module, path, text without comments and literals.
fn core() -> Vec<(String, String, String)> {
    rust_files("core/src")
        .into_iter()
        .filter(|(path, _)| !is_test(path) && path != "core/src/lib.rs")
        .map(|(path, text)| {
            let module = path["core/src/".len()..].split(['/', '.']).next().unwrap().to_owned();
            let text = code(without_tests(&text));
            (module, path, text)
        })
        .collect()
}

#[test]
fn the_core_reaches_nothing_outside() {
    let (planted, planted_std, planted_words) = PLANTED;
    for (module, path, text) in core() {
        let exempt = module == planted;
        for part in after(&text, "std::") {
            let allowed = STD.contains(&part) || (exempt && planted_std.contains(&part));
            assert!(allowed, "{path}: std::{part} is not for the core");
        }
        for part in after(&text, "std::time::") {
            assert_eq!(
                part, "Duration",
                "{path}: of std::time the core may use Duration only; clocks are read by drivers"
            );
        }
        for part in after(&text, "std::sync::") {
            assert_eq!(part, "Arc", "{path}: of std::sync the core may use Arc only; its machines have one owner");
        }
        for word in FORBIDDEN {
            let allowed = exempt && planted_words.contains(word);
            assert!(allowed || !has_word(&text, word), "{path}: {word} is not for the core");
        }
        for made in ["HashMap::new", "HashSet::new", "HashMap::default", "HashSet::default"] {
            assert!(!text.contains(made), "{path}: {made} has a random order; give the map a keyed hasher");
        }
    }
}

#[test]
fn modules_of_the_core_know_only_what_they_may() {
    let mut used: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (module, path, text) in core() {
        let list = used.entry(module.clone()).or_default();
        for name in after(&text, "crate::") {
            assert!(!name.is_empty(), "{path}: write one `use crate::name` per module, so that this test sees it");
            if name != module {
                list.push(name.to_owned());
            }
        }
    }
    for (module, list) in &mut used {
        list.sort();
        list.dedup();
        let allowed = IMPORTS.iter().find(|(m, _)| m == module);
        let (_, allowed) =
            allowed.unwrap_or_else(|| panic!("module {module} is missing in IMPORTS and ARCHITECTURE.md"));
        assert_eq!(list, allowed, "what {module} imports; IMPORTS and ARCHITECTURE.md state it");
    }
    assert_eq!(used.len(), IMPORTS.len(), "IMPORTS names modules that do not exist");
}

#[test]
fn the_architecture_page_has_the_same_table() {
    let page = read("ARCHITECTURE.md");
    let listed: Vec<(&str, Vec<&str>)> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
        .filter_map(|row| {
            let (name, rest) = row.split_once("` | ")?;
            let (_, imports) = rest.rsplit_once(" | ")?;
            IMPORTS.iter().any(|(m, _)| *m == name).then_some((name, imports))
        })
        .map(|(name, imports)| (name, imports.split(' ').filter(|i| *i != "–").collect()))
        .collect();
    for (module, imports) in IMPORTS {
        let row = listed.iter().find(|(m, _)| m == module);
        assert_eq!(row.map(|(_, i)| i.as_slice()), Some(*imports), "ARCHITECTURE.md: the row of {module}");
    }
}

#[test]
fn one_module_asks_for_planted_bugs() {
    // Literals are left out of `core()`, so the text itself is read.
    for (path, text) in rust_files("core/src") {
        let asks = text.contains("feature = \"planted\"");
        assert_eq!(asks, path == "core/src/planted.rs", "{path}: call planted::on, which is false without the feature");
    }
}

#[test]
fn policy_does_not_know_encodings() {
    for (module, path, text) in core() {
        if module == "wire" {
            continue;
        }
        for inner in ["wire::binary", "wire::json"] {
            assert!(!text.contains(inner), "{path}: {inner} is the codec's own affair");
        }
    }
    // The codec's leaves are private, so nobody outside the crate can name them either.
    let wire = code(&read("core/src/wire/mod.rs"));
    for leaf in ["binary", "json"] {
        assert!(
            wire.contains(&format!("mod {leaf};")) && !wire.contains(&format!("pub mod {leaf};")),
            "{leaf} is private"
        );
    }
}

#[test]
fn the_core_depends_on_pure_crates_only() {
    let manifest = read("core/Cargo.toml");
    let section = manifest.split("[dependencies]\n").nth(1).unwrap();
    let section = section.split("\n[").next().unwrap();
    let mut found = 0;
    for line in section.lines().filter(|l| !l.trim().is_empty()) {
        let name = line.split(['.', ' ', '=']).next().unwrap();
        assert!(DEPENDENCIES.contains(&name), "core/Cargo.toml: {name} is not on the list of pure crates");
        found += 1;
    }
    assert_eq!(found, DEPENDENCIES.len(), "DEPENDENCIES lists crates that the core does not use");
    assert!(!manifest.contains("[build-dependencies]") && !manifest.contains("[target."), "core/Cargo.toml");
}

/// Where the simulator compiles the production driver's WebSocket files, for
/// connections as bytes: of tokio they need one trait, and no feature.
const BYTES: &str = "driver-sim/src/net/ws.rs";

#[test]
fn drivers_and_core_are_not_mixed_up() {
    for crate_dir in ["driver-sim", "fuzz/src"] {
        for (path, text) in rust_files(crate_dir) {
            let mut code = code(&text);
            if path == BYTES {
                code = code.replace("use tokio::io::AsyncWrite;", "").replace("driver-tokio/src/ws/", "");
            }
            assert!(!has_word(&code, "tokio"), "{path}: only the tokio driver and the tests know tokio");
        }
    }
    let manifest = read("driver-sim/Cargo.toml");
    let line = manifest.lines().find(|l| l.starts_with("tokio")).unwrap();
    assert!(line.contains("default-features = false") && !line.contains(" features"), "no runtime here: {line}");
}

#[test]
fn words_and_paths_are_found() {
    let text = "use std::net::TcpStream; nonstd::fs; x.async_thing; async fn";
    assert_eq!(after(text, "std::"), ["net"]);
    assert!(has_word(text, "async") && !has_word("async_thing", "async"));
}

//! The README does what it says. Its quick start, up to what needs ports and a
//! Redis server on fixed numbers: its files are made as printed, by the binary
//! under test, and pass `check-config`. Its table of what is shown where: every
//! test it names is in the file it names. What it says `./test` needs is what
//! `./test` looks for.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use nowconnect_tests::process::nowconnect_path;
use nowconnect_tests::sources::{code, read, root};

#[test]
fn the_quick_start_makes_good_files() {
    let readme = read("README.md");
    let script = readme
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .find(|block| block.contains("check-config"))
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bin = nowconnect_path();
    let path = format!("{}:{}", bin.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let done = Command::new("bash").args(["-euc", script]).current_dir(dir.path()).env("PATH", path).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}{err}");
    for line in ["hub-a.yaml: ok (hub)", "hub-b.yaml: ok (hub)", "agent.yaml: ok (agent)"] {
        assert!(out.lines().any(|l| l == line), "expected {line:?} in\n{out}{err}");
    }
    assert!(!err.contains("warning"), "the quick start needs nothing that is warned about:\n{err}");
}

#[test]
fn what_the_tests_need_is_named() {
    let script = read("test");
    let list = script.split("needed=(\n").nth(1).and_then(|rest| rest.split("\n)").next()).unwrap();
    let packages: Vec<&str> = list.lines().map(|l| l.rsplit(':').next().unwrap()).collect();
    let readme = read("README.md");
    let line = readme.lines().find(|l| l.starts_with("`./test` needs ")).unwrap();
    let says = line.split(';').next().unwrap();
    let words: Vec<&str> = says.split(|c: char| !c.is_alphanumeric() && c != '-').collect();
    for package in &packages {
        assert!(words.contains(package), "./test installs {package}; the README says: {says}");
    }
    assert!(packages.len() >= 9, "{packages:?}");
}

/// Whether `text` has `name` as a word of its own in its code: declared as a
/// function, or given to a macro that declares it.
fn declares(text: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name).any(|(at, _)| !text[..at].ends_with(word) && !text[at + name.len()..].starts_with(word))
}

#[test]
fn every_line_of_the_matrix_is_shown_by_tests_that_exist() {
    let readme = read("README.md");
    let section = readme.split("## What must hold, and where it is shown").nth(1).expect("the section of the matrix");
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<&str> = section.lines().filter(|l| l.starts_with("| ")).skip(1).collect();
    let mut named = 0;
    for row in &rows {
        let shown = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let tests: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty() || shown.contains("](docs/"), "nothing shows this: {row}");
        for test in tests {
            let (file, name) = test.split_once(": ").unwrap_or_else(|| panic!("expected `file: test`, got {test:?}"));
            let text = std::fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            assert!(text.contains("test]") || text.contains("::test("), "{file} holds no tests");
            assert!(declares(&code(&text), name), "{file} has no test called {name}");
            named += 1;
        }
    }
    // The lines of the design, none of which may go missing.
    for line in [
        "single-replica regression",
        "happy path (2 hubs, 1 agent): open",
        "happy path: data",
        "happy path: FIN, RST",
        "owner crash",
        "mesh partition",
        "epoch fence",
        "dedup",
        "degrade: Redis down",
        "degrade: mesh down",
    ] {
        assert!(rows.iter().any(|row| row.starts_with(&format!("| {line}"))), "no row for {line:?}");
    }
    assert!(named >= 25, "the matrix names tests, found {named}");
}

#[test]
fn names_are_found_as_words() {
    assert!(declares("async fn a_b() {}", "a_b"));
    assert!(declares("matrix! { a_b: work(1); }", "a_b"));
    assert!(!declares("fn a_b_c() { xa_b(); }", "a_b"));
}

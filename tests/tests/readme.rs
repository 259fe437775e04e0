//! The quick start of the README does what it says, up to what needs ports
//! and a Redis server on fixed numbers: its files are made as printed, by the
//! binary under test, and pass `check-config`.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use nowconnect_tests::process::nowconnect_path;
use nowconnect_tests::sources::read;

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

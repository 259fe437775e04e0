//! House rules that no compiler checks: headers, sizes, nothing unfinished,
//! and names that say something.

use nowconnect_tests::sources::{code, is_test, root, rust_files, without_tests};

/// Lines of a product file, its inline tests not counted.
const LINES_MAX: usize = 700;

/// Macros and words that mark something unfinished.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!"];

/// Parts of names that say nothing about what a thing is.
const EMPTY_WORDS: &[&str] = &["Manager", "Util", "Helper", "Common"];

/// Names that begin with `get_` for another reason than being a getter: std's
/// word for a container's entry, and the method of HTTP.
const OTHER_GETS: &[&str] = &["get_mut", "get_unix"];

#[test]
fn every_file_says_what_it_is() {
    for (path, text) in rust_files("") {
        assert!(text.starts_with("//! "), "{path}: expected a header of //! lines that says what the file owns");
    }
}

#[test]
fn product_files_stay_readable() {
    for (path, text) in rust_files("") {
        let lines = without_tests(&text).lines().count();
        assert!(
            is_test(&path) || lines <= LINES_MAX,
            "{path}: {lines} lines, at most {LINES_MAX}; split it by what it owns"
        );
    }
}

#[test]
fn nothing_is_left_unfinished() {
    // Spelled in two parts, so that this file passes its own test.
    let mark = ["FIX", "ME"].concat();
    for (path, text) in rust_files("") {
        let code = code(&text);
        for word in UNFINISHED {
            assert!(!code.contains(word), "{path}: {word}");
        }
        assert!(!text.contains(&mark), "{path}: {mark}");
    }
}

#[test]
fn names_say_something() {
    for (path, text) in rust_files("") {
        let file = path.rsplit('/').next().unwrap_or_default();
        for part in path.split('/').chain([file.trim_end_matches(".rs")]) {
            let empty = EMPTY_WORDS.iter().any(|w| {
                let w = w.to_lowercase();
                part == w || part == format!("{w}s")
            });
            assert!(!empty, "{path}: {part} says nothing");
        }
        for (line, name) in declared(&code(&text)) {
            let empty = EMPTY_WORDS.iter().any(|w| name.contains(w))
                || (name.starts_with("get_") && !OTHER_GETS.contains(&name));
            assert!(!empty, "{path}:{line}: {name} says nothing; name what it owns or does");
        }
    }
}

/// Types, traits, modules and functions declared in a text, with their lines.
fn declared(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (ix, line) in text.lines().enumerate() {
        let mut words = line.split_whitespace();
        while let Some(word) = words.next() {
            if ["struct", "enum", "trait", "type", "mod", "fn"].contains(&word)
                && let Some(name) = words.next()
            {
                let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
                found.push((ix + 1, &name[..end]));
            }
        }
    }
    found
}

#[test]
fn links_between_documents_lead_somewhere() {
    for page in
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "core/PROTOCOL.md", "fuzz/README.md"]
    {
        let path = root().join(page);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{page}: {e}"));
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let there = path.parent().is_some_and(|dir| dir.join(target).exists());
            assert!(there, "{page}: the link to {target} leads nowhere");
        }
    }
}

#[test]
fn tests_that_the_readme_names_exist() {
    let readme = nowconnect_tests::sources::read("README.md");
    let all: String = rust_files("").into_iter().map(|(_, text)| text).collect();
    let table = readme.split("## When something fails").nth(1).expect("README.md has a failure table");
    let table = table.split("\n## ").next().unwrap_or_default();
    let mut named = 0;
    for row in table.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| what")) {
        let shown = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        for name in shown.split('`').skip(1).step_by(2) {
            let declared = all.contains(&format!("fn {name}("))
                || all.contains(&format!("{name}: "))
                || all.contains(&format!("    {name} "));
            assert!(declared, "README.md: no test is called {name}");
            named += 1;
        }
    }
    assert!(named >= 10, "README.md: the failure table names tests, found {named}");
}

#[test]
fn declarations_are_found() {
    let text = "pub struct Foo<T>;\npub(crate) fn get_x() {}\nmod a;";
    assert_eq!(declared(text), [(1, "Foo"), (2, "get_x"), (3, "a")]);
}

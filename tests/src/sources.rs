//! The repository as text, for the tests that hold it to its own rules: where
//! it is, which Rust files it has, and what of a file is code. The lexer knows
//! just enough of Rust to tell code from comments and literals.

use std::fs;
use std::path::{Path, PathBuf};

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the repository").to_owned()
}

/// The text of a file, by its path from the root.
#[must_use]
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every Rust file below `under` (a path from the root; empty for all), as path
/// from the root and text, sorted by path.
#[must_use]
pub fn rust_files(under: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    walk(&root().join(under), &mut found);
    found.sort();
    assert!(!found.is_empty(), "no Rust file below {under:?}");
    found
}

fn walk(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("a directory entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                walk(&path, found);
            }
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let shown = path.strip_prefix(root()).expect("below the root").to_str().expect("UTF-8").to_owned();
            found.push((shown, text));
        }
    }
}

/// Whether a file holds nothing but tests, benches or examples.
#[must_use]
pub fn is_test(path: &str) -> bool {
    let beside = ["/tests/", "/benches/", "/examples/"].iter().any(|dir| path.contains(dir));
    beside || path.starts_with("tests/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs")
}

/// The text without its inline `mod tests { … }`, which is the last item of a file.
#[must_use]
pub fn without_tests(text: &str) -> &str {
    text.split_once("#[cfg(test)]\nmod tests {").map_or(text, |(code, _)| code)
}

/// The text with comments and the contents of literals left out, lines kept.
#[must_use]
pub fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |at| at + 2),
            '"' => quoted(rest, 1),
            'r' if !out.ends_with(|p: char| p.is_alphanumeric() || p == '_') => raw(rest),
            '\'' => character(rest),
            _ => 0,
        };
        if skip == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.extend(rest[..skip].chars().filter(|c| *c == '\n'));
            rest = &rest[skip..];
        }
    }
    out
}

/// Length of a string literal whose contents begin at `from`.
fn quoted(text: &str, from: usize) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(from) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of a raw string literal, 0 if there is none.
fn raw(text: &str) -> usize {
    let hashes = text[1..].chars().take_while(|c| *c == '#').count();
    if !text[1 + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let body = 2 + hashes;
    text[body..].find(&end).map_or(text.len(), |at| body + at + end.len())
}

/// Length of a character literal, 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut inside = text[1..].chars();
    match inside.next() {
        Some('\\') => text[2..].char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 3),
        Some(c) if text[1 + c.len_utf8()..].starts_with('\'') => c.len_utf8() + 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_told_from_comments_and_literals() {
        let text =
            "a // std::net\nb \"std::fs \\\" //\" c '\"' d 'x e<'x> /* f\n */ g r#\"h \" h\"# i '\\'' '\\u{1}' j";
        let kept: String = code(text).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(kept, "a b c d 'x e<'x> g i j");
        assert_eq!(code(text).lines().count(), text.lines().count());
    }

    #[test]
    fn tests_are_cut_off() {
        assert_eq!(without_tests("x\n#[cfg(test)]\nmod tests {\n}\n"), "x\n");
        assert_eq!(without_tests("x\n#[cfg(test)]\nmod tests;\n"), "x\n#[cfg(test)]\nmod tests;\n");
        assert!(
            is_test("core/src/link/tests.rs")
                && is_test("core/src/session/tests/mod.rs")
                && !is_test("core/src/link.rs")
        );
    }
}

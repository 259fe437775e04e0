//! Diagrams and tables in the documents are those of the code.

use nowconnect_core::link;
use nowconnect_tests::sources::read;

/// The fenced blocks of a language, without their fences.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("```{language}\n");
    text.split(&open).skip(1).map(|rest| rest.split("```").next().expect("a first part")).collect()
}

#[test]
fn the_readme_shows_the_states_of_a_link() {
    let readme = read("README.md");
    let shown: Vec<&str> =
        blocks(&readme, "mermaid").into_iter().filter(|b| b.starts_with("stateDiagram-v2")).collect();
    assert_eq!(shown, [link::mermaid()], "README.md: the link diagram must equal nowconnect_core::link::mermaid()");
}

#[test]
fn blocks_are_found() {
    let text = "a\n```mermaid\nb\nc\n```\nd\n```sh\ne\n```\n```mermaid\nf\n```\n";
    assert_eq!(blocks(text, "mermaid"), ["b\nc\n", "f\n"]);
}

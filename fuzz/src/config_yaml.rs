//! `config_yaml` (verification (e) 15): any text as a hub's or an agent's file.
//! Judged: no panic; every finding stands where the text is, and moves with it
//! when lines are put before; nothing from the environment is repeated; a file
//! that is taken says the same when it is spelled as one line of quoted flow
//! YAML (round trip); and how much is found stays bounded, whatever is aliased.

use std::fmt::{Debug, Write as _};

use granit_parser::{Event, Parser, ScalarStyle};
use nowconnect::config::{AgentSetup, ConfigErrors, Finding, HubSetup, ParseOptions, kind_of, parse_agent, parse_hub};

/// What the environment holds; no message may show it.
const SECRET: &str = "hunter2-of-the-environment";
/// More nodes than this are refused, so there are no more findings.
const FINDINGS_MAX: usize = 100_000;
/// Longest mapping key that may be written without a question mark, less room for escapes.
const KEY_MAX_CHARS: usize = 100;

fn env(name: &str) -> Option<String> {
    match name {
        "SECRET" => Some(SECRET.to_owned()),
        "URL" => Some(format!("redis://:{SECRET}@r:6379/0")),
        "EMPTY" => Some(String::new()),
        "NUMBER" => Some("5".to_owned()),
        "YAML" => Some("x: # 'y'\n- z".to_owned()),
        _ => None,
    }
}

trait Setup: Debug + PartialEq + Sized {
    fn parse(text: &str, options: ParseOptions) -> Result<Self, ConfigErrors>;
    fn warnings(&mut self) -> &mut Vec<Finding>;
}

impl Setup for HubSetup {
    fn parse(text: &str, options: ParseOptions) -> Result<Self, ConfigErrors> {
        parse_hub(text, &env, options)
    }
    fn warnings(&mut self) -> &mut Vec<Finding> {
        &mut self.warnings
    }
}

impl Setup for AgentSetup {
    fn parse(text: &str, options: ParseOptions) -> Result<Self, ConfigErrors> {
        parse_agent(text, &env, options)
    }
    fn warnings(&mut self) -> &mut Vec<Finding> {
        &mut self.warnings
    }
}

/// A file is understood or refused in words that lead to the mistake.
pub fn config_yaml(data: &[u8]) {
    let Some((&selector, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let options = ParseOptions { allow_unknown_keys: selector & 1 == 1 };
    if selector & 2 == 0 {
        judge::<HubSetup>(text, options);
    } else {
        judge::<AgentSetup>(text, options);
    }
    let kind = kind_of(text);
    assert!(kind.is_ok() || HubSetup::parse(text, options).is_err(), "no mapping, and a hub takes it");
}

fn judge<S: Setup>(text: &str, options: ParseOptions) {
    let result = S::parse(text, options).map(|mut setup| {
        let warnings = std::mem::take(setup.warnings());
        (setup, warnings)
    });
    let findings = match &result {
        Ok((_, warnings)) => warnings,
        Err(ConfigErrors(errors)) => {
            assert!(!errors.is_empty(), "refused for nothing");
            errors
        }
    };
    assert!(findings.len() <= FINDINGS_MAX, "{} findings in {} bytes", findings.len(), text.len());
    assert!(findings.is_sorted_by_key(|f| f.at.map_or((u64::MAX, 0), |p| (p.line, p.column))), "not in order");
    for finding in findings {
        stands_in(text, finding, result.is_err());
    }

    // Lines before the text move every finding and change nothing else.
    if !text.starts_with('\u{feff}') {
        let later = S::parse(&format!("# a comment\n\n{text}"), options);
        let mut moved = findings.clone();
        for at in moved.iter_mut().filter_map(|f| f.at.as_mut()) {
            at.line += 2;
        }
        match (&result, later) {
            (Ok((setup, _)), Ok(mut other)) => {
                assert_eq!(moved, std::mem::take(other.warnings()), "warnings of {text:?}");
                assert_eq!(*setup, other, "a comment matters to {text:?}");
            }
            (Err(_), Err(ConfigErrors(other))) => assert_eq!(moved, other, "errors of {text:?}"),
            (one, other) => panic!("a comment matters to {text:?}: {one:?} and {other:?}"),
        }
    }

    if let (Ok((setup, _)), Some(line)) = (result, respelled(text)) {
        let mut again = S::parse(&line, options).unwrap_or_else(|e| panic!("{text:?} is taken, not {line:?}: {e}"));
        again.warnings().clear();
        assert_eq!(setup, again, "{text:?} and {line:?} differ");
    }
}

/// Whether the text has this key: the word alone, a colon behind it, and no
/// comment or text before it on its line.
fn is_written(text: &str, key: &str) -> bool {
    text.match_indices(key).any(|(at, _)| {
        let line = text[..at].rsplit(['\n', '\r']).next().unwrap_or_default();
        let alone = line.chars().all(|c| c.is_whitespace() || "'\"{,?[-".contains(c));
        let after = text[at + key.len()..].trim_start_matches(['\'', '"', ' ', '\t']);
        // Of `key::` the colon is part of another key.
        alone && after.strip_prefix(':').is_some_and(|value| !value.starts_with(':'))
    })
}

fn stands_in(text: &str, finding: &Finding, error: bool) {
    let shown = finding.to_string();
    // A file that says it by itself may be quoted.
    assert!(text.contains(SECRET) || !shown.contains(SECRET), "the environment is repeated: {shown}");
    assert!(!finding.message.is_empty(), "nothing is said about {}", finding.key);
    let Some(at) = finding.at else {
        // Only what is absent or empty, or the file as a whole, has no place.
        let key = finding.key.rsplit('.').next().unwrap_or_default();
        let empty = ["required", ", got 0"].iter().any(|word| finding.message.contains(word));
        let absent = !is_written(text, key) || empty;
        assert!(key.is_empty() || absent || !error, "no line for {shown}");
        return;
    };
    let lines = text.split(['\n', '\r']).count() as u64;
    assert!((1..=lines + 1).contains(&at.line) && at.column >= 1, "{shown}: the text has {lines} lines");
}

/// The same document in one line, all of its scalars quoted. `None` where a
/// tag, an alias or a merge gives a scalar another meaning than its text.
#[expect(clippy::wildcard_enum_match_arm, reason = "the parser may learn further events")]
fn respelled(text: &str) -> Option<String> {
    let mut out = String::new();
    // Per open collection: whether it is a mapping, and nodes seen in it.
    let mut open: Vec<(bool, usize)> = Vec::new();
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, _) = event.ok()?;
        let closes = matches!(event, Event::SequenceEnd | Event::MappingEnd);
        let mut key = false;
        if let (Some((mapping, seen)), false) = (open.last_mut(), closes) {
            key = *mapping && seen.is_multiple_of(2);
            match (*mapping, *seen) {
                (_, 0) => {}
                (true, n) if n % 2 == 1 => out.push_str(": "),
                (_, _) => out.push_str(", "),
            }
            *seen += 1;
        }
        match event {
            Event::DocumentStart(..) => documents += 1,
            Event::Scalar(_, _, _, Some(_)) => return None,
            Event::Scalar(value, style, _, None) => {
                let plain = style == ScalarStyle::Plain;
                if key && (value == "<<" || value.chars().count() > KEY_MAX_CHARS) {
                    return None;
                }
                if plain && matches!(&*value, "" | "~" | "null" | "Null" | "NULL") {
                    out.push_str("null");
                } else {
                    quote(&mut out, &value);
                }
            }
            // Keys are scalars.
            Event::SequenceStart(_, _, None) | Event::MappingStart(_, _, None) if !key => {
                let mapping = matches!(event, Event::MappingStart(..));
                out.push(if mapping { '{' } else { '[' });
                open.push((mapping, 0));
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let (mapping, _) = open.pop()?;
                out.push(if mapping { '}' } else { ']' });
            }
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            _ => return None,
        }
    }
    (documents == 1 && !out.is_empty()).then_some(out)
}

fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c => {
                let _ = write!(out, "\\U{:08x}", u32::from(c));
            }
        }
    }
    out.push('"');
}

//! `${VAR}`, `${VAR:-default}` and `$$` in one parsed scalar (semantics 9).
//!
//! Works on the scalar's value, never on the file's text: a value holding `#`,
//! `:` or quotes cannot change the document. Quoted, plain and block scalars
//! are treated alike, because `redis_url: "${REDIS_URL}"` is what people write.
//! What the environment supplies is taken literally and not expanded again.
//! The environment is an argument; nothing here reads the process's own.

use std::borrow::Cow;

/// How a variable is looked up.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands `text`.
///
/// # Errors
/// A sentence naming the variable that is unset, or the form that was expected.
pub(super) fn expand<'t>(text: &'t str, env: Env<'_>) -> Result<Cow<'t, str>, String> {
    if !text.contains('$') {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some(body) = after.strip_prefix('{') {
            let Some((inner, tail)) = body.split_once('}') else {
                return Err("`${` is never closed; write ${NAME}, ${NAME:-default}, or $$ for a dollar sign".to_owned());
            };
            out.push_str(&reference(inner, env)?);
            rest = tail;
        } else {
            // A lone dollar stays: passwords in URLs hold them.
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(Cow::Owned(out))
}

fn reference(inner: &str, env: Env<'_>) -> Result<String, String> {
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let named = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !named || default.is_some_and(|d| d.contains("${")) {
        return Err(format!("`${{{inner}}}` is not understood; the forms are ${{NAME}} and ${{NAME:-default}}"));
    }
    match (env(name), default) {
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!("environment variable {name} is not set; set it or write ${{{name}:-default}}")),
    }
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn forms() {
        let env = |name: &str| match name {
            "A" => Some("x: # 'y'".to_owned()),
            "EMPTY" => Some(String::new()),
            "INNER" => Some("${A}".to_owned()),
            _ => None,
        };
        for (text, expected) in [
            ("plain", Ok("plain")),
            ("${A}", Ok("x: # 'y'")),
            ("<${A}>", Ok("<x: # 'y'>")),
            ("${NONE:-d}", Ok("d")),
            ("${NONE:-}", Ok("")),
            ("${NONE:-redis://h:1/0}", Ok("redis://h:1/0")),
            ("${EMPTY:-d}", Ok("d")),
            ("${EMPTY}", Ok("")),
            ("$$", Ok("$")),
            ("$${A}", Ok("${A}")),
            ("p$w", Ok("p$w")),
            ("end$", Ok("end$")),
            ("${INNER}", Ok("${A}")),
            ("${NONE}", Err("environment variable NONE is not set")),
            ("${A", Err("never closed")),
            ("${}", Err("not understood")),
            ("${1A}", Err("not understood")),
            ("${A-d}", Err("not understood")),
            ("${NONE:-${A}}", Err("not understood")),
        ] {
            match (expand(text, &env), expected) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{text}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{text}: {got}"),
                (got, want) => panic!("{text}: {got:?} instead of {want:?}"),
            }
        }
    }
}

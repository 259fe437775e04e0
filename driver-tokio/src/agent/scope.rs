//! What the agent's own token lets it expose, read without checking it: hubs
//! decide. It only keeps a reload from telling a hub of a connector that its
//! token does not name, for which the hub would end the tunnel (AUTH).
//!
//! Keeps: what a token does not say, or an unreadable one, forbids nothing here.
//!
//! Must not know: when tokens are read or sent.

use std::collections::{BTreeMap, BTreeSet};

use nowconnect_core::config::ConnectorConfig;

use super::token;

/// The connectors a token names; `None` when it does not say.
pub(super) type Scope = Option<BTreeSet<String>>;

/// The first connector outside a token's scope.
pub(super) fn outside<'a>(scope: &Scope, connectors: &'a [ConnectorConfig]) -> Option<&'a str> {
    let scope = scope.as_ref()?;
    connectors.iter().map(|c| c.name.as_str()).find(|name| !scope.contains(*name))
}

/// A scope for a person.
pub(super) fn shown(scope: &Scope) -> String {
    let names: Vec<&str> = scope.iter().flatten().map(String::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Which token each hub judged last.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    /// Of the token that was read for the last dial.
    dialled: Scope,
    /// Of the token that was sent over the live tunnels last.
    sent: Scope,
    /// By the hub's replica id, while there is a session with it.
    judged: BTreeMap<String, Scope>,
}

impl Scopes {
    /// A dial goes out with this token.
    pub(super) fn dials_with(&mut self, token: &str) {
        self.dialled = token::scope(token);
    }

    /// Hubs are sent this token.
    pub(super) fn sends(&mut self, token: &str) {
        self.sent = token::scope(token);
    }

    /// A tunnel was established or resumed.
    pub(super) fn up(&mut self, hub: &str) {
        self.judged.insert(hub.to_owned(), self.dialled.clone());
    }

    /// A hub took the token that was sent.
    pub(super) fn accepted(&mut self, hub: &str) {
        if let Some(scope) = self.judged.get_mut(hub) {
            scope.clone_from(&self.sent);
        }
    }

    /// A tunnel is over.
    pub(super) fn lost(&mut self, hub: &str) {
        self.judged.remove(hub);
    }

    /// A hub whose last token does not name one of the connectors, and which.
    pub(super) fn refuser<'a>(&self, connectors: &'a [ConnectorConfig]) -> Option<(String, &'a str)> {
        self.judged.iter().find_map(|(hub, scope)| Some((hub.clone(), outside(scope, connectors)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use nowconnect_core::id::Name;

    fn token(claims: &str) -> String {
        format!("h.{}.s", URL_SAFE_NO_PAD.encode(claims))
    }

    fn connector(name: &str) -> ConnectorConfig {
        ConnectorConfig { name: Name::new(name).unwrap(), target: "t:1".into(), priority: 0, weight: 1, health: None }
    }

    #[test]
    fn a_hub_is_asked_for_what_the_token_it_judged_last_names() {
        let (narrow, wide) = (token(r#"{"connectors":["a"]}"#), token(r#"{"connectors":["a","b"]}"#));
        let both = [connector("a"), connector("b")];
        let mut s = Scopes::default();
        s.dials_with(&narrow);
        s.up("hub-a");
        s.up("hub-b");
        assert_eq!(s.refuser(&both), Some(("hub-a".to_owned(), "b")));
        assert_eq!(s.refuser(&both[..1]), None);
        s.sends(&wide);
        assert!(s.refuser(&both).is_some(), "sent is not taken");
        s.accepted("hub-a");
        s.accepted("hub-z");
        assert_eq!(s.refuser(&both), Some(("hub-b".to_owned(), "b")), "another hub refused it");
        s.lost("hub-b");
        assert_eq!(s.refuser(&both), None);
        s.dials_with(&wide);
        s.up("hub-b");
        assert_eq!(s.refuser(&both), None);
    }

    #[test]
    fn what_a_token_does_not_say_forbids_nothing() {
        for silent in [r#"{"sub":"a"}"#, r#"{"connectors":null}"#, r#"{"connectors":"a"}"#] {
            assert_eq!(outside(&token::scope(&token(silent)), &[connector("a")]), None, "{silent}");
        }
        assert_eq!(outside(&token::scope("opaque"), &[connector("a")]), None);
        let none = token::scope(&token(r#"{"connectors":[]}"#));
        assert_eq!((outside(&none, &[connector("a")]), shown(&none)), (Some("a"), "none".to_owned()));
    }
}

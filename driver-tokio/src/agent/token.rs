//! What an agent reads in its own token, without checking it: how long it
//! lives, and which connectors it names. For warnings, metrics and refusals
//! that come before a hub's; nothing is allowed by it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::scope::Scope;

/// The life of a token, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Lifetime {
    /// When it was issued, if it says.
    pub(super) iat: Option<u64>,
    /// When it ends.
    pub(super) exp: u64,
}

/// The claims of a JWT, as far as `T` wants them; `None` for anything else.
fn claims<T: DeserializeOwned>(token: &str) -> Option<T> {
    let claims = token.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

/// The claim `connectors`.
pub(super) fn scope(token: &str) -> Scope {
    #[derive(Deserialize)]
    struct Scoped {
        connectors: Scope,
    }
    claims::<Scoped>(token)?.connectors
}

impl Lifetime {
    /// Of a JWT; `None` for anything else.
    pub(super) fn of(token: &str) -> Option<Self> {
        claims(token)
    }

    /// Whether four fifths have passed; a token that does not say when it
    /// began, began when it was first read.
    pub(super) fn is_old(self, read_at: u64, now: u64) -> bool {
        let from = self.iat.unwrap_or(read_at);
        let whole = self.exp.saturating_sub(from);
        now.saturating_sub(from) >= whole - whole / 5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_fifths_of_a_life() {
        let token = format!("h.{}.s", URL_SAFE_NO_PAD.encode(r#"{"iat":1000,"exp":2000,"sub":"a"}"#));
        let life = Lifetime::of(&token).unwrap();
        assert_eq!(life, Lifetime { iat: Some(1000), exp: 2000 });
        assert_eq!([1000, 1799, 1800, 5000].map(|now| life.is_old(0, now)), [false, false, true, true]);
        let without = Lifetime { iat: None, exp: 2000 };
        assert_eq!([1799, 1800].map(|now| without.is_old(1000, now)), [false, true]);
        for other in ["", "opaque", "a.b.c", "a.e30.c"] {
            assert_eq!(Lifetime::of(other), None, "{other}");
        }
    }
}

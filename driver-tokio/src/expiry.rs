//! When what identifies a process ends: its certificates and tokens, as seconds
//! since 1970, for metrics (semantics 8). Reads what was checked elsewhere and
//! judges nothing: what cannot be read shows no date.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::config::{AgentSetup, HubSetup};
use crate::tls;

/// Ends of certificates, by use: the one that ends first in each file.
pub(crate) type Ends = BTreeMap<&'static str, u64>;

fn earliest(files: &[(&'static str, &Path)]) -> Ends {
    let end = |path: &Path| {
        let chain = tls::certificates("certificate", path).ok()?;
        let first = chain.iter().filter_map(tls::not_after).min()?;
        u64::try_from(first).ok()
    };
    files.iter().filter_map(|(usage, path)| Some((*usage, end(path)?))).collect()
}

/// Those of a hub.
pub(crate) fn of_hub(setup: &HubSetup) -> Ends {
    let mut files = Vec::new();
    if let Some(tls) = &setup.http_tls {
        files.push(("http", tls.cert_file.as_path()));
    }
    if let Some(tls) = &setup.mesh_tls {
        files.push(("mesh", tls.cert_file.as_path()));
        files.push(("mesh_ca", tls.ca_bundle.as_path()));
    }
    earliest(&files)
}

/// Those of an agent.
pub(crate) fn of_agent(setup: &AgentSetup) -> Ends {
    setup.tls_ca_bundle.as_deref().map_or_else(Ends::new, |bundle| earliest(&[("tunnel_ca", bundle)]))
}

/// The claim `exp` of a token that others verify.
pub(crate) fn of_token(token: &str) -> Option<u64> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    claims.get("exp")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_end_is_read_and_nothing_else_breaks_it() {
        let with = |claims: &str| format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims));
        assert_eq!(of_token(&with(r#"{"exp": 1700000000, "sub": "a"}"#)), Some(1_700_000_000));
        for bad in [with(r#"{"exp": -1}"#), with("{}"), with("[]"), "e30".to_owned(), "a.!.b".to_owned(), String::new()]
        {
            assert_eq!(of_token(&bad), None, "{bad}");
        }
    }
}

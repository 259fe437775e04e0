//! When what identifies a process ends: its certificates, as seconds
//! since 1970, for metrics (semantics 8). Reads what was checked elsewhere and
//! judges nothing: what cannot be read shows no date.

use std::collections::BTreeMap;
use std::path::Path;

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

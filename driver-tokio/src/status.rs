//! Parts of `/status` that hubs and agents share. Names and states as in the
//! logs; epochs and runs as text, because they exceed what JSON numbers hold.

use nowconnect_core::id::SessionKey;
use nowconnect_core::mux::Mux;
use nowconnect_core::time::Instant;
use serde_json::{Value, json};

/// The three words of `status` in `/readyz`.
pub(crate) const STATES: [&str; 3] = ["ready", "degraded", "draining"];

/// `{state, rtt_ms, queue_frames, inflight_bytes}` of a session; all null
/// without one.
pub(crate) fn session(mux: &Mux, key: Option<SessionKey>, now: Instant) -> Value {
    let Some(e) = key.and_then(|key| mux.get(key)) else { return Value::Null };
    let state = match e.conn {
        None => "suspended",
        Some(_) if e.session.is_suspect(now) => "suspect",
        Some(_) => "connected",
    };
    json!({
        "state": state,
        "rtt_ms": e.session.rtt().map(|rtt| rtt.as_secs_f64() * 1000.0),
        "queue_frames": e.session.queue_depth(),
        "inflight_bytes": e.session.inflight_bytes(),
    })
}

/// `{held_bytes, budget_bytes}`.
pub(crate) fn memory(mux: &Mux) -> Value {
    json!({ "held_bytes": mux.budget().held(), "budget_bytes": mux.budget().cap() })
}

/// First cells of the table under `heading` of a page of the documentation.
#[cfg(test)]
pub(crate) fn documented(page: &str, heading: &str) -> std::collections::BTreeSet<String> {
    let (_, rest) = page.split_once(heading).unwrap_or_else(|| panic!("{heading} is missing"));
    let section = rest.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|l| l.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, _)| name.to_owned()).collect()
}

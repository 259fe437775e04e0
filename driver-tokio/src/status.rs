//! Parts of `/status` that hubs and agents share.

use nowconnect_core::id::SessionKey;
use nowconnect_core::mux::Mux;
use nowconnect_core::time::Instant;

use crate::answers::{Memory, Session, SessionState};

/// A session as it is now; `None` without one.
pub(crate) fn session(mux: &Mux, key: Option<SessionKey>, now: Instant) -> Option<Session> {
    let e = mux.get(key?)?;
    let state = match e.conn {
        None => SessionState::Suspended,
        Some(_) if e.session.is_suspect(now) => SessionState::Suspect,
        Some(_) => SessionState::Connected,
    };
    Some(Session {
        state,
        rtt_ms: e.session.rtt().map(|rtt| rtt.as_secs_f64() * 1000.0),
        queue_frames: e.session.queue_depth(),
        inflight_bytes: e.session.inflight_bytes(),
    })
}

pub(crate) fn memory(mux: &Mux) -> Memory {
    Memory { held_bytes: mux.budget().held(), budget_bytes: mux.budget().cap() }
}

/// Milliseconds until `at`; 0 when it has passed.
pub(crate) fn millis_until(at: Instant, now: Instant) -> u64 {
    u64::try_from(at.since(now).as_millis()).unwrap_or(u64::MAX)
}

/// First cells of the table under `heading` of a page of the documentation.
#[cfg(test)]
pub(crate) fn documented(page: &str, heading: &str) -> std::collections::BTreeSet<String> {
    let (_, rest) = page.split_once(heading).unwrap_or_else(|| panic!("{heading} is missing"));
    let section = rest.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|l| l.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, _)| name.to_owned()).collect()
}

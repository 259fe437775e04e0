//! The section `limits`: what hubs and agents share, and a hub's own. Owns their
//! bounds and the rules between them. Opens nothing and knows no other section.

use nowconnect_core::config::Limits;

use super::hub::{BUDGET_MIN, HubSetup, place};
use super::{Check, Leaf, raw};

/// Bounds the keys of `limits` that hubs and agents share are held to.
pub(super) struct SharedLimits<'a> {
    pub(super) budget: Option<&'a Leaf<u64>>,
    pub(super) window_initial: Option<&'a Leaf<u64>>,
    pub(super) window_max: Option<&'a Leaf<u64>>,
    pub(super) max_streams: Option<&'a Leaf<u32>>,
    pub(super) tombstones: Option<&'a Leaf<u32>>,
    pub(super) max_pending_opens: Option<&'a Leaf<u32>>,
}

impl SharedLimits<'_> {
    pub(super) fn apply(&self, check: &mut Check<'_>, limits: &mut Limits) {
        check.number("limits.memory_budget_bytes", self.budget, BUDGET_MIN..=1 << 40, &mut limits.memory_budget_bytes);
        let initial = self.window_initial;
        check.number(
            "limits.stream_window_initial_bytes",
            initial,
            16 << 10..=16 << 20,
            &mut limits.stream_window_initial_bytes,
        );
        check.number(
            "limits.stream_window_max_bytes",
            self.window_max,
            16 << 10..=64 << 20,
            &mut limits.stream_window_max_bytes,
        );
        if limits.stream_window_max_bytes < limits.stream_window_initial_bytes {
            check.error(
                place(self.window_max).or(place(initial)),
                "limits.stream_window_max_bytes",
                format!(
                    "expected at least limits.stream_window_initial_bytes ({}), got {}",
                    limits.stream_window_initial_bytes, limits.stream_window_max_bytes
                ),
            );
        }
        if limits.memory_budget_bytes < 2 * limits.stream_window_max_bytes {
            check.error(
                place(self.budget).or(place(self.window_max)),
                "limits.memory_budget_bytes",
                format!(
                    "expected at least twice limits.stream_window_max_bytes ({}), got {}: one stream would use it up",
                    limits.stream_window_max_bytes, limits.memory_budget_bytes
                ),
            );
        }
        check.number("limits.max_streams", self.max_streams, 1..=10_000_000, &mut limits.max_streams);
        check.number("limits.tombstones", self.tombstones, 1..=16_777_216, &mut limits.tombstones);
        check.number("limits.max_pending_opens", self.max_pending_opens, 1..=1_000_000, &mut limits.max_pending_opens);
    }
}

/// The section `limits` of a hub.
pub(super) fn apply(check: &mut Check<'_>, setup: &mut HubSetup, s: &raw::HubLimitsSection) {
    check.unknown("limits", s);
    let limits = &mut setup.core.limits;
    setup.memory_budget_given = s.memory_budget_bytes.is_some();
    SharedLimits {
        budget: s.memory_budget_bytes.as_ref(),
        window_initial: s.stream_window_initial_bytes.as_ref(),
        window_max: s.stream_window_max_bytes.as_ref(),
        max_streams: s.max_streams.as_ref(),
        tombstones: s.tombstones.as_ref(),
        max_pending_opens: s.max_pending_opens.as_ref(),
    }
    .apply(check, limits);
    check.number("limits.max_sessions", s.max_sessions.as_ref(), 1..=1_000_000, &mut limits.max_sessions);
    check.number("limits.max_handshakes", s.max_handshakes.as_ref(), 1..=100_000, &mut limits.max_handshakes);
    check.number("limits.handshake_rate", s.handshake_rate.as_ref(), 1..=1_000_000, &mut setup.handshake_rate);
    let (own, all) = (s.max_handshakes_per_address.as_ref(), limits.max_handshakes);
    let mut most = setup.handshakes_per_address();
    check.number("limits.max_handshakes_per_address", own, 1..=100_000, &mut most);
    setup.max_handshakes_per_address = own.map(|_| most);
    if own.is_some() && most > all {
        check.error(
            place(own),
            "limits.max_handshakes_per_address",
            format!("expected at most limits.max_handshakes ({all}), got {most}"),
        );
    }
}

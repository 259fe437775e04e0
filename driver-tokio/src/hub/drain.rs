//! A drain as the operator asks for it and sees it: by POST or signal, in
//! `/status`, in metrics. The core decides what happens when; here are times to
//! give it, and words.

use nowconnect_core::hub::{DrainView, Hub};
use nowconnect_core::mux::Input;
use nowconnect_core::time::Instant;
use serde_json::{Value, json};

use super::Shared;
use crate::node::Node;

/// Begins to leave, or says how far that is.
pub(super) fn begin(node: &Node<Hub>, shared: &Shared) -> (u16, String) {
    node.input(Input::Drain(shared.setup().drain));
    let mut answer = take(node).unwrap_or_else(|| json!({ "phase": "stopped" }));
    answer["result"] = "draining".into();
    answer["exits"] = true.into();
    (200, answer.to_string())
}

/// Stays after all, if there is time for it.
pub(super) fn cancel(node: &Node<Hub>, shared: &Shared) -> (u16, String) {
    let refused = |why: &str| (409, json!({ "result": "refused", "error": why }).to_string());
    let (draining, closed) = node.look(|hub| (hub.control().is_draining(), hub.control().is_closed()));
    if closed {
        return refused("too late: the listeners are closed; the process ends with its last stream");
    }
    if !draining {
        return refused("the hub does not drain");
    }
    node.input(Input::Undrain);
    // The next signal is a first one again.
    shared.stop_asked.set(false);
    (200, json!({ "result": "cancelled" }).to_string())
}

fn take(node: &Node<Hub>) -> Option<Value> {
    let now = node.clock().now();
    node.look(|hub| show(hub, now))
}

/// `drain` of `/status`.
pub(super) fn show(hub: &Hub, now: Instant) -> Option<Value> {
    let v: DrainView = hub.control().drain_view()?;
    let left = |at: Instant| u64::try_from(at.since(now).as_millis()).unwrap_or(u64::MAX);
    Some(json!({
        "phase": if v.closed { "closed" } else { "lameduck" },
        "closes_in_ms": left(v.closes_at),
        "resets_in_ms": left(v.deadline),
        "streams": hub.streams(),
        "agents": { "attached": v.agents, "told": v.told, "elsewhere": v.elsewhere },
    }))
}

//! A drain as the operator asks for it and sees it: by POST or signal, in
//! `/status`, in metrics. The core decides what happens when; here are times to
//! give it, and words.

use nowconnect_core::hub::{DrainView, Hub};
use nowconnect_core::mux::Input;
use nowconnect_core::time::Instant;

use super::Shared;
use crate::answers::hub::{Drain, DrainAgents, Draining, Phase, PhaseStopped, Stopped};
use crate::answers::{self, Cancelled, DrainAnswer, Refused, ResultCancelled, ResultDraining, UndrainAnswer};
use crate::node::Node;
use crate::status::millis_until;

/// Begins to leave, or says how far that is.
pub(super) fn begin(node: &Node<Hub>, shared: &Shared) -> (u16, String) {
    node.input(Input::Drain(shared.setup().drain));
    let now = node.clock().now();
    let (result, exits) = (ResultDraining::Draining, true);
    let answer = match node.look(|hub| show(hub, now)) {
        Some(Drain { phase, closes_in_ms, resets_in_ms, streams, agents }) => {
            DrainAnswer::Hub(Draining { result, exits, phase, closes_in_ms, resets_in_ms, streams, agents })
        }
        None => DrainAnswer::Stopped(Stopped { result, exits, phase: PhaseStopped::Stopped }),
    };
    (200, answers::text(&answer))
}

/// Stays after all, if there is time for it.
pub(super) fn cancel(node: &Node<Hub>, shared: &Shared) -> (u16, String) {
    let refused = |why: &str| (409, answers::text(&UndrainAnswer::Refused(Refused::because(why))));
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
    let answer = UndrainAnswer::Cancelled(Cancelled { result: ResultCancelled::Cancelled });
    (200, answers::text(&answer))
}

/// `drain` of `/status`.
pub(super) fn show(hub: &Hub, now: Instant) -> Option<Drain> {
    let v: DrainView = hub.control().drain_view()?;
    Some(Drain {
        phase: if v.closed { Phase::Closed } else { Phase::Lameduck },
        closes_in_ms: millis_until(v.closes_at, now),
        resets_in_ms: millis_until(v.deadline, now),
        streams: hub.streams(),
        agents: DrainAgents { attached: v.agents, told: v.told, elsewhere: v.elsewhere },
    })
}

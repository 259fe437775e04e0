//! The sections of the selection of candidates (hub) and of the checks of
//! targets (agent), checked. Opens no file.

use std::time::Duration;

use nowconnect_core::config::{AgentPriority, HealthConfig, Selection};

use super::hub::place;
use super::raw::{HealthSection, SelectionSection};
use super::value::{At, Place};
use super::{Check, MINUTE, MS_50, SECOND};

/// Most priorities a hub gives.
const PRIORITIES_MAX: usize = 10_000;
const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn apply(check: &mut Check<'_>, selection: &mut Selection, s: &SelectionSection) {
    check.unknown("selection", s);
    check.number("selection.fall", s.fall.as_ref(), 0..=1000, &mut selection.fall);
    check.number("selection.rise", s.rise.as_ref(), 1..=1000, &mut selection.rise);
    let (eject, most) = (s.eject.as_ref(), s.eject_max.as_ref());
    check.duration("selection.eject", eject, MS_50..=60 * MINUTE, &mut selection.eject);
    check.duration("selection.eject_max", most, MS_50..=DAY, &mut selection.eject_max);
    if selection.eject > selection.eject_max {
        check.error(place(eject).or(place(most)), "selection.eject", "must not exceed selection.eject_max");
    }
    let failback = s.failback_after.as_ref();
    check.duration("selection.failback_after", failback, Duration::ZERO..=DAY, &mut selection.failback_after);

    let sections = s.priorities.as_deref().unwrap_or_default();
    if sections.len() > PRIORITIES_MAX {
        let got = sections.len();
        let at = sections.first().and_then(|s| s.at);
        check.error(at, "selection.priorities", format!("expected at most {PRIORITIES_MAX} entries, got {got}"));
    }
    let mut places = Vec::new();
    for (i, At { value: s, at }) in sections.iter().enumerate() {
        let path = format!("selection.priorities[{i}]");
        let key = |name: &str| format!("{path}.{name}");
        check.unknown(&path, s);
        let agent_id = check.required(*at, &key("agent"), s.agent.as_ref());
        let connector = check.value(&key("connector"), s.connector.as_ref());
        let priority = check.required(*at, &key("priority"), s.priority.as_ref());
        if let (Some(agent_id), Some(priority)) = (agent_id, priority) {
            let connectors = connector.as_ref().map_or("*", |c| c.as_str());
            places.push((key("agent"), place(s.agent.as_ref()), format!("{agent_id} {connectors}")));
            selection.priorities.push(AgentPriority { agent_id, connector, priority });
        }
    }
    check.unique("agent and connector", places.iter().map(|(key, at, what)| (key.clone(), *at, what.as_str())));
}

/// The checks of one target.
pub(super) fn health(
    check: &mut Check<'_>,
    path: &str,
    at: Option<Place>,
    section: Option<&HealthSection>,
) -> Option<HealthConfig> {
    let s = section?;
    let key = |name: &str| format!("{path}.health.{name}");
    check.unknown(&format!("{path}.health"), s);
    check.required(at, &key("kind"), s.kind.as_ref());
    let mut health = HealthConfig::default();
    let (interval, timeout) = (s.interval.as_ref(), s.timeout.as_ref());
    check.duration(&key("interval"), interval, 2 * MS_50..=60 * MINUTE, &mut health.interval);
    if timeout.is_none() {
        health.timeout = health.timeout.min(health.interval);
    }
    check.duration(&key("timeout"), timeout, MS_50..=60 * SECOND, &mut health.timeout);
    if health.timeout > health.interval {
        check.error(place(timeout).or(place(interval)), &key("timeout"), "must not exceed the interval of the checks");
    }
    check.number(&key("fall"), s.fall.as_ref(), 1..=1000, &mut health.fall);
    check.number(&key("rise"), s.rise.as_ref(), 1..=1000, &mut health.rise);
    Some(health)
}

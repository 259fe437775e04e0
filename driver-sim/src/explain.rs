//! A run told to a reader: how to run it again, what was planned, what
//! happened last, and what happened to the streams it concerns. Only text.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::plan::{ClientPlan, ExpiryPlan, FlowPlan, MS, Plan, Twin};
use crate::run::Report;
use crate::trace::Line;

/// Streams told in full.
const STREAMS_MAX: usize = 6;
/// Lines of a stream, from its beginning and from its end.
const STREAM_LINES: (usize, usize) = (15, 45);

/// Nanoseconds as seconds.
#[must_use]
pub fn seconds(ns: u64) -> String {
    format!("{}.{:06} s", ns / 1_000_000_000, ns / 1000 % 1_000_000)
}

fn millis(ns: u64) -> String {
    if ns == u64::MAX { "never".to_owned() } else { format!("{}.{:03} ms", ns / MS, ns / 1000 % 1000) }
}

/// The line of a run's outcome.
#[must_use]
pub fn outcome(case: &str, r: &Report) -> String {
    let held = match &r.violation {
        Some(v) => format!("FAILED {}", v.id),
        None => "held".to_owned(),
    };
    format!(
        "{held}: {case}, event {} at {}, {} faults, trace {:016x}",
        r.events,
        seconds(r.virtual_ns),
        r.faults.iter().sum::<u64>(),
        r.hash
    )
}

fn flow(f: &FlowPlan) -> String {
    let mut text = format!("{} B in writes of {}", f.total, f.chunk);
    if f.write_gap > 0 {
        let _ = write!(text, " every {}", millis(f.write_gap));
    }
    let _ = write!(text, ", read by {}", f.read);
    if f.read_gap > 0 {
        let _ = write!(text, " every {}", millis(f.read_gap));
    }
    if f.after > 0 {
        let _ = write!(text, ", after {} B of the other", f.after);
    }
    text
}

fn client(c: &ClientPlan) -> String {
    format!(
        "client {} at {}: hub-{}, c{}; target {:?}\n      up   {}, then {:?}\n      down {}, then {:?}",
        c.id,
        seconds(c.at),
        c.hub,
        c.connector,
        c.target,
        flow(&c.up),
        c.client_end,
        flow(&c.down),
        c.target_end,
    )
}

/// A plan in words; of the clients only those of interest.
#[must_use]
pub fn plan(plan: &Plan, clients: &BTreeSet<u32>, triggered: &[crate::faults::Triggered]) -> String {
    let mut t = String::new();
    let _ = writeln!(
        t,
        "  profile {} at {:?}: {} hubs, {} agents, {} clients, {} connectors; heals at {}",
        plan.profile,
        plan.level,
        plan.hubs.len(),
        plan.agents.len(),
        plan.clients.len(),
        plan.connectors,
        seconds(plan.safety_ns)
    );
    for (ix, h) in plan.hubs.iter().enumerate() {
        let split = match h.shards {
            0 => "whole".to_owned(),
            n => format!("{n} shards, notes up to {} late", millis(h.note_delay_ns)),
        };
        let _ = writeln!(
            t,
            "  hub-{ix}: {:?}, {split}, region {}, dials {:?}, window {} to {} B, {} frames and {} B in flight, \
             budget {} B, drift {} ppm{}{}{}{}",
            h.mode,
            h.region,
            h.peers,
            h.window.0,
            h.window.1,
            h.queue_depth,
            h.inflight,
            h.budget,
            h.drift_ppm,
            if h.start_ns > 0 { format!(", starts at {}", seconds(h.start_ns)) } else { String::new() },
            if h.first_byte { ", waits for a first byte" } else { "" },
            if h.cached { ", tries what it knows without the registry" } else { "" },
            match h.on_expiry {
                ExpiryPlan::Keep => String::new(),
                ExpiryPlan::Cut => ", cuts tunnels whose token ran out".to_owned(),
                ExpiryPlan::Drain(ms) => format!(", ends tunnels {ms} ms after their token ran out"),
            }
        );
    }
    for (ix, a) in plan.agents.iter().enumerate() {
        let _ = writeln!(
            t,
            "  agent-{ix}: starts at {}, hubs {:?}, {} attached, connectors (number, priority, weight) {:?}, token for \
             {:?}, window {} to {} B, {} B in flight, budget {} B, drift {} ppm",
            seconds(a.start_ns),
            a.hubs,
            a.parallel,
            a.connectors,
            a.scope,
            a.window.0,
            a.window.1,
            a.inflight,
            a.budget,
            a.drift_ppm
        );
    }
    let _ = writeln!(
        t,
        "  net: latency {} to {}, jitter {}, {} to {} B/s, buffers {} to {} B; encoding 1 in {} of 256 dials; timers \
         up to {} late",
        millis(plan.net.latency.0),
        millis(plan.net.latency.1),
        millis(plan.net.jitter),
        plan.net.bandwidth.0,
        plan.net.bandwidth.1,
        plan.net.buffer.0,
        plan.net.buffer.1,
        plan.v1,
        millis(plan.late_timers_ns)
    );
    match &plan.twin {
        None => {}
        Some(Twin::Modes) => {
            let _ = writeln!(t, "  compared: without HA, in mode off, in mode shadow; told is the run that differs");
        }
        Some(Twin::Without(stalled)) => {
            let _ = writeln!(t, "  compared: the same without the clients {stalled:?}; told is the run with them");
        }
    }
    let names = (0..plan.hubs.len()).map(|n| format!("hub-{n}"));
    let names = names.chain((0..plan.agents.len()).map(|n| format!("agent-{n}"))).enumerate();
    let names: Vec<String> = names.map(|(node, name)| format!("node {node} is {name}")).collect();
    let _ = writeln!(t, "  {}", names.join(", "));
    let d = &plan.timers;
    let _ = writeln!(
        t,
        "  deadlines: attempt {}, open {}, resume {}, lease {}, dead {}, back-off {}, target {}, handshake {}",
        millis(d.attempt),
        millis(d.open),
        millis(d.resume),
        millis(d.lease),
        millis(d.dead),
        millis(d.backoff_max),
        millis(d.target),
        millis(d.handshake)
    );
    let mut faults = plan.faults.clone();
    faults.sort_by_key(|f| f.at);
    for f in &faults {
        let _ = writeln!(t, "  at {}: {:?}", seconds(f.at), f.fault);
    }
    for f in triggered {
        let _ = writeln!(t, "  at {:?} number {}: {:?}", f.point, f.nth, f.fault);
    }
    for c in plan.clients.iter().filter(|c| clients.contains(&c.id)) {
        let _ = writeln!(t, "  {}", client(c));
    }
    t
}

/// Clients whose streams a violation concerns: those its text names, and those
/// of the event at which it was found.
#[must_use]
pub fn affected(r: &Report) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let Some(v) = &r.violation else { return found };
    let words: Vec<&str> = v.text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    for pair in words.windows(2) {
        if let [name, number] = pair
            && matches!(*name, "client" | "target")
            && let Ok(n) = number.parse()
        {
            found.insert(n);
        }
    }
    if found.is_empty() {
        let last = r.lines.last().map_or(0, |l| l.event);
        found.extend(r.lines.iter().rev().take_while(|l| l.event == last).filter_map(|l| l.client));
    }
    while found.len() > STREAMS_MAX {
        found.pop_last();
    }
    found
}

/// The lines of the last `events` events.
fn last_events(lines: &[Line], events: u64) -> &[Line] {
    let numbers: BTreeSet<u64> = lines.iter().map(|l| l.event).collect();
    let from = numbers.iter().rev().nth((events as usize).saturating_sub(1)).or(numbers.first()).copied().unwrap_or(0);
    lines.get(lines.partition_point(|l| l.event < from)..).unwrap_or(&[])
}

/// A run, told. The report must hold its story.
#[must_use]
pub fn explain(case: &str, again: &str, r: &Report, events: u64) -> String {
    let clients = affected(r);
    let mut t = format!("{}\n", outcome(case, r));
    if let Some(v) = &r.violation {
        let _ = writeln!(t, "  {}", v.text.trim_end().replace('\n', "\n  "));
    }
    let _ = writeln!(t, "again: {again}\n\nPLAN");
    t.push_str(&plan(&r.plan, &clients, &r.triggered));
    let _ = writeln!(t, "\nTHE LAST {events} EVENTS (event, virtual time, what happened)");
    for l in last_events(&r.lines, events) {
        let _ = writeln!(t, "{l}");
    }
    for c in clients {
        let of: Vec<&Line> = r.lines.iter().filter(|l| l.client == Some(c)).collect();
        let _ = writeln!(t, "\nTHE STREAM OF CLIENT {c}");
        let (first, last) = STREAM_LINES;
        for (ix, l) in of.iter().enumerate() {
            if ix < first || ix + last >= of.len() {
                let _ = writeln!(t, "{l}");
            } else if ix == first {
                let _ = writeln!(t, "  … {} lines …", of.len() - first - last);
            }
        }
    }
    t
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Level;
    use crate::profile::PROFILES;
    use crate::run::{Keep, run};
    use crate::world::Violation;

    #[test]
    fn streams_are_found_by_the_words_of_a_violation() {
        let mut r = run(crate::run::plan(1, &PROFILES[1], Level::L0), Keep::Story);
        assert!(affected(&r).is_empty(), "a run that held concerns nobody");
        r.violation = Some(Violation::new("S2", "the target 3 and client 1: read 4 bytes"));
        assert_eq!(affected(&r), BTreeSet::from([1, 3]));
        let told = explain("x", "y", &r, 5);
        assert!(told.contains("FAILED S2: x") && told.contains("THE STREAM OF CLIENT 3"), "{told}");
    }

    #[test]
    fn the_last_events_are_counted_by_event_and_not_by_line() {
        let line = |event| Line { event, at: 0, client: None, text: String::new() };
        let lines = [line(1), line(4), line(4), line(9)];
        assert_eq!(last_events(&lines, 2).len(), 3);
        assert_eq!(last_events(&lines, 99).len(), 4);
    }
}

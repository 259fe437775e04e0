//! Reload of an agent, as a hub's: read, checked in full, then in force at once
//! or not at all. Connectors are told on the live tunnels; another target
//! counts for streams that open from then on.

use std::collections::BTreeMap;
use std::rc::Rc;

use nowconnect_core::agent::Agent;
use nowconnect_core::wire::Plane;

use super::{DRAIN, Shared};
use crate::certs;
use crate::cli::RunError;
use crate::config::AgentSetup;
use crate::dial::WsUrl;
use crate::dialer::Target;
use crate::node::Node;
use crate::reload::Outcome;

/// Keys of an agent that a reload leaves as they were, named when they changed.
pub const RESTART: &[&str] =
    &["admin.bind", "admin.socket", "admin.token_file", "agent_id", "limits.stream_window_initial_bytes"];

/// Where the hubs are.
pub(super) fn targets(setup: &AgentSetup) -> Result<BTreeMap<String, Target>, RunError> {
    let target = |url: &String| {
        let parsed = WsUrl::parse(url).map_err(|e| RunError::Config(format!("hubs: {url}: {e}")))?;
        Ok((url.clone(), Target { url: parsed, tls: None, dialects: setup.wire.dialects(Plane::Tunnel) }))
    };
    setup.core.hubs.iter().map(target).collect()
}

fn keep(new: &mut AgentSetup, old: &AgentSetup) -> Vec<&'static str> {
    let mut kept = Vec::new();
    let initial = &mut new.core.limits.stream_window_initial_bytes;
    if *initial != old.core.limits.stream_window_initial_bytes {
        *initial = old.core.limits.stream_window_initial_bytes;
        kept.push("limits.stream_window_initial_bytes");
    }
    if new.core.agent_id != old.core.agent_id {
        new.core.agent_id = old.core.agent_id.clone();
        kept.push("agent_id");
    }
    for (key, changed) in [
        ("admin.bind", new.admin.bind != old.admin.bind),
        ("admin.socket", new.admin.socket != old.admin.socket),
        ("admin.token_file", new.admin.token_file != old.admin.token_file),
    ] {
        if changed {
            kept.push(key);
        }
    }
    new.admin = old.admin.clone();
    kept.sort_unstable();
    kept
}

/// Reads the file and puts it in force, or nothing of it.
pub(super) fn run(node: &Node<Agent>, shared: &Rc<Shared>) -> Outcome {
    let Some(source) = &shared.source else { return Outcome::Refused("this agent runs without a file".to_owned()) };
    if !shared.reloads.begin() {
        return Outcome::Refused("another reload is under way; ask again".to_owned());
    }
    let outcome = match attempt(node, shared, source) {
        Ok(restart) => Outcome::Applied(restart),
        Err(why) => Outcome::Refused(why.to_string()),
    };
    shared.reloads.note(&outcome, "agent_id", shared.setup().core.agent_id.as_str());
    outcome
}

fn attempt(node: &Node<Agent>, shared: &Rc<Shared>, source: &super::Source) -> Result<Vec<&'static str>, RunError> {
    if node.look(|agent| agent.tunnels().is_draining()) {
        return Err(RunError::Failed("the agent is leaving".to_owned()));
    }
    let old = shared.setup();
    let mut new = source()?;
    let restart = keep(&mut new, &old);
    let set = certs::Set::of_agent(&new).map_err(|e| RunError::Config(e.to_string()))?;
    let mut targets = targets(&new)?;
    // The tunnel to a removed hub may have to come back while streams use it up.
    for (url, target) in shared.targets.borrow().iter() {
        targets.entry(url.clone()).or_insert_with(|| target.clone());
    }
    // What the machine wants dialled must be there.
    let before = shared.targets.replace(targets);
    if let Err(e) = node.enter(|agent, now, out| agent.reload(now, &new.core, DRAIN, out)) {
        shared.targets.replace(before);
        return Err(RunError::Config(e.to_string()));
    }
    shared.certs.install(set);
    shared.setup.replace(Rc::new(new));
    shared.certs.verify_again(node);
    shared.restart.replace(restart.clone());
    Ok(restart)
}

/// Looks after the files of certificates until the task is dropped.
pub(super) async fn watch(node: Node<Agent>, shared: Rc<Shared>) {
    loop {
        tokio::time::sleep(certs::LOOK_EVERY).await;
        let _ = shared.certs.renew(&node, || certs::Set::of_agent(&shared.setup()));
    }
}

//! Reload of an agent, as a hub's: read, checked in full, then in force at once
//! or not at all. Connectors are told on the live tunnels; another target
//! counts for streams that open from then on.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use nowconnect_core::agent::Agent;
use nowconnect_core::wire::Plane;

use super::scope::{outside, shown};
use super::{DRAIN, Shared, read_token, token};
use crate::certs;
use crate::cli::RunError;
use crate::config::AgentSetup;
use crate::dial::WsUrl;
use crate::dialer::Target;
#[cfg(test)]
use crate::journal::{self, Call};
use crate::net;
use crate::node::Node;
use crate::reload::{Outcome, Turn};

/// Keys of an agent that a reload leaves as they were, named when they changed.
pub const RESTART: &[&str] =
    &["admin.bind", "admin.socket", "admin.token_file", "agent_id", "limits.stream_window_initial_bytes"];

/// Where the hubs are.
pub(super) fn targets(setup: &AgentSetup) -> Result<BTreeMap<String, Target>, RunError> {
    let target = |url: &String| {
        let parsed = WsUrl::parse(url).map_err(|e| RunError::Config(format!("hubs: {url}: {e}")))?;
        let dialects = setup.wire.dialects(Plane::Tunnel);
        let user_timeout = net::session_user_timeout(setup.core.liveness.dead);
        Ok((url.clone(), Target { url: parsed, tls: None, dialects, user_timeout }))
    };
    setup.core.hubs.iter().map(target).collect()
}

/// Looks for hubs to judge a fresh token, and the pause between them: renewal
/// sends one within a second of its change.
const LOOKS: u32 = 30;
const LOOK_EVERY: Duration = Duration::from_millis(100);

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

/// Reads the file and puts it in force, or nothing of it. What is not polled
/// to its end changes nothing and gives its turn back.
pub(super) async fn run(node: &Node<Agent>, shared: &Rc<Shared>, _turn: Turn<'_>) -> Outcome {
    let outcome = match &shared.source {
        Some(source) => match attempt(node, shared, source).await {
            Ok(restart) => Outcome::Applied(restart),
            Err(why) => Outcome::Refused(why.to_string()),
        },
        None => Outcome::Refused("this agent runs without a file".to_owned()),
    };
    shared.reloads.note(&outcome, "agent_id", shared.setup().core.agent_id.as_str());
    outcome
}

/// Looks whether the hubs will take these connectors, before they are told.
/// Waits for those that have not judged a fresh token yet.
async fn covered(shared: &Shared, new: &AgentSetup, old: &AgentSetup) -> Result<(), RunError> {
    let connectors = &new.core.connectors;
    if *connectors == old.core.connectors {
        // Nothing is told.
        return Ok(());
    }
    let in_file = token::scope(&read_token(&new.token_file).map_err(RunError::Config)?);
    if let Some(name) = outside(&in_file, connectors) {
        return Err(RunError::Config(format!(
            "connectors: {name:?} is not among the connectors that the token in token_file names ({}); \
             hubs would end the tunnels: put a token that names it into token_file, or leave it out",
            shown(&in_file)
        )));
    }
    for _ in 0..LOOKS {
        if shared.scopes.borrow().refuser(connectors).is_none() {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let Some((hub, name)) = shared.scopes.borrow().refuser(connectors) else { return Ok(()) };
    Err(RunError::Failed(format!(
        "connectors: the token that {hub} took last does not name {name:?}, and it has not taken the one in \
         token_file yet; reload again after `token_accepted`"
    )))
}

async fn attempt(
    node: &Node<Agent>,
    shared: &Rc<Shared>,
    source: &super::Source,
) -> Result<Vec<&'static str>, RunError> {
    if node.look(|agent| agent.tunnels().is_draining()) {
        return Err(RunError::Failed("the agent is leaving".to_owned()));
    }
    let old = shared.setup();
    let mut new = source()?;
    let restart = keep(&mut new, &old);
    covered(shared, &new, &old).await?;
    let set = certs::Set::of_agent(&new).map_err(|e| RunError::Config(e.to_string()))?;
    let mut targets = targets(&new)?;
    // The tunnel to a removed hub may have to come back while streams use it up.
    for (url, target) in shared.targets.borrow().iter() {
        targets.entry(url.clone()).or_insert_with(|| target.clone());
    }
    // What the machine wants dialled must be there.
    let before = shared.targets.replace(targets);
    #[cfg(test)]
    node.journal().calls(Call::Reload(journal::Config::Agent(Box::new(new.core.clone())), DRAIN));
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
        let _ = shared.certs.renew(&node, |_| certs::Piece::of_agent(&shared.setup()));
    }
}

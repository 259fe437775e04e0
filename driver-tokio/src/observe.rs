//! Events of the core as log lines. One structured line each, with a stable
//! `event`; failures are rate-limited. No token, key or payload ever gets
//! here; peers appear by the names they authenticated with (B10).

use std::net::SocketAddr;

use nowconnect_core::error::CloseCode;
use nowconnect_core::observed::{CarriedRecord, DrainStep, Observed, StreamRecord};
use nowconnect_core::wire::Plane;

use crate::limiter::Limiter;

const fn plane_name(plane: Plane) -> &'static str {
    match plane {
        Plane::Tunnel => "tunnel",
        Plane::Mesh => "mesh",
    }
}

fn millis(d: Option<std::time::Duration>) -> Option<f64> {
    d.map(|d| d.as_secs_f64() * 1000.0)
}

/// The record of one stream (semantics 10), log target `stream`.
pub fn stream_record(r: &StreamRecord, listener: &str, connector: &str, origin: &str, client: Option<SocketAddr>) {
    tracing::info!(
        target: "stream",
        cid = %r.cid,
        listener,
        client = client.map(tracing::field::display),
        origin,
        owner = r.owner.as_ref().map(tracing::field::display),
        agent = r.agent_id.as_ref().map(tracing::field::display),
        connector,
        path = if r.owner.is_none() { "none" } else if r.local { "local" } else { "mesh" },
        epoch = %r.epoch,
        epochs = r.epochs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        route_ms = millis(r.route),
        open_ms = millis(r.open),
        first_byte_ms = millis(r.first_byte),
        total_ms = millis(Some(r.total)),
        bytes_up = r.bytes_up,
        bytes_down = r.bytes_down,
        suspensions = r.suspensions,
        cause = r.cause.name(),
        by = r.by.name(),
    );
}

/// What an agent knows of one stream; the cid joins it to the origin's record.
pub fn carried_record(r: &CarriedRecord, agent: &str, owner: Option<&str>, connector: &str, target: &str) {
    tracing::info!(
        target: "stream",
        cid = %r.cid,
        agent,
        owner,
        connector,
        target,
        epoch = %r.epoch,
        connected = r.connected,
        bytes_up = r.bytes_up,
        bytes_down = r.bytes_down,
        cause = r.cause.name(),
        by = r.by.name(),
    );
}

/// Every other event; `url` says where a dial of ours led, by its number.
pub fn event(event: &Observed, url: impl FnOnce(u16) -> Option<String>, lines: &Limiter) {
    match event {
        // Told by the caller with names, or samples for histograms.
        Observed::Stream(_) | Observed::Carried(_) | Observed::Opened { .. } | Observed::Rtt { .. } => {}
        Observed::SessionUp { plane, peer } => {
            tracing::info!(event = "session_up", plane = plane_name(*plane), peer);
        }
        Observed::SessionSuspended { plane, peer, cause } => {
            tracing::warn!(event = "session_suspended", plane = plane_name(*plane), peer, cause = cause.name());
        }
        Observed::SessionResumed { plane, peer, after } => {
            let after_ms = after.as_secs_f64() * 1000.0;
            tracing::info!(event = "session_resumed", plane = plane_name(*plane), peer, after_ms);
        }
        // What peers do on purpose is no warning: one of two simultaneous dials
        // gives way at every start, and processes are stopped.
        Observed::SessionLost { plane, peer, cause: cause @ (CloseCode::Duplicate | CloseCode::Shutdown) } => {
            tracing::info!(event = "session_ended", plane = plane_name(*plane), peer, cause = cause.name());
        }
        Observed::HandshakeFailed { plane, cause: CloseCode::Duplicate, .. } => {
            tracing::info!(
                event = "dial_not_needed",
                plane = plane_name(*plane),
                "the session the other side dialled survives"
            );
        }
        Observed::SessionLost { plane, peer, cause } => {
            tracing::warn!(event = "session_lost", plane = plane_name(*plane), peer, cause = cause.name());
        }
        Observed::HandshakeFailed { plane, cause, detail, target } => {
            let url = target.and_then(url);
            let key = [cause.name(), url.as_deref().unwrap_or_default()].join(" ");
            if let Some(suppressed) = lines.allow("handshake_failed", &key) {
                tracing::warn!(
                    event = "handshake_failed",
                    plane = plane_name(*plane),
                    cause = cause.name(),
                    url,
                    suppressed,
                    "{detail}"
                );
            }
        }
        Observed::ProtocolViolation { plane, kind, detail } => {
            if let Some(suppressed) = lines.allow("protocol_violation", kind.name()) {
                tracing::warn!(
                    event = "protocol_violation",
                    plane = plane_name(*plane),
                    kind = kind.name(),
                    suppressed,
                    "{detail}"
                );
            }
        }
        Observed::Attached { agent_id, epoch, firm, takeover, again } => {
            tracing::info!(event = "attached", agent = %agent_id, %epoch, firm, takeover, again);
        }
        Observed::TokenExpired { agent_id } => {
            tracing::warn!(
                event = "token_expired",
                agent = %agent_id,
                "its tunnel takes no new streams until the agent brings a valid token; open streams: auth.on_expiry"
            );
        }
        Observed::TokenRenewed { agent_id } => tracing::info!(event = "token_renewed", agent = %agent_id),
        Observed::TokenRefused { agent_id } => {
            tracing::warn!(
                event = "token_refused",
                agent = %agent_id,
                "a fresh token on the live tunnel was not accepted; the one before goes on until its end"
            );
        }
        Observed::TokenAnswered { peer, accepted: true } => tracing::info!(event = "token_accepted", hub = peer),
        Observed::TokenAnswered { peer, accepted: false } => {
            tracing::warn!(
                event = "token_refused",
                hub = peer,
                "the hub does not take the new token; it is sent again"
            );
        }
        Observed::Detached { agent_id, epoch, cause } => {
            tracing::info!(event = "detached", agent = %agent_id, %epoch, cause = cause.name());
        }
        Observed::RegistryHealth { healthy: true } => tracing::info!(event = "registry_healthy"),
        Observed::RegistryHealth { healthy: false } => {
            tracing::error!(
                event = "registry_unhealthy",
                "new cross-hub streams are refused until it answers (ha.redis_url)"
            );
        }
        Observed::LeaseHeldByOther => {
            if let Some(suppressed) = lines.allow("replica_id_twice", "") {
                tracing::error!(
                    event = "replica_id_twice",
                    suppressed,
                    "another live process uses this ha.replica_id and holds its lease; this hub serves its own clients only"
                );
            }
        }
        Observed::DuplicateAgent { agent_id } => {
            tracing::error!(
                event = "agent_id_twice",
                agent = %agent_id,
                "two live processes use this agent_id and take it from each other; the one that holds it stays for 60 s"
            );
        }
        Observed::DuplicateAgentRefused { agent_id, retry_after } => {
            if let Some(suppressed) = lines.allow("agent_id_refused", "") {
                tracing::warn!(
                    event = "agent_id_refused",
                    agent = %agent_id,
                    retry_after_ms = retry_after.as_millis() as u64,
                    suppressed,
                    "the other process with this agent_id is sent away"
                );
            }
        }
        Observed::StartedOver { highest, offered } => {
            tracing::error!(
                event = "agent_started_over",
                %highest,
                %offered,
                "no hub grants an epoch above the highest one; the agent goes on as a new instance"
            );
        }
        Observed::PeerIsSelf { peer } => {
            tracing::info!(
                event = "peer_is_self",
                peer,
                "this entry of ha.mesh.peers is this hub itself and is ignored"
            );
        }
        Observed::FewerHubs { wanted, have } => {
            tracing::warn!(
                event = "fewer_hubs",
                wanted,
                have,
                "fewer distinct hubs behind `hubs` than `parallel` asks for"
            );
        }
        Observed::Ejected { connector, agent_id, owner, code, time } => {
            if let Some(suppressed) = lines.allow("candidate_ejected", &format!("{code} {connector}")) {
                tracing::warn!(
                    event = "candidate_ejected",
                    %connector,
                    agent = %agent_id,
                    owner = %owner,
                    reason = code.name(),
                    for_ms = time.as_millis() as u64,
                    suppressed,
                    "selection.fall opens in a row failed there; other candidates are asked first"
                );
            }
        }
        Observed::Reinstated { connector, agent_id, owner } => {
            tracing::info!(event = "candidate_reinstated", %connector, agent = %agent_id, owner = %owner);
        }
        Observed::TargetDown { connector, code } => {
            tracing::warn!(
                event = "target_down",
                %connector,
                reason = code.name(),
                "its checks fail (connectors[].health); the connector is withdrawn, open streams stay"
            );
        }
        Observed::TargetUp { connector } => {
            tracing::info!(event = "target_up", %connector, "its checks succeed; the connector is exposed again");
        }
        Observed::Drain(DrainStep::Begun) => tracing::info!(event = "draining", "the process leaves"),
        Observed::Drain(DrainStep::Cancelled) => tracing::info!(event = "drain_cancelled", "the process stays"),
        Observed::Drain(DrainStep::Closed) => {
            tracing::info!(event = "drain_closed", "the listeners are closed; nothing new is taken");
        }
        Observed::Drain(DrainStep::Deadline { quiet, busy }) => {
            tracing::warn!(
                event = "drain_deadline",
                quiet,
                busy,
                "drain.timeout passed; the streams that are left are reset, quiet ones first"
            );
        }
        Observed::GaveUp { plane, target } => {
            tracing::error!(
                event = "gave_up",
                plane = plane_name(*plane),
                target,
                "reconnect.max_retries dials failed in a row"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_handshake_that_failed_says_where_it_was_dialled() {
        let (lines, limiter) = (Lines::default(), Limiter::new(crate::clock::Monotonic::new()));
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            for target in [Some(1), None] {
                let (plane, cause, detail) = (Plane::Mesh, CloseCode::Auth, "d");
                let failed = Observed::HandshakeFailed { plane, cause, detail, target };
                event(&failed, |ix| Some(format!("wss://hub-{ix}/mesh")), &limiter);
            }
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let urls: Vec<serde_json::Value> = text
            .lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["fields"]["url"].clone())
            .collect();
        assert_eq!(urls, [serde_json::json!("wss://hub-1/mesh"), serde_json::Value::Null], "{text}");
    }
}

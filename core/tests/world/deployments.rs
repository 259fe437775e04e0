//! Configurations that tests of the small world begin with and change.

use super::*;

pub(crate) fn hub_config(replica: &str, mode: Mode, peers: &[&str]) -> HubConfig {
    HubConfig {
        replica_id: name(replica),
        namespace: name("default"),
        region: None,
        mode,
        listeners: vec![ListenerConfig {
            name: name("l1"),
            connector: name("ldap"),
            open: OpenRule::Eager,
            max_connections: 10_000,
        }],
        peers: peers.iter().map(|p| PeerConfig { url: (*p).to_owned(), replica_id: None, host: None }).collect(),
        limits: Limits::default(),
        liveness: Liveness::default(),
        resume_window: Duration::from_secs(30),
        backoff: Backoff::default(),
        open: OpenTimers::default(),
        selection: Selection::default(),
        registry: RegistryTimers::default(),
        handshake_timeout: Duration::from_secs(5),
        insecure_allow_unscoped: true,
        on_expiry: OnExpiry::Keep,
        insecure_mesh: true,
    }
}

pub(crate) fn agent_config(id: &str, hubs: &[&str], parallel: u16) -> AgentConfig {
    AgentConfig {
        agent_id: AgentId::new(id).unwrap(),
        hubs: hubs.iter().map(|h| (*h).to_owned()).collect(),
        parallel,
        connectors: vec![ConnectorConfig {
            name: name("ldap"),
            target: "t".into(),
            priority: 0,
            weight: 1,
            health: None,
        }],
        limits: Limits::default(),
        liveness: Liveness::default(),
        resume_window: Duration::from_secs(30),
        backoff: Backoff::default(),
        target_timeout: Duration::from_millis(1500),
        handshake_timeout: Duration::from_secs(5),
    }
}

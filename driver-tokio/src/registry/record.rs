//! What lies in Redis: key names and record bodies. The scripts under
//! `scripts/` read and write the same ones.
//!
//! Keys of one agent share the hash tag `{agent}`, the connector index of a
//! namespace the tag `{namespace}`; each hub's lease stands alone. So every
//! script names keys of one cluster slot only. Values are read as hostile
//! (attack 59): what is not exactly a record of schema 1 counts as absent.
//!
//! Must not know: connections, time.

use nowconnect_core::id::{AgentId, ClaimId, Epoch, Fence, Incarnation, Instance, Name, Nonce};
use nowconnect_core::registry::{HubRun, Located};
use nowconnect_core::wire::{CONNECTORS_MAX, ConnectorAd};
use serde::Deserialize;

/// Version of every record; a newer one counts as absent.
const SCHEMA: u64 = 1;
/// Largest record read, bytes; `RECORD_MAX` of the scripts.
const RECORD_MAX_BYTES: usize = 1 << 20;

/// Key names of one namespace.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    namespace: Name,
}

impl Keys {
    pub(super) const fn new(namespace: Name) -> Self {
        Self { namespace }
    }
    /// HASH, replica id to attachment record.
    pub(super) fn attachments(&self, agent: &AgentId) -> String {
        format!("nowconnect:{}:{{{agent}}}:att", self.namespace)
    }
    /// Decimal text; no TTL, never deleted.
    pub(super) fn epoch(&self, agent: &AgentId) -> String {
        format!("nowconnect:{}:{{{agent}}}:ep", self.namespace)
    }
    /// The answer to one claim, for its retries; expires.
    pub(super) fn claim(&self, agent: &AgentId, claim: ClaimId) -> String {
        format!("nowconnect:{}:{{{agent}}}:claim:{claim}", self.namespace)
    }
    /// A hub's lease; its TTL is the lease.
    pub(super) fn lease(&self, replica: &Name) -> String {
        format!("nowconnect:{}:hub:{replica}", self.namespace)
    }
    /// ZSET of all agents that ever attached and were not swept.
    pub(super) fn agents(&self) -> String {
        format!("nowconnect:{{{}}}:agents", self.namespace)
    }
    /// ZSET of all connectors that have an index.
    pub(super) fn connectors(&self) -> String {
        format!("nowconnect:{{{}}}:connectors", self.namespace)
    }
    /// ZSET of agents that may expose the connector: a hint.
    pub(super) fn index(&self, connector: &str) -> String {
        format!("nowconnect:{{{}}}:idx:{connector}", self.namespace)
    }
}

#[derive(Deserialize)]
struct Version {
    v: u64,
}

#[derive(Deserialize)]
struct StoredAttachment {
    agent: AgentId,
    replica: Name,
    inc: Incarnation,
    instance: Instance,
    nonce: Nonce,
    epoch: Epoch,
    /// JSON inside a string: Lua's JSON writes an empty list as `{}`.
    connectors: String,
}

#[derive(Deserialize)]
struct StoredLease {
    inc: Incarnation,
    #[serde(default)]
    region: Option<Name>,
}

/// What a raw value turned out to be.
#[derive(Debug, PartialEq)]
pub(super) enum Read<T> {
    /// A record of schema 1.
    Good(T),
    /// A whole record of a later schema: absent to us, but not ours to remove.
    Newer,
    /// Anything else.
    Garbage,
}

fn read<'a, T: Deserialize<'a>>(raw: &'a [u8]) -> Read<T> {
    if raw.len() > RECORD_MAX_BYTES {
        return Read::Garbage;
    }
    match serde_json::from_slice::<Version>(raw) {
        Ok(Version { v: SCHEMA }) => serde_json::from_slice(raw).map_or(Read::Garbage, Read::Good),
        Ok(Version { v }) if v > SCHEMA => Read::Newer,
        Ok(_) | Err(_) => Read::Garbage,
    }
}

/// Reads an attachment record found under `agent`; `region` is left empty.
pub(super) fn read_attachment(agent: &AgentId, raw: &[u8]) -> Read<Located> {
    let stored: StoredAttachment = match read(raw) {
        Read::Good(stored) => stored,
        Read::Newer => return Read::Newer,
        Read::Garbage => return Read::Garbage,
    };
    match serde_json::from_str::<Vec<ConnectorAd>>(&stored.connectors) {
        Ok(connectors) if connectors.len() <= CONNECTORS_MAX && stored.agent == *agent => Read::Good(Located {
            agent_id: stored.agent,
            instance: stored.instance,
            hub: HubRun { replica_id: stored.replica, incarnation: stored.inc },
            fence: Fence { epoch: stored.epoch, nonce: stored.nonce },
            connectors,
            region: None,
        }),
        Ok(_) | Err(_) => Read::Garbage,
    }
}

/// Reads a lease: the run that holds it and the hub's region.
pub(super) fn read_lease(raw: &[u8]) -> Option<(Incarnation, Option<Name>)> {
    match read::<StoredLease>(raw) {
        Read::Good(lease) => Some((lease.inc, lease.region)),
        Read::Newer | Read::Garbage => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"v":1,"agent":"a/1","replica":"hub","inc":"0000000000000001","instance":"0000000000000002",
        "claim":"00000000000000000000000000000003","nonce":"0000000000000004","epoch":"9007199254740991",
        "connectors":"[{\"name\":\"ldap\",\"priority\":1,\"weight\":2}]","later":true}"#;

    #[test]
    fn hostile_records_are_absent() {
        let agent = AgentId::new("a/1").unwrap();
        let Read::Good(l) = read_attachment(&agent, GOOD.as_bytes()) else { panic!("expected a good record") };
        assert_eq!(l.fence.epoch, Epoch(9_007_199_254_740_991));
        assert_eq!(l.connectors.len(), 1);
        let newer = GOOD.replace("\"v\":1", "\"v\":2");
        assert_eq!(read_attachment(&agent, newer.as_bytes()), Read::Newer);
        let other = AgentId::new("b").unwrap();
        assert_eq!(read_attachment(&other, GOOD.as_bytes()), Read::Garbage, "a record copied from another agent");
        let many = format!("[{}]", vec![r#"{\"name\":\"ldap\",\"priority\":1,\"weight\":2}"#; 257].join(","));
        for bad in [
            String::new(),
            "null".into(),
            "{}".into(),
            "[".repeat(100_000),
            GOOD.replace("\"v\":1", "\"v\":0"),
            GOOD.replace("\"v\":1", "\"v\":\"1\""),
            GOOD.replace("\"9007199254740991\"", "9007199254740991"),
            GOOD.replace("\"replica\":\"hub\"", "\"replica\":\"h*b\""),
            GOOD.replace(r#"[{\"name\":\"ldap\",\"priority\":1,\"weight\":2}]"#, "{}"),
            GOOD.replace(r#"[{\"name\":\"ldap\",\"priority\":1,\"weight\":2}]"#, &many),
            format!("{GOOD}{}", " ".repeat(RECORD_MAX_BYTES)),
        ] {
            let shown: String = bad.chars().take(80).collect();
            assert_eq!(read_attachment(&agent, bad.as_bytes()), Read::Garbage, "{shown}");
        }
    }

    #[test]
    fn keys_of_a_script_share_a_slot_tag() {
        let keys = Keys::new(Name::new("prod").unwrap());
        let agent = AgentId::new("plant-7/2").unwrap();
        for key in [keys.attachments(&agent), keys.epoch(&agent), keys.claim(&agent, ClaimId(1))] {
            assert!(key.starts_with("nowconnect:prod:{plant-7/2}:"), "{key}");
        }
        for key in [keys.agents(), keys.connectors(), keys.index("ldap")] {
            assert!(key.starts_with("nowconnect:{prod}:"), "{key}");
        }
    }
}

//! Every documented key changes the setup, and the reference page lists exactly
//! the keys there are.

use std::collections::BTreeSet;

use nowconnect::config::{Kind, keys};

use super::{agent, hub};

/// A hub whose every rule is met, so that a row shows what it changes alone.
const HUB: &str = "\
listeners:
  - { name: l1, bind: '127.0.0.1:1389', connector: ldap }
ha:
  enabled: true
  mode: active
  replica_id: hub-a
  redis_url: redis://r:6379/0
  mesh:
    listen: 127.0.0.1:8767
    listen_tls: native
    peers: ['wss://hub-b.example.com/mesh']
    tls: { ca_bundle: ca.pem, cert_file: a.crt, key_file: a.key }
";

const AGENT: &str = "\
agent_id: plant-7
hubs: ['wss://a.example.com/tunnel', 'wss://b.example.com/tunnel']
token_file: token
connectors: [{ name: ldap, target: '10.0.0.5:389' }]
";

/// Key, and a line put after `HUB` or in place of one of its lines (`a => b`),
/// that must change the setup.
const HUB_KEYS: &[(&str, &str)] = &[
    ("listeners[].name", "name: l1 => name: l2"),
    ("listeners[].bind", "1389 => 1390"),
    ("listeners[].connector", "connector: ldap => connector: web"),
    ("listeners[].max_connections", "connector: ldap => connector: ldap, max_connections: 5"),
    ("listeners[].allow[]", "connector: ldap => connector: ldap, allow: [10.0.0.0/8]"),
    ("listeners[].open", "connector: ldap => connector: ldap, open: first-byte"),
    ("listeners[].when_unavailable", "connector: ldap => connector: ldap, when_unavailable: reset"),
    ("http.bind", "http: { bind: '127.0.0.1:1' }"),
    (
        "http.tls.cert_file",
        "http: { tls: { cert_file: a, key_file: b } } / http: { tls: { cert_file: c, key_file: b } }",
    ),
    (
        "http.tls.key_file",
        "http: { tls: { cert_file: a, key_file: b } } / http: { tls: { cert_file: a, key_file: c } }",
    ),
    ("http.degraded_status", "http: { degraded_status: 503 }"),
    ("metrics.bind", "metrics: { bind: '127.0.0.1:9090' }"),
    ("metrics.legacy_names", "metrics: { legacy_names: true }"),
    ("admin.socket", "admin: { socket: /run/a.sock }"),
    ("admin.bind", "admin: { bind: '127.0.0.1:8766' }"),
    ("admin.token_file", "admin: { bind: '127.0.0.1:8766' } / admin: { bind: '127.0.0.1:8766', token_file: t }"),
    ("auth.jwt.audience", "auth: { jwt: { audience: other } }"),
    ("auth.jwt.issuer", "auth: { jwt: { issuer: other } }"),
    ("auth.jwt.algorithms[]", "auth: { jwt: { algorithms: [PS256] } }"),
    ("auth.jwt.jwks_file", "auth: { jwt: { issuer: i } } / auth: { jwt: { issuer: i, jwks_file: f } }"),
    ("auth.jwt.public_key_file", "auth: { jwt: { issuer: i } } / auth: { jwt: { issuer: i, public_key_file: f } }"),
    ("auth.jwt.hmac_secret_file", "auth: { jwt: { issuer: i } } / auth: { jwt: { issuer: i, hmac_secret_file: f } }"),
    ("auth.jwt.jwks_url", "auth: { jwt: { issuer: i } } / auth: { jwt: { issuer: i, jwks_url: 'https://idp/k' } }"),
    (
        "auth.jwt.jwks_ca_bundle",
        "auth: { jwt: { issuer: i, jwks_url: 'https://idp/k' } } / auth: { jwt: { issuer: i, jwks_url: 'https://idp/k', jwks_ca_bundle: f } }",
    ),
    (
        "auth.jwt.jwks_cache_file",
        "auth: { jwt: { issuer: i, jwks_url: 'https://idp/k' } } / auth: { jwt: { issuer: i, jwks_url: 'https://idp/k', jwks_cache_file: f } }",
    ),
    (
        "auth.jwt.jwks_refresh",
        "auth: { jwt: { issuer: i, jwks_url: 'https://idp/k' } } / auth: { jwt: { issuer: i, jwks_url: 'https://idp/k', jwks_refresh: 5m } }",
    ),
    (
        "auth.jwt.jwks_max_age",
        "auth: { jwt: { issuer: i, jwks_url: 'https://idp/k' } } / auth: { jwt: { issuer: i, jwks_url: 'https://idp/k', jwks_max_age: 48h } }",
    ),
    ("auth.on_expiry", "auth: { on_expiry: cut }"),
    ("auth.jwt.max_lifetime", "auth: { jwt: { max_lifetime: 1h } }"),
    ("auth.jwt.leeway", "auth: { jwt: { leeway: 7s } }"),
    ("auth.insecure_allow_unscoped", "auth: { insecure_allow_unscoped: true }"),
    ("ha.enabled", "enabled: true => enabled: false"),
    ("ha.mode", "mode: active => mode: shadow"),
    ("ha.replica_id", "hub-a => hub-x"),
    ("ha.region", "  replica_id: hub-a =>   replica_id: hub-a\n  region: eu"),
    ("ha.namespace", "  replica_id: hub-a =>   replica_id: hub-a\n  namespace: other"),
    ("ha.redis_url", "redis://r => redis://q"),
    ("ha.redis_password_file", "  replica_id: hub-a =>   replica_id: hub-a\n  redis_password_file: p"),
    (
        "ha.redis_tls.ca_bundle",
        "redis://r:6379/0 => rediss://r / redis://r:6379/0 => rediss://r\n  redis_tls: { ca_bundle: c }",
    ),
    (
        "ha.redis_tls.cert_file",
        "redis://r:6379/0 => rediss://r\n  redis_tls: { cert_file: c, key_file: k } / redis://r:6379/0 => rediss://r\n  redis_tls: { cert_file: d, key_file: k }",
    ),
    (
        "ha.redis_tls.key_file",
        "redis://r:6379/0 => rediss://r\n  redis_tls: { cert_file: c, key_file: k } / redis://r:6379/0 => rediss://r\n  redis_tls: { cert_file: c, key_file: l }",
    ),
    ("ha.mesh.listen", "8767 => 8768"),
    ("ha.mesh.listen_tls", "listen_tls: native => listen_tls: ingress"),
    ("ha.mesh.peers[]", "hub-b => hub-c"),
    ("ha.mesh.peers[].url", "['wss://hub-b.example.com/mesh'] => [{ url: 'wss://hub-d/mesh' }]"),
    (
        "ha.mesh.peers[].replica_id",
        "['wss://hub-b.example.com/mesh'] => [{ url: 'wss://hub-b.example.com/mesh', replica_id: b }]",
    ),
    // A word that the rest of the file is held to: refused here, as `every_key_changes_the_setup` sees.
    ("ha.mesh.require_mtls", "  mesh: =>   mesh:\n    require_mtls: false"),
    ("ha.mesh.tls.ca_bundle", "ca.pem => cb.pem"),
    ("ha.mesh.tls.cert_file", "a.crt => b.crt"),
    ("ha.mesh.tls.key_file", "a.key => b.key"),
    ("ha.mesh.wire", "  mesh: =>   mesh:\n    wire: v1"),
    ("drain.lameduck", "drain: { lameduck: 3s }"),
    ("ha.mesh.send_queue_depth", "  mesh: =>   mesh:\n    send_queue_depth: 17"),
    ("ha.mesh.per_link_max_inflight_bytes", "  mesh: =>   mesh:\n    per_link_max_inflight_bytes: 300000"),
    ("ha.mesh.connect_backoff_initial", "  mesh: =>   mesh:\n    connect_backoff_initial: 100ms"),
    ("ha.mesh.connect_backoff_max_sec", "  mesh: =>   mesh:\n    connect_backoff_max_sec: 7"),
    ("ha.mesh.connect_backoff_waiting_max", "  mesh: =>   mesh:\n    connect_backoff_waiting_max: 1s"),
    (
        "ha.mesh.insecure_allow_plaintext",
        "listen_tls: native\n    peers: ['wss://hub-b.example.com/mesh']\n    tls: { ca_bundle: ca.pem, cert_file: a.crt, key_file: a.key } => listen_tls: ingress / listen_tls: native\n    peers: ['wss://hub-b.example.com/mesh']\n    tls: { ca_bundle: ca.pem, cert_file: a.crt, key_file: a.key } => listen_tls: ingress\n    insecure_allow_plaintext: true",
    ),
    ("liveness.ping", "liveness: { ping: 2s }"),
    ("liveness.suspect", "liveness: { suspect: 4s }"),
    ("liveness.dead", "liveness: { dead: 9s }"),
    ("resume_window", "resume_window: 31s"),
    ("handshake_timeout", "handshake_timeout: 6s"),
    ("open.attempt_timeout", "open: { attempt_timeout: 1s }"),
    ("open.timeout", "open: { timeout: 11s }"),
    ("open.first_byte_wait", "open: { first_byte_wait: 2s }"),
    ("selection.fall", "selection: { fall: 4 }"),
    ("selection.rise", "selection: { rise: 4 }"),
    ("selection.eject", "selection: { eject: 11s }"),
    ("selection.eject_max", "selection: { eject_max: 1h }"),
    ("selection.failback_after", "selection: { failback_after: 30s }"),
    (
        "selection.priorities[].agent",
        "selection: { priorities: [{ agent: a, priority: 1 }] } / selection: { priorities: [{ agent: b, priority: 1 }] }",
    ),
    (
        "selection.priorities[].connector",
        "selection: { priorities: [{ agent: a, priority: 1 }] } / selection: { priorities: [{ agent: a, connector: c, priority: 1 }] }",
    ),
    (
        "selection.priorities[].priority",
        "selection: { priorities: [{ agent: a, priority: 1 }] } / selection: { priorities: [{ agent: a, priority: 2 }] }",
    ),
    ("registry.lease", "registry: { lease: 11s }"),
    ("registry.renew_every", "registry: { renew_every: 2s }"),
    ("registry.op_timeout", "registry: { op_timeout: 400ms }"),
    ("registry.lookup_fresh", "registry: { lookup_fresh: 2s }"),
    ("registry.on_outage", "registry: { on_outage: cached }"),
    ("drain.timeout", "drain: { timeout: 5s }"),
    ("limits.memory_budget_bytes", "limits: { memory_budget_bytes: 5000000 }"),
    ("limits.stream_window_initial_bytes", "limits: { stream_window_initial_bytes: 32768 }"),
    ("limits.stream_window_max_bytes", "limits: { stream_window_max_bytes: 2097152 }"),
    ("limits.max_streams", "limits: { max_streams: 5 }"),
    ("limits.tombstones", "limits: { tombstones: 5 }"),
    ("limits.max_pending_opens", "limits: { max_pending_opens: 5 }"),
    ("limits.max_sessions", "limits: { max_sessions: 5 }"),
    ("limits.max_handshakes", "limits: { max_handshakes: 5 }"),
    ("limits.max_handshakes_per_address", "limits: { max_handshakes_per_address: 5 }"),
    ("limits.handshake_rate", "limits: { handshake_rate: 5 }"),
];

const AGENT_KEYS: &[(&str, &str)] = &[
    ("agent_id", "plant-7 => plant-8"),
    ("hubs[]", "//a => //c"),
    ("parallel", "parallel: 3"),
    ("wire", "wire: v2"),
    ("token_file", "token_file: token => token_file: other"),
    ("tls.ca_bundle", "tls: { ca_bundle: x }"),
    ("connectors[].name", "name: ldap => name: web"),
    ("connectors[].target", "10.0.0.5 => 10.0.0.6"),
    ("connectors[].priority", "name: ldap => name: ldap, priority: 3"),
    ("connectors[].weight", "name: ldap => name: ldap, weight: 3"),
    ("connectors[].health.kind", "name: ldap => name: ldap, health: { kind: tcp }"),
    (
        "connectors[].health.interval",
        "name: ldap => name: ldap, health: { kind: tcp } / name: ldap => name: ldap, health: { kind: tcp, interval: 6s }",
    ),
    (
        "connectors[].health.timeout",
        "name: ldap => name: ldap, health: { kind: tcp } / name: ldap => name: ldap, health: { kind: tcp, timeout: 3s }",
    ),
    (
        "connectors[].health.fall",
        "name: ldap => name: ldap, health: { kind: tcp } / name: ldap => name: ldap, health: { kind: tcp, fall: 4 }",
    ),
    (
        "connectors[].health.rise",
        "name: ldap => name: ldap, health: { kind: tcp } / name: ldap => name: ldap, health: { kind: tcp, rise: 4 }",
    ),
    ("reconnect.initial_delay", "reconnect: { initial_delay: 1s }"),
    ("reconnect.max_delay", "reconnect: { max_delay: 1m }"),
    ("reconnect.multiplier", "reconnect: { multiplier: 2 }"),
    ("reconnect.jitter", "reconnect: { jitter: 0.1 }"),
    ("reconnect.max_retries", "reconnect: { max_retries: 3 }"),
    ("reconnect.max_delay_while_streams_wait", "reconnect: { max_delay_while_streams_wait: 1s }"),
    ("admin.socket", "admin: { socket: /run/a.sock }"),
    ("admin.bind", "admin: { bind: '127.0.0.1:8766' }"),
    ("admin.token_file", "admin: { token_file: t }"),
    ("insecure_allow_plaintext", "insecure_allow_plaintext: true"),
    ("liveness.ping", "liveness: { ping: 2s }"),
    ("liveness.suspect", "liveness: { suspect: 4s }"),
    ("liveness.dead", "liveness: { dead: 9s }"),
    ("resume_window", "resume_window: 31s"),
    ("handshake_timeout", "handshake_timeout: 6s"),
    ("target_timeout", "target_timeout: 3s"),
    ("limits.memory_budget_bytes", "limits: { memory_budget_bytes: 5000000 }"),
    ("limits.stream_window_initial_bytes", "limits: { stream_window_initial_bytes: 32768 }"),
    ("limits.stream_window_max_bytes", "limits: { stream_window_max_bytes: 2097152 }"),
    ("limits.max_streams", "limits: { max_streams: 5 }"),
    ("limits.send_queue_depth", "limits: { send_queue_depth: 17 }"),
    ("limits.inflight_bytes", "limits: { inflight_bytes: 300000 }"),
    ("limits.tombstones", "limits: { tombstones: 5 }"),
    ("limits.max_pending_opens", "limits: { max_pending_opens: 5 }"),
];

/// `base` with one edit: a line appended, or `a => b`.
fn edited(base: &str, edit: &str) -> String {
    match edit.split_once(" => ") {
        Some((old, new)) => {
            assert!(base.contains(old), "{old:?} is not in the base");
            base.replacen(old, new, 1)
        }
        None => format!("{base}{edit}\n"),
    }
}

#[test]
fn every_key_changes_the_setup() {
    // Warnings are not what a key is for.
    let hub_of = |text: &str| {
        let mut setup = hub(text).unwrap_or_else(|e| panic!("{text}\n{e}"));
        setup.warnings.clear();
        setup
    };
    let agent_of = |text: &str| {
        let mut setup = agent(text).unwrap_or_else(|e| panic!("{text}\n{e}"));
        setup.warnings.clear();
        setup
    };
    for (key, row) in HUB_KEYS {
        if *key == "ha.mesh.require_mtls" {
            for mode in ["active", "shadow"] {
                let refused = hub(&edited(&edited(HUB, &format!("mode: active => mode: {mode}")), row)).unwrap_err();
                assert!(refused.to_string().contains(key), "{key} is ignored");
            }
            continue;
        }
        let (before, after) = match row.split_once(" / ") {
            Some((before, after)) => (edited(HUB, before), edited(HUB, after)),
            None => (HUB.to_owned(), edited(HUB, row)),
        };
        assert_ne!(hub_of(&before), hub_of(&after), "{key} is ignored");
    }
    for (key, row) in AGENT_KEYS {
        let (before, after) = match row.split_once(" / ") {
            Some((before, after)) => (edited(AGENT, before), edited(AGENT, after)),
            None => (AGENT.to_owned(), edited(AGENT, row)),
        };
        assert_ne!(agent_of(&before), agent_of(&after), "{key} is ignored");
    }
}

#[test]
fn the_tables_above_hold_every_key() {
    // What has one legal effect has rows among the errors: the last one permits what is refused otherwise.
    let elsewhere = ["workers", "auth.jwt.insecure_allow_plaintext_jwks"];
    for (kind, table) in [(Kind::Hub, HUB_KEYS), (Kind::Agent, AGENT_KEYS)] {
        let known = keys(kind);
        let mut tested: BTreeSet<String> = table.iter().map(|(key, _)| (*key).to_owned()).collect();
        tested.extend(elsewhere.iter().map(|k| (*k).to_owned()).filter(|k| known.contains(k)));
        assert_eq!(known, tested, "{kind:?}");
    }
}

#[test]
fn the_reference_page_lists_exactly_the_keys() {
    let page = include_str!("../../../docs/configuration.md");
    let (_, rest) = page.split_once("## Hub").unwrap();
    let (hub_part, agent_part) = rest.split_once("## Agent").unwrap();
    for (kind, part) in [(Kind::Hub, hub_part), (Kind::Agent, agent_part)] {
        let rows: Vec<(String, &str)> = part
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
            .map(|(key, rest)| (key.to_owned(), rest))
            .collect();
        let listed: BTreeSet<String> = rows.iter().map(|(key, _)| key.clone()).collect();
        let mut expected = keys(kind);
        // The two forms of a peer are described as two keys.
        if kind == Kind::Hub {
            expected.insert("ha.mesh.peers[]".to_owned());
        }
        assert_eq!(listed, expected, "{kind:?}");
        assert_eq!(rows.len(), listed.len(), "a key is listed twice");
        for (key, rest) in rows {
            assert!(!rest.contains("no effect"), "{key}");
        }
    }
}

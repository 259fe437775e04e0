//! Configuration as a user meets it: what is refused and where, what every
//! key changes, what the seeds' files do, and that the reference page lists
//! exactly the keys there are.

#![allow(clippy::unwrap_used, clippy::unwrap_in_result, reason = "a test that cannot go on should fail there")]

use std::collections::BTreeSet;

use nowconnect::config::{
    AgentSetup, ConfigErrors, HubSetup, Kind, ParseOptions, keys, kind_of, parse_agent, parse_hub,
};

const STRICT: ParseOptions = ParseOptions { allow_unknown_keys: false };

fn no_env(_: &str) -> Option<String> {
    None
}

fn hub(text: &str) -> Result<HubSetup, ConfigErrors> {
    parse_hub(text, &no_env, STRICT)
}

fn agent(text: &str) -> Result<AgentSetup, ConfigErrors> {
    parse_agent(text, &no_env, STRICT)
}

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

#[test]
fn bad_hubs() {
    // text, line of the finding (0: none can be told), fragment of its message
    let table: &[(&str, u64, &str)] = &[
        ("listener: []\n", 1, "listener: unknown key; did you mean `listeners`?"),
        ("http:\n  bnid: 1.2.3.4:5\n", 2, "http.bnid: unknown key; did you mean `bind`?"),
        ("ha:\n  mesh:\n    send_queue_dept: 5\n", 3, "did you mean `send_queue_depth`?"),
        ("ha: { mesh: { tls: { ca: x } } }\n", 1, "unknown key; expected one of ca_bundle, cert_file, key_file"),
        ("colour: red\n", 1, "unknown key; expected one of listeners"),
        ("listeners:\n  - { name: a, bind: '1.2.3.4:1', connector: c, conector: d }\n", 2, "did you mean `connector`?"),
        ("workers: 0\nworkers: 1\n", 2, "the key \"workers\" is written twice"),
        ("workers: 2\n", 1, "workers: expected 0 or 1, got 2"),
        ("workers: many\n", 1, "expected a whole number"),
        ("workers: -1\n", 1, "expected a whole number in digits, without unit or sign, got \"-1\""),
        ("- a\n- b\n", 1, "expected a mapping of keys"),
        ("http: [1]\n", 1, "expected a mapping of keys"),
        ("listeners: { name: x }\n", 1, "expected a list"),
        ("resume_window: { a: b }\n", 1, "expected a single value"),
        ("ha: { mesh: { peers: [5] } }\n", 1, "a URL or {url, replica_id}"),
        ("resume_window: [30s\n", 0, ""),
        ("resume_window: 30\n", 1, "the unit is missing, got \"30\""),
        ("resume_window: 10h\n", 1, "resume_window: expected 1s to 600s, got 36000s"),
        ("handshake_timeout: 5sec\n", 1, "expected a duration"),
        (
            "listeners:\n  - { name: 'a b', bind: '1.2.3.4:1', connector: c }\n",
            2,
            "listeners[0].name: expected 1 to 64 characters",
        ),
        ("listeners:\n  - { name: a, bind: 'localhost:1', connector: c }\n", 2, "listeners[0].bind: expected IP:PORT"),
        ("listeners:\n  - { name: a, bind: '1.2.3.4:1' }\n", 2, "listeners[0].connector: this key is required"),
        (
            "listeners:\n  - { name: a, bind: '1.2.3.4:1', connector: c }\n  - { name: a, bind: '1.2.3.4:2', connector: c }\n",
            3,
            "listeners[1].name: this name, `a`, is already used by listeners[0].name",
        ),
        (
            "listeners:\n  - { name: a, bind: '1.2.3.4:1', connector: c }\n  - { name: b, bind: '0.0.0.0:1', connector: c }\n",
            3,
            "binds 0.0.0.0:1, which listener a (1.2.3.4:1) already takes",
        ),
        ("admin: { bind: '0.0.0.0:8766' }\n", 1, "admin.bind: 0.0.0.0:8766 is reachable from other machines"),
        ("admin: { bind: '127.0.0.1:8765' }\n", 1, "admin.bind: binds 127.0.0.1:8765, which http.bind"),
        ("metrics: { bind: '127.0.0.1:8765' }\n", 1, "metrics.bind: binds 127.0.0.1:8765, which http.bind"),
        (
            "listeners:\n  - { name: a, bind: '1.2.3.4:1', connector: c, allow: [10.0.0.0/40] }\n",
            2,
            "allow[0]: expected an address range",
        ),
        ("listeners:\n  - { name: a, bind: '1.2.3.4:1', connector: c, allow: [] }\n", 2, "the list is empty"),
        (
            "listeners:\n  - { name: a, bind: '1.2.3.4:1', connector: c, open: lazy }\n",
            2,
            "expected eager or first-byte, got \"lazy\"",
        ),
        (
            "listeners:\n  - { name: a, bind: '1.2.3.4:1', connector: c, max_connections: 0 }\n",
            2,
            "expected 1 to 1000000, got 0",
        ),
        ("http: { degraded_status: 500 }\n", 1, "expected 200 or 503, got 500"),
        ("http:\n  tls: { cert_file: a.crt }\n", 2, "http.tls.key_file: this key is required"),
        ("auth: { jwt: { issuer: i, jwks_url: 'ftp://idp/keys' } }\n", 1, "the scheme must be https"),
        ("auth: { jwt: { issuer: i, jwks_url: 'https://u:p@idp/keys' } }\n", 1, "user names in it are not used"),
        ("auth: { jwt: { issuer: i, jwks_url: '<idp>' } }\n", 1, "expected a URL such as https://idp.example.com"),
        ("auth: { jwt: { issuer: i, jwks_url: 'http://127.0.0.1/keys' } }\n", 1, "http:// is plain text"),
        (
            "auth:\n  jwt:\n    issuer: i\n    insecure_allow_plaintext_jwks: true\n    jwks_url: 'http://idp/keys'\n",
            5,
            "insecure_allow_plaintext_jwks with a loopback address",
        ),
        ("auth:\n  jwt:\n    jwks_url: 'https://idp/keys'\n", 3, "auth.jwt.issuer: this key is required"),
        (
            "auth: { jwt: { issuer: i, jwks_url: 'https://idp/k', jwks_refresh: 5m, jwks_max_age: 2m } }\n",
            1,
            "auth.jwt.jwks_refresh (300s) must be less than auth.jwt.jwks_max_age (120s)",
        ),
        ("auth:\n  jwt:\n    public_key_file: k.pem\n", 3, "auth.jwt.issuer: this key is required"),
        ("auth: { jwt: { algorithms: [none] } }\n", 1, "auth.jwt.algorithms[0]: expected HS256 or ES256"),
        ("auth: { jwt: { audience: '' } }\n", 1, "auth.jwt.audience: expected some text"),
        ("auth: { jwt: { max_lifetime: 1s } }\n", 1, "expected 60s to"),
        ("auth: { insecure_allow_unscoped: yes }\n", 1, "expected true or false, got \"yes\""),
        ("ha:\n  enabled: true\n  mode: on\n", 3, "ha.mode: expected off or shadow or active"),
        ("ha:\n  enabled: true\n", 2, "ha.replica_id: this key is required"),
        ("ha: { enabled: true, replica_id: a, redis_url: 'http://h' }\n", 1, "ha.redis_url: expected redis://"),
        ("ha: { redis_url: 'redis-cluster://h/3' }\n", 1, "ha.redis_url: a cluster has database 0 only"),
        ("ha: { redis_url: 'redis-sentinel://h' }\n", 1, "ha.redis_url: expected the master's name"),
        ("ha: { redis_url: 'redis://h', redis_tls: { ca_bundle: c } }\n", 1, "ha.redis_tls: needs rediss://"),
        ("ha: { redis_url: 'rediss://h', redis_tls: { cert_file: c } }\n", 1, "ha.redis_tls.key_file"),
        ("ha: { redis_password_file: p }\n", 1, "ha.redis_password_file: has no effect without ha.redis_url"),
        (
            "ha:\n  enabled: true\n  mode: active\n  replica_id: a\n  mesh:\n    peers: ['wss://b/mesh']\n    tls: { ca_bundle: a, cert_file: b, key_file: c }\n",
            3,
            "ha.redis_url: this key is required with ha.mode: active and peers",
        ),
        ("ha: { mesh: { peers: ['ws://b.example.com/mesh'] } }\n", 1, "ha.mesh.peers[0]: ws:// is plain text"),
        (
            "http: { bind: '127.0.0.1:1' }\nha:\n  mesh:\n    insecure_allow_plaintext: true\n    peers: ['ws://b.example.com/mesh']\n",
            5,
            "ws:// is allowed on loopback only",
        ),
        (
            "ha:\n  enabled: true\n  mode: shadow\n  replica_id: a\n  mesh:\n    insecure_allow_plaintext: true\n",
            6,
            "http.bind serves /mesh on 0.0.0.0:8765: with this key it must be a loopback address",
        ),
        ("ha: { mesh: { peers: ['wss://b/mesh'] } }\n", 1, "a wss:// peer needs ha.mesh.tls"),
        ("ha: { mesh: { peers: ['https://b/mesh'] } }\n", 1, "the scheme must be wss"),
        ("ha: { mesh: { peers: ['wss://u:p@b/mesh'] } }\n", 1, "user names in it are not used"),
        ("ha: { mesh: { peers: ['<peer>'] } }\n", 1, "expected a URL such as"),
        (
            "ha:\n  mesh:\n    tls: { ca_bundle: a, cert_file: b, key_file: c }\n    peers: ['wss://b/mesh', { url: 'wss://b/mesh' }]\n",
            4,
            "is already used by ha.mesh.peers[0]",
        ),
        ("ha: { mesh: { peers: [{ url: 'wss://b/mesh', replica: b }] } }\n", 1, "did you mean `replica_id`?"),
        ("ha: { mesh: { peers: [{ replica_id: b }] } }\n", 1, "peers[0].url: this key is required"),
        ("ha: { mesh: { require_mtls: true } }\n", 1, "ha.mesh.require_mtls: needs ha.mesh.tls"),
        ("ha: { mesh: { listen_tls: native } }\n", 1, "native needs a port of its own"),
        ("ha:\n  mesh:\n    tls:\n      ca_bundle: a\n", 4, "ha.mesh.tls.cert_file: this key is required"),
        ("ha: { mesh: { per_link_max_inflight_bytes: 1000 } }\n", 1, "expected 262144 to"),
        ("ha: { mesh: { connect_backoff_initial: 5s, connect_backoff_max_sec: 2 } }\n", 1, "must not exceed"),
        ("liveness: { ping: 3s }\n", 1, "liveness.ping (3s) must be less than liveness.suspect (3s)"),
        ("liveness:\n  dead: 2s\n", 2, "liveness.suspect (3s) must be less than liveness.dead (2s)"),
        ("registry: { renew_every: 5s }\n", 1, "must be less than half of registry.lease (5s)"),
        ("open: { timeout: 1s }\n", 1, "open.attempt_timeout (2s) must be less than open.timeout (1s)"),
        ("selection: { rise: 0 }\n", 1, "selection.rise: expected 1 to 1000, got 0"),
        ("selection: { fall: 1001 }\n", 1, "selection.fall: expected 0 to 1000, got 1001"),
        ("selection: { eject: 10m }\n", 1, "selection.eject: must not exceed selection.eject_max"),
        ("selection: { eject: 1ms }\n", 1, "selection.eject: expected 50ms to"),
        ("selection: { failback_after: 25h }\n", 1, "selection.failback_after: expected 0s to 86400s"),
        ("selection: { priorities: [{ agent: a }] }\n", 1, "selection.priorities[0].priority: this key is required"),
        ("selection: { priorities: [{ priority: 1 }] }\n", 1, "selection.priorities[0].agent: this key is required"),
        ("selection: { priorities: [{ agent: a, prority: 1 }] }\n", 1, "did you mean `priority`?"),
        (
            "selection:\n  priorities:\n    - { agent: a, priority: 1 }\n    - { agent: a, connector: c, priority: 2 }\n    - { agent: a, priority: 3 }\n",
            5,
            "this agent and connector, `a *`, is already used by selection.priorities[0].agent",
        ),
        ("limits: { memory_budget_bytes: 1000 }\n", 1, "limits.memory_budget_bytes: expected 4194304 to"),
        (
            "limits: { memory_budget_bytes: 8388608, stream_window_max_bytes: 8388608 }\n",
            1,
            "one stream would use it up",
        ),
        (
            "limits: { stream_window_initial_bytes: 2097152 }\n",
            1,
            "expected at least limits.stream_window_initial_bytes",
        ),
        ("limits: { max_streams: 1_000 }\n", 1, "expected a whole number"),
        ("limits: { max_streams: 99999999999999999999 }\n", 1, "expected a whole number up to"),
        ("resume_window: ${NOT_SET}\n", 1, "resume_window: environment variable NOT_SET is not set"),
        ("resume_window: \"${NOT_SET\"\n", 1, "never closed"),
        (
            "a: &a [x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nd: [*c, *c, *c, *c, *c]\n",
            1,
            "a: unknown key",
        ),
        ("---\nworkers: 0\n---\nworkers: 1\n", 0, ""),
    ];
    for (text, line, fragment) in table {
        let errors = hub(text).expect_err(text);
        let matching = errors.0.iter().find(|f| format!("{}: {}", f.key, f.message).contains(fragment));
        let finding = matching.unwrap_or_else(|| panic!("{text}\nexpected {fragment:?}, got:\n{errors}"));
        if *line > 0 {
            assert_eq!(finding.at.map(|at| at.line), Some(*line), "{text}\n{errors}");
        }
        assert!(!finding.message.is_empty(), "{text}");
    }
}

#[test]
fn bad_agents() {
    let table: &[(&str, u64, &str)] = &[
        ("{}", 0, "agent_id: this key is required"),
        ("{}", 0, "token_file: this key is required"),
        ("{}", 0, "hubs: at least one hub is required"),
        ("{}", 0, "connectors: expected 1 to 256 connectors"),
        ("agent_id: a/b/c\n", 1, "agent_id: expected 1 to 64 characters"),
        ("hubs: ['ws://a/tunnel']\n", 1, "hubs[0]: ws:// is plain text"),
        ("hubs:\n  - wss://a/t\n  - wss://a/t\n", 3, "is already used by hubs[0]"),
        ("hub: []\n", 1, "hub: unknown key; did you mean `hubs`?"),
        ("parallel: 0\n", 1, "parallel: expected 1 to 64, got 0"),
        ("connectors: [{ name: l, target: nowhere }]\n", 1, "connectors[0].target: expected HOST:PORT"),
        ("connectors: [{ name: l, target: 'h:0' }]\n", 1, "connectors[0].target: expected HOST:PORT"),
        (
            "connectors:\n  - { name: l, target: 'h:1' }\n  - { name: l, target: 'h:2' }\n",
            3,
            "connectors[1].name: this name, `l`, is already used",
        ),
        (
            "connectors: [{ name: l, target: 'h:1', health: {} }]\n",
            1,
            "connectors[0].health.kind: this key is required",
        ),
        (
            "connectors: [{ name: l, target: 'h:1', health: { kind: http } }]\n",
            1,
            "health.kind: expected tcp, got \"http\"",
        ),
        (
            "connectors:\n  - name: l\n    target: 'h:1'\n    health: { kind: tcp, interval: 1s,\n      timeout: 2s }\n",
            5,
            "connectors[0].health.timeout: must not exceed the interval",
        ),
        (
            "connectors: [{ name: l, target: 'h:1', health: { kind: tcp, interval: 10ms } }]\n",
            1,
            "connectors[0].health.interval: expected 100ms to",
        ),
        (
            "connectors: [{ name: l, target: 'h:1', health: { kind: tcp, fall: 0 } }]\n",
            1,
            "health.fall: expected 1 to 1000",
        ),
        ("connectors: [{ name: l, target: 'h:1', health: { kind: tcp, rose: 1 } }]\n", 1, "did you mean `rise`?"),
        ("admin: { bind: '[::]:8766' }\n", 1, "set admin.token_file, or use a loopback address"),
        ("reconnect: { jitter: 1.5 }\n", 1, "reconnect.jitter: expected 0.000 to 1.000, got 1.500"),
        ("reconnect: { multiplier: fast }\n", 1, "such as 1.5"),
        ("reconnect: { initial_delay: 40s }\n", 1, "must not exceed reconnect.max_delay"),
        ("limits: { inflight_bytes: 1 }\n", 1, "limits.inflight_bytes: expected 262144 to"),
    ];
    for (text, line, fragment) in table {
        let errors = agent(text).expect_err(text);
        let matching = errors.0.iter().find(|f| format!("{}: {}", f.key, f.message).contains(fragment));
        let finding = matching.unwrap_or_else(|| panic!("{text}\nexpected {fragment:?}, got:\n{errors}"));
        assert_eq!(finding.at.map_or(0, |at| at.line), *line, "{text}\n{errors}");
    }
}

#[test]
fn all_errors_at_once_in_the_order_of_the_lines() {
    let text = "workers: x\nresume_window: 1\ncolour: red\nhttp: { bind: here }\nlimits:\n  max_streams: 0\n";
    let lines: Vec<_> = hub(text).unwrap_err().0.iter().filter_map(|f| f.at).map(|at| (at.line, at.column)).collect();
    assert_eq!(lines, [(1, 10), (2, 16), (3, 1), (4, 15), (6, 16)]);
}

#[test]
fn alias_bombs_and_depth_are_bounded() {
    let mut bomb = String::from("x-a: &a [x, x, x, x, x, x, x, x, x]\n");
    for (from, to) in ('a'..'i').zip('b'..='i') {
        bomb.push_str(&format!("x-{to}: &{to} [{}]\n", vec![format!("*{from}"); 9].join(", ")));
    }
    let deep = format!("x-a: {}{}\n", "[".repeat(5000), "]".repeat(5000));
    let long = format!("x-a: {}\n", "y".repeat(2 << 20));
    for text in [&bomb, &deep, &long] {
        assert_eq!(hub(text).unwrap_err().0.len(), 1);
    }
    // The place of the alias, and not of what it stands for, in our words.
    let found = hub(&bomb).unwrap_err().0.remove(0);
    assert!(found.at.is_some() && found.message.ends_with("32 levels are read"), "{found}");
}

#[test]
fn tolerated_keys() {
    let text = "x-common: &c { name: l1, bind: '127.0.0.1:1', connector: ldap }\nlisteners: [*c]\n";
    assert_eq!(hub(text).unwrap().listeners.len(), 1);
    let lax = ParseOptions { allow_unknown_keys: true };
    let setup = parse_hub("colour: red\nhttp: { tsl: {} }\n", &no_env, lax).unwrap();
    for key in ["colour", "http.tsl"] {
        assert!(setup.warnings.iter().any(|w| w.key == key), "{key}: {:?}", setup.warnings);
    }
}

#[test]
fn environment() {
    let env = |name: &str| {
        let value = match name {
            "HOSTNAME" => "hub-7",
            "REDIS_URL" => "redis://:p%23w:d@h:6379/0",
            "AUDIENCE" => "a #b: c",
            "BIND" => "127.0.0.1:1389",
            "WINDOW" => "45s",
            "NC_JWT_ISSUER" => "https://idp",
            "NC_JWT_HMAC_SECRET_FILE" => "/run/secret",
            "BAD" => "hunter2",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let text = "listeners: [{ name: a, bind: \"${BIND}\", connector: c }]\nresume_window: ${WINDOW}\nha:\n  replica_id: ${HOSTNAME}\n  region: ${REGION:-eu-1}\n  redis_url: ${REDIS_URL}\nauth: { jwt: { public_key_file: 'k$$1.pem', issuer: other, audience: '${AUDIENCE}' } }\n";
    let setup = parse_hub(text, &env, STRICT).unwrap();
    assert_eq!(setup.auth.audience, "a #b: c", "what a variable holds is a value and nothing else");
    assert_eq!(setup.core.replica_id.as_str(), "hub-7");
    assert_eq!(setup.core.region.as_ref().unwrap().as_str(), "eu-1");
    assert_eq!(setup.redis_url.as_ref().unwrap().reveal(), "redis://:p%23w:d@h:6379/0");
    assert_eq!(setup.listeners[0].addr.port(), 1389);
    assert_eq!(setup.core.resume_window.as_secs(), 45);
    assert_eq!(setup.auth.issuer.as_deref(), Some("https://idp"), "the environment wins");
    assert_eq!(setup.auth.hmac_secret_file.as_ref().unwrap().to_str(), Some("/run/secret"));
    assert_eq!(setup.auth.public_key_file.as_ref().unwrap().to_str(), Some("k$1.pem"));
    assert!(!format!("{setup:?}").contains("p#w"), "Debug shows the registry's password");

    for text in [
        "workers: ${BAD}\n",
        "http: { bind: '${BAD}' }\n",
        "ha: { redis_url: '${BAD}' }\n",
        "ha: { redis_url: hunter2 }\n",
    ] {
        let errors = parse_hub(text, &env, STRICT).unwrap_err().to_string();
        assert!(!errors.contains("hunter2"), "{text}: {errors}");
    }
}

#[test]
fn a_key_set_in_plain_text_on_loopback_needs_its_insecure_key() {
    let text = "auth: { jwt: { issuer: i, insecure_allow_plaintext_jwks: true, jwks_url: 'http://[::1]:1/k' } }\n";
    let setup = hub(text).unwrap();
    assert_eq!(setup.auth.jwks.unwrap().url, "http://[::1]:1/k");
    assert!(setup.warnings.iter().any(|w| w.key == "auth.jwt.insecure_allow_plaintext_jwks"));
    let env = |name: &str| (name == "NC_JWT_JWKS_URL").then(|| "https://other/k".to_owned());
    let setup = parse_hub("auth: { jwt: { issuer: i, jwks_url: 'https://idp/k' } }\n", &env, STRICT).unwrap();
    assert_eq!(setup.auth.jwks.unwrap().url, "https://other/k");
}

#[test]
fn budget_bows_to_the_container() {
    let mut setup = hub("").unwrap();
    setup.fit_budget(Some(256 << 20));
    assert_eq!(setup.core.limits.memory_budget_bytes, 128 << 20);
    setup.fit_budget(Some(1 << 40));
    assert_eq!(setup.core.limits.memory_budget_bytes, 128 << 20);
    let mut given = hub("limits: { memory_budget_bytes: 300000000 }\n").unwrap();
    given.fit_budget(Some(256 << 20));
    assert_eq!(given.core.limits.memory_budget_bytes, 300_000_000);
}

#[test]
fn ha_disabled_is_off() {
    for text in ["", "ha: { mode: active }\n", "ha: { enabled: false, mode: active }\n"] {
        assert_eq!(hub(text).unwrap().core.mode.name(), "off", "{text}");
    }
}

#[test]
fn plaintext_mesh_on_loopback() {
    let text = "http: { bind: '127.0.0.1:0' }\nha:\n  enabled: true\n  mode: active\n  replica_id: a\n  redis_url: redis://127.0.0.1/\n  mesh:\n    insecure_allow_plaintext: true\n    peers: ['ws://127.0.0.1:1/mesh', 'ws://[::1]:1/mesh', 'ws://localhost:1/mesh']\n";
    let setup = hub(text).unwrap();
    assert!(setup.core.insecure_mesh && !setup.require_mtls);
    assert_eq!(setup.core.peers.len(), 3);
    assert!(setup.warnings.iter().any(|w| w.key == "ha.mesh.insecure_allow_plaintext"));
    // With keys hubs prove who they are in plain text too; the ports need not be local then.
    let keys = text
        .replace("    peers:", "    tls: { ca_bundle: a, cert_file: b, key_file: c }\n    peers:")
        .replace("bind: '127.0.0.1:0'", "bind: '0.0.0.0:0'");
    let setup = hub(&keys).unwrap();
    assert!(!setup.core.insecure_mesh);
    assert!(setup.warnings.iter().any(|w| w.key == "ha.mesh.insecure_allow_plaintext"));
    assert_eq!(setup.core.peers[2].host.as_deref(), Some("localhost"));
}

#[test]
fn seeds() {
    let architecture = include_str!("fixtures/cloud-architecture.yaml");
    let enable = include_str!("fixtures/cloud-enable-ha.yaml");
    // The enable page's sample has placeholders where a name belongs; nothing else is touched.
    assert!(hub(enable).unwrap_err().to_string().contains("ha.replica_id: expected 1 to 64 characters"));
    let filled =
        enable.replace("<hub\u{2011}name>", "hub-a").replace("<peer\u{2011}hub>", "hub-b").replace("<hub>", "hub-a");
    for text in [architecture, &filled] {
        assert_eq!(kind_of(text), Ok(Kind::Hub));
        let setup = hub(text).unwrap();
        assert_eq!(setup.core.mode.name(), "shadow");
        assert_eq!(setup.core.replica_id.as_str(), "hub-a");
        assert_eq!(setup.core.limits.inflight_bytes, 8_388_608);
        assert_eq!(setup.core.limits.send_queue_depth, 1000);
        assert!(setup.require_mtls);
        assert!(setup.warnings.iter().any(|w| w.key == "auth.jwt"), "{:?}", setup.warnings);
    }
    let listen = hub(architecture).unwrap().mesh_listen.unwrap();
    assert_eq!(listen.addr.port(), 400);
}

#[test]
fn examples() {
    let env = |name: &str| (name == "HOSTNAME").then(|| "hub-a".to_owned());
    for text in [include_str!("../../deploy/examples/hub.yaml"), include_str!("../../deploy/examples/cloud.yaml")] {
        assert_eq!(kind_of(text), Ok(Kind::Hub));
        parse_hub(text, &env, STRICT).unwrap();
    }
    let text = include_str!("../../deploy/examples/agent.yaml");
    assert_eq!(kind_of(text), Ok(Kind::Agent));
    assert_eq!(parse_agent(text, &env, STRICT).unwrap().warnings, []);
}

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
    // Allowed only where the hub is not active; `every_key_changes_the_setup` sees to that.
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
            let shadow = edited(HUB, "mode: active => mode: shadow");
            let without = edited(&shadow, row);
            assert_ne!(hub_of(&shadow), hub_of(&without), "{key} is ignored");
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
    let page = include_str!("../../docs/configuration.md");
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

//! What a file is refused for, and where the finding points.

use super::{agent, hub};

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
        (
            "ha: { mesh: { tls: { ca_bundle: a, cert_file: b, key_file: c }, peers: ['wss://b/x/tunnel'] } }\n",
            1,
            "ha.mesh.peers[0]: hubs answer /tunnel to others: expected a path that ends in /mesh",
        ),
        (
            "ha:\n  mesh:\n    tls: { ca_bundle: a, cert_file: b, key_file: c }\n    peers:\n      - { url: 'wss://b/mesh', replica_id: b }\n      - { url: 'wss://c/mesh', replica_id: b }\n",
            6,
            "ha.mesh.peers[1].replica_id: this replica_id, `b`, is already used by ha.mesh.peers[0].replica_id",
        ),
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
        ("limits: { handshake_rate: 0 }\n", 1, "limits.handshake_rate: expected 1 to 1000000, got 0"),
        ("limits: { max_handshakes_per_address: 0 }\n", 1, "limits.max_handshakes_per_address: expected 1 to 100000"),
        (
            "limits:\n  max_handshakes: 4\n  max_handshakes_per_address: 5\n",
            3,
            "limits.max_handshakes_per_address: expected at most limits.max_handshakes (4), got 5",
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
        ("hubs: ['wss://a/mesh']\n", 1, "hubs[0]: hubs answer /mesh to others: expected a path that ends in /tunnel"),
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

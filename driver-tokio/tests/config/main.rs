//! Configuration as a user meets it: what is accepted and what it means, the
//! seeds' files and the examples among it. What is refused is in `refused`,
//! what every key changes in `keys`.

#![allow(clippy::unwrap_used, clippy::unwrap_in_result, reason = "a test that cannot go on should fail there")]

mod keys;
mod refused;

use nowconnect::config::{AgentSetup, ConfigErrors, HubSetup, Kind, ParseOptions, kind_of, parse_agent, parse_hub};

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
fn what_cannot_work_is_said() {
    let alone = "ha: { enabled: true, mode: active, replica_id: a, redis_url: 'redis://r', mesh: { KEYS } }\n";
    let tls = "tls: { ca_bundle: a, cert_file: b, key_file: c }";
    let told = |text: &str| hub(text).unwrap().warnings.iter().any(|w| w.key == "ha.mesh.peers");
    assert!(told(&alone.replace("KEYS", "")), "nobody is dialled and nobody can dial");
    assert!(!told(&alone.replace("KEYS", tls)), "peers may dial");
    assert!(!told(&alone.replace("KEYS", "").replace("active", "off")));
    assert!(!told(&alone.replace("KEYS", "").replace("redis_url: 'redis://r', ", "")), "a hub by itself");

    let text = "agent_id: a\ntoken_file: t\nhubs: [wss://a/tunnel, wss://b/tunnel]\nparallel: N\nconnectors: [{ name: c, target: 'h:1' }]\n";
    let lines = |n: &str| {
        let setup = agent(&text.replace('N', n)).unwrap();
        setup.warnings.iter().filter(|w| w.key == "parallel").map(|w| w.at.unwrap().line).collect::<Vec<_>>()
    };
    assert_eq!((lines("2"), lines("3")), (vec![], vec![4]));
}

#[test]
fn seeds() {
    let architecture = include_str!("../fixtures/cloud-architecture.yaml");
    let enable = include_str!("../fixtures/cloud-enable-ha.yaml");
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
fn one_address_has_a_quarter_of_the_handshakes_unless_the_file_says_otherwise() {
    let of = |limits: &str| hub(&format!("limits: {{ {limits} }}\n")).unwrap().handshakes_per_address();
    assert_eq!(of(""), 250);
    assert_eq!(of("max_handshakes: 5"), 2, "rounded up");
    assert_eq!(of("max_handshakes_per_address: 1000"), 1000, "as many as all may have");
    assert_eq!(of("max_handshakes: 5, max_handshakes_per_address: 4"), 4);
}

#[test]
fn examples() {
    let env = |name: &str| (name == "HOSTNAME").then(|| "hub-a".to_owned());
    for text in [include_str!("../../../deploy/examples/hub.yaml"), include_str!("../../../deploy/examples/cloud.yaml")]
    {
        assert_eq!(kind_of(text), Ok(Kind::Hub));
        parse_hub(text, &env, STRICT).unwrap();
    }
    let text = include_str!("../../../deploy/examples/agent.yaml");
    assert_eq!(kind_of(text), Ok(Kind::Agent));
    assert_eq!(parse_agent(text, &env, STRICT).unwrap().warnings, []);
}

//! Bad configuration is refused before anything starts: exit code 2, and the
//! message names what to change. Good configuration passes.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use nowconnect_tests::process::{Finished, nowconnect, run};
use tempfile::TempDir;

/// The configuration of the seeds, unchanged but for the placeholders.
const SEEDS_CLOUD_YAML: &str = "\
listeners:
  - { name: l1, bind: '0.0.0.0:389', connector: 'ldap' }
ha:
  enabled: true
  mode: shadow
  replica_id: hub-a
  redis_url: redis://shared_redis:6379/0
  mesh:
    peers: [\"wss://hub-b.example.com/mesh\"]
    require_mtls: true
    tls:
      ca_bundle: /app/certs/ca.pem
      cert_file: /app/certs/hub-a.crt
      key_file: /app/certs/hub-a.key
    send_queue_depth: 1000
    per_link_max_inflight_bytes: 8388608
";

/// A hub that could start.
const GOOD_HUB: &str = "\
listeners:
  - { name: l1, bind: '127.0.0.1:0', connector: ldap }
http: { bind: '127.0.0.1:0' }
metrics: { bind: '127.0.0.1:0' }
auth: { jwt: { audience: nowconnect, issuer: 'https://idp.test', algorithms: [HS256], hmac_secret_file: HMAC } }
";

/// An agent that could start.
const GOOD_AGENT: &str = "\
agent_id: plant-7
hubs: ['wss://hub-a.example.com/tunnel']
token_file: TOKEN
connectors: [{ name: ldap, target: '127.0.0.1:389' }]
";

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let dir = TempDir::with_prefix("nowconnect-config-").unwrap();
        fs::write(dir.path().join("hmac"), nowconnect_tests::token::SECRET).unwrap();
        fs::write(dir.path().join("token"), nowconnect_tests::token::good("plant-7", &["ldap"])).unwrap();
        Self(dir)
    }

    fn expand(&self, yaml: &str) -> String {
        let path = |name: &str| self.0.path().join(name).display().to_string();
        yaml.replace("HMAC", &path("hmac")).replace("TOKEN", &path("token"))
    }

    async fn run(&self, args: &[&str], yaml: &str) -> Finished {
        let file = self.0.path().join("config.yaml");
        fs::write(&file, self.expand(yaml)).unwrap();
        let mut command = nowconnect(args);
        command.arg(&file);
        run(command).await
    }
}

#[tokio::test]
async fn good_files_pass() {
    let files = Files::new();
    for (name, yaml) in [("seeds", SEEDS_CLOUD_YAML), ("hub", GOOD_HUB), ("agent", GOOD_AGENT)] {
        let done = files.run(&["check-config"], yaml).await;
        assert_eq!(done.status.code(), Some(0), "{name}: {}", done.stderr);
    }
}

/// The files to start from are good where nothing of theirs exists yet: what
/// is missing is said, and is no error.
#[tokio::test]
async fn the_examples_pass() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");
    let mut seen = 0;
    for entry in fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let mut command = nowconnect(["check-config"]);
        command.arg(&path);
        let done = run(command).await;
        assert_eq!(done.status.code(), Some(0), "{}: {}", path.display(), done.stderr);
        assert!(!done.stderr.contains("no effect"), "{}", done.stderr);
        seen += 1;
    }
    assert!(seen >= 3, "{examples}");
}

/// Every line: what is wrong, the file, and words the message must have.
#[tokio::test]
async fn bad_files_are_refused_by_name() {
    let hub = |change: &str| format!("{GOOD_HUB}{change}");
    let agent = |change: &str| format!("{GOOD_AGENT}{change}");
    let active = "ha:\n  enabled: true\n  mode: active\n  replica_id: hub-a\n";
    let cases: Vec<(&str, String, &[&str])> = vec![
        ("61 an unknown key", hub("listenerz: []\n"), &["listenerz", "listeners"]),
        ("an unknown key inside", hub("drain: { lameduk: 1s }\n"), &["lameduk", "lameduck"]),
        ("a key twice", hub("workers: 1\nworkers: 2\n"), &["workers"]),
        ("a wrong type", hub("workers: many\n"), &["workers"]),
        ("a negative number", hub("workers: -1\n"), &["workers"]),
        ("a number too large", hub("limits: { max_streams: 99999999999999999999 }\n"), &["max_streams"]),
        ("a duration without unit", hub("resume_window: 30\n"), &["resume_window"]),
        ("no YAML", "listeners: [\n".to_owned(), &[]),
        ("an empty file", String::new(), &[]),
        ("a list at the top", "- 1\n- 2\n".to_owned(), &[]),
        ("an unset variable", hub("workers: ${NO_SUCH_VARIABLE_HERE}\n"), &["NO_SUCH_VARIABLE_HERE"]),
        ("a bad address", GOOD_HUB.replace("bind: '127.0.0.1:0', connector", "bind: 'nowhere', connector"), &["bind"]),
        ("a bad listener name", GOOD_HUB.replace("name: l1", "name: 'l 1'"), &["name"]),
        (
            "two listeners of one name",
            GOOD_HUB.replace("listeners:\n", "listeners:\n  - { name: l1, bind: '127.0.0.1:0', connector: x }\n"),
            &["l1"],
        ),
        ("61 an empty audience", GOOD_HUB.replace("audience: nowconnect", "audience: ''"), &["audience"]),
        ("an unknown algorithm", GOOD_HUB.replace("HS256", "none"), &["algorithms"]),
        ("an algorithm without its key", GOOD_HUB.replace("HS256", "ES256"), &["ES256"]),
        ("a mode nobody knows", hub("ha: { enabled: true, mode: both, replica_id: hub-a }\n"), &["mode"]),
        (
            "61 active with peers and no registry",
            hub(&format!("{active}  mesh: {{ peers: ['wss://b.example/mesh'] }}\n")),
            &["redis_url"],
        ),
        (
            "a plain peer without the insecure key",
            hub(&format!("{active}  redis_url: redis://127.0.0.1/0\n  mesh: {{ peers: ['ws://127.0.0.1:1/mesh'] }}\n")),
            &["insecure_allow_plaintext"],
        ),
        (
            "aliases that grow without end",
            "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
             d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
                .to_owned(),
            &[],
        ),
        ("nesting without end", "[".repeat(100_000), &[]),
        ("a plain hub without the insecure key", GOOD_AGENT.replace("wss://", "ws://"), &["insecure_allow_plaintext"]),
        ("an agent without hubs", GOOD_AGENT.replace("['wss://hub-a.example.com/tunnel']", "[]"), &["hubs"]),
        ("an agent id of odd characters", GOOD_AGENT.replace("plant-7", "'plant 7'"), &["agent_id"]),
        ("no URL", GOOD_AGENT.replace("wss://hub-a.example.com/tunnel", "hub-a"), &["hubs"]),
        (
            "a connector twice",
            GOOD_AGENT.replace("[{ name", "[{ name: ldap, target: '127.0.0.1:1' }, { name"),
            &["ldap"],
        ),
        ("a jitter above one", agent("reconnect: { jitter: 1.5 }\n"), &["jitter"]),
    ];
    let files = Files::new();
    let mut wrong = Vec::new();
    for (name, yaml, words) in cases {
        let done = files.run(&["check-config"], &yaml).await;
        let missing: Vec<_> = words.iter().filter(|w| !done.stderr.contains(**w)).collect();
        if done.status.code() != Some(2) || !missing.is_empty() || done.stderr.contains("panicked") {
            wrong.push(format!("{name}: {}, missing words {missing:?}\n    {}", done.status, done.stderr.trim_end()));
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn errors_have_line_and_column() {
    let done = Files::new().run(&["check-config"], &format!("{GOOD_HUB}drain: {{ lameduk: 1s }}\n")).await;
    let line = GOOD_HUB.lines().count() + 1;
    assert!(
        done.stderr.contains(&format!("{line}:")) || done.stderr.contains(&format!("line {line}")),
        "{}",
        done.stderr
    );
}

#[tokio::test]
async fn a_hub_without_tunnel_authentication_does_not_start() {
    let files = Files::new();
    let done = files.run(&["hub", "--config"], SEEDS_CLOUD_YAML).await;
    assert_eq!(done.status.code(), Some(2), "{}", done.stderr);
    assert!(done.stderr.contains("auth.jwt"), "{}", done.stderr);
    assert!(done.stderr.contains("NC_JWT_"), "{}", done.stderr);
}

/// Files that are not where the configuration says: a warning by key from
/// `check-config`, which may run elsewhere, and an error at the start.
#[tokio::test]
async fn every_file_that_cannot_be_read_is_named() {
    const HA: &str = "ha:\n  enabled: true\n  mode: active\n  replica_id: hub-a\n  redis_url: 'rediss://127.0.0.1:1'\n  \
                      redis_tls: { ca_bundle: /nowhere/redis.pem }\n  mesh: { peers: [], require_mtls: false, \
                      insecure_allow_plaintext: true }\n";
    let jwks = GOOD_HUB
        .replace("hmac_secret_file: HMAC", "jwks_url: 'https://idp.test/keys', jwks_ca_bundle: /nowhere/ca.pem");
    let jwks = jwks.replace("algorithms: [HS256], ", "");
    let cases = [
        ("hub", format!("{GOOD_HUB}{HA}"), "ha.redis_tls.ca_bundle: /nowhere/redis.pem"),
        ("hub", jwks, "auth.jwt.jwks_ca_bundle: /nowhere/ca.pem"),
        (
            "hub",
            format!("{GOOD_HUB}admin: {{ bind: '127.0.0.1:0', token_file: /nowhere/token }}\n"),
            "admin.token_file: /nowhere/token",
        ),
        ("agent", GOOD_AGENT.replace("TOKEN", "/nowhere/token"), "token_file: /nowhere/token"),
    ];
    let files = Files::new();
    for (kind, yaml, named) in cases {
        let checked = files.run(&["check-config"], &yaml).await;
        assert_eq!(checked.status.code(), Some(0), "{}", checked.stderr);
        assert!(checked.stderr.contains(&format!("warning: {named}")), "{named}: {}", checked.stderr);
        let started = files.run(&[kind, "--config"], &yaml).await;
        assert_eq!(started.status.code(), Some(2), "{}", started.stderr);
        assert!(started.stderr.contains(named), "{named}: {}", started.stderr);
    }
    // In `off` nobody is asked: what is not used need not be there.
    let off = files.run(&["check-config"], &format!("{GOOD_HUB}{HA}").replace("mode: active", "mode: \"off\"")).await;
    assert!(!off.stderr.contains("/nowhere"), "{}", off.stderr);
}

#[tokio::test]
async fn usage_errors_exit_with_two() {
    for args in [&["hub", "--no-such-flag"][..], &["nonsense"], &["hub", "--config", "/nowhere/at/all.yaml"], &["cert"]]
    {
        let done = run(nowconnect(args)).await;
        assert_eq!(done.status.code(), Some(2), "{args:?}: {}", done.stderr);
    }
}

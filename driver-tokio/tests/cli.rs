//! The binary as a user runs it: exit codes, output, and that what `token` and
//! `cert` make is accepted by what reads it.

#![allow(clippy::unwrap_used, clippy::unwrap_in_result, reason = "a test that cannot go on should fail there")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use nowconnect::auth::TunnelAuth;
use nowconnect::config::{AuthSetup, MeshTlsFiles, ServerTlsFiles};
use nowconnect::tls;

fn nowconnect(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nowconnect"));
    for name in [
        "NC_CONFIG",
        "RUST_LOG",
        "NC_JWT_PUBLIC_KEY_FILE",
        "NC_JWT_HMAC_SECRET_FILE",
        "NC_JWT_JWKS_FILE",
        "NC_JWT_ISSUER",
    ] {
        command.env_remove(name);
    }
    command.args(args).output().unwrap()
}

fn ok(args: &[&str]) -> String {
    let output = nowconnect(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fails(args: &[&str], code: i32) -> String {
    let output = nowconnect(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?} printed to standard output");
    stderr
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn usage() {
    for args in [
        &[][..],
        &["fly"],
        &["hub"],
        &["hub", "--colour"],
        &["token", "--agent-id", "a"],
        &["cert", "--out", "x"],
        &["cert", "--out", "x", "--ca", "--hub", "a"],
        &["cert", "--out", "x", "--hub", "a b"],
        &["completions", "tcsh2"],
        &["--log-level", "=x=", "config", "schema"],
        &["healthcheck", "--url", "ftp://x"],
        &["hub", "--config", "/nonexistent/x.yaml"],
    ] {
        assert!(!fails(args, 2).is_empty(), "{args:?}");
    }
    for args in [&["--help"][..], &["--version"], &["hub", "--help"]] {
        assert!(ok(args).contains("nowconnect"), "{args:?}");
    }
}

#[test]
fn check_config() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("cloud.yaml");
    std::fs::write(&good, include_str!("fixtures/cloud-architecture.yaml")).unwrap();
    let output = nowconnect(&["check-config", text(&good)]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), format!("{}: ok (hub)", good.display()));
    for fragment in ["auth.jwt: no key to check tokens with", "/app/certs/hub-a.crt: cannot be read"] {
        assert!(stderr.contains(fragment), "{stderr}");
    }

    // A certificate that is another hub's.
    let at = |name: &str| dir.path().join(name).display().to_string();
    ok(&["cert", "--out", text(dir.path()), "--ca"]);
    ok(&["cert", "--out", text(dir.path()), "--hub", "hub-b"]);
    let mesh = format!(
        "ha:\n  enabled: true\n  mode: active\n  replica_id: hub-a\n  redis_url: redis://r\n  mesh:\n    tls: \
         {{ ca_bundle: '{}', cert_file: '{}', key_file: '{}' }}\n",
        at("ca.pem"),
        at("hub-b.crt"),
        at("hub-b.key")
    );
    for (id, doubted) in [("hub-a", true), ("hub-b", false)] {
        std::fs::write(&good, mesh.replace("hub-a\n", &format!("{id}\n"))).unwrap();
        let output = nowconnect(&["check-config", text(&good)]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert_eq!(stderr.contains("no dNSName is this hub's ha.replica_id (hub-a)"), doubted, "{stderr}");
    }

    let bad = dir.path().join("bad.yaml");
    std::fs::write(&bad, "listener: []\nworkers: 9\n").unwrap();
    let stderr = fails(&["check-config", text(&bad)], 2);
    assert!(stderr.contains("bad.yaml:1:1: listener: unknown key; did you mean `listeners`?"), "{stderr}");
    assert!(stderr.contains("bad.yaml:2:10: workers: expected 0 or 1, got 9"), "{stderr}");
    fails(&["check-config", "--allow-unknown-keys", text(&bad)], 2);
    assert!(fails(&["check-config", "--kind", "agent", text(&bad)], 2).contains("agent_id: this key is required"));

    let agent = dir.path().join("agent.yaml");
    std::fs::write(&agent, include_str!("../../deploy/examples/agent.yaml")).unwrap();
    assert!(ok(&["check-config", text(&agent)]).contains("ok (agent)"));

    let from_env =
        Command::new(env!("CARGO_BIN_EXE_nowconnect")).arg("check-config").env("NC_CONFIG", &good).output().unwrap();
    assert!(from_env.status.success(), "NC_CONFIG names the file");
}

#[test]
fn a_hub_without_authentication_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("hub.yaml");
    std::fs::write(&config, "http: { bind: '127.0.0.1:0' }\n").unwrap();
    let stderr = fails(&["hub", "--config", text(&config)], 2);
    for name in [
        "auth.jwt.public_key_file",
        "NC_JWT_PUBLIC_KEY_FILE",
        "NC_JWT_HMAC_SECRET_FILE",
        "NC_JWT_JWKS_FILE",
        "NC_JWT_ISSUER",
    ] {
        assert!(stderr.contains(name), "{stderr}");
    }
    std::fs::write(&config, "auth: { jwt: { issuer: i, hmac_secret_file: /nonexistent } }\nhttp: { tls: { cert_file: /no.crt, key_file: /no.key } }\n").unwrap();
    let stderr = fails(&["hub", "--config", text(&config)], 2);
    assert!(
        stderr.contains("auth.jwt.hmac_secret_file: /nonexistent") && stderr.contains("http.tls.cert_file: /no.crt"),
        "{stderr}"
    );
    std::fs::write(&config, include_str!("../../deploy/examples/agent.yaml")).unwrap();
    assert!(fails(&["agent", "--config", text(&config)], 2).contains("token_file: /run/secrets/token"));
}

/// The schemas that tests hold live answers against are those it prints.
#[test]
fn schemas_of_answers() {
    use clap::ValueEnum as _;
    use nowconnect::answers::{Answer, schema};
    let printed = |args: &[&str]| serde_json::from_str::<serde_json::Value>(&ok(args)).unwrap();
    assert_eq!(printed(&["status", "--schema"]), schema(Answer::Status));
    for answer in Answer::value_variants() {
        let name = answer.to_possible_value().unwrap().get_name().to_owned();
        assert_eq!(printed(&["status", "--schema", &name]), schema(*answer), "{name}");
    }
    assert!(fails(&["status", "--schema", "weather"], 2).contains("readyz-listener"));
    assert!(fails(&["status", "--schema", "--output", "json"], 2).contains("--output"));
}

#[test]
fn schema_and_completions() {
    let schema: serde_json::Value = serde_json::from_str(&ok(&["config", "schema"])).unwrap();
    assert!(schema["properties"]["ha"]["properties"]["mesh"]["properties"]["peers"]["items"].is_object(), "{schema:#}");
    let schema: serde_json::Value = serde_json::from_str(&ok(&["config", "schema", "--kind", "agent"])).unwrap();
    assert!(schema["required"].as_array().unwrap().iter().any(|k| k == "agent_id"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(ok(&["completions", shell]).contains("check-config"), "{shell}");
    }
}

fn now() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "tokens made by the binary carry the real time")]
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn tokens_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let ec = rcgen::KeyPair::generate().unwrap();
    let ed = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    std::fs::write(path("secret"), "0123456789abcdef0123456789abcdef\n").unwrap();
    for (name, key) in [("ec", &ec), ("ed", &ed), ("rsa", &rsa)] {
        std::fs::write(path(name), key.serialize_pem()).unwrap();
        std::fs::write(path(&format!("{name}.pub")), key.public_key_pem()).unwrap();
    }
    let common = ["--agent-id", "plant-7", "--connector", "ldap", "web", "--issuer", "https://idp", "--ttl", "30m"];
    for key in ["secret", "ec", "ed", "rsa"] {
        let file = path(key);
        let flag = if key == "secret" { "--hmac-secret-file" } else { "--private-key-file" };
        let token = ok(&[&["token", flag, text(&file)][..], &common].concat());
        let setup = AuthSetup {
            audience: "nowconnect".into(),
            issuer: Some("https://idp".into()),
            algorithms: Vec::new(),
            public_key_file: (key != "secret").then(|| path(&format!("{key}.pub"))),
            hmac_secret_file: (key == "secret").then(|| path("secret")),
            jwks_file: None,
            jwks: None,
            max_lifetime: Duration::from_secs(3600),
            leeway: Duration::ZERO,
        };
        let grant =
            TunnelAuth::from_setup(&setup).unwrap().verify(&[&format!("Bearer {}", token.trim())], now()).unwrap();
        assert_eq!(grant.subject, "plant-7", "{key}");
        assert_eq!(grant.connectors.unwrap().iter().map(ToString::to_string).collect::<Vec<_>>(), ["ldap", "web"]);
        assert!(grant.expires_unix > now() + 1700 && grant.expires_unix <= now() + 1800, "{key}");
    }
    std::fs::write(path("short"), "short").unwrap();
    let short = path("short");
    assert!(
        fails(&[&["token", "--hmac-secret-file", text(&short)][..], &common].concat(), 2).contains("at least 32 bytes")
    );
    assert!(fails(&[&["token", "--private-key-file", text(&short)][..], &common].concat(), 2).contains("PKCS#8"));
}

#[test]
fn certificates_load_and_fit() {
    let dir = tempfile::tempdir().unwrap();
    let out = text(dir.path());
    let path = |name: &str| dir.path().join(name);
    assert!(fails(&["cert", "--out", out, "--hub", "hub-a"], 2).contains("--ca"), "a CA comes first");
    ok(&["cert", "--out", out, "--ca"]);
    let printed =
        ok(&["cert", "--out", out, "--hub", "hub-a", "--san", "hub-a.example.com", "127.0.0.1", "--days", "2"]);
    assert_eq!(printed.lines().count(), 2);
    ok(&["cert", "--out", out, "--agent", "plant-7"]);
    for key in ["ca.key", "hub-a.key", "plant-7.key"] {
        assert_eq!(std::fs::metadata(path(key)).unwrap().permissions().mode() & 0o777, 0o600, "{key}");
    }
    assert!(fails(&["cert", "--out", out, "--ca"], 2).contains("--force"));
    assert!(fails(&["cert", "--out", out, "--hub", "b", "--san", "not a name"], 2).contains("neither a host name"));

    let files = MeshTlsFiles { ca_bundle: path("ca.pem"), cert_file: path("hub-a.crt"), key_file: path("hub-a.key") };
    let server = tls::mesh_server(&files).unwrap();
    let client = tls::mesh_client(&files).unwrap();
    assert_eq!(server.send_tls13_tickets, 0);
    tls::tunnel_client(Some(&files.ca_bundle)).unwrap();
    let http = tls::http_server(&ServerTlsFiles { cert_file: path("hub-a.crt"), key_file: path("hub-a.key") }).unwrap();
    assert_eq!(http.alpn_protocols, [b"http/1.1"]);
    let leaf = &tls::certificates("x", &files.cert_file).unwrap()[0];
    assert_eq!(tls::dns_names(leaf), ["hub-a", "hub-a.example.com"]);
    let left = tls::not_after(leaf).unwrap() - i64::try_from(now()).unwrap();
    assert!((2 * 86_400 - 60..=2 * 86_400).contains(&left), "{left}");

    // Both directions of the mesh: the same certificate as server and as client.
    handshake(&client, &server, "hub-a.example.com").unwrap();
    assert!(handshake(&client, &server, "hub-b").is_err(), "another hub's name");
    let agent = MeshTlsFiles { cert_file: path("plant-7.crt"), key_file: path("plant-7.key"), ..files.clone() };
    let stranger = tls::tunnel_client(Some(&files.ca_bundle)).unwrap();
    assert!(handshake(&stranger, &server, "hub-a").is_err(), "no client certificate (attack 26)");
    assert!(
        handshake(&client, &tls::mesh_server(&agent).unwrap(), "plant-7").is_err(),
        "an agent's certificate is no server's"
    );

    ok(&["cert", "--out", out, "--ca", "--force"]);
    let wrong_ca = tls::mesh_client(&files).unwrap();
    assert!(handshake(&wrong_ca, &server, "hub-a").is_err(), "signed by a CA that left");

    let broken = [
        (MeshTlsFiles { cert_file: path("absent"), ..files.clone() }, "ha.mesh.tls.cert_file", "cannot be read"),
        (MeshTlsFiles { cert_file: path("hub-a.key"), ..files.clone() }, "ha.mesh.tls.cert_file", "there is none"),
        (MeshTlsFiles { key_file: path("hub-a.crt"), ..files.clone() }, "ha.mesh.tls.key_file", "PRIVATE KEY"),
        (
            MeshTlsFiles { key_file: path("plant-7.key"), ..files.clone() },
            "ha.mesh.tls.key_file",
            "is not the key of the certificate",
        ),
        (MeshTlsFiles { ca_bundle: path("hub-a.key"), ..files }, "ha.mesh.tls.ca_bundle", "there is none"),
    ];
    for (files, key, fragment) in broken {
        for error in [tls::mesh_server(&files).unwrap_err(), tls::mesh_client(&files).unwrap_err()] {
            let error = error.to_string();
            assert!(error.starts_with(key) && error.contains(fragment), "{error}");
        }
    }
}

/// A TLS handshake in memory.
fn handshake(
    client: &std::sync::Arc<rustls::ClientConfig>,
    server: &std::sync::Arc<rustls::ServerConfig>,
    name: &str,
) -> Result<(), rustls::Error> {
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(client.clone(), name)?;
    let mut server = rustls::ServerConnection::new(server.clone())?;
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut from = wire.as_slice();
        while !from.is_empty() {
            server.read_tls(&mut from).unwrap();
            server.process_new_packets()?;
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut from = wire.as_slice();
        while !from.is_empty() {
            client.read_tls(&mut from).unwrap();
            client.process_new_packets()?;
        }
    }
    Ok(())
}

#[test]
fn healthcheck() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/readyz", listener.local_addr().unwrap());
    #[expect(clippy::disallowed_methods, reason = "a server of one answer per status, beside the process under test")]
    let server = std::thread::spawn(move || {
        for status in ["200 OK", "503 Service Unavailable"] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let read = stream.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /readyz HTTP/1.0\r\n"));
            write!(stream, "HTTP/1.0 {status}\r\n\r\n{{\"status\":\"x\"}}").unwrap();
        }
    });
    assert_eq!(ok(&["healthcheck", "--url", &url]).trim(), "{\"status\":\"x\"}");
    assert!(fails(&["healthcheck", "--url", &url], 1).contains("status 503"));
    server.join().unwrap();
    assert!(fails(&["healthcheck", "--url", &url], 1).contains("refused"), "nobody listens any more");
}

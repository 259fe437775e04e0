//! Key sets by URL with a real hub and a server that misbehaves (attacks 16,
//! 17, 24): the last good set stays, also over a restart without network.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nowconnect_tests::actors::Pinger;
use nowconnect_tests::certs::Authority;
use nowconnect_tests::cluster::{AGENT, Cluster, Plan};
use nowconnect_tests::ingress::Ingress;
use nowconnect_tests::process::{Signal, nowconnect, run};
use nowconnect_tests::target::Target;
use nowconnect_tests::token;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// What the server does with the next requests.
#[derive(Clone)]
enum Mood {
    Set(Value),
    Html,
    Endless,
    Hang,
    Redirect,
    Broken,
}

struct Idp {
    addr: SocketAddr,
    url: String,
    mood: Arc<Mutex<Mood>>,
    asked: Arc<AtomicU64>,
}

impl Idp {
    async fn start(first: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let url = format!("http://{addr}/keys");
        let (mood, asked) = (Arc::new(Mutex::new(first)), Arc::new(AtomicU64::new(0)));
        let shared = (Arc::clone(&mood), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                shared.1.fetch_add(1, Ordering::SeqCst);
                let mood = shared.0.lock().unwrap().clone();
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    let n = socket.read(&mut request).await.unwrap_or(0);
                    assert!(
                        request[..n].starts_with(b"GET /keys HTTP/1.1"),
                        "{}",
                        String::from_utf8_lossy(&request[..n])
                    );
                    let answer = |status: &str, body: &str| {
                        format!(
                            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nLocation: /elsewhere\r\n\r\n{body}",
                            body.len()
                        )
                    };
                    let text = match mood {
                        Mood::Set(set) => answer("200 OK", &set.to_string()),
                        Mood::Html => answer("200 OK", "<html>sign in</html>"),
                        Mood::Redirect => answer("302 Found", ""),
                        Mood::Broken => answer("500 Oops", ""),
                        Mood::Hang => return std::future::pending().await,
                        Mood::Endless => {
                            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n").await;
                            while socket.write_all(&[b' '; 65536]).await.is_ok() {}
                            return;
                        }
                    };
                    // The hub may have had enough.
                    let _ = socket.write_all(text.as_bytes()).await;
                });
            }
        });
        Self { addr, url, mood, asked }
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
}

/// A key, its set, and a token by it.
struct Signer {
    set: Value,
    token: String,
}

async fn signer(dir: &Path, kid: &str) -> Signer {
    let key = KeyPair::generate().unwrap();
    let point = key.public_key_raw();
    assert_eq!(point.len(), 65, "an uncompressed point of P-256");
    let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
    let jwk = json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid, "x": part(1..33), "y": part(33..65)});
    let file = dir.join(format!("{kid}.pem"));
    fs::write(&file, key.serialize_pem()).unwrap();
    let mut command =
        nowconnect(["token", "--agent-id", AGENT, "--connector", "t", "--ttl", "1h", "--issuer", token::ISSUER]);
    command.arg("--private-key-file").arg(&file);
    let made = run(command).await;
    assert_eq!(made.status.code(), Some(0), "{}", made.stderr);
    Signer { set: json!({"keys": [jwk]}), token: made.stdout.trim().to_owned() }
}

async fn fetched(cluster: &Cluster, result: &str) {
    let labels = [("result", result)];
    let before = cluster.metrics(0).await.sum("nowconnect_jwks_fetches_total", &labels).unwrap_or(0.0);
    cluster.wait_metric(0, "nowconnect_jwks_fetches_total", &labels, before + 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_misbehaves_costs_no_tunnel_and_a_new_key_is_taken() {
    let target = Target::start().await;
    let dir = TempDir::with_prefix("nowconnect-jwks-").unwrap();
    let (first, second) = (signer(dir.path(), "one").await, signer(dir.path(), "two").await);
    let idp = Idp::start(Mood::Set(first.set)).await;
    let copy = dir.path().join("copy.json");
    let jwt_extra = format!(
        ", jwks_url: '{}', insecure_allow_plaintext_jwks: true, jwks_refresh: 1s, jwks_cache_file: {}",
        idp.url,
        copy.display()
    );
    let plan = Plan { hubs: 1, jwt_extra, token: Some(first.token.clone()), ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let mut pinger = Pinger::open(cluster.listener(0, "t"), 1).await.unwrap();
    assert!(copy.is_file());
    for (mood, result) in
        [(Mood::Html, "content"), (Mood::Redirect, "redirect"), (Mood::Broken, "status"), (Mood::Endless, "too_large")]
    {
        idp.set(mood);
        fetched(&cluster, result).await;
    }
    bounded("an echo", PATIENCE, pinger.ping(1000)).await.unwrap();
    // A new tunnel is still judged by the last good set.
    cluster.kill_agent();
    cluster.start_agent();
    cluster.wait_open(0, "t").await;
    // The key is rotated: the old token is refused, the new one taken.
    idp.set(Mood::Set(second.set));
    fetched(&cluster, "ok").await;
    fs::write(cluster.token_file(), &second.token).unwrap();
    let log = &cluster.hubs[0].running().log;
    eventually("the new token is taken", PATIENCE, || async { log.find("token_renewed") }).await;

    // Without network a restart uses the copy.
    idp.set(Mood::Hang);
    let asked = idp.asked.load(Ordering::SeqCst);
    cluster.kill_hub(0);
    cluster.start_hub(0);
    cluster.wait_open(0, "t").await;
    let age = cluster.metrics(0).await.sum("nowconnect_jwks_age_seconds", &[]);
    assert!(age.is_some(), "the copy has an age");
    bounded("a fetch that hangs is given up", LONG_PATIENCE, fetched(&cluster, "timeout")).await;
    assert!(idp.asked.load(Ordering::SeqCst) > asked);
    assert_eq!(cluster.hubs[0].running().log.find("eyJ"), None, "a token is in a log");
    cluster.assert_alive();
}

/// Its CAs change under the same name: `auth.jwt.jwks_ca_bundle`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cas_of_the_url_are_read_again_and_broken_ones_leave_the_last_good_ones() {
    let target = Target::start().await;
    let dir = TempDir::with_prefix("nowconnect-jwks-").unwrap();
    let idp = Idp::start(Mood::Set(signer(dir.path(), "one").await.set)).await;
    let (old, new) = (Authority::create(dir.path(), "old"), Authority::create(dir.path(), "new"));
    let edge = Ingress::start(idp.addr, &new.issue("idp", &["localhost"])).await;
    let bundle = dir.path().join("bundle.pem");
    let jwt_extra = format!(
        ", jwks_url: 'https://localhost:{}/keys', jwks_refresh: 1s, jwks_ca_bundle: {}",
        edge.addr.port(),
        bundle.display()
    );
    fs::copy(old.bundle(), &bundle).unwrap();
    let plan = Plan { hubs: 1, jwt_extra, tls: true, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    fetched(&cluster, "tls").await;
    assert_eq!(idp.asked.load(Ordering::SeqCst), 0, "its certificate is of another CA");

    // Nobody has to say that the file is another one.
    fs::copy(new.bundle(), &bundle).unwrap();
    fetched(&cluster, "ok").await;
    cluster.wait_metric(0, "nowconnect_certificate_not_after_timestamp_seconds", &[("use", "jwks_ca")], 1.0).await;
    // Broken: said, and the last good ones stay.
    fs::write(&bundle, "no certificates").unwrap();
    let hub = cluster.hubs[0].running();
    let said = hub.wait_line("certificates_unusable", PATIENCE).await;
    assert!(said.contains("auth.jwt.jwks_ca_bundle"), "{said}");
    fetched(&cluster, "ok").await;
    // It keeps no other certificate from being renewed.
    let applied = [("result", "applied")];
    let before = cluster.metrics(0).await.sum("nowconnect_certificate_reloads_total", &applied).unwrap();
    let cert = cluster.dir().join("hub-a.crt");
    fs::write(&cert, fs::read(&cert).unwrap()).unwrap();
    cluster.wait_metric(0, "nowconnect_certificate_reloads_total", &applied, before + 1.0).await;
    hub.signal(Signal::HUP);
    let said = hub.wait_line("config_refused", PATIENCE).await;
    assert!(said.contains("auth.jwt.jwks_ca_bundle"), "{said}");
    fetched(&cluster, "ok").await;
    // And the old ones again, by a reload.
    fs::copy(old.bundle(), &bundle).unwrap();
    hub.signal(Signal::HUP);
    cluster.wait_metric(0, "nowconnect_config_reloads_total", &[("result", "applied")], 1.0).await;
    fetched(&cluster, "tls").await;
    cluster.assert_alive();
}

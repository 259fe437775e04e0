//! Who a hub is to Redis and whom it trusts: ACL users, passwords from files,
//! TLS with a CA of one's own and a certificate, Sentinels.

use std::net::TcpListener;

use nowconnect::registry::RedisPlace;
use nowconnect_tests::certs::Authority;

use super::*;

fn place(url: String) -> RedisPlace {
    RedisPlace { url, ..RedisPlace::default() }
}

async fn open(place: RedisPlace, timeouts: RedisTimeouts) -> RedisRegistry {
    RedisRegistry::open(place, name("login"), timeouts).await.unwrap()
}

async fn refused(place: RedisPlace) -> String {
    let redis = open(place, PATIENT).await;
    let RegistryError::Definite(why) = redis.execute(&renew(&hub(1, 1))).await.unwrap_err() else {
        panic!("nothing can have happened without a connection")
    };
    assert!(!format!("{redis:?}{why}").contains("horse"), "{redis:?} {why}");
    why
}

/// The least an ACL must allow, and a password that changes while we run.
#[tokio::test]
async fn an_acl_user_with_its_password_in_a_file() {
    let rules = [
        "hub",
        "on",
        ">right-horse",
        "~nowconnect:*",
        "-@all",
        "+@read",
        "+@write",
        "+@scripting",
        "+@connection",
        "+time",
    ];
    let mut args = vec!["--user"];
    args.extend(rules);
    let mut server = Server::start(&args);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "right-horse\n").unwrap();
    let url = format!("redis://hub@127.0.0.1:{}/0", server.port);
    let redis = open(RedisPlace { password_file: Some(file.clone()), ..place(url.clone()) }, PATIENT).await;
    assert_eq!(redis.execute(&renew(&hub(1, 1))).await, Ok(RegistryReply::Renewed), "without +role, +info and +config");
    let fence = granted(redis.execute(&op(&claim(agent(1), 1, hub(1, 1), 1, Epoch(0)))).await);
    assert_eq!(fences(&listed(redis.execute(&lookup("ldap")).await)), [fence]);
    redis.execute(&RegistryOp::Sweep).await.unwrap();

    std::fs::write(&file, "other-horse").unwrap();
    let why = refused(RedisPlace { password_file: Some(file.clone()), ..place(url.clone()) }).await;
    assert!(why.contains("not connected"), "{why}");
    // A file that comes right later is enough: it is read at every dial.
    let late = open(RedisPlace { password_file: Some(file.clone()), ..place(url.clone()) }, PATIENT).await;
    std::fs::write(&file, "right-horse").unwrap();
    assert_eq!(until_ok(&late, &renew(&hub(1, 1))).await, RegistryReply::Renewed);
    server.kill();

    let missing = RedisPlace { password_file: Some(dir.path().join("none")), ..place(url) };
    let e = RedisRegistry::open(missing, name("login"), PATIENT).await.unwrap_err().to_string();
    assert!(e.contains("ha.redis_password_file"), "{e}");
}

#[tokio::test]
async fn tls_needs_the_right_ca_and_a_certificate_where_one_is_asked_for() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::create(dir.path(), "ca"), Authority::create(dir.path(), "other"));
    let server = ours.issue("redis", &["localhost", "127.0.0.1"]);
    let (client, stranger) = (ours.issue("hub-a", &["hub-a"]), theirs.issue("stranger", &["hub-a"]));
    let path = |p: &std::path::Path| p.display().to_string();
    let ca = dir.path().join("ca.pem");
    let tls_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let args = [
        "--tls-port",
        &tls_port,
        "--tls-cert-file",
        &path(&server.cert),
        "--tls-key-file",
        &path(&server.key),
        "--tls-ca-cert-file",
        &path(&ca),
        "--tls-auth-clients",
        "yes",
    ];
    let _server = Server::start(&args);
    let url = format!("rediss://localhost:{tls_port}/0");
    let identity = |f: &nowconnect_tests::certs::Files| Some((f.cert.clone(), f.key.clone()));
    let good = RedisPlace { ca_bundle: Some(ca.clone()), identity: identity(&client), ..place(url.clone()) };
    assert_eq!(open(good.clone(), PATIENT).await.execute(&renew(&hub(1, 1))).await, Ok(RegistryReply::Renewed));
    for bad in [
        RedisPlace { ca_bundle: Some(dir.path().join("other.pem")), ..good.clone() },
        RedisPlace { identity: None, ..good.clone() },
        RedisPlace { identity: identity(&stranger), ..good.clone() },
    ] {
        refused(bad).await;
    }
    for (bad, says) in [
        (RedisPlace { url: url.replace("rediss", "redis"), ..good.clone() }, "ha.redis_tls: needs rediss://"),
        (RedisPlace { ca_bundle: Some(dir.path().join("none.pem")), ..good.clone() }, "ha.redis_tls.ca_bundle"),
        (RedisPlace { identity: Some((client.cert.clone(), ca.clone())), ..good.clone() }, "ha.redis_tls"),
    ] {
        let e = RedisRegistry::open(bad, name("login"), PATIENT).await.unwrap_err().to_string();
        assert!(e.contains(says), "{e}");
    }
}

/// Sentinels that are gone, know nothing, or name a replica cost time, not hubs.
#[tokio::test]
async fn sentinels_that_do_not_help_are_passed_over() {
    let master = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (gone, port) = (free(), free());
    let file = dir.path().join("sentinel.conf");
    let text = format!(
        "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor mymaster 127.0.0.1 {} 1\n",
        dir.path().display(),
        master.port
    );
    std::fs::write(&file, text).unwrap();
    let mut command = std::process::Command::new("redis-server");
    command.arg(&file).arg("--sentinel");
    let _sentinel = nowconnect_tests::process::Process::spawn("redis-sentinel", command);
    let url = |name: &str| format!("redis-sentinel://127.0.0.1:{gone},127.0.0.1:{port}/{name}");
    let redis = open(place(url("mymaster")), PATIENT).await;
    assert_eq!(until_ok(&redis, &renew(&hub(1, 1))).await, RegistryReply::Renewed);
    let why = refused(place(url("nobody"))).await;
    assert!(why.contains("none of 2 Sentinels names the master of nobody"), "{why}");
}

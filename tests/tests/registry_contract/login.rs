//! Who a hub is to Redis and whom it trusts: ACL users, passwords from files,
//! TLS with a CA of one's own and a certificate, Sentinels with and without
//! TLS and a login of their own.

use nowconnect::registry::RedisPlace;
use nowconnect_tests::certs::Authority;
use nowconnect_tests::ports::Port;

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
    let url = format!("redis://hub@127.0.0.1:{}/0", server.port());
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
    let held = Port::reserve();
    let tls_port = held.number().to_string();
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
    let ports = [Port::reserve(), Port::reserve()];
    let [gone, port] = [ports[0].number(), ports[1].number()];
    let file = dir.path().join("sentinel.conf");
    let text = format!(
        "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor mymaster 127.0.0.1 {} 1\n",
        dir.path().display(),
        master.port()
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

/// Sentinels that speak TLS, ask for certificates and let nobody in but a user
/// of their own, who may do what docs/operations.md says and no more; and a
/// master with another login. With any of it wrong, nothing is reached.
#[tokio::test]
async fn sentinels_with_tls_and_a_login_of_their_own() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::create(dir.path(), "ca"), Authority::create(dir.path(), "other"));
    let server = ours.issue("redis", &["localhost", "127.0.0.1"]);
    let (client, stranger) = (ours.issue("hub-a", &["hub-a"]), theirs.issue("stranger", &["hub-a"]));
    let path = |p: &std::path::Path| p.display().to_string();
    let held = Port::reserve();
    let tls_port = held.number().to_string();
    let tls = |port: &str| {
        [
            ("tls-port", port.to_owned()),
            ("tls-cert-file", path(&server.cert)),
            ("tls-key-file", path(&server.key)),
            ("tls-ca-cert-file", path(&dir.path().join("ca.pem"))),
            ("tls-auth-clients", "yes".to_owned()),
        ]
    };
    let mut args: Vec<String> =
        tls(&tls_port).into_iter().flat_map(|(key, value)| [format!("--{key}"), value]).collect();
    args.extend(["--user", "hub", "on", ">right-horse", "~nowconnect:*", "+@all"].map(str::to_owned));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let master = Server::start(&args);

    let ports = [Port::reserve(), Port::reserve()];
    let [gone, port] = [ports[0].number(), ports[1].number()];
    let mut conf = format!(
        "port 0\nbind 127.0.0.1\ndir {}\ntls-replication yes\nuser default off\n\
         user watcher on >watch-horse resetchannels -@all +sentinel|get-master-addr-by-name +@connection\n\
         sentinel monitor mymaster 127.0.0.1 {tls_port} 1\n",
        dir.path().display(),
    );
    for (key, value) in tls(&port.to_string()) {
        conf.push_str(&format!("{key} {value}\n"));
    }
    let file = dir.path().join("sentinel.conf");
    std::fs::write(&file, conf).unwrap();
    let mut command = std::process::Command::new("redis-server");
    command.arg(&file).arg("--sentinel");
    let mut sentinel = nowconnect_tests::process::Process::spawn("redis-sentinel", command);

    let identity = |f: &nowconnect_tests::certs::Files| Some((f.cert.clone(), f.key.clone()));
    let url = format!(
        "rediss-sentinel://hub:right-horse@localhost:{gone},localhost:{port}/mymaster\
         ?sentinel_username=watcher&sentinel_password=watch-horse"
    );
    let good =
        RedisPlace { ca_bundle: Some(dir.path().join("ca.pem")), identity: identity(&client), ..place(url.clone()) };
    let redis = open(good.clone(), PATIENT).await;
    assert_eq!(until_ok(&redis, &renew(&hub(1, 1))).await, RegistryReply::Renewed);
    let fence = granted(redis.execute(&op(&claim(agent(1), 1, hub(1, 1), 1, Epoch(0)))).await);
    assert_eq!(fences(&listed(redis.execute(&lookup("ldap")).await)), [fence]);
    // It went there by TLS and as the user of the URL, on this server.
    let clients = text(&mut master.raw(), &["CLIENT", "LIST"]);
    let there = format!("laddr=127.0.0.1:{tls_port} ");
    assert!(clients.lines().any(|l| l.contains("user=hub") && l.contains(&there)), "{clients}");

    let unnamed = "none of 2 Sentinels names the master of mymaster";
    for (bad, says) in [
        (RedisPlace { url: url.replace("watch-horse", "dead-horse"), ..good.clone() }, unnamed),
        (
            RedisPlace { url: url.replace("=watcher", "=hub").replace("watch-horse", "right-horse"), ..good.clone() },
            unnamed,
        ),
        (RedisPlace { url: url.split('?').next().unwrap().to_owned(), ..good.clone() }, unnamed),
        (RedisPlace { ca_bundle: Some(dir.path().join("other.pem")), ..good.clone() }, unnamed),
        (RedisPlace { identity: None, ..good.clone() }, unnamed),
        (RedisPlace { identity: identity(&stranger), ..good.clone() }, unnamed),
        (RedisPlace { ca_bundle: None, identity: None, url: url.replace("rediss", "redis"), ..good.clone() }, unnamed),
        // The Sentinel answers, and its master does not let the hub in.
        (RedisPlace { url: url.replace("right-horse", "dead-horse"), ..good.clone() }, "not connected"),
    ] {
        let why = refused(bad).await;
        assert!(why.contains(says), "expected {says:?}: {why}");
    }
    // None of this was the Sentinel's end.
    sentinel.assert_alive();
    assert_eq!(open(good, PATIENT).await.execute(&renew(&hub(1, 1))).await, Ok(RegistryReply::Renewed));
}

//! What Redis does to a client when it fails, lies or holds what is no record of
//! ours, and two hubs at once.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};

use super::*;

// ---- hostile values (attack 59, R9) ------------------------------------------

#[tokio::test]
async fn values_that_are_no_records_count_as_absent_and_are_counted() {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let redis = server.registry("bad", PATIENT).await;
    redis.execute(&renew(&hub(1, 1))).await.unwrap();
    redis.execute(&renew(&hub(2, 1))).await.unwrap();
    let before = granted(redis.execute(&op(&claim(agent(1), 1, hub(1, 1), 1, Epoch(0)))).await);

    // Every key of another type.
    let keys = [
        "nowconnect:bad:hub:hub-1",
        "nowconnect:bad:{site/agent-1}:att",
        "nowconnect:bad:{site/agent-1}:ep",
        "nowconnect:{bad}:agents",
        "nowconnect:{bad}:connectors",
        "nowconnect:{bad}:idx:ldap",
    ];
    for key in keys {
        assert_eq!(text(&mut raw, &["DEL", key]), "1", "{key} was to be there");
        command(&mut raw, &["RPUSH", key, "x"]);
    }
    assert_eq!(listed(redis.execute(&lookup("ldap")).await), []);
    assert_eq!(listed(redis.execute(&attachments_of(1)).await), []);
    assert_eq!(redis.execute(&RegistryOp::Sweep).await, Ok(RegistryReply::Swept(0)));
    let release = RegistryOp::Release { agent_id: agent(1), hub: hub(1, 1), fence: before };
    assert_eq!(redis.execute(&release).await, Ok(RegistryReply::Done));
    let set = RegistryOp::SetConnectors { agent_id: agent(1), hub: hub(1, 1), fence: before, connectors: vec![] };
    assert_eq!(redis.execute(&set).await, Ok(RegistryReply::Stale));
    assert!(redis.health().corrupt_values >= 6, "{:?}", redis.health());
    assert!(redis.health().connected);

    // The next claim and renewal put records in their place.
    assert_eq!(redis.execute(&renew(&hub(1, 1))).await, Ok(RegistryReply::Renewed));
    let after = granted(redis.execute(&op(&claim(agent(1), 1, hub(1, 1), 2, before.epoch))).await);
    assert!(after.epoch > before.epoch);
    assert_eq!(fences(&listed(redis.execute(&lookup("ldap")).await)), [after]);
    let clean = redis.health().corrupt_values;

    // A record of a later schema is absent but not swept; garbage is swept.
    let att = "nowconnect:bad:{site/agent-1}:att";
    let good = text(&mut raw, &["HGET", att, "hub-1"]);
    assert!(good.contains("\"v\":1"), "{good}");
    command(&mut raw, &["HSET", att, "hub-2", &good.replace("\"v\":1", "\"v\":2").replace("hub-1", "hub-2")]);
    command(&mut raw, &["HSET", att, "hub-3", "{\"v\":1,"]);
    command(&mut raw, &["HSET", att, "hub-4", &"x".repeat(2 << 20)]);
    assert_eq!(fences(&listed(redis.execute(&lookup("ldap")).await)), [after]);
    assert_eq!(redis.health().corrupt_values, clean + 3);
    assert_eq!(redis.execute(&RegistryOp::Sweep).await, Ok(RegistryReply::Swept(2)));
    assert_eq!(text(&mut raw, &["HLEN", att]), "2");

    // Forged numbers never reach arithmetic.
    let forged = ["9007199254740992", "99999999999999999999999", "-1", "1e9", "0x10", "nan", "", "01"];
    for (forged, id) in forged.into_iter().zip(100..) {
        command(&mut raw, &["SET", "nowconnect:bad:{site/agent-1}:ep", forged]);
        let fence = granted(redis.execute(&op(&claim(agent(1), 1, hub(1, 1), id, after.epoch))).await);
        assert!(fence.epoch > after.epoch && fence.epoch.0 < EPOCH_MAX, "{forged}: {fence:?}");
    }
    // A forged member of the index is no agent and widens nothing.
    command(&mut raw, &["ZADD", "nowconnect:{bad}:idx:ldap", "1", "no agent\r\n"]);
    assert_eq!(listed(redis.execute(&lookup("ldap")).await).len(), 1);
}

// ---- a server that fails -----------------------------------------------------

#[tokio::test]
async fn a_killed_server_refuses_at_once_and_is_found_again_empty() {
    let mut server = Server::start(&[]);
    let redis = server.registry("kill", PATIENT).await;
    redis.execute(&renew(&hub(1, 1))).await.unwrap();
    let before = granted(redis.execute(&op(&claim(agent(1), 1, hub(1, 1), 1, Epoch(0)))).await);
    server.kill();
    until_disconnected(&redis, &renew(&hub(1, 1))).await;
    for _ in 0..20 {
        let refused = redis.execute(&renew(&hub(1, 1))).await.unwrap_err();
        assert!(matches!(&refused, RegistryError::Definite(why) if why.contains("not connected")), "{refused:?}");
    }
    server.restart();
    assert_eq!(until_ok(&redis, &lookup("ldap")).await, RegistryReply::Attachments(vec![]), "restarted empty (R4)");
    let after = granted(redis.execute(&op(&claim(agent(1), 1, hub(1, 1), 2, before.epoch))).await);
    assert!(after.epoch > before.epoch);
    assert_eq!(redis.health().connects, 2);
}

#[tokio::test]
async fn a_hub_starts_without_its_registry() {
    let mut server = Server::start(&[]);
    server.kill();
    let redis = server.registry("late", PATIENT).await;
    let refused = redis.execute(&lookup("ldap")).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Definite(_)), "{refused:?}");
    server.restart();
    assert_eq!(until_ok(&redis, &renew(&hub(1, 1))).await, RegistryReply::Renewed);
}

#[tokio::test]
async fn a_frozen_server_is_given_up_and_a_late_claim_happens_once() {
    let server = Server::start(&[]);
    let redis = server.registry("freeze", HASTY).await;
    until_ok(&redis, &renew(&hub(1, 1))).await;
    // Loads the scripts, so that the claim below is one command.
    until_ok(&redis, &op(&claim(agent(2), 1, hub(1, 1), 9, Epoch(0)))).await;
    server.signal("STOP");
    let late = op(&claim(agent(1), 1, hub(1, 1), 1, Epoch(0)));
    let unknown = redis.execute(&late).await.unwrap_err();
    assert!(matches!(unknown, RegistryError::Unknown(_)), "it may still happen: {unknown:?}");
    until_disconnected(&redis, &renew(&hub(1, 1))).await;
    let refused = redis.execute(&late).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Definite(_)), "{refused:?}");
    server.signal("CONT");
    let RegistryReply::Claimed { epoch, nonce, .. } = until_ok(&redis, &late).await else { panic!("expected Claimed") };
    let RegistryReply::Attachments(list) = until_ok(&redis, &attachments_of(1)).await else { panic!("no list") };
    assert_eq!(fences(&list), [Fence { epoch, nonce }], "the retry and the late execution are one claim (R2)");
    assert!(redis.health().connects >= 2);
}

#[tokio::test]
async fn a_demoted_master_is_left_and_found_again_when_promoted() {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let redis = server.registry("demoted", PATIENT).await;
    redis.execute(&renew(&hub(1, 1))).await.unwrap();
    command(&mut raw, &["REPLICAOF", "127.0.0.1", "1"]);
    let refused = redis.execute(&renew(&hub(1, 1))).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Definite(_)), "{refused:?}");
    assert!(!redis.health().connected, "READONLY drops the connection (planted bug 48)");
    loop {
        let refused = redis.execute(&lookup("ldap")).await.unwrap_err();
        if refused.to_string().contains("replica") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    command(&mut raw, &["REPLICAOF", "NO", "ONE"]);
    assert_eq!(until_ok(&redis, &renew(&hub(1, 1))).await, RegistryReply::Renewed);
}

#[tokio::test]
async fn out_of_memory_is_a_definite_no() {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let redis = server.registry("oom", PATIENT).await;
    redis.execute(&renew(&hub(1, 1))).await.unwrap();
    command(&mut raw, &["CONFIG", "SET", "maxmemory", "1"]);
    let refused = redis.execute(&op(&claim(agent(1), 1, hub(1, 1), 1, Epoch(0)))).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Definite(_)), "{refused:?}");
    command(&mut raw, &["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(listed(redis.execute(&attachments_of(1)).await), []);
    assert_eq!(text(&mut raw, &["EXISTS", "nowconnect:oom:{site/agent-1}:ep"]), "0");
    assert!(redis.health().connected);
}

#[tokio::test]
async fn scripts_are_loaded_again_after_a_script_flush() {
    let server = Server::start(&[]);
    let redis = server.registry("noscript", PATIENT).await;
    redis.execute(&renew(&hub(1, 1))).await.unwrap();
    command(&mut server.raw(), &["SCRIPT", "FLUSH"]);
    assert_eq!(redis.execute(&renew(&hub(1, 1))).await, Ok(RegistryReply::Renewed));
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_never_repeated() {
    let server = Server::start(&["--requirepass", "right-horse"]);
    let url = |password: &str| format!("redis://:{password}@127.0.0.1:{}/2?protocol=resp3", server.port());
    let wrong = RedisRegistry::connect(&url("wrong-battery"), name("auth"), PATIENT).await.unwrap();
    let refused = wrong.execute(&renew(&hub(1, 1))).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Definite(_)), "{refused:?}");
    for shown in [format!("{wrong:?}"), refused.to_string()] {
        assert!(!shown.contains("wrong-battery"), "{shown}");
    }
    // With the right one, in another database and over RESP3.
    let right = RedisRegistry::connect(&url("right-horse"), name("auth"), PATIENT).await.unwrap();
    right.execute(&renew(&hub(1, 1))).await.unwrap();
    let fence = granted(right.execute(&op(&claim(agent(1), 1, hub(1, 1), 1, Epoch(0)))).await);
    assert_eq!(fences(&listed(right.execute(&lookup("ldap")).await)), [fence]);
    assert_eq!(right.execute(&RegistryOp::Sweep).await, Ok(RegistryReply::Swept(0)));
    right.execute(&RegistryOp::Resign { hub: hub(1, 1) }).await.unwrap();
    assert_eq!(right.execute(&RegistryOp::Sweep).await, Ok(RegistryReply::Swept(2)));
    assert_eq!(right.health().corrupt_values, 0);

    for bad in ["", "http://x", "127.0.0.1:6379", "redis://:secret@"] {
        let refused = RedisRegistry::connect(bad, name("auth"), PATIENT).await.unwrap_err();
        assert!(refused.to_string().contains("ha.redis_url") && !refused.to_string().contains("secret"));
    }
}

// ---- two hubs at once ----------------------------------------------------------

#[tokio::test]
async fn a_sweeper_never_hides_what_is_claimed_meanwhile() {
    let server = Server::start(&[]);
    let (a, b) = (server.registry("race", PATIENT).await, server.registry("race", PATIENT).await);
    a.execute(&renew(&hub(1, 1))).await.unwrap();
    let claims = async {
        for id in 1..=200 {
            let fence = granted(a.execute(&op(&claim(agent(1), 1, hub(1, 1), id, Epoch(0)))).await);
            assert_eq!(fences(&listed(a.execute(&lookup("ldap")).await)), [fence], "claim {id}");
            let release = RegistryOp::Release { agent_id: agent(1), hub: hub(1, 1), fence };
            assert_eq!(a.execute(&release).await, Ok(RegistryReply::Done));
        }
    };
    let sweeps = async {
        loop {
            b.execute(&RegistryOp::Sweep).await.unwrap();
        }
    };
    tokio::select! {
        () = claims => {}
        () = sweeps => {}
    }
    b.execute(&RegistryOp::Sweep).await.unwrap();
    let mut raw = server.raw();
    for key in ["nowconnect:{race}:agents", "nowconnect:{race}:connectors", "nowconnect:{race}:idx:ldap"] {
        assert_eq!(text(&mut raw, &["EXISTS", key]), "0", "{key} is left after the sweep");
    }
}

// ---- a server that lies (R10, and a connection lost after sending) --------------

/// Answers like a fresh master, except to scripts and ECHO.
fn liar(answer_script: fn(echo: &str) -> Option<String>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut parser = redis::Parser::new();
            while let Ok(value) = parser.parse_value(&mut stream) {
                let words: Vec<String> = redis::from_redis_value(value).unwrap_or_default();
                let reply = match words.first().map(|w| w.to_ascii_uppercase()).as_deref() {
                    Some("PING") => Some("+PONG\r\n".to_owned()),
                    Some("ROLE") => Some("*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n".to_owned()),
                    Some("EVALSHA") => {
                        let keys: usize = words.get(2).and_then(|n| n.parse().ok()).unwrap_or(0);
                        answer_script(words.get(3 + keys).map_or("", String::as_str))
                    }
                    Some("ECHO") => Some(format!("${}\r\n{}x\r\n", words[1].len() + 1, words[1])),
                    Some("CONFIG") => Some("*0\r\n".to_owned()),
                    _ => Some("+OK\r\n".to_owned()),
                };
                match reply {
                    Some(reply) if stream.write_all(reply.as_bytes()).is_ok() => {}
                    _ => break,
                }
            }
        }
    };
    #[allow(clippy::disallowed_methods, reason = "a server of the test's own, on blocking sockets")]
    drop(std::thread::spawn(serve));
    address
}

#[tokio::test]
async fn a_reply_to_another_request_is_noticed() {
    let address = liar(|echo| Some(format!("*3\r\n${}\r\n{echo}y\r\n$1\r\n0\r\n$7\r\nrenewed\r\n", echo.len() + 1)));
    let url = format!("redis://{address}");
    let redis = RedisRegistry::connect(&url, name("liar"), PATIENT).await.unwrap();
    for (n, op) in [renew(&hub(1, 1)), lookup("ldap")].iter().enumerate() {
        while !redis.health().connected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let outcome = redis.execute(op).await.unwrap_err();
        assert!(matches!(outcome, RegistryError::Unknown(_)), "{outcome:?}");
        assert_eq!(redis.health().misaligned_replies, n as u64 + 1);
    }
}

#[tokio::test]
async fn a_connection_lost_after_sending_leaves_the_outcome_unknown() {
    let url = format!("redis://{}", liar(|_| None));
    let redis = RedisRegistry::connect(&url, name("liar"), PATIENT).await.unwrap();
    let outcome = redis.execute(&renew(&hub(1, 1))).await.unwrap_err();
    assert!(matches!(outcome, RegistryError::Unknown(_)), "{outcome:?}");
    assert!(!redis.health().connected);
}

//! The contract on a Redis Cluster: every step finds its server, also while
//! slots move and masters are away. That each script keeps to one slot is seen
//! by the servers themselves: they refuse what does not.

use nowconnect::registry::RedisPlace;
use nowconnect_tests::certs::Authority;
use nowconnect_tests::redis_cluster::{MASTERS, RedisCluster};

use super::*;

async fn registry(cluster: &RedisCluster, namespace: &str) -> RedisRegistry {
    RedisRegistry::connect(&cluster.url(), name(namespace), PATIENT).await.unwrap()
}

fn raw(cluster: &RedisCluster, node: usize) -> redis::Connection {
    redis::Client::open(cluster.nodes[node].url()).unwrap().get_connection().unwrap()
}

/// Agents, one for each master that keeps their records.
async fn an_agent_each(cluster: &RedisCluster, namespace: &str) -> Vec<u64> {
    let mut found = vec![None; MASTERS];
    for n in 0..200 {
        let home = cluster.home(&format!("nowconnect:{namespace}:{{site/agent-{n}}}:att")).await;
        found[home].get_or_insert(n);
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    found.into_iter().map(Option::unwrap).collect()
}

#[tokio::test]
async fn random_sequences_get_the_same_answers_from_a_cluster() {
    let cluster = RedisCluster::start(false, &[]).await;
    same_answers(&cluster.url(), &mut raw(&cluster, 0)).await;
    for node in 0..MASTERS {
        let keys: u64 = redis::from_redis_value(command(&mut raw(&cluster, node), &["DBSIZE"])).unwrap();
        assert!(keys > 50, "every master keeps a part: {keys} at {node}");
    }
}

/// A URL that names one node, and one that is no more, is enough.
#[tokio::test]
async fn the_masters_are_found_by_any_node() {
    let cluster = RedisCluster::start(false, &[]).await;
    let gone = nowconnect_tests::ports::Port::reserve();
    let url = format!("redis-cluster://{},{}/0?protocol=resp3", gone.addr, cluster.addr(1));
    let redis = RedisRegistry::connect(&url, name("seed"), PATIENT).await.unwrap();
    assert!(redis.health().connected);
    redis.execute(&renew(&hub(1, 1))).await.unwrap();
    for n in an_agent_each(&cluster, "seed").await {
        let fence = granted(redis.execute(&op(&claim(agent(n), 1, hub(1, 1), n + 1, Epoch(0)))).await);
        assert_eq!(fences(&listed(redis.execute(&attachments_of(n)).await)), [fence]);
    }
    assert_eq!(listed(redis.execute(&lookup("ldap")).await).len(), MASTERS);
    assert_eq!(redis.health().connects, MASTERS as u64);

    // A plain URL to one of its nodes reaches that node's slots only.
    let plain = RedisRegistry::connect(&cluster.nodes[0].url(), name("seed"), PATIENT).await.unwrap();
    let mut refused = 0;
    for n in 0..20 {
        match plain.execute(&attachments_of(n)).await {
            Err(RegistryError::Definite(_)) => refused += 1,
            other => drop(other.unwrap()),
        }
    }
    assert!(refused > 0);
}

/// The nodes speak TLS and ask for certificates: the one of the URL, and those
/// it tells of.
#[tokio::test]
async fn with_tls_every_master_is_reached_and_asked_for_its_certificate() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::create(dir.path(), "ca"), Authority::create(dir.path(), "other"));
    let ca = dir.path().join("ca.pem");
    let cluster = RedisCluster::start_tls(&ours.issue("redis", &["127.0.0.1"]), &ca).await;
    let client = ours.issue("hub-a", &["hub-a"]);
    let good = RedisPlace {
        url: cluster.tls_url(),
        ca_bundle: Some(ca),
        identity: Some((client.cert.clone(), client.key.clone())),
        ..RedisPlace::default()
    };
    let redis = RedisRegistry::open(good.clone(), name("tls"), PATIENT).await.unwrap();
    assert!(redis.health().connected);
    redis.execute(&renew(&hub(1, 1))).await.unwrap();
    for n in an_agent_each(&cluster, "tls").await {
        let fence = granted(redis.execute(&op(&claim(agent(n), 1, hub(1, 1), n + 1, Epoch(0)))).await);
        assert_eq!(fences(&listed(redis.execute(&attachments_of(n)).await)), [fence]);
    }
    assert_eq!(redis.health().connects, MASTERS as u64);

    let stranger = theirs.issue("hub-a", &["hub-a"]);
    for bad in [
        RedisPlace { ca_bundle: Some(dir.path().join("other.pem")), ..good.clone() },
        RedisPlace { identity: None, ..good.clone() },
        RedisPlace { identity: Some((stranger.cert.clone(), stranger.key.clone())), ..good },
    ] {
        let shut = RedisRegistry::open(bad, name("tls"), PATIENT).await.unwrap();
        assert!(!shut.health().connected);
        assert!(matches!(shut.execute(&renew(&hub(1, 1))).await, Err(RegistryError::Definite(_))));
    }
}

/// Moves the slot of an agent while it is used: before, in between and after.
#[tokio::test]
async fn a_slot_that_moves_is_followed() {
    let cluster = RedisCluster::start(false, &[]).await;
    let redis = registry(&cluster, "move").await;
    redis.execute(&renew(&hub(1, 1))).await.unwrap();
    let n = an_agent_each(&cluster, "move").await[0];
    let tag = format!("nowconnect:move:{{site/agent-{n}}}");
    let slot = cluster.slot(&format!("{tag}:att")).await.to_string();
    let (mut from, mut to) = (raw(&cluster, 0), raw(&cluster, 1));

    let first = granted(redis.execute(&op(&claim(agent(n), 1, hub(1, 1), 1, Epoch(0)))).await);
    command(&mut to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &cluster.ids[0]]);
    command(&mut from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &cluster.ids[1]]);
    let port = cluster.addr(1).port().to_string();
    let mut migrate = |key: &str| text(&mut from, &["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
    assert_eq!(migrate(&format!("{tag}:att")), "OK");
    assert_eq!(fences(&listed(redis.execute(&attachments_of(n)).await)), [first], "by ASK");
    assert_eq!(fences(&listed(redis.execute(&lookup("ldap")).await)), [first], "by ASK, beside other slots");
    let connectors = vec![ad("ldap", 3)];
    let set = RegistryOp::SetConnectors { agent_id: agent(n), hub: hub(1, 1), fence: first, connectors };
    assert_eq!(redis.execute(&set).await, Ok(RegistryReply::Done), "a script by ASK");
    // With one key here and two there nobody can take this step.
    let torn = redis.execute(&op(&claim(agent(n), 1, hub(1, 1), 2, first.epoch))).await;
    assert!(matches!(&torn, Err(RegistryError::Definite(why)) if why.contains("TRYAGAIN")), "{torn:?}");
    assert!(redis.health().connected);
    for key in ["ep".to_owned(), format!("claim:{}", ClaimId(1 << 40))] {
        assert_eq!(migrate(&format!("{tag}:{key}")), "OK", "{key}");
    }
    assert_eq!(redis.health().connects, MASTERS as u64, "ASK is no reason to connect again");

    // The move is done; this client has heard nothing of it.
    for con in [&mut to, &mut from] {
        command(con, &["CLUSTER", "SETSLOT", &slot, "NODE", &cluster.ids[1]]);
    }
    let second = granted(redis.execute(&op(&claim(agent(n), 1, hub(1, 1), 3, first.epoch))).await);
    assert!(second.epoch > first.epoch, "by MOVED");
    assert_eq!(fences(&listed(redis.execute(&attachments_of(n)).await)), [second]);
    let release = RegistryOp::Release { agent_id: agent(n), hub: hub(1, 1), fence: second };
    assert_eq!(redis.execute(&release).await, Ok(RegistryReply::Done));
    assert_eq!(redis.health().corrupt_values, 0);
}

/// One of three is away, with nobody in its place: its keys are refused at once,
/// the others served.
#[tokio::test]
async fn a_master_that_is_away_costs_its_own_keys_only() {
    let mut cluster = RedisCluster::start(false, &["--cluster-require-full-coverage", "no"]).await;
    let redis = registry(&cluster, "away").await;
    let agents = an_agent_each(&cluster, "away").await;
    // A hub whose lease lives on.
    let mut h = 0;
    while cluster.home(&format!("nowconnect:away:hub:hub-{h}")).await == 1 {
        h += 1;
    }
    redis.execute(&renew(&hub(h, 1))).await.unwrap();
    let mut held = Vec::new();
    for &n in &agents {
        held.push(granted(redis.execute(&op(&claim(agent(n), 1, hub(h, 1), n + 1, Epoch(0)))).await));
    }
    cluster.nodes[1].process.kill();
    until_disconnected(&redis, &attachments_of(agents[1])).await;
    for _ in 0..20 {
        for (ix, &n) in agents.iter().enumerate() {
            let outcome = redis.execute(&attachments_of(n)).await;
            if ix == 1 {
                assert!(matches!(outcome, Err(RegistryError::Definite(_))), "{outcome:?}");
            } else {
                assert_eq!(fences(&listed(outcome)), [held[ix]]);
            }
        }
    }
    cluster.nodes[1].restart().await;
    until_ok(&redis, &attachments_of(agents[1])).await;
    cluster.wait_well().await;
    let again = until_ok(&redis, &op(&claim(agent(agents[1]), 1, hub(h, 1), 900, Epoch(0)))).await;
    assert!(matches!(again, RegistryReply::Claimed { .. }), "{again:?}");
    while !redis.health().connected {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The others see that a master is gone: all of it says CLUSTERDOWN, and is
/// definite; with the replica in its place everything works again.
#[tokio::test]
async fn a_replica_takes_the_place_of_its_master() {
    let mut cluster = RedisCluster::start(true, &[]).await;
    let redis = registry(&cluster, "fail").await;
    let agents = an_agent_each(&cluster, "fail").await;
    redis.execute(&renew(&hub(1, 1))).await.unwrap();
    let mut before = Vec::new();
    for &n in &agents {
        before.push(granted(redis.execute(&op(&claim(agent(n), 1, hub(1, 1), n + 1, Epoch(0)))).await));
    }
    cluster.nodes[1].process.kill();
    until_disconnected(&redis, &attachments_of(agents[1])).await;
    for ((ix, &n), before) in agents.iter().enumerate().zip(&before) {
        let id = 500 + ix as u64;
        let again = op(&claim(agent(n), 1, hub(1, 1), id, before.epoch));
        let RegistryReply::Claimed { epoch, .. } = until_ok(&redis, &again).await else { panic!("expected Claimed") };
        assert!(epoch > before.epoch, "agent {n}");
    }
    while !redis.health().connected {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(until_ok(&redis, &renew(&hub(1, 1))).await, RegistryReply::Renewed);
    assert_eq!(listed(redis.execute(&lookup("ldap")).await).len(), MASTERS);
    let role = cluster.nodes[MASTERS + 1].call("ROLE").await.unwrap();
    assert!(role.contains("master"), "the replica of the dead one: {role}");
}

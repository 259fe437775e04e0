//! The contract of the two registries: the same random operations against the
//! in-memory one and a real redis-server get the same answers (a model that
//! lies is worse than none), and what Redis does to a client when it fails.
//!
//! Epochs come from two clocks, so they are compared by rank within their agent
//! and each one against the rule with the server's TIME before and after.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a failed assumption of a test is its failure")]

mod clustered;
mod failing;
mod login;
mod server;

use std::collections::BTreeMap;
use std::time::Duration;

use nowconnect::clock::unix_millis;
use nowconnect::registry::{RedisRegistry, RedisTimeouts};
use nowconnect_core::id::{AgentId, ClaimId, Epoch, Fence, Incarnation, Instance, Name, Nonce};
use nowconnect_core::registry::{
    Claim, EPOCH_MAX, HubRun, Located, MemoryRegistry, RegistryError, RegistryOp, RegistryReply, RegistryResult,
    next_epoch,
};
use nowconnect_core::rng::{Rng, Seed};
use nowconnect_core::wire::ConnectorAd;
use server::Server;

const SEQUENCES: u64 = 300;
const OPS: usize = 30;
const LEASE: Duration = Duration::from_secs(600);
/// Long enough for any machine; nothing here waits it out unless it fails.
const PATIENT: RedisTimeouts = RedisTimeouts {
    op: Duration::from_secs(20),
    connect: Duration::from_secs(20),
    backoff_min: Duration::from_millis(20),
    backoff_max: Duration::from_millis(100),
};
const HASTY: RedisTimeouts = RedisTimeouts { op: Duration::from_millis(200), ..PATIENT };

fn command(con: &mut redis::Connection, words: &[&str]) -> redis::Value {
    let mut cmd = redis::cmd(words[0]);
    for word in &words[1..] {
        cmd.arg(*word);
    }
    cmd.query(con).unwrap()
}

fn text(con: &mut redis::Connection, words: &[&str]) -> String {
    redis::from_redis_value(command(con, words)).unwrap()
}

fn server_millis(con: &mut redis::Connection) -> u64 {
    let (secs, micros): (u64, u64) = redis::from_redis_value(command(con, &["TIME"])).unwrap();
    secs * 1000 + micros / 1000
}

// ---- shorthand -----------------------------------------------------------

fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}
fn agent(n: u64) -> AgentId {
    AgentId::new(&format!("site/agent-{n}")).unwrap()
}
fn hub(n: u64, run: u64) -> HubRun {
    HubRun { replica_id: name(&format!("hub-{n}")), incarnation: Incarnation(run) }
}
fn ad(connector: &str, priority: u16) -> ConnectorAd {
    ConnectorAd { name: name(connector), priority, weight: 7 }
}
fn renew(hub: &HubRun) -> RegistryOp {
    RegistryOp::Renew { hub: hub.clone(), lease: LEASE, takes_over: None, region: Some(name("eu1")) }
}
fn claim(agent_id: AgentId, instance: u64, hub: HubRun, id: u64, seen: Epoch) -> Claim {
    Claim {
        agent_id,
        instance: Instance(instance),
        hub,
        claim_id: ClaimId(u128::from(id) << 40),
        nonce: Nonce(id.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        seen,
        granted: Epoch(0),
        connectors: vec![ad("ldap", 1)],
    }
}
fn op(claim: &Claim) -> RegistryOp {
    RegistryOp::Claim(Box::new(claim.clone()))
}
fn lookup(connector: &str) -> RegistryOp {
    RegistryOp::Lookup { connector: name(connector) }
}
fn attachments_of(n: u64) -> RegistryOp {
    RegistryOp::Agent { agent_id: agent(n) }
}
fn leases_of(hubs: &[u64]) -> RegistryOp {
    RegistryOp::Leases { replicas: hubs.iter().map(|n| name(&format!("hub-{n}"))).collect() }
}
#[track_caller]
fn granted(result: RegistryResult) -> Fence {
    let reply = result.unwrap();
    let RegistryReply::Claimed { epoch, nonce, .. } = reply else { panic!("expected Claimed, got {reply:?}") };
    Fence { epoch, nonce }
}
#[track_caller]
fn listed(result: RegistryResult) -> Vec<Located> {
    let reply = result.unwrap();
    let RegistryReply::Attachments(list) = reply else { panic!("expected Attachments, got {reply:?}") };
    list
}
fn fences(list: &[Located]) -> Vec<Fence> {
    list.iter().map(|l| l.fence).collect()
}

/// Repeats an operation until it gets a reply; the test's own time limit is the
/// only one.
async fn until_ok(registry: &RedisRegistry, op: &RegistryOp) -> RegistryReply {
    loop {
        match registry.execute(op).await {
            Ok(reply) => return reply,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn until_disconnected(registry: &RedisRegistry, op: &RegistryOp) -> RegistryError {
    loop {
        let result = registry.execute(op).await;
        if !registry.health().connected {
            return result.unwrap_err();
        }
    }
}

// ---- the same operations on both -----------------------------------------

/// One side's view: its own epochs, and their order of appearance per agent.
#[derive(Default)]
struct Side {
    grants: Vec<(AgentId, HubRun, Fence)>,
    claims: Vec<Claim>,
    last: BTreeMap<AgentId, Epoch>,
    ranks: BTreeMap<(AgentId, Epoch), u64>,
}

impl Side {
    /// Builds the operation a seed asks for, in terms of this side's epochs.
    /// Both sides draw the same numbers as long as their answers agree.
    fn next_op(&self, rng: &mut Rng, id: u64) -> RegistryOp {
        let hub = hub(1 + rng.below(3), 1 + rng.below(2));
        let mut connectors = Vec::new();
        for c in ["ldap", "ssh", "web"] {
            if rng.below(2) == 0 {
                connectors.push(ad(c, u16::try_from(rng.below(9)).unwrap()));
            }
        }
        let grant = (!self.grants.is_empty()).then(|| {
            let pick = usize::try_from(rng.below(self.grants.len() as u64)).unwrap();
            self.grants[pick].clone()
        });
        let spoil = rng.below(6);
        let spoiled = |(agent_id, mut hub, mut fence): (AgentId, HubRun, Fence)| {
            match spoil {
                0 => hub.incarnation.0 ^= 3,
                1 => fence.nonce.0 ^= 1,
                2 => fence.epoch.0 += 1,
                _ => {}
            }
            (agent_id, hub, fence)
        };
        match (rng.below(20), grant.map(spoiled)) {
            (0..=3, _) => {
                let takes_over = (rng.below(2) == 0).then(|| Incarnation(1 + rng.below(2)));
                let region = (rng.below(2) == 0).then(|| name("eu1"));
                RegistryOp::Renew { hub, lease: LEASE, takes_over, region }
            }
            (4, _) => RegistryOp::Resign { hub },
            (5..=9, _) => {
                let agent_id = agent(rng.below(3));
                let last = self.last.get(&agent_id).copied().unwrap_or_default();
                let seen = match rng.below(8) {
                    0 => last,
                    1 => Epoch(last.0 + 5000),
                    2 => Epoch(u64::MAX),
                    3 => Epoch(last.0 / 2),
                    _ => Epoch(0),
                };
                // What a hub says was granted counts like what is stored.
                let granted = if rng.below(6) == 0 { Epoch(last.0 + 77_000) } else { Epoch(0) };
                op(&Claim { connectors, granted, ..claim(agent_id, 1 + rng.below(2), hub, id, seen) })
            }
            (10, Some(_)) => {
                let pick = usize::try_from(rng.below(self.claims.len() as u64)).unwrap();
                op(&self.claims[pick])
            }
            (11 | 12, Some((agent_id, hub, fence))) => RegistryOp::SetConnectors { agent_id, hub, fence, connectors },
            (13 | 14, Some((agent_id, hub, fence))) => RegistryOp::Release { agent_id, hub, fence },
            (15, _) => attachments_of(rng.below(3)),
            (16, _) => RegistryOp::Sweep,
            (17, _) => leases_of(&[1, 2, 3, 4]),
            _ => lookup(["ldap", "ssh", "web"][usize::try_from(rng.below(3)).unwrap()]),
        }
    }

    /// Notes what a claim was granted and replaces epochs by their rank.
    fn ranked(&mut self, op: &RegistryOp, reply: RegistryReply) -> RegistryReply {
        match reply {
            RegistryReply::Claimed { epoch, nonce, superseded } => {
                let RegistryOp::Claim(claim) = op else { panic!("{op:?} answered Claimed") };
                let agent_id = &claim.agent_id;
                if self.claims.iter().all(|c| c.claim_id != claim.claim_id) {
                    let last = self.last.insert(agent_id.clone(), epoch).unwrap_or_default();
                    assert!(epoch > last, "O2: {epoch} after {last}");
                    let rank = self.ranks.len() as u64;
                    self.ranks.insert((agent_id.clone(), epoch), rank);
                    self.grants.push((agent_id.clone(), claim.hub.clone(), Fence { epoch, nonce }));
                    self.claims.push((**claim).clone());
                }
                let epoch = self.rank(agent_id, epoch);
                let superseded = self.ranked_list(superseded);
                RegistryReply::Claimed { epoch, nonce, superseded }
            }
            RegistryReply::Attachments(list) => RegistryReply::Attachments(self.ranked_list(list)),
            other => other,
        }
    }

    fn ranked_list(&self, list: Vec<Located>) -> Vec<Located> {
        let ranked = |l: Located| {
            let fence = Fence { epoch: self.rank(&l.agent_id, l.fence.epoch), ..l.fence };
            Located { fence, ..l }
        };
        list.into_iter().map(ranked).collect()
    }

    #[track_caller]
    fn rank(&self, agent_id: &AgentId, epoch: Epoch) -> Epoch {
        let rank = self.ranks.get(&(agent_id.clone(), epoch));
        Epoch(*rank.unwrap_or_else(|| panic!("epoch {epoch} of {agent_id} was never granted")))
    }
}

#[tokio::test]
async fn random_sequences_get_the_same_answers_from_both() {
    let server = Server::start(&[]);
    same_answers(&server.url(), &mut server.raw()).await;
}

/// Runs the sequences against the registry at `url`; `raw` tells its time.
async fn same_answers(url: &str, raw: &mut redis::Connection) {
    let mut kinds: BTreeMap<String, u32> = BTreeMap::new();
    for seed in 0..SEQUENCES {
        let redis = RedisRegistry::connect(url, name(&format!("seq-{seed}")), PATIENT).await.unwrap();
        let mut memory = MemoryRegistry::default();
        let (mut a, mut b) = (Side::default(), Side::default());
        let mut rngs = [Seed::from_u64(seed).rng(), Seed::from_u64(seed).rng()];
        for step in 0..OPS {
            let context = format!("seed {seed}, step {step}");
            let id = 1 + step as u64;
            let op_a = a.next_op(&mut rngs[0], id);
            let op_b = b.next_op(&mut rngs[1], id);

            let reply_a = memory.execute(unix_millis(), &op_a).unwrap();
            let stored = match &op_b {
                RegistryOp::Claim(c) => b.last.get(&c.agent_id).copied().unwrap_or_default().max(c.granted),
                _ => Epoch(0),
            };
            let before = server_millis(raw);
            let reply_b = redis.execute(&op_b).await.unwrap_or_else(|e| panic!("{context}: {op_b:?}: {e}"));
            let after = server_millis(raw);
            if let (RegistryOp::Claim(c), RegistryReply::Claimed { epoch, .. }) = (&op_b, &reply_b)
                && b.claims.iter().all(|old| old.claim_id != c.claim_id)
            {
                let allowed = next_epoch(stored, c.seen, before)..=next_epoch(stored, c.seen, after);
                assert!(allowed.contains(epoch), "{context}: {epoch} outside {allowed:?}");
            }

            let (ranked_a, ranked_b) = (a.ranked(&op_a, reply_a), b.ranked(&op_b, reply_b));
            assert_eq!(ranked_a, ranked_b, "{context}: memory (left) and Redis (right) after {op_b:?}");
            let kind = match &ranked_b {
                RegistryReply::Claimed { superseded, .. } if !superseded.is_empty() => "Superseding".to_owned(),
                RegistryReply::Attachments(l) if l.len() > 1 => "Several".to_owned(),
                RegistryReply::Swept(n) if *n > 0 => "Removed".to_owned(),
                RegistryReply::Leases(held) if held.is_empty() => "NoLease".to_owned(),
                other => format!("{other:?}").split([' ', '(']).next().unwrap_or_default().to_owned(),
            };
            *kinds.entry(kind).or_default() += 1;
        }
        assert_eq!(redis.health().corrupt_values, 0);
    }
    let all = ["Superseding", "Several", "Removed", "Claimed", "LeaseHeld", "Renewed", "Done", "Stale", "Swept"];
    for kind in all.into_iter().chain(["Leases", "NoLease"]) {
        assert!(kinds.get(kind).is_some_and(|n| *n >= 20), "too few {kind} to mean anything: {kinds:?}");
    }
}

// ---- leases ----------------------------------------------------------------

#[tokio::test]
async fn a_lease_ends_by_the_servers_clock_and_renewal_extends_it() {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let redis = server.registry("lease", PATIENT).await;
    let mut memory = MemoryRegistry::default();
    let now = unix_millis();
    let first = claim(agent(1), 1, hub(1, 1), 1, Epoch(0));
    for op in [renew(&hub(1, 1)), op(&first)] {
        redis.execute(&op).await.unwrap();
        memory.execute(now, &op).unwrap();
    }
    let millis = u64::try_from(LEASE.as_millis()).unwrap();
    let key = "nowconnect:lease:hub:hub-1";
    let ttl = |raw: &mut redis::Connection| text(raw, &["PTTL", key]).parse::<u64>().unwrap();
    assert!((1..=millis).contains(&ttl(&mut raw)));
    command(&mut raw, &["PEXPIRE", key, "100000"]);
    redis.execute(&renew(&hub(1, 1))).await.unwrap();
    assert!(ttl(&mut raw) > 100_000, "a renewal lasts from its own execution");
    assert_eq!(text(&mut raw, &["PTTL", "nowconnect:lease:{site/agent-1}:ep"]), "-1", "epochs never expire");

    assert_eq!(listed(redis.execute(&lookup("ldap")).await).len(), 1);
    assert_eq!(listed(memory.execute(now + millis - 1, &lookup("ldap"))).len(), 1);
    let held = Ok(RegistryReply::Leases(vec![hub(1, 1)]));
    assert_eq!(redis.execute(&leases_of(&[1, 2])).await, held);
    assert_eq!(memory.execute(now + millis - 1, &leases_of(&[1, 2])), held);
    command(&mut raw, &["PEXPIRE", key, "0"]);
    let none = Ok(RegistryReply::Leases(Vec::new()));
    assert_eq!(redis.execute(&leases_of(&[1, 2])).await, none);
    assert_eq!(memory.execute(now + millis, &leases_of(&[1, 2])), none);
    assert_eq!(listed(redis.execute(&lookup("ldap")).await), []);
    assert_eq!(listed(redis.execute(&attachments_of(1)).await), []);
    assert_eq!(listed(memory.execute(now + millis, &lookup("ldap"))), []);

    // Another run takes the expired lease without asking.
    assert_eq!(redis.execute(&renew(&hub(1, 2))).await, Ok(RegistryReply::Renewed));
    assert_eq!(
        redis.execute(&renew(&hub(1, 1))).await,
        Ok(RegistryReply::LeaseHeld { by: Incarnation(2) }),
        "the older run is told who holds it"
    );
}

// ---- epochs ----------------------------------------------------------------

#[tokio::test]
async fn epochs_rise_through_a_flush_by_seen_and_by_floor() {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let redis = server.registry("flush", PATIENT).await;
    // Far ahead of the clock, so that only `seen` can keep the order (planted bug 2).
    let ahead = granted(redis.execute(&op(&claim(agent(1), 1, hub(1, 1), 1, Epoch(u64::MAX)))).await);
    assert!(ahead.epoch.0 > 100_000_000_000_000, "more digits than Lua's tostring writes (planted bug 11)");
    assert_eq!(text(&mut raw, &["GET", "nowconnect:flush:{site/agent-1}:ep"]), ahead.epoch.to_string());
    let plain = granted(redis.execute(&op(&claim(agent(2), 1, hub(1, 1), 2, Epoch(0)))).await);

    command(&mut raw, &["FLUSHALL"]);
    // Floor and clamp promise a higher epoch only once the clock has moved on.
    while server_millis(&mut raw) * 1024 < plain.epoch.0 {
        std::thread::yield_now();
    }
    let again = granted(redis.execute(&op(&claim(agent(1), 1, hub(1, 1), 3, ahead.epoch))).await);
    assert!(again.epoch > ahead.epoch, "by seen: {} after {}", again.epoch, ahead.epoch);
    // An agent that remembers nothing: the clock alone.
    let floor = granted(redis.execute(&op(&claim(agent(2), 1, hub(1, 1), 4, Epoch(0)))).await);
    assert!(floor.epoch > plain.epoch, "by floor: {} after {}", floor.epoch, plain.epoch);

    // One by one above 2^50, each exactly one more than the one before.
    let mut last = again.epoch;
    for id in 5..55 {
        let next = granted(redis.execute(&op(&claim(agent(1), 1, hub(1, 1), id, Epoch(0)))).await);
        assert_eq!(next.epoch, Epoch(last.0 + 1));
        last = next.epoch;
    }
    // At the end of what Lua carries exactly, refusal instead of repetition.
    command(&mut raw, &["SET", "nowconnect:flush:{site/agent-1}:ep", &(EPOCH_MAX - 1).to_string()]);
    let top = granted(redis.execute(&op(&claim(agent(1), 1, hub(1, 1), 1000, Epoch(0)))).await);
    assert_eq!(top.epoch, Epoch(EPOCH_MAX));
    let refused = redis.execute(&op(&claim(agent(1), 1, hub(1, 1), 1001, Epoch(u64::MAX)))).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Definite(_)), "{refused:?}");
}

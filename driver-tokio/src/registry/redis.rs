//! The registry on Redis, one server or a cluster: one script per operation, and
//! for reads pipelines over index, attachments and leases. Only the scripts decide; what
//! is read in several round trips is a listing that the fence of every OPEN
//! checks again at the owner.
//!
//! Keeps: O2, O3, O5 (the scripts under `scripts/`, each atomic, each the twin
//! of a step of the core's `MemoryRegistry`); every reply is matched with its
//! request (R10); values of a wrong type or a later schema count as absent and
//! are counted (attack 59); an operation that acted in its first step and
//! failed in a later one is `Unknown`.
//!
//! Must not know: when to retry, what a hub does with an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nowconnect_core::id::{AgentId, Epoch, Fence, Incarnation, Name, Nonce};
use nowconnect_core::registry::{
    CLAIM_MEMORY, Claim, EPOCH_MAX, EPOCHS_PER_MILLI, HubRun, Located, RegistryError, RegistryOp, RegistryReply,
    RegistryResult, SEEN_AHEAD_MAX,
};
use nowconnect_core::wire::ConnectorAd;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, RedisError, Script, Value};

use super::connection::{Borrowed, RedisTimeouts};
use super::nodes::{HOPS_MAX, Nodes, Way};
use super::place::{RedisPlace, RedisUrlError};
use super::record::{Keys, Read, read_attachment, read_lease};

/// Commands in one pipeline, so that one reply stays small beside the deadline.
const PIPELINE_MAX: usize = 256;
/// A sweep reads everything the namespace holds; nobody waits for it.
const SWEEP_DEADLINES: u32 = 20;

macro_rules! scripts {
    ($($name:ident = $file:literal),* $(,)?) => {
        struct Scripts { $($name: Script),* }
        static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts {
            $($name: Script::new(concat!(include_str!("scripts/prelude.lua"), include_str!($file)))),*
        });
    };
}
scripts! {
    renew = "scripts/renew.lua",
    resign = "scripts/resign.lua",
    claim = "scripts/claim.lua",
    set_connectors = "scripts/set_connectors.lua",
    release = "scripts/release.lua",
    announce = "scripts/announce.lua",
    forget = "scripts/forget.lua",
    drop = "scripts/drop.lua",
}

/// How the registry's client fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedisHealth {
    /// A connection stands; to every master of a cluster.
    pub connected: bool,
    /// Connections established since the start.
    pub connects: u64,
    /// Values met that were no records of ours (wrong type, undecodable, too
    /// large, later schema) and counted as absent.
    pub corrupt_values: u64,
    /// Replies that belonged to another request (R10).
    pub misaligned_replies: u64,
}

/// The registry on a Redis server or a cluster. Dropping it closes the
/// connections.
#[derive(Debug)]
pub struct RedisRegistry {
    nodes: Nodes,
    keys: Keys,
    op_timeout: Duration,
    calls: AtomicU64,
    corrupt: AtomicU64,
    misaligned: AtomicU64,
}

impl RedisRegistry {
    /// Connects, or goes on trying in the background: a hub starts without its
    /// registry and says so. Must be called inside a tokio runtime; for
    /// `rediss://` the process needs a default rustls provider.
    ///
    /// # Errors
    /// When the URL is no Redis URL.
    pub async fn connect(url: &str, namespace: Name, timeouts: RedisTimeouts) -> Result<Self, RedisUrlError> {
        let place = RedisPlace { url: url.to_owned(), ..RedisPlace::default() };
        Self::open(place, namespace, timeouts).await
    }

    /// The same, with a password and certificates from files.
    ///
    /// # Errors
    /// When the URL is no Redis URL, or a file cannot be used.
    pub async fn open(place: RedisPlace, namespace: Name, timeouts: RedisTimeouts) -> Result<Self, RedisUrlError> {
        Ok(Self {
            nodes: Nodes::open(place, timeouts).await?,
            keys: Keys::new(namespace),
            op_timeout: timeouts.op,
            calls: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            misaligned: AtomicU64::new(0),
        })
    }

    /// Counters and state of the client.
    #[must_use]
    pub fn health(&self) -> RedisHealth {
        RedisHealth {
            connected: self.nodes.is_up(),
            connects: self.nodes.connects(),
            corrupt_values: self.corrupt.load(Ordering::Relaxed),
            misaligned_replies: self.misaligned.load(Ordering::Relaxed),
        }
    }

    /// Takes one step, once. Bounded by the operation's deadline (`Sweep`: 20
    /// of them); answers at once while there is no connection.
    ///
    /// # Errors
    /// `Definite` when it certainly did not happen, `Unknown` when it may have.
    pub async fn execute(&self, op: &RegistryOp) -> RegistryResult {
        let mut call = Call { registry: self, with: None, acted: false };
        let deadline = match op {
            RegistryOp::Sweep => self.op_timeout.saturating_mul(SWEEP_DEADLINES),
            RegistryOp::Renew { .. }
            | RegistryOp::Resign { .. }
            | RegistryOp::Claim(_)
            | RegistryOp::SetConnectors { .. }
            | RegistryOp::Release { .. }
            | RegistryOp::Lookup { .. }
            | RegistryOp::Agent { .. }
            | RegistryOp::Leases { .. } => self.op_timeout,
        };
        match tokio::time::timeout(deadline, call.step(op)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                if let Some(node) = &call.with {
                    node.timed_out();
                }
                Err(RegistryError::Unknown(format!("no answer within {} ms", deadline.as_millis())))
            }
        }
    }

    fn count_corrupt(&self, n: u64) {
        if n > 0 && self.corrupt.fetch_add(n, Ordering::Relaxed) == 0 {
            tracing::warn!(
                event = "registry_corrupt_value",
                "Redis holds values under our keys that are no records of ours; they count as absent (logged once)"
            );
        }
    }
}

/// One operation.
struct Call<'a> {
    registry: &'a RedisRegistry,
    /// The server that was spoken to last.
    with: Option<Borrowed>,
    /// A step that may write was carried out: no later failure is definite.
    acted: bool,
}

type Outcome<T> = Result<T, RegistryError>;

impl Call<'_> {
    async fn step(&mut self, op: &RegistryOp) -> RegistryResult {
        let keys = &self.registry.keys;
        match op {
            RegistryOp::Renew { hub, lease, takes_over, region } => {
                let lease_millis = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX).clamp(1, EPOCH_MAX);
                let args = [
                    hub.incarnation.to_string(),
                    lease_millis.to_string(),
                    takes_over.map(|i| i.to_string()).unwrap_or_default(),
                    region.as_ref().map(Name::to_string).unwrap_or_default(),
                ];
                let reply = self.run(&SCRIPTS.renew, &[keys.lease(&hub.replica_id)], &args).await?;
                match reply.status() {
                    "held" => {
                        let by = Incarnation::parse(reply.text(0)).ok_or_else(|| self.unreadable())?;
                        Ok(RegistryReply::LeaseHeld { by })
                    }
                    _ => Ok(RegistryReply::Renewed),
                }
            }
            RegistryOp::Resign { hub } => {
                let args = [hub.incarnation.to_string()];
                let reply = self.run(&SCRIPTS.resign, &[keys.lease(&hub.replica_id)], &args).await?;
                Ok(reply.done_or_stale())
            }
            RegistryOp::Claim(claim) => self.claim(claim).await,
            RegistryOp::SetConnectors { agent_id, hub, fence, connectors } => {
                let mut args = fence_args(hub, *fence).to_vec();
                args.push(connectors_json(connectors)?);
                let reply = self.run(&SCRIPTS.set_connectors, &[keys.attachments(agent_id)], &args).await?;
                let done = reply.done_or_stale();
                if done == RegistryReply::Done {
                    self.announce(agent_id, connectors).await?;
                }
                Ok(done)
            }
            RegistryOp::Release { agent_id, hub, fence } => {
                let args = fence_args(hub, *fence);
                let reply = self.run(&SCRIPTS.release, &[keys.attachments(agent_id)], &args).await?;
                Ok(reply.done_or_stale())
            }
            RegistryOp::Lookup { connector } => {
                let entries = self.index(&keys.index(connector.as_str())).await?;
                let agents: Vec<AgentId> = entries.into_keys().collect();
                let mut listed = self.listed(&agents).await?;
                listed.retain(|l| exposes(l, connector.as_str()));
                Ok(RegistryReply::Attachments(listed))
            }
            RegistryOp::Agent { agent_id } => {
                Ok(RegistryReply::Attachments(self.listed(std::slice::from_ref(agent_id)).await?))
            }
            RegistryOp::Leases { replicas } => {
                let held = self.leases(replicas.clone()).await?;
                let run = |(replica_id, (incarnation, _))| HubRun { replica_id, incarnation };
                Ok(RegistryReply::Leases(held.into_iter().map(run).collect()))
            }
            RegistryOp::Sweep => self.sweep().await,
        }
    }

    async fn claim(&mut self, claim: &Claim) -> RegistryResult {
        let keys = &self.registry.keys;
        let agent = &claim.agent_id;
        let args = [
            agent.to_string(),
            claim.hub.replica_id.to_string(),
            claim.hub.incarnation.to_string(),
            claim.instance.to_string(),
            claim.claim_id.to_string(),
            claim.nonce.to_string(),
            // Above 2^53 a Lua number would round; no epoch lies there.
            claim.seen.0.min(EPOCH_MAX).to_string(),
            connectors_json(&claim.connectors)?,
            CLAIM_MEMORY.as_millis().to_string(),
            EPOCHS_PER_MILLI.to_string(),
            SEEN_AHEAD_MAX.to_string(),
            claim.granted.0.min(EPOCH_MAX).to_string(),
        ];
        let named = [keys.attachments(agent), keys.epoch(agent), keys.claim(agent, claim.claim_id)];
        let reply = self.run(&SCRIPTS.claim, &named, &args).await?;
        let epoch = Epoch::parse(reply.text(0)).ok_or_else(|| self.unreadable())?;
        let nonce = Nonce::parse(reply.text(1)).ok_or_else(|| self.unreadable())?;
        let mut superseded = Vec::new();
        for raw in reply.rest.iter().skip(2) {
            match read_attachment(agent, raw) {
                Read::Good(l) => superseded.push(l),
                Read::Newer | Read::Garbage => self.registry.count_corrupt(1),
            }
        }
        superseded.sort_by(|a, b| a.hub.cmp(&b.hub));
        // After the claim, never before: a sweeper that read the index earlier
        // then finds a newer score and keeps the entry.
        self.announce(agent, &claim.connectors).await?;
        Ok(RegistryReply::Claimed { epoch, nonce, superseded })
    }

    async fn announce(&mut self, agent: &AgentId, connectors: &[ConnectorAd]) -> Outcome<()> {
        let keys = &self.registry.keys;
        let names: BTreeSet<&str> = connectors.iter().map(|ad| ad.name.as_str()).collect();
        let mut named = vec![keys.agents(), keys.connectors()];
        named.extend(names.iter().map(|name| keys.index(name)));
        let mut args = vec![agent.to_string()];
        args.extend(names.iter().map(|name| (*name).to_owned()));
        self.run(&SCRIPTS.announce, &named, &args).await?;
        Ok(())
    }

    /// Members and scores of an index. Members that are no agent ids or names
    /// are left out and counted.
    async fn index<K: Ord + std::str::FromStr>(&mut self, key: &str) -> Outcome<BTreeMap<K, f64>> {
        let mut range = redis::cmd("ZRANGE");
        range.arg(key).arg(0).arg(-1).arg("WITHSCORES");
        let value = self.read(vec![(key.to_owned(), range)]).await?.pop().unwrap_or_default();
        let mut out = BTreeMap::new();
        for (member, score) in self.decode::<Vec<(Vec<u8>, f64)>>(value)?.unwrap_or_default() {
            match std::str::from_utf8(&member).ok().and_then(|m| m.parse().ok()) {
                Some(member) => drop(out.insert(member, score)),
                None => self.registry.count_corrupt(1),
            }
        }
        Ok(out)
    }

    /// Raw attachment records of each agent, in the order asked for.
    async fn attachments(&mut self, agents: &[AgentId]) -> Outcome<Vec<Vec<(Vec<u8>, Vec<u8>)>>> {
        let mut out = Vec::with_capacity(agents.len());
        for some in agents.chunks(PIPELINE_MAX) {
            let keys = some.iter().map(|agent| self.registry.keys.attachments(agent));
            for value in self.read(keys.map(|key| on("HGETALL", key)).collect()).await? {
                out.push(self.decode(value)?.unwrap_or_default());
            }
        }
        Ok(out)
    }

    /// Which run holds the lease of each replica, and its region.
    async fn leases(&mut self, replicas: BTreeSet<Name>) -> Outcome<BTreeMap<Name, (Incarnation, Option<Name>)>> {
        let replicas: Vec<Name> = replicas.into_iter().collect();
        let mut out = BTreeMap::new();
        for some in replicas.chunks(PIPELINE_MAX) {
            let keys = some.iter().map(|replica| self.registry.keys.lease(replica));
            let values = self.read(keys.map(|key| on("GET", key)).collect()).await?;
            for (replica, value) in some.iter().zip(values) {
                let Some(raw) = self.decode::<Option<Vec<u8>>>(value)?.flatten() else { continue };
                match read_lease(&raw) {
                    Some(lease) => drop(out.insert(replica.clone(), lease)),
                    None => self.registry.count_corrupt(1),
                }
            }
        }
        Ok(out)
    }

    /// Attachments of the agents whose hub's present run holds a live lease, by
    /// agent and replica.
    async fn listed(&mut self, agents: &[AgentId]) -> Outcome<Vec<Located>> {
        let mut found = Vec::new();
        for (agent, raw) in agents.iter().zip(self.attachments(agents).await?) {
            for (replica, body) in &raw {
                match read_attachment(agent, body) {
                    Read::Good(l) if l.hub.replica_id.as_str().as_bytes() == &**replica => found.push(l),
                    Read::Good(_) | Read::Newer | Read::Garbage => self.registry.count_corrupt(1),
                }
            }
        }
        let leases = self.leases(found.iter().map(|l| l.hub.replica_id.clone()).collect()).await?;
        found.retain_mut(|l| match leases.get(&l.hub.replica_id) {
            Some((incarnation, region)) if *incarnation == l.hub.incarnation => {
                l.region.clone_from(region);
                true
            }
            Some(_) | None => false,
        });
        found.sort_by(|a, b| (&a.agent_id, &a.hub).cmp(&(&b.agent_id, &b.hub)));
        Ok(found)
    }

    /// Reads everything, then removes what it read, entry by entry, only if it
    /// is still exactly that (O5). Two sweepers at once do no harm.
    async fn sweep(&mut self) -> RegistryResult {
        let keys = &self.registry.keys;
        let known: BTreeMap<AgentId, f64> = self.index(&keys.agents()).await?;
        let connectors: BTreeMap<Name, f64> = self.index(&keys.connectors()).await?;
        let mut hints: Vec<(Name, BTreeMap<AgentId, f64>)> = Vec::new();
        for connector in connectors.keys() {
            hints.push((connector.clone(), self.index(&keys.index(connector.as_str())).await?));
        }
        let agents: BTreeSet<&AgentId> = known.keys().chain(hints.iter().flat_map(|(_, m)| m.keys())).collect();
        let agents: Vec<AgentId> = agents.into_iter().cloned().collect();
        let raw = self.attachments(&agents).await?;
        let replicas = raw.iter().flatten().filter_map(|(replica, _)| name(replica)).collect();
        let leases = self.leases(replicas).await?;

        let mut removed = 0_u64;
        let mut live: BTreeMap<&AgentId, Vec<Located>> = BTreeMap::new();
        let mut unattached: Vec<(String, f64)> = Vec::new();
        for (agent, raw) in agents.iter().zip(&raw) {
            let mut dead = Vec::new();
            for (replica, body) in raw {
                match read_attachment(agent, body) {
                    Read::Good(l) if name(replica).is_some_and(|r| runs(&leases, &r, l.hub.incarnation)) => {
                        live.entry(agent).or_default().push(l);
                    }
                    // The hubs that understand it sweep it.
                    Read::Newer => {}
                    Read::Good(_) | Read::Garbage => dead.extend([replica.clone(), body.clone()]),
                }
            }
            if let Some(score) = known.get(agent).filter(|_| dead.len() == raw.len() * 2) {
                unattached.push((agent.to_string(), *score));
            }
            if !dead.is_empty() {
                removed += self.remove(&SCRIPTS.drop, keys.attachments(agent), dead).await?;
            }
        }
        let mut unexposed: Vec<(String, f64)> = Vec::new();
        for (connector, members) in &hints {
            let is_live =
                |agent: &AgentId| live.get(agent).is_some_and(|l| l.iter().any(|l| exposes(l, connector.as_str())));
            let gone: Vec<(String, f64)> = members
                .iter()
                .filter(|(agent, _)| !is_live(agent))
                .map(|(agent, score)| (agent.to_string(), *score))
                .collect();
            if let Some(score) = connectors.get(connector).filter(|_| gone.len() == members.len()) {
                unexposed.push((connector.to_string(), *score));
            }
            removed += self.forget(keys.index(connector.as_str()), &gone).await?;
        }
        self.forget(keys.connectors(), &unexposed).await?;
        self.forget(keys.agents(), &unattached).await?;
        Ok(RegistryReply::Swept(u32::try_from(removed).unwrap_or(u32::MAX)))
    }

    async fn forget(&mut self, key: String, entries: &[(String, f64)]) -> Outcome<u64> {
        if entries.is_empty() {
            return Ok(0);
        }
        let pairs = entries.iter().flat_map(|(m, score)| [m.clone().into_bytes(), format!("{score:.0}").into_bytes()]);
        self.remove(&SCRIPTS.forget, key, pairs.collect()).await
    }

    async fn remove(&mut self, script: &Script, key: String, pairs: Vec<Vec<u8>>) -> Outcome<u64> {
        let mut removed = 0;
        for some in pairs.chunks(PIPELINE_MAX) {
            let reply = self.run_raw(script, std::slice::from_ref(&key), some).await?;
            removed += reply.text(0).parse::<u64>().map_err(|_| self.unreadable())?;
        }
        Ok(removed)
    }

    async fn run(&mut self, script: &Script, keys: &[String], args: &[String]) -> Outcome<Reply> {
        let args: Vec<Vec<u8>> = args.iter().map(|a| a.clone().into_bytes()).collect();
        self.run_raw(script, keys, &args).await
    }

    /// Runs a script where its keys are: all of them in one slot (see `record.rs`).
    async fn run_raw(&mut self, script: &Script, keys: &[String], args: &[Vec<u8>]) -> Outcome<Reply> {
        let echo = self.echo();
        let Some(first) = keys.first() else { return Err(self.unreadable()) };
        let mut way = self.registry.nodes.way(first).map_err(|e| self.refused(e))?;
        let mut hops = 0;
        let parts: Vec<Vec<u8>> = loop {
            let mut con = way.node.con.clone();
            let ask = way.ask;
            self.with = Some(way.node);
            let outcome = if ask {
                invoke_asking(&mut con, script, keys, &echo, args).await
            } else {
                let mut invocation = script.prepare_invoke();
                for key in keys {
                    invocation.key(key);
                }
                invocation.arg(&echo);
                for arg in args {
                    invocation.arg(arg);
                }
                invocation.invoke_async(&mut con).await
            };
            let error = match outcome {
                Ok(parts) => break parts,
                Err(error) => error,
            };
            way = match self.elsewhere(&error, &mut hops).await? {
                Some(way) => way,
                None => return Err(self.failed(&error)),
            };
        };
        let mut parts = parts.into_iter();
        if parts.next().as_deref() != Some(echo.as_bytes()) {
            return Err(self.misaligned());
        }
        self.acted = true;
        self.answered();
        let bad = parts.next().and_then(|b| String::from_utf8(b).ok()).and_then(|b| b.parse().ok());
        self.registry.count_corrupt(bad.unwrap_or(0));
        let status = parts.next().and_then(|s| String::from_utf8(s).ok()).ok_or_else(|| self.unreadable())?;
        Ok(Reply { status, rest: parts.collect() })
    }

    /// Where a command that failed with `error` belongs, if it says so.
    async fn elsewhere(&self, error: &RedisError, hops: &mut usize) -> Outcome<Option<Way>> {
        let nodes = &self.registry.nodes;
        let redirect = self.with.as_ref().and_then(|node| nodes.redirect(node, error));
        let Some(redirect) = redirect.filter(|_| *hops < HOPS_MAX) else { return Ok(None) };
        *hops += 1;
        nodes.follow(&redirect).await.map(Some).map_err(|e| self.refused(e))
    }

    /// Takes each command to the server that holds its key, and returns a value
    /// for each in that order.
    async fn read(&mut self, commands: Vec<(String, Cmd)>) -> Outcome<Vec<Value>> {
        let mut values: Vec<Value> = commands.iter().map(|_| Value::Nil).collect();
        let mut ways = Vec::new();
        for (ix, (key, _)) in commands.iter().enumerate() {
            ways.push((ix, self.registry.nodes.way(key).map_err(|e| self.refused(e))?));
        }
        let mut hops = 0;
        while !ways.is_empty() {
            // One pipeline a server; with one server one in all.
            let mut groups: BTreeMap<String, (Borrowed, Vec<(usize, bool)>)> = BTreeMap::new();
            for (ix, way) in ways.drain(..) {
                let group = groups.entry(way.node.address().to_owned()).or_insert((way.node, Vec::new()));
                group.1.push((ix, way.ask));
            }
            let mut moved = Vec::new();
            for (node, members) in groups.into_values() {
                let some = members.iter().filter_map(|(ix, ask)| Some((&commands.get(*ix)?.1, *ask)));
                let replies = self.ask(node, some.collect()).await?;
                for ((ix, _), reply) in members.into_iter().zip(replies) {
                    if let Value::ServerError(e) = &reply
                        && let Some(redirect) =
                            self.with.as_ref().and_then(|node| self.registry.nodes.redirect(node, &e.clone().into()))
                        && hops < HOPS_MAX
                    {
                        moved.push((ix, redirect));
                    } else if let Some(value) = values.get_mut(ix) {
                        *value = reply;
                    }
                }
            }
            hops += 1;
            for (ix, redirect) in moved {
                ways.push((ix, self.registry.nodes.follow(&redirect).await.map_err(|e| self.refused(e))?));
            }
        }
        Ok(values)
    }

    /// Sends the commands between two ECHOs to one server and returns a value
    /// for each. Those that follow a redirection for once come behind an ASKING.
    async fn ask(&mut self, node: Borrowed, commands: Vec<(&Cmd, bool)>) -> Outcome<Vec<Value>> {
        let echo = self.echo();
        let mut pipe = redis::pipe();
        pipe.cmd("ECHO").arg(&echo);
        let mut expected = Vec::new();
        for (command, asking) in commands {
            if asking {
                pipe.cmd("ASKING");
                expected.push(false);
            }
            pipe.add_command(command.clone());
            expected.push(true);
        }
        pipe.cmd("ECHO").arg(&echo).ignore_errors();
        let mut con = node.con.clone();
        self.with = Some(node);
        let mut values: Vec<Value> = pipe.query_async(&mut con).await.map_err(|e| self.failed(&e))?;
        if let Some(Value::ServerError(e)) = values.first() {
            return Err(self.failed(&e.clone().into()));
        }
        let is_echo = |v: Option<&Value>| matches!(v, Some(Value::BulkString(b)) if **b == *echo.as_bytes());
        if values.len() != expected.len() + 2 || !is_echo(values.first()) || !is_echo(values.last()) {
            return Err(self.misaligned());
        }
        self.answered();
        values.pop();
        values.remove(0);
        Ok(values.into_iter().zip(expected).filter(|(_, wanted)| *wanted).map(|(value, _)| value).collect())
    }

    /// The value as a `T`; `None`, counted, when the key holds another type.
    fn decode<T: FromRedisValue>(&self, value: Value) -> Outcome<Option<T>> {
        if let Value::ServerError(e) = &value {
            if e.code() != "WRONGTYPE" {
                return Err(self.failed(&e.clone().into()));
            }
            self.registry.count_corrupt(1);
            return Ok(None);
        }
        redis::from_redis_value(value).map(Some).map_err(|_| self.unreadable())
    }

    fn echo(&self) -> String {
        format!("{:x}", self.registry.calls.fetch_add(1, Ordering::Relaxed))
    }

    fn failed(&self, error: &RedisError) -> RegistryError {
        match &self.with {
            Some(node) => self.refused(self.registry.nodes.failed(node, error)),
            None => RegistryError::Unknown("no server was asked".to_owned()),
        }
    }

    /// After a step that acted nothing is definite.
    fn refused(&self, error: RegistryError) -> RegistryError {
        match error {
            RegistryError::Definite(why) if !self.acted => RegistryError::Definite(why),
            RegistryError::Definite(why) | RegistryError::Unknown(why) => RegistryError::Unknown(why),
        }
    }

    fn answered(&self) {
        if let Some(node) = &self.with {
            node.answered();
        }
    }

    fn misaligned(&self) -> RegistryError {
        self.registry.misaligned.fetch_add(1, Ordering::Relaxed);
        if let Some(node) = &self.with {
            node.abandon("a reply belonged to another request");
        }
        RegistryError::Unknown("the reply belonged to another request".to_owned())
    }

    fn unreadable(&self) -> RegistryError {
        self.registry.count_corrupt(1);
        RegistryError::Unknown("the reply could not be read".to_owned())
    }
}

/// A script where its slot is about to be: loaded first, for a failed EVALSHA
/// would use the ASKING up.
async fn invoke_asking(
    con: &mut MultiplexedConnection,
    script: &Script,
    keys: &[String],
    echo: &str,
    args: &[Vec<u8>],
) -> Result<Vec<Vec<u8>>, RedisError> {
    script.load_async(con).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("ASKING").ignore().cmd("EVALSHA").arg(script.get_hash()).arg(keys.len()).arg(keys).arg(echo).arg(args);
    let (parts,) = pipe.query_async(con).await?;
    Ok(parts)
}

/// A read command on one key.
fn on(command: &str, key: String) -> (String, Cmd) {
    let mut cmd = redis::cmd(command);
    cmd.arg(&key);
    (key, cmd)
}

/// What a script answered after its echo.
struct Reply {
    status: String,
    rest: Vec<Vec<u8>>,
}

impl Reply {
    fn status(&self) -> &str {
        &self.status
    }
    /// Part `n` as text; empty, which nothing here parses, when it is none.
    fn text(&self, n: usize) -> &str {
        self.rest.get(n).and_then(|raw| std::str::from_utf8(raw).ok()).unwrap_or_default()
    }
    fn done_or_stale(&self) -> RegistryReply {
        if self.status == "done" { RegistryReply::Done } else { RegistryReply::Stale }
    }
}

fn exposes(located: &Located, connector: &str) -> bool {
    located.connectors.iter().any(|ad| ad.name.as_str() == connector)
}

fn runs(leases: &BTreeMap<Name, (Incarnation, Option<Name>)>, replica: &Name, incarnation: Incarnation) -> bool {
    leases.get(replica).is_some_and(|(holder, _)| *holder == incarnation)
}

fn name(raw: &[u8]) -> Option<Name> {
    Name::new(std::str::from_utf8(raw).ok()?).ok()
}

fn fence_args(hub: &HubRun, fence: Fence) -> [String; 4] {
    [hub.replica_id.to_string(), hub.incarnation.to_string(), fence.epoch.to_string(), fence.nonce.to_string()]
}

fn connectors_json(connectors: &[ConnectorAd]) -> Outcome<String> {
    serde_json::to_string(connectors).map_err(|e| RegistryError::Definite(e.to_string()))
}

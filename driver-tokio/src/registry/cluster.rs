//! A Redis Cluster: one connection to each of its masters, and the map that
//! says which of them holds a key. Owns the questions for that map: at the
//! start, when a connection is lost, when a server says that a slot is not (any
//! more) its own, and from time to time.
//!
//! Keeps: a command goes to one server, once; it goes to another one only after
//! an answer that says it did not happen (MOVED, ASK). While a server is away
//! its slots are refused at once, and those of the others served. The crate's
//! own client for clusters is not used: it sends commands again after errors
//! that leave open whether they happened.
//!
//! Must not know: operations, records.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nowconnect_core::registry::RegistryError;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError, Value};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::connection::{Borrowed, Connection, RedisTimeouts, describe};
use super::place::Servers;
use super::slots::{SlotMap, redirection, slot};

/// Longest pauses between dials after which a map that serves is asked anew.
const ASK_AGAIN_TICKS: u32 = 3;

/// The masters of a cluster.
pub(super) struct Cluster {
    shared: Arc<Shared>,
    supervisor: JoinHandle<()>,
}

struct Shared {
    servers: Servers,
    timeouts: RedisTimeouts,
    state: Mutex<Arc<State>>,
    /// Held while the map is asked, so that many who need it ask once.
    asking: tokio::sync::Mutex<()>,
    /// A connection was lost, or a server does not hold what the map says.
    stale: Arc<Notify>,
    /// Who is asked first next time: a node that is cut off from the others must
    /// not decide for ever.
    turn: AtomicUsize,
    /// Connections made to servers that are no masters any more.
    retired: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Rises with each new map.
    version: u64,
    map: SlotMap,
    masters: BTreeMap<String, Arc<Connection>>,
    /// Why there is no map.
    why: String,
}

/// Where a command has to go instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Redirect {
    address: String,
    /// For this command only, announced by ASKING: its slot is being moved.
    pub(super) ask: bool,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("name", &self.shared.servers.name()).field("up", &self.is_up()).finish()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl Cluster {
    /// Asks for the map and connects to all masters; what fails goes on in the
    /// background.
    pub(super) async fn open(servers: Servers, timeouts: RedisTimeouts) -> Self {
        let shared = Arc::new(Shared {
            servers,
            timeouts,
            state: Mutex::new(Arc::new(State { why: "not connected yet".to_owned(), ..State::default() })),
            asking: tokio::sync::Mutex::default(),
            stale: Arc::default(),
            turn: AtomicUsize::new(0),
            retired: AtomicU64::new(0),
        });
        shared.refresh(0).await;
        let supervisor = tokio::spawn(Arc::clone(&shared).supervise());
        Self { shared, supervisor }
    }

    /// Every slot has a master, and every master a connection.
    pub(super) fn is_up(&self) -> bool {
        self.shared.state().serves()
    }

    /// Connections made so far, to all servers together.
    pub(super) fn connects(&self) -> u64 {
        let now: u64 = self.shared.state().masters.values().map(|c| c.connects()).sum();
        now + self.shared.retired.load(Ordering::Relaxed)
    }

    /// A connection to the master that holds `key`, or the refusal while there
    /// is none.
    pub(super) fn holder(&self, key: &str) -> Result<Borrowed, RegistryError> {
        let state = self.shared.state();
        match state.map.holder(slot(key)).and_then(|address| state.masters.get(address)) {
            Some(master) => master.borrow(),
            None if state.version == 0 => {
                let (name, why) = (self.shared.servers.name(), &state.why);
                Err(RegistryError::Definite(format!("not connected to {name}: {why}")))
            }
            None => {
                self.shared.stale.notify_one();
                Err(RegistryError::Definite("the slot of this key is served by no master of the cluster".to_owned()))
            }
        }
    }

    /// Whether an error says that a command did not happen here and where it
    /// belongs; `from` is where it was sent.
    pub(super) fn redirect(from: &Borrowed, error: &RedisError) -> Option<Redirect> {
        let (target, _) = error.redirect_node()?;
        Some(Redirect { address: redirection(target, from.address())?, ask: error.code() == Some("ASK") })
    }

    /// The connection a redirection leads to. A master that is not known yet is
    /// asked for first.
    pub(super) async fn follow(&self, redirect: &Redirect) -> Result<Borrowed, RegistryError> {
        let state = self.shared.state();
        let known = state.masters.get(&redirect.address).cloned();
        if !redirect.ask || known.is_none() {
            let before = state.version;
            drop(state);
            if known.is_some() {
                self.shared.stale.notify_one();
            } else {
                self.shared.refresh(before).await;
            }
        }
        match known.or_else(|| self.shared.state().masters.get(&redirect.address).cloned()) {
            Some(master) => master.borrow(),
            None if redirect.ask => self.shared.visit(&redirect.address).await,
            None => {
                Err(RegistryError::Definite("a slot was moved to a server that its cluster does not name".to_owned()))
            }
        }
    }

    /// A server refused for the whole cluster, or took a slot for another's.
    pub(super) fn doubt(&self) {
        self.shared.stale.notify_one();
    }
}

impl State {
    fn serves(&self) -> bool {
        let up = |address| self.masters.get(address).is_some_and(|c| c.is_up());
        self.map.is_whole() && self.map.masters().into_iter().all(up)
    }
}

impl Shared {
    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks at once when something changed, soon while not everything serves,
    /// and now and then.
    async fn supervise(self: Arc<Self>) {
        let mut pause = self.timeouts.backoff_min;
        loop {
            let wait = if self.state().serves() {
                pause = self.timeouts.backoff_min;
                self.timeouts.backoff_max.saturating_mul(ASK_AGAIN_TICKS)
            } else {
                pause = pause.saturating_mul(2).min(self.timeouts.backoff_max);
                pause
            };
            let stale = self.stale.notified();
            tokio::pin!(stale);
            tokio::select! {
                // A storm of redirections is one question.
                () = &mut stale => tokio::time::sleep(self.timeouts.backoff_min).await,
                () = tokio::time::sleep(wait) => {}
            }
            self.refresh(self.state().version).await;
        }
    }

    /// Asks who holds what, unless somebody else did since version `seen`.
    async fn refresh(&self, seen: u64) {
        let _asking = self.asking.lock().await;
        let before = self.state();
        if before.version > seen {
            return;
        }
        match self.ask_any(&before).await {
            Ok(map) if map == before.map && map.masters().into_iter().all(|m| before.masters.contains_key(m)) => {}
            Ok(map) => self.install(&before, map).await,
            Err(why) => {
                tracing::debug!(event = "registry_dial_failed", address = %self.servers.name(), why, "no map of slots");
                if before.version == 0 {
                    let state = State { why, ..State::default() };
                    *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
                }
            }
        }
    }

    /// A server that takes its first slot is in no map yet. What was dialled is
    /// kept until the next map.
    async fn visit(&self, address: &str) -> Result<Borrowed, RegistryError> {
        let _asking = self.asking.lock().await;
        let before = self.state();
        let guest = match before.masters.get(address) {
            Some(guest) => Arc::clone(guest),
            None => {
                let node = self.servers.node(address).map_err(RegistryError::Definite)?;
                Arc::new(Connection::open(node, self.timeouts, None).await)
            }
        };
        let mut masters = before.masters.clone();
        masters.insert(address.to_owned(), Arc::clone(&guest));
        let state = State { version: before.version, map: before.map.clone(), masters, why: String::new() };
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        guest.borrow()
    }

    /// Keeps the connections to masters that stay, and dials the new ones, all
    /// at once.
    async fn install(&self, before: &State, map: SlotMap) {
        let mut masters = BTreeMap::new();
        let mut dials = Vec::new();
        for address in map.masters() {
            match before.masters.get(address) {
                Some(master) => drop(masters.insert(address.to_owned(), Arc::clone(master))),
                None => match self.servers.node(address) {
                    Ok(node) => {
                        let open = Connection::open(node, self.timeouts, Some(Arc::clone(&self.stale)));
                        dials.push((address.to_owned(), tokio::spawn(open)));
                    }
                    Err(why) => {
                        tracing::warn!(event = "registry_disconnected", address, why, "a master cannot be dialled");
                    }
                },
            }
        }
        for (address, dial) in dials {
            if let Ok(master) = dial.await {
                masters.insert(address, Arc::new(master));
            }
        }
        let gone = before.masters.iter().filter(|(address, _)| !masters.contains_key(*address));
        self.retired.fetch_add(gone.map(|(_, c)| c.connects()).sum(), Ordering::Relaxed);
        tracing::info!(
            event = "registry_slots",
            masters = masters.len(),
            whole = map.is_whole(),
            "who holds which slots"
        );
        let state = State { version: before.version + 1, map, masters, why: String::new() };
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
    }

    /// The first node that sees its cluster well decides; without any the first
    /// that answers, if nothing is known yet. Connections that stand are used,
    /// and the nodes of the URL dialled if those do not tell.
    async fn ask_any(&self, known: &State) -> Result<SlotMap, String> {
        let patience = self.timeouts.op.min(self.timeouts.connect);
        let mut why = "none of its nodes could be asked".to_owned();
        let mut second_best = None;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let rotated = |n: usize| (0..n).map(move |ix| (ix + turn) % n);
        let standing: Vec<Borrowed> = known.masters.values().filter_map(|c| c.borrow().ok()).collect();
        let mut heard = |host: &str, answer: Result<Answer, String>| match answer {
            Ok(Answer { good: true, map }) => Some(map),
            Ok(Answer { good: false, map }) => {
                why = format!("{host} says that its cluster is down");
                second_best.get_or_insert(map);
                None
            }
            Err(no) => {
                why = no;
                None
            }
        };
        for ix in rotated(standing.len()) {
            let Some(borrowed) = standing.get(ix) else { continue };
            let answer = within(patience, question(&mut borrowed.con.clone(), borrowed.address())).await;
            if let Some(map) = heard(borrowed.address(), answer) {
                return Ok(map);
            }
        }
        let hosts = self.servers.nodes();
        for ix in rotated(hosts.len()) {
            let Some(host) = hosts.get(ix) else { continue };
            if let Some(map) = heard(host, within(patience, self.ask_seed(host, patience)).await) {
                return Ok(map);
            }
        }
        match second_best {
            Some(map) if known.version == 0 => Ok(map),
            Some(_) | None => Err(why),
        }
    }

    async fn ask_seed(&self, host: &str, patience: Duration) -> Result<Answer, String> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(patience)).set_response_timeout(Some(patience));
        let (client, _) = self.servers.node(host)?.master(patience).await?;
        let mut con = client.get_multiplexed_async_connection_with_config(&config).await.map_err(|e| describe(&e))?;
        question(&mut con, host).await
    }
}

/// What a node says of its cluster.
struct Answer {
    /// It can reach enough of the others.
    good: bool,
    map: SlotMap,
}

async fn within<T>(patience: Duration, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(patience, work).await {
        Ok(done) => done,
        Err(_) => Err("no answer in time".to_owned()),
    }
}

/// Asks the node at `address`.
async fn question(con: &mut MultiplexedConnection, address: &str) -> Result<Answer, String> {
    let mut questions = redis::pipe();
    questions.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("SLOTS").ignore_errors();
    let answers: Vec<Value> = questions.query_async(con).await.map_err(|e| describe(&e))?;
    let [info, slots] = &*answers else { return Err("expected two replies to two commands".to_owned()) };
    if let Value::ServerError(error) = slots {
        return Err(describe(&error.clone().into()));
    }
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let map = SlotMap::read(slots, host).map_err(str::to_owned)?;
    // Without the right to ask for INFO the map has to do.
    let info: Option<String> = redis::from_redis_value(info.clone()).ok();
    Ok(Answer { good: info.is_none_or(|info| !info.contains("cluster_state:fail")), map })
}

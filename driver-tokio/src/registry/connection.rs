//! One connection to one Redis server at a time, and when to give it up. Owns dialling
//! with capped back-off in the background, the classification of errors into
//! "did not happen" and "may have happened", and the rule that two time-outs in
//! a row or a server that is no longer the writable master end the connection,
//! so that the next one resolves the address anew (planted bug 48).
//!
//! While there is no connection, callers are refused at once (planted bug 49).
//! The crate's ConnectionManager is not used: it keeps callers waiting through
//! its whole retry cycle and never reconnects after time-outs.
//!
//! Must not know: operations, records. Never logs or returns server texts or
//! the URL: both can hold credentials.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nowconnect_core::registry::RegistryError;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError, Value};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::advice;
use super::place::Servers;

/// Time-outs in a row after which the connection counts as dead.
const TIMEOUTS_MAX: u32 = 2;

/// Back-offs between two questions to Sentinels while a connection stands.
const ASK_AGAIN_TICKS: u32 = 3;

/// Reasons of failed dials that are told in warnings until one succeeds.
const REASONS_TOLD: usize = 8;

/// Deadlines of the Redis client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedisTimeouts {
    /// One operation, from the call to its reply.
    pub op: Duration,
    /// Connecting, logging in and the first questions, together.
    pub connect: Duration,
    /// Pause before the second dial in a row.
    pub backoff_min: Duration,
    /// Longest pause between dials.
    pub backoff_max: Duration,
}

impl Default for RedisTimeouts {
    fn default() -> Self {
        Self {
            op: Duration::from_millis(500),
            connect: Duration::from_secs(2),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
        }
    }
}

/// A connection that comes back by itself.
pub(super) struct Connection {
    shared: Arc<Shared>,
    supervisor: JoinHandle<()>,
}

struct Shared {
    servers: Servers,
    config: AsyncConnectionConfig,
    timeouts: RedisTimeouts,
    /// Host and port, socket path or name: no credentials.
    name: String,
    state: Mutex<State>,
    lost: Notify,
    /// Who else wants to know that a connection was lost.
    watcher: Option<Arc<Notify>>,
    connects: AtomicU64,
    advised: AtomicBool,
    /// Why dials failed since the last one that did not.
    told: Mutex<BTreeSet<String>>,
}

enum State {
    Down { why: String },
    Up { con: MultiplexedConnection, address: String, generation: u64, timeouts: u32, served: bool },
}

/// A connection borrowed for one operation.
pub(super) struct Borrowed {
    pub(super) con: MultiplexedConnection,
    generation: u64,
    of: Arc<Shared>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("name", &self.shared.name).field("up", &self.is_up()).finish()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl Connection {
    /// Makes the first dial; when that fails the dials go on in the background.
    /// `watcher` hears of every loss.
    pub(super) async fn open(servers: Servers, timeouts: RedisTimeouts, watcher: Option<Arc<Notify>>) -> Self {
        let name = servers.name();
        let shared = Arc::new(Shared {
            servers,
            // The deadline of an operation is ours, over all of its commands.
            config: AsyncConnectionConfig::new()
                .set_connection_timeout(Some(timeouts.connect))
                .set_response_timeout(None),
            timeouts,
            name,
            state: Mutex::new(State::Down { why: "not connected yet".to_owned() }),
            lost: Notify::new(),
            watcher,
            connects: AtomicU64::new(0),
            advised: AtomicBool::new(false),
            told: Mutex::default(),
        });
        shared.dial().await;
        let supervisor = tokio::spawn(Arc::clone(&shared).supervise());
        Self { shared, supervisor }
    }

    /// The connection, or the refusal while there is none.
    pub(super) fn borrow(&self) -> Result<Borrowed, RegistryError> {
        match &*self.shared.state() {
            State::Up { con, generation, .. } => {
                Ok(Borrowed { con: con.clone(), generation: *generation, of: Arc::clone(&self.shared) })
            }
            State::Down { why } => {
                Err(RegistryError::Definite(format!("not connected to Redis at {}: {why}", self.shared.name)))
            }
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.shared.is_up()
    }

    /// How often a connection was established.
    pub(super) fn connects(&self) -> u64 {
        self.shared.connects.load(Ordering::Relaxed)
    }
}

impl Borrowed {
    /// Where it leads, without credentials.
    pub(super) fn address(&self) -> &str {
        &self.of.name
    }

    /// An operation got its reply.
    pub(super) fn answered(&self) {
        if let State::Up { generation, timeouts, served, .. } = &mut *self.of.state()
            && *generation == self.generation
        {
            *timeouts = 0;
            *served = true;
        }
    }

    /// An operation got no reply in time.
    pub(super) fn timed_out(&self) {
        let dead = match &mut *self.of.state() {
            State::Up { generation, timeouts, .. } if *generation == self.generation => {
                *timeouts += 1;
                *timeouts >= TIMEOUTS_MAX
            }
            State::Up { .. } | State::Down { .. } => false,
        };
        if dead {
            self.abandon("it did not answer twice in a row");
        }
    }

    /// Closes this connection, unless a newer one took its place.
    pub(super) fn abandon(&self, why: &str) {
        self.of.abandon(self.generation, why);
    }

    /// What an error means for the operation; ends the connection when it says
    /// that this is not the server to talk to.
    pub(super) fn failed(&self, error: &RedisError) -> RegistryError {
        let verdict = classify(error);
        let why = describe(error);
        if verdict.abandon {
            self.abandon(&why);
        } else if error.code().is_some_and(|code| !matches!(code, "NOSCRIPT" | "TRYAGAIN")) && self.of.is_news(&why) {
            let address = &self.of.name;
            tracing::warn!(event = "registry_refused", %address, why, "Redis does not do what a hub asks of it");
        }
        verdict.outcome
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_up(&self) -> bool {
        matches!(&*self.state(), State::Up { .. })
    }

    fn abandon(&self, of_generation: u64, why: &str) {
        let mut state = self.state();
        if matches!(&*state, State::Up { generation, .. } if *generation == of_generation) {
            tracing::warn!(event = "registry_disconnected", address = %self.name, why, "Redis connection given up");
            *state = State::Down { why: why.to_owned() };
            drop(state);
            self.lost.notify_one();
            if let Some(watcher) = &self.watcher {
                watcher.notify_one();
            }
        }
    }

    async fn supervise(self: Arc<Self>) {
        let mut pause = self.timeouts.backoff_min;
        loop {
            while self.is_up() {
                self.wait_for_loss(&mut pause).await;
            }
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(self.timeouts.backoff_max);
            self.dial().await;
        }
    }

    /// Only a connection that answered something resets the pause: a server
    /// that accepts and fails must not be dialled in a tight loop (L8).
    async fn wait_for_loss(&self, pause: &mut Duration) {
        let mut ticks = 0_u32;
        loop {
            let lost = self.lost.notified();
            tokio::pin!(lost);
            let tick = tokio::time::sleep(self.timeouts.backoff_max);
            tokio::select! {
                () = &mut lost => return,
                () = tick => {}
            }
            ticks += 1;
            if self.servers.moves() && ticks.is_multiple_of(ASK_AGAIN_TICKS) {
                self.ask_again().await;
            }
            if matches!(&*self.state(), State::Up { served: true, .. }) {
                *pause = self.timeouts.backoff_min;
            }
        }
    }

    /// Whether an operator has not been told this reason since there was a
    /// connection. A server that is away is dialled every second.
    fn is_news(&self, why: &str) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.len() < REASONS_TOLD && told.insert(why.to_owned())
    }

    async fn dial(&self) {
        let outcome = match tokio::time::timeout(self.timeouts.connect, self.establish()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no connection within {} ms", self.timeouts.connect.as_millis())),
        };
        match &outcome {
            Ok(_) => self.told.lock().unwrap_or_else(PoisonError::into_inner).clear(),
            Err(why) if self.is_news(why) => {
                tracing::warn!(event = "registry_dial_failed", address = %self.name, why, "Redis dial failed");
            }
            Err(why) => {
                tracing::debug!(event = "registry_dial_failed", address = %self.name, why, "Redis dial failed");
            }
        }
        let mut state = self.state();
        match outcome {
            Ok((con, address)) => {
                let generation = self.connects.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::info!(event = "registry_connected", %address, "connected to Redis");
                *state = State::Up { con, address, generation, timeouts: 0, served: false };
            }
            Err(why) => *state = State::Down { why },
        }
    }

    /// Connects and makes sure that this server is a master that answers.
    async fn establish(&self) -> Result<(MultiplexedConnection, String), String> {
        let (client, address) = self.servers.master(self.timeouts.connect / 2).await?;
        let mut con =
            client.get_multiplexed_async_connection_with_config(&self.config).await.map_err(|e| describe(&e))?;
        let mut questions = redis::pipe();
        questions.cmd("PING").cmd("ROLE").ignore_errors();
        let answers: Vec<Value> = questions.query_async(&mut con).await.map_err(|e| describe(&e))?;
        let [ping, role] = &*answers else {
            return Err("expected two replies to the first two commands".to_owned());
        };
        if let Value::ServerError(e) = ping {
            return Err(format!("the server answers {}", code_only(e.code())));
        }
        // Without the right to ask for ROLE the first write will tell (READONLY).
        if let Value::Array(items) = role
            && let Some(Value::BulkString(role)) = items.first()
            && role != b"master"
        {
            return Err(format!("expected a master, this server is a replica; {}", self.servers.if_replica()));
        }
        if !self.advised.swap(true, Ordering::Relaxed) {
            for advice in advice::ask(&mut con, self.servers.clustered()).await {
                tracing::warn!(event = "registry_advice", about = advice.about, address, "{}", advice.text);
            }
        }
        Ok((con, address))
    }

    /// Sentinels may have named another master while the old one still answers
    /// here (R3).
    async fn ask_again(&self) {
        let (generation, before) = match &*self.state() {
            State::Up { generation, address, .. } => (*generation, address.clone()),
            State::Down { .. } => return,
        };
        if let Ok((_, now)) = self.servers.master(self.timeouts.op).await
            && now != before
        {
            self.abandon(generation, "its Sentinels name another master");
        }
    }
}

struct Verdict {
    outcome: RegistryError,
    abandon: bool,
}

/// Conservative: `Definite` only for answers a server gives instead of
/// executing. A script that failed in its middle, a broken connection and a
/// reply that cannot be read leave it open what happened.
fn classify(error: &RedisError) -> Verdict {
    let text = describe(error);
    let (definite, abandon) = match error.code() {
        Some("READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "NOAUTH" | "WRONGPASS" | "MOVED" | "ASK") => {
            (true, true)
        }
        Some(
            "NOSCRIPT" | "NOPERM" | "OOM" | "BUSY" | "MISCONF" | "NOREPLICAS" | "TRYAGAIN" | "CROSSSLOT" | "NCEPOCH",
        ) => (true, false),
        // Before 7.0 an error inside a script comes as ERR with the cause in its text.
        Some(_) => (false, error.detail().is_some_and(|d| d.contains("-READONLY") || d.contains("-MASTERDOWN"))),
        None => (false, true),
    };
    let text = if error.code() == Some("NCEPOCH") { nowconnect_core::registry::epochs_used_up() } else { text };
    let outcome = if definite { RegistryError::Definite(text) } else { RegistryError::Unknown(text) };
    Verdict { outcome, abandon }
}

/// Category and code, never the server's text: it may quote arguments, and
/// those of AUTH are credentials.
pub(super) fn describe(error: &RedisError) -> String {
    match error.code() {
        Some(code) => format!("the server answered {}", code_only(code)),
        None if error.is_connection_refusal() => "connection refused".to_owned(),
        None if error.is_timeout() => "timed out".to_owned(),
        None => error.category().to_owned(),
    }
}

fn code_only(code: &str) -> &str {
    let plain = code.len() <= 16 && code.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    if plain { code } else { "an error" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: &str, detail: &str) -> RedisError {
        match redis::parse_redis_value(format!("-{code} {detail}\r\n").as_bytes()) {
            Ok(Value::ServerError(e)) => e.into(),
            other => panic!("expected a server error, got {other:?}"),
        }
    }

    #[test]
    fn only_answers_instead_of_execution_are_definite() {
        for (code, detail, definite, abandon) in [
            ("READONLY", "You can't write against a read only replica.", true, true),
            ("LOADING", "Redis is loading the dataset in memory", true, true),
            ("MASTERDOWN", "Link with MASTER is down", true, true),
            ("NOAUTH", "Authentication required.", true, true),
            ("OOM", "command not allowed when used memory > 'maxmemory'.", true, false),
            ("NOPERM", "no permissions", true, false),
            ("BUSY", "Redis is busy running a script.", true, false),
            ("NCEPOCH", "used up", true, false),
            ("ERR", "user_script:9: attempt to index a nil value", false, false),
            ("ERR", "Error running script: @user_script:3: -READONLY You can't write", false, true),
            ("WRONGTYPE", "Operation against a key", false, false),
            ("SOMETHINGNEW", "x", false, false),
        ] {
            let verdict = classify(&server(code, detail));
            assert_eq!(matches!(verdict.outcome, RegistryError::Definite(_)), definite, "{code} {detail}");
            assert_eq!(verdict.abandon, abandon, "{code} {detail}");
        }
        let broken = RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        let verdict = classify(&broken);
        assert!(matches!(verdict.outcome, RegistryError::Unknown(_)) && verdict.abandon);
    }

    #[test]
    fn errors_repeat_no_credentials() {
        let error = server("ERR", "unknown command 'AUTH', with args beginning with: 'hunter2'");
        assert!(!describe(&error).contains("hunter2"));
        assert!(!format!("{}", classify(&error).outcome).contains("hunter2"));
    }
}

//! What of a Redis server's settings endangers the registry: asked once, said
//! in warnings that name the setting and how to change it (semantics 5). The
//! server may forbid the questions; then it is said what could not be checked.
//!
//! Must not know: how connections are made. Nothing here refuses to start.

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};

/// Oldest version the scripts are made for.
const VERSION: (u32, u32) = (6, 2);
/// Settings asked for.
const SETTINGS: [&str; 3] = ["maxmemory-policy", "appendonly", "save"];

/// One thing to tell the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Advice {
    /// Which of them; a stable word of the log line.
    pub(super) about: &'static str,
    /// What is wrong, and what to do.
    pub(super) text: String,
}

/// What the server said of itself.
#[derive(Clone, Debug, Default)]
struct Settings {
    /// `INFO server`, if allowed.
    info: Option<String>,
    /// The values of [`SETTINGS`], if allowed.
    values: [Option<String>; SETTINGS.len()],
}

/// Asks a server; nothing is said if it does not answer at all. `clustered`: it
/// is known to be a node of a cluster, and spoken to as one.
pub(super) async fn ask(con: &mut MultiplexedConnection, clustered: bool) -> Vec<Advice> {
    let mut questions: Pipeline = redis::pipe();
    questions.cmd("INFO").arg("server").ignore_errors();
    for setting in SETTINGS {
        questions.cmd("CONFIG").arg("GET").arg(setting);
    }
    let Ok(answers) = questions.query_async::<Vec<Value>>(con).await else { return Vec::new() };
    let mut answers = answers.into_iter();
    let info = answers.next().and_then(|v| redis::from_redis_value::<String>(v).ok());
    let mut settings = Settings { info, ..Settings::default() };
    for (slot, answer) in settings.values.iter_mut().zip(answers) {
        let pairs: Option<Vec<(String, String)>> = redis::from_redis_value(answer).ok();
        *slot = pairs.and_then(|pairs| pairs.into_iter().next()).map(|(_, value)| value);
    }
    settings.advice(clustered)
}

impl Settings {
    fn field(&self, name: &str) -> Option<&str> {
        self.info.as_deref()?.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    fn advice(&self, clustered: bool) -> Vec<Advice> {
        let mut all = Vec::new();
        let mut say = |about, text: String| all.push(Advice { about, text });
        let version = self.field("redis_version").and_then(|v| {
            let mut parts = v.split('.').map(|p| p.parse::<u32>().ok());
            Some((parts.next()??, parts.next()??))
        });
        match version {
            Some(v) if v < VERSION => say(
                "version",
                format!("Redis {}.{} is older than 6.2, which this version is made for: upgrade it", v.0, v.1),
            ),
            Some(_) => {}
            None => say(
                "unchecked",
                "the version of Redis could not be checked: allow INFO to this user (ACL +info), or see that it is 6.2 or newer"
                    .to_owned(),
            ),
        }
        if self.field("redis_mode") == Some("cluster") && !clustered {
            say(
                "cluster",
                "this server is a node of a Redis Cluster: steps on keys of other nodes fail; write redis-cluster:// instead of redis:// in ha.redis_url"
                    .to_owned(),
            );
        }
        let [policy, appendonly, save] = &self.values;
        if let Some(policy) = policy.as_deref().filter(|p| *p != "noeviction") {
            say(
                "eviction",
                format!(
                    "Redis may evict keys (maxmemory-policy is {}): set it to noeviction with CONFIG SET and in redis.conf; until then epochs depend on what agents remember",
                    plain(policy)
                ),
            );
        }
        match (appendonly.as_deref(), save.as_deref()) {
            (Some("yes") | None, _) => {}
            (Some(_), Some("")) => say(
                "persistence",
                "Redis restarts empty (appendonly is no and save is empty): set appendonly yes; until then hubs claim their agents again after a restart"
                    .to_owned(),
            ),
            (Some(_), _) => say(
                "persistence",
                "Redis restarts without its last writes (appendonly is no): set appendonly yes; until then hubs claim their agents again after a restart"
                    .to_owned(),
            ),
        }
        if policy.is_none() || appendonly.is_none() {
            say(
                "unchecked",
                "eviction and persistence of Redis could not be checked: allow CONFIG GET to this user (ACL +config|get), or see to maxmemory-policy noeviction and appendonly yes"
                    .to_owned(),
            );
        }
        all
    }
}

/// A value that is fit for a log line.
fn plain(value: &str) -> &str {
    let fit = value.len() <= 32 && value.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    if fit { value } else { "unknown" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(version: &str, policy: &str, appendonly: &str, save: &str) -> Settings {
        Settings {
            info: Some(format!("# Server\r\nredis_version:{version}\r\nredis_mode:standalone\r\n")),
            values: [policy, appendonly, save].map(|v| Some(v.to_owned())),
        }
    }

    fn topics(settings: &Settings) -> Vec<&'static str> {
        settings.advice(false).iter().map(|a| a.about).collect()
    }

    #[test]
    fn what_is_wrong_is_named_with_its_remedy() {
        assert_eq!(topics(&settings("7.0.15", "noeviction", "yes", "")), [""; 0]);
        assert_eq!(topics(&settings("6.2.0", "noeviction", "yes", "")), [""; 0]);
        for (s, about, says) in [
            (settings("6.0.16", "noeviction", "yes", ""), "version", "6.0 is older than 6.2"),
            (settings("7.2.4", "allkeys-lru", "yes", ""), "eviction", "allkeys-lru"),
            (settings("7.2.4", "noeviction", "no", ""), "persistence", "restarts empty"),
            (settings("7.2.4", "noeviction", "no", "60 1"), "persistence", "without its last writes"),
        ] {
            let advice = s.advice(false);
            assert_eq!(advice.len(), 1, "{advice:?}");
            assert!(advice[0].about == about && advice[0].text.contains(says), "{advice:?}");
        }
        let mut cluster = settings("7.0.0", "noeviction", "yes", "");
        cluster.info = cluster.info.map(|i| i.replace("standalone", "cluster"));
        assert_eq!(topics(&cluster), ["cluster"]);
        assert_eq!(cluster.advice(true), [], "where it is known to be one");
    }

    #[test]
    fn what_may_not_be_asked_is_said() {
        let silent = Settings::default();
        let advice = silent.advice(false);
        assert_eq!(topics(&silent), ["unchecked"; 2]);
        assert!(advice[0].text.contains("+info") && advice[1].text.contains("+config|get"), "{advice:?}");
        assert!(!settings("7.0.0", "x y\nz", "yes", "").advice(false)[0].text.contains('\n'));
    }
}

//! Where the registry is: `ha.redis_url` and what belongs to it, turned into
//! servers to dial. Owns the URL's forms, credentials and certificates from
//! files (read at every dial, so that rotated ones count with the next one), and
//! the question to Sentinels who the master is; where a cluster's nodes are is
//! asked in `cluster.rs`.
//!
//! Must not know: operations, when to give a connection up. Never logs or
//! returns a URL or what a file holds.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionInfo, IntoConnectionInfo as _, TlsCertificates, Value,
};

use crate::{secret, tls};

/// Longest password.
const PASSWORD_MAX_BYTES: u64 = 4096;
/// Largest PEM file.
const PEM_MAX_BYTES: u64 = 1 << 20;
/// Most Sentinels in one URL.
const SENTINELS_MAX: usize = 16;
/// Most nodes of a cluster in one URL; the others are learned from them.
const NODES_MAX: usize = 64;
/// Port of a Sentinel whose address names none.
const SENTINEL_PORT: u16 = 26379;
/// Port of a server whose address names none.
const SERVER_PORT: u16 = 6379;

/// `redis_url` or what belongs to it cannot be used. Does not repeat the URL:
/// it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RedisUrlError(String);

fn bad(text: &str) -> RedisUrlError {
    RedisUrlError(format!("ha.redis_url: {text} (the value is not shown)"))
}

const FORMS: &str = "expected redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss://..., redis+unix:///PATH, \
                     redis-sentinel://HOST[:PORT],HOST[:PORT].../MASTER[/DB] or redis-cluster://HOST[:PORT],HOST[:PORT]... \
                     (rediss-sentinel://, rediss-cluster:// with TLS)";

/// How to reach the registry.
#[derive(Clone, Default)]
pub struct RedisPlace {
    /// `ha.redis_url`.
    pub url: String,
    /// `ha.redis_password_file`: instead of a password in the URL.
    pub password_file: Option<PathBuf>,
    /// `ha.redis_tls.ca_bundle`: whom to trust; the system's roots when absent.
    pub ca_bundle: Option<PathBuf>,
    /// `ha.redis_tls.cert_file` and `key_file`: who we are.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl fmt::Debug for RedisPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisPlace(..)")
    }
}

/// The parts of a URL that names Sentinels.
struct Sentinels {
    tls: bool,
    /// `USER:PASSWORD@` of the servers, as written.
    login: String,
    sentinel_login: String,
    hosts: Vec<String>,
    master: String,
    /// `/DB?protocol=...`.
    tail: String,
}

/// The parts of a URL that names nodes of a cluster.
struct Nodes {
    tls: bool,
    /// `USER:PASSWORD@`, as written.
    login: String,
    hosts: Vec<String>,
    /// `?protocol=...`.
    tail: String,
}

enum Form {
    One(String),
    /// A node of a cluster that was asked for its map.
    Node(String),
    Sentinels(Sentinels),
    Cluster(Nodes),
}

/// Servers to dial.
pub(super) struct Servers {
    place: RedisPlace,
    form: Form,
}

impl Servers {
    /// Reads the URL and, once, the files.
    pub(super) fn new(place: RedisPlace) -> Result<Self, RedisUrlError> {
        let form = parse(&place.url)?;
        let servers = Self { place, form };
        if !servers.tls() && (servers.place.ca_bundle.is_some() || servers.place.identity.is_some()) {
            return Err(RedisUrlError(
                "ha.redis_tls: needs rediss://, rediss-sentinel:// or rediss-cluster:// in ha.redis_url".to_owned(),
            ));
        }
        for url in servers.urls() {
            servers.client(&url).map_err(RedisUrlError)?;
        }
        Ok(servers)
    }

    fn tls(&self) -> bool {
        match &self.form {
            Form::One(url) | Form::Node(url) => url.starts_with("rediss://"),
            Form::Sentinels(s) => s.tls,
            Form::Cluster(c) => c.tls,
        }
    }

    /// The URLs that are known without asking.
    fn urls(&self) -> Vec<String> {
        match &self.form {
            Form::One(url) | Form::Node(url) => vec![url.clone()],
            Form::Cluster(c) => c.hosts.iter().map(|h| c.server(h)).collect(),
            Form::Sentinels(s) => s.hosts.iter().map(|h| s.sentinel(h)).chain([s.server(&s.hosts[0])]).collect(),
        }
    }

    /// What this place is called in messages: no credentials.
    pub(super) fn name(&self) -> String {
        match &self.form {
            Form::One(url) | Form::Node(url) => url
                .as_str()
                .into_connection_info()
                .map_or_else(|_| "its address".to_owned(), |info| info.addr().to_string()),
            Form::Sentinels(s) => format!("{} (by Sentinel)", s.master),
            Form::Cluster(c) => format!("the cluster of {}", c.hosts.join(", ")),
        }
    }

    /// What a replica in the master's place means here.
    pub(super) const fn if_replica(&self) -> &'static str {
        match &self.form {
            Form::One(_) => "redis_url must name the master",
            Form::Sentinels(_) => "its Sentinels have not moved it yet",
            Form::Node(_) | Form::Cluster(_) => "its cluster has not moved its slots yet",
        }
    }

    /// Whether what is dialled are nodes of a cluster.
    pub(super) const fn clustered(&self) -> bool {
        matches!(self.form, Form::Node(_) | Form::Cluster(_))
    }

    /// The addresses of a cluster's nodes that the URL names; none if it names
    /// no cluster.
    pub(super) fn nodes(&self) -> &[String] {
        match &self.form {
            Form::Cluster(c) => &c.hosts,
            Form::One(_) | Form::Node(_) | Form::Sentinels(_) => &[],
        }
    }

    /// The server at `address`, with this place's login and certificates.
    pub(super) fn node(&self, address: &str) -> Result<Self, String> {
        let Form::Cluster(c) = &self.form else { return Err("expected redis-cluster:// in ha.redis_url".to_owned()) };
        let node = Self { place: self.place.clone(), form: Form::Node(c.server(address)) };
        for url in node.urls() {
            node.client(&url)?;
        }
        Ok(node)
    }

    /// Whether somebody has to be asked who the master is.
    pub(super) const fn moves(&self) -> bool {
        matches!(self.form, Form::Sentinels(_))
    }

    /// The server that takes writes now, and its address.
    pub(super) async fn master(&self, patience: Duration) -> Result<(Client, String), String> {
        let url = match &self.form {
            Form::One(url) | Form::Node(url) => url.clone(),
            Form::Cluster(c) => c.hosts.first().map(|h| c.server(h)).unwrap_or_default(),
            Form::Sentinels(s) => s.server(&self.ask_sentinels(s, patience).await?),
        };
        let client = self.client(&url)?;
        let address = client.get_connection_info().addr().to_string();
        Ok((client, address))
    }

    /// The first Sentinel that answers decides; each has its share of the time.
    async fn ask_sentinels(&self, s: &Sentinels, patience: Duration) -> Result<String, String> {
        let each = patience / u32::try_from(s.hosts.len()).unwrap_or(u32::MAX).max(1);
        let mut why = String::new();
        for host in &s.hosts {
            match tokio::time::timeout(each, self.ask_sentinel(s, host, each)).await {
                Ok(Ok(master)) => return Ok(master),
                Ok(Err(no)) => why = no,
                Err(_) => why = "no answer in time".to_owned(),
            }
        }
        Err(format!("none of {} Sentinels names the master of {}: {why}", s.hosts.len(), s.master))
    }

    async fn ask_sentinel(&self, s: &Sentinels, host: &str, patience: Duration) -> Result<String, String> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(patience)).set_response_timeout(Some(patience));
        let client = self.client(&s.sentinel(host))?;
        let mut con =
            client.get_multiplexed_async_connection_with_config(&config).await.map_err(|e| e.category().to_owned())?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(&s.master);
        let answer: Value = question.query_async(&mut con).await.map_err(|e| e.category().to_owned())?;
        if answer == Value::Nil {
            return Err("it knows no master of that name".to_owned());
        }
        let (host, port): (String, u16) =
            redis::from_redis_value(answer).map_err(|_| "expected an address and a port".to_owned())?;
        Ok(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
    }

    /// A client of one server, with what the files hold now.
    fn client(&self, url: &str) -> Result<Client, String> {
        let info = url.into_connection_info().map_err(|_| bad(FORMS).0)?;
        let keepalive =
            TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(1)).with_retries(3);
        let tcp =
            TcpSettings::default().set_nodelay(true).set_keepalive(keepalive).set_user_timeout(Duration::from_secs(3));
        let mut info: ConnectionInfo = info.set_tcp_settings(tcp);
        let is_server = match &self.form {
            Form::One(_) | Form::Node(_) | Form::Cluster(_) => true,
            Form::Sentinels(s) => !s.hosts.iter().any(|h| s.sentinel(h) == url),
        };
        if let Some(file) = self.place.password_file.as_ref().filter(|_| is_server) {
            let password = secret::read("ha.redis_password_file", file, PASSWORD_MAX_BYTES)?;
            let login = info.redis_settings().clone().set_password(password);
            info = info.set_redis_settings(login);
        }
        if !self.tls() {
            return Client::open(info).map_err(|_| bad(FORMS).0);
        }
        let client_tls = match &self.place.identity {
            Some((cert, key)) => Some(ClientTlsConfig {
                client_cert: certificates("ha.redis_tls.cert_file", cert)?,
                client_key: pem("ha.redis_tls.key_file", key)?,
            }),
            None => None,
        };
        let root_cert =
            self.place.ca_bundle.as_deref().map(|ca| certificates("ha.redis_tls.ca_bundle", ca)).transpose()?;
        Client::build_with_tls(info, TlsCertificates { client_tls, root_cert })
            .map_err(|e| format!("ha.redis_tls: these files cannot be used: {}", e.category()))
    }
}

/// A PEM file with certificates: without any, nobody would be trusted or shown.
fn certificates(key: &'static str, path: &Path) -> Result<Vec<u8>, String> {
    let bytes = pem(key, path)?;
    tls::certificates_in(key, path, &bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

fn pem(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(path).map_err(|e| format!("{key}: {}: {e}", path.display()))?.len();
    if size > PEM_MAX_BYTES {
        return Err(format!("{key}: {}: expected a PEM file of at most {PEM_MAX_BYTES} bytes", path.display()));
    }
    std::fs::read(path).map_err(|e| format!("{key}: {}: {e}", path.display()))
}

/// Whether the files can be used, without dialling.
///
/// # Errors
/// What was expected.
pub(crate) fn check_place(place: RedisPlace) -> Result<(), RedisUrlError> {
    Servers::new(place).map(drop)
}

/// Whether a URL can be used, without dialling or opening a file.
///
/// # Errors
/// What was expected.
pub fn check_url(url: &str) -> Result<(), RedisUrlError> {
    let place = RedisPlace { url: url.to_owned(), ..RedisPlace::default() };
    let servers = Servers { form: parse(url)?, place };
    for url in servers.urls() {
        url.into_connection_info().map_err(|_| bad(FORMS))?;
    }
    Ok(())
}

fn parse(url: &str) -> Result<Form, RedisUrlError> {
    let (scheme, rest) = url.split_once("://").ok_or_else(|| bad(FORMS))?;
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    if !fragment.is_empty() {
        return Err(bad(
            "a # is not allowed: write it as %23 in a password; there is no #insecure, certificates are always verified",
        ));
    }
    match scheme {
        "redis" | "rediss" | "redis+unix" if !rest.is_empty() => Ok(Form::One(url.to_owned())),
        "redis-sentinel" => sentinels(rest, false).map(Form::Sentinels),
        "rediss-sentinel" => sentinels(rest, true).map(Form::Sentinels),
        "redis-cluster" => nodes(rest, false).map(Form::Cluster),
        "rediss-cluster" => nodes(rest, true).map(Form::Cluster),
        _ => Err(bad(FORMS)),
    }
}

/// The hosts of a list, each with a port.
fn with_ports(hosts: &str, port: u16) -> Vec<String> {
    let has_port = |h: &str| h.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
    hosts.split(',').map(|h| if has_port(h) { h.to_owned() } else { format!("{h}:{port}") }).collect()
}

fn nodes(rest: &str, tls: bool) -> Result<Nodes, RedisUrlError> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, db) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (format!("{login}@"), hosts),
        None => (String::new(), authority),
    };
    let hosts = with_ports(hosts, SERVER_PORT);
    if hosts.len() > NODES_MAX || hosts.iter().any(|h| h.starts_with(':')) {
        return Err(bad("expected 1 to 64 nodes of the cluster, HOST[:PORT] separated by commas"));
    }
    if !["", "0"].contains(&db) {
        return Err(bad("a cluster has database 0 only"));
    }
    let tail = match query {
        "" => String::new(),
        query if query.starts_with("protocol=") && !query.contains('&') => format!("/?{query}"),
        _ => return Err(bad("expected no parameter but protocol behind the nodes of a cluster")),
    };
    Ok(Nodes { tls, login, hosts, tail })
}

impl Nodes {
    fn server(&self, address: &str) -> String {
        let scheme = if self.tls { "rediss" } else { "redis" };
        format!("{scheme}://{}{address}{}", self.login, self.tail)
    }
}

fn sentinels(rest: &str, tls: bool) -> Result<Sentinels, RedisUrlError> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (format!("{login}@"), hosts),
        None => (String::new(), authority),
    };
    let hosts = with_ports(hosts, SENTINEL_PORT);
    if hosts.len() > SENTINELS_MAX || hosts.iter().any(|h| h.starts_with(':')) {
        return Err(bad("expected 1 to 16 Sentinels, HOST[:PORT] separated by commas"));
    }
    let (master, db) = path.split_once('/').unwrap_or((path, ""));
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if master.is_empty() || !master.chars().all(plain) {
        return Err(bad("expected the master's name behind the Sentinels, as in redis-sentinel://s1,s2,s3/mymaster"));
    }
    if !db.is_empty() && db.parse::<u16>().is_err() {
        return Err(bad("expected the number of a database behind the master's name"));
    }
    let (mut user, mut password, mut protocol) = ("", "", "");
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        match pair.split_once('=') {
            Some(("sentinel_username", value)) => user = value,
            Some(("sentinel_password", value)) => password = value,
            Some(("protocol", _)) => protocol = pair,
            _ => return Err(bad("expected no parameters but sentinel_username, sentinel_password and protocol")),
        }
    }
    let sentinel_login = if password.is_empty() { String::new() } else { format!("{user}:{password}@") };
    let tail = if protocol.is_empty() { format!("/{db}") } else { format!("/{db}?{protocol}") };
    Ok(Sentinels { tls, login, sentinel_login, hosts, master: master.to_owned(), tail })
}

impl Sentinels {
    const fn scheme(&self) -> &'static str {
        if self.tls { "rediss" } else { "redis" }
    }

    fn sentinel(&self, host: &str) -> String {
        format!("{}://{}{host}", self.scheme(), self.sentinel_login)
    }

    fn server(&self, address: &str) -> String {
        format!("{}://{}{address}{}", self.scheme(), self.login, self.tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_can_be_used() {
        for url in [
            "redis://r:6379/0",
            "redis://user:pa%40ss@r",
            "rediss://[::1]:6380/2?protocol=resp3",
            "redis+unix:///run/redis.sock",
            "redis-sentinel://s1/mymaster",
            "redis-sentinel://u:p@s1:1,s2:2,s3/mymaster/3?sentinel_username=a&sentinel_password=b",
            "rediss-sentinel://[::1]:26379/m?protocol=resp3",
            "redis-cluster://n1",
            "redis-cluster://u:p@n1:1,n2,[::1]:3/0?protocol=resp3",
            "rediss-cluster://n1:1,n2:2",
        ] {
            check_url(url).unwrap_or_else(|e| panic!("{url}: {e}"));
        }
    }

    #[test]
    fn others_are_refused_without_being_repeated() {
        for (url, says) in [
            ("", "expected redis://"),
            ("http://hunter2", "expected redis://"),
            ("redis://", "expected redis://"),
            ("redis://:hunter2@", "expected redis://"),
            ("redis://r:port/hunter2", "expected redis://"),
            ("rediss://hunter2#insecure", "always verified"),
            ("redis-cluster://", "1 to 64 nodes"),
            ("redis-cluster://a,,hunter2", "1 to 64 nodes"),
            ("redis-cluster://hunter2/3", "database 0 only"),
            ("redis-cluster://hunter2?protocol=resp3&x=1", "no parameter but protocol"),
            ("redis-cluster://a:hunter2:b", "expected redis://"),
            ("rediss-cluster://hunter2#insecure", "always verified"),
            ("redis-sentinel://hunter2:1", "master's name"),
            ("redis-sentinel://hunter2:1/", "master's name"),
            ("redis-sentinel:///mymaster", "1 to 16 Sentinels"),
            ("redis-sentinel://a,,hunter2/mymaster", "1 to 16 Sentinels"),
            ("redis-sentinel://a/mymaster/hunter2", "number of a database"),
            ("redis-sentinel://a/mymaster?hunter2=1", "no parameters but"),
        ] {
            let e = check_url(url).unwrap_err().to_string();
            assert!(e.contains(says) && e.starts_with("ha.redis_url") && !e.contains("hunter2"), "{url}: {e}");
        }
    }

    #[test]
    fn nodes_of_a_cluster_share_a_login() {
        let Ok(Form::Cluster(c)) = parse("rediss-cluster://u:p@n1:7,n2/0?protocol=resp3") else {
            panic!("expected a cluster")
        };
        assert_eq!(c.hosts, ["n1:7", "n2:6379"]);
        assert_eq!(c.server("10.0.0.1:1"), "rediss://u:p@10.0.0.1:1/?protocol=resp3");
    }

    #[test]
    fn sentinels_and_servers_have_logins_of_their_own() {
        let Ok(Form::Sentinels(s)) =
            parse("rediss-sentinel://u:p@s1:7,s2/mymaster/3?sentinel_username=a&sentinel_password=b&protocol=resp3")
        else {
            panic!("expected Sentinels")
        };
        assert_eq!(s.hosts, ["s1:7", "s2:26379"]);
        assert_eq!(s.sentinel("s1:7"), "rediss://a:b@s1:7");
        assert_eq!(s.server("10.0.0.1:6379"), "rediss://u:p@10.0.0.1:6379/3?protocol=resp3");
    }
}

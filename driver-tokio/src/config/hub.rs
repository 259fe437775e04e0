//! A hub's file, checked.
//!
//! Owns the rules that span keys: what `active` needs, when plain text is
//! tolerable, which timers must be ordered. Secure by default: everything that
//! weakens a hub needs an `insecure_` key (attack 61) and says so in a
//! warning. Opens no file; whether certificates and keys exist is seen by
//! `tls.rs` and `auth.rs`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use nowconnect_core::config::{
    Backoff, DrainTimes, HubConfig, Limits, ListenerConfig, Liveness, Mode, OnExpiry, OpenRule, OpenTimers,
    RegistryTimers, Selection,
};
use nowconnect_core::id::Name;

use super::raw::{self, HubFile};
use super::subst::Env;
use super::value::{At, Cidr, ListenTls, Place, Secret, WhenUnavailable, Wire};
use super::{AdminSetup, Check, ConfigErrors, Finding, MINUTE, MS_50, ParseOptions, SECOND, read};

/// Clients a listener takes at once unless it says otherwise.
const LISTENER_CONNECTIONS: u32 = 10_000;

/// Everything `nowconnect hub` runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSetup {
    /// For the core.
    pub core: HubConfig,
    /// Client ports, in the order of `core.listeners`.
    pub listeners: Vec<ListenerBind>,
    /// `/tunnel`, `/mesh`, `/healthz`, `/readyz`.
    pub http_bind: SocketAddr,
    /// TLS of that port, when the hub ends it itself.
    pub http_tls: Option<ServerTlsFiles>,
    /// HTTP status of `/readyz` while degraded: 200 or 503.
    pub degraded_status: u16,
    /// A port of its own for `/mesh`.
    pub mesh_listen: Option<MeshListen>,
    /// The hub's identity on the mesh.
    pub mesh_tls: Option<MeshTlsFiles>,
    /// Peers must show a certificate.
    pub require_mtls: bool,
    /// Encodings offered to peers.
    pub mesh_wire: Wire,
    /// `/metrics`; not served when absent.
    pub metrics_bind: Option<SocketAddr>,
    /// Status, metrics and health for the operator.
    pub admin: AdminSetup,
    /// Also expose the metric names of the enable page.
    pub legacy_metric_names: bool,
    /// Who may attach.
    pub auth: AuthSetup,
    /// The registry; in memory when absent.
    pub redis_url: Option<Secret>,
    /// File with the registry's password.
    pub redis_password_file: Option<PathBuf>,
    /// CAs of the registry, PEM file.
    pub redis_ca_bundle: Option<PathBuf>,
    /// Certificate and key for the registry, PEM files.
    pub redis_identity: Option<ServerTlsFiles>,
    /// Leaving.
    pub drain: DrainTimes,
    /// Connections a second that a port of HTTP takes.
    pub handshake_rate: u32,
    /// Handshakes at once from one address, when the file says how many.
    pub max_handshakes_per_address: Option<u32>,
    /// Whether the file gives `limits.memory_budget_bytes`; the default bows
    /// to the container's memory limit ([`HubSetup::fit_budget`]).
    pub memory_budget_given: bool,
    /// Worth saying, none of it fatal.
    pub warnings: Vec<Finding>,
}

impl HubSetup {
    /// Lowers a defaulted budget to half of the container's memory limit
    /// (semantics 3).
    pub fn fit_budget(&mut self, container_limit: Option<u64>) {
        if let (false, Some(limit)) = (self.memory_budget_given, container_limit) {
            let budget = &mut self.core.limits.memory_budget_bytes;
            *budget = (*budget).min((limit / 2).max(BUDGET_MIN));
        }
    }

    /// Handshakes at once from one IPv4 address or IPv6 /64: a quarter of all
    /// unless the file says otherwise, so that one address cannot take all.
    #[must_use]
    pub fn handshakes_per_address(&self) -> u32 {
        self.max_handshakes_per_address.unwrap_or(self.core.limits.max_handshakes.div_ceil(4))
    }
}

/// One client port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerBind {
    /// Its name.
    pub name: Name,
    /// Where it listens; port 0 lets the system choose.
    pub addr: SocketAddr,
    /// Ranges clients may come from; empty = everybody.
    pub allow: Vec<Cidr>,
    /// Clients at once.
    pub max_connections: u32,
    /// What happens while nothing serves its connector.
    pub when_unavailable: WhenUnavailable,
}

/// Certificate and key of a server, PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTlsFiles {
    /// The certificate and its intermediates.
    pub cert_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// A hub's identity on the mesh and the CAs it trusts there, PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshTlsFiles {
    /// CAs of the peers.
    pub ca_bundle: PathBuf,
    /// The certificate and its intermediates.
    pub cert_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// A port of its own for the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeshListen {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Who ends TLS there.
    pub tls: ListenTls,
}

/// How tokens are judged; `auth.rs` loads the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthSetup {
    /// Required `aud`.
    pub audience: String,
    /// Required `iss`; present whenever a key is.
    pub issuer: Option<String>,
    /// Algorithms keys may be used with; empty = the default of each key's type.
    pub algorithms: Vec<Algorithm>,
    /// PEM file with one public key.
    pub public_key_file: Option<PathBuf>,
    /// File with a shared secret.
    pub hmac_secret_file: Option<PathBuf>,
    /// JSON file with a key set.
    pub jwks_file: Option<PathBuf>,
    /// A key set by URL.
    pub jwks: Option<JwksSetup>,
    /// Longest lifetime of a token.
    pub max_lifetime: Duration,
    /// Clock difference tolerated.
    pub leeway: Duration,
}

/// A key set by URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwksSetup {
    /// `https://…`; `http://` on loopback only.
    pub url: String,
    /// CAs of that URL; the system's roots when absent.
    pub ca_bundle: Option<PathBuf>,
    /// Keeps the last good set over a restart.
    pub cache_file: Option<PathBuf>,
    /// Interval of fetching.
    pub refresh: Duration,
    /// How long the last good set is used without another.
    pub max_age: Duration,
}

impl AuthSetup {
    /// Whether any key is named.
    #[must_use]
    pub const fn usable(&self) -> bool {
        self.public_key_file.is_some()
            || self.hmac_secret_file.is_some()
            || self.jwks_file.is_some()
            || self.jwks.is_some()
    }
}

/// Smallest budget a hub or agent is run with.
pub(super) const BUDGET_MIN: u64 = 4 << 20;

pub(super) fn place<T>(leaf: Option<&super::Leaf<T>>) -> Option<Place> {
    leaf.and_then(|l| l.at)
}

/// Reads and checks a hub's file.
///
/// # Errors
/// Everything wrong with it, in the order of its lines.
pub fn parse_hub(text: &str, env: Env<'_>, options: ParseOptions) -> Result<HubSetup, ConfigErrors> {
    let file: HubFile = read(text)?;
    let mut check = Check::new(env, options);
    let mut setup = defaults();
    check.unknown("", &file);
    let stand =
        BindPlaces { listeners: listeners(&mut check, &mut setup, file.listeners.as_deref()), ..BindPlaces::of(&file) };
    http(&mut check, &mut setup, &file);
    let on_expiry = auth(&mut check, &mut setup, file.auth.unwrap_or_default());
    check.liveness(file.liveness.as_ref(), &mut setup.core.liveness);
    timers(
        &mut check,
        &mut setup,
        &TimerSections {
            resume_window: file.resume_window.as_ref(),
            handshake_timeout: file.handshake_timeout.as_ref(),
            open: &file.open.unwrap_or_default(),
            registry: &file.registry.unwrap_or_default(),
            drain: &file.drain.unwrap_or_default(),
        },
    );
    setup.core.on_expiry = match on_expiry {
        super::value::OnExpiry::Drain => OnExpiry::Drain(setup.drain.timeout),
        super::value::OnExpiry::Cut => OnExpiry::Cut,
        super::value::OnExpiry::Keep => OnExpiry::Keep,
    };
    super::selection::apply(&mut check, &mut setup.core.selection, &file.selection.unwrap_or_default());
    super::limits::apply(&mut check, &mut setup, &file.limits.unwrap_or_default());
    super::ha::apply(&mut check, &mut setup, &file.ha.unwrap_or_default());
    binds(&mut check, &setup, &stand);
    if let Some(workers) = check.value("workers", file.workers.as_ref())
        && workers > 1
    {
        check.error(
            place(file.workers.as_ref()),
            "workers",
            format!("expected 0 or 1, got {workers}: this version runs on one core"),
        );
    }
    setup.warnings = check.finish()?;
    Ok(setup)
}

fn defaults() -> HubSetup {
    // Both are constants of the right form; a name is checked when made.
    let name = |text: &str| Name::new(text).expect("a constant name");
    HubSetup {
        core: HubConfig {
            replica_id: name("hub"),
            namespace: name("default"),
            region: None,
            mode: Mode::Off,
            listeners: Vec::new(),
            peers: Vec::new(),
            limits: Limits::default(),
            liveness: Liveness::default(),
            resume_window: Duration::from_secs(30),
            backoff: Backoff::default(),
            open: OpenTimers::default(),
            selection: Selection::default(),
            registry: RegistryTimers::default(),
            handshake_timeout: Duration::from_secs(5),
            insecure_allow_unscoped: false,
            on_expiry: OnExpiry::Drain(Duration::from_secs(60)),
            insecure_mesh: false,
        },
        listeners: Vec::new(),
        http_bind: SocketAddr::from(([0, 0, 0, 0], 8765)),
        http_tls: None,
        degraded_status: 200,
        mesh_listen: None,
        mesh_tls: None,
        require_mtls: false,
        mesh_wire: Wire::Auto,
        metrics_bind: None,
        admin: AdminSetup::default(),
        legacy_metric_names: false,
        auth: AuthSetup {
            audience: "nowconnect".to_owned(),
            issuer: None,
            algorithms: Vec::new(),
            public_key_file: None,
            hmac_secret_file: None,
            jwks_file: None,
            jwks: None,
            max_lifetime: Duration::from_secs(24 * 3600),
            leeway: Duration::from_secs(5),
        },
        redis_url: None,
        redis_password_file: None,
        redis_ca_bundle: None,
        redis_identity: None,
        drain: DrainTimes::default(),
        handshake_rate: 1000,
        max_handshakes_per_address: None,
        memory_budget_given: false,
        warnings: Vec::new(),
    }
}

/// Where the binds of the listeners that were taken stand.
fn listeners(
    check: &mut Check<'_>,
    setup: &mut HubSetup,
    sections: Option<&[At<raw::ListenerSection>]>,
) -> Vec<Option<Place>> {
    let (mut places, mut binds) = (Vec::new(), Vec::new());
    for (i, At { value: s, at }) in sections.unwrap_or_default().iter().enumerate() {
        let path = format!("listeners[{i}]");
        let key = |name: &str| format!("{path}.{name}");
        check.unknown(&path, s);
        let name = check.required(*at, &key("name"), s.name.as_ref());
        let addr = check.required(*at, &key("bind"), s.bind.as_ref());
        let connector = check.required(*at, &key("connector"), s.connector.as_ref());
        let mut max_connections = LISTENER_CONNECTIONS;
        check.number(&key("max_connections"), s.max_connections.as_ref(), 1..=1_000_000, &mut max_connections);
        let mut open = OpenRule::default();
        check.set(&key("open"), s.open.as_ref(), &mut open);
        let mut when_unavailable = WhenUnavailable::default();
        check.set(&key("when_unavailable"), s.when_unavailable.as_ref(), &mut when_unavailable);
        if let Some([]) = s.allow.as_deref() {
            check.error(
                *at,
                &key("allow"),
                "the list is empty; name the ranges, or leave the key out to allow everybody",
            );
        }
        let mut allow = Vec::new();
        for (j, range) in s.allow.iter().flatten().enumerate() {
            allow.extend(check.leaf(&format!("{path}.allow[{j}]"), range));
        }
        places.extend(name.clone().map(|name| (key("name"), place(s.name.as_ref()), name)));
        if let (Some(name), Some(addr), Some(connector)) = (name, addr, connector) {
            setup.core.listeners.push(ListenerConfig { name: name.clone(), connector, open, max_connections });
            setup.listeners.push(ListenerBind { name, addr, allow, max_connections, when_unavailable });
            binds.push(place(s.bind.as_ref()));
        }
    }
    check.unique("name", places.iter().map(|(key, at, name)| (key.clone(), *at, name.as_str())));
    if sections.unwrap_or_default().is_empty() {
        check.warn(None, "listeners", "there is none: this hub takes agents, but no clients of its own");
    }
    binds
}

fn http(check: &mut Check<'_>, setup: &mut HubSetup, file: &HubFile) {
    if let Some(http) = &file.http {
        check.unknown("http", http);
        check.set("http.bind", http.bind.as_ref(), &mut setup.http_bind);
        if let Some(status) = check.value("http.degraded_status", http.degraded_status.as_ref()) {
            if matches!(status, 200 | 503) {
                setup.degraded_status = status;
            } else {
                let at = place(http.degraded_status.as_ref());
                check.error(at, "http.degraded_status", format!("expected 200 or 503, got {status}"));
            }
        }
        if let Some(tls) = &http.tls {
            check.unknown("http.tls", tls);
            let at = place(tls.cert_file.as_ref()).or(place(tls.key_file.as_ref()));
            let cert = check.required(at, "http.tls.cert_file", tls.cert_file.as_ref());
            let key = check.required(at, "http.tls.key_file", tls.key_file.as_ref());
            if let (Some(cert), Some(key)) = (cert, key) {
                setup.http_tls = Some(ServerTlsFiles { cert_file: cert.into(), key_file: key.into() });
            }
        }
    }
    if let Some(metrics) = &file.metrics {
        check.unknown("metrics", metrics);
        setup.metrics_bind = check.value("metrics.bind", metrics.bind.as_ref());
        check.set("metrics.legacy_names", metrics.legacy_names.as_ref(), &mut setup.legacy_metric_names);
    }
    setup.admin = check.admin(file.admin.as_ref());
}

fn auth(check: &mut Check<'_>, setup: &mut HubSetup, section: raw::AuthSection) -> super::value::OnExpiry {
    check.unknown("auth", &section);
    let mut on_expiry = super::value::OnExpiry::default();
    check.set("auth.on_expiry", section.on_expiry.as_ref(), &mut on_expiry);
    let unscoped = section.insecure_allow_unscoped.as_ref();
    check.set("auth.insecure_allow_unscoped", unscoped, &mut setup.core.insecure_allow_unscoped);
    if setup.core.insecure_allow_unscoped {
        check.warn(
            place(unscoped),
            "auth.insecure_allow_unscoped",
            "a token without the claim `connectors` may advertise any connector",
        );
    }
    let jwt = section.jwt.unwrap_or_default();
    check.unknown("auth.jwt", &jwt);
    let auth = &mut setup.auth;
    check.set("auth.jwt.audience", jwt.audience.as_ref(), &mut auth.audience);
    auth.issuer = check.value("auth.jwt.issuer", jwt.issuer.as_ref());
    for (i, algorithm) in jwt.algorithms.iter().flatten().enumerate() {
        auth.algorithms.extend(check.leaf(&format!("auth.jwt.algorithms[{i}]"), algorithm));
    }
    let path = |check: &mut Check<'_>, key: &str, leaf: Option<&super::Leaf<String>>| {
        check.value(key, leaf).map(PathBuf::from)
    };
    auth.jwks_file = path(check, "auth.jwt.jwks_file", jwt.jwks_file.as_ref());
    auth.public_key_file = path(check, "auth.jwt.public_key_file", jwt.public_key_file.as_ref());
    auth.hmac_secret_file = path(check, "auth.jwt.hmac_secret_file", jwt.hmac_secret_file.as_ref());
    // The environment wins over the file: it is how a container is given its own.
    let from_env = |name: &str| (check.env)(name).filter(|value| !value.is_empty());
    let overridden = [
        ("NC_JWT_JWKS_FILE", &mut auth.jwks_file),
        ("NC_JWT_PUBLIC_KEY_FILE", &mut auth.public_key_file),
        ("NC_JWT_HMAC_SECRET_FILE", &mut auth.hmac_secret_file),
    ];
    for (name, slot) in overridden {
        if let Some(file) = from_env(name) {
            *slot = Some(file.into());
        }
    }
    if let Some(issuer) = from_env("NC_JWT_ISSUER") {
        auth.issuer = Some(issuer);
    }
    let url_from_env = from_env("NC_JWT_JWKS_URL");
    auth.jwks = jwks(check, &jwt, url_from_env);
    check.duration(
        "auth.jwt.max_lifetime",
        jwt.max_lifetime.as_ref(),
        MINUTE..=Duration::from_secs(366 * 24 * 3600),
        &mut auth.max_lifetime,
    );
    check.duration("auth.jwt.leeway", jwt.leeway.as_ref(), Duration::ZERO..=MINUTE, &mut auth.leeway);
    // HS256 goes with the shared secret and with nothing else; no file has to be
    // read to see that a key could never be used.
    let (symmetric, asymmetric): (Vec<Algorithm>, Vec<Algorithm>) =
        auth.algorithms.iter().copied().partition(|a| matches!(a, Algorithm::HS256));
    let at = jwt.algorithms.iter().flatten().next().and_then(|a| a.at);
    let named = || auth.algorithms.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(", ");
    if !auth.algorithms.is_empty() && auth.hmac_secret_file.is_some() && symmetric.is_empty() {
        let message = format!("auth.jwt.hmac_secret_file needs HS256 here; there is {}", named());
        check.error(at, "auth.jwt.algorithms", message);
    }
    let keys = auth.public_key_file.is_some() || auth.jwks_file.is_some() || auth.jwks.is_some();
    if !auth.algorithms.is_empty() && keys && asymmetric.is_empty() {
        let message =
            format!("auth.jwt.public_key_file and jwks_file need an asymmetric algorithm here; there is {}", named());
        check.error(at, "auth.jwt.algorithms", message);
    }
    if !auth.usable() {
        check.warn(
            None,
            "auth.jwt",
            "no key to check tokens with: `nowconnect hub` will refuse to start; set auth.jwt.public_key_file, jwks_url, jwks_file \
             or hmac_secret_file (or NC_JWT_PUBLIC_KEY_FILE, NC_JWT_JWKS_URL, NC_JWT_JWKS_FILE, NC_JWT_HMAC_SECRET_FILE)",
        );
    } else if auth.issuer.is_none() && jwt.issuer.is_none() {
        let at = place(jwt.public_key_file.as_ref())
            .or(place(jwt.jwks_file.as_ref()))
            .or(place(jwt.jwks_url.as_ref()))
            .or(place(jwt.hmac_secret_file.as_ref()));
        check.error(at, "auth.jwt.issuer", "this key is required with a key to check tokens with (or NC_JWT_ISSUER)");
    }
    on_expiry
}

/// `auth.jwt.jwks_url` and what belongs to it.
fn jwks(check: &mut Check<'_>, jwt: &raw::JwtSection, from_env: Option<String>) -> Option<JwksSetup> {
    let file = |check: &mut Check<'_>, key: &str, leaf: Option<&super::Leaf<String>>| {
        check.value(key, leaf).map(PathBuf::from)
    };
    let ca_bundle = file(check, "auth.jwt.jwks_ca_bundle", jwt.jwks_ca_bundle.as_ref());
    let cache_file = file(check, "auth.jwt.jwks_cache_file", jwt.jwks_cache_file.as_ref());
    let day = Duration::from_secs(24 * 3600);
    let (mut refresh, mut max_age) = (60 * MINUTE, day);
    check.duration("auth.jwt.jwks_refresh", jwt.jwks_refresh.as_ref(), SECOND..=day, &mut refresh);
    check.duration("auth.jwt.jwks_max_age", jwt.jwks_max_age.as_ref(), MINUTE..=366 * day, &mut max_age);
    let mut insecure = false;
    let insecure_key = jwt.insecure_allow_plaintext_jwks.as_ref();
    check.set("auth.jwt.insecure_allow_plaintext_jwks", insecure_key, &mut insecure);
    let at = place(jwt.jwks_url.as_ref());
    let url = from_env.or_else(|| check.value("auth.jwt.jwks_url", jwt.jwks_url.as_ref()));
    let Some(url) = url else {
        let alone = [jwt.jwks_ca_bundle.as_ref(), jwt.jwks_cache_file.as_ref()].into_iter().flatten().next();
        if let (Some(leaf), None) = (alone, &jwt.jwks_url) {
            check.warn(leaf.at, "auth.jwt.jwks_url", "this key is missing: what belongs to it has no effect");
        }
        return None;
    };
    const EXPECTED: &str = "expected a URL such as https://idp.example.com/jwks.json";
    let uri = url.parse::<http::Uri>().ok().filter(|u| u.host().is_some_and(|h| !h.is_empty()));
    let Some(uri) = uri else {
        check.error(at, "auth.jwt.jwks_url", EXPECTED);
        return None;
    };
    if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        check.error(at, "auth.jwt.jwks_url", format!("{EXPECTED}; user names in it are not used"));
    }
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if insecure && loopback => check.warn(
            place(insecure_key),
            "auth.jwt.insecure_allow_plaintext_jwks",
            "whoever can answer there decides which tokens are good",
        ),
        Some("http") => check.error(
            at,
            "auth.jwt.jwks_url",
            "http:// is plain text: use https://, or set auth.jwt.insecure_allow_plaintext_jwks with a loopback address",
        ),
        Some(_) | None => check.error(at, "auth.jwt.jwks_url", format!("{EXPECTED}; the scheme must be https")),
    }
    check.ordered(
        ("auth.jwt.jwks_refresh", place(jwt.jwks_refresh.as_ref()), refresh),
        ("auth.jwt.jwks_max_age", place(jwt.jwks_max_age.as_ref()), max_age),
    );
    Some(JwksSetup { url, ca_bundle, cache_file, refresh, max_age })
}

struct TimerSections<'a> {
    resume_window: Option<&'a super::Leaf<Duration>>,
    handshake_timeout: Option<&'a super::Leaf<Duration>>,
    open: &'a raw::OpenSection,
    registry: &'a raw::RegistrySection,
    drain: &'a raw::DrainSection,
}

fn timers(check: &mut Check<'_>, setup: &mut HubSetup, s: &TimerSections<'_>) {
    let core = &mut setup.core;
    check.duration("resume_window", s.resume_window, SECOND..=10 * MINUTE, &mut core.resume_window);
    check.duration("handshake_timeout", s.handshake_timeout, 2 * MS_50..=MINUTE, &mut core.handshake_timeout);

    check.unknown("open", s.open);
    let attempt = s.open.attempt_timeout.as_ref();
    let whole = s.open.timeout.as_ref();
    check.duration("open.attempt_timeout", attempt, MS_50..=MINUTE, &mut core.open.attempt_timeout);
    check.duration("open.timeout", whole, MS_50..=5 * MINUTE, &mut core.open.timeout);
    check.duration(
        "open.first_byte_wait",
        s.open.first_byte_wait.as_ref(),
        MS_50..=MINUTE,
        &mut core.open.first_byte_wait,
    );
    check.ordered(
        ("open.attempt_timeout", place(attempt), core.open.attempt_timeout),
        ("open.timeout", place(whole), core.open.timeout),
    );

    check.unknown("registry", s.registry);
    let r = &mut core.registry;
    let lease = s.registry.lease.as_ref();
    let renew = s.registry.renew_every.as_ref();
    let op = s.registry.op_timeout.as_ref();
    check.duration("registry.lease", lease, SECOND..=5 * MINUTE, &mut r.lease);
    check.duration("registry.renew_every", renew, MS_50..=MINUTE, &mut r.renew_every);
    check.duration("registry.op_timeout", op, MS_50..=MINUTE, &mut r.op_timeout);
    check.duration(
        "registry.lookup_fresh",
        s.registry.lookup_fresh.as_ref(),
        Duration::ZERO..=MINUTE,
        &mut r.lookup_fresh,
    );
    check.set("registry.on_outage", s.registry.on_outage.as_ref(), &mut r.on_outage);
    // Two renewals must fit a lease, or one lost reply fences the hub.
    let half = ("half of registry.lease", place(lease), r.lease / 2);
    check.ordered(("registry.renew_every", place(renew), r.renew_every), half);
    check.ordered(("registry.op_timeout", place(op), r.op_timeout), half);

    check.unknown("drain", s.drain);
    check.duration(
        "drain.lameduck",
        s.drain.lameduck.as_ref(),
        Duration::ZERO..=10 * MINUTE,
        &mut setup.drain.lameduck,
    );
    check.duration("drain.timeout", s.drain.timeout.as_ref(), Duration::ZERO..=60 * MINUTE, &mut setup.drain.timeout);
}

/// Where the addresses stand that a hub binds.
struct BindPlaces {
    listeners: Vec<Option<Place>>,
    http: Option<Place>,
    mesh: Option<Place>,
    metrics: Option<Place>,
    admin: Option<Place>,
}

impl BindPlaces {
    /// All but those of the listeners.
    fn of(file: &HubFile) -> Self {
        let mesh = file.ha.as_ref().and_then(|s| s.mesh.as_ref());
        Self {
            listeners: Vec::new(),
            http: place(file.http.as_ref().and_then(|s| s.bind.as_ref())),
            mesh: place(mesh.and_then(|s| s.listen.as_ref())),
            metrics: place(file.metrics.as_ref().and_then(|s| s.bind.as_ref())),
            admin: place(file.admin.as_ref().and_then(|s| s.bind.as_ref())),
        }
    }
}

/// No two ports in one place; port 0 is a fresh one each time.
fn binds(check: &mut Check<'_>, setup: &HubSetup, stand: &BindPlaces) {
    let mut all: Vec<(String, SocketAddr, Option<Place>)> = setup
        .listeners
        .iter()
        .zip(&stand.listeners)
        .map(|(l, place)| (format!("listener {}", l.name), l.addr, *place))
        .collect();
    all.push(("http.bind".to_owned(), setup.http_bind, stand.http));
    all.extend(setup.mesh_listen.map(|m| ("ha.mesh.listen".to_owned(), m.addr, stand.mesh)));
    all.extend(setup.metrics_bind.map(|addr| ("metrics.bind".to_owned(), addr, stand.metrics)));
    all.extend(setup.admin.bind.map(|addr| ("admin.bind".to_owned(), addr, stand.admin)));
    let clash = |a: SocketAddr, b: SocketAddr| {
        let everywhere = a.ip().is_unspecified() || b.ip().is_unspecified();
        a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || everywhere && a.is_ipv4() == b.is_ipv4())
    };
    for (i, (name, addr, at)) in all.iter().enumerate() {
        if let Some((other, taken, place)) = all.iter().take(i).find(|(_, other, _)| clash(*other, *addr)) {
            // One of the two may be a default, which stands nowhere.
            check.error(at.or(*place), name, format!("binds {addr}, which {other} ({taken}) already takes"));
        }
    }
}

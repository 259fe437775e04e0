//! The files as written: structure and keys, no judgement.
//!
//! One declaration per section gives the reader, the list of its keys (for
//! "did you mean") and its JSON Schema. The reader never fails on an unknown
//! key: it notes key and place, so that all of them are reported together and
//! `x-` keys or `--allow-unknown-keys` can pass (semantics 9). A scalar stays
//! text until it was substituted (`value.rs`).

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use nowconnect_core::config::{Mode, OnOutage, OpenRule};
use nowconnect_core::id::{AgentId, Name};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_saphyr::Spanned;

use super::value::{At, CheckKind, Cidr, Leaf, ListenTls, Milli, OnExpiry, Place, Secret, WhenUnavailable, Wire};

/// A key the section does not have.
pub(super) struct UnknownKey {
    pub(super) name: String,
    pub(super) at: Option<Place>,
}

/// One section.
pub(super) trait Section {
    const KEYS: &'static [&'static str];
    fn unknown(&self) -> &[UnknownKey];
}

macro_rules! sections {
    ($($(#[$meta:meta])* $t:ident { $($(#[$fmeta:meta])* $f:ident: $ty:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Default, JsonSchema)]
        #[schemars(deny_unknown_fields, extend("patternProperties" = { "^x-": true }))]
        pub(super) struct $t {
            $($(#[$fmeta])* pub(super) $f: Option<$ty>,)*
            #[schemars(skip)]
            pub(super) unknown: Vec<UnknownKey>,
        }

        impl Section for $t {
            const KEYS: &'static [&'static str] = &[$(stringify!($f)),*];
            fn unknown(&self) -> &[UnknownKey] { &self.unknown }
        }

        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Reader;
                impl<'de> Visitor<'de> for Reader {
                    type Value = $t;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "a mapping with some of the keys {}", $t::KEYS.join(", "))
                    }
                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<$t, A::Error> {
                        let mut section = $t::default();
                        while let Some(key) = map.next_key::<Spanned<String>>()? {
                            match key.value.as_str() {
                                $(stringify!($f) => section.$f = map.next_value()?,)*
                                _ => {
                                    let _: IgnoredAny = map.next_value()?;
                                    section.unknown.push(UnknownKey { name: key.value, at: Place::of(key.referenced) });
                                }
                            }
                        }
                        Ok(section)
                    }
                }
                d.deserialize_map(Reader)
            }
        }
    )*};
}

sections! {
    /// Configuration of `nowconnect hub`.
    HubFile {
        /// TCP ports for clients, each bound to a connector.
        listeners: Vec<At<ListenerSection>>,
        /// The port of `/tunnel`, `/mesh`, `/healthz` and `/readyz`.
        http: HttpSection,
        /// The port of `/metrics`.
        metrics: MetricsSection,
        /// The administration endpoint.
        admin: AdminSection,
        /// Who may attach.
        auth: AuthSection,
        /// High availability.
        ha: HaSection,
        /// When a peer is probed, doubted and given up.
        liveness: LivenessSection,
        /// How long a session outlives its connection.
        resume_window: Leaf<Duration>,
        /// Deadline of a handshake.
        handshake_timeout: Leaf<Duration>,
        /// Deadlines of opening a stream.
        open: OpenSection,
        /// Which candidate a client gets.
        selection: SelectionSection,
        /// Use of the registry.
        registry: RegistrySection,
        /// Leaving.
        drain: DrainSection,
        /// Limits of the process.
        limits: HubLimitsSection,
        /// Worker threads; 0 or 1 in this version.
        workers: Leaf<u32>,
    }

    /// One listener.
    ListenerSection {
        /// Its name: a metric label.
        #[schemars(required)]
        name: Leaf<Name>,
        /// IP:PORT.
        #[schemars(required)]
        bind: Leaf<SocketAddr>,
        /// The service its clients want.
        #[schemars(required)]
        connector: Leaf<Name>,
        /// Clients at once.
        max_connections: Leaf<u32>,
        /// Address ranges clients may come from; everybody when absent.
        allow: Vec<Leaf<Cidr>>,
        /// When the stream is opened.
        open: Leaf<OpenRule>,
        /// What happens while nothing serves the connector.
        when_unavailable: Leaf<WhenUnavailable>,
    }

    /// The HTTP port.
    HttpSection {
        /// IP:PORT.
        bind: Leaf<SocketAddr>,
        /// TLS ended by the hub itself.
        tls: HttpTlsSection,
        /// HTTP status of `/readyz` while degraded.
        degraded_status: Leaf<u16>,
    }

    /// Certificate of the HTTP port.
    HttpTlsSection {
        /// PEM file: the certificate and its intermediates.
        #[schemars(required)]
        cert_file: Leaf<String>,
        /// PEM file: the private key.
        #[schemars(required)]
        key_file: Leaf<String>,
    }

    /// Metrics.
    MetricsSection {
        /// IP:PORT.
        bind: Leaf<SocketAddr>,
        /// Also expose the names of the enable page.
        legacy_names: Leaf<bool>,
    }

    /// Administration.
    AdminSection {
        /// Unix socket: status, metrics, health.
        socket: Leaf<String>,
        /// IP:PORT, the same over TCP; beyond loopback only with `token_file`.
        bind: Leaf<SocketAddr>,
        /// File with the bearer token.
        token_file: Leaf<String>,
    }

    /// Authentication of tunnels.
    AuthSection {
        /// Tokens.
        jwt: JwtSection,
        /// A token without `connectors` may advertise any.
        insecure_allow_unscoped: Leaf<bool>,
        /// What happens when the token of a live tunnel runs out.
        on_expiry: Leaf<OnExpiry>,
    }

    /// Tokens.
    JwtSection {
        /// Required `aud`.
        audience: Leaf<String>,
        /// Required `iss`.
        issuer: Leaf<String>,
        /// Algorithms keys may be used with.
        algorithms: Vec<Leaf<Algorithm>>,
        /// https URL of a key set.
        jwks_url: Leaf<String>,
        /// PEM file: CAs of that URL; the system's roots when absent.
        jwks_ca_bundle: Leaf<String>,
        /// File that keeps the last good set of that URL.
        jwks_cache_file: Leaf<String>,
        /// Interval of fetching it.
        jwks_refresh: Leaf<Duration>,
        /// How long the last good set is used without another.
        jwks_max_age: Leaf<Duration>,
        /// Permits http:// on loopback in `jwks_url`.
        insecure_allow_plaintext_jwks: Leaf<bool>,
        /// JSON file with a key set.
        jwks_file: Leaf<String>,
        /// PEM file with one public key.
        public_key_file: Leaf<String>,
        /// File with a shared secret.
        hmac_secret_file: Leaf<String>,
        /// Longest lifetime of a token.
        max_lifetime: Leaf<Duration>,
        /// Clock difference tolerated.
        leeway: Leaf<Duration>,
    }

    /// High availability.
    HaSection {
        /// Off unless true.
        enabled: Leaf<bool>,
        /// off, shadow or active.
        mode: Leaf<Mode>,
        /// Name of this hub.
        replica_id: Leaf<Name>,
        /// Where it runs.
        region: Leaf<Name>,
        /// Prefix of all names in the registry.
        namespace: Leaf<Name>,
        /// The registry.
        redis_url: Leaf<Secret>,
        /// File with the registry's password, instead of one in the URL.
        redis_password_file: Leaf<String>,
        /// Certificates for `rediss://`.
        redis_tls: RedisTlsSection,
        /// Links between hubs.
        mesh: MeshSection,
    }

    /// Certificates for `rediss://`.
    RedisTlsSection {
        /// PEM file: CAs of the registry; the system's roots when absent.
        ca_bundle: Leaf<String>,
        /// PEM file: the hub's certificate, if the registry asks for one.
        cert_file: Leaf<String>,
        /// PEM file: its private key.
        key_file: Leaf<String>,
    }

    /// Links between hubs.
    MeshSection {
        /// IP:PORT of a listener of its own.
        listen: Leaf<SocketAddr>,
        /// Who ends TLS on that listener.
        listen_tls: Leaf<ListenTls>,
        /// The other hubs.
        peers: Vec<At<PeerEntry>>,
        /// Peers must show a certificate.
        require_mtls: Leaf<bool>,
        /// The hub's identity.
        tls: MeshTlsSection,
        /// Frames one session may have waiting or in flight.
        send_queue_depth: Leaf<u32>,
        /// Encoded bytes one session may have sent and not acknowledged.
        per_link_max_inflight_bytes: Leaf<u64>,
        /// Delay before the second dial.
        connect_backoff_initial: Leaf<Duration>,
        /// Largest delay between dials, in seconds.
        connect_backoff_max_sec: Leaf<u32>,
        /// Largest delay while streams wait on the session.
        connect_backoff_waiting_max: Leaf<Duration>,
        /// Encodings offered to peers.
        wire: Leaf<Wire>,
        /// Permits ws:// peers on loopback.
        insecure_allow_plaintext: Leaf<bool>,
    }

    /// The hub's identity on the mesh.
    MeshTlsSection {
        /// PEM file: CAs of the peers.
        #[schemars(required)]
        ca_bundle: Leaf<String>,
        /// PEM file: the certificate and its intermediates.
        #[schemars(required)]
        cert_file: Leaf<String>,
        /// PEM file: the private key.
        #[schemars(required)]
        key_file: Leaf<String>,
    }

    /// A peer whose replica id is known beforehand.
    PeerSection {
        /// wss://HOST/mesh.
        #[schemars(required)]
        url: Leaf<String>,
        /// The replica expected there.
        replica_id: Leaf<Name>,
    }

    /// When a peer is probed, doubted and given up.
    LivenessSection {
        /// Interval of PING.
        ping: Leaf<Duration>,
        /// Silence after which nothing new is opened there.
        suspect: Leaf<Duration>,
        /// Silence after which the connection is closed.
        dead: Leaf<Duration>,
    }

    /// Deadlines of opening a stream.
    OpenSection {
        /// One candidate.
        attempt_timeout: Leaf<Duration>,
        /// All candidates together.
        timeout: Leaf<Duration>,
        /// `open: first-byte` opens after this without a byte.
        first_byte_wait: Leaf<Duration>,
    }

    /// Use of the registry.
    RegistrySection {
        /// A hub's lease.
        lease: Leaf<Duration>,
        /// Interval of its renewal.
        renew_every: Leaf<Duration>,
        /// Deadline of one operation.
        op_timeout: Leaf<Duration>,
        /// How long a looked-up connector is used.
        lookup_fresh: Leaf<Duration>,
        /// What happens to new cross-hub streams while it is unhealthy.
        on_outage: Leaf<OnOutage>,
    }

    /// Leaving.
    DrainSection {
        /// How long a hub that leaves still serves new clients.
        lameduck: Leaf<Duration>,
        /// How long streams may take to end after that before any is reset.
        timeout: Leaf<Duration>,
    }

    /// Limits of a hub.
    HubLimitsSection {
        /// Payload bytes the process may hold.
        memory_budget_bytes: Leaf<u64>,
        /// Window a half starts with.
        stream_window_initial_bytes: Leaf<u64>,
        /// Window a half may grow to.
        stream_window_max_bytes: Leaf<u64>,
        /// Streams at once.
        max_streams: Leaf<u32>,
        /// Terminal causes remembered for late frames.
        tombstones: Leaf<u32>,
        /// Streams of one session whose OPEN is not answered.
        max_pending_opens: Leaf<u32>,
        /// Tunnels and links at once.
        max_sessions: Leaf<u32>,
        /// Connections still in their handshake.
        max_handshakes: Leaf<u32>,
        /// The same from one IPv4 address or IPv6 /64.
        max_handshakes_per_address: Leaf<u32>,
        /// Connections a second that a port of HTTP takes.
        handshake_rate: Leaf<u32>,
    }

    /// Configuration of `nowconnect agent`.
    AgentFile {
        /// Its name, covered by the token's `sub`.
        #[schemars(required)]
        agent_id: Leaf<AgentId>,
        /// URLs of the hubs, wss://HOST/tunnel.
        #[schemars(required)]
        hubs: Vec<Leaf<String>>,
        /// Attachments kept at distinct hubs.
        parallel: Leaf<u16>,
        /// File with the token.
        #[schemars(required)]
        token_file: Leaf<String>,
        /// Whom the agent trusts.
        tls: AgentTlsSection,
        /// Encodings offered to hubs.
        wire: Leaf<Wire>,
        /// What it exposes.
        #[schemars(required)]
        connectors: Vec<At<ConnectorSection>>,
        /// Delays between dials.
        reconnect: ReconnectSection,
        /// Status endpoint.
        admin: AdminSection,
        /// Permits ws:// in `hubs`.
        insecure_allow_plaintext: Leaf<bool>,
        /// When a hub is probed, doubted and given up.
        liveness: LivenessSection,
        /// How long a session outlives its connection.
        resume_window: Leaf<Duration>,
        /// Deadline of a handshake.
        handshake_timeout: Leaf<Duration>,
        /// Deadline of connecting a target.
        target_timeout: Leaf<Duration>,
        /// Limits of the process.
        limits: AgentLimitsSection,
    }

    /// Whom an agent trusts.
    AgentTlsSection {
        /// PEM file: CAs of the hubs; the system's roots when absent.
        ca_bundle: Leaf<String>,
    }

    /// One service.
    ConnectorSection {
        /// Its name.
        #[schemars(required)]
        name: Leaf<Name>,
        /// HOST:PORT.
        #[schemars(required)]
        target: Leaf<String>,
        /// Rank; lower is preferred.
        priority: Leaf<u16>,
        /// Share among equals.
        weight: Leaf<u16>,
        /// How the target is checked; not at all when absent.
        health: HealthSection,
    }

    /// Checks of a target: the connector is withdrawn while they fail.
    HealthSection {
        /// What a check does; tcp: connects.
        #[schemars(required)]
        kind: Leaf<CheckKind>,
        /// From one check to the next.
        interval: Leaf<Duration>,
        /// How long one may take.
        timeout: Leaf<Duration>,
        /// Checks in a row that fail until the connector is withdrawn.
        fall: Leaf<u32>,
        /// Checks in a row that succeed until it is exposed again.
        rise: Leaf<u32>,
    }

    /// Which candidate a client gets.
    SelectionSection {
        /// Failed opens in a row that eject a candidate; 0 = never.
        fall: Leaf<u32>,
        /// Opens in a row that succeed until an ejected one is like any other.
        rise: Leaf<u32>,
        /// How long it is ejected the first time; doubled after every trial that fails.
        eject: Leaf<Duration>,
        /// How long at most.
        eject_max: Leaf<Duration>,
        /// How long an agent of a better priority must be back before it is preferred.
        failback_after: Leaf<Duration>,
        /// Priorities of agents; they can only lower their own.
        priorities: Vec<At<PrioritySection>>,
    }

    /// The priority of one agent.
    PrioritySection {
        /// Its agent_id.
        #[schemars(required)]
        agent: Leaf<AgentId>,
        /// For this connector; for all of the agent's when absent.
        connector: Leaf<Name>,
        /// Rank; lower is preferred.
        #[schemars(required)]
        priority: Leaf<u16>,
    }

    /// Delays between dials.
    ReconnectSection {
        /// Delay before the second dial.
        initial_delay: Leaf<Duration>,
        /// Largest delay.
        max_delay: Leaf<Duration>,
        /// Growth per failure.
        multiplier: Leaf<Milli>,
        /// Random share of the delay.
        jitter: Leaf<Milli>,
        /// Dials in a row that may fail; 0 = no end.
        max_retries: Leaf<u32>,
        /// Largest delay while streams wait on the session.
        max_delay_while_streams_wait: Leaf<Duration>,
    }

    /// Limits of an agent.
    AgentLimitsSection {
        /// Payload bytes the process may hold.
        memory_budget_bytes: Leaf<u64>,
        /// Window a half starts with.
        stream_window_initial_bytes: Leaf<u64>,
        /// Window a half may grow to.
        stream_window_max_bytes: Leaf<u64>,
        /// Streams at once.
        max_streams: Leaf<u32>,
        /// Frames one session may have waiting or in flight.
        send_queue_depth: Leaf<u32>,
        /// Encoded bytes one session may have sent and not acknowledged.
        inflight_bytes: Leaf<u64>,
        /// Terminal causes remembered for late frames.
        tombstones: Leaf<u32>,
        /// Streams of one session whose OPEN is not answered.
        max_pending_opens: Leaf<u32>,
    }
}

/// An entry of `peers`: a URL, or a URL with the replica expected there.
pub(super) enum PeerEntry {
    Url(String),
    Named(PeerSection),
}

impl<'de> Deserialize<'de> for PeerEntry {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = PeerEntry;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL or {url, replica_id}")
            }
            fn visit_str<E: serde::de::Error>(self, url: &str) -> Result<PeerEntry, E> {
                Ok(PeerEntry::Url(url.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PeerEntry, A::Error> {
                PeerSection::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(PeerEntry::Named)
            }
        }
        d.deserialize_any(Reader)
    }
}

impl JsonSchema for PeerEntry {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Peer".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let named = PeerSection::json_schema(generator);
        json_schema!({ "anyOf": [{ "type": "string" }, named] })
    }
}

/// The top-level keys of a file, to tell a hub's from an agent's.
pub(super) struct TopKeys(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for TopKeys {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = TopKeys;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TopKeys, A::Error> {
                let mut keys = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    let _: IgnoredAny = map.next_value()?;
                    keys.push(key);
                }
                Ok(TopKeys(keys))
            }
        }
        d.deserialize_map(Reader)
    }
}

//! The section `ha` of a hub's file: mode, registry, mesh and its identity.
//!
//! Owns the rules that keep a mesh from running unproven: `wss://` needs the
//! hub's own certificate, plain text needs an `insecure_` key and loopback on
//! both ends, `active` needs a registry that all hubs share (semantics 5, 8;
//! attack 61). Opens no file.

use std::time::Duration;

use nowconnect_core::config::{Mode, PeerConfig};
use nowconnect_core::id::Name;
use nowconnect_core::wire::Plane;

use super::hub::{HubSetup, MeshListen, MeshTlsFiles, ServerTlsFiles, place};
use super::raw::{self, PeerEntry};
use super::value::{At, Leaf, ListenTls};
use super::{Check, MINUTE, MS_50};
use crate::registry::check_url;

pub(super) fn apply(check: &mut Check<'_>, setup: &mut HubSetup, s: &raw::HaSection) {
    check.unknown("ha", s);
    let mut enabled = false;
    check.set("ha.enabled", s.enabled.as_ref(), &mut enabled);
    let mut mode = Mode::Off;
    check.set("ha.mode", s.mode.as_ref(), &mut mode);
    if s.enabled.is_none() && mode != Mode::Off {
        check.warn(place(s.mode.as_ref()), "ha.mode", "has no effect without ha.enabled: true");
    }
    setup.core.mode = if enabled { mode } else { Mode::Off };
    check.set("ha.replica_id", s.replica_id.as_ref(), &mut setup.core.replica_id);
    check.set("ha.namespace", s.namespace.as_ref(), &mut setup.core.namespace);
    setup.core.region = check.value("ha.region", s.region.as_ref());
    if enabled && s.replica_id.is_none() {
        let at = place(s.enabled.as_ref());
        check.error(at, "ha.replica_id", "this key is required with ha.enabled: true, for example ${HOSTNAME}");
    }
    setup.redis_url = check.value("ha.redis_url", s.redis_url.as_ref());
    redis(check, setup, s);
    let empty = raw::MeshSection::default();
    mesh(check, setup, s.mesh.as_ref().unwrap_or(&empty));
    let mode = setup.core.mode;
    let may_be_dialled = setup.mesh_tls.is_some() || setup.core.insecure_mesh;
    if mode != Mode::Off && s.redis_url.is_some() && setup.core.peers.is_empty() && !may_be_dialled {
        let text = "there are none, and without ha.mesh.tls no hub can link to this one: clients reach the agents \
                    attached here and no others";
        check.warn(place(s.mode.as_ref()), "ha.mesh.peers", text);
    }
    if mode != Mode::Off && !setup.core.peers.is_empty() && s.redis_url.is_none() {
        let at = place(s.mode.as_ref());
        if mode == Mode::Active {
            // Two memories are two truths: the seeds' in-memory fallback is refused (semantics 11).
            check.error(at, "ha.redis_url", "this key is required with ha.mode: active and peers");
        } else {
            check.warn(
                at,
                "ha.redis_url",
                "without it the hubs do not know each other's agents, and shadow decisions say nothing",
            );
        }
    }
}

fn redis(check: &mut Check<'_>, setup: &mut HubSetup, s: &raw::HaSection) {
    let at = place(s.redis_url.as_ref());
    let url = setup.redis_url.as_ref().map_or("", |url| url.reveal());
    if setup.redis_url.is_some()
        && let Err(e) = check_url(url)
    {
        let text = e.to_string();
        check.error(at, "ha.redis_url", text.trim_start_matches("ha.redis_url: ").to_owned());
    }
    setup.redis_password_file =
        check.value("ha.redis_password_file", s.redis_password_file.as_ref()).map(|f: String| f.into());
    let empty = raw::RedisTlsSection::default();
    let tls = s.redis_tls.as_ref().unwrap_or(&empty);
    check.unknown("ha.redis_tls", tls);
    setup.redis_ca_bundle = check.value("ha.redis_tls.ca_bundle", tls.ca_bundle.as_ref()).map(|f: String| f.into());
    if tls.cert_file.is_some() || tls.key_file.is_some() {
        let at = place(tls.cert_file.as_ref()).or(place(tls.key_file.as_ref()));
        let cert = check.required(at, "ha.redis_tls.cert_file", tls.cert_file.as_ref());
        let key = check.required(at, "ha.redis_tls.key_file", tls.key_file.as_ref());
        if let (Some(cert), Some(key)) = (cert, key) {
            setup.redis_identity = Some(ServerTlsFiles { cert_file: cert.into(), key_file: key.into() });
        }
    }
    let files = [
        ("ha.redis_password_file", place(s.redis_password_file.as_ref()), s.redis_password_file.is_some(), true),
        (
            "ha.redis_tls",
            place(tls.ca_bundle.as_ref()).or(place(tls.cert_file.as_ref())),
            s.redis_tls.is_some(),
            url.starts_with("rediss"),
        ),
    ];
    for (key, at, _, fits) in files.into_iter().filter(|(.., given, _)| *given) {
        if setup.redis_url.is_none() {
            check.error(at, key, "has no effect without ha.redis_url");
        } else if !fits {
            check.error(at, key, "needs rediss://, rediss-sentinel:// or rediss-cluster:// in ha.redis_url");
        }
    }
}

fn mesh(check: &mut Check<'_>, setup: &mut HubSetup, s: &raw::MeshSection) {
    check.unknown("ha.mesh", s);
    let core = &mut setup.core;
    let limits = &mut core.limits;
    check.number("ha.mesh.send_queue_depth", s.send_queue_depth.as_ref(), 16..=1_000_000, &mut limits.send_queue_depth);
    // Less than one message of 256 KiB could never be sent (semantics 2).
    check.number(
        "ha.mesh.per_link_max_inflight_bytes",
        s.per_link_max_inflight_bytes.as_ref(),
        256 << 10..=1 << 30,
        &mut limits.inflight_bytes,
    );
    let initial = s.connect_backoff_initial.as_ref();
    check.duration("ha.mesh.connect_backoff_initial", initial, MS_50..=MINUTE, &mut core.backoff.initial);
    let mut max_sec = 30;
    let max = s.connect_backoff_max_sec.as_ref();
    check.number("ha.mesh.connect_backoff_max_sec", max, 1..=3600, &mut max_sec);
    core.backoff.max = Duration::from_secs(u64::from(max_sec));
    if core.backoff.initial > core.backoff.max {
        check.error(
            place(initial).or(place(max)),
            "ha.mesh.connect_backoff_initial",
            "must not exceed ha.mesh.connect_backoff_max_sec",
        );
    }
    check.duration(
        "ha.mesh.connect_backoff_waiting_max",
        s.connect_backoff_waiting_max.as_ref(),
        MS_50..=MINUTE,
        &mut core.backoff.max_while_streams_wait,
    );

    if let Some(tls) = &s.tls {
        check.unknown("ha.mesh.tls", tls);
        let at = place(tls.ca_bundle.as_ref()).or(place(tls.cert_file.as_ref())).or(place(tls.key_file.as_ref()));
        let ca = check.required(at, "ha.mesh.tls.ca_bundle", tls.ca_bundle.as_ref());
        let cert = check.required(at, "ha.mesh.tls.cert_file", tls.cert_file.as_ref());
        let key = check.required(at, "ha.mesh.tls.key_file", tls.key_file.as_ref());
        if let (Some(ca), Some(cert), Some(key)) = (ca, cert, key) {
            setup.mesh_tls = Some(MeshTlsFiles { ca_bundle: ca.into(), cert_file: cert.into(), key_file: key.into() });
        }
    }
    let with_tls = s.tls.is_some();
    let insecure_key = s.insecure_allow_plaintext.as_ref();
    check.set("ha.mesh.wire", s.wire.as_ref(), &mut setup.mesh_wire);
    let mut insecure = false;
    check.set("ha.mesh.insecure_allow_plaintext", insecure_key, &mut insecure);
    setup.require_mtls = with_tls;
    check.set("ha.mesh.require_mtls", s.require_mtls.as_ref(), &mut setup.require_mtls);
    let mtls_place = place(s.require_mtls.as_ref());
    if setup.require_mtls && !with_tls {
        check.error(mtls_place, "ha.mesh.require_mtls", "needs ha.mesh.tls with ca_bundle, cert_file and key_file");
    }

    let listen = check.value("ha.mesh.listen", s.listen.as_ref());
    let mut tls = ListenTls::default();
    check.set("ha.mesh.listen_tls", s.listen_tls.as_ref(), &mut tls);
    let tls_place = place(s.listen_tls.as_ref());
    if tls == ListenTls::Native {
        if listen.is_none() && s.listen.is_none() {
            check.error(tls_place, "ha.mesh.listen_tls", "native needs a port of its own: set ha.mesh.listen");
        }
        if !with_tls {
            check.error(
                tls_place,
                "ha.mesh.listen_tls",
                "native needs ha.mesh.tls with ca_bundle, cert_file and key_file",
            );
        }
    }
    setup.mesh_listen = listen.map(|addr| MeshListen { addr, tls });

    peers(check, setup, s, insecure, with_tls);
    let on = setup.core.mode != Mode::Off;
    // With keys hubs prove who they are, in plain text too.
    setup.core.insecure_mesh = insecure && !with_tls;
    if setup.core.insecure_mesh {
        // Nobody proves who they are: only processes of this machine may get in.
        let (key, addr, at) = match setup.mesh_listen {
            Some(listen) => ("ha.mesh.listen", listen.addr, place(s.listen.as_ref())),
            None => ("http.bind", setup.http_bind, None),
        };
        if on && !addr.ip().is_loopback() {
            check.error(
                at.or(place(insecure_key)),
                "ha.mesh.insecure_allow_plaintext",
                format!("{key} serves /mesh on {addr}: with this key it must be a loopback address"),
            );
        }
        check.warn(place(insecure_key), "ha.mesh.insecure_allow_plaintext", "hubs do not prove their identity");
        return;
    }
    if !setup.require_mtls && with_tls {
        check.error(
            mtls_place,
            "ha.mesh.require_mtls",
            "with ha.mesh.tls every peer must show a certificate; only ha.mesh.insecure_allow_plaintext, on loopback, lets peers in without one",
        );
    }
    if insecure {
        check.warn(
            place(insecure_key),
            "ha.mesh.insecure_allow_plaintext",
            "ws:// peers prove who they are, but what follows can be read and changed on the way",
        );
    }
}

/// Reads the peers.
fn peers(check: &mut Check<'_>, setup: &mut HubSetup, s: &raw::MeshSection, insecure: bool, with_tls: bool) {
    let (mut places, mut names) = (Vec::new(), Vec::new());
    for (i, At { value, at }) in s.peers.iter().flatten().enumerate() {
        let path = format!("ha.mesh.peers[{i}]");
        let (key, url, at, replica_id) = match value {
            PeerEntry::Url(text) => {
                let leaf = Leaf::new(text.clone(), *at);
                (path.clone(), check.leaf::<String>(&path, &leaf), *at, None)
            }
            PeerEntry::Named(section) => {
                check.unknown(&path, section);
                let key = format!("{path}.url");
                let url = check.required(*at, &key, section.url.as_ref());
                let name_key = format!("{path}.replica_id");
                let replica_id: Option<Name> = check.value(&name_key, section.replica_id.as_ref());
                names.extend(replica_id.clone().map(|name| (name_key, place(section.replica_id.as_ref()), name)));
                (key, url, place(section.url.as_ref()), replica_id)
            }
        };
        let Some(url) = url else { continue };
        let Some(parsed) = check.websocket_url(at, &key, &url, Plane::Mesh) else { continue };
        if parsed.encrypted {
            if !with_tls {
                check.error(at, &key, "a wss:// peer needs ha.mesh.tls with ca_bundle, cert_file and key_file");
            }
        } else if !insecure {
            check.error(
                at,
                &key,
                "ws:// is plain text: use wss://, or set ha.mesh.insecure_allow_plaintext with a loopback address",
            );
        } else if !parsed.loopback {
            check.error(at, &key, "ws:// is allowed on loopback only (localhost, 127.0.0.1, [::1]); use wss://");
        }
        places.push((key, at, url.clone()));
        setup.core.peers.push(PeerConfig { url, replica_id, host: Some(parsed.host) });
    }
    check.unique("URL", places.iter().map(|(key, at, url)| (key.clone(), *at, url.as_str())));
    check.unique("replica_id", names.iter().map(|(key, at, name)| (key.clone(), *at, name.as_str())));
}

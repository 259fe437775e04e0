//! Certificates, keys and CA bundles in use, and their renewal: when a file
//! changes, or at a reload, everything is read anew; what cannot be used leaves
//! the last good set in force, is logged and counted (semantics 8). New
//! handshakes use the new set. A live connection whose peer's chain in TLS does
//! not reach the CAs any more is ended; its session goes on if the peer comes
//! back with a chain that does. What peers of links signed with, `hub/trust.rs`
//! judges. Must not know sessions or configuration keys beyond the files it is
//! given.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use nowconnect_core::error::CloseCode;
use nowconnect_core::id::ConnKey;
use nowconnect_core::mux::Input;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::config::{AgentSetup, HubSetup, ListenTls};
use crate::http::TlsSource;
use crate::identity::MeshIdentity;
use crate::node::{Machine, Node};
use crate::tls::{self, TlsError};

/// How often files are looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One set of everything, as read from files.
#[derive(Default)]
pub(crate) struct Set {
    http: Option<Arc<ServerConfig>>,
    mesh: Option<Arc<ServerConfig>>,
    dialer: Option<Arc<ClientConfig>>,
    /// For `auth.jwt.jwks_url`, with a CA bundle of its own.
    jwks: Option<Arc<ClientConfig>>,
    /// Whom dialled and accepted peers must descend from.
    roots: Option<Arc<RootCertStore>>,
    /// What a hub signs with on the mesh, and whom it believes.
    identity: Option<Arc<MeshIdentity>>,
    /// When certificates end, seconds since 1970, by use.
    not_after: Vec<(&'static str, i64)>,
    stamps: Vec<(PathBuf, Stamp)>,
}

/// What tells that a file was changed.
type Stamp = Option<(SystemTime, u64)>;

fn stamp(path: &PathBuf) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

impl Set {
    /// What a hub's configuration names.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub(crate) fn of_hub(setup: &HubSetup) -> Result<Self, TlsError> {
        let mut set = Self::default();
        if let Some(files) = &setup.http_tls {
            // Before they are read: a change in between is seen at the next look.
            set.stamp([&files.cert_file, &files.key_file]);
            set.http = Some(tls::http_server(files)?);
            set.end("http", "http.tls.cert_file", &files.cert_file)?;
        }
        if let Some(files) = &setup.mesh_tls {
            set.stamp([&files.cert_file, &files.key_file, &files.ca_bundle]);
            if setup.mesh_listen.is_some_and(|m| m.tls == ListenTls::Native) {
                set.mesh = Some(tls::mesh_server(files)?);
            }
            set.dialer = Some(tls::mesh_client(files)?);
            set.roots = Some(tls::bundle("ha.mesh.tls.ca_bundle", &files.ca_bundle)?);
            set.identity = Some(Arc::new(MeshIdentity::load(files)?));
            set.end("mesh", "ha.mesh.tls.cert_file", &files.cert_file)?;
            set.end("mesh_ca", "ha.mesh.tls.ca_bundle", &files.ca_bundle)?;
        }
        let https = setup.auth.jwks.as_ref().filter(|j| j.url.starts_with("https:"));
        if let Some(bundle) = https.and_then(|j| j.ca_bundle.as_ref()) {
            const KEY: &str = "auth.jwt.jwks_ca_bundle";
            set.stamp([bundle]);
            set.jwks = Some(tls::https_client(KEY, Some(bundle))?);
            set.end("jwks_ca", KEY, bundle)?;
        }
        Ok(set)
    }

    /// What an agent's configuration names.
    ///
    /// # Errors
    /// When the bundle cannot be used.
    pub(crate) fn of_agent(setup: &AgentSetup) -> Result<Self, TlsError> {
        let mut set = Self::default();
        if setup.core.hubs.iter().any(|h| h.starts_with("wss:")) {
            set.dialer = Some(tls::tunnel_client(setup.tls_ca_bundle.as_deref())?);
        }
        if let Some(bundle) = &setup.tls_ca_bundle {
            set.stamp([bundle]);
            set.roots = Some(tls::bundle("tls.ca_bundle", bundle)?);
            set.end("tunnel_ca", "tls.ca_bundle", bundle)?;
        }
        Ok(set)
    }

    fn stamp<'a>(&mut self, paths: impl IntoIterator<Item = &'a PathBuf>) {
        self.stamps.extend(paths.into_iter().map(|p| (p.clone(), stamp(p))));
    }

    /// The earliest end of the certificates in a file.
    fn end(&mut self, usage: &'static str, key: &'static str, path: &std::path::Path) -> Result<(), TlsError> {
        let ends = tls::certificates(key, path)?.iter().filter_map(tls::not_after).min();
        self.not_after.extend(ends.map(|at| (usage, at)));
        Ok(())
    }
}

/// The set in force.
pub(crate) struct Certs {
    set: RefCell<Set>,
    http: Option<TlsSource>,
    mesh: Option<TlsSource>,
    /// Renewals: taken, and refused.
    pub(crate) taken: Cell<u64>,
    pub(crate) refused: Cell<u64>,
}

impl Certs {
    pub(crate) fn new(set: Set) -> Self {
        let source = |config: &Option<Arc<ServerConfig>>| config.clone().map(|c| Arc::new(ArcSwap::new(c)));
        Self {
            http: source(&set.http),
            mesh: source(&set.mesh),
            set: RefCell::new(set),
            taken: Cell::new(0),
            refused: Cell::new(0),
        }
    }

    /// TLS of the HTTP port.
    pub(crate) fn http(&self) -> Option<TlsSource> {
        self.http.clone()
    }

    /// TLS of a native mesh port.
    pub(crate) fn mesh(&self) -> Option<TlsSource> {
        self.mesh.clone()
    }

    /// TLS of the next dial.
    pub(crate) fn dialer(&self) -> Option<Arc<ClientConfig>> {
        self.set.borrow().dialer.clone()
    }

    /// TLS of the next fetch of the key set, when its CAs are in a bundle.
    pub(crate) fn jwks(&self) -> Option<Arc<ClientConfig>> {
        self.set.borrow().jwks.clone()
    }

    /// What a hub signs with on the mesh, and whom it believes, from the next
    /// handshake on.
    pub(crate) fn identity(&self) -> Option<Arc<MeshIdentity>> {
        self.set.borrow().identity.clone()
    }

    /// When certificates end, by use.
    pub(crate) fn not_after(&self) -> Vec<(&'static str, i64)> {
        self.set.borrow().not_after.clone()
    }

    /// Puts a set in force for new handshakes.
    pub(crate) fn install(&self, set: Set) {
        if let (Some(source), Some(config)) = (&self.http, &set.http) {
            source.store(Arc::clone(config));
        }
        if let (Some(source), Some(config)) = (&self.mesh, &set.mesh) {
            source.store(Arc::clone(config));
        }
        self.set.replace(set);
    }

    /// Whether a file is not the one that was read, or last looked at.
    pub(crate) fn changed(&self) -> bool {
        let mut set = self.set.borrow_mut();
        let mut changed = false;
        for (path, seen) in &mut set.stamps {
            let now = stamp(path);
            changed |= std::mem::replace(seen, now) != now;
        }
        changed
    }

    /// Reads what changed, by `read`, and ends the connections it does not bear
    /// any more. Whether another set is in force.
    pub(crate) fn renew<M: Machine>(&self, node: &Node<M>, read: impl FnOnce() -> Result<Set, TlsError>) -> bool {
        if !self.changed() {
            return false;
        }
        match read() {
            Ok(set) => {
                self.install(set);
                self.taken.set(self.taken.get() + 1);
                tracing::info!(event = "certificates_reloaded", "new handshakes use the files as they are now");
                self.verify_again(node);
                true
            }
            Err(e) => {
                self.refused.set(self.refused.get() + 1);
                tracing::error!(event = "certificates_unusable", "the last good set stays in use: {e}");
                false
            }
        }
    }

    /// Ends the connections whose peer's chain does not reach the CAs any more.
    pub(crate) fn verify_again<M: Machine>(&self, node: &Node<M>) {
        for (conn, chain) in node.chains() {
            if !self.trusts(&chain) {
                end(node, conn);
            }
        }
    }

    /// Whether a chain that was shown in TLS reaches the CAs in force.
    pub(crate) fn trusts(&self, chain: &[CertificateDer<'static>]) -> bool {
        let Some(roots) = self.set.borrow().roots.clone() else { return true };
        let verdict = tls::reaches(&roots, chain);
        if let Err(why) = &verdict {
            tracing::warn!(
                event = "peer_untrusted",
                "a connection is ended because its peer's certificate does not reach the CAs any more: {why}"
            );
        }
        verdict.is_ok()
    }
}

/// Ends a connection at once: what its pump has read already counts no more.
pub(crate) fn end<M: Machine>(node: &Node<M>, conn: ConnKey) {
    node.input(Input::Disconnected { conn, cause: CloseCode::Auth });
    node.close(conn, CloseCode::Auth);
}

/// The chain a peer showed on a live connection, its own certificate first.
pub(crate) type Chain = Arc<[CertificateDer<'static>]>;

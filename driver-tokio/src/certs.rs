//! Certificates, keys and CA bundles in use, and their renewal: when a file
//! changes, what is used with it is read anew, at a reload everything; what cannot
//! be used leaves the last good set in force, is logged and counted (semantics 8). New
//! handshakes use the new set. A live connection whose peer's chain in TLS does
//! not reach the CAs any more is ended; its session goes on if the peer comes
//! back with a chain that does. What peers of links signed with, `hub/trust.rs`
//! judges. Must not know sessions or configuration keys beyond the files it is
//! given.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
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

/// What files are for. Those of one use are read together, and each use is
/// renewed by itself: a bundle that is broken keeps no other from being renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Use {
    /// `http.tls`.
    Http,
    /// `ha.mesh.tls`.
    Mesh,
    /// `auth.jwt.jwks_ca_bundle`.
    Jwks,
    /// An agent's `tls.ca_bundle`, or the roots of the system.
    Tunnel,
}

/// What was read for one use.
#[derive(Default)]
pub(crate) struct Piece {
    server: Option<Arc<ServerConfig>>,
    client: Option<Arc<ClientConfig>>,
    /// Whom dialled and accepted peers must descend from.
    roots: Option<Arc<RootCertStore>>,
    /// What a hub signs with on the mesh, and whom it believes.
    identity: Option<Arc<MeshIdentity>>,
    /// When certificates end, seconds since 1970, by what they are for.
    not_after: Vec<(&'static str, i64)>,
    stamps: Vec<(PathBuf, Stamp)>,
}

/// One set of everything, as read from files.
#[derive(Default)]
pub(crate) struct Set(BTreeMap<Use, Piece>);

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
        Self::of([Use::Http, Use::Mesh, Use::Jwks], |used| Piece::of_hub(setup, used))
    }

    /// What an agent's configuration names.
    ///
    /// # Errors
    /// When the bundle cannot be used.
    pub(crate) fn of_agent(setup: &AgentSetup) -> Result<Self, TlsError> {
        Self::of([Use::Tunnel], |_| Piece::of_agent(setup))
    }

    /// What is wrong with the files of each use, one at most.
    pub(crate) fn problems_of_hub(setup: &HubSetup) -> Vec<TlsError> {
        [Use::Http, Use::Mesh, Use::Jwks].into_iter().filter_map(|used| Piece::of_hub(setup, used).err()).collect()
    }

    fn of<const N: usize>(uses: [Use; N], read: impl Fn(Use) -> Result<Piece, TlsError>) -> Result<Self, TlsError> {
        uses.into_iter().map(|used| Ok((used, read(used)?))).collect::<Result<_, _>>().map(Self)
    }

    fn get(&self, used: Use) -> Option<&Piece> {
        self.0.get(&used)
    }
}

impl Piece {
    /// What a hub's configuration names for one use.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub(crate) fn of_hub(setup: &HubSetup, used: Use) -> Result<Self, TlsError> {
        let mut piece = Self::default();
        match used {
            Use::Http => {
                let Some(files) = &setup.http_tls else { return Ok(piece) };
                // Before they are read: a change in between is seen at the next look.
                piece.stamp([&files.cert_file, &files.key_file]);
                piece.server = Some(tls::http_server(files)?);
                piece.end("http", "http.tls.cert_file", &files.cert_file)?;
            }
            Use::Mesh => {
                let Some(files) = &setup.mesh_tls else { return Ok(piece) };
                piece.stamp([&files.cert_file, &files.key_file, &files.ca_bundle]);
                if setup.mesh_listen.is_some_and(|m| m.tls == ListenTls::Native) {
                    piece.server = Some(tls::mesh_server(files)?);
                }
                piece.client = Some(tls::mesh_client(files)?);
                piece.roots = Some(tls::bundle("ha.mesh.tls.ca_bundle", &files.ca_bundle)?);
                piece.identity = Some(Arc::new(MeshIdentity::load(files)?));
                piece.end("mesh", "ha.mesh.tls.cert_file", &files.cert_file)?;
                piece.end("mesh_ca", "ha.mesh.tls.ca_bundle", &files.ca_bundle)?;
            }
            Use::Jwks => {
                const KEY: &str = "auth.jwt.jwks_ca_bundle";
                let https = setup.auth.jwks.as_ref().filter(|j| j.url.starts_with("https:"));
                let Some(bundle) = https.and_then(|j| j.ca_bundle.as_ref()) else { return Ok(piece) };
                piece.stamp([bundle]);
                piece.client = Some(tls::https_client(KEY, Some(bundle))?);
                piece.end("jwks_ca", KEY, bundle)?;
            }
            Use::Tunnel => {}
        }
        Ok(piece)
    }

    /// What an agent's configuration names.
    ///
    /// # Errors
    /// When the bundle cannot be used.
    pub(crate) fn of_agent(setup: &AgentSetup) -> Result<Self, TlsError> {
        let mut piece = Self::default();
        if setup.core.hubs.iter().any(|h| h.starts_with("wss:")) {
            piece.client = Some(tls::tunnel_client(setup.tls_ca_bundle.as_deref())?);
        }
        if let Some(bundle) = &setup.tls_ca_bundle {
            piece.stamp([bundle]);
            piece.roots = Some(tls::bundle("tls.ca_bundle", bundle)?);
            piece.end("tunnel_ca", "tls.ca_bundle", bundle)?;
        }
        Ok(piece)
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

    /// Whether a file is not the one that was read, or last looked at.
    fn changed(&mut self) -> bool {
        let mut changed = false;
        for (path, seen) in &mut self.stamps {
            let now = stamp(path);
            changed |= std::mem::replace(seen, now) != now;
        }
        changed
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
        let source = |used| {
            let config: Option<&Arc<ServerConfig>> = set.get(used).and_then(|p| p.server.as_ref());
            config.map(|c| Arc::new(ArcSwap::new(Arc::clone(c))))
        };
        Self {
            http: source(Use::Http),
            mesh: source(Use::Mesh),
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

    fn look<T>(&self, used: Use, what: impl FnOnce(&Piece) -> Option<T>) -> Option<T> {
        self.set.borrow().get(used).and_then(what)
    }

    /// TLS of the next dial: a hub's to its peers, an agent's to its hubs.
    pub(crate) fn dialer(&self) -> Option<Arc<ClientConfig>> {
        [Use::Mesh, Use::Tunnel].into_iter().find_map(|used| self.look(used, |p| p.client.clone()))
    }

    /// TLS of the next fetch of the key set, when its CAs are in a bundle.
    pub(crate) fn jwks(&self) -> Option<Arc<ClientConfig>> {
        self.look(Use::Jwks, |p| p.client.clone())
    }

    /// What a hub signs with on the mesh, and whom it believes, from the next
    /// handshake on.
    pub(crate) fn identity(&self) -> Option<Arc<MeshIdentity>> {
        self.look(Use::Mesh, |p| p.identity.clone())
    }

    /// When certificates end, by use.
    pub(crate) fn not_after(&self) -> Vec<(&'static str, i64)> {
        self.set.borrow().0.values().flat_map(|p| &p.not_after).copied().collect()
    }

    /// Puts a set in force for new handshakes.
    pub(crate) fn install(&self, set: Set) {
        for (used, piece) in set.0 {
            self.put(used, piece);
        }
    }

    fn put(&self, used: Use, piece: Piece) {
        let source = match used {
            Use::Http => &self.http,
            Use::Mesh => &self.mesh,
            Use::Jwks | Use::Tunnel => &None,
        };
        if let (Some(source), Some(config)) = (source, &piece.server) {
            source.store(Arc::clone(config));
        }
        self.set.borrow_mut().0.insert(used, piece);
    }

    /// The uses of which a file is not the one that was read, or last looked at.
    fn changed(&self) -> Vec<Use> {
        let mut set = self.set.borrow_mut();
        set.0.iter_mut().filter_map(|(used, piece)| piece.changed().then_some(*used)).collect()
    }

    /// Reads what changed, by `read`, and ends the connections it does not bear
    /// any more. Whether something else is in force.
    pub(crate) fn renew<M: Machine>(&self, node: &Node<M>, read: impl Fn(Use) -> Result<Piece, TlsError>) -> bool {
        let (mut renewed, mut refused) = (false, false);
        for used in self.changed() {
            match read(used) {
                Ok(piece) => {
                    self.put(used, piece);
                    renewed = true;
                }
                Err(e) => {
                    refused = true;
                    tracing::error!(event = "certificates_unusable", "the last good set stays in use: {e}");
                }
            }
        }
        self.refused.set(self.refused.get() + u64::from(refused));
        if renewed {
            self.taken.set(self.taken.get() + 1);
            tracing::info!(event = "certificates_reloaded", "new handshakes use the files as they are now");
            self.verify_again(node);
        }
        renewed
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
        let roots = [Use::Mesh, Use::Tunnel].into_iter().find_map(|used| self.look(used, |p| p.roots.clone()));
        let Some(roots) = roots else { return true };
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

//! Key sets by URL (semantics 8, attacks 16, 17, 24): fetched over https in
//! the background, never for a token and never where a token says.
//!
//! Owns when a fetch happens: at the start, every `jwks_refresh`, and after an
//! unknown `kid`, but then at most once in 30 s, one at a time. A set that is
//! good replaces the one before, here and on disk; a fetch that fails changes
//! nothing until `jwks_max_age` has passed. Time, size and redirects of the
//! answer are bounded. A set outlives the configuration it was fetched under:
//! a reload that leaves the URL as it is takes it over, one that names another
//! URL fetches first. What a set is good for, `auth.rs` says.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ACCEPT, HOST, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::auth::{JWKS_MAX_BYTES, TunnelAuth};
use crate::clock::unix_millis;
use crate::config::JwksSetup;
use crate::tls::{self, TlsError};

/// The whole of one fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// The same while a reload waits for it, whose answer is waited for 10 s.
const RELOAD_FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two fetches, unless `jwks_refresh` is shorter (attack 16).
const PAUSE: Duration = Duration::from_secs(30);

/// Why a fetch came to nothing; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FetchFault {
    /// No address, or none that answers.
    Connect,
    /// TLS failed.
    Tls,
    /// It took longer than 10 s, or 5 s at a reload.
    Timeout,
    /// No proper HTTP answer.
    Http,
    /// Another status than 200.
    Status,
    /// A redirect: never followed.
    Redirect,
    /// More than 256 KiB.
    TooLarge,
    /// No key set, or none that can be used.
    Content,
}

impl FetchFault {
    /// The metric label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Http => "http",
            Self::Status => "status",
            Self::Redirect => "redirect",
            Self::TooLarge => "too_large",
            Self::Content => "content",
        }
    }
}

/// Fetches so far, by result: of all the key sets a process ever had, so that a
/// reload never makes a total fall.
#[derive(Debug, Default)]
pub struct Fetches(RefCell<BTreeMap<&'static str, u64>>);

impl Fetches {
    fn note(&self, result: &'static str) {
        *self.0.borrow_mut().entry(result).or_default() += 1;
    }

    /// The totals.
    #[must_use]
    pub fn results(&self) -> BTreeMap<&'static str, u64> {
        self.0.borrow().clone()
    }
}

/// A set in use.
#[derive(Clone)]
struct Set {
    /// When it was fetched, milliseconds since 1970.
    at: u64,
    bytes: Bytes,
}

/// One URL with its key set.
pub struct Jwks {
    setup: JwksSetup,
    tls: RefCell<Option<Arc<rustls::ClientConfig>>>,
    /// A token named a key that nobody knows.
    wanted: Cell<bool>,
    wake: Notify,
    set: RefCell<Option<Set>>,
    /// It was fetched before the task began.
    is_fresh: Cell<bool>,
    /// The copy on disk is not of it.
    is_unsaved: Cell<bool>,
    fetches: Rc<Fetches>,
}

impl std::fmt::Debug for Jwks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwks").finish_non_exhaustive()
    }
}

impl Jwks {
    /// Prepares TLS and takes the copy on disk, if it is young enough.
    ///
    /// # Errors
    /// When the CA bundle cannot be used.
    pub fn new(setup: &JwksSetup, auth: &TunnelAuth, fetches: &Rc<Fetches>) -> Result<Self, TlsError> {
        let jwks = Self::empty(setup, fetches)?;
        jwks.take_copy(auth);
        Ok(jwks)
    }

    /// What takes the place of `before` at a reload. The same URL keeps its set,
    /// judged by the rules of `auth`; of another one a set is fetched first.
    ///
    /// # Errors
    /// When the CA bundle cannot be used, or there would be no set where a fetch
    /// or a copy must give one.
    pub async fn instead_of(
        before: Option<&Self>,
        setup: &JwksSetup,
        auth: &TunnelAuth,
        fetches: &Rc<Fetches>,
    ) -> Result<Self, String> {
        let jwks = Self::empty(setup, fetches).map_err(|e| e.to_string())?;
        let same = before.filter(|b| b.setup.url == setup.url && b.setup.ca_bundle == setup.ca_bundle);
        if let Some(before) = same {
            let Some(set) = before.set.borrow().clone() else {
                // There was none: nothing gets worse, and it is looked for at once.
                jwks.take_copy(auth);
                return Ok(jwks);
            };
            if auth.take_fetched(&set.bytes).is_ok() {
                jwks.is_unsaved.set(before.is_unsaved.get() || before.setup.cache_file != setup.cache_file);
                jwks.set.replace(Some(set));
                return Ok(jwks);
            }
            // Other algorithms, which a newer set may fit.
        }
        let Err((fault, why)) = jwks.fetch_and_take(auth, RELOAD_FETCH_TIMEOUT).await else {
            jwks.is_fresh.set(true);
            jwks.is_unsaved.set(true);
            return Ok(jwks);
        };
        // What lies in the file is of the URL that was, if the file is the same.
        let own_copy = same.is_some() || before.is_none_or(|b| b.setup.cache_file != setup.cache_file);
        if own_copy {
            jwks.take_copy(auth);
        }
        if jwks.set.borrow().is_some() {
            return Ok(jwks);
        }
        let (colon, why) = why.as_ref().map_or(("", ""), |why| (": ", why.as_str()));
        Err(format!(
            "auth.jwt.jwks_url: expected a key set, the fetch came to nothing ({}{colon}{why}), and \
             auth.jwt.jwks_cache_file holds no copy of it: the keys of before stay in force",
            fault.name()
        ))
    }

    fn empty(setup: &JwksSetup, fetches: &Rc<Fetches>) -> Result<Self, TlsError> {
        let tls = if setup.url.starts_with("https:") {
            Some(tls::https_client("auth.jwt.jwks_ca_bundle", setup.ca_bundle.as_deref())?)
        } else {
            None
        };
        Ok(Self {
            setup: setup.clone(),
            tls: RefCell::new(tls),
            wanted: Cell::new(false),
            wake: Notify::new(),
            set: RefCell::default(),
            is_fresh: Cell::new(false),
            is_unsaved: Cell::new(false),
            fetches: Rc::clone(fetches),
        })
    }

    fn take_copy(&self, auth: &TunnelAuth) {
        let Some(path) = &self.setup.cache_file else { return };
        let written = std::fs::metadata(path).and_then(|m| m.modified()).ok();
        let since = written.and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        let Some(at) = since.and_then(|d| u64::try_from(d.as_millis()).ok()) else { return };
        if unix_millis().saturating_sub(at) > millis(self.setup.max_age) {
            return tracing::warn!(event = "jwks_copy_too_old", file = %path.display(), "auth.jwt.jwks_max_age has passed");
        }
        let taken = crate::auth::read_limited(path).and_then(|bytes| auth.take_fetched(&bytes).map(|()| bytes));
        match taken {
            Ok(bytes) => {
                self.set.replace(Some(Set { at, bytes: bytes.into() }));
                tracing::info!(event = "jwks_copy_used", file = %path.display());
            }
            Err(why) => {
                tracing::warn!(event = "jwks_copy_unusable", file = %path.display(), "auth.jwt.jwks_cache_file: {why}");
            }
        }
    }

    /// The next fetch trusts what `tls` does: the CA bundle has changed.
    pub(crate) fn trust(&self, tls: Arc<rustls::ClientConfig>) {
        self.tls.replace(Some(tls));
    }

    /// What a fetch trusts now.
    #[cfg(test)]
    pub(crate) fn tls(&self) -> Option<Arc<rustls::ClientConfig>> {
        self.tls.borrow().clone()
    }

    /// A token named an unknown key: look soon, at most once in 30 s.
    pub fn ask(&self) {
        self.wanted.set(true);
        self.wake.notify_one();
    }

    /// Age of the set in use, seconds.
    #[must_use]
    pub fn age_seconds(&self) -> Option<u64> {
        self.set.borrow().as_ref().map(|set| unix_millis().saturating_sub(set.at) / 1000)
    }

    /// Keeps the set fresh until the task is dropped.
    pub async fn run(self: Rc<Self>, auth: Rc<TunnelAuth>) {
        let pause = PAUSE.min(self.setup.refresh);
        if self.is_unsaved.get() {
            self.save();
        }
        loop {
            self.wanted.set(false);
            let started = Instant::now();
            let ok = self.is_fresh.take() || self.refresh(&auth).await;
            self.forget_if_old(&auth);
            // A failure is tried again soon, a success when the set grows old.
            let next = started + if ok { self.setup.refresh } else { pause };
            tokio::time::sleep_until(started + pause).await;
            while Instant::now() < next && !self.wanted.get() {
                tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    () = self.wake.notified() => {}
                }
            }
        }
    }

    fn forget_if_old(&self, auth: &TunnelAuth) {
        let old = |set: &Set| unix_millis().saturating_sub(set.at) > millis(self.setup.max_age);
        if self.set.borrow_mut().take_if(|set| old(set)).is_some() {
            auth.drop_fetched();
            tracing::error!(
                event = "jwks_too_old",
                "auth.jwt.jwks_max_age has passed without a good fetch: its keys are not used any more"
            );
        }
    }

    async fn refresh(&self, auth: &TunnelAuth) -> bool {
        match self.fetch_and_take(auth, FETCH_TIMEOUT).await {
            Ok(()) => {
                self.save();
                true
            }
            Err((_, Some(why))) => {
                tracing::warn!(event = "jwks_unusable", "auth.jwt.jwks_url: {why}; the last good set stays in use");
                false
            }
            Err((fault, None)) => {
                let reason = fault.name();
                tracing::warn!(
                    event = "jwks_fetch_failed",
                    reason,
                    "auth.jwt.jwks_url: the last good set stays in use"
                );
                false
            }
        }
    }

    /// Fetches a set and uses it; why not, with what is wrong with its content.
    async fn fetch_and_take(&self, auth: &TunnelAuth, within: Duration) -> Result<(), (FetchFault, Option<String>)> {
        let fetched = timeout(within, Box::pin(self.fetch())).await.unwrap_or(Err(FetchFault::Timeout));
        let taken = fetched.map_err(|fault| (fault, None)).and_then(|bytes| {
            auth.take_fetched(&bytes).map(|()| bytes).map_err(|why| (FetchFault::Content, Some(why)))
        });
        self.fetches.note(taken.as_ref().map_or_else(|(fault, _)| fault.name(), |_| "ok"));
        taken.map(|bytes| drop(self.set.replace(Some(Set { at: unix_millis(), bytes }))))
    }

    /// Puts a copy of the set on disk.
    fn save(&self) {
        self.is_unsaved.set(false);
        if let (Some(path), Some(set)) = (&self.setup.cache_file, &*self.set.borrow())
            && let Err(e) = store(path, set)
        {
            tracing::warn!(event = "jwks_copy_failed", "auth.jwt.jwks_cache_file: {}: {e}", path.display());
        }
    }

    async fn fetch(&self) -> Result<Bytes, FetchFault> {
        let uri: Uri = self.setup.url.parse().map_err(|_| FetchFault::Connect)?;
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = self.tls.borrow().clone();
        let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(|_| FetchFault::Connect)?;
        match tls {
            None => exchange(tcp, &uri).await,
            Some(config) => {
                let name = ServerName::try_from(host).map_err(|_| FetchFault::Tls)?;
                let connector = tokio_rustls::TlsConnector::from(config);
                let tls = connector.connect(name, tcp).await.map_err(|_| FetchFault::Tls)?;
                exchange(tls, &uri).await
            }
        }
    }
}

async fn exchange(io: impl AsyncRead + AsyncWrite + Unpin + 'static, uri: &Uri) -> Result<Bytes, FetchFault> {
    let authority = uri.authority().map_or("", http::uri::Authority::as_str);
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let request = Request::get(path)
        .header(HOST, authority)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("nowconnect/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchFault::Http)?;
    let (mut sender, conn) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(16 * 1024)
        .max_headers(64)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|_| FetchFault::Http)?;
    let answer = async move {
        let response = sender.send_request(request).await.map_err(|_| FetchFault::Http)?;
        let status = response.status();
        if status.is_redirection() {
            return Err(FetchFault::Redirect);
        }
        if status != StatusCode::OK {
            return Err(FetchFault::Status);
        }
        let most = usize::try_from(JWKS_MAX_BYTES).unwrap_or(usize::MAX);
        let body = Limited::new(response.into_body(), most).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|e| {
            if e.is::<http_body_util::LengthLimitError>() { FetchFault::TooLarge } else { FetchFault::Http }
        })
    };
    let mut answer = std::pin::pin!(answer);
    let mut conn = std::pin::pin!(conn);
    let mut over = false;
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            _ = &mut conn, if !over => over = true,
        }
    }
}

/// All of it or nothing: a reader never sees half a set. The file is as old as
/// the set.
fn store(path: &Path, set: &Set) -> std::io::Result<()> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(&set.bytes)?;
    file.as_file().set_modified(UNIX_EPOCH + Duration::from_millis(set.at))?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::config::AuthSetup;

    const SET: &str = r#"{"keys":[{"kty":"EC","kid":"1","crv":"P-256",
        "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;
    const HOUR: Duration = Duration::from_secs(3600);

    /// A set fetched two hours ago, of which a copy is on disk.
    fn two_hours_old(max_age: Duration) -> (Jwks, TunnelAuth, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jwks.json");
        std::fs::write(&path, SET).unwrap();
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(UNIX_EPOCH + Duration::from_millis(unix_millis()) - 2 * HOUR)
            .unwrap();
        let setup = JwksSetup {
            url: "http://127.0.0.1:1/keys".to_owned(),
            ca_bundle: None,
            cache_file: Some(path),
            refresh: HOUR / 2,
            max_age,
        };
        let auth = AuthSetup {
            audience: "nowconnect".to_owned(),
            issuer: Some("i".to_owned()),
            algorithms: Vec::new(),
            public_key_file: None,
            hmac_secret_file: None,
            jwks_file: None,
            jwks: Some(setup.clone()),
            max_lifetime: 24 * HOUR,
            leeway: Duration::ZERO,
        };
        let auth = TunnelAuth::from_setup(&auth).unwrap();
        (Jwks::new(&setup, &auth, &Rc::default()).unwrap(), auth, dir)
    }

    /// `auth.jwt.jwks_max_age`, of a copy at the start.
    #[test]
    fn a_copy_is_used_until_it_is_too_old() {
        let age = |max_age| two_hours_old(max_age).0.age_seconds();
        assert!(age(3 * HOUR).is_some_and(|s| s >= 7200));
        assert_eq!(age(HOUR), None);
    }

    /// The same of a set in use that cannot be fetched again.
    #[test]
    fn a_set_in_use_is_dropped_when_it_is_too_old() {
        let (mut jwks, auth, _dir) = two_hours_old(3 * HOUR);
        jwks.forget_if_old(&auth);
        assert!(jwks.age_seconds().is_some());
        jwks.setup.max_age = HOUR;
        jwks.forget_if_old(&auth);
        assert_eq!(jwks.age_seconds(), None);
    }
}

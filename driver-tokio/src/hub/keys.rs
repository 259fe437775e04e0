//! What tunnels' tokens are verified with: keys from files, and by URL with
//! the task that fetches them. One set is in force at a time; a reload makes
//! the next one in full before it takes the place of this one (M7).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use nowconnect_core::principal::AgentGrant;

use super::Shared;
use crate::auth::{AuthReject, TokenGrant, TunnelAuth};
use crate::cli::RunError;
use crate::clock::{Monotonic, unix_millis};
use crate::config::AuthSetup;
use crate::jwks::{Fetches, Jwks};
use crate::limiter::Limiter;

/// A set of keys.
pub(crate) struct Keys {
    auth: Rc<TunnelAuth>,
    /// The keys by URL.
    pub(crate) jwks: Option<Rc<Jwks>>,
    /// Fetches of this one and of those before.
    pub(crate) fetches: Rc<Fetches>,
    checked: Cell<u64>,
    fetching: RefCell<Option<tokio::task::JoinHandle<()>>>,
}

impl Keys {
    /// Reads the files, and begins to fetch what comes by URL.
    ///
    /// # Errors
    /// The first file or URL that cannot be used.
    pub(crate) fn load(setup: &AuthSetup) -> Result<Self, RunError> {
        let config = |e: &dyn std::fmt::Display| RunError::Config(e.to_string());
        let auth = TunnelAuth::from_setup(setup).map_err(|e| config(&e))?;
        let fetches = Rc::default();
        let jwks = setup.jwks.as_ref().map(|j| Jwks::new(j, &auth, &fetches)).transpose().map_err(|e| config(&e))?;
        let keys = Self::of(auth, jwks, fetches);
        keys.begin();
        Ok(keys)
    }

    /// What takes the place of these keys at a reload, with what was fetched of
    /// them. [`Keys::begin`] starts its fetches, once it is in force.
    ///
    /// # Errors
    /// The first file or URL that cannot be used.
    pub(crate) async fn renewed(&self, setup: &AuthSetup) -> Result<Self, RunError> {
        let auth = TunnelAuth::from_setup(setup).map_err(|e| RunError::Config(e.to_string()))?;
        let jwks = match &setup.jwks {
            Some(j) => {
                Some(Jwks::instead_of(self.jwks.as_deref(), j, &auth, &self.fetches).await.map_err(RunError::Config)?)
            }
            None => None,
        };
        Ok(Self::of(auth, jwks, Rc::clone(&self.fetches)))
    }

    fn of(auth: TunnelAuth, jwks: Option<Jwks>, fetches: Rc<Fetches>) -> Self {
        Self {
            auth: Rc::new(auth),
            jwks: jwks.map(Rc::new),
            fetches,
            checked: Cell::new(0),
            fetching: RefCell::default(),
        }
    }

    /// Begins to fetch what comes by URL.
    pub(crate) fn begin(&self) {
        let run = |j: &Rc<Jwks>| tokio::task::spawn_local(Rc::clone(j).run(Rc::clone(&self.auth)));
        self.fetching.replace(self.jwks.as_ref().map(run));
    }

    /// The CA bundle of the key set by URL was read again: what its next fetch
    /// trusts. What was fetched stays.
    pub(crate) fn trust(&self, tls: Option<Arc<rustls::ClientConfig>>) {
        if let (Some(jwks), Some(tls)) = (&self.jwks, tls) {
            jwks.trust(tls);
        }
    }

    /// Key files are looked at again at most once a second.
    fn refresh(&self, now_millis: u64, lines: &Limiter) {
        if now_millis.saturating_sub(self.checked.replace(now_millis)) < 1000 {
            return;
        }
        match self.auth.reload_if_changed() {
            Ok(true) => tracing::info!(event = "keys_reloaded"),
            Ok(false) => {}
            Err(e) => {
                if let Some(suppressed) = lines.allow("keys_unusable", "") {
                    tracing::error!(event = "keys_unusable", suppressed, "the last good keys stay in use: {e}");
                }
            }
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(task) = self.fetching.get_mut() {
            task.abort();
        }
    }
}

impl Shared {
    /// The keys in force.
    pub(crate) fn keys(&self) -> Rc<Keys> {
        Rc::clone(&self.keys.borrow())
    }

    /// What a token grants, on the core's clock. A refusal is counted and told;
    /// an unknown key makes the key set by URL look again.
    pub(crate) fn grant(
        &self,
        clock: &Monotonic,
        verify: impl FnOnce(&TunnelAuth, u64) -> Result<TokenGrant, AuthReject>,
    ) -> Result<AgentGrant, AuthReject> {
        let now = unix_millis();
        let keys = self.keys();
        keys.refresh(now, &self.lines);
        let result = verify(&keys.auth, now / 1000);
        if let Err(reject) = &result {
            if let (AuthReject::UnknownKey, Some(jwks)) = (reject, &keys.jwks) {
                jwks.ask();
            }
            if let Some(suppressed) = self.lines.allow("auth_rejected", reject.name()) {
                tracing::warn!(event = "auth_rejected", reason = reject.name(), suppressed, "{reject}");
            }
            self.counts.refusal(reject.name());
        }
        result.map(|grant| grant.on_clock(now / 1000, clock.now()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::{ParseOptions, parse_hub};

    const SET: &str = r#"{"keys":[{"kty":"EC","kid":"1","crv":"P-256",
        "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;
    /// Names the key of the set; nobody signed it.
    const TOKEN: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6IjEifQ.e30.AAAA";

    fn auth(jwt: &str) -> AuthSetup {
        let text =
            format!("auth: {{ jwt: {{ issuer: i, jwks_refresh: 1h, insecure_allow_plaintext_jwks: true, {jwt} }} }}");
        parse_hub(&text, &|_| None, ParseOptions::default()).unwrap().auth
    }

    /// A key server that answers `answers` requests and is gone then; its URL.
    async fn key_server(answers: usize) -> (String, tokio::task::JoinHandle<()>) {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", socket.local_addr().unwrap());
        let task = tokio::task::spawn_local(async move {
            for _ in 0..answers {
                let (mut client, _) = socket.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{SET}", SET.len());
                client.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (url, task)
    }

    /// Keys with a set from a server that is gone.
    async fn fetched(more: &str) -> (Keys, String) {
        let (url, server) = key_server(1).await;
        let keys = Keys::load(&auth(&format!("jwks_url: '{url}'{more}"))).unwrap();
        server.await.unwrap();
        tokio::time::timeout(Duration::from_secs(30), async {
            while keys.jwks.as_ref().unwrap().age_seconds().is_none() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        (keys, url)
    }

    fn verdict(keys: &Keys) -> AuthReject {
        keys.auth.verify_token(TOKEN, 0).unwrap_err()
    }

    fn age(keys: &Keys) -> Option<u64> {
        keys.jwks.as_ref().and_then(|jwks| jwks.age_seconds())
    }

    async fn local(test: impl Future<Output = ()>) {
        tokio::task::LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn a_fetched_set_outlives_a_change_of_anything_but_its_url() {
        local(async {
            let (keys, url) = fetched("").await;
            let next = keys.renewed(&auth(&format!("jwks_url: '{url}', leeway: 6s"))).await.unwrap();
            next.begin();
            assert_eq!(verdict(&next), AuthReject::Signature, "the key is known");
            assert!(age(&next).is_some(), "its age is shown");
            assert_eq!(next.fetches.results().get("ok"), Some(&1), "and the totals go on");
        })
        .await;
    }

    #[tokio::test]
    async fn a_kept_set_is_judged_by_the_new_algorithms() {
        local(async {
            let (keys, url) = fetched("").await;
            let why = keys.renewed(&auth(&format!("jwks_url: '{url}', algorithms: [EdDSA]"))).await.err().unwrap();
            assert!(why.to_string().contains("auth.jwt.jwks_url: expected a key set"), "{why}");
            assert_eq!(verdict(&keys), AuthReject::Signature, "what is in force stays");
        })
        .await;
    }

    #[tokio::test]
    async fn another_url_is_fetched_before_its_keys_are_in_force() {
        local(async {
            let dir = tempfile::tempdir().unwrap();
            let copy = dir.path().join("set.json");
            let file = format!(", jwks_cache_file: {}", copy.display());
            let (keys, first) = fetched(&file).await;
            let to = |url: &str, more: &str| auth(&format!("jwks_url: '{url}'{more}"));
            // The copy on disk is the first URL's.
            let why = keys.renewed(&to("http://127.0.0.1:1/keys", &file)).await.err().unwrap();
            assert!(why.to_string().contains("(connect)"), "{why}");
            assert_eq!(keys.fetches.results(), [("connect", 1), ("ok", 1)].into(), "counted all the same");

            std::fs::write(&copy, "the first one's").unwrap();
            let (second, server) = key_server(1).await;
            let next = keys.renewed(&to(&second, &file)).await.unwrap();
            server.await.unwrap();
            assert_eq!((verdict(&next), age(&next)), (AuthReject::Signature, Some(0)));
            assert_eq!(std::fs::read(&copy).unwrap(), b"the first one's", "it is not in force yet");
            next.begin();
            tokio::time::timeout(Duration::from_secs(30), async {
                while std::fs::read(&copy).unwrap() != SET.as_bytes() {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .unwrap();
            assert_eq!(next.fetches.results().get("ok"), Some(&2), "a set fetched just now is not fetched again");

            // By URL no more, and again: totals go on.
            let secret = dir.path().join("secret");
            std::fs::write(&secret, [b'a'; 32]).unwrap();
            let by_file = auth(&format!("hmac_secret_file: {}, algorithms: [HS256]", secret.display()));
            let without = next.renewed(&by_file).await.unwrap();
            assert!(without.jwks.is_none());
            assert!(without.renewed(&to(&first, "")).await.is_err());
            assert_eq!(without.fetches.results(), [("connect", 2), ("ok", 2)].into());
        })
        .await;
    }
}

//! Reloads of an agent that wait: a hub has not judged the fresh token yet.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::sync::Notify;

use super::*;
use crate::admin::{Action, AdminApp as _};
use crate::config::{ParseOptions, parse_agent};

const HUB: &str = "hub-a";
const NARROW: &str = r#"{"connectors":["a"]}"#;
const WIDE: &str = r#"{"connectors":["a","b"]}"#;

fn token(claims: &str) -> String {
    format!("h.{}.s", URL_SAFE_NO_PAD.encode(claims))
}

fn setup(dir: &Path, connectors: &[&str]) -> AgentSetup {
    let connectors: Vec<String> =
        connectors.iter().map(|name| format!("{{ name: {name}, target: '127.0.0.1:1' }}")).collect();
    let text = format!(
        "agent_id: plant-7\nhubs: ['ws://127.0.0.1:1/tunnel']\ntoken_file: '{}'\nconnectors: [{}]\n\
         insecure_allow_plaintext: true\n",
        dir.join("token").display(),
        connectors.join(", ")
    );
    parse_agent(&text, &|_| None, ParseOptions::default()).unwrap()
}

/// An agent whose file and token name one more connector than the hub knows of.
struct Widened {
    agent: RunningAgent,
    app: app::App,
    _dir: tempfile::TempDir,
}

impl Widened {
    fn start() -> Self {
        let dir = tempfile::TempDir::new().unwrap();
        std::fs::write(dir.path().join("token"), token(WIDE)).unwrap();
        let path: PathBuf = dir.path().to_owned();
        let source: Source = Box::new(move || Ok(setup(&path, &["a", "b"])));
        let agent = start(setup(dir.path(), &["a"]), Some(source)).unwrap();
        let mut scopes = agent.shared.scopes.borrow_mut();
        scopes.dials_with(&token(NARROW));
        scopes.up(HUB);
        drop(scopes);
        let app = app::App { node: agent.node.clone(), shared: Rc::clone(&agent.shared) };
        Self { agent, app, _dir: dir }
    }

    /// The hub takes the token: a reload that waits for it comes to its end.
    fn token_taken(&self) {
        let mut scopes = self.agent.shared.scopes.borrow_mut();
        scopes.sends(&token(WIDE));
        scopes.accepted(HUB);
    }

    fn connectors(&self) -> usize {
        self.agent.shared.setup().core.connectors.len()
    }

    fn total(&self, result: &str) -> u64 {
        let page = String::from_utf8(self.app.metrics().unwrap().1).unwrap();
        let series = format!("nowconnect_config_reloads_total{{result=\"{result}\"}} ");
        page.lines().find_map(|l| l.strip_prefix(&series)).unwrap().parse().unwrap()
    }
}

/// Lets everything else run until `condition` holds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), holds).await.is_ok(), "never: {what}");
}

fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_reload_whose_asker_went_away_is_done_and_blocks_no_other() {
    local(async {
        let w = Widened::start();
        let mut asked = w.app.act(Action::Reload);
        // As hyper does with the exchange of an asker that breaks off.
        tokio::select! {
            biased;
            answer = &mut asked => panic!("answered before the hub had judged: {answer:?}"),
            () = tokio::time::sleep(Duration::from_millis(1)) => drop(asked),
        }
        w.token_taken();
        until("it is in force", || w.connectors() == 2).await;
        let (status, body) = w.app.act(Action::Reload).await;
        assert_eq!((status, w.total("applied")), (200, 2), "{body}");
    });
}

#[test]
fn a_reload_during_another_is_refused_aloud_and_a_signal_waits_for_its_turn() {
    local(async {
        let w = Widened::start();
        let asked = w.app.act(Action::Reload);
        tokio::task::yield_now().await;
        let (status, body) = w.app.act(Action::Reload).await;
        assert_eq!(status, 422, "{body}");
        assert!(body.contains("another reload is under way"), "{body}");
        assert_eq!((w.total("applied"), w.total("refused")), (0, 1));

        let hup = Notify::new();
        let reloads = w.agent.reloads(&hup);
        tokio::pin!(reloads);
        hup.notify_one();
        tokio::select! {
            biased;
            () = &mut reloads => {}
            () = tokio::task::yield_now() => {}
        }
        // Two during one are one more.
        hup.notify_one();
        hup.notify_one();
        w.token_taken();
        let three = until("all of them", || w.total("applied") == 3);
        tokio::select! {
            () = &mut reloads => {}
            () = three => {}
        }
        assert_eq!((asked.await.0, w.connectors(), w.total("refused")), (200, 2, 1));
    });
}

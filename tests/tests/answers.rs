//! What processes answer their operator, against the schemas the command prints
//! (`nowconnect status --schema`): every object of a schema is closed, so a
//! field that nobody documented fails here.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use jsonschema::Validator;
use nowconnect_tests::actors::Pinger;
use nowconnect_tests::cluster::{Cluster, Plan};
use nowconnect_tests::http::{self, Answer};
use nowconnect_tests::ports::Port;
use nowconnect_tests::process::{nowconnect, run};
use nowconnect_tests::target::Target;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded, eventually};
use serde_json::{Value, json};

/// The published schemas, by name.
struct Schemas(BTreeMap<&'static str, Validator>);

impl Schemas {
    async fn printed() -> Self {
        let mut all = BTreeMap::new();
        for answer in ["status", "readyz", "readyz-listener", "drain", "undrain", "reload"] {
            let done = run(nowconnect(["status", "--schema", answer])).await;
            assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
            let schema = serde_json::from_str(&done.stdout).unwrap();
            all.insert(answer, jsonschema::validator_for(&schema).unwrap());
        }
        Self(all)
    }

    /// The JSON of an answer that had to come with this HTTP status. A field
    /// more, at the top or in an object of the answer, and it would not fit.
    fn hold(&self, schema: &str, answer: &Answer, status: u16) -> Value {
        assert_eq!(answer.status, status, "{}", answer.body);
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        let validator = &self.0[schema];
        let errors: Vec<String> = validator.iter_errors(&body).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{schema}: {errors:?} in {body:#}");
        let mut more = body.clone();
        more["undocumented"] = 1.into();
        assert!(!validator.is_valid(&more), "{schema} is open");
        body
    }
}

fn socket(cluster: &Cluster, process: &str) -> PathBuf {
    cluster.dir().join(format!("{process}.sock"))
}

async fn get(cluster: &Cluster, process: &str, path: &str) -> Answer {
    http::get_unix(&socket(cluster, process), path).await.unwrap()
}

async fn post(cluster: &Cluster, process: &str, path: &str) -> Answer {
    http::post_unix(&socket(cluster, process), path).await.unwrap()
}

/// Exit code and printed lines of a command that asks a process.
async fn command(cluster: &Cluster, process: &str, args: &[&str]) -> (Option<i32>, Vec<Answer>) {
    let mut command = nowconnect(args);
    command.arg("--socket").arg(socket(cluster, process));
    let done = bounded("the command", LONG_PATIENCE, run(command)).await;
    let line = |body: &str| Answer { status: 200, body: body.to_owned() };
    (done.status.code(), done.stdout.lines().map(line).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_answers_are_as_published() {
    let schemas = Schemas::printed().await;
    let target = Target::start().await;
    let closed = Port::reserve();
    let plan = Plan {
        attach: vec![0, 1],
        parallel: 2,
        connector_extra: ", health: { kind: tcp, interval: 200ms, timeout: 200ms, fall: 1 }".to_owned(),
        hub_extra: "drain: { lameduck: 10m, timeout: 10m }\n".to_owned(),
        ..Plan::default()
    };
    let mut cluster = plan.connector("t", target.addr).connector("closed", closed.addr).start_processes().await;
    for ix in [0, 1] {
        cluster.wait_open(ix, "t").await;
        cluster.wait_metric(ix, "nowconnect_tunnels", &[], 1.0).await;
        cluster.wait_metric(ix, "nowconnect_mesh_links", &[("state", "established")], 1.0).await;
    }
    let mut stream = Pinger::open(cluster.listener(0, "t"), 1).await.unwrap();
    stream.ping(1000).await.unwrap();

    // Hubs with a link, an attachment and a stream.
    let status = schemas.hold("status", &get(&cluster, "hub-a", "/status").await, 200);
    assert_eq!((&status["role"], &status["drain"]), (&"hub".into(), &Value::Null), "{status:#}");
    assert_eq!(status["links"][0]["session"]["state"], "connected", "{status:#}");
    let there = json!(cluster.hubs[1].mesh_url());
    assert_eq!(status["links"][0]["url"], there, "{status:#}");
    assert_eq!(status["tunnels"][0]["session"]["state"], "connected", "{status:#}");
    assert_eq!((&status["streams"], &status["listeners"][0]["clients"]), (&1.into(), &1.into()), "{status:#}");
    let ready = eventually("hub A is ready", PATIENCE, || async {
        let answer = get(&cluster, "hub-a", "/readyz").await;
        let body = schemas.hold("readyz", &answer, answer.status);
        (body["status"] == "ready").then_some(body)
    })
    .await;
    assert_eq!(ready["mesh"]["links"][0]["state"], "established", "{ready:#}");
    assert_eq!(ready["mesh"]["links"][0]["url"], there, "{ready:#}");
    schemas.hold("readyz-listener", &get(&cluster, "hub-a", "/readyz/t").await, 200);
    let unready = eventually("`closed` is withdrawn", PATIENCE, || async {
        let answer = get(&cluster, "hub-a", "/readyz/closed").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_eq!(schemas.hold("readyz-listener", &unready, 503)["reason"], "no_candidate");
    schemas.hold("readyz-listener", &get(&cluster, "hub-a", "/readyz/nobody").await, 404);

    // The agent, one of its targets down.
    let status = schemas.hold("status", &get(&cluster, "agent", "/status").await, 200);
    assert_eq!(status["connectors"][1]["last_failure"], "REFUSED", "{status:#}");
    assert_eq!(status["hubs"][1]["session"]["state"], "connected", "{status:#}");
    let ready = schemas.hold("readyz", &get(&cluster, "agent", "/readyz").await, 200);
    assert_eq!((&ready["reasons"], &ready["targets"]["closed"]), (&json!(["targets_down"]), &"down".into()));
    schemas.hold("readyz-listener", &get(&cluster, "agent", "/readyz/t").await, 404);

    // Reloads, of which one is refused and one needs a restart.
    let file = cluster.hub_file(0);
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replace("  mode: active\n", "  mode: sideways\n")).unwrap();
    let refused = schemas.hold("reload", &post(&cluster, "hub-a", "/reload").await, 422);
    assert!(refused["error"].as_str().unwrap().contains("ha.mode"), "{refused}");
    fs::write(&file, good.replace("  namespace: tests\n", "  namespace: other\n")).unwrap();
    let applied = schemas.hold("reload", &post(&cluster, "hub-a", "/reload").await, 200);
    assert_eq!(applied["needs_restart"], json!(["ha.namespace"]));
    let status = schemas.hold("status", &get(&cluster, "hub-a", "/status").await, 200);
    assert_eq!(status["needs_restart"], json!(["ha.namespace"]));
    schemas.hold("reload", &post(&cluster, "agent", "/reload").await, 200);

    // A peer that is missed.
    cluster.kill_hub(1);
    let degraded = eventually("hub A is degraded", LONG_PATIENCE, || async {
        let answer = get(&cluster, "hub-a", "/readyz").await;
        let body = schemas.hold("readyz", &answer, answer.status);
        (body["status"] == "degraded").then_some(body)
    })
    .await;
    assert!(degraded["mesh"]["links"][0]["down_seconds"].is_number(), "{degraded:#}");
    schemas.hold("status", &get(&cluster, "hub-a", "/status").await, 200);

    // A drain, taken back; and one of the agent, which cannot be.
    schemas.hold("undrain", &post(&cluster, "hub-a", "/undrain").await, 409);
    let draining = schemas.hold("drain", &post(&cluster, "hub-a", "/drain").await, 200);
    assert_eq!((&draining["phase"], &draining["agents"]["attached"]), (&"lameduck".into(), &1.into()), "{draining}");
    let status = schemas.hold("status", &get(&cluster, "hub-a", "/status").await, 200);
    assert_eq!((&status["drain"]["phase"], &status["drain"]["streams"]), (&"lameduck".into(), &1.into()));
    schemas.hold("readyz", &get(&cluster, "hub-a", "/readyz").await, 503);
    schemas.hold("readyz-listener", &get(&cluster, "hub-a", "/readyz/t").await, 503);
    schemas.hold("undrain", &post(&cluster, "hub-a", "/undrain").await, 200);
    // The commands print what came, line by line.
    let (code, lines) = command(&cluster, "hub-a", &["drain", "--no-wait", "--output", "json"]).await;
    assert_eq!((code, lines.len()), (Some(0), 1), "{lines:?}");
    schemas.hold("drain", &lines[0], 200);
    let (code, lines) = command(&cluster, "hub-a", &["status", "--output", "json"]).await;
    assert_eq!((code, lines.len()), (Some(0), 1), "{lines:?}");
    assert_eq!(schemas.hold("status", &lines[0], 200)["drain"]["phase"], "lameduck");
    let (code, lines) = command(&cluster, "hub-a", &["drain", "--cancel", "--output", "json"]).await;
    assert_eq!((code, lines.len()), (Some(0), 1), "{lines:?}");
    schemas.hold("undrain", &lines[0], 200);
    schemas.hold("undrain", &post(&cluster, "agent", "/undrain").await, 409);
    let (code, lines) = command(&cluster, "agent", &["drain", "--timeout", "1s", "--output", "json"]).await;
    assert_eq!((code, lines.len()), (Some(1), 2), "a stream is left: {lines:?}");
    schemas.hold("drain", &lines[0], 200);
    let drain: Value = serde_json::from_str(&lines[1].body).unwrap();
    assert_eq!((&drain["phase"], &drain["streams"]), (&"closed".into(), &1.into()));
    schemas.hold("drain", &post(&cluster, "agent", "/drain").await, 200);
    let status = schemas.hold("status", &get(&cluster, "agent", "/status").await, 200);
    assert_eq!((&status["drain"]["phase"], &status["drain"]["streams"]), (&"closed".into(), &1.into()), "{status:#}");
    schemas.hold("readyz", &get(&cluster, "agent", "/readyz").await, 503);
    stream.ping(1000).await.unwrap();
    cluster.assert_alive();
}

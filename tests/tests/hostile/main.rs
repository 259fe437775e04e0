//! Bad input against a running system: handshakes, tokens and frames that no
//! honest peer sends. Each line of the table names the attack of
//! `verification (d)` and the outcome; after each one a stream of a neighbour
//! must still answer, and at the end every process must still run.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod hostile_frames;
mod hostile_http;

use std::net::SocketAddr;

use nowconnect_core::error::CloseCode;
use nowconnect_core::wire::{Codec, Dialect, Plane};
use nowconnect_tests::actors::Pinger;
use nowconnect_tests::cluster::{AGENT, Cluster, Plan};
use nowconnect_tests::hostile::Reaction;
use nowconnect_tests::target::Target;
use nowconnect_tests::token;
use nowconnect_tests::wait::{PATIENCE, bounded};

/// v2 on a tunnel.
const TUNNEL: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Tunnel };
/// v1 on a tunnel.
const TUNNEL_V1: Dialect = Dialect { codec: Codec::JsonV1, plane: Plane::Tunnel };
/// v2 on a link.
const MESH: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Mesh };

/// The agent the attacker has a good token for.
const INTRUDER: &str = "intruder";

/// What a case has to work with.
struct Attack {
    /// Hub A's HTTP port.
    hub: SocketAddr,
}

impl Attack {
    /// A good token of the attacker's own agent.
    fn token(&self) -> String {
        token::good(INTRUDER, &["theirs"])
    }
}

/// The outcome a case must have.
#[derive(Debug)]
enum Want {
    /// One of these HTTP statuses.
    Status(&'static [u16]),
    /// One of these HTTP statuses, or the connection just ends.
    Refused(&'static [u16]),
    /// The connection ends.
    Closed,
    /// The connection ends and a GOAWAY names this reason.
    GoAway(CloseCode),
    /// The connection stays: the input is without effect.
    Kept,
}

impl Want {
    fn holds(&self, reaction: &Reaction) -> bool {
        match (self, reaction) {
            (Self::Status(any) | Self::Refused(any), Reaction::Status(status, _)) => any.contains(status),
            (Self::Refused(_) | Self::Closed, Reaction::Closed { .. }) => true,
            (Self::GoAway(code), Reaction::Closed { goaway, .. }) => *goaway == Some(*code),
            (Self::Kept, Reaction::Open) => true,
            _ => false,
        }
    }
}

/// One line of the table.
struct Case {
    name: &'static str,
    act: fn(&Attack) -> Reaction,
    want: Want,
}

async fn run_table(cases: Vec<Case>) {
    let target = Target::start().await;
    let mut cluster = Plan::default().connector("t", target.addr).start().await;
    let mut near = Pinger::open(cluster.listener(0, "t"), 1).await.unwrap();
    let mut far = Pinger::open(cluster.listener(1, "t"), 2).await.unwrap();
    let mut wrong = Vec::new();
    for case in cases {
        let attack = Attack { hub: cluster.hubs[0].http() };
        let reaction = tokio::task::spawn_blocking(move || (case.act)(&attack)).await.unwrap();
        if !case.want.holds(&reaction) {
            wrong.push(format!("{}: expected {:?}, came {reaction:?}", case.name, case.want));
        }
        for pinger in [&mut near, &mut far] {
            let ping = bounded("a neighbour's echo", PATIENCE, pinger.ping(2000)).await;
            assert_eq!(ping, Ok(()), "{} touched a neighbour", case.name);
        }
        cluster.assert_alive();
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    near.close().await.unwrap();
    far.close().await.unwrap();
    nothing_secret_was_logged(&cluster);
}

/// B10: the attacks carried tokens; none may be in a log.
fn nothing_secret_was_logged(cluster: &Cluster) {
    for hub in &cluster.hubs {
        for secret in ["eyJ", token::SECRET] {
            assert_eq!(hub.running().log.find(secret), None, "{} logged a secret", hub.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_refused() {
    run_table(hostile_http::requests()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_tokens_are_refused() {
    run_table(hostile_http::tokens()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_messages_close_their_own_connection() {
    run_table(hostile_frames::messages()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_frames_close_their_own_session() {
    run_table(hostile_frames::frames()).await;
}

/// The agent's identity is not the attacker's to take: the neighbour of all
/// tables runs under another one.
#[test]
fn the_attacker_is_not_the_neighbour() {
    assert_ne!(INTRUDER, AGENT);
}

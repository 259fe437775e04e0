//! What one peer, one agent or one listener that is gone may cost the others:
//! questions to the registry, sessions, answers that are never acknowledged; and
//! that an agent which was told to go elsewhere hears when it need not (B2, B9,
//! L8, C3).

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use nowconnect_core::config::{Mode, OnExpiry, OpenRule};
use nowconnect_core::error::CloseCode;
use nowconnect_core::hub::Hub;
use nowconnect_core::id::{AgentId, Cid, ConnKey, Epoch, Incarnation, Instance, ListenerIx, Nonce, Secret, SockKey};
use nowconnect_core::mux::{Input, NodeOut};
use nowconnect_core::principal::{AgentGrant, HubGrant, Principal};
use nowconnect_core::registry::{MemoryRegistry, RegistryOp};
use nowconnect_core::rng::Seed;
use nowconnect_core::session::{TxBatch, TxMessage};
use nowconnect_core::time::Instant;
use nowconnect_core::wire::{
    Body, Codec, Dialect, Frame, Hello, HelloAgent, HelloHub, HelloRole, Open, Plane, Resume, SecretText, WireLimits,
    decode, encode_message,
};
use world::{Target, World, agent_config, hub_config, name};

const MESH: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Mesh };
/// The run of the hub that the test is.
const PEER: Incarnation = Incarnation(5);
const TUNNEL: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Tunnel };

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// How the agent comes by a fresh token.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Renewal {
    InBand,
    /// With the next connection.
    Resumption,
    /// The one before ran out while there was no connection.
    Away,
}

/// A hub told its agent to go elsewhere because its token ran out; then there is
/// another one. How many tunnels the agent has at the other hub in the end.
fn tunnels_elsewhere(renewal: Renewal) -> usize {
    let mut w = World::new();
    w.target = Target::Accept;
    let hub = |me| {
        let mut c = hub_config(me, Mode::Off, &[]);
        c.on_expiry = OnExpiry::Drain(secs(60));
        c
    };
    let a = w.hub(hub("hub-a"), 1);
    let b = w.hub(hub("hub-b"), 2);
    w.token_expires = Some(w.now.after(secs(10)));
    w.unreachable.push(("plant-7".to_owned(), "hub-b".to_owned()));
    let g = w.agent(agent_config("plant-7", &["hub-a", "hub-b"], 1), 3);
    w.run_for(secs(2));
    assert_eq!(w.as_hub(a).control().tunnels().count(), 1);
    let fresh = Some(w.now.after(secs(100_000)));
    if renewal == Renewal::Away {
        w.run_for(secs(7));
        w.unreachable.push(("plant-7".to_owned(), "hub-a".to_owned()));
        w.cut(a, g);
        w.run_for(secs(3));
        w.token_expires = fresh;
        w.unreachable.retain(|(_, h)| h != "hub-a");
        w.run_for(secs(10));
    } else {
        w.run_for(secs(9));
        w.token_expires = fresh;
        if renewal == Renewal::InBand {
            let subject = "plant-7".to_owned();
            w.judged.push_back(Some(AgentGrant { subject, connectors: None, expires: fresh }));
            w.input(g, Input::Token { token: SecretText("fresh".to_owned()) });
        } else {
            w.cut(a, g);
        }
        w.run_for(secs(5));
    }
    // The hub keeps the tunnel, and serves over it.
    let c = w.client(a).unwrap();
    w.run_for(secs(80));
    assert_eq!(w.sock(a, c).aborted, None);
    assert_eq!(w.as_hub(a).control().tunnels().count(), 1);
    // Nobody needs another tunnel.
    w.unreachable.clear();
    w.run_for(secs(120));
    w.as_hub(b).control().tunnels().count()
}

#[test]
fn an_agent_with_a_fresh_token_hears_that_it_need_not_leave() {
    for renewal in [Renewal::InBand, Renewal::Resumption, Renewal::Away] {
        assert_eq!(tunnels_elsewhere(renewal), 0, "{renewal:?}: it takes the hub for one that leaves");
    }
}

/// What a STATUS about the registry says does not take the word back.
#[test]
fn an_agent_whose_token_ran_out_leaves_whatever_else_its_hub_says() {
    for flips in [false, true] {
        let mut w = World::new();
        let mut c = hub_config("hub-a", Mode::Active, &[]);
        c.on_expiry = OnExpiry::Drain(secs(100));
        let a = w.hub(c, 1);
        let b = w.hub(hub_config("hub-b", Mode::Off, &[]), 2);
        w.token_expires = Some(w.now.after(secs(10)));
        w.unreachable.push(("plant-7".to_owned(), "hub-b".to_owned()));
        w.agent(agent_config("plant-7", &["hub-a", "hub-b"], 1), 3);
        w.run_for(secs(11));
        assert_eq!(w.as_hub(a).control().tunnels().count(), 1);
        w.token_expires = None;
        if flips {
            w.registry_down = true;
        }
        w.run_for(secs(8));
        w.registry_down = false;
        w.run_for(secs(4));
        w.unreachable.clear();
        w.run_for(secs(50));
        let there = w.as_hub(b).control().tunnels().count();
        assert_eq!(there, 1, "flips {flips}");
    }
}

#[test]
fn agents_that_are_claimed_together_do_not_pass_max_sessions() {
    let mut w = World::new();
    let mut config = hub_config("hub-a", Mode::Active, &[]);
    config.limits.max_sessions = 1;
    let a = w.hub(config, 1);
    w.run_for(secs(2));
    w.claims_held = true;
    for n in 0..20 {
        w.agent(agent_config(&format!("plant-{n}"), &["hub-a"], 1), 10 + n);
    }
    w.run_for(Duration::from_millis(100));
    w.claims_held = false;
    w.run_for(secs(10));
    let held = w.as_hub(a).mux().len();
    assert!(held <= 1, "{held} sessions, max_sessions is 1");
}

/// Lookups in ten seconds after a listener was removed.
fn lookups_after_removal(during: bool, late_client: bool) -> usize {
    let mut w = World::new();
    let mut config = hub_config("hub-a", Mode::Active, &[]);
    config.listeners[0].open = OpenRule::FirstByte;
    config.open.first_byte_wait = secs(5);
    let a = w.hub(config.clone(), 1);
    w.run_for(secs(3));
    let client = late_client.then(|| w.client(a).unwrap());
    if during {
        w.registry_held = true;
        w.run_until(secs(3), |w| w.registry_waiting() >= 1);
    }
    config.listeners.clear();
    w.reload_hub(a, &config).unwrap();
    w.registry_held = false;
    if let Some(c) = client {
        w.write(a, c, vec![1]);
    }
    w.run_for(secs(10));
    w.only_renewals = true;
    w.run_for(secs(10));
    w.registry_waiting()
}

#[test]
fn a_connector_that_no_listener_wants_is_not_looked_up() {
    for (during, late_client) in [(false, false), (true, false), (false, true)] {
        assert_eq!(lookups_after_removal(during, late_client), 0, "{during} {late_client}");
    }
}

/// A hub whose registry answers when the test lets it.
struct Raw {
    hub: Hub,
    out: NodeOut,
    now: Instant,
    registry: MemoryRegistry,
}

impl Raw {
    fn new(config: nowconnect_core::config::HubConfig) -> Self {
        let (now, mut out) = (Instant::from_nanos(1), NodeOut::default());
        let hub = Hub::new(Arc::new(config), Seed::from_u64(1), now, &mut out);
        let mut r = Self { hub, out, now, registry: MemoryRegistry::default() };
        r.answer();
        r
    }
    fn answer(&mut self) {
        loop {
            let ops = std::mem::take(&mut self.out.registry);
            if ops.is_empty() {
                return;
            }
            for (token, op) in ops {
                let result = self.registry.execute(1_000_000 + self.now.as_nanos() / 1_000_000, &op);
                self.hub.handle(self.now, Input::Registry { token, result }, &mut self.out);
            }
        }
    }
    fn say(&mut self, conn: ConnKey, number: u64, frames: &[Frame]) {
        let message = encode_message(TUNNEL, number, frames);
        self.hub.handle(self.now, Input::Message { conn, message }, &mut self.out);
    }
    fn hears(&mut self, conn: ConnKey) -> Vec<Frame> {
        let mut batch = TxBatch::default();
        self.hub.poll_transmit(self.now, conn, usize::MAX, &mut batch, &mut self.out);
        let mut frames = Vec::new();
        for m in &batch.messages {
            decode(TUNNEL, &m.to_bytes(), &WireLimits::ESTABLISHED, &mut frames).unwrap();
        }
        frames
    }
    /// A hub that dials this one.
    fn links(&mut self, ix: u32) -> ConnKey {
        let conn = ConnKey { ix, generation: 0 };
        let principal = Principal::Hub(HubGrant::default());
        self.hub.handle(self.now, Input::Accepted { conn, dialect: MESH, principal }, &mut self.out);
        let role = HelloRole::Hub(HelloHub {
            replica_id: name("hub-b"),
            incarnation: PEER,
            namespace: name("default"),
            region: None,
            sessions: vec![],
        });
        let (challenge, capabilities) = (Secret([1; 16]), vec![]);
        let hello = Hello { role, challenge, initial_window: 65536, capabilities, resume: None };
        for frame in [Frame::Hello(Box::new(hello)), Frame::Auth(Box::default())] {
            let message = encode_message(MESH, 0, &[frame]);
            self.hub.handle(self.now, Input::Message { conn, message }, &mut self.out);
        }
        assert!(self.hub.mux().carried_by(conn).is_some());
        conn
    }

    /// Reads what the hub says: the highest number of a message.
    fn hub_said(&mut self, conn: ConnKey) -> u64 {
        let mut batch = TxBatch::default();
        self.hub.poll_transmit(self.now, conn, usize::MAX, &mut batch, &mut self.out);
        self.out = NodeOut::default();
        let mut frames = Vec::new();
        let number = |m: &TxMessage| decode(MESH, &m.to_bytes(), &WireLimits::ESTABLISHED, &mut frames).unwrap();
        batch.messages.iter().map(number).max().unwrap_or(0)
    }

    fn comes(&mut self, ix: u32) -> ConnKey {
        let conn = ConnKey { ix, generation: 0 };
        let id = format!("plant-{ix}");
        let principal = Principal::Agent(AgentGrant { subject: id.clone(), connectors: None, expires: None });
        self.hub.handle(self.now, Input::Accepted { conn, dialect: TUNNEL, principal }, &mut self.out);
        let hello = Hello {
            role: HelloRole::Agent(HelloAgent {
                agent_id: AgentId::new(&id).unwrap(),
                instance: Instance(u64::from(ix)),
                connectors: vec![],
                seen: Epoch(0),
                sessions: vec![],
            }),
            challenge: Secret([1; 16]),
            initial_window: 65536,
            capabilities: vec![],
            resume: None,
        };
        self.say(conn, 0, &[Frame::Hello(Box::new(hello))]);
        conn
    }
}
/// An OPEN for an agent that nobody has.
fn open_for_nobody(n: u64) -> Frame {
    let open = Open {
        nonce: Nonce(1),
        connector: name("ldap"),
        agent_id: AgentId::new("nobody").unwrap(),
        key: Secret([3; 16]),
        limit: 65_536,
    };
    Frame::stream(Cid::new(PEER, 0, n + 1), Epoch(1), Body::Open(Box::new(open)))
}

fn firm(frames: &[Frame]) -> Option<bool> {
    frames.iter().find_map(|f| match f {
        Frame::Welcome(w) => w.attachment.as_ref().map(|a| a.firm),
        _ => None,
    })
}

#[test]
fn an_agent_that_changes_its_connectors_all_the_time_takes_no_question_from_others() {
    for flood in [false, true] {
        let mut r = Raw::new(hub_config("hub-a", Mode::Active, &[]));
        let a = r.comes(1);
        r.answer();
        assert_eq!(firm(&r.hears(a)), Some(true));
        let messages = if flood { 10 } else { 1 };
        for number in 1..=messages {
            let frames: Vec<Frame> = (1..=500)
                .map(|n| Frame::Connectors { generation: number * 1000 + n, connectors: vec![] })
                .take(if flood { 500 } else { 1 })
                .collect();
            r.say(a, number, &frames);
        }
        assert!(r.out.registry.len() < 10, "{} operations at once", r.out.registry.len());
        // Before the registry has answered all that, another agent comes, and a client.
        let b = r.comes(2);
        let client = SockKey { ix: 1, generation: 0 };
        let _ = r.hub.open(r.now, ListenerIx(0), client, &mut r.out);
        let refused: Vec<_> = r.out.socks.clone();
        r.answer();
        let after = firm(&r.hears(b));
        assert_eq!((refused.len(), after), (0, Some(true)), "flood {flood}");
    }
}

/// An agent that connects and leaves before its claim is answered counts as one
/// that attached.
#[test]
fn an_agent_that_does_not_wait_for_its_claim_is_held_to_the_rate_of_the_others() {
    let mut r = Raw::new(hub_config("hub-a", Mode::Active, &[]));
    let mut claims = 0;
    for _ in 0..1000 {
        let conn = r.comes(1);
        claims += r.out.registry.iter().filter(|(_, op)| matches!(op, RegistryOp::Claim(_))).count();
        let cause = CloseCode::Transport;
        r.hub.handle(r.now, Input::Disconnected { conn, cause }, &mut r.out);
        r.answer();
        r.now = r.now.after(Duration::from_millis(1));
    }
    assert!(claims < 100, "{claims} claims in a second");
}

/// Refusals that are forced: a peer that acknowledges them has as many as it
/// asks for, one that does not is cut off (B2, attack 13).
#[test]
fn a_peer_that_has_us_answer_and_acknowledges_nothing_is_cut_off() {
    for acknowledges in [true, false] {
        let mut config = hub_config("hub-a", Mode::Active, &[]);
        (config.limits.max_streams, config.limits.send_queue_depth) = (10, 16);
        let mut r = Raw::new(config);
        let conn = r.links(1);
        let (mut received, mut asked) = (0, 0);
        while asked < 100_000 && r.hub.mux().carried_by(conn).is_some() {
            received = r.hub_said(conn).max(received);
            let mut frames: Vec<Frame> = (0..500).map(|n| open_for_nobody(asked + n)).collect();
            asked += 500;
            frames.extend(acknowledges.then_some(Frame::Ack { received }));
            let message = encode_message(MESH, asked / 500, &frames);
            r.hub.handle(r.now, Input::Message { conn, message }, &mut r.out);
        }
        let ends = if acknowledges { 100_000..=100_000 } else { 65_536..=67_000 };
        assert!(ends.contains(&asked), "{acknowledges}: {asked} questions");
        r.hub.check_invariants();
    }
}

/// Answers that are forced and never acknowledged.
#[test]
fn a_peer_that_resumes_without_end_is_answered_seldom() {
    let mut r = Raw::new(hub_config("hub-a", Mode::Off, &[]));
    let conn = r.comes(1);
    for number in 1..=40_u64 {
        let frame = |n: u64| {
            let resume = Resume {
                nonce: Nonce(1),
                agent_id: AgentId::new("plant-1").unwrap(),
                key: Secret([2; 16]),
                next: 0,
                limit: 0,
            };
            Frame::stream(Cid::new(Incarnation(9), 0, number * 1000 + n), Epoch(1), Body::Resume(Box::new(resume)))
        };
        r.say(conn, number, &(0..500).map(frame).collect::<Vec<_>>());
        // It reads all and acknowledges nothing.
        r.hears(conn);
        r.now = r.now.after(Duration::from_millis(10));
    }
    let (_, e) = r.hub.mux().iter().next().expect("the session is still there");
    assert!(e.session.queue_depth() <= 10, "{} frames in flight", e.session.queue_depth());
}

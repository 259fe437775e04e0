//! An agent against hubs that do what no honest hub does (the fuzz target
//! `agent_machine` found these).

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::config::{Backoff, ConnectorConfig, Limits, Liveness};
use crate::error::CloseCode;
use crate::id::{AgentId, Epoch, Name, Nonce, Secret, SessionId, TargetIx};
use crate::observed::Observed;
use crate::principal::HubGrant;
use crate::wire::{Attachment, Codec, Dialect, EpochNotice, Plane, Welcome, encode_message};

const V2: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Tunnel };
const CONN: ConnKey = ConnKey { ix: 1, generation: 0 };
const NOW: Instant = Instant::from_nanos(1);

fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}

fn config() -> AgentConfig {
    AgentConfig {
        agent_id: AgentId::new("a").unwrap(),
        hubs: vec!["1".to_owned()],
        parallel: 1,
        connectors: vec![ConnectorConfig {
            name: name("ldap"),
            target: "t".to_owned(),
            priority: 0,
            weight: 1,
            health: None,
        }],
        limits: Limits::default(),
        liveness: Liveness::default(),
        resume_window: Duration::from_secs(30),
        backoff: Backoff::default(),
        target_timeout: Duration::from_secs(1),
        handshake_timeout: Duration::from_secs(5),
    }
}

/// The WELCOME of a hub to an attachment; its session is numbered as the epoch.
fn welcome(hub: &str, epoch: u64) -> Welcome {
    Welcome {
        replica_id: name(hub),
        incarnation: Incarnation(1),
        namespace: name("default"),
        region: None,
        session: SessionId(u128::from(epoch)),
        secret: Some(Secret([1; 32])),
        resumed: None,
        attachment: Some(Attachment { epoch: Epoch(epoch), nonce: Nonce(1), firm: true }),
        resume_window_ms: 30_000,
        challenge: Secret([2; 16]),
        initial_window: 1000,
        capabilities: Vec::new(),
        signature: None,
    }
}

/// An agent attached under epoch 1.
fn attached() -> (Agent, NodeOut) {
    let mut out = NodeOut::default();
    let mut agent = Agent::new(Arc::new(config()), Seed::from_u64(1), NOW, &mut out);
    let peer = HubGrant::default();
    agent.handle(NOW, Input::Connected { target: TargetIx(0), conn: CONN, dialect: V2, peer }, &mut out);
    let message = encode_message(V2, 0, &[Frame::Welcome(Box::new(welcome("hub-a", 1)))]);
    agent.handle(NOW, Input::Message { conn: CONN, message }, &mut out);
    assert_eq!((agent.mux().len(), agent.shard().attachments().count()), (1, 1));
    (agent, out)
}

fn message(frames: &[Frame]) -> Bytes {
    encode_message(V2, 1, frames)
}

#[test]
fn an_epoch_behind_the_end_of_its_session_changes_nothing() {
    let (mut agent, mut out) = attached();
    let notice = EpochNotice {
        agent_id: AgentId::new("a").unwrap(),
        instance: agent.tunnels().instance(),
        replica_id: name("hub-a"),
        epoch: Epoch(9),
        nonce: Nonce(9),
        firm: true,
    };
    // A hub sends no CONNECTORS: that ends the session before EPOCH is read.
    let ends = Frame::Connectors { generation: 1, connectors: Vec::new() };
    let message = message(&[ends, Frame::Epoch(Box::new(notice))]);
    agent.handle(NOW, Input::Message { conn: CONN, message }, &mut out);
    assert_eq!(agent.mux().len(), 0);
    assert_eq!(agent.tunnels().highest_epoch(), Epoch(1), "nobody grants an epoch after its session (O2)");
    assert_eq!(agent.shard().attachments().count(), 0, "no attachment outlives its session (B5)");
}

#[test]
fn after_a_shutdown_the_shard_knows_no_session() {
    let (mut agent, mut out) = attached();
    agent.handle(NOW, Input::Shutdown, &mut out);
    assert_eq!((agent.mux().len(), agent.shard().attachments().count()), (0, 0));
    agent.check_invariants();
}

/// An agent of two hubs whose HELLOs are both out.
fn dialling_two() -> (Agent, NodeOut) {
    let (mut config, mut out) = (config(), NodeOut::default());
    config.hubs.push("2".to_owned());
    config.parallel = 2;
    let mut agent = Agent::new(Arc::new(config), Seed::from_u64(1), NOW, &mut out);
    for ix in 0..2 {
        connect(&mut agent, u16::try_from(ix).unwrap(), ix, &mut out);
    }
    assert_eq!(std::mem::take(&mut out.dial).len(), 2);
    (agent, out)
}

const fn conn(ix: u32) -> ConnKey {
    ConnKey { ix, generation: 0 }
}

fn connect(agent: &mut Agent, target: u16, ix: u32, out: &mut NodeOut) {
    let (target, peer) = (TargetIx(target), HubGrant::default());
    agent.handle(NOW, Input::Connected { target, conn: conn(ix), dialect: V2, peer }, out);
}

fn welcomed(agent: &mut Agent, ix: u32, hub: &str, epoch: u64, out: &mut NodeOut) {
    let message = encode_message(V2, 0, &[Frame::Welcome(Box::new(welcome(hub, epoch)))]);
    agent.handle(NOW, Input::Message { conn: conn(ix), message }, out);
}

/// What the agent wrote on a connection that carries no session.
fn written(agent: &mut Agent, ix: u32, out: &mut NodeOut) -> Vec<Frame> {
    let (mut batch, mut frames) = (TxBatch::default(), Vec::new());
    agent.poll_transmit(NOW, conn(ix), 1 << 20, &mut batch, out);
    for m in batch.messages {
        crate::wire::decode(V2, &m.to_bytes(), &crate::wire::WireLimits::BEFORE_AUTH, &mut frames).unwrap();
    }
    frames
}

#[test]
fn a_claim_that_is_answered_after_a_later_one_is_made_once_more_at_once() {
    let (mut agent, mut out) = dialling_two();
    welcomed(&mut agent, 1, "hub-b", 11, &mut out);
    welcomed(&mut agent, 0, "hub-a", 10, &mut out);
    assert_eq!(agent.tunnels().highest_epoch(), Epoch(11), "epochs are accepted in rising order (O2)");
    assert_eq!(agent.mux().len(), 1);
    assert!(out.close.iter().any(|(c, code)| (*c, *code) == (conn(0), CloseCode::Superseded)), "{:?}", out.close);
    assert_eq!(out.dial, [TargetIx(0)], "without a back-off: nothing failed");
    assert!(
        !out.observed.iter().any(|o| matches!(o, Observed::HandshakeFailed { .. })),
        "and nobody broke the protocol"
    );
    connect(&mut agent, 0, 2, &mut out);
    let hello = written(&mut agent, 2, &mut out);
    let [Frame::Hello(hello)] = hello.as_slice() else { panic!("{hello:?}") };
    let crate::wire::HelloRole::Agent(role) = &hello.role else { panic!("{hello:?}") };
    assert_eq!((role.seen, role.sessions.as_slice()), (Epoch(11), &[SessionId(11)][..]));
    welcomed(&mut agent, 2, "hub-a", 12, &mut out);
    assert_eq!((agent.mux().len(), agent.tunnels().highest_epoch()), (2, Epoch(12)));
    agent.check_invariants();
}

#[test]
fn a_hub_that_does_not_heed_seen_is_asked_once_more_and_then_after_a_back_off() {
    let (mut agent, mut out) = dialling_two();
    welcomed(&mut agent, 1, "hub-b", 11, &mut out);
    welcomed(&mut agent, 0, "hub-a", 0, &mut out);
    assert!(out.close.iter().any(|(c, code)| (*c, *code) == (conn(0), CloseCode::Superseded)), "{:?}", out.close);
    assert_eq!(std::mem::take(&mut out.dial), [TargetIx(0)]);
    connect(&mut agent, 0, 2, &mut out);
    let instance = agent.tunnels().instance();
    welcomed(&mut agent, 2, "hub-a", 0, &mut out);
    assert!(out.close.iter().any(|(c, code)| (*c, *code) == (conn(2), CloseCode::Protocol)), "{:?}", out.close);
    assert_eq!(out.dial, []);
    assert!(agent.poll_timeout().is_some());
    assert_eq!((agent.mux().len(), agent.tunnels().instance()), (1, instance), "what serves elsewhere goes on");
}

#[test]
fn a_handshake_that_was_given_up_ends_no_session_it_may_have_resumed() {
    for (code, sessions) in [(CloseCode::HandshakeTimeout, 1), (CloseCode::Dead, 1), (CloseCode::Protocol, 0)] {
        let (mut agent, mut out) = attached();
        let message = encode_message(V2, 0, &[Frame::GoAway { code, retry_after_ms: 0 }]);
        agent.handle(NOW, Input::Message { conn: CONN, message }, &mut out);
        agent.handle(NOW, Input::Disconnected { conn: CONN, cause: CloseCode::Transport }, &mut out);
        assert_eq!(agent.mux().len(), sessions, "{code}: the other side still has it, or gave it up (L1)");
    }
}

fn at(ms: u64) -> Instant {
    NOW.after(Duration::from_millis(ms))
}

/// When an agent gives its silent hub up if it is given `input` every second up
/// to `until_ms` and its timers run.
fn dead_at(input: &Input, until_ms: u64) -> Option<u64> {
    let (mut agent, mut out) = attached();
    for ms in (500..60_000).step_by(500) {
        agent.handle_timeout(at(ms), &mut out);
        agent.poll_transmit(at(ms), CONN, 1 << 20, &mut TxBatch::default(), &mut out);
        if out.close.contains(&(CONN, CloseCode::Dead)) {
            return Some(ms);
        }
        if ms % 1000 == 0 && ms <= until_ms {
            agent.handle(at(ms), input.clone(), &mut out);
            agent.check_invariants();
        }
    }
    None
}

#[test]
fn a_hub_whose_message_is_still_arriving_is_not_dead_before_it_stops() {
    assert_eq!(dead_at(&Input::Heard { conn: CONN }, 60_000), None);
    assert_eq!(dead_at(&Input::Heard { conn: CONN }, 30_000), Some(40_000));
    assert_eq!(dead_at(&Input::Heard { conn: conn(7) }, 60_000), Some(10_000), "another connection's bytes");
}

#[test]
fn bytes_on_a_connection_without_a_session_change_nothing() {
    let (mut agent, mut out) = dialling_two();
    let quiet = |agent: &mut Agent, ix: u32, out: &mut NodeOut| {
        let before = (format!("{agent:?}"), format!("{out:?}"));
        agent.handle(at(4000), Input::Heard { conn: conn(ix) }, out);
        agent.check_invariants();
        assert_eq!((format!("{agent:?}"), format!("{out:?}")), before, "connection {ix}");
    };
    quiet(&mut agent, 0, &mut out);
    quiet(&mut agent, 9, &mut out);
    let (mut agent, mut out) = attached();
    agent.handle(NOW, Input::Disconnected { conn: CONN, cause: CloseCode::Transport }, &mut out);
    quiet(&mut agent, CONN.ix, &mut out);
}

/// As two processes under one id do to each other: every tunnel is ended before
/// it lasted, at whichever hub.
#[test]
fn hubs_that_end_every_tunnel_at_once_are_dialled_more_and_more_seldom() {
    let (mut config, mut out) = (config(), NodeOut::default());
    config.hubs.push("2".to_owned());
    let mut agent = Agent::new(Arc::new(config), Seed::from_u64(1), NOW, &mut out);
    let (mut now, mut dials) = (NOW, Vec::new());
    while now < NOW.after(Duration::from_secs(60)) {
        for target in std::mem::take(&mut out.dial) {
            let ix = u32::try_from(dials.len()).unwrap();
            dials.push((target, now));
            let peer = HubGrant::default();
            agent.handle(now, Input::Connected { target, conn: conn(ix), dialect: V2, peer }, &mut out);
            let hub = if target.0 == 0 { "hub-a" } else { "hub-b" };
            let frames = [Frame::Welcome(Box::new(welcome(hub, u64::from(ix) + 1)))];
            let message = encode_message(V2, 0, &frames);
            agent.handle(now, Input::Message { conn: conn(ix), message }, &mut out);
            assert_eq!(agent.mux().len(), 1);
            let frames = [Frame::GoAway { code: CloseCode::Superseded, retry_after_ms: 0 }];
            let message = encode_message(V2, 0, &frames);
            agent.handle(now, Input::Message { conn: conn(ix), message }, &mut out);
            agent.handle(now, Input::Disconnected { conn: conn(ix), cause: CloseCode::Superseded }, &mut out);
            assert_eq!(agent.mux().len(), 0);
        }
        now = agent.poll_timeout().map_or(now.after(Duration::from_secs(1)), |d| d.at.max(now));
        agent.handle_timeout(now, &mut out);
    }
    let within = |from, to| dials.iter().filter(|(_, at)| (from..to).contains(&at.since(NOW).as_secs())).count();
    assert!((2..=20).contains(&within(0, 10)), "{dials:?}");
    assert!((1..=4).contains(&within(30, 60)), "{dials:?}");
    assert!(dials.iter().any(|d| d.0 == TargetIx(1)), "the other hub is asked too");
}

/// A hub's wish is kept although another hub takes the agent in between and the
/// first one's link rests: who is sent away as a second process stays away.
#[test]
fn a_hub_that_asked_for_rest_has_it_also_after_another_took_the_agent() {
    for wish_ms in [0, 10_000] {
        let (mut config, mut out) = (config(), NodeOut::default());
        config.hubs.push("2".to_owned());
        let mut agent = Agent::new(Arc::new(config), Seed::from_u64(1), NOW, &mut out);
        connect(&mut agent, 0, 0, &mut out);
        let frames = [Frame::GoAway { code: CloseCode::DuplicateId, retry_after_ms: wish_ms }];
        agent.handle(NOW, Input::Message { conn: conn(0), message: encode_message(V2, 0, &frames) }, &mut out);
        agent.handle(NOW, Input::Disconnected { conn: conn(0), cause: CloseCode::DuplicateId }, &mut out);
        out.dial.clear();
        let mut dials = Vec::new();
        for ms in (0..60_000).step_by(100) {
            agent.handle_timeout(at(ms), &mut out);
            for target in std::mem::take(&mut out.dial) {
                dials.push((target.0, ms));
                let (ix, peer) = (u32::try_from(dials.len()).unwrap(), HubGrant::default());
                agent.handle(at(ms), Input::Connected { target, conn: conn(ix), dialect: V2, peer }, &mut out);
                if target.0 == 0 {
                    continue;
                }
                // The other takes it for a moment.
                let frames = [Frame::Welcome(Box::new(welcome("hub-b", u64::from(ix) + 1)))];
                agent.handle(
                    at(ms),
                    Input::Message { conn: conn(ix), message: encode_message(V2, 0, &frames) },
                    &mut out,
                );
                let frames = [Frame::GoAway { code: CloseCode::Superseded, retry_after_ms: 0 }];
                agent.handle(
                    at(ms),
                    Input::Message { conn: conn(ix), message: encode_message(V2, 0, &frames) },
                    &mut out,
                );
                agent.handle(at(ms), Input::Disconnected { conn: conn(ix), cause: CloseCode::Superseded }, &mut out);
            }
        }
        assert!(dials.iter().any(|d| d.0 == 1), "{dials:?}");
        let again = dials.iter().find(|d| d.0 == 0).map(|d| d.1);
        assert!(again.is_some_and(|ms| (ms >= 10_000) == (wish_ms == 10_000)), "{wish_ms}: {dials:?}");
    }
}

#[test]
fn an_address_that_leads_elsewhere_by_now_is_dialled_again_for_its_own_sake() {
    let (mut config, mut out) = (config(), NodeOut::default());
    config.hubs.push("2".to_owned());
    config.parallel = 2;
    let mut agent = Agent::new(Arc::new(config), Seed::from_u64(1), NOW, &mut out);
    out.dial.clear();
    connect(&mut agent, 0, 0, &mut out);
    welcomed(&mut agent, 0, "hub-a", 10, &mut out);
    // The other address leads to the same hub, which does not mind: the first rests.
    connect(&mut agent, 1, 1, &mut out);
    welcomed(&mut agent, 1, "hub-a", 11, &mut out);
    agent.handle(NOW, Input::Disconnected { conn: conn(0), cause: CloseCode::Transport }, &mut out);
    let dialled = |agent: &mut Agent, from_ms: u64, out: &mut NodeOut| {
        (0..120).map(|n| from_ms + n * 500).find(|ms| {
            agent.handle_timeout(at(*ms), out);
            agent.handle(at(*ms), Input::Heard { conn: conn(1) }, out);
            std::mem::take(&mut out.dial).contains(&TargetIx(0))
        })
    };
    let ms = dialled(&mut agent, 0, &mut out).expect("the session is resumed");
    let peer = HubGrant::default();
    agent.handle(at(ms), Input::Connected { target: TargetIx(0), conn: conn(2), dialect: V2, peer }, &mut out);
    let frames = [Frame::GoAway { code: CloseCode::ResumeRefused, retry_after_ms: 0 }];
    agent.handle(at(ms), Input::Message { conn: conn(2), message: encode_message(V2, 0, &frames) }, &mut out);
    agent.handle(at(ms), Input::Disconnected { conn: conn(2), cause: CloseCode::ResumeRefused }, &mut out);
    assert_eq!(agent.mux().len(), 1);
    assert!(
        dialled(&mut agent, ms + 500, &mut out).is_some(),
        "another hub answers there: two tunnels are wanted (L2)"
    );
}

#[test]
fn a_hub_that_never_answers_keeps_no_other_address_from_being_asked_where_it_leads() {
    let (mut config, mut out) = (config(), NodeOut::default());
    config.hubs.extend(["2".to_owned(), "3".to_owned()]);
    config.parallel = 2;
    let mut agent = Agent::new(Arc::new(config), Seed::from_u64(1), NOW, &mut out);
    agent.handle(NOW, Input::DialFailed { target: TargetIx(0) }, &mut out);
    // The second address leads to the third one's hub for a while.
    connect(&mut agent, 1, 1, &mut out);
    welcomed(&mut agent, 1, "hub-c", 10, &mut out);
    out.dial.clear();
    let third = (0..120).map(|n| n * 500).find(|ms| {
        agent.handle_timeout(at(*ms), &mut out);
        agent.handle(at(*ms), Input::Heard { conn: conn(1) }, &mut out);
        let dialled = std::mem::take(&mut out.dial);
        if dialled.contains(&TargetIx(0)) {
            agent.handle(at(*ms), Input::DialFailed { target: TargetIx(0) }, &mut out);
        }
        dialled.contains(&TargetIx(2))
    });
    let ms = third.expect("two tunnels are wanted (L2)");
    let (target, peer) = (TargetIx(2), HubGrant::default());
    agent.handle(at(ms), Input::Connected { target, conn: conn(2), dialect: V2, peer }, &mut out);
    let frames = [Frame::GoAway { code: CloseCode::Duplicate, retry_after_ms: 0 }];
    agent.handle(at(ms), Input::Message { conn: conn(2), message: encode_message(V2, 0, &frames) }, &mut out);
    assert!(out.dial.contains(&TargetIx(1)), "which may lead to its own hub by now: {:?}", out.dial);
}

/// Two hubs that answer while they are up, and an agent that gives a hub up
/// after two dials.
struct TwoHubs {
    agent: Agent,
    out: NodeOut,
    up: [bool; 2],
    conns: [Option<ConnKey>; 2],
    made: u32,
    ms: u64,
    gave_up: Vec<u16>,
    /// They know a session no more.
    restarted: bool,
}

impl TwoHubs {
    fn start(up: [bool; 2], parallel: u16) -> Self {
        let (mut config, mut out) = (config(), NodeOut::default());
        config.hubs.push("2".to_owned());
        config.parallel = parallel;
        config.backoff.max_retries = 2;
        let agent = Agent::new(Arc::new(config), Seed::from_u64(1), at(0), &mut out);
        Self { agent, out, up, conns: [None; 2], made: 0, ms: 0, gave_up: Vec::new(), restarted: false }
    }

    fn kill(&mut self, hub: usize) {
        self.up[hub] = false;
        if let Some(conn) = self.conns[hub].take() {
            let lost = Input::Disconnected { conn, cause: CloseCode::Transport };
            self.agent.handle(at(self.ms), lost, &mut self.out);
        }
    }

    fn run(&mut self, seconds: u64) {
        self.run_ms(seconds * 1000);
    }

    fn run_ms(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.ms += 100;
            let now = at(self.ms);
            self.agent.handle_timeout(now, &mut self.out);
            for target in std::mem::take(&mut self.out.dial) {
                let hub = usize::from(target.0);
                if !self.up[hub] {
                    self.agent.handle(now, Input::DialFailed { target }, &mut self.out);
                    continue;
                }
                self.made += 1;
                let conn = conn(self.made);
                let peer = HubGrant::default();
                self.agent.handle(now, Input::Connected { target, conn, dialect: V2, peer }, &mut self.out);
                let resumes = written(&mut self.agent, self.made, &mut self.out)
                    .iter()
                    .any(|f| matches!(f, Frame::Hello(h) if h.resume.is_some()));
                if resumes && self.restarted {
                    let message =
                        encode_message(V2, 0, &[Frame::GoAway { code: CloseCode::ResumeRefused, retry_after_ms: 0 }]);
                    self.agent.handle(now, Input::Message { conn, message }, &mut self.out);
                    continue;
                }
                let welcome = welcome(["hub-a", "hub-b"][hub], u64::from(self.made));
                let message = encode_message(V2, 0, &[Frame::Welcome(Box::new(welcome))]);
                self.agent.handle(now, Input::Message { conn, message }, &mut self.out);
                self.conns[hub] = Some(conn);
            }
            for conn in self.conns.into_iter().flatten() {
                self.agent.handle(now, Input::Heard { conn }, &mut self.out);
            }
            for event in std::mem::take(&mut self.out.observed) {
                if let Observed::GaveUp { target, .. } = event {
                    self.gave_up.push(target);
                }
            }
        }
    }

    fn given_up(&self) -> bool {
        self.agent.tunnels().is_given_up()
    }

    fn serving(&self) -> [bool; 2] {
        let connected = |key| self.agent.mux().get(key).is_some_and(|e| e.conn.is_some());
        let all: Vec<bool> = self.agent.tunnels().hubs().map(|(_, _, key)| key.is_some_and(connected)).collect();
        all.try_into().unwrap()
    }
}

#[test]
fn an_agent_with_a_tunnel_has_given_up_nothing_whatever_it_gave_up_before() {
    let mut w = TwoHubs::start([true, true], 1);
    w.run(10);
    assert_eq!(w.serving(), [true, false]);
    w.kill(0);
    w.run(60);
    assert_eq!((w.serving(), &*w.gave_up), ([false, true], &[0][..]));
    assert!(!w.given_up());
    w.up[0] = true;
    w.run(10);
    w.kill(1);
    w.run(60);
    assert_eq!((w.serving(), &*w.gave_up), ([true, false], &[0, 1][..]), "each of them was given up once");
    assert!(!w.given_up(), "it serves at the first hub");
    // Both away: its session is waited for no longer than it may be resumed.
    w.kill(0);
    assert!(!w.given_up(), "the session may be resumed");
    w.run(60);
    assert_eq!(w.serving(), [false, false]);
    assert!(w.given_up(), "{:?}", w.gave_up);
}

#[test]
fn a_reload_tries_hubs_again_that_were_given_up() {
    let mut w = TwoHubs::start([false, false], 1);
    w.run(30);
    assert!(w.given_up() && w.gave_up.len() == 2, "{:?}", w.gave_up);
    let config = AgentConfig { hubs: w.agent.tunnels().config().hubs.clone(), ..config() };
    w.agent.reload(at(w.ms), &config, Duration::from_secs(60), &mut w.out).unwrap();
    assert!(!w.given_up());
    w.up[1] = true;
    w.run(30);
    assert_eq!(w.serving(), [false, true]);
}

#[test]
fn a_draining_agent_leaves_and_gives_up_nothing() {
    let mut w = TwoHubs::start([false, false], 1);
    w.run(30);
    let times = crate::config::DrainTimes::at_once(Duration::from_secs(1));
    w.agent.handle(at(w.ms), Input::Drain(times), &mut w.out);
    assert!(!w.given_up());
}

/// A connection that does not last counts as a failure; the last one allowed is
/// told of like any other.
#[test]
fn a_hub_that_drops_its_last_connection_is_given_up_aloud() {
    let mut w = TwoHubs::start([true, false], 1);
    w.agent.tunnels.hubs[1].listed = false;
    for _ in 0..100 {
        w.run(1);
        if w.conns[0].is_some() {
            w.kill(0);
            w.up[0] = true;
        }
    }
    assert!(w.given_up());
    assert_eq!(w.gave_up, [0]);
}

/// As in a rolling restart, whether or not its session could still be resumed.
#[test]
fn a_hub_that_came_back_is_tried_again_when_the_other_one_goes() {
    for (parallel, away) in [(1, 10), (1, 60), (2, 10), (2, 60)] {
        let mut w = TwoHubs::start([true, true], parallel);
        w.run(10);
        w.kill(0);
        w.run(away);
        assert_eq!((w.serving(), &*w.gave_up), ([false, true], &[0][..]));
        w.up[0] = true;
        w.kill(1);
        w.run(30);
        assert_eq!((w.serving(), w.given_up()), ([true, false], false), "{parallel} wanted, {away} s");
    }
}

/// That it does not resume is no sign of its absence.
#[test]
fn a_hub_that_restarted_is_not_given_up_for_the_sessions_it_lost() {
    let mut w = TwoHubs::start([true, false], 1);
    w.agent.tunnels.hubs[1].listed = false;
    w.restarted = true;
    w.run(10);
    w.kill(0);
    // One dial fails, and the next is one more than may fail.
    while w.agent.tunnels.hubs[0].link.as_ref().is_some_and(|l| l.attempts() == 0) {
        w.run_ms(100);
    }
    w.up[0] = true;
    w.run(10);
    assert_eq!((w.serving(), w.given_up(), w.gave_up.len()), ([true, false], false, 0));
}

//! A hub against a hub made by hand that is who it says and lies about others
//! (attack 33): what it may say of agents, and how far it is believed.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use nowconnect_core::config::Mode;
use nowconnect_core::error::CloseCode;
use nowconnect_core::hub::Hub;
use nowconnect_core::id::{AgentId, ConnKey, Epoch, Fence, Incarnation, Instance, Nonce, Secret, SessionId, TargetIx};
use nowconnect_core::mux::{Input, NodeOut};
use nowconnect_core::observed::Observed;
use nowconnect_core::principal::{AgentGrant, HubGrant, Principal};
use nowconnect_core::registry::{
    Claim, HubRun, Located, RegistryOp, RegistryReply, RegistryResult, SEEN_AHEAD_MAX, SEEN_UNCHECKED_MAX, Token,
};
use nowconnect_core::rng::Seed;
use nowconnect_core::session::TxBatch;
use nowconnect_core::time::Instant;
use nowconnect_core::wire::{
    Codec, ConnectorAd, Dialect, EpochNotice, Frame, Hello, HelloAgent, HelloHub, HelloRole, Plane, Welcome,
    WireLimits, decode, encode_message,
};
use world::{hub_config, name};

const MESH: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Mesh };
const TUNNEL: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Tunnel };
const RENEW_EVERY: Duration = Duration::from_secs(1);
const LINK: ConnKey = ConnKey { ix: 1, generation: 0 };

/// A hub with a link to hub-b, which is this test.
struct Bench {
    hub: Hub,
    out: NodeOut,
    now: Instant,
    said: u64,
}

impl Bench {
    fn new() -> Self {
        let mut b = Self::alone(&[]);
        b.greets(LINK);
        b.proves_itself(LINK);
        b
    }

    fn alone(peers: &[&str]) -> Self {
        let mut out = NodeOut::default();
        let now = Instant::from_nanos(1);
        let mut config = hub_config("hub-a", Mode::Active, peers);
        (config.limits.max_handshakes, config.limits.max_sessions) = (10_000, 10_000);
        let config = Arc::new(config);
        let hub = Hub::new(config, Seed::from_u64(1), now, &mut out);
        let mut b = Self { hub, out, now, said: 0 };
        b.answer(|op| matches!(op, RegistryOp::Renew { .. }).then_some(RegistryReply::Renewed));
        b
    }

    /// Hub-b dials, says who it is, and is welcomed.
    fn greets(&mut self, conn: ConnKey) {
        self.input(Input::Accepted { conn, dialect: MESH, principal: Principal::Hub(HubGrant::default()) });
        let role = HelloRole::Hub(HelloHub {
            replica_id: name("hub-b"),
            incarnation: Incarnation(5),
            namespace: name("default"),
            region: None,
            sessions: Vec::new(),
        });
        self.hello(conn, MESH, role);
        let welcome = self.heard(conn);
        assert!(matches!(welcome[..], [Frame::Welcome(_)]), "{welcome:?}");
    }

    fn proves_itself(&mut self, conn: ConnKey) {
        let auth = Frame::Auth(Box::default());
        self.input(Input::Message { conn, message: encode_message(MESH, 0, &[auth]) });
        assert!(self.hub.mux().carried_by(conn).is_some());
    }

    /// The hub's dial of an address, which says this.
    fn dialled(&mut self, address: u16, conn: ConnKey, says: &Frame) {
        let (target, peer) = (TargetIx(address), HubGrant::default());
        self.input(Input::Connected { target, conn, dialect: MESH, peer });
        assert!(matches!(self.heard(conn)[..], [Frame::Hello(_)]));
        self.input(Input::Message { conn, message: encode_message(MESH, 0, std::slice::from_ref(says)) });
    }

    fn hello(&mut self, conn: ConnKey, dialect: Dialect, role: HelloRole) {
        let (challenge, capabilities) = (Secret([3; 16]), Vec::new());
        let hello = Hello { role, challenge, initial_window: 65536, capabilities, resume: None };
        let message = encode_message(dialect, 0, &[Frame::Hello(Box::new(hello))]);
        self.input(Input::Message { conn, message });
    }

    fn input(&mut self, input: Input) {
        self.hub.handle(self.now, input, &mut self.out);
        self.hub.check_invariants();
    }

    fn heard(&mut self, conn: ConnKey) -> Vec<Frame> {
        let mut batch = TxBatch::default();
        self.hub.poll_transmit(self.now, conn, usize::MAX, &mut batch, &mut self.out);
        let mut frames = Vec::new();
        for m in batch.messages {
            decode(MESH, &m.to_bytes(), &WireLimits::ESTABLISHED, &mut frames).unwrap();
        }
        frames
    }

    /// What was asked of the registry; the answers to it.
    fn answer(&mut self, reply: impl Fn(&RegistryOp) -> Option<RegistryReply>) {
        let asked: Vec<(Token, RegistryOp)> = self.out.registry.drain(..).collect();
        for (token, op) in asked {
            match reply(&op) {
                Some(reply) => self.input(Input::Registry { token, result: RegistryResult::Ok(reply) }),
                None => self.out.registry.push((token, op)),
            }
        }
    }

    /// Nothing that is asked from now on is answered.
    fn no_answer_until(&mut self, reached: impl Fn(&Self) -> bool) {
        for _ in 0..100 {
            if reached(self) {
                return;
            }
            let due = self.hub.poll_timeout().expect("it renews its lease").at;
            self.now = self.now.max(due);
            self.hub.handle_timeout(self.now, &mut self.out);
            self.hub.check_invariants();
            self.out.registry.clear();
        }
        panic!("not reached after 100 deadlines");
    }

    fn says(&mut self, agent: &str, replica: &str, epoch: u64) {
        self.says_of(Instance(7), agent, replica, epoch);
    }

    fn says_of(&mut self, instance: Instance, agent: &str, replica: &str, epoch: u64) {
        self.said += 1;
        let notice = EpochNotice {
            agent_id: AgentId::new(agent).unwrap(),
            instance,
            replica_id: name(replica),
            epoch: Epoch(epoch),
            nonce: Nonce(1),
            firm: true,
        };
        let message = encode_message(MESH, self.said, &[Frame::Epoch(Box::new(notice))]);
        self.input(Input::Message { conn: LINK, message });
    }

    /// An agent comes for the first time.
    fn comes(&mut self, conn: u32, agent: &str) {
        let conn = ConnKey { ix: conn, generation: 0 };
        let grant = AgentGrant { subject: agent.to_owned(), connectors: Some(vec![name("ldap")]), expires: None };
        self.input(Input::Accepted { conn, dialect: TUNNEL, principal: Principal::Agent(grant) });
        let role = HelloRole::Agent(HelloAgent {
            agent_id: AgentId::new(agent).unwrap(),
            instance: Instance(7),
            connectors: vec![ConnectorAd { name: name("ldap"), priority: 0, weight: 1 }],
            seen: Epoch(0),
            sessions: Vec::new(),
        });
        self.hello(conn, TUNNEL, role);
    }

    /// What the hub claims for an agent that comes for the first time; it is
    /// granted `epoch`.
    fn claims(&mut self, conn: u32, agent: &str, epoch: u64) -> Claim {
        self.out.registry.clear();
        self.comes(conn, agent);
        let claim = self.out.registry.iter().find_map(|(_, op)| match op {
            RegistryOp::Claim(claim) => Some((**claim).clone()),
            _ => None,
        });
        let claim = claim.expect("a claim");
        let nonce = claim.nonce;
        self.answer(|op| {
            let granted = RegistryReply::Claimed { epoch: Epoch(epoch), nonce, superseded: Vec::new() };
            matches!(op, RegistryOp::Claim(_)).then_some(granted)
        });
        claim
    }
}

/// I3: who speaks for another hub is in breach of the protocol.
#[test]
fn an_epoch_in_the_name_of_another_hub_ends_the_link() {
    let mut b = Bench::new();
    b.says("plant-7", "hub-b", 1000);
    assert!(b.hub.mux().carried_by(LINK).is_some(), "its own it may tell");
    b.says("plant-7", "hub-c", 2000);
    assert!(b.hub.mux().carried_by(LINK).is_none());
    assert!(b.out.close.iter().any(|(conn, code)| (*conn, *code) == (LINK, CloseCode::Protocol)), "{:?}", b.out.close);
    let told = b.out.observed.iter().any(|o| matches!(o, Observed::ProtocolViolation { plane: Plane::Mesh, .. }));
    assert!(told, "and it is counted");
    let claim = b.claims(10, "plant-7", 5000);
    assert_eq!(claim.seen, Epoch(1000), "what it said there is not believed");
}

/// A peer that says another process of an agent took over is not believed on its
/// word while the registry can be asked.
#[test]
fn an_attachment_ends_for_another_instance_when_the_registry_lists_it() {
    for listed in [false, true] {
        let mut b = Bench::new();
        let fence = Fence { epoch: Epoch(5000), nonce: b.claims(10, "plant-1", 5000).nonce };
        let tunnel = ConnKey { ix: 10, generation: 0 };
        b.out.registry.clear();
        b.says_of(Instance(9), "plant-1", "hub-b", 6000);
        assert!(b.hub.mux().carried_by(tunnel).is_some(), "nothing was asked yet");
        let asked = b.out.registry.iter().filter(|(_, op)| matches!(op, RegistryOp::Agent { .. })).count();
        assert_eq!(asked, 1);
        let ours = Located {
            agent_id: AgentId::new("plant-1").unwrap(),
            instance: Instance(7),
            hub: b.hub.run().clone(),
            fence,
            connectors: Vec::new(),
            region: None,
        };
        let other = HubRun { replica_id: name("hub-b"), incarnation: Incarnation(5) };
        let theirs = Located {
            instance: Instance(9),
            hub: other,
            fence: Fence { epoch: Epoch(6000), nonce: Nonce(1) },
            ..ours.clone()
        };
        let answer = vec![if listed { theirs } else { ours }];
        b.answer(|op| matches!(op, RegistryOp::Agent { .. }).then(|| RegistryReply::Attachments(answer.clone())));
        assert_eq!(b.hub.mux().carried_by(tunnel).is_some(), !listed);
    }
}

/// What it said in the moments before this hub knew that its registry is out is
/// not forgotten: two instances would both be served as long as that lasts (O6).
#[test]
fn who_took_over_just_before_an_outage_is_believed_when_it_is_noticed() {
    for told in [false, true] {
        let mut b = Bench::new();
        b.claims(10, "plant-1", 5000);
        b.claims(11, "plant-2", 5001);
        let [tunnel, other] = [10, 11].map(|ix| ConnKey { ix, generation: 0 });
        if told {
            b.says_of(Instance(9), "plant-1", "hub-b", 6000);
        }
        assert!(b.hub.mux().carried_by(tunnel).is_some(), "the registry is asked first");
        b.no_answer_until(|b| !b.hub.control().registry_healthy());
        assert_eq!(b.hub.mux().carried_by(tunnel).is_some(), !told);
        assert!(b.hub.mux().carried_by(other).is_some(), "nobody said anything of this one");
    }
}

/// B9: however often a peer says it, one question is under way; and what it said
/// after that was asked is asked for too.
#[test]
fn what_a_peer_says_of_an_attachment_is_asked_for_once_at_a_time() {
    let mut b = Bench::new();
    b.claims(10, "plant-1", 5000);
    b.out.registry.clear();
    let questions = |b: &Bench| b.out.registry.iter().filter(|(_, op)| matches!(op, RegistryOp::Agent { .. })).count();
    for n in 0..100 {
        b.says_of(Instance(9), "plant-1", "hub-b", 6000 + n);
    }
    assert_eq!(questions(&b), 1);
    let nobody =
        |op: &RegistryOp| matches!(op, RegistryOp::Agent { .. }).then(|| RegistryReply::Attachments(Vec::new()));
    b.answer(nobody);
    assert_eq!(questions(&b), 1, "it was asked before the last was said");
    b.answer(nobody);
    assert_eq!(questions(&b), 0);
    b.says_of(Instance(9), "plant-1", "hub-b", 7000);
    assert_eq!(questions(&b), 1, "that is news");
}

/// M4, O2: an agent that does not take the epoch it was given has another one at
/// once, above its own, also where no registry can be asked: nobody could be
/// opened there before. Not as often as it says so.
#[test]
fn an_agent_that_refuses_its_epoch_gets_a_provisional_one_above_its_own() {
    let mut b = Bench::new();
    let conn = ConnKey { ix: 10, generation: 0 };
    b.claims(10, "plant-1", 5000);
    b.out.registry.clear();
    let held = |b: &Bench| b.hub.control().tunnels().map(|t| (t.fence, t.firm)).next().unwrap();
    let (given, firm) = held(&b);
    assert_eq!((given.epoch, firm), (Epoch(5000), true));
    let refuses = |b: &mut Bench, number: u64, fence: Fence, own: u64| {
        let notice = EpochNotice {
            agent_id: AgentId::new("plant-1").unwrap(),
            instance: Instance(7),
            replica_id: name("hub-a"),
            epoch: Epoch(own),
            nonce: fence.nonce,
            firm: true,
        };
        let message = encode_message(TUNNEL, number, &[Frame::Epoch(Box::new(notice))]);
        b.input(Input::Message { conn, message });
    };
    refuses(&mut b, 1, given, 9000);
    let (above, firm) = held(&b);
    assert!(above.epoch > Epoch(9000) && above.nonce != given.nonce && !firm, "{above:?}");
    refuses(&mut b, 2, above, 20_000);
    assert_eq!(held(&b), (above, false), "as fast as it answers it gets nothing");
    b.now = b.now.after(RENEW_EVERY);
    refuses(&mut b, 3, above, 20_000);
    assert!(held(&b).0.epoch > Epoch(20_000));
}

/// O7: however much the registry is asked and does not answer, the lease is
/// renewed in its time.
#[test]
fn no_crowd_of_questions_keeps_a_hub_from_renewing_its_lease() {
    let mut b = Bench::new();
    let renews = |b: &Bench| b.out.registry.iter().any(|(_, op)| matches!(op, RegistryOp::Renew { .. }));
    b.no_answer_until(|b| b.now.since(Instant::from_nanos(1)) > RENEW_EVERY * 2);
    let next = RENEW_EVERY * 3;
    b.now = Instant::from_nanos(1).after(next - RENEW_EVERY / 10);
    for n in 0..5000 {
        b.comes(100 + n, &format!("plant-{n}"));
    }
    let asked = b.out.registry.len();
    assert!(asked >= 4096 && !renews(&b), "{asked} questions are open");
    assert!(b.hub.control().tunnels().count() > 0, "who finds no room is attached all the same");
    b.now = Instant::from_nanos(1).after(next);
    b.hub.handle_timeout(b.now, &mut b.out);
    assert!(renews(&b));
}

/// Attack 50, from a hub: an epoch that no registry can have granted is believed
/// as far as one can.
#[test]
fn a_poisonous_epoch_of_a_peer_is_bounded_and_moves_nobody_elses() {
    let mut b = Bench::new();
    b.says("plant-1", "hub-b", u64::MAX);
    let unchecked = b.claims(10, "plant-1", 1 << 50);
    assert!(unchecked.seen.0 <= SEEN_UNCHECKED_MAX && unchecked.granted.0 <= SEEN_UNCHECKED_MAX, "{unchecked:?}");
    // From here on the hub knows about where the registry's floor is.
    let floor = 1 << 50;
    for round in 0..100 {
        b.now = b.now.after(Duration::from_millis(1));
        b.says("plant-2", "hub-b", u64::MAX);
        b.says(&format!("plant-{}", 100 + round), "hub-b", u64::MAX);
    }
    let day = floor + SEEN_AHEAD_MAX + (1 << 20);
    let claim = b.claims(11, "plant-2", floor + 10);
    assert!(claim.seen.0 <= day && claim.granted.0 <= day, "a day, however often it is said: {claim:?}");
    assert_eq!(b.claims(12, "plant-3", floor + 20).seen, Epoch(0), "others are not touched");
}

/// Of two dials at once the peer's survives, and the refusal of ours comes before
/// the last word of its handshake. Which address was refused is not known yet: it
/// is not taken for one that another peer moved to, or the two hubs were without
/// a link for good (L4, seed 11773).
#[test]
fn a_refusal_that_comes_before_the_dial_that_survives_moves_no_other_link() {
    let conn = |ix| ConnKey { ix, generation: 0 };
    let mut b = Bench::alone(&["x", "y"]);
    b.dialled(1, conn(2), &Frame::Welcome(Box::new(welcome_of("hub-c"))));
    let key = b.hub.mux().carried_by(conn(2)).expect("a link to hub-c");
    b.greets(LINK);
    b.dialled(0, conn(3), &Frame::GoAway { code: CloseCode::Duplicate, retry_after_ms: 0 });
    assert_eq!(b.hub.mux().get(key).unwrap().dialled, Some(TargetIx(1)), "hub-c is at address y");
    b.proves_itself(LINK);
    let links = b.hub.control().links(b.hub.mux());
    let mut up: Vec<_> = links.iter().filter(|l| l.session.is_some()).filter_map(|l| l.replica).collect();
    up.sort();
    assert_eq!(up, [&name("hub-b"), &name("hub-c")]);
    assert_eq!(b.hub.mux().get(key).unwrap().dialled, Some(TargetIx(1)));
}

fn welcome_of(hub: &str) -> Welcome {
    Welcome {
        replica_id: name(hub),
        incarnation: Incarnation(6),
        namespace: name("default"),
        region: None,
        session: SessionId(77),
        secret: Some(Secret([1; 32])),
        resumed: None,
        attachment: None,
        resume_window_ms: 30_000,
        challenge: Secret([2; 16]),
        initial_window: 65_536,
        capabilities: Vec::new(),
        signature: None,
    }
}

//! Who may be a peer on the mesh (semantics 8, I3, attacks 26 to 31): whole
//! hubs with model certificates, and a hub against a peer made by hand.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nowconnect_core::config::{HubConfig, Mode};
use nowconnect_core::error::CloseCode;
use nowconnect_core::hub::Hub;
use nowconnect_core::id::{ConnKey, Incarnation, Secret, SessionId, SockKey, TargetIx};
use nowconnect_core::identity::{Proof, Verified};
use nowconnect_core::mux::{Input, NodeOut};
use nowconnect_core::observed::Observed;
use nowconnect_core::principal::{HubGrant, Principal};
use nowconnect_core::rng::Seed;
use nowconnect_core::session::TxBatch;
use nowconnect_core::time::Instant;
use nowconnect_core::wire::{
    Auth, Codec, Dialect, Frame, Hello, HelloHub, HelloRole, Plane, Signature, Welcome, WireLimits, decode,
    encode_message,
};
use world::{World, agent_config, hub_config, name};

const V2: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Mesh };

fn signing(replica: &str, peers: &[&str]) -> HubConfig {
    let mut config = hub_config(replica, Mode::Active, peers);
    config.insecure_mesh = false;
    config
}

/// Two hubs that sign, and an agent at the first.
fn two(codec: Codec, prepare: impl FnOnce(&mut World)) -> (World, usize, usize) {
    let mut w = World::new();
    w.codec = codec;
    prepare(&mut w);
    let a = w.hub(signing("hub-a", &["hub-b"]), 1);
    let b = w.hub(signing("hub-b", &["hub-a"]), 2);
    w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(Duration::from_secs(3));
    (w, a, b)
}

fn links(w: &World, hub: usize) -> usize {
    w.as_hub(hub).mux().iter().filter(|(_, e)| e.plane == Plane::Mesh && e.conn.is_some()).count()
}

fn echoes(w: &mut World, hub: usize) -> bool {
    let Ok(c) = w.client(hub) else { return false };
    w.write(hub, c, vec![7; 1000]);
    w.run_for(Duration::from_secs(1));
    w.sock(hub, c).received == vec![7; 1000]
}

fn refusals(w: &World, hub: usize) -> Vec<&'static str> {
    let auth = |r: &Observed| match r {
        Observed::HandshakeFailed { cause: CloseCode::Auth, detail, .. } => Some(*detail),
        _ => None,
    };
    w.nodes[hub].records.iter().filter_map(auth).collect()
}

#[test]
fn hubs_that_sign_are_linked_once_and_carry() {
    for codec in [Codec::JsonV1, Codec::BinaryV2] {
        let (mut w, a, b) = two(codec, |_| ());
        assert_eq!((links(&w, a), links(&w, b)), (1, 1));
        assert!(echoes(&mut w, b));
        // A cut link is resumed by the proof of its secret.
        w.cut(a, b);
        w.run_for(Duration::from_secs(5));
        assert_eq!((links(&w, a), links(&w, b)), (1, 1));
        assert!(echoes(&mut w, b));
    }
}

/// Planted bug 55 and its relatives.
#[test]
fn only_the_exact_name_proves_a_replica() {
    for names in [
        &["hub-bb"] as &[&str],
        &["xhub-b"],
        &["hub-b.example.com"],
        &["*.hub-b"],
        &["*"],
        &["HUB-B"],
        &["hub-c", "hub-d"],
        &["CN=hub-b"],
    ] {
        let (mut w, a, b) = two(Codec::BinaryV2, |w| {
            w.certificates.insert(1, names.iter().map(|n| (*n).to_owned()).collect());
        });
        assert_eq!((links(&w, a), links(&w, b)), (0, 0), "{names:?}");
        assert!(refusals(&w, a).iter().any(|d| d.contains("dNSName")), "{names:?}: {:?}", refusals(&w, a));
        assert!(!echoes(&mut w, b), "{names:?}");
    }
    let (w, a, b) = two(Codec::BinaryV2, |w| {
        w.certificates.insert(1, vec!["other".to_owned(), "hub-b".to_owned()]);
    });
    assert_eq!((links(&w, a), links(&w, b)), (1, 1), "one of several names is enough");
}

#[test]
fn the_host_of_a_configured_peer_proves_that_peer_only() {
    for (replica, linked) in [("hub-b", 1), ("hub-x", 0)] {
        let mut w = World::new();
        w.certificates.insert(1, vec!["b.example.com".to_owned()]);
        let mut config = signing("hub-a", &["hub-b"]);
        config.peers[0].host = Some("b.example.com".to_owned());
        config.peers[0].replica_id = Some(name(replica));
        let a = w.hub(config, 1);
        let b = w.hub(signing("hub-b", &["hub-a"]), 2);
        w.run_for(Duration::from_secs(3));
        assert_eq!((links(&w, a), links(&w, b)), (linked, linked), "{replica}");
    }
}

#[test]
fn a_hub_without_keys_is_no_peer_of_one_with_keys() {
    let mut w = World::new();
    let a = w.hub(signing("hub-a", &["hub-b"]), 1);
    let b = w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
    w.run_for(Duration::from_secs(3));
    assert_eq!(links(&w, a), 0);
    assert!(refusals(&w, a).iter().any(|d| d.contains("does not sign")), "{:?}", refusals(&w, a));
    w.run_for(Duration::from_secs(3));
    assert_eq!(links(&w, b), 0);
}

/// TLS that ends at both hubs is part of what is signed; one that ends before
/// the acceptor is not; two different connections never fit.
#[test]
fn a_signature_is_bound_to_the_tls_connection_where_tls_ends_at_both() {
    let (ours, theirs) = (Some([1; 32]), Some([2; 32]));
    for (exporters, linked) in
        [([ours, ours], 1), ([ours, None], 1), ([None, None], 1), ([ours, theirs], 0), ([None, theirs], 0)]
    {
        let (w, a, b) = two(Codec::BinaryV2, |w| w.exporters = exporters);
        assert_eq!((links(&w, a), links(&w, b)), (linked, linked), "{exporters:?}");
    }
}

/// What a dialler says after its AUTH waits for the verdict, and is not lost.
#[test]
fn nothing_counts_before_the_verdict_and_nothing_is_lost() {
    let mut w = World::new();
    w.proofs_held = vec![0];
    let a = w.hub(signing("hub-a", &[]), 1);
    let b = w.hub(signing("hub-b", &["hub-a"]), 2);
    w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(Duration::from_millis(100));
    assert_eq!((links(&w, a), links(&w, b)), (0, 0), "not even our own signature is there");
    // Signed; then the verdict on AUTH is held.
    w.proofs_held.clear();
    while links(&w, b) == 0 {
        assert!(w.step());
    }
    w.proofs_held = vec![0];
    let clients: Vec<SockKey> = (0..3).map(|_| w.client(b).unwrap()).collect();
    for c in &clients {
        w.write(b, *c, vec![9; 5000]);
    }
    w.run_for(Duration::from_millis(500));
    assert_eq!((links(&w, a), w.as_hub(a).counters().carried), (0, 0), "a frame counts before authentication (I3)");
    w.proofs_held.clear();
    w.run_for(Duration::from_secs(2));
    assert_eq!((links(&w, a), links(&w, b)), (1, 1));
    for c in clients {
        assert_eq!(w.sock(b, c).received, vec![9; 5000]);
    }
}

/// A hub and what it says on one connection.
struct Bench {
    hub: Hub,
    out: NodeOut,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(peers: &[&str]) -> Self {
        let mut out = NodeOut::default();
        let now = Instant::from_nanos(1);
        let hub = Hub::new(Arc::new(signing("hub-a", peers)), Seed::from_u64(1), now, &mut out);
        Self { hub, out, now }
    }

    /// The next peer the hub dials.
    fn dialled(&mut self) -> TargetIx {
        while self.out.dial.is_empty() {
            self.now = self.hub.poll_timeout().unwrap().at;
            self.hub.handle_timeout(self.now, &mut self.out);
        }
        self.out.dial.pop().unwrap()
    }

    fn input(&mut self, input: Input) {
        self.hub.handle(self.now, input, &mut self.out);
        self.hub.check_invariants();
    }

    fn accept(&mut self, ix: u32) -> ConnKey {
        let conn = ConnKey { ix, generation: 0 };
        let principal = Principal::Hub(HubGrant::default());
        self.input(Input::Accepted { conn, dialect: V2, principal });
        conn
    }

    fn say(&mut self, conn: ConnKey, frame: Frame) {
        self.input(Input::Message { conn, message: encode_message(V2, 0, &[frame]) });
    }

    fn said(&mut self, conn: ConnKey) -> Vec<Frame> {
        let mut batch = TxBatch::default();
        self.hub.poll_transmit(self.now, conn, usize::MAX, &mut batch, &mut self.out);
        let mut frames = Vec::new();
        for m in batch.messages {
            decode(V2, &m.to_bytes(), &WireLimits::ESTABLISHED, &mut frames).unwrap();
        }
        frames
    }

    fn proof(&mut self) -> Proof {
        assert_eq!(self.out.proofs.len(), 1);
        self.out.proofs.pop().unwrap().1
    }

    /// HELLO, our signature, WELCOME.
    fn welcomed(&mut self, ix: u32) -> (ConnKey, Box<Welcome>) {
        let conn = self.accept(ix);
        self.say(conn, hello());
        assert!(matches!(self.proof(), Proof::Sign { .. }));
        self.input(Input::Signed { conn, result: Ok(signature()) });
        match self.said(conn).pop() {
            Some(Frame::Welcome(w)) => (conn, w),
            other => panic!("{other:?}"),
        }
    }
}

fn hello() -> Frame {
    let role = HelloRole::Hub(HelloHub {
        replica_id: name("hub-b"),
        incarnation: Incarnation(5),
        namespace: name("default"),
        region: None,
        sessions: Vec::new(),
    });
    let challenge = Secret([3; 16]);
    Frame::Hello(Box::new(Hello { role, challenge, initial_window: 65536, capabilities: Vec::new(), resume: None }))
}

fn signature() -> Signature {
    Signature { chain: vec!["AAAA".into()], scheme: name("ed25519"), signature: "AAAA".into() }
}

fn auth(signature: Option<Signature>) -> Frame {
    Frame::Auth(Box::new(Auth { signature }))
}

/// Attack 30: of a recorded HELLO and AUTH the second handshake wants another
/// signature, because its challenge is another.
#[test]
fn a_recorded_handshake_proves_nothing_twice() {
    let mut bench = Bench::new();
    let mut wanted = Vec::new();
    for ix in 1..3 {
        let (conn, w) = bench.welcomed(ix);
        assert_eq!(w.signature, Some(signature()));
        bench.say(conn, auth(Some(signature())));
        match bench.proof() {
            Proof::Verify { statements, .. } => wanted.extend(statements),
            other => panic!("{other:?}"),
        }
        bench.input(Input::Verified { conn, result: Err("the signature does not fit") });
        assert_eq!(bench.said(conn), [Frame::GoAway { code: CloseCode::Auth, retry_after_ms: 0 }]);
    }
    assert_eq!(wanted.len(), 2);
    assert_ne!(wanted[0], wanted[1]);
    assert!(bench.hub.mux().is_empty());
}

/// Whoever answers our dial with our own name has not proved to be us: the
/// peer is dialled again. (Whoever stands between could part two hubs for good.)
#[test]
fn a_peer_that_claims_our_name_is_dialled_again() {
    let mut bench = Bench::with(&["hub-b"]);
    for ix in 0..6 {
        let (conn, target) = (ConnKey { ix, generation: 0 }, bench.dialled());
        bench.input(Input::Connected { target, conn, dialect: V2, peer: HubGrant::default() });
        assert!(matches!(bench.said(conn)[..], [Frame::Hello(_)]));
        let answer = if ix % 2 == 0 {
            Frame::GoAway { code: CloseCode::Itself, retry_after_ms: 0 }
        } else {
            Frame::Welcome(Box::new(Welcome {
                replica_id: name("hub-a"),
                incarnation: Incarnation(5),
                namespace: name("default"),
                region: None,
                session: SessionId(1),
                secret: Some(Secret([2; 32])),
                resumed: None,
                attachment: None,
                resume_window_ms: 10_000,
                challenge: Secret([3; 16]),
                initial_window: 65536,
                capabilities: Vec::new(),
                signature: None,
            }))
        };
        bench.say(conn, answer);
        bench.input(Input::Disconnected { conn, cause: CloseCode::Itself });
        assert!(!bench.out.observed.iter().any(|o| matches!(o, Observed::PeerIsSelf { .. })));
    }
}

/// Attacks 27 and 29: another hub's certificate, and our own words.
#[test]
fn another_hubs_certificate_and_our_own_words_are_refused() {
    let mut bench = Bench::new();
    let (conn, _) = bench.welcomed(1);
    bench.say(conn, auth(Some(signature())));
    assert!(matches!(bench.proof(), Proof::Verify { .. }));
    let result = Ok(Verified { names: vec!["hub-c".into()], statement: 0 });
    bench.input(Input::Verified { conn, result });
    assert_eq!(bench.said(conn), [Frame::GoAway { code: CloseCode::Auth, retry_after_ms: 0 }]);

    let conn = bench.accept(2);
    let Frame::Hello(mut own) = hello() else { unreachable!() };
    if let HelloRole::Hub(h) = &mut own.role {
        h.replica_id = name("hub-a");
    }
    bench.say(conn, Frame::Hello(own));
    assert_eq!(bench.said(conn), [Frame::GoAway { code: CloseCode::Itself, retry_after_ms: 0 }]);

    // What we sign and what the dialler must sign differ although all else is the same.
    let conn = bench.accept(3);
    bench.say(conn, hello());
    let Proof::Sign { statement: ours } = bench.proof() else { panic!() };
    bench.input(Input::Signed { conn, result: Ok(signature()) });
    bench.said(conn);
    bench.say(conn, auth(Some(signature())));
    let Proof::Verify { statements, .. } = bench.proof() else { panic!() };
    assert!(!statements.contains(&ours), "our own signature would pass as the peer's");
    assert!(bench.hub.mux().is_empty());
}

/// Attack 52 for a peer that is not proved yet, and C5 for the driver's answers.
#[test]
fn early_frames_and_stray_verdicts_do_nothing() {
    let mut bench = Bench::new();
    let stray = ConnKey { ix: 77, generation: 0 };
    let good = || Ok(Verified { names: vec!["hub-b".into()], statement: 0 });
    bench.input(Input::Signed { conn: stray, result: Ok(signature()) });
    bench.input(Input::Verified { conn: stray, result: good() });

    // A verdict before there was anything to judge.
    let (conn, _) = bench.welcomed(1);
    bench.input(Input::Verified { conn, result: good() });
    bench.input(Input::Signed { conn, result: Ok(signature()) });
    assert!(bench.hub.mux().is_empty());
    bench.say(conn, Frame::Ping { token: 1 });
    assert_eq!(bench.said(conn), [Frame::GoAway { code: CloseCode::Protocol, retry_after_ms: 0 }]);

    // AUTH before WELCOME was signed, and no signature at all.
    let conn = bench.accept(2);
    bench.say(conn, hello());
    bench.proof();
    bench.say(conn, auth(Some(signature())));
    assert_eq!(bench.said(conn), [Frame::GoAway { code: CloseCode::Protocol, retry_after_ms: 0 }]);
    let (conn, _) = bench.welcomed(3);
    bench.say(conn, auth(None));
    assert_eq!(bench.said(conn), [Frame::GoAway { code: CloseCode::Auth, retry_after_ms: 0 }]);

    // Who cannot sign says so and refuses.
    let conn = bench.accept(4);
    bench.say(conn, hello());
    bench.proof();
    bench.input(Input::Signed { conn, result: Err("no key") });
    assert_eq!(bench.said(conn), [Frame::GoAway { code: CloseCode::Auth, retry_after_ms: 0 }]);

    // What is held while AUTH is judged is bounded.
    let (conn, _) = bench.welcomed(5);
    bench.say(conn, auth(Some(signature())));
    bench.proof();
    for _ in 0..2000 {
        bench.input(Input::Message { conn, message: Bytes::from_static(b"no frame at all") });
    }
    assert_eq!(bench.said(conn), [Frame::GoAway { code: CloseCode::Busy, retry_after_ms: 0 }]);
    bench.input(Input::Verified { conn, result: good() });
    assert!(bench.hub.mux().is_empty());
}

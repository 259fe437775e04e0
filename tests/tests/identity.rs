//! Who gets into the mesh, with real processes: signed handshakes wherever TLS
//! ends, and everybody who must stay outside (semantics 8, I3, attacks 26 to 32).

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nowconnect::config::MeshTlsFiles;
use nowconnect::identity::MeshIdentity;
use nowconnect_core::error::CloseCode;
use nowconnect_core::id::Name;
use nowconnect_core::identity::{Party, Signer, Statement};
use nowconnect_core::wire::{Auth, Codec, Dialect, Frame, Hello, HelloRole, Plane, Signature, Welcome};
use nowconnect_tests::actors::{Pinger, Transfer};
use nowconnect_tests::certs::{Authority, Files};
use nowconnect_tests::cluster::{Cluster, Plan, Wire};
use nowconnect_tests::hostile::{Peer, Reaction, hub_hello};
use nowconnect_tests::target::Target;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded};
use rustls::ClientConfig;

const MESH: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Mesh };

/// TLS ends at an ingress with a certificate of its own: the hubs prove
/// themselves through it, in both encodings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hubs_prove_themselves_through_an_ingress_that_ends_tls() {
    for wire in [Wire::V1, Wire::V2] {
        let target = Target::start().await;
        let plan = Plan { tls: true, ingress: true, ..Plan::default() }.wire(wire);
        let mut cluster = plan.connector("t", target.addr).start().await;
        let addr = cluster.listener(1, "t");
        let outcome = bounded("a transfer", LONG_PATIENCE, Transfer::Echo.run(addr, 1, 1 << 20)).await;
        assert_eq!(outcome, Ok(()), "{wire:?}");
        cluster.assert_alive();
    }
}

/// Somebody at the mesh port with keys of a kind.
struct Intruder {
    addr: SocketAddr,
    ca: PathBuf,
    /// TLS with the certificate it shows, if any.
    tls: Option<Arc<ClientConfig>>,
}

impl Intruder {
    fn identity(&self, files: &Files) -> MeshIdentity {
        let files =
            MeshTlsFiles { ca_bundle: self.ca.clone(), cert_file: files.cert.clone(), key_file: files.key.clone() };
        MeshIdentity::load(&files).unwrap()
    }

    /// HELLO as `replica`; the peer and the WELCOME.
    fn welcomed(&self, replica: &str, headers: &[(&str, &str)]) -> Result<(Peer, Hello, Welcome), Reaction> {
        let mut peer = match &self.tls {
            Some(tls) => Peer::upgrade_tls(self.addr, tls, MESH, headers)?,
            None => Peer::upgrade_with(self.addr, MESH, "", headers)?,
        };
        let hello = hub_hello(replica, "tests");
        peer.frame(0, Frame::Hello(Box::new(hello.clone())));
        let welcome = RefCell::new(None);
        peer.frames_until(|f| {
            if let Frame::Welcome(w) = f {
                *welcome.borrow_mut() = Some((**w).clone());
            }
            welcome.borrow().is_some()
        })?;
        Ok((peer, hello, welcome.into_inner().unwrap()))
    }

    /// The whole handshake with these keys, ending as the hub wants.
    fn attempt(&self, replica: &str, keys: &MeshIdentity, bend: impl FnOnce(&mut Signature)) -> Reaction {
        let (mut peer, hello, welcome) = match self.welcomed(replica, &[]) {
            Ok(all) => all,
            Err(reaction) => return reaction,
        };
        let exporter = peer.exporter();
        let mut signature = keys.sign(&statement(&hello, &welcome, exporter.as_ref())).unwrap();
        bend(&mut signature);
        peer.frame(0, Frame::Auth(Box::new(Auth { signature: Some(signature) })));
        peer.until_closed()
    }
}

/// What the dialler signs.
fn statement(hello: &Hello, welcome: &Welcome, exporter: Option<&[u8; 32]>) -> Vec<u8> {
    let HelloRole::Hub(h) = &hello.role else { panic!() };
    let namespace = Name::new("tests").unwrap();
    Statement {
        signer: Signer::Dialler,
        dialler: Party { replica_id: &h.replica_id, incarnation: h.incarnation, challenge: &hello.challenge },
        acceptor: Party {
            replica_id: &welcome.replica_id,
            incarnation: welcome.incarnation,
            challenge: &welcome.challenge,
        },
        namespace: &namespace,
        dialect: MESH,
        exporter,
    }
    .to_bytes()
}

fn closed(code: CloseCode) -> impl Fn(&Reaction) -> bool {
    move |r| matches!(r, Reaction::Closed { goaway, .. } if *goaway == Some(code))
}

/// What an ingress may say of a client that it has verified.
const SPOOFED: [(&str, &str); 5] = [
    ("X-Forwarded-Client-Cert", "Hash=00;Subject=\"CN=hub-c\";DNS=hub-c"),
    ("x_forwarded_client_cert", "DNS=hub-c"),
    ("SSL-Client-Verify", "SUCCESS"),
    ("ssl_client_s_dn", "CN=hub-c"),
    ("X-SSL-Client-Cert", "-----BEGIN CERTIFICATE-----"),
];

/// Straight to the plain port behind the ingress, where nothing stands before
/// the signed handshake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_gets_into_the_mesh() {
    let target = Target::start().await;
    let plan = Plan { tls: true, ingress: true, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let mut near = Pinger::open(cluster.listener(1, "t"), 1).await.unwrap();
    let (dir, ca) = (cluster.dir().to_owned(), cluster.authority.bundle());
    let intruder = Intruder { addr: cluster.hubs[0].mesh(), ca, tls: None };
    let (own, foreign) = (&cluster.authority, Authority::create(&dir, "foreign"));
    let issue = |name: &str, names: &[&str]| own.issue(name, names);
    let keys = [
        ("right CA, another SAN", issue("x1", &["hub-d"])),
        ("a name that contains it", issue("x2", &["hub-c.example.com", "xhub-c"])),
        ("wildcards", issue("x3", &["*.hub-c", "*"])),
        ("common name only", own.issue_bent("hub-c", &[], |_| ())),
        ("wrong CA", foreign.issue("x4", &["hub-c"])),
        (
            "expired",
            own.issue_bent("x5", &["hub-c"], |p| {
                p.not_before = rcgen::date_time_ymd(2020, 1, 1);
                p.not_after = rcgen::date_time_ymd(2021, 1, 1);
            }),
        ),
        (
            "an agent's purpose",
            own.issue_bent("x6", &["hub-c"], |p| {
                p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            }),
        ),
    ];
    let hub_b = cluster.hubs[1].files().clone();
    let wrong = tokio::task::spawn_blocking(move || attacks(&intruder, &keys, &hub_b, &dir)).await.unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    bounded("the neighbour", PATIENCE, near.ping(2000)).await.unwrap();
    cluster.assert_alive();
}

fn attacks(intruder: &Intruder, keys: &[(&'static str, Files)], hub_b: &Files, dir: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut expect = |name: &str, reaction: Reaction, holds: &dyn Fn(&Reaction) -> bool| {
        if !holds(&reaction) {
            wrong.push(format!("{name}: {reaction:?}"));
        }
    };
    let refused = closed(CloseCode::Auth);
    // Attack 26.
    for (name, files) in keys {
        let identity = intruder.identity(files);
        expect(name, intruder.attempt("hub-c", &identity, |_| ()), &refused);
    }
    // Attack 27: the good keys of hub-b under another name.
    let good = intruder.identity(hub_b);
    expect("hub-b as hub-c", intruder.attempt("hub-c", &good, |_| ()), &refused);
    // Attack 28: headers an ingress may set prove nothing.
    match intruder.welcomed("hub-c", &SPOOFED) {
        Ok((mut peer, ..)) => {
            peer.frame(0, Frame::Auth(Box::default()));
            expect("spoofed headers", peer.until_closed(), &refused);
        }
        Err(reaction) => expect("spoofed headers", reaction, &refused),
    }
    // Attack 29: the hub's own name and the hub's own signature.
    match intruder.welcomed("hub-a", &[]) {
        Ok(_) => expect("its own name", Reaction::Open, &refused),
        Err(reaction) => expect("its own name", reaction, &closed(CloseCode::Itself)),
    }
    let (mut peer, _, welcome) = intruder.welcomed("hub-c", &[]).unwrap();
    assert!(welcome.signature.is_some(), "the hub proves itself first");
    peer.frame(0, Frame::Auth(Box::new(Auth { signature: welcome.signature })));
    expect("its own signature", peer.until_closed(), &refused);
    // Attack 30: what was good in an earlier handshake.
    let (_, hello, welcome) = intruder.welcomed("hub-c", &[]).unwrap();
    let hub_c = intruder.identity(&Files { cert: dir.join("x1.crt"), key: dir.join("x1.key") });
    let recorded = hub_c.sign(&statement(&hello, &welcome, None)).unwrap();
    let (mut peer, ..) = intruder.welcomed("hub-c", &[]).unwrap();
    peer.frame(0, Frame::Auth(Box::new(Auth { signature: Some(recorded) })));
    expect("a recorded AUTH", peer.until_closed(), &refused);
    // Attack 32 and other shapes of a signature.
    let big = STANDARD.encode(vec![0x30; 6000]);
    let long = |s: &mut Signature| s.chain = vec![big.clone(); 8];
    expect("a chain of 64 KiB", intruder.attempt("hub-c", &good, long), &|r| matches!(r, Reaction::Closed { .. }));
    let scheme = |s: &mut Signature| s.scheme = Name::new("rsa_pkcs1_sha1").unwrap();
    expect("another scheme", intruder.attempt("hub-d", &hub_c, scheme), &refused);
    let noise = |s: &mut Signature| s.chain = vec![STANDARD.encode([1, 2, 3])];
    expect("no certificate", intruder.attempt("hub-c", &good, noise), &refused);
    // I3: a frame before the proof.
    let (mut peer, ..) = intruder.welcomed("hub-c", &[]).unwrap();
    peer.frame(0, Frame::Ping { token: 1 });
    expect("a frame before AUTH", peer.until_closed(), &closed(CloseCode::Protocol));
    // And who is right gets in: the table fails where it should.
    expect("hub-d as hub-d", intruder.attempt_and_stay("hub-d", &hub_c), &|r| *r == Reaction::Open);
    wrong
}

impl Intruder {
    /// A statement that is right but for the connection it is made on.
    fn attempt_unbound(&self, replica: &str, keys: &MeshIdentity) -> Reaction {
        let (mut peer, hello, welcome) = match self.welcomed(replica, &[]) {
            Ok(all) => all,
            Err(reaction) => return reaction,
        };
        let signature = keys.sign(&statement(&hello, &welcome, None)).unwrap();
        peer.frame(0, Frame::Auth(Box::new(Auth { signature: Some(signature) })));
        peer.until_closed()
    }

    fn attempt_and_stay(&self, replica: &str, keys: &MeshIdentity) -> Reaction {
        let (mut peer, hello, welcome) = match self.welcomed(replica, &[]) {
            Ok(all) => all,
            Err(reaction) => return reaction,
        };
        let exporter = peer.exporter();
        let signature = keys.sign(&statement(&hello, &welcome, exporter.as_ref())).unwrap();
        peer.frame(0, Frame::Auth(Box::new(Auth { signature: Some(signature) })));
        match peer.frames_until(|f| matches!(f, Frame::Status(_))) {
            Ok(()) => Reaction::Open,
            Err(reaction) => reaction,
        }
    }
}

/// What a hub's own metrics say of those it kept out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct KeptOut {
    /// TLS came to nothing.
    tls: f64,
    /// A path that is not served there.
    path: f64,
    /// The handshake on the mesh ended for want of a proof.
    unproven: f64,
}

impl KeptOut {
    async fn by(cluster: &Cluster) -> Self {
        let page = cluster.metrics(0).await;
        let rejects = |why| page.sum("nowconnect_auth_rejects_total", &[("reason", why)]).unwrap_or(0.0);
        let unproven = page.sum("nowconnect_handshake_failures_total", &[("plane", "mesh"), ("cause", "AUTH")]);
        Self { tls: rejects("tls"), path: rejects("path"), unproven: unproven.unwrap_or(0.0) }
    }
}

/// What it is, the certificate shown, headers beside it, and what it counts as.
type Case<'a> = (&'a str, Option<&'a Files>, &'static [(&'static str, &'static str)], KeptOut);

/// The port where the hub ends TLS itself: without a certificate of the right CA
/// nobody gets as far as HTTP, and with one of another hub not as far as
/// WELCOME, whatever headers say. Each is counted for what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_native_mesh_port_keeps_out_who_shows_no_certificate_of_that_hub() {
    let target = Target::start().await;
    let mut cluster = Plan { tls: true, ..Plan::default() }.connector("t", target.addr).start().await;
    let mut near = Pinger::open(cluster.listener(1, "t"), 1).await.unwrap();
    let own = &cluster.authority;
    let foreign = Authority::create(cluster.dir(), "foreign").issue("y1", &["hub-c"]);
    let other = own.issue("y2", &["hub-d"]);
    let long = own.issue("y3", &["hub-c.example.com", "xhub-c", "*.hub-c"]);
    let named = own.issue_bent("hub-c", &[], |_| ());
    let agent = own.issue_bent("y4", &["hub-c"], |p| {
        p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    let expired = own.issue_bent("y5", &["hub-c"], |p| {
        p.not_before = rcgen::date_time_ymd(2020, 1, 1);
        p.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    let tls = KeptOut { tls: 1.0, ..KeptOut::default() };
    let unproven = KeptOut { unproven: 1.0, ..KeptOut::default() };
    let gone = |r: &Reaction| *r == Reaction::Closed { code: None, goaway: None };
    let refused = closed(CloseCode::Auth);
    let cases: [Case<'_>; 10] = [
        ("no certificate", None, &[], tls),
        ("no certificate, but headers", None, &SPOOFED, tls),
        ("wrong CA", Some(&foreign), &[], tls),
        ("wrong CA and headers", Some(&foreign), &SPOOFED, tls),
        ("expired", Some(&expired), &[], tls),
        ("not for clients", Some(&agent), &[], tls),
        ("right CA, another SAN", Some(&other), &[], unproven),
        ("right CA, another SAN and headers", Some(&other), &SPOOFED, unproven),
        ("names that contain it", Some(&long), &SPOOFED, unproven),
        ("common name only", Some(&named), &[], unproven),
    ];
    let (addr, ca) = (cluster.hubs[0].mesh(), cluster.authority.bundle());
    let intruder = |files: Option<&Files>| Intruder { addr, ca: ca.clone(), tls: Some(own.client(files)) };
    let more = async |before: KeptOut| {
        let now = KeptOut::by(&cluster).await;
        KeptOut { tls: now.tls - before.tls, path: now.path - before.path, unproven: now.unproven - before.unproven }
    };
    for (name, files, headers, counted) in cases {
        let before = KeptOut::by(&cluster).await;
        let one = intruder(files);
        let reaction = tokio::task::spawn_blocking(move || one.welcomed("hub-c", headers).map(drop)).await.unwrap();
        let reaction = reaction.expect_err(name);
        let holds = if counted == tls { gone(&reaction) } else { refused(&reaction) };
        assert!(holds, "{name}: {reaction:?}");
        assert_eq!(more(before).await, counted, "{name}");
    }

    // Past TLS and the name: the signature has to be that certificate's, for this
    // very connection.
    let good = own.issue("y6", &["hub-c"]);
    let before = KeptOut::by(&cluster).await;
    let (one, two, three) = (intruder(Some(&good)), intruder(Some(&good)), intruder(Some(&good)));
    let [by_good, by_other] = [&good, &other].map(|files| one.identity(files));
    let reactions = tokio::task::spawn_blocking(move || {
        let foreign = one.attempt("hub-c", &by_other, |_| ());
        let unbound = two.attempt_unbound("hub-c", &by_good);
        [foreign, unbound, three.attempt_and_stay("hub-c", &by_good)]
    });
    let [foreign, unbound, right] = reactions.await.unwrap();
    assert!(refused(&foreign), "signed with another hub's key: {foreign:?}");
    assert!(refused(&unbound), "signed, but not for this connection: {unbound:?}");
    assert_eq!(right, Reaction::Open, "who is right gets in: the table fails where it should");
    assert_eq!(more(before).await, KeptOut { unproven: 2.0, ..KeptOut::default() });

    // The port of agents and probes serves no mesh beside a port of its own.
    let before = KeptOut::by(&cluster).await;
    let (public, tls) = (cluster.hubs[0].http(), own.client(None));
    let answer = tokio::task::spawn_blocking(move || Peer::upgrade_tls(public, &tls, MESH, &SPOOFED).map(drop));
    let answer = answer.await.unwrap().expect_err("an upgrade");
    assert!(matches!(answer, Reaction::Status(404, _)), "{answer:?}");
    assert_eq!(more(before).await, KeptOut { path: 1.0, ..KeptOut::default() });
    bounded("the neighbour", PATIENCE, near.ping(2000)).await.unwrap();
    cluster.assert_alive();
}

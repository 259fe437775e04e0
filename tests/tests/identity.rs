//! Who gets into the mesh, with real processes: signed handshakes wherever TLS
//! ends, and everybody who must stay outside (semantics 8, I3, attacks 26 to 32).

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nowconnect::config::MeshTlsFiles;
use nowconnect::identity::MeshIdentity;
use nowconnect_core::error::CloseCode;
use nowconnect_core::id::{Incarnation, Name};
use nowconnect_core::identity::{Party, Signer, Statement};
use nowconnect_core::wire::{Auth, Codec, Dialect, Frame, Hello, HelloRole, Plane, Signature, Welcome};
use nowconnect_tests::actors::{Pinger, Transfer};
use nowconnect_tests::certs::{Authority, Files};
use nowconnect_tests::cluster::{Plan, Wire};
use nowconnect_tests::hostile::{Peer, Reaction, hub_hello};
use nowconnect_tests::target::Target;
use nowconnect_tests::wait::{LONG_PATIENCE, PATIENCE, bounded};

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
}

impl Intruder {
    fn identity(&self, files: &Files) -> MeshIdentity {
        let files =
            MeshTlsFiles { ca_bundle: self.ca.clone(), cert_file: files.cert.clone(), key_file: files.key.clone() };
        MeshIdentity::load(&files).unwrap()
    }

    /// HELLO as `replica`; the peer and the WELCOME.
    fn welcomed(&self, replica: &str, headers: &[(&str, &str)]) -> Result<(Peer, Hello, Welcome), Reaction> {
        let mut peer = Peer::upgrade_with(self.addr, MESH, "", headers)?;
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
        let mut signature = keys.sign(&statement(&hello, &welcome, Signer::Dialler)).unwrap();
        bend(&mut signature);
        peer.frame(0, Frame::Auth(Box::new(Auth { signature: Some(signature) })));
        peer.until_closed()
    }
}

fn statement(hello: &Hello, welcome: &Welcome, signer: Signer) -> Vec<u8> {
    let HelloRole::Hub(h) = &hello.role else { panic!() };
    let namespace = Name::new("tests").unwrap();
    let incarnation = |i: Incarnation| i;
    Statement {
        signer,
        dialler: Party {
            replica_id: &h.replica_id,
            incarnation: incarnation(h.incarnation),
            challenge: &hello.challenge,
        },
        acceptor: Party {
            replica_id: &welcome.replica_id,
            incarnation: welcome.incarnation,
            challenge: &welcome.challenge,
        },
        namespace: &namespace,
        dialect: MESH,
        exporter: None,
    }
    .to_bytes()
}

fn closed(code: CloseCode) -> impl Fn(&Reaction) -> bool {
    move |r| matches!(r, Reaction::Closed { goaway, .. } if *goaway == Some(code))
}

/// Straight to the plain port behind the ingress, where nothing stands before
/// the signed handshake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_gets_into_the_mesh() {
    let target = Target::start().await;
    let plan = Plan { tls: true, ingress: true, ..Plan::default() };
    let mut cluster = plan.connector("t", target.addr).start().await;
    let mut near = Pinger::open(cluster.listener(1, "t"), 1).await.unwrap();
    let (dir, ca) = (cluster.dir().to_owned(), cluster.authority.bundle());
    let intruder = Intruder { addr: cluster.hubs[0].mesh(), ca };
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
    let spoofed = [
        ("X-Forwarded-Client-Cert", "Hash=00;Subject=\"CN=hub-c\";DNS=hub-c"),
        ("x_forwarded_client_cert", "DNS=hub-c"),
        ("SSL-Client-Verify", "SUCCESS"),
        ("ssl_client_s_dn", "CN=hub-c"),
        ("X-SSL-Client-Cert", "-----BEGIN CERTIFICATE-----"),
    ];
    match intruder.welcomed("hub-c", &spoofed) {
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
    let recorded = hub_c.sign(&statement(&hello, &welcome, Signer::Dialler)).unwrap();
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
    fn attempt_and_stay(&self, replica: &str, keys: &MeshIdentity) -> Reaction {
        let (mut peer, hello, welcome) = match self.welcomed(replica, &[]) {
            Ok(all) => all,
            Err(reaction) => return reaction,
        };
        let signature = keys.sign(&statement(&hello, &welcome, Signer::Dialler)).unwrap();
        peer.frame(0, Frame::Auth(Box::new(Auth { signature: Some(signature) })));
        match peer.frames_until(|f| matches!(f, Frame::Status(_))) {
            Ok(()) => Reaction::Open,
            Err(reaction) => reaction,
        }
    }
}

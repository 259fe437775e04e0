//! The main job: an LDAP client on hub B reaches a directory behind an agent
//! on hub A, with real servers and real clients, over both encodings, plain
//! and with mutual TLS.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; times are for the reader")]

use std::net::SocketAddr;
use std::process::Command;

use ldap3::adapters::{Adapter, EntriesOnly, PagedResults};
use ldap3::{LdapConnAsync, Mod, Scope, SearchEntry};
use nowconnect_tests::cluster::{Cluster, Plan, Wire};
use nowconnect_tests::ports::Port;
use nowconnect_tests::process::{Finished, run};
use nowconnect_tests::proxy::reset;
use nowconnect_tests::slapd::{ADMIN, BASE, PASSWORD, PEOPLE, SEARCH_ALL, Slapd};
use nowconnect_tests::wait::{LONG_PATIENCE, bounded};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

struct Scene {
    slapd: Slapd,
    cluster: Cluster,
}

impl Scene {
    async fn start(wire: Wire, tls: bool) -> Self {
        let slapd = Slapd::start().await;
        let plan = Plan { wire, tls, ..Plan::default() };
        let cluster = plan.connector("ldap", slapd.addr()).start().await;
        Self { slapd, cluster }
    }

    /// Both ways to the directory: local at hub A, across the mesh at hub B.
    fn ways(&self) -> [SocketAddr; 2] {
        [0, 1].map(|ix| self.cluster.listener(ix, "ldap"))
    }

    async fn search(&self, addr: SocketAddr, args: &[&str]) -> Finished {
        let mut command = self.slapd.tool("ldapsearch", addr);
        command.args(["-LLL", "-o", "ldif-wrap=no", "-b", BASE]).args(args);
        succeed(command).await
    }
}

async fn succeed(command: Command) -> Finished {
    let finished = bounded(&format!("{command:?}"), LONG_PATIENCE, run(command)).await;
    assert!(finished.status.success(), "{}\n{}", finished.status, finished.stderr);
    finished
}

async fn searches_equal_direct_ones(wire: Wire, tls: bool) {
    let mut scene = Scene::start(wire, tls).await;
    let direct = scene.slapd.addr();
    let everything: &[&str] = &["-s", "sub", "(objectClass=*)"];
    let paged: &[&str] = &["-E", "pr=97/noprompt", "(objectClass=inetOrgPerson)"];
    let one: &[&str] = &["(uid=u01234)"];
    let none: &[&str] = &["(uid=nobody)"];
    for args in [everything, paged, one, none] {
        let want = scene.search(direct, args).await.stdout;
        for way in scene.ways() {
            let got = scene.search(way, args).await.stdout;
            assert!(got == want, "{args:?}: {} bytes through the hub, {} direct", got.len(), want.len());
        }
    }
    let all = scene.search(scene.ways()[1], everything).await.stdout;
    assert_eq!(all.matches("dn: ").count(), PEOPLE + 2);

    // StartTLS ends in the directory, not in the hub: the certificate is slapd's.
    let want = scene.search(direct, &["-ZZ", "(objectClass=*)"]).await.stdout;
    for way in scene.ways() {
        assert!(scene.search(way, &["-ZZ", "(objectClass=*)"]).await.stdout == want);
    }
    scene.cluster.assert_alive();
}

async fn entries_can_be_changed(wire: Wire, tls: bool) {
    let mut scene = Scene::start(wire, tls).await;
    for (n, way) in scene.ways().into_iter().enumerate() {
        let dn = format!("uid=new{n},ou=people,{BASE}");
        let ldif = scene.slapd.dir().join(format!("new{n}.ldif"));
        std::fs::write(&ldif, format!("dn: {dn}\nobjectClass: inetOrgPerson\nuid: new{n}\ncn: New\nsn: One\n"))
            .unwrap();
        let mut add = scene.slapd.admin_tool("ldapadd", way);
        add.arg("-f").arg(&ldif);
        succeed(add).await;

        std::fs::write(&ldif, format!("dn: {dn}\nchangetype: modify\nreplace: cn\ncn: Newer\n")).unwrap();
        let mut modify = scene.slapd.admin_tool("ldapmodify", way);
        modify.arg("-f").arg(&ldif);
        succeed(modify).await;
        let filter = format!("(uid=new{n})");
        let seen = scene.search(scene.slapd.addr(), &[&filter, "cn"]).await.stdout;
        assert!(seen.contains("cn: Newer"), "{seen}");

        let mut delete = scene.slapd.admin_tool("ldapdelete", way);
        delete.arg(&dn);
        succeed(delete).await;
        assert_eq!(scene.search(scene.slapd.addr(), &[&filter]).await.stdout, "");

        let mut wrong = scene.slapd.tool("ldapwhoami", way);
        wrong.args(["-D", ADMIN, "-w", "wrong"]);
        assert_eq!(run(wrong).await.status.code(), Some(49), "a refused bind arrives as LDAP's own answer");
    }
    second_library(&scene).await;
    scene.cluster.assert_alive();
}

/// The same jobs with a client library that shares no code with OpenLDAP's.
async fn second_library(scene: &Scene) {
    for (n, way) in scene.ways().into_iter().enumerate() {
        let (conn, mut ldap) = LdapConnAsync::new(&format!("ldap://{way}")).await.unwrap();
        let driving = tokio::spawn(conn.drive());
        ldap.simple_bind(ADMIN, PASSWORD).await.unwrap().success().unwrap();
        let (found, _) = ldap.search(BASE, Scope::Subtree, "(uid=*)", vec!["uid"]).await.unwrap().success().unwrap();
        assert_eq!(found.len(), PEOPLE);

        let adapters: Vec<Box<dyn Adapter<'_, _, _>>> =
            vec![Box::new(EntriesOnly::new()), Box::new(PagedResults::new(113))];
        let mut paged =
            ldap.streaming_search_with(adapters, BASE, Scope::Subtree, "(uid=*)", vec!["cn"]).await.unwrap();
        let mut entries = 0;
        while let Some(entry) = paged.next().await.unwrap() {
            assert!(SearchEntry::construct(entry).attrs.contains_key("cn"));
            entries += 1;
        }
        paged.finish().await.success().unwrap();
        assert_eq!(entries, PEOPLE);

        let dn = format!("uid=lib{n},ou=people,{BASE}");
        let set = |value: &str| [value.to_owned()].into_iter().collect::<std::collections::HashSet<_>>();
        let attributes = vec![
            ("objectClass".to_owned(), set("inetOrgPerson")),
            ("cn".to_owned(), set("Library")),
            ("sn".to_owned(), set("Client")),
        ];
        ldap.add(&dn, attributes).await.unwrap().success().unwrap();
        ldap.modify(&dn, vec![Mod::Replace("cn".to_owned(), set("Changed"))]).await.unwrap().success().unwrap();
        ldap.delete(&dn).await.unwrap().success().unwrap();
        ldap.unbind().await.unwrap();
        driving.await.unwrap().unwrap();
    }
}

async fn a_crowd_is_served_though_some_leave(wire: Wire, tls: bool) {
    let mut scene = Scene::start(wire, tls).await;
    let want = scene.search(scene.slapd.addr(), &["(objectClass=*)"]).await.stdout;
    let ways = scene.ways();

    let mut crowd = tokio::task::JoinSet::new();
    for n in 0..50 {
        let mut command = scene.slapd.tool("ldapsearch", ways[n % 2]);
        command.args(["-LLL", "-o", "ldif-wrap=no", "-b", BASE, "(objectClass=*)"]);
        crowd.spawn(async move { succeed(command).await.stdout });
    }
    // Meanwhile others leave in the middle of a result, in both manners.
    for n in 0..10 {
        let mut socket = TcpStream::connect(ways[n % 2]).await.unwrap();
        socket.write_all(SEARCH_ALL).await.unwrap();
        let mut part = vec![0; 20_000];
        bounded("the first part of a result", LONG_PATIENCE, socket.read_exact(&mut part)).await.unwrap();
        if n % 4 < 2 {
            reset(&socket);
        }
        drop(socket);
    }
    while let Some(got) = crowd.join_next().await {
        assert!(got.unwrap() == want, "a result differs from the direct one");
    }
    scene.cluster.assert_alive();
}

macro_rules! matrix {
    ($($name:ident: $wire:expr, $tls:expr;)*) => {$(
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn searches_equal_direct_ones() {
                super::searches_equal_direct_ones($wire, $tls).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn entries_can_be_changed() {
                super::entries_can_be_changed($wire, $tls).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_crowd_is_served_though_some_leave() {
                super::a_crowd_is_served_though_some_leave($wire, $tls).await;
            }
        }
    )*};
}

matrix! {
    v2_plain: Wire::V2, false;
    v1_plain: Wire::V1, false;
    v2_mtls: Wire::V2, true;
    v1_mtls: Wire::V1, true;
}

/// The load generator of `docs/operations.md`: over each way every conversation
/// comes to its end, and what does not hold is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_of_short_conversations_is_judged() {
    let mut scene = Scene::start(Wire::V2, false).await;
    let seconds = std::env::var("NC_TEST_LOAD_SECS").unwrap_or_else(|_| "1".to_owned());
    let load = |addresses: &[SocketAddr]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ldap_load"));
        command.args(["--clients", "4", "--seconds", &seconds, "--p99", "10000", "--errors", "0"]);
        command.args(["--entry", BASE]).args(addresses.iter().map(ToString::to_string));
        command
    };
    let [a, b] = scene.ways();
    let held = succeed(load(&[scene.slapd.addr(), a, b])).await.stdout;
    println!("{held}");
    assert_eq!(held.matches("| held |").count(), 3, "{held}");
    // Nobody listens there any more.
    let port = Port::reserve();
    let closed = port.addr;
    let refused = bounded("a load on a closed port", LONG_PATIENCE, run(load(&[a, closed]))).await;
    assert_eq!(refused.status.code(), Some(1), "{}", refused.stdout);
    assert_eq!((refused.stdout.matches("| held |").count(), refused.stdout.matches("NOT HELD").count()), (1, 1));
    scene.cluster.assert_alive();
}

//! `listeners[].allow`: a client from elsewhere is reset before a byte of it is
//! read, and nothing is opened for it; a reload changes who may come.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use nowconnect_tests::actors::{Pinger, Transfer};
use nowconnect_tests::cluster::Plan;
use nowconnect_tests::process::{Signal, nowconnect, run};
use nowconnect_tests::target::Target;
use nowconnect_tests::wait::PATIENCE;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_clients_from_the_ranges_are_served() {
    let target = Target::start().await;
    let mut cluster = Plan { hubs: 1, ..Plan::default() }.connector("t", target.addr).start().await;
    let addr = cluster.listener(0, "t");
    let mut before = Pinger::open(addr, 1).await.unwrap();
    let file = cluster.hub_file(0);
    let open = fs::read_to_string(&file).unwrap();
    let ranges = |list: &str| open.replace("connector: t,", &format!("connector: t, allow: [{list}],"));

    fs::write(&file, ranges("192.0.2.0/24, '2001:db8::/32'")).unwrap();
    cluster.hubs[0].running().signal(Signal::HUP);
    cluster.wait_metric(0, "nowconnect_config_reloads_total", &[("result", "applied")], 1.0).await;
    let opens = async || {
        let metrics = cluster.metrics(0).await;
        ["nowconnect_open_seconds_count", "nowconnect_open_failures_total"]
            .map(|name| metrics.sum(name, &[]).unwrap_or_default())
    };
    let asked = opens().await;
    assert_eq!(asked[0], 1.0);
    // The reset may come before the client has looked at its new socket.
    let end = match TcpStream::connect(addr).await {
        Ok(mut refused) => refused.read(&mut [0]).await,
        Err(e) => Err(e),
    };
    assert!(end.is_err(), "reset, not a clean end: {end:?}");
    cluster.hubs[0].running().wait_line("client_refused", PATIENCE).await;
    assert_eq!(opens().await, asked, "nothing is opened for it");
    before.ping(10_000).await.unwrap();

    fs::write(&file, ranges("192.0.2.0/24, 127.0.0.0/8")).unwrap();
    let mut command = nowconnect(["reload", "--timeout", "60s", "--socket"]);
    command.arg(cluster.dir().join("hub-a.sock"));
    let done = run(command).await;
    assert_eq!(done.stdout.trim(), "applied", "{}", done.stderr);
    assert_eq!(Transfer::Echo.run(addr, 2, 10_000).await, Ok(()));
    cluster.assert_alive();
}

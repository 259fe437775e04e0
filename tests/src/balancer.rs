//! HAProxy in front of the client ports of all hubs, from the very section of
//! `deploy/ingress/haproxy.cfg`: each hub is asked `/readyz/LISTENER`. Only its
//! addresses and its pace are the test's.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use tokio::net::TcpStream;

use crate::cluster::{Cluster, hub_name};
use crate::ports::Port;
use crate::process::{Process, installed};
use crate::wait::{PATIENCE, eventually};

const FILE: &str = include_str!("../../deploy/ingress/haproxy.cfg");
/// How often a hub is asked: every second in the file.
const EVERY: &str = "200ms";

/// A running HAProxy.
pub struct Balancer {
    /// The process.
    pub process: Process,
    port: Port,
}

impl Balancer {
    /// In front of the listeners of `connector`.
    ///
    /// # Panics
    /// When HAProxy is missing or does not start.
    pub async fn start(cluster: &Cluster, connector: &str) -> Self {
        let port = Port::reserve();
        let (head, rest) = FILE.split_once("# Agents and hubs, by host.").unwrap();
        let (_, clients) = rest.split_once("# Client ports:").unwrap();
        let (section, servers) = clients.split_once("    server hub-a ").unwrap();
        let options = servers.lines().next().unwrap().split_once(" inter 1s").unwrap().1;
        let mut text = format!("{head}# {section}");
        for (from, to) in [
            ("maxconn 40000", "maxconn 1000".to_owned()),
            ("    ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets\n", String::new()),
            ("bind :389", format!("bind {}", port.addr)),
            ("/readyz/l1", format!("/readyz/{connector}")),
        ] {
            assert!(text.contains(from), "{from} is not in the file any more");
            text = text.replace(from, &to);
        }
        for ix in 0..cluster.hubs.len() {
            let (at, asked) = (cluster.listener(ix, connector), cluster.hubs[ix].http().port());
            let _ = writeln!(text, "    server {} {at} check port {asked} inter {EVERY}{options}", hub_name(ix));
        }
        let file = cluster.dir().join("balancer.cfg");
        fs::write(&file, text).unwrap();
        let mut command = Command::new(installed("haproxy", "haproxy"));
        command.arg("-db").arg("-f").arg(file);
        let process = Process::spawn("haproxy", command);
        eventually("the balancer listens", PATIENCE, || async {
            assert!(process.runs(), "it ended");
            TcpStream::connect(port.addr).await.ok()
        })
        .await;
        Self { process, port }
    }

    /// Where clients connect.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.port.addr
    }
}

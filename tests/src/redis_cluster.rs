//! A real Redis Cluster: masters, with a replica each on demand, put together by
//! hand so that every port comes from the OS.

use std::net::SocketAddr;
use std::path::Path;

use crate::certs::Files;
use crate::ports::Port;
use crate::redis::Redis;
use crate::wait::{LONG_PATIENCE, eventually};

/// Slots of a cluster.
const SLOTS: usize = 16_384;
/// How long a node may be silent before the others think it dead.
const NODE_TIMEOUT_MS: &str = "1500";

/// Three masters that share the slots, and their replicas.
pub struct RedisCluster {
    /// The masters, in order of their slots, then their replicas in the same
    /// order.
    pub nodes: Vec<Redis>,
    /// Their names among each other.
    pub ids: Vec<String>,
    buses: Vec<Port>,
    /// Where they speak TLS, if they do.
    secure: Vec<Port>,
}

/// Number of masters.
pub const MASTERS: usize = 3;

impl RedisCluster {
    /// Starts three masters, and as many replicas if `replicas`, and waits until
    /// each node says that all is well. `args` go to every node.
    ///
    /// # Panics
    /// When they do not get that far.
    pub async fn start(replicas: bool, args: &[&str]) -> Self {
        Self::launch(if replicas { 2 * MASTERS } else { MASTERS }, args, None).await
    }

    /// The same without replicas and with TLS among the nodes; clients with a
    /// certificate of `ca` find them all at [`RedisCluster::tls_url`].
    ///
    /// # Panics
    /// As [`RedisCluster::start`].
    pub async fn start_tls(node: &Files, ca: &Path) -> Self {
        Self::launch(MASTERS, &[], Some((node, ca))).await
    }

    async fn launch(count: usize, args: &[&str], tls: Option<(&Files, &Path)>) -> Self {
        let (mut nodes, mut buses, mut ids, mut secure) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let bus = Port::reserve();
            let number = bus.number().to_string();
            let mut all = vec!["--cluster-enabled", "yes", "--cluster-port", &number];
            all.extend(["--cluster-node-timeout", NODE_TIMEOUT_MS, "--cluster-replica-validity-factor", "0"]);
            all.extend(args);
            let with_tls = tls.map(|(files, ca)| {
                let path = |p: &Path| p.display().to_string();
                let port = Port::reserve();
                let number = port.number().to_string();
                secure.push(port);
                [number, path(&files.cert), path(&files.key), path(ca)]
            });
            if let Some([port, cert, key, ca]) = &with_tls {
                all.extend(["--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key]);
                all.extend(["--tls-ca-cert-file", ca, "--tls-auth-clients", "yes"]);
                all.extend(["--tls-cluster", "yes", "--tls-replication", "yes"]);
            }
            let node = Redis::start_with(&all).await;
            ids.push(bulk(&node.call("CLUSTER MYID").await.unwrap()));
            nodes.push(node);
            buses.push(bus);
        }
        let cluster = Self { nodes, ids, buses, secure };
        let meet = cluster.secure.first().map_or(cluster.nodes[0].addr(), |port| port.addr);
        let bus = cluster.buses[0].number();
        for (ix, node) in cluster.nodes.iter().enumerate() {
            if ix < MASTERS {
                let (first, last) = cluster.range(ix);
                must(node, &format!("CLUSTER ADDSLOTSRANGE {first} {last}")).await;
                // Nodes with one epoch each need not agree on who keeps it first.
                must(node, &format!("CLUSTER SET-CONFIG-EPOCH {}", ix + 1)).await;
            }
            if ix > 0 {
                must(node, &format!("CLUSTER MEET 127.0.0.1 {} {bus}", meet.port())).await;
            }
        }
        for (ix, node) in cluster.nodes.iter().enumerate().skip(MASTERS) {
            let master = &cluster.ids[ix - MASTERS];
            eventually("a replica knows its master", LONG_PATIENCE, || async {
                node.call(&format!("CLUSTER REPLICATE {master}")).await.ok().filter(|a| a.starts_with("+OK"))
            })
            .await;
        }
        cluster.wait_well().await;
        cluster
    }

    /// Waits until every node that runs sees the others and all slots served.
    ///
    /// # Panics
    /// When one does not.
    pub async fn wait_well(&self) {
        for node in &self.nodes {
            if !node.process.runs() {
                continue;
            }
            eventually("a node sees its cluster well", LONG_PATIENCE, || async {
                let info = node.call("CLUSTER INFO").await.ok()?;
                let all = format!("cluster_known_nodes:{}", self.nodes.len());
                (info.contains("cluster_state:ok") && info.contains(&all)).then_some(())
            })
            .await;
            eventually("a replica follows its master", LONG_PATIENCE, || async {
                let info = node.call("INFO replication").await.ok()?;
                (info.contains("role:master") || info.contains("master_link_status:up")).then_some(())
            })
            .await;
        }
    }

    /// The URL of all nodes.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|n| n.addr().to_string()).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }

    /// The URL of one node only, with TLS.
    #[must_use]
    pub fn tls_url(&self) -> String {
        format!("rediss-cluster://{}", self.secure[0].addr)
    }

    /// Where node `ix` listens.
    #[must_use]
    pub fn addr(&self, ix: usize) -> SocketAddr {
        self.nodes[ix].addr()
    }

    /// The slots that master `ix` starts with.
    #[must_use]
    pub const fn range(&self, ix: usize) -> (usize, usize) {
        (SLOTS * ix / MASTERS, SLOTS * (ix + 1) / MASTERS - 1)
    }

    /// The slot of `key`.
    ///
    /// # Panics
    /// When the first node does not answer.
    pub async fn slot(&self, key: &str) -> usize {
        let answer = self.nodes[0].call(&format!("CLUSTER KEYSLOT {key}")).await.unwrap();
        answer.trim().trim_start_matches(':').parse().unwrap()
    }

    /// The master that `key` starts at.
    ///
    /// # Panics
    /// As [`RedisCluster::slot`].
    pub async fn home(&self, key: &str) -> usize {
        let slot = self.slot(key).await;
        (0..MASTERS).find(|ix| (self.range(*ix).0..=self.range(*ix).1).contains(&slot)).unwrap()
    }
}

async fn must(node: &Redis, command: &str) {
    let answer = node.call(command).await.unwrap();
    assert!(answer.starts_with("+OK"), "{command}: {answer}");
}

/// The text of a bulk string.
fn bulk(answer: &str) -> String {
    answer.lines().nth(1).unwrap_or_default().to_owned()
}

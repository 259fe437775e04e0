//! Further agents beside the cluster's own one: a process with an id, a token
//! and hubs of its own.

use std::fmt::Write as _;
use std::fs;

use crate::cluster::{Cluster, SHORT_RECONNECT};
use crate::process::{Process, nowconnect};
use crate::token;

impl Cluster {
    /// Starts the agent `id`, attached to `hubs` only, with these connectors
    /// and their targets.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn further_agent(&self, id: &str, hubs: &[usize], connectors: &[(&str, String)]) -> Process {
        self.further_agent_with(id, hubs, connectors, "")
    }

    /// The same with keys added to each connector, each with a comma before it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn further_agent_with(&self, id: &str, hubs: &[usize], connectors: &[(&str, String)], extra: &str) -> Process {
        let names: Vec<&str> = connectors.iter().map(|(name, _)| *name).collect();
        let file = |end: &str| self.dir().join(format!("{id}{end}"));
        fs::write(file(".token"), token::good(id, &names)).unwrap();
        let (scheme, host) = if self.plan.tls { ("wss", "localhost") } else { ("ws", "127.0.0.1") };
        let urls: Vec<String> =
            hubs.iter().map(|&ix| format!("'{scheme}://{host}:{}/tunnel'", self.hubs[ix].http().port())).collect();
        let mut yaml = format!(
            "agent_id: {id}\nhubs: [{}]\nparallel: {}\nwire: {}\ntoken_file: {}\nadmin: {{ socket: {} }}\n\
             {SHORT_RECONNECT}",
            urls.join(", "),
            hubs.len(),
            self.plan.wire.name(),
            file(".token").display(),
            file(".sock").display(),
        );
        if self.plan.tls {
            let _ = writeln!(yaml, "tls: {{ ca_bundle: {} }}", self.dir().join("ca.pem").display());
        } else {
            yaml.push_str("insecure_allow_plaintext: true\n");
        }
        yaml.push_str("connectors:\n");
        for (name, target) in connectors {
            let _ = writeln!(yaml, "  - {{ name: {name}, target: '{target}'{extra} }}");
        }
        fs::write(file(".yaml"), yaml).unwrap();
        let mut command = nowconnect(["agent", "--config"]);
        command.arg(file(".yaml"));
        Process::spawn(id, command)
    }
}

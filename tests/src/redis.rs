//! A real redis-server in a directory of its own, and Sentinels that watch one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::ports::Port;
use crate::process::{Process, Signal, installed};
use crate::wait::{PATIENCE, eventually};

/// A running server.
pub struct Redis {
    /// The process, for signals.
    pub process: Process,
    port: Port,
    args: Vec<String>,
    dir: TempDir,
}

impl Redis {
    /// Starts an empty server without persistence and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with further arguments.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn start_with(args: &[&str]) -> Self {
        let dir = TempDir::with_prefix("nowconnect-redis-").unwrap();
        let port = Port::reserve();
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        let process = spawn(&port, dir.path(), &args);
        let redis = Self { process, port, args, dir };
        redis.wait_answer().await;
        redis
    }

    /// Kills it and starts it again on its port: empty, for nothing was saved.
    ///
    /// # Panics
    /// When it does not come back.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = spawn(&self.port, self.dir.path(), &self.args);
        self.wait_answer().await;
    }

    async fn wait_answer(&self) {
        eventually("redis-server answers PING", PATIENCE, || async { self.call("PING").await.ok() }).await;
    }

    /// Stops its clock, as it seems to everybody else, or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        self.process.signal(if frozen { Signal::STOP } else { Signal::CONT });
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.port.addr
    }

    /// The URL of its database 0.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}/0", self.port.addr)
    }

    /// Sends one inline command and returns the first bytes of the answer.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn call(&self, command: &str) -> std::io::Result<String> {
        call(self.port.addr, command).await
    }
}

fn spawn(port: &Port, dir: &Path, args: &[String]) -> Process {
    let mut command = Command::new(program());
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]);
    command.arg("--port").arg(port.number().to_string()).arg("--dir").arg(dir).args(args);
    Process::spawn("redis-server", command)
}

async fn call(addr: SocketAddr, command: &str) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(addr).await?;
    socket.write_all(format!("{command}\r\n").as_bytes()).await?;
    let mut answer = vec![0; 64 * 1024];
    let n = socket.read(&mut answer).await?;
    if n == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
}

/// Three Sentinels that watch one master; two of them agree on a failover.
pub struct Sentinels {
    /// The processes.
    pub processes: Vec<Process>,
    ports: Vec<Port>,
    _dir: TempDir,
}

/// The name Sentinels know their master by.
pub const MASTER: &str = "mymaster";

impl Sentinels {
    /// Starts them and waits until each knows the others and the replica.
    ///
    /// # Panics
    /// When they do not get that far.
    pub async fn watch(master: &Redis) -> Self {
        let dir = TempDir::with_prefix("nowconnect-sentinel-").unwrap();
        let (mut processes, mut ports) = (Vec::new(), Vec::new());
        for n in 0..3 {
            let port = Port::reserve();
            let file = dir.path().join(format!("{n}.conf"));
            let text = format!(
                "port {port}\nbind 127.0.0.1\ndir {dir}\nsentinel monitor {MASTER} 127.0.0.1 {master} 2\n\
                 sentinel down-after-milliseconds {MASTER} 1500\nsentinel failover-timeout {MASTER} 4000\n",
                port = port.number(),
                dir = dir.path().display(),
                master = master.addr().port(),
            );
            std::fs::write(&file, text).unwrap();
            let mut command = Command::new(program());
            command.arg(&file).arg("--sentinel");
            processes.push(Process::spawn("redis-sentinel", command));
            ports.push(port);
        }
        let sentinels = Self { processes, ports, _dir: dir };
        for port in &sentinels.ports {
            eventually("a Sentinel knows the others and the replica", PATIENCE, || async {
                let known = call(port.addr, &format!("SENTINEL MASTER {MASTER}")).await.ok()?;
                let field = |name: &str, value: &str| {
                    let mut lines = known.lines().skip_while(|l| *l != name).skip(2);
                    lines.next() == Some(value)
                };
                (field("num-slaves", "1") && field("num-other-sentinels", "2")).then_some(())
            })
            .await;
        }
        sentinels
    }

    /// The URL by which a hub finds the master.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.ports.iter().map(|p| p.addr.to_string()).collect();
        format!("redis-sentinel://{}/{MASTER}", hosts.join(","))
    }

    /// How long they bear the master's silence before they act, from now on.
    ///
    /// # Panics
    /// When one does not take it.
    pub async fn act_after(&self, silence: Duration) {
        for port in &self.ports {
            let set = format!("SENTINEL SET {MASTER} down-after-milliseconds {}", silence.as_millis());
            assert_eq!(call(port.addr, &set).await.unwrap().trim(), "+OK");
        }
    }

    /// Where they say the master is.
    ///
    /// # Errors
    /// When the first one does not answer.
    pub async fn master(&self) -> std::io::Result<String> {
        call(self.ports[0].addr, &format!("SENTINEL GET-MASTER-ADDR-BY-NAME {MASTER}")).await
    }
}

fn program() -> PathBuf {
    installed("redis-server", "redis-server")
}

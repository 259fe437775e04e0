//! A real redis-server in a directory of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::ports::Port;
use crate::process::{Process, installed};
use crate::wait::{PATIENCE, eventually};

/// A running server.
pub struct Redis {
    /// The process, for signals.
    pub process: Process,
    port: Port,
    _dir: TempDir,
}

impl Redis {
    /// Starts an empty server without persistence and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start() -> Self {
        let dir = TempDir::with_prefix("nowconnect-redis-").unwrap();
        let port = Port::reserve();
        let mut command = Command::new(program());
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]);
        command.arg("--port").arg(port.number().to_string()).arg("--dir").arg(dir.path());
        let process = Process::spawn("redis-server", command);
        let redis = Self { process, port, _dir: dir };
        eventually("redis-server answers PING", PATIENCE, || async { redis.call("PING").await.ok() }).await;
        redis
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
        let mut socket = TcpStream::connect(self.port.addr).await?;
        socket.write_all(format!("{command}\r\n").as_bytes()).await?;
        let mut answer = vec![0; 64 * 1024];
        let n = socket.read(&mut answer).await?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
    }
}

fn program() -> PathBuf {
    installed("redis-server", "redis-server")
}

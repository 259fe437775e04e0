//! A real redis-server for the contract: started, stopped and asked from
//! blocking code.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use nowconnect::registry::{RedisRegistry, RedisTimeouts};
use nowconnect_tests::ports::Port;

use crate::name;

pub(crate) struct Server {
    child: Child,
    port: Port,
    args: Vec<String>,
    dir: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start(args: &[&str]) -> Self {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        let (port, dir) = (Port::reserve(), tempfile::tempdir().unwrap());
        let child = Self::spawn(&port, &args, &dir);
        let mut server = Self { child, port, args, dir };
        assert!(server.answers(), "redis-server ended");
        server
    }

    fn spawn(port: &Port, args: &[String], dir: &tempfile::TempDir) -> Child {
        Command::new("redis-server")
            .args(["--port", &port.number().to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(args)
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("expected redis-server in PATH: install the Debian package redis-server")
    }

    /// Waits until it answers PING with anything; false if it ended instead.
    fn answers(&mut self) -> bool {
        loop {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            let mut reply = [0; 1];
            let asked = TcpStream::connect(self.port.addr)
                .and_then(|mut s| s.write_all(b"PING\r\n").and_then(|()| s.read_exact(&mut reply)));
            if asked.is_ok() {
                return true;
            }
            std::thread::yield_now();
        }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.child = Self::spawn(&self.port, &self.args, &self.dir);
        assert!(self.answers(), "redis-server did not come back on its port");
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port())
    }

    pub(crate) async fn registry(&self, namespace: &str, timeouts: RedisTimeouts) -> RedisRegistry {
        RedisRegistry::connect(&self.url(), name(namespace), timeouts).await.unwrap()
    }

    pub(crate) fn raw(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

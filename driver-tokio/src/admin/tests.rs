//! The endpoint as an operator's tools meet it: requests, tokens, sockets left behind.

use super::*;
use std::cell::Cell;
use std::os::unix::net::UnixStream as StdUnixStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

struct Shown(Cell<u32>);

impl AdminApp for Shown {
    fn readyz(&self, strict: bool) -> (u16, String) {
        (if strict { 503 } else { 200 }, "{}".to_owned())
    }
    fn readyz_listener(&self, name: &str) -> (u16, String) {
        (404, name.to_owned())
    }
    fn metrics(&self) -> Option<(&'static str, Vec<u8>)> {
        Some(("text/plain", b"a_total 1\n".to_vec()))
    }
    fn status(&self) -> String {
        self.0.set(self.0.get() + 1);
        format!("{{\"asked\":{}}}", self.0.get())
    }
    fn act(&self, action: Action) -> Acting {
        Box::pin(async move { (200, format!("{action:?}")) })
    }
}

fn app() -> Rc<dyn AdminApp> {
    Rc::new(Shown(Cell::new(0)))
}

async fn talk(mut io: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> (u16, String) {
    io.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\n{headers}\r\n")
}

#[tokio::test(flavor = "local")]
async fn the_socket_is_private_answers_and_goes_with_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let setup = AdminSetup { socket: Some(path.clone()), ..AdminSetup::default() };
    let serving = bind(&setup).unwrap().serve(&app()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    for (line, status, body) in [
        ("GET /healthz", 200, "ok\n"),
        ("GET /readyz", 200, "{}"),
        ("GET /readyz?strict", 503, "{}"),
        ("GET /readyz/l1", 404, "l1"),
        ("GET /metrics", 200, "a_total 1\n"),
        ("GET /status", 200, "{\"asked\":1}"),
        ("POST /status", 405, "expected GET, HEAD\n"),
        ("POST /reload", 200, "Reload"),
        ("GET /reload", 405, "expected POST\n"),
        ("POST /drain", 200, "Drain"),
        ("POST /undrain", 200, "Undrain"),
        ("GET /drain", 405, "expected POST\n"),
    ] {
        let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        let answer = talk(stream, &format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert_eq!(answer, (status, body.to_owned()), "{line}");
    }
    let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    assert_eq!(talk(stream, &get("/status", "Host: localhost\r\nOrigin: http://evil\r\n")).await.0, 403);
    drop(serving);
    assert!(!path.exists());
}

#[tokio::test(flavor = "local")]
async fn a_stale_socket_is_replaced_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let setup = AdminSetup { socket: Some(path.clone()), ..AdminSetup::default() };
    // Bound and never removed: what a killed process leaves.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let first = bind(&setup).unwrap().serve(&app()).unwrap();
    assert!(StdUnixStream::connect(&path).is_ok());

    let second = bind(&setup).unwrap_err().to_string();
    assert!(second.contains("admin.socket") && second.contains("another process answers"), "{second}");
    assert!(path.exists(), "the living socket is left alone");
    drop(first);

    std::fs::write(&path, "precious").unwrap();
    let refused = bind(&setup).unwrap_err().to_string();
    assert!(refused.contains("no socket"), "{refused}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test(flavor = "local")]
async fn the_file_of_a_successor_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let setup = AdminSetup { socket: Some(path.clone()), ..AdminSetup::default() };
    let first = bind(&setup).unwrap().serve(&app()).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _second = bind(&setup).unwrap().serve(&app()).unwrap();
    drop(first);
    assert!(StdUnixStream::connect(&path).is_ok());
}

#[tokio::test(flavor = "local")]
async fn tcp_asks_for_the_token_or_for_a_local_name() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "sesame\n").unwrap();
    let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let open = bind(&AdminSetup { bind: any, ..AdminSetup::default() }).unwrap().serve(&app()).unwrap();
    let guarded = AdminSetup { bind: any, token_file: Some(token.clone()), ..AdminSetup::default() };
    let closed = bind(&guarded).unwrap().serve(&app()).unwrap();
    for (serving, headers, status) in [
        (&open, "Host: 127.0.0.1:8766\r\n", 200),
        (&open, "Host: localhost\r\n", 200),
        (&open, "Host: [::1]:1\r\n", 200),
        (&open, "Host: rebound.example.com\r\n", 403),
        (&open, "", 403),
        (&closed, "Host: a\r\n", 401),
        (&closed, "Host: a\r\nAuthorization: Bearer open\r\n", 401),
        (&closed, "Host: a\r\nAuthorization: Bearer sesam\r\n", 401),
        (&closed, "Host: a\r\nAuthorization: Basic sesame\r\n", 401),
        (&closed, "Host: a\r\nAuthorization: Bearer sesame\r\nAuthorization: Bearer sesame\r\n", 401),
        (&closed, "Host: a\r\nAuthorization: bearer sesame\r\n", 200),
    ] {
        let stream = tokio::net::TcpStream::connect(serving.addr.unwrap()).await.unwrap();
        assert_eq!(talk(stream, &get("/status", headers)).await.0, status, "{headers:?}");
    }
    std::fs::write(&token, "").unwrap();
    let stream = tokio::net::TcpStream::connect(closed.addr.unwrap()).await.unwrap();
    assert_eq!(talk(stream, &get("/status", "Host: a\r\nAuthorization: Bearer \r\n")).await.0, 503);
    assert!(matches!(bind(&guarded), Err(RunError::Config(why)) if why.contains("admin.token_file")));
}

#[tokio::test(flavor = "local")]
async fn connections_that_say_nothing_only_wait() {
    let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let serving = bind(&AdminSetup { bind: any, ..AdminSetup::default() }).unwrap().serve(&app()).unwrap();
    let addr = serving.addr.unwrap();
    let mut idle = Vec::new();
    for _ in 0..EXCHANGES_MAX {
        idle.push(tokio::net::TcpStream::connect(addr).await.unwrap());
    }
    let last = tokio::net::TcpStream::connect(addr).await.unwrap();
    let asked = tokio::task::spawn_local(talk(last, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    tokio::task::yield_now().await;
    assert!(!asked.is_finished());
    drop(idle.pop());
    assert_eq!(asked.await.unwrap().0, 200);
}

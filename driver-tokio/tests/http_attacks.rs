//! Hostile peers against a listening hub port (attacks 1 to 14, 60). Each row
//! sends raw bytes, expects a status or a close code, and afterwards a normal
//! agent must still get through.

#![allow(clippy::unwrap_used, reason = "tests")]

mod transport;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use nowconnect::dial::{WsUrl, dial};
use nowconnect::http::{HttpLimits, Refusal, Routes};
use nowconnect::net;
use nowconnect::ws::{PING_BURST, WsEvent};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use transport::{Ca, Echo, next, run, send, serve_on, start, tunnel};
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const AUTH: &str = "Authorization: Bearer good\r\n";
const V2: &str = "Sec-WebSocket-Protocol: nowconnect.tunnel.v2\r\n";
const V1: &str = "Sec-WebSocket-Protocol: nowconnect.tunnel.v1\r\n";
const ASK: &str = "Host: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";

fn get(path: &str, headers: &[&str]) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\n{}\r\n", headers.concat()).into_bytes()
}

/// A valid upgrade, then `frames` at once.
fn upgraded(protocol: &str, frames: &[u8]) -> Vec<u8> {
    let mut bytes = get("/tunnel", &[ASK, KEY, AUTH, protocol]);
    bytes.extend_from_slice(frames);
    bytes
}

/// A masked frame (the key is zero: the payload stays readable here).
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        n @ 0..=125 => out.push(0x80 | n as u8),
        n @ 126..=65_535 => {
            out.push(0xfe);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            out.push(0xff);
            out.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
    out
}

/// Sends `bytes` and reads to the end. A reset after the answer is an end too:
/// the server need not take all we send.
async fn talk(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let Ok(mut tcp) = TcpStream::connect(addr).await else { return Vec::new() };
    let _ = tcp.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tcp.read_to_end(&mut answer).await;
    answer
}

fn status(answer: &[u8]) -> u16 {
    let line = std::str::from_utf8(answer.get(9..12).unwrap_or_default()).unwrap();
    line.parse().unwrap_or(0)
}

fn head_end(answer: &[u8]) -> usize {
    answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4)
}

/// Messages after the upgrade, and the close code.
fn frames(answer: &[u8]) -> (Vec<Message>, Option<u16>) {
    let rest = answer[head_end(answer)..].to_vec();
    let mut ws = WebSocket::from_raw_socket(std::io::Cursor::new(rest), Role::Client, None);
    let mut got = Vec::new();
    while let Ok(message) = ws.read() {
        if let Message::Close(frame) = message {
            return (got, frame.map(|frame| frame.code.into()));
        }
        got.push(message);
    }
    (got, None)
}

async fn works(addr: SocketAddr) {
    let url = WsUrl::parse(&format!("ws://{addr}/tunnel")).unwrap();
    let mut dialed = dial(tunnel(&url)).await.expect("a normal agent gets through");
    send(&mut dialed.conn, "hello").await;
    assert_eq!(next(&mut dialed.conn).await, Ok(WsEvent::Message(Bytes::from_static(b"hello"))));
    dialed.conn.close(1000);
    assert_eq!(next(&mut dialed.conn).await, Ok(WsEvent::Closed { code: Some(1000) }));
    dialed.conn.finish(Duration::from_secs(5)).await;
}

fn last_refusal(app: &Echo) -> Option<Refusal> {
    app.refused.borrow().last().copied()
}

#[test]
fn hostile_requests() {
    let many = (0..65).map(|n| format!("x-{n}: y\r\n")).collect::<String>();
    let long = format!("x: {}\r\n", "y".repeat(20 * 1024));
    let long_path = format!("/{}", "a".repeat(20 * 1024));
    let bad_key = "Sec-WebSocket-Key: short\r\n";
    let no_version = "Host: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    let rows: Vec<(&str, Vec<u8>, u16, Refusal)> = vec![
        ("attack 2: 20 KiB of one header", get("/tunnel", &[ASK, KEY, AUTH, V2, &long]), 431, Refusal::Http),
        ("attack 2: 65 headers and more", get("/tunnel", &[ASK, KEY, AUTH, V2, &many]), 431, Refusal::Http),
        ("attack 2: 20 KiB of path", get(&long_path, &["Host: hub\r\n"]), 431, Refusal::Http),
        ("attack 4: no upgrade", get("/tunnel", &["Host: hub\r\n", AUTH]), 426, Refusal::Upgrade),
        ("attack 4: wrong path", get("/tunnel/", &[ASK, KEY, AUTH, V2]), 404, Refusal::Path),
        ("attack 4: dots in the path", get("/x/../tunnel", &[ASK, KEY, AUTH, V2]), 404, Refusal::Path),
        (
            "attack 4: upgrade to h2c",
            get("/tunnel", &[&ASK.replace("websocket", "h2c"), KEY, AUTH, V2]),
            400,
            Refusal::Upgrade,
        ),
        (
            "attack 4: no Connection: upgrade",
            get("/tunnel", &[&ASK.replace("Connection: Upgrade\r\n", ""), KEY, AUTH, V2]),
            400,
            Refusal::Upgrade,
        ),
        ("attack 4: version 8", get("/tunnel", &[&ASK.replace("13", "8"), KEY, AUTH, V2]), 426, Refusal::Upgrade),
        ("attack 4: no version", get("/tunnel", &[no_version, KEY, AUTH, V2]), 426, Refusal::Upgrade),
        (
            "attack 4: POST",
            b"POST /tunnel HTTP/1.1\r\nHost: hub\r\nContent-Length: 0\r\n\r\n".to_vec(),
            405,
            Refusal::Method,
        ),
        ("attack 4: CONNECT", b"CONNECT 10.0.0.1:22 HTTP/1.1\r\nHost: hub\r\n\r\n".to_vec(), 404, Refusal::Path),
        (
            "attack 4: HTTP/1.0",
            String::from_utf8(get("/tunnel", &[ASK, KEY, AUTH, V2]))
                .unwrap()
                .replace("HTTP/1.1", "HTTP/1.0")
                .into_bytes(),
            400,
            Refusal::Upgrade,
        ),
        (
            "attack 4: garbage",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS to a plain port\r\n\r\n".to_vec(),
            400,
            Refusal::Http,
        ),
        (
            "attack 4: a body with the upgrade",
            get("/tunnel", &[ASK, KEY, AUTH, V2, "Content-Length: 5\r\n"]),
            400,
            Refusal::Upgrade,
        ),
        (
            "attack 4: a chunked body with the upgrade",
            get("/tunnel", &[ASK, KEY, AUTH, V2, "Transfer-Encoding: chunked\r\n"]),
            400,
            Refusal::Upgrade,
        ),
        ("attack 5: no credentials", get("/tunnel", &[ASK, KEY, V2]), 401, Refusal::Denied),
        (
            "attack 5: wrong credentials, and the rest wrong too",
            get("/tunnel", &[no_version, "Authorization: Bearer x\r\n"]),
            401,
            Refusal::Denied,
        ),
        (
            "attack 5: two credentials, good first",
            get("/tunnel", &[ASK, KEY, AUTH, "authorization: Bearer x\r\n", V2]),
            400,
            Refusal::Duplicate,
        ),
        ("attack 5: two keys", get("/tunnel", &[ASK, KEY, KEY, AUTH, V2]), 400, Refusal::Duplicate),
        ("attack 5: no key", get("/tunnel", &[ASK, AUTH, V2]), 400, Refusal::Upgrade),
        ("attack 5: a short key", get("/tunnel", &[ASK, bad_key, AUTH, V2]), 400, Refusal::Upgrade),
        ("attack 5: two hosts", get("/tunnel", &[ASK, "Host: other\r\n", KEY, AUTH, V2]), 400, Refusal::Duplicate),
        (
            "attack 14: a browser",
            get("/tunnel", &[ASK, KEY, AUTH, V2, "Origin: https://evil.example\r\n"]),
            403,
            Refusal::Origin,
        ),
        ("no subprotocol", get("/tunnel", &[ASK, KEY, AUTH]), 400, Refusal::Subprotocol),
        (
            "the other plane's subprotocol",
            get("/tunnel", &[ASK, KEY, AUTH, "Sec-WebSocket-Protocol: nowconnect.mesh.v2\r\n"]),
            400,
            Refusal::Subprotocol,
        ),
        (
            "a subprotocol that only starts like ours",
            get("/tunnel", &[ASK, KEY, AUTH, "Sec-WebSocket-Protocol: nowconnect.tunnel.v22\r\n"]),
            400,
            Refusal::Subprotocol,
        ),
        ("attack 60: metrics on the public port", get("/metrics", &["Host: hub\r\n"]), 404, Refusal::Path),
        ("DELETE on a health page", b"DELETE /healthz HTTP/1.1\r\nHost: hub\r\n\r\n".to_vec(), 405, Refusal::Method),
    ];
    assert!(rows.len() >= 25);
    run(async {
        let (addr, app) = start(Routes::PUBLIC, None, HttpLimits::default());
        for (n, (name, bytes, want, why)) in rows.iter().enumerate() {
            let answer = talk(addr, bytes).await;
            assert_eq!(status(&answer), *want, "{name}: {}", String::from_utf8_lossy(&answer));
            assert_eq!((app.refused.borrow().len(), last_refusal(&app)), (n + 1, Some(*why)), "{name}");
            works(addr).await;
        }
        let answer = talk(addr, &get("/tunnel", &[ASK, KEY, AUTH])).await;
        assert!(String::from_utf8_lossy(&answer).contains("nowconnect.tunnel.v2, nowconnect.tunnel.v1"));
        // An HTTP/2 preface gets no page, just the end.
        let answer = talk(addr, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
        assert_ne!(status(&answer), 101);
        works(addr).await;
    });
}

#[test]
fn hostile_frames() {
    let close = |code: u16, text: &[u8]| frame(0x88, &[&code.to_be_bytes()[..], text].concat());
    let header_only = |first: u8, len: u64| {
        let mut bytes = vec![first, 0xff];
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes
    };
    let pieces = |n: usize| {
        let mut bytes = frame(0x02, b"x");
        (2..n).for_each(|_| bytes.extend(frame(0x00, b"x")));
        bytes.extend(frame(0x80, b"x"));
        bytes
    };
    let empties = |n: usize| {
        let mut bytes = frame(0x02, b"");
        (1..n).for_each(|_| bytes.extend(frame(0x00, b"")));
        bytes
    };
    let halves = |size: usize| [frame(0x02, &vec![0; size]), frame(0x80, &vec![0; size])].concat();
    let pings = |n: u32| (0..n).flat_map(|_| frame(0x89, b"p")).collect::<Vec<u8>>();
    let pongs = (0..=PING_BURST).flat_map(|_| frame(0x8a, b"p")).collect::<Vec<u8>>();
    let unmasked = vec![0x82, 1, b'x'];
    let rows: Vec<(&str, &str, Vec<u8>, u16, &str)> = vec![
        ("attack 6: RSV1", V2, frame(0xc2, b"x"), 1002, "protocol"),
        ("attack 6: RSV2", V2, frame(0xa2, b"x"), 1002, "protocol"),
        ("attack 6: RSV3 on a ping", V2, frame(0x99, b"x"), 1002, "protocol"),
        ("attack 7: unmasked", V2, unmasked, 1002, "protocol"),
        ("attack 8: one byte above 16 KiB before HELLO", V2, frame(0x82, &[0; 16 * 1024 + 1]), 1009, "too_large"),
        ("attack 8: 2^63", V2, header_only(0x82, 1 << 63), 1009, "too_large"),
        ("attack 8: 2^64 - 1", V2, header_only(0x82, u64::MAX), 1009, "too_large"),
        ("attack 8: 64-bit length of a small payload", V2, [header_only(0x82, 1), vec![0]].concat(), 1002, "protocol"),
        ("attack 8: 16-bit length of a small payload", V2, vec![0x82, 0xfe, 0, 1, 0, 0, 0, 0, 0], 1002, "protocol"),
        ("attack 9: 17 fragments", V2, pieces(17), 1009, "fragments"),
        ("attack 9: endless empty continuations", V2, empties(5000), 1009, "fragments"),
        ("attack 9: fragments that add up to more than 16 KiB", V2, halves(8193), 1009, "too_large"),
        ("attack 10: a message inside another", V2, [frame(0x02, b"a"), frame(0x82, b"b")].concat(), 1002, "protocol"),
        ("attack 10: continuation of nothing", V2, frame(0x80, b"a"), 1002, "protocol"),
        ("attack 10: ping above 125 bytes", V2, frame(0x89, &[0; 126]), 1002, "protocol"),
        ("attack 10: fragmented ping", V2, frame(0x09, b"a"), 1002, "protocol"),
        ("attack 10: reserved data opcode", V2, frame(0x83, b"a"), 1002, "protocol"),
        ("attack 10: reserved control opcode", V2, frame(0x8b, b"a"), 1002, "protocol"),
        ("attack 10: close with one byte", V2, frame(0x88, b"a"), 1002, "protocol"),
        ("attack 10: close code 1005", V2, close(1005, b""), 1002, "closed"),
        ("attack 10: close code 999", V2, close(999, b""), 1002, "closed"),
        ("attack 10: close reason not UTF-8", V2, close(1000, b"\xff"), 1007, "utf8"),
        ("attack 11: ping flood", V2, pings(PING_BURST + 5), 1008, "ping_flood"),
        ("attack 11: pong flood", V2, pongs, 1008, "ping_flood"),
        ("attack 12: text where binary is due", V2, frame(0x81, b"{}"), 1003, "wrong_kind"),
        ("attack 12: binary where text is due", V1, frame(0x82, b"{}"), 1003, "wrong_kind"),
        ("attack 12: text not UTF-8", V1, frame(0x81, b"\xc0\x80"), 1007, "utf8"),
        (
            "attack 12: a surrogate over two fragments",
            V1,
            [frame(0x01, b"\xed"), frame(0x80, b"\xa0\x80")].concat(),
            1007,
            "utf8",
        ),
        ("a proper close", V2, close(1001, b"bye"), 1001, "closed"),
    ];
    run(async {
        let (addr, app) = start(Routes::PUBLIC, None, HttpLimits::default());
        for (name, protocol, bytes, code, label) in &rows {
            let answer = talk(addr, &upgraded(protocol, bytes)).await;
            assert_eq!(status(&answer), 101, "{name}");
            assert_eq!(frames(&answer).1, Some(*code), "{name}");
            assert_eq!(app.ended.borrow().last(), Some(label), "{name}");
            works(addr).await;
        }
        assert!(app.refused.borrow().is_empty());
    });
}

#[test]
fn what_the_limits_allow_passes() {
    let mut bytes = frame(0x02, b"0");
    (0..14).for_each(|_| bytes.extend(frame(0x00, b"1")));
    bytes.extend(frame(0x89, b"between"));
    bytes.extend(frame(0x80, b"2"));
    bytes.extend(frame(0x82, &[7; 16 * 1024]));
    bytes.extend(frame(0x82, b""));
    bytes.extend(frame(0x82, b"grow"));
    bytes.extend(frame(0x88, b""));
    run(async {
        let (addr, app) = start(Routes::PUBLIC, None, HttpLimits::default());
        let deflate = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
        let mut request = get("/tunnel", &[ASK, KEY, AUTH, V1, V2, deflate]);
        request.extend_from_slice(&bytes);
        let answer = talk(addr, &request).await;
        let head = String::from_utf8_lossy(&answer[..head_end(&answer)]).to_ascii_lowercase();
        assert!(head.contains("nowconnect.tunnel.v2") && !head.contains("extensions"), "attack 6: {head}");
        let (got, code) = frames(&answer);
        let data: Vec<_> = got.iter().filter(|message| message.is_binary()).map(Message::len).collect();
        assert_eq!((data, code), (vec![16, 16 * 1024, 0, 4], None));
        assert!(got.contains(&Message::Pong(Bytes::from_static(b"between"))));
        assert_eq!(*app.ended.borrow(), ["closed"]);
    });
}

#[test]
fn after_authentication_messages_may_be_larger() {
    run(async {
        let (addr, _) = start(Routes::PUBLIC, None, HttpLimits::default());
        let mut tcp = TcpStream::connect(addr).await.unwrap();
        tcp.write_all(&upgraded(V2, &frame(0x82, b"grow"))).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"grow") {
            assert_ne!(tcp.read_buf(&mut answer).await.unwrap(), 0);
        }
        tcp.write_all(&frame(0x82, &vec![1; 256 * 1024])).await.unwrap();
        // Read the echo first: a failing connection drops what it has not sent.
        let echoed = answer.len() + 10 + 256 * 1024;
        while answer.len() < echoed {
            assert_ne!(tcp.read_buf(&mut answer).await.unwrap(), 0);
        }
        tcp.write_all(&frame(0x82, &vec![1; 256 * 1024 + 1])).await.unwrap();
        tcp.read_to_end(&mut answer).await.unwrap();
        let (got, code) = frames(&answer);
        assert_eq!(got.iter().map(Message::len).collect::<Vec<_>>(), [4, 256 * 1024]);
        assert_eq!(code, Some(1009));
    });
}

#[test]
fn slow_peers_are_closed() {
    run(async {
        // Long enough for the normal agent on a busy machine; the slow ones wait together.
        let soon = Duration::from_secs(1);
        let limits = HttpLimits { head_timeout: soon, tls_timeout: soon, ..HttpLimits::default() };
        let (addr, app) = start(Routes::PUBLIC, None, limits);
        let slow = [&b""[..], b"GET", b"GET /tunnel HTTP/1.1\r\nHost: hub\r\n"].map(|begun| talk(addr, begun));
        let [a, b, c] = slow;
        let answers = tokio::join!(a, b, c);
        for answer in [answers.0, answers.1, answers.2] {
            assert_ne!(status(&answer), 101, "attack 1");
        }
        assert_eq!(*app.refused.borrow(), [Refusal::Timeout; 3]);
        works(addr).await;
        let (addr, app) = start(Routes::PUBLIC, Some(Ca::new("ca").server("hub-a", None)), limits);
        assert!(talk(addr, b"\x16\x03\x01").await.is_empty());
        assert_eq!(last_refusal(&app), Some(Refusal::Timeout));
        talk(addr, b"GET / HTTP/1.1\r\n\r\n").await;
        assert_eq!(last_refusal(&app), Some(Refusal::Tls));
    });
}

#[test]
fn idle_connections_are_capped() {
    run(async {
        let limits = HttpLimits { connections_per_address_max: 3, ..HttpLimits::default() };
        let (addr, app) = start(Routes::PUBLIC, None, limits);
        let mut idle = Vec::new();
        for _ in 0..3 {
            idle.push(TcpStream::connect(addr).await.unwrap());
        }
        assert!(talk(addr, b"").await.is_empty(), "attack 3: a fourth from one address");
        assert_eq!(*app.refused.borrow(), [Refusal::PerAddress]);
        idle.clear();
        // Their ends are noticed in accept order, before the next is served.
        while dial(tunnel(&WsUrl::parse(&format!("ws://{addr}/tunnel")).unwrap())).await.is_err() {}
        works(addr).await;

        let limits = HttpLimits { connections_max: 3, ..HttpLimits::default() };
        let (addr, app) = start(Routes::PUBLIC, None, limits);
        for _ in 0..50 {
            idle.push(TcpStream::connect(addr).await.unwrap());
        }
        works(addr).await;
        assert_eq!(*app.refused.borrow(), [Refusal::Shed; 48], "attack 3: the oldest go");
        assert_eq!(idle[0].read(&mut [0]).await.unwrap_or(0), 0);
    });
}

#[test]
fn connections_beyond_the_rate_wait_and_none_is_refused() {
    run(async {
        // All of them are in the kernel's queue before the first is accepted.
        let listener = net::listen((Ipv4Addr::LOCALHOST, 0).into(), 128).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut tcp = TcpStream::connect(addr).await.unwrap();
            tcp.write_all(&get("/healthz", &["Host: hub\r\n"])).await.unwrap();
            clients.push(tcp);
        }
        let began = Instant::now();
        let all = HttpLimits::default().connections_max;
        let limits =
            HttpLimits { connections_per_second: 2, connections_per_address_max: all, ..HttpLimits::default() };
        let app = serve_on(listener, limits);
        for (n, mut tcp) in clients.into_iter().enumerate() {
            let mut answer = Vec::new();
            tcp.read_to_end(&mut answer).await.unwrap();
            assert_eq!(status(&answer), 200);
            let least = Duration::from_millis([0, 0, 500, 1000][n]);
            assert!(began.elapsed() >= least, "attack 3: answer {n} after {:?}", began.elapsed());
        }
        assert!(!app.throttled.borrow().is_empty());
        assert!(app.throttled.borrow().iter().all(|key| *key == "http.bind"));
        assert!(app.refused.borrow().is_empty());
    });
}

#[test]
fn an_address_that_had_its_share_of_the_rate_waits_and_others_do_not() {
    run(async {
        let limits = HttpLimits { connections_per_second: 16, ..HttpLimits::default() };
        assert_eq!(limits.connections_per_address_max * 4, limits.connections_max, "four a second for each address");
        let listener = net::listen((Ipv4Addr::LOCALHOST, 0).into(), 128).unwrap();
        let addr = listener.local_addr().unwrap();
        let request = get("/healthz", &["Host: hub\r\n"]);
        // One that connects again and again is in the queue before the other one.
        let mut flood = Vec::new();
        for _ in 0..12 {
            let mut tcp = TcpStream::connect(addr).await.unwrap();
            tcp.write_all(&request).await.unwrap();
            flood.push(tcp);
        }
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 0, 9), 0).into()).unwrap();
        let mut other = socket.connect(addr).await.unwrap();
        other.write_all(&request).await.unwrap();
        let began = Instant::now();
        let app = serve_on(listener, limits);
        let mut last = flood.pop().unwrap();
        let answered = |mut tcp: TcpStream| async move {
            let mut answer = Vec::new();
            tcp.read_to_end(&mut answer).await.unwrap();
            status(&answer)
        };
        // Eight of its twelve wait, a quarter of a second apart.
        let mut byte = [0];
        tokio::select! {
            biased;
            code = answered(other) => assert_eq!(code, 200),
            _ = last.read(&mut byte) => panic!("attack 3: the flood came first"),
        }
        assert_eq!(answered(last).await, 200, "nobody is refused");
        assert!(began.elapsed() >= Duration::from_millis(1900), "after {:?}", began.elapsed());
        assert!((1..=8).contains(&app.throttled.borrow().len()), "the other one did not wait");
        assert!(app.refused.borrow().is_empty());
    });
}

#[test]
fn who_is_refused_uses_up_nobodys_turn() {
    run(async {
        let limits = HttpLimits { connections_per_address_max: 1, connections_per_second: 2, ..HttpLimits::default() };
        let (addr, app) = start(Routes::METRICS, None, limits);
        let idle = TcpStream::connect(addr).await.unwrap();
        for _ in 0..20 {
            assert!(talk(addr, b"").await.is_empty());
        }
        assert_eq!(*app.refused.borrow(), [Refusal::PerAddress; 20]);
        assert!(app.throttled.borrow().is_empty());
        drop(idle);
    });
}

#[test]
fn an_upgraded_connection_does_not_count_as_waiting() {
    run(async {
        let limits = HttpLimits { connections_per_address_max: 1, ..HttpLimits::default() };
        let (addr, app) = start(Routes::PUBLIC, None, limits);
        let url = WsUrl::parse(&format!("ws://{addr}/tunnel")).unwrap();
        let mut open = Vec::new();
        for _ in 0..5 {
            let mut dialed = dial(tunnel(&url)).await.unwrap();
            send(&mut dialed.conn, "x").await;
            assert!(next(&mut dialed.conn).await.is_ok());
            open.push(dialed);
        }
        assert_eq!(app.accepted.get(), 5);
    });
}

#[test]
fn pages() {
    run(async {
        let (public, _) = start(Routes::PUBLIC, None, HttpLimits::default());
        let (metrics, _) = start(Routes::METRICS, None, HttpLimits::default());
        let (mesh, _) = start(Routes::MESH, None, HttpLimits::default());
        for (addr, path, want, body) in [
            (public, "/healthz", 200, "ok\n"),
            (public, "/readyz", 200, r#"{"status":"degraded"}"#),
            (public, "/readyz?strict", 503, r#"{"status":"degraded"}"#),
            (public, "/readyz?strict=1", 503, r#"{"status":"degraded"}"#),
            (public, "/readyz/l1", 200, "{}"),
            (public, "/readyz/l2", 404, "{}"),
            (metrics, "/metrics", 200, "up 1\n"),
            (metrics, "/healthz", 200, "ok\n"),
            (metrics, "/tunnel", 404, "no such path\n"),
            (metrics, "/readyz?strict", 503, r#"{"status":"degraded"}"#),
            (metrics, "/readyz/l1", 200, "{}"),
            (metrics, "/mesh", 404, "no such path\n"),
            (public, "/metrics", 404, "no such path\n"),
            (mesh, "/tunnel", 404, "no such path\n"),
            (mesh, "/healthz", 404, "no such path\n"),
            (mesh, "/mesh", 426, "expected a WebSocket upgrade, version 13\n"),
        ] {
            let answer = talk(addr, &get(path, &["Host: hub\r\n"])).await;
            assert_eq!(status(&answer), want, "{path}");
            assert_eq!(&answer[head_end(&answer)..], body.as_bytes(), "{path}");
        }
    });
}

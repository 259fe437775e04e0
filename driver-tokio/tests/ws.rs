//! WebSocket connections end to end: both roles, plain and TLS, against
//! themselves and against tungstenite; dialling a real port.

#![allow(clippy::unwrap_used, reason = "tests")]

mod transport;

use std::future::poll_fn;
use std::io::{Read as _, Write as _};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use nowconnect::dial::{DialError, DialTimeouts, TlsFault, UpgradeFault, WsUrl, dial};
use nowconnect::http::{HttpLimits, Refusal, Routes};
use nowconnect::ws::{Io, WsConn, WsEvent, WsOptions};
use nowconnect_core::principal::{HubGrant, Principal};
use nowconnect_core::rng::{Rng, Seed};
use nowconnect_core::wire::{Codec, Dialect, MESSAGE_MAX_BYTES, Plane};
use socket2::SockRef;
use transport::{Ca, next, run, send, start, tcp_pair, tls_pair, tunnel};
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

const OPTIONS: WsOptions =
    WsOptions { text: false, read_buffer_bytes: 32 * 1024, message_max_bytes: MESSAGE_MAX_BYTES };

fn message(rng: &mut Rng) -> Bytes {
    let len = match rng.below(6) {
        0 => rng.below(3),
        1 => 120 + rng.below(12),
        2 => 500 + rng.below(30),
        3 => 65_530 + rng.below(12),
        4 => 262_144 - rng.below(3),
        _ => rng.below(20_000),
    };
    let salt = rng.next_u64();
    (0..len).map(|k| (k.wrapping_mul(salt | 1) >> 7) as u8).collect::<Vec<_>>().into()
}

/// `body` cut into up to five pieces.
fn pieces(rng: &mut Rng, body: &Bytes) -> Vec<Bytes> {
    let mut rest = body.clone();
    let mut out = Vec::new();
    for _ in 0..rng.below(5) {
        let n = rng.below(rest.len() as u64 + 1) as usize;
        out.push(rest.split_to(n));
    }
    out.push(rest);
    out
}

/// Sends 60 messages and expects the other side's 60, both at once.
async fn exchange(conn: &mut WsConn, mine: u64, theirs: u64, high_water: usize) {
    let mut rng = Seed::from_u64(mine).rng();
    let mut want = Seed::from_u64(theirs).rng();
    let (mut sent, mut got) = (0, 0);
    poll_fn(|cx| {
        loop {
            let mut moved = false;
            while sent < 60 && conn.queued_bytes() < high_water {
                let body = message(&mut rng);
                let cut = pieces(&mut rng.clone(), &body);
                conn.queue(cut, body.len());
                sent += 1;
                moved = true;
            }
            let flushed = conn.poll_flush(cx);
            if let Poll::Ready(flushed) = &flushed {
                assert!(flushed.is_ok());
                moved |= sent < 60;
            }
            while got < 60
                && let Poll::Ready(event) = conn.poll_recv(cx)
            {
                let event = event.unwrap();
                moved = true;
                if event != WsEvent::Partial {
                    assert_eq!(event, WsEvent::Message(message(&mut want)), "message {got}");
                    got += 1;
                }
            }
            if sent == 60 && got == 60 && flushed.is_ready() {
                return Poll::Ready(());
            }
            if !moved {
                return Poll::Pending;
            }
        }
    })
    .await;
}

#[test]
fn random_messages_cross_both_ways_over_tiny_send_buffers() {
    run(async {
        for seed in 0..3 {
            let (a, b) = tcp_pair().await;
            for tcp in [&a, &b] {
                // Not the receive buffer: below a segment the kernel's probe timers set the pace.
                SockRef::from(tcp).set_send_buffer_size(4096).unwrap();
                nowconnect::net::tune_client(tcp).unwrap();
            }
            let mut a = WsConn::new(Io::Plain(a), Role::Client, Bytes::new(), OPTIONS);
            let mut b = WsConn::new(Io::Plain(b), Role::Server, Bytes::new(), OPTIONS);
            let high = 1 << (10 + 4 * seed);
            tokio::join!(exchange(&mut a, seed, seed + 50, high), exchange(&mut b, seed + 50, seed, high));
        }
    });
}

#[test]
fn random_messages_cross_both_ways_over_tls() {
    run(async {
        let (a, b) = tls_pair().await;
        assert_eq!(a.tls_exporter(), b.tls_exporter());
        assert!(a.tls_exporter().is_some());
        let mut a = WsConn::new(a, Role::Client, Bytes::new(), OPTIONS);
        let mut b = WsConn::new(b, Role::Server, Bytes::new(), OPTIONS);
        tokio::join!(exchange(&mut a, 1, 2, 100_000), exchange(&mut b, 2, 1, 100_000));
    });
}

#[test]
fn small_chunks_share_tls_records() {
    run(async {
        let ca = Ca::new("ca");
        let (a, b) = tcp_pair().await;
        // A proxy between the two counts records from the server's side.
        let (c, d) = tcp_pair().await;
        let counting = tokio::task::spawn_local(async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let (mut from_server, mut to_server) = c.into_split();
            let (mut from_client, mut to_client) = b.into_split();
            let up = tokio::task::spawn_local(async move {
                let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
            });
            let mut records = 0;
            let mut head = [0; 5];
            while from_server.read_exact(&mut head).await.is_ok() {
                let mut body = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
                from_server.read_exact(&mut body).await.unwrap();
                records += 1;
                to_client.write_all(&head).await.unwrap();
                to_client.write_all(&body).await.unwrap();
            }
            up.abort();
            records
        });
        let connector = tokio_rustls::TlsConnector::from(ca.client(None));
        let acceptor = tokio_rustls::TlsAcceptor::from(ca.server("hub-a", None).load_full());
        let (a, d) = tokio::join!(connector.connect("hub-a".try_into().unwrap(), a), acceptor.accept(d));
        let mut client = WsConn::new(Io::TlsClient(Box::new(a.unwrap())), Role::Client, Bytes::new(), OPTIONS);
        let mut server = WsConn::new(Io::TlsServer(Box::new(d.unwrap())), Role::Server, Bytes::new(), OPTIONS);
        // 90 frames of 3 chunks each: 270 chunks, 92 KiB.
        for _ in 0..90 {
            server.queue([Bytes::from_static(&[1; 20]), Bytes::from(vec![2; 1000]), Bytes::from_static(b"x")], 1021);
        }
        let reading = async {
            for _ in 0..90 {
                assert!(matches!(next(&mut client).await, Ok(WsEvent::Message(bytes)) if bytes.len() == 1021));
            }
        };
        let (flushed, ()) = tokio::join!(poll_fn(|cx| server.poll_flush(cx)), reading);
        flushed.unwrap();
        drop((client, server));
        let records = counting.await.unwrap();
        assert!(records < 30, "{records} records for 92 KiB and a handshake");
    });
}

/// Our connection against tungstenite in the other role; whatever it is sent,
/// it echoes.
fn against_tungstenite(ours: Role, text: bool) {
    run(async {
        let (a, b) = tcp_pair().await;
        let theirs = if ours == Role::Client { Role::Server } else { Role::Client };
        let b = b.into_std().unwrap();
        b.set_nonblocking(false).unwrap();
        let peer = tokio::task::spawn_blocking(move || {
            let mut ws = WebSocket::from_raw_socket(b, theirs, None);
            loop {
                match ws.read() {
                    Ok(message @ (Message::Binary(_) | Message::Text(_))) => ws.send(message).unwrap(),
                    Ok(Message::Close(_)) => {}
                    Ok(_) => unreachable!("our side sends data and close only"),
                    Err(error) => break error,
                }
            }
        });
        let mut conn = WsConn::new(Io::Plain(a), ours, Bytes::new(), WsOptions { text, ..OPTIONS });
        let mut rng = Seed::from_u64(3).rng();
        for _ in 0..80 {
            let mut body = message(&mut rng);
            if text {
                body = body.iter().map(|byte| byte & 0x7f).collect::<Vec<_>>().into();
            }
            conn.queue(pieces(&mut rng, &body), body.len());
            assert_eq!(next(&mut conn).await, Ok(WsEvent::Message(body)));
        }
        conn.close(1000);
        assert_eq!(next(&mut conn).await, Ok(WsEvent::Closed { code: Some(1000) }));
        conn.finish(Duration::from_secs(5)).await;
        assert!(matches!(peer.await.unwrap(), tungstenite::Error::ConnectionClosed));
    });
}

#[test]
fn agrees_with_tungstenite_as_client() {
    against_tungstenite(Role::Client, false);
    against_tungstenite(Role::Client, true);
}

#[test]
fn agrees_with_tungstenite_as_server() {
    against_tungstenite(Role::Server, false);
    against_tungstenite(Role::Server, true);
}

#[test]
fn pings_are_answered_between_frames_while_the_peer_does_not_read() {
    run(async {
        let (a, b) = tcp_pair().await;
        let mut server = WsConn::new(Io::Plain(a), Role::Server, Bytes::new(), OPTIONS);
        let b = b.into_std().unwrap();
        b.set_nonblocking(false).unwrap();
        let mut client = WebSocket::from_raw_socket(b, Role::Client, None);
        let body = Bytes::from(vec![5; 100_000]);
        for _ in 0..200 {
            server.queue([body.clone()], body.len());
        }
        // Fill the socket: 20 MB are more than loopback buffers hold.
        assert!(poll_fn(|cx| Poll::Ready(server.poll_flush(cx).is_pending())).await);
        let blocked = server.queued_bytes();
        assert!(blocked > 0);
        client.send(Message::Ping(Bytes::from_static(b"one"))).unwrap();
        client.send(Message::Ping(Bytes::from_static(b"two"))).unwrap();
        client.send(Message::Binary(Bytes::from_static(b"still read"))).unwrap();
        let got = poll_fn(|cx| server.poll_recv(cx)).await;
        assert_eq!(got, Ok(WsEvent::Message(Bytes::from_static(b"still read"))), "reading waits for writing");
        let reader = tokio::task::spawn_blocking(move || {
            let mut pong_at = None;
            for n in 0..201 {
                if let Message::Pong(payload) = client.read().unwrap() {
                    assert_eq!(payload, Bytes::from_static(b"two"), "the latest pong is the one that counts");
                    pong_at = Some(n);
                }
            }
            pong_at
        });
        poll_fn(|cx| server.poll_flush(cx)).await.unwrap();
        let pong_at = reader.await.unwrap().expect("a pong");
        let begun = 201 - blocked / body.len();
        assert!(pong_at <= begun, "the pong came as frame {pong_at}, {begun} were begun");
    });
}

#[test]
fn leftover_bytes_of_the_upgrade_come_first() {
    run(async {
        let (a, b) = tcp_pair().await;
        let mut frames = Vec::new();
        let mut writer = WebSocket::from_raw_socket(std::io::Cursor::new(&mut frames), Role::Server, None);
        writer.send(Message::Binary(Bytes::from_static(b"early"))).unwrap();
        writer.send(Message::Binary(Bytes::from_static(b"cut in two"))).unwrap();
        let (early, late) = frames.split_at(10);
        let mut conn = WsConn::new(Io::Plain(a), Role::Client, Bytes::copy_from_slice(early), OPTIONS);
        assert_eq!(next(&mut conn).await, Ok(WsEvent::Message(Bytes::from_static(b"early"))));
        let mut b = b.into_std().unwrap();
        b.write_all(late).unwrap();
        assert_eq!(next(&mut conn).await, Ok(WsEvent::Message(Bytes::from_static(b"cut in two"))));
    });
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a peer that blocks is a thread of its own")]
fn a_message_that_is_still_arriving_is_told_of_and_a_ping_is_not() {
    run(async {
        // Two bytes, and eight for a length above 65,535.
        const HEADER: usize = 10;
        let (a, b) = tcp_pair().await;
        let body = Bytes::from(vec![7; 65_536]);
        let mut frames = Vec::new();
        let mut writer = WebSocket::from_raw_socket(std::io::Cursor::new(&mut frames), Role::Server, None);
        writer.send(Message::Binary(body.clone())).unwrap();
        let mut conn = WsConn::new(Io::Plain(a), Role::Client, Bytes::new(), OPTIONS);
        let mut b = b.into_std().unwrap();
        b.set_nonblocking(false).unwrap();
        let (go, told) = std::sync::mpsc::channel();
        let peer = std::thread::spawn(move || {
            // A ping, and a header without its payload: the peer may be gone.
            b.write_all(b"\x89\x02hi").unwrap();
            b.write_all(&frames[..HEADER]).unwrap();
            let mut pong = [0; 8];
            b.read_exact(&mut pong).unwrap();
            assert_eq!(pong[..2], [0x8a, 0x82]);
            assert!(told.try_recv().is_err(), "a ping is no part of a message");
            b.write_all(&frames[HEADER..=HEADER]).unwrap();
            told.recv().unwrap();
            // More than the sockets may hold.
            b.write_all(&frames[HEADER + 1..]).unwrap();
            b
        });
        let event = poll_fn(|cx| {
            let event = conn.poll_recv(cx);
            let _ = conn.poll_flush(cx);
            event
        });
        assert_eq!(event.await, Ok(WsEvent::Partial));
        go.send(()).unwrap();
        assert_eq!(next(&mut conn).await, Ok(WsEvent::Message(body)));
        peer.join().unwrap();
    });
}

/// `liveness.dead` may be longer than the least of ten seconds, at both ends.
#[test]
fn user_timeouts_are_those_of_the_configuration() {
    run(async {
        let (addr, app) = start(Routes::PUBLIC, None, HttpLimits::default());
        let url = WsUrl::parse(&format!("ws://{addr}/tunnel")).unwrap();
        let least = nowconnect::net::SESSION_USER_TIMEOUT;
        let long = nowconnect::net::session_user_timeout(Duration::from_secs(60));
        assert_eq!(nowconnect::net::session_user_timeout(Duration::from_secs(1)), least);
        for (set, want) in [(None, least), (Some(long), Duration::from_secs(60)), (Some(least), least)] {
            // For connections from then on: nothing is bound anew.
            app.user_timeout.set(set);
            let timeouts = DialTimeouts { user: want, ..DialTimeouts::default() };
            let dialed = dial(nowconnect::dial::Dial { timeouts, ..tunnel(&url) }).await.unwrap();
            assert_eq!(transport::user_timeout(&dialed.conn), Some(want));
            while app.user_timeouts.borrow().is_empty() {
                tokio::task::yield_now().await;
            }
            assert_eq!(app.user_timeouts.take(), [Some(want)]);
        }
    });
}

#[test]
fn dials_both_dialects_and_says_what_is_wrong() {
    run(async {
        let (addr, app) = start(Routes::PUBLIC, None, HttpLimits::default());
        let url = WsUrl::parse(&format!("ws://{addr}/tunnel")).unwrap();
        for (dialects, want) in [
            (&Dialect::of(Plane::Tunnel)[..], Codec::BinaryV2),
            (&[Dialect { codec: Codec::JsonV1, plane: Plane::Tunnel }][..], Codec::JsonV1),
        ] {
            let mut dialed = dial(transport_dial(&url, dialects)).await.unwrap();
            assert_eq!(dialed.dialect.codec, want);
            assert!(dialed.peer_dns_names.is_empty());
            send(&mut dialed.conn, "hello").await;
            assert_eq!(next(&mut dialed.conn).await, Ok(WsEvent::Message(Bytes::from_static(b"hello"))));
            dialed.conn.close(1000);
            assert_eq!(next(&mut dialed.conn).await, Ok(WsEvent::Closed { code: Some(1000) }));
            dialed.conn.finish(Duration::from_secs(5)).await;
        }
        let token = dial(nowconnect::dial::Dial { bearer: Some("bad"), ..tunnel(&url) }).await.unwrap_err();
        assert_eq!(token, DialError::Http { status: 401 });
        let newline = dial(nowconnect::dial::Dial { bearer: Some("a\nb"), ..tunnel(&url) }).await.unwrap_err();
        assert_eq!(newline, DialError::Protocol(UpgradeFault::Token));
        let mesh = dial(transport_dial(&url, &Dialect::of(Plane::Mesh))).await.unwrap_err();
        assert_eq!(mesh, DialError::Http { status: 400 });
        let path = WsUrl::parse(&format!("ws://{addr}/tunel")).unwrap();
        assert_eq!(dial(tunnel(&path)).await.unwrap_err(), DialError::Http { status: 404 });
        assert_eq!(*app.refused.borrow(), [Refusal::Denied, Refusal::Subprotocol, Refusal::Path]);
        // A port that is held, on which nobody listens.
        let held = tokio::net::TcpSocket::new_v4().unwrap();
        held.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let gone = WsUrl::parse(&format!("ws://{}/tunnel", held.local_addr().unwrap())).unwrap();
        let refused = DialError::Connect(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(dial(tunnel(&gone)).await.unwrap_err(), refused);
    });
}

fn transport_dial<'a>(url: &'a WsUrl, dialects: &'a [Dialect]) -> nowconnect::dial::Dial<'a> {
    nowconnect::dial::Dial { dialects, ..tunnel(url) }
}

/// Dials a server that answers `response` (with the right accept key for
/// `{accept}`) and closes.
async fn answered(response: &'static str) -> DialError {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = WsUrl::parse(&format!("ws://{}/tunnel", listener.local_addr().unwrap())).unwrap();
    let server = tokio::task::spawn_blocking(move || {
        let (mut tcp, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            tcp.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        let request = String::from_utf8(request).unwrap();
        let key = request.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
        let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
        tcp.write_all(response.replace("{accept}", &accept).as_bytes()).unwrap();
        // The client may have closed first.
        let _ = tcp.shutdown(std::net::Shutdown::Write);
        let _ = tcp.read_to_end(&mut request.into_bytes());
    });
    let error = dial(tunnel(&url)).await.unwrap_err();
    server.await.unwrap();
    error
}

#[test]
fn refuses_improper_upgrades() {
    const GOOD: &str = "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
    run(async {
        for (response, want) in [
            ("", UpgradeFault::Http),
            ("SSH-2.0-OpenSSH_9.9\r\n", UpgradeFault::Http),
            ("HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", UpgradeFault::Upgrade),
            (
                "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
                UpgradeFault::Accept,
            ),
        ] {
            assert_eq!(answered(response).await, DialError::Protocol(want), "{response}");
        }
        let with = |rest: &str| -> &'static str {
            Box::leak(format!("{GOOD}Sec-WebSocket-Accept: {{accept}}\r\n{rest}\r\n").into_boxed_str())
        };
        for (rest, want) in [
            (
                "Sec-WebSocket-Protocol: nowconnect.tunnel.v2\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
                UpgradeFault::Extension,
            ),
            ("", UpgradeFault::Subprotocol),
            ("Sec-WebSocket-Protocol: nowconnect.mesh.v2\r\n", UpgradeFault::Subprotocol),
            (
                "Sec-WebSocket-Protocol: nowconnect.tunnel.v2\r\nSec-WebSocket-Protocol: nowconnect.tunnel.v1\r\n",
                UpgradeFault::Subprotocol,
            ),
        ] {
            assert_eq!(answered(with(rest)).await, DialError::Protocol(want), "{rest}");
        }
        assert_eq!(answered("HTTP/1.1 302 X\r\nLocation: /\r\n\r\n").await, DialError::Http { status: 302 });
    });
}

#[test]
fn tls_round_trip_with_and_without_client_certificates() {
    run(async {
        let (ca, other) = (Ca::new("ca"), Ca::new("other"));
        let (addr, app) = start(Routes::MESH, Some(ca.server("localhost", Some(&ca))), HttpLimits::default());
        let url = WsUrl::parse(&format!("wss://localhost:{}/mesh", addr.port())).unwrap();
        let mesh = Dialect::of(Plane::Mesh);
        let with = |tls| nowconnect::dial::Dial { tls: Some(tls), bearer: None, ..transport_dial(&url, &mesh) };
        let mut dialed = dial(with(ca.client(Some((&ca, "hub-b"))))).await.unwrap();
        assert_eq!(dialed.peer_dns_names, ["localhost"]);
        send(&mut dialed.conn, "hello").await;
        assert_eq!(next(&mut dialed.conn).await, Ok(WsEvent::Message(Bytes::from_static(b"hello"))));
        // Both ends of the mesh's own port know the connection by the same bytes.
        assert!(dialed.exporter.is_some());
        let grant = HubGrant { dns_names: Some(vec!["hub-b".into()]), exporter: dialed.exporter };
        assert_eq!(*app.principals.borrow(), [Principal::Hub(grant)]);

        let error = |tls| async { dial(with(tls)).await.unwrap_err() };
        assert_eq!(error(ca.client(None)).await, DialError::Tls(TlsFault::OurCertificate));
        assert_eq!(error(ca.client(Some((&other, "hub-b")))).await, DialError::Tls(TlsFault::OurCertificate));
        assert_eq!(error(other.client(None)).await, DialError::Tls(TlsFault::UnknownIssuer));
        assert_eq!(app.accepted.get(), 1);

        let by_address = WsUrl::parse(&format!("wss://127.0.0.1:{}/mesh", addr.port())).unwrap();
        let wrong = nowconnect::dial::Dial { url: &by_address, ..with(ca.client(Some((&ca, "hub-b")))) };
        assert_eq!(dial(wrong).await.unwrap_err(), DialError::Tls(TlsFault::WrongName));

        // TLS without client certificates: the application hears of none.
        let (addr, app) = start(Routes::PUBLIC, Some(ca.server("localhost", None)), HttpLimits::default());
        let url = WsUrl::parse(&format!("wss://localhost:{}/mesh", addr.port())).unwrap();
        let dialed = dial(nowconnect::dial::Dial { url: &url, ..with(ca.client(None)) }).await.unwrap();
        assert_eq!(*app.principals.borrow(), [Principal::Hub(HubGrant::default())]);
        drop(dialed);
        // Plain where TLS is spoken, and the reverse.
        let plain = WsUrl::parse(&format!("ws://localhost:{}/tunnel", addr.port())).unwrap();
        assert_eq!(dial(tunnel(&plain)).await.unwrap_err(), DialError::Protocol(UpgradeFault::Http));
        let (addr, _) = start(Routes::PUBLIC, None, HttpLimits::default());
        let url = WsUrl::parse(&format!("wss://localhost:{}/mesh", addr.port())).unwrap();
        let not_tls = dial(nowconnect::dial::Dial { url: &url, ..with(ca.client(None)) }).await.unwrap_err();
        assert_eq!(not_tls, DialError::Tls(TlsFault::NotTls));
    });
}

//! Peers that break the rules: a raw HTTP client and a WebSocket client made
//! by hand, so that every bit of a frame can be wrong. Synchronous, because a
//! hostile peer does one thing at a time; run it off the async threads.
//!
//! What a node does with it is read from the outside only, as a [`Reaction`].

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nowconnect_core::error::CloseCode;
use nowconnect_core::id::{AgentId, Epoch, Incarnation, Instance, Name, Secret};
use nowconnect_core::wire::{
    Codec, ConnectorAd, Dialect, Frame, Hello, HelloAgent, HelloHub, HelloRole, Plane, WireLimits, decode,
    encode_message,
};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

/// How long a node may take to end a hostile connection.
const REACTION_WITHIN: Duration = Duration::from_secs(30);
/// Silence that counts as "the node keeps the connection".
const QUIET: Duration = Duration::from_millis(1500);

/// What the node did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// It answered the HTTP request.
    Status(u16, String),
    /// It ended the connection; with a WebSocket close code and a GOAWAY
    /// where it sent one.
    Closed {
        /// Code of the close frame.
        code: Option<u16>,
        /// Code of the last GOAWAY.
        goaway: Option<CloseCode>,
    },
    /// It kept the connection open.
    Open,
}

/// Sends raw bytes to an HTTP port and reads what comes.
///
/// # Panics
/// When the port does not accept.
#[must_use]
pub fn raw_http(addr: SocketAddr, bytes: &[u8]) -> Reaction {
    let mut socket = connect(addr);
    // The node may answer and close before it has read everything.
    let _ = socket.write_all(bytes);
    read_answer(&mut socket)
}

/// Sends a request head a byte at a time, so slowly that it never ends.
///
/// # Panics
/// When the port does not accept.
#[must_use]
pub fn slow_http(addr: SocketAddr) -> Reaction {
    let mut socket = connect(addr);
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let deadline = Instant::now() + REACTION_WITHIN;
    let head = b"GET /tunnel HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".iter().copied().chain(std::iter::repeat(b'a'));
    for byte in head {
        let mut answer = [0; 1024];
        match socket.write_all(&[byte]).and_then(|()| socket.read(&mut answer)) {
            Ok(0) => return Reaction::Closed { code: None, goaway: None },
            Ok(n) => return parse_answer(&answer[..n]),
            Err(e) if waiting(&e) => {}
            Err(_) => return Reaction::Closed { code: None, goaway: None },
        }
        if Instant::now() > deadline {
            break;
        }
    }
    Reaction::Open
}

/// A WebSocket upgrade request, to be bent by the caller.
#[must_use]
pub fn upgrade_request(path: &str, headers: &[(&str, &str)]) -> String {
    let mut request = format!("GET {path} HTTP/1.1\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    request
}

/// The headers of a correct upgrade.
#[must_use]
pub fn upgrade_headers<'a>(subprotocol: &'a str, authorization: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut headers = vec![
        ("Host", "localhost"),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", subprotocol),
    ];
    if !authorization.is_empty() {
        headers.push(("Authorization", authorization));
    }
    headers
}

/// What a peer speaks over.
enum Socket {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Socket {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &tls.sock,
        }
    }
}

impl Read for Socket {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(out),
            Self::Tls(tls) => tls.read(out),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

/// A WebSocket connection with hand-made frames.
pub struct Peer {
    socket: Socket,
    dialect: Dialect,
    pending: Vec<u8>,
}

impl Peer {
    /// Upgrades on `/tunnel` with `token`, or on `/mesh` without one.
    ///
    /// # Errors
    /// When the node does not answer 101.
    ///
    /// # Panics
    /// When the port does not accept.
    pub fn upgrade(addr: SocketAddr, dialect: Dialect, token: &str) -> Result<Self, Reaction> {
        Self::upgrade_with(addr, dialect, token, &[])
    }

    /// [`Peer::upgrade`] with more headers.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn upgrade_with(
        addr: SocketAddr,
        dialect: Dialect,
        token: &str,
        more: &[(&str, &str)],
    ) -> Result<Self, Reaction> {
        Self::upgrade_on(Socket::Plain(connect(addr)), dialect, token, more)
    }

    /// [`Peer::upgrade_with`] over TLS, to `localhost`.
    ///
    /// # Errors
    /// As there; also when TLS itself comes to nothing.
    ///
    /// # Panics
    /// When the port does not accept.
    pub fn upgrade_tls(
        addr: SocketAddr,
        tls: &Arc<ClientConfig>,
        dialect: Dialect,
        more: &[(&str, &str)],
    ) -> Result<Self, Reaction> {
        let name = ServerName::try_from("localhost").unwrap();
        let session = ClientConnection::new(Arc::clone(tls), name).unwrap();
        let socket = Socket::Tls(Box::new(StreamOwned::new(session, connect(addr))));
        Self::upgrade_on(socket, dialect, "", more)
    }

    fn upgrade_on(mut socket: Socket, dialect: Dialect, token: &str, more: &[(&str, &str)]) -> Result<Self, Reaction> {
        let path = match dialect.plane {
            Plane::Tunnel => "/tunnel",
            Plane::Mesh => "/mesh",
        };
        let bearer = if token.is_empty() { String::new() } else { format!("Bearer {token}") };
        let mut headers = upgrade_headers(dialect.subprotocol(), &bearer);
        headers.extend_from_slice(more);
        let request = upgrade_request(path, &headers);
        // Over TLS the node may have refused by now; the answer tells.
        let sent = socket.write_all(request.as_bytes());
        assert!(sent.is_ok() || matches!(socket, Socket::Tls(_)), "{sent:?}");
        match read_answer(&mut socket) {
            Reaction::Status(101, _) => Ok(Self { socket, dialect, pending: Vec::new() }),
            other => Err(other),
        }
    }

    /// What both ends of this TLS connection can compute and nobody else (RFC
    /// 9266); `None` without TLS.
    ///
    /// # Panics
    /// When TLS is not established.
    #[must_use]
    pub fn exporter(&self) -> Option<[u8; 32]> {
        let Socket::Tls(tls) = &self.socket else { return None };
        Some(tls.conn.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(&[])).unwrap())
    }

    /// Upgrades and says HELLO; returns after the node's WELCOME.
    ///
    /// # Errors
    /// What the node did instead.
    ///
    /// # Panics
    /// When the port does not accept.
    pub fn establish(addr: SocketAddr, dialect: Dialect, token: &str, hello: Hello) -> Result<Self, Reaction> {
        let mut peer = Self::upgrade(addr, dialect, token)?;
        peer.frame(0, Frame::Hello(Box::new(hello)));
        match peer.frames_until(|f| matches!(f, Frame::Welcome(_))) {
            Ok(()) => Ok(peer),
            Err(reaction) => Err(reaction),
        }
    }

    /// Sends one message with one frame, as the product would encode it.
    pub fn frame(&mut self, number: u64, frame: Frame) {
        let message = encode_message(self.dialect, number, &[frame]);
        self.message(&message);
    }

    /// Sends bytes as one message of the encoding's kind.
    pub fn message(&mut self, payload: &[u8]) {
        let opcode = match self.dialect.codec {
            Codec::JsonV1 => 1,
            Codec::BinaryV2 => 2,
        };
        self.ws(0x80 | opcode, payload);
    }

    /// Sends one masked WebSocket frame with this first byte.
    pub fn ws(&mut self, first: u8, payload: &[u8]) {
        let mut frame = vec![first];
        match payload.len() {
            n @ 0..=125 => frame.push(0x80 | u8::try_from(n).unwrap()),
            n @ 126..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(n).unwrap().to_be_bytes());
            }
            n => {
                frame.push(0x80 | 127);
                frame.extend((n as u64).to_be_bytes());
            }
        }
        let mask = [0x11, 0x22, 0x33, 0x44];
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        self.raw(&frame);
    }

    /// Sends bytes as they are. The node may already have closed.
    pub fn raw(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    /// Reads on until the node ends the connection; [`Reaction::Open`] when it
    /// has not after `REACTION_WITHIN`.
    #[must_use]
    pub fn until_closed(mut self) -> Reaction {
        match self.read_frames(REACTION_WITHIN, |_| false) {
            Ok(()) => Reaction::Open,
            Err(reaction) => reaction,
        }
    }

    /// Reads on for a moment; [`Reaction::Open`] when the node keeps the
    /// connection.
    #[must_use]
    pub fn still_open(mut self) -> Reaction {
        match self.read_frames(QUIET, |_| false) {
            Ok(()) => Reaction::Open,
            Err(reaction) => reaction,
        }
    }

    /// Reads frames until one satisfies `wanted`.
    ///
    /// # Errors
    /// What the node did instead.
    pub fn frames_until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Result<(), Reaction> {
        let found = std::cell::Cell::new(false);
        self.read_frames(REACTION_WITHIN, |f| {
            found.set(found.get() || wanted(f));
            found.get()
        })?;
        if found.get() { Ok(()) } else { Err(Reaction::Open) }
    }

    /// Reads until `stop` (`Ok`), `within` has passed (`Ok`), or the end (`Err`).
    fn read_frames(&mut self, within: Duration, stop: impl Fn(&Frame) -> bool) -> Result<(), Reaction> {
        let deadline = Instant::now() + within;
        let mut goaway = None;
        loop {
            while let Some((opcode, payload)) = self.next_ws() {
                if opcode == 8 {
                    let code = payload.first_chunk().map(|c| u16::from_be_bytes(*c));
                    let _ = self.socket.tcp().shutdown(Shutdown::Both);
                    return Err(Reaction::Closed { code, goaway });
                }
                let mut frames = Vec::new();
                if opcode < 8 {
                    let decoded = decode(self.dialect, &Bytes::from(payload), &WireLimits::ESTABLISHED, &mut frames);
                    assert!(decoded.is_ok(), "the node itself sent a bad message: {decoded:?}");
                }
                for frame in frames {
                    if let Frame::GoAway { code, .. } = frame {
                        goaway = Some(code);
                    }
                    if stop(&frame) {
                        return Ok(());
                    }
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.socket.tcp().set_read_timeout(Some(left)).unwrap();
            let mut buffer = [0; 16 * 1024];
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(Reaction::Closed { code: None, goaway }),
                Ok(n) => self.pending.extend_from_slice(&buffer[..n]),
                Err(e) if waiting(&e) => return Ok(()),
                Err(_) => return Err(Reaction::Closed { code: None, goaway }),
            }
        }
    }

    /// Takes one whole frame of the node out of what has arrived.
    fn next_ws(&mut self) -> Option<(u8, Vec<u8>)> {
        let p = &self.pending;
        let (head, len) = match *p.get(1)? {
            n @ 0..=125 => (2, usize::from(n)),
            126 => (4, usize::from(u16::from_be_bytes(p.get(2..4)?.try_into().unwrap()))),
            127 => (10, usize::try_from(u64::from_be_bytes(p.get(2..10)?.try_into().unwrap())).unwrap()),
            _ => panic!("the node sent a masked frame"),
        };
        let opcode = p[0] & 0x0f;
        let payload = p.get(head..head + len)?.to_vec();
        self.pending.drain(..head + len);
        Some((opcode, payload))
    }
}

/// A correct HELLO of an agent.
///
/// # Panics
/// When a name is none.
#[must_use]
pub fn agent_hello(agent: &str, connectors: &[&str]) -> Hello {
    Hello {
        role: HelloRole::Agent(HelloAgent {
            agent_id: AgentId::new(agent).unwrap(),
            instance: Instance(0x0123_4567_89ab_cdef),
            connectors: connectors
                .iter()
                .map(|c| ConnectorAd { name: Name::new(c).unwrap(), priority: 0, weight: 1 })
                .collect(),
            seen: Epoch(0),
            sessions: Vec::new(),
        }),
        challenge: Secret([7; 16]),
        initial_window: 65_536,
        capabilities: Vec::new(),
        resume: None,
    }
}

/// A HELLO of a hub.
///
/// # Panics
/// When a name is none.
#[must_use]
pub fn hub_hello(replica: &str, namespace: &str) -> Hello {
    Hello {
        role: HelloRole::Hub(HelloHub {
            replica_id: Name::new(replica).unwrap(),
            incarnation: Incarnation(0xfeed_0000_0000_0001),
            namespace: Name::new(namespace).unwrap(),
            region: None,
            sessions: Vec::new(),
        }),
        challenge: Secret([9; 16]),
        initial_window: 65_536,
        capabilities: Vec::new(),
        resume: None,
    }
}

fn connect(addr: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(addr).unwrap();
    socket.set_read_timeout(Some(REACTION_WITHIN)).unwrap();
    socket.set_write_timeout(Some(REACTION_WITHIN)).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

fn waiting(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Reads one HTTP answer: the head byte by byte, so that nothing after a 101
/// is lost, then for other answers the body.
fn read_answer(socket: &mut impl Read) -> Reaction {
    let mut head = Vec::new();
    let mut byte = [0; 1];
    while !head.ends_with(b"\r\n\r\n") {
        match socket.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            Err(e) if waiting(&e) => return Reaction::Open,
            _ => return Reaction::Closed { code: None, goaway: None },
        }
    }
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = (text.lines().find_map(|l| l.strip_prefix("content-length:")))
        .and_then(|n| n.trim().parse::<usize>().ok())
        .unwrap_or(0);
    let mut body = vec![0; length.min(64 * 1024)];
    if socket.read_exact(&mut body).is_ok() {
        head.extend_from_slice(&body);
    }
    parse_answer(&head)
}

fn parse_answer(bytes: &[u8]) -> Reaction {
    let text = String::from_utf8_lossy(bytes);
    match text.split(' ').nth(1).and_then(|s| s.parse().ok()) {
        Some(status) => {
            let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            Reaction::Status(status, body.to_owned())
        }
        None => Reaction::Closed { code: None, goaway: None },
    }
}

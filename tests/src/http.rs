//! The smallest HTTP client that can read the endpoints: one GET, over TCP or
//! TLS or a Unix socket, or a POST without a body, connection closed afterwards.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// Status and body of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

/// Gets `path` from `addr`, over TLS to `localhost` when a client is given.
///
/// # Errors
/// When nothing answers, or not with HTTP.
pub async fn get(addr: SocketAddr, tls: Option<&Arc<ClientConfig>>, path: &str) -> std::io::Result<Answer> {
    let socket = TcpStream::connect(addr).await?;
    match tls {
        None => exchange(socket, "GET", path).await,
        Some(config) => {
            let name = ServerName::try_from("localhost").unwrap();
            let connector = TlsConnector::from(Arc::clone(config));
            exchange(connector.connect(name, socket).await?, "GET", path).await
        }
    }
}

/// Gets `path` over a Unix socket.
///
/// # Errors
/// When nothing answers, or not with HTTP.
pub async fn get_unix(socket: &Path, path: &str) -> std::io::Result<Answer> {
    exchange(UnixStream::connect(socket).await?, "GET", path).await
}

/// Posts nothing to `path` over a Unix socket.
///
/// # Errors
/// When nothing answers, or not with HTTP.
pub async fn post_unix(socket: &Path, path: &str) -> std::io::Result<Answer> {
    exchange(UnixStream::connect(socket).await?, "POST", path).await
}

async fn exchange(mut io: impl AsyncRead + AsyncWrite + Unpin, method: &str, path: &str) -> std::io::Result<Answer> {
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let text = tokio::time::timeout(Duration::from_secs(10), async {
        io.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        match io.read_to_end(&mut bytes).await {
            // A TLS peer may end without close_notify: what came is complete or not by itself.
            Err(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => return Err(e),
            _ => {}
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    })
    .await??;
    parse(&text).ok_or_else(|| std::io::Error::other("no HTTP answer"))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { dechunk(body)? } else { body.to_owned() };
    Some(Answer { status, body })
}

fn dechunk(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read_whole_and_in_chunks() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(parse(whole), Some(Answer { status: 200, body: "ok".to_owned() }));
        let chunks = "HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(parse(chunks), Some(Answer { status: 503, body: "abcd".to_owned() }));
    }
}

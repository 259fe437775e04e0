//! The byte stream under a WebSocket: TCP, or TLS in either role.
//!
//! An enum rather than a trait object: one indirect call less per read and
//! write, and vectored writes stay vectored. Knows nothing of WebSocket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A connected byte stream.
#[derive(Debug)]
pub enum Io {
    /// TCP without TLS.
    Plain(TcpStream),
    /// TLS, this side accepted.
    TlsServer(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    /// TLS, this side dialled.
    TlsClient(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

macro_rules! each {
    ($self:expr, $io:ident => $e:expr) => {
        match $self {
            Io::Plain($io) => $e,
            Io::TlsServer($io) => {
                let $io = $io.as_mut();
                $e
            }
            Io::TlsClient($io) => {
                let $io = $io.as_mut();
                $e
            }
        }
    };
}

impl Io {
    /// The TCP socket underneath.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::TlsServer(tls) => tls.get_ref().0,
            Self::TlsClient(tls) => tls.get_ref().0,
        }
    }

    /// The chain the peer showed, its own certificate first; `None` when it
    /// showed none.
    #[must_use]
    pub fn peer_chain(&self) -> Option<&[CertificateDer<'static>]> {
        match self {
            Self::Plain(_) => None,
            Self::TlsServer(tls) => tls.get_ref().1.peer_certificates(),
            Self::TlsClient(tls) => tls.get_ref().1.peer_certificates(),
        }
    }

    /// dNSNames of the certificate the peer showed; `None` when it showed none.
    #[must_use]
    pub fn peer_dns_names(&self) -> Option<Vec<String>> {
        let certificates = match self {
            Self::Plain(_) => None,
            Self::TlsServer(tls) => tls.get_ref().1.peer_certificates(),
            Self::TlsClient(tls) => tls.get_ref().1.peer_certificates(),
        };
        certificates.and_then(<[_]>::first).map(dns_names)
    }

    /// 32 bytes both ends of this very TLS 1.3 connection can compute and
    /// nobody else (RFC 9266); `None` without. The mesh handshake signs them.
    #[must_use]
    pub fn tls_exporter(&self) -> Option<[u8; 32]> {
        const LABEL: &[u8] = b"EXPORTER-Channel-Binding";
        let tls: &rustls::CommonState = match self {
            Self::Plain(_) => return None,
            Self::TlsServer(tls) => tls.get_ref().1,
            Self::TlsClient(tls) => tls.get_ref().1,
        };
        if tls.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
            return None;
        }
        let out = [0; 32];
        match self {
            Self::Plain(_) => None,
            Self::TlsServer(tls) => tls.get_ref().1.export_keying_material(out, LABEL, Some(&[])).ok(),
            Self::TlsClient(tls) => tls.get_ref().1.export_keying_material(out, LABEL, Some(&[])).ok(),
        }
    }

    /// Whether a read has a chance. Only TCP can say no: TLS may hold
    /// decrypted bytes of its own.
    pub(super) fn poll_maybe_readable(&self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::Plain(tcp) => tcp.poll_read_ready(cx).is_ready(),
            Self::TlsServer(_) | Self::TlsClient(_) => true,
        }
    }

    /// Fills as much of `out` as is there now. TLS yields one record a read;
    /// collecting several saves the WebSocket reader a pass per record.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(out);
        loop {
            let before = buf.filled().len();
            let polled = Pin::new(&mut *self).poll_read(cx, &mut buf);
            let filled = buf.filled().len();
            match polled {
                Poll::Ready(Ok(())) if filled > before && buf.remaining() > 0 && !matches!(self, Self::Plain(_)) => {}
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(filled)),
                // An error or end after some bytes is found again by the next read.
                Poll::Ready(Err(_)) | Poll::Pending if filled > 0 => return Poll::Ready(Ok(filled)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// The dNSNames in a certificate's subjectAltName; empty when it cannot be
/// parsed. CN is not looked at (attack 26).
#[must_use]
pub fn dns_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    match webpki::EndEntityCert::try_from(certificate) {
        Ok(parsed) => parsed.valid_dns_names().map(str::to_owned).collect(),
        Err(_) => Vec::new(),
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::TlsServer(io) => io.is_write_vectored(),
            Self::TlsClient(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_shutdown(cx))
    }
}

//! An ingress: ends TLS with a certificate of its own and passes plain bytes
//! on to a hub, as a balancer or a reverse proxy in front of `/mesh` does.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::certs::Files;

/// A running ingress; ends when dropped.
pub struct Ingress {
    /// Where it listens, in TLS.
    pub addr: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Ingress {
    /// Starts one in front of `upstream`, which need not listen yet.
    ///
    /// # Panics
    /// When the files are no certificate and key, or no port is left.
    pub async fn start(upstream: SocketAddr, own: &Files) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(&own.cert).unwrap()],
                PrivateKeyDer::from_pem_file(&own.key).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // Who gives up in TLS is nothing upstream hears of.
                    let Ok(mut near) = acceptor.accept(tcp).await else { return };
                    let Ok(mut far) = TcpStream::connect(upstream).await else { return };
                    // How a connection ends is the business of its two ends.
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self { addr, accepting }
    }
}

impl Drop for Ingress {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

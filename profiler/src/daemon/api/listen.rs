//! Where the API listens, and how connections are encrypted.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::daemon::config::Daemon;

/// Connections that may be open at the same time.
pub const MAX_CONNECTIONS: usize = 256;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A port of this machine.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Listen {
    /// Reads an address; `None` for nowhere. An address that others can reach needs encryption and tokens.
    pub fn parse(settings: &Daemon) -> Result<Option<Listen>> {
        let text = &settings.listen;
        if text.is_empty() {
            return Ok(None);
        }
        if text.starts_with('/') {
            return Ok(Some(Listen::Unix(text.into())));
        }
        let address: SocketAddr = text
            .parse()
            .with_context(|| format!("daemon.listen: `{text}` is neither ADDRESS:PORT nor a path"))?;
        let is_safe = settings.tls_cert.is_some() && settings.tls_key.is_some() && !settings.is_open();
        if !address.ip().is_loopback() && !is_safe {
            bail!(
                "daemon.listen: {address} can be reached from elsewhere: this needs tls_cert, tls_key, and token_file \
                 or jwt; or listen on 127.0.0.1"
            );
        }
        Ok(Some(Listen::Tcp(address)))
    }
}

/// Reads a certificate chain and its key.
pub fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor> {
    let pem = std::fs::read(cert).with_context(|| cert.display().to_string())?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{}: no certificate", cert.display()))?;
    let pem = std::fs::read(key).with_context(|| key.display().to_string())?;
    let key = PrivateKeyDer::from_pem_slice(&pem).with_context(|| format!("{}: no key", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the certificate and the key do not fit")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Gives connections whose handshake is done; one that dawdles holds up nobody else.
pub struct Encrypted {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl Encrypted {
    /// Begins to accept.
    pub fn new(listener: TcpListener, acceptor: TlsAcceptor) -> io::Result<Encrypted> {
        let address = listener.local_addr()?;
        let (done, ready) = mpsc::channel(16);
        let handshakes = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        tokio::spawn(async move {
            loop {
                let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
                let Ok((stream, peer)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let (acceptor, done) = (acceptor.clone(), done.clone());
                tokio::spawn(async move {
                    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                        let _ = done.send((stream, peer)).await;
                    }
                    drop(permit);
                });
            }
        });
        Ok(Encrypted { ready, address })
    }
}

impl axum::serve::Listener for Encrypted {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The accepting task never ends before this.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_served_without_encryption_and_tokens() {
        let of = |listen: &str| Listen::parse(&Daemon { listen: listen.into(), ..Daemon::default() });
        assert!(of("0.0.0.0:9464").is_err());
        assert!(of("nonsense").is_err());
        assert_eq!(of("").unwrap(), None);
        assert!(matches!(of("[::1]:80").unwrap(), Some(Listen::Tcp(_))));
        assert!(matches!(of("/run/profiler.sock").unwrap(), Some(Listen::Unix(_))));
        let file = Some(PathBuf::from("/x"));
        let tls = Daemon {
            listen: "0.0.0.0:9464".into(),
            tls_cert: file.clone(),
            tls_key: file.clone(),
            ..Daemon::default()
        };
        assert!(Listen::parse(&tls).is_err(), "tokens, too");
        assert!(Listen::parse(&Daemon { token_file: file, ..tls }).is_ok());
    }
}

//! TLS towards clients: the certificate and the key that a port speaks with.
//!
//! Invariants: a certificate that can't be used never replaces one that can; connections that are open
//! keep the configuration that they began with; the two files are looked at again for as long as the
//! process serves.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

/// How often the certificate's files are looked at.
const CERTIFICATE_POLL: Duration = Duration::from_secs(5);

/// Why a certificate or key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read or is no PEM.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// They don't belong together, or are of an unknown kind.
    #[error("{0}")]
    Rustls(#[from] tokio_rustls::rustls::Error),
}

/// The TLS configuration in force; swapped when the files change.
#[derive(Clone, Debug)]
pub struct Tls {
    current: Arc<ArcSwap<ServerConfig>>,
    cert: PathBuf,
    key: PathBuf,
}

impl Tls {
    /// Reads both files.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        Ok(Self {
            current: Arc::new(ArcSwap::from_pointee(tls_config(cert, key)?)),
            cert: cert.to_owned(),
            key: key.to_owned(),
        })
    }

    /// The server's half of a handshake, with the configuration of this moment.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<TlsStream<S>> {
        TlsAcceptor::from(self.current.load_full())
            .accept(stream)
            .await
    }

    /// Looks at the files until the process ends.
    pub async fn watch(self) {
        let mut seen = self.stamp();
        loop {
            sleep(CERTIFICATE_POLL).await;
            let stamp = self.stamp();
            if stamp == seen {
                continue;
            }
            seen = stamp;
            self.reload();
        }
    }

    /// Reads both files again. Connections that are open keep what they have.
    pub fn reload(&self) {
        match tls_config(&self.cert, &self.key) {
            Ok(config) => {
                self.current.store(Arc::new(config));
                tracing::info!(cert = %self.cert.display(), "the TLS certificate was reloaded");
            }
            // Often one of the two files is simply not written yet; the next change is tried again.
            Err(error) => {
                tracing::error!(%error, "the new TLS certificate can't be used; the old one stays")
            }
        }
    }

    fn stamp(&self) -> [Option<(std::time::SystemTime, u64)>; 2] {
        [&self.cert, &self.key].map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }
}

/// The certificates of a PEM file, of which there must be one at least.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fault = |reason: String| TlsError::File {
        path: path.to_owned(),
        reason,
    };
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| fault(error.to_string()))?;
    if all.is_empty() {
        return Err(fault("it holds no certificate".to_owned()));
    }
    Ok(all)
}

fn tls_config(cert: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let chain = certificates(cert)?;
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::File {
        path: key.to_owned(),
        reason: error.to_string(),
    })?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key_der)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

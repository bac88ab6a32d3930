//! Certificates: which one a client gets, and the one made for development.
//!
//! The gateway terminates TLS itself, from a full rustls `ServerConfig`: TLS 1.2 and 1.3, rustls'
//! own suites (all with forward secrecy and AEAD), stateless tickets, ALPN `h2` and `http/1.1`.

mod certificates;
mod development;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;

pub use certificates::{Certificates, PreparedCertificates, TlsError, inspect};
pub use development::{DEVELOPMENT_COMMON_NAME, ensure_development};

/// A certificate chain and its private key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Made at start when the files are missing (never in production).
    pub development: bool,
}

/// What a certificate says of itself, for `check` and for the start-up log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// DNS names and addresses it is valid for, lower case.
    pub names: Vec<String>,
    /// Seconds since the Unix epoch.
    pub not_before: i64,
    pub not_after: i64,
    /// Whether it is one that [`ensure_development`] made.
    pub development: bool,
}

/// Makes ring the process's provider of cryptography. Idempotent; call before anything uses TLS.
pub fn install_crypto_provider() {
    // An error says that a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The TLS side of a listener.
pub fn server_config(certificates: Arc<Certificates>) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_protocol_versions(&[
        &rustls::version::TLS13,
        &rustls::version::TLS12,
    ])
    .with_no_client_auth()
    .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(TlsError::Rustls)?;
    Ok(config)
}

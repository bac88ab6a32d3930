//! TLS: which certificate a client gets, which certificate it must show, and the certificate made for
//! development.
//!
//! The gateway terminates TLS itself, from a full rustls `ServerConfig`: TLS 1.2 and 1.3, rustls'
//! own suites (all with forward secrecy and AEAD), stateless tickets, ALPN `h2` and `http/1.1`.

mod certificates;
mod challenge;
mod client;
mod development;
mod files;
mod source;
mod stamp;
mod terminator;
mod trust;

use std::path::PathBuf;

pub use challenge::Challenges;
pub use client::{ClientCertificate, Standing};
pub use development::{DEVELOPMENT_COMMON_NAME, ensure_development};
pub use files::{NOT_VERSION_3, inspect};
pub use source::{Source, Supplied, Tls, TlsError, Version};
pub use terminator::{Prepared, Terminator, watch};

/// What the TLS side of a listener is made of, where files supply its certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificates: Vec<CertificateFiles>,
    /// `None` where clients are not asked for a certificate.
    pub clients: Option<ClientCertificates>,
}

/// A certificate chain and its private key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// An OCSP response in DER, to be stapled.
    pub ocsp: Option<PathBuf>,
    /// Made at start when the files are missing (never in production).
    pub development: bool,
}

/// Which certificates clients may show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificates {
    /// The authorities that sign them, in PEM.
    pub ca: PathBuf,
    pub mode: ClientCertificateMode,
}

#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificateMode {
    /// A client without one gets no connection.
    #[default]
    Required,
    /// A client may go without one, but one that it shows must be good.
    Optional,
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

/// Opens the authorities of client certificates, without using them.
pub fn inspect_clients(clients: &ClientCertificates) -> Result<(), TlsError> {
    trust::Believed::new(clients, &files::read(&clients.ca)?).map(drop)
}

//! Who supplies the certificates of a listener. Files do; who gets them elsewhere, as by ACME, is one
//! more [`Source`], of which nothing that ends TLS needs to know.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;

use rustls::sign::CertifiedKey;

use super::files::Files;
use super::stamp::Stamps;
use super::{CertificateFacts, ClientCertificates, TlsFiles};

/// Supplies certificates for names.
pub trait Source: Send + Sync {
    /// All there are now, the default first.
    ///
    /// # Errors
    /// Where one of them can't be used: those that were supplied before stay in use then.
    fn supply(&self) -> Result<Vec<Supplied>, TlsError>;

    /// Another one whenever [`Source::supply`] may give something else than before. It is asked every
    /// second, and must not take long.
    fn version(&self) -> Version;
}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Supplied {
    pub key: Arc<CertifiedKey>,
    pub facts: CertificateFacts,
    /// Where it comes from, for metrics: the name of a file.
    pub origin: String,
}

/// Tells what was supplied at one time from what is at another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(u64);

/// What the TLS side of a listener is made of.
pub struct Tls {
    pub source: Arc<dyn Source>,
    /// `None` where clients are not asked for a certificate.
    pub clients: Option<ClientCertificates>,
}

/// Why a certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {error}", path = .path.display())]
    Read {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("{path}: {problem}", path = .path.display())]
    Content { path: PathBuf, problem: String },
    #[error("{cert}: the private key in {key} does not belong to this certificate", cert = .cert.display(), key = .key.display())]
    KeyMismatch { cert: PathBuf, key: PathBuf },
    #[error("a listener needs at least one certificate")]
    None,
    #[error("TLS: {0}")]
    Rustls(rustls::Error),
}

impl Version {
    /// The version of whatever tells two of them apart.
    pub fn of(value: &impl Hash) -> Version {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Version(hasher.finish())
    }
}

impl Tls {
    /// Another one whenever certificates or authorities may be others.
    pub(super) fn version(&self) -> Version {
        let authorities = self.clients.iter().map(|clients| clients.ca.as_path());
        Version::of(&(self.source.version(), Stamps::of(authorities)))
    }
}

impl From<TlsFiles> for Tls {
    fn from(files: TlsFiles) -> Tls {
        Tls {
            source: Arc::new(Files(files.certificates)),
            clients: files.clients,
        }
    }
}

#[cfg(test)]
pub(super) mod tests;

//! Which authorities a listener believes about its clients, and how that changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use super::files::chain;
use super::{ClientCertificateMode, ClientCertificates, TlsError};

/// Whom a listener believes now. Connections hold on to it, so that a change reaches those that are
/// there.
#[derive(Debug, Default)]
pub struct Trust(ArcSwapOption<Believed>);

/// Authorities as they were read at some time.
#[derive(Debug)]
pub struct Believed {
    /// No two have the same.
    number: u64,
    ca: PathBuf,
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
}

impl Trust {
    pub fn now(&self) -> Option<Arc<Believed>> {
        self.0.load_full()
    }

    /// `None` where clients are not asked for certificates any more.
    pub fn change(&self, believed: Option<Arc<Believed>>) {
        self.0.store(believed);
    }
}

impl Believed {
    /// The authorities in `pem`, which is what their file holds.
    ///
    /// # Errors
    /// If there is none, or one can't be used.
    pub fn new(clients: &ClientCertificates, pem: &[u8]) -> Result<Believed, TlsError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Ok(Believed {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            ca: clients.ca.clone(),
            verifier: verifier(clients, pem)?,
        })
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn ca(&self) -> &Path {
        &self.ca
    }

    /// Whether a client's certificate is good. `now` is the time since the Unix epoch.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: Duration,
    ) -> bool {
        let now = UnixTime::since_unix_epoch(now);
        self.verifier
            .verify_client_cert(leaf, intermediates, now)
            .is_ok()
    }
}

/// What verifies clients' certificates, from the authorities in `pem`.
fn verifier(
    clients: &ClientCertificates,
    pem: &[u8],
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let content = |problem: String| TlsError::Content {
        path: clients.ca.clone(),
        problem,
    };
    let mut roots = RootCertStore::empty();
    for authority in chain(&clients.ca, pem)? {
        roots
            .add(authority)
            .map_err(|error| content(format!("holds what is no authority: {error}")))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match clients.mode {
        ClientCertificateMode::Required => builder,
        ClientCertificateMode::Optional => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|error| content(error.to_string()))
}

//! Certificates that clients show (mTLS).

use std::sync::Arc;

use http::HeaderValue;
use pingora_core::protocols::tls::TlsRef;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::certificates::{TlsError, chain};
use super::{ClientCertificateMode, ClientCertificates};

/// Longest subject that is passed on; certificates of real authorities have a few dozen bytes.
const SUBJECT_BYTES_MAX: usize = 1024;

/// Who a client is, by a certificate that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The subject, as `C=DE, O=Example, CN=client`, in printable ASCII: what is not, and `%`, is
    /// percent-encoded.
    pub subject: String,
    /// The same, for a header.
    pub header: HeaderValue,
}

impl ClientCertificate {
    /// The certificate of a connection's client, if it showed one.
    pub fn of(tls: &TlsRef) -> Option<ClientCertificate> {
        let (_, certificate) = X509Certificate::from_der(tls.peer_certificate_der()?).ok()?;
        ClientCertificate::named(&certificate.subject().to_string())
    }

    fn named(subject: &str) -> Option<ClientCertificate> {
        let mut plain = String::new();
        for byte in subject.bytes() {
            match byte {
                b' '..=b'~' if byte != b'%' => plain.push(char::from(byte)),
                _ => plain.push_str(&format!("%{byte:02X}")),
            }
        }
        plain.truncate(SUBJECT_BYTES_MAX);
        let header = HeaderValue::from_str(plain.trim()).ok()?;
        Some(ClientCertificate {
            subject: plain,
            header,
        })
    }
}

/// What verifies clients' certificates, from the authorities in `pem`.
pub(super) fn verifier(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_fit_for_a_header() {
        let named = |subject| ClientCertificate::named(subject).unwrap().subject;
        assert_eq!(named("C=DE, CN=client"), "C=DE, CN=client");
        assert_eq!(named("CN=a\r\nX-Admin: 1"), "CN=a%0D%0AX-Admin: 1");
        assert_eq!(named("CN=J\u{fc}rgen 100%"), "CN=J%C3%BCrgen 100%25");
        assert_eq!(named(&"x".repeat(5000)).len(), SUBJECT_BYTES_MAX);
    }
}

//! Certificates that clients show (mTLS).

use std::sync::Arc;

use http::HeaderValue;
use pingora_core::protocols::tls::TlsRef;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use super::files::chain;
use super::{ClientCertificateMode, ClientCertificates, TlsError};

/// Longest subject that is passed on; certificates of real authorities have a few dozen bytes.
const SUBJECT_BYTES_MAX: usize = 1024;

/// Who a client is, by a certificate that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The subject, as `C=DE, O=Example, CN=client`, in printable ASCII, without a byte in a value that
    /// stands between values elsewhere: such bytes, and `%`, are percent-encoded. So no two subjects
    /// look alike.
    pub subject: String,
    /// The same, for a header. `None` where there is nothing to say.
    pub header: Option<HeaderValue>,
}

/// A certificate that says nothing that can be passed on whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the subject of the client's certificate can't be read, or is longer than {SUBJECT_BYTES_MAX} bytes"
)]
pub struct UnfitSubject;

impl ClientCertificate {
    /// The certificate of a connection's client, if it showed one.
    ///
    /// # Errors
    /// If it can't be told from others by its subject.
    pub fn of(tls: &TlsRef) -> Result<Option<ClientCertificate>, UnfitSubject> {
        let Some(der) = tls.peer_certificate_der() else {
            return Ok(None);
        };
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| UnfitSubject)?;
        ClientCertificate::named(certificate.subject()).map(Some)
    }

    fn named(subject: &X509Name<'_>) -> Result<ClientCertificate, UnfitSubject> {
        let mut text = String::new();
        for set in subject.iter_rdn() {
            // Several in one set are joined by ` + `.
            for (at, attribute) in set.iter().enumerate() {
                match (text.is_empty(), at) {
                    (true, _) => {}
                    (false, 0) => text.push_str(", "),
                    (false, _) => text.push_str(" + "),
                }
                match oid2abbrev(attribute.attr_type(), oid_registry()) {
                    Ok(name) => text.push_str(name),
                    Err(_) => text.push_str(&attribute.attr_type().to_id_string()),
                }
                text.push('=');
                match attribute.as_str() {
                    Ok(value) => encode(value.as_bytes(), &mut text),
                    // Of an encoding that is no UTF-8: its bytes.
                    Err(_) => encode(attribute.as_slice(), &mut text),
                }
                if text.len() > SUBJECT_BYTES_MAX {
                    return Err(UnfitSubject);
                }
            }
        }
        let header = match text.is_empty() {
            true => None,
            false => Some(HeaderValue::from_str(&text).map_err(|_| UnfitSubject)?),
        };
        Ok(ClientCertificate {
            subject: text,
            header,
        })
    }
}

fn encode(value: &[u8], text: &mut String) {
    for (at, byte) in value.iter().enumerate() {
        let is_at_end = at == 0 || at + 1 == value.len();
        match byte {
            b'%' | b',' | b'+' | b'=' | b'"' | b'\\' | b';' | b'<' | b'>' => {
                text.push_str(&format!("%{byte:02X}"));
            }
            b' ' if is_at_end => text.push_str("%20"),
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
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
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    fn named(parts: &[(DnType, &str)]) -> Result<String, UnfitSubject> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for (of, value) in parts {
            params.distinguished_name.push(of.clone(), *value);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let (_, read) = X509Certificate::from_der(certificate.der()).unwrap();
        ClientCertificate::named(read.subject()).map(|named| named.subject)
    }

    #[test]
    fn a_subject_is_fit_for_a_header_and_like_no_other() {
        let (o, cn) = (DnType::OrganizationName, DnType::CommonName);
        let plain = named(&[(DnType::CountryName, "DE"), (cn.clone(), "client 7")]);
        assert_eq!(plain.unwrap(), "C=DE, CN=client 7");
        for (value, expected) in [
            ("a\r\nX-Admin: 1", "CN=a%0D%0AX-Admin: 1"),
            ("J\u{fc}rgen 100%", "CN=J%C3%BCrgen 100%25"),
            (" a, O=b + c ", "CN=%20a%2C O%3Db %2B c%20"),
        ] {
            assert_eq!(named(&[(cn.clone(), value)]).unwrap(), expected);
        }
        // What is one name must not pass for two.
        let two = named(&[(o, "Guests"), (cn.clone(), "alice")]).unwrap();
        assert_eq!(two, "O=Guests, CN=alice");
        // Nor may the beginning of one pass for another.
        assert_eq!(named(&[(cn, &"x".repeat(1100))]), Err(UnfitSubject));
        assert_eq!(named(&[]).unwrap(), "");
    }
}

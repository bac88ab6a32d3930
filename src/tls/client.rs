//! Certificates that clients show (mTLS).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use pingora_core::protocols::tls::TlsRef;
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use super::files::ip;
use super::trust::{Believed, Trust};

/// Longest subject that is passed on; certificates of real authorities have a few dozen bytes.
const SUBJECT_BYTES_MAX: usize = 1024;
/// Alternative names of one certificate that are looked at, and their length.
const NAMES_MAX: usize = 64;
const NAME_BYTES_MAX: usize = 1024;

/// Who a client is, by a certificate that was verified.
#[derive(Debug)]
pub struct ClientCertificate {
    /// The subject, as `C=DE, O=Example, CN=client`, in printable ASCII, without a byte in a value that
    /// stands between values elsewhere: such bytes, and `%`, are percent-encoded. So no two subjects
    /// look alike.
    pub subject: String,
    /// The same, for a header. `None` where there is nothing to say.
    pub header: Option<HeaderValue>,
    /// The alternative names, as `DNS:client.example.com`, `URI:spiffe://…`, `email:…`, `IP:192.0.2.1`;
    /// only those that are printable ASCII without spaces.
    pub names: Vec<String>,
    /// In seconds since the Unix epoch.
    ends: i64,
    /// The client's own first.
    chain: Vec<CertificateDer<'static>>,
    trust: Arc<Trust>,
    /// By which of the listener's authorities in the course of time it was verified last.
    verified_by: AtomicU64,
}

/// Whether a certificate that was verified once is still good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Good,
    /// Its listener does not ask for certificates any more, so nobody vouches for it.
    NotAsked,
    /// It has ended, or its authority is not believed any more.
    Ended,
}

/// A certificate that says nothing that can be passed on whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the subject of the client's certificate can't be read, or is longer than {SUBJECT_BYTES_MAX} bytes"
)]
pub struct UnfitSubject;

impl ClientCertificate {
    /// The certificate of a connection's client, if it showed one, which `believed` have verified.
    ///
    /// # Errors
    /// If it can't be told from others by its subject.
    pub(super) fn of(
        tls: &TlsRef,
        trust: &Arc<Trust>,
        believed: &Believed,
    ) -> Result<Option<ClientCertificate>, UnfitSubject> {
        let Some(chain) = tls.peer_cert_chain_der() else {
            return Ok(None);
        };
        let Some(leaf) = chain.first() else {
            return Ok(None);
        };
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| UnfitSubject)?;
        let (subject, header) = named(certificate.subject())?;
        Ok(Some(ClientCertificate {
            subject,
            header,
            names: alternative_names(&certificate),
            ends: certificate.validity().not_after.timestamp(),
            chain: chain.to_vec(),
            trust: Arc::clone(trust),
            verified_by: AtomicU64::new(believed.number()),
        }))
    }

    /// What the client is called: by its subject, or, without one, by its first alternative name.
    pub fn name(&self) -> Option<&str> {
        let subject = Some(self.subject.as_str()).filter(|subject| !subject.is_empty());
        subject.or_else(|| self.names.first().map(String::as_str))
    }

    /// Whether it is good now: a connection may outlast the certificate it began with, and the
    /// authorities too.
    pub fn standing(&self, now: SystemTime) -> Standing {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let Some(believed) = self.trust.now() else {
            return Standing::NotAsked;
        };
        if i64::try_from(now.as_secs()).is_ok_and(|now| now > self.ends) {
            return Standing::Ended;
        }
        if self.verified_by.load(Ordering::Relaxed) == believed.number() {
            return Standing::Good;
        }
        let Some((leaf, intermediates)) = self.chain.split_first() else {
            return Standing::Ended;
        };
        match believed.verify(leaf, intermediates, now) {
            true => {
                self.verified_by.store(believed.number(), Ordering::Relaxed);
                Standing::Good
            }
            false => Standing::Ended,
        }
    }

    /// Whether the authorities in this file vouch for it.
    pub fn is_vouched_for_by(&self, ca: &Path) -> bool {
        self.trust.now().is_some_and(|believed| believed.ca() == ca)
    }
}

/// The subject, and the same for a header.
fn named(subject: &X509Name<'_>) -> Result<(String, Option<HeaderValue>), UnfitSubject> {
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
    Ok((text, header))
}

fn alternative_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let names = names.value.general_names.iter().filter_map(|name| {
        let name = match name {
            GeneralName::DNSName(name) => format!("DNS:{}", name.to_ascii_lowercase()),
            GeneralName::URI(uri) => format!("URI:{uri}"),
            GeneralName::RFC822Name(name) => format!("email:{name}"),
            GeneralName::IPAddress(bytes) => format!("IP:{}", ip(bytes)?),
            _ => return None,
        };
        let is_plain = name.bytes().all(|byte| byte.is_ascii_graphic());
        (is_plain && name.len() <= NAME_BYTES_MAX).then_some(name)
    });
    names.take(NAMES_MAX).collect()
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
        super::named(read.subject()).map(|(subject, _)| subject)
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

//! The certificates of a listener, chosen by the name the client asks for (SNI, RFC 6066 section 3) and
//! by the signatures it understands.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::stamp::Stamps;
use super::{CertificateFacts, CertificateFiles, DEVELOPMENT_COMMON_NAME, TlsFiles};
use crate::telemetry::metrics::metrics;

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

/// Finds the certificate for a name; the first one configured is the default. Swapped as a whole,
/// so that a connection sees either the old set or the new one.
#[derive(Debug)]
pub(super) struct Certificates {
    pub set: ArcSwap<Set>,
}

/// Certificates that were read and can be used.
#[derive(Debug)]
pub(super) struct Set {
    /// Where they come from, and what the files were like before they were read.
    pub files: Arc<TlsFiles>,
    pub stamps: Stamps,
    exact: HashMap<String, Keys>,
    /// `*.example.com`, kept as `example.com`.
    wildcard: HashMap<String, Keys>,
    default: Keys,
    /// When each ends, in seconds since the Unix epoch.
    ends: Vec<(PathBuf, i64)>,
}

/// Certificates for the same name, with keys of different kinds, in the order of the configuration.
type Keys = Vec<Arc<CertifiedKey>>;

impl Certificates {
    fn find(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let set = self.set.load();
        let keys = name.map_or(&set.default, |name| set.keys(name));
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        // Where none fits, the handshake says so to the client.
        keys.iter().find(fits).or_else(|| keys.first()).cloned()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name(), hello.signature_schemes())
    }
}

impl Set {
    /// Reads all pairs; one that can't be used fails the whole. This is the one place that supplies
    /// certificates for names.
    pub fn load(files: Arc<TlsFiles>) -> Result<Set, TlsError> {
        let stamps = Stamps::of(&files);
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        let mut ends = Vec::new();
        let mut first: Option<(Arc<CertifiedKey>, Option<String>)> = None;
        for pair in &files.certificates {
            let (certified, facts) = load_pair(pair)?;
            let certified = Arc::new(certified);
            ends.push((pair.cert.clone(), facts.not_after));
            first.get_or_insert_with(|| (Arc::clone(&certified), facts.names.first().cloned()));
            for name in facts.names {
                let keys: &mut Keys = match name.strip_prefix("*.") {
                    Some(parent) => wildcard.entry(parent.to_owned()).or_default(),
                    None => exact.entry(name).or_default(),
                };
                keys.push(Arc::clone(&certified));
            }
        }
        let (first, name) = first.ok_or(TlsError::None)?;
        let mut set = Set {
            files,
            stamps,
            exact,
            wildcard,
            default: vec![Arc::clone(&first)],
            ends,
        };
        // The default too may have keys of several kinds.
        let same = name.map(|name| set.keys(&name.replacen('*', "any", 1)).clone());
        if let Some(same) = same
            && same.first().is_some_and(|key| Arc::ptr_eq(key, &first))
        {
            set.default = same;
        }
        Ok(set)
    }

    fn keys(&self, name: &str) -> &Keys {
        let name = name.to_ascii_lowercase();
        let found = self.exact.get(&name).or_else(|| {
            // A wildcard stands for exactly one label (RFC 9525 section 6.3).
            name.split_once('.')
                .and_then(|(_, parent)| self.wildcard.get(parent))
        });
        found.unwrap_or(&self.default)
    }

    /// Shows when each certificate ends, in place of those of the set before.
    pub fn show(&self, listener: &str, before: Option<&Set>) {
        for (file, _) in before.iter().flat_map(|set| &set.ends) {
            if !self.ends.iter().any(|(other, _)| other == file) {
                metrics().forget_certificate(listener, &file.to_string_lossy());
            }
        }
        for (file, end) in &self.ends {
            metrics().certificate_ends(listener, &file.to_string_lossy(), *end);
        }
    }
}

/// Opens a pair and says what is in it, without using it.
pub fn inspect(files: &CertificateFiles) -> Result<CertificateFacts, TlsError> {
    load_pair(files).map(|(_, facts)| facts)
}

fn load_pair(files: &CertificateFiles) -> Result<(CertifiedKey, CertificateFacts), TlsError> {
    let content = |path: &Path, problem: String| TlsError::Content {
        path: path.to_owned(),
        problem,
    };
    let chain = chain(&files.cert, &read(&files.cert)?)?;
    let Some(leaf) = chain.first() else {
        return Err(TlsError::None);
    };
    let facts = facts(leaf).map_err(|e| content(&files.cert, e))?;
    let staple = match &files.ocsp {
        Some(path) => Some(load_staple(path, leaf)?),
        None => None,
    };
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|e| {
        content(
            &files.key,
            format!("holds no unencrypted private key in PEM (PKCS#8, PKCS#1 or SEC1): {e}"),
        )
    })?;
    let provider = rustls::crypto::ring::default_provider();
    let mut certified = CertifiedKey::from_der(chain, key, &provider).map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch {
            cert: files.cert.clone(),
            key: files.key.clone(),
        },
        other => content(&files.key, other.to_string()),
    })?;
    certified.ocsp = staple;
    Ok((certified, facts))
}

/// The certificates in a PEM file; at least one.
pub(super) fn chain(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = |problem: String| TlsError::Content {
        path: path.to_owned(),
        problem,
    };
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| content(format!("not PEM: {e}")))?;
    if chain.is_empty() {
        return Err(content(
            "holds no certificate (expected `-----BEGIN CERTIFICATE-----`)".into(),
        ));
    }
    Ok(chain)
}

/// An OCSP response in DER (RFC 6960 section 4.2.1). Whether it is still valid, and signed by the right
/// one, is for clients to see; here only what is certainly a mistake is.
fn load_staple(path: &Path, leaf: &CertificateDer<'_>) -> Result<Vec<u8>, TlsError> {
    const SUCCESSFUL: &[u8] = &[0x0a, 1, 0];
    let content = |problem: &str| TlsError::Content {
        path: path.to_owned(),
        problem: problem.to_owned(),
    };
    let der = read(path)?;
    let head = match der.as_slice() {
        [0x30, short, ..] if *short < 0x80 => 2,
        [0x30, long, ..] => 2 + usize::from(long & 0x7f),
        _ => return Err(content("holds no OCSP response in DER")),
    };
    if !der.get(head..).is_some_and(|d| d.starts_with(SUCCESSFUL)) {
        return Err(content(
            "holds no OCSP response, or one that says it failed",
        ));
    }
    let serial = X509Certificate::from_der(leaf)
        .map(|(_, certificate)| certificate.raw_serial().to_vec())
        .unwrap_or_default();
    if !der.windows(serial.len().max(1)).any(|part| part == serial) {
        return Err(content("is the OCSP response of another certificate"));
    }
    Ok(der)
}

/// Larger than any file of certificates should be; a mistaken path may lead to anything.
const FILE_BYTES_MAX: u64 = 1 << 20;

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    use std::io::Read as _;
    let attempt = || -> std::io::Result<Vec<u8>> {
        let file = std::fs::File::open(path)?;
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(std::io::Error::other("has more than 1 MiB"));
        }
        Ok(bytes)
    };
    attempt().map_err(|error| TlsError::Read {
        path: path.to_owned(),
        error,
    })
}

fn facts(leaf: &CertificateDer<'_>) -> Result<CertificateFacts, String> {
    let (_, cert) =
        X509Certificate::from_der(leaf).map_err(|e| format!("not an X.509 certificate: {e}"))?;
    let mut names = Vec::new();
    if let Ok(Some(san)) = cert.subject_alternative_name() {
        for name in &san.value.general_names {
            match name {
                GeneralName::DNSName(dns) => names.push(dns.to_ascii_lowercase()),
                GeneralName::IPAddress(bytes) => names.extend(ip(bytes)),
                _ => {}
            }
        }
    }
    let development = cert
        .subject()
        .iter_common_name()
        .any(|cn| cn.as_str().is_ok_and(|cn| cn == DEVELOPMENT_COMMON_NAME));
    Ok(CertificateFacts {
        names,
        not_before: cert.validity().not_before.timestamp(),
        not_after: cert.validity().not_after.timestamp(),
        development,
    })
}

fn ip(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|b| std::net::IpAddr::from(b).to_string());
    let v6 = <[u8; 16]>::try_from(bytes).map(|b| std::net::IpAddr::from(b).to_string());
    v4.or(v6).ok()
}

#[cfg(test)]
mod tests;

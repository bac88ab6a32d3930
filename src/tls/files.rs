//! Certificates from files: PEM for the certificate and its key, DER for a staple.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

use super::source::{Source, Supplied, Version};
use super::stamp::Stamps;
use super::{CertificateFacts, CertificateFiles, DEVELOPMENT_COMMON_NAME, TlsError};

/// Supplies what these files hold, in their order.
pub struct Files(pub Vec<CertificateFiles>);

impl Source for Files {
    fn supply(&self) -> Result<Vec<Supplied>, TlsError> {
        let pairs = self.0.iter().map(|pair| {
            let (key, facts) = load_pair(pair)?;
            Ok(Supplied {
                key: Arc::new(key),
                facts,
                origin: pair.cert.to_string_lossy().into_owned(),
            })
        });
        pairs.collect()
    }

    fn version(&self) -> Version {
        let paths = self.0.iter().flat_map(|pair| {
            let pair = [Some(&pair.cert), Some(&pair.key), pair.ocsp.as_ref()];
            pair.into_iter().flatten().map(PathBuf::as_path)
        });
        Version::of(&Stamps::of(paths))
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

/// What `openssl x509 -req` makes where it is given no extensions (RFC 5280 section 4.1.2.1).
pub const NOT_VERSION_3: &str = "is of X.509 version 1 or 2, which no client takes: make one of version 3, by giving it the names it is for (subjectAltName)";

fn facts(leaf: &CertificateDer<'_>) -> Result<CertificateFacts, String> {
    let (_, cert) =
        X509Certificate::from_der(leaf).map_err(|e| format!("not an X.509 certificate: {e}"))?;
    if cert.version() != X509Version::V3 {
        return Err(NOT_VERSION_3.into());
    }
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

pub(super) fn ip(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|b| std::net::IpAddr::from(b).to_string());
    let v6 = <[u8; 16]>::try_from(bytes).map(|b| std::net::IpAddr::from(b).to_string());
    v4.or(v6).ok()
}

#[cfg(test)]
mod tests;

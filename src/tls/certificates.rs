//! The certificates of a listener, chosen by the name the client asks for (SNI, RFC 6066 section 3).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CertificateFacts, CertificateFiles, DEVELOPMENT_COMMON_NAME};

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
pub struct Certificates {
    set: ArcSwap<Set>,
}

#[derive(Debug)]
struct Set {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// `*.example.com`, kept as `example.com`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    default: Arc<CertifiedKey>,
}

/// Certificates that were read and can be used, not yet in use.
pub struct PreparedCertificates(Arc<Set>);

impl Certificates {
    /// Reads all pairs; one that can't be used fails the whole.
    pub fn load(files: &[CertificateFiles]) -> Result<Certificates, TlsError> {
        Ok(Certificates {
            set: ArcSwap::from_pointee(Set::load(files)?),
        })
    }

    /// Reads all pairs for a later [`Certificates::install`], which can't fail any more.
    pub fn prepare(files: &[CertificateFiles]) -> Result<PreparedCertificates, TlsError> {
        Ok(PreparedCertificates(Arc::new(Set::load(files)?)))
    }

    /// Uses these from now on; connections that are there stay as they are.
    pub fn install(&self, prepared: PreparedCertificates) {
        self.set.store(prepared.0);
    }

    /// Reads all pairs again and swaps them in; on failure the old ones stay.
    pub fn reload(&self, files: &[CertificateFiles]) -> Result<(), TlsError> {
        self.install(Certificates::prepare(files)?);
        Ok(())
    }

    fn find(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let set = self.set.load();
        let Some(name) = name else {
            return Arc::clone(&set.default);
        };
        let name = name.to_ascii_lowercase();
        let found = set.exact.get(&name).or_else(|| {
            // A wildcard stands for exactly one label (RFC 9525 section 6.3).
            name.split_once('.')
                .and_then(|(_, parent)| set.wildcard.get(parent))
        });
        Arc::clone(found.unwrap_or(&set.default))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.find(hello.server_name()))
    }
}

impl Set {
    fn load(files: &[CertificateFiles]) -> Result<Set, TlsError> {
        let mut exact = HashMap::new();
        let mut wildcard = HashMap::new();
        let mut default = None;
        for pair in files {
            let (certified, facts) = load_pair(pair)?;
            let certified = Arc::new(certified);
            for name in facts.names {
                // The first certificate for a name wins, as the first of all is the default.
                match name.strip_prefix("*.") {
                    Some(parent) => wildcard.entry(parent.to_owned()),
                    None => exact.entry(name),
                }
                .or_insert_with(|| Arc::clone(&certified));
            }
            default.get_or_insert(certified);
        }
        Ok(Set {
            exact,
            wildcard,
            default: default.ok_or(TlsError::None)?,
        })
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
    let chain = CertificateDer::pem_slice_iter(&read(&files.cert)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| content(&files.cert, format!("not PEM: {e}")))?;
    let Some(leaf) = chain.first() else {
        return Err(content(
            &files.cert,
            "holds no certificate (expected `-----BEGIN CERTIFICATE-----`)".into(),
        ));
    };
    let facts = facts(leaf).map_err(|e| content(&files.cert, e))?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|e| {
        content(
            &files.key,
            format!("holds no unencrypted private key in PEM (PKCS#8, PKCS#1 or SEC1): {e}"),
        )
    })?;
    let provider = rustls::crypto::ring::default_provider();
    let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch {
            cert: files.cert.clone(),
            key: files.key.clone(),
        },
        other => content(&files.key, other.to_string()),
    })?;
    Ok((certified, facts))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Read {
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
mod tests {
    use super::*;

    fn pair(dir: &Path, stem: &str, names: &[&str]) -> CertificateFiles {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let files = CertificateFiles {
            cert: dir.join(format!("{stem}.crt")),
            key: dir.join(format!("{stem}.key")),
            development: false,
        };
        std::fs::write(&files.cert, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        files
    }

    fn leaf(key: &CertifiedKey) -> Vec<u8> {
        key.cert[0].to_vec()
    }

    #[test]
    fn the_name_chooses_the_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let first = pair(dir.path(), "a", &["a.example.com"]);
        let second = pair(dir.path(), "b", &["b.example.com", "*.b.example.com"]);
        let all = Certificates::load(&[first.clone(), second.clone()]).unwrap();
        let a = leaf(&all.find(Some("a.example.com")));
        let b = leaf(&all.find(Some("B.example.com")));
        assert_ne!(a, b);
        assert_eq!(leaf(&all.find(Some("x.b.example.com"))), b);
        assert_eq!(
            leaf(&all.find(Some("x.y.b.example.com"))),
            a,
            "a wildcard is one label"
        );
        assert_eq!(
            leaf(&all.find(Some("unknown.test"))),
            a,
            "the first is the default"
        );
        assert_eq!(leaf(&all.find(None)), a);
    }

    #[test]
    fn a_broken_pair_says_what_is_wrong_and_keeps_the_old_set() {
        let dir = tempfile::tempdir().unwrap();
        let good = pair(dir.path(), "good", &["good.test"]);
        let other = pair(dir.path(), "other", &["other.test"]);
        let set = Certificates::load(std::slice::from_ref(&good)).unwrap();
        let before = leaf(&set.find(None));

        let mixed = CertificateFiles {
            key: other.key.clone(),
            ..good.clone()
        };
        assert!(matches!(
            set.reload(&[mixed]),
            Err(TlsError::KeyMismatch { .. })
        ));
        let swapped = CertificateFiles {
            cert: good.key.clone(),
            key: good.cert.clone(),
            development: false,
        };
        assert!(
            set.reload(&[swapped])
                .unwrap_err()
                .to_string()
                .contains("holds no certificate")
        );
        std::fs::write(&good.cert, b"-----BEGIN CERTIFICATE-----\nAAAA").unwrap();
        assert!(matches!(set.reload(&[good]), Err(TlsError::Content { .. })));
        let missing = CertificateFiles {
            cert: dir.path().join("no"),
            ..other
        };
        assert!(matches!(set.reload(&[missing]), Err(TlsError::Read { .. })));
        assert!(matches!(set.reload(&[]), Err(TlsError::None)));
        assert_eq!(leaf(&set.find(None)), before);
    }
}

//! What Pingora connects to: address, TLS, protocol and timeouts of a server.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pingora_core::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora_core::protocols::tls::CaType;
use pingora_core::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora_core::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{ClientFiles, Protocol, Server, Settings};

/// Streams of one HTTP/2 connection to a server; what it allows itself may be less.
const H2_STREAMS_MAX: usize = 100;
/// An HTTP/2 connection that does not answer a ping is given up.
const H2_PING_EVERY: Duration = Duration::from_secs(30);
/// More than any bundle of authorities in use.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why the TLS files of a group can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("{path}: {error}", path = .path.display())]
    Read {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("{path}: {problem}", path = .path.display())]
    Content { path: PathBuf, problem: String },
}

/// The files of [`super::Tls`], read.
#[derive(Default)]
pub struct Tls {
    ca: Option<Arc<CaType>>,
    client: Option<Arc<CertKey>>,
    server_name: Option<String>,
    insecure: bool,
    /// Tells connections apart that were made under different rules.
    key: u64,
}

impl Tls {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// [`PeerError`], with the file's name.
    pub fn load(settings: &super::Tls) -> Result<Tls, PeerError> {
        let mut hasher = DefaultHasher::new();
        settings.hash(&mut hasher);
        let ca = match &settings.ca {
            None => None,
            Some(path) => {
                let authorities = certificates(path)?;
                authorities.hash(&mut hasher);
                let authorities: Vec<WrappedX509> = authorities
                    .into_iter()
                    .map(|der| WrappedX509::new(der, parse_x509))
                    .collect();
                Some(Arc::from(authorities))
            }
        };
        let client = match &settings.client {
            None => None,
            Some(files) => {
                let (chain, key) = pair(files)?;
                chain.hash(&mut hasher);
                Some(Arc::new(CertKey::new(chain, key)))
            }
        };
        Ok(Tls {
            ca,
            client,
            server_name: settings.server_name.clone(),
            insecure: settings.insecure,
            key: hasher.finish(),
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, PeerError> {
    let failed = |error| PeerError::Read {
        path: path.to_owned(),
        error,
    };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > FILE_BYTES_MAX {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    std::fs::read(path).map_err(failed)
}

/// The certificates of a PEM file, each of which can be parsed: Pingora panics on one that can't.
fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, PeerError> {
    let problem = |problem: &str| PeerError::Content {
        path: path.to_owned(),
        problem: problem.to_owned(),
    };
    let pem = read(path)?;
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| problem("is not PEM"))?;
        if X509Certificate::from_der(&certificate).is_err() {
            return Err(problem("holds something that is not an X.509 certificate"));
        }
        let mut store = rustls::RootCertStore::empty();
        if store.add(certificate.clone()).is_err() {
            return Err(problem("holds a certificate that can't be used for TLS"));
        }
        found.push(certificate.to_vec());
    }
    if found.is_empty() {
        return Err(problem("holds no certificate in PEM"));
    }
    Ok(found)
}

/// A certificate chain and its key, which belong together.
fn pair(files: &ClientFiles) -> Result<(Vec<Vec<u8>>, Vec<u8>), PeerError> {
    let chain = certificates(&files.cert)?;
    let problem = |problem: &str| PeerError::Content {
        path: files.key.clone(),
        problem: problem.to_owned(),
    };
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|_| problem("holds no unencrypted private key in PEM"))?;
    let der = key.secret_der().to_vec();
    let certified = rustls::sign::CertifiedKey::from_der(
        chain
            .iter()
            .map(|c| CertificateDer::from(c.clone()))
            .collect(),
        key,
        &rustls::crypto::ring::default_provider(),
    );
    match certified {
        Ok(_) => Ok((chain, der)),
        Err(_) => Err(problem("is not the key of the certificate")),
    }
}

/// A server as it is connected to, without its address.
pub fn template(server: &Server, settings: &Settings, tls: &Tls) -> HttpPeer {
    let address = SocketAddr::from(([0, 0, 0, 0], server.port));
    // The name is for TLS alone; without it, nothing has to be copied for each request.
    let name = match (server.tls, &tls.server_name) {
        (false, _) => String::new(),
        (true, Some(name)) => name.clone(),
        (true, None) => server.host.trim_end_matches('.').to_owned(),
    };
    let mut peer = HttpPeer::new(address, server.tls, name);
    let options = &mut peer.options;
    options.connection_timeout = Some(settings.connect_timeout);
    options.total_connection_timeout = Some(settings.connect_timeout);
    options.read_timeout = Some(settings.read_timeout);
    options.write_timeout = Some(settings.write_timeout);
    options.idle_timeout = Some(settings.keepalive_timeout);
    options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
    match settings.protocol {
        Protocol::Http1 => options.set_http_version(1, 1),
        Protocol::Http2 => {
            options.set_http_version(2, 2);
            options.max_h2_streams = H2_STREAMS_MAX;
            options.h2_ping_interval = Some(H2_PING_EVERY);
        }
    }
    if server.tls {
        options.verify_cert = !tls.insecure;
        options.verify_hostname = !tls.insecure;
        options.ca = tls.ca.clone();
        peer.client_cert_key = tls.client.clone();
        // Pingora's own key of a connection knows nothing of the authorities.
        peer.group_key = tls.key;
    }
    peer
}

/// The template with an address.
pub fn at(template: &HttpPeer, address: SocketAddr) -> HttpPeer {
    /// Tells connections apart that serve one request each.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut peer = template.clone();
    peer._address = PeerAddress::Inet(address);
    if peer.options.idle_timeout == Some(Duration::ZERO) {
        // Pingora's pool would have it for a moment, which is enough for another request to take it.
        peer.group_key ^= NEXT.fetch_add(1, Ordering::Relaxed).rotate_left(32);
    }
    peer
}

//! The TLS side of a listener: what ends TLS, and how it changes while connections come and go.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::tls::TlsRef;
use rustls::ServerConfig;

use super::ClientCertificates;
use super::certificates::{Certificates, Set};
use super::client::{ClientCertificate, UnfitSubject};
use super::files::read;
use super::source::{Tls, TlsError, Version};
use super::trust::{Believed, Trust};
use crate::telemetry::metrics::metrics;

/// How often sources are asked for changes. One is taken over once there was none for two looks, so
/// that the files of a certificate and its key can be replaced one after the other.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Ends TLS on a listener. Connections that are there stay as they are when it changes.
pub struct Terminator {
    /// For logs and metrics: its address.
    listener: String,
    certificates: Arc<Certificates>,
    handshakes: ArcSwap<Handshakes>,
    trust: Arc<Trust>,
}

/// How handshakes are made, with the tickets that lead back to them. A client must not get around the
/// question for its certificate with a ticket from elsewhere, so each listener has its own key for
/// tickets, and a new one where the question changes.
pub struct Handshakes {
    clients: Option<ClientCertificates>,
    /// The authorities, as they were read.
    authorities: Vec<u8>,
    acceptor: Acceptor,
    believed: Option<Arc<Believed>>,
    trust: Arc<Trust>,
}

/// What a terminator can change to without failing.
pub struct Prepared {
    set: Arc<Set>,
    /// `None` where what is asked of clients is the same.
    handshakes: Option<Arc<Handshakes>>,
}

impl Terminator {
    /// Takes what is supplied; one certificate that can't be used fails the whole.
    pub fn new(listener: String, tls: impl Into<Tls>) -> Result<Terminator, TlsError> {
        let set = Set::load(Arc::new(tls.into()))?;
        set.show(&listener, None);
        let clients = set.from.clients.clone();
        let certificates = Arc::new(Certificates {
            set: ArcSwap::from_pointee(set),
        });
        let authorities = authorities(clients.as_ref())?;
        let trust = Arc::<Trust>::default();
        let handshakes = Handshakes::new(&certificates, clients, authorities, &trust)?;
        trust.change(handshakes.believed.clone());
        Ok(Terminator {
            listener,
            certificates,
            handshakes: ArcSwap::from_pointee(handshakes),
            trust,
        })
    }

    /// Takes what is supplied for a later [`Terminator::install`], which can't fail any more.
    pub fn prepare(&self, tls: impl Into<Tls>) -> Result<Prepared, TlsError> {
        self.prepare_shared(Arc::new(tls.into()))
    }

    fn prepare_shared(&self, tls: Arc<Tls>) -> Result<Prepared, TlsError> {
        let set = Arc::new(Set::load(tls)?);
        let clients = set.from.clients.clone();
        let authorities = authorities(clients.as_ref())?;
        let now = self.handshakes.load();
        let is_same = now.clients == clients && now.authorities == authorities;
        let handshakes = match is_same {
            true => None,
            false => Some(Arc::new(Handshakes::new(
                &self.certificates,
                clients,
                authorities,
                &self.trust,
            )?)),
        };
        Ok(Prepared { set, handshakes })
    }

    /// Uses these from now on.
    pub fn install(&self, prepared: Prepared) {
        let before = self.certificates.set.swap(Arc::clone(&prepared.set));
        prepared.set.show(&self.listener, Some(&before));
        if let Some(handshakes) = prepared.handshakes {
            let believed = handshakes.believed.clone();
            self.handshakes.store(handshakes);
            // Who has come before is asked by the new authorities from now on.
            self.trust.change(believed);
        }
    }

    /// How the next connection's handshake is made.
    pub fn handshakes(&self) -> Arc<Handshakes> {
        self.handshakes.load_full()
    }
}

impl Handshakes {
    pub fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// Who the client is, once the handshake is made.
    ///
    /// # Errors
    /// If its certificate can't be told from others by its subject.
    pub fn client(&self, tls: &TlsRef) -> Result<Option<ClientCertificate>, UnfitSubject> {
        match &self.believed {
            Some(believed) => ClientCertificate::of(tls, &self.trust, believed),
            None => Ok(None),
        }
    }

    fn new(
        certificates: &Arc<Certificates>,
        clients: Option<ClientCertificates>,
        authorities: Vec<u8>,
        trust: &Arc<Trust>,
    ) -> Result<Handshakes, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(TlsError::Rustls)?;
        let believed = match &clients {
            None => None,
            Some(clients) => Some(Arc::new(Believed::new(clients, &authorities)?)),
        };
        let builder = match &believed {
            None => builder.with_no_client_auth(),
            Some(believed) => builder.with_client_cert_verifier(Arc::clone(&believed.verifier)),
        };
        let mut config = builder.with_cert_resolver(Arc::clone(certificates) as Arc<_>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // All suites are strong; ours come first all the same, as scanners want to see.
        config.ignore_client_order = true;
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(TlsError::Rustls)?;
        Ok(Handshakes {
            clients,
            authorities,
            acceptor: Acceptor::from_server_config(Arc::new(config)),
            believed,
            trust: Arc::clone(trust),
        })
    }
}

fn authorities(clients: Option<&ClientCertificates>) -> Result<Vec<u8>, TlsError> {
    clients.map_or(Ok(Vec::new()), |clients| read(&clients.ca))
}

/// Takes over certificates that change, for ever. What can't be used changes nothing, and is said to be so once.
pub async fn watch(terminators: Vec<Arc<Terminator>>) {
    let mut watched: Vec<Watched> = terminators.into_iter().map(Watched::new).collect();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for one in &mut watched {
            one.look();
        }
    }
}

struct Watched {
    terminator: Arc<Terminator>,
    /// What the last look saw, where that was new.
    new: Option<Version>,
    /// What was tried and could not be used.
    refused: Option<Version>,
}

impl Watched {
    fn new(terminator: Arc<Terminator>) -> Watched {
        Watched {
            terminator,
            new: None,
            refused: None,
        }
    }

    fn look(&mut self) {
        let before = self.terminator.certificates.set.load_full();
        let version = before.from.version();
        if version == before.version || self.refused == Some(version) {
            self.new = None;
            return;
        }
        let is_settled = self.new == Some(version);
        self.new = Some(version);
        if !is_settled {
            return;
        }
        let listener = &self.terminator.listener;
        match self.terminator.prepare_shared(Arc::clone(&before.from)) {
            Ok(prepared) => {
                // A reload of the configuration may have come first; it has read the new files too.
                let now = self.terminator.certificates.set.load();
                if Arc::ptr_eq(&now, &before) {
                    self.terminator.install(prepared);
                }
                self.refused = None;
                metrics().certificate_reload("ok");
                tracing::info!(listener, "changed certificates were taken over");
            }
            Err(error) => {
                self.refused = Some(version);
                metrics().certificate_reload("refused");
                tracing::error!(listener, %error, "changed certificates can't be used; those in use stay");
            }
        }
    }
}

#[cfg(test)]
mod tests;

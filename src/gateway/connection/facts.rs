//! What is known of a client's connection, for all requests on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use tokio::sync::Notify;

use crate::tls::ClientCertificate;

/// What is known of a client's connection. Learned once, before the first request.
#[derive(Debug, Default)]
pub struct Facts {
    /// The socket's other end.
    pub peer: Option<SocketAddr>,
    /// Whom the load balancer at the other end speaks for (PROXY protocol).
    pub proxied: Option<SocketAddr>,
    /// Who the client is by its certificate.
    pub certificate: Option<ClientCertificate>,
    /// Requests so far, and those being answered; of HTTP/2 only.
    requests: AtomicU32,
    active: AtomicU32,
    /// Told when the connection has served all the requests it may.
    spent: Notify,
}

/// A request that is being answered on a connection.
pub struct OnConnection(Arc<ProxyDigest>);

impl Facts {
    pub fn new(peer: Option<SocketAddr>, proxied: Option<SocketAddr>) -> Facts {
        Facts {
            peer,
            proxied,
            ..Facts::default()
        }
    }

    /// Packed so that Pingora carries it to each session: it has no other place for data of the
    /// user's on connections without TLS.
    pub fn packed(self) -> Option<Arc<ProxyDigest>> {
        // No proxy answered anything: the head stands for none.
        let none = ResponseHeader::build_no_case(200, Some(0)).ok()?;
        let user_data = Some(Box::new(self) as Box<dyn std::any::Any + Send + Sync>);
        Some(Arc::new(ProxyDigest::new(Box::new(none), user_data)))
    }

    /// Where the connection comes from, as far as connections go.
    pub fn source(&self) -> Option<SocketAddr> {
        self.proxied.or(self.peer)
    }

    pub fn of(digest: &ProxyDigest) -> Option<&Facts> {
        digest.user_data.as_ref()?.downcast_ref()
    }

    pub async fn spent(&self) {
        self.spent.notified().await;
    }

    pub fn is_idle(&self) -> bool {
        self.active.load(Ordering::Relaxed) == 0
    }
}

/// What is known of a request's connection.
pub fn facts(session: &Session) -> Option<&Facts> {
    Facts::of(session.digest()?.proxy_digest.as_deref()?)
}

/// Counts a request of an HTTP/2 connection, which ends after so many. Pingora does that for HTTP/1.
pub fn count_request(session: &Session, requests_max: u32) -> Option<OnConnection> {
    let digest = session.digest()?.proxy_digest.as_ref()?;
    let facts = Facts::of(digest)?;
    facts.active.fetch_add(1, Ordering::Relaxed);
    if facts.requests.fetch_add(1, Ordering::Relaxed) + 1 == requests_max {
        facts.spent.notify_one();
    }
    Some(OnConnection(Arc::clone(digest)))
}

impl Drop for OnConnection {
    fn drop(&mut self) {
        if let Some(facts) = Facts::of(&self.0) {
            facts.active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

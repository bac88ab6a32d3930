//! What is known of a client's connection, for all requests on it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use tokio::sync::Notify;

use super::caps::{Client, ClientCaps, Requests, TooMany};
use super::proxy_header::Proxied;
use crate::gateway::Bounds;
use crate::tls::{ClientCertificate, Standing};

/// What is known of a client's connection. Learned once, before the first request.
#[derive(Debug)]
pub struct Facts {
    /// The socket's other end.
    pub peer: Option<SocketAddr>,
    /// What the load balancer at the other end says of whom it speaks for (PROXY protocol); `None`
    /// where none has to say it.
    pub proxied: Option<Proxied>,
    /// Who the client is by its certificate.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// Whose requests come in; `None` where those of several clients do, by a trusted proxy.
    pub client: Option<Arc<Client>>,
    caps: ClientCaps,
    /// Requests so far, and those being answered; of HTTP/2 only.
    requests: AtomicU32,
    active: AtomicU32,
    /// Told when the connection has served all the requests it may.
    spent: Notify,
}

/// The connection's certificate was good when it began, and is not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotGood;

/// A request that is being answered on a connection.
pub struct OnConnection(Arc<ProxyDigest>);

impl Facts {
    pub fn new(peer: Option<SocketAddr>, proxied: Option<Proxied>, caps: ClientCaps) -> Facts {
        Facts {
            peer,
            proxied,
            certificate: None,
            client: None,
            caps,
            requests: AtomicU32::new(0),
            active: AtomicU32::new(0),
            spent: Notify::new(),
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
        match self.proxied {
            Some(Proxied::Client(client)) => Some(client),
            Some(Proxied::Unknown) | None => self.peer,
        }
    }

    /// Whether whoever is at the source may be a proxy that speaks for others. Where a load balancer
    /// passes bytes on and does not say whose, they are a client's, whatever its own address is.
    pub fn may_be_proxy(&self) -> bool {
        self.proxied != Some(Proxied::Unknown)
    }

    pub fn of(digest: &ProxyDigest) -> Option<&Facts> {
        digest.user_data.as_ref()?.downcast_ref()
    }

    /// To count the streams of this connection by their frames; `None` where each is counted for its
    /// own client, once that is known.
    pub fn streams(&self) -> Option<Requests> {
        let client = self.client.as_ref()?;
        Some(self.caps.requests(Some(Arc::clone(client))))
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

/// Who a request's client is by its certificate. Where that is not good any more, the connection is of
/// no use to anybody.
pub fn certificate(session: &Session) -> Result<Option<Arc<ClientCertificate>>, NotGood> {
    let facts = facts(session);
    let Some((facts, shown)) = facts.and_then(|facts| Some((facts, facts.certificate.as_ref()?)))
    else {
        return Ok(None);
    };
    match shown.standing(SystemTime::now()) {
        Standing::Good => Ok(Some(Arc::clone(shown))),
        Standing::NotAsked => Ok(None),
        Standing::Ended => {
            facts.spent.notify_one();
            Err(NotGood)
        }
    }
}

/// Counts a request that is about to be answered, of `client` where a trusted proxy speaks for it.
/// The count is kept as long as what is returned, but for HTTP/2, whose streams are counted until
/// their answers have left.
pub fn count_at_once(
    session: &Session,
    client: Option<IpAddr>,
    bounds: &Bounds,
) -> (Option<Requests>, Result<(), TooMany>) {
    let Some(facts) = facts(session) else {
        return (None, Ok(()));
    };
    if session.as_downstream().is_http2()
        && let Some(client) = &facts.client
    {
        return (None, client.check(bounds));
    }
    let client = match &facts.client {
        Some(client) => Some(Arc::clone(client)),
        None => client.map(|address| facts.caps.client(address)),
    };
    let mut requests = facts.caps.requests(client);
    requests.add();
    let checked = requests.check(bounds);
    (Some(requests), checked)
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

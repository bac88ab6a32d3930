//! What happens to a connection before a request exists: caps, TLS, the checks of what comes in, and
//! the deadlines that Pingora does not have.
//!
//! Pingora's timeouts are per read, so a client that sends a byte a second stays for ever, and so
//! does one that negotiates HTTP/2 and then says nothing. The wrappers here close both gaps.

mod caps;
mod client_stream;
mod facts;
mod frames;
mod framing;
mod overdue;
mod proxy_header;
mod stall;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::H2Options;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{ALPN, GetSocketDigest, Stream, l4};
use pingora_core::server::ShutdownWatch;
use tokio::sync::watch;

use super::client_address::is_trusted;
use super::{Settings, Shared};
use crate::sandbox::keep_pages_at_hand;
use crate::telemetry::metrics::metrics;
use crate::tls::Terminator;
pub use caps::ClientCaps;
pub(super) use caps::{Requests, TooMany};
use client_stream::{ClientStream, Http1, Http2, Protocol};
pub(super) use facts::{
    Facts, NotGood, OnConnection, certificate, count_at_once, count_request, facts,
};
pub(super) use framing::Refusal;
pub(super) use overdue::Report;
use overdue::{Due, Ending};

tokio::task_local! {
    /// How far the connection is that this task works on; of HTTP/1 only.
    static PROGRESS: Arc<Progress>;
    /// What ends the request that this task works on; of HTTP/2 only.
    static DUE: Arc<Due>;
}

struct Progress {
    started: Instant,
    /// By when the head must have been read that is being awaited, in milliseconds since `started`;
    /// [`HEAD_READ`] when none is.
    head_due_ms: AtomicU64,
    /// The answer switches to another protocol (101).
    switched: AtomicBool,
    /// What ends the request that is worked on.
    ending: Ending,
}

const HEAD_READ: u64 = u64::MAX;

impl Progress {
    fn new() -> Progress {
        Progress {
            started: Instant::now(),
            head_due_ms: AtomicU64::new(HEAD_READ),
            switched: AtomicBool::new(false),
            ending: Ending::default(),
        }
    }

    /// A head is being awaited, from now on, for so long.
    fn await_head(&self, timeout: Duration) {
        let due = self.started.elapsed().saturating_add(timeout);
        let due_ms = u64::try_from(due.as_millis()).unwrap_or(HEAD_READ - 1);
        self.head_due_ms.store(due_ms, Ordering::Relaxed);
    }

    /// Returns when a head has not come in time. No head may be given less time than `timeout_min`.
    ///
    /// One timer serves the whole connection: it is looked up when it ends whether the head that it was
    /// set for has come. Setting one for each request costs more than all other bookkeeping of it.
    async fn overdue(&self, timeout_min: Duration) {
        loop {
            let due_ms = self.head_due_ms.load(Ordering::Relaxed);
            if due_ms == HEAD_READ {
                // The next head is awaited from now on at the earliest.
                tokio::time::sleep(timeout_min).await;
                continue;
            }
            let left = Duration::from_millis(due_ms).saturating_sub(self.started.elapsed());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// Says that the head of the request handled by this task has been read.
pub(super) fn mark_head_read() {
    // Outside of a connection task (HTTP/2 streams) there is no deadline to stop.
    let _ = PROGRESS.try_with(|progress| progress.head_due_ms.store(HEAD_READ, Ordering::Relaxed));
}

/// Says that what follows on this connection is not HTTP any more. To be called before the client is told.
pub(super) fn mark_switched() {
    let _ = PROGRESS.try_with(|progress| progress.switched.store(true, Ordering::Relaxed));
}

/// Says that the body of an HTTP/2 request is awaited, and until when; one that does not come ends it.
pub(super) fn await_body(at: Instant, report: Report) {
    let _ = DUE.try_with(|due| due.begin(at, report));
}

/// Says that a part of the body has come, and when the next is due; `None` after the last.
pub(super) fn body_due(at: Option<Instant>) {
    let _ = DUE.try_with(|due| due.set(at));
}

/// Has the request ended, of HTTP/1 with its connection, when `until` resolves before [`is_over`] is said.
pub(super) fn end_when(until: impl Future<Output = ()> + Send + 'static, report: Report) {
    with_ending(|ending| ending.set(until, report));
}

/// Says that the request has come to its end.
pub(super) fn is_over() {
    with_ending(Ending::clear);
}

fn with_ending(work: impl FnOnce(&Ending)) {
    let mut work = Some(work);
    let of_stream = DUE.try_with(|due| work.take().map(|work| work(&due.ending)));
    if of_stream.is_err() {
        let _ = PROGRESS.try_with(|progress| work.take().map(|work| work(&progress.ending)));
    }
}

fn head_is_read() -> bool {
    PROGRESS
        .try_with(|progress| progress.head_due_ms.load(Ordering::Relaxed) == HEAD_READ)
        .unwrap_or(true)
}

fn is_switched() -> bool {
    PROGRESS
        .try_with(|progress| progress.switched.load(Ordering::Relaxed))
        .unwrap_or(false)
}

/// Left on a connection that goes on to its next request.
pub(super) struct Reused;

/// The outermost application of a listener, called once per connection.
pub struct Gate<A> {
    pub app: Arc<A>,
    pub shared: Arc<Shared>,
    pub caps: ClientCaps,
    /// Terminates TLS here rather than in Pingora's listener, where the handshake's timeout is
    /// fixed and the `ServerConfig` is out of reach.
    pub tls: Option<Arc<Terminator>>,
    /// Whether each connection begins with a header of the PROXY protocol.
    pub proxy_protocol: bool,
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> ServerApp for Gate<A> {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let mut open = self.caps.open()?;
        keep_pages_at_hand();
        let mut tcp: Box<l4::stream::Stream> = stream.into_any().downcast().ok()?;
        let plan = self.shared.plan.load_full();
        let settings = &plan.settings;
        let mut facts = self.learn(&mut tcp, settings).await?;
        // All clients of a trusted proxy come from its address.
        if let Some(source) = canonical(facts.source())
            && !(facts.may_be_proxy() && is_trusted(Some(source), settings))
        {
            let client = self.caps.client(source);
            if !open.count_for(&client) {
                return None;
            }
            facts.client = Some(client);
        }
        let io: Stream = match &self.tls {
            None => tcp,
            Some(terminator) => {
                let timeout = settings.timeouts.tls_handshake;
                let handshakes = terminator.handshakes();
                let io = handshake(handshakes.acceptor(), *tcp, timeout).await?;
                facts.certificate = match io.get_ssl().map(|tls| handshakes.client(tls)) {
                    Some(Ok(certificate)) => certificate.map(Arc::new),
                    None => None,
                    Some(Err(error)) => {
                        tracing::warn!(%error, "a connection was refused");
                        return None;
                    }
                };
                io
            }
        };
        let facts = facts.packed()?;
        if matches!(io.selected_alpn_proto(), Some(ALPN::H2)) {
            self.http2(io, facts, settings, shutdown).await
        } else {
            let protocol = Protocol::Http1(Http1::new(Arc::clone(&self.shared), settings));
            let stream = Box::new(ClientStream {
                io,
                facts,
                protocol,
            });
            let head_timeout = settings.timeouts.request_head;
            let progress = Arc::new(Progress::new());
            let work = self.app.process_new(stream, shutdown);
            let work = PROGRESS.scope(Arc::clone(&progress), work);
            tokio::select! {
                biased;
                left = work => left,
                () = progress.overdue(head_timeout) => None,
                report = progress.ending.ended() => {
                    report();
                    None
                }
            }
        }
    }

    async fn cleanup(&self) {
        self.app.cleanup().await;
    }
}

impl<A: ServerApp + Send + Sync + 'static> Gate<A> {
    /// Where the connection comes from. `None` ends it: where a load balancer has to say it, only one
    /// that is trusted may, in time and in good form.
    async fn learn(&self, tcp: &mut l4::stream::Stream, settings: &Settings) -> Option<Facts> {
        let digest = tcp.get_socket_digest();
        let peer = digest.and_then(|digest| digest.peer_addr()?.as_inet().copied());
        if !self.proxy_protocol {
            return Some(Facts::new(peer, None, self.caps.clone()));
        }
        let header = async {
            if !is_trusted(canonical(peer), settings) {
                return Err(std::io::ErrorKind::PermissionDenied.into());
            }
            let header = proxy_header::read(tcp);
            tokio::time::timeout(settings.timeouts.request_head, header).await?
        };
        match header.await {
            Ok(proxied) => Some(Facts::new(peer, Some(proxied), self.caps.clone())),
            Err(error) => {
                metrics().connection_refused("proxy_header");
                tracing::debug!(%error, ?peer, "a connection without a PROXY protocol header to believe");
                None
            }
        }
    }

    /// Serves a connection until it ends; tells the client to go (GOAWAY) when it has had all the
    /// requests it may, or when the gateway stops.
    async fn http2(
        &self,
        io: Stream,
        facts: Arc<ProxyDigest>,
        settings: &Settings,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let http2 = Http2::new(settings, &facts);
        let stream = Box::new(ClientStream {
            io,
            facts: Arc::clone(&facts),
            protocol: Protocol::Http2(http2),
        });
        let (tell, told) = watch::channel(*shutdown.borrow());
        let mut shutdown = shutdown.clone();
        let work = self.app.process_new(stream, &told);
        tokio::pin!(work);
        tokio::select! {
            biased;
            left = &mut work => return left,
            _ = shutdown.changed() => {
                tell.send_replace(true);
                return work.await;
            }
            () = spent(&facts) => {
                tell.send_replace(true);
            }
        }
        // Pingora would wait for the client to close. One that has nothing more to get is not awaited.
        loop {
            tokio::select! {
                biased;
                left = &mut work => return left,
                () = tokio::time::sleep(settings.timeouts.keepalive) => {
                    if Facts::of(&facts).is_none_or(Facts::is_idle) {
                        return None;
                    }
                }
            }
        }
    }
}

fn canonical(address: Option<SocketAddr>) -> Option<IpAddr> {
    address.map(|address| address.ip().to_canonical())
}

async fn handshake(
    acceptor: &Acceptor,
    tcp: l4::stream::Stream,
    timeout: Duration,
) -> Option<Stream> {
    match tokio::time::timeout(timeout, acceptor.tls_handshake(tcp)).await {
        Ok(Ok(stream)) => {
            metrics().tls_handshake("ok");
            Some(Box::new(stream))
        }
        Ok(Err(error)) => {
            metrics().tls_handshake("failed");
            tracing::debug!(%error, "TLS handshake failed");
            None
        }
        Err(_) => {
            metrics().tls_handshake("timeout");
            None
        }
    }
}

async fn spent(facts: &ProxyDigest) {
    match Facts::of(facts) {
        Some(facts) => facts.spent().await,
        None => std::future::pending().await,
    }
}

/// Gives the whole head of an HTTP/1 request a deadline, the wait for the next request on a
/// kept-alive connection included.
pub struct HeadDeadline<P> {
    pub inner: Arc<P>,
    pub timeout: Duration,
    /// How long a connection that has served a request may wait for the next one.
    pub keepalive: Duration,
    /// How long idle connections are left open after shutdown began, so that a request already on
    /// its way is still answered (with `Connection: close`).
    pub drain: Duration,
}

impl<P: HttpServerApp + Send + Sync + 'static> HeadDeadline<P> {
    /// Serves a request, and resets it where its body does not come in time or its key is stopped. (A body
    /// that is read here rather than by Pingora has its own deadline, and a proper answer.)
    async fn http2(&self, session: ServerSession, shutdown: &ShutdownWatch) {
        let due = Arc::<Due>::default();
        let work = self.inner.process_new_http(session, shutdown);
        let work = DUE.scope(Arc::clone(&due), work);
        tokio::select! {
            biased;
            _ = work => {}
            report = due.overdue() => {
                if let Some(report) = report {
                    report();
                }
            }
            report = due.ending.ended() => report(),
        }
    }
}

#[async_trait]
impl<P: HttpServerApp + Send + Sync + 'static> HttpServerApp for HeadDeadline<P> {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if session.is_http2() {
            self.http2(session, shutdown).await;
            return None;
        }
        session.set_pipelining_enabled(true);
        let reused = session.take_connection_user_context().is_some();
        let timeout = if reused {
            self.keepalive + self.timeout
        } else {
            self.timeout
        };
        let _ = PROGRESS.try_with(|progress| progress.await_head(timeout));
        self.inner.process_new_http(session, shutdown).await
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.inner.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        self.inner.server_options()
    }

    async fn http_cleanup(&self) {
        tokio::time::sleep(self.drain).await;
        self.inner.http_cleanup().await;
    }
}

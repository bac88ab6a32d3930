//! What happens to a connection before a request exists: caps, TLS, and the deadlines that Pingora
//! does not have.
//!
//! Pingora's timeouts are per read, so a client that sends a byte a second stays for ever, and so
//! does one that negotiates HTTP/2 and then says nothing. The wrappers here close both gaps.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::H2Options;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::{SslDigest, TlsRef};
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    Stream, TimingDigest, UniqueID, UniqueIDType, l4,
};
use pingora_core::server::ShutdownWatch;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::telemetry::metrics::metrics;

tokio::task_local! {
    /// Set once the request's head has been read whole.
    static HEAD_READ: Arc<AtomicBool>;
}

/// Says that the head of the request handled by this task has been read.
pub(super) fn mark_head_read() {
    // Outside of a connection task (HTTP/2 streams) there is no deadline to stop.
    let _ = HEAD_READ.try_with(|read| read.store(true, Ordering::Relaxed));
}

/// Left on a connection that goes on to its next request.
pub(super) struct Reused;

/// Counts connections over all listeners and refuses those over the cap.
#[derive(Clone)]
pub struct ConnectionCap {
    open: Arc<AtomicUsize>,
    max: usize,
}

struct Open(Arc<AtomicUsize>);

impl ConnectionCap {
    pub fn new(max: usize) -> ConnectionCap {
        ConnectionCap {
            open: Arc::default(),
            max,
        }
    }

    fn open(&self) -> Option<Open> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        metrics().connections.inc();
        let open = Open(Arc::clone(&self.open));
        if before >= self.max {
            metrics().connections_refused.inc();
            return None;
        }
        Some(open)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
        metrics().connections.dec();
    }
}

/// The outermost application of a listener, called once per connection.
pub struct Gate<A> {
    pub app: Arc<A>,
    pub cap: ConnectionCap,
    /// Terminates TLS here rather than in Pingora's listener, where the handshake's timeout is
    /// fixed and the `ServerConfig` is out of reach.
    pub tls: Option<Acceptor>,
    pub handshake_timeout: Duration,
    pub preface_timeout: Duration,
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> ServerApp for Gate<A> {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let _open = self.cap.open()?;
        let stream = match &self.tls {
            None => stream,
            Some(acceptor) => self.handshake(acceptor, stream).await?,
        };
        let stream = if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            Box::new(Preface {
                io: stream,
                read: 0,
                deadline: Some(Box::pin(tokio::time::sleep(self.preface_timeout))),
            })
        } else {
            stream
        };
        self.app.process_new(stream, shutdown).await
    }

    async fn cleanup(&self) {
        self.app.cleanup().await;
    }
}

impl<A> Gate<A> {
    async fn handshake(&self, acceptor: &Acceptor, stream: Stream) -> Option<Stream> {
        let tcp: Box<l4::stream::Stream> = stream.into_any().downcast().ok()?;
        match tokio::time::timeout(self.handshake_timeout, acceptor.tls_handshake(*tcp)).await {
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

#[async_trait]
impl<P: HttpServerApp + Send + Sync + 'static> HttpServerApp for HeadDeadline<P> {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if session.is_http2() {
            return self.inner.process_new_http(session, shutdown).await;
        }
        session.set_pipelining_enabled(true);
        let reused = session.take_connection_user_context().is_some();
        let timeout = if reused {
            self.keepalive + self.timeout
        } else {
            self.timeout
        };
        let read = Arc::new(AtomicBool::new(false));
        let work = HEAD_READ.scope(
            Arc::clone(&read),
            self.inner.process_new_http(session, shutdown),
        );
        tokio::pin!(work);
        tokio::select! {
            biased;
            reused = &mut work => return reused,
            () = tokio::time::sleep(timeout) => {}
        }
        if read.load(Ordering::Relaxed) {
            work.await
        } else {
            None
        }
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

/// Bytes of the HTTP/2 connection preface (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;

/// Fails reads until the client has sent the whole preface in time: Pingora awaits it without a
/// timeout.
#[derive(Debug)]
struct Preface {
    io: Stream,
    read: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Preface {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        self.read = self.read.saturating_add(buf.filled().len() - before);
        if self.read >= PREFACE_BYTES {
            self.deadline = None;
        }
        if result.is_ready() {
            return result;
        }
        if let Some(deadline) = self.deadline.as_mut() {
            ready!(deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl AsyncWrite for Preface {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Preface {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut *self.io).await;
    }
}

impl UniqueID for Preface {
    fn id(&self) -> UniqueIDType {
        self.io.id()
    }
}

impl Ssl for Preface {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.io.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.io.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.io.selected_alpn_proto()
    }
}

impl GetTimingDigest for Preface {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.io.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.io.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.io.get_write_pending_time()
    }
}

impl GetProxyDigest for Preface {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.io.get_proxy_digest()
    }
}

impl GetSocketDigest for Preface {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.io.get_socket_digest()
    }
}

#[async_trait]
impl Peek for Preface {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        self.io.try_peek(buf).await
    }
}

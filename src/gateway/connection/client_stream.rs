//! The stream of a client's connection, as Pingora gets it: what the client sends is checked before
//! Pingora reads it, and what Pingora would answer to an unreadable head is put into our own form.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::{SslDigest, TlsRef};
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    Stream, TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::caps::TooMany;
use super::facts::Facts;
use super::frames::{Frames, Streams};
use super::framing::{Framing, Refusal};
use super::stall::Stall;
use super::{head_is_read, is_switched};
use crate::gateway::respond::refusal_answer;
use crate::gateway::{Bounds, Settings, Shared};
use crate::telemetry::metrics::metrics;

/// A client's connection.
pub struct ClientStream {
    pub io: Stream,
    pub facts: Arc<ProxyDigest>,
    pub protocol: Protocol,
}

/// What is spoken on it.
pub enum Protocol {
    Http1(Http1),
    Http2(Http2),
}

pub struct Http1 {
    shared: Arc<Shared>,
    framing: Framing,
    refusal: Option<Refusal>,
    /// How much has been read of [`UNREADABLE`], which takes the place of what was refused.
    unreadable_bytes: usize,
    /// Our answer to a head that can't be read, while it is written.
    answer: Option<Bytes>,
    /// Pingora has a timeout for writing bodies, but none for heads and ends.
    stall: Stall,
}

pub struct Http2 {
    frames: Frames,
    /// `None` where each is counted for its own client.
    streams: Option<Streams>,
    preface: Option<Preface>,
    /// Pingora's timeout for writing ends where the library takes what is written.
    stall: Stall,
    bounds: Bounds,
}

/// No part of an HTTP/1 request may begin with it, so that Pingora refuses the request wherever it is.
const UNREADABLE: &[u8] = b"\rx";

/// Bytes of the HTTP/2 connection preface (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;

/// The preface must come in time: Pingora awaits it without a timeout.
struct Preface {
    read: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Http1 {
    pub fn new(shared: Arc<Shared>, settings: &Settings) -> Http1 {
        Http1 {
            framing: Framing::new(&settings.bounds),
            stall: Stall::new(settings.timeouts.write),
            shared,
            refusal: None,
            unreadable_bytes: 0,
            answer: None,
        }
    }

    /// Takes from what came in all that may not be read.
    fn check(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        if is_switched() {
            self.framing.switch_protocol();
        }
        if let Err((fine, refusal)) = self.framing.accept(&buf.filled()[before..]) {
            buf.set_filled(before + fine);
            self.refusal = Some(refusal);
            if fine == 0 {
                self.make_unreadable(buf);
            }
        }
    }

    /// Ends a client that takes nothing for too long. Whoever speaks another protocol looks after that itself.
    fn written<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall.over();
            return written;
        }
        if is_switched() {
            return Poll::Pending;
        }
        self.stall.poll(cx).map(Err)
    }

    fn make_unreadable(&mut self, buf: &mut ReadBuf<'_>) {
        let rest = &UNREADABLE[self.unreadable_bytes..];
        let taken = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..taken]);
        self.unreadable_bytes += taken;
    }

    /// Before a head has been read, whatever is written is Pingora's bare refusal of it.
    fn is_refusal(&self) -> bool {
        self.answer.is_some() || !head_is_read()
    }

    /// Writes our answer instead of Pingora's, once.
    fn poll_answer(
        &mut self,
        io: &mut Stream,
        facts: &ProxyDigest,
        cx: &mut Context<'_>,
        pingoras: &[u8],
    ) -> Poll<io::Result<()>> {
        let is_tls = io.get_ssl_digest().is_some();
        let answer = self.answer.get_or_insert_with(|| {
            refusal_answer(&self.shared, facts, self.refusal, pingoras, is_tls)
        });
        while answer.has_remaining() {
            let written = ready!(Pin::new(&mut *io).poll_write(cx, answer))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            answer.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl Http2 {
    pub fn new(settings: &Settings, facts: &ProxyDigest) -> Http2 {
        let bounds = settings.bounds.clone();
        let streams = Facts::of(facts).and_then(Facts::streams);
        Http2 {
            frames: Frames::new(bounds.h2_resets_per_second_max, Instant::now()),
            streams: streams.map(|requests| Streams::new(bounds.h2_streams_max, requests)),
            preface: Some(Preface {
                read: 0,
                deadline: Box::pin(tokio::time::sleep(settings.timeouts.request_head)),
            }),
            stall: Stall::new(settings.timeouts.write),
            bounds,
        }
    }

    fn check(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(preface) = &mut self.preface {
            preface.read = preface.read.saturating_add(bytes.len());
            if preface.read >= PREFACE_BYTES {
                self.preface = None;
            }
        }
        let streams = self.streams.as_mut();
        self.frames
            .accept(bytes, Instant::now, streams)
            .map_err(|flood| {
                metrics().http2_flood(flood.as_str());
                io::Error::other("the client floods the connection")
            })?;
        // Who takes no answers, and has more of them than it may, does not take the refusal either.
        let is_over =
            |streams: &Streams| streams.requests().check(&self.bounds) == Err(TooMany::OfClient);
        if self.stall.is_stalled() && self.streams.as_ref().is_some_and(is_over) {
            metrics().request_refused(TooMany::OfClient.as_str());
            return Err(io::Error::other("the client asks and takes no answers"));
        }
        Ok(())
    }

    /// Takes note of what the client's side took of what is sent.
    fn sent<'b>(&mut self, bufs: impl Iterator<Item = &'b [u8]>, mut taken: usize) {
        self.stall.over();
        let Some(streams) = &mut self.streams else {
            return;
        };
        for buf in bufs {
            let part = &buf[..taken.min(buf.len())];
            streams.sent(part);
            taken -= part.len();
            if taken == 0 {
                return;
            }
        }
    }

    fn poll_preface(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.preface {
            Some(preface) => {
                ready!(preface.deadline.as_mut().poll(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            None => Poll::Pending,
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        match &mut this.protocol {
            Protocol::Http1(http1) => {
                if http1.refusal.is_some() {
                    if is_switched() {
                        // Another protocol goes on here, which must not see what we make up.
                        return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                    }
                    http1.make_unreadable(buf);
                    return Poll::Ready(Ok(()));
                }
                ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
                http1.check(buf, before);
                Poll::Ready(Ok(()))
            }
            Protocol::Http2(http2) => match Pin::new(&mut this.io).poll_read(cx, buf) {
                Poll::Ready(Ok(())) => Poll::Ready(http2.check(&buf.filled()[before..])),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => http2.poll_preface(cx),
            },
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        match &mut this.protocol {
            Protocol::Http1(http1) if http1.is_refusal() => {
                ready!(http1.poll_answer(&mut this.io, &this.facts, cx, buf))?;
                Poll::Ready(Ok(buf.len()))
            }
            Protocol::Http1(http1) => {
                let written = Pin::new(&mut this.io).poll_write(cx, buf);
                http1.written(written, cx)
            }
            Protocol::Http2(http2) => match Pin::new(&mut this.io).poll_write(cx, buf) {
                Poll::Ready(Ok(taken)) => {
                    http2.sent(std::iter::once(buf), taken);
                    Poll::Ready(Ok(taken))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => http2.stall.poll(cx).map(Err),
            },
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        match (&mut this.protocol, flushed) {
            (Protocol::Http1(http1), flushed) => http1.written(flushed, cx),
            (Protocol::Http2(http2), Poll::Pending) => http2.stall.poll(cx).map(Err),
            (Protocol::Http2(http2), Poll::Ready(flushed)) => {
                http2.stall.over();
                Poll::Ready(flushed)
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        match &mut this.protocol {
            Protocol::Http1(http1) if http1.is_refusal() => {
                let first = bufs.iter().find(|buf| !buf.is_empty());
                self.poll_write(cx, first.map_or(&[], |buf| buf))
            }
            Protocol::Http1(http1) => {
                let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
                http1.written(written, cx)
            }
            Protocol::Http2(http2) => match Pin::new(&mut this.io).poll_write_vectored(cx, bufs) {
                Poll::Ready(Ok(taken)) => {
                    http2.sent(bufs.iter().map(|buf| &buf[..]), taken);
                    Poll::Ready(Ok(taken))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => http2.stall.poll(cx).map(Err),
            },
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl std::fmt::Debug for ClientStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientStream")
            .field("io", &self.io)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut *self.io).await;
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> UniqueIDType {
        self.io.id()
    }
}

impl Ssl for ClientStream {
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

impl GetTimingDigest for ClientStream {
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

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(Arc::clone(&self.facts))
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.io.get_socket_digest()
    }
}

#[async_trait]
impl Peek for ClientStream {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        self.io.try_peek(buf).await
    }
}

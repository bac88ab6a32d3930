//! HTTP/1.1 to an upstream, for exchanges whose request has no body: the way of most requests, without
//! the tasks, channels and copies that take one with a body through Pingora.
//!
//! A [`Connection`] is opened or taken from those that idle (`idle`), is given a head (`head`), and yields
//! the answer's head and then its body piece by piece (`framing`). It does not wait by itself: who uses
//! it decides how long [`Connection::fill`] may take, and what else is looked at meanwhile.

mod framing;
mod head;
mod idle;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::FutureExt;
use http::{HeaderMap, Method};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use pingora_core::connectors::TransportConnector;
use pingora_core::protocols::Stream;
use pingora_core::{Error, ErrorType, OrErr, RetryType};
use pingora_http::ResponseHeader;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::group::Member;
use super::tcp;
use framing::Framing;
pub use framing::Piece;
use idle::{Key, Socket};

/// What is asked for at a time while a head is read.
const HEAD_READ_BYTES: usize = 8 * 1024;
/// What is asked for at a time while a body is read.
const BODY_READ_BYTES: usize = 64 * 1024;

/// Makes the connections with TLS. Reads the system's authorities once.
static CONNECTOR: LazyLock<TransportConnector> = LazyLock::new(|| TransportConnector::new(None));

/// Reads the system's authorities now, so that no request has to wait for it.
pub fn prepare_tls() {
    LazyLock::force(&CONNECTOR);
}

/// A connection to an upstream, with at most one request on it.
pub struct Connection {
    io: Io,
    key: Key,
    /// What was read and not yet understood.
    buf: BytesMut,
    /// How much of it was looked at for the end of a head.
    seen: usize,
    framing: Framing,
    /// How long it may idle after this answer. `None` ends it.
    keep: Option<Duration>,
    /// Whether it has served a request before.
    reused: bool,
    /// Whether anything of the answer has come.
    heard: bool,
}

enum Io {
    Plain(TcpStream),
    Tls(Stream),
}

impl Io {
    async fn read(&mut self, buf: &mut BytesMut) -> io::Result<usize> {
        match self {
            Io::Plain(socket) => socket.read_buf(buf).await,
            Io::Tls(stream) => stream.read_buf(buf).await,
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Io::Plain(socket) => socket.write_all(bytes).await,
            Io::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    /// As [`Io::is_silent`], but asks the kernel itself: the runtime knows only what had come when it last
    /// asked, which is before this request was read.
    fn is_silent_now(&mut self) -> bool {
        let Io::Plain(socket) = self else {
            return self.is_silent();
        };
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(socket.as_raw_fd(), &mut [0; 1], flags) == Err(Errno::EAGAIN)
    }

    /// Whether nothing has come from the other side, neither bytes nor its end.
    fn is_silent(&mut self) -> bool {
        let mut byte = [0; 1];
        match self {
            Io::Plain(socket) => {
                matches!(socket.try_read(&mut byte), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
            }
            Io::Tls(stream) => {
                let read = tokio::task::unconstrained(stream.read(&mut byte));
                read.now_or_never().is_none()
            }
        }
    }
}

impl Connection {
    /// A connection that idles.
    pub fn reuse(member: &Member, address: SocketAddr, now: Instant) -> Option<Connection> {
        let key = Key::new(member, address);
        idle::take(&key, now).map(|socket| Connection::new(socket, key, true))
    }

    /// A new connection.
    ///
    /// # Errors
    /// Connecting's: refused, no route, no answer in time, or what TLS finds.
    pub async fn open(
        member: &Member,
        address: SocketAddr,
        timeout: Duration,
    ) -> Result<Connection, Box<Error>> {
        let io = if member.state().server().tls {
            // Its timeouts are in the peer.
            Io::Tls(CONNECTOR.new_stream(&member.peer(address)).await?)
        } else {
            let connected = tokio::time::timeout(timeout, tcp::connect(&address)).await;
            Io::Plain(connected.or_err(ErrorType::ConnectTimedout, "connecting to the upstream")??)
        };
        let buf = BytesMut::with_capacity(HEAD_READ_BYTES);
        let socket = Socket { io, buf };
        Ok(Connection::new(socket, Key::new(member, address), false))
    }

    fn new(socket: Socket, key: Key, reused: bool) -> Connection {
        let Socket { io, buf } = socket;
        Connection {
            io,
            key,
            buf,
            seen: 0,
            framing: Framing::None,
            keep: None,
            reused,
            heard: false,
        }
    }

    /// Whether it has served a request before: one that finds it closed may have met its natural end.
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// Sends a request that has no body. `target` is as the request line has it.
    ///
    /// # Errors
    /// Writing's, or a timeout; one that may be tried again where nothing is known to be wrong but the
    /// connection's age.
    pub async fn send(
        &mut self,
        method: &Method,
        target: &[u8],
        fields: &HeaderMap,
        timeout: Duration,
    ) -> Result<(), Box<Error>> {
        self.buf.clear();
        head::encode(&mut self.buf, method, target, fields)?;
        let written = {
            let mut writing = std::pin::pin!(self.io.write(&self.buf));
            // A socket's buffer nearly always has the room.
            match writing.as_mut().now_or_never() {
                Some(written) => written,
                None => tokio::time::timeout(timeout, writing)
                    .await
                    .or_err(ErrorType::WriteTimedout, "sending the request")
                    .map_err(Error::into_up)?,
            }
        };
        self.buf.clear();
        written.map_err(|error| {
            let mut error = Error::because(ErrorType::WriteError, "sending the request", error);
            error.retry = RetryType::ReusedOnly;
            error.into_up()
        })
    }

    /// Reads more; zero bytes are the connection's end. May be dropped and called again.
    ///
    /// # Errors
    /// Reading's.
    pub async fn fill(&mut self) -> Result<usize, Box<Error>> {
        let most = match self.framing {
            Framing::None => HEAD_READ_BYTES,
            _ => BODY_READ_BYTES,
        };
        if self.buf.capacity() - self.buf.len() < HEAD_READ_BYTES / 2 {
            // The room of the answer before is taken again, once nothing of it is held any more.
            self.buf.reserve(most);
        }
        match self.io.read(&mut self.buf).await {
            Ok(read) => {
                self.heard |= read > 0;
                Ok(read)
            }
            Err(error) => {
                let mut error =
                    Error::because(ErrorType::ReadError, "reading the upstream's answer", error);
                if !self.heard {
                    error.retry = RetryType::ReusedOnly;
                }
                Err(error.into_up())
            }
        }
    }

    /// The head of the answer to `method`, once it is there whole. An informational one is followed by
    /// another.
    ///
    /// # Errors
    /// A head that is malformed, too large or framed in a way that could be read differently.
    pub fn head(&mut self, method: &Method) -> Result<Option<ResponseHeader>, Box<Error>> {
        let parsed = head::parse(&mut self.buf, &mut self.seen).map_err(Error::into_up)?;
        let Some(mut answer) = parsed else {
            return Ok(None);
        };
        if !answer.status.is_informational() {
            self.framing = Framing::of(&mut answer, method).map_err(Error::into_up)?;
            self.keep = head::keeps(&answer);
            if matches!(self.framing, Framing::UntilClosed)
                || framing::is_contradictory(&mut answer)
            {
                self.keep = None;
            }
        }
        Ok(Some(answer))
    }

    /// What comes next of the body, as far as it has been read.
    ///
    /// # Errors
    /// Chunks that are malformed.
    pub fn piece(&mut self) -> Result<Piece, Box<Error>> {
        self.framing
            .take(&mut self.buf)
            .map_err(|error| error.into_up())
    }

    /// What the connection's end, met by [`Connection::fill`], means for the answer: the end of a body that
    /// lasts as long as the connection, and else that it broke off.
    ///
    /// # Errors
    /// It broke off.
    pub fn closed(&mut self) -> Result<(), Box<Error>> {
        self.keep = None;
        if matches!(self.framing, Framing::UntilClosed) {
            self.framing = Framing::None;
            return Ok(());
        }
        let mut error = Error::explain(
            ErrorType::ConnectionClosed,
            "the upstream closed the connection before the end of its answer",
        );
        if !self.heard {
            error.retry = RetryType::ReusedOnly;
        }
        Err(error.into_up())
    }

    /// Lets it idle for the next request, if it can serve one, among `most` on this thread.
    pub fn release(mut self, keepalive: Duration, most: usize) {
        let Some(keep) = self.keep else {
            return;
        };
        let keep = keep.min(keepalive);
        if keep.is_zero() || !self.buf.is_empty() || !matches!(self.framing, Framing::None) {
            return;
        }
        if self.io.is_silent() {
            // What a long answer took is not kept.
            if self.buf.capacity() > HEAD_READ_BYTES {
                self.buf = BytesMut::new();
            }
            let (io, buf) = (self.io, self.buf);
            idle::put(self.key, Socket { io, buf }, keep, most);
        }
    }
}

#[cfg(test)]
mod tests;

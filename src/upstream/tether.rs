//! A connection that ends by itself: after a silence in both directions, and at an age.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::connectors::l4::Connect;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora_core::{Error, ErrorType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// Connects as Pingora would, and gives the connection its limits.
#[derive(Debug)]
pub struct Tether {
    idle_timeout: Duration,
    lifetime_max: Duration,
    key: u64,
}

impl Tether {
    pub fn new(idle_timeout: Duration, lifetime_max: Duration) -> Tether {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Tether {
            idle_timeout,
            lifetime_max,
            key: NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Different for each: a connection with an end of its own is not for the next request.
    pub fn key(&self) -> u64 {
        self.key
    }
}

#[async_trait]
impl Connect for Tether {
    async fn connect(&self, address: &SocketAddr) -> pingora_core::Result<Stream> {
        let Some(address) = address.as_inet() else {
            return Error::e_explain(
                ErrorType::ConnectError,
                "only IP addresses are connected to",
            );
        };
        let socket = TcpStream::connect(address).await.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
                io::ErrorKind::TimedOut => ErrorType::ConnectTimedout,
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                    ErrorType::ConnectNoRoute
                }
                _ => ErrorType::ConnectError,
            };
            Error::because(kind, "connecting to the upstream", error)
        })?;
        // Frames are often small, and each is waited for.
        socket
            .set_nodelay(true)
            .map_err(|e| Error::because(ErrorType::SocketError, "setting TCP_NODELAY", e))?;
        let now = Instant::now();
        Ok(VirtualSocketStream::new(Box::new(Tethered {
            socket,
            idle_timeout: self.idle_timeout,
            heard: now,
            ends: now + self.lifetime_max,
            alarm: Box::pin(tokio::time::sleep(self.idle_timeout.min(self.lifetime_max))),
        }))
        .into())
    }
}

/// The connection. At its end it reads as closed by the other side, so everything above it ends in
/// the ordinary way.
#[derive(Debug)]
struct Tethered<S = TcpStream> {
    socket: S,
    idle_timeout: Duration,
    /// When something last went either way.
    heard: Instant,
    ends: Instant,
    alarm: Pin<Box<Sleep>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Tethered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let now = Instant::now();
        // The end comes also to a connection that always has something to say.
        if now >= self.ends {
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.socket).poll_read(cx, buf);
        if read.is_ready() {
            self.heard = now;
            return read;
        }
        loop {
            ready!(self.alarm.as_mut().poll(cx));
            let due = self.ends.min(self.heard + self.idle_timeout);
            if Instant::now() >= due {
                return Poll::Ready(Ok(()));
            }
            self.alarm.as_mut().reset(due);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tethered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        if written.is_ready() {
            self.heard = Instant::now();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl VirtualSocket for Tethered {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            VirtualSockOpt::NoDelay => self.socket.set_nodelay(true),
            // The limits here are far shorter than those of the system.
            VirtualSockOpt::KeepAlive(_) => Ok(()),
            // Pingora's list may grow; an option is never needed.
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    fn pair(idle: u64, lifetime: u64) -> (Tethered<DuplexStream>, DuplexStream) {
        let (socket, other) = tokio::io::duplex(64);
        let now = Instant::now();
        let (idle, lifetime) = (Duration::from_secs(idle), Duration::from_secs(lifetime));
        let tethered = Tethered {
            socket,
            idle_timeout: idle,
            heard: now,
            ends: now + lifetime,
            alarm: Box::pin(tokio::time::sleep(idle.min(lifetime))),
        };
        (tethered, other)
    }

    #[tokio::test(start_paused = true)]
    async fn a_silence_ends_it() {
        let (mut tethered, _other) = pair(10, 1000);
        let start = Instant::now();
        assert_eq!(tethered.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn either_direction_keeps_it_until_it_is_old() {
        let (tethered, mut other) = pair(10, 35);
        let start = Instant::now();
        let (mut reader, mut writer) = tokio::io::split(tethered);
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).await.unwrap();
            all.len()
        });
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_secs(8)).await;
            other.write_all(b"x").await.unwrap();
            tokio::time::sleep(Duration::from_secs(8)).await;
            writer.write_all(b"y").await.unwrap();
        }
        assert_eq!(reading.await.unwrap(), 2);
        assert_eq!(start.elapsed().as_secs(), 35);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_stops_talking_ends_too() {
        let (mut tethered, mut other) = pair(10, 20);
        tokio::spawn(async move {
            while other.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let start = Instant::now();
        let mut all = Vec::new();
        tethered.read_to_end(&mut all).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 20);
    }
}

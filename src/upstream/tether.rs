//! A connection that ends by itself: where no answer comes, after a silence in both directions, at an
//! age, and when whom it is for is stopped.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::tcp;

/// Connects as Pingora would, and gives the connection its limits.
#[derive(Debug)]
pub struct Tether {
    answer_timeout: Duration,
    idle_timeout: Duration,
    lifetime_max: Duration,
    key: u64,
    turn: Arc<Turn>,
    stopped: Option<watch::Receiver<bool>>,
}

/// Resolves when whom the connection is for is stopped.
struct Stopped(Mutex<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Stopped {
    fn new(stopped: Option<watch::Receiver<bool>>) -> Stopped {
        Stopped(Mutex::new(Box::pin(async {
            let is_stopped = match stopped {
                // Without a sender nobody can say it any more.
                Some(mut stopped) => stopped.wait_for(|stopped| *stopped).await.is_ok(),
                None => false,
            };
            if !is_stopped {
                std::future::pending::<()>().await;
            }
        })))
    }

    fn is_now(&mut self, cx: &mut Context<'_>) -> bool {
        let waits = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        waits.as_mut().poll(cx).is_ready()
    }
}

impl std::fmt::Debug for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stopped").finish_non_exhaustive()
    }
}

/// Whose turn it is at the start of an exchange. Where a 101 has come before Pingora has taken note that
/// the request (which has no body) is at its end, it takes that end for the upgraded connection's and
/// closes it. So nothing is read until it has.
#[derive(Debug, Default)]
pub struct Turn {
    now: AtomicU8,
    answered: AtomicBool,
}

const ANYONE: u8 = 0;
const REQUEST: u8 = 1;
const REQUEST_ENDED: u8 = 2;
/// Reads that are put off at most, so that a mistake here costs no more than they do.
const PUT_OFF_MAX: u32 = 1000;

impl Turn {
    /// The connection is there, and the request is about to be written.
    pub fn begin_request(&self) {
        self.now.store(REQUEST, Ordering::Relaxed);
    }

    /// The head of the answer has come.
    pub fn answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// The end of the request is on its way to the task that reads the answer.
    pub fn end_request(&self) {
        let _ =
            self.now
                .compare_exchange(REQUEST, REQUEST_ENDED, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether to read now. After the end of the request one read is put off, which has the other half
    /// of Pingora's `select!` looked at: that is where the end waits.
    fn is_answers(&self) -> bool {
        match self.now.load(Ordering::Relaxed) {
            ANYONE => true,
            REQUEST_ENDED => {
                self.now.store(ANYONE, Ordering::Relaxed);
                false
            }
            _ => false,
        }
    }
}

impl Tether {
    /// `answer_timeout` is the longest silence before the head of the answer, `idle_timeout` the longest
    /// after it. The connection ends as soon as `stopped` is true.
    pub fn new(
        answer_timeout: Duration,
        idle_timeout: Duration,
        lifetime_max: Duration,
        stopped: Option<watch::Receiver<bool>>,
    ) -> Tether {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Tether {
            answer_timeout,
            idle_timeout,
            lifetime_max,
            key: NEXT.fetch_add(1, Ordering::Relaxed),
            turn: Arc::default(),
            stopped,
        }
    }

    pub fn turn(&self) -> Arc<Turn> {
        Arc::clone(&self.turn)
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
        let socket = tcp::connect(address).await?;
        let now = Instant::now();
        Ok(VirtualSocketStream::new(Box::new(Tethered {
            socket,
            answer_timeout: self.answer_timeout,
            idle_timeout: self.idle_timeout,
            heard: now,
            ends: now + self.lifetime_max,
            alarm: Box::pin(tokio::time::sleep(
                self.answer_timeout.min(self.lifetime_max),
            )),
            turn: self.turn(),
            put_off: 0,
            stopped: Stopped::new(self.stopped.clone()),
            stopped_writing: Stopped::new(self.stopped.clone()),
            has_ended: false,
        }))
        .into())
    }
}

/// The connection. At its end it reads as closed by the other side, so everything above it ends in
/// the ordinary way; where no answer comes, reading fails.
#[derive(Debug)]
struct Tethered<S = TcpStream> {
    socket: S,
    answer_timeout: Duration,
    idle_timeout: Duration,
    /// When something last went either way.
    heard: Instant,
    ends: Instant,
    alarm: Pin<Box<Sleep>>,
    turn: Arc<Turn>,
    put_off: u32,
    stopped: Stopped,
    /// For writing: what waits for the other side to take something is not reading meanwhile, and may be another
    /// task.
    stopped_writing: Stopped,
    /// It was stopped.
    has_ended: bool,
}

impl<S> Tethered<S> {
    /// What is written to a connection that was stopped fails, also what has waited to be.
    fn unless_stopped<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        self.has_ended = self.has_ended || self.stopped_writing.is_now(cx);
        if self.has_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tethered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.put_off < PUT_OFF_MAX && !self.turn.is_answers() {
            self.put_off += 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // What has resolved is not polled again.
        self.has_ended = self.has_ended || self.stopped.is_now(cx);
        if self.has_ended {
            return Poll::Ready(Ok(()));
        }
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
            let answered = self.turn.answered.load(Ordering::Relaxed);
            let silence_max = match answered {
                true => self.idle_timeout,
                false => self.answer_timeout,
            };
            let due = self.ends.min(self.heard + silence_max);
            if Instant::now() >= due {
                return Poll::Ready(match answered {
                    true => Ok(()),
                    false => Err(io::ErrorKind::TimedOut.into()),
                });
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
        self.unless_stopped(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.unless_stopped(flushed, cx)
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
        let answer = Duration::from_secs(3);
        let turn = Arc::<Turn>::default();
        turn.answered();
        let tethered = Tethered {
            socket,
            answer_timeout: answer,
            idle_timeout: idle,
            heard: now,
            ends: now + lifetime,
            alarm: Box::pin(tokio::time::sleep(answer.min(lifetime))),
            turn,
            put_off: 0,
            stopped: Stopped::new(None),
            stopped_writing: Stopped::new(None),
            has_ended: false,
        };
        (tethered, other)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_there_early_waits_for_the_end_of_the_request() {
        let (mut tethered, mut other) = pair(10, 1000);
        let turn = Arc::clone(&tethered.turn);
        let read = |tethered: &mut Tethered<DuplexStream>| {
            let mut byte = [0; 1];
            futures_util::FutureExt::now_or_never(tethered.read(&mut byte)).is_some()
        };
        other.write_all(b"abcd").await.unwrap();
        assert!(read(&mut tethered), "while it connects, whatever TLS needs");
        turn.end_request();
        assert!(read(&mut tethered));
        turn.begin_request();
        assert!(!read(&mut tethered));
        assert!(!read(&mut tethered));
        turn.end_request();
        assert!(!read(&mut tethered), "one poll for the end itself");
        assert!(read(&mut tethered));
        turn.begin_request();
        // An end that never comes is not waited for without end.
        assert!((0..=PUT_OFF_MAX).any(|_| read(&mut tethered)));
    }

    #[tokio::test(start_paused = true)]
    async fn it_fails_where_no_answer_comes() {
        let (mut tethered, _other) = pair(10, 1000);
        tethered.turn = Arc::default();
        let start = Instant::now();
        let failed = tethered.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 3);
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
    async fn a_stop_ends_it_at_once_also_while_it_is_silent() {
        let (mut tethered, _other) = pair(10, 1000);
        let (stop, stopped) = watch::channel(false);
        tethered.stopped = Stopped::new(Some(stopped));
        let start = Instant::now();
        let reading = tokio::spawn(async move {
            let read = tethered.read(&mut [0; 8]).await.unwrap();
            (read, tethered.read(&mut [0; 8]).await.unwrap())
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.send_replace(true);
        assert_eq!(reading.await.unwrap(), (0, 0));
        assert_eq!(start.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_it_also_while_the_other_side_takes_nothing() {
        let (mut tethered, _other) = pair(10, 1000);
        let (stop, stopped) = watch::channel(false);
        tethered.stopped = Stopped::new(Some(stopped.clone()));
        tethered.stopped_writing = Stopped::new(Some(stopped));
        let start = Instant::now();
        let writing = tokio::spawn(async move {
            // More than the other side takes, so that it waits, and nobody reads.
            let failed = tethered.write_all(&[0; 1000]).await.unwrap_err();
            let flushed = tethered.flush().await.unwrap_err();
            (
                failed.kind(),
                flushed.kind(),
                tethered.read(&mut [0; 8]).await.unwrap(),
            )
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!writing.is_finished());
        stop.send_replace(true);
        let broken = io::ErrorKind::BrokenPipe;
        assert_eq!(writing.await.unwrap(), (broken, broken, 0));
        assert_eq!(start.elapsed().as_secs(), 1);
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

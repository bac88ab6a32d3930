//! Upstreams that do as they are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

/// What an upstream does with a request.
pub enum Reply {
    /// Writes this, which is a whole answer, and waits for the next request.
    Raw(Vec<u8>),
    /// Writes this and closes the connection.
    Last(Vec<u8>),
    /// Says nothing until this is there.
    Wait(Arc<tokio::sync::Notify>, Vec<u8>),
}

/// A running upstream.
pub struct Upstream {
    pub url: String,
    hits: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Upstream {
    pub fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// An ordinary answer.
pub fn ok(body: &str) -> Reply {
    status(200, body)
}

pub fn status(code: u16, body: &str) -> Reply {
    let length = body.len();
    Reply::Raw(
        format!("HTTP/1.1 {code} Some\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes(),
    )
}

/// Answers with what it got.
pub fn mirror(request: &str) -> Reply {
    ok(request)
}

/// An upstream on plain HTTP/1.1. `answer` sees each request whole, head and body.
pub async fn upstream(answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hits = Arc::new(AtomicUsize::new(0));
    let connections = Arc::new(AtomicUsize::new(0));
    let (answer, counted) = (Arc::new(answer), Arc::clone(&hits));
    let accepted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            accepted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(socket, Arc::clone(&answer), Arc::clone(&counted)));
        }
    });
    Upstream {
        url: format!("http://127.0.0.1:{port}"),
        hits,
        connections,
    }
}

/// Serves one connection of any kind.
pub async fn serve<S, A>(mut socket: S, answer: Arc<A>, hits: Arc<AtomicUsize>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Fn(&str) -> Reply,
{
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        while let Some(end) = whole(&got) {
            hits.fetch_add(1, Ordering::SeqCst);
            let request: Vec<u8> = got.drain(..end).collect();
            let (bytes, is_last) = match answer(&String::from_utf8_lossy(&request)) {
                Reply::Raw(bytes) => (bytes, false),
                Reply::Last(bytes) => (bytes, true),
                Reply::Wait(until, bytes) => {
                    until.notified().await;
                    (bytes, false)
                }
            };
            if socket.write_all(&bytes).await.is_err() || is_last {
                let _ = socket.shutdown().await;
                return;
            }
        }
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => got.extend_from_slice(&buffer[..n]),
        }
    }
}

/// Where the first request ends, once it is there.
fn whole(got: &[u8]) -> Option<usize> {
    let end = got.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&got[..end]).to_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        let last = got[end..].windows(5).position(|w| w == b"0\r\n\r\n")?;
        return Some(end + last + 5);
    }
    let length = head
        .lines()
        .find_map(|l| l.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |l| l.parse().unwrap());
    (got.len() >= end + length).then_some(end + length)
}

//! A request's body on its way to a guest.
//!
//! A small body is read whole before the guest starts, which then needs not wait for it. Of a larger
//! one the beginning is read, and the rest flows through a bounded pipe while the guest runs.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use pingora_core::Error;
use pingora_proxy::Session;

use super::body::{self, BodyLimit};
use super::respond::Stop;
use super::room::Place;
use crate::sandbox::{InputWriter, Stdin, input};

/// A guest waits for a body of up to so many bytes before it starts.
const WHOLE_BYTES_MAX: usize = 64 * 1024;
/// A pipe takes more while it holds less than this. A body of which so much is there at once is
/// handed on whole too.
const PIPE_BYTES: usize = 128 * 1024;
/// Most bytes that come in at once: Pingora's buffer for HTTP/1, a frame of HTTP/2 here.
const CHUNK_BYTES_MAX: usize = 64 * 1024;
/// Guests faster than this are not worth watching the connection for a client that leaves.
const WATCH_AFTER: Duration = Duration::from_millis(50);

/// A body as a guest gets it.
pub(super) struct Input {
    pub stdin: Stdin,
    /// Its length, where that is known before all of it is there: as announced, or, of a body up to
    /// [`WHOLE_BYTES_MAX`], as counted.
    pub length: Option<u64>,
    /// What is still to come. Kept, with the room that the body takes, until the guest has ended.
    pub feed: Feed,
}

/// Moves what is still to come of a body to its guest.
pub(super) struct Feed {
    /// None once all was handed on.
    writer: Option<InputWriter>,
    limit: BodyLimit,
    received_bytes: u64,
    /// How much longer the client may take. Time in which the guest is slow to read is not its
    /// fault, and does not count.
    left: Duration,
    place: Place,
}

/// The input of a request without a body.
pub(super) fn empty(session: &Session, limit: BodyLimit, place: Place) -> Input {
    Feed::new(limit, place).whole(Bytes::new(), body::announced(session))
}

/// Reads a small body, or the beginning of a large one.
pub(super) async fn open(
    session: &mut Session,
    limit: BodyLimit,
    place: Place,
) -> Result<Input, Stop> {
    let mut feed = Feed::new(limit, place);
    let announced = body::announced(session);
    limit.check_announced(session)?;
    // Each wait is bounded here; Pingora's own timeout must not come first.
    session.set_read_timeout(Some(limit.timeout + Duration::from_secs(1)));
    body::invite(session).await?;
    // From here on the client sends all of it. An answer that comes before its end is followed by a
    // bounded drain: to close at once would reset the connection, and the answer with it.
    session
        .as_downstream_mut()
        .set_close_on_response_before_downstream_finish(false);
    let mut arrived = Arrived::One(Bytes::new());
    while arrived.len() < PIPE_BYTES {
        let chunk = if arrived.len() < WHOLE_BYTES_MAX {
            feed.receive(session).await?
        } else {
            // More is taken only as far as it is there.
            match feed.receive(session).now_or_never() {
                Some(chunk) => chunk?,
                None => break,
            }
        };
        match chunk {
            Some(chunk) => arrived = arrived.and(chunk),
            None => {
                let counted = (1..=WHOLE_BYTES_MAX).contains(&arrived.len());
                let counted = counted.then_some(arrived.len() as u64);
                return Ok(feed.whole(arrived.into_bytes(), announced.or(counted)));
            }
        }
        feed.place.cover(arrived.len())?;
    }
    feed.place.cover(PIPE_BYTES + CHUNK_BYTES_MAX)?;
    let (mut writer, reader) = input(PIPE_BYTES);
    writer.put(&arrived.into_bytes());
    feed.writer = Some(writer);
    Ok(Input {
        stdin: Stdin::Pipe(reader),
        length: announced,
        feed,
    })
}

impl Feed {
    fn new(limit: BodyLimit, place: Place) -> Feed {
        Feed {
            writer: None,
            limit,
            received_bytes: 0,
            left: limit.timeout,
            place,
        }
    }

    fn whole(self, bytes: Bytes, length: Option<u64>) -> Input {
        Input {
            stdin: Stdin::Bytes(bytes),
            length,
            feed: self,
        }
    }

    /// How much of the body has come.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Hands the body on, and then watches for the client to leave. Ends only with what ends the
    /// request: a body over its limits, or a client that has gone. Cancel safe, so that answers can
    /// be sent in between.
    pub async fn pump(&mut self, session: &mut Session) -> Stop {
        match self.hand_on(session).await {
            Ok(()) => body::gone(session, WATCH_AFTER).await.into(),
            Err(stop) => stop,
        }
    }

    async fn hand_on(&mut self, session: &mut Session) -> Result<(), Stop> {
        while let Some(writer) = &mut self.writer {
            room_in(writer, session).await?;
            let chunk = self.receive(session).await?;
            // Nothing is awaited from here on: a chunk that came is not lost.
            match (chunk, self.writer.take()) {
                (Some(chunk), Some(mut writer)) => {
                    writer.put(&chunk);
                    self.writer = Some(writer);
                }
                (None, Some(writer)) => writer.finish(),
                (_, None) => {}
            }
        }
        Ok(())
    }

    /// The next part of the body, within its limits.
    async fn receive(&mut self, session: &mut Session) -> Result<Option<Bytes>, Stop> {
        let chunk = {
            let waiting = Waiting {
                since: Instant::now(),
                left: &mut self.left,
            };
            tokio::time::timeout(*waiting.left, body::read_chunk(session)).await
        };
        let Ok(chunk) = chunk else {
            return Err(self.limit.too_slow().into());
        };
        let chunk = chunk?;
        let came = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        self.received_bytes += came;
        self.left = self.left.saturating_add(self.limit.time_for(came));
        if self.received_bytes > self.limit.bytes_max {
            return Err(self.limit.too_large().into());
        }
        Ok(chunk)
    }
}

/// Takes the time it lives from what is left, however it ends.
struct Waiting<'a> {
    since: Instant,
    left: &'a mut Duration,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *self.left = self.left.saturating_sub(self.since.elapsed());
    }
}

/// Waits until the guest has read enough for more to be taken. With HTTP/2 a client that leaves
/// meanwhile is seen; with HTTP/1 it would take reading on.
async fn room_in(writer: &mut InputWriter, session: &mut Session) -> Result<(), Box<Error>> {
    match session.as_downstream_mut().watch_h2_stream_close() {
        None => {
            writer.room().await;
            Ok(())
        }
        Some(closed) => tokio::select! {
            biased;
            () = writer.room() => Ok(()),
            closed = closed => match closed {
                Ok(reason) => Error::e_explain(
                    pingora_core::ErrorType::H2Error,
                    format!("the client closed the stream: {reason}"),
                ),
                Err(error) => Err(error),
            },
        },
    }
}

/// What has arrived. Most bodies come in one chunk, which then needs no copy.
enum Arrived {
    One(Bytes),
    Many(BytesMut),
}

impl Arrived {
    fn len(&self) -> usize {
        match self {
            Arrived::One(chunk) => chunk.len(),
            Arrived::Many(all) => all.len(),
        }
    }

    fn and(self, chunk: Bytes) -> Arrived {
        let mut all = match self {
            Arrived::One(first) if first.is_empty() => return Arrived::One(chunk),
            Arrived::One(first) => BytesMut::from(first),
            Arrived::Many(all) => all,
        };
        all.extend_from_slice(&chunk);
        Arrived::Many(all)
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Arrived::One(chunk) => chunk,
            Arrived::Many(all) => all.freeze(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_spent_waiting_for_the_client_counts() {
        let mut left = Duration::from_secs(60);
        let since = Instant::now() - Duration::from_secs(20);
        drop(Waiting {
            since,
            left: &mut left,
        });
        assert!(left <= Duration::from_secs(40) && left > Duration::from_secs(20));
        let since = Instant::now() - Duration::from_secs(100);
        drop(Waiting {
            since,
            left: &mut left,
        });
        assert_eq!(left, Duration::ZERO);
    }
}

//! Reading request bodies: bounded in bytes and in time.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{StatusCode, header};
use pingora_core::Error;
use pingora_proxy::Session;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::respond::Stop;
use crate::failure::{Failure, code};

/// What a body may cost.
#[derive(Clone, Copy)]
pub(super) struct BodyLimit {
    pub bytes_max: u64,
    /// For the whole body, from the end of the head.
    pub timeout: Duration,
}

impl BodyLimit {
    pub(super) fn too_large(&self) -> Failure {
        Failure::payload_too_large(format!(
            "the request body may have at most {} bytes",
            self.bytes_max
        ))
    }

    pub(super) fn too_slow(&self) -> Failure {
        Failure::new(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            format!(
                "the request body did not arrive within {} s",
                self.timeout.as_secs_f32()
            ),
        )
    }

    /// Refuses at once a body whose announced length is over the limit.
    pub(super) fn check_announced(&self, session: &Session) -> Result<(), Failure> {
        let announced = session
            .get_header(header::CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse::<u64>().ok());
        match announced {
            Some(length) if length > self.bytes_max => Err(self.too_large()),
            _ => Ok(()),
        }
    }
}

/// Answers `Expect: 100-continue` (RFC 9110 section 10.1.1), once the body is wanted.
pub(super) async fn invite(session: &mut Session) -> Result<(), Box<Error>> {
    let expects = session
        .get_header(header::EXPECT)
        .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if expects {
        session
            .as_downstream_mut()
            .write_continue_response()
            .await?;
    }
    Ok(())
}

/// The next part of the request body. What is wrong with it is the client's doing.
pub(super) async fn read_chunk(session: &mut Session) -> Result<Option<Bytes>, Box<Error>> {
    session.read_request_body().await.map_err(|mut error| {
        error.as_down();
        error
    })
}

/// Request bodies held in memory at once, over all connections, in bytes. Guests read them whole, and
/// thousands of clients may send one at the same time.
const BUFFERED_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The room for request bodies: a permit per KiB.
pub struct BodyRoom(Arc<Semaphore>);

/// A body, and the room it takes until it is dropped.
pub(super) struct Buffered {
    pub bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Default for BodyRoom {
    fn default() -> Self {
        BodyRoom(Arc::new(Semaphore::new(BUFFERED_BYTES_MAX / 1024)))
    }
}

impl BodyRoom {
    /// Makes sure that `held` covers this many bytes.
    fn cover(&self, held: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), Failure> {
        let have = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = bytes.div_ceil(1024).saturating_sub(have);
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let full = |_| {
            let message = "too many request bodies are being received; try again shortly";
            Failure::unavailable(code::GUESTS_BUSY, message)
        };
        let taken = Arc::clone(&self.0)
            .try_acquire_many_owned(more)
            .map_err(full)?;
        match held {
            Some(held) => held.merge(taken),
            None => *held = Some(taken),
        }
        Ok(())
    }
}

/// Reads the whole body into memory.
pub(super) async fn read_whole(
    session: &mut Session,
    limit: BodyLimit,
    room: &BodyRoom,
) -> Result<Buffered, Stop> {
    if session.as_downstream_mut().is_body_empty() {
        return Ok(Buffered {
            bytes: Bytes::new(),
            _room: None,
        });
    }
    limit.check_announced(session)?;
    invite(session).await?;
    let mut held = None;
    let reading = async {
        let Some(first) = read_chunk(session).await? else {
            return Ok(Bytes::new());
        };
        let mut body = Whole::One(first);
        loop {
            if body.len() as u64 > limit.bytes_max {
                return Err(Stop::from(limit.too_large()));
            }
            room.cover(&mut held, body.len())?;
            match read_chunk(session).await? {
                Some(chunk) => body = body.and(chunk),
                None => return Ok(body.into_bytes()),
            }
        }
    };
    match tokio::time::timeout(limit.timeout, reading).await {
        Ok(body) => Ok(Buffered {
            bytes: body?,
            _room: held,
        }),
        Err(_) => Err(limit.too_slow().into()),
    }
}

/// Reads on after an answer that did not wait for the whole body. HTTP/2 would else reset the stream,
/// which may overtake the answer; Pingora does the same for HTTP/1 itself. Bounded in bytes and time:
/// a client that goes on sending is cut off.
pub(super) async fn linger(session: &mut Session, timeout: Duration) {
    const BYTES_MAX: usize = 4 * 1024 * 1024;
    let downstream = session.as_downstream_mut();
    if !downstream.is_http2() || downstream.is_body_done() {
        return;
    }
    let discard = async {
        let mut read = 0;
        while read < BYTES_MAX {
            match downstream.read_request_body().await {
                Ok(Some(chunk)) => read += chunk.len(),
                Ok(None) | Err(_) => return,
            }
        }
    };
    // Running out of time is one of the ways to end.
    let _ = tokio::time::timeout(timeout, discard).await;
}

/// Most bodies come in one chunk, which then needs no copy.
enum Whole {
    One(Bytes),
    Many(BytesMut),
}

impl Whole {
    fn len(&self) -> usize {
        match self {
            Whole::One(chunk) => chunk.len(),
            Whole::Many(all) => all.len(),
        }
    }

    fn and(self, chunk: Bytes) -> Whole {
        let mut all = match self {
            Whole::One(first) => BytesMut::from(first),
            Whole::Many(all) => all,
        };
        all.extend_from_slice(&chunk);
        Whole::Many(all)
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Whole::One(chunk) => chunk,
            Whole::Many(all) => all.freeze(),
        }
    }
}

/// Resolves when the client has gone away. A client that only waits for its answer is left alone
/// for `patience`, which spares short answers the extra read. A client that sends its next request
/// meanwhile counts as gone: with that request in front, its leaving could not be seen any more.
pub(super) async fn gone(session: &mut Session, patience: Duration) -> Box<Error> {
    tokio::time::sleep(patience).await;
    session.as_downstream_mut().set_pipelining_enabled(false);
    loop {
        match session.as_downstream_mut().read_body_or_idle(true).await {
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_for_bodies_is_bounded_and_given_back() {
        let room = BodyRoom(Arc::new(Semaphore::new(10)));
        let (mut first, mut second) = (None, None);
        assert!(room.cover(&mut first, 1).is_ok());
        assert!(room.cover(&mut first, 8 * 1024).is_ok());
        assert_eq!(room.0.available_permits(), 2);
        assert!(
            room.cover(&mut first, 4096).is_ok(),
            "what is held already covers it"
        );
        let refused = room.cover(&mut second, 3 * 1024).unwrap_err();
        assert_eq!(
            (refused.status.as_u16(), refused.code),
            (503, "guests_busy")
        );
        drop(first);
        assert!(room.cover(&mut second, 3 * 1024).is_ok());
    }
}

//! Reading request bodies: bounded in bytes and in time.

use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, header};
use pingora_core::{Error, ErrorType};
use pingora_proxy::Session;

use super::Settings;
use crate::failure::Failure;
use crate::route::Limits;

/// What a body may cost.
#[derive(Clone, Copy)]
pub(super) struct BodyLimit {
    pub bytes_max: u64,
    /// For the whole body, from the end of the head, besides what its size takes.
    pub timeout: Duration,
    /// Bytes a second at which a body may come in for as long as it likes.
    pub rate_min: u64,
}

impl BodyLimit {
    pub(super) fn too_large(&self) -> Failure {
        Failure::payload_too_large(format!(
            "the request body may have at most {} bytes",
            self.bytes_max
        ))
    }

    /// The limits of a body of up to so many bytes.
    pub(super) fn new(settings: &Settings, bytes_max: u64) -> BodyLimit {
        BodyLimit {
            bytes_max,
            timeout: settings.timeouts.request_body,
            rate_min: settings.bounds.body_rate_min,
        }
    }

    /// The limits of a route's bodies.
    pub(super) fn of_route(settings: &Settings, limits: &Limits) -> BodyLimit {
        let bytes_max = limits.body_bytes_max.unwrap_or(settings.body_bytes_max);
        BodyLimit {
            timeout: limits
                .body_timeout
                .unwrap_or(settings.timeouts.request_body),
            ..BodyLimit::new(settings, bytes_max)
        }
    }

    /// How much longer a body may take because so many bytes of it came in.
    pub(super) fn time_for(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate_min.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    pub(super) fn too_slow(&self) -> Failure {
        Failure::new(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            format!(
                "the request body did not arrive within {} s and what its size takes at {} bytes a second",
                self.timeout.as_secs_f32(),
                self.rate_min
            ),
        )
    }

    /// Refuses at once a body whose announced length is over the limit.
    pub(super) fn check_announced(&self, session: &Session) -> Result<(), Failure> {
        match announced(session) {
            Some(length) if length > self.bytes_max => Err(self.too_large()),
            Some(_) | None => Ok(()),
        }
    }
}

/// The body's length as the client announced it.
pub(super) fn announced(session: &Session) -> Option<u64> {
    session
        .get_header(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok())
}

/// Answers `Expect: 100-continue` (RFC 9110 section 10.1.1), once the body is wanted.
pub(super) async fn invite(session: &mut Session) -> Result<(), Box<Error>> {
    let expects = session
        .get_header(header::EXPECT)
        .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if expects {
        let invited = session.as_downstream_mut().write_continue_response().await;
        invited.map_err(Error::into_down)?;
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

/// Reads on after an answer that did not wait for the whole body. HTTP/2 would else reset the stream,
/// and a connection that is closed while something of it is unread is reset (RFC 9112 section 9.6):
/// either may overtake the answer. Of a connection that goes on, Pingora does the same itself. Bounded
/// in bytes and time: a client that goes on sending is cut off.
pub(super) async fn linger(session: &mut Session, timeout: Duration) {
    const BYTES_MAX: usize = 4 * 1024 * 1024;
    /// Of HTTP/1 only, where it is the end of the connection that is waited for.
    const SILENCE_MAX: Duration = Duration::from_millis(500);
    let downstream = session.as_downstream_mut();
    if downstream.is_body_done() {
        return;
    }
    let mut silence_max = timeout;
    if !downstream.is_http2() {
        let goes_on = downstream.get_keepalive().is_some()
            && downstream.get_keepalive_reuses_remaining() != Some(0);
        // The answer leaves before anything is waited for.
        if goes_on || downstream.finish_body().await.is_err() {
            return;
        }
        silence_max = SILENCE_MAX;
    }
    let discard = async {
        let mut read = 0;
        while read < BYTES_MAX {
            let chunk = tokio::time::timeout(silence_max, downstream.read_request_body()).await;
            match chunk {
                Ok(Ok(Some(chunk))) => read += chunk.len(),
                Ok(Ok(None) | Err(_)) | Err(_) => return,
            }
        }
    };
    // Running out of time is one of the ways to end.
    let _ = tokio::time::timeout(timeout, discard).await;
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
            Err(error) => return error.into_down(),
        }
    }
}

/// Resolves when the client has gone away, where nothing of its body is read meanwhile. One whose
/// body or next request is on its way is not seen to go.
pub(super) async fn left(session: &mut Session) -> Box<Error> {
    let downstream = session.as_downstream_mut();
    if let Some(closed) = downstream.watch_h2_stream_close() {
        return match closed.await {
            Ok(reason) => Error::explain(
                ErrorType::ConnectionClosed,
                format!("the client closed the stream: {reason}"),
            ),
            Err(error) => error,
        };
    }
    while downstream.is_body_done() {
        if let Err(error) = downstream.read_body_or_idle(true).await {
            return error;
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_time_for_its_size() {
        let limit = BodyLimit {
            bytes_max: u64::MAX,
            timeout: Duration::from_secs(60),
            rate_min: 1024,
        };
        assert_eq!(limit.time_for(0), Duration::ZERO);
        assert_eq!(limit.time_for(512), Duration::from_millis(500));
        assert_eq!(limit.time_for(10 * 1024), Duration::from_secs(10));
        assert!(limit.time_for(u64::MAX) > Duration::from_secs(3600));
    }
}

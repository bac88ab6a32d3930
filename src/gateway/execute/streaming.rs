//! The body of an answer that leaves while its guest still writes it.

use std::pin::Pin;

use bytes::Bytes;
use pingora_proxy::Session;

use super::super::compress::Encoder;
use super::super::feed::Feed;
use super::super::respond::Stop;
use super::failures::not_run;
use super::write_encoded;
use crate::sandbox::{Outcome, PipeReader, RunError};

/// A guest whose answer is on its way, and its end once that has come.
pub(super) struct Running<'a, R> {
    pub run: Pin<&'a mut R>,
    pub ended: &'a mut Option<Outcome>,
}

impl<R: Future<Output = Result<Outcome, RunError>>> Running<'_, R> {
    /// Resolves when the guest was stopped, by whom may: that is seen only while somebody waits for it.
    async fn stopped(&mut self) -> Stop {
        if self.ended.is_none() {
            match self.run.as_mut().await {
                Ok(outcome) => *self.ended = Some(outcome),
                Err(error) => return not_run(error),
            }
        }
        std::future::pending().await
    }
}

/// Sends the body as the guest writes it, while the request's body still arrives. `next` is what of it is
/// there already.
pub(super) async fn stream<R: Future<Output = Result<Outcome, RunError>>>(
    session: &mut Session,
    reader: &mut PipeReader,
    feed: &mut Feed,
    guest: &mut Running<'_, R>,
    mut encoder: Option<&mut Encoder>,
    mut next: Bytes,
) -> Result<(), Stop> {
    loop {
        // The client may be slow, or take nothing at all. A stop comes first: it must also be seen where
        // neither side ever waits for the other.
        tokio::select! {
            biased;
            stop = guest.stopped() => return Err(stop),
            written = write_encoded(session, next, encoder.as_deref_mut()) => written?,
        }
        let bytes = tokio::select! {
            biased;
            stop = guest.stopped() => return Err(stop),
            bytes = reader.read() => bytes,
            stop = feed.pump(session) => return Err(stop),
        };
        match bytes {
            Some(bytes) => next = bytes,
            None => return Ok(()),
        }
    }
}

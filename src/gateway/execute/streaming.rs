//! The body of an answer that leaves while its guest still writes it.

use std::pin::Pin;

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

/// Sends the body as the guest writes it, while the request's body still arrives.
pub(super) async fn stream<R: Future<Output = Result<Outcome, RunError>>>(
    session: &mut Session,
    reader: &mut PipeReader,
    feed: &mut Feed,
    guest: &mut Running<'_, R>,
    mut encoder: Option<&mut Encoder>,
) -> Result<(), Stop> {
    loop {
        let bytes = tokio::select! {
            biased;
            bytes = reader.read() => bytes,
            stop = feed.pump(session) => return Err(stop),
            stop = guest.stopped() => return Err(stop),
        };
        let Some(bytes) = bytes else {
            return Ok(());
        };
        // The client may be slow, or take nothing at all.
        tokio::select! {
            biased;
            written = write_encoded(session, bytes, encoder.as_deref_mut()) => written?,
            stop = guest.stopped() => return Err(stop),
        }
    }
}

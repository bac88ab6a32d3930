//! `multipart/form-data` (RFC 7578), read as a stream: each field goes into a bounded buffer as it
//! arrives, and nothing else is kept.
//!
//! The parser (multer) takes all that its input has ready, and looks for a boundary or the end of a
//! part's head in everything it holds. [`Feed`] hands it one chunk at a time and bounds what it may
//! take without getting on, so that neither its memory nor its work can be driven up.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, BodyDataStream};
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};

use super::body::{self, Bound, Collector};
use super::problem::Problem;
use crate::failure::{Failure, code};

/// Fields in one form, unknown ones included.
const FIELDS_MAX: usize = 16;
const FIELD_NAME_BYTES_MAX: usize = 100;
/// What comes before the first boundary, or the boundary and head of one part.
const HEAD_BYTES_MAX: u64 = 8 * 1024;
/// All fields together that no handler asks for.
const SKIPPED: Bound = Bound {
    what: "the total of the fields this resource does not know",
    bytes_max: 65_536,
    setting: None,
};

/// A field that a handler asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    /// The names it goes by. It may be given once, under any of them.
    pub(super) names: &'static [&'static str],
    pub(super) limit: FieldLimit,
}

/// What happens to a field that is too long.
#[derive(Debug, Clone, Copy)]
pub(super) enum FieldLimit {
    /// 413: it is what makes the request large.
    Payload(Bound),
    /// 400: it is a small value out of its range.
    Value { bytes_max: u64 },
}

/// Reads a whole form; the values come in the order of `fields`, `None` where one is missing.
pub(super) async fn read<const N: usize>(
    body: Body,
    boundary: String,
    fields: &[Field; N],
) -> Result<[Option<Bytes>; N], Problem> {
    let allowance = Arc::new(AtomicU64::new(0));
    let feed = Feed::new(body, Arc::clone(&allowance));
    let mut parts = multer::Multipart::new(feed, boundary);
    let mut values = [const { None }; N];
    let mut skipped_bytes = 0;
    for _ in 0..FIELDS_MAX {
        allowance.store(HEAD_BYTES_MAX, Ordering::Relaxed);
        let Some(mut part) = parts
            .next_field()
            .await
            .map_err(|error| malformed(&error))?
        else {
            return Ok(values);
        };
        // From here on the parser passes everything on, and the field's own limit holds.
        allowance.store(u64::MAX, Ordering::Relaxed);
        let name = name_of(&part)?;
        match fields
            .iter()
            .position(|field| field.names.contains(&name.as_str()))
        {
            Some(index) if values[index].is_some() => {
                return Err(repeated(&name, &fields[index]).into());
            }
            Some(index) => values[index] = Some(collect(&mut part, &name, &fields[index]).await?),
            None => skip(&mut part, &mut skipped_bytes).await?,
        }
    }
    Err(refused(format!("the form has more than {FIELDS_MAX} fields")).into())
}

/// The value of a field that must be there and must not be empty.
pub(super) fn required(value: Option<Bytes>, name: &str) -> Result<Bytes, Failure> {
    match value {
        Some(value) if value.is_empty() => {
            Err(Failure::bad_request(format!("the field `{name}` is empty")))
        }
        Some(value) => Ok(value),
        None => Err(Failure::bad_request(format!(
            "the field `{name}` is missing"
        ))),
    }
}

fn name_of(part: &multer::Field<'_>) -> Result<String, Failure> {
    match part.name() {
        Some(name) if name.len() <= FIELD_NAME_BYTES_MAX => Ok(name.to_owned()),
        Some(_) => Err(refused(format!(
            "a field's name is longer than {FIELD_NAME_BYTES_MAX} bytes"
        ))),
        None => Err(refused("a part of the form has no name")),
    }
}

async fn collect(
    part: &mut multer::Field<'_>,
    name: &str,
    field: &Field,
) -> Result<Bytes, Problem> {
    let bound = match field.limit {
        FieldLimit::Payload(bound) => bound,
        FieldLimit::Value { bytes_max } => Bound {
            what: "a field",
            bytes_max,
            setting: None,
        },
    };
    let mut collector = Collector::new(bound);
    while let Some(chunk) = part.chunk().await.map_err(|error| malformed(&error))? {
        collector
            .push(&chunk)
            .map_err(|failure| match field.limit {
                FieldLimit::Payload(_) => failure,
                FieldLimit::Value { bytes_max } => super::values::too_long(name, bytes_max),
            })?;
    }
    Ok(collector.finish())
}

async fn skip(part: &mut multer::Field<'_>, skipped_bytes: &mut u64) -> Result<(), Problem> {
    while let Some(chunk) = part.chunk().await.map_err(|error| malformed(&error))? {
        *skipped_bytes += chunk.len() as u64;
        if *skipped_bytes > SKIPPED.bytes_max {
            return Err(SKIPPED.exceeded().into());
        }
    }
    Ok(())
}

fn repeated(name: &str, field: &Field) -> Failure {
    match field.names {
        [_] => Failure::bad_request(format!("the field `{name}` is given more than once")),
        names => Failure::bad_request(format!(
            "the field `{name}` is given more than once ({} are the same)",
            names.join(", ")
        )),
    }
}

fn refused(message: impl Into<std::borrow::Cow<'static, str>>) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, code::MALFORMED_MULTIPART, message)
}

/// The failure behind an error of the parser. Its own texts may quote the body; ours do not.
fn malformed(error: &multer::Error) -> Failure {
    match error {
        multer::Error::StreamReadFailed(cause) => match cause.downcast_ref::<FeedError>() {
            Some(FeedError::Body(error)) => body::failed(error),
            Some(FeedError::HeadTooLarge) => refused(format!(
                "a part's head, or what comes before the first part, is larger than {HEAD_BYTES_MAX} bytes"
            )),
            None => refused("the form can't be read"),
        },
        multer::Error::IncompleteFieldData { .. } | multer::Error::IncompleteStream => {
            refused("the form ends without its closing boundary, or a boundary is malformed")
        }
        multer::Error::ReadHeaderFailed(_)
        | multer::Error::IncompleteHeaders
        | multer::Error::DecodeHeaderName { .. }
        | multer::Error::DecodeHeaderValue { .. } => refused("a part's head is malformed"),
        // multer's errors are an open set; what is left is about limits that we do not set.
        _ => refused("the form can't be read"),
    }
}

/// A request body, one chunk per wake-up, as long as the allowance lasts.
struct Feed {
    body: BodyDataStream,
    allowance_bytes: Arc<AtomicU64>,
    rest: bool,
}

#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error(transparent)]
    Body(axum::Error),
    #[error("the head of a part is too large")]
    HeadTooLarge,
}

impl Feed {
    fn new(body: Body, allowance_bytes: Arc<AtomicU64>) -> Feed {
        Feed {
            body: body.into_data_stream(),
            allowance_bytes,
            rest: false,
        }
    }
}

impl Stream for Feed {
    type Item = Result<Bytes, FeedError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.rest) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let allowance_bytes = self.allowance_bytes.load(Ordering::Relaxed);
        let chunk = std::task::ready!(self.body.poll_next_unpin(cx));
        Poll::Ready(match chunk {
            Some(Ok(_)) if allowance_bytes == 0 => Some(Err(FeedError::HeadTooLarge)),
            Some(Ok(chunk)) => {
                let left = allowance_bytes.saturating_sub(chunk.len() as u64);
                self.allowance_bytes.store(left, Ordering::Relaxed);
                self.rest = true;
                Some(Ok(chunk))
            }
            Some(Err(error)) => Some(Err(FeedError::Body(error))),
            None => None,
        })
    }
}

#[cfg(test)]
mod tests;

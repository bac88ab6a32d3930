//! Request bodies: what they are, and reading them without keeping more than their limit.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;

use super::problem::Problem;
use crate::failure::{Failure, code};

/// Why a request body ends early. The gateway gives one of these as the error of the body stream;
/// any other error counts as [`BodyError::Gone`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The client closed the connection or reset the stream.
    #[error("the client went away")]
    Gone,
    /// The body did not arrive in time.
    #[error("the request body did not arrive in time")]
    TimedOut,
    /// The gateway's own bound of a control-plane body, in bytes.
    #[error("the request body is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: u64 },
    /// The gateway has no room for more of it now.
    #[error("too many request bodies are being received; try again shortly")]
    NoRoom,
}

/// A bound on the bytes of one thing a client sends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    /// What it bounds, for people: `the module`.
    pub(super) what: &'static str,
    pub(super) bytes_max: u64,
    /// The setting behind it, when an operator can change it.
    pub(super) setting: Option<&'static str>,
}

/// What the body is, by its `Content-Type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ContentType {
    /// There is no such header.
    Missing,
    /// `multipart/form-data`, with its boundary.
    Multipart { boundary: String },
    /// Anything else: the media type in lower case, without parameters.
    Other(String),
}

/// The bytes of one bounded thing, as they come in.
pub(super) struct Collector {
    bound: Bound,
    bytes: BytesMut,
}

impl Bound {
    pub(super) fn exceeded(&self) -> Failure {
        let Bound {
            what,
            bytes_max,
            setting,
        } = self;
        match setting {
            Some(setting) => Failure::payload_too_large(format!(
                "{what} is larger than the limit of {bytes_max} bytes ({setting})"
            )),
            None => Failure::payload_too_large(format!(
                "{what} is larger than the limit of {bytes_max} bytes"
            )),
        }
    }
}

impl Collector {
    pub(super) fn new(bound: Bound) -> Collector {
        Collector {
            bound,
            bytes: BytesMut::new(),
        }
    }

    /// Keeps a chunk, unless that would be more than the bound.
    pub(super) fn push(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        let bytes_max = usize::try_from(self.bound.bytes_max).unwrap_or(usize::MAX);
        let left = bytes_max.saturating_sub(self.bytes.len());
        if chunk.len() > left {
            return Err(self.bound.exceeded());
        }
        // Doubling on our own keeps the last growth from reserving up to twice the bound.
        if chunk.len() > self.bytes.capacity() - self.bytes.len() {
            let double = self.bytes.len().max(4096);
            self.bytes.reserve(chunk.len().max(double.min(left)));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    pub(super) fn finish(self) -> Bytes {
        self.bytes.freeze()
    }
}

/// The whole body, of at most the bound's bytes.
pub(super) async fn read(body: Body, bound: Bound) -> Result<Bytes, Problem> {
    let mut collector = Collector::new(bound);
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        collector.push(&chunk.map_err(|error| failed(&error))?)?;
    }
    Ok(collector.finish())
}

/// What the body is. Refuses a body that is compressed, since a few bytes of it may be gigabytes.
pub(super) fn content_type(headers: &HeaderMap) -> Result<ContentType, Failure> {
    let coded = |value: &header::HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().any(coded) {
        return Err(Failure::unsupported_media_type(
            "send the body without Content-Encoding",
        ));
    }
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let Some(value) = values.next() else {
        return Ok(ContentType::Missing);
    };
    let (Ok(value), None) = (value.to_str(), values.next()) else {
        return Err(Failure::bad_request("Content-Type can't be read"));
    };
    let essence = value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if essence != "multipart/form-data" {
        return Ok(ContentType::Other(essence));
    }
    // RFC 2046 §5.1.1: 1 to 70 characters.
    match multer::parse_boundary(value) {
        Ok(boundary) if (1..=70).contains(&boundary.len()) => {
            Ok(ContentType::Multipart { boundary })
        }
        Ok(_) | Err(_) => Err(Failure::bad_request(
            "Content-Type multipart/form-data needs a boundary of 1 to 70 characters",
        )),
    }
}

/// The failure behind an error of the body stream.
pub(super) fn failed(error: &axum::Error) -> Failure {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<BodyError>() {
            return match error {
                BodyError::Gone => gone(),
                BodyError::TimedOut => Failure::request_timeout(error.to_string()),
                BodyError::TooLarge { .. } => Failure::payload_too_large(error.to_string()),
                BodyError::NoRoom => Failure::unavailable(code::GUESTS_BUSY, error.to_string()),
            };
        }
        source = error.source();
    }
    gone()
}

fn gone() -> Failure {
    Failure::new(
        axum::http::StatusCode::BAD_REQUEST,
        code::INCOMPLETE_BODY,
        "the request body ended early",
    )
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use futures_util::stream;

    use super::*;

    const BOUND: Bound = Bound {
        what: "the input",
        bytes_max: 10,
        setting: Some("MAX_INPUT_SIZE"),
    };

    fn body(chunks: Vec<Result<&'static str, BodyError>>) -> Body {
        Body::from_stream(stream::iter(chunks))
    }

    async fn failure(chunks: Vec<Result<&'static str, BodyError>>) -> Failure {
        read(body(chunks), BOUND).await.unwrap_err().failure
    }

    #[tokio::test]
    async fn a_body_may_be_as_large_as_its_bound() {
        let ten = read(body(vec![Ok("12345"), Ok(""), Ok("67890")]), BOUND)
            .await
            .unwrap();
        assert_eq!(&ten[..], b"1234567890");
        let failure = failure(vec![Ok("12345"), Ok("678901")]).await;
        assert_eq!(
            (failure.status.as_u16(), failure.code),
            (413, "payload_too_large")
        );
        assert_eq!(
            failure.message,
            "the input is larger than the limit of 10 bytes (MAX_INPUT_SIZE)"
        );
    }

    #[tokio::test]
    async fn an_endless_body_is_left_at_its_bound() {
        let endless = Body::from_stream(stream::repeat_with(|| Ok::<_, BodyError>("123")));
        let problem = read(endless, BOUND).await.unwrap_err();
        assert_eq!(problem.failure.code, "payload_too_large");
    }

    #[tokio::test]
    async fn a_broken_body_is_told_by_its_reason() {
        let answer = |failure: Failure| (failure.status.as_u16(), failure.code);
        let gone = failure(vec![Ok("1"), Err(BodyError::Gone)]).await;
        assert_eq!(answer(gone), (400, "incomplete_body"));
        let late = failure(vec![Err(BodyError::TimedOut)]).await;
        assert_eq!(answer(late), (408, "request_timeout"));
        let large = failure(vec![Err(BodyError::TooLarge { bytes_max: 99 })]).await;
        assert!(large.message.contains("99 bytes"));
        assert_eq!(answer(large), (413, "payload_too_large"));
        let full = failure(vec![Ok("1"), Err(BodyError::NoRoom)]).await;
        assert_eq!(answer(full), (503, "guests_busy"));
        let other = Body::from_stream(stream::iter([Err::<Bytes, _>(std::io::Error::other("?"))]));
        let other = read(other, BOUND).await.unwrap_err().failure;
        assert_eq!(answer(other), (400, "incomplete_body"));
    }

    #[test]
    fn collecting_reserves_no_more_than_the_bound() {
        let bytes_max = 1 << 20;
        let mut collector = Collector::new(Bound { bytes_max, ..BOUND });
        for _ in 0..bytes_max / 1024 {
            collector.push(&[7; 1024]).unwrap();
        }
        assert!(collector.bytes.capacity() as u64 <= bytes_max + 4096);
        assert!(collector.push(b"1").is_err());
        assert_eq!(collector.finish().len() as u64, bytes_max);
    }

    #[test]
    fn content_types() {
        let parse = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(value).unwrap());
            content_type(&headers)
        };
        assert_eq!(content_type(&HeaderMap::new()), Ok(ContentType::Missing));
        assert_eq!(
            parse("Application/WASM; x=y"),
            Ok(ContentType::Other("application/wasm".into()))
        );
        for value in [
            "multipart/form-data; boundary=x",
            "Multipart/Form-Data;boundary=\"x\"",
        ] {
            assert_eq!(
                parse(value),
                Ok(ContentType::Multipart {
                    boundary: "x".into()
                }),
                "{value}"
            );
        }
        let long = format!("multipart/form-data; boundary={}", "x".repeat(71));
        for value in [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            &long,
        ] {
            assert_eq!(parse(value).unwrap_err().status.as_u16(), 400, "{value}");
        }
    }

    #[test]
    fn repeated_types_and_compressed_bodies_are_refused() {
        let mut headers = HeaderMap::new();
        headers.append(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/wasm"),
        );
        headers.append(header::CONTENT_TYPE, HeaderValue::from_static("text/wat"));
        assert_eq!(content_type(&headers).unwrap_err().status.as_u16(), 400);
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert_eq!(content_type(&headers).unwrap_err().status.as_u16(), 415);
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        assert_eq!(content_type(&headers), Ok(ContentType::Missing));
    }
}

//! Compressed answers: which, how, and within what memory.
//!
//! Pingora's own module has no thresholds, ignores the weights of `Accept-Encoding`, and flushes only
//! at the end of a body, so that what a guest streams would wait.

mod passing;

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use pingora_core::{Error, ErrorType};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::Ctx;
use super::respond::vary;
pub use passing::PassingBuilder;
pub(super) use passing::pass_through;

/// Bodies that are being compressed at a time, each with up to about 1.5 MiB of memory. Beyond it,
/// bodies are sent as they are.
const ENCODERS_MAX: usize = 128;
/// Looking back further compresses little better and takes more memory: 256 KiB.
const WINDOW_LOG: u32 = 18;
/// What a machine can do beside everything else; higher levels cost several times the CPU time.
const GZIP_LEVEL: u32 = 5;
const BROTLI_QUALITY: u32 = 4;
const ZSTD_LEVEL: i32 = 3;

/// Which answers are worth compressing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compression {
    /// For routes that don't say themselves.
    pub enabled: bool,
    /// Smaller bodies are sent as they are.
    pub bytes_min: u64,
    /// `text/html`, or with one `*`: `text/*`, `application/*+json`. Lower case.
    pub types: Vec<String>,
}

/// A coding that both sides know, the one we like best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Zstd,
    Brotli,
    Gzip,
}

const CODINGS: [Coding; 3] = [Coding::Zstd, Coding::Brotli, Coding::Gzip];

/// Compresses one body, piece by piece.
pub(super) struct Encoder {
    stream: Option<Stream>,
    /// Whether each piece must reach the client before the next: in a body without a length, which may
    /// be written as things happen.
    is_live: bool,
    _slot: Slot,
}

enum Stream {
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Gzip(GzEncoder<Vec<u8>>),
}

/// A place among [`ENCODERS_MAX`].
struct Slot;

static ENCODERS: AtomicUsize = AtomicUsize::new(0);

/// Decides whether this answer is compressed, and changes its head if so. `length` is the body's, if
/// that is known. Where the answer would differ by what clients accept, its head says so.
pub(super) fn begin(
    session: &Session,
    ctx: &Ctx,
    head: &mut ResponseHeader,
    length: Option<u64>,
) -> Result<Option<Encoder>, Box<Error>> {
    let Some(route) = ctx.route() else {
        return Ok(None);
    };
    let compression = &ctx.plan.settings.compression;
    if !route.compress.unwrap_or(compression.enabled) {
        return Ok(None);
    }
    if head.status == StatusCode::NOT_MODIFIED && head.headers.contains_key(header::ETAG) {
        // Of an answer that may have been compressed, and says what that one said (RFC 9110 section
        // 15.4.5).
        vary(head, "accept-encoding")?;
        if accepted(&session.req_header().headers).is_some() {
            weaken_tag(head)?;
        }
        return Ok(None);
    }
    if !is_fit(compression, head, length) {
        return Ok(None);
    }
    vary(head, "accept-encoding")?;
    let request = session.req_header();
    if request.method == Method::HEAD || request.version == Version::HTTP_10 {
        return Ok(None);
    }
    let Some(coding) = accepted(&request.headers) else {
        return Ok(None);
    };
    let Some(encoder) = Slot::take().and_then(|slot| Encoder::new(coding, length.is_none(), slot))
    else {
        return Ok(None);
    };
    edit_head(head, coding)?;
    Ok(Some(encoder))
}

/// Whether this answer, to whomever, is one to compress.
fn is_fit(compression: &Compression, head: &ResponseHeader, length: Option<u64>) -> bool {
    let bodiless = matches!(
        head.status,
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
    );
    // A part of a body, or a digest of it, is one of the bytes as they are.
    let is_of_these_bytes = head.status == StatusCode::PARTIAL_CONTENT
        || [
            "content-range",
            // Of a body with trailers the end is not ours to write.
            "trailer",
            "content-md5",
            "digest",
            "content-digest",
            "repr-digest",
        ]
        .iter()
        .any(|name| head.headers.contains_key(*name));
    if bodiless || head.status.is_informational() || is_of_these_bytes {
        return false;
    }
    if head.headers.contains_key(header::CONTENT_ENCODING) || forbids_change(&head.headers) {
        return false;
    }
    if length.is_some_and(|length| length < compression.bytes_min.max(1)) {
        return false;
    }
    let kind = head.headers.get(header::CONTENT_TYPE);
    kind.and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| is_listed(&compression.types, kind))
}

/// `Cache-Control: no-transform` (RFC 9111 section 5.2.2.6).
fn forbids_change(headers: &HeaderMap) -> bool {
    let mut directives = headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','));
    directives.any(|directive| directive.trim().eq_ignore_ascii_case("no-transform"))
}

fn is_listed(types: &[String], content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    types.iter().any(|pattern| match pattern.split_once('*') {
        None => pattern.eq_ignore_ascii_case(essence),
        Some((start, end)) => {
            let (text, own) = (essence.as_bytes(), (start.as_bytes(), end.as_bytes()));
            text.len() >= own.0.len() + own.1.len()
                && text[..own.0.len()].eq_ignore_ascii_case(own.0)
                && text[text.len() - own.1.len()..].eq_ignore_ascii_case(own.1)
        }
    })
}

/// The coding that the client likes best, and of equal ones we do (RFC 9110 section 12.5.3). `None`
/// where it would rather have none; a client that says nothing gets none either.
fn accepted(headers: &HeaderMap) -> Option<Coding> {
    let mut weights = [None; CODINGS.len()];
    let (mut identity, mut rest) = (None, None);
    let items = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','));
    for item in items {
        let (name, weight) = weighted(item);
        match name.to_ascii_lowercase().as_str() {
            "zstd" => weights[0] = Some(weight),
            "br" => weights[1] = Some(weight),
            "gzip" | "x-gzip" => weights[2] = Some(weight),
            "identity" => identity = Some(weight),
            "*" => rest = Some(weight),
            _ => {}
        }
    }
    // The first of the best: `max_by_key` would give the last.
    let mut best: Option<(u16, Coding)> = None;
    for (coding, weight) in CODINGS.into_iter().zip(weights) {
        let weight = weight.or(rest).unwrap_or(0);
        if weight > best.map_or(0, |(best, _)| best) {
            best = Some((weight, coding));
        }
    }
    best.filter(|(weight, _)| *weight >= identity.unwrap_or(0))
        .map(|(_, coding)| coding)
}

/// A name and its weight in thousandths. One that can't be read counts as none.
fn weighted(item: &str) -> (&str, u16) {
    let mut parts = item.split(';');
    let name = parts.next().unwrap_or_default().trim();
    let weight = parts.find_map(|part| {
        let (key, value) = part.split_once('=')?;
        key.trim().eq_ignore_ascii_case("q").then(|| {
            let value: f32 = value.trim().parse().unwrap_or(0.0);
            (value.clamp(0.0, 1.0) * 1000.0) as u16
        })
    });
    (name, weight.unwrap_or(1000))
}

fn edit_head(head: &mut ResponseHeader, coding: Coding) -> Result<(), Box<Error>> {
    head.insert_header(header::CONTENT_ENCODING, coding.name())?;
    head.remove_header(&header::CONTENT_LENGTH);
    head.remove_header(&header::ACCEPT_RANGES);
    weaken_tag(head)
}

/// The same content in other bytes: no longer equal byte for byte (RFC 9110 section 8.8.1).
fn weaken_tag(head: &mut ResponseHeader) -> Result<(), Box<Error>> {
    let tag = head.headers.get(header::ETAG).map(HeaderValue::as_bytes);
    if let Some(tag) = tag
        && tag.starts_with(b"\"")
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag].concat())
    {
        head.insert_header(header::ETAG, weak)?;
    }
    Ok(())
}

impl Coding {
    fn name(self) -> &'static str {
        match self {
            Coding::Zstd => "zstd",
            Coding::Brotli => "br",
            Coding::Gzip => "gzip",
        }
    }
}

impl Encoder {
    fn new(coding: Coding, is_live: bool, slot: Slot) -> Option<Encoder> {
        const BUFFER_BYTES: usize = 4096;
        let stream = match coding {
            Coding::Zstd => {
                let mut stream = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL).ok()?;
                stream.window_log(WINDOW_LOG).ok()?;
                Stream::Zstd(stream)
            }
            Coding::Brotli => Stream::Brotli(Box::new(brotli::CompressorWriter::new(
                Vec::new(),
                BUFFER_BYTES,
                BROTLI_QUALITY,
                WINDOW_LOG,
            ))),
            Coding::Gzip => {
                let level = flate2::Compression::new(GZIP_LEVEL);
                Stream::Gzip(GzEncoder::new(Vec::new(), level))
            }
        };
        Some(Encoder {
            stream: Some(stream),
            is_live,
            _slot: slot,
        })
    }

    /// The next bytes to send, possibly none; with `end`, the last.
    pub(super) fn encode(&mut self, bytes: &[u8], end: bool) -> Result<Bytes, Box<Error>> {
        let encoded = match (self.stream.take(), end) {
            (Some(stream), true) => stream.finish(bytes),
            (Some(mut stream), false) => {
                let encoded = stream.push(bytes, self.is_live);
                self.stream = Some(stream);
                encoded
            }
            (None, _) => Ok(Vec::new()),
        };
        encoded
            .map(Bytes::from)
            .map_err(|error| Error::because(ErrorType::InternalError, "compressing a body", error))
    }
}

impl Stream {
    fn push(&mut self, bytes: &[u8], flush: bool) -> io::Result<Vec<u8>> {
        fn through<W: Write>(writer: &mut W, bytes: &[u8], flush: bool) -> io::Result<()> {
            writer.write_all(bytes)?;
            if flush { writer.flush() } else { Ok(()) }
        }
        match self {
            Stream::Zstd(stream) => {
                through(stream, bytes, flush)?;
                Ok(std::mem::take(stream.get_mut()))
            }
            Stream::Brotli(stream) => {
                through(stream.as_mut(), bytes, flush)?;
                Ok(std::mem::take(stream.get_mut()))
            }
            Stream::Gzip(stream) => {
                through(stream, bytes, flush)?;
                Ok(std::mem::take(stream.get_mut()))
            }
        }
    }

    fn finish(self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Stream::Zstd(mut stream) => {
                stream.write_all(bytes)?;
                stream.finish()
            }
            Stream::Brotli(mut stream) => {
                stream.write_all(bytes)?;
                Ok(stream.into_inner())
            }
            Stream::Gzip(mut stream) => {
                stream.write_all(bytes)?;
                stream.finish()
            }
        }
    }
}

impl Slot {
    fn take() -> Option<Slot> {
        // The slot gives its place back also where there was none.
        let slot = Slot;
        (ENCODERS.fetch_add(1, Ordering::Relaxed) < ENCODERS_MAX).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        ENCODERS.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;

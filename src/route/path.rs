//! Request paths: what is refused, and what routes are matched on.
//!
//! The gateway decides by the path who may call what, and an upstream then reads the same path with
//! its own rules. Where the two could differ, a request could pass under one route and be served as
//! another. [`normalize`] therefore refuses every path that software in the wild reads in more than
//! one way, and routes are matched on what is left: the segments between slashes, percent-decoded
//! once (RFC 3986 sections 2.1 and 3.3).
//!
//! Refused, with 400:
//!
//! - a path that does not begin with `/`;
//! - `%` without two hexadecimal digits, and what still holds an escape once decoded (`%2541`);
//! - an encoded `/`, a backslash, a control character or NUL, encoded or not;
//! - `;`, encoded or not: some servers cut a segment there (`/admin;x` is `/admin` to them);
//! - the segments `.` and `..`, encoded or not;
//! - bytes that are not visible ASCII, and escapes that do not decode to UTF-8, overlong forms of
//!   other characters among them.
//!
//! Not refused, but matched by no route: empty segments (`//`), which some servers merge. One slash
//! at the end makes no difference.

use std::borrow::Cow;

/// A request's path that has passed [`normalize`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPath<'a> {
    raw: &'a str,
    decoded: Cow<'a, str>,
}

/// Why a request's path is refused. The text may be shown to the client; the status is 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path must begin with `/`")]
    NotRooted,
    #[error("the path has a `%` without two hexadecimal digits after it")]
    InvalidEscape,
    #[error("the path is escaped twice; escape it once")]
    DoubleEscape,
    #[error("the path has an encoded slash; only `/` itself may separate segments")]
    EncodedSlash,
    #[error("the path has a backslash")]
    Backslash,
    #[error("the path has a control character")]
    Control,
    #[error("the path has a `;`, which servers read in different ways")]
    Semicolon,
    #[error("the path has a `.` or `..` segment; resolve it before sending")]
    DotSegment,
    #[error("the path has a character that must be percent-encoded")]
    Unencoded,
    #[error("the path does not decode to UTF-8")]
    NotUtf8,
}

/// Checks a request's path, as received and without its query, and decodes it for matching. Does
/// not allocate where nothing is escaped.
///
/// # Errors
/// See the module's documentation for what is refused.
pub fn normalize(raw: &str) -> Result<RequestPath<'_>, PathError> {
    if !raw.starts_with('/') {
        return Err(PathError::NotRooted);
    }
    // The common case needs one look at each byte. A segment that begins with a dot is looked at
    // closely below.
    if raw.bytes().all(is_plain) && !raw.contains("/.") {
        return Ok(RequestPath {
            raw,
            decoded: Cow::Borrowed(raw),
        });
    }
    if raw
        .bytes()
        .any(|byte| byte > 0x7f || matches!(byte, b' ' | b'?' | b'#'))
    {
        return Err(PathError::Unencoded);
    }
    let decoded = decode(raw)?;
    check_decoded(&decoded)?;
    Ok(RequestPath { raw, decoded })
}

impl<'a> RequestPath<'a> {
    /// The path as received.
    pub fn raw(&self) -> &'a str {
        self.raw
    }

    /// The path with its escapes decoded. Slashes in it are slashes of the path as received.
    pub fn decoded(&self) -> &str {
        &self.decoded
    }

    /// The path as received, split after its first `count` segments: what a route matched, and the
    /// rest (empty, or beginning with `/`). Both are the whole path where it has no more segments.
    pub fn split_after(&self, count: usize) -> (&'a str, &'a str) {
        // Segment `count + 1` begins at slash `count + 1`; an encoded slash was refused, so the
        // segments as received and as decoded are the same ones.
        let end = self
            .raw
            .match_indices('/')
            .nth(count)
            .map_or(self.raw.len(), |(at, _)| at);
        self.raw.split_at(end)
    }

    /// The decoded segments.
    pub(super) fn segments(&self) -> Segments<'_> {
        Segments {
            rest: &self.decoded,
        }
    }

    pub(super) fn has_empty_segment(&self) -> bool {
        self.decoded.contains("//")
    }
}

/// The decoded segments still ahead; the slash at the end of a path begins none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segments<'a> {
    rest: &'a str,
}

impl<'a> Segments<'a> {
    /// The next segment and those after it.
    pub(super) fn split_first(self) -> Option<(&'a str, Segments<'a>)> {
        let tail = self
            .rest
            .strip_prefix('/')
            .filter(|tail| !tail.is_empty())?;
        let end = tail.find('/').unwrap_or(tail.len());
        let (segment, rest) = tail.split_at(end);
        Some((segment, Segments { rest }))
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let (segment, rest) = self.split_first()?;
        *self = rest;
        Some(segment)
    }
}

/// A byte that is what it seems to be, and that no rule above speaks of.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'%' | b';' | b'?' | b'#' | b'\\')
}

/// Decodes each escape once.
pub(super) fn decode(raw: &str) -> Result<Cow<'_, str>, PathError> {
    let Some(first) = raw.find('%') else {
        return Ok(Cow::Borrowed(raw));
    };
    let bytes = raw.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    decoded.extend_from_slice(&bytes[..first]);
    let mut rest = &bytes[first..];
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            decoded.push(byte);
            rest = tail;
            continue;
        }
        let [high, low, tail @ ..] = tail else {
            return Err(PathError::InvalidEscape);
        };
        let byte = escaped(*high, *low).ok_or(PathError::InvalidEscape)?;
        if byte == b'/' {
            return Err(PathError::EncodedSlash);
        }
        decoded.push(byte);
        rest = tail;
    }
    String::from_utf8(decoded)
        .map(Cow::Owned)
        .map_err(|_| PathError::NotUtf8)
}

fn escaped(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| {
        (byte as char)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    Some(digit(high)? << 4 | digit(low)?)
}

/// What may not stand in a decoded path, whether it was escaped or not. Patterns of routes keep the
/// same rules, so that none is written that no request can match.
pub(super) fn check_decoded(decoded: &str) -> Result<(), PathError> {
    if decoded.chars().any(char::is_control) {
        return Err(PathError::Control);
    }
    if decoded.contains('\\') {
        return Err(PathError::Backslash);
    }
    if decoded.contains(';') {
        return Err(PathError::Semicolon);
    }
    let bytes = decoded.as_bytes();
    if bytes
        .windows(3)
        .any(|bytes| bytes[0] == b'%' && escaped(bytes[1], bytes[2]).is_some())
    {
        return Err(PathError::DoubleEscape);
    }
    if decoded
        .split('/')
        .any(|segment| matches!(segment, "." | ".."))
    {
        return Err(PathError::DotSegment);
    }
    Ok(())
}

#[cfg(test)]
mod tests;

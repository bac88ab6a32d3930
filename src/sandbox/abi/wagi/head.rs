//! From a guest's output to a response head: RFC 3875 section 6.

#[cfg(test)]
mod tests;

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderName, HeaderValue};

/// Most bytes before the body: header lines and the empty line after them.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Most header lines.
pub const HEAD_LINES_MAX: usize = 100;

/// Headers about a connection, which is the gateway's own affair (RFC 9110 section 7.6.1). They are
/// dropped, and so are those that only a proxy may send (`Proxy-*`), and what browsers would hold against the
/// whole host, of which a guest answers one path.
const HEADERS_DROPPED: [&str; 8] = [
    "alt-svc",
    "connection",
    "keep-alive",
    "strict-transport-security",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Finds the end of the CGI header block (RFC 3875 section 6.2) in a stream of output.
#[derive(Default)]
pub struct HeadParser {
    /// The output so far; never more than [`HEAD_BYTES_MAX`].
    seen: Vec<u8>,
    /// Where the line begins that is not complete yet.
    line_at: usize,
    /// How far that line is known to have no line feed.
    searched_to: usize,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Head,
    /// The head was handed out, or was no head.
    Done,
}

/// The parsed CGI head.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub status: http::StatusCode,
    /// In the guest's order, without `Status` and what concerns the connection only. At most one
    /// `Content-Length`, which is a number; that it is the body's length is the caller's to hold.
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
}

/// Why a guest's output is not a CGI response; the text may be shown to the route's client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HeadError(pub String);

impl HeadParser {
    /// Feeds output. `Ok(None)` while the head is not complete; then the head and what of the body
    /// came with it. The head may have at most [`HEAD_BYTES_MAX`] bytes. The result does not depend
    /// on how the output was cut. After a head or an error, every call is an error.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<(Head, bytes::Bytes)>, HeadError> {
        if self.state == State::Done {
            return Err(error("the response's head has already ended"));
        }
        let before = self.seen.len();
        let taken = bytes.len().min(HEAD_BYTES_MAX - before);
        self.seen.extend_from_slice(&bytes[..taken]);
        if let Some(end) = self.find_end() {
            self.state = State::Done;
            let head = parse(&self.seen[..end])?;
            // The end is in this piece, or it would have been found before.
            let body = bytes.get(end - before..).unwrap_or_default();
            return Ok(Some((head, Bytes::copy_from_slice(body))));
        }
        if self.seen.len() == HEAD_BYTES_MAX {
            self.state = State::Done;
            return Err(error(format!(
                "the response's head does not end within {HEAD_BYTES_MAX} bytes"
            )));
        }
        Ok(None)
    }

    /// The error for output that ended before the head did.
    pub fn finish(self) -> HeadError {
        if self.seen.is_empty() {
            return error("the guest wrote no response");
        }
        error("the guest's output ended before its headers did: an empty line must follow them")
    }

    /// The end of the first empty line, if it is there. Every byte is looked at once.
    fn find_end(&mut self) -> Option<usize> {
        while let Some(len) = self.seen[self.searched_to..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let end = self.searched_to + len + 1;
            if matches!(&self.seen[self.line_at..end], b"\n" | b"\r\n") {
                return Some(end);
            }
            self.line_at = end;
            self.searched_to = end;
        }
        self.searched_to = self.seen.len();
        None
    }
}

/// What the header lines say, as they come in.
#[derive(Default)]
struct Fields {
    status: Option<StatusCode>,
    headers: Vec<(HeaderName, HeaderValue)>,
    has_content_type: bool,
    has_location: bool,
    has_content_length: bool,
}

/// Parses header lines that end with an empty line.
fn parse(head: &[u8]) -> Result<Head, HeadError> {
    let mut fields = Fields::default();
    for (index, line) in head.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            break;
        }
        if index >= HEAD_LINES_MAX {
            return Err(error(format!(
                "the response has more than {HEAD_LINES_MAX} header lines"
            )));
        }
        fields
            .line(line)
            .map_err(|problem| error(format!("header line {}: {problem}", index + 1)))?;
    }
    fields.finish()
}

impl Fields {
    fn line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let colon =
            line.iter()
                .position(|byte| *byte == b':')
                .ok_or(if line.starts_with(b"HTTP/") {
                    "a status line is written as \"Status: 200 OK\""
                } else {
                    "there is no colon"
                })?;
        let name =
            HeaderName::from_bytes(&line[..colon]).map_err(|_| "the name is not a header name")?;
        let value = trimmed(&line[colon + 1..]);
        if name.as_str() == "status" {
            return self.set_status(value);
        }
        let value =
            HeaderValue::from_bytes(value).map_err(|_| "the value has control characters")?;
        if HEADERS_DROPPED.contains(&name.as_str()) || name.as_str().starts_with("proxy-") {
            return Ok(());
        }
        match name {
            header::CONTENT_TYPE => once(&mut self.has_content_type)?,
            header::LOCATION => once(&mut self.has_location)?,
            header::CONTENT_LENGTH => {
                once(&mut self.has_content_length)?;
                content_length(value.as_bytes())?;
            }
            _ => {}
        }
        self.headers.push((name, value));
        Ok(())
    }

    /// `Status: 404 Not Found`, the reason optional (RFC 3875 section 6.3.3). Codes below 200 only
    /// announce another response, which a guest has no way to give.
    fn set_status(&mut self, value: &[u8]) -> Result<(), &'static str> {
        const PROBLEM: &str = "the status is not a number from 200 to 599";
        let code = value
            .split(|byte| *byte == b' ' || *byte == b'\t')
            .next()
            .unwrap_or_default();
        let status = StatusCode::from_bytes(code).map_err(|_| PROBLEM)?;
        if !(200..=599).contains(&status.as_u16()) {
            return Err(PROBLEM);
        }
        if self.status.replace(status).is_some() {
            return Err("the status is given twice");
        }
        Ok(())
    }

    /// `Location` alone is a redirect with 302, also where the location is a path: RFC 3875 section
    /// 6.2.2 would have the server answer for that path itself, which no client needs.
    fn finish(mut self) -> Result<Head, HeadError> {
        let status = self.status.unwrap_or(if self.has_location {
            StatusCode::FOUND
        } else {
            StatusCode::OK
        });
        let without_body = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
        if !self.has_content_type && !self.has_location && !without_body {
            return Err(error("the response has no Content-Type header"));
        }
        if status == StatusCode::NO_CONTENT {
            // RFC 9110 section 8.6.
            self.headers
                .retain(|(name, _)| *name != header::CONTENT_LENGTH);
        }
        Ok(Head {
            status,
            headers: self.headers,
        })
    }
}

/// RFC 3875 section 6.3: no CGI field stands more than once.
fn once(seen: &mut bool) -> Result<(), &'static str> {
    if std::mem::replace(seen, true) {
        return Err("the header is given twice");
    }
    Ok(())
}

/// Digits only (RFC 9110 section 8.6), and not more than fit in 63 bits.
fn content_length(value: &[u8]) -> Result<(), &'static str> {
    let digits = std::str::from_utf8(value)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse::<u64>().ok()) {
        Some(length) if i64::try_from(length).is_ok() => Ok(()),
        Some(_) | None => Err("the Content-Length is not a number"),
    }
}

/// Without the white space that may stand around a value (RFC 9110 section 5.6.3).
fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn error(text: impl Into<String>) -> HeadError {
    HeadError(text.into())
}

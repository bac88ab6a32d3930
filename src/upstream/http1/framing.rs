//! Where an answer's body ends (RFC 9112 section 6.3), and its pieces.

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode, Version, header};
use pingora_core::{Error, ErrorType};
use pingora_http::ResponseHeader;

/// Longest line of a chunk's size, its extensions included.
const SIZE_LINE_BYTES_MAX: usize = 4 * 1024;
/// Longest trailer section. It is read over: HTTP/1.1 clients are not promised any.
const TRAILER_BYTES_MAX: usize = 16 * 1024;

/// How the end of the body is told, and how far it has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body, or it has ended.
    None,
    /// This many bytes are left.
    Length(u64),
    Chunked(Chunk),
    /// The body lasts as long as the connection.
    UntilClosed,
}

/// What is expected next of a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    Size,
    /// This many bytes are left of the chunk.
    Data(u64),
    /// The line break after a chunk.
    DataEnd,
    /// A line of the trailer section, of which so many bytes have come.
    Trailer(usize),
}

/// A part of the body.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    Data(Bytes),
    /// More must be read.
    More,
    End,
}

impl Framing {
    /// Of an answer that is not informational. Takes away a length that does not count.
    pub fn of(answer: &mut ResponseHeader, method: &Method) -> Result<Framing, Box<Error>> {
        let bodiless = *method == Method::HEAD
            || matches!(
                answer.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        let chunked = is_chunked(answer)?;
        if chunked {
            // RFC 9112 section 6.3, item 3.
            answer.remove_header(&header::CONTENT_LENGTH);
        }
        let length = length(answer)?;
        Ok(match (bodiless, chunked, length) {
            (true, _, _) | (_, false, Some(0)) => Framing::None,
            (false, true, _) => Framing::Chunked(Chunk::Size),
            (false, false, Some(length)) => Framing::Length(length),
            (false, false, None) => Framing::UntilClosed,
        })
    }

    /// The next part of the body out of what was read.
    pub fn take(&mut self, buf: &mut BytesMut) -> Result<Piece, Box<Error>> {
        match self {
            Framing::None => Ok(Piece::End),
            _ if buf.is_empty() => Ok(Piece::More),
            Framing::UntilClosed => Ok(Piece::Data(buf.split().freeze())),
            Framing::Length(left) => {
                let data = split(buf, *left);
                *left -= data.len() as u64;
                if *left == 0 {
                    *self = Framing::None;
                }
                Ok(Piece::Data(data))
            }
            Framing::Chunked(chunk) => match chunk.take(buf)? {
                Piece::End => {
                    *self = Framing::None;
                    Ok(Piece::End)
                }
                piece => Ok(piece),
            },
        }
    }
}

impl Chunk {
    fn take(&mut self, buf: &mut BytesMut) -> Result<Piece, Box<Error>> {
        loop {
            match self {
                Chunk::Size => {
                    let Some(line) = line(buf, SIZE_LINE_BYTES_MAX)? else {
                        return Ok(Piece::More);
                    };
                    *self = match size(&line)? {
                        0 => Chunk::Trailer(0),
                        size => Chunk::Data(size),
                    };
                }
                Chunk::Data(_) if buf.is_empty() => return Ok(Piece::More),
                Chunk::Data(left) => {
                    let data = split(buf, *left);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        *self = Chunk::DataEnd;
                    }
                    return Ok(Piece::Data(data));
                }
                Chunk::DataEnd => match line(buf, 0)? {
                    Some(_) => *self = Chunk::Size,
                    None => return Ok(Piece::More),
                },
                Chunk::Trailer(read) => match line(buf, TRAILER_BYTES_MAX - *read)? {
                    Some(line) if line.is_empty() => return Ok(Piece::End),
                    Some(line) => *read = (*read + line.len()).min(TRAILER_BYTES_MAX),
                    None => return Ok(Piece::More),
                },
            }
        }
    }
}

/// Whether an answer that has no content (RFC 9110 section 15.3.5) speaks of its length all the same. Takes
/// those fields away; what may follow is nothing to wait for.
pub fn is_contradictory(answer: &mut ResponseHeader) -> bool {
    if answer.status != StatusCode::NO_CONTENT {
        return false;
    }
    let length = answer.remove_header(&header::CONTENT_LENGTH);
    let coding = answer.remove_header(&header::TRANSFER_ENCODING);
    length.is_some_and(|length| length != "0") || coding.is_some()
}

fn split(buf: &mut BytesMut, most: u64) -> Bytes {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    buf.split_to(buf.len().min(most)).freeze()
}

/// A line without its end, which is CR LF and nothing else. `max` bounds what stands before it.
fn line(buf: &mut BytesMut, max: usize) -> Result<Option<Bytes>, Box<Error>> {
    let seen = &buf[..buf.len().min(max + 2)];
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        if seen.len() == max + 2 {
            return Err(malformed("has a line that is too long, in its chunks"));
        }
        return Ok(None);
    };
    if end == 0 || seen[end - 1] != b'\r' {
        return Err(malformed("has a line feed alone, in its chunks"));
    }
    let line = buf.split_to(end - 1).freeze();
    buf.advance(2);
    Ok(Some(line))
}

/// The size of a chunk: hexadecimal digits, and extensions that say nothing to us.
fn size(line: &[u8]) -> Result<u64, Box<Error>> {
    let end = line.iter().position(|byte| *byte == b';');
    let (digits, extensions) = line.split_at(end.unwrap_or(line.len()));
    let digits = digits.trim_ascii_end();
    let is_size = !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
    if !is_size || extensions.contains(&b'\r') {
        return Err(malformed("has a chunk without a size"));
    }
    let digits = std::str::from_utf8(digits).ok();
    let size = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    size.ok_or_else(|| malformed("has a chunk that is too large"))
}

/// Whether the body comes in chunks. Another coding would have to be undone here, or be lost.
fn is_chunked(answer: &ResponseHeader) -> Result<bool, Box<Error>> {
    let mut values = answer.headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(value) = values.next() else {
        return Ok(false);
    };
    let is_chunked = value.as_bytes().eq_ignore_ascii_case(b"chunked");
    if !is_chunked || values.next().is_some() {
        return Err(malformed("has a Transfer-Encoding other than chunked"));
    }
    if answer.version != Version::HTTP_11 {
        return Err(malformed("has a Transfer-Encoding that its version lacks"));
    }
    Ok(true)
}

/// The one length that all its fields and their elements agree on (RFC 9110 section 8.6), made the only one.
fn length(answer: &mut ResponseHeader) -> Result<Option<u64>, Box<Error>> {
    let (mut length, mut count) = (None, 0);
    for value in answer.headers.get_all(header::CONTENT_LENGTH) {
        for element in value.as_bytes().split(|byte| *byte == b',') {
            let number = number(element.trim_ascii())?;
            if length.is_some_and(|length| length != number) {
                return Err(malformed("has two lengths"));
            }
            length = Some(number);
            count += 1;
        }
    }
    if let (Some(length), 2..) = (length, count) {
        answer.insert_header(header::CONTENT_LENGTH, length)?;
    }
    Ok(length)
}

fn number(value: &[u8]) -> Result<u64, Box<Error>> {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let digits = std::str::from_utf8(value).ok().filter(|_| is_number);
    let number = digits.and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| malformed("has a Content-Length that is no number"))
}

pub(super) fn malformed(what: &str) -> Box<Error> {
    Error::explain(
        ErrorType::InvalidHTTPHeader,
        format!("the upstream's answer {what}"),
    )
}

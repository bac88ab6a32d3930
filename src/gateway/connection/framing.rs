//! A second, strict reading of HTTP/1 on the bytes as they come in, before Pingora reads them.
//!
//! Pingora takes lines that end in a bare LF, an empty chunk size, anything in a chunk extension, and
//! escapes what is no URI. Another server on the way may read each of these differently, and what two
//! servers read differently is how requests are smuggled. What breaks a rule here never gets to Pingora.

use memchr::memchr2;

use crate::gateway::Bounds;

/// Why a client's bytes are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not HTTP/1, or something that could be read in two ways (400).
    Malformed(&'static str),
    /// The request target is too long (414).
    Target,
    /// Too many header fields, or too many bytes in them (431).
    Head,
}

/// Longest line that begins a chunk, its extension included.
const CHUNK_LINE_BYTES_MAX: usize = 256;
/// Trailer fields, all together.
const TRAILERS_BYTES_MAX: usize = 8 * 1024;
/// What chunking may add to a body, beyond what reasonable chunks do: a client that sends each byte
/// with a long extension makes us read much for little.
const CHUNK_EXCESS_BYTES_MAX: usize = 16 * 1024;
/// More hexadecimal digits than any chunk needs.
const CHUNK_DIGITS_MAX: usize = 12;

/// How far the client's requests have been read.
#[derive(Debug)]
pub struct Framing {
    state: State,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    head: Head,
    chunk_excess: usize,
    trailers_bytes: usize,
    head_bytes_max: usize,
    headers_max: usize,
    target_bytes_max: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before and within the request line.
    RequestLine,
    Fields,
    /// Body bytes that are left, of a body with a Content-Length.
    Body(u64),
    ChunkSize,
    Chunk(u64),
    /// The CRLF behind a chunk's data.
    ChunkEnd,
    Trailers,
    /// HTTP/1 has ended: the protocol was switched.
    Other,
}

/// What is known of the head that is being read.
#[derive(Debug, Default)]
struct Head {
    bytes: usize,
    fields: usize,
    length: Option<u64>,
    chunked: bool,
    http_10: bool,
}

impl Framing {
    pub fn new(bounds: &Bounds) -> Framing {
        Framing {
            state: State::RequestLine,
            line: Vec::new(),
            head: Head::default(),
            chunk_excess: 0,
            trailers_bytes: 0,
            head_bytes_max: bounds.head_bytes_max,
            headers_max: bounds.headers_max,
            target_bytes_max: bounds.uri_bytes_max,
        }
    }

    /// What follows is not HTTP/1 any more (RFC 9110 section 7.8).
    pub fn switch_protocol(&mut self) {
        self.state = State::Other;
        self.line = Vec::new();
    }

    /// Reads on.
    ///
    /// # Errors
    /// How many of these bytes were fine, and why the next is not.
    pub fn accept(&mut self, bytes: &[u8]) -> Result<(), (usize, Refusal)> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.state {
                State::Other => return Ok(()),
                State::Body(left) => {
                    let taken = take(left, rest.len());
                    at += taken;
                    self.state = match left - taken as u64 {
                        0 => State::RequestLine,
                        left => State::Body(left),
                    };
                }
                State::Chunk(left) => {
                    let taken = take(left, rest.len());
                    at += taken;
                    self.state = match left - taken as u64 {
                        0 => State::ChunkEnd,
                        left => State::Chunk(left),
                    };
                }
                State::RequestLine
                | State::Fields
                | State::ChunkSize
                | State::ChunkEnd
                | State::Trailers => {
                    at += self.read_line(rest).map_err(|refusal| (at, refusal))?;
                }
            }
        }
        Ok(())
    }

    /// Reads up to the end of a line; says how many bytes that took.
    fn read_line(&mut self, rest: &[u8]) -> Result<usize, Refusal> {
        // A CR that was the last byte so far must be followed by the LF.
        let ended_in_cr = self.line.last() == Some(&b'\r');
        let found = if ended_in_cr {
            Some(0)
        } else {
            memchr2(b'\r', b'\n', rest)
        };
        let Some(found) = found else {
            self.check_unfinished(rest.len())?;
            self.line.extend_from_slice(rest);
            return Ok(rest.len());
        };
        let end = if ended_in_cr { 0 } else { found + 1 };
        if !ended_in_cr && rest[found] == b'\n' {
            return Err(Refusal::Malformed("a line must end in CR LF"));
        }
        match rest.get(end) {
            None => {
                self.check_unfinished(rest.len())?;
                self.line.extend_from_slice(rest);
                Ok(rest.len())
            }
            Some(b'\n') if self.line.is_empty() => {
                self.line_is(&rest[..found])?;
                Ok(end + 1)
            }
            Some(b'\n') => {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(&rest[..end]);
                line.pop();
                self.line_is(&line)?;
                // The allocation is kept for the next line that comes in pieces.
                line.clear();
                self.line = line;
                Ok(end + 1)
            }
            Some(_) => Err(Refusal::Malformed("a CR must be followed by LF")),
        }
    }

    /// A line may not outgrow its bound before it ends.
    fn check_unfinished(&self, more: usize) -> Result<(), Refusal> {
        let so_far = self.line.len() + more;
        match self.state {
            State::RequestLine if so_far > self.target_bytes_max + METHOD_AND_VERSION_BYTES => {
                Err(Refusal::Target)
            }
            State::RequestLine | State::Fields
                if self.head.bytes + so_far > self.head_bytes_max =>
            {
                Err(Refusal::Head)
            }
            State::ChunkSize | State::ChunkEnd if so_far > CHUNK_LINE_BYTES_MAX => Err(BAD_CHUNK),
            State::Trailers if self.trailers_bytes + so_far > TRAILERS_BYTES_MAX => {
                Err(LONG_TRAILERS)
            }
            State::RequestLine
            | State::Fields
            | State::ChunkSize
            | State::ChunkEnd
            | State::Trailers
            | State::Body(_)
            | State::Chunk(_)
            | State::Other => Ok(()),
        }
    }

    /// A whole line, without its CRLF.
    fn line_is(&mut self, line: &[u8]) -> Result<(), Refusal> {
        match self.state {
            State::RequestLine => self.request_line(line),
            State::Fields if line.is_empty() => self.end_of_head(),
            State::Fields => self.field(line),
            State::ChunkSize => self.chunk_size(line),
            State::ChunkEnd if line.is_empty() => {
                self.state = State::ChunkSize;
                Ok(())
            }
            State::ChunkEnd => Err(Refusal::Malformed("a chunk must end where its size says")),
            State::Trailers => self.trailer(line),
            State::Body(_) | State::Chunk(_) | State::Other => Ok(()),
        }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Refusal> {
        self.count_head(line)?;
        if line.is_empty() {
            // Old clients end a body with a CRLF too many (RFC 9112 section 2.2).
            return Ok(());
        }
        let mut parts = line.split(|b| *b == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refusal::Malformed(
                "a request line is a method, a target and a version, with one space between",
            ));
        };
        if method.is_empty() || !method.iter().all(|b| is_token(*b)) {
            return Err(Refusal::Malformed("the method is not a token"));
        }
        if target.len() > self.target_bytes_max {
            return Err(Refusal::Target);
        }
        if target.is_empty()
            || target
                .iter()
                .any(|b| *b <= b' ' || matches!(b, b'#' | 0x7f))
        {
            return Err(Refusal::Malformed(
                "the request target has a character that must be escaped",
            ));
        }
        // CONNECT, which has neither form, is refused with the reason that there are no tunnels.
        let is_path = target[0] == b'/' || target == b"*" || method == b"CONNECT";
        if !is_path && !is_absolute(target) {
            return Err(Refusal::Malformed(
                "the request target must be a path, or a URL with http or https",
            ));
        }
        self.head.http_10 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            _ => {
                return Err(Refusal::Malformed(
                    "the version must be HTTP/1.1 or HTTP/1.0",
                ));
            }
        };
        self.state = State::Fields;
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Refusal> {
        self.count_head(line)?;
        self.head.fields += 1;
        if self.head.fields > self.headers_max {
            return Err(Refusal::Head);
        }
        if matches!(line[0], b' ' | b'\t') {
            return Err(Refusal::Malformed(
                "a header field may not go on on a line of its own",
            ));
        }
        // Pingora knows a good field from a bad one; here only those two are read that frame a body.
        if let Some(value) = value_of(line, b"content-length") {
            let digits = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
            if !digits || self.head.length.is_some() {
                return Err(Refusal::Malformed("Content-Length must be one number"));
            }
            self.head.length = number;
        } else if let Some(value) = value_of(line, b"transfer-encoding") {
            if self.head.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::Malformed(
                    "the only Transfer-Encoding understood is `chunked`",
                ));
            }
            self.head.chunked = true;
        }
        Ok(())
    }

    fn end_of_head(&mut self) -> Result<(), Refusal> {
        let head = std::mem::take(&mut self.head);
        self.state = match (head.chunked, head.length) {
            (true, Some(_)) => {
                return Err(Refusal::Malformed(
                    "a request may not have both Content-Length and Transfer-Encoding",
                ));
            }
            (true, None) if head.http_10 => {
                return Err(Refusal::Malformed("HTTP/1.0 has no Transfer-Encoding"));
            }
            (true, None) => {
                self.chunk_excess = 0;
                self.trailers_bytes = 0;
                State::ChunkSize
            }
            (false, None | Some(0)) => State::RequestLine,
            (false, Some(length)) => State::Body(length),
        };
        Ok(())
    }

    /// RFC 9112 section 7.1, without the white space that it lets stand around extensions.
    fn chunk_size(&mut self, line: &[u8]) -> Result<(), Refusal> {
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let extension = &line[digits..];
        let fine = (1..=CHUNK_DIGITS_MAX).contains(&digits)
            && (extension.is_empty() || extension[0] == b';')
            && line.len() <= CHUNK_LINE_BYTES_MAX
            && extension
                .iter()
                .all(|b| *b == b'\t' || (*b >= b' ' && *b != 0x7f));
        let size = std::str::from_utf8(&line[..digits]).ok();
        let size = size.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let (true, Some(size)) = (fine, size) else {
            return Err(BAD_CHUNK);
        };
        let fair = usize::try_from(size)
            .unwrap_or(usize::MAX)
            .saturating_mul(2);
        self.chunk_excess += line.len();
        self.chunk_excess = self.chunk_excess.saturating_sub(fair.saturating_add(16));
        if self.chunk_excess > CHUNK_EXCESS_BYTES_MAX {
            return Err(Refusal::Malformed("the chunks carry more than their data"));
        }
        self.state = match size {
            0 => State::Trailers,
            size => State::Chunk(size),
        };
        Ok(())
    }

    fn trailer(&mut self, line: &[u8]) -> Result<(), Refusal> {
        if line.is_empty() {
            self.state = State::RequestLine;
            return Ok(());
        }
        self.trailers_bytes += line.len() + 2;
        if self.trailers_bytes > TRAILERS_BYTES_MAX {
            return Err(LONG_TRAILERS);
        }
        let name = line.split(|b| *b == b':').next().unwrap_or_default();
        let is_field = name.len() < line.len() && !name.is_empty();
        if !is_field || !name.iter().all(|b| is_token(*b)) || line.contains(&0) {
            return Err(Refusal::Malformed("a trailer is not a header field"));
        }
        Ok(())
    }

    fn count_head(&mut self, line: &[u8]) -> Result<(), Refusal> {
        self.head.bytes += line.len() + 2;
        if self.head.bytes > self.head_bytes_max {
            let in_target = self.state == State::RequestLine && line.len() > self.target_bytes_max;
            return Err(if in_target {
                Refusal::Target
            } else {
                Refusal::Head
            });
        }
        Ok(())
    }
}

/// What a request line has besides its target, at most: methods that are in use have up to 17 letters.
const METHOD_AND_VERSION_BYTES: usize = 32;

const BAD_CHUNK: Refusal = Refusal::Malformed("a chunk must begin with its size");
const LONG_TRAILERS: Refusal = Refusal::Malformed("the trailers are too long");

fn take(left: u64, there: usize) -> usize {
    usize::try_from(left).map_or(there, |left| left.min(there))
}

/// The value of a field, without the white space around it, if it has this name. A space before the
/// colon is no part of a name; Pingora refuses it.
fn value_of<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let is_named =
        line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name);
    is_named.then(|| line[name.len() + 1..].trim_ascii())
}

/// RFC 9112 section 3.2.2.
fn is_absolute(target: &[u8]) -> bool {
    [&b"http://"[..], b"https://"].iter().any(|scheme| {
        let begin = target.get(..scheme.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
    })
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;

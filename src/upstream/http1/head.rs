//! Heads of requests and answers, as bytes.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use httparse::Status;
use pingora_core::{Error, ErrorType};
use pingora_http::ResponseHeader;
use std::mem::MaybeUninit;

use super::framing::malformed;

/// Most fields of an answer.
const FIELDS_MAX: usize = 256;
/// As many as nearly every answer has.
const FIELDS_COMMON: usize = 48;
/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 256 * 1024;

/// Writes a head. Names are written in the usual case of HTTP/1, which some old servers wait for.
pub fn encode(
    out: &mut BytesMut,
    method: &Method,
    target: &[u8],
    fields: &HeaderMap,
) -> Result<(), Box<Error>> {
    if target.is_empty() || target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        return Error::e_explain(
            ErrorType::InvalidHTTPHeader,
            "the request target has a character that can't be sent",
        );
    }
    out.put_slice(method.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(target);
    out.put_slice(b" HTTP/1.1\r\n");
    for (name, value) in fields {
        let start = out.len();
        out.put_slice(name.as_str().as_bytes());
        let mut begins = true;
        for byte in &mut out[start..] {
            if begins {
                byte.make_ascii_uppercase();
            }
            begins = *byte == b'-';
        }
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    out.put_slice(b"\r\n");
    Ok(())
}

fn too_large() -> Box<Error> {
    malformed(&format!("has a head over {HEAD_BYTES_MAX} bytes"))
}

/// Takes the head off the buffer's front, once it is there whole. `seen` is how much of the buffer was
/// looked at before: only the end of a line can make a head whole, and one that drips byte by byte is not
/// read from its start for each.
pub fn parse(buf: &mut BytesMut, seen: &mut usize) -> Result<Option<ResponseHeader>, Box<Error>> {
    let new = buf.get(*seen..).unwrap_or_default();
    if buf.len() <= HEAD_BYTES_MAX && memchr::memchr(b'\n', new).is_none() {
        *seen = buf.len();
        return Ok(None);
    }
    let mut few = [const { MaybeUninit::uninit() }; FIELDS_COMMON];
    let read = match read(buf, &mut few) {
        Err(httparse::Error::TooManyHeaders) => {
            let mut many = [const { MaybeUninit::uninit() }; FIELDS_MAX];
            self::read(buf, &mut many)
        }
        read => read,
    };
    match read {
        Ok(Some(lines)) if lines.bytes > HEAD_BYTES_MAX => Err(too_large()),
        Ok(Some(lines)) => {
            *seen = 0;
            Ok(Some(lines.build(buf)?))
        }
        Ok(None) if buf.len() > HEAD_BYTES_MAX => Err(too_large()),
        Ok(None) => {
            *seen = buf.len();
            Ok(None)
        }
        Err(error) => Err(Error::because(
            ErrorType::InvalidHTTPHeader,
            "the upstream's answer has a malformed head",
            error,
        )),
    }
}

/// A head by where its parts stand.
struct Lines {
    bytes: usize,
    version: Version,
    status: u16,
    reason: Option<String>,
    /// Start and length of each name and value.
    fields: Vec<(u32, u32, u32, u32)>,
}

fn read<'b>(
    buf: &'b [u8],
    fields: &mut [MaybeUninit<httparse::Header<'b>>],
) -> Result<Option<Lines>, httparse::Error> {
    let mut answer = httparse::Response::new(&mut []);
    let mut config = httparse::ParserConfig::default();
    // A proxy has to take it away (RFC 9112 section 5.1).
    config.allow_spaces_after_header_name_in_responses(true);
    // And has to unfold (section 5.2).
    config.allow_obsolete_multiline_headers_in_responses(true);
    let Status::Complete(bytes) =
        config.parse_response_with_uninit_headers(&mut answer, buf, fields)?
    else {
        return Ok(None);
    };
    let status = answer.code.unwrap_or_default();
    let at = |part: &[u8]| {
        let start = part.as_ptr() as usize - buf.as_ptr() as usize;
        // Both are within the longest head.
        (start as u32, part.len() as u32)
    };
    let fields = answer.headers.iter().map(|field| {
        let (name, name_bytes) = at(field.name.as_bytes());
        let (value, value_bytes) = match field.value {
            // Where it stands is of no matter, and nobody says that it stands in the buffer.
            [] => (name, 0),
            value => at(value),
        };
        (name, name_bytes, value, value_bytes)
    });
    let usual = StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason());
    let reason = answer.reason.filter(|reason| Some(*reason) != usual);
    Ok(Some(Lines {
        bytes,
        version: match answer.version {
            Some(1) => Version::HTTP_11,
            _ => Version::HTTP_10,
        },
        status,
        reason: reason.map(str::to_owned),
        fields: fields.collect(),
    }))
}

impl Lines {
    /// Values are parts of the buffer, not copies.
    fn build(self, buf: &mut BytesMut) -> Result<ResponseHeader, Box<Error>> {
        let bytes = buf.split_to(self.bytes).freeze();
        let mut head = ResponseHeader::build_no_case(self.status, Some(0))?;
        let mut parts = http::response::Response::new(()).into_parts().0;
        parts.status = head.status;
        parts.version = self.version;
        parts.headers.reserve(self.fields.len() + FIELDS_ADDED);
        for (name, name_bytes, value, value_bytes) in self.fields {
            let (name, value) = (name as usize, value as usize);
            let name = HeaderName::from_bytes(&bytes[name..name + name_bytes as usize])
                .map_err(|_| malformed("has a field without a proper name"))?;
            let value = unfolded(bytes.slice(value..value + value_bytes as usize));
            let value = HeaderValue::from_maybe_shared(value)
                .map_err(|_| malformed("has a field with a control character"))?;
            parts.headers.append(name, value);
        }
        head = ResponseHeader::from(parts);
        if self.reason.is_some() {
            head.set_reason_phrase(self.reason.as_deref())?;
        }
        Ok(head)
    }
}

/// A value on one line: spaces for the ends of lines in it (RFC 9112 section 5.2).
fn unfolded(value: Bytes) -> Bytes {
    if memchr::memchr(b'\n', &value).is_none() {
        return value;
    }
    let on_one_line = |byte: &u8| match byte {
        b'\r' | b'\n' => b' ',
        other => *other,
    };
    value.iter().map(on_one_line).collect()
}

/// About as many fields as an answer gets on its way.
const FIELDS_ADDED: usize = 14;

/// How long the upstream lets the connection idle after this answer; `None` where it ends it (RFC 9112
/// section 9.3).
pub fn keeps(answer: &ResponseHeader) -> Option<Duration> {
    let mut close = answer.version != Version::HTTP_11;
    for value in answer.headers.get_all(header::CONNECTION) {
        for option in value.as_bytes().split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            if option.eq_ignore_ascii_case(b"close") {
                return None;
            }
            close &= !option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    if close {
        return None;
    }
    let asked = answer
        .headers
        .get("keep-alive")
        .and_then(|v| v.to_str().ok());
    let seconds = asked.and_then(|asked| {
        let mut options = asked.split(',').map(str::trim);
        options.find_map(|option| option.strip_prefix("timeout=")?.parse::<u32>().ok())
    });
    Some(seconds.map_or(Duration::MAX, |s| Duration::from_secs(s.into())))
}

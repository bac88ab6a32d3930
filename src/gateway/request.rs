//! What is checked and learned of a request's head before anything acts on it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora_core::{Error, ErrorType};
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use uuid::Uuid;

use super::Bounds;
use super::connection::Refusal;
use crate::failure::Failure;
use crate::route::normalize_host;
use crate::tls::ClientCertificate;

/// The methods that are answered anywhere.
pub(super) const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// The longest of the registered methods has 17.
const METHOD_BYTES_MAX: usize = 32;

const REQUEST_ID_BYTES_MAX: usize = 128;

/// Refuses heads that are too large, or that another server could read differently
/// (RFC 9112 sections 3.2 and 6.3).
pub(super) fn check_head(head: &RequestHeader, bounds: &Bounds) -> Result<(), Failure> {
    if head.raw_path().len() > bounds.uri_bytes_max {
        return Err(uri_too_long(bounds));
    }
    let fields: usize = head
        .headers
        .iter()
        .map(|(k, v)| k.as_str().len() + v.len() + 4)
        .sum();
    if head.headers.len() > bounds.headers_max
        || head.raw_path().len() + fields > bounds.head_bytes_max
    {
        return Err(head_too_large(bounds));
    }
    if head.headers.contains_key(header::TRANSFER_ENCODING)
        && head.headers.contains_key(header::CONTENT_LENGTH)
    {
        return Err(both_lengths());
    }
    check_lengths(&head.headers)?;
    if head.version == Version::HTTP_2 {
        check_values(&head.headers)?;
    }
    if head.method.as_str().len() > METHOD_BYTES_MAX {
        return Err(Failure::bad_request(
            "the method is longer than any that is known",
        ));
    }
    if matches!(head.method, Method::TRACE | Method::CONNECT) {
        // The former would send credentials back to whoever can make a client ask (RFC 9110 section
        // 9.3.8), the latter would make this an open proxy.
        return Err(Failure::method_not_allowed(METHODS));
    }
    if head
        .uri
        .scheme_str()
        .is_some_and(|scheme| !matches!(scheme, "http" | "https"))
    {
        return Err(Failure::bad_request(
            "the request target's scheme must be http or https",
        ));
    }
    // `?x` has a path by RFC 3986, which an upstream would not see in it.
    let has_path = head.uri.path().starts_with('/') && !head.raw_path().starts_with(b"?");
    if !has_path && head.uri.path() != "*" {
        return Err(Failure::bad_request("the request target must be a path"));
    }
    host(head).map(|_| ())
}

/// A value has no white space around it (RFC 9113 section 8.2.1), which HTTP/1 would take for none of it.
fn check_values(headers: &HeaderMap) -> Result<(), Failure> {
    let is_padded = |value: &HeaderValue| {
        let ends = [value.as_bytes().first(), value.as_bytes().last()];
        ends.iter()
            .flatten()
            .any(|byte| matches!(byte, b' ' | b'\t'))
    };
    match headers.values().any(is_padded) {
        true => Err(Failure::bad_request(
            "a header's value begins or ends with white space",
        )),
        false => Ok(()),
    }
}

/// One Content-Length of digits alone, and no coding but chunked (RFC 9112 sections 6.1 and 6.3):
/// anything else is read differently by different servers.
fn check_lengths(headers: &HeaderMap) -> Result<(), Failure> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
        if !digits || lengths.next().is_some() {
            return Err(Failure::bad_request("Content-Length must be one number"));
        }
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (!coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some())
    {
        return Err(Failure::bad_request(
            "the only Transfer-Encoding understood is `chunked`",
        ));
    }
    Ok(())
}

/// What a client is told whose bytes were not even read as a request.
pub(super) fn refused(refusal: Refusal, bounds: &Bounds) -> Failure {
    match refusal {
        Refusal::Malformed(why) => Failure::bad_request(why),
        Refusal::Target => uri_too_long(bounds),
        Refusal::Head => head_too_large(bounds),
    }
}

fn uri_too_long(bounds: &Bounds) -> Failure {
    let message = format!(
        "the request target may have at most {} bytes",
        bounds.uri_bytes_max
    );
    Failure::new(StatusCode::URI_TOO_LONG, "uri_too_long", message)
}

fn head_too_large(bounds: &Bounds) -> Failure {
    let message = format!(
        "the request head may have at most {} fields and {} bytes",
        bounds.headers_max, bounds.head_bytes_max
    );
    Failure::new(
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        "headers_too_large",
        message,
    )
}

fn both_lengths() -> Failure {
    Failure::bad_request("a request may not have both Content-Length and Transfer-Encoding")
}

/// The host the client asks for, lower case and without port: the request target's authority, else
/// the `Host` header (RFC 9112 section 3.3). HTTP/1.0 may go without.
pub(super) fn host(head: &RequestHeader) -> Result<Cow<'_, str>, Failure> {
    let bad = || Failure::bad_request("the Host header is not a valid host name");
    let named = match head.headers.get(header::HOST) {
        Some(value) => Some(value.to_str().map_err(|_| bad())?),
        None => None,
    };
    let target = head.uri.authority().map(http::uri::Authority::as_str);
    if let (Some(host), Some(authority)) = (named, target)
        && !host.eq_ignore_ascii_case(authority)
    {
        return Err(Failure::bad_request(
            "the Host header and the request target disagree",
        ));
    }
    let Some(authority) = target.or(named) else {
        return match head.version {
            Version::HTTP_10 => Ok(Cow::Borrowed("")),
            _ => Err(Failure::bad_request("the request has no Host header")),
        };
    };
    normalize_host(authority).map_err(|_| bad())
}

/// Makes `http://host/path` the path alone: Pingora keeps the former beside the latter and would send it
/// on as it came, whatever becomes of path and Host (RFC 9112 section 3.2.1). It has compared the host
/// with that of the header before.
pub(super) fn use_origin_form(head: &mut RequestHeader) {
    if head.raw_path().first() != Some(&b'/') && head.uri.path().starts_with('/') {
        head.set_uri(head.uri.clone());
    }
}

/// Puts the subject of the client's certificate into the request, or nothing: what the client itself
/// sends under this name, or one that software may take for it (`_` or `.` for `-`), is a forgery. Nor
/// may the client have it taken away again, by naming it in `Connection`.
pub(super) fn name_client(
    session: &mut Session,
    name: &HeaderName,
    shown: Option<&ClientCertificate>,
) -> Result<(), Box<Error>> {
    let subject = shown.and_then(|certificate| certificate.header.clone());
    let head = session.req_header_mut();
    let is_alike = |other: &&HeaderName| looks_alike(other.as_str(), name.as_str());
    let alike: Vec<HeaderName> = head.headers.keys().filter(is_alike).cloned().collect();
    for name in alike {
        head.remove_header(&name);
    }
    if let Some(subject) = subject {
        let nominated = head.headers.get_all(header::CONNECTION).iter();
        let mut nominated = nominated.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
        if nominated.any(|token| {
            token
                .trim_ascii()
                .eq_ignore_ascii_case(name.as_str().as_bytes())
        }) {
            return Err(Error::explain(
                ErrorType::HTTPStatus(400),
                "Connection names the header of the client's certificate",
            ));
        }
        head.insert_header(name.clone(), subject)?;
    }
    Ok(())
}

/// Whether software that takes other bytes than letters and digits for each other would take one name
/// for the other, as CGI does.
pub(super) fn looks_alike(name: &str, other: &str) -> bool {
    let same =
        |(a, b): (u8, u8)| a == b || !(a.is_ascii_alphanumeric() || b.is_ascii_alphanumeric());
    name.len() == other.len() && name.bytes().zip(other.bytes()).all(same)
}

/// The request's id: the client's own only when a trusted proxy passes it on, else a new one.
pub(super) fn request_id(headers: &HeaderMap, peer_trusted: bool) -> String {
    if peer_trusted
        && let Some(given) = headers.get("x-request-id").and_then(|v| v.to_str().ok())
        && !given.is_empty()
        && given.len() <= REQUEST_ID_BYTES_MAX
        && given
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    {
        return given.to_owned();
    }
    new_id().simple().to_string()
}

/// A UUIDv7 (RFC 9562 section 5.7). It has to be unique, not secret, so the system is asked for random
/// bytes for many at once: asking for each costs a system call per request.
fn new_id() -> Uuid {
    const RANDOM_BYTES: usize = 10;
    const AHEAD: usize = 50;
    thread_local! {
        static RANDOM: RefCell<(usize, [u8; RANDOM_BYTES * AHEAD])> =
            const { RefCell::new((AHEAD, [0; RANDOM_BYTES * AHEAD])) };
    }
    let mut random = [0; RANDOM_BYTES];
    RANDOM.with_borrow_mut(|(used, bytes)| {
        if *used == AHEAD {
            // Without randomness, which no system that runs is out of, ids still differ by their time.
            let _ = getrandom::fill(bytes);
            *used = 0;
        }
        random.copy_from_slice(&bytes[*used * RANDOM_BYTES..][..RANDOM_BYTES]);
        *used += 1;
    });
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.map_or(0, |since| since.as_millis() as u64);
    uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(host: Option<&str>, target: &str) -> RequestHeader {
        let mut head = RequestHeader::build("GET", b"/", None).unwrap();
        head.set_uri(target.parse().unwrap());
        if let Some(host) = host {
            head.insert_header("host", host).unwrap();
        }
        head
    }

    #[test]
    fn names_that_software_takes_for_each_other_look_alike() {
        for other in ["x-client-subject", "x_client_subject", "x.client-subject"] {
            assert!(looks_alike(other, "x-client-subject"), "{other}");
        }
        for other in ["x-client-subjec", "x-client-subjects", "xaclient-subject"] {
            assert!(!looks_alike(other, "x-client-subject"), "{other}");
        }
    }

    fn bounds() -> Bounds {
        Bounds {
            head_bytes_max: 1024,
            headers_max: 8,
            uri_bytes_max: 64,
            ..Bounds::for_tests()
        }
    }

    #[test]
    fn hosts() {
        for (given, expected) in [
            ("Example.COM", "example.com"),
            ("example.com:8443", "example.com"),
            ("[::1]:8443", "[::1]"),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            assert_eq!(host(&head(Some(given), "/")).unwrap(), expected);
        }
        for bad in [
            "",
            "a b",
            "a/b",
            "a@b",
            "a:b",
            "a:99999",
            "[::1",
            "[zz]",
            "a:1:2",
            "a:+1",
            "ex\u{e4}mple",
        ] {
            assert!(host(&head(Some(bad), "/")).is_err(), "{bad}");
        }
        assert!(host(&head(None, "/")).is_err());
        assert!(host(&head(Some("a.test"), "http://b.test/")).is_err());
        assert_eq!(
            host(&head(Some("b.test"), "http://b.test/")).unwrap(),
            "b.test"
        );
    }

    #[test]
    fn an_absolute_target_becomes_a_path() {
        for (raw, expected) in [
            ("http://a.test/b?c", "/b?c"),
            ("http://a.test", "/"),
            ("/b", "/b"),
            ("*", "*"),
        ] {
            let mut head = RequestHeader::build("GET", raw.as_bytes(), None).unwrap();
            use_origin_form(&mut head);
            assert_eq!(head.raw_path(), expected.as_bytes(), "{raw}");
        }
    }

    #[test]
    fn heads_are_bounded_and_unambiguous() {
        let fine = head(Some("a"), "/");
        assert!(check_head(&fine, &bounds()).is_ok());
        let long = head(Some("a"), &format!("/{}", "x".repeat(64)));
        assert_eq!(check_head(&long, &bounds()).unwrap_err().status, 414);
        let mut many = head(Some("a"), "/");
        for i in 0..8 {
            many.append_header(format!("x-{i}"), "v").unwrap();
        }
        assert_eq!(check_head(&many, &bounds()).unwrap_err().status, 431);
        let mut big = head(Some("a"), "/");
        big.append_header("x", "v".repeat(1024)).unwrap();
        assert_eq!(check_head(&big, &bounds()).unwrap_err().status, 431);
        let mut both = head(Some("a"), "/");
        both.append_header("content-length", "1").unwrap();
        both.append_header("transfer-encoding", "chunked").unwrap();
        assert_eq!(check_head(&both, &bounds()).unwrap_err().status, 400);
    }

    #[test]
    fn values_and_methods_are_bounded() {
        for (value, fine) in [
            ("a b", true),
            ("", true),
            (" a", false),
            ("a ", false),
            ("a\t", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x", HeaderValue::from_static(value));
            assert_eq!(check_values(&headers).is_ok(), fine, "{value:?}");
        }
        let mut long = head(Some("a"), "/");
        long.set_method(Method::from_bytes(&[b'A'; 33]).unwrap());
        assert_eq!(check_head(&long, &bounds()).unwrap_err().status, 400);
    }

    #[test]
    fn lengths_are_read_strictly() {
        for bad in ["5, 5", "+5", "5 ", "0x5", "", "-1"] {
            let mut headers = HeaderMap::new();
            headers.insert("content-length", bad.parse().unwrap());
            assert!(check_lengths(&headers).is_err(), "{bad:?}");
        }
        let mut twice = HeaderMap::new();
        twice.append("content-length", "5".parse().unwrap());
        assert!(check_lengths(&twice).is_ok());
        twice.append("content-length", "5".parse().unwrap());
        assert!(check_lengths(&twice).is_err());
        for (coding, fine) in [
            ("chunked", true),
            ("Chunked", true),
            ("gzip, chunked", false),
            ("identity", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("transfer-encoding", coding.parse().unwrap());
            assert_eq!(check_lengths(&headers).is_ok(), fine, "{coding}");
        }
    }

    #[test]
    fn new_ids_differ_and_say_when() {
        let before = Uuid::now_v7().get_timestamp().unwrap();
        let ids: std::collections::HashSet<Uuid> = (0..1000).map(|_| new_id()).collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            assert_eq!(id.get_version(), Some(uuid::Version::SortRand));
            let seconds = id.get_timestamp().unwrap().to_unix().0;
            assert!((before.to_unix().0..before.to_unix().0 + 60).contains(&seconds));
        }
    }

    #[test]
    fn an_id_is_taken_from_a_trusted_proxy_only() {
        let mut headers = HeaderMap::new();
        headers.insert("x-request-id", "abc-1".parse().unwrap());
        assert_eq!(request_id(&headers, true), "abc-1");
        assert_ne!(request_id(&headers, false), "abc-1");
        for bad in ["", "a b", "\"x\"", &"x".repeat(129)] {
            headers.insert("x-request-id", bad.parse().unwrap());
            assert_ne!(request_id(&headers, true), bad);
        }
    }
}

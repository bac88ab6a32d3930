//! What is checked and learned of a request's head before anything acts on it.

use std::borrow::Cow;
use std::net::IpAddr;

use http::{HeaderMap, Method, StatusCode, Version, header};
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use uuid::Uuid;

use super::{Bounds, Settings};
use crate::failure::Failure;
use crate::route::{Network, normalize_host};

/// The methods that are answered anywhere.
pub(super) const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

const REQUEST_ID_BYTES_MAX: usize = 128;

/// Refuses heads that are too large, or that another server could read differently
/// (RFC 9112 sections 3.2 and 6.3).
pub(super) fn check_head(head: &RequestHeader, bounds: &Bounds) -> Result<(), Failure> {
    if head.raw_path().len() > bounds.uri_bytes_max {
        return Err(Failure::new(
            StatusCode::URI_TOO_LONG,
            "uri_too_long",
            format!(
                "the request target may have at most {} bytes",
                bounds.uri_bytes_max
            ),
        ));
    }
    let fields: usize = head
        .headers
        .iter()
        .map(|(k, v)| k.as_str().len() + v.len() + 4)
        .sum();
    if head.headers.len() > bounds.headers_max
        || head.raw_path().len() + fields > bounds.head_bytes_max
    {
        return Err(Failure::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "headers_too_large",
            format!(
                "the request head may have at most {} fields and {} bytes",
                bounds.headers_max, bounds.head_bytes_max
            ),
        ));
    }
    if head.headers.contains_key(header::TRANSFER_ENCODING)
        && head.headers.contains_key(header::CONTENT_LENGTH)
    {
        return Err(both_lengths());
    }
    check_lengths(&head.headers)?;
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
    if !head.uri.path().starts_with('/') && head.uri.path() != "*" {
        return Err(Failure::bad_request("the request target must be a path"));
    }
    host(head).map(|_| ())
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

/// Refuses an HTTP/1 head whose end or body another server could see elsewhere: lines that end in a
/// bare LF, a bare CR, or both Content-Length and Transfer-Encoding (RFC 9112 sections 2.2 and 6.3).
/// Pingora drops the former of those two headers by itself, so the head is read as it was received.
pub(super) fn check_framing(session: &Session) -> Result<(), Failure> {
    let Some(http1) = session.as_downstream().as_http1() else {
        return Ok(());
    };
    let raw = http1.get_headers_raw_bytes();
    let chunked = session
        .req_header()
        .headers
        .contains_key(header::TRANSFER_ENCODING);
    check_raw(&raw, chunked)
}

fn check_raw(raw: &[u8], chunked: bool) -> Result<(), Failure> {
    let mut before = 0;
    for (at, byte) in raw.iter().enumerate() {
        let next = raw.get(at + 1);
        if (*byte == b'\n' && before != b'\r') || (*byte == b'\r' && next != Some(&b'\n')) {
            return Err(Failure::bad_request(
                "the lines of a request head must end in CR LF",
            ));
        }
        before = *byte;
    }
    const LENGTH: &[u8] = b"content-length:";
    let has_length = || {
        raw.split(|b| *b == b'\n').any(|line| {
            line.get(..LENGTH.len())
                .is_some_and(|n| n.eq_ignore_ascii_case(LENGTH))
        })
    };
    if chunked && has_length() {
        return Err(both_lengths());
    }
    Ok(())
}

fn both_lengths() -> Failure {
    Failure::bad_request("a request may not have both Content-Length and Transfer-Encoding")
}

/// The host the client asks for, lower case and without port: the request target's authority, else
/// the `Host` header (RFC 9112 section 3.3). HTTP/1.0 may go without.
pub(super) fn host(head: &RequestHeader) -> Result<String, Failure> {
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
            Version::HTTP_10 => Ok(String::new()),
            _ => Err(Failure::bad_request("the request has no Host header")),
        };
    };
    normalize_host(authority)
        .map(Cow::into_owned)
        .map_err(|_| bad())
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
    Uuid::now_v7().simple().to_string()
}

/// The address of the socket's other end.
pub(super) fn peer(session: &Session) -> Option<std::net::SocketAddr> {
    session.client_addr().and_then(|a| a.as_inet()).copied()
}

pub(super) fn is_trusted(peer: Option<IpAddr>, settings: &Settings) -> bool {
    !settings.trusted_proxies.is_empty()
        && peer.is_some_and(|ip| contains(&settings.trusted_proxies, ip))
}

/// The client's address: the socket's, or, behind trusted proxies, the last address of
/// `X-Forwarded-For` that is not a trusted proxy itself.
pub(super) fn client(
    peer: Option<IpAddr>,
    headers: &HeaderMap,
    settings: &Settings,
) -> Option<IpAddr> {
    let mut client = peer?;
    if !is_trusted(peer, settings) {
        return peer;
    }
    let lines: Vec<&str> = headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .collect();
    for entry in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
        let Some(address) = forwarded_address(entry.trim()) else {
            break;
        };
        client = address;
        if !contains(&settings.trusted_proxies, address) {
            break;
        }
    }
    Some(client)
}

fn forwarded_address(entry: &str) -> Option<IpAddr> {
    entry
        .parse()
        .ok()
        .or_else(|| entry.parse::<std::net::SocketAddr>().ok().map(|a| a.ip()))
}

fn contains(networks: &[Network], ip: IpAddr) -> bool {
    networks.iter().any(|n| n.contains(ip))
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

    fn bounds() -> Bounds {
        Bounds {
            connections_max: 1,
            head_bytes_max: 1024,
            headers_max: 8,
            uri_bytes_max: 64,
            h2_streams_max: 1,
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
    fn raw_heads_are_read_strictly() {
        let fine = b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(check_raw(fine, true).is_ok());
        for bad in [
            &b"GET / HTTP/1.1\nHost: a\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nHost: a\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\r",
        ] {
            assert!(check_raw(bad, false).is_err(), "{}", bad.escape_ascii());
        }
        let both = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\ncontent-LENGTH: 3\r\n\r\n";
        assert!(check_raw(both, true).is_err());
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

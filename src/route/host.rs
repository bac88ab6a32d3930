//! Hosts: what a route may ask for, and what a request's host is read as.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Longest host name (RFC 1035 section 2.3.4, in its textual form).
const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// A host to match, lower case, without port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// `example.com`, `192.0.2.1` or `[2001:db8::1]`
    Exact(String),
    /// `*.example.com`, kept as `example.com`: one or more labels in front.
    Wildcard(String),
}

/// Why a text is not a host pattern, and what to write instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostPatternError {
    #[error("the host is empty; leave `hosts` out to match any host")]
    Empty,
    #[error("`*` alone is not a host; leave `hosts` out to match any host")]
    AnyHost,
    #[error("`*` may only stand for whole labels in front, as in `*.example.com`")]
    Wildcard,
    #[error("a host has no scheme and no path; write only the name, as in `example.com`")]
    NotJustAHost,
    #[error("a host is matched without its port; leave the port out")]
    Port,
    #[error("write an IPv6 address in brackets, as in `[2001:db8::1]`")]
    Brackets,
    #[error("write an international name in its ASCII form, which begins with `xn--`")]
    International,
    #[error(
        "this is not a host name: labels of 1 to 63 letters, digits, `-` or `_`, 253 characters in all"
    )]
    Invalid,
}

/// Why a request's host is refused. The text may be shown to the client; the status is 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host is not a host name or address with an optional port")]
pub struct HostError;

/// A request's host as routes see it: lower case, without port and without the dot at its end; an
/// IPv6 address in brackets and in its canonical form (RFC 5952). Does not allocate where nothing
/// changes.
///
/// # Errors
/// [`HostError`] when this is no `uri-host [ ":" port ]` (RFC 9110 section 7.2).
pub fn normalize_host(authority: &str) -> Result<Cow<'_, str>, HostError> {
    if let Some(inner) = authority.strip_prefix('[') {
        let (address, port) = inner.split_once(']').ok_or(HostError)?;
        check_port(port)?;
        return canonical_ipv6(address).map(Cow::Owned).ok_or(HostError);
    }
    let end = authority.find(':').unwrap_or(authority.len());
    let (host, port) = authority.split_at(end);
    check_port(port)?;
    let host = host.strip_suffix('.').unwrap_or(host);
    if !is_host_name(host) {
        return Err(HostError);
    }
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Ok(Cow::Owned(host.to_ascii_lowercase()));
    }
    Ok(Cow::Borrowed(host))
}

fn check_port(port: &str) -> Result<(), HostError> {
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok(()),
        // An empty port is allowed by RFC 3986 section 3.2.3.
        Some("") => Ok(()),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse::<u16>().map(drop).map_err(|_| HostError)
        }
        None | Some(_) => Err(HostError),
    }
}

fn canonical_ipv6(address: &str) -> Option<String> {
    address
        .parse::<Ipv6Addr>()
        .ok()
        .map(|address| format!("[{address}]"))
}

fn is_host_name(host: &str) -> bool {
    // Byte by byte, because every request comes here more than once.
    let mut label_bytes = 0;
    for byte in host.bytes() {
        match byte {
            b'.' if label_bytes == 0 => return false,
            b'.' => label_bytes = 0,
            b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                label_bytes += 1;
                if label_bytes > LABEL_BYTES_MAX {
                    return false;
                }
            }
            _ => return false,
        }
    }
    label_bytes > 0 && host.len() <= HOST_BYTES_MAX
}

impl HostPattern {
    /// Reads `example.com`, `*.example.com`, `192.0.2.1` or `[2001:db8::1]`; case does not matter.
    ///
    /// # Errors
    /// [`HostPatternError`], which says what to write instead.
    pub fn parse(text: &str) -> Result<HostPattern, HostPatternError> {
        use HostPatternError as Error;
        match text {
            "" => return Err(Error::Empty),
            "*" | "*." | "*.*" => return Err(Error::AnyHost),
            _ => {}
        }
        if text.contains('/') {
            return Err(Error::NotJustAHost);
        }
        if text.parse::<Ipv6Addr>().is_ok() {
            return Err(Error::Brackets);
        }
        if let Some(inner) = text.strip_prefix('[') {
            let (address, port) = inner.split_once(']').ok_or(Error::Invalid)?;
            if port.starts_with(':') {
                return Err(Error::Port);
            }
            let canonical = canonical_ipv6(address).filter(|_| port.is_empty());
            return canonical.map(HostPattern::Exact).ok_or(Error::Invalid);
        }
        if text.contains(':') {
            return Err(Error::Port);
        }
        if !text.is_ascii() {
            return Err(Error::International);
        }
        let (name, wildcard) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        if name.contains('*') {
            return Err(Error::Wildcard);
        }
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if !is_host_name(&name) {
            return Err(Error::Invalid);
        }
        if !wildcard {
            return Ok(HostPattern::Exact(name));
        }
        if name.parse::<Ipv4Addr>().is_ok() {
            return Err(Error::Wildcard);
        }
        Ok(HostPattern::Wildcard(name))
    }

    /// Whether a host, as [`normalize_host`] gives it, is one of these.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            HostPattern::Exact(name) => host == name,
            HostPattern::Wildcard(name) => host
                .strip_suffix(name.as_str())
                .and_then(|front| front.strip_suffix('.'))
                .is_some_and(|labels| !labels.is_empty()),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(name) => f.write_str(name),
            HostPattern::Wildcard(name) => write!(f, "*.{name}"),
        }
    }
}

impl FromStr for HostPattern {
    type Err = HostPatternError;

    fn from_str(text: &str) -> Result<HostPattern, HostPatternError> {
        HostPattern::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_and_written_back() {
        for (text, expected) in [
            ("example.com", "example.com"),
            ("EXAMPLE.com.", "example.com"),
            ("*.Example.com", "*.example.com"),
            ("localhost", "localhost"),
            ("192.0.2.1", "192.0.2.1"),
            ("[2001:DB8:0::1]", "[2001:db8::1]"),
            (
                "_dmarc.xn--bcher-kva.example",
                "_dmarc.xn--bcher-kva.example",
            ),
        ] {
            let pattern = HostPattern::parse(text).unwrap();
            assert_eq!(pattern.to_string(), expected);
            assert_eq!(expected.parse(), Ok(pattern));
        }
    }

    #[test]
    fn a_bad_pattern_is_refused_with_what_to_do() {
        let long_label = "a".repeat(64);
        let long = format!("{}a", "a.".repeat(127));
        for (text, hint) in [
            ("", "leave `hosts` out"),
            ("*", "leave `hosts` out"),
            ("a.*.com", "in front"),
            ("*a.com", "in front"),
            ("*.*.com", "in front"),
            ("*.192.0.2.1", "in front"),
            ("https://example.com", "only the name"),
            ("example.com/x", "only the name"),
            ("example.com:8443", "leave the port out"),
            ("[::1]:8443", "leave the port out"),
            ("::1", "brackets"),
            ("[::1", "not a host name"),
            ("[::1]x", "not a host name"),
            ("[1.2.3.4]", "not a host name"),
            ("bücher.example", "xn--"),
            ("a..b", "not a host name"),
            (".a", "not a host name"),
            ("a b", "not a host name"),
            ("a\nb", "not a host name"),
            (long_label.as_str(), "not a host name"),
            (long.as_str(), "not a host name"),
        ] {
            let error = HostPattern::parse(text).expect_err(text).to_string();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_wildcard_stands_for_one_or_more_labels() {
        let pattern = HostPattern::parse("*.example.com").unwrap();
        assert!(pattern.matches("a.example.com"));
        assert!(pattern.matches("a.b.example.com"));
        assert!(!pattern.matches("example.com"));
        assert!(!pattern.matches(".example.com"));
        assert!(!pattern.matches("badexample.com"));
        assert!(!pattern.matches("a.example.com.evil.org"));
    }

    #[test]
    fn request_hosts_are_reduced_to_the_name() {
        for (authority, expected) in [
            ("example.com", "example.com"),
            ("Example.COM:8443", "example.com"),
            ("example.com.", "example.com"),
            ("example.com.:443", "example.com"),
            ("example.com:", "example.com"),
            ("192.0.2.1:80", "192.0.2.1"),
            ("[2001:DB8:0:0::1]:443", "[2001:db8::1]"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(
                normalize_host(authority).as_deref(),
                Ok(expected),
                "{authority}"
            );
            assert_eq!(normalize_host(expected).as_deref(), Ok(expected));
        }
        assert!(matches!(
            normalize_host("example.com:1"),
            Ok(Cow::Borrowed(_))
        ));
    }

    #[test]
    fn bad_request_hosts_are_refused() {
        let long = "a.".repeat(40_000);
        for authority in [
            "",
            ":80",
            ".",
            "a..b",
            "a b",
            "a/b",
            "user@example.com",
            "example.com:x",
            "example.com:+1",
            "example.com:65536",
            "example.com:80:80",
            "::1",
            "[::1",
            "[::1]x",
            "[::1]80",
            "[fe80::1%eth0]",
            "a\r\nb",
            "bücher.example",
            "*.example.com",
            long.as_str(),
        ] {
            assert_eq!(normalize_host(authority), Err(HostError), "{authority:?}");
        }
    }
}

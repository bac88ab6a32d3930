//! Where an upstream is.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;
const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// One upstream, from `http://host:port` or `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    /// A name in lower case, or an address; an IPv6 address stands without brackets.
    pub host: String,
    pub port: u16,
    pub tls: bool,
}

/// Why a text is not an upstream, and what to write instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    #[error("write the scheme in front, `http://` or `https://`")]
    Scheme,
    #[error("user and password can't be given here; set a header on the route")]
    UserInfo,
    #[error(
        "an upstream is a scheme, host and port; the request's own path and query are sent to it"
    )]
    Path,
    #[error("the port must be a number from 1 to 65535")]
    Port,
    #[error("write an IPv6 address in brackets, as in `http://[2001:db8::1]:8080`")]
    Brackets,
    #[error("there is no host name or address after the scheme")]
    Host,
}

impl Server {
    /// Reads `http://host[:port]` or `https://host[:port]`; one slash at the end is allowed.
    ///
    /// # Errors
    /// [`ServerError`], which says what to write instead.
    pub fn parse(text: &str) -> Result<Server, ServerError> {
        let (scheme, rest) = text.split_once("://").ok_or(ServerError::Scheme)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(ServerError::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '\\']) {
            return Err(ServerError::Path);
        }
        if rest.contains('@') {
            return Err(ServerError::UserInfo);
        }
        let (host, port) = split_port(rest).ok_or(ServerError::Host)?;
        if host.matches(':').count() > 0 && !rest.starts_with('[') {
            return Err(ServerError::Brackets);
        }
        let port = match port {
            None => default_port(tls),
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits
                .parse()
                .ok()
                .filter(|&port| port != 0)
                .ok_or(ServerError::Port)?,
            Some(_) => return Err(ServerError::Port),
        };
        let host = read_host(host, rest.starts_with('[')).ok_or(ServerError::Host)?;
        Ok(Server { host, port, tls })
    }

    /// The address, where the host is one.
    pub fn literal_ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Host and port as a `Host` field has them (RFC 9110 section 7.2): an IPv6 address in brackets,
    /// the scheme's own port left out.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if self.port == default_port(self.tls) {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

fn default_port(tls: bool) -> u16 {
    if tls { HTTPS_PORT } else { HTTP_PORT }
}

/// The host, without brackets, and the port's text.
fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    if let Some(inner) = authority.strip_prefix('[') {
        let (host, rest) = inner.split_once(']')?;
        return match rest.strip_prefix(':') {
            None if rest.is_empty() => Some((host, None)),
            None => None,
            Some(port) => Some((host, Some(port))),
        };
    }
    match authority.split_once(':') {
        // More than one colon: an IPv6 address without its brackets.
        Some((_, port)) if port.contains(':') => Some((authority, None)),
        Some((host, port)) => Some((host, Some(port))),
        None => Some((authority, None)),
    }
}

fn read_host(host: &str, bracketed: bool) -> Option<String> {
    if bracketed {
        return host
            .parse::<Ipv6Addr>()
            .ok()
            .map(|address| address.to_string());
    }
    let label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    (name.len() <= HOST_BYTES_MAX && name.split('.').all(label)).then(|| host.to_ascii_lowercase())
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Server, ServerError> {
        Server::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn servers_are_read_and_written_back() {
        for (text, expected, authority) in [
            (
                "http://127.0.0.1:9000",
                "http://127.0.0.1:9000",
                "127.0.0.1:9000",
            ),
            ("http://backend", "http://backend:80", "backend"),
            (
                "https://Backend.Example.com/",
                "https://backend.example.com:443",
                "backend.example.com",
            ),
            ("HTTPS://a_b.c:444", "https://a_b.c:444", "a_b.c:444"),
            ("http://a:443", "http://a:443", "a:443"),
            (
                "http://[2001:DB8::0:1]",
                "http://[2001:db8::1]:80",
                "[2001:db8::1]",
            ),
            ("http://[::1]:9000", "http://[::1]:9000", "[::1]:9000"),
            ("http://a.b.:1", "http://a.b.:1", "a.b.:1"),
        ] {
            let server = Server::parse(text).unwrap();
            assert_eq!(server.to_string(), expected);
            assert_eq!(server.authority(), authority);
            assert_eq!(expected.parse(), Ok(server));
        }
    }

    #[test]
    fn a_bad_server_is_refused_with_what_to_do() {
        let long = format!("http://{}", "a".repeat(64));
        for (text, hint) in [
            ("", "scheme"),
            ("backend:80", "scheme"),
            ("//backend", "scheme"),
            ("ftp://backend", "scheme"),
            ("unix://run/socket", "scheme"),
            ("http://a/b", "own path"),
            ("http://a?b", "own path"),
            ("http://a#b", "own path"),
            ("http://a//", "own path"),
            ("http://a\\b", "own path"),
            ("http://user:secret@a", "set a header"),
            ("http://a:0", "1 to 65535"),
            ("http://a:65536", "1 to 65535"),
            ("http://a:", "1 to 65535"),
            ("http://a:+1", "1 to 65535"),
            ("http://a:x", "1 to 65535"),
            ("http://::1", "brackets"),
            ("http://::1:80", "brackets"),
            ("http://", "no host"),
            ("http://:80", "no host"),
            ("http://[::1", "no host"),
            ("http://[::1]80", "no host"),
            ("http://[a]", "no host"),
            ("http://[1.2.3.4]", "no host"),
            ("http://a..b", "no host"),
            ("http://a b", "no host"),
            ("http://a\nb", "no host"),
            ("http://bücher", "no host"),
            (long.as_str(), "no host"),
        ] {
            let error = Server::parse(text).expect_err(text).to_string();
            assert!(error.contains(hint), "{text:?}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_is_written_back(text in "(https?://)?[a-z0-9:.@/\\[\\]]{0,20}|.{0,30}") {
            if let Ok(server) = Server::parse(&text) {
                prop_assert_eq!(Server::parse(&server.to_string()), Ok(server));
            }
        }
    }
}

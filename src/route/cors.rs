//! Which other origins' pages may read a route's answers (the CORS protocol of the Fetch standard).

use http::HeaderValue;

/// What a route allows pages of other origins. The values of the headers are made once, here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    pub origins: Origins,
    /// `Access-Control-Allow-Methods` of preflights.
    pub methods: HeaderValue,
    /// `Access-Control-Allow-Headers` of preflights.
    pub request_headers: Option<HeaderValue>,
    /// `Access-Control-Expose-Headers`
    pub exposed_headers: Option<HeaderValue>,
    /// Whether the page may send cookies and the like. Never together with [`Origins::Any`].
    pub credentials: bool,
    /// `Access-Control-Max-Age`: for how long a browser remembers a preflight, in seconds.
    pub max_age: HeaderValue,
}

/// Which origins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    Any,
    Listed(Vec<OriginPattern>),
}

/// One origin, or those of all subdomains, in the form in which browsers send it: lower case, and
/// without a port that is its scheme's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginPattern {
    /// `https://example.com:8443`
    Exact(String),
    /// `https://*.example.com:8443`: one or more labels in front.
    Subdomains {
        /// `https://`
        scheme: &'static str,
        /// `.example.com:8443`
        rest: String,
    },
}

/// Why a text is not an origin, and what to write instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    #[error("an origin begins with https:// or http://, as in https://example.com")]
    Scheme,
    #[error(
        "an origin is only scheme, host and port; leave out the path, and the slash at the end too"
    )]
    Path,
    #[error("`*` may only stand for whole labels in front, as in https://*.example.com")]
    Wildcard,
    #[error("the host is not a host name or address")]
    Host,
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

impl Cors {
    /// `Access-Control-Allow-Origin` for a page of this origin; `None` where it is not allowed. Never
    /// an origin that is not listed.
    pub fn allow_origin(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        match &self.origins {
            Origins::Any => Some(HeaderValue::from_static("*")),
            Origins::Listed(patterns) => {
                let text = origin.to_str().ok()?;
                let is_listed = patterns.iter().any(|pattern| pattern.matches(text));
                is_listed.then(|| origin.clone())
            }
        }
    }

    /// Whether answers differ by the request's origin, so that caches must keep them apart.
    pub fn varies(&self) -> bool {
        match self.origins {
            Origins::Any => false,
            Origins::Listed(_) => true,
        }
    }
}

impl OriginPattern {
    /// # Errors
    /// [`OriginError`] where no browser would ever send such an origin.
    pub fn parse(text: &str) -> Result<OriginPattern, OriginError> {
        let text = text.to_ascii_lowercase();
        let (scheme, own_port, rest) = if let Some(rest) = text.strip_prefix("https://") {
            ("https://", 443, rest)
        } else if let Some(rest) = text.strip_prefix("http://") {
            ("http://", 80, rest)
        } else {
            return Err(OriginError::Scheme);
        };
        if rest.contains(['/', '?', '#', '@']) {
            return Err(OriginError::Path);
        }
        let (is_pattern, authority) = match rest.strip_prefix("*.") {
            Some(parent) => (true, parent),
            None => (false, rest),
        };
        if authority.contains('*') {
            return Err(OriginError::Wildcard);
        }
        // The colons of an IPv6 address stand in brackets.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            Some(_) | None => (authority, None),
        };
        let port = match port {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| OriginError::Port)?),
        };
        if port == Some(0) {
            return Err(OriginError::Port);
        }
        let host = super::normalize_host(host).map_err(|_| OriginError::Host)?;
        if is_pattern && (host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok()) {
            return Err(OriginError::Wildcard);
        }
        let port: String = port
            .filter(|port: &u16| *port != own_port)
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        Ok(if is_pattern {
            OriginPattern::Subdomains {
                scheme,
                rest: format!(".{host}{port}"),
            }
        } else {
            OriginPattern::Exact(format!("{scheme}{host}{port}"))
        })
    }

    /// Compared byte for byte: a browser sends an origin in this one form.
    fn matches(&self, origin: &str) -> bool {
        match self {
            OriginPattern::Exact(own) => own == origin,
            OriginPattern::Subdomains { scheme, rest } => {
                let labels = origin
                    .strip_prefix(scheme)
                    .and_then(|after| after.strip_suffix(rest.as_str()));
                labels.is_some_and(|labels| {
                    labels.split('.').all(|label| {
                        let is_plain = |c: u8| {
                            c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_'
                        };
                        !label.is_empty() && label.bytes().all(is_plain)
                    })
                })
            }
        }
    }
}

impl std::fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OriginPattern::Exact(origin) => f.write_str(origin),
            OriginPattern::Subdomains { scheme, rest } => write!(f, "{scheme}*{rest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_kept_as_browsers_send_them() {
        for (text, kept) in [
            ("https://example.com", "https://example.com"),
            ("HTTPS://Example.com:443", "https://example.com"),
            ("http://localhost:80", "http://localhost"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("https://*.Example.com:8443", "https://*.example.com:8443"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("http://[::1]", "http://[::1]"),
        ] {
            assert_eq!(OriginPattern::parse(text).unwrap().to_string(), kept);
        }
        for (text, error) in [
            ("example.com", OriginError::Scheme),
            ("null", OriginError::Scheme),
            ("*", OriginError::Scheme),
            ("ftp://example.com", OriginError::Scheme),
            ("https://example.com/", OriginError::Path),
            ("https://user@example.com", OriginError::Path),
            ("https://a.*.example.com", OriginError::Wildcard),
            ("https://*", OriginError::Wildcard),
            ("https://*.127.0.0.1", OriginError::Wildcard),
            ("https://", OriginError::Host),
            ("https://exa mple.com", OriginError::Host),
            ("https://example.com:0", OriginError::Port),
            ("https://example.com:http", OriginError::Port),
            ("https://example.com:70000", OriginError::Port),
        ] {
            assert_eq!(OriginPattern::parse(text).err(), Some(error), "{text}");
        }
    }

    #[test]
    fn a_pattern_matches_subdomains_and_nothing_that_looks_like_them() {
        let pattern = OriginPattern::parse("https://*.example.com").unwrap();
        for origin in ["https://a.example.com", "https://a.b-1.example.com"] {
            assert!(pattern.matches(origin), "{origin}");
        }
        for origin in [
            "https://example.com",
            "http://a.example.com",
            "https://a.example.com:8443",
            "https://a.example.com.evil.test",
            "https://evil.test/.example.com",
            "https://evil.test#.example.com",
            "https://evil.test\\.example.com",
            "https://user@a.example.com",
            "https://.example.com",
            "https://a..example.com",
            "https://evilexample.com",
            "https://A.example.com",
            "null",
            "",
        ] {
            assert!(!pattern.matches(origin), "{origin}");
        }
        let exact = OriginPattern::parse("https://example.com").unwrap();
        assert!(exact.matches("https://example.com"));
        for origin in [
            "https://example.com.evil.test",
            "https://example.co",
            "https://EXAMPLE.com",
        ] {
            assert!(!exact.matches(origin), "{origin}");
        }
    }
}

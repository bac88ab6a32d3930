//! Where a `redirect` target sends its client.
//!
//! The location is a template; what the client sent is put into it in a way that can't change where
//! it leads: placeholders may not stand in the host, every value is percent-encoded for its place,
//! and a location that is a path stays a path on this host whatever the request's path is.

use http::{HeaderValue, StatusCode};

use super::pattern::PathPattern;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// Absolute or path; `{path}`, `{query}` and the route's `{param}`s are put in.
    pub location: String,
}

/// Why a redirect can't be, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedirectError {
    #[error("status {0} is not a redirect; use 301, 302, 303, 307 or 308")]
    Status(u16),
    #[error("the location must begin with `https://`, `http://`, `/` or `{{path}}`")]
    Start,
    #[error("the location begins with `//`, which is another host; write `https://` or one slash")]
    ForeignHost,
    #[error("the location needs a fixed host, without user and placeholders, before its path")]
    Host,
    #[error(
        "the location has a brace without its partner; write `{{name}}`, or %7B and %7D for braces"
    )]
    Brace,
    #[error("the location has `{{{0}}}`, but the route's path has no such parameter")]
    UnknownParam(String),
    #[error("the location has a character that must be percent-encoded: {0:?}")]
    Character(char),
}

/// A part of a location template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part<'a> {
    Text(&'a str),
    Path,
    Query,
    Param(&'a str),
}

/// What ends a host: the begin of the path, the query or the fragment.
const AUTHORITY_END: [char; 3] = ['/', '?', '#'];

impl Redirect {
    /// Checks the status and the template against the route's path.
    ///
    /// # Errors
    /// [`RedirectError`], which says what to write instead.
    pub fn check(&self, pattern: &PathPattern) -> Result<(), RedirectError> {
        if !matches!(self.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Err(RedirectError::Status(self.status.as_u16()));
        }
        self.check_start()?;
        for part in parts(&self.location)? {
            match part {
                Part::Text(text) => {
                    let bad = |char: &char| {
                        !char.is_ascii_graphic() || matches!(char, '\\' | '"' | '<' | '>')
                    };
                    if let Some(char) = text.chars().find(bad) {
                        return Err(RedirectError::Character(char));
                    }
                }
                Part::Param(name) if !pattern.params().any(|param| param == name) => {
                    return Err(RedirectError::UnknownParam(name.to_owned()));
                }
                Part::Path | Part::Query | Part::Param(_) => {}
            }
        }
        Ok(())
    }

    /// The value of the `Location` field (RFC 9110 section 10.2.2).
    ///
    /// `path` and `query` are the request's, as received; `params` are the route's captures,
    /// decoded. `{path}` begins with its slash: none is doubled where the template has one in front.
    /// Where there is no query, a `?` or `&` directly before `{query}` is left out.
    ///
    /// # Errors
    /// None for a template that [`Redirect::check`] has passed, whatever the request.
    pub fn location(
        &self,
        path: &str,
        query: Option<&str>,
        params: &[(String, String)],
    ) -> Result<HeaderValue, RedirectError> {
        self.check_start()?;
        let mut location = String::with_capacity(self.location.len() + path.len() + 16);
        for part in parts(&self.location)? {
            match part {
                Part::Text(text) => encode(text, is_uri_byte, &mut location),
                Part::Path => {
                    if !location.ends_with('/') {
                        location.push('/');
                    }
                    encode(path.trim_start_matches('/'), is_path_byte, &mut location);
                }
                Part::Query => match query {
                    Some(query) if !query.is_empty() => encode(query, is_uri_byte, &mut location),
                    Some(_) | None => {
                        if location.ends_with(['?', '&']) {
                            location.pop();
                        }
                    }
                },
                Part::Param(name) => {
                    let (_, value) = params
                        .iter()
                        .find(|(param, _)| param == name)
                        .ok_or_else(|| RedirectError::UnknownParam(name.to_owned()))?;
                    encode(value, is_segment_byte, &mut location);
                }
            }
        }
        if location.starts_with('/') {
            // `//host` and `/\host` are other hosts to a browser.
            let rest = location.trim_start_matches('/');
            location = format!("/{rest}");
        }
        // Everything above is visible ASCII, so the conversion can't fail.
        HeaderValue::try_from(location).map_err(|_| RedirectError::Host)
    }

    fn check_start(&self) -> Result<(), RedirectError> {
        let location = self.location.as_str();
        if location.starts_with("//") {
            return Err(RedirectError::ForeignHost);
        }
        if location.starts_with('/') || location.starts_with("{path}") {
            return Ok(());
        }
        let Some(rest) = location
            .strip_prefix("https://")
            .or_else(|| location.strip_prefix("http://"))
        else {
            return Err(RedirectError::Start);
        };
        let end = rest
            .find("{path}")
            .into_iter()
            .chain(rest.find(AUTHORITY_END))
            .min();
        let authority = &rest[..end.unwrap_or(rest.len())];
        if super::normalize_host(authority).is_err() {
            return Err(RedirectError::Host);
        }
        Ok(())
    }
}

fn parts(template: &str) -> Result<Vec<Part<'_>>, RedirectError> {
    let mut parts = Vec::new();
    let mut rest = template;
    while !rest.is_empty() {
        let Some(start) = rest.find(['{', '}']) else {
            parts.push(Part::Text(rest));
            break;
        };
        let (text, braced) = rest.split_at(start);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        let (name, tail) = braced
            .strip_prefix('{')
            .and_then(|inner| inner.split_once('}'))
            .ok_or(RedirectError::Brace)?;
        parts.push(match name {
            "path" => Part::Path,
            "query" => Part::Query,
            name => Part::Param(name),
        });
        rest = tail;
    }
    Ok(parts)
}

/// Appends `text` with every byte escaped that `keep` does not keep.
pub(super) fn encode(text: &str, keep: fn(u8) -> bool, location: &mut String) {
    for byte in text.bytes() {
        if keep(byte) {
            location.push(char::from(byte));
        } else {
            location.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// Stays as it is in a URI that is one already, its escapes and separators included.
fn is_uri_byte(byte: u8) -> bool {
    byte.is_ascii_graphic()
        && !matches!(
            byte,
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'
        )
}

/// Stays as it is in a path as received: it must not begin a query.
fn is_path_byte(byte: u8) -> bool {
    is_uri_byte(byte) && !matches!(byte, b'?' | b'#')
}

/// Stays as it is in a decoded segment: RFC 3986's unreserved characters.
pub(super) fn is_segment_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn redirect(location: &str) -> Redirect {
        Redirect {
            status: StatusCode::PERMANENT_REDIRECT,
            location: location.to_owned(),
        }
    }

    fn location(
        template: &str,
        path: &str,
        query: Option<&str>,
        params: &[(&str, &str)],
    ) -> String {
        let params: Vec<_> = params
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let value = redirect(template).location(path, query, &params).unwrap();
        value.to_str().unwrap().to_owned()
    }

    #[test]
    fn templates_are_filled() {
        for (template, path, query, expected) in [
            ("/new", "/old", Some("a=b"), "/new"),
            (
                "https://example.com{path}",
                "/a/b",
                None,
                "https://example.com/a/b",
            ),
            (
                "https://example.com/{path}",
                "/a/b",
                None,
                "https://example.com/a/b",
            ),
            (
                "https://example.com:8443/v2{path}?{query}",
                "/a",
                Some("b=c&d"),
                "https://example.com:8443/v2/a?b=c&d",
            ),
            (
                "https://example.com{path}?{query}",
                "/a",
                None,
                "https://example.com/a",
            ),
            (
                "https://example.com{path}?x=1&{query}",
                "/a",
                Some(""),
                "https://example.com/a?x=1",
            ),
            ("/new{path}?{query}", "/", Some("%20"), "/new/?%20"),
            ("{path}", "/a%2Bb", None, "/a%2Bb"),
            ("/a%20b#top", "/", None, "/a%20b#top"),
        ] {
            assert_eq!(location(template, path, query, &[]), expected);
        }
        assert_eq!(
            location("/u/{id}/{id}", "/x", None, &[("id", "7")]),
            "/u/7/7"
        );
    }

    #[test]
    fn a_path_never_leads_to_another_host() {
        for template in ["{path}", "/{path}", "{path}?{query}", "/{a}"] {
            for path in [
                "//evil.example",
                "///evil.example/x",
                "//evil.example//y",
                "/\\evil.example",
                "/\t/evil",
            ] {
                let location = location(template, path, None, &[("a", "/evil.example")]);
                assert!(location.starts_with('/'), "{location}");
                assert!(!location[1..].starts_with(['/', '\\', '\t']), "{location}");
            }
        }
        for path in ["//evil.example", "/@evil.example", "/.evil.example"] {
            let location = location("https://example.com{path}", path, None, &[]);
            assert!(location.starts_with("https://example.com/"), "{location}");
        }
    }

    #[test]
    fn values_can_not_break_out_of_their_place() {
        let hostile = "a/../b?c#d\r\nSet-Cookie: e=%41\\\u{e9}";
        assert_eq!(
            location("/x/{a}", "/", None, &[("a", hostile)]),
            "/x/a%2F..%2Fb%3Fc%23d%0D%0ASet-Cookie%3A%20e%3D%2541%5C%C3%A9"
        );
        assert_eq!(
            location("/x{path}", "/a\r\nb?c", None, &[]),
            "/x/a%0D%0Ab%3Fc"
        );
        assert_eq!(
            location("/x?{query}", "/", Some("a\r\nb \u{e9}"), &[]),
            "/x?a%0D%0Ab%20%C3%A9"
        );
    }

    #[test]
    fn a_bad_redirect_is_refused_with_what_to_do() {
        let pattern = PathPattern::parse("/a/{id}").unwrap();
        for (template, hint) in [
            ("", "must begin"),
            ("new", "must begin"),
            ("javascript:alert(1)", "must begin"),
            ("{query}", "must begin"),
            ("{id}", "must begin"),
            ("//example.com", "another host"),
            ("https://", "fixed host"),
            ("https:///x", "fixed host"),
            ("https://{id}/", "fixed host"),
            ("https://{id}.example.com/", "fixed host"),
            ("https://example.com{id}", "fixed host"),
            ("https://example.com{query}", "fixed host"),
            ("https://user@example.com/", "fixed host"),
            ("https://exa mple.com/", "fixed host"),
            ("https://{path}", "fixed host"),
            ("/{other}", "no such parameter"),
            ("/{", "partner"),
            ("/}", "partner"),
            ("/{{id}}", "partner"),
            ("/a b", "percent-encoded"),
            ("/a\r\nb", "percent-encoded"),
            ("/é", "percent-encoded"),
            ("/a\\b", "percent-encoded"),
        ] {
            let error = redirect(template)
                .check(&pattern)
                .expect_err(template)
                .to_string();
            assert!(error.contains(hint), "{template:?}: {error}");
        }
        for status in [200, 300, 304, 305, 309, 404] {
            let status = StatusCode::from_u16(status).unwrap();
            let redirect = Redirect {
                status,
                location: "/".to_owned(),
            };
            assert!(
                redirect
                    .check(&pattern)
                    .unwrap_err()
                    .to_string()
                    .contains("use 301")
            );
        }
    }

    #[test]
    fn good_redirects_pass_the_check() {
        let pattern = PathPattern::parse("/a/{id}").unwrap();
        for template in [
            "/",
            "/x/{id}",
            "{path}",
            "https://example.com",
            "http://[::1]:80{path}?{query}",
            "https://a.b?x={id}",
        ] {
            assert_eq!(redirect(template).check(&pattern), Ok(()), "{template}");
        }
    }

    proptest! {
        /// Whatever the request, what a checked template gives is a header value on the right host.
        #[test]
        fn no_request_changes_the_host(
            template in "(/|\\{path\\}|https://example\\.com)(/x|\\{path\\}|/\\{a\\}|\\?\\{query\\}){0,3}",
            path in ".{0,30}",
            query in prop::option::of(".{0,30}"),
            value in ".{0,30}",
        ) {
            let redirect = redirect(&template);
            if redirect.check(&PathPattern::parse("/{a}").unwrap()).is_ok() {
                let params = [("a".to_owned(), value)];
                let location = redirect.location(&path, query.as_deref(), &params).unwrap();
                let location = location.to_str().unwrap();
                match location.strip_prefix("https://example.com") {
                    Some(rest) => prop_assert!(rest.is_empty() || rest.starts_with(AUTHORITY_END), "{}", location),
                    None => {
                        prop_assert!(location.starts_with('/') && !location.starts_with("//"), "{}", location);
                        prop_assert!(!location.contains('\\'), "{}", location);
                    }
                }
            }
        }
    }
}

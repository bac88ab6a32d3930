//! Path patterns: `/a`, `/a/*`, `/a/{id}`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use super::path::{PathError, Segments, check_decoded, decode};

/// Segments in a pattern, at most: bounds the depth of the table.
const SEGMENTS_MAX: usize = 64;

const PARAM_BYTES_MAX: usize = 64;

/// Placeholders of a redirect's location that are not parameters.
const RESERVED: [&str; 2] = ["path", "query"];

/// A path to match, compared segment by segment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathPattern {
    pub segments: Vec<Segment>,
    /// `/prefix/*`: anything may follow, `/prefix` itself included.
    pub prefix: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Segment {
    /// Compared with the decoded segment of the request, case included.
    Literal(String),
    /// `{name}`: one segment, not empty.
    Param(String),
}

/// Why a text is not a path pattern, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathPatternError {
    #[error("a path begins with `/`")]
    NotRooted,
    #[error("the path has an empty segment (`//`), which no request matches; write one slash")]
    EmptySegment,
    #[error(
        "`*` may only be the last segment, as in `/prefix/*`; for one segment write `{{name}}`"
    )]
    Star,
    #[error("a parameter is a whole segment, as in `/users/{{id}}`")]
    Braces,
    #[error(
        "`{{{0}}}`: a parameter's name has 1 to {PARAM_BYTES_MAX} letters, digits and `_`, and no digit in front"
    )]
    ParamName(String),
    #[error("`{{{0}}}`: this name is reserved for redirects; use another")]
    ParamReserved(String),
    #[error("`{{{0}}}` stands twice in the path; give each parameter a name of its own")]
    ParamTwice(String),
    #[error(
        "a route is matched on the path without query and fragment; leave them out, or write %3F, %23"
    )]
    Query,
    #[error("no request for this path is served: {0}")]
    Refused(PathError),
    #[error("the path has more than {SEGMENTS_MAX} segments")]
    TooDeep,
}

impl PathPattern {
    /// Reads `/exact`, `/prefix/*` or `/a/{name}/b`. Literals may be percent-encoded or not. A slash
    /// at the end makes no difference.
    ///
    /// # Errors
    /// [`PathPatternError`], which says what to write instead.
    pub fn parse(text: &str) -> Result<PathPattern, PathPatternError> {
        use PathPatternError as Error;
        let Some(rest) = text.strip_prefix('/') else {
            return Err(Error::NotRooted);
        };
        if text.contains(['?', '#']) {
            return Err(Error::Query);
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (rest, prefix) = match rest.strip_suffix('*') {
            Some("") => ("", true),
            Some(front) => match front.strip_suffix('/') {
                Some(front) => (front, true),
                None => return Err(Error::Star),
            },
            None => (rest, false),
        };
        if rest.is_empty() && !matches!(text, "/" | "/*" | "/*/") {
            return Err(Error::EmptySegment);
        }
        let mut segments = Vec::new();
        for segment in rest.split('/').filter(|_| !rest.is_empty()) {
            if segment.is_empty() {
                return Err(Error::EmptySegment);
            }
            segments.push(Segment::parse(segment)?);
        }
        let pattern = PathPattern { segments, prefix };
        if pattern.segments.len() > SEGMENTS_MAX {
            return Err(Error::TooDeep);
        }
        match pattern.repeated_param() {
            Some(name) => Err(Error::ParamTwice(name.to_owned())),
            None => Ok(pattern),
        }
    }

    /// The names of the parameters, in order.
    pub fn params(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Literal(_) => None,
            Segment::Param(name) => Some(name.as_str()),
        })
    }

    pub(super) fn repeated_param(&self) -> Option<&str> {
        let names: Vec<&str> = self.params().collect();
        (1..names.len())
            .find(|&at| names[..at].contains(&names[at]))
            .map(|at| names[at])
    }

    /// What decides which paths match: the segments without the names of parameters, and whether it
    /// is a prefix.
    pub(super) fn shape(&self) -> (Vec<Option<&str>>, bool) {
        let mut literals = Vec::with_capacity(self.segments.len());
        for segment in &self.segments {
            literals.push(match segment {
                Segment::Literal(text) => Some(text.as_str()),
                Segment::Param(_) => None,
            });
        }
        (literals, self.prefix)
    }

    /// The parameters of a path that this pattern matches.
    pub(super) fn captures(&self, path: Segments<'_>) -> Vec<(String, String)> {
        let capture = |(segment, value): (&Segment, &str)| match segment {
            Segment::Literal(_) => None,
            Segment::Param(name) => Some((name.clone(), value.to_owned())),
        };
        self.segments.iter().zip(path).filter_map(capture).collect()
    }
}

impl Segment {
    fn parse(text: &str) -> Result<Segment, PathPatternError> {
        use PathPatternError as Error;
        if let Some(name) = text
            .strip_prefix('{')
            .and_then(|text| text.strip_suffix('}'))
        {
            return Segment::param(name);
        }
        if text.contains(['{', '}']) {
            return Err(Error::Braces);
        }
        if text.contains('*') {
            return Err(Error::Star);
        }
        let literal = decode(text).map(Cow::into_owned).map_err(Error::Refused)?;
        check_decoded(&literal).map_err(Error::Refused)?;
        Ok(Segment::Literal(literal))
    }

    fn param(name: &str) -> Result<Segment, PathPatternError> {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let named = (1..=PARAM_BYTES_MAX).contains(&name.len())
            && name.bytes().all(letter)
            && !name.starts_with(|first: char| first.is_ascii_digit());
        if !named {
            return Err(PathPatternError::ParamName(name.to_owned()));
        }
        if RESERVED.contains(&name) {
            return Err(PathPatternError::ParamReserved(name.to_owned()));
        }
        Ok(Segment::Param(name.to_owned()))
    }
}

/// As it may be written in a configuration: reading it back gives the same pattern.
impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => write!(f, "/{}", Literal(text))?,
                Segment::Param(name) => write!(f, "/{{{name}}}")?,
            }
        }
        match (self.prefix, self.segments.is_empty()) {
            (true, _) => f.write_str("/*"),
            (false, true) => f.write_str("/"),
            (false, false) => Ok(()),
        }
    }
}

/// A literal with the characters escaped that mean something in a pattern.
struct Literal<'a>(&'a str);

impl fmt::Display for Literal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '%' => f.write_str("%25")?,
                '?' => f.write_str("%3F")?,
                '#' => f.write_str("%23")?,
                '*' => f.write_str("%2A")?,
                '{' => f.write_str("%7B")?,
                '}' => f.write_str("%7D")?,
                char => write!(f, "{char}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for PathPattern {
    type Err = PathPatternError;

    fn from_str(text: &str) -> Result<PathPattern, PathPatternError> {
        PathPattern::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_are_read_and_written_back() {
        for (text, expected) in [
            ("/", "/"),
            ("/*", "/*"),
            ("/a", "/a"),
            ("/a/", "/a"),
            ("/a/*", "/a/*"),
            ("/a/*/", "/a/*"),
            ("/a/{id}/b/{other_1}", "/a/{id}/b/{other_1}"),
            ("/{id}/*", "/{id}/*"),
            ("/%41b", "/Ab"),
            ("/café", "/café"),
            ("/caf%C3%A9", "/café"),
            ("/100%25", "/100%25"),
            ("/a%2A%7Bb%7D%3F", "/a%2A%7Bb%7D%3F"),
            (
                "/.well-known/acme-challenge/*",
                "/.well-known/acme-challenge/*",
            ),
        ] {
            let pattern = PathPattern::parse(text).unwrap();
            assert_eq!(pattern.to_string(), expected);
            assert_eq!(expected.parse(), Ok(pattern));
        }
    }

    #[test]
    fn a_bad_pattern_is_refused_with_what_to_do() {
        let deep = "/a".repeat(65);
        let long_name = format!("/{{{}}}", "a".repeat(65));
        for (text, hint) in [
            ("", "begins with `/`"),
            ("a", "begins with `/`"),
            ("*", "begins with `/`"),
            ("https://a/b", "begins with `/`"),
            ("//", "one slash"),
            ("//a", "one slash"),
            ("/a//b", "one slash"),
            ("/a//", "one slash"),
            ("//*", "one slash"),
            ("/a*", "last segment"),
            ("/*/a", "last segment"),
            ("/a/*b", "last segment"),
            ("/**", "last segment"),
            ("/a{id}", "whole segment"),
            ("/{id}.json", "whole segment"),
            ("/{", "whole segment"),
            ("/{}", "1 to 64 letters"),
            ("/{1a}", "1 to 64 letters"),
            ("/{a-b}", "1 to 64 letters"),
            (long_name.as_str(), "1 to 64 letters"),
            ("/{path}", "reserved"),
            ("/{query}", "reserved"),
            ("/{a}/{b}/{a}", "stands twice"),
            ("/a?b=c", "without query"),
            ("/a#b", "without query"),
            ("/a/../b", "`..` segment"),
            ("/a/%2e", "`..` segment"),
            ("/a%2fb", "encoded slash"),
            ("/a;b", "`;`"),
            ("/a\\b", "backslash"),
            ("/a\nb", "control"),
            ("/100%", "two hexadecimal digits"),
            ("/%2541", "escaped twice"),
            (deep.as_str(), "more than 64"),
        ] {
            let error = PathPattern::parse(text).expect_err(text).to_string();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
    }

    #[test]
    fn names_of_parameters_do_not_make_a_difference_to_what_matches() {
        let same = |a: &str, b: &str| {
            PathPattern::parse(a).unwrap().shape() == PathPattern::parse(b).unwrap().shape()
        };
        assert!(same("/a/{x}/*", "/a/{y}/*"));
        assert!(!same("/a/{x}", "/a/{x}/*"));
        assert!(!same("/a/{x}", "/a/x"));
        assert!(!same("/a", "/a/b"));
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_back(text in "(/([ab%*]|\\{[a-c]\\}|%25|%2A|é){0,3}){0,5}\\*?") {
            if let Ok(pattern) = PathPattern::parse(&text) {
                prop_assert_eq!(PathPattern::parse(&pattern.to_string()), Ok(pattern));
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = PathPattern::parse(&text);
        }
    }
}

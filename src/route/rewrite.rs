//! The path that an upstream is asked for, where it is not the request's own.

use http::uri::PathAndQuery;

use super::path::{PathError, normalize};
use super::redirect::{encode, is_segment_byte};
use super::{PathPattern, Segment};

/// A path with placeholders: `{path}` is the request's path, `{rest}` what comes after the part that
/// the route's own segments matched (empty, or beginning with `/`), and the route's parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Path,
    Rest,
    Param(String),
}

/// Why a template can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    #[error("must begin with '/', {{path}} or {{rest}}")]
    Start,
    #[error("has a brace without its pair")]
    Brace,
    #[error("'{{{0}}}' is not part of the request")]
    Unknown(String),
    #[error("the route's parameter '{0}' has the name of a placeholder")]
    Hidden(&'static str),
    #[error("is a path alone: the request's query is kept as it is")]
    Query,
    #[error("is not a path that a request may have: {0}")]
    Path(PathError),
}

impl Rewrite {
    /// Reads a template for a route with this path.
    ///
    /// # Errors
    /// [`RewriteError`], to be shown to whoever wrote it.
    pub fn parse(template: &str, pattern: &PathPattern) -> Result<Rewrite, RewriteError> {
        let is_param = |name: &str| {
            (pattern.segments.iter()).any(|s| matches!(s, Segment::Param(param) if param == name))
        };
        if let Some(hidden) = ["path", "rest"].into_iter().find(|name| is_param(name)) {
            return Err(RewriteError::Hidden(hidden));
        }
        if !["/", "{path}", "{rest}"]
            .iter()
            .any(|s| template.starts_with(s))
        {
            return Err(RewriteError::Start);
        }
        if template.contains(['?', '#']) {
            return Err(RewriteError::Query);
        }
        let mut parts = Vec::new();
        let mut rest = template;
        while let Some(open) = rest.find(['{', '}']) {
            let (text, after) = rest.split_at(open);
            if !text.is_empty() {
                parts.push(Part::Text(text.to_owned()));
            }
            let inner = after.strip_prefix('{').and_then(|a| a.split_once('}'));
            let (name, tail) = inner.ok_or(RewriteError::Brace)?;
            parts.push(match name {
                "path" => Part::Path,
                "rest" => Part::Rest,
                name if is_param(name) => Part::Param(name.to_owned()),
                name => return Err(RewriteError::Unknown(name.to_owned())),
            });
            rest = tail;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        let rewrite = Rewrite(parts);
        let names = pattern.segments.iter().filter_map(|segment| match segment {
            Segment::Param(name) => Some((name.clone(), "x".to_owned())),
            Segment::Literal(_) => None,
        });
        let params: Vec<_> = names.collect();
        // With harmless values, what is left to be wrong is the template itself.
        let path = rewrite.path("/x", "", &params);
        normalize(&path).map_err(RewriteError::Path)?;
        Ok(rewrite)
    }

    /// The target for a request: `matched` is the part of its path that the route's own segments
    /// matched, `params` are its parameters, decoded. The query stays as it came.
    ///
    /// # Errors
    /// What was put together is a path that a request may not have.
    pub fn target(
        &self,
        path: &str,
        matched: &str,
        query: Option<&str>,
        params: &[(String, String)],
    ) -> Result<PathAndQuery, PathError> {
        let mut target = self.path(path, matched, params);
        normalize(&target)?;
        if let Some(query) = query {
            target.push('?');
            target.push_str(query);
        }
        PathAndQuery::try_from(target).map_err(|_| PathError::Unencoded)
    }

    fn path(&self, path: &str, matched: &str, params: &[(String, String)]) -> String {
        let mut out = String::with_capacity(path.len() + 32);
        for part in &self.0 {
            match part {
                Part::Text(text) => append(&mut out, text),
                Part::Path => append(&mut out, path),
                Part::Rest => append(&mut out, path.strip_prefix(matched).unwrap_or("")),
                Part::Param(name) => {
                    if let Some((_, value)) = params.iter().find(|(param, _)| param == name) {
                        encode(value, is_segment_byte, &mut out);
                    }
                }
            }
        }
        if out.is_empty() {
            out.push('/');
        }
        out
    }
}

/// Where two slashes meet, one is left: `/v2/{rest}` means what `/v2{rest}` does.
fn append(out: &mut String, text: &str) {
    match text.strip_prefix('/') {
        Some(tail) if out.ends_with('/') => out.push_str(tail),
        Some(_) | None => out.push_str(text),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rewrite(template: &str, pattern: &str) -> Result<Rewrite, RewriteError> {
        Rewrite::parse(template, &PathPattern::parse(pattern).unwrap())
    }

    fn target(template: &str, pattern: &str, path: &str, matched: &str, id: &str) -> String {
        let params = [("id".to_owned(), id.to_owned())];
        let rewrite = rewrite(template, pattern).unwrap();
        let target = rewrite.target(path, matched, Some("q=1"), &params);
        target.unwrap().to_string()
    }

    #[test]
    fn prefixes_are_stripped_and_replaced_and_parameters_put_in() {
        for (template, pattern, path, matched, expected) in [
            ("{rest}", "/v1/*", "/v1/a/b", "/v1", "/a/b?q=1"),
            ("{rest}", "/v1/*", "/v1", "/v1", "/?q=1"),
            ("{rest}", "/v1/*", "/v1/", "/v1", "/?q=1"),
            ("/v2{rest}", "/v1/*", "/v1/a", "/v1", "/v2/a?q=1"),
            ("/v2/{rest}", "/v1/*", "/v1/a", "/v1", "/v2/a?q=1"),
            ("/v2/{rest}", "/v1/*", "/v1", "/v1", "/v2/?q=1"),
            ("/app{path}", "/*", "/a%20b", "", "/app/a%20b?q=1"),
            (
                "/u/{id}/x",
                "/users/{id}",
                "/users/7",
                "/users/7",
                "/u/7/x?q=1",
            ),
            (
                "/u/{id}",
                "/users/{id}",
                "/users/a%20b",
                "/users/a%20b",
                "/u/a%20b?q=1",
            ),
            ("/fixed", "/a", "/a", "/a", "/fixed?q=1"),
        ] {
            let id = path.rsplit('/').next().unwrap().replace("%20", " ");
            assert_eq!(
                target(template, pattern, path, matched, &id),
                expected,
                "{template}"
            );
        }
    }

    #[test]
    fn what_is_put_together_keeps_the_rules_of_paths() {
        let params = [("id".to_owned(), ".".to_owned())];
        let dots = rewrite("/a/.{id}", "/u/{id}").unwrap();
        assert_eq!(
            dots.target("/u/.", "/u/.", None, &params),
            Err(PathError::DotSegment)
        );
    }

    #[test]
    fn a_bad_template_is_refused() {
        for (template, expected) in [
            ("v2{rest}", RewriteError::Start),
            ("{id}", RewriteError::Start),
            ("", RewriteError::Start),
            ("/a?b=c", RewriteError::Query),
            ("/a{rest", RewriteError::Brace),
            ("/a}", RewriteError::Brace),
            ("/{no}", RewriteError::Unknown("no".into())),
            ("/a/../b", RewriteError::Path(PathError::DotSegment)),
            ("/a b", RewriteError::Path(PathError::Unencoded)),
            ("/a;b", RewriteError::Path(PathError::Semicolon)),
        ] {
            assert_eq!(rewrite(template, "/u/{id}"), Err(expected), "{template}");
        }
        assert_eq!(rewrite("/a", "/{rest}"), Err(RewriteError::Hidden("rest")));
    }

    proptest! {
        #[test]
        fn no_request_makes_a_target_that_a_request_could_not_have(
            id in "\\PC{1,8}", rest in "(/[a-z.%0-9]{0,4}){0,3}"
        ) {
            let path = format!("/u/x{rest}");
            let params = [("id".to_owned(), id)];
            for template in ["/a/{id}{rest}", "{rest}", "/a.{id}", "/x{rest}/{id}"] {
                let rewrite = rewrite(template, "/u/{id}/*").unwrap();
                if let Ok(target) = rewrite.target(&path, "/u/x", None, &params) {
                    prop_assert!(normalize(target.path()).is_ok());
                    prop_assert!(target.query().is_none());
                }
            }
        }
    }
}

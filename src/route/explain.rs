//! Which route a request takes, and why no other: for people, not for the request path.
//!
//! The answer is that of [`Table::find`]; the reasons are found by holding each route against the
//! request, rule by rule.

use std::cmp::Ordering;
use std::fmt;

use http::{HeaderMap, HeaderName, Method};

use super::trie::method_fit;
use super::{
    Found, HostPattern, Match, PathPattern, RequestPath, Route, Segment, Table, normalize_host,
};

/// What a request would meet.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub host: &'a str,
    pub path: &'a RequestPath<'a>,
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
}

/// One route, as the request sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its place in the list that the table was built from.
    pub index: u32,
    pub verdict: Verdict,
}

/// Why a route is or is not the one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Wins,
    /// It matches, but the winner is more specific, by this rule.
    Loses(Rule),
    OtherHost,
    OtherPath,
    OtherMethod,
    MissingHeader(HeaderName),
    OtherHeader(HeaderName),
}

/// The rules that tell which of two routes is more specific, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    Host,
    Path,
    Headers,
    Methods,
    Order,
}

impl Table {
    /// Every route with its verdict, in the list's order.
    pub fn explain(&self, asked: Asked<'_>) -> Vec<Candidate> {
        let found = self.find(asked.host, asked.path, asked.method, asked.headers);
        let winner = match found {
            Found::Route { index, route, .. } => Some((index, route)),
            Found::MethodNotAllowed { .. } | Found::NotFound => None,
        };
        let host = normalize_host(asked.host).ok();
        let host = host.as_deref();
        (0u32..)
            .zip(self.routes())
            .map(|(index, route)| Candidate {
                index,
                verdict: match (mismatch(route, host, asked), winner) {
                    (Some(verdict), _) => verdict,
                    (None, Some((wins, _))) if wins == index => Verdict::Wins,
                    (None, Some((_, winner))) => {
                        Verdict::Loses(rule(&winner.matcher, &route.matcher, host, asked.method))
                    }
                    // A path with an empty segment is matched by no route.
                    (None, None) => Verdict::OtherPath,
                },
            })
            .collect()
    }
}

/// The first part of its match in which a route and the request differ.
fn mismatch(route: &Route, host: Option<&str>, asked: Asked<'_>) -> Option<Verdict> {
    let matcher = &route.matcher;
    if host_rank(matcher, host).is_none() {
        return Some(Verdict::OtherHost);
    }
    if asked.path.has_empty_segment() || !path_matches(&matcher.path, asked.path) {
        return Some(Verdict::OtherPath);
    }
    if method_fit(&matcher.methods, asked.method).is_none() {
        return Some(Verdict::OtherMethod);
    }
    matcher.headers.iter().find_map(|(name, wanted)| {
        let mut lines = asked.headers.get_all(name).iter().peekable();
        if lines.peek().is_none() {
            return Some(Verdict::MissingHeader(name.clone()));
        }
        let holds = wanted
            .as_ref()
            .is_none_or(|wanted| lines.any(|line| line.as_bytes() == wanted.as_bytes()));
        (!holds).then(|| Verdict::OtherHeader(name.clone()))
    })
}

/// How specifically a route names the host: exact, then wildcards with more labels, then any. `None`
/// where it does not match.
fn host_rank(matcher: &Match, host: Option<&str>) -> Option<(u8, usize)> {
    if matcher.hosts.is_empty() {
        return Some((0, 0));
    }
    let host = host?;
    let matching = matcher.hosts.iter().filter(|pattern| pattern.matches(host));
    matching
        .map(|pattern| match pattern {
            HostPattern::Exact(_) => (2, 0),
            HostPattern::Wildcard(name) => (1, name.len()),
        })
        .max()
}

fn path_matches(pattern: &PathPattern, path: &RequestPath<'_>) -> bool {
    let mut rest = path.segments();
    for wanted in &pattern.segments {
        let Some((segment, after)) = rest.split_first() else {
            return false;
        };
        match wanted {
            Segment::Literal(text) if text != segment => return false,
            Segment::Literal(_) | Segment::Param(_) => rest = after,
        }
    }
    pattern.prefix || rest.split_first().is_none()
}

/// The first rule that tells two routes apart that both match.
fn rule(winner: &Match, other: &Match, host: Option<&str>, method: &Method) -> Rule {
    if host_rank(winner, host) != host_rank(other, host) {
        return Rule::Host;
    }
    if winner.path.shape() != other.path.shape() {
        return Rule::Path;
    }
    let headers = |matcher: &Match| {
        let exact = matcher.headers.iter().filter(|(_, value)| value.is_some());
        (matcher.headers.len(), exact.count())
    };
    if headers(winner) != headers(other) {
        return Rule::Headers;
    }
    let methods = |matcher: &Match| (method_fit(&matcher.methods, method), matcher.methods.len());
    match methods(winner).cmp(&methods(other)) {
        Ordering::Equal => Rule::Order,
        Ordering::Less | Ordering::Greater => Rule::Methods,
    }
}

impl Verdict {
    /// Whether host and path are the request's, so that the route is worth a look.
    pub fn is_near(&self) -> bool {
        match self {
            Verdict::OtherHost | Verdict::OtherPath => false,
            Verdict::Wins
            | Verdict::Loses(_)
            | Verdict::OtherMethod
            | Verdict::MissingHeader(_)
            | Verdict::OtherHeader(_) => true,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Wins => f.write_str("wins"),
            Verdict::Loses(rule) => write!(f, "matches, but {rule}"),
            Verdict::OtherHost => f.write_str("is for other hosts"),
            Verdict::OtherPath => f.write_str("is for other paths"),
            Verdict::OtherMethod => f.write_str("is for other methods"),
            Verdict::MissingHeader(name) => write!(f, "asks for the header {name}"),
            Verdict::OtherHeader(name) => write!(f, "asks for another value of the header {name}"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::Host => "its host is less specific (rule 1)",
            Rule::Path => "its path is less specific (rule 2)",
            Rule::Headers => "it has fewer conditions on headers (rule 3)",
            Rule::Methods => "its methods are less specific (rule 4)",
            Rule::Order => "it stands later in the file (rule 5)",
        })
    }
}

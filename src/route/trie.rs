//! The tree of path segments behind [`super::Table`].

use std::cmp::Reverse;
use std::collections::HashMap;

use http::{HeaderMap, HeaderName, Method};

use super::path::Segments;
use super::{Match, PathPattern, Route, Segment};

/// A place in the tree, reached by the segments before it.
#[derive(Default)]
pub(super) struct Node {
    literals: HashMap<String, Node>,
    param: Option<Box<Node>>,
    /// Routes whose path ends here.
    exact: Vec<u32>,
    /// Routes whose path is a prefix that ends here.
    prefix: Vec<u32>,
}

/// What a lookup asks of the routes at a node.
pub(super) struct Request<'t, 'r> {
    pub(super) routes: &'t [Route],
    pub(super) method: &'r Method,
    pub(super) headers: &'r HeaderMap,
}

/// How a route's methods fit a request's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum MethodFit {
    /// It lists the method.
    Listed,
    /// It lists `GET`, and so answers `HEAD`.
    HeadForGet,
    /// It lists none.
    Any,
}

impl Node {
    pub(super) fn insert(&mut self, pattern: &PathPattern, index: u32) {
        let mut node = self;
        for segment in &pattern.segments {
            node = match segment {
                Segment::Literal(text) => node.literals.entry(text.clone()).or_default(),
                Segment::Param(_) => node.param.get_or_insert_default(),
            };
        }
        let routes = if pattern.prefix {
            &mut node.prefix
        } else {
            &mut node.exact
        };
        // A route that names a host twice comes here twice.
        if routes.last() != Some(&index) {
            routes.push(index);
        }
    }

    /// The place where a pattern ends.
    pub(super) fn at(&self, pattern: &PathPattern) -> Option<&Node> {
        pattern
            .segments
            .iter()
            .try_fold(self, |node, segment| match segment {
                Segment::Literal(text) => node.literals.get(text),
                Segment::Param(_) => node.param.as_deref(),
            })
    }

    pub(super) fn param(&self) -> Option<&Node> {
        self.param.as_deref()
    }

    pub(super) fn exact(&self) -> &[u32] {
        &self.exact
    }

    pub(super) fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// The most specific route at or below this node that applies. Goes as deep as the tree at most,
    /// whatever the length of the path.
    pub(super) fn best<'t>(
        &self,
        path: Segments<'_>,
        request: &Request<'t, '_>,
    ) -> Option<(u32, &'t Route)> {
        let deeper = match path.split_first() {
            None => request.best_of(&self.exact),
            Some((segment, rest)) => {
                let literal = self
                    .literals
                    .get(segment)
                    .and_then(|node| node.best(rest, request));
                literal.or_else(|| {
                    self.param
                        .as_ref()
                        .and_then(|node| node.best(rest, request))
                })
            }
        };
        deeper.or_else(|| request.best_of(&self.prefix))
    }

    /// The methods with which the request would find a route at or below this node.
    pub(super) fn collect_allowed(
        &self,
        path: Segments<'_>,
        request: &Request<'_, '_>,
        allow: &mut Vec<Method>,
    ) {
        match path.split_first() {
            None => request.collect_allowed(&self.exact, allow),
            Some((segment, rest)) => {
                for node in self.literals.get(segment).into_iter().chain(self.param()) {
                    node.collect_allowed(rest, request, allow);
                }
            }
        }
        request.collect_allowed(&self.prefix, allow);
    }
}

impl<'t> Request<'t, '_> {
    fn best_of(&self, indexes: &[u32]) -> Option<(u32, &'t Route)> {
        let fits = |&index: &u32| {
            let route = self.routes.get(index as usize)?;
            let fit = method_fit(&route.matcher.methods, self.method)?;
            headers_hold(&route.matcher, self.headers)
                .then(|| (rank(&route.matcher, fit, index), index, route))
        };
        indexes
            .iter()
            .filter_map(fits)
            .min_by_key(|(rank, _, _)| *rank)
            .map(|(_, index, route)| (index, route))
    }

    fn collect_allowed(&self, indexes: &[u32], allow: &mut Vec<Method>) {
        for route in indexes
            .iter()
            .filter_map(|&index| self.routes.get(index as usize))
        {
            if headers_hold(&route.matcher, self.headers) {
                let methods = &route.matcher.methods;
                allow.extend_from_slice(methods);
                if methods.contains(&Method::GET) {
                    allow.push(Method::HEAD);
                }
            }
        }
    }
}

/// Whether and how a route with these methods answers this one.
pub(super) fn method_fit(methods: &[Method], method: &Method) -> Option<MethodFit> {
    if methods.is_empty() {
        Some(MethodFit::Any)
    } else if methods.contains(method) {
        Some(MethodFit::Listed)
    } else if *method == Method::HEAD && methods.contains(&Method::GET) {
        Some(MethodFit::HeadForGet)
    } else {
        None
    }
}

/// The order of routes with the same host pattern and path, the most specific first: rules 3 to 5 of
/// [`super::table`].
pub(super) fn rank(matcher: &Match, fit: MethodFit, index: u32) -> impl Ord + Copy + use<> {
    let exact_values = matcher
        .headers
        .iter()
        .filter(|(_, value)| value.is_some())
        .count();
    (
        Reverse(matcher.headers.len()),
        Reverse(exact_values),
        fit,
        matcher.methods.len(),
        index,
    )
}

fn headers_hold(matcher: &Match, headers: &HeaderMap) -> bool {
    matcher
        .headers
        .iter()
        .all(|(name, value)| header_holds(name, value.as_deref(), headers))
}

/// A field that stands several times holds when one of its lines does.
fn header_holds(name: &HeaderName, value: Option<&str>, headers: &HeaderMap) -> bool {
    match value {
        None => headers.contains_key(name),
        Some(value) => headers
            .get_all(name)
            .iter()
            .any(|line| line.as_bytes() == value.as_bytes()),
    }
}

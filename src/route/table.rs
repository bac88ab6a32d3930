//! The table that finds the most specific route.
//!
//! # Which route wins
//!
//! A route applies to a request when **all** parts of its match hold; one that fails in any part is
//! as if it were not there. Of several that apply, the most specific wins, whatever their order in
//! the configuration. They are compared by these rules; the first that tells two apart decides:
//!
//! 1. **Host**: exact, then wildcard (more labels first), then no `hosts` at all.
//! 2. **Path**, segment by segment from the left: a literal, then a `{param}`, then the path's exact
//!    end, then `*`. So `/a/b/*` comes before `/a/{x}/c`, `/a` before `/a/*`, and of two prefixes
//!    the longer first.
//! 3. **Headers**: more conditions first; of as many, more that ask for an exact value.
//! 4. **Methods**: one that lists the request's method, then one that answers `HEAD` because it lists
//!    `GET` (RFC 9110 section 9.3.2), then one without `methods`; of two that list it, the shorter
//!    list.
//! 5. **Order** in the configuration: earlier first.
//!
//! Where no route applies but one would with another method, the answer is 405 with those methods.
//!
//! # How it is found
//!
//! One tree of segments per host, found by hash. A lookup walks down the literals of the path, and
//! back to a `{param}` or `*` only where that leads nowhere; it visits no node twice, and allocates
//! only for the parameters it returns.

use std::collections::{HashMap, HashSet};

use http::{HeaderMap, Method};

use super::redirect::RedirectError;
use super::trie::{Node, Request};
use super::{HostPattern, Match, RequestPath, Route, Target, normalize_host};

/// The routes, ready to be searched.
pub struct Table {
    routes: Vec<Route>,
    pub(super) hosts: Hosts,
}

/// A tree for each host.
#[derive(Default)]
pub(super) struct Hosts {
    exact: HashMap<String, Node>,
    wildcard: HashMap<String, Node>,
    any: Node,
}

/// What a request matched.
#[derive(Debug, PartialEq)]
pub enum Found<'t, 'p> {
    Route {
        route: &'t Route,
        /// Its place in the list that the table was built from.
        index: u32,
        /// The `{param}`s of its path with their decoded values, in the path's order.
        params: Vec<(String, String)>,
        /// The part of the path, as received, that the route's own segments matched, without the
        /// slash at its end; what follows of [`RequestPath::raw`] is the rest of a prefix route.
        /// Empty for `/` and `/*`.
        matched_path: &'p str,
    },
    /// A route is there for other methods: these, sorted.
    MethodNotAllowed {
        allow: Vec<Method>,
    },
    NotFound,
}

/// Why routes don't make a table, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("route `{name}`: an earlier route has this name; give each a name of its own")]
    NameTaken { index: usize, name: String },
    #[error(
        "route `{name}` matches exactly what `{earlier}` matches; change the match of one, or remove it"
    )]
    IdenticalMatch {
        index: usize,
        name: String,
        earlier: String,
    },
    #[error(
        "route `{name}`: `{{{param}}}` stands twice in its path; give each parameter a name of its own"
    )]
    ParamTwice {
        index: usize,
        name: String,
        param: String,
    },
    #[error("route `{name}`: {source}")]
    Redirect {
        index: usize,
        name: String,
        source: RedirectError,
    },
}

impl BuildError {
    /// The place in the list of the route that the error is about.
    pub fn index(&self) -> usize {
        match self {
            BuildError::NameTaken { index, .. }
            | BuildError::IdenticalMatch { index, .. }
            | BuildError::ParamTwice { index, .. }
            | BuildError::Redirect { index, .. } => *index,
        }
    }
}

impl Table {
    /// # Errors
    /// Everything that is wrong, in the order of the routes.
    pub fn build(routes: Vec<Route>) -> Result<Table, Vec<BuildError>> {
        let errors = problems(&routes);
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut hosts = Hosts::default();
        for (index, route) in (0u32..).zip(&routes) {
            let Match {
                hosts: patterns,
                path,
                ..
            } = &route.matcher;
            if patterns.is_empty() {
                hosts.any.insert(path, index);
            }
            for pattern in patterns {
                hosts.root_mut(pattern).insert(path, index);
            }
        }
        Ok(Table { routes, hosts })
    }

    /// The routes in the order they were given.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The route for a request. `host` is its `Host` or `:authority`, port and case as received; one
    /// that [`normalize_host`] refuses is matched by routes for any host only.
    pub fn find<'t, 'p>(
        &'t self,
        host: &str,
        path: &RequestPath<'p>,
        method: &Method,
        headers: &HeaderMap,
    ) -> Found<'t, 'p> {
        if path.has_empty_segment() {
            return Found::NotFound;
        }
        let host = normalize_host(host).ok();
        let host = host.as_deref();
        let request = Request {
            routes: &self.routes,
            method,
            headers,
        };
        let best = self
            .hosts
            .roots(host)
            .find_map(|root| root.best(path.segments(), &request));
        if let Some((index, route)) = best {
            let pattern = &route.matcher.path;
            return Found::Route {
                route,
                index,
                params: pattern.captures(path.segments()),
                matched_path: path.split_after(pattern.segments.len()).0,
            };
        }
        let mut allow = Vec::new();
        for root in self.hosts.roots(host) {
            root.collect_allowed(path.segments(), &request, &mut allow);
        }
        if allow.is_empty() {
            return Found::NotFound;
        }
        allow.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        allow.dedup();
        Found::MethodNotAllowed { allow }
    }
}

impl Hosts {
    /// The trees for a host, the most specific first.
    fn roots<'a>(&'a self, host: Option<&'a str>) -> impl Iterator<Item = &'a Node> {
        let exact = host.and_then(|host| self.exact.get(host));
        let named = host.filter(|_| !self.wildcard.is_empty());
        let wildcard = named.into_iter().flat_map(|host| {
            let parents = host.match_indices('.').map(|(dot, _)| &host[dot + 1..]);
            parents.filter_map(|parent| self.wildcard.get(parent))
        });
        exact.into_iter().chain(wildcard).chain([&self.any])
    }

    /// The tree of one pattern, or of any host.
    pub(super) fn root(&self, pattern: Option<&HostPattern>) -> Option<&Node> {
        match pattern {
            None => Some(&self.any),
            Some(HostPattern::Exact(name)) => self.exact.get(name),
            Some(HostPattern::Wildcard(name)) => self.wildcard.get(name),
        }
    }

    fn root_mut(&mut self, pattern: &HostPattern) -> &mut Node {
        match pattern {
            HostPattern::Exact(name) => self.exact.entry(name.clone()).or_default(),
            HostPattern::Wildcard(name) => self.wildcard.entry(name.clone()).or_default(),
        }
    }
}

fn problems(routes: &[Route]) -> Vec<BuildError> {
    let mut errors = Vec::new();
    let mut names = HashSet::new();
    let mut matches: HashMap<_, Vec<&Route>> = HashMap::new();
    for (index, route) in routes.iter().enumerate() {
        let name = route.name.clone();
        if !names.insert(route.name.as_str()) {
            errors.push(BuildError::NameTaken {
                index,
                name: name.clone(),
            });
        }
        if let Some(param) = route.matcher.path.repeated_param() {
            errors.push(BuildError::ParamTwice {
                index,
                name: name.clone(),
                param: param.to_owned(),
            });
        }
        match &route.target {
            Target::Redirect(redirect) => {
                if let Err(source) = redirect.check(&route.matcher.path) {
                    errors.push(BuildError::Redirect {
                        index,
                        name: name.clone(),
                        source,
                    });
                }
            }
            Target::Execute(_) | Target::Proxy(_) | Target::Respond(_) => {}
        }
        let like = matches.entry(route.matcher.path.shape()).or_default();
        if let Some(earlier) = like
            .iter()
            .find(|earlier| same_requests(&earlier.matcher, &route.matcher))
        {
            let earlier = earlier.name.clone();
            errors.push(BuildError::IdenticalMatch {
                index,
                name,
                earlier,
            });
        }
        like.push(route);
    }
    errors
}

/// Whether both apply to exactly the same requests.
fn same_requests(a: &Match, b: &Match) -> bool {
    fn same_set<T: PartialEq>(a: &[T], b: &[T]) -> bool {
        a.iter().all(|item| b.contains(item)) && b.iter().all(|item| a.contains(item))
    }
    a.path.shape() == b.path.shape()
        && same_set(&a.hosts, &b.hosts)
        && same_set(&a.methods, &b.methods)
        && same_set(&a.headers, &b.headers)
}

#[cfg(test)]
mod tests;

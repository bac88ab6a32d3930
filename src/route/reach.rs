//! Which routes can never match.

use std::collections::BTreeSet;
use std::fmt;

use http::Method;

use super::trie::{MethodFit, Node, method_fit, rank};
use super::{HostPattern, Match, Route, Table};

/// A route that other routes leave nothing to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreachable {
    /// Its place in the list that the table was built from.
    pub index: u32,
    pub name: String,
    /// The routes that win instead, in the list's order.
    pub covered_by: Vec<String>,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others: Vec<String> = self
            .covered_by
            .iter()
            .map(|name| format!("`{name}`"))
            .collect();
        write!(
            f,
            "route `{}` can never match: every request it could match goes to {}; make its match narrower, or remove it",
            self.name,
            others.join(", ")
        )
    }
}

/// A method that a route is asked for.
#[derive(Clone, Copy)]
enum Asked<'a> {
    This(&'a Method),
    /// One that no route lists.
    Unlisted,
}

/// The question whether a route's requests with one host pattern and one method all go elsewhere.
struct Question<'t> {
    table: &'t Table,
    route: &'t Route,
    index: u32,
    asked: Asked<'t>,
}

impl Table {
    /// Routes that no request can reach, because others win for each of their hosts, methods and
    /// paths. None of those reported here is reachable; an unreachable one may go unreported where
    /// several routes with different headers cover it only together.
    pub fn unreachable(&self) -> Vec<Unreachable> {
        (0u32..)
            .zip(self.routes())
            .filter_map(|(index, route)| self.covering(index, route))
            .collect()
    }

    fn covering(&self, index: u32, route: &Route) -> Option<Unreachable> {
        let matcher = &route.matcher;
        let hosts: Vec<Option<&HostPattern>> = if matcher.hosts.is_empty() {
            vec![None]
        } else {
            matcher.hosts.iter().map(Some).collect()
        };
        let mut covering = BTreeSet::new();
        for host in hosts {
            let node = self.hosts.root(host)?.at(&matcher.path)?;
            for asked in asked(matcher) {
                let question = Question {
                    table: self,
                    route,
                    index,
                    asked,
                };
                covering.append(&mut question.covering(node)?);
            }
        }
        let covered_by = covering
            .iter()
            .filter_map(|&index| self.routes().get(index as usize));
        Some(Unreachable {
            index,
            name: route.name.clone(),
            covered_by: covered_by.map(|route| route.name.clone()).collect(),
        })
    }
}

/// The methods to ask a route for; those it answers.
fn asked(matcher: &Match) -> Vec<Asked<'_>> {
    if matcher.methods.is_empty() {
        return vec![Asked::Unlisted];
    }
    let mut asked: Vec<_> = matcher.methods.iter().map(Asked::This).collect();
    if matcher.methods.contains(&Method::GET) && !matcher.methods.contains(&Method::HEAD) {
        asked.push(Asked::This(&Method::HEAD));
    }
    asked
}

impl Question<'_> {
    /// The routes that win for every path of the route, whose path ends at `node`.
    fn covering(&self, node: &Node) -> Option<BTreeSet<u32>> {
        let here = if self.route.matcher.path.prefix {
            node.prefix()
        } else {
            node.exact()
        };
        let own_rank = self.rank_of(self.index)?;
        let wins = |&&index: &&u32| {
            self.always_applies(index) && self.rank_of(index).is_some_and(|rank| rank < own_rank)
        };
        if let Some(&winner) = here.iter().filter(|&&index| index != self.index).find(wins) {
            return Some(BTreeSet::from([winner]));
        }
        if self.route.matcher.path.prefix {
            self.covering_prefix(node)
        } else {
            None
        }
    }

    /// The routes that take all that a prefix ending at `node` matches: its exact path, and whatever
    /// lies below it. Any of them is more specific by its path alone.
    fn covering_prefix(&self, node: &Node) -> Option<BTreeSet<u32>> {
        let applies = |index: &&u32| self.always_applies(**index);
        let exact = *node.exact().iter().find(applies)?;
        let below = node.param()?;
        let mut covering = match below.prefix().iter().find(applies) {
            Some(&prefix) => BTreeSet::from([prefix]),
            None => self.covering_prefix(below)?,
        };
        covering.insert(exact);
        Some(covering)
    }

    fn rank_of(&self, index: u32) -> Option<impl Ord + Copy + use<>> {
        let matcher = &self.table.routes().get(index as usize)?.matcher;
        Some(rank(matcher, self.fit(matcher)?, index))
    }

    fn fit(&self, matcher: &Match) -> Option<MethodFit> {
        match self.asked {
            Asked::This(method) => method_fit(&matcher.methods, method),
            Asked::Unlisted => matcher.methods.is_empty().then_some(MethodFit::Any),
        }
    }

    /// Whether another route's methods and headers hold whenever the route's own do.
    fn always_applies(&self, index: u32) -> bool {
        let Some(other) = self.table.routes().get(index as usize) else {
            return false;
        };
        let implied = |(name, value): &(http::HeaderName, Option<String>)| {
            let mut own = self
                .route
                .matcher
                .headers
                .iter()
                .filter(|(own_name, _)| own_name == name);
            own.any(|(_, own_value)| value.is_none() || value == own_value)
        };
        self.fit(&other.matcher).is_some() && other.matcher.headers.iter().all(implied)
    }
}

//! The tree against a scan of all routes in the documented order.

use std::cmp::Ordering;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// The documented order, written down once more without the tree: whether `a` wins over `b` for a
/// request that both apply to.
fn naive_order(a: (usize, &Route), b: (usize, &Route), host: &str, method: &Method) -> Ordering {
    let host_rank = |route: &Route| {
        let pattern = route
            .matcher
            .hosts
            .iter()
            .filter(|pattern| pattern.matches(host));
        pattern
            .map(|pattern| match pattern {
                HostPattern::Exact(_) => 1000,
                HostPattern::Wildcard(name) => name.split('.').count(),
            })
            .max()
            .unwrap_or(0)
    };
    let path_rank = |route: &Route| {
        let mut kinds: Vec<u8> = Vec::new();
        for segment in &route.matcher.path.segments {
            kinds.push(if matches!(segment, Segment::Literal(_)) {
                0
            } else {
                1
            });
        }
        kinds.push(if route.matcher.path.prefix { 3 } else { 2 });
        kinds
    };
    let headers = |route: &Route| route.matcher.headers.len();
    let values = |route: &Route| {
        route
            .matcher
            .headers
            .iter()
            .filter(|(_, value)| value.is_some())
            .count()
    };
    let methods = |route: &Route| match route.matcher.methods.len() {
        0 => (2, 0),
        listed if route.matcher.methods.contains(method) => (0, listed),
        listed => (1, listed),
    };
    host_rank(b.1)
        .cmp(&host_rank(a.1))
        .then_with(|| path_rank(a.1).cmp(&path_rank(b.1)))
        .then_with(|| headers(b.1).cmp(&headers(a.1)))
        .then_with(|| values(b.1).cmp(&values(a.1)))
        .then_with(|| methods(a.1).cmp(&methods(b.1)))
        .then_with(|| a.0.cmp(&b.0))
}

fn naive_path_matches(pattern: &PathPattern, path: &str) -> bool {
    if path.contains("//") {
        return false;
    }
    let path: Vec<&str> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .collect();
    let fits = |(segment, value): (&Segment, &&str)| match segment {
        Segment::Literal(text) => text == value,
        Segment::Param(_) => true,
    };
    let long_enough = path.len() == pattern.segments.len()
        || pattern.prefix && path.len() > pattern.segments.len();
    long_enough && pattern.segments.iter().zip(&path).all(fits)
}

fn naive_find(
    routes: &[Route],
    host: &str,
    path: &str,
    method: &Method,
    headers: &HeaderMap,
) -> Result<usize, bool> {
    let but_for_the_method = |route: &Route| {
        let matcher = &route.matcher;
        (matcher.hosts.is_empty() || matcher.hosts.iter().any(|pattern| pattern.matches(host)))
            && naive_path_matches(&matcher.path, path)
            && matcher.headers.iter().all(|(name, value)| match value {
                None => headers.contains_key(name),
                Some(value) => headers
                    .get_all(name)
                    .iter()
                    .any(|line| line == value.as_str()),
            })
    };
    let answers = |route: &Route| {
        let methods = &route.matcher.methods;
        methods.is_empty()
            || methods.contains(method)
            || *method == Method::HEAD && methods.contains(&Method::GET)
    };
    let candidates: Vec<_> = routes
        .iter()
        .enumerate()
        .filter(|(_, route)| but_for_the_method(route))
        .collect();
    let best = candidates
        .iter()
        .filter(|(_, route)| answers(route))
        .min_by(|a, b| naive_order(**a, **b, host, method));
    best.map(|(index, _)| *index).ok_or(!candidates.is_empty())
}

fn methods() -> impl Strategy<Value = Method> {
    select(vec![Method::GET, Method::HEAD, Method::POST])
}

fn routes() -> impl Strategy<Value = Vec<Route>> {
    let hosts = prop::collection::vec(select(vec!["a.b.c", "b.c", "*.b.c", "*.c", "x.c"]), 0..3);
    let segments = prop::collection::vec(select(vec!["a", "b", "{}"]), 0..4);
    let headers = prop::collection::vec(
        select(vec![
            ("x-a", None),
            ("x-a", Some("1")),
            ("x-b", None),
            ("x-b", Some("1")),
        ]),
        0..3,
    );
    let one = (
        hosts,
        segments,
        any::<bool>(),
        prop::collection::vec(methods(), 0..3),
        headers,
    );
    prop::collection::vec(one, 0..10).prop_map(|all| {
        let routes = all.into_iter().enumerate().map(
            |(index, (hosts, segments, prefix, methods, headers))| {
                let mut path = String::new();
                for (at, segment) in segments.iter().enumerate() {
                    path += &format!("/{}", segment.replace("{}", &format!("{{p{at}}}")));
                }
                path += if prefix { "/*" } else { "/" };
                route(&index.to_string(), &hosts, &path, &methods, &headers)
            },
        );
        let mut kept: Vec<Route> = Vec::new();
        for route in routes {
            if !kept
                .iter()
                .any(|earlier| same_requests(&earlier.matcher, &route.matcher))
            {
                kept.push(route);
            }
        }
        kept
    })
}

type RequestParts = (
    &'static str,
    String,
    Method,
    Vec<(&'static str, &'static str)>,
);

fn requests() -> impl Strategy<Value = Vec<RequestParts>> {
    let host = select(vec![
        "a.b.c", "b.c", "x.c", "q.b.c", "q.r.b.c", "c", "other",
    ]);
    let path = "(/(a|b|z)){0,5}/?".prop_map(|path| {
        if path.is_empty() {
            "/".to_owned()
        } else {
            path
        }
    });
    let path = prop_oneof![9 => path, 1 => "/{1,3}(a|b)?(//a)?"];
    let headers = prop::collection::vec(
        select(vec![("x-a", "1"), ("x-a", "2"), ("x-b", "1"), ("x-b", "2")]),
        0..4,
    );
    prop::collection::vec((host, path, methods(), headers), 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_tree_answers_as_a_scan_of_all_routes_would(routes in routes(), requests in requests()) {
        let table = Table::build(routes.clone()).unwrap();
        let unreachable: Vec<usize> = table.unreachable().iter().map(|route| route.index as usize).collect();
        for (host, path, method, headers) in requests {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(name, HeaderValue::from_static(value));
            }
            let expected = naive_find(&routes, host, &path, &method, &map);
            let normal = normalize(&path).unwrap();
            let found = match table.find(host, &normal, &method, &map) {
                Found::Route { index, route, .. } => {
                    prop_assert_eq!(route, &routes[index as usize]);
                    Ok(index as usize)
                }
                Found::MethodNotAllowed { allow } => {
                    prop_assert!(!allow.contains(&method));
                    for method in allow {
                        let with_it = naive_find(&routes, host, &path, &method, &map);
                        prop_assert!(with_it.is_ok(), "{} was advertised", method);
                    }
                    Err(true)
                }
                Found::NotFound => Err(false),
            };
            prop_assert_eq!(found, expected, "{} {}{}", method, host, path);
            if let Ok(index) = found {
                prop_assert!(!unreachable.contains(&index), "{} was called unreachable", index);
            }
        }
    }
}

use http::{HeaderName, HeaderValue, StatusCode};

use super::super::{Auth, HeaderEdits, Limits, PathPattern, Redirect, Respond, Segment, normalize};
use super::*;

mod scan;

fn respond() -> Target {
    Target::Respond(Respond {
        status: StatusCode::OK,
        body: bytes::Bytes::new(),
        content_type: HeaderValue::from_static("text/plain"),
    })
}

fn route(
    name: &str,
    hosts: &[&str],
    path: &str,
    methods: &[Method],
    headers: &[(&str, Option<&str>)],
) -> Route {
    let header = |(name, value): &(&str, Option<&str>)| {
        (
            HeaderName::try_from(*name).unwrap(),
            value.map(str::to_owned),
        )
    };
    Route {
        access: crate::route::Access::default(),
        name: name.to_owned(),
        matcher: Match {
            hosts: hosts
                .iter()
                .map(|host| HostPattern::parse(host).unwrap())
                .collect(),
            path: PathPattern::parse(path).unwrap(),
            methods: methods.to_vec(),
            headers: headers.iter().map(header).collect(),
        },
        auth: Auth::None,
        limits: Limits::default(),
        headers: HeaderEdits::default(),
        cors: None,
        compress: None,
        target: respond(),
    }
}

fn paths(paths: &[&str]) -> Table {
    Table::build(
        paths
            .iter()
            .map(|path| route(path, &[], path, &[], &[]))
            .collect(),
    )
    .unwrap()
}

/// The name of the route found, or what else the answer is.
fn find(
    table: &Table,
    host: &str,
    path: &str,
    method: Method,
    headers: &[(&'static str, &'static str)],
) -> String {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_static(value));
    }
    match table.find(host, &normalize(path).unwrap(), &method, &map) {
        Found::Route { route, .. } => route.name.clone(),
        Found::MethodNotAllowed { allow } => format!("405 {allow:?}"),
        Found::NotFound => "404".to_owned(),
    }
}

fn get(table: &Table, path: &str) -> String {
    find(table, "example.com", path, Method::GET, &[])
}

#[test]
fn an_empty_table_finds_nothing() {
    let table = Table::build(Vec::new()).unwrap();
    assert_eq!(get(&table, "/"), "404");
    assert!(table.unreachable().is_empty());
}

#[test]
fn the_path_decides_segment_by_segment() {
    let mut patterns = [
        "/", "/*", "/a", "/a/*", "/a/{x}", "/a/b", "/a/b/*", "/a/{x}/c", "/a/{x}/*", "/{x}/b",
        "/a/b/c/d",
    ];
    for _ in 0..2 {
        let table = paths(&patterns);
        for (path, expected) in [
            ("/", "/"),
            ("/z", "/*"),
            ("/a", "/a"),
            ("/a/", "/a"),
            ("/a/z", "/a/{x}"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b"),
            // A literal on the left counts for more than one further right.
            ("/a/b/c", "/a/b/*"),
            ("/a/b/c/d", "/a/b/c/d"),
            ("/a/b/c/d/e", "/a/b/*"),
            ("/a/z/c", "/a/{x}/c"),
            ("/a/z/z", "/a/{x}/*"),
            ("/z/b", "/{x}/b"),
            // The walk down `/z/b` leads nowhere and comes back.
            ("/z/b/c", "/*"),
            ("/%61/%62", "/a/b"),
            ("/A", "/*"),
            ("/a%20", "/*"),
        ] {
            assert_eq!(get(&table, path), expected, "{path}");
        }
        patterns.reverse();
    }
}

#[test]
fn empty_segments_match_nothing() {
    let table = paths(&["/*", "/a/{x}", "/a/*"]);
    for path in ["//", "//a", "/a//", "/a//b", "///"] {
        assert_eq!(get(&table, path), "404", "{path}");
    }
}

#[test]
fn the_host_counts_for_more_than_the_path() {
    let table = Table::build(vec![
        route("any", &[], "/a/b/c", &[], &[]),
        route("short", &["*.example.com"], "/*", &[], &[]),
        route("long", &["*.b.example.com"], "/*", &[], &[]),
        route(
            "exact",
            &["a.b.example.com", "[2001:db8::1]"],
            "/a/*",
            &[],
            &[],
        ),
    ])
    .unwrap();
    for (host, path, expected) in [
        ("a.b.example.com", "/a/b/c", "exact"),
        ("A.B.Example.com.:8443", "/a/b/c", "exact"),
        ("[2001:DB8:0::1]:443", "/a", "exact"),
        // The exact host has no route for this path; the next host does.
        ("a.b.example.com", "/z", "long"),
        ("x.b.example.com", "/a/b/c", "long"),
        ("b.example.com", "/a/b/c", "short"),
        ("example.com", "/a/b/c", "any"),
        ("badexample.com", "/a/b/c", "any"),
        ("example.com", "/z", "404"),
        ("", "/a/b/c", "any"),
        ("a.b.example.com/x", "/a/b/c", "any"),
    ] {
        assert_eq!(
            find(&table, host, path, Method::GET, &[]),
            expected,
            "{host} {path}"
        );
    }
}

#[test]
fn more_headers_and_exact_values_win() {
    let beta = ("x-env", Some("beta"));
    let table = Table::build(vec![
        route("none", &[], "/", &[], &[]),
        route("present", &[], "/", &[], &[("x-env", None)]),
        route("beta", &[], "/", &[], &[beta]),
        route("both", &[], "/", &[], &[beta, ("x-user", None)]),
    ])
    .unwrap();
    let find =
        |headers: &[(&'static str, &'static str)]| find(&table, "h", "/", Method::GET, headers);
    assert_eq!(find(&[]), "none");
    assert_eq!(find(&[("x-env", "")]), "present");
    assert_eq!(find(&[("x-env", "BETA")]), "present");
    assert_eq!(find(&[("x-env", "beta")]), "beta");
    assert_eq!(find(&[("x-env", "alpha"), ("x-env", "beta")]), "beta");
    assert_eq!(find(&[("x-env", "beta"), ("x-user", "1")]), "both");
    assert_eq!(find(&[("x-user", "1")]), "none");
}

#[test]
fn methods_restrict_and_get_answers_head() {
    let table = Table::build(vec![
        route("any", &[], "/a", &[], &[]),
        route("write", &[], "/a", &[Method::POST, Method::PUT], &[]),
        route("post", &[], "/a", &[Method::POST], &[]),
        route("read", &[], "/b", &[Method::GET], &[]),
        route("change", &[], "/b", &[Method::PATCH], &[]),
        route("get", &[], "/c", &[Method::GET], &[]),
        route("head", &[], "/c", &[Method::HEAD, Method::OPTIONS], &[]),
        route("guarded", &[], "/b", &[Method::DELETE], &[("x-sure", None)]),
    ])
    .unwrap();
    let find = |method: Method, path: &str| find(&table, "h", path, method, &[]);
    assert_eq!(find(Method::POST, "/a"), "post");
    assert_eq!(find(Method::PUT, "/a"), "write");
    assert_eq!(find(Method::DELETE, "/a"), "any");
    assert_eq!(find(Method::GET, "/b"), "read");
    assert_eq!(find(Method::HEAD, "/b"), "read");
    assert_eq!(find(Method::HEAD, "/c"), "head");
    assert_eq!(find(Method::GET, "/c"), "get");
    // Routes whose headers don't hold are not advertised.
    assert_eq!(find(Method::DELETE, "/b"), "405 [GET, HEAD, PATCH]");
    assert_eq!(
        find(Method::from_bytes(b"get").unwrap(), "/b"),
        "405 [GET, HEAD, PATCH]"
    );
    assert_eq!(find(Method::GET, "/z"), "404");
}

#[test]
fn a_less_specific_route_is_found_where_the_method_fits_only_there() {
    let table = Table::build(vec![
        route("read", &["example.com"], "/a", &[Method::GET], &[]),
        route("rest", &[], "/*", &[Method::POST], &[]),
    ])
    .unwrap();
    assert_eq!(find(&table, "example.com", "/a", Method::POST, &[]), "rest");
    assert_eq!(
        find(&table, "example.com", "/a", Method::PUT, &[]),
        "405 [GET, HEAD, POST]"
    );
}

#[test]
fn parameters_are_decoded_and_the_matched_path_is_as_received() {
    let table = paths(&["/u/{id}/p/{page}", "/fn/*", "/v/{id}/*", "/"]);
    let headers = HeaderMap::new();
    let check = |raw: &str, index: u32, params: &[(&str, &str)], matched: &str| {
        let path = normalize(raw).unwrap();
        let Found::Route {
            index: found,
            params: found_params,
            matched_path,
            ..
        } = table.find("h", &path, &Method::GET, &headers)
        else {
            panic!("{raw} is not found");
        };
        let params: Vec<_> = params
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(
            (found, found_params, matched_path),
            (index, params, matched),
            "{raw}"
        );
    };
    check(
        "/u/%41b/p/2%20",
        0,
        &[("id", "Ab"), ("page", "2 ")],
        "/u/%41b/p/2%20",
    );
    check("/u/a/p/b/", 0, &[("id", "a"), ("page", "b")], "/u/a/p/b");
    check("/%66n/x/y", 1, &[], "/%66n");
    check("/fn", 1, &[], "/fn");
    check("/v/%C3%A9/x%20/y", 2, &[("id", "é")], "/v/%C3%A9");
    check("/", 3, &[], "");
}

#[test]
fn a_route_may_name_a_host_twice() {
    let table = Table::build(vec![route("twice", &["a.b", "A.b"], "/", &[], &[])]).unwrap();
    assert_eq!(find(&table, "a.b", "/", Method::GET, &[]), "twice");
    assert!(table.unreachable().is_empty());
}

#[test]
fn everything_wrong_is_reported_at_once() {
    let mut twice = route("twice", &[], "/t", &[], &[]);
    let param = || Segment::Param("x".to_owned());
    twice.matcher.path = PathPattern {
        segments: vec![param(), param()],
        prefix: false,
    };
    let mut redirect = route("redirect", &[], "/r", &[], &[]);
    redirect.target = Target::Redirect(Redirect {
        status: StatusCode::FOUND,
        location: "/{nobody}".to_owned(),
    });
    let errors = Table::build(vec![
        route(
            "a",
            &["a.b", "c.d"],
            "/x/{y}",
            &[Method::GET, Method::PUT],
            &[("x", None), ("y", Some("1"))],
        ),
        route("a", &[], "/other", &[], &[]),
        route(
            "same",
            &["C.d", "a.b"],
            "/x/{z}",
            &[Method::PUT, Method::GET],
            &[("y", Some("1")), ("x", None)],
        ),
        twice,
        redirect,
    ])
    .err()
    .unwrap();
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        errors.iter().map(BuildError::index).collect::<Vec<_>>(),
        [1, 2, 3, 4],
        "{texts:?}"
    );
    for (text, hint) in texts.iter().zip([
        "name of its own",
        "matches exactly what `a`",
        "stands twice",
        "no such",
    ]) {
        assert!(text.contains(hint), "{text}");
    }
}

#[test]
fn a_hostile_path_costs_no_more_than_the_tree_is_deep() {
    let patterns: Vec<String> = (0..12)
        .map(|bits: u32| {
            (0..4)
                .map(|at| if bits >> at & 1 == 1 { "/a" } else { "/{x}" })
                .collect::<String>()
                + "/z"
        })
        .map(|path| {
            path.replacen("{x}", "{p}", 1)
                .replacen("{x}", "{q}", 1)
                .replacen("{x}", "{r}", 1)
        })
        .collect();
    let table = paths(&patterns.iter().map(String::as_str).collect::<Vec<_>>());
    let deep = "/a".repeat(30_000);
    assert_eq!(get(&table, &deep), "404");
    let host = "a.".repeat(30_000);
    assert_eq!(find(&table, &host, "/a", Method::GET, &[]), "404");
}

fn unreachable(routes: Vec<Route>) -> Vec<(String, Vec<String>)> {
    let table = Table::build(routes).unwrap();
    table
        .unreachable()
        .into_iter()
        .map(|route| (route.name, route.covered_by))
        .collect()
}

#[test]
fn routes_that_can_never_match_are_reported() {
    let (get, post, head) = (Method::GET, Method::POST, Method::HEAD);
    let none: &[(&str, Option<&str>)] = &[];
    let (beta, env) = (("x-env", Some("beta")), ("x-env", None));
    let cases: Vec<(&str, Vec<Route>, &[&str])> = vec![
        (
            "its hosts are all taken earlier",
            vec![
                route("1", &["a.b", "c.d"], "/", &[], none),
                route("2", &["c.d"], "/", &[], none),
            ],
            &["2 by 1"],
        ),
        (
            "one of its hosts is free",
            vec![
                route("1", &["a.b"], "/", &[], none),
                route("2", &["a.b", "c.d"], "/", &[], none),
            ],
            &[],
        ),
        (
            "a wildcard does not cover an exact host, nor any host a wildcard",
            vec![
                route("1", &[], "/", &[], none),
                route("2", &["*.b"], "/", &[], none),
                route("3", &["a.b"], "/", &[], none),
            ],
            &[],
        ),
        (
            "its methods are taken one by one",
            vec![
                route("1", &[], "/", std::slice::from_ref(&get), none),
                route("2", &[], "/", std::slice::from_ref(&post), none),
                route("3", &[], "/", &[get.clone(), post.clone()], none),
            ],
            &["3 by 1,2"],
        ),
        (
            "HEAD is left to it",
            vec![
                route("1", &[], "/", std::slice::from_ref(&get), none),
                route("2", &[], "/", std::slice::from_ref(&head), none),
            ],
            &[],
        ),
        (
            "no list of methods covers any method",
            vec![
                route("1", &[], "/", &[get.clone(), post.clone()], none),
                route("2", &[], "/", &[], none),
            ],
            &[],
        ),
        (
            "a header condition that its own implies, on a longer list of methods",
            vec![
                route("1", &[], "/", std::slice::from_ref(&get), &[beta]),
                route("2", &[], "/", &[get.clone(), head.clone()], &[beta]),
                route("3", &[], "/", &[get.clone(), post.clone()], &[env]),
            ],
            &[],
        ),
        (
            "a prefix whose exact path and whose deeper paths are taken",
            vec![
                route("1", &[], "/a/*", &[], none),
                route("2", &[], "/a", &[], none),
                route("3", &[], "/a/{x}/*", &[], none),
            ],
            &["1 by 2,3"],
        ),
        (
            "the same, one level further down",
            vec![
                route("1", &[], "/a/*", &[], &[env]),
                route("2", &[], "/a", &[], none),
                route("3", &[], "/a/{x}", &[], none),
                route("4", &[], "/a/{x}/{y}/*", &[], none),
            ],
            &["1 by 2,3,4"],
        ),
        (
            "its exact path is left to it",
            vec![
                route("1", &[], "/a/*", &[], none),
                route("3", &[], "/a/{x}/*", &[], none),
            ],
            &[],
        ),
        (
            "literals never exhaust a parameter",
            vec![
                route("1", &[], "/{x}", &[], none),
                route("2", &[], "/a", &[], none),
            ],
            &[],
        ),
    ];
    for (case, routes, expected) in cases {
        let found: Vec<String> = unreachable(routes)
            .iter()
            .map(|(name, by)| format!("{name} by {}", by.join(",")))
            .collect();
        assert_eq!(found, expected, "{case}");
    }
}

/// For any request, exactly the route that is found wins, and every other one has a reason.
#[test]
fn explanations_agree_with_the_table() {
    let table = Table::build(vec![
        route("exact", &["example.com"], "/*", &[], &[]),
        route("wild", &["*.example.com"], "/a", &[], &[]),
        route("deep", &["*.b.example.com"], "/a", &[], &[]),
        route("any", &[], "/a", &[], &[]),
        route("get", &[], "/a", &[Method::GET], &[]),
        route("beta", &[], "/a", &[], &[("x-env", Some("beta"))]),
        route("env", &[], "/a", &[], &[("x-env", None)]),
        route("param", &[], "/{x}", &[], &[]),
        route("rest", &[], "/a/*", &[], &[]),
    ])
    .unwrap();
    let mut beta = HeaderMap::new();
    beta.insert("x-env", HeaderValue::from_static("beta"));
    for host in [
        "example.com",
        "a.example.com",
        "a.b.example.com",
        "other",
        "",
    ] {
        for path in ["/a", "/a/", "/b", "/a/b", "/a//b", "/"] {
            for method in [Method::GET, Method::HEAD, Method::POST] {
                for headers in [&HeaderMap::new(), &beta] {
                    let path = normalize(path).unwrap();
                    let found = match table.find(host, &path, &method, headers) {
                        Found::Route { index, .. } => Some(index),
                        Found::MethodNotAllowed { .. } | Found::NotFound => None,
                    };
                    let asked = crate::route::Asked {
                        host,
                        path: &path,
                        method: &method,
                        headers,
                    };
                    let explained = table.explain(asked);
                    assert_eq!(explained.len(), 9);
                    for candidate in explained {
                        let wins = candidate.verdict == crate::route::Verdict::Wins;
                        assert_eq!(
                            wins,
                            found == Some(candidate.index),
                            "{host} {path:?} {method}"
                        );
                        let loses = matches!(candidate.verdict, crate::route::Verdict::Loses(_));
                        assert!(!loses || found.is_some(), "{host} {path:?} {method}");
                    }
                }
            }
        }
    }
}

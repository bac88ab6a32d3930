//! Routes.

use std::path::Path;

use super::{load, problem, problems, warnings_with};
use crate::auth::Role;
use crate::route::{Auth, Route, Target};

fn route(rest: &str) -> String {
    format!("routes: [{{ name: a, {rest} }}]")
}

fn good(rest: &str) -> Route {
    let yaml = route(rest);
    load(&yaml)
        .unwrap_or_else(|problems| panic!("{yaml}\n{problems}"))
        .config
        .routes
        .remove(0)
}

fn bad(rest: &str) -> String {
    let problem = problem(&route(rest));
    assert!(problem.contains("routes[0]"), "{problem}");
    problem
}

fn at(path: &str) -> String {
    format!("match: {{ path: '{path}' }}, respond: {{}}")
}

#[test]
fn a_route_has_exactly_one_target() {
    assert!(bad("match: { path: /a }").contains("the route has no target"));
    let two = bad("match: { path: /a }, respond: {}, redirect: { to: /b }");
    assert!(
        two.contains("routes[0].respond: the route already has the target 'redirect'"),
        "{two}"
    );
}

#[test]
fn a_forgotten_auth_does_not_open_a_route() {
    assert_eq!(good("match: { path: /a }, respond: {}").auth, Auth::Key);
    assert_eq!(
        good("match: { path: /a }, auth: none, respond: {}").auth,
        Auth::None
    );
    assert_eq!(
        good("match: { path: /a }, auth: { role: admin }, respond: {}").auth,
        Auth::Role(Role::Admin)
    );
    for auth in [
        "nobody",
        "[none]",
        "{ role: root }",
        "{ role: admin, key: 1 }",
        "role",
        "{ certificate: 1 }",
        "{ none: 1 }",
        "5",
        "{}",
    ] {
        bad(&format!(
            "match: {{ path: /a }}, auth: {auth}, respond: {{}}"
        ));
    }
}

#[test]
fn names_are_plain_and_unique() {
    for name in ["''", "'a b'", "'ä'", "'a\"b'", "'../a'"] {
        assert!(
            problem(&format!(
                "routes: [{{ name: {name}, match: {{ path: /a }}, respond: {{}} }}]"
            ))
            .contains(".name")
        );
    }
    let twice = problem(
        "routes:\n  - { name: a, match: { path: /a }, respond: {} }\n  - { name: a, match: { path: /b }, respond: {} }\n",
    );
    assert!(
        twice.starts_with("3:7: routes[1].name: 'a' is the name of routes[0] too"),
        "{twice}"
    );
}

#[test]
fn paths_of_the_gateway_are_not_taken() {
    for path in [
        "/api",
        "/api/*",
        "/api/x",
        "/api/{x}/y",
        "/health",
        "/health/live",
        "/health/*",
        "/healthz",
        "/readyz",
        "/.well-known/acme-challenge/*",
        "/.well-known/acme-challenge/{token}",
        "/.well-known/jwks.json",
        "/metrics",
    ] {
        assert!(bad(&at(path)).contains("routes[0].match.path"), "{path}");
    }
    for path in [
        "/*",
        "/",
        "/{x}",
        "/apis",
        "/healthy",
        "/.well-known/security.txt",
        "/.well-known/jwks.json/x",
        "/.well-known/*",
        "/x/api",
    ] {
        good(&at(path));
    }
    let yaml = format!("metrics: {{ path: /m }}\n{}", route(&at("/m")));
    assert!(problem(&yaml).contains("metrics page"));
    assert!(
        load(&format!(
            "metrics: {{ enabled: false }}\n{}",
            route(&at("/metrics"))
        ))
        .is_ok()
    );
}

#[test]
fn matches_are_checked() {
    for part in [
        "path: no-slash",
        "path: ''",
        "path: /a, hosts: ['a b']",
        "path: /a, hosts: ['*']",
        "path: /a, hosts: [a.example, A.example]",
        "path: /a, methods: [get]",
        "path: /a, methods: [GET, GET]",
        "path: /a, methods: GET",
        "path: /a, headers: { 'X Y': a }",
        "path: /a, headers: { X-A: a, x-a: b }",
        "path: /a, headers: { X-A: \"a\\n\" }",
        "path: /a, headers: { X-A: 5 }",
    ] {
        bad(&format!("match: {{ {part} }}, respond: {{}}"));
    }
    assert!(
        bad("match: { path: /a, methods: [get] }, respond: {}").contains("did you mean 'GET'?")
    );
    let matcher = good("match: { path: /a, headers: { X-A: '*', X-B: v } }, respond: {}").matcher;
    let headers: Vec<_> = matcher
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_deref()))
        .collect();
    assert_eq!(headers, [("x-a", None), ("x-b", Some("v"))]);
}

#[test]
fn a_guests_limits_are_within_reach() {
    let execute = |auth: &str, limits: &str| {
        format!(
            "match: {{ path: /a }}, auth: {auth}, limits: {{ {limits} }}, execute: {{ file: a.wasm }}"
        )
    };
    good(&execute(
        "none",
        "memory_max: 128MiB, execution_timeout: 5s, stdout_max: 8MiB",
    ));
    good(&execute("key", "memory_max: 1GiB, execution_timeout: 60s"));
    let more = "tiers: { pro: { stdout_max: 16MiB } }\n";
    let far = route(&execute("key", "stdout_max: 16MiB"));
    assert!(load(&format!("{more}{far}")).is_ok());
    let far = route(&execute("none", "stdout_max: 16MiB"));
    assert!(load(&format!("{more}{far}")).is_err());
    for (auth, limits) in [
        ("none", "memory_max: 129MiB"),
        ("none", "execution_timeout: 6s"),
        ("key", "memory_max: 2GiB"),
        ("key", "execution_timeout: 61s"),
        ("key", "stdout_max: 9MiB"),
        ("key", "memory_max: 1KiB"),
        ("key", "per_minute: 0"),
        ("key", "body_size_max: 2GiB"),
    ] {
        bad(&execute(auth, limits));
    }
    assert!(
        bad("match: { path: /a }, limits: { memory_max: 1MiB }, respond: {}")
            .contains("this route runs none")
    );
    let warnings = warnings_with(
        &route("match: { path: /a }, limits: { per_minute: 9, per_day: 3 }, respond: {}"),
        &[],
    );
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

#[test]
fn execute_names_one_module() {
    let execute = |what: &str| format!("match: {{ path: /a }}, execute: {{ {what} }}");
    let Target::Execute(target) = good(&execute("file: a.wasm, args: [x], env: { A: b }")).target
    else {
        panic!()
    };
    assert_eq!(target.content_type, "text/plain; charset=utf-8");
    assert_eq!(target.files, None);
    let Target::Execute(target) = good(&execute("file: a.wasm, files: data/words")).target else {
        panic!()
    };
    assert_eq!(target.files.as_deref(), Some(Path::new("data/words")));
    good(&execute("module: 018f4d5e-8b1a-7c3d-9e2f-0123456789ab"));
    for what in [
        "",
        "file: ''",
        "file: \"a\\0b\"",
        "file: a, module: 018f4d5e-8b1a-7c3d-9e2f-0123456789ab",
        "module: hello",
        "file: a, abi: cgi",
        "file: a, abi: wagi, args: [x]",
        "file: a, abi: wagi, content_type: text/html",
        "file: a, content_type: text",
        "file: a, content_type: \"text/html\\n\"",
        "file: a, env: { '1A': b }",
        "file: a, env: { 'A=B': b }",
        "file: a, env: { A: \"\\0\" }",
        "file: a, env: { A: 5 }",
        "file: a, args: [\"\\0\"]",
        "file: a, files: ''",
        "file: a, files: \"a\\0b\"",
        "file: a, files: [data]",
    ] {
        bad(&execute(what));
    }
}

#[test]
fn upstreams_are_urls() {
    let proxy = |what: &str| format!("match: {{ path: /a }}, proxy: {{ {what} }}");
    good(&proxy(
        "upstreams: ['http://127.0.0.1:9000', 'https://b.example']",
    ));
    for what in [
        "",
        "upstreams: []",
        "upstreams: ['ftp://a']",
        "upstreams: ['127.0.0.1:80']",
        "upstreams: ['http://u:p@a']",
        "upstreams: ['http://a', 'http://a:80']",
        "upstreams: ['http://a'], connect_timeout: 2m",
        "upstreams: ['http://a'], read_timeout: 0",
        "upstreams: 'http://a'",
        "upstreams: [{ weight: 2 }]",
        "upstreams: [{ url: 'http://a', weight: 0 }]",
        "upstreams: [{ url: 'http://a', weight: 101 }]",
        "upstreams: [{ url: 'http://a', wieght: 1 }]",
        "upstreams: ['http://a', { url: 'http://a:80' }]",
    ] {
        bad(&proxy(what));
    }
}

#[test]
fn what_a_proxy_does_is_checked() {
    let proxy = |what: &str| {
        format!("match: {{ path: '/a/{{id}}/*' }}, proxy: {{ upstreams: ['http://a'], {what} }}")
    };
    for what in [
        "balance: least_connections",
        "balance: { hash_header: X-User }",
        "balance: { hash_cookie: sid }",
        "protocol: http2",
        "keepalive_timeout: 0s",
        "rewrite: '{rest}'",
        "rewrite: '/v2/{id}{rest}'",
        "forwarded: both",
        "websocket: true, websocket_idle_timeout: 1s",
        "tls: { ca: a.pem, client_cert: b.pem, client_key: c.pem, server_name: app.internal }",
        "tls: { server_name: 10.0.0.1 }",
        "capacity: { requests_max: 1, pending_max: 0 }",
        "capacity: { requests_max: null }",
        "retries: { tries_max: 1, statuses: [503, 429], budget_percent: 0 }",
        "ejection: { enabled: false }",
        "ejection: { statuses: [500], percent_max: 100 }",
        "health_check: {}",
        "health_check: { path: '/healthz?deep=1', host: 'a.internal:80', status: 204 }",
    ] {
        good(&proxy(what));
    }
    for what in [
        "balance: random",
        "balance: { hash_header: 'a b' }",
        "balance: { hash_cookie: 'a;b' }",
        "balance: { hash_address: 5 }",
        "protocol: http3",
        "rewrite: 'v2'",
        "rewrite: '/v2/{nope}'",
        "rewrite: '/v2?x=1'",
        "rewrite: '/a/../b'",
        "rewrite: \"/a\\r\\nX: y\"",
        "forwarded: all",
        "protocol: http2, websocket: true",
        "websocket_lifetime_max: 10ms",
        "tls: { ca: '' }",
        "tls: { client_cert: b.pem }",
        "tls: { client_key: b.pem }",
        "tls: { server_name: 'a b' }",
        "tls: { ca: a.pem, insecure: true }",
        "capacity: { requests_max: 0 }",
        "retries: { tries_max: 0 }",
        "retries: { tries_max: 9 }",
        "retries: { statuses: [200] }",
        "retries: { statuses: [404] }",
        "ejection: { failures: 0 }",
        "ejection: { statuses: [302] }",
        "ejection: { time: 2m, time_max: 1m }",
        "ejection: { percent_max: 101 }",
        "health_check: { path: healthz }",
        "health_check: { path: '/../x' }",
        "health_check: { path: '/a b' }",
        "health_check: { host: a.internal }",
        "health_check: { path: /a, host: 'a b' }",
        "health_check: { interval: 10ms }",
        "health_check: { unhealthy_after: 0 }",
    ] {
        bad(&proxy(what));
    }
}

#[test]
fn a_client_can_not_choose_where_a_redirect_leads() {
    let redirect = |to: &str| format!("match: {{ path: '/a/{{id}}' }}, redirect: {{ to: '{to}' }}");
    for to in [
        "https://example.com",
        "https://example.com{path}",
        "https://example.com/{id}?{query}",
        "http://example.com:8080/x",
        "https://[2001:db8::1]/x",
        "/b/{id}",
        "/b{path}",
    ] {
        good(&redirect(to));
    }
    for to in [
        "",
        "{path}",
        "example.com",
        "//example.com",
        "/\\example.com",
        "/{path}",
        "https://{id}.example.com/",
        "https://example.com{id}",
        "https://example.com.{id}",
        "https://",
        "https:///x",
        "https://u@example.com/",
        "https://example.com\\x",
        "javascript:alert(1)",
        "/b/{other}",
        "/b/{id",
        "/b/id}",
        "/b c",
        "/ü",
    ] {
        bad(&redirect(to));
    }
    for status in ["200", "300", "304", "99999", "-1", "x"] {
        bad(&format!(
            "match: {{ path: /a }}, redirect: {{ to: /b, status: {status} }}"
        ));
    }
    let Target::Redirect(target) = good(&redirect("/b")).target else {
        panic!()
    };
    assert_eq!(target.status, 308);
}

#[test]
fn fixed_answers_are_answers() {
    let respond = |what: &str| format!("match: {{ path: /a }}, respond: {{ {what} }}");
    good(&respond("status: 204"));
    good(&respond("status: 599, body: x, content_type: text/html"));
    for what in [
        "status: 199",
        "status: 600",
        "status: 204, body: x",
        "content_type: nope",
        "body: 5",
    ] {
        bad(&respond(what));
    }
    bad(&respond(&format!("body: {}", "x".repeat(65_537))));
}

#[test]
fn a_routes_headers_are_checked() {
    let headers = |what: &str| {
        format!(
            "match: {{ path: /a }}, headers: {{ {what} }}, proxy: {{ upstreams: ['http://a:1'] }}"
        )
    };
    let route = good(&headers(
        "request: { set: { X-A: a }, remove: [Cookie] }, response: { remove: [X-Frame-Options] }",
    ));
    assert_eq!(
        (
            route.headers.request_set.len(),
            route.headers.request_remove.len()
        ),
        (1, 1)
    );
    assert_eq!(route.headers.response_remove[0], "x-frame-options");
    good(&headers("response: { set: { Host: a } }"));
    for what in [
        "request: { set: { Host: a } }",
        "request: { remove: [Connection] }",
        "response: { set: { Transfer-Encoding: chunked } }",
        "response: { remove: ['a b'] }",
        "response: { set: { X-Request-Id: a } }",
        "resposne: { set: { A: b } }",
    ] {
        bad(&headers(what));
    }
}

#[test]
fn every_route_is_looked_at() {
    let yaml: String = "routes:\n".to_string()
        + &(0..50)
            .map(|i| format!("  - {{ name: r{i}, match: {{ path: x }}, respond: {{}} }}\n"))
            .collect::<String>();
    let problems = problems(&yaml);
    assert_eq!(problems.len(), 50);
    assert!(
        problems[49].starts_with("51:27: routes[49].match.path"),
        "{}",
        problems[49]
    );
}

#[test]
fn changes_to_a_request_reach_its_target() {
    let headers = "match: { path: /a }, headers: { request: { set: { X-A: b } } }";
    for target in [
        "respond: {}",
        "redirect: { to: /b }",
        "execute: { file: a.wasm }",
        "execute: { file: a.wasm, abi: command }",
    ] {
        let problem = bad(&format!("{headers}, {target}"));
        assert!(problem.contains("routes[0].headers.request"), "{problem}");
    }
    good(&format!(
        "{headers}, execute: {{ file: a.wasm, abi: wagi }}"
    ));
    good(&format!(
        "{headers}, proxy: {{ upstreams: ['http://a:1'] }}"
    ));
    for name in ["Authorization", "Proxy", "X_A"] {
        let problem = bad(&format!(
            "match: {{ path: /a }}, headers: {{ request: {{ add: {{ {name}: b }} }} }}, \
             execute: {{ file: a.wasm, abi: wagi }}"
        ));
        assert!(problem.contains("guests do not get"), "{problem}");
    }
}

#[test]
fn a_path_in_a_flow_mapping_wants_quotes() {
    let problem = problem("routes: [{ name: a, match: { path: /a/{id} }, respond: {} }]");
    assert!(problem.contains("in quotes"), "{problem}");
}

/// Two listeners, of which the second believes these authorities.
fn with_certificates(auth: &str, second: &str) -> String {
    format!(
        "server:\n  https:\n  - {{ address: '127.0.0.1:1', certificates: [{{ cert: a, key: b }}], client_certificates: {{ ca: ca.crt }} }}\n  \
         - {{ address: '127.0.0.1:2', certificates: [{{ cert: a, key: b }}], client_certificates: {{ ca: {second} }} }}\n\
         routes: [{{ name: a, match: {{ path: /a }}, auth: {auth}, respond: {{}} }}]"
    )
}

#[test]
fn a_route_takes_certificates_that_a_listener_asks_for() {
    let auth = |auth: &str, second: &str| {
        let yaml = with_certificates(auth, second);
        let loaded = load(&yaml).unwrap_or_else(|problems| panic!("{yaml}\n{problems}"));
        let mut routes = loaded.config.routes;
        match routes.remove(0).auth {
            Auth::Certificate(rule) => *rule,
            other => panic!("{other:?}"),
        }
    };
    for any in ["certificate", "{ certificate: {} }"] {
        assert_eq!(
            auth(any, "ca.crt"),
            crate::route::CertificateRule::default()
        );
    }
    let some = auth(
        "{ certificate: { ca: other.crt, subjects: ['O=a, CN=b'], names: ['DNS:*.example.com'] } }",
        "other.crt",
    );
    assert_eq!(some.ca.as_deref(), Some(Path::new("other.crt")));
    assert!(some.admits("O=a, CN=b", &[]) && !some.admits("O=a, CN=c", &[]));
    for (wrong, second, said) in [
        ("certificate", "other.crt", "different authorities"),
        ("{ certificate: { ca: no.crt } }", "ca.crt", "no listener's"),
        (
            "{ certificate: { subjects: [client] } }",
            "ca.crt",
            "is no subject",
        ),
        (
            "{ certificate: { names: [example.com] } }",
            "ca.crt",
            "is no alternative name",
        ),
    ] {
        let problem = problem(&with_certificates(wrong, second));
        assert!(problem.contains(said), "{problem}");
        assert!(problem.contains("routes[0].auth.certificate"), "{problem}");
    }
    let nobody = bad("match: { path: /a }, auth: certificate, respond: {}");
    assert!(nobody.contains("no listener asks"), "{nobody}");
    let nobody = bad("match: { path: /a }, auth: nobody, respond: {}");
    assert!(
        nobody.contains("'none', 'key', { role: … } or 'certificate', not 'nobody'"),
        "{nobody}"
    );
}

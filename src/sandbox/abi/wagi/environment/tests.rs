use std::collections::HashMap;
use std::net::SocketAddr;

use http::{Method, Version};
use proptest::prelude::*;

use super::*;
use crate::sandbox::abi::AuthType;

/// A request to change; [`Fixture::env`] gives what a guest would see.
struct Fixture {
    method: Method,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    version: Version,
    server: (String, u16, bool),
    client: Option<SocketAddr>,
    route_path: String,
    params: Vec<(String, String)>,
    principal: Option<String>,
    content_length: Option<u64>,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture {
            method: Method::POST,
            path: "/fn/page/a%20b/c".to_owned(),
            query: Some("x=1&y=%3C&flag".to_owned()),
            headers: HeaderMap::new(),
            version: Version::HTTP_2,
            server: ("example.com".to_owned(), 8443, true),
            client: Some("192.0.2.7:4711".parse().unwrap()),
            route_path: "/fn/page".to_owned(),
            params: Vec::new(),
            principal: None,
            content_length: Some(4),
        }
    }

    fn header(mut self, name: &str, value: &[u8]) -> Fixture {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        self.headers
            .append(name, HeaderValue::from_bytes(value).unwrap());
        self
    }

    fn args_and_env(&self) -> (Vec<String>, Vec<(String, String)>) {
        let request = Request {
            method: &self.method,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            version: self.version,
            server_name: &self.server.0,
            server_port: self.server.1,
            https: self.server.2,
            client: self.client,
            route_path: &self.route_path,
            params: &self.params,
            principal: self.principal.as_deref().map(|id| (AuthType::Bearer, id)),
            request_id: "0197-id",
            content_length: self.content_length,
        };
        let (args, env) = args_and_env(&request, &[]);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let pair = |variable: String| {
            let (name, value) = variable.split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        };
        let env = env.iter().map(text);
        (args.iter().map(text).collect(), env.map(pair).collect())
    }

    fn env(&self) -> HashMap<String, String> {
        let (_, list) = self.args_and_env();
        let len = list.len();
        let map: HashMap<_, _> = list.into_iter().collect();
        assert_eq!(map.len(), len, "a variable is set twice");
        map
    }

    #[track_caller]
    fn check(&self, expected: &[(&str, Option<&str>)]) {
        let env = self.env();
        for (name, value) in expected {
            assert_eq!(env.get(*name).map(String::as_str), *value, "{name}");
        }
    }
}

#[test]
fn every_variable_of_a_post_with_a_body() {
    let fixture = Fixture::new()
        .header("content-type", b"text/plain")
        .header("content-length", b"4")
        .header("accept-language", b"de")
        .header("host", b"example.com:8443");
    let mut env: Vec<_> = fixture.args_and_env().1;
    env.sort();
    let software = concat!("WasmWizard/", env!("CARGO_PKG_VERSION"));
    let expected = [
        ("CONTENT_LENGTH", "4"),
        ("CONTENT_TYPE", "text/plain"),
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("HTTPS", "on"),
        ("HTTP_ACCEPT_LANGUAGE", "de"),
        ("HTTP_HOST", "example.com:8443"),
        ("PATH_INFO", "/a b/c"),
        ("PATH_TRANSLATED", "/a b/c"),
        ("QUERY_STRING", "x=1&y=%3C&flag"),
        ("REMOTE_ADDR", "192.0.2.7"),
        ("REMOTE_HOST", "192.0.2.7"),
        ("REQUEST_METHOD", "POST"),
        ("SCRIPT_NAME", "/fn/page"),
        ("SERVER_NAME", "example.com"),
        ("SERVER_PORT", "8443"),
        ("SERVER_PROTOCOL", "HTTP/2.0"),
        ("SERVER_SOFTWARE", software),
        (
            "X_FULL_URL",
            "https://example.com:8443/fn/page/a%20b/c?x=1&y=%3C&flag",
        ),
        ("X_MATCHED_ROUTE", "/fn/page"),
        ("X_RAW_PATH_INFO", "/a%20b/c"),
        ("X_REQUEST_ID", "0197-id"),
    ];
    assert_eq!(
        env,
        expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
}

#[test]
fn a_get_without_a_body_has_no_content_length() {
    let mut fixture = Fixture::new();
    fixture.method = Method::GET;
    fixture.content_length = None;
    fixture.query = None;
    fixture.check(&[
        ("CONTENT_LENGTH", None),
        ("CONTENT_TYPE", None),
        ("QUERY_STRING", Some("")),
    ]);
    fixture.content_length = Some(0);
    fixture.check(&[("CONTENT_LENGTH", Some("0"))]);
}

#[test]
fn content_length_is_what_the_gateway_knows_and_not_what_a_header_says() {
    Fixture::new()
        .header("content-length", b"999999")
        .check(&[("CONTENT_LENGTH", Some("4"))]);
}

#[test]
fn credentials_proxy_and_connection_headers_are_withheld() {
    let mut fixture = Fixture::new()
        .header("cookie", b"a=1")
        .header("x-api-keys", b"fine");
    for name in HEADERS_WITHHELD {
        fixture = fixture.header(name, b"secret");
    }
    let env = fixture.env();
    let mut http: Vec<_> = env
        .keys()
        .filter(|name| name.starts_with("HTTP_"))
        .collect();
    http.sort();
    assert_eq!(http, ["HTTP_COOKIE", "HTTP_HOST", "HTTP_X_API_KEYS"]);
    let leaks: Vec<_> = env
        .iter()
        .filter(|(name, value)| *name != "CONTENT_TYPE" && value.contains("secret"))
        .collect();
    assert!(leaks.is_empty(), "{leaks:?}");
}

#[test]
fn names_that_could_pose_as_another_header_are_dropped() {
    Fixture::new()
        .header("x-user", b"real")
        .header("x_user", b"forged")
        .header("x.user", b"forged")
        .header("x!user", b"forged")
        .check(&[("HTTP_X_USER", Some("real"))]);
    Fixture::new()
        .header("x_user", b"forged")
        .check(&[("HTTP_X_USER", None)]);
    // Nor can a header pose as a variable of ours.
    Fixture::new()
        .header("remote-user", b"root")
        .check(&[("REMOTE_USER", None)]);
}

#[test]
fn repeated_headers_are_joined() {
    Fixture::new()
        .header("accept", b"text/html")
        .header("accept", b"text/plain;q=0.5")
        .header("cookie", b"a=1")
        .header("cookie", b"b=2")
        .check(&[
            ("HTTP_ACCEPT", Some("text/html, text/plain;q=0.5")),
            ("HTTP_COOKIE", Some("a=1; b=2")),
        ]);
}

#[test]
fn bytes_that_are_not_utf8_are_replaced() {
    let mut fixture = Fixture::new().header("x-name", b"caf\xe9");
    fixture.path = "/fn/page/%ff%C3%A9".to_owned();
    fixture.check(&[
        ("HTTP_X_NAME", Some("caf\u{fffd}")),
        ("PATH_INFO", Some("/\u{fffd}é")),
    ]);
}

#[test]
fn a_nul_byte_drops_the_variable() {
    let mut fixture = Fixture::new();
    fixture.path = "/fn/page/a%00b".to_owned();
    fixture.check(&[
        ("PATH_INFO", None),
        ("PATH_TRANSLATED", None),
        ("X_RAW_PATH_INFO", Some("/a%00b")),
    ]);
}

#[test]
fn percent_decoding_leaves_what_is_not_encoded() {
    for (encoded, decoded) in [
        ("", ""),
        ("/a+b", "/a+b"),
        ("%41%6a%6A", "Ajj"),
        ("%", "%"),
        ("%4", "%4"),
        ("%zz%4", "%zz%4"),
        ("%%41", "%A"),
        ("%2541", "%41"),
        ("%2e%2E%2f", "../"),
    ] {
        assert_eq!(percent_decoded(encoded), decoded, "{encoded}");
    }
}

#[test]
fn the_path_is_split_where_the_route_ends() {
    for (route, path, script_name, info) in [
        ("/fn", "/fn", "/fn", ""),
        ("/fn", "/fn/", "/fn", "/"),
        ("/fn/", "/fn/x", "/fn", "/x"),
        ("/", "/x/y", "", "/x/y"),
        ("/fn", "/fnord", "/fnord", ""),
        ("/a/{id}", "/a/7", "/a/7", ""),
        ("/f%6e", "/fn/x", "/fn/x", ""),
    ] {
        let mut fixture = Fixture::new();
        (fixture.route_path, fixture.path) = (route.to_owned(), path.to_owned());
        fixture.check(&[
            ("SCRIPT_NAME", Some(script_name)),
            ("PATH_INFO", Some(info)),
            ("X_MATCHED_ROUTE", Some(route)),
        ]);
    }
}

#[test]
fn arguments_are_the_raw_parts_of_the_query() {
    let mut fixture = Fixture::new();
    assert_eq!(
        fixture.args_and_env().0,
        ["/fn/page", "x=1", "y=%3C", "flag"]
    );
    fixture.query = Some("&&a&".to_owned());
    fixture.route_path = "/".to_owned();
    assert_eq!(fixture.args_and_env().0, ["/", "a"]);
    fixture.query = None;
    assert_eq!(fixture.args_and_env().0, ["/"]);
}

#[test]
fn params_become_variables_and_the_first_of_a_name_stays() {
    let mut fixture = Fixture::new();
    fixture.params = [("user-id", "7"), ("user_id", "8"), ("größe", "x")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    fixture.check(&[
        ("WW_PARAM_USER_ID", Some("7")),
        ("WW_PARAM_GR__E", Some("x")),
    ]);
}

#[test]
fn a_principal_is_the_remote_user() {
    let mut fixture = Fixture::new();
    fixture.check(&[("AUTH_TYPE", None), ("REMOTE_USER", None)]);
    fixture.principal = Some("user-1".to_owned());
    fixture.check(&[
        ("AUTH_TYPE", Some("Bearer")),
        ("REMOTE_USER", Some("user-1")),
    ]);
}

#[test]
fn addresses_and_urls() {
    let mut fixture = Fixture::new();
    fixture.server = ("::1".to_owned(), 443, true);
    fixture.client = Some("[::ffff:192.0.2.1]:5".parse().unwrap());
    (fixture.path, fixture.query) = ("/".to_owned(), None);
    fixture.check(&[
        ("SERVER_NAME", Some("[::1]")),
        ("HTTP_HOST", Some("[::1]")),
        ("X_FULL_URL", Some("https://[::1]/")),
        ("REMOTE_ADDR", Some("192.0.2.1")),
    ]);
    fixture.server = ("example.com".to_owned(), 443, false);
    fixture.client = None;
    fixture.check(&[
        ("X_FULL_URL", Some("http://example.com:443/")),
        ("HTTPS", None),
        ("REMOTE_ADDR", Some("")),
    ]);
}

#[test]
fn the_environment_and_the_arguments_are_bounded() {
    let mut fixture = Fixture::new();
    for number in 0..200 {
        fixture = fixture.header(&format!("x-{number}"), &vec![b'v'; 4096]);
    }
    fixture.query = Some("a&".repeat(ARGS_BYTES_MAX));
    let (args, env) = fixture.args_and_env();
    let env_bytes: usize = env
        .iter()
        .map(|(name, value)| name.len() + value.len() + 2)
        .sum();
    assert!(env_bytes <= ENV_BYTES_MAX, "{env_bytes}");
    assert!(args.iter().map(|arg| arg.len() + 1).sum::<usize>() <= ARGS_BYTES_MAX);
    // A query too long for the environment is left out; what the gateway itself says is there.
    let names: Vec<_> = env.iter().map(|(name, _)| name.as_str()).collect();
    assert!(!names.contains(&"QUERY_STRING"));
    assert!(names.contains(&"REQUEST_METHOD") && names.contains(&"REMOTE_ADDR"));
    assert!(names.contains(&"HTTP_X_0"));
}

proptest! {
    /// Whatever a client sends: no panic, no NUL, no name that is not a variable's, nothing twice,
    /// and nothing over the bounds.
    #[test]
    fn any_request_gives_a_sound_environment(
        path in "/[ -~]{0,40}",
        query in proptest::option::of("[ -~]{0,40}"),
        route in "/[ -~]{0,10}",
        headers in proptest::collection::vec(("[a-zA-Z0-9!#$%&'*+.^_|~-]{1,12}", "[ -~\u{80}-\u{ff}]{0,20}"), 0..20),
        params in proptest::collection::vec((".{0,8}", ".{0,8}"), 0..4),
    ) {
        let mut fixture = Fixture::new();
        (fixture.path, fixture.query, fixture.route_path, fixture.params) = (path, query, route, params);
        for (name, value) in headers {
            fixture = fixture.header(&name, value.as_bytes());
        }
        for (name, value) in fixture.env() {
            prop_assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'));
            prop_assert!(!value.contains('\0'));
        }
    }
}

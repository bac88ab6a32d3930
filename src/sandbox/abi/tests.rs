use http::{HeaderMap, Method, Version};

use super::*;

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn with_request<T>(test: impl FnOnce(&Request<'_>) -> T) -> T {
    let headers = HeaderMap::new();
    test(&Request {
        method: &Method::GET,
        path: "/fn/hello/you",
        query: Some("a=1"),
        headers: &headers,
        version: Version::HTTP_11,
        server_name: "localhost",
        server_port: 8443,
        https: true,
        client: None,
        route_path: "/fn/hello",
        params: &[],
        principal: None,
        request_id: "r-1",
        content_length: None,
    })
}

#[test]
fn a_command_gets_the_configured_arguments_and_no_request_headers() {
    let (args, env) = with_request(|request| {
        Abi::Command.args_and_env(request, &["-v".to_owned()], &pairs(&[("MODE", "fast")]))
    });
    assert_eq!(args, Strings::arguments(["/fn/hello", "-v"]));
    assert_eq!(
        env,
        Strings::variables([("X_REQUEST_ID", "r-1"), ("MODE", "fast")])
    );
    // An operator's wins.
    let configured = pairs(&[("X_REQUEST_ID", "mine")]);
    let (_, env) = with_request(|request| Abi::Command.args_and_env(request, &[], &configured));
    assert_eq!(env, Strings::variables([("X_REQUEST_ID", "mine")]));
}

#[test]
fn wagi_arguments_come_from_the_query_and_configured_variables_win() {
    let configured = pairs(&[("QUERY_STRING", "fixed"), ("EXTRA", "1")]);
    let (args, env) = with_request(|request| {
        Abi::Wagi.args_and_env(request, &["ignored".to_owned()], &configured)
    });
    assert_eq!(args, Strings::arguments(["/fn/hello", "a=1"]));
    let query: Vec<_> = env
        .iter()
        .filter(|variable| variable.starts_with(b"QUERY_STRING="))
        .collect();
    assert_eq!(query, [b"QUERY_STRING=fixed"]);
    assert!(env.iter().any(|variable| variable == b"EXTRA=1"));
    assert!(env.iter().any(|variable| variable == b"PATH_INFO=/you"));
}

#[test]
fn names_in_configuration_are_lower_case() {
    assert_eq!(
        serde_json::to_string(&[Abi::Command, Abi::Wagi]).unwrap(),
        r#"["command","wagi"]"#
    );
    assert!(serde_json::from_str::<Abi>("\"cgi\"").is_err());
}

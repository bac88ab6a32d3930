//! Headers that are set and removed.

use std::collections::{BTreeMap, HashSet};

use http::{HeaderName, HeaderValue};

use crate::config::context::Context;
use crate::config::file::{HeaderChanges, Headers, Route, Server};
use crate::config::problem::{Path, shown};
use crate::route::HeaderEdits;
use crate::sandbox::abi::{self, Abi};

/// A list this long is a mistake, and every one costs each response.
const HEADERS_MAX: usize = 64;

/// Headers of one connection or of the message's framing (RFC 9110 section 7.6.1, RFC 9112
/// section 6), which the gateway sets itself.
const FRAMING: [&str; 10] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "x-request-id",
];

/// Which way a message goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    Response,
}

/// The headers of every response.
pub fn global(headers: &Headers, cx: &mut Context) -> Option<HeaderEdits> {
    let at = Path::from("headers.set");
    let set: BTreeMap<&str, &str> = headers
        .set
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?)))
        .collect();
    // A default that is switched off must still be a header's name.
    for name in headers
        .set
        .iter()
        .filter(|(_, value)| value.is_none())
        .map(|(name, _)| name)
    {
        self::name(name, &at.key(name), Direction::Response, cx);
    }
    for name in set
        .keys()
        .filter(|name| name.eq_ignore_ascii_case("strict-transport-security"))
    {
        cx.problem(
            &at.key(name),
            "would also be sent without TLS",
            "use headers.strict_transport_security",
        );
    }
    Some(HeaderEdits {
        response_set: pairs(set, &at, Direction::Response, cx)?,
        ..HeaderEdits::default()
    })
}

/// `Strict-Transport-Security` (RFC 6797 section 6.1).
pub fn hsts(headers: &Headers, cx: &mut Context) -> Option<Option<HeaderValue>> {
    let Some(text) = headers.strict_transport_security.as_deref() else {
        return Some(None);
    };
    let path = Path::from("headers.strict_transport_security");
    let seconds = text
        .split(';')
        .find_map(|part| part.trim().strip_prefix("max-age="));
    match HeaderValue::from_str(text) {
        Ok(value)
            if seconds.is_some_and(|seconds| seconds.trim_matches('"').parse::<u64>().is_ok()) =>
        {
            Some(Some(value))
        }
        Ok(_) | Err(_) => {
            cx.problem(
                &path,
                "must have max-age in seconds",
                "use 'max-age=31536000', or null to send none",
            );
            None
        }
    }
}

/// The header for the subject of clients' certificates. The outer option is none for a bad one.
pub fn client_certificate(server: &Server, cx: &mut Context) -> Option<Option<HeaderName>> {
    let Some(text) = server.client_certificate_header.as_deref() else {
        return Some(None);
    };
    let path = Path::from("server.client_certificate_header");
    let name = name(text, &path, Direction::Request, cx)?;
    // These mean something else to whoever reads the request.
    let is_taken = ["host", "authorization", "cookie", "x-api-key", "forwarded"]
        .contains(&name.as_str())
        || name.as_str().starts_with("x-forwarded-");
    if is_taken {
        let hint = "use a name of its own, such as X-Client-Subject";
        cx.problem(&path, "has a meaning already", hint);
        return None;
    }
    if server
        .https
        .iter()
        .all(|https| https.client_certificates.is_none())
    {
        let hint = "add client_certificates to a listener in server.https";
        cx.warning(&path, "no listener asks for certificates", hint);
    }
    Some(Some(name))
}

/// A route's changes.
pub fn route(route: &Route, at: &Path, cx: &mut Context) -> Option<HeaderEdits> {
    let headers = &route.headers;
    let request = changes(&headers.request, &at.key("request"), Direction::Request, cx);
    reach_target(route, request.as_ref(), &at.key("request"), cx);
    let response = changes(
        &headers.response,
        &at.key("response"),
        Direction::Response,
        cx,
    );
    let (request, response) = (request?, response?);
    Some(HeaderEdits {
        request_set: request.set,
        request_add: request.add,
        request_remove: request.removed,
        response_set: response.set,
        response_add: response.add,
        response_remove: response.removed,
    })
}

/// Changes to a request are for targets that see its headers.
fn reach_target(route: &Route, request: Option<&Changes>, at: &Path, cx: &mut Context) {
    let Some(request) = request else {
        return;
    };
    let is_empty = request.set.is_empty() && request.add.is_empty() && request.removed.is_empty();
    if is_empty || route.proxy.is_some() {
        return;
    }
    match &route.execute {
        Some(execute) if execute.abi == Some(Abi::Wagi) => {
            let given = request.set.iter().chain(&request.add);
            for (name, _) in given.filter(|(name, _)| !abi::wagi::is_given(name)) {
                let message = format_args!("'{name}' is a header that guests do not get");
                cx.problem(at, message, "use execute.env, or another header");
            }
        }
        Some(_) => {
            let hint = "remove it, or use abi: wagi, or execute.env";
            cx.problem(at, "guests with the abi `command` see no headers", hint);
        }
        None => {
            cx.problem(at, "this route's target sees no request", "remove it");
        }
    }
}

struct Changes {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    removed: Vec<HeaderName>,
}

fn changes(
    changes: &HeaderChanges,
    at: &Path,
    direction: Direction,
    cx: &mut Context,
) -> Option<Changes> {
    let set = pairs(borrowed(&changes.set), &at.key("set"), direction, cx);
    let add = pairs(borrowed(&changes.add), &at.key("add"), direction, cx);
    let mut removed = Vec::new();
    for (index, text) in changes.remove.iter().enumerate() {
        removed.extend(name(text, &at.key("remove").index(index), direction, cx));
    }
    if removed.len() > HEADERS_MAX {
        cx.problem(
            &at.key("remove"),
            format_args!("has more than {HEADERS_MAX} headers"),
            "",
        );
    }
    let (set, add) = (set?, add?);
    (removed.len() == changes.remove.len()).then_some(Changes { set, add, removed })
}

fn borrowed(map: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
    map.iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

fn pairs(
    set: BTreeMap<&str, &str>,
    at: &Path,
    direction: Direction,
    cx: &mut Context,
) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let wanted = set.len();
    let mut seen = HashSet::new();
    let mut parsed = Vec::with_capacity(wanted);
    for (text, value_text) in set {
        let path = at.key(text);
        let name = name(text, &path, direction, cx);
        let value = value(value_text, &path, cx);
        if let (Some(name), Some(value)) = (name, value) {
            if seen.insert(name.clone()) {
                parsed.push((name, value));
            } else {
                cx.problem(
                    &path,
                    "is set twice: a header's name has no case",
                    "remove one of them",
                );
            }
        }
    }
    if wanted > HEADERS_MAX {
        cx.problem(at, format_args!("has more than {HEADERS_MAX} headers"), "");
    }
    (parsed.len() == wanted).then_some(parsed)
}

fn name(text: &str, path: &Path, direction: Direction, cx: &mut Context) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        let message = format!("'{}' is not a header name", shown(text));
        cx.problem(path, message, "use letters, digits and '-'");
        return None;
    };
    let is_own = FRAMING.contains(&name.as_str())
        || (name == http::header::HOST && direction == Direction::Request);
    if is_own {
        cx.problem(
            path,
            format_args!("'{name}' is set by the gateway itself"),
            "remove it",
        );
        return None;
    }
    Some(name)
}

/// A header's value. It is not shown: it may be a secret.
pub fn value(text: &str, path: &Path, cx: &mut Context) -> Option<HeaderValue> {
    const BYTES_MAX: usize = 8 << 10;
    if text.len() > BYTES_MAX {
        cx.problem(
            path,
            format_args!("the value has more than {BYTES_MAX} bytes"),
            "",
        );
        return None;
    }
    let value = HeaderValue::from_str(text)
        .ok()
        .filter(|_| text.is_ascii() && text.trim() == text);
    if value.is_none() {
        cx.problem(
            path,
            "the value is not fit for a header",
            "use printable ASCII on one line, without spaces around it",
        );
    }
    value
}

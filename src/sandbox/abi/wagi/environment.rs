//! From an HTTP request to `argv` and the meta-variables of RFC 3875 section 4.1.

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::sandbox::Strings;
use crate::sandbox::abi::{ArgsAndEnv, Request, add_request_variable};

/// Most bytes of environment in all, names and values and two more for each (`=` and NUL). A
/// variable that does not fit any more is left out; the request's headers come last.
pub const ENV_BYTES_MAX: usize = 128 * 1024;

/// What the environment of a browser's request takes.
const ENV_BYTES_USUAL: usize = 2048;

/// Most bytes of arguments in all, and one more for each (NUL). Those that do not fit any more are
/// left out.
pub const ARGS_BYTES_MAX: usize = 128 * 1024;

/// Headers that guests do not get as `HTTP_*`, in lower case.
///
/// Credentials stay with the gateway, which has checked them (RFC 3875 section 9.2). `Proxy` would
/// become `HTTP_PROXY`, which many HTTP clients obey ("httpoxy", CVE-2016-5385). `Content-Type` and
/// `Content-Length` have variables of their own. The rest concern the client's connection only
/// (RFC 9110 section 7.6.1).
const HEADERS_WITHHELD: [&str; 14] = [
    "authorization",
    "proxy-authorization",
    "x-api-key",
    "proxy",
    "content-type",
    "content-length",
    "connection",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Whether guests get a header of this name in any variable.
pub fn is_given(name: &HeaderName) -> bool {
    is_passed(name) || *name == header::CONTENT_TYPE || *name == header::CONTENT_LENGTH
}

/// `argv` and the environment of RFC 3875 section 4.1.
///
/// `argv` is SCRIPT_NAME (`/` if that is empty) and then the query string's parts between `&`, as
/// they came (WAGI's rule; that of RFC 3875 section 4.4 would leave out queries with a `=`). A
/// variable whose value holds a NUL byte is left out, as the environment can't hold one. Bytes that
/// are not UTF-8 become U+FFFD. Variables whose names are `configured` are left to those.
pub fn args_and_env(request: &Request<'_>, configured: &[(String, String)]) -> ArgsAndEnv {
    let path = SplitPath::of(request);
    let args = arguments(path.script_name, request.query);
    let mut env = Environment {
        variables: Strings::with_room(ENV_BYTES_USUAL),
        bytes: 0,
        configured,
    };
    set_request(&mut env, request, &path);
    set_connection(&mut env, request);
    set_params(&mut env, request.params);
    set_headers(&mut env, request);
    (args, env.variables)
}

/// A request's path where the route's part ends and the script's begins, both still encoded.
struct SplitPath<'a> {
    /// Without a slash at its end.
    script_name: &'a str,
    /// Empty, or begins with a slash.
    info: &'a str,
}

impl<'a> SplitPath<'a> {
    /// If the route's part is not how the path begins, the whole path is the script's name.
    fn of(request: &Request<'a>) -> SplitPath<'a> {
        let script_name = request.route_path.trim_end_matches('/');
        match request.path.strip_prefix(script_name) {
            Some(info) if info.is_empty() || info.starts_with('/') => {
                SplitPath { script_name, info }
            }
            Some(_) | None => SplitPath {
                script_name: request.path,
                info: "",
            },
        }
    }
}

/// The variables of one guest, within [`ENV_BYTES_MAX`].
struct Environment<'a> {
    variables: Strings,
    bytes: usize,
    /// These win over those of the same name.
    configured: &'a [(String, String)],
}

impl Environment<'_> {
    /// Whether there is such a variable now.
    fn set(&mut self, name: &str, value: &str) -> bool {
        const EXTRA_BYTES: usize = 2;
        let bytes = name.len() + value.len() + EXTRA_BYTES;
        if value.contains('\0') || bytes > ENV_BYTES_MAX - self.bytes {
            return false;
        }
        self.bytes += bytes;
        add_request_variable(&mut self.variables, name, value, self.configured);
        true
    }
}

fn arguments(script_name: &str, query: Option<&str>) -> Strings {
    let parts = query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .filter(|part| !part.is_empty());
    let program = if script_name.is_empty() {
        "/"
    } else {
        script_name
    };
    let mut left = ARGS_BYTES_MAX;
    Strings::arguments(std::iter::once(program).chain(parts).map_while(|arg| {
        left = left.checked_sub(arg.len() + 1)?;
        Some(arg)
    }))
}

/// What the request asks for: RFC 3875 sections 4.1.2, 4.1.3, 4.1.5 to 4.1.7, 4.1.12 and 4.1.13,
/// and WAGI's own.
fn set_request(env: &mut Environment<'_>, request: &Request<'_>, path: &SplitPath<'_>) {
    env.set("REQUEST_METHOD", request.method.as_str());
    env.set("SCRIPT_NAME", path.script_name);
    let info = percent_decoded(path.info);
    env.set("PATH_INFO", &info);
    // There is no document tree to translate into; WAGI gives PATH_INFO again.
    env.set("PATH_TRANSLATED", &info);
    env.set("X_RAW_PATH_INFO", path.info);
    env.set("QUERY_STRING", request.query.unwrap_or_default());
    env.set("X_MATCHED_ROUTE", request.route_path);
    env.set("X_FULL_URL", &full_url(request));
    env.set("X_REQUEST_ID", request.request_id);
    if let Some(length) = request.content_length {
        env.set("CONTENT_LENGTH", &length.to_string());
    }
    if let Some(value) = request.headers.get(header::CONTENT_TYPE) {
        env.set("CONTENT_TYPE", &text(value));
    }
}

/// What the route's pattern matched. Of parameters whose variables have the same name, the first stays.
fn set_params(env: &mut Environment<'_>, params: &[(String, String)]) {
    let mut names = Vec::with_capacity(params.len());
    for (param, value) in params {
        let name = format!("WW_PARAM_{}", variable_name(param));
        if !names.contains(&name) && env.set(&name, value) {
            names.push(name);
        }
    }
}

/// Who talks to whom: RFC 3875 sections 4.1.1, 4.1.4, 4.1.8, 4.1.9, 4.1.11 and 4.1.14 to 4.1.17.
fn set_connection(env: &mut Environment<'_>, request: &Request<'_>) {
    env.set("GATEWAY_INTERFACE", "CGI/1.1");
    env.set(
        "SERVER_SOFTWARE",
        concat!("WasmWizard/", env!("CARGO_PKG_VERSION")),
    );
    env.set("SERVER_PROTOCOL", &format!("{:?}", request.version));
    env.set("SERVER_NAME", &bracketed(request.server_name));
    env.set("SERVER_PORT", &request.server_port.to_string());
    if request.https {
        env.set("HTTPS", "on");
    }
    let client = request
        .client
        .map(|client| client.ip().to_canonical().to_string());
    let client = client.as_deref().unwrap_or_default();
    env.set("REMOTE_ADDR", client);
    // No name is looked up; RFC 3875 section 4.1.9 then wants the address.
    env.set("REMOTE_HOST", client);
    if let Some((by, principal)) = request.principal {
        env.set("AUTH_TYPE", by.as_str());
        env.set("REMOTE_USER", principal);
    }
}

/// `HTTP_*`: RFC 3875 section 4.1.18. HTTP/2 has no `Host` field; guests get one all the same.
fn set_headers(env: &mut Environment<'_>, request: &Request<'_>) {
    if !request.headers.contains_key(header::HOST) {
        env.set("HTTP_HOST", &authority(request));
    }
    for name in request.headers.keys() {
        if is_passed(name) {
            let value = joined(request.headers, name);
            env.set(&format!("HTTP_{}", variable_name(name.as_str())), &value);
        }
    }
}

/// Only letters, digits and hyphens: `A_B` or `A.B` could pose as `A-B`, as all become `HTTP_A_B`.
fn is_passed(name: &HeaderName) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    name.as_str().bytes().all(plain) && !HEADERS_WITHHELD.contains(&name.as_str())
}

/// All values of a header as one: RFC 9110 section 5.3, and for `Cookie` RFC 6265 section 5.4.
fn joined(headers: &HeaderMap, name: &HeaderName) -> String {
    let separator = if *name == header::COOKIE { "; " } else { ", " };
    let values: Vec<_> = headers.get_all(name).iter().map(text).collect();
    values.join(separator)
}

fn text(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

/// Upper case, and an underscore for what can't stand in a variable's name.
fn variable_name(name: &str) -> String {
    let in_variable = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    name.chars().map(in_variable).collect()
}

fn full_url(request: &Request<'_>) -> String {
    let scheme = if request.https { "https" } else { "http" };
    let mut url = format!("{scheme}://{}{}", authority(request), request.path);
    if let Some(query) = request.query {
        url.push('?');
        url.push_str(query);
    }
    url
}

/// Host and port, without the port where the scheme implies it.
fn authority(request: &Request<'_>) -> String {
    let implied = if request.https { 443 } else { 80 };
    let host = bracketed(request.server_name);
    if request.server_port == implied {
        return host.into_owned();
    }
    format!("{host}:{}", request.server_port)
}

/// An IPv6 address stands in brackets (RFC 3875 section 4.1.14).
fn bracketed(host: &str) -> Cow<'_, str> {
    if host.contains(':') && !host.starts_with('[') {
        return Cow::Owned(format!("[{host}]"));
    }
    Cow::Borrowed(host)
}

/// `%41` becomes `A`; a `%` without two hexadecimal digits stays (RFC 3986 section 2.1).
fn percent_decoded(encoded: &str) -> String {
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'%', [high, low, after @ ..]) => match (hex_digit(*high), hex_digit(*low)) {
                (Some(high), Some(low)) => {
                    decoded.push(high << 4 | low);
                    rest = after;
                }
                (None, _) | (_, None) => decoded.push(byte),
            },
            (byte, _) => decoded.push(byte),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

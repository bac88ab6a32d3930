//! Where traces go, and which.

use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::server::file_path;
use crate::config::context::Context;
use crate::config::file;
use crate::config::problem::Path;
use crate::config::values::{Period, Secret, Size};
use crate::telemetry::traces::Settings;

const SERVICE_NAME_CHARS_MAX: usize = 100;
const HEADERS_MAX: usize = 16;
/// What the sender sets itself (RFC 9110 sections 7.6.1 and 8, RFC 9112 section 6).
const OWN: [&str; 8] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// `Some(None)` where there are to be none.
pub fn tracing(tracing: &file::Tracing, cx: &mut Context) -> Option<Option<Settings>> {
    let at = Path::from("tracing");
    cx.share(&at.key("sample"), tracing.sample);
    cx.size(
        &at.key("queue_max"),
        tracing.queue_max,
        Size::kib(64),
        Size::gib(1),
    );
    cx.period(
        &at.key("timeout"),
        tracing.timeout,
        Period::ms(100),
        Period::secs(60),
    );
    let name = &tracing.service_name;
    if name.is_empty()
        || name.chars().count() > SERVICE_NAME_CHARS_MAX
        || name.chars().any(char::is_control)
    {
        cx.problem(
            &at.key("service_name"),
            "must have 1 to 100 characters, none of them a control character",
            "",
        );
    }
    let ca = match tracing.ca.as_deref() {
        Some(ca) => Some(file_path(Some(ca), &at.key("ca"), cx)?),
        None => None,
    };
    let headers = headers(tracing.headers.as_ref(), &at.key("headers"), cx)?;
    let Some(endpoint) = &tracing.endpoint else {
        return Some(None);
    };
    check_endpoint(endpoint, &at.key("endpoint"), cx)?;
    if ca.is_some() && !endpoint.starts_with("https://") {
        cx.problem(
            &at.key("ca"),
            "is for an https:// endpoint",
            "remove it, or use TLS",
        );
        return None;
    }
    Some(Some(Settings {
        endpoint: endpoint.clone(),
        ca,
        headers,
        service: name.clone(),
        sample: tracing.sample,
        parents: tracing.parents,
        queue_bytes_max: usize::try_from(tracing.queue_max.0).unwrap_or(usize::MAX),
        timeout: tracing.timeout.0,
    }))
}

fn check_endpoint(endpoint: &str, path: &Path, cx: &mut Context) -> Option<()> {
    const HINT: &str = "use http://collector:4318/v1/traces, or https://";
    let uri: Option<Uri> = endpoint.parse().ok();
    let authority = uri.as_ref().and_then(Uri::authority);
    let is_http = endpoint.starts_with("http://") || endpoint.starts_with("https://");
    match authority {
        // It would stand in the configuration that is shown, and in no place of a request.
        Some(authority) if authority.as_str().contains('@') => {
            cx.problem(path, "must not hold a user or a password", HINT);
            None
        }
        Some(_) if is_http => Some(()),
        Some(_) | None => {
            cx.problem(path, "is not a URL of a collector", HINT);
            None
        }
    }
}

/// `name=value`, with commas between, the values percent-encoded where they must be ("Specifying headers via
/// environment variables" of the specification). Nothing of it is shown: what has no name is likely a secret.
fn headers(text: Option<&Secret>, path: &Path, cx: &mut Context) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    let entries = text.map_or("", Secret::reveal).split_terminator(',');
    for (at, entry) in entries.enumerate() {
        let place = at + 1;
        let pair = entry
            .split_once('=')
            .and_then(|(name, value)| header(name.trim(), value.trim()));
        let Some((name, value)) = pair else {
            cx.problem(
                path,
                format_args!("entry {place} is not name=value"),
                "write it such as: authorization=Bearer%20…, and commas in values as %2C",
            );
            return None;
        };
        if OWN.contains(&name.as_str()) {
            let message = format_args!("entry {place}: '{name}' is set by the gateway itself");
            cx.problem(path, message, "remove it");
            return None;
        }
        headers.insert(name, value);
    }
    if headers.len() > HEADERS_MAX {
        cx.problem(
            path,
            format_args!("has more than {HEADERS_MAX} headers"),
            "",
        );
        return None;
    }
    Some(headers)
}

fn header(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    let value = decoded(value).filter(|value| !value.is_empty())?;
    let mut value = HeaderValue::from_bytes(&value).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            u8::try_from(digit()? << 4 | digit()?).ok()?
        } else {
            byte
        });
    }
    Some(decoded)
}

//! Where traces go, and which.

use http::Uri;

use super::server::file_path;
use crate::config::context::Context;
use crate::config::file;
use crate::config::problem::Path;
use crate::config::values::Period;
use crate::telemetry::traces::Settings;

const SERVICE_NAME_CHARS_MAX: usize = 100;

/// `Some(None)` where there are to be none.
pub fn tracing(tracing: &file::Tracing, cx: &mut Context) -> Option<Option<Settings>> {
    let at = Path::from("tracing");
    cx.share(&at.key("sample"), tracing.sample);
    cx.count(&at.key("queue_max"), tracing.queue_max, 64, 1_000_000);
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
        service: name.clone(),
        sample: tracing.sample,
        parents: tracing.parents,
        spans_queued_max: tracing.queue_max as usize,
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

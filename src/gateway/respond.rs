//! How answers leave: the one place where a failure becomes HTTP and common headers are added.

use bytes::Bytes;
use http::header::Entry;
use http::response::Parts as RespParts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::{Error, ErrorType, OrErr};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use serde_json::{Map, Value, json};

use super::compress::{self, Encoder};
use super::connection::{self, Facts, Refusal};
use super::{Ctx, Gateway, Shared, cors, request};
use crate::api;
use crate::failure::{Failure, code};
use crate::limits;
use crate::route::HeaderEdits;

/// What is written at a time. The write timeout is for each: it ends a client that takes nothing more,
/// not one that takes its time.
const PIECE_BYTES: usize = 64 * 1024;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// About as many fields as an answer gets from us.
const FIELDS_ADDED: usize = 16;

/// Why a request is not answered in the ordinary way.
pub(super) enum Stop {
    /// The client gets this failure.
    Failure(Box<Failure>),
    /// The connection or stream is broken: nothing more can be sent.
    Connection(Box<Error>),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failure(Box::new(failure))
    }
}

impl From<Box<Error>> for Stop {
    fn from(error: Box<Error>) -> Stop {
        Stop::Connection(error)
    }
}

impl Gateway {
    /// Writes a whole answer. A body is left out where HTTP has none (HEAD, 204, 304).
    pub(super) async fn send(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        mut head: ResponseHeader,
        body: Bytes,
    ) -> Result<(), Box<Error>> {
        self.finish_head(session, ctx, &mut head)?;
        let bodiless = matches!(
            head.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
        if !bodiless {
            let length = body.len() as u64;
            if let Some(encoder) = compress::begin(session, ctx, &mut head, Some(length))? {
                return send_encoded(session, head, body, encoder).await;
            }
            head.insert_header(header::CONTENT_LENGTH, body.len())?;
        }
        let silent = bodiless || session.req_header().method == Method::HEAD || body.is_empty();
        session
            .write_response_header(Box::new(head), silent)
            .await?;
        if !silent {
            write_body(session, body, true).await?;
        }
        Ok(())
    }

    /// Writes a failure as JSON: `{"error", "code", "request_id"}` and what else belongs to it.
    pub(super) async fn send_failure(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        failure: &Failure,
    ) -> Result<(), Box<Error>> {
        self.send_failure_with(session, ctx, failure, Map::new())
            .await
    }

    /// As [`Gateway::send_failure`], with more members in the body.
    pub(super) async fn send_failure_with(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        failure: &Failure,
        more: Map<String, Value>,
    ) -> Result<(), Box<Error>> {
        ctx.failure = Some(failure.code);
        let head = failure_head(failure)?;
        let body = failure_body(failure, &ctx.request_id, more);
        self.send(session, ctx, head, body).await
    }

    /// Finishes the head of an upstream's answer: as every other, and compressed where that is wanted.
    pub(super) fn finish_passed(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        response: &mut ResponseHeader,
    ) -> Result<(), Box<Error>> {
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            connection::mark_switched();
        } else if response.status.is_informational() {
            return Ok(());
        }
        self.finish_head(session, ctx, response)?;
        let length = response.headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|l| l.to_str().ok()?.parse().ok());
        let encoder = compress::begin(session, ctx, response, length)?;
        if encoder.is_some() {
            response.insert_header(header::TRANSFER_ENCODING, "chunked")?;
        }
        compress::pass_through(session, encoder);
        if session.req_header().version == Version::HTTP_10
            && !response.headers.contains_key(header::CONTENT_LENGTH)
        {
            // It knows no chunks (RFC 9112 section 6.1): the body ends with the connection.
            response.remove_header(&header::TRANSFER_ENCODING);
            session.set_keepalive(None);
        }
        Ok(())
    }

    /// Adds what every response carries: the id, the rate limit's state, security headers, and last
    /// the route's own edits, which override all of it but what pages of other origins may do.
    ///
    /// The case of names is not kept (RFC 9110 section 5.1): to note it for each field costs Pingora
    /// more than all that is done here.
    pub(super) fn finish_head(
        &self,
        session: &Session,
        ctx: &Ctx,
        head: &mut ResponseHeader,
    ) -> Result<(), Box<Error>> {
        let bare = ResponseHeader::build_no_case(head.status, Some(0))?;
        let given = std::mem::replace(head, bare);
        let reason = given.get_reason_phrase();
        let reason = reason.filter(|reason| given.status.canonical_reason() != Some(*reason));
        let reason = reason.map(str::to_owned);
        let mut parts = RespParts::from(given);
        self.finish_fields(session, ctx, &mut parts.headers)?;
        *head = ResponseHeader::from(parts);
        if reason.is_some() {
            head.set_reason_phrase(reason.as_deref())?;
        }
        if let Some(cors) = ctx.cors() {
            cors::add_headers(&session.req_header().headers, ctx, cors, head)?;
        }
        Ok(())
    }

    fn finish_fields(
        &self,
        session: &Session,
        ctx: &Ctx,
        fields: &mut HeaderMap,
    ) -> Result<(), Box<Error>> {
        let id = HeaderValue::from_str(&ctx.request_id)
            .or_err(ErrorType::InvalidHTTPHeader, "the request's id")?;
        fields.reserve(FIELDS_ADDED);
        fields.insert(X_REQUEST_ID, id);
        if let Some(decision) = &ctx.decision {
            fields.extend(limits::headers(decision));
        }
        if let Some((_, usage)) = &ctx.guest {
            // One that goes on after the head has left can't have it.
            api::add_usage(fields, usage);
        }
        if let Some(left) = &ctx.cpu_left {
            fields.extend(limits::cpu_headers(left));
        }
        let settings = &ctx.plan.settings;
        for (name, value) in &settings.headers.response_set {
            set_if_absent(fields, name, value);
        }
        if let Some(hsts) = &settings.hsts
            && is_tls(session)
        {
            set_if_absent(fields, &header::STRICT_TRANSPORT_SECURITY, hsts);
        }
        if let Some(edits) = ctx.route_headers() {
            edit_response(fields, edits);
        }
        Ok(())
    }
}

/// Sends a body compressed: a short one whole, with its length, a long one piece by piece.
async fn send_encoded(
    session: &mut Session,
    mut head: ResponseHeader,
    mut body: Bytes,
    mut encoder: Encoder,
) -> Result<(), Box<Error>> {
    if body.len() <= PIECE_BYTES {
        let encoded = encoder.encode(&body, true)?;
        head.insert_header(header::CONTENT_LENGTH, encoded.len())?;
        session.write_response_header(Box::new(head), false).await?;
        return write_body(session, encoded, true).await;
    }
    head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    session.write_response_header(Box::new(head), false).await?;
    while !body.is_empty() {
        let piece = body.split_to(body.len().min(PIECE_BYTES));
        let encoded = encoder.encode(&piece, body.is_empty())?;
        // An empty chunk would end the body.
        if !encoded.is_empty() {
            write_body(session, encoded, false).await?;
        }
    }
    session.write_response_body(None, true).await?;
    Ok(())
}

/// Names a request header by which answers differ (RFC 9110 section 12.5.5), once.
pub(super) fn vary(head: &mut ResponseHeader, name: &'static str) -> Result<(), Box<Error>> {
    let mut listed = head
        .headers
        .get_all(header::VARY)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','));
    let is_listed = listed.any(|listed| {
        let listed = listed.trim();
        listed == "*" || listed.eq_ignore_ascii_case(name)
    });
    if !is_listed {
        head.append_header(header::VARY, name)?;
    }
    Ok(())
}

/// Writes a part of a body that is not empty; with `end`, the last.
pub(super) async fn write_body(
    session: &mut Session,
    mut bytes: Bytes,
    end: bool,
) -> Result<(), Box<Error>> {
    loop {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
        let last = bytes.is_empty();
        session
            .write_response_body(Some(piece), end && last)
            .await?;
        if last {
            return Ok(());
        }
    }
}

/// Whether the client's connection is TLS.
pub(super) fn is_tls(session: &Session) -> bool {
    session.digest().is_some_and(|d| d.ssl_digest.is_some())
}

/// The head of a failure, without what [`Gateway::finish_head`] adds.
fn failure_head(failure: &Failure) -> Result<ResponseHeader, Box<Error>> {
    let mut head = ResponseHeader::build(failure.status, Some(16))?;
    head.insert_header(header::CONTENT_TYPE, "application/json")?;
    head.insert_header(header::CACHE_CONTROL, "no-store")?;
    if let Some(after) = failure.retry_after {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        head.insert_header(header::RETRY_AFTER, seconds.max(1))?;
    }
    if failure.status == StatusCode::UPGRADE_REQUIRED {
        // What to upgrade to (RFC 9110 section 15.5.22), and in which version (RFC 6455 section 4.4).
        head.insert_header(header::UPGRADE, "websocket")?;
        head.insert_header(header::SEC_WEBSOCKET_VERSION, "13")?;
    }
    if let Some(allow) = &failure.allow {
        head.insert_header(header::ALLOW, allow.as_str())?;
    }
    if failure.status == StatusCode::UNAUTHORIZED {
        // RFC 6750 section 3.1: what a client that knows no codes of ours refreshes on.
        let challenge = if failure.code == code::TOKEN_EXPIRED {
            "Bearer realm=\"wasm-wizard\", error=\"invalid_token\", error_description=\"The access token expired\""
        } else {
            "Bearer realm=\"wasm-wizard\""
        };
        head.insert_header(header::WWW_AUTHENTICATE, challenge)?;
    }
    Ok(head)
}

fn failure_body(failure: &Failure, request_id: &str, mut more: Map<String, Value>) -> Bytes {
    more.insert("error".into(), json!(failure.message));
    more.insert("code".into(), json!(failure.code));
    more.insert("request_id".into(), json!(request_id));
    let mut text = Value::Object(more).to_string();
    text.push('\n');
    Bytes::from(text)
}

/// The answer to a client whose request can't be read, as bytes: it comes before there is a session
/// that could write it. `pingoras` is what Pingora would have sent.
pub(super) fn refusal_answer(
    shared: &Shared,
    facts: &ProxyDigest,
    refusal: Option<Refusal>,
    pingoras: &[u8],
    is_tls: bool,
) -> Bytes {
    use std::fmt::Write as _;
    let plan = shared.plan.load();
    let settings = &plan.settings;
    let failure = match refusal {
        Some(refusal) => request::refused(refusal, &settings.bounds),
        None if pingoras.starts_with(b"HTTP/1.1 405") => {
            let mut failure = Failure::method_not_allowed(request::METHODS);
            failure.message = "this server makes no tunnels".into();
            failure
        }
        None => Failure::bad_request("the request head can't be read"),
    };
    let id = request::request_id(&HeaderMap::new(), false);
    let body = failure_body(&failure, &id, Map::new());
    let mut head = format!("HTTP/1.1 {}\r\n", failure.status);
    let mut field = |name: &str, value: &str| {
        // Writing to a string can't fail.
        let _ = write!(head, "{name}: {value}\r\n");
    };
    let date = chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
    field("Date", &date.to_string());
    field("Content-Type", "application/json");
    field("Cache-Control", "no-store");
    field("X-Request-Id", &id);
    if let Some(allow) = &failure.allow {
        field("Allow", allow);
    }
    let hsts = settings.hsts.iter().filter(|_| is_tls);
    let hsts = hsts.map(|value| (&header::STRICT_TRANSPORT_SECURITY, value));
    let common = settings.headers.response_set.iter();
    for (name, value) in common.map(|(name, value)| (name, value)).chain(hsts) {
        field(name.as_str(), value.to_str().unwrap_or_default());
    }
    field("Content-Length", &body.len().to_string());
    field("Connection", "close");
    head.push_str("\r\n");
    log_refusal(shared, facts, &failure, &id);
    let mut answer = head.into_bytes();
    answer.extend_from_slice(&body);
    Bytes::from(answer)
}

fn log_refusal(shared: &Shared, facts: &ProxyDigest, failure: &Failure, request_id: &str) {
    let status = failure.status.as_u16();
    let metrics = &shared.builtin_metrics.none;
    metrics.observe("", status, std::time::Duration::ZERO);
    if shared.plan.load().access_log.enabled {
        let client = Facts::of(facts).and_then(Facts::source);
        tracing::info!(
            request_id,
            client = client.map(|client| tracing::field::display(client.ip().to_canonical())),
            status,
            code = failure.code,
            reason = %failure.message,
            "a request that can't be read"
        );
    }
}

fn edit_response(fields: &mut HeaderMap, edits: &HeaderEdits) {
    for name in &edits.response_remove {
        fields.remove(name);
    }
    for (name, value) in &edits.response_set {
        fields.insert(name.clone(), value.clone());
    }
    for (name, value) in &edits.response_add {
        fields.append(name.clone(), value.clone());
    }
}

fn set_if_absent(fields: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) {
    if let Entry::Vacant(vacant) = fields.entry(name.clone()) {
        vacant.insert(value.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_failure_says_what_when_and_who_to_ask() {
        let failure =
            Failure::unavailable("busy", "try \"later\"").retry_after(Duration::from_millis(1500));
        let head = failure_head(&failure).unwrap();
        assert_eq!(head.status, 503);
        assert_eq!(head.headers["retry-after"], "2");
        let body = failure_body(&failure, "id-1", Map::new());
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            body,
            json!({"error": "try \"later\"", "code": "busy", "request_id": "id-1"})
        );
    }

    #[test]
    fn route_edits_override_security_headers() {
        let mut fields = HeaderMap::new();
        fields.insert("x-frame-options", "DENY".parse().unwrap());
        fields.insert("x-a", "1".parse().unwrap());
        let edits = HeaderEdits {
            response_set: vec![(
                "x-frame-options".parse().unwrap(),
                "SAMEORIGIN".parse().unwrap(),
            )],
            response_remove: vec!["x-a".parse().unwrap()],
            ..HeaderEdits::default()
        };
        edit_response(&mut fields, &edits);
        assert_eq!(fields["x-frame-options"], "SAMEORIGIN");
        assert!(!fields.contains_key("x-a"));
    }
}

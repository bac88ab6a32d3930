//! What a client reads when something fails: one type for the gateway and the control plane.
//!
//! A [`Failure`] carries only what a client may know. The gateway alone writes it out (see
//! `gateway/respond.rs`), as `{"error", "code", "request_id"}`.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;

/// Every code the gateway and the control plane send. A code is a promise to clients: one that is
/// here stays, with its meaning, and stands in `docs/API.md` (a test holds both).
pub mod code {
    // What the client sent can't be read, or breaks a bound.
    pub const BAD_REQUEST: &str = "bad_request";
    pub const MALFORMED_MULTIPART: &str = "malformed_multipart";
    pub const MALFORMED_JSON: &str = "malformed_json";
    pub const INCOMPLETE_BODY: &str = "incomplete_body";
    pub const REQUEST_TIMEOUT: &str = "request_timeout";
    pub const PAYLOAD_TOO_LARGE: &str = "payload_too_large";
    pub const URI_TOO_LONG: &str = "uri_too_long";
    pub const HEADERS_TOO_LARGE: &str = "headers_too_large";
    pub const UNSUPPORTED_MEDIA_TYPE: &str = "unsupported_media_type";
    pub const UPGRADE_REQUIRED: &str = "upgrade_required";
    pub const WEBSOCKET_NOT_ALLOWED: &str = "websocket_not_allowed";

    // Who asks, and for what.
    pub const UNAUTHORIZED: &str = "unauthorized";
    pub const TOKEN_EXPIRED: &str = "token_expired";
    pub const INVALID_REFRESH_TOKEN: &str = "invalid_refresh_token";
    pub const REFRESH_TOKEN_REUSED: &str = "refresh_token_reused";
    pub const TIER_TOO_LOW: &str = "tier_too_low";
    pub const FORBIDDEN: &str = "forbidden";
    pub const INSUFFICIENT_SCOPE: &str = "insufficient_scope";
    pub const CERTIFICATE_REQUIRED: &str = "certificate_required";
    pub const CERTIFICATE_ENDED: &str = "certificate_ended";
    pub const MODULE_STOPPED: &str = "module_stopped";
    pub const STOPPED: &str = "stopped";
    pub const LAST_ADMIN: &str = "last_admin";
    pub const NOT_FOUND: &str = "not_found";
    pub const METHOD_NOT_ALLOWED: &str = "method_not_allowed";
    pub const CONFLICT: &str = "conflict";
    pub const TOO_MANY_KEYS: &str = "too_many_keys";
    pub const RATE_LIMITED: &str = "rate_limited";
    pub const TOO_MANY_AT_ONCE: &str = "too_many_at_once";
    pub const CPU_QUOTA_EXCEEDED: &str = "cpu_quota_exceeded";
    pub const TOO_MANY_GUESTS: &str = "too_many_guests";

    // The module is refused.
    pub const INVALID_MODULE: &str = "invalid_module";
    pub const MODULE_OVER_LIMIT: &str = "module_over_limit";
    pub const COMPILE_LIMIT_EXCEEDED: &str = "compile_limit_exceeded";

    // The guest ran and failed.
    pub const GUEST_EXIT: &str = "guest_exit";
    pub const GUEST_TRAP: &str = "guest_trap";
    pub const TIME_LIMIT_EXCEEDED: &str = "time_limit_exceeded";
    pub const MEMORY_LIMIT_EXCEEDED: &str = "memory_limit_exceeded";
    pub const STACK_LIMIT_EXCEEDED: &str = "stack_limit_exceeded";
    pub const TABLE_LIMIT_EXCEEDED: &str = "table_limit_exceeded";
    pub const OUTPUT_LIMIT_EXCEEDED: &str = "output_limit_exceeded";
    pub const INVALID_GUEST_RESPONSE: &str = "invalid_guest_response";
    pub const CANCELLED: &str = "cancelled";

    // The gateway can't serve this now, or failed.
    pub const OVERLOADED: &str = "overloaded";
    pub const COMPILERS_BUSY: &str = "compilers_busy";
    pub const GUESTS_BUSY: &str = "guests_busy";
    pub const SHUTTING_DOWN: &str = "shutting_down";
    pub const USAGE_UNAVAILABLE: &str = "usage_unavailable";
    pub const DATABASE_UNAVAILABLE: &str = "database_unavailable";
    pub const AUTHENTICATION_UNAVAILABLE: &str = "authentication_unavailable";
    pub const LIMITS_UNAVAILABLE: &str = "limits_unavailable";
    pub const UPSTREAM_BUSY: &str = "upstream_busy";
    pub const UPSTREAM_UNAVAILABLE: &str = "upstream_unavailable";
    pub const UPSTREAM_TIMEOUT: &str = "upstream_timeout";
    pub const UPSTREAM_FAILED: &str = "upstream_failed";
    pub const UNAVAILABLE: &str = "unavailable";
    pub const INTERNAL_ERROR: &str = "internal_error";

    /// All of the above.
    pub const ALL: &[&str] = &[
        BAD_REQUEST,
        MALFORMED_MULTIPART,
        MALFORMED_JSON,
        INCOMPLETE_BODY,
        REQUEST_TIMEOUT,
        PAYLOAD_TOO_LARGE,
        URI_TOO_LONG,
        HEADERS_TOO_LARGE,
        UNSUPPORTED_MEDIA_TYPE,
        UPGRADE_REQUIRED,
        WEBSOCKET_NOT_ALLOWED,
        UNAUTHORIZED,
        TOKEN_EXPIRED,
        INVALID_REFRESH_TOKEN,
        REFRESH_TOKEN_REUSED,
        TIER_TOO_LOW,
        FORBIDDEN,
        INSUFFICIENT_SCOPE,
        CERTIFICATE_REQUIRED,
        CERTIFICATE_ENDED,
        MODULE_STOPPED,
        STOPPED,
        LAST_ADMIN,
        NOT_FOUND,
        METHOD_NOT_ALLOWED,
        CONFLICT,
        TOO_MANY_KEYS,
        RATE_LIMITED,
        TOO_MANY_AT_ONCE,
        CPU_QUOTA_EXCEEDED,
        TOO_MANY_GUESTS,
        INVALID_MODULE,
        MODULE_OVER_LIMIT,
        COMPILE_LIMIT_EXCEEDED,
        GUEST_EXIT,
        GUEST_TRAP,
        TIME_LIMIT_EXCEEDED,
        MEMORY_LIMIT_EXCEEDED,
        STACK_LIMIT_EXCEEDED,
        TABLE_LIMIT_EXCEEDED,
        OUTPUT_LIMIT_EXCEEDED,
        INVALID_GUEST_RESPONSE,
        CANCELLED,
        OVERLOADED,
        COMPILERS_BUSY,
        GUESTS_BUSY,
        SHUTTING_DOWN,
        USAGE_UNAVAILABLE,
        DATABASE_UNAVAILABLE,
        AUTHENTICATION_UNAVAILABLE,
        LIMITS_UNAVAILABLE,
        UPSTREAM_BUSY,
        UPSTREAM_UNAVAILABLE,
        UPSTREAM_TIMEOUT,
        UPSTREAM_FAILED,
        UNAVAILABLE,
        INTERNAL_ERROR,
    ];
}

/// A failure as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub status: StatusCode,
    /// Stable, for machines: `snake_case`.
    pub code: &'static str,
    /// For people: what is wrong and what to do.
    pub message: Cow<'static, str>,
    /// Sent as `Retry-After`, rounded up to whole seconds.
    pub retry_after: Option<Duration>,
    /// Sent as `Allow` with 405.
    pub allow: Option<String>,
}

impl Failure {
    pub fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Failure {
        Failure {
            status,
            code,
            message: message.into(),
            retry_after: None,
            allow: None,
        }
    }

    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Failure {
        self.retry_after = Some(after);
        self
    }

    pub fn bad_request(message: impl Into<Cow<'static, str>>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, code::BAD_REQUEST, message)
    }

    pub fn unauthorized(message: impl Into<Cow<'static, str>>) -> Failure {
        Failure::new(StatusCode::UNAUTHORIZED, code::UNAUTHORIZED, message)
    }

    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Failure {
        Failure::new(StatusCode::FORBIDDEN, code::FORBIDDEN, message)
    }

    /// The caller's key is not for this (RFC 6750 §3.1); `scope` is what it lacks.
    pub fn insufficient_scope(scope: &str) -> Failure {
        Failure::new(
            StatusCode::FORBIDDEN,
            code::INSUFFICIENT_SCOPE,
            format!("this key lacks the scope `{scope}`"),
        )
    }

    /// The key, its user or the module was stopped while a guest ran.
    pub fn stopped() -> Failure {
        Failure::new(
            StatusCode::FORBIDDEN,
            code::STOPPED,
            "the key, its user or the module was stopped while this ran",
        )
    }

    /// An operator does not let the module run.
    pub fn module_stopped() -> Failure {
        Failure::new(
            StatusCode::FORBIDDEN,
            code::MODULE_STOPPED,
            "the operator of this gateway has stopped this module",
        )
    }

    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Failure {
        Failure::new(StatusCode::NOT_FOUND, code::NOT_FOUND, message)
    }

    /// `allow`: the methods there are, as the `Allow` field wants them (RFC 9110 §10.2.1).
    pub fn method_not_allowed(allow: impl Into<String>) -> Failure {
        let mut failure = Failure::new(
            StatusCode::METHOD_NOT_ALLOWED,
            code::METHOD_NOT_ALLOWED,
            "this resource does not have this method; the Allow header lists those it has",
        );
        failure.allow = Some(allow.into());
        failure
    }

    /// The caller's tier does not give this.
    pub fn tier_too_low(message: impl Into<Cow<'static, str>>) -> Failure {
        Failure::new(StatusCode::PAYMENT_REQUIRED, code::TIER_TOO_LOW, message)
    }

    /// The request did not arrive in time (RFC 9110 §15.5.9).
    pub fn request_timeout(message: impl Into<Cow<'static, str>>) -> Failure {
        Failure::new(StatusCode::REQUEST_TIMEOUT, code::REQUEST_TIMEOUT, message)
    }

    /// The caller has no token left in its rate limit; `retry_after` is until there is one.
    pub fn rate_limited(message: impl Into<Cow<'static, str>>, retry_after: Duration) -> Failure {
        Failure::new(StatusCode::TOO_MANY_REQUESTS, code::RATE_LIMITED, message)
            .retry_after(retry_after)
    }

    /// The limits can't be checked, and the request must not go on without.
    pub fn limits_unavailable() -> Failure {
        Failure::unavailable(
            code::LIMITS_UNAVAILABLE,
            "the limits can't be checked right now; try again shortly",
        )
    }

    /// The caller's guests have used up their CPU time; `retry_after` is until there is some again.
    pub fn cpu_quota_exceeded(retry_after: Duration) -> Failure {
        Failure::new(
            StatusCode::TOO_MANY_REQUESTS,
            code::CPU_QUOTA_EXCEEDED,
            "the CPU time of your tier is used up; wait for the time in Retry-After",
        )
        .retry_after(retry_after)
    }

    /// So many guests of the caller run already.
    pub fn too_many_guests(guests_max: u32) -> Failure {
        Failure::new(
            StatusCode::TOO_MANY_REQUESTS,
            code::TOO_MANY_GUESTS,
            format!("{guests_max} of your guests run already, as many as your tier allows; wait for one to end"),
        )
        .retry_after(Duration::from_secs(1))
    }

    pub fn conflict(code: &'static str, message: impl Into<Cow<'static, str>>) -> Failure {
        Failure::new(StatusCode::CONFLICT, code, message)
    }

    pub fn payload_too_large(message: impl Into<Cow<'static, str>>) -> Failure {
        Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            code::PAYLOAD_TOO_LARGE,
            message,
        )
    }

    pub fn unsupported_media_type(message: impl Into<Cow<'static, str>>) -> Failure {
        Failure::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            code::UNSUPPORTED_MEDIA_TYPE,
            message,
        )
    }

    /// Something the client sent can't be processed: a module that does not validate or compile.
    pub fn unprocessable(code: &'static str, message: impl Into<Cow<'static, str>>) -> Failure {
        Failure::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
    }

    pub fn unavailable(code: &'static str, message: impl Into<Cow<'static, str>>) -> Failure {
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
            .retry_after(Duration::from_secs(1))
    }

    /// Our own failure. The cause belongs in the log; the client learns the request id.
    pub fn internal() -> Failure {
        Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            code::INTERNAL_ERROR,
            "the gateway failed on this request; quote the request id to its operator",
        )
    }
}

/// In the control plane a failure travels as an empty response with itself as an extension; the
/// gateway writes the body.
impl axum::response::IntoResponse for Failure {
    fn into_response(self) -> axum::response::Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn the_list_of_codes_is_whole_and_has_none_twice() {
        let constants = include_str!("failure.rs")
            .lines()
            .filter(|line| line.starts_with("    pub const "))
            .count()
            - 1;
        assert_eq!(code::ALL.len(), constants);
        let distinct: std::collections::BTreeSet<_> = code::ALL.iter().collect();
        assert_eq!(distinct.len(), constants);
    }
}

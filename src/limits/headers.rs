//! How a decision is told to the client.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue};

use super::{Decision, Window};

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const CPU_LIMIT: HeaderName = HeaderName::from_static("x-quota-cpu-ms-limit");
const CPU_REMAINING: HeaderName = HeaderName::from_static("x-quota-cpu-ms-remaining");
const CPU_RESET: HeaderName = HeaderName::from_static("x-quota-cpu-ms-reset");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// The header fields that report a decision; none where there is no limit.
///
/// They speak of the window that binds (see [`Decision::window`]):
///
/// - `X-RateLimit-Limit`, `X-RateLimit-Remaining`: tokens; `X-RateLimit-Reset`: **seconds until**
///   the window is full again, rounded up (not a timestamp).
/// - `RateLimit-Policy: "minute";q=10;w=60` (quota, window in seconds) and
///   `RateLimit: "minute";r=9;t=6` (remaining, seconds until full), the structured fields of
///   draft-ietf-httpapi-ratelimit-headers.
/// - `Retry-After` (RFC 9110 section 10.2.3) when refused: whole seconds, rounded up, at least 1, so
///   that a client that waits so long does find a token.
pub fn headers(decision: &Decision) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
    let fields = decision
        .window
        .map(|window| fields(&window, decision.allowed));
    fields.into_iter().flatten().flatten()
}

/// The header fields that report what is left of a user's CPU time, as of now: `X-Quota-Cpu-Ms-Limit`
/// and `-Remaining`, in milliseconds, and `X-Quota-Cpu-Ms-Reset`, **seconds until** all of it is back.
/// None where there is no limit.
pub fn cpu_headers(left: &Decision) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
    let fields = left.window.map(|window| {
        [
            (CPU_LIMIT, HeaderValue::from(window.limit)),
            (CPU_REMAINING, HeaderValue::from(window.remaining)),
            (
                CPU_RESET,
                HeaderValue::from(whole_seconds(window.reset_after)),
            ),
        ]
    });
    fields.into_iter().flatten()
}

fn fields(window: &Window, allowed: bool) -> [Option<(HeaderName, HeaderValue)>; 6] {
    let name = window.name();
    let reset = whole_seconds(window.reset_after);
    let policy = format!("\"{name}\";q={};w={}", window.limit, window.seconds);
    let state = format!("\"{name}\";r={};t={reset}", window.remaining);
    [
        Some((LIMIT, HeaderValue::from(window.limit))),
        Some((REMAINING, HeaderValue::from(window.remaining))),
        Some((RESET, HeaderValue::from(reset))),
        // Digits and fixed words are always valid in a header value; there is nothing to report.
        HeaderValue::try_from(policy)
            .ok()
            .map(|value| (POLICY, value)),
        HeaderValue::try_from(state)
            .ok()
            .map(|value| (STATE, value)),
        (!allowed).then(|| {
            (
                RETRY_AFTER,
                HeaderValue::from(whole_seconds(window.retry_after).max(1)),
            )
        }),
    ]
}

fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window() -> Window {
        Window {
            seconds: 60,
            limit: 10,
            remaining: 9,
            reset_after: Duration::from_nanos(5_000_000_001),
            retry_after: Duration::ZERO,
        }
    }

    fn rendered(decision: &Decision) -> Vec<String> {
        headers(decision)
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect()
    }

    #[test]
    fn an_allowed_request_learns_what_is_left() {
        let decision = Decision {
            allowed: true,
            window: Some(window()),
        };
        assert_eq!(
            rendered(&decision),
            [
                "x-ratelimit-limit: 10",
                "x-ratelimit-remaining: 9",
                "x-ratelimit-reset: 6",
                "ratelimit-policy: \"minute\";q=10;w=60",
                "ratelimit: \"minute\";r=9;t=6",
            ]
        );
    }

    #[test]
    fn a_refused_request_learns_when_to_come_back() {
        let refused = Window {
            seconds: 86_400,
            limit: 500,
            remaining: 0,
            reset_after: Duration::from_secs(86_400),
            retry_after: Duration::from_nanos(1),
        };
        let decision = Decision {
            allowed: false,
            window: Some(refused),
        };
        let rendered = rendered(&decision);
        assert!(
            rendered.contains(&"retry-after: 1".to_owned()),
            "{rendered:?}"
        );
        assert!(
            rendered.contains(&"ratelimit: \"day\";r=0;t=86400".to_owned()),
            "{rendered:?}"
        );
    }

    #[test]
    fn retry_after_is_rounded_up_so_that_waiting_it_out_is_enough() {
        for (nanos, seconds) in [
            (0, 1),
            (999_999_999, 1),
            (1_000_000_000, 1),
            (1_000_000_001, 2),
        ] {
            let refused = Window {
                remaining: 0,
                retry_after: Duration::from_nanos(nanos),
                ..window()
            };
            let decision = Decision {
                allowed: false,
                window: Some(refused),
            };
            let expected = format!("retry-after: {seconds}");
            assert!(rendered(&decision).contains(&expected), "{nanos} ns");
        }
    }

    #[test]
    fn what_is_left_of_the_cpu_time_is_told_in_milliseconds() {
        let left = Decision {
            allowed: true,
            window: Some(window()),
        };
        let told: Vec<_> = cpu_headers(&left)
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        assert_eq!(
            told,
            [
                "x-quota-cpu-ms-limit: 10",
                "x-quota-cpu-ms-remaining: 9",
                "x-quota-cpu-ms-reset: 6",
            ]
        );
        let unlimited = Decision {
            allowed: true,
            window: None,
        };
        assert_eq!(cpu_headers(&unlimited).count(), 0);
    }

    #[test]
    fn no_limit_is_no_header() {
        assert_eq!(
            headers(&Decision {
                allowed: true,
                window: None
            })
            .count(),
            0
        );
    }
}

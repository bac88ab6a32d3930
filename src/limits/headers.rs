//! How a decision is told to the client.

use std::time::Duration;

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
///
/// `Retry-After` comes with the failure, as in every other refusal.
pub fn headers(decision: &Decision) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
    let fields = decision.window.map(|window| fields(&window));
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

fn fields(window: &Window) -> [Option<(HeaderName, HeaderValue)>; 5] {
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
    fn a_refused_request_learns_of_the_window_that_refused_it() {
        let decision = Decision {
            allowed: false,
            window: Some(Window {
                seconds: 86_400,
                limit: 500,
                remaining: 0,
                reset_after: Duration::from_secs(86_400),
                retry_after: Duration::from_nanos(1),
            }),
        };
        assert_eq!(
            rendered(&decision),
            [
                "x-ratelimit-limit: 500",
                "x-ratelimit-remaining: 0",
                "x-ratelimit-reset: 86400",
                "ratelimit-policy: \"day\";q=500;w=86400",
                "ratelimit: \"day\";r=0;t=86400",
            ]
        );
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

//! The answer to an execution: the guest's output and what it used.

mod json;

use std::fmt::Write;

use axum::Extension;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use serde::Serialize;

use self::json::{Encoding, Output};
use super::GuestRan;
use super::accept::Form;
use super::problem::{Problem, shutting_down};
use crate::failure::code;
use crate::sandbox::{End, ModuleHash, Outcome, Usage};

const EXIT_CODE: HeaderName = HeaderName::from_static("x-wasm-exit-code");
const DURATION_US: HeaderName = HeaderName::from_static("x-wasm-duration-us");
const CPU_US: HeaderName = HeaderName::from_static("x-wasm-cpu-us");
const MEMORY_PEAK_BYTES: HeaderName = HeaderName::from_static("x-wasm-memory-peak-bytes");
const U64_DIGITS_MAX: usize = 20;
const MODULE_SHA256: HeaderName = HeaderName::from_static("x-wasm-module-sha256");

/// The JSON answer after its first field, `output`. That and `error` are what the earlier service
/// sent; the rest says more.
#[derive(Debug, Serialize)]
struct Receipt {
    error: Option<String>,
    /// There when `error` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    status: &'static str,
    output_encoding: Encoding,
    /// `None` when the guest did not get to exit.
    exit_code: Option<i32>,
    limit: Option<&'static str>,
    stderr: String,
    stderr_encoding: Encoding,
    stderr_truncated: bool,
    duration_us: u64,
    cpu_us: u64,
    queued_us: u64,
    memory_peak_bytes: u64,
    sha256_hash: String,
    request_id: String,
}

/// Why a guest that ran is not a success.
struct GuestFailure {
    code: &'static str,
    message: String,
    /// The limit that was hit.
    limit: Option<&'static str>,
}

/// The answer for a guest that ran: 200, or 422 with what it wrote so far. A failed guest is
/// answered in JSON whatever `form` says.
pub(super) fn respond(
    outcome: Outcome,
    module: ModuleHash,
    request_id: String,
    form: Form,
) -> Result<Response, Problem> {
    let headers = headers(&outcome, module);
    let ran = GuestRan {
        status: outcome.end.status(),
        usage: outcome.usage,
    };
    let failure = failure(&outcome.end)?;
    let response = match (failure, form) {
        (None, Form::Raw) => {
            let kind = (
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/octet-stream"),
            );
            ([kind], outcome.stdout).into_response()
        }
        (None, Form::Json) => json_answer(StatusCode::OK, outcome, None, module, request_id)?,
        (Some(failure), Form::Json | Form::Raw) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            json_answer(status, outcome, Some(failure), module, request_id)?
        }
    };
    Ok((headers, Extension(ran), response).into_response())
}

fn failure(end: &End) -> Result<Option<GuestFailure>, Problem> {
    let failed = |code, message: String| {
        Ok(Some(GuestFailure {
            code,
            message,
            limit: None,
        }))
    };
    let over = |code, limit, message: &str| {
        Ok(Some(GuestFailure {
            code,
            message: message.to_owned(),
            limit: Some(limit),
        }))
    };
    match end {
        End::Exit(0) => Ok(None),
        End::Exit(code) => failed(
            code::GUEST_EXIT,
            format!("the module exited with code {code}"),
        ),
        End::Trap(trap) => failed(code::GUEST_TRAP, format!("the module trapped: {trap}")),
        End::TimeLimit => over(
            code::TIME_LIMIT_EXCEEDED,
            "time",
            "the module ran longer than its time limit and was stopped",
        ),
        End::MemoryLimit => over(
            code::MEMORY_LIMIT_EXCEEDED,
            "memory",
            "the module wanted more memory than its limit and failed of it",
        ),
        End::StackLimit => over(
            code::STACK_LIMIT_EXCEEDED,
            "stack",
            "the module's calls went deeper than its stack; call less deeply, or keep less on the stack",
        ),
        End::TableLimit => over(
            code::TABLE_LIMIT_EXCEEDED,
            "table",
            "the module wanted more table elements than its limit and failed of it",
        ),
        End::OutputLimit => over(
            code::OUTPUT_LIMIT_EXCEEDED,
            "output",
            "the module wrote more output than its limit and was stopped",
        ),
        // A client that is gone reads no answer, so one that is there meets a gateway on its way down.
        End::Cancelled => Err(shutting_down().into()),
        End::HostError(cause) => Err(Problem::internal(format!(
            "a guest met a host error: {cause}"
        ))),
    }
}

fn json_answer(
    status: StatusCode,
    outcome: Outcome,
    failure: Option<GuestFailure>,
    module: ModuleHash,
    request_id: String,
) -> Result<Response, Problem> {
    let Outcome {
        end,
        stdout,
        mut stderr,
        stderr_truncated,
        usage,
    } = outcome;
    if stderr_truncated {
        drop_split_character(&mut stderr);
    }
    // A guest that fails before it writes anything has no output, not an empty one.
    let output = (failure.is_none() || !stdout.is_empty()).then(|| Output::from(stdout));
    let stderr = Output::from(stderr);
    let (error, code, limit) = match failure {
        Some(failure) => (Some(failure.message), Some(failure.code), failure.limit),
        None => (None, None, None),
    };
    let receipt = Receipt {
        error,
        code,
        status: end.status(),
        output_encoding: output.as_ref().map_or(Encoding::Utf8, Output::encoding),
        exit_code: exit_code(&end),
        limit,
        stderr_encoding: stderr.encoding(),
        stderr: stderr.into_string(),
        stderr_truncated,
        duration_us: micros(usage.wall),
        cpu_us: micros(usage.cpu),
        queued_us: micros(usage.queued),
        memory_peak_bytes: usage.memory_peak_bytes,
        sha256_hash: module.to_string(),
        request_id,
    };
    let body =
        json::body(output, &receipt).map_err(|error| Problem::internal(error.to_string()))?;
    let kind = (
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    Ok((status, [kind], body).into_response())
}

/// The receipt as headers, for clients that take the output raw; they are on the JSON too.
fn headers(outcome: &Outcome, module: ModuleHash) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(code) = exit_code(&outcome.end) {
        headers.insert(EXIT_CODE, HeaderValue::from(code));
    }
    add_usage(&mut headers, &outcome.usage);
    if let Ok(module) = HeaderValue::try_from(module.to_string()) {
        headers.insert(MODULE_SHA256, module);
    }
    headers
}

/// Says in headers what a guest used.
pub fn add_usage(headers: &mut HeaderMap, usage: &Usage) {
    let used = [
        (DURATION_US, micros(usage.wall)),
        (CPU_US, micros(usage.cpu)),
        (MEMORY_PEAK_BYTES, usage.memory_peak_bytes),
    ];
    // The values are parts of one block: a block for each would cost more than all else about them.
    let mut digits = BytesMut::with_capacity(used.len() * U64_DIGITS_MAX);
    for (name, number) in used {
        // There is room, and digits are good values.
        let _ = write!(digits, "{number}");
        if let Ok(value) = HeaderValue::from_maybe_shared(digits.split().freeze()) {
            headers.insert(name, value);
        }
    }
}

fn exit_code(end: &End) -> Option<i32> {
    match end {
        End::Exit(code) => Some(*code),
        End::Trap(_)
        | End::TimeLimit
        | End::MemoryLimit
        | End::StackLimit
        | End::TableLimit
        | End::OutputLimit
        | End::Cancelled
        | End::HostError(_) => None,
    }
}

/// Cutting text at a bound may split its last character; without the rest of it, text stays text.
fn drop_split_character(bytes: &mut Vec<u8>) {
    if let Err(error) = std::str::from_utf8(bytes)
        && error.error_len().is_none()
    {
        bytes.truncate(error.valid_up_to());
    }
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::sandbox::Usage;

    const HASH: ModuleHash = ModuleHash([0xab; 32]);

    fn outcome(end: End, stdout: &[u8]) -> Outcome {
        Outcome {
            end,
            stdout: stdout.to_vec(),
            stderr: b"note".to_vec(),
            stderr_truncated: false,
            usage: Usage {
                wall: Duration::from_micros(1500),
                cpu: Duration::from_nanos(900_999),
                queued: Duration::from_micros(7),
                memory_peak_bytes: 65_536,
                stdout_bytes: stdout.len() as u64,
            },
        }
    }

    async fn answer(outcome: Outcome, form: Form) -> (StatusCode, HeaderMap, Vec<u8>) {
        let response = respond(outcome, HASH, "r-1".into(), form).unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (parts.status, parts.headers, body.to_vec())
    }

    async fn json_of(outcome: Outcome) -> (u16, Value) {
        let (status, _, body) = answer(outcome, Form::Json).await;
        (status.as_u16(), serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_success_says_all_of_it() {
        let (status, body) = json_of(outcome(End::Exit(0), "héllo\0".as_bytes())).await;
        assert_eq!(status, 200);
        let expected = json!({
            "output": "héllo\0", "error": null, "status": "success", "output_encoding": "utf-8",
            "exit_code": 0, "limit": null, "stderr": "note", "stderr_encoding": "utf-8",
            "stderr_truncated": false, "duration_us": 1500, "cpu_us": 900, "queued_us": 7,
            "memory_peak_bytes": 65536, "sha256_hash": "ab".repeat(32), "request_id": "r-1",
        });
        assert_eq!(body, expected);
    }

    #[tokio::test]
    async fn a_silent_success_has_an_empty_output_and_a_silent_failure_none() {
        let (_, body) = json_of(outcome(End::Exit(0), b"")).await;
        assert_eq!(body["output"], "");
        let (status, body) = json_of(outcome(End::Trap("unreachable".into()), b"")).await;
        assert_eq!((status, &body["output"]), (422, &Value::Null));
    }

    #[tokio::test]
    async fn each_way_to_fail_has_its_code_and_limit() {
        let null = Value::Null;
        for (end, code, limit, exit_code) in [
            (End::Exit(-3), "guest_exit", null.clone(), json!(-3)),
            (
                End::Trap("unreachable".into()),
                "guest_trap",
                null.clone(),
                null.clone(),
            ),
            (
                End::TimeLimit,
                "time_limit_exceeded",
                json!("time"),
                null.clone(),
            ),
            (
                End::MemoryLimit,
                "memory_limit_exceeded",
                json!("memory"),
                null.clone(),
            ),
            (
                End::StackLimit,
                "stack_limit_exceeded",
                json!("stack"),
                null.clone(),
            ),
            (
                End::TableLimit,
                "table_limit_exceeded",
                json!("table"),
                null.clone(),
            ),
            (
                End::OutputLimit,
                "output_limit_exceeded",
                json!("output"),
                null.clone(),
            ),
        ] {
            let status_word = end.status();
            let (status, body) = json_of(outcome(end, b"partial")).await;
            assert_eq!(status, 422, "{code}");
            assert_eq!(body["code"], code);
            assert_eq!(body["limit"], limit, "{code}");
            assert_eq!(body["exit_code"], exit_code, "{code}");
            assert_eq!(body["status"], status_word);
            assert_eq!(body["output"], "partial");
            assert!(
                body["error"]
                    .as_str()
                    .is_some_and(|error| !error.is_empty())
            );
        }
    }

    #[test]
    fn our_own_failures_are_not_the_guests() {
        let answer = |end| {
            let problem = respond(outcome(end, b""), HASH, "r".into(), Form::Json).unwrap_err();
            (
                problem.failure.status.as_u16(),
                problem.failure.code,
                problem.failure.message,
            )
        };
        let (status, code, message) = answer(End::HostError("disk on fire".into()));
        assert_eq!((status, code), (500, "internal_error"));
        assert!(!message.contains("fire"));
        let (status, code, _) = answer(End::Cancelled);
        assert_eq!((status, code), (503, "shutting_down"));
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_are_base64() {
        let mut outcome = outcome(End::Exit(0), &[0xff, 0x00, 0xfe]);
        outcome.stderr = vec![0x80];
        let (_, body) = json_of(outcome).await;
        assert_eq!(
            (&body["output"], &body["output_encoding"]),
            (&json!("/wD+"), &json!("base64"))
        );
        assert_eq!(
            (&body["stderr"], &body["stderr_encoding"]),
            (&json!("gA=="), &json!("base64"))
        );
    }

    #[tokio::test]
    async fn a_character_cut_off_at_the_bound_of_stderr_is_dropped() {
        let cut = || Outcome {
            stderr: b"caf\xc3".to_vec(),
            ..outcome(End::Exit(0), b"")
        };
        let (_, body) = json_of(Outcome {
            stderr_truncated: true,
            ..cut()
        })
        .await;
        assert_eq!(body["stderr"], "caf");
        let (_, body) = json_of(cut()).await;
        assert_eq!(body["stderr_encoding"], "base64");
    }

    #[tokio::test]
    async fn raw_is_the_output_and_the_receipt_in_headers() {
        let (status, headers, body) = answer(outcome(End::Exit(0), &[0xff, 1]), Form::Raw).await;
        assert_eq!((status.as_u16(), body), (200, vec![0xff, 1]));
        assert_eq!(headers["content-type"], "application/octet-stream");
        assert_eq!(headers["x-wasm-exit-code"], "0");
        assert_eq!(headers["x-wasm-duration-us"], "1500");
        assert_eq!(headers["x-wasm-cpu-us"], "900");
        assert_eq!(headers["x-wasm-memory-peak-bytes"], "65536");
        assert_eq!(headers["x-wasm-module-sha256"], "ab".repeat(32));
    }

    #[tokio::test]
    async fn a_failing_guest_is_answered_in_json_even_when_raw_is_wanted() {
        let (status, headers, body) = answer(outcome(End::TimeLimit, b"so far"), Form::Raw).await;
        assert_eq!(status.as_u16(), 422);
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(headers["x-wasm-duration-us"], "1500");
        assert!(!headers.contains_key("x-wasm-exit-code"));
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["output"], "so far");
    }
}

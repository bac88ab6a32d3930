//! What the client of a route learns when its guest fails, or does not run.

use http::StatusCode;

use super::super::Ctx;
use super::super::respond::Stop;
use crate::failure::Failure;
use crate::sandbox::abi::wagi::HeadError;
use crate::sandbox::{End, RunError};

pub(super) fn not_run(error: RunError) -> Stop {
    match error {
        RunError::Busy => {
            Failure::unavailable("guests_busy", "all guest slots are busy; try again shortly")
                .into()
        }
        RunError::ShuttingDown => {
            Failure::unavailable("shutting_down", "the gateway is shutting down; try again").into()
        }
        RunError::Stopped => Failure::stopped().into(),
    }
}

/// What the client of a route learns of a guest's failure.
pub(super) fn guest_failure(end: &End, ctx: &Ctx) -> Failure {
    match end {
        End::Exit(code) => Failure::unprocessable(
            "guest_exit",
            format!("the function exited with code {code}"),
        ),
        End::Trap(trap) => Failure::new(
            StatusCode::BAD_GATEWAY,
            "guest_trap",
            format!("the function trapped: {trap}"),
        ),
        End::TimeLimit => Failure::new(
            StatusCode::GATEWAY_TIMEOUT,
            "time_limit_exceeded",
            "the function did not finish within its time limit",
        ),
        End::MemoryLimit => Failure::new(
            StatusCode::BAD_GATEWAY,
            "memory_limit_exceeded",
            "the function needed more memory than its limit",
        ),
        End::StackLimit => Failure::new(
            StatusCode::BAD_GATEWAY,
            "stack_limit_exceeded",
            "the function's calls went deeper than its stack",
        ),
        End::TableLimit => Failure::new(
            StatusCode::BAD_GATEWAY,
            "table_limit_exceeded",
            "the function wanted more table elements than its limit",
        ),
        End::OutputLimit => Failure::new(
            StatusCode::BAD_GATEWAY,
            "output_limit_exceeded",
            "the function wrote more output than its limit",
        ),
        End::Cancelled => Failure::unavailable("cancelled", "the function was stopped"),
        End::HostError(error) => {
            tracing::error!(request_id = ctx.request_id, error, "the sandbox failed");
            Failure::internal()
        }
    }
}

pub(super) fn bad_response(problem: &HeadError) -> Stop {
    Failure::new(
        StatusCode::BAD_GATEWAY,
        "invalid_guest_response",
        format!("the function's output is not a CGI response: {problem}"),
    )
    .into()
}

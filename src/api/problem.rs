//! Why a handler has no answer: what the client reads, and what the log says.

use std::time::Duration;

use axum::response::{IntoResponse, Response};

use crate::auth::NoRandomness;
use crate::failure::{Failure, code};
use crate::limits::NoSeat;
use crate::modules::RegistryError;
use crate::sandbox::{ModuleError, RunError};
use crate::store::StoreError;

/// Bytes of a message about a client's module that the client gets to read.
const MESSAGE_BYTES_MAX: usize = 2048;

/// A failure with the cause that only the log may tell.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) failure: Failure,
    cause: Option<Cause>,
}

/// What the log says of a failure; on its way there it is an extension of the response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cause(String);

impl Problem {
    /// Our own failure; `cause` is for the log.
    pub(super) fn internal(cause: impl Into<String>) -> Problem {
        Problem {
            failure: Failure::internal(),
            cause: Some(Cause(cause.into())),
        }
    }
}

impl Cause {
    pub(super) fn log(&self, request_id: &str) {
        tracing::error!(request_id, error = %self.0, "a control-plane request failed");
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.failure.into_response();
        if let Some(cause) = self.cause {
            response.extensions_mut().insert(cause);
        }
        response
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Problem {
        Problem {
            failure,
            cause: None,
        }
    }
}

impl From<NoSeat> for Problem {
    fn from(reason: NoSeat) -> Problem {
        match reason {
            NoSeat::CpuUsedUp(left) => {
                let retry_after = left.window.map_or(Duration::ZERO, |w| w.retry_after);
                Failure::cpu_quota_exceeded(retry_after).into()
            }
            NoSeat::TooManyGuests(guests_max) => Failure::too_many_guests(guests_max).into(),
            NoSeat::Unavailable => Failure::limits_unavailable().into(),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        match error {
            StoreError::Unavailable(_) => Problem {
                failure: Failure::unavailable(
                    code::DATABASE_UNAVAILABLE,
                    "the database can't be reached or is too busy; try again",
                ),
                cause: Some(Cause(error.to_string())),
            },
            StoreError::NotFound(what) => Failure::not_found(format!("{what} not found")).into(),
            StoreError::Conflict(what) => {
                Failure::conflict(code::CONFLICT, format!("{what} exists already")).into()
            }
            StoreError::LastAdmin => Failure::conflict(
                code::LAST_ADMIN,
                "this is the last admin that is not disabled: make another one first",
            )
            .into(),
            // A bound of the database that is tighter than ours; the text is made for clients.
            StoreError::Invalid(message) => Failure::bad_request(message).into(),
            StoreError::Internal(_) => Problem::internal(error.to_string()),
        }
    }
}

impl From<ModuleError> for Problem {
    fn from(error: ModuleError) -> Problem {
        let refused = |code, message: String| Failure::unprocessable(code, bounded(message)).into();
        match error {
            ModuleError::Invalid(message) => refused(code::INVALID_MODULE, message),
            ModuleError::OverLimit(message) => refused(code::MODULE_OVER_LIMIT, message),
            ModuleError::CompileLimit(message) => refused(code::COMPILE_LIMIT_EXCEEDED, message),
            ModuleError::Busy => {
                Failure::unavailable(code::COMPILERS_BUSY, "all compilers are busy; try again")
                    .into()
            }
            ModuleError::Internal(cause) => Problem::internal(cause),
        }
    }
}

impl From<NoRandomness> for Problem {
    fn from(error: NoRandomness) -> Problem {
        Problem::internal(error.to_string())
    }
}

impl From<RunError> for Problem {
    fn from(error: RunError) -> Problem {
        match error {
            RunError::Busy => {
                Failure::unavailable(code::GUESTS_BUSY, "all guest slots are busy; try again")
                    .into()
            }
            RunError::ShuttingDown => shutting_down().into(),
            RunError::Stopped => Failure::stopped().into(),
        }
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Problem {
        match error {
            RegistryError::NotFound(_) => Failure::not_found("module not found").into(),
            RegistryError::File { .. } => Problem::internal(error.to_string()),
            RegistryError::Module(error) => error.into(),
            RegistryError::Store(error) => error.into(),
        }
    }
}

pub(super) fn shutting_down() -> Failure {
    Failure::unavailable(
        code::SHUTTING_DOWN,
        "the gateway is shutting down; try again",
    )
}

/// The message, cut at a character boundary when it is too long.
fn bounded(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    fn answer(problem: impl Into<Problem>) -> (u16, &'static str, bool, bool) {
        let problem = problem.into();
        let logged = problem.cause.is_some();
        let failure = problem.failure;
        (
            failure.status.as_u16(),
            failure.code,
            failure.retry_after.is_some(),
            logged,
        )
    }

    #[test]
    fn each_cause_has_its_answer() {
        use ModuleError::{Busy, CompileLimit, Internal, Invalid, OverLimit};
        let text = String::from("why");
        assert_eq!(
            answer(Invalid(text.clone())),
            (422, "invalid_module", false, false)
        );
        assert_eq!(
            answer(OverLimit(text.clone())),
            (422, "module_over_limit", false, false)
        );
        assert_eq!(
            answer(CompileLimit(text.clone())),
            (422, "compile_limit_exceeded", false, false)
        );
        assert_eq!(answer(Busy), (503, "compilers_busy", true, false));
        assert_eq!(
            answer(Internal(text.clone())),
            (500, "internal_error", false, true)
        );
        assert_eq!(answer(RunError::Busy), (503, "guests_busy", true, false));
        assert_eq!(
            answer(RunError::ShuttingDown),
            (503, "shutting_down", true, false)
        );
        let unavailable = StoreError::Unavailable(text.clone());
        assert_eq!(
            answer(unavailable),
            (503, "database_unavailable", true, true)
        );
        assert_eq!(
            answer(StoreError::NotFound("key")),
            (404, "not_found", false, false)
        );
        assert_eq!(
            answer(StoreError::Conflict("key")),
            (409, "conflict", false, false)
        );
        assert_eq!(
            answer(StoreError::Invalid("no")),
            (400, "bad_request", false, false)
        );
        assert_eq!(
            answer(StoreError::Internal(text.clone())),
            (500, "internal_error", false, true)
        );
        assert_eq!(
            answer(RegistryError::NotFound(text)),
            (404, "not_found", false, false)
        );
        assert_eq!(
            answer(RegistryError::Module(Busy)),
            (503, "compilers_busy", true, false)
        );
    }

    #[test]
    fn a_cause_is_not_for_the_client() {
        let problem = Problem::from(StoreError::Internal("password=hunter2".into()));
        assert!(!format!("{:?}", problem.failure).contains("hunter2"));
        let response = problem.into_response();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(response.extensions().get::<Cause>().is_some());
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let problem = Problem::from(ModuleError::Invalid("é".repeat(5000)));
        assert!(problem.failure.message.len() <= MESSAGE_BYTES_MAX + '…'.len_utf8());
        assert!(problem.failure.message.ends_with("é…"));
    }
}

//! The record that each execution through the API leaves, before its answer does.

use std::sync::Arc;
use std::time::Instant;

use axum::response::Response;
use uuid::Uuid;

use super::Api;
use super::accept::Form;
use super::caller::Authenticated;
use super::problem::Problem;
use super::receipt;
use crate::auth::KeyPrincipal;
use crate::limits::{Decision, cpu_headers};
use crate::sandbox::{ModuleHash, Outcome};
use crate::usage::{self, Caller, Entry, Recorder, Status, Used};

/// How a guest ended, which module it was of, and what is left of its user's CPU time.
pub(super) struct Ran {
    pub(super) outcome: Outcome,
    pub(super) module: ModuleHash,
    pub(super) cpu_left: Option<Decision>,
}

impl Ran {
    pub(super) fn respond(self, request_id: String, form: Form) -> Result<Response, Problem> {
        let mut response = receipt::respond(self.outcome, self.module, request_id, form)?;
        if let Some(left) = &self.cpu_left {
            response.headers_mut().extend(cpu_headers(left));
        }
        Ok(response)
    }
}

/// An execution that is not recorded yet. Dropping it records that its client left.
pub(super) struct Recording {
    recorder: Recorder,
    principal: Arc<KeyPrincipal>,
    request_id: String,
    started: Instant,
    /// What is learned of it on the way.
    pub(super) module: Option<ModuleHash>,
    pub(super) module_id: Option<Uuid>,
    pub(super) bytes_in: u64,
    recorded: bool,
}

impl Recording {
    /// An execution begins, unless it could not be recorded.
    pub(super) fn begin(api: &Api, caller: &Authenticated) -> Result<Recording, Problem> {
        let recorder = api.state.usage.clone();
        recorder.check_room().map_err(unrecorded)?;
        Ok(Recording {
            recorder,
            principal: Arc::clone(&caller.principal),
            request_id: caller.request_id.clone(),
            started: Instant::now(),
            module: None,
            module_id: None,
            bytes_in: 0,
            recorded: false,
        })
    }

    /// Records how it went: the guest's end, or why there was none. What comes back is to be answered.
    pub(super) fn end(mut self, ran: Result<Ran, Problem>) -> Result<Ran, Problem> {
        let (status, used) = match &ran {
            Ok(ran) => {
                self.module = Some(ran.module);
                let used = Used::of(&ran.outcome, self.bytes_in);
                (Status::from(&ran.outcome.end), used)
            }
            Err(problem) => (usage::status_of(&problem.failure), self.time()),
        };
        self.record(status, used)?;
        ran
    }

    fn time(&self) -> Used {
        Used::time(self.started.elapsed(), self.bytes_in)
    }

    fn record(&mut self, status: Status, used: Used) -> Result<(), Problem> {
        self.recorded = true;
        let entry = Entry {
            caller: Some(Caller {
                user_id: self.principal.user_id,
                key_id: self.principal.key_id,
            }),
            module: self.module,
            module_id: self.module_id,
            route: None,
            status,
            used,
            request_id: &self.request_id,
        };
        self.recorder.record(&entry).map_err(unrecorded)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.recorded {
            let used = self.time();
            // There is nobody to answer; the recorder's own metrics and log tell of a failure.
            let _ = self.record(Status::Cancelled, used);
        }
    }
}

fn unrecorded(error: usage::Unrecorded) -> Problem {
    crate::failure::Failure::from(error).into()
}

//! The record that each execution of a route leaves, before its answer does.

use std::time::Instant;

use uuid::Uuid;

use super::respond::Stop;
use super::{Ctx, Gateway};
use crate::auth::Principal;
use crate::failure::Failure;
use crate::route::{Execute, ModuleSource};
use crate::sandbox::{ModuleHash, Outcome};
use crate::usage::{self, Caller, Entry, Status, Used};

/// What is known of an execution that is not recorded yet.
pub(super) struct Execution {
    started: Instant,
    module: ModuleHash,
    module_id: Option<Uuid>,
}

impl Execution {
    pub(super) fn of(execute: &Execute, module: ModuleHash) -> Execution {
        Execution {
            started: Instant::now(),
            module,
            module_id: match &execute.module {
                ModuleSource::Stored(id) => Some(*id),
                ModuleSource::File(_) => None,
            },
        }
    }
}

impl Gateway {
    /// An execution begins, unless it could not be recorded.
    pub(super) fn begin_execution(
        &self,
        ctx: &mut Ctx,
        execution: Execution,
    ) -> Result<(), Failure> {
        self.shared.usage.check_room()?;
        ctx.execution = Some(execution);
        Ok(())
    }

    /// Records an execution whose guest ended. `status` is another than the guest's own where its answer
    /// can't be used.
    pub(super) fn record_end(
        &self,
        ctx: &mut Ctx,
        outcome: &Outcome,
        status: Status,
        bytes_in: u64,
    ) -> Result<(), Failure> {
        self.record(ctx, status, |_| Used::of(outcome, bytes_in))
    }

    /// Records an execution that came to no end: it was refused, or its client left. What was recorded
    /// before stays as it is.
    pub(super) fn record_stop(&self, ctx: &mut Ctx, stop: &Stop) -> Result<(), Failure> {
        self.record(ctx, status_of(stop), |execution| {
            Used::time(execution.started.elapsed(), 0)
        })
    }

    fn record(
        &self,
        ctx: &mut Ctx,
        status: Status,
        used: impl FnOnce(&Execution) -> Used,
    ) -> Result<(), Failure> {
        let Some(execution) = ctx.execution.take() else {
            return Ok(());
        };
        let caller = match &ctx.principal {
            Principal::Anonymous | Principal::Certificate(_) => None,
            Principal::Key(key) => Some(Caller {
                user_id: key.user_id,
                key_id: key.key_id,
            }),
        };
        let entry = Entry {
            caller,
            module: Some(execution.module),
            module_id: execution.module_id,
            route: ctx.route().map(|route| route.name.as_str()),
            status,
            used: used(&execution),
            request_id: &ctx.request_id,
        };
        Ok(self.shared.usage.record(&entry)?)
    }
}

/// The status of an execution whose client got no answer of its guest's, or not all of it.
pub(super) fn status_of(stop: &Stop) -> Status {
    match stop {
        Stop::Failure(failure) => usage::status_of(failure),
        Stop::Connection(_) => Status::Cancelled,
    }
}

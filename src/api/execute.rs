//! `POST /api/wasm/execute`: runs a module that comes with the request.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::response::Response;
use bytes::Bytes;

use super::accept;
use super::body::{self, Bound, ContentType};
use super::caller::Authenticated;
use super::form::{self, Field, FieldLimit};
use super::problem::Problem;
use super::query::Query;
use super::recording::{Ran, Recording};
use super::{Api, Settings};
use crate::auth::KeyPrincipal;
use crate::failure::Failure;
use crate::limits::Seat;
use crate::sandbox::{
    Call, ModuleHash, Preparation, Prepared, RunError, ShareKey, Stdout, Strings,
};

pub(super) const WASM_NAMES: &[&str] = &["wasm", "wasm_file"];
pub(super) const INPUT_NAMES: &[&str] = &["input", "input_data"];

pub(super) async fn execute(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    request: Request,
) -> Result<Response, Problem> {
    let mut recording = Recording::begin(&api, &caller)?;
    let (parts, body) = request.into_parts();
    let ran = run_new(&api, &caller, &parts, body, &mut recording).await;
    let ran = recording.end(ran)?;
    ran.respond(caller.request_id, accept::form(&parts.headers))
}

/// Runs what the request brings.
async fn run_new(
    api: &Api,
    caller: &Authenticated,
    parts: &Parts,
    body: Body,
    recording: &mut Recording,
) -> Result<Ran, Problem> {
    let (wasm, input) = module_and_input(parts, body, &api.state.settings).await?;
    recording.bytes_in = input.len() as u64;
    let (sandbox, share) = (&api.state.sandbox, share(&caller.principal));
    let wasm = sandbox.to_binary(wasm, share).await?;
    let prepared = sandbox.prepare_for(share, wasm, Preparation::Fast).await?;
    let hash = prepared.hash();
    recording.module = Some(hash);
    api.run(prepared, hash, input, &caller.principal).await
}

/// Whom compiles and guests count for.
pub(super) fn share(principal: &KeyPrincipal) -> ShareKey {
    ShareKey::of(principal.user_id)
}

/// A form has both as fields; any other body is the module, with its input in the query.
async fn module_and_input(
    parts: &Parts,
    body: Body,
    settings: &Settings,
) -> Result<(Bytes, Bytes), Problem> {
    match body::content_type(&parts.headers)? {
        ContentType::Multipart { boundary } => {
            let fields = [
                Field { names: WASM_NAMES, limit: FieldLimit::Payload(settings.wasm_bound()) },
                Field { names: INPUT_NAMES, limit: FieldLimit::Payload(settings.input_bound()) },
            ];
            let [wasm, input] = form::read(body, boundary, &fields).await?;
            Ok((form::required(wasm, "wasm")?, input.unwrap_or_default()))
        }
        ContentType::Other(kind) if is_module(&kind) => {
            let query = Query::parse(parts.uri.query())?;
            let input = Bytes::copy_from_slice(query.value("input")?.unwrap_or_default());
            if input.len() as u64 > settings.input_bytes_max {
                return Err(settings.input_bound().exceeded().into());
            }
            let wasm = body::read(body, settings.wasm_bound()).await?;
            if wasm.is_empty() {
                return Err(Failure::bad_request("the body is empty: it must be a module").into());
            }
            Ok((wasm, input))
        }
        ContentType::Other(_) | ContentType::Missing => Err(Failure::unsupported_media_type(
            "send multipart/form-data with a field `wasm`, or the module itself as application/wasm, \
             application/wat or text/wat",
        )
        .into()),
    }
}

fn is_module(kind: &str) -> bool {
    matches!(kind, "application/wasm" | "application/wat" | "text/wat")
}

impl Settings {
    pub(super) fn wasm_bound(&self) -> Bound {
        Bound {
            what: "the module",
            bytes_max: self.wasm_bytes_max,
            setting: Some("MAX_WASM_SIZE"),
        }
    }

    pub(super) fn input_bound(&self) -> Bound {
        Bound {
            what: "the input",
            bytes_max: self.input_bytes_max,
            setting: Some("MAX_INPUT_SIZE"),
        }
    }
}

impl Api {
    /// Runs a guest on `input` under the caller's limits.
    pub(super) async fn run(
        &self,
        prepared: Arc<Prepared>,
        module: ModuleHash,
        input: Bytes,
        principal: &KeyPrincipal,
    ) -> Result<Ran, Problem> {
        let settings = &self.state.settings;
        let limits = settings
            .tiers
            .guest_limits(Some(principal.tier), settings.guest);
        let seat = self.seat(principal, limits.deadline).await?;
        let call = Call {
            args: Strings::arguments(["main.wasm"]),
            env: Strings::default(),
            stdin: input.into(),
            files: None,
            stdout: Stdout::Collect,
            limits,
            share: share(principal),
        };
        let run = self.state.sandbox.run(prepared, call);
        let run = self.state.auth.while_allowed(principal, run);
        match run.await.unwrap_or(Err(RunError::Stopped)) {
            Ok(outcome) => {
                let cpu_left = seat.ended(outcome.usage.cpu);
                Ok(Ran {
                    outcome,
                    module,
                    cpu_left,
                })
            }
            Err(error) => {
                match error {
                    RunError::Busy | RunError::ShuttingDown => seat.unused(),
                    // It has run, for as long as nobody knows better.
                    RunError::Stopped => drop(seat),
                }
                Err(error.into())
            }
        }
    }

    /// A place for the guest among those of its user.
    async fn seat(&self, principal: &KeyPrincipal, deadline: Duration) -> Result<Seat, Problem> {
        let settings = &self.state.settings;
        let compute = settings.tiers.get(principal.tier).compute;
        let (user, tier) = (principal.user_id, principal.tier);
        let limiter = &self.state.limiter;
        let seat = limiter.seat(user, tier, compute, deadline, settings.on_redis_loss);
        Ok(seat.await?)
    }
}

//! Stored modules: upload, list, look at, delete, execute.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use uuid::Uuid;

use super::Api;
use super::accept;
use super::body::{self, ContentType};
use super::caller::{Authenticated, PathId};
use super::execute::{INPUT_NAMES, WASM_NAMES, share};
use super::form::{self, Field, FieldLimit};
use super::problem::Problem;
use super::query::Query;
use super::recording::{Ran, Recording};
use super::values;
use crate::auth::KeyPrincipal;
use crate::failure::Failure;
use crate::sandbox::Preparation;
use crate::store::modules::{Module, NewModule};

const NAME_BYTES_MAX: usize = 255;
const DESCRIPTION_BYTES_MAX: usize = 4096;
/// Longest spelling of a flag that is still read, to be refused by its name.
const FLAG_BYTES_MAX: u64 = 16;
const PAGE_LIMIT_DEFAULT: u32 = 20;
const PAGE_LIMIT_MAX: u32 = 100;

/// What an upload is answered with.
#[derive(Serialize)]
struct Uploaded {
    id: Uuid,
    name: String,
    version: u64,
    description: String,
    size_bytes: u64,
    sha256_hash: String,
    upload_time: String,
    is_public: bool,
}

/// A module as lists show it.
#[derive(Serialize)]
struct Listed {
    id: Uuid,
    name: String,
    version: u64,
    description: String,
    size_bytes: u64,
    sha256_hash: String,
    upload_time: String,
    last_executed: Option<String>,
    execution_count: u64,
    is_public: bool,
}

#[derive(Serialize)]
struct ListedPage {
    modules: Vec<Listed>,
    page: u32,
    limit: u32,
    total: u64,
    has_next: bool,
}

/// The fields of an upload.
struct Upload {
    wasm: Bytes,
    name: String,
    description: String,
    is_public: bool,
}

pub(super) async fn upload(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    request: Request,
) -> Result<Response, Problem> {
    let upload = read_upload(request, &api).await?;
    let (sandbox, share) = (&api.state.sandbox, share(&caller.principal));
    let wasm = sandbox.to_binary(upload.wasm, share).await?;
    // What is no module, or does not compile, is refused here, and the first execution finds the
    // module compiled.
    let preparation = Preparation::FastThenOptimised;
    let prepared = sandbox
        .prepare_for(share, wasm.clone(), preparation)
        .await?;
    let hash = prepared.hash();
    let new = NewModule {
        owner_id: caller.principal.user_id,
        name: &upload.name,
        description: &upload.description,
        hash,
        wasm: &wasm,
        is_public: upload.is_public,
    };
    let module = api.store_for(&caller).module_create(new).await?;
    let location = [(header::LOCATION, format!("/api/wasm/modules/{}", module.id))];
    Ok((StatusCode::CREATED, location, Json(Uploaded::from(module))).into_response())
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::parse(uri.query())?;
    let number = |name, default, max| match query.value(name)? {
        Some(value) => values::number(name, value, 1..=max),
        None => Ok(default),
    };
    let page: u32 = number("page", 1, u32::MAX)?;
    let limit = number("limit", PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX)?;
    let include_public = match query.value("include_public")? {
        Some(value) => values::flag("include_public", value)?,
        None => false,
    };
    let owner_id = caller.principal.user_id;
    let found = api
        .state
        .store
        .modules_page(owner_id, include_public, page, limit)
        .await?;
    let has_next = u64::from(page) * u64::from(limit) < found.total;
    let modules = found.modules.into_iter().map(Listed::from).collect();
    Ok(Json(ListedPage {
        modules,
        page,
        limit,
        total: found.total,
        has_next,
    })
    .into_response())
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    PathId(id): PathId,
) -> Result<Response, Problem> {
    let module = visible(&api, id, &caller.principal).await?;
    Ok(Json(Listed::from(module)).into_response())
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    PathId(id): PathId,
) -> Result<StatusCode, Problem> {
    let module = visible(&api, id, &caller.principal).await?;
    if module.owner_id != caller.principal.user_id {
        return Err(Failure::forbidden("only its owner can delete a module").into());
    }
    api.store_for(&caller).module_delete(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn execute(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    PathId(id): PathId,
    request: Request,
) -> Result<Response, Problem> {
    let module = visible(&api, id, &caller.principal).await?;
    if module.stopped_at.is_some() {
        return Err(Failure::module_stopped().into());
    }
    let mut recording = Recording::begin(&api, &caller)?;
    recording.module = Some(module.hash);
    recording.module_id = Some(module.id);
    let form = accept::form(request.headers());
    let ran = run_stored(&api, &caller, &module, request, &mut recording).await;
    recording.end(ran)?.respond(caller.request_id, form)
}

/// Runs a stored module on what the request brings.
async fn run_stored(
    api: &Api,
    caller: &Authenticated,
    module: &Module,
    request: Request,
    recording: &mut Recording,
) -> Result<Ran, Problem> {
    let input = read_input(request, api).await?;
    recording.bytes_in = input.len() as u64;
    let share = share(&caller.principal);
    let prepared = api.state.registry.prepare(module, share).await?;
    let run = api.run(prepared, module.hash, input, &caller.principal);
    let run = api.state.registry.while_running(module.id, run).await;
    run.map_err(|_| Failure::stopped())?
}

/// The module, if the caller may see it. One that is another's and not public is as good as none.
async fn visible(api: &Api, id: Uuid, principal: &KeyPrincipal) -> Result<Module, Problem> {
    api.state
        .store
        .module(id)
        .await?
        .filter(|module| module.is_public || module.owner_id == principal.user_id)
        .ok_or_else(|| Failure::not_found("module not found").into())
}

async fn read_upload(request: Request, api: &Api) -> Result<Upload, Problem> {
    let ContentType::Multipart { boundary } = body::content_type(request.headers())? else {
        return Err(Failure::unsupported_media_type(
            "send multipart/form-data with the fields `wasm` and `name`",
        )
        .into());
    };
    let value = |bytes_max| FieldLimit::Value { bytes_max };
    let wasm_limit = FieldLimit::Payload(api.state.settings.wasm_bound());
    let fields = [
        Field {
            names: WASM_NAMES,
            limit: wasm_limit,
        },
        Field {
            names: &["name"],
            limit: value(NAME_BYTES_MAX as u64),
        },
        Field {
            names: &["description"],
            limit: value(DESCRIPTION_BYTES_MAX as u64),
        },
        Field {
            names: &["is_public"],
            limit: value(FLAG_BYTES_MAX),
        },
    ];
    let [wasm, name, description, is_public] =
        form::read(request.into_body(), boundary, &fields).await?;
    let name = form::required(name, "name")?;
    let description = description.unwrap_or_default();
    Ok(Upload {
        wasm: form::required(wasm, "wasm")?,
        name: values::name("name", &name, NAME_BYTES_MAX)?.to_owned(),
        description: values::text("description", &description, DESCRIPTION_BYTES_MAX)?.to_owned(),
        is_public: match is_public {
            Some(value) => values::flag("is_public", &value)?,
            None => false,
        },
    })
}

/// A form has the input as a field; any other body is the input.
async fn read_input(request: Request, api: &Api) -> Result<Bytes, Problem> {
    let bound = api.state.settings.input_bound();
    match body::content_type(request.headers())? {
        ContentType::Multipart { boundary } => {
            let fields = [Field {
                names: INPUT_NAMES,
                limit: FieldLimit::Payload(bound),
            }];
            let [input] = form::read(request.into_body(), boundary, &fields).await?;
            Ok(input.unwrap_or_default())
        }
        ContentType::Other(_) | ContentType::Missing => {
            body::read(request.into_body(), bound).await
        }
    }
}

impl From<Module> for Uploaded {
    fn from(module: Module) -> Uploaded {
        Uploaded {
            id: module.id,
            name: module.name,
            version: module.version,
            description: module.description,
            size_bytes: module.size_bytes,
            sha256_hash: module.hash.to_string(),
            upload_time: values::timestamp(module.uploaded_at),
            is_public: module.is_public,
        }
    }
}

impl From<Module> for Listed {
    fn from(module: Module) -> Listed {
        Listed {
            id: module.id,
            name: module.name,
            version: module.version,
            description: module.description,
            size_bytes: module.size_bytes,
            sha256_hash: module.hash.to_string(),
            upload_time: values::timestamp(module.uploaded_at),
            last_executed: module.last_executed_at.map(values::timestamp),
            execution_count: module.execution_count,
            is_public: module.is_public,
        }
    }
}

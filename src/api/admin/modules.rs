//! The emergency stop of modules.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use chrono::Utc;

use super::super::Api;
use super::super::caller::{Authenticated, PathId};
use super::super::problem::Problem;

/// Nobody may run the module any more, and guests that do are ended.
pub(in crate::api) async fn stop(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    PathId(id): PathId,
) -> Result<StatusCode, Problem> {
    let store = api.store_for(&caller);
    store.module_stop(id, true, Utc::now()).await?;
    api.state.registry.changed().await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(in crate::api) async fn resume(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    PathId(id): PathId,
) -> Result<StatusCode, Problem> {
    let store = api.store_for(&caller);
    store.module_stop(id, false, Utc::now()).await?;
    api.state.registry.changed().await?;
    Ok(StatusCode::NO_CONTENT)
}

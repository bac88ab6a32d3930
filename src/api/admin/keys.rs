//! Keys of all users, as an admin sees, makes and revokes them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::Api;
use super::super::caller::{Authenticated, PathId};
use super::super::json;
use super::super::keys::{Ceiling, Listed, NewKeyRequest};
use super::super::problem::Problem;
use super::super::query::Query;
use super::super::values;
use super::{PageFacts, Paging, id};
use crate::auth::Scopes;
use crate::failure::Failure;
use crate::store::changes::Changed;
use crate::store::keys::KeysFilter;

const EXAMPLE: &str = r#"{"user_id": "0198f3c9-0b6e-7f5d-8a0c-2f4e1d3c5b6a"}"#;

/// A key for somebody: whose, and what it may do.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKeyForRequest {
    user_id: Option<Uuid>,
    #[serde(default)]
    key: NewKeyRequest,
}

#[derive(Serialize)]
struct Owned {
    user: String,
    user_id: Uuid,
    #[serde(flatten)]
    key: Listed,
}

#[derive(Serialize)]
struct OwnedPage {
    keys: Vec<Owned>,
    #[serde(flatten)]
    page: PageFacts,
}

pub(in crate::api) async fn list(
    State(api): State<Arc<Api>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::parse(uri.query())?;
    let paging = Paging::of(&query)?;
    let live = match query.value("live")? {
        Some(value) => values::flag("live", value)?,
        None => false,
    };
    let filter = KeysFilter {
        user_id: id(&query, "user_id")?,
        live_at: live.then(Utc::now),
    };
    let found = api
        .state
        .store
        .keys_page(filter, paging.page, paging.limit)
        .await?;
    let keys = found.keys.into_iter().map(|(key, user)| Owned {
        user,
        user_id: key.user_id,
        key: Listed::from(key),
    });
    Ok(Json(OwnedPage {
        keys: keys.collect(),
        page: paging.told(found.total),
    })
    .into_response())
}

/// Makes a key for any user, within what the user's role and tier allow and what the caller's own key
/// has.
pub(in crate::api) async fn create(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    request: Request,
) -> Result<Response, Problem> {
    let asked = json::read(request, EXAMPLE).await?;
    let asked: NewKeyForRequest = asked.unwrap_or_default();
    let user_id = asked
        .user_id
        .ok_or_else(|| Failure::bad_request("`user_id` is missing"))?;
    let user = api.state.store.user(user_id).await?;
    let user = user.ok_or_else(|| Failure::not_found("user not found"))?;
    let own = Ceiling::of(&caller.principal);
    let ceiling = Ceiling {
        tier: own.tier.min(user.tier),
        scopes: own.scopes.and(Scopes::of_role(user.role)),
        expires_at: own.expires_at,
    };
    let created = api.make_key(&caller, user_id, asked.key, ceiling).await?;
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

pub(in crate::api) async fn revoke(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    PathId(id): PathId,
) -> Result<StatusCode, Problem> {
    let store = api.store_for(&caller);
    store.key_revoke(id, None, Utc::now()).await?;
    api.state.auth.changed(Changed::Key(id)).await;
    Ok(StatusCode::NO_CONTENT)
}

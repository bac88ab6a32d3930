//! Users, as an admin sees and changes them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::Api;
use super::super::caller::{Authenticated, PathId};
use super::super::json;
use super::super::problem::Problem;
use super::super::query::Query;
use super::super::values;
use super::{PageFacts, Paging, word};
use crate::auth::Role;
use crate::failure::Failure;
use crate::limits::Tier;
use crate::store::changes::Changed;
use crate::store::users::{User, UserChange, UsersFilter};

/// Longest part of an email that is searched for, in bytes.
const EMAIL_PART_BYTES_MAX: usize = 254;

const NEW_USER: &str = r#"{"email": "me@example.org"}"#;
const CHANGE: &str = r#"{"tier": "pro"}"#;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewUserRequest {
    email: String,
    role: Option<Role>,
    tier: Option<Tier>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeRequest {
    role: Option<Role>,
    tier: Option<Tier>,
    disabled: Option<bool>,
}

#[derive(Serialize)]
struct Shown {
    id: Uuid,
    email: String,
    role: Role,
    tier: Tier,
    created_at: String,
    disabled_at: Option<String>,
}

#[derive(Serialize)]
struct ShownPage {
    users: Vec<Shown>,
    #[serde(flatten)]
    page: PageFacts,
}

pub(in crate::api) async fn list(
    State(api): State<Arc<Api>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::parse(uri.query())?;
    let paging = Paging::of(&query)?;
    let email = match query.value("email")? {
        Some(value) => Some(values::text("email", value, EMAIL_PART_BYTES_MAX)?),
        None => None,
    };
    let disabled = match query.value("disabled")? {
        Some(value) => Some(values::flag("disabled", value)?),
        None => None,
    };
    let filter = UsersFilter {
        email,
        role: word(&query, "role")?,
        tier: word(&query, "tier")?,
        disabled,
    };
    let found = api
        .state
        .store
        .users_page(filter, paging.page, paging.limit)
        .await?;
    Ok(Json(ShownPage {
        users: found.users.into_iter().map(Shown::from).collect(),
        page: paging.told(found.total),
    })
    .into_response())
}

pub(in crate::api) async fn create(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    request: Request,
) -> Result<Response, Problem> {
    let asked = json::read(request, NEW_USER).await?;
    let asked: NewUserRequest = asked.unwrap_or_default();
    if asked.email.is_empty() {
        return Err(Failure::bad_request("`email` is missing").into());
    }
    let role = asked.role.unwrap_or(Role::User);
    let tier = asked.tier.unwrap_or(Tier::Free);
    let store = api.store_for(&caller);
    let user = store.user_create_on(&asked.email, role, tier).await?;
    let location = [(header::LOCATION, format!("/api/admin/users/{}", user.id))];
    Ok((StatusCode::CREATED, location, Json(Shown::from(user))).into_response())
}

pub(in crate::api) async fn get(
    State(api): State<Arc<Api>>,
    PathId(id): PathId,
) -> Result<Response, Problem> {
    let user = api.state.store.user(id).await?;
    let user = user.ok_or_else(|| Failure::not_found("user not found"))?;
    Ok(Json(Shown::from(user)).into_response())
}

/// Role, tier, and whether the user may do anything at all. A user that is disabled is stopped at once.
pub(in crate::api) async fn change(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    PathId(id): PathId,
    request: Request,
) -> Result<Response, Problem> {
    let ChangeRequest {
        role,
        tier,
        disabled,
    } = json::read(request, CHANGE).await?.unwrap_or_default();
    if role.is_none() && tier.is_none() && disabled.is_none() {
        return Err(
            Failure::bad_request("say what to change: `role`, `tier` or `disabled`").into(),
        );
    }
    let change = UserChange {
        role,
        tier,
        disabled,
    };
    let store = api.store_for(&caller);
    let user = store.user_change(id, change, Utc::now()).await?;
    api.state.auth.changed(Changed::User(id)).await;
    Ok(Json(Shown::from(user)).into_response())
}

impl From<User> for Shown {
    fn from(user: User) -> Shown {
        Shown {
            id: user.id,
            email: user.email,
            role: user.role,
            tier: user.tier,
            created_at: values::timestamp(user.created_at),
            disabled_at: user.disabled_at.map(values::timestamp),
        }
    }
}

//! `POST /api/auth/register`: an account of one's own, where the operator lets strangers have one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::keys::Created;
use super::problem::Problem;
use super::{Api, Caller, json};
use crate::auth::{Role, Scopes};
use crate::failure::Failure;
use crate::limits::{Rate, RouteKey, Subject, Tier};
use crate::store::keys::NewKeyRow;

/// Accounts that one address may make. A Free account costs nothing, so without a bound a single
/// client would have as many allowances as it likes.
const PER_ADDRESS: Rate = Rate {
    per_minute: Some(2),
    per_day: Some(5),
};

const EXAMPLE: &str = r#"{"email": "me@example.org"}"#;

/// The name of the buckets of [`PER_ADDRESS`].
const BUCKETS: &str = "builtin:register";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignUp {
    email: String,
}

pub(super) async fn register(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    if !api.state.settings.sign_up {
        return Err(Failure::not_found("there is nothing at this path").into());
    }
    let sign_up = json::read(request, EXAMPLE).await?;
    let sign_up: SignUp = sign_up.unwrap_or_default();
    if sign_up.email.is_empty() {
        return Err(Failure::bad_request("`email` is missing").into());
    }
    let why = "too many accounts were asked for from this address; try again later";
    take_turn(&api, &caller, BUCKETS, PER_ADDRESS, why)?;
    let store = api.state.store.acting(caller.actor());
    let user = store
        .user_create_on(&sign_up.email, Role::User, Tier::Free)
        .await?;
    let new = api.state.auth.new_key()?;
    let row = NewKeyRow {
        user_id: user.id,
        name: "first key",
        prefix: &new.prefix,
        hash: new.hash,
        tier: Tier::Free,
        scopes: Scopes::of_role(Role::User),
        expires_at: None,
    };
    let key = store.key_create(row).await?;
    Ok((StatusCode::CREATED, Json(Created::of(key, new.secret))).into_response())
}

/// Counts an attempt of somebody who shows no key, by the address it comes from, whether or not it succeeds:
/// asking which emails have accounts is bounded too.
pub(super) fn take_turn(
    api: &Api,
    caller: &Caller,
    buckets: &str,
    rate: Rate,
    why: &'static str,
) -> Result<(), Failure> {
    let Some(address) = caller.client else {
        return Err(Failure::forbidden(
            "this is not for clients whose address is not known",
        ));
    };
    let subject = Subject::RouteAddress(RouteKey::of(buckets), address);
    let decision = api.state.limiter.take(&subject, rate, Instant::now());
    if decision.allowed {
        return Ok(());
    }
    let after = decision
        .window
        .map_or(Duration::from_secs(60), |window| window.retry_after);
    Err(Failure::rate_limited(why, after))
}

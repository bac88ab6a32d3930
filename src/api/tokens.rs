//! Access and refresh tokens: get, refresh, revoke.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::caller::Authenticated;
use super::problem::Problem;
use super::{Api, Caller, json, sign_up, values};
use crate::auth::{Scopes, TokenError, TokenPair};
use crate::failure::{Failure, code};
use crate::limits::Rate;

/// What one address may refresh: a hundred clients behind it, each several times as often as they need.
const REFRESHES_PER_ADDRESS: Rate = Rate {
    per_minute: Some(120),
    per_day: Some(20_000),
};

/// The name of the buckets of [`REFRESHES_PER_ADDRESS`].
const REFRESHES: &str = "builtin:refresh";

/// The body of a request for tokens; all of it is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTokensRequest {
    scopes: Option<Scopes>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RefreshRequest {
    refresh_token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RevokeRequest {
    token: String,
}

/// A pair of tokens just made, in the words of RFC 6749 section 5.1.
#[derive(Serialize)]
struct Tokens {
    access_token: String,
    token_type: &'static str,
    /// Seconds.
    expires_in: i64,
    refresh_token: String,
    refresh_expires_at: String,
    /// Names with spaces between.
    scope: String,
}

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    request: Request,
) -> Result<Response, Problem> {
    if caller.principal.token_family.is_some() {
        return Err(Failure::forbidden(
            "an access token can't get tokens: send the API key, or refresh with the refresh token",
        )
        .into());
    }
    let wanted: Option<NewTokensRequest> =
        json::read(request, r#"{"scopes": ["execute"]}"#).await?;
    let key = &caller.principal;
    let scopes = wanted.unwrap_or_default().scopes.unwrap_or(key.scopes);
    if scopes.is_empty() {
        return Err(Failure::bad_request("`scopes` must name at least one").into());
    }
    if let Some(lacking) = scopes.iter().find(|&scope| !key.scopes.has(scope)) {
        return Err(Failure::insufficient_scope(lacking.as_str()).into());
    }
    let now = Utc::now();
    let issued = api
        .state
        .auth
        .issue_tokens(key, scopes, caller.actor(), now);
    match issued.await {
        Ok(pair) => Ok(answer(pair, now)),
        // The key was stopped since it was read.
        Err(TokenError::Refused) => {
            Err(Failure::unauthorized("the API key is unknown, revoked or expired").into())
        }
        Err(error) => Err(problem(error, &caller.request_id)),
    }
}

pub(super) async fn refresh(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let wanted: Option<RefreshRequest> =
        json::read(request, r#"{"refresh_token": "wwr_…"}"#).await?;
    let Some(wanted) = wanted else {
        return Err(Failure::bad_request("send {\"refresh_token\": \"wwr_…\"}").into());
    };
    // Each leaves a row in the audit, which nobody takes away.
    let why = "too many tokens were refreshed from this address; try again later";
    sign_up::take_turn(&api, &caller, REFRESHES, REFRESHES_PER_ADDRESS, why)?;
    let now = Utc::now();
    let token = &wanted.refresh_token;
    let refreshed = api.state.auth.refresh_tokens(token, caller.actor(), now);
    let pair = refreshed.await;
    let pair = pair.map_err(|error| problem(error, &caller.request_id))?;
    Ok(answer(pair, now))
}

/// Whoever has a token may end it; whether it was one is not told (RFC 7009 section 2.2).
pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<StatusCode, Problem> {
    let wanted: Option<RevokeRequest> = json::read(request, r#"{"token": "wwr_…"}"#).await?;
    let Some(wanted) = wanted else {
        return Err(
            Failure::bad_request("send {\"token\": \"…\"}: a refresh or access token").into(),
        );
    };
    let auth = &api.state.auth;
    let revoked = auth.revoke_tokens(&wanted.token, caller.actor(), Utc::now());
    let revoked = revoked.await;
    revoked.map_err(|error| problem(error, &caller.request_id))?;
    Ok(StatusCode::NO_CONTENT)
}

fn answer(pair: TokenPair, now: DateTime<Utc>) -> Response {
    let TokenPair {
        access_token,
        access_expires_at,
        refresh_token,
        refresh_expires_at,
        scopes,
    } = pair;
    let tokens = Tokens {
        access_token,
        token_type: "Bearer",
        // What is left of a second is not promised.
        expires_in: (access_expires_at - now).num_seconds(),
        refresh_token,
        refresh_expires_at: values::timestamp(refresh_expires_at),
        scope: scopes.to_string(),
    };
    Json(tokens).into_response()
}

fn problem(error: TokenError, request_id: &str) -> Problem {
    let refused = |code, message: &'static str| {
        Problem::from(Failure::new(StatusCode::UNAUTHORIZED, code, message))
    };
    match error {
        TokenError::Disabled => Failure::not_found("this gateway issues no access tokens").into(),
        TokenError::Refused => refused(
            code::INVALID_REFRESH_TOKEN,
            "the refresh token is unknown, expired or revoked: get new tokens with the API key",
        ),
        TokenError::Reused { key_id } => {
            tracing::warn!(
                request_id,
                %key_id,
                "a refresh token was used twice: its tokens were revoked, as one user of it may be a thief"
            );
            refused(
                code::REFRESH_TOKEN_REUSED,
                "the refresh token was used before, so all tokens that came from it are revoked: get new ones with the API key",
            )
        }
        TokenError::Store(error) => error.into(),
        TokenError::NoRandomness(error) => error.into(),
        TokenError::Unsigned => Problem::internal(error.to_string()),
    }
}

//! Who is calling, as an argument of a handler.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use uuid::Uuid;

use super::Caller;
use super::problem::Problem;
use crate::auth::{KeyPrincipal, Principal};
use crate::failure::Failure;
use crate::store::audit::{Actor, ActorKind};

/// A caller with a valid key. What else the endpoint asks for was checked before.
pub(super) struct Authenticated {
    pub(super) principal: Arc<KeyPrincipal>,
    pub(super) request_id: String,
    pub(super) client: Option<IpAddr>,
}

impl Authenticated {
    /// Whom the audit tells of.
    pub(super) fn actor(&self) -> Actor {
        Actor {
            kind: ActorKind::User,
            user_id: Some(self.principal.user_id),
            key_id: Some(self.principal.key_id),
            operator: None,
            address: self.client,
            request_id: Some(self.request_id.clone()),
        }
    }
}

/// The `{id}` of the path.
pub(super) struct PathId(pub(super) Uuid);

impl<S: Sync> FromRequestParts<S> for Authenticated {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let Some(caller) = parts.extensions.get::<Caller>() else {
            return Err(Problem::internal(
                "a request reached the control plane without its caller",
            ));
        };
        match &caller.principal {
            Principal::Key(principal) => Ok(Authenticated {
                principal: Arc::clone(principal),
                request_id: caller.request_id.clone(),
                client: caller.client,
            }),
            Principal::Anonymous | Principal::Certificate(_) => Err(Failure::unauthorized(
                "this needs an API key: send `Authorization: Bearer ww_…` or `X-API-Key: ww_…`",
            )
            .into()),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let malformed = || Failure::bad_request("the id in the path must be a UUID");
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| malformed())?;
        let id = params
            .iter()
            .find_map(|(name, value)| (name == "id").then(|| Uuid::try_parse(value)))
            .ok_or_else(|| Problem::internal("a route with a PathId has no {id}"))?;
        Ok(PathId(id.map_err(|_| malformed())?))
    }
}

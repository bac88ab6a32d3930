//! Every endpoint of the control plane with what it asks of its caller. The router is made of this
//! table, so no endpoint can do without a row, and each is guarded by what its row says.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::Method;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{self, MethodRouter};

use super::problem::Problem;
use super::{Api, Caller, admin, describe, execute, keys, modules, sign_up, tokens, usage};
use crate::auth::{Principal, Role, Scope};
use crate::failure::Failure;

/// What an endpoint asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// Nothing; a key that is shown must be valid all the same.
    Nothing,
    /// A key with this scope, that acts in this role or a higher one.
    Key { scope: Scope, role: Role },
    /// A key, whatever its scopes are.
    AnyKey,
}

/// One method of one path.
#[derive(Debug)]
pub struct Endpoint {
    pub method: Method,
    /// As axum writes it, `{id}` being one segment.
    pub path: &'static str,
    pub asks: Asks,
    serve: fn() -> MethodRouter<Arc<Api>>,
}

/// All endpoints under `/api`.
pub static ENDPOINTS: &[Endpoint] = &[
    on(
        Method::POST,
        "/api/wasm/execute",
        user(Scope::Execute),
        || routing::post(execute::execute),
    ),
    on(Method::POST, "/api/execute", user(Scope::Execute), || {
        routing::post(execute::execute)
    }),
    on(
        Method::POST,
        "/api/wasm/upload",
        user(Scope::ModulesWrite),
        || routing::post(modules::upload),
    ),
    on(
        Method::GET,
        "/api/wasm/modules",
        user(Scope::ModulesRead),
        || routing::get(modules::list),
    ),
    on(
        Method::GET,
        "/api/wasm/modules/{id}",
        user(Scope::ModulesRead),
        || routing::get(modules::get),
    ),
    on(
        Method::DELETE,
        "/api/wasm/modules/{id}",
        user(Scope::ModulesWrite),
        || routing::delete(modules::delete),
    ),
    on(
        Method::POST,
        "/api/wasm/modules/{id}/execute",
        user(Scope::Execute),
        || routing::post(modules::execute),
    ),
    on(Method::GET, "/api/auth/keys", user(Scope::Keys), || {
        routing::get(keys::list)
    }),
    on(Method::POST, "/api/auth/keys", user(Scope::Keys), || {
        routing::post(keys::create)
    }),
    on(
        Method::DELETE,
        "/api/auth/keys/{id}",
        user(Scope::Keys),
        || routing::delete(keys::revoke),
    ),
    on(Method::GET, "/api/usage", user(Scope::Execute), || {
        routing::get(usage::own)
    }),
    on(
        Method::GET,
        "/api/usage/executions",
        user(Scope::Execute),
        || routing::get(usage::own_executions),
    ),
    on(Method::GET, "/api/admin/usage", SUPPORT, || {
        routing::get(usage::all)
    }),
    on(Method::GET, "/api/admin/usage/executions", SUPPORT, || {
        routing::get(usage::all_executions)
    }),
    on(Method::POST, "/api/auth/token", Asks::AnyKey, || {
        routing::post(tokens::create)
    }),
    on(
        Method::POST,
        "/api/auth/token/refresh",
        Asks::Nothing,
        || routing::post(tokens::refresh),
    ),
    on(
        Method::POST,
        "/api/auth/token/revoke",
        Asks::Nothing,
        || routing::post(tokens::revoke),
    ),
    on(Method::GET, "/api/openapi.json", Asks::Nothing, || {
        routing::get(describe::openapi)
    }),
    on(Method::GET, "/api/docs", Asks::Nothing, || {
        routing::get(describe::docs)
    }),
    on(Method::GET, "/api/docs.css", Asks::Nothing, || {
        routing::get(describe::style)
    }),
    on(
        Method::POST,
        "/api/auth/keys/{id}/rotate",
        user(Scope::Keys),
        || routing::post(keys::rotate),
    ),
    on(Method::POST, "/api/auth/register", Asks::Nothing, || {
        routing::post(sign_up::register)
    }),
    on(Method::GET, "/api/admin/users", SUPPORT, || {
        routing::get(admin::users::list)
    }),
    on(Method::POST, "/api/admin/users", ADMIN, || {
        routing::post(admin::users::create)
    }),
    on(Method::GET, "/api/admin/users/{id}", SUPPORT, || {
        routing::get(admin::users::get)
    }),
    on(Method::PATCH, "/api/admin/users/{id}", ADMIN, || {
        routing::patch(admin::users::change)
    }),
    on(Method::GET, "/api/admin/keys", SUPPORT, || {
        routing::get(admin::keys::list)
    }),
    on(Method::POST, "/api/admin/keys", ADMIN, || {
        routing::post(admin::keys::create)
    }),
    on(Method::DELETE, "/api/admin/keys/{id}", ADMIN, || {
        routing::delete(admin::keys::revoke)
    }),
    on(Method::GET, "/api/admin/tiers", SUPPORT, || {
        routing::get(admin::tiers::list)
    }),
    on(Method::POST, "/api/admin/modules/{id}/stop", ADMIN, || {
        routing::post(admin::modules::stop)
    }),
    on(
        Method::POST,
        "/api/admin/modules/{id}/resume",
        ADMIN,
        || routing::post(admin::modules::resume),
    ),
    on(Method::GET, "/api/admin/audit", SUPPORT, || {
        routing::get(admin::audit::list)
    }),
];

/// What support may do: look.
const SUPPORT: Asks = Asks::Key {
    scope: Scope::Admin,
    role: Role::Support,
};

/// What changes something of others.
const ADMIN: Asks = Asks::Key {
    scope: Scope::Admin,
    role: Role::Admin,
};

const fn on(
    method: Method,
    path: &'static str,
    asks: Asks,
    serve: fn() -> MethodRouter<Arc<Api>>,
) -> Endpoint {
    Endpoint {
        method,
        path,
        asks,
        serve,
    }
}

/// A key of any user, with this scope.
const fn user(scope: Scope) -> Asks {
    Asks::Key {
        scope,
        role: Role::User,
    }
}

/// All endpoints, each behind its guard.
pub(super) fn router() -> axum::Router<Arc<Api>> {
    let mut router = axum::Router::new();
    for endpoint in ENDPOINTS {
        let asks = endpoint.asks;
        let guard = middleware::from_fn(move |request, next| guarded(asks, request, next));
        router = router.route(endpoint.path, (endpoint.serve)().route_layer(guard));
    }
    router
}

/// Lets a request in whose caller has what the endpoint asks for; else it ends here, before its body is
/// read.
async fn guarded(asks: Asks, request: Request, next: Next) -> Result<Response, Problem> {
    let Some(caller) = request.extensions().get::<Caller>() else {
        return Err(Problem::internal(
            "a request reached the control plane without its caller",
        ));
    };
    admit(asks, &caller.principal)?;
    Ok(next.run(request).await)
}

fn admit(asks: Asks, principal: &Principal) -> Result<(), Failure> {
    match (asks, principal) {
        (Asks::Nothing, _) | (Asks::AnyKey, Principal::Key(_)) => Ok(()),
        (Asks::Key { .. } | Asks::AnyKey, Principal::Anonymous | Principal::Certificate(_)) => {
            Err(Failure::unauthorized(
                "this needs an API key: send `Authorization: Bearer ww_…` or `X-API-Key: ww_…`",
            ))
        }
        (Asks::Key { scope, role }, Principal::Key(key)) => {
            if !key.scopes.has(scope) {
                return Err(Failure::insufficient_scope(scope.as_str()));
            }
            if key.role < role {
                return Err(Failure::forbidden(
                    "the user of this key lacks the role that this asks for",
                ));
            }
            Ok(())
        }
    }
}

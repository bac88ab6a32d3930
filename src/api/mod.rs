//! The control plane: the JSON API over users' keys and modules, as an axum router that the gateway
//! calls in process. A file per resource.
//!
//! The gateway has authenticated the request and taken a token from its rate limit before it calls
//! the router, and says who is calling with a [`Caller`]. Handlers answer with a response or a
//! `Problem`; [`router`] turns every failure, axum's own included, into a response that carries a
//! [`Failure`], which the gateway writes out.

mod accept;
mod access;
mod admin;
mod body;
mod caller;
mod describe;
mod execute;
mod form;
mod json;
mod keys;
mod modules;
mod problem;
mod query;
mod receipt;
mod recording;
mod sign_up;
mod tokens;
mod usage;
mod values;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tokio::sync::Mutex;

use crate::auth::{Authenticator, Principal};
use crate::failure::Failure;
use crate::limits::{Limiter, OnLoss, Tiers};
use crate::modules::Registry;
use crate::sandbox::{GuestLimits, Sandbox, Usage};
use crate::store::Store;
use crate::store::audit::{Actor, ActorKind};
use crate::usage::Recorder;

pub use access::{Asks, ENDPOINTS, Endpoint};
pub use body::BodyError;
pub use receipt::add_usage;

/// Settings of the control plane.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Largest module, in bytes as uploaded (text or binary).
    pub wasm_bytes_max: u64,
    /// Largest input of an execution.
    pub input_bytes_max: u64,
    /// The global limits: ceilings for the Free tier, and the stdout and stderr bounds for all.
    pub guest: GuestLimits,
    pub tiers: Tiers,
    /// Whether strangers may make themselves an account, on the Free tier.
    pub sign_up: bool,
    /// What happens to a guest while the limits that gateways share can't be checked.
    pub on_redis_loss: OnLoss,
}

/// What the handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct State {
    pub settings: Arc<Settings>,
    pub store: Store,
    pub auth: Authenticator,
    pub registry: Registry,
    pub sandbox: Sandbox,
    pub usage: Recorder,
    /// Holds the seats of guests, and the buckets of endpoints that need no key.
    pub limiter: Limiter,
    /// Held while a key is counted and made, so that concurrent requests can't pass the bound, those to
    /// the router of another configuration included.
    pub key_creation: Arc<Mutex<()>>,
}

/// What the gateway knows of a request; an extension of each request to the router.
#[derive(Debug, Clone)]
pub struct Caller {
    pub principal: Principal,
    pub request_id: String,
    pub client: Option<IpAddr>,
}

impl Caller {
    /// Whom the audit tells of where it is not known yet whose key it is.
    fn actor(&self) -> Actor {
        Actor {
            kind: ActorKind::User,
            address: self.client,
            request_id: Some(self.request_id.clone()),
            ..Actor::default()
        }
    }
}

/// The guest of which an answer tells; an extension of the response.
#[derive(Debug, Clone, Copy)]
pub struct GuestRan {
    pub status: &'static str,
    pub usage: Usage,
}

/// The router's own state.
struct Api {
    state: State,
}

impl Api {
    /// The store, with changes to it under the caller's name.
    fn store_for(&self, caller: &caller::Authenticated) -> Store {
        self.state.store.acting(caller.actor())
    }
}

/// The router over `/api/…`. A failure is a response that carries a [`crate::failure::Failure`].
///
/// A request needs a [`Caller`] as an extension, and its body may fail with a [`BodyError`]. The
/// one kind of error answer without a [`crate::failure::Failure`] is that of a guest that ran and
/// failed: its 422 has a JSON body of its own.
pub fn router(state: State) -> axum::Router {
    let api = Arc::new(Api { state });
    let resources = access::router().with_state(api);
    // As a fallback service, the resources' own 404 and 405 answers pass through `finish` too.
    axum::Router::new()
        .fallback_service(resources)
        .layer(middleware::from_fn(finish))
}

/// What every answer goes through: axum's bare 404 and 405 become failures, the cause of an
/// internal failure is logged, and nothing is cached.
async fn finish(request: Request, next: Next) -> Response {
    let request_id = request_id(&request);
    let mut response = next.run(request).await;
    if let Some(cause) = response.extensions_mut().remove::<problem::Cause>() {
        cause.log(&request_id);
    }
    if response.extensions().get::<Failure>().is_none() {
        if response.status() == StatusCode::NOT_FOUND {
            response = Failure::not_found("there is nothing at this path").into_response();
        } else if response.status() == StatusCode::METHOD_NOT_ALLOWED {
            let allow = response
                .headers()
                .get(header::ALLOW)
                .and_then(|value| value.to_str().ok());
            response = Failure::method_not_allowed(allow.unwrap_or_default()).into_response();
        }
    }
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The id of a request, empty where the gateway gave none.
fn request_id(request: &Request) -> String {
    let caller = request.extensions().get::<Caller>();
    caller.map_or_else(String::new, |caller| caller.request_id.clone())
}

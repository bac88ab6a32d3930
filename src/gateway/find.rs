//! Which route a request takes, and what it asks of it.

use http::Method;
use pingora_proxy::Session;

use super::plan::Plan;
use super::respond::Stop;
use super::{Ctx, cors, not_found, request};
use crate::failure::Failure;
use crate::route::{self, Found};

/// What a request asks of the routes.
pub(super) enum Asked {
    Route(u32),
    /// Whether a page may send a request to this route.
    Preflight(u32),
    /// Which methods there are, where no route answers that itself.
    Options {
        allow: String,
    },
}

/// What the request asks of the routes, and of which.
pub(super) fn find_route(plan: &Plan, session: &Session, ctx: &mut Ctx) -> Result<Asked, Stop> {
    let head = session.req_header();
    let host = request::host(head)?;
    let path = route::normalize(head.uri.path())
        .map_err(|error| Failure::bad_request(error.to_string()))?;
    let find = |method: &Method| plan.table.find(&host, &path, method, &head.headers);
    // The route that would answer, if it says what pages of other origins may do.
    let with_cors = |method: &Method| match find(method) {
        Found::Route { route, index, .. } if route.cors.is_some() => Some(index),
        Found::Route { .. } | Found::MethodNotAllowed { .. } | Found::NotFound => None,
    };
    if let Some(method) = cors::preflight_for(head)
        && let Some(index) = with_cors(&method)
    {
        ctx.cors_route = Some(index);
        return Ok(Asked::Preflight(index));
    }
    match find(&head.method) {
        Found::Route {
            index,
            params,
            matched_path,
            route,
        } => {
            ctx.params = params;
            ctx.route_path_bytes = matched_path.len();
            ctx.cors_route = route.cors.is_some().then_some(index);
            Ok(Asked::Route(index))
        }
        Found::MethodNotAllowed { allow } => {
            ctx.cors_route = allow.iter().find_map(with_cors);
            let mut names: Vec<&str> = allow.iter().map(Method::as_str).collect();
            // What is asked for with OPTIONS is answered here.
            names.push(Method::OPTIONS.as_str());
            names.sort_unstable();
            names.dedup();
            let allow = names.join(", ");
            if head.method == Method::OPTIONS {
                return Ok(Asked::Options { allow });
            }
            Err(Failure::method_not_allowed(allow).into())
        }
        Found::NotFound => Err(not_found().into()),
    }
}

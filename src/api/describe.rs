//! What the API is: for programs (OpenAPI 3.1), and as a page for people.

mod page;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};

use super::problem::Problem;
use crate::failure::code;

/// The description as it is written; [`description`] completes it.
const SOURCE: &str = include_str!("openapi.yaml");

const STYLE: &str = include_str!("describe/docs.css");

/// What of the source is only there to be merged in.
const FRAGMENTS: &str = "x-answers";

/// The description in the forms in which it is sent.
struct Described {
    json: Bytes,
    page: Bytes,
}

static DESCRIBED: LazyLock<Option<Described>> = LazyLock::new(|| {
    let description = description().ok()?;
    Some(Described {
        json: Bytes::from(description.to_string()),
        page: Bytes::from(page::render(&description)),
    })
});

pub(super) async fn openapi() -> Result<Response, Problem> {
    Ok(answer("application/json", described()?.json.clone()))
}

pub(super) async fn docs() -> Result<Response, Problem> {
    Ok(answer(
        "text/html; charset=utf-8",
        described()?.page.clone(),
    ))
}

pub(super) async fn style() -> Response {
    answer(
        "text/css; charset=utf-8",
        Bytes::from_static(STYLE.as_bytes()),
    )
}

fn described() -> Result<&'static Described, Problem> {
    let described = DESCRIBED.as_ref();
    described.ok_or_else(|| Problem::internal("the built-in description of the API can't be read"))
}

fn answer(kind: &'static str, body: Bytes) -> Response {
    let kind = HeaderValue::from_static(kind);
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}

/// The description: merged, and with what the program knows better than the file.
fn description() -> Result<Value, serde_yaml::Error> {
    let mut source: serde_yaml::Value = serde_yaml::from_str(SOURCE)?;
    source.apply_merge()?;
    let mut description: Value = serde_yaml::from_value(source)?;
    if let Some(all) = description.as_object_mut() {
        all.remove(FRAGMENTS);
    }
    description["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    description["components"]["schemas"]["Error"]["properties"]["code"]["enum"] = json!(code::ALL);
    Ok(description)
}

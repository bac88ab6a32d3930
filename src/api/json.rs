//! Small JSON bodies.

use axum::extract::Request;
use axum::http::StatusCode;
use serde::de::DeserializeOwned;

use super::body::{self, Bound, ContentType};
use super::problem::Problem;
use crate::failure::{Failure, code};

const BODY: Bound = Bound {
    what: "the request body",
    bytes_max: 16 * 1024,
    setting: None,
};
/// Characters of a JSON error that the client gets to read; it may quote the body.
const ERROR_CHARS_MAX: usize = 200;

/// The body, a JSON object; `None` when it is empty. `example` is one that would do.
pub(super) async fn read<T: DeserializeOwned>(
    request: Request,
    example: &str,
) -> Result<Option<T>, Problem> {
    let content_type = body::content_type(request.headers())?;
    let bytes = body::read(request.into_body(), BODY).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    match content_type {
        ContentType::Other(kind) if kind == "application/json" => Ok(Some(parse(&bytes, example)?)),
        ContentType::Other(_) | ContentType::Missing | ContentType::Multipart { .. } => {
            Err(Failure::unsupported_media_type("send the body as application/json").into())
        }
    }
}

pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], example: &str) -> Result<T, Failure> {
    let malformed =
        |message: String| Failure::new(StatusCode::BAD_REQUEST, code::MALFORMED_JSON, message);
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(malformed(format!(
            "the body must be a JSON object, such as {example}"
        )));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        // The position stands at the end of serde_json's message, where a cut would lose it.
        let (line, column) = (error.line(), error.column());
        let message = error.to_string();
        let message = message
            .strip_suffix(&format!(" at line {line} column {column}"))
            .unwrap_or(&message);
        let message: String = message.chars().take(ERROR_CHARS_MAX).collect();
        malformed(format!(
            "the body at line {line}, column {column}: {message}"
        ))
    })
}

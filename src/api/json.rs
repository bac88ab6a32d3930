//! Small JSON bodies.

use axum::extract::Request;
use axum::http::StatusCode;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};

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

/// A whole number or null. To JSON Schema 3600.0 is a whole number too, and some programs write it so.
pub(super) fn whole_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    let Some(number) = Option::<f64>::deserialize(from)? else {
        return Ok(None);
    };
    if number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number) {
        Ok(Some(number as u32))
    } else {
        Err(D::Error::custom(format_args!(
            "{number} is not a whole number from 0 to {}",
            u32::MAX
        )))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Body {
        #[serde(default, deserialize_with = "whole_number")]
        days: Option<u32>,
    }

    fn days(value: &str) -> Result<Option<u32>, serde_json::Error> {
        serde_json::from_str(&format!("{{\"days\": {value}}}")).map(|body: Body| body.days)
    }

    #[test]
    fn whole_numbers_are_those_of_json_schema() {
        for (value, expected) in [
            ("7", Some(7)),
            ("7.0", Some(7)),
            ("0", Some(0)),
            ("-0", Some(0)),
            ("4294967295", Some(u32::MAX)),
            ("1e3", Some(1000)),
            ("null", None),
        ] {
            assert_eq!(days(value).unwrap(), expected, "{value}");
        }
        for value in [
            "7.5",
            "-1",
            "4294967296",
            "1e300",
            "1e-5",
            "\"7\"",
            "true",
            "[]",
        ] {
            assert!(days(value).is_err(), "{value}");
        }
        assert_eq!(serde_json::from_str::<Body>("{}").unwrap().days, None);
    }
}

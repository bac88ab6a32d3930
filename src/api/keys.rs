//! API keys: make, list, revoke.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Api;
use super::body::{self, Bound, ContentType};
use super::caller::{Authenticated, PathId};
use super::problem::Problem;
use super::values;
use crate::auth::{KeyPrincipal, Scopes};
use crate::failure::{Failure, code};
use crate::limits::Tier;
use crate::store::keys::{Key, NewKeyRow};

/// Keys a user may have that are neither revoked nor expired.
const LIVE_KEYS_MAX: usize = 100;
/// Revoked and expired keys a list shows, the newest.
const ENDED_KEYS_LISTED_MAX: usize = 400;
const NAME_BYTES_MAX: usize = 100;
const NAME_DEFAULT: &str = "API key";
const LIFETIME_DAYS_MAX: u32 = 3650;
const BODY: Bound = Bound {
    what: "the request body",
    bytes_max: 16 * 1024,
    setting: None,
};
/// Longest wait for the requests that make a key before this one.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
/// Characters of a JSON error that the client gets to read; it may quote the body.
const JSON_ERROR_CHARS_MAX: usize = 200;

/// The body of a request for a key; all of it is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKeyRequest {
    name: Option<String>,
    expires_in_days: Option<u32>,
    /// RFC 3339.
    expires_at: Option<String>,
    tier: Option<Tier>,
    scopes: Option<Scopes>,
}

/// A key just made. The only answer that ever holds a secret.
#[derive(Serialize)]
struct Created {
    api_key: String,
    api_key_id: Uuid,
    name: String,
    prefix: String,
    tier: Tier,
    scopes: Scopes,
    created_at: String,
    expires_at: Option<String>,
}

#[derive(Serialize)]
struct Listed {
    id: Uuid,
    name: String,
    prefix: String,
    tier: Tier,
    scopes: Scopes,
    created_at: String,
    expires_at: Option<String>,
    revoked_at: Option<String>,
    last_used_at: Option<String>,
}

#[derive(Serialize)]
struct List {
    keys: Vec<Listed>,
}

/// A request for a key, read and found good.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    name: String,
    tier: Tier,
    scopes: Scopes,
    expires_at: Option<DateTime<Utc>>,
}

/// What a key that is made may have at most: what its maker has.
#[derive(Debug, Clone, Copy)]
struct Ceiling {
    tier: Tier,
    scopes: Scopes,
    expires_at: Option<DateTime<Utc>>,
}

impl Ceiling {
    fn of(maker: &KeyPrincipal) -> Ceiling {
        Ceiling {
            tier: maker.tier,
            scopes: maker.scopes,
            expires_at: maker.expires_at,
        }
    }
}

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    request: Request,
) -> Result<Response, Problem> {
    let user_id = caller.principal.user_id;
    let now = Utc::now();
    let ceiling = Ceiling::of(&caller.principal);
    let wanted = wanted(read_request(request).await?, ceiling, now)?;
    let new = api.state.auth.new_key()?;
    let row = NewKeyRow {
        user_id,
        name: &wanted.name,
        prefix: &new.prefix,
        hash: new.hash,
        tier: wanted.tier,
        scopes: wanted.scopes,
        expires_at: wanted.expires_at,
    };
    let counted = tokio::time::timeout(TURN_TIMEOUT, api.state.key_creation.lock())
        .await
        .map_err(|_| {
            Failure::unavailable(
                code::DATABASE_UNAVAILABLE,
                "the database is too busy; try again",
            )
        })?;
    let keys = api.state.store.keys_of_user(user_id).await?;
    if keys.iter().filter(|key| is_live(key, now)).count() >= LIVE_KEYS_MAX {
        return Err(Failure::conflict(
            code::TOO_MANY_KEYS,
            format!("you have {LIVE_KEYS_MAX} API keys, the most there may be: revoke one first"),
        )
        .into());
    }
    let key = api.state.store.key_create(row).await?;
    drop(counted);
    let created = Created {
        api_key: new.secret,
        api_key_id: key.id,
        name: key.name,
        prefix: key.prefix,
        tier: key.tier,
        scopes: key.scopes,
        created_at: values::timestamp(key.created_at),
        expires_at: key.expires_at.map(values::timestamp),
    };
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
) -> Result<Response, Problem> {
    let keys = api
        .state
        .store
        .keys_of_user(caller.principal.user_id)
        .await?;
    let keys = shown(keys, Utc::now())
        .into_iter()
        .map(Listed::from)
        .collect();
    Ok(Json(List { keys }).into_response())
}

pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    PathId(id): PathId,
) -> Result<StatusCode, Problem> {
    let user_id = caller.principal.user_id;
    api.state
        .store
        .key_revoke(id, Some(user_id), Utc::now())
        .await?;
    api.state.auth.forget(id);
    Ok(StatusCode::NO_CONTENT)
}

/// The request, from an optional JSON body.
async fn read_request(request: Request) -> Result<NewKeyRequest, Problem> {
    let content_type = body::content_type(request.headers())?;
    let bytes = body::read(request.into_body(), BODY).await?;
    if bytes.is_empty() {
        return Ok(NewKeyRequest::default());
    }
    match content_type {
        ContentType::Other(kind) if kind == "application/json" => {
            parse(&bytes).map_err(Problem::from)
        }
        ContentType::Other(_) | ContentType::Missing | ContentType::Multipart { .. } => {
            Err(Failure::unsupported_media_type("send the body as application/json").into())
        }
    }
}

fn parse(bytes: &[u8]) -> Result<NewKeyRequest, Failure> {
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(Failure::new(
            StatusCode::BAD_REQUEST,
            code::MALFORMED_JSON,
            "the body must be a JSON object, such as {\"name\": \"laptop\"}",
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        // The position stands at the end of serde_json's message, where a cut would lose it.
        let (line, column) = (error.line(), error.column());
        let message = error.to_string();
        let message = message
            .strip_suffix(&format!(" at line {line} column {column}"))
            .unwrap_or(&message);
        let message: String = message.chars().take(JSON_ERROR_CHARS_MAX).collect();
        Failure::new(
            StatusCode::BAD_REQUEST,
            code::MALFORMED_JSON,
            format!("the body at line {line}, column {column}: {message}"),
        )
    })
}

fn wanted(request: NewKeyRequest, ceiling: Ceiling, now: DateTime<Utc>) -> Result<Wanted, Failure> {
    let name = request.name.as_deref().unwrap_or(NAME_DEFAULT);
    let name = values::name("name", name.as_bytes(), NAME_BYTES_MAX)?.to_owned();
    let tier = request.tier.unwrap_or(ceiling.tier);
    if tier > ceiling.tier {
        return Err(Failure::tier_too_low(
            "a key can't have a higher tier than the key that makes it",
        ));
    }
    let scopes = request.scopes.unwrap_or(ceiling.scopes);
    if scopes.is_empty() {
        return Err(Failure::bad_request("`scopes` must name at least one"));
    }
    if let Some(lacking) = scopes.iter().find(|&scope| !ceiling.scopes.has(scope)) {
        return Err(Failure::insufficient_scope(lacking.as_str()));
    }
    let asked = expiry(request.expires_in_days, request.expires_at.as_deref(), now)?;
    // A key that ends can't leave one behind that does not: it would outlive its own theft.
    let expires_at = match (asked, ceiling.expires_at) {
        (Some(asked), Some(own)) if asked > own => {
            return Err(Failure::bad_request(
                "a key can't outlive the key that makes it; ask for an earlier end",
            ));
        }
        (asked, own) => asked.or(own),
    };
    Ok(Wanted {
        name,
        tier,
        scopes,
        expires_at,
    })
}

fn expiry(
    days: Option<u32>,
    at: Option<&str>,
    now: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, Failure> {
    let latest = now + TimeDelta::days(i64::from(LIFETIME_DAYS_MAX));
    match (days, at) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(Failure::bad_request(
            "give `expires_in_days` or `expires_at`, not both",
        )),
        (Some(days), None) if (1..=LIFETIME_DAYS_MAX).contains(&days) => {
            Ok(Some(now + TimeDelta::days(i64::from(days))))
        }
        (Some(_), None) => Err(Failure::bad_request(format!(
            "`expires_in_days` must be a number from 1 to {LIFETIME_DAYS_MAX}"
        ))),
        (None, Some(at)) => match DateTime::parse_from_rfc3339(at) {
            Ok(at) if now < at && at <= latest => Ok(Some(at.to_utc())),
            Ok(_) => Err(Failure::bad_request(format!(
                "`expires_at` must be in the future, and at most {LIFETIME_DAYS_MAX} days away"
            ))),
            Err(_) => Err(Failure::bad_request(
                "`expires_at` must be an RFC 3339 time like 2030-01-31T12:00:00Z",
            )),
        },
    }
}

fn is_live(key: &Key, now: DateTime<Utc>) -> bool {
    key.revoked_at.is_none() && key.expires_at.is_none_or(|at| at > now)
}

/// All live keys, and the newest of those that have ended.
fn shown(keys: Vec<Key>, now: DateTime<Utc>) -> Vec<Key> {
    let mut ended = 0;
    let mut keys = keys;
    keys.retain(|key| {
        if is_live(key, now) {
            return true;
        }
        ended += 1;
        ended <= ENDED_KEYS_LISTED_MAX
    });
    keys
}

impl From<Key> for Listed {
    fn from(key: Key) -> Listed {
        Listed {
            id: key.id,
            name: key.name,
            prefix: key.prefix,
            tier: key.tier,
            scopes: key.scopes,
            created_at: values::timestamp(key.created_at),
            expires_at: key.expires_at.map(values::timestamp),
            revoked_at: key.revoked_at.map(values::timestamp),
            last_used_at: key.last_used_at.map(values::timestamp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2025-06-01T00:00:00Z";

    fn now() -> DateTime<Utc> {
        NOW.parse().unwrap()
    }

    fn scopes() -> Scopes {
        "execute keys".parse().unwrap()
    }

    fn asked(json: &str, own_tier: Tier) -> Result<Wanted, (u16, &'static str, String)> {
        let ceiling = Ceiling {
            tier: own_tier,
            scopes: scopes(),
            expires_at: None,
        };
        parse(json.as_bytes())
            .and_then(|request| wanted(request, ceiling, now()))
            .map_err(|failure| {
                (
                    failure.status.as_u16(),
                    failure.code,
                    failure.message.into_owned(),
                )
            })
    }

    fn key(name: &str, expires_at: Option<&str>, revoked_at: Option<&str>) -> Key {
        Key {
            id: Uuid::nil(),
            user_id: Uuid::nil(),
            name: name.into(),
            prefix: "ww_".into(),
            tier: Tier::Free,
            scopes: scopes(),
            created_at: now(),
            expires_at: expires_at.map(|at| at.parse().unwrap()),
            revoked_at: revoked_at.map(|at| at.parse().unwrap()),
            last_used_at: None,
        }
    }

    #[test]
    fn an_empty_request_gives_a_key_like_its_maker() {
        let wanted = asked("{}", Tier::Pro).unwrap();
        assert_eq!(
            wanted,
            Wanted {
                name: NAME_DEFAULT.into(),
                tier: Tier::Pro,
                scopes: scopes(),
                expires_at: None
            }
        );
    }

    #[test]
    fn a_tier_may_be_lower_but_not_higher() {
        assert_eq!(
            asked(r#"{"tier":"free"}"#, Tier::Basic).unwrap().tier,
            Tier::Free
        );
        assert_eq!(
            asked(r#"{"tier":"basic"}"#, Tier::Basic).unwrap().tier,
            Tier::Basic
        );
        let (status, code, _) = asked(r#"{"tier":"enterprise"}"#, Tier::Pro).unwrap_err();
        assert_eq!((status, code), (402, "tier_too_low"));
        assert_eq!(
            asked(r#"{"tier":"gold"}"#, Tier::Pro).unwrap_err().1,
            "malformed_json"
        );
    }

    #[test]
    fn scopes_may_be_fewer_but_not_others() {
        let scopes = |json: &str| asked(json, Tier::Free).map(|wanted| wanted.scopes.to_string());
        assert_eq!(scopes(r#"{"scopes":["keys"]}"#), Ok("keys".to_owned()));
        for more in [r#"["admin"]"#, r#"["execute","keys","modules:read"]"#] {
            let (status, code, message) = scopes(&format!("{{\"scopes\":{more}}}")).unwrap_err();
            assert_eq!((status, code), (403, "insufficient_scope"), "{message}");
        }
        assert_eq!(scopes(r#"{"scopes":[]}"#).unwrap_err().0, 400);
        for bad in [r#"{"scopes":["root"]}"#, r#"{"scopes":"keys"}"#] {
            assert_eq!(scopes(bad).unwrap_err().1, "malformed_json", "{bad}");
        }
    }

    #[test]
    fn a_key_that_ends_makes_none_that_lasts_longer() {
        let own: DateTime<Utc> = "2025-06-11T00:00:00Z".parse().unwrap();
        let ceiling = Ceiling {
            tier: Tier::Free,
            scopes: scopes(),
            expires_at: Some(own),
        };
        let expiry = |json: &str| {
            wanted(parse(json.as_bytes()).unwrap(), ceiling, now()).map(|wanted| wanted.expires_at)
        };
        assert_eq!(expiry("{}"), Ok(Some(own)));
        assert_eq!(expiry(r#"{"expires_in_days":10}"#), Ok(Some(own)));
        let sooner = expiry(r#"{"expires_in_days":9}"#).unwrap().unwrap();
        assert!(sooner < own);
        assert_eq!(expiry(r#"{"expires_in_days":11}"#).unwrap_err().status, 400);
    }

    #[test]
    fn an_expiry_is_in_days_or_a_time_within_ten_years() {
        let at = |json: &str| {
            asked(json, Tier::Free).map(|wanted| wanted.expires_at.map(values::timestamp))
        };
        let expected = |time: &str| Ok(Some(time.to_owned()));
        assert_eq!(
            at(r#"{"expires_in_days":1}"#),
            expected("2025-06-02T00:00:00.000000Z")
        );
        let zoned = r#"{"expires_at":"2025-06-01T02:00:01+02:00"}"#;
        assert_eq!(at(zoned), expected("2025-06-01T00:00:01.000000Z"));
        for bad in [
            r#"{"expires_in_days":0}"#,
            r#"{"expires_in_days":3651}"#,
            r#"{"expires_in_days":4294967296}"#,
            r#"{"expires_in_days":-1}"#,
            r#"{"expires_in_days":1.5}"#,
            r#"{"expires_at":"2025-06-01T00:00:00Z"}"#,
            r#"{"expires_at":"2024-01-01T00:00:00Z"}"#,
            r#"{"expires_at":"2999-01-01T00:00:00Z"}"#,
            r#"{"expires_at":"2026-01-01"}"#,
            r#"{"expires_at":"soon"}"#,
            r#"{"expires_in_days":1,"expires_at":"2026-01-01T00:00:00Z"}"#,
        ] {
            assert_eq!(at(bad).unwrap_err().0, 400, "{bad}");
        }
    }

    #[test]
    fn json_that_can_not_be_read_is_told_by_its_position() {
        let (status, code, message) = asked("{\n  \"name\": 5}", Tier::Free).unwrap_err();
        assert_eq!((status, code), (400, "malformed_json"));
        assert!(
            message.starts_with("the body at line 2, column 11:"),
            "{message}"
        );
        let (_, _, message) = asked(r#"{"admin":true}"#, Tier::Free).unwrap_err();
        assert!(message.contains("admin"), "{message}");
        for bad in [
            "",
            "[]",
            "null",
            "{",
            "{}{}",
            "{\"name\":\"a\",\"name\":\"b\"}",
            "\u{feff}{}",
        ] {
            assert_eq!(
                asked(bad, Tier::Free).unwrap_err().1,
                "malformed_json",
                "{bad:?}"
            );
        }
        let long = format!(r#"{{"{}":1}}"#, "x".repeat(10_000));
        assert!(asked(&long, Tier::Free).unwrap_err().2.len() < 400);
    }

    #[test]
    fn a_name_has_bounds() {
        let name = |text: &str| asked(&serde_json::json!({ "name": text }).to_string(), Tier::Free);
        assert_eq!(name(&"n".repeat(100)).unwrap().name.len(), 100);
        for bad in ["", " ", &"n".repeat(101), "a\u{0}b"] {
            assert_eq!(name(bad).unwrap_err().0, 400, "{bad:?}");
        }
    }

    #[test]
    fn a_list_shows_every_live_key_however_many_have_ended() {
        let mut keys: Vec<Key> = (0..1000).map(|_| key("revoked", None, Some(NOW))).collect();
        keys.push(key("live", Some("2025-06-01T00:00:01Z"), None));
        keys.push(key("expired", Some(NOW), None));
        keys.push(key("eternal", None, None));
        let shown = shown(keys, now());
        assert_eq!(shown.len(), ENDED_KEYS_LISTED_MAX + 2);
        assert!(shown.iter().any(|key| key.name == "live"));
        assert!(shown.iter().any(|key| key.name == "eternal"));
    }
}

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
use super::caller::{Authenticated, PathId};
use super::json;
use super::problem::Problem;
use super::values;
use crate::auth::{KeyPrincipal, Scopes};
use crate::failure::{Failure, code};
use crate::limits::Tier;
use crate::store::changes::Changed;
use crate::store::keys::{Key, NewKeyRow};
use crate::store::rotations::Rotation;

/// Keys a user may have that are neither revoked nor expired.
const LIVE_KEYS_MAX: usize = 100;
/// Revoked and expired keys a list shows, the newest.
const ENDED_KEYS_LISTED_MAX: usize = 400;
const NAME_BYTES_MAX: usize = 100;
const NAME_DEFAULT: &str = "API key";
const LIFETIME_DAYS_MAX: u32 = 3650;
/// Longest wait for the requests that make a key before this one.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an old key goes on working beside the one that takes its place.
const OVERLAP_SECONDS_DEFAULT: u32 = 24 * 3600;
const OVERLAP_SECONDS_MAX: u32 = 30 * 24 * 3600;
const EXAMPLE: &str = r#"{"name": "laptop"}"#;
const ROTATE_EXAMPLE: &str = r#"{"overlap_seconds": 3600}"#;

/// The body of a request for a key; all of it is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKeyRequest {
    name: Option<String>,
    #[serde(default, deserialize_with = "json::whole_number")]
    expires_in_days: Option<u32>,
    /// RFC 3339.
    expires_at: Option<String>,
    tier: Option<Tier>,
    scopes: Option<Scopes>,
}

/// A key just made. The only answer that ever holds a secret.
#[derive(Serialize)]
pub(super) struct Created {
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
pub(super) struct Listed {
    id: Uuid,
    name: String,
    prefix: String,
    tier: Tier,
    scopes: Scopes,
    created_at: String,
    expires_at: Option<String>,
    revoked_at: Option<String>,
    last_used_at: Option<String>,
    /// The key that was made to take the place of this one.
    replaced_by: Option<Uuid>,
}

#[derive(Serialize)]
struct List {
    keys: Vec<Listed>,
}

/// The body of a request to rotate a key.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RotateRequest {
    #[serde(default, deserialize_with = "json::whole_number")]
    overlap_seconds: Option<u32>,
}

/// A key that took the place of another.
#[derive(Serialize)]
struct Rotated {
    #[serde(flatten)]
    key: Created,
    replaces: Replaced,
}

#[derive(Serialize)]
struct Replaced {
    api_key_id: Uuid,
    expires_at: Option<String>,
}

impl Created {
    pub(super) fn of(key: Key, secret: String) -> Created {
        Created {
            api_key: secret,
            api_key_id: key.id,
            name: key.name,
            prefix: key.prefix,
            tier: key.tier,
            scopes: key.scopes,
            created_at: values::timestamp(key.created_at),
            expires_at: key.expires_at.map(values::timestamp),
        }
    }
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
pub(super) struct Ceiling {
    pub(super) tier: Tier,
    pub(super) scopes: Scopes,
    pub(super) expires_at: Option<DateTime<Utc>>,
}

impl Ceiling {
    pub(super) fn of(maker: &KeyPrincipal) -> Ceiling {
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
    let asked = json::read(request, EXAMPLE).await?.unwrap_or_default();
    let ceiling = Ceiling::of(&caller.principal);
    let user_id = caller.principal.user_id;
    let created = api.make_key(&caller, user_id, asked, ceiling).await?;
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

impl Api {
    /// Makes a key for a user within a ceiling.
    pub(super) async fn make_key(
        &self,
        caller: &Authenticated,
        user_id: Uuid,
        asked: NewKeyRequest,
        ceiling: Ceiling,
    ) -> Result<Created, Problem> {
        let now = Utc::now();
        let wanted = wanted(asked, ceiling, now)?;
        let new = self.state.auth.new_key()?;
        let row = NewKeyRow {
            user_id,
            name: &wanted.name,
            prefix: &new.prefix,
            hash: new.hash,
            tier: wanted.tier,
            scopes: wanted.scopes,
            expires_at: wanted.expires_at,
        };
        let turn = self.turn_for_one_more_key(user_id, now).await?;
        let key = self.store_for(caller).key_create(row).await?;
        drop(turn);
        Ok(Created::of(key, new.secret))
    }

    /// Waits until no other key is being made, and says whether the user may have one more.
    async fn turn_for_one_more_key(
        &self,
        user_id: Uuid,
        now: DateTime<Utc>,
    ) -> Result<tokio::sync::MutexGuard<'_, ()>, Problem> {
        let turn = tokio::time::timeout(TURN_TIMEOUT, self.state.key_creation.lock())
            .await
            .map_err(|_| {
                Failure::unavailable(
                    code::DATABASE_UNAVAILABLE,
                    "the database is too busy; try again",
                )
            })?;
        let keys = self.state.store.keys_of_user(user_id).await?;
        if keys.iter().filter(|key| key.is_live(now)).count() >= LIVE_KEYS_MAX {
            return Err(Failure::conflict(
                code::TOO_MANY_KEYS,
                format!(
                    "there are {LIVE_KEYS_MAX} API keys, the most a user may have: revoke one first"
                ),
            )
            .into());
        }
        Ok(turn)
    }
}

/// Makes a key that takes the place of another, which goes on working for the time of the overlap.
pub(super) async fn rotate(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    PathId(id): PathId,
    request: Request,
) -> Result<Response, Problem> {
    let asked = json::read(request, ROTATE_EXAMPLE).await?;
    let RotateRequest { overlap_seconds } = asked.unwrap_or_default();
    let overlap_seconds = overlap_seconds.unwrap_or(OVERLAP_SECONDS_DEFAULT);
    if overlap_seconds > OVERLAP_SECONDS_MAX {
        return Err(Failure::bad_request(format!(
            "`overlap_seconds` must be a number from 0 to {OVERLAP_SECONDS_MAX}"
        ))
        .into());
    }
    let (user_id, now) = (caller.principal.user_id, Utc::now());
    let old = api.state.store.key(id).await?;
    let old = old.filter(|key| key.user_id == user_id && key.is_live(now));
    let old = old.ok_or_else(|| Failure::not_found("API key not found"))?;
    within(&old, Ceiling::of(&caller.principal))?;
    let new = api.state.auth.new_key()?;
    let rotation = Rotation {
        old: &old,
        prefix: &new.prefix,
        hash: new.hash,
        old_ends_at: now + TimeDelta::seconds(i64::from(overlap_seconds)),
    };
    let store = api.store_for(&caller);
    // Where the old key ends at once there is no key more than before.
    let turn = match overlap_seconds {
        0 => None,
        1.. => Some(api.turn_for_one_more_key(user_id, now).await?),
    };
    let (made, ended) = store.key_rotate(rotation, now).await?;
    drop(turn);
    api.state.auth.changed(Changed::Key(id)).await;
    let rotated = Rotated {
        key: Created::of(made, new.secret),
        replaces: Replaced {
            api_key_id: ended.id,
            expires_at: ended.expires_at.map(values::timestamp),
        },
    };
    Ok((StatusCode::CREATED, Json(rotated)).into_response())
}

/// A key may get the secret of another one only where it could make one like it.
fn within(old: &Key, ceiling: Ceiling) -> Result<(), Failure> {
    if old.tier > ceiling.tier {
        return Err(Failure::tier_too_low(
            "a key can't rotate one that has a higher tier",
        ));
    }
    if let Some(lacking) = old.scopes.iter().find(|&scope| !ceiling.scopes.has(scope)) {
        return Err(Failure::insufficient_scope(lacking.as_str()));
    }
    match (ceiling.expires_at, old.expires_at) {
        (Some(own), Some(at)) if at <= own => Ok(()),
        (None, _) => Ok(()),
        (Some(_), _) => Err(Failure::forbidden(
            "a key can't rotate one that outlives it; use a key that ends later",
        )),
    }
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
    let store = api.store_for(&caller);
    store.key_revoke(id, Some(user_id), Utc::now()).await?;
    api.state.auth.changed(Changed::Key(id)).await;
    Ok(StatusCode::NO_CONTENT)
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

/// All live keys, and the newest of those that have ended.
fn shown(keys: Vec<Key>, now: DateTime<Utc>) -> Vec<Key> {
    let mut ended = 0;
    let mut keys = keys;
    keys.retain(|key| {
        if key.is_live(now) {
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
            replaced_by: key.replaced_by,
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
        json::parse(json.as_bytes(), EXAMPLE)
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
            replaced_by: None,
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
            wanted(
                json::parse(json.as_bytes(), EXAMPLE).unwrap(),
                ceiling,
                now(),
            )
            .map(|wanted| wanted.expires_at)
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

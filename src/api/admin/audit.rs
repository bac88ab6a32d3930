//! The audit: who changed what, newest first.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::super::Api;
use super::super::problem::Problem;
use super::super::query::Query;
use super::super::values;
use super::id;
use crate::failure::Failure;
use crate::store::audit::{ActorKind, Entry, Filter, PAGE_ENTRIES_MAX};

const LIMIT_DEFAULT: u32 = 50;
const ACTION_BYTES_MAX: usize = 64;

#[derive(Serialize)]
struct Shown {
    id: Uuid,
    at: String,
    actor: ActorKind,
    user_id: Option<Uuid>,
    key_id: Option<Uuid>,
    operator: Option<String>,
    address: Option<String>,
    request_id: Option<String>,
    action: String,
    subject_id: Option<Uuid>,
    before: Option<Value>,
    after: Option<Value>,
}

#[derive(Serialize)]
struct Page {
    entries: Vec<Shown>,
    /// What to give as `before` for the entries after these; `null` when there are none.
    next: Option<Uuid>,
}

pub(in crate::api) async fn list(
    State(api): State<Arc<Api>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::parse(uri.query())?;
    let limit = match query.value("limit")? {
        Some(value) => values::number("limit", value, 1..=PAGE_ENTRIES_MAX)?,
        None => LIMIT_DEFAULT,
    };
    let asked = match query.value("action")? {
        Some(value) => Some(action(value)?),
        None => None,
    };
    let filter = Filter {
        user_id: id(&query, "user_id")?,
        key_id: id(&query, "key_id")?,
        subject_id: id(&query, "subject_id")?,
        action: asked,
        since: time(&query, "since")?,
        until: time(&query, "until")?,
        before: id(&query, "before")?,
    };
    let entries = api.state.store.audit_page(&filter, limit).await?;
    let is_full = entries.len() == limit as usize;
    let next = entries.last().map(|entry| entry.id).filter(|_| is_full);
    let entries = entries.into_iter().map(Shown::from).collect();
    Ok(Json(Page { entries, next }).into_response())
}

/// An action's name; what none can be is told instead of finding nothing.
fn action(value: &[u8]) -> Result<&str, Failure> {
    let text = values::text("action", value, ACTION_BYTES_MAX)?;
    let has_form = |byte: u8| byte.is_ascii_lowercase() || matches!(byte, b'.' | b'_');
    if text.is_empty() || !text.bytes().all(has_form) {
        return Err(Failure::bad_request(
            "`action` must be an action such as key.revoke",
        ));
    }
    Ok(text)
}

fn time(query: &Query, name: &str) -> Result<Option<DateTime<Utc>>, Failure> {
    let Some(value) = query.value(name)? else {
        return Ok(None);
    };
    let time = std::str::from_utf8(value)
        .ok()
        .and_then(|text| DateTime::parse_from_rfc3339(text).ok());
    time.map(|time| Some(time.to_utc())).ok_or_else(|| {
        Failure::bad_request(format!(
            "`{name}` must be an RFC 3339 time like 2030-01-31T12:00:00Z"
        ))
    })
}

impl From<Entry> for Shown {
    fn from(entry: Entry) -> Shown {
        Shown {
            id: entry.id,
            at: values::timestamp(entry.at),
            actor: entry.actor,
            user_id: entry.user_id,
            key_id: entry.key_id,
            operator: entry.operator,
            address: entry.address,
            request_id: entry.request_id,
            action: entry.action,
            subject_id: entry.subject_id,
            before: entry.before,
            after: entry.after,
        }
    }
}

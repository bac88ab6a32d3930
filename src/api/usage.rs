//! What executions used: one's own, and, for operators, everybody's.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use chrono::{Days, NaiveDate, Utc};
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Api;
use super::caller::Authenticated;
use super::problem::Problem;
use super::query::Query;
use super::values;
use crate::auth::Role;
use crate::failure::Failure;
use crate::sandbox::ModuleHash;
use crate::store::usage::{Execution, Filter, GroupBy, Total};

/// Days that are shown where none are asked for, today included.
const DAYS_DEFAULT: u64 = 30;
const PAGE_LIMIT_DEFAULT: u32 = 100;
const PAGE_LIMIT_MAX: u32 = 1000;
/// Pages of sums: whoever needs more asks for fewer days.
const PAGE_MAX: u32 = 10_000;

/// Whose usage is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Own(Uuid),
    /// An operator's question: anybody's, or a user's that the query names.
    Anybodys,
}

#[derive(Serialize)]
struct Sums {
    from: NaiveDate,
    to: NaiveDate,
    group_by: Vec<&'static str>,
    usage: Vec<Value>,
    page: u32,
    limit: u32,
    has_next: bool,
}

#[derive(Serialize)]
struct Executions {
    executions: Vec<Value>,
    /// What `before` must be to see those after these; null where there are none.
    next: Option<Uuid>,
}

pub(super) async fn own(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    uri: Uri,
) -> Result<Response, Problem> {
    sums(&api, Whose::Own(caller.principal.user_id), &uri).await
}

pub(super) async fn own_executions(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    uri: Uri,
) -> Result<Response, Problem> {
    executions(&api, Whose::Own(caller.principal.user_id), &uri).await
}

pub(super) async fn all(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    uri: Uri,
) -> Result<Response, Problem> {
    require_operator(&caller)?;
    sums(&api, Whose::Anybodys, &uri).await
}

pub(super) async fn all_executions(
    State(api): State<Arc<Api>>,
    caller: Authenticated,
    uri: Uri,
) -> Result<Response, Problem> {
    require_operator(&caller)?;
    executions(&api, Whose::Anybodys, &uri).await
}

fn require_operator(caller: &Authenticated) -> Result<(), Failure> {
    if caller.principal.role >= Role::Support {
        Ok(())
    } else {
        Err(Failure::forbidden(
            "everybody's usage is for users with the role support or admin",
        ))
    }
}

async fn sums(api: &Api, whose: Whose, uri: &Uri) -> Result<Response, Problem> {
    let query = Query::parse(uri.query())?;
    let filter = filter(&query, whose)?;
    let (by, group_by) = grouping(&query, whose)?;
    let page = number(&query, "page", 1, PAGE_MAX)?;
    let limit = number(&query, "limit", PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX)?;
    // One more than is shown says whether there are more.
    let store = &api.state.store;
    let mut found = store.usage_totals(&filter, by, page, limit, 1).await?;
    let has_next = found.len() > limit as usize;
    found.truncate(limit as usize);
    let usage = found.iter().map(|total| shown_total(total, by)).collect();
    Ok(Json(Sums {
        from: filter.from,
        to: filter.to,
        group_by,
        usage,
        page,
        limit,
        has_next,
    })
    .into_response())
}

async fn executions(api: &Api, whose: Whose, uri: &Uri) -> Result<Response, Problem> {
    let query = Query::parse(uri.query())?;
    for name in ["key_id", "sha256_hash"] {
        // To look for the few that match would take reading all of them.
        if query.value(name)?.is_some() {
            return Err(Failure::bad_request(format!(
                "`{name}` is for sums only; executions have it, so pick them out of the list"
            ))
            .into());
        }
    }
    let filter = filter(&query, whose)?;
    let before = match query.value("before")? {
        Some(value) => Some(uuid("before", value)?),
        None => None,
    };
    let limit = number(&query, "limit", PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX)?;
    let store = &api.state.store;
    let mut found = store.usage_executions(&filter, before, limit + 1).await?;
    let has_next = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next = found.last().filter(|_| has_next).map(|last| last.id);
    let shown = |execution| shown_execution(execution, whose);
    let executions = found.iter().map(shown).collect();
    Ok(Json(Executions { executions, next }).into_response())
}

fn number(query: &Query, name: &str, default: u32, max: u32) -> Result<u32, Failure> {
    match query.value(name)? {
        Some(value) => values::number(name, value, 1..=max),
        None => Ok(default),
    }
}

fn filter(query: &Query, whose: Whose) -> Result<Filter, Failure> {
    let today = Utc::now().date_naive();
    let day = |name| match query.value(name)? {
        Some(value) => values::day(name, value).map(Some),
        None => Ok(None),
    };
    let id = |name| match query.value(name)? {
        Some(value) => uuid(name, value).map(Some),
        None => Ok(None),
    };
    let to = day("to")?.unwrap_or(today);
    let from = day("from")?.unwrap_or_else(|| {
        let days = Days::new(DAYS_DEFAULT - 1);
        to.checked_sub_days(days).unwrap_or(to)
    });
    if from > to {
        return Err(Failure::bad_request("`from` must not be after `to`"));
    }
    let module = match query.value("sha256_hash")? {
        Some(value) => Some(module("sha256_hash", value)?),
        None => None,
    };
    let user_id = match whose {
        Whose::Own(user_id) => Some(user_id),
        Whose::Anybodys => id("user_id")?,
    };
    Ok(Filter {
        user_id,
        key_id: id("key_id")?,
        module,
        from,
        to,
    })
}

/// What the sums are split by: `group_by`, a list with commas; `day` where there is none.
fn grouping(query: &Query, whose: Whose) -> Result<(GroupBy, Vec<&'static str>), Failure> {
    let mut by = GroupBy::default();
    let asked = query.value("group_by")?.unwrap_or(b"day");
    for word in asked.split(|byte| *byte == b',') {
        match word {
            b"day" => by.day = true,
            b"user" if whose == Whose::Anybodys => by.user = true,
            b"key" => by.key = true,
            b"module" => by.module = true,
            b"status" => by.status = true,
            b"none" if asked == b"none" => {}
            _ => {
                return Err(Failure::bad_request(match whose {
                    Whose::Own(_) => {
                        "`group_by` must be none, or some of day, key, module and status, with commas between them"
                    }
                    Whose::Anybodys => {
                        "`group_by` must be none, or some of day, user, key, module and status, with commas between them"
                    }
                }));
            }
        }
    }
    let words = [
        (by.day, "day"),
        (by.user, "user"),
        (by.key, "key"),
        (by.module, "module"),
        (by.status, "status"),
    ];
    let words = words.into_iter().filter(|(is_asked, _)| *is_asked);
    Ok((by, words.map(|(_, word)| word).collect()))
}

fn uuid(name: &str, value: &[u8]) -> Result<Uuid, Failure> {
    Uuid::try_parse_ascii(value)
        .map_err(|_| Failure::bad_request(format!("`{name}` must be a UUID")))
}

fn module(name: &str, value: &[u8]) -> Result<ModuleHash, Failure> {
    let text = std::str::from_utf8(value).ok();
    text.and_then(ModuleHash::parse).ok_or_else(|| {
        Failure::bad_request(format!(
            "`{name}` must be a SHA-256 in 64 hexadecimal digits"
        ))
    })
}

fn shown_total(total: &Total, by: GroupBy) -> Value {
    let mut shown = Map::new();
    let mut show = |name: &str, value: Value| {
        shown.insert(name.to_owned(), value);
    };
    if by.day {
        show("day", json!(total.day));
    }
    if by.user {
        show("user_id", json!(total.user_id));
    }
    if by.key {
        show("key_id", json!(total.key_id));
    }
    if by.module {
        show("sha256_hash", json!(total.module.map(|m| m.to_string())));
    }
    if by.status {
        show("status", json!(total.status.map(|status| status.as_str())));
    }
    show("executions", json!(total.executions));
    show("duration_us", json!(total.wall_us));
    show("cpu_us", json!(total.cpu_us));
    show("memory_peak_bytes", json!(total.memory_peak_bytes));
    show("bytes_in", json!(total.bytes_in));
    show("bytes_out", json!(total.bytes_out));
    Value::Object(shown)
}

fn shown_execution(execution: &Execution, whose: Whose) -> Value {
    let mut shown = json!({
        "id": execution.id,
        "time": values::timestamp(execution.at),
        "key_id": execution.caller.map(|caller| caller.key_id),
        "sha256_hash": execution.module.map(|module| module.to_string()),
        "module_id": execution.module_id,
        "route": execution.route,
        "status": execution.status.as_str(),
        "duration_us": execution.wall_us,
        "cpu_us": execution.cpu_us,
        "memory_peak_bytes": execution.memory_peak_bytes,
        "bytes_in": execution.bytes_in,
        "bytes_out": execution.bytes_out,
        "request_id": execution.request_id,
    });
    if whose == Whose::Anybodys {
        shown["user_id"] = json!(execution.caller.map(|caller| caller.user_id));
    }
    shown
}

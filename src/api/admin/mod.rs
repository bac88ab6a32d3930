//! `/api/admin/…`: users, keys, tiers, modules and the audit, for support (who look) and admins (who
//! change).

pub(super) mod audit;
pub(super) mod keys;
pub(super) mod modules;
pub(super) mod tiers;
pub(super) mod users;

use uuid::Uuid;

use super::query::Query;
use super::values;
use crate::failure::Failure;

const PAGE_LIMIT_DEFAULT: u32 = 20;
const PAGE_LIMIT_MAX: u32 = 100;

/// Highest page: with the largest limit still within what databases count with, and far beyond what
/// anybody turns to.
const PAGE_MAX: u32 = 1_000_000;

/// Which page is asked for.
struct Paging {
    page: u32,
    limit: u32,
}

impl Paging {
    fn of(query: &Query) -> Result<Paging, Failure> {
        let number = |name, default, max| match query.value(name)? {
            Some(value) => values::number(name, value, 1..=max),
            None => Ok(default),
        };
        Ok(Paging {
            page: number("page", 1, PAGE_MAX)?,
            limit: number("limit", PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX)?,
        })
    }

    /// What is told beside a page of a list that has so many entries in all.
    fn told(&self, total: u64) -> PageFacts {
        PageFacts {
            page: self.page,
            limit: self.limit,
            total,
            has_next: u64::from(self.page) * u64::from(self.limit) < total,
        }
    }
}

/// Which page of a list it is.
#[derive(serde::Serialize)]
struct PageFacts {
    page: u32,
    limit: u32,
    total: u64,
    has_next: bool,
}

/// A parameter that is one of a closed set of words, read as JSON would be.
fn word<T: serde::de::DeserializeOwned>(query: &Query, name: &str) -> Result<Option<T>, Failure> {
    let Some(value) = query.value(name)? else {
        return Ok(None);
    };
    let text = values::text(name, value, 32)?;
    let parsed = serde_json::from_value(serde_json::Value::String(text.to_owned()));
    parsed
        .map(Some)
        .map_err(|error| Failure::bad_request(format!("`{name}`: {error}")))
}

fn id(query: &Query, name: &str) -> Result<Option<Uuid>, Failure> {
    let Some(value) = query.value(name)? else {
        return Ok(None);
    };
    let id = std::str::from_utf8(value)
        .ok()
        .and_then(|text| Uuid::try_parse(text).ok());
    id.map(Some)
        .ok_or_else(|| Failure::bad_request(format!("`{name}` must be a UUID")))
}

//! Usage as people ask for it: sums of days, and single executions.

use chrono::DateTime;
use chrono::{NaiveDate, Utc};
use uuid::Uuid;

use super::{Caller, Execution, Status};
use crate::sandbox::ModuleHash;
use crate::store::pool::on_connection;
use crate::store::values::Stamp;
use crate::store::{Store, StoreError};

/// Most rows on one page.
pub const PAGE_ROWS_MAX: u32 = 1_000;

/// Whose usage, and of which days (both included).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    /// `None` is everybody's, anonymous callers' included.
    pub user_id: Option<Uuid>,
    pub key_id: Option<Uuid>,
    pub module: Option<ModuleHash>,
    pub from: NaiveDate,
    pub to: NaiveDate,
}

/// What sums are split by; without any there is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupBy {
    pub day: bool,
    pub user: bool,
    pub key: bool,
    pub module: bool,
    pub status: bool,
}

/// A sum. What it is not split by is `None`, as are an anonymous user and key, and a module that came with its
/// request, or that there was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Total {
    pub day: Option<NaiveDate>,
    pub user_id: Option<Uuid>,
    pub key_id: Option<Uuid>,
    pub module: Option<ModuleHash>,
    pub status: Option<Status>,
    pub executions: u64,
    pub wall_us: u64,
    pub cpu_us: u64,
    /// The largest of any.
    pub memory_peak_bytes: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

#[derive(sqlx::FromRow)]
struct TotalRow {
    day: Option<NaiveDate>,
    user_id: Option<Uuid>,
    key_id: Option<Uuid>,
    module: Option<Vec<u8>>,
    status: Option<Status>,
    executions: i64,
    wall_us: i64,
    cpu_us: i64,
    memory_peak_bytes: i64,
    bytes_in: i64,
    bytes_out: i64,
}

#[derive(sqlx::FromRow)]
struct ExecutionRow {
    id: Uuid,
    at: Stamp,
    user_id: Option<Uuid>,
    key_id: Option<Uuid>,
    module: Option<ModuleHash>,
    module_id: Option<Uuid>,
    route: Option<String>,
    status: Status,
    wall_us: i64,
    cpu_us: i64,
    memory_peak_bytes: i64,
    bytes_in: i64,
    bytes_out: i64,
    request_id: String,
}

/// The rows of one of the tables with sums of days. `$user` is the first condition.
macro_rules! days {
    ($table:literal, $user:literal) => {
        concat!(
            "SELECT user_id, day, key_id, module, status, executions, wall_us, cpu_us, \
             memory_peak_bytes, bytes_in, bytes_out FROM ",
            $table,
            " WHERE ",
            $user,
            " AND day BETWEEN $2 AND $3 AND ($4 IS NULL OR key_id = $4) \
             AND ($5 IS NULL OR module = $5)"
        )
    };
}

/// Sums of [`TotalRow`]s, of both tables. The types of sums are named, because PostgreSQL
/// makes a sum of BIGINT a NUMERIC.
macro_rules! totals {
    ($user:literal) => {
        concat!(
            "SELECT CASE WHEN $7 THEN day END AS day, CASE WHEN $8 THEN user_id END AS user_id, \
             CASE WHEN $9 THEN key_id END AS key_id, CASE WHEN $10 THEN module END AS module, \
             CASE WHEN $11 THEN status END AS status, \
             CAST(SUM(executions) AS BIGINT) AS executions, \
             CAST(SUM(wall_us) AS BIGINT) AS wall_us, CAST(SUM(cpu_us) AS BIGINT) AS cpu_us, \
             MAX(memory_peak_bytes) AS memory_peak_bytes, \
             CAST(SUM(bytes_in) AS BIGINT) AS bytes_in, \
             CAST(SUM(bytes_out) AS BIGINT) AS bytes_out FROM (",
            days!("usage_daily", $user),
            " UNION ALL ",
            days!("usage_daily_exact", $user),
            ") AS days GROUP BY 1, 2, 3, 4, 5 \
             ORDER BY 1 DESC, 6 DESC, 2, 3, 4, 5 LIMIT $6 OFFSET $12"
        )
    };
}

/// Single executions, newest first.
macro_rules! executions {
    ($user:literal) => {
        concat!(
            "SELECT id, at, user_id, key_id, module, module_id, route, \
             COALESCE(exact_status, status) AS status, wall_us, cpu_us, memory_peak_bytes, \
             bytes_in, bytes_out, request_id FROM usage WHERE ",
            $user,
            " AND id >= $2 AND id < $3 AND ($4 IS NULL OR key_id = $4) \
             AND ($5 IS NULL OR module = $5) ORDER BY id DESC LIMIT $6"
        )
    };
}

impl Store {
    /// Sums, the newest day first, and of a day the most executions first. `page` is from 1; `limit` is at
    /// most [`PAGE_ROWS_MAX`] + 1, so that a caller can see whether there is more.
    pub async fn usage_totals(
        &self,
        filter: &Filter,
        by: GroupBy,
        page: u32,
        limit: u32,
        extra: u32,
    ) -> Result<Vec<Total>, StoreError> {
        let limit = limit.min(PAGE_ROWS_MAX);
        let offset = i64::from(page.saturating_sub(1)) * i64::from(limit);
        // Two texts, so that one user's usage is a walk of the primary key.
        let text = match filter.user_id {
            Some(_) => totals!("user_id = $1"),
            None => totals!("$1 IS NULL"),
        };
        on_connection!(self, |conn| {
            let rows: Vec<TotalRow> = sqlx::query_as(text)
                .bind(filter.user_id)
                .bind(filter.from)
                .bind(filter.to)
                .bind(filter.key_id)
                .bind(filter.module)
                .bind(i64::from(limit + extra))
                .bind(by.day)
                .bind(by.user)
                .bind(by.key)
                .bind(by.module)
                .bind(by.status)
                .bind(offset)
                .fetch_all(&mut *conn)
                .await?;
            rows.into_iter().map(Total::try_from).collect()
        })
    }

    /// Single executions before `before` (an id; `None` is the newest), newest first.
    pub async fn usage_executions(
        &self,
        filter: &Filter,
        before: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<Execution>, StoreError> {
        let text = match filter.user_id {
            Some(_) => executions!("user_id = $1"),
            None => executions!("$1 IS NULL"),
        };
        let from = first_id(filter.from);
        let end = filter.to.succ_opt().map_or(Uuid::max(), first_id);
        let end = before.map_or(end, |before| before.min(end));
        on_connection!(self, |conn| {
            let rows: Vec<ExecutionRow> = sqlx::query_as(text)
                .bind(filter.user_id)
                .bind(from)
                .bind(end)
                .bind(filter.key_id)
                .bind(filter.module)
                .bind(i64::from(limit.min(PAGE_ROWS_MAX + 1)))
                .fetch_all(&mut *conn)
                .await?;
            Ok(rows.into_iter().map(Execution::from).collect())
        })
    }
}

/// The least id of a day.
fn first_id(day: NaiveDate) -> Uuid {
    let midnight = day.and_time(chrono::NaiveTime::MIN).and_utc();
    super::first_id(midnight)
}

impl TryFrom<TotalRow> for Total {
    type Error = StoreError;

    fn try_from(row: TotalRow) -> Result<Total, StoreError> {
        let module = row.module.filter(|module| !module.is_empty());
        let module = module.map(|module| {
            <[u8; 32]>::try_from(module).map_err(|_| {
                StoreError::Internal("a module's hash in usage_daily is not 32 bytes".to_owned())
            })
        });
        // The columns' CHECKs keep these from being negative.
        Ok(Total {
            day: row.day,
            user_id: row.user_id.filter(|id| !id.is_nil()),
            key_id: row.key_id.filter(|id| !id.is_nil()),
            module: module.transpose()?.map(ModuleHash),
            status: row.status,
            executions: row.executions.unsigned_abs(),
            wall_us: row.wall_us.unsigned_abs(),
            cpu_us: row.cpu_us.unsigned_abs(),
            memory_peak_bytes: row.memory_peak_bytes.unsigned_abs(),
            bytes_in: row.bytes_in.unsigned_abs(),
            bytes_out: row.bytes_out.unsigned_abs(),
        })
    }
}

impl From<ExecutionRow> for Execution {
    fn from(row: ExecutionRow) -> Execution {
        let caller = row.user_id.zip(row.key_id);
        Execution {
            id: row.id,
            at: DateTime::<Utc>::from(row.at),
            caller: caller.map(|(user_id, key_id)| Caller { user_id, key_id }),
            module: row.module,
            module_id: row.module_id,
            route: row.route.map(Into::into),
            status: row.status,
            wall_us: row.wall_us.unsigned_abs(),
            cpu_us: row.cpu_us.unsigned_abs(),
            memory_peak_bytes: row.memory_peak_bytes.unsigned_abs(),
            bytes_in: row.bytes_in.unsigned_abs(),
            bytes_out: row.bytes_out.unsigned_abs(),
            request_id: row.request_id.into(),
        }
    }
}

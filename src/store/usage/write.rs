//! Rows on their way in, with what they add up to.

use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sqlx::error::BoxDynError;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, Postgres, Sqlite, Transaction};
use uuid::Uuid;

use super::sums::{Count, Days, Sum, Sums};
use super::{BATCH_ROWS_MAX, Execution, Status, used};
use crate::store::pool::Pool;
use crate::store::values::Stamp;
use crate::store::{Store, StoreError};

/// Adds a sum to its day's in one of the tables of sums.
macro_rules! sqlite_add {
    ($table:literal) => {
        concat!(
            "INSERT INTO ",
            $table,
            " (user_id, day, key_id, module, status, executions, wall_us, \
             cpu_us, memory_peak_bytes, bytes_in, bytes_out) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
             ON CONFLICT (user_id, day, key_id, module, status) DO UPDATE SET \
             executions = executions + excluded.executions, \
             wall_us = wall_us + excluded.wall_us, cpu_us = cpu_us + excluded.cpu_us, \
             memory_peak_bytes = MAX(memory_peak_bytes, excluded.memory_peak_bytes), \
             bytes_in = bytes_in + excluded.bytes_in, bytes_out = bytes_out + excluded.bytes_out"
        )
    };
}

/// The same for a column each, so that a batch is one statement.
macro_rules! postgres_add {
    ($table:literal) => {
        concat!(
            "INSERT INTO ",
            $table,
            " AS d (user_id, day, key_id, module, status, executions, wall_us, \
             cpu_us, memory_peak_bytes, bytes_in, bytes_out) \
             SELECT * FROM UNNEST($1::uuid[], $2::date[], $3::uuid[], $4::bytea[], $5::text[], \
             $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[]) \
             ON CONFLICT (user_id, day, key_id, module, status) DO UPDATE SET \
             executions = d.executions + excluded.executions, \
             wall_us = d.wall_us + excluded.wall_us, cpu_us = d.cpu_us + excluded.cpu_us, \
             memory_peak_bytes = GREATEST(d.memory_peak_bytes, excluded.memory_peak_bytes), \
             bytes_in = d.bytes_in + excluded.bytes_in, \
             bytes_out = d.bytes_out + excluded.bytes_out"
        )
    };
}

const SQLITE_DAYS: &str = sqlite_add!("usage_daily");
const SQLITE_EXACT_DAYS: &str = sqlite_add!("usage_daily_exact");
const POSTGRES_DAYS: &str = postgres_add!("usage_daily");
const POSTGRES_EXACT_DAYS: &str = postgres_add!("usage_daily_exact");

impl Store {
    /// Writes the rows that are not there yet, and adds them to the sums of their days and to the counts
    /// of their modules, in one transaction. Modules that are not there any more are passed over. Returns
    /// how many rows were new. A batch has at most [`BATCH_ROWS_MAX`] rows.
    ///
    /// # Errors
    /// Invalid when a row holds what no row may; then nothing was written.
    pub async fn usage_write(&self, executions: &[Execution]) -> Result<u64, StoreError> {
        if executions.is_empty() {
            return Ok(0);
        }
        if executions.len() > BATCH_ROWS_MAX {
            return Err(StoreError::Internal(format!(
                "{} usage rows are too many for one transaction",
                executions.len()
            )));
        }
        self.bounded(async {
            match self.pool() {
                Pool::Sqlite(sqlite) => {
                    let mut transaction = sqlite.begin().await?;
                    let sums = if sqlite_new_rows(&mut transaction, executions).await? {
                        Sums::of(executions.iter())
                    } else {
                        transaction.rollback().await?;
                        transaction = sqlite.begin().await?;
                        sqlite_rows(&mut transaction, executions).await?
                    };
                    sqlite_days(&mut transaction, SQLITE_DAYS, &sums.days).await?;
                    sqlite_days(&mut transaction, SQLITE_EXACT_DAYS, &sums.exact_days).await?;
                    sqlite_modules(&mut transaction, &sums.modules).await?;
                    transaction.commit().await?;
                    Ok(sums.rows)
                }
                Pool::Postgres(postgres) => {
                    let mut transaction = postgres.begin().await?;
                    let new = postgres_rows(&mut transaction, executions).await?;
                    let sums = sums_of(executions, new);
                    postgres_days(&mut transaction, POSTGRES_DAYS, &sums.days).await?;
                    postgres_days(&mut transaction, POSTGRES_EXACT_DAYS, &sums.exact_days).await?;
                    postgres_modules(&mut transaction, &sums.modules).await?;
                    transaction.commit().await?;
                    Ok(sums.rows)
                }
            }
        })
        .await
    }
}

/// What the rows that are new add. A batch that holds one twice counts it once.
fn sums_of(executions: &[Execution], mut new: HashSet<Uuid>) -> Sums {
    Sums::of(executions.iter().filter(|row| new.remove(&row.id)))
}

/// A row that breaks what a column asks for will never be taken, unlike one that meets a passing trouble.
fn of_row(error: sqlx::Error) -> StoreError {
    use sqlx::error::ErrorKind;
    let refused = error.as_database_error().is_some_and(|error| {
        // Class 22 of SQLSTATE is data that can't be, such as text that the database's encoding lacks.
        let is_data = error.code().is_some_and(|code| code.starts_with("22"));
        let is_postgres = error
            .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
            .is_some();
        match error.kind() {
            ErrorKind::CheckViolation | ErrorKind::NotNullViolation => true,
            // The driver's enum is open, so this can't be a list.
            _ => is_postgres && is_data,
        }
    });
    if refused {
        tracing::debug!(%error, "the database refuses a usage row");
        StoreError::Invalid("the database refuses a usage row")
    } else {
        StoreError::from(error)
    }
}

/// How many rows go into one statement, the larger number first, and one last.
const SQLITE_CHUNKS: [usize; 4] = [512, 64, 8, 1];

/// Writes rows of which none is there yet, as they are unless a gateway died; `false` when one is. What was
/// written until then has to be taken back. One statement for each row would cost two changes of threads for each.
async fn sqlite_new_rows(
    transaction: &mut Transaction<'_, Sqlite>,
    executions: &[Execution],
) -> Result<bool, StoreError> {
    let mut left = executions;
    for size in SQLITE_CHUNKS {
        while let Some((chunk, rest)) = left.split_at_checked(size) {
            if sqlite_insert(transaction, chunk).await? < size as u64 {
                return Ok(false);
            }
            left = rest;
        }
    }
    Ok(true)
}

/// Writes those rows that are not there yet, one by one, and says what they add.
async fn sqlite_rows(
    transaction: &mut Transaction<'_, Sqlite>,
    executions: &[Execution],
) -> Result<Sums, StoreError> {
    let mut sums = Sums::default();
    for row in executions {
        if sqlite_insert(transaction, std::slice::from_ref(row)).await? > 0 {
            sums.add(row);
        }
    }
    Ok(sums)
}

/// The statements that write so many rows as [`SQLITE_CHUNKS`] says. Their text is made once: it is longer than
/// what the rows hold.
static SQLITE_INSERTS: LazyLock<[String; SQLITE_CHUNKS.len()]> = LazyLock::new(|| {
    SQLITE_CHUNKS.map(|rows| {
        let row = format!("({})", ["?"; SQLITE_COLUMNS.len()].join(", "));
        format!(
            "INSERT INTO usage ({}) VALUES {} ON CONFLICT (id) DO NOTHING",
            SQLITE_COLUMNS.join(", "),
            vec![row; rows].join(", ")
        )
    })
});

const SQLITE_COLUMNS: [&str; 15] = [
    "id",
    "at",
    "user_id",
    "key_id",
    "module",
    "module_id",
    "route",
    "status",
    "wall_us",
    "cpu_us",
    "memory_peak_bytes",
    "bytes_in",
    "bytes_out",
    "request_id",
    "exact_status",
];

/// Writes those of the rows that are not there yet, by one statement; returns how many those are. They are as many as
/// one of the [`SQLITE_CHUNKS`].
async fn sqlite_insert(
    transaction: &mut Transaction<'_, Sqlite>,
    rows: &[Execution],
) -> Result<u64, StoreError> {
    let mut inserts = SQLITE_CHUNKS.iter().zip(SQLITE_INSERTS.iter());
    // The driver takes values that are missing for NULL.
    let insert = inserts.find(|(size, _)| **size == rows.len());
    let (_, insert) = insert.ok_or_else(|| {
        StoreError::Internal(format!("no statement writes {} usage rows", rows.len()))
    })?;
    let mut values = SqliteArguments::default();
    values.reserve(rows.len() * SQLITE_COLUMNS.len(), 0);
    for row in rows {
        bind(&mut values, row).map_err(sqlx::Error::Encode)?;
    }
    let done = sqlx::query_with(insert.as_str(), values)
        .execute(&mut **transaction)
        .await;
    Ok(done.map_err(of_row)?.rows_affected())
}

/// The values of a row, in the order of [`SQLITE_COLUMNS`].
fn bind(values: &mut SqliteArguments, row: &Execution) -> Result<(), BoxDynError> {
    values.add(row.id)?;
    values.add(Stamp::from(row.at))?;
    values.add(row.caller.map(|caller| caller.user_id))?;
    values.add(row.caller.map(|caller| caller.key_id))?;
    values.add(row.module)?;
    values.add(row.module_id)?;
    values.add(row.route.as_deref())?;
    values.add(row.status.before())?;
    values.add(used(row.wall_us))?;
    values.add(used(row.cpu_us))?;
    values.add(used(row.memory_peak_bytes))?;
    values.add(used(row.bytes_in))?;
    values.add(used(row.bytes_out))?;
    values.add(row.request_id.as_str())?;
    values.add(row.status.exact())
}

async fn sqlite_days(
    transaction: &mut Transaction<'_, Sqlite>,
    add: &'static str,
    days: &Days,
) -> Result<(), StoreError> {
    for (group, sum) in days {
        sqlx::query(add)
            .bind(group.user_id)
            .bind(group.day)
            .bind(group.key_id)
            .bind(&group.module)
            .bind(group.status)
            .bind(sum.executions)
            .bind(sum.wall_us)
            .bind(sum.cpu_us)
            .bind(sum.memory_peak_bytes)
            .bind(sum.bytes_in)
            .bind(sum.bytes_out)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

async fn sqlite_modules(
    transaction: &mut Transaction<'_, Sqlite>,
    modules: &BTreeMap<Uuid, Count>,
) -> Result<(), StoreError> {
    for (module_id, count) in modules {
        sqlx::query(
            "UPDATE modules SET execution_count = execution_count + $2, \
             last_executed_at = MAX(COALESCE(last_executed_at, $3), $3) WHERE id = $1",
        )
        .bind(module_id)
        .bind(count.executions)
        .bind(Stamp::from(count.last_at))
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

/// The rows as PostgreSQL takes them: a column each, so that a batch is one statement.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<Uuid>,
    ats: Vec<DateTime<Utc>>,
    user_ids: Vec<Option<Uuid>>,
    key_ids: Vec<Option<Uuid>>,
    modules: Vec<Option<Vec<u8>>>,
    module_ids: Vec<Option<Uuid>>,
    routes: Vec<Option<&'a str>>,
    statuses: Vec<&'static str>,
    wall_us: Vec<i64>,
    cpu_us: Vec<i64>,
    memory_peak_bytes: Vec<i64>,
    bytes_in: Vec<i64>,
    bytes_out: Vec<i64>,
    request_ids: Vec<&'a str>,
    exact_statuses: Vec<Option<&'static str>>,
}

impl<'a> Columns<'a> {
    fn of(executions: &'a [Execution]) -> Columns<'a> {
        let mut columns = Columns::default();
        for row in executions {
            columns.ids.push(row.id);
            columns.ats.push(Stamp::from(row.at).into());
            columns
                .user_ids
                .push(row.caller.map(|caller| caller.user_id));
            columns.key_ids.push(row.caller.map(|caller| caller.key_id));
            columns
                .modules
                .push(row.module.map(|module| module.0.to_vec()));
            columns.module_ids.push(row.module_id);
            columns.routes.push(row.route.as_deref());
            columns.statuses.push(row.status.before().as_str());
            columns.wall_us.push(used(row.wall_us));
            columns.cpu_us.push(used(row.cpu_us));
            columns.memory_peak_bytes.push(used(row.memory_peak_bytes));
            columns.bytes_in.push(used(row.bytes_in));
            columns.bytes_out.push(used(row.bytes_out));
            columns.request_ids.push(&row.request_id);
            columns
                .exact_statuses
                .push(row.status.exact().map(Status::as_str));
        }
        columns
    }
}

async fn postgres_rows(
    transaction: &mut Transaction<'_, Postgres>,
    executions: &[Execution],
) -> Result<HashSet<Uuid>, StoreError> {
    let columns = Columns::of(executions);
    let new: Vec<Uuid> = sqlx::query_scalar(
        "INSERT INTO usage (id, at, user_id, key_id, module, module_id, route, status, wall_us, \
         cpu_us, memory_peak_bytes, bytes_in, bytes_out, request_id, exact_status) \
         SELECT * FROM UNNEST($1::uuid[], $2::timestamptz[], $3::uuid[], $4::uuid[], $5::bytea[], \
         $6::uuid[], $7::text[], $8::text[], $9::bigint[], $10::bigint[], $11::bigint[], \
         $12::bigint[], $13::bigint[], $14::text[], $15::text[]) ON CONFLICT (id) DO NOTHING RETURNING id",
    )
    .bind(columns.ids)
    .bind(columns.ats)
    .bind(columns.user_ids)
    .bind(columns.key_ids)
    .bind(columns.modules)
    .bind(columns.module_ids)
    .bind(columns.routes)
    .bind(columns.statuses)
    .bind(columns.wall_us)
    .bind(columns.cpu_us)
    .bind(columns.memory_peak_bytes)
    .bind(columns.bytes_in)
    .bind(columns.bytes_out)
    .bind(columns.request_ids)
    .bind(columns.exact_statuses)
    .fetch_all(&mut **transaction)
    .await
    .map_err(of_row)?;
    Ok(new.into_iter().collect())
}

async fn postgres_days(
    transaction: &mut Transaction<'_, Postgres>,
    add: &'static str,
    days: &Days,
) -> Result<(), StoreError> {
    if days.is_empty() {
        return Ok(());
    }
    let of_sum = |value: fn(&Sum) -> i64| days.values().map(value).collect::<Vec<_>>();
    sqlx::query(add)
        .bind(days.keys().map(|group| group.user_id).collect::<Vec<_>>())
        .bind(days.keys().map(|group| group.day).collect::<Vec<_>>())
        .bind(days.keys().map(|group| group.key_id).collect::<Vec<_>>())
        .bind(
            days.keys()
                .map(|group| group.module.as_slice())
                .collect::<Vec<_>>(),
        )
        .bind(
            days.keys()
                .map(|group| Status::as_str(group.status))
                .collect::<Vec<_>>(),
        )
        .bind(of_sum(|sum| sum.executions))
        .bind(of_sum(|sum| sum.wall_us))
        .bind(of_sum(|sum| sum.cpu_us))
        .bind(of_sum(|sum| sum.memory_peak_bytes))
        .bind(of_sum(|sum| sum.bytes_in))
        .bind(of_sum(|sum| sum.bytes_out))
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

async fn postgres_modules(
    transaction: &mut Transaction<'_, Postgres>,
    modules: &BTreeMap<Uuid, Count>,
) -> Result<(), StoreError> {
    if modules.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = modules.keys().copied().collect();
    // In one order, which the update below does not promise: two gateways must not wait for each other.
    sqlx::query("SELECT 1 FROM modules WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE")
        .bind(&ids)
        .execute(&mut **transaction)
        .await?;
    sqlx::query(
        "UPDATE modules SET execution_count = execution_count + new.executions, \
         last_executed_at = GREATEST(last_executed_at, new.last_at) \
         FROM UNNEST($1::uuid[], $2::bigint[], $3::timestamptz[]) AS new (id, executions, last_at) \
         WHERE modules.id = new.id",
    )
    .bind(&ids)
    .bind(
        modules
            .values()
            .map(|count| count.executions)
            .collect::<Vec<_>>(),
    )
    .bind(
        modules
            .values()
            .map(|count| DateTime::<Utc>::from(Stamp::from(count.last_at)))
            .collect::<Vec<_>>(),
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

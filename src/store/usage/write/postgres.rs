//! PostgreSQL's way: an array for each column, so that a batch is one statement.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::super::sums::{Count, Days, Sum, Sums};
use super::super::{Execution, Status, used};
use super::of_row;
use crate::store::StoreError;
use crate::store::values::Stamp;

/// Adds sums to their days' in one of the tables of sums.
macro_rules! add_to {
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

const DAYS: &str = add_to!("usage_daily");
const EXACT_DAYS: &str = add_to!("usage_daily_exact");

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

/// Writes the rows that are not there yet, and says which those are.
pub(super) async fn rows(
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

/// Adds what the rows add up to.
pub(super) async fn add(
    transaction: &mut Transaction<'_, Postgres>,
    sums: &Sums,
) -> Result<(), StoreError> {
    days(transaction, DAYS, &sums.days).await?;
    days(transaction, EXACT_DAYS, &sums.exact_days).await?;
    modules(transaction, &sums.modules).await
}

async fn days(
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
        .bind(days.keys().map(|group| group.module()).collect::<Vec<_>>())
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

async fn modules(
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

//! SQLite's way: statements of many rows, because each one costs two changes of threads.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use sqlx::error::BoxDynError;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, Sqlite, Transaction};
use uuid::Uuid;

use super::super::sums::{Count, Group, Sum, Sums};
use super::super::{Caller, Execution, Status, used};
use super::of_row;
use crate::sandbox::ModuleHash;
use crate::store::StoreError;
use crate::store::values::Stamp;

/// How many rows go into one statement, the larger number first, and one last. The program of a larger statement, and
/// its values, would not stay in the processor's cache, nor would what a thread that answers has there.
const SIZES: [usize; 4] = [128, 32, 8, 1];

/// A statement for each of [`SIZES`]. Their texts are made once: they are longer than what the rows hold.
type Statements = LazyLock<[String; SIZES.len()]>;

/// The rows, by as few of the statements as may be.
fn chunks<'a, T>(rows: &'a [T], statements: &'static Statements) -> Vec<(&'static str, &'a [T])> {
    let mut left = rows;
    let mut chunks = Vec::new();
    for (size, text) in SIZES.into_iter().zip(statements.iter()) {
        while let Some((chunk, rest)) = left.split_at_checked(size) {
            chunks.push((text.as_str(), chunk));
            left = rest;
        }
    }
    chunks
}

/// Places for the values of so many rows.
fn places(rows: usize, values: usize) -> String {
    let row = format!("({})", vec!["?"; values].join(", "));
    vec![row; rows].join(", ")
}

/// Columns of a row's own values, and those of [`Common`] ones.
const OWN: [&str; 8] = [
    "id",
    "at",
    "wall_us",
    "cpu_us",
    "memory_peak_bytes",
    "bytes_in",
    "bytes_out",
    "request_id",
];
const COMMON: [&str; 7] = [
    "user_id",
    "key_id",
    "module",
    "module_id",
    "route",
    "status",
    "exact_status",
];

/// They write rows.
static INSERTS: Statements = LazyLock::new(|| {
    SIZES.map(|rows| {
        let places = places(rows, OWN.len() + COMMON.len());
        insert(&format!("VALUES {places}"))
    })
});

/// Rows with [`Common`] values that go into one statement.
const ALIKE: usize = SIZES[0];

/// It writes [`ALIKE`] rows. The values that all of them have come first, and once: they are nearly half of what
/// there is to be bound, which takes longer than to write it.
static INSERT_ALIKE: LazyLock<String> = LazyLock::new(|| {
    let own: Vec<_> = (1..=OWN.len()).map(|at| format!("column{at}")).collect();
    insert(&format!(
        "SELECT {}, common.* FROM (SELECT {}) AS common CROSS JOIN (VALUES {}) WHERE TRUE",
        own.join(", "),
        ["?"; COMMON.len()].join(", "),
        places(ALIKE, OWN.len())
    ))
});

/// A statement that writes those of the rows that are not there yet.
fn insert(rows: &str) -> String {
    format!(
        "INSERT INTO usage ({}, {}) {rows} ON CONFLICT (id) DO NOTHING",
        OWN.join(", "),
        COMMON.join(", ")
    )
}

/// What many rows of a batch have in common: most callers do the same thing again and again.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Common<'a> {
    caller: Option<Caller>,
    module: Option<ModuleHash>,
    module_id: Option<Uuid>,
    route: Option<&'a str>,
    status: Status,
}

impl<'a> Common<'a> {
    fn of(row: &'a Execution) -> Common<'a> {
        Common {
            caller: row.caller,
            module: row.module,
            module_id: row.module_id,
            route: row.route.as_deref(),
            status: row.status,
        }
    }

    /// The values, in the order of [`COMMON`].
    fn bind(&self, values: &mut SqliteArguments) -> Result<(), BoxDynError> {
        values.add(self.caller.map(|caller| caller.user_id))?;
        values.add(self.caller.map(|caller| caller.key_id))?;
        values.add(self.module)?;
        values.add(self.module_id)?;
        values.add(self.route)?;
        values.add(self.status.before())?;
        values.add(self.status.exact())
    }
}

/// A row's own values, in the order of [`OWN`].
fn bind_own(values: &mut SqliteArguments, row: &Execution) -> Result<(), BoxDynError> {
    values.add(row.id)?;
    values.add(Stamp::from(row.at))?;
    values.add(used(row.wall_us))?;
    values.add(used(row.cpu_us))?;
    values.add(used(row.memory_peak_bytes))?;
    values.add(used(row.bytes_in))?;
    values.add(used(row.bytes_out))?;
    // As it is: a block of its own for each would be freed by another thread.
    values.add(Arc::clone(&row.request_id))
}

/// Writes rows of which none is there yet, as they are unless a gateway died; `false` when one is. What was
/// written until then has to be taken back.
pub(super) async fn new_rows(
    transaction: &mut Transaction<'_, Sqlite>,
    executions: &[Execution],
) -> Result<bool, StoreError> {
    let mut alike: HashMap<Common<'_>, Vec<&Execution>> = HashMap::new();
    for row in executions {
        alike.entry(Common::of(row)).or_default().push(row);
    }
    let mut others = Vec::new();
    for (common, rows) in &alike {
        let (chunks, rest) = rows.as_chunks::<ALIKE>();
        for chunk in chunks {
            let mut values = SqliteArguments::default();
            common.bind(&mut values).map_err(sqlx::Error::Encode)?;
            for row in chunk {
                bind_own(&mut values, row).map_err(sqlx::Error::Encode)?;
            }
            if run(transaction, &INSERT_ALIKE, values).await? < ALIKE as u64 {
                return Ok(false);
            }
        }
        others.extend_from_slice(rest);
    }
    for (text, chunk) in chunks(&others, &INSERTS) {
        if write(transaction, text, chunk).await? < chunk.len() as u64 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes those rows that are not there yet, one by one, and says what they add.
pub(super) async fn rows(
    transaction: &mut Transaction<'_, Sqlite>,
    executions: &[Execution],
) -> Result<Sums, StoreError> {
    const ONE: usize = SIZES.len() - 1;
    let mut sums = Sums::default();
    for row in executions {
        if write(transaction, &INSERTS[ONE], &[row]).await? > 0 {
            sums.add(row);
        }
    }
    Ok(sums)
}

/// Writes those of the rows that are not there yet by a statement of [`INSERTS`]; returns how many those are.
async fn write(
    transaction: &mut Transaction<'_, Sqlite>,
    text: &'static str,
    rows: &[&Execution],
) -> Result<u64, StoreError> {
    let mut values = SqliteArguments::default();
    for row in rows {
        bind_own(&mut values, row).map_err(sqlx::Error::Encode)?;
        let common = Common::of(row);
        common.bind(&mut values).map_err(sqlx::Error::Encode)?;
    }
    run(transaction, text, values).await
}

async fn run(
    transaction: &mut Transaction<'_, Sqlite>,
    text: &'static str,
    values: SqliteArguments,
) -> Result<u64, StoreError> {
    let done = sqlx::query_with(text, values).execute(&mut **transaction);
    Ok(done.await.map_err(of_row)?.rows_affected())
}

/// Adds what the rows add up to.
pub(super) async fn add(
    transaction: &mut Transaction<'_, Sqlite>,
    sums: &Sums,
) -> Result<(), StoreError> {
    for (days, statements) in [(&sums.days, &DAYS), (&sums.exact_days, &EXACT_DAYS)] {
        let days: Vec<_> = days.iter().collect();
        for (text, chunk) in chunks(&days, statements) {
            let mut values = SqliteArguments::default();
            for (group, sum) in chunk {
                bind_sum(&mut values, group, sum).map_err(sqlx::Error::Encode)?;
            }
            run(transaction, text, values).await?;
        }
    }
    let modules: Vec<_> = sums.modules.iter().collect();
    for (text, chunk) in chunks(&modules, &MODULES) {
        let mut values = SqliteArguments::default();
        for (module_id, count) in chunk {
            bind_count(&mut values, module_id, count).map_err(sqlx::Error::Encode)?;
        }
        run(transaction, text, values).await?;
    }
    Ok(())
}

static DAYS: Statements = LazyLock::new(|| adds("usage_daily"));
static EXACT_DAYS: Statements = LazyLock::new(|| adds("usage_daily_exact"));

/// They add sums to their days' in one of the tables of sums.
fn adds(table: &str) -> [String; SIZES.len()] {
    SIZES.map(|sums| {
        format!(
            "INSERT INTO {table} (user_id, day, key_id, module, status, executions, wall_us, \
             cpu_us, memory_peak_bytes, bytes_in, bytes_out) VALUES {} \
             ON CONFLICT (user_id, day, key_id, module, status) DO UPDATE SET \
             executions = executions + excluded.executions, \
             wall_us = wall_us + excluded.wall_us, cpu_us = cpu_us + excluded.cpu_us, \
             memory_peak_bytes = MAX(memory_peak_bytes, excluded.memory_peak_bytes), \
             bytes_in = bytes_in + excluded.bytes_in, bytes_out = bytes_out + excluded.bytes_out",
            places(sums, 11)
        )
    })
}

fn bind_sum(values: &mut SqliteArguments, group: &Group, sum: &Sum) -> Result<(), BoxDynError> {
    values.add(group.user_id)?;
    values.add(group.day)?;
    values.add(group.key_id)?;
    values.add(group.module())?;
    values.add(group.status)?;
    values.add(sum.executions)?;
    values.add(sum.wall_us)?;
    values.add(sum.cpu_us)?;
    values.add(sum.memory_peak_bytes)?;
    values.add(sum.bytes_in)?;
    values.add(sum.bytes_out)
}

/// They add executions to their modules' counts.
static MODULES: Statements = LazyLock::new(|| {
    SIZES.map(|modules| {
        format!(
            "UPDATE modules SET execution_count = execution_count + column2, \
             last_executed_at = MAX(COALESCE(last_executed_at, column3), column3) \
             FROM (VALUES {}) WHERE id = column1",
            places(modules, 3)
        )
    })
});

fn bind_count(
    values: &mut SqliteArguments,
    module_id: &Uuid,
    count: &Count,
) -> Result<(), BoxDynError> {
    values.add(module_id)?;
    values.add(count.executions)?;
    values.add(Stamp::from(count.last_at))
}

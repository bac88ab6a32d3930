//! Programs of two versions on one database, as there are while gateways are replaced.

use chrono::{DateTime, Utc};
use wasm_wizard::store::Store;
use wasm_wizard::store::usage::{Execution, GroupBy, Status};

use super::super::{Database, contract};
use super::{everything, execution, executions, noon, total, totals};

contract!(
    programs_of_before_read_every_row_and_theirs_are_read,
    undoing_the_exact_statuses_keeps_every_row_and_sum,
    a_status_is_checked_in_every_version,
);

/// What programs from before migration 7 can read of a status, as SQL has it.
const KNOWN_BEFORE: &str = "('success', 'execution_error', 'time_limit_exceeded', \
    'memory_limit_exceeded', 'output_limit_exceeded', 'validation_error', 'rejected', 'cancelled')";

/// A row of each status.
fn one_of_each(at: DateTime<Utc>) -> Vec<Execution> {
    let statuses = (0..).zip(Status::ALL);
    let row = |(number, status)| Execution {
        status,
        ..execution(number, at)
    };
    statuses.map(row).collect()
}

/// How many executions the sums have of each status.
async fn by_status(store: &Store) -> Vec<(Status, u64)> {
    let by = GroupBy {
        status: true,
        ..GroupBy::default()
    };
    let totals = totals(store, &everything(), by).await;
    let mut found: Vec<_> = totals
        .into_iter()
        .map(|total| (total.status.unwrap(), total.executions))
        .collect();
    found.sort_unstable();
    found
}

async fn programs_of_before_read_every_row_and_theirs_are_read(database: Database) {
    let store = database.migrated().await;
    let at = noon("2026-01-01");
    store.usage_write(&one_of_each(at)).await.unwrap();
    let each: Vec<_> = Status::ALL.into_iter().map(|status| (status, 1)).collect();
    assert_eq!(by_status(&store).await, each);
    assert_eq!(total(&store).await, 10);
    for table in ["usage", "usage_daily"] {
        let unknown = format!("SELECT COUNT(*) FROM {table} WHERE status NOT IN {KNOWN_BEFORE}");
        assert_eq!(database.count(&unknown).await, 0, "{table}");
    }
    let as_error = "SELECT COUNT(*) FROM usage WHERE status = 'execution_error'";
    assert_eq!(database.count(as_error).await, 3);
    // They write what they know, where they know it.
    let (id, user, at, day) = if database.is_sqlite() {
        (
            "x'0190aaaa000070008000000000000000'",
            "x'00000000000000000000000000000001'",
            "1767268800000000",
            "'2026-01-01'",
        )
    } else {
        (
            "'0190aaaa-0000-7000-8000-000000000000'",
            "'00000000-0000-0000-0000-000000000001'",
            "'2026-01-01T12:00:00Z'",
            "'2026-01-01'",
        )
    };
    database
        .sql(&format!(
            "INSERT INTO usage (id, at, user_id, key_id, module, module_id, route, status, \
             wall_us, cpu_us, memory_peak_bytes, bytes_in, bytes_out, request_id) \
             VALUES ({id}, {at}, {user}, {user}, NULL, NULL, NULL, 'execution_error', \
             1, 1, 1, 1, 1, 'before')"
        ))
        .await;
    database
        .sql(&format!(
            "INSERT INTO usage_daily AS d (user_id, day, key_id, module, status, executions, wall_us, \
             cpu_us, memory_peak_bytes, bytes_in, bytes_out) \
             SELECT user_id, {day}, key_id, module, 'execution_error', 1, 1, 1, 1, 1, 1 \
             FROM usage_daily WHERE status = 'execution_error' \
             ON CONFLICT (user_id, day, key_id, module, status) DO UPDATE SET \
             executions = d.executions + excluded.executions"
        ))
        .await;
    let found = executions(&store).await;
    let theirs = found
        .iter()
        .find(|row| &*row.request_id == "before")
        .unwrap();
    assert_eq!(theirs.status, Status::ExecutionError);
    let mut two_errors = each;
    two_errors[1].1 = 2;
    assert_eq!(by_status(&store).await, two_errors);
}

async fn undoing_the_exact_statuses_keeps_every_row_and_sum(database: Database) {
    let store = database.migrated().await;
    let at = noon("2026-01-01");
    let mut rows = one_of_each(at);
    // A sum that has no execution_error to be added to.
    rows.push(Execution {
        caller: None,
        status: Status::TableLimitExceeded,
        memory_peak_bytes: 1 << 20,
        ..execution(50, at)
    });
    store.usage_write(&rows).await.unwrap();
    let before = totals(&store, &everything(), GroupBy::default()).await;
    store.migrate_down(6).await.unwrap();
    for table in ["usage", "usage_daily"] {
        let sum = if table == "usage" {
            "COUNT(*)"
        } else {
            "CAST(SUM(executions) AS BIGINT)"
        };
        let errors = format!("SELECT {sum} FROM {table} WHERE status = 'execution_error'");
        assert_eq!(database.count(&errors).await, 4, "{table}");
        let unknown = format!("SELECT COUNT(*) FROM {table} WHERE status NOT IN {KNOWN_BEFORE}");
        assert_eq!(database.count(&unknown).await, 0, "{table}");
    }
    store.migrate().await.unwrap();
    assert_eq!(
        totals(&store, &everything(), GroupBy::default()).await,
        before
    );
    assert_eq!(executions(&store).await.len(), rows.len());
    assert_eq!(by_status(&store).await[1], (Status::ExecutionError, 4));
}

async fn a_status_is_checked_in_every_version(database: Database) {
    let refuses = async |version: i64| {
        let nonsense = if database.is_sqlite() {
            "INSERT INTO usage (id, at, status, wall_us, cpu_us, memory_peak_bytes, bytes_in, bytes_out, request_id) \
             VALUES (randomblob(16), 0, 'nonsense', 1, 1, 1, 1, 1, 'r')"
        } else {
            "INSERT INTO usage (id, at, status, wall_us, cpu_us, memory_peak_bytes, bytes_in, bytes_out, request_id) \
             VALUES (gen_random_uuid(), now(), 'nonsense', 1, 1, 1, 1, 1, 'r')"
        };
        let refused = database.try_sql(nonsense).await.unwrap_err();
        assert!(
            refused.to_lowercase().contains("check constraint"),
            "{version}: {refused}"
        );
    };
    let store = database.migrated().await;
    let mut rows = one_of_each(noon("2026-01-01"));
    store.usage_write(&rows).await.unwrap();
    refuses(9).await;
    store.migrate_down(8).await.unwrap();
    refuses(8).await;
    store.migrate().await.unwrap();
    refuses(9).await;
    // Connections that were open all the time go on.
    let last = execution(100, noon("2026-01-01"));
    store
        .usage_write(std::slice::from_ref(&last))
        .await
        .unwrap();
    rows.push(last);
    rows.reverse();
    assert_eq!(executions(&store).await, rows);
    if database.is_sqlite() {
        let lists = "SELECT COUNT(*) FROM sqlite_schema WHERE name = 'usage' AND sql LIKE '%status IN (''success''%'";
        assert_eq!(database.count(lists).await, 0);
        let sound = "SELECT COUNT(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'";
        assert_eq!(database.count(sound).await, 1);
        store.migrate_down(8).await.unwrap();
        assert_eq!(database.count(lists).await, 1);
    }
}

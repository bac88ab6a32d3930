//! Batches that take statements of many rows.

use chrono::TimeDelta;
use uuid::Uuid;
use wasm_wizard::store::usage::{BATCH_ROWS_MAX, Caller, Execution, Filter, GroupBy, Status};

use super::super::{Database, contract, module, now, user};
use super::{everything, execution, executions, total, totals};

contract!(
    nothing_is_written_twice,
    rows_that_share_values_keep_what_is_their_own,
    many_callers_have_a_sum_each,
    many_modules_have_a_count_each,
);

async fn nothing_is_written_twice(database: Database) {
    let store = database.migrated().await;
    let at = now();
    let rows: Vec<_> = (0..10).map(|n| execution(n, at)).collect();
    assert_eq!(store.usage_write(&rows[..6]).await.unwrap(), 6);
    assert_eq!(store.usage_write(&rows).await.unwrap(), 4);
    assert_eq!(store.usage_write(&rows).await.unwrap(), 0);
    let twice = [execution(20, at), execution(20, at)];
    assert_eq!(store.usage_write(&twice).await.unwrap(), 1);
    assert_eq!(executions(&store).await.len(), 11);
    assert_eq!(total(&store).await, 11);
    // Enough for statements of many rows, with some that are there before, among and behind new ones.
    let mut many: Vec<_> = (1000..1700).map(|n| execution(n, at)).collect();
    let there = [&many[..1], &many[540..560], &many[699..]].concat();
    assert_eq!(store.usage_write(&there).await.unwrap(), 22);
    assert_eq!(store.usage_write(&many).await.unwrap(), 678);
    assert_eq!(total(&store).await, 11 + 700);
    let mut found = executions(&store).await;
    found.retain(|row| many.iter().any(|one| one.id == row.id));
    many.reverse();
    assert_eq!(found, many);
    let most: Vec<_> = (2000..)
        .take(BATCH_ROWS_MAX - 1)
        .map(|n| execution(n, at))
        .collect();
    assert_eq!(store.usage_write(&most).await.unwrap(), most.len() as u64);
    assert_eq!(total(&store).await, 11 + 700 + most.len() as u64);
}

async fn rows_that_share_values_keep_what_is_their_own(database: Database) {
    let store = database.migrated().await;
    let at = now();
    // Enough of two kinds for statements of their own, and some of many kinds, among each other.
    let row = |number: u128| {
        let own = Execution {
            wall_us: number as u64,
            bytes_out: 3 * number as u64,
            ..execution(number, at)
        };
        match number % 10 {
            0..6 => Execution {
                module_id: Some(Uuid::from_u128(9)),
                ..own
            },
            6..9 => Execution {
                caller: None,
                module: None,
                route: None,
                status: Status::TableLimitExceeded,
                ..own
            },
            _ => Execution {
                route: Some(format!("route-{number}").into()),
                ..own
            },
        }
    };
    let mut rows: Vec<_> = (0..1000).map(row).collect();
    assert_eq!(store.usage_write(&rows).await.unwrap(), 1000);
    assert_eq!(store.usage_write(&rows).await.unwrap(), 0);
    assert_eq!(total(&store).await, 1000);
    rows.reverse();
    assert_eq!(executions(&store).await, rows);
}

async fn many_callers_have_a_sum_each(database: Database) {
    let store = database.migrated().await;
    let at = now();
    // Each twice, so that there is something to add to.
    for batch in 1..3 {
        let callers = (0..300).map(|n| Execution {
            caller: Some(Caller {
                user_id: Uuid::from_u128(5),
                key_id: Uuid::from_u128(1_000 + n),
            }),
            wall_us: n as u64,
            ..execution(10_000 * batch + n, at)
        });
        let callers: Vec<_> = callers.collect();
        assert_eq!(store.usage_write(&callers).await.unwrap(), 300);
    }
    for n in [0, 127, 128, 255, 256, 287, 288, 295, 296, 299] {
        let of_key = Filter {
            key_id: Some(Uuid::from_u128(1_000 + n)),
            ..everything()
        };
        let found = totals(&store, &of_key, GroupBy::default()).await;
        assert_eq!((found[0].executions, found[0].wall_us), (2, 2 * n as u64));
    }
}

async fn many_modules_have_a_count_each(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await.id;
    let at = now();
    let mut many = Vec::new();
    for n in 3..44_u8 {
        many.push(module(&store, owner, &n.to_string(), n).await.id);
    }
    let ran = many.iter().zip(100..);
    let rows: Vec<_> = ran
        .map(|(id, n)| Execution {
            module_id: Some(*id),
            at: at + TimeDelta::seconds(n as i64),
            ..execution(n, at)
        })
        .collect();
    store.usage_write(&rows).await.unwrap();
    for (id, n) in many.into_iter().zip(100..) {
        let found = store.module(id).await.unwrap().unwrap();
        assert_eq!(found.execution_count, 1);
        assert_eq!(found.last_executed_at, Some(at + TimeDelta::seconds(n)));
    }
}

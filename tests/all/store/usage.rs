//! What executions used.

mod batches;
mod delivery;
mod versions;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;
use wasm_wizard::sandbox::ModuleHash;
use wasm_wizard::store::usage::{
    BATCH_ROWS_MAX, Caller, Execution, Filter, GroupBy, Status, Step, Total, id,
};
use wasm_wizard::store::{Store, StoreError};

use super::{Database, contract, module, now, user};

contract!(
    executions_come_back_as_they_went_in,
    modules_count_what_ran,
    sums_are_split_as_they_are_asked_for,
    a_user_sees_its_own,
    a_row_that_can_not_be_leaves_nothing,
    what_is_too_old_goes_and_nothing_else,
    gateways_that_write_at_once_lose_nothing,
);

fn execution(number: u128, at: DateTime<Utc>) -> Execution {
    Execution {
        id: id(at.timestamp_micros(), number),
        at,
        caller: Some(Caller {
            user_id: Uuid::from_u128(1),
            key_id: Uuid::from_u128(2),
        }),
        module: Some(ModuleHash([7; 32])),
        module_id: None,
        route: Some("route".into()),
        status: Status::Success,
        wall_us: 10,
        cpu_us: 9,
        memory_peak_bytes: 65_536,
        bytes_in: 3,
        bytes_out: 5,
        request_id: format!("r-{number}").into(),
    }
}

fn day(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

fn noon(text: &str) -> DateTime<Utc> {
    format!("{text}T12:00:00Z").parse().unwrap()
}

/// Everybody's, of all days.
fn everything() -> Filter {
    Filter {
        user_id: None,
        key_id: None,
        module: None,
        from: day("1970-01-01"),
        to: day("9999-12-31"),
    }
}

async fn executions(store: &Store) -> Vec<Execution> {
    store
        .usage_executions(&everything(), None, 1000)
        .await
        .unwrap()
}

async fn totals(store: &Store, filter: &Filter, by: GroupBy) -> Vec<Total> {
    store.usage_totals(filter, by, 1, 1000, 0).await.unwrap()
}

async fn total(store: &Store) -> u64 {
    let totals = totals(store, &everything(), GroupBy::default()).await;
    totals.first().map_or(0, |total| total.executions)
}

async fn executions_come_back_as_they_went_in(database: Database) {
    let store = database.migrated().await;
    let at = now();
    let full = Execution {
        module_id: Some(Uuid::now_v7()),
        route: Some("größe 🧙".into()),
        ..execution(1, at)
    };
    let bare = Execution {
        caller: None,
        module: None,
        request_id: "".into(),
        ..execution(2, at)
    };
    let mut rows = vec![full, bare];
    for (number, status) in Status::ALL.into_iter().enumerate() {
        let row = execution(10 + number as u128, at);
        rows.push(Execution { status, ..row });
    }
    assert_eq!(store.usage_write(&rows).await.unwrap(), rows.len() as u64);
    rows.reverse();
    assert_eq!(executions(&store).await, rows);
    assert_eq!(store.usage_write(&[]).await.unwrap(), 0);
    // What nobody could use is cut down to what can be summed.
    let huge = Execution {
        wall_us: u64::MAX,
        bytes_in: u64::MAX,
        ..execution(99, at)
    };
    store.usage_write(&[huge]).await.unwrap();
    assert_eq!(executions(&store).await[0].wall_us, 1 << 48);
    let too_many = vec![execution(100, at); BATCH_ROWS_MAX + 1];
    assert!(store.usage_write(&too_many).await.is_err());
}

async fn modules_count_what_ran(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await.id;
    let (one, two) = (
        module(&store, owner, "1", 1).await,
        module(&store, owner, "2", 2).await,
    );
    let at = now();
    let of = |number: u128, module_id, status, later| Execution {
        module_id: Some(module_id),
        status,
        at: at + TimeDelta::seconds(later),
        ..execution(number, at)
    };
    let mut rows: Vec<_> = Status::ALL
        .into_iter()
        .enumerate()
        .map(|(n, status)| of(n as u128, one.id, status, 9))
        .collect();
    rows.push(of(50, two.id, Status::TimeLimitExceeded, 3));
    rows.push(of(51, Uuid::now_v7(), Status::Success, 3));
    store.usage_write(&rows).await.unwrap();
    store.usage_write(&rows).await.unwrap();
    // An older one that comes later does not take the latest back.
    let old = of(60, one.id, Status::Success, -100);
    store.usage_write(&[old]).await.unwrap();
    let one = store.module(one.id).await.unwrap().unwrap();
    assert_eq!(one.execution_count, 8, "seven that ran, and the old one");
    assert_eq!(one.last_executed_at, Some(at + TimeDelta::seconds(9)));
    let two = store.module(two.id).await.unwrap().unwrap();
    assert_eq!(two.execution_count, 1);
    assert_eq!(two.last_executed_at, Some(at + TimeDelta::seconds(3)));
}

async fn sums_are_split_as_they_are_asked_for(database: Database) {
    let store = database.migrated().await;
    let (first, second) = (noon("2026-01-01"), noon("2026-01-02"));
    let other_module = Some(ModuleHash([8; 32]));
    let rows = [
        execution(1, first),
        Execution {
            memory_peak_bytes: 1 << 20,
            ..execution(2, first)
        },
        Execution {
            status: Status::TimeLimitExceeded,
            ..execution(3, second)
        },
        Execution {
            module: other_module,
            ..execution(4, second)
        },
        Execution {
            module: None,
            status: Status::ValidationError,
            ..execution(5, second)
        },
        Execution {
            caller: None,
            ..execution(6, second)
        },
    ];
    // Modules that came with their requests are summed together, however many there are.
    let brought: Vec<_> = (0..50)
        .map(|n| Execution {
            route: None,
            module: Some(ModuleHash([n; 32])),
            caller: Some(Caller {
                user_id: Uuid::from_u128(77),
                key_id: Uuid::from_u128(78),
            }),
            ..execution(1000 + u128::from(n), noon("2025-01-01"))
        })
        .collect();
    store.usage_write(&brought).await.unwrap();
    assert_eq!(database.count("SELECT COUNT(*) FROM usage_daily").await, 1);
    database.sql("DELETE FROM usage_daily").await;
    store.usage_write(&rows).await.unwrap();
    let all = totals(&store, &everything(), GroupBy::default()).await;
    let expected = Total {
        day: None,
        user_id: None,
        key_id: None,
        module: None,
        status: None,
        executions: 6,
        wall_us: 60,
        cpu_us: 54,
        memory_peak_bytes: 1 << 20,
        bytes_in: 18,
        bytes_out: 30,
    };
    assert_eq!(all, [expected]);
    let by = |by: GroupBy| {
        let store = &store;
        async move { totals(store, &everything(), by).await }
    };
    let day_only = GroupBy {
        day: true,
        ..GroupBy::default()
    };
    let days: Vec<_> = by(day_only).await;
    let days: Vec<_> = days
        .iter()
        .map(|t| (t.day.unwrap(), t.executions))
        .collect();
    assert_eq!(days, [(day("2026-01-02"), 4), (day("2026-01-01"), 2)]);
    let modules = by(GroupBy {
        module: true,
        ..GroupBy::default()
    })
    .await;
    let modules: Vec<_> = modules.iter().map(|t| (t.module, t.executions)).collect();
    assert_eq!(modules[0], (Some(ModuleHash([7; 32])), 4));
    assert!(modules.contains(&(other_module, 1)) && modules.contains(&(None, 1)));
    let statuses = by(GroupBy {
        status: true,
        ..GroupBy::default()
    })
    .await;
    assert_eq!(
        (statuses[0].status, statuses[0].executions),
        (Some(Status::Success), 4)
    );
    let finest = by(GroupBy {
        day: true,
        user: true,
        key: true,
        module: true,
        status: true,
    })
    .await;
    assert_eq!(finest.len(), 5);
    assert_eq!(finest.iter().filter(|t| t.user_id.is_none()).count(), 1);
    // Page by page, it is the same.
    for (page, rows) in finest.chunks(2).enumerate() {
        let by = GroupBy {
            day: true,
            user: true,
            key: true,
            module: true,
            status: true,
        };
        let all = everything();
        let found = store.usage_totals(&all, by, page as u32 + 1, 2, 0);
        assert_eq!(found.await.unwrap(), rows);
    }
    let narrow = Filter {
        from: day("2026-01-02"),
        to: day("2026-01-02"),
        module: other_module,
        ..everything()
    };
    let found = totals(&store, &narrow, GroupBy::default()).await;
    assert_eq!(found[0].executions, 1);
    let later = Filter {
        from: day("2026-01-03"),
        ..everything()
    };
    assert_eq!(totals(&store, &later, GroupBy::default()).await, []);
}

async fn a_user_sees_its_own(database: Database) {
    let store = database.migrated().await;
    let at = noon("2026-01-01");
    let other = Caller {
        user_id: Uuid::from_u128(9),
        key_id: Uuid::from_u128(8),
    };
    let mut rows: Vec<_> = (0..5).map(|n| execution(n, at)).collect();
    rows.push(Execution {
        caller: Some(other),
        ..execution(10, at)
    });
    rows.push(Execution {
        caller: None,
        ..execution(11, at)
    });
    rows.push(execution(12, at + TimeDelta::days(1)));
    store.usage_write(&rows).await.unwrap();
    let own = Filter {
        user_id: Some(other.user_id),
        ..everything()
    };
    let found = store.usage_executions(&own, None, 10).await.unwrap();
    assert_eq!(found, [rows[5].clone()]);
    assert_eq!(
        totals(&store, &own, GroupBy::default()).await[0].executions,
        1
    );
    let strange_key = Filter {
        key_id: Some(Uuid::from_u128(2)),
        ..own
    };
    assert_eq!(
        store
            .usage_executions(&strange_key, None, 10)
            .await
            .unwrap(),
        []
    );
    assert_eq!(totals(&store, &strange_key, GroupBy::default()).await, []);
    let first = Filter {
        user_id: Some(Uuid::from_u128(1)),
        to: day("2026-01-01"),
        ..everything()
    };
    let page = store.usage_executions(&first, None, 3).await.unwrap();
    assert_eq!(
        page.iter().map(|e| e.id).collect::<Vec<_>>(),
        [rows[4].id, rows[3].id, rows[2].id]
    );
    let rest = store
        .usage_executions(&first, Some(page[2].id), 3)
        .await
        .unwrap();
    assert_eq!(
        rest.iter().map(|e| e.id).collect::<Vec<_>>(),
        [rows[1].id, rows[0].id]
    );
}

async fn a_row_that_can_not_be_leaves_nothing(database: Database) {
    let store = database.migrated().await;
    let owner = user(&store).await.id;
    let counted = module(&store, owner, "m", 1).await.id;
    let at = now();
    let good = Execution {
        module_id: Some(counted),
        ..execution(1, at)
    };
    // A column's own rule, broken behind the store's back.
    if database.is_sqlite() {
        database
            .sql("CREATE TRIGGER no BEFORE INSERT ON usage WHEN NEW.request_id = 'bad' BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: no'); END")
            .await;
    } else {
        database
            .sql("ALTER TABLE usage ADD CONSTRAINT no CHECK (request_id <> 'bad')")
            .await;
    }
    let bad = Execution {
        request_id: "bad".into(),
        ..execution(2, at)
    };
    let result = store.usage_write(&[good.clone(), bad]).await;
    assert!(result.is_err(), "{result:?}");
    if !database.is_sqlite() {
        assert!(matches!(result, Err(StoreError::Invalid(_))), "{result:?}");
        let nul = Execution {
            request_id: "a\0b".into(),
            ..execution(3, at)
        };
        let result = store.usage_write(&[nul]).await;
        assert!(matches!(result, Err(StoreError::Invalid(_))), "{result:?}");
    }
    assert_eq!(total(&store).await, 0);
    assert_eq!(
        store
            .module(counted)
            .await
            .unwrap()
            .unwrap()
            .execution_count,
        0
    );
    assert_eq!(store.usage_write(&[good]).await.unwrap(), 1);
}

async fn what_is_too_old_goes_and_nothing_else(database: Database) {
    let store = database.migrated().await;
    let (old, new) = (noon("2026-01-01"), noon("2026-02-01"));
    for batch in 0..3_u128 {
        let rows: Vec<_> = (0..900)
            .map(|n| Execution {
                caller: Some(Caller {
                    user_id: Uuid::from_u128(batch * 1000 + n),
                    key_id: Uuid::from_u128(2),
                }),
                ..execution(batch * 1000 + n, old)
            })
            .collect();
        store.usage_write(&rows).await.unwrap();
    }
    let kept: Vec<_> = (0..3)
        .map(|n| Execution {
            status: [Status::Success, Status::StackLimitExceeded][n as usize % 2],
            ..execution(9000 + n, new)
        })
        .collect();
    store.usage_write(&kept).await.unwrap();
    // Sums with an exact status are as old as any.
    let exact = Execution {
        status: Status::TableLimitExceeded,
        ..execution(9100, noon("2025-12-01"))
    };
    store.usage_write(&[exact]).await.unwrap();
    let mut steps = Vec::new();
    loop {
        match store.usage_expire(new, day("2026-01-01")).await.unwrap() {
            Step::Deleted(rows) => steps.push(rows),
            Step::Done => break,
            Step::Busy => panic!("nobody else is at it"),
        }
    }
    assert_eq!(steps, [2001, 701], "a little at a time");
    assert_eq!(executions(&store).await.len(), 3);
    assert_eq!(total(&store).await, 2703, "the sums are kept for longer");
    while store.usage_expire(new, day("2026-02-01")).await.unwrap() != Step::Done {}
    assert_eq!(total(&store).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_gateways_one_deletes_at_a_time() {
    let database = Database::postgres().await;
    let store = database.migrated().await;
    let old = noon("2026-01-01");
    let rows: Vec<_> = (0..3).map(|n| execution(n, old)).collect();
    store.usage_write(&rows).await.unwrap();
    let expire = async || {
        let (rows, days) = (noon("2026-02-01"), day("2026-02-01"));
        store.usage_expire(rows, days).await.unwrap()
    };
    let mut other = PgConnection::connect(&database.url).await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    // The lock that a gateway holds while it deletes.
    sqlx::raw_sql("SELECT pg_advisory_xact_lock(x'7761736d75736167'::bigint)")
        .execute(&mut *transaction)
        .await
        .unwrap();
    assert_eq!(expire().await, Step::Busy);
    assert_eq!(executions(&store).await.len(), 3);
    // It ends with its transaction, however that ends.
    transaction.rollback().await.unwrap();
    assert!(matches!(expire().await, Step::Deleted(_)));
    assert_eq!(expire().await, Step::Done);
}

async fn gateways_that_write_at_once_lose_nothing(database: Database) {
    let stores = [database.migrated().await, database.connect().await];
    let owner = user(&stores[0]).await.id;
    let modules = [
        module(&stores[0], owner, "1", 1).await.id,
        module(&stores[0], owner, "2", 2).await.id,
    ];
    let at = now();
    let writers: Vec<_> = (0..16_u128)
        .map(|writer| {
            let store = stores[writer as usize % 2].clone();
            let mut rows: Vec<_> = (0..200)
                .map(|n| Execution {
                    module_id: Some(modules[(n % 2) as usize]),
                    status: Status::ALL[(n % 5) as usize],
                    // Half of what each writes, another writes too.
                    ..execution((writer / 2) * 1000 + n, at)
                })
                .collect();
            if writer % 3 == 0 {
                rows.reverse();
            }
            tokio::spawn(async move {
                loop {
                    match store.usage_write(&rows).await {
                        Ok(new) => return new,
                        Err(StoreError::Unavailable(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    let mut new = 0;
    for writer in writers {
        new += writer.await.unwrap();
    }
    assert_eq!(new, 1600);
    assert_eq!(total(&stores[0]).await, 1600);
    for module_id in modules {
        let module = stores[0].module(module_id).await.unwrap().unwrap();
        assert_eq!(module.execution_count, 800);
    }
}

//! Records on their way from the journal to a database that is busy.

use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use sqlx::{Connection, SqliteConnection};
use tokio::sync::watch;
use wasm_wizard::store::usage::Status;
use wasm_wizard::telemetry::health::Health;
use wasm_wizard::usage::{Delivery, Entry, Recorder, Retention, Settings, Used, WhenFull};

use super::{Database, total};

fn settings(directory: &Path) -> Settings {
    let kept = Duration::from_secs(3600);
    Settings {
        directory: directory.join("usage"),
        bytes_max: 64 << 20,
        when_full: WhenFull::Refuse,
        sync_interval: None,
        retention: Retention {
            executions: kept,
            days: kept,
        },
    }
}

fn record(recorder: &Recorder, count: usize) {
    for _ in 0..count {
        let entry = Entry {
            caller: None,
            module: None,
            module_id: None,
            route: Some("route"),
            status: Status::Success,
            used: Used::default(),
            request_id: "r",
        };
        recorder.record(&entry).unwrap();
    }
}

/// Else a delivery goes on in ever smaller batches, which cost more than their rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_while_it_delivers_waits_for_the_next_time() {
    let database = Database::sqlite();
    let store = database.migrated().await;
    let directory = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(&settings(directory.path())).unwrap();
    record(&recorder, 100);
    let mut other = SqliteConnection::connect(&database.url).await.unwrap();
    let lock = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let mut delivering = pin!(recorder.deliver(&store));
    // It has read what there is, and waits for the lock.
    let waited = tokio::time::timeout(Duration::from_secs(1), &mut delivering).await;
    assert!(waited.is_err());
    record(&recorder, 50);
    lock.rollback().await.unwrap();
    assert_eq!(delivering.await.unwrap(), 100);
    assert_eq!(recorder.deliver(&store).await.unwrap(), 50);
    assert_eq!(total(&store).await, 150);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_does_not_wait_for_a_database_that_hangs() {
    let database = Database::sqlite();
    let store = database.migrated().await;
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let recorder = Recorder::open(&settings).unwrap();
    record(&recorder, 10);
    let mut other = SqliteConnection::connect(&database.url).await.unwrap();
    let lock = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let (stop, stopped) = watch::channel(false);
    let delivery = Delivery::new(recorder, store.clone(), Health::new(), &settings);
    let mut delivering = pin!(delivery.run(stopped));
    let waited = tokio::time::timeout(Duration::from_secs(1), &mut delivering).await;
    assert!(waited.is_err());
    let began = Instant::now();
    stop.send(true).unwrap();
    delivering.await;
    // Five seconds are for the last try.
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    lock.rollback().await.unwrap();
    // The next one delivers what was left.
    let next = Recorder::open(&settings).unwrap();
    let (stop, stopped) = watch::channel(false);
    let delivery = Delivery::new(next, store.clone(), Health::new(), &settings);
    let delivering = tokio::spawn(delivery.run(stopped));
    let deadline = Instant::now() + Duration::from_secs(20);
    while total(&store).await < 10 {
        assert!(Instant::now() < deadline, "{}", total(&store).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.send(true).unwrap();
    delivering.await.unwrap();
    assert_eq!(total(&store).await, 10);
}

//! What the record of an execution costs the thread that answers, and then its row in SQLite, in CPU time of all
//! threads: `cargo bench --bench usage`. Both are in the working directory, on whatever disk that is.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark ends at the first step that does not work"
)]

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;
use wasm_wizard::sandbox::ModuleHash;
use wasm_wizard::store::usage::{BATCH_ROWS_MAX, Execution, id};
use wasm_wizard::store::{self, Store};
use wasm_wizard::usage::{Caller, Entry, Recorder, Retention, Settings, Status, Used, WhenFull};

const RECORDS: u32 = 500_000;
const BATCHES: u32 = 300;
const ROUNDS: usize = 3;

fn main() {
    let kept = Duration::from_secs(3600);
    for threads in [1, 2] {
        for _ in 0..ROUNDS {
            let directory = tempfile::tempdir_in(".").unwrap();
            let recorder = Recorder::open(&Settings {
                directory: directory.path().join("usage"),
                bytes_max: 1 << 30,
                when_full: WhenFull::Refuse,
                sync_interval: None,
                retention: Retention {
                    executions: kept,
                    days: kept,
                },
            })
            .unwrap();
            let begun = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| record(&recorder));
                }
            });
            let nanoseconds = begun.elapsed().as_nanos() / u128::from(RECORDS);
            println!("{threads} thread(s): {nanoseconds} ns a record");
        }
    }
    for callers in [1, 10, BATCH_ROWS_MAX] {
        for _ in 0..ROUNDS {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let nanoseconds = runtime.block_on(deliver(callers));
            println!("{callers} caller(s): {nanoseconds} ns of CPU a row in SQLite");
        }
    }
}

/// Writes batches of executions of so many callers, by turns; returns what a row took.
async fn deliver(callers: usize) -> u128 {
    let directory = tempfile::tempdir_in(".").unwrap();
    let store = Store::connect(&store::Settings {
        url: format!("sqlite://{}", directory.path().join("usage.db").display()),
        connections_max: 1,
        acquire_timeout: Duration::from_secs(5),
    })
    .await
    .unwrap();
    store.migrate().await.unwrap();
    let begun = cpu_time();
    let mut at = Utc::now();
    for _ in 0..BATCHES {
        at += TimeDelta::milliseconds(20);
        let rows: Vec<_> = (0..BATCH_ROWS_MAX).map(|n| row(at, n, callers)).collect();
        store.usage_write(&rows).await.unwrap();
    }
    (cpu_time() - begun).as_nanos() / (u128::from(BATCHES) * BATCH_ROWS_MAX as u128)
}

fn row(at: DateTime<Utc>, number: usize, callers: usize) -> Execution {
    Execution {
        id: id(at.timestamp_micros(), number as u128),
        at,
        caller: Some(Caller {
            user_id: Uuid::from_u128(1),
            key_id: Uuid::from_u128((number % callers) as u128),
        }),
        module: Some(ModuleHash([7; 32])),
        module_id: None,
        route: Some("function".into()),
        status: Status::Success,
        wall_us: 12,
        cpu_us: 3,
        memory_peak_bytes: 65_536,
        bytes_in: 0,
        bytes_out: 5,
        request_id: "0191e6b0c0de7000800000000000000a".into(),
    }
}

/// Of all threads of the process (proc_pid_stat(5)), in hundredths of a second.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let spent = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = spent.map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

fn record(recorder: &Recorder) {
    let entry = Entry {
        caller: Some(Caller {
            user_id: Uuid::from_u128(1),
            key_id: Uuid::from_u128(2),
        }),
        module: Some(ModuleHash([7; 32])),
        module_id: None,
        route: Some("function"),
        status: Status::Success,
        used: Used::default(),
        request_id: "0191e6b0c0de7000800000000000000a",
    };
    for _ in 0..RECORDS {
        recorder.check_room().unwrap();
        recorder.record(&entry).unwrap();
    }
}

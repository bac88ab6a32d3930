//! What the record of an execution costs the thread that answers: `cargo bench --bench usage`. The journal is
//! in the working directory, on whatever disk that is.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark ends at the first step that does not work"
)]

use std::time::{Duration, Instant};

use uuid::Uuid;
use wasm_wizard::sandbox::ModuleHash;
use wasm_wizard::usage::{Caller, Entry, Recorder, Retention, Settings, Status, Used, WhenFull};

const RECORDS: u32 = 500_000;
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

//! What executions used: each leaves a record, which reaches the database later.
//!
//! [`Recorder::record`] puts it into a [`journal`] on this machine before the answer leaves, for the price of
//! one system call. [`Delivery`] brings it from there to the database in batches, and [`upkeep`](mod@upkeep)
//! deletes what is too old.

mod delivery;
mod journal;
mod record;
mod upkeep;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::failure::{Failure, code};
use crate::sandbox::Outcome;
use crate::telemetry::metrics::metrics;
use journal::Journal;

pub use crate::store::usage::{Caller, Status};
pub use delivery::Delivery;
pub use record::{Entry, Used};
pub use upkeep::{Retention, upkeep};

/// Settings of the records of executions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The journal's folder; gateways on the same database may share it.
    pub directory: PathBuf,
    /// What the journal may take on the disk.
    pub bytes_max: u64,
    pub when_full: WhenFull,
    /// How often the journal is written to the disk for sure; `None` leaves it to the kernel.
    pub sync_interval: Option<Duration>,
    pub retention: Retention,
}

/// What happens to executions when the journal takes no more.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// They are refused with 503, so that none goes unrecorded.
    Refuse,
    /// They go on, and their records are lost; a metric counts them.
    Drop,
}

/// Records executions. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    inner: Arc<Inner>,
}

struct Inner {
    journal: Journal,
    when_full: WhenFull,
    /// The last record could not be written.
    failing: AtomicBool,
}

/// An execution can't be recorded, so it must not be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the execution can't be recorded")]
pub struct Unrecorded;

impl From<Unrecorded> for Failure {
    fn from(_: Unrecorded) -> Failure {
        Failure::unavailable(
            code::USAGE_UNAVAILABLE,
            "executions can't be recorded right now; try again shortly",
        )
    }
}

impl Recorder {
    /// Opens the journal.
    ///
    /// # Errors
    /// When its folder can't be made or used.
    pub fn open(settings: &Settings) -> io::Result<Recorder> {
        Ok(Recorder {
            inner: Arc::new(Inner {
                journal: Journal::open(&settings.directory, settings.bytes_max)?,
                when_full: settings.when_full,
                failing: AtomicBool::new(false),
            }),
        })
    }

    /// Whether executions may begin: asked before each, so that none runs in vain. Costs two loads.
    ///
    /// # Errors
    /// When the journal is full or can't be written to, unless records may then be lost.
    pub fn check_room(&self) -> Result<(), Unrecorded> {
        match self.inner.when_full {
            WhenFull::Drop => Ok(()),
            WhenFull::Refuse if self.takes_records() => Ok(()),
            WhenFull::Refuse => Err(Unrecorded),
        }
    }

    /// Records an execution that has ended, or was refused. When this returns, the record outlives the process.
    ///
    /// # Errors
    /// When the record can't be written, unless it may be lost: then the execution must not be answered with
    /// what it did.
    pub fn record(&self, entry: &Entry<'_>) -> Result<(), Unrecorded> {
        let inner = &self.inner;
        let may_drop = inner.when_full == WhenFull::Drop;
        if may_drop && inner.journal.is_full() {
            metrics().usage.dropped_full.inc();
            return Ok(());
        }
        match inner.journal.append(entry, now_us()) {
            Ok(()) => Ok(()),
            Err(error) => {
                if !inner.failing.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, "the usage journal can't be written to");
                }
                if may_drop {
                    metrics().usage.dropped_unwritable.inc();
                    return Ok(());
                }
                Err(Unrecorded)
            }
        }
    }

    fn takes_records(&self) -> bool {
        !self.inner.journal.is_full() && !self.inner.failing.load(Ordering::Relaxed)
    }
}

impl Used {
    /// What a guest used of its machine, and wrote; what it was given to read is for the caller to say.
    pub fn of(outcome: &Outcome, bytes_in: u64) -> Used {
        let usage = &outcome.usage;
        Used {
            wall_us: micros(usage.wall),
            cpu_us: micros(usage.cpu),
            memory_peak_bytes: usage.memory_peak_bytes,
            bytes_in,
            bytes_out: usage.stdout_bytes,
        }
    }

    /// Of an execution that has no outcome: the time that passed.
    pub fn time(wall: Duration, bytes_in: u64) -> Used {
        Used {
            wall_us: micros(wall),
            bytes_in,
            ..Used::default()
        }
    }
}

/// Microseconds since 1970: no date is made of them for each execution. A clock that is before that stands there.
fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(i64::MAX)
}

/// The status of a request that was not executed, or whose guest's answer could not be used.
pub fn status_of(failure: &Failure) -> Status {
    if failure.code == code::STOPPED {
        return Status::Cancelled;
    }
    match failure.status.as_u16() {
        429 | 503 => Status::Rejected,
        400..=499 => Status::ValidationError,
        _ => Status::ExecutionError,
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn recorder(directory: &std::path::Path, when_full: WhenFull) -> Recorder {
        let kept = Duration::from_secs(3600);
        Recorder::open(&Settings {
            directory: directory.to_owned(),
            // One file, which the first record begins.
            bytes_max: journal::SEGMENT_BYTES_MAX,
            when_full,
            sync_interval: None,
            retention: Retention {
                executions: kept,
                days: kept,
            },
        })
        .unwrap()
    }

    fn entry() -> Entry<'static> {
        Entry {
            caller: None,
            module: None,
            module_id: None,
            route: None,
            status: Status::Success,
            used: Used::default(),
            request_id: "r",
        }
    }

    #[test]
    fn a_full_journal_refuses_executions_but_not_those_under_way() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = recorder(dir.path(), WhenFull::Refuse);
        assert_eq!(recorder.check_room(), Ok(()));
        assert_eq!(recorder.record(&entry()), Ok(()));
        assert_eq!(recorder.check_room(), Err(Unrecorded));
        assert_eq!(recorder.record(&entry()), Ok(()));
        assert_eq!(recorder.inner.journal.depth().rows, 2);
        let failure = Failure::from(Unrecorded);
        assert_eq!(failure.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(failure.retry_after.is_some());
    }

    #[test]
    fn where_records_may_be_lost_they_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = recorder(dir.path(), WhenFull::Drop);
        assert_eq!(recorder.record(&entry()), Ok(()));
        let before = metrics().usage.dropped_full.get();
        assert_eq!(recorder.check_room(), Ok(()));
        assert_eq!(recorder.record(&entry()), Ok(()));
        assert!(metrics().usage.dropped_full.get() > before);
        assert_eq!(recorder.inner.journal.depth().rows, 1);
    }

    #[test]
    fn refusals_are_mistakes_of_the_client_or_want_of_room() {
        for (status, expected) in [
            (400, Status::ValidationError),
            (408, Status::ValidationError),
            (413, Status::ValidationError),
            (422, Status::ValidationError),
            (429, Status::Rejected),
            (503, Status::Rejected),
            (500, Status::ExecutionError),
            (502, Status::ExecutionError),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let failure = Failure::new(status, code::INTERNAL_ERROR, "");
            assert_eq!(status_of(&failure), expected, "{status}");
        }
        // What the operator ended was no mistake of the client's.
        assert_eq!(status_of(&Failure::stopped()), Status::Cancelled);
    }
}

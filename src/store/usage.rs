//! What executions used: a row for each, and sums by day.
//!
//! Rows come in batches from the journals of gateways, and may come twice. Each has an id that was made
//! with it, so what is there already is passed over; and the sums, and the counts of modules, are changed
//! in the same transaction by exactly the rows that are new.

mod read;
mod sums;
mod upkeep;
mod write;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::sandbox::{End, ModuleHash};

pub use read::{Filter, GroupBy, PAGE_ROWS_MAX, Total};
pub use upkeep::Step;

/// Most rows of one [`super::Store::usage_write`].
pub const BATCH_ROWS_MAX: usize = 1_024;

/// Most that one row may say it used, in microseconds or bytes: no guest comes near, and sums of many rows
/// still fit a column.
const USED_MAX: u64 = 1 << 48;

/// One execution, or one that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execution {
    /// A UUIDv7 with the same millisecond as `at`.
    pub id: Uuid,
    /// When it ended.
    pub at: DateTime<Utc>,
    /// `None` for an anonymous caller.
    pub caller: Option<Caller>,
    /// `None` when the request brought no module that could be compiled.
    pub module: Option<ModuleHash>,
    /// The stored module's.
    pub module_id: Option<Uuid>,
    /// The route's name; `None` for the API.
    pub route: Option<Arc<str>>,
    pub status: Status,
    pub wall_us: u64,
    pub cpu_us: u64,
    pub memory_peak_bytes: u64,
    /// What the guest was given to read.
    pub bytes_in: u64,
    /// What the guest wrote.
    pub bytes_out: u64,
    pub request_id: Arc<str>,
}

/// Whose execution it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller {
    pub user_id: Uuid,
    pub key_id: Uuid,
}

/// How an execution ended, or why there was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    Success,
    /// The guest trapped, exited with another code than 0, or answered what is no answer.
    ExecutionError,
    TimeLimitExceeded,
    MemoryLimitExceeded,
    StackLimitExceeded,
    TableLimitExceeded,
    OutputLimitExceeded,
    /// What the client sent could not be executed.
    ValidationError,
    /// There was no place for it.
    Rejected,
    /// The client left before the end.
    Cancelled,
}

impl Status {
    pub const ALL: [Status; 10] = [
        Status::Success,
        Status::ExecutionError,
        Status::TimeLimitExceeded,
        Status::MemoryLimitExceeded,
        Status::StackLimitExceeded,
        Status::TableLimitExceeded,
        Status::OutputLimitExceeded,
        Status::ValidationError,
        Status::Rejected,
        Status::Cancelled,
    ];

    /// As it stands in the API and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Success => "success",
            Status::ExecutionError => "execution_error",
            Status::TimeLimitExceeded => "time_limit_exceeded",
            Status::MemoryLimitExceeded => "memory_limit_exceeded",
            Status::StackLimitExceeded => "stack_limit_exceeded",
            Status::TableLimitExceeded => "table_limit_exceeded",
            Status::OutputLimitExceeded => "output_limit_exceeded",
            Status::ValidationError => "validation_error",
            Status::Rejected => "rejected",
            Status::Cancelled => "cancelled",
        }
    }

    /// What programs know it as that were made before it: they share journals and databases with this one while
    /// gateways are replaced, and must be able to read all of them.
    pub fn before(self) -> Status {
        match self {
            Status::StackLimitExceeded | Status::TableLimitExceeded => Status::ExecutionError,
            Status::Success
            | Status::ExecutionError
            | Status::TimeLimitExceeded
            | Status::MemoryLimitExceeded
            | Status::OutputLimitExceeded
            | Status::ValidationError
            | Status::Rejected
            | Status::Cancelled => self,
        }
    }

    /// The status, where [`Status::before`] is another one.
    fn exact(self) -> Option<Status> {
        (self.before() != self).then_some(self)
    }

    /// Whether a guest ran to an end of its own or its limits', so that its module counts it.
    fn is_run(self) -> bool {
        match self {
            Status::Success
            | Status::ExecutionError
            | Status::TimeLimitExceeded
            | Status::MemoryLimitExceeded
            | Status::StackLimitExceeded
            | Status::TableLimitExceeded
            | Status::OutputLimitExceeded => true,
            Status::ValidationError | Status::Rejected | Status::Cancelled => false,
        }
    }
}

impl From<&End> for Status {
    fn from(end: &End) -> Status {
        match end {
            End::Exit(0) => Status::Success,
            End::Exit(_) | End::Trap(_) | End::HostError(_) => Status::ExecutionError,
            End::TimeLimit => Status::TimeLimitExceeded,
            End::MemoryLimit => Status::MemoryLimitExceeded,
            End::StackLimit => Status::StackLimitExceeded,
            End::TableLimit => Status::TableLimitExceeded,
            End::OutputLimit => Status::OutputLimitExceeded,
            End::Cancelled => Status::Cancelled,
        }
    }
}

/// What a row says was used, as a column holds it.
fn used(value: u64) -> i64 {
    i64::try_from(value.min(USED_MAX)).unwrap_or(i64::MAX)
}

/// The least id of what ended at this millisecond.
fn first_id(at: DateTime<Utc>) -> Uuid {
    id(at.timestamp_micros(), 0)
}

/// The id of what ended at a time: a UUIDv7 (RFC 9562 section 5.7), of whose 74 other bits the caller has the
/// say.
pub fn id(at_us: i64, unique: u128) -> Uuid {
    // Before 1970 and after 10889 are as good as then.
    let millis = u64::try_from(at_us.div_euclid(1000)).unwrap_or(0) & 0xffff_ffff_ffff;
    let high = (unique >> 62) & 0xfff;
    let low = unique & ((1 << 62) - 1);
    Uuid::from_u128(u128::from(millis) << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_in_the_order_of_time() {
        let at = DateTime::from_timestamp_millis(1_700_000_000_123).unwrap();
        let later = DateTime::from_timestamp_millis(1_700_000_000_124).unwrap();
        let most = (1 << 74) - 1;
        for unique in [0, 1, 1 << 62, most] {
            let id = id(at.timestamp_micros(), unique);
            assert_eq!(id.get_version_num(), 7);
            assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
            assert!(first_id(at) <= id && id < first_id(later), "{id}");
        }
        let at_us = at.timestamp_micros();
        assert_ne!(id(at_us, 1), id(at_us, 1 << 62));
        assert_eq!(id(at_us, most), id(at_us, u128::MAX));
        assert_eq!(
            first_id(DateTime::UNIX_EPOCH - chrono::TimeDelta::days(9)),
            first_id(DateTime::UNIX_EPOCH)
        );
    }

    #[test]
    fn a_status_is_one_word_everywhere() {
        let run = [
            End::Exit(0),
            End::Exit(3),
            End::Trap(String::new()),
            End::TimeLimit,
            End::MemoryLimit,
            End::StackLimit,
            End::TableLimit,
            End::OutputLimit,
            End::Cancelled,
        ];
        for end in run {
            assert_eq!(Status::from(&end).as_str(), end.status());
        }
    }
}

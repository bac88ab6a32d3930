//! What is too old is deleted, in the background.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::store::usage::Step;
use crate::store::{Store, StoreError};

/// How often it is looked whether something is too old.
const EVERY: Duration = Duration::from_secs(60);
/// A pause after each transaction, for others who want to write.
const PAUSE: Duration = Duration::from_millis(20);

/// How long what is in the database is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// A single execution.
    pub executions: Duration,
    /// The sums of a day.
    pub days: Duration,
}

/// Deletes what is too old, for ever. Of several gateways, one at a time does it.
pub async fn upkeep(store: Store, retention: Retention) {
    let mut was_failing = false;
    loop {
        tokio::time::sleep(EVERY).await;
        match expire(&store, retention, Utc::now()).await {
            Ok(0) => was_failing = false,
            Ok(rows) => {
                was_failing = false;
                tracing::info!(rows, "deleted usage that is older than its retention");
            }
            Err(error) => {
                // Said once: the database's own check tells when it is back.
                if !was_failing {
                    tracing::warn!(%error, "old usage can't be deleted now; it is tried again");
                }
                was_failing = true;
            }
        }
    }
}

/// Deletes all that is too old at `now`, a little at a time; returns how many rows.
async fn expire(
    store: &Store,
    retention: Retention,
    now: DateTime<Utc>,
) -> Result<u64, StoreError> {
    let ago = |age| {
        let age = TimeDelta::from_std(age).unwrap_or(TimeDelta::MAX);
        now.checked_sub_signed(age).unwrap_or(DateTime::UNIX_EPOCH)
    };
    let (executions, days) = (ago(retention.executions), ago(retention.days).date_naive());
    let mut deleted = 0;
    loop {
        match store.usage_expire(executions, days).await? {
            Step::Deleted(rows) => deleted += rows,
            Step::Done | Step::Busy => return Ok(deleted),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

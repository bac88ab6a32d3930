//! From the journal to the database.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chrono::Utc;
use tokio::sync::watch;

use super::journal::Batch;
use super::{Recorder, Settings, WhenFull};
use crate::store::usage::{BATCH_ROWS_MAX, Execution};
use crate::store::{Store, StoreError};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::metrics;

/// How often what has come in is delivered.
const EVERY: Duration = Duration::from_millis(500);
/// How often it is looked for journals of processes that are gone.
const ADOPT_EVERY: Duration = Duration::from_secs(10);
/// Longest pause after a failure.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Longest that a stop waits for the database; what is left then, the next start delivers.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Brings records from the journal to the database.
pub struct Delivery {
    pub recorder: Recorder,
    pub store: Store,
    pub health: Health,
    pub sync_interval: Option<Duration>,
}

/// How delivering goes.
struct Progress {
    /// What the database said last.
    failing: bool,
    /// How long it is left alone.
    pause: Duration,
    adopt: Instant,
}

impl Recorder {
    /// Delivers all that is in the journal now; returns how many rows were new to the database. What comes
    /// in meanwhile waits for the next time: to go on would be to deliver it in ever smaller batches.
    ///
    /// # Errors
    /// When the database does not take them; they stay in the journal.
    pub async fn deliver(&self, store: &Store) -> Result<u64, StoreError> {
        let mut written = 0;
        loop {
            let batch = self.read().await;
            if batch.is_empty() {
                return Ok(written);
            }
            let is_last = batch.executions.len() < BATCH_ROWS_MAX;
            metrics().usage.oldest_seconds.set(batch.age_seconds());
            let new = write(store, &batch.executions).await?;
            written += new;
            let usage = &metrics().usage;
            usage.written.inc_by(new);
            if batch.damaged_bytes > 0 {
                usage.damaged_bytes.inc_by(batch.damaged_bytes);
                tracing::warn!(
                    bytes = batch.damaged_bytes,
                    "the usage journal holds bytes that are no records: the end of one that a killed process wrote, or damage"
                );
            }
            self.on_disk(|recorder| recorder.inner.journal.delivered(batch))
                .await;
            usage.oldest_seconds.set(0);
            if is_last {
                return Ok(written);
            }
        }
    }

    async fn read(&self) -> Batch {
        let read = self.on_disk(|recorder| recorder.inner.journal.read(BATCH_ROWS_MAX));
        read.await.unwrap_or_default()
    }

    /// The disk may be slow: not on a thread that others wait for.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Recorder) -> T + Send + 'static,
    ) -> Option<T> {
        let recorder = self.clone();
        tokio::task::spawn_blocking(move || work(&recorder))
            .await
            .inspect_err(|error| tracing::error!(%error, "the usage journal's task failed"))
            .ok()
    }
}

impl Delivery {
    pub fn new(recorder: Recorder, store: Store, health: Health, settings: &Settings) -> Delivery {
        Delivery {
            recorder,
            store,
            health,
            sync_interval: settings.sync_interval,
        }
    }

    /// Delivers until `stopped`, and then what is left, for as long as a stop may wait for it.
    pub async fn run(self, mut stopped: watch::Receiver<bool>) {
        // The journal is looked after also while a delivery takes long, or waits for a database that hangs.
        let work = async { tokio::join!(self.keep_delivering(), self.keep_watch()) };
        tokio::select! {
            _ = work => {}
            // A sender that is gone is a stop too. What is cut off in the middle is delivered again.
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
        self.finish().await;
    }

    async fn keep_delivering(&self) {
        let mut progress = Progress {
            failing: false,
            pause: Duration::ZERO,
            adopt: Instant::now(),
        };
        loop {
            let now = Instant::now();
            if now >= progress.adopt {
                progress.adopt = now + ADOPT_EVERY;
                let adopted = self.recorder.on_disk(|r| r.inner.journal.adopt()).await;
                if let Some(Err(error)) = adopted {
                    tracing::warn!(%error, "journals of gateways that are gone can't be looked for");
                }
            }
            self.deliver(&mut progress).await;
            tokio::time::sleep(progress.pause.max(EVERY)).await;
        }
    }

    async fn keep_watch(&self) {
        let mut sync = Instant::now();
        let mut trouble = None;
        loop {
            let now = Instant::now();
            if let Some(interval) = self.sync_interval
                && now >= sync
            {
                sync = now + interval;
                if let Some(Err(error)) = self.recorder.on_disk(|r| r.inner.journal.sync()).await {
                    tracing::error!(%error, "the usage journal can't be written to the disk for sure");
                }
            }
            self.tell(&mut trouble).await;
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn deliver(&self, progress: &mut Progress) {
        match self.recorder.deliver(&self.store).await {
            Ok(_) => {
                if progress.failing {
                    tracing::info!("usage reaches the database again");
                }
                progress.failing = false;
                progress.pause = Duration::ZERO;
            }
            Err(error) => {
                if !progress.failing {
                    tracing::warn!(%error, "usage can't be written to the database now; it waits in the journal");
                }
                progress.failing = true;
                progress.pause = (progress.pause * 2).clamp(EVERY, PAUSE_MAX);
            }
        }
    }

    /// Says how the journal is: to metrics, health and, when it changes, the log. `told` is why the journal takes no
    /// records, as said before.
    async fn tell(&self, told: &mut Option<&'static str>) {
        let inner = &self.recorder.inner;
        if inner.failing.load(Ordering::Relaxed) {
            let probed = self.recorder.on_disk(|r| r.inner.journal.probe()).await;
            if matches!(probed, Some(Ok(()))) {
                inner.failing.store(false, Ordering::Relaxed);
            }
        }
        let depth = inner.journal.depth();
        let usage = &metrics().usage;
        usage.rows.set(depth.rows.cast_signed());
        usage.bytes.set(depth.bytes.cast_signed());
        let trouble = if inner.journal.is_full() {
            Some("the usage journal is full")
        } else if inner.failing.load(Ordering::Relaxed) {
            Some("the usage journal can't be written to")
        } else {
            None
        };
        usage.refusing.set(i64::from(trouble.is_some()));
        match trouble {
            Some(trouble) if *told != Some(trouble) => {
                tracing::error!(trouble, policy = ?inner.when_full, "executions can't be recorded");
            }
            None if told.is_some() => tracing::info!("executions are recorded again"),
            Some(_) | None => {}
        }
        *told = trouble;
        // Where records may be lost, a gateway that loses them goes on serving: nobody must think it can't.
        let unhealthy = trouble.filter(|_| inner.when_full == WhenFull::Refuse);
        let found = unhealthy.map_or(Ok(()), |trouble| {
            Err(format!("{trouble}: executions are refused"))
        });
        self.health.set("journal", found);
    }

    async fn finish(&self) {
        let delivered = self.recorder.deliver(&self.store);
        match tokio::time::timeout(FINISH_TIMEOUT, delivered).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "usage that is not in the database yet stays in the journal");
            }
            Err(_) => tracing::warn!(
                "usage that is not in the database yet stays in the journal: there is too much of it for the end of a process"
            ),
        }
        self.recorder.on_disk(|r| r.inner.journal.close()).await;
    }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.executions.is_empty() && !self.has_progress()
    }

    /// How long its first record has waited.
    fn age_seconds(&self) -> i64 {
        let first = self.executions.first().map(|execution| execution.at);
        first.map_or(0, |at| (Utc::now() - at).num_seconds().max(0))
    }
}

/// Writes a batch. Where the database refuses a row for what is in it, only that one is lost: it would be refused
/// for ever, and all behind it would wait.
async fn write(store: &Store, executions: &[Execution]) -> Result<u64, StoreError> {
    let (mut written, mut left) = (0, vec![executions]);
    while let Some(rows) = left.pop() {
        match store.usage_write(rows).await {
            Ok(new) => written += new,
            Err(StoreError::Invalid(reason)) => match rows {
                [] => {}
                [row] => {
                    metrics().usage.dropped_refused.inc();
                    tracing::error!(
                        request_id = &*row.request_id,
                        reason,
                        "a usage record is lost"
                    );
                }
                rows => {
                    let (first, second) = rows.split_at(rows.len() / 2);
                    left.extend([second, first]);
                }
            },
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

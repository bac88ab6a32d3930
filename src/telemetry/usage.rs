//! Metrics of the records of executions: what waits in the journal, and what became of it.

use prometheus::{IntCounter, IntGauge};

use super::metrics::Registrar;

/// What is known of the usage journal and its delivery.
pub struct UsageMetrics {
    pub rows: IntGauge,
    pub bytes: IntGauge,
    pub oldest_seconds: IntGauge,
    pub refusing: IntGauge,
    pub written: IntCounter,
    pub dropped_full: IntCounter,
    pub dropped_unwritable: IntCounter,
    pub dropped_refused: IntCounter,
    pub damaged_bytes: IntCounter,
}

impl UsageMetrics {
    pub(super) fn new(r: &Registrar<'_>) -> UsageMetrics {
        let dropped = r.counter_vec(
            "usage_rows_dropped_total",
            "Executions whose record is lost, by reason: full, unwritable (the journal), refused (by the database).",
            &["reason"],
        );
        // They stand at 0 from the start, so that an alert sees the first.
        let [dropped_full, dropped_unwritable, dropped_refused] =
            ["full", "unwritable", "refused"].map(|reason| dropped.with_label_values(&[reason]));
        UsageMetrics {
            rows: r.gauge(
                "usage_journal_rows",
                "Records of this process that wait to be written to the database.",
            ),
            bytes: r.gauge(
                "usage_journal_bytes",
                "Size of the records that wait, those of gateways that are gone included, in bytes.",
            ),
            oldest_seconds: r.gauge(
                "usage_journal_oldest_seconds",
                "How long the oldest record has waited at the last attempt to write it, in seconds; 0 when none waits.",
            ),
            refusing: r.gauge(
                "usage_journal_refusing",
                "1 while the journal takes no records because it is full or can't be written to, else 0.",
            ),
            written: r.counter(
                "usage_rows_written_total",
                "Records that this process wrote to the database.",
            ),
            dropped_full,
            dropped_unwritable,
            dropped_refused,
            damaged_bytes: r.counter(
                "usage_journal_damaged_bytes_total",
                "Bytes in journals that were no records: the torn ends that killed processes leave, and damage.",
            ),
        }
    }
}

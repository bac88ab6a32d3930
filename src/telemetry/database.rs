//! Metrics of the database: whether it answers, how busy the pool is, how calls end, and what
//! is in it.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntGauge, IntGaugeVec};

use super::metrics::Registrar;

/// How a call may end: the values of the label `result`.
const RESULTS: [&str; 4] = ["ok", "refused", "unavailable", "failed"];

/// How a call to the database ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallResult {
    Ok,
    /// By the rules of the data: something is missing, taken, or not allowed.
    Refused,
    /// The database could not be reached, or not in time.
    Unavailable,
    /// Our own mistake, or damage.
    Failed,
}

/// How many connections there are now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connections {
    pub active: u32,
    pub idle: u32,
    pub max: u32,
}

/// What is counted of the database.
pub struct DatabaseMetrics {
    pub up: IntGauge,
    active: IntGauge,
    idle: IntGauge,
    max: IntGauge,
    calls: [IntCounter; RESULTS.len()],
    duration: Histogram,
    users: IntGaugeVec,
    api_keys: IntGaugeVec,
    pub modules: IntGauge,
    pub module_bytes: IntGauge,
}

impl DatabaseMetrics {
    pub(super) fn new(r: &Registrar<'_>) -> DatabaseMetrics {
        let calls = r.counter_vec(
            "database_calls_total",
            "Calls to the database, by result: ok, refused (by the rules of the data), unavailable, failed.",
            &["result"],
        );
        DatabaseMetrics {
            up: r.gauge(
                "database_up",
                "1 when the database answered the last check, else 0.",
            ),
            active: r.gauge(
                "database_connections_active",
                "Connections to the database that are in use now.",
            ),
            idle: r.gauge(
                "database_connections_idle",
                "Connections to the database that wait to be used.",
            ),
            max: r.gauge(
                "database_connections_max",
                "Connections to the database that there may be.",
            ),
            calls: RESULTS.map(|result| calls.with_label_values(&[result])),
            duration: r.histogram(
                "database_call_duration_seconds",
                "Time of a call to the database, the wait for a connection included, in seconds.",
            ),
            users: r.gauge_vec(
                "users",
                "Users that may sign in, by role; counted once a minute.",
                &["role"],
            ),
            api_keys: r.gauge_vec(
                "api_keys",
                "API keys that are neither revoked nor expired, by tier; counted once a minute.",
                &["tier"],
            ),
            modules: r.gauge("modules", "Stored modules; counted once a minute."),
            module_bytes: r.gauge(
                "module_bytes",
                "Size of all stored modules, each content once, in bytes; counted once a minute.",
            ),
        }
    }

    pub fn connections(&self, now: Connections) {
        self.active.set(i64::from(now.active));
        self.idle.set(i64::from(now.idle));
        self.max.set(i64::from(now.max));
    }

    pub fn called(&self, result: CallResult, duration: Duration) {
        self.calls[result as usize].inc();
        self.duration.observe(duration.as_secs_f64());
    }

    pub fn users(&self, role: &str, count: u64) {
        let gauge = self.users.with_label_values(&[role]);
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub fn api_keys(&self, tier: &str, count: u64) {
        let gauge = self.api_keys.with_label_values(&[tier]);
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

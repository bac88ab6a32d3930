//! Health: what each check last found, and what the endpoints say of it.
//!
//! The checks run in the background and leave their result here, so that a health request costs
//! nothing and can't be used to load the database.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{SecondsFormat, Utc};
use serde::Serialize;

use super::metrics::metrics;

/// The program counts as stuck, hence not live, when nothing has beaten for this long.
const HEARTBEAT_MAX_AGE: Duration = Duration::from_secs(15);

/// The state of all checks. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    shared: Arc<Shared>,
}

struct Shared {
    checks: Mutex<BTreeMap<&'static str, Check>>,
    config: Mutex<ConfigReport>,
    draining: AtomicBool,
    started: Instant,
    /// Milliseconds from `started` to the last heartbeat.
    beaten_ms: AtomicU64,
}

/// What one check last found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub status: CheckStatus,
    /// For people; never holds a secret. Absent when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    Ok,
    /// Something is lost that the gateway can do without.
    Degraded,
    Failing,
}

/// What became of the configuration: for operators alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ConfigReport {
    /// When the one in use was loaded (RFC 3339, UTC).
    pub loaded_at: String,
    /// Why a newer one was refused, and when; absent where the newest is in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

/// A configuration that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// RFC 3339, UTC.
    pub at: String,
    pub reason: String,
}

/// The body of a health answer.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub status: &'static str,
    /// RFC 3339, UTC.
    pub timestamp: String,
    pub service: &'static str,
    pub version: &'static str,
    pub uptime_seconds: u64,
    pub checks: BTreeMap<&'static str, Check>,
    /// On the admin listener alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigReport>,
}

/// Which question a health request asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// `/health`: everything, with details.
    Full,
    /// `/health/live`, `/healthz`: should the process be restarted?
    Live,
    /// `/health/ready`, `/readyz`: should it get traffic?
    Ready,
}

impl Probe {
    /// The probe that a path asks for.
    pub fn from_path(path: &str) -> Option<Probe> {
        match path {
            "/health" => Some(Probe::Full),
            "/health/live" | "/healthz" => Some(Probe::Live),
            "/health/ready" | "/readyz" => Some(Probe::Ready),
            _ => None,
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Health::new()
    }
}

impl Health {
    pub fn new() -> Health {
        Health {
            shared: Arc::new(Shared {
                checks: Mutex::new(BTreeMap::new()),
                config: Mutex::default(),
                draining: AtomicBool::new(false),
                started: Instant::now(),
                beaten_ms: AtomicU64::new(0),
            }),
        }
    }

    /// Notes what a check found; returns whether that is a change.
    pub fn set(&self, name: &'static str, found: Result<(), String>) -> bool {
        let (status, detail) = match found {
            Ok(()) => (CheckStatus::Ok, None),
            Err(detail) => (CheckStatus::Failing, Some(detail)),
        };
        self.note(name, Check { status, detail })
    }

    /// Notes that a check found something lost, which makes the gateway no less ready; returns whether
    /// that is a change.
    pub fn degrade(&self, name: &'static str, detail: String) -> bool {
        let check = Check {
            status: CheckStatus::Degraded,
            detail: Some(detail),
        };
        self.note(name, check)
    }

    fn note(&self, name: &'static str, check: Check) -> bool {
        let mut checks = self
            .shared
            .checks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = checks.insert(name, check.clone());
        before.map(|b| b.status) != Some(check.status)
    }

    /// Says that the background tasks still run.
    pub fn beat(&self, now: Instant) {
        let age = now.saturating_duration_since(self.shared.started);
        self.shared
            .beaten_ms
            .store(age.as_millis() as u64, Ordering::Relaxed);
    }

    /// The configuration in use was loaded now.
    pub fn config_loaded(&self) {
        let mut config = self.config();
        config.loaded_at = timestamp();
        config.refused = None;
        metrics().config_loaded_at.set(Utc::now().timestamp());
    }

    /// Another one was not taken, because of `reason`. That makes nothing unhealthy: what is in use
    /// stays in use.
    pub fn config_refused(&self, reason: String) {
        self.config().refused = Some(Refused {
            at: timestamp(),
            reason,
        });
    }

    pub fn config_report(&self) -> ConfigReport {
        self.config().clone()
    }

    fn config(&self) -> MutexGuard<'_, ConfigReport> {
        let config = self.shared.config.lock();
        config.unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the process is not ready: it is shutting down.
    pub fn start_draining(&self) {
        self.shared.draining.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Acquire)
    }

    /// Whether the probe succeeds, and the body that says so.
    pub fn report(&self, probe: Probe, now: Instant) -> (bool, Report) {
        let age = now.saturating_duration_since(self.shared.started);
        let beaten = Duration::from_millis(self.shared.beaten_ms.load(Ordering::Relaxed));
        let live = age.saturating_sub(beaten) <= HEARTBEAT_MAX_AGE;
        let mut checks = self
            .shared
            .checks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let failing = checks.values().any(|c| c.status == CheckStatus::Failing);
        let degraded = checks.values().any(|c| c.status == CheckStatus::Degraded);
        let draining = self.is_draining();
        let (ok, status) = match probe {
            Probe::Live if live => (true, "alive"),
            Probe::Live => (false, "stuck"),
            Probe::Full | Probe::Ready if draining => (false, "draining"),
            Probe::Full | Probe::Ready if failing || !live => (false, "unhealthy"),
            Probe::Full if degraded => (true, "degraded"),
            Probe::Full => (true, "healthy"),
            Probe::Ready => (true, "ready"),
        };
        if probe == Probe::Live {
            checks.clear();
        }
        let report = Report {
            status,
            timestamp: timestamp(),
            service: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: age.as_secs(),
            checks,
            config: None,
        };
        (ok, report)
    }
}

fn timestamp() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_follows_the_checks_and_draining() {
        let health = Health::new();
        let now = Instant::now();
        assert!(health.report(Probe::Ready, now).0);
        assert!(
            health.set("database", Err("gone".into())),
            "the first result is a change"
        );
        assert!(
            !health.set("database", Err("still gone".into())),
            "no change"
        );
        let (ok, report) = health.report(Probe::Ready, now);
        assert!(!ok);
        assert_eq!(
            report.checks["database"].detail.as_deref(),
            Some("still gone")
        );
        assert!(
            health.report(Probe::Live, now).0,
            "a lost database is no reason to restart"
        );
        assert!(health.set("database", Ok(())), "recovery is a change");
        assert!(health.report(Probe::Ready, now).0);
        health.start_draining();
        let (ok, report) = health.report(Probe::Full, now);
        assert_eq!((ok, report.status), (false, "draining"));
    }

    #[test]
    fn a_degraded_check_is_told_and_leaves_the_gateway_ready() {
        let health = Health::new();
        let now = Instant::now();
        assert!(health.degrade("redis", "lost".into()));
        assert!(!health.degrade("redis", "still lost".into()));
        let (ok, report) = health.report(Probe::Full, now);
        assert_eq!((ok, report.status), (true, "degraded"));
        assert!(health.report(Probe::Ready, now).0);
        health.set("database", Err("gone".into()));
        assert_eq!(health.report(Probe::Full, now).1.status, "unhealthy");
        assert!(health.set("redis", Ok(())));
    }

    #[test]
    fn a_process_without_a_heartbeat_is_not_live() {
        let health = Health::new();
        let later = Instant::now() + HEARTBEAT_MAX_AGE + Duration::from_secs(1);
        assert!(!health.report(Probe::Live, later).0);
        health.beat(later);
        assert!(health.report(Probe::Live, later).0);
    }
}

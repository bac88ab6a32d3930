//! Logs: JSON lines, or a pretty format on a terminal, on standard error.
//!
//! Field names are the same everywhere and carry their unit: `request_id`, `route`, `status`,
//! `duration_us`, `error`. No secret, key or body is ever a field.

use std::io::IsTerminal;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::access;
use super::sample;
use super::writer::{self, Writing};

/// Settings of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// A tracing filter: `info`, `debug`, or `info,wasm_wizard::gateway=debug`.
    pub level: String,
    pub format: Format,
    pub access: AccessLog,
}

/// Which requests have a line in the log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AccessLog {
    /// Without it only those that fail by our doing (5xx).
    pub enabled: bool,
    /// The share of those that are answered well and soon: 0 to 1.
    pub sample: f64,
    /// Those that take so long have one in any case.
    pub slow: Duration,
}

impl AccessLog {
    /// Whether a request has a line. One that failed, or was slow, has; of the others a share, the same at
    /// all gateways that a request with its id goes through.
    #[inline]
    pub fn has(&self, status: u16, duration: Duration, request_id: &str) -> bool {
        if !self.enabled {
            return status >= 500;
        }
        self.sample >= 1.0
            || !(100..400).contains(&status)
            || duration >= self.slow
            || sample::is_in(self.sample, sample::number_of(request_id))
    }
}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Pretty when standard error is a terminal, else JSON.
    Auto,
    Json,
    Pretty,
}

/// Keeps the log's writer running; what is buffered is written when it is dropped.
#[must_use]
pub struct LogGuard {
    _writing: Writing,
}

/// Why the log could not start.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("`{level}` is not a log level: use error, warn, info, debug or trace")]
    Level { level: String },
    #[error("a log is installed already")]
    Installed,
    #[error("the log's thread: {0}")]
    Thread(std::io::Error),
}

/// Whether `level` is a filter that [`init`] takes.
pub fn check_level(level: &str) -> Result<(), LoggingError> {
    filter(level).map(|_| ())
}

/// Installs the log for the whole process. Call once.
pub fn init(settings: &Settings) -> Result<LogGuard, LoggingError> {
    let filter = filter(&settings.level)?;
    let (writer, writing) = writer::start(std::io::stderr()).map_err(LoggingError::Thread)?;
    let pretty = match settings.format {
        Format::Auto => std::io::stderr().is_terminal(),
        Format::Json => false,
        Format::Pretty => true,
    };
    let registry = tracing_subscriber::registry().with(filter);
    let installed = if pretty {
        let ansi = std::io::stderr().is_terminal();
        registry
            .with(
                fmt::layer()
                    .with_writer(writer.clone())
                    .with_ansi(ansi)
                    .with_target(false),
            )
            .try_init()
    } else {
        registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(writer.clone()),
            )
            .try_init()
    };
    installed.map_err(|_| LoggingError::Installed)?;
    if !pretty {
        access::write_json_to(writer);
    }
    Ok(LogGuard { _writing: writing })
}

/// Libraries speak up only when they warn; Pingora's own line per failed request would repeat ours, and rustls warns of what
/// any client may do.
fn filter(level: &str) -> Result<EnvFilter, LoggingError> {
    let bad = || LoggingError::Level {
        level: level.to_owned(),
    };
    if level.trim().is_empty() {
        return Err(bad());
    }
    let given = if level.contains(['=', ',']) {
        level.to_owned()
    } else {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        if !LEVELS.contains(&level.to_ascii_lowercase().as_str()) {
            return Err(bad());
        }
        format!(
            "warn,pingora_core=error,pingora_core::apps=off,pingora_proxy=off,h2=error,rustls=error,sqlx=warn,wasm_wizard={level}"
        )
    };
    EnvFilter::builder().parse(given).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_or_was_slow_has_its_line() {
        let log = |enabled, sample| AccessLog {
            enabled,
            sample,
            slow: Duration::from_secs(1),
        };
        let soon = Duration::from_millis(1);
        for status in [0, 400, 404, 429, 500, 503] {
            assert!(log(true, 0.0).has(status, soon, "id"), "{status}");
            assert_eq!(log(false, 1.0).has(status, soon, "id"), status >= 500);
        }
        for status in [101, 200, 204, 308] {
            assert!(!log(true, 0.0).has(status, soon, "id"), "{status}");
            assert!(log(true, 0.0).has(status, Duration::from_secs(1), "id"));
            assert!(log(true, 1.0).has(status, soon, "id"));
        }
        let ids: Vec<String> = (0..1000).map(|n| format!("request-{n}")).collect();
        let some = ids.iter().filter(|id| log(true, 0.3).has(200, soon, id));
        assert!((250..350).contains(&some.count()));
    }

    #[test]
    fn levels_are_checked() {
        for good in ["info", "DEBUG", "off", "info,wasm_wizard::gateway=trace"] {
            assert!(check_level(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "info,wasm_wizard=loud"] {
            assert!(check_level(bad).is_err(), "{bad}");
        }
    }
}

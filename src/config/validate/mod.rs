//! From what was written to settings. Every part is looked at, whatever is wrong with another.

mod certificate;
mod compression;
mod cors;
mod guests;
mod headers;
mod limits;
mod production;
mod proxy;
mod routes;
mod server;
mod targets;
mod tokens;
mod tracing;
mod usage;

use std::collections::BTreeSet;

use tracing_subscriber::EnvFilter;

use super::context::Context;
use super::file::File;
use super::problem::{Path, nearest, shown};
use super::secret::{SALT_CHARS_MIN, SECRET_BYTES_MAX, SaltSource};
use super::values::{Period, Size};
use super::{Auth, Config, Environment, Metrics, development_salt};
use crate::auth::Salt;
use crate::route::PathPattern;
use crate::{api, gateway, store, telemetry};

/// The settings, or `None` with at least one problem noted.
pub fn config(file: &File, cx: &mut Context) -> Option<Config> {
    production::rules(file, cx);
    let guest = guests::global(&file.sandbox, cx);
    let tiers = guests::tiers(file, cx);
    let sandbox = guests::sandbox(file, &tiers, cx);
    let server = server::server(&file.server, cx);
    let gateway = gateway(file, guest, cx);
    let auth = auth(file, cx);
    let store = store(file, cx);
    let usage = usage::usage(&file.usage, cx);
    let metrics = metrics(file, cx);
    let logging = logging(file, cx);
    let tracing = tracing::tracing(&file.tracing, cx);
    let routes = routes::routes(file, &tiers, cx);
    let limits = limits::limits(file, tiers.clone(), cx);
    let api = api::Settings {
        wasm_bytes_max: file.sandbox.wasm_size_max.0,
        input_bytes_max: file.sandbox.input_size_max.0,
        guest,
        tiers: tiers.clone(),
        sign_up: file.auth.sign_up,
        on_redis_loss: file.limits.redis.on_loss,
    };
    Some(Config {
        environment: file.environment,
        server: server?,
        gateway: gateway?,
        api,
        auth: auth?,
        limits: limits?,
        sandbox,
        store,
        usage: usage?,
        logging,
        tracing: tracing?,
        metrics,
        routes: routes?,
    })
}

fn gateway(
    file: &File,
    guest: crate::sandbox::GuestLimits,
    cx: &mut Context,
) -> Option<gateway::Settings> {
    // Boundaries, part headers and the small fields of a multipart body.
    const MULTIPART_BYTES: u64 = 256 << 10;
    let timeouts = server::timeouts(&file.server.timeouts, cx);
    let bounds = server::bounds(&file.server, cx);
    let trusted_proxies = server::trusted_proxies(&file.server.trusted_proxies, cx);
    let client_certificate_header = headers::client_certificate(&file.server, cx);
    let listener_access = server::listener_access(&file.server, cx);
    let challenges = server::challenges(&file.server, cx);
    let headers = headers::global(&file.headers, cx);
    let hsts = headers::hsts(&file.headers, cx);
    let compression = compression::compression(&file.compression, cx);
    let api_body = file
        .sandbox
        .wasm_size_max
        .0
        .saturating_add(file.sandbox.input_size_max.0);
    Some(gateway::Settings {
        guest,
        on_redis_loss: file.limits.redis.on_loss,
        body_bytes_max: file.server.bounds.body_size_max.0,
        api_body_bytes_max: api_body.saturating_add(MULTIPART_BYTES),
        headers: headers?,
        hsts: hsts?,
        trusted_proxies: trusted_proxies?,
        client_address_header: file.server.client_address_header,
        client_certificate_header: client_certificate_header?,
        listener_access: listener_access?,
        challenges: challenges?,
        public_metrics_path: (file.metrics.enabled && file.metrics.public)
            .then(|| file.metrics.path.clone()),
        compression: compression?,
        timeouts,
        bounds,
        auth_failures_per_minute: file.auth.failures_per_minute,
    })
}

fn auth(file: &File, cx: &mut Context) -> Option<Auth> {
    let (at, auth) = (Path::from("auth"), &file.auth);
    let day = Period::secs(86_400);
    cx.period(
        &at.key("key_cache_ttl"),
        auth.key_cache_ttl,
        Period::secs(1),
        day,
    );
    cx.period(
        &at.key("negative_ttl"),
        auth.negative_ttl,
        Period::secs(0),
        Period::secs(3_600),
    );
    cx.period(
        &at.key("outage_grace"),
        auth.outage_grace,
        Period::secs(0),
        Period::secs(7 * 86_400),
    );
    cx.count(&at.key("key_cache_max"), auth.key_cache_max, 1, 10_000_000);
    cx.count(
        &at.key("failures_per_minute"),
        auth.failures_per_minute,
        1,
        1_000_000,
    );
    let tokens = tokens::tokens(file, cx);
    Some(Auth {
        salt: salt(file, cx)?,
        tokens: tokens?,
        cache_ttl: auth.key_cache_ttl.0,
        negative_ttl: auth.negative_ttl.0,
        outage_grace: auth.outage_grace.0,
        cache_keys_max: u64::from(auth.key_cache_max),
    })
}

fn salt(file: &File, cx: &mut Context) -> Option<SaltSource> {
    let path = Path::from("auth.salt");
    let Some(salt) = &file.auth.salt else {
        return match file.environment {
            Environment::Development => Some(SaltSource::File(development_salt())),
            // The rules of production have said that it is missing.
            Environment::Staging | Environment::Production => None,
        };
    };
    let salt = salt.reveal();
    let chars = salt.chars().count();
    if chars < SALT_CHARS_MIN {
        let message = format!("must have at least {SALT_CHARS_MIN} characters, not {chars}");
        cx.problem(
            &path,
            message,
            "set API_SALT to the output of: openssl rand -hex 32",
        );
        return None;
    }
    if salt.len() > SECRET_BYTES_MAX {
        cx.problem(
            &path,
            format_args!("must have at most {SECRET_BYTES_MAX} bytes"),
            "",
        );
        return None;
    }
    match Salt::new(salt) {
        Ok(salt) => Some(SaltSource::Given(salt)),
        Err(error) => {
            cx.problem(
                &path,
                error,
                "set API_SALT to the output of: openssl rand -hex 32",
            );
            None
        }
    }
}

fn store(file: &File, cx: &mut Context) -> store::Settings {
    let (at, database) = (Path::from("database"), &file.database);
    database_url(database.url.reveal(), &at.key("url"), cx);
    cx.count(
        &at.key("connections_max"),
        database.connections_max,
        1,
        1_000,
    );
    cx.period(
        &at.key("acquire_timeout"),
        database.acquire_timeout,
        Period::ms(10),
        Period::secs(60),
    );
    store::Settings {
        url: database.url.reveal().to_string(),
        connections_max: database.connections_max,
        acquire_timeout: database.acquire_timeout.0,
    }
}

/// Refuses what can't be a database, without showing it: it may hold a password.
fn database_url(url: &str, path: &Path, cx: &mut Context) {
    const HINT: &str = "use sqlite://data/wasm-wizard.db or postgres://user@host/name";
    let Some((scheme, rest)) = url.split_once("://") else {
        cx.problem(path, "is not a database URL", HINT);
        return;
    };
    match scheme {
        "sqlite" => {
            let file = rest.split('?').next().unwrap_or_default();
            if file.is_empty() || file == ":memory:" {
                cx.problem(
                    path,
                    "names no file",
                    "use sqlite://data/wasm-wizard.db: a database in memory is lost at exit",
                );
            }
        }
        "postgres" | "postgresql" => {
            let authority = rest.split(['/', '?']).next().unwrap_or_default();
            let host = authority.rsplit('@').next().unwrap_or_default();
            if host.is_empty() && !rest.contains("host=") {
                cx.problem(path, "names no host", HINT);
            }
        }
        _ => {
            cx.problem(path, "has an unknown scheme", HINT);
        }
    }
}

fn metrics(file: &File, cx: &mut Context) -> Metrics {
    let path = Path::from("metrics.path");
    let text = &file.metrics.path;
    match PathPattern::parse(text) {
        Ok(pattern) => {
            let is_exact = !pattern.prefix
                && pattern
                    .segments
                    .iter()
                    .all(|segment| matches!(segment, crate::route::Segment::Literal(_)));
            if !is_exact || text == "/" {
                cx.problem(&path, "must be one path", "use /metrics");
            } else if let Some(reserved) = routes::reserved(&pattern) {
                cx.problem(
                    &path,
                    format_args!("{reserved} belongs to the gateway"),
                    "use /metrics",
                );
            }
        }
        Err(error) => cx.problem(
            &path,
            format_args!("is not a path: {error}"),
            "use /metrics",
        ),
    }
    if file.metrics.public && !file.metrics.enabled {
        cx.problem(
            &Path::from("metrics.public"),
            "is true, but metrics are not enabled",
            "set metrics.enabled: true",
        );
    } else if file.metrics.public {
        cx.warning(
            &Path::from("metrics.public"),
            "anyone can read the metrics",
            "",
        );
    }
    let stamp = file.metrics.backup_stamp.as_deref();
    let stamp_at = Path::from("metrics.backup_stamp");
    Metrics {
        enabled: file.metrics.enabled,
        path: text.clone(),
        backup_stamp: stamp.and_then(|stamp| server::file_path(Some(stamp), &stamp_at, cx)),
    }
}

fn logging(file: &File, cx: &mut Context) -> telemetry::logging::Settings {
    let path = Path::from("logging.level");
    log_filter(&file.logging.level, &path, cx);
    let at = Path::from("logging");
    cx.share(&at.key("access_sample"), file.logging.access_sample);
    cx.period(
        &at.key("access_slow"),
        file.logging.access_slow,
        Period::ms(1),
        Period::secs(3_600),
    );
    telemetry::logging::Settings {
        level: file.logging.level.clone(),
        format: file.logging.format,
        access: telemetry::logging::AccessLog {
            enabled: file.logging.access,
            sample: file.logging.access_sample,
            slow: file.logging.access_slow.0,
        },
    }
}

/// The filter itself takes any word for the name of a module, so a misspelt level would silence
/// the log.
fn log_filter(filter: &str, path: &Path, cx: &mut Context) {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let hint = "use off, error, warn, info, debug or trace, and per module: info,wasm_wizard::gateway=debug";
    let mut seen = BTreeSet::new();
    for directive in filter.split(',') {
        let level = directive.rsplit('=').next().unwrap_or_default();
        if !LEVELS.contains(&level) {
            let meant = nearest(level, LEVELS).map(|meant| format!("did you mean '{meant}'?"));
            let message = format!("'{}' is not a level", shown(level));
            cx.problem(path, message, meant.as_deref().unwrap_or(hint));
            return;
        }
        let target = directive.rsplit_once('=').map_or("", |(target, _)| target);
        if !seen.insert(target) {
            cx.problem(
                path,
                format_args!("gives two levels for '{}'", shown(target)),
                hint,
            );
            return;
        }
    }
    if EnvFilter::try_new(filter).is_err() {
        cx.problem(path, "is not a log filter", hint);
    }
}

/// The range of a guest's memory: from one WebAssembly page to all that 32 bits address.
const MEMORY: (Size, Size) = (Size::kib(64), Size::gib(4));
const STDOUT: (Size, Size) = (Size(1), Size::mib(256));

/// The range of a guest's wall-clock time.
const DEADLINE: (Period, Period) = (Period::ms(1), Period::secs(3_600));

/// The range of a rate.
const RATE: (u32, u32) = (1, u32::MAX);

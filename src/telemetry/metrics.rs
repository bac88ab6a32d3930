//! Metrics in the Prometheus text format, all with the prefix `wasmwiz_`.
//!
//! Labels are bounded: route names come from the configuration, methods and statuses from closed
//! lists. A route's counters are looked up once, not per request.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::counters::Counters;
use super::database::DatabaseMetrics;
use super::guests::GuestMetrics;
use super::host::HostMetrics;
use super::modules::ModuleMetrics;
use super::usage::UsageMetrics;

pub use super::rows::{RouteMetrics, UpstreamMetrics};

/// From 100 µs to 60 s: an in-process answer takes tens of microseconds, a guest at its deadline
/// many seconds.
pub(super) const LATENCY_BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    15.0, 60.0,
];

/// Every metric of the process.
pub struct Metrics {
    registry: Registry,
    pub(super) requests: IntCounterVec,
    pub(super) request_duration: HistogramVec,
    pub guests: GuestMetrics,
    pub usage: UsageMetrics,
    pub(super) modules: ModuleMetrics,
    pub database: DatabaseMetrics,
    pub host: HostMetrics,
    module_lookups: Counters<{ LOOKUPS.len() }>,
    /// Allowed and rejected, looked up once: every request counts here.
    rate_limit: [IntCounter; 2],
    /// Decisions made without Redis, by [`FALLBACKS`].
    limit_fallbacks: [IntCounter; FALLBACKS.len()],
    pub limit_waits: IntCounter,
    pub limit_tokens_held: IntGauge,
    pub limit_subjects: IntGauge,
    pub redis_configured: IntGauge,
    pub redis_up: IntGauge,
    redis_calls: [IntCounter; 2],
    redis_call_duration: Histogram,
    /// By [`AUTHENTICATIONS`].
    authentications: [IntCounter; AUTHENTICATIONS.len()],
    pub log_lines_dropped: IntCounter,
    /// By [`SPANS`].
    trace_spans: [IntCounter; SPANS.len()],
    tls_handshakes: IntCounterVec,
    compiles: IntCounterVec,
    compile_duration: HistogramVec,
    artifacts: IntCounterVec,
    pub artifacts_bytes: IntGauge,
    pub connections: IntGauge,
    connections_refused: IntCounterVec,
    requests_refused: IntCounterVec,
    http2_floods: IntCounterVec,
    certificate_ends: prometheus::IntGaugeVec,
    certificate_reloads: IntCounterVec,
    addresses_denied: IntCounterVec,
    pub requests_active: IntGauge,
    pub guests_running: IntGauge,
    pub guests_queued: IntGauge,
    /// Guests that needed more than a slice of their caller's thread and ran again on one of their own.
    pub guests_postponed: IntCounter,
    pub modules_cached: IntGauge,
    pub upstream_failures: IntCounter,
    config_reloads: IntCounterVec,
    pub config_loaded_at: IntGauge,
    pub upstream_retries_refused: IntCounter,
    pub websockets: IntCounter,
    pub websockets_active: IntGauge,
    pub(super) upstream_requests: IntCounterVec,
    pub(super) upstream_active: IntGaugeVec,
    pub(super) upstream_up: IntGaugeVec,
    pub(super) upstream_ejected: IntGaugeVec,
    pub(super) upstream_ejections: IntCounterVec,
    pub(super) upstream_retries: IntCounterVec,
}

/// The process's metrics. One set per process, as in Prometheus' own model.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

const AUTHENTICATIONS: [&str; 6] = [
    "anonymous",
    "ok",
    "expired",
    "malformed",
    "invalid",
    "unavailable",
];
const SPANS: [&str; 3] = ["sent", "failed", "dropped"];
const FALLBACKS: [&str; 3] = ["local", "open", "closed"];

impl Metrics {
    pub fn rate_limit(&self, allowed: bool) {
        self.rate_limit[usize::from(!allowed)].inc();
    }

    /// A decision that was made without Redis. `policy` is one of [`FALLBACKS`].
    pub fn limit_fallback(&self, policy: &str) {
        let known = FALLBACKS.iter().zip(&self.limit_fallbacks);
        for (_, counter) in known.filter(|(name, _)| **name == policy) {
            counter.inc();
        }
    }

    /// `result` is one of [`SPANS`].
    pub fn trace_spans(&self, result: &str, count: u64) {
        let known = SPANS.iter().zip(&self.trace_spans);
        for (_, counter) in known.filter(|(name, _)| **name == result) {
            counter.inc_by(count);
        }
    }

    /// One pipeline of calls to Redis.
    pub fn redis_call(&self, is_ok: bool, duration: Duration) {
        self.redis_calls[usize::from(!is_ok)].inc();
        self.redis_call_duration.observe(duration.as_secs_f64());
    }

    /// `result` is one of [`AUTHENTICATIONS`].
    pub fn authentication(&self, result: &str) {
        let known = AUTHENTICATIONS.iter().zip(&self.authentications);
        for (_, counter) in known.filter(|(name, _)| **name == result) {
            counter.inc();
        }
    }

    /// A certificate that a listener uses ends then, in seconds since the Unix epoch.
    pub fn certificate_ends(&self, listener: &str, file: &str, timestamp: i64) {
        self.certificate_ends
            .with_label_values(&[listener, file])
            .set(timestamp);
    }

    /// A listener does not use this certificate any more.
    pub fn forget_certificate(&self, listener: &str, file: &str) {
        // An error says that it was not known, which is as good.
        let _ = self.certificate_ends.remove_label_values(&[listener, file]);
    }

    /// `result` is one of `ok`, `refused`.
    pub fn certificate_reload(&self, result: &str) {
        self.certificate_reloads.with_label_values(&[result]).inc();
    }

    /// `by` is one of `listener`, `route`.
    pub fn address_denied(&self, by: &str) {
        self.addresses_denied.with_label_values(&[by]).inc();
    }

    /// `reason` is one of `total` (the cap over all), `address` (the cap of one client),
    /// `proxy_header` (the PROXY protocol's header is missing, malformed, or from a stranger).
    pub fn connection_refused(&self, reason: &str) {
        self.connections_refused.with_label_values(&[reason]).inc();
    }

    /// `reason` is one of `total` (the cap over all requests at a time), `address` (that of one client).
    pub fn request_refused(&self, reason: &str) {
        self.requests_refused.with_label_values(&[reason]).inc();
    }

    /// `kind` is one of `resets`, `control`, `continuations`, `window_updates`, `streams`.
    pub fn http2_flood(&self, kind: &str) {
        self.http2_floods.with_label_values(&[kind]).inc();
    }

    /// `result` is one of `ok`, `failed`, `timeout`.
    pub fn tls_handshake(&self, result: &str) {
        self.tls_handshakes.with_label_values(&[result]).inc();
    }

    /// `result` is one of `compiled`, `refused`, `limit`, `failed`; `compiler` one of `singlepass`,
    /// `cranelift`, and `none` for what was refused before.
    pub fn compile(&self, result: &str, compiler: &str, duration: Duration) {
        self.compiles.with_label_values(&[result, compiler]).inc();
        self.compile_duration
            .with_label_values(&[compiler])
            .observe(duration.as_secs_f64());
    }

    /// One look into the folder of compiled modules, or one file written. `result` is one of `hit`,
    /// `miss`, `rejected` (a file that did not verify or load), `written`, `failed`.
    pub fn artifact(&self, result: &str) {
        self.artifacts.with_label_values(&[result]).inc();
    }

    /// One module that was wanted.
    pub fn module_lookup(&self, found: Found) {
        self.module_lookups.inc(found as usize);
    }

    /// One attempt to reload the configuration. `result` is one of `ok`, `refused`.
    pub fn config_reload(&self, result: &str) {
        self.config_reloads.with_label_values(&[result]).inc();
    }

    /// The page, in the Prometheus text format 0.0.4.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut page = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&self.registry.gather(), &mut page)?;
        Ok(String::from_utf8_lossy(&page).into_owned())
    }

    #[expect(
        clippy::expect_used,
        reason = "names and labels are constants; any test finds a bad one"
    )]
    fn new() -> Metrics {
        let registry = Registry::new();
        let build = prometheus::process_collector::ProcessCollector::for_self();
        registry
            .register(Box::new(build))
            .expect("the process collector registers");
        let r = Registrar {
            registry: &registry,
        };
        let info = r.gauge_vec(
            "build_info",
            "Always 1; the label says which version runs.",
            &["version"],
        );
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let modules = ModuleMetrics::new(|name| r.name(name)).expect("the metrics are valid");
        let metrics = Metrics {
            requests: r.counter_vec(
                "requests_total",
                "Requests answered.",
                &["route", "method", "status"],
            ),
            request_duration: r.histogram_vec(
                "request_duration_seconds",
                "Time from a request's head to the end of its answer, in seconds.",
                &["route"],
            ),
            usage: UsageMetrics::new(&r),
            guests: {
                let guests = GuestMetrics::new(|name| r.name(name), modules.clone());
                r.add(guests.expect("the metrics are valid"))
            },
            modules: r.add(modules),
            database: DatabaseMetrics::new(&r),
            host: HostMetrics::new(&r),
            module_lookups: {
                let lookups = Counters::new(
                    r.name("module_lookups_total"),
                    "Modules that were wanted through the API or by a route's start, by where they were: memory, disk, or to be compiled.",
                    "found",
                    LOOKUPS,
                );
                r.add(lookups.expect("the metric is valid"))
            },
            rate_limit: {
                let decisions = r.counter_vec(
                    "rate_limit_decisions_total",
                    "Rate-limit decisions.",
                    &["decision"],
                );
                ["allowed", "rejected"].map(|decision| decisions.with_label_values(&[decision]))
            },
            limit_fallbacks: {
                let fallbacks = r.counter_vec(
                    "limit_fallbacks_total",
                    "Decisions on limits that were made without Redis, by what the route says of that.",
                    &["policy"],
                );
                FALLBACKS.map(|policy| fallbacks.with_label_values(&[policy]))
            },
            limit_waits: r.counter(
                "limit_waits_total",
                "Requests that waited for Redis because no token was held for them.",
            ),
            limit_tokens_held: r.gauge(
                "limit_tokens_held",
                "Tokens of shared limits that this gateway holds for requests to come.",
            ),
            limit_subjects: r.gauge(
                "limit_subjects",
                "Users, routes and addresses whose limits are remembered.",
            ),
            redis_configured: r.gauge(
                "redis_configured",
                "1 where limits are shared through Redis, else 0.",
            ),
            redis_up: r.gauge("redis_up", "1 while Redis answers; 0 where there is none."),
            redis_calls: {
                let calls = r.counter_vec(
                    "redis_calls_total",
                    "Pipelines of calls to Redis, by result.",
                    &["result"],
                );
                ["ok", "failed"].map(|result| calls.with_label_values(&[result]))
            },
            redis_call_duration: r.histogram(
                "redis_call_duration_seconds",
                "Time of a pipeline of calls to Redis, in seconds.",
            ),
            authentications: {
                let results = r.counter_vec(
                    "authentications_total",
                    "Authentications by result.",
                    &["result"],
                );
                AUTHENTICATIONS.map(|result| results.with_label_values(&[result]))
            },
            log_lines_dropped: r.counter(
                "log_lines_dropped_total",
                "Lines of the log that were lost because their reader is too slow.",
            ),
            trace_spans: {
                let spans = r.counter_vec(
                    "trace_spans_total",
                    "Spans of traces: sent, not taken by the collector, or dropped because too many waited.",
                    &["result"],
                );
                SPANS.map(|result| spans.with_label_values(&[result]))
            },
            tls_handshakes: r.counter_vec(
                "tls_handshakes_total",
                "TLS handshakes by result.",
                &["result"],
            ),
            compiles: r.counter_vec(
                "compiles_total",
                "Modules compiled, by result and compiler.",
                &["result", "compiler"],
            ),
            compile_duration: r.histogram_vec(
                "compile_duration_seconds",
                "Time to check, compile and load a module, in seconds.",
                &["compiler"],
            ),
            artifacts: r.counter_vec(
                "artifacts_total",
                "Compiled modules looked for on disk and written there, by result.",
                &["result"],
            ),
            artifacts_bytes: r.gauge(
                "artifacts_bytes",
                "Disk space that compiled modules take, in bytes.",
            ),
            connections: r.gauge("connections", "Client connections open now."),
            connections_refused: r.counter_vec(
                "connections_refused_total",
                "Connections closed at once, by reason.",
                &["reason"],
            ),
            requests_refused: r.counter_vec(
                "requests_refused_total",
                "Requests refused because there are too many at a time, by whose cap.",
                &["reason"],
            ),
            certificate_ends: r.gauge_vec(
                "tls_certificate_expiry_timestamp_seconds",
                "When a certificate in use ends, in seconds since the Unix epoch.",
                &["listener", "file"],
            ),
            certificate_reloads: r.counter_vec(
                "tls_certificate_reloads_total",
                "Certificate files that changed, by whether they could be used.",
                &["result"],
            ),
            addresses_denied: r.counter_vec(
                "addresses_denied_total",
                "Requests refused because of the client's address, by whose list.",
                &["by"],
            ),
            http2_floods: r.counter_vec(
                "http2_floods_total",
                "HTTP/2 connections closed because of a flood of frames, by kind.",
                &["kind"],
            ),
            requests_active: r.gauge("requests_active", "Requests being answered now."),
            guests_running: r.gauge("guests_running", "Guests running now."),
            guests_queued: r.gauge("guests_queued", "Guests waiting for a thread now."),
            guests_postponed: r.counter(
                "guests_postponed_total",
                "Guests that outlasted their slice of the caller's thread and ran again on one of their own.",
            ),
            modules_cached: r.gauge("modules_cached", "Compiled modules in memory."),
            upstream_failures: r.counter(
                "upstream_failures_total",
                "Requests whose upstream could not be reached or failed.",
            ),
            config_reloads: {
                let reloads = r.counter_vec(
                    "config_reloads_total",
                    "Attempts to reload the configuration, by result.",
                    &["result"],
                );
                // They stand at 0 from the start, so that an alert sees the first refusal.
                for result in ["ok", "refused"] {
                    reloads.with_label_values(&[result]);
                }
                reloads
            },
            config_loaded_at: r.gauge(
                "config_last_reload_success_timestamp_seconds",
                "When the configuration in use was loaded, in seconds since the Unix epoch.",
            ),
            upstream_retries_refused: r.counter(
                "upstream_retries_refused_total",
                "Retries that the budget did not allow.",
            ),
            websockets: r.counter("websockets_total", "WebSockets that were opened."),
            websockets_active: r.gauge("websockets_active", "WebSockets open now."),
            upstream_requests: r.counter_vec(
                "upstream_requests_total",
                "Tries at an upstream, by result: ok, connect_failed, failed.",
                &["upstream", "result"],
            ),
            upstream_active: r.gauge_vec(
                "upstream_active",
                "Requests in flight to an upstream now.",
                &["upstream"],
            ),
            upstream_up: r.gauge_vec(
                "upstream_up",
                "1 unless the upstream's health checks fail.",
                &["upstream"],
            ),
            upstream_ejected: r.gauge_vec(
                "upstream_ejected",
                "1 while the upstream is left out because it kept failing.",
                &["upstream"],
            ),
            upstream_ejections: r.counter_vec(
                "upstream_ejections_total",
                "How often an upstream was left out because it kept failing.",
                &["upstream"],
            ),
            upstream_retries: r.counter_vec(
                "upstream_retries_total",
                "Tries at an upstream that were not their request's first.",
                &["upstream"],
            ),
            registry: registry.clone(),
        };
        metrics.begin_rows();
        metrics
    }

    /// Rows of closed lists are there before anything happened: from a row that appears with its first
    /// event, nobody can tell that there was one.
    fn begin_rows(&self) {
        for (of, values) in [
            (&self.tls_handshakes, &["ok", "failed", "timeout"][..]),
            (
                &self.artifacts,
                &["hit", "miss", "rejected", "written", "failed"],
            ),
            (
                &self.connections_refused,
                &["total", "address", "proxy_header"],
            ),
            (
                &self.http2_floods,
                &[
                    "resets",
                    "control",
                    "continuations",
                    "window_updates",
                    "streams",
                ],
            ),
            (&self.requests_refused, &["total", "address"]),
            (&self.certificate_reloads, &["ok", "refused"]),
            (&self.addresses_denied, &["listener", "route"]),
            (&self.config_reloads, &["ok", "refused"]),
        ] {
            for value in values {
                of.with_label_values(&[value]);
            }
        }
        for compiler in ["singlepass", "cranelift"] {
            for result in ["compiled", "refused", "limit", "failed"] {
                self.compiles.with_label_values(&[result, compiler]);
            }
        }
        self.compiles.with_label_values(&["refused", "none"]);
    }
}

/// Where a module that is wanted was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Memory,
    Disk,
    /// Nowhere: it had to be compiled.
    Nowhere,
}

const LOOKUPS: [&str; 3] = ["memory", "disk", "nowhere"];

pub(super) struct Registrar<'a> {
    registry: &'a Registry,
}

#[expect(
    clippy::expect_used,
    reason = "names and labels are constants; any test finds a bad one"
)]
impl Registrar<'_> {
    pub(super) fn name(&self, name: &str) -> String {
        format!("wasmwiz_{name}")
    }

    pub(super) fn add<C: prometheus::core::Collector + Clone + 'static>(&self, collector: C) -> C {
        self.registry
            .register(Box::new(collector.clone()))
            .expect("the metric's name is unique");
        collector
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(self.name(name), help).expect("the metric is valid"))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(self.name(name), help).expect("the metric is valid"))
    }

    pub(super) fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(
            IntCounterVec::new(Opts::new(self.name(name), help), labels)
                .expect("the metric is valid"),
        )
    }

    pub(super) fn gauge_vec(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::IntGaugeVec {
        self.add(
            prometheus::IntGaugeVec::new(Opts::new(self.name(name), help), labels)
                .expect("the metric is valid"),
        )
    }

    pub(super) fn histogram_vec(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let opts = HistogramOpts::new(self.name(name), help).buckets(LATENCY_BUCKETS.to_vec());
        self.add(HistogramVec::new(opts, labels).expect("the metric is valid"))
    }

    pub(super) fn histogram(&self, name: &str, help: &str) -> Histogram {
        let opts = HistogramOpts::new(self.name(name), help).buckets(LATENCY_BUCKETS.to_vec());
        self.add(Histogram::with_opts(opts).expect("the metric is valid"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_help_types_and_the_prefix() {
        let route = RouteMetrics::new("metrics-test");
        route.observe("GET", 200, Duration::from_micros(300));
        route.observe("BREW", 418, Duration::from_micros(300));
        route.observe("GET", 0, Duration::from_micros(300));
        let page = metrics().render().unwrap();
        assert!(
            page.contains(
                r#"wasmwiz_requests_total{method="GET",route="metrics-test",status="2xx"} 1"#
            ),
            "{page}"
        );
        assert!(page.contains(
            r#"wasmwiz_requests_total{method="other",route="metrics-test",status="4xx"} 1"#
        ));
        assert!(page.contains(
            r#"wasmwiz_requests_total{method="GET",route="metrics-test",status="4xx"} 1"#
        ));
        assert!(page.contains("wasmwiz_build_info{version="));
        for line in page.lines().filter(|l| !l.starts_with('#')) {
            assert!(
                line.starts_with("wasmwiz_") || line.starts_with("process_"),
                "{line}"
            );
        }
    }
}

//! Rows of the page that belong to a route or an upstream. They are looked up once, not per request,
//! and leave the page with whom they belong to.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntGauge};

use super::metrics::metrics;

/// One route's counters, kept with the route. Its rows leave the page with the last of this name.
pub struct RouteMetrics {
    name: String,
    duration: Histogram,
    requests: [[OnceLock<IntCounter>; STATUS_CLASSES.len()]; METHODS.len()],
}

const METHODS: [&str; 8] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other",
];
const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl RouteMetrics {
    pub fn new(route: &str) -> RouteMetrics {
        use_rows(Rows::Route, route);
        RouteMetrics {
            name: route.to_owned(),
            duration: metrics().request_duration.with_label_values(&[route]),
            requests: Default::default(),
        }
    }

    /// Counts one answered request. A status of 0 is a client that went away: it counts as 4xx, as
    /// 499 does elsewhere.
    pub fn observe(&self, method: &str, status: u16, duration: Duration) {
        let m = METHODS
            .iter()
            .position(|known| *known == method)
            .unwrap_or(METHODS.len() - 1);
        let s = match status {
            100..=599 => usize::from(status / 100) - 1,
            _ => 3,
        };
        let counter = self.requests[m][s].get_or_init(|| {
            metrics()
                .requests
                .with_label_values(&[&self.name, METHODS[m], STATUS_CLASSES[s]])
        });
        counter.inc();
        self.duration.observe(duration.as_secs_f64());
    }
}

impl Drop for RouteMetrics {
    fn drop(&mut self) {
        let (all, route) = (metrics(), self.name.as_str());
        leave_rows(Rows::Route, route, || {
            for method in METHODS {
                for status in STATUS_CLASSES {
                    // Most of them never were.
                    let _ = all.requests.remove_label_values(&[route, method, status]);
                }
            }
            let _ = all.request_duration.remove_label_values(&[route]);
        });
    }
}

/// What rows of the page belong to, besides its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Rows {
    Route,
    Upstream,
}

/// How many have counters in the same rows: the old configuration's and the new one's, for a while.
static ROWS: LazyLock<Mutex<HashMap<(Rows, String), usize>>> = LazyLock::new(Mutex::default);

/// To be called before the rows are made.
fn use_rows(of: Rows, name: &str) {
    let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
    *rows.entry((of, name.to_owned())).or_default() += 1;
}

/// Removes rows that nobody uses any more. Under the lock, so that nobody comes to use them meanwhile.
fn leave_rows(of: Rows, name: &str, remove: impl FnOnce()) {
    let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (of, name.to_owned());
    if let Some(users) = rows.get_mut(&key) {
        *users -= 1;
        if *users > 0 {
            return;
        }
    }
    rows.remove(&key);
    remove();
}

/// One upstream's counters, kept with it. Its rows leave the page with the last of this name.
pub struct UpstreamMetrics {
    name: String,
    /// Requests by how they went.
    pub ok: IntCounter,
    pub connect_failed: IntCounter,
    pub failed: IntCounter,
    pub active: IntGauge,
    pub up: IntGauge,
    pub ejected: IntGauge,
    pub ejections: IntCounter,
    pub retries: IntCounter,
}

const UPSTREAM_RESULTS: [&str; 3] = ["ok", "connect_failed", "failed"];

impl UpstreamMetrics {
    pub fn new(name: &str) -> UpstreamMetrics {
        let all = metrics();
        use_rows(Rows::Upstream, name);
        let [ok, connect_failed, failed] =
            UPSTREAM_RESULTS.map(|result| all.upstream_requests.with_label_values(&[name, result]));
        UpstreamMetrics {
            name: name.to_owned(),
            ok,
            connect_failed,
            failed,
            active: all.upstream_active.with_label_values(&[name]),
            up: all.upstream_up.with_label_values(&[name]),
            ejected: all.upstream_ejected.with_label_values(&[name]),
            ejections: all.upstream_ejections.with_label_values(&[name]),
            retries: all.upstream_retries.with_label_values(&[name]),
        }
    }
}

impl Drop for UpstreamMetrics {
    fn drop(&mut self) {
        let (all, name) = (metrics(), self.name.as_str());
        leave_rows(Rows::Upstream, name, || {
            // What is not there need not be removed.
            for result in UPSTREAM_RESULTS {
                let _ = all.upstream_requests.remove_label_values(&[name, result]);
            }
            for gauge in [
                &all.upstream_active,
                &all.upstream_up,
                &all.upstream_ejected,
            ] {
                let _ = gauge.remove_label_values(&[name]);
            }
            for counter in [&all.upstream_ejections, &all.upstream_retries] {
                let _ = counter.remove_label_values(&[name]);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_leave_the_page_with_the_last_who_uses_them() {
        let has = |row: &str| metrics().render().unwrap().contains(row);
        let old = RouteMetrics::new("rows-test");
        old.observe("GET", 200, Duration::ZERO);
        let new = RouteMetrics::new("rows-test");
        drop(old);
        new.observe("GET", 200, Duration::ZERO);
        let row = r#"wasmwiz_requests_total{method="GET",route="rows-test",status="2xx"}"#;
        assert!(has(&format!("{row} 2")));
        // What a last request counts, nobody else removes.
        drop(new);
        assert!(!has("rows-test"));
        let (old, new) = (
            UpstreamMetrics::new("rows-up"),
            UpstreamMetrics::new("rows-up"),
        );
        drop(old);
        new.ok.inc();
        assert!(has(
            r#"wasmwiz_upstream_requests_total{result="ok",upstream="rows-up"} 1"#
        ));
        drop(new);
        assert!(!has("rows-up"));
    }
}

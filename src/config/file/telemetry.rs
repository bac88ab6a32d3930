//! What the gateway says of itself: metrics, the log, traces.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::values::{Period, Secret, Size};
use crate::telemetry::logging::Format;
use crate::telemetry::traces::Parents;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Whether there is a page at all.
    pub enabled: bool,
    /// Its path.
    pub path: String,
    /// Whether the public listeners have it too.
    pub public: bool,
    /// The file in which `backup.sh` says when the last backup was made.
    pub backup_stamp: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Logging {
    /// `info`, `debug`, or per module: `info,wasm_wizard::gateway=debug`.
    pub level: String,
    /// `auto` is pretty on a terminal, else JSON.
    pub format: Format,
    /// One line per request.
    pub access: bool,
    /// The share of requests that have one of those that neither failed nor were slow.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub access_sample: f64,
    /// Requests that take so long are slow.
    pub access_slow: Period,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tracing {
    /// Where an OpenTelemetry collector takes traces (OTLP over HTTP); null: there are none.
    pub endpoint: Option<String>,
    /// PEM file of the only authorities believed; null: the system's.
    pub ca: Option<String>,
    /// What else it is sent, such as its credentials: `name=value`, several with commas between; better in
    /// a file that `OTEL_EXPORTER_OTLP_HEADERS_FILE` names.
    pub headers: Option<Secret>,
    /// The name under which the collector shows the gateway.
    pub service_name: String,
    /// The share of the traces begun here that is sent.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sample: f64,
    /// Whose `traceparent` is gone on with.
    pub parents: Parents,
    /// Memory of the traces that wait for the collector.
    pub queue_max: Size,
    /// Longest wait for its answer.
    pub timeout: Period,
}

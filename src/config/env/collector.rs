//! OpenTelemetry's own variables, as far as they say where traces go ("OpenTelemetry Protocol Exporter",
//! "OpenTelemetry Environment Variable Specification"). That of traces alone goes before that of all signals.

use super::Over;
use crate::config::file::Tracing;
use crate::config::problem::shown;
use crate::config::values::{Period, Secret};

/// What is added to the endpoint of all signals (section "Endpoint URLs for OTLP/HTTP").
const TRACES_PATH: &str = "/v1/traces";
/// The only protocol there is here.
const PROTOCOL: &str = "http/protobuf";

impl Over<'_> {
    pub(super) fn collector(&mut self, tracing: &mut Tracing) {
        match self.which(
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ) {
            name @ "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => {
                self.set(name, &mut tracing.endpoint, |text| {
                    Ok(Some(text.to_string()))
                });
            }
            name => self.set(name, &mut tracing.endpoint, |text| {
                Ok(Some(text.trim_end_matches('/').to_string() + TRACES_PATH))
            }),
        }
        let name = self.which(
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
        );
        self.set(name, &mut tracing.ca, |text| Ok(Some(text.to_string())));
        let name = self.which(
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
            "OTEL_EXPORTER_OTLP_TIMEOUT",
        );
        self.set(name, &mut tracing.timeout, |text| {
            text.parse()
                .map(Period::ms)
                .map_err(|_| "must be a number of milliseconds".to_string())
        });
        self.set("OTEL_SERVICE_NAME", &mut tracing.service_name, |text| {
            Ok(text.to_string())
        });
        let headers = self
            .secret(
                "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
                "OTEL_EXPORTER_OTLP_TRACES_HEADERS_FILE",
            )
            .or_else(|| {
                self.secret(
                    "OTEL_EXPORTER_OTLP_HEADERS",
                    "OTEL_EXPORTER_OTLP_HEADERS_FILE",
                )
            });
        if let Some(headers) = headers {
            tracing.headers = Some(Secret::new(headers));
        }
        // Where there are no traces, it is somebody else's that is meant.
        if tracing.endpoint.is_some() {
            let name = self.which(
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
                "OTEL_EXPORTER_OTLP_PROTOCOL",
            );
            self.set(name, &mut (), protocol);
        }
    }

    fn which(&self, traces: &'static str, all: &'static str) -> &'static str {
        if self.get(traces).is_some() {
            traces
        } else {
            all
        }
    }
}

fn protocol(text: &str) -> Result<(), String> {
    if text == PROTOCOL {
        return Ok(());
    }
    Err(format!(
        "must be {PROTOCOL}, not '{}': traces are sent in no other way, to port 4318 of most collectors",
        shown(text)
    ))
}

//! The thread that tells the collector.

use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT};
use hyper_rustls::HttpsConnectorBuilder;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::room::Place;
use super::{Message, Settings};
use crate::telemetry::metrics::metrics;

/// How long spans gather before they are sent.
const GATHER: Duration = Duration::from_secs(1);
/// Spans of one message to the collector, about.
const BATCH_SPANS: usize = 1024;
/// How often a batch is sent again that the collector could not take, all within the time for its answer.
const RETRIES_MAX: usize = 3;
/// How often a collector that does not take them is written about in the log.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Why traces can't be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    #[error("tracing.ca: {0}")]
    Authorities(String),
    #[error("tracing.endpoint: {0}")]
    Exporter(#[from] ExporterBuildError),
    #[error("the thread that sends traces: {0}")]
    Thread(#[from] io::Error),
}

/// Starts the thread. Nobody waits for it: it ends with the process.
pub(super) fn start(settings: &Settings) -> Result<Sender<Message>, TracesError> {
    let exporter = exporter(settings)?;
    // Bounded by the room that each message has a place in.
    let (queue, messages) = channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let timeout = settings.timeout;
    std::thread::Builder::new()
        .name("traces".into())
        .spawn(move || {
            let mut sending = Sending {
                exporter,
                runtime,
                timeout,
                complained: None,
            };
            sending.serve(&messages);
        })?;
    Ok(queue)
}

fn exporter(settings: &Settings) -> Result<SpanExporter, TracesError> {
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(believing(settings.ca.as_deref())?)
        .https_or_http()
        .enable_http1()
        .build();
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&settings.endpoint)
        .with_timeout(settings.timeout)
        .with_retry_policy(RetryPolicy::recommended().with_max_retries(RETRIES_MAX))
        .with_http_client(Client {
            inner: HyperClient::new(connector, settings.timeout, None),
            headers: settings.headers.clone(),
        })
        .build()?;
    let resource = Resource::builder_empty()
        .with_service_name(settings.service.clone())
        .with_attribute(opentelemetry::KeyValue::new(
            "service.version",
            env!("CARGO_PKG_VERSION"),
        ))
        .build();
    exporter.set_resource(&resource);
    Ok(exporter)
}

fn believing(ca: Option<&Path>) -> Result<ClientConfig, TracesError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(file) => {
            let unusable = |why: &dyn std::fmt::Display| {
                TracesError::Authorities(format!("{}: {why}", file.display()))
            };
            let pem = std::fs::read(file).map_err(|error| unusable(&error))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|error| unusable(&error))?;
                roots.add(certificate).map_err(|error| unusable(&error))?;
            }
            if roots.is_empty() {
                return Err(unusable(&"it holds no certificate"));
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs().certs;
            let (_, _) = roots.add_parsable_certificates(found);
        }
    }
    Ok(ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Sends the headers of the settings. The library reads some from the environment by itself, and passes over
/// what it can't read: the settings have them already, checked, and from a file where one is named.
#[derive(Debug)]
struct Client<C> {
    inner: C,
    headers: HeaderMap,
}

#[async_trait]
impl<C: HttpClient> HttpClient for Client<C> {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut headers = self.headers.clone();
        for name in [CONTENT_TYPE, CONTENT_ENCODING, USER_AGENT] {
            if let Some(value) = request.headers_mut().remove(&name) {
                headers.entry(name).or_insert(value);
            }
        }
        *request.headers_mut() = headers;
        self.inner.send_bytes(request).await
    }
}

struct Sending {
    exporter: SpanExporter,
    /// Of this thread alone: a collector that hangs holds up nothing else.
    runtime: tokio::runtime::Runtime,
    timeout: Duration,
    complained: Option<Instant>,
}

impl Sending {
    fn serve(&mut self, messages: &Receiver<Message>) {
        let mut spans = Vec::new();
        let mut places = Vec::new();
        let mut due = None;
        loop {
            let received = match due {
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) => {
                    let left: Duration = Instant::saturating_duration_since(&due, Instant::now());
                    messages.recv_timeout(left)
                }
            };
            match received {
                Ok(Message::Ended(ended, place)) => {
                    let (trace, answer) = *ended;
                    places.push(place);
                    spans.extend(trace.into_spans(answer));
                    due.get_or_insert_with(|| Instant::now() + GATHER);
                    if spans.len() < BATCH_SPANS {
                        continue;
                    }
                }
                Ok(Message::Stop(done)) => {
                    self.send(std::mem::take(&mut spans), &mut places);
                    // Who asked may have stopped waiting.
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            due = None;
            self.send(std::mem::take(&mut spans), &mut places);
        }
    }

    /// Sends a batch and gives its places back: what the collector does not take is counted and forgotten.
    fn send(&mut self, spans: Vec<SpanData>, places: &mut Vec<Place>) {
        self.tell(spans);
        places.clear();
    }

    fn tell(&mut self, spans: Vec<SpanData>) {
        if spans.is_empty() {
            return;
        }
        let count = spans.len() as u64;
        let exporting = self.exporter.export(spans);
        let sent = self
            .runtime
            .block_on(async { tokio::time::timeout(self.timeout, exporting).await });
        let error = match sent {
            Ok(Ok(())) => {
                metrics().trace_spans("sent", count);
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        metrics().trace_spans("failed", count);
        let is_due = self
            .complained
            .is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY);
        if is_due {
            self.complained = Some(Instant::now());
            tracing::warn!(error, spans = count, "the collector does not take traces");
        }
    }
}

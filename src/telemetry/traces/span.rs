//! What is noted of one request until it has ended.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderValue;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};

use super::flags;

/// Spans of one request besides its own; more are not noted.
const PARTS_MAX: usize = 32;

/// Attributes of a request's own span.
const ATTRIBUTES_MAX: usize = 9;

/// The trace of one request: its own span, and those of its parts.
#[derive(Debug)]
pub struct Trace {
    id: TraceId,
    span: SpanId,
    parent: SpanId,
    is_sampled: bool,
    state: Option<HeaderValue>,
    begun: Instant,
    begun_at: SystemTime,
    ended: Instant,
    parts: Vec<Part>,
    /// The upstream that is asked now, by its place among the parts.
    upstream: Option<usize>,
}

#[derive(Debug)]
struct Part {
    name: &'static str,
    kind: SpanKind,
    id: SpanId,
    begun: Instant,
    ended: Instant,
    failed: bool,
    attributes: Vec<KeyValue>,
}

/// How the request ended.
#[derive(Debug, Default)]
pub struct Answer {
    pub request_id: String,
    pub method: String,
    /// The name under which its route is counted.
    pub route: String,
    pub path: String,
    pub host: Option<String>,
    pub client: Option<IpAddr>,
    pub is_tls: bool,
    /// 0 where nothing was answered.
    pub status: u16,
    /// The code of a failure.
    pub code: Option<&'static str>,
}

impl Trace {
    pub(super) fn new(
        id: TraceId,
        span: SpanId,
        parent: SpanId,
        is_sampled: bool,
        state: Option<HeaderValue>,
    ) -> Trace {
        let now = Instant::now();
        Trace {
            id,
            span,
            parent,
            is_sampled,
            state,
            begun: now,
            begun_at: SystemTime::now(),
            ended: now,
            parts: Vec::new(),
            upstream: None,
        }
    }

    pub fn is_sampled(&self) -> bool {
        self.is_sampled
    }

    /// Its name in the log, and at the collector.
    pub fn id(&self) -> TraceId {
        self.id
    }

    pub(super) fn spans_count(&self) -> usize {
        self.parts.len() + 1
    }

    /// Memory that it takes until the collector has it: that of the spans it becomes.
    pub(super) fn bytes(&self, answer: &Answer) -> usize {
        let fixed = self.spans_count() * size_of::<SpanData>()
            + ATTRIBUTES_MAX * size_of::<KeyValue>()
            + answer.host.as_ref().map_or(0, String::len)
            // The name of the span has two of them again.
            + 2 * (answer.method.len() + answer.route.len())
            + answer.path.len()
            + answer.request_id.len();
        let said = self.parts.iter().flat_map(|part| &part.attributes);
        fixed + said.map(attribute_bytes).sum::<usize>()
    }

    /// The value of `tracestate` for whoever is asked next.
    pub fn state(&self) -> Option<&HeaderValue> {
        self.state.as_ref()
    }

    /// The value of `traceparent` for whoever is asked next: it names the upstream's span where one is
    /// asked, else the request's.
    pub fn traceparent(&self) -> String {
        let upstream = self.upstream.and_then(|at| self.parts.get(at));
        let span = upstream.map_or(self.span, |part| part.id);
        let flags = flags(self.is_sampled).to_u8();
        format!("00-{}-{}-{flags:02x}", self.id, span)
    }

    /// Notes a part that began then and ends now.
    pub fn part(
        &mut self,
        name: &'static str,
        begun: Instant,
        failed: bool,
        attributes: impl FnOnce() -> Vec<KeyValue>,
    ) {
        if !self.is_sampled || self.parts.len() >= PARTS_MAX {
            return;
        }
        self.parts.push(Part {
            name,
            kind: SpanKind::Internal,
            id: RandomIdGenerator::default().new_span_id(),
            begun,
            ended: Instant::now(),
            failed,
            attributes: attributes(),
        });
    }

    /// Notes that an upstream is about to be asked; one that was asked before has failed.
    pub fn begin_upstream(&mut self) {
        self.end_upstream(true, Vec::new);
        if !self.is_sampled || self.parts.len() >= PARTS_MAX {
            return;
        }
        let now = Instant::now();
        self.upstream = Some(self.parts.len());
        self.parts.push(Part {
            name: "upstream",
            kind: SpanKind::Client,
            id: RandomIdGenerator::default().new_span_id(),
            begun: now,
            ended: now,
            failed: false,
            attributes: Vec::new(),
        });
    }

    /// Notes how that went.
    pub fn end_upstream(&mut self, failed: bool, attributes: impl FnOnce() -> Vec<KeyValue>) {
        let asked = self.upstream.take();
        if let Some(part) = asked.and_then(|at| self.parts.get_mut(at)) {
            part.ended = Instant::now();
            part.failed = failed;
            part.attributes = attributes();
        }
    }

    /// The request has ended.
    pub fn close(&mut self) {
        self.ended = Instant::now();
        // It is a part of the request's whole head, which would wait for the collector too.
        self.state = None;
    }

    /// All spans as the collector is told them.
    pub(super) fn into_spans(self, answer: Answer) -> impl Iterator<Item = SpanData> {
        let (id, own, is_sampled) = (self.id, self.span, self.is_sampled);
        let (begun, begun_at) = (self.begun, self.begun_at);
        // One clock for all: that of the system may be set meanwhile.
        let at = move |instant: Instant| begun_at + instant.saturating_duration_since(begun);
        let context =
            move |span| SpanContext::new(id, span, flags(is_sampled), false, TraceState::default());
        let request = SpanData {
            span_context: context(own),
            parent_span_id: self.parent,
            parent_span_is_remote: self.parent != SpanId::INVALID,
            span_kind: SpanKind::Server,
            name: Cow::Owned(format!("{} {}", answer.method, answer.route)),
            start_time: begun_at,
            end_time: at(self.ended),
            status: status(answer.status >= 500 || answer.status == 0),
            attributes: attributes(answer),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            instrumentation_scope: scope(),
        };
        let parts = self.parts.into_iter().map(move |part| SpanData {
            span_context: context(part.id),
            parent_span_id: own,
            parent_span_is_remote: false,
            span_kind: part.kind,
            name: Cow::Borrowed(part.name),
            start_time: at(part.begun),
            end_time: at(part.ended),
            attributes: part.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: status(part.failed),
            instrumentation_scope: scope(),
        });
        std::iter::once(request).chain(parts)
    }
}

/// What is said of a guest.
pub fn guest_attributes(
    status: &'static str,
    cpu: Duration,
    queued: Duration,
    memory_peak_bytes: u64,
) -> Vec<KeyValue> {
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    vec![
        KeyValue::new("wasmwiz.guest.status", status),
        KeyValue::new("wasmwiz.guest.cpu_us", micros(cpu)),
        KeyValue::new("wasmwiz.guest.queued_us", micros(queued)),
        KeyValue::new(
            "wasmwiz.guest.memory_peak_bytes",
            i64::try_from(memory_peak_bytes).unwrap_or(i64::MAX),
        ),
    ]
}

/// What is said of an upstream.
pub fn upstream_attributes(server: String, status: u16) -> Vec<KeyValue> {
    let mut said = vec![KeyValue::new("server.address", server)];
    if status != 0 {
        said.push(KeyValue::new(
            "http.response.status_code",
            i64::from(status),
        ));
    }
    said
}

/// What is said of a request, named as the semantic conventions of OpenTelemetry name it.
fn attributes(answer: Answer) -> Vec<KeyValue> {
    let scheme = if answer.is_tls { "https" } else { "http" };
    let mut said = vec![
        KeyValue::new("http.request.method", answer.method),
        KeyValue::new("url.scheme", scheme),
        KeyValue::new("url.path", answer.path),
        KeyValue::new("wasmwiz.route", answer.route),
        KeyValue::new("wasmwiz.request_id", answer.request_id),
    ];
    if answer.status != 0 {
        let status = i64::from(answer.status);
        said.push(KeyValue::new("http.response.status_code", status));
    }
    if let Some(host) = answer.host {
        said.push(KeyValue::new("server.address", host));
    }
    if let Some(client) = answer.client {
        said.push(KeyValue::new("client.address", client.to_string()));
    }
    if let Some(code) = answer.code {
        said.push(KeyValue::new("error.type", code));
    }
    said
}

fn attribute_bytes(attribute: &KeyValue) -> usize {
    let text = match &attribute.value {
        Value::String(text) => text.as_str().len(),
        _ => 0,
    };
    size_of::<KeyValue>() + text
}

fn status(failed: bool) -> Status {
    if failed {
        Status::error("")
    } else {
        Status::Unset
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("wasm-wizard")
        .with_version(env!("CARGO_PKG_VERSION"))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(is_sampled: bool) -> Trace {
        let (id, span) = (TraceId::from(7_u128), SpanId::from(9_u64));
        Trace::new(id, span, SpanId::from(3_u64), is_sampled, None)
    }

    #[test]
    fn parts_hang_on_the_request_and_have_their_times() {
        let mut trace = trace(true);
        let begun = Instant::now();
        trace.part("auth", begun, false, Vec::new);
        trace.begin_upstream();
        let asked = trace.traceparent();
        trace.begin_upstream();
        assert_ne!(asked, trace.traceparent());
        trace.end_upstream(false, || upstream_attributes("http://u".into(), 200));
        assert!(trace.traceparent().ends_with("-0000000000000009-01"));
        trace.close();
        let answer = Answer {
            method: "GET".into(),
            route: "r".into(),
            status: 502,
            ..Answer::default()
        };
        let spans: Vec<SpanData> = trace.into_spans(answer).collect();
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_ref()).collect();
        assert_eq!(names, ["GET r", "auth", "upstream", "upstream"]);
        assert!(spans[0].parent_span_is_remote && spans[0].status != Status::Unset);
        assert_eq!(spans[0].parent_span_id, SpanId::from(3_u64));
        for part in &spans[1..] {
            assert_eq!(part.parent_span_id, SpanId::from(9_u64));
            assert!(part.start_time <= part.end_time && part.end_time <= spans[0].end_time);
        }
        let failed = spans.iter().map(|span| span.status != Status::Unset);
        assert!(failed.eq([true, false, true, false]));
    }

    #[test]
    fn what_is_not_told_costs_no_memory_and_what_is_has_bounds() {
        let mut quiet = trace(false);
        quiet.part("auth", Instant::now(), false, || unreachable!());
        quiet.begin_upstream();
        assert_eq!(quiet.spans_count(), 1);
        assert!(quiet.traceparent().ends_with("-00"));
        let mut long = trace(true);
        for _ in 0..1000 {
            long.begin_upstream();
        }
        assert_eq!(long.spans_count(), PARTS_MAX + 1);
        let text = "x".repeat(1000);
        let answer = Answer {
            path: text.clone(),
            host: Some(text.clone()),
            client: Some([192, 0, 2, 1].into()),
            status: 500,
            code: Some("internal"),
            ..Answer::default()
        };
        assert!(long.bytes(&answer) > 2000 + (PARTS_MAX + 1) * size_of::<SpanData>());
        let mut asks = self::trace(true);
        asks.begin_upstream();
        let bytes = asks.bytes(&answer);
        asks.end_upstream(true, || upstream_attributes(text, 502));
        let attributes_bytes = 1000 + 2 * size_of::<KeyValue>();
        assert_eq!(asks.bytes(&answer), bytes + attributes_bytes);
        assert_eq!(attributes(answer).len(), ATTRIBUTES_MAX);
    }
}

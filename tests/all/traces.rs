//! Traces: a real collector's end of OTLP over HTTP, and what comes there.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::gateway::{Builder, Gateway, gateway};
use crate::support::upstream::{mirror, upstream};
use crate::support::{eventually, root};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Writes its environment.
const ENVIRONMENT: &str = r#"(module
    (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_get" (func $get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 2)
    (data (i32.const 64) "Content-Type: text/plain\n\n")
    (func (export "_start")
      (i32.store (i32.const 0) (i32.const 64))
      (i32.store (i32.const 4) (i32.const 26))
      (i32.store (i32.const 8) (i32.const 65536))
      (drop (call $sizes (i32.const 16) (i32.const 12)))
      (drop (call $get (i32.const 4096) (i32.const 65536)))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 2) (i32.const 16)))))"#;

/// A collector.
#[derive(Clone, Default)]
struct Collector {
    /// What it has taken, each span with the name of its service.
    spans: Arc<Mutex<Vec<(String, Span)>>>,
    /// The heads of all requests, in lower case.
    heads: Arc<Mutex<Vec<String>>>,
    /// The bodies of all requests, taken or not.
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
    /// How many batches it refuses before it takes one.
    refusals: Arc<AtomicUsize>,
}

impl Collector {
    async fn start() -> (Collector, String) {
        Collector::refusing(0).await
    }

    async fn refusing(refusals: usize) -> (Collector, String) {
        let collector = Collector::default();
        collector.refusals.store(refusals, Ordering::Relaxed);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let own = collector.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(own.clone().serve(stream));
            }
        });
        (collector, url)
    }

    /// Requests one after the other, as they come on a connection.
    async fn serve(self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        loop {
            let end = loop {
                let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
                if let Some(end) = end {
                    break end + 4;
                }
                if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                    return;
                }
            };
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
            assert!(head.contains("\r\ncontent-type: application/x-protobuf\r\n"));
            let length = head.split("\r\ncontent-length: ").nth(1).unwrap();
            let length: usize = length.lines().next().unwrap().parse().unwrap();
            while bytes.len() < end + length {
                assert!(stream.read_buf(&mut bytes).await.unwrap() > 0);
            }
            self.heads.lock().unwrap().push(head);
            let body = bytes[end..end + length].to_vec();
            self.bodies.lock().unwrap().push(body);
            let left = |left: usize| left.checked_sub(1);
            let is_taken = self
                .refusals
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
                .is_err();
            let status = if is_taken {
                self.take(&bytes[end..end + length]);
                "200 OK"
            } else {
                "503 Service Unavailable"
            };
            bytes.drain(..end + length);
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    fn take(&self, body: &[u8]) {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        for of_resource in request.resource_spans {
            let resource = of_resource.resource.unwrap();
            let service = attribute(&resource.attributes, "service.name");
            for of_scope in of_resource.scope_spans {
                let spans = of_scope.spans.into_iter();
                let spans = spans.map(|span| (service.clone(), span));
                self.spans.lock().unwrap().extend(spans);
            }
        }
    }

    /// All spans of the trace whose request has this name, once it is there with this part.
    async fn trace(&self, name: &str, part: &str) -> Vec<Span> {
        eventually(&format!("{name} with {part}"), async || {
            let spans = self.spans.lock().unwrap();
            let request = spans.iter().find(|(_, span)| span.name == name);
            let id = request?.1.trace_id.clone();
            let of_trace = spans.iter().filter(|(_, span)| span.trace_id == id);
            let found: Vec<Span> = of_trace.map(|(_, span)| span.clone()).collect();
            found.iter().any(|span| span.name == part).then_some(found)
        })
        .await
    }
}

fn attribute(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|found| found.value.as_ref()) {
        Some(AnyValue {
            value: Some(Any::StringValue(text)),
        }) => text.clone(),
        Some(AnyValue {
            value: Some(Any::IntValue(number)),
        }) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn named<'s>(spans: &'s [Span], name: &str) -> &'s Span {
    let found = spans.iter().find(|span| span.name == name);
    found.unwrap_or_else(|| panic!("{name}: {spans:#?}"))
}

/// Everything is traced, whoever asks, and told to this collector.
fn traced(endpoint: &str) -> Builder {
    gateway()
        .set("tracing.endpoint", json!(endpoint))
        .set("tracing.service_name", json!("edge"))
        .set("tracing.sample", json!(1.0))
        .set("tracing.parents", json!("all"))
}

async fn mirrored(builder: Builder) -> Gateway {
    let mirror = upstream(mirror).await;
    let route = json!({ "name": "up", "match": { "path": "/up" }, "auth": "none",
        "proxy": { "upstreams": [mirror.url] } });
    builder.route(route).start_plain()
}

/// What the upstream was told with these headers: `traceparent` and `tracestate`.
async fn told(gateway: &Gateway, headers: &[(&str, &str)]) -> (Option<String>, Option<String>) {
    let mut request = gateway.client().get(gateway.http_url("/up"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let text = answer.text().await.unwrap().to_ascii_lowercase();
    let line = |name: &str| {
        let mut found = text.lines().filter_map(|line| line.strip_prefix(name));
        let first = found.next().map(|value| value.trim().to_owned());
        assert_eq!(found.next(), None, "{name} twice: {text}");
        first
    };
    (line("traceparent:"), line("tracestate:"))
}

#[tokio::test]
async fn a_proxied_request_is_a_span_of_its_callers_trace_and_the_upstream_one_of_it() {
    let (collector, url) = Collector::start().await;
    let gateway = mirrored(traced(&url)).await;
    let headers = [("traceparent", PARENT), ("tracestate", "vendor=1")];
    let (parent, state) = told(&gateway, &headers).await;
    let parent = parent.unwrap();
    let fields: Vec<&str> = parent.split('-').collect();
    assert_eq!((fields[0], fields[1], fields[3]), ("00", TRACE, "01"));
    assert_eq!(state.as_deref(), Some("vendor=1"));
    let spans = collector.trace("GET up", "upstream").await;
    let (request, upstream) = (named(&spans, "GET up"), named(&spans, "upstream"));
    assert_eq!(hex(&request.trace_id), TRACE);
    assert_eq!(hex(&request.parent_span_id), "b7ad6b7169203331");
    assert_eq!(upstream.parent_span_id, request.span_id);
    assert_eq!(hex(&upstream.span_id), fields[2]);
    assert_eq!((request.kind, upstream.kind), (2, 3));
    let said = |key| attribute(&request.attributes, key);
    assert_eq!(said("http.request.method"), "GET");
    assert_eq!(said("http.response.status_code"), "200");
    assert_eq!(said("url.path"), "/up");
    assert_eq!(said("client.address"), "127.0.0.1");
    assert!(request.start_time_unix_nano <= upstream.start_time_unix_nano);
    assert!(upstream.end_time_unix_nano <= request.end_time_unix_nano);
    let services = collector.spans.lock().unwrap();
    assert!(services.iter().all(|(service, _)| service == "edge"));
}

#[tokio::test]
async fn auth_limits_and_guests_are_parts_on_routes_and_in_the_api() {
    let (collector, url) = Collector::start().await;
    let module = root().join("examples/guests/echo.wasm");
    let gateway = traced(&url)
        .env("API_SALT", "0f0c2e9b7a1d4386e8f5b0c7d2a94163")
        .start_plain();
    let key = gateway.admin_key();
    let client = gateway.client();
    for (path, name) in [
        ("/fn/echo", "POST echo"),
        ("/api/wasm/execute", "POST builtin:api"),
    ] {
        let request = client.post(gateway.http_url(path)).bearer_auth(&key);
        let request = request.header("content-type", "application/wasm");
        let answer = request.body(std::fs::read(&module).unwrap()).send().await;
        assert_eq!(answer.unwrap().status(), 200, "{path}");
        let spans = collector.trace(name, "guest").await;
        let request = named(&spans, name);
        for part in ["auth", "limit", "guest"] {
            assert_eq!(named(&spans, part).parent_span_id, request.span_id);
        }
        let guest = named(&spans, "guest");
        assert_eq!(
            attribute(&guest.attributes, "wasmwiz.guest.status"),
            "success"
        );
        assert!(request.start_time_unix_nano <= guest.start_time_unix_nano);
        // No secret is in any of it.
        let all = format!("{spans:?}");
        assert!(!all.contains(&key[3..]), "{all}");
    }
    let refused = client
        .get(gateway.http_url("/fn/echo"))
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status(), 405);
    // What failed of the caller's doing is no error of the gateway's; the code says what it was.
    let spans = collector.trace("GET unknown", "GET unknown").await;
    let request = named(&spans, "GET unknown");
    assert_eq!(
        attribute(&request.attributes, "error.type"),
        "method_not_allowed"
    );
    assert_eq!(request.status.as_ref().map_or(0, |status| status.code), 0);
}

#[tokio::test]
async fn guests_are_told_in_their_environment() {
    let (_collector, url) = Collector::start().await;
    let dir = crate::support::gateway::workdir();
    std::fs::write(dir.path().join("environment.wat"), ENVIRONMENT).unwrap();
    let route = json!({ "name": "env", "match": { "path": "/env" }, "auth": "none",
        "execute": { "file": "environment.wat", "abi": "wagi" } });
    let gateway = traced(&url).in_dir(dir).route(route).start_plain();
    let request = gateway.client().get(gateway.http_url("/env"));
    let answer = request.header("traceparent", PARENT).send().await.unwrap();
    let environment = answer.text().await.unwrap();
    let value = environment
        .split('\0')
        .find_map(|pair| pair.strip_prefix("HTTP_TRACEPARENT="));
    let value = value.unwrap_or_else(|| panic!("{environment:?}"));
    assert!(
        value.starts_with(&format!("00-{TRACE}-")) && value != PARENT,
        "{value}"
    );
}

#[tokio::test]
async fn hostile_parents_begin_a_new_trace() {
    let (_collector, url) = Collector::start().await;
    let gateway = mirrored(traced(&url)).await;
    let long = "0".repeat(4000);
    for bad in [
        "",
        "00",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01, x",
        "00-%00-'; drop table spans",
        &long,
    ] {
        let (parent, state) = told(&gateway, &[("traceparent", bad), ("tracestate", "a=1")]).await;
        let parent = parent.unwrap();
        assert!(
            parent.len() == 55 && !parent.contains(TRACE),
            "{bad}: {parent}"
        );
        assert_eq!(state, None, "{bad}");
    }
    // A state that breaks the rules does not take the parent along.
    let headers = [("traceparent", PARENT), ("tracestate", "no value, A=1")];
    let (parent, state) = told(&gateway, &headers).await;
    assert!(parent.unwrap().contains(TRACE));
    assert_eq!(state, None);
}

#[tokio::test]
async fn strangers_do_not_decide_what_is_traced_and_without_a_collector_nothing_changes() {
    let (collector, url) = Collector::start().await;
    let trusted = traced(&url)
        .set("tracing.parents", json!("trusted"))
        .set("tracing.sample", json!(0.0));
    let gateway = mirrored(trusted).await;
    let headers = [("traceparent", PARENT), ("tracestate", "a=1")];
    let (parent, state) = told(&gateway, &headers).await;
    let parent = parent.unwrap();
    assert!(
        !parent.contains(TRACE) && parent.ends_with("-00"),
        "{parent}"
    );
    assert_eq!(state, None);
    assert!(collector.spans.lock().unwrap().is_empty());
    // Off, the headers are the client's own, as any others are.
    let gateway = mirrored(self::gateway()).await;
    let (parent, state) = told(&gateway, &headers).await;
    assert_eq!(parent.as_deref(), Some(PARENT));
    assert_eq!(state.as_deref(), Some("a=1"));
}

#[tokio::test]
async fn variables_and_files_name_the_collector_and_its_credentials_and_a_batch_is_sent_again() {
    let (collector, url) = Collector::refusing(2).await;
    let base = url.strip_suffix("/v1/traces").unwrap();
    let dir = crate::support::gateway::workdir();
    let file = dir.path().join("headers");
    std::fs::write(&file, "authorization=Bearer%20s3same,x-tenant=edge\n").unwrap();
    // Nothing listens at port 1, and what the file and the variable of all signals say does not count.
    let gateway = traced("http://127.0.0.1:1/v1/traces")
        .set("tracing.headers", json!("x-of-file=1"))
        .set("tracing.sample", json!(1.0))
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", base)
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-of-all=1")
        .env(
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS_FILE",
            file.to_str().unwrap(),
        )
        .env("OTEL_SERVICE_NAME", "by-variable")
        .env("LOG_LEVEL", "trace")
        .in_dir(dir)
        .start_plain();
    let request = gateway.client().get(gateway.http_url("/health/live"));
    let answer = request.header("traceparent", PARENT).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let name = "GET builtin:health";
    let spans = collector.trace(name, name).await;
    assert_eq!((spans.len(), hex(&spans[0].trace_id)), (1, TRACE.into()));
    assert_eq!(collector.spans.lock().unwrap()[0].0, "by-variable");
    let heads = collector.heads.lock().unwrap().clone();
    assert_eq!(heads.len(), 3, "{heads:?}");
    for head in &heads {
        assert!(head.contains("\r\nauthorization: bearer s3same\r\n"));
        assert!(head.contains("\r\nx-tenant: edge\r\n"), "{head}");
        assert!(!head.contains("x-of-"), "{head}");
    }
    let log = gateway.stderr();
    assert!(log.contains(&format!(r#""trace_id":"{TRACE}""#)), "{log}");
    assert!(!log.contains("s3same"), "{log}");
}

#[tokio::test]
async fn a_collector_that_refuses_is_asked_a_few_times_and_then_done_without() {
    let (collector, url) = Collector::refusing(usize::MAX).await;
    let gateway = traced(&url).start_plain();
    let request = gateway.client().get(gateway.http_url("/health/live"));
    assert_eq!(request.send().await.unwrap().status(), 200);
    eventually("the batch is given up", async || {
        let row = "wasmwiz_trace_spans_total{result=\"failed\"}";
        (gateway.metric(row).await? > 0.0).then_some(())
    })
    .await;
    // The first try and three more; what asked for the metrics is in batches of its own.
    let bodies = collector.bodies.lock().unwrap();
    let of_the_first = bodies.iter().filter(|body| **body == bodies[0]);
    assert_eq!(of_the_first.count(), 4, "of {}", bodies.len());
}

/// A collector that takes connections and never answers costs spans: no time, no memory, no shutdown.
#[tokio::test]
async fn a_collector_that_hangs_holds_up_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let mut gateway = traced(&url)
        .set("tracing.queue_max", json!("64KiB"))
        .set("tracing.timeout", json!("2s"))
        .start_plain();
    let client = gateway.client();
    let begun = Instant::now();
    let spans = async |result: &str| {
        let row = format!("wasmwiz_trace_spans_total{{result=\"{result}\"}}");
        gateway.metric(&row).await.unwrap_or(0.0)
    };
    // While a batch hangs, the queue of some 50 requests fills, and the rest is dropped.
    eventually("spans are dropped", async || {
        for _ in 0..100 {
            let answer = client.get(gateway.http_url("/health/live")).send().await;
            assert_eq!(answer.unwrap().status(), 200);
        }
        (spans("dropped").await > 0.0).then_some(())
    })
    .await;
    eventually("a batch is given up", async || {
        (spans("failed").await > 0.0).then_some(())
    })
    .await;
    assert_eq!(spans("sent").await, 0.0);
    assert!(
        gateway
            .stderr()
            .contains("the collector does not take traces")
    );
    gateway.terminate();
    let status = gateway.wait_for(Duration::from_secs(60));
    assert!(status.success(), "{status} after {:?}", begun.elapsed());
}

#[test]
fn settings_that_can_not_be_used_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (settings, why) in [
        (
            json!({ "endpoint": "collector:4317" }),
            "is not a URL of a collector",
        ),
        (
            json!({ "endpoint": "http://me:secret@collector/v1/traces" }),
            "must not hold a user",
        ),
        (
            json!({ "endpoint": "http://c/", "ca": "ca.pem" }),
            "is for an https:// endpoint",
        ),
        (json!({ "sample": 1.5 }), "must be between 0 and 1"),
        (json!({ "sample": -0.1 }), "must be between 0 and 1"),
        (
            json!({ "service_name": "" }),
            "must have 1 to 100 characters",
        ),
        (json!({ "parents": "some" }), "tracing.parents"),
        (json!({ "queue_max": 1 }), "must be between 64KiB and 1GiB"),
        (
            json!({ "headers": "secret" }),
            "tracing.headers: entry 1 is not name=value",
        ),
    ] {
        let config: Value = json!({ "tracing": settings });
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, serde_yaml::to_string(&config).unwrap()).unwrap();
        let arguments = ["check", "--config", "config.yaml"];
        let output = crate::support::gateway::run(dir.path(), &arguments, &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success() && said.contains(why),
            "{settings}: {said}"
        );
        assert!(!said.contains("secret"), "{said}");
    }
}

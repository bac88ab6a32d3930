//! Variables over the file.

use std::time::Duration;

use super::super::{Environment, VARIABLES};
use super::{load_with, problems_with};
use crate::gateway::Listener;
use crate::limits::OnLoss;

const SALT: &str = "2f8a61c09d3be4475a1c6e0b97d2483f";

#[test]
fn variables_override_the_file() {
    let yaml =
        "sandbox: { wasm_size_max: 1MiB, execution_timeout: 1s }\nlogging: { level: warn }\n";
    let loaded = load_with(
        yaml,
        &[
            ("ENVIRONMENT", "staging"),
            ("API_SALT", SALT),
            ("JWT_SECRET", "94d1a7e06c3b5f2208b7ce914fa3d685"),
            ("DATABASE_URL", "postgres://ww:pw@db/ww"),
            ("MAX_WASM_SIZE", "20MiB"),
            ("MAX_INPUT_SIZE", "2097152"),
            ("EXECUTION_TIMEOUT", "7"),
            ("MEMORY_LIMIT", "256MiB"),
            ("LOG_LEVEL", "DEBUG"),
            ("PROMETHEUS_ENABLED", "false"),
            ("METRICS_ENDPOINT", "/prometheus"),
            ("SERVER_HOST", "127.0.0.1"),
            ("SERVER_PORT", "9443"),
            ("TLS_CERT_PATH", "/tls/a.crt"),
            ("TLS_KEY_PATH", "/tls/a.key"),
            ("FREE_TIER_RATE_MINUTE", "3"),
            ("FREE_TIER_RATE_DAY", "unlimited"),
            ("ENTERPRISE_TIER_RATE_DAY", "9"),
        ],
    )
    .unwrap();
    let config = loaded.config;
    assert_eq!(config.environment, Environment::Staging);
    assert_eq!(config.store.url, "postgres://ww:pw@db/ww");
    assert_eq!(config.sandbox.wasm_bytes_max, 20 << 20);
    assert_eq!(config.api.input_bytes_max, 2 << 20);
    assert_eq!(config.gateway.guest.deadline, Duration::from_secs(7));
    assert_eq!(config.gateway.guest.memory_bytes_max, 256 << 20);
    assert_eq!(config.logging.level, "debug");
    assert!(!config.metrics.enabled);
    assert_eq!(config.metrics.path, "/prometheus");
    assert_eq!(config.limits.tiers.free.rate.per_minute, Some(3));
    assert_eq!(config.limits.tiers.free.rate.per_day, None);
    assert_eq!(config.limits.tiers.enterprise.rate.per_day, Some(9));
    let Listener::Https { address, files, .. } = &config.server.listeners[0] else {
        panic!("HTTPS comes first")
    };
    assert_eq!(address.to_string(), "127.0.0.1:9443");
    let certificates = &files.certificates;
    assert_eq!(certificates[0].cert.to_str(), Some("/tls/a.crt"));
    assert!(!certificates[0].development);
    let Listener::HttpRedirect { https_port, .. } = config.server.listeners[1] else {
        panic!("then the redirect")
    };
    assert_eq!(https_port, 9443);
}

#[test]
fn the_global_limits_are_ceilings_for_the_free_tier_alone() {
    let config = load_with(
        "",
        &[("MEMORY_LIMIT", "64MiB"), ("EXECUTION_TIMEOUT", "100ms")],
    )
    .unwrap()
    .config;
    let tiers = config.limits.tiers;
    assert_eq!(
        (tiers.free.memory_bytes_max, tiers.free.deadline),
        (64 << 20, Duration::from_millis(100))
    );
    assert_eq!(
        (tiers.basic.memory_bytes_max, tiers.basic.deadline),
        (256 << 20, Duration::from_secs(10))
    );
    let config = load_with("", &[("MEMORY_LIMIT", "2GiB"), ("EXECUTION_TIMEOUT", "60")])
        .unwrap()
        .config;
    assert_eq!(
        config.limits.tiers.free.memory_bytes_max,
        128 << 20,
        "the row of the tier still holds"
    );
    assert_eq!(config.api.guest.memory_bytes_max, 2 << 30);
}

#[test]
fn an_empty_variable_is_unset() {
    let empty: Vec<_> = VARIABLES
        .iter()
        .map(|variable| (variable.name, ""))
        .collect();
    assert!(load_with("", &empty).unwrap().config == load_with("", &[]).unwrap().config);
}

#[test]
fn every_variable_is_read_and_refused_by_name() {
    for variable in VARIABLES {
        if matches!(
            variable.name,
            "METRICS_ENDPOINT"
                | "BACKUP_STAMP"
                | "LOG_LEVEL"
                | "API_SALT"
                | "DATABASE_URL"
                // These count with an endpoint only.
                | "OTEL_EXPORTER_OTLP_CERTIFICATE"
                | "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"
                | "OTEL_EXPORTER_OTLP_PROTOCOL"
                | "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
        ) {
            continue;
        }
        let problems = problems_with("", &[(variable.name, "\u{1b}[31m no\n")]);
        assert!(
            problems
                .iter()
                .any(|problem| problem.starts_with(variable.name)),
            "{}: {problems:?}",
            variable.name
        );
        assert!(!problems.concat().contains('\u{1b}'), "{problems:?}");
    }
}

#[test]
fn problems_with_a_value_name_the_variable_it_came_from() {
    let problems = problems_with(
        "sandbox:\n  memory_max: 64MiB\n",
        &[
            ("MEMORY_LIMIT", "128"),
            ("METRICS_ENDPOINT", "metrics"),
            ("LOG_LEVEL", "verbose"),
            ("API_SALT", "short-and-secret"),
            ("DATABASE_URL", "mysql://root:hunter2@db/x"),
            ("FREE_TIER_RATE_DAY", "0"),
            ("SERVER_PORT", "8080"),
        ],
    );
    let text = problems.join("\n");
    for start in [
        "MEMORY_LIMIT: must be between 64KiB and 4GiB, not 128 — a bare number is bytes",
        "METRICS_ENDPOINT: is not a path",
        "LOG_LEVEL: 'verbose' is not a level",
        "API_SALT: must have at least 32 characters, not 16",
        "DATABASE_URL: has an unknown scheme",
        "FREE_TIER_RATE_DAY: must be between 1 and",
    ] {
        assert!(
            problems.iter().any(|problem| problem.starts_with(start)),
            "{start}\n{text}"
        );
    }
    assert!(
        !text.contains("hunter2") && !text.contains("short-and-secret"),
        "{text}"
    );
}

#[test]
fn the_stamp_of_backups_can_be_a_variable() {
    let name = "BACKUP_STAMP";
    let loaded = load_with("metrics: { backup_stamp: a }", &[(name, "/b")]).unwrap();
    let stamp = loaded.config.metrics.backup_stamp.unwrap();
    assert_eq!(stamp.to_str(), Some("/b"));
    assert_eq!(
        problems_with("", &[(name, "a\0b")]),
        ["BACKUP_STAMP: must name a file"]
    );
}

#[test]
fn certificate_and_key_come_together() {
    assert_eq!(
        problems_with("", &[("TLS_CERT_PATH", "a.crt")]),
        ["TLS_CERT_PATH: is set, but not TLS_KEY_PATH — set both or neither"]
    );
    assert_eq!(
        problems_with("", &[("TLS_KEY_PATH", "a.key")]),
        ["TLS_KEY_PATH: is set, but not TLS_CERT_PATH — set both or neither"]
    );
    let plain = "server: { https: [], http: [{ address: 127.0.0.1:8080, serve: routes }] }";
    let problems = problems_with(
        plain,
        &[
            ("SERVER_PORT", "1"),
            ("TLS_CERT_PATH", "a"),
            ("TLS_KEY_PATH", "b"),
        ],
    );
    assert_eq!(problems.len(), 3, "{problems:?}");
}

#[test]
fn secrets_are_read_from_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let write = |name: &str, text: &[u8]| {
        std::fs::write(directory.path().join(name), text).unwrap();
        path(name)
    };
    let url = write("url", b"postgres://ww:pw@db/ww\r\n");
    let salt = write("salt", format!("{SALT}\n").as_bytes());
    let config = load_with("", &[("DATABASE_URL_FILE", &url), ("API_SALT_FILE", &salt)])
        .unwrap()
        .config;
    assert_eq!(config.store.url, "postgres://ww:pw@db/ww");
    let given = load_with("", &[("API_SALT", SALT)]).unwrap().config;
    assert!(
        config.auth.salt == given.auth.salt,
        "the newline at the end is not part of the salt"
    );

    let one = |pairs: &[(&str, &str)]| problems_with("", pairs).join("\n");
    assert!(one(&[("API_SALT_FILE", &path("none"))]).starts_with("API_SALT_FILE: '"));
    assert!(one(&[("API_SALT_FILE", &write("empty", b"\n"))]).contains("is empty"));
    assert!(one(&[("API_SALT_FILE", &write("binary", &[0xff; 40]))]).contains("is not UTF-8"));
    assert!(
        one(&[("API_SALT_FILE", &write("huge", &[b'x'; 70_000]))])
            .contains("has more than 65536 bytes")
    );
    assert!(
        one(&[("API_SALT_FILE", directory.path().to_str().unwrap())]).contains("can't be read")
    );
    let both = one(&[("API_SALT", SALT), ("API_SALT_FILE", &salt)]);
    assert_eq!(
        both,
        "API_SALT_FILE: is set, and so is API_SALT — unset one of them"
    );
    let short = write("short", b"hunter2");
    let problem = one(&[("API_SALT_FILE", &short)]);
    assert!(
        problem.starts_with("API_SALT_FILE: must have at least 32") && !problem.contains("hunter2"),
        "{problem}"
    );
}

#[test]
fn redis_comes_from_its_variable_and_is_not_shown() {
    let loaded = load_with("", &[("REDIS_URL", "rediss://u:hunter2@cache:6380/1")]).unwrap();
    let shared = loaded.config.limits.shared.as_ref().unwrap();
    assert_eq!(shared.redis.url, "rediss://u:hunter2@cache:6380/1");
    assert_eq!(shared.redis.timeout, Duration::from_millis(200));
    assert!(!shared.is_vital);
    let shown = loaded.to_yaml().unwrap();
    assert!(
        shown.contains("rediss://u:(hidden)@cache:6380/1"),
        "{shown}"
    );
    assert!(!format!("{:?}", loaded.config.limits).contains("hunter2"));
    for bad in [
        "hunter2",
        "http://:hunter2@cache",
        "unix:///hunter2",
        "rediss://:hunter2@cache/#insecure",
    ] {
        let problem = problems_with("", &[("REDIS_URL", bad)]).join("\n");
        assert!(problem.starts_with("REDIS_URL: "), "{problem}");
        assert!(!problem.contains("hunter2"), "{problem}");
    }
    assert!(problems_with("", &[("REDIS_URL_FILE", "/none")])[0].starts_with("REDIS_URL_FILE: "));
}

#[test]
fn what_redis_is_told_has_bounds() {
    for bad in [
        "url: redis://cache, timeout: 1ms",
        "url: redis://cache, timeout: 10s",
        "url: redis://cache, local_share_percent: 0",
        "url: redis://cache, local_share_percent: 101",
        "url: redis://cache, key_prefix: ''",
        "url: redis://cache, key_prefix: 'a b'",
        "url: redis://cache, key_prefix: '{a}'",
        "url: redis://cache, on_loss: maybe",
        "url: redis://cache, ca: ca.pem",
        "url: redis://cache, ca: ''",
    ] {
        let yaml = format!("limits: {{ redis: {{ {bad} }} }}");
        let problems = problems_with(&yaml, &[]);
        assert_eq!(problems.len(), 1, "{bad}: {problems:?}");
    }
    let yaml = "limits: { redis: { url: redis://cache, on_loss: closed } }
routes:
  - { name: a, match: { path: /a }, limits: { on_redis_loss: open }, respond: {} }
  - { name: b, match: { path: /b }, respond: {} }
";
    let config = load_with(yaml, &[]).unwrap().config;
    assert!(config.limits.shared.unwrap().is_vital);
    assert_eq!(config.gateway.on_redis_loss, OnLoss::Closed);
    let on_loss: Vec<_> = config
        .routes
        .iter()
        .map(|r| r.limits.on_redis_loss)
        .collect();
    assert_eq!(on_loss, [OnLoss::Open, OnLoss::Closed]);
}

#[test]
fn a_collector_is_named_by_the_file_by_variables_of_all_signals_and_by_those_of_traces() {
    let yaml = "tracing:
  endpoint: https://file/v1/traces
  ca: file.pem
  service_name: file
  timeout: 1s
  headers: from=file
";
    let all = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://all:4318/"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "from=all"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "all.pem"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2000"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_SERVICE_NAME", "all"),
    ];
    let traces = [
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "https://traces/elsewhere",
        ),
        (
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            "from=traces, a = b%2Cc==",
        ),
        ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "traces.pem"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "3000"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
    ];
    let read = |yaml: &str, variables: &[(&str, &str)]| {
        let loaded = load_with(yaml, variables).unwrap();
        let printed = loaded.to_yaml().unwrap();
        assert!(!printed.contains("from="), "{printed}");
        loaded.config.tracing
    };
    let shown = |yaml: &str, variables: &[(&str, &str)]| {
        let tracing = read(yaml, variables).unwrap();
        (
            tracing.endpoint,
            tracing.headers["from"].to_str().unwrap().to_owned(),
            tracing.ca.unwrap().display().to_string(),
            tracing.timeout.as_secs(),
            tracing.service,
        )
    };
    let expected = |endpoint: &str, name: &str, secs, service: &str| {
        let (name, ca) = (name.to_owned(), format!("{name}.pem"));
        (endpoint.to_owned(), name, ca, secs, service.to_owned())
    };
    assert_eq!(
        shown(yaml, &[]),
        expected("https://file/v1/traces", "file", 1, "file")
    );
    let of_all = [&all[..4], &all[5..]].concat();
    let by_all = expected("https://all:4318/v1/traces", "all", 2, "all");
    assert_eq!(shown(yaml, &of_all), by_all);
    assert_eq!(shown("", &of_all), by_all);
    let both = [&all[..], &traces[..]].concat();
    let by_traces = expected("https://traces/elsewhere", "traces", 3, "all");
    assert_eq!(shown(yaml, &both), by_traces);
    let headers = read("", &both).unwrap().headers;
    assert_eq!(headers["a"], "b,c==");
    assert!(!format!("{headers:?}").contains("b,c"));
    // gRPC is refused where something would go there, and else none of our business.
    let problems = problems_with("", &all);
    assert_eq!(problems.len(), 1, "{problems:?}");
    let expected = "OTEL_EXPORTER_OTLP_PROTOCOL: must be http/protobuf, not 'grpc'";
    assert!(problems[0].starts_with(expected), "{problems:?}");
    assert!(read("", &all[4..]).is_none());
}

#[test]
fn what_is_no_header_for_a_collector_is_refused_and_not_shown() {
    let name = "OTEL_EXPORTER_OTLP_HEADERS";
    let many: String = (0..20).map(|at| format!("h{at}=x,")).collect();
    for (text, why) in [
        ("hunter2", "entry 1 is not name=value"),
        ("hunter2=", "entry 1 is not name=value"),
        ("a=b,bearer hunter2=x", "entry 2 is not name=value"),
        ("a=hunter2%0d%0ax: y", "entry 1 is not name=value"),
        ("a=hunter2%4", "entry 1 is not name=value"),
        ("a=hunter2%zz", "entry 1 is not name=value"),
        (",a=hunter2", "entry 1 is not name=value"),
        ("Content-Length=0", "'content-length' is set by the gateway"),
        (&many, "has more than 16 headers"),
    ] {
        let problems = problems_with("", &[(name, text)]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        let problem = &problems[0];
        assert!(
            problem.starts_with(name) && problem.contains(why),
            "{text}: {problem}"
        );
        assert!(!problem.contains("hunter2"), "{problem}");
    }
}

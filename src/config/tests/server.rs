//! Listeners, headers, logging, metrics, the database.

use super::super::file::File;
use super::{load, load_with, problem, problems, warnings_with};
use crate::gateway::Listener;
use crate::limits::Tier;

#[test]
fn listeners_may_not_take_each_others_address() {
    let https = |address: &str| {
        format!("{{ address: '{address}', certificates: [{{ cert: a, key: b }}] }}")
    };
    let server = |first: &str, http: &str, admin: &str| {
        format!(
            "server: {{ https: [{}], http: [{{ address: '{http}' }}], admin: {{ address: '{admin}' }} }}",
            https(first)
        )
    };
    assert!(load(&server("0.0.0.0:443", "0.0.0.0:80", "127.0.0.1:9091")).is_ok());
    assert!(
        load(&server("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0")).is_ok(),
        "port 0 is any free port"
    );
    for (first, http, admin) in [
        ("0.0.0.0:443", "0.0.0.0:443", "127.0.0.1:9091"),
        ("0.0.0.0:9091", "0.0.0.0:80", "127.0.0.1:9091"),
        ("[::1]:443", "[::]:443", "127.0.0.1:9091"),
    ] {
        assert!(problem(&server(first, http, admin)).contains("is taken by another listener"));
    }
}

#[test]
fn listeners_need_what_they_need() {
    assert!(problem("server: { https: [], http: [] }").contains("there is no listener"));
    assert!(problem("server: { https: [] }").contains("there is no HTTPS listener to redirect to"));
    assert!(problem("server: { https: [{ address: 0.0.0.0:1 }] }").contains("needs a certificate"));
    assert!(
        problem("server: { https: [{ certificates: [{ cert: a, key: b }] }] }")
            .contains("address: is required")
    );
    assert!(
        problem(
            "server: { https: [{ address: localhost:1, certificates: [{ cert: a, key: b }] }] }"
        )
        .contains("must be an IP address")
    );
    assert!(problem("server: { admin: {} }").contains("server.admin.address: is required"));
    let none = load(
        "server: { admin: null, https: [], http: [{ address: 0.0.0.0:8080, serve: routes }] }",
    )
    .unwrap();
    assert_eq!(none.config.server.admin, None);
    assert!(matches!(
        none.config.server.listeners[..],
        [Listener::Http { .. }]
    ));
    let warnings = warnings_with("server: { admin: { address: 0.0.0.0:9091 } }", &[]).join("");
    assert!(
        warnings.contains("whoever reaches the admin listener"),
        "{warnings}"
    );
}

#[test]
fn ranges_hold_at_their_ends() {
    for (good, bad) in [
        ("server: { threads: 1024 }", "server: { threads: 1025 }"),
        ("server: { threads: 1 }", "server: { threads: 0 }"),
        (
            "server: { bounds: { uri_size_max: 32KiB } }",
            "server: { bounds: { uri_size_max: 33KiB } }",
        ),
        (
            "sandbox: { memory_max: 64KiB }",
            "sandbox: { memory_max: 65535 }",
        ),
        (
            "sandbox: { memory_max: 4GiB }",
            "sandbox: { memory_max: 4294967297 }",
        ),
        (
            "sandbox: { stderr_max: 0 }",
            "sandbox: { stderr_max: 17MiB }",
        ),
        (
            "tiers: { pro: { stdout_max: 256MiB } }",
            "tiers: { pro: { stdout_max: 257MiB } }",
        ),
        (
            "tiers: { free: { stderr_max: 0 } }",
            "tiers: { free: { stderr_max: 17MiB } }",
        ),
        (
            "tiers: { basic: { stack_size: 64KiB } }",
            "tiers: { basic: { stack_size: 63KiB } }",
        ),
        (
            "tiers: { enterprise: { table_elements_max: 10000000 } }",
            "tiers: { enterprise: { table_elements_max: 0 } }",
        ),
        (
            "sandbox: { execution_timeout: 1ms }",
            "sandbox: { execution_timeout: 0 }",
        ),
        (
            "sandbox: { execution_timeout: 1h }",
            "sandbox: { execution_timeout: 3601 }",
        ),
        (
            "tiers: { pro: { per_day: 1, per_minute: 1 } }",
            "tiers: { pro: { per_day: 0, per_minute: unlimited } }",
        ),
        ("limits: { subjects_max: 1 }", "limits: { subjects_max: 0 }"),
    ] {
        assert!(load(good).is_ok(), "{good}");
        problem(bad);
    }
}

#[test]
fn a_tier_has_output_stack_and_tables_of_its_own_if_it_says_so() {
    let yaml = "{ sandbox: { stdout_max: 1MiB, stack_size: 512KiB },
        tiers: { free: { stdout_max: 2MiB, stderr_max: 1KiB, stack_size: 256KiB },
                 pro: { stdout_max: 16MiB, stack_size: 4MiB, table_elements_max: 200000 } } }";
    let config = load(yaml).unwrap().config;
    let (global, tiers) = (config.gateway.guest, &config.limits.tiers);
    let four = |tier| {
        let limits = tiers.guest_limits(tier, global);
        (
            limits.stdout_bytes_max >> 10,
            limits.stderr_bytes_max >> 10,
            limits.stack_bytes_max >> 10,
            limits.table_elements_max,
        )
    };
    assert_eq!(four(None), (1024, 64, 512, 100_000));
    assert_eq!(four(Some(Tier::Free)), (1024, 1, 256, 100_000));
    assert_eq!(four(Some(Tier::Basic)), (1024, 64, 512, 100_000));
    assert_eq!(four(Some(Tier::Pro)), (16_384, 64, 4096, 200_000));
    // The sandbox is made for the most that any may have.
    assert_eq!(config.sandbox.stack_bytes_max, 4 << 20);
    assert_eq!(config.sandbox.table_elements_max, 200_000);
    assert_eq!(config.api.guest, global);
}

#[test]
fn a_tier_keeps_what_is_not_said() {
    let tiers = load("tiers: { basic: { per_minute: 7 }, enterprise: { memory_max: 2GiB } }")
        .unwrap()
        .config
        .limits
        .tiers;
    assert_eq!(
        (tiers.basic.rate.per_minute, tiers.basic.rate.per_day),
        (Some(7), Some(10_000))
    );
    assert_eq!(
        (
            tiers.enterprise.memory_bytes_max,
            tiers.enterprise.rate.per_day
        ),
        (2 << 30, None)
    );
    assert_eq!(tiers.pro.rate.per_minute, Some(500));
    let warnings = warnings_with("tiers: { free: { per_day: 5 } }", &[]).join("");
    assert!(
        warnings.contains("5 a day leave the 10 a minute no use"),
        "{warnings}"
    );
}

#[test]
fn security_headers_stay_unless_they_are_removed() {
    let names = |yaml: &str| {
        let mut names: Vec<String> = load(yaml)
            .unwrap()
            .config
            .gateway
            .headers
            .response_set
            .into_iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("").len(), 5);
    let changed =
        names("headers: { set: { x-frame-options: SAMEORIGIN, Referrer-Policy: null, X-Own: a } }");
    assert_eq!(changed.len(), 5, "{changed:?}");
    assert!(
        changed.contains(&"x-frame-options: SAMEORIGIN".to_string()),
        "{changed:?}"
    );
    assert!(changed.contains(&"x-own: a".to_string()), "{changed:?}");
    assert!(
        !changed
            .iter()
            .any(|header| header.starts_with("referrer-policy")),
        "{changed:?}"
    );
    assert!(
        load("headers: { strict_transport_security: null }")
            .unwrap()
            .config
            .gateway
            .hsts
            .is_none()
    );
}

#[test]
fn headers_that_can_not_be_are_refused() {
    for yaml in [
        "headers: { set: { 'X Y': a } }",
        "headers: { set: { '': a } }",
        "headers: { set: { Content-Length: '5' } }",
        "headers: { set: { Connection: null } }",
        "headers: { set: { X-A: \"a\\r\\nSet-Cookie: b\" } }",
        "headers: { set: { X-A: ümlaut } }",
        "headers: { set: { X-A: a, x-a: b } }",
        "headers: { set: { Strict-Transport-Security: max-age=1 } }",
        "headers: { strict_transport_security: includeSubDomains }",
        "headers: { strict_transport_security: 'max-age=-1' }",
    ] {
        problem(yaml);
    }
}

#[test]
fn log_levels_are_levels() {
    for level in [
        "info",
        "off",
        "info,wasm_wizard::gateway=debug",
        "wasm_wizard=trace",
    ] {
        assert!(
            load(&format!("logging: {{ level: '{level}' }}")).is_ok(),
            "{level}"
        );
    }
    for level in [
        "",
        "inof",
        "INFO",
        "info,debug",
        "a=b",
        "info,,",
        "wasm_wizard::gateway",
        "info,[=debug",
        "warn, sqlx=error",
    ] {
        let problem = problem(&format!("logging: {{ level: '{level}' }}"));
        assert!(problem.contains("logging.level"), "{problem}");
    }
    assert!(problem("logging: { level: inof }").contains("did you mean 'info'?"));
}

#[test]
fn metrics_have_a_path_of_their_own() {
    for path in [
        "metrics",
        "/",
        "/*",
        "/a/{b}",
        "/api/metrics",
        "/health",
        "/healthz",
        "",
    ] {
        problem(&format!("metrics: {{ path: '{path}' }}"));
    }
    let loaded = load("metrics: { path: /prometheus, public: true }").unwrap();
    assert_eq!(
        loaded.config.gateway.public_metrics_path.as_deref(),
        Some("/prometheus")
    );
    assert_eq!(loaded.warnings.len(), 1);
    assert_eq!(load("").unwrap().config.gateway.public_metrics_path, None);
    problem("metrics: { enabled: false, public: true }");
}

#[test]
fn database_urls_are_of_a_database() {
    for url in [
        "sqlite://data/x.db",
        "sqlite:///var/x.db?mode=rwc",
        "postgres://u:p@h:5432/d",
        "postgresql://h/d",
        "postgres:///d?host=/run/pg",
    ] {
        assert!(load_with("", &[("DATABASE_URL", url)]).is_ok(), "{url}");
    }
    for url in [
        "data.db",
        "sqlite:x.db",
        "sqlite://",
        "sqlite://:memory:",
        "mysql://h/d",
        "postgres://",
        "postgres://u:p@/d",
    ] {
        assert!(load_with("", &[("DATABASE_URL", url)]).is_err(), "{url}");
    }
}

#[test]
fn proxies_are_trusted_by_network() {
    let config = load("server: { trusted_proxies: [10.0.0.0/8, '::1', 192.0.2.7] }")
        .unwrap()
        .config;
    assert_eq!(config.gateway.trusted_proxies.len(), 3);
    assert_eq!(
        problems("server: { trusted_proxies: [ten, 10.0.0.0/40, 5] }").len(),
        3
    );
    let warnings = warnings_with("server: { trusted_proxies: [0.0.0.0/0] }", &[]).join("");
    assert!(
        warnings.contains("every client can claim any address"),
        "{warnings}"
    );
}

#[test]
fn the_api_takes_a_module_its_input_and_the_framing() {
    let config = load("sandbox: { wasm_size_max: 2MiB, input_size_max: 1MiB }")
        .unwrap()
        .config;
    assert_eq!(config.gateway.api_body_bytes_max, (3 << 20) + (256 << 10));
    assert_eq!(
        config.gateway.body_bytes_max,
        File::default().server.bounds.body_size_max.0
    );
}

#[test]
fn client_networks_are_read_for_each_listener_and_route() {
    let config = load(
        "server: { http: [{ address: '127.0.0.1:1', serve: routes, deny: [192.0.2.7] }],
          admin: { address: '127.0.0.1:2', allow: [10.0.0.0/8, '::1'] } }
routes: [{ name: a, match: { path: /a }, allow: [10.0.0.0/8], deny: [10.6.0.0/16], respond: {} }]",
    )
    .unwrap()
    .config;
    let lists = &config.gateway.listener_access;
    assert_eq!(lists.len(), 3, "the default HTTPS listener, and two");
    assert!(lists[0].permits(None));
    assert_eq!((lists[1].deny.len(), lists[2].allow.len()), (1, 2));
    let route = &config.routes[0].access;
    assert!(route.permits("10.1.0.0".parse().ok()) && !route.permits("10.6.0.0".parse().ok()));
    assert_eq!(
        problems("server: { https: [{ address: '0.0.0.0:1', certificates: [{ cert: a, key: b }], allow: [ten], deny: [10.0.0.1/8] }] }").len(),
        2
    );
    let both =
        "server: { admin: { address: '127.0.0.1:2', allow: [10.0.0.0/8], deny: [10.0.0.0/8] } }";
    assert!(warnings_with(both, &[]).join("").contains("denied too"));
}

#[test]
fn the_proxy_protocol_needs_someone_to_trust() {
    let listener = "http: [{ address: '127.0.0.1:1', serve: routes, proxy_protocol: true }]";
    let said = problem(&format!("server: {{ {listener} }}"));
    assert!(said.contains("server.trusted_proxies"), "{said}");
    assert!(
        load(&format!(
            "server: {{ {listener}, trusted_proxies: [10.0.0.1] }}"
        ))
        .is_ok()
    );
}

//! What an absent key means.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use super::*;
use crate::telemetry::logging::Format;
use crate::telemetry::traces::Parents;

impl Default for File {
    fn default() -> File {
        File {
            environment: Environment::Development,
            server: Server::default(),
            database: Database::default(),
            usage: Usage::default(),
            auth: Auth::default(),
            sandbox: Sandbox::default(),
            tiers: Tiers::default(),
            limits: RateLimits::default(),
            metrics: Metrics::default(),
            logging: Logging::default(),
            tracing: Tracing::default(),
            headers: Headers::default(),
            compression: Compression::default(),
            routes: Vec::new(),
        }
    }
}

fn address(ip: Ipv4Addr, port: u16) -> Option<Address> {
    Some(Address(SocketAddr::from((ip, port))))
}

impl Default for Server {
    fn default() -> Server {
        Server {
            https: vec![Https {
                address: address(Ipv4Addr::UNSPECIFIED, 8443),
                certificates: vec![Certificate {
                    cert: Some("certs/development.crt".to_string()),
                    key: Some("certs/development.key".to_string()),
                    ocsp: None,
                    development: true,
                }],
                client_certificates: None,
                proxy_protocol: false,
                allow: Vec::new(),
                deny: Vec::new(),
            }],
            http: vec![Http {
                address: address(Ipv4Addr::UNSPECIFIED, 8080),
                serve: Serve::Redirect,
                https_port: None,
                proxy_protocol: false,
                allow: Vec::new(),
                deny: Vec::new(),
            }],
            admin: Some(Admin {
                address: address(Ipv4Addr::LOCALHOST, 9091),
                allow: Vec::new(),
                deny: Vec::new(),
            }),
            threads: Threads::AUTO,
            shutdown_grace: Period::secs(30),
            upgrade_socket: Some("data/upgrade.sock".to_string()),
            reload_on_change: true,
            connections_max: 10_000,
            upstream_idle_max: 256,
            connections_per_address_max: 1_024,
            requests_max: 20_000,
            requests_per_address_max: 1_024,
            trusted_proxies: Vec::new(),
            client_address_header: ClientAddressHeader::default(),
            client_certificate_header: None,
            acme_webroot: None,
            timeouts: Timeouts::default(),
            bounds: Bounds::default(),
        }
    }
}

impl Default for Compression {
    fn default() -> Compression {
        let types = [
            "text/*",
            "application/json",
            "application/*+json",
            "application/javascript",
            "application/xml",
            "application/*+xml",
            "application/wasm",
            "image/svg+xml",
        ];
        Compression {
            enabled: false,
            size_min: Size::kib(1),
            types: types.map(str::to_string).to_vec(),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            tls_handshake: Period::secs(10),
            request_head: Period::secs(10),
            request_body: Period::secs(60),
            write: Period::secs(30),
            keepalive: Period::secs(60),
        }
    }
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            head_size_max: Size::kib(32),
            headers_max: 100,
            uri_size_max: Size::kib(8),
            h2_streams_max: 100,
            h2_resets_per_second_max: 100,
            requests_per_connection_max: 100_000,
            body_size_max: Size::mib(10),
            body_rate_min: Size::kib(16),
        }
    }
}

impl Default for Database {
    fn default() -> Database {
        Database {
            url: Secret::new("sqlite://data/wasm-wizard.db"),
            connections_max: 8,
            acquire_timeout: Period::secs(3),
        }
    }
}

impl Default for Usage {
    fn default() -> Usage {
        Usage {
            journal: Journal::default(),
            retention: Period::secs(30 * 86_400),
            daily_retention: Period::secs(400 * 86_400),
        }
    }
}

impl Default for Journal {
    fn default() -> Journal {
        Journal {
            directory: "data/usage".to_string(),
            size_max: Size::gib(1),
            when_full: WhenFull::Refuse,
            sync_interval: Some(Period::secs(1)),
        }
    }
}

impl Default for Auth {
    fn default() -> Auth {
        Auth {
            salt: None,
            key_cache_ttl: Period::secs(60),
            negative_ttl: Period::secs(10),
            outage_grace: Period::secs(600),
            key_cache_max: 100_000,
            failures_per_minute: 60,
            sign_up: false,
            tokens: Tokens::default(),
        }
    }
}

impl Default for Tokens {
    fn default() -> Tokens {
        Tokens {
            enabled: true,
            secret: None,
            issuer: "wasm-wizard".to_string(),
            audience: "wasm-wizard".to_string(),
            access_ttl: Period::secs(600),
            refresh_ttl: Period::secs(30 * 86_400),
            session_ttl: Period::secs(90 * 86_400),
        }
    }
}

impl Default for Sandbox {
    fn default() -> Sandbox {
        Sandbox {
            wasm_size_max: Size::mib(10),
            input_size_max: Size::mib(1),
            execution_timeout: Period::secs(5),
            memory_max: Size::mib(128),
            stdout_max: Size::mib(8),
            stderr_max: Size::kib(64),
            stack_size: Size::mib(1),
            table_elements_max: 100_000,
            guests_max: 128,
            guests_per_caller_max: 64,
            queue_max: 1_024,
            queue_timeout: Period::secs(2),
            warm_max: 128,
            cache_max: Size::mib(256),
            compile: Compile::default(),
            artifacts: Artifacts::default(),
        }
    }
}

impl Default for Compile {
    fn default() -> Compile {
        Compile {
            workers_max: 2,
            workers_spare: 2,
            queue_max: 64,
            queue_timeout: Period::secs(10),
            singlepass: true,
            timeout: Period::secs(30),
            memory_max: Size::gib(2),
        }
    }
}

impl Default for Artifacts {
    fn default() -> Artifacts {
        Artifacts {
            directory: Some("data/artifacts".to_string()),
            size_max: Size::gib(1),
            key: None,
        }
    }
}

impl Default for Tiers {
    fn default() -> Tiers {
        let of = Requests::of;
        let tier =
            |requests: [Requests; 2], cpu_ms: [Requests; 2], guests_max, memory_max, seconds| {
                let ([per_minute, per_day], [cpu_ms_per_minute, cpu_ms_per_day]) =
                    (requests, cpu_ms);
                Tier {
                    per_minute,
                    per_day,
                    cpu_ms_per_minute,
                    cpu_ms_per_day,
                    guests_max,
                    memory_max,
                    execution_timeout: Period::secs(seconds),
                    stdout_max: None,
                    stderr_max: None,
                    stack_size: None,
                    table_elements_max: None,
                }
            };
        let unlimited = Requests::UNLIMITED;
        Tiers {
            free: tier(
                [of(10), of(500)],
                [of(60_000), of(1_800_000)],
                of(8),
                Size::mib(128),
                5,
            ),
            basic: tier(
                [of(100), of(10_000)],
                [of(240_000), of(28_800_000)],
                of(32),
                Size::mib(256),
                10,
            ),
            pro: tier(
                [of(500), of(50_000)],
                [of(960_000), of(172_800_000)],
                of(128),
                Size::mib(512),
                30,
            ),
            enterprise: tier([unlimited; 2], [unlimited; 2], unlimited, Size::gib(1), 60),
        }
    }
}

impl Default for RateLimits {
    fn default() -> RateLimits {
        RateLimits {
            subjects_max: 100_000,
            redis: Redis::default(),
        }
    }
}

impl Default for Redis {
    fn default() -> Redis {
        Redis {
            url: None,
            ca: None,
            timeout: Period::ms(200),
            key_prefix: "wasm-wizard".to_string(),
            on_loss: OnLoss::Local,
            local_share_percent: 50,
        }
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            enabled: true,
            path: "/metrics".to_string(),
            public: false,
            backup_stamp: None,
        }
    }
}

impl Default for Logging {
    fn default() -> Logging {
        Logging {
            level: "info".to_string(),
            format: Format::Auto,
            access: true,
            access_sample: 1.0,
            access_slow: Period::secs(1),
        }
    }
}

impl Default for Tracing {
    fn default() -> Tracing {
        Tracing {
            endpoint: None,
            ca: None,
            headers: None,
            service_name: "wasm-wizard".to_string(),
            sample: 0.1,
            parents: Parents::Trusted,
            queue_max: Size::mib(16),
            timeout: Period::secs(5),
        }
    }
}

impl Default for Headers {
    fn default() -> Headers {
        let set = [
            (
                "Content-Security-Policy",
                "default-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
            ),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            (
                "Permissions-Policy",
                "camera=(), geolocation=(), microphone=()",
            ),
        ];
        Headers {
            strict_transport_security: Some("max-age=31536000".to_string()),
            set: BTreeMap::from(
                set.map(|(name, value)| (name.to_string(), Some(value.to_string()))),
            ),
        }
    }
}

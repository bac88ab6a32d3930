//! What may not go to production.

use super::super::secret::{redacted_url, salt_weakness};
use super::super::{Config, Environment, SaltSource};
use super::{load_with, problems_with, variables, warnings_with};

const SALT: (&str, &str) = ("API_SALT", "2f8a61c09d3be4475a1c6e0b97d2483f");
const JWT: (&str, &str) = ("JWT_SECRET", "94d1a7e06c3b5f2208b7ce914fa3d685");
const DATABASE: (&str, &str) = ("DATABASE_URL", "postgres://ww:hunter2@db/ww");
const CERT: (&str, &str) = ("TLS_CERT_PATH", "/tls/site.crt");
const KEY: (&str, &str) = ("TLS_KEY_PATH", "/tls/site.key");
const PRODUCTION: (&str, &str) = ("ENVIRONMENT", "production");

#[test]
fn production_says_what_to_set() {
    let problems = Config::load(None, &variables(&[PRODUCTION])).unwrap_err();
    let text = problems.to_string();
    assert_eq!(problems.0.len(), 4, "{text}");
    for (path, remedy) in [
        ("auth.salt: is required in production", "set API_SALT"),
        (
            "auth.tokens.secret: is required in production",
            "set JWT_SECRET",
        ),
        (
            "database.url: SQLite is not for production",
            "set DATABASE_URL",
        ),
        (
            "server.https[0].certificates[0]: a development certificate",
            "set TLS_CERT_PATH and TLS_KEY_PATH",
        ),
    ] {
        assert!(
            text.lines()
                .any(|line| line.contains(path) && line.contains(remedy)),
            "{path}\n{text}"
        );
    }
    let loaded = Config::load(
        None,
        &variables(&[PRODUCTION, SALT, JWT, DATABASE, CERT, KEY]),
    )
    .unwrap();
    assert_eq!(loaded.config.environment, Environment::Production);
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn a_development_certificate_is_known_by_its_mark_or_name() {
    for certificate in [
        "{ cert: a.crt, key: a.key, development: true }",
        "{ cert: certs/development.crt, key: certs/development.key }",
    ] {
        let yaml = format!(
            "environment: production\nserver: {{ https: [{{ address: 0.0.0.0:443, certificates: [{certificate}] }}] }}\n"
        );
        let problems = problems_with(&yaml, &[SALT, JWT, DATABASE]);
        assert!(
            problems[0].starts_with("2:") && problems[0].contains("development certificate"),
            "{problems:?}"
        );
    }
}

#[test]
fn staging_warns_where_production_refuses() {
    let problems = problems_with("environment: staging\n", &[]).join("\n");
    for missing in [
        "auth.salt: is required in staging",
        "auth.tokens.secret: is required in staging",
    ] {
        assert!(problems.contains(missing), "{problems}");
    }
    assert_eq!(problems.lines().count(), 2, "{problems}");
    let warnings = warnings_with("environment: staging\n", &[SALT, JWT]).join("\n");
    assert!(warnings.contains("SQLite is not for staging"), "{warnings}");
    assert!(
        warnings.contains("a development certificate is not for staging"),
        "{warnings}"
    );
}

#[test]
fn weak_salts_are_refused_in_production_and_known_in_development() {
    let weak = [
        "change-me-change-me-change-me-change-me",
        "CHANGE_ME_IN_PRODUCTION_PLEASE_XXXX",
        "your-32-character-salt-goes-here-ok",
        "default-salt-for-wasm-wizard-api-keys",
        "an-example-salt-that-is-long-enough!!",
        "supersecretsupersecretsupersecret99",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "abababababababababababababababab",
        "1234567890123456789012345678901234",
        "0123456789abcdef0123456789abcdef",
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`",
    ];
    for salt in weak {
        assert!(salt_weakness(salt).is_some(), "{salt}");
        let text = problems_with(
            "",
            &[PRODUCTION, JWT, DATABASE, CERT, KEY, ("API_SALT", salt)],
        )
        .join("\n");
        assert!(
            text.starts_with("API_SALT: ") && text.contains("openssl rand -hex 32"),
            "{text}"
        );
        assert!(!text.contains(salt), "{text}");
        let warnings = warnings_with("", &[("API_SALT", salt)]);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
    }
    for strong in [
        SALT.1,
        "f0e1d2c3b4a5968778695a4b3c2d1e0f",
        "Zk3/pQx9+Lr0vTnWc8YbHs5uEa2MdJg7=",
    ] {
        assert_eq!(salt_weakness(strong), None, "{strong}");
    }
    assert_eq!(salt_weakness(""), Some("only repeats a few characters"));
}

#[test]
fn a_short_salt_is_refused_everywhere() {
    for environment in ["development", "staging", "production"] {
        let pairs = [
            ("ENVIRONMENT", environment),
            DATABASE,
            JWT,
            CERT,
            KEY,
            ("API_SALT", "7f3a9c"),
        ];
        let problems = problems_with("", &pairs);
        assert!(
            problems[0].starts_with("API_SALT: must have at least 32 characters, not 6"),
            "{problems:?}"
        );
    }
}

#[test]
fn secrets_are_not_printed() {
    let yaml = r#"
routes:
  - name: a
    match: { path: /a, headers: { X-Api-Key: hunter2 } }
    execute: { file: a.wasm, env: { API_TOKEN: hunter2, BACKEND: "http://u:hunter2@h/", REGION: eu } }
  - name: b
    match: { path: /b }
    proxy: { upstreams: ["http://127.0.0.1:1"] }
    headers: { request: { set: { Authorization: Bearer hunter2 } } }
"#;
    let loaded = load_with(yaml, &[SALT, DATABASE]).unwrap();
    let printed = loaded.to_yaml().unwrap();
    assert!(
        !printed.contains("hunter2") && !printed.contains(SALT.1),
        "{printed}"
    );
    assert!(
        printed.contains("postgres://ww:(hidden)@db/ww") && printed.contains("REGION: eu"),
        "{printed}"
    );
    let shown = format!("{loaded:?} {:?}", loaded.config.auth);
    assert!(
        !shown.contains("hunter2") && !shown.contains(SALT.1),
        "{shown}"
    );
    assert!(matches!(loaded.config.auth.salt, SaltSource::Given(_)));
}

#[test]
fn the_secret_of_access_tokens_is_held_to_the_same() {
    let with = |secret| {
        [
            PRODUCTION,
            SALT,
            DATABASE,
            CERT,
            KEY,
            ("JWT_SECRET", secret),
        ]
    };
    let several = format!("{}\n\n  {}x\n", JWT.1, JWT.1);
    let loaded = load_with("", &with(&several)).unwrap();
    let tokens = loaded.config.auth.tokens.as_ref().unwrap();
    assert_eq!(tokens.secrets.read_or_create().unwrap().len(), 2);
    let shown = format!("{:?} {}", loaded.config.auth, loaded.to_yaml().unwrap());
    assert!(!shown.contains(JWT.1), "{shown}");
    let weak_line = format!("{}\nchange-me-change-me-change-me-change-me", JWT.1);
    let many = format!("{}\n", JWT.1).repeat(9);
    for (secret, problem) in [
        ("short", "at least 32 characters"),
        (weak_line.as_str(), "is a well-known default"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "only repeats"),
        (SALT.1, "is the salt of API keys too"),
        (many.as_str(), "must have 1 to 8 secrets"),
        ("\n \n", "must have 1 to 8 secrets"),
    ] {
        let text = problems_with("", &with(secret)).join("\n");
        assert!(
            text.starts_with("JWT_SECRET: ") && text.contains(problem),
            "{secret:?}: {text}"
        );
    }
    // Without tokens there is no need of one.
    let off = "environment: production\nauth: { tokens: { enabled: false } }\n";
    let loaded = load_with(off, &[SALT, DATABASE, CERT, KEY]).unwrap();
    assert!(loaded.config.auth.tokens.is_none());
}

#[test]
fn lives_of_tokens_are_in_order() {
    for (yaml, problem) in [
        ("access_ttl: 2h", "access_ttl: must be between 1s and 1h"),
        ("access_ttl: 0s", "access_ttl: must be"),
        (
            "refresh_ttl: 5m",
            "refresh_ttl: must be at least access_ttl, which is 10m",
        ),
        (
            "session_ttl: 1d",
            "session_ttl: must be at least refresh_ttl, which is 30d",
        ),
        ("issuer: ''", "issuer: must have 1 to 255"),
        ("audience: 'a b'", "audience: must have 1 to 255"),
        ("issuer: 'ü'", "issuer: must have 1 to 255"),
    ] {
        let text = problems_with(&format!("auth: {{ tokens: {{ {yaml} }} }}"), &[]).join("\n");
        assert!(text.contains(problem), "{yaml}: {text}");
    }
}

#[test]
fn urls_are_shown_without_passwords() {
    for (url, shown) in [
        ("postgres://u:p@h/d", "postgres://u:(hidden)@h/d"),
        ("postgres://u:p@x@h/d", "postgres://u:(hidden)@h/d"),
        ("postgres://u:p/x@h/d", "postgres://u:(hidden)@h/d"),
        ("postgres://u@h/d", "postgres://u@h/d"),
        (
            "postgres://h/d?user=u&password=p&sslmode=require",
            "postgres://h/d?user=u&password=(hidden)&sslmode=require",
        ),
        ("u:p@h", "(hidden)"),
        ("sqlite://data/x.db", "sqlite://data/x.db"),
    ] {
        assert_eq!(redacted_url(url), shown);
    }
}

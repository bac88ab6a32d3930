//! The configuration files that are shipped: the default, the examples, the schema.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use wasm_wizard::config::{Config, Environment, Origin, json_schema};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect()
}

fn example(name: &str) -> PathBuf {
    root().join("conf/examples").join(name)
}

/// An example, the number of its routes, and the variables it asks for.
type Example = (&'static str, usize, &'static [(&'static str, &'static str)]);
const EXAMPLES: [Example; 6] = [
    ("proxy.yaml", 3, &[]),
    ("functions.yaml", 4, &[]),
    ("static-redirects.yaml", 5, &[]),
    (
        "production.yaml",
        1,
        &[
            (
                "DATABASE_URL",
                "postgres://wasm-wizard@db.example/wasm-wizard",
            ),
            ("API_SALT", "5f0c2e9b7a1d4386e8f5b0c7d2a94163"),
            ("JWT_SECRET", "94d1a7e06c3b5f2208b7ce914fa3d685"),
        ],
    ),
    ("upstreams.yaml", 5, &[]),
    ("browser.yaml", 3, &[]),
];

#[test]
fn every_example_is_listed() {
    let mut listed: Vec<_> = EXAMPLES
        .iter()
        .map(|(name, _, _)| name.to_string())
        .collect();
    listed.push("broken.yaml".to_string());
    listed.sort();
    let mut found: Vec<_> = fs::read_dir(root().join("conf/examples"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, listed);
}

#[test]
fn every_example_loads_without_a_warning() {
    for (name, routes, pairs) in EXAMPLES {
        let loaded = Config::load(Some(&example(name)), &variables(pairs))
            .unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(loaded.config.routes.len(), routes, "{name}");
        assert!(loaded.warnings.is_empty(), "{name}: {:?}", loaded.warnings);
    }
}

#[test]
fn the_production_example_is_production_and_asks_for_its_secrets() {
    let path = example("production.yaml");
    let problems = Config::load(Some(&path), &variables(&[]))
        .unwrap_err()
        .to_string();
    assert_eq!(problems.lines().count(), 3, "{problems}");
    assert!(
        ["set API_SALT", "set JWT_SECRET", "set DATABASE_URL"]
            .iter()
            .all(|remedy| problems.contains(remedy)),
        "{problems}"
    );
    let (_, _, pairs) = EXAMPLES[3];
    let config = Config::load(Some(&path), &variables(pairs)).unwrap().config;
    assert_eq!(config.environment, Environment::Production);
}

/// Every mistake of `broken.yaml`, at its line.
#[test]
fn the_broken_example_shows_every_mistake() {
    let path = example("broken.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let line_of = |needle: &str| text.lines().position(|line| line.contains(needle)).unwrap() + 1;
    let problems = Config::load(Some(&path), &variables(&[])).unwrap_err();
    let expected = [
        ("productoin", "environment", "did you mean 'production'?"),
        (
            "0.0.0.0 #",
            "server.https[0].address",
            "must be an IP address and a port",
        ),
        (
            "certs/site.crt",
            "server.https[0].certificates[0].key",
            "is required",
        ),
        (
            "rediret",
            "server.http[0].serve",
            "did you mean 'redirect'?",
        ),
        (
            "threads",
            "server.threads",
            "must be between 1 and 1024, not 5000",
        ),
        (
            "10.0.0.0/40",
            "server.trusted_proxies[0]",
            "use CIDR notation",
        ),
        (
            "request_haed",
            "server.timeouts",
            "did you mean 'request_head'?",
        ),
        ("30 s econds", "server.timeouts.write", "unknown unit"),
        (
            "connections_max: many",
            "database.connections_max",
            "must be a whole number",
        ),
        ("128 #", "sandbox.memory_max", "a bare number is bytes"),
        (
            "memory_max: 256MiB",
            "",
            "the key 'memory_max' is given twice",
        ),
        ("inof", "logging.level", "did you mean 'info'?"),
        ("X Frame", "headers.set.X Frame", "is not a header name"),
        ("fn/hello", "routes[0].match.path", "use /exact"),
        ("GTE", "routes[0].match.methods[0]", "did you mean 'GET'?"),
        (
            "fil:",
            "routes[0].execute",
            "unknown key 'fil' — did you mean 'file'?",
        ),
        (
            "name that is taken",
            "routes[1].name",
            "is the name of routes[0] too",
        ),
        (
            "/api/hello",
            "routes[1].match.path",
            "belongs to the gateway",
        ),
        (
            "root",
            "routes[1].auth.role",
            "must be 'user', 'support' or 'admin'",
        ),
        (
            "ftp://",
            "routes[1].proxy.upstreams[0]",
            "use http://host:port",
        ),
        (
            "{id}",
            "routes[2].redirect.to",
            "must name its host in full",
        ),
        (
            "status: 200",
            "routes[2].redirect.status",
            "is not the status of a redirect",
        ),
        (
            "second target",
            "routes[2].respond",
            "already has the target 'redirect'",
        ),
        (
            "status: 99",
            "routes[2].respond.status",
            "must be between 200 and 599",
        ),
        ("name: neither", "routes[3]", "the route has no target"),
        (
            "per_minute: 0",
            "routes[3].limits.per_minute",
            "must be between 1 and",
        ),
        (
            "2GiB",
            "routes[3].limits.body_size_max",
            "must be between 0 and 1GiB",
        ),
    ];
    for (needle, at, message) in expected {
        let line = line_of(needle);
        let found = problems.0.iter().any(|problem| {
            let is_there =
                matches!(&problem.origin, Origin::File { at: Some(at), .. } if at.line == line && at.column > 0);
            is_there && problem.path == at && problem.to_string().contains(message)
        });
        assert!(found, "line {line}: {at}: {message}\n{problems}");
    }
    assert_eq!(problems.0.len(), expected.len(), "{problems}");
    // And in the order of the file.
    let places: Vec<_> = problems
        .0
        .iter()
        .map(|problem| problem.origin.clone())
        .collect();
    assert!(places.is_sorted(), "{problems}");
}

/// To regenerate: `WW_UPDATE_SCHEMA=1 cargo test --test all schema`, or
/// `wasm-wizard check --schema > conf/wasm-wizard.schema.json`.
#[test]
fn the_schema_is_that_of_the_code() {
    let path = root().join("conf/wasm-wizard.schema.json");
    if std::env::var_os("WW_UPDATE_SCHEMA").is_some() {
        fs::write(&path, json_schema()).unwrap();
    }
    let shipped = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        shipped == json_schema(),
        "conf/wasm-wizard.schema.json is old; run: WW_UPDATE_SCHEMA=1 cargo test --test all schema"
    );
}

#[test]
fn editors_find_the_schema() {
    let mut files: Vec<_> = EXAMPLES.iter().map(|(name, _, _)| example(name)).collect();
    files.push(root().join("conf/wasm-wizard.yaml"));
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let first = text.lines().next().unwrap_or_default();
        let schema = first
            .strip_prefix("# yaml-language-server: $schema=")
            .unwrap_or_else(|| panic!("{}: {first}", file.display()));
        assert!(
            file.parent()
                .unwrap_or(Path::new("/"))
                .join(schema)
                .is_file(),
            "{}",
            file.display()
        );
    }
}

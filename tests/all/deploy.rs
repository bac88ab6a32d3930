//! The Compose file and the manifests of k8s/: accepted by the programs that read them, and in line with the gateway
//! that they start.

mod compose;
mod kubernetes;
mod parts;
mod roles;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use wasm_wizard::config::Config;

use crate::support::root;

/// A list of texts, or nothing where there is none.
fn texts(value: &Value) -> Vec<&str> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).collect()
}

/// The configuration of the image, with the secrets that a deployment gives it.
fn image() -> Config {
    let secrets = [
        (
            "DATABASE_URL",
            "postgres://wasm_wizard:x@postgres/wasm_wizard",
        ),
        ("API_SALT", "5f0c2e9b7a1d4386e8f5b0c7d2a94163"),
        ("JWT_SECRET", "94d1a7e06c3b5f2208b7ce914fa3d685"),
    ];
    let variables: BTreeMap<String, String> = secrets
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let file = root().join("conf/container/wasm-wizard.yaml");
    let loaded =
        Config::load(Some(&file), &variables).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    loaded.config
}

/// Ports that the gateway of the image listens on: HTTPS, HTTP, admin.
fn ports() -> BTreeSet<u64> {
    use wasm_wizard::gateway::Listener;
    let config = image();
    let listeners = config
        .server
        .listeners
        .iter()
        .map(|listener| match listener {
            Listener::Https { address, .. }
            | Listener::HttpRedirect { address, .. }
            | Listener::Http { address, .. } => *address,
        });
    listeners
        .chain(config.server.admin)
        .map(|address| u64::from(address.port()))
        .collect()
}

fn shutdown_grace() -> Duration {
    image().server.shutdown_grace
}

/// The gateway would start with these arguments.
fn starts_with(args: &[&str]) {
    let args = std::iter::once("wasm-wizard").chain(args.iter().copied());
    if let Err(error) = wasm_wizard::cli::command().try_get_matches_from(args) {
        panic!("{error}");
    }
}

/// The gateway reads these variables, and the secrets among them as files.
fn reads<'a>(names: impl Iterator<Item = &'a str>) {
    for name in names {
        let plain = name.strip_suffix("_FILE");
        let known = wasm_wizard::config::VARIABLES
            .iter()
            .any(|variable| match plain {
                Some(plain) => variable.name == plain && variable.secret,
                None => variable.name == name && !variable.secret,
            });
        assert!(
            known,
            "the gateway reads no {name}, or it is a secret and must come as a file"
        );
    }
}

#[test]
fn the_image_listens_where_the_dockerfile_says() {
    let dockerfile = std::fs::read_to_string(root().join("Dockerfile")).unwrap();
    let exposed = dockerfile
        .lines()
        .find_map(|line| line.strip_prefix("EXPOSE "))
        .unwrap();
    let exposed: BTreeSet<u64> = exposed
        .split(' ')
        .map(|port| port.parse().unwrap())
        .collect();
    assert_eq!(exposed, ports());
    assert!(
        ports().iter().all(|port| *port > 1024),
        "no capability is needed to bind them"
    );
    for instruction in ["CMD", "  CMD"] {
        let line = dockerfile
            .lines()
            .rfind(|line| line.starts_with(instruction))
            .unwrap();
        let words: Vec<String> = serde_json::from_str(&line[line.find('[').unwrap()..]).unwrap();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        starts_with(
            words
                .strip_prefix(&["/usr/bin/wasm-wizard"])
                .unwrap_or(&words),
        );
    }
}

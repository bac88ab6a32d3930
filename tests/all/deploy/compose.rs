//! `docker-compose.production.yml`, as Docker Compose itself reads it.

use serde_json::Value;

use super::{ports, reads, shutdown_grace, starts_with, texts};
use crate::support::redis::Redis;
use crate::support::{free_port, root, succeed, tool};

const FILE: &str = "docker-compose.production.yml";

/// Services of our image.
const OURS: [&str; 2] = ["gateway", "migrate"];

/// What Compose makes of the file. Every variable has a default, so none need be set.
fn resolved(variables: &[(&str, &str)]) -> Value {
    let mut command = tool("docker-compose");
    command.env_clear().envs(variables.iter().copied());
    let json = succeed(command.args(["-f", FILE, "config", "--format", "json"]));
    serde_json::from_str(&json).unwrap()
}

pub(super) fn services() -> Vec<(String, Value)> {
    let services = resolved(&[])["services"].take();
    let services = services.as_object().unwrap().clone();
    assert!(services.len() > 5);
    services.into_iter().collect()
}

#[test]
fn compose_and_its_schema_accept_the_file() {
    let mut command = tool("docker-compose");
    succeed(command.env_clear().args(["-f", FILE, "config", "-q"]));
    succeed(tool("check-jsonschema").args(["--builtin-schema", "vendor.compose-spec", FILE]));
}

#[test]
fn no_service_can_do_more_than_it_must() {
    for (name, service) in services() {
        let at = |what: &str| format!("{name}: {what}");
        assert_eq!(texts(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(
            service["read_only"],
            true,
            "{}",
            at("its files can be changed")
        );
        let options = texts(&service["security_opt"]);
        assert!(options.contains(&"no-new-privileges:true"), "{name}");
        assert!(
            service["privileged"].is_null() && service["network_mode"] != "host",
            "{name}"
        );
        for limit in ["mem_limit", "pids_limit"] {
            assert!(!service[limit].is_null(), "{}", at(limit));
        }
        let logging = &service["logging"]["options"];
        assert!(
            logging["max-size"].is_string() && logging["max-file"].is_string(),
            "{}",
            at("its log grows")
        );
        assert!(
            !service["restart"].is_null(),
            "{}",
            at("has no restart policy")
        );
        assert!(
            service["container_name"].is_null(),
            "{}",
            at("can't be scaled")
        );
        // The one that gives volumes away has no network and ends at once; the one that backs up reads what
        // belongs to others, and has no way out.
        let is_root = service["user"]
            .as_str()
            .is_none_or(|user| user.starts_with('0'));
        let may_be = ["prepare", "backup"].contains(&name.as_str());
        assert_eq!(is_root, may_be, "{}", at("root"));
        assert_eq!(
            !service["cap_add"].is_null(),
            may_be,
            "{}",
            at("capabilities")
        );
    }
}

#[test]
fn only_the_gateway_is_reached_from_outside() {
    let all = resolved(&[]);
    for network in ["data", "monitoring"] {
        assert_eq!(all["networks"][network]["internal"], true, "{network}");
    }
    for (name, service) in services() {
        let networks: Vec<&String> = service["networks"]
            .as_object()
            .into_iter()
            .flat_map(|n| n.keys())
            .collect();
        if ["postgres", "redis"].contains(&name.as_str()) {
            assert_eq!(networks, ["data"], "{name}");
        }
        for port in service["ports"].as_array().into_iter().flatten() {
            let is_local = port["host_ip"] == "127.0.0.1";
            assert!(name == "gateway" || is_local, "{name} publishes {port}");
        }
    }
    let gateway = &all["services"]["gateway"];
    let published: Vec<_> = gateway["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| {
            let target = port["target"].as_u64().unwrap();
            assert!(
                ports().contains(&target),
                "the gateway does not listen on {target}"
            );
            (port["published"].as_str().unwrap().to_owned(), target)
        })
        .collect();
    assert_eq!(
        published,
        [("80".to_owned(), 8080), ("443".to_owned(), 8443)]
    );
}

/// A range of ports has one for each gateway.
#[test]
fn several_gateways_have_a_port_each() {
    let all = resolved(&[("HTTPS_PORT", "443-445"), ("HTTP_PORT", "80-82")]);
    let gateway = &all["services"]["gateway"];
    let published: Vec<_> = gateway["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["published"].as_str().unwrap())
        .collect();
    assert_eq!(published, ["80-82", "443-445"]);
    // The configuration is in the image or mounted read-only: several can share it.
    assert!(gateway["hostname"].is_null());
}

#[test]
fn our_program_gets_what_it_reads() {
    for (name, service) in services() {
        if !OURS.contains(&name.as_str()) {
            continue;
        }
        starts_with(&texts(&service["command"]));
        let environment = service["environment"].as_object().unwrap();
        reads(environment.keys().map(String::as_str));
        let mounted: Vec<String> = secrets(&service);
        for (variable, value) in environment {
            let Some(file) = value.as_str().and_then(|v| v.strip_prefix("/run/secrets/")) else {
                continue;
            };
            assert!(
                mounted.iter().any(|secret| secret == file),
                "{name}: {variable} names no secret"
            );
        }
    }
}

/// Only what migrates can change the schema and the audit.
#[test]
fn the_owner_of_the_tables_is_used_by_what_migrates_alone() {
    for (name, service) in services() {
        let has_it = secrets(&service).contains(&"database_owner_url".to_owned());
        assert_eq!(has_it, name == "migrate", "{name}");
    }
    let services = &resolved(&[])["services"];
    let url = |name: &str| services[name]["environment"]["DATABASE_URL_FILE"].clone();
    assert_eq!(url("migrate"), "/run/secrets/database_owner_url");
    assert_eq!(url("gateway"), "/run/secrets/database_url");
    let command = texts(&services["migrate"]["command"]);
    assert!(command.ends_with(&["--service-role", super::roles::SERVICE]));
}

fn secrets(service: &Value) -> Vec<String> {
    let secrets = service["secrets"].as_array().into_iter().flatten();
    secrets
        .map(|secret| secret["source"].as_str().unwrap().to_owned())
        .collect()
}

/// A name in a command, a variable or a health check is a secret that the service has; and all that are declared
/// are used.
#[test]
fn secrets_are_files_and_each_is_used() {
    let all = resolved(&[]);
    let mut used = Vec::new();
    for (name, service) in services() {
        let mounted = secrets(&service);
        let text = service.to_string();
        for (at, mark) in text.match_indices("/run/secrets/") {
            let rest = &text[at + mark.len()..];
            let file: String = rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            assert!(
                mounted.contains(&file),
                "{name} reads {file}, which it is not given"
            );
        }
        used.extend(mounted);
        for (variable, value) in service["environment"].as_object().into_iter().flatten() {
            let is_file = variable.ends_with("_FILE") || variable.ends_with("__FILE");
            let is_secret = ["PASSWORD", "SECRET", "SALT", "TOKEN"]
                .iter()
                .any(|word| variable.contains(word));
            assert!(!is_secret || is_file, "{name}: {variable} is {value}");
        }
    }
    for (name, secret) in all["secrets"].as_object().unwrap() {
        assert!(secret["file"].is_string(), "{name} is no file");
        assert!(used.contains(name), "{name} is used by none");
    }
}

/// Files that are mounted are in the tree; but for those that an operator makes.
#[test]
fn what_is_mounted_is_there() {
    for (name, service) in services() {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            if volume["type"] != "bind" {
                continue;
            }
            let source = volume["source"].as_str().unwrap();
            let source = std::path::Path::new(source)
                .strip_prefix(root())
                .unwrap_or_else(|_| panic!("{name}: {source}"));
            let is_operators = source.starts_with("backups");
            assert!(
                is_operators || root().join(source).exists(),
                "{name} mounts {}",
                source.display()
            );
            assert!(
                is_operators || volume["read_only"] == true,
                "{name} may write to {}",
                source.display()
            );
        }
    }
}

#[test]
fn they_start_in_the_order_of_their_health() {
    let all = resolved(&[]);
    let services = &all["services"];
    let waits = |name: &str, on: &str| services[name]["depends_on"][on]["condition"].clone();
    assert_eq!(
        waits("gateway", "migrate"),
        "service_completed_successfully"
    );
    assert_eq!(waits("gateway", "postgres"), "service_healthy");
    assert_eq!(waits("gateway", "redis"), "service_healthy");
    assert_eq!(waits("migrate", "postgres"), "service_healthy");
    for (name, service) in services.as_object().unwrap() {
        for (other, condition) in service["depends_on"].as_object().into_iter().flatten() {
            let test = &services[other]["healthcheck"]["test"];
            if condition["condition"] == "service_healthy" {
                assert!(
                    test.is_array(),
                    "{name} waits for the health of {other}, which has no check"
                );
            }
        }
    }
    let health = texts(&services["gateway"]["healthcheck"]["test"]);
    starts_with(
        health
            .strip_prefix(&["CMD", "/usr/bin/wasm-wizard"])
            .unwrap(),
    );
    let grace = services["gateway"]["stop_grace_period"].as_str().unwrap();
    let grace: u64 = grace.strip_suffix('s').unwrap().parse().unwrap();
    assert!(
        grace > shutdown_grace().as_secs(),
        "it would be killed while it drains"
    );
}

/// Services that configurations of monitoring name, with a port that is open inside.
#[test]
fn what_is_watched_is_there() {
    let all = resolved(&[]);
    let services = &all["services"];
    let answers = |host: &str, port: &str| {
        let exposed = texts(&services[host]["expose"]).contains(&port);
        exposed || (host == "gateway" && ports().iter().any(|open| open.to_string() == port))
    };
    let read = |path: &str| -> Value {
        let text = std::fs::read_to_string(root().join(path)).unwrap();
        serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let prometheus = read("monitoring/prometheus/prometheus.yml");
    let mut targets = Vec::new();
    for job in prometheus["scrape_configs"].as_array().unwrap() {
        for found in job["static_configs"].as_array().into_iter().flatten() {
            targets.extend(texts(&found["targets"]).into_iter().map(str::to_owned));
        }
        for found in job["dns_sd_configs"].as_array().into_iter().flatten() {
            let names = texts(&found["names"]);
            targets.extend(names.iter().map(|name| format!("{name}:{}", found["port"])));
        }
    }
    for found in prometheus["alerting"]["alertmanagers"].as_array().unwrap() {
        for found in found["static_configs"].as_array().unwrap() {
            targets.extend(texts(&found["targets"]).into_iter().map(str::to_owned));
        }
    }
    let sources = read("monitoring/grafana/provisioning/datasources/prometheus.yml");
    for source in sources["datasources"].as_array().unwrap() {
        let url = source["url"].as_str().unwrap();
        targets.push(url.strip_prefix("http://").unwrap().to_owned());
    }
    assert!(targets.len() >= 6, "{targets:?}");
    for target in targets {
        let (host, port) = target.split_once(':').unwrap();
        assert!(
            host == "localhost" || answers(host, port),
            "nothing answers at {target}"
        );
    }
    let alertmanager =
        std::fs::read_to_string(root().join("monitoring/alertmanager/alertmanager.yml"));
    for (_, rest) in alertmanager
        .unwrap()
        .lines()
        .filter_map(|line| line.split_once("/run/secrets/"))
    {
        assert!(
            secrets(&services["alertmanager"]).contains(&rest.trim().to_owned()),
            "{rest}"
        );
    }
}

/// The file itself, in a real Redis: what counts limits is kept, and never evicted.
#[test]
fn redis_keeps_what_it_counts() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let path = dir.path().display().to_string();
    let file = std::fs::read_to_string(root().join("conf/redis/redis.conf")).unwrap();
    let file = file
        .replace("port 6379", &format!("port {port}"))
        .replace("bind * -::*", "bind 127.0.0.1")
        .replace("/run/redis", &path)
        .replace("dir /data", &format!("dir {path}"));
    std::fs::write(dir.path().join("redis.conf"), file).unwrap();
    std::fs::write(dir.path().join("auth.conf"), "requirepass secret\n").unwrap();
    let redis = Redis::with_configuration(dir, port, "secret");
    for (key, value) in [
        ("maxmemory-policy", "noeviction"),
        ("maxmemory", "268435456"),
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
        ("save", "900 1 300 100 60 10000"),
    ] {
        assert_eq!(redis.setting(key), value, "{key}");
    }
}

/// The alert on missing backups is none where nobody looks for them.
#[test]
fn gateways_watch_the_backups() {
    let all = resolved(&[]);
    let gateway = &all["services"]["gateway"];
    let stamp = gateway["environment"]["BACKUP_STAMP"].as_str().unwrap();
    let (directory, file) = stamp.rsplit_once('/').unwrap();
    let script = std::fs::read_to_string(root().join("scripts/backup.sh")).unwrap();
    assert!(script.contains(&format!("\"$to/{file}\"")));
    let command = all["services"]["backup"]["command"].to_string();
    assert!(command.contains(&format!("backup.sh --to {directory} ")));
    let source = |service: &str| {
        let volumes = all["services"][service]["volumes"].as_array().unwrap();
        let at = volumes.iter().find(|volume| volume["target"] == directory);
        at.unwrap()["source"].clone()
    };
    assert_eq!(source("gateway"), source("backup"));
}

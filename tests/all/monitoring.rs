//! What watches the gateway goes by what the gateway really says: metrics, their documentation, rules,
//! alerts, dashboards, and the runbook.

mod page;
mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::gateway::{Gateway, gateway};
use crate::support::{eventually, free_port, root};
use page::{Family, Page};
use promql::Selector;

/// What is not the gateway's own: of Prometheus itself, of the exporters of PostgreSQL (postgres_exporter) and
/// Redis (redis_exporter), and of kube-state-metrics.
const OTHERS: [&str; 19] = [
    "up",
    "kube_cronjob_created",
    "kube_cronjob_status_last_successful_time",
    "pg_up",
    "pg_database_size_bytes",
    "pg_settings_max_connections",
    "pg_stat_archiver_archived_count",
    "pg_stat_archiver_failed_count",
    "pg_stat_archiver_last_archive_age",
    "pg_stat_database_numbackends",
    "pg_stat_database_xact_commit",
    "pg_stat_database_xact_rollback",
    "redis_up",
    "redis_commands_processed_total",
    "redis_connected_clients",
    "redis_db_keys",
    "redis_evicted_keys_total",
    "redis_memory_max_bytes",
    "redis_memory_used_bytes",
];
/// Labels that Prometheus adds.
const ADDED: [&str; 2] = ["job", "instance"];

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let listed = fs::read_dir(root().join(directory)).unwrap();
    let mut found: Vec<PathBuf> = listed
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "{directory} has no .{extension} file");
    found
}

/// A gateway to which happened what makes rows: an answered request, a failed one, an upstream, a guest.
async fn busy_gateway() -> Gateway {
    let dead = format!("http://127.0.0.1:{}", free_port());
    let upstream = json!({ "name": "dead", "match": { "path": "/dead" }, "auth": "none",
        "proxy": { "upstreams": [dead] } });
    let gateway = gateway().route(upstream).start();
    let client = gateway.client();
    for (path, status) in [("/fn/hello", 200), ("/dead", 503), ("/nothing", 404)] {
        let answer = client.get(gateway.url(path)).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
    }
    gateway
}

async fn page_of(gateway: &Gateway) -> Page {
    // The last that appear: counted in the background after the start.
    eventually("users and keys are counted", async || {
        let tier = r#"wasmwiz_api_keys{tier="enterprise"}"#;
        let role = r#"wasmwiz_users{role="admin"}"#;
        let keys = gateway.metric(tier).await;
        (keys.is_some() && gateway.metric(role).await.is_some()).then_some(())
    })
    .await;
    let page = gateway.client().get(gateway.admin_url("/metrics")).send();
    Page::parse(&page.await.unwrap().text().await.unwrap())
}

/// Rules by the file: each with its name, and whether it is an alert.
fn rules() -> Vec<(PathBuf, serde_yaml::Value)> {
    let mut rules = Vec::new();
    for path in files("monitoring/prometheus/rules", "yml") {
        let text = fs::read_to_string(&path).unwrap();
        let parsed: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
        for group in parsed["groups"].as_sequence().unwrap() {
            for rule in group["rules"].as_sequence().unwrap() {
                rules.push((path.clone(), rule.clone()));
            }
        }
    }
    rules
}

fn alerts() -> Vec<String> {
    let named = |(_, rule): (PathBuf, serde_yaml::Value)| rule["alert"].as_str().map(str::to_owned);
    rules().into_iter().filter_map(named).collect()
}

fn recorded() -> BTreeSet<String> {
    let named =
        |(_, rule): (PathBuf, serde_yaml::Value)| rule["record"].as_str().map(str::to_owned);
    rules().into_iter().filter_map(named).collect()
}

/// Every expression, with where it stands: in rules, and in queries of dashboards.
fn expressions() -> Vec<(String, String)> {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for (path, rule) in rules() {
        found.push((name(&path), rule["expr"].as_str().unwrap().to_owned()));
    }
    for path in files("monitoring/grafana/dashboards", "json") {
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let mut stack = vec![&dashboard];
        while let Some(value) = stack.pop() {
            match value {
                Value::Object(fields) => {
                    for (key, value) in fields {
                        match (key.as_str(), value.as_str()) {
                            ("expr", Some(text)) => found.push((name(&path), text.to_owned())),
                            // `label_values(METRIC, LABEL)` of a variable.
                            ("definition", Some(text)) => {
                                let inner = text.strip_prefix("label_values(").unwrap();
                                let (metric, _) = inner.rsplit_once(", ").unwrap();
                                found.push((name(&path), metric.to_owned()));
                            }
                            _ => stack.push(value),
                        }
                    }
                }
                Value::Array(values) => stack.extend(values),
                _ => {}
            }
        }
    }
    found
}

/// What of a selector the page does not have.
fn missing(selector: &Selector, page: &Page, recorded: &BTreeSet<String>) -> Option<String> {
    let name = selector.metric.as_str();
    if OTHERS.contains(&name) || recorded.contains(name) {
        return None;
    }
    let Some(family) = page.family(name) else {
        return Some(format!("there is no metric {name}"));
    };
    selector.matchers.iter().find_map(|matcher| {
        if ADDED.contains(&matcher.label.as_str()) {
            return None;
        }
        let Some(values) = family.labels.get(&matcher.label) else {
            return Some(format!("{name} has no label {}", matcher.label));
        };
        if Family::is_open(&matcher.label) {
            return None;
        }
        let unknown = matcher.values.iter().find(|v| !values.contains(*v))?;
        Some(format!(
            "{name} has no row with {}={unknown:?}, only {values:?}",
            matcher.label
        ))
    })
}

#[tokio::test]
async fn rules_and_dashboards_name_what_the_gateway_really_shows() {
    let page = page_of(&busy_gateway().await).await;
    let recorded = recorded();
    let mut wrong = Vec::new();
    for (place, text) in expressions() {
        let expression = promql::parse(&text);
        assert!(!expression.selectors.is_empty(), "{place}: {text}");
        for selector in &expression.selectors {
            if let Some(what) = missing(selector, &page, &recorded) {
                wrong.push(format!("{place}: {what}: {text}"));
            }
        }
        // What it is grouped by must be a label of something in it.
        for label in &expression.grouped_by {
            let has = |selector: &Selector| {
                let family = page.family(&selector.metric);
                family.is_none_or(|family| family.labels.contains_key(label))
            };
            let is_known = ADDED.contains(&label.as_str())
                || ["le", "namespace", "cronjob"].contains(&label.as_str());
            if !is_known && !expression.selectors.iter().any(has) {
                wrong.push(format!("{place}: nothing has the label {label}: {text}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// To regenerate: `WW_UPDATE_METRICS=1 cargo test --test all metrics_are_documented`.
#[tokio::test]
async fn all_metrics_are_documented_as_they_are() {
    const MARK: &str = "<!-- What follows is made from the page itself. -->\n";
    let page = page_of(&busy_gateway().await).await;
    let text = read("docs/METRICS.md");
    let (before, shown) = text.split_once(MARK).unwrap();
    let made = page.table();
    if std::env::var_os("WW_UPDATE_METRICS").is_some() {
        fs::write(
            root().join("docs/METRICS.md"),
            format!("{before}{MARK}{made}"),
        )
        .unwrap();
        return;
    }
    let (shown, made): (BTreeSet<_>, BTreeSet<_>) =
        (shown.lines().collect(), made.lines().collect());
    let differing: Vec<_> = shown.symmetric_difference(&made).collect();
    assert!(
        differing.is_empty(),
        "docs/METRICS.md is old; run: WW_UPDATE_METRICS=1 cargo test --test all metrics_are_documented\n{differing:#?}"
    );
}

#[tokio::test]
async fn help_says_what_and_in_which_unit() {
    let page = page_of(&busy_gateway().await).await;
    for (name, family) in page.families() {
        let help = &family.help;
        assert!(help.len() > 5 && help.ends_with('.'), "{name}: {help}");
        if !name.starts_with("wasmwiz_") {
            continue;
        }
        for (suffix, unit) in [
            ("_timestamp_seconds", "seconds since the Unix epoch"),
            ("_seconds", "in seconds"),
            ("_bytes", "in bytes"),
            ("_seconds_total", "in seconds"),
        ] {
            if name.ends_with(suffix) {
                assert!(help.contains(unit), "{name}: {help}");
                break;
            }
        }
        let is_counter = family.kind == "counter";
        assert_eq!(name.ends_with("_total"), is_counter, "{name}");
    }
}

#[test]
fn every_alert_has_a_runbook_section_and_a_test() {
    let runbook = read("docs/RUNBOOK.md");
    let sections: BTreeMap<&str, &str> = runbook
        .split("\n## ")
        .skip(1)
        .map(|section| section.split_once('\n').unwrap())
        .collect();
    let tests: String = files("monitoring/prometheus/tests", "yml")
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let alerts = alerts();
    for alert in &alerts {
        let section = sections
            .get(alert.as_str())
            .unwrap_or_else(|| panic!("docs/RUNBOOK.md has no section {alert}"));
        for part in ["**Means.**", "**Look.**", "**Do.**"] {
            assert!(section.contains(part), "{alert}: {part}");
        }
        let quiet = format!("alertname: {alert}, exp_alerts: []");
        let tested = tests.contains(&format!("        alertname: {alert}\n"));
        assert!(tested, "monitoring/prometheus/tests does not test {alert}");
        // What is wrong from the first moment on can't be quiet before.
        let is_at_once = alert == "WasmWizardCertificateExpiringSoon";
        assert!(
            is_at_once || tests.contains(&quiet),
            "{alert} is never quiet"
        );
    }
    for section in sections.keys() {
        let is_alert = section.starts_with("WasmWizard") || section.ends_with("Down");
        assert!(
            !is_alert || alerts.iter().any(|alert| alert == section),
            "docs/RUNBOOK.md: {section} is no alert"
        );
    }
    for (_, rule) in rules() {
        let Some(alert) = rule["alert"].as_str() else {
            continue;
        };
        let anchor = format!("docs/RUNBOOK.md#{}", alert.to_lowercase());
        assert_eq!(rule["annotations"]["runbook"], anchor.as_str(), "{alert}");
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["warning", "critical"].contains(&severity), "{alert}");
    }
}

/// Runs a program of a Debian package to its end.
fn check(program: &str, package: &str, arguments: &[&str], paths: &[PathBuf]) {
    let output = Command::new(program).args(arguments).args(paths).output();
    let output = output.unwrap_or_else(|error| {
        panic!("{program} does not run ({error}): apt-get install {package}")
    });
    assert!(
        output.status.success(),
        "{program} {arguments:?}:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn prometheus_takes_its_configuration_and_the_rules_do_what_they_say() {
    let config = root().join("monitoring/prometheus/prometheus.yml");
    check("promtool", "prometheus", &["check", "config"], &[config]);
    let rules = files("monitoring/prometheus/rules", "yml");
    check(
        "promtool",
        "prometheus",
        &["check", "rules", "--lint-fatal"],
        &rules,
    );
    let tests = files("monitoring/prometheus/tests", "yml");
    check("promtool", "prometheus", &["test", "rules"], &tests);
}

#[test]
fn alertmanager_takes_its_configuration() {
    let config = root().join("monitoring/alertmanager/alertmanager.yml");
    check(
        "amtool",
        "prometheus-alertmanager",
        &["check-config"],
        &[config],
    );
}

#[test]
fn dashboards_are_such_as_grafana_takes() {
    let provisioned: serde_yaml::Value = serde_yaml::from_str(&read(
        "monitoring/grafana/provisioning/datasources/prometheus.yml",
    ))
    .unwrap();
    let source = provisioned["datasources"][0]["uid"].as_str().unwrap();
    let mut uids = BTreeSet::new();
    for path in files("monitoring/grafana/dashboards", "json") {
        let name = path.display();
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let uid = dashboard["uid"].as_str().unwrap().to_owned();
        assert!(uid.len() <= 40 && uids.insert(uid), "{name}");
        assert!(dashboard["title"].as_str().is_some_and(|t| !t.is_empty()));
        let mut ids = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{name}: {title}");
            if panel["type"] == "row" {
                continue;
            }
            assert_eq!(panel["datasource"]["uid"], source, "{name}: {title}");
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{name}: {title}");
            for target in targets {
                assert_eq!(target["datasource"]["uid"], source, "{name}: {title}");
            }
            let at = &panel["gridPos"];
            let right = at["x"].as_u64().unwrap() + at["w"].as_u64().unwrap();
            assert!(right <= 24, "{name}: {title}");
        }
    }
    assert!(uids.len() >= 6);
}

//! What a deployment consists of: nothing of it is to get lost.

use std::collections::BTreeSet;

use super::kubernetes::{name, objects, of_kind};

#[test]
fn compose_has_databases_backups_and_what_watches() {
    let services = super::compose::services();
    let is_image = |service: &str, image: &str| {
        let found = services.iter().find(|(name, _)| name == service);
        let (_, found) = found.unwrap_or_else(|| panic!("there is no {service}"));
        let is = found["image"].as_str().unwrap();
        assert!(is.starts_with(image), "{service}: {is}");
    };
    for (service, image) in [
        ("gateway", "wasm-wizard:"),
        ("migrate", "wasm-wizard:"),
        ("postgres", "postgres:15-"),
        ("redis", "redis:7."),
        ("backup", "postgres:15-"),
        ("prometheus", "prom/prometheus:v"),
        ("alertmanager", "prom/alertmanager:v"),
        ("grafana", "grafana/grafana:"),
        (
            "postgres-exporter",
            "prometheuscommunity/postgres-exporter:v",
        ),
        ("redis-exporter", "oliver006/redis_exporter:v"),
    ] {
        is_image(service, image);
    }
}

#[test]
fn kubernetes_has_all_parts_and_no_way_in_but_one() {
    let objects = objects("production");
    for (kind, wanted) in [
        ("Namespace", "wasm-wizard"),
        ("ServiceAccount", "wasm-wizard"),
        ("ResourceQuota", "wasm-wizard"),
        ("LimitRange", "wasm-wizard"),
        ("Deployment", "gateway"),
        ("HorizontalPodAutoscaler", "gateway"),
        ("PodDisruptionBudget", "gateway"),
        ("Job", "migrate"),
        ("CronJob", "backup"),
        ("StatefulSet", "postgres"),
        ("StatefulSet", "redis"),
        ("NetworkPolicy", "deny-by-default"),
        ("ServiceMonitor", "wasm-wizard"),
    ] {
        let found = of_kind(&objects, kind);
        let names: Vec<&str> = found.iter().map(|object| name(object)).collect();
        assert!(names.contains(&wanted), "{kind} {wanted}: {names:?}");
    }
    // Clients come to the gateway itself, which ends TLS: nothing stands before it.
    assert!(of_kind(&objects, "Ingress").is_empty());
    let balanced: BTreeSet<&str> = of_kind(&objects, "Service")
        .into_iter()
        .filter(|service| {
            let kind = &service["spec"]["type"];
            assert_ne!(kind, "NodePort", "{service}");
            kind == "LoadBalancer"
        })
        .map(name)
        .collect();
    assert_eq!(balanced, BTreeSet::from(["gateway"]));
}

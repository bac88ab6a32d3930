//! The overlays of `k8s/`, rendered by kustomize and held to the schemas of Kubernetes.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;
use wasm_wizard::telemetry::health::Probe;

use super::{ports, reads, shutdown_grace, starts_with, texts};
use crate::support::{root, succeed, tool};

const OVERLAYS: [&str; 2] = ["production", "staging"];

fn render(overlay: &str) -> String {
    succeed(tool("kubectl").args(["kustomize", &format!("k8s/overlays/{overlay}")]))
}

fn parse(text: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(text);
    documents
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

pub(super) fn objects(overlay: &str) -> Vec<Value> {
    parse(&render(overlay))
}

pub(super) fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects
        .iter()
        .filter(|object| object["kind"] == kind)
        .collect()
}

pub(super) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

/// The pods of everything that makes pods, by the name of what makes them.
fn pods(objects: &[Value]) -> Vec<(&str, &Value)> {
    let pods = objects.iter().filter_map(|object| {
        let template = match object["kind"].as_str()? {
            "Deployment" | "StatefulSet" | "Job" => &object["spec"]["template"],
            "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"],
            _ => return None,
        };
        Some((name(object), template))
    });
    pods.collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = [&pod["spec"]["containers"], &pod["spec"]["initContainers"]];
    lists.into_iter().filter_map(Value::as_array).flatten()
}

fn is_ours(container: &Value) -> bool {
    let image = container["image"].as_str().unwrap();
    image
        .split([':', '@'])
        .next()
        .is_some_and(|name| name.ends_with("wasm-wizard"))
}

#[test]
fn kubernetes_accepts_every_object() {
    let dir = tempfile::tempdir().unwrap();
    for overlay in OVERLAYS {
        let file = dir.path().join(format!("{overlay}.yaml"));
        std::fs::write(&file, render(overlay)).unwrap();
        let output = tool("kubernetes-validate")
            .args(["--strict"])
            .arg(&file)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        for line in said.lines().filter(|line| !line.starts_with("INFO")) {
            // A kind of the Prometheus Operator, none of Kubernetes itself.
            assert!(line.contains("for kind ServiceMonitor"), "{line}");
        }
        assert!(said.lines().count() > 15);
    }
    succeed(tool("kubernetes-validate").args(["--strict", "k8s/secrets.template.yaml"]));
}

/// The Pod Security Standard "restricted", and more.
#[test]
fn every_pod_is_restricted() {
    for overlay in OVERLAYS {
        let objects = objects(overlay);
        let namespace = of_kind(&objects, "Namespace")[0];
        let enforced = &namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
        assert_eq!(enforced, "restricted");
        for (at, pod) in pods(&objects) {
            let spec = &pod["spec"];
            assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{at}");
            assert!(
                spec["securityContext"]["runAsUser"].as_u64().unwrap() > 0,
                "{at}"
            );
            assert_eq!(
                spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
                "{at}"
            );
            assert_eq!(spec["automountServiceAccountToken"], false, "{at}");
            assert_eq!(spec["enableServiceLinks"], false, "{at}");
            for key in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(spec[key].is_null(), "{at}: {key}");
            }
            for volume in spec["volumes"].as_array().into_iter().flatten() {
                assert!(volume["hostPath"].is_null(), "{at}");
                let empty = &volume["emptyDir"];
                assert!(
                    empty.is_null() || empty["sizeLimit"].is_string(),
                    "{at}: {volume}"
                );
            }
            for container in containers(pod) {
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false, "{at}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{at}");
                assert_eq!(texts(&context["capabilities"]["drop"]), ["ALL"], "{at}");
                assert!(context["capabilities"]["add"].is_null(), "{at}");
                assert!(
                    container["resources"]["limits"]["memory"].is_string(),
                    "{at}"
                );
                for resource in ["cpu", "memory"] {
                    assert!(
                        container["resources"]["requests"][resource].is_string(),
                        "{at}"
                    );
                }
            }
        }
        for account in of_kind(&objects, "ServiceAccount") {
            assert_eq!(account["automountServiceAccountToken"], false);
        }
    }
}

#[test]
fn probes_ask_for_what_is_answered() {
    for overlay in OVERLAYS {
        let objects = objects(overlay);
        let mut asked = 0;
        for (at, pod) in pods(&objects) {
            for container in containers(pod).filter(|container| is_ours(container)) {
                for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                    let http = &container[probe]["httpGet"];
                    if container[probe].is_null() {
                        assert_eq!(at, "migrate", "{probe}");
                        continue;
                    }
                    let path = http["path"].as_str().unwrap();
                    assert!(Probe::from_path(path).is_some(), "{at}: {path}");
                    let port = named_port(container, &http["port"]).unwrap();
                    let admin = super::image().server.admin.unwrap().port();
                    assert_eq!(port, u64::from(admin), "{at}: {probe}");
                    asked += 1;
                }
            }
        }
        assert_eq!(asked, 3, "{overlay}");
    }
}

/// A port of a container, by its name or number.
fn named_port(container: &Value, port: &Value) -> Option<u64> {
    let ports = container["ports"].as_array()?;
    let found = ports
        .iter()
        .find(|p| p["name"] == *port || p["containerPort"] == *port)?;
    found["containerPort"].as_u64()
}

#[test]
fn services_and_policies_lead_to_ports_that_are_open() {
    for overlay in OVERLAYS {
        let objects = objects(overlay);
        let pods = pods(&objects);
        // Every pod with all of these labels has the port.
        let leads = |labels: &Value, port: &Value| {
            let labels = labels.as_object().unwrap();
            let selected = pods.iter().filter(|(_, pod)| {
                labels
                    .iter()
                    .all(|(key, value)| pod["metadata"]["labels"][key] == *value)
            });
            let open =
                selected.map(|(_, pod)| containers(pod).any(|c| named_port(c, port).is_some()));
            let open: Vec<bool> = open.collect();
            !open.is_empty() && open.iter().all(|is_open| *is_open)
        };
        for service in of_kind(&objects, "Service") {
            for port in service["spec"]["ports"].as_array().unwrap() {
                assert!(
                    leads(&service["spec"]["selector"], &port["targetPort"]),
                    "{}: {port}",
                    name(service)
                );
            }
        }
        for policy in of_kind(&objects, "NetworkPolicy") {
            let labels = &policy["spec"]["podSelector"]["matchLabels"];
            for rule in policy["spec"]["ingress"].as_array().into_iter().flatten() {
                for port in rule["ports"].as_array().unwrap() {
                    assert!(leads(labels, &port["port"]), "{}: {port}", name(policy));
                }
            }
        }
        let ours = pods
            .iter()
            .flat_map(|(_, pod)| containers(pod))
            .filter(|c| is_ours(c));
        let open: BTreeSet<u64> = ours
            .flat_map(|c| c["ports"].as_array().into_iter().flatten())
            .map(|port| port["containerPort"].as_u64().unwrap())
            .collect();
        assert_eq!(open, ports());
        for budget in of_kind(&objects, "PodDisruptionBudget") {
            assert!(leads(
                &budget["spec"]["selector"]["matchLabels"],
                &Value::from("https")
            ));
        }
    }
}

#[test]
fn nothing_comes_in_or_goes_out_by_default() {
    for overlay in OVERLAYS {
        let objects = objects(overlay);
        let denies = of_kind(&objects, "NetworkPolicy")
            .into_iter()
            .any(|policy| {
                let spec = &policy["spec"];
                spec["podSelector"] == serde_json::json!({})
                    && texts(&spec["policyTypes"]) == ["Ingress", "Egress"]
                    && spec["ingress"].is_null()
                    && spec["egress"].is_null()
            });
        assert!(denies, "{overlay}");
    }
}

/// Secrets, configuration and volumes are those that there are.
#[test]
fn pods_mount_what_there_is() {
    let template = std::fs::read_to_string(root().join("k8s/secrets.template.yaml")).unwrap();
    let template = parse(&template);
    for overlay in OVERLAYS {
        let objects = objects(overlay);
        for (at, pod) in pods(&objects) {
            let volumes = pod["spec"]["volumes"].as_array().unwrap();
            let mut known: BTreeSet<&str> = volumes
                .iter()
                .map(|v| v["name"].as_str().unwrap())
                .collect();
            for object in of_kind(&objects, "StatefulSet")
                .iter()
                .filter(|o| name(o) == at)
            {
                let claims = object["spec"]["volumeClaimTemplates"]
                    .as_array()
                    .into_iter()
                    .flatten();
                known.extend(claims.map(name));
            }
            let mut mounted = BTreeSet::new();
            for container in containers(pod) {
                for mount in container["volumeMounts"].as_array().unwrap() {
                    let volume = mount["name"].as_str().unwrap();
                    assert!(known.contains(volume), "{at}: {volume}");
                    mounted.insert(volume);
                }
            }
            assert_eq!(mounted, known, "{at}");
            for volume in volumes {
                let projected = volume["projected"]["sources"]
                    .as_array()
                    .into_iter()
                    .flatten();
                let projected = projected.map(|s| (&s["secret"]["name"], &s["secret"]["items"]));
                let plain = (&volume["secret"]["secretName"], &volume["secret"]["items"]);
                for (secret, items) in projected.chain([plain]) {
                    let Some(secret) = secret.as_str() else {
                        continue;
                    };
                    let found = template.iter().find(|object| name(object) == secret);
                    let found = found.unwrap_or_else(|| panic!("{at}: {secret}"));
                    for item in items.as_array().into_iter().flatten() {
                        let key = item["key"].as_str().unwrap();
                        assert!(
                            found["stringData"][key].is_string(),
                            "{at}: {secret} has no {key}"
                        );
                    }
                }
                if let Some(map) = volume["configMap"]["name"].as_str() {
                    assert!(
                        of_kind(&objects, "ConfigMap")
                            .iter()
                            .any(|o| name(o) == map),
                        "{at}: {map}"
                    );
                }
                if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
                    let claims = of_kind(&objects, "PersistentVolumeClaim");
                    assert!(claims.iter().any(|o| name(o) == claim), "{at}: {claim}");
                }
            }
        }
    }
}

#[test]
fn our_program_gets_what_it_reads() {
    let template = std::fs::read_to_string(root().join("k8s/secrets.template.yaml")).unwrap();
    let template = parse(&template);
    let has = |secret: &str, key: &str| {
        let found = template.iter().find(|object| name(object) == secret);
        found.unwrap()["stringData"][key].is_string()
    };
    for overlay in OVERLAYS {
        let objects = objects(overlay);
        for (at, pod) in pods(&objects) {
            for container in containers(pod).filter(|container| is_ours(container)) {
                starts_with(&texts(&container["args"]));
                let variables = container["env"].as_array().unwrap();
                reads(
                    variables
                        .iter()
                        .map(|variable| variable["name"].as_str().unwrap()),
                );
                for variable in variables {
                    let value = variable["value"].as_str().unwrap();
                    let Some(key) = value.strip_prefix("/run/secrets/wasm-wizard/") else {
                        assert_eq!(
                            (variable["name"].as_str(), value == overlay),
                            (Some("ENVIRONMENT"), true)
                        );
                        continue;
                    };
                    // Only what migrates can change the schema and the audit.
                    let is_owner = at == "migrate" && variable["name"] == "DATABASE_URL_FILE";
                    let secret = if is_owner {
                        "migrate-secrets"
                    } else {
                        "wasm-wizard-secrets"
                    };
                    assert!(has(secret, key), "{at}: {key}");
                    assert_eq!(key == "database_owner_url", is_owner, "{at}");
                }
            }
        }
    }
}

#[test]
fn a_rolling_update_loses_nothing() {
    for (overlay, least, most) in [("production", 5, 20), ("staging", 2, 4)] {
        let objects = objects(overlay);
        let deployment = of_kind(&objects, "Deployment")[0];
        let spec = &deployment["spec"];
        assert_eq!(spec["replicas"], least, "{overlay}");
        assert_eq!(spec["strategy"]["rollingUpdate"]["maxUnavailable"], 0);
        let pod = &spec["template"]["spec"];
        let sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
            .as_u64()
            .unwrap();
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(sleep >= 5, "balancers need a moment");
        assert!(
            grace > sleep + shutdown_grace().as_secs(),
            "it would be killed while it drains"
        );
        assert!(pod["topologySpreadConstraints"].as_array().unwrap().len() >= 2);
        let scaler = of_kind(&objects, "HorizontalPodAutoscaler")[0];
        assert_eq!(scaler["spec"]["scaleTargetRef"]["name"], *name(deployment));
        assert_eq!(
            (
                &scaler["spec"]["minReplicas"],
                &scaler["spec"]["maxReplicas"]
            ),
            (&least.into(), &most.into())
        );
        // Known keys work for this long without the database, and so long pods stay.
        let ready = &pod["containers"][0]["readinessProbe"];
        let patience =
            ready["periodSeconds"].as_u64().unwrap() * ready["failureThreshold"].as_u64().unwrap();
        assert_eq!(patience, super::image().auth.outage_grace.as_secs());
    }
}

/// All pods that there can be, and the databases, fit into what the namespace may take.
#[test]
fn the_quota_holds_what_is_scaled_to() {
    let objects = objects("production");
    let quota = &of_kind(&objects, "ResourceQuota")[0]["spec"]["hard"];
    let number = |value: &Value| -> u64 {
        value
            .as_str()
            .unwrap()
            .trim_end_matches("Gi")
            .parse()
            .unwrap()
    };
    let gateway = &of_kind(&objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0];
    // A quarter more than the most, during an update.
    let pods = 25;
    assert!(number(&quota["pods"]) >= pods + 10);
    assert!(
        number(&quota["limits.memory"])
            >= pods * number(&gateway["resources"]["limits"]["memory"]) + 10
    );
    assert!(
        number(&quota["requests.memory"])
            >= pods * number(&gateway["resources"]["requests"]["memory"]) + 10
    );
    assert!(
        number(&quota["requests.cpu"])
            >= pods * number(&gateway["resources"]["requests"]["cpu"]) + 5
    );
}

#[test]
fn the_monitor_finds_the_metrics() {
    let config = super::image();
    for overlay in OVERLAYS {
        let objects = objects(overlay);
        let monitors = of_kind(&objects, "ServiceMonitor");
        let monitor = monitors.iter().find(|m| name(m) == "wasm-wizard").unwrap();
        let labels = monitor["spec"]["selector"]["matchLabels"]
            .as_object()
            .unwrap();
        let services: Vec<_> = of_kind(&objects, "Service")
            .into_iter()
            .filter(|service| {
                labels
                    .iter()
                    .all(|(k, v)| service["metadata"]["labels"][k] == *v)
            })
            .collect();
        assert_eq!(services.len(), 1);
        let endpoint = &monitor["spec"]["endpoints"][0];
        let ports = services[0]["spec"]["ports"].as_array().unwrap();
        assert!(ports.iter().any(|port| port["name"] == endpoint["port"]));
        assert_eq!(endpoint["path"], config.metrics.path.as_str());
    }
}

/// The exporters are found under the jobs that the rules of `monitoring/` go by, and reach their databases.
#[test]
fn the_monitor_finds_the_exporters() {
    let prometheus = std::fs::read_to_string(root().join("monitoring/prometheus/prometheus.yml"));
    let prometheus: Value = serde_yaml::from_str(&prometheus.unwrap()).unwrap();
    let scraped = prometheus["scrape_configs"].as_array().unwrap();
    let compose = std::fs::read_to_string(root().join("docker-compose.production.yml")).unwrap();
    for overlay in OVERLAYS {
        let objects = objects(overlay);
        let monitors = of_kind(&objects, "ServiceMonitor");
        let monitor = monitors.iter().find(|m| name(m) == "databases").unwrap();
        let label = monitor["spec"]["jobLabel"].as_str().unwrap();
        let selector = &monitor["spec"]["selector"]["matchExpressions"][0];
        assert_eq!(
            (&selector["key"], &selector["operator"]),
            (&label.into(), &"Exists".into())
        );
        let port = &monitor["spec"]["endpoints"][0]["port"];
        let mut jobs = Vec::new();
        for service in of_kind(&objects, "Service") {
            let Some(job) = service["metadata"]["labels"][label].as_str() else {
                continue;
            };
            jobs.push(job);
            assert!(
                scraped.iter().any(|config| config["job_name"] == job),
                "{job}"
            );
            let exposed = &service["spec"]["ports"][0];
            assert_eq!(exposed["name"], *port);
            let target = format!("{}:{}", name(service), exposed["port"]);
            assert!(prometheus.to_string().contains(&target), "{target}");
            let policies = of_kind(&objects, "NetworkPolicy");
            let policy = policies.iter().find(|policy| name(policy) == job).unwrap();
            assert!(
                policy["spec"]["ingress"]
                    .to_string()
                    .contains(name(service))
            );
        }
        jobs.sort_unstable();
        assert_eq!(jobs, ["postgres", "redis"]);
        for (at, pod) in pods(&objects)
            .iter()
            .filter(|(at, _)| at.ends_with("-exporter"))
        {
            for container in containers(pod) {
                let image = container["image"].as_str().unwrap();
                assert!(
                    compose.contains(&format!("image: {image}\n")),
                    "{at}: {image}"
                );
            }
        }
    }
}

//! Going back with Compose and in Kubernetes. Neither Docker nor a cluster is there, so programs of their names stand
//! in: they write down what they were asked, answer from files, and have the real gateway look at a database.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use super::{fails, succeeds};
use crate::support::gateway::run;
use crate::support::{root, succeed, tool};

const DOCKER: &str = r#"#!/usr/bin/env bash
echo "${WASM_WIZARD_VERSION:-} $*" >>asked
case "$*" in
  "image inspect wasm-wizard:"*) grep -qx "${3#*:}" images ;;
  "inspect "*) echo "wasm-wizard:$(<runs)" ;;
  *" ps --quiet gateway") printf '1f\n2e\n3d\n' ;;
  *" exec -T backup cat /backups/last_success") cat last_success ;;
  *" run --rm --no-deps -T gateway migrate --check --config /etc/wasm-wizard/wasm-wizard.yaml") exec wasm-wizard migrate --check ;;
  *" up --detach --no-deps --no-build "*" gateway")
    echo "$WASM_WIZARD_VERSION" >runs
    ! grep -qx "$WASM_WIZARD_VERSION" sick
    ;;
  *) echo "docker: what is $*?" >&2; exit 64 ;;
esac
"#;

const KUBECTL: &str = r#"#!/usr/bin/env bash
echo "$*" >>asked
[ "$1 $2" = "--namespace production" ] || exit 64
shift 2
case "$*" in
  "get deployment/gateway --output json") cat deployment ;;
  "get replicasets --output json") cat replicasets ;;
  "get cronjob/backup --output jsonpath="*) cat last_success ;;
  "delete pod rollback-check"*) ;;
  "create --filename "*) cat "$3" >pod ;;
  "get pod rollback-check --output jsonpath="*)
    if wasm-wizard migrate --check >checked 2>&1; then echo Succeeded; else echo Failed; fi ;;
  "logs rollback-check") cat checked ;;
  "rollout undo deployment/gateway --to-revision="*)
    jq '.metadata.annotations["deployment.kubernetes.io/revision"] = "6"' deployment >part && mv part deployment ;;
  "rollout status deployment/gateway --timeout=900s") [ ! -e sick ] ;;
  "annotate --overwrite deployment/gateway "*)
    jq --arg value "${4#*=}" '.metadata.annotations["wasm-wizard/rolled-back-to"] = $value' deployment >part && mv part deployment ;;
  *) echo "kubectl: what is $*?" >&2; exit 64 ;;
esac
"#;

/// A directory with a stand-in of this name, and the PATH that begins with it.
fn stand_in(name: &str, script: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join(name), script).unwrap();
    fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_wasm-wizard"));
    let path = std::env::var("PATH").unwrap();
    let program = program.parent().unwrap().display();
    let path = format!("{}:{program}:{path}", bin.display());
    (dir, path)
}

/// What the stand-in was asked since the last time.
fn asked(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join("asked")).unwrap_or_default();
    let _ = fs::remove_file(dir.join("asked"));
    text.lines().map(str::to_owned).collect()
}

fn changes(asked: &[String]) -> Vec<&str> {
    let is_change = |line: &&String| line.contains(" up ") || line.contains("rollout undo");
    asked.iter().filter(is_change).map(String::as_str).collect()
}

fn ago(hours: i64) -> chrono::DateTime<chrono::Utc> {
    chrono::Utc::now() - chrono::Duration::hours(hours)
}

#[test]
fn compose_goes_back_where_the_older_version_can_serve_and_comes_up() {
    let (dir, path) = stand_in("docker", DOCKER);
    let work = dir.path();
    let put = |name: &str, text: &str| fs::write(work.join(name), text).unwrap();
    put("compose.yml", "");
    put("images", "0.1.0\n0.2.0\n");
    put("runs", "0.2.0\n");
    put("sick", "");
    put("last_success", &ago(25).timestamp().to_string());
    let to = |version| ["--compose", "compose.yml", "--version", version];
    let env = [("PATH", path.as_str())];
    let refused = |arguments: &[&str], why: &str| {
        fails(work, "rollback.sh", arguments, &env, why);
        let asked = asked(work);
        assert!(changes(&asked).is_empty(), "{why}: {asked:?}");
    };

    refused(&to("0.0.9"), "there is no image wasm-wizard:0.0.9");
    refused(&to("0.1.0;reboot"), "is no tag of an image");
    refused(&to("0.1.0"), "the newest backup is 25 hours old");
    put("last_success", "");
    refused(&to("0.1.0"), "no backup is known");
    put("last_success", &ago(23).timestamp().to_string());
    refused(&to("0.1.0"), "can't work with the database as it is");
    // What the older program said itself is there too.
    refused(&to("0.1.0"), "there is no database");
    let unseen = [&to("0.1.0")[..], &["--without-database-check"]].concat();
    succeeds(work, "rollback.sh", &unseen, &env);
    let all = asked(work);
    assert_eq!(changes(&all).len(), 1, "{all:?}");
    assert!(!all.iter().any(|line| line.contains("--check")), "{all:?}");
    put("runs", "0.2.0\n");
    assert!(run(work, &["migrate"], &[]).status.success());

    // What does not come up is given up.
    put("sick", "0.1.0\n");
    fails(work, "rollback.sh", &to("0.1.0"), &env, "0.2.0 runs again");
    let up = |version: &str| {
        format!(
            "{version} compose --file compose.yml up --detach --no-deps --no-build --scale gateway=3 --wait --wait-timeout 180 gateway"
        )
    };
    assert_eq!(changes(&asked(work)), [up("0.1.0"), up("0.2.0")]);

    put("sick", "");
    let said = succeeds(work, "rollback.sh", &to("0.1.0"), &env);
    assert!(said.contains("from 0.2.0 to 0.1.0"), "{said}");
    assert_eq!(changes(&asked(work)), [up("0.1.0")]);
    let said = succeeds(work, "rollback.sh", &to("0.1.0"), &env);
    assert!(said.contains("have version 0.1.0 already"), "{said}");
    assert!(changes(&asked(work)).is_empty());
}

/// The Deployment of the overlay as a cluster has it, with this revision and image.
fn revision(gateway: &Value, number: u32, image: &str) -> Value {
    let mut object = gateway.clone();
    object["metadata"]["annotations"] =
        json!({ "deployment.kubernetes.io/revision": number.to_string() });
    object["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
    object
}

#[test]
fn kubernetes_goes_back_where_the_older_revision_can_serve_and_gets_ready() {
    let (dir, path) = stand_in("kubectl", KUBECTL);
    let work = dir.path();
    let put = |name: &str, text: &str| fs::write(work.join(name), text).unwrap();
    let rendered = succeed(tool("kubectl").args(["kustomize", "k8s/overlays/production"]));
    let gateway = serde_yaml::Deserializer::from_str(&rendered)
        .map(|document| <Value as serde::Deserialize>::deserialize(document).unwrap())
        .find(|object| object["kind"] == "Deployment" && object["metadata"]["name"] == "gateway")
        .unwrap();
    let mut deployment = revision(&gateway, 5, "wasm-wizard:0.2.0");
    deployment["metadata"]["uid"] = json!("u-1");
    let sets = [
        (5, "u-1", "0.2.0"),
        (3, "u-1", "0.0.9"),
        (4, "u-1", "0.1.0"),
        (9, "u-2", "other"),
    ]
    .map(|(number, owner, tag)| {
        let mut set = revision(&gateway, number, &format!("wasm-wizard:{tag}"));
        set["metadata"]["ownerReferences"] = json!([{ "uid": owner }]);
        set
    });
    put("deployment", &deployment.to_string());
    put("replicasets", &json!({ "items": sets }).to_string());
    put("last_success", &ago(25).to_rfc3339());
    let back = ["--kubernetes", "production"];
    let env = [("PATH", path.as_str())];
    let refused = |arguments: &[&str], why: &str| {
        fails(work, "rollback.sh", arguments, &env, why);
        let asked = asked(work);
        assert!(changes(&asked).is_empty(), "{why}: {asked:?}");
    };

    refused(&back, "the newest backup is 25 hours old");
    refused(&[&back[..], &["--revision", "9"]].concat(), "no revision 9");
    put("last_success", "");
    refused(&back, "no backup is known");
    put("last_success", &ago(1).to_rfc3339());
    refused(
        &back,
        "revision 4 can't work with the database as it is (its pod: Failed)",
    );
    assert!(run(work, &["migrate"], &[]).status.success());

    // The pod that looks is one that Kubernetes takes, of the older image, and none that serves.
    let pod: Value = serde_json::from_slice(&fs::read(work.join("pod")).unwrap()).unwrap();
    succeed(
        tool("kubernetes-validate")
            .arg("--strict")
            .arg(work.join("pod")),
    );
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["image"], "wasm-wizard:0.1.0");
    let looks = [
        "migrate",
        "--check",
        "--config",
        "/etc/wasm-wizard/wasm-wizard.yaml",
    ];
    assert_eq!(container["args"], json!(looks));
    assert_eq!(
        pod["metadata"]["labels"]["app.kubernetes.io/component"],
        "migrate"
    );
    for kept in ["env", "volumeMounts", "securityContext"] {
        let original = &gateway["spec"]["template"]["spec"]["containers"][0][kept];
        assert_eq!(&container[kept], original, "{kept}");
    }
    let policies = fs::read_to_string(root().join("k8s/base/network-policies.yaml")).unwrap();
    assert!(policies.contains("values: [gateway, migrate, backup]"));

    // What does not get ready is given up.
    let undo = |number: u32| {
        format!("--namespace production rollout undo deployment/gateway --to-revision={number}")
    };
    put("sick", "");
    fails(work, "rollback.sh", &back, &env, "5 goes on");
    assert_eq!(changes(&asked(work)), [undo(4), undo(5)]);
    fs::remove_file(work.join("sick")).unwrap();
    put("deployment", &deployment.to_string());

    let said = succeeds(work, "rollback.sh", &back, &env);
    assert!(
        said.contains("from revision 5, wasm-wizard:0.2.0, to 4, wasm-wizard:0.1.0"),
        "{said}"
    );
    let all = asked(work);
    assert_eq!(changes(&all), [undo(4)]);
    // Nothing is left of the pod.
    assert!(
        all.last().unwrap().contains("delete pod rollback-check"),
        "{all:?}"
    );
    // Again, and it does not go forward to what was rolled back.
    let said = succeeds(work, "rollback.sh", &back, &env);
    assert!(
        said.contains("revision 6 is one that was gone back to already"),
        "{said}"
    );
    assert!(changes(&asked(work)).is_empty());
}

//! Where what we ship comes from: dependencies, their list, the workflows that build releases.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::{program, root, succeed, tool};

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn workflows() -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join(".github/workflows")).unwrap() {
        found.push(entry.unwrap().path().display().to_string());
    }
    assert!(found.len() >= 3);
    found
}

/// Advisories need their database, which CI fetches every week.
#[test]
fn dependencies_are_licensed_and_come_from_the_registry() {
    let mut command = tool("cargo-deny");
    // It asks the cargo that runs this test.
    command.env("CARGO", env!("CARGO"));
    succeed(command.args(["--locked", "check", "bans", "licenses", "sources"]));
}

#[test]
fn the_list_of_components_is_whole_and_valid() {
    let mut command = program("jq", "jq");
    succeed(command.arg("--version"));
    let list =
        succeed(std::process::Command::new(root().join("scripts/sbom.sh")).current_dir(root()));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wasm-wizard.cdx.json");
    std::fs::write(&file, &list).unwrap();
    let validate = "import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
sys.exit(JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read()))";
    succeed(tool("python").args(["-c", validate]).arg(&file));
    let list: Value = serde_json::from_str(&list).unwrap();
    let components = list["components"].as_array().unwrap();
    let names: BTreeSet<&str> = components
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    // Every direct dependency that is built here, and none that is for tests alone.
    let manifest = read("Cargo.toml");
    let mut section = "";
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        } else if let Some((name, _)) = line.split_once(" = ") {
            match section {
                "[dependencies]" => assert!(names.contains(name), "{name} is missing"),
                "[dev-dependencies]" => assert!(
                    !["criterion", "proptest", "wasm-smith"].contains(&name)
                        || !names.contains(name),
                    "{name} is not shipped"
                ),
                _ => {}
            }
        }
    }
    for component in components {
        let hash = &component["hashes"][0]["content"];
        // Of what is in this repository no registry has a checksum.
        let is_ours = root()
            .join("vendor")
            .join(component["name"].as_str().unwrap());
        let length = (!is_ours.exists()).then_some(64);
        assert_eq!(hash.as_str().map(str::len), length, "{component}");
        assert!(component["licenses"].is_array(), "{component}");
    }
}

#[test]
fn workflows_are_valid_and_sound() {
    let mut command = tool("check-jsonschema");
    succeed(
        command
            .args(["--builtin-schema", "vendor.github-workflows"])
            .args(workflows()),
    );
    let mut command = tool("check-jsonschema");
    succeed(command.args([
        "--builtin-schema",
        "vendor.dependabot",
        ".github/dependabot.yml",
    ]));
    succeed(tool("zizmor").args(["--offline", "--no-progress", ".github"]));
}

/// A tag can be moved to other code; a commit can't.
#[test]
fn actions_are_pinned_to_commits() {
    let mut uses = 0;
    for workflow in workflows() {
        for line in std::fs::read_to_string(&workflow).unwrap().lines() {
            let Some((_, action)) = line.split_once("uses: ") else {
                continue;
            };
            let (commit, version) = action
                .split_once('@')
                .and_then(|(_, at)| at.split_once(" # "))
                .unwrap();
            let is_commit = commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit());
            assert!(
                is_commit && version.starts_with('v'),
                "{workflow}: {action}"
            );
            uses += 1;
        }
    }
    assert!(uses > 5);
}

/// A release has checksums that are signed, and its list of components; dependencies are looked at every week.
#[test]
fn releases_are_signed_and_audits_recur() {
    let read_yaml = |name: &str| -> Value {
        let text = read(&format!(".github/workflows/{name}.yml"));
        serde_yaml::from_str(&text).unwrap()
    };
    let steps = |job: &Value| job["steps"].to_string();
    let release = read_yaml("release");
    let (build, publish) = (
        steps(&release["jobs"]["build"]),
        steps(&release["jobs"]["publish"]),
    );
    for made in [
        "scripts/sbom.sh > ",
        "sha256sum -- * > SHA256SUMS",
        "cargo build --release --locked",
    ] {
        assert!(build.contains(made), "{made}");
    }
    for signed in ["sign-blob --yes", "attest-build-provenance", "SHA256SUMS"] {
        assert!(publish.contains(signed), "{signed}");
    }
    let audit = read_yaml("audit");
    // `on` is no truth value here.
    let weekly = audit["on"]["schedule"][0]["cron"].as_str().unwrap();
    let day = weekly.split(' ').next_back().unwrap();
    assert!(day.parse::<u8>().is_ok(), "{weekly} is not once a week");
    assert!(steps(&audit["jobs"]["dependencies"]).contains("cargo-deny --locked check\""));
    assert!(steps(&read_yaml("ci")["jobs"]["test"]).contains("./scripts/test.sh"));
}

/// What the tests install has a version and hashes, and comes from the list that people edit.
#[test]
fn tools_are_pinned() {
    let pinned = read("scripts/requirements.txt");
    let names: BTreeSet<&str> = pinned
        .lines()
        .filter_map(|line| line.split_once("==").map(|(name, _)| name))
        .collect();
    for line in read("scripts/requirements.in").lines() {
        let name = line.split(['#', '[', ' ']).next().unwrap();
        assert!(
            name.is_empty() || names.contains(name),
            "{name} is not in requirements.txt: run pip-compile"
        );
    }
    for (at, line) in pinned.lines().enumerate() {
        if line.contains("==") {
            let next = pinned.lines().nth(at + 1).unwrap_or_default();
            assert!(next.contains("--hash=sha256:"), "{line}");
        }
    }
    assert!(!pinned.contains("://"), "it names a host");
}

/// The packages of a lock file, each with what it depends on.
fn locked(path: &str) -> std::collections::BTreeMap<(String, String), BTreeSet<String>> {
    let text = read(path);
    let packages = text.split("[[package]]\n").skip(1).map(|package| {
        let value = |key: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_else(|| panic!("{path}: a package without {key}"))
                .trim_matches('"')
                .to_owned()
        };
        let needs = package.lines().filter_map(|line| line.strip_prefix(" \""));
        let needs = needs.filter_map(|line| line.split(['"', ' ']).next());
        let needs = needs.map(str::to_owned).collect();
        ((value("name = "), value("version = ")), needs)
    });
    packages.collect()
}

/// They are built by night, with `--locked`: a lock file that was left behind is found by day.
#[test]
fn the_fuzz_targets_are_locked_to_the_projects_versions() {
    let (ours, theirs) = (locked("Cargo.lock"), locked("fuzz/Cargo.lock"));
    let how = "cp Cargo.lock fuzz/Cargo.lock && cargo metadata --manifest-path fuzz/Cargo.toml";
    for package in theirs.keys() {
        let is_their_own = ["libfuzzer-sys", "wasm-wizard-fuzz"].contains(&package.0.as_str());
        assert!(
            is_their_own || ours.contains_key(package),
            "{package:?}: {how}"
        );
    }
    let manifest = read("Cargo.toml");
    let needs = manifest.split("\n[dependencies]\n").nth(1).unwrap();
    let needs = needs.split("\n[").next().unwrap().lines();
    let needs = needs.filter(|line| !line.starts_with('#'));
    let needs = needs.filter_map(|line| line.split_once(" = ").map(|(name, _)| name));
    let has = theirs.iter().find(|((name, _), _)| name == "wasm-wizard");
    let (_, has) = has.unwrap();
    let missing: Vec<_> = needs.filter(|name| !has.contains(*name)).collect();
    assert!(missing.is_empty(), "{missing:?}: {how}");
    assert!(has.len() > 20, "{has:?}");
}

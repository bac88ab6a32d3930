//! Scripts that look at a gateway that runs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use super::{fails, said, script, succeeds, twice};
use crate::support::eventually;
use crate::support::gateway::gateway;
use crate::support::root;

#[tokio::test(flavor = "multi_thread")]
async fn the_smoke_test_passes_on_a_good_gateway_and_on_no_other() {
    let gateway = gateway().start();
    let dir = gateway.dir();
    let (url, key) = (gateway.url(""), gateway.admin_key());
    let arguments = [url.as_str(), "--ca", "certs/development.crt"];
    let said = twice(&dir, "smoke_test.sh", &arguments, &[("API_KEY", &key)]);
    for line in [
        "execute: one-shot",
        "execute: stored",
        "delete",
        "TLS 1.1 is refused",
    ] {
        assert!(said.contains(&format!("ok      {line}\n")), "{said}");
    }
    assert!(!said.contains("FAILED") && !said.contains(&key), "{said}");
    // It takes away what it made.
    let list = gateway.client().get(gateway.url("/api/wasm/modules"));
    let list: serde_json::Value = list
        .bearer_auth(&key)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(list["total"], 0);
    let wrong = [("API_KEY", "ww_this-is-no-key")];
    fails(
        &dir,
        "smoke_test.sh",
        &arguments,
        &wrong,
        "FAILED  execute: one-shot (status 401)",
    );
    // Not trusted, so no answer counts.
    fails(
        &dir,
        "smoke_test.sh",
        &[&url],
        &[],
        "FAILED  health (status 000)",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_test_measures_everything_and_cleans_up() {
    let gateway = gateway().start();
    let dir = gateway.dir();
    let key_file = dir.join("key");
    fs::write(&key_file, gateway.admin_key()).unwrap();
    let url = gateway.url("");
    let small = ["-u", &url, "-c", "4", "-n", "60", "-d", "20"];
    let arguments = [
        &small[..],
        &["--ca", "certs/development.crt", "--report-only"],
    ]
    .concat();
    let env = [("API_KEY_FILE", key_file.to_str().unwrap())];
    let said = twice(&dir, "load_test.sh", &arguments, &env);
    for what in ["health", "one-shot", "stored", "route"] {
        let row = said.lines().find(|line| line.starts_with(what));
        let row = row.unwrap_or_else(|| panic!("{what}:\n{said}"));
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert!(cells[1].parse::<u64>().unwrap() >= 60, "{said}");
        assert_eq!(cells[3], "0.00%", "{said}");
        for time in &cells[4..8] {
            assert!(time.parse::<f64>().unwrap() > 0.0, "{said}");
        }
    }
    assert!(said.contains("limit: pass"), "{said}");
    let list = gateway.client().get(gateway.url("/api/wasm/modules"));
    let list = list.bearer_auth(gateway.admin_key()).send().await.unwrap();
    let list: serde_json::Value = list.json().await.unwrap();
    assert_eq!(list["total"], 0);
    // A route that only fails misses its target.
    let arguments = [
        &small[..],
        &["--ca", "certs/development.crt", "--route", "/nothing"],
    ]
    .concat();
    fails(&dir, "load_test.sh", &arguments, &[], "FAIL: avg < 50");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_validation_finds_what_is_not_fit_for_production() {
    let gateway = gateway().start();
    let dir = gateway.dir();
    succeeds(&dir, "generate_secrets.sh", &[], &[]);
    fs::set_permissions(
        dir.join("secrets/api_salt"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    fs::copy(
        dir.join("secrets/jwt_secret"),
        dir.join("secrets/artifact_key"),
    )
    .unwrap();
    let (url, admin) = (gateway.url(""), gateway.admin_url(""));
    let config = gateway.file().to_str().unwrap();
    let arguments = [
        "--config",
        config,
        "--secrets",
        "secrets",
        "--url",
        &url,
        "--admin",
        &admin,
        "--ca",
        "certs/development.crt",
    ];
    let key = gateway.admin_key();
    let validate = || {
        let env = [("API_KEY", key.as_str())];
        let output = script(&dir, "production-validation.sh", &arguments, &env);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    };
    let said = validate();
    assert_eq!(validate(), said, "it changes nothing");
    let found: BTreeSet<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("FAILED  "))
        .map(|line| line.rsplit_once(": ").map_or(line, |(what, _)| what))
        .map(|what| what.split(": the same").next().unwrap())
        .collect();
    let expected = BTreeSet::from([
        "admin: backups are watched",
        "configuration: database",
        "configuration: environment",
        "secrets: all differ",
        "secrets: api_salt is private: mode 644",
        "TLS: no development certificate",
    ]);
    assert_eq!(found, expected, "{said}");
    for line in [
        "TLS: 1.1 is refused",
        "TLS: 1.3 is spoken",
        "metrics are not public",
        "limits: a head of 70 kB is refused",
        "admin: the database answers",
    ] {
        assert!(
            said.contains(&format!("ok      {line}\n")),
            "{line}:\n{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_collected_holds_no_secret() {
    const SALT: &str = "planted-salt-0123456789abcdef0123456789";
    const LOG: &str = r#"{"level":"INFO","message":"the gateway is ready","request_id":"0199-ordinary"}
key ww_PlantedPlantedPlantedPlanted1234 was used
Authorization: Bearer planted.opaque-token~123
authorization: Basic cGxhbnRlZDpiYXNpYw==
token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJwbGFudGVkIn0.c2lnbmF0dXJlcGxhbnRlZA end
postgres://user:planted-password@db/x failed
{"password": "planted in json", "next": 1}
jwt_secret=planted-equals
-----BEGIN PRIVATE_ KEY-----
cGxhbnRlZCBwcml2YXRlIGtleQ==
-----END PRIVATE_ KEY-----
salt planted-salt-0123456789abcdef0123456789planted-salt-0123456789abcdef0123456789
from a file: planted-artifact-key-planted-artifact-key
"#;
    let gateway = gateway().env("API_SALT", SALT).start();
    let dir = gateway.dir();
    // Written in pieces, so that nobody takes this file for one with a key.
    fs::write(dir.join("log"), LOG.replace("PRIVATE_", "PRIVATE")).unwrap();
    let artifact_key = dir.join("artifact_key");
    fs::write(&artifact_key, "planted-artifact-key-planted-artifact-key\n").unwrap();
    let admin = gateway.admin_url("");
    let config = gateway.file().to_str().unwrap();
    twice(
        &dir,
        "collect-logs.sh",
        &[
            "--to",
            "out.tar.gz",
            "--config",
            config,
            "--admin",
            &admin,
            "--log",
            "log",
        ],
        &[
            ("API_SALT", SALT),
            ("ARTIFACT_KEY_FILE", artifact_key.to_str().unwrap()),
        ],
    );
    let mode = fs::metadata(dir.join("out.tar.gz"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let unpacked = Command::new("tar")
        .args(["-xzOf", "out.tar.gz"])
        .current_dir(&dir)
        .output();
    let text = String::from_utf8(unpacked.unwrap().stdout).unwrap();
    for secret in [
        "lanted",
        "cGxhbnRl",
        "c2lnbmF0dXJl",
        "eyJ",
        &gateway.admin_key(),
    ] {
        let line = text.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret}: {line:?}");
    }
    for kept in [
        "the gateway is ready",
        "0199-ordinary",
        "wasmwiz_build_info",
        "\"status\":\"healthy\"",
        "sandbox:",
        "API_SALT",
        "postgres://user:[redacted]@db/x failed",
        "MemTotal",
    ] {
        let kept = if kept == "MemTotal" { "Mem:" } else { kept };
        assert!(text.contains(kept), "{kept}:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_goes_back_and_forth_or_stays() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("wasm-wizard");
    let previous = dir.path().join("wasm-wizard.previous");
    fs::copy(env!("CARGO_BIN_EXE_wasm-wizard"), &program).unwrap();
    // Other bytes under the same version: what stands after the end of a program is never read.
    let mut bytes = fs::read(&program).unwrap();
    bytes.extend(b"previous");
    fs::write(&previous, bytes).unwrap();
    fs::set_permissions(&previous, fs::Permissions::from_mode(0o755)).unwrap();
    let is_previous = |path: &std::path::Path| fs::read(path).unwrap().ends_with(b"previous");

    let mut old = gateway().program(&program).start();
    let (pid, admin) = (old.pid().to_string(), old.admin_url(""));
    let file = program.to_str().unwrap().to_owned();
    let arguments = ["--program", &file, "--pid", &pid, "--admin", &admin];
    let work = dir.path().to_owned();
    let said = {
        let (arguments, work) = (arguments.map(str::to_owned), work.clone());
        tokio::task::spawn_blocking(move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            succeeds(&work, "rollback.sh", &arguments, &[])
        })
    };
    assert_eq!(old.wait().code(), Some(0));
    let said = said.await.unwrap();
    assert!(said.contains("the previous version serves"), "{said}");
    assert!(is_previous(&program) && !is_previous(&previous));
    let new = eventually("the new process is found", async || {
        let output = Command::new("pgrep")
            .arg("-f")
            .arg(format!("^{file} serve"))
            .output();
        let text = String::from_utf8(output.unwrap().stdout).ok()?;
        // Compile workers have the same name, and come after it.
        text.lines().next()?.parse::<i32>().ok()
    })
    .await;
    // A version that does not come up leaves everything as it was.
    fs::write(&previous, "#!/bin/sh\n[ \"$1\" = --version ] || exit 1\n").unwrap();
    let pid = new.to_string();
    let arguments = [
        "--program",
        &file,
        "--pid",
        &pid,
        "--admin",
        &admin,
        "--timeout",
        "2",
    ];
    fails(&work, "rollback.sh", &arguments, &[], "goes on");
    assert!(is_previous(&program));
    // Nor does one that hangs stay, to take over later: whether it is given up or the operator gives up.
    let hangs = "#!/bin/sh\n[ \"$1\" = --version ] || while :; do sleep 1; done\n";
    fs::write(&previous, hangs).unwrap();
    let successors = || {
        let args = ["-ww", "-o", "args=", "--ppid", &pid];
        let output = Command::new("ps").args(args).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .filter(|line| line.contains("serve --upgrade"))
            .count()
    };
    fails(&work, "rollback.sh", &arguments, &[], "goes on");
    assert!(is_previous(&program));
    assert_eq!(successors(), 0);
    let mut waiting = Command::new(root().join("scripts/rollback.sh"))
        .args(&arguments[..6])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it hangs", async || (successors() == 1).then_some(())).await;
    let script_pid = waiting.id().to_string();
    assert!(
        Command::new("kill")
            .arg(script_pid)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(waiting.wait().unwrap().code(), Some(1));
    assert!(is_previous(&program));
    assert_eq!(successors(), 0);
    let answer = old.client().get(old.url("/health/live")).send().await;
    assert_eq!(answer.unwrap().status(), 200);
    assert!(Command::new("kill").arg(&pid).status().unwrap().success());
}

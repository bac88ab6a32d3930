//! Compiled modules on disk: what a restart finds again, and what it must not believe.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::support::gateway::{Gateway, gateway};
use crate::support::{PATIENCE, root};

/// The sum of a metric's samples that have this label.
async fn metric(gateway: &Gateway, name: &str, label: &str) -> f64 {
    let page = gateway
        .client()
        .get(gateway.admin_url("/metrics"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    page.lines()
        .filter(|line| line.starts_with(name) && line.contains(label))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

const COMPILES: &str = "wasmwiz_compiles_total";
const ARTIFACTS: &str = "wasmwiz_artifacts_total";

/// Waits until the metric has at least this value.
async fn until(gateway: &Gateway, name: &str, label: &str, least: f64) {
    let deadline = Instant::now() + PATIENCE;
    while metric(gateway, name, label).await < least {
        assert!(Instant::now() < deadline, "{name} with {label} stays small");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn upload(gateway: &Gateway, key: &str) -> String {
    let wasm = fs::read(root().join("examples/guests/wordcount.wasm")).unwrap();
    let form = Form::new()
        .part("wasm", Part::bytes(wasm).file_name("m.wasm"))
        .text("name", "words");
    let request = gateway.client().post(gateway.url("/api/wasm/upload"));
    let answer = request
        .bearer_auth(key)
        .multipart(form)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 201);
    let body: Value = answer.json().await.unwrap();
    body["id"].as_str().unwrap().to_owned()
}

async fn execute(gateway: &Gateway, key: &str, id: &str) -> Value {
    let url = gateway.url(&format!("/api/wasm/modules/{id}/execute"));
    let request = gateway.client().post(url).bearer_auth(key);
    let answer = request.body("one two three").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let body: Value = answer.json().await.unwrap();
    body["output"].clone()
}

fn files(gateway: &Gateway) -> Vec<PathBuf> {
    fs::read_dir(gateway.dir().join("data/artifacts"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "artifact"))
        .collect()
}

#[tokio::test]
async fn a_restart_runs_stored_modules_and_routes_without_compiling() {
    let mut first = gateway().start();
    let key = first.admin_key();
    let id = upload(&first, &key).await;
    let output = execute(&first, &key, &id).await;
    // The self-test, two routes, and the upload's best code.
    until(&first, ARTIFACTS, "written", 4.0).await;
    assert!(metric(&first, COMPILES, "").await >= 4.0);
    first.terminate();
    first.wait();

    let second = gateway().in_dir_of(&first).start();
    assert_eq!(execute(&second, &key, &id).await, output);
    assert_eq!(metric(&second, COMPILES, "").await, 0.0);
    assert_eq!(metric(&second, ARTIFACTS, "hit").await, 4.0);
}

#[tokio::test]
async fn files_that_were_changed_are_compiled_again_and_not_believed() {
    let mut first = gateway().start();
    until(&first, ARTIFACTS, "written", 3.0).await;
    first.terminate();
    first.wait();
    for path in files(&first) {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::write(&path, bytes).unwrap();
    }
    let second = gateway().in_dir_of(&first).start();
    until(&second, ARTIFACTS, "written", 3.0).await;
    assert_eq!(metric(&second, ARTIFACTS, "rejected").await, 3.0);
    assert_eq!(metric(&second, ARTIFACTS, "hit").await, 0.0);
    assert_eq!(metric(&second, COMPILES, "compiled").await, 3.0);
    assert!(second.stderr().contains("damaged or not ours"));
}

#[tokio::test]
async fn a_key_of_the_operators_is_used_and_a_folder_can_be_left_out() {
    let key = "a".repeat(16) + &"b".repeat(16);
    let first = gateway().env("ARTIFACT_KEY", &key).start();
    until(&first, ARTIFACTS, "written", 3.0).await;
    assert!(!first.dir().join("data/artifacts/key").exists());

    let none = gateway()
        .set("sandbox.artifacts.directory", json!(null))
        .start();
    assert!(!none.dir().join("data/artifacts").exists());
    assert_eq!(metric(&none, ARTIFACTS, "").await, 0.0);
}

#[tokio::test]
async fn one_command_leaves_nothing_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let guest = root().join("examples/guests/echo.wasm");
    let output = crate::support::gateway::run(
        dir.path(),
        &["exec", guest.to_str().unwrap(), "--input", "hello"],
        &[],
    );
    assert_eq!(output.stdout, b"hello");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

//! Upgrade: a new process takes the place of the running one without losing a request.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::json;
use sqlx::Connection;

use crate::support::eventually;
use crate::support::gateway::gateway;

/// The process that a `MAINPID=` names.
fn main_pid(said: &str) -> i32 {
    let line = said.lines().find_map(|l| l.strip_prefix("MAINPID="));
    line.unwrap().parse().unwrap()
}

/// Ends a process that is not our child.
struct Orphan(i32);

impl Drop for Orphan {
    fn drop(&mut self) {
        let kill = std::process::Command::new("kill")
            .args(["-KILL", &self.0.to_string()])
            .status();
        assert!(kill.unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_no_request_fails_and_the_old_process_ends() {
    let dir = tempfile::tempdir().unwrap();
    let guest = dir.path().join("sleep.wat");
    std::fs::write(&guest, crate::shutdown::sleeper(3_000)).unwrap();
    let notify = dir.path().join("notify");
    let systemd = UnixDatagram::bind(&notify).unwrap();
    systemd.set_nonblocking(true).unwrap();
    let said = async || {
        eventually("systemd is told", async || {
            let mut text = [0; 256];
            let length = systemd.recv(&mut text).ok()?;
            Some(String::from_utf8(text[..length].to_vec()).unwrap())
        })
        .await
    };
    let mut old = gateway()
        .set("server.reload_on_change", json!(false))
        .set("server.shutdown_grace", json!("10m"))
        .set("logging.access", json!(false))
        .env("NOTIFY_SOCKET", notify.to_str().unwrap())
        .route(
            json!({ "name": "sleep", "match": { "path": "/sleep" }, "auth": "none",
            "execute": { "file": guest } }),
        )
        .start();
    assert_eq!(main_pid(&said().await), old.pid());
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let mut clients = Vec::new();
    for kept in [true, true, false] {
        let builder = old.client_builder();
        // Some keep their connections, and some make a new one for each request.
        let client = if kept {
            builder
        } else {
            builder.pool_max_idle_per_host(0)
        };
        let (client, url) = (client.build().unwrap(), old.url("/fn/hello"));
        let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
        clients.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let answer = client.get(&url).send().await.expect("no request fails");
                assert_eq!(answer.status(), 200);
                answer.bytes().await.expect("no answer is cut off");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    // A request that takes longer than the upgrade ends where it began.
    let long = tokio::spawn(old.client().get(old.url("/sleep")).send());
    old.guests_running(1).await;
    old.edit(|config| config["headers"]["set"]["X-Generation"] = json!("2"));
    old.signal("USR2");
    let new = Orphan(main_pid(&said().await));
    assert_ne!(new.0, old.pid());
    assert_eq!(old.wait().code(), Some(0), "{}", old.stderr());
    let long = long.await.unwrap().expect("the long request is answered");
    assert!(long.headers().get("x-generation").is_none());
    assert_eq!(long.text().await.unwrap(), "done");
    let before = answered.load(Ordering::Relaxed);
    eventually("the new process answers", async || {
        (answered.load(Ordering::Relaxed) > before + 10).then_some(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let answer = old.client().get(old.url("/fn/hello")).send().await.unwrap();
    assert_eq!(answer.headers()["x-generation"], "2");
    // And the new one can be followed by another.
    let again = std::process::Command::new("kill")
        .args(["-USR2", &new.0.to_string()])
        .status();
    assert!(again.unwrap().success());
    let third = Orphan(main_pid(&said().await));
    eventually("the second process has ended", async || {
        (!std::path::Path::new(&format!("/proc/{}/exe", new.0)).exists()).then_some(())
    })
    .await;
    let answer = old.client().get(old.url("/fn/hello")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    // Both processes recorded what they executed, once each, and the old ones left nothing behind.
    let executed = answered.load(Ordering::Relaxed) + 3;
    let database = format!("sqlite://{}/data/wasm-wizard.db", old.dir().display());
    eventually("all executions are recorded", async || {
        let mut connection = sqlx::SqliteConnection::connect(&database).await.ok()?;
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM usage WHERE status = 'success'");
        let count: i64 = count.fetch_one(&mut connection).await.ok()?;
        assert!(
            count <= executed as i64,
            "{count} rows, {executed} executions"
        );
        (count == executed as i64).then_some(())
    })
    .await;
    let journals = std::fs::read_dir(old.dir().join("data/usage")).unwrap();
    assert_eq!(journals.count(), 1);
    std::mem::forget(new);
    drop(third);
}

#[tokio::test]
async fn a_new_process_that_fails_changes_nothing() {
    let gateway = gateway()
        .set("server.reload_on_change", json!(false))
        .start();
    gateway.edit(|config| {
        config["routes"] = json!([{ "name": "x", "match": { "path": "/x" }, "auth": "none",
            "execute": { "file": "missing.wasm" } }]);
    });
    gateway.signal("USR2");
    eventually("it says so", async || {
        gateway
            .stderr()
            .contains("the new process ended; this one goes on")
            .then_some(())
    })
    .await;
    assert!(gateway.stderr().contains("did not take over"));
    let answer = gateway
        .client()
        .get(gateway.url("/fn/hello"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let health = gateway
        .client()
        .get(gateway.url("/health/ready"))
        .send()
        .await
        .unwrap();
    assert_eq!(health.status(), 200);
}

#[test]
fn without_a_running_gateway_an_upgrade_is_refused() {
    let dir = crate::support::gateway::workdir();
    let file = dir.path().join("c.yaml");
    let (a, b, c) = (
        crate::support::free_port(),
        crate::support::free_port(),
        crate::support::free_port(),
    );
    let text = format!(
        "server:\n  https: [{{ address: '127.0.0.1:{a}', certificates: [{{ cert: d.crt, key: d.key, development: true }}] }}]\n  http: [{{ address: '127.0.0.1:{b}' }}]\n  admin: {{ address: '127.0.0.1:{c}' }}\n"
    );
    std::fs::write(&file, text).unwrap();
    let out = crate::support::gateway::run(
        dir.path(),
        &["serve", "--upgrade", "--config", "c.yaml"],
        &[],
    );
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("no running gateway answers at data/upgrade.sock"),
        "{stderr}"
    );
}

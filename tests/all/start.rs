//! Starting on the defaults, starting again, and refusing to start.

use std::os::unix::fs::PermissionsExt;

use crate::support::gateway::{gateway, run, workdir};

#[tokio::test]
async fn the_first_start_makes_everything_and_the_second_makes_nothing() {
    let mut first = gateway().start();
    let key = first.admin_key();
    assert!(key.starts_with("ww_") && key.len() == 46, "{key}");
    assert!(
        !first.stderr().contains(&key),
        "a key must never be in the log"
    );
    assert!(first.dir().join("data/wasm-wizard.db").exists());
    let mode = |path: &str| {
        std::fs::metadata(first.dir().join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode("certs/development.key"), 0o600);
    assert_eq!(mode("data/wasm-wizard.db"), 0o600);
    let list = |key: String| {
        let request = first
            .client()
            .get(first.url("/api/wasm/modules"))
            .bearer_auth(key);
        async move { request.send().await.unwrap().status() }
    };
    assert_eq!(list(key.clone()).await, 200);
    first.terminate();
    assert!(first.wait().success());

    let second = gateway().in_dir_of(&first).start();
    assert!(!second.stdout().contains("ww_"), "{}", second.stdout());
    let answer = second
        .client()
        .get(second.url("/api/wasm/modules"))
        .bearer_auth(key)
        .send()
        .await
        .unwrap();
    assert_eq!(
        answer.status(),
        200,
        "the first start's key goes on working"
    );
}

#[tokio::test]
async fn both_http_versions_are_offered() {
    let gateway = gateway().start();
    let answer = gateway
        .client()
        .get(gateway.url("/health"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    let old = gateway.client_builder().http1_only().build().unwrap();
    let answer = old.get(gateway.url("/health")).send().await.unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_11);
    assert_eq!(answer.status(), 200);
}

#[test]
fn production_names_everything_that_is_unsafe() {
    let dir = workdir();
    let out = run(dir.path(), &["serve"], &[("ENVIRONMENT", "production")]);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stderr).unwrap();
    for must in ["TLS_CERT_PATH", "API_SALT", "JWT_SECRET", "DATABASE_URL"] {
        assert!(text.contains(must), "{must} is not named:\n{text}");
    }
    assert!(
        !dir.path().join("data").exists(),
        "nothing is made by a refused start"
    );
    assert!(!dir.path().join("certs").exists());
}

#[test]
fn an_unknown_environment_is_an_error() {
    let dir = workdir();
    let out = run(dir.path(), &["serve"], &[("ENVIRONMENT", "prod")]);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stderr).unwrap();
    assert!(
        text.contains("ENVIRONMENT") && text.contains("production"),
        "{text}"
    );
}

#[test]
fn a_taken_port_is_said_plainly() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = workdir();
    let env = [("SERVER_HOST", "127.0.0.1"), ("SERVER_PORT", port.as_str())];
    let out = run(dir.path(), &["serve"], &env);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stderr).unwrap();
    assert!(
        text.contains(&format!("can't listen on 127.0.0.1:{port}")),
        "{text}"
    );
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn help_teaches_and_bad_usage_exits_2() {
    let dir = workdir();
    let help = run(dir.path(), &["--help"], &[]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    for command in [
        "serve",
        "check",
        "migrate",
        "exec",
        "keys",
        "modules",
        "Examples:",
    ] {
        assert!(text.contains(command), "{text}");
    }
    assert!(!text.contains("compile-worker"), "{text}");
    assert_eq!(run(dir.path(), &["serv"], &[]).status.code(), Some(2));
}

#[test]
fn migrate_works_as_a_command_and_as_a_flag() {
    let dir = workdir();
    for args in [["migrate"], ["--migrate"]] {
        let out = run(dir.path(), &args, &[]);
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        assert!(
            String::from_utf8(out.stdout)
                .unwrap()
                .starts_with("schema version ")
        );
    }
}

#[test]
fn migrate_check_says_whether_the_program_could_serve_and_changes_nothing() {
    let dir = workdir();
    let check = || {
        let out = run(dir.path(), &["migrate", "--check"], &[]);
        let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
        (out.status.code(), said.into_owned())
    };
    let lacks = |what: &str| {
        for _ in 0..2 {
            let (code, said) = check();
            assert!(code == Some(1) && said.contains(what), "{said}");
        }
    };
    lacks("there is no database");
    assert!(!dir.path().join("data").exists());
    // One that nobody has migrated.
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(dir.path().join("data/wasm-wizard.db"), "").unwrap();
    lacks("the database lacks");
    assert!(run(dir.path(), &["migrate"], &[]).status.success());
    let (code, said) = check();
    assert!(
        code == Some(0) && said.contains("can serve on this database"),
        "{said}"
    );
}

#[test]
fn a_command_that_finds_no_database_says_that_it_made_one() {
    let dir = workdir();
    for made in [true, false] {
        let out = run(dir.path(), &["keys", "list"], &[]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{said}");
        assert_eq!(said.contains("made a new database"), made, "{said}");
    }
}

#[test]
fn exec_runs_a_guest_without_a_server() {
    let dir = workdir();
    let out = run(
        dir.path(),
        &["exec", "examples/guests/echo.wasm", "--input", "hello"],
        &[],
    );
    assert_eq!(String::from_utf8_lossy(&out.stdout), "hello");
    assert_eq!(out.status.code(), Some(0));
    let report = String::from_utf8(out.stderr).unwrap();
    assert!(report.contains("[exit code 0; wall "), "{report}");

    let out = run(
        dir.path(),
        &["exec", "examples/guests/sum.wasm", "--input", "1 x"],
        &[],
    );
    assert_eq!(out.status.code(), Some(1), "the guest's exit code is ours");
    std::fs::write(
        dir.path().join("spin.wat"),
        r#"(module (func (export "_start") (loop (br 0))))"#,
    )
    .unwrap();
    let out = run(dir.path(), &["exec", "spin.wat", "--timeout", "100ms"], &[]);
    assert_eq!(out.status.code(), Some(124));
    let out = run(dir.path(), &["exec", "missing.wasm"], &[]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("missing.wasm"));
}

//! Files for guests, from the configuration and the command line to what a client reads.

use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::gateway::{gateway, run};
use crate::support::root;

fn tree() -> tempfile::TempDir {
    let tree = tempfile::tempdir().unwrap();
    std::fs::create_dir(tree.path().join("more")).unwrap();
    std::fs::write(tree.path().join("words.txt"), "abracadabra\n").unwrap();
    std::fs::write(tree.path().join("more/deep.txt"), "deep\n").unwrap();
    tree
}

#[tokio::test]
async fn a_routes_guests_read_its_files_as_they_were_at_start() {
    let tree = tree();
    let route = |name: &str, files: Option<&std::path::Path>| {
        let mut execute = json!({ "file": "examples/guests/files.wasm" });
        if let Some(files) = files {
            execute["files"] = json!(files);
        }
        json!({ "name": name, "match": { "path": format!("/{name}") }, "auth": "none",
            "execute": execute })
    };
    let gateway = gateway()
        .route(route("one", Some(tree.path())))
        .route(route("other", Some(tree.path())))
        .route(route("without", None))
        .start();
    std::fs::write(tree.path().join("words.txt"), "changed\n").unwrap();
    let client = gateway.client();
    for (path, asked, status, says) in [
        ("/one", "/words.txt", 200, "abracadabra\n"),
        ("/other", "more/deep.txt", 200, "deep\n"),
        ("/one", "/", 200, "       0 more/\n      12 words.txt\n"),
        ("/one", "/../../../../etc/passwd", 422, "exited with code 1"),
        ("/one", "/etc/passwd", 422, "exited with code 1"),
        ("/without", "/words.txt", 422, "exited with code 1"),
    ] {
        let answer = client.post(gateway.url(path)).body(asked).send();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path} {asked}");
        let text = answer.text().await.unwrap();
        assert!(text.contains(says), "{path} {asked}: {text}");
    }
}

#[test]
fn a_directory_that_can_not_be_read_stops_the_start() {
    let tree = tree();
    std::os::unix::fs::symlink("/etc/passwd", tree.path().join("more/link")).unwrap();
    let config = json!({ "server": { "http": [], "admin": { "address": "127.0.0.1:0" } }, "routes": [{ "name": "files", "match": { "path": "/files" },
        "execute": { "file": root().join("examples/guests/files.wasm"), "files": tree.path() } }] });
    let file = tree.path().join("config.yaml");
    std::fs::write(&file, serde_yaml::to_string(&config).unwrap()).unwrap();
    let name = file.to_str().unwrap();
    let check = run(tree.path(), &["check", "--config", name], &[]);
    let text = String::from_utf8_lossy(&check.stdout);
    assert!(!check.status.success());
    assert!(
        text.contains("routes[0].execute.files") && text.contains("more/link: is a link"),
        "{text}"
    );
    let serve = run(
        tree.path(),
        &["serve", "--config", name],
        &[("SERVER_PORT", "0")],
    );
    let text = String::from_utf8_lossy(&serve.stderr);
    assert!(!serve.status.success());
    assert!(text.contains("more/link: is a link"), "{text}");
}

#[test]
fn exec_gives_a_guest_files() {
    let tree = tree();
    let exec = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_wasm-wizard"))
            .current_dir(root())
            .args(["exec", "examples/guests/files.wasm"])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let files = tree.path().to_str().unwrap();
    let shown = exec(&["--files", files, "--input", "/words.txt"]);
    assert_eq!(String::from_utf8_lossy(&shown.stdout), "abracadabra\n");
    assert!(shown.status.success());
    let missing = exec(&["--files", "/no/such/directory", "--input", "/"]);
    let text = String::from_utf8_lossy(&missing.stderr);
    assert!(
        !missing.status.success() && text.contains("/no/such/directory: No such file"),
        "{text}"
    );
}

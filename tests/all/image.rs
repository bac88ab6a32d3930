//! The container image: what can be said of it without building it, and the program in the very tree of
//! files that it consists of.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{eventually, free_port, program, root, succeed, tool};

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_dockerfile_passes_hadolint() {
    succeed(tool("hadolint").args(["--failure-threshold", "info", "Dockerfile"]));
}

/// The sources that the Dockerfile copies from the directory it is built in.
fn copied() -> Vec<String> {
    let mut found = Vec::new();
    for line in read("Dockerfile").lines() {
        let Some(rest) = line.strip_prefix("COPY ") else {
            continue;
        };
        if rest.contains("--from=") {
            continue;
        }
        let words: Vec<_> = rest.split_whitespace().collect();
        let (_, sources) = words.split_last().unwrap();
        found.extend(sources.iter().map(|source| (*source).to_owned()));
    }
    assert!(!found.is_empty());
    found
}

#[test]
fn all_that_is_copied_is_there_and_let_in_and_nothing_else_is() {
    let ignored = read(".dockerignore");
    let mut lines = ignored.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next(), Some("*"), "nothing is let in by default");
    let let_in: Vec<_> = lines.map(|line| line.strip_prefix('!').unwrap()).collect();
    for source in copied() {
        assert!(root().join(&source).exists(), "{source}");
        let first = source.split('/').next().unwrap();
        assert!(let_in.contains(&first), ".dockerignore keeps {source} out");
    }
    for name in let_in {
        let uses = copied().iter().any(|s| s.split('/').next() == Some(name));
        assert!(uses, "{name} is let in for nothing");
    }
}

/// What is compiled in must be copied before it is compiled.
#[test]
fn all_that_is_compiled_in_is_copied() {
    let mut stack = vec![root().join("src")];
    while let Some(path) = stack.pop() {
        if path.is_dir() {
            stack.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        // Unit tests are not part of the program.
        if path.iter().any(|part| part == "tests") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (at, mark) in text.match_indices("include_str!(\"") {
            let name = text[at + mark.len()..].split('"').next().unwrap();
            let included = path.parent().unwrap().join(name).canonicalize().unwrap();
            let included = included.strip_prefix(root()).unwrap();
            let is_copied = copied().iter().any(|source| included.starts_with(source));
            assert!(is_copied, "{} includes {name}", path.display());
        }
    }
}

/// The first build has a stub for every target of Cargo.toml; one too few fails only in the image.
#[test]
fn stubs_stand_in_for_every_source() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["Cargo.toml", "Cargo.lock", "build.rs"] {
        std::fs::copy(root().join(file), dir.path().join(file)).unwrap();
    }
    succeed(Command::new(root().join("docker/stubs.sh")).arg(dir.path()));
    let metadata = succeed(
        Command::new(env!("CARGO"))
            .args(["metadata", "--offline", "--locked", "--no-deps"])
            .args(["--format-version", "1"])
            .current_dir(dir.path()),
    );
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    for target in metadata["packages"][0]["targets"].as_array().unwrap() {
        let source = target["src_path"].as_str().unwrap();
        assert!(Path::new(source).exists(), "{source}");
    }
}

/// The image's root, laid out by the script that the Dockerfile runs, with a configuration on free ports.
struct Image {
    dir: tempfile::TempDir,
    admin: u16,
}

impl Image {
    fn lay_out() -> Image {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("root");
        succeed(
            Command::new(root().join("docker/root.sh"))
                .arg(env!("CARGO_BIN_EXE_wasm-wizard"))
                .arg(&tree),
        );
        // Where the image has a file of its own to mount over.
        std::fs::write(tree.join("etc/wasm-wizard/wasm-wizard.yaml"), "").unwrap();
        std::fs::create_dir(tree.join("mnt")).unwrap();
        for name in ["data", "tls"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let admin = free_port();
        let config = read("conf/container/wasm-wizard.yaml")
            .replace(":8443", &format!(":{}", free_port()))
            .replace(":8080", &format!(":{}", free_port()))
            .replace(":9091", &format!(":{admin}"));
        std::fs::write(dir.path().join("config.yaml"), config).unwrap();
        Image { dir, admin }
    }

    /// As Compose and Kubernetes run it: nothing of the root can be written to, no capability, not root, the
    /// first process of its namespace.
    fn command(&self) -> Command {
        let path = |name: &str| self.dir.path().join(name);
        let mut command = program("bwrap", "bubblewrap");
        command.env_clear();
        command.args([
            "--unshare-all",
            "--share-net",
            "--as-pid-1",
            "--die-with-parent",
        ]);
        command.args(["--uid", "65532", "--gid", "65532", "--cap-drop", "ALL"]);
        command.arg("--ro-bind").arg(path("root")).arg("/");
        command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
        command.arg("--ro-bind").arg(path("tls")).arg("/etc/tls");
        let config = "/etc/wasm-wizard/wasm-wizard.yaml";
        command
            .arg("--ro-bind")
            .arg(path("config.yaml"))
            .arg(config);
        command
            .arg("--bind")
            .arg(path("data"))
            .arg("/var/lib/wasm-wizard");
        command
            .arg("--ro-bind")
            .arg(root().join("examples/guests"))
            .arg("/mnt");
        command.args(["--chdir", "/var/lib/wasm-wizard", "/usr/bin/wasm-wizard"]);
        command
    }
}

/// The profile of what ships, and what the image says of itself and runs as.
#[test]
fn what_ships_is_optimised_and_runs_as_nobody() {
    let manifest = read("Cargo.toml");
    let (_, release) = manifest.split_once("[profile.release]\n").unwrap();
    let (release, _) = release.split_once("\n\n").unwrap();
    let settings: Vec<&str> = release.lines().collect();
    // No `panic`: it stays `unwind`.
    let expected = [
        "opt-level = 3",
        "lto = true",
        "codegen-units = 1",
        "strip = \"symbols\"",
    ];
    assert_eq!(settings, expected);
    let dockerfile = read("Dockerfile");
    let (_, last) = dockerfile.rsplit_once("\nFROM ").unwrap();
    assert!(last.starts_with("scratch\n") && !last.contains("\nRUN "));
    assert!(last.contains("\nUSER 65532:65532\n"));
    for label in ["title", "description", "licenses", "version", "revision"] {
        let label = format!("org.opencontainers.image.{label}=");
        assert!(last.contains(&label), "{label}");
    }
}

/// What the image may have.
const BYTES_MAX: u64 = 120_000_000;

/// Where Docker is, the image itself is weighed: a release that is too large is none.
#[test]
fn a_release_is_held_to_the_size_of_its_image() {
    let workflow: serde_json::Value =
        serde_yaml::from_str(&read(".github/workflows/release.yml")).unwrap();
    let steps = workflow["jobs"]["image"]["steps"].as_array().unwrap();
    let runs = |step: &serde_json::Value, what: &str| {
        let run = step["run"].as_str();
        run.is_some_and(|run| run.contains(what))
    };
    let gate = format!(
        "test \"$(docker image inspect --format '{{{{.Size}}}}' wasm-wizard:release)\" -lt {BYTES_MAX}\n"
    );
    let weighed = steps.iter().position(|step| runs(step, &gate));
    let pushed = steps.iter().position(|step| runs(step, "docker push"));
    assert!(weighed.is_some() && weighed < pushed, "{gate}");
    let needs = &workflow["jobs"]["publish"]["needs"];
    assert!(needs.as_array().unwrap().contains(&"image".into()));
}

/// Without symbols, as what ships; the tests' profile leaves more code in it than that of releases.
#[test]
fn the_image_is_small() {
    let dir = tempfile::tempdir().unwrap();
    let stripped = dir.path().join("wasm-wizard");
    succeed(
        program("strip", "binutils")
            .arg("-o")
            .arg(&stripped)
            .arg(env!("CARGO_BIN_EXE_wasm-wizard")),
    );
    let tree = dir.path().join("root");
    succeed(
        Command::new(root().join("docker/root.sh"))
            .arg(&stripped)
            .arg(&tree),
    );
    let programs = std::fs::read_dir(tree.join("usr/bin")).unwrap().count();
    assert!(programs == 1 && !tree.join("bin").exists(), "no shell");
    let mut bytes = 0;
    let mut stack = vec![tree];
    while let Some(path) = stack.pop() {
        if path.is_dir() {
            stack.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else {
            bytes += path.symlink_metadata().unwrap().len();
        }
    }
    assert!(bytes < BYTES_MAX, "{bytes} bytes");
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A certificate for `localhost`, as an operator would put it there.
fn certificate(dir: &Path) {
    succeed(
        program("openssl", "openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
            .args(["ec_paramgen_curve:P-256", "-nodes", "-days", "90"])
            .args([
                "-subj",
                "/CN=gateway",
                "-addext",
                "subjectAltName=DNS:gateway.test",
            ])
            .arg("-keyout")
            .arg(dir.join("tls.key"))
            .arg("-out")
            .arg(dir.join("tls.crt")),
    );
}

#[tokio::test]
async fn the_program_runs_in_the_tree_of_the_image() {
    let image = Image::lay_out();
    certificate(&image.dir.path().join("tls"));
    // Compile workers are processes of the same program, which must find it, and its libraries.
    let hello = ["exec", "/mnt/echo.wasm", "--input", "hello"];
    let printed = succeed(
        image
            .command()
            .args(hello)
            .env("ENVIRONMENT", "development"),
    );
    assert_eq!(printed, "hello");

    let mut server = crate::support::postgres::Server::start_new().await;
    let url = server.database().await;
    std::fs::write(image.dir.path().join("tls/database_url"), url).unwrap();
    std::fs::write(
        image.dir.path().join("tls/api_salt"),
        "5f0c2e9b7a1d4386e8f5b0c7d2a94163",
    )
    .unwrap();
    std::fs::write(
        image.dir.path().join("tls/jwt_secret"),
        "94d1a7e06c3b5f2208b7ce914fa3d685",
    )
    .unwrap();
    let with_secrets = |mut command: Command| {
        command
            .env("JWT_SECRET_FILE", "/etc/tls/jwt_secret")
            .env("DATABASE_URL_FILE", "/etc/tls/database_url")
            .env("API_SALT_FILE", "/etc/tls/api_salt");
        command
    };
    let config = ["--config", "/etc/wasm-wizard/wasm-wizard.yaml"];
    succeed(with_secrets(image.command()).arg("migrate").args(config));
    let stderr = std::fs::File::create(image.dir.path().join("log")).unwrap();
    let running = with_secrets(image.command())
        .arg("serve")
        .args(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let mut running = Running(running);
    let log = image.dir.path().join("log");
    let log = || std::fs::read_to_string(&log).unwrap();
    let url = format!("http://127.0.0.1:{}", image.admin);
    // The check of its health, as in the image: no shell, no curl.
    let health = || image.command().args(["health", &url]).output().unwrap();
    eventually("the gateway of the image is healthy", async || {
        (health().status.code() == Some(0) || log().contains("error:")).then_some(())
    })
    .await;
    assert!(
        running.0.try_wait().unwrap().is_none(),
        "it ended:\n{}",
        log()
    );
    let said = String::from_utf8(health().stdout).unwrap();
    assert!(said.contains("\"status\":\"ready\""), "{said}");
    server.stop();
    eventually("the check fails", async || {
        (health().status.code() == Some(1)).then_some(())
    })
    .await;
}

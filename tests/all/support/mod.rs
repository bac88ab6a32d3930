//! What the tests stand on: real servers, real clients, real guests.

pub mod accounts;
pub mod gateway;
pub mod postgres;
pub mod recorder;
pub mod redis;
pub mod upstream;

use std::future::Future;
use std::time::{Duration, Instant};

/// Longest wait for anything that must happen at all. A test never says how soon: the machine that
/// runs it may be slow, and runs others beside it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Polls until `check` gives a value; panics with `what` when [`PATIENCE`] is over. Tests never
/// sleep to wait for a fixed time.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "did not happen within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// The repository's root.
pub fn root() -> &'static std::path::Path {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A checking program that `scripts/tools.sh` installs beside what cargo builds.
pub fn tool(name: &str) -> std::process::Command {
    let target = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = target.parent().unwrap().join("tools-venv/bin").join(name);
    assert!(
        program.exists(),
        "{} is missing; run: scripts/tools.sh",
        program.display()
    );
    let mut command = std::process::Command::new(program);
    command.current_dir(root());
    command
}

/// A program of a Debian package.
pub fn program(name: &str, package: &str) -> std::process::Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(name).exists());
    assert!(found, "{name} is missing; run: apt-get install {package}");
    let mut command = std::process::Command::new(name);
    command.current_dir(root());
    command
}

/// Runs it to its end; panics with what it said when it does not succeed.
pub fn succeed(command: &mut std::process::Command) -> String {
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

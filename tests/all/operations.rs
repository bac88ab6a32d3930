//! What operators run: the scripts, on a real gateway and real databases.

mod backup;
mod legacy;
mod owners;
mod rollback;
mod running;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::{eventually, postgres, root};

/// Runs a script to its end, in a directory, with these variables and no others.
pub fn script(directory: &Path, name: &str, arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_wasm-wizard"));
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", program.parent().unwrap().display());
    Command::new(root().join("scripts").join(name))
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("PATH", path)
        .env("LC_ALL", "C.UTF-8")
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// All that a script said.
pub fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// As [`script`], which must succeed.
pub fn succeeds(directory: &Path, name: &str, arguments: &[&str], env: &[(&str, &str)]) -> String {
    let output = script(directory, name, arguments, env);
    let said = said(&output);
    assert!(output.status.success(), "{name} {arguments:?}:\n{said}");
    said
}

/// As [`succeeds`], and again: the second time finds what the first left. What the second one said.
pub fn twice(directory: &Path, name: &str, arguments: &[&str], env: &[(&str, &str)]) -> String {
    succeeds(directory, name, arguments, env);
    succeeds(directory, name, arguments, env)
}

/// As [`script`], which must fail and say why.
pub fn fails(
    directory: &Path,
    name: &str,
    arguments: &[&str],
    env: &[(&str, &str)],
    why: &str,
) -> String {
    let output = script(directory, name, arguments, env);
    let said = said(&output);
    let code = output.status.code();
    assert!(code.is_some_and(|code| code != 0), "{name}:\n{said}");
    assert!(said.contains(why), "{name}: {why}:\n{said}");
    said
}

#[test]
fn every_script_explains_itself_and_refuses_what_it_does_not_know() {
    let directory = tempfile::tempdir().unwrap();
    for name in [
        "backup.sh",
        "check_api.sh",
        "collect-logs.sh",
        "generate_secrets.sh",
        "import_legacy.sh",
        "load_test.sh",
        "pitr.sh",
        "pitr_drill.sh",
        "production-validation.sh",
        "restore.sh",
        "rollback.sh",
        "smoke_test.sh",
    ] {
        let help = succeeds(directory.path(), name, &["--help"], &[]);
        assert!(
            help.starts_with(&format!("Usage: scripts/{name}")),
            "{help}"
        );
        let output = script(directory.path(), name, &["--no-such-thing"], &[]);
        assert_eq!(output.status.code(), Some(2), "{name}: {}", said(&output));
    }
    let left = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(left, 0, "help changes nothing");
}

#[test]
fn secrets_are_made_once_and_shown_to_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let read = || {
        let mut files: Vec<(String, String)> = fs::read_dir(directory.path().join("secrets"))
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let mode = entry.metadata().unwrap().permissions().mode();
                let name = entry.file_name().into_string().unwrap();
                assert_eq!(mode & 0o777, 0o600, "{name}");
                (name, fs::read_to_string(entry.path()).unwrap())
            })
            .collect();
        files.sort();
        files
    };
    let first = succeeds(directory.path(), "generate_secrets.sh", &[], &[]);
    let made = read();
    let mode = fs::metadata(directory.path().join("secrets")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o700);
    let value = |name: &str| {
        let found = made.iter().find(|(file, _)| file == name);
        found
            .unwrap_or_else(|| panic!("{name} was not made"))
            .1
            .as_str()
    };
    for name in [
        "api_salt",
        "jwt_secret",
        "artifact_key",
        "postgres_password",
        "backup_key",
    ] {
        assert_eq!(value(name).len(), 64, "{name}");
    }
    assert!(value("database_url").contains(value("database_password")));
    assert!(value("database_owner_url").contains(value("database_owner_password")));
    let second = succeeds(directory.path(), "generate_secrets.sh", &[], &[]);
    assert_eq!(read(), made, "what is there stays");
    for (name, value) in made.iter().filter(|(_, value)| !value.is_empty()) {
        assert!(!first.contains(value) && !second.contains(value), "{name}");
    }
    // What was opened up by mistake is closed again.
    let salt = directory.path().join("secrets/api_salt");
    fs::set_permissions(&salt, fs::Permissions::from_mode(0o644)).unwrap();
    succeeds(directory.path(), "generate_secrets.sh", &[], &[]);
    assert_eq!(read(), made);
}

#[tokio::test]
async fn base_backups_are_made_again_and_a_restore_overwrites_nothing() {
    let server = postgres::Server::start_new().await;
    let directory = tempfile::tempdir().unwrap();
    let (to, data) = (directory.path().join("base"), directory.path().join("data"));
    let (to, data) = (to.to_str().unwrap(), data.to_str().unwrap());
    let url = server.url();
    let env = [("DATABASE_URL", url.as_str())];
    let base = ["base", "--to", to, "--keep", "1"];
    // Of the same second or not, there is one then, and it is whole.
    let mut said = succeeds(directory.path(), "pitr.sh", &base, &env);
    said += &eventually("a second base backup", async || {
        let output = script(directory.path(), "pitr.sh", &base, &env);
        let is_of_the_same_second = self::said(&output).contains("of this second already");
        (!is_of_the_same_second).then(|| self::said(&output))
    })
    .await;
    assert_eq!(said.matches("made and verified").count(), 2, "{said}");
    let names = || {
        let entries = fs::read_dir(to).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let there = names();
    assert!(there.len() == 2 && there[0] == ".lock", "{there:?}");
    let restore = ["restore", "--from", to, "--archive", to, "--data", data];
    succeeds(directory.path(), "pitr.sh", &restore, &[]);
    fails(directory.path(), "pitr.sh", &restore, &[], "is not empty");
    assert_eq!(names(), there);
}

#[test]
fn a_lost_database_comes_back_to_a_point_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let said = succeeds(
        directory.path(),
        "pitr_drill.sh",
        &["--seconds", "5", "--archive-timeout", "1"],
        &[],
    );
    assert!(said.contains("without a gap"), "{said}");
    assert!(said.contains("RPO: ") && said.contains("RTO: "), "{said}");
}

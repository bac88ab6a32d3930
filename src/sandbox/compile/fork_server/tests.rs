//! The fork server: this test's own program, whose workers are shell scripts.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::{Forks, WORKERS_MAX};
use crate::sandbox::CompileSettings;
use crate::sandbox::worker::serve_forks;

/// Where the script is that workers run.
const SCRIPT: &str = "WASM_WIZARD_TEST_SCRIPT";

/// A program that is a fork server in `folder`, whose workers do what the lines say.
pub(in crate::sandbox::compile) fn server_of(folder: &Path, lines: &str) -> PathBuf {
    let script = folder.join("script");
    let program = folder.join("server");
    fs::write(&script, lines).unwrap();
    let own = env::current_exe().unwrap();
    let test = "sandbox::compile::fork_server::tests::server";
    let text = format!(
        "#!/bin/sh\nexport {SCRIPT}={}\nexec {} --exact {test}\n",
        script.display(),
        own.display()
    );
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// Not a test by itself: what [`server_of`] runs.
#[test]
fn server() {
    let Ok(script) = env::var(SCRIPT) else {
        return;
    };
    let control = io::stdin().as_fd().try_clone_to_owned().unwrap();
    if serve_forks(control.into()).unwrap() {
        let error = Command::new("/bin/sh").arg(script).exec();
        panic!("{error}");
    }
}

struct Server {
    folder: TempDir,
    forks: Forks,
}

fn forks(lines: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let settings = CompileSettings {
        worker: server_of(folder.path(), lines),
        workers_max: 1,
        workers_spare: 0,
        queue_max: 0,
        queue_timeout: Duration::from_secs(300),
        singlepass: true,
        timeout: Duration::from_secs(300),
        memory_bytes_max: 1 << 30,
    };
    Server {
        folder,
        forks: Forks::new(settings),
    }
}

impl Server {
    fn pid(&self) -> u32 {
        self.forks.server.as_ref().unwrap().process.id()
    }
}

#[test]
fn workers_are_children_of_the_one_who_asks() {
    let mut server = forks("cat; exit 7");
    let mut workers: Vec<_> = (0..3).map(|_| server.forks.fork().unwrap()).collect();
    for (process, ..) in &workers {
        let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
        let own = format!("PPid:\t{}\n", std::process::id());
        assert!(status.contains(&own), "{status}");
    }
    for (number, (process, stdin, stdout)) in workers.iter_mut().enumerate() {
        assert!(process.try_wait().unwrap().is_none());
        let said = format!("{number}");
        stdin.write_all(said.as_bytes()).unwrap();
        let mut heard = vec![0; said.len()];
        stdout.read_exact(&mut heard).unwrap();
        assert_eq!(heard, said.as_bytes());
    }
    let (mut process, stdin, _stdout) = workers.pop().unwrap();
    drop(stdin);
    assert_eq!(process.wait().unwrap().code(), Some(7));
    // Once more, for one that is reaped.
    assert_eq!(process.try_wait().unwrap().unwrap().code(), Some(7));
    process.kill().unwrap();
    let (mut process, ..) = workers.pop().unwrap();
    process.kill().unwrap();
    assert_eq!(process.wait().unwrap().signal(), Some(libc::SIGKILL));
    let (process, ..) = workers.pop().unwrap();
    let own = PathBuf::from(format!("/proc/{}", process.id()));
    assert!(own.exists());
    drop(process);
    assert!(!own.exists());
}

#[test]
fn a_worker_has_its_pipes_and_nothing_of_the_server() {
    let mut server = forks("ls -l /proc/$$/fd");
    let (mut process, _stdin, mut stdout) = server.forks.fork().unwrap();
    let mut listed = String::new();
    stdout.read_to_string(&mut listed).unwrap();
    assert!(process.wait().unwrap().success());
    let begins = |start: &str| listed.lines().any(|line| line.contains(start));
    assert!(begins(" 0 -> pipe:") && begins(" 1 -> pipe:"), "{listed}");
    assert!(!listed.contains("socket:"), "{listed}");
}

#[test]
fn a_server_that_is_gone_is_replaced() {
    let mut server = forks("exec cat");
    let (mut first, _stdin, _stdout) = server.forks.fork().unwrap();
    let pid = server.pid();
    server
        .forks
        .server
        .as_mut()
        .unwrap()
        .process
        .kill()
        .unwrap();
    let (mut second, _other_stdin, _other_stdout) = server.forks.fork().unwrap();
    assert_ne!(server.pid(), pid);
    // Its workers are none of its children, and go on.
    assert!(first.try_wait().unwrap().is_none());
    assert!(second.try_wait().unwrap().is_none());
}

#[test]
fn a_server_is_renewed_after_some_workers() {
    let mut server = forks("exec cat");
    drop(server.forks.fork().unwrap());
    let first = server.pid();
    server.forks.server.as_mut().unwrap().workers = WORKERS_MAX - 1;
    drop(server.forks.fork().unwrap());
    assert_eq!(server.pid(), first);
    drop(server.forks.fork().unwrap());
    assert_ne!(server.pid(), first);
    assert!(!Path::new(&format!("/proc/{first}")).exists());
}

#[test]
fn a_server_that_answers_nonsense_or_nothing_is_an_error() {
    for program in ["#!/bin/sh\nexit 0\n", "#!/bin/sh\necho x >&0\n"] {
        let mut server = forks("");
        fs::write(server.folder.path().join("server"), program).unwrap();
        assert!(server.forks.fork().is_err(), "{program}");
        assert!(server.forks.server.is_none());
    }
}

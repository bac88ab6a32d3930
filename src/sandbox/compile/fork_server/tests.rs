//! The fork server: this test's own program, whose workers are shell scripts.

#![expect(unsafe_code, reason = "forks, into processes that become shells")]

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Forks, REPLY_TIMEOUT, WORKERS_MAX};
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
    // SAFETY: as it must be.
    if unsafe { serve_forks(control.into()) }.unwrap() {
        if fs::read_to_string(&script).unwrap() == LIST {
            list_open();
        }
        let error = Command::new("/bin/sh").arg(script).exec();
        panic!("{error}");
    }
}

/// For a worker that lists what it has open, and ends.
const LIST: &str = "list";

/// What the other thread has open is as good as nothing: it waits for this one.
fn list_open() -> ! {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    for entry in open {
        if let Ok(what) = fs::read_link(entry.path()) {
            let line = format!("{} -> {}\n", entry.file_name().display(), what.display());
            rustix::io::write(rustix::stdio::stdout(), line.as_bytes()).unwrap();
        }
    }
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
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

/// One that has forked a worker, with its id.
fn running() -> (Server, u32) {
    let mut server = forks("exec cat");
    drop(server.forks.fork(&|| false).unwrap());
    let pid = server.pid();
    (server, pid)
}

impl Server {
    /// Has it fork until another has taken its place. Nothing fails meanwhile.
    fn is_renewed(&mut self, first: u32) {
        let deadline = Instant::now() + Duration::from_secs(300);
        while self.pid() == first {
            assert!(Instant::now() < deadline, "it is never renewed");
            let (mut worker, _stdin, _stdout) = self.forks.fork(&|| false).unwrap();
            assert!(worker.try_wait().unwrap().is_none());
        }
    }

    fn pid(&self) -> u32 {
        self.forks.server.as_ref().unwrap().process.id()
    }
}

#[test]
fn workers_are_children_of_the_one_who_asks() {
    let mut server = forks("cat; exit 7");
    let mut workers: Vec<_> = (0..3)
        .map(|_| server.forks.fork(&|| false).unwrap())
        .collect();
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
    let (mut process, _stdin, _stdout) = workers.pop().unwrap();
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
    let mut server = forks(LIST);
    let (mut process, _stdin, mut stdout) = server.forks.fork(&|| false).unwrap();
    let mut listed = String::new();
    stdout.read_to_string(&mut listed).unwrap();
    assert!(process.wait().unwrap().success());
    let begins = |start: &str| listed.lines().any(|line| line.starts_with(start));
    assert!(begins("0 -> pipe:") && begins("1 -> pipe:"), "{listed}");
    // The real server has closed all of its parent's.
    assert!(!listed.contains("socket:"), "{listed}");
}

#[test]
fn a_server_whose_worker_crashed_is_renewed() {
    let (mut server, first) = running();
    server.forks.has_crashed().store(true, Ordering::Relaxed);
    server.is_renewed(first);
    let second = server.pid();
    for _ in 0..10 {
        drop(server.forks.fork(&|| false).unwrap());
        assert_eq!(server.pid(), second);
    }
}

/// A worker's pipe hangs up with it, also when the server stands still.
#[test]
fn a_server_that_stands_still_does_not_hold_a_workers_pipes() {
    let mut server = forks("exec cat");
    for _ in 0..100 {
        let (worker, stdin, mut stdout) = server.forks.fork(&|| false).unwrap();
        signal(server.pid(), rustix::process::Signal::STOP);
        drop(stdin);
        // Waits for ever if somebody else has it.
        assert_eq!(stdout.read(&mut [0; 8]).unwrap(), 0);
        drop(worker);
        signal(server.pid(), rustix::process::Signal::CONT);
    }
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn a_server_that_is_gone_is_replaced() {
    let mut server = forks("exec cat");
    let (mut first, _stdin, _stdout) = server.forks.fork(&|| false).unwrap();
    let pid = server.pid();
    server
        .forks
        .server
        .as_mut()
        .unwrap()
        .process
        .kill()
        .unwrap();
    let (mut second, _other_stdin, _other_stdout) = server.forks.fork(&|| false).unwrap();
    assert_ne!(server.pid(), pid);
    // Its workers are none of its children, and go on.
    assert!(first.try_wait().unwrap().is_none());
    assert!(second.try_wait().unwrap().is_none());
}

#[test]
fn a_server_is_renewed_after_some_workers() {
    let (mut server, first) = running();
    server.forks.server.as_mut().unwrap().asked = WORKERS_MAX - 1;
    drop(server.forks.fork(&|| false).unwrap());
    assert_eq!(server.pid(), first);
    server.is_renewed(first);
    assert!(!Path::new(&format!("/proc/{first}")).exists());
}

#[test]
fn a_server_that_can_not_be_renewed_goes_on() {
    let (mut server, first) = running();
    fs::remove_file(server.folder.path().join("server")).unwrap();
    server.forks.server.as_mut().unwrap().asked = WORKERS_MAX;
    for _ in 0..3 {
        let (mut worker, _stdin, _stdout) = server.forks.fork(&|| false).unwrap();
        assert!(worker.try_wait().unwrap().is_none());
        assert_eq!(server.pid(), first);
    }
}

#[test]
fn a_next_server_that_ends_at_once_is_not_taken() {
    let (mut server, first) = running();
    fs::write(server.folder.path().join("server"), "#!/bin/sh\nexit 1\n").unwrap();
    server.forks.server.as_mut().unwrap().asked = WORKERS_MAX;
    let deadline = Instant::now() + Duration::from_secs(300);
    while server.forks.server.as_ref().unwrap().asked >= WORKERS_MAX {
        assert!(Instant::now() < deadline, "it is waited for for ever");
        drop(server.forks.fork(&|| false).unwrap());
        assert_eq!(server.pid(), first);
    }
}

#[test]
fn a_server_that_stands_still_is_replaced_and_waited_for_no_longer_than_somebody_wants() {
    let (mut server, first) = running();
    signal(first, rustix::process::Signal::STOP);
    let began = Instant::now();
    drop(server.forks.fork(&|| false).unwrap());
    assert!(began.elapsed() >= REPLY_TIMEOUT);
    assert_ne!(server.pid(), first);
    // Nobody waits for this one, nor for another in its place.
    signal(server.pid(), rustix::process::Signal::STOP);
    let began = Instant::now();
    assert!(server.forks.fork(&|| true).is_err());
    assert!(began.elapsed() < REPLY_TIMEOUT);
    assert!(server.forks.server.is_none());
}

#[test]
fn a_server_that_ends_is_let_go_of() {
    let (mut server, first) = running();
    server.forks.look();
    assert_eq!(server.pid(), first);
    let process = &mut server.forks.server.as_mut().unwrap().process;
    process.kill().unwrap();
    process.wait().unwrap();
    server.forks.look();
    assert!(server.forks.socket().is_none());
    assert!(!Path::new(&format!("/proc/{first}")).exists());
}

/// Children of this process that have ended and are not reaped.
fn zombies() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<String> = children
        .flat_map(|pids| {
            pids.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect();
    let is_zombie = |pid: &String| {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    };
    pids.into_iter().filter(is_zombie).collect()
}

/// A server that is killed in the middle of a fork may have made a worker that it can't tell of.
#[test]
fn no_worker_of_a_server_that_is_killed_is_forgotten() {
    let mut server = forks("exec cat");
    for round in 0..100_u64 {
        drop(server.forks.fork(&|| false));
        let Some(running) = &server.forks.server else {
            continue;
        };
        let pid = rustix::process::Pid::from_raw(running.process.id() as i32).unwrap();
        let killer = thread::spawn(move || {
            thread::sleep(Duration::from_micros(round * 5));
            // It may have been replaced by now.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        });
        drop(server.forks.fork(&|| false));
        killer.join().unwrap();
    }
    drop(server);
    let deadline = Instant::now() + Duration::from_secs(60);
    let first = zombies();
    // Those of other tests are reaped soon.
    while first.iter().any(|pid| zombies().contains(pid)) {
        assert!(Instant::now() < deadline, "{:?}", zombies());
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_server_that_answers_nonsense_or_nothing_is_an_error() {
    // The last one's first worker is process 1, which is none of our children.
    for program in [
        "#!/bin/sh\nexit 0\n",
        "#!/bin/sh\necho x >&0\n",
        "#!/bin/sh\nprintf '\\001\\0\\0\\0\\001\\0\\0\\0' >&0; exec sleep 1000\n",
    ] {
        let mut server = forks("");
        fs::write(server.folder.path().join("server"), program).unwrap();
        assert!(server.forks.fork(&|| false).is_err(), "{program}");
    }
}

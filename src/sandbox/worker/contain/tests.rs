//! What a contained process can still do: this test's own program, started again, tries.

#![expect(unsafe_code, reason = "makes the system calls that must fail")]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::{env, fs, thread};

use super::{Limits, begin, bound, filter};

/// Names the attempt that a child makes.
const ATTEMPT: &str = "WASM_WIZARD_TEST_ATTEMPT";
/// A child's exit code when it did what it tried, and when there is no filter on this kernel.
const DONE: i32 = 33;
const NO_FILTER: i32 = 34;

fn attempt(what: &str) -> Option<ExitStatus> {
    let status = Command::new(env::current_exe().unwrap())
        .args(["--exact", "sandbox::worker::contain::tests::child"])
        .env(ATTEMPT, what)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    if status.code() == Some(NO_FILTER) {
        assert!(
            env::var_os("CI").is_none(),
            "the machine that tests us must have seccomp"
        );
        return None;
    }
    Some(status)
}

/// Not a test by itself: what the children of the others run.
#[test]
fn child() {
    let Ok(what) = env::var(ATTEMPT) else {
        return;
    };
    begin().unwrap();
    if what == "spin" {
        let limits = Limits {
            memory_bytes_max: 1 << 30,
            cpu_seconds_max: 1,
        };
        bound(limits).unwrap();
    }
    let path = c"/etc/passwd".as_ptr();
    // SAFETY: all pointers are to what outlives the calls; what a call would do to this process does
    // not matter, it ends right after.
    unsafe {
        if filter() != 0 {
            libc::_exit(NO_FILTER);
        }
        match what.as_str() {
            "nothing" => {}
            "thread" => assert_eq!(thread::spawn(|| 5).join().unwrap(), 5),
            "abort" => libc::abort(),
            "spin" => loop {
                std::hint::spin_loop();
            },
            "open" => drop(libc::openat(libc::AT_FDCWD, path, libc::O_RDONLY)),
            "socket" => drop(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0)),
            "fork" => {
                if libc::fork() == 0 {
                    libc::_exit(0);
                }
            }
            "exec" => drop(libc::execve(
                path,
                [std::ptr::null()].as_ptr(),
                [std::ptr::null()].as_ptr(),
            )),
            "kill" => drop(libc::kill(libc::getppid(), 0)),
            "ptrace" => drop(libc::ptrace(libc::PTRACE_TRACEME)),
            "trace" => drop(libc::syscall(libc::SYS_process_vm_readv, 1, 0, 0, 0, 0, 0)),
            "io_uring" => drop(libc::syscall(libc::SYS_io_uring_setup, 1, 0)),
            "ioctl" => drop(libc::ioctl(0, libc::FIONREAD)),
            // A process, not a thread, by the call that threads may use.
            "clone" => drop(libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0)),
            "dumpable" => drop(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0)),
            other => panic!("{other}"),
        }
        libc::_exit(DONE);
    }
}

#[test]
fn a_contained_process_can_compute_and_end() {
    for (what, code, signal) in [
        ("nothing", Some(DONE), None),
        ("thread", Some(DONE), None),
        ("abort", None, Some(libc::SIGABRT)),
        // The signal tells the parent that it was time that ran out, not memory.
        ("spin", None, Some(libc::SIGXCPU)),
    ] {
        let Some(status) = attempt(what) else { return };
        assert_eq!((status.code(), status.signal()), (code, signal), "{what}");
    }
}

#[test]
fn every_other_system_call_ends_a_contained_process() {
    for what in [
        "open", "socket", "fork", "exec", "kill", "ptrace", "trace", "io_uring", "ioctl", "clone",
        "dumpable",
    ] {
        let Some(status) = attempt(what) else { return };
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{what}: {status}");
    }
    // They are all things that a process can do which is not contained.
    assert!(fs::read("/etc/passwd").is_ok());
}

//! Workers that misbehave: shell scripts in the worker's place.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;

use super::super::fork_server::{Forks, tests::server_of};
use super::{Bounds, Brake, Failure, Worker};
use crate::sandbox::engine::Compiler;
use crate::sandbox::worker::{Job, Task};
use crate::sandbox::{CompileSettings, ModuleError};

struct Script {
    folder: TempDir,
    settings: CompileSettings,
}

/// A worker that does what the script says. The script may write its pid to `$HERE/pid`.
fn script(lines: &str, timeout: Duration) -> Script {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display();
    let worker = server_of(
        folder.path(),
        &format!("HERE={here}\necho $$ > $HERE/pid\n{lines}\n"),
    );
    let settings = CompileSettings {
        worker,
        workers_max: 1,
        workers_spare: 0,
        queue_max: 0,
        queue_timeout: timeout,
        singlepass: true,
        timeout,
        memory_bytes_max: 1 << 30,
    };
    Script { folder, settings }
}

const LONG: Duration = Duration::from_secs(600);

impl Script {
    fn run(&self, abandoned: impl Fn(&Brake) -> bool) -> Result<Bytes, Failure> {
        let job = Job {
            task: Task::Compile(Compiler::Cranelift),
            input: &vec![0; 300_000],
        };
        let bounds = Bounds {
            deadline: Instant::now() + self.settings.timeout,
            made_bytes_max: 1 << 20,
            is_background: true,
        };
        let worker = Worker::start(&mut Forks::new(self.settings.clone()), &|| false)?;
        let made = worker
            .begin(&job)?
            .finish(&self.settings, bounds, abandoned)?;
        Ok(made.made)
    }

    fn error(&self) -> ModuleError {
        match self.run(|_| false) {
            Err(Failure::Failed(error)) => error,
            Err(Failure::Refused(error)) => panic!("nobody answered: {error}"),
            Err(Failure::Abandoned) => panic!("nobody gave up"),
            Ok(artifact) => panic!("{} bytes", artifact.len()),
        }
    }

    /// Whether the worker is gone, and no zombie is left.
    fn is_gone(&self) -> bool {
        let Ok(pid) = fs::read_to_string(self.folder.path().join("pid")) else {
            // It was killed before its first line.
            return true;
        };
        if pid.trim().is_empty() {
            // It was killed in the middle of it.
            return true;
        }
        !Path::new("/proc").join(pid.trim()).exists()
    }
}

#[test]
fn a_worker_that_never_answers_is_killed_in_time() {
    let script = script("exec sleep 1000", Duration::from_millis(300));
    let begun = Instant::now();
    assert!(matches!(script.error(), ModuleError::CompileLimit(_)));
    assert!(begun.elapsed() < Duration::from_secs(120));
    assert!(script.is_gone());
}

#[test]
fn a_worker_nobody_waits_for_is_killed() {
    let script = script("exec sleep 1000", LONG);
    let looks = Cell::new(0);
    let result = script.run(|_| {
        looks.set(looks.get() + 1);
        looks.get() > 3
    });
    assert!(matches!(result, Err(Failure::Abandoned)));
    assert!(script.is_gone());
}

#[test]
fn a_worker_that_is_held_stands_still_and_has_its_time_later() {
    let script = script(
        "while :; do echo >> $HERE/steps; sleep 0.01; done",
        Duration::from_secs(2),
    );
    let read = |name| fs::read_to_string(script.folder.path().join(name)).unwrap_or_default();
    let stands_still = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", read("pid").trim()));
        stat.is_ok_and(|stat| stat.contains(") T "))
    };
    let (begun, held, steps) = (Instant::now(), Cell::new(None), Cell::new(0));
    let result = script.run(|brake| {
        if held.get().is_none() && !read("steps").is_empty() {
            let since = Instant::now();
            brake.hold(|| {
                let give_up = since + LONG;
                while !stands_still() && Instant::now() < give_up {
                    std::thread::yield_now();
                }
                steps.set(read("steps").len());
                // Longer than all of its time.
                while since.elapsed() < Duration::from_millis(2_500) {
                    std::thread::park_timeout(Duration::from_millis(100));
                }
                assert!(stands_still() && read("steps").len() == steps.get());
            });
            held.set(Some(since.elapsed()));
        }
        false
    });
    assert!(matches!(result, Err(Failure::Failed(_))));
    let least = Duration::from_secs(2) + held.get().unwrap();
    assert!(begun.elapsed() >= least);
    assert!(read("steps").len() > steps.get(), "it did not go on");
    assert!(script.is_gone());
}

#[test]
fn how_a_worker_dies_says_whose_fault_it_is() {
    for signal in ["ABRT", "SEGV", "KILL", "XCPU", "SYS"] {
        let script = script(&format!("kill -{signal} $$"), LONG);
        let error = script.error();
        assert!(
            matches!(error, ModuleError::CompileLimit(_)),
            "{signal}: {error:?}"
        );
        assert!(script.is_gone());
    }
    for lines in [
        "exit 0",
        "exit 3",
        "kill -TERM $$",
        "cat > /dev/null",
        "echo hello",
    ] {
        let script = script(lines, LONG);
        let error = script.error();
        assert!(
            matches!(error, ModuleError::Internal(_)),
            "{lines}: {error:?}"
        );
        assert!(script.is_gone());
    }
}

#[test]
fn a_worker_that_talks_without_end_is_cut_off() {
    let script = script("exec cat /dev/zero", LONG);
    assert!(matches!(script.error(), ModuleError::CompileLimit(_)));
    assert!(script.is_gone());
}

#[test]
fn a_worker_that_is_no_program_is_our_failure() {
    let script = script("", LONG);
    for program in ["not a program", "#!/bin/sh\nexit 0\n"] {
        fs::write(&script.settings.worker, program).unwrap();
        assert!(matches!(script.error(), ModuleError::Internal(_)));
    }
}

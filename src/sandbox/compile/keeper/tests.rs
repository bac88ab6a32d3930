//! Spares: made, handed out, replaced and ended. Shell scripts stand in for the worker.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::super::fork_server::tests::server_of;
use super::Keeper;
use crate::sandbox::CompileSettings;

struct Workers {
    folder: TempDir,
    settings: CompileSettings,
}

/// Workers that write their ids into a folder and then do what the script says.
fn workers(script: &str, spare: usize) -> Workers {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display();
    fs::create_dir(folder.path().join("pids")).unwrap();
    let worker = server_of(folder.path(), &format!(": > {here}/pids/$$\n{script}\n"));
    let settings = CompileSettings {
        worker,
        workers_max: 1,
        workers_spare: spare,
        queue_max: 0,
        queue_timeout: Duration::from_secs(300),
        singlepass: true,
        timeout: Duration::from_secs(300),
        memory_bytes_max: 1 << 30,
    };
    Workers { folder, settings }
}

impl Workers {
    /// All that were ever started.
    fn started(&self) -> Vec<String> {
        fs::read_dir(self.folder.path().join("pids"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    fn alive(&self) -> Vec<String> {
        let mut pids = self.started();
        pids.retain(|pid| Path::new("/proc").join(pid).exists());
        pids
    }

    /// The one that is there.
    fn kill_spare(&self) {
        let pid = self.alive()[0].parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
}

fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(300);
    while !condition() {
        assert!(Instant::now() < deadline, "it never came true");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn spares_are_there_before_they_are_asked_for_and_replaced_when_taken() {
    let workers = workers("exec cat", 2);
    let keeper = Keeper::start(workers.settings.clone()).unwrap();
    until(|| workers.alive().len() == 2);
    let first = workers.started();
    let mut taken = keeper.take().unwrap();
    assert!(taken.is_alive());
    until(|| workers.alive().len() == 3);
    drop(taken);
    until(|| workers.alive().len() == 2);
    assert_eq!(workers.started().len(), 3);
    assert!(first.iter().all(|pid| workers.started().contains(pid)));
}

#[test]
fn a_spare_that_dies_is_replaced() {
    let workers = workers("exec cat", 1);
    let keeper = Keeper::start(workers.settings.clone()).unwrap();
    until(|| workers.alive().len() == 1);
    workers.kill_spare();
    until(|| workers.alive().len() == 1 && workers.started().len() == 2);
    assert!(keeper.take().unwrap().is_alive());
}

/// What was put off because spares ended is not put off for ever: one that serves says that they can.
#[test]
fn a_spare_that_serves_is_replaced_without_a_pause_whatever_came_before() {
    let workers = workers("exec cat", 1);
    let keeper = Keeper::start(workers.settings.clone()).unwrap();
    // After the fourth, the next comes after eight seconds.
    for killed in 1..5 {
        until(|| workers.alive().len() == 1 && workers.started().len() == killed);
        workers.kill_spare();
    }
    until(|| workers.alive().len() == 1 && workers.started().len() == 5);
    let begun = Instant::now();
    drop(keeper.take().unwrap());
    until(|| workers.started().len() == 6);
    assert!(begun.elapsed() < Duration::from_secs(7));
}

#[test]
fn without_spares_each_worker_is_made_to_order() {
    let workers = workers("exec cat", 0);
    let keeper = Keeper::start(workers.settings.clone()).unwrap();
    let taken: Vec<_> = (0..3).map(|_| keeper.take().unwrap()).collect();
    until(|| workers.alive().len() == 3);
    drop(taken);
    assert_eq!(workers.alive().len(), 0);
}

#[test]
fn nothing_is_left_when_the_keeper_is_gone() {
    let workers = workers("exec cat", 3);
    let keeper = Keeper::start(workers.settings.clone()).unwrap();
    until(|| workers.alive().len() == 3);
    drop(keeper);
    assert_eq!(workers.alive().len(), 0);
}

#[test]
fn workers_that_end_at_once_are_not_started_over_and_over() {
    let workers = workers("exit 1", 1);
    let keeper = Keeper::start(workers.settings.clone()).unwrap();
    until(|| workers.started().len() >= 2);
    // The second came a second after the first; the third takes two more.
    assert!(workers.started().len() <= 3);
    drop(keeper);
}

#[test]
fn a_worker_that_does_not_start_is_an_error_and_not_the_end() {
    let workers = workers("exec cat", 1);
    let bad = CompileSettings {
        worker: workers.folder.path().join("missing"),
        ..workers.settings.clone()
    };
    let keeper = Keeper::start(bad).unwrap();
    assert!(keeper.take().is_err());
    assert!(keeper.take().is_err());
}

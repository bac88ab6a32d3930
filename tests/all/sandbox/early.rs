//! Large modules, which a worker has before they have passed the check.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{env, fs, io};

use bytes::Bytes;
use tempfile::TempDir;
use wasm_wizard::sandbox::{End, ModuleError, Preparation, Sandbox, Settings, serve_forks};

use super::attacks::binary::{CODE, END, FOUR_GIB, FUNCTION, TYPE, binary};
use super::{call, command, settings, until, wasm, within};

/// The module with a section before all others that makes it large, and unlike those with another number.
fn large(module: &[u8], number: u32) -> Bytes {
    let section = [&[3][..], b"big", &number.to_le_bytes(), &vec![0; 70_000]].concat();
    let (header, sections) = module.split_at(8);
    let first = binary(&[(0, section)]);
    assert_eq!(first[..8], *header);
    [&first, sections].concat().into()
}

/// Valid to its last byte but one section that does not exist.
fn invalid(number: u32) -> Bytes {
    let module = large(&wasm(&command("(nop)")), number);
    [&module[..], &[99, 1, 0]].concat().into()
}

async fn prepare(sandbox: &Sandbox, module: Bytes) -> Result<(), ModuleError> {
    within(sandbox.prepare(module, Preparation::Fast))
        .await
        .map(drop)
}

/// Where the script is that workers run.
const SCRIPT: &str = "WASM_WIZARD_TEST_SCRIPT";

/// Not a test by itself: a fork server, whose workers run the script.
#[test]
#[expect(unsafe_code, reason = "forks")]
fn server() {
    let Ok(script) = env::var(SCRIPT) else {
        return;
    };
    let control = io::stdin().as_fd().try_clone_to_owned().unwrap();
    // SAFETY: what is forked becomes a shell.
    if unsafe { serve_forks(control.into()) }.unwrap() {
        let error = Command::new("/bin/sh").arg(script).exec();
        panic!("{error}");
    }
}

/// A worker that is this script, and one spare of it.
fn scripted(script: &str) -> (TempDir, Sandbox) {
    let (folder, settings) = with_script("", script);
    (folder, Sandbox::start(settings).unwrap())
}

/// Settings with workers that are this script, whose server does something else first.
fn with_script(first: &str, script: &str) -> (TempDir, Settings) {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display();
    let (worker, own) = (folder.path().join("worker"), env::current_exe().unwrap());
    fs::create_dir(folder.path().join("started")).unwrap();
    fs::write(
        folder.path().join("script"),
        format!(": > {here}/started/$$\n{script}\n"),
    )
    .unwrap();
    let own = own.display();
    fs::write(
        &worker,
        format!(
            "#!/bin/sh\n{first}\nexport {SCRIPT}={here}/script\nexec {own} --exact sandbox::early::server\n"
        ),
    )
    .unwrap();
    fs::set_permissions(&worker, fs::Permissions::from_mode(0o755)).unwrap();
    let mut settings = settings();
    settings.compile.worker = worker;
    (folder, settings)
}

/// The module is given its time when there is a worker for it.
#[tokio::test]
async fn a_module_is_not_blamed_for_the_time_until_it_has_a_worker() {
    let (_folder, mut settings) = with_script("sleep 2", "head -c 100 > /dev/null");
    settings.compile.workers_spare = 0;
    settings.compile.timeout = Duration::from_secs(1);
    let sandbox = Sandbox::start(settings).unwrap();
    // The worker ends without an answer, which is ours to blame.
    let error = prepare(&sandbox, wasm(&command("(nop)")))
        .await
        .unwrap_err();
    assert!(matches!(error, ModuleError::Internal(_)), "{error}");
}

/// How many were started and how many of them are there.
fn workers(folder: &Path) -> (usize, usize) {
    let started = fs::read_dir(folder.join("started")).unwrap();
    let started: Vec<_> = started.map(|entry| entry.unwrap().file_name()).collect();
    let there = |pid: &&std::ffi::OsString| Path::new("/proc").join(pid).exists();
    (started.len(), started.iter().filter(there).count())
}

/// Waits until there is no worker but one spare, and so many were started.
async fn started(folder: &TempDir, number: usize) {
    let what = format!("{number} workers, of which one is there");
    until(&what, || workers(folder.path()) == (number, 1)).await;
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn a_module_that_does_not_pass_ends_its_worker_and_the_next_has_none() {
    // It never answers: nobody waits for it.
    let (folder, sandbox) = scripted("exec sleep 1000");
    started(&folder, 1).await;
    let refused = async |module| match prepare(&sandbox, module).await {
        Err(ModuleError::Invalid(text)) => text,
        other => panic!("{other:?}"),
    };
    let text = refused(invalid(0)).await;
    assert!(text.starts_with("the module is not valid here"), "{text}");
    // The worker had it, and is replaced.
    started(&folder, 2).await;
    for number in 1..10 {
        refused(invalid(number)).await;
        started(&folder, 2).await;
    }
    // What is small, or no module at the first glance, is not worth a worker at any time.
    refused(large(&wasm(&command("(nop)")), 10).slice(..1000)).await;
    refused(vec![0; 100_000].into()).await;
    started(&folder, 2).await;
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn after_one_that_passes_the_next_has_a_worker_again() {
    // The compile fails, but the module has passed the check.
    let (folder, sandbox) = scripted("head -c 100 > /dev/null");
    started(&folder, 1).await;
    for round in 1..4 {
        let error = prepare(&sandbox, invalid(round)).await.unwrap_err();
        assert!(matches!(error, ModuleError::Invalid(_)), "{error}");
        started(&folder, 2 * round as usize).await;
        let small = wasm(&command(&format!("(drop (i32.const {round}))")));
        let error = prepare(&sandbox, small).await.unwrap_err();
        assert!(matches!(error, ModuleError::Internal(_)), "{error}");
        started(&folder, 2 * round as usize + 1).await;
    }
}

/// A worker that was taken over by a module would say what the attacker likes: that of a module that does
/// not pass the check is not listened to.
#[tokio::test]
async fn what_a_worker_says_of_a_module_that_does_not_pass_is_not_heard() {
    // Machine code, or a refusal, of four bytes.
    for tag in [0, 1] {
        let answer = format!(r"\0\0\0\0\00{tag}\0\0\0\004\0\0\0\0\0\0\0evil");
        let (_folder, sandbox) = scripted(&format!("printf '{answer}'"));
        for number in 0..3 {
            match prepare(&sandbox, invalid(number)).await {
                Err(ModuleError::Invalid(text)) => assert!(text.contains("section"), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn large_modules_are_compiled_by_whom_they_would_be_anyway() {
    let sandbox = Sandbox::start(settings()).unwrap();
    let plain = command("(call $exit (i32.const 7))");
    let with_vector = plain.replace("(memory", "(func (drop (v128.const i64x2 0 0))) (memory");
    for (number, text, is_optimised) in [
        (0, &plain, false),
        (1, &with_vector, true),
        (2, &plain, false),
    ] {
        let module = large(&wasm(text), number);
        let module = within(sandbox.prepare(module, Preparation::Fast))
            .await
            .unwrap();
        let is_quick = cfg!(target_arch = "x86_64");
        assert_eq!(module.is_optimised(), is_optimised || !is_quick, "{text}");
        let outcome = sandbox.run(module, call()).await.unwrap();
        assert_eq!(outcome.end, End::Exit(7));
    }
}

/// Bodies that make no sense, each of which a real worker has before the check says so.
#[tokio::test]
async fn compilers_that_get_nonsense_harm_nobody() {
    let bodies = [
        "(i32.add)",
        "(drop)",
        "(local.get 4000000000)",
        "(local.set 7)",
        "(global.get 4000000000)",
        "(call 4000000000)",
        "(call_indirect (type 4000000000))",
        "(call_indirect 4000000000 (type 0))",
        "(br 4000000000)",
        "(br_table 0 1 4000000000 (i32.const 0))",
        "(block (result i64) (i32.const 1))",
        "(f64.add (i32.const 1) (i64.const 2))",
        "(i32.store (f64.const 0) (i64.const 0))",
        "(memory.init 4000000000 (i32.const 0) (i32.const 0) (i32.const 0))",
        "(table.grow 4000000000 (ref.null func) (i32.const 1))",
        "(elem.drop 4000000000)",
        "(if (i32.const 1) (then (i32.const 1)) (else (f32.const 1)))",
        "(return) (f32.neg (i32.const 1)) (drop)",
        "(select (i32.const 1) (f64.const 1) (i32.const 1))",
        "(unreachable) (i64.eqz (f32.const 0))",
    ];
    let body = |code: &[u8]| {
        let code = [&[1, code.len() as u8][..], code].concat();
        binary(&[
            (TYPE, vec![1, 0x60, 0, 0]),
            (FUNCTION, vec![1, 0]),
            (CODE, code),
        ])
    };
    let four_gib_of_locals = [&[1][..], &FOUR_GIB, &[0x7f, END]].concat();
    let bytes = [
        body(&four_gib_of_locals),
        // Ends that end nothing, and none at all.
        body(&[0, END, END, END]),
        body(&[0, 0x41]),
        body(&[0, 0x05, END]),
        body(&[0, 0x0e, 0xff, 0xff, 0xff, 0xff, 0x0f, END]),
    ];
    let sandbox = Sandbox::start(settings()).unwrap();
    let modules = bodies.iter().map(|body| wasm(&command(body)).to_vec());
    for (number, module) in (0..).zip(modules.chain(bytes)) {
        let refused = prepare(&sandbox, large(&module, number)).await;
        assert!(
            matches!(refused, Err(ModuleError::Invalid(_))),
            "{number}: {refused:?}"
        );
        // The next one has a worker again, and what is right is still compiled and run.
        let module = wasm(&command(&format!("(call $exit (i32.const {number}))")));
        let module = within(sandbox.prepare(module, Preparation::Fast))
            .await
            .unwrap();
        let outcome = sandbox.run(module, call()).await.unwrap();
        assert_eq!(outcome.end, End::Exit(number as i32));
    }
}

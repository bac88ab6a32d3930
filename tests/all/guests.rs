//! The example guests: what is committed behaves like a fresh build of its source.
#![expect(
    clippy::unwrap_used,
    reason = "a test that can't go on has nothing better to do than panic"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use wasm_wizard::sandbox::{
    Call, CompileSettings, End, Files, GuestLimits, Preparation, Sandbox, Settings, ShareKey,
    Stdout, Strings, to_binary,
};

/// One run: the guest, its standard input, its environment.
struct Run {
    guest: &'static str,
    stdin: &'static [u8],
    env: &'static [(&'static str, &'static str)],
}

const fn command(guest: &'static str, stdin: &'static [u8]) -> Run {
    Run {
        guest,
        stdin,
        env: &[],
    }
}

const fn wagi(guest: &'static str, env: &'static [(&'static str, &'static str)]) -> Run {
    Run {
        guest,
        stdin: b"body",
        env,
    }
}

const RUNS: [Run; 17] = [
    command("echo", b""),
    command("echo", b"hello"),
    command("echo", &[0xff; 70_000]),
    command("wordcount", b""),
    command("wordcount", b"hello there\nand more"),
    command("wordcount", &[b'x'; 70_000]),
    command("sum", b""),
    command("sum", b"1 2\n-4\n"),
    command("sum", b"1 two 3"),
    command("sum", b"9223372036854775807 1"),
    wagi("hello", &[]),
    wagi("hello", &[("QUERY_STRING", "name=you")]),
    wagi("hello", &[("QUERY_STRING", "a=b&name=%3Cb%3E+%C3%A9%")]),
    wagi("page", &[("REQUEST_METHOD", "GET")]),
    wagi(
        "page",
        &[
            ("REQUEST_METHOD", "POST"),
            ("QUERY_STRING", "a=1&b=%26"),
            ("HTTP_X_A", "<&>"),
        ],
    ),
    wagi("page", &[("REQUEST_METHOD", "PATCH")]),
    wagi("page", &[]),
];

/// What a run shows: how it ended, standard output, standard error.
type Shown = (End, Vec<u8>, Vec<u8>);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sandbox() -> Sandbox {
    Sandbox::start(Settings {
        wasm_bytes_max: 1 << 20,
        guests_max: 1,
        guests_per_share_max: 1,
        warm_max: 1,
        queue_max: 16,
        queue_timeout: Duration::from_secs(300),
        stack_bytes_max: 1 << 20,
        table_elements_max: 10_000,
        cache_bytes_max: 64 << 20,
        compile: CompileSettings {
            worker: PathBuf::from(env!("CARGO_BIN_EXE_wasm-wizard")),
            workers_max: 1,
            workers_spare: 0,
            queue_max: 16,
            queue_timeout: Duration::from_secs(300),
            singlepass: true,
            timeout: Duration::from_secs(300),
            memory_bytes_max: 2 << 30,
        },
        artifacts: None,
    })
    .unwrap()
}

async fn show(sandbox: &Sandbox, file: &Path, run: &Run) -> Shown {
    let bytes = std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let module = sandbox
        .prepare(to_binary(bytes.into()).unwrap(), Preparation::Optimised)
        .await
        .unwrap();
    let outcome = sandbox.run(module, call(run)).await.unwrap();
    (outcome.end, outcome.stdout, outcome.stderr)
}

fn call(run: &Run) -> Call {
    Call {
        args: Strings::arguments([run.guest]),
        env: Strings::variables(run.env.iter().copied()),
        stdin: Bytes::from_static(run.stdin).into(),
        files: None,
        stdout: Stdout::Collect,
        limits: GuestLimits {
            deadline: Duration::from_secs(300),
            memory_bytes_max: 16 << 20,
            stdout_bytes_max: 1 << 20,
            stderr_bytes_max: 64 << 10,
            stack_bytes_max: 1 << 20,
            table_elements_max: 100_000,
        },
        share: ShareKey::default(),
    }
}

#[tokio::test]
async fn prebuilt_guests_behave_like_a_fresh_build() {
    let fresh = tempfile::tempdir().unwrap();
    let built = Command::new(root().join("scripts/build_guests.sh"))
        .arg(fresh.path())
        .output()
        .unwrap();
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let sandbox = sandbox();
    for run in RUNS {
        let file = format!("{}.wasm", run.guest);
        let expected = show(&sandbox, &fresh.path().join(&file), &run).await;
        let prebuilt = show(&sandbox, &root().join("examples/guests").join(&file), &run).await;
        assert_eq!(prebuilt, expected, "{} {:?}", run.guest, run.env);
    }
}

#[tokio::test]
async fn guests_do_what_their_sources_say() {
    let sandbox = sandbox();
    let folder = root().join("examples/guests");
    for (file, stdin, end, stdout, stderr) in [
        (
            "echo.wasm",
            &b"hello"[..],
            End::Exit(0),
            &b"hello"[..],
            &b""[..],
        ),
        ("echo.wat", b"hello", End::Exit(0), b"hello", b""),
        ("hello.wat", b"", End::Exit(0), b"Hello, wizard\n", b""),
        (
            "wordcount.wasm",
            b"a b\n",
            End::Exit(0),
            b"{\"lines\":1,\"words\":2,\"bytes\":4}\n",
            b"",
        ),
        ("sum.wasm", b"1 2 3", End::Exit(0), b"6\n", b""),
        (
            "sum.wasm",
            b"1 x",
            End::Exit(1),
            b"",
            b"sum: number 2: not an integer\n",
        ),
    ] {
        let run = command(file, stdin);
        let shown = show(&sandbox, &folder.join(file), &run).await;
        assert_eq!(shown, (end, stdout.to_vec(), stderr.to_vec()), "{file}");
    }
}

/// A directory for a guest to read.
fn tree() -> tempfile::TempDir {
    let tree = tempfile::tempdir().unwrap();
    let at = |path: &str| tree.path().join(path);
    std::fs::create_dir_all(at("a/b")).unwrap();
    std::fs::create_dir(at("many")).unwrap();
    std::fs::write(at("a/file"), "hello, file\n").unwrap();
    for n in 0..100 {
        std::fs::write(at(&format!("many/{n}")), "").unwrap();
    }
    tree
}

async fn run_with_files(module: &Path, stdin: &'static str, files: Files) -> Shown {
    let sandbox = sandbox();
    let bytes = std::fs::read(module).unwrap();
    let module = sandbox
        .prepare(bytes.into(), Preparation::Optimised)
        .await
        .unwrap();
    let mut call = call(&command("files", stdin.as_bytes()));
    call.files = Some(Arc::new(files));
    let outcome = sandbox.run(module, call).await.unwrap();
    (outcome.end, outcome.stdout, outcome.stderr)
}

#[tokio::test]
async fn a_c_library_reads_files_and_writes_none() {
    let out = tempfile::tempdir().unwrap();
    let module = out.path().join("files.wasm");
    let built = Command::new("clang")
        .args([
            "--target=wasm32-wasi",
            "--sysroot=/usr",
            "-O1",
            "-Wall",
            "-Werror",
            "-o",
        ])
        .arg(&module)
        .arg(root().join("tests/all/guests/files.c"))
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{message}");
    let tree = tree();
    let files = Files::load(tree.path()).unwrap();
    let (end, stdout, stderr) = run_with_files(&module, "", files).await;
    assert_eq!((end, stderr), (End::Exit(0), Vec::new()));
    let said = String::from_utf8(stdout).unwrap();
    assert_eq!(said, SAID);
}

/// What `tests/all/guests/files.c` says.
const SAID: &str = "\
fopen r: ok
fgets: ok
line: hello, file
ftell: 12
fseek: ok
fgets: ok
line: file
getc: 104
open relative: ok
pread: 4
pread: file
lseek: 0
lseek: 100
read at the end: 0
lseek before the start: Invalid argument
read closed: Bad file descriptor
opendir: ok
entries: 102
dots: 2
sum of names: 4950
rewinddir: ok
opendir of a file: Not a directory
scandir: 4
stat file: ok
size: 12
is a file: ok
mtime: 1
stat directory: ok
is a directory: ok
inodes differ: ok
fstat: ok
lstat: ok
access: ok
fsync: ok
isatty: Not a tty
ftruncate: Read-only file system
stat /: ok
stat .: ok
readlink: Invalid argument
open missing: No such file or directory
open /etc/passwd: No such file or directory
open up and out: Capabilities insufficient
open up and out relative: Capabilities insufficient
open through a file: Not a directory
fopen w: Read-only file system
fopen a: Read-only file system
fopen r+: Read-only file system
fopen new: Read-only file system
open O_EXCL: File exists
open directory to write: Is a directory
open file as directory: Not a directory
mkdir: Read-only file system
unlink: Read-only file system
rmdir: Read-only file system
rename: Read-only file system
link: Read-only file system
symlink: Read-only file system
open without end: No file descriptors available
many are open: ok
";

#[tokio::test]
async fn the_files_guest_shows_what_it_is_given() {
    let guest = root().join("examples/guests/files.wasm");
    for (stdin, end, stdout, stderr) in [
        ("/a/file", 0, "hello, file\n", ""),
        ("a/file\n", 0, "hello, file\n", ""),
        ("/a", 0, "       0 b/\n      12 file\n", ""),
        ("/b", 1, "", "files: /b: No such file or directory\n"),
        ("../x", 1, "", "files: ../x: Capabilities insufficient\n"),
    ] {
        let files = Files::load(tree().path()).unwrap();
        let shown = run_with_files(&guest, stdin, files).await;
        let expected = (End::Exit(end), stdout.into(), stderr.into());
        assert_eq!(shown, expected, "{stdin}");
    }
    let (end, _, stderr) = show(&sandbox(), &guest, &command("files", b"/a/file")).await;
    assert_eq!(end, End::Exit(1));
    assert_eq!(stderr, b"files: /a/file: Capabilities insufficient\n");
}

#[test]
fn the_build_script_explains_itself() {
    let script = root().join("scripts/build_guests.sh");
    let help = Command::new(&script).arg("--help").output().unwrap();
    assert!(help.status.success());
    assert!(
        String::from_utf8_lossy(&help.stdout)
            .starts_with("usage: scripts/build_guests.sh [OUT_DIR]")
    );
    assert_eq!(
        Command::new(&script)
            .args(["a", "b"])
            .output()
            .unwrap()
            .status
            .code(),
        Some(2)
    );
    let out = tempfile::tempdir().unwrap();
    let missing = Command::new(&script)
        .arg(out.path())
        .env("CLANG", "no-such-clang")
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(1));
    let message = String::from_utf8_lossy(&missing.stderr);
    assert!(message.contains("apt-get install clang"), "{message}");
}

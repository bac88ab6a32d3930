//! The example guests: what is committed behaves like a fresh build of its source.
#![expect(
    clippy::unwrap_used,
    reason = "a test that can't go on has nothing better to do than panic"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use wasm_wizard::sandbox::{
    Call, CompileSettings, End, GuestLimits, Sandbox, Settings, Stdout, to_binary,
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
        queue_max: 16,
        queue_timeout: Duration::from_secs(30),
        stack_bytes: 1 << 20,
        table_elements_max: 10_000,
        cache_bytes_max: 64 << 20,
        compile: CompileSettings {
            worker: PathBuf::from(env!("CARGO_BIN_EXE_wasm-wizard")),
            workers_max: 1,
            queue_max: 16,
            timeout: Duration::from_secs(60),
            memory_bytes_max: 2 << 30,
        },
    })
    .unwrap()
}

async fn show(sandbox: &Sandbox, file: &Path, run: &Run) -> Shown {
    let bytes = std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let module = sandbox
        .prepare(to_binary(bytes.into()).unwrap())
        .await
        .unwrap();
    let call = Call {
        args: vec![run.guest.to_owned()],
        env: run
            .env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        stdin: Bytes::from_static(run.stdin),
        stdout: Stdout::Collect,
        limits: GuestLimits {
            deadline: Duration::from_secs(30),
            memory_bytes_max: 16 << 20,
            stdout_bytes_max: 1 << 20,
            stderr_bytes_max: 64 << 10,
        },
    };
    let outcome = sandbox.run(module, call).await.unwrap();
    (outcome.end, outcome.stdout, outcome.stderr)
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

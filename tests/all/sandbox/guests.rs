//! Ordinary guests: output, exits, traps, usage, isolation.

use std::time::Duration;

use bytes::Bytes;
use wasm_wizard::sandbox::{End, ModuleHash, Preparation, Stdout, pipe};

use super::{call, call_for, command, end, prepare, run, sandbox, settings, wasm};

const HELLO: &str = "(module
    (import \"wasi_snapshot_preview1\" \"fd_write\"
      (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export \"memory\") 1)
    (data (i32.const 0) \"\\10\\00\\00\\00\\06\\00\\00\\00\") (data (i32.const 16) \"hello\\n\")
    (func (export \"_start\")
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))))";

const ECHO: &str = "(module
    (import \"wasi_snapshot_preview1\" \"fd_write\"
      (func $write (param i32 i32 i32 i32) (result i32)))
    (import \"wasi_snapshot_preview1\" \"fd_read\"
      (func $read (param i32 i32 i32 i32) (result i32)))
    (memory (export \"memory\") 2)
    (func (export \"_start\")
      (loop
        (i32.store (i32.const 0) (i32.const 65536))
        (i32.store (i32.const 4) (i32.const 65536))
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (if (i32.load (i32.const 8)) (then
          (i32.store (i32.const 4) (i32.load (i32.const 8)))
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
          (br 1))))))";

#[tokio::test]
async fn output_and_usage_come_back() {
    let outcome = run(HELLO, call()).await;
    assert_eq!(outcome.end, End::Exit(0));
    assert_eq!(outcome.stdout, b"hello\n");
    assert_eq!(outcome.stderr, b"hello\n");
    assert!(!outcome.stderr_truncated);
    assert_eq!(outcome.usage.stdout_bytes, 6);
    assert_eq!(outcome.usage.memory_peak_bytes, 65536);
    assert!(outcome.usage.wall > Duration::ZERO && outcome.usage.cpu > Duration::ZERO);
    let mut quiet = call();
    quiet.limits.stderr_bytes_max = 3;
    let outcome = run(HELLO, quiet).await;
    assert_eq!(
        (&outcome.stderr[..], outcome.stderr_truncated),
        (&b"hel"[..], true)
    );
}

#[tokio::test]
async fn a_guest_that_sleeps_uses_no_cpu_time_and_one_that_spins_does() {
    let sleep = "(module
        (import \"wasi_snapshot_preview1\" \"poll_oneoff\"
          (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export \"memory\") 1)
        (func (export \"_start\")
          (i32.store (i32.const 16) (i32.const 1)) (i64.store (i32.const 24) (i64.const 300000000))
          (drop (call $poll (i32.const 0) (i32.const 128) (i32.const 1) (i32.const 256)))))";
    let slept = run(sleep, call()).await;
    assert_eq!(slept.end, End::Exit(0));
    let spin = command("(loop (br 0))");
    let spun = run(&spin, call_for(Duration::from_millis(300))).await;
    assert_eq!(spun.end, End::TimeLimit);
    let (slept, spun) = (slept.usage, spun.usage);
    assert!(slept.wall >= Duration::from_millis(300), "{slept:?}");
    assert!(spun.wall >= Duration::from_millis(300), "{spun:?}");
    // How busy a machine is changes little of what sleeping takes; one that spins gets a share of it at least.
    assert!(slept.cpu < Duration::from_millis(10), "{slept:?}");
    assert!(spun.cpu > slept.cpu, "{spun:?}, {slept:?}");
    assert!(spun.cpu < spun.wall + Duration::from_millis(50), "{spun:?}");
}

#[tokio::test]
async fn input_is_echoed_whole_and_piped_output_streams() {
    let input: Vec<u8> = (0..500_000u32).map(|n| (n / 3) as u8).collect();
    let mut echo = call();
    echo.stdin = Bytes::from(input.clone()).into();
    assert!(run(ECHO, echo).await.stdout == input);

    let (writer, mut reader) = pipe(4096);
    let mut echo = call();
    echo.stdin = Bytes::from(input.clone()).into();
    echo.stdout = Stdout::Pipe(writer);
    let module = prepare(ECHO).await;
    let running = tokio::spawn(async move { sandbox().run(module, echo).await.unwrap() });
    let mut received = Vec::new();
    while let Some(bytes) = reader.read().await {
        assert!(bytes.len() <= 4096);
        received.extend_from_slice(&bytes);
    }
    let outcome = running.await.unwrap();
    assert!(received == input);
    assert_eq!(outcome.end, End::Exit(0));
    assert!(outcome.stdout.is_empty());
    assert_eq!(outcome.usage.stdout_bytes, 500_000);
}

#[tokio::test]
async fn exits_and_traps_are_told_apart() {
    assert_eq!(
        end(&command("(call $exit (i32.const 0))")).await,
        End::Exit(0)
    );
    assert_eq!(
        end(&command("(call $exit (i32.const 3))")).await,
        End::Exit(3)
    );
    for (body, text) in [
        ("(unreachable)", "unreachable"),
        (
            "(drop (i32.load (i32.const -1)))",
            "out of bounds memory access",
        ),
        (
            "(drop (i64.load offset=4294967295 (i32.const -1)))",
            "out of bounds memory access",
        ),
        (
            "(drop (v128.load offset=4294967295 (i32.const -1)))",
            "out of bounds memory access",
        ),
        (
            "(drop (i32.load8_u (i32.const 65536)))",
            "out of bounds memory access",
        ),
        (
            "(drop (i32.div_u (i32.const 1) (i32.const 0)))",
            "integer divide by zero",
        ),
        (
            "(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))",
            "integer overflow",
        ),
        (
            "(drop (i64.rem_s (i64.const 1) (i64.const 0)))",
            "integer divide by zero",
        ),
        (
            "(drop (i32.trunc_f32_s (f32.const nan)))",
            "invalid conversion to integer",
        ),
        (
            "(memory.fill (i32.const 65530) (i32.const 0) (i32.const 7))",
            "out of bounds memory access",
        ),
    ] {
        assert_eq!(end(&command(body)).await, End::Trap(text.into()), "{body}");
    }
    let tables = |body: &str| {
        format!(
            "(module (type $other (func (param i32))) (table 3 funcref)
               (elem (i32.const 0) $f) (func $f (param i32))
               (func (export \"_start\") {body}))"
        )
    };
    for (body, text) in [
        (
            "(call_indirect (i32.const 0))",
            "indirect call type mismatch",
        ),
        (
            "(call_indirect (i32.const 1))",
            "call of an empty table element",
        ),
        (
            "(call_indirect (i32.const 3))",
            "out of bounds table access",
        ),
        (
            "(drop (table.get (i32.const 3)))",
            "out of bounds table access",
        ),
    ] {
        assert_eq!(end(&tables(body)).await, End::Trap(text.into()), "{body}");
    }
}

#[tokio::test]
async fn initialisation_out_of_bounds_is_a_trap() {
    let data = "(module (memory 1) (data (i32.const 65535) \"ab\") (func (export \"_start\")))";
    assert_eq!(
        end(data).await,
        End::Trap("out of bounds memory access".into())
    );
    let negative = "(module (memory 1) (data (i32.const -1) \"a\") (func (export \"_start\")))";
    assert_eq!(
        end(negative).await,
        End::Trap("out of bounds memory access".into())
    );
    let elements = "(module (table 1 funcref) (elem (i32.const 1) 0) (func (export \"_start\")))";
    assert_eq!(
        end(elements).await,
        End::Trap("out of bounds table access".into())
    );
}

#[tokio::test]
async fn the_start_section_runs_first_and_can_write() {
    let text = "(module
        (import \"wasi_snapshot_preview1\" \"fd_write\"
          (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export \"memory\") 1)
        (data (i32.const 0) \"\\10\\00\\00\\00\\01\\00\\00\\00\") (data (i32.const 16) \"s_\")
        (func $put (param i32)
          (i32.store (i32.const 0) (local.get 0))
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
        (func $start (call $put (i32.const 16)))
        (start $start)
        (func (export \"_start\") (call $put (i32.const 17))))";
    assert_eq!(run(text, call()).await.stdout, b"s_");
}

#[tokio::test]
async fn guests_see_nothing_of_each_other() {
    // Exits 1 unless memory, grown memory, global, table and segment are as the module says.
    let text = "(module
        (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
        (memory (export \"memory\") 1 4) (data (i32.const 100) \"\\07\")
        (global $g (mut i32) (i32.const 5)) (table $t 2 10 funcref) (data $p \"xyz\")
        (elem declare func $bad)
        (func $bad (call $exit (i32.const 1)))
        (func (export \"_start\") (local $i i32)
          (if (i32.ne (global.get $g) (i32.const 5)) (then (call $bad)))
          (if (i32.ne (memory.size) (i32.const 1)) (then (call $bad)))
          (if (i32.ne (table.size $t) (i32.const 2)) (then (call $bad)))
          (if (i32.eqz (ref.is_null (table.get $t (i32.const 1)))) (then (call $bad)))
          (if (i32.ne (memory.grow (i32.const 3)) (i32.const 1)) (then (call $bad)))
          (loop
            (if (i32.load8_u (local.get $i)) (then
              (if (i32.ne (local.get $i) (i32.const 100)) (then (call $bad)))))
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if 0 (i32.lt_u (local.get $i) (i32.const 262144))))
          (if (i32.ne (i32.load8_u (i32.const 100)) (i32.const 7)) (then (call $bad)))
          (memory.init $p (i32.const 0) (i32.const 0) (i32.const 3))
          (data.drop $p)
          (memory.fill (i32.const 0) (i32.const 0xaa) (i32.const 262144))
          (global.set $g (i32.const 6))
          (table.set $t (i32.const 1) (ref.func $bad))
          (drop (table.grow $t (ref.func $bad) (i32.const 5)))))
        ";
    let module = prepare(text).await;
    for _ in 0..20 {
        let outcome = sandbox().run(module.clone(), call()).await.unwrap();
        assert_eq!(outcome.end, End::Exit(0));
        assert_eq!(outcome.usage.memory_peak_bytes, 4 * 65536);
    }
    // Another module that gets the same memory.
    let reader = "(module
        (memory (export \"memory\") 4)
        (func (export \"_start\") (local $i i32)
          (loop
            (if (i32.load8_u (local.get $i)) (then unreachable))
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if 0 (i32.lt_u (local.get $i) (i32.const 262144))))))";
    assert_eq!(end(reader).await, End::Exit(0));
}

#[tokio::test]
async fn a_module_is_prepared_once_and_found_by_its_hash() {
    let bytes = wasm(&command("(nop) (nop) (nop)"));
    let hash = ModuleHash::of(&bytes);
    assert!(sandbox().prepared(&hash).is_none());
    sandbox().check(&bytes).unwrap();
    let first = sandbox()
        .prepare(bytes.clone(), Preparation::Optimised)
        .await
        .unwrap();
    let second = sandbox()
        .prepare(bytes, Preparation::Optimised)
        .await
        .unwrap();
    let third = sandbox().prepared(&hash).unwrap();
    assert_eq!(first.hash(), hash);
    assert!(std::sync::Arc::ptr_eq(&first, &second) && std::sync::Arc::ptr_eq(&first, &third));
    assert!(sandbox().load().modules_cached > 0);
}

#[tokio::test]
async fn a_worker_that_is_not_there_is_said_at_start() {
    let mut wrong = settings();
    wrong.compile.worker = "/no/such/worker".into();
    let error = wasm_wizard::sandbox::Sandbox::start(wrong)
        .map(|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("/no/such/worker"), "{error}");
}

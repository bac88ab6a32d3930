//! Guests that call the host with what it should not take.

use bytes::Bytes;
use wasm_wizard::sandbox::{End, Preparation, Sandbox};

use super::Expected::{Exits, OutputLimit};
use super::{PATIENCE, SHORT, attacks, call, is_well, module, settings, within};

/// The functions that take buffers and paths, and one page of memory; the path `/etc/passwd` is at
/// 1000, without its slash at 1001, and upwards from below at 1100.
const WASI: &str = "
    (import \"wasi_snapshot_preview1\" \"fd_write\" (func $write (param i32 i32 i32 i32) (result i32)))
    (import \"wasi_snapshot_preview1\" \"fd_read\" (func $read (param i32 i32 i32 i32) (result i32)))
    (import \"wasi_snapshot_preview1\" \"random_get\" (func $random (param i32 i32) (result i32)))
    (import \"wasi_snapshot_preview1\" \"args_get\" (func $args (param i32 i32) (result i32)))
    (import \"wasi_snapshot_preview1\" \"environ_get\" (func $environ (param i32 i32) (result i32)))
    (import \"wasi_snapshot_preview1\" \"clock_time_get\" (func $clock (param i32 i64 i32) (result i32)))
    (import \"wasi_snapshot_preview1\" \"poll_oneoff\" (func $poll (param i32 i32 i32 i32) (result i32)))
    (import \"wasi_snapshot_preview1\" \"path_open\"
      (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import \"wasi_snapshot_preview1\" \"path_filestat_get\"
      (func $stat (param i32 i32 i32 i32 i32) (result i32)))
    (import \"wasi_snapshot_preview1\" \"path_readlink\"
      (func $readlink (param i32 i32 i32 i32 i32 i32) (result i32)))
    (import \"wasi_snapshot_preview1\" \"fd_renumber\" (func $renumber (param i32 i32) (result i32)))
    (import \"wasi_snapshot_preview1\" \"fd_pread\" (func $pread (param i32 i32 i32 i64 i32) (result i32)))
    (memory (export \"memory\") 1)
    (data (i32.const 1000) \"/etc/passwd\") (data (i32.const 1100) \"../../../../etc/passwd\")";

fn guest(body: &str) -> Vec<u8> {
    module(WASI, body)
}

/// A guest that is well only if each of these calls fails.
fn all_fail(calls: &[&str]) -> Vec<u8> {
    guest(
        &calls
            .iter()
            .map(|call| format!("(if (i32.eqz {call}) (then unreachable))"))
            .collect::<String>(),
    )
}

/// Lays out `count` buffers from 0 on, each of which is all of the memory.
fn overlapping(count: usize) -> String {
    format!(
        "(local $at i32)
         (loop
           (i32.store offset=0 (local.get $at) (i32.const 0))
           (i32.store offset=4 (local.get $at) (i32.const 65536))
           (local.set $at (i32.add (local.get $at) (i32.const 8)))
           (br_if 0 (i32.lt_u (local.get $at) (i32.const {}))))",
        count * 8
    )
}

attacks! {
    stdout_flood => OutputLimit, vec![
        guest(
            "(i32.store (i32.const 4) (i32.const 60000))
             (loop (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) (br 0))",
        ),
        guest(
            "(i32.store (i32.const 4) (i32.const 1))
             (loop (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) (br 0))",
        ),
        // 64 MiB in one call.
        guest(&format!(
            "{} (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1000) (i32.const 65532)))",
            overlapping(1000)
        )),
    ];
    stderr_flood => Exits(0), vec![guest(&format!(
        "(local $left i32) {}
         (local.set $left (i32.const 20))
         (loop
           (if (call $write (i32.const 2) (i32.const 0) (i32.const 1000) (i32.const 65532)) (then unreachable))
           (br_if 0 (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))",
        overlapping(1000)
    ))];
    buffers_out_of_bounds => Exits(0), vec![
        // The list of buffers is outside, or ends outside.
        all_fail(&[
            "(call $write (i32.const 1) (i32.const 65536) (i32.const 1) (i32.const 8))",
            "(call $write (i32.const 1) (i32.const 65529) (i32.const 1) (i32.const 8))",
            "(call $write (i32.const 1) (i32.const -8) (i32.const 1) (i32.const 8))",
            "(call $write (i32.const 1) (i32.const -1) (i32.const 1) (i32.const 8))",
            "(call $read (i32.const 0) (i32.const -8) (i32.const 2) (i32.const 8))",
            "(call $write (i32.const 1) (i32.const 65528) (i32.const 2) (i32.const 8))",
        ]),
        // A buffer is.
        guest(
            "(i32.store (i32.const 0) (i32.const 65535)) (i32.store (i32.const 4) (i32.const 2))
             (i32.store (i32.const 8) (i32.const -1)) (i32.store (i32.const 12) (i32.const -1))
             (i32.store (i32.const 16) (i32.const 0)) (i32.store (i32.const 20) (i32.const 65537))
             (i32.store (i32.const 24) (i32.const 0)) (i32.store (i32.const 28) (i32.const 0x80000000))
             (if (i32.eqz (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64))) (then unreachable))
             (if (i32.eqz (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 64))) (then unreachable))
             (if (i32.eqz (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 64))) (then unreachable))
             (if (i32.eqz (call $write (i32.const 2) (i32.const 24) (i32.const 1) (i32.const 64))) (then unreachable))",
        ),
        // Where the answer goes is.
        guest(
            "(i32.store (i32.const 4) (i32.const 0))
             (if (i32.eqz (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 65533))) (then unreachable))
             (if (i32.eqz (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const -1))) (then unreachable))
             (if (i32.eqz (call $clock (i32.const 1) (i64.const 0) (i32.const 65529))) (then unreachable))
             (if (i32.eqz (call $args (i32.const 0) (i32.const 65536))) (then unreachable))",
        ),
    ];
    /// Every address from the last byte on, and the last byte itself, which is the guest's.
    buffers_at_the_last_byte => Exits(0), vec![guest(
        "(i32.store (i32.const 0) (i32.const 65535)) (i32.store (i32.const 4) (i32.const 1))
         (i32.store8 (i32.const 65535) (i32.const 33))
         (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
         (if (call $random (i32.const 65535) (i32.const 1)) (then unreachable))
         (if (i32.eqz (call $random (i32.const 65535) (i32.const 2))) (then unreachable))
         (if (call $random (i32.const 65536) (i32.const 0)) (then unreachable))
         ;; The list's one item in the memory's last eight bytes.
         (i32.store (i32.const 65528) (i32.const 65535)) (i32.store (i32.const 65532) (i32.const 1))
         (if (call $write (i32.const 1) (i32.const 65528) (i32.const 1) (i32.const 8)) (then unreachable))
         (if (i32.eqz (call $write (i32.const 1) (i32.const 65529) (i32.const 1) (i32.const 8))) (then unreachable))",
    )];
    four_billion_of_anything => Exits(0), vec![all_fail(&[
        "(call $write (i32.const 1) (i32.const 0) (i32.const -1) (i32.const 8))",
        "(call $write (i32.const 2) (i32.const 0) (i32.const -1) (i32.const 8))",
        "(call $read (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 8))",
        "(call $write (i32.const 1) (i32.const 0) (i32.const 0x20000000) (i32.const 8))",
        "(call $write (i32.const 1) (i32.const 0) (i32.const 0x20000001) (i32.const 8))",
        "(call $poll (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 8))",
        "(call $poll (i32.const 0) (i32.const 0) (i32.const 0x05555556) (i32.const 8))",
        "(call $random (i32.const 0) (i32.const -1))",
        "(call $random (i32.const 1) (i32.const -1))",
        "(call $random (i32.const 0) (i32.const 0x80000000))",
        "(call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 0)
           (i64.const -1) (i64.const -1) (i32.const 0) (i32.const 8))",
        "(call $readlink (i32.const 3) (i32.const 0) (i32.const -1) (i32.const 0) (i32.const -1) (i32.const 8))",
    ])];
    /// By each of 5,000 descriptors and the last ones of 32 bits, with three ways to say the path.
    etc_passwd_through_every_descriptor => Exits(0), vec![guest(
        "(local $fd i32) (local $round i32)
         (loop $next
           (if (i32.eqz (call $open (local.get $fd) (i32.const 1) (i32.const 1000) (i32.const 11) (i32.const 0)
                 (i64.const -1) (i64.const -1) (i32.const 0) (i32.const 8))) (then unreachable))
           (if (i32.eqz (call $open (local.get $fd) (i32.const 0) (i32.const 1001) (i32.const 10) (i32.const 0)
                 (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8))) (then unreachable))
           (if (i32.eqz (call $open (local.get $fd) (i32.const 1) (i32.const 1100) (i32.const 22) (i32.const 0)
                 (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8))) (then unreachable))
           (if (i32.eqz (call $stat (local.get $fd) (i32.const 1) (i32.const 1000) (i32.const 11) (i32.const 8)))
             (then unreachable))
           (if (i32.eqz (call $pread (i32.const 0) (i32.const 0) (i32.const 1) (i64.const 0) (i32.const 64)))
             (then unreachable))
           (if (i32.gt_u (local.get $fd) (i32.const 2)) (then
             (if (i32.eqz (call $renumber (local.get $fd) (i32.const 0))) (then unreachable))))
           (local.set $fd (i32.add (local.get $fd) (i32.const 1)))
           (if (i32.eq (local.get $fd) (i32.const 5000)) (then (local.set $fd (i32.const -1000))))
           (br_if $next (local.get $fd)))",
    )];
}

#[tokio::test]
async fn two_gib_of_randomness_in_one_call() {
    let mut settings = settings();
    settings.guests_max = 1;
    let sandbox = Sandbox::start(settings).unwrap();
    let random = module(
        "(import \"wasi_snapshot_preview1\" \"random_get\" (func $random (param i32 i32) (result i32)))
         (memory (export \"memory\") 32768)",
        "(if (call $random (i32.const 0) (i32.const 0x80000000)) (then unreachable))",
    );
    let module = within(sandbox.prepare(Bytes::from(random), Preparation::Optimised))
        .await
        .unwrap();
    let mut short = call();
    short.limits.deadline = SHORT;
    short.limits.memory_bytes_max = 1 << 31;
    let outcome = within(sandbox.run(module, short)).await.unwrap();
    // A machine that makes two GiB in the time would have to be very fast.
    assert_eq!(outcome.end, End::TimeLimit);
    assert!(outcome.usage.cpu < PATIENCE / 10, "{:?}", outcome.usage);
    is_well(&sandbox).await;
}

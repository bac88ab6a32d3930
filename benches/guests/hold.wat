;; Touches 32 pages of 4 KiB out of its 2 MiB of memory, 64 KiB apart, and sleeps for an hour: one of
;; many guests that are alive at the same time.
(module
  (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 32)
  (func (export "_start") (local $at i32)
    (loop $touch
      (i32.store (local.get $at) (i32.const 1))
      (local.set $at (i32.add (local.get $at) (i32.const 65536)))
      (br_if $touch (i32.lt_u (local.get $at) (i32.const 2097152))))
    ;; A subscription at 0: tag 0 (clock) at 8, clock 1 (monotonic) at 16, timeout at 24.
    (i64.store (i32.const 0) (i64.const 0))
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 3600000000000))
    (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))

;; Never ends, and spends all its time in host functions.
(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (loop $again
      (drop (call $random (i32.const 0) (i32.const 4096)))
      (drop (call $yield))
      (br $again))))

;; echo.wat: writes its input to its output, byte for byte.
;;
;; ABI "command". A loop over fd_read and fd_write with a buffer of 32 KiB, until fd_read reports
;; 0 bytes: the end of the input.
;;
;; The text format can be sent as it is; no build is needed.
;; Try:  wasm-wizard exec examples/guests/echo.wat --input 'hello'
(module
  (import "wasi_snapshot_preview1" "fd_read"
    (func $fd_read (param $fd i32) (param $iovs i32) (param $iovs_len i32) (param $read i32)
      (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param $fd i32) (param $iovs i32) (param $iovs_len i32) (param $written i32)
      (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))

  ;; Address 0: an iovec, the buffer's address and a length. Address 8: bytes moved.
  ;; Address 1024: the buffer.
  (memory (export "memory") 1)
  (global $buffer i32 (i32.const 1024))
  (global $buffer_bytes i32 (i32.const 32768))

  ;; Ends the guest unless the error number is 0.
  (func $check (param $errno i32)
    (if (local.get $errno)
      (then (call $proc_exit (local.get $errno)))))

  (func (export "_start")
    (i32.store (i32.const 0) (global.get $buffer))
    (loop $next
      (i32.store (i32.const 4) (global.get $buffer_bytes))
      (call $check (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      ;; Write as many bytes as were read, unless there were none.
      (i32.store (i32.const 4) (i32.load (i32.const 8)))
      (if (i32.load (i32.const 4))
        (then
          (call $check (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
          (br $next))))))

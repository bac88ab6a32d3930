;; hello.wat: writes a line to standard output and ends.
;;
;; ABI "command", by hand: a module that imports one WASI function, exports its memory as "memory"
;; and its entry point as "_start". Returning from "_start" is exit code 0.
;;
;; The text format can be sent as it is; no build is needed.
;; Try:  wasm-wizard exec examples/guests/hello.wat
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param $fd i32) (param $iovs i32) (param $iovs_len i32) (param $written i32)
      (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))

  (memory (export "memory") 1)

  ;; Address 0: one iovec, that is the address (16) and the length (14) of the text.
  ;; Address 8: fd_write puts here how many bytes it wrote.
  (data (i32.const 0) "\10\00\00\00\0e\00\00\00")
  (data (i32.const 16) "Hello, wizard\n")

  (func (export "_start")
    ;; fd_write answers 0, or an error number, which then is our exit code.
    (local $errno i32)
    (local.set $errno
      (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (if (local.get $errno)
      (then (call $proc_exit (local.get $errno))))))
